"""Which messages go now: a pure decision over what waits, a channel's policy and the clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from asyncflow.errors import DeliveryFailed
from asyncflow.notifications.channels import Channel
from asyncflow.store.planning import DeliveryRow

#: Firings in one digest.
MOST_TOGETHER = 100
#: Attempts beyond those that a channel allows, where the process died in the middle of some.
MOST_DEATHS = 3


@dataclass(slots=True)
class Decision:
    """What goes now, in groups that are one message each, and when to look again."""

    send: list[list[DeliveryRow]] = field(default_factory=list)
    wait_until: float | None = None


def decide(
    waiting: Sequence[DeliveryRow], channel: Channel, sent: Sequence[float], now: float
) -> Decision:
    """What goes through a channel now.

    Args:
        waiting: what is due, oldest first.
        sent: when messages went through it, or were tried, within the time of its rate.
        now: seconds since the epoch.
    """
    done = Decision()
    if not waiting:
        return done
    until = channel.quiet_until(now)
    if until is not None:
        done.wait_until = until
        return done
    groups, done.wait_until = _groups(waiting, channel, now)
    if channel.rate_limit is None:
        done.send = groups
        return done
    most, period = channel.rate_limit
    # Added up as below: with a difference, the last bit could make it wait for what is past.
    lately = sorted(at for at in sent if at + period > now)
    room = max(0, most - len(lately))
    done.send = groups[:room]
    if len(groups) > room:
        # When the oldest of those that fill the time leaves it; a clock that was set back
        # makes nobody wait longer than that.
        times = [*lately, *([now] * len(done.send))]
        free = min(times[len(times) - most], now) + period
        done.wait_until = free if done.wait_until is None else min(free, done.wait_until)
    return done


def _groups(
    waiting: Sequence[DeliveryRow], channel: Channel, now: float
) -> tuple[list[list[DeliveryRow]], float | None]:
    """What is one message each, and when what is still gathering will be one."""
    if channel.digest_seconds is None:
        return [[row] for row in waiting], None
    fresh = [row for row in waiting if not row.attempts]
    # What went together goes together again: it is the same message, with the same id.
    again: dict[tuple[int, float], list[DeliveryRow]] = {}
    for row in waiting:
        if row.attempts:
            again.setdefault((row.attempts, row.next_at), []).append(row)
    sets, until = list(again.values()), None
    if fresh:
        ends = min(row.created_at for row in fresh) + channel.digest_seconds
        if now < ends:
            until = ends
        else:
            sets.append(fresh)
    return [
        rows[at : at + MOST_TOGETHER] for rows in sets for at in range(0, len(rows), MOST_TOGETHER)
    ], until


def claimed(row: DeliveryRow, engine: int, now: float) -> DeliveryRow:
    """A delivery that an engine sends now: it is so on disk before it is sent."""
    return row._replace(state="sending", engine=engine, attempts=row.attempts + 1, next_at=now)


def is_spent(row: DeliveryRow, channel: Channel) -> bool:
    """Whether so many processes have died over a delivery that it is not tried again."""
    return row.attempts > channel.retries + MOST_DEATHS


def after(
    row: DeliveryRow, channel: Channel, failure: DeliveryFailed | None, reply: str, now: float
) -> DeliveryRow:
    """A delivery after an attempt that ended now.

    Args:
        row: with its attempts counted, this one included.
        failure: why it failed; None: it did not.
    """
    if failure is None:
        return row._replace(
            state="delivered", ended_at=now, error="", reply=reply[:500], engine=None
        )
    if failure.final or row.attempts > channel.retries:
        return row._replace(state="failed", ended_at=now, error=str(failure)[:500], engine=None)
    wait = max(channel.wait(row.attempts), failure.after or 0.0)
    return row._replace(state="pending", next_at=now + wait, error=str(failure)[:500], engine=None)
