"""``asyncflow variables ls|get|set|delete``."""

from __future__ import annotations

import json
from dataclasses import asdict

from asyncflow.cli.output import (
    answered_async,
    clean,
    label,
    local,
    one_line,
    print_json,
    say,
    table,
)
from asyncflow.cli.place import Place
from asyncflow.cli.source import looking
from asyncflow.errors import StoreError


def list_variables(*, at: Place, as_json: bool) -> int:
    """``variables ls``."""

    async def work() -> int:
        async with looking(at) as place:
            found = await place.variables()
        if as_json:
            print_json([asdict(one) for one in found])
        elif not found:
            say("no variables yet: asyncflow variables set NAME VALUE")
        else:
            rows = [
                (
                    label(one.name),
                    local(one.updated_at),
                    one_line(json.dumps(one.value, ensure_ascii=False)),
                )
                for one in found
            ]
            say(table(("NAME", "SET", "VALUE"), rows))
        return 0

    return answered_async(work)


def get_variable(*, name: str, at: Place, as_json: bool) -> int:
    """``variables get``."""

    async def work() -> int:
        async with looking(at) as place:
            found = await place.variables(name)
        if not found:
            raise _none(name)
        value = found[0].value
        if as_json:
            print_json(asdict(found[0]))
        elif isinstance(value, str):
            say(clean(value))
        else:
            print_json(value)
        return 0

    return answered_async(work)


def _none(name: str) -> StoreError:
    return StoreError(f"there is no variable {name!r} in this database")


def set_variable(*, name: str, value: str, at: Place, as_json: bool) -> int:
    """``variables set``."""

    async def work() -> int:
        try:
            given = json.loads(value)
        except ValueError:
            given = value
        async with looking(at, must_exist=False) as place:
            await place.set_variable(name, given)
        if as_json:
            print_json({"name": name, "value": given})
        else:
            say(f"set {name} to {one_line(json.dumps(given, ensure_ascii=False))}")
        return 0

    return answered_async(work)


def delete_variable(*, name: str, at: Place, as_json: bool) -> int:
    """``variables delete``."""

    async def work() -> int:
        async with looking(at) as place:
            if not await place.delete_variable(name):
                raise _none(name)
        if as_json:
            print_json({"name": name, "deleted": True})
        else:
            say(f"deleted {name}")
        return 0

    return answered_async(work)
