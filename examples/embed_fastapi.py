"""An engine inside a FastAPI service, opened and closed by its lifespan.

    python examples/embed_fastapi.py

POST /crawl starts a run and gives its id at once; GET /runs/{id} tells of it. The flow alone:
asyncflow run examples/embed_fastapi.py:crawl
"""

import asyncio
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any

import httpx
import uvicorn
from dataserver import serving
from fastapi import FastAPI, HTTPException, Request

from asyncflow import Engine, UnknownRun, exponential_backoff, flow, resource, task


@resource
async def http() -> AsyncGenerator[httpx.AsyncClient, None]:
    async with httpx.AsyncClient() as client:
        yield client


@task(retries=8, retry_delay_seconds=exponential_backoff(base=0.1), timeout_seconds=3)
async def size(url: str, client: Annotated[httpx.AsyncClient, http]) -> int:
    return len((await client.get(url)).raise_for_status().content)


@flow(max_concurrency=20)
async def crawl(urls: Sequence[str] = ()) -> int:
    """How many bytes the pages have together."""
    return sum(await size.map(urls)) if urls else 0


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with Engine("embed_fastapi.db") as engine:
        await engine.recover()  # takes up what a crash left unfinished
        app.state.engine = engine
        # The dashboard beside it, on a port and with a token of its own.
        print("dashboard:", await engine.serve_dashboard(port=0))
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/crawl", status_code=202)
async def start(urls: list[str], request: Request) -> dict[str, str]:
    run = await request.app.state.engine.submit(crawl, urls)
    return {"id": run.id}


@app.get("/runs/{run_id}")
async def show(run_id: str, request: Request) -> dict[str, Any]:
    try:
        run = await request.app.state.engine.get_run(run_id)
    except UnknownRun as error:
        raise HTTPException(404, str(error)) from error
    result = run.state.result() if run.state.is_completed() else None
    return {"id": run.id, "state": run.state.name, "result": result}


async def demonstrate() -> None:
    """Start the service on a free port, and talk to it as a client would."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        service = asyncio.create_task(server.serve(sockets=[listener]))
        async with (
            serving() as data,
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client,
        ):
            urls = [f"{data}/flights?page={page}" for page in range(1, 51)]
            reply = await client.post("/crawl", json=urls)
            print(reply.status_code, run := reply.json())
            for _ in range(100):
                reply = await client.get(f"/runs/{run['id']}")
                print(reply.status_code, run := reply.json())
                if run["state"] in ("Completed", "Failed"):
                    break
                await asyncio.sleep(0.3)
            unknown = await client.get("/runs/nobody")
            print(unknown.status_code, unknown.json())
        server.should_exit = True
        await service


def main() -> None:
    asyncio.run(demonstrate())


if __name__ == "__main__":
    main()
