"""Answers calls with results that other runs have stored; equal calls wait for one of them.

A *flight* is a key whose result is being looked up or made. The first call that asks for a key
leads the flight; others that ask meanwhile wait, without a slot, and get its result. Where the
leader fails or is cancelled, the next one tries.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from asyncflow import rows
from asyncflow.caching import CacheContext
from asyncflow.errors import AsyncflowError
from asyncflow.failures import told
from asyncflow.run import MISSING, Call
from asyncflow.states import StateType
from asyncflow.store.base import CacheRow, ResultKind

if TYPE_CHECKING:
    from asyncflow.engine import Engine

S = StateType

#: Keys that may be looked up in place, on the loop.
FEW = 64

_FILES = (ResultKind.JSON_FILE, ResultKind.PICKLE_FILE)
_PICKLED = (ResultKind.PICKLE, ResultKind.PICKLE_FILE)


class _Flight:
    """The call that makes the result of a key, and those that wait for it."""

    __slots__ = ("leader", "waiters")

    def __init__(self, leader: Call) -> None:
        self.leader = leader
        self.waiters: deque[Call] = deque()


class Flights:
    """The cache of one engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._flights: dict[bytes, _Flight] = {}

    def ask(self, calls: list[Call]) -> None:
        """Answer calls, let them wait for others, or let them get in line."""
        looking: list[Call] = []
        for call in calls:
            if call.phase.is_final:
                continue
            try:
                key = self._key(call)
            except Exception as error:
                text = told(error)
                self._engine.executor.end_early(call, None, error, text)
                continue
            if key is None:
                self._engine.machine.admit(call)
            elif self._leads(call, key):
                looking.append(call)
        if looking:
            self._look(looking)

    def _key(self, call: Call) -> bytes | None:
        spec = call.spec
        args, kwargs = spec.resolve(call) if call.upstream else (call.args, call.kwargs)
        key: bytes | None = spec.caching.key(
            spec, call, spec.named(args, kwargs), lambda: self._context(call)
        )
        return key

    def _context(self, call: Call) -> CacheContext:
        from asyncflow.handle import FlowRun

        return CacheContext(call.spec.task, call.spec.view(call), FlowRun(self._engine, call.run))

    def _leads(self, call: Call, key: bytes) -> bool:
        """Whether the call has to look the key up; else it waits, or is in line already."""
        flight = self._flights.get(key)
        if flight is not None and not call.spec.caching.refresh:
            if not self._waits_for(flight.leader, call):
                flight.waiters.append(call)
                return False
            # The leader waits for this very call: it makes the result itself.
            call.cache_key = key
            self._engine.machine.admit(call)
            return False
        call.cache_key = key
        if flight is None:
            self._flights[key] = _Flight(call)
        if call.spec.caching.refresh:
            self._engine.machine.admit(call)
            return False
        return True

    def leaders(self) -> dict[Call, Call]:
        """For each call that waits for the result of another one: that one."""
        return {
            waiter: flight.leader for flight in self._flights.values() for waiter in flight.waiters
        }

    # --- circles --------------------------------------------------------------------------------

    def _waits_for(self, leader: Call, call: Call) -> bool:
        """Whether *leader* cannot end before *call* has: it is above it, or waits for another
        flight whose leader is."""
        above = set(_above(call))
        if not any(one.cache_key is not None for one in above):
            return False
        seen: set[Call] = set()
        open_ = [leader]
        while open_:
            one = open_.pop()
            if one in above:
                return True
            if one in seen:
                continue
            seen.add(one)
            open_ += [
                flight.leader
                for flight in self._flights.values()
                if any(one in _above(waiter) for waiter in flight.waiters)
            ]
        return False

    # --- looking up -----------------------------------------------------------------------------

    def _look(self, calls: list[Call]) -> None:
        engine = self._engine
        keys = [call.cache_key for call in calls if call.cache_key is not None]

        def read() -> dict[bytes, CacheRow]:
            return {row.key: self._whole(row) for row in engine.store.cached(keys)}

        def done(found: dict[bytes, CacheRow] | None, error: BaseException | None) -> None:
            self._looked(calls, found, error)
            engine.executor.pump()

        if engine.machine.at_once:
            # What has settled need not be on disk yet, and may be just what is asked for.
            engine.executor.background(self._look_behind(read, calls), "asyncflow-cache")
        elif len(calls) <= FEW and engine.writer.prefers_here():
            try:
                found = engine.writer.here(read)
            except Exception as error:
                self._looked(calls, None, error)
            else:
                self._looked(calls, found, None)
        else:
            engine.writer.submit(read, done)

    async def _look_behind(self, read: Any, calls: list[Call]) -> None:
        engine = self._engine
        try:
            await engine.journal.durable()
            found = await engine.writer.do(read)
        except AsyncflowError as error:
            self._looked(calls, None, error)
        else:
            self._looked(calls, found, None)
        engine.executor.pump()

    def _whole(self, row: CacheRow) -> CacheRow:
        """The row with its result, where that stands in a file."""
        if row.result_kind not in _FILES or row.result is None:
            return row
        try:
            data = self._engine.store.load_file(row.result.decode("ascii"))
        except AsyncflowError:
            return row._replace(result_kind=ResultKind.NONE, result=None)
        pickled = row.result_kind == ResultKind.PICKLE_FILE
        kind = ResultKind.PICKLE if pickled else ResultKind.JSON
        return row._replace(result_kind=kind, result=data)

    def _looked(
        self, calls: list[Call], found: dict[bytes, CacheRow] | None, error: BaseException | None
    ) -> None:
        engine = self._engine
        now = engine.clock.time()
        for call in calls:
            if call.phase.is_final:
                continue  # it was cancelled meanwhile: when that is settled, the next one looks
            if error is not None:
                engine.executor.end_early(call, None, error, str(error))
                continue
            assert found is not None
            assert call.cache_key is not None
            row = found.get(call.cache_key)
            value = MISSING if row is None else self._value(call, row, now)
            if value is MISSING:
                engine.machine.admit(call)
            else:
                assert row is not None
                self._hit(call, value, row)

    def _value(self, call: Call, row: CacheRow, now: float) -> Any:
        """The value of a stored result; MISSING if this call must not, or cannot, use it."""
        expiration = call.spec.caching.expiration
        if row.expires_at is not None and now >= row.expires_at:
            return MISSING
        if expiration is not None and now >= row.created_at + expiration:
            return MISSING
        if row.result_kind in _PICKLED and call.options.serializer != "pickle":
            return MISSING  # only what a task asked for is unpickled
        try:
            what = f"the cached result of {call.display}"
            return rows.value_of(row.result_kind, row.result, self._engine.store.load_file, what)
        except AsyncflowError as error:
            self._engine.report(f"{error}: the task runs again")
            return MISSING

    def _hit(self, call: Call, value: Any, row: CacheRow) -> None:
        key = call.cache_key
        call.cache_key = None
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(row.created_at))
        text = f"the result of {row.task}-{row.seq}, stored at {when} UTC"
        end_early = self._engine.executor.end_early
        end_early(call, value, None, text)
        flight = self._flights.get(key) if key is not None else None
        if flight is not None and flight.leader is call and key is not None:
            del self._flights[key]
            for waiter in flight.waiters:
                end_early(waiter, value, None, text)

    # --- landing --------------------------------------------------------------------------------

    def landed(self, calls: list[Call]) -> None:
        """Calls that had keys have settled."""
        for call in calls:
            key = call.cache_key
            if key is None:
                continue
            if self._engine.durability == "off":
                self._store(call)
            flight = self._flights.get(key)
            if flight is None or flight.leader is not call:
                continue
            del self._flights[key]
            if call.own:
                for waiter in flight.waiters:
                    text = f"the result of {call.display} in run {call.run.id}, which it waited for"
                    self._engine.executor.end_early(waiter, call.value, None, text)
            else:
                self._next(key, flight)

    def _next(self, key: bytes, flight: _Flight) -> None:
        """The leader did not make it: the next one tries."""
        waiters = flight.waiters
        while waiters:
            call = waiters.popleft()
            if call.phase.is_final:
                continue
            call.cache_key = key
            flight.leader = call
            self._flights[key] = flight
            self._look([call])
            return

    def _store(self, call: Call) -> None:
        """Store a result whose call leaves no record of its own."""
        if call.own:
            kind, data = rows.result_of(call, call.value, self._engine.not_stored)
            row = rows.cache_row(call, kind, data)
            if row is not None:
                self._engine.journal.cache(row)


def _above(call: Call) -> Iterator[Call]:
    """A call and those that called it, through child runs too."""
    one: Call | None = call
    while one is not None:
        yield one
        one = one.parent if one.parent is not None else one.run.call
