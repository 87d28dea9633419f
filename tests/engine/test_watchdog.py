"""Code that keeps the event loop from turning is named, with its line, in the log of its run."""

from __future__ import annotations

import asyncio
import logging
import re
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
import uvloop
from patience import eventually
from pydantic import SecretStr
from virtual import virtual_engine, virtually

from asyncflow import Engine, InvalidOption, MemoryStore, flow, task, watchdog
from asyncflow.context import CURRENT
from asyncflow.watchdog import MOST, Sight, Suspicion, Watchdog, see

HERE = Path(__file__)
#: Seconds after which a test that waits for another thread gives up.
PATIENCE = 20.0


# --- whether one piece of code is at it -----------------------------------------------------------


def at(unit: object) -> Callable[[], Sight]:
    return lambda: Sight(unit, None, "somewhere")


def looks(*given: tuple[float, bool, float, object]) -> list[object]:
    """What is told by looks: seconds, whether the loop has turned, its CPU time, what it is at."""
    suspicion = Suspicion(1.0)
    told = (suspicion.look(*look[:3], at(look[3])) for look in given)
    return [None if sight is None else sight.unit for sight in told]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        pytest.param(
            [(0.5, False, 0, "a"), (0.5, False, 0, "a")], [None, "a"], id="told at two looks"
        ),
        pytest.param(
            [(0.5, False, 0, "a"), (0.4, False, 0, "a"), (0.1, False, 0, "a")],
            [None, None, "a"],
            id="not before its time",
        ),
        pytest.param(
            [(0.5, False, 0, "a"), (0.5, True, 0, "a"), (0.5, False, 0, "a")],
            [None] * 3,
            id="not where the loop has turned meanwhile",
        ),
        pytest.param(
            [(0.5, False, 0, "a"), (0.5, False, 0, "b"), (0.5, False, 0, "c")],
            [None] * 3,
            id="many short steps of one turn are nobody's fault",
        ),
        pytest.param(
            [(0.5, False, 0, "a")] * 6 + [(0.5, True, 0, "a")] + [(0.5, False, 0, "a")] * 2,
            [None, "a", *[None] * 6, "a"],
            id="once for each stretch",
        ),
        pytest.param([(3.0, True, 2.9, "a")], ["a"], id="C code that held the interpreter"),
        pytest.param(
            [(3.0, True, 2.9, "a"), (0.5, False, 0.5, "a"), (0.5, False, 0.5, "a")],
            ["a", None, None],
            id="C code that held it at first is told once",
        ),
        pytest.param([(3.0, True, 0.1, "a")], [None], id="a process that stood still"),
        pytest.param(
            [(0.5, False, 0, "a"), (3.0, False, 0.1, "a")],
            [None, None],
            id="a process that stood still in the middle",
        ),
    ],
)
def test_who_is_told_of(given: list[Any], told: list[object]) -> None:
    assert looks(*given) == told


def test_where_nothing_is_seen_nothing_is_told() -> None:
    suspicion = Suspicion(1.0)
    assert [suspicion.look(0.5, False, 0.0, lambda: None) for _ in range(4)] == [None] * 4


# --- what it is at --------------------------------------------------------------------------------


class Stuck:
    """Code that stops, as if it blocked, until the test has looked at it."""

    def __init__(self) -> None:
        self.there = threading.Event()
        self.on = threading.Event()

    def block(self) -> None:
        self.there.set()
        self.on.wait(PATIENCE)

    def seen(self, main: Callable[[], Coroutine[Any, Any, Any]], loop_of: Any = None) -> Sight:
        """What is seen of *main*, which runs in a loop of another thread."""
        loops: list[asyncio.AbstractEventLoop] = []

        async def noted() -> None:
            loops.append(asyncio.get_running_loop())
            await main()

        def run() -> None:
            with asyncio.Runner(loop_factory=loop_of) as runner:
                runner.run(noted())

        thread = threading.Thread(target=run)
        thread.start()
        try:
            assert self.there.wait(PATIENCE)
            assert thread.ident is not None
            sight = see(thread.ident, loops[0])
        finally:
            self.on.set()
            thread.join()
        assert sight is not None
        return sight


@pytest.fixture
def stuck() -> Iterator[Stuck]:
    made = Stuck()
    yield made
    made.on.set()


def told(sight: Sight) -> tuple[str, str, str]:
    return watchdog._named(sight)


@pytest.mark.parametrize("loop_of", [None, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize(
    ("how", "named"),
    [
        ("direct", ("calls", "blocks", "task blocks-1")),
        ("map", ("calls", "blocks", "task blocks-2")),
        ("later", ("calls", "blocks_later", "task blocks_later-1")),
        ("flow", ("calls", "", "flow calls")),
        ("child", ("child", "", "flow child")),
        ("prints", ("calls", "prints", "task prints-1")),
    ],
)
def test_the_call_or_run_is_named_whose_code_it_is(
    stuck: Stuck, how: str, named: tuple[str, str, str], loop_of: Any
) -> None:
    @task
    async def blocks(i: int) -> None:
        if i:
            stuck.block()

    @task
    async def blocks_later() -> None:
        await asyncio.sleep(0)
        stuck.block()

    @task(log_prints=True)
    async def prints() -> None:
        stuck.block()

    @flow
    async def child() -> None:
        stuck.block()

    @flow
    async def calls() -> None:
        match how:
            case "direct":
                await blocks(1)
            case "map":
                await blocks.map([0, 1, 0])
            case "later":
                await blocks_later()
            case "child":
                await child()
            case "prints":
                await prints()
            case "flow":
                stuck.block()

    async def main() -> None:
        async with Engine(MemoryStore(), blocked_loop_seconds=None):
            await calls()

    sight = stuck.seen(main, loop_of)
    assert told(sight) == named
    assert re.match(rf"{HERE}:\d+ in block \(inside of it, .*threading.py:", sight.place)


def test_a_task_of_asyncio_that_user_code_made_is_its_code(stuck: Stuck) -> None:
    @task
    async def gathers() -> None:
        async def part() -> None:
            await asyncio.sleep(0)
            stuck.block()

        await asyncio.gather(part(), asyncio.sleep(0))

    @flow
    async def calls() -> None:
        await gathers()

    async def main() -> None:
        async with Engine(MemoryStore(), blocked_loop_seconds=None):
            await calls()

    assert told(stuck.seen(main))[2] == "task gathers-1"


def test_code_outside_of_runs_is_named_by_its_line_only(stuck: Stuck) -> None:
    async def main() -> None:
        async with Engine(MemoryStore(), blocked_loop_seconds=None):
            asyncio.get_running_loop().call_soon(stuck.block)
            await asyncio.sleep(0)

    sight = stuck.seen(main)
    assert told(sight) == ("", "", "code outside of all runs")
    assert sight.place.startswith(f"{HERE}:")


@pytest.mark.parametrize(
    ("inside", "blamed"),
    [
        pytest.param(["standard", "own", "own"], 1, id="the innermost of what is not installed"),
        pytest.param(["installed", "own", "ours"], 1, id="also below a library"),
        pytest.param(["standard", "installed", "installed", "ours"], 2, id="a task of a library"),
        pytest.param(["standard", "ours", "ours"], 1, id="the engine itself"),
        pytest.param(["standard", "standard"], 0, id="nothing else"),
    ],
)
def test_whose_line_is_named(inside: list[Any], blamed: int) -> None:
    frames: list[Any] = [(kind, n) for n, kind in enumerate(inside)]
    assert watchdog._blamed(frames) == frames[blamed]


@pytest.mark.parametrize(
    ("file", "kind"),
    [
        (watchdog.__file__, "ours"),
        (asyncio.__file__, "standard"),
        (pytest.__file__, "installed"),
        ("/usr/lib/python3/dist-packages/apt/cache.py", "installed"),
        (__file__, "own"),
        ("<stdin>", "own"),
        (watchdog.__file__.replace("asyncflow/watchdog", "asyncflow_extra/watchdog"), "own"),
    ],
)
def test_whose_a_file_is(file: str, kind: str) -> None:
    assert watchdog._kind(file) == kind


@pytest.mark.parametrize("loop_of", [None, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_a_loop_that_waits_is_at_nothing(loop_of: Any) -> None:
    known: SimpleQueue[Any] = SimpleQueue()

    async def waits() -> None:
        loop, end = asyncio.get_running_loop(), asyncio.Event()
        known.put((loop, end))
        await end.wait()

    def run() -> None:
        with asyncio.Runner(loop_factory=loop_of) as runner:
            runner.run(waits())

    thread = threading.Thread(target=run)
    thread.start()
    loop, end = known.get(timeout=PATIENCE)
    assert thread.ident is not None
    of = thread.ident
    eventually(lambda: see(of, loop) is None)
    loop.call_soon_threadsafe(end.set)
    thread.join()


# --- what is told ---------------------------------------------------------------------------------


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set as soon as a watchdog has seen code of a run, and will tell of it."""
    event, seen_of = threading.Event(), Watchdog._seen

    def seen(self: Watchdog, sight: Sight, since: float) -> None:
        seen_of(self, sight, since)
        if sight.scope is not None:
            event.set()

    monkeypatch.setattr(Watchdog, "_seen", seen)
    return event


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if "event loop from turning" in r.getMessage()]


async def test_blocking_code_is_named_in_the_log_of_its_run_and_counted(
    seen: threading.Event, caplog: pytest.LogCaptureFixture, path: Path
) -> None:
    @task
    async def fetch() -> None:
        seen.wait(PATIENCE)

    @flow
    async def blocking() -> None:
        await fetch()

    async with Engine(path, blocked_loop_seconds=0.02, metrics=True) as engine:
        with caplog.at_level(logging.WARNING, "asyncflow"):
            run = await engine.submit(blocking)
            await run
        (line,) = [line for line in await engine.logs(run.id) if "fetch" in line.message]
        counted = engine.metrics_text().decode()
    assert line.level == logging.WARNING
    assert line.task_run_id == f"{run.id}-1"
    code = fetch.fn.__code__
    where = f"{HERE}:{code.co_firstlineno + 2} in fetch"
    assert re.match(
        rf"task fetch-1 kept the event loop from turning for at least [\d.]+ s, at {where} \(inside"
        r" of it, .*threading.py:\d+ in wait\): nothing else could run meanwhile",
        line.message,
    )
    (said,) = (text for text in warnings(caplog) if "fetch" in text)
    assert said == f"blocking {run.id}: {line.message}"
    assert 'asyncflow_loop_blocked_total{flow="blocking",task="fetch"} 1.0' in counted


@pytest.fixture
async def watched() -> AsyncIterator[Engine]:
    async with Engine(MemoryStore(), metrics=True, blocked_loop_seconds=1000) as engine:
        yield engine


async def tell(engine: Engine, scope: Any, place: str = "a.py:1 in f") -> None:
    """As if that had been seen."""
    assert engine.watchdog is not None
    engine.watchdog._over(Sight(object(), scope, place), time.monotonic())


async def lines(engine: Engine, run_id: str) -> list[str]:
    """The places that the log of a run names."""
    found = [line.message for line in await engine.logs(run_id)]
    return [text.partition(" s, at ")[2].partition(": ")[0] for text in found]


async def test_a_line_is_told_once_a_while_in_each_run_and_once_in_all(
    watched: Engine, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    @flow
    async def some() -> None: ...

    runs = [await watched.submit(some) for _ in range(2)]
    for run in runs:
        await run
        for place in ("a.py:1", "a.py:1", "b.py:2", "a.py:1"):
            await tell(watched, run._run, place)
    for run in runs:
        assert await lines(watched, run.id) == ["a.py:1", "b.py:2"]
    assert len(warnings(caplog)) == 2
    assert 'loop_blocked_total{flow="some",task=""} 8.0' in watched.metrics_text().decode()
    monkeypatch.setattr(watchdog, "AGAIN", 0.0)
    await tell(watched, runs[0]._run, "a.py:1")
    assert await lines(watched, runs[0].id) == ["a.py:1", "b.py:2", "a.py:1"]
    assert len(warnings(caplog)) == 3


def test_what_was_told_is_remembered_within_bounds() -> None:
    told: dict[object, float] = {}
    assert all(watchdog._is_new(told, n) for n in range(10 * MOST))
    assert len(told) <= MOST


async def test_two_engines_of_a_loop_tell_their_own_runs_and_say_what_is_nobodys_once(
    watched: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    @flow
    async def some() -> None: ...

    async with Engine(MemoryStore(), blocked_loop_seconds=1000) as other:
        run = await watched.submit(some)
        await run
        for engine in (watched, other):
            await tell(engine, run._run)
        assert len(warnings(caplog)) == 1
        for engine in (watched, other):
            await tell(engine, None)
    assert len(warnings(caplog)) == 2
    assert warnings(caplog)[1].startswith("code outside of all runs kept the event loop")


async def test_secrets_are_masked_where_a_call_is_named_for_them(
    watched: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[Any] = []

    @task(task_run_name="of {who}")
    async def named(who: str) -> None:
        calls.append(CURRENT.get())

    @flow
    async def some(who: SecretStr) -> None:
        await named(who.get_secret_value())

    run = await watched.submit(some, SecretStr("swordfish"))
    await run
    await tell(watched, calls[0])
    assert len(warnings(caplog)) == 1
    assert "swordfish" not in warnings(caplog)[0]


async def test_a_loop_that_never_turns_again_is_told_of_by_the_thread(
    seen: threading.Event, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog, "LONG", 0.0)
    still, said = Watchdog._still, threading.Event()

    def told(*args: Any) -> None:
        still(*args)
        said.set()

    monkeypatch.setattr(Watchdog, "_still", told)

    @flow
    async def hangs() -> None:
        said.wait(PATIENCE)
        assert [text for text in warnings(caplog) if text.startswith("flow hangs has kept")]

    async with Engine(MemoryStore(), blocked_loop_seconds=0.02) as engine:
        await engine.run(hangs)


# --- the thread -----------------------------------------------------------------------------------


def threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name == "asyncflow-watchdog"]


async def test_the_thread_is_there_while_runs_are_live() -> None:
    begun, on = asyncio.Event(), asyncio.Event()

    @flow
    async def lives() -> None:
        begun.set()
        await on.wait()

    async with Engine(MemoryStore()) as engine:
        assert threads() == []
        for _ in range(2):
            on.clear()
            run = await engine.submit(lives)
            await begun.wait()
            assert len(threads()) == 1
            assert engine.watchdog is not None
            for _ in range(watchdog.IDLE):
                engine.watchdog._answer()
            assert len(threads()) == 1
            on.set()
            await run
            thread = engine.watchdog._thread
            for _ in range(watchdog.IDLE):
                engine.watchdog._answer()
            assert thread is not None
            await asyncio.to_thread(thread.join)
        await engine.submit(lives)
    assert threads() == [], "none is left when the engine is closed"


async def test_engines_that_do_not_watch_have_no_thread() -> None:
    @flow
    async def some() -> list[str]:
        return threads()

    async with Engine(MemoryStore(), blocked_loop_seconds=None) as engine:
        assert await engine.run(some) == []


@virtually
async def test_in_virtual_time_nothing_is_watched() -> None:
    @flow
    async def some() -> list[str]:
        return threads()

    async with virtual_engine(blocked_loop_seconds=0.01) as engine:
        assert await engine.run(some) == []
        assert engine.watchdog is None


def test_the_thread_of_an_engine_that_was_not_closed_ends_with_its_loop() -> None:
    @flow
    async def some() -> None: ...

    async def main() -> threading.Thread:
        engine = Engine(MemoryStore(), blocked_loop_seconds=0.01)
        await engine.open()
        await engine.run(some)
        assert engine.watchdog is not None
        assert engine.watchdog._thread is not None
        return engine.watchdog._thread

    thread = asyncio.run(main())
    thread.join(PATIENCE)
    assert not thread.is_alive()


@pytest.mark.parametrize("seconds", [0, -1, "1", float("nan"), True])
def test_a_time_that_makes_no_sense_is_refused(seconds: Any) -> None:
    with pytest.raises(InvalidOption, match="blocked_loop_seconds"):
        Engine(MemoryStore(), blocked_loop_seconds=seconds)
