"""Steps a user's coroutine inside whatever asyncio task happens to be at hand.

`drive` is a generator that a worker (or a caller) delegates to. Because asyncflow steps the
coroutine itself, and does not leave that to an `asyncio.Task` of its own,

* a call costs no task, and still has a context of its own (variables set inside do not leak);
* it can be stopped without touching the task that carries it: what it is suspended at is
  cancelled, so the carrier's own cancellation can never be confused with the call's;
* where it is suspended is known, for people who ask why nothing moves;
* code that swallows its cancellation for ever can still be ended: its coroutine is closed.

The unit that is driven (a `Call` or a `Run`) has four attributes for this: `body`, the
coroutine; `on`, what it is suspended at; `stop`, why it must stop; `pending`, whether it has
yet to be told.
"""

from __future__ import annotations

import asyncio
from asyncio import CancelledError
from collections.abc import Coroutine, Generator
from contextvars import Context
from pathlib import Path
from typing import Any, Protocol

from asyncflow.errors import Unresponsive

_ASYNCIO = str(Path(asyncio.__file__).parent)

#: The value of `stop` that ends a coroutine without asking it.
KILL = "kill"


#: A coroutine of which no step has been made. (None is what ``asyncio.sleep(0)`` awaits.)
FRESH: Any = object()


class Unit(Protocol):
    """What is driven."""

    body: Any
    on: Any
    stop: str | None
    pending: bool


def drive(
    unit: Unit, coro: Coroutine[Any, Any, Any], context: Context, first: Any = FRESH
) -> Generator[Any, Any, Any]:
    """Step *coro* to its end in *context*; its result, or its exception, is ours.

    Args:
        first: what it awaits already, where its first step was made elsewhere.

    Raises:
        CancelledError: the coroutine was stopped, or its carrier was cancelled (then
            ``unit.stop`` is None).
        Unresponsive: it was closed because it would not stop.
    """
    run, send = context.run, coro.send
    unit.body = coro
    if first is FRESH and unit.pending:
        unit.pending = False
        coro.close()
        raise CancelledError
    try:
        awaited = run(send, None) if first is FRESH else first
        while True:
            unit.on = awaited
            if unit.pending and awaited is not None:
                # It was stopped during its own step: by itself, or by what it called.
                awaited.cancel()
            try:
                answer = yield awaited
            except GeneratorExit:
                coro.close()
                raise
            except BaseException as error:
                unit.on = None
                unit.pending = False
                if unit.stop == KILL:
                    _close(coro)
                    raise Unresponsive from None
                awaited = run(coro.throw, error)
            else:
                unit.on = None
                if unit.stop == KILL:
                    _close(coro)
                    raise Unresponsive
                if unit.pending:
                    unit.pending = False
                    awaited = run(coro.throw, CancelledError())
                else:
                    awaited = run(send, answer)
    except StopIteration as end:
        return end.value
    finally:
        unit.on = None
        unit.body = None


def stop(unit: Unit, why: str) -> None:
    """Tell the code of *unit* to stop: CancelledError is raised where it is suspended.

    Called again, it is told again; the first reason stays, except that `KILL` outranks it.
    """
    if unit.stop is None or why == KILL:
        unit.stop = why
    unit.pending = True
    awaited = unit.on
    if awaited is not None:
        awaited.cancel()


def where(unit: Unit) -> str:
    """Where the code of *unit* is suspended, as ``function (file:line)``; "" if it is not.

    That is the innermost place outside of asyncio.
    """
    coro, place = unit.body, ""
    while coro is not None:
        frame = getattr(coro, "cr_frame", None) or getattr(coro, "gi_frame", None)
        if frame is None:
            break
        code = frame.f_code
        if not code.co_filename.startswith(_ASYNCIO):
            place = f"{code.co_name} ({code.co_filename}:{frame.f_lineno})"
        coro = getattr(coro, "cr_await", None) or getattr(coro, "gi_yieldfrom", None)
    return place


def _close(coro: Coroutine[Any, Any, Any]) -> None:
    """End a coroutine that does not stop when told to.

    `close` raises GeneratorExit in it. If even that is swallowed, RuntimeError says so, and the
    coroutine is left alone: nobody steps it any more, so it has stopped all the same.
    """
    try:
        coro.close()
    except BaseException:
        return


class Driven:
    """`drive` for a caller that awaits: ``await Driven(unit, coro, context)``."""

    __slots__ = ("context", "coro", "unit")

    def __init__(self, unit: Unit, coro: Coroutine[Any, Any, Any], context: Context) -> None:
        self.unit = unit
        self.coro = coro
        self.context = context

    def __await__(self) -> Generator[Any, Any, Any]:
        return drive(self.unit, self.coro, self.context)
