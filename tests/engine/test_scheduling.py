"""Deployments whose runs begin by themselves: in virtual time, over restarts, in many engines."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from asyncflow import (
    Cron,
    Deployment,
    DeploymentBusy,
    DeploymentSchedule,
    Engine,
    Interval,
    InvalidOption,
    InvalidParameters,
    MemoryStore,
    UnknownDeployment,
    flow,
    runtime,
    serve,
    testing,
)
from asyncflow.planned import Tick

ran: list[tuple[str, Any]] = []


@pytest.fixture(autouse=True)
def _nothing_ran() -> None:
    ran.clear()


@flow
async def note(what: str = "x", seconds: float = 0.0) -> str:
    ran.append((what, runtime.flow_run.scheduled_at))
    await asyncio.sleep(seconds)
    return what


@flow
async def needs(n: int) -> int:
    return n


def virtually(main: Coroutine[Any, Any, Any]) -> Any:
    return testing.run(main)


def at(seconds: float) -> datetime:
    """A point in virtual time."""
    return datetime.fromtimestamp(testing.START + seconds, UTC)


async def states(engine: Engine, name: str = "note") -> list[str]:
    return [tick.state for tick in (await engine.ticks(name))[::-1]]


def every(seconds: float) -> Interval:
    """Ticks at multiples of some seconds of virtual time."""
    return Interval(seconds, anchor=at(0))


def test_runs_begin_at_their_ticks_and_know_them() -> None:
    async def main() -> None:
        async with testing.engine() as engine:
            await engine.deploy(note, schedule=every(10))
            await asyncio.sleep(35)
            assert ran == [("x", at(10)), ("x", at(20)), ("x", at(30))]
            ticks = await engine.ticks("note")
            assert [tick.tick for tick in ticks] == [at(30), at(20), at(10)]
            assert {tick.state for tick in ticks} == {"RUN"}
            assert max((t.decided_at - t.tick).total_seconds() for t in ticks) < 0.05
            runs = await engine.runs(flow="note")
            assert {run.id for run in runs} == {tick.run_id for tick in ticks}

    virtually(main())


def test_schedules_have_their_own_parameters_and_deployments_tags() -> None:
    async def main() -> None:
        async with testing.engine() as engine:
            await engine.deploy(
                note,
                "two",
                schedules=[
                    DeploymentSchedule(every(10), "often", {"what": "a"}),
                    DeploymentSchedule(every(15), "seldom", {"what": "b"}),
                ],
                tags=["nightly"],
                overlap="allow",
            )
            await asyncio.sleep(31)
            assert sorted(what for what, _ in ran) == ["a", "a", "a", "b", "b"]
            (run, *_) = await engine.runs(flow="note")
            assert run.tags == ["nightly"]

    virtually(main())


def test_what_passed_while_nobody_was_there_is_caught_up_once() -> None:
    async def main() -> None:
        store = MemoryStore()
        async with testing.engine(store=store) as engine:
            await engine.deploy(note, schedule=every(300))
            await asyncio.sleep(301)
        await asyncio.sleep(86_460)
        async with testing.engine(store=store) as engine:
            await engine.deploy(note, schedule=every(300))
            await asyncio.sleep(1)
            assert [when for _, when in ran] == [at(300), at(86_700)]
            ticks = await engine.ticks("note", states="missed")
            assert sum(tick.count for tick in ticks) == 287
            assert "nobody was there" in ticks[0].reason
            events = await engine.events(kinds="schedule.missed")
            assert events[0].payload["count"] == 287
            (late,) = await engine.events(kinds="schedule.late")
            assert late.run_id == (await engine.ticks("note", states="run"))[0].run_id

    virtually(main())


@pytest.mark.parametrize(
    ("catchup", "expected"), [("skip", []), ("all", [10, 20, 30, 40, 50]), ("latest", [50])]
)
def test_the_policy_says_what_is_caught_up(catchup: str, expected: list[int]) -> None:
    async def main() -> None:
        store = MemoryStore()
        async with testing.engine(store=store) as engine:
            await engine.deploy(note, schedule=every(10), catchup=catchup, overlap="allow")
        await asyncio.sleep(100_000 if catchup == "skip" else 55)
        async with testing.engine(store=store) as engine:
            await engine.deploy(note, schedule=every(10), catchup=catchup, overlap="allow")
            await asyncio.sleep(1)
        assert [when for _, when in ran][: len(expected)] == [at(s) for s in expected]

    virtually(main())


def test_a_run_that_begins_late_begins_in_the_state_late() -> None:
    async def main() -> None:
        store = MemoryStore()
        async with testing.engine(store=store) as engine:
            await engine.deploy(note, schedule=every(100))
        await asyncio.sleep(150)
        async with testing.engine(store=store) as engine:
            await engine.deploy(note, schedule=every(100))
            await asyncio.sleep(1)
            (run,) = await engine.runs()
            names = [event.name for event in await engine.events(run.id)]
            assert names[:2] == ["Late", "late"]
            assert names[-1] == "Completed"

    virtually(main())


@pytest.mark.parametrize(
    ("overlap", "expected", "began"),
    [
        ("skip", ["RUN", "SKIPPED", "RUN", "SKIPPED"], [10, 30]),
        ("queue", ["RUN", "RUN", "RUN", "QUEUED"], [10, 20, 30]),
        ("cancel_running", ["RUN", "RUN", "RUN", "RUN"], [10, 20, 30, 40]),
        ("allow", ["RUN", "RUN", "RUN", "RUN"], [10, 20, 30, 40]),
    ],
)
def test_a_tick_while_another_run_is_going_on(
    overlap: str, expected: list[str], began: list[int]
) -> None:
    async def main() -> None:
        async with testing.engine() as engine:
            await engine.deploy(
                note, schedule=every(10), overlap=overlap, parameters={"seconds": 14}
            )
            await asyncio.sleep(41)
            assert await states(engine) == expected
            assert [when for _, when in ran] == [at(s) for s in began]
            runs = [run.state.name for run in await engine.runs()]
            assert ("Cancelled" in runs) == (overlap == "cancel_running")

    virtually(main())


def test_a_paused_deployment_runs_nothing_and_what_passed_stays_past() -> None:
    async def main() -> None:
        store = MemoryStore()
        async with testing.engine(store=store) as engine, testing.engine(store=store) as other:
            await engine.deploy(note, schedule=every(10))
            await asyncio.sleep(11)
            await other.pause_deployment("note")
            await asyncio.sleep(30)
            assert [when for _, when in ran] == [at(10)]
            (info,) = await other.deployments()
            assert info.paused
            assert info.schedules[0].next_at == []
            await other.resume_deployment("note")
            await asyncio.sleep(10)
            assert [when for _, when in ran] == [at(10), at(50)]
            assert await states(engine) == ["RUN", "SKIPPED", "SKIPPED", "SKIPPED", "RUN"]
            (tick,) = await engine.ticks("note", states="skipped", limit=1)
            assert tick.reason == "the deployment is paused"

    virtually(main())


def test_one_schedule_is_paused_and_the_other_goes_on() -> None:
    async def main() -> None:
        async with testing.engine() as engine:
            schedules = [
                DeploymentSchedule(every(10), "a", {"what": "a"}),
                DeploymentSchedule(every(10), "b", {"what": "b"}, paused=True),
            ]
            await engine.deploy(note, schedules=schedules, overlap="allow")
            await asyncio.sleep(11)
            assert [what for what, _ in ran] == ["a"]
            await engine.pause_deployment("note", "a")
            await engine.resume_deployment("note", "b")
            await asyncio.sleep(10)
            assert [what for what, _ in ran] == ["a", "b"]
            with pytest.raises(UnknownDeployment, match="no schedule 'c'"):
                await engine.pause_deployment("note", "c")

    virtually(main())


def test_a_schedule_that_is_edited_or_removed_never_runs_the_past() -> None:
    async def main() -> None:
        store = MemoryStore()
        async with testing.engine(store=store) as engine:
            await engine.deploy(note, schedules=[DeploymentSchedule(every(100), "s")])
            await asyncio.sleep(50)
        await asyncio.sleep(500)
        async with testing.engine(store=store) as engine:
            await engine.deploy(note, schedules=[DeploymentSchedule(every(7), "s")])
            await asyncio.sleep(1)
            assert ran == []
            await asyncio.sleep(7)
            assert len(ran) == 1
            await engine.deploy(note, schedules=[])
            await asyncio.sleep(50)
            assert len(ran) == 1
            (info,) = (await engine.deployment("note")).schedules
            assert (info.paused, info.reason) == (True, "it is declared no more")

    virtually(main())


def test_two_engines_with_one_deployment_run_each_tick_once() -> None:
    async def main() -> None:
        store = MemoryStore()
        async with testing.engine(store=store) as one, testing.engine(store=store) as two:
            for engine in (one, two):
                await engine.deploy(note, schedule=every(1), overlap="allow")
            await asyncio.sleep(500.5)
            ticks: list[Tick] = await one.ticks("note", limit=1000)
            assert {tick.state for tick in ticks} == {"RUN"}
            assert [when for _, when in ran] == [at(s) for s in range(1, 501)]
            assert len({tick.run_id for tick in ticks}) == 500

    virtually(main())


def test_a_backfill_runs_the_past_at_its_own_pace_and_over_a_restart() -> None:
    async def main() -> None:
        store = MemoryStore()
        async with testing.engine(store=store) as engine:
            await engine.deploy(note, schedule=every(100), parameters={"seconds": 5})
            number, queued = await engine.backfill("note", at(-1000), at(0), max_concurrency=2)
            assert (number, queued) == (1, 10)
            await asyncio.sleep(11)
            assert len(ran) == 6
        async with testing.engine(store=store) as engine:
            await engine.deploy(note, schedule=every(100), parameters={"seconds": 5})
            await engine.recover()
            assert await engine.backfilled("note", 1) == {"COMPLETED": 10}
            assert {when for _, when in ran} == {at(-100 * n) for n in range(1, 11)}
            _, queued = await engine.backfill("note", at(-1000), at(0))
            assert queued == 0

    virtually(main())


def test_a_run_by_hand_obeys_the_overlap_policy() -> None:
    async def main() -> None:
        async with testing.engine() as engine:
            await engine.deploy(note, "by hand", parameters={"seconds": 5})
            run = await engine.run_deployment("by hand", {"what": "me"}, idempotency_key="k")
            with pytest.raises(DeploymentBusy, match=run.id):
                await engine.run_deployment("by hand")
            assert await run == "me"
            again = await engine.run_deployment("by hand", idempotency_key="k")
            assert again.id == run.id
            assert await (await engine.run_deployment("by hand")) == "x"
            with pytest.raises(UnknownDeployment):
                await engine.run_deployment("nothing")
            with pytest.raises(InvalidParameters):
                await engine.run_deployment("by hand", {"nonsense": 1})

    virtually(main())


@pytest.mark.parametrize("overlap", ["skip", "cancel_running"])
def test_a_run_by_hand_that_is_going_on_is_what_the_same_key_gives(overlap: Any) -> None:
    async def main() -> None:
        async with testing.engine() as engine:
            await engine.deploy(note, "by hand", parameters={"seconds": 5}, overlap=overlap)
            run = await engine.run_deployment("by hand", idempotency_key="k")
            again = await engine.run_deployment("by hand", idempotency_key="k")
            assert again.id == run.id
            assert await run == "x", "nothing was cancelled for it"

    virtually(main())


def test_jitter_spreads_runs_and_leaves_their_planned_time() -> None:
    async def main() -> None:
        async with testing.engine() as engine:
            for n in range(20):
                spread = DeploymentSchedule(every(100), jitter_seconds=50)
                await engine.deploy(note, f"d{n}", schedules=[spread])
            await asyncio.sleep(99)
            assert ran == []
            await asyncio.sleep(52)
            assert {when for _, when in ran} == {at(100)}
            assert len(ran) == 20
            runs = await engine.runs()
            begun = [run.started_at for run in runs if run.started_at is not None]
            assert (max(begun) - min(begun)).total_seconds() > 20

    virtually(main())


def test_all_that_is_stored_is_served_and_what_is_not_found_named() -> None:
    async def main() -> None:
        store = MemoryStore()
        async with testing.engine(store=store) as engine:
            await engine.deploy(note, "a", schedule=every(10), parameters={"what": "a"})

            @flow
            async def local() -> None: ...

            await engine.deploy(local, "lost")
            del local
        async with testing.engine(store=store) as engine:
            unknown = await engine.serve()
            await asyncio.sleep(11)
            assert [what for what, _ in ran] == ["a"]
            assert unknown in ([], ["lost"])  # it lives as long as nobody has collected it

    virtually(main())


def test_a_deployment_that_is_removed_runs_no_more() -> None:
    async def main() -> None:
        store = MemoryStore()
        async with testing.engine(store=store) as engine, testing.engine(store=store) as other:
            await engine.deploy(note, schedule=every(10))
            await asyncio.sleep(11)
            await other.remove_deployment("note")
            await asyncio.sleep(30)
            assert len(ran) == 1
            assert len(await engine.runs()) == 1
            with pytest.raises(UnknownDeployment):
                await engine.ticks("note")

    virtually(main())


def test_a_schedule_that_nobody_looks_after_is_late() -> None:
    async def main() -> None:
        store = MemoryStore()
        async with testing.engine(store=store) as engine:
            await engine.deploy(note, schedule=every(100))
            await asyncio.sleep(150)
            (schedule,) = (await engine.deployment("note")).schedules
            assert schedule.late_since is None
        await asyncio.sleep(300)
        async with testing.engine(store=store) as engine:
            (schedule,) = (await engine.deployment("note")).schedules
            assert schedule.late_since == at(200)

    virtually(main())


def test_a_schedule_ends_and_one_that_has_not_started_waits() -> None:
    async def main() -> None:
        async with testing.engine() as engine:
            bounded = DeploymentSchedule(every(10), start=at(25), end=at(40))
            await engine.deploy(note, schedules=[bounded])
            await asyncio.sleep(100)
            assert [when for _, when in ran] == [at(30), at(40)]

    virtually(main())


def test_the_wall_clock_may_jump() -> None:
    class Jumping:
        def __init__(self) -> None:
            self.loop = asyncio.get_running_loop()
            self.offset = 0.0

        def time(self) -> float:
            return testing.START + self.loop.time() + self.offset

    async def main() -> None:
        clock = Jumping()
        async with testing.engine(clock=clock) as engine:
            await engine.deploy(note, schedule=every(100), overlap="allow")
            await asyncio.sleep(101)
            clock.offset = 3600.0  # as after a suspend
            await asyncio.sleep(2)
            assert [when for _, when in ran] == [at(100), at(3700)]
            clock.offset = -50.0  # set back: nothing runs twice
            await asyncio.sleep(200)
            assert [when for _, when in ran] == [at(100), at(3700)]
            clock.offset = 3600.0
            await asyncio.sleep(2)
            assert [when for _, when in ran] == [at(100), at(3700), at(3900)]

    virtually(main())


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"overlap": "never"}, InvalidOption, "overlap='never'"),
        ({"catchup": 3}, InvalidOption, "catchup=3"),
        ({"concurrency_limit": 0}, InvalidOption, "concurrency_limit=0"),
        ({"corn": "* * * * *"}, InvalidOption, "no option 'corn'"),
        ({"name": "../etc"}, InvalidOption, "deployment name"),
        ({"schedules": [3]}, InvalidOption, "Cron"),
        ({"parameters": {"m": 1}}, InvalidParameters, "no parameter 'm'"),
        ({"interval": 10}, InvalidParameters, "'n'"),
        ({"interval": 10, "parameters": {"n": "x"}}, InvalidParameters, "'x' is not accepted"),
        (
            {"schedules": [DeploymentSchedule(Interval(5), "a")] * 2, "parameters": {"n": 1}},
            InvalidOption,
            "2 schedules called 'a'",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_when_it_is_declared(
    options: dict[str, Any], error: type[Exception], text: str
) -> None:
    options = dict(options)
    name = options.pop("name", "d")
    with pytest.raises(error, match=text.replace("(", r"\(")):
        needs.to_deployment(name, **options)


def test_an_end_before_the_start_and_a_naive_date_are_refused() -> None:
    with pytest.raises(InvalidOption, match="is not after its start"):
        DeploymentSchedule(Interval(5), start=at(10), end=at(5))
    with pytest.raises(InvalidOption, match="aware"):
        DeploymentSchedule(Interval(5), start=datetime(2026, 1, 1))


def test_a_deployment_is_a_value_with_its_schedules_in_short() -> None:
    made = note.to_deployment("d", cron=["0 9 * * 1-5", "@daily"], timezone="Europe/Berlin")
    assert isinstance(made, Deployment)
    assert made.schedules[0].schedule == Cron("0 9 * * 1-5", timezone="Europe/Berlin")
    assert len(made.schedules) == 2
    assert note.to_deployment(interval=timedelta(minutes=5)).name == "note"


async def test_serve_says_that_it_would_block_the_loop() -> None:
    with pytest.raises(InvalidOption, match="needs a deployment"):
        serve()
    with pytest.raises(RuntimeError, match=r"await engine.deploy"):
        serve(note.to_deployment(interval=5))
