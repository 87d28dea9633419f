"""Parameters of flows: converted, refused with a sentence, stored without secrets."""

from __future__ import annotations

import json
from datetime import date
from typing import Annotated, Any

import pydantic
import pytest

from asyncflow import InvalidParameters
from asyncflow.parameters import MOST_BYTES, Parameters, masked


class User(pydantic.BaseModel):
    name: str
    born: date | None = None


def parameters(fn: Any, validate: bool = True) -> Parameters:
    return Parameters("crawl", fn, validate)


def test_values_are_what_the_annotations_say() -> None:
    def crawl(n: int, when: date, user: User, small: Annotated[int, pydantic.Field(lt=5)]) -> None:
        pass

    p = parameters(crawl)
    values = p.check(p.bind(("7", "2026-01-02", {"name": "me"}, 3), {}))
    assert values == {"n": 7, "when": date(2026, 1, 2), "user": User(name="me"), "small": 3}
    assert p.load(p.store(values)) == values


def test_a_refusal_names_flow_parameter_value_and_reason() -> None:
    def crawl(user: User) -> None:
        pass

    p = parameters(crawl)
    with pytest.raises(InvalidParameters) as caught:
        p.check({"user": {"name": 5}})
    text = str(caught.value)
    assert text.startswith("flow 'crawl', parameter 'user': {'name': 5} is not accepted: name: ")
    assert isinstance(caught.value, TypeError)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("args", "kwargs", "told"),
    [
        ((), {}, "missing a required argument: 'n'"),
        ((1, 2, 3), {}, "too many positional arguments"),
        ((1,), {"z": 1}, "unexpected keyword argument 'z'"),
    ],
    ids=["missing", "too many", "unknown"],
)
def test_arguments_that_do_not_fit_are_told_with_the_signature(
    args: Any, kwargs: Any, told: str
) -> None:
    def crawl(n: int, m: int = 0) -> None:
        pass

    with pytest.raises(InvalidParameters, match=told) as caught:
        parameters(crawl).bind(args, kwargs)
    assert "crawl(n: 'int', m: 'int' = 0)" in str(caught.value)


def test_all_kinds_of_parameters_are_put_together_again() -> None:
    def crawl(a: int, /, b: int, *rest: int, c: int = 3, **more: int) -> None:
        pass

    p = parameters(crawl)
    values = p.load(p.store(p.check(p.bind((1, 2, 4, 5), {"d": 6}))))
    assert p.split(values) == ((1, 2, 4, 5), {"c": 3, "d": 6})


def test_without_validation_values_stay_as_they_are() -> None:
    def crawl(n: int) -> None:
        pass

    assert parameters(crawl, validate=False).check({"n": "x"}) == {"n": "x"}


def test_an_annotation_that_cannot_be_read_checks_nothing() -> None:
    def crawl(n: NoSuchType, m: int) -> None:  # type: ignore[name-defined] # noqa: F821 - there is none, on purpose
        pass

    assert parameters(crawl).check({"n": object, "m": "5"}) == {"n": object, "m": 5}


def test_a_secret_is_neither_stored_nor_shown_and_has_to_be_given_again() -> None:
    def crawl(token: pydantic.SecretStr, n: int = 1) -> None:
        pass

    p = parameters(crawl)
    stored = p.store(p.check({"token": "hunter2", "n": 1}))
    assert b"hunter2" not in stored
    assert masked(stored) == {"token": "**********", "n": 1}
    with pytest.raises(InvalidParameters, match="'token' is or holds a secret"):
        p.load(stored)
    assert p.load(stored, {"token": "again"}) == {"token": "again", "n": 1}
    with pytest.raises(InvalidParameters) as caught:
        p.check({"token": ["hunter2"]})
    assert "hunter2" not in str(caught.value)


def test_a_parameter_that_does_not_exist_is_not_ignored() -> None:
    def crawl(n: int) -> None:
        pass

    with pytest.raises(InvalidParameters, match="no parameter 'm'"):
        parameters(crawl).load(b'{"n": 1}', {"m": 2})


def test_what_cannot_be_stored_is_refused_with_a_remedy() -> None:
    def crawl(session: Any) -> None:
        pass

    with pytest.raises(InvalidParameters, match="'session' cannot be stored.*@resource"):
        parameters(crawl).store({"session": object()})


def test_parameters_that_are_too_large_are_refused() -> None:
    def crawl(data: str) -> None:
        pass

    with pytest.raises(InvalidParameters, match="pass a path or a URL"):
        parameters(crawl).store({"data": "x" * MOST_BYTES})


def test_a_type_that_only_pydantic_can_write_comes_back_through_its_annotation() -> None:
    def crawl(url: pydantic.HttpUrl) -> None:
        pass

    p = parameters(crawl)
    values = p.check({"url": "https://example.org/a"})
    assert json.loads(p.store(values)) == {"url": "https://example.org/a"}
    assert p.check(p.load(p.store(values))) == values
