"""What an automation is: a trigger that watches events, and actions that follow when it fires.

Values only: they check themselves when they are made, and go to JSON (or TOML tables) and back.
`triggers` decides when one fires, `loops` whether it would fire itself; neither is known here.
"""

from __future__ import annotations

import difflib
import inspect
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from math import isfinite
from typing import Any, ClassVar, TypeAlias, cast

from asyncflow.errors import InvalidOption
from asyncflow.matching import FIELDS, KINDS, STATES, is_glob, is_negated
from asyncflow.naming import module_name
from asyncflow.states import StateType, default_name, types_and_names

#: How deep composite triggers may be nested.
DEPTH = 3
#: How many triggers a composite, and how many actions an automation, may have.
PARTS = 10
ACTIONS = 20
#: The largest threshold.
THRESHOLD = 10_000
#: The longest pattern, name or text in characters; bodies of messages may be longer.
LONGEST = 1_000
LONGEST_BODY = 100_000
#: How deep the parameters of a run may be nested.
NESTED = 50
#: How many patterns one field, and how many fields one `match`, may have.
PATTERNS = 1_000
CONDITIONS = 50


class _Value:
    """What triggers and actions have in common."""

    #: What it is called in JSON and TOML.
    type: ClassVar[str]

    def to_dict(self) -> dict[str, Any]:
        """The value as JSON, with its `type`; `automation_from_dict` reads it back."""
        said: dict[str, Any] = {"type": self.type}
        for one in fields(cast("Any", self)):
            said[one.name] = _plain(getattr(self, one.name))
        return said

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def _bad(self, name: str, value: Any, remedy: str) -> InvalidOption:
        return InvalidOption(f"{type(self).__name__}: {name}={value!r}: {remedy}")


class _Trigger(_Value):
    #: What `triggers` has made of it, once.
    _plan: ClassVar[Any] = None


# --- triggers ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class EventTrigger(_Trigger):
    """Fires when an event was seen, or *threshold* of them within *within* seconds.

    The events of one firing do not count for the next. With a threshold of 1 each event that
    matches fires once.

    Args:
        expect: the name of the event, such as ``"flow-run.Failed"``, a glob such as
            ``"flow-run.*"``, or several of these. The type of a state counts, so that ``Failed``
            includes a run that timed out; the names ``TimedOut``, ``Cached``, ... can be
            expected as well.
        match: conditions on fields, all of which must hold; none by default.
        threshold: how many events it takes, 1 to 10,000.
        within: the window, in seconds, that must hold them; None for any time. Needs a
            threshold of 2 or more.
        for_each: fields by whose values events are counted apart.

    Raises:
        InvalidOption: a value makes no sense.
    """

    type: ClassVar[str] = "event"

    expect: str | Sequence[str]
    match: Mapping[str, Any] = field(default_factory=dict)
    threshold: int = 1
    within: float | None = None
    for_each: str | Sequence[str] = ()

    def __post_init__(self) -> None:
        threshold = self.threshold
        if not _is_int(threshold) or not 1 <= threshold <= THRESHOLD:
            raise self._bad("threshold", threshold, f"give a whole number, 1 to {THRESHOLD:,}")
        if self.within is not None and threshold == 1:
            raise self._bad("within", self.within, "a window needs a threshold of 2 or more")
        self._set(
            expect=_names(self, "expect", self.expect),
            match=_match(self, self.match),
            within=None if self.within is None else _seconds(self, "within", self.within),
            for_each=_labels(self, self.for_each),
        )


@dataclass(frozen=True)
class AbsenceTrigger(_Trigger):
    """Fires when something was expected and not seen within *within* seconds.

    With *after*: an event of that name was seen, and none that is expected followed in time; it
    fires once, and waits for the next such event. Without: nothing that is expected was seen for
    so long, from the moment that the automation is enabled; it fires once, until it is seen
    again. The same name for both is a heartbeat, told apart by *for_each*.

    Args:
        expect: the name of the event that must come, a glob, or several of these.
        within: for how many seconds it may be missing.
        after: the name of the event, a glob, or several, after which it must come.
        match: conditions on the fields of both events; none by default.
        for_each: fields by whose values events are told apart. Without *after*, a value counts
            from its first event.

    Raises:
        InvalidOption: a value makes no sense.
    """

    type: ClassVar[str] = "absence"

    expect: str | Sequence[str]
    within: float
    after: str | Sequence[str] | None = None
    match: Mapping[str, Any] = field(default_factory=dict)
    for_each: str | Sequence[str] = ()

    def __post_init__(self) -> None:
        self._set(
            expect=_names(self, "expect", self.expect),
            within=_seconds(self, "within", self.within),
            after=None if self.after is None else _names(self, "after", self.after),
            match=_match(self, self.match),
            for_each=_labels(self, self.for_each),
        )


@dataclass(frozen=True)
class DurationTrigger(_Trigger):
    """Fires when a flow run has stayed in a state for longer than it should, once for each stay.

    Args:
        state: the type of the state (``"Running"``, ``"Pending"``, ``"Paused"``, ...) or its name
            (``"AwaitingRetry"``, ``"NeedsAttention"``, ...), in any case.
        longer_than: for how many seconds a run may be in it; has to be given.
        match: conditions on the event by which the run enters the state; none by default.

    Raises:
        InvalidOption: a value makes no sense.
    """

    type: ClassVar[str] = "duration"

    state: str = "Running"
    longer_than: float = 0.0  # refused: it has to be said
    match: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        try:
            given: Any = self.state if isinstance(self.state, str) else [None]  # refused there
            types, names = types_and_names(given)
        except ValueError:
            raise self._bad("state", self.state, _one_of(self.state, STATES)) from None
        final = names[0] in _FINAL_NAMES if names else StateType(types[0]).is_final
        if final:
            raise self._bad("state", self.state, "a run stays in it for ever: give one it leaves")
        for key in ("state", "state_name", "task"):
            if isinstance(self.match, Mapping) and key in self.match:
                remedy = "a task is no flow run" if key == "task" else "say it with state="
                raise self._bad("match", self.match, f"{key!r} cannot be asked here: {remedy}")
        self._set(
            state=names[0] if names else default_name(StateType(types[0])),
            longer_than=_seconds(self, "longer_than", self.longer_than),
            match=_match(self, self.match),
        )


_FINAL_NAMES = ("Cached", "Edited", "Fallback", "Skipped", "TimedOut", "UpstreamFailed")


@dataclass(frozen=True)
class AllOf(_Trigger):
    """Fires when all of several triggers have fired, in any order, within *within* seconds.

    Triggers that have fields of `for_each` in common are told apart by these. After a firing all
    of them begin anew.

    Args:
        triggers: 2 to 10 triggers of any kind, nested at most three deep.
        within: the window, in seconds.

    Raises:
        InvalidOption: a value makes no sense.
    """

    type: ClassVar[str] = "all"

    triggers: Sequence[Trigger]
    within: float

    def __post_init__(self) -> None:
        self._set(triggers=_parts(self), within=_seconds(self, "within", self.within))


@dataclass(frozen=True)
class AnyOf(_Trigger):
    """Fires whenever one of several triggers does; once for an event that fires several.

    Args:
        triggers: 2 to 10 triggers of any kind, nested at most three deep.

    Raises:
        InvalidOption: a value makes no sense.
    """

    type: ClassVar[str] = "any"

    triggers: Sequence[Trigger]

    def __post_init__(self) -> None:
        self._set(triggers=_parts(self))


@dataclass(frozen=True)
class InSequence(_Trigger):
    """Fires when several triggers have fired one after the other, all within *within* seconds.

    What comes in between does not matter. One event is one step. Triggers that have fields of
    `for_each` in common are told apart by these. After a firing the sequence begins anew.

    Args:
        triggers: 2 to 10 triggers of any kind, nested at most three deep.
        within: the time from the first to the last, in seconds.

    Raises:
        InvalidOption: a value makes no sense.
    """

    type: ClassVar[str] = "sequence"

    triggers: Sequence[Trigger]
    within: float

    def __post_init__(self) -> None:
        self._set(triggers=_parts(self), within=_seconds(self, "within", self.within))


Trigger: TypeAlias = EventTrigger | AbsenceTrigger | DurationTrigger | AllOf | AnyOf | InSequence
COMPOSITES = (AllOf, AnyOf, InSequence)


def leaves(trigger: Trigger) -> Iterator[EventTrigger | AbsenceTrigger | DurationTrigger]:
    """The triggers in a trigger that are not made of others."""
    if isinstance(trigger, COMPOSITES):
        for part in trigger.triggers:
            yield from leaves(part)
    else:
        yield trigger


def depth(trigger: Trigger) -> int:
    """How many composites are in one another."""
    return (
        1 + max(depth(part) for part in trigger.triggers) if isinstance(trigger, COMPOSITES) else 0
    )


# --- actions ----------------------------------------------------------------------------------


class _Action(_Value):
    #: Whether code runs because of it, whose events may fire automations again.
    starts_runs: ClassVar[bool] = False


@dataclass(frozen=True)
class Notify(_Action):
    """Send a message. The channel decides how: by mail, chat, webhook, ...

    Args:
        channel: the name of the channel.
        subject: a template; by default the channel's own.
        body: a template; by default the channel's own.

    Raises:
        InvalidOption: a value makes no sense.
    """

    type: ClassVar[str] = "notify"

    channel: str
    subject: str | None = None
    body: str | None = None

    def __post_init__(self) -> None:
        _text(self, "channel", self.channel)
        for name, longest in (("subject", LONGEST), ("body", LONGEST_BODY)):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, str) or len(value) > longest):
                raise self._bad(name, value, f"give a text of up to {longest:,} characters")


@dataclass(frozen=True)
class RunDeployment(_Action):
    """Start a run of a deployment.

    Args:
        name: the deployment.
        parameters: of the run, as JSON; texts may be templates such as ``"{{ event.run_id }}"``.
            By default those of the deployment.
        delay_seconds: how long after the firing the run is to begin.

    Raises:
        InvalidOption: a value makes no sense.
    """

    type: ClassVar[str] = "run-deployment"
    starts_runs: ClassVar[bool] = True

    name: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    delay_seconds: float = 0.0

    def __post_init__(self) -> None:
        _text(self, "name", self.name)
        if "{{" in self.name:
            raise self._bad("name", self.name, "a deployment is named, it cannot be a template")
        parameters = self.parameters
        if not isinstance(parameters, Mapping):
            raise self._bad("parameters", parameters, "give a mapping of names to values")
        where = _not_json(parameters, "parameters")
        if where is not None:
            raise InvalidOption(f"RunDeployment: {where}, which is no JSON: give it as text")
        delay = self.delay_seconds
        if not _is_number(delay) or delay < 0:
            raise self._bad("delay_seconds", delay, "give seconds, 0 or more")
        # A copy of its own, with lists for tuples, as it will come back from JSON.
        self._set(parameters=json.loads(json.dumps(dict(parameters))), delay_seconds=float(delay))


@dataclass(frozen=True)
class CancelRun(_Action):
    """Cancel the flow run that the event is about."""

    type: ClassVar[str] = "cancel-run"


@dataclass(frozen=True)
class ResumeRun(_Action):
    """Resume the flow run that the event is about, under its id."""

    type: ClassVar[str] = "resume-run"
    starts_runs: ClassVar[bool] = True


@dataclass(frozen=True)
class _OfSchedules(_Action):
    deployment: str
    schedule: str | None = None

    def __post_init__(self) -> None:
        _text(self, "deployment", self.deployment)
        if self.schedule is not None:
            _text(self, "schedule", self.schedule)


@dataclass(frozen=True)
class PauseSchedule(_OfSchedules):
    """Pause the schedules of a deployment.

    Args:
        deployment: its name.
        schedule: one of its schedules; by default all of them.

    Raises:
        InvalidOption: a value makes no sense.
    """

    type: ClassVar[str] = "pause-schedule"


@dataclass(frozen=True)
class ResumeSchedule(_OfSchedules):
    """Let the schedules of a deployment go on.

    Args:
        deployment: its name.
        schedule: one of its schedules; by default all of them.

    Raises:
        InvalidOption: a value makes no sense.
    """

    type: ClassVar[str] = "resume-schedule"


@dataclass(frozen=True)
class SetLimit(_Action):
    """Change a named limit, as `engine.set_limit` does.

    Args:
        name: the limit; that of a tag is ``"tag:NAME"``.
        limit: its size; 0 pauses, None lifts it.
        period: with it, in seconds, the limit is a rate; by default it is of slots.

    Raises:
        InvalidOption: a value makes no sense.
    """

    type: ClassVar[str] = "set-limit"

    name: str
    limit: int | None
    period: float | None = None

    def __post_init__(self) -> None:
        _text(self, "name", self.name)
        if self.limit is not None and (not _is_int(self.limit) or self.limit < 0):
            raise self._bad("limit", self.limit, "give a whole number, 0 or more, or None")
        if self.period is not None:
            self._set(period=_seconds(self, "period", self.period))


@dataclass(frozen=True)
class CallFunction(_Action):
    """Call a function with the firing.

    Args:
        function: an async or plain function of a module, which takes one argument; or where it
            is, as ``"module:name"``. It is kept as this text.

    Raises:
        InvalidOption: a value makes no sense.
    """

    type: ClassVar[str] = "call-function"
    starts_runs: ClassVar[bool] = True

    function: str | Callable[[Any], Any]

    def __post_init__(self) -> None:
        given = self.function
        if isinstance(given, str):
            module, _, name = given.partition(":")
            if not all(part.isidentifier() for part in (*module.split("."), *name.split("."))):
                raise self._bad("function", given, "give where it is, as 'module:name'")
            return
        if not inspect.isfunction(given):
            raise self._bad("function", given, "give a plain or async function, or 'module:name'")
        if given.__name__ == "<lambda>" or "<locals>" in given.__qualname__:
            raise self._bad(
                "function", given, "it cannot be found again: declare it with def in a module"
            )
        try:
            inspect.signature(given).bind(None)
        except TypeError:
            raise self._bad("function", given, "it must take one argument, the firing") from None
        self._set(function=f"{module_name(given.__module__)}:{given.__qualname__}")


Action: TypeAlias = (
    Notify
    | RunDeployment
    | CancelRun
    | ResumeRun
    | PauseSchedule
    | ResumeSchedule
    | SetLimit
    | CallFunction
)


# --- the automation ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Automation:
    """What shall happen when something has happened, or has not.

    Args:
        name: tells it from others; one that is declared again replaces the old one.
        trigger: when it fires.
        actions: what follows, in order; one or several.
        description: for people.
        enabled: whether it watches.
        tags: for people, to find it by.

    Raises:
        InvalidOption: a value makes no sense.
    """

    name: str
    trigger: Trigger
    actions: Action | Sequence[Action]
    description: str = ""
    enabled: bool = True
    tags: Iterable[str] = ()

    def __post_init__(self) -> None:
        _text(self, "name", self.name)
        what = f"automation {self.name!r}"
        trigger: Any = self.trigger
        if not isinstance(trigger, _Trigger):
            known = ", ".join(cls.__name__ for cls in TRIGGERS.values())
            raise InvalidOption(f"{what}: trigger={trigger!r}: give one of {known}")
        actions: Any = (self.actions,) if isinstance(self.actions, _Action) else self.actions
        if not isinstance(actions, list | tuple) or not 1 <= len(actions) <= ACTIONS:
            raise InvalidOption(f"{what}: actions={actions!r}: give 1 to {ACTIONS} actions")
        for action in actions:
            if not isinstance(action, _Action):
                known = ", ".join(cls.__name__ for cls in KNOWN_ACTIONS.values())
                raise InvalidOption(f"{what}: actions has {action!r}: give some of {known}")
            if isinstance(action, CancelRun | ResumeRun) and not _is_about_a_run(self.trigger):
                raise InvalidOption(
                    f"{what}: {type(action).__name__} has no run to act on when nothing was seen:"
                    " give the AbsenceTrigger an after="
                )
        if not isinstance(self.description, str) or len(self.description) > LONGEST_BODY:
            raise InvalidOption(f"{what}: description={self.description!r}: give a text")
        if not isinstance(self.enabled, bool):
            raise InvalidOption(f"{what}: enabled={self.enabled!r}: give True or False")
        given: Any = self.tags
        tags = tuple(given) if isinstance(given, list | tuple | set | frozenset) else (None,)
        if not all(isinstance(tag, str) and tag for tag in tags):
            raise InvalidOption(f"{what}: tags={given!r}: give a list of names")
        object.__setattr__(self, "actions", tuple(actions))
        object.__setattr__(self, "tags", tuple(sorted(set(cast("tuple[str, ...]", tags)))))

    @property
    def starts_runs(self) -> bool:
        """Whether one of its actions lets code run, whose events may fire automations again."""
        return any(action.starts_runs for action in cast("tuple[Action, ...]", self.actions))

    def to_dict(self) -> dict[str, Any]:
        """The automation as JSON; `automation_from_dict` reads it back."""
        return {
            "name": self.name,
            "trigger": self.trigger.to_dict(),
            "actions": _plain(self.actions),
            "description": self.description,
            "enabled": self.enabled,
            "tags": _plain(self.tags),
        }


TRIGGERS: Mapping[str, type[Any]] = {
    cls.type: cls
    for cls in (EventTrigger, AbsenceTrigger, DurationTrigger, AllOf, AnyOf, InSequence)
}
KNOWN_ACTIONS: Mapping[str, type[Any]] = {
    cls.type: cls
    for cls in (
        Notify, RunDeployment, CancelRun, ResumeRun, PauseSchedule, ResumeSchedule, SetLimit,
        CallFunction,
    )
}  # fmt: skip


def _is_about_a_run(trigger: Trigger) -> bool:
    return any(
        not isinstance(leaf, AbsenceTrigger) or leaf.after is not None for leaf in leaves(trigger)
    )


# --- from JSON and TOML -----------------------------------------------------------------------


def automation_from_dict(data: Mapping[str, Any]) -> Automation:
    """An automation from JSON or a table of TOML, as `Automation.to_dict` gives it.

    What has a default may be left out. Triggers and actions say what they are by ``type``.

    Raises:
        InvalidOption: something is wrong; the message names the place in *data*.
    """
    if not isinstance(data, Mapping):
        raise InvalidOption(f"an automation is a table, not {data!r}")
    name = data.get("name")
    what = f"automation {name!r}" if isinstance(name, str) else "automation"
    given = _known_keys(what, data, Automation)
    given["trigger"] = _trigger_from(f"{what}: trigger", given["trigger"])
    actions = given["actions"]
    if isinstance(actions, Mapping):
        given["actions"] = (_read(f"{what}: actions", actions, KNOWN_ACTIONS),)
    elif isinstance(actions, list | tuple):
        given["actions"] = tuple(
            _read(f"{what}: actions[{i}]", action, KNOWN_ACTIONS)
            for i, action in enumerate(actions)
        )
    return Automation(**given)


def trigger_from_dict(data: Mapping[str, Any]) -> Trigger:
    """A trigger from JSON or a table of TOML.

    Raises:
        InvalidOption: something is wrong; the message names the place in *data*.
    """
    return _trigger_from("trigger", data)


def _trigger_from(path: str, data: Any, level: int = 0) -> Trigger:
    if isinstance(data, Mapping) and isinstance(data.get("triggers"), list | tuple):
        if level > DEPTH:
            # Where it is, rather than where the outermost one is made.
            raise InvalidOption(f"{path}: triggers may be nested {DEPTH} deep at most")
        parts = [
            _trigger_from(f"{path}.triggers[{i}]", part, level + 1)
            for i, part in enumerate(data["triggers"])
        ]
        data = {**data, "triggers": parts}
    return cast("Trigger", _read(path, data, TRIGGERS))


def _read(path: str, data: Any, kinds: Mapping[str, type[Any]]) -> Any:
    if not isinstance(data, Mapping):
        raise InvalidOption(f"{path}: give a table with a type, not {data!r}")
    if "type" not in data:
        raise InvalidOption(f"{path}: type is missing: use one of {', '.join(kinds)}")
    kind = data["type"]
    cls = kinds.get(kind) if isinstance(kind, str) else None
    if cls is None:
        raise InvalidOption(f"{path}: type={kind!r}: {_one_of(kind, kinds)}")
    given = _known_keys(path, {k: v for k, v in data.items() if k != "type"}, cls)
    try:
        return cls(**given)
    except InvalidOption as error:
        text = str(error).removeprefix(f"{cls.__name__}: ")
        raise InvalidOption(f"{path}: {text}") from None


def _known_keys(path: str, data: Mapping[str, Any], cls: type[Any]) -> dict[str, Any]:
    """The keys of a table, when they are those of *cls* and none is missing."""
    known = {one.name: one for one in fields(cls)}
    for key in data:
        if key not in known:
            raise InvalidOption(f"{path}: there is no {key!r} here: {_one_of(key, known)}")
    given = dict(data)
    if cls is SetLimit:
        given.setdefault("limit", None)  # TOML has no null
    for name, one in known.items():
        if name not in given and one.default is MISSING and one.default_factory is MISSING:
            raise InvalidOption(f"{path}: {name} is missing")
    return given


# --- checks -----------------------------------------------------------------------------------


def _plain(value: Any) -> Any:
    """A value of a field as JSON."""
    if isinstance(value, _Value):
        return value.to_dict()
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    return value


def _one_of(given: Any, known: Iterable[str]) -> str:
    """The remedy for a name that is not known: the nearest of those that are, or all."""
    known = list(known)
    if isinstance(given, str):
        by_case = {name.casefold(): name for name in reversed(known)}
        text = given.casefold()
        close = difflib.get_close_matches(text, by_case, 1)
        # `flow_name` for `flow`: near to a person, though not by its letters.
        parts = [name for name in by_case if name and name in text.replace("-", "_").split("_")]
        best = close or parts
        if best:
            return f"did you mean {by_case[best[0]]!r}?"
    return f"use one of {', '.join(known)}"


def _is_number(value: Any) -> bool:
    good = isinstance(value, int | float) and not isinstance(value, bool)
    try:
        return good and isfinite(value)
    except OverflowError:
        return False


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _seconds(owner: _Value, name: str, value: Any) -> float:
    if not _is_number(value) or value <= 0:
        raise owner._bad(name, value, "give seconds, more than 0")
    return float(value)


def _text(owner: Any, name: str, value: Any) -> None:
    good = isinstance(value, str) and value.strip() == value and value.isprintable()
    if not good or not 0 < len(value) <= LONGEST:
        raise InvalidOption(f"{type(owner).__name__}: {name}={value!r}: give a name")


def _several(value: Any) -> tuple[Any, ...] | None:
    """One text, or several; None for what is neither."""
    if isinstance(value, str):
        return (value,)
    return tuple(value) if isinstance(value, list | tuple | set | frozenset) else None


def _names(owner: _Value, name: str, value: Any) -> tuple[str, ...]:
    """Patterns for the names of events."""
    patterns = _several(value)
    if not patterns or len(patterns) > PATTERNS:
        raise owner._bad(name, value, "give the name of an event, or several")
    for pattern in patterns:
        good = isinstance(pattern, str) and pattern.strip() == pattern
        if not good or not 0 < len(pattern) <= LONGEST:
            raise owner._bad(name, value, "give the name of an event, or several")
        if is_negated(pattern):
            raise owner._bad(
                name, value, "what is not meant is said by match, such as {'state': '!Failed'}"
            )
        _check_state_of(owner, name, pattern)
    return tuple(dict.fromkeys(patterns))


def _check_state_of(owner: _Value, name: str, pattern: str) -> None:
    """Refuse the name of a state change that will never be seen: it would be waited for in vain."""
    kind, _, state = pattern.rpartition(".")
    if kind in KINDS:
        if is_glob(state) or state in STATES:
            return
        near = difflib.get_close_matches(state.casefold(), [s.casefold() for s in STATES], 1)
        if near:
            meant = next(s for s in STATES if s.casefold() == near[0])
            raise owner._bad(name, pattern, f"did you mean '{kind}.{meant}'?")
        raise owner._bad(
            name,
            pattern,
            f"no state has this name: a name of your own goes into match, as"
            f" {{'state_name': {state!r}}}",
        )
    if state in STATES and not is_glob(kind):
        # `flow_run.Failed`, `flowrun.Failed`, `prefect.flow-run.Failed`
        near = difflib.get_close_matches(kind.rpartition(".")[2], KINDS, 1, cutoff=0.7)
        if near:
            raise owner._bad(name, pattern, f"did you mean '{near[0]}.{state}'?")


def _match(owner: _Value, value: Any) -> dict[str, Any]:
    """Conditions, with tables inside of ``payload`` spelled as dotted names."""
    if not isinstance(value, Mapping):
        raise owner._bad("match", value, "give a mapping of fields to what they must be")
    flat = dict(_flattened(value))
    if len(flat) > CONDITIONS:
        raise owner._bad("match", value, f"give {CONDITIONS} conditions at most")
    return {key: _patterns(owner, key, wanted) for key, wanted in flat.items() if _key(owner, key)}


def _flattened(value: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[Any, Any]]:
    for key, one in value.items():
        name = f"{prefix}.{key}" if prefix else key
        if isinstance(one, Mapping) and one and str(name).partition(".")[0] == "payload":
            yield from _flattened(one, str(name))
        else:
            yield name, one


def _key(owner: _Value, key: Any, where: str = "match") -> bool:
    """Whether *key* is a field of events.

    Raises:
        InvalidOption: it is none.
    """
    if isinstance(key, str):
        first, _, rest = key.partition(".")
        if key in FIELDS or (first == "payload" and all(rest.split("."))):
            return True
        if key == "payload":
            raise owner._bad(where, key, "say which value of it, such as 'payload.x'")
    raise InvalidOption(
        f"{type(owner).__name__}: {where} has no field {key!r}:"
        f" {_one_of(key, (*FIELDS, 'payload.x.y'))}"
    )


def _patterns(owner: _Value, key: str, wanted: Any) -> Any:
    many = tuple(wanted) if isinstance(wanted, list | tuple | set | frozenset) else (wanted,)
    where = f"match[{key!r}]"
    if not 0 < len(many) <= PATTERNS:
        raise owner._bad(where, wanted, f"give 1 to {PATTERNS:,} alternatives")
    for one in many:
        if isinstance(one, str):
            if len(one) > LONGEST or one == "!":
                raise owner._bad(where, one, f"give a text of up to {LONGEST:,} characters")
            if key == "state":
                _check_type(owner, where, one)
        elif one is not None and not isinstance(one, bool) and not _is_number(one):
            raise owner._bad(where, one, "give a text, a number, true or false, or a list of them")
    if isinstance(wanted, set | frozenset):
        return tuple(sorted(many, key=repr))
    return many if isinstance(wanted, list | tuple) else wanted


def _check_type(owner: _Value, where: str, pattern: str) -> None:
    text = pattern.removeprefix("!")
    if is_glob(text) or text.upper() in StateType.__members__:
        return
    if any(text.casefold() == name.casefold() for name in STATES):
        raise owner._bad(where, pattern, "this is the name of a state: match it by 'state_name'")
    raise owner._bad(where, pattern, _one_of(text, [default_name(t) for t in StateType]))


def _labels(owner: _Value, value: Any) -> tuple[str, ...]:
    names = _several(value)
    if names is None or len(names) > PARTS:
        raise owner._bad("for_each", value, "give the names of fields")
    return tuple(dict.fromkeys(name for name in names if _key(owner, name, "for_each")))


def _parts(owner: AllOf | AnyOf | InSequence) -> tuple[Trigger, ...]:
    given: Any = owner.triggers
    good = isinstance(given, list | tuple) and 2 <= len(given) <= PARTS
    if not good or not all(isinstance(part, _Trigger) for part in given):
        raise owner._bad("triggers", given, f"give a list of 2 to {PARTS} triggers")
    parts = cast("tuple[Trigger, ...]", tuple(given))
    if max(depth(part) for part in parts) >= DEPTH:
        raise InvalidOption(f"{type(owner).__name__}: triggers may be nested {DEPTH} deep at most")
    return parts


def _not_json(value: Any, path: str, level: int = 0) -> str | None:
    """Where in a value something is that JSON does not have, and what it is."""
    if level > NESTED:
        return f"{path[:80]}... is nested more than {NESTED} deep"
    if value is None or isinstance(value, str | bool):
        return None
    if isinstance(value, int | float):
        return None if _is_number(value) else f"{path} is {value!r}"
    if isinstance(value, Mapping):
        for key, one in value.items():
            if not isinstance(key, str):
                return f"{path} has the key {key!r}"
            if (where := _not_json(one, f"{path}.{key}", level + 1)) is not None:
                return where
        return None
    if isinstance(value, list | tuple):
        for i, one in enumerate(value):
            if (where := _not_json(one, f"{path}[{i}]", level + 1)) is not None:
                return where
        return None
    return f"{path} is a {type(value).__name__}"
