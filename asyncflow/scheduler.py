"""Starts the runs of deployments when they are due: the shell around `asyncflow.ticking`.

One scheduler belongs to one engine, and runs the deployments that this engine was given. Any
number of engines may have the same ones: a tick is a row with a unique key, written in the same
transaction as its run, so whoever is first has it and the others see that it is taken.

It wakes for the next tick, and at least every second, to see what others have changed, what
the clock says (it may have jumped), and whether queued runs may begin.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, Any

from asyncflow import codec
from asyncflow.deployments import Deployment, DeploymentSchedule, plain
from asyncflow.errors import (
    AsyncflowError,
    DeploymentBusy,
    InvalidOption,
    InvalidParameters,
    UnknownDeployment,
)
from asyncflow.registry import find, reference
from asyncflow.rounds import Rounds
from asyncflow.store import planning
from asyncflow.store.base import EventRow, RunRow, StateRow
from asyncflow.store.planning import (
    TAKEN,
    BackfillRow,
    Begin,
    Begun,
    DeploymentRow,
    Planning,
    ScheduleRow,
    TickRow,
    TickState,
)
from asyncflow.ticking import Note, Plan, plan

if TYPE_CHECKING:
    from asyncflow.engine import Engine
    from asyncflow.flows import Flow
    from asyncflow.handle import FlowRun
    from asyncflow.run import Run

#: Seconds between two looks at what others have changed.
LOOK = 1.0
#: Schedules that one transaction deals with, so that the first runs need not wait for the last.
BATCH = 20
#: Ticks of one backfill.
MOST_BACKFILLED = 10_000


@dataclass(slots=True, eq=False)
class Served:
    """A deployment that this engine runs."""

    declared: Deployment
    row: DeploymentRow
    schedules: dict[int, One] = field(default_factory=dict)
    queued: bool = True  # there may be ticks that wait for room


@dataclass(slots=True, eq=False)
class One:
    """One schedule of a served deployment."""

    served: Served
    declared: DeploymentSchedule
    row: ScheduleRow
    owner_paused: bool
    next_at: float | None = None

    @property
    def paused(self) -> str:
        if self.owner_paused:
            return "the deployment is paused"
        if self.row.paused:
            return self.row.reason or "the schedule is paused"
        return ""


@dataclass(slots=True)
class Intent:
    """A run that is prepared, and the row by which it would begin."""

    one: Served
    run: Run
    begin: Begin
    late: float = 0.0


class Scheduler(Rounds):
    """The deployments of one engine."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine, "schedules", LOOK)
        self._served: dict[str, Served] = {}
        self._lent: dict[str, Served] = {}  # whose backfills are run here, and no schedules
        self._backfills: set[int] = set()
        self._heap: list[tuple[float, int, One]] = []
        self._count = 0
        self._seen: object = None
        self._last = engine.clock.time()

    # --- what it runs ---------------------------------------------------------------------------

    async def deploy(self, declared: Deployment, source: str = "code") -> DeploymentRow:
        """Make a deployment known, and run it from now on."""
        engine = self._engine
        row, schedules = await engine.writer.do(lambda: self._store_deployment(declared, source))
        served = Served(declared, row)
        self._served[row.name] = served
        self._take(served, schedules)
        self.look()
        return row

    def _store_deployment(
        self, declared: Deployment, source: str
    ) -> tuple[DeploymentRow, list[ScheduleRow]]:
        engine, now = self._engine, self._engine.clock.time()
        flow = declared.flow
        spec = declared.spec(self._plain(declared, declared.parameters))
        row = DeploymentRow(
            0, declared.name, flow.name, reference(flow), json.dumps(spec).encode(), source,
            declared.paused, now, now,
        )  # fmt: skip
        schedules = [
            ScheduleRow(
                0, 0, one.shown,
                json.dumps(one.to_json(self._plain(declared, one.parameters))).encode(),
                one.paused, "", now, now, now,
            )
            for one in declared.schedules
        ]  # fmt: skip
        return engine.store.plan(lambda p: p.deploy(row, schedules, now))

    def _plain(self, declared: Deployment, parameters: Any) -> Any:
        return plain(declared.flow.parameters.store(dict(parameters), self._engine.masker))

    async def serve_stored(self) -> list[str]:
        """Run all deployments of the store whose code is found; the names of the others."""
        engine = self._engine
        unknown = []
        for row in await engine.writer.do(lambda: engine.store.plan(lambda p: p.deployments())):
            if row.name in self._served:
                continue
            try:
                served = await self._loaded(row)
            except AsyncflowError as error:
                engine.report(f"the deployment {row.name!r} is not run here: {error}")
                unknown.append(row.name)
                continue
            self._served[row.name] = served
            for one in served.schedules.values():
                self._push(one, engine.clock.time())
        self.look()
        return unknown

    async def _loaded(self, row: DeploymentRow) -> Served:
        """A deployment as it is stored."""
        engine = self._engine
        flow = find(row.flow_ref, row.flow_name)
        spec = json.loads(row.spec)
        parameters = _decoded(flow, spec.pop("parameters"))
        known = {k: v for k, v in spec.items() if k in Deployment.__dataclass_fields__}
        declared = Deployment(flow=flow, name=row.name, parameters=parameters, **known)
        served = Served(declared, row)
        schedules = await engine.writer.do(lambda: engine.store.plan(lambda p: p.schedules(row.id)))
        self._take(served, schedules, push=False)
        return served

    def _take(self, served: Served, rows: Iterable[ScheduleRow], *, push: bool = True) -> None:
        """Go on with the schedules of a deployment as they are stored now."""
        own = {one.shown: one for one in served.declared.schedules}
        before, served.schedules = served.schedules, {}
        for row in rows:
            known = before.get(row.id)
            if known is not None and known.row.spec == row.spec:
                row = row._replace(position=max(row.position, known.row.position))
                changed = row != known.row or known.owner_paused != served.row.paused
                known.row, known.owner_paused = row, served.row.paused
                served.schedules[row.id] = known
                if changed:
                    self._push(known, self._engine.clock.time())
                continue
            declared = own.get(row.name)
            if declared is None or json.loads(row.spec)["schedule"] != declared.schedule.to_json():
                declared = self._declared(served, row)
            one = One(served, declared, row, served.row.paused)
            served.schedules[row.id] = one
            if push:
                self._push(one, self._engine.clock.time())

    @staticmethod
    def _declared(served: Served, row: ScheduleRow) -> DeploymentSchedule:
        """A schedule that is in the store only, or was changed there."""
        spec = json.loads(row.spec)
        made = DeploymentSchedule.from_json(row.name, spec)
        object.__setattr__(
            made, "parameters", _decoded(served.declared.flow, spec.get("parameters") or {})
        )
        return made

    def _push(self, one: One, at: float) -> None:
        one.next_at = at
        self._count += 1
        heappush(self._heap, (at, self._count, one))

    # --- the clock ------------------------------------------------------------------------------

    @property
    def active(self) -> bool:
        return bool(self._served or self._backfills)

    async def round(self) -> float:
        await self._due()
        await self._see_changes()
        await self._fill()
        first = self._heap[0][0] - self._engine.clock.time() if self._heap else LOOK
        return min(max(first, 0.0), LOOK)

    async def aclose(self) -> None:
        self._served.clear()
        self._lent.clear()
        await super().aclose()

    # --- ticks ----------------------------------------------------------------------------------

    async def _due(self) -> None:
        """Deal with all schedules that have something due."""
        clock = self._engine.clock
        now = clock.time()
        if now < self._last - 1.0:
            # The clock went back: what was next is looked for again. No tick runs twice for it.
            for at, _, one in self._heap:
                one.next_at = min(at, now)
            self._heap = [(now, n, one) for _, n, one in self._heap]
            heapify(self._heap)
        self._last = now
        due: list[tuple[One, Plan]] = []
        while self._heap and self._heap[0][0] <= now and self._engine.usable_still:
            at, _, one = heappop(self._heap)
            if one.next_at != at or self._served.get(one.served.row.name) is not one.served:
                continue  # another entry is the right one
            if one.served.schedules.get(one.row.id) is not one:
                continue
            one.next_at = None
            found = self._plan(one, now)
            if found.next_at is not None:
                self._push(one, max(found.next_at, now + 1e-3))
            if found.run or found.notes:
                due.append((one, found))
            if len(due) >= BATCH:
                await self._deal(due, now)
                due, now = [], clock.time()
        if due:
            await self._deal(due, now)

    def _plan(self, one: One, now: float) -> Plan:
        served, row = one.served, one.row
        timing = one.declared.timing(f"{served.row.name}/{row.name}", one.paused)
        return plan(timing, row.position, now, served.declared.policy)

    async def _deal(self, due: list[tuple[One, Plan]], now: float) -> None:
        """Record what is due of some schedules, and start the runs that it begins."""
        engine = self._engine
        intents: list[Intent] = []
        notes: list[tuple[TickRow, EventRow]] = []
        for one, found in due:
            notes += [self._note(one, note, now) for note in found.notes]
            for tick in found.run:
                try:
                    intents.append(self._intend(one, tick, now))
                except AsyncflowError as error:
                    why = f"its run cannot be begun: {error}"
                    notes.append(self._note(one, Note(tick, tick, 1, "SKIPPED", why), now))
        moves = [(one.row.id, found.position) for one, found in due]

        def work(plans: Planning) -> list[Begun]:
            told = [event for tick, event in notes if plans.note([tick])]
            begun = [plans.begin(intent.begin, now) for intent in intents]
            for intent, what in zip(intents, begun, strict=True):
                told += self._events(intent, what, now)
            for schedule, position in moves:
                plans.advance(schedule, position)
            plans.emit(told)
            return begun

        try:
            begun = await engine.writer.do(lambda: engine.store.plan(work))
        except BaseException:
            for one, _ in due:
                self._push(one, now + LOOK)
            raise
        for one, found in due:
            one.row = one.row._replace(position=max(found.position, one.row.position))
        for intent, what in zip(intents, begun, strict=True):
            self._settle(intent, what)

    def _intend(self, one: One, tick: float, now: float) -> Intent:
        served, name = one.served, one.served.row.name
        run, row, state = self._prepare(
            served,
            one.declared.parameters,
            key=f"schedule:{served.row.id}/{one.row.id}:{tick:.6f}",
            scheduled_at=tick,
            cause=f"schedule:{one.row.name}",
        )
        declared = served.declared
        late = now - tick - one.declared.jitter_seconds
        if late > declared.late_seconds:
            message = f"begun {late:,.0f} s after its time"
            row = row._replace(state_name="Late", message=message)
            state = state._replace(state_name="Late", message=message)
        planned = TickRow(one.row.id, tick, served.row.id, TickState.RUN, "", None, None, now)
        begin = Begin(
            served.row.id, name, row, state, declared.overlap, declared.concurrency_limit, planned
        )
        return Intent(served, run, begin, late if late > declared.late_seconds else 0.0)

    def _prepare(
        self,
        served: Served,
        parameters: Any,
        *,
        key: str | None,
        scheduled_at: float | None = None,
        cause: str | None = None,
        tags: Iterable[str] = (),
        run_name: str | None = None,
    ) -> tuple[Run, RunRow, StateRow]:
        declared = served.declared
        return self._engine.flows.prepare(
            declared.flow,
            (),
            {**declared.parameters, **parameters},
            idempotency_key=key,
            tags=frozenset(declared.tags) | frozenset(tags),
            run_name=run_name,
            deployment=served.row.name,
            scheduled_at=scheduled_at,
            cause=cause,
        )

    def _note(self, one: One, note: Note, now: float) -> tuple[TickRow, EventRow]:
        served = one.served
        tick = TickRow(
            one.row.id, note.tick, served.row.id, note.state, note.reason, None, None, now,
            note.count, note.until,
        )  # fmt: skip
        kind = "schedule.missed" if note.state == TickState.MISSED else "schedule.skipped"
        return tick, self._event(kind, served, one.row.name, tick, now)

    def _events(self, intent: Intent, what: Begun, now: float) -> list[EventRow]:
        tick = intent.begin.tick
        assert tick is not None
        one = intent.one.schedules.get(tick.schedule)
        name = one.row.name if one is not None else ""
        if what.state in (TickState.SKIPPED, TickState.QUEUED):
            kind = "schedule.skipped" if what.state == TickState.SKIPPED else "schedule.queued"
            row = tick._replace(reason=what.reason)
            return [self._event(kind, intent.one, name, row, now)]
        if what.run is not None and intent.late:
            row = tick._replace(reason=f"begun {intent.late:,.0f} s after its time")
            return [self._event("schedule.late", intent.one, name, row, now, what.run)]
        return []

    @staticmethod
    def _event(
        kind: str,
        served: Served,
        schedule: str,
        tick: TickRow,
        now: float,
        run: RunRow | None = None,
    ) -> EventRow:
        payload = {
            "deployment": served.row.name,
            "flow": served.row.flow_name,
            "schedule": schedule,
            "tick": tick.tick,
            "count": tick.count,
            "until": tick.until or tick.tick,
            "reason": tick.reason,
        }
        return EventRow(
            0, run.pk if run is not None else 0, now, "", "", tick.reason, 0, kind, None,
            json.dumps(payload).encode(),
        )  # fmt: skip

    def _settle(self, intent: Intent, what: Begun) -> None:
        """Start a run that was made; keep in mind that one waits for room."""
        if what.run is not None:
            self._start(intent, what.run)
        elif what.state == TickState.QUEUED:
            intent.one.queued = True
            if intent.begin.overlap == "cancel_running":
                self._engine.cancel_live_of(intent.begin.name, "a newer run takes its place")

    def _start(self, intent: Intent, row: RunRow) -> FlowRun[Any]:
        engine = self._engine
        engine.flows.adopt(intent.run, row)
        return engine.start_run(intent.run)

    # --- what waits for room --------------------------------------------------------------------

    def ended(self, deployment: str) -> None:
        """A run of a deployment has ended: there may be room for another."""
        served = self._served.get(deployment) or self._lent.get(deployment)
        if served is not None and (served.queued or self._backfills):
            self.look()

    async def _fill(self) -> None:
        """Begin queued ticks, and those of backfills, as far as there is room."""
        for served in list(self._served.values()):
            if served.queued:
                served.queued = await self._begin_queued(served, None)
        if self._served or self._backfills:
            await self._fill_backfills()

    async def _fill_backfills(self) -> None:
        engine = self._engine
        found = await engine.reader.planned(planning.backfills(unfinished=True))
        self._backfills = set()
        for row in found:
            served = next((s for s in self._known() if s.row.id == row.deployment), None)
            if served is None:
                continue
            self._backfills.add(row.id)
            if not await self._begin_queued(served, row.id):
                await self._end_backfill(row.id)
                self._backfills.discard(row.id)

    async def _begin_queued(self, served: Served, backfill: int | None) -> bool:
        """Begin what waits of a deployment; whether something still does."""
        engine = self._engine
        while engine.usable_still:
            number = served.row.id
            found = await engine.reader.planned(planning.queued(number, backfill))
            if not found:
                return False
            for tick in found:
                intent = self._queued_intent(served, tick)
                if intent is None:
                    continue
                begun = await self._begin_one(intent.begin)
                if begun.run is not None:
                    self._start(intent, begun.run)
                elif begun.state != TAKEN:
                    return True
        return True

    async def _end_backfill(self, number: int) -> None:
        engine, now = self._engine, self._engine.clock.time()
        await engine.writer.do(lambda: engine.store.plan(lambda p: p.end_backfill(number, now)))

    async def _begin_one(self, begin: Begin) -> Begun:
        store = self._engine.store
        return await self._engine.writer.do(lambda: store.plan(lambda p: p.begin_queued(begin)))

    def _queued_intent(self, served: Served, tick: TickRow) -> Intent | None:
        one = served.schedules.get(tick.schedule)
        if one is None:
            return None
        cause = f"schedule:{one.row.name}"
        if tick.backfill is not None:
            cause = f"backfill:{tick.backfill}"
        run, row, state = self._prepare(
            served,
            one.declared.parameters,
            key=f"schedule:{served.row.id}/{one.row.id}:{tick.tick:.6f}",
            scheduled_at=tick.tick,
            cause=cause,
        )
        declared = served.declared
        begin = Begin(
            served.row.id, served.row.name, row, state, declared.overlap,
            declared.concurrency_limit, tick,
        )  # fmt: skip
        return Intent(served, run, begin)

    # --- what others change ---------------------------------------------------------------------

    async def _see_changes(self) -> None:
        """Take over what was paused, resumed, changed or removed, by whichever process."""
        if not self._served:
            return
        engine = self._engine

        ((version, asked),) = await engine.reader.planned(planning.version())
        engine.commands.seen(asked)
        if version == self._seen:
            return
        self._seen = version
        rows = await engine.reader.planned(planning.deployments())
        schedules = await engine.reader.planned(planning.schedules())
        found = {
            row.name: (row, [one for one in schedules if one.deployment == row.id]) for row in rows
        }
        for name, served in list(self._served.items()):
            known = found.get(name)
            if known is None or known[0].id != served.row.id:
                del self._served[name]  # it was removed
                continue
            served.row = known[0]
            self._take(served, known[1])
        if self._heap and self._heap[0][0] <= engine.clock.time():
            self._again = True

    # --- on demand ------------------------------------------------------------------------------

    async def run_now(
        self,
        name: str,
        parameters: dict[str, Any] | None = None,
        *,
        idempotency_key: str | None = None,
        tags: Iterable[str] = (),
        run_name: str | None = None,
        cause: str | None = None,
    ) -> FlowRun[Any]:
        """Start a run of a deployment.

        Raises:
            UnknownDeployment: there is none of that name.
            UnknownFlow: its code is not found here.
            DeploymentBusy: its overlap policy does not allow another run now.
            InvalidParameters: they do not fit.
        """
        engine = self._engine
        if idempotency_key is not None:
            # Before anything else, as the run that has it may itself be in the way of another.
            known = await engine.find_by_key(idempotency_key)
            if known is not None:
                return known
        served = await self._find(name)
        run, row, state = self._prepare(
            served,
            parameters or {},
            key=idempotency_key,
            cause=cause,
            tags=tags,
            run_name=run_name,
        )
        declared = served.declared
        begin = Begin(served.row.id, name, row, state, declared.overlap, declared.concurrency_limit)
        now = engine.clock.time()
        begun = await engine.writer.do(lambda: engine.store.plan(lambda p: p.begin(begin, now)))
        if begun.run is not None:
            return self._start(Intent(served, run, begin), begun.run)
        if begun.state == TAKEN and idempotency_key is not None:
            found = await engine.find_by_key(idempotency_key)
            if found is not None:
                return found
        raise DeploymentBusy(f"the deployment {name!r} starts no run now: {begun.reason}")

    async def flow_of(self, name: str) -> Flow[..., Any]:
        """The flow of a deployment, imported where it is not known yet."""
        return (await self._find(name)).declared.flow

    async def _find(self, name: str) -> Served:
        served = self._served.get(name)
        if served is not None:
            return served
        engine = self._engine
        row = await engine.writer.do(lambda: engine.store.plan(lambda p: p.deployment(name)))
        if row is None:
            raise UnknownDeployment.named(name)
        # For one run, or a backfill: its schedules are not for this engine.
        return await self._loaded(row)

    def serves(self, name: str) -> bool:
        """Whether the schedules of a deployment are run here."""
        return name in self._served

    def _known(self) -> list[Served]:
        """The deployments that are run here, and those of which only a backfill is."""
        return [*self._served.values(), *self._lent.values()]

    async def backfill(
        self,
        name: str,
        start: datetime,
        end: datetime,
        *,
        schedule: str | None = None,
        max_concurrency: int = 1,
    ) -> tuple[BackfillRow, int, int]:
        """Run the ticks of a schedule from *start* until before *end* that have not run.

        Returns:
            The row, how many ticks are queued, and how many had run already.
        """
        for given, moment in (("start", start), ("end", end)):
            if not isinstance(moment, datetime) or moment.tzinfo is None:
                raise InvalidOption(f"{given}={moment!r}: give an aware datetime")
        if end <= start:
            raise InvalidOption(
                f"the end {end.isoformat()} is not after the start {start.isoformat()}"
            )
        if not isinstance(max_concurrency, int) or max_concurrency < 1:
            raise InvalidOption(f"max_concurrency={max_concurrency!r}: give 1 or more")
        engine = self._engine
        served = await self._find(name)
        ones = list(served.schedules.values())
        fitting = [one for one in ones if schedule is None or one.row.name == schedule]
        if len(fitting) != 1:
            names = ", ".join(repr(one.row.name) for one in ones) or "none"
            raise InvalidOption(f"say which schedule of {name!r} to backfill: it has {names}")
        row, declared = fitting[0].row, fitting[0].declared
        ticks: list[float] = []
        first = datetime.fromtimestamp(start.timestamp() - 1e-6, start.tzinfo)
        for moment in declared.schedule.ticks(first):
            if moment >= end:
                break
            ticks.append(moment.timestamp())
            if len(ticks) > MOST_BACKFILLED:
                raise InvalidOption(
                    f"from {start.isoformat()} to {end.isoformat()} there are more than"
                    f" {MOST_BACKFILLED:,} ticks of {row.name!r}: backfill a shorter time"
                )
        now = engine.clock.time()
        made = BackfillRow(
            0, row.deployment, row.id, start.timestamp(), end.timestamp(), max_concurrency, now,
            None,
        )  # fmt: skip
        done = await engine.writer.do(
            lambda: engine.store.plan(lambda p: p.add_backfill(made, ticks))
        )
        self._backfills.add(done[0].id)
        if name not in self._served:
            self._lent[name] = served
        self.look()
        return done

    async def pause(self, name: str, schedule: str | None, paused: bool) -> None:
        """Pause or resume a deployment, or one of its schedules."""
        engine, now = self._engine, self._engine.clock.time()
        known = await engine.writer.do(lambda: engine.store.plan(lambda p: p.deployment(name)))
        if known is None:
            raise UnknownDeployment.named(name)
        count = await engine.writer.do(
            lambda: engine.store.plan(lambda p: p.pause(name, schedule, paused, now))
        )
        if schedule is not None and not count:
            raise UnknownDeployment(f"the deployment {name!r} has no schedule {schedule!r}")
        self.look()

    async def remove(self, name: str) -> None:
        """Forget a deployment; its runs stay."""
        engine = self._engine
        if not await engine.writer.do(lambda: engine.store.plan(lambda p: p.remove(name))):
            raise UnknownDeployment.named(name)
        self._served.pop(name, None)


def _decoded(flow: Any, parameters: dict[str, Any]) -> dict[str, Any]:
    """Stored parameters as values."""
    found: dict[str, Any] = {}
    for name, value in parameters.items():
        if isinstance(value, dict) and value.get("$") == "secret":
            raise InvalidParameters(
                f"flow {flow.name!r}: the parameter {name!r} is or holds a secret and was not"
                " stored: deploy it in code where it is run"
            )
        found[name] = codec.decode(json.dumps(value).encode())
    return found
