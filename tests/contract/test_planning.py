"""Deployments, ticks, automations and deliveries, in every store alike."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from asyncflow import commands
from asyncflow.errors import StoreError
from asyncflow.store import planning
from asyncflow.store.base import EventQuery, EventRow, ReadableStore, RunRow, StateRow, Writes
from asyncflow.store.memory import MemoryStore
from asyncflow.store.planning import (
    TAKEN,
    AutomationRow,
    BackfillRow,
    Begin,
    Begun,
    CommandRow,
    DeliveryRow,
    DeploymentRow,
    ScheduleRow,
    TakerRow,
    TickRow,
)
from asyncflow.store.sqlite import SqliteStore


@pytest.fixture
def opened(store: MemoryStore | SqliteStore) -> Iterator[ReadableStore]:
    store.open("strict")
    yield store
    store.close()


def deployment(name: str = "nightly", **changes: Any) -> DeploymentRow:
    row = DeploymentRow(0, name, "flow", "{}", b"{}", "code", False, 1.0, 1.0)
    return row._replace(**changes)


def schedule(name: str = "daily", **changes: Any) -> ScheduleRow:
    return ScheduleRow(0, 0, name, b'{"schedule": 1}', False, "", 0.0, 1.0, 1.0)._replace(**changes)


def deploy(store: ReadableStore, now: float = 10.0, *schedules: ScheduleRow, **changes: Any) -> Any:
    row, found = store.plan(
        lambda p: p.deploy(deployment(**changes), schedules or [schedule()], now)
    )
    return row, found


def run_row(n: int, **changes: Any) -> RunRow:
    row = RunRow(
        0, f"run-{n}", "flow", "{}", "", None, None, None, 0, "SCHEDULED", "Scheduled", "", 1.0,
        b"{}", (), 1.0, None, None, None, 1, 0, 0, 0, f"key-{n}", None, 0, None, None, (),
    )  # fmt: skip
    return row._replace(**{"deployment": "nightly", "cause": "schedule:daily", **changes})


def begin(n: int, tick: float | None, overlap: str = "skip", **changes: Any) -> Begin:
    planned = TickRow(1, tick, 1, "RUN", "", None, None, 5.0) if tick is not None else None
    state = StateRow(0, 1.0, "SCHEDULED", "Scheduled", "", 0)
    return Begin(1, "nightly", run_row(n, **changes), state, overlap, 1, planned)


def begun(store: ReadableStore, what: Begin, now: float = 20.0) -> Begun:
    return store.plan(lambda p: p.begin(what, now))


def end(store: ReadableStore, run_id: str) -> None:
    row = store.run(run_id)
    assert row is not None
    store.write(Writes(runs=[row._replace(state="COMPLETED", state_name="Completed")]))


async def ticks(store: ReadableStore, **options: Any) -> list[TickRow]:
    reader = store.reader()
    try:
        return await reader.planned(planning.ticks(1, **options))
    finally:
        await reader.aclose()


def test_a_deployment_that_is_declared_again_stays_what_it_was(opened: ReadableStore) -> None:
    first, (one,) = deploy(opened, 10.0)
    again, (same,) = deploy(opened, 99.0)
    assert (again.id, same.id, same.position) == (first.id, one.id, 10.0)


def test_a_schedule_that_is_changed_begins_now_and_one_that_is_new_too(
    opened: ReadableStore,
) -> None:
    deploy(opened, 10.0, schedule("a"), schedule("b"))
    _, found = deploy(opened, 50.0, schedule("a"), schedule("b", spec=b"{}"), schedule("c"))
    assert {one.name: one.position for one in found} == {"a": 10.0, "b": 50.0, "c": 50.0}


def test_a_schedule_that_is_declared_no_more_is_paused_and_comes_back(
    opened: ReadableStore,
) -> None:
    deploy(opened, 10.0, schedule("a"), schedule("b"))
    _, found = deploy(opened, 20.0, schedule("a"))
    assert [(one.name, one.paused, one.reason) for one in found] == [
        ("a", False, ""),
        ("b", True, "it is declared no more"),
    ]
    _, found = deploy(opened, 30.0, schedule("a"), schedule("b"))
    assert [(one.name, one.paused, one.position) for one in found] == [
        ("a", False, 10.0),
        ("b", False, 30.0),
    ]


def test_what_people_paused_stays_paused_when_it_is_declared_again(opened: ReadableStore) -> None:
    deploy(opened, 10.0, schedule("a"), schedule("b"))
    assert opened.plan(lambda p: p.pause("nightly", "b", True, 11.0)) == 1
    assert opened.plan(lambda p: p.pause("nightly", None, True, 11.0)) == 2
    row, found = deploy(opened, 20.0, schedule("a"), schedule("b", spec=b"{}"))
    assert row.paused
    assert [(one.name, one.paused) for one in found] == [("a", False), ("b", True)]


def test_what_passed_during_a_pause_does_not_count(opened: ReadableStore) -> None:
    deploy(opened, 10.0)
    opened.plan(lambda p: p.pause("nightly", None, True, 11.0))
    opened.plan(lambda p: p.pause("nightly", None, False, 60.0))
    _, (one,) = deploy(opened, 70.0)
    assert one.position == 60.0


async def test_a_tick_begins_one_run_whoever_asks(opened: ReadableStore) -> None:
    deploy(opened)
    first = begun(opened, begin(1, 15.0))
    assert first.run is not None
    assert begun(opened, begin(2, 15.0)).state == TAKEN
    (tick,) = await ticks(opened)
    assert (tick.state, tick.run) == ("RUN", "run-1")
    assert opened.run("run-2") is None
    assert opened.run("run-1") == first.run


def test_four_threads_begin_each_of_many_ticks_once(path: Any) -> None:
    stores = [SqliteStore(path) for _ in range(4)]
    for store in stores:
        store.open("strict")
    deploy(stores[0])
    made: list[str] = []

    def work(mine: int, store: SqliteStore) -> None:
        for n in range(100):
            got = begun(store, begin(mine * 1000 + n, 100.0 + n, "allow"))
            if got.run is not None:
                made.append(got.run.id)

    threads = [threading.Thread(target=work, args=(n, store)) for n, store in enumerate(stores, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 100
    assert sorted(int(run.partition("-")[2]) % 1000 for run in made) == list(range(100))
    for store in stores:
        store.close()


@pytest.mark.parametrize(
    ("overlap", "states"),
    [
        ("skip", ["RUN", "SKIPPED", "SKIPPED"]),
        ("queue", ["RUN", "QUEUED", "SKIPPED"]),
        ("cancel_running", ["RUN", "SKIPPED", "QUEUED"]),
        ("allow", ["RUN", "RUN", "RUN"]),
    ],
)
async def test_a_tick_while_a_run_is_going_on_follows_the_policy(
    opened: ReadableStore, overlap: str, states: list[str]
) -> None:
    deploy(opened)
    for n in (1, 2, 3):
        begun(opened, begin(n, 10.0 + n, overlap))
    found = (await ticks(opened))[::-1]
    assert [tick.state for tick in found] == states
    for tick in found:
        assert bool(tick.reason) == (tick.state != "RUN")
    if overlap == "cancel_running":
        assert opened.requests(1) == [(1, "cancel")]


async def test_a_queued_tick_begins_when_there_is_room(opened: ReadableStore) -> None:
    deploy(opened)
    begun(opened, begin(1, 11.0, "queue"))
    begun(opened, begin(2, 12.0, "queue"))
    (waiting,) = [t for t in await ticks(opened) if t.state == "QUEUED"]
    later = begin(2, None, "queue")._replace(tick=waiting)
    assert opened.plan(lambda p: p.begin_queued(later)).state == "QUEUED"
    end(opened, "run-1")
    assert opened.plan(lambda p: p.begin_queued(later)).run is not None
    assert opened.plan(lambda p: p.begin_queued(later)).state == TAKEN


@pytest.mark.parametrize("what", [None, "daily"])
async def test_a_tick_of_what_was_paused_meanwhile_does_not_run(
    opened: ReadableStore, what: str | None
) -> None:
    deploy(opened)
    opened.plan(lambda p: p.pause("nightly", what, True, 11.0))
    assert begun(opened, begin(1, 15.0)).run is None
    (tick,) = await ticks(opened)
    assert tick.state == "SKIPPED"
    assert "paused" in tick.reason


def test_a_run_by_hand_waits_for_nobody_and_is_refused_where_it_overlaps(
    opened: ReadableStore,
) -> None:
    deploy(opened)
    assert begun(opened, begin(1, None)).run is not None
    refused = begun(opened, begin(2, None))
    assert refused.run is None
    assert "run-1" in refused.reason
    assert begun(opened, begin(3, None, "allow")).run is not None


def test_a_transaction_that_fails_leaves_nothing(opened: ReadableStore) -> None:
    deploy(opened)

    def work(plans: planning.Planning) -> None:
        plans.begin(begin(1, 15.0), 20.0)
        plans.emit([EventRow(0, 0, 1.0, "", "", "", 0, "orders.in")])
        raise StoreError("in the middle")

    with pytest.raises(StoreError, match="in the middle"):
        opened.plan(work)
    assert opened.run("run-1") is None
    assert opened.newest_event() == 0
    assert begun(opened, begin(2, 15.0)).run is not None


async def test_a_backfill_runs_what_has_not_run(opened: ReadableStore) -> None:
    deploy(opened)
    begun(opened, begin(1, 11.0))
    opened.plan(lambda p: p.note([TickRow(1, 12.0, 1, "MISSED", "late", None, None, 13.0)]))
    row = BackfillRow(0, 1, 1, 10.0, 14.0, 2, 20.0, None)
    made, queued, ran = opened.plan(lambda p: p.add_backfill(row, [11.0, 12.0, 13.0]))
    assert (made.id, queued, ran) == (1, 2, 1)
    assert not opened.plan(lambda p: p.end_backfill(1, 30.0))
    for n, tick in enumerate([t for t in await ticks(opened) if t.state == "QUEUED"], 5):
        later = begin(n, None, cause="backfill:1")._replace(tick=tick)
        assert opened.plan(lambda p, later=later: p.begin_queued(later)).run is not None
    assert opened.plan(lambda p: p.end_backfill(1, 30.0))
    assert not opened.plan(lambda p: p.end_backfill(1, 31.0))


async def test_old_ticks_and_deliveries_go_and_what_waits_stays(opened: ReadableStore) -> None:
    deploy(opened)
    notes = [
        TickRow(1, t, 1, s, "", None, None, 1.0) for t, s in ((1.0, "MISSED"), (2.0, "QUEUED"))
    ]
    opened.plan(lambda p: p.note(notes))
    opened.plan(lambda p: p.deliver(delivery("a", ended_at=1.0, state="delivered")))
    opened.plan(lambda p: p.deliver(delivery("b")))
    opened.write(Writes(events=[EventRow(0, 0, 1.0, "", "", "", 0, "orders.in")]))
    assert opened.plan(lambda p: p.prune(100.0, 500)) == 2
    assert opened.prune_events(100.0, 500) == 1
    assert [tick.state for tick in await ticks(opened)] == ["QUEUED"]


def automation(**changes: Any) -> AutomationRow:
    row = AutomationRow(0, "mend", b"{}", "code", True, b"{}", 0, 1.0, 1.0, 0, None)
    return row._replace(**changes)


def delivery(key: str, **changes: Any) -> DeliveryRow:
    row = DeliveryRow(
        0, "mend", 0, key, "notify", "ops", None, 1, {"a": [1]}, "pending", 0, 5.0, 1.0, None,
        "", "",
    )  # fmt: skip
    return row._replace(**changes)


def test_an_automation_sees_what_happens_from_its_declaration_on(opened: ReadableStore) -> None:
    opened.write(Writes(events=[EventRow(0, 0, 1.0, "", "", "", 0, "orders.in")] * 3))
    first = opened.plan(lambda p: p.automate(automation()))
    assert first.position == 3
    opened.write(Writes(events=[EventRow(0, 0, 1.0, "", "", "", 0, "orders.in")]))
    assert opened.plan(lambda p: p.automate(automation())).position == 3
    assert opened.plan(lambda p: p.automate(automation(spec=b"[]"))).position == 4


def test_two_that_go_on_with_an_automation_do_its_work_once(opened: ReadableStore) -> None:
    before = opened.plan(lambda p: p.automate(automation()))
    after = before._replace(position=7, fired=1)
    work = [delivery("x"), delivery("y")]
    assert opened.plan(lambda p: p.progress(before, after, work))
    assert not opened.plan(lambda p: p.progress(before, after, work))
    assert opened.plan(lambda p: p.progress(after, after._replace(position=9), work[:1]))
    found = opened.plan(lambda p: p.due(6.0, ["ops"], 1, lambda _: True, 10))
    assert [(row.key, row.payload) for row in found] == [("x", {"a": [1]}), ("y", {"a": [1]})]


def test_what_a_dead_engine_was_at_is_due_again(opened: ReadableStore) -> None:
    opened.plan(lambda p: p.deliver(delivery("x")))
    (row,) = opened.plan(lambda p: p.due(6.0, ["ops"], 1, lambda _: True, 10))
    opened.plan(lambda p: p.save([row._replace(state="sending", engine=1, attempts=1)]))

    def due(engine: int, alive: Any) -> list[DeliveryRow]:
        return opened.plan(lambda p: p.due(6.0, ["ops"], engine, alive, 10))

    assert due(2, lambda _: True) == []
    assert due(1, lambda _: True) == []
    assert [row.attempts for row in due(2, lambda _: False)] == [1]
    assert opened.plan(lambda p: p.next_delivery(["ops"])) is None


def test_a_delivery_that_has_ended_changes_no_more(opened: ReadableStore) -> None:
    opened.plan(lambda p: p.deliver(delivery("x")))
    (row,) = opened.plan(lambda p: p.due(6.0, ["ops"], 1, lambda _: True, 10))
    opened.plan(lambda p: p.save([row._replace(state="delivered", ended_at=7.0)]))
    opened.plan(lambda p: p.save([row._replace(state="pending")]))
    assert opened.plan(lambda p: p.due(9.0, ["ops"], 1, lambda _: False, 10)) == []
    assert opened.plan(lambda p: p.sent_since("ops", 0.0)) == [7.0]


def test_what_is_on_its_way_counts_for_a_rate_and_what_went_together_counts_once(
    opened: ReadableStore,
) -> None:
    for key in ("a", "b", "c", "d"):
        opened.plan(lambda p, key=key: p.deliver(delivery(key)))
    first, second, third, _ = opened.plan(lambda p: p.due(6.0, ["ops"], 1, lambda _: True, 10))
    done = [row._replace(state="delivered", ended_at=7.0) for row in (first, second)]
    going = third._replace(state="sending", engine=1, next_at=8.0)
    opened.plan(lambda p: p.save([*done, going]))
    assert opened.plan(lambda p: p.sent_since("ops", 5.0)) == [7.0, 7.0, 8.0]
    assert opened.plan(lambda p: p.sent_since("ops", 5.0, together=True)) == [7.0, 8.0]
    assert opened.plan(lambda p: p.sent_since("ops", 7.5)) == [8.0]
    assert opened.plan(lambda p: p.sent_since("other", 0.0)) == []


async def test_events_of_all_kinds_are_one_series(opened: ReadableStore) -> None:
    deploy(opened)
    made = begun(opened, begin(1, 15.0)).run
    assert made is not None
    told = EventRow(0, made.pk, 3.0, "FAILED", "Failed", "no", 0, "task-run.Failed", 4, b"{}")
    opened.write(Writes(events=[told, told._replace(run=0, kind="orders.in", seq=None)]))
    rows = opened.events_after(0, 10)
    assert [row.called for row, _ in rows] == ["flow-run.Scheduled", "task-run.Failed", "orders.in"]
    assert [info.deployment if info else None for _, info in rows] == ["nightly", "nightly", None]
    reader = opened.reader()
    try:
        for kinds, count in ((("task-run.*",), 1), (("flow-run.Scheduled", "orders.in"), 2)):
            assert len((await reader.events(EventQuery(kinds=kinds))).rows) == count
        newest = await reader.events(EventQuery(newest=True, limit=2))
        assert [row.id for row in newest.rows] == [3, 2]
        rest = await reader.events(EventQuery(newest=True, after=newest.next_cursor or 0))
        assert [row.id for row in rest.rows] == [1]
        assert (await reader.events(EventQuery(run=made.pk, after=1))).rows[0].payload == b"{}"
        assert [s.state_name for s in await reader.states(made.pk)] == ["Scheduled"]
    finally:
        await reader.aclose()
    opened.delete_run(made.pk)
    assert [row.called for row, _ in opened.events_after(0, 10)] == ["orders.in"]
    assert opened.newest_event() == 3


# --- commands -------------------------------------------------------------------------------------


def command(command_id: str = "one", **changes: Any) -> CommandRow:
    row = CommandRow(0, command_id, "rerun", "run", None, b"{}", None, "x", 1.0, 31.0, "WAITING")
    return row._replace(**changes)


async def test_a_command_is_kept_until_it_has_ended_and_then_listed(opened: ReadableStore) -> None:
    assert opened.asked() == 0
    first, second = opened.plan(lambda p: [p.add_command(command(n)) for n in ("one", "two")])
    assert opened.plan(lambda p: p.open_commands()) == [first, second]
    assert opened.asked() == 2
    end = first._replace(
        arguments=b'{"a": 1}', expires_at=40.0, state="DONE", engine=3, taken_at=2.0, taken=1,
        declined=b"[4]", ended_at=5.0, made="new", detail="done",
    )  # fmt: skip
    opened.plan(lambda p: p.save_command(end))
    assert opened.plan(lambda p: p.command("one")) == end
    assert opened.plan(lambda p: p.command("three")) is None
    assert opened.asked() == 1
    reader = opened.reader()
    try:
        assert await reader.planned(planning.open_commands()) == [second]
        assert await reader.planned(planning.commands()) == [second, end]
        assert await reader.planned(planning.commands("one")) == [end]
        assert await reader.planned(planning.commands(states=["WAITING", "TAKEN"])) == [second]
        assert await reader.planned(planning.commands(limit=1)) == [second]
        assert await reader.planned(planning.commands(before=second.pk)) == [end]
        ((_, asked),) = await reader.planned(planning.version())
        assert asked == 1
    finally:
        await reader.aclose()


def test_the_same_key_is_the_same_command_unless_nothing_came_of_it(opened: ReadableStore) -> None:
    asked = command("one", key="k")
    assert opened.plan(lambda p: p.same_command(asked)) is None
    row = opened.plan(lambda p: p.add_command(asked))
    for state in ("WAITING", "TAKEN", "DONE"):
        row = row._replace(state=state)
        opened.plan(lambda p, row=row: p.save_command(row))
        assert opened.plan(lambda p: p.same_command(command("two", key="k"))) == row
    for n, state in enumerate(("FAILED", "EXPIRED")):
        row = row._replace(state=state)
        opened.plan(lambda p, row=row: p.save_command(row))
        assert opened.plan(lambda p: p.same_command(asked)) is None
        row = opened.plan(lambda p, n=n: p.add_command(command(f"again {n}", key="k")))


def test_of_engines_that_take_commands_the_dead_are_forgotten(opened: ReadableStore) -> None:
    first, second = TakerRow(1, 42, "host", 1.0), TakerRow(2, 43, "host", 2.0)
    opened.plan(lambda p: [p.add_taker(row) for row in (second, first, first)])
    assert opened.plan(lambda p: p.takers(lambda _: True)) == [first, second]
    assert opened.plan(lambda p: p.takers(lambda engine: engine == 2)) == [second]
    assert opened.plan(lambda p: p.takers(lambda _: True)) == [second]


def test_old_commands_go_also_those_that_nobody_could_end(opened: ReadableStore) -> None:
    rows = [
        command("ended", state="DONE", ended_at=5.0),
        command("ended later", state="FAILED", ended_at=50.0),
        command("left"),
        command("open", expires_at=50.0),
    ]
    opened.plan(lambda p: [p.add_command(row) for row in rows])
    assert opened.plan(lambda p: p.prune(40.0, 100)) == 2
    left = [opened.plan(lambda p, row=row: p.command(row.id)) is not None for row in rows]
    assert left == [False, True, False, True]


def test_of_many_who_take_a_command_at_once_one_has_it(opened: ReadableStore) -> None:
    opened.plan(lambda p: p.add_command(command()))
    # Each with a connection of its own, as in processes of their own.
    stores = [type(opened)(opened.path) for _ in range(4)] if hasattr(opened, "path") else []
    for one in stores:
        one.open("strict")
    got: list[int] = []

    def take(store: ReadableStore, engine: int) -> None:
        def work(plans: planning.Planning) -> CommandRow | None:
            row = plans.command("one")
            assert row is not None
            after = commands.taken(row, engine, 2.0, lambda _: True)
            if after is not None:
                plans.save_command(after)
            return after

        if store.plan(work) is not None:
            got.append(engine)

    threads = [
        threading.Thread(target=take, args=(one, n))
        for n, one in enumerate(stores or [opened] * 4, 1)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for one in stores:
        one.close()
    assert len(got) == 1
    row = opened.plan(lambda p: p.command("one"))
    assert row is not None
    assert row.engine == got[0]
