"""Runs what is more than a plain coroutine: threads, processes, child runs, resources, prints."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Generator
from contextvars import Context
from functools import partial
from typing import TYPE_CHECKING, Any

from asyncflow import rows
from asyncflow.drive import drive
from asyncflow.errors import InvalidDefinition, Skipped, TaskCancelled
from asyncflow.journal import as_store_error
from asyncflow.run import Call
from asyncflow.states import State, StateType
from asyncflow.store.base import CacheRow, TaskRow, WorkError

if TYPE_CHECKING:
    from asyncflow.engine import Engine


class ThreadBody:
    """A function that runs in a thread, as the body of a call.

    A thread cannot be stopped. When its call is given up, the waiting ends, and the slots stay
    taken until the function really returns.
    """

    def __init__(self, engine: Engine, call: Call) -> None:
        self._engine = engine
        self._call = call
        self._waiter: asyncio.Future[Any] = engine.loop.create_future()
        self._abandoned: Any = None

    def done(self, result: Any, error: BaseException | None) -> None:
        """The function returned (told on the loop)."""
        if self._abandoned is not None:
            self._engine.machine.release(self._abandoned)
            self._engine.executor.pump()
            return
        if not self._waiter.done():
            if error is None:
                self._waiter.set_result(result)
            elif isinstance(error, StopIteration):
                self._waiter.set_exception(RuntimeError(f"the task raised {error!r}"))
            else:
                self._waiter.set_exception(error)

    def abandon(self, error: BaseException) -> None:
        """Wait no longer."""
        if not self._waiter.done():
            if self._call.holding:
                self._call.holding = False
                self._abandoned = self._call.limits
            else:
                self._abandoned = ()
            self._waiter.set_exception(error)

    def wait(self) -> Generator[Any, Any, Any]:
        call, waiter = self._call, self._waiter
        call.body = self
        try:
            while not waiter.done():
                try:
                    yield from asyncio.wait([waiter]).__await__()
                except asyncio.CancelledError:
                    carrier = asyncio.current_task()
                    if carrier is not None and carrier.cancelling():
                        self.abandon(TaskCancelled("the host cancelled the wait for a thread"))
                        raise
            return waiter.result()
        finally:
            call.body = None


class WriterBody:
    """A function that runs on the writer's thread, in the transaction that records its end.

    It cannot be stopped once it runs. Whatever stops its call meanwhile, what is on disk counts.
    """

    def __init__(self, engine: Engine, call: Call, context: Context) -> None:
        self._engine = engine
        self._call = call
        self._context = context
        self._value: Any = None
        self._ended = 0.0
        self._cached: CacheRow | None = None

    def _work(self, connection: Any) -> TaskRow | None:
        """On the writer's thread, inside the transaction."""
        call, engine = self._call, self._engine
        spec = call.spec
        if call.stop is not None:
            raise asyncio.CancelledError("it was stopped before it began")
        function: Callable[[], Any] = partial(spec.fn, connection, *call.args, **call.kwargs)
        if spec.options.log_prints:
            function = engine.with_prints(function, False)
        value = self._context.run(function)
        if isinstance(value, Skipped):
            raise value  # what it has written is taken back
        if isinstance(value, State):
            if not value.is_completed():
                raise value.result(raise_on_failure=False)
            value = value.data
        if inspect.isawaitable(value) or spec.returns_futures(value):
            raise InvalidDefinition(
                f"{call.display} returned a {type(value).__name__}: a transactional task returns"
                " plain data"
            )
        self._value, self._ended = value, engine.clock.time()
        if not engine.machine.recording:
            return None
        kind, result = rows.result_of(call, value, _refuse)
        self._cached = rows.cache_row_of(call, self._ended, kind, result)
        return rows.task_row(call, _refuse)._replace(
            state=StateType.COMPLETED.value,
            state_name=None,
            message="",
            ended_at=self._ended,
            result_kind=kind,
            result=result,
        )

    def run(self) -> Generator[Any, Any, Any]:
        engine, call = self._engine, self._call
        machine, run = engine.machine, call.run
        waiter: asyncio.Future[None] = engine.loop.create_future()

        def done(_: None, error: BaseException | None) -> None:
            if error is None:
                waiter.set_result(None)
            else:
                waiter.set_exception(error)

        fences = {run.pk: run.epoch}
        engine.writer.submit(lambda: engine.store.transact(fences, self._work), done)
        machine.seal(call)
        host: asyncio.CancelledError | None = None
        while not waiter.done():
            try:
                yield from asyncio.wait([waiter]).__await__()
            except asyncio.CancelledError as cancelled:
                carrier = asyncio.current_task()
                if carrier is not None and carrier.cancelling():
                    host = cancelled
        error = waiter.exception()
        if error is None:
            if self._cached is not None:
                engine.journal.cache(self._cached)
            machine.completed_on_record(call, self._value, self._ended)
        else:
            machine.unseal(call)
        if host is not None:
            raise host
        if error is None:
            return self._value
        if isinstance(error, WorkError):
            assert error.__cause__ is not None
            raise error.__cause__
        # Whether it is on disk is not known: nothing more is done before that is read back.
        engine.storage_failed(error)
        raise as_store_error(error)


def _refuse(_: Call, error: Exception) -> None:
    """A result that cannot be stored: here it takes everything back."""
    raise error


class Bodies:
    """Prepares and runs the calls of one engine that need more than being awaited."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def prepare(self, call: Call, context: Context) -> Generator[Any, Any, None]:
        spec = call.spec
        if call.upstream:
            call.args, call.kwargs = spec.resolve(call)
        if spec.options.run_name is not None and call.label is None:
            call.label = spec.label(call)
        if spec.resources:
            yield from self._fill_in(call).__await__()
        if spec.options.hooks.on_running:
            yield from self._engine.hooks.of(spec.task, call).__await__()

    async def _fill_in(self, call: Call) -> None:
        given = call.spec.bind(call.args, call.kwargs).arguments
        extra = {}
        for name, resource in call.spec.resources.items():
            if name not in given:
                extra[name] = await self._engine.resource(resource, call.run)
        # A new dict: the call's own inputs stay what the caller gave.
        call.kwargs = {**call.kwargs, **extra}

    def invoke(self, call: Call, context: Context) -> Generator[Any, Any, Any]:
        spec = call.spec
        if spec.transactional:
            return (yield from WriterBody(self._engine, call, context).run())
        if spec.is_flow:
            return (yield from self._engine.flows.child(call, context).__await__())
        function: Callable[[], Any] = partial(spec.fn, *call.args, **call.kwargs)
        if spec.options.log_prints:
            function = self._engine.with_prints(function, spec.is_async)
        runner = spec.options.runner
        if runner == "async":
            return (yield from drive(call, function(), context))
        if runner == "thread":
            body = ThreadBody(self._engine, call)
            start = call.direct_thread
            if start is not None:
                start(function, context, body.done)
            else:
                self._engine.threads.start(function, context, body.done)
            return (yield from body.wait())
        chosen = self._engine.runner(runner)
        running = chosen.run(spec.fn, call.args, call.kwargs)
        return (yield from drive(call, running, context))
