"""The engine: what an application opens, and what ties all parts together."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import json
import logging
import os
import platform
import sys
import threading
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextvars import Context, Token, copy_context
from functools import partial
from math import inf
from pathlib import Path
from queue import SimpleQueue
from random import Random
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from asyncflow import codec, edits, rows
from asyncflow.artifacts import Shown
from asyncflow.asides import Asides
from asyncflow.asking import Answers, tag_set
from asyncflow.bodies import Bodies
from asyncflow.calls import Calls, Inputs
from asyncflow.clock import Clock, SteadyClock, WallClock, since_boot
from asyncflow.commanding import Commands
from asyncflow.context import CURRENT, ENGINE
from asyncflow.errors import (
    AlreadyAnswered,
    AsyncflowError,
    BlockingCall,
    InvalidOption,
    InvalidParameters,
    ResultUnreadable,
    RunNotResumable,
    StoreClosed,
    StoreError,
    TaskCancelled,
    UnknownFlow,
    Unresponsive,
)
from asyncflow.executor import Executor
from asyncflow.flights import Flights
from asyncflow.flowrun import GOES_ON, Flows, run_state
from asyncflow.future import TaskFuture
from asyncflow.handle import FlowRun
from asyncflow.hooks import Hooks
from asyncflow.journal import Journal, as_store_error
from asyncflow.limits import Limit, Slots, check_kept
from asyncflow.machine import Machine
from asyncflow.masking import Masker
from asyncflow.moving import Moving
from asyncflow.named import NamedLimits
from asyncflow.options import check_count, check_seconds
from asyncflow.ownership import EngineLock, MemoryLock
from asyncflow.planned import Plans
from asyncflow.recovery import POLL, Recovery
from asyncflow.registry import find, keep_last
from asyncflow.resources import Opened, Resource
from asyncflow.retention import Retention
from asyncflow.run import Batch, Call, Hold, Item, Run
from asyncflow.runner.threads import Threads
from asyncflow.sharing import Sharing
from asyncflow.spec import is_shielded
from asyncflow.states import Failed, State, StateType
from asyncflow.store.base import (
    ALL,
    EngineRow,
    LimitRow,
    LogRow,
    MarkRow,
    MessageRow,
    ReadableStore,
    ResultKind,
    RunRow,
    StateRow,
    TaskRow,
    Writes,
)
from asyncflow.telling import Telling
from asyncflow.variables import Variables
from asyncflow.views import (
    moment,
    row_state,
)
from asyncflow.waiting import Waiting
from asyncflow.writer import Writer, uncancelled

if TYPE_CHECKING:
    from asyncflow.flows import Flow
    from asyncflow.metrics import Metrics
    from asyncflow.store.base import Reader
    from asyncflow.tracing import Tracing
    from asyncflow.watchdog import Watchdog

R = TypeVar("R")
T = TypeVar("T")
S = StateType

DURABILITIES = ("full", "strict", "relaxed", "off")

_log = logging.getLogger("asyncflow")


def default_database() -> Path:
    """Where an engine keeps its state when nothing says otherwise."""
    named = os.environ.get("ASYNCFLOW_DATABASE")
    return Path(named) if named else Path(".asyncflow") / "asyncflow.db"


class Engine(Answers, Moving, Plans, Variables):
    """Runs flows in the event loop in which it is opened, and keeps their state.

    Use it as an async context manager. While it is open, flows that are called in the same
    context run on it. It starts no process, opens no port and sets no signal handler.

    Args:
        store: a path, a store, or None for ``$ASYNCFLOW_DATABASE``, else
            ``.asyncflow/asyncflow.db``.
        max_concurrency: how many task calls are under way at once, over all runs.
        max_threads: how many plain functions run at once; by default min(32, CPUs + 4).
        durability: "full" survives power cuts, "strict" (default) every death of the process,
            "relaxed" does not wait for the disk, "off" stores no task runs at all.
        max_recoveries: recoveries of a run in a row without a newly completed task.
        cancel_grace_seconds: how long code may take to stop.
        hook_timeout_seconds: how long a hook may take before it is cancelled and left; None: as
            long as it likes.
        retention_days: ended runs that are older are removed from the store, in the background
            and with all that belongs to them; None keeps all.
        suspend_after_seconds: a run that has only waited (`sleep`, `wait_for_event`,
            `pause_flow_run`) for so long leaves memory until the wait is over; its body is
            replayed then. None keeps all in memory.
        metrics: whether runs, tasks and waits are counted from the beginning; by default, from
            when `metrics_text` is first asked.
        tracing: spans of OpenTelemetry for runs, task runs and attempts: True for those of the
            global provider, or a provider, or False for none; by default, if a global provider
            has been set when the engine is opened.
        blocked_loop_seconds: code of a run that keeps the event loop from turning for so long is
            named, with its line, in a warning among the log lines of the run; None: it is not.
        seed: of all chance (jitter), for tests.
        clock: what tells wall time, for tests.

    Raises:
        InvalidOption: a value makes no sense.
        MissingExtra: something is asked for whose package is not installed.
        StoreError: on opening, the store cannot be used; it says why and what to do.
    """

    def __init__(
        self,
        store: str | os.PathLike[str] | ReadableStore | None = None,
        *,
        max_concurrency: int | None = 1000,
        max_threads: int | None = None,
        durability: str = "strict",
        max_recoveries: int = 3,
        cancel_grace_seconds: float = 30.0,
        hook_timeout_seconds: float | None = 30.0,
        retention_days: float | None = 30.0,
        suspend_after_seconds: float | None = 60.0,
        metrics: bool = False,
        tracing: Any = None,
        blocked_loop_seconds: float | None = 0.5,
        seed: int | None = None,
        clock: Clock | None = None,
    ) -> None:
        if durability not in DURABILITIES:
            raise InvalidOption(f"durability={durability!r}: use one of {', '.join(DURABILITIES)}")
        check_count("max_concurrency", max_concurrency, 1)
        check_count("max_threads", max_threads, 1)
        check_count("max_recoveries", max_recoveries, 0)
        check_seconds("cancel_grace_seconds", cancel_grace_seconds)
        check_seconds("hook_timeout_seconds", hook_timeout_seconds)
        check_seconds("suspend_after_seconds", suspend_after_seconds)
        self.durability = durability
        self.max_recoveries = max_recoveries
        self.grace = float(cancel_grace_seconds)
        if retention_days is not None and not retention_days > 0:
            raise InvalidOption(
                f"retention_days={retention_days!r}: give days above 0, or None to keep all"
            )
        self._retention_days = retention_days
        self._hook_timeout = hook_timeout_seconds
        self._suspend_after = suspend_after_seconds
        self._wants_metrics = bool(metrics)
        if metrics:
            from asyncflow.metrics import check_package

            check_package()
        self.metrics: Metrics | None = None
        check_seconds("blocked_loop_seconds", blocked_loop_seconds)
        if blocked_loop_seconds == 0:
            raise InvalidOption("blocked_loop_seconds=0: give seconds above 0, or None")
        self._blocked_loop = blocked_loop_seconds
        self.watchdog: Watchdog | None = None
        self._wants_tracing = tracing
        self.tracing: Tracing | None = None
        if tracing is not None and tracing is not False:
            from asyncflow.tracing import provider_of

            provider_of(tracing)
        self.clock = clock or WallClock()
        self.rng = Random(seed)
        self._given_store = store
        self._max_concurrency = max_concurrency
        self._max_threads = max_threads or min(32, (os.cpu_count() or 1) + 4)
        self._open = False
        self._token: Token[Engine | None] | None = None
        self.masker = Masker()
        self.holders: dict[object, list[Hold]] = {}
        self.waiters: dict[Hold, None] = {}
        self.live: dict[str, Run] = {}
        self.parent_ids: dict[int, str] = {}
        self.id = 0

    # --- opening and closing ----------------------------------------------------------------------

    async def __aenter__(self) -> Engine:
        await self.open()
        self._token = ENGINE.set(self)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if self._token is not None:
            with contextlib.suppress(ValueError):
                # Left in another context than entered, as some frameworks do: nothing to undo.
                ENGINE.reset(self._token)
            self._token = None
        await self.aclose()

    async def open(self) -> None:
        """Open the store and register; `aclose` must follow."""
        if self._open:
            raise InvalidOption("this engine is open already: make another one")
        self.loop = asyncio.get_running_loop()
        ticks = since_boot if isinstance(self.clock, WallClock) else self.loop.time
        self.steady = SteadyClock(self.clock, ticks)
        self._thread = threading.get_ident()
        self.store = self._make_store()
        self.writer = self._make_writer()
        kept = "strict" if self.durability == "off" else self.durability
        try:
            await self.writer.do(lambda: self.store.open(kept))
            try:
                await self._register()
            except BaseException:
                await self.writer.do(self.store.close)
                raise
        except BaseException:
            await self.writer.aclose()
            raise
        recording = self.durability != "off"
        self.machine = self._make_machine(recording, self.durability == "relaxed")
        self.threads = self._make_threads()
        self.executor = Executor(
            self.machine, self.loop, self.clock, self.threads, self.rng, self.grace
        )
        self.executor.steady = self.steady
        self.journal: Journal = Journal(
            self.store,
            self.writer,
            self.machine,
            self.loop,
            committed=self.executor.committed,
            failed=self.storage_failed,
            warn=self.not_stored,
        )
        self.executor.journal = self.journal if recording else None
        self.hooks = Hooks(self, self._hook_timeout)
        self.executor.hooks = self.hooks.task_ended
        self.executor.bodies = Bodies(self)
        self.calls = Calls(
            self.machine, self.clock.time, self.steady.time, self.loop.time, self.store.load_file
        )
        self.calls.engine_limit = Slots("engine", self._max_concurrency)
        self.calls.threads_limit = Slots("threads", self._max_threads)
        self.calls.processes_limit = Slots("processes", os.cpu_count() or 1)
        self.recovery = Recovery(self, self.max_recoveries)
        self.sharing = Sharing(self) if self.has_company else None
        self.named = NamedLimits(self.machine, self._divide)
        self.executor.hungry = self.sharing.hurry if self.sharing is not None else None
        self._limit_rows: dict[str, LimitRow] = {}
        self.apply_limits(await self.writer.do(self.store.limits))
        self.calls.named = self.named.get
        self.executor.calls = self.calls
        self.executor.cache = Flights(self)
        self.executor.asides = self.asides = Asides(self)
        self.flows = Flows(self)
        self.shown = Shown(self)
        self.waiting = Waiting(self, self._suspend_after)
        self.telling = Telling(self)
        self._resources = Opened(self.loop)
        self._runners: dict[Any, Any] = {}
        self._reader: Reader | None = None
        self._broken: BaseException | None = None
        self._warned: set[tuple[str, str]] = set()
        self._logs = self._capture_logs()
        self._polling: asyncio.TimerHandle | None = None
        self.scheduler = None
        self.automator = None
        self.commands = Commands(self)
        self._served_app: Any = None
        self.stopping = False  # asked to: nothing is begun by itself any more
        self.retention = Retention(self, self._retention_days, keep_last)
        self._start_retention()
        self._open = True
        self.metrics = None
        if self._wants_metrics:
            self._count()
        self.tracing = self._make_tracing()
        self.watchdog = None
        if self._blocked_loop is not None and isinstance(self.clock, WallClock):
            from asyncflow.watchdog import Watchdog

            self.watchdog = Watchdog(self, self._blocked_loop)
        self._joined()  # others may have come meanwhile

    # What a simulation makes otherwise (see `asyncflow.testing`).

    def _make_writer(self) -> Writer:
        return Writer("asyncflow-writer", self.loop, here=self.durability != "full")

    def _make_machine(self, recording: bool, at_once: bool) -> Machine:
        return Machine(recording, at_once)

    def _start_retention(self) -> None:
        self.retention.start()

    def _make_threads(self) -> Threads:
        return Threads("asyncflow-thread", self.loop)

    def _make_store(self) -> ReadableStore:
        given = self._given_store
        if given is None:
            given = default_database()
        if isinstance(given, str | os.PathLike):
            from asyncflow.store.sqlite import SqliteStore

            return SqliteStore(Path(given))
        if not hasattr(given, "create_run"):
            raise InvalidOption(
                f"store={given!r}: give a path, a SqliteStore, a MemoryStore or nothing"
            )
        return given

    async def _register(self) -> None:
        now = self.clock.time()
        row = EngineRow(0, os.getpid(), platform.node(), _boot_id(), now, now, None)
        self.id = (await self.writer.do(lambda: self.store.register_engine(row))).id
        folder = self.locks()
        self._lock: EngineLock | MemoryLock
        if folder is not None:
            self._lock = EngineLock(folder, self.id)
        else:
            self._lock = MemoryLock(self.store, self.id, self.loop, self._joined)

    @property
    def has_company(self) -> bool:
        """Whether other engines may use the store: always of a file, of an object if they do."""
        return not isinstance(self._lock, MemoryLock) or bool(self._lock.others())

    def _joined(self) -> None:
        """Another engine has come to use our store, which lives in this process."""
        if not self.is_working or not self.has_company:
            return
        if self.sharing is None:
            self.sharing = Sharing(self)
            self.executor.hungry = self.sharing.hurry
            for limit in self.named:
                if limit.whole < inf:
                    self._divide(limit)
                    self.machine.resized(limit)
            self.executor.pump()
        if self.live:
            self.look_out()
        self.recovery.watch_later()
        if self.recovery.watchful or (self.scheduler is not None and self.scheduler.active):
            self.commands.begin_soon()

    def _divide(self, limit: Limit) -> None:
        """A named limit has a size: from now on it is divided among the engines."""
        if self.sharing is not None:
            self.sharing.add(limit)

    def locks(self) -> Path | None:
        """The folder of lock files; None for a store that lives in this process only."""
        path = getattr(self.store, "path", None)
        return Path(f"{path}.locks") if path is not None else None

    def _capture_logs(self) -> Any:
        from asyncflow.logs import capture

        return capture(self)

    def _count(self) -> Metrics:
        if self.metrics is None:
            from asyncflow.metrics import Metrics

            self.metrics = Metrics(self)
        return self.metrics

    def _make_tracing(self) -> Tracing | None:
        wanted = self._wants_tracing
        if wanted is None and "opentelemetry.trace" not in sys.modules:
            return None
        from asyncflow.tracing import Tracing, provider_of

        provider = provider_of(wanted)
        return None if provider is None else Tracing(self, provider)

    def apart(self) -> Context:
        """A context for what nobody asks for just now: it is part of no trace."""
        context = copy_context()
        if self.tracing is not None:
            context.run(self.tracing.apart)
        return context

    def metrics_text(self) -> bytes:
        """All metrics of this engine, in the text format of Prometheus (version 0.0.4).

        What is not counted yet is counted from now on.

        Raises:
            MissingExtra: `prometheus-client` is not installed.
        """
        if self.metrics is None:
            self.check_open()
            return self.call(self._count).text()
        return self.metrics.text()

    async def aclose(self) -> None:
        """Interrupt what is running (it can be resumed), write what is left, let go of all."""
        if not self._open:
            return
        self._open = False
        closing = self.loop.create_task(self._close(), name="asyncflow-close")
        import anyio

        with anyio.CancelScope(shield=True):
            await uncancelled(closing)

    async def _close(self) -> None:
        if self._polling is not None:
            self._polling.cancel()
        self.recovery.close()
        await self.retention.aclose()
        if self._served_app is not None:
            await self._served_app.cleanup()
        for shell in (self.scheduler, self.automator, self.commands):
            if shell is not None:
                await shell.aclose()
        await self._interrupt_all("its engine was closed")
        await self._resources.aclose(self.report, self.grace)
        for runner in self._runners.values():
            await runner.aclose()
        try:
            await self.threads.aclose(self.grace)
        except Unresponsive as error:
            self.report(str(error))
        if self.watchdog is not None:
            await self.watchdog.aclose()
        self._logs.close()
        await self.executor.aclose()
        if self.metrics is not None:
            self.metrics.close()
        if self.tracing is not None:
            self.tracing.close()
        try:
            if self._broken is None:
                await self.journal.durable()
                if self.sharing is not None:
                    await self.sharing.aclose()
                now = self.clock.time()
                await self.writer.do(lambda: self.store.close_engine(self.id, now))
        except AsyncflowError as error:
            self.report(f"the last writes failed: {error}")
        finally:
            if self._reader is not None:
                await self._reader.aclose()
            with contextlib.suppress(StoreClosed):
                await self.writer.do(self.store.close)
            await self.writer.aclose()
            self._lock.release()

    async def _interrupt_all(self, why: str) -> None:
        for run in list(self.live.values()):
            if run.parent is None:
                self.flows.stop(run, "interrupt", why)
        for run in list(self.live.values()):
            if run.parent is None and run.extra.task is not None:
                await asyncio.wait([run.extra.task])
        while self.live and self._broken is None:
            await self.wait_live(next(iter(self.live.values())))

    async def interrupt(self, why: str) -> list[str]:
        """Stop all runs so that they can be resumed; the ids of those that were running."""
        self.stopping = True
        ids = [run.id for run in self.live.values() if run.parent is None]
        for run in list(self.live.values()):
            if run.parent is None:
                self.flows.stop(run, "interrupt", why)
        return ids

    def usable(self) -> bool:
        """Whether this is the engine for the code that asks: open, and of this loop."""
        return self._open and self.on_loop()

    @property
    def is_open(self) -> bool:
        return self._open

    @property
    def broken(self) -> bool:
        """Whether the storage has failed."""
        return self._broken is not None

    @property
    def is_working(self) -> bool:
        """Whether it can record anything: it is open, and its storage has not failed."""
        return self._open and self._broken is None

    @property
    def usable_still(self) -> bool:
        """Whether something may be begun: it is open, and its storage has not failed."""
        return self.is_working and not self.stopping

    def check_open(self) -> None:
        if not self._open:
            raise StoreClosed("the engine is closed: open it with `async with Engine(...)`")
        if self._broken is not None:
            raise as_store_error(self._broken)

    # --- between threads --------------------------------------------------------------------------

    def on_loop(self) -> bool:
        """Whether this is the thread of the engine's event loop."""
        return threading.get_ident() == self._thread

    def call(self, function: Callable[..., T], *args: Any) -> T:
        """Call a function on the loop's thread: at once there, else from outside and wait."""
        if threading.get_ident() == self._thread:
            return function(*args)
        done: concurrent.futures.Future[T] = concurrent.futures.Future()

        def run() -> None:
            try:
                done.set_result(function(*args))
            except BaseException as error:
                done.set_exception(error)

        self._from_thread(run)
        return done.result()

    def _from_thread(self, function: Callable[..., Any], *args: Any) -> None:
        try:
            self.loop.call_soon_threadsafe(function, *args)
        except RuntimeError:
            raise StoreClosed("the engine's event loop is closed") from None

    def block(self, waiting: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the loop, from another thread, and wait for it."""
        if not self._open and not self.live:
            waiting.close()
            raise StoreClosed("the engine is closed")
        return asyncio.run_coroutine_threadsafe(waiting, self.loop).result()

    def refuse_writer(self) -> None:
        """A transactional task must not wait for what needs the writer, whose thread it holds."""
        if self.writer.is_current_thread():
            raise BlockingCall(
                "a transactional task cannot call or wait for tasks: call them in its flow, and"
                " pass on what they give"
            )

    # --- calls ------------------------------------------------------------------------------------

    def submit_call(
        self,
        run: Run,
        spec: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        parent: Call | None,
        key: Any,
        wait_for: Any,
        priority: float | None,
    ) -> TaskFuture[Any]:
        """A call in the background."""
        self._check_run(run, parent, spec)
        call, upstream = self.calls.make(
            run, spec, args, kwargs, parent, key=key, wait_for=wait_for, priority=priority
        )
        self.submit_made(call, upstream)
        self.executor.pump()
        assert isinstance(call, TaskFuture)
        return call

    def submit_calls(
        self,
        run: Run,
        spec: Any,
        items: list[tuple[tuple[Any, ...], dict[str, Any]]],
        parent: Call | None,
        wait_for: Any,
        priority: float | None,
    ) -> list[TaskFuture[Any]]:
        """Several calls that depend on futures."""
        self._check_run(run, parent, spec)
        futures: list[TaskFuture[Any]] = []
        for args, kwargs in items:
            call, upstream = self.calls.make(
                run, spec, args, kwargs, parent, wait_for=wait_for, priority=priority
            )
            self.submit_made(call, upstream)
            assert isinstance(call, TaskFuture)
            futures.append(call)
        self.executor.pump()
        return futures

    def submit_made(self, call: Call, upstream: list[Call]) -> None:
        """Have a new call carried out; `Executor.pump` must follow."""
        if call.phase.is_final:
            self.machine.submit_answered(call)
        elif call.aside is not None:
            self.machine.resubmit_aside(call)
        elif call.retry_at is not None:
            self.machine.resubmit(call, self.calls.mono_of(call.retry_at))
        else:
            self.machine.submit(call, upstream, self.clock.time())

    def submit_batch(
        self,
        run: Run,
        spec: Any,
        inputs: Inputs,
        parent: Call | None,
        priority: float | None,
        upstream: tuple[int, ...],
    ) -> Batch:
        """A map over plain inputs."""
        self._check_run(run, parent, spec)
        batch = self.calls.make_batch(run, spec, inputs, parent, priority, upstream)
        if batch.size:
            self.machine.submit_batch(batch)
            self.executor.bound_batch(batch)
            self.executor.pump()
        return batch

    def promise(
        self,
        promised: Call,
        sources: list[Call],
        parent: Call | None,
        then: Callable[[], object],
    ) -> None:
        """Something stands for calls that *then* makes as soon as its *sources* are there."""
        run = promised.run
        self._check_run(run, parent, promised.spec)
        if self.calls.resumable:
            promised.identity = self.calls.identity(
                run, promised.spec, parent, promised.args, promised.kwargs, None
            )
        else:
            promised.identity = b"promised" + promised.seq.to_bytes(5, "big", signed=True)
        self.machine.promise(promised)
        open_ = {id(source) for source in sources}

        def ready(source: Call) -> None:
            open_.discard(id(source))
            if not open_ and not promised.phase.is_final:
                then()
                self.executor.pump()

        for source in sources:
            source.seen = True
            source.run.unseen.pop(source.seq, None)
            self.executor.add_waiter(source, ready)

    def _check_run(self, run: Run, parent: Call | None, spec: Any) -> None:
        if self._broken is not None:
            raise as_store_error(self._broken)
        spared = run.stop != "interrupt" and (spec.shielded or is_shielded(parent))
        if run.stop is not None and not spared:
            raise TaskCancelled(f"{run.display} is being stopped and takes on nothing more")
        if run.id not in self.live:
            raise TaskCancelled(f"{run.display} has ended and takes on nothing more")

    async def direct(self, call: Call, upstream: list[Call], return_state: bool) -> Any:
        """A call that is made in the task of its caller."""
        self._check_run(call.run, call.parent, call.spec)
        call.seen = True
        if call.phase.is_final:
            self.machine.submit_answered(call)
            self.executor.drain()
            if self.executor.spent():
                await asyncio.sleep(0)  # a long life that is replayed must not hold the loop
        elif call.options.teardown:
            await self._tear_down(call, upstream)
        elif call.parent is not None and call.parent.limits:
            await self.executor.lend_while(call.parent, self.executor.direct(call, upstream))
        else:
            await self.executor.direct(call, upstream)
        if self._broken is not None:
            # Its end may not be on disk, and then nobody must act on it.
            raise as_store_error(self._broken)
        assert isinstance(call, TaskFuture)
        return call.state if return_state else call._get()

    async def _tear_down(self, call: Call, upstream: list[Call]) -> None:
        """A teardown that its caller awaits: neither is stopped before it has ended.

        Raises:
            CancelledError: the caller was told to stop meanwhile.
        """
        parent, executor = call.parent, self.executor
        unit: Any = parent if parent is not None else call.run
        self.submit_made(call, upstream)
        executor.pump()
        unit.rolling += 1
        cancelled: asyncio.CancelledError | None = None
        try:
            while not call.settled:
                waiting = executor.wait(call)
                try:
                    if parent is not None and parent.limits:
                        await executor.lend_while(parent, waiting)
                    else:
                        await waiting
                except asyncio.CancelledError as error:
                    cancelled = error
        finally:
            unit.rolling -= 1
        if cancelled is not None:
            raise cancelled

    def direct_in_thread(
        self,
        run: Run,
        spec: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        parent: Call | None,
        return_state: bool,
    ) -> Any:
        """A call that is made in the thread of its caller: the loop decides, we run it."""
        self.refuse_writer()
        work: SimpleQueue[Any] = SimpleQueue()

        async def make() -> Any:
            self._check_run(run, parent, spec)
            call, upstream = self.calls.make(run, spec, args, kwargs, parent)
            if not isinstance(spec.options.runner, str) or spec.options.runner != "thread":
                call.direct_thread = None
            else:
                # It runs in a thread that is there already: it takes no slot of the pool.
                call.limits = tuple(
                    (limit, n) for limit, n in call.limits if limit is not self.calls.threads_limit
                )
                call.direct_thread = lambda fn, ctx, done: work.put((fn, ctx, done))
            try:
                return await self.direct(call, upstream, return_state)
            finally:
                work.put(None)

        waiting = asyncio.run_coroutine_threadsafe(make(), self.loop)
        while (job := work.get()) is not None:
            function, context, done = job
            result, error = None, None
            try:
                result = context.run(function)
            except BaseException as raised:
                error = raised
            self._from_thread(done, result, error)
        return waiting.result()

    def _keep(self, task: asyncio.Task[T]) -> asyncio.Task[T]:
        self.executor._tasks.add(task)
        task.add_done_callback(self.executor._tasks.discard)
        return task

    # --- flow runs --------------------------------------------------------------------------------

    async def submit(
        self,
        flow: Flow[..., Any],
        *args: Any,
        idempotency_key: str | None = None,
        tags: str | Iterable[str] | None = None,
        run_name: str | None = None,
        **kwargs: Any,
    ) -> FlowRun[Any]:
        """Start a run in the background. It is durable when this returns.

        Args:
            idempotency_key: the same key gives the same run, whenever it is asked for.
            tags: more tags for this run.
            run_name: what people call it.

        Raises:
            InvalidParameters: the arguments do not fit, or cannot be stored.
            StoreError: the run could not be stored.
        """
        self.check_open()
        self._check_flow(flow)
        run, created = await self.flows.create(
            flow,
            args,
            kwargs,
            idempotency_key=idempotency_key,
            tags=tag_set(tags),
            run_name=run_name,
        )
        if not created:
            return self.handle(run)
        return self.start_run(run)

    def handle(self, run: Run | RunRow) -> FlowRun[Any]:
        return FlowRun(self, run) if isinstance(run, Run) else FlowRun(self, None, run)

    def went_live(self, run: Run) -> None:
        """A run is carried out here from now on; other processes may ask something of it."""
        self.live[run.id] = run
        if self.watchdog is not None:
            self.watchdog.wake()
        self.look_out()

    def look_out(self) -> None:
        """A run waits for what other processes may send."""
        if self._polling is None and self.has_company and self._open:
            self._polling = self.loop.call_later(POLL, self._poll)

    def _poll(self) -> None:
        """Look whether other processes ask something of our runs, as long as there are any."""
        self._polling = None
        if (self.live or self.telling.told) and self.is_working:
            store, own = self.store, self.id
            self.writer.submit(lambda: (store.requests(own), store.limits()), self._requested)
            self.waiting.look()

    def _requested(
        self, found: tuple[list[tuple[int, str]], list[LimitRow]] | None, error: Any
    ) -> None:
        if error is not None:
            self.report(f"what other processes ask for cannot be read: {error}")
        requests, limits = found or ([], None)
        self.apply_limits(limits)
        for pk, kind in requests:
            for run in list(self.live.values()):
                if run.pk == pk and kind == "cancel":
                    self._cancel_live(run)
                elif run.pk == pk and kind == "resume":
                    self.asides.retry(run)
        self.telling.look()
        if self.live or self.telling.told:
            self.look_out()

    def start_run(self, run: Run) -> FlowRun[Any]:
        self.went_live(run)
        context = copy_context()
        context.run(CURRENT.set, None)
        task = context.run(
            self.loop.create_task, self._in_background(run), name=f"asyncflow-run-{run.id}"
        )
        # Asked for, so that asyncio does not tell again of what has left the loop already.
        task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        run.extra.task = self._keep(task)
        return FlowRun(self, run)

    async def _in_background(self, run: Run) -> None:
        try:
            await self.flows.carry_out(run)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            if run.error is None:
                run.error = error

    async def run(self, flow: Flow[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run a flow here and give its value; its exception is raised.

        Takes the same options as `submit`. Cancelling the task that awaits this cancels the run.
        """
        options = {k: kwargs.pop(k) for k in ("idempotency_key", "tags", "run_name") if k in kwargs}
        return await self.run_flow(flow, args, kwargs, False, **options)

    async def run_flow(
        self,
        flow: Flow[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        return_state: bool = False,
        *,
        idempotency_key: str | None = None,
        tags: str | Iterable[str] | None = None,
        run_name: str | None = None,
    ) -> Any:
        """`run`, with the arguments as they came."""
        self.check_open()
        self._check_flow(flow)
        try:
            run, created = await self.flows.create(
                flow,
                args,
                kwargs,
                idempotency_key=idempotency_key,
                tags=tag_set(tags),
                run_name=run_name,
            )
        except InvalidParameters as error:
            if return_state:
                return Failed(str(error), error)
            raise
        if not created:
            handle = self.handle(run)
            return await handle.wait() if return_state else await handle
        try:
            value = await self.flows.carry_out(run)
        except Exception:
            if return_state:
                return run_state(run)
            raise
        return run_state(run) if return_state else value

    @staticmethod
    def _check_flow(flow: Any) -> None:
        if not hasattr(flow, "call_spec"):
            raise InvalidOption(f"{flow!r} is not a flow: decorate the function with @flow")

    async def create_run(self, row: RunRow, state: StateRow) -> tuple[RunRow, bool]:
        """Store a new run: in place where that is quick, else on the writer's thread.

        A root run begins under the limits that are set by then, by whichever engine.
        """

        def create() -> tuple[tuple[RunRow, bool], list[LimitRow] | None]:
            made = self.store.create_run(row, [state])
            return made, self.stored_limits() if row.parent is None else None

        try:
            made, found = await self.writer.shortly(create)
        except StoreError as error:
            if row.parent is not None:
                # Of a child run it is no failure of the flow that calls it: the storage failed.
                self.storage_failed(error)
            raise
        self.apply_limits(found)
        return made

    def live_or_stored(self, row: RunRow, flow: Flow[..., Any]) -> Any:
        """The live run of a row, or the row."""
        return self.live.get(row.id, row)

    async def resume(
        self,
        run_id: str,
        *,
        parameters: dict[str, Any] | None = None,
        any_version: bool = False,
    ) -> FlowRun[Any]:
        """Go on with a run that failed, crashed, was cancelled or interrupted, under its id.

        What completed is kept, and failures that the flow caught are replayed; what ended the
        run, and what had not ended, runs again.

        Args:
            parameters: values for parameters that were not stored because they are secrets.
            any_version: go on though `version=` of the flow is another.

        Raises:
            UnknownRun, UnknownFlow: there is no such run, or its code cannot be found.
            RunNotResumable: it completed, is running, or was begun by another version.
        """
        return await self.recovery.resume(None, run_id, parameters, any_version)

    async def recover(self) -> list[FlowRun[Any]]:
        """Take over the runs that dead engines left, and paused ones that nobody owns.

        They go on from what is recorded. As long as this engine is open it then looks, every
        two seconds, whether other engines have died, and takes over what they left; and does what
        `asyncflow server start`, which has no code of yours, asks for in the same database.

        One that was recovered `max_recoveries` times in a row without completing anything more
        becomes CRASHED. One whose code is not found, or is of another `version`, is parked:
        PAUSED with the name NeedsAttention and the reason; it is tried again by every recovery.

        Returns:
            The runs that were taken over now.
        """
        self.check_open()
        return await self.recovery.recover()

    async def rerun(
        self,
        run_id: str,
        parameters: dict[str, Any] | None = None,
        *,
        idempotency_key: str | None = None,
    ) -> FlowRun[Any]:
        """Run the flow of a run again from the start, under a new id.

        Args:
            parameters: values that replace those of the run, by name.
            idempotency_key: the same key gives the same run, whenever it is asked for.
        """
        self.check_open()
        row = await self.stored_run(run_id)
        flow = find(row.flow_ref, row.flow_name)
        values = flow.parameters.load(row.parameters, parameters)
        return await self._begin_fork(row, flow, values, 0, (), idempotency_key)

    async def fork(
        self,
        run_id: str,
        from_task: str | None = None,
        parameters: dict[str, Any] | None = None,
        results: dict[str, Any] | None = None,
        *,
        idempotency_key: str | None = None,
    ) -> FlowRun[Any]:
        """Run the flow of a run again under a new id, with what that run has recorded.

        Calls that are made with the same inputs as there are answered from its record; so with
        other *parameters* or *results* only what depends on them runs. Failures that ended it run
        again.

        Args:
            from_task: the name of a task (its first call) or the id of a task run: that call and
                all that were made after it run again.
            parameters: values that replace those of the run, by name.
            results: values that replace recorded results, or failures. By the name of a task, which
                means all of its calls, or by the name ("fetch-3") or id of one task run; the more
                exact one counts. They are stored as JSON.
            idempotency_key: the same key gives the same run, whenever it is asked for.

        Raises:
            UnknownRun, UnknownFlow: there is no such run, or its code cannot be found.
            UnknownTask: the run has no such task run, or its result cannot be edited.
            InvalidParameters: the parameters do not fit, or a result holds a secret.
            NotSerializable: a result cannot be stored.
        """
        self.check_open()
        await self.journal.durable()
        row = await self.stored_run(run_id)
        flow = find(row.flow_ref, row.flow_name)
        values = flow.parameters.load(row.parameters, parameters)
        calls: list[TaskRow] = []
        children: list[RunRow] = []
        if from_task is not None or results:
            calls, children = await self.writer.do(
                lambda: (self.store.calls(row.pk), self.store.children(row.pk))
            )
        below = ALL if from_task is None else _first_seq(row, calls, children, from_task)
        if not results:
            return await self._begin_fork(row, flow, values, below, (), idempotency_key)
        self.learn_secrets(values)
        given = {name: partial(self._result, name, value) for name, value in results.items()}
        edited = edits.edited(row, calls, children, given, below, self.clock.time())
        return await self._begin_fork(row, flow, values, below, edited, idempotency_key)

    async def _begin_fork(
        self,
        row: RunRow,
        flow: Flow[..., Any],
        values: dict[str, Any],
        below: int,
        edited: Sequence[TaskRow],
        key: str | None,
    ) -> FlowRun[Any]:
        run, created = await self.flows.fork(row, flow, values, below, edited, key)
        return self.start_run(run) if created else self.handle(run)

    def _result(self, name: str, value: Any) -> bytes:
        """A result that a user gives, as it is stored."""
        data = codec.encode(value, f"results[{name!r}]")
        if self.masker.holds(data):
            raise InvalidParameters(f"the result for {name!r} holds a secret, which is not stored")
        return codec.seal(data)

    async def cancel(self, run_id: str) -> bool:
        """Cancel a run, and everything below it, in whatever process it runs.

        Returns whether it was still unfinished; it has ended when this returns.

        Raises:
            UnknownRun: there is no such run.
        """
        run = self.live.get(run_id)
        if run is None:
            row = await self.stored_run(run_id)
            if S(row.state).is_final:
                return False
            if self.recovery.owned(row):
                now = self.clock.time()
                await self.writer.do(lambda: self.store.request(row.pk, "cancel", now))
                return (await self.wait(run_id)).is_cancelled()
            return await self.recovery.cancel_stored(row)
        if run.phase.is_final:
            return False
        self._cancel_live(run)
        await self.wait_live(run)
        return True

    async def ask_to_cancel(self, run_id: str) -> None:
        """As `cancel`, and does not wait until it has ended."""
        run = self.live.get(run_id)
        if run is not None:
            if not run.phase.is_final:
                self._cancel_live(run)
            return
        row = await self.stored_run(run_id)
        if S(row.state).is_final:
            return
        if self.recovery.owned(row):
            now = self.clock.time()
            await self.writer.do(lambda: self.store.request(row.pk, "cancel", now))
        else:
            await self.recovery.cancel_stored(row)

    # --- events and answers -----------------------------------------------------------------------

    async def send_event(self, name: str, payload: Any = None, run_id: str | None = None) -> None:
        """Send an event to the runs that wait for it, or will. It is on disk when this returns.

        Args:
            name: of the event, as `wait_for_event` has it.
            payload: plain data.
            run_id: of the run that shall get it; None: every run that exists now.

        Raises:
            InvalidOption: the event has no name.
            UnknownRun: there is no such run.
            RunNotResumable: that run has ended.
            NotSerializable: the payload cannot be stored.
        """
        self.check_open()
        if not isinstance(name, str) or not name:
            raise InvalidOption(f"an event called {name!r}: give it a name")
        pk: int | None = None
        if run_id is not None:
            run = self.live.get(run_id)
            pk = run.pk if run is not None else await self._unfinished_pk(run_id)
        data = self.masker.data(codec.encode(payload, "payload"))
        message = MessageRow(0, f"event:{name}", pk, data, self.clock.time())
        sent = await self.writer.do(lambda: self.store.send(message))
        assert sent is not None
        self.waiting.deliver(sent)

    async def _unfinished_pk(self, run_id: str) -> int:
        row = await self.stored_run(run_id)
        if S(row.state).is_final:
            raise RunNotResumable(
                f"the run {run_id} is {row.state_name}: it waits for nothing any more"
            )
        return row.pk

    async def answer(self, run_id: str, data: Any = None) -> None:
        """Answer a run that `pause_flow_run` has paused. The answer is on disk when this returns.

        Args:
            data: what the run's model takes: a dict, or an instance of it; None where the run
                asks for nothing.

        Raises:
            UnknownRun: there is no such run.
            InvalidParameters: the answer does not fit the model; the message says where.
            AlreadyAnswered: somebody else was quicker.
            RunNotResumable: the run does not wait for an answer.
        """
        from asyncflow.waits import check_answer

        self.check_open()
        pauses = [wait for wait in self.waiting.of(run_id) if wait.kind == "pause"]
        if pauses:
            name, pk, model = str(pauses[0].name), pauses[0].run.pk, pauses[0].model
        else:
            row = await self.stored_run(run_id)
            told = json.loads(row.waits_for or b"{}")
            if row.state != S.PAUSED or told.get("kind") != "pause":
                raise RunNotResumable(
                    f"the run {run_id} is {row.state_name} and waits for no answer"
                )
            name, pk, model = told["message"], row.pk, self._model(row, told.get("model"))
        payload = check_answer(model, data)
        message = MessageRow(0, name, pk, payload, self.clock.time())
        sent = await self.writer.do(lambda: self.store.send(message, once=True))
        if sent is None:
            raise AlreadyAnswered(f"the run {run_id} has been answered: the first answer counts")
        self.waiting.deliver(sent)

    @staticmethod
    def _model(row: RunRow, name: str | None) -> Any:
        """The model that an answer to a stored run must fit."""
        if name is None:
            return None
        find(row.flow_ref, row.flow_name)  # imports the module of the flow
        try:
            return codec.resolve(name)
        except ResultUnreadable:
            raise UnknownFlow(
                f"the model {name} that the answer must fit cannot be found here: answer in the"
                " process that runs the flow, or declare the model at the top of its module"
            ) from None

    def cancel_live_of(self, deployment: str, why: str) -> None:
        """Cancel what runs here of a deployment."""
        for run in list(self.live.values()):
            if run.extra.deployment == deployment and run.parent is None:
                self.flows.stop(run, "cancel", why)

    def app(self, access: Any = None) -> Any:
        """The dashboard and its REST API as an application of aiohttp, for ``add_subapp``.

        Args:
            access: an `asyncflow.server.security.Access`; by default a token is made, which is
                ``app[asyncflow.server.app.ACCESS].token``.
        """
        from asyncflow.server.app import make_app

        return make_app(self, access, embedded=True)

    async def serve_dashboard(
        self, port: int = 4200, host: str = "127.0.0.1", *, access: Any = None
    ) -> str:
        """Serve the dashboard beside whatever else runs in this loop, while the engine is open.

        Args:
            port: 0 for any that is free.
            host: an address of this machine; another one needs an `access` of your own.

        Returns:
            The URL to open, with its token.
        """
        from asyncflow.server.app import serve_app

        self.check_open()
        self._served_app, url = await serve_app(self, host, port, access, embedded=True)
        return url

    async def find_by_key(self, idempotency_key: str) -> FlowRun[Any] | None:
        """The run that has an idempotency key."""
        row = await self.writer.do(lambda: self.store.run_by_key(idempotency_key))
        if row is None:
            return None
        return self.handle(self.live.get(row.id, row))

    def _cancel_live(self, run: Run) -> None:
        if run.call is not None and run.parent is not None:
            self.executor.cancel(run.call, "cancelled")
        else:
            self.flows.stop(run, "cancel", "cancelled")

    def cancel_child(self, run: Run, message: str) -> None:
        """A child run's call was cancelled; perhaps only to go on later."""
        why = run.parent.stop if run.parent is not None else None
        self.flows.stop(run, why if why in GOES_ON else "cancel", message)

    async def wait(self, run_id: str, poll: float = 0.2) -> State[Any]:
        """Wait for a run, of this engine or another; its last state."""
        while True:
            run = self.live.get(run_id)
            if run is not None:
                await self.wait_live(run)
                return run_state(run)
            row = await self.stored_run(run_id)
            state = S(row.state)
            if state.is_final or not self.recovery.owned(row):
                row = self.as_it_is(row)
                return row_state(row, self.stored_value(row))
            await asyncio.sleep(poll)

    async def wait_live(self, run: Run) -> None:
        """Wait until a run of this engine is over."""
        while run.id in self.live:
            waiter: asyncio.Future[None] = self.loop.create_future()
            run.waiters = [*(run.waiters or ()), waiter]
            await waiter

    async def written(self) -> None:
        """Have what happened before this question on disk; what is there can always be read."""
        if not self._open:
            self.check_open()
        if self._broken is None:
            await self.journal.durable()

    # --- limits -----------------------------------------------------------------------------------

    async def set_limit(
        self,
        name: str,
        limit: float | None,
        period: float | None = None,
        burst: int | None = None,
    ) -> None:
        """Set a named limit for all who use this store.

        Args:
            name: of the limit; ``tag:NAME`` limits all tasks with that tag.
            limit: units at once, or with *period* starts per period; None lifts it, 0 pauses.
            period: seconds; makes it a rate.
            burst: lets a rate save up so many starts.

        Raises:
            InvalidOption: the name, size or period makes no sense.
        """
        self.check_open()
        check_kept(name, limit, burst)
        self.named.set(name, limit, period, burst)
        self.calls.forget_needs()
        self.executor.pump()
        row = LimitRow(name, limit, period, burst)
        await self.journal.write_limit(Writes(limits=[row]))
        if limit is None:
            self._limit_rows.pop(name, None)
        else:
            self._limit_rows[name] = row

    async def clear_cache(self, task: str | None = None) -> int:
        """Forget results that are stored for other runs; how many went.

        Args:
            task: the name of the task that made them; None: all.
        """
        await self.written()
        return await self.writer.do(lambda: self.store.drop_cached(task))

    def stored_limits(self) -> list[LimitRow] | None:
        """On the writer: what is set for all; None where only this engine sets any."""
        return self.store.limits() if self.has_company else None

    async def refresh_limits(self) -> None:
        """Take over what others have set: outside of runs, nobody looks for it at intervals."""
        if self.has_company:
            self.apply_limits(await self.writer.shortly(self.store.limits))

    def apply_limits(self, rows: list[LimitRow] | None) -> None:
        """Take over what was set in the store, by whichever engine."""
        if rows is None:
            return
        found = {row.name: row for row in rows}
        if found == self._limit_rows:
            return
        before, self._limit_rows = self._limit_rows, found
        for name in before.keys() - found.keys():
            self.named.set(name, None, None, None)
        for name, row in found.items():
            if before.get(name) != row:
                self.named.set(name, row.limit, row.period, row.burst)
        self.calls.forget_needs()
        self.executor.pump()

    # --- resources, runners, hooks ----------------------------------------------------------------

    async def resource(self, wanted: Resource[T], run: Run) -> T:
        """The value of a resource, opened once for the engine, or for the run."""
        if wanted.scope == "run":
            if run.extra.resources is None:
                run.extra.resources = Opened(self.loop)
            value: T = await run.extra.resources.get(wanted)
            return value
        return await self._resources.get(wanted)

    def runner(self, chosen: Any) -> Any:
        """The runner for ``runner=``: an object that is one, or one of ours by name."""
        if not isinstance(chosen, str):
            self._runners.setdefault(id(chosen), chosen)
            return chosen
        found = self._runners.get(chosen)
        if found is None:
            from asyncflow.runner.process import ProcessRunner

            found = self._runners[chosen] = ProcessRunner()
        return found

    def with_prints(self, function: Callable[[], Any], is_async: bool) -> Callable[[], Any]:
        """*function* with what it prints stored as log lines."""
        from asyncflow.logs import with_prints

        return with_prints(function, is_async)

    # --- recording --------------------------------------------------------------------------------

    def move_run(
        self, run: Run, state: StateType, name: str | None, message: str, owned: bool = False
    ) -> None:
        """Move a flow run and record it. *owned*: it stays ours though it is PAUSED."""
        now = self.clock.time()
        self.machine.move_run(run, state, name, message, f"{moment(now):%H:%M:%S}")
        if state.is_final and self.metrics is not None:
            self.metrics.run_ended(run, state)
        kept = not state.is_final and (state is not S.PAUSED or owned)
        owner = self.id if kept else None
        self.journal.run(
            rows.run_row(run, owner, now),
            StateRow(
                run.pk,
                now,
                state.value,
                run.shown_phase,
                self.masker.text(message),
                run.epoch,
            ),
        )

    def let_go(self, run: Run) -> None:
        """Record that nobody owns a run that is PAUSED."""
        self.journal.run(rows.run_row(run, None, self.clock.time()))

    def record_mark(self, row: MarkRow) -> None:
        """Record a decision."""
        if self.durability != "off":
            self.journal.mark(row)

    async def flush_logs(self, run: Run) -> None:
        """Hand the captured lines of a run to the journal."""
        self._logs.flush()

    def report(self, text: str) -> None:
        """Say something to whoever operates this process."""
        _log.warning("%s", text)

    def tell(self, run: Run, text: str, call: Call | None = None) -> None:
        """Say it, and keep it among the log lines of a run, or of one of its calls."""
        text = self.masker.text(text)
        self.report(f"{run.display}: {text}")
        self.keep_line(run, text, call)

    def keep_line(self, run: Run, text: str, call: Call | Item | None = None) -> None:
        """Keep a warning among the log lines of a run, or of one of its calls."""
        seq, text = None if call is None else call.seq, self.masker.text(text)
        line = LogRow(run.pk, seq, self.clock.time(), logging.WARNING, "asyncflow", text)
        self.journal.logs([line])

    def not_stored(self, call: Call, error: Exception) -> None:
        key = (call.spec.name, type(call.value).__qualname__)
        if key in self._warned:
            return
        self._warned.add(key)
        self.report(
            f"the result of task {call.spec.name!r} (a {type(call.value).__qualname__}) is not"
            f" stored, so a resume would run it again: {error}; return plain data, or give the"
            " task serializer='pickle'"
        )

    def learn_secrets(self, values: dict[str, Any]) -> None:
        """Take note of the secrets among parameters: from now on they are stored nowhere."""
        self.masker.learn(values)
        if self.masker.active:
            self.journal.hide = self._hide

    def _hide(self, writes: Writes) -> None:
        """Results that hold a secret are not stored: masked, they would be other results."""
        holds = self.masker.holds
        for n, task in enumerate(writes.tasks):
            if task.result is not None and holds(task.result):
                self._say_hidden(f"task {task.task!r}")
                writes.tasks[n] = task._replace(result_kind=ResultKind.NOT_STORED, result=None)
        for n, run in enumerate(writes.runs):
            if run.result is not None and holds(run.result):
                self._say_hidden(f"flow {run.flow_name!r}")
                writes.runs[n] = run._replace(result_kind=ResultKind.NOT_STORED, result=None)
        writes.cache[:] = [row for row in writes.cache if not holds(row.result or b"")]

    def _say_hidden(self, what: str) -> None:
        if (what, "secret") not in self._warned:
            self._warned.add((what, "secret"))
            self.report(
                f"the result of {what} holds a secret and is not stored, so a resume would run it"
                " again: return what is not secret, or open the secret where it is used"
            )

    def storage_failed(self, error: BaseException) -> None:
        """Nothing can be recorded any more: stop everything, and say why."""
        if self._broken is not None:
            return
        self._broken = error
        for run in list(self.live.values()):
            if run.parent is None:
                self.flows.storage_failed(run, as_store_error(error))
        self.flows.settle_unrecorded()
        self.executor.pump()


def _first_seq(run: RunRow, calls: Iterable[TaskRow], children: Iterable[RunRow], task: str) -> int:
    """The number of the first call of a run that is called so."""
    seqs = [c.seq for c in calls if task in edits.names_of(run.id, c)]
    seqs += [c.parent_seq or 0 for c in children if task in edits.names_of_child(c)]
    if not seqs:
        raise edits.unknown(run.id, task)
    return min(seqs)


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return platform.node()
