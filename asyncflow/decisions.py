"""Recorded decisions of a run: what depended on chance or time, so that a resume decides alike.

A series is one place where decisions are made, such as one `as_completed`: it is found again
by what it chooses among, and by how many like it there were before.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from typing import Protocol

from asyncflow.store.base import MarkRow


class Of(Protocol):
    """The run whose decisions they are."""

    pk: int  #: its number in the store
    seq: int  #: the number of its last call


#: Begins the value of a wait that a message ended; 8 bytes of the message's id, and its payload,
#: follow.
MESSAGE = b"\0message"


class Decisions:
    """All decisions of one run.

    Args:
        run: the run.
        record: called with each new decision.

    Attributes:
        taken: ids of the messages that waits of the run have taken.
    """

    def __init__(self, run: Of, record: Callable[[MarkRow], None]) -> None:
        self._run = run
        self._record = record
        self._known: dict[bytes, list[bytes]] = {}
        self._counts: dict[bytes, int] = {}
        self._flowing: dict[bytes, Series] = {}
        self.taken: set[int] = set()

    def restore(self, rows: list[MarkRow]) -> None:
        """Take over what was recorded in a former life; series begin anew."""
        self._counts = {}
        self._known = {}
        self._flowing = {}
        for row in rows:
            self._known.setdefault(row.scope, []).append(row.value)
            if row.value.startswith(MESSAGE):
                self.taken.add(message_id(row.value))

    def word(self, kind: str) -> bytes | None:
        """What a life of the run before this one has left by `leave`, most lately."""
        return next(iter(self._known.get(kind.encode(), ())), None)

    def leave(self, kind: str, value: bytes) -> None:
        """Leave word for the next life: not a decision, so the code may go another way."""
        self._record(MarkRow(self._run.pk, kind.encode(), 0, value, 0))

    def flowing(self, kind: str, parent: bytes) -> Series:
        """The one series of this kind in the code of *parent*, such as all times it asked for."""
        key = kind.encode() + b"\0" + parent
        if key not in self._flowing:
            self._flowing[key] = self.series(kind, parent, b"")
        return self._flowing[key]

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
        self, run: Of, scope: bytes, known: list[bytes], record: Callable[[MarkRow], None]
    ) -> None:
        self._run = run
        self._scope = scope
        self._known = known
        self._record = record
        self._at = 0

    @property
    def name(self) -> str:
        """What nothing else in the run is called."""
        return self._scope.hex()

    def replay(self) -> bytes | None:
        """The next decision, if it was made in a former life; else None: decide and `record`."""
        if self._at >= len(self._known):
            return None
        self._at += 1
        return self._known[self._at - 1]

    def record(self, value: bytes) -> None:
        run = self._run
        self._record(MarkRow(run.pk, self._scope, self._at, value, run.seq))
        self._at += 1


def message_id(value: bytes) -> int:
    """The id of the message that a recorded wait has taken."""
    return int.from_bytes(value[len(MESSAGE) : len(MESSAGE) + 8], "big")
