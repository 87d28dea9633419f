"""Who may take a command, and what becomes of it: a pure decision, tried by chance."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import pytest

from asyncflow import commands
from asyncflow.commands import HEAD_START, PATIENCE, CommandState
from asyncflow.store.planning import CommandRow

S = CommandState


def row(**changes: Any) -> CommandRow:
    made = CommandRow(1, "id", "rerun", "run", None, b"{}", None, "x", 0.0, PATIENCE, "WAITING")
    return made._replace(**changes)


def everybody(_: int) -> bool:
    return True


def nobody(_: int) -> bool:
    return False


def taken(now: float = 1.0, engine: int = 7) -> CommandRow:
    found = commands.taken(row(), engine, now, everybody)
    assert found is not None
    return found


def test_one_engine_takes_it_and_says_what_came_of_it() -> None:
    one = taken()
    assert (one.state, one.engine, one.taken, one.taken_at) == ("TAKEN", 7, 1, 1.0)
    assert commands.taken(one, 8, 2.0, everybody) is None, "another one is at it"
    assert commands.ended(one, 8, 2.0, failed=False, detail="") is None, "it is not theirs"
    end = commands.ended(one, 7, 2.0, failed=False, detail="done", made="new")
    assert end is not None
    assert (end.state, end.ended_at, end.made) == ("DONE", 2.0, "new")
    assert commands.ended(end, 7, 3.0, failed=True, detail="no") is None, "an end is an end"
    assert commands.taken(end, 7, 3.0, nobody) is None


def test_what_a_dead_engine_left_another_one_takes_and_the_time_for_it_begins_anew() -> None:
    one = taken(now=PATIENCE - 1)
    again = commands.taken(one, 8, PATIENCE + 5, nobody)
    assert again is not None
    assert (again.engine, again.taken, again.expires_at) == (8, 2, 2 * PATIENCE + 5)
    assert commands.ended(again, 7, PATIENCE + 6, failed=False, detail="") is None


def test_what_is_given_back_is_there_for_all() -> None:
    back = commands.given_back(taken(), 7)
    assert back is not None
    assert commands.taken(back, 8, 2.0, everybody) is not None
    assert commands.given_back(back, 7) is None


def test_nobody_takes_it_once_its_time_is_over() -> None:
    late = PATIENCE
    assert commands.taken(row(), 7, late, everybody) is None
    assert commands.is_over(row(), late, everybody)
    assert not commands.is_over(row(), late - 0.1, everybody)
    end = commands.lapsed(row(detail="no code"), late)
    assert end.state == "EXPIRED"
    assert end.detail.endswith("none does any more: no code")
    assert commands.shown(row(), late).state == "EXPIRED", "also before anybody has written it"
    assert commands.shown(row(), late - 0.1).state == "WAITING"


def test_one_that_a_living_engine_is_at_is_never_over() -> None:
    assert not commands.is_over(taken(), 1e6, everybody)
    assert commands.shown(taken(), 1e6) == taken()


@pytest.mark.parametrize(("made", "state"), [("new", "DONE"), (None, "FAILED")])
def test_what_the_last_engine_left_is_told_by_the_run_that_has_its_key(
    made: str | None, state: str
) -> None:
    one = taken()
    assert commands.is_over(one, one.expires_at, nobody)
    assert (commands.lapsed(one, 99.0, made).state, commands.lapsed(one, 99.0, made).made) == (
        state,
        made,
    )


def test_it_fails_at_once_when_no_engine_is_left_that_might_do_it() -> None:
    first = commands.declined(row(), 7, "no code", [7, 8], 1.0)
    assert first is not None
    assert (first.state, json.loads(first.declined), first.detail) == ("WAITING", [7], "no code")
    assert commands.taken(first, 8, 2.0, everybody) is not None
    last = commands.declined(first, 8, "no code either", [7, 8], 2.0)
    assert last is not None
    assert (last.state, last.detail) == (
        "FAILED",
        "no engine that is open can do it: no code either",
    )
    assert commands.declined(taken(), 8, "", [8], 2.0) is None, "somebody can"


def test_who_would_have_to_import_the_code_leaves_it_to_others_first() -> None:
    assert not commands.may_import(row(), HEAD_START - 0.1, alone=False)
    assert commands.may_import(row(), HEAD_START, alone=False)
    assert commands.may_import(row(), 0.0, alone=True)


@pytest.mark.parametrize(
    ("kind", "key", "expected"),
    [
        ("rerun", None, "command:id"),
        ("fork", "mine", "mine"),
        ("run", "mine", "mine"),
        ("run", None, "command:id"),
    ],
)
def test_the_run_that_it_makes_has_the_key_of_who_asked_or_one_of_its_own(
    kind: str, key: str | None, expected: str
) -> None:
    assert commands.run_key(row(kind=kind, key=key)) == expected


def test_a_run_has_moved_when_it_is_no_longer_in_the_state_of_then() -> None:
    assert commands.has_moved({"state_at": 1.0}, 2.0)
    assert not commands.has_moved({"state_at": 1.0}, 1.0)
    assert not commands.has_moved({}, 1.0)


def test_its_end_is_an_event() -> None:
    end = commands.lapsed(row(), 99.0)
    event = commands.event_of(end)
    assert (event.kind, event.time, event.run) == ("command.expired", 99.0, 0)
    assert json.loads(event.payload or b"") == {
        "command": "id", "kind": "rerun", "run_id": "run", "asked_by": "x",
    }  # fmt: skip


@pytest.mark.parametrize("first", range(0, 4000, 1000))
def test_whatever_happens_it_is_done_by_one_at_a_time_and_ends_once(first: int) -> None:
    for seed in range(first, first + 1000):
        play(seed)


def play(seed: int) -> None:
    """Engines come, take, die, end and decline by chance; the rules hold at each step."""
    chance = Random(seed)
    alive = set(range(1, 4))
    one, now, ends, holders = row(), 0.0, 0, set[int]()
    for _ in range(chance.randint(1, 30)):
        now += chance.choice([0.0, 0.5, 5.0, 40.0])
        engine = chance.randint(1, 4)
        before = one
        after: CommandRow | None = None
        step = chance.randint(0, 5)
        if step == 0 and engine in alive:
            after = commands.taken(one, engine, now, alive.__contains__)
            if after is not None:
                assert not (holders & alive), f"seed {seed}: two at once"
                assert now < before.expires_at, f"seed {seed}: taken too late"
                holders = {engine}
        elif step == 1 and engine in alive:
            failed = chance.random() < 0.5
            after = commands.ended(one, engine, now, failed=failed, detail="")
            assert after is None or holders == {engine}, f"seed {seed}"
        elif step == 2 and engine in alive:
            after = commands.declined(one, engine, "no", alive, now)
        elif step == 3 and engine in alive:
            after = commands.given_back(one, engine)
        elif step == 4:
            alive ^= {engine}
        elif commands.is_over(one, now, alive.__contains__):
            after = commands.lapsed(one, now)
            assert not (holders & alive), f"seed {seed}: somebody is still at it"
        if after is None:
            continue
        one = after
        assert before.ended_at is None, f"seed {seed}: something came after the end"
        if one.ended_at is not None:
            ends += 1
        if one.state != S.TAKEN:
            holders = set()
        if one.state == S.EXPIRED:
            assert one.engine is None, f"seed {seed}: it was taken, and is told never to have been"
    assert ends <= 1
    assert (one.ended_at is None) == (one.state in (S.WAITING, S.TAKEN)), f"seed {seed}"
