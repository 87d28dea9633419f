"""What transactions have rolled back: how it is recorded, and what follows for later lives.

The calls of a rolled back transaction have completed, and yet nothing is left of what they did.
While their run goes through the same attempt again (a recovery), their records stand, and the
rollback goes on to its end, whatever the code does this time: it is *doomed*. When the run makes
a new attempt (a resume, a retry), they are *void*: the calls run again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from asyncflow.states import StateType
from asyncflow.store.base import MarkRow, TaskRow

#: Scopes of marks. Their number is that of the first call that is undone.
_ROLLING = b"transaction rolling"
_UNDONE = b"transaction undone"
_VOID = b"transaction void"

_ENDED = (StateType.COMPLETED, StateType.FAILED)


@dataclass(slots=True)
class Doom:
    """A rollback that was begun in a former life.

    Attributes:
        stopped: it was begun because the run, or its host, was being stopped.
        error: the record of the exception that began it (see `asyncflow.failures`).
        met: whether its transaction was found again, or has nothing left to undo.
    """

    stopped: bool
    error: Any
    met: bool = False


@dataclass(slots=True)
class Past:
    """What former lives have rolled back.

    Attributes:
        void: numbers of the calls that count as never made.
        marks: by which they are so in all later lives.
        doomed: by the number of a call, the rollback that its transaction is in.
    """

    void: frozenset[int] = frozenset()
    marks: list[MarkRow] = field(default_factory=list)
    doomed: dict[int, Doom] = field(default_factory=dict)


def rolling(
    run: int, stopped: bool, error: Any, undoing: Iterable[int], seqs: Iterable[int]
) -> MarkRow:
    """The record of a rollback that begins.

    Args:
        run: pk of the run.
        undoing: numbers of the calls that are undone.
        seqs: numbers of all calls of the transaction.
    """
    first = min(undoing)
    return MarkRow(run, _ROLLING, first, _dump([stopped, error, sorted(set(seqs))]), first)


def undone(
    run: int, owner: int, failures: int, stopped: bool, undoing: Iterable[int], steps: Iterable[int]
) -> MarkRow:
    """The record of a rollback that has ended.

    Args:
        run: pk of the run.
        owner: number of the task run whose code the transaction stood in; 0: the flow's.
        failures: failed attempts of the owner before the one that was rolled back.
        stopped: the run, or its host, was being stopped.
        undoing: numbers of the calls that were undone.
        steps: numbers of the calls that undid them.
    """
    first = min(undoing)
    seqs = sorted({*undoing, *steps})
    return MarkRow(run, _UNDONE, first, _dump([owner, failures, stopped, seqs]), first)


def _dump(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def read(
    run: int,
    marks: Sequence[MarkRow],
    tasks: Sequence[TaskRow],
    again: frozenset[int],
    fresh: bool,
) -> Past:
    """What the life of a run that begins has to know of former rollbacks.

    Args:
        again: numbers of the calls whose failure ended the run, and which run again.
        fresh: whether failures begin a new budget of attempts.
    """
    begun = [mark for mark in marks if mark.scope == _ROLLING]
    if not begun:
        return Past()
    known = {mark.n for mark in marks if mark.scope == _VOID}
    ended = {mark.n: mark for mark in marks if mark.scope == _UNDONE}
    rows = {row.seq: row for row in tasks}
    past, gone = Past(), set[int]()
    for mark in ended.values():
        owner, failures, stopped, seqs = json.loads(mark.value)
        if mark.n not in known:
            if owner:
                void = _begins_anew(rows.get(owner), failures, again, fresh)
            else:
                void = (fresh and stopped) or not again.isdisjoint(seqs)
            if not void:
                continue
            known.add(mark.n)
            past.marks.append(MarkRow(run, _VOID, mark.n, b"", mark.seq))
        gone.update(seqs)
    for row in tasks:
        if row.parent in gone:
            gone.add(row.seq)
    for mark in begun:
        if mark.n not in known:
            stopped, error, seqs = json.loads(mark.value)
            doom = Doom(stopped, error, met=mark.n in ended)
            past.doomed.update(dict.fromkeys(seqs, doom))
    past.void = frozenset(gone)
    return past


def _begins_anew(row: TaskRow | None, failures: int, again: frozenset[int], fresh: bool) -> bool:
    """Whether the task run that a transaction stood in makes another attempt than that one."""
    if row is None:
        return fresh
    if row.state in _ENDED:
        return fresh and row.seq in again
    return fresh or row.failures > failures or row.state == StateType.CANCELLED
