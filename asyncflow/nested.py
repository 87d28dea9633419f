"""Futures inside other values: find them, and put their values in their place.

They are looked for in builtin containers at any depth, and in the fields of dataclasses and
pydantic models. A container without a future is passed on as it is; a dataclass or model with
one is copied without running `__post_init__` or validators again.
"""

from __future__ import annotations

import copy
import dataclasses
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from operator import is_ as _is
from typing import Any

from asyncflow.errors import DependencyCycle
from asyncflow.run import Call

#: Types in which there is nothing to find.
PLAIN = frozenset({type(None), bool, int, float, complex, str, bytes, bytearray})


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


class FutureGroup(ABC):
    """What `TaskFutureList` tells this module of itself."""

    __slots__ = ()

    @property
    @abstractmethod
    def late(self) -> Call | None:
        """What stands for it if it is a map over a future; else its members do."""

    @abstractmethod
    def members(self) -> Iterable[Call]:
        """Its futures, or the one that stands for them as long as they are not there."""

    @property
    @abstractmethod
    def promised(self) -> Call | None:
        """What stands for its futures as long as they are not there."""


def find(values: Iterable[Any], found: list[tuple[Call, bool]]) -> bool:
    """Add each future in *values*, and whether its failure is allowed, to *found*.

    Returns whether `replace` would change *values*: an empty list of futures has none, and
    becomes a list all the same.

    Raises:
        DependencyCycle: a container contains itself.
    """
    before, groups = len(found), 0
    open_ = [iter(values)]
    path = [0]  # the containers that are being looked into
    while open_:
        for value in open_[-1]:
            cls = value.__class__
            if cls in PLAIN:
                continue
            if isinstance(value, Call):
                found.append((value, False))
            elif cls is Allowed:
                _allowed(value.future, found)
            elif isinstance(value, FutureGroup):
                groups += 1
                found.extend([(call, False) for call in value.members()])
            elif (inner := _inside(value)) is not None:
                if id(value) in path:
                    raise DependencyCycle("an argument contains itself: pass a flatter value")
                path.append(id(value))
                open_.append(iter(inner))
                break
        else:
            open_.pop()
            path.pop()
    return groups > 0 or len(found) > before


def _inside(value: Any) -> Iterable[Any] | None:
    """What is in a container, dataclass or model; None if it is none, or holds nothing but plain
    values."""
    inner: Iterable[Any]
    if isinstance(value, list | tuple | set | frozenset):
        inner = value
    elif isinstance(value, dict):
        inner = value.values()
    else:
        fields = fields_of(value)
        return fields.values() if fields else None
    return None if PLAIN.issuperset(map(type, inner)) else inner


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
        return {**value.__dict__, **(getattr(value, "__pydantic_extra__", None) or {})}
    return None


def replace(value: Any, with_: Callable[[Call, bool], Any]) -> Any:
    """*value* with ``with_(future, allowed)`` in the place of each future.

    Raises:
        DependencyCycle: it is nested too deep.
    """
    try:
        return _replace(value, with_)
    except RecursionError:
        raise DependencyCycle("an argument is nested too deep: pass a flatter value") from None


def _replace(value: Any, with_: Callable[[Call, bool], Any]) -> Any:
    cls = value.__class__
    if cls in PLAIN:
        return value
    if isinstance(value, Call):
        return with_(value, False)
    if cls is Allowed:
        if isinstance(value.future, Call):
            return with_(value.future, True)
        return _replace(value.future, lambda call, _: with_(call, True))
    if isinstance(value, FutureGroup):
        if value.promised is not None:
            return with_(value.promised, False)
        return [with_(call, False) for call in value.members()]
    inner = _inside(value)
    if inner is None:
        return value
    # Only what holds a future is made anew.
    if isinstance(value, list | tuple | set | frozenset):
        items = [_replace(v, with_) for v in value]
        same = all(map(_is, items, value))
        return value if same else _of_items(value, items)
    fields = value if isinstance(value, dict) else fields_of(value) or {}
    news = {k: _replace(v, with_) for k, v in fields.items()}
    news = {k: v for k, v in news.items() if v is not fields[k]}
    if not news:
        return value
    twin = copy.copy(value)
    if isinstance(value, dict):
        for key, item in news.items():
            dict.__setitem__(twin, key, item)
    else:
        _set_fields(twin, news)
    return twin


def _of_items(value: Any, items: list[Any]) -> Any:
    """A container of the type of *value* with these items."""
    if isinstance(value, list):
        twin = copy.copy(value)
        twin[:] = items
        return twin
    if hasattr(value, "_fields"):  # a namedtuple takes its fields one by one
        return type(value)(*items)
    return type(value)(items)


def _set_fields(twin: Any, fields: dict[str, Any]) -> None:
    """Set fields of a copy, past validators and frozenness."""
    extra = getattr(twin, "__pydantic_extra__", None) or {}
    for name, value in fields.items():
        if name in extra:
            extra[name] = value
        else:
            object.__setattr__(twin, name, value)
