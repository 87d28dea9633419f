"""``asyncflow serve``, ``deployments ...``, ``schedules ...`` and ``events ls|watch``."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from asyncflow.cli.output import (
    MARKS,
    answered_async,
    coloured,
    label,
    local,
    one_line,
    paragraph,
    print_json,
    print_json_line,
    say,
    table,
)
from asyncflow.cli.params import parse
from asyncflow.cli.place import Place
from asyncflow.cli.running import (
    Session,
    guarded,
    import_from_here,
    say_started,
    tell_end,
)
from asyncflow.cli.source import check_exists, find_run, looking
from asyncflow.configfile import Declared, declare, find_file, load
from asyncflow.errors import InvalidOption, UnknownDeployment
from asyncflow.planned import DeploymentInfo, ScheduleInfo, Tick
from asyncflow.views import Event

if TYPE_CHECKING:
    from asyncflow.client import Client
    from asyncflow.server.models import Run


def instant(text: str, name: str) -> datetime:
    """A point in time as people write it; without a zone it is in that of this machine."""
    try:
        found = datetime.fromisoformat(text)
        found = found if found.tzinfo is not None else found.astimezone()
        found.astimezone(UTC)  # not all of the first and the last day is there in UTC
    except (ValueError, OverflowError):
        raise InvalidOption(
            f"{name} {text!r} is no date: write 2026-01-31, or 2026-01-31T09:00+01:00"
        ) from None
    return found


# --- serve ----------------------------------------------------------------------------------------


def serve_targets(
    *,
    targets: tuple[str, ...],
    cron: tuple[str, ...],
    interval: float | None,
    timezone: str | None,
    name: str | None,
    params: tuple[str, ...],
    config: str | None,
    db: str | None,
    quiet: bool,
) -> int:
    """Run deployments until it is told to stop."""

    session = Session(db, "strict", False, quiet)

    async def work() -> int:
        import_from_here()
        declared = _declared(targets, cron, interval, timezone, name, params)
        from_file = _from_file(config, bool(targets))
        async with session.opened():
            engine = session.engine
            if from_file is not None:
                await declare(engine, from_file)
            for one in declared:
                await engine.deploy(one)
            unknown = [] if targets else await engine.serve()
            await engine.recover()
            found = await engine.deployments()
            if not found:
                raise InvalidOption(
                    "there is no deployment in this database: give FILE.py:FLOW, with --cron or"
                    " --interval, or deploy one in code"
                )
            served = [d for d in found if d.name not in unknown]
            own = {one.name for one in declared}
            for one in served:
                if not targets or one.name in own:
                    say(f"serving {label(one.name)}: {_schedules(one)}", error=True)
            await session.until_signalled()
        return session.signal_code()

    return guarded(work, False)


def _from_file(config: str | None, targets: bool) -> Declared | None:
    """What the configuration declares; targets stand alone unless it is named."""
    if config is not None:
        return load(Path(config))
    found = None if targets else find_file(Path.cwd())
    return load(found) if found is not None else None


def _declared(
    targets: tuple[str, ...],
    cron: tuple[str, ...],
    interval: float | None,
    timezone: str | None,
    name: str | None,
    params: tuple[str, ...],
) -> list[Any]:
    from asyncflow.target import find_deployments

    found = []
    for target in targets:
        found += find_deployments(target)
    options: dict[str, Any] = {}
    if cron:
        options["cron"] = cron
    if interval is not None:
        options["interval"] = interval
    if timezone is not None:
        options["timezone"] = timezone
    given = bool(options or params) or name is not None
    made = []
    for one in found:
        if hasattr(one, "call_spec"):
            parameters = {"parameters": parse(one, params)} if params else {}
            made.append(one.to_deployment(name, **options, **parameters))
        elif given:
            raise InvalidOption(
                f"{one.name!r} is a deployment already: give --cron and its like with a flow"
            )
        else:
            made.append(one)
    return made


def _schedules(one: DeploymentInfo) -> str:
    if not one.schedules:
        return "without a schedule"
    return ", ".join(
        f"{one_line(s.schedule)}{' (paused)' if s.paused or one.paused else ''}"
        for s in one.schedules
    )


# --- deployments ----------------------------------------------------------------------------------


def list_deployments(*, at: Place, as_json: bool) -> int:
    """``deployments ls``."""

    async def work() -> int:
        async with looking(at) as place:
            found = await place.deployments()
        if as_json:
            print_json([asdict(one) for one in found])
            return 0
        if not found:
            say("no deployments yet: flow.serve(...), engine.deploy(...) or asyncflow serve")
            return 0
        rows = [
            (
                label(one.name),
                label(one.flow_name),
                "paused" if one.paused else "",
                _next(one.schedules),
                _counts(one),
                _schedules(one),
            )
            for one in found
        ]
        say(table(("DEPLOYMENT", "FLOW", "", "NEXT", "TICKS", "SCHEDULES"), rows))
        return 0

    return answered_async(work)


def list_schedules(*, at: Place, as_json: bool) -> int:
    """``schedules ls``."""

    async def work() -> int:
        async with looking(at) as place:
            found = await place.deployments()
            last: dict[tuple[str, str], Tick] = {}
            for one in found:
                for newest in await place.ticks(one.name, limit=100):
                    last.setdefault((one.name, newest.schedule), newest)
        pairs = [(one, schedule) for one in found for schedule in one.schedules]
        if as_json:
            print_json(
                [
                    {
                        "deployment": one.name,
                        **asdict(schedule),
                        "last": _plain_tick(last.get((one.name, schedule.name))),
                    }
                    for one, schedule in pairs
                ]
            )
            return 0
        if not pairs:
            say("no schedules yet: flow.serve(...), engine.deploy(...) or asyncflow serve")
            return 0
        rows = []
        for one, schedule in pairs:
            tick = last.get((one.name, schedule.name))
            state = (
                ""
                if tick is None
                else click.style(tick.state.lower(), fg=_TICK_COLOURS.get(tick.state))
            )
            rows.append(
                (
                    label(one.name),
                    label(schedule.name),
                    "paused" if one.paused or schedule.paused else "",
                    _next([schedule]),
                    local(tick.tick) if tick is not None else "",
                    state,
                    one_line(tick.reason, 100) if tick is not None else "",
                )
            )
        say(table(("DEPLOYMENT", "SCHEDULE", "", "NEXT", "LAST", "", "REASON"), rows))
        return 0

    return answered_async(work)


def _next(schedules: list[ScheduleInfo]) -> str:
    """The next tick of some schedules; or since when nobody deals with what is due."""
    late = min((s.late_since for s in schedules if s.late_since is not None), default=None)
    if late is not None:
        return click.style(f"late since {local(late)}", fg="red")
    return local(min((s.next_at[0] for s in schedules if s.next_at), default=None))


def _plain_tick(tick: Tick | None) -> dict[str, Any] | None:
    return asdict(tick) if tick is not None else None


def _counts(one: DeploymentInfo) -> str:
    return ", ".join(f"{count:,} {state.lower()}" for state, count in sorted(one.ticks.items()))


def show_deployment(*, name: str, limit: int, at: Place, as_json: bool) -> int:
    """``deployments show``."""

    async def work() -> int:
        async with looking(at) as place:
            found = await place.deployments(name)
            if not found:
                raise UnknownDeployment.named(name)
            ticks = await place.ticks(name, limit=limit)
        one = found[0]
        if as_json:
            print_json({**asdict(one), "newest_ticks": [asdict(tick) for tick in ticks]})
            return 0
        state = click.style(" (paused)", fg="yellow") if one.paused else ""
        say(f"{click.style(label(one.name), bold=True)}{state}: flow {label(one.flow_name)}")
        if one.description:
            say(f"  {one_line(one.description, 200)}")
        say(
            f"  overlap {one.overlap}, at most {one.concurrency_limit} at once, catch-up"
            f" {one.catchup}"
        )
        for key, value in one.parameters.items():
            say(f"  {label(key)} = {one_line(json.dumps(value, default=str), 200)}")
        for schedule in one.schedules:
            say(f"  {label(schedule.name)}{_pause(schedule.paused, schedule.reason)}")
            if schedule.late_since is not None:
                text = f"late since {local(schedule.late_since)}: no open engine has it"
                say(click.style(f"    {text}", fg="red"))
            for moment in schedule.next_at:
                say(f"    next {local(moment)}")
        if one.ticks:
            say(f"  ticks: {_counts(one)}")
            _say_ticks(ticks)
        return 0

    return answered_async(work)


def _pause(paused: bool, reason: str) -> str:
    if not paused:
        return ""
    return click.style(f" (paused{': ' + one_line(reason) if reason else ''})", fg="yellow")


_TICK_COLOURS = {"RUN": "green", "QUEUED": "blue", "SKIPPED": "yellow", "MISSED": "red"}


def _say_ticks(ticks: Any) -> None:
    rows = [
        (
            local(tick.tick),
            click.style(tick.state.lower(), fg=_TICK_COLOURS.get(tick.state)),
            f"{tick.count:,}" if tick.count > 1 else "",
            label(tick.schedule),
            tick.run_id or "",
            one_line(tick.reason, 200),
        )
        for tick in ticks
    ]
    say(table(("TICK", "", "", "SCHEDULE", "RUN", "REASON"), rows))


def list_ticks(*, name: str, states: tuple[str, ...], limit: int, at: Place, as_json: bool) -> int:
    """``deployments ticks``."""

    async def work() -> int:
        async with looking(at) as place:
            ticks = await place.ticks(name, states, limit)
        if as_json:
            print_json([asdict(tick) for tick in ticks])
        elif ticks:
            _say_ticks(ticks)
        else:
            say("no ticks yet")
        return 0

    return answered_async(work)


def run_deployment(
    *,
    name: str,
    params: tuple[str, ...],
    run_name: str | None,
    idempotency_key: str | None,
    at: Place,
    as_json: bool,
    quiet: bool,
) -> int:
    """``deployments run``: here, or at a server, to its end."""
    if at.server is not None:
        return _run_there(name, params, run_name, idempotency_key, at, as_json, quiet)
    session = Session(at.db, "strict", as_json, quiet or as_json)

    async def work() -> int:
        check_exists(session.db)
        import_from_here()
        async with session.opened():
            engine = session.engine
            given = parse(await engine.deployed_flow(name), params) if params else None
            run = await engine.run_deployment(
                name, given, run_name=run_name, idempotency_key=idempotency_key
            )
            say_started(session, run)
            state = await run.wait()
        return tell_end(session, run, state)

    return guarded(work, as_json)


def _run_there(
    name: str,
    params: tuple[str, ...],
    run_name: str | None,
    idempotency_key: str | None,
    at: Place,
    as_json: bool,
    quiet: bool,
) -> int:
    from asyncflow.cli.remote import follow, parameters_of

    async def begin(client: Client) -> Run:
        given = None
        if params:
            schema = (await client.deployment(name)).parameter_schema
            given = parameters_of(params, schema)
        return await client.run_deployment(
            name, given, run_name=run_name, idempotency_key=idempotency_key
        )

    return follow(at, begin, as_json, quiet)


def pause_deployment(
    *, name: str, schedule: str | None, paused: bool, at: Place, as_json: bool
) -> int:
    """``deployments pause`` and ``resume``."""

    async def work() -> int:
        async with looking(at) as place:
            await place.pause_deployment(name, schedule, paused)
            (found,) = await place.deployments(name)
        if as_json:
            print_json(asdict(found))
        else:
            what = label(name) if schedule is None else f"{label(schedule)} of {label(name)}"
            say(f"{what} is {'paused' if paused else 'on: what has passed meanwhile does not run'}")
        return 0

    return answered_async(work)


def remove_deployment(*, name: str, at: Place, as_json: bool) -> int:
    """``deployments delete``."""

    async def work() -> int:
        async with looking(at) as place:
            await place.remove_deployment(name)
        if as_json:
            print_json({"removed": name})
        else:
            say(f"removed {label(name)}; its runs are kept")
        return 0

    return answered_async(work)


def backfill_deployment(
    *,
    name: str,
    start: str,
    end: str,
    schedule: str | None,
    max_concurrency: int,
    db: str | None,
    as_json: bool,
    quiet: bool,
) -> int:
    """``deployments backfill``: here, to its end."""
    session = Session(db, "strict", as_json, quiet or as_json)

    async def work() -> int:
        since, until = instant(start, "--start"), instant(end, "--end")
        check_exists(session.db)
        import_from_here()
        async with session.opened():
            engine = session.engine
            flow = await engine.deployed_flow(name)
            number, queued = await engine.backfill(
                name, since, until, schedule=schedule, max_concurrency=max_concurrency
            )
            if not as_json:
                say(f"backfill {number} of flow {label(flow.name)}: {queued:,} runs", error=True)
            done = await engine.backfilled(name, number)
        if as_json:
            print_json({"backfill": number, "ticks": queued, "states": done})
        else:
            told = ", ".join(f"{n:,} {state.lower()}" for state, n in sorted(done.items()))
            say(f"backfill {number}: {told or 'nothing was left to run'}")
        if session.signal is not None:
            return session.signal_code()
        return 0 if set(done) <= {"COMPLETED"} else 1

    return guarded(work, as_json)


# --- events ---------------------------------------------------------------------------------------


def list_events(
    *,
    kinds: tuple[str, ...],
    run_id: str | None,
    since: str | None,
    limit: int,
    watch: bool,
    at: Place,
    as_json: bool,
) -> int:
    """``events ls`` (the newest, oldest first) and ``events watch`` (what comes)."""

    async def work() -> int:
        async with looking(at) as place:
            run = await find_run(place, run_id) if run_id is not None else None
            start = instant(since, "--since").timestamp() if since is not None else None
            newest = await place.newest_event() if watch else 0
            events = []
            if not watch or since is not None:
                events = await place.events(run, kinds, start, limit)
            if not watch:
                if as_json:
                    print_json([asdict(event) for event in events])
                elif events:
                    for event in events:
                        _say_event(event)
                else:
                    say("no events")
                return 0
            for event in events:
                _tell(event, as_json)
            after = max([newest, *(event.id for event in events)])
            async for event in place.watch(run, kinds, after):
                _tell(event, as_json)
        return 0

    return answered_async(work)


def _tell(event: Event, as_json: bool) -> None:
    if as_json:
        print_json_line(asdict(event))
    else:
        _say_event(event)


def _say_event(event: Event) -> None:
    mark = coloured(event.state, MARKS[event.state]) if event.state is not None else "•"
    about = event.task_run_id or event.run_id
    payload = ""
    if event.payload is not None and not event.message:
        payload = one_line(json.dumps(event.payload, default=str, ensure_ascii=False), 200)
    parts = [local(event.time), mark, click.style(label(event.kind), bold=True), about]
    text = paragraph(event.message) if event.message else payload
    say("  ".join(part for part in (*parts, text) if part))


__all__ = [
    "backfill_deployment",
    "instant",
    "list_deployments",
    "list_events",
    "list_schedules",
    "list_ticks",
    "pause_deployment",
    "remove_deployment",
    "run_deployment",
    "serve_targets",
    "show_deployment",
]
