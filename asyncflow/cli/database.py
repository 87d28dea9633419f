"""``asyncflow db ...``: upkeep of a database."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from asyncflow.cli.output import answered, duration, local, print_json, say, table
from asyncflow.cli.source import check_exists, path_of
from asyncflow.errors import InvalidOption
from asyncflow.retention import prune_run
from asyncflow.store.sqlite import SCHEMA_VERSION, SqliteStore
from asyncflow.views import moment

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def _with_store(db: str | None, work: Callable[[SqliteStore], int]) -> int:
    def opened() -> int:
        path = path_of(db)
        check_exists(path)
        store = SqliteStore(path)
        try:
            store.open("strict")
            return work(store)
        finally:
            store.close()

    return answered(opened)


def migrate(*, db: str | None, as_json: bool) -> int:
    """Bring a database to today's schema."""

    def work(store: SqliteStore) -> int:
        # Opening it has done so.
        if as_json:
            print_json({"path": str(store.path), "schema": SCHEMA_VERSION})
        else:
            say(f"{store.path} has schema {SCHEMA_VERSION}")
        return 0

    return _with_store(db, work)


def check(*, db: str | None, as_json: bool) -> int:
    """Look for damage; 0 where there is none, else 1."""

    def work(store: SqliteStore) -> int:
        problems = store.check()
        if as_json:
            print_json({"path": str(store.path), "problems": problems})
        elif problems:
            for problem in problems:
                say(problem)
        else:
            say(f"{store.path} is sound")
        return 1 if problems else 0

    return _with_store(db, work)


def backup(*, target: str, db: str | None, as_json: bool) -> int:
    """Copy a database while it is in use."""

    def work(store: SqliteStore) -> int:
        size = store.backup(Path(target))
        if as_json:
            print_json({"path": str(store.path), "backup": target, "bytes": size})
        else:
            say(f"copied {store.path} to {target} ({size:,} bytes); large results are in files")
            say(f"beside it: keep {store.path}.results, too")
        return 0

    return _with_store(db, work)


def prune(
    *,
    older_than: str,
    flow: str | None,
    keep_last: int,
    dry_run: bool,
    db: str | None,
    as_json: bool,
) -> int:
    """Remove old runs that have ended."""

    def work(store: SqliteStore) -> int:
        age = seconds_of(older_than)
        before, gone = time.time() - age, []
        while found := store.expired(before, flow, keep_last, 10_000 if dry_run else 100):
            for pk, run_id in found:
                gone.append(run_id)
                if not dry_run:
                    prune_run(store, pk)
            if dry_run:
                break
        if as_json:
            print_json({"runs": gone, "dry_run": dry_run})
        else:
            verb = "would remove" if dry_run else "removed"
            say(f"{verb} {len(gone):,} runs that ended more than {duration(age)} ago")
        return 0

    return _with_store(db, work)


def vacuum(*, db: str | None, as_json: bool) -> int:
    """Give freed space back to the disk."""

    def work(store: SqliteStore) -> int:
        before, after = store.vacuum()
        if as_json:
            print_json({"path": str(store.path), "before": before, "after": after})
        else:
            say(f"{store.path}: {before:,} bytes before, {after:,} now")
        return 0

    return _with_store(db, work)


def stats(*, db: str | None, as_json: bool) -> int:
    """Sizes and counts."""

    def work(store: SqliteStore) -> int:
        found: dict[str, Any] = store.stats()
        if as_json:
            print_json(found)
            return 0
        say(f"{found['path']}: schema {found['schema']}, SQLite {found['sqlite']}")
        say(f"{found['bytes']:,} bytes, {found['free_bytes']:,} of them free,")
        say(f"{found['wal_bytes']:,} in the write-ahead log ({found['journal_mode']})")
        say(f"{found['result_files']:,} result files, {found['result_bytes']:,} bytes")
        if found["oldest_run"] is not None:
            span = [local(moment(found[name])) for name in ("oldest_run", "newest_run")]
            say(f"runs from {span[0]} to {span[1]}")
            say(", ".join(f"{n:,} {state.lower()}" for state, n in found["runs"].items()))
        say("")
        say(table(("TABLE", "ROWS"), [(n, f"{c:,}") for n, c in found["rows"].items()]))
        return 0

    return _with_store(db, work)


def seconds_of(text: str) -> float:
    """Seconds of a duration such as ``30d``, ``12h`` or ``90``.

    Raises:
        InvalidOption: it is none.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw]?)", text.strip())
    if match is None:
        raise InvalidOption(f"{text!r} is no duration: give a number with s, m, h, d or w, as 30d")
    return float(match[1]) * _UNITS[match[2] or "s"]
