"""What type checkers make of the API: checked by mypy and pyright, never run."""

from __future__ import annotations

import sqlite3
from datetime import datetime, timedelta
from typing import Any, assert_type

from asyncflow import (
    INPUTS,
    TASK_SOURCE,
    CacheKeyFn,
    CachePolicy,
    Cron,
    Engine,
    Interval,
    RRule,
    State,
    TaskFuture,
    TaskFutureList,
    Transaction,
    flow,
    task,
    transaction,
)
from asyncflow.caching import CacheContext


@task
async def fetch(url: str, *, timeout: float = 1.0) -> bytes:
    return b""


@task(retries=3)
async def fetch_again(url: str) -> bytes:
    return b""


@task
def parse(page: bytes) -> list[str]:
    return []


def key(context: CacheContext, parameters: dict[str, object]) -> str | None:
    assert_type(context.task_run.flow_run_id, str)
    return None


@task(cache_policy=INPUTS - "verbose" + TASK_SOURCE + CacheKeyFn(key), cache_expiration=60)
async def cached(url: str, verbose: bool = False) -> bytes:
    assert_type(INPUTS + TASK_SOURCE - "x", CachePolicy)
    return b""


@task(transactional=True, retries=2)
def insert(db: sqlite3.Connection, x: int, *, twice: bool = False) -> str:
    return ""


@fetch_again.on_rollback
async def unfetch(txn: Transaction) -> None:
    assert_type(txn.parameters, dict[str, Any] | None)


@fetch_again.on_commit
def fetched(txn: Transaction) -> None: ...


class Client:
    @task
    async def get(self, url: str) -> int:
        return 1


@flow
async def crawl(urls: list[str]) -> int:
    assert_type(await fetch("u", timeout=2.0), bytes)
    assert_type(await fetch_again("u"), bytes)
    assert_type(await cached("u"), bytes)
    async with transaction(key="k") as txn:
        assert_type(txn, Transaction)
    assert_type(await fetch("u", return_state=True), State[bytes])
    assert_type(fetch.submit("u"), TaskFuture[bytes])
    assert_type(await fetch.submit("u"), bytes)
    assert_type(parse.submit(b""), TaskFuture[list[str]])
    assert_type(fetch.map(urls), TaskFutureList[bytes])
    assert_type(await parse.map(fetch.map(urls)), list[list[str]])
    assert_type(await Client().get("u"), int)
    async for page in fetch.stream(urls):
        assert_type(page, bytes)
    return 1


@flow(max_concurrency=3)
def in_sync_code(n: int) -> str:
    assert_type(parse(b""), list[str])
    assert_type(insert(1, twice=True), str)
    assert_type(insert.map([1]), TaskFutureList[str])
    return "done"


async def main() -> None:
    assert_type(await crawl(["u"]), int)
    assert_type(await crawl(["u"], return_state=True), State[int])
    assert_type(in_sync_code(3), str)
    async with Engine("state.db") as engine:
        run = await engine.submit(crawl, ["u"])
        assert_type(run.id, str)


def when(after: datetime) -> None:
    assert_type(Cron("0 9 * * 1-5", timezone="Europe/Berlin").upcoming(after, 3), list[datetime])
    assert_type(next(Interval(timedelta(hours=1)).ticks(after)), datetime)
    assert_type(RRule("FREQ=DAILY", start=after).description, str)


async def wrong() -> None:
    await fetch(1)  # type: ignore[call-overload] # pyright: ignore[reportArgumentType, reportCallIssue] # wrong
    parse("text")  # type: ignore[call-overload] # pyright: ignore[reportArgumentType, reportCallIssue] # wrong
