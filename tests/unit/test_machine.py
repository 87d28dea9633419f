"""The machine: stories that a person can follow, and histories that nobody would think of."""

from __future__ import annotations

import os
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from asyncflow.errors import IllegalMove, TaskCancelled
from asyncflow.limits import Slots
from asyncflow.machine import Machine
from asyncflow.run import Batch, Call, Options, Run
from asyncflow.states import MOVES, StateType

HISTORIES = int(os.environ.get("ASYNCFLOW_HISTORIES", "10000"))


def a_run() -> Run:
    flow = SimpleNamespace(name="flow", options=Options())
    return Run("id", 1, flow, None, 0.0)


def a_spec(name: str = "task", **options: Any) -> Any:
    return SimpleNamespace(name=name, options=Options(**options), has_hooks=False, is_flow=False)


def a_call(run: Run, *limits: Slots, **options: Any) -> Call:
    run.seq += 1
    needs = tuple((limit, 1) for limit in limits)
    return Call(run, a_spec(**options), needs, (), {}, run.seq, None, 0.0, None)


def started(machine: Machine) -> list[Call]:
    calls = []
    while (call := machine.next(0.0)) is not None:
        machine.start(call, 0.0)
        calls.append(call)
    return calls


def record(machine: Machine) -> None:
    """As the journal does: what changed is on disk, and what ended is settled."""
    while machine.changed:
        changed, machine.changed = machine.changed, []
        for call in changed:
            call.dirty = False
            if call.phase.is_final and not call.settled:
                machine.settle(call)
            elif call.retry_at is not None and call.phase is StateType.SCHEDULED:
                machine.retry_at(call, call.retry_at)
    machine.awake.clear()
    machine.ended.clear()


def test_a_failure_ends_everything_downstream() -> None:
    machine, run = Machine(), a_run()
    a, b, c = a_call(run), a_call(run), a_call(run)
    machine.submit(a, [], 0.0)
    machine.submit(b, [a], 0.0)
    machine.submit(c, [b], 0.0)
    assert started(machine) == [a]
    machine.fail(a, ValueError(), 1.0)
    record(machine)
    assert [x.shown_phase for x in (a, b, c)] == ["Failed", "UpstreamFailed", "UpstreamFailed"]
    assert run.live == 0


def test_nobody_acts_on_an_end_that_is_not_recorded() -> None:
    machine, run = Machine(), a_run()
    a, b = a_call(run), a_call(run)
    machine.submit(a, [], 0.0)
    machine.submit(b, [a], 0.0)
    started(machine)
    machine.complete(a, 1, 1.0)
    assert started(machine) == []
    record(machine)
    assert started(machine) == [b]


def test_a_slot_is_free_as_soon_as_the_code_has_ended() -> None:
    machine, run, limit = Machine(), a_run(), Slots("one", 1)
    a, b = a_call(run, limit), a_call(run, limit)
    machine.submit(a, [], 0.0)
    machine.submit(b, [], 0.0)
    assert started(machine) == [a]
    machine.complete(a, 1, 1.0)
    assert started(machine) == [b]


def test_a_call_that_cannot_use_a_freed_slot_passes_it_on() -> None:
    machine, run = Machine(), a_run()
    db, gpu = Slots("db", 1), Slots("gpu", 1)
    first, second = a_call(run, db), a_call(run, gpu)
    both, after = a_call(run, db, gpu), a_call(run, db)
    for call in (first, second, both, after):
        machine.submit(call, [], 0.0)
    assert started(machine) == [first, second]
    machine.complete(first, None, 1.0)
    assert started(machine) == [after]


def test_a_back_off_holds_nothing_and_goes_on_at_its_time() -> None:
    machine, run, limit = Machine(), a_run(), Slots("one", 1)
    call = a_call(run, limit)
    machine.submit(call, [], 0.0)
    started(machine)
    machine.back_off(call, ValueError(), 5.0, "")
    assert limit.used == 0
    record(machine)
    assert machine.next_tick(0.0) == 5.0
    machine.tick(4.9)
    assert started(machine) == []
    machine.tick(5.0)
    assert started(machine) == [call]
    assert call.attempt == 2


def test_a_cancelled_call_that_was_chosen_gives_its_slots_back_once() -> None:
    machine, run, limit = Machine(), a_run(), Slots("one", 1)
    call = a_call(run, limit)
    machine.submit(call, [], 0.0)
    assert machine.next(0.0) is call
    machine.cancel(call, "stop", 0.0, TaskCancelled())
    assert (limit.used, call.phase) == (0, StateType.CANCELLED)


def test_an_illegal_move_tells_the_story() -> None:
    machine, run = Machine(), a_run()
    run.story.append("12:00:00 Running")
    call = a_call(run)
    machine.submit(call, [], 0.0)
    started(machine)
    machine.complete(call, 1, 1.0)
    with pytest.raises(IllegalMove, match="COMPLETED to FAILED.*12:00:00 Running"):
        machine.fail(call, ValueError(), 2.0)


@pytest.mark.parametrize("chunk", range(10))
def test_any_history_keeps_the_rules(chunk: int) -> None:
    for seed in range(chunk * HISTORIES // 10, (chunk + 1) * HISTORIES // 10):
        try:
            _History(seed).play()
        except BaseException as error:
            error.add_note(f"the history of seed {seed}")
            raise


class _History:
    """A random graph with random limits, failures, retries, lends and cancellations."""

    def __init__(self, seed: int) -> None:
        self.rng = rng = Random(seed)
        self.machine = Machine(at_once=rng.random() < 0.3)
        self.runs = [a_run() for _ in range(rng.randint(1, 3))]
        self.limits = [Slots(f"l{i}", rng.randint(1, 3)) for i in range(rng.randint(0, 3))]
        self.calls: list[Call] = []
        self.running: list[Call] = []
        self.lent: list[Call] = []
        self.batches: list[Batch] = []
        self.now = 0.0

    def play(self) -> None:
        for _ in range(self.rng.randint(5, 40)):
            self.rng.choice(
                [self.submit, self.submit, self.submit_map, self.start, self.start, self.end,
                 self.end, self.cancel, self.lend, self.retake, self.time]
            )()  # fmt: skip
            self.check()
        for _ in range(2000):
            if not any(run.live for run in self.runs):
                break
            self.retake()
            self.start()
            self.end()
            self.time()
            self.check()
        assert [run.live for run in self.runs] == [0] * len(self.runs), "a call is stuck"
        assert all(limit.used == 0 for limit in self.limits), "a slot was lost"
        assert all(call.settled and call.phase.is_final for call in self.calls)
        assert all(batch.open == 0 for batch in self.batches)

    def check(self) -> None:
        if self.rng.random() < 0.7 or self.machine.at_once:
            for call in list(self.machine.ended):
                if call.phase.is_final and not call.settled:
                    self.machine.settle(call)
            record(self.machine)
        for limit in self.limits:
            held = [c for c in self.running if c.holding and limit in dict(c.limits)]
            assert len(held) == limit.used <= limit.size

    def some_limits(self) -> list[Slots]:
        return self.rng.sample(self.limits, self.rng.randint(0, len(self.limits)))

    def submit(self) -> None:
        run = self.rng.choice(self.runs)
        call = a_call(run, *self.some_limits(), priority=self.rng.choice([0, 0, 1]))
        known = [c for c in self.calls if c.run is run]
        upstream = self.rng.sample(known, min(len(known), self.rng.choice([0, 0, 1, 2])))
        if self.rng.random() < 0.2:
            call.allow = frozenset(id(c) for c in upstream)
        self.calls.append(call)
        self.machine.submit(call, upstream, self.now)

    def submit_map(self) -> None:
        run = self.rng.choice(self.runs)
        needs = tuple((limit, 1) for limit in self.some_limits())
        spec, size = a_spec("map"), self.rng.randint(1, 5)
        batch = Batch(run, spec, spec.options, needs, size, run.seq + 1)
        run.seq += size

        def make(batch: Batch, index: int) -> Call:
            call = Call(run, spec, needs, (), {}, batch.seq + index, None, 0.0, None)
            call.batch, call.index = batch, index
            self.calls.append(call)
            return call

        batch.make = make
        self.batches.append(batch)
        self.machine.submit_batch(batch)

    def start(self) -> None:
        while (call := self.machine.next(self.now)) is not None:
            before = call.phase
            self.machine.start(call, self.now)
            assert call.phase in MOVES[before]
            self.running.append(call)

    def end(self) -> None:
        for call in self.rng.sample(self.running, min(2, len(self.running))):
            if call in self.lent:
                continue
            self.running.remove(call)
            if call.phase is StateType.CANCELLING:
                self.machine.stopped(call, TaskCancelled(), self.now, "stopped")
                continue
            match self.rng.choice(["ok", "ok", "ok", "fail", "again"]):
                case "ok":
                    self.machine.complete(call, 1, self.now)
                case "fail":
                    self.machine.fail(call, ValueError(), self.now)
                case _ if call.attempt < 4:
                    self.machine.back_off(call, ValueError(), self.now + 1, "again")
                    if self.machine.at_once:
                        self.machine.retry_at(call, self.now + 1)
                        call.dirty, self.machine.changed = False, []
                case _:
                    self.machine.complete(call, 2, self.now)

    def cancel(self) -> None:
        if self.calls:
            call = self.rng.choice(self.calls)
            self.machine.cancel(call, "cancelled", self.now, TaskCancelled())
        if self.batches and self.rng.random() < 0.3:
            batch = self.rng.choice(self.batches)
            self.machine.cancel_batch(batch, "cancelled", self.now, TaskCancelled())

    def lend(self) -> None:
        held = [c for c in self.running if c.holding]
        if held:
            call = self.rng.choice(held)
            self.machine.lend(call)
            self.lent.append(call)

    def retake(self) -> None:
        for call in list(self.lent):
            if self.machine.retake_now(call):
                self.lent.remove(call)

    def time(self) -> None:
        self.now += self.rng.random()
        self.machine.tick(self.now)
