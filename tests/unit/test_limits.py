"""Limits, rates and the lines of those who wait for them."""

from __future__ import annotations

from math import inf
from random import Random
from typing import Any

import pytest

from asyncflow import InvalidOption
from asyncflow.limits import Line, Rate, Slots, blocker


class Waiter:
    """Somebody in a line."""

    is_source = False

    def __init__(self, owner: object, name: str, priority: float = 0, eager: bool = False) -> None:
        self.owner, self.name = owner, name
        self.priority, self.eager = priority, eager
        self.limits: Any = ()


class Source(Waiter):
    """A map: many waiters in one place."""

    is_source = True


def served(line: Line) -> list[str]:
    names = []
    while line.n:
        names.append(line.head().name)
        line.pop()
    return names


@pytest.mark.parametrize("seed", range(5))
def test_a_rate_admits_no_more_than_its_limit_in_any_window(seed: int) -> None:
    random = Random(seed)
    limit, period = random.randint(1, 20), random.uniform(0.5, 5)
    rate, now, starts = Rate("r", limit, period), 0.0, []
    for _ in range(10_000):
        now += random.expovariate(limit / period * random.choice([0.2, 1, 5]))
        rate.refresh(now)
        units = random.randint(1, min(3, limit))
        if rate.used + units <= rate.size:
            rate.take(units, now)
            starts += [now] * units
    windows = zip(starts, starts[limit:], strict=False)
    assert all(later - first >= period for first, later in windows), f"seed {seed}"
    assert len(starts) > limit


def test_a_rate_says_when_the_next_may_start() -> None:
    rate = Rate("r", 2, 10)
    for at in (1.0, 3.0):
        rate.refresh(at)
        rate.take(1, at)
    rate.refresh(4.0)
    assert rate.next_time(1, 4.0) == 11.0
    assert rate.next_time(2, 4.0) == 13.0
    rate.refresh(11.0)
    assert rate.next_time(1, 11.0) == 11.0


def test_a_rate_of_nothing_and_more_units_than_there_are_never_come() -> None:
    assert Rate("r", 0, 1).next_time(1, 0.0) is None
    assert Rate("r", 2, 1).next_time(3, 0.0) is None


def test_a_burst_may_be_saved_and_is_earned_again() -> None:
    rate = Rate("r", 1, 1.0, burst=3)
    rate.refresh(0.0)
    rate.take(3, 0.0)
    assert rate.next_time(1, 0.0) == 1.0
    rate.refresh(0.5)
    assert rate.used + 1 > rate.size
    rate.refresh(1.0)
    assert rate.used + 1 <= rate.size
    rate.refresh(100.0)
    rate.take(3, 100.0)
    assert rate.used + 1 > rate.size


@pytest.mark.parametrize("wrong", [-1, "5", True, float("nan"), None])
def test_a_rate_of_an_impossible_size_is_refused(wrong: Any) -> None:
    with pytest.raises(InvalidOption, match="'r'"):
        Rate("r", wrong, 1)


@pytest.mark.parametrize("wrong", [0, -1, float("nan")])
def test_a_rate_of_an_impossible_period_is_refused(wrong: float) -> None:
    with pytest.raises(InvalidOption, match="seconds above 0"):
        Rate("r", 1, wrong)


def test_a_limit_of_none_admits_all_and_of_nought_nobody() -> None:
    assert Slots("s", None).size == inf
    assert blocker(((Slots("s", 0), 1),)) is not None
    assert blocker(((Slots("s", None), 10**9),)) is None


def test_a_share_is_never_more_than_the_limit() -> None:
    slots = Slots("s", 3)
    slots.allot(2)
    assert (slots.size, slots.whole) == (2, 3)
    slots.resize(1)
    assert slots.size == 1
    slots.allot(10)
    assert slots.size == 1


def test_first_come_first_served() -> None:
    line, run = Line(), object()
    for name in "abc":
        line.push(Waiter(run, name))
    assert served(line) == ["a", "b", "c"]


def test_the_higher_priority_goes_first() -> None:
    line, run = Line(), object()
    for name, priority in (("low", -1), ("a", 0), ("high", 5), ("b", 0)):
        line.push(Waiter(run, name, priority))
    assert served(line) == ["high", "a", "b", "low"]


def test_runs_take_turns() -> None:
    line, large, small = Line(), object(), object()
    for n in range(10_000):
        line.push(Waiter(large, f"large {n}"))
    for n in range(10):
        line.push(Waiter(small, f"small {n}"))
    names = served(line)
    last = names.index("small 9")
    assert sum(name.startswith("large") for name in names[:last]) <= 10


def test_a_map_gives_up_its_turn_and_stays() -> None:
    line, one, other = Line(), object(), object()
    line.push(Source(one, "map"))
    line.push(Waiter(other, "call"))
    assert line.head().name == "map"
    line.pass_turn()
    assert line.head().name == "call"
    line.pop()
    assert line.head().name == "map"
    assert line.n == 1


def test_whose_upstream_has_ended_goes_before_who_begins_something_new() -> None:
    line, run = Line(), object()
    line.push(Waiter(run, "fresh"))
    line.push(Waiter(run, "eager", eager=True))
    assert served(line) == ["eager", "fresh"]
