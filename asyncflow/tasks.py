"""`@task`: what users declare, call, submit and map."""

from __future__ import annotations

import functools
import inspect
from collections.abc import (
    AsyncIterator,
    Callable,
    Coroutine,
    Generator,
    Iterable,
    Mapping,
    Sequence,
)
from contextvars import copy_context
from dataclasses import replace
from itertools import count
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Generic,
    Literal,
    ParamSpec,
    Protocol,
    TypeVar,
    cast,
    overload,
)

from asyncflow.caching import check_names
from asyncflow.context import TRANSACTION, current_call, current_run
from asyncflow.errors import (
    BlockingCall,
    InvalidDefinition,
    InvalidOption,
    MappingLengthMismatch,
    TaskCancelled,
)
from asyncflow.failures import told
from asyncflow.future import Promised, TaskFuture, TaskFutureList, needs_run, resolve, wait
from asyncflow.limits import Slots
from asyncflow.nested import PLAIN, Allowed, Unmapped, find
from asyncflow.nested import replace as replace_futures
from asyncflow.options import (
    HOOKS,
    check_function,
    check_name,
    check_steps,
    check_templates,
    make_options,
    settle_annotations,
)
from asyncflow.policy import check_fallback
from asyncflow.resources import resources_of
from asyncflow.run import MISSING, Call, Options, Run
from asyncflow.spec import Spec, task_key, value_for
from asyncflow.states import SKIPPED, State, StateType
from asyncflow.stream import OnError, stream
from asyncflow.views import TaskRun

if TYPE_CHECKING:
    import sqlite3

P = ParamSpec("P")
R = TypeVar("R")
Q = ParamSpec("Q")
T = TypeVar("T")
H = TypeVar("H", bound=Callable[..., Any])

#: Numbers what stands for calls that cannot be made yet; they are not those of task runs.
_PROMISES = count(1)


def unmapped(value: Any) -> Any:
    """The same value for each item of a `map`, even where it is a list."""
    return Unmapped(value)


def allow_failure(future: Any) -> Any:
    """Pass a future whose failure the task is ready for: it gets the exception as the value."""
    return Allowed(future)


class Task(Generic[P, R]):
    """A function that is bounded, timed out, retried and checkpointed when a flow calls it.

    Outside of every flow, calling it calls the plain function.

    Attributes:
        fn: the function itself.
        name: what people call it.
        options: how its calls are carried out.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        *,
        name: str | None = None,
        options: Options | None = None,
        limit: Slots | None = None,
        given: Mapping[str, Any] | None = None,
    ) -> None:
        check_function("task", fn)
        check_name("task", name)
        settle_annotations(fn)
        functools.update_wrapper(cast("Any", self), fn)
        self.fn = fn
        self.given = dict(given or {})
        self.name: str = name or getattr(fn, "__name__", None) or type(fn).__name__
        what = f"task {self.name!r}"
        self.options = options or make_options(what, False, **self.given)
        if options is None:
            check_templates(what, self.options, fn, "task_run_name")
        self.is_async = inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(
            getattr(fn, "__call__", None)  # noqa: B004 - an object with an async __call__
        )
        self.options = _with_runner(what, self.options, self.is_async)
        if self.options.transactional:
            _check_connection(what, fn)
        if options is None and self.options.failure_policy is not None:
            policy = self.options.failure_policy
            check_fallback(what, policy, fn, name, self.options.transactional)
        if options is None and self.options.caching is not None:
            check_names(what, self.options.caching, inspect.signature(fn))
        # What is declared, and by with_options shared; each engine makes slots of its own of it.
        if self.options.max_concurrency is not None and limit is None:
            limit = Slots(f"task:{self.name}", self.options.max_concurrency)
        self.limit = limit
        self._explicit_name = name
        self._spec: Spec | None = None

    # --- as a method ----------------------------------------------------------------------------

    def _bound(self, instance: Any, owner: Any) -> Any:
        """The task of a method, bound to its object without touching the shared one."""
        if instance is None:
            return self
        task = type(self)(
            self.fn.__get__(instance, owner),
            name=self.name,
            options=self.options,
            limit=self.limit,
            given=self.given,
        )
        task.is_async = self.is_async
        task._explicit_name = self._explicit_name or self.fn.__qualname__
        return task

    def _own(self, name: str, value: Any, kwargs: dict[str, Any]) -> Any:
        """An option of a call; where the function has a parameter of that name, it gets it."""
        if value is not None and name in self.spec.signature.parameters:
            kwargs[name] = value
            return None
        return value

    # --- calling --------------------------------------------------------------------------------

    @property
    def key(self) -> str:
        """What identifies it across processes: module and qualified name, or its own name."""
        return task_key(self.fn, self._explicit_name)

    @property
    def spec(self) -> Spec:
        """What the engine needs to know of it."""
        if self._spec is None:
            self._spec = Spec(
                self.name,
                self.key,
                self.fn,
                self.options,
                is_async=self.is_async,
                task=self,
                call_class=TaskFuture,
                resources=resources_of(self.fn),
                limit=self.limit,
                resolve_result=resolve,
                view=TaskRun.of_call,
                bound_to=getattr(self.fn, "__self__", MISSING),
            )
        return self._spec

    @overload
    def submit(
        self,
        *args: Any,
        return_state: Literal[True],
        wait_for: Any = None,
        priority: float | None = None,
        key: Any = None,
        **kwargs: Any,
    ) -> StateOf[R]: ...
    @overload
    def submit(
        self,
        *args: Any,
        wait_for: Any = None,
        priority: float | None = None,
        key: Any = None,
        return_state: Literal[False] = False,
        **kwargs: Any,
    ) -> TaskFuture[R]: ...
    def submit(
        self,
        *args: Any,
        wait_for: Any = None,
        return_state: bool = False,
        priority: float | None = None,
        key: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Call it in the background; its future is given at once.

        Args:
            wait_for: futures to wait for, besides those among the arguments.
            return_state: give an awaitable of the `State` instead of a future.
            priority: the higher, the earlier it gets a slot.
            key: what identifies the call on resume, instead of its inputs.

        Raises:
            NoEngine: not called inside a flow.
            InvalidParameters: the arguments do not fit.
        """
        run = needs_run(f"{self.name}.submit()")
        spec = self.spec
        key = self._own("key", key, kwargs)
        priority = self._own("priority", priority, kwargs)
        spec.check(args, kwargs)
        future = run.engine.call(
            run.engine.submit_call,
            run,
            spec,
            args,
            kwargs,
            current_call(),
            key,
            wait_for,
            priority,
        )
        return StateOf(future) if return_state else future

    @overload
    def map(
        self,
        *iterables: Any,
        return_state: Literal[True],
        wait_for: Any = None,
        priority: float | None = None,
        **kwargs: Any,
    ) -> StateList[R]: ...
    @overload
    def map(
        self,
        *iterables: Any,
        wait_for: Any = None,
        priority: float | None = None,
        return_state: Literal[False] = False,
        **kwargs: Any,
    ) -> TaskFutureList[R]: ...
    def map(
        self,
        *iterables: Any,
        wait_for: Any = None,
        return_state: bool = False,
        priority: float | None = None,
        **kwargs: Any,
    ) -> Any:
        """Call it once for each item of the iterables, in the background.

        Positional and keyword arguments that are iterable are mapped over, all of the same
        length; strings, bytes, mappings and what is wrapped in `unmapped` are passed whole to
        each call. A future that holds a list is waited for, in sync code.

        Raises:
            MappingLengthMismatch: the lengths differ.
            ValueError: there is nothing to iterate over.
        """
        run = needs_run(f"{self.name}.map()")
        priority = self._own("priority", priority, kwargs)
        mapped = _Mapped(self.name, iterables, kwargs)
        listed: TaskFutureList[R]
        if mapped.late:
            listed = self._map_later(run, mapped, wait_for, priority)
        else:
            listed = self._map(run, mapped, wait_for, priority, [])
        return StateList(listed) if return_state else listed

    def _map(
        self,
        run: Run,
        mapped: _Mapped,
        wait_for: Any,
        priority: float | None,
        sources: list[Call],
    ) -> TaskFutureList[R]:
        """Make the calls; *sources* gave what is mapped over."""
        spec, engine, parent = self.spec, run.engine, current_call()
        if mapped.size:
            spec.check(*mapped.item(0))
        each = spec.caching is not None or (spec.steps and TRANSACTION.get() is not None)
        each = each or spec.options.teardown
        if mapped.depends or wait_for is not None or each:
            futures = engine.call(
                engine.submit_calls,
                run,
                spec,
                [mapped.item(i) for i in range(mapped.size)],
                parent,
                [wait_for, *map(Allowed, sources)],
                priority,
            )
            return TaskFutureList(futures)
        upstream = tuple([s.seq for s in sources if s.run is run and not s.unrecorded])
        batch = engine.call(engine.submit_batch, run, spec, mapped, parent, priority, upstream)
        return TaskFutureList(batch=batch)

    def _map_later(
        self, run: Run, mapped: _Mapped, wait_for: Any, priority: float | None
    ) -> TaskFutureList[R]:
        """A map over lists that futures will give: its calls are made when those are there."""
        engine, machine, context = run.engine, run.engine.machine, copy_context()
        found: list[tuple[Call, bool]] = []
        given = (*mapped.args, *mapped.kwargs.values())
        find([v for v in given if isinstance(v, Call | Allowed | TaskFutureList)], found)
        parent = current_call()
        seq, now = -next(_PROMISES), engine.clock.time()
        promised = Promised(
            run, self._promise, (), tuple(mapped.args), mapped.kwargs, seq, parent, now, context
        )
        promised.label = f"{self.name}.map()"
        listed: TaskFutureList[R] = TaskFutureList(promised=promised)

        def make() -> None:
            now = engine.clock.time()
            must = [c for c, may in found if not may]
            blocked = [c for c in must if c.phase is not StateType.COMPLETED]
            if blocked:
                machine.upstream_failed(promised, blocked[0], now)
                return
            skipped = [c for c in must if c.phase_name == SKIPPED]
            if skipped:
                text = f"{promised.display} did not run: {skipped[0].display} was skipped"
                machine.skip(promised, now, text)
                return
            try:
                args = [_there(a) for a in mapped.args]
                kwargs = {k: _there(v) for k, v in mapped.kwargs.items()}
                again = _Mapped(self.name, args, kwargs)
                made = self._map(run, again, wait_for, priority, [call for call, _ in found])
            except TaskCancelled as error:
                machine.stopped(promised, error, now, str(error))
            except Exception as error:
                machine.fail(promised, error, now, None, told(error))
            else:
                listed.become(made)
                machine.keep(promised, list(made.members()) if promised.dependants else [], now)

        engine.call(
            engine.promise, promised, [call for call, _ in found], parent, lambda: context.run(make)
        )
        return listed

    @functools.cached_property
    def _promise(self) -> Spec:
        """What stands for calls of it that cannot be made yet."""
        name = f"{self.name}.map()"
        return Spec(
            name,
            f"map:{self.spec.key}",
            self.fn,
            Options(),
            is_async=True,
            task=self,
            call_class=Promised,
            view=TaskRun.of_call,
            bound_to=self.spec.bound_to,
        )

    def stream(
        self,
        source: Any,
        *,
        max_in_flight: int | None = None,
        ordered: bool = False,
        on_error: OnError = "raise",
        **kwargs: Any,
    ) -> AsyncIterator[R]:
        """Call it for each item of an iterator of any length, in bounded memory.

        Args:
            source: a sync or async iterable; items are pulled as there is room.
            max_in_flight: how many items may be pulled and not yet given out; by default the
                concurrency of the flow, at most 100.
            ordered: give results in the order of the source instead of that of completion.
            on_error: "raise" stops at the first failure; "collect" gives exceptions as results.
            kwargs: passed to each call.
        """
        run = needs_run(f"{self.name}.stream()")
        self.spec.check((None,), kwargs)
        return cast(
            "AsyncIterator[R]",
            stream(run, self.spec, source, kwargs, max_in_flight, ordered, on_error),
        )

    def with_options(self, **options: Any) -> Any:
        """A copy with other options; the name may change too (``name=``).

        The task's concurrency limit is shared with the original unless it is set anew.
        """
        unknown = set(options) - TASK_OPTIONS
        if unknown:
            raise InvalidOption(
                f"task {self.name!r} has no option {sorted(unknown)[0]!r}: its options are"
                f" {', '.join(sorted(TASK_OPTIONS))}"
            )
        name = options.pop("name", None) or self._explicit_name
        if "task_run_name" in options:
            options["run_name"] = options.pop("task_run_name")
        given = {**self.given, **options}
        for one, other in (("cache_policy", "cache_key_fn"), ("cache_key_fn", "cache_policy")):
            if one in options and other not in options:
                given.pop(other, None)
        limit = None if "max_concurrency" in options else self.limit
        copy = type(self)(self.fn, name=name, given=given, limit=limit)
        if name is None:
            copy.name = self.name
        return copy

    # --- hooks as decorators --------------------------------------------------------------------

    def on_running(self, fn: Callable[..., T]) -> Callable[..., T]:
        return self._add_hook("on_running", fn)

    def on_completion(self, fn: Callable[..., T]) -> Callable[..., T]:
        return self._add_hook("on_completion", fn)

    def on_failure(self, fn: Callable[..., T]) -> Callable[..., T]:
        return self._add_hook("on_failure", fn)

    def on_cancellation(self, fn: Callable[..., T]) -> Callable[..., T]:
        return self._add_hook("on_cancellation", fn)

    def on_crashed(self, fn: Callable[..., T]) -> Callable[..., T]:
        return self._add_hook("on_crashed", fn)

    def on_commit(self, fn: H) -> H:
        """Have ``fn(txn)`` called when a transaction around a call of this task succeeds."""
        return self._add_step("on_commit", fn)

    def on_rollback(self, fn: H) -> H:
        """Have ``fn(txn)`` called to undo a completed call when its transaction fails."""
        return self._add_step("on_rollback", fn)

    def _add_step(self, name: str, fn: H) -> H:
        hooks = check_steps(f"task {self.name!r}", name, fn)
        more = (*getattr(self.options, name), *hooks)
        changes: dict[str, Any] = {name: more}
        self.options = replace(self.options, **changes)
        self.given[name] = more
        self._spec = None
        return fn

    def _add_hook(self, name: str, fn: Callable[..., T]) -> Callable[..., T]:
        if not callable(fn):
            raise InvalidOption(f"task {self.name!r}: {name} takes a function, not {fn!r}")
        hooks = self.options.hooks
        more = (*getattr(hooks, name), fn)
        self.options = replace(self.options, hooks=replace(hooks, **{name: more}))
        self.given[name] = more
        self._spec = None
        return fn

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"


class AsyncTask(Task[P, R]):
    """A task made of an ``async def`` function."""

    @overload
    def __get__(self, instance: None, owner: type) -> AsyncTask[P, R]: ...
    @overload
    def __get__(
        self: AsyncTask[Concatenate[Any, Q], R], instance: object, owner: type
    ) -> AsyncTask[Q, R]: ...
    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self._bound(instance, owner)

    @overload
    def __call__(
        self, *args: Any, return_state: Literal[True], **kwargs: Any
    ) -> Coroutine[Any, Any, State[R]]: ...
    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]: ...
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run it here and give its value; its own exception is raised."""
        return_state = kwargs.pop("return_state", False)
        run = current_run()
        if run is None:
            coro = self.fn(*args, **kwargs)
            return _plain_state(coro) if return_state else coro
        engine = run.engine
        if not engine.on_loop():
            raise BlockingCall(
                f"{self.name!r} is async and cannot be called plainly from sync code: use"
                f" {self.name}.submit(...).result()"
            )
        self.spec.check(args, kwargs)
        call, upstream = engine.calls.make(run, self.spec, args, kwargs, current_call())
        return engine.direct(call, upstream, return_state)


class SyncTask(Task[P, R]):
    """A task made of a plain ``def`` function, which runs in a worker thread."""

    @overload
    def __get__(self, instance: None, owner: type) -> SyncTask[P, R]: ...
    @overload
    def __get__(
        self: SyncTask[Concatenate[Any, Q], R], instance: object, owner: type
    ) -> SyncTask[Q, R]: ...
    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self._bound(instance, owner)

    @overload
    def __call__(self, *args: Any, return_state: Literal[True], **kwargs: Any) -> State[R]: ...
    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R: ...
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run it here, in the thread of the flow or task that calls it."""
        return_state = kwargs.pop("return_state", False)
        run = current_run()
        if run is None:
            return _state_of(self.fn, args, kwargs) if return_state else self.fn(*args, **kwargs)
        engine = run.engine
        if engine.on_loop():
            raise BlockingCall(
                f"calling the plain function {self.name!r} here would block the event loop: use"
                f" await {self.name}.submit(...) instead, which runs it in a thread"
            )
        self.spec.check(args, kwargs)
        return engine.direct_in_thread(run, self.spec, args, kwargs, current_call(), return_state)


class StateOf(Generic[R]):
    """A future whose awaited value is the `State` of the run, never an exception."""

    __slots__ = ("future",)

    def __init__(self, future: TaskFuture[R]) -> None:
        self.future = future

    def __await__(self) -> Any:
        return self._state().__await__()

    async def _state(self) -> State[R]:
        await wait([self.future])
        return self.future.state

    def result(self, timeout: float | None = None) -> State[R]:
        self.future.wait(timeout)
        return self.future.state


class StateList(Sequence[StateOf[R]], Generic[R]):
    """What a map with ``return_state=True`` gives. Await it for the list of states."""

    __slots__ = ("futures",)

    def __init__(self, futures: TaskFutureList[R]) -> None:
        self.futures = futures

    def __len__(self) -> int:
        return len(self.futures)

    @overload
    def __getitem__(self, index: int) -> StateOf[R]: ...
    @overload
    def __getitem__(self, index: slice) -> StateList[R]: ...
    def __getitem__(self, index: int | slice) -> StateOf[R] | StateList[R]:
        if isinstance(index, slice):
            return StateList(self.futures[index])
        return StateOf(self.futures[index])

    def __await__(self) -> Generator[Any, Any, list[State[R]]]:
        return self._states().__await__()

    async def _states(self) -> list[State[R]]:
        await wait(self.futures)
        return [future.state for future in self.futures]

    def result(self, timeout: float | None = None) -> list[State[R]]:
        """The states, waited for at most *timeout* seconds: for sync code."""
        self.futures.wait(timeout)
        return [future.state for future in self.futures]


async def _plain_state(coro: Coroutine[Any, Any, R]) -> State[Any]:
    from asyncflow.states import Completed, Failed

    try:
        return Completed(await coro)
    except Exception as error:
        return Failed(told(error), error)


def _state_of(fn: Callable[..., R], args: Any, kwargs: Any) -> State[Any]:
    from asyncflow.states import Completed, Failed

    try:
        return Completed(fn(*args, **kwargs))
    except Exception as error:
        return Failed(told(error), error)


# --- mapping --------------------------------------------------------------------------------------


class _Mapped:
    """The arguments of a `map`, told apart into those that vary and those that do not.

    Attributes:
        size: how many items there are.
        depends: whether futures are among the items or constants.
        args, kwargs: what was given, iterators made lists.
        late: whether futures hold lists that are to be mapped over.
        column: the items, where each is the only argument of its call; else None.
    """

    def __init__(self, name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        self.late = False
        self.args = [self._listed(a) for a in args]
        self.kwargs = {k: self._listed(v) for k, v in kwargs.items()}
        columns = [*enumerate(self.args), *self.kwargs.items()]
        self.depends = False
        self.size = 0
        self.column: list[Any] | tuple[Any, ...] | None = None
        if self.late:
            return
        sizes = {k: len(v) for k, v in columns if isinstance(v, list | tuple)}
        if not sizes:
            raise ValueError(
                f"{name}.map() was given nothing to iterate over: pass a list, or use"
                f" {name}.submit()"
            )
        if len(set(sizes.values())) > 1:
            told = ", ".join(
                f"{f'argument {k + 1}' if isinstance(k, int) else k} has {n}"
                for k, n in sizes.items()
            )
            raise MappingLengthMismatch(
                f"the iterables given to {name}.map() differ in length: {told}; wrap what is the"
                " same for all in unmapped(...)"
            )
        self.size = next(iter(sizes.values()))
        self.depends = any(self._has_futures(v) for _, v in columns)
        if not self.kwargs and len(self.args) == 1:
            self.column = self.args[0]

    def _listed(self, value: Any) -> Any:
        """A list or tuple of items, or the constant in an `Unmapped`."""
        if isinstance(value, Unmapped):
            return value
        if isinstance(value, list | tuple):
            return value
        if isinstance(value, TaskFutureList) and value.promised is None:
            return list(value)
        if isinstance(value, Call | Allowed | TaskFutureList):
            self.late = True
            return value
        if isinstance(value, str | bytes | bytearray | Mapping) or not isinstance(value, Iterable):
            return Unmapped(value)
        return list(value)

    @staticmethod
    def _has_futures(column: Any) -> bool:
        values = (column.value,) if isinstance(column, Unmapped) else column
        if PLAIN.issuperset(map(type, values)):
            return False
        return find(values, [])

    def item(self, index: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of one item."""
        if self.column is not None:
            return (self.column[index],), {}
        args = tuple(a.value if isinstance(a, Unmapped) else a[index] for a in self.args)
        kwargs = {
            k: v.value if isinstance(v, Unmapped) else v[index] for k, v in self.kwargs.items()
        }
        return args, kwargs


def _there(value: Any) -> Any:
    """What a future gave that is to be mapped over; anything else as it is."""
    if isinstance(value, TaskFuture):
        return value._get()
    return replace_futures(value, value_for) if isinstance(value, Allowed) else value


# --- the decorator --------------------------------------------------------------------------------


def _with_runner(what: str, options: Options, is_async: bool) -> Options:
    """Choose the runner by the function's colour, and refuse what cannot be kept."""
    if options.transactional:
        return _on_writer(what, options, is_async)
    runner = options.runner or ("async" if is_async else "thread")
    if runner == "async" and not is_async:
        raise InvalidDefinition(
            f"{what} is a plain function and cannot run on the event loop: leave runner= out to"
            " run it in a thread, or make it async def"
        )
    if runner == "thread" and is_async:
        raise InvalidDefinition(
            f"{what} is async and runs on the event loop: leave runner= out, or make it a plain def"
        )
    if isinstance(runner, str) and runner not in ("async", "thread", "process"):
        raise InvalidOption(f"{what}: runner={runner!r}: use 'async', 'thread' or 'process'")
    if options.timeout is not None and runner == "thread" and options.timeout_mode != "soft":
        raise InvalidDefinition(
            f"{what} runs in a thread, which cannot be stopped, so timeout_seconds cannot be"
            " kept: use runner='process', make it async def, or say timeout_mode='soft' to have"
            " a late return reported"
        )
    return replace(options, runner=runner)


def _check_connection(what: str, fn: Callable[..., Any]) -> None:
    """Refuse a transactional function that takes no connection."""
    parameters = list(inspect.signature(fn).parameters.values())
    first = parameters[0] if parameters else None
    if first is None or first.kind not in (
        first.POSITIONAL_ONLY,
        first.POSITIONAL_OR_KEYWORD,
        first.VAR_POSITIONAL,
    ):
        raise InvalidDefinition(
            f"{what} is transactional and takes no connection: make that its first parameter, as"
            " in def save(db: sqlite3.Connection, row: dict)"
        )


def _on_writer(what: str, options: Options, is_async: bool) -> Options:
    """A transactional task runs on the writer's thread; refuse what cannot be kept."""
    if is_async:
        raise InvalidDefinition(
            f"{what} is transactional and async: nobody else could write while it awaits; make it"
            " a plain def"
        )
    if options.runner not in (None, "writer"):
        raise InvalidOption(f"{what} is transactional and runs on the writer: leave runner= out")
    if options.timeout is not None:
        raise InvalidDefinition(
            f"{what} is transactional and cannot be stopped halfway, so timeout_seconds cannot be"
            " kept: use total_timeout_seconds, which counts until it begins"
        )
    if not options.persist:
        raise InvalidOption(
            f"{what} is transactional, which is about its record: leave persist_result=False out"
        )
    return replace(options, runner="writer")


_NOT_OPTIONS = {"validate", "retry", "timeout", "run_name", "persist", "grace", "hooks"}
TASK_OPTIONS = frozenset(
    {
        "name", "retries", "retry_delay_seconds", "retry_jitter_factor", "retry_on",
        "retry_condition_fn", "timeout_seconds", "timeout_mode", "total_timeout_seconds",
        "queue_timeout_seconds", "tags", "limits", "max_concurrency", "priority", "runner",
        "serializer", "persist_result", "log_prints", "task_run_name", "cancel_grace_seconds",
        "key", "description", "version", "cache_policy", "cache_key_fn", "cache_expiration",
        "refresh_cache", "transactional", "on_commit", "on_rollback", "failure_policy", "teardown",
        *HOOKS,
    }
)  # fmt: skip


@overload
def task(  # type: ignore[overload-overlap] # a coroutine function is a function: the first fits
    fn: Callable[P, Coroutine[Any, Any, R]], /
) -> AsyncTask[P, R]: ...
@overload
def task(fn: Callable[P, R], /) -> SyncTask[P, R]: ...
@overload
def task(  # pyright: ignore[reportOverlappingOverload] # the narrower one comes first
    *, transactional: Literal[True], **options: Any
) -> _TransactionalDecorator: ...
@overload
def task(**options: Any) -> _Decorator: ...
def task(fn: Any = None, /, **options: Any) -> Any:
    """Make a task of a function.

    Args:
        name: what people call it; by default the function's name.
        retries: how many failed attempts are followed by another (0).
        retry_delay_seconds: seconds before each, a list of them, or `exponential_backoff`.
        retry_jitter_factor: how much of a delay is left to chance: 1 (default) all, 0 nothing.
        retry_on: exception types that are tried again (any `Exception`).
        retry_condition_fn: ``fn(task, task_run, state) -> bool``, asked after each failure.
        timeout_seconds: for one attempt; queueing does not count.
        timeout_mode: "cancel", or "soft" to only report a plain function that returns late.
        total_timeout_seconds: over all attempts and waits, resumes included.
        queue_timeout_seconds: how long an attempt may wait for slots.
        tags: names, each also a limit ``tag:NAME``.
        limits: named limits and the units that an attempt holds, such as ``{"db": 1}``.
        max_concurrency: how many of its calls run at once, over all runs of an engine.
        priority: the higher, the earlier a call gets its slot (0).
        runner: "async" (async def), "thread" (def) or "process".
        serializer: "json", or "pickle" for results that JSON cannot hold.
        persist_result: False keeps results out of the store; a resume runs such calls again.
        log_prints: store what it prints as log lines.
        task_run_name: a template of parameters such as ``"fetch {url}"``, or a function.
        cancel_grace_seconds: how long its code may take to stop (30).
        key: a template or function of parameters that identifies a call, instead of its inputs.
        cache_policy: what counts for a result to be used by other runs: `INPUTS`, `TASK_SOURCE`,
            `RUN_ID`, `FLOW_PARAMETERS`, put together with ``+``; by default nothing is cached.
        cache_key_fn: ``fn(context, parameters) -> str | None``, instead of a policy.
        cache_expiration: for how long a result is used, a timedelta or seconds.
        refresh_cache: never use a stored result, but store the new one.
        transactional: the function, a plain def, gets a `sqlite3.Connection` to the engine's own
            database before its arguments, and its record is written in the same transaction.
        on_commit, on_rollback: functions or tasks ``fn(txn)``, or lists of them, that are called
            when a transaction around a call succeeds, or fails after the call completed.
        on_running, on_completion, on_failure, on_cancellation, on_crashed: functions
            ``fn(task, task_run, state)``, or lists of them.

    Raises:
        InvalidDefinition: it cannot be a task, or an option cannot be kept.
        InvalidOption: an option has an impossible value.
    """
    if fn is None:
        return _Decorator(options)
    return _make(fn, options)


def _make(fn: Any, options: dict[str, Any]) -> Task[..., Any]:
    if isinstance(fn, staticmethod | classmethod):
        raise InvalidDefinition(
            f"put @{type(fn).__name__} above @task, so that @task gets the function itself"
        )
    check_function("task", fn)
    unknown = set(options) - TASK_OPTIONS
    if unknown:
        raise InvalidOption(
            f"@task has no option {sorted(unknown)[0]!r}: its options are"
            f" {', '.join(sorted(TASK_OPTIONS))}"
        )
    given = dict(options)
    name = given.pop("name", None)
    if "task_run_name" in given:
        given["run_name"] = given.pop("task_run_name")
    cls = AsyncTask if inspect.iscoroutinefunction(fn) else SyncTask
    made: Task[..., Any] = cls(fn, name=name, given=given)
    return made


class _Decorator:
    """``@task(...)`` with options."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._options = options

    @overload
    def __call__(  # type: ignore[overload-overlap] # as of `task`
        self, fn: Callable[P, Coroutine[Any, Any, R]]
    ) -> AsyncTask[P, R]: ...
    @overload
    def __call__(self, fn: Callable[P, R]) -> SyncTask[P, R]: ...
    def __call__(self, fn: Any) -> Any:
        return _make(fn, self._options)


class _TransactionalDecorator(Protocol):
    """``@task(transactional=True)``, for type checkers: callers do not pass the connection."""

    def __call__(
        self, fn: Callable[Concatenate[sqlite3.Connection, P], R], /
    ) -> SyncTask[P, R]: ...
