"""Log lines of runs: captured from stdlib logging by context, masked, stored in batches.

While an engine is open, one handler of it hangs on the root logger; it takes what is logged
inside the engine's runs, threads included, and leaves everything else alone. It never blocks:
what cannot be kept is counted, and the count is logged.
"""

from __future__ import annotations

import asyncio
import builtins
import functools
import io
import logging
from collections import deque
from collections.abc import Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from asyncflow.context import logged
from asyncflow.store.base import LogRow

if TYPE_CHECKING:
    from asyncflow.engine import Engine

#: Lines that may wait to be stored.
MOST_LINES = 50_000
#: Characters of one line that are kept.
LONGEST = 32_000
#: Seconds that lines may wait.
DELAY = 0.2

_RUN_LOGGER = "asyncflow.run"


class LogCapture(logging.Handler):
    """The handler of one engine."""

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self._engine = engine
        self._lines: deque[LogRow] = deque()
        self._dropped = 0
        self._waiting = False

    def emit(self, record: logging.LogRecord) -> None:
        scope = logged()
        if scope is not None:
            run = scope.run
            if run.engine is self._engine:
                try:
                    self._take(record, run.pk, None if scope is run else scope.seq)
                except Exception:
                    self.handleError(record)
        last = logging.lastResort if logging.root.handlers == [self] else None
        if last is not None and record.levelno >= last.level:
            # Without us nothing would hang on the root logger, and this is what would happen.
            last.handle(record)

    def _take(self, record: logging.LogRecord, run: int, seq: int | None) -> None:
        if len(self._lines) >= MOST_LINES:
            self._dropped += 1
            return
        text = record.getMessage()
        if record.exc_info:
            text += "\n" + (self.formatter or _FORMATTER).formatException(record.exc_info)
        # Masked before it is cut, so that no half of a secret is left.
        text = self._engine.masker.text(text)
        if len(text) > LONGEST:
            text = text[:LONGEST] + f"... ({len(text):,} characters)"
        self._lines.append(LogRow(run, seq, record.created, record.levelno, record.name, text))
        if not self._waiting:
            self._waiting = True
            try:
                self._engine.loop.call_soon_threadsafe(self._later)
            except RuntimeError:
                self._waiting = False

    def _later(self) -> None:
        self._engine.loop.call_later(DELAY, self.flush)

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        return self._engine.loop

    def flush(self) -> None:
        """Hand what has gathered to the journal; on the loop's thread."""
        self._waiting = False
        if not self._lines:
            return
        lines = []
        while self._lines:
            lines.append(self._lines.popleft())
        if self._dropped:
            dropped, self._dropped = self._dropped, 0
            last = lines[-1]
            text = f"{dropped:,} lines dropped: more was logged than could be stored"
            lines.append(last._replace(message=text, level=logging.WARNING, logger="asyncflow"))
        self._engine.journal.logs(lines)

    def close(self) -> None:
        """Take the handler off, and store what is left."""
        logging.root.removeHandler(self)
        self.flush()
        super().close()


_FORMATTER = logging.Formatter()


def forget(loop: asyncio.AbstractEventLoop) -> None:
    """Take off the handlers of engines that ended with this loop and could not close."""
    for handler in logging.root.handlers[:]:
        if isinstance(handler, LogCapture) and handler.loop is loop:
            logging.root.removeHandler(handler)


def capture(engine: Engine) -> LogCapture:
    """Begin to capture for an engine; `close` ends it."""
    handler = LogCapture(engine)
    logging.root.addHandler(handler)
    return handler


def get_run_logger(name: str | None = None) -> logging.Logger:
    """A logger whose lines, from INFO on, are stored with the run. Works everywhere.

    Outside of a run it is an ordinary logger.
    """
    logger = logging.getLogger(_RUN_LOGGER if name is None else f"{_RUN_LOGGER}.{name}")
    base = logging.getLogger(_RUN_LOGGER)
    if base.level == logging.NOTSET:
        base.setLevel(logging.INFO)
    return logger


# --- prints ---------------------------------------------------------------------------------------

_PRINTING: ContextVar[bool] = ContextVar("asyncflow_printing", default=False)
_users = 0
_original: Callable[..., None] = builtins.print


def _print(
    *values: Any,
    sep: str | None = " ",
    end: str | None = "\n",
    file: Any = None,
    flush: bool = False,
) -> None:
    """`print`, which also logs where ``log_prints=True`` says so. One that has a file is left."""
    if file is None and _PRINTING.get():
        text = io.StringIO()
        _original(*values, sep=sep, end="", file=text)
        get_run_logger("print").info("%s", text.getvalue())
    _original(*values, sep=sep, end=end, file=file, flush=flush)


def with_prints(function: Callable[[], Any], is_async: bool) -> Callable[[], Any]:
    """*function*, whose prints are stored as log lines while it runs."""
    if is_async:

        @functools.wraps(function)
        async def awaited() -> Any:
            _install()
            _PRINTING.set(True)
            try:
                return await function()
            finally:
                _uninstall()

        return awaited

    def plain() -> Any:
        _install()
        _PRINTING.set(True)
        try:
            return function()
        finally:
            _uninstall()

    return plain


def _install() -> None:
    """Put our `print` in place, for as long as anybody needs it."""
    global _users, _original
    if _users == 0 and builtins.print is not _print:
        _original = builtins.print
        builtins.print = _print
    _users += 1


def _uninstall() -> None:
    global _users
    _users -= 1
    if _users == 0 and builtins.print is _print:
        builtins.print = _original
