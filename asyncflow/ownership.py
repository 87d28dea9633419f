"""Who is alive: one kernel lock for each engine instance, in a file beside the database.

The lock is freed by the kernel however its process dies, and kept while its loop is blocked or
its process is stopped; so a run has a living owner exactly while its owner's lock is held.
It is never taken on the database file itself: closing any other descriptor of that file would
drop SQLite's own locks (POSIX, fcntl).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from asyncflow.errors import StoreError

if sys.platform == "win32":
    import msvcrt

    def _lock(fd: int) -> bool:
        try:
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    _is_free = _lock
else:
    import fcntl

    def _lock(fd: int) -> bool:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    def _is_free(fd: int) -> bool:
        """Asked with a shared lock, so that two who ask do not take each other for the owner."""
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return False
        return True


_HELD: weakref.WeakSet[EngineLock] = weakref.WeakSet()


class EngineLock:
    """The lock of one engine instance.

    Args:
        folder: where lock files of this database are, such as ``state.db.locks``.
        engine: the engine's id in the store.

    Raises:
        StoreError: the file cannot be made.
    """

    def __init__(self, folder: Path, engine: int) -> None:
        self._path = folder / f"{engine}.lock"
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._fd: int | None = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise StoreError(
                f"the lock {self._path} of a new engine cannot be made: {error.strerror}: make"
                " room for it, in a folder that can be written to"
            ) from error
        if not _lock(self._fd):
            os.close(self._fd)
            self._fd = None
            raise RuntimeError(f"the lock {self._path} of a new engine is held already")
        _HELD.add(self)

    def release(self) -> None:
        """Give it up, in an orderly end."""
        if self._fd is not None:
            # A file that stays is a lock that nobody holds.
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)
            self.drop()

    def drop(self) -> None:
        """Close the descriptor only: what a forked child must do, so that it holds no lock."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)


class MemoryLock:
    """The same for a store that lives in this process: known to all engines on that object.

    Its engine is alive until the lock is given up, or the event loop that it ran on is closed.

    Args:
        store: the store.
        engine: the engine's id in it.
        loop: on which the engine runs.
        joined: a method that is told, on that loop, when another engine comes to use the store
            too. It does not keep its engine alive.
    """

    _ALL: ClassVar[weakref.WeakKeyDictionary[object, dict[int, MemoryLock]]] = (
        weakref.WeakKeyDictionary()
    )

    def __init__(
        self,
        store: object,
        engine: int,
        loop: asyncio.AbstractEventLoop,
        joined: Callable[[], None],
    ) -> None:
        self._engine = engine
        self._loop = loop
        # Weakly: through its engine it would keep the store alive, whose entry here holds it.
        self._joined = weakref.WeakMethod(joined)
        self._held = self._ALL.setdefault(store, {})
        self._held[engine] = self
        for other in self.others():
            told = other._joined()
            if told is not None:
                with contextlib.suppress(RuntimeError):  # its loop has been closed just now
                    other._loop.call_soon_threadsafe(told)

    def others(self) -> list[MemoryLock]:
        """Those of the other living engines on the store."""
        found = list(self._held.values())
        return [lock for lock in found if lock is not self and not lock._loop.is_closed()]

    def release(self) -> None:
        self.drop()

    def drop(self) -> None:
        self._held.pop(self._engine, None)

    @classmethod
    def is_held(cls, store: object, engine: int) -> bool:
        """Whether the engine with this id is alive."""
        lock = cls._ALL.get(store, {}).get(engine)
        return lock is not None and not lock._loop.is_closed()


def is_alive(folder: Path, engine: int) -> bool:
    """Whether the engine with this id still holds its lock."""
    try:
        fd = os.open(folder / f"{engine}.lock", os.O_RDWR)
    except FileNotFoundError:
        return False
    except OSError:
        # Too many open files, or another user's: that it cannot be asked does not make it dead.
        return True
    try:
        return not _is_free(fd)
    finally:
        os.close(fd)


def _drop_all() -> None:
    for lock in list(_HELD):
        lock.drop()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_drop_all)
