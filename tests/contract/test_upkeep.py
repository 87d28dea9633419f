"""Upkeep of databases: former schemas, backups, checks, retention."""

from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from patience import until

from asyncflow import (
    INPUTS,
    Engine,
    InvalidOption,
    MemoryStore,
    SqliteStore,
    StoreError,
    flow,
    task,
)
from asyncflow.cli.commands import cli
from asyncflow.cli.database import seconds_of
from asyncflow.retention import prune_run
from asyncflow.store.sqlite import MIGRATIONS, SCHEMA_VERSION, migration

DATABASES = Path(__file__).parent / "databases"
DAY = 86_400.0
Store = MemoryStore | SqliteStore


class Clock:
    def __init__(self) -> None:
        self.at = 1_800_000_000.0

    def time(self) -> float:
        return self.at


@task
async def large(i: int) -> str:
    return str(i) * 100_000


@flow
async def child() -> str:
    return (await large(7))[:3]


@flow
async def old() -> int:
    await large.map(range(3))
    await child()
    return 1


@flow(keep_last=2)
async def kept() -> int:
    return await small(1)


@task
async def small(i: int) -> int:
    return i


def run(*args: str) -> Result:
    result = CliRunner().invoke(cli, args)
    assert "Traceback" not in result.output
    return result


def rows_about(path: Path, pks: set[int]) -> dict[str, int]:
    """How many rows of each table are about these runs, whatever tables there are."""
    found: dict[str, int] = {}
    with sqlite3.connect(path) as db:
        tables = [r[0] for r in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in tables:
            columns = {r[1] for r in db.execute(f'PRAGMA table_info("{table}")')}
            where = "id >> 32" if table in ("task_runs", "attempts") else None
            where = where or next((c for c in ("run", "pk") if c in columns), None)
            if where is not None:
                marks = ",".join("?" * len(pks))
                sql = f'SELECT count(*) FROM "{table}" WHERE {where} IN ({marks})'
                found[table] = db.execute(sql, list(pks)).fetchone()[0]
    return {table: count for table, count in found.items() if count}


# --- former schemas -----------------------------------------------------------------------------


@pytest.fixture
def old_flows(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(DATABASES))
    yield
    sys.modules.pop("old_flows", None)


@pytest.mark.parametrize("version", range(1, SCHEMA_VERSION))
async def test_a_database_of_a_former_schema_is_read_and_gone_on_with(
    version: int, path: Path, old_flows: Any
) -> None:
    shutil.copy(DATABASES / f"schema-{version}.db", path)
    async with Engine(path, retention_days=None) as engine:
        runs = {run.flow_name: run for run in await engine.runs()}
        assert {name: run.state.name for name, run in runs.items()} == {
            "finishes": "Completed",
            "fails": "Failed",
            "waits": "Interrupted",
        }
        assert runs["finishes"].state.result() == 6
        (again,) = await engine.recover()
        assert await again == 12
        assert await (await engine.resume(runs["fails"].id)) == 2
        rows = await engine.task_runs(runs["waits"].id)
        assert [row.attempts for row in rows] == [1] * 4, "nothing that completed ran again"
    kept = Path(f"{path}.schema-{version}.backup")
    with sqlite3.connect(kept) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (version,)
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)


def test_two_that_open_a_former_schema_at_once_migrate_it_once(path: Path) -> None:
    shutil.copy(DATABASES / "schema-1.db", path)
    stores = [SqliteStore(path) for _ in range(4)]
    errors: list[BaseException] = []

    def open_(store: SqliteStore) -> None:
        try:
            store.open("strict")
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=open_, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    for store in stores:
        assert store.check() == []
        store.close()


def test_a_migration_cut_off_at_any_statement_leaves_the_old_schema(path: Path) -> None:
    statements = list(migration(MIGRATIONS[1]))
    for cut in range(len(statements) + 1):
        shutil.copy(DATABASES / "schema-1.db", path)
        db = sqlite3.connect(path, isolation_level=None)
        db.execute("BEGIN IMMEDIATE")
        for statement in statements[:cut]:
            db.execute(statement)
        db.close()  # as when its process dies: nothing is committed
        with sqlite3.connect(path) as db:
            assert db.execute("PRAGMA user_version").fetchone() == (1,)
        store = SqliteStore(path)
        store.open("strict")
        assert store.check() == []
        store.close()
        for left in path.parent.glob(f"{path.name}*"):
            left.unlink()


def test_a_migration_without_room_for_its_backup_is_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(DATABASES / "schema-1.db", path)

    def full(self: SqliteStore, target: Path) -> int:
        raise StoreError("no room")

    monkeypatch.setattr(SqliteStore, "backup", full)
    with pytest.raises(StoreError, match="make room for it"):
        SqliteStore(path).open("strict")
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (1,)


# --- retention ------------------------------------------------------------------------------------


async def test_old_runs_go_with_all_that_belongs_to_them(path: Path) -> None:
    clock = Clock()
    async with Engine(path, clock=clock, retention_days=30) as engine:
        gone = await engine.submit(old)
        await gone
        assert gone._run is not None
        pks = {gone._run.pk, gone._run.pk + 1}
        assert rows_about(path, pks)["task_runs"] == 4
        assert list(Path(f"{path}.results").rglob("*.bin"))
        clock.at += 31 * DAY
        young = await engine.submit(old)
        await young
        waiting = await engine.submit(kept)
        await waiting
        assert await engine.retention.once() == 1
        assert rows_about(path, pks) == {}
        assert {run.id for run in await engine.runs(parent_id=None)} == {young.id, waiting.id}
        assert engine.store.check() == []  # type: ignore[attr-defined] # young's files are there
        assert (await engine.task_runs(young.id))[0].state.result() == "0" * 100_000


async def test_runs_that_have_not_ended_are_never_removed(store: Store) -> None:
    @flow
    async def fails() -> None:

        await asyncio.sleep(60)

    clock = Clock()
    async with Engine(store, clock=clock) as engine:
        run_ = await engine.submit(fails)
        await until(lambda: run_.state.is_running(), pause=0)
    clock.at += 365 * DAY
    async with Engine(store, clock=clock) as engine:
        assert await engine.retention.once() == 0
        assert (await engine.get_run(run_.id)).state.is_paused()


async def test_a_flow_keeps_its_newest_runs_only(store: Store) -> None:
    async with Engine(store, clock=Clock()) as engine:
        runs = [await engine.submit(kept) for _ in range(5)]
        for one in runs:
            await one
        other = await engine.submit(old)
        await other
        assert await engine.retention.once() == 3
        left = {one.id for one in await engine.runs(parent_id=None)}
        assert left == {runs[3].id, runs[4].id, other.id}


async def test_without_retention_everything_stays(store: Store) -> None:
    clock = Clock()
    async with Engine(store, clock=clock, retention_days=None) as engine:
        await engine.run(old)
        clock.at += 1000 * DAY
        assert await engine.retention.once() == 0


def test_a_retention_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(InvalidOption, match="days above 0"):
        Engine(retention_days=0)


async def test_a_large_run_is_removed_in_short_steps(path: Path) -> None:
    @flow
    async def many() -> None:
        await small.map(range(3000))

    async with Engine(path) as engine:
        await engine.run(many)
    store = SqliteStore(path)
    store.open("strict")
    ((pk, _),) = store.expired(1e12, None, 0, 10)
    steps = 0
    while not store.trim_run(pk, 500):
        steps += 1
    assert steps == 6
    assert prune_run(store, pk) == 1
    assert store.expired(1e12, None, 0, 10) == []
    store.close()


async def test_cached_results_go_when_they_expire_or_with_their_run(path: Path) -> None:
    @task(cache_policy=INPUTS, cache_expiration=DAY)
    async def brief(n: int) -> str:
        return "b" * 100_000 + str(n)

    @task(cache_policy=INPUTS)
    async def lasting(n: int) -> str:
        return "l" * 100_000 + str(n)

    @flow
    async def main() -> None:
        await brief.map(range(3))
        await lasting.map(range(3))

    clock = Clock()
    async with Engine(path, clock=clock, retention_days=30) as engine:
        await engine.run(main)
        assert await engine.clear_cache("nothing of that name") == 0
        clock.at += 2 * DAY
        await engine.retention.once()
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as db:
            assert db.execute("SELECT task, count(*) FROM cache").fetchall() == [("lasting", 3)]
        db.close()
        clock.at += 30 * DAY
        assert await engine.retention.once() == 1
        assert engine.store.check() == []  # type: ignore[attr-defined] # it is a SqliteStore
        assert not list(Path(f"{path}.results").rglob("*.bin"))
        assert await engine.clear_cache() == 0


# --- the commands ---------------------------------------------------------------------------------


@pytest.fixture
async def filled(path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    async with Engine(path) as engine:
        for _ in range(3):
            await engine.run(old)
    monkeypatch.setenv("ASYNCFLOW_DATABASE", str(path))
    return path


def test_a_sound_database_is_sound_and_a_damaged_one_is_not(filled: Path) -> None:
    assert run("db", "check").exit_code == 0
    file = next(Path(f"{filled}.results").rglob("*.bin"))
    file.write_bytes(b"damaged")
    (file.parent / f"{'0' * 64}.bin").write_bytes(b"stray")
    with sqlite3.connect(filled) as db:
        db.execute("INSERT INTO logs VALUES (NULL, 999, NULL, 0, 20, 'x', 'lost')")
        db.execute("UPDATE flow_runs SET result = CAST('#00000000 5' AS BLOB) WHERE pk = 1")
    checked = run("db", "check", "--json")
    assert checked.exit_code == 1
    told = " ".join(json.loads(checked.stdout)["problems"])
    assert "is damaged" in told
    assert "belong to no run, such as" in told
    assert "1 rows of logs belong to no run" in told
    assert "1 results in flow_runs are damaged" in told


def test_a_backup_is_a_database_of_its_own_and_overwrites_nothing(
    filled: Path, tmp_path: Path
) -> None:
    target = tmp_path / "copy.db"
    assert run("db", "backup", str(target)).exit_code == 0
    with sqlite3.connect(target) as db:
        assert db.execute("SELECT count(*) FROM flow_runs").fetchone() == (6,)
    again = run("db", "backup", str(target))
    assert again.exit_code == 2
    assert "exists: give the backup another name" in again.output
    nowhere = run("db", "backup", str(tmp_path / "no" / "copy.db"))
    assert nowhere.exit_code == 2


def test_pruning_says_what_it_would_do_and_does_it(filled: Path) -> None:
    would = json.loads(run("db", "prune", "--older-than", "0s", "--dry-run", "--json").stdout)
    assert len(would["runs"]) == 3
    assert "removed 2 runs" in run("db", "prune", "--older-than", "0s", "--keep-last", "1").output
    assert len(json.loads(run("runs", "ls", "--json").stdout)) == 1
    assert run("db", "check").exit_code == 0
    assert run("db", "vacuum").exit_code == 0
    wrong = run("db", "prune", "--older-than", "yesterday")
    assert wrong.exit_code == 2
    assert "is no duration" in wrong.output


def test_the_statistics_count_rows_and_bytes(filled: Path) -> None:
    found = json.loads(run("db", "stats", "--json").stdout)
    assert found["rows"]["flow_runs"] == 6
    assert found["runs"] == {"COMPLETED": 6}
    assert found["result_files"] == 4
    assert found["schema"] == SCHEMA_VERSION
    assert "flow_runs" in run("db", "stats").output
    assert f"has schema {SCHEMA_VERSION}" in run("db", "migrate").output


def test_without_a_database_the_commands_say_so(tmp_path: Path) -> None:
    for command in ("check", "stats", "vacuum", "migrate", "prune"):
        result = run("db", command, "--db", str(tmp_path / "none.db"))
        assert result.exit_code == 2
        assert "there is no database" in result.output
        assert not (tmp_path / "none.db").exists()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30d", 2_592_000), ("12h", 43_200), ("90m", 5400), ("5s", 5), ("7", 7), ("1.5w", 907_200)],
)
def test_durations(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds
