"""Named limits in user code: ``async with concurrency("db")`` and ``await rate_limit("api")``."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Collection, Generator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from asyncflow.context import ENGINE, current_call, current_run
from asyncflow.errors import (
    BlockingCall,
    ConcurrencyDeadlock,
    InvalidOption,
    NoEngine,
    QueueTimeout,
)
from asyncflow.limits import Limit, Rate
from asyncflow.run import Hold

if TYPE_CHECKING:
    from asyncflow.engine import Engine


class concurrency:  # noqa: N801 - used as a function that gives a context manager
    """Hold units of a named limit while a block of code runs.

    Use ``async with`` in async code and plain ``with`` in the threads of sync tasks. Waiting
    counts against the task's timeout, and the slots of the task are kept meanwhile. One object
    may be used many times, also at once.

    Args:
        name: of the limit.
        occupy: units to hold.
        limit: the size, where nothing else has set one.
        timeout: seconds to wait; None waits as long as it takes, 0 does not wait.

    Raises:
        QueueTimeout: no unit came free in time.
        ConcurrencyDeadlock: this code holds itself what it waits for, or those who hold it wait
            for what this code holds, or it is more than there is.
        BlockingCall: a plain ``with`` on the event loop.
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
        self._held: list[tuple[Engine, Hold]] = []

    async def __aenter__(self) -> concurrency:
        await self._enter(self._engine(), asyncio.current_task())
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        engine, hold = self._of(asyncio.current_task())
        self._release(engine, hold)

    def __enter__(self) -> concurrency:
        engine = self._engine()
        if engine.on_loop():
            raise BlockingCall(
                f"with concurrency({self.name!r}) would block the event loop: write"
                f" async with concurrency({self.name!r})"
            )
        engine.block(self._enter(engine, threading.get_ident()))
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        engine, hold = self._of(threading.get_ident())
        engine.call(self._release, engine, hold)

    def _engine(self) -> Engine:
        return _engine(f"concurrency({self.name!r})")

    async def _enter(self, engine: Engine, carrier: object) -> None:
        call, run = current_call(), current_run()
        if run is None:
            await engine.refresh_limits()
        limit = engine.named.declare(self.name, self.limit, None)
        hold = Hold(run or self, call, ((limit, self.occupy),), 0)
        hold.carrier = carrier
        hold.patient = self.timeout is None
        if engine.sharing is not None:
            await engine.sharing.ensure(limit, self.occupy)
        refuse_deadlock(hold, engine.holders, engine.waiters)
        engine.waiters[hold] = None
        try:
            async with asyncio.timeout(self.timeout):
                await engine.executor.hold(hold)
        except TimeoutError:
            raise QueueTimeout(
                f"no {self.occupy} of the limit {self.name!r} ({limit.whole:g}) came free within"
                f" {self.timeout:g} s"
            ) from None
        finally:
            del engine.waiters[hold]
        hold.since = engine.clock.time()
        engine.holders.setdefault(carrier, []).append(hold)
        self._held.append((engine, hold))

    def _of(self, carrier: object) -> tuple[Engine, Hold]:
        """What this task or thread took last; else, where it was passed on, what anybody did."""
        for engine, hold in reversed(self._held):
            if hold.carrier is carrier or hold.carrier == carrier:
                return engine, hold
        return self._held[-1]

    def _release(self, engine: Engine, hold: Hold) -> None:
        self._held.remove((engine, hold))
        holds = engine.holders[hold.carrier]
        holds.remove(hold)
        if not holds:
            del engine.holders[hold.carrier]
        engine.executor.release(hold)


def refuse_deadlock(
    asking: Hold, holders: Mapping[object, Collection[Hold]], waiters: Collection[Hold]
) -> None:
    """Raise if what is asked for can never come free.

    Whoever does not wait is taken to give back what it holds, and so is whoever gives up after
    a while. Of the others each in turn for whom there would be enough goes on, and gives back
    its part; who is left then waits for those who wait for it. Only one who holds something
    can close such a circle.

    Args:
        holders: what is held, by carrier.

    Raises:
        ConcurrencyDeadlock: it says who holds what.
    """
    limit, units = asking.limits[0]
    own = _held(holders.get(asking.carrier, ())).get(limit, 0)
    if limit.whole and own + units > limit.whole and (own or units > limit.whole):
        raise ConcurrencyDeadlock(
            f"{units} of the limit {limit.name!r} can never come free: its size is"
            f" {limit.whole:g}, and the code that asks for it holds {own} of it itself"
        )
    if not asking.patient or asking.carrier not in holders:
        return
    stuck = {asking.carrier: asking}
    for waiter in waiters:
        if waiter.patient and waiter.carrier in holders and waiter.live and not waiter.holding:
            stuck[waiter.carrier] = waiter
    held = {carrier: _held(holders[carrier]) for carrier in stuck}
    moved = True
    while moved:
        moved = False
        for carrier, waiter in list(stuck.items()):
            wanted, n = waiter.limits[0]
            kept = sum(held[other].get(wanted, 0) for other in stuck)
            if kept + n <= wanted.whole or not wanted.whole:
                del stuck[carrier]
                moved = True
    if asking.carrier in stuck:
        told = "; ".join(
            f"{_who(w)} holds {_told(held[c])} and waits for {w.limits[0][0].name!r}"
            for c, w in stuck.items()
        )
        raise ConcurrencyDeadlock(
            f"a circle of waits: {told}: take named limits in the same order everywhere"
        )


def _held(holds: Collection[Hold]) -> dict[Limit, int]:
    held: dict[Limit, int] = {}
    for hold in holds:
        for limit, n in hold.limits:
            held[limit] = held.get(limit, 0) + n
    return held


def _who(hold: Hold) -> str:
    return hold.call.display if hold.call is not None else "code outside of tasks"


def _told(held: dict[Limit, int]) -> str:
    return ", ".join(f"{n} of {limit.name!r}" for limit, n in held.items())


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
        self.name = name
        self.key = key
        self.occupy = occupy
        self.limit = limit
        self.period = period

    def __await__(self) -> Generator[Any, Any, None]:
        return self._take().__await__()

    async def _take(self) -> None:
        engine = _engine(f"rate_limit({self.name!r})")
        run = current_run()
        if run is None:
            await engine.refresh_limits()
        limit = engine.named.keyed(self.name, self.key, self.limit, self.period)
        if isinstance(limit, Rate) and self.occupy > limit.most > 0:
            raise InvalidOption(
                f"rate_limit({limit.name!r}): {self.occupy} at once can never be had"
            )
        hold = Hold(run or self, current_call(), ((limit, self.occupy),), 0)
        await engine.executor.hold(hold)
        # Only its start counts; of a name that is no rate (yet), not even that.
        engine.executor.release(hold)

    def wait(self) -> None:
        """The same, in the thread of a sync task.

        Raises:
            BlockingCall: on the event loop.
        """
        engine = _engine(f"rate_limit({self.name!r})")
        if engine.on_loop():
            raise BlockingCall(
                f"rate_limit({self.name!r}).wait() would block the event loop: write"
                f" await rate_limit({self.name!r})"
            )
        engine.block(self._take())


def _engine(what: str) -> Engine:
    run = current_run()
    engine: Engine | None = run.engine if run is not None else ENGINE.get()
    if engine is None:
        raise NoEngine(f"{what} was used outside of a flow and of `async with Engine()`")
    return engine
