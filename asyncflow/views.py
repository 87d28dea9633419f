"""What users see of runs: plain records, made from live runs and stored rows alike."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from asyncflow import failures
from asyncflow.executor import state_of
from asyncflow.run import Call
from asyncflow.states import State, StateType, default_name

if TYPE_CHECKING:
    from asyncflow.store.base import ArtifactRow, EventRow, LogRow, Reader, RunRow, TaskRow

T = TypeVar("T")


def moment(seconds: float | None) -> datetime | None:
    """Seconds since the epoch as an aware UTC datetime."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


class Listing(list[T], Generic[T]):
    """A page of rows. `next_cursor` leads to the next page; None: this was the last."""

    def __init__(self, rows: Iterable[T], next_cursor: str | None = None) -> None:
        super().__init__(rows)
        self.next_cursor = next_cursor


@dataclass(slots=True, kw_only=True)
class TaskRun:
    """One task run.

    Attributes:
        id: of the task run: the flow run's id and its number.
        name: its own name, or task and number.
        task_key: the task's name.
        attempts: how many attempts were begun; `failures` of them failed, `interruptions` were
            cut off by a crash.
        upstream: ids of the task runs whose futures it took.
    """

    id: str
    name: str
    task_key: str
    state: State[Any]
    parent_id: str | None = None
    attempts: int = 0
    failures: int = 0
    interruptions: int = 0
    created_at: datetime | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    upstream: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    error: str | None = None
    flow_run_id: str = ""

    @property
    def attempt(self) -> int:
        return self.attempts

    @classmethod
    def of_call(cls, call: Call) -> TaskRun:
        """The view of a live call."""
        run_id = call.run.id
        return cls(
            id=f"{run_id}-{call.seq}",
            name=call.display,
            task_key=call.spec.name,
            state=state_of(call),
            parent_id=f"{run_id}-{call.parent.seq}" if call.parent else None,
            attempts=call.attempt,
            failures=call.failures,
            interruptions=call.interruptions,
            created_at=moment(call.created),
            started_at=moment(call.started),
            ended_at=moment(call.ended),
            upstream=[f"{run_id}-{seq}" for seq in call.upstream if seq],
            tags=sorted(call.tags),
            error=str(call.error) if call.error is not None else None,
            flow_run_id=run_id,
        )

    @classmethod
    def of_row(cls, run_id: str, row: TaskRow, value: Any = None) -> TaskRun:
        """The view of a stored row."""
        error = failures.summary(row.error) if row.error else None
        return cls(
            id=f"{run_id}-{row.seq}",
            name=row.name or f"{row.task}-{row.seq}",
            task_key=row.task,
            state=stored_state(
                row.state,
                row.state_name,
                row.message,
                row.ended_at or row.started_at or row.created_at,
                row.attempt,
                value,
                row.error,
            ),
            parent_id=f"{run_id}-{row.parent}" if row.parent else None,
            attempts=row.attempt,
            failures=row.failures,
            interruptions=row.interruptions,
            created_at=moment(row.created_at),
            started_at=moment(row.started_at),
            ended_at=moment(row.ended_at),
            upstream=[f"{run_id}-{seq}" for seq in row.upstream if seq],
            tags=list(row.tags),
            error=error,
            flow_run_id=run_id,
        )


@dataclass(slots=True, kw_only=True)
class LogLine:
    """One stored log line; `level` is a number as in stdlib logging."""

    message: str
    level: int
    time: datetime
    logger: str
    task_run_id: str | None

    @classmethod
    def of_row(cls, run_id: str, row: LogRow) -> LogLine:
        return cls(
            message=row.message,
            level=row.level,
            time=datetime.fromtimestamp(row.time, UTC),
            logger=row.logger,
            task_run_id=f"{run_id}-{row.seq}" if row.seq is not None else None,
        )


@dataclass(slots=True, kw_only=True)
class Event:
    """Something that happened.

    Attributes:
        id: larger than those of all earlier events.
        kind: such as "flow-run.Completed", "task-run.Failed", "schedule.skipped", or what
            `emit_event` was given.
        time: when, aware, in UTC.
        run_id, task_run_id: what it is about; "" and None where it is about no run.
        state: of moves of flow runs and task runs; None of others.
        name: the state's name, or the last part of the kind.
        message: in words; it may be empty.
        epoch: how often the run had been claimed.
        payload: what belongs to it, as plain JSON.
    """

    id: int
    kind: str
    time: datetime
    run_id: str
    task_run_id: str | None
    state: StateType | None
    name: str
    message: str
    epoch: int
    payload: Any

    @classmethod
    def of_row(cls, run_id: str, row: EventRow) -> Event:
        kind = row.called
        return cls(
            id=row.id,
            kind=kind,
            time=datetime.fromtimestamp(row.time, UTC),
            run_id=run_id,
            task_run_id=f"{run_id}-{row.seq}" if row.seq is not None else None,
            state=StateType(row.state) if row.state else None,
            name=row.state_name or kind.rpartition(".")[2],
            message=row.message,
            epoch=max(row.epoch, ~row.epoch),
            payload=json.loads(row.payload) if row.payload is not None else None,
        )


@dataclass(slots=True, kw_only=True)
class Artifact:
    """Something that a run shows.

    Attributes:
        id: of the artifact; the same as long as it is replaced by others of its key.
        key: what it was called; None: it was given no name.
        kind: "markdown", "table", "link", "image" or "progress".
        data: what it holds, by kind. Markdown: `markdown`, as it was written (it is not safe HTML:
            see `asyncflow.server.markdown`), and `bytes` where it was cut. Table: `columns` (None
            where they have no names) and `rows`; `total_rows`, `total_columns` where it was cut.
            Link: `url`, `text`. Image: `mime`, `base64` and `bytes`, or `url`. Progress: `done`,
            `total` (or None) and `message`.
        task_run_id: the task run that made it; None: the flow itself.
        created_at, updated_at: when the first one of its key was made, and the last.
    """

    id: str
    run_id: str
    key: str | None
    kind: str
    description: str
    data: dict[str, Any]
    task_run_id: str | None
    created_at: datetime
    updated_at: datetime

    @classmethod
    def of_row(cls, run_id: str, row: ArtifactRow) -> Artifact:
        return cls(
            id=f"{run_id}:{row.key}",
            run_id=run_id,
            key=None if row.key.startswith("~") else row.key,
            kind=row.kind,
            description=row.description,
            data=json.loads(row.data or b"{}"),
            task_run_id=f"{run_id}-{row.seq}" if row.seq is not None else None,
            created_at=datetime.fromtimestamp(row.created_at, UTC),
            updated_at=datetime.fromtimestamp(row.updated_at, UTC),
        )


def stored_state(
    type_: str,
    name: str | None,
    message: str,
    time: float,
    attempt: int,
    value: Any,
    error: bytes | None,
) -> State[Any]:
    """The public state of a stored row."""
    kind = StateType(type_)
    rebuilt = failures.rebuild(error) if error and kind is not StateType.COMPLETED else None
    if isinstance(value, BaseException) and kind is StateType.COMPLETED:
        rebuilt, value = value, None
    return State(
        kind,
        name or default_name(kind),
        message,
        datetime.fromtimestamp(time, UTC),
        attempt,
        value,
        rebuilt,
    )


async def events_of(reader: Reader, rows: Sequence[EventRow]) -> list[Event]:
    """Stored events, with the ids of the runs that they are about."""
    infos = await reader.run_infos(sorted({row.run for row in rows} - {0}))
    return [Event.of_row(infos[row.run].id if row.run in infos else "", row) for row in rows]


def as_it_is(row: RunRow) -> RunRow:
    """A run whose process has died, as it is until somebody recovers it."""
    return row._replace(
        state=StateType.PAUSED.value,
        state_name="Interrupted",
        message="its process has died: go on with `asyncflow recover`, or engine.recover()",
        engine=None,
    )


#: States of runs that are being run, unless their process has died.
UNDER_WAY = (
    StateType.SCHEDULED.value,
    StateType.PENDING.value,
    StateType.RUNNING.value,
    StateType.CANCELLING.value,
)


def including_dead(
    states: tuple[str, ...], names: tuple[str, ...]
) -> tuple[tuple[str, ...], Callable[[RunRow], bool]]:
    """How to ask a store for runs in these states, and which rows of the answer, as they are, fit.

    Runs whose process has died are stored as if they were under way.
    """
    if not states and not names:
        return (), lambda _: True
    more = UNDER_WAY if StateType.PAUSED.value in states or "Interrupted" in names else ()
    return (*states, *more), lambda row: row.state in states or row.state_name in names


def row_state(row: RunRow, value: Any = None) -> State[Any]:
    """The public state of a stored flow run."""
    return stored_state(
        row.state, row.state_name, row.message, row.state_at, row.attempt, value, row.error
    )
