"""What decorators take and refuse: options, methods, hooks, copies, resources, names."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any

import pytest

import asyncflow
from asyncflow import (
    BlockingCall,
    Engine,
    FlowTimeout,
    InvalidDefinition,
    InvalidOption,
    InvalidParameters,
    MemoryStore,
    MissingExtra,
    NoEngine,
    concurrency,
    flow,
    rate_limit,
    resource,
    runtime,
    tags,
    task,
)
from asyncflow.resources import Resource

if TYPE_CHECKING:
    from decimal import Decimal as OnlyForTypes

# --- options --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "match"),
    [
        pytest.param({"limits": {"db": 0}}, "names of limits and units", id="no unit of a limit"),
        pytest.param({"retry_condition_fn": 3}, "give a function", id="a condition of 3"),
        pytest.param({"serializer": "yaml"}, "use one of json, pickle", id="a serializer"),
        pytest.param({"timeout_mode": "hard"}, "use one of cancel, soft", id="a timeout mode"),
        pytest.param({"max_concurrency": True}, "a whole number", id="a limit of True"),
        pytest.param({"total_timeout_seconds": float("inf")}, "give seconds", id="endless seconds"),
    ],
)
def test_an_impossible_option_of_a_task_is_named(options: dict[str, Any], match: str) -> None:
    async def work() -> None: ...

    with pytest.raises(InvalidOption, match=match):
        task(**options)(work)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        pytest.param({"retry_budget": 1.5}, "between 0 and 1", id="a share above 1"),
        pytest.param({"timeout": 1}, "no option 'timeout'", id="an unknown option"),
    ],
)
def test_an_impossible_option_of_a_flow_is_named(options: dict[str, Any], match: str) -> None:
    async def work() -> None: ...

    with pytest.raises(InvalidOption, match=match):
        flow(**options)(work)


@pytest.mark.parametrize("decorator", [task, flow])
@pytest.mark.parametrize("kind", [staticmethod, classmethod])
def test_what_stands_above_the_wrong_decorator_is_told(decorator: Any, kind: Any) -> None:
    async def method() -> None: ...

    with pytest.raises(InvalidDefinition, match=f"put @{kind.__name__} above @"):
        decorator(kind(method))


def test_a_task_may_not_take_the_names_that_submit_takes() -> None:
    async def work(wait_for: int) -> None: ...

    with pytest.raises(InvalidDefinition, match="'wait_for', a name that submit"):
        task(work)


@pytest.mark.parametrize("runner", ["async", "thread"])
def test_a_runner_of_the_other_colour_is_refused(runner: str) -> None:
    async def colourful() -> None: ...

    def plain() -> None: ...

    with pytest.raises(InvalidDefinition, match="leave runner= out"):
        task(runner=runner)(plain if runner == "async" else colourful)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"durability": "certain"}, "use one of off, relaxed, strict, full"),
        ({"max_concurrency": 0}, "max_concurrency=0: give a whole number"),
        ({"max_concurrency": 1.5}, "max_concurrency=1.5: give a whole number"),
        ({"max_threads": 0}, "max_threads=0: give a whole number"),
        ({"max_recoveries": -1}, "max_recoveries=-1: give a whole number"),
        ({"max_recoveries": True}, "max_recoveries=True: give a whole number"),
        ({"cancel_grace_seconds": -1}, "cancel_grace_seconds=-1: give seconds"),
        ({"suspend_after_seconds": "long"}, "suspend_after_seconds='long': give seconds"),
    ],
)
def test_an_impossible_option_of_an_engine_is_named(options: dict[str, Any], match: str) -> None:
    with pytest.raises(InvalidOption) as caught:
        Engine(MemoryStore(), **options)
    words = match.split(", ") if "use one of" in match else [match]
    assert all(word.removeprefix("use one of ") in str(caught.value) for word in words)


async def test_an_engine_that_is_open_is_not_opened_again(engine: Engine) -> None:
    with pytest.raises(InvalidOption, match="open already"):
        await engine.open()


async def test_what_is_no_store_is_refused() -> None:
    with pytest.raises(InvalidOption, match="give a path, a SqliteStore, a MemoryStore"):
        await Engine(3).open()  # type: ignore[arg-type] # wrong on purpose


async def test_closing_twice_is_closing_once() -> None:
    engine = Engine(MemoryStore())
    await engine.open()
    await engine.aclose()
    await engine.aclose()


async def test_an_engine_may_be_opened_and_closed_by_hand() -> None:
    @flow
    async def main() -> int:
        return 1

    engine = Engine(MemoryStore())
    await engine.open()
    try:
        assert await engine.run(main) == 1
    finally:
        await engine.__aexit__(None, None, None)


async def test_a_function_that_is_no_flow_is_refused(engine: Engine) -> None:
    async def main() -> None: ...

    with pytest.raises(InvalidOption, match="is not a flow"):
        await engine.run(main)  # type: ignore[arg-type] # wrong on purpose


# --- copies with other options --------------------------------------------------------------------


def test_a_copy_with_an_unknown_option_is_refused() -> None:
    @task
    async def one() -> None: ...

    @flow
    async def whole() -> None: ...

    for declared in (one, whole):
        with pytest.raises(InvalidOption, match=r"has no option 'retrys': its options are .*tags"):
            declared.with_options(retrys=1)


async def test_a_copy_has_its_own_name_and_run_name(engine: Engine) -> None:
    @task
    async def one(x: int) -> str | None:
        return runtime.task_run.name

    @flow
    async def main(n: int) -> list[Any]:
        return [
            await one(n),
            await one.with_options(task_run_name="number {x}")(n),
            await one.with_options(name="uno")(n),
        ]

    copy = main.with_options(flow_run_name="with {n}", name="other")
    run = await engine.submit(copy, 3)
    assert await run == ["one-1", "number 3", "uno-3"]
    assert (run.name, run.flow_name) == ("with 3", "other")
    assert repr(one) == "<AsyncTask 'one'>"
    assert repr(copy) == "<AsyncFlow 'other'>"


async def test_a_name_may_come_from_a_function(engine: Engine) -> None:
    @task(task_run_name=lambda: "made up")
    async def one() -> str | None:
        return runtime.task_run.name

    @flow
    async def main() -> str | None:
        return await one()

    assert await engine.run(main) == "made up"


async def test_a_name_template_that_cannot_be_filled_in_is_told(engine: Engine) -> None:
    @task(task_run_name="{x.y}")
    async def one(x: int) -> None: ...

    @flow
    async def main() -> None:
        await one(1)

    with pytest.raises(
        InvalidParameters, match=r"'\{x\.y\}' cannot be filled in.*parameters are x"
    ):
        await engine.run(main)


async def test_a_key_may_be_a_template(engine: Engine) -> None:
    ran: list[str] = []

    @task(key="{url}")
    async def fetch(url: str, session: object = None) -> str:
        ran.append(url)
        if len(ran) == 2:
            raise ValueError(url)
        return url

    @flow
    async def main() -> list[str]:
        return [await fetch("a", object()), await fetch("b", session=object())]

    run = await engine.submit(main)
    assert (await run.wait()).is_failed()
    assert await (await engine.resume(run.id)) == ["a", "b"]
    assert ran == ["a", "b", "b"]


# --- the total timeout of a flow ------------------------------------------------------------------


def test_a_flow_takes_its_total_timeout_for_its_timeout() -> None:
    @flow(total_timeout_seconds=5)
    async def main() -> None: ...

    assert main.options.timeout == 5
    assert issubclass(FlowTimeout, TimeoutError)


# --- methods --------------------------------------------------------------------------------------


class Shop:
    def __init__(self, name: str) -> None:
        self.name = name

    @task
    async def price(self, x: int) -> str:
        return f"{self.name} {x}"

    @task
    def stock(self, x: int) -> str:
        return f"{x} in {self.name}"

    @flow
    async def whole(self, x: int) -> list[str]:
        return [await self.price(x), await self.stock.submit(x)]


async def test_methods_are_tasks_and_flows_of_their_object(engine: Engine) -> None:
    a, b = Shop("a"), Shop("b")
    assert await engine.run(a.whole, 1) == ["a 1", "1 in a"]
    assert await engine.run(b.whole, 2) == ["b 2", "2 in b"]
    assert await a.price(3) == "a 3"
    assert Shop.whole.name == "whole"
    assert Shop.price.name == "price"
    assert Shop.stock.name == "stock"


# --- hooks as decorators --------------------------------------------------------------------------


async def test_each_hook_can_be_added_by_a_decorator(engine: Engine) -> None:
    told: list[str] = []

    @task
    async def work(x: int) -> int:
        return 1 // x

    @flow
    async def main(x: int) -> int:
        return await work(x)

    for declared in (work, main):
        for name in ("on_running", "on_completion", "on_failure", "on_cancellation", "on_crashed"):
            add = getattr(declared, name)

            @add
            def note(owner: Any, run: Any, state: Any, name: str = name) -> None:
                told.append(f"{owner.name} {name}")

    await engine.run(main, 1)
    with pytest.raises(ZeroDivisionError):
        await engine.run(main, 0)
    assert told == [
        "main on_running", "work on_running", "work on_completion", "main on_completion",
        "main on_running", "work on_running", "work on_failure", "main on_failure",
    ]  # fmt: skip


@pytest.mark.parametrize("decorator", [task, flow])
def test_a_hook_that_is_no_function_is_refused(decorator: Any) -> None:
    @decorator
    async def work() -> None: ...

    with pytest.raises(InvalidOption, match="on_failure takes a function, not 3"):
        work.on_failure(3)


# --- arguments ------------------------------------------------------------------------------------


async def test_arguments_of_every_kind_fit(engine: Engine) -> None:
    @task
    async def many(*args: int) -> int:
        return sum(args)

    @task
    async def named(a: int, *, b: int, **more: int) -> int:
        return a + b + sum(more.values())

    @flow
    async def main() -> list[int]:
        with pytest.raises(InvalidParameters, match="missing a required"):
            named.submit(1)
        none = await many.map([])
        return [await many(1, 2, 3), await many.submit(4), await named(1, b=2, c=3), sum(none)]

    assert await engine.run(main) == [6, 4, 6, 0]


# --- what is known of the running code ------------------------------------------------------------


async def test_runtime_tells_all_of_run_and_call(engine: Engine) -> None:
    @task(tags={"own"})
    async def look() -> list[Any]:
        return [runtime.task_run.task_name, runtime.task_run.tags, runtime.task_run.attempt]

    @flow(tags={"flow"})
    async def main(n: int, *, more: str = "x") -> list[Any]:
        with tags("extra"):
            inside = await look()
        run = runtime.flow_run
        return [run.flow_name, run.parameters, run.tags, run.attempt, run.parent_id, *inside]

    assert await engine.run(main, 1) == [
        "main", {"n": 1, "more": "x"}, ["flow"], 1, None,
        "look", ["extra", "flow", "own"], 1,
    ]  # fmt: skip
    run, call = runtime.flow_run, runtime.task_run
    outside = [run.flow_name, run.parameters, run.tags, run.attempt, call.task_name, call.tags]
    assert set(map(str, outside)) == {"None"}


def test_every_public_name_is_listed_and_can_be_had() -> None:
    assert {"flow", "task", "Engine"} <= set(dir(asyncflow))
    assert all(getattr(asyncflow, name) is not None for name in dir(asyncflow))
    with pytest.raises(AttributeError, match="nothing_like_it"):
        asyncflow.nothing_like_it


def test_a_missing_extra_says_how_to_get_it() -> None:
    error = MissingExtra("distributed", "dask", "runner='dask'")
    assert str(error) == (
        "runner='dask' needs the package 'distributed': install it with"
        " pip install 'asyncflow[dask]'"
    )
    assert (error.package, error.extra) == ("distributed", "dask")
    assert isinstance(error, ImportError)


# --- limits outside of flows ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: concurrency("db", occupy=0), "occupy=0: give 1 or more"),
        (lambda: rate_limit("api", occupy=0), "occupy=0: give 1 or more"),
        (lambda: rate_limit("api", limit=5), "give limit and period together"),
        (lambda: rate_limit("api", 6, limit=5, period=1), "6 at once can never be had"),
    ],
)
def test_an_impossible_limit_is_refused(make: Any, match: str) -> None:
    with pytest.raises(InvalidOption, match=match):
        make()


async def test_limits_need_an_engine() -> None:
    with pytest.raises(NoEngine, match=r"rate_limit\('api'\) was used outside"):
        await rate_limit("api")
    with pytest.raises(NoEngine, match=r"concurrency\('db'\) was used outside"):
        async with concurrency("db"):
            pass


async def test_a_limit_declared_with_two_sizes_is_refused(engine: Engine) -> None:
    async with concurrency("db", limit=2):
        pass
    with pytest.raises(InvalidOption, match="limit=2"):
        async with concurrency("db", limit=3):
            pass
    await rate_limit("api", limit=5, period=1)
    with pytest.raises(InvalidOption, match="limit=5, period=1"):
        await rate_limit("api", limit=6, period=1)


async def test_a_plain_task_waits_for_a_rate_in_its_thread(engine: Engine) -> None:
    @task
    def work(x: int) -> int:
        rate_limit("api", limit=100, period=1).wait()
        return x

    @flow
    async def main() -> list[int]:
        return await work.map(range(3))

    assert await engine.run(main) == [0, 1, 2]
    with pytest.raises(BlockingCall, match="await rate_limit"):
        rate_limit("api").wait()


# --- resources ------------------------------------------------------------------------------------


class Pool:
    def __init__(self, log: list[str], name: str = "pool") -> None:
        self.log = log
        self.name = name


def opened(log: list[str], **options: Any) -> Resource[Pool]:
    async def pool() -> AsyncIterator[Pool]:
        log.append("open")
        try:
            yield Pool(log)
        finally:
            log.append("close")

    return resource(**options)(pool) if options else resource(pool)  # type: ignore[arg-type] # wrong on purpose


async def test_a_resource_of_a_run_is_opened_once_for_each(engine: Engine) -> None:
    log: list[str] = []
    pool = opened(log, scope="run")

    @task
    async def use(x: int, p: Annotated[Pool, "a note", pool]) -> int:
        p.log.append(f"use {x}")
        return x

    @flow
    async def main() -> int:
        return await use(1) + await use(2)

    for _ in range(2):
        assert await engine.run(main) == 3
    assert log == ["open", "use 1", "use 2", "close"] * 2


async def test_a_resource_that_fails_to_open_is_tried_again(engine: Engine) -> None:
    tries: list[int] = []

    @resource
    async def flaky() -> AsyncIterator[int]:
        tries.append(1)
        if len(tries) == 1:
            raise ConnectionError("not yet")
        yield 5

    @task(retries=1)
    async def use(n: Annotated[int, flaky]) -> int:
        return n

    @flow
    async def main() -> int:
        return await use()

    assert await engine.run(main) == 5
    assert len(tries) == 2


async def test_a_resource_that_fails_to_close_is_reported(caplog: Any) -> None:
    @resource
    async def sticky() -> AsyncIterator[int]:
        yield 5
        raise ConnectionError("will not close")

    @task
    async def use(n: Annotated[int, sticky]) -> int:
        return n

    @flow
    async def main() -> int:
        return await use()

    async with Engine(MemoryStore()) as engine:
        assert await engine.run(main) == 5
    assert (
        "the resource 'sticky' could not be closed: ConnectionError: will not close" in caplog.text
    )


async def test_a_resource_can_be_given_and_used_by_hand(engine: Engine) -> None:
    log: list[str] = []
    pool = opened(log)

    @task
    async def use(p: Annotated[Pool, pool]) -> str:
        return p.name

    @flow
    async def main() -> str:
        return await use(Pool(log, "given"))  # type: ignore[arg-type] # wrong on purpose

    assert await engine.run(main) == "given"
    async with pool() as by_hand:
        assert by_hand.name == "pool"
    assert log == ["open", "close"]
    assert repr(pool) == "<resource 'pool'>"


async def test_a_resource_may_be_a_function_that_gives_a_context_manager(engine: Engine) -> None:
    @asynccontextmanager
    async def manager() -> AsyncIterator[int]:
        yield 7

    @resource
    def seven() -> Any:
        return manager()

    @task
    async def use(n: Annotated[int, seven], other: Annotated[OnlyForTypes, "x"] = 0) -> int:
        return n

    @flow
    async def main() -> int:
        return await use()

    assert await engine.run(main) == 7


def test_what_cannot_be_a_resource_is_refused() -> None:
    def with_parameters(x: int) -> None: ...

    def generator() -> Iterator[int]:
        yield 1

    async def coroutine() -> None: ...

    with pytest.raises(InvalidDefinition, match="has parameters"):
        resource(with_parameters)  # type: ignore[arg-type] # wrong on purpose
    for wrong in (generator, coroutine):
        with pytest.raises(InvalidDefinition, match="an async generator that yields once"):
            resource(wrong)  # type: ignore[arg-type] # wrong on purpose
    with pytest.raises(InvalidOption, match="use 'engine' or 'run'"):
        opened([], scope="process")


LATER: Any = None


@resource
async def of_this_module() -> AsyncIterator[int]:
    yield 11


async def test_an_annotation_that_is_text_may_name_types_for_checkers_only(engine: Engine) -> None:
    async def use(n: Any, m: Any = 0) -> Any:
        return n

    use.__annotations__ = {
        "n": "Annotated[OnlyForTypes[int], of_this_module]",
        "m": "Annotated[(, broken]",
        "return": "int",
    }
    declared = task(use)

    @flow
    async def main() -> int:
        return await declared()

    assert await engine.run(main) == 11


# --- flows called in each place -------------------------------------------------------------------


async def test_a_flow_uses_the_engine_around_it() -> None:
    @flow
    async def main() -> str | None:
        return runtime.flow_run.id

    async with Engine(MemoryStore()) as engine:
        run_id = await main()
        assert (await engine.runs())[0].id == run_id
        state = await main(return_state=True)
        assert state.is_completed()


async def test_flows_are_called_from_plain_code_of_a_flow(engine: Engine) -> None:
    @flow
    def inner(x: int) -> int:
        if x == 0:
            raise ValueError("no zeros")
        return x + 1

    @flow
    async def colourful(x: int) -> int:
        return x

    @task
    async def coloured(x: int) -> int:
        return x

    @flow
    def outer() -> list[Any]:
        with pytest.raises(BlockingCall, match=r"use colourful\.submit\(\.\.\.\)\.result\(\)"):
            colourful(1)  # type: ignore[unused-coroutine] # wrong on purpose
        with pytest.raises(BlockingCall, match=r"coloured\.submit"):
            coloured(1)  # type: ignore[unused-coroutine] # wrong on purpose
        return [
            inner(1),
            inner(2, return_state=True).name,
            inner(0, return_state=True).name,
            colourful.submit(5).result(),
        ]

    assert await engine.run(outer) == [2, "Completed", "Failed", 5]


async def test_a_plain_flow_called_on_the_loop_outside_of_flows_is_refused(engine: Engine) -> None:
    @flow
    def plain() -> None: ...

    with pytest.raises(BlockingCall, match="would block the event loop"):
        plain()
    await asyncio.sleep(0)


async def test_outside_of_flows_a_task_gives_its_state_when_asked() -> None:
    @task
    async def one(x: int) -> int:
        return 1 // x

    good, bad = await one(1, return_state=True), await one(0, return_state=True)
    assert (good.name, good.result()) == ("Completed", 1)
    assert bad.is_failed()
    with pytest.raises(ZeroDivisionError):
        bad.result()
