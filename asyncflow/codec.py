"""Values as JSON text, and back: what is read is what was written, type for type.

What JSON knows is written as it is; everything else as an object with the key ``$``, such as
``{"$": "tuple", "v": [1, 2]}``. The text says which class an object had, never how to make it:
reading calls no function that is named in the data, runs no ``__init__`` and no validator, and
takes a class only if it is a dataclass, a model, an enum, a named tuple or registered.

How large a value may be is decided elsewhere.
"""

from __future__ import annotations

import struct
import sys
from binascii import a2b_base64, b2a_base64
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import MISSING, fields, is_dataclass
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, Flag
from fractions import Fraction
from importlib import import_module
from itertools import chain
from math import isfinite, prod
from pathlib import PosixPath, PurePosixPath, PureWindowsPath, WindowsPath
from reprlib import Repr
from types import MemberDescriptorType, NoneType
from typing import Any, TypeAlias, TypeVar
from uuid import UUID
from zlib import crc32

import orjson

from asyncflow.canonical import (
    DEPTH,
    FACTORIES,
    REGISTERED,
    SCALARS,
    TOO_DEEP,
    Refused,
    Step,
    apart,
    factory_of,
    is_model,
    is_namedtuple,
    item_step,
    key_step,
    name_of,
)
from asyncflow.errors import InvalidDefinition, NotSerializable, ResultUnreadable
from asyncflow.naming import class_name, modules_called

T = TypeVar("T")
Builder: TypeAlias = Callable[[Any, Any], Any]

_dumps = orjson.dumps
_loads = orjson.loads

#: JSON scalars that orjson writes exactly or not at all.
_SURE = frozenset({NoneType, bool, int, str})
#: ... and the one that it may turn into null.
_PLAIN = _SURE | {float}
_NESTING = frozenset({list, dict})
_PLAIN_OR_NESTING = _PLAIN | _NESTING
#: Items of one level beyond which the lists and dicts among them are told apart.
_MANY = 5_000

_values = dict.values

#: What the text has of a dict with the key ``$``. No string holds it: its quotes are escaped.
_KEY = b'"$":'

#: Bytes that `seal` puts before what it seals. No JSON text and no pickle begins as they do.
_SEAL = len(b"#00000000 ")

_NAN = struct.pack(">d", float("nan"))


def encode(value: Any, path: str = "result") -> bytes:
    """*value* as JSON text.

    Args:
        value: what to write.
        path: what it is called where a part of it is refused.

    Raises:
        NotSerializable: it, or a part of it, cannot be stored; it says which, and its type.
    """
    kind = type(value)
    try:
        if kind is str or kind is int:
            return _dumps(value)
        if value is None:
            return b"null"
        if kind is list or kind is dict:
            floats = _survey(value)
            if floats is not None:
                text = _dumps(value)
                # orjson writes nan and inf as null: without a null there was none of them.
                if _KEY not in text and (not floats or b"null" not in text or _finite(floats)):
                    return text
        elif kind is bool or (kind is float and value - value == 0.0):
            return _dumps(value)
    except TypeError:
        pass  # an int beyond 64 bits, a lone surrogate, a key that is no str
    return _encode_slowly(value, path)


def decode(data: bytes) -> Any:
    """The value that `encode` has written.

    Raises:
        ResultUnreadable: *data* is damaged, or names a class that is not there any more.
    """
    try:
        tree = _loads(data)
    except ValueError as error:
        raise ResultUnreadable(
            f"a stored value is damaged: it is not JSON ({error}): restore the database from a"
            " backup, or run the call again"
        ) from error
    kind = type(tree)
    if (kind is not dict and kind is not list) or _KEY not in data:
        return tree
    try:
        return _lift(tree)
    except RecursionError:
        raise ResultUnreadable("a stored value is damaged: it is nested too deep") from None


def seal(data: bytes) -> bytes:
    """*data* as it is stored: with a check sum before it, by which damage is seen.

    ``#``, eight digits and a space: whoever looks into the database still reads the text.
    """
    return b"#%08x " % crc32(data) + data


def unseal(stored: bytes) -> bytes:
    """What `seal` was given. What has no check sum, as older versions wrote it, is taken as it is.

    Raises:
        ResultUnreadable: *stored* is not what was written.
    """
    if stored[:1] != b"#":
        return stored
    data = stored[_SEAL:]
    if stored[:_SEAL] != b"#%08x " % crc32(data):
        raise ResultUnreadable(
            "it is damaged, its check sum does not fit: restore the database from a backup, or"
            " run the call again in a new run"
        )
    return data


def is_sound(stored: bytes) -> bool:
    """Whether what was sealed is what was stored; also of what has no check sum."""
    try:
        unseal(stored)
    except ResultUnreadable:
        return False
    return True


def unsealed(stored: bytes) -> bytes:
    """What was sealed, or is left of it, for people: nothing is checked."""
    return stored[_SEAL:] if stored[:1] == b"#" else stored


def register(cls: type[T], to_plain: Callable[[T], Any], from_plain: Callable[[Any], T]) -> None:
    """Let instances of exactly *cls* be stored.

    Args:
        cls: the class. It must be registered before a stored value of it is read, best in the
            module that defines it.
        to_plain: gives a value that can be stored, for an instance.
        from_plain: makes an instance of that value again.
    """
    if cls in SCALARS or cls in _BUILT_IN:
        raise InvalidDefinition(f"{name_of(cls)} is stored as it is: register a class of your own")
    REGISTERED[cls] = (to_plain, from_plain)


def describe(value: object, limit: int = 200) -> str:
    """A short repr of *value* for messages: one line, at most *limit* characters, never raises."""
    try:
        short = Repr()
        short.maxstring = short.maxother = short.maxlong = max(limit, 5)
        short.maxlist = short.maxtuple = short.maxdict = short.maxset = 20
        text = " ".join(short.repr(value).split())
        text = text.encode("utf-8", "backslashreplace").decode()
    except Exception:
        # Not cls.__name__: a metaclass may have replaced that, too.
        text = f"<{type.__dict__['__name__'].__get__(type(value))} object, whose repr fails>"
    return text if len(text) <= limit else text[: max(limit - 1, 0)] + "…"


# --- the fast way: look at the types, leave the rest to orjson --------------------------------


def _survey(value: Any) -> list[Any] | None:
    """The parts of a list or dict that have floats in them; None for what orjson cannot do.

    It goes down a level at a time: one look at the types of a whole level costs less than one
    call for each list and dict in it. Keys are not looked at: orjson refuses what is no str.
    """
    items: Any = value.values() if type(value) is dict else value
    floats: list[Any] = []
    for _ in range(DEPTH):
        kinds = set(map(type, items))
        if kinds <= _SURE:
            return floats
        if not kinds <= _PLAIN_OR_NESTING:
            return None
        if float in kinds:
            floats.append(items)
        items = _below(items, kinds)
    return None


def _below(items: Any, kinds: set[type]) -> list[Any]:
    """All that is in the lists and dicts among *items*."""
    if len(items) > _MANY:
        # A list that holds itself twice doubles with each level.
        items = {id(item): item for item in items if type(item) in _NESTING}.values()
    below: list[Any] = []
    if dict in kinds:
        below += chain.from_iterable(map(_values, [item for item in items if type(item) is dict]))
    if list in kinds:
        below += chain.from_iterable([item for item in items if type(item) is list])
    return below


def _finite(parts: list[Any]) -> bool:
    return all(all(map(isfinite, [x for x in part if type(x) is float])) for part in parts)


# --- the exact way: down to plain JSON --------------------------------------------------------


def _encode_slowly(value: Any, path: str) -> bytes:
    try:
        return _dumps(_lower(value, 0))
    except Refused as refused:
        raise refused.told(path) from refused.__cause__
    except RecursionError:
        raise NotSerializable(path, name_of(type(value)), TOO_DEEP) from None


def _lower(value: Any, depth: int) -> Any:
    """*value* in plain JSON. *depth* counts the levels of JSON, of which orjson allows 254."""
    kind = type(value)
    if value is None or kind is bool:
        return value
    if kind is str:
        return value if _is_utf8(value) else _lower_text(value)
    if kind is int:
        return value if -(2**63) <= value < 2**64 else {"$": "int", "v": hex(value)}
    if kind is float:
        return value if value - value == 0.0 else _lower_float(value)
    if kind is bytes:
        return {"$": "bytes", "v": b2a_base64(value, newline=False).decode("ascii")}
    if depth >= DEPTH - 3:
        # The deepest form below takes three levels.
        raise Refused(value, TOO_DEEP)
    if kind is list:
        return _lower_items(value, depth + 1)
    if kind is dict:
        return _lower_dict(value, depth)
    if kind is tuple:
        return {"$": "tuple", "v": _lower_items(value, depth + 2)}
    if kind is set or kind is frozenset:
        return {"$": kind.__name__, "v": _lower_items(value, depth + 2, lambda _: "{...}")}
    if kind is OrderedDict:
        return {"$": "OrderedDict", "v": _lower_pairs(value, depth + 3)}
    if kind is defaultdict:
        made = factory_of(value)
        return {"$": "defaultdict", "c": made, "v": _lower_pairs(value, depth + 3)}
    return _lower_other(value, depth)


def _lower_other(value: Any, depth: int) -> dict[str, Any]:
    tag, cls, step, content = apart(value)
    tree: dict[str, Any] = {"$": tag}
    if cls is not None:
        tree["c"] = _reference(value) if tag != "plugin" else class_name(cls)
    if type(content) is list:
        tree["v"] = _lower_items(content, depth + 2, step)
    elif type(content) is dict:
        tree["v"] = _lower_dict(content, depth + 1, step)
    else:
        tree["v"] = _lower(content, depth + 1)
    return tree


def _lower_text(value: str) -> dict[str, str]:
    return {"$": "str", "v": value.encode("unicode_escape").decode("ascii")}


def _lower_float(value: float) -> dict[str, str]:
    packed = struct.pack(">d", value)
    if value == value or packed == _NAN:
        return {"$": "float", "v": repr(value)}
    # Another nan: its bits count for the fingerprint of the calls that it is given to.
    return {"$": "float", "v": packed.hex()}


def _lower_items(items: Iterable[Any], depth: int, step: Step | None = None) -> list[Any]:
    done: list[Any] = []
    try:
        for item in items:
            # Not a comprehension: the length of what is done tells where it failed.
            plain = type(item) is str and item.isascii()  # saves most of the calls
            done.append(item if plain else _lower(item, depth))
    except Refused as refused:
        refused.steps.append((step or item_step)(len(done)))
        raise
    return done


def _lower_dict(value: dict[Any, Any], depth: int, step: Step | None = None) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    key: Any = None
    try:
        for key, item in value.items():
            if type(key) is not str or key == "$" or not (key.isascii() or _is_utf8(key)):
                break
            plain = type(item) is str and item.isascii()  # saves most of the calls
            tree[key] = item if plain else _lower(item, depth + 1)
        else:
            return tree
    except Refused as refused:
        refused.steps.append((step or key_step)(key))
        raise
    return {"$": "dict", "v": _lower_pairs(value, depth + 3)}


def _lower_pairs(value: dict[Any, Any], depth: int) -> list[list[Any]]:
    pairs: list[list[Any]] = []
    key: Any = None
    try:
        for key, item in value.items():
            pairs.append([_lower(key, depth), _lower(item, depth)])
    except Refused as refused:
        refused.steps.append(key_step(key))
        raise
    return pairs


def _is_utf8(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _reference(value: Any) -> str:
    """The name of the class of *value*, by which it will be found again."""
    cls = type(value)
    module = sys.modules.get(cls.__module__)
    if module is None or _walk(module, cls.__qualname__) is not cls:
        raise Refused(value, "its class cannot be found by its name: define it in a module")
    return class_name(cls)


# --- the way back -----------------------------------------------------------------------------


def _lift(tree: Any) -> Any:
    """The value of plain JSON. Lists and dicts are changed in place."""
    if type(tree) is list:
        for at, item in enumerate(tree):
            if type(item) in _NESTING:
                tree[at] = _lift(item)
    elif type(tree) is dict:
        if "$" in tree:
            return _build(tree)
        for key, item in tree.items():
            if type(item) in _NESTING:
                tree[key] = _lift(item)
    return tree


def _build(tree: dict[str, Any]) -> Any:
    tag = tree["$"]
    builder = _BUILDERS.get(tag) if type(tag) is str else None
    if builder is None:
        raise ResultUnreadable(
            f"a stored value has the unknown kind {describe(tag, 60)}: it is damaged, or was"
            " written by a newer asyncflow"
        )
    try:
        return builder(tree.get("c"), _lift(tree["v"]))
    except (ResultUnreadable, RecursionError):
        raise
    except Exception as error:
        raise ResultUnreadable(
            f"a stored {tag} is damaged, or its class has changed: {type(error).__name__}: {error}"
        ) from error


def resolve(name: str) -> type:
    """The class that is called *name*, as ``module:qualname``. Its module is imported if need be.

    Raises:
        ResultUnreadable: there is no such class.
    """
    module, colon, qualname = name.partition(":")
    try:
        if not (colon and module and qualname):
            raise LookupError("that is not the name of a class")
        for known in modules_called(module):
            found = _walk(known, qualname)
            if isinstance(found, type):
                return found
        found = _walk(import_module(module), qualname)
        if not isinstance(found, type):
            raise LookupError("there is no such class")
    except (Exception, SystemExit) as error:
        raise ResultUnreadable(
            f"the class {name!r} of a stored value cannot be found"
            f" ({type(error).__name__}: {error}): it was moved, renamed, or is not installed"
        ) from error
    return found


def _walk(module: Any, qualname: str) -> Any:
    """What *module* calls by *qualname*: only classes are entered, and only their own names."""
    found = getattr(module, qualname, None)  # a parametrised model, too, has its name in one piece
    if found is not None or "." not in qualname:
        return found
    first, *rest = qualname.split(".")
    found = getattr(module, first, None)
    for name in rest:
        found = found.__dict__.get(name) if isinstance(found, type) else None
    return found


def _class(name: Any, accept: Callable[[type], bool], what: str) -> Any:
    cls = resolve(name)
    if not accept(cls):
        raise ResultUnreadable(f"the class {name!r} of a stored value is not {what} any more")
    return cls


def _build_float(_: Any, text: str) -> float:
    if text in ("nan", "inf", "-inf"):
        return float(text)
    number: float = struct.unpack(">d", bytes.fromhex(text))[0]
    return number


def _build_datetime(_: Any, parts: Any) -> datetime:
    text, fold, zone = parts
    return datetime.fromisoformat(text).replace(tzinfo=zone, fold=fold)


def _build_time(_: Any, parts: Any) -> time:
    text, fold, zone = parts
    return time.fromisoformat(text).replace(tzinfo=zone, fold=fold)


def _build_zone(_: Any, key: str) -> Any:
    from zoneinfo import ZoneInfo

    return ZoneInfo(key)


def _build_pydantic_zone(_: Any, seconds: int) -> Any:
    return import_module("pydantic_core").TzInfo(seconds)


def _build_defaultdict(name: Any, pairs: Any) -> Any:
    made: dict[Any, Any] = defaultdict(_FACTORIES[name])
    made.update(pairs)
    return made


def _build_enum(name: Any, member: str) -> Any:
    return _class(name, lambda cls: issubclass(cls, Enum), "an enum").__members__[member]


def _build_flag(name: Any, value: int) -> Any:
    return _class(name, lambda cls: issubclass(cls, Flag), "a flag")(value)


def _build_namedtuple(name: Any, items: list[Any]) -> Any:
    cls = _class(name, is_namedtuple, "a named tuple")
    if len(items) != len(cls._fields):
        raise ResultUnreadable(f"a stored {name!r} has {len(items)} fields, not {cls._fields}")
    return tuple.__new__(cls, items)


def _build_dataclass(name: Any, state: dict[str, Any]) -> Any:
    cls = _class(name, is_dataclass, "a dataclass")
    made = object.__new__(cls)
    slots = {
        key: slot
        for base in cls.__mro__
        for key, slot in vars(base).items()
        if type(slot) is MemberDescriptorType
    }
    for field in fields(cls):
        if field.name not in state:
            _fill(state, field, name)
    for key, value in state.items():
        if key in slots:
            slots[key].__set__(made, value)
        else:
            made.__dict__[key] = value
    return made


def _fill(state: dict[str, Any], field: Any, name: str) -> None:
    """A field that the class has gained since takes its default."""
    if field.default is not MISSING:
        state[field.name] = field.default
    elif field.default_factory is not MISSING:
        state[field.name] = field.default_factory()
    elif field.init:
        raise ResultUnreadable(f"a stored {name!r} has no field {field.name!r}: the class changed")


def _build_model(name: Any, state: dict[str, Any]) -> Any:
    cls = _class(name, is_model, "a pydantic model")
    inner = {key: state.pop(key) for key in list(state) if key.startswith("__pydantic_")}
    for key, field in cls.__pydantic_fields__.items():
        if key not in state and not field.is_required():
            state[key] = field.get_default(call_default_factory=True)
    made = cls.__new__(cls)
    made.__setstate__({"__dict__": state, **inner})
    return made


def _build_plugin(name: Any, plain: list[Any]) -> Any:
    known = {class_name(cls): cls for cls in REGISTERED}
    # Where it is not known yet, importing its module may register it.
    cls = known.get(name) or resolve(name)
    if cls not in REGISTERED:
        raise ResultUnreadable(
            f"a stored {name!r} needs its plug-in: call asyncflow.codec.register before it is read"
        )
    return REGISTERED[cls][1](plain[0])


def _array(dtype: str, shape: list[int], data: bytes) -> Any:
    numpy: Any = import_module("numpy")
    kind, count = numpy.dtype(dtype), prod(shape)
    if kind.hasobject or kind.kind in "OT" or count * kind.itemsize != len(data):
        raise ValueError("the size does not fit")
    if not data:
        return numpy.empty(shape, kind)
    # A copy: what is read from bytes could not be written to.
    return numpy.frombuffer(bytearray(data), kind).reshape(shape)


_PATHS = {cls.__name__: cls for cls in (PosixPath, PurePosixPath, WindowsPath, PureWindowsPath)}
_FACTORIES = {name: kind for kind, name in FACTORIES.items()}
_BUILT_IN: frozenset[type] = frozenset(
    {list, dict, tuple, set, frozenset, OrderedDict, defaultdict}
)

_BUILDERS: dict[str, Builder] = {
    "int": lambda _, text: int(text, 16),
    "float": _build_float,
    "str": lambda _, text: text.encode("ascii").decode("unicode_escape"),
    "bytes": lambda _, text: a2b_base64(text, strict_mode=True),
    "bytearray": lambda _, data: bytearray(memoryview(data)),
    "tuple": lambda _, items: tuple(items),
    "set": lambda _, items: set(items),
    "frozenset": lambda _, items: frozenset(items),
    "dict": lambda _, pairs: dict(pairs),
    "OrderedDict": lambda _, pairs: OrderedDict(pairs),
    "defaultdict": _build_defaultdict,
    "complex": lambda _, parts: complex(*parts),
    "Decimal": lambda _, text: Decimal(text),
    "Fraction": lambda _, parts: Fraction(*parts),
    "datetime": _build_datetime,
    "date": lambda _, text: date.fromisoformat(text),
    "time": _build_time,
    "timedelta": lambda _, parts: timedelta(*parts),
    "timezone": lambda _, parts: timezone(*parts),
    "ZoneInfo": _build_zone,
    "TzInfo": _build_pydantic_zone,
    "UUID": lambda _, text: UUID(text),
    "path": lambda _, parts: _PATHS[parts[0]](parts[1]),
    "range": lambda _, parts: range(*parts),
    "enum": _build_enum,
    "flag": _build_flag,
    "namedtuple": _build_namedtuple,
    "dataclass": _build_dataclass,
    "model": _build_model,
    "plugin": _build_plugin,
    "ndarray": lambda _, parts: _array(*parts),
    "numpy": lambda _, parts: _array(parts[0], [1], parts[1])[0],
}
