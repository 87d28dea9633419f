"""``asyncflow run``, ``resume`` and ``recover``: flows in this process, with progress."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shlex
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import TYPE_CHECKING, Any

import click

from asyncflow.cli.output import (
    EXITS,
    MARKS,
    Unbreakable,
    answered,
    between,
    coloured,
    fail,
    label,
    one_line,
    paragraph,
    print_json,
    say,
)
from asyncflow.cli.place import Place
from asyncflow.cli.progress import Progress
from asyncflow.cli.source import check_exists, find_run, path_of
from asyncflow.engine import Engine, default_database
from asyncflow.errors import InvalidOption, StoreError, UnknownFlow
from asyncflow.handle import FlowRun
from asyncflow.registry import find
from asyncflow.states import State, StateType
from asyncflow.target import find_flow

if TYPE_CHECKING:
    from asyncflow.client import Client
    from asyncflow.server import models

_SIGNAL_EXITS = {signal.SIGINT: 130, signal.SIGTERM: 143}


class Session:
    """One engine with its display and its signal handlers, for one command."""

    def __init__(self, db: str | None, durability: str, as_json: bool, quiet: bool) -> None:
        self.db = path_of(db)
        self.as_json = as_json
        self.quiet = quiet
        self.engine = Engine(self.db, durability=durability)
        self.signal: int | None = None
        self._told = asyncio.Event()

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[Progress]:
        loop = asyncio.get_running_loop()
        async with self.engine:
            progress = Progress(self.engine, self.quiet)
            handler = _show_logs(logging.WARNING if self.quiet else logging.NOTSET)
            with _signals(loop, self._signalled):
                progress.start()
                try:
                    yield progress
                finally:
                    progress.stop()
                    if handler is not None:
                        logging.root.removeHandler(handler)

    def _signalled(self, number: int) -> None:
        if self.signal is not None:
            os._exit(_SIGNAL_EXITS.get(signal.Signals(number), 130))
        self.signal = number
        self._told.set()
        name = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
        say(f"{name}: stopping; the run can be resumed (again: exit at once)", error=True)
        task = asyncio.ensure_future(self.engine.interrupt(f"interrupted by {name}"))
        task.add_done_callback(lambda _: None)

    async def until_signalled(self) -> None:
        """Wait for Ctrl-C or SIGTERM."""
        await self._told.wait()

    def signal_code(self) -> int:
        """The exit code of a command that a signal ended; 0 if none did."""
        return 0 if self.signal is None else _SIGNAL_EXITS[signal.Signals(self.signal)]

    def exit_code(self, state: State[Any]) -> int:
        if self.signal is not None and not state.is_final():
            return _SIGNAL_EXITS[signal.Signals(self.signal)]
        if state.is_paused() and isinstance(state.error, StoreError):
            return 1
        return EXITS.get(state.type, 1)

    def resume_command(self, run_id: str) -> str:
        where = f" --db {shlex.quote(str(self.db))}" if self.db != default_database() else ""
        return f"asyncflow resume {run_id}{where}"


@contextlib.contextmanager
def _signals(loop: asyncio.AbstractEventLoop, told: Callable[[int], None]) -> Any:
    """Handle SIGINT and SIGTERM on the loop, and give them back afterwards."""
    before = {number: signal.getsignal(number) for number in _SIGNAL_EXITS}
    try:
        for number in _SIGNAL_EXITS:
            loop.add_signal_handler(number, told, number)
    except (NotImplementedError, RuntimeError):
        # No handlers on this platform or thread: Ctrl-C ends the process as usual.
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)


class _Stderr(logging.Handler):
    """Log lines on whatever standard error is at the time."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.name != "asyncflow.run.print":
            print(paragraph(self.format(record)), file=sys.stderr)  # noqa: T201 - a CLI's own output


def _show_logs(level: int) -> logging.Handler | None:
    if [h for h in logging.root.handlers if type(h).__module__ != "asyncflow.logs"]:
        return None  # the user's code has set up logging of its own
    handler = _Stderr(level)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S"))
    logging.root.addHandler(handler)
    return handler


def run_flow(
    *,
    target: str,
    params: tuple[str, ...],
    params_file: str | None,
    run_name: str | None,
    tags: tuple[str, ...],
    idempotency_key: str | None,
    durability: str,
    db: str | None,
    as_json: bool,
    quiet: bool,
) -> int:
    """Run a flow to its end; the exit code."""
    from asyncflow.cli.params import parse

    session = Session(db, durability, as_json, quiet or as_json)

    async def run() -> int:
        flow = find_flow(target)
        values = parse(flow, params, params_file)
        async with session.opened():
            handle = await session.engine.submit(
                flow,
                idempotency_key=idempotency_key,
                tags=tags,
                run_name=run_name,
                **values,
            )
            say_started(session, handle)
            state = await handle.wait()
        return tell_end(session, handle, state)

    return guarded(run, as_json)


def resume_run(
    *, run_id: str, params: tuple[str, ...], at: Place, as_json: bool, quiet: bool
) -> int:
    """Go on with a stored run; the exit code."""

    async def begin(engine: Engine, stored: str, given: dict[str, Any] | None) -> FlowRun[Any]:
        return await engine.resume(stored, parameters=given)

    async def ask(client: Client, stored: str, given: dict[str, Any] | None) -> models.Run:
        if given:
            raise InvalidOption("--param of a resumed run is not sent to a server: use --db")
        return await client.resume(stored)

    return begin_stored(run_id, params, at, as_json, quiet, begin, ask)


def begin_stored(
    run_id: str,
    params: tuple[str, ...],
    at: Place,
    as_json: bool,
    quiet: bool,
    begin: Callable[[Engine, str, dict[str, Any] | None], Coroutine[Any, Any, FlowRun[Any]]],
    ask: Callable[[Client, str, dict[str, Any] | None], Coroutine[Any, Any, models.Run]],
) -> int:
    """Begin something with a stored run, given parameters, and see it to its end.

    Args:
        begin: how an engine of this process does it; `ask`: how a server is asked.
    """
    from asyncflow.cli.params import parse

    if at.server is not None:
        return _begin_there(run_id, params, at, as_json, quiet, ask)
    session = Session(at.db, "strict", as_json, quiet or as_json)

    async def run() -> int:
        check_exists(session.db)
        import_from_here()
        async with session.opened():
            row = await find_run(session.engine.reader, run_id)
            given = parse(find(row.flow_ref, row.flow_name), params) if params else None
            handle = await begin(session.engine, row.id, given)
            say_started(session, handle)
            state = await handle.wait()
        return tell_end(session, handle, state)

    return guarded(run, as_json)


def _begin_there(
    run_id: str,
    params: tuple[str, ...],
    at: Place,
    as_json: bool,
    quiet: bool,
    ask: Callable[[Client, str, dict[str, Any] | None], Coroutine[Any, Any, models.Run]],
) -> int:
    from asyncflow.cli.remote import follow, parameters_of, run_id_of

    async def begin(client: Client) -> models.Run:
        stored = await run_id_of(client, run_id)
        given = None
        if params:
            given = parameters_of(params, (await client.forms(stored)).parameters)
        return await ask(client, stored, given)

    return follow(at, begin, as_json, quiet)


def recover_runs(*, db: str | None, as_json: bool, quiet: bool) -> int:
    """Take over what dead processes left; the exit code of the worst."""
    session = Session(db, "strict", as_json, quiet or as_json)

    async def run() -> int:
        check_exists(session.db)
        import_from_here()
        ended: list[tuple[FlowRun[Any], State[Any]]] = []
        async with session.opened():
            session.engine.commands.allowed = False  # it ends with what it recovers
            handles = await session.engine.recover()
            for handle in handles:
                say_started(session, handle)
            ended.extend([(handle, await handle.wait()) for handle in handles])
        if as_json:
            print_json([_summary(handle, state) for handle, state in ended])
        elif not ended:
            say("nothing to recover: no run was left unfinished by a dead process")
        codes = [tell_end(session, handle, state, plain=as_json) for handle, state in ended]
        return max(codes, default=0)

    return guarded(run, as_json)


def import_from_here() -> None:
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())


def guarded(run: Callable[[], Coroutine[Any, Any, int]], as_json: bool) -> int:
    """Run it; errors of asyncflow are one line, and in JSON mode prints go to standard error."""
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = Unbreakable(sys.stdout), Unbreakable(sys.stderr)
    if as_json:
        sys.stdout = _JsonOut(sys.stdout)

    def work() -> int:
        try:
            return asyncio.run(run())
        except UnknownFlow as error:
            if error.__cause__ is not None:
                _say_where(error.__cause__)
            return fail(str(error))
        except SystemExit as error:
            say(
                f"asyncflow: the run has failed: its code called sys.exit({error.code!r})",
                error=True,
            )
            return 1

    try:
        return answered(work)
    finally:
        sys.stdout, sys.stderr = streams


class _JsonOut:
    """Standard output while JSON is asked for: what user code prints goes to standard error."""

    def __init__(self, out: Any) -> None:
        self.real = out

    def write(self, text: str) -> int:
        return sys.stderr.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)


def _say_where(error: BaseException) -> None:
    """The last lines of where user code failed, for finding it."""
    trace = error.__traceback__
    last = None
    while trace is not None:
        last, trace = trace, trace.tb_next
    if last is not None:
        code = last.tb_frame.f_code
        say(f"  at {label(code.co_filename)}:{last.tb_lineno} in {code.co_name}", error=True)


def say_started(session: Session, handle: FlowRun[Any]) -> None:
    if not session.quiet:
        say(f"run {handle.id} of flow {label(handle.flow_name)}", error=True)


def _summary(handle: FlowRun[Any], state: State[Any]) -> dict[str, Any]:
    error = None
    if state.error is not None:
        error = {"type": type(state.error).__name__, "message": str(state.error)}
    return {
        "id": handle.id,
        "flow": handle.flow_name,
        "name": handle.name,
        "state": state.type.value,
        "state_name": state.name,
        "message": state.message,
        "created_at": handle.created_at,
        "started_at": handle.started_at,
        "ended_at": handle.ended_at,
        "result": state.data if state.is_completed() else None,
        "error": error,
    }


def tell_end(session: Session, handle: FlowRun[Any], state: State[Any], plain: bool = False) -> int:
    code = session.exit_code(state)
    if session.as_json:
        if not plain:
            print_json(_summary(handle, state))
        return code
    mark = coloured(state.type, f"{MARKS[state.type]} {label(handle.name)} {label(state.name)}")
    took = between(handle.started_at, handle.ended_at)
    say(f"{mark} in {took}" if took else mark, error=True)
    if state.is_completed():
        if state.data is not None:
            say(one_line(repr(state.data), 2000))
    elif state.type is StateType.PAUSED:
        say(f"  {one_line(state.message, 500)}", error=True)
        say(
            f"resume it with: {click.style(session.resume_command(handle.id), bold=True)}",
            error=True,
        )
    else:
        _say_error(state)
        say(f"look into it with: asyncflow runs show {handle.id}", error=True)
    return code


def _say_error(state: State[Any]) -> None:
    error = state.error
    if isinstance(error, BaseExceptionGroup):
        say(f"  {one_line(error.message, 500)}", error=True)
        for member in error.exceptions[:5]:
            say(f"    {type(member).__name__}: {one_line(str(member), 300)}", error=True)
        if len(error.exceptions) > 5:
            say(f"    and {len(error.exceptions) - 5} more", error=True)
    elif error is not None:
        say(f"  {type(error).__name__}: {one_line(str(error), 500)}", error=True)
        for note in getattr(error, "__notes__", ())[:3]:
            for line in note.splitlines()[:8]:
                say(f"    {one_line(line, 200)}", error=True)
    elif state.message:
        say(f"  {one_line(state.message, 500)}", error=True)
