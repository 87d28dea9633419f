"""Metrics: what ended is counted once, and waits are told apart; names of strangers are bounded."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from patience import until
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families
from virtual import virtual_engine, virtually

from asyncflow import (
    Engine,
    Interval,
    MemoryStore,
    SqliteStore,
    flow,
    pause_flow_run,
    task,
    testing,
)
from asyncflow import metrics as counting
from asyncflow.errors import MissingExtra
from asyncflow.server import stored as stored_numbers
from asyncflow.server.stored import Stored

LABELS = ("flow", "task", "state", "outcome")


def numbers(engine: Engine, name: str) -> dict[tuple[str, ...], float]:
    """The values of one metric, by its labels; of runs that ended, those that are not 0."""
    found = samples(engine.metrics_text(), name)
    return {k: n for k, n in found.items() if n} if name == "runs_total" else found


def samples(text: bytes, name: str) -> dict[tuple[str, ...], float]:
    found: dict[tuple[str, ...], float] = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            if sample.name == f"asyncflow_{name}":
                labels = [sample.labels[n] for n in LABELS if n in sample.labels]
                found[tuple(labels)] = sample.value
    return found


@task
async def double(i: int) -> int:
    return 2 * i


@task
async def waits(seconds: float) -> float:
    await asyncio.sleep(seconds)
    return seconds


@task
async def broken() -> None:
    raise ValueError("no")


@flow
async def some() -> int:
    values = await double.map(range(1000))
    await waits(0)
    assert (await broken(return_state=True)).is_failed()
    return len(values)


@flow
async def outer() -> int:
    return await some()


async def test_runs_task_runs_and_attempts_are_counted_by_flow_and_task(
    store: MemoryStore | SqliteStore,
) -> None:
    async with Engine(store, metrics=True) as engine:
        await outer()
        assert numbers(engine, "runs_total") == {
            ("outer", "COMPLETED"): 1,
            ("some", "COMPLETED"): 1,
        }
        assert numbers(engine, "task_runs_total") == {
            ("some", "double", "COMPLETED"): 1000,
            ("some", "waits", "COMPLETED"): 1,
            ("some", "broken", "FAILED"): 1,
        }
        assert numbers(engine, "attempts_total") == {
            ("some", "double", "Completed"): 1000,
            ("some", "waits", "Completed"): 1,
            ("some", "broken", "Failed"): 1,
        }
        for wait in ("queue_wait", "slot_wait", "attempt"):
            assert numbers(engine, f"{wait}_seconds_count") == {
                ("some", "double"): 1000,
                ("some", "waits"): 1,
                ("some", "broken"): 1,
            }
        assert numbers(engine, "commit_seconds_count")[()] >= 2


@pytest.mark.parametrize("durability", ["full", "strict", "relaxed", "off"])
async def test_at_each_durability_the_same_is_counted(durability: str) -> None:
    async with Engine(MemoryStore(), metrics=True, durability=durability) as engine:
        await some()
        assert sum(numbers(engine, "task_runs_total").values()) == 1002
        assert sum(numbers(engine, "attempt_seconds_count").values()) == 1002


async def test_an_item_that_is_asked_for_is_counted_once() -> None:
    @flow
    async def asks() -> int:
        futures = double.map(range(20))
        return await futures[3] + await futures[17] + sum(await futures)

    async with Engine(MemoryStore(), metrics=True) as engine:
        await asks()
        assert numbers(engine, "task_runs_total") == {("asks", "double", "COMPLETED"): 20}
        assert numbers(engine, "attempts_total") == {("asks", "double", "Completed"): 20}
        assert numbers(engine, "attempt_seconds_count") == {("asks", "double"): 20}


async def test_what_a_former_life_has_done_is_not_counted_again(
    store: MemoryStore | SqliteStore,
) -> None:
    fails = True

    @task
    async def once() -> None:
        if fails:
            raise ValueError("not yet")

    @flow
    async def lives() -> None:
        await double.map(range(10))
        await waits(0)
        await once()

    async with Engine(store, metrics=True) as engine:
        run = await engine.submit(lives)
        assert (await run.wait()).is_failed()
        fails = False
        await (await engine.resume(run.id)).wait()
        assert numbers(engine, "task_runs_total") == {
            ("lives", "double", "COMPLETED"): 10,
            ("lives", "waits", "COMPLETED"): 1,
            ("lives", "once", "FAILED"): 1,
            ("lives", "once", "COMPLETED"): 1,
        }
        assert numbers(engine, "runs_total") == {
            ("lives", "FAILED"): 1,
            ("lives", "COMPLETED"): 1,
        }


@virtually
async def test_waits_for_others_for_slots_and_attempts_are_told_apart() -> None:
    @flow(max_concurrency=1)
    async def line() -> None:
        first = waits.submit(7.0)
        second = waits.submit(20.0)
        after = waits.with_options(name="after").submit(2.0, wait_for=[second])
        for future in (first, second, after):
            await future

    async with virtual_engine(metrics=True) as engine:
        await line()
        assert numbers(engine, "attempt_seconds_sum") == {
            ("line", "waits"): 27.0,
            ("line", "after"): 2.0,
        }
        queue, slot = (numbers(engine, f"{w}_wait_seconds_sum") for w in ("queue", "slot"))
        assert queue == {("line", "waits"): 7.0, ("line", "after"): 27.0}
        assert slot == {("line", "waits"): 7.0, ("line", "after"): 0.0}


@virtually
async def test_each_attempt_counts_and_the_wait_between_two_is_none_for_slots() -> None:
    tries: list[int] = []

    @task(retries=2, retry_delay_seconds=30.0, retry_jitter_factor=0.0, timeout_seconds=3.0)
    async def shaky() -> None:
        tries.append(1)
        await asyncio.sleep([1.0, 100.0, 2.0][len(tries) - 1])
        if len(tries) == 1:
            raise ValueError("no")

    @flow
    async def tries_again() -> None:
        await shaky()

    async with virtual_engine(metrics=True) as engine:
        await tries_again()
        assert numbers(engine, "attempts_total") == {
            ("tries_again", "shaky", "Failed"): 1,
            ("tries_again", "shaky", "TimedOut"): 1,
            ("tries_again", "shaky", "Completed"): 1,
        }
        assert numbers(engine, "task_runs_total") == {("tries_again", "shaky", "COMPLETED"): 1}
        assert numbers(engine, "attempt_seconds_sum") == {("tries_again", "shaky"): 6.0}
        assert numbers(engine, "queue_wait_seconds_count") == {("tries_again", "shaky"): 1}
        assert numbers(engine, "slot_wait_seconds_sum") == {("tries_again", "shaky"): 0.0}


@virtually
async def test_gauges_tell_what_is_going_on_now() -> None:
    @flow
    async def busy() -> None:
        await waits.map([60.0] * 10)

    async with virtual_engine(metrics=True, max_concurrency=4) as engine:
        run = await engine.submit(busy)
        await asyncio.sleep(30)
        assert numbers(engine, "running_runs") == {(): 1}
        assert numbers(engine, "running_tasks") == {(): 4}
        assert numbers(engine, "waiting_calls") == {(): 6}
        assert numbers(engine, "open_slots") == {(): 0}
        await run
        assert numbers(engine, "running_runs") == {(): 0}
        assert numbers(engine, "open_slots") == {(): 4}


async def test_an_engine_counts_nothing_before_it_is_asked(engine: Engine) -> None:
    await some()
    assert engine.metrics is None
    assert engine.machine.observer is None
    assert numbers(engine, "runs_total") == {}
    await some()
    assert numbers(engine, "runs_total") == {("some", "COMPLETED"): 1}


async def test_more_names_than_a_thousand_count_as_others(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counting, "MOST", 3)
    engine.metrics_text()
    for n in range(6):

        @flow(name=f"flow {n}")
        async def named() -> None:
            await double.with_options(name=f"task {n}")(1)

        await named()
    assert numbers(engine, "runs_total")["other", "COMPLETED"] == 3
    assert numbers(engine, "task_runs_total")["other", "other", "COMPLETED"] == 3
    assert len(numbers(engine, "task_runs_total")) == 4


async def test_a_name_with_any_character_is_a_label(engine: Engine) -> None:
    engine.metrics_text()
    name = 'a "b"\n\\c {d}'

    @flow(name=name)
    async def odd() -> None: ...

    await odd()
    assert numbers(engine, "runs_total") == {(name, "COMPLETED"): 1}


async def test_several_engines_count_each_for_itself_and_fit_into_a_registry_of_the_host() -> None:
    async with Engine(MemoryStore(), metrics=True) as first:
        async with Engine(MemoryStore(), metrics=True) as second:
            await second.run(some)
        assert numbers(first, "runs_total") == {}
        host = CollectorRegistry()
        host.register(first.metrics)
        labels: dict[str, Any] = {"flow": "some", "state": "COMPLETED"}
        assert host.get_sample_value("asyncflow_runs_total", labels) is None
        await first.run(some)
        assert host.get_sample_value("asyncflow_runs_total", labels) == 1
    assert numbers(first, "runs_total") == {("some", "COMPLETED"): 1}, "it can be read when closed"


async def test_another_thread_may_ask(engine: Engine) -> None:
    text = await asyncio.to_thread(engine.metrics_text)
    assert b"asyncflow_runs_total" in text


async def test_without_the_package_metrics_say_what_to_install(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counting, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"asyncflow\[metrics\]"):
        Engine(MemoryStore(), metrics=True)
    with pytest.raises(MissingExtra, match="prometheus-client"):
        engine.metrics_text()


async def test_a_histogram_counts_a_value_at_its_bound_and_none_below_zero() -> None:
    histogram = counting.Histogram((1.0, 2.0))
    for value in (-5.0, 0.0, 1.0, 1.5, 2.0, 99.0):
        histogram.add(value)
    histogram.add(1.0, 10)
    assert histogram.buckets() == [("1.0", 13.0), ("2.0", 15.0), ("+Inf", 16.0)]
    assert histogram.total == 1.0 + 1.5 + 2.0 + 99.0 + 10.0


async def test_a_flow_has_a_number_for_each_end_before_the_first_one() -> None:
    going = asyncio.Event()

    @flow
    async def goes() -> None:
        await going.wait()

    async with Engine(MemoryStore(), metrics=True) as engine:
        run = await engine.submit(goes)
        ends = [("goes", state) for state in ("COMPLETED", "FAILED", "CANCELLED", "CRASHED")]
        assert samples(engine.metrics_text(), "runs_total") == dict.fromkeys(ends, 0)
        going.set()
        await run


# --- what the store tells -------------------------------------------------------------------------


async def test_a_server_tells_of_the_runs_of_all_processes(
    store: MemoryStore | SqliteStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_numbers, "STEP", 3)

    @flow
    async def asks(fails: bool) -> None:
        if await pause_flow_run():
            raise ValueError("no")

    same = store if isinstance(store, MemoryStore) else SqliteStore(path)
    async with Engine(store) as server:
        stored = Stored(server)
        async with Engine(same) as engine:
            await engine.run(some)
            before = samples(await stored.text(), "store_runs_ended_total")
            assert set(before.values()) == {0}, "from now on"
            assert {flow_ for flow_, _ in before} == {"some"}
            runs = [await engine.submit(asks, False) for _ in range(3)]
            for _ in range(10):
                await engine.run(some)

            async def paused() -> bytes | None:
                text = await stored.text()
                return text if samples(text, "store_runs") == {("asks", "PAUSED"): 3} else None

            text = await until(paused)
            assert samples(text, "store_runs_needing_attention") == {("asks",): 3}
            ended = samples(text, "store_runs_ended_total")
            assert {k: n for k, n in ended.items() if n} == {("some", "COMPLETED"): 10}
            assert ended["asks", "FAILED"] == 0
            await engine.answer(runs[0].id)
            await engine.cancel(runs[1].id)
            for run in runs[:2]:
                await run.wait()
            text = await stored.text()
            ended = samples(text, "store_runs_ended_total")
            assert ended["asks", "COMPLETED"] == ended["asks", "CANCELLED"] == 1
            assert samples(text, "store_runs") == {("asks", "PAUSED"): 1}
        size = samples(await stored.text(), "store_bytes")
        assert bool(size) == isinstance(store, SqliteStore)
        assert all(n > 4096 for n in size.values())


async def test_a_run_whose_process_has_died_is_told_as_interrupted(path: Path) -> None:
    store = SqliteStore(path)
    waits_on = asyncio.Event()

    @flow
    async def goes() -> None:
        await waits_on.wait()

    async with Engine(path) as server, Engine(store) as engine:
        run = await engine.submit(goes)
        stored = Stored(server)
        assert samples(await stored.text(), "store_runs") == {("goes", "RUNNING"): 1}
        monkey = pytest.MonkeyPatch()
        monkey.setattr(server.recovery, "is_alive", lambda _: False)
        assert samples(await stored.text(), "store_runs") == {("goes", "PAUSED"): 1}
        monkey.undo()
        waits_on.set()
        await run


def test_schedules_that_are_late_are_told() -> None:
    async def main() -> None:
        store = MemoryStore()
        async with testing.engine(store=store) as engine:
            await engine.deploy(some, schedule=Interval(60))
        async with testing.engine(store=store) as server:
            await asyncio.sleep(0)
            stored = Stored(server)
            assert samples(await stored.text(), "store_late_schedules") == {(): 0}
            await asyncio.sleep(1000)
            text = await stored.text()
            assert samples(text, "store_late_schedules") == {(): 1}
            assert samples(text, "store_schedule_lateness_seconds")[()] > 900

    testing.run(main())


async def test_numbers_of_the_store_are_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "MOST", 2)
    async with Engine(MemoryStore()) as engine:
        stored = Stored(engine)
        await stored.text()
        for name in "abcd":
            await engine.run(some.with_options(name=name))
        ended = samples(await stored.text(), "store_runs_ended_total")
    assert sum(ended.values()) == 4
    assert len({flow_ for flow_, _ in ended}) == 3
    assert ended["other", "COMPLETED"] == 2
