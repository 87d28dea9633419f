"""Retrieve a data set of 2,000 pages from a slow, flaky, rate limited service, and report on it.

    python examples/retrieve.py
    asyncflow run examples/retrieve.py:retrieve --param out=somewhere

It leaves flights.csv (each flight with its plane and airline), summary.csv, rejected.csv (the
malformed records, each with its reason) and delays.png in the folder `out`. Kill it half-way, by
`kill -9` if you like: `asyncflow recover` goes on from the last finished page, to the same files.

The service is `dataserver.py`, started along with the run; set FLIGHTS_URL to use one that is
already running. To look at pages of your own instead:

    asyncflow run examples/retrieve.py:retrieve --param urls=@urls.txt
"""

import asyncio
import os
import re
import time
from collections.abc import AsyncGenerator, Iterable
from pathlib import Path
from typing import Annotated, Any

import aiohttp
from dataserver import DAYS, serving
from flightreport import MODELS, Row, as_text, draw, join, summarise, write_csv
from pydantic import ValidationError

from asyncflow import (
    create_image_artifact,
    create_table_artifact,
    exponential_backoff,
    flow,
    get_run_logger,
    rate_limit,
    resource,
    set_progress,
    task,
    wait,
)

AIRPORTS = ("EWR", "JFK", "LGA")


@resource
async def service() -> AsyncGenerator[aiohttp.ClientSession, None]:
    """One session for the whole run. It, not the tasks, knows where the service is."""
    if url := os.environ.get("FLIGHTS_URL"):
        async with aiohttp.ClientSession(url) as session:
            yield session
    else:
        async with serving() as url, aiohttp.ClientSession(url) as session:
            yield session


@task(
    retries=8,
    retry_delay_seconds=exponential_backoff(base=0.1, max_delay=5),
    retry_jitter_factor=0.5,
    timeout_seconds=3,
    task_run_name="GET {path}",
)
async def fetch(path: str, session: Annotated[aiohttp.ClientSession, service]) -> str:
    """The body of a page; nothing where the service does not know what we ask for."""
    await rate_limit("flights", limit=200, period=1)
    async with session.get(path) as reply:
        if reply.status == 404:
            return ""
        reply.raise_for_status()  # a 429 says when to come back, and is asked again then
        return await reply.text()


@task
def check(path: str, body: str) -> dict[str, list[Row]]:
    """The records of a page, and apart from them those that are malformed, each with a reason."""
    model = MODELS[re.split(r"[/?]", path)[1]]
    good, bad = [], []
    for number, line in enumerate(body.splitlines(), start=1):
        try:
            good.append(model.model_validate_json(line).model_dump(mode="json"))
        except ValidationError as error:
            first = error.errors()[0]
            reason = ": ".join([*map(str, first["loc"]), first["msg"]])
            bad.append({"path": path, "line": number, "reason": reason, "record": line})
    return {"good": good, "bad": bad}


@task
def report(out: str, flights: list[Row], rejected: list[Row], weather: list[Row]) -> list[Row]:
    """Write the files, and show with the run what is in them; the summary is the result."""
    folder = Path(out)
    summary = summarise(flights)
    write_csv(folder / "flights.csv", flights)
    write_csv(folder / "rejected.csv", rejected, ["path", "line", "reason", "record"])
    write_csv(folder / "summary.csv", summary)
    draw(folder / "delays.png", flights, weather, summary)
    create_table_artifact(summary, key="airlines", description="Delays by airline, in minutes.")
    create_image_artifact(folder / "delays.png", key="delays", description="When flights are late.")
    return summary


@flow(max_concurrency=50)
async def retrieve(
    urls: list[str] | None = None, pages: int = 370, out: str = "out"
) -> dict[str, int]:
    if urls:
        return await visit_all(urls, out)
    logger = get_run_logger()
    rejected: list[Row] = []

    async def records(paths: Iterable[str]) -> list[Row]:
        """Fetch and check the pages, each checked as soon as it is here."""
        paths = list(paths)
        checked = await check.map(paths, fetch.map(paths))
        rejected.extend(record for page in checked for record in page["bad"])
        return [record for page in checked for record in page["good"]]

    def each(kind: str, *keys: str) -> list[str]:
        """The path of everything of a kind that the flights name."""
        names = {flight[key] for flight in flights for key in keys}
        return [f"/{kind}/{name}" for name in sorted(names - {None})]

    set_progress(0, 3, message="flights")
    flights = await records(f"/flights?page={page}" for page in range(1, pages + 1))
    logger.info("%d flights on %d pages", len(flights), pages)
    set_progress(1, 3, message="what the flights name")
    planes, airlines, airports, weather = await asyncio.gather(
        records(each("planes", "tailnum")),
        records(each("airlines", "carrier")),
        records(each("airports", "origin", "dest")),
        records(f"/weather/{airport}/{day}" for airport in AIRPORTS for day in DAYS),
    )
    rejected.sort(key=lambda record: (record["path"], record["line"]))
    rows = join(flights, planes, airlines, airports)
    set_progress(2, 3, message="report")
    summary = await report.submit(out, rows, rejected, weather)
    set_progress(3, 3)
    print(as_text(summary))
    print(f"{len(rows)} flights, {len(rejected)} malformed records put aside; see {out}/")
    return {"flights": len(rows), "planes": len(planes), "rejected": len(rejected)}


# --- pages of your own ------------------------------------------------------------------------


@resource
async def web() -> AsyncGenerator[aiohttp.ClientSession, None]:
    async with aiohttp.ClientSession(headers={"User-Agent": "asyncflow example"}) as session:
        yield session


@task(retries=3, retry_delay_seconds=exponential_backoff(base=0.5), timeout_seconds=20)
async def visit(url: str, session: Annotated[aiohttp.ClientSession, web]) -> dict[str, Any]:
    began = time.perf_counter()
    async with session.get(url) as reply:
        if reply.status == 429 or reply.status >= 500:
            reply.raise_for_status()
        body = await reply.read()
    title = re.search(rb"<title[^>]*>(.*?)</title>", body, re.IGNORECASE | re.DOTALL)
    return {
        "url": url,
        "status": reply.status,
        "bytes": len(body),
        "seconds": round(time.perf_counter() - began, 3),
        "title": " ".join(title[1].decode(errors="replace").split()) if title else "",
    }


@flow(max_concurrency=20)
async def visit_all(urls: list[str], out: str = "out") -> dict[str, int]:
    """Visit the pages; one that cannot be had is a line that says why, and stops no other."""
    visits = visit.map(urls)
    await wait(visits)
    table = []
    for url, future in zip(urls, visits, strict=True):
        state = future.state
        if state.is_completed():
            table.append(state.result())
        else:
            reason = str(state.result(raise_on_failure=False))
            nothing = {"bytes": None, "seconds": None}
            table.append({"url": url, "status": state.name, **nothing, "title": reason})
    write_csv(Path(out) / "urls.csv", table)
    print(as_text(table))
    return {"pages": len(table), "failed": sum(row["bytes"] is None for row in table)}


def main() -> None:
    asyncio.run(retrieve())


if __name__ == "__main__":
    main()
