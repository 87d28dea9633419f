"""What a value is made of, and the identity that follows from it.

Two calls with equal inputs have equal fingerprints in every process, with every hash seed and on
every supported Python; inputs that differ, even only by type, have different ones. `apart` says
what a value that is not plain consists of; `asyncflow.codec` stores values by the same answer, so
a value read back has the fingerprint it had before.

Nothing here pickles, imports a module, keeps a value or asks for its hash or its equality.
"""

from __future__ import annotations

import struct
import sys
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import fields, is_dataclass
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, Flag
from fractions import Fraction
from functools import cached_property
from hashlib import blake2b
from marshal import dumps
from operator import itemgetter
from pathlib import PosixPath, PurePosixPath, PureWindowsPath, WindowsPath
from types import NoneType
from typing import Any, NamedTuple, TypeAlias
from uuid import UUID
from weakref import WeakKeyDictionary

from asyncflow.errors import NotSerializable
from asyncflow.naming import class_name

Token: TypeAlias = Callable[[object], bytes | None]
Step: TypeAlias = Callable[[Any], str]

#: Levels of containers, one in another, that are followed.
DEPTH = 200
TOO_DEEP = f"it contains itself, or is nested more than {DEPTH} deep"
SECRET = "secrets are not stored"  # noqa: S105 - a message

#: Canonical bytes up to this length are their own fingerprint.
RAW = 32

#: What `marshal` writes the same way everywhere, as long as the types are exactly these: it also
#: takes anything with a buffer, which is why types are compared before it is called.
SCALARS = frozenset({NoneType, bool, int, float, complex, str, bytes})

#: Marks what is not plain. No plain value holds an Ellipsis, so nothing can be mistaken for it.
_MARK = ...
#: The second version of the format has neither references nor a flag for interned strings, which
#: would make equal values differ.
_V = 2

_STR = {str}
#: What a defaultdict may make: found again by its name alone.
FACTORIES: dict[Any, str | None] = {None: None} | {
    kind: kind.__name__
    for kind in (
        bool,
        bytearray,
        bytes,
        complex,
        dict,
        float,
        frozenset,
        int,
        list,
        set,
        str,
        tuple,
    )
}


def fingerprint(value: Any, token: Token | None = None) -> bytes:
    """The identity of *value*: at most 33 bytes.

    Args:
        value: anything that `asyncflow.codec` can store.
        token: asked for every object that is not plain before anything else; the bytes that it
            gives stand for the object, None leaves it as it is.

    Raises:
        NotSerializable: *value* has no canonical form; it says which part, and its type.
    """
    try:
        return _seal(dumps(_norm(value, 0, token), _V))
    except Refused as refused:
        raise refused.told("value") from None
    except RecursionError:
        raise NotSerializable("value", name_of(type(value)), TOO_DEEP) from None


def inputs_fingerprint(
    args: tuple[Any, ...], kwargs: dict[str, Any], token: Token | None = None
) -> bytes:
    """The identity of the inputs of a call: at most 33 bytes. The order of *kwargs* is nothing.

    Raises:
        NotSerializable: an input has no canonical form; it says which part, and its type.
    """
    if not kwargs and SCALARS.issuperset(map(type, args)):
        # Written out, not called: every call of a task comes through here.
        raw = dumps(args, _V)
        return b"r" + raw if len(raw) <= RAW else b"h" + blake2b(raw, digest_size=16).digest()
    return _seal(dumps(_call(args, kwargs, token), _V))


def shown_inputs(fingerprint: bytes) -> str:
    """The inputs that a fingerprint was made of, for people; "" where it does not hold them.

    Fingerprints come from files that others may have written, so they are read here and not by
    `marshal`, which trusts its input.
    """
    if not fingerprint.startswith(b"r"):
        return ""
    try:
        inputs, end = _shown(fingerprint, 1)
    except (ValueError, IndexError, struct.error):
        return ""
    return inputs if end == len(fingerprint) else ""


def _shown(data: bytes, at: int) -> tuple[str, int]:
    """The scalars, tuples and lists that `marshal` has written there, as text."""
    kind, at = data[at : at + 1], at + 1
    match kind:
        case b"N" | b"T" | b"F":
            return {b"N": "None", b"T": "True", b"F": "False"}[kind], at
        case b"i":
            return str(struct.unpack_from("<i", data, at)[0]), at + 4
        case b"l":
            digits = struct.unpack_from("<i", data, at)[0]
            parts = struct.unpack_from(f"<{abs(digits)}H", data, at + 4)
            value = sum(part << 15 * n for n, part in enumerate(parts))
            return str(value if digits > 0 else -value), at + 4 + 2 * abs(digits)
        case b"g":
            return repr(struct.unpack_from("<d", data, at)[0]), at + 8
        case b"s" | b"u":
            size = struct.unpack_from("<I", data, at)[0]
            raw = data[at + 4 : at + 4 + size]
            text = raw.decode("utf-8", "surrogatepass") if kind == b"u" else raw
            return repr(text), at + 4 + size
        case b"(" | b"[":
            size, at = struct.unpack_from("<I", data, at)[0], at + 4
            items = []
            for _ in range(size):
                item, at = _shown(data, at)
                items.append(item)
            inside = ", ".join(items)
            return (f"({inside})" if kind == b"(" else f"[{inside}]"), at
    raise ValueError(kind)


def _call(args: tuple[Any, ...], kwargs: dict[str, Any], token: Token | None) -> Any:
    path = "args"
    try:
        first = args
        if not SCALARS.issuperset(map(type, args)):
            first = tuple(_norm_items(args, 0, token))
        if not kwargs:
            return first
        names = sorted(kwargs)
        values = list(map(kwargs.__getitem__, names))
        if not SCALARS.issuperset(map(type, values)):
            values.clear()
            for path in names:
                values.append(_norm(kwargs[path], 0, token))
    except Refused as refused:
        raise refused.told(path) from None
    except RecursionError:
        raise NotSerializable(path, "value", TOO_DEEP) from None
    return _MARK, "call", first, tuple(names), values


def _seal(raw: bytes) -> bytes:
    """The first letter keeps short inputs from being mistaken for the digest of longer ones."""
    return b"r" + raw if len(raw) <= RAW else b"h" + blake2b(raw, digest_size=16).digest()


# --- the canonical form: scalars in tuples and lists ------------------------------------------


def _norm(value: Any, depth: int, token: Token | None) -> Any:
    kind = type(value)
    if kind in SCALARS:
        return value
    if depth >= DEPTH:
        raise Refused(value, TOO_DEEP)
    if kind is list or kind is tuple:
        if SCALARS.issuperset(map(type, value)):
            return value
        return kind(_norm_items(value, depth + 1, token))
    if kind is dict:
        return _norm_dict(value, depth + 1, token, "dict")
    if kind is set or kind is frozenset:
        return _MARK, kind.__name__, _norm_set(value, depth + 1, token)
    if token is not None and (stands := token(value)) is not None:
        return _MARK, "token", stands
    if kind is OrderedDict:
        pairs = list(value.items())
        return _MARK, "OrderedDict", [_norm_pair(k, v, depth + 1, token) for k, v in pairs]
    if kind is defaultdict:
        return _norm_dict(value, depth + 1, token, f"defaultdict of {factory_of(value)}")
    tag, cls, step, content = apart(value)
    named = None if cls is None else class_name(cls)
    if type(content) is list:
        return _MARK, tag, named, _norm_items(content, depth + 1, token, step)
    if type(content) is dict:
        # A model with a default set by hand equals one that left it out.
        content = {k: v for k, v in content.items() if k != "__pydantic_fields_set__"}
        return _MARK, tag, named, _norm_dict(content, depth + 1, token, "fields", step)
    return _MARK, tag, named, _norm(content, depth + 1, token)


def _norm_items(
    items: Iterable[Any], depth: int, token: Token | None, step: Step | None = None
) -> list[Any]:
    done: list[Any] = []
    try:
        for item in items:
            # Not a comprehension: the length of what is done tells where it failed.
            done.append(item if type(item) in SCALARS else _norm(item, depth, token))  # noqa: PERF401 - quicker
    except Refused as refused:
        refused.steps.append((step or item_step)(len(done)))
        raise
    return done


def _norm_dict(
    value: dict[Any, Any], depth: int, token: Token | None, tag: str, step: Step | None = None
) -> Any:
    if value and set(map(type, value)) != _STR:
        pairs = [_norm_pair(k, v, depth, token) for k, v in value.items()]
        # Only bytes compare whatever the keys are.
        keyed = sorted(((dumps(k, _V), v) for k, v in pairs), key=itemgetter(0))
        return _MARK, "map", tag, keyed
    names = sorted(value)
    values = list(map(value.__getitem__, names))
    if not SCALARS.issuperset(map(type, values)):
        values = _norm_items(values, depth, token, lambda at: (step or key_step)(names[at]))
    return _MARK, tag, names, values


def _norm_pair(key: Any, value: Any, depth: int, token: Token | None) -> tuple[Any, Any]:
    try:
        return _norm(key, depth, token), _norm(value, depth, token)
    except Refused as refused:
        refused.steps.append(key_step(key))
        raise


def _norm_set(value: Iterable[Any], depth: int, token: Token | None) -> list[bytes]:
    try:
        return sorted([dumps(_norm(item, depth, token), _V) for item in value])
    except Refused as refused:
        refused.steps.append("{...}")
        raise


# --- refusals ---------------------------------------------------------------------------------


class Refused(Exception):
    """A part of a value cannot be told apart; `steps` lead to it, the innermost first."""

    def __init__(self, value: object, reason: str = "") -> None:
        super().__init__(reason)
        self.type_name = name_of(type(value))
        self.reason = reason
        self.steps: list[str] = []

    def told(self, path: str) -> NotSerializable:
        """The same for the user: *path* is what the whole value is called."""
        steps = self.steps[::-1]
        if len(steps) > 12:
            steps[6:-6] = ["..."]
        return NotSerializable(path + "".join(steps), self.type_name, self.reason)


def name_of(cls: type) -> str:
    """The dotted name of a type, without ``builtins``."""
    name = cls.__qualname__
    return name if cls.__module__ == "builtins" else f"{cls.__module__}.{name}"


def item_step(at: Any) -> str:
    """The step to an item of a sequence."""
    return f"[{at}]"


def field_step(name: Any) -> str:
    """The step to an attribute."""
    return f".{name}"


def key_step(key: Any) -> str:
    """The step to the value of a key."""
    if type(key) in SCALARS:
        text = repr(key)
        return f"[{text if len(text) <= 60 else text[:57] + '...'}]"
    return f"[<{type(key).__name__}>]"


# --- what other values are made of ------------------------------------------------------------


class Parts(NamedTuple):
    """What a value that is not plain consists of.

    Attributes:
        tag: its kind.
        cls: its class, where the kind does not say it.
        step: how a path goes on to a part; None: to the item of its number.
        content: a list of parts, a dict of named parts, or one part.
    """

    tag: str
    cls: type | None
    step: Step | None
    content: Any


Taker: TypeAlias = Callable[[Any], Parts]

#: Classes that plug-ins know: to a plain value, and back.
REGISTERED: dict[type, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {}

_FAMILIES: WeakKeyDictionary[type, Taker] = WeakKeyDictionary()


def apart(value: Any) -> Parts:
    """What *value*, neither plain nor a dict or set, consists of.

    Raises:
        Refused: its type is not known.
    """
    kind = type(value)
    if kind in REGISTERED:
        return _take_registered(value)
    taker = _TAKERS.get(kind) or _FAMILIES.get(kind)
    if taker is None:
        taker = _FAMILIES[kind] = _family(kind, value)
    return taker(value)


def _family(kind: type, value: Any) -> Taker:
    """How to take apart the instances of a class that is not in the table."""
    if issubclass(kind, Enum):
        return _take_enum
    if is_namedtuple(kind):
        return _take_namedtuple
    if is_model(kind):
        return _take_model
    if is_dataclass(kind):
        return _take_dataclass
    special = _pydantic_family(kind, value) or _numpy_family(kind)
    if special is not None:
        return special
    zoneinfo = sys.modules.get("zoneinfo")
    if zoneinfo is not None and kind is zoneinfo.ZoneInfo:
        return _take_zone
    raise Refused(value)


def _take_registered(value: Any) -> Parts:
    kind = type(value)
    try:
        plain = REGISTERED[kind][0](value)
    except Exception as error:
        raise Refused(value, f"its plug-in raised {type(error).__name__}") from error
    return Parts("plugin", kind, lambda _: "", [plain])


def _take_enum(value: Enum) -> Parts:
    cls, name = type(value), value._name_
    if name is not None and cls.__members__.get(name) is value:
        return Parts("enum", cls, None, name)
    if isinstance(value, Flag):
        return Parts("flag", cls, None, value._value_)
    raise Refused(value, "it is no member of its own class")


def is_namedtuple(cls: type) -> bool:
    """Whether *cls* was made by `collections.namedtuple` or `typing.NamedTuple`."""
    names = getattr(cls, "_fields", None)
    return (
        issubclass(cls, tuple)
        and type(names) is tuple
        and all(type(name) is str for name in names)
        and callable(getattr(cls, "_make", None))
    )


def _take_namedtuple(value: Any) -> Parts:
    cls = type(value)
    names: tuple[str, ...] = cls._fields
    if getattr(value, "__dict__", None) or len(names) != len(value):
        raise Refused(value, "it holds more than its fields")
    return Parts("namedtuple", cls, lambda at: f".{names[at]}", list(tuple.__iter__(value)))


def _take_dataclass(value: Any) -> Parts:
    cls = type(value)
    state = _state(value)
    for field in fields(cls):
        if field.init and field.name not in state and not hasattr(cls, field.name):
            raise Refused(value, f"its field {field.name!r} has no value")
    return Parts("dataclass", cls, field_step, state)


def _state(value: Any) -> dict[str, Any]:
    """All attributes, in slots or not: what ``__init__`` and ``__post_init__`` left behind."""
    cls = type(value)
    try:
        object.__new__(cls)
    except TypeError:
        # It extends list, dict or the like: its items are not among its attributes.
        raise Refused(value, "it is a dataclass that extends a built-in type") from None
    # Not its own __getstate__: a frozen one with slots gives a bare list of values.
    found: Any = object.__getstate__(value)  # type: ignore[attr-defined,unused-ignore] # from 3.11 on, which stubs forget
    inside, slots = found if type(found) is tuple else (found, None)
    return _lasting(cls, {**(inside or {}), **(slots or {})})


def _lasting(cls: type, state: dict[str, Any]) -> dict[str, Any]:
    """Without what a `cached_property` has left, which is worked out again when needed."""
    return {
        name: value
        for name, value in state.items()
        if not isinstance(getattr(cls, name, None), cached_property)
    }


def is_model(cls: type) -> bool:
    """Whether *cls* is a pydantic model. Where pydantic is not loaded nothing can be one."""
    main = sys.modules.get("pydantic.main")
    model = getattr(main, "BaseModel", None)
    return model is not None and issubclass(cls, model)


def _take_model(value: Any) -> Parts:
    cls = type(value)
    state = value.__getstate__()
    content = {name: part for name, part in state.items() if name != "__dict__"}
    return Parts("model", cls, field_step, {**_lasting(cls, state["__dict__"]), **content})


def _pydantic_family(kind: type, value: Any) -> Taker | None:
    types = sys.modules.get("pydantic.types")
    secret = getattr(types, "_SecretBase", None)
    if secret is not None and issubclass(kind, secret):
        raise Refused(value, SECRET)
    core = sys.modules.get("pydantic_core")
    if core is not None and kind is getattr(core, "TzInfo", None):
        # What models put into the datetimes that they have parsed.
        return lambda zone: Parts("TzInfo", None, None, int(zone.utcoffset(None).total_seconds()))
    return None


def _numpy_family(kind: type) -> Taker | None:
    numpy = sys.modules.get("numpy")
    if numpy is None or not hasattr(numpy, "ndarray"):
        return None
    if kind is numpy.ndarray:
        return _take_array
    if issubclass(kind, numpy.generic) and numpy.dtype(kind).type is kind:
        return lambda value: Parts("numpy", None, None, [_dtype(value), value.tobytes()])
    return None


def _take_array(value: Any) -> Parts:
    return Parts("ndarray", None, None, [_dtype(value), list(value.shape), value.tobytes()])


def _dtype(value: Any) -> str:
    """The name of a dtype whose bytes are the values, on every machine."""
    dtype = value.dtype
    text: str = dtype.str
    # Pointers, bytes that differ between machines, and fields or extensions that the name hides.
    if dtype.kind in "OT" or dtype.char in "gG" or sys.modules["numpy"].dtype(text) != dtype:
        raise Refused(value, f"arrays of dtype {dtype} are not supported")
    return text


def _take_zone(value: Any) -> Parts:
    if value.key is None:
        raise Refused(value, "a time zone read from a file has no name")
    return Parts("ZoneInfo", None, None, value.key)


def _take_timezone(value: Any) -> Parts:
    offset, *name = value.__getinitargs__()
    return Parts("timezone", None, None, [offset, *name])


def _take_datetime(value: datetime) -> Parts:
    naive = value.replace(tzinfo=None, fold=0)
    return Parts("datetime", None, None, [naive.isoformat(), value.fold, value.tzinfo])


def _take_time(value: time) -> Parts:
    naive = value.replace(tzinfo=None, fold=0)
    return Parts("time", None, None, [naive.isoformat(), value.fold, value.tzinfo])


def _take_timedelta(value: timedelta) -> Parts:
    return Parts("timedelta", None, None, [value.days, value.seconds, value.microseconds])


def _take_path(value: Any) -> Parts:
    return Parts("path", None, None, [type(value).__name__, str(value)])


#: How the values of these very types are taken apart.
_TAKERS: dict[type, Taker] = {
    bytearray: lambda value: Parts("bytearray", None, None, bytes(value)),
    complex: lambda value: Parts("complex", None, None, [value.real, value.imag]),
    Decimal: lambda value: Parts("Decimal", None, None, str(value)),
    Fraction: lambda value: Parts("Fraction", None, None, [value.numerator, value.denominator]),
    datetime: _take_datetime,
    date: lambda value: Parts("date", None, None, value.isoformat()),
    time: _take_time,
    timedelta: _take_timedelta,
    timezone: _take_timezone,
    UUID: lambda value: Parts("UUID", None, None, value.hex),
    range: lambda value: Parts("range", None, None, [value.start, value.stop, value.step]),
    PosixPath: _take_path,
    PurePosixPath: _take_path,
    WindowsPath: _take_path,
    PureWindowsPath: _take_path,
}


def factory_of(value: defaultdict[Any, Any]) -> str | None:
    """The name of what a defaultdict makes.

    Raises:
        Refused: it is not a built-in type.
    """
    try:
        return FACTORIES[value.default_factory]
    except (KeyError, TypeError):
        raise Refused(value, "its default_factory is not a built-in type") from None
