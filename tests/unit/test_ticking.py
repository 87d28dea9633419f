"""What is due of a schedule, by the clock and the policy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from random import Random
from typing import Any

import pytest

from asyncflow.ticking import MOST, ROWS, Plan, Policy, Timing, plan, upcoming


@dataclass(frozen=True)
class Every:
    """Ticks at all multiples of some seconds."""

    seconds: float

    def ticks(self, after: datetime) -> Iterator[datetime]:
        n = after.timestamp() // self.seconds + 1
        while True:
            yield datetime.fromtimestamp(n * self.seconds, UTC)
            n += 1


def timing(seconds: float, **options: Any) -> Timing:
    return Timing(schedule=Every(seconds), seed="a", **options)  # type: ignore[arg-type] # a stand-in


def noted(found: Plan) -> list[tuple[float, str, int]]:
    return [(note.tick, note.state, note.count) for note in found.notes]


def test_nothing_is_due_before_the_first_tick() -> None:
    found = plan(timing(10), 100.0, 109.9, Policy())
    assert (found.run, found.notes, found.position, found.next_at) == ([], [], 100.0, 110.0)


def test_a_tick_runs_once_its_time_has_come() -> None:
    found = plan(timing(10), 100.0, 110.0, Policy())
    assert (found.run, found.position, found.next_at) == ([110.0], 110.0, 120.0)
    assert plan(timing(10), found.position, 110.0, Policy()).run == []


@pytest.mark.parametrize(
    ("policy", "run", "missed"),
    [
        (Policy(catchup="latest"), [300.0], [110.0, 290.0]),
        (Policy(catchup="all"), [110.0, 300.0], []),
        (Policy(catchup="all", catchup_limit=3), [280.0, 300.0], [110.0, 270.0]),
        (Policy(catchup="skip"), [280.0, 300.0], [110.0, 270.0]),
        (Policy(catchup="skip", grace=0.0), [], [110.0, 300.0]),
    ],
)
def test_what_has_passed_is_caught_up_by_the_policy(
    policy: Policy, run: list[float], missed: list[float]
) -> None:
    found = plan(timing(10), 100.0, 305.0, policy)
    ends = [found.run[0], found.run[-1]] if len(found.run) > 1 else found.run
    assert ends == run
    ticks = [note.tick for note in found.notes]
    assert [ticks[0], ticks[-1]] == missed if missed else not ticks
    assert {note.state for note in found.notes} <= {"MISSED"}
    assert len(found.run) + sum(note.count for note in found.notes) == 20
    assert found.position == 300.0


def test_a_day_asleep_is_one_run_and_one_row() -> None:
    found = plan(timing(300), 0.0, 86_400.0, Policy())
    assert found.run == [86_400.0]
    (note,) = found.notes
    assert (note.tick, note.until, note.count) == (300.0, 86_100.0, 287)
    assert ROWS < 287


def test_a_year_of_seconds_is_not_looked_at_one_by_one() -> None:
    year = 365 * 86_400.0
    found = plan(timing(1), 0.0, year, Policy())
    assert found.run == [year]
    assert found.next_at == year + 1
    assert sum(note.count for note in found.notes) < 3 * MOST
    assert plan(timing(1), found.position, year, Policy()).run == []


def test_a_paused_schedule_runs_nothing_and_says_why() -> None:
    found = plan(timing(10, paused="by hand"), 100.0, 125.0, Policy(catchup="all"))
    assert found.run == []
    assert noted(found) == [(110.0, "SKIPPED", 1), (120.0, "SKIPPED", 1)]
    assert {note.reason for note in found.notes} == {"by hand"}
    assert found.position == 120.0


def test_ticks_before_the_start_and_after_the_end_do_not_count() -> None:
    found = plan(timing(10, start=120.0, end=140.0), 0.0, 1000.0, Policy(catchup="all"))
    assert found.run == [120.0, 130.0, 140.0]
    assert found.next_at is None
    assert noted(found) == []


def test_jitter_is_the_same_for_a_tick_and_ends_before_the_next() -> None:
    spread = timing(10, jitter=60.0)
    first = upcoming(spread, 100.0, 50)
    assert first == upcoming(spread, 100.0, 50)
    assert all(0 <= at - tick < 10 for tick, at in first)
    assert len({round(at - tick, 3) for tick, at in first}) > 25
    assert all(one[1] < two[1] for one, two in pairwise(first))
    tick, at = first[0]
    assert plan(spread, 100.0, at - 1e-3, Policy()).run == []
    assert plan(spread, 100.0, at, Policy()).run == [tick]


def test_the_clock_going_back_runs_nothing_twice() -> None:
    found = plan(timing(10), 100.0, 150.0, Policy())
    assert plan(timing(10), found.position, 120.0, Policy()).run == []
    assert plan(timing(10), found.position, 160.0, Policy()).run == [160.0]


@pytest.mark.parametrize("seed", range(20))
def test_however_often_it_looks_each_tick_is_dealt_with_once(seed: int) -> None:
    random = Random(seed)
    policy = Policy(catchup=random.choice(["latest", "skip", "all"]), catchup_limit=5)
    position, now = 0.0, 0.0
    seen: list[float] = []
    for _ in range(50):
        now = max(0.0, now + random.choice([0.5, 3.0, 11.0, 60.0, -20.0]))
        found = plan(timing(7, jitter=random.choice([0.0, 3.0])), position, now, policy)
        assert found.position >= position
        position = found.position
        dealt = [*found.run]
        for note in found.notes:
            dealt += [note.tick + 7 * n for n in range(note.count)]
        seen += sorted(dealt)
    assert seen == [7.0 * n for n in range(1, len(seen) + 1)], f"seed {seed}"
