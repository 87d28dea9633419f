"""Notices that code keeps the event loop from turning, and names it.

As long as runs are live, a thread asks the loop for an answer, twice in each stretch of
`blocked_loop_seconds`. Where none comes it looks at the frames of the loop's thread: they say
which line it is in, and, beneath, for which call or run. Nothing of this is in the path of a call.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import time
from asyncio import base_events, events, runners
from collections.abc import Callable
from contextvars import Context
from pathlib import Path
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Literal, NamedTuple
from weakref import WeakKeyDictionary

from asyncflow.context import CURRENT
from asyncflow.drive import drive
from asyncflow.executor import Executor
from asyncflow.run import Call, Item, Run

if TYPE_CHECKING:
    from asyncflow.engine import Engine

#: Seconds before the same line of the same task is named again, in a run and in the process's log.
AGAIN = 300.0
#: Seconds after which a loop that still does not turn is told of from outside of it.
LONG = 10.0
#: Answers without a live run after which the thread ends; the next run starts another.
IDLE = 8
#: Lines that are remembered, to name each once in a while.
MOST = 1_000

_OURS = str(Path(__file__).parent) + os.sep
_STANDARD = (str(Path(os.__file__).parent) + os.sep, "<frozen ")
_DRIVE: CodeType = drive.__code__
_FIRST_STEPS = (Executor._work.__code__, Executor._items.__code__)
_HANDLE = events.Handle._run.__code__
_TURN = base_events.BaseEventLoop._run_once.__code__  # type: ignore[attr-defined] # no public name

_Kind = Literal["own", "installed", "standard", "ours"]
_ITSELF = "asyncflow itself"
_REMEDY = (
    "nothing else could run meanwhile; await it, or have a plain function do it, as a task or by"
    " asyncio.to_thread"
)
_log = logging.getLogger("asyncflow")


class Sight(NamedTuple):
    """What the loop's thread is doing.

    Attributes:
        unit: what it has entered; as long as it is the same, the loop has not turned.
        scope: the call or run whose code it is; None: of none.
        place: ``file:line in function``, of the user's code where there is any.
        who: what to call it where it is of none.
    """

    unit: object
    scope: Call | Item | Run | None
    place: str
    who: str = "code outside of all runs"


def see(thread: int, loop: asyncio.AbstractEventLoop) -> Sight | None:
    """What the thread is doing in which *loop* runs; None: nothing, or nothing that can be told."""
    frame = sys._current_frames().get(thread)
    inside: list[tuple[_Kind, FrameType]] = []  # the innermost first
    unit: object = None
    task: object = None
    context: Context | None = None
    while frame is not None:
        code = frame.f_code
        if code is _DRIVE:
            unit = context = frame.f_locals.get("context")
            break
        if code in _FIRST_STEPS:
            unit = context = frame.f_locals.get("context")
            if inside and inside[-1][0] == "ours":
                context = None  # it is at something else, between two calls
            break
        if code is _HANDLE:
            unit = frame.f_locals.get("self")
            context = getattr(unit, "_context", None)
            if all(kind == "ours" or kind == "standard" for kind, _ in inside):
                context = None  # what the engine does by itself may come from anywhere
            break
        if code is _TURN:
            return None
        if code.co_filename == runners.__file__:
            frame = None
            break
        inside.append((_kind(code.co_filename), frame))
        frame = frame.f_back
    if frame is None:
        # A loop that is not written in Python: what lies beneath its tasks is not seen.
        unit = task = asyncio.current_task(loop)
        ask: Callable[[], Context] | None = getattr(task, "get_context", None)
        context = ask() if ask is not None else None
    if unit is None or not inside:
        return None
    kind, at = _blamed(inside)
    innermost = inside[0][1]
    place = _told(at) if at is innermost else f"{_told(at)} (inside of it, {_told(innermost)})"
    if kind == "ours":
        who = _ITSELF
    elif unit is task and context is None:
        who = "code in an asyncio task"  # before Python 3.12 a task does not tell its context
    else:
        who = "code outside of all runs"
    return Sight(unit, context.get(CURRENT) if context is not None else None, place, who)


def _blamed(inside: list[tuple[_Kind, FrameType]]) -> tuple[_Kind, FrameType]:
    """The frame whose author is to look at it: the innermost of what is not installed.

    Where all is, that is the outermost: it is the function of the task.
    """
    own = next((found for found in inside if found[0] == "own"), None)
    installed = next((found for found in reversed(inside) if found[0] == "installed"), None)
    ours = next((found for found in inside if found[0] == "ours"), None)
    return own or installed or ours or inside[0]


def _kind(file: str) -> _Kind:
    if file.startswith(_OURS):
        return "ours"
    if "site-packages" in file or "dist-packages" in file:
        return "installed"
    return "standard" if file.startswith(_STANDARD) else "own"


def _told(frame: FrameType) -> str:
    return f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}"


class Suspicion:
    """Decides, look by look, whether one piece of code keeps the loop from turning.

    That takes two looks at which it was at the same, or the time in which the thread that looks
    could not: a single call of C code may hold the interpreter.

    Args:
        seconds: shorter stretches are not told. Those that are half as long again always are.

    Attributes:
        every: seconds between two looks.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.every = seconds / 2
        self._stuck = 0.0
        self._unit: object = None
        self._is_told = False

    def look(
        self, elapsed: float, answered: bool, busy: float, see: Callable[[], Sight | None]
    ) -> Sight | None:
        """Something to tell, once for each stretch.

        Args:
            elapsed: seconds since the look before.
            answered: the loop has turned since then.
            busy: seconds for which the loop's thread had a processor since then.
            see: tells what the thread is doing.
        """
        if elapsed >= self.seconds:
            # Too late: it held the interpreter, or the whole process stood still.
            elapsed = min(elapsed, busy)
            if elapsed >= self.seconds and not self._is_told:
                self._is_told = True
                return see()
        if answered:
            self._stuck, self._unit, self._is_told = 0.0, None, False
            return None
        self._stuck += elapsed
        if self._is_told:
            return None
        sight = see()
        same = sight is not None and sight.unit is self._unit
        self._unit = sight.unit if sight is not None else None
        if not same or self._stuck < self.seconds:
            return None
        self._is_told = True
        return sight


class Watchdog:
    """Watches the loop of one engine while runs are live.

    Args:
        engine: an open engine, of whose loop this is called.
        seconds: for which code may keep the loop from turning.
    """

    def __init__(self, engine: Engine, seconds: float) -> None:
        self._engine = engine
        self._seconds = seconds
        self._loop = engine.loop
        self._watched = threading.get_ident()
        self._thread: threading.Thread | None = None
        self._end = threading.Event()
        self._answered = True
        self._idle = 0
        self._closed = False
        self._told: dict[object, float] = {}
        self._told_elsewhere = _ELSEWHERE.setdefault(self._loop, {})

    # --- on the loop ----------------------------------------------------------------------------

    def wake(self) -> None:
        """A run is live."""
        self._idle = 0
        if self._thread is None and not self._closed:
            self._end = threading.Event()
            self._answered = True
            self._thread = threading.Thread(
                target=self._watch, args=(self._end,), name="asyncflow-watchdog", daemon=True
            )
            self._thread.start()

    def _answer(self) -> None:
        self._answered = True
        self._idle = 0 if self._engine.live else self._idle + 1
        if self._idle >= IDLE:
            self._end.set()
            self._thread = None

    async def aclose(self) -> None:
        """Watch no more; the thread has ended when this returns."""
        self._closed = True
        self._end.set()
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join(0.02)
            while thread.is_alive():  # noqa: ASYNC110 - it is writing to a slow log
                await asyncio.sleep(0.002)

    def _over(self, sight: Sight, since: float) -> None:
        """The loop turns again: tell what has kept it."""
        engine, scope = self._engine, sight.scope
        run = None if scope is None else scope.run
        if self._closed or (run is not None and run.engine is not engine):
            return  # the engine of that run tells it
        flow, task, who = _named(sight)
        if engine.metrics is not None:
            engine.metrics.blocked(flow, task)
        seconds = time.monotonic() - since
        text = (
            f"{who} kept the event loop from turning for at least {seconds:.1f} s, at {sight.place}"
        )
        if who != _ITSELF:
            text = f"{text}: {_REMEDY}"
        line = (flow, task, sight.place)
        if run is None:
            # Others may watch the same loop: one of them says it.
            if _is_new(self._told_elsewhere, line):
                engine.report(text)
            return
        if _is_new(self._told, (run.pk, *line)):
            engine.keep_line(run, text, None if isinstance(scope, Run) else scope)
        if _is_new(self._told, line):
            engine.report(f"{run.display}: {engine.masker.text(text)}")

    # --- in the thread --------------------------------------------------------------------------

    def _watch(self, end: threading.Event) -> None:
        suspicion = Suspicion(self._seconds)
        processor = _processor_of(self._watched)
        since = looked = time.monotonic()
        used = processor()
        blocked: Sight | None = None
        while not end.wait(suspicion.every):
            now, before = time.monotonic(), used
            used = processor()
            answered = self._answered
            late = now - looked >= self._seconds
            if answered and late:
                since = looked
            sight = suspicion.look(now - looked, answered, used - before, self._see)
            looked = now
            try:
                if sight is not None:
                    blocked = sight
                    self._seen(sight, since)
                if answered:
                    blocked = None if sight is None else blocked
                    since = now
                    self._answered = False
                    self._loop.call_soon_threadsafe(self._answer)
                elif blocked is not None and now - since >= LONG:
                    self._still(blocked, now - since)
                    blocked = None
            except RuntimeError:
                return  # the loop is closed
            if self._loop.is_closed():
                return
            del sight

    def _seen(self, sight: Sight, since: float) -> None:
        self._loop.call_soon_threadsafe(self._over, sight, since)

    def _see(self) -> Sight | None:
        return see(self._watched, self._loop)

    def _still(self, sight: Sight, seconds: float) -> None:
        """It may never turn again, so that nobody else would tell."""
        _, _, who = _named(sight)
        text = f"{who} has kept the event loop from turning for {seconds:.0f} s, at {sight.place}"
        _log.warning("%s", self._engine.masker.text(text))


#: What was told of code that belongs to no run, by loop: several engines may watch one.
_ELSEWHERE: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[object, float]] = WeakKeyDictionary()


def _is_new(told: dict[object, float], line: object) -> bool:
    """Whether a line has not been told of late."""
    now = time.monotonic()
    if now - told.get(line, -AGAIN) < AGAIN:
        return False
    if len(told) >= MOST:
        for old in [old for old, when in told.items() if now - when >= AGAIN] or list(told):
            del told[old]
    told[line] = now
    return True


def _named(sight: Sight) -> tuple[str, str, str]:
    """Flow, task, and what people call it."""
    scope = sight.scope
    if scope is None:
        return "", "", sight.who
    flow = scope.run.flow_name
    if isinstance(scope, Run):
        return flow, "", f"flow {flow}"
    if isinstance(scope, Item):
        task = scope.batch.spec.name
        return flow, task, f"task {task}-{scope.seq}"
    return flow, scope.spec.name, f"task {scope.display}"


def _processor_of(thread: int) -> Callable[[], float]:
    """What tells for how many seconds a thread has had a processor."""
    try:
        clock = time.pthread_getcpuclockid(thread)
    except (AttributeError, OSError):
        return lambda: 0.0
    return lambda: time.clock_gettime(clock)
