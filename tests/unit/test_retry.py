"""When a failed attempt is tried again, and after how long."""

from __future__ import annotations

from email.utils import formatdate
from math import inf
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from asyncflow import InvalidOption, RetryAfter, UpstreamFailed, exponential_backoff
from asyncflow.retry import RETRY_AFTER_CAP, Retry, asked_delay, parse_retry_after

NOW = 1_800_000_000.0


def wait(policy: Retry, failures: int, error: BaseException | None = None, seed: int = 1) -> Any:
    return policy.delay(failures, error or ValueError(), NOW, Random(seed))


@pytest.mark.parametrize(
    ("delays", "waits"),
    [
        pytest.param(2, [2, 2, 2], id="one number is every delay"),
        pytest.param([1, 5], [1, 5, 5], id="a list repeats its last"),
        pytest.param(exponential_backoff(0.5), [0.5, 1, 2], id="a backoff starts at its base"),
        pytest.param(exponential_backoff(1, 10, 50), [1, 10, 50], id="and ends at its maximum"),
        pytest.param(lambda n: n * 3, [3, 6, 9], id="a function is asked"),
        pytest.param(lambda n: -n, [0, 0, 0], id="nobody waits less than no time"),
    ],
)
def test_without_jitter_the_delay_is_what_was_asked_for(delays: Any, waits: list[float]) -> None:
    policy = Retry(retries=9, delays=delays, jitter=0)
    assert [wait(policy, n) for n in (1, 2, 3)] == waits


def test_a_backoff_whose_power_overflows_is_at_its_maximum() -> None:
    assert exponential_backoff(1.0, max_delay=60)(100_000) == 60
    assert exponential_backoff(1.0)(100_000) == inf


def test_full_jitter_is_between_nothing_and_the_delay_and_differs() -> None:
    policy = Retry(retries=1, delays=10.0)
    waits = [wait(policy, 1, seed=seed) for seed in range(200)]
    assert all(0 <= w <= 10 for w in waits)
    assert min(waits) < 1
    assert max(waits) > 9
    assert len(set(waits)) > 190


def test_half_a_jitter_keeps_half_of_the_delay() -> None:
    policy = Retry(retries=1, delays=10.0, jitter=0.5)
    assert all(5 <= wait(policy, 1, seed=seed) <= 10 for seed in range(100))


def test_chance_is_the_caller_s_so_that_a_seed_gives_the_same() -> None:
    policy = Retry(retries=1, delays=10.0)
    assert wait(policy, 1, seed=3) == wait(policy, 1, seed=3)


@pytest.mark.parametrize("jitter", [0.0, 1.0])
def test_nobody_comes_back_earlier_than_a_server_asked(jitter: float) -> None:
    policy = Retry(retries=1, delays=0.1, jitter=jitter)
    assert all(20 <= wait(policy, 1, RetryAfter(20), seed) <= 21 for seed in range(100))


def test_a_longer_delay_of_one_s_own_stays() -> None:
    assert wait(Retry(retries=1, delays=50, jitter=0), 1, RetryAfter(20)) == 50


def test_a_server_that_asks_too_much_is_not_waited_for() -> None:
    policy = Retry(retries=1)
    assert wait(policy, 1, RetryAfter(RETRY_AFTER_CAP)) is not None
    assert wait(policy, 1, RetryAfter(RETRY_AFTER_CAP + 1)) is None


class HttpError(Exception):
    """Carries headers as aiohttp's error does, or a response as httpx's and requests' do."""

    def __init__(self, headers: Any = None, response: Any = None) -> None:
        super().__init__("429")
        if headers is not None:
            self.headers = headers
        if response is not None:
            self.response = response


class Unset(Exception):
    @property
    def response(self) -> Any:
        raise RuntimeError("The .response property has not been set")


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        pytest.param(HttpError({"Retry-After": "7"}), 7, id="headers of the error"),
        pytest.param(
            HttpError(response=SimpleNamespace(headers={"Retry-After": "7"})), 7, id="of a response"
        ),
        pytest.param(
            HttpError({"Retry-After": formatdate(NOW + 90, usegmt=True)}), 90, id="a date"
        ),
        pytest.param(HttpError({"Retry-After": formatdate(NOW - 90, usegmt=True)}), 0, id="past"),
        pytest.param(HttpError({"Retry-After": "soon"}), None, id="neither number nor date"),
        pytest.param(HttpError({"Retry-After": "-5"}), 0, id="a negative number"),
        pytest.param(HttpError({"Retry-After": "nan"}), None, id="no number"),
        pytest.param(HttpError({}), None, id="no such header"),
        pytest.param(HttpError(headers=5), None, id="headers that are none"),
        pytest.param(Unset(), None, id="a response that cannot be asked for"),
        pytest.param(ValueError(), None, id="an error of another kind"),
    ],
)
def test_what_a_server_asks_for_is_found(error: BaseException, seconds: float | None) -> None:
    assert asked_delay(error, NOW) == seconds


def test_a_fraction_of_a_second_counts() -> None:
    assert parse_retry_after(" 1.5 ", NOW) == 1.5


def test_only_what_may_be_mended_is_tried_again() -> None:
    policy = Retry(retries=2, on=(OSError, KeyboardInterrupt))
    assert policy.answers(2, OSError())
    assert policy.answers(1, FileNotFoundError())
    assert not policy.answers(3, OSError())
    assert not policy.answers(1, ValueError())
    assert not policy.answers(1, KeyboardInterrupt())
    assert not Retry(retries=2).answers(1, UpstreamFailed("x"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"retries": -1},
        {"retries": 1.5},
        {"retries": True},
        {"jitter": -0.1},
        {"jitter": float("nan")},
        {"delays": -1},
        {"delays": []},
        {"delays": [1, "2"]},
        {"delays": inf},
    ],
    ids=str,
)
def test_a_policy_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidOption, match="give"):
        Retry(**wrong)


def test_a_backoff_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(InvalidOption, match="factor >= 1"):
        exponential_backoff(1, 0.5)
