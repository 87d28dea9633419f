"""Every exception of asyncflow: one base, and each also the builtin that it resembles.

A message says what happened, then what to do about it.
"""

from __future__ import annotations

from collections.abc import Sequence


class AsyncflowError(Exception):
    """The root of all errors that asyncflow raises on its own account."""


# --- what a caller did ------------------------------------------------------------------------


class InvalidDefinition(AsyncflowError, TypeError):
    """A flow, task, resource or limit was declared in a way that cannot work."""


class InvalidOption(InvalidDefinition, ValueError):
    """An option of a flow, task or engine has a value that makes no sense."""


class AutomationLoop(InvalidDefinition, ValueError):
    """Automations would fire themselves, or one another, for ever.

    Attributes:
        chain: their names, in the order in which they fire.
    """

    def __init__(self, text: str, chain: Sequence[str]) -> None:
        super().__init__(text)
        self.chain = tuple(chain)


class InvalidParameters(AsyncflowError, TypeError, ValueError):
    """Arguments do not fit the signature of a flow or task."""


class InvalidCacheKey(AsyncflowError, TypeError, ValueError):
    """What a `cache_policy` or `cache_key_fn` says of a call makes no key."""


class MappingLengthMismatch(AsyncflowError, ValueError):
    """The iterables given to `map` differ in length."""


class BlockingCall(AsyncflowError, RuntimeError):
    """A call would have blocked the event loop, or needs one that is not there."""


class NotReady(AsyncflowError, RuntimeError):
    """The result of an unfinished future was asked for where waiting is impossible."""


class DependencyCycle(AsyncflowError, ValueError):
    """Futures wait for one another in a circle."""


class ConcurrencyDeadlock(AsyncflowError, RuntimeError):
    """A limit is held by the very work that waits for the one who asks for it."""


class NoEngine(AsyncflowError, RuntimeError):
    """A function that needs a run or an engine was called outside of both."""


class MissingExtra(AsyncflowError, ImportError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package!r}: install it with"
            f" pip install 'asyncflow[{extra}]'"
        )
        self.package = package
        self.extra = extra


# --- what became of a run ---------------------------------------------------------------------


class TaskTimeout(AsyncflowError, TimeoutError):
    """A run was stopped by its own `timeout_seconds` or `total_timeout_seconds`."""


class FlowTimeout(TaskTimeout):
    """A flow run was stopped by its deadline."""


class QueueTimeout(AsyncflowError, TimeoutError):
    """No slot came free within `queue_timeout_seconds` or `concurrency(timeout=)`."""


class EventTimeout(AsyncflowError, TimeoutError):
    """An event did not come within `wait_for_event(timeout=)`."""


class PauseTimeout(AsyncflowError, TimeoutError):
    """Nobody answered within `pause_flow_run(timeout=)`."""


class TaskCancelled(AsyncflowError):
    """The task run that was waited for has been cancelled."""


class RunCancelled(TaskCancelled):
    """The flow run that was waited for has been cancelled."""


class RunInterrupted(AsyncflowError):
    """The flow run that was waited for was interrupted; it can be resumed."""


class RunCrashed(AsyncflowError, RuntimeError):
    """The flow run that was waited for died with its process, too often to be recovered."""


class UpstreamFailed(AsyncflowError):
    """A task did not run because one that it depends on did not succeed.

    `__cause__` is the exception of the upstream.
    """


class Skipped(AsyncflowError):
    """There is nothing to do: raise or return it in a task or flow, which then ends so.

    Its result is None, and what depends on it is skipped, too.

    Args:
        message: why, for people.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(message)
        self.message = message


class RollbackIncomplete(AsyncflowError, ExceptionGroup[Exception]):
    """A transaction was left by an exception, its `__cause__`, and could not be undone entirely.

    `exceptions` are the failures of its compensations.
    """


class RetryAfter(AsyncflowError):
    """Raise it in a task to be called again, not before *seconds* have passed.

    Args:
        seconds: the delay, in seconds, at least 0.
        message: what the server said, for the record.
    """

    def __init__(self, seconds: float, message: str = "") -> None:
        if not seconds >= 0:
            raise ValueError(f"RetryAfter takes a delay of 0 seconds or more, not {seconds!r}")
        super().__init__(seconds, message)
        self.seconds = float(seconds)
        self.message = message

    def __str__(self) -> str:
        return self.message or f"asked to be called again after {self.seconds:g} s"


class RecordedFailure(AsyncflowError):
    """A failure read back from the store whose own exception type cannot be built again.

    Attributes:
        type_name: the dotted name of the original exception.
        text: its message.
        traceback: its traceback as text, or "".
    """

    def __init__(self, type_name: str, text: str, traceback: str = "") -> None:
        super().__init__(type_name, text)
        self.type_name = type_name
        self.text = text
        self.traceback = traceback

    def __str__(self) -> str:
        return f"{self.type_name}: {self.text}" if self.text else self.type_name


class RunFailed(AsyncflowError):
    """A run ended as Failed by a returned state, without an exception of its own."""


class WorkerLost(AsyncflowError, RuntimeError):
    """The process that ran an attempt died."""


class Unresponsive(AsyncflowError, RuntimeError):
    """User code did not stop when it was cancelled, within its grace."""


# --- what is stored ---------------------------------------------------------------------------


class NotSerializable(AsyncflowError, TypeError):
    """A value cannot be stored.

    Attributes:
        path: where in the value, such as ``result.rows[3]``.
        type_name: the type that is not known.
    """

    def __init__(self, path: str, type_name: str, reason: str = "") -> None:
        detail = f": {reason}" if reason else ""
        super().__init__(f"{path} is a {type_name}, which cannot be stored as JSON{detail}")
        self.path = path
        self.type_name = type_name


class ResultNotStored(AsyncflowError, LookupError):
    """A run completed, but its result was not, or could not be, stored."""


class ResultUnreadable(AsyncflowError, ValueError):
    """A stored value is damaged, or its type cannot be found any more."""


class UnknownRun(AsyncflowError, LookupError):
    """No run is known by this id."""

    def __init__(self, run_id: str) -> None:
        super().__init__(
            f"no run {run_id!r} in this database: list what is there with `asyncflow runs ls`"
        )
        self.run_id = run_id


class UnknownTask(AsyncflowError, LookupError):
    """The run has no task run by this name or id."""


class UnknownDeployment(AsyncflowError, LookupError):
    """There is no deployment, or none of its schedules, by this name."""

    @classmethod
    def named(cls, name: str) -> UnknownDeployment:
        """What to raise where there is none of this name."""
        return cls(
            f"there is no deployment {name!r}: list what is there with `asyncflow deployments ls`"
        )


class TemplateError(AsyncflowError, ValueError):
    """A template of a message is wrong, fails, reaches for what it must not, or does not end."""


class CommandFailed(AsyncflowError, RuntimeError):
    """What another engine was asked for was not done; it says why."""


class DeliveryFailed(AsyncflowError, OSError):
    """A message could not be sent.

    Attributes:
        final: whether it is useless to try again.
        after: seconds that the receiver asks to wait before that; None: it asks for nothing.
    """

    def __init__(self, text: str, *, final: bool = False, after: float | None = None) -> None:
        super().__init__(text)
        self.final = final
        self.after = after


class InvalidSignature(AsyncflowError, ValueError):
    """A webhook is not signed with this secret, or was signed at another time."""


class UnknownChannel(AsyncflowError, LookupError):
    """No channel of this name was added to this engine."""


class UnknownAutomation(AsyncflowError, LookupError):
    """There is no automation by this name, or it has no such action any more."""

    @classmethod
    def named(cls, name: str) -> UnknownAutomation:
        """What to raise where there is none of this name."""
        return cls(
            f"there is no automation {name!r}: list what is there with `asyncflow automations ls`"
        )


class DeploymentBusy(AsyncflowError):
    """The overlap policy of a deployment does not allow another run now."""


class UnknownFlow(AsyncflowError, LookupError):
    """The flow that a stored or named run needs cannot be found or imported."""


class RunNotResumable(AsyncflowError, ValueError):
    """The run is in a state that the asked verb does not apply to."""


class AlreadyAnswered(RunNotResumable):
    """Somebody else has answered the run: the first answer counts."""


class RunExists(AsyncflowError, ValueError):
    """A run that is to be imported is in the database already."""

    def __init__(self, run_id: str) -> None:
        super().__init__(
            f"the run {run_id} is in this database already: delete it first, or import it under"
            " another id, with new_id=True or --new-id"
        )
        self.run_id = run_id


class InvalidExport(AsyncflowError, ValueError):
    """A file that is to be imported is no exported run, is damaged, or is of a newer version."""


class RunTaken(AsyncflowError, RuntimeError):
    """Another engine owns this run; what this one wrote was refused."""


class StoreError(AsyncflowError, OSError):
    """The database cannot be opened, read or written."""


class StoreClosed(StoreError):
    """The engine or its store is closed."""


# --- what a server says -----------------------------------------------------------------------


class ServerError(AsyncflowError):
    """A server refused what a client asked, or answered what no client of this version understands.

    Attributes:
        status: of HTTP.
        title, detail: what it says about it: in short, and in a sentence.
    """

    def __init__(self, status: int, title: str, detail: str = "") -> None:
        super().__init__(status, title, detail)
        self.status = status
        self.title = title
        self.detail = detail

    def __str__(self) -> str:
        return self.detail or self.title


class ServerUnreachable(AsyncflowError, ConnectionError):
    """No server answers at an address, or the connection to it broke."""


class ServerTimeout(AsyncflowError, TimeoutError):
    """A server has not answered in time, or what was waited for there has not happened in time."""


class IllegalMove(AsyncflowError, RuntimeError):
    """A bug of asyncflow: a run was about to make a move that no run may make.

    Attributes:
        story: every move that the run made before, oldest first.
    """

    def __init__(self, run_id: str, before: str, after: str, story: Sequence[str] = ()) -> None:
        told = "; ".join(story) or "no earlier moves"
        super().__init__(
            f"run {run_id} cannot go from {before} to {after} (its story: {told});"
            " this is a bug of asyncflow, please report it with this line"
        )
        self.run_id = run_id
        self.before = before
        self.after = after
        self.story = tuple(story)
