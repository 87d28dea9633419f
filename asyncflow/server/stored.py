"""What a store tells Prometheus of the runs of all processes that use it.

A server that runs no flows has nothing to count, and a process that runs one flow and ends is never
asked: what both have is the store. Ends of runs are counted from its events, from the first time
that somebody asks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asyncflow.metrics import MOST, OTHER, check_package, states_of
from asyncflow.planned import late_schedules
from asyncflow.states import StateType

if TYPE_CHECKING:
    from asyncflow.engine import Engine

#: Events that are read in one question.
STEP = 50_000
#: Names of states in which a run waits for a person.
_ATTENTION = ("NeedsAttention", "Paused")


class Stored:
    """The numbers of the store of one engine; a collector for Prometheus.

    Args:
        engine: an open engine.

    Raises:
        MissingExtra: `prometheus-client` is not installed.
    """

    def __init__(self, engine: Engine) -> None:
        check_package()
        self._engine = engine
        self._asking = asyncio.Lock()
        self._seen: int | None = None  # the last event that was counted
        self._ended: dict[str, dict[str, int]] = {}
        self._open: dict[tuple[str, str], int] = {}
        self._attention: dict[str, int] = {}
        self._late: list[float] = []

    async def text(self) -> bytes:
        """All of them as they are now, in the text format of Prometheus (version 0.0.4)."""
        from prometheus_client import CollectorRegistry, generate_latest

        async with self._asking:
            await self._look()
            registry = CollectorRegistry()
            registry.register(self)
            text: bytes = generate_latest(registry)
        return text

    async def _look(self) -> None:
        engine, reader = self._engine, self._engine.reader
        newest = await engine.writer.do(engine.store.newest_event)
        if self._seen is None:
            self._seen = newest
            for flow in await reader.flow_names(MOST):
                states_of(self._ended, flow)
        while self._seen < newest:
            until = min(newest, self._seen + STEP)
            for flow, state, count in await reader.ended_runs(self._seen, until):
                states_of(self._ended, flow)[state] += count
            self._seen = until
        self._open, self._attention = {}, {}
        alive: dict[int | None, bool] = {None: True}
        for flow, state, name, owner, count in await reader.open_runs():
            if owner not in alive:
                assert owner is not None
                alive[owner] = engine.recovery.is_alive(owner)
            if not alive[owner]:
                state, name = StateType.PAUSED.value, "Interrupted"
            states_of(self._ended, flow)
            of = flow if flow in self._ended else OTHER
            self._open[of, state] = self._open.get((of, state), 0) + count
            if name in _ATTENTION:
                self._attention[of] = self._attention.get(of, 0) + count
        now = engine.clock.time()
        self._late = [now - since for _, _, since in await late_schedules(reader, now)]

    def describe(self) -> list[Any]:
        """Nothing: names are not checked against those of others before there are values."""
        return []

    def collect(self) -> Iterator[Any]:
        """What Prometheus asks a collector for."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        ended = CounterMetricFamily(
            "asyncflow_store_runs_ended",
            "Flow runs that ended in any process, by state.",
            labels=["flow", "state"],
        )
        for flow, states in self._ended.items():
            for state, count in states.items():
                ended.add_metric([flow, state], count)
        yield ended
        runs = GaugeMetricFamily(
            "asyncflow_store_runs",
            "Flow runs that have not ended, in any process or in none, by state.",
            labels=["flow", "state"],
        )
        for (flow, state), count in self._open.items():
            runs.add_metric([flow, state], count)
        yield runs
        attention = GaugeMetricFamily(
            "asyncflow_store_runs_needing_attention",
            "Flow runs that wait for a person.",
            labels=["flow"],
        )
        for flow, count in self._attention.items():
            attention.add_metric([flow], count)
        yield attention
        for name, about, value in self._now():
            yield GaugeMetricFamily(f"asyncflow_store_{name}", about, value=value)

    def _now(self) -> Iterator[tuple[str, str, float]]:
        late = self._late
        yield "late_schedules", "Schedules with a tick that nobody has dealt with.", len(late)
        yield "schedule_lateness_seconds", "Of the one that is most late.", max(late, default=0.0)
        path: Path | None = getattr(self._engine.store, "path", None)
        if path is not None:
            size = sum(
                file.stat().st_size
                for file in (path, path.with_name(f"{path.name}-wal"))
                if file.is_file()
            )
            yield "bytes", "Size of the database, its write-ahead log included.", size
