"""What an engine counts and times, for Prometheus.

Collected by plain integers, on the loop; `prometheus-client` only puts them into words when they
are asked for. An engine that collects nothing pays nothing: what is told here is told by the
machine's observer, once for each commit by the journal, and once for each stretch of a map.

Labels are names of flows and tasks, never ids. Beyond `MOST` different ones they are counted
together, as "other".
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from time import perf_counter
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from asyncflow.clock import WallClock
from asyncflow.errors import MissingExtra
from asyncflow.failures import outcome
from asyncflow.run import Batch, Call, Run
from asyncflow.states import StateType

if TYPE_CHECKING:
    from asyncflow.engine import Engine

S = StateType

#: Different names of flows, and of tasks in flows, that have numbers of their own.
MOST = 1_000
#: What counts for all others.
OTHER = "other"
#: Seconds between two looks at how late the loop is.
BEAT = 0.5

_FINAL = tuple(type_.value for type_ in StateType if type_.is_final)
WAITS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 60.0, 300.0, 1800.0, 3600.0)
COMMITS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0)
LAGS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


def check_package() -> None:
    """MissingExtra: `prometheus-client` is not installed."""
    if find_spec("prometheus_client") is None:
        raise MissingExtra("prometheus-client", "metrics", "to count")


class Histogram:
    """How many values lie below each of some bounds, and their sum."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float, count: int = 1) -> None:
        """*count* values like this one. Negative ones (a clock was set back) count as 0."""
        if value > 0.0:
            self.counts[bisect_left(self.bounds, value)] += count
            self.total += value * count
        else:
            self.counts[0] += count

    def buckets(self) -> list[tuple[str, float]]:
        """Upper bounds, as text, with how many values are not above them."""
        told, below = [], 0
        for bound, count in zip((*self.bounds, float("inf")), self.counts, strict=True):
            below += count
            told.append(("+Inf" if bound == float("inf") else repr(bound), float(below)))
        return told


def states_of(counts: dict[str, dict[str, int]], flow: str) -> dict[str, int]:
    """How many runs of a flow have ended, by state: of each, so that the first one shows as one."""
    if flow not in counts and len(counts) >= MOST:
        flow = OTHER
    return counts.setdefault(flow, dict.fromkeys(_FINAL, 0))


class OfTask:
    """What is known of the calls of one task in the runs of one flow."""

    __slots__ = ("attempt", "blocks", "outcomes", "queue", "slot", "states")

    def __init__(self) -> None:
        self.states: dict[str, int] = {}
        self.outcomes: dict[str, int] = {}
        self.blocks = 0
        self.queue = Histogram(WAITS)
        self.slot = Histogram(WAITS)
        self.attempt = Histogram(WAITS)


class _Stretch:
    """Items of one map whose code never waited: how many, and what they took together."""

    __slots__ = ("count", "seconds", "waited")

    def __init__(self) -> None:
        self.count = 0
        self.seconds = 0.0
        self.waited = 0.0


class Metrics:
    """The numbers of one engine; the machine's `Observer`, and a collector for Prometheus.

    Args:
        engine: an open engine, of whose loop this is called.

    Attributes:
        registry: a `prometheus_client.CollectorRegistry` that holds these metrics only. To have
            them in another one, ``other.register(engine.metrics)``.

    Raises:
        MissingExtra: `prometheus-client` is not installed.
    """

    def __init__(self, engine: Engine) -> None:
        check_package()
        from prometheus_client import CollectorRegistry

        self._engine = engine
        self._tasks: dict[tuple[str, str], OfTask] = {}
        self._runs: dict[str, dict[str, int]] = {}
        self._stretches: WeakKeyDictionary[Batch, _Stretch] = WeakKeyDictionary()
        self._commits = Histogram(COMMITS)
        self._lags = Histogram(LAGS)
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self.registry = CollectorRegistry()
        self.registry.register(self)
        engine.machine.observe(self)
        engine.executor.metrics = self
        engine.journal.timed = self._timed
        if isinstance(engine.clock, WallClock):
            self._beat_later()  # in virtual time nothing is ever late

    # --- what happens ---------------------------------------------------------------------------

    def made(self, source: Call | Batch, count: int) -> None:
        """Calls are counted when they end."""

    def ended(self, call: Call) -> None:
        """A call has ended, and that is recorded."""
        if call.answered or call.spec.is_flow:
            return  # another life of the run has counted it; a flow counts as a run
        of = self._of(call.run.flow_name, call.spec.name)
        state = call.phase.value
        of.states[state] = of.states.get(state, 0) + 1
        if call.ended is not None:
            self._attempt(of, call, call.ended)

    def attempted(self, call: Call, now: float) -> None:
        """An attempt of a call failed, and that was not its end."""
        if not call.spec.is_flow:
            self._attempt(self._of(call.run.flow_name, call.spec.name), call, now)

    def _attempt(self, of: OfTask, call: Call, now: float) -> None:
        """The newest attempt of a call, unless it is counted already, or was none of ours."""
        attempt = call.attempt
        began = call.began if attempt > 1 else call.started
        if attempt <= call.counted or began is None:
            return
        call.counted = attempt
        what = outcome(call)
        of.outcomes[what] = of.outcomes.get(what, 0) + 1
        of.attempt.add(now - began)
        if attempt == 1:
            of.queue.add(began - call.created)
            of.slot.add(began - (call.ready or call.created))
        elif call.ready is not None:
            of.slot.add(began - call.ready)

    def completed(self, source: Batch, count: int, before: int) -> None:
        """Items of a map have completed without becoming calls."""
        count -= before
        if not count:
            return
        of = self._of(source.run.flow_name, source.spec.name)
        of.states["COMPLETED"] = of.states.get("COMPLETED", 0) + count
        of.outcomes["Completed"] = of.outcomes.get("Completed", 0) + count
        stretch = self._stretches.get(source)
        seconds = waited = 0.0
        if stretch is not None:
            seconds = stretch.seconds / stretch.count
            waited = stretch.waited / stretch.count
        of.attempt.add(seconds, count)
        of.queue.add(waited, count)
        of.slot.add(waited, count)

    def stretch(self, batch: Batch, count: int, seconds: float) -> None:
        """*count* items of a map ran one after another, in so many seconds."""
        stretch = self._stretches.get(batch)
        if stretch is None:
            stretch = self._stretches[batch] = _Stretch()
        stretch.count += count
        stretch.seconds += seconds
        waited = self._engine.clock.time() - seconds / 2 - batch.created
        stretch.waited += max(0.0, waited) * count

    def run_ended(self, run: Run, state: StateType) -> None:
        """A flow run has ended."""
        states_of(self._runs, run.flow_name)[state.value] += 1

    def blocked(self, flow: str, task: str) -> None:
        """Code of a task (of a flow itself: "") kept the loop from turning."""
        self._of(flow, task).blocks += 1

    def _of(self, flow: str, task: str) -> OfTask:
        of = self._tasks.get((flow, task))
        if of is None:
            if len(self._tasks) >= MOST:
                flow = task = OTHER
            of = self._tasks.setdefault((flow, task), OfTask())
        return of

    def _timed(self, write: Callable[[], Any]) -> Callable[[], Any]:
        """A transaction that tells how long it took; one that was put off did not happen."""

        def timed() -> Any:
            began = perf_counter()
            done = write()
            if done is not False:
                self._commits.add(perf_counter() - began)
            return done

        return timed

    def _beat_later(self) -> None:
        loop = self._engine.loop
        self._due = loop.time() + BEAT
        self._timer = loop.call_at(self._due, self._beat)

    def _beat(self) -> None:
        self._lags.add(self._engine.loop.time() - self._due)
        self._beat_later()

    def close(self) -> None:
        """Look at the loop no more. What was counted stays."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # --- in words -------------------------------------------------------------------------------

    def text(self) -> bytes:
        """All metrics, in the text format of Prometheus 0.0.4."""
        from prometheus_client import generate_latest

        text: bytes = generate_latest(self.registry)
        return text

    def collect(self) -> Iterator[Any]:
        """What Prometheus asks a collector for."""
        from prometheus_client.core import (
            CounterMetricFamily,
            GaugeMetricFamily,
            HistogramMetricFamily,
        )

        def counted(
            name: str, about: str, labels: list[str], rows: Iterable[tuple[list[str], float]]
        ) -> Any:
            family = CounterMetricFamily(f"asyncflow_{name}", about, labels=labels)
            for values, value in rows:
                family.add_metric(values, value)
            return family

        def timed(
            name: str, about: str, labels: list[str], rows: Iterable[tuple[list[str], Histogram]]
        ) -> Any:
            family = HistogramMetricFamily(f"asyncflow_{name}_seconds", about, labels=labels)
            for values, histogram in rows:
                if labels == [] or any(histogram.counts):
                    family.add_metric(values, histogram.buckets(), histogram.total)
            return family

        # Copied first: another thread may ask while the loop goes on counting.
        tasks = [([flow, task], of) for (flow, task), of in list(self._tasks.items())]
        for run in list(self._engine.live.values()):
            states_of(self._runs, run.flow_name)
        runs = list(self._runs.items())
        both = ["flow", "task"]
        yield counted(
            "runs", "Flow runs that ended, by state.", ["flow", "state"],
            [([flow, s], n) for flow, states in runs for s, n in list(states.items())],
        )  # fmt: skip
        yield counted(
            "task_runs", "Task runs that ended, by state.", [*both, "state"],
            [([*names, s], n) for names, of in tasks for s, n in list(of.states.items())],
        )  # fmt: skip
        yield counted(
            "attempts", "Attempts of task runs that ended, by what came of them.",
            [*both, "outcome"],
            [([*names, s], n) for names, of in tasks for s, n in list(of.outcomes.items())],
        )  # fmt: skip
        yield counted(
            "loop_blocked", "Times that code kept the event loop from turning.", both,
            [(names, of.blocks) for names, of in tasks if of.blocks],
        )  # fmt: skip
        yield timed(
            "queue_wait", "From the call of a task to its first attempt.", both,
            [(names, of.queue) for names, of in tasks],
        )  # fmt: skip
        yield timed(
            "slot_wait", "For slots, before an attempt: when nothing else was missing.", both,
            [(names, of.slot) for names, of in tasks],
        )  # fmt: skip
        yield timed(
            "attempt", "Of one attempt of a task run.", both,
            [(names, of.attempt) for names, of in tasks],
        )  # fmt: skip
        yield timed("commit", "Of one transaction of the journal.", [], [([], self._commits)])
        yield timed("loop_lag", "How late the event loop turns.", [], [([], self._lags)])
        for name, about, value in self._now():
            yield GaugeMetricFamily(f"asyncflow_{name}", about, value=value)

    def describe(self) -> list[Any]:
        """Nothing: names are not checked against those of others before there are values."""
        return []

    def _now(self) -> Iterator[tuple[str, str, float]]:
        engine = self._engine
        live = list(engine.live.values())
        running = list(engine.executor.running)
        tasks = sum(1 for call in running if not call.spec.is_flow)
        waiting = max(0, sum(run.live for run in live) - len(running))
        limit = engine.calls.engine_limit
        going = sum(1 for run in live if run.phase is S.RUNNING)
        yield "running_runs", "Flow runs that are running.", going
        yield "running_tasks", "Task runs whose code is running, or waits inside.", tasks
        yield "waiting_calls", "Calls that wait for slots, for others, or to be recorded.", waiting
        yield "open_slots", "Slots of the engine that nobody has.", limit.size - limit.used
