"""Threads for plain functions: started on demand, reused, and named.

How many may run at once is a limit like others and decided by the machine; a thread that waits
for a child has lent its slot, so there may be more threads than slots for a while, never more
running ones. A thread cannot be stopped: it is done when its function returns.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from contextvars import Context, copy_context
from itertools import count
from typing import Any

from asyncflow.errors import Unresponsive

Job = tuple[Callable[[], Any], Context, Callable[[Any, BaseException | None], None]]

#: Seconds that an idle thread waits for more work before it ends.
IDLE = 10.0


class Threads:
    """The threads of one engine."""

    def __init__(self, name: str, loop: asyncio.AbstractEventLoop) -> None:
        self._name = name
        self._loop = loop
        self._lock = threading.Condition()
        self._jobs: deque[Job] = deque()
        self._idle = 0
        self._threads: set[threading.Thread] = set()
        self._number = count(1)
        self._closed = False

    def start(
        self,
        function: Callable[[], Any],
        context: Context,
        done: Callable[[Any, BaseException | None], None],
    ) -> None:
        """Run *function* in *context* on a thread, then `done(result, error)` on the loop."""
        with self._lock:
            if self._closed:
                raise RuntimeError("the threads of a closed engine were asked to work")
            self._jobs.append((function, context, done))
            if self._idle >= len(self._jobs):
                self._lock.notify()
                return
            thread = threading.Thread(
                target=self._work, name=f"{self._name}-{next(self._number)}", daemon=True
            )
            self._threads.add(thread)
        thread.start()

    def run(self, function: Callable[[], Any]) -> asyncio.Future[Any]:
        """Run *function* on a thread, in a copy of this context; what it returns, or raises."""
        waiter: asyncio.Future[Any] = self._loop.create_future()

        def done(result: Any, error: BaseException | None) -> None:
            if not waiter.done():
                if error is None:
                    waiter.set_result(result)
                elif isinstance(error, StopIteration):
                    waiter.set_exception(RuntimeError(f"the function raised {error!r}"))
                else:
                    waiter.set_exception(error)

        self.start(function, copy_context(), done)
        return waiter

    def _work(self) -> None:
        while (job := self._next()) is not None:
            function, context, done = job
            result, error = None, None
            try:
                result = context.run(function)
            except BaseException as caught:
                error = caught
            try:
                self._loop.call_soon_threadsafe(done, result, error)
            except RuntimeError:
                break  # the loop is closed: nobody is left to tell
            del job, function, context, done, result, error
        with self._lock:
            self._threads.discard(threading.current_thread())

    def _next(self) -> Job | None:
        with self._lock:
            self._idle += 1
            try:
                while not self._jobs:
                    if self._closed or not self._lock.wait(IDLE):
                        # Nothing came; but look once more, for a job that came just now.
                        if self._jobs:
                            break
                        return None
                return self._jobs.popleft()
            finally:
                self._idle -= 1

    async def aclose(self, grace: float) -> None:
        """Wait for the threads to end, at most *grace* seconds.

        Raises:
            Unresponsive: some are still running; it names them.
        """
        with self._lock:
            self._closed = True
            self._lock.notify_all()
            threads = list(self._threads)
        deadline = self._loop.time() + grace
        for thread in threads:
            while thread.is_alive() and self._loop.time() < deadline:  # noqa: ASYNC110 - no event tells it
                await asyncio.sleep(0.002)
        alive = [t.name for t in threads if t.is_alive()]
        if alive:
            raise Unresponsive(
                f"{len(alive)} threads still run code that did not return within {grace:g} s:"
                f" {', '.join(alive)}"
            )
