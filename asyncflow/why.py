"""Why a run is not moving: what its code and its calls wait for, and who has what they wait for.

The engine that carries a run out knows all of it (`asyncflow.standing`), and tells others the
part that lasts, as rows (`asyncflow.telling`). Whoever looks, from whatever process, puts
together what the record of the run says, what its engine knows or has told, and what the other
engines have told of the limits that it waits for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from asyncflow.states import StateType
from asyncflow.store.base import TaskQuery
from asyncflow.views import moment

if TYPE_CHECKING:
    from asyncflow.shares import ShareRow
    from asyncflow.store.base import NoticeRow, Reader, RunRow

#: Calls, holders and upstreams of one reason that are named; of more there is a number.
FEW = 5
#: Holders of one limit that are listed where limits are.
MANY = 20

#: The kinds of `Reason`: what is waited for.
KINDS = (
    "owner",  #: an engine that carries it out
    "attention",  #: a person: something has failed
    "answer",  #: a person: something was asked
    "event",  #: an event
    "sleep",  #: a point in time
    "retry",  #: another attempt
    "limit",  #: units of a named limit
    "rate",  #: a start that a named rate allows
    "max_concurrency",  #: a slot of the engine, flow, task, threads or processes (`Held.scope`)
    "cache",  #: another task run that makes the same result
    "child",  #: a child run
    "fallback",  #: the task that stands in for one that has failed
    "stopping",  #: code that was told to stop
    "upstream",  #: other task runs
    "turn",  #: others in the same line
)


@dataclass(slots=True, kw_only=True)
class Thing:
    """A task run, a run or a map that is waited for, or waits.

    Attributes:
        run: pk of its flow run; `run_id`: the id, filled in by whoever looks.
        seq: the number of the task run; None: the run itself, or a map.
        task: the task's name; "" of a run.
        name: what people call it.
        state: the name of its state; "" where that does not matter.
        left: of a map, how many of its task runs have not ended.
    """

    run: int
    name: str
    seq: int | None = None
    task: str = ""
    state: str = ""
    left: int = 0
    run_id: str = ""


@dataclass(slots=True, kw_only=True)
class Holder:
    """Who holds units of a limit.

    Attributes:
        engine: the engine in which it is.
        units: how many.
        run, seq: pk of the run, and number of the task run; seq None: the body of the flow; run
            None: not known, or code outside of runs.
        name: of the task run, or of the run.
        since: seconds since the epoch, where it is known: of a task run, when its attempt began.
        run_id, run_name: filled in by whoever looks.
    """

    engine: int
    units: float
    run: int | None = None
    seq: int | None = None
    task: str = ""
    name: str = ""
    since: float | None = None
    run_id: str = ""
    run_name: str = ""


@dataclass(slots=True, kw_only=True)
class Held:
    """How much of a limit is in use in one engine, and by whom.

    Attributes:
        name: of a named limit; what people call another one.
        scope: "shared" (a named limit, of all engines), or "engine", "threads", "processes",
            "task", "flow": limits of one engine only.
        used: units in use; `size`: what there is, None: any number.
        period: of a rate, seconds; `free_at`: when a rate that is used up allows another start.
        waiting: how many wait for it, a map as many as are left of it.
        holders: some of those who hold it; `more`: how many others do.
    """

    name: str
    scope: str
    used: float = 0.0
    size: float | None = None
    period: float | None = None
    free_at: float | None = None
    waiting: int = 0
    holders: list[Holder] = field(default_factory=list)
    more: int = 0


@dataclass(slots=True, kw_only=True)
class Share:
    """What one engine may use of a limit, and could."""

    engine: int
    units: float
    wanted: float
    alive: bool


@dataclass(slots=True, kw_only=True)
class LimitInfo:
    """A named limit.

    Attributes:
        limit: what was set for all engines; None: it is declared in code, or was lifted.
        shares: how it is divided among engines.
    """

    held: Held
    limit: float | None
    burst: int | None
    shares: list[Share]


@dataclass(slots=True, kw_only=True)
class Reason:
    """Something that one or more calls of a run wait for; or the body of its flow.

    Attributes:
        kind: one of `KINDS`.
        task: the task whose calls wait; "": the body of the flow, or the run as a whole.
        calls: how many of them; `least`: there are more that were not looked at.
        who: some of them.
        since: since when the first of them waits; `until`: when that is over by itself, at the
            latest. Seconds since the epoch; None: not known, or never.
        limit: of a limit, a rate or max_concurrency.
        on: some of what is waited for; `more`: how much else.
        what: the name of the event; or what there is to say.
        told_at: when the engine that has the run told this; None: it was looked up just now.
    """

    kind: str
    task: str = ""
    calls: int = 0
    least: bool = False
    who: list[Thing] = field(default_factory=list)
    since: float | None = None
    until: float | None = None
    limit: Held | None = None
    on: list[Thing] = field(default_factory=list)
    more: int = 0
    what: str = ""
    told_at: float | None = None


# --- in words -------------------------------------------------------------------------------------


def head(reason: Reason) -> str:
    """What waits, and for what, in one sentence without those who hold it."""
    who = _who(reason)
    match reason.kind:
        case "limit" | "rate" | "max_concurrency":
            text = f"{who} for {_limit(reason)}"
        case "turn":
            text = f"{who} for a turn: others are before in line"
        case "upstream":
            text = f"{who} for others to end"
        case "child":
            text = f"{who} for a child run"
        case "retry":
            text = f"{who} for another attempt"
        case "fallback":
            text = f"{who} for the fallback"
        case "cache":
            text = f"{who} for the same result, which is being made"
        case "event":
            text = f"{who} for the event {reason.what!r}"
        case "sleep":
            text = f"{who.removesuffix('waits').removesuffix('wait')}{_sleeps(reason)}"
        case "answer":
            text = f"{who} for an answer"
        case "attention":
            text = f"{who} for a person"
        case "stopping":
            text = f"{who} for code to stop"
        case _:
            text = "no engine has it"
    if reason.until is not None:
        text += f", until {moment(reason.until):%Y-%m-%d %H:%M:%S} UTC"
    if reason.what and reason.kind != "event":
        text += f": {reason.what}"
    return text


def sentence(reason: Reason) -> str:
    """The same with those who hold it, or what it is."""
    text = head(reason)
    held = reason.limit
    if held is not None and (held.holders or held.more):
        names = [_holder(one) for one in held.holders[:FEW]]
        more = held.more + len(held.holders) - len(names)
        return f"{text}; held by {_listed(names, more)}"
    if reason.on:
        return f"{text}: {_listed([_thing(one) for one in reason.on], reason.more)}"
    return text


def _who(reason: Reason) -> str:
    if not reason.calls:
        return "the flow waits"
    if reason.calls == 1 and reason.who and not reason.least:
        return f"{reason.who[0].name} waits"
    number = f"{'at least ' if reason.least else ''}{reason.calls:,}"
    return f"{number} calls of {reason.task} wait"


def _sleeps(reason: Reason) -> str:
    return "sleeps" if reason.calls <= 1 else "sleep"


def _limit(reason: Reason) -> str:
    held = reason.limit
    assert held is not None
    size = held.size
    if size == 0:
        return f"{_called(held)}, which is paused (0)"
    if held.period is not None:
        return f"{_called(held)} ({size or 0:g} in {held.period:g} s), which is used up"
    if size is None:
        return _called(held)
    return f"{_called(held)} ({held.used:g} of {size:g} in use)"


def _called(held: Held) -> str:
    """What people call a limit."""
    match held.scope:
        case "engine":
            return "max_concurrency of the engine"
        case "threads":
            return "a thread"
        case "processes":
            return "a worker process"
        case "task":
            return f"max_concurrency of the task {held.name!r}"
        case "flow":
            return "max_concurrency of the flow"
    tag = held.name.removeprefix("tag:")
    kind = "limit" if held.period is None else "rate"
    return f"the {kind} of the tag {tag!r}" if tag != held.name else f"the {kind} {held.name!r}"


def _holder(one: Holder) -> str:
    if one.run is None:
        return f"engine {one.engine} ({one.units:g})" if not one.name else one.name
    of = f" of {one.run_name or one.run_id}" if one.seq is not None and one.run_id else ""
    since = f" since {moment(one.since):%H:%M:%S}" if one.since is not None else ""
    units = f" ({one.units:g})" if one.units != 1 else ""
    return f"{one.name}{of}{units}{since}"


def _thing(one: Thing) -> str:
    if one.left:
        return f"{one.name} ({one.left:,} left)"
    return f"{one.name} ({_words(one.state)})" if one.state else one.name


def _words(state: str) -> str:
    """The name of a state in small words: "awaiting retry"."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", state).lower()


def _listed(names: list[str], more: int) -> str:
    return ", ".join(names) + (f" and {more:,} more" if more else "")


# --- as JSON, for who asks ------------------------------------------------------------------------


def reason_json(one: Reason) -> dict[str, Any]:
    """Why something is not moving."""
    return {
        "kind": one.kind,
        "text": sentence(one),
        "head": head(one),
        "task": one.task or None,
        "calls": one.calls,
        "at_least": one.least,
        "task_runs": [thing_json(thing) for thing in one.who],
        "since": moment(one.since),
        "until": moment(one.until),
        "limit": held_json(one.limit) if one.limit is not None else None,
        "on": [thing_json(thing) for thing in one.on],
        "more": one.more,
        "event": one.what if one.kind == "event" else None,
        "told_at": moment(one.told_at),
    }


def thing_json(one: Thing) -> dict[str, Any]:
    """A run, task run or map that waits or is waited for."""
    return {
        "run_id": one.run_id or None,
        "seq": one.seq,
        "task": one.task or None,
        "name": one.name,
        "state_name": one.state or None,
        "left": one.left or None,
    }


def held_json(one: Held) -> dict[str, Any]:
    """How much of a limit is in use, and by whom."""
    return {
        "name": one.name,
        "scope": one.scope,
        "used": one.used,
        "size": one.size,
        "period": one.period,
        "free_at": moment(one.free_at),
        "waiting": one.waiting,
        "holders": [holder_json(holder) for holder in one.holders],
        "more": one.more,
    }


def limit_json(one: LimitInfo) -> dict[str, Any]:
    """A named limit."""
    shares = [asdict(share) for share in one.shares]
    return {**held_json(one.held), "limit": one.limit, "burst": one.burst, "shares": shares}


def holder_json(one: Holder) -> dict[str, Any]:
    """Who holds units of a limit."""
    return {
        "engine": one.engine,
        "units": one.units,
        "run_id": one.run_id or None,
        "run_name": one.run_name or None,
        "seq": one.seq,
        "task": one.task or None,
        "name": one.name or None,
        "since": moment(one.since),
    }


# --- as rows --------------------------------------------------------------------------------------


def dumped(reasons: Iterable[Reason], pending: dict[str, int]) -> bytes:
    """What an engine tells of a run: what it waits for, and calls that have no row yet."""
    told = {"waits": [asdict(one) for one in reasons], "pending": pending}
    return json.dumps(told).encode()


def held_dumped(held: Held) -> bytes:
    """What an engine tells of a limit."""
    return json.dumps(asdict(held)).encode()


def loaded(row: NoticeRow) -> tuple[list[Reason], dict[str, int]]:
    """What an engine has told of a run. What this version does not understand is left out."""
    try:
        told = json.loads(row.data)
        found = [_reason(one) for one in told["waits"]]
        pending = {str(task): int(n) for task, n in told["pending"].items()}
    except (ValueError, TypeError, LookupError, AttributeError):
        return [], {}
    for one in found:
        one.told_at = row.time
    return found, pending


def held_loaded(row: NoticeRow) -> Held | None:
    """What an engine has told of a limit."""
    try:
        return _held(json.loads(row.data))
    except (ValueError, TypeError, LookupError):
        return None


def _reason(told: dict[str, Any]) -> Reason:
    held = told.pop("limit")
    who, on = ([Thing(**one) for one in told.pop(key)] for key in ("who", "on"))
    return Reason(limit=_held(held) if held is not None else None, who=who, on=on, **told)


def _held(told: dict[str, Any]) -> Held:
    return Held(holders=[Holder(**one) for one in told.pop("holders")], **told)


# --- whoever looks --------------------------------------------------------------------------------


@dataclass(slots=True, kw_only=True)
class Look:
    """What somebody who looks at a store knows besides it.

    Attributes:
        reader: of the store.
        is_alive: whether an engine is.
        own: the engine of this process, whose limits are known as they are; None: there is none.
        held: finds what of named limits is in use in it, by name, where that is asked for.
    """

    reader: Reader
    is_alive: Callable[[int], bool]
    own: int | None = None
    held: Callable[[], dict[str, Held]] = dict


@dataclass(slots=True)
class Why:
    """What is known of the waits of a run.

    Attributes:
        reasons: why it is not moving.
        pending: calls that have been made and have no row yet, by task.
    """

    reasons: list[Reason]
    pending: dict[str, int] = field(default_factory=dict)


async def why(row: RunRow, look: Look, live: Why | None = None) -> Why:
    """Why a run is not moving.

    Args:
        row: as it is: of a dead process as `asyncflow.views.as_it_is` makes it.
        live: what the engine of this process knows, where it carries the run out.
    """
    if StateType(row.state).is_final:
        return Why([])
    found: list[Reason] = []
    owned = row.engine is not None and look.is_alive(row.engine)
    if not owned and live is None and row.state_name != "NeedsAttention":
        interrupted = row.state_name == "Interrupted" and row.message
        text = interrupted or "it goes on when it is recovered or resumed"
        found.append(Reason(kind="owner", what=text))
    known = live
    if known is None and owned:
        told = await look.reader.notices("run", [str(row.pk)])
        known = next((Why(*loaded(one)) for one in told if one.engine == row.engine), None)
    known = known or Why([])
    # What the body waits for, and which call needs a person, is known better.
    of_body = {one.kind for one in known.reasons if not one.calls or one.kind == "attention"}
    found += [one for one in _recorded(row) if one.kind not in of_body]
    kinds = {one.kind for one in known.reasons}
    found += known.reasons
    if live is None:
        of_rows = [one for one in await _of_rows(row, look.reader) if one.kind not in kinds]
        if any(one.kind == "attention" for one in of_rows):
            found = [one for one in found if one.kind != "attention"]
        found += of_rows
    found = await with_others(found, look)
    return Why(found, known.pending)


def _recorded(row: RunRow) -> list[Reason]:
    """What the row of a run says that its body waits for."""
    if row.state_name == "NeedsAttention":
        return [Reason(kind="attention", what=row.message)]
    if row.state_name == "AwaitingRetry":
        return [Reason(kind="retry", until=row.wake_at, what=row.message)]
    if row.waits_for is None and row.wake_at is None:
        return [Reason(kind="answer")] if row.state_name == "Paused" else []
    try:
        told = json.loads(row.waits_for or b"{}")
    except ValueError:
        told = {}
    kind = _RECORDED.get(str(told.get("kind")), "sleep")
    what = str(told.get("name", "")) if kind == "event" else ""
    if kind == "owner":
        what = "it was imported before it had ended: resume it to go on"
    return [Reason(kind=kind, since=row.state_at, until=row.wake_at, what=what)]


#: What `RunRow.waits_for` calls the kinds of waits.
_RECORDED = {"pause": "answer", "event": "event", "import": "owner"}


async def _of_rows(row: RunRow, reader: Reader) -> list[Reason]:
    """What the rows of its task runs say."""
    found: dict[tuple[str, str], Reason] = {}
    names = ("AwaitingRetry", "AwaitingFallback", "Paused")
    page = await reader.task_runs(TaskQuery(run=row.pk, names=names, limit=200))
    for one in page.rows:
        kind = _KINDS.get(one.state_name or "Paused", "attention")
        reason = found.get((kind, one.task))
        if reason is None:
            reason = found[kind, one.task] = Reason(kind=kind, task=one.task, what=one.message)
            reason.until = one.retry_at
        reason.calls += 1
        reason.least = page.next_cursor is not None
        if one.retry_at is not None:
            reason.until = min(reason.until or one.retry_at, one.retry_at)
        if len(reason.who) < FEW:
            name = one.name or f"{one.task}-{one.seq}"
            reason.who.append(Thing(run=row.pk, seq=one.seq, task=one.task, name=name))
    return list(found.values())


_KINDS = {"AwaitingRetry": "retry", "AwaitingFallback": "fallback"}


async def with_others(reasons: list[Reason], look: Look) -> list[Reason]:
    """Reasons with what other engines hold, and with the ids of all runs that they name."""
    shared = {
        one.limit.name for one in reasons if one.limit is not None and one.limit.scope == "shared"
    }
    if shared:
        whole = {held.name: held for held in await holding(look, sorted(shared))}
        for n, one in enumerate(reasons):
            held = one.limit
            if held is None or held.scope != "shared" or held.name not in whole:
                continue
            found = whole[held.name]
            reasons[n] = replace(
                one, limit=replace(found, size=held.size, period=held.period, free_at=held.free_at)
            )
    await named(reasons, look.reader)
    return reasons


async def holding(look: Look, names: list[str] | None = None) -> list[Held]:
    """How much of named limits is in use in all engines that are alive, and by whom.

    Args:
        names: of the limits; None: of all that somebody uses.
    """
    _, shares = await look.reader.limits()
    of: dict[str, Held] = {}
    told = await look.reader.notices("limit", names)
    by: dict[tuple[str, int], Held] = {
        (one.name, one.engine): held
        for one in told
        if one.engine != look.own and look.is_alive(one.engine)
        if (held := held_loaded(one)) is not None
    }
    if look.own is not None:
        by |= {(name, look.own): held for name, held in look.held().items()}
    for share in _untold(shares, by, look):
        of_engine = Holder(engine=share.engine, units=share.units)
        by[share.limit, share.engine] = Held(
            name=share.limit, scope="shared", used=share.units, holders=[of_engine]
        )
    for (name, _), held in by.items():
        if names is not None and name not in names:
            continue
        one = of.setdefault(name, Held(name=name, scope="shared", period=held.period))
        one.used += held.used
        one.waiting += held.waiting
        one.holders += held.holders
        one.more += held.more
        if held.size is not None:
            one.size = held.size
        if held.free_at is not None:
            one.free_at = min(one.free_at or held.free_at, held.free_at)
    for one in of.values():
        one.holders.sort(key=lambda h: (h.since is None, h.since or 0.0))
        one.more += len(one.holders[MANY:])
        del one.holders[MANY:]
    await _holders_named([h for one in of.values() for h in one.holders], look.reader)
    return [of[name] for name in sorted(of)]


async def limits(look: Look) -> list[LimitInfo]:
    """All named limits, by name."""
    rows, shares = await look.reader.limits()
    set_for_all = {row.name: row for row in rows}
    used = {one.name: one for one in await holding(look)}
    alive = {engine: look.is_alive(engine) for engine in {share.engine for share in shares}}
    found = []
    for name in sorted(set_for_all.keys() | used.keys() | {share.limit for share in shares}):
        row, held = set_for_all.get(name), used.get(name) or Held(name=name, scope="shared")
        if row is not None:
            held.size, held.period = row.limit, row.period
        own = [
            Share(engine=s.engine, units=s.units, wanted=s.wanted, alive=alive[s.engine])
            for s in shares
            if s.limit == name
        ]
        limit, burst = (row.limit, row.burst) if row is not None else (None, None)
        found.append(LimitInfo(held=held, limit=limit, burst=burst, shares=own))
    return found


def _untold(
    shares: Iterable[ShareRow], by: dict[tuple[str, int], Held], look: Look
) -> list[ShareRow]:
    """Shares of engines that have told nothing of what they do with them."""
    return [
        share
        for share in shares
        if share.units
        and share.engine != look.own
        and (share.limit, share.engine) not in by
        and (share.free_at is not None or look.is_alive(share.engine))
        # Who is alone has all of it, and need not use any.
        and (share.free_at is not None or share.wanted > 0)
    ]


async def named(reasons: list[Reason], reader: Reader) -> None:
    """Fill in the ids of runs that reasons name."""
    things = [thing for one in reasons for thing in (*one.who, *one.on) if not thing.run_id]
    holders = [h for one in reasons if one.limit is not None for h in one.limit.holders]
    infos = await reader.run_infos(sorted({thing.run for thing in things} - {0}))
    for thing in things:
        info = infos.get(thing.run)
        thing.run_id = info.id if info is not None else ""
    await _holders_named(holders, reader)


async def _holders_named(holders: list[Holder], reader: Reader) -> None:
    unnamed = [one for one in holders if one.run and not one.run_id]
    infos = await reader.run_infos(sorted({one.run for one in unnamed if one.run}))
    for one in unnamed:
        info = infos.get(one.run or 0)
        if info is not None:
            one.run_id, one.run_name = info.id, info.name or info.flow_name


__all__ = [
    "FEW",
    "KINDS",
    "MANY",
    "Held",
    "Holder",
    "LimitInfo",
    "Look",
    "Reason",
    "Share",
    "Thing",
    "Why",
    "head",
    "held_json",
    "holding",
    "limit_json",
    "limits",
    "reason_json",
    "sentence",
    "why",
    "with_others",
]
