"""What the pages say of a real engine's runs that wait, fail and ask, and each button on them."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from browser.tabs import CHROMIUM, NEEDS, Tab, chromium, opener
from patience import until

from asyncflow import Engine, Interval
from asyncflow.server.app import serve_app

pytest.importorskip("playwright.sync_api", reason=NEEDS)
scene = pytest.importorskip("browser.scene", reason=NEEDS)

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


@dataclass
class Served:
    """The scene, served by the engine that runs it, and by a server that sees only its store."""

    path: Path
    url: str = ""
    other_url: str = ""
    ids: dict[str, str] = field(default_factory=dict)
    engine: Any = None

    async def live(self, began: threading.Event) -> None:
        self.over = asyncio.Event()
        self.loop = asyncio.get_running_loop()
        async with Engine(self.path) as engine, Engine(self.path) as looks:
            self.engine = engine
            self.ids = await scene.fill(engine, runs=2, large=60, often=600)
            self.url = await engine.serve_dashboard(0)
            runner, self.other_url = await serve_app(looks, "127.0.0.1", 0, None, embedded=False)
            await until(lambda: looks.reader.notices("limit"))
            began.set()
            await self.over.wait()
            await runner.cleanup()

    def call(self, work: Any) -> Any:
        """What a coroutine on the engine's loop gives."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(20)


@pytest.fixture(scope="module")
def served(tmp_path_factory: Any) -> Iterator[Served]:
    made = Served(tmp_path_factory.mktemp("scene") / "state.db")
    began = threading.Event()
    failed: list[BaseException] = []

    def run() -> None:
        try:
            asyncio.run(made.live(began))
        except BaseException as error:
            failed.append(error)
        finally:
            began.set()

    thread = threading.Thread(target=run, name="scene")
    thread.start()
    assert began.wait(60)
    assert failed == []
    yield made
    made.loop.call_soon_threadsafe(made.over.set)
    thread.join()
    assert failed == []


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


class SceneTab(Tab):
    """A page of one of the servers."""

    def __init__(self, served: Served, url: str, page: Any) -> None:
        super().__init__(page)
        self.served = served
        self.base = url.partition("#")[0]
        page.goto(url)
        page.wait_for_selector("h1")

    def go(self, place: str, shows: str = "h1", state: str = "visible") -> None:
        for name, run_id in self.served.ids.items():
            place = place.replace(f"@{name}@", run_id)
        self.page.goto(self.base + place)
        self.page.wait_for_selector(shows, state=state)


@pytest.fixture
def open_tab(served: Served, browser: Any) -> Iterator[Callable[..., SceneTab]]:
    with opener(browser) as open_:

        def opened(width: int = 1180, other: bool = False, **options: Any) -> Any:
            url = served.other_url if other else served.url
            size = {"width": width, "height": 800}
            return open_(partial(SceneTab, served, url), viewport=size, **options)

        yield opened


@pytest.fixture
def tab(open_tab: Callable[..., SceneTab]) -> SceneTab:
    return open_tab()


# --- what is said ---------------------------------------------------------------------------------

SAYS = {
    "#/": ".card:has-text('Needs attention') .item:has-text('bill')",
    "#/runs": "tbody tr >> nth=8",
    "#/attention": ".item:has-text('release') button:has-text('Answer')",
    "#/runs/@tables@": ".banner:has-text(\"wait for the limit 'warehouse' (2 of 2 in use)\")",
    "#/runs/@index@": ".banner:has-text(\"the flow waits for the limit 'warehouse'\")",
    "#/runs/@release@": ".banner:has-text('the flow waits for an answer')",
    "#/runs/@tomorrow@": ".banner:has-text('the flow sleeps, until 2')",
    "#/runs/@data@": ".banner:has-text(\"waits for the event 'data-arrived', until 2\")",
    "#/runs/@bill@": ".banner:has-text('charge-3 waits for a person')",
    "#/runs/@mirrors@": ".banner:has-text('2 calls of mirror wait for another attempt, until 2')",
    "#/runs/@large@": ".node:has-text('fetch')",
    "#/runs/@regions@": ".card:has-text('Child runs') tbody tr >> nth=2",
    "#/runs/@good@/artifacts": ".card:has-text('pages-per-hour') img",
    "#/runs/@hostile@/artifacts": ".card:has-text('bad-table') td >> nth=1",
    "#/runs/@large@/logs": ".log-line .log-of >> nth=5",
    "#/deployments": "tbody tr:has-text('nightly crawl')",
    "#/deployments/nightly%20crawl": "tbody tr:has-text('each-week')",
    "#/automations": "tbody tr:has-text('calm down')",
    "#/events": "tbody tr >> nth=20",
    "#/limits": "tbody tr:has-text('warehouse') td.wide li:has-text('load-1') >> nth=0",
    "#/variables": "tbody tr:has-text('eu-west')",
}


@pytest.mark.parametrize("other", [False, True], ids=["the engine itself", "only the store"])
def test_each_page_says_the_same_wherever_it_is_served(
    open_tab: Callable[..., SceneTab], other: bool
) -> None:
    tab = open_tab(other=other)
    for place, shows in SAYS.items():
        tab.go(place, shows, "attached")  # what is folded away may be on the page all the same
        assert tab.page.evaluate("document.querySelectorAll('*').length") <= 2000
        for tag in ("img[src=x]", "main script", "b[onmouseover]"):
            assert tab.page.locator(tag).count() == 0


def test_each_page_fits_on_a_phone(open_tab: Callable[..., SceneTab]) -> None:
    tab = open_tab(width=375)
    for place, shows in SAYS.items():
        tab.go(place, shows, "attached")  # what is folded away may be on the page all the same
        assert tab.page.evaluate("document.documentElement.scrollWidth") <= 375, place


def test_each_page_can_be_used_by_all(open_tab: Callable[..., SceneTab]) -> None:
    module = pytest.importorskip("axe_playwright_python.sync_playwright", reason=NEEDS)
    tab, axe = open_tab(color_scheme="dark"), module.Axe()
    for place, shows in SAYS.items():
        tab.go(place, shows)
        found = axe.run(tab.page).response["violations"]
        bad = [one["id"] for one in found if one["impact"] in ("serious", "critical")]
        assert bad == [], place


def test_who_holds_what_is_waited_for_is_one_click_away(tab: SceneTab) -> None:
    tab.go("#/runs/@index@", ".banner a:has-text('load-1')")
    assert tab.page.locator(".banner a:has-text('load_tables')").count() == 2
    tab.page.locator(".banner a:has-text('load-1')").first.click()
    tab.page.wait_for_selector("dialog h2:has-text('load-1')")
    assert tab.query()["open"] == ["1"]
    assert "table 0" in tab.page.locator("dialog pre").first.inner_text()
    tab.page.reload()
    tab.page.wait_for_selector("dialog h2:has-text('load-1')")
    tab.page.keyboard.press("Escape")
    tab.page.wait_for_selector("dialog", state="detached")
    assert "open" not in tab.query()


def test_a_dialog_goes_with_its_page(tab: SceneTab) -> None:
    tab.go("#/runs/@release@", ".banner")
    tab.press("Answer…")
    tab.page.wait_for_selector("dialog")
    tab.go("#/limits", "tr:has-text('warehouse')")
    assert tab.page.locator("dialog").count() == 0


def test_calls_that_have_not_begun_are_counted_and_can_be_looked_at(tab: SceneTab) -> None:
    tab.go("#/runs/@tables@?task=load", "text=5 more have not begun yet.")
    tab.page.wait_for_selector("tr:has-text('0 / 6')")
    tab.page.wait_for_selector(".card:has-text('Progress') [role=progressbar]")


def test_artifacts_are_drawn(tab: SceneTab) -> None:
    tab.go("#/runs/@good@/artifacts", "img")
    assert tab.page.evaluate("document.querySelector('main img').naturalWidth") == 240
    tab.page.wait_for_selector(".prose strong:has-text('pages')")
    tab.page.wait_for_selector("td:has-text('Page 3')")
    assert tab.page.locator("a:has-text('The whole report')").get_attribute("rel") == (
        "noopener noreferrer nofollow"
    )
    tab.go("#/runs/@hostile@/artifacts", ".prose strong:has-text('fine')")
    assert tab.page.locator("main img").count() == 0
    assert tab.page.locator("main a[href^='javascript']").count() == 0


@pytest.fixture
def left(tmp_path: Path, browser: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The page of a server whose store an engine has left, in the middle of a run."""
    monkeypatch.setattr("asyncflow.planned._LATE", 0.0)
    path = tmp_path / "left.db"
    found: list[Any] = []
    began = threading.Event()

    async def main() -> None:
        over = asyncio.Event()
        loop = asyncio.get_running_loop()
        found.append(lambda: loop.call_soon_threadsafe(over.set))
        async with Engine(path) as engine:
            await engine.deploy(scene.release, "often", schedule=Interval(1), late_seconds=0)
            await engine.submit(scene.rebuild_index, run_name="left behind")
        async with Engine(path) as looks:
            runner, url = await serve_app(looks, "127.0.0.1", 0, None, embedded=False)
            found.append(url)
            began.set()
            await over.wait()
            await runner.cleanup()

    thread = threading.Thread(target=lambda: asyncio.run(main()), name="left")
    thread.start()
    assert began.wait(30)
    page = browser.new_page()
    page.goto(found[1])
    page.wait_for_selector("h1")
    yield page
    page.close()
    found[0]()
    thread.join()


def test_what_no_engine_has_is_seen_and_so_are_schedules_that_are_late(left: Any) -> None:
    late = left.locator(".card:has-text('Late schedules') .item:has-text('often')")
    while not late.count():  # the page itself looks twice a minute
        left.reload()
        left.wait_for_selector(".tile")
    left.get_by_role("link", name="Attention").click()
    left.wait_for_selector(".card:has-text('Late schedules') .item:has-text('often')")
    left.wait_for_selector(".card:has-text('No engine has them') .item:has-text('left behind')")
    left.get_by_role("link", name="left behind").click()
    left.wait_for_selector(".banner:has-text('no engine has it')")
    assert left.get_by_role("button", name="Resume").is_visible()


# --- what is done ---------------------------------------------------------------------------------


def test_a_release_is_answered_by_a_form_with_errors_at_its_fields(
    tab: SceneTab, served: Served
) -> None:
    run = served.call(served.engine.submit(scene.release, "3.0"))
    tab.go(f"#/runs/{run.id}", ".banner")
    tab.press("Answer…")
    dialog = tab.page.locator("dialog")
    dialog.get_by_label("limit").fill("5000")
    tab.press("Send")
    tab.page.wait_for_selector(".field-error:has-text('at most 1000')")
    assert tab.errors() == ["It must be at most 1000."]
    dialog.get_by_label("limit").fill("40")
    dialog.get_by_label("approved").check()
    tab.press("Send")
    tab.page.wait_for_selector("text=3.0: out for 40")


def test_what_failed_is_tried_again_from_the_page_of_what_needs_attention(
    tab: SceneTab, served: Served
) -> None:
    tab.go("#/attention", ".item:has-text('bill')")
    tab.press("Resume bill")
    tab.page.wait_for_selector(".toast:has-text('It goes on.')")
    tab.go("#/runs/@bill@", ".banner:has-text('charge-3')")


def test_a_run_is_run_again_with_edited_parameters(tab: SceneTab) -> None:
    tab.go("#/runs/@good@", ".node")
    tab.press("Run again…")
    dialog = tab.page.locator("dialog")
    dialog.get_by_label("pages").fill("x")
    tab.press("Run again")
    tab.page.wait_for_selector(".field-error:has-text('It must be a number.')")
    dialog.get_by_label("pages").fill("3")
    tab.press("Run again")
    tab.page.wait_for_selector(".node:has-text('3 / 3')")
    tab.page.wait_for_selector("dt:has-text('Made from')")


def test_a_run_is_forked_from_one_of_its_task_runs(tab: SceneTab) -> None:
    tab.go("#/runs/@good@?task=store", "tr.opened button:has-text('store-')")
    tab.page.locator("tr.opened button:has-text('store-')").click()
    tab.press("Fork from here…")
    chosen = tab.page.get_by_label("Run again from")
    assert re.fullmatch(r"[0-9a-f-]{36}-\d+", chosen.input_value())
    tab.press("Fork")
    tab.page.wait_for_selector(".page-head .badge[data-state=COMPLETED]")
    tab.page.wait_for_selector("dt:has-text('Made from')")


def test_runs_are_cancelled_resumed_and_deleted(tab: SceneTab, served: Served) -> None:
    run = served.call(served.engine.submit(scene.waits_for_tomorrow))
    tab.go(f"#/runs/{run.id}", ".banner")
    tab.press("Cancel")
    tab.press("Cancel the run")
    tab.page.wait_for_selector(".page-head .badge[data-state=CANCELLED]")
    tab.press("Resume")
    tab.page.wait_for_selector(".page-head .badge:has-text('Suspended')")
    tab.press("Cancel")
    tab.press("Cancel the run")
    tab.page.wait_for_selector(".page-head .badge[data-state=CANCELLED]")
    tab.press("Delete")
    tab.press("Delete the run")
    tab.page.wait_for_selector("text=It was deleted.")
    tab.expected = ["404"]
    tab.go(f"#/runs/{run.id}", "text=There is no such run")


def test_all_runs_that_a_filter_finds_are_cancelled(tab: SceneTab, served: Served) -> None:
    async def begin() -> None:
        """What is cancelled is what was seen: so they have come as far as they will."""
        runs = [await served.engine.submit(scene.waits_for_data) for _ in range(3)]
        await until(lambda: all(run.state.is_paused() for run in runs))
        await served.engine.written()

    served.call(begin())
    tab.go("#/runs?flow=waits_for_data&state=not_completed", "tbody tr >> nth=2")
    assert tab.page.get_by_label("Flow").input_value() == "waits_for_data"
    tab.page.get_by_role("checkbox", name="All").first.check()
    tab.press("Cancel", exact=False)
    tab.page.locator("dialog button.danger").click()
    tab.page.wait_for_selector(".toast")
    tab.page.wait_for_selector("tbody .badge[data-state=CANCELLED] >> nth=2")


def test_a_deployment_and_a_schedule_are_paused_and_released(tab: SceneTab) -> None:
    tab.go("#/deployments/nightly%20crawl", "tr:has-text('each-night')")
    tab.press("Pause each-night")
    tab.page.wait_for_selector("tr:has-text('each-night') .flag:has-text('Paused')")
    tab.press("Start again each-night")
    tab.page.wait_for_selector("button:has-text('Pause')[aria-label='Pause each-night']")
    tab.press("Pause")
    tab.page.wait_for_selector(".page-head .flag:has-text('Paused')")
    tab.press("Start again")
    tab.page.wait_for_selector(".page-head .flag", state="detached")


def test_limits_and_variables_tell_what_is_wrong_at_the_field(tab: SceneTab) -> None:
    tab.go("#/limits", "tr:has-text('warehouse')")
    tab.press("New limit…")
    tab.page.get_by_label("Limit", exact=False).last.fill("many")
    tab.press("Set")
    tab.page.wait_for_selector(".field-error:has-text('It must be a number')")
    assert "It must be given." in tab.errors()
    tab.page.keyboard.press("Escape")
    tab.go("#/variables", "tr:has-text('region')")
    tab.press("Edit region")
    tab.page.get_by_role("textbox", name="Value").fill("not json")
    tab.press("Save")
    tab.page.wait_for_selector(".field-error:has-text('This is no JSON')")
    tab.page.get_by_role("textbox", name="Value").fill('"eu-east"')
    tab.press("Save")
    tab.page.wait_for_selector("code:has-text('eu-east')")


def test_with_keys_alone_a_run_is_found_opened_and_cancelled(tab: SceneTab, served: Served) -> None:
    run = served.call(served.engine.submit(scene.waits_for_tomorrow, run_name="by keys"))
    page = tab.page
    page.keyboard.press("g")
    page.keyboard.press("r")
    page.wait_for_selector("h1:has-text('Runs')")
    page.keyboard.press("/")
    page.keyboard.type("by keys")
    page.wait_for_selector("tbody tr:has-text('by keys')")
    link = page.locator("tbody a:has-text('by keys')")
    for _ in range(40):
        page.keyboard.press("Tab")
        if link.evaluate("node => node === document.activeElement"):
            break
    page.keyboard.press("Enter")
    page.wait_for_selector("h1:has-text('by keys')")
    cancel = page.get_by_role("button", name="Cancel", exact=True)
    for _ in range(40):
        page.keyboard.press("Tab")
        if cancel.evaluate("node => node === document.activeElement"):
            break
    page.keyboard.press("Enter")
    page.wait_for_selector("dialog")
    page.keyboard.press("Tab")
    for _ in range(10):
        if page.evaluate("document.activeElement.textContent") == "Cancel the run":
            break
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_selector(".page-head .badge[data-state=CANCELLED]")
    assert run.id in page.url
