"""The measurements: one function for each line of the table of promises."""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from asyncflow import Engine, Interval, MemoryStore, SqliteStore, flow, runtime, task

CONCURRENCY = 100
ROOT = Path(__file__).parents[1]


async def nothing(i: int) -> int:
    return i


async def once(i: int) -> int:
    await asyncio.sleep(0)
    return i


@dataclass
class Result:
    """One measured number, with every sample that it is the median of."""

    name: str
    value: float
    unit: str
    must: float
    aim: float
    samples: dict[str, list[float]] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        if self.value > self.must:
            return "MISSED"
        return "aim reached" if self.value <= self.aim else "met"


@dataclass
class Sizes:
    """How much is measured; `quick` is for a first look, not for publication."""

    rounds: int = 7
    fan: int = 10_000
    chain: int = 1_000
    resume: int = 100_000
    many: int = 1_000_000

    @classmethod
    def quick(cls) -> Sizes:
        return cls(3, 2_000, 300, 10_000, 100_000)


async def raw(function: Callable[[int], Awaitable[int]], n: int) -> list[int]:
    """The reference: one task for each item, and a semaphore."""
    semaphore = asyncio.Semaphore(CONCURRENCY)

    async def one(i: int) -> int:
        async with semaphore:
            return await function(i)

    return await asyncio.gather(*[one(i) for i in range(n)])


@flow(max_concurrency=CONCURRENCY, validate_parameters=False)
async def fan_out(which: str, n: int) -> int:
    return len(await TASKS[which].map(range(n)))


TASKS: dict[str, Any] = {
    "nothing": task(nothing),
    "once": task(once),
    "nothing, timeout, retries": task(timeout_seconds=30, retries=3)(nothing),
    "once, timeout, retries": task(timeout_seconds=30, retries=3)(once),
}


async def _timed(work: Awaitable[Any]) -> float:
    gc.collect()
    began = time.perf_counter()
    await work
    return time.perf_counter() - began


def _store(folder: str, durability: str) -> Any:
    return MemoryStore() if durability == "off" else SqliteStore(Path(folder) / "bench.db")


async def _fan(name: str, which: str, durability: str, must: float, aim: float, s: Sizes) -> Result:
    function = once if which.startswith("once") else nothing
    ours, reference = [], []
    with tempfile.TemporaryDirectory() as folder:
        async with Engine(_store(folder, durability), durability=durability) as engine:
            await engine.run(fan_out, which, s.fan)
            for _ in range(s.rounds):
                reference.append(await _timed(raw(function, s.fan)))
                ours.append(await _timed(engine.run(fan_out, which, s.fan)))
    ratio = statistics.median(ours) / statistics.median(reference)
    return Result(name, ratio, "x raw", must, aim, {"ours s": ours, "raw s": reference})


async def off_nothing(s: Sizes) -> Result:
    return await _fan("fan-out, off, no-op", "nothing", "off", 1.0, 0.5, s)


async def off_once(s: Sizes) -> Result:
    return await _fan("fan-out, off, sleep(0)", "once", "off", 1.0, 0.5, s)


async def strict_nothing(s: Sizes) -> Result:
    return await _fan("fan-out, strict, no-op", "nothing", "strict", 3.0, 1.5, s)


async def strict_once(s: Sizes) -> Result:
    return await _fan("fan-out, strict, sleep(0)", "once", "strict", 3.0, 1.5, s)


async def timeout_nothing(s: Sizes) -> Result:
    which = "nothing, timeout, retries"
    return await _fan("timeout + retries, strict, no-op", which, "strict", 4.0, 2.0, s)


async def timeout_once(s: Sizes) -> Result:
    which = "once, timeout, retries"
    return await _fan("timeout + retries, strict, sleep(0)", which, "strict", 4.0, 2.0, s)


@task
async def step(i: int) -> int:
    return i + 1


@flow
async def steps(n: int) -> int:
    x = 0
    for _ in range(n):
        x = await step(x)
    return x


async def chain(s: Sizes) -> Result:
    """Tasks one after another, each on disk before the next."""
    with tempfile.TemporaryDirectory() as folder:
        async with Engine(_store(folder, "strict")) as engine:
            times = [await _timed(engine.run(steps, s.chain)) for _ in range(s.rounds)]
    samples = [seconds / s.chain * 1e6 for seconds in times]
    value = statistics.median(samples)
    return Result("chain of durable tasks", value, "us a task", 150, 60, {"us": samples})


@flow(max_concurrency=CONCURRENCY)
async def fan_then_fail(n: int) -> int:
    total = len(await TASKS["nothing"].map(range(n)))
    if FAIL:
        raise RuntimeError("once, so that there is something to resume")
    return total


FAIL: list[int] = []


async def resume(s: Sizes) -> Result:
    """A run whose tasks have all completed goes on: nothing runs, all is answered."""
    ours, reference = [], []
    with tempfile.TemporaryDirectory() as folder:
        async with Engine(_store(folder, "strict")) as engine:
            for _ in range(max(3, s.rounds // 2)):
                FAIL.append(1)
                run = await engine.submit(fan_then_fail, s.resume)
                await run.wait()
                FAIL.clear()
                reference.append(await _timed(raw(nothing, s.resume)))

                async def again(run_id: str = run.id) -> None:
                    await (await engine.resume(run_id))

                ours.append(await _timed(again()))
    ratio = statistics.median(ours) / statistics.median(reference)
    name = f"resume of {s.resume:,} completed tasks"
    return Result(name, ratio, "x raw", 1.5, 0.7, {"ours s": ours, "raw s": reference})


@task
async def one_step(i: int) -> int:
    return i


@flow
async def steps_then_wait(n: int) -> int:
    total = sum([await one_step(i) for i in range(n)])
    if DYING:
        await asyncio.Event().wait()
    return total


@flow(max_concurrency=CONCURRENCY)
async def fan_then_die(n: int) -> int:
    total = len(await TASKS["nothing"].map(range(n)))
    if DYING:
        os._exit(0)
    return total


#: In a process that is to die in the middle.
DYING: list[int] = []

#: A process that begins so many runs, and dies once the calls of all are on disk.
DIES = """
import asyncio, os, sys
from benchmarks import cases
async def main(name, runs, n, path):
    cases.DYING.append(1)
    async with cases.Engine(path) as engine:
        for _ in range(runs):
            await engine.submit(getattr(cases, name), n)
        while [r for r in await engine.runs(limit=runs) if len(await engine.task_runs(r.id)) < n]:
            await asyncio.sleep(0.05)
        os._exit(0)
asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]))
"""


async def _recovered(path: Path) -> float:
    """Seconds from the start of an engine until all that a dead one left has completed."""
    began = time.perf_counter()
    async with Engine(path) as engine:
        for run in await engine.recover():
            await run
    return time.perf_counter() - began


async def recover_calls(s: Sizes) -> Result:
    """A run whose process died after its tasks completed, in a fresh engine."""
    ours, reference = [], []
    for _ in range(max(3, s.rounds // 2)):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "bench.db"
            await asyncio.to_thread(_child, ["-c", DIES, "fan_then_die", "1", str(s.resume), path])
            reference.append(await _timed(raw(nothing, s.resume)))
            ours.append(await _recovered(path))
    ratio = statistics.median(ours) / statistics.median(reference)
    name = f"recovery of a run of {s.resume:,} calls"
    return Result(name, ratio, "x raw", 1.5, 0.7, {"ours s": ours, "raw s": reference})


async def recover_runs(s: Sizes) -> Result:
    """Many runs of a process that died, each with five completed calls."""
    samples = []
    for _ in range(max(3, s.rounds // 2)):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "bench.db"
            await asyncio.to_thread(
                _child, ["-c", DIES, "steps_then_wait", str(s.chain), "5", path]
            )
            samples.append(await _recovered(path))
    name = f"recovery of {s.chain:,} runs"
    return Result(name, statistics.median(samples), "s", 2, 1, {"s": samples})


async def simulation(s: Sizes) -> Result:
    """One trial of a flow of some twenty calls: run, crash, recover, compare."""
    code = "from tests.simulation import mixed; from asyncflow.testing import simulate; " + (
        "import sys, time; simulate(mixed, seeds=3); began = time.perf_counter(); "
        "n = int(sys.argv[1]); simulate(mixed, seeds=range(100, 100 + n)).check(); "
        "print((time.perf_counter() - began) / n * 1e3)"
    )
    seeds = str(max(5, s.chain // 10))
    samples = [float(await asyncio.to_thread(_child, ["-c", code, seeds])) for _ in range(3)]
    return Result(
        "one seed of a simulated flow", statistics.median(samples), "ms", 33, 20, {"ms": samples}
    )


async def growth(s: Sizes) -> Result:
    """The cost of a task among many over that among few; a map, durability off."""
    few, many = [], []
    async with Engine(MemoryStore(), durability="off") as engine:
        for _ in range(3):
            few += [await _timed(engine.run(fan_out, "once", 10_000)) / 10_000 for _ in range(5)]
            many.append(await _timed(engine.run(fan_out, "once", s.many)) / s.many)
    ratio = statistics.median(many) / statistics.median(few)
    name = f"cost per task at {s.many:,} over 10,000"
    return Result(name, ratio, "x", 1.3, 1.1, {"few s": few, "many s": many})


async def growth_strict(s: Sizes) -> Result:
    """The same with strict checkpoints, more than the disk takes while they run."""
    few, many, size = [], [], s.many // 5
    with tempfile.TemporaryDirectory() as folder:
        async with Engine(Path(folder) / "state.db") as engine:
            for _ in range(3):
                for times, n in ((few, 10_000), (few, 10_000), (many, size)):
                    times.append(await _timed(engine.run(fan_out, "once", n)) / n)
    ratio = statistics.median(many) / statistics.median(few)
    name = f"the same at {size:,}, strict"
    return Result(name, ratio, "x", 1.3, 1.1, {"few s": few, "many s": many})


STREAM = """
import asyncio, resource, sys
from pathlib import Path
from asyncflow import Engine, MemoryStore, flow, task
@task
async def one(i): return i
@flow(max_concurrency=100)
async def main(n: int) -> int:
    total = 0
    async for _ in one.stream(iter(range(n))): total += 1
    return total
async def go():
    async with Engine(MemoryStore(), durability="off") as engine:
        await engine.run(main, int(sys.argv[1]))
asyncio.run(go())
# Not ru_maxrss where it can be helped: on Linux it keeps the peak of the parent over exec.
status = Path("/proc/self/status")
if status.exists():
    line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
    print(int(line.split()[1]) / 1024)
else:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
"""


async def stream(s: Sizes) -> Result:
    """Peak memory of a process that streams many items."""
    peak = float(_child(["-c", STREAM, str(s.many)]))
    name = f"peak memory of a stream of {s.many:,}"
    return Result(name, peak, "MiB", 150, 80, {"MiB": [peak]})


async def memory(s: Sizes) -> Result:
    """What is kept of a finished task whose result was dropped, while its flow runs."""
    n = min(s.resume, 50_000)
    kept: list[float] = []

    @flow(max_concurrency=CONCURRENCY, validate_parameters=False)
    async def run(n: int) -> None:
        await TASKS["nothing"].map(range(1000))
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        await TASKS["nothing"].map(range(1000, 1000 + n))
        gc.collect()
        kept.append((tracemalloc.get_traced_memory()[0] - before) / n)

    with tempfile.TemporaryDirectory() as folder:
        async with Engine(_store(folder, "strict")) as engine:
            tracemalloc.start()
            try:
                await engine.run(run, n)
            finally:
                tracemalloc.stop()
    return Result("memory kept per finished task", kept[0], "B", 160, 64, {"B": kept})


async def released(s: Sizes) -> Result:
    """What an engine keeps of a finished task once its flow has ended and its run is let go.

    What one more flow adds, in the median: some of them import modules, or grow a table.
    """
    n = min(s.resume, 50_000)
    grown: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        async with Engine(_store(folder, "strict")) as engine:
            await engine.run(fan_out, "once", n)
            tracemalloc.start()
            try:
                before = tracemalloc.get_traced_memory()[0]
                for _ in range(6):
                    await engine.run(fan_out, "once", n)
                    gc.collect()
                    grown.append(tracemalloc.get_traced_memory()[0] - before)
            finally:
                tracemalloc.stop()
    value = max(0.0, statistics.median(b - a for a, b in itertools.pairwise(grown))) / n
    return Result("memory kept per task of an ended flow", value, "B", 1, 0.5, {"grown B": grown})


async def importing(s: Sizes) -> Result:
    samples = [_seconds(["-c", "import asyncflow"]) * 1e3 for _ in range(s.rounds + 2)]
    return Result("import asyncflow", statistics.median(samples), "ms", 150, 80, {"ms": samples})


async def helping(s: Sizes) -> Result:
    samples = [_seconds(["-m", "asyncflow", "--help"]) * 1e3 for _ in range(s.rounds + 2)]
    return Result("asyncflow --help", statistics.median(samples), "ms", 250, 150, {"ms": samples})


async def handover(s: Sizes) -> Result:
    """From the end of the code that holds the only slot to the start of the next."""
    gaps: list[float] = []
    last = 0.0

    @task(max_concurrency=1)
    async def hold(i: int) -> None:
        nonlocal last
        now = time.perf_counter()
        if last:
            gaps.append((now - last) * 1e3)
        await asyncio.sleep(0)
        last = time.perf_counter()

    @flow
    async def run(n: int) -> None:
        for future in [hold.submit(i) for i in range(n)]:
            await future

    async with Engine(MemoryStore()) as engine:
        await engine.run(run, s.chain)
    return Result("hand-over of a slot", statistics.median(gaps), "ms", 1.0, 0.1, {"ms": gaps[:50]})


@task
async def nap(seconds: float) -> None:
    await asyncio.sleep(seconds)


@flow(max_concurrency=200, validate_parameters=False)
async def naps(rounds: int) -> None:
    """Two hundred tasks that run all the time."""
    for _ in range(rounds):
        await nap.map([0.5] * 200)


LATE: list[float] = []


@flow
async def on_time() -> None:
    planned = runtime.flow_run.scheduled_at
    assert planned is not None
    LATE.append((time.time() - planned.timestamp()) * 1e3)


async def lateness(s: Sizes) -> Result:
    """How much after its tick the code of a scheduled run begins, beside 200 running tasks.

    The schedules have 5 s between two ticks, and are spread as those of people are: in groups of
    ten at the same instant.
    """
    count, seconds = max(10, s.chain // 2), 2 if s.chain < 100 else 16
    LATE.clear()
    with tempfile.TemporaryDirectory() as folder:
        async with Engine(_store(folder, "strict"), retention_days=None) as engine:
            running = await engine.submit(naps, seconds * 2 + 2)
            now = time.time()
            for n in range(count):
                anchor = datetime.fromtimestamp(now + n // 10 * 0.1, UTC)
                every = 1.0 if s.chain < 100 else 5.0
                await engine.deploy(on_time, f"d{n}", schedule=Interval(every, anchor=anchor))
            LATE.clear()
            await asyncio.sleep(seconds)
            late = list(LATE)
            await running.cancel()
    return Result(
        f"start of a scheduled run, {count} schedules",
        statistics.median(late),
        "ms late",
        100,
        20,
        {"ms": late},
    )


def _child(args: Sequence[str | Path]) -> str:
    done = subprocess.run(
        [sys.executable, *args], check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    return done.stdout


def _seconds(args: list[str]) -> float:
    began = time.perf_counter()
    _child(args)
    return time.perf_counter() - began


CASES: dict[str, Callable[[Sizes], Awaitable[Result]]] = {
    "off-noop": off_nothing,
    "off-once": off_once,
    "strict-noop": strict_nothing,
    "strict-once": strict_once,
    "timeout-noop": timeout_nothing,
    "timeout-once": timeout_once,
    "chain": chain,
    "resume": resume,
    "recover-calls": recover_calls,
    "recover-runs": recover_runs,
    "simulation": simulation,
    "growth": growth,
    "growth-strict": growth_strict,
    "stream": stream,
    "memory": memory,
    "released": released,
    "import": importing,
    "help": helping,
    "handover": handover,
    "lateness": lateness,
}

#: Cases that have nothing to do with the event loop: measured once.
LOOPLESS = frozenset({"simulation", "stream", "memory", "released", "import", "help"})

__all__ = ["CASES", "LOOPLESS", "Result", "Sizes"]
