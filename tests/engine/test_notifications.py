"""Messages to real receivers on this machine: over failures, restarts and hostile answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from email import message_from_bytes
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiosmtpd.smtp import SMTP
from patience import settled, until

from asyncflow import (
    Automation,
    Channel,
    DeliveryFailed,
    Engine,
    EventTrigger,
    Notify,
    RunDeployment,
    TemplateError,
    UnknownChannel,
    flow,
    verify_webhook,
)
from asyncflow.notifications.sending import Message as Outgoing
from asyncflow.notifications.sending import send

SECRET = "a key"


@flow
async def doomed() -> None:
    raise RuntimeError("the disk is on fire")


class Receiver:
    """A web server that answers what it is told to, then 200."""

    def __init__(self) -> None:
        self.answers: list[web.Response] = []
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.port = 0

    async def handle(self, request: web.Request) -> web.Response:
        self.got.append((dict(request.headers), await request.read()))
        return self.answers.pop(0) if self.answers else web.Response()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    made = Receiver()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", made.handle)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    made.port = runner.addresses[0][1]
    yield made
    await runner.cleanup()


class Mailbox:
    """A mail server that refuses when it is told to."""

    def __init__(self) -> None:
        self.mails: list[Message] = []
        self.answers: list[str] = []
        self.port = 0

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802 - aiosmtpd's name
        if self.answers:
            return self.answers.pop(0)
        self.mails.append(message_from_bytes(envelope.content))
        return "250 OK"

    @property
    def url(self) -> str:
        return (
            f"smtp://127.0.0.1:{self.port}/?from=flows@example.org&to=a@example.org,b@example.org"
        )


@pytest.fixture
async def mailbox() -> AsyncIterator[Mailbox]:
    made = Mailbox()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: SMTP(made, hostname="here"), "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    yield made
    server.close()
    await server.wait_closed()


def watch(*channels: str, **options: Any) -> Automation:
    return Automation(
        "failures", EventTrigger("flow-run.Failed"), [Notify(c, **options) for c in channels]
    )


def hook(receiver: Receiver, **options: Any) -> Channel:
    settings: dict[str, Any] = {
        "secret": SECRET, "allow_private": True, "retry_delay_seconds": 0.01, **options,
    }  # fmt: skip
    return Channel("hook", receiver.url, **settings)


async def test_a_failure_is_told_by_mail_and_webhook(
    path: Path, receiver: Receiver, mailbox: Mailbox
) -> None:
    async with Engine(path) as engine:
        engine.add_channel(Channel("mail", mailbox.url))
        engine.add_channel(hook(receiver))
        await engine.automate(watch("mail", "hook"))
        run = await engine.submit(doomed)
        await run.wait()
        deliveries = await settled(engine, 2)
    assert [d.state for d in deliveries] == ["delivered"] * 2
    (mail,) = mailbox.mails
    assert mail["Subject"] == "flow doomed failed: doomed"
    assert mail["To"] == "a@example.org, b@example.org"
    text = str(mail.get_payload())
    assert run.id in text
    assert "the disk is on fire" in text
    ((headers, body),) = receiver.got
    verify_webhook(SECRET, headers, body)
    told = json.loads(body)
    assert told["firings"][0]["event"]["run_id"] == run.id
    assert headers["Asyncflow-Event-Id"] == told["id"]


async def test_a_receiver_that_fails_and_recovers_gets_it_with_the_same_id(
    path: Path, receiver: Receiver, mailbox: Mailbox
) -> None:
    receiver.answers = [web.Response(status=503), web.Response(status=429)]
    mailbox.answers = ["451 later", "421 busy"]
    async with Engine(path) as engine:
        engine.add_channel(Channel("mail", mailbox.url, retry_delay_seconds=0.01))
        engine.add_channel(hook(receiver))
        await engine.automate(watch("mail", "hook"))
        await (await engine.submit(doomed)).wait()
        deliveries = await settled(engine, 2)
    assert [(d.state, d.attempts) for d in deliveries] == [("delivered", 3)] * 2
    assert len({headers["Asyncflow-Event-Id"] for headers, _ in receiver.got}) == 1
    assert len(mailbox.mails) == 1


async def test_what_was_not_sent_is_sent_after_a_restart_and_only_once(
    path: Path, receiver: Receiver
) -> None:
    async with Engine(path) as engine:
        await engine.automate(watch("hook"))
        for _ in range(3):
            await (await engine.submit(doomed)).wait()
        # The automation sees them; nobody here knows the channel.

        async def three() -> list[Any] | None:
            found = await engine.deliveries()
            return found if len(found) == 3 else None

        assert {d.state for d in await until(three)} == {"pending"}
    for _ in range(2):
        async with Engine(path) as engine:
            engine.add_channel(hook(receiver))
            assert [d.state for d in await settled(engine, 3)] == ["delivered"] * 3
    assert len({headers["Asyncflow-Event-Id"] for headers, _ in receiver.got}) == 3
    assert len(receiver.got) == 3


async def test_what_is_refused_for_good_ends_as_failed_and_says_so(
    path: Path, receiver: Receiver
) -> None:
    receiver.answers = [web.Response(status=410)]
    async with Engine(path) as engine:
        engine.add_channel(hook(receiver))
        engine.add_channel(
            Channel(
                "off", "http://127.0.0.1:9/x", allow_private=True, retries=1, retry_delay_seconds=0
            )
        )
        await engine.automate(watch("hook", "off"))
        await (await engine.submit(doomed)).wait()
        first, second = await settled(engine, 2)
        assert (first.state, first.error, first.attempts) == ("failed", "HTTP 410", 1)
        assert (second.state, second.attempts) == ("failed", 2)
        events = await engine.events(kinds="delivery.failed")
        assert {event.payload["channel"] for event in events} == {"hook", "off"}
        (run,) = await engine.runs()
        assert run.state.is_failed(), "a message that fails changes no run"


async def test_many_failures_are_one_digest(path: Path, receiver: Receiver) -> None:
    async with Engine(path) as engine:
        engine.add_channel(hook(receiver, digest_seconds=1.0))
        await engine.automate(watch("hook", subject="{{ event.run_name }} failed"))
        for _ in range(4):
            await (await engine.submit(doomed)).wait()
        await settled(engine, 4)
    ((_, body),) = receiver.got
    told = json.loads(body)
    assert told["subject"] == "4 messages: doomed failed"
    assert len(told["firings"]) == 4


async def test_a_template_that_fails_loses_no_message(path: Path, receiver: Receiver) -> None:
    async with Engine(path) as engine:
        engine.add_channel(hook(receiver))
        # Well with what it is tried with, which has a tag.
        await engine.automate(watch("hook", body="{{ 1 // event.tags|length }}"))
        await (await engine.submit(doomed)).wait()
        (delivery,) = await settled(engine, 1)
    assert delivery.state == "delivered"
    ((_, body),) = receiver.got
    text = json.loads(body)["text"]
    assert "the disk is on fire" in text
    assert "this is the default text, as the template" in text


async def test_a_template_that_is_wrong_is_refused_when_it_is_declared(path: Path) -> None:
    async with Engine(path) as engine:
        with pytest.raises(TemplateError, match="'run' is not known"):
            await engine.automate(watch("hook", body="{{ run.name }}"))
        with pytest.raises(TemplateError, match="no 'flow_name'"):
            await engine.automate(
                Automation(
                    "again",
                    EventTrigger("flow-run.Failed"),
                    [RunDeployment("other", {"of": ["{{ event.flow_name }}"]})],
                )
            )
        assert await engine.automations() == []


async def test_a_test_message_says_what_came_of_it(path: Path, receiver: Receiver) -> None:
    async with Engine(path) as engine:
        assert await engine.send_test(hook(receiver)) == "HTTP 200"
        receiver.answers = [web.Response(status=404)]
        with pytest.raises(DeliveryFailed, match="HTTP 404"):
            await engine.send_test(hook(receiver))
        with pytest.raises(UnknownChannel, match="'nobody'"):
            await engine.send_test("nobody")


MESSAGE = Outgoing("id", "subject", "body", [{}])


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "localhost", "2130706433", "0x7f.1", "127.1", "0.0.0.0", "[::1]",
        "[::ffff:127.0.0.1]", "x.localhost",
    ],
)  # fmt: skip
async def test_a_webhook_does_not_reach_into_the_machine(receiver: Receiver, host: str) -> None:
    channel = Channel("hook", f"http://{host}:{receiver.port}/")
    with pytest.raises(DeliveryFailed):
        await send(channel, MESSAGE, 0.0)
    assert receiver.got == []


class Names:
    """Names that lead where they are told, one answer after the other."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = list(answers)

    async def resolve(self, host: str, port: int = 0, family: int = 0) -> list[Any]:
        found = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return [
            {"hostname": host, "host": a, "port": port, "family": 2, "proto": 0, "flags": 0}
            for a in found
        ]

    async def close(self) -> None: ...


async def test_where_a_name_leads_is_checked_when_it_is_connected_to(receiver: Receiver) -> None:
    channel = Channel("hook", f"http://rebind.example:{receiver.port}/", timeout_seconds=2)
    with pytest.raises(DeliveryFailed, match="not public"):
        await send(channel, MESSAGE, 0.0, Names(["127.0.0.1"]))
    with pytest.raises(DeliveryFailed, match="not public"):
        await send(channel, MESSAGE, 0.0, Names(["10.0.0.1", "169.254.169.254"]))
    assert receiver.got == []


async def test_redirects_are_checked_and_another_receiver_gets_no_proof(receiver: Receiver) -> None:
    channel = hook(receiver, headers={"Authorization": "Bearer key"})
    other = f"http://localhost:{receiver.port}/other"
    receiver.answers = [web.Response(status=307, headers={"Location": other})]
    assert await send(channel, MESSAGE, 0.0) == "HTTP 200"
    first, second = (headers for headers, _ in receiver.got)
    assert {"Asyncflow-Signature", "Authorization"} <= set(first)
    assert not {"Asyncflow-Signature", "Authorization"} & set(second)
    for target in ("file:///etc/passwd", "gopher://x", ""):
        receiver.answers = [
            web.Response(status=302, headers={"Location": target}) for _ in range(9)
        ]
        with pytest.raises(DeliveryFailed, match="redirects"):
            await send(channel, MESSAGE, 0.0)


async def test_a_receiver_that_never_answers_has_its_end() -> None:
    gone = asyncio.Event()

    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()
        await writer.wait_closed()
        gone.set()

    server = await asyncio.start_server(mute, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    channel = Channel("hook", f"http://127.0.0.1:{port}/", allow_private=True, timeout_seconds=0.2)
    with pytest.raises(DeliveryFailed, match="no answer"):
        await send(channel, MESSAGE, 0.0)
    await asyncio.wait_for(gone.wait(), 5)
    server.close()
    await server.wait_closed()


async def test_a_service_of_apprise_gets_it(receiver: Receiver) -> None:
    channel = Channel("json", f"json://127.0.0.1:{receiver.port}/x", allow_private=True)
    assert await send(channel, MESSAGE, 0.0) == "sent"
    assert json.loads(receiver.got[0][1])["title"] == "subject"
    receiver.answers = [web.Response(status=500) for _ in range(5)]
    with pytest.raises(DeliveryFailed, match="did not take it"):
        await send(channel, MESSAGE, 0.0)
