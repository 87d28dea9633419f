"""State in plain dicts: for tests, for runs that nobody has to resume, and as the reference.

It keeps every rule of `asyncflow.store.base`, so that what a store has to do can be read here.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import wraps
from itertools import islice
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from asyncflow.errors import ResultUnreadable, RunExists, RunTaken
from asyncflow.ids import new_run_id
from asyncflow.shares import Demand, Part, ShareRow, divide
from asyncflow.states import StateType
from asyncflow.store.base import (
    ALL,
    ARRIVED,
    ELSEWHERE,
    IMPORTED,
    AnyRow,
    ArtifactQuery,
    ArtifactRow,
    AttemptRow,
    CacheRow,
    EngineRow,
    EventQuery,
    EventRow,
    LimitRow,
    LogQuery,
    LogRow,
    MarkRow,
    MessageRow,
    NoticeRow,
    OpenRuns,
    Page,
    Renumber,
    RunInfo,
    RunQuery,
    RunRow,
    StateRow,
    TaskCount,
    TaskQuery,
    TaskRow,
    WorkError,
    Writes,
)
from asyncflow.store.planning import OPEN_COMMANDS, Planning, Question

if TYPE_CHECKING:
    import sqlite3

    from asyncflow.store.usertables import UserConnection

T = TypeVar("T")
P = ParamSpec("P")


def _whole(method: Callable[Concatenate[Any, P], T]) -> Callable[Concatenate[Any, P], T]:
    """Nobody sees half of what a method does, though its reader is asked by another thread."""

    @wraps(method)
    def locked(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> T:
        with self._lock:
            return method(self, *args, **kwargs)

    return locked


class MemoryStore:
    """A store in memory. It may be opened, closed and opened again; it lives with its object."""

    def __init__(self) -> None:
        self.name = "memory"
        self._lock = threading.RLock()
        self._engines: dict[int, EngineRow] = {}
        self._runs: dict[int, RunRow] = {}
        self._tasks: dict[int, dict[int, TaskRow]] = {}
        self._attempts: dict[tuple[int, int, int], AttemptRow] = {}
        self._logs: dict[int, LogRow] = {}
        self._events: dict[int, EventRow] = {}
        self._marks: dict[tuple[int, bytes, int], MarkRow] = {}
        self._artifacts: dict[tuple[int, str], ArtifactRow] = {}
        self._limits: dict[str, LimitRow] = {}
        self._cache: dict[bytes, CacheRow] = {}
        self._requests: dict[tuple[int, str], float] = {}
        self._messages: list[MessageRow] = []
        self._shares: dict[tuple[str, int], ShareRow] = {}
        self._notices: dict[int, list[NoticeRow]] = {}
        self._user: UserConnection | None = None  # a database for the tables of users
        self._plans: sqlite3.Connection | None = None  # and one for what is planned
        self._last_pk = 0
        self._last_log = 0
        self._last_event = 0
        self._last_artifact = 0

    def copy(self) -> MemoryStore:
        """Another store with what is in this one now. Rows never change, so they are shared."""
        twin = MemoryStore()
        with self._lock:
            for name in vars(twin):
                value = getattr(self, name)
                if isinstance(value, dict | list):
                    setattr(twin, name, value.copy())
                elif isinstance(value, int):
                    setattr(twin, name, value)
            twin._tasks = {run: tasks.copy() for run, tasks in self._tasks.items()}
            if self._user is not None:
                self._user.backup(twin._tables())
            if self._plans is not None:
                self._plans.backup(twin._planned())
        return twin

    def open(self, durability: str) -> None:
        """Nothing has to be opened."""

    def close(self) -> None:
        """What is there stays, for the next who opens it."""

    # --- writing --------------------------------------------------------------------------------

    @_whole
    def write(self, writes: Writes, *, wait: bool = True) -> bool:
        self._check_fences(writes.fences)
        for task in writes.tasks:
            self._tasks.setdefault(task.run, {})[task.seq] = task
        for row in writes.runs:
            self._runs[row.pk] = row
        for mark in writes.marks:
            self._marks[mark.run, mark.scope, mark.n] = mark
        for attempt in writes.attempts:
            self._attempts[attempt.run, attempt.seq, attempt.attempt] = attempt
        for cached in writes.cache:
            self._cache[cached.key] = cached
        self._tell(writes.states)
        self.emit(writes.events)
        for line in writes.logs:
            self._last_log += 1
            self._logs[self._last_log] = line
        for artifact in writes.artifacts:
            self._show(artifact)
        for limit in writes.limits:
            if limit.limit is None:
                self._limits.pop(limit.name, None)
            else:
                self._limits[limit.name] = limit
        return True

    def _show(self, row: ArtifactRow) -> None:
        at = row.run, row.key
        known = self._artifacts.get(at)
        if not row.data:
            self._artifacts.pop(at, None)
        elif known is not None:
            self._artifacts[at] = row._replace(id=known.id, created_at=known.created_at)
        else:
            self._last_artifact += 1
            self._artifacts[at] = row._replace(id=self._last_artifact)

    def _check_fences(self, fences: dict[int, int]) -> None:
        for pk, epoch in fences.items():
            run = self._runs.get(pk)
            if run is None or run.epoch != epoch:
                raise RunTaken(
                    f"another engine has taken over run number {pk}: what this one did since is"
                    " not recorded, and it must stop"
                )

    def _tables(self) -> UserConnection:
        """The database of users' tables, made when it is first asked for."""
        if self._user is None:
            import sqlite3

            from asyncflow.store.usertables import UserConnection

            db = self._user = sqlite3.connect(
                ":memory:", isolation_level=None, check_same_thread=False, factory=UserConnection
            )
            db.execute("PRAGMA foreign_keys = ON")
        return self._user

    @_whole
    def transact(
        self, fences: dict[int, int], work: Callable[[sqlite3.Connection], TaskRow | None]
    ) -> None:
        import sqlite3

        from asyncflow.store.usertables import do

        self._check_fences(fences)
        db = self._tables()
        db.row_factory, db.text_factory = None, str
        db.execute("BEGIN IMMEDIATE")
        try:
            row = do(db, work, frozenset())
            try:
                db.execute("COMMIT")
            except sqlite3.IntegrityError as error:
                raise WorkError from error
        finally:
            if db.in_transaction:
                db.execute("ROLLBACK")
        if row is not None:
            self._tasks.setdefault(row.run, {})[row.seq] = row

    @_whole
    def create_run(self, row: RunRow, states: Sequence[StateRow]) -> tuple[RunRow, bool]:
        if row.idempotency_key is not None:
            for taken in self._runs.values():
                if taken.idempotency_key == row.idempotency_key:
                    return taken, False
        self._last_pk += 1
        pk = self._last_pk
        row = self._runs[pk] = row._replace(pk=pk, root=row.root or pk)
        self._tell([state._replace(run=pk) for state in states])
        return row, True

    @_whole
    def register_engine(self, row: EngineRow) -> EngineRow:
        row = row._replace(id=len(self._engines) + 1)
        self._engines[row.id] = row
        return row

    @_whole
    def close_engine(self, engine: int, time: float) -> None:
        self._engines[engine] = self._engines[engine]._replace(closed_at=time)
        self._notices.pop(engine, None)

    @_whole
    def claim(
        self, run: int, engine: int, epoch: int, *, recovers: bool = False
    ) -> list[RunRow] | None:
        root = self._runs.get(run)
        if root is None or root.epoch != epoch:
            return None
        below = [
            row
            for row in self._runs.values()
            if row.root == run and row.pk != run and not StateType(row.state).is_final
        ]
        claimed = []
        for row in (root, *below):
            more = recovers and row.pk == run
            row = row._replace(engine=engine, epoch=row.epoch + 1, recoveries=row.recoveries + more)
            self._runs[row.pk] = row
            claimed.append(row)
        self._requests = {k: v for k, v in self._requests.items() if k[0] != run}
        return claimed

    @_whole
    def request(self, run: int, kind: str, time: float) -> None:
        self._requests[run, kind] = time

    @_whole
    def requests(self, engine: int) -> list[tuple[int, str]]:
        found = [
            key for key in self._requests if (r := self._runs.get(key[0])) and r.engine == engine
        ]
        for key in found:
            del self._requests[key]
        return found

    @_whole
    def send(self, message: MessageRow, *, once: bool = False) -> MessageRow | None:
        same = [m for m in self._messages if m.run == message.run and m.name == message.name]
        if once and same:
            return None
        last = self._messages[-1].id if self._messages else 0
        message = message._replace(id=last + 1)
        self._messages.append(message)
        return message

    @_whole
    def newest_message(self) -> int:
        return self._messages[-1].id if self._messages else 0

    @_whole
    def messages(self, run: int, after: int) -> list[MessageRow]:
        created = self._runs[run].created_at
        of_it = [m for m in self._messages if m.run == run]
        arrived = max((m.id for m in of_it if m.name == ARRIVED), default=0)
        return [
            m
            for m in self._messages
            if m.id > after
            and m.name != ARRIVED
            and (m.run == run or (m.run is None and m.time >= created and m.id > arrived))
        ]

    @_whole
    def copy_run(
        self,
        source: int,
        row: RunRow,
        states: Sequence[StateRow],
        below: int,
        edited: Sequence[TaskRow] = (),
    ) -> RunRow:
        row, created = self.create_run(row, states)
        if created:
            self._copy(source, row, below)
            self._tasks[row.pk].update({task.seq: task._replace(run=row.pk) for task in edited})
        return row

    def _copy(self, source: int, row: RunRow, below: int) -> None:
        pk = row.pk
        self._tasks[pk] = {
            seq: task._replace(run=pk)
            for seq, task in self._tasks.get(source, {}).items()
            if seq < below
        }
        for attempt in [a for a in self._attempts.values() if a.run == source and a.seq < below]:
            self._attempts[pk, attempt.seq, attempt.attempt] = attempt._replace(run=pk)
        for mark in [m for m in self._marks.values() if m.run == source and m.seq < below]:
            self._marks[pk, mark.scope, mark.n] = mark._replace(run=pk)
        for shown in self._shown_by(source):
            # What the flow itself shows, it shows again: only one that is answered as a whole
            # does not run.
            if below == ALL or (shown.seq is not None and shown.seq < below):
                self._show(shown._replace(run=pk))
        for child in [r for r in self._runs.values() if r.parent == source]:
            if (child.parent_seq or 0) < below:
                copied = child._replace(
                    id=new_run_id(row.created_at), parent=pk, root=row.root, engine=None,
                    idempotency_key=None, origin=child.id,
                )  # fmt: skip
                told = self._states(child.pk)
                copied, _ = self.create_run(copied, told)
                self._copy(child.pk, copied, ALL)

    # --- what is planned, and events ------------------------------------------------------------

    def _planned(self) -> sqlite3.Connection:
        """The database of what is planned, made when it is first asked for."""
        if self._plans is None:
            import sqlite3

            from asyncflow.store.sqlite import planning_tables

            self._plans = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
            for statement in planning_tables():
                self._plans.execute(statement)
        return self._plans

    @_whole
    def plan(self, work: Callable[[Planning], T]) -> T:
        db = self._planned()
        before = self._runs.copy(), self._events.copy(), self._requests.copy()
        last = self._last_pk, self._last_event
        db.execute("BEGIN")
        try:
            done = work(Planning(db, self))
            db.execute("COMMIT")
        except BaseException:
            db.execute("ROLLBACK")
            self._runs, self._events, self._requests = before
            self._last_pk, self._last_event = last
            raise
        return done

    @_whole
    def asked(self) -> int:
        if self._plans is None:
            return 0
        return int(self._plans.execute(f"SELECT {OPEN_COMMANDS}").fetchone()[0])

    @_whole
    def unfinished_of(self, deployment: str) -> list[tuple[int, str, str]]:
        return [
            (row.pk, row.id, row.cause or "")
            for row in self._runs.values()
            if row.deployment == deployment
            and not StateType(row.state).is_final
            and row.state_name != "NeedsAttention"
            and row.waits_for != IMPORTED
        ]

    def _tell(self, states: Sequence[StateRow]) -> None:
        self.emit([EventRow(0, *state, None) for state in states])

    @_whole
    def emit(self, rows: Sequence[EventRow]) -> None:
        for row in rows:
            self._last_event += 1
            self._events[self._last_event] = row._replace(id=self._last_event)

    def _states(self, run: int) -> list[StateRow]:
        return [
            StateRow(*row[1:7])
            for row in self._events.values()
            if row.run == run and row.kind is None
        ]

    @_whole
    def events_after(self, after: int, limit: int) -> list[tuple[EventRow, RunInfo | None]]:
        rows = islice((r for r in self._events.values() if r.id > after), limit)
        runs = self._runs
        return [
            (
                row._replace(kind=ELSEWHERE) if row.epoch < 0 else row,
                _info(runs[row.run]) if row.run in runs else None,
            )
            for row in rows
        ]

    @_whole
    def newest_event(self) -> int:
        return self._last_event

    @_whole
    def prune_events(self, before: float, limit: int) -> int:
        gone = [n for n, r in self._events.items() if not r.run and r.time < before][:limit]
        for n in gone:
            del self._events[n]
        return len(gone)

    # --- from and to other stores ---------------------------------------------------------------

    def dump(self, run: int) -> Iterator[AnyRow]:
        yield from self._dump(run)

    @_whole
    def _dump(self, run: int) -> list[AnyRow]:
        rows: list[AnyRow] = []
        for pk in sorted(self._below(run)):
            if pk in self._runs:
                rows.append(self._runs[pk])
                rows += [event for event in self._events.values() if event.run == pk]
                rows += self.messages(pk, 0)
                rows += self.calls(pk)
                rows += sorted(a for a in self._attempts.values() if a.run == pk)
                rows += self.marks(pk)
                rows += [line for line in self._logs.values() if line.run == pk]
                rows += self._shown_by(pk)
        return rows

    def load(self, rows: Iterable[AnyRow], renumber: Renumber) -> RunRow:
        return self._load(list(rows), renumber)

    @_whole
    def _load(self, rows: list[AnyRow], renumber: Renumber) -> RunRow:
        runs = [row for row in rows if isinstance(row, RunRow)]
        known = {row.id for row in self._runs.values()}
        for row in runs:
            if row.id in known:
                raise RunExists(row.id)
        keys = {row.idempotency_key for row in self._runs.values()}
        pks: dict[int, int] = {}
        for row in runs:
            key = None if row.idempotency_key in keys else row.idempotency_key
            above, root = pks.get(row.parent or 0), pks.get(row.root, 0)
            made = row._replace(pk=0, parent=above, root=root, idempotency_key=key)
            pk = pks[row.pk] = self.create_run(made, [])[0].pk
            if self.messages(pk, 0):
                self.send(MessageRow(0, ARRIVED, pk, b"null", row.created_at))
        self._load_rows(rows, pks, renumber)
        return self._runs[pks[runs[0].pk]]

    def _load_rows(self, rows: list[AnyRow], pks: dict[int, int], renumber: Renumber) -> None:
        """Add what belongs to runs, whose new numbers are known."""
        ids: dict[int, dict[int, int]] = {}
        writes = Writes()
        for row in rows:
            match row:
                case RunRow():
                    continue
                case MessageRow():
                    sent = self.send(row._replace(run=pks[row.run or 0]))
                    assert sent is not None
                    ids.setdefault(row.run or 0, {})[row.id] = sent.id
                case MarkRow():
                    mark = renumber(row, ids.get(row.run, {}))
                    writes.marks.append(mark._replace(run=pks[row.run]))
                case EventRow():
                    writes.events.append(row._replace(run=pks[row.run]))
                case TaskRow():
                    writes.tasks.append(row._replace(run=pks[row.run]))
                case AttemptRow():
                    writes.attempts.append(row._replace(run=pks[row.run]))
                case LogRow():
                    writes.logs.append(row._replace(run=pks[row.run]))
                case ArtifactRow():
                    writes.artifacts.append(row._replace(run=pks[row.run]))
        self.write(writes)

    def _below(self, run: int) -> list[int]:
        """A run and all runs below it, by pk."""
        below = [run]
        for pk in below:
            below += [r.pk for r in self._runs.values() if r.parent == pk and r.pk not in below]
        return below

    @_whole
    def delete_run(self, run: int) -> int:
        below = self._below(run)
        gone = 0
        for pk in below:
            gone += self._runs.pop(pk, None) is not None
            self._tasks.pop(pk, None)
        self._attempts = {k: v for k, v in self._attempts.items() if k[0] not in below}
        self._marks = {k: v for k, v in self._marks.items() if k[0] not in below}
        self._artifacts = {k: v for k, v in self._artifacts.items() if k[0] not in below}
        self._requests = {k: v for k, v in self._requests.items() if k[0] not in below}
        self._messages = [m for m in self._messages if m.run not in below]
        self._cache = {k: c for k, c in self._cache.items() if c.run not in below}
        self._logs = {n: r for n, r in self._logs.items() if r.run not in below}
        self._events = {n: r for n, r in self._events.items() if not r.run or r.run not in below}
        return gone

    @_whole
    def expired(
        self, before: float, flow: str | None, keep: int, limit: int
    ) -> list[tuple[int, str]]:
        ended: dict[str, list[RunRow]] = {}
        for row in self._runs.values():
            if row.parent is None and StateType(row.state).is_final:
                ended.setdefault(row.flow_name, []).append(row)
        found = [
            row
            for name, rows in ended.items()
            if flow is None or name == flow
            for row in sorted(rows, key=lambda row: row.pk)[: max(0, len(rows) - keep)]
            if (row.ended_at or row.created_at) < before
        ]
        return [(row.pk, row.id) for row in sorted(found, key=lambda row: row.pk)[:limit]]

    def trim_run(self, run: int, rows: int) -> bool:
        """Nothing here takes long."""
        return True

    def load_file(self, name: str) -> bytes:
        raise ResultUnreadable(f"there is no result file {name[:80]!r}: this store has no files")

    def checkpoint(self) -> None:
        """Nothing has to be folded in."""

    # --- reading --------------------------------------------------------------------------------

    @_whole
    def run(self, run_id: str) -> RunRow | None:
        return next((r for r in self._runs.values() if r.id == run_id), None)

    @_whole
    def run_by_key(self, idempotency_key: str) -> RunRow | None:
        return next((r for r in self._runs.values() if r.idempotency_key == idempotency_key), None)

    @_whole
    def calls(self, run: int, state: str | None = None) -> list[TaskRow]:
        rows = self._tasks.get(run, {}).values()
        found = [row for row in rows if state is None or row.state == state]
        return sorted(found, key=attrgetter("seq"))

    @_whole
    def children(self, run: int) -> list[RunRow]:
        return [r for r in self._runs.values() if r.parent == run]

    @_whole
    def marks(self, run: int) -> list[MarkRow]:
        rows = [m for m in self._marks.values() if m.run == run]
        return sorted(rows, key=lambda row: (row.scope, row.n))

    @_whole
    def artifact_keys(self, run: int) -> list[str]:
        return [row.key for row in self._shown_by(run)]

    def _shown_by(self, run: int) -> list[ArtifactRow]:
        return sorted(row for row in self._artifacts.values() if row.run == run)

    @_whole
    def limits(self) -> list[LimitRow]:
        return [self._limits[name] for name in sorted(self._limits)]

    @_whole
    def cached(self, keys: Sequence[bytes]) -> list[CacheRow]:
        return [self._cache[key] for key in dict.fromkeys(keys) if key in self._cache]

    @_whole
    def drop_cached(
        self, task: str | None = None, expired: float | None = None, limit: int | None = None
    ) -> int:
        gone = [
            row.key
            for row in self._cache.values()
            if (task is None or row.task == task)
            and (expired is None or (row.expires_at is not None and row.expires_at <= expired))
        ]
        gone = gone[:limit]
        for key in gone:
            del self._cache[key]
        return len(gone)

    @_whole
    def share(
        self,
        engine: int,
        demands: Sequence[Demand],
        is_alive: Callable[[int], bool],
        now: float,
    ) -> list[Part]:
        parts = []
        for demand in demands:
            rows = [row for row in self._shares.values() if row.limit == demand.limit]
            part = divide(demand, engine, rows, is_alive, now)
            for row in part.gone:
                del self._shares[row.limit, row.engine]
            for row in part.marked:
                self._shares[row.limit, row.engine] = row
            if part.row is not None:
                self._shares[demand.limit, engine] = part.row
            else:
                self._shares.pop((demand.limit, engine), None)
            parts.append(part)
        return parts

    @_whole
    def drop_shares(self, engine: int, free_at: dict[str, float]) -> None:
        for key, row in list(self._shares.items()):
            if row.engine == engine and row.free_at is None:
                when = free_at.get(row.limit)
                if when is None:
                    del self._shares[key]
                else:
                    self._shares[key] = row._replace(free_at=when, wanted=0.0)

    @_whole
    def tell(self, engine: int, notices: Sequence[NoticeRow], before: float) -> None:
        self._notices[engine] = list(notices)
        for other, rows in self._notices.items():
            self._notices[other] = [row for row in rows if row.time >= before or other == engine]

    @_whole
    def unfinished(self, besides: int = 0) -> list[tuple[RunRow, EngineRow | None]]:
        return [
            (row, self._engines.get(row.engine or 0))
            for row in self._runs.values()
            if row.parent is None
            and not StateType(row.state).is_final
            and (row.engine is None or row.engine != besides)
        ]

    def reader(self) -> MemoryReader:
        return MemoryReader(self)


class MemoryReader:
    """Answers questions about a `MemoryStore`."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store

    async def find_run(self, run_id: str) -> RunRow | None:
        with self._store._lock:
            return self._store.run(run_id)

    async def runs(self, query: RunQuery) -> Page[RunRow]:
        with self._store._lock:
            rows = reversed(self._store._runs.values())
            return _page((r for r in rows if _fits(r, query)), query.limit, lambda row: row.pk)

    async def task_runs(self, query: TaskQuery) -> Page[TaskRow]:
        with self._store._lock:
            rows = (
                r
                for r in self._store.calls(query.run)
                if r.seq > query.after
                and _is_in(r, query)
                and (query.task is None or r.task == query.task)
            )
            return _page(rows, query.limit, lambda row: row.seq)

    async def task_counts(self, run: int) -> list[TaskCount]:
        with self._store._lock:
            groups: dict[tuple[str, str, str | None], list[TaskRow]] = {}
            for row in self._store.calls(run):
                groups.setdefault((row.task, row.state, row.state_name), []).append(row)
            return [
                TaskCount(
                    *key,
                    len(rows),
                    min((r.started_at for r in rows if r.started_at is not None), default=None),
                    max((r.ended_at for r in rows if r.ended_at is not None), default=None),
                )
                for key, rows in groups.items()
            ]

    async def attempts(self, run: int, seq: int | None = None) -> list[AttemptRow]:
        with self._store._lock:
            rows = [
                a
                for a in self._store._attempts.values()
                if a.run == run and (seq is None or a.seq == seq)
            ]
            return sorted(rows, key=lambda row: (row.seq, row.attempt))

    async def logs(self, query: LogQuery) -> Page[tuple[int, LogRow]]:
        with self._store._lock:
            # As LIKE in SQLite does: the case of ASCII letters only is the same.
            text = _lower(query.text)
            rows = (
                (n, r)
                for n, r in self._store._logs.items()
                if r.run == query.run
                and n > query.after
                and r.level >= query.level
                and (query.seq is None or r.seq == query.seq)
                and text in _lower(r.message)
            )
            return _page(rows, query.limit, lambda row: row[0])

    async def states(self, run: int) -> list[StateRow]:
        with self._store._lock:
            return self._store._states(run)

    async def artifacts(self, query: ArtifactQuery) -> Page[ArtifactRow]:
        with self._store._lock:
            rows = (
                r if query.data else r._replace(data=b"")
                for r in self._store._shown_by(query.run)
                if r.id > query.after
                and (query.seq is None or (r.seq or 0) == query.seq)
                and (query.key is None or r.key == query.key)
                and (not query.kinds or r.kind in query.kinds)
            )
            return _page(rows, query.limit, lambda row: row.id)

    async def events(self, query: EventQuery) -> Page[EventRow]:
        with self._store._lock:
            events = self._store._events.values()
            rows = (
                r
                for r in (reversed(events) if query.newest else events)
                if (query.run is None or r.run == query.run)
                and (query.since is None or r.time >= query.since)
                and (not query.after or (r.id < query.after) == query.newest)
                and r.id != query.after
                and (not query.kinds or any(_is_called(r.called, kind) for kind in query.kinds))
            )
            return _page(rows, query.limit, lambda row: row.id)

    async def run_infos(self, runs: Sequence[int]) -> dict[int, RunInfo]:
        with self._store._lock:
            return {pk: _info(self._store._runs[pk]) for pk in runs if pk in self._store._runs}

    async def created_since(
        self, since: float, width: float, limit: int
    ) -> list[tuple[float, str, int]]:
        with self._store._lock:
            rows = (
                (r.created_at // width * width, r.state)
                for r in reversed(self._store._runs.values())
                if r.parent is None and r.created_at >= since
            )
            return [(*key, n) for key, n in sorted(Counter(islice(rows, limit)).items())]

    async def flow_names(self, limit: int) -> list[str]:
        with self._store._lock:
            return sorted({r.flow_name for r in self._store._runs.values()})[:limit]

    async def open_runs(self) -> list[OpenRuns]:
        with self._store._lock:
            counts = Counter(
                (r.flow_name, r.state, r.state_name, r.engine)
                for r in self._store._runs.values()
                if not StateType(r.state).is_final
            )
            return [OpenRuns(*key, count) for key, count in counts.items()]

    async def ended_runs(self, after: int, until: int) -> list[tuple[str, str, int]]:
        with self._store._lock:
            runs = self._store._runs
            counts = Counter(
                (runs[e.run].flow_name, e.state)
                for e in self._store._events.values()
                if after < e.id <= until
                and e.kind is None
                and e.epoch >= 0
                and e.run in runs
                and StateType(e.state).is_final
            )
            return [(*key, count) for key, count in counts.items()]

    async def spans(
        self, run: int, limit: int
    ) -> list[tuple[int, str, float, float | None, str, int]]:
        with self._store._lock:
            rows = (
                (r.seq, r.task, r.started_at, r.ended_at, r.state, r.attempt)
                for r in self._store.calls(run)
                if r.started_at is not None
            )
            return list(islice(rows, limit))

    async def edges(self, run: int, limit: int) -> list[tuple[str, str]]:
        with self._store._lock:
            rows = self._store.calls(run)
        tasks = {row.seq: row.task for row in rows}
        after = islice((row for row in rows if row.upstream), limit)
        below = islice((row for row in rows if row.parent), limit)
        found = {(tasks[up], row.task) for row in after for up in row.upstream if up in tasks}
        found |= {(tasks[row.parent or 0], row.task) for row in below if row.parent in tasks}
        return sorted(found)

    async def limits(self) -> tuple[list[LimitRow], list[ShareRow]]:
        with self._store._lock:
            return self._store.limits(), list(self._store._shares.values())

    async def notices(self, kind: str, names: Sequence[str] | None = None) -> list[NoticeRow]:
        with self._store._lock:
            found = [
                row
                for rows in self._store._notices.values()
                for row in rows
                if row.kind == kind and (names is None or row.name in names)
            ]
        return sorted(found, key=lambda row: (row.name, row.engine))[:10_000]

    async def planned(self, question: Question[T]) -> list[T]:
        with self._store._lock:
            rows = self._store._planned().execute(question.sql, question.values).fetchall()
        return [question.make(row) for row in rows]

    async def engine(self, engine: int) -> EngineRow | None:
        with self._store._lock:
            return self._store._engines.get(engine)

    async def aclose(self) -> None:
        """Nothing has to be closed."""


def _is_in(row: RunRow | TaskRow, query: RunQuery | TaskQuery) -> bool:
    """Whether its state is one of those that are asked for."""
    if not query.states and not query.names:
        return True
    return row.state in query.states or row.state_name in query.names


def _fits(row: RunRow, query: RunQuery) -> bool:
    return (
        _is_in(row, query)
        and (
            not query.paused_as
            or row.state != StateType.PAUSED.value
            or row.state_name in query.paused_as
        )
        and (query.flow is None or row.flow_name == query.flow)
        and (query.since is None or row.created_at >= query.since)
        and (query.deployment is None or row.deployment == query.deployment)
        and (
            not query.text
            or any(
                _lower(query.text) in _lower(text)
                for text in (row.name, row.flow_name, row.message)
            )
        )
        and (query.parent == -1 or row.parent == query.parent)
        and row.id.startswith(query.id_prefix)
        and set(query.tags) <= set(row.tags)
        and (query.after is None or row.pk < query.after)
    )


def _is_called(name: str, wanted: str) -> bool:
    if wanted.endswith("*"):
        return name.startswith(wanted[:-1])
    return name == wanted


def _info(row: RunRow) -> RunInfo:
    return RunInfo(
        row.pk, row.id, row.flow_name, row.name, row.parent, row.tags, row.deployment, row.cause,
        row.parameters, row.error,
    )  # fmt: skip


def _lower(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace").lower()


def _page(rows: Iterable[T], limit: int, cursor: Callable[[T], int]) -> Page[T]:
    found = list(islice(rows, limit + 1))
    if len(found) > limit:
        return Page(found[:limit], cursor(found[limit - 1]))
    return Page(found, None)
