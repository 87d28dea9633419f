"""An engine inside an aiohttp service: POST /crawl starts a run, GET /runs/{id} tells of it.

    python examples/embed_aiohttp.py

The service owns the engine: it opens with the application, first takes up what a crash left
unfinished, and closes with it. The flow alone: asyncflow run examples/embed_aiohttp.py:crawl
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Annotated

import aiohttp
from aiohttp import web
from dataserver import serving

from asyncflow import Engine, exponential_backoff, flow, resource, task
from asyncflow.server.app import ACCESS

ENGINE = web.AppKey("engine", Engine)


@resource
async def http() -> AsyncGenerator[aiohttp.ClientSession, None]:
    async with aiohttp.ClientSession(raise_for_status=True) as session:
        yield session


@task(retries=8, retry_delay_seconds=exponential_backoff(base=0.1), timeout_seconds=3)
async def size(url: str, session: Annotated[aiohttp.ClientSession, http]) -> int:
    async with session.get(url) as reply:
        return len(await reply.read())


@flow(max_concurrency=20)
async def crawl(urls: Sequence[str] = ()) -> int:
    """How many bytes the pages have together."""
    return sum(await size.map(urls)) if urls else 0


async def open_engine(app: web.Application) -> AsyncIterator[None]:
    async with app[ENGINE] as engine:
        await engine.recover()
        yield


async def start(request: web.Request) -> web.Response:
    run = await request.app[ENGINE].submit(crawl, await request.json())
    return web.json_response({"id": run.id}, status=202)  # from here on no crash can lose it


async def show(request: web.Request) -> web.Response:
    run = await request.app[ENGINE].get_run(request.match_info["id"])
    done = run.state.is_completed()
    return web.json_response(
        {"id": run.id, "state": run.state.name, "result": run.state.result() if done else None}
    )


def make_app() -> web.Application:
    app = web.Application()
    app[ENGINE] = engine = Engine("embed_aiohttp.db")
    app.cleanup_ctx.append(open_engine)
    # The dashboard, at /flows/ of this same application; its token is in dashboard[ACCESS].
    dashboard = engine.app()
    app.add_subapp("/flows/", dashboard)
    print("dashboard: /flows/#token=" + dashboard[ACCESS].token)
    app.router.add_post("/crawl", start)
    app.router.add_get("/runs/{id}", show)
    return app


async def demonstrate() -> None:
    """Start the service on a free port, and talk to it as a client would."""
    runner = web.AppRunner(make_app())
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0]
    async with serving() as data, aiohttp.ClientSession(f"http://{host}:{port}") as client:
        urls = [f"{data}/flights?page={page}" for page in range(1, 51)]
        async with client.post("/crawl", json=urls) as reply:
            run = await reply.json()
            print(reply.status, run)
        for _ in range(100):
            async with client.get(f"/runs/{run['id']}") as reply:
                run = await reply.json()
            print(reply.status, run)
            if run["state"] in ("Completed", "Failed"):
                break
            await asyncio.sleep(0.3)
    await runner.cleanup()


def main() -> None:
    asyncio.run(demonstrate())


if __name__ == "__main__":
    main()
