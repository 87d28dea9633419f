"""Futures inside other values: find them, and put their values in their place.

They are looked for in builtin containers at any depth, and in the fields of dataclasses and
pydantic models. A container without a future is passed on as it is; a dataclass or model with
one is copied without running `__post_init__` or validators again.
"""

from __future__ import annotations

import copy
import dataclasses
import sys
from collections.abc import Callable, Iterable
from typing import Any

from asyncflow.errors import DependencyCycle
from asyncflow.run import Call

#: Types in which there is nothing to find.
PLAIN = frozenset({type(None), bool, int, float, complex, str, bytes, bytearray})

_DEPTH = 100


class Allowed:
    """`allow_failure(future)`: the task gets the value, or the exception."""

    __slots__ = ("future",)

    def __init__(self, future: Any) -> None:
        self.future = future


class Unmapped:
    """`unmapped(value)`: the same value for each item of a map."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


class FutureGroup:
    """What `TaskFutureList` tells this module of itself."""

    __slots__ = ()

    def members(self) -> Iterable[Call]:
        raise NotImplementedError


def find(values: Iterable[Any], found: list[tuple[Call, bool]], depth: int = 0) -> None:
    """Add each future in *values*, and whether its failure is allowed, to *found*."""
    if depth > _DEPTH:
        raise DependencyCycle(
            "an argument contains itself, or is nested more than 100 deep: pass a flatter value"
        )
    for value in values:
        cls = value.__class__
        if cls in PLAIN:
            continue
        if cls is list or cls is tuple or cls is set or cls is frozenset:
            if not PLAIN.issuperset(map(type, value)):
                find(value, found, depth + 1)
        elif cls is dict:
            if not PLAIN.issuperset(map(type, value.values())):
                find(value.values(), found, depth + 1)
        elif isinstance(value, Call):
            found.append((value, False))
        elif cls is Allowed:
            _allowed(value.future, found)
        elif isinstance(value, FutureGroup):
            found.extend((call, False) for call in value.members())
        elif isinstance(value, list | tuple | set | frozenset):
            find(value, found, depth + 1)
        elif isinstance(value, dict):
            find(value.values(), found, depth + 1)
        else:
            fields = fields_of(value)
            if fields:
                find(fields.values(), found, depth + 1)


def _allowed(future: Any, found: list[tuple[Call, bool]]) -> None:
    if isinstance(future, Call):
        found.append((future, True))
        return
    inner: list[tuple[Call, bool]] = []
    find((future,), inner)
    found.extend((call, True) for call, _ in inner)


def fields_of(value: Any) -> dict[str, Any] | None:
    """The fields of a dataclass or pydantic model; None for anything else."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name, None) for f in dataclasses.fields(value)}
    pydantic = sys.modules.get("pydantic")
    if pydantic is not None and isinstance(value, pydantic.BaseModel):
        return dict(value.__dict__)
    return None


def replace(value: Any, with_: Callable[[Call, bool], Any]) -> Any:
    """*value* with ``with_(future, allowed)`` in the place of each future."""
    cls = value.__class__
    if cls in PLAIN:
        return value
    if isinstance(value, Call):
        return with_(value, False)
    if cls is Allowed:
        if isinstance(value.future, Call):
            return with_(value.future, True)
        return replace(value.future, lambda call, _: with_(call, True))
    if isinstance(value, FutureGroup):
        return [with_(call, False) for call in value.members()]
    if isinstance(value, list | tuple | set | frozenset | dict):
        return _replace_in_container(value, with_)
    return _replace_in_object(value, with_)


def _replace_in_container(value: Any, with_: Callable[[Call, bool], Any]) -> Any:
    found: list[tuple[Call, bool]] = []
    find((value,), found)
    if not found and not has_group(value):
        return value
    if isinstance(value, dict):
        return type(value)((k, replace(v, with_)) for k, v in value.items())
    items = [replace(v, with_) for v in value]
    if hasattr(value, "_fields"):  # a namedtuple takes its fields one by one
        return type(value)(*items)
    return type(value)(items)


def has_group(value: Any) -> bool:
    """Whether an empty list of futures hides in a container (it is resolved to a list)."""
    values = value.values() if isinstance(value, dict) else value
    return any(isinstance(v, FutureGroup) for v in values)


def _replace_in_object(value: Any, with_: Callable[[Call, bool], Any]) -> Any:
    fields = fields_of(value)
    if not fields:
        return value
    found: list[tuple[Call, bool]] = []
    find(fields.values(), found)
    if not found:
        return value
    twin = copy.copy(value)
    for name, field in fields.items():
        object.__setattr__(twin, name, replace(field, with_))
    return twin
