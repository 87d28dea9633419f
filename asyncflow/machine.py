"""What happens next: the whole life of a call, decided without awaiting anything.

Verbs go in (`submit`, `next`, `start`, `complete`, `fail`, `stopped`, `settle`, `cancel`,
`lend`, `retake_now`, `tick`); what the engine must carry out is left in lists that it drains
after each verb: `changed` (calls whose state must be recorded), `ended` (calls that may be
settled without waiting for that), `awake` (calls, maps and runs whose waiters can go on),
`stops` (calls whose code must be stopped), `queued` (calls whose time in line is bounded),
`asking` (calls that are asked for in the cache before they get in line: `admit` lets them) and
`landed` (calls with a cache key that have settled).
The machine reads no clock, opens no file and starts no task, so that a test can drive years of
it in a millisecond.

A call ends in two steps. `complete`, `fail` and `stopped` say how its code ended: its slots are
free and its state is final. `settle` says that this is recorded: only now do those who wait for
it, or depend on it, see it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from heapq import heappop, heappush
from itertools import count
from typing import Any, Protocol

from asyncflow.errors import IllegalMove, UpstreamFailed
from asyncflow.limits import Limit, Line, Needs, Rate, blocker
from asyncflow.run import MISSING, Aside, Batch, Call, Hold, Item, Run
from asyncflow.states import AWAITING_FALLBACK, SKIPPED, StateType

S = StateType
_PENDING, _RUNNING, _COMPLETED = S.PENDING, S.RUNNING, S.COMPLETED
_SCHEDULED, _CANCELLING = S.SCHEDULED, S.CANCELLING

#: States in which a call may be given a slot.
_STARTABLE = (S.PENDING, S.SCHEDULED)


class Observer(Protocol):
    """Is told of every call that is made and every one that has ended, for live displays."""

    def made(self, source: Call | Batch, count: int) -> None: ...

    def ended(self, call: Call) -> None: ...

    def completed(self, source: Batch, count: int, before: int) -> None:
        """*count* items of a map completed, *before* of them in a former life of the run."""
        ...


class Observers:
    """Several observers, told one after another."""

    def __init__(self, *told: Observer) -> None:
        self.told = told

    def made(self, source: Call | Batch, count: int) -> None:
        for observer in self.told:
            observer.made(source, count)

    def ended(self, call: Call) -> None:
        for observer in self.told:
            observer.ended(call)

    def completed(self, source: Batch, count: int, before: int) -> None:
        for observer in self.told:
            observer.completed(source, count, before)


class Machine:
    """Decides for all runs of one engine.

    Args:
        recording: whether states are recorded; without, `changed` stays empty.
        at_once: whether an end is settled as soon as it is decided, without waiting for its
            record.
    """

    def __init__(self, recording: bool = True, at_once: bool = False) -> None:
        self.recording = recording
        self.at_once = at_once or not recording
        self.changed: list[Call | Item] = []
        self.awake: list[Call | Batch | Run] = []
        self.stops: list[Call] = []
        self.ended: list[Call] = []
        self.queued: list[Call] = []
        self.asking: list[Call] = []
        self.landed: list[Call] = []
        self._open: deque[Limit] = deque()
        self._rates: dict[int, Rate] = {}
        self._retries: list[tuple[float, int, Call]] = []
        self._free = Line()
        self._tie = count()
        #: Rises whenever somebody gets in line, or a limit changes its size.
        self.joined = 0
        #: Limits of which there is more, but in the hands of other engines.
        self.hungry: set[Limit] = set()
        self.observer: Observer | None = None

    def observe(self, observer: Observer) -> None:
        """Tell *observer*, too, from now on."""
        before = self.observer
        self.observer = observer if before is None else Observers(before, observer)

    # --- beginning ----------------------------------------------------------------------------

    def submit(self, call: Call, upstream: list[Call], now: float, at_once: bool = False) -> bool:
        """A call was made. It waits for *upstream*, then for its limits.

        Returns whether it has its slots already; with *at_once* that is tried.
        """
        run = call.run
        run.live += 1
        run.calls[call] = None
        if self.observer is not None:
            self.observer.made(call, 1)
        if not upstream:
            if at_once and not call.asks and self.try_start(call):
                return True
            self._line_up(call)
            return False
        if self._depend(call, upstream, now) and not call.waiting:
            self._free_to_go(call, now)
        return False

    def _depend(self, call: Call, upstream: list[Call], now: float) -> bool:
        """*call* waits for *upstream*. False: one of them has failed, and so has it."""
        for other in upstream:
            if not other.settled:
                call.waiting += 1
                if other.dependants is None:
                    other.dependants = []
                other.dependants.append(call)
        if call.waiting:
            call.waits_on += tuple([other for other in upstream if not other.settled])
        for other in upstream:
            if other.settled and self._blocks(other, call) and self._ends(call, other, now):
                return False
        return True

    def _free_to_go(self, call: Call, now: float) -> None:
        """All upstreams have ended, and none of them has failed for it: it gets in line."""
        if call.skips is not None:
            self._skip_for(call, call.skips, now)
        else:
            self._line_up(call)

    def answer(self, call: Call, state: StateType, name: str | None) -> None:
        """The end of a new call is known from the store."""
        self._move(call, state, name, record=False)
        call.answered = True

    def submit_answered(self, call: Call) -> None:
        """A call that was answered from the store is there, and can be settled."""
        call.run.live += 1
        if self.observer is not None:
            self.observer.made(call, 1)
        self.settle(call)

    def resubmit(self, call: Call, mono: float) -> None:
        """A call of a former life is made again, and waits for its next attempt until *mono*."""
        call.run.live += 1
        if self.observer is not None:
            self.observer.made(call, 1)
        self.wait_again(call, mono)

    def wait_again(self, call: Call, mono: float) -> None:
        """A call of a former life waits for its next attempt until *mono*."""
        call.run.calls[call] = None
        self._move(call, _SCHEDULED, "AwaitingRetry", record=False)
        self.retry_at(call, mono)

    def promise(self, call: Call) -> None:
        """A map was made over a list that is not there yet: *call* stands for its calls.

        It has no record, and its run does not end before it has.
        """
        call.dirty = True  # which keeps it out of `changed`
        call.run.live += 1
        call.run.calls[call] = None

    def keep(self, call: Call, members: list[Call], now: float) -> None:
        """The calls that *call* stood for are there: who depends on it depends on them."""
        for other in call.dependants or ():
            if id(call) in other.allow:
                other.allow |= {id(member) for member in members}
            other.upstream += tuple([m.seq for m in members if m.run is other.run])
            if other.phase is _PENDING:
                self._depend(other, members, now)
        self._move(call, _COMPLETED, record=False)
        self.settle(call)

    def submit_batch(self, batch: Batch) -> None:
        """A map was made; its calls are made as they are started."""
        run = batch.run
        run.live += batch.size
        run.batches[batch] = None
        if self.observer is not None:
            self.observer.made(batch, batch.size)
        self._line_up(batch)

    def try_start(self, call: Call) -> bool:
        """Take the slots of a new call at once, if nobody waits for them before it."""
        for limit, units in call.limits:
            if limit.used + units > limit.size or limit.line.n or limit.timed:
                return False
        for limit, units in call.limits:
            limit.used += units
        call.holding = True
        return True

    def _line_up(self, waiter: Any) -> None:
        self.joined += 1
        if isinstance(waiter, Call):
            if waiter.asks:
                waiter.asks = False
                self.asking.append(waiter)
                return
            if waiter.options.bounded:
                self.queued.append(waiter)
        if not waiter.limits:
            self._free.push(waiter)
            return
        limit = waiter.limits[0][0]
        limit.line.push(waiter)
        self._reopen(limit)

    def admit(self, call: Call) -> None:
        """The cache does not know the call: it gets in line."""
        if call.phase in _STARTABLE and call.aside is None:
            self._line_up(call)

    def wait_for_slots(self, waiter: Hold) -> None:
        """User code, or a call that takes back what it lent, asks for units."""
        self._line_up(waiter)

    # --- who is next --------------------------------------------------------------------------

    def next(self, mono: float) -> Any:
        """The next waiter for whom there is room, which now holds its units; or None.

        A call that is final already was answered from the store, and needs none.

        Args:
            mono: the monotonic clock, in seconds, by which rates are judged.
        """
        while self._free.n:
            waiter = self._take(self._free, self._free.head())
            if waiter is not None:
                waiter.holding = True
                return waiter
        opened = self._open
        while opened:
            limit = opened[0]
            line = limit.line
            while line.n:
                head = line.head()
                full = None
                for other, units in head.limits:
                    if other.timed:
                        other.refresh(mono)
                    if other.used + units > other.size:
                        full = other
                        break
                if full is not None:
                    if full is limit:
                        # The head waits for more than there is, and nobody overtakes it.
                        if limit.size < limit.whole:
                            self.hungry.add(limit)
                        break
                    line.pop()
                    full.line.push(head)
                    if full.timed or full.size < full.whole:
                        # Time, or another engine, has what it lacks: that line is looked at too.
                        self._reopen(full)
                    continue
                waiter = self._take(line, head)
                if waiter is None:
                    continue
                if not head.is_source or waiter.phase is _PENDING:
                    for other, units in waiter.limits:
                        if other.timed:
                            other.take(units, mono)
                        else:
                            other.used += units
                    waiter.holding = True
                return waiter
            limit.open = False
            opened.popleft()
        return None

    @staticmethod
    def _take(line: Line, head: Any) -> Any:
        """The head of the line, or the next call of a source; None if it is not wanted now."""
        if head.is_source:
            index = head.next
            if index >= head.size:
                line.pop()
                return None
            call = head.take()
            if index + 1 >= head.size:
                line.pop()
            else:
                line.pass_turn()
            if call.phase is _PENDING:
                head.run.calls[call] = None
                return call
            # Answered from the store: its taker settles it, unless that is done already.
            return call if call.phase.is_final and not call.settled else None
        line.pop()
        if head.__class__ is Hold:
            return head if head.live else None
        return head if head.phase in _STARTABLE and not head.holding and not head.aside else None

    def _reopen(self, limit: Limit) -> None:
        """Have `next` look at the line of a limit again."""
        if not limit.open:
            limit.open = True
            self._open.append(limit)
        if isinstance(limit, Rate):
            self._rates[id(limit)] = limit

    def more(self) -> bool:
        """Whether somebody else may have room, beyond the one that was just answered."""
        if self._free.n:
            return True
        if not self._open:
            return False
        limit = self._open[0]
        return limit.used < limit.size and limit.line.n > 0

    def resized(self, limit: Limit) -> None:
        """A limit was given another size."""
        self.joined += 1
        self._reopen(limit)

    def release(self, needs: Needs) -> None:
        """Give units back, to whoever is next."""
        for limit, units in needs:
            if not limit.timed:
                limit.used -= units
                if limit.line.n and not limit.open:
                    limit.open = True
                    self._open.append(limit)
            else:
                limit.held -= units

    def lend(self, call: Call) -> None:
        """The call waits for a child: others may have its slots."""
        if call.holding:
            call.holding = False
            self.release(call.limits)

    def retake_now(self, call: Call) -> bool:
        """Take lent slots back at once, if they are free; else make a `Hold` and wait."""
        if call.holding:
            return True
        if blocker(self.lent(call)) is not None:
            return False
        self.retaken(call)
        return True

    @staticmethod
    def lent(call: Call) -> Needs:
        """What a call has lent: a start that a rate has allowed stays allowed."""
        return tuple(need for need in call.limits if not need[0].timed)

    @staticmethod
    def retaken(call: Call, taken: Needs = ()) -> None:
        """The call has again what it had lent, of which *taken* is counted already."""
        for need in call.limits:
            if need in taken:
                continue
            limit, units = need
            if limit.timed:
                limit.held += units
            else:
                limit.used += units
        call.holding = True

    # --- items of a map that need no call -----------------------------------------------------

    def sit(self, batch: Batch) -> bool:
        """Take the slots of one call for several items of a map, one after another.

        Only where nobody else waits for any of them, and only until `joined` changes or the
        caller gives them back with `release`; so nobody waits longer than for a call.
        """
        if not self.only_waits(batch):
            return False
        for limit, units in batch.limits:
            if limit.timed or limit.used + units > limit.size:
                return False
        for limit, units in batch.limits:
            limit.used += units
        return True

    def only_waits(self, batch: Batch) -> bool:
        """Whether nobody but this map waits for any of the limits that it needs."""
        if self._free.n:
            return False
        for limit, _ in batch.limits:
            line = limit.line
            if line.n > 1 or (line.n and line.head() is not batch):
                return False
        return True

    def become(self, item: Item, call: Call, now: float) -> None:
        """An item of a map becomes a call: its code waits, it failed, or somebody asks."""
        batch = item.batch
        item.made = batch.calls[item.index] = call
        call.started = item.started or now
        call.attempt = 1
        self._move(call, _RUNNING, record=False)
        if item.value is MISSING:
            # Its slots, taken by `sit`, are its own from now on.
            call.holding = True
            batch.run.calls[call] = None
            return
        call.value = item.value
        call.ended = item.ended
        self._move(call, _COMPLETED, record=False)
        call.settled = batch.results[item.index] is not item

    def items_completed(self, batch: Batch, count: int, before: int = 0) -> None:
        """Items of a map have completed, and that is recorded; their values are in place."""
        run = batch.run
        run.live -= count
        batch.open -= count
        if self.observer is not None:
            self.observer.completed(batch, count, before)
        if not batch.open:
            run.batches.pop(batch, None)
            self.awake.append(batch)
        if not run.live and run.idle is not None:
            self.awake.append(run)

    # --- the life of a call -------------------------------------------------------------------

    def start(self, call: Call, now: float) -> None:
        """Its code is about to be entered, with its slots held."""
        call.attempt += 1
        if call.started is None:
            call.started = now
        name = None
        if call.attempt > 1:
            name, call.began = "Retrying", now
        # Not recorded at once: most calls end before anybody could look (see `note`).
        self._move(call, _RUNNING, name, record=False)

    def note(self, call: Call) -> None:
        """Record the call as it is now, because it has been so for a while."""
        if self.recording and not call.dirty:
            call.dirty = True
            self.changed.append(call)

    def seal(self, call: Call) -> None:
        """Somebody else records the end of the call: nothing may be written after that."""
        if call.dirty:
            self.changed.remove(call)
        call.dirty = True

    def unseal(self, call: Call) -> None:
        """Its moves are recorded again."""
        call.dirty = False

    def completed_on_record(self, call: Call, value: object, now: float) -> None:
        """A sealed call returned *value*, and that is recorded."""
        call.message = ""
        self.complete(call, value, now)
        call.dirty = False
        if not self.at_once:
            self.ended.append(call)

    def complete(self, call: Call, value: object, now: float, name: str | None = None) -> None:
        """Its code returned *value*."""
        call.value = value
        call.ended = now
        call.expires = None
        if call.holding:
            call.holding = False
            self.release(call.limits)
        self._move(call, _COMPLETED, name)
        if self.at_once:
            if call.spec.has_hooks:
                self.ended.append(call)
            else:
                self.settle(call)

    def fail(
        self, call: Call, error: BaseException, now: float, name: str | None = None, msg: str = ""
    ) -> None:
        """Its code failed for good."""
        call.error = error
        self._end(call, S.FAILED, now, name, msg)

    def stopped(
        self, call: Call, error: BaseException, now: float, msg: str, name: str | None = None
    ) -> None:
        """Its code was cancelled and has ended, or was given up."""
        call.error = error
        self._end(call, S.CANCELLED, now, name, msg)

    def back_off(self, call: Call, error: BaseException, retry_at: float, msg: str) -> None:
        """An attempt failed and another follows: it waits, without slots, until `wake`."""
        call.error = error
        call.retry_at = retry_at
        call.expires = None
        call.message = msg
        self._free_slots(call)
        self._move(call, _SCHEDULED, "AwaitingRetry")

    def again(self, call: Call) -> None:
        """The wait before another attempt is over."""
        if call.phase is _SCHEDULED and call.aside is None:
            call.retry_at = None
            call.eager = True
            self._line_up(call)

    def skip(self, call: Call, now: float, msg: str, error: BaseException | None = None) -> None:
        """There is nothing to do for it, or *error*, with which it failed, is passed over."""
        call.value = None
        call.error = error
        self._end(call, _COMPLETED, now, SKIPPED, msg)

    # --- after its own code has failed --------------------------------------------------------

    def set_aside(self, call: Call, error: BaseException, pauses: bool, msg: str) -> None:
        """It has failed for good, and waits, without slots, for its fallback or for a person."""
        call.error = error
        call.aside = Aside(pauses)
        call.message = msg
        call.expires = call.retry_at = None
        self._free_slots(call)
        self._stand_aside(call, pauses, record=True)
        if self.at_once:
            self.ended.append(call)

    def _stand_aside(self, call: Call, pauses: bool, record: bool) -> None:
        if pauses:
            self._move(call, S.PAUSED, record=record)
            return
        if call.phase is _SCHEDULED:  # it waited for another attempt
            self._move(call, _PENDING, record=False)
        self._move(call, _SCHEDULED, AWAITING_FALLBACK, record=record)

    def resubmit_aside(self, call: Call) -> None:
        """A call of a former life is made again, and its own code has failed for good."""
        call.run.live += 1
        if self.observer is not None:
            self.observer.made(call, 1)
        self.aside_again(call)

    def aside_again(self, call: Call) -> None:
        """The own code of a call of a former life has failed for good."""
        assert call.aside is not None
        call.run.calls[call] = None
        self._stand_aside(call, call.aside.pauses, record=False)
        self.ended.append(call)

    def try_afresh(self, call: Call) -> None:
        """A paused call begins anew, with all its attempts."""
        call.aside = call.error = call.past = call.deadline = None
        call.failures = 0
        call.message = ""
        call.eager = True
        self._move(call, _PENDING)
        self._line_up(call)

    def leave(self, call: Call, error: BaseException) -> None:
        """It goes on in another life of its run: its record stays as it is."""
        call.error = error
        self._move(call, S.CANCELLED, record=False)
        self.ended.append(call)

    # --- ends -----------------------------------------------------------------------------------

    def _end(self, call: Call, state: StateType, now: float, name: str | None, msg: str) -> None:
        call.ended = now
        call.message = msg
        call.expires = None
        if call.holding:
            call.holding = False
            self.release(call.limits)
        self._move(call, state, name)
        if self.at_once or call.unrecorded:
            self.ended.append(call)

    def _free_slots(self, call: Call) -> None:
        if call.holding:
            call.holding = False
            self.release(call.limits)

    def settle(self, call: Call) -> None:
        """Its end is recorded: those who wait for it and depend on it go on."""
        call.settled = True
        run = call.run
        run.live -= 1
        if self.observer is not None and not call.unrecorded:
            self.observer.ended(call)
        run.calls.pop(call, None)
        call.args = ()
        call.kwargs = {}
        call.body = None
        if call.waits_on:
            call.waits_on = ()
        if call.phase is not _COMPLETED and not call.seen and call.waiters is None:
            self._unseen(call)
        batch = call.batch
        if batch is not None:
            if call.phase is _COMPLETED:
                batch.results[call.index] = call.value
                if not call.asked and call.phase_name is None:
                    batch.calls.pop(call.index, None)
            batch.open -= 1
            if not batch.open:
                run.batches.pop(batch, None)
                self.awake.append(batch)
        if call.waiters is not None or call.direct is not None:
            self.awake.append(call)
        if call.cache_key is not None:
            self.landed.append(call)
            self.awake.append(call)
        if call.dependants is not None:
            dependants, call.dependants = call.dependants, None
            self._release_dependants(call, dependants)
        if not run.live and run.idle is not None:
            self.awake.append(run)

    def _unseen(self, call: Call) -> None:
        """A failure that nobody has looked at yet (see `Run.unseen`)."""
        if call.phase is not S.FAILED or (call.batch is not None and call.batch.seen):
            return
        if call.options.teardown or self._is_lenient(call):
            call.seen = True
        else:
            call.run.unseen[call.seq] = call

    @staticmethod
    def _is_lenient(call: Call) -> bool:
        """Whether nobody has to look at its failure, because its policy says so."""
        if call.phase_name == "UpstreamFailed":
            return call.lenient
        return bool(call.options.failure_policy == "continue")

    def _release_dependants(self, call: Call, dependants: list[Call]) -> None:
        for other in dependants:
            if other.phase is not _PENDING:
                continue
            other.waiting -= 1
            now = call.ended or 0.0
            if self._blocks(call, other) and self._ends(other, call, now):
                continue
            if not other.waiting:
                other.waits_on = ()
                other.eager = True
                if self.observer is not None:
                    other.ready = now
                self._free_to_go(other, now)

    @staticmethod
    def _blocks(upstream: Call, call: Call) -> bool:
        if upstream.phase is _COMPLETED and upstream.phase_name != SKIPPED:
            return False
        return id(upstream) not in call.allow

    def _ends(self, call: Call, upstream: Call, now: float) -> bool:
        """*upstream* is in the way of *call*: whether that ends it now, as a failure.

        It is skipped only when all upstreams have ended: one of them may fail yet.
        """
        if upstream.phase is not _COMPLETED and not call.options.teardown:
            self.upstream_failed(call, upstream, now)
            return True
        if call.skips is None or upstream.seq < call.skips.seq:
            call.skips = upstream  # the same one, in whatever order they end
        return False

    def _skip_for(self, call: Call, upstream: Call, now: float) -> None:
        """*call* does not run because *upstream* was skipped, or has set nothing up."""
        if not call.options.teardown:
            text = f"{call.display} did not run: {upstream.display} was skipped"
        elif upstream.phase is _COMPLETED:
            text = f"nothing to tear down: {upstream.display} was skipped"
        else:
            text = f"nothing to tear down: {upstream.display} did not succeed"
        self.skip(call, now, text)

    def upstream_failed(self, call: Call, upstream: Call, now: float) -> None:
        """*call* depends on *upstream*, which did not succeed: it ends without running."""
        upstream.seen = True
        upstream.run.unseen.pop(upstream.seq, None)
        error = UpstreamFailed(f"{call.display} did not run: {upstream.display} did not succeed")
        cause = upstream.error
        if isinstance(cause, UpstreamFailed) and cause.__cause__ is not None:
            cause = cause.__cause__
        error.__cause__ = cause
        call.error = error
        call.lenient = call.options.failure_policy == "continue" and (
            upstream.phase is not S.FAILED or self._is_lenient(upstream)
        )
        self._end(call, S.FAILED, now, "UpstreamFailed", str(error))

    # --- stopping -----------------------------------------------------------------------------

    def cancel(self, call: Call, msg: str, now: float, error: BaseException) -> None:
        """Stop a call, whatever it is doing. Cancelling what has ended does nothing."""
        state = call.phase
        if state.is_final or state is _CANCELLING:
            return
        if call.aside is not None and call.aside.stand_in is not None:
            # It has been cancelled when its fallback has.
            call.message = msg
            self._move(call, _CANCELLING)
            self.cancel(call.aside.stand_in, msg, now, error)
            return
        if state is _RUNNING:
            call.message = msg
            self._move(call, _CANCELLING)
            self.stops.append(call)
            return
        call.error = error
        self._end(call, S.CANCELLED, now, None, msg)

    def cancel_batch(self, batch: Batch, msg: str, now: float, error: BaseException) -> None:
        """Cancel the items of a map that were not taken; each gets its record."""
        batch.stopped = msg
        for call in self.untaken(batch):
            self.cancel(call, msg, now, error)

    @staticmethod
    def untaken(batch: Batch) -> Iterator[Call]:
        """The items of a map that were not taken, which are calls from now on."""
        while batch.next < batch.size:
            call = batch.take()
            if not call.settled:
                batch.run.calls[call] = None
                yield call

    # --- time ---------------------------------------------------------------------------------

    def retry_at(self, call: Call, mono: float) -> None:
        """The failed attempt is recorded: begin another at *mono*."""
        heappush(self._retries, (mono, next(self._tie), call))

    def retrying(self) -> list[Call]:
        """The calls that wait for another attempt."""
        retries = [call for _, _, call in self._retries]
        return [call for call in retries if call.phase is _SCHEDULED and call.aside is None]

    def tick(self, mono: float) -> None:
        """Time has passed: what was due goes on."""
        while self._retries and self._retries[0][0] <= mono:
            self.again(heappop(self._retries)[2])
        for key, rate in list(self._rates.items()):
            if rate.line.n and rate.timed:
                self._reopen(rate)
            else:
                del self._rates[key]

    def next_tick(self, mono: float) -> float | None:
        """When `tick` must be called again, or None."""
        while self._retries and self._retries[0][2].phase is not _SCHEDULED:
            heappop(self._retries)
        due = [self._retries[0][0]] if self._retries else []
        for rate in self._rates.values():
            if rate.line.n and rate.timed:
                units = next(u for limit, u in rate.line.head().limits if limit is rate)
                rate.refresh(mono)
                when = rate.next_time(units, mono)
                if when is not None:
                    due.append(when)
        return min(due) if due else None

    # --- the one place ------------------------------------------------------------------------

    def _move(
        self, call: Call, after: StateType, name: str | None = None, record: bool = True
    ) -> None:
        """The only place that assigns the state of a call."""
        before = call.phase
        if not before.next_bits & after.bit:
            raise IllegalMove(call.display, before, after, tuple(call.run.story))
        call.phase = after
        call.phase_name = name
        if record and self.recording and not call.dirty:
            call.dirty = True
            self.changed.append(call)

    def move_run(self, run: Run, after: StateType, name: str | None, msg: str, now: str) -> None:
        """The only place that assigns the state of a flow run."""
        before = run.phase
        if not before.next_bits & after.bit:
            raise IllegalMove(run.id, before, after, tuple(run.story))
        run.phase = after
        run.phase_name = name
        run.message = msg
        told = f"{now} {run.shown_phase}"
        run.story.append(f"{told} ({msg})" if msg else told)


__all__ = ["MISSING", "Machine"]
