"""Writes one run, with all that is below it, to one file (see `asyncflow.capsule`).

No more of it is in memory than one row, and the file is there as a whole or not at all.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import tempfile
import time
from binascii import b2a_base64
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import IO, Any, Protocol

import orjson

from asyncflow._version import __version__
from asyncflow.capsule import FORMAT, MOST_LINE, MOST_VALUE, OF_ROW, PART, VERSION, Stopped, never
from asyncflow.errors import StoreError, UnknownRun
from asyncflow.store.base import AnyRow, EventRow, ResultKind, RunRow, Store, TaskRow

#: Bytes that are handed to the compressor at once.
_AT_ONCE = 256 * 1024
#: The compressor's effort: from there on it takes long and gains little.
_EFFORT = 5

_INLINE = {
    ResultKind.JSON_FILE: ResultKind.JSON,
    ResultKind.PICKLE_FILE: ResultKind.PICKLE,
}


@dataclass(slots=True)
class Exported:
    """What was written.

    Attributes:
        run_id: of the run; `path`: of the file; `bytes`: its size.
        runs, tasks: how many flow runs and task runs are in it.
    """

    run_id: str
    path: Path
    bytes: int = 0
    runs: int = 0
    tasks: int = 0


def export(
    store: Store, run: RunRow, target: Path, stopped: Callable[[], bool] = never
) -> Exported | None:
    """Write a root run of *store*, and all that is below it, to a new file that only its owner may
    read.

    Args:
        stopped: whether nobody wants it any more; None is then returned, and nothing is left.

    Raises:
        StoreError: there is such a file already, or it cannot be written.
        UnknownRun: the run has been deleted.
        ResultUnreadable: a result is lost or damaged.
    """
    if os.path.lexists(target):
        raise _exists(target)
    name = ""
    try:
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name[:100]}.")
        with os.fdopen(handle, "wb") as file:
            done = _Writing(store, run, target, stopped).write(file)
            file.flush()
            os.fsync(file.fileno())
            done.bytes = file.tell()
        _give_name(Path(name), target)
    except Stopped:
        return None
    except OSError as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(f"{target} cannot be written: {error.strerror}") from None
    finally:
        if name:
            with contextlib.suppress(OSError):
                os.unlink(name)
    return done


def _exists(target: Path) -> StoreError:
    return StoreError(f"{target} exists: give the file another name, or remove it")


def _give_name(written: Path, target: Path) -> None:
    """Never in the place of another file, though one may have come meanwhile."""
    try:
        os.link(written, target)
    except FileExistsError:
        raise _exists(target) from None
    except OSError:
        # A file system without links.
        if os.path.lexists(target):
            raise _exists(target) from None
        os.rename(written, target)


class _File(Protocol):
    def write(self, data: Any, /) -> int: ...


class _Writing:
    """One file that is being written."""

    def __init__(
        self, store: Store, run: RunRow, target: Path, stopped: Callable[[], bool]
    ) -> None:
        self._store = store
        self._run = run
        self._stopped = stopped
        self._done = Exported(run.id, target)
        self._numbers: dict[int, int] = {}  # of runs in the file, by pk
        self._sum = sha256()
        self._lines = 0
        self._waiting = bytearray()

    def write(self, file: IO[bytes]) -> Exported:
        with gzip.GzipFile("", "wb", _EFFORT, file, mtime=0) as packed:
            self._line(_head(self._run), packed)
            rows = self._store.dump(self._run.pk)
            try:
                for row in rows:
                    if self._stopped():
                        raise Stopped
                    self._row(row, packed)
            finally:
                # It holds a connection, whether or not it was read to its end.
                getattr(rows, "close", lambda: None)()
            if not self._numbers:
                raise UnknownRun(self._run.id)
            self._flush(packed)
            end = {"lines": self._lines, "sha256": self._sum.hexdigest()}
            packed.write(orjson.dumps({"end": end}) + b"\n")
        return self._done

    def _row(self, row: AnyRow, file: _File) -> None:
        if isinstance(row, RunRow):
            self._done.runs += 1
            self._numbers[row.pk] = self._done.runs
            # Numbers of a store mean nothing elsewhere.
            row = row._replace(parent=self._numbers.get(row.parent or 0))
        if isinstance(row, EventRow) and row.epoch < 0:
            row = row._replace(epoch=~row.epoch)
        if isinstance(row, RunRow | TaskRow) and row.result_kind in _INLINE:
            data = self._store.load_file((row.result or b"").decode("ascii", "replace"))
            row = row._replace(result_kind=_INLINE[row.result_kind], result=data)
        self._done.tasks += isinstance(row, TaskRow)
        table = OF_ROW[type(row)]
        large: list[bytes] = []
        told: dict[str, Any] = {}
        for name in table.fields:
            value = getattr(row, name)
            if type(value) is bytes:
                told[name] = _plain(value, large)
            elif value is not None and value != ():
                told[name] = value
        self._line({table.kind: told}, file)
        for data in large:
            for at in range(0, len(data), PART):
                text = b2a_base64(data[at : at + PART], newline=False)
                self._line({"part": text.decode("ascii")}, file)

    def _line(self, told: dict[str, Any], file: _File) -> None:
        try:
            line = orjson.dumps(told)
        except TypeError:
            # A lone surrogate, which no text can hold.
            line = orjson.dumps(_clean(told))
        if len(line) >= MOST_LINE:
            raise _too_large(len(line))
        self._waiting += line
        self._waiting += b"\n"
        self._lines += 1
        if len(self._waiting) > _AT_ONCE:
            self._flush(file)

    def _flush(self, file: _File) -> None:
        self._sum.update(self._waiting)
        file.write(self._waiting)
        self._waiting.clear()


def _head(run: RunRow) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": VERSION,
        "asyncflow": __version__,
        "exported_at": time.time(),
        "run": {"id": run.id, "flow": run.flow_name, "state": run.state_name},
    }


def _plain(data: bytes, large: list[bytes]) -> Any:
    """Bytes as JSON: text where they are text, else base64; in lines of their own where they are
    many."""
    if len(data) > PART:
        if len(data) > MOST_VALUE:
            raise _too_large(len(data))
        large.append(data)
        return {"bytes": len(data)}
    try:
        return data.decode()
    except UnicodeDecodeError:
        return {"b64": b2a_base64(data, newline=False).decode("ascii")}


def _too_large(size: int) -> StoreError:
    return StoreError(
        f"the run cannot be exported: a value of it takes {size:,} bytes, more than a file may hold"
    )


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {key: _clean(item) for key, item in value.items()}
    return [_clean(item) for item in value] if isinstance(value, tuple | list) else value


__all__ = ["Exported", "export"]
