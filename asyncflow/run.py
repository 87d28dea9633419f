"""What is known of one call of a task, of one map and of one flow run: plain mutable records.

Records are made by the authoring side, changed only by the machine, and read by all. A `Call`
is at once the handle that a user holds (`asyncflow.future.TaskFuture` extends it), so that a
mapped item costs one object.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from asyncflow.retry import Retry
from asyncflow.states import FALLBACK, SKIPPED, StateType, default_name

if TYPE_CHECKING:
    from asyncflow.limits import Needs

_NOT_OWN = (SKIPPED, FALLBACK)

#: How many moves the story of a run keeps; older ones are on disk.
STORY = 50


class _Missing:
    """The mark for "no value", where None is a value."""

    def __repr__(self) -> str:
        return "<missing>"

    def __reduce__(self) -> str:
        return "MISSING"


MISSING: Any = _Missing()


@dataclass(slots=True, frozen=True, kw_only=True)
class Hooks:
    """Functions to call when a run enters a state; each a tuple, in order of declaration."""

    on_running: tuple[Callable[..., Any], ...] = ()
    on_completion: tuple[Callable[..., Any], ...] = ()
    on_failure: tuple[Callable[..., Any], ...] = ()
    on_cancellation: tuple[Callable[..., Any], ...] = ()
    on_crashed: tuple[Callable[..., Any], ...] = ()

    def __bool__(self) -> bool:
        return bool(
            self.on_running
            or self.on_completion
            or self.on_failure
            or self.on_cancellation
            or self.on_crashed
        )

    def at(self, state: StateType) -> tuple[Callable[..., Any], ...]:
        match state:
            case StateType.RUNNING:
                return self.on_running
            case StateType.COMPLETED:
                return self.on_completion
            case StateType.FAILED:
                return self.on_failure
            case StateType.CANCELLED:
                return self.on_cancellation
            case StateType.CRASHED:
                return self.on_crashed
            case _:
                return ()


@dataclass(slots=True, frozen=True, kw_only=True)
class Options:
    """How the calls of a task or the runs of a flow are carried out.

    Attributes:
        timeout: seconds for one attempt of a task, or for the whole run of a flow.
        total_timeout: seconds over all attempts and waits.
        queue_timeout: seconds to wait for slots, per attempt.
        limits: named limits and the units needed of each.
        max_concurrency: of a task, its calls at once; of a flow, the task calls of a run.
        runner: "async", "thread", "process" or (transactional) "writer", or an object that is one.
        caching: of a task, the `asyncflow.caching.Caching` of its results; None: not cached.
        transactional: a task whose function gets a connection, and whose record is written in the
            transaction in which that runs.
        on_commit, on_rollback: of a task in a transaction, what is run when that succeeds, and
            what undoes the task when it does not.
        failure_policy: of a task, what becomes of a call that has failed for good: None (it has
            failed), "skip", "continue", "pause", or an `asyncflow.policy.Fallback`.
        teardown: of a task, whether it undoes what its upstreams did, however its run ends.
        bounded: whether somebody has to look how long a call waits.
    """

    retry: Retry = field(default_factory=Retry)
    retry_condition: Callable[..., Any] | None = None
    retry_budget: float | None = None
    timeout: float | None = None
    timeout_mode: str = "cancel"
    total_timeout: float | None = None
    queue_timeout: float | None = None
    tags: frozenset[str] = frozenset()
    limits: tuple[tuple[str, int], ...] = ()
    max_concurrency: int | None = None
    priority: float = 0
    runner: Any = "async"
    serializer: str = "json"
    persist: bool = True
    log_prints: bool = False
    run_name: str | Callable[..., str] | None = None
    grace: float | None = None
    key: Callable[..., Any] | str | None = None
    hooks: Hooks = field(default_factory=Hooks)
    description: str = ""
    version: str | None = None
    max_recoveries: int | None = None
    keep_last: int | None = None
    validate: bool = True
    caching: Any = None
    transactional: bool = False
    on_commit: tuple[Any, ...] = ()
    on_rollback: tuple[Any, ...] = ()
    failure_policy: Any = None
    teardown: bool = False
    bounded: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        bounded = self.teardown or self.total_timeout is not None or self.queue_timeout is not None
        object.__setattr__(self, "bounded", bounded)


class Aside:
    """What becomes of a call whose own code has failed for good, and which has not ended.

    Attributes:
        pauses: it waits for a person; else for its fallback.
        begun: that is on record, and being carried out.
        told: the hooks have been told of the failure.
        stand_in: the call of its fallback, as long as that has not ended.
    """

    __slots__ = ("begun", "pauses", "stand_in", "told")

    def __init__(self, pauses: bool, told: bool = False) -> None:
        self.pauses = pauses
        self.told = told
        self.begun = False
        self.stand_in: Call | None = None


class Call:
    """One call of a task, or of a subflow, inside a run.

    Attributes:
        run: the flow run that it belongs to.
        spec: the task (or flow) called: has `name`, `key`, `fn`, `options`.
        seq: its number within the run, from 1; with the run it is its id in the store.
        identity: what finds it again on resume, independent of order.
        waiting: how many upstreams have not settled.
        value: what it returned; `error`: the exception that it ended with.
        stop: why it was told to stop, or None; `pending`: its code has yet to be told.
        on: what its coroutine is suspended at (see `asyncflow.drive`).
        direct: wakes the task that makes the call itself when it is its turn.
        direct_thread: runs its function in the thread that makes the call.
        noticed: the attempt that was last recorded as running.
        past: one line for each failed attempt, for the notes of the last exception.
        waits_on: what its code waits for, or, before it starts, its unsettled upstreams.
        lends: how many waits of its code have lent its slots to others.
        settled: its end has been acknowledged; only then do others see it.
        asks: before its turn comes, it is asked for in the cache.
        cache_key: the key under which its result is stored for others, when it completes.
        rolling: how many transactions of its code are being rolled back, and must not be stopped;
            undone: one has been, because the code was stopped.
        asked: somebody holds its future (an item of a map that nobody asked for keeps none).
        allow: the ids (`id`) of upstreams whose failure it takes as an argument.
        skips: the upstream for whose sake it is skipped, as soon as all have ended.
        lenient: of one that did not run because of an upstream, whether that fails nobody.
        aside: what becomes of it after its own code has failed, where that is not its end.
        unrecorded: it has no row of its own: it stands for calls that cannot be made yet.
        answered: its end was known from the store: it did not run in this life of its run.
        began: when its newest attempt began, if that is not its first (`started`).
        ready: since when it lacked nothing but slots, where that is not `created` and is measured.
        counted: the number of attempts that `asyncflow.metrics` has seen.
    """

    # Not slots: most calls set few of these, and what stands in the class costs them nothing.
    is_source = False
    unrecorded = False
    identity = b""
    phase = StateType.PENDING
    phase_name: str | None = None
    message = ""
    label: str | None = None
    attempt = 0
    failures = 0
    interruptions = 0
    noticed = 0
    answered = False
    started: float | None = None
    began: float | None = None
    ready: float | None = None
    counted = 0
    ended: float | None = None
    retry_at: float | None = None
    expires: float | None = None
    deadline: float | None = None
    value: Any = MISSING
    error: BaseException | None = None
    past: list[str] | None = None
    waiting = 0
    upstream: tuple[int, ...] = ()
    allow: frozenset[int] = frozenset()
    skips: Call | None = None
    lenient = False
    aside: Aside | None = None
    dependants: list[Any] | None = None
    waiters: Any = None
    waits_on: tuple[Call | Batch, ...] = ()
    eager = False
    holding = False
    lends = 0
    settled = False
    asks = False
    cache_key: bytes | None = None
    rolling = 0
    undone = False
    asked = False
    seen = False
    dirty = False
    stop: str | None = None
    pending = False
    on: Any = None
    body: Any = None
    direct: Any = None
    direct_thread: Any = None
    batch: Batch | None = None
    index = 0
    child: Run | None = None
    timer: Any = None

    def __init__(
        self,
        run: Run,
        spec: Any,
        limits: Needs,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        seq: int,
        parent: Call | None,
        created: float,
        context: Any,
    ) -> None:
        self.run = run
        self.owner = run
        self.spec = spec
        options = spec.options
        self.options: Options = options
        self.priority: float = options.priority
        self.limits = limits
        self.args = args
        self.kwargs = kwargs
        self.seq = seq
        self.parent = parent
        self.created = created
        self.context = context

    def call(self) -> Call:
        """This call: what an `Item` answers, too."""
        return self

    @property
    def tags(self) -> frozenset[str]:
        return self.options.tags

    @property
    def shown_phase(self) -> str:
        """The name of the state that it is in."""
        return self.phase_name or default_name(self.phase)

    @property
    def own(self) -> bool:
        """Whether its own code completed: it was neither skipped nor replaced by a fallback."""
        return self.phase is StateType.COMPLETED and self.phase_name not in _NOT_OWN

    @property
    def display(self) -> str:
        """What people call it: its own name, or task and number."""
        return self.label or f"{self.spec.name}-{self.seq}"


class Hold:
    """Units of named limits held by user code: ``async with concurrency(...)``.

    Attributes:
        carrier: who goes on when it has its units: an asyncio task, or the id of a thread.
        patient: whether it waits as long as it takes.
        since: when it got its units, in seconds since the epoch; None: not yet, or not asked.
    """

    __slots__ = (
        "call",
        "carrier",
        "direct",
        "eager",
        "holding",
        "limits",
        "live",
        "owner",
        "patient",
        "priority",
        "since",
    )
    is_source = False

    def __init__(self, owner: object, call: Call | None, limits: Needs, priority: float) -> None:
        self.owner = owner
        self.call = call
        self.limits = limits
        self.priority = priority
        self.eager = priority > 0
        self.direct: Any = None
        self.live = True
        self.holding = False
        self.carrier: Any = None
        self.patient = True
        self.since: float | None = None


class Item:
    """One item of a map whose code has not waited yet, and needs no `Call` so far.

    Code that ends in its first step never does. It becomes a call as soon as its code waits,
    fails, or somebody asks for it.

    Attributes:
        made: the call that it has become, or None.
        identity: as of a call.
        started, ended: seconds since the epoch; where nothing is recorded, 0.
        value: what it returned, or MISSING.
    """

    __slots__ = ("batch", "ended", "identity", "index", "made", "started", "value")

    def __init__(self, batch: Batch, index: int, identity: bytes, started: float) -> None:
        self.batch = batch
        self.index = index
        self.identity = identity
        self.started = started
        self.made: Call | None = None
        self.value: Any = MISSING
        self.ended = started

    @property
    def run(self) -> Run:
        return self.batch.run

    @property
    def seq(self) -> int:
        return self.batch.seq + self.index

    def call(self) -> Call:
        """The call that it is, made now if need be."""
        if self.made is None:
            batch = self.batch
            batch.run.engine.call(batch.become, self)
        assert self.made is not None
        return self.made


class Batch:
    """The calls of one `map`, made one by one as they are started.

    A waiting item is only its place in the inputs; a finished one only its value. Futures of
    single items are made when someone asks for them.

    Attributes:
        size: how many items there are; `next`: the first that has not been taken.
        results: value by index, `MISSING` where there is none (yet); an `Item` where it has
            completed, and that is not on record yet.
        calls: the calls that exist now, by index: running, failed, or asked for.
        open: how many have not settled.
        make: makes the call of an index; `become`: makes the call of an `Item`.
        light: whether its items may be tried without a `Call`; `waited`: how many of those
            that were tried had to wait and became calls after all.
        stopped: the message with which it was cancelled, or None.
        keys: the explicit key of each item, where the task has ``key=``.
        column: the inputs, where each item has one argument; else None.
        identity_of: the identity of an item that completed before anybody asked for it.
        odd: the identities that cannot be worked out from the inputs again, by index.
        seqs: the numbers of items that had theirs in a former life of the run, by index.
        upstream: the numbers of the calls that gave what is mapped over.
    """

    __slots__ = (
        "__weakref__",
        "become",
        "calls",
        "column",
        "context",
        "created",
        "eager",
        "identity_of",
        "inputs",
        "keys",
        "light",
        "limits",
        "make",
        "next",
        "odd",
        "open",
        "options",
        "owner",
        "parent",
        "priority",
        "results",
        "run",
        "seen",
        "seq",
        "seqs",
        "size",
        "spec",
        "stopped",
        "upstream",
        "waited",
        "waiters",
    )
    is_source = True

    def __init__(
        self, run: Run, spec: Any, options: Options, limits: Needs, size: int, seq: int
    ) -> None:
        self.run = self.owner = run
        self.spec = spec
        self.options = options
        self.limits = limits
        self.priority = options.priority
        self.eager = False
        self.size = size
        self.seq = seq
        self.next = 0
        self.open = size
        self.inputs: Any = None
        self.column: Any = None
        self.keys: list[Any] | None = None
        self.light = False
        self.waited = 0
        self.stopped: str | None = None
        self.become: Callable[[Item], object] = _nothing
        self.results: list[Any] = [MISSING] * size
        self.calls: dict[int, Call] = {}
        self.make: Callable[[Batch, int], Call] = _unmade
        self.identity_of: Callable[[Batch, int], bytes] = _unknown
        self.odd: dict[int, bytes] | None = None
        self.seqs: dict[int, int] | None = None
        self.parent: Call | None = None
        self.upstream: tuple[int, ...] = ()
        self.context: Any = None
        self.created = 0.0
        self.waiters: Any = None
        self.seen = False

    def call(self, index: int) -> Call:
        """The call of this item, made if it does not exist."""
        call = self.calls.get(index)
        if call is None:
            call = self.calls[index] = self.make(self, index)
        return call

    def take(self) -> Call:
        """The call of the next item, which its taker will start."""
        index = self.next
        self.next = index + 1
        call = self.calls.get(index)
        if call is None:
            call = self.calls[index] = self.make(self, index)
        return call


def _nothing(item: Item) -> None:
    raise AssertionError("the map was given nobody who makes calls of its items")


def _unmade(batch: Batch, index: int) -> Call:
    raise AssertionError("the map was given no maker")


def _unknown(batch: Batch, index: int) -> bytes:
    raise AssertionError("the map was given nobody who knows identities")


class Run:
    """One flow run, as the engine that owns it knows it.

    Attributes:
        id: what people and other processes call it: a UUID of version 7.
        pk: its number in the store.
        live: how many of its calls have not settled.
        seen_hashes, repeats: which identities occurred, to number equal calls.
        edits: what a fork has changed of its record (`asyncflow.edits.Tokens`); None: nothing.
        history: what the store knew of its calls when it was resumed, by identity.
        unseen: failed calls that nobody has looked at, by seq.
        rolling, undone: as of a call.
        closing: its body has ended, and what that left running is being stopped.
        told: message and name of the Failed state that its code returned.
        failures: attempts that failed, since it was last granted fresh ones.
        retried: how many of its calls' attempts were retries.
    """

    __slots__ = (
        "__weakref__",
        "attempt",
        "batches",
        "body",
        "call",
        "calls",
        "cancel_message",
        "closing",
        "created",
        "deadline",
        "dirty",
        "edits",
        "ended",
        "engine",
        "epoch",
        "error",
        "expires",
        "extra",
        "failed_seqs",
        "failures",
        "flow",
        "flow_name",
        "history",
        "id",
        "idempotency_key",
        "idle",
        "limit",
        "live",
        "message",
        "on",
        "options",
        "parameters",
        "parent",
        "pending",
        "phase",
        "phase_name",
        "pk",
        "prefixes",
        "recoveries",
        "repeats",
        "retried",
        "rolling",
        "run_name",
        "seen_hashes",
        "seq",
        "started",
        "stop",
        "story",
        "tags",
        "told",
        "undone",
        "unseen",
        "value",
        "waiters",
    )

    def __init__(self, id_: str, pk: int, flow: Any, engine: Any, created: float) -> None:
        self.id = id_
        self.pk = pk
        self.flow = flow
        self.flow_name: str = flow.name
        self.options: Options = flow.options
        self.engine = engine
        self.created = created
        self.run_name: str = ""
        self.parent: Run | None = None
        self.call: Call | None = None
        self.parameters: dict[str, Any] = {}
        self.tags: frozenset[str] = frozenset()
        self.idempotency_key: str | None = None
        self.phase = StateType.SCHEDULED
        self.phase_name: str | None = None
        self.message = ""
        self.attempt = 0
        self.failures = 0
        self.retried = 0
        self.epoch = 1
        self.recoveries = 0
        self.started: float | None = None
        self.ended: float | None = None
        self.deadline: float | None = None
        self.expires: float | None = None
        self.value: Any = MISSING
        self.error: BaseException | None = None
        self.seq = 0
        self.live = 0
        self.calls: dict[Call, None] = {}
        self.batches: dict[Batch, None] = {}
        self.idle: Any = None
        self.waiters: Any = None
        self.seen_hashes: set[int] = set()
        self.repeats: dict[int, int] = {}
        self.prefixes: dict[Any, bytes] = {}
        self.history: Any = None
        self.edits: Any = None
        self.unseen: dict[int, Call] = {}
        self.failed_seqs: tuple[int, ...] = ()
        self.rolling = 0
        self.undone = False
        self.story: deque[str] = deque(maxlen=STORY)
        self.limit: Needs = ()
        self.stop: str | None = None
        self.pending = False
        self.closing = False
        self.cancel_message = ""
        self.told: tuple[str, str | None] | None = None
        self.on: Any = None
        self.body: Any = None
        self.dirty = False
        self.extra: Any = None

    @property
    def run(self) -> Run:
        """Itself: what calls and items answer, too."""
        return self

    @property
    def ending(self) -> bool:
        """Whether it is being stopped, or wound up."""
        return self.stop is not None or self.closing

    @property
    def shown_phase(self) -> str:
        """The name of the state that it is in."""
        return self.phase_name or default_name(self.phase)

    @property
    def display(self) -> str:
        return self.run_name or f"{self.flow_name} {self.id}"
