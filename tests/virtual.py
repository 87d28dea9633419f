"""Virtual time: where nothing is left to do but to wait, the clock jumps to the next timer.

A test of timeouts and delays then takes no time, and a busy machine cannot make it fail. What a
thread works on is waited for in real time, without the clock moving.
"""

from __future__ import annotations

import asyncio
import functools
import selectors
from collections.abc import Callable, Coroutine
from typing import Any
from unittest import mock

from asyncflow import Engine, MemoryStore
from asyncflow.writer import Writer

#: What the wall clock shows at the start, in seconds since the epoch.
START = 1_800_000_000.0
#: Real seconds after which a loop that waits for a thread or for nothing at all gives up.
PATIENCE = 30.0


class _Selector(selectors.DefaultSelector):  # type: ignore[misc,valid-type] # its base depends on the platform
    loop: VirtualLoop

    def select(self, timeout: float | None = None) -> Any:
        if timeout is not None and timeout <= 0:
            return super().select(0)
        if timeout is None or self.loop.elsewhere:
            ready = super().select(PATIENCE)
            assert ready, "nothing is left that could happen, and yet the test goes on"
            return ready
        ready = super().select(0)
        if not ready:
            self.loop.jump()
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time moves only when it would have slept."""

    def __init__(self) -> None:
        self._now = 0.0
        self.elsewhere = 0  # functions that threads of the engine are running
        selector = _Selector()
        selector.loop = self
        super().__init__(selector)

    def time(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        """Let time pass, as code that blocks the loop does."""
        self._now += seconds

    def jump(self) -> None:
        """To the very moment of the next timer: adding up differences would miss it by a bit."""
        scheduled: list[asyncio.TimerHandle] = self._scheduled  # type: ignore[attr-defined] # asyncio's own heap
        self._now = max(self._now, scheduled[0].when())

    def run_in_executor(  # type: ignore[override] # less exact than that of asyncio
        self, executor: Any, func: Any, *args: Any
    ) -> asyncio.Future[Any]:
        self.elsewhere += 1
        future = super().run_in_executor(executor, func, *args)
        future.add_done_callback(lambda _: self._back())
        return future

    def _back(self) -> None:
        self.elsewhere -= 1


class LoopClock:
    """Wall time that goes with the running loop's."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()

    def time(self) -> float:
        return START + self._loop.time()


def virtual_engine(store: Any = None, **options: Any) -> Engine:
    """An engine in virtual time; its state is in memory unless a store is given."""
    return Engine(store or MemoryStore(), **{"seed": 1, "clock": LoopClock(), **options})


def advance(seconds: float) -> None:
    """Hold the running loop for so long."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    loop.advance(seconds)


def now() -> float:
    """The running loop's time."""
    return asyncio.get_running_loop().time()


def virtually(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run an async test in virtual time. It opens its engine itself, with `virtual_engine`."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        submit = Writer.submit

        def counted(self: Writer, function: Any, done: Any) -> None:
            loop = self._loop
            if isinstance(loop, VirtualLoop):
                loop.elsewhere += 1

            def then(result: Any, error: BaseException | None) -> None:
                if isinstance(loop, VirtualLoop):
                    loop._back()
                done(result, error)

            submit(self, function, then)

        with (
            mock.patch.object(Writer, "submit", counted),
            asyncio.Runner(loop_factory=VirtualLoop) as runner,
        ):
            runner.run(test(*args, **kwargs))

    return run
