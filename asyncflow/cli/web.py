"""``asyncflow server start``."""

from __future__ import annotations

from typing import Any

import click

from asyncflow.cli.output import answered_async, say
from asyncflow.cli.source import path_of
from asyncflow.engine import Engine
from asyncflow.errors import InvalidOption
from asyncflow.serving import until_told

#: Characters of a token that somebody chose.
SHORTEST = 16


def start_server(
    *,
    host: str,
    port: int,
    token: str | None,
    read_token: str | None,
    host_names: tuple[str, ...],
    db: str | None,
) -> int:
    """Serve the dashboard of a database until it is told to stop."""

    async def work() -> int:
        from asyncflow.server.app import LOOPBACK, serve_app
        from asyncflow.server.security import Access

        for name, given in (("--token", token), ("--read-token", read_token)):
            if given is not None and len(given) < SHORTEST:
                raise InvalidOption(f"{name}: give at least {SHORTEST} characters")
        if host not in LOOPBACK and (token is None or not host_names):
            raise InvalidOption(
                f"--host {host} can be reached from other machines: give a --token of your own"
                " and each --host-name by which it is called, or keep 127.0.0.1"
            )
        hosts = LOOPBACK | {name.lower() for name in host_names}
        chosen: dict[str, Any] = {} if token is None else {"token": token}
        access = Access(**chosen, read_token=read_token, hosts=hosts)
        async with Engine(db) as engine:
            runner, url = await serve_app(engine, host, port, access, embedded=False)
            try:
                say(f"dashboard of {path_of(db)}, until Ctrl-C:", error=True)
                say(f"  {click.style(url, bold=True)}")
                number = await until_told(engine)
            finally:
                await runner.cleanup()
        return 128 + number if number is not None else 0

    return answered_async(work)
