"""State in one SQLite file: written by one connection, read by others, crash-proof by the WAL.

Every writing method is one transaction that takes the write lock at its start (BEGIN
IMMEDIATE), so that it never meets a snapshot that others have made stale. No `sqlite3` error
leaves this module: `StoreError` says which file, what happened and what to do.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import hashlib
import json
import os
import re
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields, replace
from importlib import resources
from operator import attrgetter
from pathlib import Path
from random import random
from typing import Any, NoReturn, TypeVar

from asyncflow import codec
from asyncflow.errors import ResultUnreadable, RunExists, RunTaken, StoreClosed, StoreError
from asyncflow.ids import new_run_id
from asyncflow.shares import Demand, Part, ShareRow, divide
from asyncflow.states import StateType
from asyncflow.store.base import (
    ALL,
    ARRIVED,
    ELSEWHERE,
    IMPORTED,
    INLINE_LIMIT,
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
    ResultKind,
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
from asyncflow.store.planning import TABLES as PLANNING_TABLES
from asyncflow.store.usertables import UserConnection, do, statements
from asyncflow.writer import uncancelled

T = TypeVar("T")

#: Marks the file as ours ("aflw"), so that a foreign database is not written to.
APPLICATION_ID = 0x61666C77
#: Number n brings a file from schema version n - 1 to n. They are only ever added to.
MIGRATIONS = (
    "0001_start",
    "0002_durable",
    "0003_schedules",
    "0004_artifacts",
    "0005_commands",
    "0006_notices",
)
#: What this code reads and writes.
SCHEMA_VERSION = len(MIGRATIONS)

#: Rows that an artifact counts for where a run is removed in small steps.
LARGE = 20

#: WAL frames (pages) beyond which `checkpoint` does something.
WAL_PAGES = 1000

_UNFINISHED = tuple(s.value for s in StateType if not s.is_final)
_MARKS = ",".join("?" * len(_UNFINISHED))
_ENDED = tuple(s.value for s in StateType if s.is_final)
_ENDED_MARKS = ",".join("?" * len(_ENDED))

_RUN_COLUMNS = ", ".join(RunRow._fields)
_TASK_PLAIN = (
    "id, identity, task, parent, state, attempt, created_at, started_at, ended_at, result_kind,"
    " result"
)
_TASK_REST = "name, state_name, message, failures, interruptions, retry_at, upstream, tags, error"
_TASK_ALL = f"{_TASK_PLAIN}, {_TASK_REST}"
_EVENT_COLUMNS = ", ".join(EventRow._fields)
_INFO_COLUMNS = ", ".join(RunInfo._fields)
_INSERT_STATE = (
    "INSERT INTO events (run, time, state, state_name, message, epoch) VALUES (?,?,?,?,?,?)"
)
_INSERT_EVENT = (
    "INSERT INTO events (run, time, state, state_name, message, epoch, kind, seq, payload)"
    " VALUES (?,?,?,?,?,?,?,?,?)"
)
_CACHE_COLUMNS = ", ".join(CacheRow._fields)
#: Keys that one SELECT asks for.
_KEYS = 256
_ARTIFACT_COLUMNS = ", ".join(ArtifactRow._fields)
_ARTIFACT_REST = ", ".join(ArtifactRow._fields[2:])
_SHOW = (
    f"INSERT INTO artifacts (run, {_ARTIFACT_REST}) VALUES (?,?,?,?,?,?,?,?)"
    " ON CONFLICT (run, key) DO UPDATE SET seq = excluded.seq, kind = excluded.kind,"
    " description = excluded.description, data = excluded.data, updated_at = excluded.updated_at"
)
_ATTEMPT_ALL = "id, attempt, started_at, ended_at, retry_at, error"
_FILES = (ResultKind.JSON_FILE, ResultKind.PICKLE_FILE)
_TO_FILE = {
    ResultKind.JSON: ResultKind.JSON_FILE,
    ResultKind.PICKLE: ResultKind.PICKLE_FILE,
}

#: Rows in one INSERT statement. A statement lets go of the GIL once, however many rows it has,
#: and a busy loop in another thread takes its time to give it back.
_CHUNKS = (256, 64, 16, 4, 1)


def _insert(columns: str, rows: int) -> str:
    one = "(" + ",".join("?" * (columns.count(",") + 1)) + ")"
    return f"INSERT OR REPLACE INTO task_runs ({columns}) VALUES {','.join([one] * rows)}"


_INSERT_PLAIN = {n: _insert(_TASK_PLAIN, n) for n in _CHUNKS}
_INSERT_ALL = _insert(_TASK_ALL, 1)
_REPLACE_RUN = (
    f"INSERT OR REPLACE INTO flow_runs ({_RUN_COLUMNS})"
    f" VALUES ({','.join('?' * len(RunRow._fields))})"
)


class SqliteStore:
    """A store in a SQLite file.

    Args:
        path: of the database; its folder is made if it does not exist.
        inline_limit: results above so many bytes go to files in ``PATH.results``.
        busy_timeout: seconds to wait for other processes that write.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        inline_limit: int = INLINE_LIMIT,
        busy_timeout: float = 30.0,
    ) -> None:
        if str(path) == ":memory:":
            raise StoreError(
                "a database in memory cannot be shared with readers: use MemoryStore() instead"
            )
        self.path = Path(path)
        self.name = str(path)
        self._inline_limit = inline_limit
        self._busy_timeout = busy_timeout
        self._results = Path(f"{path}.results")
        self._fsync = False
        self._lasting: set[Path] = set()  # folders of results whose names are known to last
        self._db: sqlite3.Connection | None = None

    # --- opening --------------------------------------------------------------------------------

    def open(self, durability: str) -> None:
        self._fsync = durability == "full"
        folder = self.path.parent
        missing = [made for made in (folder, *folder.parents) if not made.exists()]
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self._fsync:
                # The folder's name too: who made it may have died before it was synced.
                for made in {folder, *missing}:
                    _sync_folder(made.parent)
            if not self.path.exists():
                os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))
        except OSError as error:
            raise StoreError(
                f"the database {self.path} cannot be made: {error.strerror}: give a path in a"
                " folder that can be written to"
            ) from None
        self._check_file()
        try:
            self._db = sqlite3.connect(
                self.path,
                timeout=0,
                isolation_level=None,
                check_same_thread=False,
                cached_statements=256,
            )
            self._patiently(lambda: self._settle_in(durability))
        except sqlite3.Error as error:
            self.close()
            self._translate(error)
        except StoreError:
            self.close()
            raise

    def _check_file(self) -> None:
        if self.path.is_dir():
            raise StoreError(f"{self.path} is a folder: give the path of a database file")

    def _settle_in(self, durability: str) -> None:
        db = self._connection
        db.execute("PRAGMA schema_version").fetchone()
        self._check_identity()
        mode = db.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        if mode != "wal":
            # No error of SQLite, which then goes on without.
            raise StoreError(
                f"the database {self.path} cannot keep a write-ahead log (its journal mode stays"
                f" {mode!r}): give a path on a disk of this machine, not on the network"
            )
        db.execute(f"PRAGMA synchronous = {'FULL' if durability == 'full' else 'NORMAL'}")
        # Only `checkpoint` folds the WAL in, off the loop.
        db.execute("PRAGMA wal_autocheckpoint = 0")
        db.execute("PRAGMA trusted_schema = OFF")
        self._migrate()

    def _check_identity(self) -> None:
        db = self._connection
        # The id comes last: another process may make the tables between two of these.
        tables = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        version = db.execute("PRAGMA user_version").fetchone()[0]
        application = db.execute("PRAGMA application_id").fetchone()[0]
        if application == 0 and version == 0 and tables == 0:
            return
        if application != APPLICATION_ID:
            raise StoreError(
                f"{self.path} is a database of another program: give another path, so that"
                " nothing in it is touched"
            )
        if version > SCHEMA_VERSION:
            raise StoreError(
                f"{self.path} was written by a newer asyncflow (schema {version}; this one knows"
                f" {SCHEMA_VERSION}): upgrade asyncflow, or use another database"
            )

    def _migrate(self) -> None:
        """Bring the file to our schema, one transaction a step; safe when two do it at once."""
        db = self._connection
        found = db.execute("PRAGMA user_version").fetchone()[0]
        if 0 < found < SCHEMA_VERSION:
            self._back_up_before(found)
        for version, name in enumerate(MIGRATIONS, 1):
            if db.execute("PRAGMA user_version").fetchone()[0] >= version:
                continue
            with self._transaction():
                if db.execute("PRAGMA user_version").fetchone()[0] < version:
                    for statement in migration(name):
                        db.execute(statement)
                    db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                    db.execute(f"PRAGMA user_version = {version}")

    def _back_up_before(self, version: int) -> None:
        """Keep the file as it was before its schema is changed, once."""
        target = Path(f"{self.path}.schema-{version}.backup")
        with contextlib.suppress(StoreError):
            if not target.exists():
                self.backup(target)
                return
        if not target.exists():
            raise StoreError(
                f"{self.path} has to be brought from schema {version} to {SCHEMA_VERSION}, and"
                f" the backup {target} that is made before cannot be written: make room for it"
            )

    @property
    def _connection(self) -> sqlite3.Connection:
        if self._db is None:
            raise StoreClosed(f"the database {self.path} is closed")
        return self._db

    def close(self) -> None:
        db, self._db = self._db, None
        if db is not None:
            with contextlib.suppress(sqlite3.Error):
                db.close()

    # --- transactions ---------------------------------------------------------------------------

    @contextlib.contextmanager
    def _transaction(self, wait: bool = True) -> Iterator[sqlite3.Connection]:
        """All or nothing. With wait=False, `_Busy` if another process holds the lock."""
        db = self._connection
        try:
            if wait:
                self._patiently(lambda: db.execute("BEGIN IMMEDIATE"))
            else:
                db.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as error:
            if not wait and _is_busy(error):
                raise _Busy from None
            self._translate(error)
        try:
            yield db
            db.execute("COMMIT")
        except sqlite3.Error as error:
            self._roll_back()
            self._translate(error)
        except BaseException:
            self._roll_back()
            raise

    def _roll_back(self) -> None:
        db = self._connection
        if db.in_transaction:
            with contextlib.suppress(sqlite3.Error):
                db.execute("ROLLBACK")

    def _patiently(self, function: Callable[[], T]) -> T:
        """Do it again while others hold the lock, at random intervals, so that all get a turn."""
        until = time.monotonic() + self._busy_timeout
        wait = 0.0005
        while True:
            try:
                return function()
            except sqlite3.OperationalError as error:
                if not _is_busy(error):
                    raise
                if time.monotonic() >= until:
                    raise StoreError(
                        f"another process has kept the database {self.path} locked for"
                        f" {self._busy_timeout:g} s: look for one that hangs in a transaction"
                    ) from None
                time.sleep(wait * (0.5 + random()))
                wait = min(wait * 1.5, 0.02)

    def _translate(self, error: sqlite3.Error) -> NoReturn:
        name = getattr(error, "sqlite_errorname", "") or ""
        path = self.path
        if name.startswith("SQLITE_NOTADB"):
            text = f"{path} is not a database: give another path; the file was not touched"
        elif name.startswith("SQLITE_CORRUPT"):
            text = (
                f"the database {path} is damaged ({error}): restore a backup, or save what can be"
                " read with `sqlite3 FILE .recover`"
            )
        elif name.startswith("SQLITE_FULL"):
            text = (
                f"the database {path} cannot grow, the disk is full: free some space, then resume"
            )
        elif name.startswith("SQLITE_IOERR"):
            text = f"the disk of the database {path} fails ({name}): mend it, then resume"
        elif name.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM")):
            text = (
                f"the database {path} cannot be written to ({error}): give the path of a file in a"
                " folder that can be"
            )
        elif _is_busy(error):
            text = f"another process keeps the database {path} locked: look for one that hangs"
        elif str(error).startswith(("no such table", "no such column")):
            text = (
                f"the database {path} was written by an older asyncflow ({error}): bring it to the"
                " schema of this one with `asyncflow db migrate`"
            )
        else:
            text = f"the database {path} failed: {error}"
        raise StoreError(text) from error

    def _read(self, function: Callable[[sqlite3.Connection], T]) -> T:
        db = self._connection
        try:
            return self._patiently(lambda: function(db))
        except sqlite3.Error as error:
            self._translate(error)

    # --- writing --------------------------------------------------------------------------------

    def write(self, writes: Writes, *, wait: bool = True) -> bool:
        try:
            return self._write(writes, wait)
        except UnicodeEncodeError:
            return self._write(_encodable(writes), wait)

    def _write(self, writes: Writes, wait: bool) -> bool:
        tasks = self._place_results(writes.tasks)
        runs = self._place_results(writes.runs)
        cache = self._place_results(writes.cache)
        try:
            with self._transaction(wait) as db:
                if writes.fences:
                    _check_fences(db, writes.fences)
                if tasks:
                    _write_tasks(db, tasks)
                if runs:
                    db.executemany(_REPLACE_RUN, [_packed_run(row) for row in runs])
                if writes.marks:
                    db.executemany("INSERT OR REPLACE INTO marks VALUES (?,?,?,?,?)", writes.marks)
                if cache:
                    db.executemany("INSERT OR REPLACE INTO cache VALUES (?,?,?,?,?,?,?,?)", cache)
                if writes.attempts:
                    db.executemany(
                        "INSERT OR REPLACE INTO attempts VALUES (?,?,?,?,?,?)",
                        [(_id(r.run, r.seq), *r[2:]) for r in writes.attempts],
                    )
                if writes.states:
                    db.executemany(_INSERT_STATE, writes.states)
                if writes.events:
                    db.executemany(_INSERT_EVENT, [row[1:] for row in writes.events])
                if writes.logs:
                    db.executemany("INSERT INTO logs VALUES (NULL,?,?,?,?,?,?)", writes.logs)
                if writes.artifacts:
                    _write_artifacts(db, writes.artifacts)
                if writes.limits:
                    _write_limits(db, writes.limits)
        except _Busy:
            return False
        return True

    def transact(
        self, fences: dict[int, int], work: Callable[[sqlite3.Connection], TaskRow | None]
    ) -> None:
        _ = self._connection  # StoreClosed, where it is
        try:
            db = self._user_connection()
        except sqlite3.Error as error:
            self._translate(error)
        try:
            self._transact(db, fences, work)
        finally:
            db.finish()

    def _user_connection(self) -> UserConnection:
        """A new connection each time: what a function does to it is gone with it."""
        db = sqlite3.connect(self.path, timeout=0, isolation_level=None, factory=UserConnection)
        try:
            db.execute(f"PRAGMA synchronous = {'FULL' if self._fsync else 'NORMAL'}")
            db.execute("PRAGMA wal_autocheckpoint = 0").fetchone()
            # It cannot be set in a transaction, so it is the function's only chance.
            db.execute("PRAGMA foreign_keys = ON")
        except BaseException:
            db.finish()
            raise
        return db

    def _transact(
        self,
        db: UserConnection,
        fences: dict[int, int],
        work: Callable[[sqlite3.Connection], TaskRow | None],
    ) -> None:
        try:
            self._patiently(lambda: db.execute("BEGIN IMMEDIATE"))
            _check_fences(db, fences)
            row = do(db, work, own_tables())
            # Its settings are its own, and end here.
            db.row_factory, db.text_factory = None, str
            if row is not None:
                _write_tasks(db, self._place_results([row]))
            try:
                db.execute("COMMIT")
            except sqlite3.IntegrityError as error:
                # A rule of the user's tables that is checked at the end.
                raise WorkError from error
        except sqlite3.Error as error:
            self._translate(error)
        finally:
            if db.in_transaction:
                with contextlib.suppress(sqlite3.Error):
                    db.execute("ROLLBACK")

    def _place_results(self, rows: Sequence[Any]) -> Sequence[Any]:
        """The rows, with large results moved to files."""
        limit = self._inline_limit
        for row in rows:
            if row.result is not None and len(row.result) > limit:
                return [self._placed(row) for row in rows]
        return rows

    def _placed(self, row: Any) -> Any:
        kind = _TO_FILE.get(row.result_kind)
        if kind is None or row.result is None or len(row.result) <= self._inline_limit:
            return row
        try:
            name = self._save(row.result)
        except OSError as error:
            raise StoreError(
                f"a result of {len(row.result):,} bytes cannot be written to {self._results}:"
                f" {error.strerror}: free some space, or return a path instead of the data"
            ) from error
        return row._replace(result_kind=kind, result=name.encode())

    def _save(self, data: bytes) -> str:
        """Write a file that is named by its content, so that no half of it is ever seen."""
        name = hashlib.sha256(data).hexdigest()
        folder = self._results / name[:2]
        path = folder / f"{name}.bin"
        # A power cut may have left a file of this name that is torn: the name proves nothing.
        if not _holds(path, data):
            self._make_folder(folder)
            self._put(path, data)
        elif self._fsync:
            # Whoever wrote it may not have waited for the disk.
            self._make_folder(folder)
            _sync(path)
        if self._fsync:
            _sync_folder(folder)
        return name

    def _make_folder(self, folder: Path) -> None:
        """Make a folder of results, and let its name last before that of a file in it."""
        for made in (self._results, folder):
            made.mkdir(mode=0o700, exist_ok=True)
        if self._fsync and folder not in self._lasting:
            _sync_folder(self._results)
            _sync_folder(self.path.parent)
            self._lasting.add(folder)

    def _put(self, path: Path, data: bytes) -> None:
        fd, temporary = tempfile.mkstemp(dir=path.parent)
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(data)
                if self._fsync:
                    file.flush()
                    os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise

    def load_file(self, name: str) -> bytes:
        if len(name) != 64 or not set(name) <= set("0123456789abcdef"):
            raise ResultUnreadable(f"{name[:80]!r} is not the name of a result file")
        path = self._results / name[:2] / f"{name}.bin"
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ResultUnreadable(
                f"the result file {path} cannot be read: {error.strerror}"
            ) from None
        if hashlib.sha256(data).hexdigest() != name:
            raise ResultUnreadable(f"the result file {path} is damaged: its content has changed")
        return data

    # --- runs and engines -----------------------------------------------------------------------

    def create_run(self, row: RunRow, states: Sequence[StateRow]) -> tuple[RunRow, bool]:
        try:
            return self._create_run(row, states)
        except UnicodeEncodeError:
            return self._create_run(_encodable_row(row), states)

    def _create_run(self, row: RunRow, states: Sequence[StateRow]) -> tuple[RunRow, bool]:
        with self._transaction() as db:
            return _create_run(db, row, states)

    def register_engine(self, row: EngineRow) -> EngineRow:
        with self._transaction() as db:
            cursor = db.execute("INSERT INTO engines VALUES (NULL,?,?,?,?,?,?)", row[1:])
            assert cursor.lastrowid is not None
            return row._replace(id=cursor.lastrowid)

    def close_engine(self, engine: int, time: float) -> None:
        with self._transaction() as db:
            db.execute("UPDATE engines SET closed_at = ? WHERE id = ?", (time, engine))
            db.execute("DELETE FROM notices WHERE engine = ?", (engine,))

    def claim(
        self, run: int, engine: int, epoch: int, *, recovers: bool = False
    ) -> list[RunRow] | None:
        with self._transaction() as db:
            taken = db.execute(
                "UPDATE flow_runs SET engine = ?, epoch = epoch + 1, recoveries = recoveries + ?"
                " WHERE pk = ? AND epoch = ?",
                (engine, recovers, run, epoch),
            )
            if not taken.rowcount:
                return None
            db.execute(
                "UPDATE flow_runs SET engine = ?, epoch = epoch + 1"
                f" WHERE root = ? AND pk <> ? AND state IN ({_MARKS})",
                (engine, run, run, *_UNFINISHED),
            )
            db.execute("DELETE FROM requests WHERE run = ?", (run,))
            rows = db.execute(
                f"SELECT {_RUN_COLUMNS} FROM flow_runs WHERE pk = ?"
                f" UNION ALL SELECT {_RUN_COLUMNS} FROM flow_runs"
                f" WHERE root = ? AND pk <> ? AND state IN ({_MARKS})",
                (run, run, run, *_UNFINISHED),
            ).fetchall()
        return [_run(row) for row in rows]

    def run(self, run_id: str) -> RunRow | None:
        row = self._read(
            lambda db: db.execute(
                f"SELECT {_RUN_COLUMNS} FROM flow_runs WHERE id = ?", (run_id,)
            ).fetchone()
        )
        return _run(row) if row is not None else None

    def run_by_key(self, idempotency_key: str) -> RunRow | None:
        row = self._read(
            lambda db: db.execute(
                f"SELECT {_RUN_COLUMNS} FROM flow_runs WHERE idempotency_key = ?",
                (idempotency_key,),
            ).fetchone()
        )
        return _run(row) if row is not None else None

    def calls(self, run: int, state: str | None = None) -> list[TaskRow]:
        def read(db: sqlite3.Connection) -> list[TaskRow]:
            db.execute("BEGIN")  # two queries that see the same
            try:
                return _calls(db, run, state)
            finally:
                self._roll_back()

        return self._read(read)

    def children(self, run: int) -> list[RunRow]:
        found = self._read(
            lambda db: db.execute(
                f"SELECT {_RUN_COLUMNS} FROM flow_runs WHERE parent = ? ORDER BY pk", (run,)
            ).fetchall()
        )
        return [_run(row) for row in found]

    def marks(self, run: int) -> list[MarkRow]:
        found = self._read(
            lambda db: db.execute(
                "SELECT run, scope, n, value, seq FROM marks WHERE run = ? ORDER BY scope, n",
                (run,),
            ).fetchall()
        )
        return [MarkRow(*row) for row in found]

    def artifact_keys(self, run: int) -> list[str]:
        sql = "SELECT key FROM artifacts WHERE run = ? ORDER BY id"
        return [row[0] for row in self._read(lambda db: db.execute(sql, (run,)).fetchall())]

    def limits(self) -> list[LimitRow]:
        return self._read(
            lambda db: [
                LimitRow(*r)
                for r in db.execute('SELECT name, "limit", period, burst FROM limits ORDER BY name')
            ]
        )

    def cached(self, keys: Sequence[bytes]) -> list[CacheRow]:
        def read(db: sqlite3.Connection) -> list[CacheRow]:
            found = []
            for at in range(0, len(keys), _KEYS):
                some = keys[at : at + _KEYS]
                marks = ",".join("?" * len(some))
                found += db.execute(
                    f"SELECT {_CACHE_COLUMNS} FROM cache WHERE key IN ({marks})", some
                ).fetchall()
            return list(dict.fromkeys(CacheRow(*row) for row in found))

        return self._read(read)

    def drop_cached(
        self, task: str | None = None, expired: float | None = None, limit: int | None = None
    ) -> int:
        where: list[str] = ["1"]
        values: list[Any] = []
        if task is not None:
            where.append("task = ?")
            values.append(task)
        if expired is not None:
            where.append("expires_at <= ?")
            values.append(expired)
        some = f"SELECT key FROM cache WHERE {' AND '.join(where)} LIMIT ?"
        with self._transaction() as db:
            gone = db.execute(
                f"DELETE FROM cache WHERE key IN ({some}) RETURNING result_kind, result",
                (*values, -1 if limit is None else limit),
            ).fetchall()
            files = {result for kind, result in gone if kind in _FILES}
            unused = [name for name in files if not _is_used(db, name)]
        self._unlink(unused)
        return len(gone)

    def unfinished(self, besides: int = 0) -> list[tuple[RunRow, EngineRow | None]]:
        def read(db: sqlite3.Connection) -> list[tuple[RunRow, EngineRow | None]]:
            rows = db.execute(
                f"SELECT {_RUN_COLUMNS} FROM flow_runs WHERE state IN ({_MARKS})"
                " AND parent IS NULL AND (engine IS NULL OR engine <> ?) ORDER BY pk",
                (*_UNFINISHED, besides),
            ).fetchall()
            runs = [_run(row) for row in rows]
            engines = {
                r[0]: EngineRow(*r)
                for r in (
                    db.execute(
                        "SELECT id, pid, host, boot_id, started_at, seen_at, closed_at FROM engines"
                    )
                    if runs
                    else ()  # asked every two seconds, while mostly there are none
                )
            }
            return [(run, engines.get(run.engine or 0)) for run in runs]

        return self._read(read)

    def share(
        self,
        engine: int,
        demands: Sequence[Demand],
        is_alive: Callable[[int], bool],
        now: float,
    ) -> list[Part]:
        parts = []
        with self._transaction() as db:
            for demand in demands:
                rows = [
                    ShareRow(*row)
                    for row in db.execute(
                        'SELECT "limit", engine, units, wanted, since, free_at FROM shares'
                        ' WHERE "limit" = ?',
                        (demand.limit,),
                    )
                ]
                part = divide(demand, engine, rows, is_alive, now)
                gone = [(row.limit, row.engine) for row in part.gone]
                if part.row is None:
                    gone.append((demand.limit, engine))
                db.executemany('DELETE FROM shares WHERE "limit" = ? AND engine = ?', gone)
                kept = [*part.marked, *([part.row] if part.row is not None else [])]
                db.executemany("INSERT OR REPLACE INTO shares VALUES (?,?,?,?,?,?)", kept)
                parts.append(part)
        return parts

    def drop_shares(self, engine: int, free_at: dict[str, float]) -> None:
        with self._transaction() as db:
            db.executemany(
                'UPDATE shares SET free_at = ?, wanted = 0 WHERE engine = ? AND "limit" = ?',
                [(when, engine, limit) for limit, when in free_at.items()],
            )
            db.execute("DELETE FROM shares WHERE engine = ? AND free_at IS NULL", (engine,))

    def tell(self, engine: int, notices: Sequence[NoticeRow], before: float) -> None:
        with self._transaction() as db:
            db.execute("DELETE FROM notices WHERE engine = ? OR time < ?", (engine, before))
            db.executemany("INSERT INTO notices VALUES (?,?,?,?,?)", notices)

    def request(self, run: int, kind: str, time: float) -> None:
        with self._transaction() as db:
            db.execute("INSERT OR REPLACE INTO requests VALUES (?,?,?)", (run, kind, time))

    def requests(self, engine: int) -> list[tuple[int, str]]:
        find = (
            "SELECT r.run, r.kind FROM requests r JOIN flow_runs f ON f.pk = r.run"
            " WHERE f.engine = ?"
        )
        found = self._read(lambda db: db.execute(find, (engine,)).fetchall())
        if found:
            with self._transaction() as db:
                db.executemany("DELETE FROM requests WHERE run = ? AND kind = ?", found)
        return found

    def send(self, message: MessageRow, *, once: bool = False) -> MessageRow | None:
        with self._transaction() as db:
            if once:
                same = db.execute(
                    "SELECT 1 FROM messages WHERE run IS ? AND name = ? LIMIT 1",
                    (message.run, message.name),
                ).fetchone()
                if same is not None:
                    return None
            cursor = db.execute("INSERT INTO messages VALUES (NULL,?,?,?,?)", message[1:])
            assert cursor.lastrowid is not None
            return message._replace(id=cursor.lastrowid)

    def newest_message(self) -> int:
        newest = self._read(lambda db: db.execute("SELECT max(id) FROM messages").fetchone()[0])
        return int(newest or 0)

    def messages(self, run: int, after: int) -> list[MessageRow]:
        found = self._read(lambda db: db.execute(_MESSAGES, (run, after)).fetchall())
        return [MessageRow(*row) for row in found]

    def copy_run(
        self,
        source: int,
        row: RunRow,
        states: Sequence[StateRow],
        below: int,
        edited: Sequence[TaskRow] = (),
    ) -> RunRow:
        edited = self._place_results(edited)
        with self._transaction() as db:
            row, created = _create_run(db, row, states)
            if created:
                _copy(db, source, row, below)
                _write_tasks(db, [task._replace(run=row.pk) for task in edited])
        return row

    # --- what is planned ------------------------------------------------------------------------

    def plan(self, work: Callable[[Planning], T]) -> T:
        with self._transaction() as db:
            return work(Planning(db, _Outside(db)))

    def asked(self) -> int:
        sql = f"SELECT {OPEN_COMMANDS}"
        return int(self._read(lambda db: db.execute(sql).fetchone()[0]))

    def events_after(self, after: int, limit: int) -> list[tuple[EventRow, RunInfo | None]]:
        def read(db: sqlite3.Connection) -> list[tuple[EventRow, RunInfo | None]]:
            sql = f"SELECT {_EVENT_COLUMNS} FROM events WHERE id > ? ORDER BY id LIMIT ?"
            rows = [EventRow(*row) for row in db.execute(sql, (after, limit))]
            infos: dict[int, RunInfo] = {}
            for text, some in _infos_sql(sorted({row.run for row in rows} - {0})):
                infos.update((row[0], _info(row)) for row in db.execute(text, some))
            return [
                (row._replace(kind=ELSEWHERE) if row.epoch < 0 else row, infos.get(row.run))
                for row in rows
            ]

        return self._read(read)

    def newest_event(self) -> int:
        return self._read(_newest_event)

    def prune_events(self, before: float, limit: int) -> int:
        with self._transaction() as db:
            return db.execute(
                "DELETE FROM events WHERE id IN"
                " (SELECT id FROM events WHERE run = 0 AND time < ? LIMIT ?)",
                (before, limit),
            ).rowcount

    # --- from and to other stores ---------------------------------------------------------------

    def dump(self, run: int) -> Iterator[AnyRow]:
        try:
            db = sqlite3.connect(
                f"{self.path.resolve().as_uri()}?mode=ro",
                uri=True,
                timeout=self._busy_timeout,
                isolation_level=None,
            )
            try:
                # One transaction: all of it is what was there at one moment.
                db.execute("BEGIN")
                for pk in sorted(_below(db, run)):
                    yield from _dump(db, pk)
            finally:
                db.close()
        except sqlite3.Error as error:
            self._translate(error)

    def load(self, rows: Iterable[AnyRow], renumber: Renumber) -> RunRow:
        _ = self._connection  # StoreClosed, where it is
        files = _Staged(self._results, self._inline_limit, self._fsync)
        try:
            db = sqlite3.connect(self.path, timeout=self._busy_timeout, isolation_level=None)
            try:
                db.execute(f"PRAGMA synchronous = {'FULL' if self._fsync else 'NORMAL'}")
                db.execute("PRAGMA wal_autocheckpoint = 0").fetchone()
                # What the rows are made of takes its time, and is bigger than memory: it is put
                # aside, so that the write lock is held for no longer than it takes to copy it.
                db.execute("PRAGMA temp_store = FILE")
                for statement in _ASIDE:
                    db.execute(statement)
                _put_aside(db, rows, files)
                self._patiently(lambda: db.execute("BEGIN IMMEDIATE"))
                row = _take_in(db, renumber)
                files.place()
                db.execute("COMMIT")
            finally:
                # What was not committed is gone with it, and so is what was put aside.
                db.close()
        except sqlite3.Error as error:
            self._translate(error)
        except OSError as error:
            if isinstance(error, StoreError):
                raise
            raise StoreError(
                f"a result cannot be written to {self._results}: {error.strerror}: free some space"
            ) from error
        finally:
            files.clear()
        return row

    # --- what goes ------------------------------------------------------------------------------

    def delete_run(self, run: int) -> int:
        with self._transaction() as db:
            below = _below(db, run)
            files: set[bytes] = set()
            gone = 0
            for pk in below:
                low, high = pk << 32, pk << 32 | 0xFFFFFFFF
                files |= {
                    r[0]
                    for r in db.execute(
                        "SELECT result FROM task_runs WHERE id BETWEEN ? AND ?"
                        " AND result_kind IN (?,?) UNION"
                        " SELECT result FROM flow_runs WHERE pk = ? AND result_kind IN (?,?) UNION"
                        " SELECT result FROM cache WHERE run = ? AND result_kind IN (?,?)",
                        (low, high, *_FILES, pk, *_FILES, pk, *_FILES),
                    )
                }
                db.execute("DELETE FROM task_runs WHERE id BETWEEN ? AND ?", (low, high))
                db.execute("DELETE FROM attempts WHERE id BETWEEN ? AND ?", (low, high))
                db.execute("DELETE FROM logs WHERE run = ?", (pk,))
                db.execute("DELETE FROM events WHERE run = ?", (pk,))
                db.execute("DELETE FROM marks WHERE run = ?", (pk,))
                db.execute("DELETE FROM artifacts WHERE run = ?", (pk,))
                db.execute("DELETE FROM requests WHERE run = ?", (pk,))
                db.execute("DELETE FROM messages WHERE run = ?", (pk,))
                db.execute("DELETE FROM cache WHERE run = ?", (pk,))
                gone += db.execute("DELETE FROM flow_runs WHERE pk = ?", (pk,)).rowcount
            unused = [name for name in files if not _is_used(db, name)]
        self._unlink(unused)
        return gone

    def expired(
        self, before: float, flow: str | None, keep: int, limit: int
    ) -> list[tuple[int, str]]:
        one = "" if flow is None else " AND flow_name = ?"
        values: list[Any] = [*_ENDED, before, *([] if flow is None else [flow])]
        newer = ""
        if keep:
            newer = (
                " AND (SELECT count(*) FROM (SELECT 1 FROM flow_runs n"
                " WHERE n.flow_name = f.flow_name AND n.pk > f.pk AND n.parent IS NULL"
                f" AND n.state IN ({_ENDED_MARKS}) LIMIT ?)) >= ?"
            )
            values += [*_ENDED, keep, keep]
        sql = (
            f"SELECT pk, id FROM flow_runs f WHERE parent IS NULL AND state IN ({_ENDED_MARKS})"
            f" AND coalesce(ended_at, created_at) < ?{one}{newer} ORDER BY pk LIMIT ?"
        )
        return self._read(lambda db: db.execute(sql, (*values, limit)).fetchall())

    def trim_run(self, run: int, rows: int) -> bool:
        left = rows
        files: set[bytes] = set()
        with self._transaction() as db:
            for pk in _below(db, run):
                low, high = pk << 32, pk << 32 | 0xFFFFFFFF
                gone = db.execute(
                    "DELETE FROM task_runs WHERE id IN (SELECT id FROM task_runs"
                    " WHERE id BETWEEN ? AND ? LIMIT ?) RETURNING result_kind, result",
                    (low, high, left),
                ).fetchall()
                files |= {result for kind, result in gone if kind in _FILES}
                left -= len(gone)
                if left > 0:
                    left -= db.execute(
                        "DELETE FROM logs WHERE id IN (SELECT id FROM logs WHERE run = ? LIMIT ?)",
                        (pk, left),
                    ).rowcount
                if left > 0:
                    # One of them may be as large as hundreds of other rows.
                    left -= (
                        LARGE
                        * db.execute(
                            "DELETE FROM artifacts WHERE id IN"
                            " (SELECT id FROM artifacts WHERE run = ? LIMIT ?)",
                            (pk, -(-left // LARGE)),
                        ).rowcount
                    )
                if left > 0:
                    gone = db.execute(
                        "DELETE FROM cache WHERE key IN (SELECT key FROM cache WHERE run = ?"
                        " LIMIT ?) RETURNING result_kind, result",
                        (pk, left),
                    ).fetchall()
                    files |= {result for kind, result in gone if kind in _FILES}
                    left -= len(gone)
                if left <= 0:
                    break
            unused = [name for name in files if not _is_used(db, name)]
        self._unlink(unused)
        return left > 0

    def _unlink(self, names: Iterable[bytes]) -> None:
        failed: OSError | None = None
        for name in names:
            text = name.decode()
            try:
                (self._results / text[:2] / f"{text}.bin").unlink(missing_ok=True)
            except OSError as error:
                failed = error
        if failed is not None:
            raise StoreError(
                f"what was deleted from the database {self.path} is gone from it, but its file"
                f" {failed.filename} cannot be removed: {failed.strerror}: remove it yourself"
            ) from failed

    # --- upkeep ---------------------------------------------------------------------------------

    def backup(self, target: Path) -> int:
        """Copy the whole database, as it is at one moment, while others use it; its bytes.

        Raises:
            StoreError: the target exists, or cannot be written.
        """
        if target.exists():
            raise StoreError(f"{target} exists: give the backup another name, or remove it")
        try:
            handle, name = tempfile.mkstemp(dir=target.parent, prefix=f"{target.name}.")
            os.close(handle)
        except OSError as error:
            raise StoreError(f"the backup {target} cannot be written: {error.strerror}") from None
        partial = Path(name)
        try:
            copy = sqlite3.connect(partial)
            try:
                self._connection.backup(copy, pages=4096)
                copy.execute("PRAGMA journal_mode = DELETE").fetchone()
            finally:
                copy.close()
            os.replace(partial, target)
            _sync_folder(target.parent)
            return target.stat().st_size
        except OSError as error:
            raise StoreError(f"the backup {target} cannot be written: {error.strerror}") from None
        except sqlite3.Error as error:
            self._translate(error)
        finally:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)

    def check(self) -> list[str]:
        """What is wrong with the database and its files; empty where nothing is."""
        problems: list[str] = []

        def read(db: sqlite3.Connection) -> None:
            for (line,) in db.execute("PRAGMA quick_check"):
                if line != "ok":
                    problems.append(str(line))
            for table, column in (
                ("logs", "run"), ("events", "nullif(run, 0)"), ("marks", "run"),
                ("artifacts", "run"),
                ("requests", "run"), ("messages", "run"), ("cache", "run"),
                ("task_runs", "id >> 32"), ("attempts", "id >> 32"),
            ):  # fmt: skip
                (count,) = db.execute(
                    f"SELECT count(*) FROM {table} WHERE {column} IS NOT NULL"
                    f" AND {column} NOT IN (SELECT pk FROM flow_runs)"
                ).fetchone()
                if count:
                    problems.append(f"{count:,} rows of {table} belong to no run")
            names = {
                row[0].decode()
                for table in ("task_runs", "flow_runs", "cache")
                for row in db.execute(
                    f"SELECT result FROM {table} WHERE result_kind IN (?,?)", _FILES
                )
            }
            for name in sorted(names):
                try:
                    self.load_file(name)
                except ResultUnreadable as error:
                    problems.append(str(error))
            for table in ("task_runs", "flow_runs", "cache"):
                results = db.execute(
                    f"SELECT result FROM {table} WHERE result_kind IN (?,?)", tuple(_TO_FILE)
                )
                damaged = sum(not codec.is_sound(result) for (result,) in results)
                if damaged:
                    problems.append(f"{damaged:,} results in {table} are damaged")
            stray = [path for path in self._results.glob("??/*.bin") if path.name[:-4] not in names]
            if stray:
                problems.append(f"{len(stray):,} result files belong to no run, such as {stray[0]}")

        self._read(read)
        return problems

    def stats(self) -> dict[str, Any]:
        """Sizes and counts, for people."""

        def read(db: sqlite3.Connection) -> dict[str, Any]:
            def one(sql: str) -> Any:
                return db.execute(sql).fetchone()[0]

            tables = [
                name
                for (name,) in db.execute(
                    "SELECT name FROM sqlite_master WHERE type = 'table'"
                    " AND name NOT LIKE 'sqlite_%' ORDER BY name"
                )
            ]
            return {
                "path": str(self.path),
                "schema": one("PRAGMA user_version"),
                "sqlite": sqlite3.sqlite_version,
                "journal_mode": one("PRAGMA journal_mode"),
                "bytes": one("PRAGMA page_count") * one("PRAGMA page_size"),
                "free_bytes": one("PRAGMA freelist_count") * one("PRAGMA page_size"),
                "wal_bytes": _size(Path(f"{self.path}-wal")),
                "result_files": sum(1 for _ in self._results.glob("??/*.bin")),
                "result_bytes": sum(p.stat().st_size for p in self._results.glob("??/*.bin")),
                "rows": {name: one(f'SELECT count(*) FROM "{name}"') for name in tables},
                "runs": dict(
                    db.execute("SELECT state, count(*) FROM flow_runs GROUP BY state ORDER BY 1")
                ),
                "oldest_run": one("SELECT min(created_at) FROM flow_runs"),
                "newest_run": one("SELECT max(created_at) FROM flow_runs"),
            }

        return self._read(read)

    def vacuum(self) -> tuple[int, int]:
        """Give freed space back to the disk: bytes before and after. Others wait meanwhile."""
        before = _size(self.path)
        try:
            self._patiently(lambda: self._connection.execute("VACUUM"))
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        except sqlite3.Error as error:
            self._translate(error)
        return before, _size(self.path)

    def checkpoint(self) -> None:
        wal = Path(f"{self.path}-wal")
        with contextlib.suppress(OSError):
            if wal.stat().st_size < WAL_PAGES * 4096:
                return
        try:
            self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        except sqlite3.Error as error:
            # What others keep from being folded in is folded in the next time.
            if not _is_busy(error):
                self._translate(error)

    def reader(self) -> SqliteReader:
        return SqliteReader(self)


class _Busy(Exception):
    """Another process holds the write lock."""


def migration(name: str) -> Iterator[str]:
    """The statements of one migration."""
    file = resources.files("asyncflow.store").joinpath("migrations", f"{name}.sql")
    return statements(file.read_text("utf-8"))


@functools.cache
def own_tables() -> frozenset[str]:
    """The names of our tables, in which nobody else writes."""
    made = "".join(statement for name in MIGRATIONS for statement in migration(name))
    return frozenset(re.findall(r"(?:CREATE TABLE|RENAME TO) (\w+)", made))


def planning_tables() -> list[str]:
    """The statements that make the tables of `asyncflow.store.planning`, and no others."""
    about = rf"CREATE (?:TABLE|(?:UNIQUE )?INDEX \w+ ON) (?:{'|'.join(PLANNING_TABLES)})\b"
    return [s for name in MIGRATIONS for s in migration(name) if re.search(about, s)]


def _is_busy(error: sqlite3.Error) -> bool:
    name = getattr(error, "sqlite_errorname", "") or ""
    return name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED"))


def _encodable(writes: Writes) -> Writes:
    """The same with lone surrogates spelled out: one such log line must not stop all writing."""

    return Writes(
        fences=writes.fences,
        **{
            part.name: [_encodable_row(row) for row in getattr(writes, part.name)]
            for part in fields(Writes)
            if part.name != "fences"
        },
    )


def _encodable_row(row: Any) -> Any:
    def clean(value: Any) -> Any:
        if isinstance(value, str):
            return value.encode("utf-8", "backslashreplace").decode()
        return value

    return type(row)(*map(clean, row))


_MESSAGES = (
    "SELECT id, name, run, payload, time FROM messages"
    f" WHERE run = ?1 AND id > ?2 AND name <> '{ARRIVED}'"
    " UNION ALL SELECT m.id, m.name, m.run, m.payload, m.time FROM messages m"
    " JOIN flow_runs f ON f.pk = ?1 AND m.time >= f.created_at WHERE m.run IS NULL AND m.id > ?2"
    f" AND m.id > (SELECT coalesce(max(id), 0) FROM messages WHERE run = ?1 AND name = '{ARRIVED}')"
    " ORDER BY 1"
)


# --- from and to other stores ---------------------------------------------------------------------


def _dump(db: sqlite3.Connection, pk: int) -> Iterator[AnyRow]:
    """A run and what belongs to it."""
    found = db.execute(f"SELECT {_RUN_COLUMNS} FROM flow_runs WHERE pk = ?", (pk,)).fetchone()
    if found is None:
        return
    low, high = pk << 32, pk << 32 | 0xFFFFFFFF
    yield _run(found)
    for r in db.execute(f"SELECT {_EVENT_COLUMNS} FROM events WHERE run = ? ORDER BY id", (pk,)):
        yield EventRow(*r)
    for r in db.execute(_MESSAGES, (pk, 0)):
        yield MessageRow(*r)
    for r in db.execute(
        f"SELECT {_TASK_ALL} FROM task_runs WHERE id BETWEEN ? AND ? ORDER BY id", (low, high)
    ):
        yield _task(r)
    for r in db.execute(
        f"SELECT {_ATTEMPT_ALL} FROM attempts WHERE id BETWEEN ? AND ? ORDER BY id, attempt",
        (low, high),
    ):
        yield AttemptRow(r[0] >> 32, r[0] & 0xFFFFFFFF, *r[1:])
    for r in db.execute(
        "SELECT run, scope, n, value, seq FROM marks WHERE run = ? ORDER BY scope, n", (pk,)
    ):
        yield MarkRow(*r)
    for r in db.execute(
        "SELECT run, seq, time, level, logger, message FROM logs WHERE run = ? ORDER BY id", (pk,)
    ):
        yield LogRow(*r)
    for r in db.execute(
        f"SELECT {_ARTIFACT_COLUMNS} FROM artifacts WHERE run = ? ORDER BY id", (pk,)
    ):
        yield ArtifactRow(*r)


#: Tables of one connection, in a file that is gone with it, for what is about to be taken in.
_ASIDE = (
    f"CREATE TEMP TABLE new_runs AS SELECT {_RUN_COLUMNS} FROM main.flow_runs WHERE 0",
    f"CREATE TEMP TABLE new_tasks AS SELECT {_TASK_ALL} FROM main.task_runs WHERE 0",
    "CREATE TEMP TABLE new_attempts AS SELECT * FROM main.attempts WHERE 0",
    f"CREATE TEMP TABLE new_events AS SELECT {_EVENT_COLUMNS} FROM main.events WHERE 0",
    "CREATE TEMP TABLE new_messages AS SELECT * FROM main.messages WHERE 0",
    "CREATE TEMP TABLE new_marks AS SELECT * FROM main.marks WHERE 0",
    "CREATE TEMP TABLE new_logs AS SELECT * FROM main.logs WHERE 0",
    f"CREATE TEMP TABLE new_artifacts AS SELECT {_ARTIFACT_COLUMNS} FROM main.artifacts WHERE 0",
)
#: By what the rows of one run are found there.
_BY_RUN = (
    ("new_tasks", "id"), ("new_attempts", "id"), ("new_events", "run"), ("new_messages", "run"),
    ("new_marks", "run"), ("new_logs", "run"), ("new_artifacts", "run"),
)  # fmt: skip


def _put_aside(db: sqlite3.Connection, rows: Iterable[AnyRow], files: _Staged) -> None:
    """Read all rows, without a lock that others could meet."""
    waiting: list[tuple[Any, ...]] = []
    into = ""
    db.execute("BEGIN")
    for row in rows:
        table, values = _aside(row, files)
        if isinstance(row, RunRow):
            # In between, since what is read in a transaction keeps the WAL from being folded in.
            db.execute("COMMIT")
            _check_free(db, row.id)
            db.execute("BEGIN")
        if table != into or len(waiting) >= _KEYS:
            _put(db, into, waiting)
            into, waiting = table, []
        waiting.append(values)
    _put(db, into, waiting)
    for table, column in _BY_RUN:
        db.execute(f"CREATE INDEX temp.{table}_run ON {table} ({column})")
    db.execute("COMMIT")


def _put(db: sqlite3.Connection, table: str, rows: list[tuple[Any, ...]]) -> None:
    if rows:
        marks = ",".join("?" * len(rows[0]))
        db.executemany(f"INSERT INTO temp.{table} VALUES ({marks})", rows)


def _aside(row: AnyRow, files: _Staged) -> tuple[str, tuple[Any, ...]]:
    match row:
        case RunRow():
            return "new_runs", _packed_run(files.placed(row))
        case TaskRow():
            return "new_tasks", _packed_task(files.placed(row))
        case AttemptRow():
            return "new_attempts", (_id(row.run, row.seq), *row[2:])
        case EventRow():
            return "new_events", tuple(row)
        case MessageRow():
            return "new_messages", tuple(row)
        case MarkRow():
            return "new_marks", tuple(row)
        case LogRow():
            return "new_logs", (None, *row)
        case ArtifactRow():
            return "new_artifacts", tuple(row)


def _check_free(db: sqlite3.Connection, run_id: str) -> None:
    if db.execute("SELECT 1 FROM main.flow_runs WHERE id = ?", (run_id,)).fetchone():
        raise RunExists(run_id)


def _take_in(db: sqlite3.Connection, renumber: Renumber) -> RunRow:
    """Give what was put aside its numbers, and move it in."""
    pks: dict[int, int] = {}
    root: RunRow | None = None
    for packed in db.execute(f"SELECT {_RUN_COLUMNS} FROM temp.new_runs ORDER BY rowid"):
        row = _run(packed)
        _check_free(db, row.id)
        taken = db.execute(
            "SELECT 1 FROM main.flow_runs WHERE idempotency_key = ?", (row.idempotency_key,)
        ).fetchone()
        made = row._replace(
            pk=0,
            parent=pks.get(row.parent or 0),
            root=pks.get(row.root, 0),
            idempotency_key=None if taken else row.idempotency_key,
        )
        made = _insert_run(db, made)
        pks[row.pk] = made.pk
        root = root or made
        _take_in_rows(db, row.pk, made.pk, renumber)
    assert root is not None
    return root


def _take_in_rows(db: sqlite3.Connection, number: int, pk: int, renumber: Renumber) -> None:
    low, high, shift = number << 32, number << 32 | 0xFFFFFFFF, (pk - number) << 32
    for table, new, columns in (
        ("task_runs", "new_tasks", _TASK_ALL),
        ("attempts", "new_attempts", _ATTEMPT_ALL),
    ):
        rest = columns.partition(", ")[2]
        db.execute(
            f"INSERT INTO main.{table} ({columns}) SELECT id + ?, {rest} FROM temp.{new}"
            " WHERE id BETWEEN ? AND ? ORDER BY id",
            (shift, low, high),
        )
    db.execute(
        f"INSERT INTO main.events ({_EVENT_COLUMNS})"
        f" SELECT NULL, ?, {_EVENT_COLUMNS.partition(', run, ')[2]}"
        " FROM temp.new_events WHERE run = ? ORDER BY rowid",
        (pk, number),
    )
    db.execute(
        "INSERT INTO main.logs SELECT NULL, ?, seq, time, level, logger, message"
        " FROM temp.new_logs WHERE run = ? ORDER BY rowid",
        (pk, number),
    )
    db.execute(
        f"INSERT OR REPLACE INTO main.artifacts (run, {_ARTIFACT_REST})"
        f" SELECT ?, {_ARTIFACT_REST} FROM temp.new_artifacts WHERE run = ? ORDER BY rowid",
        (pk, number),
    )
    if db.execute(f"SELECT 1 FROM ({_MESSAGES}) LIMIT 1", (pk, 0)).fetchone():
        db.execute("INSERT INTO main.messages VALUES (NULL,?,?,?,?)", (ARRIVED, pk, b"null", 0.0))
    ids: dict[int, int] = {}
    for old, name, payload, when in db.execute(
        "SELECT id, name, payload, time FROM temp.new_messages WHERE run = ? ORDER BY rowid",
        (number,),
    ):
        sent = db.execute(
            "INSERT INTO main.messages VALUES (NULL,?,?,?,?)", (name, pk, payload, when)
        )
        assert sent.lastrowid is not None
        ids[old] = sent.lastrowid
    marks = db.execute(
        "SELECT run, scope, n, value, seq FROM temp.new_marks WHERE run = ? ORDER BY rowid",
        (number,),
    )
    db.executemany(
        "INSERT INTO main.marks (run, scope, n, value, seq) VALUES (?,?,?,?,?)",
        (renumber(MarkRow(*mark), ids)._replace(run=pk) for mark in marks),
    )


class _Staged:
    """Large results of what is about to be taken in: their files get their places at the end."""

    def __init__(self, results: Path, limit: int, fsync: bool) -> None:
        self._results = results
        self._limit = limit
        self._fsync = fsync
        self._folder: Path | None = None

    def placed(self, row: Any) -> Any:
        """The row, its result in a file if it is large."""
        kind = _TO_FILE.get(row.result_kind)
        if kind is None or row.result is None or len(row.result) <= self._limit:
            return row
        name = hashlib.sha256(row.result).hexdigest()
        if self._folder is None:
            self._results.mkdir(mode=0o700, exist_ok=True)
            self._folder = Path(tempfile.mkdtemp(prefix="import-", dir=self._results))
        path = self._folder / f"{name}.bin"
        with open(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "wb") as file:
            file.write(row.result)
            if self._fsync:
                file.flush()
                os.fsync(file.fileno())
        return row._replace(result_kind=kind, result=name.encode())

    def place(self) -> None:
        """Give the files their places. Two of one name have the same content."""
        for file in self._folder.iterdir() if self._folder is not None else ():
            folder = self._results / file.name[:2]
            folder.mkdir(mode=0o700, exist_ok=True)
            os.replace(file, folder / file.name)
            if self._fsync:
                _sync_folder(folder)

    def clear(self) -> None:
        """Remove what did not get a place."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def _insert_run(db: sqlite3.Connection, row: RunRow) -> RunRow:
    packed = list(_packed_run(row))
    packed[0] = None
    pk = db.execute(_REPLACE_RUN, packed).lastrowid
    assert pk is not None
    if not row.root:
        db.execute("UPDATE flow_runs SET root = pk WHERE pk = ?", (pk,))
    return row._replace(pk=pk, root=row.root or pk)


def _newest_event(db: sqlite3.Connection) -> int:
    # Of all that ever were: ids of what was removed are not given again.
    found = db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'events'").fetchone()
    return int(found[0]) if found is not None else 0


class _Outside:
    """The tables of runs and events, for a transaction on what is planned."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def create_run(self, row: RunRow, states: Sequence[StateRow]) -> tuple[RunRow, bool]:
        return _create_run(self._db, row, states)

    def unfinished_of(self, deployment: str) -> list[tuple[int, str, str]]:
        return self._db.execute(
            "SELECT pk, id, coalesce(cause, '') FROM flow_runs WHERE deployment = ?"
            f" AND state IN ({_MARKS}) AND state_name <> 'NeedsAttention'"
            " AND waits_for IS NOT ? ORDER BY pk",
            (deployment, *_UNFINISHED, IMPORTED),
        ).fetchall()

    def request(self, run: int, kind: str, time: float) -> None:
        self._db.execute("INSERT OR REPLACE INTO requests VALUES (?,?,?)", (run, kind, time))

    def emit(self, rows: Sequence[EventRow]) -> None:
        self._db.executemany(_INSERT_EVENT, [row[1:] for row in rows])

    def newest_event(self) -> int:
        return _newest_event(self._db)


def _create_run(
    db: sqlite3.Connection, row: RunRow, states: Sequence[StateRow]
) -> tuple[RunRow, bool]:
    if row.idempotency_key is not None:
        taken = db.execute(
            f"SELECT {_RUN_COLUMNS} FROM flow_runs WHERE idempotency_key = ?",
            (row.idempotency_key,),
        ).fetchone()
        if taken is not None:
            return _run(taken), False
    row = _insert_run(db, row)
    db.executemany(_INSERT_STATE, [(row.pk, *s[1:]) for s in states])
    return row, True


def _copy(db: sqlite3.Connection, source: int, row: RunRow, below: int) -> None:
    """Give the run *row* what *source* has, up to a number of its calls."""
    pk = row.pk
    low, high = source << 32, min(source << 32 | 0xFFFFFFFF, (source << 32) + below - 1)
    shift = (pk - source) << 32
    for table, columns in (("task_runs", _TASK_ALL), ("attempts", _ATTEMPT_ALL)):
        rest = columns.partition(", ")[2]
        db.execute(
            f"INSERT INTO {table} ({columns}) SELECT id + ?, {rest} FROM {table}"
            " WHERE id BETWEEN ? AND ?",
            (shift, low, high),
        )
    db.execute(
        "INSERT INTO marks (run, scope, n, value, seq)"
        " SELECT ?, scope, n, value, seq FROM marks WHERE run = ? AND seq < ?",
        (pk, source, below),
    )
    # What the flow itself shows, it shows again: only one that is answered as a whole does not run.
    db.execute(
        f"INSERT INTO artifacts (run, {_ARTIFACT_REST}) SELECT ?, {_ARTIFACT_REST} FROM artifacts"
        " WHERE run = ? AND coalesce(seq, ?) < ? ORDER BY id",
        (pk, source, 0 if below == ALL else ALL, below),
    )
    children = db.execute(
        f"SELECT {_RUN_COLUMNS} FROM flow_runs WHERE parent = ? AND parent_seq < ? ORDER BY pk",
        (source, below),
    ).fetchall()
    for child in map(_run, children):
        copied = child._replace(
            id=new_run_id(row.created_at), parent=pk, root=row.root, engine=None,
            idempotency_key=None, origin=child.id,
        )  # fmt: skip
        copied = _insert_run(db, copied)
        db.execute(
            "INSERT INTO events (run, time, state, state_name, message, epoch)"
            " SELECT ?, time, state, state_name, message, epoch FROM events"
            " WHERE run = ? AND kind IS NULL ORDER BY id",
            (copied.pk, child.pk),
        )
        _copy(db, child.pk, copied, ALL)


def _id(run: int, seq: int) -> int:
    return run << 32 | seq


def _check_fences(db: sqlite3.Connection, fences: dict[int, int]) -> None:
    for pk, epoch in fences.items():
        row = db.execute("SELECT epoch FROM flow_runs WHERE pk = ?", (pk,)).fetchone()
        if row is None or row[0] != epoch:
            raise RunTaken(
                f"another engine has taken over run number {pk}: what this one did since is not"
                " recorded, and it must stop"
            )


def _write_tasks(db: sqlite3.Connection, rows: Iterable[TaskRow]) -> None:
    flat: list[Any] = []
    full: dict[int, tuple[Any, ...]] = {}
    add = flat.extend
    n = 0
    for (
        run, seq, identity, task, name, parent, state, state_name, message, attempt, failures,
        interruptions, created, started, ended, retry_at, upstream, tags, kind, result, error,
    ) in rows:  # fmt: skip
        if (
            state_name or message or failures or interruptions or upstream or tags or error
            or name or retry_at
        ):  # fmt: skip
            full[run << 32 | seq] = (
                run << 32 | seq, identity, task, parent, state, attempt, created, started,
                ended, kind, result, name, state_name, message or None, failures or None,
                interruptions or None, retry_at, json.dumps(upstream) if upstream else None,
                json.dumps(tags) if tags else None, error,
            )  # fmt: skip
            continue
        if full:
            full.pop(run << 32 | seq, None)
        add(
            (
                run << 32 | seq, identity, task, parent, state, attempt, created, started, ended,
                kind, result,
            )
        )  # fmt: skip
        n += 1
    at = 0
    for size in _CHUNKS:
        while n >= size:
            db.execute(_INSERT_PLAIN[size], flat[at : at + size * 11])
            at += size * 11
            n -= size
    # After the plain ones: of two rows with one key, the later one stays.
    db.executemany(_INSERT_ALL, full.values())


def _packed_task(row: TaskRow) -> tuple[Any, ...]:
    """A row of all columns (the hot path above has its own)."""
    return (
        _id(row.run, row.seq), row.identity, row.task, row.parent, row.state, row.attempt,
        row.created_at, row.started_at, row.ended_at, row.result_kind, row.result, row.name,
        row.state_name, row.message or None, row.failures or None, row.interruptions or None,
        row.retry_at, json.dumps(row.upstream) if row.upstream else None,
        json.dumps(row.tags) if row.tags else None, row.error,
    )  # fmt: skip


def _write_artifacts(db: sqlite3.Connection, rows: Iterable[ArtifactRow]) -> None:
    for row in rows:
        if row.data:
            db.execute(_SHOW, row[1:])
        else:
            db.execute("DELETE FROM artifacts WHERE run = ? AND key = ?", (row.run, row.key))


def _write_limits(db: sqlite3.Connection, rows: Iterable[LimitRow]) -> None:
    for row in rows:
        if row.limit is None:
            db.execute("DELETE FROM limits WHERE name = ?", (row.name,))
        else:
            db.execute("INSERT OR REPLACE INTO limits VALUES (?,?,?,?)", row)


def _below(db: sqlite3.Connection, run: int) -> list[int]:
    """A run and all runs below it, by pk."""
    return [
        row[0]
        for row in db.execute(
            "WITH RECURSIVE below(pk) AS (VALUES (?) UNION"
            " SELECT f.pk FROM flow_runs f JOIN below ON f.parent = below.pk)"
            " SELECT pk FROM below",
            (run,),
        )
    ]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _is_used(db: sqlite3.Connection, name: bytes) -> bool:
    # A scan, but only of rows with files, and only when a run that had one is deleted.
    found = db.execute(
        "SELECT 1 FROM task_runs WHERE result_kind IN (?,?) AND result = ? UNION ALL"
        " SELECT 1 FROM flow_runs WHERE result_kind IN (?,?) AND result = ? UNION ALL"
        " SELECT 1 FROM cache WHERE result_kind IN (?,?) AND result = ? LIMIT 1",
        (*_FILES, name, *_FILES, name, *_FILES, name),
    ).fetchone()
    return found is not None


_TAGS, _ENDED_BY = RunRow._fields.index("tags"), RunRow._fields.index("ended_by")


def _packed_run(row: RunRow) -> tuple[Any, ...]:
    return (
        *row[:_TAGS],
        json.dumps(row.tags),
        *row[_TAGS + 1 : _ENDED_BY],
        json.dumps(row.ended_by),
        *row[_ENDED_BY + 1 :],
    )


def _run(row: Sequence[Any]) -> RunRow:
    tags, ended_by = tuple(json.loads(row[_TAGS])), tuple(json.loads(row[_ENDED_BY]))
    return RunRow._make(
        (*row[:_TAGS], tags, *row[_TAGS + 1 : _ENDED_BY], ended_by, *row[_ENDED_BY + 1 :])
    )


def _calls(db: sqlite3.Connection, run: int, state: str | None) -> list[TaskRow]:
    """The task runs of a run. Most are plain, and reading only what those have is quicker."""
    where = "id BETWEEN :low AND :high" + (" AND state = :state" if state else "")
    sql = f"FROM task_runs WHERE {where} AND coalesce({_TASK_REST}) IS"
    given = {"low": run << 32, "high": run << 32 | 0xFFFFFFFF, "state": state}
    plain = db.execute(f"SELECT {_TASK_PLAIN} {sql} NULL ORDER BY id", given)
    found = [_plain_task(row) for row in plain]
    more = [_task(row) for row in db.execute(f"SELECT {_TASK_ALL} {sql} NOT NULL", given)]
    return sorted(found + more, key=attrgetter("seq")) if more else found


def _plain_task(row: Sequence[Any]) -> TaskRow:
    """`_task` of a row that has nothing but `_TASK_PLAIN`.

    By `_make`: half the time that the constructor takes, and a resumed run has all of its rows.
    """
    id_, identity, task, parent, state, attempt, created, started, ended, kind, result = row
    return TaskRow._make((
        id_ >> 32, id_ & 0xFFFFFFFF, identity, task, None, parent, state, None, "", attempt, 0, 0,
        created, started, ended, None, (), (), kind, result, None,
    ))  # fmt: skip


def _task(row: Sequence[Any]) -> TaskRow:
    (
        id_, identity, task, parent, state, attempt, created, started, ended, kind, result, name,
        state_name, message, failures, interruptions, retry_at, upstream, tags, error,
    ) = row  # fmt: skip
    return TaskRow(
        id_ >> 32, id_ & 0xFFFFFFFF, identity, task, name, parent, state, state_name,
        message or "", attempt, failures or 0, interruptions or 0, created, started, ended,
        retry_at, tuple(json.loads(upstream)) if upstream else (),
        tuple(json.loads(tags)) if tags else (), kind, result, error,
    )  # fmt: skip


def _holds(path: Path, data: bytes) -> bool:
    """Whether a file is there with just this content."""
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size != len(data):
                return False
            size = 1 << 20
            return all(file.read(size) == data[at : at + size] for at in range(0, len(data), size))
    except OSError:
        return False


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _sync_folder(folder: Path) -> None:
    """Make the names in a folder last, where the system can."""
    if sys.platform == "win32":
        return
    try:
        _sync(folder)
    except OSError as error:
        # Some file systems have no such thing, and some folders are not ours to read.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EPERM):
            raise


# --- reading --------------------------------------------------------------------------------------

RUNS_BY_ID = f"SELECT {_RUN_COLUMNS} FROM flow_runs WHERE id = ?"
TASK_COUNTS = (
    "SELECT task, state, state_name, count(*), min(started_at), max(ended_at) FROM task_runs"
    " WHERE id BETWEEN ? AND ? GROUP BY task, state, state_name ORDER BY min(id)"
)
ATTEMPTS = (
    "SELECT id, attempt, started_at, ended_at, retry_at, error FROM attempts"
    " WHERE id BETWEEN ? AND ? ORDER BY id, attempt LIMIT 10000"
)
STATES = (
    "SELECT run, time, state, state_name, message, epoch FROM events WHERE run = ?"
    " AND kind IS NULL ORDER BY id LIMIT 10000"
)


CREATED_SINCE = (
    "SELECT CAST(created_at / ?1 AS INTEGER) * ?1 AS span, state, count(*) FROM (SELECT created_at,"
    " state FROM flow_runs INDEXED BY flow_runs_parent WHERE parent IS NULL AND created_at >= ?2"
    " ORDER BY pk DESC LIMIT ?3) GROUP BY span, state ORDER BY span, state"
)
#: From one name to the next: there are many more runs than flows.
FLOW_NAMES = (
    "WITH RECURSIVE names(name) AS (SELECT min(flow_name) FROM flow_runs UNION ALL"
    " SELECT (SELECT min(flow_name) FROM flow_runs WHERE flow_name > names.name) FROM names"
    " WHERE names.name IS NOT NULL) SELECT name FROM names WHERE name IS NOT NULL LIMIT ?"
)
OPEN_RUNS = (
    "SELECT flow_name, state, state_name, engine, count(*) FROM flow_runs"
    f" INDEXED BY flow_runs_state WHERE state IN ({', '.join(map(repr, _UNFINISHED))})"
    " GROUP BY flow_name, state, state_name, engine"
)
ENDED_RUNS = (
    "SELECT r.flow_name, e.state, count(*) FROM events e CROSS JOIN flow_runs r ON r.pk = e.run"
    " WHERE e.id > ? AND e.id <= ? AND e.kind IS NULL AND e.epoch >= 0"
    f" AND e.state IN ({', '.join(map(repr, _ENDED))}) GROUP BY r.flow_name, e.state"
)
SPANS = (
    "SELECT id, task, started_at, ended_at, state, attempt FROM task_runs"
    " WHERE id BETWEEN ? AND ? AND started_at IS NOT NULL ORDER BY id LIMIT ?"
)
#: Put together by SQLite, which lets other threads run meanwhile: thousands of rows are no records.
EDGES = (
    "SELECT DISTINCT other.task, one.task FROM ("
    "SELECT task, upstream FROM task_runs WHERE id BETWEEN ?1 AND ?2 AND upstream IS NOT NULL"
    " ORDER BY id LIMIT ?3) AS one, json_each(one.upstream) AS up"
    " JOIN task_runs AS other ON other.id = ?1 + up.value WHERE up.value > 0"
    " UNION SELECT DISTINCT other.task, one.task FROM ("
    "SELECT task, parent FROM task_runs WHERE id BETWEEN ?1 AND ?2 AND parent IS NOT NULL"
    " ORDER BY id LIMIT ?3) AS one JOIN task_runs AS other ON other.id = ?1 + one.parent"
)
LIMITS = 'SELECT name, "limit", period, burst FROM limits ORDER BY name LIMIT 10000'
NOTICES = "SELECT kind, name, engine, time, data FROM notices WHERE kind = ?"
SHARES = 'SELECT "limit", engine, units, wanted, since, free_at FROM shares LIMIT 10000'


class SqliteReader:
    """Answers questions through a read-only connection of its own, off the loop (aiosqlite)."""

    def __init__(self, store: SqliteStore) -> None:
        self._store = store
        self._db: Any = None
        self._opening = asyncio.Lock()

    async def _connection(self) -> Any:
        async with self._opening:
            if self._db is None:
                self._db = await self._connect()
        return self._db

    async def _connect(self) -> Any:
        opening = asyncio.ensure_future(self._opened())
        try:
            return await uncancelled(opening)
        except asyncio.CancelledError:
            # A connection that nobody waits for any more must not be lost with its thread.
            if opening.exception() is None:
                await _let_go(opening.result())
            raise

    async def _opened(self) -> Any:
        import aiosqlite

        self._store._check_file()
        uri = f"{self._store.path.resolve().as_uri()}?mode=ro"
        connection: Any = aiosqlite.connect(uri, uri=True, timeout=30)
        try:
            await connection
            await connection.execute("PRAGMA query_only = ON")
        except sqlite3.Error as error:
            await _let_go(connection)
            self._store._translate(error)
        return connection

    async def _all(self, sql: str, values: Sequence[Any]) -> list[Any]:
        db = await self._connection()
        try:
            return list(await db.execute_fetchall(sql, values))
        except sqlite3.Error as error:
            self._store._translate(error)

    async def find_run(self, run_id: str) -> RunRow | None:
        rows = await self._all(RUNS_BY_ID, (run_id,))
        return _run(rows[0]) if rows else None

    async def runs(self, query: RunQuery) -> Page[RunRow]:
        sql, values = runs_sql(query)
        rows = [_run(r) for r in await self._all(sql, values)]
        return _page(rows, query.limit, lambda row: row.pk)

    async def task_runs(self, query: TaskQuery) -> Page[TaskRow]:
        sql, values = tasks_sql(query)
        rows = [_task(r) for r in await self._all(sql, values)]
        return _page(rows, query.limit, lambda row: row.seq)

    async def task_counts(self, run: int) -> list[TaskCount]:
        rows = await self._all(TASK_COUNTS, (run << 32, run << 32 | 0xFFFFFFFF))
        return [TaskCount(*row) for row in rows]

    async def attempts(self, run: int, seq: int | None = None) -> list[AttemptRow]:
        low, high = (0, 0xFFFFFFFF) if seq is None else (seq, seq)
        rows = await self._all(ATTEMPTS, (_id(run, low), _id(run, high)))
        return [AttemptRow(r[0] >> 32, r[0] & 0xFFFFFFFF, *r[1:]) for r in rows]

    async def logs(self, query: LogQuery) -> Page[tuple[int, LogRow]]:
        sql, values = logs_sql(query)
        rows = [(r[0], LogRow(*r[1:])) for r in await self._all(sql, values)]
        return _page(rows, query.limit, lambda row: row[0])

    async def states(self, run: int) -> list[StateRow]:
        return [StateRow(*row) for row in await self._all(STATES, (run,))]

    async def artifacts(self, query: ArtifactQuery) -> Page[ArtifactRow]:
        sql, values = artifacts_sql(query)
        rows = [ArtifactRow(*r) for r in await self._all(sql, values)]
        return _page(rows, query.limit, lambda row: row.id)

    async def events(self, query: EventQuery) -> Page[EventRow]:
        sql, values = events_sql(query)
        rows = [EventRow(*r) for r in await self._all(sql, values)]
        return _page(rows, query.limit, lambda row: row.id)

    async def run_infos(self, runs: Sequence[int]) -> dict[int, RunInfo]:
        found: dict[int, RunInfo] = {}
        for sql, some in _infos_sql(runs):
            found.update((row[0], _info(row)) for row in await self._all(sql, some))
        return found

    async def created_since(
        self, since: float, width: float, limit: int
    ) -> list[tuple[float, str, int]]:
        rows = await self._all(CREATED_SINCE, (width, since, limit))
        return [(row[0], row[1], row[2]) for row in rows]

    async def flow_names(self, limit: int) -> list[str]:
        return [row[0] for row in await self._all(FLOW_NAMES, (limit,))]

    async def open_runs(self) -> list[OpenRuns]:
        return [OpenRuns(*row) for row in await self._all(OPEN_RUNS, ())]

    async def ended_runs(self, after: int, until: int) -> list[tuple[str, str, int]]:
        return [(row[0], row[1], row[2]) for row in await self._all(ENDED_RUNS, (after, until))]

    async def spans(
        self, run: int, limit: int
    ) -> list[tuple[int, str, float, float | None, str, int]]:
        rows = await self._all(SPANS, (run << 32, run << 32 | 0xFFFFFFFF, limit))
        return [(row[0] & 0xFFFFFFFF, *row[1:]) for row in rows]

    async def edges(self, run: int, limit: int) -> list[tuple[str, str]]:
        rows = await self._all(EDGES, (run << 32, run << 32 | 0xFFFFFFFF, limit))
        return [(row[0], row[1]) for row in rows]

    async def limits(self) -> tuple[list[LimitRow], list[ShareRow]]:
        limits = await self._all(LIMITS, ())
        shares = await self._all(SHARES, ())
        return [LimitRow(*row) for row in limits], [ShareRow(*row) for row in shares]

    async def notices(self, kind: str, names: Sequence[str] | None = None) -> list[NoticeRow]:
        sql, values = NOTICES, [kind]
        if names is not None:
            sql += f" AND name IN ({','.join('?' * len(names))})"
            values += names
        rows = await self._all(f"{sql} ORDER BY name, engine LIMIT 10000", values)
        return [NoticeRow(*row) for row in rows]

    async def planned(self, question: Question[T]) -> list[T]:
        return [question.make(row) for row in await self._all(question.sql, question.values)]

    async def engine(self, engine: int) -> EngineRow | None:
        rows = await self._all(
            "SELECT id, pid, host, boot_id, started_at, seen_at, closed_at FROM engines"
            " WHERE id = ?",
            (engine,),
        )
        return EngineRow(*rows[0]) if rows else None

    async def aclose(self) -> None:
        db, self._db = self._db, None
        if db is not None:
            await _let_go(db)


async def _let_go(connection: Any) -> None:
    """Close a connection of aiosqlite, and see its thread end.

    The thread tells the loop that it ends, then ends: the loop must not be closed before.
    """
    await connection.close()
    getattr(connection, "_thread", connection).join(5)


def _page(rows: list[T], limit: int, cursor: Callable[[T], int]) -> Page[T]:
    """One row more than *limit* was read, to know whether there are more."""
    if len(rows) > limit:
        return Page(rows[:limit], cursor(rows[limit - 1]))
    return Page(rows, None)


def runs_sql(query: RunQuery) -> tuple[str, list[Any]]:
    """The statement for a `RunQuery`. Only fixed text enters it; values are bound."""
    states = dict.fromkeys(query.states)
    others = (query.names, query.flow, query.deployment, query.id_prefix)
    if len(states) < 2 or any(others) or query.parent not in (None, -1):
        return _runs_sql(query)
    # The newest of each state, by its index. For several at once SQLite walks through all runs,
    # which takes long where there are few of them.
    parts, values = [], []
    for state in states:
        sql, bound = _runs_sql(replace(query, states=(state,)))
        parts.append(f"SELECT * FROM ({sql})")
        values += bound
    return f"{' UNION ALL '.join(parts)} ORDER BY pk DESC LIMIT ?", [*values, query.limit + 1]


def _runs_sql(query: RunQuery) -> tuple[str, list[Any]]:
    where: list[str] = []
    values: list[Any] = []

    def add(text: str, *bound: Any) -> None:
        where.append(text)
        values.extend(bound)

    if query.states or query.names:
        add(_in_states(query), *query.states, *query.names)
    if query.paused_as and query.states == ("PAUSED",) and not query.names:
        add(f"state_name IN ({_marks(query.paused_as)})", *query.paused_as)
    elif query.paused_as:
        add(f"(state <> 'PAUSED' OR state_name IN ({_marks(query.paused_as)}))", *query.paused_as)
    if query.flow is not None:
        add("flow_name = ?", query.flow)
    if query.since is not None:
        add("created_at >= ?", query.since)
    if query.parent is None:
        add("parent IS NULL")
    elif query.parent != -1:
        add("parent = ?", query.parent)
    if query.deployment is not None:
        add("deployment = ?", query.deployment)
    if query.text:
        pattern = _like(query.text)
        columns = ("name", "flow_name", "message")
        some = " OR ".join(f"{column} LIKE ? ESCAPE '\\'" for column in columns)
        add(f"({some})", pattern, pattern, pattern)
    if query.id_prefix:
        add("id >= ? AND id < ?", query.id_prefix, query.id_prefix + "\U0010ffff")
    for tag in query.tags:
        add("EXISTS (SELECT 1 FROM json_each(tags) WHERE value = ?)", tag)
    if query.after is not None:
        add("pk < ?", query.after)
    condition = f" WHERE {' AND '.join(where)}" if where else ""
    values.append(query.limit + 1)
    return (
        f"SELECT {_RUN_COLUMNS} FROM flow_runs{condition} ORDER BY pk DESC LIMIT ?",
        values,
    )


def _marks(values: Sequence[Any]) -> str:
    return "?" + ",?" * (len(values) - 1)


def _in_states(query: RunQuery | TaskQuery) -> str:
    states, names = _marks(query.states), _marks(query.names)
    if not query.names:
        return f"state IN ({states})"
    if not query.states:
        return f"state_name IN ({names})"
    return f"(state IN ({states}) OR state_name IN ({names}))"


def tasks_sql(query: TaskQuery) -> tuple[str, list[Any]]:
    """The statement for a `TaskQuery`."""
    where = ["id BETWEEN ? AND ?"]
    values: list[Any] = [_id(query.run, query.after + 1), query.run << 32 | 0xFFFFFFFF]
    if query.states or query.names:
        where.append(_in_states(query))
        values += [*query.states, *query.names]
    if query.task is not None:
        where.append("task = ?")
        values.append(query.task)
    values.append(query.limit + 1)
    return (
        f"SELECT {_TASK_ALL} FROM task_runs WHERE {' AND '.join(where)} ORDER BY id LIMIT ?",
        values,
    )


def events_sql(query: EventQuery) -> tuple[str, list[Any]]:
    """The statement for an `EventQuery`."""
    where: list[str] = []
    values: list[Any] = []
    if query.after or not query.newest:
        where.append("id < ?" if query.newest else "id > ?")
        values.append(query.after)
    if query.run is not None:
        where.append("run = ?")
        values.append(query.run)
    if query.since is not None:
        where.append("time >= ?")
        values.append(query.since)
    if query.kinds:
        called = "coalesce(kind, 'flow-run.' || state_name)"
        where.append(f"({' OR '.join([f'{called} GLOB ?'] * len(query.kinds))})")
        values += [_glob(kind) for kind in query.kinds]
    values.append(query.limit + 1)
    condition = f" WHERE {' AND '.join(where)}" if where else ""
    order = " DESC" if query.newest else ""
    return (
        f"SELECT {_EVENT_COLUMNS} FROM events{condition} ORDER BY id{order} LIMIT ?",
        values,
    )


def artifacts_sql(query: ArtifactQuery) -> tuple[str, list[Any]]:
    """The statement for an `ArtifactQuery`."""
    where = ["run = ?", "id > ?"]
    values: list[Any] = [query.run, query.after]
    if query.seq is not None:
        where.append("coalesce(seq, 0) = ?")
        values.append(query.seq)
    if query.key is not None:
        where.append("key = ?")
        values.append(query.key)
    if query.kinds:
        where.append(f"kind IN ({','.join('?' * len(query.kinds))})")
        values += query.kinds
    columns = _ARTIFACT_COLUMNS if query.data else _ARTIFACT_COLUMNS.replace("data", "x''")
    values.append(query.limit + 1)
    return (
        f"SELECT {columns} FROM artifacts WHERE {' AND '.join(where)} ORDER BY id LIMIT ?",
        values,
    )


def _glob(name: str) -> str:
    """A kind as a pattern in which nothing but a star at the end is special."""
    fixed = name.removesuffix("*")
    escaped = "".join(f"[{c}]" if c in "*?[" else c for c in fixed)
    return escaped + name[len(fixed) :]


def _infos_sql(runs: Sequence[int]) -> Iterator[tuple[str, Sequence[int]]]:
    for at in range(0, len(runs), 500):
        some = runs[at : at + 500]
        marks = ",".join("?" * len(some))
        yield f"SELECT {_INFO_COLUMNS} FROM flow_runs WHERE pk IN ({marks})", some


def _info(row: Sequence[Any]) -> RunInfo:
    return RunInfo._make((*row[:5], tuple(json.loads(row[5])), *row[6:]))


def _like(text: str) -> str:
    """A pattern for whatever has a text somewhere in it."""
    escaped = text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return f"%{escaped}%"


def logs_sql(query: LogQuery) -> tuple[str, list[Any]]:
    """The statement for a `LogQuery`."""
    where = ["run = ?", "id > ?"]
    values: list[Any] = [query.run, query.after]
    if query.seq is not None:
        where.append("seq = ?")
        values.append(query.seq)
    if query.level:
        where.append("level >= ?")
        values.append(query.level)
    if query.text:
        where.append("message LIKE ? ESCAPE '\\'")
        values.append(_like(query.text))
    values.append(query.limit + 1)
    return (
        "SELECT id, run, seq, time, level, logger, message FROM logs"
        f" WHERE {' AND '.join(where)} ORDER BY id LIMIT ?",
        values,
    )
