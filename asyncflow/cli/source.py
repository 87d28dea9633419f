"""What commands ask of the place that they look at: one port, before a database or a server.

Its records are those of the store, so that a command prints the same whatever it looks at.
What a place does not tell of a record is empty there: its numbers (`pk`) are those of a database.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from time import time
from typing import Any, NamedTuple, Protocol

from asyncflow import views, why
from asyncflow.cli.place import Place
from asyncflow.engine import Engine, default_database
from asyncflow.errors import StoreError, UnknownRun
from asyncflow.ownership import is_alive
from asyncflow.planned import (
    AutomationInfo,
    Delivery,
    DeploymentInfo,
    Tick,
    automation_infos,
    delivery_listing,
    infos,
    tick_listing,
)
from asyncflow.states import State, StateType
from asyncflow.store.base import (
    ArtifactQuery,
    ArtifactRow,
    AttemptRow,
    EventQuery,
    LogQuery,
    LogRow,
    Page,
    Reader,
    RunQuery,
    RunRow,
    StateRow,
    TaskCount,
    TaskQuery,
    TaskRow,
)
from asyncflow.store.sqlite import SqliteStore
from asyncflow.variables import Variable, stored
from asyncflow.views import Event
from asyncflow.why import limit_json, reason_json

#: Seconds between two looks for what is new in a database.
POLL = 0.3
#: Rows that are read at once.
_MANY = 10_000


class Detail(NamedTuple):
    """A run with its result, its story, and why it is not moving, as the API tells it."""

    row: RunRow
    story: list[StateRow]
    waits: list[dict[str, Any]]


class Runs(Protocol):
    """Whoever lists runs."""

    async def runs(self, query: RunQuery) -> Page[RunRow]: ...


class Source(Runs, Protocol):
    """A place that commands look at and act on."""

    # Looking.

    async def runs(self, query: RunQuery) -> Page[RunRow]:
        """Runs as they are: one whose process has died is Interrupted."""
        ...

    async def detail(self, row: RunRow) -> Detail:
        """All that is told of one run itself."""
        ...

    async def children(self, row: RunRow) -> list[RunRow]:
        """The child runs of a run, oldest first, 1,000 at most."""
        ...

    async def task_counts(self, row: RunRow) -> list[TaskCount]: ...

    async def task_runs(
        self, row: RunRow, states: tuple[str, ...] = (), limit: int | None = None
    ) -> list[TaskRow]:
        """The task runs of a run, by seq; only in some states, only the first, where asked."""
        ...

    async def attempts(self, row: RunRow) -> list[AttemptRow]: ...

    def logs(self, row: RunRow, level: int, text: str) -> AsyncIterator[LogRow]: ...

    async def artifacts(
        self, row: RunRow, kinds: tuple[str, ...] = (), data: bool = True
    ) -> list[ArtifactRow]: ...

    async def deployments(self, name: str | None = None) -> list[DeploymentInfo]: ...

    async def ticks(
        self, name: str, states: tuple[str, ...] = (), limit: int = 200
    ) -> Sequence[Tick]: ...

    async def automations(self, name: str | None = None) -> list[AutomationInfo]: ...

    async def deliveries(
        self,
        automation: str | None = None,
        run: str | None = None,
        states: tuple[str, ...] = (),
        limit: int = 200,
    ) -> list[Delivery]: ...

    async def events(
        self, row: RunRow | None, kinds: tuple[str, ...], since: float | None, limit: int
    ) -> list[Event]:
        """The newest, oldest first."""
        ...

    async def newest_event(self) -> int:
        """The id of the last event; 0: there was none."""
        ...

    def watch(self, row: RunRow | None, kinds: tuple[str, ...], after: int) -> AsyncIterator[Event]:
        """Events as they come, without an end."""
        ...

    async def limits(self) -> list[dict[str, Any]]:
        """Named limits and who holds them, as the API tells it."""
        ...

    async def variables(self, name: str | None = None) -> list[Variable]: ...

    # Acting.

    async def cancel(self, row: RunRow) -> tuple[bool, str, str]:
        """Whether it was still unfinished; the type and the name of the state that it ended in."""
        ...

    async def delete(self, row: RunRow) -> int: ...

    async def answer(self, row: RunRow, data: Any) -> None: ...

    async def pause_deployment(self, name: str, schedule: str | None, paused: bool) -> None: ...

    async def remove_deployment(self, name: str) -> None: ...

    async def enable_automation(self, name: str, enabled: bool) -> None: ...

    async def remove_automation(self, name: str) -> None: ...

    async def set_limit(
        self, name: str, limit: float | None, period: float | None, burst: int | None
    ) -> None: ...

    async def set_variable(self, name: str, value: Any) -> None: ...

    async def delete_variable(self, name: str) -> bool: ...


def path_of(db: str | None) -> Path:
    """Where the database of a command is; None: the usual one."""
    return Path(db) if db else default_database()


def check_exists(path: Path) -> None:
    """Raise StoreError where there is no database."""
    if not path.exists():
        raise StoreError(f"there is no database {path}: name it with --db, or run a flow first")


@contextlib.asynccontextmanager
async def looking(at: Place, *, must_exist: bool = True) -> AsyncIterator[Source]:
    """The place that a command was given.

    Args:
        must_exist: whether a database has to be there; else it is made where something is written.

    Raises:
        StoreError: it is not there.
    """
    if at.server is not None:
        from asyncflow.cli.remote import Server
        from asyncflow.client import Client

        async with Client(at.server) as client:
            yield Server(client)
        return
    async with (
        reading(at.db, must_exist=must_exist) as reader,
        contextlib.AsyncExitStack() as stack,
    ):
        yield Database(path_of(at.db), reader, stack)


@contextlib.asynccontextmanager
async def reading(db: str | None, *, must_exist: bool = True) -> AsyncIterator[Reader]:
    """A reader of a database of this machine.

    Raises:
        StoreError: it is not there.
    """
    path = path_of(db)
    if must_exist:
        check_exists(path)
    reader = SqliteStore(path).reader()
    try:
        yield reader
    finally:
        await reader.aclose()


async def find_run(place: Runs, run_id: str) -> RunRow:
    """The run with this id, or the only one whose id begins so; "last" is the newest root."""
    if run_id == "last":
        found = (await place.runs(RunQuery(parent=None, limit=1))).rows
        if not found:
            raise StoreError("there is no run in this database yet")
        return found[0]
    if len(run_id) >= 4:
        found = (await place.runs(RunQuery(id_prefix=run_id, limit=2))).rows
        if len(found) == 1 or (found and found[0].id == run_id):
            return found[0]
        if len(found) > 1:
            raise StoreError(
                f"several runs have an id that begins with {run_id!r}: give more of it"
            )
    raise UnknownRun(run_id)


class Database:
    """A database on this machine: its reader, and an engine where something is to be done."""

    def __init__(self, path: Path, reader: Reader, stack: contextlib.AsyncExitStack) -> None:
        self._path = path
        self._reader = reader
        self._stack = stack
        self._opened: Engine | None = None

    async def _engine(self) -> Engine:
        if self._opened is None:
            self._opened = await self._stack.enter_async_context(Engine(self._path))
        return self._opened

    def _as_it_is(self, row: RunRow) -> RunRow:
        if row.engine is None or StateType(row.state).is_final:
            return row
        return row if self._is_alive(row.engine) else views.as_it_is(row)

    def _is_alive(self, engine: int) -> bool:
        return is_alive(Path(f"{self._path}.locks"), engine)

    async def runs(self, query: RunQuery) -> Page[RunRow]:
        asked, fits = views.including_dead(query.states, query.names)
        page = await self._reader.runs(replace(query, states=asked))
        rows = [row for row in map(self._as_it_is, page.rows) if fits(row)]
        return Page(rows, page.next_cursor)

    async def detail(self, row: RunRow) -> Detail:
        waits = [reason_json(one) for one in (await why.why(row, self._look())).reasons]
        return Detail(row, await self._reader.states(row.pk), waits)

    async def children(self, row: RunRow) -> list[RunRow]:
        return (await self.runs(RunQuery(parent=row.pk, limit=1000))).rows[::-1]

    async def task_counts(self, row: RunRow) -> list[TaskCount]:
        return await self._reader.task_counts(row.pk)

    async def task_runs(
        self, row: RunRow, states: tuple[str, ...] = (), limit: int | None = None
    ) -> list[TaskRow]:
        rows: list[TaskRow] = []
        after: int | None = 0
        while after is not None and (limit is None or len(rows) < limit):
            page = await self._reader.task_runs(
                TaskQuery(run=row.pk, states=states, after=after, limit=limit or _MANY)
            )
            rows += page.rows
            after = page.next_cursor
        return rows

    async def attempts(self, row: RunRow) -> list[AttemptRow]:
        return await self._reader.attempts(row.pk)

    async def logs(self, row: RunRow, level: int, text: str) -> AsyncIterator[LogRow]:
        after: int | None = 0
        while after is not None:
            page = await self._reader.logs(
                LogQuery(run=row.pk, level=level, text=text, after=after, limit=_MANY)
            )
            for _, line in page.rows:
                yield line
            after = page.next_cursor

    async def artifacts(
        self, row: RunRow, kinds: tuple[str, ...] = (), data: bool = True
    ) -> list[ArtifactRow]:
        rows: list[ArtifactRow] = []
        after: int | None = 0
        while after is not None:
            page = await self._reader.artifacts(
                ArtifactQuery(run=row.pk, kinds=kinds, data=data, after=after, limit=_MANY)
            )
            rows += page.rows
            after = page.next_cursor
        return rows

    async def deployments(self, name: str | None = None) -> list[DeploymentInfo]:
        return await infos(self._reader, time(), name)

    async def ticks(
        self, name: str, states: tuple[str, ...] = (), limit: int = 200
    ) -> Sequence[Tick]:
        return await tick_listing(self._reader, name, states=states, limit=limit)

    async def automations(self, name: str | None = None) -> list[AutomationInfo]:
        return await automation_infos(self._reader, name)

    async def deliveries(
        self,
        automation: str | None = None,
        run: str | None = None,
        states: tuple[str, ...] = (),
        limit: int = 200,
    ) -> list[Delivery]:
        return await delivery_listing(
            self._reader, automation=automation, run=run, states=states, limit=limit
        )

    async def events(
        self, row: RunRow | None, kinds: tuple[str, ...], since: float | None, limit: int
    ) -> list[Event]:
        query = EventQuery(
            run=row.pk if row is not None else None, kinds=kinds, since=since, newest=True,
            limit=limit,
        )  # fmt: skip
        page = await self._reader.events(query)
        return await views.events_of(self._reader, page.rows[::-1])

    async def newest_event(self) -> int:
        page = await self._reader.events(EventQuery(newest=True, limit=1))
        return page.rows[0].id if page.rows else 0

    async def watch(
        self, row: RunRow | None, kinds: tuple[str, ...], after: int
    ) -> AsyncIterator[Event]:
        pk = row.pk if row is not None else None
        while True:
            page = await self._reader.events(
                EventQuery(run=pk, kinds=kinds, after=after, limit=500)
            )
            for event in await views.events_of(self._reader, page.rows):
                after = max(after, event.id)
                yield event
            if page.next_cursor is None:
                await asyncio.sleep(POLL)

    async def limits(self) -> list[dict[str, Any]]:
        return [limit_json(one) for one in await why.limits(self._look())]

    def _look(self) -> why.Look:
        return why.Look(reader=self._reader, is_alive=self._is_alive)

    async def variables(self, name: str | None = None) -> list[Variable]:
        return await stored(self._reader, name)

    async def cancel(self, row: RunRow) -> tuple[bool, str, str]:
        engine = await self._engine()
        try:
            async with asyncio.timeout(engine.grace + 10):
                stopped = await engine.cancel(row.id)
        except TimeoutError:
            raise not_stopped(row.id) from None
        state: State[Any] = (await engine.get_run(row.id)).state
        return stopped, state.type.value, state.name

    async def delete(self, row: RunRow) -> int:
        return await (await self._engine()).delete(row.id)

    async def answer(self, row: RunRow, data: Any) -> None:
        from asyncflow.cli.running import import_from_here

        import_from_here()
        await (await self._engine()).answer(row.id, data)

    async def pause_deployment(self, name: str, schedule: str | None, paused: bool) -> None:
        engine = await self._engine()
        await (engine.pause_deployment if paused else engine.resume_deployment)(name, schedule)

    async def remove_deployment(self, name: str) -> None:
        await (await self._engine()).remove_deployment(name)

    async def enable_automation(self, name: str, enabled: bool) -> None:
        await (await self._engine()).enable_automation(name, enabled)

    async def remove_automation(self, name: str) -> None:
        await (await self._engine()).remove_automation(name)

    async def set_limit(
        self, name: str, limit: float | None, period: float | None, burst: int | None
    ) -> None:
        await (await self._engine()).set_limit(name, limit, period, burst)

    async def set_variable(self, name: str, value: Any) -> None:
        await (await self._engine()).set_variable(name, value)

    async def delete_variable(self, name: str) -> bool:
        return await (await self._engine()).delete_variable(name)


def not_stopped(run_id: str) -> StoreError:
    return StoreError(
        f"the run {run_id} was told to stop, and its process has not stopped it yet: look whether"
        " its event loop is blocked"
    )


__all__ = [
    "Database",
    "Detail",
    "Runs",
    "Source",
    "check_exists",
    "find_run",
    "looking",
    "not_stopped",
    "path_of",
    "reading",
]
