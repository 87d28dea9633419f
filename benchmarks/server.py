"""``python -m benchmarks.server``: how long the API takes over a large database.

It fills a database with 100,000 runs and 1,000,000 task runs, one of the runs with 10,000 of them,
serves it, and asks each list and summary many times: the median, and what 95 of 100 answers take
at most. Then all runs are paused, and those that list runs are asked once more.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sqlite3
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp

from asyncflow import Engine
from asyncflow.server.app import serve_app

#: Milliseconds that 95 of 100 answers may take at most.
MUST = 200.0
BIG = "00000000-0000-7000-8000-0000000186a0"
#: A deployment and its schedule, as they are stored.
SPEC = json.dumps(
    {
        "parameters": {}, "tags": [], "description": "", "version": None, "overlap": "skip",
        "concurrency_limit": 1, "catchup": "latest", "catchup_limit": 100, "late_seconds": 15.0,
        "parameter_schema": {"type": "object", "properties": {}, "required": []},
    }
)  # fmt: skip
SCHEDULE = json.dumps(
    {
        "schedule": {"kind": "cron", "cron": "0 * * * *", "timezone": "UTC", "day_or": True},
        "parameters": {}, "jitter_seconds": 0.0, "start": None, "end": None,
    }
)  # fmt: skip


def fill(path: Path, runs: int, tasks: int, big: int) -> None:
    """Rows as an engine writes them, without running anything."""
    now = time.time()
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA synchronous = OFF")
    db.execute("BEGIN")
    states = ("COMPLETED",) * 17 + ("FAILED", "CANCELLED", "CRASHED")

    def run(pk: int) -> tuple[Any, ...]:
        state = states[pk % len(states)]
        at = now - (runs - pk) * 600.0 / 100
        return (
            pk, f"00000000-0000-7000-8000-{pk:012x}", f"flow {pk % 40}", "{}", f"run {pk}", pk,
            state, state.title(), "", at, b'{"n": 1}', json.dumps([f"tag {pk % 7}"]), at, at,
            at + 5, pk % 50, json.dumps([]), f"deployment {pk % 20}" if pk % 3 == 0 else None,
        )  # fmt: skip

    db.executemany(
        "INSERT INTO flow_runs (pk, id, flow_name, flow_ref, name, root, state, state_name,"
        " message, state_at, parameters, tags, created_at, started_at, ended_at, epoch, ended_by,"
        " deployment, attempt, recoveries, result_kind)"
        " VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,1,0,0)",
        (run(pk) for pk in range(1, runs + 1)),
    )
    each = (tasks - big) // runs

    def rows() -> Any:
        for pk in range(1, runs + 1):
            count = each if pk < runs else big
            for seq in range(1, count + 1):
                state = "FAILED" if seq % 97 == 0 else "COMPLETED"
                at = now - (runs - pk) * 6.0 + seq * 0.001
                yield (
                    pk << 32 | seq, seq.to_bytes(8, "big"), f"task {seq % 9}", state, at, at,
                    at + 0.05,
                )  # fmt: skip

    db.executemany(
        "INSERT INTO task_runs (id, identity, task, state, created_at, started_at, ended_at,"
        " attempt, result_kind) VALUES (?,?,?,?,?,?,?,1,0)",
        rows(),
    )
    db.executemany(
        "INSERT INTO events (run, time, state, state_name, message, epoch) VALUES (?,?,?,?,'',1)",
        (
            (pk, now - (runs - pk) * 6.0, state, state.title())
            for pk in range(1, runs + 1)
            for state in ("RUNNING", states[pk % len(states)])
        ),
    )
    fill_beside(db, runs, now)
    db.execute("COMMIT")
    db.close()


def fill_beside(db: sqlite3.Connection, runs: int, now: float) -> None:
    """What is there beside runs: a tick and a delivery for each run, and logs of the largest."""
    names = range(100)
    db.executemany(
        "INSERT INTO deployments (id, name, flow_name, flow_ref, spec, source, paused, created_at,"
        " updated_at) VALUES (?,?,?,'{}',?,'',0,?,?)",
        ((n, f"deployment {n}", f"flow {n % 40}", SPEC, now, now) for n in names),
    )
    db.executemany(
        "INSERT INTO schedules (id, deployment, name, spec, paused, reason, position, created_at,"
        " updated_at) VALUES (?,?,'hourly',?,0,'',?,?,?)",
        ((n, n, SCHEDULE, now, now, now) for n in names),
    )
    db.executemany(
        "INSERT INTO ticks (schedule, tick, deployment, state, reason, run, at, count, until)"
        " VALUES (?,?,?,'RUN','',?,?,1,?)",
        (
            (n % 100, now - (runs - n) * 6.0, n % 100, f"run {n}", now, now)
            for n in range(1, runs + 1)
        ),
    )
    db.executemany(
        "INSERT INTO deliveries (automation, action, key, kind, channel, event, payload, state,"
        " attempts, next_at, created_at, ended_at, error, reply)"
        " VALUES (?,0,?,'notify','mail',?,'{}','delivered',1,?,?,?,'','')",
        ((f"automation {n % 20}", str(n), n, now, now, now) for n in range(1, runs + 1)),
    )
    db.executemany(
        "INSERT INTO commands (id, kind, run, arguments, asked_by, asked_at, expires_at, state,"
        " taken, declined, ended_at, detail) VALUES (?,'resume',?,'{}','',?,?,'DONE',1,'[]',?,'')",
        (
            (f"00000000-0000-7000-8000-{n:012x}", f"run {n}", now, now, now)
            for n in range(1, runs // 10 + 1)
        ),
    )
    db.executemany(
        "INSERT INTO logs (run, seq, time, level, logger, message) VALUES (?,?,?,20,'a',?)",
        ((runs, n % 1000, now, f"line {n}") for n in range(1, runs + 1)),
    )
    db.executemany(
        "INSERT INTO artifacts (run, key, kind, description, data, created_at, updated_at)"
        " VALUES (?,?,'markdown','',?,?,?)",
        ((runs, f"key {n}", json.dumps({"markdown": "# One"}), now, now) for n in range(1000)),
    )
    db.executemany(
        "INSERT INTO variables (name, value, updated_at) VALUES (?,'1',?)",
        ((f"variable {n}", now) for n in range(1000)),
    )
    db.executemany(
        "INSERT INTO notices (kind, name, engine, time, data) VALUES (?,?,1,?,'{}')",
        ((kind, str(n), now) for kind in ("run", "limit") for n in range(1000)),
    )


def pause(path: Path) -> None:
    """All runs are asleep, but for the oldest ones, which wait for a person."""
    db = sqlite3.connect(path, isolation_level=None)
    db.execute(
        "UPDATE flow_runs SET ended_at = NULL, state = 'PAUSED',"
        " state_name = CASE WHEN pk <= 20 THEN 'NeedsAttention' ELSE 'Suspended' END"
    )
    db.close()


#: What finds nothing has to look for it everywhere.
QUESTIONS = (
    "/api/summary",
    "/api/summary?hours=720",
    "/api/runs",
    "/api/runs?cursor=50000",
    "/api/runs?state=FAILED",
    "/api/runs?state=not_completed",
    "/api/runs?flow=flow%207",
    "/api/runs?tag=tag%203",
    "/api/runs?deployment=deployment%203",
    "/api/runs?text=run%2099",
    "/api/runs?state=RUNNING",
    "/api/runs?state=PAUSED",
    "/api/runs?state=PAUSED&limit=200",
    "/api/runs?state=attention&limit=200",
    "/api/runs?state=TimedOut",
    "/api/runs?text=nothing",
    "/api/runs?tag=nothing",
    "/api/runs?parent=any&tag=nothing",
    "/api/runs?since=2100-01-01T00:00:00Z",
    "/api/runs?state=COMPLETED&text=nothing&tag=tag%203",
    "/api/runs?limit=500&full=true",
    f"/api/runs?id={BIG[:-2]}&parent=any&full=true&limit=2",
    f"/api/runs/{BIG}",
    f"/api/runs/{BIG}/task-runs",
    f"/api/runs/{BIG}/task-runs?task=task%203&cursor=5000",
    f"/api/runs/{BIG}/task-runs?state=FAILED",
    f"/api/runs/{BIG}/task-counts",
    f"/api/runs/{BIG}/attempts",
    f"/api/runs/{BIG}/timeline?limit=10000",
    f"/api/runs/{BIG}/logs",
    f"/api/runs/{BIG}/logs?text=nothing",
    f"/api/runs/{BIG}/artifacts?data=false",
    f"/api/runs/{BIG}/artifacts?limit=100",
    f"/api/runs/{BIG}/forms",
    "/api/events",
    "/api/events?kind=nothing.*",
    "/api/events?since=2100-01-01T00:00:00Z",
    f"/api/events?run={BIG}",
    "/api/events?kind=flow-run.Failed",
    "/api/events?order=oldest&cursor=1000&limit=500",
    "/api/deployments",
    "/api/deployments/deployment%203",
    "/api/deployments/deployment%203/ticks",
    "/api/deployments/deployment%203/ticks?state=missed",
    "/api/automations",
    "/api/deliveries",
    "/api/deliveries?state=failed",
    f"/api/deliveries?run={BIG}",
    "/api/deliveries?automation=automation%203",
    "/api/commands",
    "/api/commands?state=FAILED",
    "/api/limits",
    "/api/variables",
    "/metrics",
)


#: Asked once more when no run has ended.
OF_PAUSED = tuple(
    one for one in QUESTIONS if one.startswith(("/api/summary", "/api/runs?")) or one == "/api/runs"
)


async def measure(
    path: Path, rounds: int, questions: tuple[str, ...] = QUESTIONS, what: str = ""
) -> list[dict[str, Any]]:
    """Ask everything so many times, one after the other."""
    found = []
    async with Engine(path, retention_days=None) as engine:
        runner, url = await serve_app(engine, "127.0.0.1", 0, None, embedded=False)
        base, _, token = url.partition("/#token=")
        headers = {"Authorization": f"Bearer {token}"}
        async with aiohttp.ClientSession(headers=headers) as client:
            for question in questions:
                times, size = [], 0
                for _ in range(rounds):
                    began = time.perf_counter()
                    async with client.get(base + question) as answer:
                        size = len(await answer.read())
                        assert answer.status == 200, question
                    times.append((time.perf_counter() - began) * 1e3)
                times.sort()
                found.append(
                    {
                        "question": what + question.replace(BIG, "BIG"),
                        "median": statistics.median(times),
                        "p95": times[int(len(times) * 0.95)],
                        "bytes": size,
                    }
                )
        await runner.cleanup()
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.server", description=__doc__)
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--tasks", type=int, default=1_000_000)
    parser.add_argument("--big", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state.db"

        async def make() -> None:
            async with Engine(path, retention_days=None):
                pass

        asyncio.run(make())
        fill(path, options.runs, options.tasks, options.big)
        found = asyncio.run(measure(path, options.rounds))
        pause(path)
        found += asyncio.run(measure(path, options.rounds, OF_PAUSED, "all paused: "))
    print(f"{'':72} {'median ms':>10} {'p95 ms':>8} {'KiB':>8}")
    for one in found:
        missed = "  MISSED" if one["p95"] > MUST else ""
        print(
            f"{one['question']:72} {one['median']:>10.1f} {one['p95']:>8.1f}"
            f" {one['bytes'] / 1024:>8.1f}{missed}"
        )
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    return 1 if any(one["p95"] > MUST for one in found) else 0


if __name__ == "__main__":
    sys.exit(main())
