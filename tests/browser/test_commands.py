"""Buttons of a server without code: what they ask for is followed, and its end is told."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from browser.tabs import CHROMIUM, NEEDS, chromium

from asyncflow import Engine, flow, task
from asyncflow.server.app import serve_app

pytest.importorskip("playwright.sync_api", reason=NEEDS)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")

FAIL: list[bool] = []


@task
async def double(n: int) -> int:
    return 2 * n


@flow(name="asked in a browser")
async def asked(n: int = 3) -> int:
    found = await double(n)
    if FAIL:
        raise RuntimeError("as it was")
    return found


class World:
    """A server without code on a database, and an engine that has it, where one is wanted."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="engines")
        self._thread.start()
        self._close: list[Callable[[], Coroutine[Any, Any, Any]]] = []
        self.url = self.do(self._serve())

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        future: Future[Any] = asyncio.run_coroutine_threadsafe(work, self._loop)
        return future.result(60)

    async def _serve(self) -> str:
        engine = Engine(self._path)
        await engine.open()
        self._close.append(engine.aclose)
        runner, url = await serve_app(engine, "127.0.0.1", 0, None, embedded=False)
        self._close.append(runner.cleanup)
        return url

    async def fails(self, count: int = 1) -> str:
        """Runs that have failed; the id of the last."""
        FAIL.append(True)
        async with Engine(self._path) as engine:
            for _ in range(count):
                run = await engine.submit(asked)
                await run.wait()
        FAIL.clear()
        return run.id

    async def takes(self) -> Engine:
        """An engine that has the code."""
        engine = Engine(self._path)
        await engine.open()
        self._close.append(engine.aclose)
        await engine.deploy(asked, "by form", overlap="allow")
        await engine.recover()
        return engine

    def close(self) -> None:
        for close in reversed(self._close):
            self.do(close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)
        self._loop.close()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path / "state.db")
    yield made
    made.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


@pytest.fixture
def tab(browser: Any, world: World) -> Iterator[Any]:
    wrong: list[str] = []
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(20_000)
    # That a request was refused stands in the console, too.
    page.on("console", lambda m: m.type == "error" and "409" not in m.text and wrong.append(m.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(world.url)
    page.wait_for_selector("text=Runs over time")
    yield page
    context.close()
    assert wrong == []


def go(tab: Any, place: str, shows: str) -> None:
    tab.goto(tab.url.partition("#")[0] + place)
    tab.wait_for_selector(shows)


def press(tab: Any, name: str, within: str = "main") -> None:
    tab.locator(within).get_by_role("button", name=name, exact=True).click()


def test_what_an_engine_does_is_waited_for_and_told(world: World, tab: Any) -> None:
    run = world.do(world.fails())
    world.do(world.takes())
    go(tab, f"#/runs/{run}", ".page-head .badge[data-state=FAILED]")
    press(tab, "Run again…")
    tab.locator("dialog").get_by_label("n").fill("5")
    press(tab, "Run again", "dialog")
    tab.wait_for_selector(".toast.waiting:has-text('waiting for an engine')")
    assert tab.locator("dialog").count() == 0, "nobody has to wait in a dialog"
    tab.wait_for_selector(".toast:has-text('It runs again.')")
    assert tab.locator(".toast.waiting").count() == 0
    assert run in tab.url, "who went on to something else is not taken from it"
    tab.get_by_role("link", name="Open the run").click()
    tab.wait_for_url(re.compile(f"#/runs/(?!{run})"))
    tab.wait_for_selector(".page-head .badge[data-state=COMPLETED]")

    go(tab, f"#/runs/{run}", ".page-head .badge[data-state=FAILED]")
    press(tab, "Resume")
    tab.wait_for_selector(".toast:has-text('It goes on.')")
    tab.wait_for_selector(".page-head .badge[data-state=COMPLETED]")

    go(tab, "#/deployments/by%20form", "h1:has-text('by form')")
    press(tab, "Run by form")
    tab.locator("dialog").get_by_label("n", exact=True).fill("7")
    press(tab, "Run", "dialog")
    tab.wait_for_selector(".toast:has-text('It has begun.')")
    tab.get_by_role("link", name="Open the run").last.click()
    tab.wait_for_selector(".page-head .badge[data-state=COMPLETED]")


def test_what_cannot_be_done_says_why(world: World, tab: Any) -> None:
    run = world.do(world.fails())
    go(tab, f"#/runs/{run}", ".page-head .badge[data-state=FAILED]")
    press(tab, "Resume")
    tab.wait_for_selector(".toast.bad:has-text('asyncflow serve FILE.py:FLOW')")
    world.do(world.takes())
    press(tab, "Run again…")
    # The form refuses this itself: here it is the engine that has to.
    body = '{"parameters": {"n": "many"}}'
    tab.route("**/rerun", lambda route: route.continue_(post_data=body))
    press(tab, "Run again", "dialog")
    tab.wait_for_selector(".toast.bad:has-text(\"parameter 'n'\")")
    assert tab.locator(".toast.waiting").count() == 0


def test_what_nobody_takes_ends_the_wait(
    world: World, tab: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asyncflow.commands.PATIENCE", 0.5)
    run = world.do(world.fails())
    taker = world.do(world.takes())
    monkeypatch.setattr(taker.commands, "look", lambda: None)  # it is busy, it seems
    go(tab, f"#/runs/{run}", ".page-head .badge[data-state=FAILED]")
    press(tab, "Resume")
    tab.wait_for_selector(".toast.waiting")
    tab.wait_for_selector(".toast.bad:has-text('none does any more')")
    assert tab.locator(".toast.waiting").count() == 0
    assert tab.locator("main").get_by_role("button", name="Resume", exact=True).is_enabled()


def test_of_many_it_is_told_how_many_went(world: World, tab: Any) -> None:
    world.do(world.fails(3))
    world.do(world.takes())
    go(tab, "#/runs", "tbody tr >> nth=2")
    tab.locator("thead input[type=checkbox]").check()
    press(tab, "Resume", ".choice")
    tab.locator("dialog").get_by_role("button", name="Resume 3 runs").click()
    tab.wait_for_selector(".toast.waiting:has-text('3 are asked for')")
    tab.wait_for_selector(".toast:has-text('Resume: 3 done.')")
    tab.wait_for_selector("tbody .badge[data-state=COMPLETED] >> nth=2")
