"""DBOS on SQLite. Each step is committed before its result is handed on.

The fan-out calls steps in one workflow, which costs DBOS least; its queues, which make a
workflow of each task, cost more. Steps begin in the order of their numbers, as DBOS asks.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

from common import CONCURRENCY, Answer, Clock, Work, body, check, die, main, timed, total
from dbos import DBOS, SetWorkflowID

#: Of the run that is stopped and resumed.
RUN = "stopped"

ran = 0
stopping = False
ended = threading.Event()
ended_at = 0.0


@DBOS.step()
async def nothing(i: int) -> int:
    global ran
    ran += 1
    return i


@DBOS.step()
async def step(x: int) -> int:
    return x + 1


@DBOS.workflow()
async def fan(n: int) -> int:
    global ended_at
    semaphore = asyncio.Semaphore(CONCURRENCY)

    async def one(i: int) -> int:
        async with semaphore:
            return await nothing(i)

    with body():
        result = sum(await asyncio.gather(*[one(i) for i in range(n)]))
    if stopping:
        die()
    # Not when somebody polls for the result: that delay is not the work's.
    ended_at = time.perf_counter()
    ended.set()
    return result


@DBOS.workflow()
async def chain(n: int) -> int:
    x = 0
    with body():
        for _ in range(n):
            x = await step(x)
    return x


def launch(work: Work) -> None:
    DBOS(
        config={
            "name": "bench",
            "system_database_url": f"sqlite:///{work.folder}/dbos.db",
            "log_level": "WARNING",
            "application_version": "1",
        }
    )
    DBOS.launch()


def launched(work: Work, run: Callable[[], Awaitable[Any]]) -> Any:
    async def within() -> Any:
        launch(work)
        try:
            return await run()
        finally:
            DBOS.destroy()

    return asyncio.run(within())


def hello(work: Work) -> Answer:
    check(launched(work, lambda: fan(1)), 0)
    return {}


def measure(work: Work) -> Answer:
    async def run() -> Answer:
        await fan(work.warm)
        return {
            "fan": await timed(fan(work.n), total(work.n)),
            "chain": await timed(chain(work.chain), work.chain),
        }

    answer: Answer = launched(work, run)
    return answer


def stop(work: Work) -> Answer:
    global stopping
    stopping = True

    async def run() -> None:
        with SetWorkflowID(RUN):
            await fan(work.n)

    launched(work, run)
    raise RuntimeError("it was to be killed")


def resume(work: Work) -> Answer:
    """From the launch, which finds the run that was cut off, to the end of that run."""

    async def run() -> Answer:
        # Recovered by a thread of DBOS; the parent's time limit ends a wait for nothing.
        await asyncio.to_thread(ended.wait)
        sample = clock.sample(ended_at)
        handle: Any = await DBOS.retrieve_workflow_async(RUN)
        check(await handle.get_result(), total(work.n))
        return {"resume": sample, "ran again": ran}

    clock = Clock()
    answer: Answer = launched(work, run)
    return answer


if __name__ == "__main__":
    main(["dbos", "sqlalchemy"], hello=hello, measure=measure, stop=stop, resume=resume)
