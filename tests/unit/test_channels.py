"""Channels: what is refused, that no secret shows, when it is quiet; where webhooks may go."""

from __future__ import annotations

import pickle
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from pydantic import SecretStr

from asyncflow import Channel, InvalidOption
from asyncflow.notifications.addresses import is_public
from asyncflow.notifications.services import for_chat

HOOK = "https://example.org/hook"
SLACK = "slack://T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ/#general"


@pytest.mark.parametrize(
    "options",
    [
        {"name": "https://example.org/hooks/s3cret"},
        {"url": "https://exa mple.org/s3cret"},
        {"url": "https://example.org/s3cret\r\nX: y"},
        {"url": "https://@example.org/s3cret"},
        {"url": "https://a|b/s3cret"},
        {"url": "https://[::1/s3cret"},
        {"url": "https://exa\u2100mple.org/s3cret"},
        {"url": "nosuchservice://s3cret"},
        {"url": "mailto://"},
        {"url": "s3cret"},
        {"url": "env:"},
        {"url": "env:s3cret/T"},
        {"url": SecretStr("s3cret")},
        {"url": b"s3cret"},
        {"secret": ""},
        {"secret": 5},
        {"retries": True},
        {"retries": 1.5},
        {"rate_limit": ("a", 5)},
        {"rate_limit": (1, float("nan"))},
        {"rate_limit": (1.5, 5)},
        {"rate_limit": [1, 5]},
        {"digest_seconds": "x"},
        {"digest_seconds": float("inf")},
        {"timeout_seconds": 0},
        {"timeout_seconds": None},
        {"timeout_seconds": 601},
        {"quiet": ("22:00+01:00", "07:00", "UTC")},
        {"quiet": ("22:00", "07:00", 5)},
        {"quiet": ("22:00", "07:00", "")},
        {"quiet": ("22:00", "07:00", "../etc/passwd")},
        {"quiet": (22, 7, "UTC")},
        {"quiet": "22:00"},
        {"headers": None},
        {"headers": {"X": 1}},
        {"headers": {1: "x"}},
        {"headers": {"X": "s3cret\n"}},
        {"headers": {"X": "s3cret\ud800"}},
        {"headers": {"X y": "s3cret"}},
        {"headers": {"host": "s3cret"}},
        {"headers": {"ASYNCFLOW-Signature": "s3cret"}},
        {"headers": {"Content-Length": "s3cret"}},
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused_in_one_sentence(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidOption, match="^channel ") as caught:
        Channel(**{"name": "ops", "url": HOOK, **options})
    assert "s3cret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_secrets_may_be_given_as_such_and_show_nowhere() -> None:
    channel = Channel(
        "ops",
        SecretStr("https://example.org/hook/T0KEN?key=s3cret-in-query"),
        secret=SecretStr("s3cret-key"),
        headers={"Authorization": SecretStr("Bearer s3cret-header")},  # type: ignore[dict-item] # hidden, as pydantic does
    )
    assert channel.key == "s3cret-key"
    assert channel.headers["Authorization"] == "Bearer s3cret-header"
    assert "s3cret" not in f"{channel} {channel!r} {channel.masked_url}"
    text = "refused: /hook/T0KEN?key=s3cret-in-query, s3cret-in-query, s3cret-key, s3cret-header"
    assert "s3cret" not in channel.mask(text)
    assert channel.mask("at example.org: HTTP 404") == "at example.org: HTTP 404"


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("smtp://me:s3cr%2Fet@mail.example.org/?from=a@b.c&to=d@e.f", "s3cr/et"),
        (SLACK, "TIiajkdnlazkcOXrIdevi7FQ"),
        (SLACK, "A1BRTD4JD/TIiajkd"),
    ],
)  # fmt: skip
def test_errors_do_not_tell_what_stands_in_a_url(url: str, text: str) -> None:
    assert Channel("ops", url).mask(f"no answer to {text}!").startswith("no answer to **********")


def test_a_channel_is_a_value() -> None:
    channel = Channel("ops", HOOK, headers={"X": "y"})
    assert channel == Channel("ops", HOOK, headers={"X": "y"})
    assert hash(channel) == hash(Channel("ops", HOOK, headers={"X": "y"}))
    assert pickle.loads(pickle.dumps(channel)) == channel


def test_an_outage_of_an_hour_loses_nothing() -> None:
    channel = Channel("ops", HOOK)
    assert sum(channel.wait(n) for n in range(1, channel.retries + 1)) > 3000


# --- quiet time -----------------------------------------------------------------------------------


def minutes(zone: str, begin: str, hours: int) -> list[float]:
    """Each minute of so many hours from a time of a zone on."""
    first = datetime.fromisoformat(begin).replace(tzinfo=ZoneInfo(zone)).timestamp()
    return [first + 60 * n for n in range(hours * 60)]


@pytest.mark.parametrize(
    ("begin", "end"),
    [
        ("22:00", "07:00"), ("22:00", "02:30"), ("02:30", "04:00"), ("01:00", "02:15"),
        ("00:00", "12:00"), ("12:00", "11:00"),
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    ("zone", "day"),
    [
        ("Europe/Berlin", "2026-03-28T12:00"), ("Europe/Berlin", "2026-10-24T12:00"),
        ("America/Sao_Paulo", "2018-11-03T12:00"), ("Australia/Lord_Howe", "2026-04-04T12:00"),
        ("Pacific/Apia", "2011-12-29T06:00"), ("UTC", "2026-01-01T00:00"),
    ],
)  # fmt: skip
def test_quiet_time_begins_and_ends_once_a_day_whatever_the_clocks_do(
    begin: str, end: str, zone: str, day: str
) -> None:
    channel = Channel("ops", HOOK, quiet=(begin, end, zone))
    spans, now_quiet = 0, False
    for now in minutes(zone, day, 30):
        until = channel.quiet_until(now)
        if until is not None:
            assert until > now
            assert channel.quiet_until(until) is None, "when it is over it is over"
            spans += not now_quiet
        now_quiet = until is not None
    assert 1 <= spans <= 2


def test_quiet_time_that_ends_where_an_hour_is_missing_ends_with_the_jump() -> None:
    channel = Channel("ops", HOOK, quiet=("22:00", "02:30", "Europe/Berlin"))
    until = channel.quiet_until(datetime(2026, 3, 29, 0, 30, tzinfo=UTC).timestamp())
    assert until == datetime(2026, 3, 29, 1, 0, tzinfo=UTC).timestamp()


def test_quiet_time_that_ends_in_an_hour_that_comes_twice_ends_the_first_time() -> None:
    channel = Channel("ops", HOOK, quiet=("22:00", "02:30", "Europe/Berlin"))
    first = datetime(2026, 10, 25, 0, 30, tzinfo=UTC).timestamp()
    assert channel.quiet_until(first - 1) == first
    assert channel.quiet_until(first + 1800) is None


# --- addresses ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        "0.1.2.3", "100.64.0.1", "127.9.9.9", "169.254.169.254", "172.16.0.1", "192.0.0.8",
        "192.0.2.1", "192.88.99.1", "198.18.0.1", "203.0.113.1", "240.0.0.1", "255.255.255.255",
        "239.1.2.3", "::", "::1", "::127.0.0.1", "::8.8.8.8", "::ffff:127.0.0.1",
        "::ffff:0:127.0.0.1", "64:ff9b::a00:1", "64:ff9b:1::808:808", "100::1", "2001::1",
        "2001:0:4136:e378:8000:63bf:3fff:fdd2", "2001:db8::1", "2002:a00:1::", "3fff::1",
        "2606:2800::5efe:10.0.0.1", "2606:2800::200:5efe:10.0.0.1", "4000::1", "5f00::1",
        "fc00::1", "fec0::1", "fec0::5efe:8.8.8.8", "fe80::1", "ff02::1",
        "2606:2800:21f:cb07:6820:80da:af6b:8b2c%eth0", "127.1", "2130706433", "", "example.org",
    ],
)  # fmt: skip
def test_an_address_that_the_internet_cannot_reach(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "address",
    ["8.8.8.8", "2606:2800:21f:cb07:6820:80da:af6b:8b2c", "64:ff9b::808:808", "::ffff:8.8.8.8"],
)
def test_an_address_of_the_internet(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "text", ["@everyone", "@here", "@Channel", "@all", "<!channel>", "<@U123>", "<@&5>", "<#C1>"]
)
def test_nobody_is_woken_by_what_stands_in_a_message(text: str) -> None:
    assert text not in for_chat(f"run {text} failed")
    assert for_chat("a@example.org <b>") == "a@example.org <b>"
