"""Carries out what the machine decides about calls: starts, times, stops and finishes them.

This is the hot path. A call that waits costs nothing but its place in a line; a worker is an
asyncio task that steps one call after another (`asyncflow.drive`), so a mapped item needs no
task of its own. Workers are started when there is room for calls and end when there is none.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextvars import Context
from datetime import UTC, datetime
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from weakref import ref

from asyncflow import drive as driving
from asyncflow.context import CURRENT
from asyncflow.errors import (
    InvalidParameters,
    QueueTimeout,
    Skipped,
    TaskCancelled,
    TaskTimeout,
    Unresponsive,
    WorkerLost,
)
from asyncflow.failures import blame, dump, is_rolled_back, note_attempts, told
from asyncflow.limits import RETAKE
from asyncflow.machine import Machine
from asyncflow.retry import shown_seconds
from asyncflow.run import MISSING, Batch, Call, Hold, Item, Run
from asyncflow.states import SKIPPED, State, StateType
from asyncflow.store.base import AttemptRow
from asyncflow.writer import uncancelled

if TYPE_CHECKING:
    from asyncflow.clock import Clock
    from asyncflow.journal import Journal
    from asyncflow.metrics import Metrics
    from asyncflow.runner.threads import Threads
    from asyncflow.tracing import Tracing

S = StateType
_COMPLETED, _PENDING, _SCHEDULED = S.COMPLETED, S.PENDING, S.SCHEDULED
_drive = driving.drive
_set_current = CURRENT.set

#: Calls that are finished in one turn of the loop before others get theirs.
TURN = 512
#: Seconds between two times that stubborn code is told to stop. Not at once again: an orderly
#: clean-up may await, too.
REMIND = 0.05
#: Seconds by which deadlines of equal timeouts may stand out of order.
ORDERLY = 0.005
#: Attempts of one call that may be cut off by the death of a worker process.
MOST_LOSSES = 3
#: Calls that have run so long (seconds) are recorded as running.
NOTICE = 0.2

#: States of a call whose code has just returned, unless that decided what becomes of it.
_UNDER_WAY = (S.RUNNING, S.CANCELLING)

#: Types that a result can have without being a state or future, checked first.
_PLAIN = frozenset({type(None), int, str, float, bool, bytes, dict})


class Bodies(Protocol):
    """What lies beyond the plain coroutine function: prepared and run elsewhere."""

    def prepare(self, call: Call, context: Context) -> Generator[Any, Any, None]:
        """Fill in resources, name the run, tell on_running."""
        ...

    def invoke(self, call: Call, context: Context) -> Generator[Any, Any, Any]:
        """Run the function of the call where it belongs; its value or exception."""
        ...


class ItemCalls(Protocol):
    """What is asked of whoever knows the identities of a map's items."""

    def item_identity(self, batch: Batch, index: int, args: Any, kwargs: Any) -> bytes:
        """The identity of an item that is being started."""
        ...

    def answer(self, batch: Batch, most: int) -> int:
        """Answer the next items from the store, as far as it knows them; how many."""
        ...


class Cache(Protocol):
    """What is asked of whoever knows the results of other runs."""

    def ask(self, calls: list[Call]) -> None:
        """Answer these calls, or let them get in line, now or later."""
        ...

    def landed(self, calls: list[Call]) -> None:
        """These calls, which had keys, have settled."""
        ...

    def leaders(self) -> dict[Call, Call]:
        """For each call that waits for the result of another one: that one."""
        ...


class Asides(Protocol):
    """What is asked of whoever sees to calls whose own code has failed for good."""

    def begin(self, call: Call) -> None:
        """Its failure is on record: make its fallback, or let its run wait for a person."""
        ...


class _Step(NamedTuple):
    """The first step of an item's code, and what came of it: it waits, or ended.

    Attributes:
        awaited: what it waits for, `FRESH` where it ended.
        value: what it returned; `error`: what it raised.
    """

    call: Call
    coro: Any = None
    context: Any = None
    awaited: Any = driving.FRESH
    value: Any = None
    error: BaseException | None = None


class _Deadlines:
    """The running calls that have the same `timeout_seconds`, in order of their deadlines."""

    __slots__ = ("calls", "timer")

    def __init__(self) -> None:
        self.calls: dict[Call, None] = {}
        self.timer: asyncio.TimerHandle | None = None


class Executor:
    """Runs the calls of one engine on one event loop."""

    def __init__(
        self,
        machine: Machine,
        loop: asyncio.AbstractEventLoop,
        clock: Clock,
        threads: Threads,
        rng: Random,
        grace: float,
    ) -> None:
        self.machine = machine
        self.loop = loop
        self.clock = clock
        self.threads = threads
        self.rng = rng
        self.grace = grace
        self.journal: Journal | None = None
        self.bodies: Bodies | None = None
        self.calls: ItemCalls | None = None
        self.cache: Cache | None = None
        self.metrics: Metrics | None = None
        self.tracing: Tracing | None = None
        self.asides: Asides | None = None
        self.hungry: Callable[[set[Any]], None] | None = None
        self.steady: Clock = clock  # by which deadlines are judged
        self.hooks: Callable[[Any, Any, State[Any]], Awaitable[None]] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._left = TURN
        self._turning = False
        self._pumping = False
        self._parked = 0  # workers that wait for a turn
        self._timeouts: dict[float, _Deadlines] = {}
        self.running: dict[Call, None] = {}
        self.queueing: dict[Hold, None] = {}  # of code under way, for units that are not free
        self._began = 0.0  # when the code of the last item was entered
        self._tick: asyncio.TimerHandle | None = None
        self._tick_at = 0.0
        self._notice: asyncio.TimerHandle | None = None

    # --- carrying out ---------------------------------------------------------------------------

    def pump(self) -> None:
        """Carry out what the machine has decided: to be called after each verb."""
        if self._pumping:
            return
        machine = self.machine
        self._pumping = True
        try:
            self.drain()
            while (call := self._next()) is not None:
                self._spawn(call)
                batch = call.batch
                if (
                    batch is not None
                    and batch.light
                    and not batch.waited
                    and machine.only_waits(batch)
                ):
                    # Perhaps its code never waits: one worker is enough until it does.
                    break
            if machine.hungry or machine.ended:
                self.drain()
        finally:
            self._pumping = False
        self._arm_tick()

    def drain(self) -> None:
        """Carry out everything but the start of calls."""
        machine = self.machine
        while (
            machine.ended
            or machine.stops
            or machine.awake
            or machine.queued
            or machine.asking
            or machine.landed
        ):
            if machine.ended:
                ended, machine.ended = machine.ended, []
                self.acknowledge(ended)
            if machine.stops:
                stops, machine.stops = machine.stops, []
                for call in stops:
                    self.stop(call, "cancel")
            if machine.queued:
                queued, machine.queued = machine.queued, []
                for call in queued:
                    self._bound(call)
            if machine.awake:
                self._wake_all()
            if machine.landed and self.cache is not None:
                landed, machine.landed = machine.landed, []
                self.cache.landed(landed)
            if machine.asking and self.cache is not None:
                asking, machine.asking = machine.asking, []
                self.cache.ask(asking)
        if machine.changed and self.journal is not None:
            self.journal.soon()
        if machine.hungry:
            hungry, machine.hungry = machine.hungry, set()
            if self.hungry is not None:
                self.hungry(hungry)

    def acknowledge(self, calls: Sequence[Call | Item]) -> None:
        """These calls have ended, and that is recorded as far as it has to be."""
        machine = self.machine
        batch, count = None, 0
        for call in calls:
            if isinstance(call, Item):
                if call.made is not None:
                    if not call.made.settled:
                        machine.settle(call.made)
                    continue
                its = call.batch
                if its.results[call.index] is not call:
                    continue  # nobody had to wait for its record
                if its is not batch:
                    if batch is not None and count:
                        machine.items_completed(batch, count)
                    batch, count = its, 0
                its.results[call.index] = call.value
                count += 1
            elif call.phase is _COMPLETED and not call.spec.has_hooks:
                if not call.settled:
                    machine.settle(call)
            elif call.settled:
                continue
            elif call.aside is not None and not call.phase.is_final:
                if self.asides is not None:
                    # Not from within `pump`, which would not start what this makes.
                    self.loop.call_soon(self.asides.begin, call)
            elif call.phase is _SCHEDULED:
                if call.retry_at is not None:
                    wait = call.retry_at - self.steady.time()
                    machine.retry_at(call, self.loop.time() + max(0.0, wait))
            elif call.spec.has_hooks:
                self.background(self._tell_hooks(call), "asyncflow-hooks")
            else:
                machine.settle(call)
        if batch is not None and count:
            machine.items_completed(batch, count)

    def committed(self, calls: Sequence[Call | Item]) -> None:
        """The journal has recorded the ends of these calls, or their wait for a retry."""
        self.acknowledge(calls)
        self.pump()

    async def _tell_hooks(self, call: Call) -> None:
        try:
            if self.hooks is not None:
                await self.hooks(call.spec, call, self.state_of(call))
        finally:
            self.machine.settle(call)
            self.pump()

    def _next(self) -> Call | None:
        """The next call that a worker should run; wakes everybody else whose turn it is."""
        machine = self.machine
        while (waiter := machine.next(self.loop.time())) is not None:
            if type(waiter) is Hold:
                self._wake(waiter.direct)
                continue
            call: Call = waiter
            if call.phase is not _PENDING and call.phase.is_final:
                machine.settle(call)
                if machine.awake:
                    self._wake_all()
                self._left -= 1
                if call.batch is not None and self.calls is not None:
                    self._left -= self.calls.answer(call.batch, self._left)
                    if machine.awake:
                        self._wake_all()
                if self._left <= 0:
                    # A long map that is answered from the store must not hold the loop.
                    self._soon_again()
                    return None
            elif call.direct is not None:
                self._wake(call.direct)
            else:
                return call
        return None

    def spent(self) -> bool:
        """Whether the loop should take a turn before more calls are answered from the store."""
        self._left -= 1
        if self._left > 0:
            return False
        self._soon_again()
        return True

    def _soon_again(self) -> None:
        if not self._turning:
            self._turning = True
            self.loop.call_soon(self._new_turn)

    def _new_turn(self) -> None:
        self._turning = False
        self._left = TURN
        if not self._parked:
            # Else those workers go on, and see to it that others do.
            self.pump()

    @staticmethod
    def _wake(waiter: asyncio.Future[None] | None) -> None:
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _wake_all(self) -> None:
        machine = self.machine
        while machine.awake:
            awake, machine.awake = machine.awake, []
            for item in awake:
                if isinstance(item, Run):
                    self._wake(item.idle)
                    continue
                if isinstance(item, Call):
                    self._wake(item.direct)  # it ended before it was its turn
                waiters, item.waiters = item.waiters, None
                for waiter in waiters or ():
                    if isinstance(waiter, asyncio.Future):
                        self._wake(waiter)
                    else:
                        self.loop.call_soon(waiter, item)

    def _spawn(self, call: Call) -> None:
        worker = self.background(_Steps(self._work(call)).run(), "asyncflow-worker")
        worker.add_done_callback(self._worker_ended)

    def _worker_ended(self, worker: asyncio.Task[Any]) -> None:
        error = None if worker.cancelled() else worker.exception()
        # Asked for, so that asyncio does not tell it again: these two have left the loop already.
        if error is not None and not isinstance(error, KeyboardInterrupt | SystemExit):
            about = {"message": "a worker of asyncflow failed", "exception": error, "task": worker}
            self.loop.call_exception_handler(about)

    def background(self, coro: Any, name: str) -> asyncio.Task[Any]:
        """Start a task that the engine keeps until it is done."""
        task: asyncio.Task[Any] = self.loop.create_task(coro, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _work(self, call: Call | None) -> Generator[Any, Any, None]:
        """Run calls one after another, while there are any that may run."""
        machine, journal = self.machine, self.journal
        time, running = self.clock.time, self.running
        traced = self.tracing is not None
        step: _Step | None = None
        while call is not None:
            spec = call.spec
            waits = False
            began = 0.0
            awaited = value = coro = context = None
            if step is None and call.phase.is_final:
                # It was cancelled after it was chosen, which gave its slots back.
                pass
            elif step is not None or not (spec.slow or call.upstream or traced):
                # `attempt`, for a coroutine without anything special: the hottest path. Its
                # first step is made here; what does not wait needs nothing else.
                try:
                    if step is None:
                        machine.start(call, time())
                        context = call.context.copy()
                        context.run(_set_current, call)
                        if call.options.timeout is not None:
                            began = self.loop.time()
                        coro = call.body = spec.fn(*call.args, **call.kwargs)
                        try:
                            awaited = context.run(coro.send, None)
                        except StopIteration as end:
                            value = end.value
                        else:
                            waits = True
                    else:
                        _, coro, context, awaited, value, failed = step
                        step = None
                        began = self._began
                        if failed is not None:
                            raise failed
                        waits = awaited is not driving.FRESH
                    if waits:
                        running[call] = None
                        if call.options.timeout is not None:
                            self._arm(call, began)
                        batch = call.batch
                        if batch is not None and batch.light:
                            batch.waited = batch.waited or 1
                            self.pump()
                        if self._notice is None:
                            self._notice = self.loop.call_later(NOTICE, self._note_running)
                        try:
                            value = yield from _drive(call, coro, context, awaited)
                        finally:
                            del running[call]
                except BaseException as error:
                    if call.options.timeout is not None:
                        call.expires = began + call.options.timeout
                    yield from self._ended_badly(call, error)
                else:
                    if call.options.timeout is not None and self._is_late(call, began):
                        yield from self._ended_badly(call, None)
                        value = None
                    call.stop = None
                    if call.phase not in _UNDER_WAY:
                        pass
                    elif value.__class__ in _PLAIN:
                        machine.complete(call, value, time())
                    else:
                        yield from self._ended_well(call, value)
            else:
                yield from self.attempt(call)
            batch = call.batch
            del call
            if machine.awake or machine.ended or machine.changed or machine.stops:
                self.drain()
            if not waits:
                self._left -= 1
            while True:
                while self._left <= 0 or (journal is not None and journal.behind):
                    self._soon_again()
                    self._parked += 1
                    try:
                        if journal is not None and journal.behind:
                            yield from journal.relief()
                        else:
                            yield
                    finally:
                        self._parked -= 1
                if batch is None or not batch.light:
                    call = self._next()
                elif (step := self._items(batch)) is not None:
                    call = step.call
                elif self._left <= 0 and batch.next < batch.size:
                    continue
                else:
                    call = self._next()
                break
            if call is None or self._parked:
                continue
            if call.batch is not None and call.batch.light and machine.only_waits(call.batch):
                continue  # others begin when its code waits, so that they are not overtaken
            if machine.more():
                self.pump()
        if machine.hungry:
            self.drain()
        self._arm_tick()

    def _items(self, batch: Batch) -> _Step | None:
        """Run items of a map one after another in the slots of one, while their code just ends.

        Returns the step of the first that does not: it holds the slots.
        """
        machine, calls = self.machine, self.calls
        if calls is None:
            return None
        if batch.run.history:
            self._left -= calls.answer(batch, max(0, self._left))
            if machine.awake:
                self._wake_all()
            if batch.run.history:
                return None  # each of the others may have a former life that matters
        if batch.next >= batch.size or not machine.sit(batch):
            return None
        options = batch.options
        recording, at_once = machine.recording, machine.at_once
        timeout = options.timeout
        results, known, inputs, column = batch.results, batch.calls, batch.inputs, batch.column
        fn, copy, changed = batch.spec.fn, batch.context.copy, machine.changed
        identify = calls.item_identity
        time, mono = self.clock.time, self.loop.time
        joined, size = machine.joined, batch.size
        index = first = batch.next
        until = min(size, first + self._left)
        kwargs: dict[str, Any] = {}
        now = time() if recording else 0.0
        identity = b""
        done = 0
        step: _Step | None = None
        metrics = self.metrics
        entered = mono() if metrics is not None else 0.0
        while index < until and machine.joined == joined and index not in known:
            if column is not None:
                args = (column[index],)
            else:
                args, kwargs = inputs(index)
            if recording:
                identity = identify(batch, index, args, kwargs)
            item = Item(batch, index, identity, now)
            context = copy()
            context.run(_set_current, item)
            index += 1
            batch.next = index
            if timeout is not None:
                self._began = mono()
            try:
                coro = fn(*args, **kwargs)
                awaited = context.run(coro.send, None)
            except StopIteration as end:
                value = end.value
                if (
                    item.made is None
                    and value.__class__ in _PLAIN
                    and (timeout is None or mono() - self._began < timeout)
                ):
                    done += 1
                    if recording:
                        item.value = value
                        item.ended = now = time()
                        changed.append(item)
                        results[index - 1] = value if at_once else item
                    else:
                        results[index - 1] = value
                    continue
                step = _Step(item.call(), value=value)
            except BaseException as error:
                step = _Step(item.call(), error=error)
            else:
                step = _Step(item.call(), coro, context, awaited)
                batch.waited += 1
                if batch.waited > 8 + (index >> 2):
                    batch.light = False
            break
        self._left -= done
        if done and metrics is not None:
            metrics.stretch(batch, done, mono() - entered)
        if done and at_once:
            machine.items_completed(batch, done)
        if step is None:
            machine.release(batch.limits)
        elif batch.stopped is not None:
            machine.cancel(step.call, batch.stopped, time(), TaskCancelled(batch.stopped))
        if machine.awake or machine.ended or machine.changed or machine.stops:
            self.drain()
        return step

    # --- one attempt ----------------------------------------------------------------------------

    def attempt(self, call: Call) -> Generator[Any, Any, None]:
        """Make one attempt of a call that holds its slots; its state says how it ended."""
        spec, machine = call.spec, self.machine
        machine.start(call, self.clock.time())
        self.running[call] = None
        if self._notice is None:
            self._notice = self.loop.call_later(NOTICE, self._note_running)
        context = call.context.copy()
        context.run(CURRENT.set, call)
        tracing = self.tracing
        if tracing is not None:
            tracing.attempt_begins(call, context)
        try:
            if spec.slow:
                if self.bodies is None:
                    raise RuntimeError("the executor was given no bodies")
                if not spec.is_flow:
                    self._bound_total(call)  # where it did not have to get in line
                yield from self.bodies.prepare(call, context)
                self._arm(call, self.loop.time())
                value = yield from self.bodies.invoke(call, context)
            else:
                self._arm(call, self.loop.time())
                args, kwargs = call.args, call.kwargs
                if call.upstream:
                    args, kwargs = spec.resolve(call)
                value = yield from _drive(call, spec.fn(*args, **kwargs), context)
        except BaseException as error:
            yield from self._ended_badly(call, error)
        else:
            if call.expires is not None:
                self._disarm(call)
                if self.loop.time() >= call.expires:
                    yield from self._ended_badly(call, None)
                    return
            call.stop = None
            call.pending = False
            if call.phase.is_final:
                pass  # its body has recorded its end
            elif value.__class__ in _PLAIN:
                machine.complete(call, value, self.clock.time())
            else:
                yield from self._ended_well(call, value)
        finally:
            self.running.pop(call, None)
            if tracing is not None:
                tracing.attempt_ends(call)

    def _ended_well(self, call: Call, value: Any) -> Generator[Any, Any, None]:
        """Code returned something that may stand for something else."""
        if isinstance(value, State):
            yield from self._ended_as(call, value)
            return
        if isinstance(value, Skipped):
            self._skip(call, value)
            return
        resolve = call.spec.resolve_result
        if resolve is not None and call.spec.returns_futures(value):
            try:
                value = yield from resolve(value).__await__()
            except BaseException as error:
                yield from self._ended_badly(call, error)
                return
        if not call.phase.is_final:
            self.machine.complete(call, value, self.clock.time())

    def _ended_as(self, call: Call, state: State[Any]) -> Generator[Any, Any, None]:
        """Code returned the state that it wants to end in."""
        now = self.clock.time()
        match state.type:
            case S.COMPLETED if state.name == SKIPPED:
                self._skip(call, Skipped(state.message))
            case S.COMPLETED:
                name = None if state.name == "Completed" else state.name
                self.machine.complete(call, state.data, now, name)
                call.message = state.message
            case S.CANCELLED:
                text = state.message or f"{call.display} returned Cancelled"
                self.machine.stopped(call, TaskCancelled(text), now, text)
            case S.FAILED:
                error = state.result(raise_on_failure=False)
                name = None if state.name == "Failed" else state.name
                yield from self._failed(call, error, name, state.message)
            case _:
                text = f"{call.display} returned the state {state.name}, which ends nothing:"
                text += " return Completed, Failed or Cancelled"
                yield from self._failed(call, InvalidParameters(text), None, text)

    def _skip(self, call: Call, skipped: Skipped) -> None:
        """Its own code says that there is nothing to do."""
        self.machine.skip(call, self.clock.time(), skipped.message or "its code had nothing to do")

    def _ended_badly(self, call: Call, error: BaseException | None) -> Generator[Any, Any, None]:
        """Code raised *error*, or returned too late (None): decide what that means."""
        machine, now = self.machine, self.clock.time()
        why, call.stop = call.stop, None
        call.pending = False
        late = False
        if call.expires is not None:
            late = self.loop.time() >= call.expires
            self._disarm(call)
        if call.phase.is_final:
            # It was given up before, or its body has recorded its end.
            if isinstance(error, asyncio.CancelledError) and _host_cancels():
                raise error
            return
        if isinstance(error, GeneratorExit):
            raise error
        if isinstance(error, KeyboardInterrupt | SystemExit):
            machine.fail(call, error, now, None, f"{type(error).__name__} was raised in it")
            raise error
        if call.phase is S.CANCELLING:
            text = call.message
            machine.stopped(call, TaskCancelled(text), now, text, _undone(call))
        elif why == "timeout" or late or (error is None):
            text = self._timeout_text(call)
            timeout = TaskTimeout(text)
            timeout.__cause__ = None if isinstance(error, asyncio.CancelledError) else error
            yield from self._failed(call, timeout, "TimedOut", text)
        elif isinstance(error, asyncio.CancelledError):
            text = "its own code was cancelled from inside"
            if why == "total":
                text = f"{call.display} was stopped after total_timeout_seconds"
                self._fail(call, TaskTimeout(text), now, "TimedOut", text)
                return
            if _host_cancels():
                text = "cancelled by the host of the flow"
            stopped = TaskCancelled(f"{call.display} was cancelled: {text}")
            machine.stopped(call, stopped, now, text, _undone(call))
        elif isinstance(error, Skipped):
            self._skip(call, error)
        else:
            yield from self._failed(call, error, None, "")
        if isinstance(error, asyncio.CancelledError) and _host_cancels():
            # The host's own cancellation passes through, whatever became of the call.
            raise error

    def _timeout_text(self, call: Call) -> str:
        text = f"{call.display} exceeded its timeout of {call.options.timeout:g} s"
        if "did not stop within" in call.message:
            text += f"; {call.message}"
        return text

    def _failed(
        self, call: Call, error: BaseException, name: str | None, text: str
    ) -> Generator[Any, Any, None]:
        """An attempt failed: another follows, or the call has failed."""
        if isinstance(error, WorkerLost) and call.interruptions < MOST_LOSSES:
            # Not the code's failure: it is begun again, and counted apart.
            call.interruptions += 1
            self._back_off(call, error, 0.0, self.clock.time())
            return
        call.failures += 1
        policy, now = call.options.retry, self.clock.time()
        reason = ""
        if policy.retries and policy.answers(call.failures, error):
            wait = yield from self._may_retry(call, error)
            if call.phase.is_final or call.phase is S.CANCELLING:
                # It was cancelled while its retry_condition_fn was asked.
                if call.phase is S.CANCELLING:
                    call.stop, call.pending = None, False
                    self.machine.stopped(call, TaskCancelled(call.message), now, call.message)
                return
            if not isinstance(wait, str):
                self._back_off(call, error, wait, now)
                return
            reason = wait
        note_attempts(error, call.display, call.past or (), call.attempt, reason)
        text = text or told(error)
        self._fail(call, error, now, name, f"{text} ({reason})" if reason else text)

    def _fail(
        self, call: Call, error: BaseException, now: float, name: str | None, text: str
    ) -> None:
        """The call has failed for good; its exception says whose it is (see `failures.blame`).

        Unless its policy makes something else of it.
        """
        blame(error, call)
        policy = call.options.failure_policy
        if policy == "skip":
            self.machine.skip(call, now, f"passed over: {text}", error)
            return
        if policy is not None and policy != "continue" and not call.run.ending:
            self.machine.set_aside(call, error, policy == "pause", text)
            if self.metrics is not None:
                self.metrics.attempted(call, now)
            return
        if name is None and is_rolled_back(error, call.run.pk, call.seq):
            name = "RolledBack"
        self.machine.fail(call, error, now, name, text)
        if call.options.teardown:
            call.run.engine.tell(call.run, f"the teardown {call.display} failed: {text}", call)

    def _may_retry(self, call: Call, error: BaseException) -> Generator[Any, Any, float | str]:
        """Seconds until another attempt; a string, perhaps empty, says why there is none."""
        run, budget = call.run, call.run.options.retry_budget
        if budget is not None and run.retried + 1 > max(1.0, budget * run.seq):
            return f"the retry budget of the flow ({budget:.0%} of its calls) is used up"
        condition = call.options.retry_condition
        if condition is not None:
            state: State[Any] = State(S.FAILED, "", told(error), attempt=call.attempt, error=error)
            try:
                answer = condition(call.spec.task, call.spec.view(call), state)
                if inspect.isawaitable(answer):
                    answer = yield from _awaited(answer).__await__()
            except Exception as raised:
                return f"its retry_condition_fn raised {told(raised, 200)}, so no retry"
            if not answer:
                return ""
        now, deadline = self.clock.time(), call.deadline
        if deadline is not None:
            deadline += now - self.steady.time()
        return call.options.retry.wait(call.failures, error, now, deadline, self.rng)

    def _back_off(self, call: Call, error: BaseException, wait: float, now: float) -> None:
        run = call.run
        run.retried += 1
        line = f"attempt {call.attempt}: {told(error, 500)}"
        call.past = [*(call.past or ()), line]
        text = f"{line[:300]}; next in {shown_seconds(wait)}"
        retry_at = self.steady.time() + wait
        if self.journal is not None:
            self.journal.attempt(
                AttemptRow(
                    run.pk,
                    call.seq,
                    call.attempt,
                    call.started,
                    now,
                    retry_at,
                    run.engine.masker.data(dump(error)),
                )
            )
        self.machine.back_off(call, error, retry_at, text)
        if self.metrics is not None:
            self.metrics.attempted(call, now)
            call.ready = now + wait
        if self.journal is None:
            self.machine.retry_at(call, self.loop.time() + wait)
        elif self.machine.at_once:
            self.acknowledge([call])

    # --- calls of other tasks of the loop -------------------------------------------------------

    async def direct(self, call: Call, upstream: list[Call]) -> None:
        """Make the whole call here, in the task of the caller; returns when it is settled."""
        call.seen = True
        machine = self.machine
        ready = False
        if call.aside is not None:
            machine.resubmit_aside(call)
        else:
            ready = machine.submit(call, upstream, call.created, at_once=True)
        if not ready:
            call.direct = self.loop.create_future()
            self.pump()
        while True:
            if not ready:
                await self._its_turn(call)
            if call.phase.is_final:
                break
            try:
                await _Steps(self.attempt(call))
            except BaseException:
                # The host was cancelled: what became of the call is recorded all the same.
                self.pump()
                raise
            if call.phase is not _SCHEDULED and call.phase is not S.PAUSED:
                break
            ready = False
            call.direct = self.loop.create_future()
            self.pump()
        await self._settled_here(call)

    async def _its_turn(self, call: Call) -> None:
        try:
            while not call.holding and not call.phase.is_final:
                if call.direct.done():
                    if not call.limits:
                        break
                    call.direct = self.loop.create_future()
                await call.direct
        except asyncio.CancelledError:
            text = "cancelled while it waited for its turn"
            self.machine.cancel(call, text, self.clock.time(), TaskCancelled(text))
            self.pump()
            raise
        finally:
            call.direct = None

    async def _settled_here(self, call: Call) -> None:
        """Wait for the record of a call that ended in this task: first try to write it here."""
        self.drain()
        if not call.settled and self.journal is not None and not self.running:
            self.journal.write()
        if not call.settled:
            waiter = self.loop.create_future()
            self.add_waiter(call, waiter)
            await uncancelled(waiter)
        else:
            self.pump()

    def end_early(self, call: Call, value: Any, error: BaseException | None, message: str) -> None:
        """A call that has not begun ends: with a value from the cache, or with an error."""
        if call.phase not in (_PENDING, _SCHEDULED) or call.aside is not None:
            return
        now = self.clock.time()
        call.retry_at = None
        if error is None:
            call.message = message
            self.machine.complete(call, value, now, "Cached")
        else:
            self._fail(call, error, now, None, message)
        self.wake_ended(call)

    def wake_ended(self, call: Call) -> None:
        """Have whoever makes a call himself go on, if it has ended before its turn came."""
        if call.phase.is_final:
            self._wake(call.direct)

    def add_waiter(self, item: Call | Batch, waiter: Any) -> None:
        """Have *waiter* (a future, or a function of the item) told when the item settles.

        On the loop only. What has settled since a thread asked is told at once.
        """
        if item.settled if isinstance(item, Call) else not item.open:
            if isinstance(waiter, asyncio.Future):
                self._wake(waiter)
            else:
                self.loop.call_soon(waiter, item)
            return
        if item.waiters is None:
            item.waiters = []
        item.waiters.append(waiter)

    async def wait(self, item: Call | Batch) -> None:
        """Wait until a call or a whole map has settled."""
        waiter = self.loop.create_future()
        self.add_waiter(item, waiter)
        try:
            await waiter
        finally:
            if item.waiters is not None and waiter in item.waiters:
                item.waiters.remove(waiter)

    async def lend_while(self, call: Call, waiting: Awaitable[Any]) -> Any:
        """Await something for the code of *call*, whose slots others may have meanwhile.

        Its code may wait in several tasks at once (`asyncio.gather`): it takes its slots back
        when the last of them goes on.
        """
        call.lends += 1
        self.machine.lend(call)
        self.pump()
        try:
            result = await waiting
        except asyncio.CancelledError:
            call.lends -= 1
            if not call.lends and not call.phase.is_final:
                # It must not wait now: its slots are taken back only where they are free.
                self.machine.retake_now(call)
            raise
        except BaseException:
            call.lends -= 1
            await self._retake(call)
            raise
        call.lends -= 1
        await self._retake(call)
        return result

    async def _retake(self, call: Call) -> None:
        if call.lends or not call.limits or call.phase.is_final:
            return
        if self.machine.retake_now(call):
            return
        hold = Hold(call.run, call, self.machine.lent(call), RETAKE)
        await self.hold(hold)
        if call.lends or call.holding or call.phase.is_final:
            # Its code went on in another task meanwhile, and waits again or has ended.
            self.release(hold)
            return
        self.machine.retaken(call, hold.limits)

    async def hold(self, hold: Hold) -> None:
        """Wait in line until *hold* has its units."""
        hold.direct = self.loop.create_future()
        self.machine.wait_for_slots(hold)
        self.pump()
        if not hold.direct.done():
            self.queueing[hold] = None
        try:
            await hold.direct
        except asyncio.CancelledError:
            hold.live = False
            if hold.holding:
                self.release(hold)
            raise
        finally:
            self.queueing.pop(hold, None)

    def release(self, hold: Hold) -> None:
        """Give back what *hold* has."""
        if hold.holding:
            hold.holding = False
            hold.live = False
            self.machine.release(hold.limits)
            self.pump()

    # --- teardowns ------------------------------------------------------------------------------

    def hurry(self, run: Run) -> None:
        """A run is being stopped: from now on its teardowns have only so much time."""
        for call in run.calls:
            if call.options.teardown and not call.waiting:
                self._bound_teardown(call)

    def _bound_teardown(self, call: Call) -> None:
        """Its attempts within their own timeout, and all its waits within the grace."""
        options = call.options
        seconds = self.grace if options.grace is None else options.grace
        if options.timeout is not None:
            seconds += options.timeout * (options.retry.retries + 1)
        self.loop.call_later(seconds, self._teardown_over, call, seconds)

    def _teardown_over(self, call: Call, seconds: float) -> None:
        if not call.phase.is_final and call.phase is not S.CANCELLING:
            text = f"the teardown {call.display} did not end within {seconds:g} s"
            call.run.engine.tell(call.run, text, call)
            self.cancel(call, text)

    # --- stopping -------------------------------------------------------------------------------

    def cancel(self, call: Call, text: str) -> None:
        """Cancel one call."""
        self.machine.cancel(call, text, self.clock.time(), TaskCancelled(text))
        self.pump()

    def stop(self, call: Call, why: str) -> None:
        """Tell the running code of a call to stop, and see to it that it does."""
        grace = call.options.grace
        until = self.loop.time() + (self.grace if grace is None else grace)
        driving.stop(call, why)
        if call.child is not None and call.child.engine is not None:
            call.child.engine.cancel_child(call.child, call.message)
        self.loop.call_later(REMIND, self._remind, call, call.attempt, why, until)

    def _remind(self, call: Call, attempt: int, why: str, until: float) -> None:
        if call.attempt != attempt or call not in self.running or call.stop is None:
            return
        now = self.loop.time()
        if call.rolling:
            # It undoes what it did, each step within its own time.
            grace = self.grace if call.options.grace is None else call.options.grace
            again = (call, attempt, why, now + REMIND + grace)
            self.loop.call_at(now + REMIND, self._remind, *again)
            return
        if now >= until:
            self._give_up(call)
            return
        if call.child is None:
            driving.stop(call, why)
        self.loop.call_at(min(now + REMIND, until), self._remind, call, attempt, why, until)

    def _give_up(self, call: Call) -> None:
        """The code of a call does not stop: end it by force, or go on without it."""
        grace = self.grace if call.options.grace is None else call.options.grace
        place = driving.where(call)
        at = f" at {place}" if place else ""
        call.message = f"{call.display} did not stop within {grace:g} s{at}"
        if call.body is not None and hasattr(call.body, "abandon"):
            call.body.abandon(Unresponsive(call.message))
        else:
            driving.stop(call, driving.KILL)

    # --- time -----------------------------------------------------------------------------------

    def _arm(self, call: Call, began: float) -> None:
        """Begin the timeout of an attempt whose code was entered at *began* (monotonic)."""
        seconds = call.options.timeout
        if seconds is None:
            return
        call.expires = began + seconds
        if call.options.timeout_mode == "soft":
            return
        group = self._timeouts.get(seconds)
        if group is None:
            group = self._timeouts[seconds] = _Deadlines()
        last = next(reversed(group.calls), None)
        if last is not None and (last.expires or 0.0) > call.expires + ORDERLY:
            # Its first step took so long that others, armed before it, have later deadlines.
            self.loop.call_at(call.expires, self._expire_one, call, call.attempt)
            return
        group.calls[call] = None
        if group.timer is None:
            group.timer = self.loop.call_at(call.expires, self._expire, seconds)

    def _is_late(self, call: Call, began: float) -> bool:
        """Whether an attempt that has returned took longer than its timeout."""
        if call.expires is not None:
            self._disarm(call)
        call.expires = began + (call.options.timeout or 0.0)
        return self.loop.time() >= call.expires

    def _disarm(self, call: Call) -> None:
        timeout = call.options.timeout
        if timeout is not None:
            group = self._timeouts.get(timeout)
            if group is not None:
                group.calls.pop(call, None)

    def _expire(self, seconds: float) -> None:
        """Stop the calls whose timeout is over: the oldest of their group."""
        group = self._timeouts[seconds]
        group.timer = None
        now = self.loop.time()
        while group.calls:
            call = next(iter(group.calls))
            assert call.expires is not None
            if call.expires > now:
                group.timer = self.loop.call_at(call.expires, self._expire, seconds)
                return
            del group.calls[call]
            self.stop(call, "timeout")
        del self._timeouts[seconds]

    def _expire_one(self, call: Call, attempt: int) -> None:
        if call in self.running and call.attempt == attempt:
            self.stop(call, "timeout")

    def _bound(self, call: Call) -> None:
        """A call with a total or queue timeout has got in line."""
        self._bound_total(call)
        if call.options.queue_timeout is not None:
            wait = call.options.queue_timeout
            self.loop.call_later(wait, self._queue_over, call, call.attempt)

    def _bound_total(self, call: Call) -> None:
        options = call.options
        if options.teardown and call.run.ending:
            self._bound_teardown(call)
        if options.total_timeout is not None and call.deadline is None:
            call.deadline = self.steady.time() + options.total_timeout
        if call.deadline is not None and call.timer is None:
            wait = max(0.0, call.deadline - self.steady.time())
            call.timer = self.loop.call_later(wait, self._total_over, call)

    def _total_over(self, call: Call) -> None:
        if call.phase.is_final or call.aside is not None:
            return
        if call in self.running:
            self.stop(call, "total")
            return
        text = f"{call.display} exceeded its total timeout of {call.options.total_timeout:g} s"
        self._fail(call, TaskTimeout(text), self.clock.time(), "TimedOut", text)
        self.wake_ended(call)
        self.pump()

    def _queue_over(self, call: Call, attempt: int) -> None:
        self._leave_line(call, attempt)
        self.pump()

    def _leave_line(self, call: Call, attempt: int) -> None:
        if call.phase.is_final or call.attempt != attempt or call.holding or call.aside:
            return
        text = f"{call.display} got no slot within {call.options.queue_timeout:g} s"
        self._fail(call, QueueTimeout(text), self.clock.time(), "TimedOut", text)
        self.wake_ended(call)

    def bound_batch(self, batch: Batch) -> None:
        """A map got in line: its items do not wait there for ever, if that is bounded."""
        wait = batch.options.queue_timeout
        if wait is not None:
            self.loop.call_later(wait, self._batch_over, ref(batch))

    def _batch_over(self, kept: ref[Batch]) -> None:
        batch = kept()
        if batch is None:
            return
        for call in self.machine.untaken(batch):
            if call.phase.is_final:
                self.machine.settle(call)  # answered from the store, before it was its turn
            else:
                self._leave_line(call, 0)
        self.pump()

    def _arm_tick(self) -> None:
        """Have the machine told when something of its own falls due."""
        when = self.machine.next_tick(self.loop.time())
        if when is None:
            return
        if self._tick is not None:
            if self._tick_at <= when:
                return
            self._tick.cancel()
        self._tick_at = when
        self._tick = self.loop.call_at(when, self._ticked)

    def _ticked(self) -> None:
        self._tick = None
        self.machine.tick(self.loop.time())
        self.pump()

    def _note_running(self) -> None:
        """Record calls that have been running for a while, so that others can see them."""
        self._notice = None
        if not self.running:
            return
        before = self.clock.time() - NOTICE
        for call in self.running:
            old = call.started is not None and call.started <= before
            if old and not call.dirty and call.noticed != call.attempt:
                call.noticed = call.attempt
                self.machine.note(call)
        if self.machine.changed and self.journal is not None:
            self.journal.soon()
        self._notice = self.loop.call_later(NOTICE, self._note_running)

    # --- the end --------------------------------------------------------------------------------

    @staticmethod
    def state_of(call: Call) -> State[Any]:
        """The state of a call, for people and hooks."""
        return state_of(call)

    async def aclose(self) -> None:
        """Wait for what is still on its way; cancel timers."""
        for handle in (self._tick, self._notice):
            if handle is not None:
                handle.cancel()
        self._tick = self._notice = None
        for group in self._timeouts.values():
            if group.timer is not None:
                group.timer.cancel()
        self._timeouts.clear()
        tasks = [t for t in self._tasks if t is not asyncio.current_task()]
        if tasks:
            await asyncio.wait(tasks, timeout=1.0)


class _Steps:
    """A generator of steps as something that can be awaited."""

    __slots__ = ("steps",)

    def __init__(self, steps: Generator[Any, Any, Any]) -> None:
        self.steps = steps

    def __await__(self) -> Generator[Any, Any, Any]:
        return self.steps

    async def run(self) -> Any:
        return await self


def _host_cancels() -> bool:
    """Whether the asyncio task that carries this code is being cancelled from outside."""
    carrier = asyncio.current_task()
    return carrier is not None and carrier.cancelling() > 0


def _undone(call: Call) -> str | None:
    """The name of the state of a call that was stopped: whether it has undone what it did."""
    return "RolledBack" if call.undone else None


async def _awaited(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


def state_of(call: Call) -> State[Any]:
    """The public state of a call."""
    moment = call.ended if call.ended is not None else call.started or call.created
    data = None
    error = call.error
    if call.phase is _COMPLETED:
        error = None
        if call.value is MISSING:
            error = call.error
        else:
            data = call.value
    return State(
        call.phase,
        call.shown_phase,
        call.message,
        datetime.fromtimestamp(moment, UTC),
        call.attempt,
        data,
        error,
    )
