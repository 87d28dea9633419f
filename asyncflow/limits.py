"""Limits on what runs at once, and the lines of those who wait for them.

Nothing here awaits or reads a clock. A `Slots` limit is held while code runs; a `Rate` is spent
when code starts. Whoever needs several takes all of them or none, so that nobody holds one
while waiting for another and no order of limits can deadlock.

A `Line` is fair in three steps: the higher priority first; within it one waiter of each run in
turn; within a run those whose upstreams have finished before those that start something new
(depth first, so that a chain of maps holds few half-done items), each first come, first served.
"""

from __future__ import annotations

from collections import deque
from math import inf
from typing import Any, Protocol, TypeAlias

from asyncflow.errors import InvalidOption

#: The priority of those who take back what they lent while they waited for a child.
RETAKE = inf
#: The largest limit, and burst, that is set for all engines: any store can keep it.
MOST_KEPT = 10**12


class Waiter(Protocol):
    """What stands in a line: a call, a hold on a named limit, or a source of calls."""

    owner: object  #: whose turn it is in the round (a run)
    limits: Needs
    priority: float
    eager: bool  #: goes before those of the same owner that are not
    is_source: bool  #: yields many calls, one a turn, until `left` is 0


class _Queue:
    """The waiters of one owner."""

    __slots__ = ("eager", "fresh", "owner")

    def __init__(self, owner: object) -> None:
        self.owner = owner
        self.eager: deque[Waiter] = deque()
        self.fresh: deque[Waiter] = deque()


class _Lane:
    """The waiters of one priority: a ring of owners."""

    __slots__ = ("by_owner", "ring")

    def __init__(self) -> None:
        self.ring: deque[_Queue] = deque()
        self.by_owner: dict[int, _Queue] = {}


class Line:
    """Those who wait for one limit. `n` counts them; a source counts as one."""

    __slots__ = ("_lanes", "_top", "n")

    def __init__(self) -> None:
        self.n = 0
        self._lanes: dict[float, _Lane] = {}
        self._top: _Lane | None = None

    def push(self, waiter: Any) -> None:
        lane = self._lanes.get(waiter.priority)
        if lane is None:
            lane = self._lanes[waiter.priority] = _Lane()
            self._top = self._lanes[max(self._lanes)]
        owner = waiter.owner
        queue = lane.by_owner.get(id(owner))
        if queue is None:
            queue = lane.by_owner[id(owner)] = _Queue(owner)
            lane.ring.append(queue)
        (queue.eager if waiter.eager else queue.fresh).append(waiter)
        self.n += 1

    def head(self) -> Any:
        """Whose turn it is; the line must not be empty."""
        queue = self._top.ring[0]  # type: ignore[union-attr] # the line is not empty
        return queue.eager[0] if queue.eager else queue.fresh[0]

    def pass_turn(self) -> None:
        """The head had its turn and stays (a source with more to give)."""
        ring = self._top.ring  # type: ignore[union-attr] # the line is not empty
        if len(ring) > 1:
            ring.rotate(-1)

    def pop(self) -> None:
        """The head leaves the line."""
        lane = self._top
        assert lane is not None
        queue = lane.ring[0]
        (queue.eager if queue.eager else queue.fresh).popleft()
        self.n -= 1
        if queue.eager or queue.fresh:
            if len(lane.ring) > 1:
                lane.ring.rotate(-1)
            return
        lane.ring.popleft()
        del lane.by_owner[id(queue.owner)]
        if not lane.ring:
            self._lanes = {p: kept for p, kept in self._lanes.items() if kept is not lane}
            self._top = self._lanes[max(self._lanes)] if self._lanes else None


class _Named:
    """What slots and rates have in common: all their fields, so that one can become the other.

    Attributes:
        whole: its size; `size`: the part of that which may be used here, where other engines
            use the same limit.
        used: units of it that are spoken for now.
        held: of a rate, units that started under it and run; it bounds nothing.
        open: whether the machine has it on its list of limits to look at.
    """

    __slots__ = (
        "__weakref__",
        "_granted",
        "_since",
        "_tokens",
        "burst",
        "held",
        "line",
        "name",
        "open",
        "period",
        "share",
        "size",
        "used",
        "whole",
    )

    def __init__(self, name: str) -> None:
        self.name = name
        self.size: float = inf
        self.whole: float = inf
        self.share: float = inf
        self.used: float = 0
        self.held: float = 0
        self.line = Line()
        self.open = False

    def allot(self, share: float) -> None:
        """Use no more than this part of it."""
        self.share = share
        self.size = min(self.whole, share)


class Slots(_Named):
    """At most *size* units are held at once. None lifts the limit, 0 lets nobody in."""

    __slots__ = ()
    timed = False

    def __init__(self, name: str, size: float | None) -> None:
        super().__init__(name)
        self.resize(size)

    def resize(self, size: float | None) -> None:
        self.whole = inf if size is None else check_size(self.name, size)
        self.size = min(self.whole, self.share)

    def refresh(self, now: float) -> None:
        """Time changes nothing for it."""

    def take(self, units: int, now: float) -> None:
        self.used += units

    def __repr__(self) -> str:
        return f"<limit {self.name!r}: {self.used:g} of {self.whole:g} in use, {self.line.n} wait>"


class Rate(_Named):
    """At most *limit* starts in any window of *period* seconds: strict, sliding.

    `used` counts the starts inside the window that ends now. With *burst* it is a token bucket
    instead (GCRA's idea): *limit* tokens flow in per period, up to *burst* may be saved.
    """

    __slots__ = ()
    timed = True

    def __init__(self, name: str, limit: float, period: float, burst: int | None = None) -> None:
        super().__init__(name)
        self._granted: deque[float] = deque()
        self.resize(limit, period, burst)

    def resize(self, limit: float, period: float, burst: int | None = None) -> None:
        if not _is_number(period) or not 0 < period < inf:
            raise InvalidOption(f"limit {self.name!r}: period={period!r}: give seconds above 0")
        if burst is not None and (not _is_number(burst) or burst != int(burst) or burst < 1):
            raise InvalidOption(f"limit {self.name!r}: burst={burst!r}: give 1 or more")
        whole = check_size(self.name, limit)
        if burst is None and 0 < whole < 1:
            raise InvalidOption(
                f"limit {self.name!r}: less than one start in {period:g} s: give 1 and a longer"
                " period"
            )
        self.whole = whole
        self.size = min(self.whole, self.share)
        self.period = float(period)
        self.burst = burst
        self._tokens = float(burst or 0)
        self._since: float | None = None

    @property
    def most(self) -> float:
        """How many can be had at once, at most."""
        return max(self.whole, self.burst or 0)

    def last_use(self) -> float | None:
        """When it was spent last, by the monotonic clock; None: not within a period."""
        if self.burst is not None:
            return self._since
        return self._granted[-1] if self._granted else None

    def refresh(self, now: float) -> None:
        """Forget what has left the window."""
        if self.burst is None:
            granted, period = self._granted, self.period
            # The same sum as in `next_time`: rounded otherwise, that moment would be too early.
            while granted and granted[0] + period <= now:
                granted.popleft()
            self.used = len(granted)
            return
        if self._since is not None:
            gained = (now - self._since) * self.size / self.period
            self._tokens = min(self.burst, self._tokens + gained)
        self._since = now
        self.used = self.size - self._tokens

    def take(self, units: int, now: float) -> None:
        if self.burst is None:
            self._granted.extend([now] * units)
        else:
            self._tokens -= units
        self.used += units
        self.held += units

    def next_time(self, units: int, now: float) -> float | None:
        """When *units* can be had at the earliest; None if never (a limit of 0)."""
        if self.size <= 0 or units > max(self.size, self.burst or 0):
            return None
        if self.burst is not None:
            missing = units - self._tokens
            return now + max(0.0, missing) * self.period / self.size
        over = int(self.used + units - self.size)
        return now if over <= 0 else self._granted[over - 1] + self.period

    def __repr__(self) -> str:
        return f"<rate {self.name!r}: {self.whole:g} per {self.period:g} s, {self.line.n} wait>"


def become_rate(slots: Slots, limit: float, period: float, burst: int | None) -> Rate:
    """Make a rate of slots, in place: who waits for them waits for it, what is held is known."""
    rate: Any = slots
    Rate(slots.name, limit, period, burst)  # raises before anything has changed
    rate.__class__ = Rate
    rate.held, rate.used, rate._granted = slots.used, 0, deque()
    rate.resize(limit, period, burst)
    made: Rate = rate
    return made


def become_slots(rate: Rate, size: float | None) -> Slots:
    """Make slots of a rate, in place: what started under it and runs holds them."""
    slots: Any = rate
    Slots(rate.name, size)  # raises before anything has changed
    slots.__class__ = Slots
    slots.used, slots.held = rate.held, 0
    slots.resize(size)
    made: Slots = slots
    return made


Limit: TypeAlias = Slots | Rate
Needs: TypeAlias = "tuple[tuple[Limit, int], ...]"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_size(name: str, size: float) -> float:
    """The size of a limit as a number; InvalidOption says what is wrong with it."""
    if not _is_number(size) or not size >= 0:
        raise InvalidOption(
            f"limit {name!r}: {size!r} is no size: give a number, 0 to pause it, None to lift it"
        )
    return size


def check_kept(name: str, limit: float | None, burst: int | None) -> None:
    """Raise InvalidOption where a limit is too large for a store to keep."""
    for value in (limit, burst):
        if value is not None and _is_number(value) and value > MOST_KEPT:
            raise InvalidOption(
                f"limit {name!r}: {value!r} is too much: give at most {MOST_KEPT:,}, or lift it"
            )


def blocker(needs: Needs) -> Limit | None:
    """The first limit that has no room for its part of *needs*."""
    for limit, units in needs:
        if limit.used + units > limit.size:
            return limit
    return None
