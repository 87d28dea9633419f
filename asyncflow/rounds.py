"""Looking again and again at what there is to do, in the background of an engine."""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from asyncflow.errors import AsyncflowError
from asyncflow.failures import told

if TYPE_CHECKING:
    from asyncflow.engine import Engine

#: Seconds that a round may take to end when its engine is closed.
PATIENCE = 5.0


class Rounds(ABC):
    """Something that an engine looks at again and again; never two rounds at once.

    Args:
        engine: that it belongs to.
        what: in messages, such as "schedules".
        every: seconds to the next round after one that failed.
    """

    def __init__(self, engine: Engine, what: str, every: float) -> None:
        self._engine = engine
        self._what = what
        self._every = every
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._again = False  # something has come up during a round

    @property
    @abstractmethod
    def active(self) -> bool:
        """Whether there is anything to look at."""

    @abstractmethod
    async def round(self) -> float:
        """Do what there is to do now; seconds to the next round."""

    def look(self) -> None:
        """Have a round as soon as the loop comes to it."""
        self.later(0.0)

    def later(self, seconds: float) -> None:
        """Have a round in so many seconds, and none before."""
        engine = self._engine
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if engine.usable_still and self.active:
            self._timer = engine.loop.call_later(seconds, self._wake)

    def sooner(self, seconds: float) -> None:
        """Have a round in so many seconds, if the next one is not before that."""
        if self._task is None or not self._task.done():
            return
        if self._timer is None or self._timer.when() > self._engine.loop.time() + seconds:
            self.later(seconds)

    def _wake(self) -> None:
        self._timer = None
        if self._task is not None and not self._task.done():
            self._again = True
            return
        self._task = self._engine.apart().run(
            self._engine.loop.create_task, self._serve(), name=f"asyncflow-{self._what}"
        )

    async def _serve(self) -> None:
        wait = self._every
        try:
            wait = await self.round()
        except AsyncflowError as error:
            self._report(str(error))
        except Exception as error:
            # Of whatever is wrong with one thing, the others must not stand still.
            self._report(told(error, 500))
        finally:
            if self._again:
                self._again, wait = False, 0.0
            self.later(wait)

    def _report(self, why: str) -> None:
        self._engine.report(f"{self._what} cannot be looked at, which is tried again: {why}")

    async def aclose(self) -> None:
        """Have no more rounds; one that is under way ends soon, or is cut off."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        task = self._task
        if task is None or task.done():
            return
        await asyncio.wait([task], timeout=PATIENCE)
        if not task.done():
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
