"""For tests of flows: virtual time, and a simulation of crashes and faults.

* `run` runs a coroutine in virtual time: where nothing is left to do but to wait, the clock jumps.
* `engine` is a fresh engine in memory that heeds no configuration.
* `simulate` runs a flow many times, each time with other chance (the order in which tasks are
  stepped, how long threads and commits take), kills it at some checkpoint, recovers it, and
  compares how it ended with an uninterrupted run. What is chance is drawn from a seed, so that
  a seed is the same in every process.

In simulated time plain functions run inside the loop's own thread; one that waits for futures
(`future.result()`) cannot be simulated.
"""

from __future__ import annotations

import asyncio
import contextlib
import selectors
import sys
import warnings
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextvars import Context
from dataclasses import dataclass, field
from hashlib import blake2b
from random import Random
from typing import TYPE_CHECKING, Any, TypeVar

from asyncflow import failures, logs
from asyncflow.engine import Engine
from asyncflow.errors import RunNotResumable, StoreError, UnknownRun
from asyncflow.machine import Machine
from asyncflow.run import Call
from asyncflow.runner.threads import Threads
from asyncflow.states import StateType
from asyncflow.store.base import RunRow
from asyncflow.store.memory import MemoryStore
from asyncflow.writer import Writer

if TYPE_CHECKING:
    from asyncflow.flows import Flow

T = TypeVar("T")
S = StateType

#: What the wall clock shows at the beginning, in seconds since the epoch.
START = 1_800_000_000.0
#: Virtual seconds after which a run that has not ended counts as stuck.
PATIENCE = 86_400.0


class Deadlock(AssertionError):
    """Nothing is left that could happen, and yet somebody waits."""


class Broken(AssertionError):
    """A promise was broken in a simulation; the message has the seed and what happened."""


# --- virtual time ---------------------------------------------------------------------------------


class _Selector(selectors.DefaultSelector):
    """Never sleeps: it moves the clock of its loop instead."""

    loop: VirtualLoop

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if not ready and (timeout is None or timeout > 0):
            self.loop.jump()
        return ready


class _Task(asyncio.Task[Any]):
    """Hashed by its number, so that sets of tasks have the same order in every process."""

    number = 0

    def __hash__(self) -> int:
        return self.number


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time moves only when it would have slept.

    Args:
        random: chooses the order in which ready tasks are stepped; None: as they became ready.
    """

    def __init__(self, random: Random | None = None) -> None:
        self._now = 0.0
        self._random = random
        self._numbers = 0
        selector = _Selector()
        selector.loop = self
        super().__init__(selector)
        self.set_task_factory(self._make_task)  # type: ignore[arg-type] # keywords differ by version

    def time(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        """Let time pass, as code that blocks the loop does."""
        self._now += seconds

    def jump(self) -> None:
        """Move to the next timer.

        Raises:
            Deadlock: there is none.
        """
        scheduled: list[asyncio.TimerHandle] = self._scheduled  # type: ignore[attr-defined] # as `_ready` below
        if not scheduled:
            waiting = sorted(t.get_name() for t in asyncio.all_tasks(self) if not t.done())
            raise Deadlock(f"nothing is left that could happen; these wait: {', '.join(waiting)}")
        self._now = max(self._now, scheduled[0].when())

    def _make_task(
        self, loop: asyncio.AbstractEventLoop, coro: Coroutine[Any, Any, Any], **options: Any
    ) -> _Task:
        options = {k: v for k, v in options.items() if v is not None}
        task = _Task(coro, loop=loop, **options)
        self._numbers += 1
        task.number = self._numbers
        return task

    def _run_once(self) -> None:
        ready: Any = self._ready  # type: ignore[attr-defined] # unchanged from 3.11 to 3.14
        if self._random is not None and len(ready) > 1:
            # Steps of tasks change places among each other; other callbacks keep theirs.
            at = [
                i
                for i, handle in enumerate(ready)
                if isinstance(getattr(handle._callback, "__self__", None), asyncio.Task)
            ]
            if len(at) > 1:
                steps = [ready[i] for i in at]
                self._random.shuffle(steps)
                for i, handle in zip(at, steps, strict=True):
                    ready[i] = handle
        super()._run_once()  # type: ignore[misc] # as above


class LoopClock:
    """Wall time that goes with the time of the running loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()

    def time(self) -> float:
        return START + self._loop.time()


class _InlineWriter(Writer):
    """Writes at once, and tells so after a while of virtual time."""

    def __init__(self, loop: VirtualLoop, random: Random, here: bool) -> None:
        super().__init__("asyncflow-writer", loop, here=here)
        self._chance = random

    def submit(
        self, function: Callable[[], Any], done: Callable[[Any, BaseException | None], None]
    ) -> None:
        result, error = None, None
        try:
            result = function()
        except Exception as caught:
            error = caught
        self._queued += 1
        delay = self._chance.choice((0.0, 0.0001, 0.001, 0.01))
        self._loop.call_later(delay, self._finish, done, result, error)

    def here(self, function: Callable[[], T]) -> T:
        # Not timed: how quick this machine is must decide nothing.
        return function()

    def prefers_here(self) -> bool:
        return super().prefers_here() and self._chance.random() < 0.5

    async def aclose(self) -> None:
        self._closed = True


class _InlineThreads(Threads):
    """Runs functions in the loop's own thread, each after a while of virtual time."""

    def __init__(self, loop: VirtualLoop, random: Random) -> None:
        super().__init__("asyncflow-thread", loop)
        self._chance = random

    def start(
        self,
        function: Callable[[], Any],
        context: Context,
        done: Callable[[Any, BaseException | None], None],
    ) -> None:
        def work() -> None:
            result, error = None, None
            try:
                result = context.run(function)
            except Exception as caught:
                error = caught
            self._loop.call_later(self._chance.uniform(0.0, 0.01), done, result, error)

        self._loop.call_later(self._chance.uniform(0.0, 0.01), work)


class VirtualEngine(Engine):
    """An engine for `VirtualLoop`: no threads, no waiting; chance from one source."""

    def __init__(self, store: Any = None, *, random: Random | None = None, **options: Any) -> None:
        self._chance = random or Random(0)
        options.setdefault("clock", LoopClock())
        options.setdefault("seed", self._chance.getrandbits(32))
        super().__init__(store or MemoryStore(), **options)

    def _make_writer(self) -> Writer:
        assert isinstance(self.loop, VirtualLoop)
        return _InlineWriter(self.loop, self._chance, here=self.durability != "full")

    def _start_retention(self) -> None:
        """Only when asked to: what other flows this process knows must decide nothing here."""

    def _make_threads(self) -> Threads:
        assert isinstance(self.loop, VirtualLoop)
        return _InlineThreads(self.loop, self._chance)


@contextlib.asynccontextmanager
async def engine(**options: Any) -> AsyncIterator[Engine]:
    """A fresh engine in memory, which heeds no environment variable and no configuration.

    In `run` it lives in virtual time. Takes the options of `Engine`.
    """
    virtual = isinstance(asyncio.get_running_loop(), VirtualLoop)
    made = VirtualEngine(**options) if virtual else Engine(MemoryStore(), **{"seed": 0, **options})
    async with made:
        yield made


def run(main: Coroutine[Any, Any, T], *, seed: int | None = None) -> T:
    """Run a coroutine in virtual time; its value.

    Args:
        seed: of the order in which ready tasks are stepped; None: as they became ready.

    Raises:
        Deadlock: nothing is left that could happen, and yet somebody waits.
    """
    random = None if seed is None else Random(seed)
    with asyncio.Runner(loop_factory=lambda: VirtualLoop(random)) as runner:
        return runner.run(main)


# --- the simulation -------------------------------------------------------------------------------


class _Died(BaseException):
    """The simulated process is dead: nothing that it does counts any more."""


class _SimStore(MemoryStore):
    """Keeps what was committed; dies, fails or lies at chosen operations."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0
        self.dies_at: int | None = None
        self.after = False
        self.fails_at: dict[int, str] = {}
        self.dead = False
        self.told: Callable[[str], None] = lambda _: None

    def _around(self, what: str, commit: Callable[[], T]) -> T:
        if self.dead:
            raise StoreError("its process is dead")
        self.operations += 1
        n = self.operations
        fault = self.fails_at.pop(n, None)
        if n == self.dies_at and not self.after:
            self._die()
        if fault == "before":
            raise StoreError(f"simulated: operation {n} ({what}) failed")
        result = commit()
        self.told(what)
        if n == self.dies_at:
            self._die()
        if fault == "unknown":
            raise StoreError(f"simulated: operation {n} ({what}) failed after it was committed")
        return result

    def _die(self) -> None:
        self.dead = True
        asyncio.get_running_loop().stop()
        raise _Died

    def reborn(self) -> _SimStore:
        """The store as the next process finds it."""
        twin = _SimStore()
        copy = self.copy()
        for name in vars(copy):
            setattr(twin, name, getattr(copy, name))
        twin.operations, twin.told = self.operations, self.told
        return twin

    def write(self, writes: Any, *, wait: bool = True) -> bool:
        return self._around("write", lambda: super(_SimStore, self).write(writes, wait=wait))

    def transact(self, fences: dict[int, int], work: Any) -> None:
        self._around("transact", lambda: super(_SimStore, self).transact(fences, work))

    def create_run(self, row: RunRow, states: Any) -> tuple[RunRow, bool]:
        return self._around("create", lambda: super(_SimStore, self).create_run(row, states))

    def claim(
        self, run: int, engine: int, epoch: int, *, recovers: bool = False
    ) -> list[RunRow] | None:
        return self._around(
            "claim", lambda: super(_SimStore, self).claim(run, engine, epoch, recovers=recovers)
        )

    def plan(self, work: Any) -> Any:
        return self._around("plan", lambda: super(_SimStore, self).plan(work))

    def send(self, message: Any, *, once: bool = False) -> Any:
        return self._around("send", lambda: super(_SimStore, self).send(message, once=once))


class _WatchedMachine(Machine):
    """Checks the rules of limits and of completed calls whenever a call is begun."""

    world: _World

    def start(self, call: Call, now: float) -> None:
        super().start(call, now)
        self.world.began(call.run.pk, call.identity, call)

    def become(self, item: Any, call: Call, now: float) -> None:
        super().become(item, call, now)
        if call.phase is S.RUNNING:
            self.world.began(call.run.pk, call.identity, call)


class _SimEngine(VirtualEngine):
    def __init__(self, store: _SimStore, world: _World, random: Random) -> None:
        self._world = world
        super().__init__(store, random=random, max_recoveries=1_000_000, retention_days=None)

    def _make_machine(self, recording: bool, at_once: bool) -> Machine:
        machine = _WatchedMachine(recording, at_once)
        machine.world = self._world
        return machine


class _World:
    """What has happened in one trial, over all lives of its process."""

    def __init__(self) -> None:
        self.completed: set[tuple[int, bytes]] = set()
        self.problems: list[str] = []
        self.trace = blake2b(digest_size=16)
        self.steps = 0

    def say(self, what: str) -> None:
        self.steps += 1
        self.trace.update(what.encode())

    def began(self, run: int, identity: bytes, call: Call) -> None:
        self.say(f"{run} {identity.hex()}")
        if (run, identity) in self.completed:
            self.problems.append(f"{call.display} had completed on record, and ran again")
        for limit, _ in call.limits:
            if limit.used > limit.whole:
                self.problems.append(f"the limit {limit.name} was exceeded: {limit!r}")

    def take_stock(self, store: MemoryStore) -> None:
        """What is on record as completed when a life ends."""
        for run, tasks in store._tasks.items():
            for row in tasks.values():
                if row.state == S.COMPLETED and row.result_kind != 3:
                    self.completed.add((run, row.identity))


@dataclass(slots=True)
class Trial:
    """One seed: how it ended, and what was wrong."""

    seed: int
    crashes: int
    faults: int
    operations: int
    outcome: str
    problems: list[str]
    trace: str


@dataclass(slots=True)
class Simulation:
    """What came of all seeds.

    Attributes:
        expected: how the uninterrupted run ended.
        trials, crashes, faults: how many there were.
        trace: a digest of all that happened; the same wherever these seeds are run.
        failed: the trials in which something was wrong.
    """

    expected: str
    trials: int = 0
    crashes: int = 0
    faults: int = 0
    trace: str = ""
    failed: list[Trial] = field(default_factory=list)

    def add(self, trial: Trial) -> None:
        """Take a trial into account."""
        self.trials += 1
        self.crashes += trial.crashes
        self.faults += trial.faults
        self.trace = blake2b(f"{self.trace} {trial.trace}".encode(), digest_size=16).hexdigest()
        if trial.problems:
            self.failed.append(trial)

    def __bool__(self) -> bool:
        return not self.failed

    def __str__(self) -> str:
        return (
            f"{self.trials:,} trials with {self.crashes:,} crashes and {self.faults:,} faults:"
            f" {len(self.failed):,} broke a promise"
        )

    def check(self) -> None:
        """Raise Broken, with the seed to begin with, if anything was wrong."""
        if self.failed:
            first = self.failed[0]
            raise Broken(
                f"{self}; the first is seed {first.seed} (repeat it with seeds=[{first.seed}]):"
                f" {'; '.join(first.problems[:5])}"
            )


def simulate(
    flow: Flow[..., Any],
    *args: Any,
    seeds: int | Iterable[int] = 100,
    crashes: int = 3,
    faults: float = 0.2,
    **kwargs: Any,
) -> Simulation:
    """Run a flow under many seeds, with crashes and faults, and compare how it ends.

    Tasks may run again when a crash cut them off, so what they do to the world outside must bear
    that, as in real life. The outcome (value, or type and text of the exception) must not depend
    on how often.

    Args:
        seeds: how many, from 0; or which.
        crashes: how often the process dies at most, at a random checkpoint.
        faults: the share of trials in which the storage fails once, half of those after the
            commit (its outcome is unknown then).

    Returns:
        The account; `check` raises if a promise was broken.
    """
    straight = _trial(flow, args, kwargs, -1, 0, 0.0, None)
    done = Simulation(straight.outcome)
    if straight.problems:
        done.failed.append(straight)
        return done
    for seed in range(seeds) if isinstance(seeds, int) else seeds:
        done.add(_trial(flow, args, kwargs, seed, crashes, faults, straight))
    return done


def crash_everywhere(flow: Flow[..., Any], *args: Any, **kwargs: Any) -> Simulation:
    """Run a flow once for each of its checkpoints, dying just before it, and just after it."""
    straight = _trial(flow, args, kwargs, -1, 0, 0.0, None)
    done = Simulation(straight.outcome)
    for point in range(1, straight.operations + 1):
        for after in (False, True):
            done.add(_trial(flow, args, kwargs, -1, 0, 0.0, straight, (point, after)))
    return done


def _trial(
    flow: Flow[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    seed: int,
    crashes: int,
    faults: float,
    straight: Trial | None,
    exactly: tuple[int, bool] | None = None,
) -> Trial:
    random = Random(seed)
    world, store = _World(), _SimStore()
    store.told = world.say
    died, failed = 0, 0
    if straight is not None and faults and random.random() < faults:
        store.fails_at[random.randint(1, straight.operations)] = random.choice(
            ("before", "unknown")
        )
        failed = 1
    outcome, run_id = "", ""
    while True:
        if exactly is not None and not died:
            store.dies_at, store.after = exactly
        elif straight is not None and died < random.randint(0, crashes):
            store.dies_at = store.operations + random.randint(1, straight.operations)
            store.after = random.random() < 0.5
        else:
            store.dies_at = None
        outcome, run_id = _life(flow, args, kwargs, run_id, store, world, random, seed >= 0)
        world.take_stock(store)
        if not store.dead and outcome:
            break
        died += store.dead
        store = store.reborn()
        if died > crashes + 50:
            world.problems.append("it never ends")
            break
    if straight is not None and outcome != straight.outcome:
        world.problems.append(f"it ended as {outcome}, and uninterrupted as {straight.outcome}")
    _check_rows(store, world)
    return Trial(
        seed, died, failed, store.operations, outcome, world.problems, world.trace.hexdigest()
    )


def _life(
    flow: Flow[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    run_id: str,
    store: _SimStore,
    world: _World,
    random: Random,
    shuffled: bool,
) -> tuple[str, str]:
    """One life of the process: how the run ended ("" if it did not), and its id."""
    loop = VirtualLoop(random if shuffled else None)
    loop.set_exception_handler(lambda _loop, _context: None)
    known = [run_id]

    async def main() -> str:
        async with _SimEngine(store, world, random) as engine:
            try:
                handle = None
                if known[0]:
                    await engine.recover()
                    with contextlib.suppress(UnknownRun):
                        handle = await engine.get_run(known[0])
                if handle is None:
                    handle = await engine.submit(flow, *args, idempotency_key="simulated", **kwargs)
                known[0] = handle.id
                async with asyncio.timeout(PATIENCE):
                    state = await handle.wait()
            except (StoreError, RunNotResumable):
                return ""
            except TimeoutError:
                world.problems.append("it is stuck")
                return "stuck"
            return _told(state) if state.is_final() else ""

    task = loop.create_task(main(), name="simulation")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            return loop.run_until_complete(task), known[0]
    except (_Died, RuntimeError):
        if not store.dead:
            raise
        return "", known[0]
    except Deadlock as error:
        world.problems.append(str(error))
        return "deadlock", known[0]
    finally:
        _bury(loop, world if not store.dead else None)


def _told(state: Any) -> str:
    if state.is_completed():
        return f"{state.name}: {state.data!r}"
    error = state.error
    kind = getattr(error, "type_name", type(error).__qualname__) if error is not None else ""
    return f"{state.name}: {kind}: {failures.summary(failures.record(error)) if error else ''}"


def _bury(loop: VirtualLoop, world: _World | None) -> None:
    """Let go of a loop and of what still stood on it; of a living one nothing may be left."""
    left = [task for task in asyncio.all_tasks(loop) if not task.done()]
    if world is not None and left:
        names = ", ".join(sorted(task.get_name() for task in left))
        world.problems.append(f"tasks outlived their engine: {names}")
    logs.forget(loop)
    before = sys.unraisablehook
    sys.unraisablehook = lambda _: None
    try:
        buried: set[asyncio.Task[Any]] = set()
        while left:
            # Code that is closed may start more, to wind up; that is let go of, too.
            task = left.pop()
            buried.add(task)
            task._log_destroy_pending = False  # type: ignore[attr-defined] # asyncio's own way to be quiet
            coro = task.get_coro()
            if coro is not None:
                with contextlib.suppress(BaseException):
                    coro.close()
            _forget_scopes(task)
            if not left:
                left = [t for t in asyncio.all_tasks(loop) if not t.done() and t not in buried]
        del left, buried
        with warnings.catch_warnings():
            # Of coroutines that were about to be started when it all ended.
            warnings.simplefilter("ignore", RuntimeWarning)
            loop.close()
    finally:
        sys.unraisablehook = before


def _forget_scopes(task: asyncio.Task[Any]) -> None:
    """anyio keeps a task for as long as a scope is open in it; nobody will close those now."""
    with contextlib.suppress(ImportError, AttributeError):
        from anyio._backends import _asyncio as backend

        backend._task_states.pop(task, None)


def _check_rows(store: MemoryStore, world: _World) -> None:
    for run, tasks in store._tasks.items():
        seen: set[bytes] = set()
        for row in tasks.values():
            if row.identity in seen:
                world.problems.append(f"{row.task}-{row.seq} of run {run} is recorded twice")
            seen.add(row.identity)
    for run_row in store._runs.values():
        if not S(run_row.state).is_final:
            world.problems.append(f"the run {run_row.flow_name} was left {run_row.state_name}")


__all__ = [
    "Broken",
    "Deadlock",
    "Simulation",
    "Trial",
    "VirtualEngine",
    "VirtualLoop",
    "crash_everywhere",
    "engine",
    "run",
    "simulate",
]
