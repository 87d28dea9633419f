"""Variables: values in the store that flows and people read and set."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pydantic import SecretStr

from asyncflow import (
    Engine,
    InvalidOption,
    MemoryStore,
    NoEngine,
    SqliteStore,
    flow,
    get_variable,
    set_variable,
    task,
)
from asyncflow.errors import BlockingCall

Store = MemoryStore | SqliteStore


async def test_variables_are_set_read_listed_and_deleted(store: Store) -> None:
    async with Engine(store) as engine:
        assert await engine.get_variable("rate") is None
        assert await engine.get_variable("rate", 5) == 5
        await engine.set_variable("rate", 7)
        await engine.set_variable("hosts", ["a", {"b": None}])
        await engine.set_variable("rate", 8.5)
        assert await engine.get_variable("rate", 5) == 8.5
    async with Engine(store) as engine:
        found = await engine.variables()
        assert [(v.name, v.value) for v in found] == [
            ("hosts", ["a", {"b": None}]),
            ("rate", 8.5),
        ]
        assert all(v.updated_at is not None for v in found)
        assert await engine.delete_variable("rate") is True
        assert await engine.delete_variable("rate") is False
        assert [v.name for v in await engine.variables()] == ["hosts"]


@pytest.mark.parametrize(
    "value", [None, True, 0, -1.5, 2**70, "", "é 🦊", [], {}, {"$": "tuple", "v": [1]}, [[[1]]]]
)
async def test_a_value_is_read_as_it_was_set(store: Store, value: Any) -> None:
    async with Engine(store) as engine:
        await engine.set_variable("x", value)
        found = await engine.get_variable("x", "other")
        assert found == value
        assert type(found) is type(value)


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value",
    [(1, 2), {1: 2}, {"a": (1,)}, b"x", float("nan"), float("inf"), {1}, object(), "\ud800",
     nested(100_000)],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
async def test_what_json_does_not_know_is_refused(engine: Engine, value: Any) -> None:
    with pytest.raises(InvalidOption, match="is no JSON"):
        await engine.set_variable("x", value)
    assert await engine.variables() == []


async def test_a_value_that_is_too_large_is_refused(engine: Engine) -> None:
    await engine.set_variable("x", "y" * 65_534)
    with pytest.raises(InvalidOption, match="takes 65,537 bytes, and at most 65,536 are kept"):
        await engine.set_variable("x", "y" * 65_535)


@pytest.mark.parametrize("name", ["", "A", "-a", ".a", "a b", "a" * 101, "ä", "a\n", 7, None])
async def test_a_name_that_is_none_is_refused(engine: Engine, name: Any) -> None:
    for use in (
        lambda: engine.set_variable(name, 1),
        lambda: engine.get_variable(name),
        lambda: engine.delete_variable(name),
    ):
        with pytest.raises(InvalidOption, match="lower-case letters"):
            await use()
    await engine.set_variable("0.a_b-" + "c" * 94, 1)


async def test_flows_and_tasks_of_both_colours_read_and_set_them(store: Store) -> None:
    @task
    async def bumps() -> int:
        count: int = await get_variable("count", 0)
        await set_variable("count", count + 1)
        return count + 1

    @task
    def plainly() -> int:
        count: int = get_variable("count", 0).wait()
        set_variable("count", count + 10).wait()
        return count

    @task
    def in_a_loop_of_its_own() -> int:
        async def inner() -> int:
            return await get_variable("count")

        return asyncio.run(inner())

    @flow
    async def main() -> list[int]:
        await set_variable("count", 5)
        done = [await bumps(), await plainly.submit(), await in_a_loop_of_its_own.submit()]
        return [*done, await get_variable("count")]

    async with Engine(store) as engine:
        assert await engine.run(main) == [6, 6, 16, 16]
        assert await get_variable("count") == 16, "the engine of `async with`"


async def test_what_was_read_is_not_recorded(store: Store) -> None:
    seen = []

    @flow
    async def main() -> None:
        seen.append(await get_variable("x"))
        if len(seen) == 1:
            raise ValueError("once")

    async with Engine(store) as engine:
        await engine.set_variable("x", 1)
        run = await engine.submit(main)
        with pytest.raises(ValueError, match="once"):
            await run
        await engine.set_variable("x", 2)
        await (await engine.resume(run.id))
        assert seen == [1, 2]


async def test_a_secret_does_not_become_a_variable(engine: Engine) -> None:
    @flow
    async def main(password: SecretStr) -> None:
        await set_variable("x", f"it is {password.get_secret_value()}")

    with pytest.raises(InvalidOption, match="holds a secret"):
        await engine.run(main, SecretStr("hunter22"))
    assert await engine.variables() == []


async def test_outside_of_engine_and_flow_there_are_none() -> None:
    for use in (lambda: get_variable("x"), lambda: set_variable("x", 1)):
        with pytest.raises(NoEngine, match="outside of a flow"):
            use()


async def test_waiting_on_the_event_loop_is_refused(engine: Engine) -> None:
    with pytest.raises(BlockingCall, match="await it instead"):
        get_variable("x").wait()


async def test_two_engines_on_one_store_see_each_other_s(path: Any) -> None:
    async with Engine(path) as one, Engine(path) as two:
        await one.set_variable("x", 1)
        assert await two.get_variable("x") == 1
        await two.delete_variable("x")
        assert await one.get_variable("x") is None
