"""The one writer: in order, never two at once, each to its end."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable
from typing import Any

import pytest

from asyncflow import writer as module
from asyncflow.errors import StoreClosed
from asyncflow.writer import DETOUR, SLOW, Writer, uncancelled

TIMEOUT = 30


def make(here: bool = True) -> Writer:
    return Writer("test-writer", asyncio.get_running_loop(), here=here)


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "test-writer"]


@pytest.fixture
async def writer() -> Any:
    made = make()
    yield made
    await made.aclose()
    assert threads() == []


class Gate:
    """A function that, once entered, stays until it is let go."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._open = threading.Event()

    def __call__(self) -> str:
        self._loop.call_soon_threadsafe(self.entered.set)
        assert self._open.wait(TIMEOUT)
        return "through"

    def let_go(self) -> None:
        self._open.set()

    async def inside(self) -> None:
        await asyncio.wait_for(self.entered.wait(), TIMEOUT)


async def turns(number: int = 5) -> None:
    """Let everything that is ready on the loop run."""
    for _ in range(number):
        await asyncio.sleep(0)


async def test_a_function_runs_on_the_thread_of_the_writer_and_its_result_comes_back(
    writer: Writer,
) -> None:
    assert threads() == []
    assert await writer.do(lambda: threading.current_thread().name) == "test-writer"
    (thread,) = threads()
    assert thread.daemon
    assert await writer.do(threading.current_thread) is thread


@pytest.mark.parametrize("error", [ValueError("bad"), KeyboardInterrupt(), SystemExit(3)])
async def test_what_a_function_raises_goes_to_the_one_who_waits_and_the_writer_goes_on(
    writer: Writer, error: BaseException
) -> None:
    def fail() -> None:
        raise error

    results: list[tuple[Any, BaseException | None]] = []
    writer.submit(fail, lambda result, caught: results.append((result, caught)))
    assert await writer.do(lambda: 1) == 1
    assert results == [(None, error)]


async def test_do_raises_what_its_function_raised(writer: Writer) -> None:
    with pytest.raises(ZeroDivisionError):
        await writer.do(lambda: 1 // 0)
    assert writer.idle


async def test_functions_run_one_after_another_in_the_order_they_were_submitted(
    writer: Writer,
) -> None:
    alone = threading.Lock()
    order: list[int] = []

    def work(n: int) -> int:
        assert alone.acquire(blocking=False)
        order.append(n)
        alone.release()
        return n

    def job(n: int) -> Callable[[], int]:
        return lambda: work(n)

    results = await asyncio.gather(*(writer.do(job(n)) for n in range(100)))
    assert order == results == list(range(100))


async def test_done_is_called_on_the_loop_in_the_order_of_the_jobs(writer: Writer) -> None:
    main = threading.get_ident()
    calls: list[tuple[int, int]] = []
    for n in range(20):
        writer.submit(lambda n=n: n, lambda n, _: calls.append((n, threading.get_ident())))
    await writer.do(lambda: None)
    assert calls == [(n, main) for n in range(20)]


async def test_a_writer_is_idle_exactly_while_nothing_is_queued(writer: Writer) -> None:
    gate = Gate()
    assert writer.idle
    waiting = asyncio.create_task(writer.do(gate))
    await gate.inside()
    assert not writer.idle
    assert not writer.prefers_here()
    gate.let_go()
    assert await waiting == "through"
    assert writer.idle
    assert writer.prefers_here()


async def test_a_writer_that_may_not_run_functions_in_place_is_never_idle() -> None:
    writer = make(here=False)
    assert not writer.idle
    assert not writer.prefers_here()


async def test_a_short_function_runs_in_place_without_a_thread(writer: Writer) -> None:
    assert writer.here(threading.get_ident) == threading.get_ident()
    with pytest.raises(ZeroDivisionError):
        writer.here(lambda: 1 // 0)
    assert threads() == []


@pytest.mark.parametrize("fails", [False, True])
async def test_a_slow_write_in_place_sends_the_next_ones_to_the_thread(
    writer: Writer, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    now = 0.0
    monkeypatch.setattr(module, "perf_counter", lambda: now)

    def take(seconds: float) -> None:
        nonlocal now
        now += seconds
        assert not fails

    def write(seconds: float) -> None:
        try:
            writer.here(lambda: take(seconds))
        except AssertionError:
            assert fails

    write(SLOW)
    assert writer.prefers_here()
    write(SLOW * 2)
    assert [writer.prefers_here() for _ in range(DETOUR + 2)] == [False] * DETOUR + [True] * 2


async def test_a_cancelled_waiter_sees_its_write_end_before_it_is_cancelled(
    writer: Writer,
) -> None:
    gate = Gate()
    waiting = asyncio.create_task(writer.do(gate))
    await gate.inside()
    for _ in range(3):
        waiting.cancel()
        await turns()
        assert not waiting.done()
    gate.let_go()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(waiting, TIMEOUT)
    assert await writer.do(lambda: "next") == "next"


async def test_a_failure_that_nobody_waits_for_any_more_is_not_reported_by_asyncio(
    writer: Writer,
) -> None:
    reports: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reports.append(context))
    gate = Gate()

    def fail() -> None:
        gate()
        raise ValueError("bad")

    waiting = asyncio.create_task(writer.do(fail))
    await gate.inside()
    waiting.cancel()
    await turns()
    gate.let_go()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(waiting, TIMEOUT)
    del waiting
    gc.collect()
    assert reports == []


async def test_closing_finishes_what_is_queued_and_ends_the_thread() -> None:
    writer, gate = make(), Gate()
    results: list[Any] = []
    for function in (gate, lambda: 2, lambda: 3):
        writer.submit(function, lambda result, _: results.append(result))
    await gate.inside()
    closing = asyncio.create_task(writer.aclose())
    await turns()
    assert not closing.done()
    gate.let_go()
    await asyncio.wait_for(closing, TIMEOUT)
    assert results == ["through", 2, 3]
    assert threads() == []


async def test_closing_goes_to_its_end_though_it_is_cancelled() -> None:
    writer, gate = make(), Gate()
    results: list[Any] = []
    writer.submit(gate, lambda result, _: results.append(result))
    await gate.inside()
    (thread,) = threads()
    closing = asyncio.create_task(writer.aclose())
    await turns()
    closing.cancel()
    await turns()
    assert not closing.done()
    gate.let_go()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(closing, TIMEOUT)
    assert results == ["through"]
    await asyncio.to_thread(thread.join, TIMEOUT)
    assert not thread.is_alive()


async def test_a_closed_writer_refuses_more_and_can_be_closed_again() -> None:
    for used in (False, True):
        writer = make()
        if used:
            await writer.do(lambda: None)
        await writer.aclose()
        await writer.aclose()
        with pytest.raises(StoreClosed, match="the engine is closed, nothing more can be stored"):
            await writer.do(lambda: None)
        assert threads() == []


async def test_a_writer_closed_while_functions_are_queued_refuses_more() -> None:
    writer, gate = make(), Gate()
    waiting = asyncio.create_task(writer.do(gate))
    await gate.inside()
    closing = asyncio.create_task(writer.aclose())
    await turns()
    with pytest.raises(StoreClosed):
        writer.submit(lambda: None, lambda _r, _e: None)
    gate.let_go()
    assert await asyncio.wait_for(waiting, TIMEOUT) == "through"
    await asyncio.wait_for(closing, TIMEOUT)


def test_the_thread_ends_when_the_loop_is_closed_before_its_job() -> None:
    ended, entered = threading.Event(), threading.Event()

    def slow() -> None:
        entered.set()
        assert ended.wait(TIMEOUT)

    async def leave() -> None:
        make().submit(slow, lambda _r, _e: None)

    asyncio.run(leave())
    assert entered.wait(TIMEOUT)
    (thread,) = threads()
    ended.set()
    thread.join(TIMEOUT)
    assert not thread.is_alive()


async def test_uncancelled_gives_the_result_and_raises_the_error_of_what_it_waits_for() -> None:
    loop = asyncio.get_running_loop()
    good, bad, cancelled = loop.create_future(), loop.create_future(), loop.create_future()
    good.set_result(5)
    bad.set_exception(ValueError("bad"))
    cancelled.cancel()
    assert await uncancelled(good) == 5
    with pytest.raises(ValueError, match="bad"):
        await uncancelled(bad)
    with pytest.raises(asyncio.CancelledError):
        await uncancelled(cancelled)


async def test_uncancelled_ends_though_waiter_and_what_it_waits_for_are_both_cancelled() -> None:
    future = asyncio.get_running_loop().create_future()
    waiting = asyncio.create_task(uncancelled(future))
    await turns()
    waiting.cancel()
    await turns()
    future.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(waiting, TIMEOUT)


async def test_a_cancelled_wait_keeps_the_message_of_its_cancellation() -> None:
    future = asyncio.get_running_loop().create_future()
    waiting = asyncio.create_task(uncancelled(future))
    await turns()
    waiting.cancel("why")
    await turns()
    future.set_result(1)
    with pytest.raises(asyncio.CancelledError, match="why"):
        await waiting
