"""From times on a wall clock to instants: the one rule for the days on which clocks change."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta, tzinfo
from typing import NamedTuple

from asyncflow.errors import InvalidOption

#: A schedule that has nothing for so many years is over: no search goes further.
LOOK_AHEAD = 50
#: The last year that has ticks: in 9999 a change of zone may lead out of the calendar.
LAST_YEAR = 9998


class Tick(NamedTuple):
    """An instant of a schedule.

    Attributes:
        at: when, in UTC.
        note: what a change of the clocks did to it, in words; empty on all other days.
    """

    at: datetime
    note: str = ""


def zone_of(name: str) -> tzinfo:
    """The time zone of this name.

    Raises:
        InvalidOption: there is none.
    """
    if name == "UTC":
        return UTC
    import zoneinfo

    try:
        return zoneinfo.ZoneInfo(name)
    except (KeyError, ValueError, OSError, TypeError):
        pass
    from difflib import get_close_matches

    known = sorted(zoneinfo.available_timezones())
    ending = "/" + str(name).lower().replace(" ", "_")
    near = [key for key in known if key.lower().endswith(ending)]
    near = near or get_close_matches(str(name), known, 1, 0.75)
    hint = f"did you mean {near[0]!r}?" if near else "use a name such as 'Europe/Berlin'"
    raise InvalidOption(f"there is no time zone {name!r}: {hint}")


def wall_at(after: datetime, zone: tzinfo, repeats: bool) -> datetime:
    """The wall time whose successors give all instants after *after*, and few others."""
    local = after.astimezone(zone)
    wall = local.replace(tzinfo=None, fold=0)
    if repeats and not local.fold:
        back = _offset(local, 0) - _offset(local, 1)
        if back > timedelta(0):
            # This hour comes again, with what lies behind us in it.
            wall -= back
    return wall


def instants(
    walls: Iterable[datetime], zone: tzinfo, after: datetime, *, moves: bool, repeats: bool
) -> Iterator[Tick]:
    """The instants after *after* of rising wall times; each instant once, in order.

    Args:
        walls: wall times without a zone, from `wall_at` on.
        moves: a wall time that is left out when clocks go forward is the first instant after;
            without, it is nothing.
        repeats: a wall time that comes twice when clocks go back is two instants; without, it
            is the first.
    """
    if zone is UTC:
        yield from (Tick(wall.replace(tzinfo=UTC)) for wall in walls)
        return
    last = after
    again: list[Tick] = []
    lost = ""
    for wall in walls:
        local = wall.replace(tzinfo=zone)
        early, late = local.utcoffset(), local.replace(fold=1).utcoffset()
        assert early is not None
        assert late is not None
        note = ""
        if early == late:
            at = (wall - early).replace(tzinfo=UTC)
        elif early > late:
            at = (wall - early).replace(tzinfo=UTC)
            note = f"{_told(wall)} comes twice on this day"
            if repeats:
                second = (wall - late).replace(tzinfo=UTC)
                again.append(Tick(second, f"{note}: the second"))
                note = f"{note}: the first"
            else:
                note = f"{note}: only the first counts"
        elif moves:
            at = _end_of_gap(wall, zone, early, late)
            note = f"{_told(wall, at.astimezone(zone))} does not exist: moved to the next instant"
        else:
            lost = lost or f"{_told(wall)} before it does not exist: nothing runs for it"
            continue
        while again and again[0].at < at:
            tick = again.pop(0)
            if tick.at > last:
                last = tick.at
                yield tick
        if at > last:
            last = at
            yield Tick(at, note or lost)
            lost = ""
    yield from (tick for tick in again if tick.at > last)


def _end_of_gap(wall: datetime, zone: tzinfo, early: timedelta, late: timedelta) -> datetime:
    """The first instant after the gap that *wall* lies in; *early* is the offset before it."""
    before = (wall - late).replace(tzinfo=UTC)

    def is_over(seconds: int) -> bool:
        return (before + timedelta(seconds=seconds)).astimezone(zone).utcoffset() != early

    length = int((late - early).total_seconds())
    return before + timedelta(seconds=bisect_left(range(length), True, key=is_over))


def _offset(local: datetime, fold: int) -> timedelta:
    return local.replace(fold=fold).utcoffset() or timedelta(0)


def _told(wall: datetime, moved: datetime | None = None) -> str:
    time = f"{wall:%H:%M:%S}" if wall.second else f"{wall:%H:%M}"
    return f"{wall:%Y-%m-%d} {time}" if moved and moved.date() != wall.date() else time
