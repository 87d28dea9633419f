"""The hooks of flows and tasks: called for what ended, and never in its way."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterable
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

from asyncflow.context import CURRENT, TOLD
from asyncflow.executor import Executor
from asyncflow.failures import told
from asyncflow.flowrun import run_state
from asyncflow.handle import FlowRun
from asyncflow.run import Call, Run
from asyncflow.states import SKIPPED, State, StateType
from asyncflow.views import TaskRun

if TYPE_CHECKING:
    from asyncflow.engine import Engine

S = StateType


class Hooks:
    """Calls the hooks of one engine.

    Args:
        timeout: seconds after which a hook is cancelled and left; None: never.
    """

    def __init__(self, engine: Engine, timeout: float | None) -> None:
        self._engine = engine
        self._timeout = timeout

    async def task_ended(self, spec: Any, call: Call, state: State[Any]) -> None:
        if self._engine.broken:
            return  # it has not ended: there is no record of it
        phase = call.phase
        if phase is S.COMPLETED and call.phase_name == SKIPPED and call.error is not None:
            # It has failed, whatever its policy makes of that.
            phase = S.FAILED
            state = State(phase, "", call.message, state.timestamp, call.attempt, None, call.error)
        if phase is S.FAILED and call.aside is not None and call.aside.told:
            return  # they were told before its fallback was called
        await self.at(phase, call, state)

    async def at(self, phase: StateType, call: Call, state: State[Any]) -> None:
        """Call the hooks of a task for one type of state."""
        hooks = call.options.hooks.at(phase)
        await self._call(hooks, call.spec.task, TaskRun.of_call(call), state, call)

    async def of(self, owner: Any, item: Call | Run) -> None:
        """Call the hooks for the state that a call or run is in."""
        hooks = item.options.hooks.at(item.phase)
        if isinstance(item, Run):
            run: FlowRun[Any] = FlowRun(self._engine, item)
            await self._call(hooks, owner, run, run_state(item), item)
        else:
            await self._call(hooks, owner, TaskRun.of_call(item), Executor.state_of(item), item)

    async def _call(
        self,
        hooks: Iterable[Callable[..., Any]],
        owner: Any,
        view: Any,
        state: State[Any],
        item: Call | Run,
    ) -> None:
        """Call hooks one after another. One that fails or takes too long changes nothing.

        Each has a task of its own, so that one that will not stop can be left to itself.

        Args:
            item: whose hooks they are: what they log is its.
        """
        engine = self._engine
        for hook in hooks:
            name = getattr(hook, "__name__", repr(hook))
            if isinstance(item, Run):
                context = copy_context()
                context.run(TOLD.set, (CURRENT.get(), item))
            else:
                # What tells of a call is any worker, which may have begun for another one.
                context = item.context.copy()
                context.run(CURRENT.set, item)
            calling = context.run(
                engine.executor.background,
                self._call_one(hook, owner, view, state),
                "asyncflow-hook",
            )
            # Asked for, so that asyncio does not tell of one that was left and fails later.
            calling.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
            try:
                await asyncio.wait([calling], timeout=self._timeout)
            finally:
                calling.cancel()
            if not calling.done():
                engine.report(f"the hook {name} took longer than {self._timeout:g} s, was left")
            elif calling.cancelled():
                engine.report(f"the hook {name} failed: it was cancelled")
            elif (error := calling.exception()) is not None:
                engine.report(f"the hook {name} failed: {told(error)}")

    async def _call_one(
        self, hook: Callable[..., Any], owner: Any, view: Any, state: State[Any]
    ) -> None:
        try:
            if inspect.iscoroutinefunction(hook):
                await hook(owner, view, state)
            else:
                answer = await self._engine.threads.run(lambda: hook(owner, view, state))
                if inspect.isawaitable(answer):
                    await answer
        except SystemExit as error:
            # Of a task, asyncio would let it end the whole loop.
            raise RuntimeError(f"it raised {told(error)}") from error
