"""Results that other runs use: when they may, and that they do so once."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Any

import pytest
from virtual import virtual_engine, virtually

from asyncflow import (
    FLOW_PARAMETERS,
    INPUTS,
    NO_CACHE,
    RUN_ID,
    TASK_SOURCE,
    CacheKeyFn,
    Engine,
    InvalidCacheKey,
    InvalidOption,
    MemoryStore,
    QueueTimeout,
    SqliteStore,
    TaskCancelled,
    TaskFuture,
    flow,
    resource,
    task,
)

Store = MemoryStore | SqliteStore
RAN: Counter[Any] = Counter()


@pytest.fixture(autouse=True)
def _nothing_ran() -> None:
    RAN.clear()


class Clock:
    """Wall time that a test moves."""

    def __init__(self) -> None:
        self.at = 1_000_000.0

    def time(self) -> float:
        return self.at


async def task_states(engine: Engine, run_id: str) -> list[tuple[str, int]]:
    return [(r.state.name, r.attempts) for r in await engine.task_runs(run_id)]


@task(cache_policy=INPUTS)
async def square(x: int, of: str = "number") -> int:
    RAN[x] += 1
    return x * x


@flow
async def squares(xs: list[int]) -> list[int]:
    return [await square(x) for x in xs]


# --- across runs ----------------------------------------------------------------------------------


@pytest.mark.parametrize("durability", ["full", "strict", "relaxed", "off"])
async def test_another_run_uses_the_result_without_an_attempt(
    store: Store, durability: str
) -> None:
    async with Engine(store, durability=durability) as engine:
        assert await engine.run(squares, [1, 2]) == [1, 4]
    async with Engine(store, durability=durability) as engine:
        run = await engine.submit(squares, [2, 3])
        assert await run == [4, 9]
        if durability != "off":
            assert await task_states(engine, run.id) == [("Cached", 0), ("Completed", 1)]
    assert RAN == {1: 1, 2: 1, 3: 1}


async def test_nothing_is_cached_unless_asked_for(engine: Engine) -> None:
    @task
    async def plain(x: int) -> None:
        RAN[x] += 1

    @task(cache_policy=NO_CACHE)
    async def never(x: int) -> None:
        RAN[x] += 1

    @flow
    async def main() -> None:
        await plain(1)
        await never(1)

    await engine.run(main)
    await engine.run(main)
    assert RAN == {1: 4}


async def test_every_way_of_calling_asks_the_cache(engine: Engine) -> None:
    @task(cache_policy=INPUTS)
    def in_thread(x: int) -> int:
        RAN[x] += 1
        return -x

    @flow
    async def main() -> list[Any]:
        streamed = [y async for y in square.stream([4, 5], ordered=True)]
        return [
            await square(1),
            await square.submit(2),
            await square.map([2, 3]),
            streamed,
            await in_thread.submit(6),
        ]

    @flow
    def sync_main() -> int:
        return in_thread(6)

    first = await engine.run(main)
    assert first == [1, 4, [4, 9], [16, 25], -6]
    assert await engine.run(main) == first
    assert await engine.run(sync_main) == -6
    assert RAN == {1: 1, 2: 1, 3: 1, 4: 1, 5: 1, 6: 1}


async def test_the_spelling_of_a_call_does_not_count(engine: Engine) -> None:
    @flow
    async def main() -> None:
        await square(3)
        await square(x=3)
        await square(3, "number")
        await square(of="number", x=3)
        await square(3, "other")

    await engine.run(main)
    assert RAN == {3: 2}


async def test_values_of_futures_count_not_the_futures(engine: Engine) -> None:
    @task
    async def number(n: int) -> int:
        return n - n + 5

    @flow
    async def main() -> list[int]:
        return [await square.submit(number.submit(1)), await square.submit(number.submit(2))]

    assert await engine.run(main) == [25, 25]
    assert RAN == {5: 1}


async def test_none_is_a_result_and_an_exception_is_not(engine: Engine) -> None:
    @task(cache_policy=INPUTS)
    async def nothing(x: int) -> None:
        RAN[x] += 1

    @task(cache_policy=INPUTS)
    async def fails(x: int) -> None:
        RAN[x] += 1
        raise ValueError(x)

    @flow
    async def main() -> list[Any]:
        state = await fails(2, return_state=True)
        return [await nothing(1), state.is_failed()]

    assert await engine.run(main) == [None, True]
    assert await engine.run(main) == [None, True]
    assert RAN == {1: 1, 2: 2}


async def test_on_running_does_not_run_for_a_hit_and_on_completion_does(engine: Engine) -> None:
    told: list[str] = []

    @task(
        cache_policy=INPUTS,
        on_running=lambda task, run, state: told.append("running"),
        on_completion=lambda task, run, state: told.append(state.name),
    )
    async def work() -> None: ...

    @flow
    async def main() -> None:
        await work()

    await engine.run(main)
    await engine.run(main)
    assert told == ["running", "Completed", "Cached"]


@virtually
async def test_a_hit_takes_no_slot_no_token_and_no_time_of_a_timeout() -> None:
    async with virtual_engine() as engine:

        @task(cache_policy=INPUTS, limits={"busy": 1}, queue_timeout_seconds=5)
        async def work(x: int) -> int:
            RAN[x] += 1
            return x

        @flow
        async def main(x: int) -> int:
            return await work(x)

        await engine.run(main, 1)
        await engine.set_limit("busy", 0)
        assert await engine.run(main, 1) == 1
        with pytest.raises(QueueTimeout):
            await engine.run(main, 2)
        assert RAN == {1: 1}


async def test_a_resumed_run_has_its_own_results_first(store: Store) -> None:
    fails = True

    @task(cache_policy=INPUTS, refresh_cache=True)
    async def counted(x: int) -> int:
        RAN[x] += 1
        return RAN[x]

    @flow
    async def main() -> int:
        first = await counted(1)
        if fails:
            raise RuntimeError
        return first

    @flow
    async def other() -> int:
        return await counted(1)

    async with Engine(store) as engine:
        run = await engine.submit(main)
        await run.wait()
        assert await engine.run(other) == 2
        fails = False
        assert await (await engine.resume(run.id)) == 1


async def test_an_answer_of_the_cache_is_kept_with_the_run(store: Store) -> None:
    fails = True

    @flow
    async def main() -> int:
        first = await square(7)
        if fails:
            raise RuntimeError
        return first

    async with Engine(store) as engine:
        await engine.run(squares, [7])
        run = await engine.submit(main)
        await run.wait()
        await engine.clear_cache()
        fails = False
        assert await (await engine.resume(run.id)) == 49
    assert RAN == {7: 1}


# --- how long -------------------------------------------------------------------------------------


@pytest.mark.parametrize("expiration", [60, timedelta(minutes=1)])
async def test_an_expired_result_is_made_again(store: Store, expiration: Any) -> None:
    clock = Clock()

    @task(cache_policy=INPUTS, cache_expiration=expiration)
    async def work() -> int:
        RAN["work"] += 1
        return RAN["work"]

    @flow
    async def main() -> int:
        return await work()

    async with Engine(store, clock=clock) as engine:
        assert await engine.run(main) == 1
        clock.at += 59.9
        assert await engine.run(main) == 1
        clock.at += 0.1
        assert await engine.run(main) == 2
        assert await engine.run(main) == 2


async def test_who_asks_judges_the_age_too(engine: Engine) -> None:
    clock = Clock()
    fresh = square.with_options(cache_expiration=10)

    @flow
    async def main(strict: bool) -> int:
        return await (fresh if strict else square)(2)

    async with Engine(MemoryStore(), clock=clock) as engine:
        await engine.run(main, False)
        clock.at += 11
        await engine.run(main, False)
        assert RAN == {2: 1}
        await engine.run(main, True)
        assert RAN == {2: 2}


async def test_refresh_runs_again_and_others_use_its_result(engine: Engine) -> None:
    @task(cache_policy=INPUTS)
    async def work() -> int:
        RAN["work"] += 1
        return RAN["work"]

    @flow
    async def main(refresh: bool) -> int:
        return await work.with_options(refresh_cache=refresh)()

    answers = [await engine.run(main, refresh) for refresh in (False, True, False)]
    assert answers == [1, 2, 2]


async def test_clearing_forgets_the_results_of_a_task_or_of_all(store: Store) -> None:
    async with Engine(store) as engine:
        await engine.run(squares, [1, 2])
        assert await engine.clear_cache("other") == 0
        assert await engine.clear_cache("square") == 2
        await engine.run(squares, [1])
        assert await engine.clear_cache() == 1
    assert RAN == {1: 2, 2: 1}


async def test_cached_results_go_with_the_run_that_made_them(store: Store) -> None:
    async with Engine(store) as engine:
        run = await engine.submit(squares, [1])
        await run
        other = await engine.submit(squares, [2])
        await other
        await engine.delete(run.id)
        await engine.run(squares, [1, 2])
    assert RAN == {1: 2, 2: 1}


# --- what counts ----------------------------------------------------------------------------------


async def test_a_parameter_that_is_left_out_does_not_count(engine: Engine) -> None:
    @task(cache_policy=INPUTS - "session")
    async def fetch(url: str, session: Any) -> int:
        RAN[url] += 1
        return 1

    @flow
    async def main() -> None:
        await fetch("a", object())
        await fetch("a", object())
        await fetch("b", object())

    await engine.run(main)
    assert RAN == {"a": 1, "b": 1}


async def test_a_resource_does_not_count_and_need_not_be_hashed(engine: Engine) -> None:
    from typing import Annotated

    @resource
    async def connection() -> AsyncIterator[object]:
        yield object()

    @task(cache_policy=INPUTS)
    async def fetch(url: str, db: Annotated[object, connection]) -> int:
        RAN[url] += 1
        return 1

    @flow
    async def main() -> None:
        await fetch("a")
        await fetch("a")

    await engine.run(main)
    assert RAN == {"a": 1}


async def test_two_tasks_with_equal_inputs_do_not_share(engine: Engine) -> None:
    @task(cache_policy=INPUTS)
    async def one(x: int) -> str:
        return "one"

    @task(cache_policy=INPUTS)
    async def two(x: int) -> str:
        return "two"

    @flow
    async def main() -> list[str]:
        return [await one(1), await two(1)]

    assert await engine.run(main) == ["one", "two"]


async def test_a_key_function_makes_the_key_and_tasks_with_one_key_share(engine: Engine) -> None:
    told: list[Any] = []

    def by_site(context: Any, parameters: dict[str, Any]) -> str | None:
        told.append((context.task.name, context.task_run.flow_run_id, context.flow_run.flow_name))
        return None if parameters["url"] == "fresh" else parameters["url"][0]

    @task(cache_key_fn=by_site)
    async def get(url: str) -> str:
        RAN[url] += 1
        return url

    @task(cache_key_fn=by_site, name="head")
    async def head(url: str) -> str:
        RAN[url] += 1
        return url

    @flow
    async def main() -> list[str]:
        return [await get("a1"), await get("a2"), await head("a3"), await get("fresh")]

    run = await engine.submit(main)
    assert await run == ["a1", "a1", "a1", "fresh"]
    assert told[0] == ("get", run.id, "main")
    assert await engine.run(main) == ["a1", "a1", "a1", "fresh"]
    assert RAN == {"a1": 1, "fresh": 2}


async def test_the_run_counts_where_it_is_asked_for(engine: Engine) -> None:
    @task(cache_policy=INPUTS + RUN_ID)
    async def work(x: int) -> None:
        RAN[x] += 1

    @flow
    async def main() -> None:
        await work(1)
        await work(1)

    await engine.run(main)
    await engine.run(main)
    assert RAN == {1: 2}


async def test_the_parameters_of_the_flow_count_where_they_are_asked_for(engine: Engine) -> None:
    @task(cache_policy=FLOW_PARAMETERS - "verbose")
    async def work() -> None:
        RAN["work"] += 1

    @flow
    async def main(day: str, verbose: bool = False) -> None:
        await work()

    await engine.run(main, "mon")
    await engine.run(main, "mon", verbose=True)
    await engine.run(main, "tue")
    assert RAN == {"work": 2}


async def test_policies_are_put_together(engine: Engine) -> None:
    @task(cache_policy=CacheKeyFn(lambda context, parameters: "day 1") + INPUTS)
    async def work(x: int) -> None:
        RAN[x] += 1

    @flow
    async def main() -> None:
        await work(1)
        await work(1)
        await work(2)

    await engine.run(main)
    assert RAN == {1: 1, 2: 1}


async def test_methods_share_where_their_object_is_left_out(engine: Engine) -> None:
    class Client:
        @task(cache_policy=INPUTS - "self")
        async def get(self, url: str) -> None:
            RAN[url] += 1

        @task(cache_policy=INPUTS)
        async def strict(self, url: str) -> None: ...

    @flow
    async def main() -> None:
        await Client().get("a")
        await Client().get("a")
        with pytest.raises(InvalidCacheKey, match=r"its parameter self is a .*Client"):
            await Client().strict("a")

    await engine.run(main)
    assert RAN == {"a": 1}


async def test_a_pickled_result_is_used_by_tasks_that_asked_for_pickle_only(
    engine: Engine,
) -> None:
    @task(cache_key_fn=lambda context, parameters: "key", serializer="pickle")
    async def pickled() -> Any:
        RAN["pickled"] += 1
        return 1 + 2j

    @task(cache_key_fn=lambda context, parameters: "key")
    async def plain() -> Any:
        RAN["plain"] += 1
        return 1

    @flow
    async def main() -> list[Any]:
        return [await pickled(), await pickled(), await plain()]

    assert await engine.run(main) == [1 + 2j, 1 + 2j, 1]
    assert RAN == {"pickled": 1, "plain": 1}


async def test_a_result_that_cannot_be_stored_is_no_hit(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    @task(cache_policy=INPUTS)
    async def work() -> object:
        RAN["work"] += 1
        return object()

    @flow
    async def main() -> None:
        await work()

    await engine.run(main)
    await engine.run(main)
    assert RAN == {"work": 2}
    assert "is not stored" in caplog.text


async def test_a_large_result_comes_from_its_file_and_a_lost_one_is_made_again(
    path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    @task(cache_policy=INPUTS)
    async def work(n: int) -> str:
        RAN[n] += 1
        return "x" * n

    @flow
    async def main() -> int:
        return len(await work(100_000))

    async with Engine(path) as engine:
        assert [await engine.run(main), await engine.run(main)] == [100_000] * 2
        assert RAN == {100_000: 1}
        for file in path.with_name("state.db.results").rglob("*.bin"):
            file.unlink()
        assert await engine.run(main) == 100_000
    assert RAN == {100_000: 2}


# --- keys that cannot be had ----------------------------------------------------------------------


class Session:
    pass


@pytest.mark.parametrize(
    ("policy", "key_fn", "message"),
    [
        (INPUTS, None, "its parameter session is a .*Session.*cache_policy=INPUTS - 'session'"),
        (None, lambda context, parameters: 3, "returned a int: return a str"),
        (None, lambda context, parameters: {}["x"], "raised KeyError: 'x'"),
    ],
)
async def test_a_call_without_a_key_fails_and_says_why(
    engine: Engine, policy: Any, key_fn: Any, message: str
) -> None:
    @task(cache_policy=policy, cache_key_fn=key_fn, retries=3)
    async def fetch(session: Any) -> None:
        RAN["fetch"] += 1

    @flow
    async def main() -> None:
        await fetch(Session())

    with pytest.raises(InvalidCacheKey, match=f"task 'fetch' has no cache key.*{message}"):
        await engine.run(main)
    assert not RAN


async def test_a_nested_part_is_named_by_its_path(engine: Engine) -> None:
    @flow
    async def main() -> None:
        await task(cache_policy=INPUTS)(_takes)({"a": [1, Session()]})

    with pytest.raises(InvalidCacheKey, match=r"its parameter options\['a'\]\[1\] is a .*Session"):
        await engine.run(main)


async def _takes(options: Any) -> None: ...


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cache_policy": "inputs"}, "give INPUTS"),
        ({"cache_key_fn": "key"}, "give a function"),
        ({"cache_policy": INPUTS, "cache_key_fn": print}, "give one, or put them together"),
        ({"cache_policy": INPUTS - "sesion"}, "it has no parameter 'sesion'"),
        ({"cache_policy": INPUTS, "cache_expiration": 0}, "more than 0"),
        ({"cache_policy": INPUTS, "cache_expiration": "1d"}, "give a timedelta or seconds"),
        ({"cache_expiration": 5}, "nothing says what is cached"),
        ({"refresh_cache": True}, "nothing says what is cached"),
        ({"cache_policy": INPUTS, "persist_result": False}, "persist_result=False"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidOption, match=message):

        @task(**options)
        async def work(session: int) -> None: ...


def test_only_parameters_can_be_left_out() -> None:
    with pytest.raises(InvalidOption, match="only INPUTS and FLOW_PARAMETERS"):
        _ = TASK_SOURCE - "x"


def test_with_options_replaces_a_policy_by_a_function_and_back() -> None:
    by_function = square.with_options(cache_key_fn=lambda context, parameters: "k")
    assert by_function.options.caching.policy.functions
    assert by_function.with_options(cache_policy=INPUTS).options.caching.policy == INPUTS
    assert square.with_options(cache_policy=NO_CACHE).options.caching is None


# --- one at a time --------------------------------------------------------------------------------


class Gate:
    """A task body that a test lets go on."""

    def __init__(self) -> None:
        self.began = asyncio.Event()
        self.open = asyncio.Event()

    async def __call__(self, x: Any) -> None:
        RAN[x] += 1
        self.began.set()
        await self.open.wait()


@pytest.fixture
def gate() -> Gate:
    return Gate()


def gated(gate: Gate, then: Callable[[int], Any] = lambda x: x) -> Any:
    @task(cache_policy=INPUTS)
    async def work(x: int) -> Any:
        await gate(x)
        return then(x)

    return work


@pytest.mark.parametrize("durability", ["strict", "relaxed", "off"])
async def test_calls_with_one_key_run_once_over_all_runs(
    store: Store, gate: Gate, durability: str
) -> None:
    work = gated(gate)

    @flow
    async def main() -> list[int]:
        return await work.map([1] * 50)

    async with Engine(store, durability=durability) as engine:
        runs = [await engine.submit(main) for _ in range(3)]
        await gate.began.wait()
        gate.open.set()
        assert [await run for run in runs] == [[1] * 50] * 3
    assert RAN == {1: 1}


async def test_who_waits_for_a_result_holds_no_slot(engine: Engine, gate: Gate) -> None:
    work = gated(gate)

    @task
    async def other() -> str:
        return "ran"

    @flow(max_concurrency=2)
    async def main() -> Any:
        futures = [work.submit(1) for _ in range(5)]
        await gate.began.wait()
        ran = await other.submit()
        gate.open.set()
        return ran, [await f for f in futures]

    assert await engine.run(main) == ("ran", [1] * 5)


async def test_when_the_leader_fails_the_next_one_tries(engine: Engine, gate: Gate) -> None:
    def then(x: int) -> int:
        if RAN[x] < 3:
            raise ValueError(RAN[x])
        return RAN[x]

    work = gated(gate, then)

    @flow
    async def main() -> list[Any]:
        futures = [work.submit(1) for _ in range(5)]
        await gate.began.wait()
        gate.open.set()
        answers = []
        for future in futures:
            try:
                answers.append(await future)
            except ValueError as error:
                answers.append(str(error))
        return answers

    assert await engine.run(main) == ["1", "2", 3, 3, 3]
    assert RAN == {1: 3}


async def test_a_failure_of_the_leader_that_nobody_looks_at_fails_the_flow(
    engine: Engine, gate: Gate
) -> None:
    def then(x: int) -> int:
        if RAN[x] == 1:
            raise ValueError("first")
        return x

    work = gated(gate, then)

    @flow
    async def main() -> int:
        work.submit(1)
        second = work.submit(1)
        gate.open.set()
        return await second

    with pytest.raises(ExceptionGroup, match="nothing looked at"):
        await engine.run(main)


async def test_a_cancelled_waiter_leaves_the_shared_work_alone(engine: Engine, gate: Gate) -> None:
    work = gated(gate)

    @flow
    async def main() -> list[Any]:
        leader = work.submit(1)
        await gate.began.wait()
        waiter: TaskFuture[int] = work.submit(1)
        third = work.submit(1)
        await asyncio.sleep(0)
        assert waiter.cancel()
        gate.open.set()
        with pytest.raises(TaskCancelled):
            await waiter
        return [await leader, await third]

    assert await engine.run(main) == [1, 1]
    assert RAN == {1: 1}


async def test_when_the_leader_is_cancelled_the_next_one_runs(engine: Engine, gate: Gate) -> None:
    work = gated(gate)

    @flow
    async def main() -> int:
        leader = work.submit(1)
        waiter = work.submit(1)
        await gate.began.wait()
        leader.cancel()
        gate.open.set()
        with pytest.raises(TaskCancelled):
            await leader
        result: int = await waiter
        return result

    assert await engine.run(main) == 1
    assert RAN == {1: 2}


async def test_a_cancelled_run_hands_its_work_on_to_another_run(engine: Engine, gate: Gate) -> None:
    work = gated(gate)

    @flow
    async def main() -> Any:
        return await work(1)

    first = await engine.submit(main)
    await gate.began.wait()
    second = await engine.submit(main)
    await asyncio.sleep(0)
    await first.cancel()
    gate.open.set()
    assert await second == 1
    assert RAN == {1: 2}


async def test_a_task_may_call_itself_with_its_own_key(engine: Engine) -> None:
    @task(cache_policy=INPUTS - "depth")
    async def nested(x: int, depth: int) -> str:
        RAN[depth] += 1
        return f"{depth} {await nested(x, depth - 1)}" if depth else "end"

    @flow
    async def main() -> str:
        return await nested(1, 2)

    async with asyncio.timeout(10):
        assert await engine.run(main) == "2 1 end"
    assert RAN == {2: 1, 1: 1, 0: 1}


async def test_two_keys_that_need_each_other_do_not_wait_for_ever(engine: Engine) -> None:
    both = asyncio.Event()

    @task(cache_policy=INPUTS - "top")
    async def left(x: int, top: bool) -> str:
        RAN["left"] += 1
        if not top:
            return "left"
        if RAN["left"] and RAN["right"]:
            both.set()
        await both.wait()
        return await right(x, False)

    @task(cache_policy=INPUTS - "top")
    async def right(x: int, top: bool) -> str:
        RAN["right"] += 1
        if not top:
            return "right"
        if RAN["left"] and RAN["right"]:
            both.set()
        await both.wait()
        return await left(x, False)

    @flow
    async def main() -> list[str]:
        return await asyncio.gather(left(1, True), right(1, True))

    async with asyncio.timeout(10):
        answers = await engine.run(main)
    assert set(answers) <= {"left", "right"}


async def test_a_retry_of_the_leader_keeps_the_others_waiting(engine: Engine) -> None:
    @task(cache_policy=INPUTS, retries=2, retry_delay_seconds=0)
    async def work() -> int:
        RAN["work"] += 1
        if RAN["work"] < 3:
            raise ValueError
        return RAN["work"]

    @flow
    async def main() -> list[int]:
        return [await f for f in [work.submit() for _ in range(4)]]

    assert await engine.run(main) == [3] * 4


async def test_more_keys_than_fit_one_question_are_all_found(store: Store) -> None:
    @flow
    async def many() -> int:
        return sum(await square.map(range(700)))

    async with Engine(store) as engine:
        total = await engine.run(many)
        assert await engine.run(many) == total
    assert max(RAN.values()) == 1
    assert len(RAN) == 700
