"""Cuts the power below a SQLite store, again and again, and looks at what is found then.

    python -m tests.power --cuts 2000 [--seed 0]

One history of a store (runs, tasks, marks, large results, checkpoints, a deletion) is recorded
once for each durability, on the disk of `tests/faultyfiles.py`. A cut is a point of that history,
and what became of all that was not synced: dropped, or by the seed kept, dropped or torn. It must
then be that

* `full`: everything that was acknowledged is there, each large result included;
* `strict`: what is there is what there was after one of the transactions, whole;
* both: the database is sound, and the store opens it and goes on.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

from asyncflow.errors import ResultUnreadable
from asyncflow.store import sqlite as module
from asyncflow.store.base import (
    ArtifactRow,
    AttemptRow,
    CacheRow,
    EngineRow,
    LimitRow,
    LogRow,
    MarkRow,
    ResultKind,
    RunRow,
    StateRow,
    TaskRow,
    Writes,
)
from asyncflow.store.sqlite import SqliteStore
from tests.faultyfiles import Disk, lay_out

INLINE_LIMIT = 1000
#: Two results that go to files.
LARGE = (b"large " * 900, b"another " * 700)
FILES = {ResultKind.JSON_FILE, ResultKind.PICKLE_FILE}

Contents = dict[str, list[tuple[Any, ...]]]


# --- a history ------------------------------------------------------------------------------------


def _new_run(name: str) -> RunRow:
    return RunRow(
        pk=0, id=name, flow_name="flow", flow_ref="{}", name=name, parent=None,
        parent_identity=None, parent_seq=None, root=0, state="RUNNING", state_name="Running",
        message="", state_at=1.0, parameters=b"{}", tags=("t",), created_at=1.0, started_at=None,
        ended_at=None, deadline_at=None, engine=None, epoch=1, attempt=1, recoveries=0,
        idempotency_key=name, version=None, result_kind=ResultKind.NONE, result=None, error=None,
        ended_by=(),
    )  # fmt: skip


def _done(run: int, seq: int, result: bytes = b"1") -> TaskRow:
    return TaskRow(
        run=run, seq=seq, identity=b"identity %d" % seq, task="task", name=None, parent=None,
        state="COMPLETED", state_name=None, message="", attempt=1, failures=0, interruptions=0,
        created_at=1.0, started_at=1.0, ended_at=2.0, retry_at=None, upstream=(), tags=(),
        result_kind=ResultKind.JSON, result=result, error=None,
    )  # fmt: skip


def _run(store: SqliteStore, name: str) -> RunRow:
    row = store.run(name)
    assert row is not None, name
    return row


def _register(store: SqliteStore) -> None:
    store.register_engine(EngineRow(0, 42, "host", "boot", 1.0, 1.0, None))


def _create(name: str) -> Callable[[SqliteStore], None]:
    def create(store: SqliteStore) -> None:
        _, new = store.create_run(_new_run(name), [StateRow(0, 1.0, "PENDING", "Pending", "", 1)])
        assert new

    return create


def _claim(store: SqliteStore) -> None:
    assert store.claim(_run(store, "one").pk, 1, 1)


def _write(name: str, first: int, *results: bytes, **more: Any) -> Callable[[SqliteStore], None]:
    def write(store: SqliteStore) -> None:
        run = _run(store, name)
        tasks = [_done(run.pk, first + n, result) for n, result in enumerate(results)]
        writes = Writes(
            tasks=tasks,
            states=[StateRow(run.pk, 2.0, "RUNNING", "Running", f"from {first}", run.epoch)],
            marks=[MarkRow(run.pk, b"scope", first, b"mark", first)],
            attempts=[AttemptRow(run.pk, first, 1, 1.0, 2.0, None, b"error")],
            logs=[LogRow(run.pk, first, 2.0, 20, "logger", f"line {first}")],
            artifacts=[
                ArtifactRow(0, run.pk, f"k{first % 2}", first, "table", "", b"{}", 2.0, 2.0)
            ],
            fences={run.pk: run.epoch},
        )
        for kind, rows in more.items():
            setattr(writes, kind, rows)
        assert store.write(writes)

    return write


def _end(store: SqliteStore) -> None:
    run = _run(store, "one")
    ended = run._replace(state="COMPLETED", state_name="Completed", ended_at=3.0)
    ended = ended._replace(result_kind=ResultKind.JSON, result=LARGE[1])
    key = CacheRow(b"key", "task", run.pk, 1, 1.0, None, ResultKind.JSON, LARGE[1])
    limit = LimitRow("limit", 3.0, None, None)
    writes = Writes(runs=[ended], cache=[key], limits=[limit], fences={run.pk: run.epoch})
    assert store.write(writes)


def _delete(store: SqliteStore) -> None:
    assert store.delete_run(_run(store, "one").pk) == 1


def _checkpoint(store: SqliteStore) -> None:
    with mock.patch.object(module, "WAL_PAGES", 0):
        store.checkpoint()


#: What is done with a store, one transaction after another.
STEPS: tuple[Callable[[SqliteStore], None], ...] = (
    _register,
    _create("one"),
    _claim,
    _write("one", 1, b"1", b"2"),
    _write("one", 3, LARGE[0], b"4"),
    _checkpoint,
    _write("one", 5, *[b"%d" % n * 200 for n in range(20)]),
    _end,
    _create("two"),
    _write("two", 1, LARGE[0]),
    _checkpoint,
    _delete,
    _write("two", 2, b"2", LARGE[0]),
)


def contents(store: SqliteStore) -> Contents:
    """Everything that is in a store."""
    db = store._connection
    tables = [
        name
        for (name,) in db.execute(
            "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
        ).fetchall()
    ]
    return {
        name: [tuple(row) for row in db.execute(f"SELECT * FROM {name} ORDER BY 1, 2").fetchall()]
        for name in tables
    }


def files(store: SqliteStore) -> list[str]:
    """The files that rows name."""
    db = store._connection
    return [
        name.decode()
        for table in ("task_runs", "flow_runs", "cache")
        for kind, name in db.execute(f"SELECT result_kind, result FROM {table}").fetchall()
        if kind in FILES
    ]


def opened(folder: Path) -> SqliteStore:
    """The store in a folder that is only looked at: nothing waits for the real disk."""
    store = SqliteStore(folder / "new" / "state.db", inline_limit=INLINE_LIMIT)
    store.open("relaxed")
    store._connection.execute("PRAGMA synchronous = OFF")
    return store


def is_sound(store: SqliteStore) -> bool:
    found: Any = store._connection.execute("PRAGMA integrity_check").fetchall()
    return [tuple(row) for row in found] == [("ok",)]


def history(folder: Path) -> list[Contents]:
    """What is in the store at the start and after each step, where nothing goes wrong."""
    store = opened(folder)
    found = [contents(store)]
    for step in STEPS:
        step(store)
        found.append(contents(store))
    store.close()
    return found


# --- cutting the power ----------------------------------------------------------------------------


@dataclass
class Report:
    """What came of some cuts.

    Attributes:
        problems: what must not be, with how to see it again.
        lost: cuts after which something acknowledged was gone (`strict` only).
        most: how many transactions were gone at once, at most.
        unreadable: cuts after which a row named a file that was gone or torn (`strict` only).
    """

    cuts: int = 0
    lost: int = 0
    most: int = 0
    unreadable: int = 0
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.cuts:,} cuts, {len(self.problems)} problems; acknowledged transactions gone"
            f" after {self.lost:,} (at most {self.most}), a large result unreadable after"
            f" {self.unreadable:,}"
        )


class Cuts:
    """One recorded history of one durability, and the power cuts in it.

    Args:
        folder: an empty one to work in.
        durability: "full" or "strict".
        new: the database is not there yet, and only opened; else there is one, which is used.
    """

    def __init__(self, folder: Path, durability: str, *, new: bool = False) -> None:
        self.durability = durability
        self._folder = folder
        (folder / "expected").mkdir()
        self._expected = history(folder / "expected")
        if new:
            del self._expected[1:]
        else:
            opened(folder / "disk").close()
        with Disk(folder / "disk") as self.disk:
            store = SqliteStore(self.disk.folder / "new" / "state.db", inline_limit=INLINE_LIMIT)
            store.open(durability)
            for n, step in enumerate(STEPS[: len(self._expected) - 1], 1):
                step(store)
                self.disk.note(n)
            store.close()
        self._made = 0

    def cut(self, operations: int, seed: int | None, report: Report) -> None:
        """Cut the power after so many operations; seed None: what was not synced is gone."""
        report.cuts += 1
        dice = None if seed is None else Random(json.dumps([self.durability, operations, seed]))
        found = self.disk.found(operations, dice=dice)
        acknowledged = max([0, *self.disk.noted(operations)])
        self._made += 1
        folder = lay_out(found, self._folder / f"cut-{self._made}")
        try:
            problem = self._look(folder, acknowledged, report)
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
        if problem:
            report.problems.append(f"{self.durability}, cut({operations}, {seed}): {problem}")

    def _look(self, folder: Path, acknowledged: int, report: Report) -> str:
        store = opened(folder)
        try:
            if not is_sound(store):
                return "the database is damaged"
            there = contents(store)
            possible = range(min(acknowledged + 1, len(self._expected) - 1), -1, -1)
            state = next((n for n in possible if self._expected[n] == there), None)
            if state is None:
                return f"after {acknowledged} steps, a mixture is there: {there}"
            gone = sum(self._expected[n] != there for n in range(state, acknowledged + 1))
            if gone and self.durability == "full":
                return f"{gone} of {acknowledged} acknowledged steps are gone"
            report.lost += bool(gone)
            report.most = max(report.most, gone)
            unreadable = 0
            for name in files(store):
                try:
                    assert store.load_file(name) in LARGE
                except ResultUnreadable as error:
                    if self.durability == "full":
                        return str(error)
                    unreadable += 1
            report.unreadable += bool(unreadable)
            return self._go_on(store)
        finally:
            store.close()

    def _go_on(self, store: SqliteStore) -> str:
        """What can be done with a new database can be done with this one."""
        _create("after")(store)
        _write("after", 1, b"1", *LARGE)(store)
        run = _run(store, "after")
        rows = [row for row in store.calls(run.pk) if row.result_kind in FILES]
        for row, data in zip(rows, LARGE, strict=True):
            assert row.result is not None
            if store.load_file(row.result.decode()) != data:
                return "a large result was not stored"
        return "" if is_sound(store) else "the database was damaged afterwards"

    def each(self, report: Report) -> None:
        """One cut after each operation; what was not synced is gone."""
        for operations in range(self.disk.operations + 1):
            self.cut(operations, None, report)

    def some(self, seeds: range, report: Report) -> None:
        """One cut for each seed, somewhere; what was not synced is kept, dropped or torn."""
        for seed in seeds:
            self.cut(Random(seed).randint(0, self.disk.operations), seed, report)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.power")
    parser.add_argument("--cuts", type=int, default=2000, help="of each durability")
    parser.add_argument("--seed", type=int, default=0, help="the first one")
    options = parser.parse_args()
    fine = True
    for durability, new in itertools.product(("full", "strict"), (True, False)):
        with tempfile.TemporaryDirectory() as folder:
            began, report = time.monotonic(), Report()
            cuts = Cuts(Path(folder), durability, new=new)
            cuts.each(report)
            # A new one is only opened: there is less of it to cut.
            most = options.cuts // 10 if new else options.cuts
            cuts.some(range(options.seed, options.seed + most - report.cuts), report)
        what = f"{durability}, {'a new database' if new else 'a history'}"
        took = time.monotonic() - began
        print(f"{what} of {cuts.disk.operations} operations: {report}; {took:.0f} s", flush=True)
        for problem in report.problems[:5]:
            print(f"  {problem[:500]}")
        fine = fine and not report.problems
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
