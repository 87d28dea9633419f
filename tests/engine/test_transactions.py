"""Transactions: what completed is undone when the rest does not, over crashes too."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import Counter
from typing import Any

import pytest
from virtual import now, virtual_engine, virtually

from asyncflow import (
    BlockingCall,
    Engine,
    InvalidDefinition,
    InvalidOption,
    MemoryStore,
    NoEngine,
    NotSerializable,
    RollbackIncomplete,
    RunCancelled,
    SqliteStore,
    StateType,
    StoreError,
    TaskCancelled,
    TaskTimeout,
    allow_failure,
    flow,
    get_run_logger,
    runtime,
    sleep,
    task,
    transaction,
)
from asyncflow.testing import crash_everywhere, simulate

Store = MemoryStore | SqliteStore


class World:
    """What was done outside of the engine, in order."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.broken = True
        self.stubborn: set[str] = set()
        self.gate = asyncio.Event()
        self.reached = asyncio.Event()


WORLD: World


@pytest.fixture(autouse=True)
def _new_world() -> None:
    global WORLD
    WORLD = World()


@task
async def save(name: str) -> str:
    WORLD.told.append(f"save {name}")
    return f"row of {name}"


@save.on_rollback
async def unsave(txn: Any) -> None:
    name = txn.parameters["name"]
    if name in WORLD.stubborn:
        raise OSError(f"cannot undo {name}")
    WORLD.told.append(f"undo {name}")


@save.on_commit
def announce(txn: Any) -> None:
    WORLD.told.append(f"commit {txn.parameters['name']}")


@task
async def fails(text: str = "failed") -> None:
    if WORLD.broken:
        raise ValueError(text)
    WORLD.told.append("no failure")


@task
async def waits() -> None:
    WORLD.reached.set()
    await WORLD.gate.wait()


async def names(engine: Engine, run_id: str) -> list[str]:
    return [f"{r.task_key} {r.state.name}" for r in await engine.task_runs(run_id)]


# --- the two ends ---------------------------------------------------------------------------------


async def test_a_block_that_ends_commits_in_order_and_keeps_what_it_did(store: Store) -> None:
    @flow
    async def main() -> str:
        async with transaction():
            a = await save("a")
            WORLD.told.append("between")
            await save("b")
        WORLD.told.append("after")
        return a

    async with Engine(store) as engine:
        run = await engine.submit(main)
        assert await run == "row of a"
        assert await names(engine, run.id) == [
            "save Completed",
            "save Completed",
            "save.on_commit Completed",
            "save.on_commit Completed",
        ]
    assert WORLD.told == ["save a", "between", "save b", "commit a", "commit b", "after"]


async def test_an_exception_that_leaves_the_block_undoes_the_latest_first(store: Store) -> None:
    @flow
    async def main() -> None:
        async with transaction():
            await save("a")
            await save.submit("b")
            await save.map(["c", "d"])
            await fails()

    async with Engine(store) as engine:
        run = await engine.submit(main)
        state = await run.wait()
        assert (state.type, state.name) == (StateType.FAILED, "RolledBack")
        assert isinstance(state.error, ValueError)
        assert "ValueError: failed" in state.message
        told = await names(engine, run.id)
    assert WORLD.told[4:] == ["undo d", "undo c", "undo b", "undo a"]
    assert told.count("save Completed") == 4
    assert told[4:] == ["fails Failed"] + ["save.on_rollback Completed"] * 4


async def test_the_body_of_the_block_may_fail_itself(engine: Engine) -> None:
    @flow
    async def main() -> str:
        try:
            async with transaction():
                await save("a")
                raise KeyError("mine")
        except KeyError:
            return "caught"

    run = await engine.submit(main)
    assert await run == "caught"
    assert run.state.name == "Completed"
    assert WORLD.told == ["save a", "undo a"]


async def test_what_did_not_complete_has_nothing_to_undo(engine: Engine) -> None:
    @task(on_rollback=lambda txn: WORLD.told.append("undo broken"))
    async def broken() -> None:
        raise ValueError

    @flow
    async def main() -> None:
        async with transaction():
            await broken()

    assert (await (await engine.submit(main)).wait()).is_failed()
    assert WORLD.told == []


async def test_calls_outside_of_the_block_are_none_of_it(engine: Engine) -> None:
    @flow
    async def main() -> None:
        await save("before")
        try:
            async with transaction():
                await save("inside")
                raise KeyError
        except KeyError:
            await save("after")
        raise ValueError

    await (await engine.submit(main)).wait()
    assert WORLD.told == ["save before", "save inside", "undo inside", "save after"]


async def test_what_is_running_is_cancelled_and_what_completed_meanwhile_undone(
    engine: Engine,
) -> None:
    stopped: list[str] = []

    @task(on_rollback=lambda txn: WORLD.told.append("undo never"))
    async def never() -> None:
        WORLD.reached.set()
        try:
            await WORLD.gate.wait()
        except asyncio.CancelledError:
            stopped.append("never")
            raise

    @task(on_rollback=lambda txn: WORLD.told.append("undo stubborn"))
    async def stubborn() -> None:
        try:
            await WORLD.gate.wait()
        except asyncio.CancelledError:
            return

    @flow
    async def main() -> None:
        async with transaction():
            await save("a")
            never.submit()
            stubborn.submit()
            await WORLD.reached.wait()
            await asyncio.sleep(0)
            raise KeyError

    assert (await (await engine.submit(main)).wait()).name == "RolledBack"
    assert stopped == ["never"]
    assert WORLD.told == ["save a", "undo stubborn", "undo a"]


async def test_a_map_without_hooks_is_waited_for_and_cancelled(engine: Engine) -> None:
    @task
    async def plain(x: int) -> int:
        WORLD.told.append(f"plain {x}")
        return x

    @flow(max_concurrency=1)
    async def main(fail: bool) -> None:
        async with transaction():
            await save("a")
            plain.map(range(3))
            if fail:
                raise KeyError

    assert (await (await engine.submit(main, False)).wait()).is_completed()
    assert WORLD.told == ["save a", "plain 0", "plain 1", "plain 2", "commit a"]
    WORLD.told.clear()
    assert (await (await engine.submit(main, True)).wait()).name == "RolledBack"
    assert WORLD.told[-1] == "undo a"


async def test_the_block_waits_for_what_it_submitted_before_it_commits(engine: Engine) -> None:
    @flow
    async def main() -> None:
        async with transaction():
            save.submit("a")
        WORLD.told.append("after")

    await engine.run(main)
    assert WORLD.told == ["save a", "commit a", "after"]


async def test_a_failure_that_nobody_looked_at_fails_the_block(engine: Engine) -> None:
    @flow
    async def main() -> None:
        async with transaction():
            fails.submit("unseen")
            await save("a")

    with pytest.raises(ExceptionGroup, match="of a transaction failed") as caught:
        await engine.run(main)
    assert [str(e) for e in caught.value.exceptions] == ["unseen"]
    assert WORLD.told == ["save a", "undo a"]


async def test_a_failure_that_was_allowed_does_not_fail_the_block(engine: Engine) -> None:
    @flow
    async def main() -> str:
        async with transaction():
            return await save.submit(allow_failure(fails.submit()))

    await engine.run(main)
    assert not any(told.startswith("undo") for told in WORLD.told)


async def test_a_failed_commit_hook_undoes_everything(engine: Engine) -> None:
    @task(on_rollback=lambda txn: WORLD.told.append("undo second"))
    async def second() -> None: ...

    def refuse(txn: Any) -> None:
        raise PermissionError("no")

    never_again = task(retries=0)(refuse)
    second.on_commit(never_again)

    @flow
    async def main() -> None:
        async with transaction():
            await save("a")
            await second()

    with pytest.raises(PermissionError, match="no"):
        await engine.run(main)
    assert WORLD.told == ["save a", "commit a", "undo second", "undo a"]


# --- hooks ----------------------------------------------------------------------------------------


async def test_a_hook_sees_parameters_result_and_task_run(engine: Engine) -> None:
    seen: list[Any] = []

    @task
    async def work(a: int, b: int = 2) -> int:
        return a + b

    @work.on_commit
    async def look(txn: Any) -> None:
        seen.append((txn.parameters, txn.result, txn.task_run.name, txn.key))

    @task
    async def one() -> int:
        return 1

    @flow
    async def main() -> None:
        async with transaction(key="k"):
            await work.submit(one.submit())

    await engine.run(main)
    assert seen == [({"a": 1, "b": 2}, 3, "work-2", "k")]


async def test_hooks_are_retried_and_run_in_the_order_of_their_declaration(engine: Engine) -> None:
    tries: Counter[str] = Counter()

    @task
    async def work() -> None: ...

    @work.on_rollback
    @task(name="first undo", retries=2)
    async def first(txn: Any) -> None:
        tries["first"] += 1
        if tries["first"] < 3:
            raise OSError
        WORLD.told.append("first")

    @work.on_rollback
    def second(txn: Any) -> None:
        WORLD.told.append("second")

    @flow
    async def main() -> None:
        async with transaction():
            await work()
            raise KeyError

    run = await engine.submit(main)
    await run.wait()
    assert WORLD.told == ["first", "second"]
    rows = {r.task_key: r for r in await engine.task_runs(run.id)}
    assert rows["first undo"].attempts == 3
    assert rows["work.on_rollback"].attempts == 1


async def test_a_hook_may_call_tasks_and_log(engine: Engine) -> None:
    @task
    async def part(x: int) -> int:
        WORLD.told.append(f"part {x}")
        return x

    @task
    async def work() -> None: ...

    @work.on_rollback
    async def undo(txn: Any) -> None:
        await part.map([1, 2])
        get_run_logger().info("undone")

    @flow
    async def main() -> None:
        async with transaction():
            await work()
            raise KeyError

    run = await engine.submit(main)
    await run.wait()
    assert WORLD.told == ["part 1", "part 2"]
    assert "undone" in [line.message for line in await engine.logs(run.id)]


async def test_options_and_copies_keep_their_hooks(engine: Engine) -> None:
    copy = save.with_options(name="copy")

    class Client:
        @task(on_rollback=lambda txn: WORLD.told.append(f"undo {txn.parameters['x']}"))
        async def put(self, x: int) -> None: ...

    @flow
    async def main() -> None:
        async with transaction():
            await copy("a")
            await Client().put(5)
            raise KeyError

    await (await engine.submit(main)).wait()
    assert WORLD.told == ["save a", "undo 5", "undo a"]


def test_a_hook_that_cannot_be_called_is_refused() -> None:
    with pytest.raises(InvalidOption, match=r"on_rollback takes a function of one argument"):

        @save.on_rollback
        def wrong() -> None: ...

    with pytest.raises(InvalidOption, match="give a function"):
        task(on_commit="send")(wrong_type)


async def wrong_type() -> None: ...


async def test_a_plain_hook_that_gives_a_coroutine_is_told_to_be_async(engine: Engine) -> None:
    async def later() -> None: ...

    @task(on_commit=task(retries=0, name="commit")(lambda txn: later()))
    async def work() -> None: ...

    @flow
    async def main() -> None:
        async with transaction():
            await work()

    with pytest.raises(InvalidDefinition, match="make it async def"):
        await engine.run(main)


# --- rollbacks that fail --------------------------------------------------------------------------


def quick(hook: Any) -> Any:
    return task(name="undo", retries=1, retry_delay_seconds=0)(hook)


async def test_a_failed_compensation_does_not_stop_the_others(engine: Engine) -> None:
    @task
    async def put(name: str) -> None:
        WORLD.told.append(f"put {name}")

    put.on_rollback(quick(unsave))
    WORLD.stubborn = {"b", "c"}

    @flow(retries=3, retry_delay_seconds=0)
    async def main() -> None:
        async with transaction():
            for name in "abcd":
                await put(name)
            await fails()

    run = await engine.submit(main)
    state = await run.wait()
    assert WORLD.told == ["put a", "put b", "put c", "put d", "undo d", "undo a"]
    error = state.error
    assert state.is_failed()
    assert isinstance(error, RollbackIncomplete)
    assert isinstance(error, ExceptionGroup)
    assert "2 compensations of a transaction failed" in str(error)
    assert [str(e) for e in error.exceptions] == ["cannot undo c", "cannot undo b"]
    assert isinstance(error.__cause__, ValueError)
    attempts = [r.attempts for r in await engine.task_runs(run.id) if r.task_key == "undo"]
    assert attempts == [1, 2, 2, 1]


async def test_an_incomplete_rollback_of_a_cancelled_run_is_told_in_its_message(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    @task
    async def put(name: str) -> None: ...

    put.on_rollback(quick(unsave))
    WORLD.stubborn = {"a"}

    @flow
    async def main() -> None:
        async with transaction():
            await put("a")
            await waits()

    run = await engine.submit(main)
    await WORLD.reached.wait()
    await run.cancel()
    assert run.state.is_cancelled()
    assert run.state.name == "Cancelled"
    assert "1 compensations of a transaction failed" in run.state.message
    assert "cannot undo a" in caplog.text


@virtually
async def test_a_compensation_that_hangs_is_stopped_and_the_others_run() -> None:
    @task
    async def put(name: str) -> None: ...

    @put.on_rollback
    async def unput(txn: Any) -> None:
        if txn.parameters["name"] == "b":
            await asyncio.Event().wait()
        WORLD.told.append(f"undo {txn.parameters['name']}")

    @flow
    async def main() -> None:
        async with transaction():
            await put.map(["a", "b", "c"])
            raise KeyError

    async with virtual_engine() as engine:
        began = now()
        error = (await (await engine.submit(main)).wait()).error
        assert isinstance(error, RollbackIncomplete)
        assert isinstance(error.exceptions[0], TaskTimeout)
        assert 240 <= now() - began <= 300
    assert WORLD.told == ["undo c", "undo a"]


# --- one inside another ---------------------------------------------------------------------------


async def test_an_inner_block_is_undone_alone_when_it_fails(engine: Engine) -> None:
    @flow
    async def main() -> None:
        async with transaction():
            await save("outer")
            try:
                async with transaction():
                    await save("inner")
                    raise KeyError
            except KeyError:
                await save("instead")

    await engine.run(main)
    assert WORLD.told == [
        "save outer", "save inner", "undo inner", "save instead", "commit outer", "commit instead",
    ]  # fmt: skip


async def test_an_inner_block_commits_and_is_undone_with_the_outer_one(engine: Engine) -> None:
    @flow
    async def main(fail: bool) -> None:
        async with transaction():
            await save("outer")
            async with transaction():
                await save("inner")
            WORLD.told.append("between")
            if fail:
                raise KeyError

    await engine.run(main, False)
    assert WORLD.told[2:] == ["between", "commit outer", "commit inner"]
    WORLD.told.clear()
    await (await engine.submit(main, True)).wait()
    assert WORLD.told[2:] == ["between", "undo inner", "undo outer"]


async def test_a_transaction_in_a_task_is_its_own(engine: Engine) -> None:
    @task
    async def whole(fail: bool) -> None:
        async with transaction():
            await save("inner")
            if fail:
                raise KeyError

    @flow
    async def main() -> list[str]:
        async with transaction():
            await whole(False)
            state = await whole(True, return_state=True)
        return [state.name, state.type]

    assert await engine.run(main) == ["RolledBack", "FAILED"]
    assert WORLD.told == ["save inner", "commit inner", "save inner", "undo inner"]


async def test_a_child_flow_is_no_part_of_the_block_around_it(engine: Engine) -> None:
    @flow
    async def child() -> None:
        await save("child")

    @flow
    async def main() -> None:
        async with transaction():
            await child()
            raise KeyError

    await (await engine.submit(main)).wait()
    assert WORLD.told == ["save child"]


async def test_blocks_that_are_open_at_once_do_not_mix(engine: Engine) -> None:
    @flow
    async def main() -> list[Any]:
        async def one(name: str, fail: bool) -> None:
            async with transaction(key=name) as txn:
                txn.set("name", name)
                await save(name)
                await asyncio.sleep(0)
                if fail:
                    raise KeyError(name)

        return [
            type(r).__name__
            for r in await asyncio.gather(one("a", True), one("b", False), return_exceptions=True)
        ]

    assert await engine.run(main) == ["KeyError", "NoneType"]
    assert sorted(WORLD.told) == ["commit b", "save a", "save b", "undo a"]


# --- sync code ------------------------------------------------------------------------------------


async def test_plain_flows_use_with(engine: Engine) -> None:
    @task
    def put(name: str) -> str:
        WORLD.told.append(f"put {name}")
        return name

    @put.on_rollback
    def unput(txn: Any) -> None:
        WORLD.told.append(f"unput {txn.result} {txn.get('n')}")

    @flow
    def main(fail: bool) -> str:
        with transaction() as txn:
            txn.set("n", 1)
            put("a")
            put.submit("b").result()
            if fail:
                raise KeyError("mine")
        return "done"

    assert await engine.run(main, False) == "done"
    run = await engine.submit(main, True)
    state = await run.wait()
    assert state.name == "RolledBack"
    assert isinstance(state.error, KeyError)
    assert WORLD.told == ["put a", "put b"] * 2 + ["unput b 1", "unput a 1"]


async def test_with_in_async_code_and_outside_of_flows_is_refused(engine: Engine) -> None:
    @flow
    async def main() -> None:
        with transaction():
            pass

    with pytest.raises(BlockingCall, match="use `async with"):
        await engine.run(main)
    with pytest.raises(NoEngine, match="outside of a flow"):
        async with transaction():
            pass
    with pytest.raises(NoEngine, match="outside of a flow"), transaction():
        pass


async def test_a_transaction_is_entered_once(engine: Engine) -> None:
    @flow
    async def main() -> None:
        block = transaction()
        async with block:
            pass
        async with block:
            pass

    with pytest.raises(NoEngine, match="entered once"):
        await engine.run(main)


# --- values ---------------------------------------------------------------------------------------


async def test_values_are_those_of_the_first_life(store: Store) -> None:
    seen: list[Any] = []
    n = 0

    @flow
    async def main() -> None:
        nonlocal n
        async with transaction() as txn:
            assert txn.get("n") is None
            n += 1
            txn.set("n", n)
            seen.append(txn.get("n"))
            txn.set("n", n + 10)
            seen.append(txn.get("n"))
            await save("a")
            if n == 1:
                WORLD.reached.set()
                await asyncio.Event().wait()

    async with Engine(store) as engine:
        run = await engine.submit(main)
        await WORLD.reached.wait()
        await asyncio.sleep(0)
    async with Engine(store) as engine:
        await (await engine.resume(run.id))
    assert seen == [1, 11, 1, 11]
    assert WORLD.told == ["save a", "commit a"]


async def test_hooks_have_values_that_tasks_have_set_in_a_former_life(store: Store) -> None:
    first = True

    @task
    async def put(txn: Any) -> None:
        txn.set("id", 77)

    @put.on_rollback
    def unput(txn: Any) -> None:
        WORLD.told.append(f"unput {txn.get('id')} {txn.get('other', 'none')}")

    @flow
    async def main() -> None:
        async with transaction() as txn:
            await put(txn)
            assert txn.get("id") == 77
            if first:
                WORLD.reached.set()
                await asyncio.Event().wait()
            raise KeyError

    async with Engine(store) as engine:
        run = await engine.submit(main)
        await WORLD.reached.wait()
        await asyncio.sleep(0)
    first = False
    async with Engine(store) as engine:
        await (await engine.resume(run.id)).wait()
    assert WORLD.told == ["unput 77 none"]


async def test_an_inner_block_sees_the_values_of_the_outer_one(engine: Engine) -> None:
    @flow
    async def main() -> list[Any]:
        async with transaction() as outer:
            outer.set("a", 1)
            outer.set("b", 1)
            async with transaction() as inner:
                inner.set("b", 2)
                return [inner.get("a"), inner.get("b"), outer.get("b"), inner.get("c", 3)]

    assert await engine.run(main) == [1, 2, 1, 3]


async def test_a_value_that_cannot_be_stored_is_refused(engine: Engine) -> None:
    @flow
    async def main() -> None:
        async with transaction() as txn:
            txn.set("it", object())

    with pytest.raises(NotSerializable, match="the value 'it' is a object"):
        await engine.run(main)
    with pytest.raises(NoEngine, match="not entered"):
        transaction().set("a", 1)


# --- being stopped --------------------------------------------------------------------------------


async def test_a_cancelled_run_is_rolled_back_before_it_ends(store: Store) -> None:
    @flow
    async def main() -> None:
        async with transaction():
            await save("a")
            await waits()

    async with Engine(store) as engine:
        run = await engine.submit(main)
        await WORLD.reached.wait()
        await run.cancel()
        assert (run.state.type, run.state.name) == (StateType.CANCELLED, "RolledBack")
        assert WORLD.told == ["save a", "undo a"]
        # It has been undone, so a resume does it again.
        WORLD.gate.set()
        assert (await (await engine.resume(run.id)).wait()).is_completed()
    assert WORLD.told == ["save a", "undo a", "save a", "commit a"]


@virtually
async def test_a_rollback_is_not_cut_short_by_a_cancellation() -> None:
    async with virtual_engine() as engine:
        undoing, go_on = asyncio.Event(), asyncio.Event()

        @task
        async def put() -> None: ...

        @put.on_rollback
        async def unput(txn: Any) -> None:
            undoing.set()
            await go_on.wait()
            await save("nested")
            WORLD.told.append("undone")

        @flow(cancel_grace_seconds=0.01)
        async def main() -> None:
            async with transaction():
                await put()
                raise KeyError

        run = await engine.submit(main)
        await undoing.wait()
        cancelling = asyncio.create_task(run.cancel())
        await asyncio.sleep(15)
        assert not cancelling.done()
        go_on.set()
        await cancelling
        assert WORLD.told == ["save nested", "undone"]
        assert run.state.name == "RolledBack"
        assert run.state.is_cancelled()


async def test_the_hosts_cancellation_passes_through_after_the_rollback(engine: Engine) -> None:
    @flow
    async def main() -> None:
        async with transaction():
            await save("a")
            await waits()

    host = asyncio.create_task(engine.run(main))
    await WORLD.reached.wait()
    host.cancel()
    with pytest.raises(asyncio.CancelledError):
        await host
    assert WORLD.told == ["save a", "undo a"]
    (run,) = await engine.runs()
    assert (run.state.type, run.state.name) == (StateType.CANCELLED, "RolledBack")


@virtually
async def test_a_timeout_of_the_flow_rolls_back() -> None:
    async with virtual_engine() as engine:

        @flow(timeout_seconds=0.05)
        async def main() -> None:
            async with transaction():
                await save("a")
                await waits()

        run = await engine.submit(main)
        assert (await run.wait()).name == "TimedOut"
        assert WORLD.told == ["save a", "undo a"]


@virtually
async def test_a_timeout_of_user_code_rolls_back_and_can_be_caught() -> None:
    async with virtual_engine() as engine:

        @flow
        async def main() -> str:
            try:
                async with asyncio.timeout(0.05):
                    async with transaction():
                        await save("a")
                        await waits()
            except TimeoutError:
                return "late"
            return "never"

        assert await engine.run(main) == "late"
        assert WORLD.told == ["save a", "undo a"]


async def test_a_cancelled_task_undoes_what_its_transaction_did(engine: Engine) -> None:
    @task
    async def whole() -> None:
        async with transaction():
            await save("a")
            await waits()

    @flow
    async def main() -> str:
        future = whole.submit()
        await WORLD.reached.wait()
        future.cancel()
        with pytest.raises(TaskCancelled):
            await future
        return future.state.name

    assert await engine.run(main) == "RolledBack"
    assert WORLD.told == ["save a", "undo a"]


async def test_a_retried_task_undoes_each_attempt_and_does_all_again(engine: Engine) -> None:
    @task(retries=2, retry_delay_seconds=0)
    async def whole() -> int:
        async with transaction():
            await save("a")
            if WORLD.told.count("save a") < 3:
                raise KeyError
        return WORLD.told.count("save a")

    @flow
    async def main() -> int:
        return await whole()

    assert await engine.run(main) == 3
    assert WORLD.told == ["save a", "undo a"] * 2 + ["save a", "commit a"]


async def test_an_interrupted_run_is_not_rolled_back_and_goes_on(store: Store) -> None:
    @flow
    async def main() -> None:
        async with transaction():
            await save("a")
            await waits()

    async with Engine(store) as engine:
        run = await engine.submit(main)
        await WORLD.reached.wait()
    assert WORLD.told == ["save a"]
    WORLD.gate.set()
    async with Engine(store) as engine:
        assert [r.id for r in await engine.recover()] == [run.id]
        await engine.wait(run.id)
    assert WORLD.told == ["save a", "commit a"]


async def test_an_interrupted_rollback_goes_on_where_it_was(store: Store) -> None:
    undoing = asyncio.Event()

    @task
    async def put(name: str) -> None: ...

    @put.on_rollback
    async def unput(txn: Any) -> None:
        name = txn.parameters["name"]
        if name == "b" and not undoing.is_set():
            undoing.set()
            await asyncio.Event().wait()
        WORLD.told.append(f"undo {name}")

    @flow
    async def main() -> None:
        async with transaction():
            for name in "abc":
                await put(name)
            await fails()

    async with Engine(store) as engine:
        run = await engine.submit(main)
        await undoing.wait()
    assert WORLD.told == ["undo c"]
    async with Engine(store) as engine:
        await engine.recover()
        assert (await engine.wait(run.id)).name == "RolledBack"
    assert WORLD.told == ["undo c", "undo b", "undo a"]


@virtually
async def test_a_run_that_waits_in_a_block_stays_in_memory_and_can_be_cancelled() -> None:
    @flow
    async def main() -> None:
        async with transaction():
            await save("a")
            await sleep(3600)

    async with virtual_engine(suspend_after_seconds=0.01) as engine:
        run = await engine.submit(main)
        await asyncio.sleep(100)
        assert run.state.is_paused()
        assert WORLD.told == ["save a"]
        await run.cancel()
        assert run.state.name == "RolledBack"
    assert WORLD.told == ["save a", "undo a"]


# --- new attempts ---------------------------------------------------------------------------------


async def test_a_resumed_run_does_again_what_was_undone_and_keeps_what_was_not(
    store: Store,
) -> None:
    @flow
    async def main() -> None:
        await save("outside")
        async with transaction():
            await save("a")
            await save("a")
            await fails()
        await save("a")

    async with Engine(store) as engine:
        run = await engine.submit(main)
        await run.wait()
        assert WORLD.told == ["save outside", "save a", "save a", "undo a", "undo a"]
        await (await engine.resume(run.id)).wait()
        assert WORLD.told[5:] == ["save a", "save a", "undo a", "undo a"]
        WORLD.broken = False
        await (await engine.resume(run.id))
        assert WORLD.told[9:] == [
            "save a", "save a", "no failure", "commit a", "commit a", "save a",
        ]  # fmt: skip


async def test_a_retried_flow_does_again_what_was_undone(engine: Engine) -> None:
    @flow(retries=1, retry_delay_seconds=0)
    async def main() -> None:
        await save("outside")
        async with transaction():
            await save("a")
            if WORLD.told.count("save a") == 1:
                raise KeyError

    await engine.run(main)
    assert WORLD.told == ["save outside", "save a", "undo a", "save a", "commit a"]


async def test_a_rollback_that_the_flow_caught_is_replayed_by_a_resume(store: Store) -> None:
    @flow
    async def main() -> str:
        try:
            async with transaction():
                await save("a")
                await fails("inner")
        except ValueError:
            await save("instead")
        if WORLD.broken:
            raise RuntimeError("later")
        return "end"

    async with Engine(store) as engine:
        run = await engine.submit(main)
        await run.wait()
        WORLD.broken = False
        assert await (await engine.resume(run.id)) == "end"
    assert WORLD.told == ["save a", "undo a", "save instead"]


async def test_a_fork_of_a_rolled_back_run_does_again_what_was_undone(store: Store) -> None:
    @flow
    async def main() -> None:
        await save("outside")
        async with transaction():
            await save("a")
            await fails()

    async with Engine(store) as engine:
        run = await engine.submit(main)
        await run.wait()
        WORLD.broken = False
        await (await engine.fork(run.id))
        assert WORLD.told == [
            "save outside", "save a", "undo a", "save a", "no failure", "commit a",
        ]  # fmt: skip
        WORLD.told.clear()
        await (await engine.fork(run.id, from_task="fails"))
        assert WORLD.told == ["save a", "no failure", "commit a"]


# --- crashes --------------------------------------------------------------------------------------


class Crash:
    """Kills an engine at a write of its store: nothing more reaches the store."""

    def __init__(self, store: Any, after: int, before_it: bool) -> None:
        self.store = store
        self.left = after
        self.before_it = before_it
        self.happened = False
        self._write = store.write
        store.write = self.write
        store.create_run, self._create = self.create, store.create_run

    def write(self, writes: Any, **options: Any) -> bool:
        if self.happened:
            raise StoreError("the process died")
        self.left -= 1
        if self.left > 0:
            return bool(self._write(writes, **options))
        if not self.before_it:
            self._write(writes, wait=True)
        self.happened = True
        raise StoreError("the process died")

    def create(self, *args: Any) -> Any:
        if self.happened:
            raise StoreError("the process died")
        return self._create(*args)

    def revive(self) -> None:
        for name in ("write", "create_run"):
            vars(self.store).pop(name, None)


@task(retries=1, retry_delay_seconds=0)
async def inside(name: str) -> str:
    """A task with a transaction of its own: its first attempt is undone."""
    async with transaction():
        await save(f"{name}1")
        await save(f"{name}2")
        first = WORLD.told.count(f"undo {name}1") == 0
        if first:
            raise KeyError(name)
    return name


@flow
async def several(fail: bool) -> str:
    async with transaction() as txn:
        txn.set("n", 1)
        await asyncio.gather(save("a"), save("b"))
        async with transaction():
            await save("c")
        await inside("in")
        if fail:
            await fails()
    return "end"


def completed_hooks(store: Any) -> dict[tuple[int, int], float | None]:
    return {
        (row.run, row.seq): row.ended_at
        for pk in range(1, 4)
        for row in store.calls(pk)
        if row.state == "COMPLETED"
    }


async def lives(store: Any, fail: bool, crashes: list[tuple[int, bool]]) -> tuple[bool, Any]:
    """Run with a crash in each life; whether the last one happened, and the last state."""
    run_id: str | None = None
    for at, before_it in crashes:
        crash = Crash(store, at, before_it)
        engine = Engine(store, seed=1)
        await engine.open()
        try:
            if run_id is None:
                run_id = (await engine.submit(several, fail)).id
            else:
                await engine.recover()
            await engine.wait(run_id)
        except StoreError:
            pass
        finally:
            await engine.aclose()
            crash.revive()
        kept = completed_hooks(store)
        if not crash.happened:
            async with Engine(store) as last:
                return False, (await last.get_run(str(run_id))).state if run_id else None
    async with Engine(store, seed=1) as engine:
        if run_id is None:
            return True, None
        if not (await engine.get_run(run_id)).state.is_final():
            await engine.recover()
        state = await engine.wait(run_id)
        after = completed_hooks(store)
        # What had completed, compensations among it, was not done again.
        assert kept.items() <= after.items()
        return True, state


@pytest.mark.parametrize("before_it", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("fail", [True, False], ids=["rolled back", "committed"])
async def test_a_crash_at_any_write_ends_with_all_or_nothing(fail: bool, before_it: bool) -> None:
    at, tried = 0, 0
    while True:
        at += 1
        _new_world_again()
        happened, state = await lives(MemoryStore(), fail, [(at, before_it)])
        if state is not None:
            tried += 1
            check(fail, state)
        if not happened:
            break
        assert at < 200
    assert tried > 10


async def test_two_crashes_end_with_all_or_nothing() -> None:
    for first in range(2, 24, 3):
        for second in range(2, 20, 3):
            _new_world_again()
            _, state = await lives(MemoryStore(), True, [(first, True), (second, False)])
            if state is not None:
                check(True, state)


def _new_world_again() -> None:
    global WORLD
    WORLD = World()


def check(fail: bool, state: Any) -> None:
    """Everything is there, or nothing: by what was done last of each name."""
    last: dict[str, str] = {}
    for told in WORLD.told:
        what, _, name = told.partition(" ")
        if what in ("save", "undo"):
            last[name] = what
    if fail:
        assert state.name == "RolledBack", state
        assert {name: what for name, what in last.items() if not name.startswith("in")} == {
            "a": "undo", "b": "undo", "c": "undo",
        }  # fmt: skip
        assert last["in1"] == last["in2"] == "save"
    else:
        assert state.is_completed(), state
        assert set(last.values()) == {"save"}


@task(retries=1, retry_delay_seconds=0)
async def second_time(name: str) -> str:
    async with transaction():
        await save(f"{name}1")
        if runtime.task_run.attempt == 1:
            raise KeyError(name)
        return await save(f"{name}2")


@task(transactional=True)
def count(db: sqlite3.Connection, name: str) -> int:
    db.execute("CREATE TABLE IF NOT EXISTS counted (name)")
    db.execute("INSERT INTO counted VALUES (?)", (name,))
    return int(db.execute("SELECT count(*) FROM counted").fetchone()[0])


@count.on_rollback
@task(transactional=True)
def uncount(db: sqlite3.Connection, txn: Any) -> None:
    db.execute("DELETE FROM counted WHERE rowid = (SELECT max(rowid) FROM counted)")


@flow(retries=1, retry_delay_seconds=0)
async def mixed(fail: bool) -> list[Any]:
    told: list[Any] = []
    try:
        async with transaction() as txn:
            txn.set("n", 1)
            told += await asyncio.gather(save("a"), save("a"), count.submit("x"))
            raise LookupError
    except LookupError:
        told.append("caught")
    async with transaction(key="second") as txn:
        told += await asyncio.gather(second_time("b"), second_time("c"))
        async with transaction():
            told += await save.map(["d", "e"])
        told.append(await count.submit("y"))
        if fail or runtime.flow_run.attempt == 1:
            raise ValueError(told)
    return told


@pytest.mark.parametrize("fail", [True, False], ids=["rolled back", "committed"])
def test_random_crashes_and_faults_change_nothing(fail: bool) -> None:
    found = simulate(mixed, fail, seeds=60)
    found.check()
    assert found.expected.startswith("RolledBack: ValueError" if fail else "Completed: ['row of a'")


def test_a_crash_at_each_checkpoint_changes_nothing() -> None:
    crash_everywhere(mixed, False).check()


async def test_a_run_cancelled_by_another_process_is_rolled_back(path: Any) -> None:
    @flow
    async def main() -> None:
        async with transaction():
            await save("a")
            await waits()

    async with Engine(path) as engine, Engine(path) as other:
        run = await engine.submit(main)
        await WORLD.reached.wait()
        assert await other.cancel(run.id)
        with pytest.raises(RunCancelled):
            await run
    assert WORLD.told == ["save a", "undo a"]
