"""What calls give: futures, lists of them, and the ways to wait for several."""

from __future__ import annotations

import asyncio
from collections.abc import (
    AsyncIterator,
    Callable,
    Coroutine,
    Generator,
    Iterable,
    Iterator,
    Sequence,
)
from functools import partial
from typing import Any, Generic, Literal, TypeVar, overload

from asyncflow import nested
from asyncflow.context import current_call, current_run
from asyncflow.errors import DependencyCycle, NoEngine, NotReady
from asyncflow.executor import state_of
from asyncflow.rows import not_stored
from asyncflow.run import MISSING, Batch, Call, Item, Run
from asyncflow.states import State, StateType

R = TypeVar("R")
T = TypeVar("T")

_COMPLETED = StateType.COMPLETED


class TaskFuture(Call, Generic[R]):
    """The future of one call: what `submit` gives, and what an item of a map is.

    Await it in async code; call `result` in sync code. Passing it to another task makes that
    task wait for it.
    """

    def __await__(self) -> Generator[Any, Any, R]:
        if not self.settled:
            yield from _wait_for(self).__await__()
        return self._get()

    def result(self, timeout: float | None = None, raise_on_failure: bool = True) -> Any:
        """The value, waited for at most *timeout* seconds: for sync code.

        Args:
            timeout: seconds; None waits as long as it takes.
            raise_on_failure: with False, the exception is returned instead of raised.

        Raises:
            NotReady: it is unfinished and this is the event loop's thread: await it instead.
            TimeoutError: it did not finish in time.
        """
        self.wait(timeout)
        if not self.settled:
            raise TimeoutError(f"{self.display} did not finish within {timeout:g} s")
        if raise_on_failure:
            return self._get()
        self._look()
        return self.value if self.phase is _COMPLETED else self.error

    def wait(self, timeout: float | None = None) -> None:
        """Wait at most *timeout* seconds, in sync code. Its end is then seen, not raised."""
        if not self.settled:
            block(self.run, lambda: _within(_wait_for(self), timeout), f"future of {self.display}")
        if self.settled:
            self._look()

    def done(self) -> bool:
        """Whether it has ended, and its end is recorded."""
        return self.settled

    def cancel(self) -> bool:
        """Cancel it, and what it called. Returns whether it was still unfinished."""
        if self.settled or self.phase.is_final:
            return False
        engine = self.run.engine
        engine.call(engine.executor.cancel, self, f"{self.display} was cancelled")
        return True

    @property
    def state(self) -> State[R]:
        """Its state. Asking for that of a failure counts as having seen it."""
        if self.settled:
            self._look()
        elif self.phase.is_final:
            # Its code has ended, but that is not on disk yet: nobody may act on it.
            return State(StateType.RUNNING, attempt=self.attempt)
        return state_of(self)

    @property
    def task_run_id(self) -> str:
        """The id of its task run: that of the flow run, and its number in it."""
        return f"{self.run.id}-{self.seq}"

    @property
    def task_run_name(self) -> str:
        return self.display

    def add_done_callback(self, function: Callable[[TaskFuture[R]], object]) -> None:
        """Have *function* called, on the event loop, with this future when it is done."""
        engine = self.run.engine
        if self.settled:
            engine.loop.call_soon_threadsafe(function, self)
        else:
            engine.call(engine.executor.add_waiter, self, function)

    def _look(self) -> None:
        """Somebody has seen how it ended."""
        self.seen = True
        self.run.unseen.pop(self.seq, None)

    def _get(self) -> R:
        self._look()
        if self.phase is _COMPLETED:
            if self.value is MISSING:
                raise not_stored(self.display)
            value: R = self.value
            return value
        assert self.error is not None
        raise self.error

    def __repr__(self) -> str:
        return f"<TaskFuture {self.display!r} {self.shown_phase}>"


class TaskFutureList(nested.FutureGroup, Sequence[TaskFuture[R]], Generic[R]):
    """The futures of a map, in the order of its inputs.

    Await it for the list of values; the first failure, by position, is raised. Items are
    futures like any other; those that nobody asks for are never made.
    """

    __slots__ = ("_batch", "_futures")

    def __init__(
        self, futures: Sequence[TaskFuture[R]] | None = None, batch: Batch | None = None
    ) -> None:
        self._futures = futures
        self._batch = batch

    def __len__(self) -> int:
        if self._batch is not None:
            return self._batch.size
        return len(self._futures or ())

    @overload
    def __getitem__(self, index: int) -> TaskFuture[R]: ...
    @overload
    def __getitem__(self, index: slice) -> TaskFutureList[R]: ...
    def __getitem__(self, index: int | slice) -> TaskFuture[R] | TaskFutureList[R]:
        if isinstance(index, slice):
            return TaskFutureList([self[i] for i in range(*index.indices(len(self)))])
        if self._batch is None:
            return (self._futures or ())[index]
        size = self._batch.size
        if not -size <= index < size:
            raise IndexError(f"the map has {size} items, there is no item {index}")
        return ask(self._batch, index % size)

    def __iter__(self) -> Iterator[TaskFuture[R]]:
        return (self[i] for i in range(len(self)))

    def members(self) -> Iterable[Call]:
        return self

    def __await__(self) -> Generator[Any, Any, list[R]]:
        return self._all().__await__()

    async def _all(self) -> list[R]:
        batch = self._batch
        if batch is None:
            for future in self._futures or ():
                if not future.settled:
                    await _wait_for(future)
            return self._values()
        if batch.open:
            await _wait_for(batch)
        return self._values()

    def _values(self) -> list[R]:
        batch = self._batch
        if batch is None:
            for future in self._futures or ():
                future._look()
            return [future._get() for future in self._futures or ()]
        batch.seen = True
        failed: list[Call] = []
        for call in batch.calls.values():
            call.seen = True
            batch.run.unseen.pop(call.seq, None)
            if call.phase is not _COMPLETED:
                failed.append(call)
        if failed:
            error = min(failed, key=lambda call: call.index).error
            assert error is not None
            raise error
        if any(value is MISSING for value in batch.results):
            index = batch.results.index(MISSING)
            raise not_stored(f"item {index} of the map of {batch.spec.name}")
        return list(batch.results)

    def result(self, timeout: float | None = None, raise_on_failure: bool = True) -> list[Any]:
        """The list of values, waited for at most *timeout* seconds: for sync code.

        With raise_on_failure=False, exceptions stand in the place of values.
        """
        self.wait(timeout)
        if not self._settled():
            raise TimeoutError(f"the map did not finish within {timeout:g} s")
        if raise_on_failure:
            return self._values()
        return [future.result(raise_on_failure=False) for future in self]

    def wait(self, timeout: float | None = None) -> None:
        """Wait at most *timeout* seconds, in sync code."""
        if not self._settled():
            run = self._batch.run if self._batch is not None else self[0].run
            block(run, lambda: _within(self._wait_all(), timeout), "futures of a map")

    def _settled(self) -> bool:
        if self._batch is not None:
            return not self._batch.open
        return all(future.settled for future in self._futures or ())

    async def _wait_all(self) -> None:
        for item in (self._batch,) if self._batch is not None else self._futures or ():
            if item.open if isinstance(item, Batch) else not item.settled:
                await _wait_for(item)

    def __repr__(self) -> str:
        return f"<TaskFutureList of {len(self)}>"


def ask(batch: Batch, index: int) -> TaskFuture[Any]:
    """The future of one item of a map, made now if it does not exist."""
    call = batch.calls.get(index)
    if call is None:
        value = batch.results[index]
        if value.__class__ is Item:
            call = value.call()
        elif value is not MISSING or index < batch.next:
            call = _finished(batch, index, value)
        else:
            call = batch.call(index)
            if call.phase.is_final and not call.settled:
                call.asked = True
                batch.run.engine.machine.settle(call)
                batch.run.engine.executor.drain()
    call.asked = True
    assert isinstance(call, TaskFuture)
    return call


def _finished(batch: Batch, index: int, value: Any) -> Call:
    """The future of an item that completed before anybody asked for it."""
    spec = batch.spec
    seq = (batch.seqs or {}).get(index, batch.seq + index)
    call: Call = spec.call_class(batch.run, spec, (), (), {}, seq, batch.parent, 0.0, None)
    call.identity = batch.identity_of(batch, index)
    call.value = value
    call.batch = batch
    call.index = index
    call.phase = _COMPLETED
    call.settled = True
    batch.calls[index] = call
    return call


# --- waiting --------------------------------------------------------------------------------------


async def _wait_for(item: Call | Batch) -> None:
    """Wait until a call or map has settled; the waiting task lends its slots meanwhile."""
    run = item.run
    executor = run.engine.executor
    item.seen = True
    parent = current_call()
    if parent is None or parent.run.engine is not run.engine:
        await executor.wait(item)
        return
    _refuse_cycle(parent, item)
    parent.waits_on = (*parent.waits_on, item)
    try:
        await executor.lend_while(parent, executor.wait(item))
    finally:
        parent.waits_on = tuple([other for other in parent.waits_on if other is not item])


def _refuse_cycle(waiting: Call, item: Call | Batch) -> None:
    """Raise DependencyCycle if *item* waits, through whatever chain, for *waiting*."""
    seen: set[int] = set()
    open_ = [item]
    while open_:
        one = open_.pop()
        if one is waiting:
            what = f"the map of {item.spec.name}" if isinstance(item, Batch) else item.display
            raise DependencyCycle(
                f"{waiting.display} waits for {what}, which waits for it: break the circle of"
                " futures"
            )
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, Batch):
            open_.extend(call for call in one.calls.values() if not call.settled)
        else:
            # A caller waits for what it called, too, but that may end without its caller.
            open_.extend(one.waits_on)


async def _within(waiting: Coroutine[Any, Any, Any], timeout: float | None) -> None:
    if timeout is None:
        await waiting
        return
    try:
        async with asyncio.timeout(timeout):
            await waiting
    except TimeoutError:
        return


def block(run: Run, waiting: Callable[[], Coroutine[Any, Any, T]], what: str) -> T:
    """Wait in a thread for something that happens on the engine's loop."""
    engine = run.engine
    if engine.on_loop():
        raise NotReady(
            f"the {what} is not finished, and waiting for it here would block the event loop:"
            " await it instead"
        )
    result: T = engine.block(waiting())
    return result


ReturnWhen = Literal["ALL_COMPLETED", "FIRST_COMPLETED", "FIRST_EXCEPTION"]
Futures = Iterable[Any]


async def wait(
    futures: Futures,
    timeout: float | None = None,
    return_when: ReturnWhen = "ALL_COMPLETED",
) -> tuple[set[TaskFuture[Any]], set[TaskFuture[Any]]]:
    """Wait for several futures: ``(done, not_done)``. Failures are seen, not raised.

    Inside a run, which of them were done is recorded, so that a resumed run decides the same.

    Args:
        futures: futures, or lists of them.
        timeout: seconds; None waits as long as it takes.
        return_when: as in `asyncio.wait`.
    """
    calls = flatten(futures)
    if return_when not in ("ALL_COMPLETED", "FIRST_COMPLETED", "FIRST_EXCEPTION"):
        raise ValueError(
            f"return_when={return_when!r}: use ALL_COMPLETED, FIRST_COMPLETED or FIRST_EXCEPTION"
        )
    if not calls:
        return set(), set()
    decisive = return_when != "ALL_COMPLETED" or timeout is not None
    series = _series(calls, "wait") if decisive else None
    recorded = series.replay() if series is not None else None
    if recorded is not None:
        by_identity = {call.identity: call for call in calls}
        done = {by_identity[i] for i in _unpack(recorded) if i in by_identity}
        for call in done:
            if not call.settled:
                await _wait_for(call)
    else:
        await _wait_until(calls, timeout, return_when)
        done = {call for call in calls if call.settled}
        if series is not None:
            series.record(_pack(sorted(call.identity for call in done)))
    for call in done:
        call._look()
    return done, set(calls) - done


async def _wait_until(calls: list[TaskFuture[Any]], timeout: float | None, when: str) -> None:
    engine = calls[0].run.engine
    changed = asyncio.Event()

    def enough() -> bool:
        done = [call for call in calls if call.settled]
        if when == "FIRST_COMPLETED" and done:
            return True
        if when == "FIRST_EXCEPTION" and any(c.phase is not _COMPLETED for c in done):
            return True
        return len(done) == len(calls)

    for call in calls:
        call.seen = True
        if not call.settled:
            engine.executor.add_waiter(call, lambda _: changed.set())

    async def until() -> None:
        while not enough():
            changed.clear()
            await changed.wait()

    parent = current_call()
    waiting = _within(until(), timeout)
    if parent is None:
        await waiting
    else:
        await engine.executor.lend_while(parent, waiting)


class as_completed(Generic[R]):  # noqa: N801 - used as a function, like asyncio's
    """The futures one by one, in the order in which they end.

    Use ``async for`` in async code and ``for`` in sync code. The order is recorded, and
    replayed when the run is resumed.

    Args:
        futures: futures, or lists of them.
        timeout: seconds for all; TimeoutError is raised when it is over.
    """

    def __init__(self, futures: Iterable[Any], timeout: float | None = None) -> None:
        self._calls: list[TaskFuture[R]] = flatten(futures)
        self._timeout = timeout
        self._series = _series(self._calls, "as_completed")
        self._left = {call.identity: call for call in self._calls}
        self._ended: list[TaskFuture[R]] = []
        self._next = 0
        self._changed: asyncio.Event | None = None
        self._until: float | None = None

    def __aiter__(self) -> AsyncIterator[TaskFuture[R]]:
        self._begin()
        return self

    def _begin(self) -> None:
        if not self._calls or self._changed is not None:
            return
        engine = self._calls[0].run.engine
        self._changed = asyncio.Event()
        if self._timeout is not None:
            self._until = engine.loop.time() + self._timeout
        for call in self._calls:
            call.seen = True
            if call.settled:
                self._ended.append(call)
            else:
                engine.executor.add_waiter(call, self._end)

    def _end(self, call: TaskFuture[R]) -> None:
        self._ended.append(call)
        assert self._changed is not None
        self._changed.set()

    async def __anext__(self) -> TaskFuture[R]:
        self._begin()
        if not self._left:
            raise StopAsyncIteration
        expected = self._series.replay() if self._series is not None else None
        call = self._left.get(expected) if expected is not None else None
        if call is not None:
            if not call.settled:
                await self._timed(_wait_for(call))
        else:
            call = await self._first()
            if self._series is not None and expected is None:
                self._series.record(call.identity)
        del self._left[call.identity]
        call._look()
        return call

    async def _first(self) -> TaskFuture[R]:
        """The first that ended and was not given out."""
        while True:
            while self._next < len(self._ended):
                call = self._ended[self._next]
                self._next += 1
                if call.identity in self._left:
                    return call
            assert self._changed is not None
            self._changed.clear()
            parent = current_call()
            waiting = self._timed(self._changed.wait())
            if parent is None:
                await waiting
            else:
                await parent.run.engine.executor.lend_while(parent, waiting)

    async def _timed(self, waiting: Coroutine[Any, Any, Any]) -> None:
        if self._until is None:
            await waiting
            return
        async with asyncio.timeout_at(self._until):
            await waiting

    def __iter__(self) -> Iterator[TaskFuture[R]]:
        if not self._calls:
            return
        run = self._calls[0].run

        async def one(first: bool) -> TaskFuture[R] | None:
            if first:
                self._begin()
            return await anext(self, None)

        first = True
        while True:
            call = block(run, partial(one, first), "next future of as_completed")
            first = False
            if call is None:
                return
            yield call


async def resolve(value: Any) -> Any:
    """*value* with results in the place of futures, at any depth of containers."""
    found: list[tuple[Call, bool]] = []
    nested.find((value,), found)
    for call, _ in found:
        if not call.settled:
            await _wait_for(call)

    def get(call: Call, allowed: bool) -> Any:
        assert isinstance(call, TaskFuture)
        if allowed:
            call._look()
            return call.value if call.phase is _COMPLETED else call.error
        return call._get()

    return nested.replace(value, get)


def flatten(futures: Iterable[Any]) -> list[TaskFuture[Any]]:
    """All futures of an iterable of futures and lists of futures."""
    if isinstance(futures, TaskFutureList):
        return list(futures)
    calls: list[TaskFuture[Any]] = []
    for item in futures:
        if isinstance(item, TaskFuture):
            calls.append(item)
        elif isinstance(item, TaskFutureList | list | tuple | set):
            calls.extend(flatten(item))
        else:
            raise TypeError(f"{item!r} is not a future: use what submit() and map() give")
    return calls


# --- recorded decisions ---------------------------------------------------------------------------


def _series(calls: list[TaskFuture[Any]], kind: str) -> Any:
    """The series of decisions among these futures; None outside of a run."""
    run = current_run()
    if run is None or not calls or run.extra is None:
        return None
    parent = current_call()
    of = b"".join(sorted(call.identity for call in calls))
    return run.extra.decisions.series(kind, parent.identity if parent else b"", of)


def _pack(identities: Iterable[bytes]) -> bytes:
    return b"".join(len(i).to_bytes(2, "big") + i for i in identities)


def _unpack(data: bytes) -> list[bytes]:
    found, at = [], 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 2], "big")
        found.append(data[at + 2 : at + 2 + size])
        at += 2 + size
    return found


def needs_run(what: str) -> Run:
    """The run that the running code belongs to; NoEngine says what to do where there is none."""
    run = current_run()
    if run is None:
        raise NoEngine(
            f"{what} was called outside of a flow: call it inside a function decorated with"
            " @flow, or call the task itself, which is then the plain function"
        )
    return run
