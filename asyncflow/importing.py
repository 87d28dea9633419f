"""Reads the file of one run (see `asyncflow.capsule`) into a store.

A file may come from strangers. Nothing in it is unpickled, imported or called here, every value
is checked, no more of it is in memory than one row, and the store takes all of it or nothing.
"""

from __future__ import annotations

import gzip
import os
import stat
import zlib
from binascii import a2b_base64
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import IO, Any, NoReturn

import orjson

from asyncflow.capsule import (
    FORMAT,
    MOST_DEPTH,
    MOST_LINE,
    MOST_VALUE,
    OF_KIND,
    VERSION,
    Stopped,
    Table,
    is_int,
    never,
)
from asyncflow.decisions import MESSAGE, message_id
from asyncflow.errors import InvalidExport, StoreError
from asyncflow.exhibits import is_sound
from asyncflow.ids import new_run_id
from asyncflow.states import StateType
from asyncflow.store.base import (
    IMPORTED,
    AnyRow,
    ArtifactRow,
    EventRow,
    MarkRow,
    ResultKind,
    RunRow,
    Store,
    TaskRow,
)

#: Bytes that a file may expand to, unless the user says otherwise.
MOST_BYTES = 2 * 1024**3

_HAS_RESULT = (ResultKind.JSON, ResultKind.PICKLE)


@dataclass(slots=True)
class Imported:
    """What was read.

    Attributes:
        row: of the run, as it is in this store.
        runs, tasks: how many flow runs and task runs there were.
        notes: sentences on what is not as it was.
    """

    row: RunRow
    runs: int
    tasks: int
    notes: list[str] = field(default_factory=list)


def load(
    store: Store,
    source: Path,
    *,
    now: float,
    new_id: bool = False,
    allow_pickle: bool = False,
    max_bytes: int = MOST_BYTES,
    stopped: Callable[[], bool] = never,
) -> Imported | None:
    """Add the run of a file to *store*.

    Args:
        now: seconds since the epoch.
        new_id: give it, and the runs below it, ids of their own; `origin` names the old ones.
        allow_pickle: keep results that are pickles: reading one runs what is in it.
        max_bytes: what the file may expand to.
        stopped: whether nobody wants it any more; None is then returned, and nothing is left.

    Raises:
        InvalidExport: the file is no exported run, is damaged, or of a newer version.
        RunExists: the run is there already.
        StoreError: the file cannot be read, or the store not be written.
    """
    with _opened(source) as file:
        reading = _Reading(_Lines(file, source, max_bytes, stopped), now, new_id, allow_pickle)
        try:
            row = store.load(reading.rows(), _renumbered)
        except Stopped:
            return None
    return Imported(row, reading.runs, reading.tasks, reading.notes(row))


def _opened(source: Path) -> IO[bytes]:
    try:
        # Not to wait for a writer, where it is a pipe.
        handle = os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise StoreError(f"{source} cannot be read: {error.strerror}") from None
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise InvalidExport(f"{source} is no file: give one that `asyncflow runs export` wrote")
    return os.fdopen(handle, "rb")


def _renumbered(mark: MarkRow, ids: Mapping[int, int]) -> MarkRow:
    """A mark that names the message that ended a wait, by the number that this has here."""
    if not mark.value.startswith(MESSAGE):
        return mark
    # No message has the number 0: so none is taken for one that is not there.
    new = ids.get(message_id(mark.value), 0).to_bytes(8, "big")
    return mark._replace(value=MESSAGE + new + mark.value[len(MESSAGE) + 8 :])


def _a(kind: str) -> str:
    return f"an {kind}" if kind[:1] in "aeiou" else f"a {kind}"


class _Lines:
    """The lines of one file: never too many, never too long, and summed up."""

    def __init__(
        self, file: IO[bytes], source: Path, max_bytes: int, stopped: Callable[[], bool]
    ) -> None:
        self._packed = gzip.GzipFile("", "rb", fileobj=file)
        self._source = source
        self._left = self._max = max_bytes
        self._stopped = stopped
        self._sum = sha256()
        self._count = 0

    def refuse(self, why: str) -> NoReturn:
        raise InvalidExport(f"{self._source} {why}")

    def damaged(self, why: str) -> NoReturn:
        self.refuse(f"is damaged, and nothing of it was imported: {why}")

    def newer(self, what: str) -> NoReturn:
        self.refuse(f"was written by a newer asyncflow ({what}): upgrade asyncflow to import it")

    def foreign(self) -> NoReturn:
        self.refuse("is no exported run: give a file that `asyncflow runs export` wrote")

    def head(self) -> None:
        """Read the first line, and see whether we understand the rest."""
        told = self.next()
        version: Any = told.get("version")
        if told.get("format") != FORMAT or not is_int(version) or version < 1:
            self.foreign()
        if version > VERSION:
            self.newer(f"format {version}; this one knows {VERSION}")

    def next(self) -> dict[str, Any]:
        """What the next line says."""
        line = self._read()
        try:
            told = orjson.loads(line)
        except ValueError:
            told = None
        if not isinstance(told, dict):
            if not self._count:
                self.foreign()
            self.damaged("a line of it is not JSON" if line else "it ends too early")
        if "end" in told:
            self._check_end(told["end"])
        else:
            self._sum.update(line)
            self._count += 1
        return told

    def _read(self) -> bytes:
        """The next line; empty where there is none."""
        if self._stopped():
            raise Stopped
        most = min(MOST_LINE, self._left) + 1
        try:
            line = self._packed.readline(most)
        except EOFError:
            self.damaged("it ends too early")
        except (gzip.BadGzipFile, zlib.error) as error:
            if not self._count:
                self.foreign()
            self.damaged(str(error))
        except OSError as error:
            raise StoreError(f"{self._source} cannot be read: {error.strerror}") from None
        self._left -= len(line)
        if self._left < 0:
            self.refuse(
                f"expands to more than {self._max:,} bytes, and nothing of it was imported: if that"
                " is meant, give max_bytes=, or --max-bytes"
            )
        if len(line) == most:
            self.damaged("a line of it is too long")
        return line

    def _check_end(self, told: Any) -> None:
        if told != {"lines": self._count, "sha256": self._sum.hexdigest()}:
            self.damaged("its check sum does not fit")
        if self._read():
            self.damaged("there is more after its end")


class _Reading:
    """The rows of one file."""

    def __init__(self, lines: _Lines, now: float, new_id: bool, allow_pickle: bool) -> None:
        self._lines = lines
        self._now = now
        self._new_id = new_id
        self._allow_pickle = allow_pickle
        self._ids: set[str] = set()
        self._depths: list[int] = []  # of each run, by its number in the file
        self._last: dict[str, Any] = {}  # the order of the last row, by kind
        self._parked: EventRow | None = None
        self._key: str | None = None
        self._pickles = 0
        self.tasks = 0

    @property
    def runs(self) -> int:
        return len(self._depths)

    def notes(self, row: RunRow) -> list[str]:
        """What is not as it was."""
        notes = []
        if self._key != row.idempotency_key:
            notes.append(
                f"the run {row.id} has no idempotency key any more: {self._key!r} is that of"
                " another run here"
            )
        if self._pickles:
            notes.append(
                f"the run {row.id} came without its pickled results ({self._pickles:,}), so that a"
                " resume runs their calls again: if you trust the file, import it with"
                " allow_pickle=True, or --allow-pickle"
            )
        age = (self._now - (row.ended_at or self._now)) / 86_400
        if age > 30:
            notes.append(
                f"the run {row.id} ended {age:,.0f} days ago: engines remove runs that are older"
                " than their retention_days, 30 by default"
            )
        return notes

    def rows(self) -> Iterator[AnyRow]:
        """All rows, runs numbered from 1. Before it ends, the end of the file has been checked."""
        self._lines.head()
        while "end" not in (told := self._lines.next()):
            row = self._row(told)
            # What an unfinished run becomes is the last of its story.
            if self._parked is not None and not isinstance(row, EventRow):
                yield self._parked
                self._parked = None
            if isinstance(row, RunRow):
                row = self._own(row)
            yield row
        if self._parked is not None:
            yield self._parked
        if not self._depths:
            self._lines.damaged("there is no run in it")

    def _row(self, told: dict[str, Any]) -> AnyRow:
        kind, fields = next(iter(told.items()), ("", None))
        table = OF_KIND.get(kind)
        if kind == "part":
            self._lines.damaged("a part of a value is left over")
        if table is None:
            self._lines.newer(f"it holds {kind[:40]!r}")
        if type(fields) is not dict or len(told) != 1:
            self._lines.damaged(f"{_a(kind)} makes no sense")
        unknown = fields.keys() - table.fields.keys()
        if unknown:
            self._lines.newer(f"{_a(kind)} has {min(unknown)[:40]!r}")
        values: dict[str, Any] = {}
        for name, check in table.fields.items():
            value = fields.get(name)
            try:
                values[name] = check(self._bytes(value) if type(value) is dict else value)
            except (ValueError, TypeError, KeyError, RecursionError):
                self._lines.damaged(f"the {name} of {_a(kind)} makes no sense")
        row: Any
        if table.row is RunRow:
            row = RunRow(pk=0, root=1, engine=None, **values)
        elif not self._depths:
            self._lines.damaged(f"{_a(kind)} belongs to no run")
        elif table.row is EventRow:
            # It happened elsewhere, and nobody here shall act on it.
            values["epoch"] = ~values["epoch"]
            row = EventRow(id=0, run=self.runs, **values)
        elif table.row is ArtifactRow:
            row = ArtifactRow(id=0, run=self.runs, **values)
            # Who looks at it must not be led astray by what a stranger has written.
            if not is_sound(row.kind, orjson.loads(row.data)):
                self._lines.damaged(f"{_a(kind)} makes no sense")
        else:
            row = table.row(run=self.runs, **values)
        if table.order is not None:
            self._check_order(table, table.order(row))
        if table.row is RunRow or table.row is TaskRow:
            row = self._with_result(row)
        found: AnyRow = row
        return found

    def _bytes(self, told: dict[str, Any]) -> bytes:
        """Bytes that are no text, or stand in the lines that follow.

        Raises:
            ValueError, TypeError, KeyError: they do not.
        """
        if "b64" in told:
            return a2b_base64(told["b64"], strict_mode=True)
        size = told["bytes"]
        if not is_int(size) or not 0 <= size <= MOST_VALUE:
            raise ValueError
        found = bytearray()
        while len(found) < size:
            found += a2b_base64(self._lines.next()["part"], strict_mode=True)
        if len(found) != size:
            raise ValueError
        return bytes(found)

    def _check_order(self, table: Table, order: Any) -> None:
        """Rows come in order, so that none can be there twice."""
        last = self._last.get(table.kind)
        if last is not None and not last < order:
            self._lines.damaged(f"{_a(table.kind)} is there twice, or out of order")
        self._last[table.kind] = order

    def _with_result(self, row: Any) -> Any:
        self.tasks += isinstance(row, TaskRow)
        if (row.result is not None) != (row.result_kind in _HAS_RESULT):
            self._lines.damaged("a result makes no sense")
        if row.result_kind == ResultKind.PICKLE and not self._allow_pickle:
            self._pickles += 1
            return row._replace(result_kind=ResultKind.NOT_STORED, result=None)
        return row

    def _own(self, row: RunRow) -> RunRow:
        """A run as it is to be here: owned by nobody, and done with or waiting to be resumed."""
        number = self.runs + 1
        above = row.parent
        if number == 1:
            fits = above is None and row.parent_seq is None
            self._key = row.idempotency_key
        else:
            fits = above is not None and above < number
            fits = fits and None not in (row.parent_seq, row.parent_identity)
        if not fits or row.id in self._ids:
            self._lines.damaged("its runs do not belong together")
        depth = 0 if above is None else self._depths[above - 1] + 1
        if depth > MOST_DEPTH:
            self._lines.damaged("its runs are nested too deep")
        self._depths.append(depth)
        self._ids.add(row.id)
        self._last.clear()
        if self._new_id:
            row = row._replace(id=new_run_id(self._now), origin=row.id)
        row = row._replace(pk=number)
        if StateType(row.state).is_final:
            return row
        text = f"imported: `asyncflow resume {row.id}` goes on with it"
        if above is not None:
            text = "imported: it goes on with the run above it"
        state, name = StateType.PAUSED.value, "Interrupted"
        self._parked = EventRow(0, number, self._now, state, name, text, row.epoch, None)
        return row._replace(
            state=state, state_name=name, message=text, state_at=self._now, waits_for=IMPORTED
        )


__all__ = ["MOST_BYTES", "Imported", "load"]
