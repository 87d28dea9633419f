"""Cron expressions: what a text means, and the wall times that it names."""

from __future__ import annotations

import re
from calendar import monthrange
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date, datetime
from functools import cache, lru_cache
from typing import Any

from asyncflow.errors import InvalidOption
from asyncflow.walltime import LAST_YEAR, LOOK_AHEAD

ALIASES = {
    "@YEARLY": "0 0 1 1 *",
    "@ANNUALLY": "0 0 1 1 *",
    "@MONTHLY": "0 0 1 * *",
    "@WEEKLY": "0 0 * * 0",
    "@DAILY": "0 0 * * *",
    "@MIDNIGHT": "0 0 * * *",
    "@HOURLY": "0 * * * *",
}
_NAMES = ["second", "minute", "hour", "day of the month", "month", "day of the week"]
_ALLOWED = [
    "0-59",
    "0-59",
    "0-23",
    "1-31, L for the last, LW for the last working day",
    "1-12 or JAN-DEC",
    "0-7 (0 and 7 are Sunday) or SUN-SAT, 5L for the last Friday, 1#2 for the second Monday",
]

#: A month of each shape: the day of the week that it begins on, and its length.
_A_MONTH = {
    monthrange(year, month): date(year, month, 1)
    for year in range(1972, 2000)
    for month in range(1, 13)
}


@dataclass(frozen=True, slots=True)
class Crontab:
    """A cron expression, understood.

    Attributes:
        days: its days in a month that begins on such a weekday (0 is Monday) and is so long.
        moves: a time that does not exist is made up for.
        repeats: a time that comes twice fires twice.
    """

    seconds: tuple[int, ...]
    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    months: tuple[int, ...]
    days: Callable[[int, int], tuple[int, ...]]
    moves: bool
    repeats: bool

    def walls(self, after: datetime) -> Iterator[datetime]:
        """The wall times after one, until there are none for a long time."""
        year, last = after.year, after.year
        while year <= min(last + LOOK_AHEAD, LAST_YEAR):
            for month in self.months:
                if (year, month) < (after.year, after.month):
                    continue
                for day in self.days(*monthrange(year, month)):
                    if (year, month, day) > (after.year, after.month, after.day):
                        for hour in self.hours:
                            for minute in self.minutes:
                                for second in self.seconds:
                                    yield datetime(year, month, day, hour, minute, second)
                        last = year
                    elif day == after.day:
                        yield from self._rest(after)
            year += 1

    def _rest(self, after: datetime) -> Iterator[datetime]:
        """What is left of a day."""
        for hour in self.hours:
            if hour >= after.hour:
                for minute in self.minutes:
                    if (hour, minute) >= (after.hour, after.minute):
                        for second in self.seconds:
                            wall = after.replace(
                                hour=hour, minute=minute, second=second, microsecond=0
                            )
                            if wall > after:
                                yield wall


def normal(text: str) -> str:
    """The expression in the one way that we write it.

    Raises:
        InvalidOption: it is no text, or has another number of fields.
    """
    if not isinstance(text, str):
        raise InvalidOption(f"a cron expression is text such as '0 9 * * 1-5', not {text!r}")
    fields = text.upper().split()
    if len(fields) == 1 and fields[0].startswith("@"):
        if fields[0] not in ALIASES:
            raise InvalidOption(
                f"cron {text!r}: the names that stand for an expression are"
                f" {', '.join(ALIASES).lower()}"
            )
        return ALIASES[fields[0]]
    if len(fields) not in (5, 6):
        raise InvalidOption(
            f"cron {text!r} has {len(fields)} field{'s' * (len(fields) != 1)}: give 5 (minute,"
            " hour, day of the month, month, day of the week), or 6 with the second before them"
        )
    return " ".join(fields)


@lru_cache(maxsize=256)
def parse(text: str, day_or: bool) -> Crontab:
    """What a normal expression means.

    Raises:
        InvalidOption: a field cannot be read, or no day fits all of them.
    """
    sim = _read(text)
    if sim is None:
        raise InvalidOption(_why(text))
    if not day_or:
        sim.day_and = True
    fields = text.split()
    minute, hour = fields[-5], fields[-4]
    fixed_hour = _is_literal(hour) and len(sim.hours) < 24
    fixed_minute = _is_literal(minute) and len(sim.minutes) < 60

    @cache
    def days(weekday: int, length: int) -> tuple[int, ...]:
        first = _A_MONTH[weekday, length]
        return tuple(d for d in range(1, length + 1) if sim.match_day(first.replace(day=d)))

    found = Crontab(
        seconds=tuple(sorted(sim.seconds)),
        minutes=tuple(sorted(sim.minutes)),
        hours=tuple(sorted(sim.hours)),
        months=tuple(sorted(sim.months)),
        days=days,
        moves=fixed_hour,
        repeats=not (fixed_hour and fixed_minute),
    )
    # Half a century from 2000 has a 29 February on every day of the week.
    if next(found.walls(datetime(1999, 12, 31, 23, 59, 59)), None) is None:
        raise InvalidOption(_never(text))
    return found


def in_words(text: str, day_or: bool) -> str:
    """The expression in English."""
    sim = _read(text)
    assert sim is not None, text
    try:
        words = str(sim.explain())
    except Exception:
        # It reads less than the parser does.
        return f"cron {text}"
    *_, day, _, weekday = text.split()
    if day.startswith("*") or weekday.startswith("*"):
        return words
    return f"{words} (days that fit {'either' if day_or else 'both'})"


def _read(text: str) -> Any:
    """The text as cronsim reads it; None where it does not."""
    from cronsim import CronSim, CronSimError

    try:
        return CronSim(text, datetime(2000, 1, 1))
    except (CronSimError, AssertionError, ValueError):
        return None


def _is_literal(field: str) -> bool:
    return re.search(r"[*/]", field) is None


def _why(text: str) -> str:
    fields = text.split()
    first = 6 - len(fields)
    for number, field in enumerate(fields):
        alone = ["*"] * len(fields)
        alone[number] = field
        if _read(" ".join(alone)) is None:
            return (
                f"cron {text!r}: the {_NAMES[first + number]} {field!r} is not understood:"
                f" {_ALLOWED[first + number]}; each as a value, *, a-b, */n, or several with"
                " commas between"
            )
    return _never(text)


def _never(text: str) -> str:
    return f"cron {text!r} never fires: no day has this month, day of the month and of the week"
