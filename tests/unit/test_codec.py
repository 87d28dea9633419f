"""What is read is what was written, type for type; what is damaged is refused."""

from __future__ import annotations

import json
import math
import pickle
import re
from collections import OrderedDict, defaultdict, deque
from typing import Any

import numpy as np
import pydantic
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from unit.values import VALUES, Box, Colour, Model, same

from asyncflow import NotSerializable, ResultUnreadable
from asyncflow.codec import decode, encode, register, seal, unseal, unsealed


@given(VALUES)
@settings(max_examples=500, deadline=None)
def test_every_value_comes_back_as_it_was(value: Any) -> None:
    data = encode(value)
    json.loads(data)
    assert same(decode(data), value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -0.0, 5e-324, 1e308])
def test_floats_that_json_does_not_know(value: float) -> None:
    found = decode(encode([value]))[0]
    assert repr(found) == repr(value)


@pytest.mark.parametrize("value", [2**63, -(2**64), 10**400])
def test_integers_of_any_size(value: int) -> None:
    assert decode(encode({"n": value})) == {"n": value}


@pytest.mark.parametrize(
    "value", [{"$": "tuple", "v": [1]}, {"$": 1}, {"a": {"$": "x"}}, {"$$": 2}]
)
def test_a_dict_that_looks_like_a_mark_is_a_dict(value: Any) -> None:
    assert decode(encode(value)) == value


def test_dicts_of_other_kinds() -> None:
    ordered = OrderedDict([("b", 1), ("a", (2,))])
    assert same(list(decode(encode(ordered)).items()), list(ordered.items()))
    counted = defaultdict(int, {"a": 1})
    found = decode(encode(counted))
    assert found == counted
    assert found["new"] == 0


@pytest.mark.parametrize(
    "value",
    [
        np.arange(6, dtype="int32").reshape(2, 3),
        np.array([[1.5, math.nan], [math.inf, -0.0]]),
        np.array([], dtype="float64"),
        np.array(["a", "bc"]),
        np.array([True, False]),
        np.array(["2026-01-01", "NaT"], dtype="datetime64[D]"),
        np.array([1 + 2j]),
    ],
    ids=lambda value: f"{value.dtype}{value.shape}",
)
def test_arrays_of_numpy(value: Any) -> None:
    found = decode(encode({"array": value}))["array"]
    assert found.dtype == value.dtype
    assert found.shape == value.shape
    np.testing.assert_array_equal(found, value)


@pytest.mark.parametrize("value", [np.float32(1.5), np.int8(-3), np.bool_(True), np.str_("x")])
def test_scalars_of_numpy(value: Any) -> None:
    found = decode(encode(value))
    assert type(found) is type(value)
    assert found == value


@pytest.mark.parametrize(
    ("value", "path", "type_"),
    [
        ({"a": [1, object()]}, "result['a'][1]", "object"),
        (Box(content={"k": deque()}), "result.content['k']", "collections.deque"),
        (Model(name="m", inner=[lambda: 0]), "result.inner[0]", "function"),
        ({1: {2: open}}, "result[1][2]", "builtin_function_or_method"),
        (np.array([object()]), "result", "numpy.ndarray"),
        (pydantic.SecretStr("x"), "result", "pydantic.types.SecretStr"),
    ],
    ids=str,
)
def test_what_cannot_be_stored_is_named_with_its_place(value: Any, path: str, type_: str) -> None:
    with pytest.raises(NotSerializable) as caught:
        encode(value)
    assert str(caught.value).startswith(f"{path} is a {type_}")


def test_a_value_that_contains_itself_is_refused() -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(NotSerializable, match="contains itself"):
        encode(value)


def test_a_local_class_is_refused_when_it_is_written_not_when_it_is_read() -> None:
    class Local(pydantic.BaseModel):
        x: int

    with pytest.raises(NotSerializable, match="cannot be found by its name"):
        encode(Local(x=1))


@given(VALUES, st.data())
@settings(max_examples=300, deadline=None)
def test_damaged_bytes_are_refused_or_read_as_something_that_is_no_surprise(
    value: Any, data: st.DataObject
) -> None:
    raw = bytearray(encode(value))
    at = data.draw(st.integers(0, len(raw) - 1))
    if data.draw(st.booleans()):
        del raw[at:]
    else:
        raw[at] ^= data.draw(st.integers(1, 255))
    try:
        found = decode(bytes(raw))
    except ResultUnreadable:
        return
    # One bit of a text or number is another text or number; it must be storable again.
    encode(found)


@given(VALUES, st.data())
@settings(max_examples=1000, deadline=None)
def test_of_what_was_sealed_no_change_is_accepted(value: Any, data: st.DataObject) -> None:
    stored = seal(encode(value))
    assert unseal(stored) == encode(value)
    raw = bytearray(stored)
    at = data.draw(st.integers(0, len(raw) - 1))
    match data.draw(st.sampled_from(["flip", "cut", "more", "zeros"])):
        case "flip":
            raw[at] ^= data.draw(st.integers(1, 255))
        case "cut":
            del raw[at:]
        case "more":
            raw += bytes([raw[at]])
        case _:
            raw[at:] = bytes(len(raw) - at)
    assume(bytes(raw) != stored)
    with pytest.raises(ResultUnreadable):
        decode(unseal(bytes(raw)))


def test_what_was_written_before_there_were_seals_is_read() -> None:
    assert unseal(encode([1, "#"])) == encode([1, "#"])
    assert unseal(pickle.dumps("#")) == pickle.dumps("#")


def test_what_was_sealed_can_be_read_by_eye() -> None:
    assert re.fullmatch(rb'#[0-9a-f]{8} \{"a":1\}', seal(encode({"a": 1})))
    assert unsealed(seal(b"x")) == b"x"
    assert unsealed(b"#0000") == b""


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"nonsense",
        b'{"$": "nothing"}',
        b'{"$": "tuple"}',
        b'{"$": "enum", "t": "os:system", "v": "x"}',
        b'{"$": "dataclass", "t": "subprocess:Popen", "v": {"args": "true"}}',
        b'{"$": "model", "t": "asyncflow.engine:Engine", "v": {}}',
        b'{"$": "ndarray", "v": ["O", [1], ""]}',
        b'{"$": "datetime", "v": "yesterday"}',
    ],
)
def test_text_that_nobody_wrote_is_refused(data: bytes) -> None:
    with pytest.raises(ResultUnreadable):
        decode(data)


def test_a_plug_in_stores_what_else_is_needed() -> None:
    register(Money, lambda money: [money.cents], lambda plain: Money(plain[0]))
    assert decode(encode({"price": Money(5)}))["price"].cents == 5


class Money:
    def __init__(self, cents: int) -> None:
        self.cents = cents


def test_an_enum_is_found_by_name_so_that_its_value_may_change() -> None:
    assert decode(encode(Colour.RED)) is Colour.RED
    assert b"RED" in encode(Colour.RED)
