"""What makes two calls of a task the same, so that one may have the result of the other.

A policy says what counts: `INPUTS`, `TASK_SOURCE`, `RUN_ID`, `FLOW_PARAMETERS`, put together with
``+``; ``INPUTS - "session"`` leaves a parameter out. The key that follows from it is the same in
every process, with every hash seed and on every supported Python. Nothing is pickled for it.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, cast

from asyncflow.canonical import fingerprint
from asyncflow.errors import InvalidCacheKey, InvalidOption, NotSerializable

if TYPE_CHECKING:
    from asyncflow.tasks import Task
    from asyncflow.views import TaskRun

#: Enters every key: raised when what keys are made of changes, so that old entries are missed.
FORMAT = 1

_NOTHING: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class CacheContext:
    """What a `cache_key_fn` is told of the call, besides its parameters.

    Attributes:
        task: the task.
        task_run: the task run, which has `id`, `name`, `flow_run_id` and more.
        flow_run: the flow run, which has `id`, `flow_name`, `parameters` and more.
    """

    task: Task[..., Any]
    task_run: TaskRun
    flow_run: Any


KeyFn = Callable[[CacheContext, dict[str, Any]], str | None]


@dataclass(frozen=True, slots=True)
class CachePolicy:
    """What counts for the key of a call.

    Attributes:
        inputs: names of parameters that do not count; None: none of them does.
        source: whether the text of the function counts.
        run_id: whether the flow run counts.
        flow_parameters: names of flow parameters that do not count; None: none of them does.
        functions: functions ``fn(context, parameters)`` whose answers count.
    """

    inputs: frozenset[str] | None = None
    source: bool = False
    run_id: bool = False
    flow_parameters: frozenset[str] | None = None
    functions: tuple[KeyFn, ...] = ()

    def __bool__(self) -> bool:
        """Whether anything counts at all: else nothing is cached."""
        return self != NO_CACHE

    def __add__(self, other: CachePolicy) -> CachePolicy:
        """What counts in either counts."""
        if not isinstance(other, CachePolicy):
            return NotImplemented
        return CachePolicy(
            _either(self.inputs, other.inputs),
            self.source or other.source,
            self.run_id or other.run_id,
            _either(self.flow_parameters, other.flow_parameters),
            self.functions + tuple(f for f in other.functions if f not in self.functions),
        )

    def __sub__(self, name: str) -> CachePolicy:
        """The same without the parameter *name*.

        Raises:
            InvalidOption: no parameters count anyway.
        """
        if not isinstance(name, str):
            return NotImplemented
        if self.inputs is None and self.flow_parameters is None:
            raise InvalidOption(
                f"{self!r} - {name!r}: only INPUTS and FLOW_PARAMETERS have parameters to leave out"
            )
        less = frozenset({name})
        return replace(
            self,
            inputs=None if self.inputs is None else self.inputs | less,
            flow_parameters=None if self.flow_parameters is None else self.flow_parameters | less,
        )

    def __repr__(self) -> str:
        parts = []
        if self.inputs is not None:
            parts.append(_shown("INPUTS", self.inputs))
        if self.source:
            parts.append("TASK_SOURCE")
        if self.run_id:
            parts.append("RUN_ID")
        if self.flow_parameters is not None:
            parts.append(_shown("FLOW_PARAMETERS", self.flow_parameters))
        parts += [f"CacheKeyFn({getattr(f, '__name__', f)})" for f in self.functions]
        return " + ".join(parts) or "NO_CACHE"


def _either(one: frozenset[str] | None, other: frozenset[str] | None) -> frozenset[str] | None:
    if one is None or other is None:
        return one if other is None else other
    return one & other


def _shown(name: str, without: frozenset[str]) -> str:
    if not without:
        return name
    return f"({name}{''.join(f' - {n!r}' for n in sorted(without))})"


#: Nothing is cached.
NO_CACHE = CachePolicy()
#: The arguments count, defaults included.
INPUTS = CachePolicy(inputs=_NOTHING)
#: The text of the function counts, without its decorators; what it calls does not.
TASK_SOURCE = CachePolicy(source=True)
#: The flow run counts: results are shared within one run only.
RUN_ID = CachePolicy(run_id=True)
#: The parameters of the flow run count.
FLOW_PARAMETERS = CachePolicy(flow_parameters=_NOTHING)


def CacheKeyFn(fn: KeyFn) -> CachePolicy:  # noqa: N802 - reads as the policy it makes
    """The policy of a `cache_key_fn`, to be put together with others.

    Args:
        fn: ``fn(context, parameters) -> str | None``; None: this call is not cached.
    """
    if not callable(fn):
        raise InvalidOption(f"CacheKeyFn({fn!r}): give a function fn(context, parameters) -> str")
    return CachePolicy(functions=(fn,))


@dataclass(frozen=True, slots=True, kw_only=True)
class Caching:
    """How the results of a task are cached.

    Attributes:
        expiration: seconds for which a result is used; None: as long as it is there.
        refresh: never use a stored result, but store the new one.
    """

    policy: CachePolicy
    expiration: float | None = None
    refresh: bool = False
    _source: list[bytes] = field(default_factory=list, compare=False)

    def key(self, task: Any, call: Any, arguments: Mapping[str, Any], context: Any) -> bytes | None:
        """The key of a call; None: it is not cached.

        Args:
            task: its spec: has `name`, `key`, `fn`, `task`.
            call: the call: has `run`.
            arguments: by name, defaults included.
            context: makes the `CacheContext`.

        Raises:
            InvalidCacheKey: there is none; the message says why, and what to do.
        """
        policy = self.policy
        parts: dict[str, Any] = {}
        if policy.functions:
            told = context()
            answers = [_answer(task.name, fn, told, dict(arguments)) for fn in policy.functions]
            if None in answers:
                return None
            if policy == CachePolicy(functions=policy.functions) and len(answers) == 1:
                # The string is the key: whichever tasks give it share the result.
                return _digest(("key", answers[0]))
            parts["functions"] = answers
        if policy.inputs is not None:
            parts["inputs"] = _counted(task.name, "parameter", arguments, policy.inputs)
        if policy.source:
            if not self._source:
                self._source.append(_digest(source(task.name, task.fn)))
            parts["source"] = self._source[0]
        if policy.run_id:
            parts["run"] = call.run.id
        if policy.flow_parameters is not None:
            values = call.run.parameters
            parts["flow"] = _counted(task.name, "flow parameter", values, policy.flow_parameters)
        return _digest((FORMAT, task.key, parts))


def _digest(value: Any) -> bytes:
    return blake2b(fingerprint(value), digest_size=20).digest()


def _counted(
    task: str, what: str, values: Mapping[str, Any], without: frozenset[str]
) -> dict[str, bytes]:
    """What stands for each of the values that count."""
    parts = {}
    for name, value in values.items():
        if name in without:
            continue
        try:
            parts[name] = fingerprint(value)
        except NotSerializable as error:
            path = name + error.path.removeprefix("value")
            reason = str(error).partition("stored as JSON: ")[2] or "it has no canonical form"
            policy = "INPUTS" if what == "parameter" else "FLOW_PARAMETERS"
            raise InvalidCacheKey(
                f"task {task!r} has no cache key: its {what} {path} is a {error.type_name}"
                f" ({reason}): leave it out with cache_policy={policy} - {name!r}, or make the"
                " key with cache_key_fn"
            ) from None
    return parts


def _answer(task: str, fn: KeyFn, context: Any, parameters: dict[str, Any]) -> str | None:
    name = getattr(fn, "__name__", repr(fn))
    try:
        answer: Any = fn(context, parameters)
    except Exception as error:
        raise InvalidCacheKey(
            f"task {task!r} has no cache key: its cache_key_fn {name} raised"
            f" {type(error).__name__}: {error}"
        ) from error
    if answer is None or isinstance(answer, str):
        return answer
    if inspect.iscoroutine(answer):
        answer.close()
    raise InvalidCacheKey(
        f"task {task!r} has no cache key: its cache_key_fn {name} returned a"
        f" {type(answer).__name__}: return a str, or None to cache nothing"
    )


def source(task: str, fn: Any) -> str:
    """The text of a function, from its `def` on.

    Raises:
        InvalidCacheKey: it has none, as where it was typed at a prompt.
    """
    found = inspect.unwrap(getattr(fn, "func", fn))
    if not inspect.isroutine(found):
        found = type(found).__call__
    try:
        text = textwrap.dedent(inspect.getsource(found))
        node: Any = ast.parse(text).body[0]
        lines = text.splitlines()[node.lineno - 1 : node.end_lineno]
    except (OSError, TypeError, SyntaxError, IndexError) as error:
        raise InvalidCacheKey(
            f"task {task!r} has no cache key: the source of its function cannot be read ({error}):"
            " leave TASK_SOURCE out, or put the function into a file"
        ) from None
    return "\n".join(line.rstrip() for line in lines)


def make_caching(
    what: str, policy: Any, key_fn: Any, expiration: Any, refresh: Any, persist: bool
) -> Caching | None:
    """What the options of a task say of caching; None: nothing is cached.

    Raises:
        InvalidOption: they make no sense.
    """
    seconds = _seconds(what, expiration)
    if policy is not None and not isinstance(policy, CachePolicy):
        raise InvalidOption(
            f"{what}: cache_policy={policy!r}: give INPUTS, TASK_SOURCE, RUN_ID, FLOW_PARAMETERS or"
            " NO_CACHE, put together with +"
        )
    if key_fn is not None and policy:
        raise InvalidOption(
            f"{what} has a cache_policy and a cache_key_fn: give one, or put them together with"
            " cache_policy=CacheKeyFn(fn) + policy"
        )
    if key_fn is not None and policy is None:
        if not callable(key_fn):
            raise InvalidOption(
                f"{what}: cache_key_fn={key_fn!r}: give a function fn(context, parameters) -> str"
            )
        policy = CacheKeyFn(cast("KeyFn", key_fn))
    if not policy:
        if policy is None and (expiration is not None or refresh):
            raise InvalidOption(
                f"{what} has cache_expiration or refresh_cache, and nothing says what is cached:"
                " give a cache_policy such as INPUTS, or a cache_key_fn"
            )
        return None
    if not persist:
        raise InvalidOption(
            f"{what} has persist_result=False, so there is no stored result that could be used"
            " again: leave out either that or the caching"
        )
    return Caching(policy=policy, expiration=seconds, refresh=bool(refresh))


def check_names(what: str, caching: Caching, signature: inspect.Signature) -> None:
    """Raise InvalidOption where a parameter is left out that the function does not have."""
    policy = caching.policy
    parameters = signature.parameters
    if policy.flow_parameters is not None or any(
        p.kind is p.VAR_KEYWORD for p in parameters.values()
    ):
        return
    unknown = sorted((policy.inputs or _NOTHING) - parameters.keys())
    if unknown:
        raise InvalidOption(
            f"{what}: cache_policy={policy!r}: it has no parameter {unknown[0]!r}: its parameters"
            f" are {', '.join(parameters) or 'none'}"
        )


def _seconds(what: str, value: Any) -> float | None:
    if value is None:
        return None
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds > 0:
        raise InvalidOption(
            f"{what}: cache_expiration={value!r}: give a timedelta or seconds, more than 0"
        )
    return float(seconds)
