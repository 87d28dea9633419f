"""What the REST API takes and gives, as pydantic models: the source of its OpenAPI document."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

T = TypeVar("T")

Limit = Annotated[int, Field(ge=1, le=500)]
Cursor = Annotated[str, Field(max_length=60, pattern=r"^[0-9.:eE+-]*$")]
Name = Annotated[str, Field(min_length=1, max_length=200)]


def misfit(error: ValidationError) -> str:
    """Where something does not fit a model first, and why; nothing of what was given."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    where = ".".join(str(part) for part in first["loc"])[:100]
    return f"{where or 'it'}: {first['msg']}"


class Given(BaseModel):
    """Something that comes from outside: what is not known is refused."""

    model_config = ConfigDict(extra="forbid")


class Page(BaseModel, Generic[T]):
    """Some items, and where to go on; null: these were the last."""

    items: list[T]
    next_cursor: str | None


class Health(BaseModel):
    status: Literal["ok"]
    version: str


class Session(Given):
    token: Annotated[str, Field(max_length=500)]


class Role(BaseModel):
    role: Literal["admin", "read"]
    version: str
    #: Whether runs are carried out in the process of this server.
    embedded: bool


class RunFilter(Given):
    """Which runs; all conditions must hold."""

    #: Types and names of states; or "not_completed"; or "attention": those that wait for a person,
    #: or that no engine has.
    state: Annotated[list[Annotated[str, Field(max_length=40)]], Field(max_length=20)] = []
    flow: Name | None = None
    tag: Annotated[list[Name], Field(max_length=5)] = []
    deployment: Name | None = None
    since: datetime | None = None
    #: "roots", "any", or the id of a run.
    parent: Annotated[str, Field(max_length=60)] = "roots"
    #: The beginning of an id.
    id: Annotated[str, Field(max_length=36, pattern=r"^[0-9a-f-]*$")] = ""
    text: Annotated[str, Field(max_length=200)] = ""


class RunQuery(RunFilter):
    #: With parameters and errors.
    full: bool = False
    limit: Limit = 50
    cursor: Cursor | None = None


class Error(BaseModel):
    """A failure, as text: `type` is the name of its class, `module` where that is."""

    type: str
    module: str
    message: str
    traceback: str


class Run(BaseModel):
    """A flow run."""

    id: str
    flow: str
    name: str
    state: str
    state_name: str
    message: str
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    #: Seconds; up to now while it runs.
    duration: float | None
    tags: list[str]
    parent_id: str | None
    #: The call that made it.
    parent_task_run_id: str | None
    #: Whether an engine has it: else nothing happens by itself.
    is_owned: bool
    attempt: int
    recoveries: int
    deployment: str | None
    scheduled_at: datetime | None
    cause: str | None
    origin: str | None
    version: str | None
    #: Secrets are masked. In lists this, and the error, is there where it was asked for in full.
    parameters: dict[str, Any] | None = None
    error: Error | None = None


class Result(BaseModel):
    """What something gave, as it is stored: a pickle or a large one is not read here."""

    kind: Literal["none", "json", "pickle", "file", "not_stored"]
    value: Any
    bytes: int


class Story(BaseModel):
    time: datetime
    state: str
    state_name: str
    message: str


class Waiter(BaseModel):
    """A task run, run or map (`left`: its task runs that have not ended) that waits, or is waited
    for. Without `seq` it is a run, a map, or one that has no number yet."""

    run_id: str | None
    seq: int | None
    task: str | None
    name: str
    state_name: str | None
    left: int | None


class Holder(BaseModel):
    """Who holds units of a limit: a task run, or without `seq` the body of a flow. Without
    `run_id` it is not known which: an engine has them, or code outside of runs."""

    engine: int
    units: float
    run_id: str | None
    run_name: str | None
    seq: int | None
    task: str | None
    name: str | None
    since: datetime | None


class Held(BaseModel):
    """How much of a limit is in use, by whom, and how many wait for it."""

    name: str
    scope: Literal["shared", "engine", "threads", "processes", "task", "flow"]
    used: float
    size: float | None
    period: float | None
    free_at: datetime | None
    waiting: int
    holders: list[Holder]
    #: How many hold some of it besides those.
    more: int


class Wait(BaseModel):
    """Why something is not moving: calls of one task, or without `task` the body of the flow."""

    kind: str
    #: All of it in words; `head`: without those who hold it, and what it is that is waited for.
    text: str
    head: str
    task: str | None
    calls: int
    at_least: bool
    task_runs: list[Waiter]
    since: datetime | None
    until: datetime | None
    limit: Held | None
    on: list[Waiter]
    more: int
    event: str | None
    #: When the process that has the run told this; null: just now.
    told_at: datetime | None


class TaskSummary(BaseModel):
    """All task runs of one task in a run, as one node."""

    task: str
    counts: dict[str, int]
    total: int
    first_started: datetime | None
    last_ended: datetime | None


class Progress(BaseModel):
    """How far a flow or a task says that it is."""

    #: What it was called, if it was.
    name: str | None
    #: The task run that says so; null: the flow itself.
    seq: int | None
    done: float
    total: float | None
    message: str
    updated_at: datetime


class RunDetail(Run):
    result: Result
    story: list[Story]
    waits: list[Wait]
    #: Whether it waits for an answer that must fit a form: see /api/runs/ID/forms.
    asks: bool
    #: How far the flow and its tasks say that they are, 20 at most.
    progress: list[Progress]
    children: list[Run]
    tasks: list[TaskSummary]
    #: Pairs of names: the second depends on the first.
    edges: list[list[str]]


class Forms(BaseModel):
    """JSON schemas: of the parameters of a run's flow, where it is known here, and of the answer
    that the run waits for."""

    parameters: dict[str, Any] | None
    answer: dict[str, Any] | None


class TaskQuery(Given):
    task: Name | None = None
    state: Annotated[list[Annotated[str, Field(max_length=40)]], Field(max_length=20)] = []
    limit: Limit = 50
    cursor: Cursor | None = None


class TaskRun(BaseModel):
    id: str
    seq: int
    task: str
    name: str
    state: str
    state_name: str
    message: str
    started_at: datetime | None
    ended_at: datetime | None
    duration: float | None
    attempts: int
    failures: int
    interruptions: int
    parent_id: str | None
    upstream: list[str]
    tags: list[str]
    error: Error | None


class Attempt(BaseModel):
    attempt: int
    started_at: datetime | None
    ended_at: datetime
    retry_at: datetime | None
    error: Error


class RunAttempt(Attempt):
    task_run_id: str


class TaskCount(BaseModel):
    task: str
    state: str
    state_name: str
    count: int
    first_started: datetime | None
    last_ended: datetime | None


class TaskDetail(TaskRun):
    attempts_list: list[Attempt]
    #: What it was called with, where that is short and plain enough to stand in its record.
    inputs: str | None
    result: Result
    waits: list[Wait]


class TimelineQuery(Given):
    limit: Annotated[int, Field(ge=1, le=10_000)] = 2000


class Timeline(BaseModel):
    """Spans, compact: seq, index of the task, start and end in ms from `start`, state, attempts."""

    spans: list[list[Any]]
    tasks: list[str]
    start: datetime
    total: int
    cut: bool


class LogQuery(Given):
    level: Annotated[int, Field(ge=0, le=100)] = 0
    text: Annotated[str, Field(max_length=200)] = ""
    task_run: Annotated[str, Field(max_length=80)] | None = None
    limit: Limit = 200
    cursor: Cursor | None = None


class LogLine(BaseModel):
    id: int
    time: datetime
    level: int
    logger: str
    message: str
    task_run_id: str | None


class ArtifactQuery(Given):
    kind: Annotated[list[Annotated[str, Field(max_length=40)]], Field(max_length=10)] = []
    #: Whether what they hold is wanted; without, `data` is empty.
    data: bool = True
    limit: Limit = 200
    cursor: Cursor | None = None


class Artifact(BaseModel):
    """Something that a run shows."""

    id: str
    key: str | None
    kind: str
    description: str
    data: dict[str, Any]
    #: Of markdown: safe HTML, where what makes it is installed; else null.
    html: str | None
    task_run_id: str | None
    created_at: datetime
    updated_at: datetime


class Expected(Given):
    """What the run must be in, or nothing is done."""

    expected_state: Annotated[str, Field(max_length=40)] | None = None


class Fork(Given):
    parameters: dict[str, Any] | None = None
    from_task: Name | None = None
    #: Recorded results to replace, by the name of a task or of a task run.
    results: dict[str, Any] | None = None
    #: The same key gives the same run.
    idempotency_key: Name | None = None


class Rerun(Given):
    parameters: dict[str, Any] | None = None
    idempotency_key: Name | None = None


class Answer(Given):
    data: Any = None


class Bulk(Given):
    action: Literal["cancel", "resume", "delete"]
    filter: RunFilter
    limit: Annotated[int, Field(ge=1, le=500)] = 500


class Failed(BaseModel):
    id: str
    detail: str


class Command(BaseModel):
    """What was asked of an engine that has the code for it.

    Its state is WAITING until an engine takes it, or EXPIRED when none did in time; then it was not
    done, and is not any more.
    """

    id: str
    kind: str
    #: What it is about: a run, or a deployment.
    run_id: str | None
    deployment: str | None
    arguments: dict[str, Any]
    state: Literal["WAITING", "TAKEN", "DONE", "FAILED", "EXPIRED"]
    #: What came of it, or why it was not done.
    detail: str
    #: The run that it made, or that goes on.
    made_run_id: str | None
    #: The engine that took it last, and how often it was taken.
    engine: int | None
    taken: int
    asked_by: str
    asked_at: datetime
    expires_at: datetime
    taken_at: datetime | None
    ended_at: datetime | None


class Asked(BaseModel):
    """What was asked for: follow it at /api/commands/ID."""

    command: Command


class CommandQuery(Given):
    state: list[Literal["WAITING", "TAKEN", "DONE", "FAILED", "EXPIRED"]] = []
    limit: Limit = 50
    cursor: Cursor | None = None


class BulkDone(BaseModel):
    done: int
    #: What was asked of other processes.
    asked: list[Command]
    failed: list[Failed]


class Done(BaseModel):
    """What has been done; the run that it was about, or made."""

    run: Run | None
    detail: str


class Deleted(Done):
    #: How many runs went: it, and those below it.
    deleted: int


class Bucket(BaseModel):
    at: datetime
    counts: dict[str, int]


class Late(BaseModel):
    deployment: str
    schedule: str
    late_since: datetime


class SummaryQuery(Given):
    hours: Annotated[int, Field(ge=1, le=720)] = 24


class Summary(BaseModel):
    states: dict[str, int]
    buckets: list[Bucket]
    #: How many runs the counts are of; there are more where `cut` is true.
    counted: int
    cut: bool
    failures: list[Run]
    running: list[Run]
    latest: list[Run]
    attention: list[Run]
    late: list[Late]


class Schedule(BaseModel):
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


class Deployment(BaseModel):
    name: str
    flow_name: str
    description: str
    version: str | None
    parameters: dict[str, Any]
    parameter_schema: dict[str, Any]
    tags: list[str]
    overlap: str
    concurrency_limit: int
    catchup: str
    catchup_limit: int
    paused: bool
    source: str
    created_at: datetime | None
    updated_at: datetime | None
    schedules: list[Schedule]
    ticks: dict[str, int]


class TickQuery(Given):
    state: list[
        Literal["run", "queued", "skipped", "missed", "RUN", "QUEUED", "SKIPPED", "MISSED"]
    ] = []
    limit: Limit = 50
    cursor: Cursor | None = None


class Tick(BaseModel):
    schedule: str
    tick: datetime
    until: datetime
    count: int
    state: str
    reason: str
    run_id: str | None
    backfill: int | None
    decided_at: datetime


class RunDeployment(Given):
    parameters: dict[str, Any] | None = None
    name: Name | None = None
    idempotency_key: Name | None = None


class DeclareDeployment(Given):
    """As in `asyncflow.toml`; the flow is one that is declared where the server runs."""

    flow: Name
    schedules: Annotated[list[dict[str, Any]], Field(max_length=100)] = []
    parameters: dict[str, Any] = {}
    tags: Annotated[list[Name], Field(max_length=50)] = []
    description: Annotated[str, Field(max_length=10_000)] = ""
    overlap: Literal["skip", "queue", "cancel_running", "allow"] = "skip"
    concurrency_limit: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    catchup: Literal["latest", "skip", "all"] = "latest"
    catchup_limit: Annotated[int, Field(ge=1, le=10_000)] = 100
    late_seconds: Annotated[float, Field(ge=0, le=1e8)] = 15.0


class PauseDeployment(Given):
    schedule: Name | None = None


class Automation(BaseModel):
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


class DeclareAutomation(Given):
    """As in `asyncflow.toml`; functions cannot be named here."""

    trigger: dict[str, Any]
    actions: list[dict[str, Any]]
    description: Annotated[str, Field(max_length=10_000)] = ""
    enabled: bool = True
    tags: list[Name] = []


class DeliveryQuery(Given):
    automation: Name | None = None
    run: Annotated[str, Field(max_length=60)] | None = None
    state: list[Literal["pending", "sending", "delivered", "failed", "suppressed"]] = []
    limit: Limit = 50
    cursor: Cursor | None = None


class Delivery(BaseModel):
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


class EventQuery(Given):
    kind: Annotated[list[Annotated[str, Field(max_length=200)]], Field(max_length=10)] = []
    run: Annotated[str, Field(max_length=60)] | None = None
    since: datetime | None = None
    #: Oldest first, `cursor` is the id of the last event that was seen.
    order: Literal["newest", "oldest"] = "newest"
    limit: Limit = 50
    cursor: Cursor | None = None


class Event(BaseModel):
    id: int
    kind: str
    time: datetime
    run_id: str
    task_run_id: str | None
    state: str | None
    name: str
    message: str
    #: How often the run had been claimed.
    epoch: int
    payload: Any


class Share(BaseModel):
    """What one engine may use of a limit, and could."""

    engine: int
    units: float
    wanted: float
    #: False: it has died, and its part comes back by itself.
    alive: bool


class LimitInfo(Held):
    """A limit: `limit` is what was set for all engines, `size` what holds (code may declare it)."""

    limit: float | None
    burst: int | None
    #: How it is divided among engines.
    shares: list[Share]


class SetLimit(Given):
    limit: Annotated[float, Field(ge=0, le=1e9)]
    period: Annotated[float, Field(gt=0, le=1e6)] | None = None
    burst: Annotated[int, Field(ge=1, le=1_000_000)] | None = None


class Variable(BaseModel):
    name: str
    value: Any
    updated_at: datetime | None


class SetVariable(Given):
    value: Any


class Ok(BaseModel):
    ok: Literal[True] = True
