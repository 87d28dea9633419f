"""Deployments, schedules and events, as an engine offers them to its users."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, cast

from asyncflow import codec
from asyncflow.context import ENGINE, current_call, current_run
from asyncflow.deployments import Deployment, DeploymentSchedule, deployment
from asyncflow.errors import (
    InvalidOption,
    NoEngine,
    NotSerializable,
    UnknownAutomation,
    UnknownDeployment,
)
from asyncflow.parameters import masked
from asyncflow.store import planning
from asyncflow.store.base import EventQuery, EventRow
from asyncflow.ticking import upcoming
from asyncflow.views import Listing, moment

if TYPE_CHECKING:
    from asyncflow.automating import Automations
    from asyncflow.automations import Automation
    from asyncflow.clock import Clock
    from asyncflow.commanding import Commands
    from asyncflow.engine import Engine
    from asyncflow.flows import Flow
    from asyncflow.handle import FlowRun
    from asyncflow.journal import Journal
    from asyncflow.masking import Masker
    from asyncflow.notifications.channels import Channel
    from asyncflow.scheduler import Scheduler
    from asyncflow.store.base import RunRow
    from asyncflow.store.planning import (
        BackfillRow,
        DeliveryRow,
        DeploymentRow,
        ScheduleRow,
        TickRow,
    )
    from asyncflow.triggers import Firing

#: Seconds between two looks at whether a backfill has ended.
_PATIENCE = 0.2
#: Seconds after which a tick that nobody has dealt with is late.
_LATE = 5.0
#: Bytes of the payload of an event.
MOST_BYTES = 64 * 1024
_KIND = re.compile(r"[\w][\w.:-]{0,199}")
#: What only asyncflow itself tells.
_OURS = ("flow-run.", "task-run.", "schedule.", "automation.", "delivery.", "command.")


@dataclass(slots=True, kw_only=True)
class ScheduleInfo:
    """A schedule of a deployment, as it is stored.

    Attributes:
        name: unique in its deployment.
        schedule: in short, such as its cron expression and zone.
        next_at: its next ticks, aware, in UTC; none while it is paused.
        late_since: the first tick that nobody has dealt with though its time is over; None: all
            is well. No engine that is open has the deployment then, or it is stuck.
        paused: whether it is, and `reason` why, where nobody did it by hand.
    """

    name: str
    schedule: str
    parameters: dict[str, Any]
    paused: bool
    reason: str
    next_at: list[datetime]
    late_since: datetime | None
    start: datetime | None
    end: datetime | None
    jitter_seconds: float


@dataclass(slots=True, kw_only=True)
class DeploymentInfo:
    """A deployment, as it is stored; secrets in its parameters are masked."""

    name: str
    flow_name: str
    description: str
    version: str | None
    parameters: dict[str, Any]
    tags: list[str]
    overlap: str
    concurrency_limit: int
    catchup: str
    catchup_limit: int
    paused: bool
    source: str
    created_at: datetime | None
    updated_at: datetime | None
    schedules: list[ScheduleInfo] = field(default_factory=list)
    ticks: dict[str, int] = field(default_factory=dict)  #: how many, by state


@dataclass(slots=True, kw_only=True)
class Tick:
    """What became of a planned instant, or of `count` of them up to `until`.

    Attributes:
        state: RUN, QUEUED, SKIPPED or MISSED.
        reason: why it did not run.
        run_id: the run that it began.
        decided_at: when that was decided.
        backfill: the number of the backfill that it is of.
    """

    deployment: str
    schedule: str
    tick: datetime
    until: datetime
    count: int
    state: str
    reason: str
    run_id: str | None
    backfill: int | None
    decided_at: datetime


@dataclass(slots=True, kw_only=True)
class AutomationInfo:
    """An automation, as it is stored.

    Attributes:
        trigger, actions: as plain JSON.
        fired: how often it has fired, and `fired_at` when it did last.
    """

    name: str
    description: str
    enabled: bool
    tags: list[str]
    trigger: dict[str, Any]
    actions: list[dict[str, Any]]
    source: str
    fired: int
    fired_at: datetime | None
    created_at: datetime | None
    updated_at: datetime | None


@dataclass(slots=True, kw_only=True)
class Delivery:
    """Something that an automation has to do, or has done.

    Attributes:
        action: the number of the action in its automation; `kind` what it is.
        key: the firing that it is for; it is unique with automation and action.
        state: pending, sending, delivered, failed, or suppressed (by the guard against loops).
        error: why it has failed, or failed last; `reply` what came of it.
        next_at: when it is tried again.
    """

    id: int
    automation: str
    action: int
    kind: str
    channel: str
    key: str
    run_id: str | None
    event_id: int
    state: str
    attempts: int
    error: str
    reply: str
    created_at: datetime | None
    next_at: datetime | None
    ended_at: datetime | None


class Plans:
    """The part of an engine that is about deployments, events and automations."""

    scheduler: Scheduler | None
    automator: Automations | None

    if TYPE_CHECKING:
        # What the engine has, of which this is a part.
        reader: Any
        clock: Clock
        journal: Journal
        masker: Masker
        durability: str
        commands: Commands

        def check_open(self) -> None: ...
        async def stored_run(self, run_id: str) -> RunRow: ...

    async def deploy(
        self,
        what: Any,
        name: str | None = None,
        *,
        cron: str | Iterable[str] | None = None,
        interval: float | timedelta | None = None,
        rrule: str | None = None,
        timezone: str | None = None,
        schedule: Any = None,
        schedules: Iterable[Any] = (),
        source: str = "code",
        **options: Any,
    ) -> DeploymentInfo:
        """Store a deployment, and run it in this engine as long as it is open.

        Whoever deploys the same again changes nothing. A schedule that is another than it was
        begins now: what is past never runs. One that is declared no more is paused.

        Args:
            what: a flow, with a name and options as of `Deployment`; or a `Deployment`.
            cron, interval, rrule, timezone, schedule, schedules: when it runs by itself.

        Raises:
            InvalidOption, InvalidParameters: the declaration is wrong.
            StoreError: it could not be stored.
        """
        self.check_open()
        if isinstance(what, Deployment):
            declared = what
        else:
            if not hasattr(what, "call_spec"):
                raise InvalidOption(f"{what!r} is no flow and no Deployment: give one of them")
            declared = deployment(
                what, name or what.name, cron=cron, interval=interval, rrule=rrule,
                timezone=timezone, schedule=schedule, schedules=schedules, **options,
            )  # fmt: skip
        row = await self.planner().deploy(declared, source)
        await self.commands.begin()
        return await self.deployment(row.name)

    async def serve(self) -> list[str]:
        """Run all deployments of the store whose code is found, and watch for all automations.

        It does so as long as this engine is open.

        Returns:
            The names of deployments whose code is not found.
        """
        self.check_open()
        self.automations_of().serve_stored()
        unknown = await self.planner().serve_stored()
        await self.commands.begin()
        return unknown

    async def run_deployment(
        self,
        name: str,
        parameters: dict[str, Any] | None = None,
        *,
        idempotency_key: str | None = None,
        tags: str | Iterable[str] = (),
        run_name: str | None = None,
    ) -> FlowRun[Any]:
        """Start a run of a deployment, with other parameters where they are given.

        Raises:
            UnknownDeployment, UnknownFlow: there is none, or its code is not found here.
            DeploymentBusy: its `overlap` does not allow another run now.
            InvalidParameters: they do not fit.
        """
        self.check_open()
        return await self.planner().run_now(
            name,
            parameters,
            idempotency_key=idempotency_key,
            tags=(tags,) if isinstance(tags, str) else tuple(tags),
            run_name=run_name,
        )

    async def backfill(
        self,
        name: str,
        start: datetime,
        end: datetime,
        *,
        schedule: str | None = None,
        max_concurrency: int = 1,
    ) -> tuple[int, int]:
        """Run the ticks of the past, from *start* until before *end*, that have not run.

        They run oldest first, `max_concurrency` at once, beside the runs of the schedule; they
        are durable, so that they go on after a restart.

        Returns:
            The number of the backfill, and how many ticks it runs.
        """
        self.check_open()
        row, queued, _ = await self.planner().backfill(
            name, start, end, schedule=schedule, max_concurrency=max_concurrency
        )
        return row.id, queued

    async def backfilled(self, name: str, number: int) -> dict[str, int]:
        """Wait until all runs of a backfill have ended: how many, by state.

        It waits for others only as long as this engine is open, and runs that are interrupted
        count as they are.
        """
        engine = cast("Engine", self)
        while engine.usable_still:
            rows: list[BackfillRow] = await self.reader.planned(planning.backfills())
            row = next((row for row in rows if row.id == number), None)
            if row is None:
                raise UnknownDeployment(f"there is no backfill {number}")
            if row.ended_at is not None or engine.stopping:
                break
            await asyncio.sleep(_PATIENCE)
        states: dict[str, int] = {}
        cursor: str | None = None
        while True:
            page = await self.ticks(name, limit=1000, cursor=cursor)
            for tick in page:
                if tick.backfill == number and tick.run_id is not None:
                    state = (await engine.wait(tick.run_id)).type.value
                    states[state] = states.get(state, 0) + 1
            cursor = page.next_cursor
            if cursor is None:
                return states

    async def deployed_flow(self, name: str) -> Flow[..., Any]:
        """The flow of a deployment.

        Raises:
            UnknownDeployment, UnknownFlow: there is none, or its code is not found here.
        """
        self.check_open()
        return await self.planner().flow_of(name)

    async def pause_deployment(self, name: str, schedule: str | None = None) -> None:
        """Let a deployment, or one of its schedules, start no runs by itself."""
        self.check_open()
        await self.planner().pause(name, schedule, True)

    async def resume_deployment(self, name: str, schedule: str | None = None) -> None:
        """The opposite of `pause_deployment`. What has passed meanwhile does not run."""
        self.check_open()
        await self.planner().pause(name, schedule, False)

    async def remove_deployment(self, name: str) -> None:
        """Forget a deployment, its schedules and what became of their ticks. Its runs stay."""
        self.check_open()
        await self.planner().remove(name)

    async def deployments(self) -> list[DeploymentInfo]:
        """All deployments, by name."""
        self.check_open()
        return await infos(self.reader, self.clock.time())

    async def deployment(self, name: str) -> DeploymentInfo:
        """One deployment, with the counts of its ticks.

        Raises:
            UnknownDeployment: there is none of that name.
        """
        self.check_open()
        found = await infos(self.reader, self.clock.time(), name)
        if not found:
            raise UnknownDeployment.named(name)
        return found[0]

    async def ticks(
        self,
        name: str,
        *,
        states: str | Iterable[str] = (),
        since: datetime | None = None,
        limit: int = 200,
        cursor: str | None = None,
    ) -> Listing[Tick]:
        """What became of the ticks of a deployment, newest first."""
        self.check_open()
        return await tick_listing(
            self.reader,
            name,
            states=(states,) if isinstance(states, str) else tuple(states),
            since=since,
            limit=limit,
            cursor=cursor,
        )

    async def emit(
        self,
        kind: str,
        payload: Any = None,
        *,
        run_id: str | None = None,
        message: str = "",
    ) -> None:
        """Tell that something happened, for automations and for who looks at events.

        It is on disk when this returns.

        Args:
            kind: such as "orders.imported"; those of asyncflow itself are refused.
            payload: plain data, at most 64 KiB as JSON.
            run_id: the run that it is about.
        """
        self.check_open()
        pk, seq = 0, None
        if run_id is not None:
            pk = (await self.stored_run(run_id)).pk
        elif (run := current_run()) is not None and run.engine is self:
            call = current_call()
            pk, seq = run.pk, call.seq if call is not None else None
        self.journal.event(self._event_row(kind, payload, pk, seq, message))
        if self.durability != "off":
            await self.journal.durable()

    # --- automations ----------------------------------------------------------------------------

    async def automate(self, automation: Automation, *, source: str = "code") -> AutomationInfo:
        """Store an automation, and watch for it as long as this engine is open.

        It sees what happens from now on; one that is declared again as it was goes on where it
        was, so that what happened while no engine was there counts.

        Raises:
            InvalidOption, AutomationLoop: it is wrong, or would fire itself.
        """
        self.check_open()
        await self.automations_of().add(automation, source)
        return await self.automation(automation.name)

    def add_channel(self, channel: Channel) -> None:
        """Send what is for this channel, as long as this engine is open.

        A channel lives in the process that declares it: of it, only its name is stored.
        """
        self.check_open()
        self.automations_of().add_channel(channel)

    async def send_test(self, channel: str | Channel) -> str:
        """Send a test message through a channel, now; what came of it.

        Raises:
            UnknownChannel: none of that name was added to this engine.
            DeliveryFailed: it could not be sent.
        """
        self.check_open()
        return await self.automations_of().send_test(channel)

    async def automations(self) -> list[AutomationInfo]:
        """All automations, by name."""
        self.check_open()
        return await automation_infos(self.reader)

    async def automation(self, name: str) -> AutomationInfo:
        """One automation.

        Raises:
            UnknownAutomation: there is none of that name.
        """
        self.check_open()
        found = await automation_infos(self.reader, name)
        if not found:
            raise UnknownAutomation.named(name)
        return found[0]

    async def enable_automation(self, name: str, enabled: bool = True) -> None:
        """Switch an automation on or off. What happens while it is off never fires it."""
        self.check_open()
        await self.automations_of().enable(name, enabled)

    async def remove_automation(self, name: str) -> None:
        """Forget an automation; its deliveries stay as long as others."""
        self.check_open()
        await self.automations_of().remove(name)

    async def deliveries(
        self,
        *,
        automation: str | None = None,
        run_id: str | None = None,
        states: str | Iterable[str] = (),
        limit: int = 200,
        cursor: str | None = None,
    ) -> Listing[Delivery]:
        """What automations have to do and have done, newest first."""
        self.check_open()
        return await delivery_listing(
            self.reader,
            automation=automation,
            run=run_id,
            states=(states,) if isinstance(states, str) else tuple(states),
            limit=limit,
            cursor=cursor,
        )

    async def test_automation(
        self, automation: Automation | str, *, since: datetime | None = None
    ) -> list[Firing]:
        """When an automation would have fired on the stored events. Nothing is done.

        Args:
            since: only events from then on.
        """
        self.check_open()
        return await dry_run(self.reader, automation, self.clock.time(), since)

    def automations_of(self) -> Automations:
        """What watches for automations, made when it is first needed."""
        if self.automator is None:
            from asyncflow.automating import Automations

            self.automator = Automations(cast("Engine", self))
            self.journal.happened = self.automator.happened
        return self.automator

    def planner(self) -> Scheduler:
        """The scheduler, made when it is first needed."""
        if self.scheduler is None:
            from asyncflow.scheduler import Scheduler

            self.scheduler = Scheduler(cast("Engine", self))
        return self.scheduler

    def _event_row(
        self,
        kind: Any,
        payload: Any,
        run: int,
        seq: int | None,
        message: str,
    ) -> EventRow:
        if not isinstance(kind, str) or not _KIND.fullmatch(kind) or kind.startswith(_OURS):
            raise InvalidOption(
                f"event {kind!r}: give a name of letters, digits and . : - _, which does not begin"
                f" with {', '.join(_OURS)}"
            )
        try:
            data = codec.encode(payload)
        except NotSerializable as error:
            raise InvalidOption(
                f"the payload of the event {kind!r} is no plain data: {error}"
            ) from None
        data = self.masker.data(data)
        if len(data) > MOST_BYTES:
            raise InvalidOption(
                f"the payload of the event {kind!r} takes {len(data):,} bytes, and at most"
                f" {MOST_BYTES:,} are kept: store it elsewhere, and tell where"
            )
        now = self.clock.time()
        text = self.masker.text(str(message))[:500]
        return EventRow(0, run, now, "", "", text, 0, kind, seq, data)


async def emit_event(kind: str, payload: Any = None, *, message: str = "") -> None:
    """Tell that something happened, in a flow or task; in a flow run it is about that run.

    Args:
        kind: such as "orders.imported".
        payload: plain data, at most 64 KiB as JSON.
        message: in words.

    Raises:
        NoEngine: neither a run nor an engine is at hand.
    """
    run = current_run()
    engine: Engine | None = run.engine if run is not None else ENGINE.get()
    if engine is None:
        raise NoEngine("emit_event needs an engine: call it in a flow, or use engine.emit(...)")
    await engine.emit(kind, payload, message=message)


# --- what is stored, for people -----------------------------------------------------------------


async def infos(reader: Any, now: float, name: str | None = None) -> list[DeploymentInfo]:
    """The deployments of a store, or one of them."""
    rows: list[DeploymentRow] = await reader.planned(planning.deployments(name))
    one = rows[0].id if name is not None and rows else None
    schedules: list[ScheduleRow] = await reader.planned(planning.schedules(one)) if rows else []
    counts: dict[int, dict[str, int]] = {}
    for owner, state, count in await reader.planned(planning.tick_counts(one)):
        counts.setdefault(owner, {})[state] = count
    found = []
    for row in rows:
        own = [s for s in schedules if s.deployment == row.id]
        found.append(_info(row, own, counts.get(row.id, {}), now))
    return found


async def late_schedules(reader: Any, now: float) -> list[tuple[str, str, float]]:
    """The schedules of which nobody has dealt with a tick: deployment, name, and since when."""
    rows: list[DeploymentRow] = await reader.planned(planning.deployments())
    owners = {row.id: row for row in rows}
    schedules: list[ScheduleRow] = await reader.planned(planning.schedules()) if rows else []
    found = (
        (owners[one.deployment].name, one.name, _late_since(one, owners[one.deployment], now))
        for one in schedules
        if one.deployment in owners
    )
    return sorted((owner, name, since) for owner, name, since in found if since is not None)


def _late_since(row: ScheduleRow, owner: DeploymentRow, now: float) -> float | None:
    """The first tick that nobody has dealt with though its time is over."""
    if row.paused or owner.paused:
        return None
    declared = DeploymentSchedule.from_json(row.name, json.loads(row.spec))
    timing = declared.timing(f"{owner.name}/{row.name}")
    due = next(iter(upcoming(timing, row.position, 1)), None)
    return due[0] if due is not None and due[1] < now - _LATE else None


def _info(
    row: DeploymentRow, schedules: list[ScheduleRow], counts: dict[str, int], now: float
) -> DeploymentInfo:
    spec = json.loads(row.spec)
    return DeploymentInfo(
        name=row.name,
        flow_name=row.flow_name,
        description=spec["description"],
        version=spec["version"],
        parameters=masked(json.dumps(spec["parameters"]).encode()),
        tags=spec["tags"],
        overlap=spec["overlap"],
        concurrency_limit=spec["concurrency_limit"],
        catchup=spec["catchup"],
        catchup_limit=spec["catchup_limit"],
        paused=row.paused,
        source=row.source,
        created_at=moment(row.created_at),
        updated_at=moment(row.updated_at),
        schedules=[_schedule_info(one, row, now) for one in schedules],
        ticks=counts,
    )


def _schedule_info(row: ScheduleRow, owner: DeploymentRow, now: float) -> ScheduleInfo:
    spec = json.loads(row.spec)
    declared = DeploymentSchedule.from_json(row.name, spec)
    next_at: list[datetime] = []
    if not (row.paused or owner.paused):
        timing = declared.timing(f"{owner.name}/{row.name}")
        next_at = [t for at, _ in upcoming(timing, now, 3) if (t := moment(at)) is not None]
    return ScheduleInfo(
        name=row.name,
        schedule=str(declared.schedule),
        parameters=masked(json.dumps(spec.get("parameters") or {}).encode()),
        paused=row.paused,
        reason=row.reason,
        next_at=next_at,
        late_since=moment(_late_since(row, owner, now)),
        start=declared.start,
        end=declared.end,
        jitter_seconds=declared.jitter_seconds,
    )


async def tick_listing(
    reader: Any,
    name: str,
    *,
    states: tuple[str, ...] = (),
    since: datetime | None = None,
    limit: int = 200,
    cursor: str | None = None,
) -> Listing[Tick]:
    """What became of the ticks of a deployment, newest first.

    Raises:
        UnknownDeployment: there is none of that name.
    """
    rows: list[DeploymentRow] = await reader.planned(planning.deployments(name))
    if not rows:
        raise UnknownDeployment.named(name)
    names = {s.id: s.name for s in await reader.planned(planning.schedules(rows[0].id))}
    found: list[TickRow] = await reader.planned(
        planning.ticks(
            rows[0].id,
            [state.upper() for state in states],
            since.timestamp() if since is not None else None,
            _before(cursor),
            limit + 1,
        )
    )
    last = found[limit - 1] if len(found) > limit else None
    ticks = [_tick(name, names.get(row.schedule, ""), row) for row in found[:limit]]
    return Listing(ticks, f"{last.tick!r}:{last.schedule}" if last is not None else None)


def _before(cursor: str | None) -> tuple[float, int] | None:
    if cursor is None:
        return None
    tick, _, schedule = str(cursor).partition(":")
    try:
        return float(tick), int(schedule)
    except ValueError:
        raise InvalidOption(f"cursor={cursor!r} is not one that a listing gave") from None


def _tick(deployment: str, schedule: str, row: TickRow) -> Tick:
    tick, until, at = (moment(x) for x in (row.tick, row.until, row.at))
    assert tick is not None
    assert until is not None
    assert at is not None
    return Tick(
        deployment=deployment,
        schedule=schedule,
        tick=tick,
        until=until,
        count=row.count,
        state=row.state,
        reason=row.reason,
        run_id=row.run,
        backfill=row.backfill,
        decided_at=at,
    )


async def automation_infos(reader: Any, name: str | None = None) -> list[AutomationInfo]:
    """The automations of a store, or one of them."""
    found = []
    for row in await reader.planned(planning.automations(name)):
        spec = json.loads(row.spec)
        found.append(
            AutomationInfo(
                name=row.name,
                description=spec.get("description", ""),
                enabled=row.enabled,
                tags=list(spec.get("tags", ())),
                trigger=spec["trigger"],
                actions=spec["actions"],
                source=row.source,
                fired=row.fired,
                fired_at=moment(row.fired_at),
                created_at=moment(row.created_at),
                updated_at=moment(row.updated_at),
            )
        )
    return found


async def delivery_listing(
    reader: Any,
    *,
    automation: str | None = None,
    run: str | None = None,
    states: tuple[str, ...] = (),
    limit: int = 200,
    cursor: str | None = None,
) -> Listing[Delivery]:
    """Deliveries, newest first."""
    if cursor is not None and not (cursor.isascii() and cursor.isdigit()):
        raise InvalidOption(f"cursor={cursor!r} is not one that a listing gave")
    rows: list[DeliveryRow] = await reader.planned(
        planning.deliveries(
            automation=automation,
            run=run,
            states=states,
            before=int(cursor) if cursor is not None else None,
            limit=limit + 1,
        )
    )
    shown = [
        Delivery(
            id=row.id,
            automation=row.automation,
            action=row.action,
            kind=row.kind,
            channel=row.channel,
            key=row.key,
            run_id=row.run,
            event_id=row.event,
            state=row.state,
            attempts=row.attempts,
            error=row.error,
            reply=row.reply,
            created_at=moment(row.created_at),
            next_at=moment(row.next_at),
            ended_at=moment(row.ended_at),
        )
        for row in rows[:limit]
    ]
    return Listing(shown, str(shown[-1].id) if len(rows) > limit else None)


async def dry_run(
    reader: Any, automation: Automation | str, now: float, since: datetime | None
) -> list[Firing]:
    """When an automation would have fired on the stored events.

    Raises:
        UnknownAutomation: there is none of that name.
    """
    from asyncflow.automating import record_of
    from asyncflow.automations import automation_from_dict
    from asyncflow.triggers import replay

    if isinstance(automation, str):
        rows = await reader.planned(planning.automations(automation))
        if not rows:
            raise UnknownAutomation.named(automation)
        automation = automation_from_dict(json.loads(rows[0].spec))
    start = since.timestamp() if since is not None else None
    records, after = [], 0
    while True:
        page = await reader.events(EventQuery(since=start, after=after, limit=1000))
        infos = await reader.run_infos(sorted({row.run for row in page.rows} - {0}))
        records += [record_of(row, infos.get(row.run)) for row in page.rows]
        if page.next_cursor is None:
            return replay(automation, records, now, start)
        after = page.next_cursor


__all__ = [
    "AutomationInfo",
    "Delivery",
    "DeploymentInfo",
    "Plans",
    "ScheduleInfo",
    "Tick",
    "automation_infos",
    "delivery_listing",
    "dry_run",
    "emit_event",
    "infos",
    "tick_listing",
]
