"""Exceptions survive the store: type, text, notes, causes; and nothing hostile gets through."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from asyncflow import RecordedFailure, RetryAfter
from asyncflow.failures import TEXT, blame, blamed, dump, rebuild, record, summary


class Doomed(Exception):
    def __init__(self, reason: str, code: int = 0) -> None:
        super().__init__(reason, code)
        self.reason, self.code = reason, code


class Counted(Exception):
    made = 0

    def __init__(self, *args: object) -> None:
        Counted.made += 1
        super().__init__(*args)


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("nothing to say")

    __repr__ = __str__


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


@pytest.mark.parametrize(
    "error",
    [
        ValueError("x", 5),
        KeyError(("a", 1)),
        Doomed("late", 3),
        FileNotFoundError(2, "No such file", "f.txt"),
        RetryAfter(5),
        TimeoutError("late"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_exception_comes_back_as_what_it_was(error: Exception) -> None:
    found = rebuild(dump(raised(error)))
    assert type(found) is type(error)
    assert str(found) == str(error)
    assert found.args == error.args


def test_attributes_come_back_and_no_init_runs() -> None:
    found = rebuild(dump(raised(Doomed("late", 3))))
    assert isinstance(found, Doomed)
    assert (found.reason, found.code) == ("late", 3)
    error = Counted("x")
    before = Counted.made
    assert type(rebuild(dump(error))) is Counted
    assert Counted.made == before


def test_notes_and_causes_come_back() -> None:
    error = ValueError("outer")
    error.add_note("a note")
    try:
        raise error from KeyError("inner")
    except ValueError as caught:
        found = rebuild(dump(caught))
    assert found.__notes__ == ["a note"]
    assert isinstance(found.__cause__, KeyError)


def test_groups_come_back_with_their_members() -> None:
    group = ExceptionGroup("many", [ValueError("a"), ExceptionGroup("in", [Doomed("b")])])
    found = rebuild(dump(raised(group)))
    assert isinstance(found, ExceptionGroup)
    assert [type(e) for e in found.exceptions] == [ValueError, ExceptionGroup]
    assert found.exceptions[1].exceptions[0].reason == "b"  # type: ignore[attr-defined] # it is a group


def test_a_type_that_cannot_be_found_becomes_a_recorded_failure() -> None:
    class Local(Exception):
        pass

    found = rebuild(dump(raised(Local("here"))))
    assert isinstance(found, RecordedFailure)
    assert found.text == "here"
    assert "Local" in found.type_name
    assert "in raised" in (found.traceback or "")


def test_of_arguments_that_cannot_be_stored_the_text_is_kept_and_the_type_still_matches() -> None:
    found = rebuild(dump(raised(ValueError(object()))))
    assert type(found) is ValueError
    assert str(found).startswith("<object object")


def test_an_exception_that_cannot_say_what_it_is_can_be_stored() -> None:
    data = dump(raised(Mute()))
    assert isinstance(summary(data), str)
    assert isinstance(rebuild(data), BaseException)


def test_a_huge_message_is_cut() -> None:
    found = record(ValueError("x" * 1_000_000))
    assert len(json.dumps(found)) < 3 * TEXT


def test_a_circle_of_causes_ends() -> None:
    one, other = ValueError("one"), ValueError("other")
    one.__cause__, other.__cause__ = other, one
    assert isinstance(rebuild(dump(one)), ValueError)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, asyncio.CancelledError])
def test_what_ends_programs_is_never_made_again(kind: type[BaseException]) -> None:
    assert isinstance(rebuild(dump(raised(kind("x")))), RecordedFailure)


@pytest.mark.parametrize(
    "stored",
    [
        None,
        b"",
        b"null",
        b"nonsense",
        b"[1]",
        b'{"type": 5}',
        b'{"type": "os:system", "args": ["true"], "text": "t"}',
        b'{"type": "builtins:eval", "args": ["1"], "text": "t"}',
        b'{"type": "no.such.module:Error", "args": [], "text": "t"}',
        b'{"type": "builtins:ExceptionGroup", "message": "m", "members": "x"}',
    ],
    ids=repr,
)
def test_a_record_that_nobody_made_gives_a_failure_and_does_nothing(stored: Any) -> None:
    assert isinstance(rebuild(stored), RecordedFailure | ExceptionGroup)
    assert isinstance(summary(stored), str)


def test_an_exception_remembers_whose_end_it_is_also_through_causes() -> None:
    class Run:
        pk = 7

    class Call:
        run = Run
        seq = 3

    inner = ValueError()
    blame(inner, Call)  # type: ignore[arg-type] # a class for a call
    outer = RuntimeError()
    outer.__cause__ = inner
    assert blamed(ExceptionGroup("g", [outer])) == {(7, 3)}
