"""What is to become of calls that have failed for good, as it is declared with a task."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from asyncflow.errors import InvalidOption
from asyncflow.resources import resources_of
from asyncflow.spec import task_key

if TYPE_CHECKING:
    from asyncflow.spec import Spec
    from asyncflow.tasks import Task

#: The policies that are words; "fail" is what happens without one.
WORDS = ("fail", "skip", "continue", "pause")

_BY_PLACE = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class Fallback:
    """Another task that is called with the same arguments, and gives the result instead."""

    __slots__ = ("task",)

    def __init__(self, task: Task[..., Any]) -> None:
        self.task = task

    def __repr__(self) -> str:
        return f"fallback({self.task.name})"


def fallback(task: Task[..., Any]) -> Fallback:
    """A failure policy: where the task has failed for good, *task* is called instead.

    It gets the same arguments, defaults included, is a call of its own with options of its own,
    and its result, or its failure, is that of the call that it stands in for.

    Raises:
        InvalidOption: *task* is not a task.
    """
    from asyncflow.tasks import Task

    if not isinstance(task, Task):
        raise InvalidOption(f"fallback({task!r}): give a task, a function decorated with @task")
    return Fallback(task)


def check_policy(what: str, policy: Any) -> Any:
    """A policy as `Options` hold it: None where it changes nothing.

    Raises:
        InvalidOption: there is no such policy.
    """
    if policy is None or policy == "fail":
        return None
    if isinstance(policy, Fallback) or (isinstance(policy, str) and policy in WORDS):
        return policy
    known = ", ".join(map(repr, WORDS))
    raise InvalidOption(f"{what}: failure_policy={policy!r}: use one of {known}, fallback(task)")


def check_fallback(
    what: str, policy: Any, fn: Callable[..., Any], name: str | None, transactional: bool
) -> None:
    """Refuse a fallback that leads back to the task of *fn*, or that cannot take its arguments.

    Raises:
        InvalidOption: it does not fit.
    """
    names = []
    other = policy
    while isinstance(other, Fallback):
        names.append(other.task.name)
        if other.task.fn == fn or other.task.key == task_key(fn, name):
            way = " to ".join(names)
            raise InvalidOption(
                f"{what}: failure_policy={policy!r} leads back to the task itself (to {way}): use"
                " retries to try the same again, or name another task"
            )
        other = other.task.options.failure_policy
    if isinstance(policy, Fallback):
        _check_signature(what, policy.task, inputs_of(fn, transactional))


def _check_signature(what: str, other: Task[..., Any], given: inspect.Signature) -> None:
    takes = inputs_of(other.fn, other.options.transactional)
    args = [None for p in given.parameters.values() if p.kind in _BY_PLACE]
    named = [n for n, p in given.parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY]
    try:
        takes.bind(*args, **dict.fromkeys(named))
    except TypeError as error:
        raise InvalidOption(
            f"{what} has the parameters {given}, and its fallback {other.name!r} takes {takes}, so"
            f" it cannot be called instead: {error}"
        ) from None


def inputs_of(fn: Callable[..., Any], transactional: bool) -> inspect.Signature:
    """The signature of a task for its callers: without resources and connection."""
    signature = inspect.signature(fn)
    resources = resources_of(fn)
    parameters = [p for name, p in signature.parameters.items() if name not in resources]
    return signature.replace(parameters=parameters[1:] if transactional else parameters)


def same_arguments(
    spec: Spec, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[list[Any], dict[str, Any]]:
    """The arguments of a call of *spec*, defaults included, for another task.

    What can be given by place is: parameters may have other names there.
    """
    bound = spec.bind(args, kwargs)
    bound.apply_defaults()
    by_place: list[Any] = []
    by_name: dict[str, Any] = {}
    for name, parameter in spec.signature.parameters.items():
        if name in spec.resources or name not in bound.arguments:
            continue  # the other task has resources of its own
        value = bound.arguments[name]
        match parameter.kind:
            case parameter.VAR_POSITIONAL:
                by_place.extend(value)
            case parameter.VAR_KEYWORD:
                by_name.update(value)
            case parameter.KEYWORD_ONLY:
                by_name[name] = value
            case _:
                by_place.append(value)
    return by_place, by_name
