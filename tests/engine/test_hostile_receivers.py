"""Receivers, names and runs that mean harm, or are only slow: what they cannot do to others."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from email import message_from_bytes
from email.message import Message
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiosmtpd.smtp import SMTP, AuthResult
from patience import settled, until

from asyncflow import (
    Automation,
    Channel,
    DeliveryFailed,
    Engine,
    EventTrigger,
    Notify,
    automating,
    flow,
)
from asyncflow.notifications import email, services, webhook
from asyncflow.notifications.sending import Message as Outgoing
from asyncflow.notifications.sending import send

MESSAGE = Outgoing("id", "subject", "body", [{}])
NOW = 1_800_000_000.0
LATER = format_datetime(datetime.fromtimestamp(NOW + 60, UTC))


@flow
async def doomed() -> None:
    raise RuntimeError("the disk is on fire")


class Receiver:
    """A web server on two addresses of this machine; it answers what it is told to, then 200."""

    def __init__(self) -> None:
        self.answers: list[web.StreamResponse] = []
        self.got: list[tuple[str, dict[str, str], bytes]] = []
        self.port = 0
        self.held, self.let_go = asyncio.Event(), asyncio.Event()
        self.hold = False

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.got.append((request.host, dict(request.headers), await request.read()))
        if self.hold:
            self.held.set()
            await self.let_go.wait()
        return self.answers.pop(0) if self.answers else web.Response()

    def url(self, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}/hook"

    def redirects(self, *targets: str) -> None:
        self.answers = [web.Response(status=307, headers={"Location": t}) for t in targets]


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    made = Receiver()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", made.handle)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.port = runner.addresses[0][1]
    await web.TCPSite(runner, "127.0.0.2", made.port).start()
    yield made
    made.let_go.set()
    await runner.cleanup()


class Names:
    """Names that lead where they are told, one answer after the other."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = list(answers)
        self.asked = 0

    async def resolve(self, host: str, port: int = 0, family: int = 0) -> list[Any]:
        self.asked += 1
        found = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return [
            {"hostname": host, "host": a, "port": port, "family": 2, "proto": 0, "flags": 0}
            for a in found
        ]

    async def close(self) -> None: ...


@pytest.fixture
def outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """127.0.0.1 counts as an address of the internet; all others of this machine do not."""
    monkeypatch.setattr(webhook, "is_public", lambda address: address == "127.0.0.1")


INSIDE = [
    "127.0.0.2", "2130706434", "0x7f000002", "0177.0.0.2", "127.2", "127.0.0.2.",
    "127。0。0。2", "①②⑦.⓪.⓪.②", "[::ffff:127.0.0.2]", "[::127.0.0.2]", "[64:ff9b::7f00:2]",
    "localhost", "LOCALHOST.", "a.localhost", "0.0.0.0", "[::]", "[::1]",
]  # fmt: skip


@pytest.mark.parametrize("host", INSIDE)
async def test_no_way_to_write_an_address_leads_inside(
    receiver: Receiver, host: str, outside: None
) -> None:
    channel = Channel("hook", receiver.url(host), timeout_seconds=5)
    with pytest.raises(DeliveryFailed, match="not a public address"):
        await send(channel, MESSAGE, NOW)
    assert receiver.got == []


@pytest.mark.parametrize("host", INSIDE)
async def test_no_redirect_leads_inside(receiver: Receiver, host: str, outside: None) -> None:
    receiver.redirects(receiver.url(host))
    with pytest.raises(DeliveryFailed, match="not a public address"):
        await send(Channel("hook", receiver.url()), MESSAGE, NOW)
    assert [host for host, _, _ in receiver.got] == [f"127.0.0.1:{receiver.port}"]


@pytest.mark.parametrize(
    "target",
    ["", "file:///etc/passwd", "ftp://127.0.0.1/", "http://[::1", "http://u:p@127.0.0.1/",
     "http://127.0.0.1:99999/", "javascript:alert(1)"],
)  # fmt: skip
async def test_a_redirect_to_what_is_no_web_address_is_final(
    receiver: Receiver, target: str, outside: None
) -> None:
    receiver.redirects(target)
    with pytest.raises(DeliveryFailed, match="no web address") as caught:
        await send(Channel("hook", receiver.url()), MESSAGE, NOW)
    assert caught.value.final


async def test_a_name_that_is_public_and_then_private_leads_inside_at_no_time(
    receiver: Receiver, outside: None
) -> None:
    names = Names(["127.0.0.1"], ["127.0.0.2"])
    channel = Channel("hook", receiver.url("rebind.example"))
    receiver.redirects(receiver.url("rebind.example") + "/again")
    with pytest.raises(DeliveryFailed, match="not public"):
        await send(channel, MESSAGE, NOW, names)
    assert names.asked == 2
    assert len(receiver.got) == 1


async def test_of_mixed_answers_only_the_public_ones_are_connected_to(
    receiver: Receiver, outside: None
) -> None:
    names = Names(["127.0.0.2", "127.0.0.1", "10.0.0.1"])
    assert (
        await send(Channel("h", receiver.url("mixed.example")), MESSAGE, NOW, names) == "HTTP 200"
    )


async def test_an_address_that_a_resolver_should_have_kept_back_is_refused_by_the_socket(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def careless(self: Any, host: str, port: int = 0, family: int = 0) -> Any:
        return await self._inner.resolve(host, port, family)

    monkeypatch.setattr(webhook.Guard, "resolve", careless)
    with pytest.raises(DeliveryFailed, match="not public"):
        await send(Channel("h", receiver.url("x.example")), MESSAGE, NOW, Names(["127.0.0.2"]))
    assert receiver.got == []


async def test_a_redirect_keeps_method_body_and_id(receiver: Receiver) -> None:
    receiver.redirects("/a", receiver.url() + "/b", "c")
    channel = Channel("hook", receiver.url(), secret="key", allow_private=True)
    assert await send(channel, MESSAGE, NOW) == "HTTP 200"
    assert len({(body, h["Asyncflow-Event-Id"]) for _, h, body in receiver.got}) == 1
    assert all("Asyncflow-Signature" in headers for _, headers, _ in receiver.got)
    receiver.got.clear()
    receiver.redirects("/a", "/b", "/c", "/d")
    with pytest.raises(DeliveryFailed, match="more than 3 times"):
        await send(channel, MESSAGE, NOW)
    assert len(receiver.got) == 4


async def test_an_answer_counts_by_its_status_however_its_body_comes(receiver: Receiver) -> None:
    async def stalls(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n")
        await reader.read()
        writer.close()
        await writer.wait_closed()
        gone.set()

    gone = asyncio.Event()
    server = await asyncio.start_server(stalls, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    channel = Channel("hook", f"http://127.0.0.1:{port}/", allow_private=True)
    assert await send(channel, MESSAGE, NOW) == "HTTP 200"
    await asyncio.wait_for(gone.wait(), 10)
    server.close()
    await server.wait_closed()


@pytest.mark.parametrize(
    ("status", "asked", "final", "after"),
    [
        (408, None, False, None), (425, None, False, None), (429, "7", False, 7.0),
        (429, "86400", False, 300.0), (503, LATER, False, 60.0),
        (503, "soon", False, None), (520, None, False, None), (599, None, False, None),
        (400, None, True, None), (404, "5", True, None), (304, None, True, None),
    ],
)  # fmt: skip
async def test_what_an_answer_means(
    receiver: Receiver, status: int, asked: str | None, final: bool, after: float | None
) -> None:
    headers = {} if asked is None else {"Retry-After": asked}
    receiver.answers = [web.Response(status=status, headers=headers, text="s3cret of theirs")]
    channel = Channel("hook", receiver.url(), allow_private=True)
    with pytest.raises(DeliveryFailed) as caught:
        await send(channel, MESSAGE, NOW)
    assert str(caught.value) == f"HTTP {status}"
    assert (caught.value.final, caught.value.after) == (final, after)


async def test_what_json_has_not_is_sent_all_the_same(receiver: Receiver) -> None:
    channel = Channel("hook", receiver.url(), secret="key", allow_private=True)
    message = Outgoing("id", "s", "b", [{"a": float("nan"), "b": float("inf"), "c": "\ud800 NaN"}])
    assert await send(channel, message, NOW) == "HTTP 200"
    ((_, headers, body),) = receiver.got
    webhook.verify_webhook("key", headers, body, now=NOW)
    assert json.loads(body)["firings"] == [{"a": None, "b": None, "c": "\ud800 NaN"}]


async def test_webhooks_by_apprise_do_not_reach_inside_either(receiver: Receiver) -> None:
    for scheme in ("json", "xml", "form"):
        url = f"{scheme}://127.0.0.2:{receiver.port}/x"
        with pytest.raises(DeliveryFailed, match="not a public address"):
            await send(Channel("service", url), MESSAGE, NOW)
        assert await send(Channel("service", url, allow_private=True), MESSAGE, NOW) == "sent"
    assert len(receiver.got) == 3


async def test_webhooks_by_apprise_follow_no_redirect(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services, "is_public", lambda address: address == "127.0.0.1")
    receiver.redirects(receiver.url("127.0.0.2"))
    with pytest.raises(DeliveryFailed, match="did not take it"):
        await send(Channel("s", f"json://127.0.0.1:{receiver.port}/x"), MESSAGE, NOW)
    assert len(receiver.got) == 1


async def test_a_chat_is_not_woken_by_the_name_of_a_run(receiver: Receiver) -> None:
    channel = Channel("json", f"json://127.0.0.1:{receiver.port}/x", allow_private=True)
    message = Outgoing("id", "run @everyone", "<!channel> @here", [{}])
    await send(channel, message, NOW)
    told = json.loads(receiver.got[0][2])
    assert "@everyone" not in told["title"]
    assert "<!channel>" not in told["message"]
    assert "@here" not in told["message"]


# --- mail -----------------------------------------------------------------------------------------


class Mailbox:
    def __init__(self) -> None:
        self.mails: list[Message] = []
        self.answers: list[str] = []
        self.refuses: set[str] = set()
        self.logins: list[Any] = []
        self.port = 0

    async def handle_RCPT(  # noqa: N802 - aiosmtpd's name
        self, server: Any, session: Any, envelope: Any, address: str, options: Any
    ) -> str:
        if address in self.refuses:
            return "550 nobody here"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802 - aiosmtpd's name
        self.mails.append(message_from_bytes(envelope.content))
        return self.answers.pop(0) if self.answers else "250 OK"

    def login(self, server: Any, session: Any, envelope: Any, mechanism: str, data: Any) -> Any:
        self.logins.append(data)
        return AuthResult(success=data.password == b"s3cret", handled=False)

    def url(self, user: str = "") -> str:
        return (
            f"smtp://{user}127.0.0.1:{self.port}/?from=f@example.org&to=a@example.org,b@example.org"
        )


@pytest.fixture
async def mailbox() -> AsyncIterator[Mailbox]:
    made = Mailbox()

    def session() -> SMTP:
        return SMTP(made, hostname="here", authenticator=made.login, auth_require_tls=False)

    logging.getLogger("mail.log").setLevel(logging.ERROR)
    server = await asyncio.get_running_loop().create_server(session, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    yield made
    server.close()
    await server.wait_closed()


@pytest.mark.filterwarnings("ignore:Requiring AUTH while not requiring TLS:UserWarning")
async def test_a_mail_that_is_tried_again_is_the_same_mail(mailbox: Mailbox) -> None:
    mailbox.answers = ["451 later"]
    channel = Channel("mail", mailbox.url())
    message = Outgoing("id-1", "sübject", "böody\n.\n", [{}])
    with pytest.raises(DeliveryFailed, match="451") as caught:
        await send(channel, message, NOW)
    assert not caught.value.final
    assert await send(channel, message, NOW) == "OK"
    first, second = mailbox.mails
    assert first["Message-ID"] == second["Message-ID"] == "<id-1@asyncflow>"
    assert first["Date"] == "Fri, 15 Jan 2027 08:00:00 +0000"
    body = first.get_payload(decode=True)
    assert isinstance(body, bytes)
    assert body.decode().split() == ["böody", "."]


async def test_who_of_several_was_refused_is_told(mailbox: Mailbox) -> None:
    mailbox.refuses = {"b@example.org"}
    channel = Channel("mail", mailbox.url())
    assert await send(channel, MESSAGE, NOW) == "OK (refused: b@example.org)"
    mailbox.refuses = {"a@example.org", "b@example.org"}
    with pytest.raises(DeliveryFailed, match=r"refuses the receivers \[550\]") as caught:
        await send(channel, MESSAGE, NOW)
    assert caught.value.final


async def test_a_login_that_is_refused_tells_no_password(mailbox: Mailbox) -> None:
    assert await send(Channel("mail", mailbox.url("me:s3cret@")), MESSAGE, NOW) == "OK"
    with pytest.raises(DeliveryFailed, match="refuses the login") as caught:
        await send(Channel("mail", mailbox.url("me:wr0ng@")), MESSAGE, NOW)
    assert "wr0ng" not in str(caught.value)
    assert len(mailbox.logins) >= 2


async def test_a_password_goes_to_no_far_server_without_tls(
    mailbox: Mailbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(email, "ip_address", lambda _: type("Far", (), {"is_loopback": False}))
    with pytest.raises(DeliveryFailed, match="no TLS"):
        await send(Channel("mail", mailbox.url("me:s3cret@")), MESSAGE, NOW)
    assert mailbox.logins == []
    near = Channel("mail", mailbox.url("me:s3cret@"), allow_private=True)
    assert await send(near, MESSAGE, NOW) == "OK"


async def test_a_mail_server_that_says_nothing_has_its_end() -> None:
    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()
        await writer.wait_closed()
        gone.set()

    gone = asyncio.Event()
    server = await asyncio.start_server(mute, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    url = f"smtp://127.0.0.1:{port}/?from=a@b.c&to=d@e.f"
    with pytest.raises(DeliveryFailed):
        await send(Channel("mail", url, timeout_seconds=0.1), MESSAGE, NOW)
    await asyncio.wait_for(gone.wait(), 10)
    server.close()
    await server.wait_closed()


# --- in an engine ---------------------------------------------------------------------------------


def watch(*channels: str) -> Automation:
    return Automation("failures", EventTrigger("flow-run.Failed"), [Notify(c) for c in channels])


async def test_a_channel_that_hangs_holds_up_no_other_and_no_closing(
    path: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(automating, "LAST_WORDS", 0.0)
    other = Receiver()
    receiver.hold = True
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", other.handle)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    other.port = runner.addresses[0][1]
    slow = Channel("slow", receiver.url(), allow_private=True, timeout_seconds=600)
    async with Engine(path) as engine:
        engine.add_channel(slow)
        engine.add_channel(Channel("quick", other.url(), allow_private=True))
        await engine.automate(watch("slow", "quick"))
        for count in (1, 2):
            # The second failure is seen, and told, while the first is still being told.
            await (await engine.submit(doomed)).wait()
            await settled(engine, count)
        await asyncio.wait_for(receiver.held.wait(), 10)
        states = [(d.channel, d.state) for d in await engine.deliveries()]
        assert ("slow", "sending") in states
    receiver.hold = False
    async with Engine(path) as engine:
        engine.add_channel(slow)
        deliveries = await settled(engine, 4)
    assert {d.state for d in deliveries} == {"delivered"}
    ids = [headers["Asyncflow-Event-Id"] for _, headers, _ in receiver.got]
    assert len(set(ids)) == 2, "what was cut off came again under its own id"
    await runner.cleanup()


async def test_a_digest_counts_as_one_message_for_the_rate(path: Path, receiver: Receiver) -> None:
    channel = Channel(
        "hook", receiver.url(), allow_private=True, digest_seconds=0.3, rate_limit=(2, 3600)
    )
    async with Engine(path) as engine:
        engine.add_channel(channel)
        await engine.automate(watch("hook"))
        for count in (3, 6):
            for _ in range(3):
                await (await engine.submit(doomed)).wait()
            await settled(engine, count)
    assert [len(json.loads(body)["firings"]) for _, _, body in receiver.got] == [3, 3]


async def test_no_secret_of_a_channel_gets_into_the_database(
    path: Path, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    secrets = ["canary-path-1", "canary-query-2", "canary-key-3", "canary-header-4", "canary-pw-5"]
    hook = Channel(
        "hook",
        f"http://127.0.0.1:9/{secrets[0]}?token={secrets[1]}",
        secret=secrets[2],
        headers={"Authorization": f"Bearer {secrets[3]}"},
        allow_private=True,
        retries=0,
    )
    mail = Channel("mail", f"smtp://me:{secrets[4]}@127.0.0.1:9/?from=a@b.c&to=d@e.f", retries=0)
    chat = Channel(
        "chat", f"json://me:{secrets[4]}@127.0.0.1:9/{secrets[0]}", retries=0, allow_private=True
    )
    async with Engine(path) as engine:
        for channel in (hook, mail, chat):
            engine.add_channel(channel)
        await engine.automate(watch("hook", "mail", "chat"))
        await (await engine.submit(doomed)).wait()
        deliveries = await settled(engine, 3)
    assert {d.state for d in deliveries} == {"failed"}
    stored = b"".join(file.read_bytes() for file in path.parent.rglob("*") if file.is_file())
    ours = " ".join(r.getMessage() for r in caplog.records if r.name.startswith("asyncflow"))
    for secret in secrets:
        assert secret.encode() not in stored
        assert secret not in ours
        assert all(secret not in d.error + d.reply for d in deliveries)


async def test_what_this_process_lacks_is_tried_again(
    path: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A variable that somebody forgot to set loses no message."""
    monkeypatch.delenv("HOOK_URL", raising=False)
    channel = Channel("hook", "env:HOOK_URL", allow_private=True, retry_delay_seconds=0.05)
    async with Engine(path) as engine:
        engine.add_channel(channel)
        await engine.automate(watch("hook"))
        await (await engine.submit(doomed)).wait()

        async def error() -> str:
            return "".join(one.error for one in await engine.deliveries())

        assert "'HOOK_URL' is not set" in await until(error)
        monkeypatch.setenv("HOOK_URL", receiver.url())
        (one,) = await settled(engine, 1)
    assert one.state == "delivered"
