"""Pictures of the pages, for the documents.

    python tests/browser/screenshots.py docs/images

It runs some flows in an engine, serves them, and opens each page in Chromium.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
import tempfile
from pathlib import Path

from playwright.async_api import async_playwright

from asyncflow import (
    Automation,
    Engine,
    EventTrigger,
    Interval,
    SetLimit,
    create_markdown_artifact,
    create_table_artifact,
    flow,
    get_run_logger,
    sleep,
    task,
)


@task(retries=2, retry_delay_seconds=0.05)
async def fetch(page: int) -> int:
    """A page of a service that is down for some of them."""
    await asyncio.sleep(0.02 * (page % 7))
    get_run_logger().info("fetched page %s", page)
    if page % 29 == 28:
        raise ConnectionError(f"page {page} answers 503")
    return page


@task(failure_policy="skip")
async def parse(page: int) -> int:
    await asyncio.sleep(0.01)
    return page


@task
async def store(pages: list[int]) -> int:
    await asyncio.sleep(0.1)
    create_table_artifact([{"page": n, "rows": n * 3} for n in pages[:20]], key="pages")
    return len(pages)


@flow(max_concurrency=20)
async def crawl(pages: int = 25, site: str = "example.org") -> int:
    rows = await parse.map(fetch.map(range(pages)))
    create_markdown_artifact(f"# {site}\n\n**{pages} pages** were read.", key="summary")
    return await store(rows)


@flow
async def waits_for_tomorrow() -> None:
    await sleep(86_400)


async def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    with tempfile.TemporaryDirectory() as work:
        async with Engine(Path(work) / "state.db") as engine:
            await engine.set_limit("api", 20)
            await engine.set_variable("region", "eu-west")
            await engine.deploy(crawl, "nightly crawl", cron="0 3 * * *", timezone="Europe/Berlin")
            await engine.deploy(crawl, "often", schedule=Interval(2), overlap="allow")
            failed = EventTrigger("flow-run.Failed", threshold=3, within=600)
            await engine.automate(Automation("calm down", failed, SetLimit("api", 5)))
            await engine.submit(waits_for_tomorrow)
            for n in range(8):
                await (await engine.submit(crawl, 18 + n, tags=["nightly"])).wait()
            bad = await engine.submit(crawl, 400, run_name="a large crawl")
            await bad.wait()
            await asyncio.sleep(2)
            url = await engine.serve_dashboard(0)
            base = url.partition("#")[0]
            good = (await engine.runs(state="COMPLETED", limit=1))[0].id
            pages = {
                "home": "#/",
                "runs": "#/runs",
                "run": f"#/runs/{bad.id}",
                "artifacts": f"#/runs/{good}/artifacts",
                "logs": f"#/runs/{good}/logs",
                "deployments": "#/deployments",
                "deployment": "#/deployments/often",
                "automations": "#/automations",
                "events": "#/events",
                "limits": "#/limits",
                "variables": "#/variables",
            }
            async with async_playwright() as started:
                browser = await started.chromium.launch(
                    executable_path=chromium, args=["--no-sandbox", "--disable-gpu"]
                )
                for scheme, some in (("light", list(pages)), ("dark", ["home", "run"])):
                    context = await browser.new_context(
                        viewport={"width": 1180, "height": 760}, color_scheme=scheme
                    )
                    page = await context.new_page()
                    await page.goto(url)
                    await page.wait_for_selector("h1")
                    for name in some:
                        await page.goto(base + pages[name])
                        await page.wait_for_timeout(1200)
                        suffix = "" if scheme == "light" else "-dark"
                        await page.screenshot(path=folder / f"{name}{suffix}.png")
                await browser.close()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/images")))
