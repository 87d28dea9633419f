"""Sees to it that the named limits of a store hold for all its engines together.

See `asyncflow.shares` for how they are divided. An engine asks the store only when it needs more
than it has, and, while it has anything, a few times a second whether others want some of it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from asyncflow.limits import Limit, Rate
from asyncflow.shares import Demand, Part

if TYPE_CHECKING:
    from asyncflow.engine import Engine

#: Seconds between two looks at what others want, and while somebody here waits for more.
CALM, HURRY = 0.25, 0.05
#: Looks without any use after which a share is given back.
IDLE = 8


class Sharing:
    """The shares of one engine, on a store that others may use."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._limits: dict[str, Limit] = {}
        self._idle: dict[str, int] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._asking = False
        self._asked = 0.0  # when, by the clock of the loop
        self._closed = False
        self._extra: dict[str, float] = {}
        self._answered: list[asyncio.Future[None]] = []

    async def ensure(self, limit: Limit, units: float) -> None:
        """Ask for *units* that somebody is about to take, and wait for the answer, whatever it is.

        So that who waits for no time at all gets what is free.
        """
        for _ in range(2):
            if limit.used + units <= limit.size or limit.size >= limit.whole:
                return
            if self._closed or self._engine.broken:
                return
            waiter: asyncio.Future[None] = self._engine.loop.create_future()
            self._answered.append(waiter)
            self._extra[limit.name] = units
            self._idle.pop(limit.name, None)
            begun = not self._asking
            if begun:
                self._ask()
            await waiter
            if begun:
                return
            # That was the answer to what others had asked: now it is our turn.

    def add(self, limit: Limit) -> None:
        """A limit was given a size: from now on it is divided."""
        if self._limits.get(limit.name) is not limit:
            self._limits[limit.name] = limit
            limit.allot(0.0)

    def hurry(self, limits: set[Limit]) -> None:
        """Somebody waits for more of these limits than there is here."""
        for limit in limits:
            self._idle.pop(limit.name, None)
        if not self._asking and not self._closed:
            # At once, though not again and again while others keep what there is.
            self._ask_at(self._asked + HURRY)

    def _ask_at(self, when: float) -> None:
        """Ask at a time of the loop's clock, or earlier where that is planned."""
        timer = self._timer
        if timer is not None:
            if timer.when() <= when:
                return
            timer.cancel()
        self._timer = self._engine.loop.call_at(when, self._ask)

    def _ask(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        engine = self._engine
        if self._asking or self._closed or engine.broken:
            return
        limits = [limit for limit in self._limits.values() if self._is_of_use(limit)]
        if not limits:
            return
        self._asking = True
        self._asked = engine.loop.time()
        demands = [self._demand(limit) for limit in limits]
        self._extra.clear()
        for limit, demand in zip(limits, demands, strict=True):
            # Until the answer is here others may already have what is not in use now.
            limit.allot(min(limit.share, demand.used))
        now = engine.clock.time()

        def done(parts: list[Part] | None, error: BaseException | None) -> None:
            self._asking = False
            answered, self._answered = self._answered, []
            for waiter in answered:
                if not waiter.done():
                    waiter.set_result(None)
            if self._closed:
                return
            if parts is None:
                engine.report(f"named limits cannot be divided with other engines: {error}")
                self._ask_at(engine.loop.time() + CALM)
                return
            self._take(limits, parts)

        engine.writer.submit(
            lambda: engine.store.share(engine.id, demands, engine.recovery.is_alive, now), done
        )

    def _is_of_use(self, limit: Limit) -> bool:
        return self._idle.get(limit.name, 0) <= IDLE

    def _demand(self, limit: Limit) -> Demand:
        period = limit.period if isinstance(limit, Rate) else None
        used = self._used(limit)
        waiting = limit.line.n + self._extra.get(limit.name, 0.0)
        if limit.line.n and limit.line.head().is_source:
            waiting = limit.whole  # a map counts as one in the line, and can use them all
        if used or waiting:
            self._idle[limit.name] = 0
        else:
            self._idle[limit.name] = self._idle.get(limit.name, 0) + 1
        wanted = used + waiting
        idle = not wanted
        if idle and limit.share and self._idle[limit.name] <= IDLE:
            wanted = 1.0
        return Demand(limit.name, limit.whole, used, wanted, period, idle)

    def _used(self, limit: Limit) -> float:
        """What of it cannot be given to others now."""
        if isinstance(limit, Rate):
            limit.refresh(self._engine.loop.time())
        return limit.used

    def _take(self, limits: list[Limit], parts: list[Part]) -> None:
        machine, engine = self._engine.machine, self._engine
        short = False
        for limit, part in zip(limits, parts, strict=True):
            limit.allot(part.size)
            machine.resized(limit)
            short = short or (part.size < limit.whole and bool(limit.line.n))
        engine.executor.pump()
        if any(self._is_of_use(limit) for limit in self._limits.values()):
            self._ask_at(engine.loop.time() + (HURRY if short else CALM))

    async def aclose(self) -> None:
        """Give back everything."""
        self._closed = True
        for waiter in self._answered:
            if not waiter.done():
                waiter.set_result(None)
        if self._timer is not None:
            self._timer.cancel()
        engine = self._engine
        if not self._limits:
            return
        free_at = {}
        for limit in self._limits.values():
            if isinstance(limit, Rate) and (last := limit.last_use()) is not None:
                ago = engine.loop.time() - last
                if ago < limit.period:
                    free_at[limit.name] = engine.clock.time() + limit.period - ago
        await engine.writer.do(lambda: engine.store.drop_shares(engine.id, free_at))
