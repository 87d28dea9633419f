"""The states of flow runs and task runs, and the only moves between them.

    SCHEDULED -> PENDING -> RUNNING -> COMPLETED | FAILED | CANCELLED | CRASHED
        ^                   |  |  ^
        |   AwaitingRetry   |  |  '--- PAUSED (Interrupted, Suspended)
        '-------------------'  '-----> CANCELLING -> CANCELLED

Logic looks at the *type* of a state; its *name* refines the type for people (``TimedOut`` is a
FAILED, ``Cached`` a COMPLETED). Terminal states are final: only the verbs resume and recover
open a run again, and they begin a new epoch of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from asyncflow.errors import (
    AsyncflowError,
    NotReady,
    RunCrashed,
    RunFailed,
    RunInterrupted,
    TaskCancelled,
)

R = TypeVar("R", covariant=True)


class StateType(StrEnum):
    """What a run is doing, or how it ended."""

    SCHEDULED = "SCHEDULED"  #: waits for a point in time (its schedule, or the next attempt)
    PENDING = "PENDING"  #: waits for upstreams or for a slot
    RUNNING = "RUNNING"  #: its code is running, or waits for what it called
    PAUSED = "PAUSED"  #: does nothing until it is resumed
    CANCELLING = "CANCELLING"  #: was told to stop, and has not stopped yet
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    CRASHED = "CRASHED"  #: its process died, too often or without a way to go on

    bit: int  #: one bit of its own, so that a set of types is an integer
    next_bits: int  #: the bits of the types that may follow

    @property
    def is_final(self) -> bool:
        """Whether a run in this state has ended."""
        return not self.next_bits


S = StateType

#: The table of legal moves: what may follow what.
MOVES: Mapping[StateType, frozenset[StateType]] = MappingProxyType(
    {
        S.SCHEDULED: frozenset(
            {S.PENDING, S.RUNNING, S.PAUSED, S.CANCELLING, S.COMPLETED, S.FAILED}
            | {S.CANCELLED, S.CRASHED}
        ),
        S.PENDING: frozenset(
            {S.SCHEDULED, S.RUNNING, S.PAUSED, S.COMPLETED, S.FAILED, S.CANCELLED, S.CRASHED}
        ),
        S.RUNNING: frozenset(
            {S.SCHEDULED, S.PAUSED, S.CANCELLING, S.COMPLETED, S.FAILED, S.CANCELLED, S.CRASHED}
        ),
        S.PAUSED: frozenset(
            {S.SCHEDULED, S.PENDING, S.RUNNING, S.CANCELLING, S.FAILED, S.CANCELLED, S.CRASHED}
        ),
        S.CANCELLING: frozenset({S.COMPLETED, S.FAILED, S.CANCELLED, S.CRASHED, S.PAUSED}),
        S.COMPLETED: frozenset(),
        S.FAILED: frozenset(),
        S.CANCELLED: frozenset(),
        S.CRASHED: frozenset(),
    }
)

TERMINAL: frozenset[StateType] = frozenset(s for s, after in MOVES.items() if not after)

for _i, _s in enumerate(StateType):
    _s.bit = 1 << _i
for _s in StateType:
    _s.next_bits = sum(after.bit for after in MOVES[_s])


def default_name(type_: StateType) -> str:
    """The name that a state has when nothing refines it, such as ``Completed``."""
    return str(type_.value).capitalize()


class Unread:
    """A stored result that nobody has asked for yet: it may be large, or a pickle.

    Attributes:
        read: gives the value, or the error that tells why it cannot be had.
    """

    __slots__ = ("read",)

    def __init__(self, read: Callable[[], Any]) -> None:
        self.read = read


@dataclass(frozen=True, slots=True)
class State(Generic[R]):
    """One state of one run, as it was when it was asked for.

    Attributes:
        type: what logic looks at.
        name: what people read; refines the type.
        message: one sentence, or "".
        timestamp: when the run entered the state, an aware UTC datetime.
        attempt: the attempt it belongs to, from 1; 0 before the first.
    """

    type: StateType
    name: str = ""
    message: str = ""
    timestamp: datetime = field(default_factory=lambda: datetime.now(UTC))
    attempt: int = 0
    data: Any = field(default=None, repr=False, compare=False)
    error: BaseException | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", default_name(self.type))

    def is_scheduled(self) -> bool:
        return self.type is S.SCHEDULED

    def is_pending(self) -> bool:
        return self.type is S.PENDING

    def is_running(self) -> bool:
        return self.type is S.RUNNING

    def is_paused(self) -> bool:
        return self.type is S.PAUSED

    def is_cancelling(self) -> bool:
        return self.type is S.CANCELLING

    def is_completed(self) -> bool:
        return self.type is S.COMPLETED

    def is_failed(self) -> bool:
        return self.type is S.FAILED

    def is_cancelled(self) -> bool:
        return self.type is S.CANCELLED

    def is_crashed(self) -> bool:
        return self.type is S.CRASHED

    def is_final(self) -> bool:
        return self.type.is_final

    def result(self, raise_on_failure: bool = True) -> Any:
        """The value that the run returned.

        Args:
            raise_on_failure: with False, the exception is returned instead of raised.

        Raises:
            NotReady: the run has not ended.
            ResultNotStored: it completed, but its result could not be kept.
            Exception: whatever the run failed with; `TaskCancelled` when it was cancelled.
        """
        error = self.error
        if self.type is S.COMPLETED and error is None:
            if not isinstance(self.data, Unread):
                return self.data
            value = self.data.read()
            if not isinstance(value, AsyncflowError):
                return value
            error = value
        error = error or self._exception()
        if raise_on_failure:
            raise error
        return error

    def _exception(self) -> BaseException:
        if not self.is_final() and self.type is not S.PAUSED:
            return NotReady(f"the run is {self.name}: wait for it before asking for its result")
        text = self.message or f"the run is {self.name}"
        match self.type:
            case S.CANCELLED:
                return TaskCancelled(text)
            case S.CRASHED:
                return RunCrashed(text)
            case S.PAUSED:
                return RunInterrupted(text)
            case _:
                return RunFailed(text)

    def __str__(self) -> str:
        return f"{self.name}: {self.message}" if self.message else self.name


def Completed(data: Any = None, message: str = "", name: str = "") -> State[Any]:  # noqa: N802 - reads as the state it makes
    """Return it from a flow or task to decide its state: completed, with *data* as its result."""
    return State(S.COMPLETED, name, message, data=data)


def Failed(message: str = "", error: BaseException | None = None, name: str = "") -> State[Any]:  # noqa: N802 - as above
    """Return it from a flow or task to decide its state: failed, without raising."""
    return State(S.FAILED, name, message, error=error)


def Cancelled(message: str = "", name: str = "") -> State[Any]:  # noqa: N802 - as above
    """Return it from a flow or task to decide its state: cancelled."""
    return State(S.CANCELLED, name, message)


#: The name of a COMPLETED that did nothing: there was nothing to do, or its failure is passed over.
SKIPPED = "Skipped"
#: The name of a COMPLETED whose result another task gave, because its own code failed.
FALLBACK = "Fallback"
#: The name of a SCHEDULED that waits for that other task.
AWAITING_FALLBACK = "AwaitingFallback"

#: The names that refine a type and that asyncflow gives itself.
NAMES = (
    "AwaitingFallback", "AwaitingRetry", "Cached", "Edited", "Fallback", "Interrupted", "Late",
    "NeedsAttention", "Retrying", "Skipped", "Suspended", "TimedOut", "UpstreamFailed",
)  # fmt: skip
_NAMES = {name.upper(): name for name in NAMES}


def types_and_names(wanted: str | Iterable[str] | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """State types (``failed``) and names (``TimedOut``), in any case, told apart.

    Raises:
        ValueError: one of them is neither.
    """
    types: list[str] = []
    names: list[str] = []
    for one in (wanted,) if isinstance(wanted, str) else wanted or ():
        upper = str(one).upper()
        if upper in StateType.__members__:
            types.append(upper)
        elif upper in _NAMES:
            names.append(_NAMES[upper])
        else:
            known = ", ".join([*StateType.__members__, *NAMES])
            raise ValueError(f"{one!r} is not a state: use one of {known}")
    return tuple(types), tuple(names)
