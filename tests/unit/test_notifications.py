"""Channels, templates, signatures, addresses, and which messages go when."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from asyncflow import Channel, DeliveryFailed, InvalidOption, InvalidSignature, verify_webhook
from asyncflow.errors import TemplateError
from asyncflow.notifications import outbox, sending, templates
from asyncflow.notifications.webhook import is_public, sign
from asyncflow.store.planning import DeliveryRow

HOOK = "https://example.org/hook"


def row(id_: int, **changes: Any) -> DeliveryRow:
    made = DeliveryRow(
        id_, "a", 0, str(id_), "notify", "ops", None, 1, {}, "pending", 0, 0.0, 0.0, None, "", ""
    )
    return made._replace(**changes)


# --- channels -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("smtp://me:s3cret@mail.example.org:2525/?from=a@b.c&to=d@e.f", "smtp://me:****@mail.example.org:2525/"),
        ("https://example.org/hook/T0KEN?key=s3cret", "https://example.org/****"),
        ("slack://T0KEN/B/C/#general", "slack://****"),
        ("env:OPS_URL", "env:OPS_URL"),
    ],
)  # fmt: skip
def test_a_channel_never_shows_its_secrets(url: str, shown: str) -> None:
    channel = Channel("ops", url, secret="s3cret")
    assert channel.masked_url == shown
    assert "s3cret" not in f"{channel!r} {channel}"
    assert "T0KEN" not in f"{channel!r} {channel}"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"url": "nonsense s3cret"}, "does not parse"),
        ({"url": "https://"}, "no host"),
        ({"url": "https://u:s3cret@example.org"}, "no user"),
        ({"url": "https://example.org:s3cret/"}, "does not parse"),
        ({"url": "smtp://h"}, "from whom"),
        ({"url": "smtp://h/?from=a@b.c&to=d@e.f%0d%0aBcc:x@y.z"}, "from whom"),
        ({"url": 3}, "give a text"),
        ({"name": "Ops!"}, "channel name"),
        ({"retries": -1}, "retries"),
        ({"retry_delay_seconds": "soon"}, "retry_delay_seconds"),
        ({"rate_limit": (0, 5)}, "rate_limit"),
        ({"digest_seconds": 0}, "digest_seconds"),
        ({"quiet": ("22:00", "07:00", "Nowhere")}, "quiet"),
        ({"quiet": ("22:00", "22:00", "UTC")}, "never send"),
        ({"headers": {"X-A": "b\r\nc: d"}}, "headers"),
    ],
)
def test_a_channel_that_makes_no_sense_is_refused(options: dict[str, Any], text: str) -> None:
    given = {"name": "ops", "url": HOOK, **options}
    with pytest.raises(InvalidOption, match=text) as caught:
        Channel(**given)
    assert "s3cret" not in str(caught.value)


def test_a_url_in_the_environment_is_read_when_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    channel = Channel("ops", "env:OPS_URL", secret="env:OPS_SECRET")
    with pytest.raises(InvalidOption, match="'OPS_URL' is not set"):
        _ = channel.target
    monkeypatch.setenv("OPS_URL", HOOK)
    monkeypatch.setenv("OPS_SECRET", "key")
    assert (channel.target, channel.key, channel.kind) == (HOOK, "key", "webhook")


@pytest.mark.parametrize(
    ("clock", "ends"),
    [
        ("2026-01-15T21:59", None),
        ("2026-01-15T22:00", "2026-01-16T07:00"),
        ("2026-01-16T06:59", "2026-01-16T07:00"),
        ("2026-01-16T07:00", None),
        ("2026-03-28T23:00", "2026-03-29T07:00"),  # an hour is missing in this night
        ("2026-10-24T23:00", "2026-10-25T07:00"),  # and one comes twice in this
    ],
)
def test_quiet_time_ends_by_the_wall_clock(clock: str, ends: str | None) -> None:
    zone = ZoneInfo("Europe/Berlin")
    channel = Channel("ops", HOOK, quiet=("22:00", "07:00", "Europe/Berlin"))
    until = channel.quiet_until(datetime.fromisoformat(clock).replace(tzinfo=zone).timestamp())
    expected = datetime.fromisoformat(ends).replace(tzinfo=zone).timestamp() if ends else None
    assert until == expected


# --- templates ----------------------------------------------------------------------------------


def test_the_default_message_says_what_happened_and_what_to_do() -> None:
    data = {**templates.SAMPLE, "labels": {"flow": "etl"}}
    assert templates.default_subject(data) == "flow a flow failed: a run"
    body = templates.default_body(data)
    for text in ("a message", "run_id: 0190163d", "asyncflow resume 0190163d", "flow: etl"):
        assert text in body


@pytest.mark.parametrize(
    "template",
    [
        "{{ event.__class__ }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ event['__class__'] }}",
        "{{ ().__class__.__bases__[0] }}",
        "{{ self.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ lipsum.__globals__ }}",
        "{{ event | attr('__class__') }}",
        "{{ '%s' % ('x' * 10) }}",
        "{{ 'x' * 1000000000 }}",
        "{{ 9 ** 999999999 }}",
        "{{ 'x'.ljust(1000000000) }}",
        "{{ 'x' | center(1000000000) }}",
        "{% for i in range(100000000) %}x{% endfor %}",
        "{% for i in range(1000) %}{% for j in range(1000) %}{% endfor %}{% endfor %}",
        "{% include '/etc/passwd' %}",
        "{% if %}",
        "{{ 1 / 0 }}",
        "{{ nothing.at.all }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    ],
)
def test_a_template_that_fails_or_reaches_out_is_an_error_of_one_sentence(template: str) -> None:
    text, said = "", ""
    try:
        text = templates.render(template, templates.SAMPLE)
    except TemplateError as error:
        said = str(error)
    assert text == "", "what the sandbox hides is nothing"
    assert "\n" not in said
    assert len(said) < 400


def test_a_template_sees_copies_of_plain_data_only() -> None:
    class Live:
        secret = "s3cret"

        def __str__(self) -> str:
            return "a live thing"

    data = {"live": Live(), "items": [1, 2]}
    assert templates.render("{{ live }} {{ live.secret }}", data) == "a live thing "
    templates.render("{% set _ = items.append %}", data)
    assert data["items"] == [1, 2]


def test_a_message_has_one_line_as_subject_and_wakes_nobody_by_accident() -> None:
    data = {**templates.SAMPLE, "event": {**templates.SAMPLE["event"], "message": "x" * 1_000_000}}
    data["event"]["run_name"] = "a\r\nBcc: all@example.org"
    channel = Channel("ops", HOOK, body="{{ event.message[:50000] }}\x1b[31m")
    message = sending.compose(channel, "id", [(data, None, None)])
    assert message.subject == "flow a flow failed: a Bcc: all@example.org"
    assert len(message.body) == sending.LONGEST_BODY
    assert "\x1b" not in message.body


def test_a_digest_is_one_message_of_several() -> None:
    parts = [({**templates.SAMPLE, "count": n}, f"number {n}", "body") for n in range(3)]
    message = sending.compose(Channel("ops", HOOK), "id", parts)
    assert message.subject == "3 messages: number 0"
    assert all(f"number {n}" in message.body for n in range(3))
    assert len(message.data) == 3


# --- webhooks -----------------------------------------------------------------------------------


def test_a_signature_holds_for_its_body_secret_and_time() -> None:
    body = b'{"a": 1}'
    headers = {"asyncflow-timestamp": "1000", "Asyncflow-Signature": sign("key", 1000, body)}
    verify_webhook("key", headers, body, now=1100.0)
    for secret, changed, now in (
        ("other", body, 1100.0),
        ("key", b'{"a": 2}', 1100.0),
        ("key", body, 2000.0),
        ("key", body, 100.0),
    ):
        with pytest.raises(InvalidSignature):
            verify_webhook(secret, headers, changed, now=now)
    for bad in (
        {},
        {**headers, "asyncflow-timestamp": "x"},
        {**headers, "asyncflow-timestamp": ""},
    ):
        with pytest.raises(InvalidSignature, match="not signed"):
            verify_webhook("key", bad, body, now=1100.0)


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.215.14", True), ("2606:2800:21f:cb07:6820:80da:af6b:8b2c", True),
        ("127.0.0.1", False), ("::1", False), ("::ffff:10.0.0.1", False), ("10.1.2.3", False),
        ("169.254.169.254", False), ("fe80::1%eth0", False), ("fd00::1", False), ("0.0.0.0", False),
        ("100.64.0.1", False), ("64:ff9b::7f00:1", False), ("2002:7f00:1::", False),
        ("192.168.1.1", False), ("224.0.0.1", False), ("::", False), ("nonsense", False),
    ],
)  # fmt: skip
def test_which_addresses_a_webhook_may_go_to(address: str, public: bool) -> None:
    assert is_public(address) is public


# --- what goes when -----------------------------------------------------------------------------


def sent(channel: Channel, rows: list[DeliveryRow], lately: list[float], now: float) -> Any:
    found = outbox.decide(rows, channel, lately, now)
    return [[r.id for r in group] for group in found.send], found.wait_until


def test_without_a_policy_everything_goes_at_once() -> None:
    assert sent(Channel("ops", HOOK), [row(1), row(2)], [], 5.0) == ([[1], [2]], None)


def test_a_rate_lets_no_more_go_within_any_time_of_its_length() -> None:
    channel = Channel("ops", HOOK, rate_limit=(2, 60))
    rows = [row(1), row(2), row(3)]
    assert sent(channel, rows, [], 100.0) == ([[1], [2]], 160.0)
    assert sent(channel, rows, [90.0], 100.0) == ([[1]], 150.0)
    assert sent(channel, rows, [90.0, 95.0], 100.0) == ([], 150.0)
    assert sent(channel, rows, [40.0, 95.0], 100.0) == ([[1]], 155.0)


def test_a_digest_waits_for_others_and_does_not_wait_twice() -> None:
    channel = Channel("ops", HOOK, digest_seconds=30)
    rows = [row(1, created_at=100.0), row(2, created_at=120.0)]
    assert sent(channel, rows, [], 125.0) == ([], 130.0)
    assert sent(channel, rows, [], 130.0) == ([[1, 2]], None)
    tried = [row(1, created_at=100.0, attempts=1), row(2, created_at=101.0)]
    assert sent(channel, tried, [], 105.0) == ([[1]], 131.0)


def test_in_quiet_time_nothing_goes() -> None:
    channel = Channel("ops", HOOK, quiet=("00:00", "06:00", "UTC"))
    assert sent(channel, [row(1)], [], 3600.0) == ([], 21_600.0)
    assert sent(channel, [row(1)], [], 21_600.0) == ([[1]], None)


def test_a_failure_is_tried_again_as_often_as_the_channel_says() -> None:
    channel = Channel("ops", HOOK, retries=2, retry_delay_seconds=[1, 5])
    first = outbox.after(row(1, attempts=1), channel, DeliveryFailed("no"), "", 100.0)
    assert (first.state, first.next_at, first.error) == ("pending", 101.0, "no")
    asked = outbox.after(row(1, attempts=2), channel, DeliveryFailed("no", after=60.0), "", 100.0)
    assert asked.next_at == 160.0
    last = outbox.after(row(1, attempts=3), channel, DeliveryFailed("no"), "", 100.0)
    assert (last.state, last.ended_at) == ("failed", 100.0)
    final = outbox.after(row(1, attempts=1), channel, DeliveryFailed("never", final=True), "", 1.0)
    assert final.state == "failed"
    fine = outbox.after(row(1, attempts=3, error="no"), channel, None, "HTTP 200", 1.0)
    assert (fine.state, fine.error, fine.reply) == ("delivered", "", "HTTP 200")
