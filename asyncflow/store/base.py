"""What asyncflow asks of a place to keep its state.

Two ports. `Store` is what the one writer of an engine calls: plain blocking functions, each of
them one transaction, never two at once. `Reader` answers questions; it never changes anything
and may be used while a write is under way.

Times are seconds since the epoch (UTC). States are `StateType` values. Values, parameters and
errors are JSON text made by `asyncflow.codec` and `asyncflow.failures`; no store looks inside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import (
    TYPE_CHECKING,
    Generic,
    NamedTuple,
    Protocol,
    TypeAlias,
    TypeVar,
    runtime_checkable,
)

from asyncflow.shares import Demand, Part, ShareRow
from asyncflow.store.planning import Planning, Question

if TYPE_CHECKING:
    import sqlite3

T = TypeVar("T")


class WorkError(Exception):
    """What the function of `Store.transact` raised, as the cause: what it did is taken back."""


#: Results up to this many bytes stay in their row; larger ones go to files.
INLINE_LIMIT = 64 * 1024

#: Above the number of every call.
ALL = 1 << 62

#: `RunRow.waits_for` of a run that was imported before it had ended: only a resume goes on with it,
#: no recovery, since the store that it comes from may do so, too.
IMPORTED = b'{"kind": "import"}'

#: The name of a message that says from when on a run is in this store: what was sent to all before,
#: it does not get.
ARRIVED = "arrived"


class ResultKind:
    """How the result of a row is kept."""

    NONE = 0  #: there is none (it did not complete)
    JSON = 1  #: inline, JSON of `asyncflow.codec`
    PICKLE = 2  #: inline, pickled: only where the task asked for it
    NOT_STORED = 3  #: it completed; what it returned could not be kept
    JSON_FILE = 4  #: as JSON, in a file; the row holds its name
    PICKLE_FILE = 5  #: as PICKLE, in a file; the row holds its name


class RunRow(NamedTuple):
    """One flow run."""

    pk: int  #: its number in this store; 0 until it is created
    id: str  #: what people call it
    flow_name: str
    flow_ref: str  #: JSON: where the code is (module, qualname, file)
    name: str
    parent: int | None  #: pk of the parent run
    parent_identity: bytes | None  #: identity of the call that made it, in the parent
    parent_seq: int | None  #: number of that call
    root: int  #: pk of the outermost run of its tree; its own for a root
    state: str  #: StateType
    state_name: str
    message: str
    state_at: float
    parameters: bytes  #: JSON, secrets masked
    tags: tuple[str, ...]
    created_at: float
    started_at: float | None
    ended_at: float | None
    deadline_at: float | None
    engine: int | None  #: the engine that owns it
    epoch: int  #: raised by each claim; a write with a smaller one is refused
    attempt: int
    recoveries: int
    idempotency_key: str | None
    version: str | None
    result_kind: int
    result: bytes | None
    error: bytes | None  #: JSON
    ended_by: tuple[int, ...]  #: seqs of the calls whose failure ended it
    wake_at: float | None = None  #: when it goes on by itself, where it waits
    waits_for: bytes | None = None  #: JSON: what it waits for, where it is PAUSED
    origin: str | None = None  #: id of the run that it was forked from, or is another run of
    deployment: str | None = None  #: the name of the deployment that it is of
    scheduled_at: float | None = None  #: the planned instant that it is for
    cause: str | None = None  #: what began it, such as "schedule:nightly"; None: a call


class TaskRow(NamedTuple):
    """One task run: one call of a task in one flow run."""

    run: int  #: pk of its flow run
    seq: int  #: its number in the run, from 1
    identity: bytes  #: unique in the run
    task: str  #: the task's name
    name: str | None  #: its own name, where it has one
    parent: int | None  #: seq of the task run that made it
    state: str  #: StateType
    state_name: str | None  #: None: the default name of the type
    message: str
    attempt: int
    failures: int  #: attempts that failed; the others were cut off by a crash
    interruptions: int
    created_at: float
    started_at: float | None
    ended_at: float | None
    retry_at: float | None
    upstream: tuple[int, ...]  #: seqs
    tags: tuple[str, ...]
    result_kind: int
    result: bytes | None
    error: bytes | None  #: JSON


class AttemptRow(NamedTuple):
    """One failed attempt of a task run that was tried again."""

    run: int
    seq: int
    attempt: int
    started_at: float | None
    ended_at: float
    retry_at: float | None
    error: bytes  #: JSON


class LogRow(NamedTuple):
    """One log line, as stored."""

    run: int
    seq: int | None  #: of the task run; None for the flow itself
    time: float
    level: int  #: as in stdlib logging
    logger: str
    message: str


class StateRow(NamedTuple):
    """One move of a flow run, for its story."""

    run: int
    time: float
    state: str
    state_name: str
    message: str
    epoch: int


class OpenRuns(NamedTuple):
    """How many runs of a flow there are that have not ended, and are alike otherwise."""

    flow_name: str
    state: str
    state_name: str | None
    engine: int | None  #: that carries them out
    runs: int


class EventRow(NamedTuple):
    """Something that happened. The moves of flow runs are events, too: those have no `kind`.

    What happened to a run before it was imported has ``~epoch``, a negative number: nobody here
    acts on it any more.
    """

    id: int  #: 0 until it is stored
    run: int  #: pk of the flow run that it is about; 0: none
    time: float
    state: str  #: StateType, of moves of runs and of task runs; else ""
    state_name: str
    message: str
    epoch: int
    kind: str | None  #: such as "task-run.Failed"; None: "flow-run." and the state's name
    seq: int | None = None  #: of the task run that it is about
    payload: bytes | None = None  #: JSON

    @property
    def called(self) -> str:
        """What happened, such as "flow-run.Completed"."""
        return self.kind or f"flow-run.{self.state_name}"


#: What `Store.events_after` calls whatever happened before its run was imported.
ELSEWHERE = "elsewhere"


class RunInfo(NamedTuple):
    """What events tell of the flow run that they are about."""

    pk: int
    id: str
    flow_name: str
    name: str
    parent: int | None
    tags: tuple[str, ...]
    deployment: str | None
    cause: str | None
    parameters: bytes  #: JSON, secrets masked
    error: bytes | None  #: JSON


class ArtifactRow(NamedTuple):
    """Something that a run shows, such as a table. A later one of the same key takes its place."""

    id: int  #: the order in which they were first made; 0 until it is stored
    run: int
    key: str  #: unique in the run; of one that was given none it begins with "~"
    seq: int | None  #: of the task run that made it; None: the flow itself
    kind: str  #: "markdown", "table", "link", "image" or "progress"
    description: str
    data: bytes  #: JSON, secrets masked; empty: the one with this key is taken away
    created_at: float  #: that of the first with this key stays
    updated_at: float


class MarkRow(NamedTuple):
    """One recorded decision or value of a run, such as which future completed first."""

    run: int
    scope: bytes  #: which series of decisions
    n: int  #: its number in the series, from 0
    value: bytes  #: opaque
    seq: int = 0  #: the number of the run's last call when it was made


class MessageRow(NamedTuple):
    """Something that was sent to one run, or to all."""

    id: int  #: 0 until it is sent
    name: str
    run: int | None  #: pk; None: to all runs that exist when it is sent
    payload: bytes  #: JSON
    time: float


#: What belongs to a run: all of it is copied to another store with it.
AnyRow: TypeAlias = (
    RunRow | EventRow | MessageRow | TaskRow | AttemptRow | MarkRow | LogRow | ArtifactRow
)
#: Gives a mark with the new numbers of the messages that it names.
Renumber: TypeAlias = Callable[[MarkRow, Mapping[int, int]], MarkRow]


class CacheRow(NamedTuple):
    """A result that other runs may use."""

    key: bytes
    task: str  #: the name of the task that made it
    run: int  #: the run and number of the task run that made it
    seq: int
    created_at: float
    expires_at: float | None  #: it is not used from then on; None: as long as it is there
    result_kind: int
    result: bytes | None


class LimitRow(NamedTuple):
    """A named limit that was set for all."""

    name: str
    limit: float | None  #: None: lifted
    period: float | None
    burst: int | None


class NoticeRow(NamedTuple):
    """What an engine tells of what only it knows, for other processes."""

    kind: str  #: "limit": who holds units of it there; "run": what its calls wait for
    name: str  #: of the limit, or the pk of the run
    engine: int
    time: float
    data: bytes  #: JSON of `asyncflow.why`


class EngineRow(NamedTuple):
    """One engine instance."""

    id: int  #: 0 until it is registered
    pid: int
    host: str
    boot_id: str
    started_at: float
    seen_at: float
    closed_at: float | None


@dataclass(slots=True)
class Writes:
    """Everything that one transaction writes. Rows replace earlier rows of the same key.

    `fences` maps the pk of each run that is written to the epoch under which its writer owns
    it: where the stored epoch is another, nothing is written and `RunTaken` is raised. Rows in
    `runs` exist already (see `Store.create_run`). `log_drops` counts lines lost before the store.
    """

    tasks: list[TaskRow] = field(default_factory=list)
    runs: list[RunRow] = field(default_factory=list)
    attempts: list[AttemptRow] = field(default_factory=list)
    logs: list[LogRow] = field(default_factory=list)
    states: list[StateRow] = field(default_factory=list)
    marks: list[MarkRow] = field(default_factory=list)
    limits: list[LimitRow] = field(default_factory=list)
    cache: list[CacheRow] = field(default_factory=list)
    events: list[EventRow] = field(default_factory=list)
    artifacts: list[ArtifactRow] = field(default_factory=list)
    fences: dict[int, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return (
            len(self.tasks)
            + len(self.runs)
            + len(self.attempts)
            + len(self.logs)
            + len(self.states)
            + len(self.marks)
            + len(self.limits)
            + len(self.cache)
            + len(self.events)
            + len(self.artifacts)
        )


class Store(Protocol):
    """The writing side. Every method blocks, and is one transaction: all or nothing.

    Raises:
        StoreError: the storage failed; the message says which file, what, and what to do.
        RunTaken: a fence did not hold.
    """

    #: What people call it in messages: a path, or "memory".
    name: str

    def open(self, durability: str) -> None:
        """Open, create and migrate it. *durability* is "full", "strict" or "relaxed"."""
        ...

    def close(self) -> None: ...

    def write(self, writes: Writes, *, wait: bool = True) -> bool:
        """Write it all. With wait=False, False is returned at once if another process holds
        the write lock, and nothing was written."""
        ...

    def transact(
        self, fences: dict[int, int], work: Callable[[sqlite3.Connection], TaskRow | None]
    ) -> None:
        """Run *work* on the user's own tables in this database, and write the row that it gives,
        all in one transaction.

        Args:
            fences: as of `Writes`.

        Raises:
            WorkError: *work* raised (its cause), or broke a rule that is checked at the end, and
                nothing of what it did is left.
        """
        ...

    def create_run(self, row: RunRow, states: Sequence[StateRow]) -> tuple[RunRow, bool]:
        """Add a run, and give it its pk (and root, where that is 0).

        Returns the row and True; or, where its idempotency key is taken, the row that has it
        and False. The `run` of the given states is replaced by the pk.
        """
        ...

    def register_engine(self, row: EngineRow) -> EngineRow:
        """Add an engine and give it its id."""
        ...

    def close_engine(self, engine: int, time: float) -> None: ...

    def claim(
        self, run: int, engine: int, epoch: int, *, recovers: bool = False
    ) -> list[RunRow] | None:
        """Take a root run, and the unfinished runs below it, for *engine*, in one atomic step.

        *epoch* is the one that the caller last saw; when the stored one is another, None is
        returned and nothing changes. Each claimed row gets the next epoch; with *recovers*, the
        root one recovery more. Returns the claimed rows as they are now, the root first.
        """
        ...

    def run(self, run_id: str) -> RunRow | None:
        """The run with this id (not pk)."""
        ...

    def run_by_key(self, idempotency_key: str) -> RunRow | None:
        """The run that has this idempotency key."""
        ...

    def calls(self, run: int, state: str | None = None) -> list[TaskRow]:
        """The task runs of a run, by seq; those in one state, if it is given."""
        ...

    def children(self, run: int) -> list[RunRow]:
        """The direct child runs of a run."""
        ...

    def marks(self, run: int) -> list[MarkRow]:
        """The recorded decisions of a run, by scope and n."""
        ...

    def artifact_keys(self, run: int) -> list[str]:
        """The keys of what a run shows."""
        ...

    def limits(self) -> list[LimitRow]: ...

    def cached(self, keys: Sequence[bytes]) -> list[CacheRow]:
        """The results with these keys, as many as there are, also expired ones."""
        ...

    def drop_cached(
        self, task: str | None = None, expired: float | None = None, limit: int | None = None
    ) -> int:
        """Forget results for other runs; how many went.

        Only those of *task* (its name), only those that had expired at *expired*, and at most
        *limit*, where these are given.
        """
        ...

    def share(
        self,
        engine: int,
        demands: Sequence[Demand],
        is_alive: Callable[[int], bool],
        now: float,
    ) -> list[Part]:
        """Divide named limits among the engines, all in one step: the parts of *engine*."""
        ...

    def drop_shares(self, engine: int, free_at: dict[str, float]) -> None:
        """An engine has ended: it has nothing more, or until the given times of some limits."""
        ...

    def tell(self, engine: int, notices: Sequence[NoticeRow], before: float) -> None:
        """All that an engine tells from now on; what others told before a time is removed.

        What it has told goes with `close_engine`.
        """
        ...

    def unfinished(self, besides: int = 0) -> list[tuple[RunRow, EngineRow | None]]:
        """Root runs that have not ended (also PAUSED ones), each with the engine that owns it;
        those of the engine *besides* are left out."""
        ...

    def request(self, run: int, kind: str, time: float) -> None:
        """Ask the engine that owns a run for something, such as "cancel"."""
        ...

    def requests(self, engine: int) -> list[tuple[int, str]]:
        """What is asked of the runs that *engine* owns: pk and kind. They are then forgotten."""
        ...

    def send(self, message: MessageRow, *, once: bool = False) -> MessageRow | None:
        """Keep a message. With *once*, None where that run has one of that name already."""
        ...

    def newest_message(self) -> int:
        """The id of the last message that was sent; 0 if there was none."""
        ...

    def messages(self, run: int, after: int) -> list[MessageRow]:
        """What was sent to a run, or to all since it was created, or came into this store, with ids
        above *after*."""
        ...

    def copy_run(
        self,
        source: int,
        row: RunRow,
        states: Sequence[StateRow],
        below: int,
        edited: Sequence[TaskRow] = (),
    ) -> RunRow:
        """Add a run that begins with what another has: a fork.

        Copied are task runs, child runs (with all that is theirs, under new ids), attempts and
        marks of *source* with numbers smaller than *below*, and what those task runs show; *edited*
        task runs take the places of those with the same numbers. Where its idempotency key is
        taken, nothing is copied, and the row that has it is returned.
        """
        ...

    def dump(self, run: int) -> Iterator[AnyRow]:
        """All that belongs to a run and to the runs below it, as of one moment; nothing where there
        is none.

        The row of each run comes first, after those of the runs above it, and what belongs to it
        follows: events, messages, task runs by seq, attempts, marks by scope and n, log lines,
        artifacts by id.

        May be called, and read, by any one thread, while others use the store.
        """
        ...

    def load(self, rows: Iterable[AnyRow], renumber: Renumber) -> RunRow:
        """Add a run with all that is below it, in one transaction: the row that it got.

        All numbers are of the caller's making; runs, messages and the marks that name messages get
        new ones here. An idempotency key that another run has here is dropped. Events of negative
        epoch happened elsewhere: `events_after` calls them so.

        May be called by any one thread, while others use the store.

        Args:
            rows: as `dump` gives them; results are in the rows, never in files. Where this raises,
                nothing is kept of what came before.

        Raises:
            RunExists: a run has the id of one of them.
        """
        ...

    def delete_run(self, run: int) -> int:
        """Remove a run and everything below it, files and cached results included; how many runs
        went."""
        ...

    def expired(
        self, before: float, flow: str | None, keep: int, limit: int
    ) -> list[tuple[int, str]]:
        """Root runs that ended before a time, oldest first: pk and id.

        Args:
            before: seconds since the epoch.
            flow: only runs of this flow; None: of all.
            keep: so many of the newest ended runs of each flow are left out.
        """
        ...

    def trim_run(self, run: int, rows: int) -> bool:
        """Remove about *rows* rows of what belongs to an ended run, in one short transaction.

        Returns whether so little is left that `delete_run` is short, too.
        """
        ...

    def plan(self, work: Callable[[Planning], T]) -> T:
        """Do something to deployments, schedules, automations, deliveries or commands, in a
        transaction."""
        ...

    def asked(self) -> int:
        """How many commands are open."""
        ...

    def events_after(self, after: int, limit: int) -> list[tuple[EventRow, RunInfo | None]]:
        """What has happened since the event with an id, oldest first, and of which runs.

        The `kind` of what happened before its run was imported is ELSEWHERE.
        """
        ...

    def newest_event(self) -> int:
        """The id of the last event; 0 if there was none."""
        ...

    def prune_events(self, before: float, limit: int) -> int:
        """Remove old events that belong to no run, at most so many; how many went."""
        ...

    def load_file(self, name: str) -> bytes:
        """The bytes of a large result; ResultUnreadable when they are gone or damaged."""
        ...

    def checkpoint(self) -> None:
        """Fold what was appended into the main file, if it is worth it (SQLite: the WAL)."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RunQuery:
    """Which runs to list, newest first.

    Attributes:
        states: StateType values; `names`: state names, such as "Interrupted". Any of either;
            empty for all.
        paused_as: of those that are PAUSED, only those with these names; empty for all.
        flow: the flow's name.
        tags: all of them must be there.
        since: created at or after, seconds since the epoch.
        parent: pk of the parent; -1 for any, None for roots only.
        id_prefix: ids that begin so.
        deployment: of this one.
        text: somewhere in the name, the flow's name or the message; case does not matter.
        after: list only runs older than this pk (the cursor).
        limit: at most this many rows.
    """

    states: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    paused_as: tuple[str, ...] = ()
    flow: str | None = None
    tags: tuple[str, ...] = ()
    since: float | None = None
    parent: int | None = -1
    id_prefix: str = ""
    deployment: str | None = None
    text: str = ""
    after: int | None = None
    limit: int = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskQuery:
    """Which task runs of one run to list, by seq.

    Attributes:
        states: StateType values; `names`: state names. Any of either; empty for all.
        after: list only those with a higher seq (the cursor).
    """

    run: int
    states: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    task: str | None = None
    after: int = 0
    limit: int = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class LogQuery:
    """Which log lines of one run to list, oldest first; `after` is the id of the last one seen."""

    run: int
    seq: int | None = None
    level: int = 0
    text: str = ""
    after: int = 0
    limit: int = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class EventQuery:
    """Which events to list.

    Attributes:
        run: pk of the run that they are about; None: of all.
        kinds: such as "flow-run.Failed", or "task-run.*" for all that begin so; empty for all.
        since: at or after, seconds since the epoch.
        after: list only those with a higher id (newest first: with a lower one; 0: from the end).
        newest: newest first.
    """

    run: int | None = None
    kinds: tuple[str, ...] = ()
    since: float | None = None
    after: int = 0
    newest: bool = False
    limit: int = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactQuery:
    """Which artifacts of one run to list, in the order in which they were first made.

    Attributes:
        seq: only of this task run; 0: only of the flow itself; None: of all.
        key: only the one with this key.
        kinds: such as "table"; empty for all.
        data: whether their data is wanted; without, it is empty.
        after: list only those with a higher id.
    """

    run: int
    seq: int | None = None
    key: str | None = None
    kinds: tuple[str, ...] = ()
    data: bool = True
    after: int = 0
    limit: int = 200


class TaskCount(NamedTuple):
    """How many task runs of a task are in a state, for summaries."""

    task: str
    state: str
    state_name: str | None
    count: int  # type: ignore[assignment] # hides tuple.count, which nobody asks a record for
    first_started: float | None
    last_ended: float | None


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """Some rows and, when there are more, where to go on."""

    rows: list[T]
    next_cursor: int | None


@runtime_checkable
class Reader(Protocol):
    """The asking side. Never blocks the loop, never changes anything."""

    async def find_run(self, run_id: str) -> RunRow | None: ...

    async def runs(self, query: RunQuery) -> Page[RunRow]: ...

    async def task_runs(self, query: TaskQuery) -> Page[TaskRow]: ...

    async def task_counts(self, run: int) -> list[TaskCount]: ...

    async def attempts(self, run: int, seq: int | None = None) -> list[AttemptRow]: ...

    async def logs(self, query: LogQuery) -> Page[tuple[int, LogRow]]: ...

    async def states(self, run: int) -> list[StateRow]: ...

    async def artifacts(self, query: ArtifactQuery) -> Page[ArtifactRow]: ...

    async def events(self, query: EventQuery) -> Page[EventRow]: ...

    async def run_infos(self, runs: Sequence[int]) -> dict[int, RunInfo]:
        """What there is to tell of runs, by pk."""
        ...

    async def created_since(
        self, since: float, width: float, limit: int
    ) -> list[tuple[float, str, int]]:
        """How many of the newest root runs since a time were created in each span, by state.

        Args:
            width: of a span, in seconds; the first begins at the epoch.
            limit: at most so many runs are counted.

        Returns:
            When the span begins, the state, and how many.
        """
        ...

    async def flow_names(self, limit: int) -> list[str]:
        """The names of flows that have runs, in order."""
        ...

    async def open_runs(self) -> list[OpenRuns]:
        """How many runs have not ended, of each flow in each state."""
        ...

    async def ended_runs(self, after: int, until: int) -> list[tuple[str, str, int]]:
        """How many runs have ended, by flow and state: as events tell, after one up to another."""
        ...

    async def spans(
        self, run: int, limit: int
    ) -> list[tuple[int, str, float, float | None, str, int]]:
        """Task runs that have begun, by seq: number, task, begin, end, state and attempt."""
        ...

    async def edges(self, run: int, limit: int) -> list[tuple[str, str]]:
        """Which tasks of a run took what others gave, or were called by them: the other one first.

        As far as the first *limit* of its task runs that did, of either kind, tell.
        """
        ...

    async def limits(self) -> tuple[list[LimitRow], list[ShareRow]]:
        """The limits that were set for all, and what each engine has of which."""
        ...

    async def notices(self, kind: str, names: Sequence[str] | None = None) -> list[NoticeRow]:
        """What engines tell, dead ones too; None: of all names."""
        ...

    async def planned(self, question: Question[T]) -> list[T]:
        """The answer to a question about what `Store.plan` can change."""
        ...

    async def engine(self, engine: int) -> EngineRow | None: ...

    async def aclose(self) -> None: ...


@runtime_checkable
class ReadableStore(Store, Protocol):
    """A store that answers questions too: what an engine is given."""

    def reader(self) -> Reader:
        """A reader of what is committed."""
        ...
