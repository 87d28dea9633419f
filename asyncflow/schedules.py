"""When something happens again and again: `Cron`, `Interval`, `RRule`.

Schedules are values. They know no clock and start nothing: they say which instants come after one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice, takewhile
from math import isfinite
from typing import Any

from asyncflow import crontab, recurrence
from asyncflow.errors import InvalidOption
from asyncflow.walltime import LAST_YEAR, Tick, instants, wall_at, zone_of

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST = datetime(2, 1, 1, tzinfo=UTC)


class Schedule(ABC):
    """What all schedules can be asked.

    Where the clocks change, a schedule with a fixed hour and minute fires once for a time that
    comes twice, the first time, and for one that does not exist at the first instant after it.
    One that repeats within the hour or over hours (``*``, ``*/2``) goes by elapsed time.
    """

    __slots__ = ()

    def ticks(self, after: datetime) -> Iterator[datetime]:
        """The instants after one, rising and lazily, each in UTC.

        Args:
            after: an aware datetime; an instant that is equal to it does not count.

        Raises:
            InvalidOption: *after* has no time zone.
        """
        return (tick.at for tick in self._begin(after))

    def upcoming(self, after: datetime, n: int = 1) -> list[datetime]:
        """The next *n* instants after one, in UTC; fewer where the schedule ends before.

        Args:
            after: an aware datetime; an instant that is equal to it does not count.
            n: how many, from 0 on.

        Raises:
            InvalidOption: *after* has no time zone, or *n* makes no sense.
        """
        return [tick.at for tick in self.preview(after, n)]

    def preview(self, after: datetime, n: int = 1) -> list[Tick]:
        """As `upcoming`, each instant with what a change of the clocks did to it."""
        if not isinstance(n, int) or isinstance(n, bool) or n < 0:
            raise InvalidOption(f"upcoming takes n from 0 on, not {n!r}")
        return list(islice(self._begin(after), n))

    def _begin(self, after: datetime) -> Iterator[Tick]:
        if not isinstance(after, datetime) or after.utcoffset() is None:
            raise InvalidOption(
                f"a schedule is asked with an aware datetime, such as datetime.now(UTC), not"
                f" {after!r}"
            )
        if after.year > LAST_YEAR:
            return iter(())
        # At the ends of the calendar a change of zone may lead out of it.
        return self._after(after.astimezone(UTC) if after.year > 1 else _FIRST)

    @abstractmethod
    def _after(self, after: datetime) -> Iterator[Tick]:
        """The instants after one in UTC."""

    @property
    @abstractmethod
    def description(self) -> str:
        """The schedule in words."""

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """What `schedule_from_json` makes an equal schedule of: only texts, numbers and None."""


@dataclass(frozen=True, slots=True)
class Cron(Schedule):
    """The times that a cron expression names.

    Args:
        cron: 5 fields (minute, hour, day of the month, month, day of the week) or 6 with the
            second before them; names (``MON-FRI``, ``JAN``), ``L``, ``LW``, ``5L``, ``1#2``, and
            ``@hourly``, ``@daily``, ``@weekly``, ``@monthly``, ``@yearly``.
        timezone: the zone whose clock the fields mean.
        day_or: where both the day of the month and the day of the week are restricted, a day
            that fits one of them counts, as in every cron; False wants both. A field that begins
            with ``*`` restricts nothing.

    Raises:
        InvalidOption: a field cannot be read, no day fits all of them, or there is no such zone.
    """

    cron: str
    timezone: str = "UTC"
    day_or: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "cron", crontab.normal(self.cron))
        if not isinstance(self.day_or, bool):
            raise InvalidOption(f"cron {self.cron!r}: day_or={self.day_or!r}: give True or False")
        zone_of(self.timezone)
        crontab.parse(self.cron, self.day_or)

    def _after(self, after: datetime) -> Iterator[Tick]:
        tab, zone = crontab.parse(self.cron, self.day_or), zone_of(self.timezone)
        walls = tab.walls(wall_at(after, zone, tab.repeats))
        return instants(walls, zone, after, moves=tab.moves, repeats=tab.repeats)

    @property
    def description(self) -> str:
        return f"{crontab.in_words(self.cron, self.day_or)} ({self.timezone})"

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": "cron", "cron": self.cron, "timezone": self.timezone, "day_or": self.day_or,
        }  # fmt: skip

    def __str__(self) -> str:
        return f"{self.cron} ({self.timezone})"


@dataclass(frozen=True, slots=True, init=False)
class Interval(Schedule):
    """Instants of equal distance in elapsed time; never drifts, knows no daylight saving.

    Args:
        seconds: the distance, in seconds or as a timedelta, from a microsecond on.
        anchor: an aware datetime that is one of the instants; they go on before and after it.
            By default 1970-01-01 00:00 UTC.

    Raises:
        InvalidOption: *seconds* is not above 0, or *anchor* has no time zone.
    """

    seconds: float
    anchor: datetime

    # Written out, so that `seconds` takes more than what it then is.
    def __init__(self, seconds: float | timedelta, anchor: datetime | None = None) -> None:
        object.__setattr__(self, "seconds", _span(seconds).total_seconds())
        if anchor is None:
            anchor = EPOCH
        elif not isinstance(anchor, datetime) or anchor.utcoffset() is None:
            raise InvalidOption(f"an interval is anchored to an aware datetime, not {anchor!r}")
        object.__setattr__(self, "anchor", anchor.astimezone(UTC))

    def _after(self, after: datetime) -> Iterator[Tick]:
        span = timedelta(seconds=self.seconds)
        try:
            at = self.anchor + ((after - self.anchor) // span + 1) * span
            while at.year <= LAST_YEAR:
                yield Tick(at)
                at += span
        except OverflowError:
            pass

    @property
    def description(self) -> str:
        rest = timedelta(seconds=self.seconds)
        words = []
        for unit, name in ((timedelta(days=1), "day"), (timedelta(hours=1), "hour"),
                           (timedelta(minutes=1), "minute")):  # fmt: skip
            count, rest = divmod(rest, unit)
            if count:
                words.append(f"{count} {name}{'s' * (count > 1)}")
        if rest:
            one = rest == timedelta(seconds=1)
            words.append(
                f"{rest.total_seconds():.6f}".rstrip("0").rstrip(".") + " second" + "s" * (not one)
            )
        only = words[0].removeprefix("1 ") if len(words) == 1 else " ".join(words)
        anchor = "" if self.anchor == EPOCH else f", anchored to {self.anchor.isoformat()}"
        return f"every {only}{anchor}"

    def to_json(self) -> dict[str, Any]:
        return {"kind": "interval", "seconds": self.seconds, "anchor": self.anchor.isoformat()}

    def __str__(self) -> str:
        return self.description


@dataclass(frozen=True, slots=True)
class RRule(Schedule):
    """The times of a recurrence rule of RFC 5545 (iCalendar).

    Args:
        rrule: the rule, such as ``FREQ=MONTHLY;BYDAY=-1FR;BYHOUR=17``. ``UNTIL`` may be a date, a
            time on the wall clock or, with Z, in UTC; it still counts. ``COUNT`` goes to 10,000.
        timezone: the zone whose clock the rule means.
        start: when it begins, aware or on the wall clock; it says what the rule leaves open, as
            its hour and minute. A rule with ``COUNT`` needs it. By default long ago, on a
            Monday that was the first of a year, at 00:00. It is no instant by itself.

    Raises:
        InvalidOption: a part cannot be read or does not fit, the rule never fires, or there is
            no such zone.
    """

    rrule: str
    timezone: str = "UTC"
    start: datetime | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "rrule", recurrence.normal(self.rrule))
        zone = zone_of(self.timezone)
        if self.start is not None:
            start = self.start
            if not isinstance(start, datetime) or not 1 < start.year <= LAST_YEAR:
                raise InvalidOption(
                    f"rrule {self.rrule!r}: start={start!r}: give a datetime of the years 2 to"
                    f" {LAST_YEAR}"
                )
            if start.tzinfo is not None:
                start = start.astimezone(zone)
            start = start.replace(tzinfo=None, microsecond=0, fold=0)
            object.__setattr__(self, "start", start)
        rule = recurrence.parse(self.rrule, self.start)
        if next(self._after((rule.start - timedelta(days=2)).replace(tzinfo=UTC)), None) is None:
            raise InvalidOption(f"rrule {self.rrule!r} never fires: it ends before its first time")

    def _after(self, after: datetime) -> Iterator[Tick]:
        rule, zone = recurrence.parse(self.rrule, self.start), zone_of(self.timezone)
        walls = rule.walls(wall_at(after, zone, rule.repeats))
        ticks = instants(walls, zone, after, moves=rule.moves, repeats=rule.repeats)
        if rule.until is None:
            return ticks
        end = rule.until
        if end.tzinfo is None:
            # Of a time that comes twice the second still counts.
            end = end.replace(tzinfo=zone, fold=1).astimezone(UTC)
        return takewhile(lambda tick: tick.at <= end, ticks)

    @property
    def description(self) -> str:
        return f"{recurrence.in_words(recurrence.parse(self.rrule, self.start))} ({self.timezone})"

    def to_json(self) -> dict[str, Any]:
        start = self.start.isoformat() if self.start is not None else None
        return {"kind": "rrule", "rrule": self.rrule, "timezone": self.timezone, "start": start}

    def __str__(self) -> str:
        return f"{self.rrule} ({self.timezone})"


_KINDS: dict[str, type[Schedule]] = {"cron": Cron, "interval": Interval, "rrule": RRule}


def schedule_from_json(stored: Mapping[str, Any]) -> Schedule:
    """The schedule of which `Schedule.to_json` made this.

    Raises:
        InvalidOption: it is none.
    """
    try:
        given = dict(stored)
        kind = _KINDS.get(str(given.pop("kind", None)))
    except (TypeError, ValueError):
        raise InvalidOption(f"{stored!r} is no schedule: give what to_json gave") from None
    if kind is None:
        raise InvalidOption(f"{stored!r} is no schedule: its kind is cron, interval or rrule")
    try:
        for name in ("anchor", "start"):
            if given.get(name) is not None:
                given[name] = datetime.fromisoformat(given[name])
        return kind(**given)
    except InvalidOption:
        raise
    except (TypeError, ValueError) as error:
        raise InvalidOption(f"{stored!r} is no schedule: {error}") from None


def _span(seconds: Any) -> timedelta:
    span = seconds
    try:
        if isinstance(seconds, int | float) and not isinstance(seconds, bool) and isfinite(seconds):
            span = timedelta(seconds=seconds)
    except OverflowError:
        pass
    if not isinstance(span, timedelta) or span <= timedelta(0):
        raise InvalidOption(
            f"an interval is seconds or a timedelta, from a microsecond on, not {seconds!r}"
        )
    return span
