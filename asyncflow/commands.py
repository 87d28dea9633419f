"""What one process asks another to do: who may take it, and what becomes of it. Nothing else here.

    WAITING -> TAKEN -> DONE
       |         | '---> FAILED
       |         '-----> TAKEN   (the engine that took it died, another one goes on)
       |---------------> FAILED  (no living engine has its code)
       '---------------> EXPIRED (nobody took it in time, and nobody does any more)

A server without code of the user writes a command to the store; an engine that has the code takes
it, exactly one at a time. What it does carries a key made of the command's id, so that it is done
once, however often it is taken. All functions give a new row, or None where that move is not
allowed; whoever calls them does so in one transaction.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from enum import StrEnum
from typing import Any

from asyncflow.store.base import EventRow
from asyncflow.store.planning import CommandRow

#: Seconds in which a command is to be taken; and once it is, in which another engine may go on with
#: it where the first one dies.
PATIENCE = 30.0
#: Seconds in which engines that would have to import the code first leave it to those that have it.
#: Longer than the time between two looks of any engine.
HEAD_START = 2.5
#: Characters of what came of it.
MOST_DETAIL = 500

KINDS = ("resume", "rerun", "fork", "run", "answer", "deploy")


class CommandState(StrEnum):
    WAITING = "WAITING"  #: nobody has taken it yet
    TAKEN = "TAKEN"  #: an engine carries it out
    DONE = "DONE"
    FAILED = "FAILED"  #: it could not be done; its detail says why
    EXPIRED = "EXPIRED"  #: nobody took it in time; it was not done, and is not


S = CommandState


def run_key(row: CommandRow) -> str:
    """The idempotency key of the run that a command makes: that of who asked, or its own."""
    asked = row.key if row.kind in ("rerun", "fork", "run") else None
    return asked or f"command:{row.id}"


def is_for(row: CommandRow, now: float, is_alive: Callable[[int], bool]) -> bool:
    """Whether an engine may take it now: it waits, or who took it has died."""
    if row.ended_at is not None or now >= row.expires_at:
        return False
    return row.state == S.WAITING or (row.engine is not None and not is_alive(row.engine))


def may_import(row: CommandRow, now: float, alone: bool) -> bool:
    """Whether an engine that does not have the code yet may look for it now.

    Args:
        alone: no other living engine looks for commands.
    """
    return alone or now >= row.asked_at + HEAD_START


def taken(
    row: CommandRow, engine: int, now: float, is_alive: Callable[[int], bool]
) -> CommandRow | None:
    """An engine takes it."""
    if not is_for(row, now, is_alive):
        return None
    return row._replace(
        state=S.TAKEN.value,
        engine=engine,
        taken_at=now,
        taken=row.taken + 1,
        expires_at=now + PATIENCE,
        detail="",
    )


def given_back(row: CommandRow, engine: int) -> CommandRow | None:
    """The engine that took it stops before it is done: another one may take it at once."""
    if not _is_held(row, engine):
        return None
    return row._replace(state=S.WAITING.value, engine=None)


def ended(
    row: CommandRow, engine: int, now: float, *, failed: bool, detail: str, made: str | None = None
) -> CommandRow | None:
    """The engine that took it says what came of it."""
    if not _is_held(row, engine):
        return None
    state = S.FAILED if failed else S.DONE
    return _settled(row, state, now, detail, made)


def declined(
    row: CommandRow, engine: int, why: str, alive: Collection[int], now: float
) -> CommandRow | None:
    """An engine cannot do it. Where no living one is left that might, that is its end.

    Args:
        alive: the engines that look for commands.
    """
    if row.state != S.WAITING:
        return None
    others = {*json.loads(row.declined), engine}
    row = row._replace(declined=json.dumps(sorted(others)).encode(), detail=plain(why))
    if set(alive) - others:
        return row
    return _settled(row, S.FAILED, now, f"no engine that is open can do it: {why}", None)


def is_over(row: CommandRow, now: float, is_alive: Callable[[int], bool]) -> bool:
    """Whether nobody takes it any more, though that has not been written yet."""
    if row.ended_at is not None or now < row.expires_at:
        return False
    return row.state == S.WAITING or row.engine is None or not is_alive(row.engine)


def lapsed(row: CommandRow, now: float, made: str | None = None) -> CommandRow:
    """What has become of one that `is_over`.

    Args:
        made: the id of the run that has its key.
    """
    if row.state == S.WAITING:
        why = f": {row.detail}" if row.detail else ""
        text = f"no engine took it within {PATIENCE:g} s, and none does any more{why}"
        return _settled(row, S.EXPIRED, now, text, None)
    if made is not None:
        return _settled(
            row, S.DONE, now, "the engine that did it died before it could say so", made
        )
    text = "the engine that took it died, and no other was there to go on: see what it has done"
    return _settled(row, S.FAILED, now, text, None)


def shown(row: CommandRow, now: float) -> CommandRow:
    """A command as it is, also where it has not been written yet that its time is over."""
    waits = row.ended_at is None and row.state == S.WAITING
    return lapsed(row, now) if waits and now >= row.expires_at else row


def has_moved(seen: dict[str, Any], state_at: float) -> bool:
    """Whether a run has gone on since it was asked for.

    Args:
        seen: what the run was like then (the arguments of a command).
        state_at: since when it is in its state.
    """
    before = seen.get("state_at")
    return before is not None and before != state_at


def event_of(row: CommandRow) -> EventRow:
    """What is told of the end of a command."""
    assert row.ended_at is not None
    payload = {
        "command": row.id,
        "kind": row.kind,
        "run_id": row.run,
        "deployment": row.deployment,
        "made": row.made,
        "asked_by": row.asked_by,
    }
    kind = f"command.{row.state.lower()}"
    text = f"{row.kind}: {row.detail}"[:MOST_DETAIL]
    data = json.dumps({name: value for name, value in payload.items() if value is not None})
    return EventRow(0, 0, row.ended_at, "", "", text, 0, kind, None, data.encode())


def plain(text: str) -> str:
    """A text as every store can keep it."""
    return text.encode("utf-8", "backslashreplace").decode()[:MOST_DETAIL]


def canonical(arguments: dict[str, Any]) -> bytes:
    """Arguments as they are stored."""
    text = json.dumps(arguments, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode("utf-8", "surrogatepass")


def _is_held(row: CommandRow, engine: int) -> bool:
    return row.state == S.TAKEN and row.engine == engine


def _settled(
    row: CommandRow, state: CommandState, now: float, detail: str, made: str | None
) -> CommandRow:
    return row._replace(state=state.value, ended_at=now, detail=plain(detail), made=made)
