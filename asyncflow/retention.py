"""Old runs go: in small steps, so that nobody who writes has to wait."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from asyncflow.errors import AsyncflowError

if TYPE_CHECKING:
    from asyncflow.engine import Engine
    from asyncflow.store.base import Store

#: Rows that one transaction removes.
ROWS = 500
#: Runs that are looked up at once.
RUNS = 100
#: Seconds from opening an engine to the first look, and from one look to the next.
FIRST, EVERY = 5.0, 3600.0
#: Seconds between two steps, in which others write.
BREATH = 0.02


def prune_run(store: Store, run: int) -> int:
    """Remove one ended run at once; how many runs went, with those below it."""
    while not store.trim_run(run, ROWS):
        pass
    return store.delete_run(run)


class Retention:
    """Removes the old runs of one engine's store, in the background.

    Args:
        days: how old an ended run may become; None: nothing is removed for its age.
        keep_last: asked how many ended runs of each flow are kept, by the flow's name; flows
            that it does not name keep all that are young enough.
    """

    def __init__(
        self, engine: Engine, days: float | None, keep_last: Callable[[], dict[str, int]]
    ) -> None:
        self._engine = engine
        self._days = days
        self._keep_last = keep_last
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Look for old runs soon, and from then on again and again."""
        self._timer = self._engine.loop.call_later(FIRST, self._begin)

    def _begin(self) -> None:
        self._task = self._engine.loop.create_task(self._serve(), name="asyncflow-retention")

    async def aclose(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _serve(self) -> None:
        try:
            await self.once()
        except AsyncflowError as error:
            self._engine.report(f"old runs cannot be removed, and are next time: {error}")
        self._timer = self._engine.loop.call_later(EVERY, self._begin)

    async def once(self) -> int:
        """Remove what is too old, or too many of its flow; how many root runs went.

        Results for other runs go with their run, or when they have expired.
        """
        engine, gone = self._engine, 0
        now = engine.clock.time()
        expired = ROWS
        while expired == ROWS:
            expired = await engine.writer.do(lambda: engine.store.drop_cached(None, now, ROWS))
            await asyncio.sleep(BREATH)
        if self._days is not None:
            before = now - self._days * 86_400
            await self._remove_planned(before)
            gone += await self._remove(before, None, 0)
        for flow, keep in self._keep_last().items():
            gone += await self._remove(now + 1, flow, keep)
        return gone

    async def _remove(self, before: float, flow: str | None, keep: int) -> int:
        store, writer, gone = self._engine.store, self._engine.writer, 0
        while True:
            found = await writer.do(lambda: store.expired(before, flow, keep, RUNS))
            for pk, _ in found:
                await self._remove_run(pk)
            gone += len(found)
            if len(found) < RUNS:
                return gone

    async def _remove_planned(self, before: float) -> None:
        """Old ticks and deliveries, and events that belong to no run."""
        store, writer = self._engine.store, self._engine.writer
        steps: list[Callable[[], int]] = [
            lambda: store.plan(lambda planning: planning.prune(before, ROWS)),
            lambda: store.prune_events(before, ROWS),
        ]
        for step in steps:
            gone = ROWS
            while gone >= ROWS:
                gone = await writer.do(step)
                await asyncio.sleep(BREATH)

    async def _remove_run(self, pk: int) -> None:
        store, writer = self._engine.store, self._engine.writer
        done = False
        while not done:
            done = await writer.do(lambda: store.trim_run(pk, ROWS))
            await asyncio.sleep(BREATH)
        await writer.do(lambda: store.delete_run(pk))
