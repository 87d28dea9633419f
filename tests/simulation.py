"""Flows for the simulation, and many seeds of them by one command.

python -m tests.simulation --seeds 10000
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time

from asyncflow import as_completed, flow, random, runtime, sleep, task
from asyncflow.testing import simulate


@task(retries=2, retry_delay_seconds=1, timeout_seconds=60)
async def fetch(i: int) -> int:
    await asyncio.sleep(i % 3)
    if i % 5 == 0 and runtime.task_run.attempt == 1:
        raise OSError(i)
    return i


@task
def parse(x: int) -> int:
    return x * 2


@task(max_concurrency=1)
async def quick(x: int) -> int:
    return x


@task
async def fails(x: int) -> int:
    await asyncio.sleep(1)
    raise ValueError(x)


@flow
async def child(n: int) -> int:
    await sleep(10)
    return sum(await fetch.map(range(n)))


@flow(max_concurrency=3)
async def mixed(n: int = 6) -> list[object]:
    """About twenty calls: a pipeline of maps, a child run, the order of completion, a failure."""
    rows = parse.map(fetch.map(range(n)))
    below = child.submit(3)
    total = 0
    async for future in as_completed([fetch.submit(100 + i) for i in range(4)]):
        total += await future
    try:
        await fails(7)
    except ValueError as error:
        total += await quick(int(error.args[0]))
    if random() < 2:
        total += sum(await quick.map(range(5)))

    async def pair(i: int) -> int:
        # Which of these calls are made first is left to chance.
        return await quick(await fetch(i) + 1)

    pairs = await asyncio.gather(*[pair(i) for i in (11, 12, 13)])
    return [total, await rows, await below, pairs]


@flow
async def doomed() -> int:
    """Ends with the failure of one of its calls."""
    await quick.map(range(3))
    return await fails(3)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation")
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0)
    options = parser.parse_args()
    began, left, at, fine = time.monotonic(), options.seeds, options.first, True
    while left > 0:
        n = min(500, left)
        found = simulate(mixed, seeds=range(at, at + n))
        fine = fine and bool(found)
        rate = (options.seeds - left + n) / (time.monotonic() - began)
        print(f"seeds {at} to {at + n - 1}: {found}; {rate:.0f} seeds a second", flush=True)
        for trial in found.failed[:3]:
            print(f"  seed {trial.seed}: {'; '.join(trial.problems[:3])}")
        at, left = at + n, left - n
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
