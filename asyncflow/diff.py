"""Where two runs differ: parameters, and task runs matched by their identity."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from asyncflow import codec, failures
from asyncflow.canonical import shown_inputs
from asyncflow.parameters import masked
from asyncflow.states import StateType, default_name
from asyncflow.store.base import Reader, RunQuery, RunRow, TaskQuery, TaskRow

#: Characters of a result that are shown.
_SHOWN = 200


@dataclass(slots=True)
class TaskDiff:
    """A task run that only one of two runs has, or that ended otherwise.

    Attributes:
        task: its name; `inputs`: its inputs, as far as they are short enough to be kept.
        before, after: state and result in the first and second run; None where it is not there.
    """

    task: str
    inputs: str
    before: str | None
    after: str | None


@dataclass(slots=True)
class RunDiff:
    """The differences of two runs; false where there are none.

    Attributes:
        first, second: the runs' ids; `states`: the names of their states.
        parameters: by name, the JSON in each.
        same: how many task runs are the same in both.
    """

    first: str
    second: str
    states: tuple[str, str]
    parameters: dict[str, tuple[str, str]] = field(default_factory=dict)
    tasks: list[TaskDiff] = field(default_factory=list)
    same: int = 0

    def __bool__(self) -> bool:
        return bool(self.parameters or self.tasks) or self.states[0] != self.states[1]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


async def compare(reader: Reader, a: RunRow, b: RunRow) -> RunDiff:
    """The differences between two stored runs."""
    found = RunDiff(a.id, b.id, (a.state_name, b.state_name))
    before, after = masked(a.parameters), masked(b.parameters)
    for name in [*before, *(n for n in after if n not in before)]:
        texts = [json.dumps(v.get(name), default=str, ensure_ascii=False) for v in (before, after)]
        if texts[0] != texts[1]:
            found.parameters[name] = (texts[0], texts[1])
    old, new = await _by_identity(reader, a), await _by_identity(reader, b)
    for identity in [*old, *(i for i in new if i not in old)]:
        one, other = old.get(identity), new.get(identity)
        if one == other:
            found.same += 1
            continue
        task = (one or other or ("", "", ""))[0]
        inputs = shown_inputs(identity[9:]) if len(identity) > 9 else ""
        found.tasks.append(
            TaskDiff(task, inputs, one[1] if one else None, other[1] if other else None)
        )
    return found


async def _by_identity(reader: Reader, run: RunRow) -> dict[bytes, tuple[str, str]]:
    """Name and end of each call of a run."""
    found: dict[bytes, tuple[str, str]] = {}
    after: int | None = 0
    while after is not None:
        page = await reader.task_runs(TaskQuery(run=run.pk, after=after, limit=10_000))
        found.update({row.identity: (row.task, _task_end(row)) for row in page.rows})
        after = page.next_cursor
    for child in await _children(reader, run):
        if child.parent_identity is not None:
            end = _end(child.state_name, child.result, child.error)
            found[child.parent_identity] = (child.flow_name, end)
    return found


async def _children(reader: Reader, run: RunRow) -> list[RunRow]:
    rows: list[RunRow] = []
    after: int | None = None
    while True:
        page = await reader.runs(RunQuery(parent=run.pk, after=after, limit=1000))
        rows += page.rows
        after = page.next_cursor
        if after is None:
            return rows[::-1]


def _task_end(row: TaskRow) -> str:
    return _end(row.state_name or default_name(StateType(row.state)), row.result, row.error)


def _end(state: str, result: bytes | None, error: bytes | None) -> str:
    if error:
        return f"{state}: {failures.summary(error)}"[:_SHOWN]
    if result and state in ("Completed", "Cached", "Edited"):
        return f"{state}: {codec.unsealed(result).decode('utf-8', 'replace')}"[:_SHOWN]
    return state


__all__ = ["RunDiff", "TaskDiff", "compare"]
