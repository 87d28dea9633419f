"""What can go wrong with a SQLite file: each time one sentence that says what to do."""

from __future__ import annotations

import asyncio
import hashlib
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from contract.test_store import below, create, engine_row, log_row, one_of_each, task_row
from patience import until

import asyncflow
from asyncflow.errors import ResultUnreadable, StoreError
from asyncflow.store import planning
from asyncflow.store import sqlite as module
from asyncflow.store.base import (
    ArtifactQuery,
    EventQuery,
    LogQuery,
    ResultKind,
    RunQuery,
    RunRow,
    TaskQuery,
    Writes,
)
from asyncflow.store.sqlite import APPLICATION_ID, SCHEMA_VERSION, SqliteReader, SqliteStore

TIMEOUT = 60


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.db"


@pytest.fixture
def store(path: Path) -> Iterator[SqliteStore]:
    made = SqliteStore(path, inline_limit=100_000, busy_timeout=TIMEOUT)
    made.open("relaxed")
    yield made
    made.close()


def complaint(about: Path, do: Callable[[], Any], kind: type[Exception] = StoreError) -> str:
    """The one sentence with which something is refused."""
    with pytest.raises(kind) as caught:
        do()
    text = str(caught.value)
    assert str(about) in text
    assert text == text.strip()
    assert "\n" not in text
    return text


def refusal(path: Path) -> str:
    """Why a file is not opened; it must be as it was, with nothing beside it."""
    before, names = path.read_bytes(), sorted(os.listdir(path.parent))
    text = complaint(path, lambda: SqliteStore(path).open("full"))
    assert path.read_bytes() == before
    assert sorted(os.listdir(path.parent)) == names
    return text


def foreign(path: Path, *statements: str) -> None:
    db = sqlite3.connect(path)
    for statement in statements:
        db.execute(statement)
    db.commit()
    db.close()


def filled(path: Path) -> RunRow:
    """A database of many pages, closed and whole in its one file."""
    store = SqliteStore(path)
    store.open("full")
    run = create(store, "run")
    rows = [
        task_row(run.pk, n, result_kind=ResultKind.JSON, result=b"x" * 500) for n in range(1, 500)
    ]
    store.write(Writes(tasks=rows, logs=[log_row(run.pk, "line" * 50)] * 500))
    store.close()
    assert os.listdir(path.parent) == [path.name]
    assert path.stat().st_size > 50 * 4096
    return run


def overwrite(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


def reading_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if "_connection_worker_thread" in t.name]


def use(path: Path) -> None:
    """Open a database, read all of it and write to it."""
    store = SqliteStore(path)
    store.open("full")
    try:
        run = store.run("run")
        assert run is not None
        store.calls(run.pk)
        store.delete_run(run.pk)
    finally:
        store.close()


# --- files that are not ours ----------------------------------------------------------------------


def test_a_database_in_memory_is_refused_and_the_store_for_it_named() -> None:
    with pytest.raises(StoreError, match=r"use MemoryStore\(\) instead"):
        SqliteStore(":memory:")


@pytest.mark.parametrize("content", [b"xy", b"name,value\n" * 1000, b"\0" * 4096], ids=len)
def test_a_file_that_is_no_database_is_refused_and_not_touched(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    text = refusal(path)
    assert "is not a database: give another path" in text
    assert "not touched" in text


@pytest.mark.parametrize(
    "statements",
    [
        ["CREATE TABLE theirs (x)"],
        ["PRAGMA user_version = 1"],
        ["PRAGMA application_id = 7"],
        ["CREATE TABLE theirs (x)", "PRAGMA application_id = 7", "PRAGMA user_version = 1"],
    ],
)
def test_a_database_of_another_program_is_refused_and_not_touched(
    path: Path, statements: list[str]
) -> None:
    foreign(path, *statements)
    assert "of another program: give another path" in refusal(path)


def test_a_newer_schema_is_refused_and_not_touched(path: Path) -> None:
    foreign(
        path,
        f"PRAGMA application_id = {APPLICATION_ID}",
        f"PRAGMA user_version = {SCHEMA_VERSION + 1}",
    )
    text = refusal(path)
    assert f"newer asyncflow (schema {SCHEMA_VERSION + 1}; this one knows {SCHEMA_VERSION})" in text
    assert "upgrade asyncflow, or use another database" in text


def test_an_empty_file_becomes_a_database(path: Path) -> None:
    path.touch()
    store = SqliteStore(path)
    store.open("full")
    run = create(store, "run")
    assert store.run("run") == run
    store.close()


# --- files that are damaged -----------------------------------------------------------------------


def test_a_truncated_database_says_that_it_is_damaged(path: Path) -> None:
    filled(path)
    os.truncate(path, path.stat().st_size // 8192 * 4096)
    text = complaint(path, lambda: use(path))
    assert "is damaged" in text
    assert "restore a backup" in text


@pytest.mark.parametrize("size", [2, 100, 4095])
def test_a_database_cut_within_its_first_page_is_refused(path: Path, size: int) -> None:
    filled(path)
    os.truncate(path, size)
    text = complaint(path, lambda: use(path))
    assert "is not a database: give another path" in text or "is damaged" in text


async def test_overwritten_pages_are_damage_for_the_store_and_for_its_reader(path: Path) -> None:
    run = filled(path)
    overwrite(path, 20 * 4096, b"\xff" * 30 * 4096)
    assert "is damaged" in complaint(path, lambda: use(path))
    reader = SqliteStore(path).reader()
    with pytest.raises(StoreError, match=r"is damaged .*: restore a backup"):
        await reader.task_runs(TaskQuery(run=run.pk, limit=1000))
    await reader.aclose()


def test_a_file_overwritten_while_it_is_open_fails_the_next_write_in_plain_words(
    store: SqliteStore, path: Path
) -> None:
    run = create(store, "run")
    foreign(path, f"INSERT INTO requests VALUES ({run.pk}, 'cancel', 1.0)")
    db = sqlite3.connect(path)
    assert db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0
    db.close()
    overwrite(path, 0, b"garbage " * 12)
    for wait in (True, False):
        text = complaint(path, lambda: store.write(one_of_each(run), wait=wait))
        assert "is not a database" in text


# --- places that cannot be written to -------------------------------------------------------------


def test_a_folder_as_path_is_refused(tmp_path: Path) -> None:
    text = complaint(tmp_path, lambda: SqliteStore(tmp_path).open("full"))
    assert "is a folder: give the path of a database file" in text


def test_a_path_below_a_regular_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    path = tmp_path / "file" / "state.db"
    text = complaint(path, lambda: SqliteStore(path).open("full"))
    assert "cannot be made" in text
    assert "give a path in a folder that can be written to" in text
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write to every folder"
)
@pytest.mark.parametrize("exists", [False, True])
def test_a_read_only_folder_is_refused(tmp_path: Path, exists: bool) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    path = folder / "state.db"
    if exists:
        path.touch(0o400)
    folder.chmod(0o500)
    try:
        text = complaint(path, lambda: SqliteStore(path).open("full"))
    finally:
        folder.chmod(0o700)
    assert (
        "give the path of a file in a folder that can be" in text
        or "give a path in a folder" in text
    )


def test_missing_folders_are_made_for_their_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "state.db"
    store = SqliteStore(path)
    store.open("full")
    store.close()
    assert path.is_file()
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_only_the_owner_can_read_the_database_and_all_that_is_beside_it(tmp_path: Path) -> None:
    umask = os.umask(0)
    try:
        store = SqliteStore(tmp_path / "state.db", inline_limit=10)
        store.open("full")
        run = create(store, "run")
        row = task_row(run.pk, 1, result_kind=ResultKind.JSON, result=b"x" * 11)
        store.write(Writes(tasks=[row]))
    finally:
        os.umask(umask)
    found = {p.relative_to(tmp_path): p.stat().st_mode & 0o777 for p in tmp_path.rglob("*")}
    store.close()
    assert {"state.db", "state.db-wal", "state.db-shm", "state.db.results"} <= set(map(str, found))
    assert {mode for name, mode in found.items() if name.suffix == ".bin"} == {0o600}
    assert found[Path("state.db")] == 0o600
    assert {str(name): oct(mode) for name, mode in found.items() if mode & 0o077} == {}


@pytest.mark.parametrize("name", ["a b?mode=ro.db", "50%41#x.db", "späte 🦊.db", "'; --.db"])
async def test_any_file_name_works_for_the_store_and_for_its_reader(
    tmp_path: Path, name: str
) -> None:
    store = SqliteStore(tmp_path / name)
    store.open("full")
    run = create(store, "run")
    reader = store.reader()
    assert await reader.find_run("run") == run
    await reader.aclose()
    store.close()
    assert os.listdir(tmp_path) == [name]


async def test_questions_asked_at_once_share_one_connection_that_is_closed(
    store: SqliteStore,
) -> None:
    run = create(store, "run")
    reader = store.reader()
    assert await asyncio.gather(*(reader.find_run("run") for _ in range(5))) == [run] * 5
    assert len(reading_threads()) == 1
    await reader.aclose()
    assert reading_threads() == []


async def test_a_question_given_up_while_the_connection_opens_leaves_nothing_open(
    store: SqliteStore,
) -> None:
    run = create(store, "run")
    reader = store.reader()
    asking = asyncio.ensure_future(reader.find_run("run"))
    await until(reading_threads, pause=0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert reading_threads() == []
    assert await reader.find_run("run") == run
    await reader.aclose()


async def test_a_reader_of_an_absent_database_fails_and_does_not_make_it(path: Path) -> None:
    reader = SqliteStore(path).reader()
    for _ in range(3):
        with pytest.raises(StoreError, match="unable to open"):
            await reader.find_run("run")
        assert reading_threads() == []
    await reader.aclose()
    assert os.listdir(path.parent) == []


# --- a full disk ----------------------------------------------------------------------------------


def test_a_full_disk_takes_the_transaction_back_and_the_store_goes_on_when_there_is_room(
    store: SqliteStore, path: Path
) -> None:
    run = create(store, "run")
    store.write(one_of_each(run, "old"))
    before = store.run("run"), store.calls(run.pk), store.marks(run.pk)
    db = store._connection
    pages = db.execute("PRAGMA page_count").fetchone()[0]
    db.execute(f"PRAGMA max_page_count = {pages + 2}")
    writes = one_of_each(run)
    row = {"result_kind": ResultKind.JSON, "result": b"x" * 50_000}
    writes.tasks += [task_row(run.pk, n, **row) for n in range(3, 20)]

    for _ in range(2):
        text = complaint(path, lambda: store.write(writes))
        assert "the disk is full: free some space, then resume" in text
        assert (store.run("run"), store.calls(run.pk), store.marks(run.pk)) == before

    db.execute("PRAGMA max_page_count = 100000")
    store.write(writes)
    assert store.calls(run.pk) == writes.tasks
    assert db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"


def test_results_that_cannot_be_put_in_a_file_fail_the_write_and_nothing_is_written(
    path: Path,
) -> None:
    store = SqliteStore(path, inline_limit=100)
    store.open("full")
    run = create(store, "run")
    blocked = Path(f"{path}.results")
    blocked.write_text("a file where the folder should be")
    writes = one_of_each(run)
    writes.tasks.append(task_row(run.pk, 3, result_kind=ResultKind.JSON, result=b"x" * 12_345))
    text = complaint(blocked, lambda: store.write(writes))
    assert "a result of 12,345 bytes cannot be written" in text
    assert "free some space, or return a path instead of the data" in text
    assert store.calls(run.pk) == []
    blocked.unlink()
    store.write(writes)
    assert len(store.calls(run.pk)) == 3
    store.close()


# --- result files ---------------------------------------------------------------------------------


@pytest.fixture
def result(path: Path) -> Iterator[tuple[SqliteStore, str, Path]]:
    """A store, the name of a large result in it, and the file of that."""
    store = SqliteStore(path, inline_limit=100)
    store.open("full")
    run = create(store, "run")
    data = b"data" * 100
    store.write(
        Writes(tasks=[task_row(run.pk, 1, result_kind=ResultKind.JSON, result=data)]),
    )
    name = hashlib.sha256(data).hexdigest()
    assert store.calls(run.pk)[0].result == name.encode()
    assert store.load_file(name) == data
    (file,) = Path(f"{path}.results").rglob("*.bin")
    yield store, name, file
    store.close()


@pytest.mark.parametrize("content", [b"", b"data" * 99, b"Data" + b"data" * 99])
def test_a_result_file_that_was_changed_is_unreadable(
    result: tuple[SqliteStore, str, Path], content: bytes
) -> None:
    store, name, file = result
    file.write_bytes(content)
    text = complaint(file, lambda: store.load_file(name), ResultUnreadable)
    assert "is damaged: its content has changed" in text


def test_an_absent_result_file_is_unreadable(result: tuple[SqliteStore, str, Path]) -> None:
    store, name, file = result
    file.unlink()
    text = complaint(file, lambda: store.load_file(name), ResultUnreadable)
    assert "cannot be read: No such file" in text


def test_a_folder_in_place_of_a_result_file_is_unreadable(
    result: tuple[SqliteStore, str, Path],
) -> None:
    store, name, file = result
    file.unlink()
    file.mkdir()
    text = complaint(file, lambda: store.load_file(name), ResultUnreadable)
    assert "cannot be read: Is a directory" in text


def test_an_absent_result_file_does_not_keep_its_run_from_being_deleted(
    result: tuple[SqliteStore, str, Path],
) -> None:
    store, _, file = result
    file.unlink()
    run = store.run("run")
    assert run is not None
    assert store.delete_run(run.pk) == 1
    assert store.run("run") is None


@pytest.mark.parametrize(
    "name",
    [
        "",
        "../secret",
        "../" * 20 + "etc/pas",
        "/etc/passwd",
        "a" * 63,
        "a" * 65,
        "A" * 64,
        "a" * 63 + "/",
        "a" * 63 + "\0",
        "a" * 63 + "\n",
        "٠" * 64,
    ],
)
def test_only_names_of_result_files_are_opened(
    result: tuple[SqliteStore, str, Path], name: str
) -> None:
    store, _, file = result
    (file.parent.parent.parent / "secret.bin").write_bytes(b"secret")
    with pytest.raises(ResultUnreadable, match="is not the name of a result file"):
        store.load_file(name)


# --- several at once ------------------------------------------------------------------------------

CHILD = """
import sys
from asyncflow.store.base import TaskRow, Writes
from asyncflow.store.sqlite import SqliteStore
from contract.test_store import create, log_row, task_row

path, number = sys.argv[1:]
store = SqliteStore(path, busy_timeout=60)
print("ready", flush=True)
sys.stdin.readline()
store.open("relaxed")
run = create(store, f"child-{number}")
for n in range(1, 201):
    writes = Writes(tasks=[task_row(run.pk, n)], logs=[log_row(run.pk, str(n))])
    writes.fences[run.pk] = run.epoch
    assert store.write(writes) is True
store.close()
"""


def children(path: Path, number: int) -> list[subprocess.Popen[str]]:
    folders = [str(Path(asyncflow.__file__).parents[1]), str(Path(__file__).parents[1])]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(folders)}
    return [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", CHILD, str(path), str(n)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=env,
        )
        for n in range(number)
    ]


async def test_four_processes_make_and_write_the_same_file_without_an_error(path: Path) -> None:
    running = children(path, 4)
    try:
        for child in running:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
        for child in running:
            assert child.stdin is not None
            child.stdin.write("go\n")
            child.stdin.flush()
        outcomes = [(child.communicate(timeout=TIMEOUT)[1], child.returncode) for child in running]
    finally:
        for child in running:
            child.kill()
            child.communicate()
    assert outcomes == [("", 0)] * 4

    store = SqliteStore(path)
    store.open("full")
    reader = store.reader()
    for n in range(4):
        run = store.run(f"child-{n}")
        assert run is not None
        assert store.calls(run.pk) == [task_row(run.pk, n) for n in range(1, 201)]
        lines = (await reader.logs(LogQuery(run=run.pk, limit=500))).rows
        assert [row.message for _, row in lines] == [str(n) for n in range(1, 201)]
    assert store._connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
    await reader.aclose()
    store.close()


def test_four_threads_with_stores_of_their_own_write_the_same_file(path: Path) -> None:
    errors: list[BaseException] = []
    together = threading.Barrier(4, timeout=TIMEOUT)

    def work(name: str) -> None:
        try:
            together.wait()
            store = SqliteStore(path, busy_timeout=TIMEOUT)
            store.open("relaxed")
            run = create(store, name)
            for n in range(1, 51):
                store.write(Writes(tasks=[task_row(run.pk, n)], fences={run.pk: 1}))
            store.close()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(str(n),)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=TIMEOUT)
    assert errors == []
    store = SqliteStore(path)
    store.open("full")
    for n in range(4):
        run = store.run(str(n))
        assert run is not None
        assert len(store.calls(run.pk)) == 50
    store.close()


def test_a_lock_that_others_never_give_back_ends_the_wait_with_a_hint(
    store: SqliteStore, path: Path
) -> None:
    impatient = SqliteStore(path, busy_timeout=0.01)
    impatient.open("full")
    with store._transaction():
        text = complaint(path, lambda: create(impatient, "run"))
    assert "locked for 0.01 s: look for one that hangs in a transaction" in text
    create(impatient, "run")
    impatient.close()


OPENING = [
    "PRAGMA schema_version",
    "SELECT count(*) FROM sqlite_master",
    "PRAGMA user_version",
    "PRAGMA application_id",
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",
    "PRAGMA wal_autocheckpoint = 0",
    "BEGIN IMMEDIATE",
]


def before_statement(
    monkeypatch: pytest.MonkeyPatch, statement: str, meddle: Callable[[], Any]
) -> list[str]:
    """Have *meddle* called once, before the next connection executes *statement*."""
    done: list[str] = []

    class Meddled(sqlite3.Connection):
        def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
            if sql == statement and not done:
                done.append(sql)
                meddle()
            return super().execute(sql, *args)

    connect = sqlite3.connect

    def meddled(*args: Any, **kwargs: Any) -> sqlite3.Connection:
        monkeypatch.setattr(module.sqlite3, "connect", connect)
        return connect(*args, factory=Meddled, **kwargs)

    monkeypatch.setattr(module.sqlite3, "connect", meddled)
    return done


@pytest.mark.parametrize("statement", OPENING)
def test_a_database_that_another_process_makes_meanwhile_is_opened(
    path: Path, monkeypatch: pytest.MonkeyPatch, statement: str
) -> None:
    def make() -> None:
        other = SqliteStore(path)
        other.open("full")
        create(other, "theirs")
        other.close()

    done = before_statement(monkeypatch, statement, make)
    store = SqliteStore(path)
    store.open("full")
    assert done == [statement]
    assert store.run("theirs") is not None
    create(store, "ours")
    store.close()


@pytest.mark.parametrize("statement", OPENING)
def test_opening_waits_while_another_process_holds_the_file(
    path: Path, monkeypatch: pytest.MonkeyPatch, statement: str
) -> None:
    def busy() -> None:
        error = sqlite3.OperationalError("database is locked")
        error.sqlite_errorname = "SQLITE_BUSY"
        raise error

    done = before_statement(monkeypatch, statement, busy)
    store = SqliteStore(path)
    store.open("full")
    assert done == [statement]
    assert store._connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    create(store, "run")
    store.close()


def test_opening_a_file_that_stays_locked_fails_with_a_hint(path: Path) -> None:
    path.touch()
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("BEGIN EXCLUSIVE")
    text = complaint(path, lambda: SqliteStore(path, busy_timeout=0.01).open("full"))
    db.close()
    assert "locked for 0.01 s: look for one that hangs" in text


# --- the WAL --------------------------------------------------------------------------------------


def test_the_wal_stays_bounded_when_checkpoint_is_called(
    store: SqliteStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WAL_PAGES", 50)
    wal = Path(f"{path}-wal")
    run = create(store, "run")

    def sizes(checkpoint: bool, first: int) -> int:
        largest = 0
        for n in range(first, first + 100):
            row = task_row(run.pk, n, result_kind=ResultKind.JSON, result=b"x" * 20_000)
            store.write(Writes(tasks=[row]))
            if checkpoint:
                store.checkpoint()
            largest = max(largest, wal.stat().st_size)
        return largest

    assert sizes(checkpoint=True, first=1) < 2 * 50 * 4096
    assert sizes(checkpoint=False, first=101) > 4 * 50 * 4096
    assert len(store.calls(run.pk)) == 200


def test_a_checkpoint_does_nothing_while_the_wal_is_short(store: SqliteStore, path: Path) -> None:
    size = path.stat().st_size
    create(store, "run")
    store.checkpoint()
    assert path.stat().st_size == size
    wal = Path(f"{path}-wal")
    assert 0 < wal.stat().st_size < module.WAL_PAGES * 4096


@pytest.mark.parametrize(("durability", "level"), [("full", 2), ("strict", 1), ("relaxed", 1)])
def test_only_checkpoint_folds_the_wal_in_and_full_durability_syncs_each_commit(
    path: Path, durability: str, level: int
) -> None:
    store = SqliteStore(path)
    store.open(durability)

    def pragma(name: str) -> Any:
        return store._connection.execute(f"PRAGMA {name}").fetchone()[0]

    assert pragma("wal_autocheckpoint") == 0
    assert pragma("journal_mode") == "wal"
    assert pragma("synchronous") == level
    assert pragma("application_id") == APPLICATION_ID
    assert pragma("user_version") == SCHEMA_VERSION
    store.close()


def test_what_is_committed_is_there_though_the_store_was_never_closed(path: Path) -> None:
    crashed = SqliteStore(path)
    crashed.open("full")
    run = create(crashed, "run")
    crashed.write(one_of_each(run))
    store = SqliteStore(path)
    store.open("full")
    assert store.run("run") == run._replace(message="new")
    store.close()
    crashed.close()


# --- query plans ----------------------------------------------------------------------------------


class Explainer(SqliteReader):
    """Notes the plans of the statements instead of running them."""

    plans: list[str]

    async def _all(self, sql: str, values: Any) -> list[Any]:
        rows = await super()._all(f"EXPLAIN QUERY PLAN {sql}", values)
        self.plans = [row[3] for row in rows]
        return []


QUESTIONS: dict[str, Callable[[SqliteReader], Any]] = {
    "find_run": lambda r: r.find_run("x"),
    "runs-state": lambda r: r.runs(RunQuery(states=("FAILED",), parent=None)),
    "runs-states": lambda r: r.runs(RunQuery(states=("RUNNING", "FAILED"), parent=1)),
    "runs-flow": lambda r: r.runs(RunQuery(flow="f")),
    "runs-attention": lambda r: r.runs(
        RunQuery(states=("PAUSED",), paused_as=("NeedsAttention", "Paused"), parent=None)
    ),
    "runs-roots": lambda r: r.runs(RunQuery(parent=None)),
    "runs-parent": lambda r: r.runs(RunQuery(parent=3)),
    "runs-prefix": lambda r: r.runs(RunQuery(id_prefix="a")),
    "runs-after": lambda r: r.runs(RunQuery(after=7)),
    "runs-all": lambda r: r.runs(
        RunQuery(states=("A",), names=("N",), flow="f", tags=("t",), since=1.0, parent=1, after=7)
    ),
    "task_runs": lambda r: r.task_runs(TaskQuery(run=1)),
    "task_runs-all": lambda r: r.task_runs(TaskQuery(run=1, states=("A",), task="t", after=3)),
    "task_counts": lambda r: r.task_counts(1),
    "attempts": lambda r: r.attempts(1),
    "attempts-seq": lambda r: r.attempts(1, 2),
    "logs": lambda r: r.logs(LogQuery(run=1)),
    "logs-all": lambda r: r.logs(LogQuery(run=1, seq=1, level=20, text="t", after=3)),
    "states": lambda r: r.states(1),
    "engine": lambda r: r.engine(1),
    "runs-deployment": lambda r: r.runs(RunQuery(deployment="d")),
    "open_runs": lambda r: r.open_runs(),
    "ended_runs": lambda r: r.ended_runs(5, 10),
    "spans": lambda r: r.spans(1, 5),
    "notices": lambda r: r.notices("run", ["1", "2"]),
    "run_infos": lambda r: r.run_infos([1, 2]),
    "events": lambda r: r.events(EventQuery(after=5)),
    "events-run": lambda r: r.events(EventQuery(run=1)),
    "events-newest": lambda r: r.events(EventQuery(after=5, newest=True)),
    "deployment": lambda r: r.planned(planning.deployments("d")),
    "schedules": lambda r: r.planned(planning.schedules(1)),
    "ticks": lambda r: r.planned(planning.ticks(1, ["RUN"], 1.0, (5.0, 1))),
    "ticks-queued": lambda r: r.planned(planning.queued(1, None)),
    "ticks-counts": lambda r: r.planned(planning.tick_counts(1)),
    "artifacts": lambda r: r.artifacts(ArtifactQuery(run=1)),
    "artifacts-all": lambda r: r.artifacts(
        ArtifactQuery(run=1, seq=1, key="k", kinds=("progress",), after=3, data=False)
    ),
    "command": lambda r: r.planned(planning.commands("c")),
    "commands": lambda r: r.planned(planning.commands(states=["DONE"], before=5)),
    "variable": lambda r: r.planned(planning.variables("v")),
    "notices-all": lambda r: r.notices("limit"),
    "deliveries-automation": lambda r: r.planned(planning.deliveries(automation="a")),
    "automation": lambda r: r.planned(planning.automations("a")),
    "deliveries": lambda r: r.planned(planning.deliveries(before=5)),
    "deliveries-waiting": lambda r: r.planned(planning.waiting("c", 1.0)),
}


@pytest.mark.parametrize("name", QUESTIONS)
async def test_each_question_of_a_reader_is_answered_by_an_index(
    store: SqliteStore, name: str
) -> None:
    reader = Explainer(store)
    await QUESTIONS[name](reader)
    await reader.aclose()
    first, *others = reader.plans
    assert first.startswith("SEARCH ")
    assert " USING " in first
    assert not [plan for plan in others if plan.startswith("SCAN ") and "json_each" not in plan]


async def test_what_is_counted_is_found_by_an_index_and_what_is_open_by_one_of_its_own(
    store: SqliteStore,
) -> None:
    reader = Explainer(store)
    await reader.created_since(1.0, 3600.0, 5)
    (searched,) = [plan for plan in reader.plans if "flow_runs" in plan]
    assert searched == "SEARCH flow_runs USING INDEX flow_runs_parent (parent=?)"
    await reader.planned(planning.open_commands())
    assert reader.plans == ["SCAN commands USING INDEX commands_open"]
    await reader.planned(planning.tick_counts())
    assert reader.plans[0] == "SCAN ticks", "all of them, and none is looked up one by one"
    await reader.aclose()


@pytest.mark.parametrize("parent", [None, -1], ids=["roots", "all"])
async def test_of_several_states_the_newest_of_each_are_found_by_its_index(
    store: SqliteStore, parent: int | None
) -> None:
    reader = Explainer(store)
    await reader.runs(RunQuery(states=("RUNNING", "FAILED", "RUNNING"), parent=parent))
    await reader.aclose()
    of_runs = [plan for plan in reader.plans if "flow_runs" in plan]
    assert of_runs == ["SEARCH flow_runs USING INDEX flow_runs_state (state=?)"] * 2


async def test_edges_are_found_by_the_numbers_of_task_runs(store: SqliteStore) -> None:
    reader = Explainer(store)
    await reader.edges(1, 5)
    await reader.aclose()
    assert not [p for p in reader.plans if p.startswith(("SCAN task_runs", "SCAN other"))]
    assert len([p for p in reader.plans if "USING INTEGER PRIMARY KEY" in p]) == 4


async def test_names_of_flows_are_found_without_a_look_at_each_run(store: SqliteStore) -> None:
    for id_, name in (("1", "b"), ("2", "a"), ("3", "b"), ("4", "c")):
        create(store, id_, flow_name=name)
    reader = Explainer(store)
    await reader.flow_names(5)
    await reader.aclose()
    of_runs = [plan for plan in reader.plans if "flow_runs" in plan]
    assert len(of_runs) == 2
    assert all(plan.startswith("SEARCH flow_runs USING COVERING INDEX") for plan in of_runs)
    plain = store.reader()
    assert await plain.flow_names(2) == ["a", "b"]
    assert await plain.flow_names(5) == ["a", "b", "c"]
    await plain.aclose()


@pytest.mark.parametrize(
    "query",
    [RunQuery(), RunQuery(names=("N",)), RunQuery(since=1.0), RunQuery(tags=("t",))],
    ids=["none", "names", "since", "tags"],
)
async def test_runs_without_an_index_are_walked_newest_first_and_not_sorted(
    store: SqliteStore, query: RunQuery
) -> None:
    reader = Explainer(store)
    await reader.runs(query)
    await reader.aclose()
    assert reader.plans[0] == "SCAN flow_runs"
    assert not [plan for plan in reader.plans if "TEMP B-TREE" in plan]


def test_no_statement_of_the_store_scans_the_runs_or_the_task_runs(store: SqliteStore) -> None:
    root = create(store, "root", idempotency_key="k")
    below(store, root, "child")
    engine = store.register_engine(engine_row())
    statements: list[str] = []
    db = store._connection
    db.set_trace_callback(statements.append)
    store.create_run(root._replace(pk=0, id="again"), [])
    store.write(one_of_each(root))
    store.claim(root.pk, engine.id, root.epoch)
    store.request(root.pk, "cancel", 1.0)
    store.requests(engine.id)
    store.run("root")
    store.calls(root.pk)
    store.children(root.pk)
    store.marks(root.pk)
    store.unfinished()
    store.delete_run(root.pk)
    db.set_trace_callback(None)
    verbs = ("SELECT", "UPDATE", "DELETE", "WITH")
    asked = [sql for sql in statements if sql.startswith(verbs)]
    plans = [
        (sql, row[3]) for sql in asked for row in db.execute(f"EXPLAIN QUERY PLAN {sql}").fetchall()
    ]
    assert len(asked) > 15
    assert not [
        (sql, plan) for sql, plan in plans if plan.startswith(("SCAN flow_runs", "SCAN task_runs"))
    ]
    assert not [(sql, plan) for sql, plan in plans if plan == "SCAN f"]
