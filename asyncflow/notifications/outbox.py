"""Which messages go now: a pure decision over what waits, a channel's policy and the clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from asyncflow.errors import DeliveryFailed
from asyncflow.notifications.channels import Channel
from asyncflow.store.planning import DeliveryRow

#: Firings in one digest.
MOST_TOGETHER = 100


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
        sent: when messages went through it, within the time of its rate.
        now: seconds since the epoch.
    """
    done = Decision()
    if not waiting:
        return done
    until = channel.quiet_until(now)
    if until is not None:
        done.wait_until = until
        return done
    groups = [[row] for row in waiting]
    if channel.digest_seconds is not None:
        first = min(row.created_at for row in waiting)
        again = [row for row in waiting if row.attempts]
        fresh = [row for row in waiting if not row.attempts]
        groups = [[row] for row in again]
        if now < first + channel.digest_seconds and not again:
            done.wait_until = first + channel.digest_seconds
            return done
        groups += [fresh[at : at + MOST_TOGETHER] for at in range(0, len(fresh), MOST_TOGETHER)]
    if channel.rate_limit is None:
        done.send = groups
        return done
    most, period = channel.rate_limit
    lately = sorted(at for at in sent if at > now - period)
    room = max(0, most - len(lately))
    done.send = groups[:room]
    if len(groups) > room:
        # When the oldest of those that fill the time leaves it.
        times = [*lately, *([now] * len(done.send))]
        done.wait_until = times[len(times) - most] + period
    return done


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
