"""``asyncflow runs export`` and ``runs import``: from one database to another."""

from __future__ import annotations

import time
from pathlib import Path

from asyncflow.capsule import SUFFIX
from asyncflow.cli.looking import run_json
from asyncflow.cli.output import answered_async, label, one_line, print_json, say
from asyncflow.cli.source import check_exists, find_run, path_of
from asyncflow.errors import RunNotResumable
from asyncflow.exporting import export
from asyncflow.importing import MOST_BYTES, load
from asyncflow.states import StateType
from asyncflow.store.sqlite import SqliteStore


def export_run(*, run_id: str, out: str | None, db: str | None, as_json: bool) -> int:
    """Write a run to a file."""

    async def work() -> int:
        path = path_of(db)
        check_exists(path)
        store = SqliteStore(path)
        store.open("strict")
        reader = store.reader()
        try:
            row = await find_run(reader, run_id)
            if row.parent is not None:
                raise RunNotResumable(f"the run {row.id} is a child run: export the run above it")
            done = export(store, row, Path(out) if out else Path(f"{row.id}{SUFFIX}"))
        finally:
            await reader.aclose()
            store.close()
        assert done is not None
        if as_json:
            print_json(
                {
                    "id": done.run_id,
                    "file": str(done.path),
                    "bytes": done.bytes,
                    "runs": done.runs,
                    "task_runs": done.tasks,
                }
            )
        else:
            path_text = one_line(str(done.path), 300)
            say(f"wrote {path_text} ({done.bytes:,} bytes): {_counted(done.runs, done.tasks)}")
        return 0

    return answered_async(work)


def import_run(
    *,
    file: str,
    new_id: bool,
    allow_pickle: bool,
    max_bytes: int | None,
    db: str | None,
    as_json: bool,
) -> int:
    """Read a run from a file."""

    async def work() -> int:
        store = SqliteStore(path_of(db))
        store.open("strict")
        try:
            done = load(
                store,
                Path(file),
                now=time.time(),
                new_id=new_id,
                allow_pickle=allow_pickle,
                max_bytes=max_bytes or MOST_BYTES,
            )
        finally:
            store.close()
        assert done is not None
        row = done.row
        for note in done.notes:
            say(f"asyncflow: {one_line(note, 500)}", error=True)
        if as_json:
            counts = {"runs": done.runs, "task_runs": done.tasks, "notes": done.notes}
            print_json({**run_json(row), "origin": row.origin, "imported": counts})
            return 0
        say(
            f"imported run {row.id} of flow {label(row.flow_name)} ({label(row.state_name)}):"
            f" {_counted(done.runs, done.tasks)}"
        )
        if row.state == StateType.PAUSED:
            say(f"go on with it: asyncflow resume {row.id}")
        return 0

    return answered_async(work)


def _counted(runs: int, tasks: int) -> str:
    more = f" with {runs - 1:,} child run{'s' * (runs > 2)}" if runs > 1 else ""
    return f"{tasks:,} task run{'s' * (tasks != 1)}{more}"


__all__ = ["export_run", "import_run"]
