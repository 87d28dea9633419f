"""Tasks whose record is written in the user's own transaction: done exactly once."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from random import Random
from typing import Any

import pytest

from asyncflow import (
    INPUTS,
    BlockingCall,
    Completed,
    Engine,
    Failed,
    InvalidDefinition,
    InvalidOption,
    MemoryStore,
    NotSerializable,
    SqliteStore,
    StoreError,
    TaskTimeout,
    flow,
    runtime,
    task,
)

Store = MemoryStore | SqliteStore


@task(transactional=True)
def setup(db: sqlite3.Connection) -> None:
    db.executescript(
        """
        -- The tables of this test; a semicolon in text; is none.
        CREATE TABLE accounts (name TEXT PRIMARY KEY, cents INTEGER NOT NULL CHECK (cents >= 0));
        INSERT INTO accounts VALUES ('ann', 100), ('bob; or so', 0);
        """
    )


@task(transactional=True)
def move(db: sqlite3.Connection, cents: int) -> int:
    add = "UPDATE accounts SET cents = cents + ? WHERE name LIKE ?"
    db.execute(add, (cents, "bob%"))
    db.execute(add, (-cents, "ann"))
    (left,) = db.execute("SELECT cents FROM accounts WHERE name = 'ann'").fetchone()
    return int(left)


@task(transactional=True)
def balance(db: sqlite3.Connection) -> list[int]:
    return [cents for (cents,) in db.execute("SELECT cents FROM accounts ORDER BY name")]


async def test_what_it_did_and_its_record_are_there_together(store: Store) -> None:
    @flow
    async def main() -> tuple[int, list[int]]:
        await setup.submit()
        return await move.submit(30), await balance.submit()

    async with Engine(store) as engine:
        run = await engine.submit(main)
        assert await run == (70, [70, 30])
        rows = await engine.task_runs(run.id)
        assert [(r.task_key, r.state.name, r.attempts) for r in rows] == [
            ("setup", "Completed", 1),
            ("move", "Completed", 1),
            ("balance", "Completed", 1),
        ]
        assert [r.state.result() for r in rows] == [None, 70, [70, 30]]


async def test_an_exception_takes_everything_back_and_is_the_tasks_own(store: Store) -> None:
    @flow
    async def main() -> list[int]:
        await setup.submit()
        with pytest.raises(sqlite3.IntegrityError, match="CHECK"):
            await move.submit(101)
        return await balance.submit()

    async with Engine(store) as engine:
        assert await engine.run(main) == [100, 0]


async def test_it_is_retried_like_others(store: Store) -> None:
    tries = 0

    @task(transactional=True, retries=2, retry_delay_seconds=0)
    def flaky(db: sqlite3.Connection) -> str:
        nonlocal tries
        tries += 1
        db.execute("CREATE TABLE tries (n)")
        if tries < 3:
            raise OSError("again")
        return f"{tries} {runtime.task_run.attempt}"

    @flow
    async def main() -> str:
        return await flaky.submit()

    async with Engine(store) as engine:
        assert await engine.run(main) == "3 3"


async def test_every_way_of_calling_a_plain_task_works(store: Store) -> None:
    class Ledger:
        @task(transactional=True)
        def put(self, db: sqlite3.Connection, x: int, *, twice: bool = False) -> int:
            db.execute("CREATE TABLE IF NOT EXISTS numbers (x)")
            db.executemany("INSERT INTO numbers VALUES (?)", [(x,)] * (1 + twice))
            return x

    put = Ledger().put

    @task(transactional=True, task_run_name="count {what}")
    def count(db: sqlite3.Connection, what: str) -> int:
        return int(db.execute("SELECT count(*) FROM numbers").fetchone()[0])

    @flow
    async def main() -> list[Any]:
        a = put.submit(1, twice=True)
        b = put.map([2, 3])
        c = [x async for x in put.stream([4], ordered=True)]
        return [await a, await b, c, await count.submit("rows")]

    @flow
    def plain() -> int:
        put(5)
        return count("rows")

    async with Engine(store) as engine:
        run = await engine.submit(main)
        assert await run == [1, [2, 3], [4], 5]
        assert (await engine.task_runs(run.id))[-1].name == "count rows"
        assert await engine.run(plain) == 6


async def test_outside_of_flows_it_is_the_plain_function() -> None:
    with contextlib.closing(sqlite3.connect(":memory:")) as db:
        setup(db)  # type: ignore[call-arg] # flows hand it in
        assert balance.fn(db) == [100, 0]


async def test_a_completed_one_is_not_run_again(store: Store) -> None:
    ran: list[int] = []
    broken = True

    @task(transactional=True)
    def put(db: sqlite3.Connection, x: int) -> int:
        ran.append(x)
        return x

    @flow
    async def main() -> int:
        first = await put.submit(1)
        if broken:
            raise RuntimeError
        return first

    async with Engine(store) as engine:
        run = await engine.submit(main)
        await run.wait()
        broken = False
        assert await (await engine.resume(run.id)) == 1
    assert ran == [1]


async def test_its_result_can_be_cached(store: Store) -> None:
    @task(transactional=True, cache_policy=INPUTS)
    def once(db: sqlite3.Connection, x: int) -> int:
        db.execute("CREATE TABLE made (x)")
        return x

    @flow
    async def main() -> int:
        return await once.submit(1)

    async with Engine(store) as engine:
        assert [await engine.run(main), await engine.run(main)] == [1, 1]


@pytest.mark.parametrize("durability", ["full", "relaxed", "off"])
async def test_it_works_with_every_durability(store: Store, durability: str) -> None:
    told: list[str] = []

    @task(transactional=True, on_completion=lambda task, run, state: told.append(state.name))
    def put(db: sqlite3.Connection, x: int) -> int:
        return x

    @flow
    async def main() -> list[int]:
        return await put.map(range(5))

    async with Engine(store, durability=durability) as engine:
        assert await engine.run(main) == list(range(5))
    assert told == ["Completed"] * 5


# --- what it may do -------------------------------------------------------------------------------


@pytest.fixture(params=["memory", "sqlite"])
def any_store(request: pytest.FixtureRequest, path: Path) -> Store:
    return MemoryStore() if request.param == "memory" else SqliteStore(path)


async def run_in(store: Store, function: Any) -> Any:
    """What a transactional task with this body gives or raises."""

    @flow
    async def main() -> Any:
        return await task(transactional=True, name="it")(function).submit()

    async with Engine(store) as engine:
        state = await (await engine.submit(main)).wait()
    return state.error if state.error is not None else state.result()


@pytest.mark.parametrize(
    ("sql", "reason"),
    [
        ("COMMIT", "COMMIT cannot be used here: the function is one transaction"),
        ("ROLLBACK", "ROLLBACK cannot be used here"),
        ("BEGIN", "BEGIN cannot be used here"),
        ("ATTACH ':memory:' AS other", "other databases cannot be attached"),
        ("PRAGMA user_version = 9", "PRAGMA user_version cannot be used"),
        ("PRAGMA writable_schema = 1", "PRAGMA writable_schema cannot be used"),
    ],
)
async def test_what_would_break_the_transaction_is_refused(
    any_store: Store, sql: str, reason: str
) -> None:
    error = await run_in(any_store, lambda db: db.execute(sql))
    assert isinstance(error, sqlite3.DatabaseError)
    assert reason in "".join(error.__notes__)


@pytest.mark.parametrize(
    "sql",
    [
        "DELETE FROM task_runs",
        "UPDATE flow_runs SET state = 'COMPLETED'",
        "INSERT INTO marks VALUES (1, 'a', 1, 'b', 1)",
        "DROP TABLE cache",
        "ALTER TABLE logs ADD COLUMN x",
        "CREATE INDEX mine ON events (time)",
        "CREATE TRIGGER mine AFTER INSERT ON task_runs BEGIN SELECT 1; END",
        "CREATE TABLE t (x); CREATE TRIGGER mine AFTER INSERT ON t BEGIN DELETE FROM cache; END;"
        "INSERT INTO t VALUES (1)",
    ],
)
async def test_our_own_tables_can_be_read_only(path: Path, sql: str) -> None:
    error = await run_in(SqliteStore(path), lambda db: db.executescript(sql))
    assert isinstance(error, sqlite3.Error)
    assert "is asyncflow's: give your own tables other names" in "".join(error.__notes__)


async def test_our_own_tables_can_be_read(path: Path) -> None:
    found = await run_in(
        SqliteStore(path),
        lambda db: [name for (name,) in db.execute("SELECT flow_name FROM flow_runs")],
    )
    assert found == ["main"]


@pytest.mark.parametrize("name", ["rollback", "close"])
async def test_the_connection_cannot_be_ended(any_store: Store, name: str) -> None:
    error = await run_in(any_store, lambda db: getattr(db, name)())
    assert isinstance(error, BlockingCall)
    assert "committed when it returns" in str(error)


async def test_commit_and_with_do_nothing_so_that_libraries_work(any_store: Store) -> None:
    def body(db: sqlite3.Connection) -> None:
        with db:
            db.execute("CREATE TABLE kept (x)")
        db.commit()
        raise KeyError("after all")

    assert isinstance(await run_in(any_store, body), KeyError)
    names = "SELECT count(*) FROM sqlite_master WHERE name = 'kept'"
    assert await run_in(any_store, lambda db: db.execute(names).fetchone()[0]) == 0


async def test_settings_of_the_connection_end_with_the_task(any_store: Store) -> None:
    def body(db: sqlite3.Connection) -> str:
        db.row_factory = sqlite3.Row
        db.text_factory = bytes
        return str(dict(db.execute("SELECT 'a' AS x").fetchone()))

    assert await run_in(any_store, body) == "{'x': b'a'}"
    assert await run_in(any_store, lambda db: db.execute("SELECT 'a'").fetchone()) == ("a",)


async def test_savepoints_and_foreign_keys_work(any_store: Store) -> None:
    def body(db: sqlite3.Connection) -> int:
        db.executescript(
            "CREATE TABLE p (id INTEGER PRIMARY KEY);"
            "CREATE TABLE c (p REFERENCES p DEFERRABLE INITIALLY DEFERRED);"
            "SAVEPOINT s; INSERT INTO p VALUES (1); ROLLBACK TO s; RELEASE s"
        )
        db.execute("INSERT INTO c VALUES (7)")
        return int(db.execute("SELECT count(*) FROM p").fetchone()[0])

    error = await run_in(any_store, body)  # there is no p 7, which is found at the commit
    assert isinstance(error, sqlite3.IntegrityError)
    names = "SELECT count(*) FROM sqlite_master WHERE name = 'p'"
    assert await run_in(any_store, lambda db: db.execute(names).fetchone()[0]) == 0


async def test_a_statement_that_ends_the_transaction_fails_the_task(any_store: Store) -> None:
    def body(db: sqlite3.Connection) -> None:
        db.execute("CREATE TABLE u (x UNIQUE)")
        db.execute("INSERT INTO u VALUES (1)")
        with contextlib.suppress(sqlite3.IntegrityError):
            db.execute("INSERT OR ROLLBACK INTO u VALUES (1)")

    error = await run_in(any_store, body)
    assert isinstance(error, sqlite3.OperationalError)
    assert "ended the transaction" in str(error)


async def test_a_result_that_cannot_be_stored_takes_everything_back(any_store: Store) -> None:
    def body(db: sqlite3.Connection) -> object:
        db.execute("CREATE TABLE kept (x)")
        return object()

    assert isinstance(await run_in(any_store, body), NotSerializable)
    names = "SELECT count(*) FROM sqlite_master WHERE name = 'kept'"
    assert await run_in(any_store, lambda db: db.execute(names).fetchone()[0]) == 0


async def test_a_returned_state_decides_what_is_kept(any_store: Store) -> None:
    def good(db: sqlite3.Connection) -> Any:
        db.execute("CREATE TABLE good (x)")
        return Completed(5)

    def bad(db: sqlite3.Connection) -> Any:
        db.execute("CREATE TABLE bad (x)")
        return Failed("no", ValueError("no"))

    assert await run_in(any_store, good) == 5
    assert isinstance(await run_in(any_store, bad), ValueError)
    names = "SELECT group_concat(name) FROM sqlite_master WHERE name IN ('good', 'bad')"
    assert await run_in(any_store, lambda db: db.execute(names).fetchone()[0]) == "good"


async def test_a_large_result_goes_to_a_file(path: Path) -> None:
    assert len(await run_in(SqliteStore(path), lambda db: "x" * 100_000)) == 100_000
    assert list(path.with_name("state.db.results").rglob("*.bin"))


async def test_it_cannot_call_tasks(any_store: Store) -> None:
    @task
    def other() -> None: ...

    @flow
    def child() -> None: ...

    error = await run_in(any_store, lambda db: other())
    assert isinstance(error, BlockingCall)
    assert "a transactional task cannot call or wait for tasks" in str(error)
    assert isinstance(await run_in(any_store, lambda db: child()), BlockingCall)
    assert isinstance(await run_in(any_store, lambda db: other.submit().result()), BlockingCall)


async def test_a_coroutine_is_no_result(any_store: Store) -> None:
    async def later() -> None: ...

    def body(db: sqlite3.Connection) -> Any:
        waiting = later()
        waiting.close()
        return waiting

    error = await run_in(any_store, body)
    assert isinstance(error, InvalidDefinition)
    assert "returns plain data" in str(error)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"timeout_seconds": 5}, InvalidDefinition, "total_timeout_seconds"),
        ({"runner": "process"}, InvalidOption, "leave runner= out"),
        ({"persist_result": False}, InvalidOption, "leave persist_result=False out"),
    ],
)
def test_options_that_it_cannot_keep_are_refused(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        task(transactional=True, **options)(lambda db: None)


def test_functions_that_cannot_be_one_are_refused() -> None:
    with pytest.raises(InvalidDefinition, match="make it a plain def"):

        @task(transactional=True)
        async def awaits(db: sqlite3.Connection) -> None: ...

    with pytest.raises(InvalidDefinition, match="takes no connection"):

        @task(transactional=True)
        def takes_nothing() -> None: ...  # type: ignore[misc] # wrong on purpose


# --- being stopped --------------------------------------------------------------------------------


class Held:
    """A transactional body that stands on the writer's thread until it is let go."""

    def __init__(self) -> None:
        self.began = threading.Event()
        self.go_on = threading.Event()
        self.ran = 0

    def __call__(self, db: sqlite3.Connection) -> str:
        self.ran += 1
        db.execute("CREATE TABLE IF NOT EXISTS held (x)")
        db.execute("INSERT INTO held VALUES (1)")
        self.began.set()
        assert self.go_on.wait(30)
        return "done"

    async def reached(self) -> None:
        await asyncio.to_thread(self.began.wait, 30)


async def test_one_that_runs_ends_though_its_run_is_cancelled(store: Store) -> None:
    held = Held()
    body = task(transactional=True, name="held")(held)

    @flow(cancel_grace_seconds=0)
    async def main() -> str:
        return await body.submit()

    async with Engine(store, cancel_grace_seconds=0) as engine:
        run = await engine.submit(main)
        await held.reached()
        cancelling = asyncio.create_task(run.cancel())
        await asyncio.sleep(0)
        held.go_on.set()
        await cancelling
        assert run.state.is_cancelled()
        (row,) = await engine.task_runs(run.id)
        assert (row.state.name, row.state.result()) == ("Completed", "done")
        # So a resume does not do it again.
        assert await (await engine.resume(run.id)) == "done"
    assert held.ran == 1


async def test_one_that_has_not_begun_is_cancelled(store: Store) -> None:
    held, later = Held(), Held()
    first, second = task(transactional=True)(held), task(transactional=True, name="b")(later)

    @flow
    async def main() -> None:
        first.submit()
        second.submit()

    async with Engine(store) as engine:
        run = await engine.submit(main)
        await held.reached()
        cancelling = asyncio.create_task(run.cancel())
        await asyncio.sleep(0)
        held.go_on.set()
        await cancelling
        states = {r.task_key: r.state.name for r in await engine.task_runs(run.id)}
    assert list(states.values()) == ["Completed", "Cancelled"]
    assert later.ran == 0


async def test_the_hosts_cancellation_passes_through_and_what_is_done_counts(
    store: Store,
) -> None:
    held = Held()
    body = task(transactional=True, name="held")(held)

    @flow
    def main() -> str:
        return body()

    async with Engine(store) as engine:
        host = asyncio.create_task(engine.run(main))
        await held.reached()
        host.cancel()
        await asyncio.sleep(0)
        held.go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await host
        (run,) = await engine.runs()
        assert run.state.is_cancelled()
        (row,) = await engine.task_runs(run.id)
        assert row.state.name == "Completed"


async def test_a_total_timeout_counts_until_it_begins(store: Store) -> None:
    held = Held()
    first = task(transactional=True)(held)
    late = task(transactional=True, name="late", total_timeout_seconds=0.001)(Held())

    @flow
    async def main() -> str:
        future, waiting = first.submit(), late.submit()
        while waiting.stop is None:
            await asyncio.sleep(0)
        held.go_on.set()
        with pytest.raises(TaskTimeout):
            await waiting
        return await future

    async with Engine(store) as engine:
        assert await engine.run(main) == "done"


# --- exactly once ---------------------------------------------------------------------------------


class Dead(SqliteStore):
    """A store whose process dies at its n-th transaction, before or after the commit."""

    left = 0
    after_it = False
    dead = False

    def _count(self) -> bool:
        if self.dead:
            raise StoreError("the process died")
        self.left -= 1
        self.dead = not self.left
        return self.dead

    def write(self, *args: Any, **options: Any) -> bool:
        if self._count():
            if self.after_it:
                super().write(args[0], wait=True)
            raise StoreError("the process died")
        return super().write(*args, **options)

    def transact(self, *args: Any) -> None:
        if self._count():
            if self.after_it:
                super().transact(*args)
            raise StoreError("the process died")
        super().transact(*args)


@task(transactional=True)
def note(db: sqlite3.Connection, x: int) -> int:
    db.execute("CREATE TABLE IF NOT EXISTS notes (x)")
    db.execute("INSERT INTO notes VALUES (?)", (x,))
    return x


@flow
async def notes() -> list[int]:
    one = [await note.submit(x) for x in range(3)]
    return one + await note.map(range(3, 6))


@pytest.mark.parametrize("after_it", [False, True], ids=["before", "after"])
async def test_a_crash_at_any_transaction_repeats_and_loses_nothing(
    tmp_path: Path, after_it: bool
) -> None:
    at = tried = 0
    happened = True
    while happened:
        at += 1
        path = tmp_path / f"{at}.db"
        store = Dead(path)
        store.left, store.after_it = at, after_it
        engine = Engine(store)
        await engine.open()
        run = None
        with contextlib.suppress(StoreError):
            run = await engine.submit(notes)
            await run.wait()
        await engine.aclose()
        happened = store.dead
        async with Engine(path) as engine:
            await engine.recover()
            if run is None:
                continue
            tried += 1
            assert (await engine.wait(run.id)).result() == list(range(6))
        with contextlib.closing(sqlite3.connect(path)) as db:
            assert [x for (x,) in db.execute("SELECT x FROM notes ORDER BY x")] == list(range(6))
    assert tried > 5


PROGRAM = """
import asyncio, sqlite3, sys
from asyncflow import Engine, flow, task

@task(transactional=True)
def add(db: sqlite3.Connection, x: int) -> int:
    db.execute("CREATE TABLE IF NOT EXISTS sums (id INTEGER PRIMARY KEY CHECK (id = 1), n, total)")
    db.execute("INSERT INTO sums VALUES (1, 1, ?) ON CONFLICT DO UPDATE"
               " SET n = n + 1, total = total + excluded.total", (x,))
    return x

@flow(max_concurrency=8)
async def main() -> int:
    one = [await add.submit(x) for x in range(60)]
    return sum(one) + sum(await add.map(range(60, 150)))

async def run() -> None:
    async with Engine("state.db", max_concurrency=8) as engine:
        if sys.argv[1] == "run":
            await engine.run(main)
        else:
            for run in await engine.recover():
                print(await run)

asyncio.run(run())
"""


@pytest.mark.parametrize("seed", range(6))
def test_kill_9_repeats_and_loses_nothing(tmp_path: Path, seed: int) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    path = tmp_path / "state.db"

    def start(what: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "program.py", what],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            stdout=subprocess.PIPE,
            text=True,
        )

    def done() -> int:
        if not path.exists():
            return 0
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
            try:
                return int((db.execute("SELECT n FROM sums").fetchone() or (0,))[0])
            except sqlite3.OperationalError:
                return 0

    process = start("run")
    enough, until = Random(seed).randint(1, 120), time.monotonic() + 30
    while done() < enough and process.poll() is None:
        assert time.monotonic() < until
        os.sched_yield()
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    out, _ = start("recover").communicate(timeout=60)
    assert out.split() == [str(sum(range(150)))], f"seed {seed}"
    with contextlib.closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT n, total FROM sums").fetchone() == (150, sum(range(150)))
