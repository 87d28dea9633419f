"""What an engine knows of its own: what the calls of its runs wait for, and who holds its limits.

Nothing is kept for it: whoever asks has the live records looked through, on the loop and up to a
number of them, so that it costs nothing where nobody asks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from math import inf
from typing import TYPE_CHECKING

from asyncflow.limits import Limit, Rate, blocker
from asyncflow.run import Batch, Call, Hold, Run
from asyncflow.states import StateType
from asyncflow.waiting import Wait
from asyncflow.why import FEW, KINDS, MANY, Held, Holder, Look, Reason, Thing, Why

if TYPE_CHECKING:
    from asyncflow.engine import Engine
    from asyncflow.limits import Needs

S = StateType

#: Calls that one look goes through for what they wait for, and that it counts.
MOST, MOST_COUNTED = 5_000, 100_000
#: Limits of which holders are told, and reasons of one run.
MOST_LIMITS, MOST_REASONS = 200, 50
#: Characters of what there is to say of one reason.
MOST_SAID = 500

_WAIT_KINDS = {"sleep": "sleep", "event": "event", "pause": "answer"}


def of_run(engine: Engine, run_id: str) -> Why | None:
    """What a run waits for; None: this engine does not carry it out."""
    run = engine.live.get(run_id)
    return None if run is None else Standing(engine).why(run)


def of_call(engine: Engine, run_id: str, seq: int) -> tuple[Call, list[Reason]] | None:
    """A call that has not ended, and what it waits for; None: this engine does not have it."""
    run = engine.live.get(run_id)
    if run is None:
        return None
    call = next((call for call in run.calls if call.seq == seq), None)
    return None if call is None else (call, Standing(engine).of_call(call))


def look(engine: Engine) -> Look:
    """How somebody who looks at the store of an engine looks at it."""
    return Look(
        reader=engine.reader,
        is_alive=engine.recovery.is_alive,
        own=engine.id,
        held=lambda: Standing(engine).shared(),
    )


class Standing:
    """One look at an engine. To be used at once, on its loop.

    Args:
        most: calls that are looked at for each question, at most; of more there are only numbers.
    """

    def __init__(self, engine: Engine, most: int = MOST) -> None:
        self._engine = engine
        self._most = most
        self._mono = engine.loop.time()
        self._ahead = engine.clock.time() - engine.steady.time()
        self._leaders = engine.executor.cache.leaders() if engine.executor.cache else {}
        self._limits: dict[Limit, Held] = {}
        self._complete = False
        self._shorts: dict[int, tuple[str, Held, float | None] | None] = {}

    # --- limits ---------------------------------------------------------------------------------

    def held(self) -> list[Held]:
        """The limits that are in use here, and some of those who hold them."""
        self._find_holders()
        found = [one for one in self._limits.values() if one.used or one.waiting]
        return found[:MOST_LIMITS]

    def shared(self) -> dict[str, Held]:
        """Those of them that are named, and so divided with other engines."""
        return {held.name: held for held in self.held() if held.scope == "shared"}

    def _find_holders(self) -> None:
        if self._complete:
            return
        self._complete = True
        known: dict[Limit, float] = {}
        for limit, units, by in self._holders():
            held = self._of(limit)
            known[limit] = known.get(limit, 0.0) + units
            if len(held.holders) < MANY:
                held.holders.append(self._holder(by, units))
            else:
                held.more += 1
        for limit in self._engine.named:
            if limit.whole < inf:
                self._of(limit)
        for limit, held in self._limits.items():
            if not limit.timed and held.used > known.get(limit, 0.0):
                held.more += 1  # who was not looked at, or goes through a map

    def _holders(self) -> Iterator[tuple[Limit, float, Call | Hold]]:
        engine, left = self._engine, self._most
        for run in list(engine.live.values()):
            for call in list(islice(run.calls, left)):
                left -= 1
                if call.holding:
                    for limit, units in call.limits:
                        yield limit, units, call
        for holds in list(engine.holders.values()):
            for hold in holds:
                for limit, units in hold.limits:
                    yield limit, units, hold

    def _holder(self, by: Call | Hold, units: float) -> Holder:
        engine = self._engine
        if isinstance(by, Call):
            call, since = by, by.began if by.began is not None else by.started
        else:
            since = by.since
            if by.call is None:
                return self._of_body(by, units)
            call = by.call
        run = call.run
        return Holder(
            engine=engine.id,
            units=units,
            run=run.pk,
            run_id=run.id,
            run_name=self._text(run.run_name or run.flow_name),
            seq=call.seq,
            task=call.spec.name,
            name=self._text(call.display),
            since=since,
        )

    def _of_body(self, hold: Hold, units: float) -> Holder:
        """What the body of a flow holds, or code outside of runs."""
        run, engine = hold.owner, self._engine.id
        if not isinstance(run, Run):
            return Holder(engine=engine, units=units, name="code outside of runs", since=hold.since)
        name = self._text(run.run_name or run.flow_name)
        return Holder(
            engine=engine,
            units=units,
            run=run.pk,
            run_id=run.id,
            run_name=name,
            name=name,
            since=hold.since,
        )

    def _text(self, text: str) -> str:
        """A text of the user without secrets."""
        return self._engine.masker.text(text)

    def _of(self, limit: Limit) -> Held:
        """A limit; those who hold it are found later, if anybody asks."""
        held = self._limits.get(limit)
        if held is not None:
            return held
        scope = self._scope(limit)
        name = limit.name.partition(":")[2] if scope in ("flow", "task") else limit.name
        held = self._limits[limit] = Held(name=name, scope=scope, waiting=_waiting(limit))
        if isinstance(limit, Rate):
            limit.refresh(self._mono)
            held.period = limit.period
            held.free_at = self._free_at(limit, 1)
        held.used = float(max(0.0, limit.used))
        held.size = None if limit.whole == inf else float(limit.whole)
        return held

    def _free_at(self, rate: Rate, units: int) -> float | None:
        """When so many starts are allowed; None: now, or that is up to other engines."""
        if rate.used + units <= rate.size:
            return None
        when = rate.next_time(units, self._mono)
        if when is None:
            return None
        return self._engine.clock.time() + max(0.0, when - self._mono)

    def _scope(self, limit: Limit) -> str:
        calls = self._engine.calls
        if limit is calls.engine_limit:
            return "engine"
        if limit is calls.threads_limit:
            return "threads"
        if limit is calls.processes_limit:
            return "processes"
        if self._engine.named.has(limit):
            return "shared"
        return "flow" if limit.name.startswith("run:") else "task"

    # --- waits ----------------------------------------------------------------------------------

    def why(self, run: Run) -> Why:
        """What a live run waits for, and how many of its calls have no row yet."""
        groups = _Groups(self)
        pending: dict[str, int] = {}
        waits = {wait.call: wait for wait in self._engine.waiting.of(run.id)}
        queueing = self._queueing(run)
        if (wait := waits.get(None)) is not None:
            groups.add(self._of_wait(wait))
        if (hold := queueing.get(None)) is not None:
            groups.add(self._short(hold.limits))
        for call in islice(run.calls, MOST_COUNTED):
            if call.phase is S.PENDING and not call.attempt and not call.unrecorded:
                pending[call.spec.name] = pending.get(call.spec.name, 0) + 1
        calls = list(islice(run.calls, self._most))
        for call in calls:
            groups.add(self._of_call(call, waits.get(call), queueing.get(call)), call)
        for batch in run.batches:
            left = batch.size - batch.next
            if left > 0:
                name = batch.spec.name
                pending[name] = pending.get(name, 0) + left
                reason = self._short(batch.limits) or Reason(kind="turn")
                reason.since = batch.created or None
                groups.add(reason, None, name, left)
        found = groups.reasons(least=len(calls) < len(run.calls))
        self._name_holders(found)
        return Why(found, pending)

    def of_call(self, call: Call) -> list[Reason]:
        """What one call waits for."""
        groups = _Groups(self)
        waits = {wait.call: wait for wait in self._engine.waiting.of(call.run.id)}
        hold = self._queueing(call.run).get(call)
        groups.add(self._of_call(call, waits.get(call), hold), call)
        found = groups.reasons(least=False)
        self._name_holders(found)
        return found

    def _name_holders(self, reasons: list[Reason]) -> None:
        if any(one.limit is not None for one in reasons):
            self._find_holders()

    def _queueing(self, run: Run) -> dict[Call | None, Hold]:
        """The waits of code under way for units of limits."""
        return {h.call: h for h in self._engine.executor.queueing if h.owner is run and h.live}

    def _of_call(self, call: Call, wait: Wait | None, hold: Hold | None) -> Reason | None:
        match call.phase:
            case S.PENDING:
                return self._of_pending(call)
            case S.SCHEDULED | S.PAUSED if call.aside is not None:
                kind = "attention" if call.phase is S.PAUSED else "fallback"
                stand_in = call.aside.stand_in
                on = [self.thing(stand_in)] if stand_in is not None else []
                return Reason(kind=kind, what=self._text(call.message)[:MOST_SAID], on=on)
            case S.SCHEDULED if call.retry_at is not None:
                until = call.retry_at + self._ahead
                return Reason(kind="retry", what=self._text(call.message)[:MOST_SAID], until=until)
            case S.SCHEDULED:
                return self._short(call.limits) or Reason(kind="turn")
            case S.CANCELLING:
                return Reason(kind="stopping", what=self._text(call.message)[:MOST_SAID])
            case S.RUNNING:
                return self._of_running(call, wait, hold)
        return None

    def _of_pending(self, call: Call) -> Reason | None:
        if call.waiting:
            return Reason(kind="upstream", on=self._things(call.waits_on), since=call.created)
        since = call.ready or call.created
        leader = self._leaders.get(call)
        if leader is not None:
            return Reason(kind="cache", on=[self.thing(leader)], since=since)
        reason = self._short(call.limits) or Reason(kind="turn")
        reason.since = since
        return reason

    def _of_running(self, call: Call, wait: Wait | None, hold: Hold | None) -> Reason | None:
        if hold is not None:
            return self._short(hold.limits)
        if wait is not None:
            return self._of_wait(wait)
        child = call.child
        if child is not None and not child.phase.is_final:
            return Reason(kind="child", on=[self._of_run(child)])
        on = self._things(call.waits_on)
        return Reason(kind="upstream", on=on) if on else None

    def _of_wait(self, wait: Wait) -> Reason:
        until = wait.until
        if until is not None and not wait.by_wall:
            until += self._ahead
        kind, since = _WAIT_KINDS.get(wait.kind, "sleep"), wait.began or None
        return Reason(kind=kind, what=wait.label, until=until, since=since)

    def _short(self, needs: Needs) -> Reason | None:
        """The limit that has no room for *needs*, as a reason."""
        key = id(needs)  # all calls of a task have the same object
        if key not in self._shorts:
            self._shorts[key] = self._blocker(needs)
        found = self._shorts[key]
        return None if found is None else Reason(kind=found[0], limit=found[1], until=found[2])

    def _blocker(self, needs: Needs) -> tuple[str, Held, float | None] | None:
        for limit, _ in needs:
            if isinstance(limit, Rate):
                limit.refresh(self._mono)
        full = blocker(needs)
        if full is None:
            return None
        held, until = self._of(full), None
        if isinstance(full, Rate):
            until = self._free_at(full, next(n for limit, n in needs if limit is full))
        kind = "max_concurrency" if held.scope != "shared" else "rate" if full.timed else "limit"
        return kind, held, until

    # --- names ----------------------------------------------------------------------------------

    def thing(self, call: Call) -> Thing:
        """A call, for people."""
        seq = None if call.unrecorded else call.seq
        task = call.spec.name
        return Thing(
            run=call.run.pk,
            run_id=call.run.id,
            seq=seq,
            task=task,
            name=self._text(call.display) if seq is not None else task,
            state="" if call.phase is S.PENDING else call.shown_phase,
        )

    def _things(self, waited_for: Iterable[Call | Batch]) -> list[Thing]:
        """What has not ended of what somebody waits for."""
        found = []
        for one in waited_for:
            if isinstance(one, Call):
                if not one.settled:
                    found.append(self.thing(one))
            elif one.open:
                run, name = one.run, one.spec.name
                found.append(Thing(run=run.pk, run_id=run.id, task=name, name=name, left=one.open))
        return found

    def _of_run(self, run: Run) -> Thing:
        name = self._text(run.display)
        return Thing(run=run.pk, run_id=run.id, name=name, state=run.shown_phase)


class _Groups:
    """Reasons that are alike, as one."""

    def __init__(self, standing: Standing) -> None:
        self._standing = standing
        self._by: dict[tuple[str, str, int, str], Reason] = {}
        self._on: dict[int, set[tuple[int, int | None, str]]] = {}

    def add(
        self, reason: Reason | None, call: Call | None = None, task: str = "", calls: int = 1
    ) -> None:
        """A reason of one call; of several of a *task* that do not exist yet; or of the body."""
        if reason is None:
            return
        if call is not None:
            task = call.spec.name
        event = reason.what if reason.kind == "event" else ""
        key = (reason.kind, task, id(reason.limit), event)
        one = self._by.get(key)
        if one is None:
            one = self._by[key] = reason
            one.task = task
            on, one.on = one.on, []
        else:
            on = reason.on
            one.since = _first(one.since, reason.since)
            one.until = _first(one.until, reason.until)
        if task:
            one.calls += calls
        if call is not None and len(one.who) < FEW:
            one.who.append(self._standing.thing(call))
        if on:
            seen = self._on.setdefault(id(one), set())
            for thing in on:
                mark = (thing.run, thing.seq, thing.name)
                if mark not in seen:
                    seen.add(mark)
                    if len(one.on) < FEW:
                        one.on.append(thing)
            one.more = len(seen) - len(one.on)

    def reasons(self, least: bool) -> list[Reason]:
        found = sorted(self._by.values(), key=lambda one: KINDS.index(one.kind))
        for one in found:
            one.least = least and one.calls > 0
        return found[:MOST_REASONS]


def _first(one: float | None, other: float | None) -> float | None:
    return other if one is None else one if other is None else min(one, other)


def _waiting(limit: Limit) -> int:
    """How many wait in its line; a map whose turn it is counts for all that is left of it."""
    waiting = limit.line.n
    if waiting and (first := limit.line.head()).is_source:
        waiting += first.size - first.next - 1
    return waiting
