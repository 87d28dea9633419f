"""Variables: small values that are kept in the store, for flows and people to read and set."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Coroutine, Generator
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from asyncflow.context import ENGINE, current_run
from asyncflow.errors import BlockingCall, InvalidOption, NoEngine
from asyncflow.store import planning
from asyncflow.views import moment

if TYPE_CHECKING:
    from asyncflow.clock import Clock
    from asyncflow.engine import Engine
    from asyncflow.masking import Masker
    from asyncflow.store.base import ReadableStore
    from asyncflow.writer import Writer

T = TypeVar("T")

#: Bytes of a value, as JSON.
MOST_BYTES = 64 * 1024

_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,99}")


@dataclass(slots=True, kw_only=True)
class Variable:
    """A variable, as it is stored."""

    name: str
    value: Any
    updated_at: datetime | None


class Variables:
    """The part of an engine that is about variables."""

    if TYPE_CHECKING:
        # What the engine has, of which this is a part.
        reader: Any
        store: ReadableStore
        writer: Writer
        clock: Clock
        masker: Masker

        def check_open(self) -> None: ...

    async def set_variable(self, name: str, value: Any) -> None:
        """Set a variable for all who use this store. It is on disk when this returns.

        Args:
            name: lower-case letters, digits and ``_.-``, 100 at most.
            value: of JSON: at most 64 KiB of it.

        Raises:
            InvalidOption: the name or the value is none, or it holds a secret of a parameter.
        """
        self.check_open()
        _check_name(name)
        data = encoded(name, value)
        if self.masker.holds(data):
            raise InvalidOption(f"the value of the variable {name!r} holds a secret: it is not set")
        now = self.clock.time()
        await self.writer.do(
            lambda: self.store.plan(lambda tables: tables.set_variable(name, data, now))
        )

    async def get_variable(self, name: str, default: Any = None) -> Any:
        """The value of a variable as it is now; *default* where there is none.

        It is not recorded with a run: a resumed one gets what it is then.

        Raises:
            InvalidOption: no variable can have this name.
        """
        self.check_open()
        _check_name(name)
        found = await stored(self.reader, name)
        return found[0].value if found else default

    async def variables(self) -> list[Variable]:
        """All variables, by name."""
        self.check_open()
        return await stored(self.reader)

    async def delete_variable(self, name: str) -> bool:
        """Remove a variable; whether there was one."""
        self.check_open()
        _check_name(name)
        return await self.writer.do(
            lambda: self.store.plan(lambda tables: tables.delete_variable(name))
        )


async def stored(reader: Any, name: str | None = None) -> list[Variable]:
    """The variables of a store, or one of them."""
    return [
        Variable(name=row.name, value=json.loads(row.value), updated_at=moment(row.updated_at))
        for row in await reader.planned(planning.variables(name))
    ]


def _check_name(name: Any) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidOption(
            f"a variable named {name!r}: give at most 100 lower-case letters, digits and _ . -, the"
            " first a letter or digit"
        )


def encoded(name: str, value: Any) -> bytes:
    """A value as JSON.

    Raises:
        InvalidOption: reading it would give another value, or it is too large.
    """
    try:
        data = json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
        same = json.loads(data) == value
    except (TypeError, ValueError, RecursionError):
        same, data = False, b""
    if not same:
        raise InvalidOption(
            f"the value of the variable {name!r} is no JSON: give text, numbers, booleans, None,"
            " lists, and dicts whose keys are text"
        )
    if len(data) > MOST_BYTES:
        raise InvalidOption(
            f"the value of the variable {name!r} takes {len(data):,} bytes, and at most"
            f" {MOST_BYTES:,} are kept: store it elsewhere, and keep where in the variable"
        )
    return data


class Asked(Generic[T]):
    """What a function of variables gives: await it, or ask for `wait()` in a thread."""

    __slots__ = ("_engine", "_work")

    def __init__(self, engine: Engine, work: Coroutine[Any, Any, T]) -> None:
        self._engine = engine
        # Begun by who waits for it: one that nobody waits for is told of by Python.
        self._work = work

    def __await__(self) -> Generator[Any, Any, T]:
        if self._engine.on_loop():
            return self._work.__await__()
        going = asyncio.run_coroutine_threadsafe(self._work, self._engine.loop)
        return asyncio.wrap_future(going).__await__()

    def wait(self) -> T:
        """The same, in the thread of a plain flow or task.

        Raises:
            BlockingCall: on the event loop.
        """
        if self._engine.on_loop():
            self._work.close()
            raise BlockingCall("wait() would block the event loop: await it instead")
        try:
            self._engine.refuse_writer()
        except BlockingCall:
            self._work.close()
            raise
        return self._engine.block(self._work)


def get_variable(name: str, default: Any = None) -> Asked[Any]:
    """The value of a variable, in a flow or task: ``await get_variable("name")``.

    In plain code: ``get_variable("name").wait()``. It is not recorded: a resumed run, or another
    attempt, gets the value as it is then.

    Args:
        default: what to give where there is none.

    Raises:
        NoEngine: neither inside a run nor of `async with Engine()`.
        InvalidOption: no variable can have this name.
    """
    engine = _engine(f"get_variable({name!r})")
    return Asked(engine, engine.get_variable(name, default))


def set_variable(name: str, value: Any) -> Asked[None]:
    """Set a variable, in a flow or task: ``await set_variable("name", value)``.

    In plain code: ``set_variable("name", value).wait()``. A run that is resumed sets it again,
    unless a task does it that has completed.

    Args:
        name, value: as of `Engine.set_variable`.

    Raises:
        NoEngine: neither inside a run nor of `async with Engine()`.
        InvalidOption: the name or the value is none, or it holds a secret of a parameter.
    """
    engine = _engine(f"set_variable({name!r})")
    return Asked(engine, engine.set_variable(name, value))


def _engine(what: str) -> Engine:
    run = current_run()
    engine: Engine | None = run.engine if run is not None else ENGINE.get()
    if engine is None:
        raise NoEngine(
            f"{what} was used outside of a flow and of `async with Engine()`, or in a worker"
            " process: read it in the flow, and pass on the value"
        )
    return engine


__all__ = ["Variable", "Variables", "get_variable", "set_variable"]
