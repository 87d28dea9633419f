"""What calls give: futures, lists of them, and the ways to wait for several."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import (
    AsyncIterator,
    Callable,
    Coroutine,
    Generator,
    Iterable,
    Iterator,
    Sequence,
)
from typing import Any, Generic, Literal, TypeVar, cast, overload

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

#: Items of a map whose futures a thread asks the loop for at once.
ASKED = 256


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
        if self.options.teardown:
            return cast("R", None)  # its failure decides nothing; its state tells it
        raise self.error

    def __repr__(self) -> str:
        return f"<TaskFuture {self.display!r} {self.shown_phase}>"


class Promised(TaskFuture[Any]):
    """Stands for the calls of a map over a list that is not there yet; it has no record."""

    unrecorded = True


class TaskFutureList(nested.FutureGroup, Sequence[TaskFuture[R]], Generic[R]):
    """The futures of a map, in the order of its inputs.

    Await it for the list of values; the first failure, by position, is raised. Items are
    futures like any other; those that nobody asks for are never made.

    A map over a future has no items before that is done: until then `len`, indexing and
    iteration wait for it in sync code, and raise `NotReady` in async code.
    """

    __slots__ = ("_batch", "_futures", "_late", "_promised")

    def __init__(
        self,
        futures: Sequence[TaskFuture[R]] | None = None,
        batch: Batch | None = None,
        promised: Promised | None = None,
    ) -> None:
        self._futures = futures
        self._batch = batch
        self._promised = self._late = promised

    def become(self, there: TaskFutureList[R]) -> None:
        """The list to be mapped over has come, and these are the calls."""
        self._futures, self._batch, self._promised = there._futures, there._batch, None

    def _there(self) -> None:
        """Wait in sync code until the calls exist."""
        promised = self._promised
        if promised is None:
            return
        if not promised.settled:
            block(promised.run, lambda: _wait_for(promised), f"list for {promised.display}")
        if self._promised is not None:
            promised._get()

    def __len__(self) -> int:
        self._there()
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
        self._there()
        if self._batch is None:
            return (self._futures or ())[index]
        size = self._batch.size
        if not -size <= index < size:
            raise IndexError(f"the map has {size} items, there is no item {index}")
        future: TaskFuture[R] = self._batch.run.engine.call(ask, self._batch, index % size)
        return future

    def __iter__(self) -> Iterator[TaskFuture[R]]:
        self._there()
        return iter(self._futures or ()) if self._batch is None else _asked(self._batch)

    def members(self) -> Iterable[Call]:
        return self if self._promised is None else (self._promised,)

    @property
    def late(self) -> Call | None:
        """What stands for a map over a future, whether its calls exist yet or not."""
        return self._late

    @property
    def identity(self) -> bytes | None:
        """What identifies a map over a future; None for others."""
        return None if self._late is None else self._late.identity

    @property
    def promised(self) -> Promised | None:
        """What stands for the calls as long as they are not there."""
        return self._promised

    def __await__(self) -> Generator[Any, Any, list[R]]:
        return self._all().__await__()

    async def _all(self) -> list[R]:
        await self._wait_all()
        return self._values()

    def _values(self) -> list[R]:
        if self._promised is not None:
            self._promised._get()
        batch = self._batch
        if batch is None:
            for future in self._futures or ():
                future._look()
            return [future._get() for future in self._futures or ()]
        self._look()
        failed = [call for call in batch.calls.values() if call.phase is not _COMPLETED]
        if failed:
            error = min(failed, key=lambda call: call.index).error
            assert error is not None
            raise error
        if any(value is MISSING for value in batch.results):
            index = batch.results.index(MISSING)
            raise not_stored(f"item {index} of the map of {batch.spec.name}")
        return list(batch.results)

    def _look(self) -> None:
        """Somebody has seen how all ended."""
        if self._batch is not None:
            self._batch.seen = True
            calls: Iterable[Call] = self._batch.calls.values()
        else:
            calls = self.members()
        for call in calls:
            call.seen = True
            call.run.unseen.pop(call.seq, None)

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
        """Wait at most *timeout* seconds, in sync code. How they ended is then seen, not raised."""
        if not self._settled():
            block(self._run(), lambda: _within(self._wait_all(), timeout), "map")
        if self._settled():
            self._look()

    def _run(self) -> Run:
        if self._promised is not None:
            return self._promised.run
        return self._batch.run if self._batch is not None else self[0].run

    def _settled(self) -> bool:
        if self._promised is not None:
            return self._promised.settled
        if self._batch is not None:
            return not self._batch.open
        return all(future.settled for future in self._futures or ())

    async def _wait_all(self) -> None:
        if self._promised is not None and not self._promised.settled:
            await _wait_for(self._promised)
        if self._promised is not None:
            return
        if self._batch is not None:
            if self._batch.open:
                await _wait_for(self._batch)
            return
        for future in self._futures or ():
            if not future.settled:
                await _wait_for(future)

    def __repr__(self) -> str:
        if self._promised is not None:
            return f"<TaskFutureList of {self._promised.display}>"
        return f"<TaskFutureList of {len(self)}>"


def _asked(batch: Batch) -> Iterator[TaskFuture[Any]]:
    """The futures of all items. On the loop one by one, from a thread many at a time."""
    many = 1 if batch.run.engine.on_loop() else ASKED
    for first in range(0, batch.size, many):
        indices = range(first, min(first + many, batch.size))
        yield from batch.run.engine.call(lambda its: [ask(batch, i) for i in its], indices)


def ask(batch: Batch, index: int) -> TaskFuture[Any]:
    """The future of one item of a map, made now if it does not exist. On the loop only."""
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
    engine.refuse_writer()
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
    if return_when not in ("ALL_COMPLETED", "FIRST_COMPLETED", "FIRST_EXCEPTION"):
        raise ValueError(
            f"return_when={return_when!r}: use ALL_COMPLETED, FIRST_COMPLETED or FIRST_EXCEPTION"
        )
    given = futures if isinstance(futures, TaskFutureList) else list(futures)
    watch = _Watch(given, return_when)
    if not watch.calls:
        return set(), set()
    decisive = return_when != "ALL_COMPLETED" or timeout is not None
    series = _series(given, "wait") if decisive else None
    recorded = series.replay() if series is not None else None
    if recorded is not None:
        done = await watch.again(_unpack(recorded))
    else:
        done = await watch.until(timeout)
        if series is not None:
            series.record(_pack(sorted(call.identity for call in done)))
    for call in done:
        call._look()
    return done, set(watch.calls) - done


class _Watch:
    """Sees several futures end; those of a map over a future as soon as they are there."""

    def __init__(self, given: Futures, when: str) -> None:
        self._given = given
        self._when = when
        self._changed = asyncio.Event()
        self._ended = 0
        self._failed = False
        self.calls: dict[TaskFuture[Any], None] = {}
        self._add()

    def _add(self) -> None:
        for call in flatten(self._given):
            if call in self.calls:
                continue
            self.calls[call] = None
            call.seen = True
            if call.settled:
                self._count(call)
            else:
                call.run.engine.executor.add_waiter(call, self._end)

    def _count(self, call: TaskFuture[Any]) -> None:
        self._ended += 1
        self._failed = self._failed or call.phase is not _COMPLETED

    def _end(self, call: TaskFuture[Any]) -> None:
        if isinstance(call, Promised) and call.phase is _COMPLETED:
            self.calls.pop(call, None)
            self._add()
        else:
            self._count(call)
        self._changed.set()

    def _enough(self) -> bool:
        if self._when == "FIRST_COMPLETED" and self._ended:
            return True
        if self._when == "FIRST_EXCEPTION" and self._failed:
            return True
        return self._ended == len(self.calls)

    async def _wait(self) -> None:
        while not self._enough():
            self._changed.clear()
            await self._changed.wait()

    async def until(self, timeout: float | None) -> set[TaskFuture[Any]]:
        """Wait until enough have ended, or for so long; those that have."""
        try:
            if not self._enough():
                await _lending(next(iter(self.calls)).run, _within(self._wait(), timeout))
        finally:
            for call in self.calls:
                if call.waiters is not None and self._end in call.waiters:
                    call.waiters.remove(self._end)
        return {call for call in self.calls if call.settled}

    async def again(self, identities: list[bytes]) -> set[TaskFuture[Any]]:
        """Wait for those that had ended when this was decided in a former life of the run."""
        for call in list(self.calls):
            if isinstance(call, Promised) and call.identity not in identities:
                known = {other.identity for other in self.calls}
                if not known.issuperset(identities) and not call.settled:
                    await _wait_for(call)
        self._add()
        done = {call for call in self.calls if call.identity in set(identities)}
        for call in done:
            if not call.settled:
                await _wait_for(call)
        return done


async def _lending(run: Run, waiting: Coroutine[Any, Any, T]) -> T:
    """Await something; the task that does so lends its slots meanwhile."""
    parent = current_call()
    if parent is None or parent.run.engine is not run.engine:
        return await waiting
    result: T = await run.engine.executor.lend_while(parent, waiting)
    return result


class as_completed(Generic[R]):  # noqa: N801 - used as a function, like asyncio's
    """The futures one by one, in the order in which they end.

    Use ``async for`` in async code and ``for`` in sync code. The order is recorded, and
    replayed when the run is resumed.

    Args:
        futures: futures, or lists of them.
        timeout: seconds for all; TimeoutError is raised when it is over.
    """

    def __init__(self, futures: Iterable[Any], timeout: float | None = None) -> None:
        self._given = futures if isinstance(futures, TaskFutureList) else list(futures)
        self._timeout = timeout
        self._left: dict[bytes, TaskFuture[R]] = {}
        self._known: set[TaskFuture[R]] = set()
        self._ended: deque[TaskFuture[R]] = deque()
        self._series = _series(self._given, "as_completed")
        self._changed: asyncio.Event | None = None
        self._until: float | None = None
        flatten(self._given)  # for its errors

    def __aiter__(self) -> AsyncIterator[TaskFuture[R]]:
        self._begin()
        return self

    def _begin(self) -> None:
        if self._changed is not None:
            return
        self._changed = asyncio.Event()
        if self._timeout is not None:
            self._until = asyncio.get_running_loop().time() + self._timeout
        self._add()

    def _add(self) -> None:
        for call in flatten(self._given):
            if call in self._known:
                continue
            self._known.add(call)
            self._left[call.identity] = call
            call.seen = True
            if call.settled:
                self._ended.append(call)
            else:
                call.run.engine.executor.add_waiter(call, self._end)

    def _end(self, call: TaskFuture[R]) -> None:
        if isinstance(call, Promised) and call.phase is _COMPLETED:
            self._left.pop(call.identity, None)
            self._add()
        else:
            self._ended.append(call)
        assert self._changed is not None
        self._changed.set()

    async def __anext__(self) -> TaskFuture[R]:
        self._begin()
        if not self._left:
            raise StopAsyncIteration
        expected = self._series.replay() if self._series is not None else None
        if expected is not None:
            await self._comes(expected)
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

    async def _comes(self, identity: bytes) -> None:
        """Wait for the maps over futures, one of which may have the call of this identity."""
        for call in list(self._left.values()):
            if isinstance(call, Promised) and identity not in self._left:
                if not call.settled:
                    await self._timed(_wait_for(call))
                if call.phase is _COMPLETED:
                    self._left.pop(call.identity, None)
                    self._add()

    async def _first(self) -> TaskFuture[R]:
        """The first that ended and was not given out."""
        while True:
            while self._ended:
                call = self._ended.popleft()
                if call.identity in self._left:
                    return call
            if not self._left:
                raise StopAsyncIteration
            assert self._changed is not None
            self._changed.clear()
            run = next(iter(self._left.values())).run
            await _lending(run, self._timed(self._changed.wait()))

    async def _timed(self, waiting: Coroutine[Any, Any, Any]) -> None:
        if self._until is None:
            await waiting
            return
        async with asyncio.timeout_at(self._until):
            await waiting

    def __iter__(self) -> Iterator[TaskFuture[R]]:
        first = next(iter(flatten(self._given)), None)
        if first is None:
            return

        async def one() -> TaskFuture[R] | None:
            self._begin()
            return await anext(self, None)

        while (call := block(first.run, one, "next future of as_completed")) is not None:
            yield call


async def resolve(value: Any) -> Any:
    """*value* with results in the place of futures, at any depth of containers."""
    found: list[tuple[Call, bool]] = []
    nested.find((value,), found)
    while any(not call.settled for call, _ in found):
        for call, _ in found:
            if not call.settled:
                await _wait_for(call)
        found = []
        nested.find((value,), found)  # once more, for the calls of a map over a future

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
        return cast("list[TaskFuture[Any]]", list(futures.members()))
    calls: list[TaskFuture[Any]] = []
    for item in futures:
        if isinstance(item, TaskFuture):
            calls.append(item)
        elif isinstance(item, TaskFutureList | list | tuple | set):
            calls.extend(flatten(item))
        else:
            raise TypeError(f"{item!r} is not a future: use what submit() and map() give")
    return calls


def _identities(futures: Futures) -> Iterator[bytes]:
    """What identifies the futures, however many of a map over a future are there yet."""
    if isinstance(futures, TaskFutureList) and futures.identity is not None:
        yield futures.identity
        return
    for item in futures:
        if isinstance(item, TaskFuture):
            yield item.identity
        else:
            yield from _identities(item)


# --- recorded decisions ---------------------------------------------------------------------------


def _series(futures: Futures, kind: str) -> Any:
    """The series of decisions among these futures; None outside of a run."""
    run = current_run()
    if run is None or run.extra is None:
        return None
    parent = current_call()
    of = b"".join(sorted(_identities(futures)))
    return run.extra.decisions.series(kind, parent.identity if parent else b"", of) if of else None


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
