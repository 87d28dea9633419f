"""The one writer of a store: runs blocking functions one after another, each to its end.

A function runs on the writer's thread, or, when nothing else is being written and it is known
to be short, in place on the event loop: a lone commit takes 20-30 us in place, and through the
thread 50-140 us while the loop is idle and 70-325 us while it is busy, the less where both are
on one core (synchronous=NORMAL, 2 cores, ext4; ``python -m benchmarks.store_write`` measures
it). Either way no two run at once, and none can be cut off in the middle: cancelling a waiter
does not stop the write.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from queue import SimpleQueue
from time import perf_counter
from typing import Any, TypeVar

from asyncflow.errors import StoreClosed

T = TypeVar("T")

Job = tuple[Callable[[], Any], Callable[[Any, BaseException | None], None]]

#: A write in place that takes longer than this (seconds) sends the next ones to the thread.
SLOW = 0.005
#: For so many writes.
DETOUR = 64


class Writer:
    """Serialises the writes of one store.

    Args:
        name: of the thread, for people who look at stacks.
        here: whether short functions may run on the loop's own thread.
    """

    def __init__(self, name: str, loop: asyncio.AbstractEventLoop, *, here: bool) -> None:
        self._name = name
        self._loop = loop
        self._here = here
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._queued = 0
        self._thread: threading.Thread | None = None
        self._detour = 0
        self._closed = False

    @property
    def idle(self) -> bool:
        """Whether a short write may run in place now."""
        return self._here and not self._queued

    def is_current_thread(self) -> bool:
        """Whether the caller runs on the writer's own thread."""
        return threading.current_thread() is self._thread

    def here(self, function: Callable[[], T]) -> T:
        """Run a short function in place; only while `idle`."""
        began = perf_counter()
        try:
            return function()
        finally:
            if perf_counter() - began > SLOW:
                self._detour = DETOUR

    def prefers_here(self) -> bool:
        """Whether a write should run in place: possible, and the disk has been quick."""
        if self._detour:
            self._detour -= 1
            return False
        return self._here and not self._queued

    async def shortly(self, function: Callable[[], T]) -> T:
        """Run a short function: in place where the disk has been quick, else as `do`."""
        return self.here(function) if self.prefers_here() else await self.do(function)

    def submit(
        self, function: Callable[[], Any], done: Callable[[Any, BaseException | None], None]
    ) -> None:
        """Run *function* on the thread, then `done(result, error)` on the loop."""
        if self._closed:
            raise StoreClosed("the engine is closed, nothing more can be stored")
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
            self._thread.start()
        self._queued += 1
        self._jobs.put((function, done))

    async def do(self, function: Callable[[], T]) -> T:
        """Run *function* on the thread and wait for it, also while being cancelled."""
        waiter: asyncio.Future[T] = self._loop.create_future()

        def done(result: T, error: BaseException | None) -> None:
            if waiter.cancelled():
                return
            if error is None:
                waiter.set_result(result)
            else:
                waiter.set_exception(error)

        self.submit(function, done)
        return await uncancelled(waiter)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            function, done = job
            result, error = None, None
            try:
                result = function()
            except BaseException as caught:
                error = caught
            try:
                self._loop.call_soon_threadsafe(self._finish, done, result, error)
            except RuntimeError:
                return  # the loop is closed: nobody is left to tell
            del job, function, done, result, error

    def _finish(
        self,
        done: Callable[[Any, BaseException | None], None],
        result: Any,
        error: BaseException | None,
    ) -> None:
        self._queued -= 1
        done(result, error)

    async def aclose(self) -> None:
        """Finish what is queued and end the thread."""
        self._closed = True
        thread, self._thread = self._thread, None
        if thread is None:
            return
        ended: asyncio.Future[None] = self._loop.create_future()

        def done(_result: Any, _error: BaseException | None) -> None:
            if not ended.done():
                ended.set_result(None)

        self._jobs.put((lambda: None, done))
        self._queued += 1
        self._jobs.put(None)
        await uncancelled(ended)
        thread.join()


async def uncancelled(waiter: asyncio.Future[T]) -> T:
    """Wait for *waiter* to the end; a cancellation that comes meanwhile is raised after it.

    For work that goes on whether or not anybody waits, such as a commit.
    """
    cancelled: asyncio.CancelledError | None = None
    while not waiter.done():
        try:
            await asyncio.wait([waiter])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        if not waiter.cancelled():
            waiter.exception()  # seen: else asyncio reports it as never retrieved
        raise cancelled
    return waiter.result()
