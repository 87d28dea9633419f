"""Recorded decisions of a run: what depended on chance or time, so that a resume decides alike.

A series is one place where decisions are made, such as one `as_completed`: it is found again
by what it chooses among, and by how many like it there were before.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b

from asyncflow.store.base import MarkRow


class Decisions:
    """All decisions of one run.

    Args:
        run: pk of the run.
        record: called with each new decision.
    """

    def __init__(self, run: int, record: Callable[[MarkRow], None]) -> None:
        self._run = run
        self._record = record
        self._known: dict[bytes, list[bytes]] = {}
        self._counts: dict[bytes, int] = {}

    def restore(self, rows: list[MarkRow]) -> None:
        """Take over what was recorded in a former life; series begin anew."""
        self._counts = {}
        self._known = {}
        for row in rows:
            self._known.setdefault(row.scope, []).append(row.value)

    def series(self, kind: str, parent: bytes, of: bytes) -> Series:
        base = blake2b(kind.encode() + b"\0" + parent + b"\0" + of, digest_size=16).digest()
        n = self._counts.get(base, 0)
        self._counts[base] = n + 1
        scope = base + n.to_bytes(4, "big")
        return Series(self._run, scope, self._known.pop(scope, []), self._record)


class Series:
    """The decisions of one place, in order."""

    __slots__ = ("_at", "_known", "_record", "_run", "_scope")

    def __init__(
        self, run: int, scope: bytes, known: list[bytes], record: Callable[[MarkRow], None]
    ) -> None:
        self._run = run
        self._scope = scope
        self._known = known
        self._record = record
        self._at = 0

    def replay(self) -> bytes | None:
        """The next decision, if it was made in a former life; else None: decide and `record`."""
        if self._at >= len(self._known):
            return None
        self._at += 1
        return self._known[self._at - 1]

    def record(self, value: bytes) -> None:
        self._record(MarkRow(self._run, self._scope, self._at, value))
        self._at += 1
