"""asyncflow, with the durability that the variant names."""

from __future__ import annotations

import asyncio

from common import CONCURRENCY, Answer, Clock, Work, body, check, die, main, timed, total

from asyncflow import Engine, MemoryStore, flow, task

ran = 0
stopping = False


@task
async def nothing(i: int) -> int:
    global ran
    ran += 1
    return i


@task
async def step(x: int) -> int:
    return x + 1


@flow(max_concurrency=CONCURRENCY)
async def fan(n: int) -> int:
    with body():
        result = sum(await nothing.map(range(n)))
    if stopping:
        die()
    return result


@flow
async def chain(n: int) -> int:
    x = 0
    with body():
        for _ in range(n):
            x = await step(x)
    return x


def engine(work: Work) -> Engine:
    store = MemoryStore() if work.variant == "off" else work.folder / "asyncflow.db"
    return Engine(store, durability=work.variant)


def hello(work: Work) -> Answer:
    async def run() -> int:
        async with engine(work) as opened:
            return await opened.run(fan, 1)

    check(asyncio.run(run()), 0)
    return {}


def measure(work: Work) -> Answer:
    async def run() -> Answer:
        async with engine(work) as opened:
            await opened.run(fan, work.warm)
            return {
                "fan": await timed(opened.run(fan, work.n), total(work.n)),
                "chain": await timed(opened.run(chain, work.chain), work.chain),
            }

    return asyncio.run(run())


def stop(work: Work) -> Answer:
    global stopping
    stopping = True

    async def run() -> None:
        async with engine(work) as opened:
            await opened.run(fan, work.n)

    asyncio.run(run())
    raise RuntimeError("it was to be killed")


def resume(work: Work) -> Answer:
    """From opening the database to the result of the run that was cut off."""

    async def run() -> Answer:
        clock = Clock()
        async with engine(work) as opened:
            (run,) = await opened.recover()
            result = await run
            sample = clock.sample()
        check(result, total(work.n))
        return {"resume": sample, "ran again": ran}

    return asyncio.run(run())


if __name__ == "__main__":
    main(["asyncflow"], hello=hello, measure=measure, stop=stop, resume=resume)
