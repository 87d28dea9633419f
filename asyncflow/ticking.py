"""What is due of a schedule: a pure decision about its ticks, the clock and its policy.

Times are seconds since the epoch. A tick is dealt with once its time, and what chance adds to it
(jitter), have come. What a process that was not there, or was slow, left undone is found by the
position up to which all ticks were dealt with, which is stored.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import blake2b
from itertools import islice
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from asyncflow.schedules import Schedule

Catchup = Literal["latest", "skip", "all"]
Overlap = Literal["skip", "queue", "cancel_running", "allow"]

#: Ticks that one decision looks at. Of more, the newest decide, and the count is a lower bound.
MOST = 10_000
#: Missed ticks that get a row each; more are one row.
ROWS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What is done about ticks whose time is over.

    Attributes:
        catchup: "latest": the newest of them runs; "skip": none does; "all": all do.
        catchup_limit: how many "all" are at most; the newest.
        grace: seconds by which a tick may be late and is still on time.
    """

    catchup: Catchup = "latest"
    catchup_limit: int = 100
    grace: float = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """One schedule of one deployment.

    Attributes:
        schedule: gives the ticks.
        seed: tells the jitter of this schedule from that of others.
        jitter: seconds that a run may begin after its tick, at most. It is the same for a tick
            whenever it is asked for, and ends before the next one.
        start, end: no ticks before and after.
        paused: why its ticks do not run; "" if they do.
    """

    schedule: Schedule
    seed: str = ""
    jitter: float = 0.0
    start: float | None = None
    end: float | None = None
    paused: str = ""


@dataclass(frozen=True, slots=True)
class Note:
    """Ticks that do not run: the first, the last, how many, and why."""

    tick: float
    until: float
    count: int
    state: Literal["SKIPPED", "MISSED"]
    reason: str


@dataclass(slots=True)
class Plan:
    """What is to be done now.

    Attributes:
        run: ticks that run now, oldest first.
        notes: ticks that do not.
        position: all ticks up to here are dealt with by this plan.
        next_at: when there is something to do again; None: never.
    """

    run: list[float] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    position: float = 0.0
    next_at: float | None = None


def plan(timing: Timing, position: float, now: float, policy: Policy) -> Plan:
    """What is due by *now* of a schedule all of whose ticks up to *position* are dealt with."""
    done = Plan(position=position)
    due: list[float] = []
    more = False
    ticks = _pairs(timing, position)
    for tick, after in ticks:
        when = tick + _delay(timing, tick, after)
        if when > now:
            done.next_at = when
            break
        due.append(tick)
        if len(due) > MOST:
            more = True
            break
    if more:
        # Too many to look at each: those of the newest stretch decide.
        done.notes.append(
            Note(
                due[0],
                due[-1],
                len(due),
                "SKIPPED" if timing.paused else "MISSED",
                timing.paused or f"more than {MOST:,} ticks have passed, and newer ones count",
            )
        )
        due, done.next_at = _newest(timing, now)
    if not due:
        return done
    done.position = due[-1]
    if timing.paused:
        done.notes += _notes(due, "SKIPPED", timing.paused)
        return done
    run, missed = _choose(due, now, policy)
    done.run = run
    done.notes += _notes(missed, "MISSED", _reason(policy))
    return done


def _choose(due: list[float], now: float, policy: Policy) -> tuple[list[float], list[float]]:
    """Which of the due ticks run, and which do not."""
    match policy.catchup:
        case "latest":
            return due[-1:], due[:-1]
        case "all":
            first = max(0, len(due) - policy.catchup_limit)
            return due[first:], due[:first]
        case "skip":
            fresh = [tick for tick in due if now - tick <= policy.grace]
            return fresh, due[: len(due) - len(fresh)]


def _reason(policy: Policy) -> str:
    match policy.catchup:
        case "latest":
            return "nobody was there in time, and a newer tick runs in its place"
        case "all":
            return f"nobody was there in time, and at most {policy.catchup_limit:,} are caught up"
        case "skip":
            return "nobody was there in time, and what is late is skipped"


def _notes(ticks: list[float], state: Literal["SKIPPED", "MISSED"], reason: str) -> list[Note]:
    if len(ticks) <= ROWS:
        return [Note(tick, tick, 1, state, reason) for tick in ticks]
    return [Note(ticks[0], ticks[-1], len(ticks), state, reason)]


def _ticks(timing: Timing, position: float) -> Iterator[float]:
    """The ticks after a position, between start and end."""
    if timing.start is not None and position < timing.start:
        # A tick at the start itself counts.
        position = timing.start - 1e-6
    for moment in timing.schedule.ticks(datetime.fromtimestamp(position, UTC)):
        tick = moment.timestamp()
        if timing.end is not None and tick > timing.end:
            return
        if tick > position:
            yield tick


def _pairs(timing: Timing, position: float) -> Iterator[tuple[float, float | None]]:
    """Each tick with the one after it, which bounds its jitter."""
    ticks = _ticks(timing, position)
    if not timing.jitter:
        for tick in ticks:
            yield tick, None
        return
    before = next(ticks, None)
    while before is not None:
        after = next(ticks, None)
        yield before, after
        before = after


def _newest(timing: Timing, now: float) -> tuple[list[float], float | None]:
    """The due ticks of the last minutes, hours or days, and when the next one comes."""
    for back in (60.0, 3600.0, 86_400.0, 40 * 86_400.0, 400 * 86_400.0):
        due: list[float] = []
        for tick, after in islice(_pairs(timing, now - back), MOST):
            when = tick + _delay(timing, tick, after)
            if when > now:
                if due:
                    return due, when
                break
            due.append(tick)
    return [], None


def _delay(timing: Timing, tick: float, after: float | None) -> float:
    """What chance adds to a tick: always the same, and never beyond the next one."""
    if not timing.jitter:
        return 0.0
    most = timing.jitter if after is None else min(timing.jitter, (after - tick) * 0.9)
    digest = blake2b(f"{timing.seed} {tick:.6f}".encode(), digest_size=8).digest()
    return most * int.from_bytes(digest, "big") / 2**64


def upcoming(timing: Timing, now: float, n: int) -> list[tuple[float, float]]:
    """The next ticks, each with the time at which its run begins."""
    return [
        (tick, tick + _delay(timing, tick, after)) for tick, after in islice(_pairs(timing, now), n)
    ]
