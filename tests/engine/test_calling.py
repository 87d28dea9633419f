"""What a call is, and what it gives."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, defaultdict
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import pydantic
import pytest
from virtual import now, virtual_engine, virtually

from asyncflow import (
    Cancelled,
    Completed,
    Engine,
    Failed,
    TaskCancelled,
    TaskFuture,
    UpstreamFailed,
    allow_failure,
    as_completed,
    flow,
    resolve,
    resource,
    runtime,
    task,
    unmapped,
    wait,
)


class Point(NamedTuple):
    x: Any
    y: Any


@task
async def double(x: int) -> int:
    return x * 2


@task
def half(x: int) -> float:
    return x / 2


@task
async def broken(x: int = 0) -> int:
    raise ValueError(f"no {x}")


async def test_a_direct_call_gives_the_value(engine: Engine) -> None:
    @flow
    async def main() -> int:
        return await double(2)

    assert await engine.run(main) == 4


async def test_a_direct_call_raises_the_exception_of_the_function(engine: Engine) -> None:
    @flow
    async def main() -> str:
        try:
            await broken(3)
        except ValueError as error:
            return str(error)
        return "nothing was raised"

    assert await engine.run(main) == "no 3"


async def test_outside_of_a_flow_a_state_can_be_asked_for_too() -> None:
    for state in (half(3, return_state=True), await double(2, return_state=True)):
        assert state.is_completed()
    assert half(3, return_state=True).result() == 1.5
    assert half("x", return_state=True).is_failed()  # type: ignore[arg-type] # wrong on purpose


async def test_outside_of_a_flow_a_task_is_the_plain_function() -> None:
    assert await double(2) == 4
    assert half(3) == 1.5
    assert await double.fn(5) == 10


async def test_submit_serves_both_colours(engine: Engine) -> None:
    @flow
    async def main() -> tuple[int, float]:
        a, b = double.submit(1), half.submit(1)
        return await a, await b

    assert await engine.run(main) == (2, 0.5)


async def test_a_future_among_the_arguments_is_a_dependency(engine: Engine) -> None:
    @dataclass
    class Box:
        inside: object

        def __post_init__(self) -> None:
            made.append(1)

    made: list[int] = []
    seen = []

    @task
    async def take(*args: object, **kwargs: object) -> None:
        seen.append((args, kwargs))

    @flow
    async def main() -> None:
        f = double.submit(1)
        await take.submit([f, {"k": (f,)}], Box(f), named=f)

    await engine.run(main)
    args, kwargs = seen[0]
    assert args[0] == [2, {"k": (2,)}]
    assert args[1].inside == 2
    assert kwargs == {"named": 2}
    assert made == [1]


async def test_wait_for_is_a_dependency_without_data(engine: Engine) -> None:
    order = []

    @task
    async def note(what: str) -> None:
        order.append(what)

    @flow
    async def main() -> None:
        gate = asyncio.Event()

        @task
        async def first() -> None:
            await gate.wait()
            order.append("first")

        a = first.submit()
        b = note.submit("second", wait_for=[a])
        gate.set()
        await b

    await engine.run(main)
    assert order == ["first", "second"]


async def test_a_failed_upstream_ends_what_depends_on_it_without_running(engine: Engine) -> None:
    ran = []

    @task
    async def after(x: int) -> None:
        ran.append(x)

    @flow
    async def main() -> None:
        down = after.submit(broken.submit(1))
        with pytest.raises(UpstreamFailed) as caught:
            await down
        assert isinstance(caught.value.__cause__, ValueError)
        assert (down.state.type, down.state.name) == ("FAILED", "UpstreamFailed")

    await engine.run(main)
    assert ran == []


async def test_allow_failure_hands_the_exception_on(engine: Engine) -> None:
    @task
    async def kind(x: object) -> str:
        return type(x).__name__

    @flow
    async def main() -> str:
        return await kind.submit(allow_failure(broken.submit()))

    assert await engine.run(main) == "ValueError"


async def test_map_gives_values_in_the_order_of_its_inputs(engine: Engine) -> None:
    @task
    async def add(x: int, y: int, more: list[int]) -> int:
        for _ in range(10 - x):  # the first ends last
            await asyncio.sleep(0)
        return x + y + sum(more)

    @flow
    async def main() -> list[int]:
        return await add.map([1, 2, 3], [10, 20, 30], more=unmapped([100, 200]))

    assert await engine.run(main) == [311, 322, 333]


async def test_a_map_over_a_map_is_pipelined(engine: Engine) -> None:
    started = asyncio.Event()

    @task
    async def produce(x: int) -> int:
        if x:
            await asyncio.wait_for(started.wait(), 5)
        return x

    @task
    async def consume(x: int) -> int:
        started.set()
        return x + 1

    @flow
    async def main() -> list[int]:
        return await consume.map(produce.map([0, 1, 2]))

    assert await engine.run(main) == [1, 2, 3]


async def test_a_map_over_a_future_waits_for_its_list(engine: Engine) -> None:
    @task
    async def numbers() -> list[int]:
        return [1, 2, 3]

    @flow
    async def main() -> list[int]:
        return await double.map(numbers.submit())

    assert await engine.run(main) == [2, 4, 6]


async def test_futures_are_found_at_any_depth_and_containers_keep_their_type(
    engine: Engine,
) -> None:
    class Row(list[int]):
        pass

    @task
    async def kind(x: object) -> str:
        return f"{type(x).__name__} {x!r}"

    @flow
    async def main() -> list[str]:
        deep: object = double.submit(1)
        for _ in range(300):
            deep = [deep]
        default = defaultdict(list, a=double.submit(1))
        told = [
            await kind.submit(default),
            await kind.submit(OrderedDict(a=double.submit(1))),
            await kind.submit(Row([double.submit(1)])),  # type: ignore[list-item] # a future for a value
            await kind.submit(Point(double.submit(1), 2)),
            await kind.submit(frozenset([double.submit(1)])),
            await kind.submit({"a": [double.map([])]}),
            await kind.submit(deep),
        ]
        assert isinstance(default["a"], TaskFuture)
        return told

    *told, deep = await engine.run(main)
    assert told == [
        "defaultdict defaultdict(<class 'list'>, {'a': 2})",
        f"OrderedDict {OrderedDict(a=2)!r}",
        "Row [2]",
        "Point Point(x=2, y=2)",
        "frozenset frozenset({2})",
        "dict {'a': [[]]}",
    ]
    assert deep == "list " + "[" * 300 + "2" + "]" * 300


async def test_a_string_is_not_iterated(engine: Engine) -> None:
    @task
    async def join(a: str, b: str) -> str:
        return a + b

    @flow
    async def main() -> list[str]:
        return await join.map(["x", "y"], "ab")

    assert await engine.run(main) == ["xab", "yab"]


async def test_return_state_gives_a_state_instead_of_raising(engine: Engine) -> None:
    @flow
    async def main() -> list[str]:
        states = [
            await broken(return_state=True),
            await double(1, return_state=True),
            await broken.submit(return_state=True),
        ]
        assert isinstance(states[0].result(raise_on_failure=False), ValueError)
        with pytest.raises(ValueError, match="no 0"):
            states[0].result()
        assert states[1].result() == 2
        return [s.name for s in states]

    assert await engine.run(main) == ["Failed", "Completed", "Failed"]


async def test_an_unseen_failure_fails_the_flow_with_all_causes(engine: Engine) -> None:
    @flow
    async def main() -> str:
        broken.submit(1)
        broken.submit(2)
        return "done"

    with pytest.raises(ExceptionGroup) as caught:
        await engine.run(main)
    assert {str(e) for e in caught.value.exceptions} == {"no 1", "no 2"}


async def test_a_flow_does_not_end_before_what_it_submitted(engine: Engine) -> None:
    ended = []

    @task
    async def slow(x: int) -> None:
        for _ in range(5):
            await asyncio.sleep(0)
        ended.append(x)

    @flow
    async def main() -> None:
        slow.submit(1)
        slow.map([2, 3])

    await engine.run(main)
    assert sorted(ended) == [1, 2, 3]


async def test_when_the_body_raises_what_is_running_is_cancelled(engine: Engine) -> None:
    events = []

    @task
    async def forever() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            events.append("cancelled")
            raise

    @flow
    async def main() -> None:
        forever.submit()
        await asyncio.sleep(0)
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        await engine.run(main)
    assert events == ["cancelled"]


async def test_a_subflow_is_a_run_of_its_own(engine: Engine) -> None:
    @flow
    async def child(x: int) -> int:
        assert runtime.flow_run.parent_id is not None
        return await double(x)

    @flow
    async def main() -> list[int]:
        return [await child(1), await child.submit("2")]

    run = await engine.submit(main)
    assert await run == [2, 4]
    below = await engine.runs(parent_id=run.id)
    assert [r.flow_name for r in below] == ["child", "child"]
    assert below[0].parameters == {"x": 2}
    assert {r.id for r in await engine.runs(parent_id=None)} == {run.id}


async def test_as_completed_gives_the_first_first(engine: Engine) -> None:
    @flow
    async def main() -> list[int]:
        gates = [asyncio.Event() for _ in range(3)]

        @task
        async def at(x: int) -> int:
            await gates[x].wait()
            return x

        futures = [at.submit(i) for i in range(3)]
        order = []
        gates[2].set()
        async for future in as_completed(futures):
            order.append(await future)
            gates[1 if len(order) == 1 else 0].set()
        return order

    assert await engine.run(main) == [2, 1, 0]


async def test_wait_tells_done_from_not_done(engine: Engine) -> None:
    @flow
    async def main() -> tuple[int, int]:
        gate = asyncio.Event()

        @task
        async def held() -> None:
            await gate.wait()

        futures = [double.submit(1), held.submit()]
        done, not_done = await wait(futures, return_when="FIRST_COMPLETED")
        assert done == {futures[0]}
        gate.set()
        assert await wait(futures) == (set(futures), set())
        return len(done), len(not_done)

    assert await engine.run(main) == (1, 1)


@virtually
async def test_wait_ends_after_its_timeout() -> None:
    @flow
    async def main() -> None:
        gate = asyncio.Event()

        @task
        async def held() -> None:
            await gate.wait()

        done, not_done = await wait([held.submit()], timeout=10)
        assert (len(done), len(not_done), round(now(), 6)) == (0, 1, 10)
        gate.set()

    async with virtual_engine() as engine:
        await engine.run(main)


async def test_resolve_puts_values_in_the_place_of_futures(engine: Engine) -> None:
    @flow
    async def main() -> object:
        return await resolve({"a": [double.submit(1), (double.submit(2),)]})

    assert await engine.run(main) == {"a": [2, (4,)]}


async def test_a_returned_future_is_resolved(engine: Engine) -> None:
    @flow
    async def one() -> object:
        return double.submit(1)

    @flow
    async def many() -> object:
        return double.map([1, 2])

    @task
    async def outer() -> object:
        return double.submit(4)

    @flow
    async def nested() -> object:
        return await outer()

    assert await engine.run(one) == 2
    assert await engine.run(many) == [2, 4]
    assert await engine.run(nested) == 8


async def test_a_returned_state_decides_how_it_ended(engine: Engine) -> None:
    @task
    async def decide(how: str) -> object:
        return {
            "done": Completed(7, "fine", "Skipped"),
            "failed": Failed("not today"),
            "cancelled": Cancelled("never mind"),
        }[how]

    @flow
    async def main() -> list[object]:
        found: list[object] = []
        for how in ("done", "failed", "cancelled"):
            state = await decide(how, return_state=True)
            found.append([state.type, state.name, state.message])
        return found

    assert await engine.run(main) == [
        ["COMPLETED", "Skipped", "fine"],
        ["FAILED", "Failed", "not today"],
        ["CANCELLED", "Cancelled", "never mind"],
    ]

    @flow
    async def failing() -> object:
        return Failed("no luck")

    run = await engine.submit(failing)
    assert (await run.wait()).message == "no luck"


async def test_stream_pulls_lazily_and_gives_all_results(engine: Engine) -> None:
    pulled = given = most = 0

    def source() -> Iterator[int]:
        nonlocal pulled, most
        for i in range(100):
            pulled += 1
            most = max(most, pulled - given)
            yield i

    @flow
    async def main() -> int:
        nonlocal given
        total = 0
        async for value in double.stream(source(), max_in_flight=7):
            given += 1
            total += value
        return total

    assert await engine.run(main) == 9900
    assert most <= 8


async def test_stream_keeps_the_order_and_collects_errors(engine: Engine) -> None:
    last = asyncio.Event()

    @task
    async def odd(x: int) -> int:
        if x == 0:
            await last.wait()
        if x == 3:
            last.set()
        if x % 2 == 0:
            raise ValueError(str(x))
        return x

    @flow
    async def main() -> list[str]:
        results = odd.stream(iter(range(4)), ordered=True, on_error="collect")
        return [repr(value) async for value in results]

    assert await engine.run(main) == ["ValueError('0')", "1", "ValueError('2')", "3"]


async def test_what_stars_take_is_converted_too(engine: Engine) -> None:
    @flow
    async def main(*numbers: int, **named: float) -> list[object]:
        return [numbers, named]

    assert await engine.run(main, "1", 2, a="3") == [(1, 2), {"a": 3.0}]


async def test_a_failure_below_an_unseen_one_is_its_cause(engine: Engine) -> None:
    @flow
    async def main() -> None:
        double.submit(double.submit(broken.submit(1)))

    with pytest.raises(ExceptionGroup) as caught:
        await engine.run(main)
    assert [repr(e) for e in caught.value.exceptions] == ["ValueError('no 1')"]


async def test_flow_parameters_are_checked_and_converted(engine: Engine) -> None:
    class Point(pydantic.BaseModel):
        x: int

    @flow
    async def main(n: int, p: Point) -> list[object]:
        return [n, p.x]

    assert await engine.run(main, "3", {"x": "4"}) == [3, 4]
    with pytest.raises(ValueError, match="flow 'main', parameter 'n'"):
        await engine.run(main, "three", {"x": 1})

    @flow(validate_parameters=False)
    async def loose(n: int) -> str:
        return type(n).__name__

    assert await engine.run(loose, "3") == "str"


async def test_a_resource_is_opened_once_and_closed_at_the_end() -> None:
    events = []

    @resource
    async def thing() -> AsyncIterator[Any]:
        events.append("open")
        yield 42
        events.append("close")

    @task
    async def use(x: int, given: Annotated[int, thing]) -> int:
        return x + given

    @flow
    async def main() -> list[int]:
        return [await use(1), *await use.map([2, 3])]

    from asyncflow import MemoryStore

    async with Engine(MemoryStore()) as engine:
        assert await engine.run(main) == [43, 44, 45]
        assert await engine.run(main) == [43, 44, 45]
        assert events == ["open"]
    assert events == ["open", "close"]


async def test_a_flow_takes_resources_too_and_stores_none(engine: Engine) -> None:
    @resource
    async def thing() -> AsyncIterator[Any]:
        yield object()

    @flow
    async def main(x: int, given: Annotated[object, thing], *rest: int, y: int = 1) -> list[object]:
        return [x, type(given) is object, rest, y]

    @flow
    async def middle(given: Annotated[object, thing], x: int) -> list[object]:
        return [type(given) is object, x]

    run = await engine.submit(main, 1)
    assert await run == [1, True, (), 1]
    assert run.parameters == {"x": 1, "rest": (), "y": 1}
    assert await engine.run(main, 1, object(), 2, y=3) == [1, True, (2,), 3]
    assert await engine.run(middle, x=5) == [True, 5]


async def test_what_a_resource_does_belongs_to_no_run(engine: Engine) -> None:
    seen = []

    @resource
    async def thing() -> AsyncIterator[Any]:
        seen.append(runtime.flow_run.id)
        yield 1

    @task
    async def use(given: Annotated[int, thing]) -> int:
        return given

    @flow
    async def main() -> int:
        return await use()  # type: ignore[call-arg] # the resource is handed in

    assert await engine.run(main) == 1
    assert seen == [None]


@virtually
async def test_a_resource_that_does_not_close_is_left_and_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    order = []

    @resource
    async def stuck() -> AsyncIterator[int]:
        yield 1
        await asyncio.Event().wait()

    @resource
    async def fine() -> AsyncIterator[int]:
        yield 2
        order.append("closed")

    @task
    async def use(a: Annotated[int, fine], b: Annotated[int, stuck]) -> int:
        return a + b

    @flow
    async def main() -> int:
        return await use()  # type: ignore[call-arg] # the resource is handed in

    async with virtual_engine(cancel_grace_seconds=5) as engine:
        assert await engine.run(main) == 3
    assert order == ["closed"]
    assert now() < 7
    assert "the resource 'stuck' was not closed within 5 s" in caplog.text


async def test_a_method_can_be_a_task(engine: Engine) -> None:
    class Client:
        def __init__(self, base: int) -> None:
            self.base = base

        @task
        async def get(self, x: int) -> int:
            return self.base + x

    @flow
    async def main() -> list[int]:
        a, b = Client(10), Client(20)
        return [*await asyncio.gather(a.get(1), b.get(1)), *await a.get.map([2])]

    assert await engine.run(main) == [11, 21, 12]
    assert await Client(1).get(1) == 2


async def test_awaiting_a_cancelled_future_raises_task_cancelled(engine: Engine) -> None:
    @task
    async def forever() -> None:
        await asyncio.Event().wait()

    @flow
    async def main() -> str:
        future = forever.submit()
        await asyncio.sleep(0)
        assert future.cancel()
        with pytest.raises(TaskCancelled):
            await future
        assert not future.cancel()
        return future.state.name

    assert await engine.run(main) == "Cancelled"


async def test_names_come_from_templates(engine: Engine) -> None:
    @task(task_run_name="get {x}")
    async def get(x: int) -> str | None:
        return runtime.task_run.name

    @flow(flow_run_name="site {n}")
    async def main(n: int) -> list[object]:
        return [await get(n), runtime.flow_run.name]

    assert await engine.run(main, 5) == ["get 5", "site 5"]


async def test_names_know_defaults_and_may_come_from_functions(engine: Engine) -> None:
    names = []

    @task(task_run_name="{x} of {total}")
    async def first(x: int, total: int = 9) -> None:
        names.append(runtime.task_run.name)

    @task(task_run_name=lambda x: f"the {x}")
    async def second(x: int, y: int = 0) -> None:
        names.append(runtime.task_run.name)

    @task(task_run_name=lambda: "any")
    async def third(**kw: int) -> None:
        names.append(runtime.task_run.name)

    @task(task_run_name=lambda parameters: str(parameters))
    async def fourth(x: int, **kw: int) -> None:
        names.append(runtime.task_run.name)

    @task(task_run_name="{x} {z}")
    async def fifth(x: int, **kw: int) -> None:
        names.append(runtime.task_run.name)

    @flow(flow_run_name="run {n:03d} of {site}")
    async def main(n: int, site: str = "here") -> None:
        names.append(runtime.flow_run.name)
        await first(1)
        await second(2)
        await third(a=3)
        await fourth(4, z=5)
        await fifth(5, z=6)

    await engine.run(main, 7)
    assert names == [
        "run 007 of here",
        "1 of 9",
        "the 2",
        "any",
        "{'x': 4, 'z': 5}",
        "5 6",
    ]


async def test_runtime_is_none_outside_of_a_run() -> None:
    assert runtime.flow_run.id is None
    assert runtime.task_run.attempt is None


async def test_gather_and_task_groups_work(engine: Engine) -> None:
    @flow
    async def main() -> list[int]:
        first = await asyncio.gather(*[double(i) for i in range(5)])
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(double(i)) for i in range(5)]
        return [*first, *[t.result() for t in tasks]]

    assert await engine.run(main) == [0, 2, 4, 6, 8] * 2


async def test_context_variables_of_the_caller_reach_the_task(engine: Engine) -> None:
    from contextvars import ContextVar

    var: ContextVar[str] = ContextVar("var", default="none")

    @task
    async def read() -> str:
        value = var.get()
        var.set("changed inside")
        return value

    @task
    def read_in_thread() -> str:
        return var.get()

    @flow
    async def main() -> list[str]:
        var.set("mine")
        return [await read(), await read.submit(), await read_in_thread.submit(), var.get()]

    assert await engine.run(main) == ["mine"] * 4


async def test_a_large_fan_out_of_mixed_kinds_completes(engine: Engine) -> None:
    @flow(max_concurrency=10)
    async def main() -> int:
        a = double.map(range(1000))
        b = half.map(range(50))
        c = [double.submit(x) for x in a[:100]]
        return sum(await a) + int(sum(await b)) + sum([await f for f in c])

    assert await engine.run(main) == 999000 + 612 + 4 * 4950


async def test_a_parameter_may_be_called_key_or_priority(engine: Engine) -> None:
    @task
    async def look_up(key: str, priority: int = 0) -> tuple[str, int]:
        return key, priority

    @flow
    async def main() -> list[tuple[str, int]]:
        return [await look_up.submit(key="a", priority=3), *await look_up.map(["b"])]

    assert await engine.run(main) == [("a", 3), ("b", 0)]


async def test_a_returned_failed_state_keeps_its_message_and_name(engine: Engine) -> None:
    @flow
    async def main() -> object:
        return Failed("no luck", name="Unlucky")

    state = await (await engine.submit(main)).wait()
    assert (state.type.value, state.name, state.message) == ("FAILED", "Unlucky", "no luck")


async def test_events_of_all_runs_come_page_by_page(engine: Engine) -> None:
    @flow
    async def main() -> None:
        pass

    runs = [await engine.submit(main) for _ in range(3)]
    for run in runs:
        await run
    everything = await engine.events(limit=100)
    assert {event.run_id for event in everything} == {run.id for run in runs}
    first = await engine.events(limit=4)
    rest = await engine.events(limit=100, cursor=first.next_cursor)
    assert [*first, *rest] == list(everything)
    own = await engine.events(runs[0].id)
    assert [event.name for event in own] == ["Scheduled", "Running", "Completed"]
