"""The flows whose runs are in the stored databases of former schema versions."""

from __future__ import annotations

import asyncio
import os

from asyncflow import flow, task


@task
async def double(x: int) -> int:
    return 2 * x


@flow
async def finishes(n: int = 3) -> int:
    return sum(await double.map(range(n)))


@flow
async def fails(n: int = 2) -> int:
    total = sum(await double.map(range(n)))
    if os.environ.get("OLD_FLOWS"):
        raise RuntimeError("as it was")
    return total


@flow
async def waits(n: int = 4) -> int:
    total = sum(await double.map(range(n)))
    if os.environ.get("OLD_FLOWS"):
        await asyncio.Event().wait()
    return total
