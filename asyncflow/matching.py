"""What an event must be like: its name, and conditions on its fields, made ready once.

A pattern is exact text, a glob (``*``, ``?``, ``[ab]``), or ``!`` and one of these for "not".
Several patterns are alternatives; those with ``!`` must all hold. A field that is not there meets
no pattern but a negated one. States are compared in any case, everything else exactly.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import translate
from typing import Any

from asyncflow.states import NAMES, StateType, default_name

#: The fields of an event that conditions may name, beside ``payload.x.y``.
FIELDS = (
    "flow", "deployment", "run_id", "run_name", "state", "state_name", "task", "tags", "schedule",
)  # fmt: skip

FLOW_RUN = "flow-run"
TASK_RUN = "task-run"
#: What has states; their changes are events such as ``flow-run.Failed``.
KINDS = (FLOW_RUN, TASK_RUN)

#: What may follow ``flow-run.`` in a pattern: the types of states, and the names that refine them.
STATES = (*(default_name(type_) for type_ in StateType), *NAMES)

#: Fields whose values are compared in any case.
_ANY_CASE = ("state", "state_name")

Test = Callable[[Any], bool]


def event_name(kind: str, type_: StateType) -> str:
    """What the event is called by which a run enters a state, such as ``flow-run.Failed``.

    The type of the state decides, not its name: whoever expects failures is told of a TimedOut.
    """
    return f"{kind}.{default_name(type_)}"


def names_of(name: str, fields: Mapping[str, Any]) -> tuple[str, ...]:
    """All the names that an event answers to: a time-out is a ``flow-run.Failed`` and a
    ``flow-run.TimedOut``, whichever of them it was stored under."""
    kind = name.partition(".")[0]
    if kind not in KINDS:
        return (name,)
    names = [name]
    state, state_name = fields.get("state"), fields.get("state_name")
    if isinstance(state, str):
        names.append(f"{kind}.{state.capitalize()}")
    if isinstance(state_name, str):
        names.append(f"{kind}.{state_name}")
    return tuple(dict.fromkeys(names))


def is_glob(pattern: str) -> bool:
    return any(c in pattern for c in "*?[")


def is_negated(pattern: Any) -> bool:
    return isinstance(pattern, str) and pattern.startswith("!")


class Names:
    """The names of events that are expected."""

    __slots__ = ("_exact", "_globs")

    def __init__(self, patterns: Iterable[str]) -> None:
        patterns = tuple(patterns)
        self._exact = frozenset(patterns)
        self._globs = tuple(re.compile(translate(p)).match for p in patterns if is_glob(p))

    def hit(self, names: Sequence[str]) -> bool:
        """Whether one of the *names* of an event is expected."""
        if not self._exact.isdisjoint(names):
            return True
        for matches in self._globs:
            for name in names:
                if matches(name):
                    return True
        return False


class Conditions:
    """What the fields of an event must be: all of it."""

    __slots__ = ("_nested", "_plain")

    def __init__(self, match: Mapping[str, Any]) -> None:
        tests = [(key, _test_of(key, value)) for key, value in match.items()]
        self._plain = tuple((key, test) for key, test in tests if "." not in key)
        self._nested = tuple((tuple(key.split(".")), test) for key, test in tests if "." in key)

    def hold(self, fields: Mapping[str, Any]) -> bool:
        for key, test in self._plain:
            if not test(fields.get(key)):
                return False
        for path, test in self._nested:  # noqa: SIM110 - a generator costs more
            if not test(at_path(fields, path)):
                return False
        return True


def at_path(fields: Mapping[str, Any], path: Sequence[str]) -> Any:
    """The value of a field, such as ``("payload", "x")``; None where there is none."""
    value: Any = fields
    for name in path:
        # First what it is nearly always: asking an abstract class is slow.
        if not isinstance(value, dict) and not isinstance(value, Mapping):
            return None
        value = value.get(name)
    return value


def _test_of(key: str, patterns: Any) -> Test:
    """A function that tells whether a value meets the patterns of one key."""
    many = tuple(patterns) if isinstance(patterns, list | tuple) else (patterns,)
    fold = key in _ANY_CASE
    wanted = _any_of([p for p in many if not is_negated(p)], fold)
    refused = _any_of([p[1:] for p in many if is_negated(p)], fold)

    def test(value: Any) -> bool:
        if not isinstance(value, list | tuple | set | frozenset):
            return not (refused and refused(value)) and (wanted is None or wanted(value))
        if refused is not None:
            for one in value:
                if refused(one):
                    return False
        if wanted is None:
            return True
        for one in value:
            if wanted(one):
                return True
        return not value and wanted(None)  # like a field that is not there

    return test


def _any_of(patterns: Sequence[Any], fold: bool) -> Test | None:
    """A function that tells whether one value meets one of these; None when there are none."""
    if not patterns:
        return None
    words = [p.casefold() if fold else p for p in patterns if isinstance(p, str)]
    exact = frozenset(words)
    globs = tuple(re.compile(translate(w)).match for w in words if is_glob(w))
    others = [p for p in patterns if not isinstance(p, str)]

    def test(value: Any) -> bool:
        if isinstance(value, str):
            text = value.casefold() if fold else value
        else:
            # True is no 1, and 1 is 1.0.
            for other in others:
                if value == other and isinstance(value, bool) is isinstance(other, bool):
                    return True
            if isinstance(value, bool):
                text = "true" if value else "false"
            elif isinstance(value, int | float):
                text = str(value)
            else:
                return False
        if text in exact:
            return True
        for matches in globs:  # noqa: SIM110 - as above
            if matches(text):
                return True
        return False

    return test
