"""When triggers fire: windows, waits and composites, whatever order, restarts and clocks do."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import product
from math import inf, nan, nextafter
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncflow import (
    AbsenceTrigger,
    AllOf,
    AnyOf,
    Automation,
    DurationTrigger,
    EventTrigger,
    InSequence,
    Notify,
)
from asyncflow import triggers as machine
from asyncflow.automations import Trigger, leaves
from asyncflow.matching import event_name
from asyncflow.states import StateType
from asyncflow.triggers import EventRecord, Firing, elapse, fits, next_due, replay, start, step


def event(id_: int, time: float, name: str = "x", **fields: Any) -> EventRecord:
    return EventRecord(id_, time, name, fields)


def entered(
    id_: int, time: float, run: str, type_: str, name: str = "", **fields: Any
) -> EventRecord:
    """A flow run enters a state."""
    called = event_name("flow-run", StateType(type_))
    name = name or called.partition(".")[2]
    return EventRecord(
        id_, time, called, {"run_id": run, "state": type_, "state_name": name, **fields}
    )


#: What is done with a trigger: it takes an event, or time passes up to a point.
Op = EventRecord | float


class Watch:
    """A trigger under test, and what it has fired."""

    def __init__(self, trigger: Trigger, now: float = 0.0) -> None:
        self.trigger = trigger
        self.state = start(trigger, now)
        self.fired: list[Firing] = []

    def __call__(self, *ops: Op) -> list[Firing]:
        """What fires by these."""
        fired: list[Firing] = []
        for op in ops:
            move: Callable[..., Any] = step if isinstance(op, EventRecord) else elapse
            self.state, now = move(self.trigger, self.state, op)
            fired += now
        self.fired += fired
        return fired

    def restart(self) -> None:
        self.state = json.loads(json.dumps(self.state))


def fired(trigger: Trigger, ops: Iterable[Op], now: float = 0.0) -> list[Firing]:
    watch = Watch(trigger, now)
    watch(*ops)
    return watch.fired


def said(firings: Iterable[Firing]) -> list[Any]:
    """Times and events of firings."""
    return [(one.time, list(one.event_ids)) for one in firings]


def names(*expected: str) -> list[EventRecord]:
    """Events of these names, one a second."""
    return [event(i, float(i), name) for i, name in enumerate(expected, 1)]


# --- events -----------------------------------------------------------------------------------


def test_a_threshold_of_one_fires_for_each_event_that_matches() -> None:
    trigger = EventTrigger("flow-run.Failed", {"flow": "etl"})
    events = [
        entered(1, 1.0, "a", "FAILED", flow="etl"),
        entered(2, 2.0, "a", "RUNNING", flow="etl"),
        entered(3, 3.0, "b", "FAILED", flow="other"),
        entered(4, 4.0, "c", "FAILED", flow="etl"),
    ]
    found = fired(trigger, events)
    assert said(found) == [(1.0, [1]), (4.0, [4])]
    assert found[1] == Firing("e4", 4.0, (4,), events[3], {})


@pytest.mark.parametrize(
    ("expect", "hit"),
    [
        ("flow-run.Failed", True),
        ("flow-run.TimedOut", True),
        ("flow-run.*", True),
        ("*", True),
        (["task-run.Failed", "flow-run.Time*"], True),
        ("flow-run.Crashed", False),
        ("task-run.*", False),
        ("flow", False),
    ],
)
@pytest.mark.parametrize("stored", ["flow-run.Failed", "flow-run.TimedOut"])
def test_a_state_is_expected_by_its_type_or_its_name(expect: Any, hit: bool, stored: str) -> None:
    """Whichever of them the event was stored under."""
    record = EventRecord(1, 1.0, stored, {"state": "FAILED", "state_name": "TimedOut"})
    assert bool(fired(EventTrigger(expect), [record])) is hit


def test_a_name_of_ones_own_is_taken_as_it_is() -> None:
    record = EventRecord(1, 1.0, "orders.loaded", {"state": "FAILED"})
    assert not fired(EventTrigger("orders.Failed"), [record])
    assert fired(EventTrigger("orders.l?aded"), [record])
    assert not fired(EventTrigger("Orders.loaded"), [record])


FIELDS = {
    "flow": "etl-daily", "run_id": "r1", "state": "FAILED", "state_name": "TimedOut",
    "tags": ["a", "b"], "schedule": None,
    "payload": {"n": 3, "x": {"y": 1.5}, "ok": True, "text": "5 [a]", "codes": [1, 2], "none": []},
}  # fmt: skip


@pytest.mark.parametrize(
    ("match", "holds"),
    [
        ({}, True),
        ({"flow": "etl-daily"}, True),
        ({"flow": "ETL-daily"}, False),
        ({"flow": "etl-*"}, True),
        ({"flow": "etl-d[ae]ily"}, True),
        ({"flow": ["x", "etl-*"]}, True),
        ({"flow": ["x", "y"]}, False),
        ({"flow": "!etl-*"}, False),
        ({"flow": "!x"}, True),
        ({"flow": ["etl-*", "!*-daily"]}, False),
        ({"flow": ["!x", "!y"]}, True),
        ({"flow": ["!x", "!etl-daily"]}, False),
        ({"flow": "etl-*", "run_id": "r1"}, True),
        ({"flow": "etl-*", "run_id": "r2"}, False),
        ({"state": "failed"}, True),
        ({"state": "Fail*"}, True),
        ({"state": "!Failed"}, False),
        ({"state_name": "timedout"}, True),
        ({"deployment": "!d"}, True),
        ({"deployment": "*"}, False),
        ({"deployment": None}, True),
        ({"schedule": None}, True),
        ({"schedule": "nightly"}, False),
        ({"tags": "a"}, True),
        ({"tags": ["c", "b"]}, True),
        ({"tags": "c"}, False),
        ({"tags": "!a"}, False),
        ({"tags": ["a", "!c"]}, True),
        ({"tags": ["a", "!b"]}, False),
        ({"tags": None}, False),
        ({"payload.n": 3}, True),
        ({"payload.n": 3.0}, True),
        ({"payload.n": "3"}, True),
        ({"payload.n": True}, False),
        ({"payload.n": [4, 3]}, True),
        ({"payload.n": "!3"}, False),
        ({"payload.x.y": 1.5}, True),
        ({"payload": {"x": {"y": 1.5}, "n": 3}}, True),
        ({"payload.x.z": 1.5}, False),
        ({"payload.n.y": 1}, False),
        ({"payload.ok": True}, True),
        ({"payload.ok": 1}, False),
        ({"payload.ok": "true"}, True),
        ({"payload.text": "5 [a]"}, True),
        ({"payload.codes": 2}, True),
        ({"payload.codes": "!2"}, False),
        ({"payload.none": None}, True),
        ({"payload.x": "*"}, False),
    ],
)
def test_conditions_on_fields(match: dict[str, Any], holds: bool) -> None:
    record = EventRecord(1, 1.0, "e", FIELDS)
    assert bool(fired(EventTrigger("e", match), [record])) is holds


def test_so_many_events_within_a_window_fire_and_count_once() -> None:
    times = [0.0, 5.0, 12.0, 14.0, 15.0, 16.0, 17.0, 100.0]
    trigger = EventTrigger("x", threshold=3, within=10)
    found = fired(trigger, [event(i, t) for i, t in enumerate(times, 1)])
    assert said(found) == [(14.0, [2, 3, 4]), (17.0, [5, 6, 7])]
    assert found[0].event == event(4, 14.0)


def test_a_window_holds_what_is_just_inside() -> None:
    trigger = EventTrigger("x", threshold=2, within=10)
    assert said(fired(trigger, [event(1, 0.0), event(2, 10.0)])) == [(10.0, [1, 2])]
    assert not fired(trigger, [event(1, 0.0), event(2, nextafter(10.0, inf))])


def test_without_a_window_every_so_many_events_fire() -> None:
    found = fired(EventTrigger("x", threshold=3), [event(i, 1e6 * i) for i in range(1, 8)])
    assert said(found) == [(3e6, [1, 2, 3]), (6e6, [4, 5, 6])]


def test_windows_go_by_when_things_happened_not_by_when_they_were_seen() -> None:
    trigger = EventTrigger("x", threshold=3, within=10)
    late = [event(1, 100.0), event(2, 95.0), event(3, 120.0), event(4, 101.0)]
    found = fired(trigger, late)
    assert said(found) == [(101.0, [2, 1, 4])]
    assert found[0].event == late[3]


def test_events_are_counted_apart_by_fields() -> None:
    trigger = EventTrigger("x", threshold=2, within=100, for_each=["flow", "payload.region"])
    seen = [("a", 1), ("b", 1), ("a", "1"), ("a", 1), ("b", None), ("b", 1)]
    events = [
        event(i, float(i), flow=flow, payload={"region": region})
        for i, (flow, region) in enumerate(seen, 1)
    ]
    found = fired(trigger, events)
    assert said(found) == [(4.0, [1, 4]), (6.0, [2, 6])]
    assert found[0].labels == {"flow": "a", "payload.region": 1}


def test_labels_are_short_and_stay_apart() -> None:
    trigger = EventTrigger("x", threshold=2, for_each="payload.text")
    one, other = "y" * 10_000, "y" * 9_999 + "z"
    texts = [one, other, one, {"nested": [1]}, {"nested": [2]}]
    watch = Watch(trigger)
    watch(*[event(i, float(i), payload={"text": text}) for i, text in enumerate(texts, 1)])
    assert said(watch.fired) == [(3.0, [1, 3])]
    assert len(watch.fired[0].labels["payload.text"]) < 250
    assert len(json.dumps(watch.state)) < 2_000


def test_an_event_that_is_given_again_does_not_count_again() -> None:
    watch = Watch(EventTrigger("x", threshold=2))
    watch(event(1, 1.0), event(1, 1.0))
    assert not watch.fired
    watch(event(2, 2.0), event(2, 2.0), event(1, 1.0))
    assert said(watch.fired) == [(2.0, [1, 2])]


def test_a_large_threshold_names_the_latest_events() -> None:
    found = fired(
        EventTrigger("x", threshold=1000, within=5000), [event(i, float(i)) for i in range(1, 2001)]
    )
    assert [len(one.event_ids) for one in found] == [100, 100]
    assert found[0].event_ids[-1] == 1000
    assert found[0].key != found[1].key


@settings(max_examples=150, deadline=None)
@given(
    threshold=st.integers(1, 4),
    within=st.sampled_from([None, 1.0, 5.0]),
    seed=st.integers(0, 2**32),
    size=st.integers(0, 60),
    jitter=st.sampled_from([0.0, 2.0]),
)
def test_windows_are_those_of_a_naive_count(
    threshold: int, within: float | None, seed: int, size: int, jitter: float
) -> None:
    random = Random(seed)
    trigger = EventTrigger(
        "x", threshold=threshold, within=within if threshold > 1 else None, for_each="flow"
    )
    events = [
        event(i, round(i * 0.7 + random.uniform(-jitter, jitter), 1), flow=random.choice("ab"))
        for i in range(1, size + 1)
    ]
    expected = []
    open_: list[EventRecord] = []
    for one in events:
        open_.append(one)
        same = [o for o in open_ if o.fields == one.fields]
        same.sort(key=lambda o: (o.time, o.id))
        # Any so many in a row that the new one is among, and that fit in the window; the latest.
        groups = [same[i : i + threshold] for i in range(len(same) - threshold + 1)]
        fit = [g for g in groups if one in g and g[-1].time - g[0].time <= (within or inf)]
        if fit:
            expected.append((fit[-1][-1].time, [o.id for o in fit[-1]]))
            open_ = [o for o in open_ if o not in fit[-1]]
    assert said(fired(trigger, events)) == expected


# --- absence ----------------------------------------------------------------------------------


def test_what_does_not_follow_in_time_fires_once_at_the_end_of_its_time() -> None:
    watch = Watch(AbsenceTrigger("paid", 10, after="ordered", for_each="payload.order"))
    first = event(1, 1.0, "ordered", payload={"order": "a"})
    watch(first, event(2, 2.0, "ordered", payload={"order": "b"}))
    watch(event(3, 5.0, "paid", payload={"order": "b"}))
    assert next_due(watch.trigger, watch.state) == 11.0
    assert not watch(10.9)
    assert watch(50.0) == [Firing("absent:1", 11.0, (1,), first, {"payload.order": "a"})]
    assert next_due(watch.trigger, watch.state) is None
    assert not watch(1e9)


def test_what_comes_just_in_time_has_come_in_time() -> None:
    trigger = AbsenceTrigger("b", 10, after="a")
    assert not fired(trigger, [event(1, 1.0, "a"), event(2, 11.0, "b"), 99.0])
    too_late = nextafter(11.0, inf)
    found = fired(trigger, [event(1, 1.0, "a"), event(2, too_late, "b"), 99.0])
    assert said(found) == [(11.0, [1])]


def test_the_first_that_is_not_answered_counts() -> None:
    trigger = AbsenceTrigger("b", 10, after="a")
    events = [event(1, 1.0, "a"), event(2, 9.0, "a")]
    assert said(fired(trigger, [*events, 99.0])) == [(11.0, [1])]
    assert not fired(trigger, [*events, event(3, 10.0, "b"), 99.0])


def test_it_waits_anew_for_the_next_after_it_has_fired() -> None:
    watch = Watch(AbsenceTrigger("b", 10, after="a"))
    watch(event(1, 1.0, "a"), 20.0, event(2, 30.0, "a"), 99.0)
    assert [one.key for one in watch.fired] == ["absent:1", "absent:2"]


def test_an_answer_that_is_read_before_its_question_counts() -> None:
    """Two processes: what happened later was stored first."""
    trigger = AbsenceTrigger("b", 10, after="a")
    assert not fired(trigger, [event(1, 5.1, "b"), event(2, 5.0, "a"), 99.0])
    assert fired(trigger, [event(1, 5.0, "b"), event(2, 5.0, "a"), 99.0])
    assert fired(trigger, [event(1, 4.9, "b"), event(2, 5.0, "a"), 99.0])


def test_an_answer_of_a_clock_that_is_behind_counts() -> None:
    trigger = AbsenceTrigger("b", 10, after="a")
    assert not fired(trigger, [event(1, 5.0, "a"), event(2, 4.8, "b"), 99.0])


def test_silence_fires_once_until_it_is_broken() -> None:
    watch = Watch(AbsenceTrigger("beat", 10), now=100.0)
    assert next_due(watch.trigger, watch.state) == 110.0
    assert watch(500.0) == [Firing("absent:from:100.0", 110.0, (), None, {})]
    assert not watch(900.0)
    watch(event(1, 1000.0, "beat"))
    assert next_due(watch.trigger, watch.state) == 1010.0
    watch(event(2, 1005.0, "beat"), 1014.0)
    assert len(watch.fired) == 1
    assert watch(1016.0) == [Firing("absent:2", 1015.0, (2,), None, {})]


def test_a_silence_that_nobody_was_there_to_notice_is_noticed_by_what_ends_it() -> None:
    found = fired(AbsenceTrigger("beat", 10), [event(1, 5.0, "beat"), event(2, 60.0, "beat")])
    assert said(found) == [(15.0, [1])]


def test_a_late_event_does_not_break_a_silence_twice() -> None:
    watch = Watch(AbsenceTrigger("beat", 10))
    watch(event(1, 5.0, "beat"), event(2, 4.0, "beat"), 14.5)
    assert next_due(watch.trigger, watch.state) == 15.0
    watch(20.0, event(3, 4.5, "beat"), 21.0)
    assert len(watch.fired) == 1


def test_silences_are_told_apart_from_their_first_event() -> None:
    watch = Watch(AbsenceTrigger("beat", 10, for_each="flow"))
    assert next_due(watch.trigger, watch.state) is None
    watch(event(1, 1.0, "beat", flow="a"), event(2, 2.0, "beat", flow="b"))
    watch(event(3, 8.0, "beat", flow="a"), 15.0)
    assert [(one.time, one.labels) for one in watch.fired] == [(12.0, {"flow": "b"})]


def test_the_same_event_as_question_and_answer_is_a_heartbeat() -> None:
    watch = Watch(AbsenceTrigger("beat", 10, after="beat", for_each="flow"))
    watch(*[event(i, 5.0 * i, "beat", flow="a") for i in range(1, 5)])
    watch(event(5, 19.0, "beat", flow="a"))
    watch(29.5)
    assert not watch.fired
    assert said(watch(99.0)) == [(30.0, [4])]


def test_only_what_matches_is_expected() -> None:
    trigger = AbsenceTrigger("b", 10, after="a", match={"flow": "x"})
    events = [event(1, 1.0, "a", flow="y"), event(2, 2.0, "a", flow="x"), event(3, 3.0, "b")]
    assert said(fired(trigger, [*events, 99.0])) == [(12.0, [2])]


def test_the_event_that_began_a_wait_is_kept_without_what_is_large() -> None:
    trigger = AbsenceTrigger("b", 10, after="a")
    small = event(1, 1.0, "a", flow="f", payload={"n": 1}, tags=["t"])
    assert fired(trigger, [small, 99.0])[0].event == small
    large = event(1, 1.0, "a", flow="f", payload={"n": "x" * 5_000})
    watch = Watch(trigger)
    watch(large)
    assert len(json.dumps(watch.state)) < 1_000
    assert watch(99.0)[0].event == event(1, 1.0, "a", flow="f")


# --- duration ---------------------------------------------------------------------------------


def test_a_run_that_stays_in_a_state_fires_once_for_each_stay() -> None:
    watch = Watch(DurationTrigger("Running", 60))
    first = entered(1, 0.0, "a", "RUNNING")
    watch(first, entered(2, 10.0, "b", "RUNNING"), entered(3, 50.0, "b", "COMPLETED"))
    assert watch(500.0) == [Firing("lasted:1", 60.0, (1,), first, {"run_id": "a"})]
    # Still the same stay.
    watch(entered(4, 510.0, "a", "RUNNING", "Retrying"), 999.0)
    assert len(watch.fired) == 1
    watch(entered(5, 1000.0, "a", "PAUSED"), entered(6, 1001.0, "a", "RUNNING"), 2000.0)
    assert said(watch.fired[1:]) == [(1061.0, [6])]


def test_a_stay_that_nobody_was_there_to_notice_is_noticed_by_its_end() -> None:
    trigger = DurationTrigger("Running", 60)
    end = entered(2, 61.0, "a", "COMPLETED")
    assert said(fired(trigger, [entered(1, 0.0, "a", "RUNNING"), end])) == [(60.0, [1])]
    assert not fired(trigger, [entered(1, 1.0, "a", "RUNNING"), end, 999.0])


def test_a_state_is_asked_for_by_its_name_too() -> None:
    watch = Watch(DurationTrigger("awaitingretry", 60))
    watch(entered(1, 0.0, "a", "SCHEDULED"), entered(2, 0.0, "b", "SCHEDULED", "AwaitingRetry"))
    assert [one.labels for one in watch(99.0)] == [{"run_id": "b"}]


def test_a_stay_must_match_when_it_begins() -> None:
    watch = Watch(DurationTrigger("Running", 60, {"flow": "x", "tags": "!test"}))
    watch(
        entered(1, 0.0, "a", "RUNNING", flow="x", tags=["test"]),
        entered(2, 0.0, "b", "RUNNING", flow="x"),
        entered(3, 0.0, "c", "RUNNING", flow="y"),
        entered(4, 0.0, "d", "RUNNING", flow="x"),
        entered(5, 9.0, "d", "COMPLETED"),
        EventRecord(6, 9.0, "task-run.Failed", {"run_id": "b", "state": "FAILED"}),
        EventRecord(7, 9.0, "mine", {"run_id": "b"}),
    )
    assert [one.labels for one in watch(99.0)] == [{"run_id": "b"}]


# --- composites -------------------------------------------------------------------------------

A, B, C = EventTrigger("a"), EventTrigger("b"), EventTrigger("c")


def test_all_of_several_in_any_order_within_a_window() -> None:
    trigger = AllOf([A, B, C], within=10)
    assert said(fired(trigger, names("c", "a", "x", "b"))) == [(4.0, [1, 2, 4])]
    assert not fired(trigger, names("a", "b", "a", "b"))
    assert not fired(trigger, [event(1, 0.0, "a"), event(2, 5.0, "b"), event(3, 11.0, "c")])
    late = [event(1, 0.0, "a"), event(2, 5.0, "b"), event(3, 11.0, "c"), event(4, 8.0, "a")]
    assert said(fired(trigger, late)) == [(11.0, [2, 4, 3])]


def test_all_of_them_begin_anew_after_a_firing() -> None:
    trigger = AllOf([A, B], within=10)
    found = fired(trigger, names("a", "a", "b", "b", "a"))
    assert said(found) == [(3.0, [2, 3]), (5.0, [4, 5])]
    assert len({one.key for one in found}) == 2


def test_one_event_may_be_all_of_them() -> None:
    trigger = AllOf([EventTrigger("flow-run.*"), EventTrigger("flow-run.Failed")], within=10)
    assert said(fired(trigger, [entered(1, 1.0, "a", "FAILED")])) == [(1.0, [1])]


def test_any_of_several_fires_once_for_an_event() -> None:
    trigger = AnyOf([A, EventTrigger("[ab]"), C])
    found = fired(trigger, names("a", "b", "c", "x"))
    assert [one.key for one in found] == ["0.e1", "1.e2", "2.e3"]


def test_a_sequence_goes_by_time_and_what_comes_between_does_not_matter() -> None:
    trigger = InSequence([A, B, C], within=10)
    assert said(fired(trigger, names("b", "a", "x", "b", "a", "c"))) == [(6.0, [2, 4, 6])]
    assert not fired(trigger, names("c", "b", "a"))
    assert not fired(trigger, [event(1, 0.0, "a"), event(2, 5.0, "b"), event(3, 11.0, "c")])
    mixed = [event(1, 3.0, "c"), event(2, 2.0, "b"), event(3, 1.0, "a")]
    assert said(fired(trigger, mixed)) == [(3.0, [3, 2, 1])]


def test_the_latest_beginning_of_a_sequence_counts() -> None:
    trigger = InSequence([A, B], within=5)
    found = fired(trigger, [event(1, 0.0, "a"), event(2, 9.0, "a"), event(3, 10.0, "b")])
    assert said(found) == [(10.0, [2, 3])]


def test_one_event_is_one_step_of_a_sequence() -> None:
    trigger = InSequence([A, A, A], within=10)
    assert said(fired(trigger, names("a", "a", "a", "a"))) == [(3.0, [1, 2, 3])]


def test_the_beginning_of_a_sequence_outlives_whatever_repeats_in_between() -> None:
    trigger = InSequence([A, B, C], within=1e6)
    events = names("a", "b", *["a"] * 300, *["b"] * 0, "c")
    assert said(fired(trigger, events)) == [(303.0, [1, 2, 303])]
    watch = Watch(AllOf([A, B], within=1e6))
    watch(*names("b", *["a"] * 500))
    assert len(watch.fired) == 1
    watch = Watch(AllOf([A, B, C], within=1e6))
    watch(*names("b", *["a"] * 500, "c"))
    assert said(watch.fired) == [(502.0, [1, 501, 502])]


def test_parts_are_told_apart_by_the_fields_that_they_share() -> None:
    each = InSequence(
        [EventTrigger("a", for_each=["flow", "task"]), EventTrigger("b", for_each="flow")], 99
    )
    events = [
        event(1, 1.0, "a", flow="x", task="t"),
        event(2, 2.0, "b", flow="y"),
        event(3, 3.0, "b", flow="x"),
    ]
    found = fired(each, events)
    assert said(found) == [(3.0, [1, 3])]
    assert found[0].labels == {"flow": "x"}


def test_a_stay_and_an_event_of_the_same_run() -> None:
    trigger = AllOf(
        [DurationTrigger("Running", 60), EventTrigger("slow", for_each="run_id")], within=1000
    )
    watch = Watch(trigger)
    watch(entered(1, 0.0, "a", "RUNNING"), event(2, 5.0, "slow", run_id="b"), 100.0)
    assert not watch.fired
    watch(event(3, 101.0, "slow", run_id="a"))
    assert watch.fired[0].labels == {"run_id": "a"}


def test_something_and_the_absence_of_something_else() -> None:
    trigger = InSequence([A, AbsenceTrigger("b", 10, after="a")], within=60)
    watch = Watch(trigger)
    watch(event(1, 1.0, "a"))
    assert next_due(trigger, watch.state) == 11.0
    assert said(watch(20.0)) == [(11.0, [1])]


def test_composites_of_composites() -> None:
    trigger = AllOf([AnyOf([A, InSequence([B, C], 5)]), EventTrigger("d")], within=10)
    assert said(fired(trigger, names("d", "b", "c"))) == [(3.0, [1, 2, 3])]
    assert said(fired(trigger, names("b", "d", "a"))) == [(3.0, [2, 3])]
    assert not fired(trigger, names("d", "c", "b"))


def chains(
    pools: Sequence[Sequence[EventRecord]], within: float, in_order: bool
) -> list[list[EventRecord]]:
    found = []
    for chain in product(*pools):
        ordered = sorted(chain, key=lambda e: (e.time, e.id))
        if ordered[-1].time - ordered[0].time > within or (in_order and ordered != list(chain)):
            continue
        found.append(ordered)
    return found


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    size=st.integers(0, 30),
    in_order=st.booleans(),
    jitter=st.sampled_from([0.0, 3.0]),
)
def test_composites_are_those_of_a_naive_search(
    seed: int, size: int, in_order: bool, jitter: float
) -> None:
    """After each event: is there a choice of one event for each part? Then all begin anew."""
    random = Random(seed)
    within = 6.0
    trigger: Trigger = (InSequence if in_order else AllOf)([A, B, C], within)
    events = [
        event(i, round(i + random.uniform(-jitter, jitter), 1), random.choice("abcc"))
        for i in range(1, size + 1)
    ]
    found = []
    open_: list[EventRecord] = []
    for one in events:
        open_.append(one)
        pools = [[o for o in open_ if o.name == name] for name in "abc"]
        fit = [chain for chain in chains(pools, within, in_order) if one in chain]
        if fit:
            found.append(fit)
            open_ = []
    firings = fired(trigger, events)
    assert len(firings) == len(found)
    for firing, fit in zip(firings, found, strict=True):
        chosen = next(c for c in fit if [e.id for e in c] == list(firing.event_ids))
        assert firing.time == chosen[-1].time


# --- whatever order, restarts and clocks do ---------------------------------------------------

LEAVES: list[Trigger] = [
    A,
    EventTrigger("[ab]", threshold=2, within=8, for_each="flow"),
    EventTrigger("*", {"flow": "!y"}, threshold=3),
    AbsenceTrigger("b", 5, after="a", for_each="flow"),
    AbsenceTrigger("b", 5, after="a"),
    AbsenceTrigger("c", 7),
    AbsenceTrigger("c", 7, for_each="flow"),
    AbsenceTrigger("a", 4, after="a", for_each="flow"),
    DurationTrigger("Running", 6),
    DurationTrigger("Paused", 3, {"flow": "x"}),
]


def composites(parts: st.SearchStrategy[Trigger]) -> st.SearchStrategy[Trigger]:
    several = st.lists(parts, min_size=2, max_size=3)
    within = st.sampled_from([3.0, 10.0, 40.0])
    return st.one_of(
        st.builds(AllOf, several, within),
        st.builds(InSequence, several, within),
        st.builds(AnyOf, several),
    )


leaf = st.sampled_from(LEAVES)
any_trigger = st.one_of(leaf, composites(leaf), composites(st.one_of(leaf, composites(leaf))))


@st.composite
def histories(draw: st.DrawFn) -> list[EventRecord]:
    """Events in the order of their ids, whose times are nearly in order."""
    random = Random(draw(st.integers(0, 2**32)))
    jitter = draw(st.sampled_from([0.0, 2.0]))
    events, now = [], 10.0
    for i in range(1, draw(st.integers(0, 40)) + 1):
        now += random.choice([0.0, 0.5, 1.0, 1.0, 3.0, 12.0])
        time = round(now + random.uniform(-jitter, 0), 1)
        flow = random.choice("xyz")
        if random.random() < 0.4:
            type_ = random.choice(["RUNNING", "RUNNING", "PAUSED", "COMPLETED"])
            events.append(entered(i, time, random.choice("pq"), type_, flow=flow))
        else:
            events.append(event(i, time, random.choice("abc"), flow=flow))
    return events


def with_time(events: Sequence[EventRecord], every: int) -> list[Op]:
    """The events, and time that passes after each so many of them, and at last."""
    ops: list[Op] = []
    latest = 10.0
    for n, one in enumerate(events, 1):
        ops.append(one)
        latest = max(latest, one.time)
        if n % every == 0:
            ops.append(latest)
    return [*ops, latest + 100.0]


@settings(max_examples=150, deadline=None)
@given(any_trigger, histories(), st.integers(1, 6))
def test_a_restart_at_any_point_changes_nothing(
    trigger: Trigger, events: list[EventRecord], every: int
) -> None:
    ops = with_time(events, every)
    through, broken = Watch(trigger, 10.0), Watch(trigger, 10.0)
    for op in ops:
        broken.restart()
        assert broken(op) == through(op)
        assert broken.state == through.state
    for firing in through.fired:
        assert Firing.from_dict(json.loads(json.dumps(firing.to_dict()))) == firing


@settings(max_examples=150, deadline=None)
@given(any_trigger, histories(), st.integers(1, 6), st.integers(0, 2**32))
def test_time_that_passes_in_steps_is_time_that_passes(
    trigger: Trigger, events: list[EventRecord], every: int, seed: int
) -> None:
    random = Random(seed)
    at_once, in_steps, by_due = (Watch(trigger, 10.0) for _ in range(3))
    last = 10.0
    for op in with_time(events, every):
        if isinstance(op, EventRecord):
            steps: list[Op] = [op]
            by_due(op)
        else:
            between = sorted(random.uniform(last, op) for _ in range(random.randrange(4)))
            steps, last = [*between, op], op
            while (due := next_due(trigger, by_due.state)) is not None and due <= op:
                by_due(due)
        at_once(op)
        in_steps(*steps)
    assert in_steps.fired == at_once.fired
    assert by_due.fired == at_once.fired


@settings(max_examples=80, deadline=None)
@given(any_trigger, histories(), st.integers(1, 6), st.integers(0, 2**32))
def test_what_is_played_again_fires_by_the_same_keys_and_each_key_is_one_firing(
    trigger: Trigger, events: list[EventRecord], every: int, seed: int
) -> None:
    """A crash: the state is an older one, and events are read again from where it stood."""
    random = Random(seed)
    ops = with_time(events, every)
    through = Watch(trigger, 10.0)
    through(*ops)
    keys = [one.key for one in through.fired]
    assert len(set(keys)) == len(keys)
    again = Watch(trigger, 10.0)
    kept, place = copy.deepcopy(again.state), 0
    for n, op in enumerate(ops):
        again(op)
        if random.random() < 0.2:
            kept, place = copy.deepcopy(again.state), n + 1
        if random.random() < 0.2:
            again.state = copy.deepcopy(kept)
            again(*ops[place : n + 1])
    again(*[op for op in ops if isinstance(op, EventRecord)])  # all known
    assert list(dict.fromkeys(one.key for one in again.fired)) == keys


@settings(max_examples=80, deadline=None)
@given(any_trigger, histories())
def test_a_dry_run_tells_what_would_have_fired(trigger: Trigger, events: list[EventRecord]) -> None:
    automation = Automation("a", trigger, Notify("ops"))
    end = max((one.time for one in events), default=10.0) + 50.0
    watch = Watch(trigger, 10.0)
    for one in events:
        watch(nextafter(one.time, -inf), one)
    watch(end)
    shuffled = Random(1).sample(events, len(events))
    found = replay(automation, shuffled, end, since=10.0)
    assert {one.key: said([one]) for one in found} == {one.key: said([one]) for one in watch.fired}


def test_a_dry_run_begins_with_the_earliest_event() -> None:
    silence = Automation("a", AbsenceTrigger("b", 10), Notify("ops"))
    assert said(replay(silence, [event(1, 100.0, "a")], 200.0)) == [(110.0, [])]
    assert said(replay(silence, [], 200.0)) == []
    assert said(replay(silence, [], 200.0, since=50.0)) == [(60.0, [])]


@pytest.mark.parametrize("back", [30.0, 3_600.0, 1e8])
def test_a_clock_that_is_set_back_fires_nothing_twice(back: float) -> None:
    for trigger in LEAVES:
        watch = Watch(trigger, 1e9)
        one = entered(1, 1e9, "p", "RUNNING", flow="x")
        watch(one, event(2, 1e9, "a", flow="x"), 1e9 + 20)
        before = len(watch.fired)
        watch(1e9 + 20 - back, 1e9 + 19)
        assert len(watch.fired) == before, trigger


@pytest.mark.parametrize("ahead", [3_600.0, 1e8])
def test_a_clock_that_was_ahead_stops_nothing(ahead: float) -> None:
    """It is set right: what happens now is long before what was seen."""
    now = 1e9
    counts = Watch(EventTrigger("a", threshold=3, within=10), now)
    counts(*[event(i, now + ahead + 100 * i, "a") for i in range(1, 30)])
    counts(*[event(30 + i, now + i, "a") for i in range(3)])
    assert said(counts.fired) == [(now + 2, [30, 31, 32])]

    silent = Watch(AbsenceTrigger("a", 10), now + ahead)
    silent(event(1, now + ahead, "a"), now, now + 5)
    assert not silent.fired
    assert [one.time for one in silent(now + 11)] == [now + 10]
    silent(event(2, now + 20, "a"), now + 25)
    assert said(silent(now + 31)) == [(now + 30, [2])]

    stays = Watch(DurationTrigger("Running", 60), now)
    stays(entered(1, now + ahead, "a", "RUNNING"), now)
    assert [one.time for one in stays(now + 61)] == [now + 60]

    missing = Watch(AbsenceTrigger("b", 10, after="a"), now)
    missing(event(1, now + ahead, "a"), now, event(2, now + 1, "b"), now + 99)
    assert not missing.fired
    missing(event(3, now + 100, "a"))
    assert said(missing(now + 200)) == [(now + 110, [3])]


# --- how much is kept -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "trigger",
    [
        EventTrigger("x", threshold=2, for_each="flow"),
        AbsenceTrigger("y", 1e6, after="x", for_each="flow"),
        AbsenceTrigger("x", 1e6, for_each="flow"),
        DurationTrigger("Running", 1e6),
        AllOf([EventTrigger("x", for_each="flow"), EventTrigger("y", for_each="flow")], 1e6),
    ],
    ids=lambda trigger: type(trigger).__name__,
)
def test_the_oldest_of_too_many_go_and_are_counted(
    trigger: Trigger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "BUCKETS", 100)
    watch = Watch(trigger)
    for i in range(1, 131):
        one = entered(i, float(i), f"r{i}", "RUNNING", flow=f"f{i}")
        watch(one if isinstance(trigger, DurationTrigger) else replace(one, name="x"))
        if i % 40 == 0:
            watch.restart()
    node = watch.state["node"]
    assert len(node["buckets"]) == 100
    assert node["dropped"] == 30
    assert next(iter(node["buckets"])).endswith("31")
    assert not watch.fired


def test_silences_that_were_told_of_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "BUCKETS", 100)
    watch = Watch(AbsenceTrigger("x", 1, for_each="flow"))
    for i in range(1, 131):
        watch(event(i, 10.0 * i, "x", flow=f"f{i}"), 10.0 * i + 5)
    assert len(watch.fired) == 130
    assert len(watch.state["node"]["quiet"]) == 100
    assert watch.state["node"]["dropped"] == 30


def test_so_many_events_in_all_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "HELD", 500)
    watch = Watch(EventTrigger("x", threshold=200, for_each="flow"))
    for i in range(1, 1001):
        watch(event(i, float(i), flow=f"f{i // 199}"))
    node = watch.state["node"]
    assert node["held"] == sum(len(ids) for _, ids in node["buckets"].values()) <= 500
    assert node["dropped"] > 0


@pytest.mark.parametrize("step_", [0.1, 100.0])
def test_what_a_window_cannot_need_is_not_kept(step_: float) -> None:
    watch = Watch(EventTrigger("x", threshold=3, within=0.05))
    watch(*[event(i, step_ * i) for i in range(1, 2_000)])
    assert len(json.dumps(watch.state)) < 1_000
    both = Watch(InSequence([EventTrigger("x"), B], within=0.05))
    both(*[event(i, step_ * i) for i in range(1, 2_000)])
    assert len(json.dumps(both.state)) < 3_000


def test_buckets_that_nothing_comes_for_are_forgotten() -> None:
    each = EventTrigger("x", threshold=2, within=10, for_each="run_id")
    for trigger in (
        each,
        AllOf([each, each], 10),
        AllOf([replace(each, threshold=1, within=None), EventTrigger("y", for_each="run_id")], 10),
    ):
        watch = Watch(trigger)
        watch(*[event(i, 100.0 * i, run_id=f"r{i}") for i in range(1, 500)])
        node = watch.state["node"]
        if isinstance(trigger, AllOf) and trigger.triggers[0] == each:
            node = node["parts"][0]
        assert len(node["buckets"]) < 50
        assert node["dropped"] == 0


def test_expected_events_are_remembered_for_a_short_while() -> None:
    watch = Watch(AbsenceTrigger("b", 10, after="a", for_each="run_id"))
    watch(*[event(i, 10.0 * i, "b", run_id=f"r{i}") for i in range(1, 500)])
    assert len(watch.state["node"]["early"]) < 10


# --- the rest ---------------------------------------------------------------------------------


def test_a_state_belongs_to_its_trigger() -> None:
    old, new = EventTrigger("a", threshold=2), EventTrigger("a", threshold=3)
    state = start(old, 0.0)
    assert fits(EventTrigger(["a"], threshold=2), state)
    assert not fits(new, state)
    for move in (lambda: step(new, state, event(1, 1.0)), lambda: elapse(new, state, 1.0)):
        with pytest.raises(ValueError, match="not one of this EventTrigger, which was edited"):
            move()


def test_what_changed_nothing_need_not_be_stored() -> None:
    watch = Watch(EventTrigger("a", threshold=2))
    watch(event(1, 1.0, "b"), 5.0)
    assert watch.state["changes"] == 0
    watch(event(2, 2.0, "a"))
    assert watch.state["changes"] == 1
    for trigger in LEAVES:
        watch = Watch(trigger)
        watch(event(1, 1.0, "unknown"), 1.0, 1.0)
        changed = watch.state["changes"]
        assert changed == (1 if trigger == LEAVES[2] else 0), trigger


def test_a_trigger_can_be_copied_and_pickled_after_it_was_used() -> None:
    for trigger in LEAVES:
        fired(trigger, [event(1, 1.0)])
        for copied in (pickle.loads(pickle.dumps(trigger)), copy.deepcopy(trigger)):
            assert copied == trigger
            assert fits(copied, start(trigger, 0.0))


@pytest.mark.parametrize("time", [nan, inf, -inf])
def test_an_event_has_a_time(time: float) -> None:
    with pytest.raises(ValueError, match="give seconds since the epoch"):
        event(1, time)


def test_every_kind_of_leaf_is_tried() -> None:
    assert {type(one) for t in LEAVES for one in leaves(t)} == {
        EventTrigger, AbsenceTrigger, DurationTrigger,
    }  # fmt: skip
