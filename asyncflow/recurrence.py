"""Recurrence rules of RFC 5545 (iCalendar): what a text means, and the wall times that it names."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from itertools import islice
from math import gcd
from typing import Any

from asyncflow.errors import InvalidOption
from asyncflow.walltime import LAST_YEAR, LOOK_AHEAD

#: Where a rule begins that is not told: a Monday, and the first of a month and of a year.
START = datetime(1900, 1, 1)
#: A rule that counts is counted from its start on, so it must not count far.
MOST = 10_000

_FREQS = ["YEARLY", "MONTHLY", "WEEKLY", "DAILY", "HOURLY", "MINUTELY", "SECONDLY"]
_DAYS = ["MO", "TU", "WE", "TH", "FR", "SA", "SU"]
_STEPS = {"HOURLY": 3600, "MINUTELY": 60, "SECONDLY": 1}
_LENGTHS = {"YEARLY": 31536000, "MONTHLY": 2628000, "WEEKLY": 604800, "DAILY": 86400, **_STEPS}
#: The least and the greatest number of each list, and whether it may count from the end.
_LISTS = {
    "BYSECOND": (0, 59, False),
    "BYMINUTE": (0, 59, False),
    "BYHOUR": (0, 23, False),
    "BYMONTHDAY": (1, 31, True),
    "BYYEARDAY": (1, 366, True),
    "BYWEEKNO": (1, 53, True),
    "BYMONTH": (1, 12, False),
    "BYSETPOS": (1, 366, True),
}
_PARTS = ["FREQ", "INTERVAL", "COUNT", "UNTIL", "WKST", "BYDAY", *_LISTS]
#: What a part cannot be used with.
_UNFIT = {
    "BYWEEKNO": set(_FREQS) - {"YEARLY"},
    "BYYEARDAY": {"MONTHLY", "WEEKLY", "DAILY"},
    "BYMONTHDAY": {"WEEKLY"},
    "BYSETPOS": set(_STEPS),
}


@dataclass(frozen=True, slots=True, eq=False)
class Recurrence:
    """A rule, understood.

    Attributes:
        by: its lists, with what the start adds to them; BYDAY as (number or 0, weekday).
        until: the last wall time or instant.
        moves: a time that does not exist is made up for.
        repeats: a time that comes twice fires twice.
    """

    freq: str
    interval: int
    count: int | None
    until: datetime | None
    week_start: int
    by: dict[str, tuple[Any, ...]]
    start: datetime
    moves: bool
    repeats: bool

    def walls(self, after: datetime) -> Iterator[datetime]:
        """The wall times after one, until there are none for a long time."""
        if self.count is not None:
            counted = _counted(self)
            return iter(counted[bisect_right(counted, after) :])
        return self.uncounted(max(after, self.start - timedelta(seconds=1)))

    def uncounted(self, after: datetime) -> Iterator[datetime]:
        walls = self._within_days(after) if self.repeats else self._on_days(after)
        last = after.year
        for wall in walls:
            if wall.year > min(last + LOOK_AHEAD, LAST_YEAR):
                return
            if wall > after:
                last = wall.year
                yield wall

    def _on_days(self, after: datetime) -> Iterator[datetime]:
        """For rules of days and more: by dateutil, from the last period before on."""
        by = self.by
        times = {f"by{name}": by[f"BY{name.upper()}"] for name in ("hour", "minute", "second")}
        return self._rule(self.freq, self.interval, self._period(after.date()), **times)

    def _within_days(self, after: datetime) -> Iterator[datetime]:
        """For rules of less than a day: the days by dateutil, the times by counting steps.

        dateutil looks at each step of the way, be it a second; we at the days.
        """
        unit = _STEPS[self.freq]
        step = self.interval * unit
        # On the day of *after*, from the step that holds it on.
        passed = (after.hour * 3600 + after.minute * 60 + after.second) // unit * unit
        begin = self.start.replace(microsecond=0)
        if self.freq != "SECONDLY":
            begin = begin.replace(second=0)
        if self.freq == "HOURLY":
            begin = begin.replace(minute=0)
        # Parts of the day to look into, in seconds: its hours, or the minutes that are asked for.
        parts = [(hour * 3600, 3600) for hour in self.by.get("BYHOUR", range(24))]
        if self.freq == "SECONDLY" and "BYMINUTE" in self.by:
            parts = [(low + m * 60, 60) for low, _ in parts for m in self.by["BYMINUTE"]]
        last = after.year
        for day in self._rule("DAILY", 1, after.date()):
            if day.year > last + LOOK_AHEAD:
                return
            # Seconds from midnight to the first step of the day.
            phase = int((begin - day).total_seconds()) % step
            if phase >= 86400:
                continue
            least = passed if day.date() == after.date() else 0
            for low, length in parts:
                first = max(low, least)
                for at in range(first + (phase - first) % step, low + length, step):
                    for wall in self.around(day, at):
                        last = day.year
                        yield wall

    def around(self, day: datetime, at: int) -> Iterator[datetime]:
        """The times of a step that is so many seconds from midnight."""
        minutes, seconds = self.by.get("BYMINUTE"), self.by.get("BYSECOND")
        hour, minute, second = at // 3600, at // 60 % 60, at % 60
        if self.freq == "HOURLY":
            assert minutes
        elif minutes is not None and minute not in minutes:
            return
        else:
            minutes = (minute,)
        if self.freq != "SECONDLY":
            assert seconds
        elif seconds is not None and second not in seconds:
            return
        else:
            seconds = (second,)
        for m in minutes:
            for s in seconds:
                yield day.replace(hour=hour, minute=m, second=s)

    def _period(self, day: date) -> date:
        """The first day of the last period of the rule that began by *day*, or of its first."""
        start, interval = self.start.date(), self.interval
        day = max(day, start)
        if self.freq == "YEARLY":
            return date(day.year - (day.year - start.year) % interval, 1, 1)
        if self.freq == "MONTHLY":
            months = day.year * 12 + day.month - 1
            months -= (months - start.year * 12 - start.month + 1) % interval
            return date(months // 12, months % 12 + 1, 1)
        if self.freq == "WEEKLY":
            start -= timedelta(days=(start.weekday() - self.week_start) % 7)
            return day - timedelta(days=(day - start).days % (7 * interval))
        return day - timedelta(days=(day - start).days % interval)

    def _rule(self, freq: str, interval: int, day: date, **times: Any) -> Iterator[datetime]:
        """What dateutil finds from a day on.

        It searches up to the year 9999, however long that takes. So it is asked about a year that
        is near to it, a multiple of 400 years from now: the calendar is the same every 400 years.
        """
        from dateutil import rrule

        by = self.by
        ahead = max(0, LAST_YEAR - LOOK_AHEAD - day.year) // 400 * 400
        make: Any = rrule.rrule
        rule = make(
            _FREQS.index(freq),
            dtstart=datetime(day.year + ahead, day.month, day.day),
            interval=interval,
            wkst=self.week_start,
            bysetpos=by.get("BYSETPOS"),
            bymonth=by.get("BYMONTH"),
            bymonthday=by.get("BYMONTHDAY"),
            byyearday=by.get("BYYEARDAY"),
            byweekno=by.get("BYWEEKNO"),
            byweekday=[rrule.weekday(day, n or None) for n, day in by["BYDAY"]]
            if "BYDAY" in by
            else None,
            **times,
        )
        try:
            for wall in rule:
                yield wall.replace(year=wall.year - ahead)
        except (ValueError, OverflowError):
            # A week that leads out of the calendar: it has ended.
            return


@lru_cache(maxsize=64)
def _counted(rule: Recurrence) -> tuple[datetime, ...]:
    walls = rule.uncounted(rule.start - timedelta(seconds=1))
    return tuple(islice(walls, rule.count))


def normal(text: str) -> str:
    """The rule in the one way that we write it.

    Raises:
        InvalidOption: it is no text of one rule.
    """
    if not isinstance(text, str):
        raise InvalidOption(f"a rule is text such as 'FREQ=DAILY;INTERVAL=2', not {text!r}")
    flat = "".join(text.upper().split()).removeprefix("RRULE:").strip(";")
    if ":" in flat:
        raise InvalidOption(
            f"rrule {text!r}: give one rule such as 'FREQ=DAILY;INTERVAL=2', and its DTSTART by"
            " start= and timezone="
        )
    return flat


@lru_cache(maxsize=256)
def parse(text: str, start: datetime | None) -> Recurrence:
    """What a normal rule that begins at a wall time means.

    Raises:
        InvalidOption: a part cannot be read or does not fit, or the rule never fires.
    """
    parts = _split(text)
    freq = _freq(text, parts)
    interval = _number(text, parts, "INTERVAL", 1)
    count = _number(text, parts, "COUNT", None)
    until = _until(text, parts["UNTIL"]) if "UNTIL" in parts else None
    by: dict[str, tuple[Any, ...]] = {
        name: _list(text, name, value) for name, value in parts.items() if name in _LISTS
    }
    if "BYDAY" in parts:
        by["BYDAY"] = _weekdays(text, freq, "BYWEEKNO" in by, parts["BYDAY"])
    for name in by:
        if freq in _UNFIT.get(name, ()):
            raise InvalidOption(f"rrule {text!r}: {name} cannot be used with FREQ={freq}")
    if (interval or 1) * _LENGTHS[freq] > LOOK_AHEAD * 366 * 86400:
        raise InvalidOption(f"rrule {text!r}: an INTERVAL is at most {LOOK_AHEAD} years")
    if count is not None:
        if until is not None:
            raise InvalidOption(f"rrule {text!r}: give COUNT or UNTIL, not both")
        if start is None:
            raise InvalidOption(f"rrule {text!r}: COUNT needs start=, from which it counts")
        if count > MOST:
            raise InvalidOption(f"rrule {text!r}: COUNT is at most {MOST}: use UNTIL instead")
    week_start = parts.get("WKST", "MO")
    if week_start not in _DAYS:
        raise InvalidOption(f"rrule {text!r}: WKST={week_start}: use one of {', '.join(_DAYS)}")
    found = Recurrence(
        freq=freq,
        interval=interval or 1,
        count=count,
        until=until,
        week_start=_DAYS.index(week_start),
        by=_with_start(freq, by, start or START),
        start=start or START,
        moves=freq not in _STEPS or "BYHOUR" in by,
        repeats=freq in _STEPS,
    )
    _must_fire(text, found)
    return found


def _split(text: str) -> dict[str, str]:
    parts: dict[str, str] = {}
    for part in text.split(";"):
        name, _, value = part.partition("=")
        if name not in _PARTS or not value:
            raise InvalidOption(
                f"rrule {text!r}: {part!r} is not understood: parts are {', '.join(_PARTS)}, each"
                " with a value after ="
            )
        if name in parts:
            raise InvalidOption(f"rrule {text!r}: {name} is given twice")
        parts[name] = value
    return parts


def _freq(text: str, parts: dict[str, str]) -> str:
    freq = parts.get("FREQ", "")
    if freq not in _FREQS:
        what = f"FREQ={freq}" if freq else "it has no FREQ"
        raise InvalidOption(f"rrule {text!r}: {what}: use one of {', '.join(_FREQS)}")
    return freq


def _number(text: str, parts: dict[str, str], name: str, otherwise: int | None) -> int | None:
    value = parts.get(name)
    if value is None:
        return otherwise
    if re.fullmatch(r"0*[1-9][0-9]{0,8}", value) is None:
        raise InvalidOption(f"rrule {text!r}: {name}={value}: give a whole number from 1 on")
    return int(value)


def _list(text: str, name: str, value: str) -> tuple[int, ...]:
    least, most, signed = _LISTS[name]
    numbers = set()
    for term in value.split(","):
        number = int(term) if re.fullmatch(r"[+-]?[0-9]{1,4}", term) else None
        if number is None or not least <= (abs(number) if signed else number) <= most:
            end = f", or -{least} to -{most} from the end" if signed else ""
            raise InvalidOption(
                f"rrule {text!r}: {name} {term!r} is not understood: {least} to {most}{end}"
            )
        numbers.add(number)
    return tuple(sorted(numbers))


def _weekdays(text: str, freq: str, weeks: bool, value: str) -> tuple[tuple[int, int], ...]:
    days = set()
    for term in value.split(","):
        found = re.fullmatch(r"([+-]?[0-9]{1,2})?([A-Z]{2})", term)
        number = int(found[1] or 0) if found else 0
        if found is None or found[2] not in _DAYS or abs(number) > 53 or found[1] == "0":
            raise InvalidOption(
                f"rrule {text!r}: BYDAY {term!r} is not understood: {', '.join(_DAYS)}, or with a"
                " number before it: 2MO, -1FR"
            )
        if number and (freq not in ("MONTHLY", "YEARLY") or weeks):
            raise InvalidOption(
                f"rrule {text!r}: BYDAY {term!r}: a number needs FREQ=MONTHLY, or YEARLY without"
                " BYWEEKNO"
            )
        days.add((number, _DAYS.index(found[2])))
    if len({bool(number) for number, _ in days}) > 1:
        raise InvalidOption(
            f"rrule {text!r}: BYDAY has days with a number and without: give two schedules"
        )
    return tuple(sorted(days))


def _until(text: str, value: str) -> datetime:
    """The last instant (aware) or wall time (naive); a date is all of its day."""
    try:
        if re.fullmatch(r"\d{8}", value):
            return datetime.strptime(value + "235959", "%Y%m%d%H%M%S")
        if re.fullmatch(r"\d{8}T\d{6}Z?", value):
            wall = datetime.strptime(value[:15], "%Y%m%dT%H%M%S")
            return wall.replace(tzinfo=UTC) if value.endswith("Z") else wall
    except ValueError:
        pass
    raise InvalidOption(
        f"rrule {text!r}: UNTIL={value} is not understood: 20301231, 20301231T235959 on the wall"
        " clock, or 20301231T235959Z in UTC"
    )


def _with_start(
    freq: str, by: dict[str, tuple[Any, ...]], start: datetime
) -> dict[str, tuple[Any, ...]]:
    """The lists, and what the start says where they are silent."""
    whole = dict(by)
    if not by.keys() & {"BYDAY", "BYMONTHDAY", "BYYEARDAY", "BYWEEKNO"}:
        if freq == "YEARLY":
            whole.setdefault("BYMONTH", (start.month,))
        if freq in ("YEARLY", "MONTHLY"):
            whole["BYMONTHDAY"] = (start.day,)
        if freq == "WEEKLY":
            whole["BYDAY"] = ((0, start.weekday()),)
    if "BYWEEKNO" in by and not by.keys() & {"BYDAY", "BYMONTHDAY", "BYYEARDAY"}:
        whole["BYDAY"] = ((0, start.weekday()),)
    times = {"HOURLY": start.hour, "MINUTELY": start.minute, "SECONDLY": start.second}
    for unit, value in times.items():
        if _FREQS.index(freq) < _FREQS.index(unit):
            whole.setdefault(f"BY{unit.removesuffix('LY')}", (value,))
    return whole


def _must_fire(text: str, rule: Recurrence) -> None:
    """Raises where no day and time fits; searches as far as `walls` does."""
    if rule.repeats:
        step = rule.interval * _STEPS[rule.freq]
        # The times of a day that steps can ever reach are those of one remainder.
        common = gcd(step, 86400)
        second = rule.start.second if rule.freq == "SECONDLY" else 0
        minute = rule.start.minute if rule.freq != "HOURLY" else 0
        begin = rule.start.hour * 3600 + minute * 60 + second
        midnight = datetime(2000, 1, 1)
        hours = rule.by.get("BYHOUR", range(24))
        if not any(
            at // 3600 in hours and next(rule.around(midnight, at), None)
            for at in range(begin % common, 86400, common)
        ):
            raise InvalidOption(f"rrule {text!r} never fires: its steps reach none of its times")
    first = next(rule.uncounted(rule.start - timedelta(seconds=1)), None)
    if first is None:
        raise InvalidOption(
            f"rrule {text!r} never fires: no day within {LOOK_AHEAD} years of its start fits"
        )


_UNITS = ["year", "month", "week", "day", "hour", "minute", "second"]
_DAY_NAMES = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
_MONTHS = [
    "January", "February", "March", "April", "May", "June", "July", "August", "September",
    "October", "November", "December",
]  # fmt: skip

_TIMES = {"BYHOUR": "in hour", "BYMINUTE": "at minute", "BYSECOND": "at second"}


def in_words(rule: Recurrence) -> str:
    """The rule in English."""
    unit = _UNITS[_FREQS.index(rule.freq)]
    words = [f"every {rule.interval} {unit}s" if rule.interval > 1 else f"every {unit}"]
    tell: list[tuple[str, str, Callable[[Any], str]]] = [
        ("BYMONTH", "in", lambda n: _MONTHS[n - 1]),
        ("BYWEEKNO", "in week", _from_end),
        ("BYYEARDAY", "on day of the year", _from_end),
        ("BYMONTHDAY", "on day", _from_end),
        ("BYDAY", "on", _weekday),
    ]
    for name, before, say in tell:
        if name in rule.by:
            words.append(f"{before} {', '.join(say(value) for value in rule.by[name])}")
    if rule.repeats:
        words += [
            f"{before} {', '.join(map(str, rule.by[name]))}"
            for name, before in _TIMES.items()
            if name in rule.by and (name, rule.by[name]) != ("BYSECOND", (0,))
        ]
    else:
        times = [
            f"{hour:02}:{minute:02}" + (f":{second:02}" if rule.by["BYSECOND"] != (0,) else "")
            for hour in rule.by["BYHOUR"]
            for minute in rule.by["BYMINUTE"]
            for second in rule.by["BYSECOND"]
        ]
        words.append("at " + (", ".join(times[:6]) + (", …" if len(times) > 6 else "")))
    if "BYSETPOS" in rule.by:
        words.append(f"(of these number {', '.join(map(_from_end, rule.by['BYSETPOS']))})")
    if rule.count is not None:
        words.append(f"from {rule.start} on, {rule.count} times")
    if rule.until is not None:
        words.append(f"until {rule.until}")
    return " ".join(words)


def _from_end(number: int) -> str:
    if number > 0:
        return str(number)
    return "last" if number == -1 else f"last but {-number - 1}"


def _weekday(value: tuple[int, int]) -> str:
    number, day = value
    name = _DAY_NAMES[day]
    return (
        name
        if not number
        else f"{name} number {number}"
        if number > 0
        else (f"the last {name}" if number == -1 else f"{name} number {_from_end(number)}")
    )
