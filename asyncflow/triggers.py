"""When a trigger fires: a pure machine over events and points in time.

`start` gives the state of a trigger, `step` takes an event, `elapse` the time; both give the state
back, and what fired. No clock is read and nothing awaited, so that a test can play years of events,
and a dry run is the real thing. The rules of the house:

- States are JSON: one that is stored and read back goes on as if nothing had been. A state that was
  given is used up: go on with the one that came back. Keep the order of its keys, which says what
  is oldest.
- Events come in the order of their ids; each counts once, however often it is given. Windows are
  judged by the times of events, which may be out of order: what counts is when a thing happened.
- The key of a firing follows from the ids of its events. Whoever keeps keys fires once, whatever is
  played again after a crash.
- Take the time before you read events; `step` those that are there, then `elapse` to that time.
- A clock that was set back fires nothing a second time, and stops nothing: a wait that would begin
  in the future begins now.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from math import inf, isfinite, nextafter
from typing import Any, Protocol, TypeAlias, cast

from asyncflow.automations import (
    AbsenceTrigger,
    AllOf,
    AnyOf,
    Automation,
    DurationTrigger,
    EventTrigger,
    InSequence,
    Trigger,
)
from asyncflow.matching import FLOW_RUN, Conditions, Names, at_path, names_of

#: A trigger tells at most so many values of `for_each`, or runs, apart; the oldest go first.
BUCKETS = 10_000
#: A trigger keeps at most so many events in all; whole buckets go, the oldest first.
HELD = 200_000
#: By how many seconds events of several processes may come out of order.
SLACK = 60.0
#: A bucket is forgotten when nothing came for its window and so many seconds.
STALE = 3600.0
#: A firing names its latest events, at most so many.
IDS = 100
#: How many of the latest arrivals the triggers of a composite keep for those that come late.
RECENT = 8
#: Expected events that are kept for an earlier one that comes late.
EARLY = 1_000
#: An event that is kept until a wait is over is kept whole up to so many characters.
KEPT = 2_000

State: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class EventRecord:
    """One event, as it is stored.

    Args:
        id: its number; later events have higher ones.
        time: when it happened, in seconds since the epoch.
        name: such as ``flow-run.Failed`` (see `matching.event_name`), or what it was emitted as.
        fields: what is known of it, as JSON: those of `matching.FIELDS`, and ``payload``.

    Raises:
        ValueError: the time is no number.
    """

    id: int
    time: float
    name: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    #: All the names that it answers to.
    names: tuple[str, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isfinite(self.time):
            raise ValueError(f"event {self.id}: time={self.time!r}: give seconds since the epoch")
        object.__setattr__(self, "names", names_of(self.name, self.fields))


@dataclass(frozen=True, slots=True)
class Firing:
    """A trigger has fired.

    Attributes:
        key: the same whenever the same events are played again, and no other firing's.
        time: when it came true, in seconds since the epoch, by the times of the events.
        event_ids: the events that made it, the latest 100 of them.
        event: the one that completed it; for an absence or a duration the one that began the wait,
            without a large payload; None where nothing was seen, and nothing expected before.
        labels: the values of `for_each` (of a duration, the ``run_id``).
    """

    key: str
    time: float
    event_ids: tuple[int, ...]
    event: EventRecord | None
    labels: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """The firing as JSON."""
        event = self.event
        return {
            "key": self.key,
            "time": self.time,
            "event_ids": list(self.event_ids),
            "event": event and [event.id, event.time, event.name, dict(event.fields)],
            "labels": dict(self.labels),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Firing:
        """The firing that `to_dict` gave."""
        event = data["event"]
        return cls(
            data["key"],
            data["time"],
            tuple(data["event_ids"]),
            event and EventRecord(*event),
            data["labels"],
        )


# --- the four verbs ---------------------------------------------------------------------------


def start(trigger: Trigger, now: float) -> State:
    """The state of a trigger that begins to watch.

    To know of runs that are in a state already, step the last event of each.

    Args:
        now: seconds since the epoch.
    """
    plan = _plan(trigger)
    return {"of": plan.digest, "seen": 0, "changes": 0, "node": plan.node.start(now)}


def fits(trigger: Trigger, state: State) -> bool:
    """Whether a state is one of this trigger: of one that was edited it has to be started again."""
    return state.get("of") == _plan(trigger).digest


def step(trigger: Trigger, state: State, event: EventRecord) -> tuple[State, list[Firing]]:
    """Take one event.

    ``state["changes"]`` counts the steps that changed the state, which has to be stored then.

    Raises:
        ValueError: the state is one of another trigger.
    """
    plan = _plan(trigger)
    if state["of"] != plan.digest:
        raise _foreign(trigger)
    fired: list[Firing] = []
    if event.id > state["seen"] and plan.node.step(state["node"], event, fired):
        state["seen"] = event.id
        state["changes"] += 1
    return state, fired


def elapse(trigger: Trigger, state: State, now: float) -> tuple[State, list[Firing]]:
    """Let time pass, up to *now*: waits that are over fire, each at its own time.

    Raises:
        ValueError: the state is one of another trigger.
    """
    plan = _plan(trigger)
    if state["of"] != plan.digest:
        raise _foreign(trigger)
    fired: list[tuple[float, Firing]] = []
    if plan.node.elapse(state["node"], now, fired):
        state["changes"] += 1
    return state, [firing for _, firing in fired]


def next_due(trigger: Trigger, state: State) -> float | None:
    """When to call `elapse` again, in seconds since the epoch; None when no wait is under way.

    Never later than the next firing by time, but perhaps earlier.
    """
    return _plan(trigger).node.due(state["node"])


def replay(
    automation: Automation, events: Iterable[EventRecord], now: float, since: float | None = None
) -> list[Firing]:
    """What an automation would have fired on stored events, had it watched.

    Args:
        events: what has happened; they are taken in the order of their ids.
        now: until when to look, in seconds since the epoch.
        since: when it begins to watch; by default with the earliest of the events.
    """
    trigger, told = automation.trigger, sorted(events, key=lambda event: event.id)
    if since is None:
        since = min((event.time for event in told), default=now)
    state, fired = start(trigger, since), []
    for event in told:
        due = next_due(trigger, state)
        if due is not None and due < event.time:
            # Up to the event, not at it: what comes just in time has come in time.
            fired += elapse(trigger, state, nextafter(event.time, -inf))[1]
        fired += step(trigger, state, event)[1]
    return fired + elapse(trigger, state, now)[1]


def _foreign(trigger: Trigger) -> ValueError:
    return ValueError(
        f"the state is not one of this {type(trigger).__name__}, which was edited: start it again"
    )


# --- made ready once --------------------------------------------------------------------------


class _Node(Protocol):
    """What a trigger does. `step` and `elapse` say whether the state has changed."""

    #: The fields of the labels that each of its firings has.
    labels: tuple[str, ...]

    def start(self, now: float) -> State: ...

    def step(self, state: State, event: EventRecord, fired: list[Firing]) -> bool: ...

    def elapse(self, state: State, now: float, fired: list[tuple[float, Firing]]) -> bool:
        """Add what fires, each with the point in time that it took, in order."""
        ...

    def due(self, state: State) -> float | None: ...


class _Plan:
    """A trigger, made ready. It belongs to this process: a copy of the trigger makes its own."""

    __slots__ = ("digest", "node")

    def __init__(self, trigger: Trigger) -> None:
        self.node = _node(trigger)
        self.digest = _digest(json.dumps(trigger.to_dict(), sort_keys=True))

    def __reduce__(self) -> Any:
        return type(None), ()


def _plan(trigger: Trigger) -> _Plan:
    plan = trigger._plan
    if plan is None:
        plan = _Plan(trigger)
        object.__setattr__(trigger, "_plan", plan)
    return cast("_Plan", plan)


def _node(trigger: Trigger) -> _Node:
    match trigger:
        case EventTrigger():
            return _Event(trigger)
        case AbsenceTrigger(after=None):
            return _Silence(trigger)
        case AbsenceTrigger():
            return _Missing(trigger)
        case DurationTrigger():
            return _Stay(trigger)
        case AllOf():
            return _All(trigger)
        case InSequence():
            return _Sequence(trigger)
        case AnyOf():
            return _Any(trigger)


def _digest(text: str) -> str:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=10).hexdigest()


# --- buckets ----------------------------------------------------------------------------------


class _ForEach:
    """Tells events apart by the values of some fields."""

    __slots__ = ("_paths", "names")

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self._paths = tuple(tuple(name.split(".")) for name in names)

    def of(self, event: EventRecord) -> dict[str, Any]:
        """The labels of an event."""
        if not self.names:
            return {}
        fields = event.fields
        return {
            name: _label(fields.get(name) if len(path) == 1 else at_path(fields, path))
            for name, path in zip(self.names, self._paths, strict=True)
        }


def _label(value: Any) -> Any:
    """A value as a label: what is long or nested is cut, and stays different from others."""
    if value is None or isinstance(value, bool | int | float):
        return value
    text = value if isinstance(value, str) else _text(value)
    return text if len(text) <= 200 else f"{text[:160]}...{_digest(text)}"


def _bucket(values: Sequence[Any]) -> str:
    """The name of the bucket for these labels."""
    if len(values) == 1 and isinstance(values[0], str):
        return f"={values[0]}"
    return json.dumps(values)


def _text(value: Any) -> str:
    return json.dumps(value, default=_plain)


def _plain(value: Any) -> Any:
    return sorted(value, key=str) if isinstance(value, set | frozenset) else str(value)


def _drop_oldest(state: State, size: Callable[[Any], int] | None = None) -> None:
    """Keep the buckets of a state inside of what a trigger may hold, and count what goes."""
    buckets = state["buckets"]
    while len(buckets) > BUCKETS or (size and state["held"] > HELD and len(buckets) > 1):
        gone = buckets.pop(next(iter(buckets)))
        state["dropped"] += 1
        if size:
            state["held"] -= size(gone)


# --- events -----------------------------------------------------------------------------------


class _Event:
    """Counts events in windows.

    A bucket is ``[times, ids]``, in the order of times. It keeps as many events as a window can
    hold without firing, and as many again for those that come late. None is dropped by its
    time: after a clock was set back that would be all that comes.
    """

    def __init__(self, trigger: EventTrigger) -> None:
        self.names = Names(trigger.expect)
        self.conditions = Conditions(trigger.match)
        self.threshold = trigger.threshold
        self.within = inf if trigger.within is None else trigger.within
        self.for_each = _ForEach(trigger.for_each)
        self.labels = self.for_each.names
        self.keep = 2 * trigger.threshold + 8

    def start(self, now: float) -> State:
        return {"buckets": {}, "held": 0, "dropped": 0}

    def step(self, state: State, event: EventRecord, fired: list[Firing]) -> bool:
        if not self.names.hit(event.names) or not self.conditions.hold(event.fields):
            return False
        labels = self.for_each.of(event)
        if self.threshold == 1:
            fired.append(Firing(f"e{event.id}", event.time, (event.id,), event, labels))
            return True
        buckets = state["buckets"]
        name = _bucket([*labels.values()])
        bucket = buckets.pop(name, None) or [[], []]
        buckets[name] = bucket  # the last is the latest
        times, ids = bucket
        at = bisect_right(times, event.time)
        times.insert(at, event.time)
        ids.insert(at, event.id)
        state["held"] += 1
        first = self._window(times, at)
        if first is not None:
            end = first + self.threshold
            of = ids[first:end]
            key = f"n{_digest(json.dumps(of))}"
            fired.append(Firing(key, times[end - 1], tuple(of[-IDS:]), event, labels))
            del times[first:end], ids[first:end]
            state["held"] -= self.threshold
            if not times:
                del buckets[name]
        elif len(ids) > self.keep * 5 // 4:
            self._prune(state, bucket)
        self._forget(state, event.time, name)
        return True

    def _window(self, times: list[float], at: int) -> int | None:
        """Where a full window with the event in place *at* begins, the latest if there are many."""
        size = self.threshold - 1
        for first in range(min(at, len(times) - self.threshold), max(0, at - size) - 1, -1):
            if times[first + size] - times[first] <= self.within:
                return first
        return None

    def _prune(self, state: State, bucket: list[list[Any]]) -> None:
        times, ids = bucket
        oldest = sorted(ids)[-self.keep]
        kept = [(t, i) for t, i in zip(times, ids, strict=True) if i >= oldest]
        state["held"] -= len(ids) - len(kept)
        bucket[:] = [t for t, _ in kept], [i for _, i in kept]

    def _forget(self, state: State, now: float, name: str) -> None:
        """Drop what is over its bounds, and the oldest bucket when it is of no use any more."""
        buckets = state["buckets"]
        if len(buckets) > 1:
            oldest = next(iter(buckets))
            times, _ = buckets[oldest]
            if oldest != name and times[-1] < now - self.within - STALE:
                state["held"] -= len(times)
                del buckets[oldest]
        _drop_oldest(state, lambda bucket: len(bucket[1]))

    def elapse(self, state: State, now: float, fired: list[tuple[float, Firing]]) -> bool:
        return False

    def due(self, state: State) -> float | None:
        return None


# --- waits ------------------------------------------------------------------------------------


class _Waits:
    """Waits that fire when they are over.

    A bucket is a wait: ``[since, event id, labels, event]``. ``quiet`` has those that have fired
    and fire again only when something has changed. ``due`` is no later than the end of the first.
    """

    kind: str
    length: float
    #: Whether a wait that has fired is kept in mind.
    once = False

    def start(self, now: float) -> State:
        return {"buckets": {}, "quiet": {}, "due": None, "dropped": 0}

    def arm(self, state: State, name: str, since: float, event: EventRecord, labels: Any) -> None:
        state["buckets"].pop(name, None)
        state["buckets"][name] = [since, event.id, labels, self.kept(event)]
        self.noted(state, since)
        _drop_oldest(state)

    def noted(self, state: State, since: float) -> None:
        due = since + self.length
        if state["due"] is None or due < state["due"]:
            state["due"] = due

    def over(self, state: State, name: str, fired: list[Firing]) -> None:
        """A wait is over: it fires."""
        since, id_, labels, kept = state["buckets"].pop(name)
        key = f"{self.kind}:{id_ or f'from:{since!r}'}"
        ids = (id_,) if id_ else ()
        event = EventRecord(*json.loads(kept)) if kept else None
        fired.append(Firing(key, since + self.length, ids, event, labels))
        if self.once:
            quiet = state["quiet"]
            quiet[name] = since
            if len(quiet) > BUCKETS:
                del quiet[next(iter(quiet))]
                state["dropped"] += 1

    def kept(self, event: EventRecord) -> str | None:
        """The event that begins a wait, as text: to be read when the wait is over."""
        fields: Mapping[str, Any] = event.fields
        text = _text([event.id, event.time, event.name, fields])
        if len(text) > KEPT:
            fields = {name: _label(value) for name, value in fields.items() if name != "payload"}
            text = _text([event.id, event.time, event.name, fields])
        return text

    def elapse(self, state: State, now: float, fired: list[tuple[float, Firing]]) -> bool:
        due, buckets = state["due"], state["buckets"]
        if due is None or (now < due and due - self.length <= now + SLACK):
            return False
        for wait in buckets.values():
            if wait[0] > now + SLACK:
                wait[0] = now  # the clock was set back
        over = sorted(
            (since + self.length, id_, name)
            for name, (since, id_, _, _) in buckets.items()
            if since + self.length <= now
        )
        own: list[Firing] = []
        for _, _, name in over:
            self.over(state, name, own)
        fired += [(firing.time, firing) for firing in own]
        state["due"] = min((wait[0] for wait in buckets.values()), default=None)
        if state["due"] is not None:
            state["due"] += self.length
        return True

    def due(self, state: State) -> float | None:
        return cast("float | None", state["due"])


class _Missing(_Waits):
    """Something has to follow something else.

    ``early`` has the times of what was expected, for what should have come before it and comes
    late.
    """

    kind = "absent"

    def __init__(self, trigger: AbsenceTrigger) -> None:
        self.expect = Names(trigger.expect)
        self.after = Names(trigger.after or ())
        self.conditions = Conditions(trigger.match)
        self.length = trigger.within
        self.for_each = _ForEach(trigger.for_each)
        self.labels = self.for_each.names

    def start(self, now: float) -> State:
        return {**super().start(now), "early": {}}

    def step(self, state: State, event: EventRecord, fired: list[Firing]) -> bool:
        answers, begins = self.expect.hit(event.names), self.after.hit(event.names)
        if not (answers or begins) or not self.conditions.hold(event.fields):
            return False
        labels = self.for_each.of(event)
        name, time = _bucket([*labels.values()]), event.time
        wait = state["buckets"].get(name)
        if wait is not None and time > wait[0] + self.length:
            self.over(state, name, fired)
            wait = None
        if answers and begins:
            # A heartbeat, of which the latest counts.
            if wait is None or time >= wait[0]:
                self.arm(state, name, time, event, labels)
            return True
        if answers:
            # It was seen later, so it came later, whatever two clocks say of it.
            state["buckets"].pop(name, None)
            self._remember(state, name, time)
        elif wait is None or time < wait[0]:
            answer = state["early"].get(name)
            if answer is None or not time < answer <= time + min(self.length, SLACK):
                self.arm(state, name, time, event, labels)
        return True

    def _remember(self, state: State, name: str, time: float) -> None:
        early = state["early"]
        early[name] = max(time, early.pop(name, time))
        oldest = next(iter(early))
        if len(early) > EARLY or early[oldest] < time - SLACK:
            del early[oldest]


class _Silence(_Waits):
    """Something has to be seen again and again."""

    kind = "absent"
    once = True

    def __init__(self, trigger: AbsenceTrigger) -> None:
        self.expect = Names(trigger.expect)
        self.conditions = Conditions(trigger.match)
        self.length = trigger.within
        self.for_each = _ForEach(trigger.for_each)
        self.labels = self.for_each.names

    def start(self, now: float) -> State:
        state = super().start(now)
        if not self.labels:
            state["buckets"][_bucket([])] = [now, 0, {}, None]
            self.noted(state, now)
        return state

    def step(self, state: State, event: EventRecord, fired: list[Firing]) -> bool:
        if not self.expect.hit(event.names) or not self.conditions.hold(event.fields):
            return False
        labels = self.for_each.of(event)
        name, time = _bucket([*labels.values()]), event.time
        wait = state["buckets"].get(name)
        if wait is not None and time > wait[0] + self.length:
            self.over(state, name, fired)
            wait = None
        last = wait[0] if wait else state["quiet"].get(name)
        if last is not None and (last - SLACK <= time <= last if wait is None else time <= last):
            return True  # it comes late, and tells nothing new
        state["quiet"].pop(name, None)
        self.arm(state, name, time, event, labels)
        return True

    def kept(self, event: EventRecord) -> str | None:
        return None  # it has not caused the silence


class _Stay(_Waits):
    """A flow run stays in a state."""

    kind = "lasted"
    once = True

    def __init__(self, trigger: DurationTrigger) -> None:
        self.state = trigger.state.upper()
        self.conditions = Conditions(trigger.match)
        self.length = trigger.longer_than
        self.labels: tuple[str, ...] = ("run_id",)

    def step(self, state: State, event: EventRecord, fired: list[Firing]) -> bool:
        fields = event.fields
        run = fields.get("run_id")
        if not event.name.startswith(_FLOW_RUN) or not isinstance(run, str):
            return False
        type_, state_name = fields.get("state"), fields.get("state_name")
        inside = self.state in (_upper(type_), _upper(state_name))
        wait = state["buckets"].get(run)
        overdue = wait is not None and event.time > wait[0] + self.length
        if overdue:
            self.over(state, run, fired)
        if not inside:
            known = state["buckets"].pop(run, None) or state["quiet"].pop(run, None)
            return known is not None
        if wait is not None or run in state["quiet"] or not self.conditions.hold(fields):
            return overdue
        self.arm(state, run, event.time, event, {"run_id": run})
        return True


_FLOW_RUN = f"{FLOW_RUN}."


def _upper(value: Any) -> Any:
    return value.upper() if isinstance(value, str) else None


# --- composites -------------------------------------------------------------------------------


class _Composite(ABC):
    """What triggers made of others have in common."""

    def __init__(self, parts: Sequence[Trigger]) -> None:
        self.parts = [_node(part) for part in parts]
        # By these the firings of all parts can be told apart.
        first, *others = self.parts
        self.labels = tuple(n for n in first.labels if all(n in o.labels for o in others))

    def start(self, now: float) -> State:
        return {"parts": [part.start(now) for part in self.parts]}

    def due(self, state: State) -> float | None:
        ends = (part.due(own) for part, own in zip(self.parts, state["parts"], strict=True))
        return min((end for end in ends if end is not None), default=None)

    @abstractmethod
    def take(
        self, state: State, part: int, firing: Firing, order: int, fired: list[Firing]
    ) -> None:
        """One part has fired.

        Args:
            order: tells what comes first of firings of the same time.
        """

    def step(self, state: State, event: EventRecord, fired: list[Firing]) -> bool:
        changed = False
        states = state["parts"]
        for i, part in enumerate(self.parts):
            own: list[Firing] = []
            if part.step(states[i], event, own):
                changed = True
                for firing in own:
                    # One that was overdue has its own place, as if time had been told before.
                    order = event.id if firing.event is event else _last(firing)
                    self.take(state, i, firing, order, fired)
        return changed

    def elapse(self, state: State, now: float, fired: list[tuple[float, Firing]]) -> bool:
        changed = False
        over: list[tuple[float, int, int, Firing]] = []
        for i, (part, own) in enumerate(zip(self.parts, state["parts"], strict=True)):
            ended: list[tuple[float, Firing]] = []
            changed |= part.elapse(own, now, ended)
            over += [(at, i, n, firing) for n, (at, firing) in enumerate(ended)]
        for at, i, _, firing in sorted(over, key=lambda one: one[:3]):
            taken: list[Firing] = []
            self.take(state, i, firing, _last(firing), taken)
            fired += [(at, one) for one in taken]
        return changed


def _last(firing: Firing) -> int:
    return firing.event_ids[-1] if firing.event_ids else 0


class _Any(_Composite):
    def __init__(self, trigger: AnyOf) -> None:
        super().__init__(trigger.triggers)

    def take(
        self, state: State, part: int, firing: Firing, order: int, fired: list[Firing]
    ) -> None:
        event = firing.event
        if event is not None and any(one.event is event for one in fired):
            return  # an event that fires two of them fires once
        key = f"{part}.{firing.key}"
        fired.append(Firing(key, firing.time, firing.event_ids, event, firing.labels))


class _Pool(_Composite):
    """Firings of several parts that have to come together within a window.

    A bucket is a list of ``[time, order, -part, key, event ids, arrival]``, in this order: what
    one event fires comes with the later parts first, so that no event is two steps.
    """

    within: float
    kind: str

    def start(self, now: float) -> State:
        return {**super().start(now), "buckets": {}, "held": 0, "dropped": 0, "arrivals": 0}

    @abstractmethod
    def chosen(self, pool: list[Any], at: int) -> list[Any] | None:
        """The firings that fulfil the trigger, with the one in place *at*; None if none do."""

    @abstractmethod
    def needed(self, pool: list[Any]) -> list[Any]:
        """Those that a firing yet to come may need, if it comes in order."""

    def take(
        self, state: State, part: int, firing: Firing, order: int, fired: list[Firing]
    ) -> None:
        labels = {name: firing.labels[name] for name in self.labels}
        name, buckets = _bucket([*labels.values()]), state["buckets"]
        pool = buckets.pop(name, None) or []
        buckets[name] = pool
        state["arrivals"] += 1
        ids = list(firing.event_ids)
        entry = [firing.time, order, -part, firing.key, ids, state["arrivals"]]
        at = bisect_right(pool, entry)
        pool.insert(at, entry)
        state["held"] += 1 + len(ids)
        found = self.chosen(pool, at) if len(pool) >= len(self.parts) else None
        if found is not None:
            del buckets[name]
            state["held"] -= _size(pool)
            key = f"{self.kind}:{_digest(json.dumps([[-e[2], e[3]] for e in found]))}"
            of = tuple(dict.fromkeys(i for e in found for i in e[4]))[-IDS:]
            fired.append(Firing(key, found[-1][0], of, firing.event, labels))
        elif len(pool) > 2 * RECENT + len(self.parts) ** 2:
            self._prune(state, pool)
        self._forget(state, firing.time, name)

    def _prune(self, state: State, pool: list[Any]) -> None:
        before = _size(pool)
        kept = {entry[5] for entry in self.needed(pool)}
        kept.update(sorted(entry[5] for entry in pool)[-RECENT:])
        pool[:] = [entry for entry in pool if entry[5] in kept]
        state["held"] -= before - _size(pool)

    def _forget(self, state: State, now: float, name: str) -> None:
        buckets = state["buckets"]
        if len(buckets) > 1:
            oldest = next(iter(buckets))
            pool = buckets[oldest]
            if oldest != name and pool[-1][0] < now - self.within - STALE:
                state["held"] -= _size(pool)
                del buckets[oldest]
        _drop_oldest(state, _size)


def _size(pool: list[Any]) -> int:
    return sum(1 + len(entry[4]) for entry in pool)


class _All(_Pool):
    kind = "all"

    def __init__(self, trigger: AllOf) -> None:
        super().__init__(trigger.triggers)
        self.within = trigger.within

    def chosen(self, pool: list[Any], at: int) -> list[Any] | None:
        if len({entry[2] for entry in pool}) < len(self.parts):
            return None
        time = pool[at][0]
        for first in range(at, -1, -1):
            begin = pool[first][0]
            if time - begin > self.within:
                return None
            found: dict[int, Any] = {}
            for entry in pool[first:]:
                if entry[0] - begin > self.within:
                    break
                found[entry[2]] = entry
            found[pool[at][2]] = pool[at]
            if len(found) == len(self.parts):
                return sorted(found.values())
        return None

    def needed(self, pool: list[Any]) -> list[Any]:
        return [*{entry[2]: entry for entry in pool}.values()]


class _Sequence(_Pool):
    kind = "sequence"

    def __init__(self, trigger: InSequence) -> None:
        super().__init__(trigger.triggers)
        self.within = trigger.within

    def chosen(self, pool: list[Any], at: int) -> list[Any] | None:
        last = len(self.parts) - 1
        if all(entry[2] != -last for entry in pool):
            return None
        chains = self._chains(pool)
        return chains[-1] if len(chains) > last else None

    def _chains(self, pool: list[Any]) -> list[list[Any]]:
        """For each length the beginning of the sequence that began last, as far as it is long."""
        chains: list[list[Any]] = []
        last = len(self.parts) - 1
        for entry in pool:
            part = -entry[2]
            if part == 0:
                chains[:1] = [[entry]]
            elif part <= len(chains) and entry[0] - chains[part - 1][0][0] <= self.within:
                chain = [*chains[part - 1], entry]
                chains[part : part + 1] = [chain]
                if part == last:
                    break
        return chains

    def needed(self, pool: list[Any]) -> list[Any]:
        return [entry for chain in self._chains(pool) for entry in chain]
