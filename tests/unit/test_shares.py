"""How engines divide a limit: never more than all of it, and nobody waits for ever."""

from __future__ import annotations

from random import Random

import pytest

from asyncflow.shares import QUANTUM, Demand, ShareRow, divide


class Table:
    """The rows of one limit, and the engines that live."""

    def __init__(self, whole: float, period: float | None = None) -> None:
        self.whole, self.period = whole, period
        self.rows: dict[int, ShareRow] = {}
        self.dead: set[int] = set()
        self.now = 100.0

    def ask(self, engine: int, wanted: float, used: float = 0.0, idle: bool = False) -> float:
        demand = Demand("x", self.whole, used, wanted, self.period, idle)
        rows = list(self.rows.values())
        part = divide(demand, engine, rows, lambda e: e not in self.dead, self.now)
        for row in part.gone:
            del self.rows[row.engine]
        for row in part.marked:
            self.rows[row.engine] = row
        if part.row is None:
            self.rows.pop(engine, None)
        else:
            self.rows[engine] = part.row
        assert sum(row.units for row in self.rows.values()) <= max(self.whole, used)
        return part.size


def test_an_engine_that_is_alone_has_all_of_it() -> None:
    assert Table(10).ask(1, wanted=1) == 10


def test_who_wants_nothing_has_nothing() -> None:
    table = Table(10)
    table.ask(1, wanted=3)
    assert table.ask(1, wanted=0) == 0
    assert table.rows == {}


def test_another_gets_its_fair_part_as_the_first_comes_down() -> None:
    table = Table(10)
    assert table.ask(1, wanted=20, used=10) == 10
    assert table.ask(2, wanted=20) == 0
    assert table.ask(1, wanted=20, used=10) == 5
    assert table.ask(2, wanted=20) == 0
    assert table.ask(1, wanted=15, used=5) == 5
    assert table.ask(2, wanted=20) == 5
    assert table.ask(1, wanted=15, used=5) == 5


def test_who_wants_less_than_its_fair_part_leaves_the_rest_to_others() -> None:
    table = Table(10)
    table.ask(1, wanted=20, used=2)
    table.ask(2, wanted=2)
    table.ask(1, wanted=20, used=2)
    assert table.ask(2, wanted=2) == 2
    assert table.ask(1, wanted=20, used=5) == 8


def test_two_engines_take_turns_with_one_unit() -> None:
    table = Table(1)
    assert table.ask(1, wanted=5) == 1
    assert table.ask(2, wanted=5) == 0
    assert table.ask(1, wanted=5, used=1) == 1
    table.now += QUANTUM
    assert table.ask(1, wanted=5, used=1) == 0, "it lets its code end and takes on no other"
    assert table.ask(2, wanted=5) == 0
    assert table.ask(1, wanted=5) == 0
    assert table.ask(2, wanted=5) == 1
    assert table.ask(1, wanted=5) == 0
    table.now += QUANTUM
    assert table.ask(2, wanted=5) == 0
    assert table.ask(1, wanted=5) == 1


def test_who_has_no_use_for_it_gives_the_only_unit_to_who_has() -> None:
    table = Table(1)
    assert table.ask(1, wanted=1, used=1) == 1
    assert table.ask(2, wanted=1) == 0
    assert table.ask(1, wanted=1, idle=True) == 0
    assert 1 not in table.rows
    assert table.ask(2, wanted=1) == 1
    assert table.ask(2, wanted=1, idle=True) == 1, "nobody else wants it: it is kept for a while"


def test_the_part_of_a_dead_engine_comes_back_at_once() -> None:
    table = Table(3)
    table.ask(1, wanted=3, used=3)
    table.dead.add(1)
    assert table.ask(2, wanted=1) == 3


def test_the_part_of_a_dead_engine_in_a_rate_comes_back_after_its_period() -> None:
    table = Table(3, period=10.0)
    table.ask(1, wanted=3, used=3)
    table.dead.add(1)
    assert table.ask(2, wanted=1) == 0
    table.now += 9.9
    assert table.ask(2, wanted=1) == 0
    table.now += 0.2
    assert table.ask(2, wanted=1) == 3


@pytest.mark.parametrize("seed", range(200))
def test_any_history_keeps_the_limit_and_serves_everybody(seed: int) -> None:
    random = Random(seed)
    table = Table(random.choice([1, 2, 3, 10]))
    engines = range(1, random.randint(2, 5))
    used = dict.fromkeys(engines, 0)
    size = dict.fromkeys(engines, 0.0)
    served = dict.fromkeys(engines, 0)
    for _ in range(600):
        table.now += 0.05
        engine = random.choice(list(engines))
        # Its code ends and begins as far as it was allowed to.
        used[engine] -= random.randint(0, used[engine])
        while used[engine] < size[engine]:
            used[engine] += 1
            served[engine] += 1
        size[engine] = table.ask(engine, used[engine] + 5.0, used[engine])
        assert sum(used.values()) <= table.whole, f"seed {seed}"
    assert all(served.values()), f"seed {seed}: {served}"


def test_a_clock_that_was_set_back_does_not_hold_back_a_dead_engines_part_for_long() -> None:
    table = Table(10, period=5.0)
    table.ask(1, wanted=20, used=10)
    table.dead = {1}
    assert table.ask(2, wanted=20) == 0
    table.now -= 3600
    assert table.ask(2, wanted=20) == 0
    table.now += 5
    assert table.ask(2, wanted=20) == 10


def test_a_clock_that_was_set_back_lets_engines_take_turns_all_the_same() -> None:
    table = Table(1)
    table.ask(1, wanted=5, used=1)
    assert table.ask(2, wanted=5) == 0
    table.now -= 3600
    assert table.ask(1, wanted=5, used=1) == 1
    table.now += QUANTUM
    assert table.ask(1, wanted=5) == 0
    assert table.ask(2, wanted=5) == 1
