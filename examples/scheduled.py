"""A flow that runs by itself, fails on purpose, calls for help, is killed and catches up.

    python examples/scheduled.py

It starts a mail server and a web server on this machine, then a second process that serves a
deployment: every two seconds it "imports rates". One import fails for good, one needs another
attempt. Each failure sends a mail and a signed webhook; the web server is down at first. In the
middle the serving process is killed (kill -9) and stays away for a while; the next one catches up
once, and delivers what had not been delivered. Then the command line tells the story.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime
from email import message_from_bytes
from pathlib import Path
from typing import Any

from aiohttp import web

from asyncflow import (
    Automation,
    Channel,
    Engine,
    EventTrigger,
    Interval,
    Notify,
    flow,
    runtime,
    task,
    verify_webhook,
)

SECRET = "only for this example"
FOLDER = Path("out") / "scheduled"


@task(retries=1, retry_delay_seconds=0.2, retry_jitter_factor=0)
async def fetch_rates(number: int) -> dict[str, float]:
    """The third import fails for good, every fifth at its first attempt."""
    if number == 3:
        raise ConnectionError("the rate service answers 503")
    if number % 5 == 0 and runtime.task_run.attempt == 1:
        raise ConnectionError("the connection was reset")
    return {"EUR": 1.0, "USD": 1.08 + number / 1000}


@flow
async def import_rates() -> float:
    """Fetch the rates of this tick, and keep them."""
    at = runtime.flow_run.scheduled_at or datetime.now(UTC)
    own = FOLDER / f"rates-{at.timestamp():.0f}"
    number = sum(file != own for file in FOLDER.glob("rates-*"))  # the same after a crash
    own.touch()
    rates = await fetch_rates(number)
    return rates["USD"]


async def serve(mail_port: int, web_port: int, every: float) -> None:
    """The second process: an engine with one deployment and one automation."""
    async with Engine(FOLDER / "state.db") as engine:
        engine.add_channel(
            Channel(
                "mail", f"smtp://127.0.0.1:{mail_port}/?from=flows@example.org&to=ops@example.org"
            )
        )
        engine.add_channel(
            Channel(
                "hook",
                f"http://127.0.0.1:{web_port}/hook",
                secret=SECRET,
                allow_private=True,
                retry_delay_seconds=1.0,
            )
        )
        await engine.automate(
            Automation(
                "rates failed",
                EventTrigger("flow-run.Failed", {"deployment": "rates"}),
                [Notify("mail"), Notify("hook")],
            )
        )
        await engine.deploy(import_rates, "rates", schedule=Interval(every))
        await engine.recover()
        await asyncio.Event().wait()


class Mailbox:
    """A mail server that keeps what it gets."""

    def __init__(self) -> None:
        self.mails: list[str] = []

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802 - aiosmtpd's name
        mail = message_from_bytes(envelope.content)
        self.mails.append(str(mail["Subject"]))
        return "250 OK"


class Hook:
    """A web server that answers 503 to its first requests."""

    def __init__(self, down: int) -> None:
        self.down = down
        self.calls: list[str] = []
        self.refused = 0

    async def handle(self, request: web.Request) -> web.Response:
        body = await request.read()
        if self.down > 0:
            self.down -= 1
            self.refused += 1
            return web.Response(status=503)
        verify_webhook(SECRET, request.headers, body)
        self.calls.append(request.headers["Asyncflow-Event-Id"])
        return web.Response()


async def main(every: float, away: float) -> int:
    from aiosmtpd.smtp import SMTP

    FOLDER.mkdir(parents=True, exist_ok=True)
    for old in FOLDER.iterdir():
        if old.is_file():
            old.unlink()
    mailbox, hook = Mailbox(), Hook(down=2)
    loop = asyncio.get_running_loop()
    mail = await loop.create_server(lambda: SMTP(mailbox, hostname="localhost"), "127.0.0.1", 0)
    app = web.Application()
    app.router.add_post("/hook", hook.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    ports = [str(mail.sockets[0].getsockname()[1]), str(runner.addresses[0][1])]

    def process() -> subprocess.Popen[bytes]:
        args = [sys.executable, __file__, "--serve", *ports, "--every", str(every)]
        return subprocess.Popen(args)

    try:
        print(f"serving an import every {every:g} s")
        child = process()
        await asyncio.sleep(4.6 * every)
        print(f"kill -9, and nobody there for {away:g} s")
        child.send_signal(signal.SIGKILL)
        child.wait()
        await asyncio.sleep(away)
        print("serving again")
        child = process()
        await asyncio.sleep(3.6 * every)
        for _ in range(200):
            if hook.calls and mailbox.mails:
                break
            await asyncio.sleep(0.1)
        child.send_signal(signal.SIGTERM)
        child.wait()
    finally:
        mail.close()
        await runner.cleanup()
    print(
        f"\nmails: {len(mailbox.mails)}; webhooks: {len(hook.calls)}, after {hook.refused} refused"
    )
    for subject in mailbox.mails:
        print(f"  {subject}")
    tell(["schedules", "ls"])
    tell(["deployments", "ticks", "rates"])
    tell(["events", "ls", "--kind", "schedule.*", "--kind", "flow-run.Failed", "--limit", "12"])
    tell(["automations", "deliveries"])
    return 0 if mailbox.mails and hook.calls else 1


def tell(args: list[str]) -> None:
    print(f"\n$ asyncflow {' '.join(args)}", flush=True)
    env = {**os.environ, "ASYNCFLOW_DATABASE": str(FOLDER / "state.db")}
    subprocess.run([sys.executable, "-m", "asyncflow", *args], env=env, check=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--serve", nargs=2, type=int, metavar=("MAIL", "WEB"), help=argparse.SUPPRESS
    )
    parser.add_argument("--every", type=float, default=2.0, help="seconds between two imports")
    parser.add_argument("--away", type=float, default=7.0, help="seconds without a server")
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve(*options.serve, options.every))
    else:
        sys.exit(asyncio.run(main(options.every, options.away)))
