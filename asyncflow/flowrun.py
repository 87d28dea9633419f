"""Carries out flow runs: begins them, drives their bodies, joins what they started, ends them.

A run ends only when everything that it started has ended: when its body returns, what is
still running is waited for; when its body raises or is stopped, the rest is cancelled first.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import Callable, Sequence
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from asyncflow import codec, edits, failures, rows
from asyncflow import drive as driving
from asyncflow.calls import History
from asyncflow.context import CURRENT, TAGS
from asyncflow.decisions import Decisions
from asyncflow.errors import (
    FlowTimeout,
    InvalidParameters,
    NotSerializable,
    RunCancelled,
    RunInterrupted,
    Skipped,
    StoreError,
    Unresponsive,
    UpstreamFailed,
)
from asyncflow.future import resolve
from asyncflow.ids import new_run_id
from asyncflow.limits import Slots
from asyncflow.registry import reference
from asyncflow.resources import Opened
from asyncflow.retry import shown_seconds
from asyncflow.run import MISSING, Call, Item, Run
from asyncflow.spec import Spec, flat, is_shielded, make_name
from asyncflow.states import SKIPPED, State, StateType
from asyncflow.store.base import ResultKind, RunRow, StateRow, TaskRow
from asyncflow.undone import Doom
from asyncflow.undone import read as read_past
from asyncflow.writer import uncancelled

if TYPE_CHECKING:
    from asyncflow.engine import Engine
    from asyncflow.flows import Flow
    from asyncflow.waiting import Wait

S = StateType

#: Why a run is stopped that goes on later: what undoes it must not run.
GOES_ON = ("interrupt", "storage")

#: The name of the state of a run in which a call waits for a person.
_TROUBLE = "NeedsAttention"

#: Seconds between two times that a stubborn flow body is told to stop.
REMIND = 0.05


@dataclass(slots=True)
class Extra:
    """What only this module and the engine need to know of a live run."""

    ref: str
    root: int
    stored_parameters: bytes
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    decisions: Decisions
    resources: Opened | None = None
    result_kind: int = ResultKind.NONE
    result: bytes | None = None
    task: asyncio.Task[Any] | None = None
    timer: asyncio.TimerHandle | None = None
    carrier: asyncio.Task[Any] | None = None  # the task that steps its body
    asleep: Wait | None = None  # what ends the sleep of a run that has left memory
    nap: asyncio.Future[None] | None = None  # ends the wait for another attempt of it
    past: list[str] = field(default_factory=list)  # a line for each attempt that failed
    wake_at: float | None = None
    waits_for: bytes | None = None
    transactions: int = 0  # that are open in its body
    doomed: dict[int, Doom] = field(default_factory=dict)  # by the numbers of their calls
    troubled: dict[Call, str] = field(default_factory=dict)  # calls that wait for a person
    origin: str | None = None
    deployment: str | None = None
    scheduled_at: float | None = None
    cause: str | None = None
    unrecorded: bool = False  # its end could not be stored, so it has not ended


class Flows:
    """The flow runs of one engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    # --- beginning ------------------------------------------------------------------------------

    async def create(
        self,
        flow: Flow[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        parent: Call | None = None,
        idempotency_key: str | None = None,
        tags: frozenset[str] = frozenset(),
        run_name: str | None = None,
    ) -> tuple[Run, bool]:
        """A new run, durable when this returns; or the one that has the idempotency key."""
        engine = self._engine
        run, row, state = self.prepare(
            flow,
            args,
            kwargs,
            parent=parent,
            idempotency_key=idempotency_key,
            tags=tags,
            run_name=run_name,
        )
        try:
            row, created = await engine.create_run(row, state)
        except asyncio.CancelledError:
            if run.parent is None or run.parent.stop not in ("interrupt", "suspend"):
                await self._never_begins(run)
            raise
        if not created:
            return engine.live_or_stored(row, flow), False
        self.adopt(run, row)
        return run, True

    def prepare(
        self,
        flow: Flow[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        parent: Call | None = None,
        idempotency_key: str | None = None,
        tags: frozenset[str] = frozenset(),
        run_name: str | None = None,
        deployment: str | None = None,
        scheduled_at: float | None = None,
        cause: str | None = None,
    ) -> tuple[Run, RunRow, StateRow]:
        """A new run, and the rows by which it is to be stored.

        Raises:
            InvalidParameters: the arguments do not fit, or cannot be stored.
        """
        engine = self._engine
        values = flow.parameters.check(flow.parameters.bind(args, kwargs))
        engine.learn_secrets(values)
        run = Run(new_run_id(engine.clock.time()), 0, flow, engine, engine.clock.time())
        run.parameters = values
        run.idempotency_key = None if idempotency_key is None else str(idempotency_key)
        self._place(run, parent, tags)
        run.run_name = str(run_name) if run_name else self._name(flow, values)
        run.extra = Extra(
            reference(flow),
            run.parent.extra.root if run.parent is not None else 0,
            flow.parameters.store(values, engine.masker),
            *flow.parameters.split(values),
            Decisions(run, engine.record_mark),
            deployment=deployment,
            scheduled_at=scheduled_at,
            cause=cause,
        )
        if flow.options.timeout is not None:
            run.deadline = engine.steady.time() + flow.options.timeout
        row = rows.run_row(run, engine.id, run.created)
        return run, row, StateRow(0, run.created, row.state, row.state_name, "", run.epoch)

    def adopt(self, run: Run, row: RunRow) -> None:
        """A prepared run has been stored."""
        run.pk = row.pk
        run.extra.root = row.root
        self._bind(run)

    async def _never_begins(self, run: Run) -> None:
        """Who wanted a run was cancelled while it was being stored."""
        dropping = self._engine.executor.background(self._drop(run.id), "asyncflow-drop")
        await self._through(dropping)

    async def _drop(self, run_id: str) -> None:
        engine = self._engine
        with contextlib.suppress(StoreError):  # whoever recovers it begins it after all
            row = await engine.writer.do(lambda: engine.store.run(run_id))
            if row is not None:
                await engine.recovery.cancel_stored(row, "cancelled by its host before it began")

    async def fork(
        self,
        row: RunRow,
        flow: Flow[..., Any],
        values: dict[str, Any],
        below: int,
        edited: Sequence[TaskRow] = (),
        idempotency_key: str | None = None,
    ) -> tuple[Run, bool]:
        """A new run that begins with what another has, up to the number *below* of its calls.

        Or, and False, the one that has the idempotency key.

        Args:
            edited: rows that it has instead of those with the same numbers.
        """
        engine = self._engine
        values = flow.parameters.check(values)
        engine.learn_secrets(values)
        now = engine.clock.time()
        run = Run(new_run_id(now), 0, flow, engine, now)
        run.parameters = values
        run.run_name = row.name
        run.idempotency_key = None if idempotency_key is None else str(idempotency_key)
        self._place(run, None, frozenset(row.tags))
        run.extra = Extra(
            reference(flow),
            0,
            flow.parameters.store(values, engine.masker),
            *flow.parameters.split(values),
            Decisions(run, engine.record_mark),
            origin=row.id,
        )
        if flow.options.timeout is not None:
            run.deadline = engine.steady.time() + flow.options.timeout
        others = {task.seq for task in edited}
        run.failed_seqs = tuple(s for s in row.ended_by if s < below and s not in others)
        made = rows.run_row(run, engine.id, now)
        text = f"forked from {row.id}{edits.told(edited)}"
        state = StateRow(0, now, made.state, made.state_name, text, run.epoch)
        try:
            made = await engine.writer.do(
                lambda: engine.store.copy_run(row.pk, made, [state], below, edited)
            )
            if made.id != run.id:
                return engine.live_or_stored(made, flow), False
            run.pk, run.extra.root = made.pk, made.root
            self._bind(run)
            await self.load(run, fresh=True)
        except BaseException:
            await self._never_begins(run)
            raise
        return run, True

    def _place(self, run: Run, parent: Call | None, tags: frozenset[str]) -> None:
        """Where the run belongs: its parent, and what it inherits."""
        own = run.options.tags | tags | TAGS.get()
        if parent is not None:
            run.call = parent
            run.parent = parent.run
            parent.child = run
            own |= parent.run.tags
        run.tags = own

    @staticmethod
    def _name(flow: Flow[..., Any], values: dict[str, Any]) -> str:
        template = flow.options.run_name
        if template is None:
            return ""
        return make_name(template, flat(flow.parameters.signature, values))

    def _bind(self, run: Run) -> None:
        """Limits of the run: its own, or those of its parent."""
        size = run.options.max_concurrency
        if size is not None:
            run.limit = ((Slots(f"run:{run.id}", size), 1),)
        elif run.parent is not None:
            run.limit = run.parent.limit

    def revive(
        self,
        row: RunRow,
        flow: Flow[..., Any],
        values: dict[str, Any],
        parent: Call | None,
        fresh: bool,
    ) -> Run:
        """A stored run that goes on: claimed already, its history not yet loaded."""
        engine = self._engine
        run = Run(row.id, row.pk, flow, engine, row.created_at)
        values = flow.parameters.check(values)
        engine.learn_secrets(values)
        run.parameters = values
        run.run_name = row.name
        run.idempotency_key = row.idempotency_key
        run.epoch = row.epoch
        run.attempt = row.attempt
        run.recoveries = row.recoveries
        run.started = row.started_at
        run.deadline = row.deadline_at
        if fresh and flow.options.timeout is not None:
            run.deadline = engine.steady.time() + flow.options.timeout
        self._place(run, parent, frozenset(row.tags))
        run.failed_seqs = row.ended_by
        run.extra = Extra(
            row.flow_ref,
            row.root,
            row.parameters,
            *flow.parameters.split(values),
            Decisions(run, engine.record_mark),
        )
        run.extra.origin = row.origin
        run.extra.deployment = row.deployment
        run.extra.scheduled_at = row.scheduled_at
        run.extra.cause = row.cause
        run.phase = S.SCHEDULED
        self._bind(run)
        return run

    async def load(self, run: Run, fresh: bool) -> None:
        """Read what a former life of the run recorded."""
        store, pk = self._engine.store, run.pk
        story = [] if fresh or not run.failed_seqs else await self._engine.reader.states(pk)

        def read() -> tuple[Any, Any, Any, list[str]]:
            return (
                store.calls(pk), store.children(pk), store.marks(pk), store.artifact_keys(pk)
            )  # fmt: skip

        tasks, children, marks, shown = await self._engine.writer.do(read)
        self._engine.shown.restore(run, shown)
        again = frozenset(run.failed_seqs)
        if not fresh and again:
            again = _not_yet_again(run, again, story, tasks, children)
        past = read_past(pk, marks, tasks, again, fresh)
        for mark in past.marks:
            self._engine.record_mark(mark)
        run.extra.doomed = past.doomed
        if run.extra.origin is not None:
            run.edits = edits.Tokens(tasks)
        run.history = History(tasks, children, again, fresh, past.void)
        # Equal calls are numbered, and void ones count.
        run.seen_hashes = {hash(identity) for identity in run.history.seeds}
        run.repeats = {hash(identity): n - 1 for identity, n in run.history.seeds.items()}
        run.seq = max((row.seq for row in tasks), default=0)
        run.seq = max([run.seq, *(c.parent_seq or 0 for c in children)])
        run.extra.decisions.restore(marks)
        # Recorded with the run, until it ends: a crash may come before they have run again.
        run.failed_seqs = tuple(sorted(run.history.again))

    # --- a child run ----------------------------------------------------------------------------

    async def child(self, call: Call, context: Context) -> Any:
        """The run of a flow that is called in a flow, as the body of that call."""
        flow = call.spec.task
        parent = call.run
        row = parent.history.take_child(call.identity) if parent.history is not None else None
        run: Run | None = None
        if row is not None:
            answer = await self._answered(call, row, parent)
            if answer is not None:
                return answer[0]
            run = await self._reopen_child(call, row, flow, parent)
        if run is None:
            run, _ = await self.create(flow, call.args, call.kwargs, parent=call)
        value = await self.carry_out(run, context)
        return Skipped(run.message) if run.phase_name == SKIPPED else value

    async def _answered(self, call: Call, row: RunRow, parent: Run) -> tuple[Any] | None:
        """The stored end of a child run, unless it has to run again."""
        state = S(row.state)
        if state is S.COMPLETED and row.result_kind != ResultKind.NOT_STORED:
            what, load = f"the run {row.id}", self._engine.store.load_file
            value = rows.value_of(row.result_kind, row.result, load, what)
            call.seq = row.parent_seq or call.seq
            return (Skipped(row.message) if row.state_name == SKIPPED else value,)
        if state is S.FAILED and row.parent_seq not in parent.history.again:
            raise failures.rebuild(row.error or b"null")
        return None

    async def _reopen_child(
        self, call: Call, row: RunRow, flow: Flow[..., Any], parent: Run
    ) -> Run:
        engine = self._engine
        if row.state in (S.COMPLETED, S.FAILED, S.CANCELLED, S.CRASHED) or row.engine != engine.id:
            # Its tree was claimed with the root; what had ended is opened under the same owner.
            claimed = await engine.recovery.claim(row)
            row = claimed or row
        values = flow.parameters.bind(call.args, call.kwargs)
        run = self.revive(row, flow, values, call, parent.history.fresh)
        call.seq = row.parent_seq or call.seq
        await self.load(run, parent.history.fresh or row.state == S.SCHEDULED)
        if not parent.history.fresh:
            await self.count_failures(run)
        return run

    # --- the whole life -------------------------------------------------------------------------

    async def carry_out(self, run: Run, context: Context | None = None) -> Any:
        """Run it to its end, here. Its value is returned, or its exception raised.

        A cancellation of the task that awaits this passes through, after the run has been
        wound up and recorded.
        """
        engine = self._engine
        engine.went_live(run)
        context = (context or copy_context()).copy()
        context.run(CURRENT.set, run)
        host: asyncio.CancelledError | None = None
        try:
            awoken = False
            while True:
                self._begin(run, awoken)
                if engine.tracing is not None:
                    engine.tracing.run_begins(run, context)
                error, host = await self._attempt(run, context)
                awoken = run.stop == "suspend" and error is not None and host is None
                if awoken:
                    if engine.tracing is not None:
                        engine.tracing.run_ends(run, suspended=True)
                    host = await self._sleep(run)
                    if host is None and run.stop is None:
                        continue
                    error = host
                elif run.stop == "suspend":
                    run.stop = None  # it came to its end all the same
                if error is None or host is not None:
                    break
                try:
                    if not await self._tries_again(run, error):
                        break
                except asyncio.CancelledError as cancelled:
                    error = host = cancelled
                    break
            winding_up = engine.executor.background(self._end(run, error), "asyncflow-end")
            host = await self._through(winding_up) or host
        finally:
            if engine.tracing is not None:
                engine.tracing.run_ends(run)
            self._forget(run)
        if host is not None:
            raise host
        if run.error is not None:
            raise run.error
        return run.value

    def _begin(self, run: Run, awoken: bool) -> None:
        """Enter RUNNING, and set the deadline's alarm."""
        engine = self._engine
        now = engine.clock.time()
        if not awoken:
            run.attempt += 1
        if run.started is None:
            run.started = now
        engine.move_run(run, S.RUNNING, "Retrying" if run.attempt > 1 else None, "")
        if run.deadline is not None and run.extra.timer is None:
            wait = max(0.0, run.deadline - engine.steady.time())
            run.extra.timer = engine.loop.call_later(wait, self._deadline, run)

    def _deadline(self, run: Run) -> None:
        if run.phase in (S.RUNNING, S.PAUSED, S.SCHEDULED):
            self.stop(run, "timeout", f"{run.display} exceeded its timeout")

    # --- waiting --------------------------------------------------------------------------------

    def pause(self, run: Run, wait: Wait) -> None:
        """Its body does nothing but wait."""
        if run.phase is not S.RUNNING:
            return
        run.extra.wake_at, run.extra.waits_for = wait.until, wait.describe()
        name = None if wait.kind == "pause" else "Suspended"
        self._engine.move_run(run, S.PAUSED, name, wait.sentence(), owned=True)

    def unpause(self, run: Run) -> None:
        """Its body goes on."""
        if run.phase is S.PAUSED and run.phase_name != _TROUBLE:
            run.extra.wake_at = run.extra.waits_for = None
            self._engine.move_run(run, S.RUNNING, None, "")
            self._show_trouble(run)

    def trouble(self, run: Run, call: Call, text: str) -> None:
        """A call of the run waits for a person: so does the run, and what called it."""
        above: Run | None = run
        while above is not None:
            above.extra.troubled[call] = text
            self._show_trouble(above)
            call = above.call or call
            above = above.parent

    def _show_trouble(self, run: Run) -> None:
        if run.extra.troubled and run.phase is S.RUNNING:
            text = next(iter(run.extra.troubled.values()))
            self._engine.move_run(run, S.PAUSED, _TROUBLE, text[:500], owned=True)

    def relieve(self, run: Run, call: Call) -> None:
        """A call of the run does not wait for a person any more."""
        above: Run | None = run
        while above is not None:
            if above.extra.troubled.pop(call, None) is None or above.extra.troubled:
                return
            if above.phase is S.PAUSED and above.phase_name == _TROUBLE and above.stop is None:
                self._engine.move_run(above, S.RUNNING, None, "")
            call = above.call or call
            above = above.parent

    async def _sleep(self, run: Run) -> asyncio.CancelledError | None:
        """Keep almost nothing of the run until its wait is over; then read it again.

        A cancellation of the host that comes meanwhile is returned.
        """
        engine, wait = self._engine, run.extra.asleep
        assert wait is not None
        if run.stop == "suspend":
            run.stop = None
        run.pending = False
        run.history = None
        run.seen_hashes.clear()
        run.repeats.clear()
        run.prefixes.clear()
        run.unseen.clear()
        run.value = MISSING
        engine.calls.forget(run)
        try:
            await wait.ended
        except asyncio.CancelledError as error:
            return error
        finally:
            engine.waiting.end(wait)
            run.extra.asleep = None
        if run.stop is None:
            run.extra.wake_at = run.extra.waits_for = None
            await engine.journal.durable()
            await self.load(run, fresh=False)
        return None

    async def _attempt(
        self, run: Run, context: Context
    ) -> tuple[BaseException | None, asyncio.CancelledError | None]:
        """Run the body once and wind up what it left: its error, and the host's cancellation."""
        engine = self._engine
        carrier = run.extra.carrier = asyncio.current_task()
        before = carrier.cancelling() if carrier is not None else 0
        error: BaseException | None = None
        host: asyncio.CancelledError | None = None
        run.told = None
        try:
            if run.options.hooks.on_running:
                await engine.hooks.of(run.flow, run)
            run.value = await driving.Driven(run, self._whole(run), context)
        except BaseException as raised:
            error = raised
            if isinstance(raised, GeneratorExit):
                raise
            if isinstance(raised, asyncio.CancelledError) and (
                carrier is not None and carrier.cancelling() > before
            ):
                host = raised
        if error is None:
            error = self._returned(run)
        if run.live:
            unwinding = engine.executor.background(
                self._cancel_rest(run, error), "asyncflow-unwind"
            )
            host = await self._through(unwinding) or host
        if isinstance(error, KeyboardInterrupt | SystemExit):
            run.error = error
        return error, host

    async def _through(self, task: asyncio.Task[Any]) -> asyncio.CancelledError | None:
        """Wait for work that must be done; a cancellation that comes meanwhile is returned."""
        import anyio

        with anyio.CancelScope(shield=True):
            try:
                await uncancelled(task)
            except asyncio.CancelledError as error:
                if task.cancelled():
                    raise
                return error
        return None

    async def _whole(self, run: Run) -> Any:
        """The body, and the wait for everything that it started."""
        flow, extra = run.flow, run.extra
        kwargs = dict(extra.kwargs)
        for name, resource in flow.parameters.resources.items():
            if name not in run.parameters:
                kwargs[name] = await self._engine.resource(resource, run)
        function: Callable[[], Any] = partial(flow.fn, *extra.args, **kwargs)
        if flow.options.log_prints:
            function = self._engine.with_prints(function, flow.is_async)
        try:
            if flow.is_async:
                value = await function()
            else:
                value = await self._in_thread(run, function)
        except Skipped as skipped:
            value = skipped
        if Spec.returns_futures(value):
            value = await resolve(value)
        while run.live:
            run.idle = self._engine.loop.create_future()
            try:
                await run.idle
            finally:
                run.idle = None
        failed = self._unseen(run)
        if failed is not None:
            raise failed
        return value

    async def _in_thread(self, run: Run, function: Callable[[], Any]) -> Any:
        """A plain function as a flow body: in a thread that counts against no limit."""
        waiter = self._engine.threads.run(function)
        try:
            return await asyncio.shield(waiter)
        except asyncio.CancelledError:
            # The thread goes on until its next wait, which fails because its calls are
            # cancelled. Wait for it: a flow does not end before its code has.
            spare = run.stop not in GOES_ON
            self._cancel_calls(run, f"{run.display} is being stopped", spare)
            await asyncio.shield(waiter)
            raise

    @staticmethod
    def _returned(run: Run) -> BaseException | None:
        """What a returned State means: its error, if it is no success."""
        value = run.value
        if isinstance(value, Skipped):
            value = State(S.COMPLETED, SKIPPED, value.message)
        if not isinstance(value, State):
            return None
        if value.type is S.COMPLETED:
            run.value = value.data
            run.message = value.message
            if value.name == SKIPPED:
                run.value, run.message = None, value.message or "its code had nothing to do"
            run.phase_name = None if value.name == "Completed" else value.name
            return None
        if value.type is S.CANCELLED:
            run.stop = run.stop or "cancel"
            run.cancel_message = value.message or "its own code returned Cancelled"
            return RunCancelled(run.cancel_message)
        if value.type is S.FAILED:
            error = value.result(raise_on_failure=False)
            assert isinstance(error, BaseException)
            run.told = value.message, None if value.name == "Failed" else value.name
            return error
        return InvalidParameters(
            f"{run.display} returned the state {value.name}, which ends nothing: return"
            " Completed, Failed or Cancelled"
        )

    @staticmethod
    def _unseen(run: Run) -> BaseException | None:
        """An exception group of all failures that nobody looked at; None if there are none."""
        if not run.unseen:
            return None
        calls = list(run.unseen.values())
        errors = [c.error for c in calls if c.error is not None]
        # What did not run because of an upstream is told by what the upstream failed with.
        roots = [(e.__cause__ or e) if isinstance(e, UpstreamFailed) else e for e in errors]
        unique = list({id(e): e for e in roots}.values())
        names = ", ".join(sorted({c.spec.name for c in calls}))
        text = (
            f"{len(calls)} task runs of {run.display} failed and nothing looked at them ({names}):"
            " await their futures, or pass them on with allow_failure"
        )
        return BaseExceptionGroup(text, unique)

    # --- stopping -------------------------------------------------------------------------------

    def stop(self, run: Run, why: str, message: str) -> None:
        """Stop a live run: its body is told, and its calls are cancelled."""
        if run.phase.is_final or run.stop not in (None, "suspend"):
            return
        engine = self._engine
        run.cancel_message = message
        if why == "cancel" and run.phase in (S.RUNNING, S.PAUSED):
            engine.move_run(run, S.CANCELLING, None, message)
        waits = run.extra.asleep.ended if run.extra.asleep is not None else run.extra.nap
        if waits is not None:
            run.stop = why
            if not waits.done():
                waits.set_result(None)
            return
        grace = run.options.grace if run.options.grace is not None else engine.grace
        driving.stop(run, why)
        spare = why not in GOES_ON
        self._cancel_calls(run, message, spare)
        if spare:
            engine.executor.hurry(run)
        engine.executor.pump()
        until = engine.loop.time() + grace
        engine.loop.call_later(REMIND, self._remind, run, run.attempt, why, until)

    def storage_failed(self, run: Run, error: BaseException) -> None:
        """Nothing can be recorded any more: end the run here; in the store it can be resumed."""
        engine = self._engine
        run.error = error
        if run.stop is None:
            run.cancel_message = str(error)
            driving.stop(run, "storage")
        else:
            run.stop = "storage"
        engine.machine.recording = False
        engine.machine.at_once = True
        self._cancel_calls(run, str(error))
        engine.executor.pump()

    def settle_unrecorded(self) -> None:
        """Nothing can be recorded any more: what has ended is not waited for."""
        machine = self._engine.machine
        for run in list(self._engine.live.values()):
            for call in list(run.calls):
                if call.phase.is_final and not call.settled:
                    machine.settle(call)
            for batch in list(run.batches):
                self._engine.executor.acknowledge([i for i in batch.results if type(i) is Item])

    def _remind(self, run: Run, attempt: int, why: str, until: float) -> None:
        if run.phase.is_final or run.stop is None or run.attempt != attempt or run.body is None:
            return
        now = self._engine.loop.time()
        if run.rolling:
            # It undoes what it did, each step within its own time.
            grace = self._engine.grace if run.options.grace is None else run.options.grace
            again = (run, attempt, why, now + REMIND + grace)
            self._engine.loop.call_at(now + REMIND, self._remind, *again)
            return
        if now >= until:
            place = driving.where(run)
            run.cancel_message += f"; its code did not stop, at {place}" if place else ""
            driving.stop(run, driving.KILL)
            return
        driving.stop(run, why)
        self._engine.loop.call_at(min(now + REMIND, until), self._remind, run, attempt, why, until)

    def _cancel_calls(self, run: Run, message: str, spare: bool = False) -> None:
        """Cancel every call of a run that has not ended; *spare* teardowns and what undoes."""
        engine = self._engine
        now = engine.clock.time()
        for batch in list(run.batches):
            engine.machine.cancel_batch(batch, message, now, RunCancelled(message))
        for call in list(run.calls):
            if call.aside is not None and run.stop == "interrupt":
                # Its record stays as it is. What stands in for it is among the others.
                if call.aside.begun and call.aside.stand_in is None and not call.phase.is_final:
                    engine.asides.leave(call)
            elif not (spare and is_shielded(call)):
                engine.machine.cancel(call, message, now, RunCancelled(message))
        engine.executor.drain()

    async def _cancel_rest(self, run: Run, error: BaseException | None) -> None:
        """Cancel what the body left running, and wait until it has ended."""
        why = f": {failures.told(error, 400)}" if error is not None else ""
        reason = run.cancel_message or f"{run.display} ended{why}"
        spare = run.stop not in GOES_ON
        run.closing = True
        self._cancel_calls(run, reason[:500], spare)
        if spare:
            self._engine.executor.hurry(run)
        self._engine.executor.pump()
        while run.live:
            run.idle = self._engine.loop.create_future()
            await run.idle
            run.idle = None
        run.closing = False

    # --- ending ---------------------------------------------------------------------------------

    async def _tries_again(self, run: Run, error: BaseException) -> bool:
        """Whether another attempt of the run follows: then the wait before it is over."""
        if run.stop is not None:
            return False
        run.failures += 1
        policy, past = run.options.retry, run.extra.past
        if not policy.retries:
            return False
        wait: float | str = ""
        if policy.answers(run.failures, error):
            wait = await self._may_retry(run, error)
        if isinstance(wait, str):
            failures.note_attempts(error, run.display, past, run.attempt, wait)
            return False
        past.append(f"attempt {run.attempt}: {failures.told(error, 500)}")
        await self._wait_again(run, error, wait)
        return run.stop is None

    async def _may_retry(self, run: Run, error: BaseException) -> float | str:
        """Seconds until another attempt of the run; a string says why there is none."""
        engine, options = self._engine, run.options
        now = engine.clock.time()
        if options.retry_condition is not None:
            state: State[Any] = State(
                S.FAILED, "", failures.told(error), attempt=run.attempt, error=error
            )
            try:
                answer = options.retry_condition(run.flow, engine.handle(run), state)
                if inspect.isawaitable(answer):
                    answer = await answer
            except Exception as raised:
                told = failures.told(raised, 200)
                return f"its retry_condition_fn raised {told}, so no retry"
            if not answer:
                return ""
        deadline = run.deadline
        if deadline is not None:
            deadline += now - engine.steady.time()
        return options.retry.wait(run.failures, error, now, deadline, engine.rng)

    async def _wait_again(self, run: Run, error: BaseException, wait: float) -> None:
        """An attempt of the run failed and another follows: what completed is kept."""
        engine = self._engine
        text = f"{failures.told(error, 400)}; next attempt in {shown_seconds(wait)}"
        run.failed_seqs = ended_by(run, error)
        run.extra.wake_at = engine.steady.time() + wait
        engine.move_run(run, S.SCHEDULED, "AwaitingRetry", text[:500])
        run.unseen.clear()
        run.prefixes.clear()
        run.extra.nap = engine.loop.create_future()
        alarm = engine.loop.call_later(wait, _over, run.extra.nap)
        try:
            if engine.durability != "off":
                await engine.journal.durable()
                await self.load(run, fresh=True)
            else:
                run.seen_hashes.clear()
                run.repeats.clear()
            await run.extra.nap
        finally:
            alarm.cancel()
            run.extra.nap = run.extra.wake_at = None

    async def count_failures(self, run: Run) -> None:
        """Attempts that were used in a former life of a run stay used."""
        if not run.options.retry.retries:
            return
        for row in await self._engine.reader.states(run.pk):
            if row.state_name == "AwaitingRetry":
                run.failures += 1
            elif S(row.state).is_final:
                run.failures = 0  # a resume of what had ended grants fresh ones

    async def _end(self, run: Run, error: BaseException | None) -> None:
        """Decide how the run ended, record it, tell the hooks and those who wait."""
        engine, extra = self._engine, run.extra
        if extra.timer is not None:
            extra.timer.cancel()
        if extra.resources is not None:
            await extra.resources.aclose(engine.report, engine.grace)
        state, name, message, final = self._verdict(run, error)
        run.error = final
        run.ended = engine.clock.time() if state is not S.PAUSED else None
        if state is S.COMPLETED:
            self._encode_result(run)
            run.failed_seqs = ()
        elif error is not None and state is not S.PAUSED:
            run.failed_seqs = ended_by(run, error)
        if run.history and state is not S.PAUSED:
            self._tell_changed(run)
        await engine.flush_logs(run)
        engine.shown.flush(run)
        if state is S.PAUSED and run.phase is S.PAUSED:
            # It waits already: it does so in the store from now on, for whoever takes it over.
            engine.let_go(run)
        else:
            run.extra.wake_at = run.extra.waits_for = None
            engine.move_run(run, state, name, message)
        if run.stop != "storage":
            try:
                await engine.journal.durable()
            except StoreError as failed:
                run.error = failed
                extra.unrecorded = True
        if state.is_final and run.options.hooks and not extra.unrecorded:
            await engine.hooks.of(run.flow, run)

    async def tell_end(self, run: Run) -> None:
        """Tell the hooks of a run that has ended without having been carried out here."""
        try:
            await self._engine.hooks.of(run.flow, run)
        finally:
            self._forget(run)

    def _tell_changed(self, run: Run) -> None:
        """Name what the run had recorded and did not ask for again."""
        engine = self._engine
        texts = run.history.changed()
        lost = {id(doom): doom for doom in run.extra.doomed.values() if not doom.met}
        if lost:
            texts.append(
                f"{len(lost)} transactions that were being rolled back were not entered again, so"
                " they may be undone only partly"
            )
        for text in texts:
            engine.tell(run, text)

    def _verdict(
        self, run: Run, error: BaseException | None
    ) -> tuple[StateType, str | None, str, BaseException | None]:
        """State, its name and message, and the exception that the run raises."""
        why = run.stop
        if error is None and why in (None, "timeout") and not self._late(run):
            return S.COMPLETED, run.phase_name if run.message else None, run.message, None
        stubborn = isinstance(error, Unresponsive)
        if why == "storage":
            return S.PAUSED, "Interrupted", run.cancel_message, run.error
        if why == "interrupt":
            text = run.cancel_message or "interrupted"
            return S.PAUSED, "Interrupted", text, RunInterrupted(f"{run.display}: {text}")
        if run.phase is S.CANCELLING or why == "cancel":
            text = run.cancel_message or "cancelled"
            name = "RolledBack" if run.undone else None
            return S.CANCELLED, name, text, RunCancelled(f"{run.display} was cancelled: {text}")
        if why == "timeout" or stubborn or (error is None and self._late(run)):
            seconds = run.options.timeout or 0.0
            text = f"{run.display} exceeded its timeout of {seconds:g} s"
            if stubborn:
                text += f"; {run.cancel_message}"
            timeout = FlowTimeout(text)
            if not isinstance(error, asyncio.CancelledError):
                timeout.__cause__ = error
            return S.FAILED, "TimedOut", text, timeout
        if error is None:
            return S.COMPLETED, None, run.message, None
        if isinstance(error, asyncio.CancelledError):
            text = "cancelled by its host"
            name = "RolledBack" if run.undone else None
            return S.CANCELLED, name, text, RunCancelled(f"{run.display} was {text}")
        if run.told is not None:
            text, name = run.told
            return S.FAILED, name, text or failures.told(error), error
        name = "RolledBack" if failures.is_rolled_back(error, run.pk, 0) else None
        return S.FAILED, name, failures.told(error), error

    def _late(self, run: Run) -> bool:
        return run.deadline is not None and self._engine.steady.time() >= run.deadline

    def _encode_result(self, run: Run) -> None:
        extra, value = run.extra, run.value
        if not run.options.persist:
            extra.result_kind = ResultKind.NOT_STORED
            return
        try:
            if run.options.serializer == "pickle":
                import pickle

                extra.result_kind = ResultKind.PICKLE
                extra.result = codec.seal(pickle.dumps(value))
            else:
                extra.result_kind = ResultKind.JSON
                extra.result = codec.seal(codec.encode(value))
        except Exception as error:
            extra.result_kind, extra.result = ResultKind.NOT_STORED, None
            reason = str(error) if isinstance(error, NotSerializable) else failures.told(error)
            self._engine.report(f"the result of flow {run.flow_name!r} is not stored: {reason}")

    def _forget(self, run: Run) -> None:
        """The run is over: keep nothing but what its handles show."""
        engine = self._engine
        engine.live.pop(run.id, None)
        if engine.scheduler is not None and run.extra.deployment is not None:
            engine.scheduler.ended(run.extra.deployment)
        engine.calls.forget(run)
        engine.shown.forget(run)
        run.history = None
        run.seen_hashes.clear()
        run.repeats.clear()
        run.prefixes.clear()
        run.body = run.on = None
        if run.extra.timer is not None:
            run.extra.timer.cancel()
            run.extra.timer = None
        waiters, run.waiters = run.waiters, None
        for waiter in waiters or ():
            if not waiter.done():
                waiter.set_result(None)


def _over(waits: asyncio.Future[None]) -> None:
    if not waits.done():
        waits.set_result(None)


def _not_yet_again(
    run: Run,
    again: frozenset[int],
    story: list[StateRow],
    tasks: list[TaskRow],
    children: list[RunRow],
) -> frozenset[int]:
    """Which of the calls that a new attempt of the run runs again have not done so yet."""
    since = run.created
    for row in story:
        if row.state_name == "AwaitingRetry" or S(row.state).is_final:
            since = row.time
    ended = {row.seq: row.ended_at for row in tasks}
    ended |= {row.parent_seq or 0: row.ended_at for row in children}
    return frozenset(seq for seq in again if (ended.get(seq) or since + 1) <= since)


def ended_by(run: Run, error: BaseException) -> tuple[int, ...]:
    """Numbers of the calls of *run* whose failure is part of *error*."""
    return tuple(sorted(seq for pk, seq in failures.blamed(error) if pk == run.pk))


def run_state(run: Run) -> State[Any]:
    """The public state of a live run."""
    from asyncflow.views import moment

    at = moment(run.ended or run.started or run.created)
    assert at is not None
    value = run.value if run.value is not MISSING else None
    if run.extra is not None and run.extra.unrecorded:
        # What is not on disk is not shown as done; there it can be resumed.
        return State(S.PAUSED, "Interrupted", str(run.error), at, run.attempt, None, run.error)
    return State(run.phase, run.shown_phase, run.message, at, run.attempt, value, run.error)
