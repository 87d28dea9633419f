"""`transaction()`: several tasks that are undone together when one of them does not succeed.

Each task of the block is checkpointed at once, as everywhere. What undoes it (`on_rollback`) is
a call of its own: retried, recorded, and not made again by a recovery when it has completed.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
from collections.abc import Callable
from contextvars import Token
from dataclasses import replace
from types import TracebackType
from typing import Any

from asyncflow import codec, failures
from asyncflow.context import TRANSACTION, current_call, current_run
from asyncflow.errors import (
    BlockingCall,
    InvalidDefinition,
    NoEngine,
    RollbackIncomplete,
    TaskCancelled,
)
from asyncflow.retry import exponential_backoff
from asyncflow.run import MISSING, Batch, Call, Run
from asyncflow.spec import Spec
from asyncflow.states import State, StateType
from asyncflow.undone import Doom, rolling, undone

S = StateType

#: How hooks are carried out that are no tasks with options of their own.
STEP_OPTIONS: dict[str, Any] = {
    "retries": 3,
    "retry_delay_seconds": exponential_backoff(base=0.5, max_delay=10),
    "total_timeout_seconds": 300,
}
#: Seconds for one attempt of an async hook.
STEP_TIMEOUT = 60

#: Why a run is being stopped, where it goes on later from the same point.
_GOES_ON = ("interrupt", "storage", "suspend")


class _Member:
    """One call of a transaction; its arguments, where hooks may ask for them."""

    __slots__ = ("args", "call", "kwargs", "transaction")

    def __init__(self, call: Call, transaction: Transaction) -> None:
        self.call = call
        self.transaction = transaction
        keep = call.spec.steps
        self.args = call.args if keep else ()
        self.kwargs = call.kwargs if keep else {}


class Transaction:
    """One transaction, as its block and the hooks of its tasks see it.

    Attributes:
        key: what it was given as ``key=``.
        parameters: in a hook, the arguments of the task, by name; else None.
        result: in a hook, what the task returned; else None.
        task_run: in a hook, the task run; else None.
    """

    def __init__(self, key: Any = None) -> None:
        self.key = key
        self.parameters: dict[str, Any] | None = None
        self.result: Any = None
        self.task_run: Any = None
        self._run: Run | None = None
        self._call: Call | None = None
        self._parent: Transaction | None = None
        self._members: list[_Member] = []
        self._batches: list[Batch] = []
        self._steps: list[tuple[int, Call]] = []  # with the numbers of their members
        self._values: dict[str, Any] = {}
        self._series: dict[tuple[str, bool], Any] = {}
        self._token: Token[Any] | None = None
        self._doom: Doom | None = None
        self._rolling = False
        self._open = False

    # --- values -----------------------------------------------------------------------------------

    def set(self, name: str, value: Any) -> None:
        """Keep a value for hooks and for later. It is recorded: a resumed run has the same.

        Args:
            value: plain data.

        Raises:
            NotSerializable: the value cannot be stored.
        """
        run = self._live()
        run.engine.call(self._set, run, name, value)

    def _set(self, run: Run, name: str, value: Any) -> None:
        own = current_call() is self._call
        series = self._recorded(run, name, own)
        known = series.replay() if own else None
        if known is None:
            data = run.engine.masker.data(codec.encode(value, f"the value {name!r}"))
            series.record(data)
            self._values[name] = value
        else:
            self._values[name] = codec.decode(known)

    def get(self, name: str, default: Any = None) -> Any:
        """A value that was set here, else in the transaction around this one."""
        if self._run is not None and name not in self._values:
            self._run.engine.call(self._recorded, self._run, name, False)
        if name in self._values:
            return self._values[name]
        return default if self._parent is None else self._parent.get(name, default)

    def _recorded(self, run: Run, name: str, own: bool) -> Any:
        """The series of a value: one of the code of the block, and one of everybody else.

        What tasks have set in a former life is taken over: they do not do so again.
        """
        found = self._series.get((name, own))
        if found is None:
            parent = self._call.identity if self._call is not None else b""
            kind = "transaction value" if own else "transaction value of tasks"
            of = codec.encode([self.key, name], "the key of the transaction")
            found = self._series[name, own] = run.extra.decisions.series(kind, parent, of)
            while not own and (known := found.replay()) is not None:
                self._values[name] = codec.decode(known)
        return found

    def _live(self) -> Run:
        if self._run is None:
            raise NoEngine("set() was called on a transaction that was not entered")
        return self._run

    # --- entering ---------------------------------------------------------------------------------

    async def __aenter__(self) -> Transaction:
        self._enter()
        return self

    def __enter__(self) -> Transaction:
        run = current_run()
        if run is not None and run.engine.on_loop():
            raise BlockingCall(
                "`with transaction()` would block the event loop here: use `async with"
                " transaction()`"
            )
        self._enter()
        return self

    def _enter(self) -> None:
        run = current_run()
        if run is None:
            raise NoEngine("transaction() was used outside of a flow: use it inside one")
        if self._run is not None:
            raise NoEngine("a transaction can be entered once: make another one")
        self._run, self._call = run, current_call()
        outer = TRANSACTION.get()
        if outer is not None and outer._open and outer._run is run and outer._call is self._call:
            self._parent = outer
        self._open = True
        if self._call is None:
            run.extra.transactions += 1
        self._token = TRANSACTION.set(self)

    def _exit(self) -> None:
        assert self._token is not None
        if self._call is None:
            self._live().extra.transactions -= 1
        with contextlib.suppress(ValueError):
            TRANSACTION.reset(self._token)

    # --- members ----------------------------------------------------------------------------------

    def add(self, call: Call) -> None:
        """A call was made while this is the innermost transaction.

        Raises:
            Exception: that of a rollback which a former life has begun: the call would have to
                run, and must not.
        """
        if not self._belongs(call.run, call.parent):
            return
        self._members.append(_Member(call, self))
        doom = call.run.extra.doomed.get(call.seq)
        if doom is not None:
            doom.met = True
            self._doom = doom
        if self._doom is not None and not call.phase.is_final and call.aside is None:
            raise self._doomed(self._doom)

    @staticmethod
    def _doomed(doom: Doom) -> BaseException:
        """The exception that began the rollback which has to go on."""
        if doom.stopped:
            return asyncio.CancelledError("it was being rolled back when its process died")
        return failures.rebuild(doom.error)

    def add_batch(self, batch: Batch) -> None:
        """A map was made, of a task without hooks for transactions."""
        if self._belongs(batch.run, batch.parent):
            self._batches.append(batch)

    def _belongs(self, run: Run, parent: Call | None) -> bool:
        while parent is not None and parent is not self._call and parent.aside is not None:
            parent = parent.parent  # what stands in for a call belongs where that does
        if run is not self._run or parent is not self._call:
            return False
        if self._rolling:
            raise TaskCancelled("the transaction is being rolled back and takes on nothing more")
        return self._open

    def _completed(self) -> list[_Member]:
        """Members that completed, in the order in which they did."""
        done = [m for m in self._members if m.call.own and m.call.spec.steps]
        return sorted(done, key=lambda m: (m.call.ended or 0.0, m.call.seq))

    # --- leaving ----------------------------------------------------------------------------------

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._exit()
        if isinstance(exc, GeneratorExit):
            self._open = False
            return
        await self._leave(exc)

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._exit()
        self._live().engine.block(self._leave(exc))

    async def _leave(self, exc: BaseException | None) -> None:
        """Commit, or roll back; raises what is to be raised instead of *exc*."""
        if exc is None:
            try:
                await self._finish()
            except BaseException as error:
                await self._fail(error)
                raise
            finally:
                self._open = False
            return
        try:
            await self._fail(exc)
        finally:
            self._open = False

    async def _finish(self) -> None:
        """The block came to its end: wait for its calls, then tell `on_commit`."""
        if self._doom is not None:
            raise self._doomed(self._doom)
        for batch in self._batches:
            if batch.open:
                await self._settled(batch)
        for member in self._members:
            if member.call in member.call.run.calls:
                await self._settled(member.call)
        self._refuse_failures()
        if self._parent is not None:
            self._parent._members += self._members
            self._parent._batches += self._batches
            return
        for member in self._completed():
            for index, hook in enumerate(member.call.options.on_commit):
                error = await self._step("on_commit", member, index, hook)
                if error is not None:
                    raise error

    async def _settled(self, item: Call | Batch) -> None:
        executor = self._live().engine.executor
        if self._call is None:
            await executor.wait(item)
        else:
            await executor.lend_while(self._call, executor.wait(item))

    def _refuse_failures(self) -> None:
        """Raise the failures of calls of the block that nobody has looked at."""
        run = self._live()
        calls = [m.call for m in self._members]
        for batch in self._batches:
            if not batch.seen:
                calls += batch.calls.values()
        failed = [call for call in calls if call.phase is S.FAILED and not call.seen]
        if not failed:
            return
        errors: dict[int, BaseException] = {}
        for call in failed:
            call.seen = True
            run.unseen.pop(call.seq, None)
            assert call.error is not None
            errors[id(call.error)] = call.error
        names = ", ".join(sorted({call.spec.name for call in failed}))
        raise BaseExceptionGroup(
            f"{len(failed)} task runs of a transaction failed and nothing looked at them ({names}):"
            " await their futures in the block, or pass them on with allow_failure",
            list(errors.values()),
        )

    # --- rolling back -----------------------------------------------------------------------------

    def _goes_on(self) -> bool:
        """Whether the run stops here only to go on from here later."""
        run = self._live()
        return run.stop in _GOES_ON or run.engine.broken

    async def _fail(self, exc: BaseException) -> None:
        """Roll back, whatever stops the code meanwhile.

        Raises:
            RollbackIncomplete: a compensation failed.
            CancelledError: the code was stopped meanwhile, and *exc* does not say so.
        """
        if self._goes_on():
            return
        engine = self._live().engine
        unit: Any = self._call if self._call is not None else self._run
        self._rolling = True
        unit.rolling += 1
        cancelled: asyncio.CancelledError | None = None
        try:
            rolling = engine.executor.background(self._roll_back(exc), "asyncflow-rollback")
            while not rolling.done():
                try:
                    await asyncio.wait([rolling])
                except asyncio.CancelledError as error:
                    cancelled = error
        finally:
            unit.rolling -= 1
        errors = rolling.result()
        if errors is None:
            pass
        elif errors:
            self._report(exc, errors)
        else:
            unit.undone = unit.undone or cancelled is not None or self._is_stopped(exc)
            self._mark(exc)
            if cancelled is not None:
                self._mark(cancelled)
        if cancelled is not None and not isinstance(exc, asyncio.CancelledError):
            raise cancelled from exc

    def _is_stopped(self, exc: BaseException) -> bool:
        """Whether the block was left because its run, task or host is being stopped."""
        run, call = self._live(), self._call
        return (
            isinstance(exc, asyncio.CancelledError)
            or run.stop is not None
            or (call is not None and call.phase is S.CANCELLING)
        )

    def _mark(self, exc: BaseException) -> None:
        """Note on an exception what was rolled back, for the name of the state."""
        run, call = self._live(), self._call
        failures.mark_rolled_back(exc, run.pk, call.seq if call is not None else 0)

    def _report(self, exc: BaseException, errors: list[Exception]) -> None:
        run = self._live()
        told = "; ".join(f"{type(e).__name__}: {e}" for e in errors)[:1000]
        text = f"{len(errors)} compensations of a transaction failed, so it is only partly undone"
        if self._is_stopped(exc):
            # The cancellation has to pass through: it is told beside it.
            exc.add_note(f"asyncflow: {text}: {told}")
            run.cancel_message = f"{run.cancel_message or 'cancelled'}; {text}: {told}"
            run.engine.report(f"{run.display}: {text}: {told}")
            return
        incomplete = RollbackIncomplete(f"{text}: {told}", errors)
        raise incomplete from exc

    async def _roll_back(self, exc: BaseException) -> list[Exception] | None:
        """Stop what is running, and undo what completed, the latest first.

        Returns the failures of compensations; None: it was broken off, to go on later.
        """
        TRANSACTION.set(None)
        run, call = self._live(), self._call
        engine = run.engine
        failed_before = call.failures if call is not None else 0
        await self._stop_members()
        members = [m for m in self._completed() if m.call.options.on_rollback]
        if not members or self._goes_on():
            return [] if not members else None
        undoing = [m.call.seq for m in members]
        # On disk before anything is undone: from now on there is no way but to the end of it.
        error = engine.masker.data(failures.dump(exc)).decode()
        everyone = [m.call.seq for m in self._members if m.call.settled]
        engine.record_mark(rolling(run.pk, self._is_stopped(exc), error, undoing, everyone))
        await engine.journal.durable()
        errors: list[Exception] = []
        for member in reversed(members):
            for index, hook in enumerate(member.call.options.on_rollback):
                if self._goes_on():
                    return None
                error_of_it = await self._step("on_rollback", member, index, hook)
                if error_of_it is not None:
                    errors.append(error_of_it)
        if self._goes_on():
            return None
        owner = call.seq if call is not None else 0
        steps = [step.seq for seq, step in self._steps if seq in undoing]
        stopped = self._is_stopped(exc)
        engine.record_mark(undone(run.pk, owner, failed_before, stopped, undoing, steps))
        # If this is what ends the run, a resume knows by it what has to be done again.
        failures.blame_number(exc, run.pk, min(undoing))
        return errors

    async def _stop_members(self) -> None:
        """Cancel the calls of the block that have not ended, and wait until they have."""
        run = self._live()
        engine, now = run.engine, run.engine.clock.time()
        text = "its transaction is being rolled back"
        members = [m.call for m in self._members if not m.call.options.teardown]
        running = [call for call in members if call in run.calls]
        for batch in self._batches:
            if batch.open:
                engine.machine.cancel_batch(batch, text, now, TaskCancelled(text))
                running += [call for call in batch.calls.values() if call in run.calls]
        for call in running:
            engine.machine.cancel(call, text, now, TaskCancelled(text))
        engine.executor.pump()
        for call in running:
            if not call.settled:
                await engine.executor.wait(call)
        for batch in self._batches:
            if batch.open:
                await engine.executor.wait(batch)

    # --- hooks ------------------------------------------------------------------------------------

    async def _step(self, kind: str, member: _Member, index: int, hook: Any) -> Exception | None:
        """Run one hook as a call of its own; its failure."""
        run = self._live()
        engine = run.engine
        spec = _spec_of(member.call.spec, kind, index, hook)
        view = _HookTransaction(member)
        key = [kind, member.call.identity, index]
        call, _ = engine.calls.make(run, spec, (view,), {}, self._call, key=key)
        self._steps.append((member.call.seq, call))
        state: State[Any] = await engine.direct(call, [], True)
        if state.is_completed():
            return None
        error = call.error
        return (
            error if isinstance(error, Exception) else TaskCancelled(f"{call.display} is {state}")
        )

    def __repr__(self) -> str:
        return "<Transaction>" if self.key is None else f"<Transaction {self.key!r}>"


class _HookTransaction(Transaction):
    """What a hook gets: the transaction of its task, and the task run."""

    def __init__(self, member: _Member) -> None:
        super().__init__(member.transaction.key)
        from asyncflow.views import TaskRun

        call = member.call
        self._of = member.transaction
        self.parameters = call.spec.named(*call.spec.resolved(member.args, member.kwargs))
        self.result = call.value if call.value is not MISSING else None
        self.task_run = TaskRun.of_call(call)

    def set(self, name: str, value: Any) -> None:
        self._of.set(name, value)

    def get(self, name: str, default: Any = None) -> Any:
        return self._of.get(name, default)


def transaction(key: Any = None) -> Transaction:
    """A block whose tasks are undone together.

    Use ``async with transaction() as txn`` in async code and ``with transaction() as txn`` in
    plain flows and tasks. When an exception leaves the block, calls that are running are
    cancelled, and the `on_rollback` hooks of those that completed are run, the latest first;
    when the block comes to its end, their `on_commit` hooks are run, the earliest first.

    Args:
        key: plain data that tells transactions apart that are open at the same time in one
            flow or task, and whose values (`set`) are to be found again when the run is resumed.

    Raises:
        NoEngine: it is used outside of a flow.
        RollbackIncomplete: when it is left by an exception, and a compensation failed too.
    """
    return Transaction(key)


def _spec_of(owner: Spec, kind: str, index: int, hook: Any) -> Spec:
    """The hook of a task as something that can be called, retried and recorded."""
    known: Spec | None = owner.made_steps.get((kind, index))
    if known is None:
        known = owner.made_steps[kind, index] = _make_spec(owner, kind, hook)
    return known


def _make_spec(owner: Spec, kind: str, hook: Any) -> Spec:
    from asyncflow.tasks import AsyncTask, SyncTask, Task

    function: Callable[..., Any] = hook.fn if isinstance(hook, Task) else hook
    is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004 - an object with an async __call__
    )
    cls = AsyncTask if is_async else SyncTask
    silent = _silent(function, is_async)
    if isinstance(hook, Task):
        options = replace(hook.options, persist=True, caching=None)
        made: Task[..., Any] = cls(silent, name=hook.name, options=options)
    else:
        given = dict(STEP_OPTIONS)
        if is_async:
            given["timeout_seconds"] = STEP_TIMEOUT
        made = cls(silent, name=f"{owner.name}.{kind}", given=given)
    spec = made.spec
    spec.shielded = kind == "on_rollback"
    return spec


def _silent(function: Callable[..., Any], is_async: bool) -> Callable[..., Any]:
    """*function* without its result, which might be one that cannot be stored."""
    if is_async:

        @functools.wraps(function)
        async def run(*args: Any) -> None:
            await function(*args)

        return run

    @functools.wraps(function)
    def run_plain(*args: Any) -> None:
        answer = function(*args)
        if inspect.iscoroutine(answer):
            answer.close()
            raise InvalidDefinition(
                f"the hook {getattr(function, '__name__', function)!r} is a plain function that"
                " returned a coroutine: make it async def"
            )

    return run_plain
