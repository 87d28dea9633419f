"""Types and strategies for values of every kind that can be stored."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from datetime import UTC, timedelta, timezone
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple

import pydantic
from hypothesis import strategies as st


class Colour(enum.Enum):
    RED = 1
    BLUE = "b"


class Rights(enum.Flag):
    READ = 1
    WRITE = 2


class Point(NamedTuple):
    x: Any
    y: Any


@dataclass
class Box:
    content: Any
    tags: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Frozen:
    a: Any


class Model(pydantic.BaseModel):
    name: str
    inner: Any = None


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(),
    st.text(st.characters(categories=["Cs"]), min_size=1, max_size=2),
    st.binary(),
    st.complex_numbers(allow_nan=False),
    st.decimals(allow_nan=False),
    st.fractions(),
    st.uuids(),
    st.datetimes(timezones=st.sampled_from([None, UTC, timezone(timedelta(hours=5, minutes=30))])),
    st.dates(),
    st.times(),
    st.timedeltas(),
    st.sampled_from([*Colour, Rights.READ, Rights.READ | Rights.WRITE]),
    st.text("abc/ü", min_size=1).map(PurePosixPath),
    st.text("abc\\ü", min_size=1).map(PureWindowsPath),
)
HASHABLE = st.one_of(
    st.integers(), st.text(), st.binary(), st.booleans(), st.dates(), st.uuids(), st.none()
)


def _grown(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(st.text(max_size=5), inner, max_size=4),
        st.dictionaries(HASHABLE, inner, max_size=4),
        st.builds(Point, inner, inner),
        st.builds(Box, inner, st.lists(st.text(max_size=3), max_size=2)),
        st.builds(Frozen, inner),
        st.builds(Model, name=st.text(st.characters(codec="utf-8"), max_size=5), inner=inner),
    )


VALUES = st.one_of(
    st.recursive(SCALARS, _grown, max_leaves=12),
    st.sets(HASHABLE, max_size=4),
    st.frozensets(HASHABLE, max_size=4),
)


def same(a: Any, b: Any) -> bool:
    """Equal, and of the same types all through."""
    if type(a) is not type(b):
        return False
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, Box):
        return same(a.content, b.content) and a.tags == b.tags
    if isinstance(a, Frozen):
        return same(a.a, b.a)
    if isinstance(a, Model):
        return a.name == b.name and same(a.inner, b.inner)
    return bool(a == b) and repr(a) == repr(b) if isinstance(a, float) else bool(a == b)
