"""The file that holds one run: its format, and what its values may be.

It is compressed by gzip, and each line of it is JSON, so that `zcat` shows what is in it. A head
comes first; then the run and the runs below it, each followed by what belongs to it; at the end
how many lines there were, and their check sum. It holds what the database holds, secrets masked,
and no names of files: what is read from it can only become rows.

`asyncflow.exporting` writes it, `asyncflow.importing` reads it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from math import isfinite
from typing import Any, NamedTuple, TypeAlias

from asyncflow.states import StateType
from asyncflow.store.base import (
    ArtifactRow,
    AttemptRow,
    EventRow,
    LogRow,
    MarkRow,
    MessageRow,
    ResultKind,
    RunRow,
    TaskRow,
)

#: What the head of a file says that it is.
FORMAT = "asyncflow run"
#: Raised when a version before would read a file wrongly.
VERSION = 1
#: What the name of such a file ends with, where the user gives none.
SUFFIX = ".run.gz"

#: Bytes of one line.
MOST_LINE = 32 * 1024**2
#: Bytes of one value, such as a result.
MOST_VALUE = 1024**3
#: Bytes of a value in one line; a larger one stands in parts, each in a line that follows.
PART = 192 * 1024
#: Runs below runs.
MOST_DEPTH = 200
#: Containers in containers, in JSON that is read by parsers that recurse.
MOST_NESTED = 300
#: The last moment that can be shown, the end of the year 9999, in seconds since the epoch.
LAST = 253_402_300_799

Check: TypeAlias = Callable[[Any], Any]

_ID = re.compile(r"[a-z0-9-]{1,64}")
_KEY = re.compile(r"~?[a-z0-9][a-z0-9_.-]{0,99}")
_STATES = frozenset(state.value for state in StateType)
_KINDS = frozenset({ResultKind.NONE, ResultKind.JSON, ResultKind.PICKLE, ResultKind.NOT_STORED})


class Stopped(Exception):
    """Nobody waits any more for what is being done."""


def never() -> bool:
    """That is always wanted."""
    return False


# --- what values may be: each gives the value, or raises ValueError -------------------------------


def is_int(value: Any) -> bool:
    """Whether it is a whole number that fits into a column."""
    return type(value) is int and -(2**63) <= value < 2**63


def _text(value: Any) -> str:
    if type(value) is not str:
        raise ValueError
    return value


def _id(value: Any) -> str:
    if _ID.fullmatch(_text(value)) is None:
        raise ValueError
    return str(value)


def _state(value: Any) -> str:
    if value not in _STATES:
        raise ValueError
    return str(value)


def _state_or_nothing(value: Any) -> str:
    return value if value == "" else _state(value)


def _kind(value: Any) -> int:
    if not is_int(value) or value not in _KINDS:
        raise ValueError
    return int(value)


def _count(value: Any) -> int:
    if not is_int(value) or value < 0:
        raise ValueError
    return int(value)


def _seq(value: Any) -> int:
    if not is_int(value) or not 1 <= value < 2**32:
        raise ValueError
    return int(value)


def _moment(value: Any) -> float:
    if type(value) not in (int, float) or not isfinite(value) or not 0 <= value <= LAST:
        raise ValueError
    return float(value)


def _number(value: Any) -> float:
    if type(value) not in (int, float) or not isfinite(value):
        raise ValueError
    return float(value)


def _bytes(value: Any) -> bytes:
    if type(value) is str:
        return value.encode()
    if type(value) is not bytes:
        raise ValueError
    return value


def _identity(value: Any) -> bytes:
    # What it begins with says which task it is, and the ninth byte how to go on.
    if len(data := _bytes(value)) < 9:
        raise ValueError
    return data


def _object(value: Any) -> bytes:
    """A JSON object that is not nested too deep."""
    data = _json(value)
    if data.lstrip()[:1] != b"{":
        raise ValueError
    return data


def _json(value: Any) -> bytes:
    """JSON that is not nested too deep."""
    level: list[Any] = [[json.loads(data := _bytes(value))]]
    for _ in range(MOST_NESTED):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if type(outer) is dict else outer)
            if type(inner) is dict or type(inner) is list
        ]
        if not level:
            return data
    raise ValueError


def _object_text(value: Any) -> str:
    return _object(_text(value)).decode()


def _key(value: Any) -> str:
    if _KEY.fullmatch(_text(value)) is None:
        raise ValueError
    return str(value)


def _or_none(check: Check) -> Check:
    return lambda value: None if value is None else check(value)


def _tuple_of(check: Check) -> Check:
    def checked(value: Any) -> tuple[Any, ...]:
        if value is None:
            return ()
        if type(value) is not list:
            raise ValueError
        return tuple(map(check, value))

    return checked


# --- rows -----------------------------------------------------------------------------------------


class Table(NamedTuple):
    """How the rows of one kind are written.

    Attributes:
        kind: what a line calls it.
        row: its class.
        fields: those that are written, and what they may be. What belongs to one store only
            (numbers, owners) is not among them.
        order: by which the rows of one run come, each once; None: there may be equal ones.
    """

    kind: str
    row: type[Any]
    fields: dict[str, Check]
    order: Callable[[Any], Any] | None = None


TABLES = (
    Table(
        "run",
        RunRow,
        {
            "id": _id,
            "flow_name": _text,
            "flow_ref": _object_text,
            "name": _text,
            "parent": _or_none(_seq),
            "parent_identity": _or_none(_identity),
            "parent_seq": _or_none(_seq),
            "state": _state,
            "state_name": _text,
            "message": _text,
            "state_at": _moment,
            "parameters": _object,
            "tags": _tuple_of(_text),
            "created_at": _moment,
            "started_at": _or_none(_moment),
            "ended_at": _or_none(_moment),
            "deadline_at": _or_none(_number),
            "epoch": _count,
            "attempt": _count,
            "recoveries": _count,
            "idempotency_key": _or_none(_text),
            "version": _or_none(_text),
            "result_kind": _kind,
            "result": _or_none(_bytes),
            "error": _or_none(_object),
            "ended_by": _tuple_of(_seq),
            "origin": _or_none(_text),
            "deployment": _or_none(_text),
            "scheduled_at": _or_none(_moment),
            "cause": _or_none(_text),
        },
    ),
    Table(
        "event",
        EventRow,
        {
            "time": _moment,
            "state": _state_or_nothing,
            "state_name": _text,
            "message": _text,
            "epoch": _count,
            "kind": _or_none(_text),
            "seq": _or_none(_seq),
            "payload": _or_none(_json),
        },
    ),
    Table(
        "message",
        MessageRow,
        {"id": _seq, "name": _text, "payload": _bytes, "time": _moment},
        lambda row: row.id,
    ),
    Table(
        "task",
        TaskRow,
        {
            "seq": _seq,
            "identity": _identity,
            "task": _text,
            "name": _or_none(_text),
            "parent": _or_none(_seq),
            "state": _state,
            "state_name": _or_none(_text),
            "message": _text,
            "attempt": _count,
            "failures": _count,
            "interruptions": _count,
            "created_at": _moment,
            "started_at": _or_none(_moment),
            "ended_at": _or_none(_moment),
            "retry_at": _or_none(_number),
            "upstream": _tuple_of(_count),
            "tags": _tuple_of(_text),
            "result_kind": _kind,
            "result": _or_none(_bytes),
            "error": _or_none(_object),
        },
        lambda row: row.seq,
    ),
    Table(
        "attempt",
        AttemptRow,
        {
            "seq": _seq,
            "attempt": _count,
            "started_at": _or_none(_moment),
            "ended_at": _moment,
            "retry_at": _or_none(_number),
            "error": _object,
        },
        lambda row: (row.seq, row.attempt),
    ),
    Table(
        "mark",
        MarkRow,
        {"scope": _bytes, "n": _count, "value": _bytes, "seq": _count},
        lambda row: (row.scope, row.n),
    ),
    Table(
        "log",
        LogRow,
        {
            "seq": _or_none(_seq),
            "time": _moment,
            "level": _count,
            "logger": _text,
            "message": _text,
        },
    ),
    Table(
        "artifact",
        ArtifactRow,
        {
            "key": _key,
            "seq": _or_none(_seq),
            "kind": _text,
            "description": _text,
            "data": _object,
            "created_at": _moment,
            "updated_at": _moment,
        },
    ),
)

OF_ROW: dict[type[Any], Table] = {table.row: table for table in TABLES}
OF_KIND: dict[str, Table] = {table.kind: table for table in TABLES}
