"""Which messages go when: digests, rates and what is tried again."""

from __future__ import annotations

from random import Random
from typing import Any

from asyncflow import Channel, DeliveryFailed
from asyncflow.notifications import outbox
from asyncflow.store.planning import DeliveryRow

HOOK = "https://example.org/hook"


def row(id_: int, **changes: Any) -> DeliveryRow:
    made = DeliveryRow(
        id_, "a", 0, str(id_), "notify", "ops", None, 1, {}, "pending", 0, 0.0, 0.0, None, "", ""
    )
    return made._replace(**changes)


def ids(found: outbox.Decision) -> list[list[int]]:
    return [[one.id for one in group] for group in found.send]


def test_a_digest_that_failed_is_sent_again_as_the_same_digest() -> None:
    channel = Channel("ops", HOOK, digest_seconds=30, retry_delay_seconds=10)
    rows = [row(1, created_at=100.0, next_at=100.0), row(2, created_at=120.0, next_at=120.0)]
    (group,) = outbox.decide(rows, channel, [], 130.0).send
    claimed = [outbox.claimed(one, 7, 130.0) for one in group]
    tried = [outbox.after(one, channel, DeliveryFailed("no"), "", 131.0) for one in claimed]
    again = outbox.decide([*tried, row(3, created_at=135.0)], channel, [], 141.0)
    assert ids(again) == [[1, 2]]
    assert again.wait_until == 165.0, "the third gathers what comes after it"


def test_a_digest_that_a_crash_cut_off_is_sent_again_as_the_same_digest() -> None:
    channel = Channel("ops", HOOK, digest_seconds=30)
    rows = [row(n, created_at=100.0 + n, next_at=100.0 + n) for n in range(150)]
    decided = outbox.decide(rows, channel, [], 300.0)
    left = [outbox.claimed(one, 7, 300.0) for group in decided.send for one in group]
    assert ids(outbox.decide(left, channel, [], 400.0)) == ids(decided)
    assert [len(group) for group in decided.send] == [100, 50]


def test_a_clock_that_was_set_back_holds_up_nothing_for_longer_than_the_rate_does() -> None:
    channel = Channel("ops", HOOK, rate_limit=(1, 60))
    assert outbox.decide([row(1)], channel, [5000.0], 100.0).wait_until == 160.0


def test_what_kills_each_process_that_sends_it_has_its_end() -> None:
    channel = Channel("ops", HOOK, retries=1)
    assert not outbox.is_spent(row(1, attempts=4), channel)
    assert outbox.is_spent(row(1, attempts=5), channel)


def test_any_history_keeps_the_rate_and_loses_nothing() -> None:
    """2,000 messages of 20 histories; the clock goes where the decision says."""
    for seed in range(20):
        rng = Random(seed)
        most, period = rng.randint(1, 5), rng.choice([1.0, 7.0, 60.0])
        digest = rng.choice([None, 3.0, 20.0])
        channel = Channel(
            "ops",
            HOOK,
            rate_limit=(most, period),
            digest_seconds=digest,
            retries=100,
            retry_delay_seconds=2.0,
        )
        coming = [row(n, created_at=at, next_at=at) for n, at in enumerate(
            sorted(rng.uniform(0, 300) for _ in range(100))
        )]  # fmt: skip
        open_ = {one.id: one for one in coming}
        went: list[float] = []
        now = 0.0
        while open_:
            due = sorted((r for r in open_.values() if r.next_at <= now), key=lambda r: r.next_at)
            found = outbox.decide(due, channel, went, now)
            for group in found.send:
                assert digest is not None or len(group) == 1
                went.append(now)
                failure = DeliveryFailed("no") if rng.random() < 0.2 else None
                for one in group:
                    ended = outbox.after(outbox.claimed(one, 1, now), channel, failure, "", now)
                    if ended.state == "delivered":
                        del open_[one.id]
                    else:
                        open_[one.id] = ended
            later = [r.next_at for r in open_.values() if r.next_at > now]
            if found.wait_until is not None:
                assert found.wait_until > now
                later.append(found.wait_until)
            if open_:
                now = min(later)
        for at in went:
            assert sum(other <= at < other + period for other in went) <= most
