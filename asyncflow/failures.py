"""Exceptions as records that can be stored, and exceptions made of such records again.

A record is plain JSON: the type by name, the message, the arguments, notes and traceback, and the
same of its cause and of the members of a group. What is rebuilt is caught by the same ``except``
as the original. No ``__init__`` of a user's class is run, and neither direction ever raises:
what cannot be told is left out, and what cannot be rebuilt becomes a `RecordedFailure`.
"""

from __future__ import annotations

import traceback
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import orjson

from asyncflow import codec
from asyncflow.errors import RecordedFailure, TaskTimeout, WorkerLost
from asyncflow.naming import class_name
from asyncflow.states import StateType

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from asyncflow.run import Call

Record: TypeAlias = dict[str, Any]

#: Characters of a traceback that are kept: the last ones, where it happened.
TRACEBACK = 20_000
#: Characters of a message or note that are kept: the first ones.
TEXT = 20_000
#: Bytes of arguments or of one attribute; larger ones are left out.
VALUE = 64 * 1024
#: Causes of causes, and groups in groups, that are followed.
DEPTH = 5
#: Members of a group, and notes, that are kept.
MEMBERS = 50
#: Exceptions in one record, all causes and members counted.
TOTAL = 200

#: The frames of a traceback that are looked at, from the last.
_FRAMES = 200


def record(exc: BaseException) -> Record:
    """What is kept of *exc*, as plain JSON."""
    return _record(exc, 0, iter(range(TOTAL - 1)))


def dump(exc: BaseException) -> bytes:
    """The record of *exc* as JSON text, as it is stored."""
    return orjson.dumps(record(exc))


def rebuild(stored: Record | bytes | None) -> BaseException:
    """The exception of a record or of its JSON text.

    It has the type of the original, if that can be imported and is an `Exception`; else it is a
    `RecordedFailure`.
    """
    return _rebuild(_read(stored), 0)


def summary(stored: Record | bytes | None) -> str:
    """What a record or its JSON text says in short: its message, or the name of its type."""
    found = _read(stored)
    return _text(found, "text") or _dotted(_text(found, "type"))


def headline(stored: Record | bytes | None) -> str:
    """What a record or its JSON text says, with the name of its type: nothing is imported."""
    found = _read(stored)
    name, text = _text(found, "type").rpartition(":")[2].rpartition(".")[2], _text(found, "text")
    return f"{name or 'a failure'}: {text}" if text else name or "a failure"


def told(exc: BaseException, limit: int = 1000) -> str:
    """What people are told of *exc*: ``Type: message``. It never raises, whatever *exc* does."""
    text = message_of(exc)
    name = type(exc).__name__
    return (f"{name}: {text}" if text else name)[:limit]


def outcome(call: Call) -> str:
    """What came of the newest attempt of a call, as states are named."""
    if call.phase is StateType.CANCELLED:
        return "Cancelled"
    if call.phase is StateType.COMPLETED and (call.own or call.error is None):
        return "Completed"
    if isinstance(call.error, WorkerLost):
        return "Crashed"
    return "TimedOut" if isinstance(call.error, TaskTimeout) else "Failed"


def note(exc: BaseException, text: str) -> None:
    """Add a note to *exc*, if it takes notes: a frozen one refuses."""
    with suppress(Exception):
        exc.add_note(text)


def note_attempts(
    exc: BaseException, who: str, past: Sequence[str], attempt: int, reason: str
) -> None:
    """Tell on the last exception of *who* what became of its attempts, and why it was the last.

    Args:
        past: one line for each earlier attempt that failed.
        attempt: the number of the last one.
        reason: why no other follows though there could be one; "" if there could be none.
    """
    if not past and not reason:
        return
    lines = [*past, f"attempt {attempt}: {told(exc, 500)}"]
    text = f"asyncflow: {who} failed in {len(lines)} attempt{'s' if len(lines) > 1 else ''}"
    if reason:
        text += f" ({reason})"
    note(exc, text + ":\n  " + "\n  ".join(lines))


def blame(exc: BaseException, call: Call) -> None:
    """Remember on *exc* that it is how *call* ended: a resume runs again what ended a run."""
    blame_number(exc, call.run.pk, call.seq)


def blame_number(exc: BaseException, run: int, seq: int) -> None:
    """The same, of a call that is known by the pk of its run and its number."""
    mark = (run, seq)
    known: tuple[tuple[int, int], ...] = getattr(exc, _CALLS, ())
    if mark not in known:
        # An exception may refuse attributes; then its failure is replayed by a resume.
        with suppress(AttributeError, TypeError):
            setattr(exc, _CALLS, (*known, mark))


def blamed(exc: BaseException) -> set[tuple[int, int]]:
    """The calls (pk of the run, number) whose failure is part of *exc*."""
    found: set[tuple[int, int]] = set()
    seen: set[int] = set()
    open_: list[BaseException | None] = [exc]
    while open_:
        one = open_.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        found.update(getattr(one, _CALLS, ()))
        open_ += [one.__cause__, one.__context__]
        if isinstance(one, BaseExceptionGroup):
            open_ += one.exceptions
    return found


def mark_rolled_back(exc: BaseException, run: int, seq: int) -> None:
    """Remember on *exc* that the code which it left had undone what it did.

    Args:
        run, seq: pk of the run and number of the call whose code it is; 0 for the flow's own.
    """
    known: tuple[tuple[int, int], ...] = getattr(exc, _ROLLED_BACK, ())
    with suppress(AttributeError, TypeError):
        setattr(exc, _ROLLED_BACK, (*known, (run, seq)))


def is_rolled_back(exc: BaseException | None, run: int, seq: int) -> bool:
    """Whether the code of this call, or of the flow (0), had undone what it did."""
    return (run, seq) in getattr(exc, _ROLLED_BACK, ())


_CALLS = "__asyncflow_calls__"
_ROLLED_BACK = "__asyncflow_rolled_back__"
_OURS = frozenset({"__notes__", _CALLS, _ROLLED_BACK})


# --- recording --------------------------------------------------------------------------------


def _record(exc: BaseException, depth: int, budget: Iterator[int]) -> Record:
    cls = type(exc)
    made: Record = {
        "type": class_name(cls),
        "text": message_of(exc),
        "args": None,
        "state": _state(exc),
        "notes": _notes(exc),
        "traceback": _traceback(exc),
    }
    if isinstance(exc, BaseExceptionGroup):
        made["message"] = _clean(exc.message)
        made["members"] = members = []
        if depth < DEPTH:
            for member, _ in zip(exc.exceptions[:MEMBERS], budget, strict=False):
                members.append(_record(member, depth + 1, budget))
        made["missing"] = len(exc.exceptions) - len(members)
    else:
        made["args"] = _plain(_arguments(exc))
    _record_chain(exc, made, depth, budget)
    return made


def _record_chain(exc: BaseException, made: Record, depth: int, budget: Iterator[int]) -> None:
    """What a traceback would show above it: the cause, else what was being handled."""
    made["suppress"] = exc.__suppress_context__
    before = exc.__cause__
    name = "cause"
    if before is None and not exc.__suppress_context__:
        before, name = exc.__context__, "context"
    # The depth ends rings of causes, too.
    if before is not None and depth < DEPTH and next(budget, None) is not None:
        made[name] = _record(before, depth + 1, budget)


def message_of(exc: BaseException) -> str:
    try:
        return _clean(str(exc))
    except Exception as error:
        return f"<its message cannot be shown: __str__ raised {type(error).__name__}>"


def _clean(text: str, limit: int = TEXT) -> str:
    """*text* without lone surrogates, which JSON text cannot hold, and not too long."""
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _arguments(exc: BaseException) -> tuple[Any, ...]:
    """What it was made of. An OSError hides its file name from `args`."""
    if isinstance(exc, OSError):
        try:
            return cast("tuple[Any, ...]", exc.__reduce__()[1])
        except Exception:
            return exc.args
    return exc.args


def _state(exc: BaseException) -> dict[str, Any]:
    """Those of its attributes that can be stored."""
    state = {}
    for name, value in _attributes(exc).items():
        plain = _plain(value)
        if plain is not None and type(name) is str and name.isidentifier():
            state[name] = plain
    return state


def _attributes(exc: BaseException) -> dict[str, Any]:
    found = {name: value for name, value in vars(exc).items() if name not in _OURS}
    # Those of built-in types are not in its dict. Only where set: they are kept for messages.
    for base, names in _HIDDEN.items():
        if isinstance(exc, base):
            found |= {name: getattr(exc, name) for name in names}
    return found


#: Attributes of built-in types that are given by name, not among the arguments.
_HIDDEN: dict[type[BaseException], tuple[str, ...]] = {
    ImportError: ("name", "path"),
    NameError: ("name",),
    AttributeError: ("name",),
}


def _plain(value: Any) -> Any:
    """*value* as JSON of `asyncflow.codec`; None where there is none, or far too much."""
    try:
        text = codec.encode(value)
        return orjson.loads(text) if len(text) <= VALUE else None
    except Exception:
        return None


def _notes(exc: BaseException) -> list[str]:
    notes = getattr(exc, "__notes__", None)
    if type(notes) is not list:
        return []
    return [_clean(note) for note in notes[:MEMBERS] if type(note) is str]


def _traceback(exc: BaseException) -> str:
    try:
        text = "".join(traceback.format_tb(exc.__traceback__, limit=-_FRAMES))
    except Exception:
        return ""
    return _clean(text[-TRACEBACK:])


# --- rebuilding -------------------------------------------------------------------------------


def _read(stored: Any) -> Record:
    try:
        found = orjson.loads(stored) if isinstance(stored, bytes | str) else stored
    except ValueError:
        return {"type": "", "text": "its record is damaged"}
    return found if isinstance(found, dict) else {"type": "", "text": "nothing was recorded of it"}


def _rebuild(found: Record, depth: int) -> BaseException:
    try:
        exc: BaseException = _original(found, depth)
        str(exc)
    except (Exception, SystemExit):
        exc = _stand_in(found)
    try:
        _restore_chain(exc, found, depth)
        for note in found.get("notes") or ():
            exc.add_note(note)
    except Exception:
        return exc
    return exc


def _stand_in(found: Record) -> RecordedFailure:
    name = _dotted(_text(found, "type")) or "a failure"
    return RecordedFailure(name, _text(found, "text"), _text(found, "traceback"))


def _text(found: Record, key: str) -> str:
    value = found.get(key)
    return value if type(value) is str else ""


def _dotted(name: str) -> str:
    return name.replace(":", ".").removeprefix("builtins.")


def _original(found: Record, depth: int) -> Exception:
    """The exception itself.

    Raises:
        Exception: its type, or the record, does not allow it.
    """
    cls = codec.resolve(found["type"])
    if not issubclass(cls, Exception):
        raise TypeError("only an Exception may be raised again")
    if issubclass(cls, ExceptionGroup):
        return _group(cls, found, depth)
    args = found["args"]
    # Without its arguments it has its message, so that it is still caught as what it was.
    args = (found["text"],) if args is None else _value(args)
    exc = _instance(cls, args)
    _restore_state(exc, found)
    return exc


def _instance(cls: type[Exception], args: tuple[Any, ...]) -> Exception:
    """An instance of *cls*, made by no other code than that of its built-in base."""
    made = cls.__new__(cls, *args)
    base = next(base for base in cls.__mro__ if base.__module__ == "builtins")
    # A subclass may give its base other arguments than its own.
    with suppress(TypeError):
        # Built-in types keep parts of their arguments in attributes, which is done here.
        cast("Any", base).__init__(made, *args)
    if not isinstance(made, OSError):
        made.args = args
    return made


def _group(cls: type[Exception], found: Record, depth: int) -> Exception:
    members = [_rebuild(_read(member), depth + 1) for member in found["members"]]
    if depth > DEPTH:
        raise ValueError("deeper than any record is made")
    made = cast("Any", cls).__new__(cls, found["message"], members)
    _restore_state(made, found)
    if found.get("missing"):
        made.add_note(f"{found['missing']} more exceptions of this group were not recorded")
    return cast("Exception", made)


def _restore_state(exc: Exception, found: Record) -> None:
    for name, plain in (found.get("state") or {}).items():
        value = _value(plain)
        hidden = any(isinstance(exc, base) and name in names for base, names in _HIDDEN.items())
        if hidden:
            setattr(exc, name, value)
        else:
            exc.__dict__[name] = value


def _restore_chain(exc: BaseException, found: Record, depth: int) -> None:
    if depth > DEPTH:
        return
    if isinstance(found.get("cause"), dict):
        exc.__cause__ = _rebuild(found["cause"], depth + 1)
    if isinstance(found.get("context"), dict):
        exc.__context__ = _rebuild(found["context"], depth + 1)
    exc.__suppress_context__ = bool(found.get("suppress"))


def _value(plain: Any) -> Any:
    return codec.decode(orjson.dumps(plain))
