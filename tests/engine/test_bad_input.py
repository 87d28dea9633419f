"""What is wrong is said in one sentence, where it is written or asked for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest

from asyncflow import (
    BlockingCall,
    DependencyCycle,
    Engine,
    InvalidDefinition,
    InvalidOption,
    InvalidParameters,
    MappingLengthMismatch,
    MemoryStore,
    NoEngine,
    SqliteStore,
    StoreClosed,
    StoreError,
    UnknownRun,
    UpstreamFailed,
    flow,
    task,
)


@task
async def one(x: int) -> int:
    return x


@task
def plain(x: int) -> int:
    return x


@pytest.mark.parametrize("decorator", [task, flow])
@pytest.mark.parametrize("thing", [3, "name", None.__class__, [1]])
def test_only_functions_can_be_decorated(decorator: Any, thing: Any) -> None:
    with pytest.raises(InvalidDefinition, match=r"put it on a function"):
        decorator(thing)


@pytest.mark.parametrize("decorator", [task, flow])
def test_generators_are_refused_with_a_hint_at_stream(decorator: Any) -> None:
    async def numbers() -> AsyncIterator[int]:
        yield 1

    with pytest.raises(InvalidDefinition, match="stream"):
        decorator(numbers)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        pytest.param({"retries": -1}, "retries=-1", id="retries below 0"),
        pytest.param({"retry_delay_seconds": -1}, "retry_delay_seconds", id="a negative delay"),
        pytest.param({"timeout_seconds": 0}, "timeout_seconds=0", id="a timeout of 0"),
        pytest.param({"retry_on": 5}, "exception types", id="retry_on without types"),
        pytest.param({"max_concurrency": 0}, "1 or more", id="a limit of 0"),
        pytest.param({"tags": "abc"}, "set or list of names", id="tags as a string"),
        pytest.param({"runner": "gpu"}, "'async', 'thread' or 'process'", id="unknown runner"),
        pytest.param({"retrys": 3}, "no option 'retrys'", id="a misspelt option"),
        pytest.param({"on_failure": 3}, "give a function", id="a hook that is no function"),
        pytest.param({"retry_jitter_factor": "x"}, "retry_jitter_factor='x'", id="jitter as text"),
        pytest.param({"retry_delay_seconds": True}, "retry_delay_seconds", id="a switch as delay"),
        pytest.param({"tags": 5}, "set or list of names", id="tags as a number"),
        pytest.param({"name": 5}, "give a name", id="a name that is none"),
        pytest.param({"log_prints": "x"}, "True or False", id="a switch as text"),
        pytest.param({"persist_result": 1}, "True or False", id="a switch as number"),
        pytest.param({"priority": "high"}, "give a number", id="a priority as text"),
        pytest.param({"priority": float("nan")}, "give a number", id="no number"),
        pytest.param({"task_run_name": 5}, "template", id="a run name that is none"),
        pytest.param({"task_run_name": "at {x}"}, "names 'x'", id="a template of no parameter"),
        pytest.param({"task_run_name": "at {"}, "task_run_name='at {'", id="a broken template"),
        pytest.param({"key": "{y.z}"}, "names 'y'", id="a key of no parameter"),
    ],
)
def test_an_impossible_option_is_named(options: dict[str, Any], match: str) -> None:
    async def work() -> None: ...

    with pytest.raises(InvalidOption, match=match):
        task(**options)(work)


def test_a_timeout_on_a_thread_task_is_refused_with_the_ways_out() -> None:
    def work() -> None: ...

    with pytest.raises(InvalidDefinition, match="runner='process'.*timeout_mode='soft'"):
        task(timeout_seconds=1)(work)


async def test_wrong_arguments_of_a_task_are_named(engine: Engine) -> None:
    @flow
    async def main() -> None:
        for wrong in ((), (1, 2)):
            with pytest.raises(InvalidParameters, match=r"task 'one'.*one\(x"):
                await one(*wrong)
            with pytest.raises(InvalidParameters):
                one.submit(*wrong)
        with pytest.raises(TypeError, match="nope"):
            one.submit(1, nope=1)

    await engine.run(main)


async def test_wrong_arguments_of_a_stream_are_named(engine: Engine) -> None:
    @flow
    async def main() -> None:
        with pytest.raises(InvalidParameters, match="unexpected keyword argument 'nope'"):
            one.stream([1], nope=1)

    await engine.run(main)


def test_names_that_calls_take_for_themselves_cannot_be_parameters() -> None:
    async def work(return_state: bool) -> None: ...

    for decorator in (task, flow):
        with pytest.raises(InvalidDefinition, match="'return_state'"):
            decorator(work)


async def test_with_return_state_wrong_parameters_give_a_failed_state() -> None:
    @flow
    async def main(n: int) -> None: ...

    state = await main("x", return_state=True)
    assert state.is_failed()
    with pytest.raises(InvalidParameters):
        state.result()


async def test_wrong_arguments_of_a_flow_are_named(engine: Engine) -> None:
    @flow
    async def main(n: int) -> None: ...

    with pytest.raises(InvalidParameters, match="main.*missing.*'n'"):
        await engine.submit(main)
    with pytest.raises(InvalidParameters, match="'n': 'x' is not accepted"):
        await engine.submit(main, "x")
    assert await engine.runs() == []


async def test_a_parameter_that_cannot_be_stored_is_named(engine: Engine) -> None:
    @flow
    async def main(lock: Any) -> None: ...

    with pytest.raises(InvalidParameters, match=r"parameter 'lock' cannot be stored.*@resource"):
        await engine.submit(main, threading.Lock())


async def test_lengths_that_differ_are_told(engine: Engine) -> None:
    @task
    async def two(a: int, b: int) -> None: ...

    @flow
    async def main() -> None:
        with pytest.raises(MappingLengthMismatch, match="argument 1 has 2, argument 2 has 3"):
            two.map([1, 2], [1, 2, 3])
        with pytest.raises(ValueError, match="nothing to iterate"):
            two.map(1, 2)

    await engine.run(main)


async def test_a_plain_task_called_on_the_loop_says_submit(engine: Engine) -> None:
    @flow
    async def main() -> None:
        with pytest.raises(BlockingCall, match=r"await plain.submit\(...\)"):
            plain(1)

    await engine.run(main)


async def test_a_plain_flow_called_on_the_loop_says_submit_and_run(engine: Engine) -> None:
    @flow
    def main() -> None: ...

    with pytest.raises(BlockingCall, match=r"main.submit.*engine.run\(main"):
        main()


async def test_the_result_of_an_unfinished_future_says_await(engine: Engine) -> None:
    @flow
    async def main() -> None:
        future = one.submit(1)
        with pytest.raises(RuntimeError, match="await it instead"):
            future.result()
        await future
        assert future.result() == 1

    await engine.run(main)


async def test_submit_outside_of_a_flow_says_so() -> None:
    with pytest.raises(NoEngine, match="outside of a flow"):
        one.submit(1)
    with pytest.raises(NoEngine):
        one.map([1])


async def test_a_cycle_of_futures_is_refused(engine: Engine) -> None:
    futures: list[Any] = []

    @task
    async def wait_for_the_other(n: int) -> None:
        while len(futures) < 2:
            await asyncio.sleep(0)
        await futures[1 - n]

    @flow
    async def main() -> None:
        futures.extend(wait_for_the_other.submit(n) for n in range(2))
        done = await asyncio.gather(*futures, return_exceptions=True)
        assert DependencyCycle in {type(d) for d in done}

    async with asyncio.timeout(5):
        await engine.run(main)


async def test_a_cycle_through_wait_for_is_refused(engine: Engine) -> None:
    futures: dict[str, Any] = {}
    ready = asyncio.Event()

    @task
    async def nothing() -> None: ...

    @task
    async def last() -> None:
        await ready.wait()
        await futures["first"]

    @task
    async def first() -> None:
        futures["last"] = last.submit()
        between = nothing.submit(wait_for=futures["last"])
        ready.set()
        await between

    @flow
    async def main() -> None:
        futures["first"] = first.submit()
        done = await asyncio.gather(*futures.values(), return_exceptions=True)
        assert isinstance(done[0], UpstreamFailed)
        with pytest.raises(DependencyCycle, match=r"last-\d+ waits for first-1, which"):
            await futures["last"]

    async with asyncio.timeout(5):
        await engine.run(main)


async def test_a_cycle_through_a_map_and_another_wait_is_refused(engine: Engine) -> None:
    futures: list[Any] = []

    @task
    async def item(n: int) -> int:
        while not futures:
            await asyncio.sleep(0)
        return await futures[0] if n == 2 else n

    @task
    async def whole() -> list[int]:
        items = item.map(range(4))
        assert await asyncio.ensure_future(_value(items[0])) == 0
        return await items

    async def _value(future: Any) -> Any:
        return await future

    @flow
    async def main() -> None:
        futures.append(whole.submit())
        with pytest.raises(DependencyCycle, match="the map of item|item-"):
            await futures[0]

    async with asyncio.timeout(5):
        await engine.run(main)


async def test_an_unknown_run_is_named(engine: Engine) -> None:
    for verb in (engine.resume, engine.cancel, engine.get_run, engine.task_runs, engine.wait):
        with pytest.raises(UnknownRun, match="no run 'nobody'"):
            await verb("nobody")


async def test_a_closed_engine_says_so() -> None:
    async with Engine(MemoryStore()) as engine:
        pass

    @flow
    async def main() -> None: ...

    with pytest.raises(StoreClosed, match="the engine is closed"):
        await engine.submit(main)


async def test_a_full_disk_ends_the_run_with_one_clear_error_and_a_resume_goes_on(
    path: Any,
) -> None:
    store = SqliteStore(path)
    calls: list[int] = []

    @task
    async def big(x: int) -> str:
        calls.append(x)
        await asyncio.sleep(0)
        return "x" * 20_000

    @flow(max_concurrency=1)
    async def fill() -> int:
        return sum(map(len, await big.map(range(200))))

    async with Engine(store) as engine:
        store._connection.execute("PRAGMA max_page_count = 200")
        run = await engine.submit(fill)
        with pytest.raises(StoreError, match="the disk is full"):
            await run
        assert await engine.task_runs(run.id), "what is there can be read"
    before = len(calls)
    async with Engine(SqliteStore(path)) as engine:
        (again,) = await engine.recover()
        assert await again == 200 * 20_000
    # What was on disk did not run again; the last transaction was not.
    assert len(calls) < 200 + before


async def test_two_flows_with_one_name_are_told_apart_by_the_command_line(tmp_path: Any) -> None:
    from asyncflow import UnknownFlow
    from asyncflow.target import find_flow

    file = tmp_path / "twice.py"
    file.write_text(
        "from asyncflow import flow\n"
        "@flow(name='same')\nasync def a(): ...\n"
        "@flow(name='same')\nasync def b(): ...\n"
    )
    with pytest.raises(UnknownFlow, match="2 flows called 'same'"):
        find_flow(f"{file}:same")
