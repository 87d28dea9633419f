"""What runs show: texts, tables, links, pictures, and how far they are.

The functions here are plain: in async code what they give may be awaited, to know that it is on
disk, and in the thread of a plain task nothing has to be. Either way it is on disk no later than
the end of the task that made it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from math import inf
from os import PathLike
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from asyncflow import exhibits
from asyncflow.context import CURRENT
from asyncflow.errors import BlockingCall, InvalidOption, StoreClosed
from asyncflow.run import Item, Run
from asyncflow.runner import outside
from asyncflow.store.base import ArtifactRow, LogRow

if TYPE_CHECKING:
    from asyncflow.engine import Engine
    from asyncflow.run import Call

#: What one run may show.
MOST = 1000
#: Seconds between two records of one progress.
PACE = 0.25

_KEY = re.compile(r"[a-z0-9][a-z0-9_.-]{0,99}")


def create_markdown_artifact(markdown: str, key: str | None = None, description: str = "") -> Made:
    """Show a text with the run.

    Args:
        markdown: more than 64 KiB of it are cut, and the text says so.
        key: what it is called in this run: a later one of this key takes its place. Without one,
            it is the n-th of its task, and replaced by the n-th when that runs again.
        description: in words.

    Raises:
        InvalidOption: it is no text, or the key is none (lower-case letters, digits and ``_.-``).
    """
    return _make("markdown", key, description, exhibits.markdown, markdown)


def create_table_artifact(
    rows: Iterable[Mapping[str, Any]] | Iterable[list[Any] | tuple[Any, ...]] | Mapping[str, Any],
    key: str | None = None,
    description: str = "",
) -> Made:
    """Show a table with the run.

    Args:
        rows: dicts, whose keys name the columns; or lists; or a dict of columns. Numbers, booleans
            and None stay what they are, all else is shown as text. More than 1,000 rows, 100
            columns, 1,000 characters of a cell or 1 MiB are cut, and the table says so.
        key, description: as of `create_markdown_artifact`.

    Raises:
        InvalidOption: it is no table.
    """
    return _make("table", key, description, exhibits.table, rows)


def create_link_artifact(
    url: str, text: str | None = None, key: str | None = None, description: str = ""
) -> Made:
    """Show a link with the run.

    Args:
        url: http or https.
        text: what is shown; None: the URL.
        key, description: as of `create_markdown_artifact`.

    Raises:
        InvalidOption: it is no such URL.
    """
    return _make("link", key, description, exhibits.link, url, text)


def create_image_artifact(
    data: bytes | bytearray | memoryview | str | PathLike[str],
    mime: str | None = None,
    key: str | None = None,
    description: str = "",
) -> Made:
    """Show a picture with the run.

    Args:
        data: a PNG, JPEG, GIF or WebP of at most 1 MiB: its bytes, the path of its file (which is
            read now), or a ``data:`` URL; or the http or https URL where it is, which is kept as
            it is.
        mime: such as "image/png"; None: what it begins with says so.
        key, description: as of `create_markdown_artifact`.

    Raises:
        InvalidOption: it is no such picture (SVG is refused), or too large.
        OSError: its file cannot be read.
    """
    return _make("image", key, description, exhibits.image, data, mime)


def set_progress(
    done: float, total: float | None = None, key: str | None = None, message: str = ""
) -> None:
    """Tell how far the running task, or flow, is. Call it as often as you like.

    At most four values a second are stored of one key; the last one always is.

    Args:
        done: how much is done; `total`: of how much, None where that is not known.
        key: what is counted; without one, each task run and flow run has one progress.
        message: in words, at most 500 characters.

    Raises:
        InvalidOption: these are no numbers of 0 or more, or the key is none.
    """
    exhibits.check_progress(done, total)
    if key is not None:
        _check_key(key)
    scope = CURRENT.get()
    if scope is not None:
        scope.run.engine.shown.progress(scope, key, done, total, message)
    elif outside.SEND is not None:
        _PACED.take(key, ("call", "set_progress", (done, total, key, str(message))))


class Made:
    """An artifact that was made. Awaiting it waits until it is on disk, and gives its id.

    Attributes:
        id: of the artifact; "" where it is not kept: outside of a run, or because the run shows
            too much already.
    """

    __slots__ = ("_engine", "id")

    def __init__(self, id_: str = "", engine: Engine | None = None) -> None:
        self.id = id_
        self._engine = engine

    def __await__(self) -> Generator[Any, Any, str]:
        return self._durable().__await__()

    async def _durable(self) -> str:
        engine = self._engine
        if engine is not None and engine.durability != "off":
            if engine.on_loop():
                await engine.journal.durable()
            else:
                waiting = asyncio.run_coroutine_threadsafe(engine.journal.durable(), engine.loop)
                await asyncio.wrap_future(waiting)
        return self.id

    def wait(self) -> str:
        """The same, in the thread of a plain task.

        Raises:
            BlockingCall: on the event loop.
        """
        engine = self._engine
        if engine is not None:
            if engine.on_loop():
                raise BlockingCall("wait() would block the event loop: await the artifact instead")
            engine.refuse_writer()
            engine.block(self._durable())
        return self.id

    def __repr__(self) -> str:
        return f"<artifact {self.id or 'that is not kept'}>"


def _check_key(key: Any) -> None:
    if not isinstance(key, str) or not _KEY.fullmatch(key):
        raise InvalidOption(
            f"key={key!r}: give at most 100 lower-case letters, digits and _ . -, the first a"
            " letter or digit"
        )


def _make(
    kind: str,
    key: str | None,
    description: str,
    shape: Callable[..., dict[str, Any]],
    *values: Any,
) -> Made:
    if key is not None:
        _check_key(key)
    scope = CURRENT.get()
    if scope is None:
        # Outside of a run a task is the plain function: what is wrong is said, nothing is kept.
        data = shape(*values, str)
        if outside.SEND is not None:
            if kind == "image" and "base64" in data:
                values = (f"data:{data['mime']};base64,{data['base64']}", None)
            given = (*values, key, str(description))
            outside.SEND(("call", f"create_{kind}_artifact", given))
        return Made()
    engine: Engine = scope.run.engine
    mask = engine.masker.text
    data = shape(*values, mask)
    told = exhibits.cut(exhibits.clean(mask(str(description))), exhibits.MOST_DESCRIPTION)
    packed = engine.masker.data(orjson.dumps(data))
    return Made(engine.call(engine.shown.add, scope, key, kind, told, packed), engine)


class _Paced:
    """In a worker process: progress is sent as seldom as it is stored."""

    def __init__(self) -> None:
        self._last: dict[str | None, float] = {}
        self._held: dict[str | None, Any] = {}

    def take(self, key: str | None, message: Any) -> None:
        now = time.monotonic()
        if now - self._last.get(key, -inf) < PACE:
            self._held[key] = message
            return
        self._last[key] = now
        self._held.pop(key, None)
        assert outside.SEND is not None
        outside.SEND(message)

    def finish(self) -> None:
        """The code has ended: send what was held back."""
        held, self._held = self._held, {}
        self._last = {}
        for message in held.values():
            if outside.SEND is not None:
                outside.SEND(message)


_PACED = _Paced()


def finish_outside() -> None:
    """In a worker process, after each call."""
    _PACED.finish()


#: What a worker process may ask for.
_CALLS: dict[str, Callable[..., Any]] = {
    "create_markdown_artifact": create_markdown_artifact,
    "create_table_artifact": create_table_artifact,
    "create_link_artifact": create_link_artifact,
    "create_image_artifact": create_image_artifact,
    "set_progress": set_progress,
}


def from_outside(name: str, values: tuple[Any, ...]) -> None:
    """Do what code in a worker process asks for; it has checked the values there."""
    _CALLS[name](*values)


# --- of one engine --------------------------------------------------------------------------------


class Told(NamedTuple):
    """A progress of a live run, for who looks on; `name` is its key, or what tells it."""

    name: str
    done: float
    total: float | None
    message: str


class _OfRun:
    """What one live run shows.

    Attributes:
        keys: of what is stored of it.
        counts: of each call the attempt that is under way, and how many it has made without a key.
        latest: of each progress what was told last, until it is stored.
        due: the keys of those whose record is planned; `wrote`: when each was recorded last.
        told: of each progress what is shown while the run is live.
    """

    __slots__ = ("counts", "due", "keys", "latest", "said", "told", "wrote")

    def __init__(self, keys: Iterable[str] = ()) -> None:
        self.keys: dict[str, None] = dict.fromkeys(keys)
        self.counts: dict[int, tuple[int, int]] = {}
        self.latest: dict[str, tuple[Call | Item | Run, float, float | None, str]] = {}
        self.due: set[str] = set()
        self.wrote: dict[str, float] = {}
        self.told: dict[str, Told] = {}
        self.said = False


class Shown:
    """The artifacts of the live runs of an engine, on their way to the journal."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._runs: dict[str, _OfRun] = {}

    def restore(self, run: Run, keys: Iterable[str]) -> None:
        """What a former life, or attempt, of the run has shown: all counting begins again."""
        before = self._runs.get(run.id)
        self._runs[run.id] = made = _OfRun(keys)
        if before is not None:
            made.latest, made.due, made.wrote = before.latest, before.due, before.wrote
            made.told, made.said = before.told, before.said

    def forget(self, run: Run) -> None:
        """The run is over, or has left memory."""
        self._runs.pop(run.id, None)

    def _of(self, run: Run) -> _OfRun:
        found = self._runs.get(run.id)
        return found if found is not None else self._runs.setdefault(run.id, _OfRun())

    def add(
        self, scope: Call | Item | Run, key: str | None, kind: str, description: str, data: bytes
    ) -> str:
        """Record an artifact; its id, or "" if it is not kept. On the loop's thread."""
        run = scope.run
        if run.id not in self._engine.live:
            return ""
        of = self._of(run)
        seq = None if scope is run else scope.seq
        if key is None:
            key = self._next(of, run, seq, _attempt(scope))
        return self._put(of, run, key, seq, kind, description, data)

    def _next(self, of: _OfRun, run: Run, seq: int | None, attempt: int) -> str:
        """The key of the next artifact without one: the n-th of its call."""
        began, n = of.counts.get(seq or 0, (0, 0))
        start = f"~{seq or 0}."
        if began != attempt:
            n = 0
            if f"{start}0" in of.keys:
                # Those of an attempt before: this one may make fewer.
                for key in [key for key in of.keys if key.startswith(start)]:
                    del of.keys[key]
                    self._record(ArtifactRow(0, run.pk, key, seq, "", "", b"", 0.0, 0.0), run)
        if f"{start}{n}" in of.keys or len(of.keys) < MOST:
            of.counts[seq or 0] = attempt, n + 1
        return f"{start}{n}"

    def _put(
        self,
        of: _OfRun,
        run: Run,
        key: str,
        seq: int | None,
        kind: str,
        description: str,
        data: bytes,
    ) -> str:
        engine = self._engine
        now = engine.clock.time()
        if key not in of.keys:
            if len(of.keys) >= MOST:
                if not of.said:
                    of.said = True
                    text = f"the run shows {MOST:,} artifacts: what it shows more is not kept"
                    line = LogRow(run.pk, seq, now, logging.WARNING, "asyncflow", text)
                    engine.journal.logs([line])
                return ""
            of.keys[key] = None
        self._record(ArtifactRow(0, run.pk, key, seq, kind, description, data, now, now), run)
        return artifact_id(run.id, key)

    def _record(self, row: ArtifactRow, run: Run) -> None:
        self._engine.journal.artifact(row, run.epoch)

    # --- progress -------------------------------------------------------------------------------

    def progress(
        self,
        scope: Call | Item | Run,
        key: str | None,
        done: float,
        total: float | None,
        message: str,
    ) -> None:
        """Take note of a progress; on any thread."""
        run = scope.run
        if run.id not in self._engine.live:
            return
        seq = None if scope is run else scope.seq
        at = key if key is not None else f"~{seq or 0}"
        of = self._of(run)
        # In this order, so that a record that is made meanwhile by the loop misses nothing.
        of.latest[at] = scope, done, total, message
        if at in of.due:
            return
        of.due.add(at)
        engine = self._engine
        if engine.on_loop():
            self._plan(of, at)
        else:
            with contextlib.suppress(RuntimeError, StoreClosed):
                engine.loop.call_soon_threadsafe(self._plan, of, at)

    def _plan(self, of: _OfRun, at: str) -> None:
        loop = self._engine.loop
        wait = of.wrote.get(at, -inf) + PACE - loop.time()
        if wait > 0:
            loop.call_later(wait, self._store, of, at)
        else:
            self._store(of, at)

    def _store(self, of: _OfRun, at: str) -> None:
        of.due.discard(at)
        found = of.latest.pop(at, None)
        if found is None:
            return
        scope, done, total, message = found
        run = scope.run
        if run.id not in self._engine.live:
            return
        of.wrote[at] = self._engine.loop.time()
        masker = self._engine.masker
        told = exhibits.progress(done, total, str(message), masker.text)
        of.told.pop(at, None)  # so that the newest is the last
        of.told[at] = Told(_name(scope, at), done, total, told["message"])
        seq = None if scope is run else scope.seq
        # It may be another record than the one that was asked for: a new attempt has begun.
        self._put(self._of(run), run, at, seq, "progress", "", masker.data(orjson.dumps(told)))

    def flush(self, run: Run) -> None:
        """Hand what was told last to the journal."""
        of = self._runs.get(run.id)
        if of is not None:
            for at in list(of.latest):
                self._store(of, at)

    def told(self, run: Run) -> list[Told]:
        """How far a live run is, what was told last at the end."""
        of = self._runs.get(run.id)
        return list(of.told.values()) if of is not None else []


def _attempt(scope: Call | Item | Run) -> int:
    """Which attempt of it is under way; an item that has not become a call is in its first."""
    if isinstance(scope, Run):
        return scope.attempt
    call = scope.made if isinstance(scope, Item) else scope
    return call.attempt if call is not None else 1


def _name(scope: Call | Item | Run, at: str) -> str:
    if not at.startswith("~"):
        return at
    if isinstance(scope, Run):
        return scope.run_name or scope.flow_name
    if isinstance(scope, Item):
        return f"{scope.batch.spec.name}-{scope.seq}"
    return scope.display


def artifact_id(run_id: str, key: str) -> str:
    """The id of an artifact."""
    return f"{run_id}:{key}"


__all__ = [
    "Made",
    "Shown",
    "create_image_artifact",
    "create_link_artifact",
    "create_markdown_artifact",
    "create_table_artifact",
    "set_progress",
]
