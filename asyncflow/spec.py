"""What is called: a task, or a flow inside a flow, as calls and the executor see it."""

from __future__ import annotations

import functools
import inspect
import re
import sys
from collections.abc import Callable, Collection, Mapping
from hashlib import blake2b
from string import Formatter
from typing import Any

from asyncflow import nested
from asyncflow.canonical import fingerprint
from asyncflow.errors import InvalidParameters, NotSerializable
from asyncflow.limits import Slots
from asyncflow.naming import module_name
from asyncflow.run import MISSING, Call, Options
from asyncflow.states import StateType

_EMPTY = inspect.Parameter.empty


class Spec:
    """One task with one set of options.

    Attributes:
        key: what identifies it across processes: module and qualified name.
        caching: how its results are cached, or None.
        slow: its attempts need more than awaiting a coroutine, and perhaps a timeout.
        light: not even hooks or a cache: an item of a map may run without a `Call`.
        steps: whether it has hooks for transactions; `made_steps`: those as specs.
        transactional: its function gets a connection before its arguments.
        shielded: its calls go on while their run is being cancelled.
        limit: its own `max_concurrency`, shared by all copies that set none of their own.
        resources: parameters that are filled in, by name.
        task: the public object, handed to hooks and conditions.
        bound_to: the object whose method it is, or MISSING; it counts as an input.
    """

    __slots__ = (
        "_arity",
        "_signature",
        "bound_to",
        "caching",
        "call_class",
        "fn",
        "has_hooks",
        "in_thread",
        "is_async",
        "is_flow",
        "key",
        "light",
        "limit",
        "made_steps",
        "name",
        "options",
        "resolve_result",
        "resources",
        "shielded",
        "slow",
        "steps",
        "task",
        "transactional",
        "view",
    )

    def __init__(
        self,
        name: str,
        key: str,
        fn: Callable[..., Any],
        options: Options,
        *,
        is_async: bool,
        task: Any,
        call_class: type[Call],
        resources: dict[str, Any] | None = None,
        is_flow: bool = False,
        limit: Slots | None = None,
        resolve_result: Callable[[Any], Any] | None = None,
        view: Callable[[Call], Any] = lambda call: call,
        bound_to: Any = MISSING,
    ) -> None:
        self.name = name
        self.key = key
        self.fn = fn
        self.options = options
        self.is_async = is_async
        self.task = task
        self.call_class = call_class
        self.resources = resources or {}
        self.is_flow = is_flow
        self.limit = limit
        self.resolve_result = resolve_result
        self.view = view
        self.bound_to = bound_to
        self.has_hooks = bool(options.hooks)
        self.in_thread = options.runner == "thread" and not is_flow
        self.slow = (
            is_flow
            or options.runner != "async"
            or bool(self.resources)
            or options.log_prints
            or options.run_name is not None
            or options.total_timeout is not None
            or bool(options.hooks.on_running)
        )
        self.caching = options.caching
        self.steps = bool(options.on_commit or options.on_rollback)
        self.made_steps: dict[tuple[str, int], Spec] = {}
        self.shielded = options.teardown
        self.transactional = options.transactional
        self.light = not self.slow and not self.has_hooks and self.caching is None
        self._signature: inspect.Signature | None = None
        self._arity: tuple[int, int] | None = None

    # --- arguments ----------------------------------------------------------------------------

    @property
    def signature(self) -> inspect.Signature:
        if self._signature is None:
            self._signature = inspect.signature(self.fn)
            if self.transactional:
                # The connection is none of its arguments.
                _, *others = self._signature.parameters.values()
                self._signature = self._signature.replace(parameters=others)
        return self._signature

    def check(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Raise InvalidParameters if the arguments do not fit the signature."""
        if not kwargs:
            least, most = self._arity or self._find_arity()
            if least <= len(args) <= most:
                return
        self.bind(args, kwargs)

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> inspect.BoundArguments:
        """The arguments by name; parameters that are filled in may be missing."""
        kind = "flow" if self.is_flow else "task"
        return bind(kind, self.name, self.signature, self.resources, args, kwargs)

    def _find_arity(self) -> tuple[int, int]:
        """How many positional arguments are enough, and too many, when there are no others."""
        least = most = 0
        for parameter in self.signature.parameters.values():
            match parameter.kind:
                case parameter.VAR_POSITIONAL:
                    most = sys.maxsize
                case parameter.KEYWORD_ONLY:
                    if parameter.default is _EMPTY and parameter.name not in self.resources:
                        least = sys.maxsize
                case parameter.VAR_KEYWORD:
                    pass
                case _:
                    most = min(sys.maxsize, most + 1)
                    if parameter.default is _EMPTY and parameter.name not in self.resources:
                        least += 1
        self._arity = (least, most)
        return self._arity

    def key_of(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The explicit key of a call, from ``key=``; None: its inputs are its key."""
        key = self.options.key
        if key is None:
            return None
        if callable(key):
            return key(*args, **kwargs)
        return format_name(key, self._named(args, kwargs))

    def label(self, call: Call) -> str | None:
        """What this call is to be called, from ``task_run_name=``."""
        template = self.options.run_name
        if template is None:
            return None
        return make_name(template, self._named(call.args, call.kwargs))

    def _named(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments by name, defaults and those of ``**kwargs`` included."""
        bound = self.bind(args, kwargs)
        bound.apply_defaults()
        return flat(self.signature, bound.arguments)

    def resolve(self, call: Call) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of a call with values in the place of futures."""
        return self.resolved(call.args, call.kwargs)

    @staticmethod
    def resolved(
        args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments with values in the place of futures."""
        found = tuple(nested.replace(a, value_for) for a in args)
        return found, {k: nested.replace(v, value_for) for k, v in kwargs.items()}

    def named(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The inputs of a call by name, defaults included.

        What is filled in is none of them; the object of a method is.
        """
        bound = self.bind(args, kwargs)
        bound.apply_defaults()
        found: dict[str, Any] = {}
        if self.bound_to is not MISSING:
            function = getattr(self.fn, "__func__", self.fn)
            found[next(iter(inspect.signature(function).parameters), "self")] = self.bound_to
        named = flat(self.signature, bound.arguments)
        return found | {k: v for k, v in named.items() if k not in self.resources}

    @staticmethod
    def returns_futures(value: Any) -> bool:
        """Whether a returned value is, or holds, a future."""
        if isinstance(value, Call | nested.FutureGroup):
            return True
        if isinstance(value, list | tuple):
            return any(isinstance(v, Call | nested.FutureGroup) for v in value)
        return False


def is_shielded(call: Call | None) -> bool:
    """Whether a call, or one that it is made by, goes on while its run is being cancelled."""
    while call is not None:
        if call.spec.shielded:
            return True
        call = call.parent if call.parent is not None else call.run.call
    return False


def value_for(call: Call, allowed: bool) -> Any:
    """What a task gets in the place of a settled future: its value, or, allowed, its error."""
    if call.phase is not StateType.COMPLETED:
        if allowed:
            return call.error
        assert call.error is not None
        raise call.error
    return call.value


def bind(
    kind: str,
    name: str,
    signature: inspect.Signature,
    resources: Collection[str],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> inspect.BoundArguments:
    """Arguments by name; of the parameters only those in *resources* may be missing.

    Raises:
        InvalidParameters: they do not fit the signature.
    """
    try:
        if not resources:
            return signature.bind(*args, **kwargs)
        bound = signature.bind_partial(*args, **kwargs)
        for parameter in signature.parameters.values():
            missing = parameter.name not in bound.arguments and parameter.default is _EMPTY
            optional = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
            if missing and not optional and parameter.name not in resources:
                raise TypeError(f"missing a required argument: {parameter.name!r}")
    except TypeError as error:
        raise InvalidParameters(
            f"{kind} {name!r} cannot be called so: {error}; its signature is {name}{signature}"
        ) from None
    return bound


def flat(signature: inspect.Signature, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments by name, those of ``**kwargs`` among them."""
    named: dict[str, Any] = {}
    for name, value in arguments.items():
        if signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
            named.update(value)
        else:
            named[name] = value
    return named


def make_name(template: str | Callable[..., Any], arguments: dict[str, Any]) -> str:
    """The name of a run: from a template, or from a function.

    The function gets those of the parameters that it has parameters for, or all of them where
    it has one called ``parameters``.
    """
    if not callable(template):
        return format_name(template, arguments)
    try:
        wanted = inspect.signature(template).parameters
    except (TypeError, ValueError):
        return str(template())
    given = {"parameters": arguments, **arguments}
    return str(template(**{name: given[name] for name in wanted if name in given}))


def unknown_names(template: Any, signature: inspect.Signature) -> list[str]:
    """What a template of parameters asks for that is no parameter."""
    kinds = {parameter.kind for parameter in signature.parameters.values()}
    if not isinstance(template, str) or inspect.Parameter.VAR_KEYWORD in kinds:
        return []
    asked = [re.split(r"[.\[]", name)[0] for _, name, _, _ in Formatter().parse(template) if name]
    return [name for name in asked if name not in signature.parameters]


def format_name(template: str, arguments: dict[str, Any]) -> str:
    """A name from a template such as ``"fetch {url}"``; InvalidParameters says what is missing."""
    try:
        return template.format(**arguments)
    except (KeyError, IndexError, AttributeError, ValueError, TypeError) as error:
        known = ", ".join(arguments) or "none"
        raise InvalidParameters(
            f"the name template {template!r} cannot be filled in ({error!r}): the parameters are"
            f" {known}"
        ) from None


def task_key(fn: Callable[..., Any], name: str | None) -> str:
    """What identifies a task or flow across processes."""
    module = module_name(getattr(fn, "__module__", None) or "?")
    return f"{module}:{name or getattr(fn, '__qualname__', None) or _made_of(fn)}"


def _made_of(fn: Any) -> str:
    """What tells a partial, or an object that can be called, from others of its kind."""
    parts: Any = fn
    if isinstance(fn, functools.partial):
        parts = (task_key(fn.func, None), fn.args, fn.keywords)
    try:
        return f"{type(fn).__qualname__} {blake2b(fingerprint(parts), digest_size=8).hexdigest()}"
    except NotSerializable:
        return type(fn).__qualname__  # as among inputs, it counts by its type
