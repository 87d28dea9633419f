"""What is declared in ``asyncflow.toml``, or under ``[tool.asyncflow]`` of ``pyproject.toml``.

Flows are named as on the command line, ``FILE.py:FLOW`` or ``MODULE:FLOW``, from the folder of
the file. A key that nothing knows is refused: what is mistyped must not be ignored.
"""

from __future__ import annotations

import difflib
import inspect
import os
import sys
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asyncflow.automations import Automation, automation_from_dict
from asyncflow.deployments import Deployment, DeploymentSchedule, deployment
from asyncflow.errors import AsyncflowError, InvalidOption

if TYPE_CHECKING:
    from asyncflow.engine import Engine
    from asyncflow.notifications.channels import Channel

_TIMES = ("cron", "interval", "rrule", "timezone")
_SCHEDULE = (*_TIMES, "name", "parameters", "jitter_seconds", "start", "end", "paused", "day_or")
_DEPLOYMENT = (
    "name", "flow", *_TIMES, "schedules", "parameters", "tags", "description", "version", "overlap",
    "concurrency_limit", "catchup", "catchup_limit", "late_seconds", "paused",
)  # fmt: skip
_TABLES = ("deployments", "automations", "channels")


@dataclass(slots=True)
class Declared:
    """What a file declares.

    Attributes:
        path: of the file.
        deployments: with their flows imported.
        automations, channels: checked.
    """

    path: Path
    deployments: list[Deployment] = field(default_factory=list)
    automations: list[Automation] = field(default_factory=list)
    channels: list[Channel] = field(default_factory=list)


def find_file(folder: Path) -> Path | None:
    """The file of a folder that declares something, if there is one."""
    own = folder / "asyncflow.toml"
    if own.exists():
        return own
    project = folder / "pyproject.toml"
    if project.exists() and _section(_parsed(project), project):
        return project
    return None


def load(path: Path) -> Declared:
    """Read a file, and import the flows that it names.

    Raises:
        InvalidOption: it cannot be read, or something in it is wrong; the error says where.
    """
    table = _section(_parsed(path), path)
    _only(table, _TABLES, str(path), "")
    found = Declared(path)
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    for where, entry in _entries(table, "deployments", path):
        try:
            found.deployments.append(_deployment(entry, where, path))
        except AsyncflowError as error:
            text = str(error)
            raise InvalidOption(text if where in text else f"{where}: {text}") from None
    for where, entry in _entries(table, "automations", path):
        try:
            found.automations.append(automation_from_dict(entry))
        except AsyncflowError as error:
            raise InvalidOption(f"{where}: {error}") from None
    for where, entry in _entries(table, "channels", path):
        found.channels.append(_channel(entry, where))
    return found


def _channel(entry: dict[str, Any], where: str) -> Channel:
    from asyncflow.notifications.channels import Channel
    from asyncflow.retry import exponential_backoff

    known = tuple(inspect.signature(Channel).parameters)
    _only(entry, known, where, "")
    for key in ("name", "url"):
        if key not in entry:
            raise InvalidOption(f"{where}: give it a {key}")
    options = dict(entry)
    for key in ("rate_limit", "quiet"):
        if isinstance(options.get(key), list):
            options[key] = tuple(options[key])
    delay = options.get("retry_delay_seconds")
    try:
        if isinstance(delay, dict):
            _only(delay, inspect.signature(exponential_backoff).parameters, where, "")
            options["retry_delay_seconds"] = exponential_backoff(**delay)
        return Channel(**options)
    except (AsyncflowError, TypeError) as error:
        text = str(error)
        raise InvalidOption(text if where in text else f"{where}: {text}") from None


async def declare(engine: Engine, found: Declared) -> None:
    """Deploy what a file declares, and watch for its automations, in an engine."""
    for channel in found.channels:
        engine.add_channel(channel)
    for one in found.deployments:
        await engine.deploy(one, source="file")
    for automation in found.automations:
        await engine.automate(automation, source="file")


def _parsed(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidOption(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InvalidOption(f"{path} is not UTF-8 text") from None
    except tomllib.TOMLDecodeError as error:
        raise InvalidOption(f"{path} is no TOML: {error}") from None


def _section(document: dict[str, Any], path: Path) -> dict[str, Any]:
    if path.name != "pyproject.toml":
        return document
    tools = document.get("tool", {})
    found = tools.get("asyncflow", {}) if isinstance(tools, dict) else {}
    if not isinstance(found, dict):
        raise InvalidOption(f"{path}: [tool.asyncflow] must be a table")
    return found


def _entries(table: dict[str, Any], name: str, path: Path) -> Iterable[tuple[str, dict[str, Any]]]:
    found = table.get(name, [])
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise InvalidOption(f"{path}: write {name} as [[{name}]]")
    for number, entry in enumerate(found, 1):
        shown = entry.get("name", f"number {number}")
        yield f"{path}, {name.removesuffix('s')} {shown}", entry


def _only(table: Mapping[str, Any], known: Iterable[str], path: str, where: str) -> None:
    """Raise InvalidOption for a key that is not known."""
    for key in table:
        if key not in known:
            close = difflib.get_close_matches(key, list(known), 1)
            hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}"
            raise InvalidOption(f"{path}{where}: there is no key {key!r}: {hint}")


def _deployment(entry: dict[str, Any], where: str, path: Path) -> Deployment:
    from asyncflow.target import find_flow

    _only(entry, _DEPLOYMENT, where, "")
    for key in ("name", "flow"):
        if not isinstance(entry.get(key), str):
            raise InvalidOption(f"{where}: give it a {key}")
    options = {k: v for k, v in entry.items() if k not in ("name", "flow", "schedules")}
    schedules = entry.get("schedules", [])
    if not isinstance(schedules, list) or not all(isinstance(one, dict) for one in schedules):
        raise InvalidOption(f"{where}: write its schedules as [[deployments.schedules]]")
    made = [
        schedule_from_table(one, f"{where}, schedule {n}") for n, one in enumerate(schedules, 1)
    ]
    flow = find_flow(_from_folder(entry["flow"], path))
    return deployment(flow, entry["name"], schedules=made, **options)


def _from_folder(target: str, path: Path) -> str:
    """A target that is a file is meant from the folder of the configuration."""
    where, colon, name = target.rpartition(":")
    file = where if colon else target
    if file.endswith(".py") or os.sep in file:
        return f"{path.resolve().parent / file}{colon}{name if colon else ''}"
    return target


def schedule_from_table(entry: dict[str, Any], where: str) -> DeploymentSchedule:
    """A schedule as it stands in a file; *where* is for errors.

    Raises:
        InvalidOption: something in it is wrong.
    """
    from asyncflow.schedules import Cron, Interval, RRule

    _only(entry, _SCHEDULE, where, "")
    kinds = [kind for kind in ("cron", "interval", "rrule") if kind in entry]
    if len(kinds) != 1:
        raise InvalidOption(f"{where}: give it one of cron, interval and rrule")
    zone = entry.get("timezone", "UTC")
    value = entry[kinds[0]]
    schedule: Any
    if kinds[0] == "cron":
        schedule = Cron(value, timezone=zone, day_or=entry.get("day_or", True))
    elif kinds[0] == "interval":
        schedule = Interval(value)
    else:
        schedule = RRule(value, timezone=zone)
    own = ("name", "parameters", "jitter_seconds", "start", "end", "paused")
    options = {key: entry[key] for key in own if key in entry}
    for key in ("start", "end"):
        moment = options.get(key)
        if moment is not None and not isinstance(moment, datetime):
            raise InvalidOption(f"{where}: write {key} as 2026-01-31T09:00:00+01:00")
    return DeploymentSchedule(schedule, **options)


def schedules_from_json(entries: list[dict[str, Any]]) -> list[DeploymentSchedule]:
    """Schedules as they stand in JSON, where points in time are texts.

    Raises:
        InvalidOption: something in them is wrong.
    """
    found = []
    for number, entry in enumerate(entries, 1):
        made, where = dict(entry), f"schedule {number}"
        for key in ("start", "end"):
            if isinstance(made.get(key), str):
                try:
                    made[key] = datetime.fromisoformat(made[key])
                except ValueError:
                    raise InvalidOption(f"{where}: {key} is no date") from None
        found.append(schedule_from_table(made, where))
    return found
