"""Secrets stay out of everything that is stored, in whatever form they got there."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, quote_plus

import pydantic
import pytest

from asyncflow.masking import MASK, Masker, secrets_in

SECRET = 'p&ss "wörd"/1'


@pytest.mark.parametrize(
    "form",
    [
        pytest.param(SECRET, id="plain"),
        pytest.param(quote(SECRET), id="in a path"),
        pytest.param(quote(SECRET, safe=""), id="in a URL"),
        pytest.param(quote_plus(SECRET), id="in a form"),
        pytest.param(base64.b64encode(SECRET.encode()).decode(), id="base64"),
        pytest.param(base64.b64encode(SECRET.encode()).decode().rstrip("="), id="without padding"),
    ],
)
def test_every_form_of_a_secret_is_masked(form: str) -> None:
    masker = Masker()
    masker.add(SECRET)
    assert masker.text(f"before {form} after") == f"before {MASK} after"
    assert SECRET.encode() not in masker.data(json.dumps({"x": form}).encode())
    assert MASK.encode() in masker.data(json.dumps({"x": form}).encode())
    assert MASK.encode() in masker.data(json.dumps({"x": form}, ensure_ascii=False).encode())


def test_of_a_secret_inside_another_no_rest_is_left() -> None:
    masker = Masker()
    masker.add("pass")
    masker.add("password")
    assert masker.text("my password") == f"my {MASK}"


def test_what_is_too_short_to_be_a_secret_blots_out_nothing() -> None:
    masker = Masker()
    masker.add("abc")
    assert masker.text("abc") == "abc"
    assert not masker.holds(b"abc")


def test_masked_json_is_json() -> None:
    masker = Masker()
    masker.add(SECRET)
    data = json.dumps([SECRET, {"k": f"x{SECRET}y"}]).encode()
    assert json.loads(masker.data(data)) == [MASK, {"k": f"x{MASK}y"}]


def test_secrets_are_learnt_from_parameters_and_models_in_them() -> None:
    class Login(pydantic.BaseModel):
        user: str
        password: pydantic.SecretStr

    masker = Masker()
    masker.learn(
        {
            "token": pydantic.SecretStr("token-1"),
            "key": pydantic.SecretBytes(b"bytes-2"),
            "login": Login(user="me", password=pydantic.SecretStr("inner-3")),
            "plain": "visible",
        }
    )
    text = masker.text("token-1 bytes-2 inner-3 visible me")
    assert text == f"{MASK} {MASK} {MASK} visible me"


def test_without_secrets_nothing_changes() -> None:
    masker = Masker()
    assert masker.text("x") == "x"
    assert masker.data(b"x") == b"x"


def test_secrets_are_found_at_any_depth_and_in_rings() -> None:
    @dataclass
    class Holder:
        key: Any

    ring: list[Any] = [pydantic.SecretStr("in-a-list")]
    ring.append(ring)
    value = {
        "a": [Holder((pydantic.SecretBytes(b"in-a-field"), 1)), {"b": {"c": ring}}],
        "d": "plain",
    }
    found = {secret.get_secret_value() for secret in secrets_in(value)}
    assert found == {"in-a-list", b"in-a-field"}
