"""The states of runs, and the only moves between them."""

from __future__ import annotations

import pytest

from asyncflow import (
    Cancelled,
    Completed,
    Failed,
    NotReady,
    RunCrashed,
    RunFailed,
    RunInterrupted,
    State,
    StateType,
    TaskCancelled,
)
from asyncflow.states import MOVES, TERMINAL, default_name, types_and_names


def test_nothing_follows_a_terminal_state() -> None:
    assert {"COMPLETED", "FAILED", "CANCELLED", "CRASHED"} == {s.value for s in TERMINAL}
    assert all(s.is_final == (s in TERMINAL) for s in StateType)


def test_every_state_can_be_reached_and_every_unfinished_one_can_end() -> None:
    reached = set().union(*MOVES.values())
    assert reached == set(StateType)
    for state in StateType:
        if not state.is_final:
            assert MOVES[state] & TERMINAL


def test_the_bits_say_what_the_table_says() -> None:
    for before in StateType:
        for after in StateType:
            assert bool(before.next_bits & after.bit) == (after in MOVES[before])


@pytest.mark.parametrize("type_", StateType)
def test_exactly_one_question_is_answered_with_yes(type_: StateType) -> None:
    state: State[None] = State(type_)
    questions = [f"is_{s.value.lower()}" for s in StateType]
    assert [q for q in questions if getattr(state, q)()] == [f"is_{type_.value.lower()}"]
    assert state.is_final() == type_.is_final
    assert state.name == default_name(type_)


def test_the_result_of_a_state() -> None:
    assert Completed(5).result() == 5
    assert isinstance(Failed("no").result(raise_on_failure=False), RunFailed)
    with pytest.raises(KeyError):
        Failed(error=KeyError("x")).result()
    with pytest.raises(TaskCancelled, match="enough"):
        Cancelled("enough").result()
    with pytest.raises(RunCrashed):
        State(StateType.CRASHED).result()
    with pytest.raises(RunInterrupted):
        State(StateType.PAUSED).result()
    with pytest.raises(NotReady, match="Running"):
        State(StateType.RUNNING).result()


def test_a_state_reads_as_its_name_and_message() -> None:
    assert str(Failed("no luck")) == "Failed: no luck"
    assert str(Completed(1)) == "Completed"


def test_types_and_names_of_states_are_told_apart_in_any_case() -> None:
    assert types_and_names(["failed", "Crashed", "timedOUT"]) == (
        ("FAILED", "CRASHED"),
        ("TimedOut",),
    )
    assert types_and_names("Failed") == types_and_names(StateType.FAILED) == (("FAILED",), ())
    assert types_and_names(None) == ((), ())
    with pytest.raises(ValueError, match="'lost' is not a state: use one of SCHEDULED"):
        types_and_names(["lost"])
