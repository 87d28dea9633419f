"""Identities: equal inputs have equal ones, everywhere and always; others do not."""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path, PurePosixPath
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from unit.values import VALUES, Box, Colour, Frozen, Model, Point, Rights

from asyncflow import NotSerializable
from asyncflow.canonical import fingerprint, inputs_fingerprint, shown_inputs

GOLDEN = Path(__file__).parent / "golden" / "fingerprints.json"
CASES: dict[str, tuple[Any, ...]] = {
    "nothing": (),
    "none": (None,),
    "true": (True,),
    "one": (1,),
    "one, as a float": (1.0,),
    "zero": (0.0,),
    "minus zero": (-0.0,),
    "infinity": (math.inf,),
    "large": (2**100,),
    "text": ("a",),
    "text that is not ASCII": ("ä\U0001f600",),
    "bytes": (b"a",),
    "long text": ("x" * 1000,),
    "several": (1, "a", None),
    "list": ([1, 2],),
    "tuple": ((1, 2),),
    "dict": ({"b": 1, "a": [2]},),
    "dict of other keys": ({1: "a", (2, 3): "b"},),
    "set": ({"x", "y", "z"},),
    "frozenset": (frozenset({1, 2}),),
    "nested": ([{"a": ({1}, None)}],),
    "datetime": (datetime(2026, 3, 29, 1, 30, tzinfo=UTC),),
    "date": (date(2026, 3, 29),),
    "timedelta": (timedelta(days=-1, seconds=5),),
    "decimal": (Decimal("1.10"),),
    "uuid": (UUID(int=5),),
    "path": (PurePosixPath("/a/b"),),
    "enum": (Colour.RED,),
    "flag": (Rights.READ | Rights.WRITE,),
    "named tuple": (Point(1, "y"),),
    "dataclass": (Box({"k": 1}, ["t"]),),
    "frozen dataclass": (Frozen((1,)),),
    "model": (Model(name="m", inner=[1]),),
}
KEYWORDS: dict[str, dict[str, Any]] = {"keywords": {"b": 1, "a": [2]}}


def fingerprints() -> dict[str, str]:
    found = {name: inputs_fingerprint(args, {}).hex() for name, args in CASES.items()}
    found |= {name: inputs_fingerprint((), kwargs).hex() for name, kwargs in KEYWORDS.items()}
    return found


def test_identities_are_those_that_were_recorded_once() -> None:
    """If this fails, runs that were begun by an older version would not find their calls."""
    assert fingerprints() == json.loads(GOLDEN.read_text())


def test_all_of_them_differ() -> None:
    assert len(set(fingerprints().values())) == len(CASES) + len(KEYWORDS)


@pytest.mark.parametrize("seed", ["0", "1", "4242"])
def test_they_are_the_same_in_every_process(seed: str) -> None:
    code = "import json, unit.test_canonical as t; print(json.dumps(t.fingerprints()))"
    path = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == json.loads(GOLDEN.read_text())


@given(VALUES)
@settings(max_examples=300, deadline=None)
def test_a_copy_has_the_same_identity_and_it_is_short(value: Any) -> None:
    first = fingerprint(value)
    assert len(first) <= 33
    assert fingerprint(_rebuilt(value)) == first


def _rebuilt(value: Any) -> Any:
    """An equal value of other objects, with dicts and sets in another order."""
    if type(value) is dict:
        items = [(k, _rebuilt(v)) for k, v in value.items()]
        random.Random(1).shuffle(items)
        return dict(items)
    if type(value) in (list, tuple):
        return type(value)([_rebuilt(v) for v in value])
    if type(value) in (set, frozenset):
        return type(value)(sorted(value, key=repr, reverse=True))
    if isinstance(value, Box):
        return replace(value, content=_rebuilt(value.content))
    return value


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((1,), (1.0,)),
        ((1,), (True,)),
        (([1],), ((1,),)),
        (("a", "b"), ("ab",)),
        ((b"a",), ("a",)),
        (({1},), (frozenset({1}),)),
        ((Box(1),), (Frozen(1),)),
        ((Point(1, 2),), ((1, 2),)),
        ((0.0,), (-0.0,)),
        (({"a": 1},), ([("a", 1)],)),
    ],
    ids=str,
)
def test_what_differs_only_by_type_differs(one: tuple[Any, ...], other: tuple[Any, ...]) -> None:
    assert inputs_fingerprint(one, {}) != inputs_fingerprint(other, {})


def test_the_order_of_keywords_is_nothing_and_their_names_count() -> None:
    assert inputs_fingerprint((), {"a": 1, "b": 2}) == inputs_fingerprint((), {"b": 2, "a": 1})
    assert inputs_fingerprint((), {"a": 1}) != inputs_fingerprint((1,), {})


def test_an_input_without_a_canonical_form_is_named() -> None:
    with pytest.raises(NotSerializable, match=r"^session\[0\] is a object"):
        inputs_fingerprint((), {"session": [object()]})


def test_a_token_stands_for_what_is_not_plain() -> None:
    marker = object()
    token = {id(marker): b"t"}
    one = inputs_fingerprint(([marker],), {}, lambda value: token.get(id(value)))
    assert one == inputs_fingerprint(([marker],), {}, lambda value: token.get(id(value)))
    assert one != inputs_fingerprint(([b"t"],), {})


@pytest.mark.parametrize(
    ("args", "text"),
    [
        ((1, "a"), "(1, 'a')"),
        ((-5, None, True), "(-5, None, True)"),
        ((2**70,), f"({2**70})"),
        ((-(2**40),), f"({-(2**40)})"),
        ((1.5, b"x"), "(1.5, b'x')"),
        (([1, [2]],), "([1, [2]])"),
        (("x" * 100,), ""),
        (({"a": 1},), ""),
    ],
    ids=str,
)
def test_short_inputs_can_be_shown(args: tuple[Any, ...], text: str) -> None:
    assert shown_inputs(inputs_fingerprint(args, {})) == text


@pytest.mark.parametrize(
    "raw",
    [b"", b"r", b"rc", b"r(\xff\xff\xff\xff", b"ru\xff\xff\xff\x7fx", b"r" + b"(\1\0\0\0" * 9],
)
def test_an_identity_that_nobody_made_shows_nothing(raw: bytes) -> None:
    assert shown_inputs(raw) == ""
