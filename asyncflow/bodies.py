"""Runs what is more than a plain coroutine: threads, processes, child runs, resources, prints."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from contextvars import Context
from functools import partial
from typing import TYPE_CHECKING, Any

from asyncflow.drive import drive
from asyncflow.errors import TaskCancelled
from asyncflow.run import Call

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
            yield from self._engine.run_hooks(spec.task, call).__await__()

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
