"""The REST API: each route with what it takes and gives; handlers that ask the engine's store.

Ids are parsed before anything is looked up; all text goes out as JSON; a result is shown only
where it is stored as JSON in its row.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from asyncflow import __version__, codec, standing
from asyncflow.automations import automation_from_dict
from asyncflow.calls import inputs_of
from asyncflow.configfile import schedules_from_json
from asyncflow.deployments import Deployment
from asyncflow.errors import (
    AlreadyAnswered,
    AsyncflowError,
    DeploymentBusy,
    InvalidOption,
    InvalidParameters,
    MissingExtra,
    RunNotResumable,
    StoreError,
    UnknownAutomation,
    UnknownDeployment,
    UnknownFlow,
    UnknownRun,
    UnknownTask,
)
from asyncflow.parameters import masked
from asyncflow.planned import (
    automation_infos,
    delivery_listing,
    infos,
    late_schedules,
    tick_listing,
)
from asyncflow.registry import declared
from asyncflow.rows import task_row
from asyncflow.server import models
from asyncflow.server.asking import (
    Accepted,
    ask,
    command_json,
    refuse_secrets,
    refuse_secrets_of,
)
from asyncflow.server.markdown import safe_html
from asyncflow.server.security import MOST_BODY, Problem
from asyncflow.standing import look
from asyncflow.states import StateType, default_name, types_and_names
from asyncflow.store import planning
from asyncflow.store.base import (
    ArtifactQuery,
    AttemptRow,
    EventQuery,
    LogQuery,
    Reader,
    ResultKind,
    RunQuery,
    RunRow,
    TaskCount,
    TaskQuery,
    TaskRow,
)
from asyncflow.variables import stored
from asyncflow.views import as_it_is, events_of, including_dead, moment
from asyncflow.why import Reason, held_json, limit_json, limits, reason_json, why, with_others

if TYPE_CHECKING:
    from aiohttp import web

    from asyncflow.engine import Engine

_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
#: Runs that a summary counts at most.
MOST_COUNTED = 20_000
#: Characters of inputs, and lines of progress, that are shown of a run.
MOST_INPUTS, MOST_PROGRESS = 2_000, 20
#: Spans between two tasks that are looked at for the edges of a graph.
MOST_EDGES = 5_000
#: Rows that are looked at for one page of runs whose process has died, and in one question.
MOST_LOOKED_AT, AT_ONCE = 5_000, 500
#: Names of states in which a run waits for a person; and with those that no engine has.
_FOR_PEOPLE = ("NeedsAttention", "Paused")
_ATTENTION = (*_FOR_PEOPLE, "Interrupted")
#: Words for several states.
_TOGETHER = {
    "not_completed": tuple(s.value for s in StateType if s is not StateType.COMPLETED),
    "attention": (StateType.PAUSED.value,),
}
_KINDS = {
    ResultKind.NONE: "none",
    ResultKind.JSON: "json",
    ResultKind.PICKLE: "pickle",
    ResultKind.NOT_STORED: "not_stored",
    ResultKind.JSON_FILE: "file",
    ResultKind.PICKLE_FILE: "file",
}

Handle = Callable[..., Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Route:
    """One thing that can be asked."""

    method: str
    path: str
    handle: Handle
    gives: Any
    about: str
    query: type[BaseModel] | None = None
    body: type[BaseModel] | None = None
    public: bool = False
    asks: bool = False  #: it may be that it is only asked for


ROUTES: list[Route] = []


def route(
    method: str,
    path: str,
    gives: Any,
    *,
    query: type[BaseModel] | None = None,
    body: type[BaseModel] | None = None,
    public: bool = False,
    asks: bool = False,
) -> Callable[[Handle], Handle]:
    """Declare a route; the first line of the handler's docstring says what it is for."""

    def declare(handle: Handle) -> Handle:
        about = inspect.getdoc(handle) or ""
        made = Route(method, f"/api{path}", handle, gives, about, query, body, public, asks)
        ROUTES.append(made)
        return handle

    return declare


@dataclass(slots=True)
class Api:
    """What handlers ask.

    Attributes:
        engine: whose store is shown.
        embedded: whether runs may be carried out in this process, because their code is at home
            in it. Else what needs user code is asked of engines that have it.
    """

    engine: Engine
    embedded: bool
    names: dict[str, Any] = field(default_factory=dict)

    @property
    def reader(self) -> Reader:
        return self.engine.reader

    async def row(self, run_id: str) -> RunRow:
        """The row of a run.

        Raises:
            Problem: the id is none, or there is no such run.
        """
        if not _ID.fullmatch(run_id):
            raise Problem(404, "that is no id of a run", kind="UnknownRun")
        row = await self.reader.find_run(run_id)
        if row is None:
            raise Problem(404, "there is no run with this id", kind="UnknownRun")
        return self.shown(row)

    def shown(self, row: RunRow) -> RunRow:
        """A row as it is: of a run whose process has died, what it is until it is recovered."""
        if row.engine is None or StateType(row.state).is_final:
            return row
        return row if self.engine.recovery.is_alive(row.engine) else as_it_is(row)


def answer_of(error: Exception) -> Problem:
    """What an error of asyncflow is in HTTP."""
    kind = type(error).__name__ if type(error).__module__ == "asyncflow.errors" else ""
    match error:
        case UnknownRun() | UnknownDeployment() | UnknownAutomation() | UnknownTask():
            return Problem(404, str(error), kind=kind)
        case RunNotResumable() | DeploymentBusy() | AlreadyAnswered() | UnknownFlow():
            return Problem(409, str(error), kind=kind)
        case InvalidParameters() | InvalidOption():
            return Problem(422, str(error), kind=kind)
        case StoreError():
            return Problem(503, str(error), kind=kind)
        case ValueError():
            return Problem(422, str(error), kind=kind)
        case AsyncflowError():
            return Problem(409, str(error), kind=kind)
    return Problem(500, "something went wrong here; the log of the server says what")


async def taken(request: web.Request, asked: Route) -> dict[str, Any]:
    """What a request brings, checked: arguments of its handler.

    Raises:
        Problem: it does not fit.
    """
    found: dict[str, Any] = dict(request.match_info)
    if asked.query is not None:
        found["q"] = _query(request, asked.query)
    elif request.query:
        raise Problem(422, f"this path takes no parameter {next(iter(request.query))[:50]!r}")
    if asked.body is not None:
        found["body"] = await _body(request, asked.body)
    return found


def _query(request: web.Request, model: type[BaseModel]) -> BaseModel:
    given: dict[str, Any] = {}
    for name in request.query:
        field_ = model.model_fields.get(name)
        values = request.query.getall(name)
        is_list = field_ is not None and "list[" in str(field_.annotation)
        if not is_list and len(values) > 1:
            raise Problem(422, f"give {name[:50]!r} once")
        given[name] = values if is_list else values[0]
    return _checked(model, given)


async def _body(request: web.Request, model: type[BaseModel]) -> BaseModel:
    # Not by what the application around it allows.
    data = b""
    while chunk := await request.content.read(65_536):
        data += chunk
        if len(data) > MOST_BODY:
            raise Problem(413, f"a request has at most {MOST_BODY:,} bytes")
    try:
        given = json.loads(data) if data.strip() else {}
    except (ValueError, RecursionError):
        raise Problem(400, "the body is no JSON") from None
    if not isinstance(given, dict):
        raise Problem(422, "the body must be a JSON object")
    return _checked(model, given)


def _checked(model: type[BaseModel], given: dict[str, Any]) -> BaseModel:
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise Problem(422, models.misfit(error)) from None


# --- what is shown --------------------------------------------------------------------------------


def _duration(start: float | None, end: float | None, final: bool, now: float) -> float | None:
    if start is None:
        return None
    if end is None and final:
        return None
    return max(0.0, (end if end is not None else now) - start)


def run_json(row: RunRow, ids: dict[int, str], now: float, full: bool = False) -> dict[str, Any]:
    """A run as JSON; in full: with its parameters and its error."""
    final = StateType(row.state).is_final
    parent = ids.get(row.parent) if row.parent is not None else None
    more: dict[str, Any] = {}
    if full:
        more = {"parameters": masked(row.parameters), "error": _error(row.error)}
    return {
        "id": row.id,
        "flow": row.flow_name,
        "name": row.name or row.flow_name,
        "state": row.state,
        "state_name": row.state_name,
        "message": row.message,
        "created_at": moment(row.created_at),
        "started_at": moment(row.started_at),
        "ended_at": moment(row.ended_at),
        "duration": _duration(row.started_at, row.ended_at, final, now),
        "tags": list(row.tags),
        "parent_id": parent,
        "parent_task_run_id": f"{parent}-{row.parent_seq}" if parent and row.parent_seq else None,
        "is_owned": row.engine is not None,
        "attempt": row.attempt,
        "recoveries": row.recoveries,
        "deployment": row.deployment,
        "scheduled_at": moment(row.scheduled_at),
        "cause": row.cause,
        "origin": row.origin,
        "version": row.version,
        **more,
    }


async def runs_json(api: Api, rows: list[RunRow], full: bool = False) -> list[dict[str, Any]]:
    """Runs as JSON, with the ids of their parents."""
    parents = sorted({row.parent for row in rows if row.parent is not None})
    found = await api.reader.run_infos(parents) if parents else {}
    ids = {pk: info.id for pk, info in found.items()}
    now = api.engine.clock.time()
    return [run_json(api.shown(row), ids, now, full) for row in rows]


def _error(stored: bytes | None) -> dict[str, Any] | None:
    """A stored failure, as text: nothing is rebuilt."""
    if stored is None:
        return None
    try:
        found = json.loads(stored)
    except ValueError:
        found = {"text": "the stored error cannot be read"}
    module, _, name = str(found.get("type", "")).rpartition(":")
    return {
        "type": name,
        "module": module,
        "message": str(found.get("text", ""))[:20_000],
        "traceback": str(found.get("traceback", ""))[:50_000],
    }


def _result(kind: int, result: bytes | None) -> dict[str, Any]:
    value: Any = None
    if kind == ResultKind.JSON and result is not None:
        try:
            value = json.loads(codec.unsealed(result))
        except (ValueError, AsyncflowError):
            return {"kind": "json", "value": None, "bytes": len(result)}
    size = len(result) if result is not None else 0
    return {"kind": _KINDS.get(kind, "none"), "value": value, "bytes": size}


def task_json(run_id: str, row: TaskRow, now: float) -> dict[str, Any]:
    """A task run as JSON."""
    state = StateType(row.state)
    return {
        "id": f"{run_id}-{row.seq}",
        "seq": row.seq,
        "task": row.task,
        "name": row.name or f"{row.task}-{row.seq}",
        "state": row.state,
        "state_name": row.state_name or default_name(state),
        "message": row.message,
        "started_at": moment(row.started_at),
        "ended_at": moment(row.ended_at),
        "duration": _duration(row.started_at, row.ended_at, state.is_final, now),
        "attempts": row.attempt,
        "failures": row.failures,
        "interruptions": row.interruptions,
        "parent_id": f"{run_id}-{row.parent}" if row.parent else None,
        "upstream": [f"{run_id}-{seq}" for seq in row.upstream if seq],
        "tags": list(row.tags),
        "error": _error(row.error),
    }


def _states(names: list[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Types and names of states, as they were asked for."""
    if not names:
        return (), ()
    for name, types in _TOGETHER.items():
        if name in names:
            if len(names) > 1:
                raise Problem(422, f"state: {name} stands alone")
            return types, ()
    try:
        return types_and_names(names)
    except ValueError as error:
        raise Problem(422, f"state: {error}") from None


def _number(cursor: str | None) -> int | None:
    if cursor is None:
        return None
    if not cursor.isascii() or not cursor.isdigit() or len(cursor) > 18:
        raise Problem(422, "cursor: give what the last page gave")
    return int(cursor)


async def _runs(
    api: Api, q: models.RunFilter, limit: int, cursor: str | None
) -> tuple[list[RunRow], str | None]:
    """The runs that a filter finds, as they are, and where to go on."""
    types, names = _states(q.state)
    # Of a run whose process has died the row says that it is under way.
    types, fits = including_dead(types, names)
    parent: int | None = -1
    if q.parent == "roots":
        parent = None
    elif q.parent != "any":
        parent = (await api.row(q.parent)).pk
    query = RunQuery(
        states=types,
        names=names,
        paused_as=_ATTENTION if "attention" in q.state else (),
        flow=q.flow,
        tags=tuple(q.tag),
        deployment=q.deployment,
        since=q.since.timestamp() if q.since is not None else None,
        parent=parent,
        id_prefix=q.id,
        text=q.text,
        after=_number(cursor),
        limit=limit,
    )
    page = await api.reader.runs(query)
    rows = [row for row in map(api.shown, page.rows) if fits(row)]
    looked_at = len(page.rows)
    # Of those that say that they are under way most are.
    while len(rows) < limit and page.next_cursor is not None and looked_at < MOST_LOOKED_AT:
        page = await api.reader.runs(replace(query, after=page.next_cursor, limit=AT_ONCE))
        looked_at += len(page.rows)
        for n, row in enumerate(page.rows, 1):
            shown = api.shown(row)
            if fits(shown):
                rows.append(shown)
                if len(rows) == limit:
                    more = n < len(page.rows) or page.next_cursor is not None
                    return rows, str(row.pk) if more else None
    return rows, str(page.next_cursor) if page.next_cursor is not None else None


# --- routes ---------------------------------------------------------------------------------------


@route("GET", "/health", models.Health, public=True)
async def health(api: Api) -> dict[str, Any]:
    """Whether the server is there."""
    return {"status": "ok", "version": __version__}


@route("GET", "/summary", models.Summary, query=models.SummaryQuery)
async def summary(api: Api, q: models.SummaryQuery) -> dict[str, Any]:
    """What there is to know at a glance."""
    now = api.engine.clock.time()
    since = now - q.hours * 3600
    width = 3600.0 if q.hours <= 48 else 86_400.0
    first = since // width * width + (width if width == 3600.0 else 0)
    rows = await api.reader.created_since(since, width, MOST_COUNTED)
    buckets: dict[float, dict[str, int]] = {}
    at = first
    while at <= now:
        buckets[at] = {}
        at += width
    states: dict[str, int] = {}
    for at, state, count in rows:
        states[state] = states.get(state, 0) + count
        buckets.setdefault(at, {})[state] = count
    counted = sum(states.values())
    found = {
        name: (await api.reader.runs(query)).rows
        for name, query in (
            ("failures", RunQuery(states=("FAILED", "CRASHED"), parent=None, limit=10)),
            ("running", RunQuery(states=("RUNNING",), parent=None, limit=10)),
            ("latest", RunQuery(parent=None, limit=8)),
            (
                "attention",
                RunQuery(states=("PAUSED",), paused_as=_FOR_PEOPLE, parent=None, limit=10),
            ),
        )
    }
    late = [
        {"deployment": deployment, "schedule": schedule, "late_since": moment(since)}
        for deployment, schedule, since in await late_schedules(api.reader, now)
    ]
    return {
        "states": states,
        "buckets": [{"at": moment(at), "counts": c} for at, c in sorted(buckets.items())],
        "counted": counted,
        "cut": counted >= MOST_COUNTED,
        **{name: await runs_json(api, rows) for name, rows in found.items()},
        "late": late,
    }


@route("GET", "/runs", models.Page[models.Run], query=models.RunQuery)
async def list_runs(api: Api, q: models.RunQuery) -> dict[str, Any]:
    """Runs, newest first."""
    rows, cursor = await _runs(api, q, q.limit, q.cursor)
    return {"items": await runs_json(api, rows, q.full), "next_cursor": cursor}


@route("GET", "/runs/{run_id}", models.RunDetail)
async def show_run(api: Api, run_id: str) -> dict[str, Any]:
    """One run, with everything but its task runs, logs and artifacts."""
    row = await api.row(run_id)
    (plain,) = await runs_json(api, [row], full=True)
    known = await why(row, look(api.engine), standing.of_run(api.engine, row.id))
    counts = await api.reader.task_counts(row.pk)
    # Calls that wait for their first turn have no rows.
    counts += [
        TaskCount(task, StateType.PENDING.value, None, n, None, None)
        for task, n in known.pending.items()
    ]
    tasks: dict[str, dict[str, Any]] = {}
    for count in counts:
        one = tasks.setdefault(
            count.task,
            {"task": count.task, "counts": {}, "total": 0, "first": None, "last": None},
        )
        one["counts"][count.state] = one["counts"].get(count.state, 0) + count.count
        one["total"] += count.count
        for key, value, pick in (
            ("first", count.first_started, min),
            ("last", count.last_ended, max),
        ):
            if value is not None:
                one[key] = value if one[key] is None else pick(one[key], value)
    children = (await api.reader.runs(RunQuery(parent=row.pk, limit=200))).rows
    return {
        **plain,
        "result": _result(row.result_kind, row.result),
        "story": [
            {
                "time": moment(s.time),
                "state": s.state,
                "state_name": s.state_name,
                "message": s.message,
            }
            for s in await api.reader.states(row.pk)
        ],
        "waits": [reason_json(one) for one in known.reasons],
        "asks": _waited_for(row).get("schema") is not None,
        "progress": await _progress(api, row),
        "children": await runs_json(api, children[::-1]),
        "tasks": [
            {
                "task": one["task"],
                "counts": one["counts"],
                "total": one["total"],
                "first_started": moment(one["first"]),
                "last_ended": moment(one["last"]),
            }
            for one in tasks.values()
        ],
        "edges": await api.reader.edges(row.pk, MOST_EDGES),
    }


def _waited_for(row: RunRow) -> dict[str, Any]:
    """What the body of a run waits for, as it is stored."""
    try:
        found = json.loads(row.waits_for or b"{}")
    except ValueError:
        return {}
    return found if type(found) is dict and not StateType(row.state).is_final else {}


async def _progress(api: Api, row: RunRow) -> list[dict[str, Any]]:
    """How far a run says that it is; what is not complete first."""
    query = ArtifactQuery(run=row.pk, kinds=("progress",), limit=MOST_PROGRESS * 5)
    found = []
    for one in (await api.reader.artifacts(query)).rows:
        data = json.loads(one.data or b"{}")
        done, total = data.get("done", 0.0), data.get("total")
        named = not one.key.startswith("~")
        found.append(
            {
                "name": one.key if named else None,
                "seq": one.seq,
                "done": done,
                "total": total,
                "message": data.get("message", ""),
                "updated_at": moment(one.updated_at),
            }
        )
    found.sort(key=lambda p: p["total"] is not None and p["done"] >= p["total"])
    return found[:MOST_PROGRESS]


@route("GET", "/runs/{run_id}/forms", models.Forms)
async def show_forms(api: Api, run_id: str) -> dict[str, Any]:
    """What a form for the parameters of a run, or for the answer that it waits for, is made of."""
    row = await api.row(run_id)
    answer = _waited_for(row).get("schema")
    return {
        "parameters": await _parameter_schema(api, row),
        "answer": answer if type(answer) is dict else None,
    }


async def _parameter_schema(api: Api, row: RunRow) -> dict[str, Any] | None:
    """The schema of a run's parameters; None: its flow is not known here. Nothing is imported."""
    rows = await api.reader.planned(planning.deployments(row.deployment))
    for one in rows:
        if one.name == row.deployment or one.flow_name == row.flow_name:
            found = json.loads(one.spec).get("parameter_schema")
            if found:
                schema: dict[str, Any] = found
                return schema
    key = json.loads(row.flow_ref or "{}").get("key")
    fitting = [flow for flow in declared(row.flow_name) if flow.key == key]
    return fitting[0].parameters.json_schema() if len(fitting) == 1 else None


@route("GET", "/runs/{run_id}/task-runs", models.Page[models.TaskRun], query=models.TaskQuery)
async def list_task_runs(api: Api, run_id: str, q: models.TaskQuery) -> dict[str, Any]:
    """The task runs of a run, in the order in which they were made."""
    row = await api.row(run_id)
    types, names = _states(q.state)
    page = await api.reader.task_runs(
        TaskQuery(
            run=row.pk,
            states=types,
            names=names,
            task=q.task,
            after=_number(q.cursor) or 0,
            limit=q.limit,
        )
    )
    now = api.engine.clock.time()
    cursor = str(page.next_cursor) if page.next_cursor is not None else None
    return {"items": [task_json(row.id, t, now) for t in page.rows], "next_cursor": cursor}


@route("GET", "/runs/{run_id}/task-runs/{seq}", models.TaskDetail)
async def show_task_run(api: Api, run_id: str, seq: str) -> dict[str, Any]:
    """One task run, with its attempts and its result."""
    row = await api.row(run_id)
    number = _number(seq if seq.isdigit() else "x")
    assert number is not None
    live = standing.of_call(api.engine, row.id, number)
    page = await api.reader.task_runs(TaskQuery(run=row.pk, after=max(0, number - 1), limit=1))
    one = page.rows[0] if page.rows and page.rows[0].seq == number else None
    if one is None and live is not None:
        one = task_row(live[0], api.engine.not_stored)
    if one is None:
        raise Problem(404, "the run has no such task run, or it waits for its first turn elsewhere")
    attempts = [_attempt(one) for one in await api.reader.attempts(row.pk, number)]
    return {
        **task_json(row.id, one, api.engine.clock.time()),
        "attempts_list": attempts,
        "inputs": inputs_of(one.identity)[:MOST_INPUTS] or None,
        "result": _result(one.result_kind, one.result),
        "waits": [reason_json(w) for w in await _task_waits(api, row, one, live)],
    }


async def _task_waits(
    api: Api, row: RunRow, one: TaskRow, live: tuple[Any, list[Reason]] | None
) -> list[Reason]:
    """Why a task run is not moving."""
    if StateType(one.state).is_final or StateType(row.state).is_final:
        return []
    at = look(api.engine)
    if live is not None:
        return await with_others(live[1], at)
    known = (await why(row, at)).reasons
    return [w for w in known if any(thing.seq == one.seq for thing in w.who)]


@route("GET", "/runs/{run_id}/task-counts", models.Page[models.TaskCount])
async def count_task_runs(api: Api, run_id: str) -> dict[str, Any]:
    """How many task runs of each task are in each state."""
    row = await api.row(run_id)
    items = [
        {
            "task": one.task,
            "state": one.state,
            "state_name": one.state_name or default_name(StateType(one.state)),
            "count": one.count,
            "first_started": moment(one.first_started),
            "last_ended": moment(one.last_ended),
        }
        for one in await api.reader.task_counts(row.pk)
    ]
    return {"items": items, "next_cursor": None}


@route("GET", "/runs/{run_id}/attempts", models.Page[models.RunAttempt])
async def list_attempts(api: Api, run_id: str) -> dict[str, Any]:
    """The failed attempts of all task runs of a run that were tried again, without tracebacks."""
    row = await api.row(run_id)
    items = []
    for one in await api.reader.attempts(row.pk):
        plain = _attempt(one)
        short = {**plain["error"], "message": plain["error"]["message"][:500], "traceback": ""}
        items.append({"task_run_id": f"{row.id}-{one.seq}", **plain, "error": short})
    return {"items": items, "next_cursor": None}


def _attempt(row: AttemptRow) -> dict[str, Any]:
    return {
        "attempt": row.attempt,
        "started_at": moment(row.started_at),
        "ended_at": moment(row.ended_at),
        "retry_at": moment(row.retry_at),
        "error": _error(row.error),
    }


@route("GET", "/runs/{run_id}/timeline", models.Timeline, query=models.TimelineQuery)
async def timeline(api: Api, run_id: str, q: models.TimelineQuery) -> dict[str, Any]:
    """When the task runs of a run ran, compact, for a picture."""
    row = await api.row(run_id)
    counts = await api.reader.task_counts(row.pk)
    total = sum(count.count for count in counts)
    rows = await api.reader.spans(row.pk, q.limit)
    start = row.started_at or row.created_at
    tasks: dict[str, int] = {}
    spans = [
        (
            seq,
            tasks.setdefault(task, len(tasks)),
            round((began - start) * 1e3, 1),
            round((ended - start) * 1e3, 1) if ended is not None else None,
            state,
            attempt,
        )
        for seq, task, began, ended, state, attempt in rows
    ]
    return {
        "spans": spans,
        "tasks": list(tasks),
        "start": moment(start),
        "total": total,
        "cut": len(rows) >= q.limit,
    }


@route("GET", "/runs/{run_id}/logs", models.Page[models.LogLine], query=models.LogQuery)
async def list_logs(api: Api, run_id: str, q: models.LogQuery) -> dict[str, Any]:
    """Log lines of a run, oldest first."""
    row = await api.row(run_id)
    seq: int | None = None
    if q.task_run is not None:
        tail = q.task_run.removeprefix(f"{row.id}-")
        seq = _number(tail)
    page = await api.reader.logs(
        LogQuery(
            run=row.pk, seq=seq, level=q.level, text=q.text, after=_number(q.cursor) or 0,
            limit=q.limit,
        )
    )  # fmt: skip
    items = [
        {
            "id": number,
            "time": moment(line.time),
            "level": line.level,
            "logger": line.logger,
            "message": line.message,
            "task_run_id": f"{row.id}-{line.seq}" if line.seq is not None else None,
        }
        for number, line in page.rows
    ]
    cursor = str(page.next_cursor) if page.next_cursor is not None else None
    return {"items": items, "next_cursor": cursor}


@route("GET", "/runs/{run_id}/artifacts", models.Page[models.Artifact], query=models.ArtifactQuery)
async def list_artifacts(api: Api, run_id: str, q: models.ArtifactQuery) -> dict[str, Any]:
    """What a run shows: texts, tables, links, pictures and progress."""
    row = await api.row(run_id)
    after = _number(q.cursor)
    page = await api.engine.artifacts(
        row.id,
        kind=tuple(q.kind),
        data=q.data,
        limit=q.limit,
        cursor=None if after is None else str(after),
    )
    items = []
    for one in page:
        plain = {k: v for k, v in asdict(one).items() if k != "run_id"}
        html = _html(one.data) if one.kind == "markdown" and q.data else None
        items.append({**plain, "html": html})
    return {"items": items, "next_cursor": page.next_cursor}


def _html(data: dict[str, Any]) -> str | None:
    """A text of markdown as safe HTML; None where what makes it is not installed."""
    try:
        return safe_html(str(data.get("markdown", "")))
    except MissingExtra:
        return None


async def _done(api: Api, run_id: str | None, detail: str) -> dict[str, Any]:
    await api.engine.written()
    row = await api.reader.find_run(run_id) if run_id is not None else None
    (plain,) = await runs_json(api, [row]) if row is not None else [None]
    return {"run": plain, "detail": detail}


def _expect(row: RunRow, expected: str | None) -> None:
    if expected is not None and expected not in (row.state, row.state_name):
        raise Problem(409, f"the run is {row.state_name} by now, not {expected}")


@route("POST", "/runs/{run_id}/cancel", models.Done, body=models.Expected)
async def cancel_run(api: Api, run_id: str, body: models.Expected) -> dict[str, Any]:
    """Ask for a run to be cancelled, in whatever process it is."""
    row = await api.row(run_id)
    _expect(row, body.expected_state)
    if StateType(row.state).is_final:
        raise Problem(409, f"the run is {row.state_name}: there is nothing to cancel")
    await api.engine.ask_to_cancel(row.id)
    return await _done(api, row.id, "it is being cancelled")


@route("POST", "/runs/{run_id}/resume", models.Done, body=models.Expected, asks=True)
async def resume_run(api: Api, run_id: str, body: models.Expected) -> dict[str, Any]:
    """Go on with a run."""
    row = await api.row(run_id)
    _expect(row, body.expected_state)
    if not api.embedded:
        given = {"expected_state": body.expected_state, "state_at": row.state_at}
        # Asked for twice while it is as it is, it is the same.
        key = f"resume:{row.id}:{row.epoch}:{row.state_at!r}"
        return await ask(api.engine, "resume", given, run=row.id, key=key)
    await api.engine.resume(row.id)
    return await _done(api, row.id, "it goes on")


@route("POST", "/runs/{run_id}/rerun", models.Done, body=models.Rerun, asks=True)
async def rerun_run(api: Api, run_id: str, body: models.Rerun) -> dict[str, Any]:
    """Run the flow of a run again, under a new id."""
    row = await api.row(run_id)
    if not api.embedded:
        return await _ask_again(api, "rerun", row, body)
    run = await api.engine.rerun(
        row.id, parameters=body.parameters, idempotency_key=body.idempotency_key
    )
    return await _done(api, run.id, "it runs again under a new id")


@route("POST", "/runs/{run_id}/fork", models.Done, body=models.Fork, asks=True)
async def fork_run(api: Api, run_id: str, body: models.Fork) -> dict[str, Any]:
    """Run a run again under a new id, with what it has recorded."""
    row = await api.row(run_id)
    if not api.embedded:
        return await _ask_again(api, "fork", row, body)
    run = await api.engine.fork(
        row.id,
        from_task=body.from_task,
        parameters=body.parameters,
        results=body.results,
        idempotency_key=body.idempotency_key,
    )
    return await _done(api, run.id, "it was forked")


async def _ask_again(
    api: Api, kind: str, row: RunRow, body: models.Rerun | models.Fork
) -> dict[str, Any]:
    refuse_secrets_of(row, body.parameters)
    given = body.model_dump(mode="json", exclude={"idempotency_key"})
    return await ask(api.engine, kind, given, run=row.id, key=body.idempotency_key)


@route("POST", "/runs/{run_id}/answer", models.Done, body=models.Answer, asks=True)
async def answer_run(api: Api, run_id: str, body: models.Answer) -> dict[str, Any]:
    """Answer a run that waits for a person."""
    row = await api.row(run_id)
    if not api.embedded and json.loads(row.waits_for or b"{}").get("model"):
        given = {"data": body.data, "state_at": row.state_at}
        return await ask(api.engine, "answer", given, run=row.id)
    await api.engine.answer(row.id, body.data)
    return await _done(api, row.id, "it was answered")


@route("POST", "/runs/{run_id}/delete", models.Deleted, body=models.Expected)
async def delete_run(api: Api, run_id: str, body: models.Expected) -> dict[str, Any]:
    """Remove a run that has ended, with all that belongs to it."""
    row = await api.row(run_id)
    _expect(row, body.expected_state)
    deleted = await api.engine.delete(row.id)
    return {"run": None, "detail": "it was removed", "deleted": deleted}


@route("POST", "/runs/bulk", models.BulkDone, body=models.Bulk)
async def bulk(api: Api, body: models.Bulk) -> dict[str, Any]:
    """Do the same to all runs that a filter finds, newest first."""
    rows, _ = await _runs(api, body.filter, body.limit, None)
    act = {"cancel": cancel_run, "resume": resume_run, "delete": delete_run}[body.action]
    done, asked, failed = 0, [], []
    for row in rows:
        try:
            said = await act(api, row.id, models.Expected())
            if isinstance(said, Accepted):
                asked.append(said["command"])
            else:
                done += 1
        except Problem as problem:
            failed.append({"id": row.id, "detail": problem.detail})
        except AsyncflowError as error:
            failed.append({"id": row.id, "detail": str(error)[:500]})
    return {"done": done, "asked": asked, "failed": failed}


@route("GET", "/commands", models.Page[models.Command], query=models.CommandQuery)
async def list_commands(api: Api, q: models.CommandQuery) -> dict[str, Any]:
    """What was asked of engines that have the code for it, newest first."""
    rows = await api.reader.planned(
        planning.commands(states=q.state, before=_number(q.cursor), limit=q.limit + 1)
    )
    now = api.engine.clock.time()
    items = [command_json(row, now) for row in rows[: q.limit]]
    cursor = str(rows[q.limit - 1].pk) if len(rows) > q.limit else None
    fitting = [one for one in items if not q.state or one["state"] in q.state]
    return {"items": fitting, "next_cursor": cursor}


@route("GET", "/commands/{command_id}", models.Command)
async def show_command(api: Api, command_id: str) -> dict[str, Any]:
    """What has become of something that was asked for."""
    if not _ID.fullmatch(command_id):
        raise Problem(404, "that is no id of a command")
    rows = await api.reader.planned(planning.commands(command_id))
    if not rows:
        raise Problem(404, "there is no command with this id, or it is too long ago")
    return command_json(rows[0], api.engine.clock.time())


def _deployment_json(one: Any, schema: dict[str, Any]) -> dict[str, Any]:
    return {**asdict(one), "parameter_schema": schema}


async def _deployments(api: Api, name: str | None = None) -> list[dict[str, Any]]:
    rows = await api.reader.planned(planning.deployments(name))
    schemas = {row.name: json.loads(row.spec).get("parameter_schema") or {} for row in rows}
    found = await infos(api.reader, api.engine.clock.time(), name)
    return [_deployment_json(one, schemas.get(one.name, {})) for one in found]


@route("GET", "/deployments", models.Page[models.Deployment])
async def list_deployments(api: Api) -> dict[str, Any]:
    """All deployments, by name."""
    return {"items": await _deployments(api), "next_cursor": None}


@route("GET", "/deployments/{name}", models.Deployment)
async def show_deployment(api: Api, name: str) -> dict[str, Any]:
    """One deployment."""
    found = await _deployments(api, name)
    if not found:
        raise UnknownDeployment.named(name)
    return found[0]


@route("GET", "/deployments/{name}/ticks", models.Page[models.Tick], query=models.TickQuery)
async def list_ticks(api: Api, name: str, q: models.TickQuery) -> dict[str, Any]:
    """What became of the ticks of a deployment, newest first."""
    page = await tick_listing(
        api.reader, name, states=tuple(q.state), limit=q.limit, cursor=q.cursor
    )
    items = [{k: v for k, v in asdict(tick).items() if k != "deployment"} for tick in page]
    return {"items": items, "next_cursor": page.next_cursor}


@route("PUT", "/deployments/{name}", models.Deployment, body=models.DeclareDeployment, asks=True)
async def declare_deployment(api: Api, name: str, body: models.DeclareDeployment) -> dict[str, Any]:
    """Declare a deployment of a flow, or change one; what is past never runs."""
    schedules = schedules_from_json(body.schedules)
    if not api.embedded:
        given = body.model_dump(mode="json")
        return await ask(api.engine, "deploy", given, deployment=name)
    flows = declared(body.flow)
    if len(flows) != 1:
        what = "no flow" if not flows else f"{len(flows)} flows"
        raise Problem(422, f"flow: there is {what} called {body.flow!r} where this server runs")
    options = body.model_dump(exclude={"flow", "schedules"})
    made = Deployment(flow=flows[0], name=name, schedules=schedules, **options)
    await api.engine.deploy(made, source="api")
    (found,) = await _deployments(api, name)
    return found


@route("POST", "/deployments/{name}/run", models.Done, body=models.RunDeployment, asks=True)
async def run_deployment(api: Api, name: str, body: models.RunDeployment) -> dict[str, Any]:
    """Start a run of a deployment."""
    shown = await show_deployment(api, name)
    if not api.embedded:
        refuse_secrets(shown["parameter_schema"], body.parameters)
        given = {"parameters": body.parameters, "name": body.name}
        return await ask(api.engine, "run", given, deployment=name, key=body.idempotency_key)
    run = await api.engine.run_deployment(
        name, body.parameters, run_name=body.name, idempotency_key=body.idempotency_key
    )
    return await _done(api, run.id, "it has begun")


@route("POST", "/deployments/{name}/pause", models.Ok, body=models.PauseDeployment)
async def pause_deployment(api: Api, name: str, body: models.PauseDeployment) -> dict[str, Any]:
    """Let it, or one of its schedules, start no runs by itself."""
    await api.engine.pause_deployment(name, body.schedule)
    return {"ok": True}


@route("POST", "/deployments/{name}/resume", models.Ok, body=models.PauseDeployment)
async def resume_deployment(api: Api, name: str, body: models.PauseDeployment) -> dict[str, Any]:
    """Let it start runs again."""
    await api.engine.resume_deployment(name, body.schedule)
    return {"ok": True}


@route("DELETE", "/deployments/{name}", models.Ok)
async def remove_deployment(api: Api, name: str) -> dict[str, Any]:
    """Forget it; its runs stay."""
    await api.engine.remove_deployment(name)
    return {"ok": True}


@route("GET", "/automations", models.Page[models.Automation])
async def list_automations(api: Api) -> dict[str, Any]:
    """All automations, by name."""
    found = await automation_infos(api.reader)
    return {"items": [asdict(one) for one in found], "next_cursor": None}


@route("GET", "/automations/{name}", models.Automation)
async def show_automation(api: Api, name: str) -> dict[str, Any]:
    """One automation."""
    return asdict(await api.engine.automation(name))


@route("PUT", "/automations/{name}", models.Automation, body=models.DeclareAutomation)
async def declare_automation(api: Api, name: str, body: models.DeclareAutomation) -> dict[str, Any]:
    """Declare an automation, or another one in its place."""
    if any(action.get("type") == "call-function" for action in body.actions):
        # Whoever may ask here may start what is deployed, and no other code.
        raise Problem(422, "actions: a function can be named in code or in a file, not here")
    made = automation_from_dict({"name": name, **body.model_dump()})
    return asdict(await api.engine.automate(made, source="api"))


@route("POST", "/automations/{name}/enable", models.Ok, body=models.Given)
async def enable_automation(api: Api, name: str, body: models.Given) -> dict[str, Any]:
    """Switch it on."""
    await api.engine.enable_automation(name, enabled=True)
    return {"ok": True}


@route("POST", "/automations/{name}/disable", models.Ok, body=models.Given)
async def disable_automation(api: Api, name: str, body: models.Given) -> dict[str, Any]:
    """Switch it off."""
    await api.engine.enable_automation(name, enabled=False)
    return {"ok": True}


@route("DELETE", "/automations/{name}", models.Ok)
async def remove_automation(api: Api, name: str) -> dict[str, Any]:
    """Forget it."""
    await api.engine.remove_automation(name)
    return {"ok": True}


@route("GET", "/deliveries", models.Page[models.Delivery], query=models.DeliveryQuery)
async def list_deliveries(api: Api, q: models.DeliveryQuery) -> dict[str, Any]:
    """What automations have to do and have done, newest first."""
    page = await delivery_listing(
        api.reader,
        automation=q.automation,
        run=q.run,
        states=tuple(q.state),
        limit=q.limit,
        cursor=None if q.cursor is None else str(_number(q.cursor)),
    )
    return {"items": [asdict(one) for one in page], "next_cursor": page.next_cursor}


async def events_json(api: Api, rows: list[Any]) -> list[dict[str, Any]]:
    """Events as JSON."""
    return [
        {
            "id": event.id,
            "kind": event.kind,
            "time": event.time,
            "run_id": event.run_id,
            "task_run_id": event.task_run_id,
            "state": event.state.value if event.state is not None else None,
            "name": event.name,
            "message": event.message,
            "epoch": event.epoch,
            "payload": event.payload,
        }
        for event in await events_of(api.reader, rows)
    ]


@route("GET", "/events", models.Page[models.Event], query=models.EventQuery)
async def list_events(api: Api, q: models.EventQuery) -> dict[str, Any]:
    """What happened, newest first, or from the event after the cursor on."""
    pk = (await api.row(q.run)).pk if q.run is not None else None
    page = await api.reader.events(
        EventQuery(
            run=pk,
            kinds=tuple(q.kind),
            since=q.since.timestamp() if q.since is not None else None,
            after=_number(q.cursor) or 0,
            newest=q.order == "newest",
            limit=q.limit,
        )
    )
    cursor = str(page.next_cursor) if page.next_cursor is not None else None
    return {"items": await events_json(api, page.rows), "next_cursor": cursor}


@route("GET", "/limits", models.Page[models.LimitInfo])
async def list_limits(api: Api) -> dict[str, Any]:
    """Limits, who holds them, and who waits.

    Those of `scope` "shared" are named limits, of all engines on this store; the others are of
    the engine in the process of this server, and only those in use are listed.
    """
    found = [limit_json(one) for one in await limits(look(api.engine))]
    own = [one for one in standing.Standing(api.engine).held() if one.scope != "shared"]
    found += [{**held_json(o), "limit": None, "burst": None, "shares": []} for o in own]
    return {"items": found, "next_cursor": None}


@route("PUT", "/limits/{name}", models.Ok, body=models.SetLimit)
async def set_limit(api: Api, name: str, body: models.SetLimit) -> dict[str, Any]:
    """Set a named limit for all engines."""
    whole = int(body.limit) if float(body.limit).is_integer() else body.limit
    await api.engine.set_limit(name, whole, body.period, body.burst)
    return {"ok": True}


@route("DELETE", "/limits/{name}", models.Ok)
async def lift_limit(api: Api, name: str) -> dict[str, Any]:
    """Lift a named limit."""
    await api.engine.set_limit(name, None)
    return {"ok": True}


@route("GET", "/variables", models.Page[models.Variable])
async def list_variables(api: Api) -> dict[str, Any]:
    """Variables, by name."""
    found = await api.engine.variables()
    return {"items": [asdict(one) for one in found], "next_cursor": None}


@route("GET", "/variables/{name}", models.Variable)
async def show_variable(api: Api, name: str) -> dict[str, Any]:
    """One variable."""
    found = await stored(api.reader, name)
    if not found:
        raise _no_variable()
    return asdict(found[0])


def _no_variable() -> Problem:
    return Problem(404, "there is no variable of this name")


@route("PUT", "/variables/{name}", models.Ok, body=models.SetVariable)
async def set_variable(api: Api, name: str, body: models.SetVariable) -> dict[str, Any]:
    """Give a variable a value."""
    await api.engine.set_variable(name, body.value)
    return {"ok": True}


@route("DELETE", "/variables/{name}", models.Ok)
async def delete_variable(api: Api, name: str) -> dict[str, Any]:
    """Remove a variable."""
    if not await api.engine.delete_variable(name):
        raise _no_variable()
    return {"ok": True}


__all__ = ["ROUTES", "Api", "Route", "answer_of", "events_json", "route", "taken"]
