"""`task.stream`: any number of items in bounded memory."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable
from typing import Any, Literal

from asyncflow.context import current_call
from asyncflow.errors import InvalidOption
from asyncflow.run import Call, Run
from asyncflow.states import StateType

OnError = Literal["raise", "collect"]

#: How many items are in flight unless the user or the flow's concurrency says otherwise.
IN_FLIGHT = 100

_END: Any = object()


async def stream(
    run: Run,
    spec: Any,
    source: Any,
    kwargs: dict[str, Any],
    max_in_flight: int | None,
    ordered: bool,
    on_error: str,
) -> AsyncIterator[Any]:
    """Call *spec* for each item of *source* and give out the results (see `Task.stream`)."""
    if on_error not in ("raise", "collect"):
        raise InvalidOption(f"stream: on_error={on_error!r}: use 'raise' or 'collect'")
    window = max_in_flight if max_in_flight is not None else _default_window(run)
    if window < 1:
        raise InvalidOption(f"stream: max_in_flight={max_in_flight!r}: give 1 or more")
    flight = _Flight(run, spec, kwargs, ordered)
    items = _Items(source)
    try:
        while True:
            while len(flight) < window and (item := await items.next()) is not _END:
                flight.begin(item)
            if not len(flight):
                return
            call = await flight.next()
            call.seen = True
            run.unseen.pop(call.seq, None)
            if call.phase is StateType.COMPLETED:
                yield call.value
            elif on_error == "collect":
                yield call.error
            else:
                assert call.error is not None
                raise call.error
            del call
    finally:
        flight.cancel_rest()
        await items.aclose()


def _default_window(run: Run) -> int:
    sizes = [limit.size for limit, _ in run.limit]
    return int(min([IN_FLIGHT, *sizes])) or 1


class _Items:
    """Items of a sync or async iterable, pulled one by one."""

    def __init__(self, source: Any) -> None:
        self._async = hasattr(source, "__aiter__")
        if self._async:
            self._iterator: Any = aiter(source)
        elif isinstance(source, Iterable):
            self._iterator = iter(source)
        else:
            raise TypeError(f"{source!r} cannot be streamed from: give an iterable")

    async def next(self) -> Any:
        if self._async:
            return await anext(self._iterator, _END)
        return next(self._iterator, _END)

    async def aclose(self) -> None:
        close = getattr(self._iterator, "aclose", None)
        if close is not None:
            await close()


class _Flight:
    """The items that were pulled and not given out yet."""

    def __init__(self, run: Run, spec: Any, kwargs: dict[str, Any], ordered: bool) -> None:
        self._run = run
        self._engine = run.engine
        self._spec = spec
        self._kwargs = kwargs
        self._parent = current_call()
        self._order: deque[Call] | None = deque() if ordered else None
        self._calls: dict[bytes, Call] = {}
        self._ended: deque[Call] = deque()
        self._changed = asyncio.Event()
        self._series: Any = None
        if not ordered and run.extra is not None:
            parent = self._parent.identity if self._parent else b""
            self._series = run.extra.decisions.series("stream", parent, spec.key.encode())
        self._expected: bytes | None = None

    def __len__(self) -> int:
        return len(self._calls)

    def begin(self, item: Any) -> None:
        call = self._engine.submit_call(
            self._run, self._spec, (item,), self._kwargs, self._parent, None, None, None
        )
        call.seen = True
        self._calls[call.identity] = call
        if self._order is not None:
            self._order.append(call)
        if call.settled:
            self._ended.append(call)
        else:
            self._engine.executor.add_waiter(call, self._end)

    def _end(self, call: Call) -> None:
        self._ended.append(call)
        self._changed.set()

    async def next(self) -> Call:
        """The call to give out next: by order, as recorded, or the first that has ended."""
        if self._order is not None:
            call = self._order.popleft()
            while not call.settled:
                await self._wait()
            self._ended.clear()
        else:
            call = await self._unordered()
        del self._calls[call.identity]
        return call

    async def _unordered(self) -> Call:
        if self._series is not None and self._expected is None:
            self._expected = self._series.replay()
        expected, self._expected = self._expected, None
        call = self._calls.get(expected) if expected is not None else None
        if call is not None:
            while not call.settled:
                await self._wait()
            return call
        while True:
            while self._ended:
                call = self._ended.popleft()
                if call.identity in self._calls:
                    if self._series is not None and expected is None:
                        self._series.record(call.identity)
                    return call
            await self._wait()

    async def _wait(self) -> None:
        self._changed.clear()
        waiting = self._changed.wait()
        if self._parent is None:
            await waiting
        else:
            await self._engine.executor.lend_while(self._parent, waiting)

    def cancel_rest(self) -> None:
        for call in list(self._calls.values()):
            if not call.settled:
                self._engine.executor.cancel(call, "the stream that it belonged to was left")
