"""The pages before a real engine: what it gives is what they expect."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from browser.tabs import CHROMIUM, NEEDS, chromium

from asyncflow import (
    Automation,
    Engine,
    EventTrigger,
    MemoryStore,
    RunDeployment,
    create_link_artifact,
    create_markdown_artifact,
    create_table_artifact,
    flow,
    get_run_logger,
    pause_flow_run,
    set_progress,
    task,
)

pytest.importorskip("playwright.sync_api", reason=NEEDS)

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


@task
async def fetch(page: int) -> int:
    get_run_logger().info("page %d", page)
    if page == 13:
        raise ValueError("<img src=x onerror=alert(1)>")
    return page


@task
async def store(pages: list[int]) -> int:
    return len(pages)


@flow
async def load(pages: int = 5, note: str | None = None) -> int:
    create_markdown_artifact("# Loaded\n\n**all** of it", key="report")
    create_table_artifact([{"page": 1, "rows": 2}], key="rows")
    create_link_artifact("https://example.org/", key="link")
    set_progress(3, 10)
    return await store(fetch.map(range(pages)))


@flow
async def ask() -> None:
    await pause_flow_run()


async def fill(engine: Engine) -> dict[str, str]:
    """Something of everything; ids of runs by what they are."""
    runs = {"good": await engine.submit(load), "bad": await engine.submit(load, pages=20)}
    await runs["good"]
    await runs["bad"].wait()
    runs["asks"] = await engine.submit(ask)
    await engine.deploy(load, "load hourly", cron="0 * * * *", timezone="Europe/Berlin")
    trigger = EventTrigger("flow-run.Failed", {"flow": "other"})
    await engine.automate(Automation("mend", trigger, [RunDeployment("load hourly")]))
    await engine.set_limit("database", 5)
    await engine.emit("orders.loaded", {"rows": 3})
    return {name: run.id for name, run in runs.items()}


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[str, dict[str, str]]]:
    found: list[Any] = []
    began, end = threading.Event(), []

    async def main() -> None:
        over = asyncio.Event()
        loop = asyncio.get_running_loop()
        end.append(lambda: loop.call_soon_threadsafe(over.set))
        try:
            async with Engine(MemoryStore()) as engine:
                found.append(await fill(engine))
                found.append(await engine.serve_dashboard(port=0))
                began.set()
                await over.wait()
        finally:
            began.set()

    thread = threading.Thread(target=lambda: asyncio.run(main()), name="engine")
    thread.start()
    assert began.wait(60)
    try:
        runs, url = found
        yield url, runs
    finally:
        end[0]()
        thread.join()


@pytest.fixture
def page(served: Any) -> Iterator[Any]:
    wrong: list[str] = []
    with chromium() as browser:
        page = browser.new_page()
        page.on("console", lambda said: said.type == "error" and wrong.append(said.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("response", lambda answer: answer.ok or wrong.append(answer.url))
        page.goto(served[0])
        page.wait_for_selector("text=Runs over time")
        page.wait_for_selector("[data-live=live]")
        yield page
    assert wrong == []


def test_each_page_shows_what_the_engine_has(served: Any, page: Any) -> None:
    url, runs = served
    base = url.partition("#")[0]
    for place, shows in {
        "#/": ".item:has-text('waits for an answer')",
        "#/runs": "tbody tr >> nth=2",
        f"#/runs/{runs['good']}": ".node:has-text('5 / 5')",
        f"#/runs/{runs['bad']}": "button:has-text('1 failed')",
        f"#/runs/{runs['asks']}": ".banner:has-text('waits for an answer')",
        f"#/runs/{runs['good']}/logs": ".log-line:has-text('page 4')",
        f"#/runs/{runs['good']}/artifacts": ".progress",
        "#/deployments": "tbody tr:has-text('load hourly')",
        "#/deployments/load%20hourly": "text=0 * * * *",
        "#/automations": "tbody tr:has-text('mend')",
        "#/automations/mend": "text=flow-run.Failed >> nth=0",
        "#/events": "text=orders.loaded",
        "#/limits": "text=5 at once",
    }.items():
        page.goto(base + place)
        page.wait_for_selector(shows)
    assert page.locator(".toast").count() == 0


def test_runs_are_started_answered_and_forked(served: Any, page: Any) -> None:
    url, runs = served
    base = url.partition("#")[0]
    page.goto(f"{base}#/deployments/load%20hourly")
    page.get_by_role("button", name="Run load hourly").click()
    page.locator("dialog").get_by_label("pages").fill("7")
    page.get_by_role("button", name="Run", exact=True).click()
    page.wait_for_selector(".node:has-text('7 / 7')")
    page.get_by_role("button", name="Fork…").click()
    page.get_by_role("button", name="Fork", exact=True).click()
    page.wait_for_selector("text=Made from")
    page.goto(f"{base}#/runs/{runs['asks']}")
    # It asks for nothing but that somebody says so.
    page.get_by_role("button", name="Resume").click()
    page.wait_for_selector(".page-head .badge[data-state=COMPLETED]")
