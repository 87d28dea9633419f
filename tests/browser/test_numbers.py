"""How much the page of a run of 10,000 tasks asks for, and how often a tab hears something.

How long it takes is measured by ``python -m benchmarks.pages``, and not here.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser.tabs import CHROMIUM, NEEDS

from asyncflow import Engine, emit_event, flow, task
from asyncflow.server.live import EVERY
from benchmarks.pages import MUST, Browser

playwright = pytest.importorskip("playwright.sync_api", reason=NEEDS)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


@task
async def first(n: int) -> int:
    return n


@task
async def second(n: int) -> int:
    return n


@flow(name="ten thousand tasks")
async def large() -> int:
    return len(await second.map(first.map(range(5_000))))


@flow(name="always says something")
async def busy() -> None:
    while True:
        await emit_event("numbers.still-here")
        await asyncio.sleep(0.01)


class Served:
    """An engine in a thread of its own, with its dashboard."""

    def __init__(self, path: Path) -> None:
        self.url = self.run = ""
        self._path = path
        self._began = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._live()), name="numbers")

    async def _live(self) -> None:
        self._over, self._loop = asyncio.Event(), asyncio.get_running_loop()
        try:
            async with Engine(self._path) as self._engine:
                run = await self._engine.submit(large)
                await run
                self.run = run.id
                self.url = await self._engine.serve_dashboard(0)
                self._began.set()
                await self._over.wait()
        finally:
            self._began.set()

    def talk(self) -> None:
        """From now on something happens all the time."""
        begun = asyncio.run_coroutine_threadsafe(self._engine.submit(busy), self._loop)
        begun.result(20)

    def __enter__(self) -> Served:
        self._thread.start()
        assert self._began.wait(60)
        return self

    def __exit__(self, *_: Any) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()


@pytest.fixture(scope="module")
def served(tmp_path_factory: Any) -> Iterator[Served]:
    with Served(tmp_path_factory.mktemp("numbers") / "state.db") as made:
        yield made


@pytest.fixture(scope="module")
def browser(served: Served) -> Iterator[Browser]:
    with playwright.sync_playwright() as started:
        opened = Browser(started, served.url)
        opened.fresh()
        yield opened
        opened.browser.close()


def test_the_page_of_a_large_run_asks_for_little(browser: Browser, served: Served) -> None:
    asked = {}
    for visit in ("first", "later"):
        found = browser.open(f"#/runs/{served.run}", "tr[data-task=second]")
        asked[visit] = found["asked"]
        assert found["requests"] <= MUST[f"page, {visit} visit: all requests"], found["asked"]
        assert found["bytes"] <= MUST["page: KiB"] * 1024
        assert found["nodes"] <= MUST["page: DOM nodes"]
    data = ["api/stream", f"api/runs/{served.run}", f"api/runs/{served.run}/timeline"]
    first, later = asked["first"], asked["later"]
    assert sorted(re.sub("[0-9a-f]{16}/", "", one) for one in first) == sorted(
        ["", "static/all.js", *data]
    )
    assert sorted(later) == sorted(["", *data])
    browser.page.locator("tr[data-task=second] button.expand").click()
    browser.page.wait_for_selector("tr.opened tbody tr >> nth=24")
    assert browser.page.evaluate("document.querySelectorAll('*').length") <= 2000


def test_a_tab_hears_nothing_while_nothing_happens_and_else_once_a_second(
    browser: Browser, served: Served
) -> None:
    browser.open("#/events", "h1")
    quiet = browser.count(EVERY * 2)
    assert (quiet["messages"], quiet["data"]) == (0, 0)
    served.talk()
    browser.page.wait_for_selector("text=numbers.still-here")
    began = browser.page.evaluate("performance.now()")
    heard = browser.seen["messages"]
    browser.count(EVERY * 3)
    took = (browser.page.evaluate("performance.now()") - began) / 1000
    assert 0 < browser.seen["messages"] - heard <= took / EVERY + 1
