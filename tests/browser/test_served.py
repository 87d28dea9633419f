"""The pages in a browser, before the real server of an engine that runs flows."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser.tabs import CHROMIUM, NEEDS, chromium

from asyncflow import Engine, create_markdown_artifact, flow, get_run_logger, sleep, task

pytest.importorskip("playwright.sync_api", reason=NEEDS)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")

HOSTILE = "<img src=x onerror=alert(1)>'\"</script>"


@task
async def fetch(page: int) -> int:
    get_run_logger().info("page %s %s", page, HOSTILE)
    return page


@flow(name="served in a browser")
async def served(pages: int = 3) -> int:
    create_markdown_artifact(f"**bold** {HOSTILE}", key="note")
    return sum(await fetch.map(range(pages)))


@flow(name="waits in a browser")
async def waits() -> None:
    await sleep(3600)


class Service:
    """An engine in a thread of its own, as in somebody's service."""

    def __init__(self, path: Path) -> None:
        self.url = ""
        self.runs: dict[str, str] = {}
        self._path = path
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._end = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._live(),))

    async def _live(self) -> None:
        async with Engine(self._path) as engine:
            done = await engine.submit(served, 4, run_name=HOSTILE, tags=[HOSTILE])
            await done
            waiting = await engine.submit(waits)
            self.runs = {"done": done.id, "waiting": waiting.id}
            await engine.deploy(served, "by form", overlap="allow")
            self.url = await engine.serve_dashboard(0)
            self._ready.set()
            await self._end.wait()

    def __enter__(self) -> Service:
        self._thread.start()
        assert self._ready.wait(30)
        return self

    def __exit__(self, *_: Any) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(30)
        self._loop.close()


@pytest.fixture
def page(tmp_path: Path) -> Iterator[tuple[Any, Service, list[str]]]:
    wrong: list[str] = []
    with Service(tmp_path / "state.db") as service, chromium() as browser:
        tab = browser.new_page()
        tab.set_default_timeout(30_000)
        tab.on("console", lambda m: m.type in ("error", "warning") and wrong.append(m.text))
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        tab.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
        tab.goto(service.url)
        tab.wait_for_selector("text=Runs over time")
        yield tab, service, wrong
    assert wrong == []


def test_what_the_engine_does_is_seen_and_done(page: tuple[Any, Service, list[str]]) -> None:
    tab, service, _ = page
    base = service.url.partition("#")[0]
    tab.goto(f"{base}#/runs")
    tab.wait_for_selector(f"text={HOSTILE}")
    tab.goto(f"{base}#/runs/{service.runs['done']}")
    tab.wait_for_selector(f"h1:has-text('{HOSTILE[:12]}')")
    tab.goto(f"{base}#/runs/{service.runs['done']}/logs")
    tab.wait_for_selector("text=page 3")
    tab.goto(f"{base}#/runs/{service.runs['done']}/artifacts")
    tab.wait_for_selector("text=note")

    tab.goto(f"{base}#/deployments/by%20form")
    tab.get_by_role("button", name="Run by form").click()
    dialog = tab.locator("dialog")
    dialog.get_by_label("pages").fill("5")
    dialog.get_by_role("button", name="Run", exact=True).click()
    tab.wait_for_selector("text=It has begun.")

    tab.goto(f"{base}#/runs/{service.runs['waiting']}")
    tab.wait_for_selector("text=Why is this not moving?")
    tab.locator("button:has-text('Cancel')").first.click()
    asked = tab.locator("dialog button:has-text('Cancel')")
    if asked.count():
        asked.last.click()
    tab.wait_for_selector("text=Cancelled")
