"""Schedules: which instants come after one, above all on the days on which clocks change."""

from __future__ import annotations

import pickle
import zoneinfo
from bisect import bisect_left
from datetime import UTC, date, datetime, timedelta
from itertools import islice, pairwise
from typing import Any

import pytest
from cronsim import CronSim
from dateutil import rrule as rules
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from asyncflow import Cron, Interval, InvalidOption, RRule
from asyncflow.schedules import Schedule, schedule_from_json

#: The same examples each time, however slow the machine is.
steady = settings(
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)

US, EU = "America/New_York", "Europe/Berlin"
HOWE, APIA = "Australia/Lord_Howe", "Pacific/Apia"
FIXED, HOURLY = "30 2 * * *", "15 * * * *"
NEW_YEAR = datetime(2024, 1, 1, tzinfo=UTC)


def local(schedule: Schedule, zone: str, begin: str, n: int) -> str:
    """The next ticks as day, hour, minute and offset on the clock of a zone."""
    info = zoneinfo.ZoneInfo(zone)
    after = datetime.fromisoformat(begin).replace(tzinfo=info) - timedelta(seconds=1)
    ticks = [at.astimezone(info) for at in schedule.upcoming(after, n)]
    return ", ".join(f"{at:%d %H:%M}{at.isoformat()[19:]}" for at in ticks)


@pytest.mark.parametrize(
    ("cron", "zone", "begin", "expected"),
    [
        pytest.param(
            FIXED, US, "2024-03-09", "09 02:30-05:00, 10 03:00-04:00, 11 02:30-04:00",
            id="US spring: a fixed time that does not exist is the first instant after the gap",
        ),
        pytest.param(
            "30 1 * * *", US, "2024-11-02", "02 01:30-04:00, 03 01:30-04:00, 04 01:30-05:00",
            id="US autumn: a fixed time that comes twice fires once, the first time",
        ),
        pytest.param(
            HOURLY, US, "2024-03-10T00:00", "10 00:15-05:00, 10 01:15-05:00, 10 03:15-04:00",
            id="US spring: every hour goes on in elapsed time",
        ),
        pytest.param(
            HOURLY, US, "2024-11-03T00:30", "03 01:15-04:00, 03 01:15-05:00, 03 02:15-05:00",
            id="US autumn: every hour fires in both of the repeated",
        ),
        pytest.param(
            FIXED, EU, "2026-03-28", "28 02:30+01:00, 29 03:00+02:00, 30 02:30+02:00",
            id="EU spring, fixed",
        ),
        pytest.param(
            FIXED, EU, "2026-10-24", "24 02:30+02:00, 25 02:30+02:00, 26 02:30+01:00",
            id="EU autumn, fixed",
        ),
        pytest.param(
            HOURLY, EU, "2026-03-29T01:00", "29 01:15+01:00, 29 03:15+02:00, 29 04:15+02:00",
            id="EU spring, hourly",
        ),
        pytest.param(
            HOURLY, EU, "2026-10-25T02:00", "25 02:15+02:00, 25 02:15+01:00, 25 03:15+01:00",
            id="EU autumn, hourly",
        ),
        pytest.param(
            "15 30 2 * * *", EU, "2026-03-29", "29 03:00+02:00, 30 02:30+02:00, 31 02:30+02:00",
            id="a field for seconds changes nothing of it, spring",
        ),
        pytest.param(
            "0 30 2 * * *", EU, "2026-10-25", "25 02:30+02:00, 26 02:30+01:00, 27 02:30+01:00",
            id="a field for seconds changes nothing of it, autumn",
        ),
        pytest.param(
            "0,30 2,3 * * *", EU, "2026-03-29",
            "29 03:00+02:00, 29 03:30+02:00, 30 02:00+02:00",
            id="what moves to an instant that is there anyway is one tick with it",
        ),
        pytest.param(
            "0 */2 * * *", EU, "2026-03-29", "29 00:00+01:00, 29 04:00+02:00, 29 06:00+02:00",
            id="step hours, spring: nothing runs for an hour that does not exist",
        ),
        pytest.param(
            "0 */2 * * *", EU, "2026-10-25",
            "25 00:00+02:00, 25 02:00+02:00, 25 02:00+01:00, 25 04:00+01:00",
            id="step hours, autumn: both",
        ),
        pytest.param(
            "*/30 2 * * *", EU, "2026-10-25",
            "25 02:00+02:00, 25 02:30+02:00, 25 02:00+01:00, 25 02:30+01:00, 26 02:00+01:00",
            id="step minutes of a fixed hour, autumn: both passes, in order",
        ),
        pytest.param(
            "*/30 2 * * *", EU, "2026-03-29", "29 03:00+02:00, 30 02:00+02:00, 30 02:30+02:00",
            id="step minutes of a fixed hour, spring: the day is not lost",
        ),
        pytest.param(
            "0 0-23 * * *", EU, "2026-10-25T02:00", "25 02:00+02:00, 25 02:00+01:00",
            id="all hours of the day are every hour",
        ),
        pytest.param(
            "15 2 * * *", HOWE, "2024-10-05", "05 02:15+10:30, 06 02:30+11:00, 07 02:15+11:00",
            id="half an hour, spring, fixed",
        ),
        pytest.param(
            "45 1 * * *", HOWE, "2024-04-06", "06 01:45+11:00, 07 01:45+11:00, 08 01:45+10:30",
            id="half an hour, autumn, fixed",
        ),
        pytest.param(
            "*/20 * * * *", HOWE, "2024-10-06T01:40",
            "06 01:40+10:30, 06 02:40+11:00, 06 03:00+11:00",
            id="half an hour, spring, every 20 minutes",
        ),
        pytest.param(
            "*/20 * * * *", HOWE, "2024-04-07T01:20",
            "07 01:20+11:00, 07 01:40+11:00, 07 01:40+10:30, 07 02:00+10:30",
            id="half an hour, autumn, every 20 minutes",
        ),
        pytest.param(
            "0 9 * * *", APIA, "2011-12-29", "29 09:00-10:00, 31 00:00+14:00, 31 09:00+14:00",
            id="a day that does not exist",
        ),
        pytest.param(
            "0 */12 * * *", APIA, "2011-12-29", "29 00:00-10:00, 29 12:00-10:00, 31 00:00+14:00",
            id="a day that does not exist, every 12 hours",
        ),
        pytest.param(
            "0 9 30 12 *", APIA, "2011-01-01", "31 00:00+14:00, 30 09:00+14:00",
            id="once a year, on the day that does not exist",
        ),
        pytest.param(
            "0 0 * * *", "America/Santiago", "2024-09-07",
            "07 00:00-04:00, 08 01:00-03:00, 09 00:00-03:00",
            id="a midnight that does not exist",
        ),
        pytest.param(
            "59 23 * * *", "America/Nuuk", "2024-03-30",
            "31 00:00-01:00, 31 23:59-01:00, 01 23:59-01:00",
            id="the last hour of a day that does not exist: the first instant of the next",
        ),
    ],
)  # fmt: skip
def test_cron_where_clocks_change(cron: str, zone: str, begin: str, expected: str) -> None:
    n = expected.count(",") + 1
    assert local(Cron(cron, timezone=zone), zone, begin, n) == expected


@pytest.mark.parametrize(
    ("rule", "zone", "begin", "expected"),
    [
        pytest.param(
            "FREQ=DAILY;BYHOUR=2;BYMINUTE=30", EU, "2026-03-28",
            "28 02:30+01:00, 29 03:00+02:00, 30 02:30+02:00", id="spring, daily",
        ),
        pytest.param(
            "FREQ=DAILY;BYHOUR=2;BYMINUTE=30", EU, "2026-10-24",
            "24 02:30+02:00, 25 02:30+02:00, 26 02:30+01:00", id="autumn, daily",
        ),
        pytest.param(
            "FREQ=HOURLY", EU, "2026-03-29T01:00",
            "29 01:00+01:00, 29 03:00+02:00, 29 04:00+02:00", id="spring, hourly",
        ),
        pytest.param(
            "FREQ=MINUTELY;INTERVAL=30", EU, "2026-10-25T02:00",
            "25 02:00+02:00, 25 02:30+02:00, 25 02:00+01:00, 25 02:30+01:00, 25 03:00+01:00",
            id="autumn, every 30 minutes",
        ),
        pytest.param(
            "FREQ=MINUTELY;INTERVAL=30;BYHOUR=2", EU, "2026-03-29",
            "29 03:00+02:00, 30 02:00+02:00", id="spring, minutes of a fixed hour",
        ),
        pytest.param(
            "FREQ=DAILY;BYHOUR=9", APIA, "2011-12-29",
            "29 09:00-10:00, 31 00:00+14:00, 31 09:00+14:00", id="a day that does not exist",
        ),
    ],
)  # fmt: skip
def test_rules_where_clocks_change(rule: str, zone: str, begin: str, expected: str) -> None:
    n = expected.count(",") + 1
    assert local(RRule(rule, timezone=zone), zone, begin, n) == expected


def test_a_preview_says_what_changes_of_the_clocks_do() -> None:
    def notes(cron: str, day: datetime) -> list[str]:
        return [tick.note for tick in Cron(cron, timezone=EU).preview(day, 4) if tick.note]

    spring, autumn = datetime(2026, 3, 29, tzinfo=UTC), datetime(2026, 10, 24, 23, tzinfo=UTC)
    assert notes(FIXED, spring) == ["02:30 does not exist: moved to the next instant"]
    assert notes(FIXED, autumn) == ["02:30 comes twice on this day: only the first counts"]
    assert notes(HOURLY, spring) == ["02:15 before it does not exist: nothing runs for it"]
    assert notes(HOURLY, autumn) == [
        "02:15 comes twice on this day: the first",
        "02:15 comes twice on this day: the second",
    ]


# --- every zone -------------------------------------------------------------------------------

DAYS = [NEW_YEAR + timedelta(days=n) for n in range(1096)]
Changes = tuple[tuple[datetime, timedelta], ...]


def changes(zone: zoneinfo.ZoneInfo) -> Changes:
    """The changes of a zone in 2024, 2025 and 2026: when, and the offset from then on."""
    offsets = [day.astimezone(zone).utcoffset() or timedelta(0) for day in DAYS]
    found = [(DAYS[0], offsets[0])]
    for day, (old, new) in zip(DAYS, pairwise(offsets), strict=False):
        if old != new:
            seconds = bisect_left(
                range(86400),
                True,
                key=lambda s: (day + timedelta(seconds=s)).astimezone(zone).utcoffset() != old,
            )
            found.append((day + timedelta(seconds=seconds), new))
    return tuple(found)


def zones() -> dict[Changes, str]:
    """A zone for each way in which clocks change in these years; about 100 of 600."""
    names = sorted(zoneinfo.available_timezones() - {"localtime"})
    return {changes(zoneinfo.ZoneInfo(name)): name for name in names}


@pytest.fixture(scope="module")
def all_zones() -> dict[Changes, str]:
    return zones()


@pytest.mark.parametrize("cron", ["30 2 * * *", "15 0 * * *"])
def test_a_daily_cron_fires_once_on_each_date_of_every_zone(
    all_zones: dict[Changes, str], cron: str
) -> None:
    end = datetime(2027, 1, 3, tzinfo=UTC)
    for name in all_zones.values():
        zone = zoneinfo.ZoneInfo(name)
        ticks = Cron(cron, timezone=name).upcoming(DAYS[0] - timedelta(days=2), 1110)
        dates = [at.astimezone(zone).date() for at in ticks if at < end]
        first = dates[0].toordinal()
        assert [day.toordinal() for day in dates] == list(range(first, first + len(dates))), name
        assert dates[0] <= date(2024, 1, 1), name
        assert dates[-1] >= date(2026, 12, 31), name


def test_every_hour_and_quarter_goes_on_in_elapsed_time_in_every_zone(
    all_zones: dict[Changes, str],
) -> None:
    hour, quarter = timedelta(hours=1), timedelta(minutes=15)
    seen = 0
    for known, name in all_zones.items():
        for (_, old), (at, new) in pairwise(known):
            begin, end = at - 3 * hour, at + 5 * hour
            shift = new - old
            for cron, step in (("0 * * * *", hour), ("*/15 * * * *", quarter)):
                ticks = Cron(cron, timezone=name).upcoming(begin, 50)
                ticks = [tick for tick in ticks if tick < end]
                steps = {b - a for a, b in pairwise(ticks)}
                if shift % step:
                    assert name in ("Australia/LHI", HOWE), name
                    assert steps == {hour, hour + abs(shift)}, name
                else:
                    assert steps == {step}, name
                seen += 1
    assert seen > 100


TURNS = [
    ("America/New_York", datetime(2024, 3, 10, 7)), ("America/New_York", datetime(2024, 11, 3, 6)),
    (HOWE, datetime(2024, 4, 6, 15)), (HOWE, datetime(2024, 10, 5, 15, 30)),
    ("Antarctica/Troll", datetime(2024, 3, 31, 1)), ("Antarctica/Troll", datetime(2024, 10, 27, 1)),
    ("America/Nuuk", datetime(2024, 3, 31, 1)), ("Africa/Cairo", datetime(2024, 10, 31, 21)),
]  # fmt: skip


@steady
@given(
    st.sampled_from(TURNS),
    st.sampled_from(["0", "5", "*", "*/15", "20,40", "*/7"]),
    st.sampled_from(["0", "1", "2", "*", "*/2", "1-3", "0,2,23"]),
)
def test_a_turn_of_the_clocks_minute_by_minute(
    turn: tuple[str, datetime], minutes: str, hours: str
) -> None:
    zone = zoneinfo.ZoneInfo(turn[0])
    begin, minute = turn[1].replace(tzinfo=UTC) - timedelta(hours=4), timedelta(minutes=1)
    named = set()
    for day in range(-1, 2):
        start = turn[1].replace(hour=0, minute=0) + timedelta(days=day, seconds=-1)
        sim = CronSim(f"{minutes} {hours} * * *", start)
        for wall in sim:
            if wall >= start + timedelta(days=1):
                break
            named.add(wall)
    fixed_hour = "*" not in hours
    fixed = fixed_hour and "*" not in minutes
    expected = []
    before = begin.astimezone(zone).replace(tzinfo=None)
    highest = before
    for n in range(1, 480):
        at = begin + n * minute
        wall = at.astimezone(zone).replace(tzinfo=None)
        left_out = {before + k * minute for k in range(1, (wall - before) // minute)}
        if (wall in named and not (fixed and wall <= highest)) or (fixed_hour and left_out & named):
            expected.append(at)
        before, highest = wall, max(wall, highest)
    ticks = Cron(f"{minutes} {hours} * * *", turn[0]).upcoming(begin, 480)
    assert [at for at in ticks if at < begin + 480 * minute] == expected


# --- intervals --------------------------------------------------------------------------------


def test_an_interval_is_anchored_and_never_drifts() -> None:
    anchor = datetime(2024, 1, 1, 0, 0, 7, tzinfo=UTC)
    every = Interval(0.1, anchor)
    ticks = list(islice(every.ticks(anchor), 100_000))
    assert ticks[-1] == anchor + timedelta(seconds=10_000)
    assert every.upcoming(ticks[5] - timedelta(microseconds=1), 1) == [ticks[5]]


def test_an_interval_goes_on_before_its_anchor() -> None:
    every = Interval(timedelta(hours=1), datetime(2024, 1, 1, 0, 30, tzinfo=UTC))
    assert every.upcoming(datetime(1999, 5, 5, tzinfo=UTC), 2) == [
        datetime(1999, 5, 5, 0, 30, tzinfo=UTC),
        datetime(1999, 5, 5, 1, 30, tzinfo=UTC),
    ]


def test_an_interval_knows_no_daylight_saving() -> None:
    ticks = Interval(7200).upcoming(datetime(2026, 3, 28, 23, tzinfo=UTC), 3)
    assert [at.hour for at in ticks] == [0, 2, 4]


# --- cron -------------------------------------------------------------------------------------


def days(schedule: Schedule, n: int, after: datetime = NEW_YEAR) -> list[str]:
    return [f"{at:%a %Y-%m-%d}" for at in schedule.upcoming(after, n)]


def test_days_of_the_month_and_of_the_week() -> None:
    assert days(Cron("0 9 13 * FRI"), 2) == ["Fri 2024-01-05", "Fri 2024-01-12"]
    assert days(Cron("0 9 13 * FRI", day_or=False), 2) == ["Fri 2024-09-13", "Fri 2024-12-13"]
    assert days(Cron("0 9 L * *"), 2) == ["Wed 2024-01-31", "Thu 2024-02-29"]
    assert days(Cron("0 9 LW * *"), 3)[2] == "Fri 2024-03-29"
    assert days(Cron("0 9 * * MON#2"), 1) == ["Mon 2024-01-08"]
    assert days(Cron("0 9 * FEB-MAR 5L"), 2) == ["Fri 2024-02-23", "Fri 2024-03-29"]
    assert days(Cron("0 0 29 2 MON", day_or=False), 3) == [
        "Mon 2044-02-29", "Mon 2072-02-29", "Mon 2112-02-29",
    ]  # fmt: skip


def test_names_stand_for_expressions() -> None:
    assert Cron("@daily") == Cron("0 0 * * *")
    assert Cron(" 0  9 * * mon-fri ") == Cron("0 9 * * MON-FRI")


def test_seconds_come_first_in_six_fields() -> None:
    assert [at.second for at in Cron("*/20 * * * * *").upcoming(NEW_YEAR, 3)] == [20, 40, 0]


FIELDS = [
    st.sampled_from(["0", "5", "*", "*/15", "10-20/5", "1,59", "7/20"]),
    st.sampled_from(["0", "2", "*", "*/6", "9-17", "1,2,23", "0-23/5"]),
    st.sampled_from(["*", "1", "15,31", "L", "LW", "*/10", "28-31"]),
    st.sampled_from(["*", "2", "JAN,JUN", "*/3", "11-12"]),
    st.sampled_from(["*", "0", "MON-FRI", "5L", "1#2", "*/2", "6,7"]),
]


def made(kind: Any, *args: Any) -> Any:
    """A schedule; not one that never fires, such as of the last Friday if it is the 11th."""
    try:
        return kind(*args)
    except InvalidOption as error:
        assume("never fires" not in str(error))
        raise


CRONS = st.tuples(*FIELDS).map(" ".join)
INSTANTS = st.datetimes(datetime(2008, 1, 1), datetime(2034, 1, 1)).map(
    lambda wall: wall.replace(tzinfo=UTC)
)


@steady
@given(CRONS, INSTANTS)
def test_in_utc_cron_is_what_cronsim_says(cron: str, after: datetime) -> None:
    sim = CronSim(cron, after.replace(tzinfo=None))
    schedule = made(Cron, cron)
    assert schedule.upcoming(after, 5) == [at.replace(tzinfo=UTC) for at in islice(sim, 5)]
    assert schedule.description


# --- rules ------------------------------------------------------------------------------------

BY = {
    "BYMONTH": ["2", "1,7", "12"], "BYMONTHDAY": ["1", "31", "-1,15"], "BYDAY": ["MO", "TU,SA,SU"],
    "BYHOUR": ["0", "2,9"], "BYMINUTE": ["0,30", "7"], "BYSECOND": ["0", "10,50"],
}  # fmt: skip
FREQS = ["YEARLY", "MONTHLY", "WEEKLY", "DAILY", "HOURLY", "MINUTELY", "SECONDLY"]


@st.composite
def rrules(draw: st.DrawFn) -> str:
    freq = draw(st.sampled_from(FREQS))
    parts = [f"FREQ={freq}", f"INTERVAL={draw(st.sampled_from([1, 2, 5, 90]))}"]
    if FREQS.index(freq) < 2:
        parts[1] = f"INTERVAL={draw(st.sampled_from([1, 2, 5]))}"
    for name, values in BY.items():
        if draw(st.integers(0, 3)) == 0 and (name, freq) != ("BYMONTHDAY", "WEEKLY"):
            parts.append(f"{name}={draw(st.sampled_from(values))}")
    if draw(st.booleans()):
        parts.append(f"WKST={draw(st.sampled_from(['MO', 'SU']))}")
    return ";".join(parts)


STARTS = st.sampled_from(
    [datetime(2019, 12, 31, 2, 30), datetime(2020, 2, 29), datetime(2021, 6, 16, 23, 59, 50)]
)


@steady
@given(rrules(), STARTS, st.integers(0, 40))
def test_in_utc_a_rule_is_what_dateutil_says(text: str, start: datetime, skip: int) -> None:
    schedule = made(RRule, text, "UTC", start)
    # dateutil looks at each second of the way; of rules that take it long we look at fewer.
    sparse = "SECONDLY" in text and text.count("BY") > 0
    n = 1 if sparse else skip + 3
    rule = rules.rrulestr(text, dtstart=start)
    found = schedule.upcoming(start.replace(tzinfo=UTC) - timedelta(seconds=1), n)
    assume(found[-1].year < 2200)
    expected = [at.replace(tzinfo=UTC) for at in islice(rule, len(found))]
    assert found == expected
    if not sparse:
        # Asked from the middle on, the answer is the same: the phase is that of the start.
        assert schedule.upcoming(expected[skip // 2], 2) == expected[skip // 2 + 1 :][:2]
    assert schedule.description


def test_what_a_rule_leaves_open_its_start_says() -> None:
    start = datetime(2024, 1, 31, 9, 15)
    assert days(RRule("FREQ=MONTHLY", start=start), 2) == ["Wed 2024-01-31", "Sun 2024-03-31"]
    assert RRule("FREQ=DAILY", start=start).upcoming(NEW_YEAR, 1) == [
        datetime(2024, 1, 31, 9, 15, tzinfo=UTC)
    ]
    assert days(RRule("FREQ=WEEKLY"), 1) == ["Mon 2024-01-08"]
    assert days(RRule("FREQ=YEARLY;BYWEEKNO=20", start=start), 2) == [
        "Wed 2024-05-15", "Wed 2025-05-14",
    ]  # fmt: skip
    assert days(RRule("FREQ=MONTHLY;BYDAY=MO,TU,WE,TH,FR;BYSETPOS=-1"), 2) == [
        "Wed 2024-01-31", "Thu 2024-02-29",
    ]  # fmt: skip


def test_an_aware_start_is_read_on_the_clock_of_the_zone() -> None:
    start = datetime(2024, 7, 1, 7, 0, tzinfo=UTC)
    assert RRule("FREQ=DAILY", EU, start) == RRule("FREQ=DAILY", EU, datetime(2024, 7, 1, 9))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("FREQ=DAILY;COUNT=2", ["Mon 2024-01-01", "Tue 2024-01-02"]),
        ("FREQ=DAILY;UNTIL=20240102", ["Mon 2024-01-01", "Tue 2024-01-02"]),
        ("FREQ=DAILY;UNTIL=20240102T090000", ["Mon 2024-01-01", "Tue 2024-01-02"]),
        ("FREQ=DAILY;UNTIL=20240102T085959", ["Mon 2024-01-01"]),
        ("FREQ=DAILY;UNTIL=20240102T140000Z", ["Mon 2024-01-01", "Tue 2024-01-02"]),
        ("FREQ=DAILY;UNTIL=20240102T135959Z", ["Mon 2024-01-01"]),
        ("FREQ=HOURLY;INTERVAL=24;COUNT=1", ["Mon 2024-01-01"]),
    ],
)
def test_a_rule_that_ends_has_fewer(text: str, expected: list[str]) -> None:
    rule = RRule(text, US, datetime(2024, 1, 1, 9))
    assert days(rule, 5) == expected
    assert days(rule, 5, datetime(2024, 1, 1, 20, tzinfo=UTC)) == expected[1:]
    assert rule.upcoming(datetime(2030, 1, 1, tzinfo=UTC), 5) == []


# --- what all keep ----------------------------------------------------------------------------

ZONES = st.sampled_from([US, EU, HOWE, APIA, "Africa/Casablanca", "Antarctica/Troll", "UTC"])
SCHEDULES: st.SearchStrategy[Schedule] = st.one_of(
    st.builds(made, st.just(Cron), CRONS, ZONES),
    st.builds(made, st.just(RRule), rrules(), ZONES, STARTS),
    st.builds(Interval, st.sampled_from([0.25, 90, 3600, 86400 * 7]), INSTANTS),
)
#: Where clocks change, and on other days.
NEAR = st.one_of(
    INSTANTS,
    st.builds(
        lambda at, hours: at + timedelta(hours=hours),
        st.sampled_from(
            [
                datetime(2024, 3, 10, 7, tzinfo=UTC), datetime(2024, 11, 3, 6, tzinfo=UTC),
                datetime(2026, 3, 29, 1, tzinfo=UTC), datetime(2026, 10, 25, 1, tzinfo=UTC),
                datetime(2024, 4, 6, 15, tzinfo=UTC), datetime(2024, 10, 5, 15, 30, tzinfo=UTC),
                datetime(2011, 12, 30, 10, tzinfo=UTC),
            ]
        ),
        st.floats(-3, 3),
    ),
)  # fmt: skip


@steady
@given(SCHEDULES, NEAR, st.integers(1, 12), st.integers(0, 11))
def test_ticks_rise_and_go_on_from_any_of_them(
    schedule: Schedule, after: datetime, n: int, k: int
) -> None:
    found = schedule.upcoming(after, n)
    assert all(a < b for a, b in pairwise([after, *found]))
    assert all(at.tzinfo is UTC for at in found)
    assert list(islice(schedule.ticks(after), n)) == found
    for at in found[k : k + 1]:
        assert schedule.upcoming(at, n - k - 1) == found[k + 1 :]
        # Between two ticks there is none.
        assert schedule.upcoming(at - timedelta(microseconds=1), 1) == [at]


@steady
@given(SCHEDULES)
def test_a_schedule_is_a_value_that_can_be_stored(schedule: Schedule) -> None:
    again = schedule_from_json(schedule.to_json())
    assert again == schedule
    assert hash(again) == hash(schedule)
    assert pickle.loads(pickle.dumps(schedule)) == schedule
    assert schedule.to_json() == again.to_json()
    assert str(schedule)


def test_schedules_in_words() -> None:
    said = [
        Cron("0 9 * * 1-5", EU), Cron("0 0 13 * 5"), Cron("0 0 13 * 5", day_or=False),
        Interval(90), Interval(86400), Interval(1), Interval(0.5),
        Interval(60, datetime(2024, 1, 1, 0, 0, 1, tzinfo=UTC)),
        RRule("FREQ=MONTHLY;BYDAY=-1FR,2MO;BYHOUR=17", EU),
        RRule("FREQ=MINUTELY;INTERVAL=5;BYHOUR=9,10;BYMONTH=1"),
        RRule("FREQ=DAILY;COUNT=3", start=datetime(2024, 1, 1)),
        RRule("FREQ=YEARLY;BYMONTHDAY=-1,-2;BYMONTH=3;BYSETPOS=1;UNTIL=20300101"),
    ]  # fmt: skip
    assert [schedule.description for schedule in said] == [
        "At 09:00 on Monday through Friday (Europe/Berlin)",
        "At 00:00 on the 13th day of month and on Friday (days that fit either) (UTC)",
        "At 00:00 on the 13th day of month and on Friday (days that fit both) (UTC)",
        "every 1 minute 30 seconds", "every day", "every second", "every 0.5 seconds",
        "every minute, anchored to 2024-01-01T00:00:01+00:00",
        "every month on the last Friday, Monday number 2 at 17:00 (Europe/Berlin)",
        "every 5 minutes in January in hour 9, 10 (UTC)",
        "every day at 00:00 from 2024-01-01 00:00:00 on, 3 times (UTC)",
        "every year in March on day last but 1, last at 00:00 (of these number 1) until"
        " 2030-01-01 23:59:59 (UTC)",
    ]  # fmt: skip


@pytest.mark.parametrize("year", [1, 2, 9997, 9998, 9999])
def test_at_the_ends_of_the_calendar_there_is_no_accident(year: int) -> None:
    for schedule in (
        Cron("0 0 1 1 *", "Pacific/Auckland"), Interval(1e9), RRule("FREQ=YEARLY", "US/Hawaii"),
        RRule("FREQ=HOURLY;INTERVAL=24", "Asia/Tokyo"), RRule("FREQ=DAILY", US),
    ):  # fmt: skip
        for after in (datetime(year, 1, 1, tzinfo=UTC), datetime(year, 12, 31, 23, tzinfo=UTC)):
            assert len(schedule.upcoming(after, 3)) <= 3


# --- what cannot be ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Cron("61 * * * *"), "the minute '61' is not understood: 0-59"),
        (lambda: Cron("0 25 * * *"), "the hour '25' is not understood: 0-23"),
        (lambda: Cron("0 0 0 * *"), "the day of the month '0' is not understood: 1-31, L"),
        (lambda: Cron("0 0 * FOO *"), "the month 'FOO' is not understood: 1-12 or JAN-DEC"),
        (lambda: Cron("0 0 * * 8"), "the day of the week '8' is not understood: 0-7"),
        (lambda: Cron("0 0 * * 5L/2"), "the day of the week '5L/2'"),
        (lambda: Cron("60 0 0 * * *"), "the second '60' is not understood"),
        (lambda: Cron("*/0 * * * *"), "the minute '\\*/0'"),
        (lambda: Cron("0 9 * *"), "has 4 fields: give 5 \\(minute, hour"),
        (lambda: Cron(""), "has 0 fields"),
        (lambda: Cron("@often"), "@daily"),
        (lambda: Cron(5), "is text such as '0 9 \\* \\* 1-5'"),
        (lambda: Cron("0 0 30 2 *"), "never fires"),
        (lambda: Cron("0 0 31 4,6 *"), "never fires"),
        (lambda: Cron("0 0 30 2 1", day_or=False), "never fires"),
        (lambda: Cron("@daily", day_or="no"), "day_or='no'"),
        (lambda: Cron("@daily", "Berlin"), "no time zone 'Berlin': did you mean 'Europe/Berlin'"),
        (lambda: Cron("@daily", "Europe/Berln"), "did you mean 'Europe/Berlin'"),
        (lambda: Cron("@daily", "../etc"), "no time zone '../etc'"),
        (lambda: Cron("@daily", None), "no time zone None"),
        (lambda: Interval(0), "not 0$"),
        (lambda: Interval(-5), "not -5"),
        (lambda: Interval(1e-9), "from a microsecond on"),
        (lambda: Interval(float("nan")), "not nan"),
        (lambda: Interval(1e300), "not 1e"),
        (lambda: Interval(True), "not True"),
        (lambda: Interval("5"), "not '5'"),
        (lambda: Interval(5, datetime(2024, 1, 1)), "anchored to an aware datetime"),
        (lambda: RRule(5), "is text such as"),
        (lambda: RRule("DTSTART:20240101\nRRULE:FREQ=DAILY"), "its DTSTART by start="),
        (lambda: RRule("DAILY"), "'DAILY' is not understood: parts are FREQ"),
        (lambda: RRule("INTERVAL=2"), "it has no FREQ: use one of YEARLY"),
        (lambda: RRule("FREQ=OFTEN"), "FREQ=OFTEN: use one of YEARLY"),
        (lambda: RRule("FREQ=DAILY;FREQ=DAILY"), "FREQ is given twice"),
        (lambda: RRule("FREQ=DAILY;INTERVAL=0"), "INTERVAL=0: give a whole number"),
        (lambda: RRule("FREQ=YEARLY;INTERVAL=60"), "at most 50 years"),
        (lambda: RRule("FREQ=DAILY;BYHOUR=24"), "BYHOUR '24' is not understood: 0 to 23"),
        (lambda: RRule("FREQ=DAILY;BYMONTHDAY=0"), "BYMONTHDAY '0' .* -1 to -31 from the end"),
        (lambda: RRule("FREQ=WEEKLY;BYDAY=XX"), "BYDAY 'XX' is not understood: MO, TU"),
        (lambda: RRule("FREQ=WEEKLY;BYDAY=2MO"), "a number needs FREQ=MONTHLY"),
        (lambda: RRule("FREQ=MONTHLY;BYDAY=MO,2TU"), "with a number and without"),
        (lambda: RRule("FREQ=WEEKLY;BYMONTHDAY=1"), "BYMONTHDAY cannot be used with FREQ=WEEKLY"),
        (lambda: RRule("FREQ=DAILY;WKST=XX"), "WKST=XX"),
        (lambda: RRule("FREQ=DAILY;UNTIL=soon"), "UNTIL=SOON is not understood: 20301231"),
        (lambda: RRule("FREQ=DAILY;UNTIL=20301399"), "UNTIL=20301399"),
        (lambda: RRule("FREQ=DAILY;COUNT=3"), "COUNT needs start="),
        (lambda: RRule("FREQ=DAILY;COUNT=3;UNTIL=20300101"), "not both"),
        (lambda: RRule("FREQ=DAILY;COUNT=99999", start=datetime(2024, 1, 1)), "at most 10000"),
        (lambda: RRule("FREQ=DAILY", start="now"), "start='now': give a datetime"),
        (lambda: RRule("FREQ=DAILY", start=datetime.min), "of the years 2 to 9998"),
        (lambda: RRule("FREQ=DAILY;UNTIL=20200101", start=datetime(2024, 1, 1)), "never fires"),
        (lambda: schedule_from_json({"kind": "sundial"}), "is no schedule: its kind is cron"),
        (lambda: schedule_from_json({"kind": ["cron"]}), "its kind is cron"),
        (lambda: schedule_from_json("cron"), "'cron' is no schedule"),
        (lambda: schedule_from_json({"kind": "cron", "day": 1}), "is no schedule"),
        (lambda: schedule_from_json({"kind": "interval", "seconds": 1, "anchor": "x"}), "no sched"),
        (lambda: Cron("@daily").upcoming(datetime(2024, 1, 1), 1), "asked with an aware datetime"),
        (lambda: Cron("@daily").ticks(datetime(2024, 1, 1)), "asked with an aware datetime"),
        (lambda: Cron("@daily").upcoming(date(2024, 1, 1), 1), "asked with an aware datetime"),
        (lambda: Cron("@daily").upcoming(NEW_YEAR, -1), "n from 0 on, not -1"),
    ],
)
def test_what_makes_no_sense_is_said_at_once(make: Any, said: str) -> None:
    with pytest.raises(InvalidOption, match=said):
        make()


@steady
@given(
    st.sampled_from([Cron, RRule]),
    st.one_of(
        st.text(max_size=20),
        st.text("0123456789*/-,L#W?", max_size=3).map(lambda part: f"0 {part} {part} * {part}"),
        st.text("0123456789-,+MOZT", max_size=9).map(lambda part: f"FREQ=DAILY;BYDAY={part}"),
        st.text("0123456789-,+MOZT", max_size=9).map(lambda part: f"FREQ=DAILY;UNTIL={part}"),
    ),
)
def test_any_text_is_a_schedule_or_said_to_be_none(kind: Any, text: str) -> None:
    try:
        schedule = kind(text)
    except InvalidOption:
        return
    assert schedule.description
    assert len(schedule.upcoming(NEW_YEAR, 1)) <= 1


def test_a_rule_goes_on_to_the_last_week_of_the_calendar() -> None:
    rule = RRule("FREQ=WEEKLY;BYDAY=SU;COUNT=10000", start=datetime(9990, 1, 1))
    assert len(rule.upcoming(NEW_YEAR, 10_000)) == 469


@pytest.mark.parametrize(
    "text",
    [
        "FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=30",
        "FREQ=DAILY;BYMONTH=2;BYMONTHDAY=30",
        "FREQ=SECONDLY;BYMONTH=2;BYMONTHDAY=30;BYHOUR=23",
        "FREQ=MONTHLY;INTERVAL=12;BYMONTH=2",
        "FREQ=DAILY;INTERVAL=7;BYDAY=TU",
        "FREQ=SECONDLY;INTERVAL=2;BYSECOND=1",
        "FREQ=SECONDLY;INTERVAL=7;BYHOUR=0;BYMINUTE=0;BYSECOND=0;BYDAY=TU",
        "FREQ=HOURLY;INTERVAL=24;BYHOUR=5",
    ],
)
def test_a_rule_that_never_fires_is_found_out_by_a_search_that_ends(text: str) -> None:
    with pytest.raises(InvalidOption, match="never fires"):
        RRule(text)
