"""`@resource`: things that are opened once and shared by tasks, such as an HTTP session."""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from contextvars import copy_context
from typing import Annotated, Any, Generic, ParamSpec, TypeVar, get_args, get_origin, overload

from asyncflow.context import CURRENT
from asyncflow.errors import InvalidDefinition, InvalidOption
from asyncflow.failures import told

T = TypeVar("T")
P = ParamSpec("P")


class Resource(Generic[T]):
    """An async context manager that is entered once per engine, or per flow run.

    A task takes it by annotation: ``session: Annotated[aiohttp.ClientSession, http]``. It is
    opened when a task first needs it, closed when the engine (or run) ends, also after a
    cancellation, and is never part of a call's identity or of what is stored.

    Attributes:
        scope: "engine" or "run".
    """

    def __init__(self, fn: Callable[[], Any], scope: str = "engine") -> None:
        if scope not in ("engine", "run"):
            raise InvalidOption(f"@resource: scope={scope!r}: use 'engine' or 'run'")
        if inspect.signature(fn).parameters:
            raise InvalidDefinition(
                f"the resource {fn.__qualname__!r} has parameters, but nobody could give them:"
                " take settings from the environment, or wrap it in a function without any"
            )
        self.name = fn.__name__
        self.scope = scope
        self.fn = fn
        self.__doc__ = fn.__doc__
        if inspect.isasyncgenfunction(fn):
            self.open: Callable[[], AbstractAsyncContextManager[T]] = asynccontextmanager(fn)
        elif inspect.isgeneratorfunction(fn) or inspect.iscoroutinefunction(fn):
            raise InvalidDefinition(
                f"the resource {fn.__qualname__!r} must be an async generator that yields once,"
                " or return an async context manager"
            )
        else:
            self.open = fn

    def __call__(self) -> AbstractAsyncContextManager[T]:
        """A fresh one, for use outside of flows: ``async with http() as session``."""
        return self.open()

    def __repr__(self) -> str:
        return f"<resource {self.name!r}>"


@overload
def resource(fn: Callable[[], AsyncGenerator[T, None]], /) -> Resource[T]: ...
@overload
def resource(fn: Callable[[], AbstractAsyncContextManager[T]], /) -> Resource[T]: ...
@overload
def resource(*, scope: str = "engine") -> Callable[[Callable[[], Any]], Resource[Any]]: ...
def resource(fn: Any = None, /, *, scope: str = "engine") -> Any:
    """Make a resource of an async generator function that yields once.

    Args:
        scope: "engine" opens it once per engine, "run" once per flow run.
    """
    if fn is None:
        return lambda function: Resource(function, scope)
    return Resource(fn, scope)


def resources_of(fn: Callable[..., Any]) -> dict[str, Resource[Any]]:
    """The parameters of a function that are annotated with a resource."""
    found: dict[str, Resource[Any]] = {}
    target = inspect.unwrap(getattr(fn, "func", fn))
    for name, annotation in getattr(target, "__annotations__", {}).items():
        if isinstance(annotation, str):
            if "Annotated" not in annotation:
                continue
            annotation = _evaluate(annotation, target)
        if get_origin(annotation) is Annotated:
            for extra in get_args(annotation)[1:]:
                if isinstance(extra, Resource):
                    found[name] = extra
    return found


def _evaluate(annotation: str, fn: Any) -> Any:
    """The value of an annotation that was written as text, as far as its names can be seen.

    The type itself need not be importable at run time (it may be imported for type checkers
    only); the resource must be.
    """
    names: dict[str, Any] = dict(vars(sys.modules.get(fn.__module__, object)))
    names.update(getattr(fn, "__globals__", {}))
    names.update(inspect.getclosurevars(fn).nonlocals)
    try:
        return eval(annotation, names, _Lenient(names))  # noqa: S307 - the user's own source text
    except Exception:
        return None


class _Lenient(dict[str, Any]):
    """Names for `eval`, where what is unknown stands for any type."""

    def __init__(self, known: dict[str, Any]) -> None:
        self._known = known

    def __missing__(self, name: str) -> Any:
        import builtins

        if name in self._known:
            return self._known[name]
        return getattr(builtins, name, _Anything)


class _Anything:
    """Stands for a type that exists for type checkers only."""

    def __class_getitem__(cls, item: object) -> type:
        return cls


class Opened:
    """The open resources of one engine or run.

    Each is opened and closed in a task of its own, because a context manager may have to be
    left in the task in which it was entered.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._open: dict[Resource[Any], tuple[asyncio.Future[Any], asyncio.Event]] = {}
        self._tasks: dict[asyncio.Task[None], tuple[str, asyncio.Event]] = {}

    async def get(self, wanted: Resource[T]) -> T:
        """The value of a resource, opened now if it is not open.

        Raises:
            Exception: what opening it raised; the next who asks tries again.
        """
        entry = self._open.get(wanted)
        if entry is None:
            ready: asyncio.Future[Any] = self._loop.create_future()
            entry = self._open[wanted] = (ready, asyncio.Event())
            context = copy_context()
            context.run(CURRENT.set, None)  # it outlives the call that needs it first
            task = self._loop.create_task(
                self._hold(wanted, *entry), name="asyncflow-resource", context=context
            )
            self._tasks[task] = wanted.name, entry[1]
        value: T = await asyncio.shield(entry[0])
        return value

    async def _hold(
        self, wanted: Resource[Any], ready: asyncio.Future[Any], closing: asyncio.Event
    ) -> None:
        try:
            async with wanted.open() as value:
                ready.set_result(value)
                await closing.wait()
        except BaseException as error:
            if ready.done():
                raise
            self._open.pop(wanted, None)
            ready.set_exception(error)
            ready.exception()

    async def aclose(self, report: Callable[[str], None], grace: float) -> None:
        """Close all, the youngest first; `report` is told what went wrong.

        Args:
            grace: seconds that each may take; then it is cancelled, and left.
        """
        self._open.clear()
        for task, (name, closing) in list(self._tasks.items())[::-1]:
            closing.set()
            await asyncio.wait([task], timeout=grace)
            if not task.done():
                report(f"the resource {name!r} was not closed within {grace:g} s, and is left")
                task.cancel()
                await asyncio.wait([task], timeout=1.0)
            elif not task.cancelled() and (error := task.exception()) is not None:
                report(f"the resource {name!r} could not be closed: {told(error)}")
        self._tasks.clear()
