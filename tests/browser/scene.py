"""Something of everything that the pages show: what pictures are taken of, and tests look at."""

from __future__ import annotations

import asyncio
import struct
import zlib

from patience import until
from pydantic import BaseModel, Field

from asyncflow import (
    Automation,
    DeploymentSchedule,
    Engine,
    EventTrigger,
    Interval,
    SetLimit,
    concurrency,
    create_image_artifact,
    create_link_artifact,
    create_markdown_artifact,
    create_table_artifact,
    emit_event,
    flow,
    get_run_logger,
    pause_flow_run,
    set_progress,
    sleep,
    task,
    wait_for_event,
)

HOSTILE = "<img src=x onerror=alert(1)>'\"</script>\u202etxt.exe"


@task(retries=2, retry_delay_seconds=0.05, retry_jitter_factor=0)
async def fetch(page: int) -> int:
    """A page of a service that is down for some of them."""
    await asyncio.sleep(0.02 * (page % 7))
    get_run_logger().info("fetched page %s", page)
    if page % 29 == 28:
        get_run_logger().warning("page %s: the service is down", page)
        raise ConnectionError(f"page {page} answers 503")
    return page


@task(failure_policy="skip")
async def parse(page: int) -> int:
    await asyncio.sleep(0.01)
    return page


@task
async def store(pages: list[int]) -> int:
    await asyncio.sleep(0.1)
    create_table_artifact(
        [{"page": n, "rows": n * 3, "title": f"Page {n}", "ok": n % 5 > 0} for n in pages[:20]],
        key="pages",
        description="What was stored, by page.",
    )
    return len(pages)


@flow(max_concurrency=20)
async def crawl(pages: int = 25, site: str = "example.org") -> int:
    """Read all pages of a site, and store what is on them."""
    rows = await parse.map(fetch.map(range(pages)))
    create_markdown_artifact(
        f"## {site}\n\n**{pages} pages** were read, see [the site](https://{site}).\n\n"
        "| part | pages |\n|---|---:|\n| news | 12 |\n| shop | 13 |\n\n- none was `404`\n",
        key="summary",
        description="What this crawl found.",
    )
    create_link_artifact(f"https://{site}/report", "The whole report", key="report")
    create_image_artifact(picture(), key="pages-per-hour", description="Pages by hour.")
    set_progress(pages, pages, message="all pages")
    return await store(rows)


@task(limits={"warehouse": 1})
async def load(table: str) -> str:
    await asyncio.sleep(3600)
    return table


@flow
async def load_tables(tables: int = 6) -> None:
    """Waits for a limit, which others hold."""
    set_progress(1, tables, message="orders")
    await load.map([f"table {n}" for n in range(tables)])


@flow
async def rebuild_index() -> None:
    """Its own code waits for a limit."""
    async with concurrency("warehouse"):
        await asyncio.sleep(3600)


@flow
async def vacuum() -> None:
    """Its own code holds a limit that nobody else waits for."""
    async with concurrency("vacuum", limit=1):
        await asyncio.sleep(3600)


class Approval(BaseModel):
    """What whoever approves a release says."""

    approved: bool = Field(description="Whether it may go out.")
    limit: int = Field(100, ge=1, le=1000, description="How many customers get it at first.")
    note: str = ""


@flow
async def release(version: str = "2.1") -> str:
    """Asks a person before it goes on."""
    answer = await pause_flow_run(wait_for_input=Approval)
    return f"{version}: {'out' if answer.approved else 'not out'} for {answer.limit}"


@flow
async def waits_for_tomorrow() -> None:
    await sleep(86_400)


@flow
async def waits_for_data() -> None:
    await wait_for_event("data-arrived", timeout=7200)


@task(failure_policy="pause")
async def charge(order: int) -> int:
    if order == 2:
        raise ValueError("the card was refused")
    return order


@flow
async def bill(orders: int = 3) -> int:
    """Needs a person where something fails."""
    return sum(await charge.map(range(orders)))


@task(retries=3, retry_delay_seconds=3000, retry_jitter_factor=0)
async def mirror(host: str) -> None:
    raise ConnectionError(f"{host} does not answer")


@flow
async def mirrors() -> None:
    """Waits for other attempts."""
    await mirror.map(["a.example.org", "b.example.org"])


@flow
async def region(name: str) -> int:
    return await crawl(6, f"{name}.example.org")


@flow
async def all_regions() -> int:
    """Runs flows in a flow."""
    await emit_event("regions.begun", {"regions": 3})
    return sum([await region(name) for name in ("north", "south", "west")])


@flow
async def hostile(text: str = HOSTILE) -> str:
    """Everything that it shows means harm."""
    create_markdown_artifact(
        f"# {text}\n\n<script>alert(1)</script>[x](javascript:alert(1))"
        "![x](https://evil.example/x.png)\n\n**fine**",
        key="bad-text",
        description=text,
    )
    create_table_artifact([{text: text, "n": 1}], key="bad-table", description=text)
    create_link_artifact("https://example.org/?q=%3Cscript%3E", text, key="bad-link")
    set_progress(3, 7, key="bad-progress", message=text)
    get_run_logger().error(text)
    return text


def picture() -> bytes:
    """A PNG of some bars."""
    wide, high = 240, 80
    rows = b""
    for y in range(high):
        row = b"\0"
        for x in range(wide):
            bar = 20 + (x // 20 * 37) % 55
            row += b"\x3b\x5b\xdb" if high - y < bar and x % 20 < 15 else b"\xee\xf1\xf8"
        rows += row

    def chunk(kind: bytes, data: bytes) -> bytes:
        whole = kind + data
        return struct.pack(">I", len(data)) + whole + struct.pack(">I", zlib.crc32(whole))

    head = struct.pack(">IIBBBBB", wide, high, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(kind, data)
        for kind, data in ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    )


async def fill(engine: Engine, runs: int = 8, large: int = 400, often: float = 2) -> dict[str, str]:
    """Run and begin what there is to see; ids of runs by what they are."""
    await engine.set_limit("api", 20, 60)
    await engine.set_limit("warehouse", 2)
    await engine.set_variable("region", "eu-west")
    await engine.set_variable("last-day", {"crawl": "2026-01-02", "bill": None})
    await engine.set_variable("bad", HOSTILE)
    await engine.deploy(
        crawl,
        "nightly crawl",
        schedules=[
            DeploymentSchedule(Interval(86_400), name="each-night"),
            DeploymentSchedule(Interval(604_800), name="each-week", parameters={"pages": 50}),
        ],
        description="Reads the site, each night.",
        tags=["nightly"],
    )
    await engine.deploy(crawl, "often", schedule=Interval(often), overlap="allow")
    await engine.deploy(release, "release")
    failed = EventTrigger("flow-run.Failed", threshold=3, within=600)
    await engine.automate(Automation("calm down", failed, SetLimit("api", 5)))
    over = EventTrigger("flow-run.Completed", {"flow": "all_regions"})
    await engine.automate(Automation("speed up", over, SetLimit("api", 30, 60)))
    found: dict[str, str] = {}
    for name, body, *arguments in (
        ("keeps", vacuum),
        ("index", rebuild_index),
        ("tables", load_tables),
        ("more tables", load_tables, 3),
        ("release", release),
        ("tomorrow", waits_for_tomorrow),
        ("data", waits_for_data),
        ("bill", bill),
        ("mirrors", mirrors),
    ):
        found[name] = (await engine.submit(body, *arguments)).id
        if name == "keeps":
            await until(lambda: engine.holders)
    for n in range(runs):
        run = await engine.submit(crawl, 18 + n, tags=["nightly"])
        await run.wait()
        found["good" if n < 10 else "other"] = run.id
    for name, body, *arguments in (
        ("regions", all_regions),
        ("hostile", hostile),
        ("large", crawl, large),
    ):
        run = await engine.submit(
            body, *arguments, run_name="a large crawl" if large in arguments else None
        )
        await run.wait()
        found[name] = run.id
    return found
