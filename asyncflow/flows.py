"""`@flow`: what users declare and run."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Generic, Literal, ParamSpec, TypeVar, cast, overload

from asyncflow.context import ENGINE, current_call, current_run
from asyncflow.errors import BlockingCall, InvalidDefinition, InvalidOption
from asyncflow.future import TaskFuture, needs_run, resolve
from asyncflow.options import (
    HOOKS,
    check_function,
    check_name,
    check_templates,
    make_options,
    settle_annotations,
)
from asyncflow.parameters import Parameters
from asyncflow.registry import register
from asyncflow.run import MISSING, Options
from asyncflow.spec import Spec, task_key
from asyncflow.states import State
from asyncflow.tasks import StateOf
from asyncflow.views import TaskRun

if TYPE_CHECKING:
    from asyncflow.deployments import Deployment

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

FLOW_OPTIONS = frozenset(
    {
        "name", "retries", "retry_delay_seconds", "retry_jitter_factor", "retry_on",
        "retry_condition_fn", "retry_budget", "timeout_seconds", "total_timeout_seconds", "tags",
        "max_concurrency", "serializer", "persist_result", "log_prints", "flow_run_name",
        "cancel_grace_seconds", "description", "version", "max_recoveries", "keep_last",
        "validate_parameters", *HOOKS,
    }
)  # fmt: skip


class Flow(Generic[P, R]):
    """A function whose run is recorded, and can be resumed, with all tasks that it calls.

    Attributes:
        fn: the function itself.
        name: what people call it.
        options: how its runs are carried out.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        *,
        name: str | None = None,
        given: Mapping[str, Any] | None = None,
        declared: bool = True,
    ) -> None:
        check_function("flow", fn)
        check_name("flow", name)
        settle_annotations(fn)
        functools.update_wrapper(cast("Any", self), fn)
        self.fn = fn
        self.given = dict(given or {})
        self._explicit_name = name
        self.name = name or fn.__name__
        self.options: Options = make_options(f"flow {self.name!r}", True, **self.given)
        check_templates(f"flow {self.name!r}", self.options, fn, "flow_run_name")
        if self.options.total_timeout is not None and self.options.timeout is None:
            self.options = replace(self.options, timeout=self.options.total_timeout)
        self.is_async = inspect.iscoroutinefunction(fn)
        self.key = task_key(fn, name)
        self.parameters = Parameters(self.name, fn, self.options.validate)
        self._call_spec: Spec | None = None
        register(self, replace=declared)

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        """The flow of a method, bound to its object."""
        if instance is None:
            return self
        fn = self.fn.__get__(instance, owner)
        copy = type(self)(fn, name=self.name, given=self.given, declared=False)
        copy.is_async = self.is_async
        return copy

    def to_deployment(self, name: str | None = None, **options: Any) -> Deployment:
        """A deployment of this flow, for `serve` or `engine.deploy`.

        Args:
            name: unique in a store; by default the flow's.
            options: ``cron=``, ``interval=``, ``rrule=``, ``timezone=``, ``schedules=``, and all of
                `Deployment`.
        """
        from asyncflow.deployments import deployment

        return deployment(self, name or self.name, **options)

    def serve(self, name: str | None = None, *, store: Any = None, **options: Any) -> None:
        """Run this flow when it is due, until Ctrl-C or SIGTERM: `serve` with one deployment.

        Args:
            name: of the deployment; by default the flow's.
            store: path of the database, or a store; by default as of `Engine`.
            options: as of `to_deployment`.
        """
        from asyncflow.serving import serve

        serve(self.to_deployment(name, **options), store=store)

    @property
    def call_spec(self) -> Spec:
        """The flow as something that is called inside another flow."""
        if self._call_spec is None:
            self._call_spec = Spec(
                self.name,
                f"flow:{self.key}",
                self.fn,
                Options(grace=self.options.grace, persist=self.options.persist),
                is_async=True,
                task=self,
                call_class=TaskFuture,
                is_flow=True,
                resolve_result=resolve,
                view=TaskRun.of_call,
                bound_to=getattr(self.fn, "__self__", MISSING),
            )
        return self._call_spec

    @overload
    def submit(
        self,
        *args: Any,
        return_state: Literal[True],
        wait_for: Any = None,
        key: Any = None,
        **kwargs: Any,
    ) -> StateOf[R]: ...
    @overload
    def submit(
        self,
        *args: Any,
        wait_for: Any = None,
        key: Any = None,
        return_state: Literal[False] = False,
        **kwargs: Any,
    ) -> TaskFuture[R]: ...
    def submit(
        self,
        *args: Any,
        wait_for: Any = None,
        return_state: bool = False,
        key: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Start a child run in the background of the flow that calls it; gives its future.

        Raises:
            NoEngine: not called inside a flow: use `engine.submit`.
            InvalidParameters: the arguments do not fit.
        """
        run = needs_run(f"{self.name}.submit()")
        if key is not None and "key" in self.parameters.signature.parameters:
            kwargs["key"], key = key, None
        self.parameters.bind(args, kwargs)
        future = run.engine.call(
            run.engine.submit_call,
            run,
            self.call_spec,
            args,
            kwargs,
            current_call(),
            key,
            wait_for,
            None,
        )
        return StateOf(future) if return_state else future

    def with_options(self, **options: Any) -> Any:
        """A copy with other options; the name may change too (``name=``)."""
        unknown = set(options) - FLOW_OPTIONS
        if unknown:
            raise InvalidOption(
                f"flow {self.name!r} has no option {sorted(unknown)[0]!r}: its options are"
                f" {', '.join(sorted(FLOW_OPTIONS))}"
            )
        name = options.pop("name", None) or self._explicit_name
        if "flow_run_name" in options:
            options["run_name"] = options.pop("flow_run_name")
        return type(self)(self.fn, name=name, given={**self.given, **options}, declared=False)

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

    def _add_hook(self, name: str, fn: Callable[..., T]) -> Callable[..., T]:
        if not callable(fn):
            raise InvalidOption(f"flow {self.name!r}: {name} takes a function, not {fn!r}")
        hooks = self.options.hooks
        more = (*getattr(hooks, name), fn)
        self.options = replace(self.options, hooks=replace(hooks, **{name: more}))
        self.given[name] = more
        return fn

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"


class AsyncFlow(Flow[P, R]):
    """A flow made of an ``async def`` function."""

    @overload
    def __call__(
        self, *args: Any, return_state: Literal[True], **kwargs: Any
    ) -> Coroutine[Any, Any, State[R]]: ...
    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]: ...
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run it here: as a child run inside a flow, else on the ambient or default engine."""
        return_state = kwargs.pop("return_state", False)
        run = current_run()
        if run is None:
            return run_outermost(self, args, kwargs, return_state)
        if not run.engine.on_loop():
            raise BlockingCall(
                f"{self.name!r} is async and cannot be called plainly from sync code: use"
                f" {self.name}.submit(...).result()"
            )
        self.parameters.bind(args, kwargs)
        call, upstream = run.engine.calls.make(run, self.call_spec, args, kwargs, current_call())
        return run.engine.direct(call, upstream, return_state)


class SyncFlow(Flow[P, R]):
    """A flow made of a plain ``def`` function; its body runs in a worker thread."""

    @overload
    def __call__(self, *args: Any, return_state: Literal[True], **kwargs: Any) -> State[R]: ...
    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R: ...
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run it, and wait for it; from sync code only."""
        return_state = kwargs.pop("return_state", False)
        run = current_run()
        if run is not None and not run.engine.on_loop():
            future = self.submit(*args, **kwargs)
            if return_state:
                future.wait()
                return future.state
            return future.result()
        if run is not None or _loop_is_running():
            raise BlockingCall(
                f"calling the plain flow {self.name!r} here would block the event loop: use"
                f" await {self.name}.submit(...) inside a flow, or await engine.run({self.name},"
                " ...)"
            )
        import anyio

        return anyio.run(lambda: run_outermost(self, args, kwargs, return_state))


def _loop_is_running() -> bool:
    import asyncio

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


async def run_outermost(
    flow: Flow[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], return_state: bool
) -> Any:
    """Run a flow that no other flow calls."""
    from asyncflow.engine import Engine

    engine = ENGINE.get()
    if engine is not None and engine.usable():
        return await engine.run_flow(flow, args, kwargs, return_state)
    async with Engine() as engine:
        return await engine.run_flow(flow, args, kwargs, return_state)


# --- the decorator --------------------------------------------------------------------------------


@overload
def flow(  # type: ignore[overload-overlap] # a coroutine function is a function: the first fits
    fn: Callable[P, Coroutine[Any, Any, R]], /
) -> AsyncFlow[P, R]: ...
@overload
def flow(fn: Callable[P, R], /) -> SyncFlow[P, R]: ...
@overload
def flow(**options: Any) -> _Decorator: ...
def flow(fn: Any = None, /, **options: Any) -> Any:
    """Make a flow of a function.

    Args:
        name: what people call it; by default the function's name.
        max_concurrency: how many task calls of one run are under way at once.
        timeout_seconds: for the whole run, resumes included.
        retries, retry_delay_seconds, retry_jitter_factor, retry_on, retry_condition_fn: as of a
            task; what completed is kept between attempts.
        retry_budget: the share of a run's calls that may be retries, between 0 and 1.
        tags: names, given to each run and to its tasks.
        validate_parameters: check and convert arguments by their annotations (True).
        flow_run_name: a template of parameters such as ``"crawl {site}"``, or a function.
        log_prints: store what it and its tasks print as log lines.
        version: of the code; runs of another version are not resumed.
        max_recoveries: recoveries in a row without a newly completed task (3).
        keep_last: so many of its ended runs are kept in the store, older ones are removed;
            without, the engine's `retention_days` decides alone.
        cancel_grace_seconds: how long its code may take to stop (30).
        on_running, on_completion, on_failure, on_cancellation, on_crashed: functions
            ``fn(flow, flow_run, state)``, or lists of them.

    Raises:
        InvalidDefinition: it cannot be a flow.
        InvalidOption: an option has an impossible value.
    """
    if fn is None:
        return _Decorator(options)
    return _make(fn, options)


def _make(fn: Any, options: dict[str, Any]) -> Flow[..., Any]:
    if isinstance(fn, staticmethod | classmethod):
        raise InvalidDefinition(
            f"put @{type(fn).__name__} above @flow, so that @flow gets the function itself"
        )
    check_function("flow", fn)
    unknown = set(options) - FLOW_OPTIONS
    if unknown:
        raise InvalidOption(
            f"@flow has no option {sorted(unknown)[0]!r}: its options are"
            f" {', '.join(sorted(FLOW_OPTIONS))}"
        )
    given = dict(options)
    name = given.pop("name", None)
    if "flow_run_name" in given:
        given["run_name"] = given.pop("flow_run_name")
    cls = AsyncFlow if inspect.iscoroutinefunction(fn) else SyncFlow
    return cls(fn, name=name, given=given)


class _Decorator:
    """``@flow(...)`` with options."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._options = options

    @overload
    def __call__(  # type: ignore[overload-overlap] # as of `flow`
        self, fn: Callable[P, Coroutine[Any, Any, R]]
    ) -> AsyncFlow[P, R]: ...
    @overload
    def __call__(self, fn: Callable[P, R]) -> SyncFlow[P, R]: ...
    def __call__(self, fn: Any) -> Any:
        return _make(fn, self._options)
