"""What a server without code of the user asks of engines that have it, and how that is told."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from asyncflow import commands
from asyncflow.parameters import hidden_in
from asyncflow.server.security import Problem
from asyncflow.store.planning import CommandRow
from asyncflow.views import moment

if TYPE_CHECKING:
    from asyncflow.engine import Engine
    from asyncflow.store.base import RunRow

#: Arguments that are of no interest to people.
_INNER = frozenset({"state_at", "cause"})


class Accepted(dict[str, Any]):
    """An answer that something is asked for, not done: 202 in HTTP."""


async def ask(
    engine: Engine,
    kind: str,
    arguments: dict[str, Any],
    *,
    run: str | None = None,
    deployment: str | None = None,
    key: str | None = None,
) -> Accepted:
    """Write a command for whichever engine has the code.

    Raises:
        Problem: no engine that is open takes commands.
    """
    row = await engine.commands.ask(kind, arguments, run=run, deployment=deployment, key=key)
    if row is None:
        raise Problem(
            409,
            "this server runs no flows, so that no code of yours is in it, and no engine that has"
            " it is open on this database: start `asyncflow serve FILE.py:FLOW` beside it, or the"
            " service that runs your flows",
        )
    return Accepted(command=command_json(row, engine.clock.time()))


def command_json(row: CommandRow, now: float) -> dict[str, Any]:
    """A command as JSON."""
    row = commands.shown(row, now)
    given = {k: v for k, v in json.loads(row.arguments).items() if k not in _INNER}
    return {
        "id": row.id,
        "kind": row.kind,
        "run_id": row.run,
        "deployment": row.deployment,
        "arguments": given,
        "state": row.state,
        "detail": row.detail,
        "made_run_id": row.made,
        "engine": row.engine,
        "taken": row.taken,
        "asked_by": row.asked_by,
        "asked_at": moment(row.asked_at),
        "expires_at": moment(row.expires_at),
        "taken_at": moment(row.taken_at),
        "ended_at": moment(row.ended_at),
    }


def refuse_secrets_of(row: RunRow, given: dict[str, Any] | None) -> None:
    """Raise Problem where a given parameter is a secret in the run that it is for."""
    _refuse(sorted(hidden_in(row.parameters) & set(given or ())))


def refuse_secrets(schema: dict[str, Any], given: dict[str, Any] | None) -> None:
    """Raise Problem where a given parameter is, or holds, a secret by the schema of a flow."""
    fields = schema.get("properties") or {}
    _refuse([name for name in given or () if _is_secret(fields.get(name), schema, set())])


def _refuse(names: list[str]) -> None:
    if names:
        raise Problem(
            409,
            f"the parameter {names[0]!r} is or holds a secret, which is not stored, and so cannot"
            " be handed to another process: use the command line, or the dashboard of the engine"
            " that runs the flow (engine.serve_dashboard)",
        )


def _is_secret(part: Any, schema: dict[str, Any], seen: set[str]) -> bool:
    """Whether a part of a JSON schema says of anything in it that it is a secret."""
    if isinstance(part, list):
        return any(_is_secret(one, schema, seen) for one in part)
    if not isinstance(part, dict):
        return False
    if part.get("format") == "password" or part.get("writeOnly") is True:
        return True
    ref = part.get("$ref")
    if isinstance(ref, str) and ref.startswith("#/$defs/") and ref not in seen:
        seen.add(ref)
        name = ref.removeprefix("#/$defs/")
        if _is_secret((schema.get("$defs") or {}).get(name), schema, seen):
            return True
    return any(_is_secret(one, schema, seen) for one in part.values())
