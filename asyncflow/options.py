"""Checks what users write in ``@task(...)`` and ``@flow(...)`` and makes `Options` of it."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable
from math import isfinite
from typing import Any

from asyncflow.caching import make_caching
from asyncflow.errors import InvalidDefinition, InvalidOption
from asyncflow.policy import check_policy
from asyncflow.retry import Retry
from asyncflow.run import Hooks, Options
from asyncflow.spec import unknown_names

#: Names that `submit`, `map` and `stream` take for themselves.
RESERVED = frozenset({"wait_for", "return_state"})

HOOKS = ("on_running", "on_completion", "on_failure", "on_cancellation", "on_crashed")


def make_options(what: str, is_flow: bool, **given: Any) -> Options:
    """Options from keyword arguments; InvalidOption says which is wrong and what to give."""
    hooks = Hooks(**{name: _functions(what, name, given.get(name)) for name in HOOKS})
    runner = given.get("runner") or ("async" if is_flow else None)
    options = Options(
        retry=_retry(what, given),
        retry_condition=_function(what, "retry_condition_fn", given.get("retry_condition_fn")),
        retry_budget=_share(what, given.get("retry_budget")),
        timeout=_seconds(what, "timeout_seconds", given.get("timeout_seconds")),
        timeout_mode=given.get("timeout_mode") or "cancel",
        total_timeout=_seconds(what, "total_timeout_seconds", given.get("total_timeout_seconds")),
        queue_timeout=_seconds(
            what, "queue_timeout_seconds", given.get("queue_timeout_seconds"), zero=True
        ),
        tags=_tags(what, given.get("tags")),
        limits=_limits(what, given.get("limits")),
        max_concurrency=_count(what, "max_concurrency", given.get("max_concurrency"), 1),
        priority=_priority(what, given.get("priority")),
        runner=runner,
        serializer=_choice(
            what, "serializer", given.get("serializer") or "json", ("json", "pickle")
        ),
        persist=_switch(what, "persist_result", given.get("persist_result"), True),
        log_prints=_switch(what, "log_prints", given.get("log_prints"), False),
        run_name=_name(
            what, "flow_run_name" if is_flow else "task_run_name", given.get("run_name")
        ),
        grace=_seconds(what, "cancel_grace_seconds", given.get("cancel_grace_seconds"), zero=True),
        key=_name(what, "key", given.get("key")),
        hooks=hooks,
        description=given.get("description") or "",
        version=given.get("version"),
        max_recoveries=_count(what, "max_recoveries", given.get("max_recoveries"), 0),
        keep_last=_count(what, "keep_last", given.get("keep_last"), 0),
        validate=_switch(what, "validate_parameters", given.get("validate_parameters"), True),
        caching=make_caching(
            what,
            given.get("cache_policy"),
            given.get("cache_key_fn"),
            given.get("cache_expiration"),
            given.get("refresh_cache"),
            _switch(what, "persist_result", given.get("persist_result"), True),
        ),
        transactional=bool(given.get("transactional")),
        on_commit=check_steps(what, "on_commit", given.get("on_commit")),
        on_rollback=check_steps(what, "on_rollback", given.get("on_rollback")),
        failure_policy=check_policy(what, given.get("failure_policy")),
        teardown=_switch(what, "teardown", given.get("teardown"), False),
    )
    _choice(what, "timeout_mode", options.timeout_mode, ("cancel", "soft"))
    if options.teardown:
        _check_teardown(what, options)
    return options


def _check_teardown(what: str, options: Options) -> None:
    """Refuse what makes no sense for a task that has to run, and whose failure decides nothing."""
    if options.failure_policy is not None:
        raise InvalidOption(
            f"{what} is a teardown, whose failure decides nothing: leave failure_policy out"
        )
    if options.caching is not None:
        raise InvalidOption(
            f"{what} is a teardown, which must run each time: leave the cache options out"
        )


def check_function(what: str, fn: Any) -> None:
    """Raise InvalidDefinition unless *fn* can be a task or flow."""
    if isinstance(fn, type):
        raise InvalidDefinition(
            f"@{what} was put on the class {fn.__qualname__!r}: put it on a function or method"
        )
    if not callable(fn):
        raise InvalidDefinition(
            f"@{what} was put on {fn!r}, which is not a function: put it on a function or method,"
            f" and give options by name, as in @{what}(retries=3)"
        )
    if inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn):
        raise InvalidDefinition(
            f"{fn.__qualname__!r} is a generator, which cannot be a {what}: return a list, or"
            " feed a task from the generator with task.stream(source)"
        )
    taken = RESERVED.intersection(inspect.signature(fn).parameters)
    if taken:
        raise InvalidDefinition(
            f"{fn.__qualname__!r} has a parameter {sorted(taken)[0]!r}, a name that submit() and"
            " calls take for themselves: rename the parameter"
        )


def settle_annotations(fn: Any) -> None:
    """Evaluate annotations that are text (``from __future__ import annotations``) and name what is
    local to the function that declares *fn*, while that is in sight."""
    texts = {n: a for n, a in getattr(fn, "__annotations__", {}).items() if isinstance(a, str)}
    module = getattr(fn, "__globals__", None)
    if not texts or module is None or "<locals>" not in fn.__qualname__:
        return
    frame = sys._getframe(1)
    while frame is not None and frame.f_globals is not module:
        frame = frame.f_back  # type: ignore[assignment] # ends with None
    names: dict[str, Any] = {}
    while frame is not None and frame.f_globals is module and frame.f_locals is not module:
        names = {**frame.f_locals, **names}
        frame = frame.f_back  # type: ignore[assignment] # as above
    for name, text in texts.items():
        try:
            fn.__annotations__[name] = eval(text, module, names)  # noqa: S307 - the user's own text
        except Exception:  # noqa: S112 - a name for type checkers only: it stays text
            continue


def _retry(what: str, given: dict[str, Any]) -> Retry:
    on = given.get("retry_on")
    if on is None:
        types: tuple[type[BaseException], ...] = (Exception,)
    else:
        types = tuple(on) if isinstance(on, list | tuple | set | frozenset) else (on,)
        if not types or not all(
            isinstance(t, type) and issubclass(t, BaseException) for t in types
        ):
            raise InvalidOption(f"{what}: retry_on={on!r}: give exception types")
    jitter = given.get("retry_jitter_factor")
    delays = given.get("retry_delay_seconds")
    try:
        return Retry(
            retries=given.get("retries") or 0,
            delays=0.0 if delays is None else delays,
            jitter=1.0 if jitter is None else jitter,
            on=types,
        )
    except InvalidOption as error:
        raise InvalidOption(f"{what}: {error}") from None


def _seconds(what: str, name: str, value: Any, zero: bool = False) -> float | None:
    if value is None:
        return None
    good = isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
    if not good or value < 0 or (value == 0 and not zero):
        least = "0 or more" if zero else "more than 0"
        raise InvalidOption(f"{what}: {name}={value!r}: give seconds, {least}")
    return float(value)


def _count(what: str, name: str, value: Any, least: int) -> int | None:
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InvalidOption(f"{what}: {name}={value!r}: give a whole number, {least} or more")
    return value


def _priority(what: str, value: Any) -> float:
    if value is None:
        return 0
    if not isinstance(value, int | float) or isinstance(value, bool) or not isfinite(value):
        raise InvalidOption(f"{what}: priority={value!r}: give a number, the higher the earlier")
    return value


def _switch(what: str, name: str, value: Any, otherwise: bool) -> bool:
    if value is None:
        return otherwise
    if not isinstance(value, bool):
        raise InvalidOption(f"{what}: {name}={value!r}: give True or False")
    return value


def _name(what: str, name: str, value: Any) -> str | Callable[..., Any] | None:
    if value is not None and not isinstance(value, str) and not callable(value):
        raise InvalidOption(
            f"{what}: {name}={value!r}: give a template of parameters, or a function"
        )
    return value  # type: ignore[no-any-return] # callable is all that can be known


def check_name(what: str, name: Any) -> None:
    """Raise InvalidOption unless *name* can be the name of a task or flow."""
    if name is not None and (not isinstance(name, str) or not name):
        raise InvalidOption(f"@{what}(name={name!r}): give a name, or leave it out")


def check_templates(what: str, options: Options, fn: Callable[..., Any], of_name: str) -> None:
    """Raise InvalidOption if a template asks for what is no parameter of *fn*."""
    signature = inspect.signature(fn)
    for name, template in ((of_name, options.run_name), ("key", options.key)):
        try:
            unknown = unknown_names(template, signature)
        except ValueError as error:
            raise InvalidOption(f"{what}: {name}={template!r}: {error}") from None
        if unknown:
            known = ", ".join(signature.parameters) or "none"
            raise InvalidOption(
                f"{what}: {name}={template!r} names {unknown[0]!r}: the parameters are {known}"
            )


def _share(what: str, value: Any) -> float | None:
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 1:
        raise InvalidOption(
            f"{what}: retry_budget={value!r}: give the share of calls that may be retries,"
            " between 0 and 1"
        )
    return float(value)


def _choice(what: str, name: str, value: Any, known: tuple[str, ...]) -> str:
    if value not in known:
        raise InvalidOption(f"{what}: {name}={value!r}: use one of {', '.join(known)}")
    return str(value)


def _tags(what: str, tags: Iterable[str] | None) -> frozenset[str]:
    if tags is None:
        return frozenset()
    good = isinstance(tags, Iterable) and not isinstance(tags, str)
    names: tuple[Any, ...] = tuple(tags) if good else (None,)
    if not all(isinstance(name, str) and name for name in names):
        raise InvalidOption(f"{what}: tags={tags!r}: give a set or list of names")
    return frozenset(names)


def _limits(what: str, limits: Any) -> tuple[tuple[str, int], ...]:
    if not limits:
        return ()
    if isinstance(limits, list | tuple | set | frozenset):
        limits = dict.fromkeys(limits, 1)
    if not isinstance(limits, dict) or not all(
        isinstance(n, str) and isinstance(u, int) and u >= 1 for n, u in limits.items()
    ):
        raise InvalidOption(
            f"{what}: limits={limits!r}: give names of limits and units, such as {{'db': 1}}"
        )
    return tuple(sorted(limits.items()))


def _function(what: str, name: str, value: Any) -> Callable[..., Any] | None:
    if value is not None and not callable(value):
        raise InvalidOption(f"{what}: {name}={value!r}: give a function")
    return value  # type: ignore[no-any-return] # callable is all that can be known


def _functions(what: str, name: str, value: Any) -> tuple[Callable[..., Any], ...]:
    if value is None:
        return ()
    many = tuple(value) if isinstance(value, list | tuple) else (value,)
    if not all(callable(f) for f in many):
        raise InvalidOption(f"{what}: {name}={value!r}: give a function or a list of functions")
    return many


def check_steps(what: str, name: str, value: Any) -> tuple[Any, ...]:
    """Hooks for transactions: functions, or tasks, of the transaction."""
    hooks = _functions(what, name, value)
    for hook in hooks:
        spec = getattr(hook, "spec", None)
        signature = spec.signature if spec is not None else inspect.signature(hook)
        try:
            signature.bind(None)
        except TypeError:
            raise InvalidOption(
                f"{what}: {name} takes a function of one argument, the transaction, not"
                f" {getattr(hook, '__qualname__', hook)}{signature}"
            ) from None
    return hooks


def check_count(name: str, value: Any, least: int) -> None:
    """InvalidOption: it is no whole number of at least *least*, nor None."""
    if value is None:
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InvalidOption(f"{name}={value!r}: give a whole number, {least} or more")


def check_seconds(name: str, value: Any) -> None:
    """InvalidOption: it is no number of seconds, nor None."""
    if value is None:
        return
    if not isinstance(value, int | float) or isinstance(value, bool) or not value >= 0:
        raise InvalidOption(f"{name}={value!r}: give seconds, 0 or more")
