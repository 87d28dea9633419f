"""A server as the place that commands look at: its answers as the records of a store.

And runs that are begun there, which this process only watches.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any

from asyncflow import codec
from asyncflow.cli.output import (
    EXITS,
    MARKS,
    answered_async,
    between,
    coloured,
    label,
    one_line,
    print_json,
    say,
)
from asyncflow.cli.params import pairs, plain_value
from asyncflow.cli.place import Place
from asyncflow.cli.source import Detail, find_run, not_stopped
from asyncflow.client import Client, Pages
from asyncflow.errors import (
    ServerError,
    ServerTimeout,
    UnknownAutomation,
    UnknownDeployment,
)
from asyncflow.planned import AutomationInfo, Delivery, DeploymentInfo, ScheduleInfo, Tick
from asyncflow.server import models
from asyncflow.states import StateType, default_name
from asyncflow.store.base import (
    ArtifactRow,
    AttemptRow,
    LogRow,
    Page,
    ResultKind,
    RunQuery,
    RunRow,
    StateRow,
    TaskCount,
    TaskRow,
)
from asyncflow.variables import Variable
from asyncflow.views import Event

#: Seconds that a run has to stop when it is cancelled.
PATIENCE = 40.0
#: Rows on a page.
_MANY = 500

_KINDS = {
    "none": ResultKind.NONE,
    "json": ResultKind.JSON,
    "pickle": ResultKind.PICKLE,
    "file": ResultKind.JSON_FILE,
    "not_stored": ResultKind.NOT_STORED,
}


class Server:
    """A server, of which a client asks."""

    def __init__(self, client: Client) -> None:
        self.client = client

    async def runs(self, query: RunQuery) -> Page[RunRow]:
        if not re.fullmatch(r"[0-9a-f-]{0,36}", query.id_prefix):
            return Page([], None)  # no id begins so
        pages = self.client.runs(
            state=[*query.states, *query.names],
            flow=query.flow,
            tags=query.tags,
            parent="roots" if query.parent is None else "any",
            id=query.id_prefix,
            full=True,
            limit=min(query.limit, _MANY),
        )
        rows, more = await _first(pages, query.limit)
        return Page([_run(one) for one in rows], 1 if more else None)

    async def detail(self, row: RunRow) -> Detail:
        found = await self.client.run(row.id)
        story = [
            StateRow(0, _seconds(s.time) or 0.0, s.state, s.state_name, s.message, 0)
            for s in found.story
        ]
        result = json.dumps(found.result.value, ensure_ascii=False, separators=(",", ":"))
        stored = codec.seal(result.encode("utf-8", "surrogatepass"))
        whole = _run(found)._replace(result_kind=_KINDS[found.result.kind], result=stored)
        return Detail(whole, story, [one.model_dump() for one in found.waits])

    async def children(self, row: RunRow) -> list[RunRow]:
        pages = self.client.runs(parent=row.id, full=True, limit=_MANY)
        rows, _ = await _first(pages, 1000)
        return [_run(one) for one in reversed(rows)]

    async def task_counts(self, row: RunRow) -> list[TaskCount]:
        return [
            TaskCount(
                one.task,
                one.state,
                _own_name(one.state, one.state_name),
                one.count,
                _seconds(one.first_started),
                _seconds(one.last_ended),
            )
            for one in await self.client.task_counts(row.id)
        ]

    async def task_runs(
        self, row: RunRow, states: tuple[str, ...] = (), limit: int | None = None
    ) -> list[TaskRow]:
        pages = self.client.task_runs(row.id, state=states, limit=min(limit or _MANY, _MANY))
        rows, _ = await _first(pages, limit)
        return [_task(row.id, one) for one in rows]

    async def attempts(self, row: RunRow) -> list[AttemptRow]:
        return [
            AttemptRow(
                0,
                _seq(row.id, one.task_run_id) or 0,
                one.attempt,
                _seconds(one.started_at),
                _seconds(one.ended_at) or 0.0,
                _seconds(one.retry_at),
                _error(one.error) or b"",
            )
            for one in await self.client.attempts(row.id)
        ]

    async def logs(self, row: RunRow, level: int, text: str) -> AsyncIterator[LogRow]:
        async for one in self.client.logs(row.id, level=level, text=text, limit=_MANY):
            seq = _seq(row.id, one.task_run_id)
            yield LogRow(0, seq, _seconds(one.time) or 0.0, one.level, one.logger, one.message)

    async def artifacts(
        self, row: RunRow, kinds: tuple[str, ...] = (), data: bool = True
    ) -> list[ArtifactRow]:
        return [
            ArtifactRow(
                0,
                0,
                one.id.removeprefix(f"{row.id}:"),
                _seq(row.id, one.task_run_id),
                one.kind,
                one.description,
                json.dumps(one.data).encode() if data else b"",
                _seconds(one.created_at) or 0.0,
                _seconds(one.updated_at) or 0.0,
            )
            async for one in self.client.artifacts(row.id, kind=kinds, data=data)
        ]

    async def deployments(self, name: str | None = None) -> list[DeploymentInfo]:
        try:
            found = (
                await self.client.deployments()
                if name is None
                else [await self.client.deployment(name)]
            )
        except UnknownDeployment:
            return []
        return [_deployment(one) for one in found]

    async def ticks(
        self, name: str, states: tuple[str, ...] = (), limit: int = 200
    ) -> Sequence[Tick]:
        pages = self.client.ticks(name, state=states, limit=min(limit, _MANY))
        rows, _ = await _first(pages, limit)
        return [Tick(deployment=name, **dict(one)) for one in rows]

    async def automations(self, name: str | None = None) -> list[AutomationInfo]:
        try:
            found = (
                await self.client.automations()
                if name is None
                else [await self.client.automation(name)]
            )
        except UnknownAutomation:
            return []
        return [AutomationInfo(**dict(one)) for one in found]

    async def deliveries(
        self,
        automation: str | None = None,
        run: str | None = None,
        states: tuple[str, ...] = (),
        limit: int = 200,
    ) -> list[Delivery]:
        pages = self.client.deliveries(
            automation=automation, run=run, state=states, limit=min(limit, _MANY)
        )
        rows, _ = await _first(pages, limit)
        return [Delivery(**dict(one)) for one in rows]

    async def events(
        self, row: RunRow | None, kinds: tuple[str, ...], since: float | None, limit: int
    ) -> list[Event]:
        pages = self.client.events(
            kinds=kinds,
            run=row.id if row is not None else None,
            since=datetime.fromtimestamp(since, UTC) if since is not None else None,
            limit=min(limit, _MANY),
        )
        rows, _ = await _first(pages, limit)
        return [_event(one) for one in reversed(rows)]

    async def newest_event(self) -> int:
        page = await self.client.events(limit=1)
        return page.items[0].id if page.items else 0

    async def watch(
        self, row: RunRow | None, kinds: tuple[str, ...], after: int
    ) -> AsyncIterator[Event]:
        run = row.id if row is not None else None
        async with aclosing(self.client.stream(kinds=kinds, run=run, after=after)) as events:
            async for one in events:
                yield _event(one)

    async def limits(self) -> list[dict[str, Any]]:
        found = [one.model_dump() for one in await self.client.limits()]
        return [one for one in found if one["scope"] == "shared"]

    async def variables(self, name: str | None = None) -> list[Variable]:
        if name is None:
            return [Variable(**dict(one)) for one in await self.client.variables()]
        try:
            return [Variable(**dict(await self.client.variable(name)))]
        except ServerError as error:
            if error.status == 404:
                return []
            raise

    async def cancel(self, row: RunRow) -> tuple[bool, str, str]:
        if StateType(row.state).is_final:
            return False, row.state, row.state_name
        try:
            await self.client.cancel(row.id)
        except ServerError as error:
            if error.status != 409:
                raise
            found = _run(await self.client.run(row.id))
            if not StateType(found.state).is_final:
                raise
            return False, found.state, found.state_name
        try:
            ended = await self.client.wait(row.id, timeout=PATIENCE)
        except ServerTimeout:
            raise not_stopped(row.id) from None
        return ended.state == StateType.CANCELLED.value, ended.state, ended.state_name

    async def delete(self, row: RunRow) -> int:
        return await self.client.delete(row.id)

    async def answer(self, row: RunRow, data: Any) -> None:
        await self.client.answer(row.id, data)

    async def pause_deployment(self, name: str, schedule: str | None, paused: bool) -> None:
        act = self.client.pause_deployment if paused else self.client.resume_deployment
        await act(name, schedule)

    async def remove_deployment(self, name: str) -> None:
        await self.client.remove_deployment(name)

    async def enable_automation(self, name: str, enabled: bool) -> None:
        await self.client.enable_automation(name, enabled)

    async def remove_automation(self, name: str) -> None:
        await self.client.remove_automation(name)

    async def set_limit(
        self, name: str, limit: float | None, period: float | None, burst: int | None
    ) -> None:
        if limit is None:
            await self.client.lift_limit(name)
        else:
            await self.client.set_limit(name, limit, period, burst)

    async def set_variable(self, name: str, value: Any) -> None:
        await self.client.set_variable(name, value)

    async def delete_variable(self, name: str) -> bool:
        try:
            await self.client.delete_variable(name)
        except ServerError as error:
            if error.status == 404:
                return False
            raise
        return True


# --- records --------------------------------------------------------------------------------------


async def _first(pages: Pages[Any], limit: int | None) -> tuple[list[Any], bool]:
    """The first items of a listing, and whether there are more."""
    rows: list[Any] = []
    async with aclosing(pages.__aiter__()) as items:
        async for one in items:
            if limit is not None and len(rows) == limit:
                return rows, True
            rows.append(one)
    return rows, False


def _seconds(moment: datetime | None) -> float | None:
    return None if moment is None else moment.timestamp()


def _seq(run_id: str, task_run_id: str | None) -> int | None:
    """The number of a task run, of its id."""
    if task_run_id is None:
        return None
    tail = task_run_id.removeprefix(f"{run_id}-")
    return int(tail) if tail.isdigit() else None


def _own_name(state: str, name: str) -> str | None:
    """The name of a state, where it refines its type."""
    return None if name == default_name(StateType(state)) else name


def _error(error: models.Error | None) -> bytes | None:
    """A failure as its record, of which only what people see is there."""
    if error is None:
        return None
    name = f"{error.module}:{error.type}" if error.module else error.type
    record = {"type": name, "text": error.message, "traceback": error.traceback}
    return json.dumps(record).encode()


def _run(one: models.Run) -> RunRow:
    parent = one.parent_id
    return RunRow(
        pk=0,
        id=one.id,
        flow_name=one.flow,
        flow_ref="",
        name="" if one.name == one.flow else one.name,
        parent=0 if parent is not None else None,
        parent_identity=None,
        parent_seq=_seq(parent, one.parent_task_run_id) if parent is not None else None,
        root=0,
        state=one.state,
        state_name=one.state_name,
        message=one.message,
        state_at=0.0,
        parameters=json.dumps(one.parameters or {}).encode(),
        tags=tuple(one.tags),
        created_at=one.created_at.timestamp(),
        started_at=_seconds(one.started_at),
        ended_at=_seconds(one.ended_at),
        deadline_at=None,
        engine=0 if one.is_owned else None,
        epoch=0,
        attempt=one.attempt,
        recoveries=one.recoveries,
        idempotency_key=None,
        version=one.version,
        result_kind=ResultKind.NONE,
        result=None,
        error=_error(one.error),
        ended_by=(),
        origin=one.origin,
        deployment=one.deployment,
        scheduled_at=_seconds(one.scheduled_at),
        cause=one.cause,
    )


def _task(run_id: str, one: models.TaskRun) -> TaskRow:
    return TaskRow(
        run=0,
        seq=one.seq,
        identity=b"",
        task=one.task,
        name=one.name,
        parent=_seq(run_id, one.parent_id),
        state=one.state,
        state_name=_own_name(one.state, one.state_name),
        message=one.message,
        attempt=one.attempts,
        failures=one.failures,
        interruptions=one.interruptions,
        created_at=0.0,
        started_at=_seconds(one.started_at),
        ended_at=_seconds(one.ended_at),
        retry_at=None,
        upstream=tuple(seq for up in one.upstream if (seq := _seq(run_id, up)) is not None),
        tags=tuple(one.tags),
        result_kind=ResultKind.NONE,
        result=None,
        error=_error(one.error),
    )


def _event(one: models.Event) -> Event:
    state = StateType(one.state) if one.state is not None else None
    return Event(**{**dict(one), "state": state})


def _deployment(one: models.Deployment) -> DeploymentInfo:
    schedules = [ScheduleInfo(**dict(schedule)) for schedule in one.schedules]
    known = {k: v for k, v in dict(one).items() if k != "parameter_schema"}
    return DeploymentInfo(**{**known, "schedules": schedules})


# --- runs that are begun there --------------------------------------------------------------------


def follow(
    at: Place,
    begin: Callable[[Client], Awaitable[models.Run]],
    as_json: bool,
    quiet: bool,
) -> int:
    """Begin a run at a server, and wait for its end; the exit code is that of the run."""

    async def work() -> int:
        async with Client(at.server) as client:
            run = await begin(client)
            if not (quiet or as_json):
                say(f"run {run.id} of flow {label(run.flow)}", error=True)
            try:
                await client.wait(run.id)
            except asyncio.CancelledError:
                say(f"it goes on at {client.url}: asyncflow runs watch {run.id}", error=True)
                raise
            return _tell_end(await client.run(run.id), as_json)

    return answered_async(work)


async def run_id_of(client: Client, text: str) -> str:
    """The id of the run that a user means."""
    return (await find_run(Server(client), text)).id


def _tell_end(run: models.RunDetail, as_json: bool) -> int:
    state = StateType(run.state)
    result = run.result.value if state is StateType.COMPLETED else None
    failure = run.error if state is not StateType.COMPLETED else None
    if as_json:
        error = None
        if failure is not None:
            error = {"type": failure.type, "message": failure.message}
        names = (
            "id", "flow", "name", "state", "state_name", "message", "created_at", "started_at",
            "ended_at",
        )  # fmt: skip
        print_json({**{n: getattr(run, n) for n in names}, "result": result, "error": error})
        return EXITS.get(state, 1)
    mark = coloured(state, f"{MARKS[state]} {label(run.name)} {label(run.state_name)}")
    took = between(run.started_at, run.ended_at)
    say(f"{mark} in {took}" if took else mark, error=True)
    if result is not None:
        say(one_line(repr(result), 2000))
    elif failure is not None:
        say(f"  {one_line(f'{failure.type}: {failure.message}', 500)}", error=True)
        say(f"look into it with: asyncflow runs show {run.id}", error=True)
    elif run.message:
        say(f"  {one_line(run.message, 500)}", error=True)
    return EXITS.get(state, 1)


def parameters_of(params: Sequence[str], schema: dict[str, Any] | None) -> dict[str, Any]:
    """Parameters by name; what only takes text, as a schema says, is taken as it stands.

    Args:
        schema: of the parameters, in JSON; None: it is not known.

    Raises:
        InvalidParameters: one is not NAME=VALUE, or its file cannot be read.
    """
    properties = (schema or {}).get("properties", {})
    return {
        name: plain_value(text, _takes_text(properties.get(name, {}), text))
        for name, text in pairs("--param", params)
    }


def _takes_text(schema: dict[str, Any], text: str) -> bool:
    kinds = {one.get("type") for one in schema.get("anyOf", [schema])}
    return kinds == {"string"} or (kinds == {"string", "null"} and text != "null")


__all__ = ["Server", "follow", "parameters_of", "run_id_of"]
