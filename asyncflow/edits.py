"""Results that a fork replaces: which calls are meant, and what they make run again.

A call whose result was edited is answered with the new one. What was given its value has other
inputs then, and so another identity; what was given its future has one, too, because the edit
becomes a part of what stands for the future (see `tokens`). A task that called it itself was
answered from the record as a whole before: it has to run again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import blake2b, sha256

from asyncflow.calls import History
from asyncflow.errors import UnknownTask
from asyncflow.states import StateType
from asyncflow.store.base import ResultKind, RunRow, TaskRow

#: The name of the state of a call whose result was edited.
EDITED = "Edited"

#: Calls that are named in the story of a fork.
_SHOWN = 10

_INLINE = (ResultKind.JSON, ResultKind.PICKLE)


def names_of(run_id: str, row: TaskRow) -> tuple[str, ...]:
    """What a task run is called, from the name that only it has to that of its task."""
    own = (row.name,) if row.name else ()
    return (f"{run_id}-{row.seq}", *own, f"{row.task}-{row.seq}", row.task)


def names_of_child(row: RunRow) -> tuple[str, ...]:
    """What a child run is called."""
    return (row.id, row.name, row.flow_name)


def unknown(run_id: str, task: str) -> UnknownTask:
    return UnknownTask(
        f"the run {run_id} has no task run {task!r}: give the name of a task that it called, or the"
        " id of a task run"
    )


def edited(
    run: RunRow,
    tasks: Sequence[TaskRow],
    children: Sequence[RunRow],
    results: Mapping[str, Callable[[], bytes]],
    below: int,
    now: float,
) -> list[TaskRow]:
    """The rows that a fork has instead of those of *run*: of edited calls, and of those that run
    again because they called one.

    Args:
        results: what gives the stored form of the new result, by the name of a task (all of its
            calls) or of one task run, or by its id. The more exact name counts.
        below: only calls with smaller numbers are kept by the fork.

    Raises:
        UnknownTask: nothing is called so, or it cannot be edited; it says why.
    """
    kept = History(list(tasks), [], frozenset(), fresh=True).tasks
    made: dict[int, TaskRow] = {}
    met: set[str] = set()
    for row in tasks:
        name = next((n for n in names_of(run.id, row) if n in results), None)
        if name is None or row.seq >= below:
            continue
        if row.identity not in kept:
            raise UnknownTask(
                f"the calls of {row.task!r} in the run {run.id} cannot be told apart by their"
                " inputs, so their results cannot be edited: give the task a key="
            )
        met.update(n for n in names_of(run.id, row) if n in results)
        made[row.seq] = row._replace(
            state=StateType.COMPLETED.value,
            state_name=EDITED,
            message="",
            ended_at=row.ended_at or now,
            retry_at=None,
            result_kind=ResultKind.JSON,
            result=results[name](),
            error=None,
        )
    for name in results:
        if name not in met:
            raise _refused(run, tasks, children, name)
    for row in _callers(tasks, made):
        made[row.seq] = _unbegun(row)
    return list(made.values())


def _refused(
    run: RunRow, tasks: Iterable[TaskRow], children: Iterable[RunRow], name: str
) -> UnknownTask:
    if any(name in names_of(run.id, row) for row in tasks):
        return UnknownTask(
            f"the calls of {name!r} in the run {run.id} come after from_task and run again: their"
            " results cannot be edited"
        )
    for child in children:
        if name in names_of_child(child):
            return UnknownTask(
                f"{name!r} is a child run, {child.id}, and a fork edits results of tasks only: edit"
                " those of its tasks in a fork of that run"
            )
    return unknown(run.id, name)


def _callers(tasks: Sequence[TaskRow], made: Mapping[int, TaskRow]) -> Iterable[TaskRow]:
    """The task runs that have called edited ones, directly or not, and are not edited."""
    by_seq = {row.seq: row for row in tasks}
    found: dict[int, TaskRow] = {}
    for row in made.values():
        above = by_seq.get(row.parent or 0)
        while above is not None and above.seq not in made and above.seq not in found:
            found[above.seq] = above
            above = by_seq.get(above.parent or 0)
    return found.values()


def _unbegun(row: TaskRow) -> TaskRow:
    """The same call, as if it had not begun."""
    return row._replace(
        state=StateType.PENDING.value, state_name=None, message="", attempt=0, failures=0,
        interruptions=0, started_at=None, ended_at=None, retry_at=None,
        result_kind=ResultKind.NONE, result=None, error=None,
    )  # fmt: skip


def told(rows: Iterable[TaskRow]) -> str:
    """Which results were edited, for the story of a fork."""
    names = [row.name or f"{row.task}-{row.seq}" for row in rows if row.state_name == EDITED]
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return f", with edited results of {', '.join(names[:_SHOWN])}{more}" if names else ""


class Tokens:
    """What edits add to what stands for the futures of a run among the inputs of other calls."""

    def __init__(self, tasks: Sequence[TaskRow]) -> None:
        edited = {row.seq: row for row in tasks if row.state_name == EDITED}
        parts: dict[int, list[bytes]] = {seq: [_content(row)] for seq, row in edited.items()}
        by_seq = {row.seq: row for row in tasks}
        for seq, row in sorted(edited.items()):
            # What called it has another result now, though its own inputs are the same.
            above = by_seq.get(row.parent or 0)
            while above is not None and above.seq not in edited:
                parts.setdefault(above.seq, []).append(b"%d" % seq + _content(row))
                above = by_seq.get(above.parent or 0)
        self._calls: dict[bytes, bytes] = {}
        of_tasks: dict[str, list[bytes]] = {}
        for seq, found in sorted(parts.items()):
            row = by_seq[seq]
            self._calls[row.identity] = _digest(found)
            of_tasks.setdefault(row.task, []).append(row.identity + self._calls[row.identity])
        self._tasks = {task: _digest(found) for task, found in of_tasks.items()}

    def __bool__(self) -> bool:
        return bool(self._calls)

    def of_call(self, identity: bytes) -> bytes:
        """Of the future of one call."""
        return self._calls.get(identity, b"")

    def of_task(self, task: str) -> bytes:
        """Of a map that is not there yet: of all edited calls of its task."""
        return self._tasks.get(task, b"")


def _content(row: TaskRow) -> bytes:
    """What the result of an edited call is known by, wherever it is stored."""
    data = row.result or b""
    # A file is called by the same sum.
    return sha256(data).hexdigest().encode() if row.result_kind in _INLINE else data


def _digest(parts: Sequence[bytes]) -> bytes:
    return blake2b(b"\0".join(parts), digest_size=8).digest()
