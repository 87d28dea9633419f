"""What an engine answers about stored runs: lists of them, and what each has done."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING, Any, cast

from asyncflow import rows
from asyncflow.errors import AsyncflowError, InvalidOption, UnknownRun
from asyncflow.handle import FlowRun
from asyncflow.run import MISSING
from asyncflow.states import StateType, Unread, types_and_names
from asyncflow.store.base import (
    ArtifactQuery,
    EventQuery,
    LogQuery,
    Page,
    ResultKind,
    RunQuery,
    RunRow,
    TaskQuery,
)
from asyncflow.views import (
    Artifact,
    Event,
    Listing,
    LogLine,
    TaskRun,
    as_it_is,
    events_of,
    including_dead,
)

if TYPE_CHECKING:
    from asyncflow.artifacts import Shown
    from asyncflow.diff import RunDiff
    from asyncflow.engine import Engine
    from asyncflow.recovery import Recovery
    from asyncflow.run import Run
    from asyncflow.store.base import ReadableStore, Reader

S = StateType


class Answers:
    """The part of an engine that answers questions."""

    if TYPE_CHECKING:
        # What the engine has, of which this is a part.
        store: ReadableStore
        live: dict[str, Run]
        parent_ids: dict[int, str]
        recovery: Recovery
        shown: Shown
        _reader: Reader | None

        async def flush_logs(self, run: Run) -> None: ...
        async def written(self) -> None: ...

    @property
    def reader(self) -> Reader:
        """What answers questions about stored runs."""
        if self._reader is None:
            self._reader = self.store.reader()
        return self._reader

    async def stored_run(self, run_id: str) -> RunRow:
        row = await self.reader.find_run(str(run_id))
        if row is None:
            raise UnknownRun(str(run_id))
        return row

    async def get_run(self, run_id: str) -> FlowRun[Any]:
        """A handle on a run: live, or stored.

        Raises:
            UnknownRun: there is no such run.
        """
        live = self.live.get(run_id)
        if live is not None:
            return FlowRun(cast("Engine", self), live)
        return FlowRun(cast("Engine", self), None, self.as_it_is(await self.stored_run(run_id)))

    def as_it_is(self, row: RunRow) -> RunRow:
        """A stored run: one that a dead engine left is not running."""
        if row.engine is None or S(row.state).is_final or self.recovery.owned(row):
            return row
        return as_it_is(row)

    async def runs(
        self,
        *,
        state: str | Iterable[str] | None = None,
        flow: str | None = None,
        tags: str | Iterable[str] | None = None,
        since: datetime | float | None = None,
        parent_id: Any = MISSING,
        limit: int = 200,
        cursor: str | None = None,
    ) -> Listing[FlowRun[Any]]:
        """Runs, newest first; child runs too, unless ``parent_id=None`` asks for roots.

        Args:
            state: one or more state types ("failed") or names ("TimedOut"), in any case.
            flow: the name of a flow.
            tags: one or more tags, all of which a run must have.
            since: created at or after it: a datetime (naive is local time), or seconds since
                the epoch.
            parent_id: the run whose child runs are wanted; None: roots only.
            limit: 1 to 10,000 of them.
            cursor: `next_cursor` of the page before.

        Raises:
            ValueError: an argument makes no sense.
            UnknownRun: there is no run *parent_id*.
        """
        types, names = types_and_names(state)
        asked, fits = including_dead(types, names)
        if not isinstance(since, int | float | datetime | None):
            raise ValueError(f"since={since!r}: give a datetime, or seconds since the epoch")
        await self.written()
        parent: int | None = -1
        if parent_id is None:
            parent = None
        elif parent_id is not MISSING:
            parent = (await self.stored_run(parent_id)).pk
        page = await self.reader.runs(
            RunQuery(
                states=asked,
                names=names,
                flow=flow,
                tags=tuple(sorted(tag_set(tags))),
                since=since if isinstance(since, int | float | None) else since.timestamp(),
                parent=parent,
                after=_cursor(cursor),
                limit=_limit(limit),
            )
        )
        for row in page.rows:
            self.parent_ids[row.pk] = row.id
        for row in page.rows:
            if row.parent is not None and row.parent not in self.parent_ids:
                await self._learn_parents(page)
                break
        rows = [row for row in map(self.as_it_is, page.rows) if fits(row)]
        return Listing(
            [FlowRun(cast("Engine", self), self.live.get(row.id), row) for row in rows],
            str(page.next_cursor) if page.next_cursor is not None else None,
        )

    async def _learn_parents(self, page: Page[RunRow]) -> None:
        missing = {r.parent for r in page.rows if r.parent} - self.parent_ids.keys()
        for pk in missing:
            found = await self.reader.runs(RunQuery(after=(pk or 0) + 1, limit=1))
            for row in found.rows:
                self.parent_ids[row.pk] = row.id

    async def task_runs(
        self,
        run_id: str,
        *,
        state: str | Iterable[str] | None = None,
        task: str | None = None,
        limit: int = 200,
        cursor: str | None = None,
    ) -> Listing[TaskRun]:
        """The task runs of one flow run, in the order in which they were called.

        Args:
            state: one or more state types ("failed") or names ("TimedOut"), in any case.
            task: the name of a task.
            limit: 1 to 10,000 of them.
            cursor: `next_cursor` of the page before.

        Raises:
            ValueError: an argument makes no sense.
            UnknownRun: there is no such run.
        """
        types, names = types_and_names(state)
        await self.written()
        row = await self.stored_run(run_id)
        page = await self.reader.task_runs(
            TaskQuery(
                run=row.pk,
                states=types,
                names=names,
                task=task,
                after=_cursor(cursor) or 0,
                limit=_limit(limit),
            )
        )
        return Listing(
            [TaskRun.of_row(row.id, r, self._task_value(r)) for r in page.rows],
            str(page.next_cursor) if page.next_cursor is not None else None,
        )

    def _task_value(self, row: Any) -> Any:
        if row.state != S.COMPLETED:
            return None
        kind, result, what = row.result_kind, row.result, f"task run {row.task}-{row.seq}"
        if kind == ResultKind.JSON:
            return self._value(kind, result, what)
        # Files may be large and pickles run code: not before somebody wants the value.
        return Unread(lambda: self._value(kind, result, what))

    def stored_value(self, row: RunRow) -> Any:
        """The result of a stored run; an exception where it cannot be had."""
        if row.state != S.COMPLETED:
            return None
        return self._value(row.result_kind, row.result, f"the run {row.id}")

    def _value(self, kind: int, data: bytes | None, what: str) -> Any:
        try:
            value = rows.value_of(kind, data, self.store.load_file, what)
        except AsyncflowError as error:
            return error
        return rows.not_stored(what) if value is MISSING else value

    async def logs(
        self,
        run_id: str,
        *,
        level: int = 0,
        text: str = "",
        limit: int = 1000,
        cursor: str | None = None,
    ) -> Listing[LogLine]:
        """The log lines of one flow run, oldest first."""
        live = self.live.get(run_id)
        if live is not None:
            await self.flush_logs(live)
        await self.written()
        row = await self.stored_run(run_id)
        page = await self.reader.logs(
            LogQuery(
                run=row.pk, level=level, text=text, after=_cursor(cursor) or 0, limit=_limit(limit)
            )
        )
        return Listing(
            [LogLine.of_row(row.id, line) for _, line in page.rows],
            str(page.next_cursor) if page.next_cursor is not None else None,
        )

    async def events(
        self,
        run_id: str | None = None,
        *,
        kinds: str | Iterable[str] = (),
        since: datetime | float | None = None,
        newest: bool = False,
        limit: int = 200,
        cursor: str | None = None,
    ) -> Listing[Event]:
        """What happened, to one flow run or at all, oldest first.

        Args:
            kinds: only these, such as "flow-run.Failed"; "task-run.*" is all that begin so.
            since: from then on: aware, or seconds since the epoch.
            newest: newest first.
        """
        await self.written()
        pk = None if run_id is None else (await self.stored_run(run_id)).pk
        query = EventQuery(
            run=pk,
            kinds=(kinds,) if isinstance(kinds, str) else tuple(kinds),
            since=since.timestamp() if isinstance(since, datetime) else since,
            after=_cursor(cursor) or 0,
            newest=newest,
            limit=_limit(limit),
        )
        page = await self.reader.events(query)
        return Listing(
            await events_of(self.reader, page.rows),
            str(page.next_cursor) if page.next_cursor is not None else None,
        )

    async def artifacts(
        self,
        run_id: str,
        *,
        kind: str | Iterable[str] = (),
        key: str | None = None,
        task_run_id: str | None = None,
        data: bool = True,
        limit: int = 1000,
        cursor: str | None = None,
    ) -> Listing[Artifact]:
        """What a flow run shows, in the order in which it was first shown.

        Args:
            kind: only "markdown", "table", "link", "image" or "progress", or several of them.
            key: only the one with this key.
            task_run_id: only of this task run.
            data: whether what they hold is wanted; without, `data` is empty.
            limit: 1 to 10,000 of them.
            cursor: `next_cursor` of the page before.

        Raises:
            ValueError: an argument makes no sense.
            UnknownRun: there is no such run.
        """
        live = self.live.get(run_id)
        if live is not None:
            self.shown.flush(live)
        await self.written()
        row = await self.stored_run(run_id)
        page = await self.reader.artifacts(
            ArtifactQuery(
                run=row.pk,
                key=key,
                kinds=(kind,) if isinstance(kind, str) else tuple(kind),
                seq=None if task_run_id is None else _seq_of(row.id, task_run_id),
                data=data,
                after=_cursor(cursor) or 0,
                limit=_limit(limit),
            )
        )
        return Listing(
            [Artifact.of_row(row.id, r) for r in page.rows],
            str(page.next_cursor) if page.next_cursor is not None else None,
        )

    async def diff(self, first: str, second: str) -> RunDiff:
        """Where two runs differ: parameters, state and task runs, matched by their inputs.

        Raises:
            UnknownRun: there is no such run.
        """
        from asyncflow.diff import compare

        await self.written()
        return await compare(
            self.reader, await self.stored_run(first), await self.stored_run(second)
        )


def _seq_of(run_id: str, task_run_id: str) -> int:
    """The number of a task run, by its id."""
    start, _, number = task_run_id.rpartition("-")
    if start != run_id or not (number.isascii() and number.isdigit() and len(number) < 11):
        raise ValueError(f"task_run_id={task_run_id!r} is not one of the run {run_id}")
    return int(number)


def tag_set(tags: str | Iterable[str] | None) -> frozenset[str]:
    """One tag, or several."""
    found = (tags,) if isinstance(tags, str) else tuple(tags or ())
    if not all(isinstance(tag, str) and tag for tag in found):
        raise InvalidOption(f"tags={tags!r}: give names")
    return frozenset(found)


def _limit(limit: int) -> int:
    if not isinstance(limit, int) or isinstance(limit, bool) or not 1 <= limit <= 10_000:
        raise ValueError(f"limit={limit!r}: give a number from 1 to 10,000")
    return limit


def _cursor(cursor: str | None) -> int | None:
    if cursor is None:
        return None
    text = str(cursor)
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise ValueError(f"cursor={cursor!r} is not one that a listing gave")
    return int(text)
