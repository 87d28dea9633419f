"""A disk that fails when it is told to, and that forgets at a power cut what was not synced.

`Disk` stands below one folder: below SQLite as its default VFS (by ctypes, so that it is the
SQLite of the `sqlite3` module that is tried), and below Python's own file functions, which
write the files of large results. It counts operations and fails the k-th. It keeps a log of all
that was written, from which `found` makes the files as they would be there after a power cut.
Nothing is ever really synced, so it is quick.

The model of a disk: a sync of a file makes its bytes last, not its name; a sync of a folder
makes the names in it last. What was not synced may be there or not, in any order, and any
sector of it by itself. A failed sync loses what it was asked to keep: a later one that
succeeds says nothing about it (as Linux does it).
"""

from __future__ import annotations

import _sqlite3
import contextlib
import ctypes
import errno
import functools
import os
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

SECTOR = 512
#: In place of the number of a file: the name is that of a folder.
FOLDER = -1


class Disk:
    """What lies below one folder; what is there already lasts. Use it as a context manager.

    Args:
        fails: the number of the operation that fails, from 1; None for none.
        full: writes fail because the disk is full, instead of by an input/output error.
        for_good: all operations after it fail too.
        shares_memory: False: as on disks where processes cannot share memory.

    Attributes:
        operations: how many there were, failed ones included.
        failed: those that failed, by name.
        notes: what `note` was given, each with the number of operations before it.
    """

    def __init__(
        self,
        folder: Path,
        *,
        fails: int | None = None,
        full: bool = False,
        for_good: bool = False,
        shares_memory: bool = True,
    ) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.fails = fails
        self.full = full
        self.for_good = for_good
        self.shares_memory = shares_memory
        self.operations = 0
        self.failed: list[str] = []
        self.notes: list[tuple[int, Any]] = []
        self._root = str(folder)
        self._log: list[tuple[Any, ...]] = []
        self._ends: list[int] = [0]  # length of the log after each operation
        self._names: dict[str, int] = {}
        self._files = 0
        self._fds: dict[int, str] = {}
        self._undo = contextlib.ExitStack()
        for path in sorted(folder.rglob("*")):
            if path.is_dir():
                self.name({str(path): FOLDER})
            else:
                self.create(str(path))
                self.log(("write", self.number(str(path)), 0, path.read_bytes()))
                self.log(("sync", self.number(str(path))))
            self.log(("sync folder", str(path.parent)))

    def __enter__(self) -> Disk:
        _below().attach(self)
        for name in ("open", "close", "mkdir", "fsync", "replace", "unlink", "fdopen"):
            patch = mock.patch.object(os, name, self._around(name, getattr(os, name)))
            self._undo.enter_context(patch)
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()
        _below().detach(self)

    def heal(self) -> None:
        """Nothing fails any more."""
        self.fails = None

    def note(self, what: Any) -> None:
        self.notes.append((self.operations, what))

    def noted(self, operations: int) -> list[Any]:
        """What was noted before the power was cut after so many operations."""
        return [what for at, what in self.notes if at <= operations]

    # --- operations -----------------------------------------------------------------------------

    def begin(self, kind: str, path: str) -> bool:
        """Count an operation; whether it works."""
        self.operations += 1
        self._ends.append(len(self._log))
        if self.fails is None or self.operations < self.fails:
            return True
        if self.operations > self.fails and not self.for_good:
            return True
        self.failed.append(f"{kind} {os.path.relpath(path, self._root)}")
        return False

    def log(self, *events: tuple[Any, ...]) -> None:
        """What the last operation did."""
        self._log += events
        self._ends[-1] = len(self._log)

    def has(self, path: str) -> bool:
        return path in self._names

    def number(self, path: str) -> int:
        return self._names[path]

    def create(self, path: str) -> None:
        self._files += 1
        self.name({path: self._files})

    def name(self, names: dict[str, int | None]) -> None:
        """Names of files appear, change or (None) go, all at once."""
        for path, number in names.items():
            if number is None:
                self._names.pop(path, None)
            else:
                self._names[path] = number
        self.log(("names", names))

    def error(self, kind: str, path: str) -> OSError:
        number = errno.ENOSPC if self.full and kind in ("write", "open") else errno.EIO
        return OSError(number, os.strerror(number), path)

    # --- below Python ---------------------------------------------------------------------------

    def is_ours(self, path: Any) -> bool:
        return isinstance(path, str | os.PathLike) and os.fspath(path).startswith(
            self._root + os.sep
        )

    def _around(self, name: str, really: Any) -> Any:
        mine = getattr(self, f"_{name}")

        def function(first: Any, *args: Any, **options: Any) -> Any:
            if name in ("close", "fsync", "fdopen"):
                ours = first in self._fds
            else:
                ours = self.is_ours(first) or (name == "open" and os.fspath(first) == self._root)
            if not ours or options.get("dir_fd") is not None:
                return really(first, *args, **options)
            first = first if isinstance(first, int) else os.fspath(first)
            return mine(really, first, *args, **options)

        return function

    def _open(self, really: Any, path: str, flags: int, mode: int = 0o777, **_: Any) -> int:
        if flags & os.O_CREAT and not self.begin("open", path):
            raise self.error("open", path)
        fd: int = really(path, flags, mode)
        self._fds[fd] = path
        if flags & os.O_CREAT and not self.has(path):
            self.create(path)
        return fd

    def _close(self, really: Any, fd: int) -> None:
        del self._fds[fd]
        really(fd)

    def _fdopen(self, really: Any, fd: int, *args: Any, **options: Any) -> Any:
        return _File(self, really(fd, *args, **options), fd)

    def _mkdir(self, really: Any, path: str, *args: Any, **options: Any) -> None:
        if os.path.exists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
        if not self.begin("mkdir", path):
            raise self.error("open", path)
        really(path, *args, **options)
        self.name({path: FOLDER})

    def _fsync(self, _really: Any, fd: int) -> None:
        path = self._fds[fd]
        works = self.begin("sync", path)
        if path == self._root or self._names[path] == FOLDER:
            if works:
                self.log(("sync folder", path))
        else:
            self.log(("sync" if works else "lost", self._names[path]))
        if not works:
            raise self.error("sync", path)

    def _replace(self, really: Any, source: str, target: Any) -> None:
        if not self.begin("rename", source):
            raise self.error("rename", source)
        really(source, target)
        self.name({source: None, os.fspath(target): self._names[source]})

    def _unlink(self, really: Any, path: str, **_: Any) -> None:
        if os.path.lexists(path) and not self.begin("delete", path):
            raise self.error("delete", path)
        really(path)
        self.name({path: None})

    # --- a power cut ----------------------------------------------------------------------------

    def found(
        self, operations: int | None = None, *, dice: Random | None = None, keep: bool = False
    ) -> dict[str, bytes | None]:
        """What is on the disk after so many operations: files with their bytes, folders as None.

        Args:
            operations: how many were done; None for all.
            dice: by which what was not synced is kept, dropped or torn; None: it is dropped.
            keep: it is all kept, as when the process dies and the machine does not.
        """
        chance = _Chance(dice, keep)
        files: dict[int, _Bytes] = {}
        lasting: dict[str, int] = {}
        names: list[dict[str, int | None]] = []
        end = len(self._log) if operations is None else self._ends[operations]
        for what, *rest in self._log[:end]:
            if what == "names":
                names.append(rest[0])
            elif what == "sync folder":
                here = [n for n in names if any(os.path.dirname(p) == rest[0] for p in n)]
                for changed in here:
                    _apply(lasting, changed)
                names = [n for n in names if n not in here]
            elif what == "sync":
                files.setdefault(rest[0], _Bytes()).sync()
            elif what == "lost":
                files.setdefault(rest[0], _Bytes()).cut(chance)
            else:
                files.setdefault(rest[0], _Bytes()).pending.append(tuple(rest[1:]))
        for changed in names:
            if chance.keeps():
                _apply(lasting, changed)
        for file in files.values():
            file.cut(chance)
        return {
            os.path.relpath(path, self._root): (
                None if number == FOLDER else bytes(files.get(number, _Bytes()).lasting)
            )
            for path, number in sorted(lasting.items())
            if all(str(above) in lasting for above in self._above(path))
        }

    def _above(self, path: str) -> Iterable[Path]:
        return [p for p in Path(path).parents if self.is_ours(p)]


def lay_out(found: dict[str, bytes | None], folder: Path) -> Path:
    """Put the files that were found into a new folder."""
    folder.mkdir()
    for name, content in found.items():
        if content is None:
            (folder / name).mkdir()
        else:
            (folder / name).write_bytes(content)
    return folder


def _apply(names: dict[str, int], changed: dict[str, int | None]) -> None:
    for path, number in changed.items():
        if number is None:
            names.pop(path, None)
        else:
            names[path] = number


class _Chance:
    """What becomes of the unsynced: some cuts keep nearly all, some hardly anything."""

    def __init__(self, dice: Random | None, keep: bool) -> None:
        self.dice = dice
        self.keep = keep
        if dice is not None:
            self._weights = dice.choice([(1, 1, 1), (10, 1, 1), (1, 10, 1), (1, 1, 10)])

    def keeps(self) -> bool:
        return self.keep if self.dice is None else self.dice.random() < 0.5

    def fate(self) -> str:
        if self.dice is None:
            return "keep" if self.keep else "drop"
        return self.dice.choices(("keep", "drop", "tear"), self._weights)[0]


class _Bytes:
    """The content of a file: what lasts, and what has not been synced yet."""

    def __init__(self) -> None:
        self.lasting = bytearray()
        self.pending: list[tuple[int, bytes | None]] = []  # where, what; None: it ends there

    def sync(self) -> None:
        for at, data in self.pending:
            self._put(at, data)
        self.pending = []

    def cut(self, chance: _Chance) -> None:
        for at, data in self.pending:
            fate = chance.fate()
            if fate == "keep" or (fate == "tear" and data is None):
                self._put(at, data)
            elif fate == "tear" and data is not None:
                first = at
                while first < at + len(data):
                    last = min((first // SECTOR + 1) * SECTOR, at + len(data))
                    if chance.keeps():
                        self._put(first, data[first - at : last - at])
                    first = last
        self.pending = []

    def _put(self, at: int, data: bytes | None) -> None:
        if data is None:
            del self.lasting[at:]
            return
        self.lasting.extend(bytes(max(0, at - len(self.lasting))))
        self.lasting[at : at + len(data)] = data


class _File:
    """A file that Python writes."""

    def __init__(self, disk: Disk, file: Any, fd: int) -> None:
        self._disk, self._file, self._fd, self._at = disk, file, fd, 0

    def write(self, data: bytes) -> int:
        disk = self._disk
        path = disk._fds[self._fd]
        works = disk.begin("write", path)
        done = bytes(data if works else data[: len(data) // 2])
        self._file.write(done)
        disk.log(("write", disk.number(path), self._at, done))
        self._at += len(done)
        if not works:
            raise disk.error("write", path)
        return len(done)

    def flush(self) -> None:
        self._file.flush()

    def fileno(self) -> int:
        return self._fd

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: object) -> None:
        self._disk._fds.pop(self._fd, None)
        self._file.close()


# --- below SQLite ---------------------------------------------------------------------------------


class _Methods(ctypes.Structure):
    """`sqlite3_io_methods`."""

    _fields_ = [("iVersion", ctypes.c_int)] + [
        (name, ctypes.c_void_p)
        for name in (
            "xClose", "xRead", "xWrite", "xTruncate", "xSync", "xFileSize", "xLock", "xUnlock",
            "xCheckReservedLock", "xFileControl", "xSectorSize", "xDeviceCharacteristics",
            "xShmMap", "xShmLock", "xShmBarrier", "xShmUnmap", "xFetch", "xUnfetch",
        )
    ]  # fmt: skip


class _Vfs(ctypes.Structure):
    """`sqlite3_vfs`."""

    _fields_ = [
        ("iVersion", ctypes.c_int),
        ("szOsFile", ctypes.c_int),
        ("mxPathname", ctypes.c_int),
        ("pNext", ctypes.c_void_p),
        ("zName", ctypes.c_char_p),
        ("pAppData", ctypes.c_void_p),
    ] + [
        (name, ctypes.c_void_p)
        for name in (
            "xOpen", "xDelete", "xAccess", "xFullPathname", "xDlOpen", "xDlError", "xDlSym",
            "xDlClose", "xRandomness", "xSleep", "xCurrentTime", "xGetLastError",
            "xCurrentTimeInt64", "xSetSystemCall", "xGetSystemCall", "xNextSystemCall",
        )
    ]  # fmt: skip


_int, _void, _long = ctypes.c_int, ctypes.c_void_p, ctypes.c_longlong
_OPEN = ctypes.CFUNCTYPE(_int, _void, _void, _void, _int, _void)
_DELETE = ctypes.CFUNCTYPE(_int, _void, ctypes.c_char_p, _int)
_CLOSE = ctypes.CFUNCTYPE(_int, _void)
_WRITE = ctypes.CFUNCTYPE(_int, _void, _void, _int, _long)
_TRUNCATE = ctypes.CFUNCTYPE(_int, _void, _long)
_SYNC = ctypes.CFUNCTYPE(_int, _void, _int)


class _Below:
    """Stands between the SQLite of the `sqlite3` module and its own VFS, for files on our disks.

    The default VFS is replaced by a copy of itself whose files have some methods of ours.
    """

    def __init__(self) -> None:
        # Through the module, so that it is the same copy of SQLite: looked up in what it loads.
        self._sqlite = ctypes.CDLL(getattr(_sqlite3, "__file__", None))
        self._sqlite.sqlite3_vfs_find.restype = ctypes.POINTER(_Vfs)
        self._sqlite.sqlite3_vfs_register.argtypes = [_void, _int]
        self._base = self._sqlite.sqlite3_vfs_find(None)
        base = self._base.contents
        self._base_open, self._base_delete = _OPEN(base.xOpen), _DELETE(base.xDelete)
        self._ours = _Vfs.from_buffer_copy(base)
        self._ours.zName = b"faultyfiles"
        self._kept: list[Any] = []
        self._ours.xOpen = self._pointer(_OPEN, self._open)
        self._ours.xDelete = self._pointer(_DELETE, self._delete)
        self._mine = {
            "xClose": self._pointer(_CLOSE, self._close),
            "xWrite": self._pointer(_WRITE, self._write),
            "xTruncate": self._pointer(_TRUNCATE, self._truncate),
            "xSync": self._pointer(_SYNC, self._sync),
        }
        self._methods: dict[tuple[int, bool], tuple[_Methods, _Methods]] = {}
        self._files: dict[int, _SqliteFile] = {}
        self.disks: list[Disk] = []

    def _pointer(self, kind: Any, function: Any) -> int | None:
        made = kind(function)
        self._kept.append(made)
        return ctypes.cast(made, _void).value

    def attach(self, disk: Disk) -> None:
        self.disks.append(disk)
        self._sqlite.sqlite3_vfs_register(ctypes.addressof(self._ours), 1)

    def detach(self, disk: Disk) -> None:
        self.disks.remove(disk)
        if not self.disks:
            self._sqlite.sqlite3_vfs_register(ctypes.addressof(self._base.contents), 1)

    def _disk(self, path: str) -> Disk | None:
        return next((disk for disk in self.disks if disk.is_ours(path)), None)

    def _open(self, _: int, name: int | None, file: int, flags: int, out: int | None) -> int:
        path = os.fsdecode(ctypes.string_at(name)) if name else ""
        disk = self._disk(path)
        if disk is not None and not disk.begin("open", path):
            ctypes.c_void_p.from_address(file).value = None
            return sqlite3.SQLITE_CANTOPEN
        code: int = self._base_open(ctypes.addressof(self._base.contents), name, file, flags, out)
        pointer = ctypes.c_void_p.from_address(file)
        if code or disk is None:
            return code
        base = pointer.value
        assert base is not None
        kind = (base, disk.shares_memory)
        if kind not in self._methods:
            ours = _Methods.from_buffer_copy(_Methods.from_address(base))
            for method, function in self._mine.items():
                setattr(ours, method, function)
            if not disk.shares_memory:
                ours.iVersion = 1
            self._methods[kind] = (_Methods.from_address(base), ours)
        theirs, ours = self._methods[kind]
        pointer.value = ctypes.addressof(ours)
        is_new = not disk.has(path)
        if is_new:
            disk.create(path)
        # As SQLite's own VFS does it: of journals it syncs the name too, with the first sync.
        syncs_folder = is_new and bool(flags & _JOURNALS)
        self._files[file] = _SqliteFile(disk, path, disk.number(path), syncs_folder, theirs)
        return code

    def _delete(self, _: int, name: bytes, sync: int) -> int:
        path = os.fsdecode(name)
        disk = self._disk(path)
        base = ctypes.addressof(self._base.contents)
        if disk is None or not os.path.exists(path):
            return int(self._base_delete(base, name, sync))
        if not disk.begin("delete", path):
            return sqlite3.SQLITE_IOERR_DELETE
        code: int = self._base_delete(base, name, 0)
        disk.name({path: None})
        if sync:
            disk.log(("sync folder", os.path.dirname(path)))
        return code

    def _close(self, pointer: int) -> int:
        return int(_CLOSE(self._files.pop(pointer).base.xClose)(pointer))

    def _write(self, pointer: int, data: int, size: int, at: int) -> int:
        file = self._files[pointer]
        works = file.disk.begin("write", file.path)
        done = size if works else size // 2
        if done:
            code = _WRITE(file.base.xWrite)(pointer, data, done, at)
            assert code == 0
        file.disk.log(("write", file.number, at, ctypes.string_at(data, done)))
        if works:
            return 0
        return sqlite3.SQLITE_FULL if file.disk.full else sqlite3.SQLITE_IOERR_WRITE

    def _truncate(self, pointer: int, size: int) -> int:
        file = self._files[pointer]
        if not file.disk.begin("truncate", file.path):
            return sqlite3.SQLITE_IOERR_TRUNCATE
        file.disk.log(("write", file.number, size, None))
        return int(_TRUNCATE(file.base.xTruncate)(pointer, size))

    def _sync(self, pointer: int, _flags: int) -> int:
        file = self._files[pointer]
        if not file.disk.begin("sync", file.path):
            file.disk.log(("lost", file.number))
            return sqlite3.SQLITE_IOERR_FSYNC
        file.disk.log(("sync", file.number))
        if file.syncs_folder:
            file.syncs_folder = False
            file.disk.log(("sync folder", os.path.dirname(file.path)))
        return 0


#: SQLITE_OPEN_MAIN_JOURNAL, SQLITE_OPEN_SUPER_JOURNAL, SQLITE_OPEN_WAL.
_JOURNALS = 0x800 | 0x4000 | 0x80000


@dataclass
class _SqliteFile:
    disk: Disk
    path: str
    number: int
    syncs_folder: bool
    base: _Methods


@functools.cache
def _below() -> _Below:
    return _Below()


def why_not() -> str:
    """Why there can be no disk of ours below SQLite here; empty where there can."""
    try:
        _below()
    except (OSError, AttributeError, ValueError) as error:
        return f"the SQLite of this Python cannot be reached from outside: {error}"
    return ""
