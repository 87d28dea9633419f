"""``asyncflow schedules``."""

from __future__ import annotations

from datetime import UTC, datetime, tzinfo

from asyncflow.cli.output import answered, print_json, say, table
from asyncflow.errors import InvalidOption
from asyncflow.schedules import Cron, Interval, RRule, Schedule
from asyncflow.walltime import Tick, zone_of


def preview(
    *,
    cron: str | None,
    interval: float | None,
    rrule: str | None,
    tz: str,
    start: str | None,
    day_and: bool,
    begin: str | None,
    n: int,
    as_json: bool,
) -> int:
    """Print the next ticks of a schedule; the exit code."""

    def work() -> int:
        zone = zone_of(tz)
        schedule = _schedule(cron, interval, rrule, tz, start, day_and)
        after = _moment("--from", begin, zone) if begin is not None else datetime.now(UTC)
        ticks = _with_changes(after, schedule.preview(after, n), zone)
        if as_json:
            print_json(
                {
                    "schedule": schedule.to_json(),
                    "description": schedule.description,
                    "ticks": [
                        {"at": tick.at, "local": tick.at.astimezone(zone), "note": tick.note}
                        for tick in ticks
                    ],
                }
            )
            return 0
        say(schedule.description)
        if ticks:
            say(table(["", tz, "UTC", ""], [_row(tick, zone) for tick in ticks]))
        if len(ticks) < n:
            say("then it is over" if ticks else "nothing: it is over")
        return 0

    return answered(work)


def _schedule(
    cron: str | None,
    interval: float | None,
    rrule: str | None,
    tz: str,
    start: str | None,
    day_and: bool,
) -> Schedule:
    given = [value for value in (cron, interval, rrule) if value is not None]
    if len(given) != 1:
        raise InvalidOption("give one schedule: a cron expression, --interval or --rrule")
    if cron is None and day_and:
        raise InvalidOption("--day-and is for cron expressions")
    if cron is not None and start is not None:
        raise InvalidOption("--start is for --interval and --rrule")
    if cron is not None:
        return Cron(cron, tz, not day_and)
    first = _moment("--start", start, zone_of(tz)) if start is not None else None
    if rrule is not None:
        return RRule(rrule, tz, first)
    assert interval is not None
    return Interval(interval, first)


def _row(tick: Tick, zone: tzinfo) -> list[str]:
    local = tick.at.astimezone(zone)
    return [f"{local:%a}", str(local), str(tick.at.replace(tzinfo=None)), tick.note]


def _moment(option: str, text: str, zone: tzinfo) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidOption(
            f"{option} {text!r} is not understood: give a time such as 2030-01-31T09:00 or"
            " 2030-01-31T09:00+01:00"
        ) from None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=zone)


def _with_changes(after: datetime, ticks: list[Tick], zone: tzinfo) -> list[Tick]:
    """The ticks, each also with the change of the clocks since the one before."""
    told = []
    before = _offset(after, zone)
    for tick in ticks:
        offset = _offset(tick.at, zone)
        change = f"clocks changed from {before} to {offset}" if offset != before else ""
        told.append(Tick(tick.at, "; ".join(filter(None, [tick.note, change]))))
        before = offset
    return told


def _offset(moment: datetime, zone: tzinfo) -> str:
    return moment.astimezone(zone).replace(microsecond=0).isoformat()[19:]
