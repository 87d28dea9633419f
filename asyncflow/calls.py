"""Makes calls: their identity, what they depend on, and what the store knows of them.

The identity of a call is fixed when it is made, and does not depend on the order in which
calls are made, started or finished: its parent, its task, its explicit ``key=`` or the canonical
form of its inputs, and the how-manieth it is among equal calls. Equal calls are
interchangeable, so their order does not matter either.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import Context, copy_context
from hashlib import blake2b
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakKeyDictionary

from asyncflow import failures, nested, rows
from asyncflow.canonical import inputs_fingerprint, shown_inputs
from asyncflow.context import TAGS, TRANSACTION
from asyncflow.errors import AsyncflowError, NotSerializable
from asyncflow.limits import Slots
from asyncflow.naming import class_name
from asyncflow.run import MISSING, Aside, Batch, Call, Item, Run
from asyncflow.states import AWAITING_FALLBACK, FALLBACK, StateType
from asyncflow.store.base import ResultKind, RunRow, TaskRow

if TYPE_CHECKING:
    from asyncflow.machine import Machine

S = StateType

_COMPLETED = S.COMPLETED.value
_ENDED = (S.COMPLETED.value, S.FAILED.value)

#: Flags in the ninth byte of an identity.
_PLAIN, _OPAQUE, _REPEATED = 0, 1, 2


class Inputs(Protocol):
    """The inputs of a map.

    Attributes:
        size: how many items there are.
        column: the items themselves, where each is the only argument of its call.
    """

    size: int
    column: Sequence[Any] | None

    def item(self, index: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of one item."""
        ...


class History:
    """What the store knew of the calls of a run when it was resumed, by identity.

    Args:
        tasks: all task runs of the run.
        children: its child runs, which are the calls of flows.
        again: seqs of calls whose failure ended the run, and which run again now.
        fresh: whether failures begin a new budget of attempts.
        void: seqs of calls that transactions have undone, and which count as never made.

    Attributes:
        seeds: how many void calls there are of an identity, the first of its kind: new calls
            are numbered after them.
    """

    def __init__(
        self,
        tasks: list[TaskRow],
        children: list[RunRow],
        again: frozenset[int],
        fresh: bool,
        void: frozenset[int] = frozenset(),
    ) -> None:
        self.again = again | _never_seen(tasks, children) if again and fresh else again
        self.fresh = fresh
        self.tasks = {row.identity: row for row in tasks}
        self.children = {row.parent_identity: row for row in children if row.parent_identity}
        self.missed: dict[str, list[bytes]] = {}
        parents = {row.parent for row in tasks if row.parent is not None}
        self._ended = parents and {
            row.seq
            for row in tasks
            if row.seq in parents and row.state in _ENDED and row.seq not in again
        }
        self.seeds: dict[bytes, int] = {}
        if void:
            self._leave_out(void)
        else:
            self._drop_ambiguous()

    def __bool__(self) -> bool:
        return bool(self.tasks or self.children)

    def _drop_ambiguous(self) -> None:
        """Calls that differ only in objects that have no canonical form cannot be told apart."""
        for identity in [i for i in self.tasks if i[8] == _OPAQUE | _REPEATED]:
            base = identity[:8] + bytes([_OPAQUE]) + identity[9:-4]
            self.tasks.pop(base, None)
            self.tasks.pop(identity, None)

    def _leave_out(self, void: frozenset[int]) -> None:
        """Forget the calls that count as never made, and number the others after them."""
        kept: dict[bytes, list[tuple[int, TaskRow | RunRow]]] = {}

        def sort(identity: bytes, seq: int | None, row: TaskRow | RunRow) -> None:
            first, n = _occurrence(identity)
            if seq in void:
                self.seeds[first] = self.seeds.get(first, 0) + 1
            else:
                kept.setdefault(first, []).append((n, row))

        for task in self.tasks.values():
            sort(task.identity, task.seq, task)
        for identity, child in self.children.items():
            sort(identity, child.parent_seq, child)
        self.tasks, self.children = {}, {}
        for first, some in kept.items():
            if len(some) > 1 and first[8] & _OPAQUE:
                continue  # as `_drop_ambiguous`
            some.sort(key=itemgetter(0))
            for n, (_, row) in enumerate(some, self.seeds.get(first, 0)):
                if isinstance(row, TaskRow):
                    self.tasks[_numbered(first, n)] = row
                else:
                    self.children[_numbered(first, n)] = row

    def completed_since(self, began: float) -> bool:
        """Whether a call of the last life, which began then, completed."""
        rows: list[TaskRow | RunRow] = [*self.tasks.values(), *self.children.values()]
        return any(row.state == S.COMPLETED and (row.ended_at or 0.0) >= began for row in rows)

    def take(self, identity: bytes, task: str = "") -> TaskRow | None:
        row = self.tasks.pop(identity, None)
        if row is None and task and self.tasks:
            # For the case that its inputs have changed; a few are enough to say so.
            missed = self.missed.setdefault(task, [])
            if len(missed) < 3:
                missed.append(identity)
        return row

    def changed(self) -> list[str]:
        """Sentences about recorded calls that were not made again, though others were."""
        left: dict[str, list[bytes]] = {}
        for row in self.tasks.values():
            # What a call made that was answered itself is not asked for.
            if row.state == _COMPLETED and row.parent not in self._ended:
                left.setdefault(row.task, []).append(row.identity)
        told = []
        for task, identities in left.items():
            news = self.missed.get(task)
            text = f"{len(identities):,} recorded calls of {task} were not made again"
            if news:
                before, after = map(_shown, (identities[:3], news))
                text += f": their inputs have changed since the last attempt, from {before}"
                text += f" to {after}" if after != before else ""
            told.append(text)
        return told

    def take_child(self, identity: bytes) -> RunRow | None:
        return self.children.pop(identity, None)


def _occurrence(identity: bytes) -> tuple[bytes, int]:
    """The identity of the first of all equal calls, and the how-manieth of them this one is."""
    if not identity[8] & _REPEATED:
        return identity, 0
    first = identity[:8] + bytes([identity[8] & ~_REPEATED]) + identity[9:-4]
    return first, int.from_bytes(identity[-4:], "big")


def inputs_of(identity: bytes) -> str:
    """The inputs of a call, for people; "" where they are too long to stand in its identity."""
    return shown_inputs(_occurrence(identity)[0][9:]) if len(identity) > 9 else ""


def _numbered(first: bytes, n: int) -> bytes:
    """The identity of the n-th (from 0) of all calls that are equal to *first*."""
    if not n:
        return first
    return first[:8] + bytes([first[8] | _REPEATED]) + first[9:] + n.to_bytes(4, "big")


def _shown(identities: list[bytes]) -> str:
    """The inputs that stand in identities, as far as they are short enough to."""
    texts = [shown_inputs(identity[9:]) for identity in identities]
    known = [text for text in texts if text]
    return ", ".join(known) if known else "others"


def _never_seen(tasks: list[TaskRow], children: list[RunRow]) -> frozenset[int]:
    """Failures after which no call was made: the flow ended before it could look at them.

    Of several failures at once, such as in a map, only one ends the run.
    """
    ends = [(row.seq, row.state, row.created_at, row.ended_at) for row in tasks]
    ends += [(row.parent_seq or 0, row.state, row.created_at, row.ended_at) for row in children]
    newest = max((created for _, _, created, _ in ends), default=0.0)
    return frozenset(
        seq for seq, state, _, ended in ends if state == S.FAILED and (ended or 0.0) >= newest
    )


class Calls:
    """Makes the calls of one engine."""

    def __init__(
        self,
        machine: Machine,
        time: Callable[[], float],
        steady: Callable[[], float],
        mono: Callable[[], float],
        load: Any,
    ) -> None:
        self.machine = machine
        self.time = time
        self.steady = steady
        self.mono = mono
        self.load_file = load
        #: Without it nothing is ever looked up again, and a number is identity enough.
        self.resumable = machine.recording
        self.engine_limit: Any = None
        self.threads_limit: Any = None
        self.processes_limit: Any = None
        self.named: Callable[[str], Any] = lambda _: None
        self.traced = False  # every call has a span: also one whose code never waits
        self._needs: dict[tuple[int, Any, frozenset[str]], Any] = {}
        self._of_tasks: WeakKeyDictionary[Slots, Slots] = WeakKeyDictionary()

    # --- identity -----------------------------------------------------------------------------

    def identity(
        self, run: Run, spec: Any, parent: Call | None, args: Any, kwargs: Any, key: Any
    ) -> bytes:
        """The identity of the next call of *spec* with these inputs."""
        identity = self._first_identity(run, spec, parent, args, kwargs, key)
        mark = hash(identity)
        if mark not in run.seen_hashes:
            run.seen_hashes.add(mark)
            return identity
        n = run.repeats[mark] = run.repeats.get(mark, 0) + 1
        return _numbered(identity, n)

    @staticmethod
    def _first_identity(
        run: Run, spec: Any, parent: Call | None, args: Any, kwargs: Any, key: Any
    ) -> bytes:
        """The identity of the first of all calls of *spec* with these inputs."""
        if parent is None:
            prefix = run.prefixes.get(spec)
            if prefix is None:
                prefix = run.prefixes[spec] = _digest(spec.key.encode())
        else:
            prefix = _digest(parent.identity + spec.key.encode())
        hidden = run.engine.masker.holds
        if key is not None:
            inputs = inputs_fingerprint((key,), {})
            return prefix + b"\x00k" + (_digest(inputs) if hidden(inputs) else inputs)
        if spec.bound_to is not MISSING:
            args = (spec.bound_to, *args)
        try:
            inputs = inputs_fingerprint(args, kwargs, _token)
            # Short inputs stand in the identity as they are: a secret must not.
            return prefix + b"\x00" + (_digest(inputs) if hidden(inputs) else inputs)
        except NotSerializable:
            return prefix + b"\x01" + _by_type(args, kwargs)

    # --- one call -----------------------------------------------------------------------------

    def make(
        self,
        run: Run,
        spec: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        parent: Call | None,
        *,
        key: Any = None,
        wait_for: Any = None,
        priority: float | None = None,
    ) -> tuple[Call, list[Call]]:
        """A new call and its upstreams. It is not submitted yet."""
        key = spec.key_of(args, kwargs) if key is None else key
        run.seq += 1
        if self.resumable:
            identity = self.identity(run, spec, parent, args, kwargs, key)
        else:
            identity = run.seq.to_bytes(5, "big")
        call = self._new(run, spec, args, kwargs, run.seq, parent, identity, copy_context())
        if priority is not None:
            call.priority = priority
        call.asked = True
        transaction = TRANSACTION.get()
        if transaction is not None:
            transaction.add(call)
        return call, self._upstreams(call, wait_for)

    def _new(
        self,
        run: Run,
        spec: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        seq: int,
        parent: Call | None,
        identity: bytes,
        context: Context,
    ) -> Call:
        call: Call = spec.call_class(
            run, spec, self.needs(run, spec), args, kwargs, seq, parent, self.time(), context
        )
        call.identity = identity
        call.asks = spec.caching is not None
        history = run.history
        if history is not None and not spec.is_flow:
            row = history.take(identity, spec.name)
            if row is not None:
                self._recall(call, row, history)
        return call

    def _upstreams(self, call: Call, wait_for: Any) -> list[Call]:
        # A teardown is made whatever becomes of its upstreams, and looks at no failure.
        teardown = call.options.teardown
        found: list[tuple[Call, bool]] = []
        changes = False
        if call.args and not nested.PLAIN.issuperset(map(type, call.args)):
            changes = nested.find(call.args, found)
        if call.kwargs:
            changes = nested.find(call.kwargs.values(), found) or changes
        if wait_for is not None:
            nested.find((nested.Allowed(wait_for) if teardown else wait_for,), found)
        if not found:
            if changes:
                call.upstream = (0,)
            return []
        upstream = {id(other): other for other, _ in found}
        must = {id(other) for other, allowed in found if not allowed}
        call.allow = frozenset(upstream.keys() - must)
        if not teardown:
            for other in upstream.values():
                other.seen = True
                other.run.unseen.pop(other.seq, None)
        call.upstream = tuple(
            [o.seq for o in upstream.values() if o.run is call.run and not o.unrecorded]
        ) or (0,)
        return list(upstream.values())

    def needs(self, run: Run, spec: Any) -> Any:
        """The limits of a call: its run's, its task's, those of its tags, named ones."""
        if spec.is_flow:
            return ()
        tags = TAGS.get()
        key = (run.pk, spec, tags)
        needs = self._needs.get(key)
        if needs is None:
            needs = self._needs[key] = self._find_needs(run, spec, tags)
        return needs

    def _find_needs(self, run: Run, spec: Any, tags: frozenset[str]) -> Any:
        options = spec.options
        wanted: dict[Any, int] = dict(run.limit)
        if spec.limit is not None:
            wanted[self._own(spec.limit)] = 1
        if spec.in_thread:
            wanted[self.threads_limit] = 1
        elif options.runner == "process":
            wanted[self.processes_limit] = 1
        for tag in sorted(options.tags | tags | run.tags):
            limit = self.named(f"tag:{tag}")
            wanted[limit] = 1
        for name, units in options.limits:
            limit = self.named(name)
            wanted[limit] = wanted.get(limit, 0) + units
        wanted[self.engine_limit] = 1
        for limit, units in wanted.items():
            most = limit.most if limit.timed else limit.whole
            if units > most > 0:
                run.engine.report(
                    f"task {spec.name!r} needs {units} of the limit {limit.name!r}, of which there"
                    f" are {most:g}: its calls wait until that is raised"
                )
        return tuple(wanted.items())

    def _own(self, declared: Slots) -> Slots:
        """The slots of a task in this engine: who waits for those of others is not ours."""
        found = self._of_tasks.get(declared)
        if found is None:
            found = self._of_tasks[declared] = Slots(declared.name, declared.whole)
        return found

    def forget_needs(self) -> None:
        """Named limits have changed: work out anew what each task needs."""
        self._needs.clear()

    def forget(self, run: Run) -> None:
        """The run is over: forget what was worked out for it."""
        for key in [k for k in self._needs if k[0] == run.pk]:
            del self._needs[key]

    # --- maps ---------------------------------------------------------------------------------

    def make_batch(
        self,
        run: Run,
        spec: Any,
        inputs: Inputs,
        parent: Call | None,
        priority: float | None,
        upstream: tuple[int, ...] = (),
    ) -> Batch:
        """A map over plain inputs."""
        size = inputs.size
        batch = Batch(run, spec, spec.options, self.needs(run, spec), size, run.seq + 1)
        run.seq += size
        batch.inputs = inputs.item
        batch.column = inputs.column
        batch.parent = parent
        batch.upstream = upstream
        batch.created = self.time()
        batch.context = copy_context()
        batch.make = self._make_item
        batch.become = self._become
        batch.light = spec.light and not self.traced
        if spec.options.key is not None:
            batch.keys = [self._key_of_item(spec, inputs, index) for index in range(size)]
        batch.identity_of = self._identity_of_item
        if priority is not None:
            batch.priority = priority
        transaction = TRANSACTION.get()
        if transaction is not None:
            transaction.add_batch(batch)
        return batch

    @staticmethod
    def _key_of_item(spec: Any, inputs: Inputs, index: int) -> Any:
        try:
            return spec.key_of(*inputs.item(index))
        except Exception as error:
            error.add_note(
                f"asyncflow: key= of task {spec.name!r} failed for item {index} of a map"
            )
            raise

    def _make_item(self, batch: Batch, index: int) -> Call:
        run = batch.run
        args, kwargs = batch.inputs(index)
        call = self._item_call(batch, index, args, kwargs)
        call.identity = identity = self.item_identity(batch, index, args, kwargs)
        if run.history:
            row = run.history.take(identity, batch.spec.name)
            if row is not None:
                self._recall(call, row, run.history)
                self._found(batch, index, call.seq)
                if call.identity != identity:
                    batch.odd = {**(batch.odd or {}), index: call.identity}
        if call.aside is not None:
            self.machine.aside_again(call)
        elif call.retry_at is not None and call.phase is S.PENDING:
            self.machine.wait_again(call, self.mono_of(call.retry_at))
        return call

    @staticmethod
    def _item_call(batch: Batch, index: int, args: Any, kwargs: Any) -> Call:
        spec = batch.spec
        call: Call = spec.call_class(
            batch.run, spec, batch.limits, args, kwargs, batch.seq + index, batch.parent,
            batch.created, batch.context,
        )  # fmt: skip
        call.priority = batch.priority
        call.upstream = batch.upstream
        call.batch = batch
        call.index = index
        return call

    @staticmethod
    def _found(batch: Batch, index: int, seq: int) -> None:
        """An item had the number *seq* in a former life of the run."""
        if batch.seqs is None:
            batch.seqs = {}
        batch.seqs[index] = seq

    def _become(self, item: Item) -> None:
        """Make the call of an item."""
        batch, index = item.batch, item.index
        known = batch.calls.get(index)
        if known is not None:
            item.made = known
            return
        args, kwargs = batch.inputs(index)
        call = self._item_call(batch, index, args, kwargs)
        call.identity = item.identity
        self.machine.become(item, call, self.time())

    def item_identity(self, batch: Batch, index: int, args: Any, kwargs: Any) -> bytes:
        """The identity of an item that is being started."""
        if not self.resumable:
            return (batch.seq + index).to_bytes(5, "big")
        key = None if batch.keys is None else batch.keys[index]
        identity = self.identity(batch.run, batch.spec, batch.parent, args, kwargs, key)
        if identity[8] & _REPEATED:
            if batch.odd is None:
                batch.odd = {}
            batch.odd[index] = identity
        return identity

    def answer(self, batch: Batch, most: int) -> int:
        """Put stored values in the place of the next items of a map that completed before.

        At most *most*; stops at the first that has to run, or whose record needs a `Call`.
        Returns how many were answered.
        """
        run, spec = batch.run, batch.spec
        history = run.history
        if not history or not batch.light or batch.keys is not None:
            return 0
        tasks, results, calls = history.tasks, batch.results, batch.calls
        inputs, parent = batch.inputs, batch.parent
        index = first = batch.next
        until = min(batch.size, index + most)
        load = self.load_file
        while index < until and index not in calls:
            args, kwargs = inputs(index)
            identity = self._first_identity(run, spec, parent, args, kwargs, None)
            mark = hash(identity)
            row = tasks.get(identity)
            if row is None or row.state != _COMPLETED or mark in run.seen_hashes:
                break
            if row.state_name is not None:
                break  # that it was skipped matters to what depends on it
            try:
                value = rows.value_of(row.result_kind, row.result, load, spec.name)
            except AsyncflowError:
                break  # it is told, or mended, where its call is made
            if value is MISSING:
                break
            run.seen_hashes.add(mark)
            del tasks[identity]
            results[index] = value
            self._found(batch, index, row.seq)
            index += 1
        batch.next = index
        if index > first:
            self.machine.items_completed(batch, index - first, index - first)
        return index - first

    def _identity_of_item(self, batch: Batch, index: int) -> bytes:
        """The identity that an item had when it was started: worked out again, not kept."""
        if not self.resumable:
            return (batch.seq + index).to_bytes(5, "big")
        if batch.odd is not None and index in batch.odd:
            return batch.odd[index]
        args, kwargs = batch.inputs(index)
        spec = batch.spec
        key = None if batch.keys is None else batch.keys[index]
        return self._first_identity(batch.run, spec, batch.parent, args, kwargs, key)

    def mono_of(self, moment: float) -> float:
        """A point of the steady clock on that of the loop; one that is past is now."""
        return self.mono() + max(0.0, moment - self.steady())

    # --- what the store knows -----------------------------------------------------------------

    def _recall(self, call: Call, row: TaskRow, history: History) -> None:
        """Carry over what a former life of the run recorded of this call."""
        call.seq = row.seq
        call.identity = row.identity
        state = S(row.state)
        if self._stays_aside(call, row, state, history):
            self._carry(call, row)
            call.aside = Aside(state is S.PAUSED, told=True)
            call.error = failures.rebuild(row.error or b"null")
            failures.blame(call.error, call)
            return
        if state is S.COMPLETED:
            if row.result_kind == ResultKind.NOT_STORED:
                return
            what = f"{call.display} of run {call.run.id}"
            try:
                value = rows.value_of(row.result_kind, row.result, self.load_file, what)
            except AsyncflowError as error:
                # Its record stays as it is: it completed, and must not run again unasked.
                self._carry(call, row)
                call.error, call.message = error, str(error)
                self.machine.answer(call, S.FAILED, None)
                return
            if value is MISSING:
                return
            self._carry(call, row)
            call.value = value
            self.machine.answer(call, state, row.state_name)
        elif state is S.FAILED:
            if row.seq in history.again or row.state_name == "UpstreamFailed":
                return
            self._carry(call, row)
            call.error = failures.rebuild(row.error or b"null")
            failures.blame(call.error, call)
            self.machine.answer(call, state, row.state_name)
        else:
            # It had not ended, or was stopped along with its run: attempts used stay used.
            call.created = row.created_at
            call.attempt = row.attempt
            cut_off = row.attempt > row.failures + row.interruptions
            call.interruptions = row.interruptions + cut_off
            if not history.fresh:
                call.failures = row.failures
                call.retry_at = row.retry_at

    @staticmethod
    def _stays_aside(call: Call, row: TaskRow, state: StateType, history: History) -> bool:
        """Whether its own code has failed for good, and something else is to be done."""
        if state is S.COMPLETED and row.state_name == FALLBACK:
            # Its fallback is asked again where its result is only there, or has to be known
            # to a transaction.
            other = getattr(call.options.failure_policy, "task", None)
            if other is None:
                return False
            return row.result_kind == ResultKind.NOT_STORED or bool(other.spec.steps)
        if history.fresh:
            return False
        waits = state is S.SCHEDULED and row.state_name == AWAITING_FALLBACK
        return waits or state is S.PAUSED

    @staticmethod
    def _carry(call: Call, row: TaskRow) -> None:
        call.created = row.created_at
        call.started, call.ended = row.started_at, row.ended_at
        call.attempt, call.failures = row.attempt, row.failures
        call.interruptions = row.interruptions
        call.label, call.message = row.name, row.message


def _token(value: Any) -> bytes | None:
    """What stands for a future among inputs: the identity of its call."""
    if isinstance(value, Call):
        return b"@" + _standing(value)
    if isinstance(value, nested.Allowed):
        return b"?" + (_token(value.future) or b"")
    if isinstance(value, nested.FutureGroup):
        late = value.late
        if late is not None:
            edits = late.run.edits
            return b"@" + late.identity + (edits.of_task(late.spec.task.name) if edits else b"")
        return b"@" + _digest(b"".join(map(_standing, value.members())))
    return None


def _standing(call: Call) -> bytes:
    """What stands for the result of a call: its identity, and whether a fork has edited it."""
    edits = call.run.edits
    return call.identity + edits.of_call(call.identity) if edits else call.identity


def _by_type(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
    """Inputs some of which have no canonical form, such as a connection: those count by type."""
    parts = []
    for name, value in [*enumerate(args), *sorted(kwargs.items())]:
        try:
            part = inputs_fingerprint((name, value), {}, _token)
        except NotSerializable:
            module, qualname = class_name(type(value)).split(":", 1)
            part = inputs_fingerprint((name, module, qualname), {})
        parts.append(part)
    return b"~" + b"".join(_digest(part) for part in parts)


def _digest(data: bytes) -> bytes:
    return blake2b(data, digest_size=8).digest()
