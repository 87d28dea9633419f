"""``asyncflow fork``, ``rerun``, ``runs answer``, ``runs diff`` and ``events send``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from asyncflow.cli.output import answered_async, coloured, one_line, print_json, say
from asyncflow.cli.params import pairs, parse_results
from asyncflow.cli.place import Place
from asyncflow.cli.running import begin_stored
from asyncflow.cli.source import check_exists, find_run, looking, path_of, reading
from asyncflow.diff import RunDiff, TaskDiff, compare
from asyncflow.engine import Engine
from asyncflow.errors import InvalidParameters
from asyncflow.handle import FlowRun
from asyncflow.states import StateType

if TYPE_CHECKING:
    from asyncflow.client import Client
    from asyncflow.server.models import Run


def fork_run(
    *,
    run_id: str,
    from_task: str | None,
    results: tuple[str, ...],
    params: tuple[str, ...],
    at: Place,
    as_json: bool,
    quiet: bool,
) -> int:
    """Run a run again under a new id with what it has recorded; the exit code."""

    async def begin(engine: Engine, stored: str, given: dict[str, Any] | None) -> FlowRun[Any]:
        return await engine.fork(stored, from_task, given, parse_results(results))

    async def ask(client: Client, stored: str, given: dict[str, Any] | None) -> Run:
        replaced = parse_results(results) or None
        return await client.fork(stored, from_task=from_task, parameters=given, results=replaced)

    return begin_stored(run_id, params, at, as_json, quiet, begin, ask)


def rerun_run(
    *, run_id: str, params: tuple[str, ...], at: Place, as_json: bool, quiet: bool
) -> int:
    """Run the flow of a run again from the start, under a new id; the exit code."""

    async def begin(engine: Engine, stored: str, given: dict[str, Any] | None) -> FlowRun[Any]:
        return await engine.rerun(stored, given)

    async def ask(client: Client, stored: str, given: dict[str, Any] | None) -> Run:
        return await client.rerun(stored, given)

    return begin_stored(run_id, params, at, as_json, quiet, begin, ask)


def answer_run(
    *, run_id: str, data: str | None, params: tuple[str, ...], at: Place, as_json: bool
) -> int:
    """Answer a run that waits for somebody."""

    async def work() -> int:
        value = _value(data, params)
        async with looking(at) as place:
            row = await find_run(place, run_id)
            await place.answer(row, value)
        if as_json:
            print_json({"id": row.id, "answered": True})
        else:
            say(f"answered {row.id}")
        return 0

    return answered_async(work)


def send_event(
    *, name: str, payload: str | None, run_id: str | None, db: str | None, as_json: bool
) -> int:
    """Send an event to one run, or to all."""

    async def work() -> int:
        value = _json(payload, "--payload") if payload is not None else None
        path = path_of(db)
        check_exists(path)
        async with Engine(path) as engine:
            target = None if run_id is None else (await find_run(engine.reader, run_id)).id
            await engine.send_event(name, value, target)
        if as_json:
            print_json({"event": name, "run_id": target})
        else:
            say(f"sent {name} to {target or 'all runs'}")
        return 0

    return answered_async(work)


def diff_runs(*, first: str, second: str, db: str | None, as_json: bool) -> int:
    """Say where two runs differ; 0 where they do not, else 1."""

    async def work() -> int:
        async with reading(db) as reader:
            a, b = await find_run(reader, first), await find_run(reader, second)
            found = await compare(reader, a, b)
        if as_json:
            print_json(found.as_dict())
        else:
            _say_diff(found)
        return 1 if found else 0

    return answered_async(work)


def _say_diff(found: RunDiff) -> None:
    say(f"- {found.first}\n+ {found.second}")
    for name, (before, after) in found.parameters.items():
        say(f"parameter {name}: {one_line(before, 200)} -> {one_line(after, 200)}")
    if found.states[0] != found.states[1]:
        say(f"state: {found.states[0]} -> {found.states[1]}")
    for task in found.tasks:
        say(_diff_line(task))
    if found.same:
        say(f"({found.same:,} task runs are the same)")
    if not found:
        say("the runs do not differ")


def _diff_line(task: TaskDiff) -> str:
    inputs = f" {one_line(task.inputs, 80)}" if task.inputs else ""
    name = f"{task.task}{inputs}"
    if task.before is None:
        return click.style(f"+ {name}: {task.after}", fg="green")
    if task.after is None:
        return click.style(f"- {name}: {task.before}", fg="red")
    return coloured(StateType.CANCELLED, f"~ {name}: {task.before} -> {task.after}")


def _value(data: str | None, params: tuple[str, ...]) -> Any:
    """What the user answers: one JSON document, or fields by name."""
    if data is not None and params:
        raise InvalidParameters("give --data or --param, not both")
    if data is not None:
        return _json(data, "--data")
    fields: dict[str, Any] = {}
    for name, value in pairs("--param", params):
        try:
            fields[name] = json.loads(value)
        except ValueError:
            fields[name] = value
    return fields or None


def _json(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise InvalidParameters(f"{what} is no JSON: {error}") from None


__all__ = ["answer_run", "diff_runs", "fork_run", "rerun_run", "send_event"]
