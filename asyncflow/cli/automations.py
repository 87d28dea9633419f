"""``asyncflow automations ...``: what is done by itself, and what came of it."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from asyncflow.cli.output import answered_async, label, local, one_line, print_json, say, table
from asyncflow.cli.place import Place
from asyncflow.cli.planning import instant
from asyncflow.cli.source import find_run, looking, reading
from asyncflow.configfile import Declared, find_file, load
from asyncflow.engine import Engine
from asyncflow.errors import InvalidOption, UnknownAutomation
from asyncflow.planned import Delivery, dry_run

_COLOURS = {
    "pending": "blue",
    "sending": "cyan",
    "delivered": "green",
    "failed": "red",
    "suppressed": "yellow",
}


def list_automations(*, at: Place, as_json: bool) -> int:
    """``automations ls``."""

    async def work() -> int:
        async with looking(at) as place:
            found = await place.automations()
        if as_json:
            print_json([asdict(one) for one in found])
            return 0
        if not found:
            say("no automations yet: engine.automate(...), or [[automations]] in asyncflow.toml")
            return 0
        rows = [
            (
                label(one.name),
                "" if one.enabled else click.style("off", fg="yellow"),
                f"{one.fired:,}",
                local(one.fired_at),
                f"{_trigger(one.trigger)} -> {', '.join(_action(a) for a in one.actions)}",
            )
            for one in found
        ]
        say(table(("AUTOMATION", "", "FIRED", "LAST", "WHAT"), rows))
        return 0

    return answered_async(work)


def _trigger(trigger: dict[str, Any]) -> str:
    """A trigger in short."""
    match trigger["type"]:
        case "event":
            times = f" x {trigger['threshold']}" if trigger.get("threshold", 1) > 1 else ""
            return f"{_names(trigger['expect'])}{times}"
        case "absence":
            after = f" after {_names(trigger['after'])}" if trigger.get("after") else ""
            return f"no {_names(trigger['expect'])} within {trigger['within']:g} s{after}"
        case "duration":
            return f"{trigger['state']} for {trigger['longer_than']:g} s"
        case kind:
            return f"{kind}({', '.join(_trigger(one) for one in trigger['triggers'])})"


def _names(names: Any) -> str:
    return one_line(names if isinstance(names, str) else ", ".join(names))


def _action(action: dict[str, Any]) -> str:
    what = next(
        (action[key] for key in ("channel", "name", "deployment", "function") if action.get(key)),
        "",
    )
    return one_line(f"{action['type']} {what}".strip())


def show_automation(*, name: str, at: Place, as_json: bool) -> int:
    """``automations show``."""

    async def work() -> int:
        async with looking(at) as place:
            found = await place.automations(name)
            if not found:
                raise UnknownAutomation.named(name)
            done = await place.deliveries(automation=name, limit=10)
        one = found[0]
        if as_json:
            print_json({**asdict(one), "newest_deliveries": [asdict(d) for d in done]})
            return 0
        off = "" if one.enabled else click.style(" (off)", fg="yellow")
        say(f"{click.style(label(one.name), bold=True)}{off}: {_trigger(one.trigger)}")
        if one.description:
            say(f"  {one_line(one.description, 200)}")
        match = one.trigger.get("match")
        if match:
            say(f"  match {one_line(json.dumps(match, ensure_ascii=False), 200)}")
        for action in one.actions:
            say(f"  -> {_action(action)}")
        last = f", last {local(one.fired_at)}" if one.fired_at else ""
        say(f"  fired {one.fired:,} times{last}")
        if done:
            _say_deliveries(done)
        return 0

    return answered_async(work)


def test_automation(
    *, name: str, since: str | None, config: str | None, db: str | None, as_json: bool
) -> int:
    """``automations test``."""

    async def work() -> int:
        start = instant(since, "--since") if since is not None else None
        automation: Any = name
        if config is not None:
            automation = _of_file(load(Path(config)), name)
        async with reading(db) as reader:
            fired = await dry_run(reader, automation, datetime.now(UTC).timestamp(), start)
        if as_json:
            print_json([one.to_dict() for one in fired])
            return 0
        if not fired:
            say(f"{label(name)} would not have fired")
            return 0
        say(f"{label(name)} would have fired {len(fired):,} times:")
        for one in fired[-50:]:
            when = local(datetime.fromtimestamp(one.time, UTC))
            event = one.event
            text = f"{event.name} {event.fields.get('run_id', '')}" if event is not None else ""
            labels = ", ".join(f"{key}={value}" for key, value in one.labels.items())
            say(f"  {when}  {one_line(' '.join(part for part in (text, labels) if part))}")
        return 0

    return answered_async(work)


def _of_file(found: Declared, name: str) -> Any:
    for one in found.automations:
        if one.name == name:
            return one
    names = ", ".join(one.name for one in found.automations) or "none"
    raise UnknownAutomation(f"{found.path} declares no automation {name!r}: it has {names}")


def list_deliveries(
    *,
    automation: str | None,
    run_id: str | None,
    states: tuple[str, ...],
    limit: int,
    at: Place,
    as_json: bool,
) -> int:
    """``automations deliveries``."""

    async def work() -> int:
        async with looking(at) as place:
            run = (await find_run(place, run_id)).id if run_id is not None else None
            found = await place.deliveries(automation, run, states, limit)
        if as_json:
            print_json([asdict(one) for one in found])
        elif found:
            _say_deliveries(found)
        else:
            say("no deliveries")
        return 0

    return answered_async(work)


def _say_deliveries(found: list[Delivery]) -> None:
    rows = [
        (
            local(one.created_at),
            click.style(one.state, fg=_COLOURS.get(one.state)),
            f"{one.attempts}",
            label(one.automation),
            label(f"{one.kind} {one.channel}".strip()),
            one.run_id or "",
            one_line(one.error or one.reply, 200),
        )
        for one in found
    ]
    head = ("FIRED", "STATE", "TRIES", "AUTOMATION", "ACTION", "RUN", "")
    say(table(head, rows))


def enable_automation(*, name: str, enabled: bool, at: Place, as_json: bool) -> int:
    """``automations enable`` and ``disable``."""

    async def work() -> int:
        async with looking(at) as place:
            await place.enable_automation(name, enabled)
            (found,) = await place.automations(name)
        if as_json:
            print_json(asdict(found))
        else:
            say(f"{label(name)} is {'on' if enabled else 'off'}")
        return 0

    return answered_async(work)


def remove_automation(*, name: str, at: Place, as_json: bool) -> int:
    """``automations delete``."""

    async def work() -> int:
        async with looking(at) as place:
            await place.remove_automation(name)
        if as_json:
            print_json({"removed": name})
        else:
            say(f"removed {label(name)}")
        return 0

    return answered_async(work)


def send_test(*, channel: str, config: str | None, db: str | None, as_json: bool) -> int:
    """``automations send-test``."""

    async def work() -> int:
        path = Path(config) if config is not None else find_file(Path.cwd())
        if path is None:
            raise InvalidOption("there is no asyncflow.toml here: name a file with --config")
        found = load(path)
        names = {one.name: one for one in found.channels}
        if channel not in names:
            raise InvalidOption(
                f"{path} declares no channel {channel!r}: it has {', '.join(names) or 'none'}"
            )
        async with Engine(db) as engine:
            reply = await engine.send_test(names[channel])
        if as_json:
            print_json({"channel": channel, "reply": reply})
        else:
            say(f"sent through {label(channel)}: {one_line(reply)}")
        return 0

    return answered_async(work)


__all__ = [
    "enable_automation",
    "list_automations",
    "list_deliveries",
    "remove_automation",
    "send_test",
    "show_automation",
    "test_automation",
]
