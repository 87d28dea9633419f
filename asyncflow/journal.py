"""Brings what happened to the store, in order, many changes to a transaction.

Changes gather while the loop turns and while a transaction is being committed; all that
gathered is the next transaction. A short one is committed in place, at the end of the turn; a
long one, and every one of durability "full" (which waits for the disk), on the writer's thread.
What is on disk is therefore always a beginning of what happened, never a selection.

After the commit `committed` is told which calls are recorded as ended or as waiting for
another attempt; only then may anybody act on that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

from asyncflow import rows
from asyncflow.errors import StoreError
from asyncflow.machine import Machine
from asyncflow.run import Call, Item, Run
from asyncflow.states import StateType
from asyncflow.store.base import (
    ArtifactRow,
    AttemptRow,
    CacheRow,
    EventRow,
    LogRow,
    MarkRow,
    ReadableStore,
    RunRow,
    StateRow,
    TaskRow,
    Writes,
)
from asyncflow.writer import Writer

_COMPLETED = StateType.COMPLETED

#: Calls in one transaction, at most. Beyond it the loop takes a turn in between.
MOST = 512
#: Bytes of results that may be written in place.
MOST_BYTES = 256 * 1024
#: Calls that may wait for their record before workers stop to take on more.
BEHIND = 10_000
#: Transactions between two looks at whether the WAL should be folded in.
CHECKPOINT_EVERY = 200


class Journal:
    """Gathers changes for one store.

    Args:
        committed: told the calls whose end, or wait for a retry, is now on disk.
        failed: told when the storage failed for good.
        warn: told of a result that cannot be stored.

    Attributes:
        hide: takes out of what is about to be written what must not be; None: nothing must not.
        happened: told when events were written, moves of runs included; None: nobody asks.
        timed: makes of a transaction one that is timed; None: nobody wants to know.
    """

    def __init__(
        self,
        store: ReadableStore,
        writer: Writer,
        machine: Machine,
        loop: asyncio.AbstractEventLoop,
        *,
        committed: Callable[[list[Call | Item]], None],
        failed: Callable[[BaseException], None],
        warn: Callable[[Call, Exception], None],
    ) -> None:
        self._store = store
        self._writer = writer
        self._machine = machine
        self._loop = loop
        self._committed = committed
        self._failed = failed
        self._warn = warn
        self.hide: Callable[[Writes], None] | None = None
        self.happened: Callable[[], None] | None = None
        self.timed: Callable[[Callable[[], Any]], Callable[[], Any]] | None = None
        self._scheduled = False
        self._writing = False
        self._held: list[asyncio.Future[None]] = []  # workers that wait until less is to be written
        self._broken: BaseException | None = None
        self._runs: dict[int, RunRow] = {}
        self._attempts: list[AttemptRow] = []
        self._logs: list[LogRow] = []
        self._states: list[StateRow] = []
        self._marks: list[MarkRow] = []
        self._cache: list[CacheRow] = []
        self._events: list[EventRow] = []
        self._artifacts: dict[tuple[int, str], ArtifactRow] = {}
        self._epochs: dict[int, int] = {}
        self._waiters: list[tuple[int, asyncio.Future[None]]] = []
        self._gathered = 0  # transactions begun
        self._written = 0  # transactions committed
        self._since_checkpoint = 0
        self._eventful = False  # events are being written

    # --- what happened ------------------------------------------------------------------------

    def run(self, row: RunRow, state: StateRow | None = None) -> None:
        """A flow run changed."""
        self._runs[row.pk] = row
        self._epochs[row.pk] = row.epoch
        if state is not None:
            self._states.append(state)
        self.soon()

    def attempt(self, row: AttemptRow) -> None:
        self._attempts.append(row)

    def mark(self, row: MarkRow) -> None:
        """A decision was made. It is written no later than anything that follows from it."""
        self._marks.append(row)
        self.soon()

    def logs(self, lines: list[LogRow]) -> None:
        self._logs.extend(lines)
        self.soon()

    def cache(self, row: CacheRow) -> None:
        """A result for other runs, of a call that leaves no record."""
        self._cache.append(row)
        self.soon()

    def event(self, row: EventRow) -> None:
        """Something happened that is no move of a flow run."""
        self._events.append(row)
        self.soon()

    def artifact(self, row: ArtifactRow, epoch: int) -> None:
        """A run shows something, or another thing than before, or no longer."""
        self._artifacts[row.run, row.key] = row
        self._epochs[row.run] = epoch
        self.soon()

    def soon(self) -> None:
        """See to it that what has gathered is written at the end of this turn of the loop."""
        if not self._scheduled and not self._writing:
            self._scheduled = True
            self._loop.call_soon(self._turn)

    @property
    def behind(self) -> bool:
        """Whether so much waits that nothing more should be begun."""
        return len(self._machine.changed) > BEHIND and self._broken is None

    def relief(self) -> asyncio.Future[None]:
        """What is done when a good part of it is written: workers must not ask again and again,
        as the writer's thread could not run meanwhile."""
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._held.append(waiter)
        return waiter

    def _relieve(self) -> None:
        if self._held and (self._broken is not None or len(self._machine.changed) <= BEHIND // 2):
            held, self._held = self._held, []
            for waiter in held:
                if not waiter.done():
                    waiter.set_result(None)

    def _waits(self) -> bool:
        return bool(
            self._machine.changed
            or self._runs
            or self._marks
            or self._logs
            or self._states
            or self._attempts
            or self._cache
            or self._events
            or self._artifacts
        )

    # --- writing ------------------------------------------------------------------------------

    def _turn(self) -> None:
        self._scheduled = False
        if not self._writing and self._waits():
            self.write()

    def write(self) -> bool:
        """Write what has gathered; whether all of it is on disk when this returns."""
        if self._broken is not None:
            self._failed(self._broken)
            return False
        if self._writing:
            return False
        ends, writes, size = self._gather()
        self._gathered += 1
        self._eventful = self._eventful or bool(writes.states or writes.events)
        if not writes:
            if ends:
                # Nothing to write, and yet somebody to tell.
                self._loop.call_soon(self._done, ends, None)
            else:
                self._written += 1
                self._tell()
                self._relieve()
            return not self._waits()
        if size <= MOST_BYTES and self._writer.prefers_here():
            short = partial(self._store.write, writes, wait=False)
            try:
                if self._writer.here(short if self.timed is None else self.timed(short)):
                    self._done(ends, None)
                    return not self._waits()
            except BaseException as error:
                self._done(ends, error)
                return False
        self._writing = True
        work = partial(self._store.write, writes)
        self._writer.submit(
            work if self.timed is None else self.timed(work),
            lambda _, error: self._thread_done(ends, error),
        )
        return False

    def _gather(self) -> tuple[list[Call | Item], Writes, int]:
        machine, warn = self._machine, self._warn
        changed = machine.changed
        # It stays the same list: a worker that runs items adds to it, and this may be called by
        # the code of one.
        calls = changed[:MOST]
        del changed[:MOST]
        ends: list[Call | Item] = []
        tasks: list[TaskRow] = []
        fences = self._epochs
        size = 0
        last: Run | None = None
        for call in calls:
            if isinstance(call, Item):
                row = rows.item_row(call, warn)
                tasks.append(row)
                ends.append(call)
                if row.result is not None:
                    size += len(row.result)
                if call.batch.run is not last:
                    last = call.batch.run
                    fences[last.pk] = last.epoch
                continue
            call.dirty = False
            if call.spec.is_flow:
                # A child run keeps its own row; only its end as a call is settled here.
                if call.phase.is_final:
                    ends.append(call)
                continue
            row = rows.task_row(call, warn)
            tasks.append(row)
            if row.result is not None:
                size += len(row.result)
            if call.cache_key is not None:
                cached = rows.cache_row(call, row.result_kind, row.result)
                if cached is not None:
                    self._cache.append(cached)
            if call.run is not last:
                last = call.run
                fences[last.pk] = last.epoch
            if call.phase.is_final or call.retry_at is not None or call.aside is not None:
                ends.append(call)
                if call.phase is not _COMPLETED:
                    self._events.append(rows.task_event(row))
        writes = Writes(
            tasks,
            list(self._runs.values()),
            self._attempts,
            self._logs,
            self._states,
            self._marks,
            [],
            self._cache,
            self._events,
            list(self._artifacts.values()),
            fences,
        )
        size += sum(len(row.data) for row in writes.artifacts)
        self._runs, self._attempts, self._logs = {}, [], []
        self._states, self._marks, self._cache = [], [], []
        self._events, self._artifacts, self._epochs = [], {}, {}
        if self.hide is not None:
            self.hide(writes)
        return ends, writes, size

    def _thread_done(self, ends: list[Call | Item], error: BaseException | None) -> None:
        self._writing = False
        self._done(ends, error)

    def _done(self, ends: list[Call | Item], error: BaseException | None) -> None:
        if error is not None:
            self._break(error)
            return
        self._written += 1
        if self._eventful:
            self._eventful = False
            if self.happened is not None:
                self.happened()
        if ends:
            self._committed(ends)
        if self._waiters:
            self._tell()
        self._relieve()
        if self._waits():
            self.soon()
        self._since_checkpoint += 1
        if self._since_checkpoint >= CHECKPOINT_EVERY:
            self._since_checkpoint = 0
            self._writer.submit(self._store.checkpoint, lambda _, error: self._checkpointed(error))

    def _break(self, error: BaseException) -> None:
        """The storage failed. What became of the transaction, if it was one, is not known."""
        if self._broken is not None:
            return
        self._broken = error
        for _, waiter in self._waiters:
            if not waiter.done():
                waiter.set_exception(error)
        self._waiters = []
        self._failed(error)
        self._relieve()

    def _checkpointed(self, error: BaseException | None) -> None:
        if error is not None:
            # All is in the WAL still; but a disk that loses what it is given is not trusted on.
            self._break(error)
        elif self._waits():
            self.soon()

    def _tell(self) -> None:
        keep = []
        for until, waiter in self._waiters:
            if until <= self._written:
                if not waiter.done():
                    waiter.set_result(None)
            else:
                keep.append((until, waiter))
        self._waiters = keep

    async def durable(self) -> None:
        """Wait until everything that happened before this call is on disk.

        Raises:
            StoreError: the storage failed.
        """
        self._check()
        if not self._writing and (not self._waits() or self.write()):
            return
        self._check()
        # The transaction under way, and those that take what has gathered so far: what comes
        # later is behind it, and nobody waits for that here.
        until = self._gathered
        if self._waits():
            until += max(1, -(-len(self._machine.changed) // MOST))
        if until > self._written:
            waiter: asyncio.Future[None] = self._loop.create_future()
            self._waiters.append((until, waiter))
            self.soon()
            await waiter
        self._check()

    def _check(self) -> None:
        if self._broken is not None:
            raise as_store_error(self._broken)

    def write_limit(self, writes: Writes) -> Any:
        """Write rows that belong to no run, such as limits."""
        return self._writer.do(lambda: self._store.write(writes))


def as_store_error(error: BaseException) -> BaseException:
    """The error as users see it."""
    if isinstance(error, StoreError):
        # A new one each time: one exception object must not be raised in many places.
        return type(error)(*error.args)
    return error
