"""A server with the API of the dashboard and made-up data, among it texts that mean harm.

It refuses what the real one refuses: parameters that it does not know, changes without the header,
requests without a token. Everything is the same each time.

    python tests/server_mock.py [PORT]
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from aiohttp import web

from asyncflow.server.files import read_files

TOKEN = "the-token"
READ_TOKEN = "the-read-token"
HOSTILE = [
    "<img src=x onerror=alert(1)>",
    "</script><script>alert(1)</script>",
    "<svg onload=alert(1)>",
    "javascript:alert(1)",
    "'\"><b onmouseover=alert(1)>x",
    "\x1b[31mred\x1b[0m \x07bell",
    "\u202egnp.exe\u202c",
    "{{constructor.constructor('alert(1)')()}}",
    "<iframe srcdoc='<script>alert(1)</script>'>",
    "a" * 300,
]
#: The strictest policy that the pages must live with.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';"
    " img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none';"
    " require-trusted-types-for 'script'"
)
#: What a markdown artifact became, by a server that does not sanitise.
MARKDOWN = (
    "<h2>Summary</h2><p>All <strong>1,204</strong> orders, see"
    " <a href='https://example.org'>here</a>.</p><ul><li>one</li><li>two</li></ul>"
    "<img src=x onerror=alert(1)><a href='javascript:alert(1)'>no</a><script>alert(1)</script>"
    "<table><tr><th>a</th></tr><tr><td style='color:red' onclick='alert(1)'>1</td></tr></table>"
)
STATES = ["COMPLETED"] * 12 + ["FAILED"] * 3 + ["RUNNING", "CANCELLED", "CRASHED", "PAUSED"]
NAMES = {"FAILED": "Failed", "PAUSED": "Paused"}
NOT_COMPLETED = "not_completed"
PAUSED = {"attention": "PAUSED"}
BIG = 10_000


def run_id(n: int) -> str:
    return f"0198f000-0000-7000-8000-{n:012x}"


BIG_RUN = run_id(1)
FAILED_RUN = run_id(2)
WAITING_RUN = run_id(3)

SCHEMA = {
    "type": "object",
    "required": ["day", "pages"],
    "$defs": {"Mode": {"enum": ["fast", "careful", HOSTILE[0]], "type": "string"}},
    "properties": {
        "day": {"type": "string", "format": "date", "description": "The day that is loaded."},
        "pages": {"type": "integer", "minimum": 1, "maximum": 500},
        "ratio": {"type": "number", "default": 0.5, "exclusiveMaximum": 1},
        "dry": {"type": "boolean", "default": False, "title": "Dry run"},
        "mode": {"$ref": "#/$defs/Mode", "default": "fast"},
        "note": {"anyOf": [{"type": "string", "maxLength": 10}, {"type": "null"}], "default": None},
        "columns": {"type": "array", "items": {"type": "string"}, "default": ["a", "b"]},
        "options": {"type": "object", "default": {"depth": 2}, "description": HOSTILE[0]},
    },
}


class Data:
    """What there is; changes are made to it and are noted in `done`."""

    def __init__(self) -> None:
        self.chance = random.Random(7)
        self.now = datetime.now(UTC).replace(microsecond=0)
        self.done: list[tuple[str, str, Any]] = []
        self.asked: list[str] = []
        self.runs = [self.a_run(n) for n in range(1, 201)]
        self.limits = {
            "database": {"limit": 5, "period": None, "burst": None, "used": 4.0},
            "api": {"limit": 100, "period": 60.0, "burst": 10, "used": 12.0},
            HOSTILE[0]: {"limit": 3, "period": None, "burst": None, "used": 3.0},
            "declared in code": {"limit": None, "period": None, "burst": None, "used": 0.0},
        }
        self.variables: dict[str, Any] = {
            "region": "eu-west",
            "thresholds": {"low": 1, "high": [2, 3]},
            HOSTILE[0]: HOSTILE[1],
        }
        self.paused: set[str] = set()
        self.off: set[str] = set()

    def at(self, seconds_ago: float) -> str:
        return (self.now - timedelta(seconds=seconds_ago)).isoformat().replace("+00:00", "Z")

    def a_run(self, n: int) -> dict[str, Any]:
        state = self.chance.choice(STATES)
        if n <= 3:
            state = ("COMPLETED", "FAILED", "RUNNING")[n - 1]
        bad = HOSTILE[n % len(HOSTILE)] if n % 5 == 0 else None
        began = 40 + (n - 1) * 430 + self.chance.random() * 300
        took = 183.4 if n == 1 else self.chance.expovariate(1 / 40) + 0.05
        live = state in ("RUNNING", "PAUSED")
        flow = ("load_orders", "nightly_report", "sync_customers", "train")[n % 4]
        return {
            "id": run_id(n),
            "flow": bad or flow,
            "name": bad or f"{flow}-{('amber', 'quiet', 'brisk', 'lunar')[n % 4]}-{n}",
            "state": state,
            "state_name": "TimedOut"
            if state == "FAILED" and n % 7 == 0
            else NAMES.get(state, state.title()),
            "message": bad or ("ValueError: the bucket is gone" if state == "FAILED" else ""),
            "created_at": self.at(began + 1),
            "started_at": self.at(began),
            "ended_at": None if live else self.at(began - took),
            "duration": began if live else took,
            "tags": [bad] if bad else ["orders", "eu"][: n % 3],
            "parent_id": run_id(1) if n in (5, 6) else None,
            "attempt": 1 + (n % 9 == 0),
            "recoveries": int(n % 11 == 0),
            "deployment": bad or (f"{flow}-hourly" if n % 2 else None),
            "scheduled_at": self.at(began + 2) if n % 2 else None,
            "cause": "schedule" if n % 2 else None,
            "origin": None,
            "version": bad or "3",
        }

    # --- what a run consists of --------------------------------------------------------------

    def tasks(self, n: int) -> list[tuple[str, dict[str, int]]]:
        if n == 1:
            return [
                ("list_pages", {"COMPLETED": 1}),
                ("fetch", {"COMPLETED": BIG - 60}),
                ("parse", {"COMPLETED": 40}),
                ("validate", {"COMPLETED": 9}),
                ("enrich", {"COMPLETED": 8}),
                ("store", {"COMPLETED": 1}),
                ("report", {"COMPLETED": 1}),
            ]
        if n == 3:
            return [
                ("list_pages", {"COMPLETED": 1}),
                ("fetch", {"COMPLETED": 420, "RUNNING": 8, "SCHEDULED": 3, "PENDING": 569}),
                ("store", {"PENDING": 1}),
            ]
        return [
            ("extract", {"COMPLETED": 1}),
            (HOSTILE[0], {"COMPLETED": 3, "FAILED": 1}),
            ("load", {"CANCELLED": 1}),
        ]

    def task_runs(self, n: int) -> list[tuple[int, str, str]]:
        found, seq = [], 0
        for task, counts in self.tasks(n):
            for state, count in counts.items():
                for _ in range(count):
                    seq += 1
                    found.append((seq, task, state))
        return found

    def task_run(self, run: dict[str, Any], seq: int, task: str, state: str) -> dict[str, Any]:
        failed = state == "FAILED"
        bad = HOSTILE[seq % len(HOSTILE)] if seq % 4 == 0 else f"{task}-{seq}"
        return {
            "id": f"{run['id']}-{seq}",
            "seq": seq,
            "task": task,
            "name": bad,
            "state": state,
            "state_name": {"SCHEDULED": "AwaitingRetry"}.get(state, state.title()),
            "message": bad if failed else "",
            "started_at": None if state == "PENDING" else run["started_at"],
            "ended_at": run["ended_at"],
            "duration": 0.02 + (seq % 90) / 10,
            "attempts": 1 + failed * 2 + (state == "SCHEDULED"),
            "failures": failed * 3,
            "interruptions": 0,
            "parent_id": None,
            "upstream": [f"{run['id']}-1"] if seq > 1 else [],
            "tags": [],
            "error": an_error(HOSTILE[0]) if failed else None,
        }

    def timeline(self, run: dict[str, Any], n: int, limit: int) -> dict[str, Any]:
        chance = random.Random(n)
        names = [task for task, _ in self.tasks(n)]
        rows = [row for row in self.task_runs(n) if row[2] != "PENDING"]
        free = [0.0] * (40 if n == 1 else 8)
        spans, before = [], 0.0
        task_before = ""
        for seq, task, state in rows:
            if task != task_before:
                before = max(free)
                free = [before] * len(free)
                task_before = task
            lane = free.index(min(free))
            start = free[lane]
            end = start + chance.expovariate(1 / 700) + 20
            free[lane] = end
            open_ = state == "RUNNING"
            attempts = 3 if state in ("FAILED", "SCHEDULED") else 1
            spans.append(
                [
                    seq,
                    names.index(task),
                    round(start, 1),
                    None if open_ else round(end, 1),
                    state,
                    attempts,
                ]
            )
        start_at = self.at(max(free) / 1000) if n == 3 else run["started_at"]
        return {
            "spans": spans[:limit],
            "tasks": names,
            "start": start_at,
            "total": len(self.task_runs(n)),
            "cut": len(spans) > limit,
        }

    def detail(self, run: dict[str, Any]) -> dict[str, Any]:
        n = int(run["id"][-12:], 16)
        edges = {
            1: [
                ("list_pages", "fetch"),
                ("fetch", "parse"),
                ("parse", "validate"),
                ("parse", "enrich"),
                ("validate", "store"),
                ("enrich", "store"),
                ("store", "report"),
            ],
            3: [("list_pages", "fetch"), ("fetch", "store")],
        }.get(n, [("extract", HOSTILE[0]), (HOSTILE[0], "load"), ("load", "extract")])
        failed = run["state"] in ("FAILED", "CRASHED")
        story = [("SCHEDULED", "Scheduled"), ("RUNNING", "Running")]
        if run["ended_at"]:
            story.append((run["state"], run["state_name"]))
        return {
            **run,
            "parameters": {
                "day": "2026-01-31",
                "pages": 40,
                "token": "**********",
                "note": HOSTILE[0],
                "options": {"depth": 2, "x": [1, 2, {"y": None}]},
            },
            "result": {"kind": "json", "value": {"rows": 1204, "note": HOSTILE[1]}, "bytes": 60}
            if run["state"] == "COMPLETED"
            else {"kind": "none", "value": None, "bytes": 0},
            "error": an_error(run["message"]) if failed else None,
            "story": [
                {
                    "time": run["created_at" if i == 0 else "started_at" if i == 1 else "ended_at"],
                    "state": s,
                    "state_name": name,
                    "message": run["message"] if s == run["state"] else "",
                }
                for i, (s, name) in enumerate(story)
            ],
            "waits": a_wait(self.at(300)) if run["state"] == "RUNNING" else [],
            "asks": run["state_name"] == "Paused",
            "progress": [
                {
                    "name": HOSTILE[0],
                    "seq": None,
                    "done": 3.0,
                    "total": 7.0 if n % 2 else None,
                    "message": HOSTILE[1],
                    "updated_at": self.at(300),
                }
            ],
            "children": [one for one in self.runs if one["parent_id"] == run["id"]],
            "tasks": [
                {
                    "task": task,
                    "counts": counts,
                    "total": sum(counts.values()),
                    "first_started": run["started_at"],
                    "last_ended": run["ended_at"],
                }
                for task, counts in self.tasks(n)
            ],
            "edges": edges,
        }

    def logs(self) -> list[dict[str, Any]]:
        levels = [20, 20, 10, 20, 30, 20, 40]
        texts = [
            "page 12 of 40 fetched in 0.31 s",
            "cache hit",
            "GET https://example.org/orders?page=7",
            *HOSTILE[:7],
            "retrying after\n  503 Service Unavailable\n  in 2 s",
            "x" * 40_000,
        ]
        return [
            {
                "id": i,
                "time": self.at(1200 - i),
                "level": levels[i % 7],
                "logger": "orders.fetch",
                "message": f"{i}: {texts[i % len(texts)]}",
                "task_run_id": f"{BIG_RUN}-{i % 9}" if i % 3 else None,
            }
            for i in range(1, 1201)
        ]

    def deployments(self) -> list[dict[str, Any]]:
        found = []
        for i, (name, flow) in enumerate(
            [
                ("nightly_report-hourly", "nightly_report"),
                ("train-hourly", "train"),
                (HOSTILE[0], HOSTILE[1]),
                ("by hand", "load_orders"),
            ]
        ):
            paused = name in self.paused
            schedules = (
                []
                if i == 3
                else [
                    {
                        "name": "hourly",
                        "schedule": "0 * * * * Europe/Berlin",
                        "parameters": {},
                        "paused": f"{name}/hourly" in self.paused,
                        "reason": "",
                        "next_at": [] if paused else [self.at(-600 - 3600 * k) for k in range(3)],
                        "late_since": self.at(4000) if i == 1 else None,
                        "start": None,
                        "end": None,
                        "jitter_seconds": 0,
                    },
                    {
                        "name": HOSTILE[4] if i == 2 else "weekends",
                        "schedule": "30 6 * * sat,sun Europe/Berlin",
                        "parameters": {"pages": 5, "note": HOSTILE[0]},
                        "paused": True,
                        "reason": "no longer declared",
                        "next_at": [],
                        "late_since": None,
                        "start": None,
                        "end": None,
                        "jitter_seconds": 5,
                    },
                ]
            )
            found.append(
                {
                    "name": name,
                    "flow_name": flow,
                    "description": "Fetches what was ordered, page by page."
                    if i == 0
                    else HOSTILE[0]
                    if i == 2
                    else "",
                    "version": "3",
                    "parameters": {"pages": 40, "token": "**********"} if i != 3 else {},
                    "parameter_schema": SCHEMA if i != 3 else {"type": "object", "properties": {}},
                    "tags": ["orders", HOSTILE[0] if i == 2 else "eu"],
                    "overlap": "skip",
                    "concurrency_limit": 1,
                    "catchup": "latest",
                    "catchup_limit": 10,
                    "paused": paused,
                    "source": "code",
                    "created_at": self.at(9e5),
                    "updated_at": self.at(9e4),
                    "schedules": schedules,
                    "ticks": {"RUN": 200, "SKIPPED": 4},
                }
            )
        return found

    def ticks(self) -> list[dict[str, Any]]:
        found = []
        for i in range(60):
            state = "SKIPPED" if i % 9 == 4 else "MISSED" if i % 13 == 7 else "RUN"
            reason = {
                "SKIPPED": "a run of it was still going on (overlap='skip')",
                "MISSED": HOSTILE[0],
            }.get(state, "")
            found.append(
                {
                    "schedule": "hourly",
                    "tick": self.at(600 + 3600 * i),
                    "until": self.at(600 + 3600 * i),
                    "count": 3 if state == "MISSED" else 1,
                    "state": state,
                    "reason": reason,
                    "run_id": run_id(i % 200 + 1) if state == "RUN" else None,
                    "backfill": None,
                    "decided_at": self.at(599 + 3600 * i),
                }
            )
        return found

    def automations(self) -> list[dict[str, Any]]:
        triggers = [
            {
                "type": "event",
                "expect": "flow-run.Failed",
                "match": {"flow": "load_*"},
                "threshold": 3,
                "within": 600.0,
                "for_each": [],
            },
            {
                "type": "sequence",
                "triggers": [
                    {"type": "event", "expect": "orders.loaded", "threshold": 1},
                    {"type": "absence", "expect": "flow-run.Completed", "within": 3600},
                ],
            },
            {"type": "event", "expect": HOSTILE[0], "threshold": 1},
        ]
        names = ["tell when loading fails", "nothing came in the morning", HOSTILE[0]]
        return [
            {
                "name": name,
                "description": HOSTILE[2] if i == 2 else "Three failures in ten minutes.",
                "enabled": name not in self.off,
                "tags": ["ops"],
                "trigger": triggers[i],
                "actions": [
                    {
                        "type": "notify",
                        "channel": HOSTILE[0] if i == 2 else "ops",
                        "title": HOSTILE[0],
                    },
                    {"type": "run-deployment", "deployment": "mend"},
                ],
                "source": "code",
                "fired": 12 * i + 4,
                "fired_at": self.at(4000),
                "created_at": self.at(9e5),
                "updated_at": self.at(9e5),
            }
            for i, name in enumerate(names)
        ]

    def deliveries(self) -> list[dict[str, Any]]:
        states = ["delivered", "delivered", "failed", "pending", "suppressed", "delivered"]
        autos = self.automations()
        return [
            {
                "id": i,
                "automation": autos[i % 3]["name"],
                "action": i % 2,
                "kind": "notify" if i % 2 else "run-deployment",
                "channel": "ops" if i % 2 else "",
                "key": str(i),
                "run_id": run_id(i % 200 + 1),
                "event_id": i,
                "state": states[i % 6],
                "attempts": 1 + i % 3,
                "error": HOSTILE[0] if states[i % 6] == "failed" else "",
                "reply": "200" if states[i % 6] == "delivered" else "",
                "created_at": self.at((81 - i) * 300),
                "next_at": None,
                "ended_at": self.at((81 - i) * 300 - 1),
            }
            for i in range(80, 0, -1)
        ]

    def events(self) -> list[dict[str, Any]]:
        found = []
        for i in range(300, 0, -1):
            run = self.runs[(300 - i) % 200]
            custom = i % 6 == 0
            found.append(
                {
                    "id": i,
                    "kind": "orders.loaded" if custom else f"flow-run.{run['state_name']}",
                    "time": self.at((300 - i) * 20),
                    "run_id": run["id"],
                    "task_run_id": None,
                    "state": None if custom else run["state"],
                    "name": "" if custom else run["state_name"],
                    "message": HOSTILE[i % 10] if i % 4 == 0 else run["message"],
                    "payload": {"rows": i, "note": HOSTILE[0]} if custom else None,
                }
            )
        return found

    def artifacts(self) -> list[dict[str, Any]]:
        html = MARKDOWN
        kinds: list[tuple[str, Any]] = [
            ("markdown", "## Summary"),
            ("table", [{"page": i, "rows": i * 7, "note": HOSTILE[i % 10]} for i in range(6)]),
            ("link", "https://example.org/report"),
            ("link", "javascript:alert(1)"),
            ("progress", {"done": 420, "total": 1000}),
            (
                "image",
                "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==",
            ),
            ("image", "https://example.org/x.png"),
        ]
        return [
            {
                "id": i,
                "key": HOSTILE[0] if i == 1 else f"{kind}-{i}",
                "kind": kind,
                "description": HOSTILE[2] if i == 1 else "",
                "data": data,
                **({"html": html} if kind == "markdown" else {}),
                "created_at": self.at(90),
                "updated_at": self.at(60),
                "task_run_id": None,
            }
            for i, (kind, data) in enumerate(kinds)
        ]

    def summary(self, hours: int) -> dict[str, Any]:
        states: dict[str, int] = {}
        buckets: dict[datetime, dict[str, int]] = {}
        width = 3600 if hours <= 48 else 86_400
        for k in range(hours * 3600 // width + 1):
            at = (self.now - timedelta(seconds=k * width)).timestamp() // width * width
            buckets[datetime.fromtimestamp(at, UTC)] = {}
        for run in self.runs:
            states[run["state"]] = states.get(run["state"], 0) + 1
            at = datetime.fromisoformat(run["created_at"]).timestamp() // width * width
            own = buckets.get(datetime.fromtimestamp(at, UTC))
            if own is not None:
                own[run["state"]] = own.get(run["state"], 0) + 1

        def of(*names: str) -> list[dict[str, Any]]:
            return [run for run in self.runs if run["state"] in names][:8]

        return {
            "states": states,
            "buckets": [
                {"at": at.isoformat().replace("+00:00", "Z"), "counts": c}
                for at, c in sorted(buckets.items())
            ],
            "counted": 200,
            "cut": False,
            "failures": of("FAILED", "CRASHED"),
            "running": of("RUNNING"),
            "latest": self.runs[:8],
            "attention": of("PAUSED")[:3],
            "late": [
                {"deployment": "train-hourly", "schedule": HOSTILE[0], "late_since": self.at(4000)}
            ],
        }


def an_error(message: str) -> dict[str, str]:
    lines = [
        f'  File "/srv/orders/load.py", line {n}, in step_{n}\n    raise ValueError("{HOSTILE[0]}")'
        for n in range(40, 46)
    ]
    return {
        "type": "ValueError",
        "message": message,
        "traceback": "\n".join(
            ["Traceback (most recent call last):", *lines, f"ValueError: {message}"]
        ),
    }


def held(name: str, size: float | None, period: float | None, at: str) -> dict[str, Any]:
    """A limit and who holds it."""
    holders = [
        {
            "engine": 1, "units": 3.0, "run_id": BIG_RUN, "run_name": HOSTILE[0], "seq": 12,
            "task": "fetch", "name": HOSTILE[4], "since": at,
        },
        {
            "engine": 2, "units": 1.0, "run_id": None, "run_name": None, "seq": None,
            "task": None, "name": None, "since": None,
        },
    ]  # fmt: skip
    return {
        "name": name, "scope": "shared", "used": 4.0, "size": size, "period": period,
        "free_at": at if period else None, "waiting": 7, "holders": holders, "more": 1,
    }  # fmt: skip


def a_wait(at: str) -> list[dict[str, Any]]:
    """What a run waits for."""
    thing = {
        "run_id": BIG_RUN, "seq": 12, "task": "fetch", "name": "fetch-12", "state_name": "Running",
        "left": None,
    }  # fmt: skip
    plain = {
        "task": "fetch", "calls": 7, "at_least": False, "task_runs": [thing], "since": at,
        "until": None, "limit": None, "on": [], "more": 0, "event": None, "told_at": None,
    }  # fmt: skip
    limit = "7 calls of fetch wait for the limit 'database' (4 of 5 in use)"
    retry = f"fetch-12 waits for another attempt, until 12:00:03 UTC: {HOSTILE[0]}"
    return [
        {
            **plain, "kind": "limit", "head": limit, "text": f"{limit}; held by {HOSTILE[4]}",
            "limit": held("database", 5.0, None, at),
        },
        {**plain, "kind": "retry", "head": retry, "text": retry, "until": at},
        {
            **plain, "kind": "upstream", "head": "load-3 waits for others to end",
            "text": "load-3 waits for others to end: fetch-12",
            "on": [{**thing, "name": HOSTILE[0]}], "more": 3,
        },
    ]  # fmt: skip


class Refused(Exception):
    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status, self.detail = status, detail


def role_of(request: web.Request) -> str | None:
    given = request.cookies.get("asyncflow_session", "")
    return {TOKEN: "admin", READ_TOKEN: "read"}.get(given)


def page(found: list[Any], q: Any, default: int = 50) -> dict[str, Any]:
    start, limit = int(q.get("cursor", 0)), min(500, int(q.get("limit", default)))
    end = start + limit
    return {"items": found[start:end], "next_cursor": str(end) if end < len(found) else None}


class Mock:
    """The server: `url` of its pages, `data`, and what it was asked."""

    def __init__(self, prefix: str = "") -> None:
        self.data = Data()
        self.prefix = prefix
        self.url = ""
        self.streams: set[asyncio.Queue[dict[str, Any]]] = set()
        self.loop: asyncio.AbstractEventLoop | None = None
        self.embedded = True
        self.files = read_files()

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self._guard])
        app.router.add_get("/", self._page)
        app.router.add_get("/static/{name:.*}", self._file)
        app.router.add_get("/api/stream", self._stream)
        app.router.add_route("*", "/api/{path:.*}", self._api)
        if not self.prefix:
            return app
        outer = web.Application()
        outer.add_subapp(self.prefix, app)
        return outer

    @web.middleware
    async def _guard(self, request: web.Request, handler: Callable[..., Any]) -> web.StreamResponse:
        try:
            if "/api/" in request.path:
                self.data.asked.append(f"{request.method} {request.path_qs}")
                role = role_of(request)
                if role is None and not request.path.endswith("/api/session"):
                    raise Refused(401, "give the token that the server printed when it started")
                if request.method != "GET":
                    if (
                        request.headers.get("X-Asyncflow") is None
                        or request.content_type != "application/json"
                    ):
                        raise Refused(403, "send the header X-Asyncflow: 1")
                    if role == "read":
                        raise Refused(403, "this token may only look")
            answer: web.StreamResponse = await handler(request)
        except Refused as error:
            body = {
                "type": "about:blank",
                "title": "Refused",
                "status": error.status,
                "detail": error.detail,
            }
            answer = web.Response(
                status=error.status, text=json.dumps(body), content_type="application/problem+json"
            )
        if not answer.prepared:
            answer.headers.update(
                {
                    "Content-Security-Policy": POLICY,
                    "X-Content-Type-Options": "nosniff",
                    "Referrer-Policy": "no-referrer",
                }
            )
        return answer

    async def _page(self, request: web.Request) -> web.Response:
        # Read anew, for whoever changes them.
        self.files = read_files()
        role = role_of(request)
        body = self.files.page(None if role is None else self._session(role))
        return web.Response(body=body, content_type="text/html", charset="utf-8")

    def _session(self, role: str) -> dict[str, Any]:
        return {"role": role, "version": "0.1.0", "embedded": self.embedded}

    async def _file(self, request: web.Request) -> web.Response:
        file = self.files.files.get(request.path.removeprefix(self.prefix))
        if file is None:
            raise Refused(404, "there is no such file")
        return web.Response(body=file.data, content_type=file.kind, charset="utf-8")

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        if request.query:
            raise Refused(422, "this path takes no parameter")
        answer = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"}
        )
        queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.streams.add(queue)
        try:
            await answer.prepare(request)
            await answer.write(b"retry: 2000\n\n")
            while True:
                message = await queue.get()
                if message.get("end"):
                    break
                await answer.write(
                    f"id: {message['id']}\nevent: change\ndata: {json.dumps(message)}\n\n".encode()
                )
        except ConnectionResetError:
            pass
        finally:
            self.streams.discard(queue)
        return answer

    def happen(self, *events: dict[str, Any]) -> None:
        """Tell the pages that something happened."""
        assert self.loop is not None
        message = {"id": 1000, "events": list(events), "more": False}
        for queue in list(self.streams):
            self.loop.call_soon_threadsafe(queue.put_nowait, message)

    async def _api(self, request: web.Request) -> web.Response:
        parts = request.match_info["path"].split("/")
        body = await request.json() if request.can_read_body else {}
        if request.method == "GET":
            found = self._get(parts, request)
        else:
            found = self._change(request.method, parts, body)
            if parts == ["session"]:
                answer = web.json_response(found)
                answer.set_cookie(
                    "asyncflow_session",
                    body["token"],
                    httponly=True,
                    samesite="Strict",
                    path=f"{self.prefix}/",
                )
                return answer
        return web.json_response(found)

    def _run(self, given: str) -> dict[str, Any]:
        for run in self.data.runs:
            if run["id"] == given:
                return run
        raise Refused(404, "there is no run with this id")

    def _get(self, parts: list[str], request: web.Request) -> Any:
        data, q = self.data, request.query

        def takes(*names: str) -> None:
            unknown = set(q) - set(names)
            if unknown:
                raise Refused(422, f"this path takes no parameter {unknown}")

        match parts:
            case ["me"]:
                takes()
                return self._session(role_of(request))
            case ["summary"]:
                takes("hours")
                return data.summary(int(q.get("hours", 24)))
            case ["runs"]:
                takes(
                    "state",
                    "flow",
                    "tag",
                    "deployment",
                    "since",
                    "parent",
                    "text",
                    "limit",
                    "cursor",
                )
                return page(self._found(q.getall("state", []), q), q)
            case ["runs", id_]:
                takes()
                return data.detail(self._run(id_))
            case ["runs", id_, what, *rest]:
                return self._of_run(self._run(id_), what, rest, q, takes)
            case ["deployments"]:
                takes()
                return {"items": data.deployments(), "next_cursor": None}
            case ["deployments", name, *rest]:
                found = next((d for d in data.deployments() if d["name"] == name), None)
                if found is None:
                    raise Refused(404, "there is no deployment of this name")
                if not rest:
                    return found
                takes("state", "limit", "cursor")
                return page(
                    [t for t in data.ticks() if t["state"] in q.getall("state", [t["state"]])], q
                )
            case ["automations"]:
                return {"items": data.automations(), "next_cursor": None}
            case ["automations", name]:
                for one in data.automations():
                    if one["name"] == name:
                        return one
                raise Refused(404, "there is no automation of this name")
            case ["deliveries"]:
                takes("automation", "state", "run", "limit", "cursor")
                rows = [
                    d
                    for d in data.deliveries()
                    if q.get("automation", d["automation"]) == d["automation"]
                    and q.get("state", d["state"]) == d["state"]
                ]
                return page(rows, q)
            case ["events"]:
                takes("kind", "run", "since", "limit", "cursor")
                kind = q.get("kind", "").rstrip("*")
                return page([e for e in data.events() if e["kind"].startswith(kind)], q)
            case ["limits"]:
                return {
                    "items": [
                        {
                            **held(name, one["limit"], one["period"], data.at(300)),
                            **one,
                            "shares": [{"engine": 1, "units": 3.0, "wanted": 5.0, "alive": True}],
                        }
                        for name, one in data.limits.items()
                    ],
                    "next_cursor": None,
                }
            case ["variables"]:
                return {
                    "items": [
                        {"name": name, "value": value, "updated_at": data.at(5000)}
                        for name, value in data.variables.items()
                    ],
                    "next_cursor": None,
                }
        raise Refused(404, "there is nothing at this path")

    def _found(self, states: list[str], q: Any) -> list[dict[str, Any]]:
        def fits(run: dict[str, Any]) -> bool:
            wanted = [PAUSED.get(s, s) for s in states if s != NOT_COMPLETED]
            if wanted and run["state"] not in wanted and run["state_name"] not in wanted:
                return False
            if NOT_COMPLETED in states and run["state"] == "COMPLETED":
                return False
            parent = q.get("parent") or "roots"
            if parent == "roots" and run["parent_id"] is not None:
                return False
            for key in ("flow", "deployment"):
                if q.get(key) and run[key] != q.get(key):
                    return False
            return q.get("text", "").lower() in f"{run['name']} {run['message']}".lower()

        return [run for run in self.data.runs if fits(run)]

    def _of_run(
        self, run: dict[str, Any], what: str, rest: list[str], q: Any, takes: Callable[..., None]
    ) -> Any:
        n = int(run["id"][-12:], 16)
        match what, rest:
            case "timeline", []:
                takes("limit")
                return self.data.timeline(run, n, int(q.get("limit", 2000)))
            case "task-runs", []:
                takes("task", "state", "limit", "cursor")
                state = q.get("state")
                rows = [
                    row
                    for row in self.data.task_runs(n)
                    if row[1] == q.get("task", row[1])
                    and (
                        state in (None, row[2])
                        or (state == NOT_COMPLETED and row[2] != "COMPLETED")
                    )
                ]
                found = page(rows, q)
                return {**found, "items": [self.data.task_run(run, *row) for row in found["items"]]}
            case "task-runs", [seq]:
                takes()
                row = self.data.task_runs(n)[int(seq) - 1]
                plain = self.data.task_run(run, *row)
                tries = [
                    {
                        "attempt": a,
                        "started_at": run["started_at"],
                        "ended_at": run["started_at"],
                        "retry_at": None,
                        "error": an_error(HOSTILE[0]),
                    }
                    for a in range(1, plain["attempts"])
                ]
                return {
                    **plain,
                    "attempts_list": tries,
                    "result": {"kind": "json", "value": [1, HOSTILE[0]], "bytes": 9},
                    "inputs": f"({HOSTILE[0]!r}, 7)",
                    "waits": a_wait(self.data.at(300)) if plain["state"] == "RUNNING" else [],
                }
            case "forms", []:
                takes()
                return {"parameters": None, "answer": SCHEMA}
            case "logs", []:
                takes("level", "text", "task_run", "limit", "cursor")
                after, limit = int(q.get("cursor", 0)), int(q.get("limit", 200))
                rows_ = [
                    line
                    for line in self.data.logs()
                    if line["level"] >= int(q.get("level", 0))
                    and q.get("text", "") in line["message"]
                    and line["id"] > after
                    and q.get("task_run", line["task_run_id"]) == line["task_run_id"]
                ]
                return {
                    "items": rows_[:limit],
                    "next_cursor": str(rows_[limit - 1]["id"]) if len(rows_) > limit else None,
                }
            case "artifacts", []:
                takes()
                return {"items": self.data.artifacts(), "next_cursor": None}
        raise Refused(404, "there is nothing at this path")

    def _change(self, method: str, parts: list[str], body: Any) -> Any:
        data = self.data
        if parts == ["session"]:
            if body.get("token") not in (TOKEN, READ_TOKEN):
                raise Refused(401, "the server does not know this token")
            return self._session("admin" if body["token"] == TOKEN else "read")
        data.done.append((method, "/".join(parts), body))
        match parts:
            case ["runs", "bulk"]:
                return {"done": 3, "failed": [{"id": run_id(4), "detail": HOSTILE[0]}]}
            case ["runs", id_, "delete"]:
                run = self._run(id_)
                if run["state"] == "RUNNING":
                    raise Refused(409, f"the run is running {HOSTILE[0]}")
                data.runs.remove(run)
                return {"run": None, "detail": "it was removed"}
            case ["runs", id_, "cancel" | "resume" as what]:
                run = self._run(id_)
                if body.get("expected_state", run["state"]) != run["state"]:
                    raise Refused(409, f"the run is {run['state_name']} by now")
                run["state"] = "CANCELLED" if what == "cancel" else "RUNNING"
                run["state_name"] = run["state"].title()
                return {"run": run, "detail": "done"}
            case ["runs", id_, _] | ["deployments", id_, "run"]:
                return {"run": data.runs[8], "detail": "it has begun"}
            case ["deployments", name, "pause" | "resume" as what]:
                key = f"{name}/{body['schedule']}" if body.get("schedule") else name
                (data.paused.add if what == "pause" else data.paused.discard)(key)
            case ["automations", name, "enable" | "disable" as what]:
                (data.off.add if what == "disable" else data.off.discard)(name)
            case ["limits", name]:
                if method == "DELETE":
                    data.limits.pop(name)
                else:
                    data.limits[name] = {"used": 0.0, **body}
            case ["variables", name]:
                if method == "DELETE":
                    data.variables.pop(name)
                else:
                    data.variables[name] = body["value"]
        return {"ok": True}


@contextmanager
def serving(mock: Mock, port: int = 0) -> Iterator[Mock]:
    """Serve in a thread, for as long as the block lasts."""
    began = threading.Event()
    end: list[Callable[[], None]] = []

    async def main() -> None:
        mock.loop = asyncio.get_running_loop()
        over = asyncio.Event()
        runner = web.AppRunner(mock.app(), access_log=None, shutdown_timeout=1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        mock.url = f"http://127.0.0.1:{runner.addresses[0][1]}{mock.prefix}/"
        loop = mock.loop
        end.append(lambda: loop.call_soon_threadsafe(over.set))
        began.set()
        await over.wait()
        for queue in list(mock.streams):
            queue.put_nowait({"end": True})
        await runner.cleanup()

    thread = threading.Thread(target=lambda: asyncio.run(main()), name="server-mock")
    thread.start()
    assert began.wait(30)
    try:
        yield mock
    finally:
        end[0]()
        thread.join()


if __name__ == "__main__":
    with serving(Mock(), int(sys.argv[1]) if sys.argv[1:] else 4300) as served:
        print(f"{served.url}#token={TOKEN}")
        threading.Event().wait()
