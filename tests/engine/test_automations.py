"""What is done by itself when something happens: over restarts, in several engines, once."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from asyncflow import (
    AbsenceTrigger,
    AllOf,
    Automation,
    AutomationLoop,
    CallFunction,
    CancelRun,
    DurationTrigger,
    Engine,
    EventTrigger,
    InvalidOption,
    MemoryStore,
    PauseSchedule,
    ResumeRun,
    RunDeployment,
    SetLimit,
    UnknownAutomation,
    concurrency,
    emit_event,
    flow,
    task,
    testing,
)
from asyncflow.planned import Delivery
from asyncflow.triggers import Firing

called: list[Any] = []
broken = True


@pytest.fixture(autouse=True)
def _fresh() -> None:
    global broken
    broken = True
    called.clear()


@task
async def fails() -> None:
    raise RuntimeError("no")


@flow
async def doomed(n: int = 0) -> int:
    if broken:
        await fails()
    return n


@flow
async def mend(run_id: str = "", n: int = 0) -> str:
    called.append(("mend", run_id))
    return run_id


@flow
async def long(seconds: float = 1000.0) -> None:
    await asyncio.sleep(seconds)


@flow
async def tells(kind: str, times: int = 1) -> None:
    for n in range(times):
        await emit_event(kind, {"n": n}, message=f"number {n}")


async def note(firing: Firing) -> str:
    called.append(firing.event.name if firing.event is not None else None)
    return "noted"


def raises(firing: Firing) -> None:
    called.append("tried")
    raise OSError("not now")


def virtually(main: Coroutine[Any, Any, Any]) -> Any:
    return testing.run(main)


async def done(engine: Engine, **options: Any) -> list[Delivery]:
    return (await engine.deliveries(**options))[::-1]


def failed(*actions: Any, name: str = "watch", **match: Any) -> Automation:
    return Automation(name, EventTrigger("flow-run.Failed", match), list(actions))


def test_a_failed_run_starts_a_deployment_that_is_told_which() -> None:
    async def main() -> None:
        async with testing.engine() as engine:
            await engine.deploy(mend, "mend it", overlap="allow")
            action = RunDeployment("mend it", {"run_id": "{{ event.run_id }}", "n": 3})
            await engine.automate(failed(action, flow="doomed"))
            run = await engine.submit(doomed)
            await run.wait()
            await asyncio.sleep(1)
            assert called == [("mend", run.id)]
            (delivery,) = await done(engine)
            assert (delivery.state, delivery.run_id, delivery.attempts) == ("delivered", run.id, 1)
            (mended,) = await engine.runs(flow="mend")
            assert delivery.reply == f"run {mended.id}"
            assert (await engine.automation("watch")).fired == 1

    virtually(main())


def test_each_event_has_its_deliveries_once_whatever_engines_and_restarts_there_are() -> None:
    async def main() -> None:
        store = MemoryStore()
        watch = failed(CallFunction(note), flow="doomed")
        async with testing.engine(store=store) as one, testing.engine(store=store) as two:
            for engine in (one, two):
                await engine.automate(watch)
            for _ in range(20):
                await (await one.submit(doomed)).wait()
            await asyncio.sleep(2)
        async with testing.engine(store=store) as engine:
            await (await engine.submit(doomed)).wait()  # nobody watches
        async with testing.engine(store=store) as engine:
            await engine.automate(watch)
            await asyncio.sleep(2)
            assert called == ["flow-run.Failed"] * 21
            deliveries = await done(engine)
            assert [d.state for d in deliveries] == ["delivered"] * 21
            assert len({d.key for d in deliveries}) == 21
            assert {d.reply for d in deliveries} == {"noted"}

    virtually(main())


def test_an_action_that_fails_is_tried_again_and_ends_as_failed() -> None:
    async def main() -> None:
        async with testing.engine() as engine:
            await engine.automate(failed(CallFunction(raises)))
            await (await engine.submit(doomed)).wait()
            await asyncio.sleep(200)
            assert called == ["tried"] * 4
            (delivery,) = await done(engine)
            assert (delivery.state, delivery.attempts) == ("failed", 4)
            assert "not now" in delivery.error
            (event,) = await engine.events(kinds="delivery.failed")
            assert event.payload["automation"] == "watch"

    virtually(main())


def test_runs_are_cancelled_and_resumed() -> None:
    async def main() -> None:
        global broken
        async with testing.engine() as engine:
            await engine.automate(
                Automation("stuck", DurationTrigger("Running", longer_than=60), CancelRun())
            )
            await engine.automate(
                Automation("again", EventTrigger("orders.mended"), CallFunction(note))
            )
            await engine.automate(failed(ResumeRun(), name="resume", flow="doomed"))
            run = await engine.submit(long)
            quick = await engine.submit(long, 30)
            assert (await run.wait()).is_cancelled()
            await asyncio.sleep(1)
            assert (await quick.wait()).is_completed()
            assert (await engine.deliveries(run_id=run.id))[0].reply == f"cancelled {run.id}"
            other = await engine.submit(doomed, 5)
            await other.wait()
            broken = False
            await asyncio.sleep(5)
            assert (await engine.wait(other.id)).result() == 5
            broken = True
            again = await engine.submit(doomed, 6)
            await asyncio.sleep(60)
            assert (await engine.wait(again.id)).is_failed()
            states = [d.state for d in await done(engine, run_id=again.id)]
            assert states == ["delivered", "suppressed"], "it is resumed once, and not for ever"

    virtually(main())


def test_limits_and_schedules_are_changed() -> None:
    async def main() -> None:
        async with testing.engine() as engine:
            await engine.set_limit("db", 5)
            await engine.deploy(mend, interval=1000)
            actions = [SetLimit("db", 1), PauseSchedule("mend")]
            await engine.automate(
                Automation("calm", EventTrigger("db.slow", threshold=3, within=60), actions)
            )
            await engine.run(tells, "db.slow", 2)
            await asyncio.sleep(1)
            assert await engine.deliveries() == []
            await engine.run(tells, "db.slow", 1)
            await asyncio.sleep(1)
            assert {d.state for d in await engine.deliveries()} == {"delivered"}
            assert (await engine.deployment("mend")).paused

            @flow
            async def two_at_once() -> int:
                most = 0

                async def hold() -> None:
                    nonlocal most
                    async with concurrency("db"):
                        most = max(most, 1)

                await asyncio.gather(hold(), hold())
                return most

            assert await engine.run(two_at_once) == 1

    virtually(main())


def test_what_does_not_happen_is_noticed_though_nobody_was_there() -> None:
    async def main() -> None:
        store = MemoryStore()
        watch = Automation(
            "backup missing",
            AbsenceTrigger("backup.done", within=3600, after="backup.started"),
            CallFunction(note),
        )
        async with testing.engine(store=store) as engine:
            await engine.automate(watch)
            await engine.emit("backup.started")
            await asyncio.sleep(5)
        await asyncio.sleep(10_000)
        async with testing.engine(store=store) as engine:
            await engine.automate(watch)
            await asyncio.sleep(5)
            assert called == ["backup.started"]
            await engine.emit("backup.started")
            await engine.emit("backup.done")
            await asyncio.sleep(5000)
            assert called == ["backup.started"]

    virtually(main())


def test_all_of_several_things_within_a_time() -> None:
    async def main() -> None:
        async with testing.engine() as engine:
            both = AllOf([EventTrigger("a.done"), EventTrigger("b.done")], within=60)
            await engine.automate(Automation("both", both, CallFunction(note)))
            await engine.emit("a.done")
            await asyncio.sleep(100)
            await engine.emit("b.done")
            await asyncio.sleep(5)
            assert called == []
            await engine.emit("a.done")
            await asyncio.sleep(5)
            assert len(called) == 1

    virtually(main())


def test_an_automation_that_would_fire_itself_is_refused() -> None:
    async def main() -> None:
        async with testing.engine() as engine:
            await engine.deploy(doomed, "mend", overlap="allow")
            with pytest.raises(AutomationLoop, match="watch"):
                await engine.automate(failed(RunDeployment("mend")))
            await engine.automate(failed(RunDeployment("mend"), deployment="!mend"))

    virtually(main())


def test_a_loop_that_nobody_could_foresee_ends() -> None:
    async def main() -> None:
        async with testing.engine() as engine:
            await engine.deploy(tells, "tell", parameters={"kind": "x.y"}, overlap="allow")
            echo = Automation("echo", EventTrigger("x.*"), RunDeployment("tell"))
            await engine.automate(echo)
            await engine.emit("x.y")
            await asyncio.sleep(30)
            runs = await engine.runs(flow="tells")
            assert len(runs) == 1
            assert [d.state for d in await done(engine)] == ["delivered", "suppressed"]
            assert "has led to this run itself" in (await done(engine))[1].error

    virtually(main())


def test_a_dry_run_tells_when_it_would_have_fired_and_does_nothing() -> None:
    async def main() -> None:
        async with testing.engine() as engine:
            for _ in range(5):
                await (await engine.submit(doomed)).wait()
                await asyncio.sleep(10)
            two = EventTrigger("flow-run.Failed", threshold=2, within=15)
            fired = await engine.test_automation(Automation("two", two, CallFunction(note)))
            assert len(fired) == 2
            assert called == []
            with pytest.raises(UnknownAutomation):
                await engine.test_automation("two")

    virtually(main())


def test_what_happens_while_it_is_off_does_not_count() -> None:
    async def main() -> None:
        async with testing.engine() as engine:
            await engine.automate(failed(CallFunction(note)))
            await engine.enable_automation("watch", enabled=False)
            await (await engine.submit(doomed)).wait()
            await asyncio.sleep(5)
            await engine.enable_automation("watch")
            await asyncio.sleep(5)
            assert called == []
            await (await engine.submit(doomed)).wait()
            await asyncio.sleep(5)
            assert len(called) == 1
            await engine.remove_automation("watch")
            await (await engine.submit(doomed)).wait()
            await asyncio.sleep(5)
            assert len(called) == 1
            with pytest.raises(UnknownAutomation):
                await engine.automation("watch")

    virtually(main())


def test_task_runs_that_fail_and_retries_are_events() -> None:
    @task(retries=1, retry_delay_seconds=1, retry_jitter_factor=0)
    async def once() -> None:
        raise OSError("x")

    @flow
    async def tries() -> None:
        await once()

    async def main() -> None:
        async with testing.engine() as engine:
            watch = EventTrigger("task-run.Failed", {"task": "once", "flow": "tries"})
            await engine.automate(Automation("tasks", watch, CallFunction(note)))
            run = await engine.submit(tries)
            await run.wait()
            await asyncio.sleep(2)
            assert called == ["task-run.Failed"]
            kinds = [e.kind for e in await engine.events(run.id, kinds="task-run.*")]
            assert kinds == ["task-run.AwaitingRetry", "task-run.Failed"]

    virtually(main())


@pytest.mark.parametrize("kind", ["flow-run.Failed", "schedule.late", "", "a b", 3, "x" * 300])
async def test_nobody_else_tells_what_asyncflow_tells(engine: Engine, kind: Any) -> None:
    with pytest.raises(InvalidOption, match="event"):
        await engine.emit(kind)


async def test_a_payload_must_be_small_plain_data(engine: Engine) -> None:
    with pytest.raises(InvalidOption, match="no plain data"):
        await engine.emit("a.b", object())
    with pytest.raises(InvalidOption, match="at most"):
        await engine.emit("a.b", "x" * 100_000)
