"""``asyncflow runs ...`` and ``cancel``: looks at runs, whoever carries them out."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import shutil
import sys
import time
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

import click

from asyncflow import codec, failures, views
from asyncflow.cli.output import (
    EXITS,
    MARKS,
    amount,
    answered_async,
    between,
    clean,
    coloured,
    duration,
    label,
    local,
    one_line,
    paragraph,
    print_json,
    print_json_line,
    say,
    table,
)
from asyncflow.cli.place import Place
from asyncflow.cli.source import POLL, Source, find_run, looking
from asyncflow.edits import EDITED
from asyncflow.parameters import masked
from asyncflow.states import StateType, types_and_names
from asyncflow.store.base import (
    ArtifactRow,
    AttemptRow,
    ResultKind,
    RunQuery,
    RunRow,
    TaskCount,
    TaskRow,
)
from asyncflow.views import moment

#: Task runs of one run that are read for a tree; of a larger run counts are shown.
MOST_IN_TREE = 5_000
#: Equal siblings that are shown one by one; more are one line.
MOST_ALIKE = 4
#: Failures that are shown of one line.
MOST_FAILURES = 5
#: Artifacts of a run that `show` names, and rows of a table that `artifacts` prints.
MOST_SHOWN, MOST_ROWS = 20, 50

_FAILED = (StateType.FAILED.value, StateType.CRASHED.value)


# --- runs ls --------------------------------------------------------------------------------------


def list_runs(
    *,
    states: tuple[str, ...],
    flow: str | None,
    tags: tuple[str, ...],
    children: bool,
    limit: int,
    at: Place,
    as_json: bool,
) -> int:
    """List runs, newest first."""

    async def work() -> int:
        types, names = types_and_names(states)
        async with looking(at) as place:
            page = await place.runs(
                RunQuery(
                    states=types,
                    names=names,
                    flow=flow,
                    tags=tags,
                    parent=-1 if children else None,
                    limit=limit,
                )
            )
        rows = page.rows
        if as_json:
            print_json([run_json(row) for row in rows])
            return 0
        if not rows:
            say("no runs" + (" that fit" if states or flow or tags else " yet"))
            return 0
        say(table(("ID", "FLOW", "STATE", "CREATED", "TOOK", "MESSAGE"), map(_run_line, rows)))
        if page.next_cursor is not None:
            say(f"(the newest {limit}; more with --limit)")
        return 0

    return answered_async(work)


def _run_line(row: RunRow) -> list[str]:
    state = StateType(row.state)
    name = f"{row.flow_name} ({row.name})" if row.name else row.flow_name
    return [
        row.id,
        one_line(name, 32),
        coloured(state, f"{MARKS[state]} {label(row.state_name)}"),
        local(moment(row.created_at)),
        _took(row.started_at, row.ended_at, state),
        one_line(row.message, 60),
    ]


def _took(started: float | None, ended: float | None, state: StateType) -> str:
    if ended is None and state in (StateType.RUNNING, StateType.CANCELLING) and started:
        return duration(max(0.0, time.time() - started))
    return between(moment(started), moment(ended))


def run_json(row: RunRow) -> dict[str, Any]:
    """A run as JSON."""
    return {
        "id": row.id,
        "flow": row.flow_name,
        "name": row.name or row.flow_name,
        "state": row.state,
        "state_name": row.state_name,
        "message": row.message,
        "parameters": masked(row.parameters),
        "tags": list(row.tags),
        "created_at": moment(row.created_at),
        "started_at": moment(row.started_at),
        "ended_at": moment(row.ended_at),
        "attempt": row.attempt,
        "recoveries": row.recoveries,
        "error": failures.summary(row.error) if row.error else None,
        "deployment": row.deployment,
        "scheduled_at": moment(row.scheduled_at),
        "cause": row.cause,
        "origin": row.origin,
    }


def _task_json(run_id: str, row: TaskRow) -> dict[str, Any]:
    return {
        "id": f"{run_id}-{row.seq}",
        "task": row.task,
        "name": row.name or f"{row.task}-{row.seq}",
        "state": row.state,
        "state_name": row.state_name or row.state.capitalize(),
        "message": row.message,
        "parent_id": f"{run_id}-{row.parent}" if row.parent else None,
        "attempts": row.attempt,
        "failures": row.failures,
        "interruptions": row.interruptions,
        "started_at": moment(row.started_at),
        "ended_at": moment(row.ended_at),
        "upstream": [f"{run_id}-{seq}" for seq in row.upstream if seq],
        "error": failures.summary(row.error) if row.error else None,
    }


# --- runs show ------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Tree:
    """One run with what was read of it."""

    row: RunRow
    tasks: list[TaskRow] = field(default_factory=list)
    counts: list[TaskCount] = field(default_factory=list)
    attempts: dict[int, list[AttemptRow]] = field(default_factory=dict)
    children: list[_Tree] = field(default_factory=list)


def show_run(*, run_id: str, all_tasks: bool, at: Place, as_json: bool) -> int:
    """Show a run as a tree."""

    async def work() -> int:
        async with looking(at) as place:
            row, states, waits = await place.detail(await find_run(place, run_id))
            tree = await _read_tree(place, row, all_tasks or as_json)
            shown = await place.artifacts(row, data=False)
            progress = await place.artifacts(row, kinds=("progress",))
        told = {one.key: one for one in progress}
        shown = [told.get(one.key, one) for one in shown]
        if as_json:
            story = [
                {"time": moment(s.time), "state": s.state_name, "message": s.message}
                for s in states
            ]
            result = _result_json(row)
            found = [_artifact_json(row.id, one) for one in shown]
            told_of = {"result": result, "story": story, "artifacts": found}
            told_of["waits"] = waits
            print_json({**_tree_json(tree), **told_of})
            return 0
        _say_head(tree.row)
        for wait in waits:
            if row.message and wait["text"].endswith(row.message):
                continue  # the head has said so
            say(f"{click.style('waits:', bold=True)} {one_line(wait['text'], 500)}")
        for line in _branches(tree, all_tasks):
            say(line)
        if shown:
            say("")
            say(click.style("shows", bold=True))
            for one in shown[:MOST_SHOWN]:
                say(f"  {_artifact_line(tree.row, one)}")
            if len(shown) > MOST_SHOWN:
                say(f"  and {len(shown) - MOST_SHOWN:,} more (runs artifacts {row.id})")
        if len(states) > 2 or row.message:
            say("")
            say(click.style("story", bold=True))
            for s in states:
                text = f"  {local(moment(s.time))}  {label(s.state_name)}"
                say(f"{text}  {one_line(s.message, 120)}".rstrip())
        return 0

    return answered_async(work)


async def _read_tree(place: Source, row: RunRow, everything: bool) -> _Tree:
    tree = _Tree(row)
    tree.counts = await place.task_counts(row)
    total = sum(count.count for count in tree.counts)
    if everything or total <= MOST_IN_TREE:
        tree.tasks = await place.task_runs(row)
    else:
        tree.tasks = await place.task_runs(row, states=_FAILED, limit=MOST_FAILURES * 4)
    for attempt in await place.attempts(row):
        tree.attempts.setdefault(attempt.seq, []).append(attempt)
    for child in await place.children(row):
        tree.children.append(await _read_tree(place, child, everything))
    return tree


def _tree_json(tree: _Tree) -> dict[str, Any]:
    return {
        **run_json(tree.row),
        "task_runs": [_task_json(tree.row.id, row) for row in tree.tasks],
        "children": [_tree_json(child) for child in tree.children],
    }


def _say_head(row: RunRow) -> None:
    state = StateType(row.state)
    title = click.style(label(row.name or row.flow_name), bold=True)
    say(f"{title}  {row.id}")
    took = _took(row.started_at, row.ended_at, state)
    told = coloured(state, f"{MARKS[state]} {label(row.state_name)}")
    say(f"{told}{f' in {took}' if took else ''}, created {local(moment(row.created_at))}")
    if row.deployment is not None:
        when = f", for {local(moment(row.scheduled_at))}" if row.scheduled_at else ""
        cause = f", by {label(row.cause)}" if row.cause else ""
        say(f"of deployment {label(row.deployment)}{when}{cause}")
    parameters = masked(row.parameters)
    if parameters:
        text = ", ".join(f"{k}={v!r}" for k, v in parameters.items())
        say(f"parameters: {one_line(text, 300)}")
    if row.tags:
        say(f"tags: {', '.join(map(label, row.tags))}")
    if row.recoveries and state is not StateType.COMPLETED:
        say(f"recovered {row.recoveries} times in a row without completing anything")
    if state is StateType.PAUSED:
        say(one_line(row.message, 300))
    elif state is StateType.COMPLETED:
        _say_result(row)
    elif row.error is not None:
        say(click.style(f"error: {one_line(_error_text(row.error), 500)}", fg="red"))


def _result_json(row: RunRow) -> Any:
    """What a run gave, where it is stored as JSON in its row; nothing is decoded."""
    if row.result_kind != ResultKind.JSON or row.result is None:
        return None
    return json.loads(codec.unsealed(row.result))


def _say_result(row: RunRow) -> None:
    """What a run gave, as it is stored: nothing is decoded here."""
    match row.result_kind:
        case ResultKind.JSON:
            text = codec.unsealed(row.result or b"").decode("utf-8", "replace")
            if text != "null":
                say(f"result: {one_line(text, 300)}")
        case ResultKind.PICKLE:
            say("result: stored as a pickle, which is not shown")
        case ResultKind.JSON_FILE | ResultKind.PICKLE_FILE:
            say("result: in a file, which is not shown")
        case ResultKind.NOT_STORED:
            say("result: not stored")


def _error_text(stored: bytes) -> str:
    # Not rebuilt: a run that was imported may name any module, and only looking imports none.
    return failures.headline(stored)


def _branches(tree: _Tree, all_tasks: bool) -> list[str]:
    """The lines below the head of a run."""
    below: dict[int, list[TaskRow | _Tree]] = defaultdict(list)
    seqs = {row.seq for row in tree.tasks}
    of_call = {c.row.parent_seq for c in tree.children}
    for row in tree.tasks:
        if row.seq not in of_call:
            below[row.parent if row.parent in seqs else 0].append(row)
    for child in tree.children:
        # A child run hangs where the call that made it would.
        below[0].append(child)
    total = sum(count.count for count in tree.counts)
    if total > len(tree.tasks):
        return _counted(tree)
    lines: list[str] = []
    _grow(tree, below, 0, "", lines, all_tasks)
    return lines


def _grow(
    tree: _Tree,
    below: dict[int, list[TaskRow | _Tree]],
    parent: int,
    indent: str,
    lines: list[str],
    all_tasks: bool,
) -> None:
    groups: dict[str, list[TaskRow | _Tree]] = {}
    for item in sorted(below[parent], key=_order):
        name = f"flow {item.row.flow_name}" if isinstance(item, _Tree) else item.task
        groups.setdefault(name, []).append(item)
    shown: list[tuple[str, list[TaskRow | _Tree]]] = []
    for name, items in groups.items():
        if all_tasks or len(items) <= MOST_ALIKE:
            shown += [(name, [item]) for item in items]
        else:
            shown.append((name, items))
    for n, (name, items) in enumerate(shown):
        last = n == len(shown) - 1
        stem, rest = ("└─ ", "   ") if last else ("├─ ", "│  ")
        if len(items) == 1:
            item = items[0]
            if isinstance(item, _Tree):
                lines.append(indent + stem + _child_line(item.row))
                lines += [indent + rest + line for line in _branches(item, all_tasks)]
            else:
                lines.append(indent + stem + _task_line(item))
                lines += [indent + rest + "  " + t for t in _troubles(tree, item)]
                _grow(tree, below, item.seq, indent + rest, lines, all_tasks)
            continue
        lines.append(indent + stem + _group_line(name, items))
        failed = [i for i in items if not isinstance(i, _Tree) and i.state in _FAILED]
        for row in failed[:MOST_FAILURES]:
            lines.append(indent + rest + "  " + _task_line(row))
            lines += [indent + rest + "    " + t for t in _troubles(tree, row)]
        if len(failed) > MOST_FAILURES:
            lines.append(f"{indent}{rest}  and {len(failed) - MOST_FAILURES} more failed")
        for kid in (k for item in items if not isinstance(item, _Tree) for k in below[item.seq]):
            below[-1].append(kid)
        if below[-1]:
            _grow(tree, below, -1, indent + rest, lines, all_tasks)
            below[-1] = []


def _order(item: TaskRow | _Tree) -> float:
    return (item.row.parent_seq or 0) if isinstance(item, _Tree) else item.seq


def _child_line(row: RunRow) -> str:
    state = StateType(row.state)
    took = _took(row.started_at, row.ended_at, state)
    mark = coloured(state, f"{MARKS[state]} {label(row.state_name)}")
    name = click.style(label(row.name or row.flow_name), bold=True)
    return f"{name} (flow {row.id})  {mark}  {took}".rstrip()


def _task_line(row: TaskRow) -> str:
    state = StateType(row.state)
    parts = [label(row.name or f"{row.task}-{row.seq}")]
    parts.append(
        coloured(state, f"{MARKS[state]} {label(row.state_name or row.state.capitalize())}")
    )
    took = _took(row.started_at, row.ended_at, state)
    if took:
        parts.append(took)
    if row.attempt > 1:
        parts.append(f"{row.attempt} attempts")
    return "  ".join(parts)


def _troubles(tree: _Tree, row: TaskRow) -> list[str]:
    """Why it failed, and how its earlier attempts did."""
    lines = [
        f"attempt {a.attempt}: {one_line(_error_text(a.error), 160)}"
        for a in tree.attempts.get(row.seq, [])[:3]
    ]
    if row.error is not None:
        lines.append(click.style(one_line(_error_text(row.error), 200), fg="red"))
    return lines


def _group_line(name: str, items: list[TaskRow | _Tree]) -> str:
    counts: dict[StateType, int] = defaultdict(int)
    starts, ends, attempts = [], [], 0
    for item in items:
        row: Any = item.row if isinstance(item, _Tree) else item
        counts[StateType(row.state)] += 1
        starts += [row.started_at] if row.started_at else []
        ends += [row.ended_at] if row.ended_at else []
        attempts += max(0, row.attempt - 1)
    edited = sum(not isinstance(item, _Tree) and item.state_name == EDITED for item in items)
    line = _counts_line(name, len(items), counts, starts, ends, attempts)
    return f"{line}  {edited:,} edited" if edited else line


def _counts_line(
    name: str,
    size: int,
    counts: dict[StateType, int],
    starts: list[float],
    ends: list[float],
    retries: int = 0,
) -> str:
    parts = [f"{label(name)} × {size:,}"]
    parts += [coloured(s, f"{MARKS[s]} {n:,} {s.value.lower()}") for s, n in counts.items()]
    if starts and ends:
        parts.append(duration(max(0.0, max(ends) - min(starts))))
    if retries:
        parts.append(f"{retries:,} retries")
    return "  ".join(parts)


def _counted(tree: _Tree) -> list[str]:
    """A large run: one line for each task, and its first failures."""
    by_task: dict[str, list[TaskCount]] = {}
    for count in tree.counts:
        by_task.setdefault(count.task, []).append(count)
    lines = []
    for name, found in by_task.items():
        counts: dict[StateType, int] = defaultdict(int)
        for one in found:
            counts[StateType(one.state)] += one.count
        starts = [c.first_started for c in found if c.first_started]
        ends = [c.last_ended for c in found if c.last_ended]
        lines.append("├─ " + _counts_line(name, sum(counts.values()), counts, starts, ends))
        for row in [r for r in tree.tasks if r.task == name][:MOST_FAILURES]:
            lines.append("│    " + _task_line(row))
            lines += ["│      " + t for t in _troubles(tree, row)]
    for child in tree.children[:50]:
        lines.append("├─ " + _child_line(child.row))
    lines.append("└─ (every task run: --tasks)")
    return lines


# --- runs artifacts -------------------------------------------------------------------------------


def _artifact_json(run_id: str, row: ArtifactRow) -> dict[str, Any]:
    found = asdict(views.Artifact.of_row(run_id, row))
    return found if row.data else {k: v for k, v in found.items() if k != "data"}


def _artifact_line(run: RunRow, row: ArtifactRow) -> str:
    """What an artifact is: its kind, key, and who made it; of a progress, how far it is."""
    parts = [row.kind]
    if not row.key.startswith("~"):
        parts.append(click.style(label(row.key), bold=True))
    if row.seq is not None:
        parts.append(f"of {run.id}-{row.seq}")
    if row.kind == "progress" and row.data:
        data = json.loads(row.data)
        parts.append(amount(data["done"], data["total"]))
        parts.append(one_line(data["message"], 80))
    parts.append(one_line(row.description, 80))
    return "  ".join(part for part in parts if part)


def print_artifacts(*, run_id: str, at: Place, as_json: bool) -> int:
    """Print what a run shows."""

    async def work() -> int:
        async with looking(at) as place:
            row = await find_run(place, run_id)
            rows = await place.artifacts(row)
        if as_json:
            print_json([_artifact_json(row.id, one) for one in rows])
            return 0
        if not rows:
            say("it shows nothing")
        for n, one in enumerate(rows):
            if n and one.kind != "progress":
                say("")
            say(_artifact_line(row, one))
            for line in _content(one.kind, json.loads(one.data)):
                say(f"  {line}")
        return 0

    return answered_async(work)


def _content(kind: str, data: dict[str, Any]) -> list[str]:
    """What an artifact holds, line by line."""
    match kind:
        case "markdown":
            return clean(data["markdown"]).splitlines()
        case "table":
            return _table_lines(data)
        case "link":
            return list(dict.fromkeys((one_line(data["text"], 200), one_line(data["url"], 4000))))
        case "image" if "url" in data:
            return [one_line(data["url"], 4000)]
        case "image":
            return [f"{data['mime']}, {data['bytes']:,} bytes"]
    return []


def _table_lines(data: dict[str, Any]) -> list[str]:
    rows = [
        ["" if cell is None else one_line(str(cell), 40) for cell in row]
        for row in data["rows"][:MOST_ROWS]
    ]
    width = max((len(row) for row in rows), default=0)
    head = [one_line(name, 40) for name in data["columns"] or [""] * width]
    lines = table(head, rows).splitlines() if head else []
    total = data.get("total_rows", len(data["rows"]))
    if total > len(rows):
        lines.append(f"({total:,} rows, of which {len(data['rows']):,} are kept: --json)")
    return lines if data["columns"] else lines[1:]


# --- runs logs, watch, delete; cancel -------------------------------------------------------------


def print_logs(*, run_id: str, level: str, search: str, at: Place, as_json: bool) -> int:
    """Print the log lines of a run."""

    async def work() -> int:
        least = logging.getLevelNamesMapping().get(level.upper())
        if least is None and re.fullmatch("[0-9]{1,3}", level):
            least = int(level)
        if least is None:
            raise ValueError(f"--level {level!r}: use DEBUG, INFO, WARNING, ERROR or CRITICAL")
        shown = []
        async with looking(at) as place:
            row = await find_run(place, run_id)
            async for line in place.logs(row, least, search):
                name = logging.getLevelName(line.level)
                if as_json:
                    shown.append(
                        {
                            "time": moment(line.time),
                            "level": name,
                            "logger": line.logger,
                            "message": line.message,
                            "task_run_id": f"{row.id}-{line.seq}" if line.seq else None,
                        }
                    )
                    continue
                stamp = f"{datetime.fromtimestamp(line.time):%H:%M:%S.%f}"[:-3]
                where = f" [{line.seq}]" if line.seq else ""
                say(f"{stamp} {name:<7}{where} {paragraph(line.message)}")
        if as_json:
            print_json(shown)
        return 0

    return answered_async(work)


def watch_run(*, run_id: str, at: Place, as_json: bool) -> int:
    """Follow a run until it ends."""

    async def work() -> int:
        async with looking(at) as place:
            row = await find_run(place, run_id)
            before, began = "", time.monotonic()
            while True:
                row = await find_run(place, row.id)
                state = StateType(row.state)
                counts = await place.task_counts(row)
                tasks = _in_a_line(counts)
                line = f"{label(row.flow_name)} {label(row.state_name)}" + (tasks and f": {tasks}")
                if as_json:
                    if line != before:
                        print_json_line({**run_json(row), "tasks": _by_task(counts)})
                elif sys.stdout.isatty():
                    sys.stdout.write(f"\r{one_line(line, _width())}\x1b[K")
                    sys.stdout.flush()
                elif line != before:
                    say(f"{duration(time.monotonic() - began):>8}  {line}")
                before = line
                if state.is_final or row.engine is None:
                    break
                await asyncio.sleep(POLL)
        if as_json:
            return EXITS.get(state, 1)
        if sys.stdout.isatty():
            say("")
        if state is StateType.PAUSED:
            say(one_line(row.message, 500), error=True)
        elif row.error is not None:
            say(one_line(_error_text(row.error), 500), error=True)
        return EXITS.get(state, 1)

    return answered_async(work)


def _width() -> int:
    return max(20, shutil.get_terminal_size().columns - 1)


def _by_task(counts: list[TaskCount]) -> dict[str, dict[str, int]]:
    by_task: dict[str, dict[str, int]] = {}
    for count in counts:
        states = by_task.setdefault(count.task, defaultdict(int))
        states[count.state_name or count.state.lower()] += count.count
    return by_task


def _in_a_line(counts: list[TaskCount]) -> str:
    return "; ".join(
        f"{label(task)} " + ", ".join(f"{n:,} {label(state)}" for state, n in states.items())
        for task, states in _by_task(counts).items()
    )


def cancel_run(*, run_id: str, at: Place, as_json: bool) -> int:
    """Cancel a run of whatever process."""

    async def work() -> int:
        async with looking(at) as place:
            row = await find_run(place, run_id)
            if row.parent is not None:
                raise ValueError(f"the run {row.id} is a child run: cancel the run above it")
            stopped, state, name = await place.cancel(row)
        if as_json:
            print_json({"id": row.id, "cancelled": stopped, "state": state})
        elif stopped:
            say(f"cancelled the run {row.id}")
        else:
            say(f"the run {row.id} had ended already: {name}")
        return 0

    return answered_async(work)


def delete_runs(*, run_ids: tuple[str, ...], yes: bool, at: Place, as_json: bool) -> int:
    """Delete ended runs."""

    async def work() -> int:
        async with looking(at) as place:
            rows = [await find_run(place, run_id) for run_id in run_ids]
            for row in rows:
                if row.parent is not None:
                    raise ValueError(f"the run {row.id} is a child run: delete the run above it")
            if not yes:
                what = f"the run {rows[0].id}" if len(rows) == 1 else f"{len(rows)} runs"
                if not sys.stdin.isatty():
                    raise ValueError(f"say --yes to delete {what}: nobody is there to be asked")
                if not click.confirm(f"Delete {what}, with all that belongs to it?"):
                    return 0
            gone = 0
            for row in rows:
                gone += await place.delete(row)
        if as_json:
            print_json({"ids": [row.id for row in rows], "deleted": gone})
        else:
            say(f"deleted {gone} {'run' if gone == 1 else 'runs'}")
        return 0

    return answered_async(work)
