"""Sees to calls whose own code has failed for good: they wait for a fallback, or for a person.

The failure is on record before anything of this begins. A fallback is a call like others, made by
the call that it stands in for, so that a later life finds it again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from asyncflow import failures
from asyncflow.errors import TaskCancelled
from asyncflow.policy import Fallback, same_arguments
from asyncflow.run import MISSING, Call, Run
from asyncflow.states import FALLBACK, SKIPPED, State, StateType

if TYPE_CHECKING:
    from asyncflow.engine import Engine

S = StateType

#: The explicit key of every fallback: what it stands in for, its parent, tells them apart.
_KEY = "fallback"


class Asides:
    """The calls of one engine that are set aside."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def begin(self, call: Call) -> None:
        """The failure of a call is on record. On the loop, and not within `Executor.pump`."""
        aside = call.aside
        if aside is None or aside.begun or call.phase not in (S.SCHEDULED, S.PAUSED):
            return
        aside.begun = True
        if aside.told or not call.options.hooks.on_failure:
            self._go_on(call)
        else:
            self._engine.executor.background(self._tell(call), "asyncflow-hooks")

    async def _tell(self, call: Call) -> None:
        """Its hooks for failures are told once, whatever its policy makes of it."""
        assert call.aside is not None
        call.aside.told = True
        state: State[Any] = State(
            S.FAILED, "", call.message, attempt=call.attempt, error=call.error
        )
        try:
            await self._engine.hooks.at(S.FAILED, call, state)
        finally:
            self._go_on(call)

    def _go_on(self, call: Call) -> None:
        assert call.aside is not None
        if call.phase in (S.SCHEDULED, S.PAUSED):
            if call.run.stop == "interrupt":
                self.leave(call)
            elif call.aside.pauses:
                self._pause(call)
            else:
                self._fall_back(call)
        self._engine.executor.pump()

    def leave(self, call: Call) -> None:
        """Its run is interrupted: it goes on from here in another life."""
        run = call.run
        text = f"{call.display} waits for another life of {run.display}: {run.cancel_message}"
        self._engine.machine.leave(call, TaskCancelled(text))
        self._engine.executor.wake_ended(call)

    # --- fallbacks ------------------------------------------------------------------------------

    def _fall_back(self, call: Call) -> None:
        engine, run, spec = self._engine, call.run, call.spec
        policy = call.options.failure_policy
        assert call.aside is not None
        assert call.error is not None
        if not isinstance(policy, Fallback):
            # In the life in which it failed, it had one.
            self._fail(call, call.error, None)
            return
        other = policy.task.spec
        context = call.context.copy()
        try:
            args, kwargs = same_arguments(spec, call.args, call.kwargs)
            if spec.bound_to is not MISSING and other.bound_to is MISSING:
                args.insert(0, spec.bound_to)
            other.check(tuple(args), kwargs)
            stand_in, upstream = context.run(
                engine.calls.make, run, other, tuple(args), kwargs, call, key=_KEY
            )
        except Exception as error:
            failures.note(
                call.error,
                f"asyncflow: its fallback {other.name!r} was not called: {failures.told(error)}",
            )
            self._fail(call, call.error, None)
            return
        stand_in.seen = True
        stand_in.upstream = (call.seq, *[seq for seq in stand_in.upstream if seq])
        call.aside.stand_in = stand_in
        engine.submit_made(stand_in, upstream)
        engine.executor.add_waiter(stand_in, lambda _: self._stood_in(call, stand_in))

    def _stood_in(self, call: Call, stand_in: Call) -> None:
        """The fallback of a call has ended."""
        if call.phase.is_final:
            return
        assert call.aside is not None
        call.aside.stand_in = None
        engine, run = self._engine, call.run
        machine, now = engine.machine, engine.clock.time()
        if call.phase is S.CANCELLING:
            machine.stopped(call, TaskCancelled(call.message), now, call.message)
        elif stand_in.phase is S.CANCELLED:
            if run.stop == "interrupt":
                self.leave(call)
            else:
                text = f"its fallback {stand_in.display} was cancelled"
                error = TaskCancelled(f"{call.display} was cancelled: {text}")
                machine.stopped(call, error, now, text)
        elif stand_in.phase is not S.COMPLETED:
            assert stand_in.error is not None
            self._fail(call, stand_in.error, stand_in)
        elif stand_in.phase_name == SKIPPED:
            text = f"its fallback {stand_in.display} was skipped after: {call.message}"
            machine.skip(call, now, text, call.error)
        else:
            call.message = f"{stand_in.display} gave its result, after: {call.message}"
            machine.complete(call, stand_in.value, now, FALLBACK)
        engine.executor.wake_ended(call)
        engine.executor.pump()

    def _fail(self, call: Call, error: BaseException, stand_in: Call | None) -> None:
        """It has failed after all: with the failure of its fallback, if that has failed too."""
        failures.blame(error, call)
        text, name = call.message, None
        if stand_in is not None:
            name = stand_in.phase_name
            text = f"{failures.told(error)} (in its fallback {stand_in.display}, after: {text})"
            failures.note(error, f"asyncflow: {stand_in.display} stood in for {call.display}")
            if error.__context__ is None and error is not call.error:
                error.__context__ = call.error
        self._engine.machine.fail(call, error, self._engine.clock.time(), name, text)

    # --- pauses ---------------------------------------------------------------------------------

    def _pause(self, call: Call) -> None:
        engine, run = self._engine, call.run
        text = f"{call.display} failed: {call.message}"
        engine.report(f"the run {_root(run).id} needs attention: {text}")
        engine.flows.trouble(run, call, f"{text}; resume the run to try it again")
        engine.executor.add_waiter(call, lambda _: engine.flows.relieve(run, call))

    def retry(self, run: Run) -> bool:
        """A person wants what is paused in a run, or below it, tried again; whether any was."""
        engine = self._engine
        paused = [
            call
            for below in list(engine.live.values())
            if _is_in(below, run)
            for call in list(below.extra.troubled)
            if call.phase is S.PAUSED
        ]
        for call in paused:
            if call.timer is not None:
                call.timer.cancel()
                call.timer = None
            engine.machine.try_afresh(call)
            engine.flows.relieve(call.run, call)
        engine.executor.pump()
        return bool(paused)


def _root(run: Run) -> Run:
    while run.parent is not None:
        run = run.parent
    return run


def _is_in(run: Run | None, above: Run) -> bool:
    while run is not None:
        if run is above:
            return True
        run = run.parent
    return False
