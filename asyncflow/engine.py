"""The engine: what an application opens, and what ties all parts together."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import inspect
import json
import logging
import os
import platform
import sys
import threading
from collections.abc import Callable, Coroutine, Generator, Iterable, Sequence
from contextvars import Context, Token, copy_context
from datetime import datetime
from functools import partial
from math import inf
from pathlib import Path
from queue import SimpleQueue
from random import Random
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from asyncflow import codec, edits, rows
from asyncflow.artifacts import Shown
from asyncflow.asides import Asides
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
    RunInterrupted,
    RunNotResumable,
    RunTaken,
    StoreClosed,
    StoreError,
    TaskCancelled,
    UnknownFlow,
    UnknownRun,
    Unresponsive,
)
from asyncflow.executor import Executor
from asyncflow.failures import told
from asyncflow.flights import Flights
from asyncflow.flowrun import GOES_ON, Flows, run_state
from asyncflow.future import TaskFuture
from asyncflow.journal import Journal, as_store_error
from asyncflow.limits import Limit, Slots
from asyncflow.machine import Machine
from asyncflow.masking import Masker
from asyncflow.named import NamedLimits
from asyncflow.ownership import EngineLock, MemoryLock, is_alive
from asyncflow.parameters import masked
from asyncflow.planned import Plans
from asyncflow.registry import find, has_changed, keep_last
from asyncflow.resources import Opened, Resource
from asyncflow.retention import Retention
from asyncflow.run import MISSING, Batch, Call, Hold, Item, Run
from asyncflow.runner.threads import Threads
from asyncflow.sharing import Sharing
from asyncflow.spec import is_shielded
from asyncflow.states import SKIPPED, Failed, State, StateType, Unread, types_and_names
from asyncflow.store.base import (
    ALL,
    IMPORTED,
    ArtifactQuery,
    EngineRow,
    EventQuery,
    LimitRow,
    LogQuery,
    LogRow,
    MarkRow,
    MessageRow,
    Page,
    ReadableStore,
    ResultKind,
    RunQuery,
    RunRow,
    StateRow,
    TaskQuery,
    TaskRow,
    Writes,
)
from asyncflow.variables import Variables
from asyncflow.views import (
    Artifact,
    Event,
    Listing,
    LogLine,
    TaskRun,
    as_it_is,
    including_dead,
    moment,
    row_state,
)
from asyncflow.waiting import Waiting
from asyncflow.writer import Writer, uncancelled

if TYPE_CHECKING:
    from asyncflow.diff import RunDiff
    from asyncflow.flows import Flow
    from asyncflow.metrics import Metrics
    from asyncflow.store.base import Reader
    from asyncflow.tracing import Tracing
    from asyncflow.watchdog import Watchdog

R = TypeVar("R")
T = TypeVar("T")
S = StateType

DURABILITIES = ("full", "strict", "relaxed", "off")

#: Seconds between two looks at what other processes ask for.
POLL = 0.25

#: Seconds between two looks for runs whose engine has died.
WATCH = 2.0

_log = logging.getLogger("asyncflow")


def default_database() -> Path:
    """Where an engine keeps its state when nothing says otherwise."""
    named = os.environ.get("ASYNCFLOW_DATABASE")
    return Path(named) if named else Path(".asyncflow") / "asyncflow.db"


class FlowRun(Generic[R]):
    """A handle on one flow run. Await it for its value, or for its exception."""

    def __init__(self, engine: Engine, run: Run | None, row: RunRow | None = None) -> None:
        self._engine = engine
        self._run = run
        self._row = row

    @property
    def id(self) -> str:
        return self._run.id if self._run is not None else self._stored.id

    @property
    def _stored(self) -> RunRow:
        assert self._row is not None
        return self._row

    @property
    def name(self) -> str:
        """Its own name, or that of its flow."""
        if self._run is not None:
            return self._run.run_name or self._run.flow_name
        return self._stored.name or self._stored.flow_name

    @property
    def flow_name(self) -> str:
        return self._run.flow_name if self._run is not None else self._stored.flow_name

    @property
    def parameters(self) -> dict[str, Any]:
        """Its parameters, by name: of a stored run as plain JSON, secrets masked."""
        if self._run is not None:
            return dict(self._run.parameters)
        return masked(self._stored.parameters)

    @property
    def tags(self) -> list[str]:
        return sorted(self._run.tags) if self._run is not None else list(self._stored.tags)

    @property
    def state(self) -> State[R]:
        """Its state: live, or as stored when this handle was made."""
        if self._run is not None:
            return run_state(self._run)
        row = self._stored
        return row_state(row, self._engine.stored_value(row))

    @property
    def parent_id(self) -> str | None:
        if self._run is not None:
            return self._run.parent.id if self._run.parent is not None else None
        return self._engine.parent_ids.get(self._stored.parent or 0)

    @property
    def attempt(self) -> int:
        return self._run.attempt if self._run is not None else self._stored.attempt

    @property
    def created_at(self) -> datetime | None:
        return moment(self._run.created if self._run is not None else self._stored.created_at)

    @property
    def started_at(self) -> datetime | None:
        return moment(self._run.started if self._run is not None else self._stored.started_at)

    @property
    def ended_at(self) -> datetime | None:
        return moment(self._run.ended if self._run is not None else self._stored.ended_at)

    @property
    def recoveries(self) -> int:
        return self._run.recoveries if self._run is not None else self._stored.recoveries

    @property
    def row(self) -> RunRow | None:
        """The stored row that it was made from, for tools; None of a live run."""
        return self._row

    def __await__(self) -> Generator[Any, Any, R]:
        return self._value().__await__()

    async def _value(self) -> R:
        state = await self.wait()
        if isinstance(state.error, StoreError):
            raise state.error
        if state.is_paused():
            raise RunInterrupted(f"the run {self.id} is {state}: go on with resume({self.id!r})")
        value: R = state.result()
        return value

    async def wait(self) -> State[R]:
        """Wait until it has ended, and is recorded; its last state."""
        if self._run is not None:
            await self._engine.wait_live(self._run)
            return run_state(self._run)
        return await self._engine.wait(self.id)

    async def cancel(self) -> bool:
        """Cancel it, with everything below it. Returns whether it was still unfinished."""
        return await self._engine.cancel(self.id)

    def __repr__(self) -> str:
        run, row = self._run, self._row
        state = run.shown_phase if run is not None else row.state_name if row else "?"
        return f"<FlowRun {self.flow_name!r} {self.id} {state}>"


class Engine(Plans, Variables):
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
        _check_count("max_concurrency", max_concurrency, 1)
        _check_count("max_threads", max_threads, 1)
        _check_count("max_recoveries", max_recoveries, 0)
        _check_seconds("cancel_grace_seconds", cancel_grace_seconds)
        _check_seconds("hook_timeout_seconds", hook_timeout_seconds)
        _check_seconds("suspend_after_seconds", suspend_after_seconds)
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
        _check_seconds("blocked_loop_seconds", blocked_loop_seconds)
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
        self.executor.hooks = self._task_hooks
        self.executor.bodies = Bodies(self)
        self.calls = Calls(
            self.machine, self.clock.time, self.steady.time, self.loop.time, self.store.load_file
        )
        self.calls.engine_limit = Slots("engine", self._max_concurrency)
        self.calls.threads_limit = Slots("threads", self._max_threads)
        self.calls.processes_limit = Slots("processes", os.cpu_count() or 1)
        self.sharing = Sharing(self) if self.has_company else None
        self.named = NamedLimits(self.machine, self._divide)
        self.executor.hungry = self.sharing.hurry if self.sharing is not None else None
        self._limit_rows: dict[str, LimitRow] = {}
        self._apply_limits(await self.writer.do(self.store.limits))
        self.calls.named = self.named.get
        self.executor.calls = self.calls
        self.executor.cache = Flights(self)
        self.executor.asides = self.asides = Asides(self)
        self.flows = Flows(self)
        self.shown = Shown(self)
        self.waiting = Waiting(self, self._suspend_after)
        self._resources = Opened(self.loop)
        self._runners: dict[Any, Any] = {}
        self._reader: Reader | None = None
        self._broken: BaseException | None = None
        self._warned: set[tuple[str, str]] = set()
        self._logs = self._capture_logs()
        self._polling: asyncio.TimerHandle | None = None
        self._watching: asyncio.TimerHandle | None = None
        self._watchful = False
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
        if not self._open or self._broken is not None or not self.has_company:
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
        self._watch_later()
        if self._watchful or (self.scheduler is not None and self.scheduler.active):
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
            self._check_open()
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
        for timer in (self._polling, self._watching):
            if timer is not None:
                timer.cancel()
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
    def broken(self) -> bool:
        """Whether the storage has failed."""
        return self._broken is not None

    @property
    def usable_still(self) -> bool:
        """Whether something may be begun: it is open, and its storage has not failed."""
        return self._open and self._broken is None and not self.stopping

    def _check_open(self) -> None:
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
        self._check_open()
        self._check_flow(flow)
        run, created = await self.flows.create(
            flow,
            args,
            kwargs,
            idempotency_key=idempotency_key,
            tags=_tag_set(tags),
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
        if self.live and self._open and self._broken is None:
            store, own = self.store, self.id
            self.writer.submit(lambda: (store.requests(own), store.limits()), self._requested)
            self.waiting.look()

    def _requested(
        self, found: tuple[list[tuple[int, str]], list[LimitRow]] | None, error: Any
    ) -> None:
        if error is not None:
            self.report(f"what other processes ask for cannot be read: {error}")
        requests, limits = found or ([], None)
        self._apply_limits(limits)
        for pk, kind in requests:
            for run in list(self.live.values()):
                if run.pk == pk and kind == "cancel":
                    self._cancel_live(run)
                elif run.pk == pk and kind == "resume":
                    self.asides.retry(run)
        if self.live:
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
        self._check_open()
        self._check_flow(flow)
        try:
            run, created = await self.flows.create(
                flow,
                args,
                kwargs,
                idempotency_key=idempotency_key,
                tags=_tag_set(tags),
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
            return made, self._stored_limits() if row.parent is None else None

        try:
            if self.writer.prefers_here():
                made, found = self.writer.here(create)
            else:
                made, found = await self.writer.do(create)
        except StoreError as error:
            if row.parent is not None:
                # Of a child run it is no failure of the flow that calls it: the storage failed.
                self.storage_failed(error)
            raise
        self._apply_limits(found)
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
        return await self.resume_because(None, run_id, parameters, any_version)

    async def resume_because(
        self,
        cause: str | None,
        run_id: str,
        parameters: dict[str, Any] | None = None,
        any_version: bool = False,
    ) -> FlowRun[Any]:
        """`resume`, and what made it so; None: a call."""
        self._check_open()
        live = self.live.get(run_id)
        if live is not None:
            if any(wait.kind == "pause" for wait in self.waiting.of(run_id)):
                await self.answer(run_id)
            if self.asides.retry(live):
                await self.journal.durable()
            return FlowRun(self, live)
        row = await self._row(run_id)
        if row.state_name == "NeedsAttention" and self._owned(row):
            row = await self._retry_elsewhere(row)
            if row.state_name != "NeedsAttention":
                return FlowRun(self, None, row)
        if row.state == S.PAUSED and row.state_name == "Paused":
            await self.answer(run_id)
            if self._owned(row):
                return FlowRun(self, None, await self._row(run_id))
        if row.parent is not None:
            raise RunNotResumable(
                f"the run {run_id} is a child run: resume the run that it belongs to"
            )
        state = S(row.state)
        if state is S.COMPLETED:
            raise RunNotResumable(f"the run {run_id} has completed: there is nothing to resume")
        if state not in (S.PAUSED, S.FAILED, S.CANCELLED, S.CRASHED) and self._owned(row):
            raise RunNotResumable(f"the run {run_id} is {row.state_name} in another process")
        fresh = state in (S.FAILED, S.CANCELLED, S.CRASHED)
        if cause is not None:
            row = row._replace(cause=cause)
        return await self._reopen(
            row, fresh=fresh, retry=True, parameters=parameters, any_version=any_version
        )

    async def _retry_elsewhere(self, row: RunRow) -> RunRow:
        """Ask the process that owns a run to try again what waits for a person there."""
        now = self.clock.time()
        await self.writer.do(lambda: self.store.request(row.pk, "resume", now))
        while row.state_name == "NeedsAttention" and self._owned(row):
            await asyncio.sleep(POLL)
            row = await self._row(row.id)
        return row

    async def _retry_stored(self, root: RunRow) -> None:
        """What waits for a person in a run that nobody runs, or below it, begins anew."""

        def write() -> None:
            open_ = [(root.pk, root.epoch)]
            for pk, epoch in open_:
                open_ += [(child.pk, child.epoch) for child in self.store.children(pk)]
                paused = [
                    row._replace(state=S.PENDING.value, message="", failures=0, error=None)
                    for row in self.store.calls(pk)
                    if row.state == S.PAUSED
                ]
                if paused:
                    self.store.write(Writes(tasks=paused, fences={pk: epoch}))

        await self.writer.do(write)

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
        self._check_open()
        await self.commands.begin()
        taken = await self._recover()
        self._watchful = True
        self._watch_later()
        return taken

    def _watch_later(self) -> None:
        if self._watching is None and self._watchful and self.has_company:
            self._watching = self.loop.call_later(WATCH, self._watch)

    def _watch(self) -> None:
        """Look for runs without an owner, again and again."""
        self._watching = None
        if self._open and self._broken is None:
            self.apart().run(self.executor.background, self._watch_once(), "asyncflow-watch")

    async def _watch_once(self) -> None:
        try:
            await self._recover()
        except AsyncflowError as error:
            self.report(f"looking for runs without an owner failed, and is done again: {error}")
        if self._open and self._broken is None:
            self._watch_later()

    async def _recover(self) -> list[FlowRun[Any]]:
        taken: list[FlowRun[Any]] = []
        await self.journal.durable()  # what we have let go of just now
        unfinished, asked = await self.writer.do(
            lambda: (self.store.unfinished(self.id), self.store.asked())
        )
        self.commands.seen(asked)
        for row, dead in unfinished:
            if not self._open:
                break
            if row.id in self.live or self._owned(row) or row.waits_for == IMPORTED:
                continue
            try:
                run = await self._reopen(row, fresh=False, crashed=row.state != S.PAUSED)
            except RunTaken:
                continue  # another engine was quicker
            except AsyncflowError as error:
                await self.written()
                await self._park(await self._row(row.id), str(error))
            else:
                if row.state != S.PAUSED:
                    self._tell_death(row, dead)
                taken.append(run)
        return taken

    def _tell_death(self, row: RunRow, dead: EngineRow | None) -> None:
        """Close the log of a life that ended in the middle, and may have ended anywhere."""
        who = f"its process ({dead.pid} on {dead.host})" if dead is not None else "its process"
        now = self.clock.time()
        text = f"killed: {who} died without a word; what it logged last may be missing"
        self.journal.logs([LogRow(row.pk, None, now, logging.WARNING, "asyncflow", text)])

    async def _park(self, row: RunRow, reason: str) -> None:
        """Leave a run that cannot go on here, with its reason, for people to see."""
        if row.state_name == "NeedsAttention" and row.message == reason:
            return
        claimed = await self.claim(row)
        if claimed is None:
            return
        now = self.clock.time()
        name = "NeedsAttention"
        parked = claimed._replace(
            state=S.PAUSED.value, state_name=name, message=reason, state_at=now, engine=None
        )
        state = StateRow(row.pk, now, S.PAUSED.value, name, reason, parked.epoch)
        self.journal.run(parked, state)
        await self.journal.durable()
        self.report(f"the run {row.id} needs attention: {reason}")

    def _owned(self, row: RunRow) -> bool:
        """Whether a living engine owns the run."""
        if row.engine is None:
            return False
        if row.engine == self.id:
            return row.id in self.live
        return self.is_alive(row.engine)

    def is_alive(self, engine: int) -> bool:
        """Whether the engine with this id is alive: one on the same store."""
        folder = self.locks()
        if folder is not None:
            return is_alive(folder, engine)
        return MemoryLock.is_held(self.store, engine)

    async def _reopen(
        self,
        row: RunRow,
        *,
        fresh: bool,
        crashed: bool = False,
        retry: bool = False,
        parameters: dict[str, Any] | None = None,
        any_version: bool = False,
    ) -> FlowRun[Any]:
        flow = find(row.flow_ref, row.flow_name)
        if flow.options.version != row.version and not any_version:
            raise RunNotResumable(
                f"the run {row.id} was begun by version {row.version!r} of flow {flow.name!r},"
                f" and the code is version {flow.options.version!r}: bring that version back, or"
                " resume it with any_version=True"
            )
        values = flow.parameters.load(row.parameters, parameters)
        claimed = await self.claim(row, recovers=crashed)
        if claimed is None:
            raise RunTaken(f"the run {row.id} was taken by another process just now")
        try:
            if retry:
                await self._retry_stored(claimed)
            if has_changed(row.flow_ref, flow):
                self.report(
                    f"the code of flow {flow.name!r} has changed since the run {row.id} began:"
                    " calls that are made as before are kept, others run"
                )
            revived = claimed._replace(cause=row.cause)
            run = self.flows.revive(revived, flow, values, None, fresh)
            began = not crashed or await self._has_begun(row)
            if crashed and not began and not self._may_recover(run):
                return await self._give_up(run)  # what reads its record dies of it
            # Where its next attempt has not begun, that begins now.
            await self.flows.load(run, fresh or row.state == S.SCHEDULED)
            if not fresh:
                await self.flows.count_failures(run)
            if crashed and began and run.history.completed_since(row.state_at):
                run.recoveries = 1
                self.journal.run(rows.run_row(run, self.id, self.clock.time()))
                await self.journal.durable()
            if crashed and not self._may_recover(run):
                return await self._give_up(run)
            self._check_open()
        except BaseException:
            self._disclaim(claimed)
            raise
        return self.start_run(run)

    async def _has_begun(self, row: RunRow) -> bool:
        """Whether the last life of a run came so far as to run its code."""
        story = await self.reader.states(row.pk)
        return not story or story[-1].epoch == row.epoch

    def _may_recover(self, run: Run) -> bool:
        most = run.options.max_recoveries
        return run.recoveries <= (self.max_recoveries if most is None else most)

    async def _give_up(self, run: Run) -> FlowRun[Any]:
        text = f"its process died {run.recoveries} times in a row without completing anything more"
        run.ended = self.clock.time()
        self.move_run(run, S.CRASHED, None, text)
        await self.journal.durable()
        self.report(f"the run {run.id} of flow {run.flow_name!r} is CRASHED: {text}")
        # It is over when its hooks are; the recovery of others does not wait for them.
        self.live[run.id] = run
        self.executor.background(self.flows.tell_end(run), "asyncflow-end")
        return FlowRun(self, run)

    async def claim(self, row: RunRow, recovers: bool = False) -> RunRow | None:
        """Make this engine the owner of a run; None if another was quicker.

        Args:
            recovers: count it as a recovery: before anything else, as whatever follows may be
                what kills the process.
        """
        claimed = await self._claim_tree(row, recovers)
        return claimed[0] if claimed else None

    async def _claim_tree(self, row: RunRow, recovers: bool = False) -> list[RunRow]:
        """`claim`: the rows of the run and of all below it that have not ended."""
        claimed: list[RunRow] = []

        def take() -> list[LimitRow] | None:
            claimed[:] = self.store.claim(row.pk, self.id, row.epoch) or []
            if claimed and recovers:
                root = claimed[0]._replace(recoveries=claimed[0].recoveries + 1)
                self.store.write(Writes(runs=[root], fences={root.pk: root.epoch}))
                claimed[0] = root
            return self._stored_limits()

        try:
            self._apply_limits(await self.writer.do(take))
        except BaseException:
            if claimed:
                self._disclaim(claimed[0])  # nobody waits for it any more
            raise
        return claimed

    def _disclaim(self, claimed: RunRow) -> None:
        """Give up the ownership of a run that cannot go on here: others may take it."""
        if not self._open or self._broken is not None or claimed.id in self.live:
            return
        claimed = claimed._replace(engine=None)
        if S(claimed.state).is_final or claimed.state == S.PAUSED:
            self.journal.run(claimed)
            return
        now, why = self.clock.time(), "going on with it was given up"
        self.journal.run(
            claimed._replace(
                state=S.PAUSED.value, state_name="Interrupted", message=why, state_at=now
            ),
            StateRow(claimed.pk, now, S.PAUSED.value, "Interrupted", why, claimed.epoch),
        )

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
        self._check_open()
        row = await self._row(run_id)
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
        self._check_open()
        await self.journal.durable()
        row = await self._row(run_id)
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
            row = await self._row(run_id)
            if S(row.state).is_final:
                return False
            if self._owned(row):
                now = self.clock.time()
                await self.writer.do(lambda: self.store.request(row.pk, "cancel", now))
                return (await self.wait(run_id)).is_cancelled()
            return await self.cancel_stored(row)
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
        row = await self._row(run_id)
        if S(row.state).is_final:
            return
        if self._owned(row):
            now = self.clock.time()
            await self.writer.do(lambda: self.store.request(row.pk, "cancel", now))
        else:
            await self.cancel_stored(row)

    def why_waiting(self, run: Run) -> list[tuple[str, str]]:
        """What the calls of a live run wait for, in words: kind and text."""
        full: dict[str, tuple[int, Any]] = {}
        upstream = 0
        for call in list(run.calls):
            if call.phase is not S.PENDING:
                continue
            short = [limit for limit, n in call.limits if limit.used + n > limit.size]
            for limit in short[:1]:
                count, _ = full.get(limit.name, (0, None))
                full[limit.name] = (count + 1, limit)
            upstream += not short
        found = [
            ("limit", f"{n:,} calls wait for {name}: {lim.used:g} of {lim.size:g} are in use")
            for name, (n, lim) in full.items()
        ]
        if upstream:
            found.append(("upstream", f"{upstream:,} calls wait for others to end, or for a turn"))
        return found

    # --- events and answers -----------------------------------------------------------------------

    async def send_event(self, name: str, payload: Any = None, run_id: str | None = None) -> None:
        """Send an event to the runs that wait for it, or will. It is on disk when this returns.

        Args:
            payload: plain data.
            run_id: of the run that shall get it; None: every run that exists now.

        Raises:
            UnknownRun: there is no such run.
            RunNotResumable: that run has ended.
            NotSerializable: the payload cannot be stored.
        """
        self._check_open()
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
        row = await self._row(run_id)
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

        self._check_open()
        pauses = [wait for wait in self.waiting.of(run_id) if wait.kind == "pause"]
        if pauses:
            name, pk, model = str(pauses[0].name), pauses[0].run.pk, pauses[0].model
        else:
            row = await self._row(run_id)
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

        self._check_open()
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

    async def cancel_stored(self, row: RunRow, message: str = "cancelled") -> bool:
        """Cancel a run that nobody is running."""
        claimed = await self._claim_tree(row)
        if not claimed:
            return False
        now = self.clock.time()
        for one in claimed:
            changed = one._replace(
                state=S.CANCELLED.value,
                state_name="Cancelled",
                message=message,
                state_at=now,
                ended_at=now,
                engine=None,
            )
            self.journal.run(
                changed,
                StateRow(one.pk, now, S.CANCELLED.value, "Cancelled", message, one.epoch),
            )
        await self.journal.durable()
        return True

    # --- from store to store ----------------------------------------------------------------------

    async def export(self, run_id: str, path: str | os.PathLike[str]) -> Path:
        """Write a run, with all runs below it, to one file that can be imported elsewhere.

        The file holds what is stored of it at one moment: parameters and results (secrets masked),
        task runs, attempts, states, decisions, messages and log lines. Only its owner may read it,
        and it is there as a whole, or not at all.

        Args:
            path: of the file, which must not exist.

        Raises:
            UnknownRun: there is no such run.
            RunNotResumable: it is a child of another run.
            StoreError: there is such a file already, or it cannot be written.
            ResultUnreadable: a stored result is lost or damaged.
        """
        from asyncflow.exporting import export

        for run in list(self.live.values()):
            await self.flush_logs(run)
        await self.written()
        row = await self._row(run_id)
        if row.parent is not None:
            raise RunNotResumable(f"the run {run_id} is a child run: export the run above it")
        target = Path(path)
        await self._aside(lambda stopped: export(self.store, row, target, stopped))
        return target

    async def import_run(
        self,
        path: str | os.PathLike[str],
        *,
        new_id: bool = False,
        allow_pickle: bool = False,
        max_bytes: int | None = None,
    ) -> FlowRun[Any]:
        """Add the run in a file that `export` wrote to this store: all of it, or nothing.

        It keeps its id. One that had not ended is PAUSED then, named Interrupted: `resume` goes on
        with it, and no recovery does, since the store that it comes from may do so, too. No code is
        run by this, whoever the file comes from; a resume runs the code that it names.

        Args:
            new_id: give it, and the runs below it, other ids; `origin` names the old one.
            allow_pickle: keep results that are pickles, which run code when they are read. Without,
                a resume runs their calls again.
            max_bytes: what the file may expand to; None: 2 GiB.

        Raises:
            RunExists: there is a run with its id.
            InvalidExport: the file is no exported run, is damaged, or of a newer version.
            StoreError: the file cannot be read, or the store not be written.
        """
        from asyncflow.importing import MOST_BYTES, load

        self._check_open()
        _check_count("max_bytes", max_bytes, 1)
        source, now = Path(path), self.clock.time()
        most = MOST_BYTES if max_bytes is None else max_bytes
        done = await self._aside(
            lambda stopped: load(
                self.store,
                source,
                now=now,
                new_id=new_id,
                allow_pickle=allow_pickle,
                max_bytes=most,
                stopped=stopped,
            )
        )
        for note in done.notes:
            self.report(note)
        return FlowRun(self, None, done.row)

    async def _aside(self, work: Callable[[Callable[[], bool]], T | None]) -> T:
        """Do what takes long on a thread. *work* is given what tells it to stop, and gives None
        then: when its caller is cancelled, or the engine closed."""
        left = threading.Event()
        stopped = lambda: left.is_set() or not self._open  # noqa: E731
        try:
            done = await self._in_thread(lambda: work(stopped))
        finally:
            left.set()
        if done is None:
            raise StoreClosed("the engine was closed meanwhile")
        found: T = done
        return found

    async def delete(self, run_id: str) -> int:
        """Delete an ended or paused run with all that belongs to it; how many runs went.

        Raises:
            UnknownRun: there is no such run.
            RunNotResumable: it is being run, or is a child of another run.
        """
        self._check_open()
        row = await self._row(run_id)
        if row.id in self.live or (not S(row.state).is_final and self._owned(row)):
            raise RunNotResumable(f"the run {run_id} is {row.state_name}: cancel it first")
        if row.parent is not None:
            raise RunNotResumable(f"the run {run_id} is a child run: delete the run above it")
        await self.journal.durable()
        return await self.writer.do(lambda: self.store.delete_run(row.pk))

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
            row = await self._row(run_id)
            state = S(row.state)
            if state.is_final or not self._owned(row):
                row = self.as_it_is(row)
                return row_state(row, self.stored_value(row))
            await asyncio.sleep(poll)

    async def wait_live(self, run: Run) -> None:
        """Wait until a run of this engine is over."""
        while run.id in self.live:
            waiter: asyncio.Future[None] = self.loop.create_future()
            run.waiters = [*(run.waiters or ()), waiter]
            await waiter

    # --- asking -----------------------------------------------------------------------------------

    @property
    def reader(self) -> Reader:
        """What answers questions about stored runs."""
        if self._reader is None:
            self._reader = self.store.reader()
        return self._reader

    async def _row(self, run_id: str) -> RunRow:
        row = await self.reader.find_run(str(run_id))
        if row is None:
            raise UnknownRun(str(run_id))
        return row

    async def get_run(self, run_id: str) -> FlowRun[Any]:
        """A handle on a run: live, or stored.

        Raises:
            UnknownRun: there is no such run.
        """
        live = self.live.get(run_id)
        if live is not None:
            return FlowRun(self, live)
        return FlowRun(self, None, self.as_it_is(await self._row(run_id)))

    def as_it_is(self, row: RunRow) -> RunRow:
        """A stored run: one that a dead engine left is not running."""
        if row.engine is None or S(row.state).is_final or self._owned(row):
            return row
        return as_it_is(row)

    async def runs(
        self,
        *,
        state: str | Iterable[str] | None = None,
        flow: str | None = None,
        tags: str | Iterable[str] | None = None,
        since: datetime | float | None = None,
        parent_id: Any = MISSING,
        limit: int = 200,
        cursor: str | None = None,
    ) -> Listing[FlowRun[Any]]:
        """Runs, newest first; child runs too, unless ``parent_id=None`` asks for roots.

        Args:
            state: one or more state types ("failed") or names ("TimedOut"), in any case.
            flow: the name of a flow.
            tags: one or more tags, all of which a run must have.
            since: created at or after it: a datetime (naive is local time), or seconds since
                the epoch.
            parent_id: the run whose child runs are wanted; None: roots only.
            limit: 1 to 10,000 of them.
            cursor: `next_cursor` of the page before.

        Raises:
            ValueError: an argument makes no sense.
            UnknownRun: there is no run *parent_id*.
        """
        types, names = types_and_names(state)
        asked, fits = including_dead(types, names)
        if not isinstance(since, int | float | datetime | None):
            raise ValueError(f"since={since!r}: give a datetime, or seconds since the epoch")
        await self.written()
        parent: int | None = -1
        if parent_id is None:
            parent = None
        elif parent_id is not MISSING:
            parent = (await self._row(parent_id)).pk
        page = await self.reader.runs(
            RunQuery(
                states=asked,
                names=names,
                flow=flow,
                tags=tuple(sorted(_tag_set(tags))),
                since=since if isinstance(since, int | float | None) else since.timestamp(),
                parent=parent,
                after=_cursor(cursor),
                limit=_limit(limit),
            )
        )
        for row in page.rows:
            self.parent_ids[row.pk] = row.id
        for row in page.rows:
            if row.parent is not None and row.parent not in self.parent_ids:
                await self._learn_parents(page)
                break
        rows = [row for row in map(self.as_it_is, page.rows) if fits(row)]
        return Listing(
            [FlowRun(self, self.live.get(row.id), row) for row in rows],
            str(page.next_cursor) if page.next_cursor is not None else None,
        )

    async def _learn_parents(self, page: Page[RunRow]) -> None:
        missing = {r.parent for r in page.rows if r.parent} - self.parent_ids.keys()
        for pk in missing:
            found = await self.reader.runs(RunQuery(after=(pk or 0) + 1, limit=1))
            for row in found.rows:
                self.parent_ids[row.pk] = row.id

    async def task_runs(
        self,
        run_id: str,
        *,
        state: str | Iterable[str] | None = None,
        task: str | None = None,
        limit: int = 200,
        cursor: str | None = None,
    ) -> Listing[TaskRun]:
        """The task runs of one flow run, in the order in which they were called.

        Args:
            state: one or more state types ("failed") or names ("TimedOut"), in any case.
            task: the name of a task.
            limit: 1 to 10,000 of them.
            cursor: `next_cursor` of the page before.

        Raises:
            ValueError: an argument makes no sense.
            UnknownRun: there is no such run.
        """
        types, names = types_and_names(state)
        await self.written()
        row = await self._row(run_id)
        page = await self.reader.task_runs(
            TaskQuery(
                run=row.pk,
                states=types,
                names=names,
                task=task,
                after=_cursor(cursor) or 0,
                limit=_limit(limit),
            )
        )
        return Listing(
            [TaskRun.of_row(row.id, r, self._task_value(r)) for r in page.rows],
            str(page.next_cursor) if page.next_cursor is not None else None,
        )

    def _task_value(self, row: Any) -> Any:
        if row.state != S.COMPLETED:
            return None
        kind, result, what = row.result_kind, row.result, f"task run {row.task}-{row.seq}"
        if kind == ResultKind.JSON:
            return self._value(kind, result, what)
        # Files may be large and pickles run code: not before somebody wants the value.
        return Unread(lambda: self._value(kind, result, what))

    def stored_value(self, row: RunRow) -> Any:
        """The result of a stored run; an exception where it cannot be had."""
        if row.state != S.COMPLETED:
            return None
        return self._value(row.result_kind, row.result, f"the run {row.id}")

    def _value(self, kind: int, data: bytes | None, what: str) -> Any:
        try:
            value = rows.value_of(kind, data, self.store.load_file, what)
        except AsyncflowError as error:
            return error
        return rows.not_stored(what) if value is MISSING else value

    async def logs(
        self,
        run_id: str,
        *,
        level: int = 0,
        text: str = "",
        limit: int = 1000,
        cursor: str | None = None,
    ) -> Listing[LogLine]:
        """The log lines of one flow run, oldest first."""
        live = self.live.get(run_id)
        if live is not None:
            await self.flush_logs(live)
        await self.written()
        row = await self._row(run_id)
        page = await self.reader.logs(
            LogQuery(
                run=row.pk, level=level, text=text, after=_cursor(cursor) or 0, limit=_limit(limit)
            )
        )
        return Listing(
            [LogLine.of_row(row.id, line) for _, line in page.rows],
            str(page.next_cursor) if page.next_cursor is not None else None,
        )

    async def events(
        self,
        run_id: str | None = None,
        *,
        kinds: str | Iterable[str] = (),
        since: datetime | float | None = None,
        newest: bool = False,
        limit: int = 200,
        cursor: str | None = None,
    ) -> Listing[Event]:
        """What happened, to one flow run or at all, oldest first.

        Args:
            kinds: only these, such as "flow-run.Failed"; "task-run.*" is all that begin so.
            since: from then on: aware, or seconds since the epoch.
            newest: newest first.
        """
        await self.written()
        pk = None if run_id is None else (await self._row(run_id)).pk
        query = EventQuery(
            run=pk,
            kinds=(kinds,) if isinstance(kinds, str) else tuple(kinds),
            since=since.timestamp() if isinstance(since, datetime) else since,
            after=_cursor(cursor) or 0,
            newest=newest,
            limit=_limit(limit),
        )
        page = await self.reader.events(query)
        infos = await self.reader.run_infos(sorted({row.run for row in page.rows} - {0}))
        return Listing(
            [Event.of_row(infos[r.run].id if r.run in infos else "", r) for r in page.rows],
            str(page.next_cursor) if page.next_cursor is not None else None,
        )

    async def artifacts(
        self,
        run_id: str,
        *,
        kind: str | Iterable[str] = (),
        key: str | None = None,
        task_run_id: str | None = None,
        data: bool = True,
        limit: int = 1000,
        cursor: str | None = None,
    ) -> Listing[Artifact]:
        """What a flow run shows, in the order in which it was first shown.

        Args:
            kind: only "markdown", "table", "link", "image" or "progress", or several of them.
            key: only the one with this key.
            task_run_id: only of this task run.
            data: whether what they hold is wanted; without, `data` is empty.
            limit: 1 to 10,000 of them.
            cursor: `next_cursor` of the page before.

        Raises:
            ValueError: an argument makes no sense.
            UnknownRun: there is no such run.
        """
        live = self.live.get(run_id)
        if live is not None:
            self.shown.flush(live)
        await self.written()
        row = await self._row(run_id)
        page = await self.reader.artifacts(
            ArtifactQuery(
                run=row.pk,
                key=key,
                kinds=(kind,) if isinstance(kind, str) else tuple(kind),
                seq=None if task_run_id is None else _seq_of(row.id, task_run_id),
                data=data,
                after=_cursor(cursor) or 0,
                limit=_limit(limit),
            )
        )
        return Listing(
            [Artifact.of_row(row.id, r) for r in page.rows],
            str(page.next_cursor) if page.next_cursor is not None else None,
        )

    async def diff(self, first: str, second: str) -> RunDiff:
        """Where two runs differ: parameters, state and task runs, matched by their inputs.

        Raises:
            UnknownRun: there is no such run.
        """
        from asyncflow.diff import compare

        await self.written()
        return await compare(self.reader, await self._row(first), await self._row(second))

    async def written(self) -> None:
        """Have what happened before this question on disk; what is there can always be read."""
        if not self._open:
            self._check_open()
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
        """
        self._check_open()
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

    def _stored_limits(self) -> list[LimitRow] | None:
        """On the writer: what is set for all; None where only this engine sets any."""
        return self.store.limits() if self.has_company else None

    async def refresh_limits(self) -> None:
        """Take over what others have set: outside of runs, nobody looks for it at intervals."""
        if not self.has_company:
            return
        if self.writer.prefers_here():
            self._apply_limits(self.writer.here(self.store.limits))
        else:
            self._apply_limits(await self.writer.do(self.store.limits))

    def _apply_limits(self, rows: list[LimitRow] | None) -> None:
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

    async def _task_hooks(self, spec: Any, call: Call, state: State[Any]) -> None:
        if self._broken is not None:
            return  # it has not ended: there is no record of it
        phase = call.phase
        if phase is S.COMPLETED and call.phase_name == SKIPPED and call.error is not None:
            # It has failed, whatever its policy makes of that.
            phase = S.FAILED
            state = State(phase, "", call.message, state.timestamp, call.attempt, None, call.error)
        if phase is S.FAILED and call.aside is not None and call.aside.told:
            return  # they were told before its fallback was called
        await self.hooks_at(phase, call, state)

    async def hooks_at(self, phase: StateType, call: Call, state: State[Any]) -> None:
        """Call the hooks of a task for one type of state."""
        hooks = call.options.hooks.at(phase)
        await self._call_hooks(hooks, call.spec.task, TaskRun.of_call(call), state, call)

    async def run_hooks(self, owner: Any, item: Call | Run) -> None:
        """Call the hooks for the state that a call or run is in."""
        hooks = item.options.hooks.at(item.phase)
        if isinstance(item, Run):
            await self._call_hooks(hooks, owner, FlowRun(self, item), run_state(item))
        else:
            view = TaskRun.of_call(item)
            await self._call_hooks(hooks, owner, view, Executor.state_of(item), item)

    async def _call_hooks(
        self,
        hooks: Iterable[Callable[..., Any]],
        owner: Any,
        view: Any,
        state: State[Any],
        call: Call | None = None,
    ) -> None:
        """Call hooks one after another. One that fails or takes too long changes nothing.

        Each has a task of its own, so that one that will not stop can be left to itself.

        Args:
            call: whose hooks they are, if they are of a task: what they log and show is its.
        """
        for hook in hooks:
            name = getattr(hook, "__name__", repr(hook))
            # What tells of a call is any worker, which may have begun for another one.
            context = copy_context() if call is None else call.context.copy()
            if call is not None:
                context.run(CURRENT.set, call)
            calling = context.run(
                self.executor.background,
                self._call_hook(hook, owner, view, state),
                "asyncflow-hook",
            )
            # Asked for, so that asyncio does not tell of one that was left and fails later.
            calling.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
            try:
                await asyncio.wait([calling], timeout=self._hook_timeout)
            finally:
                calling.cancel()
            if not calling.done():
                self.report(f"the hook {name} took longer than {self._hook_timeout:g} s, was left")
            elif calling.cancelled():
                self.report(f"the hook {name} failed: it was cancelled")
            elif (error := calling.exception()) is not None:
                self.report(f"the hook {name} failed: {told(error)}")

    async def _call_hook(
        self, hook: Callable[..., Any], owner: Any, view: Any, state: State[Any]
    ) -> None:
        try:
            if inspect.iscoroutinefunction(hook):
                await hook(owner, view, state)
            else:
                answer = await self._in_thread(hook, owner, view, state)
                if inspect.isawaitable(answer):
                    await answer
        except SystemExit as error:
            # Of a task, asyncio would let it end the whole loop.
            raise RuntimeError(f"it raised {told(error)}") from error

    async def _in_thread(self, hook: Callable[..., Any], *args: Any) -> Any:
        waiter: asyncio.Future[Any] = self.loop.create_future()

        def done(result: Any, error: BaseException | None) -> None:
            if not waiter.done():
                if error is None:
                    waiter.set_result(result)
                elif isinstance(error, StopIteration):
                    waiter.set_exception(RuntimeError(f"it raised {error!r}"))
                else:
                    waiter.set_exception(error)

        self.threads.start(lambda: hook(*args), copy_context(), done)
        return await waiter

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


def _seq_of(run_id: str, task_run_id: str) -> int:
    """The number of a task run, by its id."""
    start, _, number = task_run_id.rpartition("-")
    if start != run_id or not (number.isascii() and number.isdigit() and len(number) < 11):
        raise ValueError(f"task_run_id={task_run_id!r} is not one of the run {run_id}")
    return int(number)


def _check_count(name: str, value: Any, least: int) -> None:
    if value is None:
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InvalidOption(f"{name}={value!r}: give a whole number, {least} or more")


def _check_seconds(name: str, value: Any) -> None:
    if value is None:
        return
    if not isinstance(value, int | float) or isinstance(value, bool) or not value >= 0:
        raise InvalidOption(f"{name}={value!r}: give seconds, 0 or more")


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return platform.node()


def _tag_set(tags: str | Iterable[str] | None) -> frozenset[str]:
    found = (tags,) if isinstance(tags, str) else tuple(tags or ())
    if not all(isinstance(tag, str) and tag for tag in found):
        raise InvalidOption(f"tags={tags!r}: give names")
    return frozenset(found)


def _limit(limit: int) -> int:
    if not isinstance(limit, int) or isinstance(limit, bool) or not 1 <= limit <= 10_000:
        raise ValueError(f"limit={limit!r}: give a number from 1 to 10,000")
    return limit


def _cursor(cursor: str | None) -> int | None:
    if cursor is None:
        return None
    text = str(cursor)
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise ValueError(f"cursor={cursor!r} is not one that a listing gave")
    return int(text)
