"""Named limits in user code: ``async with concurrency("db")`` and ``await rate_limit("api")``."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from types import TracebackType
from typing import Any

from asyncflow.context import ENGINE, current_call, current_run
from asyncflow.errors import ConcurrencyDeadlock, InvalidOption, NoEngine, QueueTimeout
from asyncflow.limits import Limit
from asyncflow.run import Hold


class concurrency:  # noqa: N801 - used as a function that gives a context manager
    """Hold units of a named limit while a block of code runs.

    Use ``async with`` in async code and plain ``with`` in the threads of sync tasks. Waiting
    counts against the task's timeout, and the slots of the task are kept meanwhile.

    Args:
        name: of the limit.
        occupy: units to hold.
        limit: the size, where nothing else has set one.
        timeout: seconds to wait; None waits as long as it takes, 0 does not wait.

    Raises:
        QueueTimeout: no unit came free in time.
        ConcurrencyDeadlock: this code holds itself what it waits for, or it is more than there is.
        NoEngine: there is no engine.
    """

    def __init__(
        self,
        name: str,
        occupy: int = 1,
        limit: float | None = None,
        timeout: float | None = None,
    ) -> None:
        if not isinstance(occupy, int) or occupy < 1:
            raise InvalidOption(f"concurrency({name!r}): occupy={occupy!r}: give 1 or more")
        self.name = name
        self.occupy = occupy
        self.limit = limit
        self.timeout = timeout
        self._hold: Hold | None = None
        self._engine: Any = None

    async def __aenter__(self) -> concurrency:
        engine = self._engine = _engine(f"concurrency({self.name!r})")
        limit = engine.named.declare(self.name, self.limit, None)
        call, run = current_call(), current_run()
        self._refuse_deadlock(limit)
        hold = Hold(run or self, call, ((limit, self.occupy),), 0)
        if engine.sharing is not None:
            await engine.sharing.ensure(limit, self.occupy)
        try:
            async with asyncio.timeout(self.timeout):
                await engine.executor.hold(hold)
        except TimeoutError:
            raise QueueTimeout(
                f"no {self.occupy} of the limit {self.name!r} ({limit.whole:g}) came free within"
                f" {self.timeout:g} s"
            ) from None
        hold.carrier = asyncio.current_task()
        self._hold = hold
        _holders(engine).setdefault(self.name, []).append(hold)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._release()

    def _release(self) -> None:
        hold, self._hold = self._hold, None
        if hold is not None:
            _holders(self._engine)[self.name].remove(hold)
            self._engine.executor.release(hold)

    def _refuse_deadlock(self, limit: Limit) -> None:
        """Raise if this very task holds so much already that there can never be enough.

        What other tasks hold may come free: code may do several things at once.
        """
        carrier = asyncio.current_task()
        held = sum(
            hold.limits[0][1]
            for hold in _holders(self._engine).get(self.name, ())
            if hold.carrier is carrier
        )
        if self.occupy > limit.whole > 0 or (held and held + self.occupy > limit.whole):
            raise ConcurrencyDeadlock(
                f"{self.occupy} of the limit {self.name!r} can never come free: its size is"
                f" {limit.whole:g}, and the code that asks for it holds {held} of it itself"
            )

    def __enter__(self) -> concurrency:
        engine = self._engine = _engine(f"concurrency({self.name!r})")
        engine.block(self.__aenter__())
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._engine.call(self._release)


class rate_limit:  # noqa: N801 - used as a function: ``await rate_limit("api")``
    """Wait until the named rate allows another start.

    Args:
        name: of the rate.
        occupy: how many starts to take at once.
        limit: starts per period, where nothing else has set them.
        period: seconds.
        key: gives each value of it a rate of its own, such as a host name.

    Raises:
        NoEngine: there is no engine.
    """

    def __init__(
        self,
        name: str,
        occupy: int = 1,
        limit: float | None = None,
        period: float | None = None,
        key: str | None = None,
    ) -> None:
        if (limit is None) != (period is None):
            raise InvalidOption(f"rate_limit({name!r}): give limit and period together")
        if not isinstance(occupy, int) or occupy < 1:
            raise InvalidOption(f"rate_limit({name!r}): occupy={occupy!r}: give 1 or more")
        if limit is not None and occupy > limit > 0:
            raise InvalidOption(f"rate_limit({name!r}): {occupy} at once can never be had")
        self.name = name if key is None else f"{name}:{key}"
        self.occupy = occupy
        self.limit = limit
        self.period = period

    def __await__(self) -> Generator[Any, Any, None]:
        return self._take().__await__()

    async def _take(self) -> None:
        engine = _engine(f"rate_limit({self.name!r})")
        limit = engine.named.declare(self.name, self.limit, self.period)
        run = current_run()
        hold = Hold(run or self, current_call(), ((limit, self.occupy),), 0)
        await engine.executor.hold(hold)
        if not limit.timed:
            # A name that is no rate (yet) limits nothing.
            engine.executor.release(hold)

    def wait(self) -> None:
        """The same, in the thread of a sync task."""
        _engine(f"rate_limit({self.name!r})").block(self._take())


def _engine(what: str) -> Any:
    run = current_run()
    engine = run.engine if run is not None else ENGINE.get()
    if engine is None:
        raise NoEngine(f"{what} was used outside of a flow and of `async with Engine()`")
    return engine


def _holders(engine: Any) -> dict[str, list[Hold]]:
    holders: dict[str, list[Hold]] = engine.holders
    return holders
