"""`serve`: a process that does nothing but run deployments when they are due."""

from __future__ import annotations

import asyncio
import logging
import signal
from typing import TYPE_CHECKING, Any

from asyncflow.errors import BlockingCall, InvalidOption

if TYPE_CHECKING:
    from asyncflow.deployments import Deployment
    from asyncflow.engine import Engine

_log = logging.getLogger("asyncflow")


def serve(*deployments: Deployment, store: Any = None, **options: Any) -> None:
    """Run deployments until Ctrl-C or SIGTERM, in an engine of their own.

    What runs then is left Interrupted, and goes on when they are served again. For a service
    with an event loop of its own, use ``await engine.deploy(...)``.

    Args:
        deployments: what `flow.to_deployment` gives.
        store: path of the database, or a store; by default as of `Engine`.
        options: as of `Engine`.

    Raises:
        BlockingCall: an event loop is running in this thread.
    """
    from asyncflow.deployments import Deployment

    for one in deployments:
        if not isinstance(one, Deployment):
            raise InvalidOption(f"serve({one!r}): give what flow.to_deployment(name, ...) returns")
    if not deployments:
        raise InvalidOption("serve() needs a deployment: serve(flow.to_deployment(name, ...))")
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        pass
    else:
        raise BlockingCall(
            "serve(...) would block the event loop: use `await engine.deploy(...)` in an engine"
            " that stays open"
        )
    asyncio.run(_serve(deployments, store, options))


async def _serve(deployments: tuple[Deployment, ...], store: Any, options: dict[str, Any]) -> None:
    from asyncflow.engine import Engine

    async with Engine(store, **options) as engine:
        for one in deployments:
            await engine.deploy(one)
        await engine.recover()
        await until_told(engine)


async def until_told(engine: Engine) -> int | None:
    """Wait for Ctrl-C or SIGTERM: the signal. Its handlers are those from before, afterwards."""
    loop = asyncio.get_running_loop()
    told: asyncio.Future[int] = loop.create_future()

    def on_signal(number: int) -> None:
        if not told.done():
            told.set_result(number)

    before = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        try:
            loop.add_signal_handler(number, on_signal, number)
        except (NotImplementedError, RuntimeError, ValueError):
            continue  # not the main thread, or Windows: whoever started us ends us
        before[number] = signal.getsignal(number)
    try:
        return await told
    finally:
        for number in before:
            loop.remove_signal_handler(number)
