"""The pages of the dashboard in a browser, before a server that has made-up data and means harm."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
from browser.tabs import CHROMIUM, NEEDS, Tab, chromium, opener

pytest.importorskip("playwright.sync_api", reason=NEEDS)
server_mock = pytest.importorskip("server_mock", reason=NEEDS)

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")

HOSTILE = server_mock.HOSTILE
RUN = f"#/runs/{server_mock.BIG_RUN}"
FAILED = f"#/runs/{server_mock.FAILED_RUN}"
WAITING = f"#/runs/{server_mock.WAITING_RUN}"
#: Each page, and what is on it once it has loaded.
PAGES = {
    "#/": "text=Runs over time",
    "#/runs": "tbody tr >> nth=40",
    f"{RUN}?task=fetch": "tr.opened tbody tr >> nth=20",
    FAILED: "text=Traceback",
    WAITING: "text=What it waits for",
    f"{RUN}/logs": ".log-line >> nth=100",
    f"{RUN}/artifacts": "text=Summary",
    "#/attention": "text=They wait for a person",
    "#/deployments": "tbody tr >> nth=3",
    "#/deployments/nightly_report-hourly": "text=a run of it was still going on >> nth=0",
    f"#/deployments/{quote(HOSTILE[0], safe='')}": f"h1:has-text('{HOSTILE[0]}')",
    "#/automations": "tbody tr >> nth=20",
    f"#/automations/{quote(HOSTILE[0], safe='')}": f"h1:has-text('{HOSTILE[0]}')",
    "#/events": "tbody tr >> nth=50",
    "#/limits": "text=5 at once",
    "#/variables": "text=eu-west",
    "#/nowhere": "text=There is nothing here",
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def served() -> Iterator[Any]:
    with server_mock.serving(server_mock.Mock()) as mock:
        yield mock


@pytest.fixture
def mock(served: Any) -> Any:
    served.data = server_mock.Data()
    return served


class MockTab(Tab):
    """A page of the mock."""

    def __init__(self, mock: Any, page: Any) -> None:
        super().__init__(page)
        self.mock = mock

    def sign_in(self, token: str = server_mock.TOKEN) -> None:
        self.page.goto(f"{self.mock.url}#token={token}")
        self.page.wait_for_selector("h1")

    def go(self, place: str, shows: str | None = None) -> None:
        self.page.goto(self.mock.url + place)
        self.page.wait_for_selector(shows or PAGES[place])

    def changes(self) -> list[Any]:
        return [done for done in self.mock.data.done if done[1] != "session"]


@pytest.fixture
def open_tab(browser: Any, mock: Any) -> Iterator[Callable[..., MockTab]]:
    with opener(browser) as open_:

        def opened(width: int = 1280, height: int = 900, **options: Any) -> Any:
            size = {"width": width, "height": height}
            return open_(partial(MockTab, mock), viewport=size, **options)

        yield opened


@pytest.fixture
def tab(open_tab: Callable[..., MockTab]) -> MockTab:
    opened = open_tab()
    opened.sign_in()
    return opened


# --- each page ------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", PAGES)
def test_a_page_shows_hostile_texts_as_texts(tab: MockTab, place: str) -> None:
    tab.go(place)
    for tag in ("img[src=x]", "iframe", "svg[onload]", "b[onmouseover]", "body script"):
        assert tab.page.locator(tag).count() == 0
    assert tab.page.evaluate("document.querySelectorAll('*').length") <= 2000


def test_no_page_is_wider_than_a_phone(open_tab: Callable[..., MockTab]) -> None:
    tab = open_tab(375, 812)
    tab.sign_in()
    for place in PAGES:
        tab.go(place)
        width = tab.page.evaluate("document.documentElement.scrollWidth")
        assert width <= 375, place


def test_dialogs_fit_on_a_phone(open_tab: Callable[..., MockTab]) -> None:
    tab = open_tab(375, 812)
    tab.sign_in()
    for place, name in {
        "#/deployments/nightly_report-hourly": "Run nightly_report-hourly",
        FAILED: "Fork…",
        "#/limits": "New limit…",
    }.items():
        tab.go(place)
        tab.page.get_by_role("button", name=name).click()
        box = tab.page.locator("dialog").bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 375
        assert box["y"] + box["height"] <= 812
        tab.page.keyboard.press("Escape")
        tab.page.wait_for_selector("dialog", state="detached")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_page_is_hard_to_use_for_some(open_tab: Callable[..., MockTab], scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason=NEEDS).Axe()
    tab = open_tab(color_scheme=scheme, reduced_motion="reduce")
    tab.sign_in()
    # The dark pages differ by their colours only.
    for place in list(PAGES) if scheme == "light" else ["#/", "#/runs", FAILED, f"{RUN}/logs"]:
        tab.go(place)
        assert serious(axe, tab) == [], place


def serious(axe: Any, tab: MockTab) -> list[str]:
    found = axe.run(tab.page).response["violations"]
    return [
        f"{one['id']}: {one['nodes'][0]['html'][:200]}"
        for one in found
        if one["impact"] in ("serious", "critical")
    ]


# --- signing in -----------------------------------------------------------------------------------


def test_the_token_leaves_the_address_and_becomes_a_session(
    open_tab: Callable[..., MockTab],
) -> None:
    tab = open_tab()
    tab.sign_in()
    assert "token" not in tab.page.url
    assert tab.page.evaluate("document.cookie") == ""
    tab.page.reload()
    tab.page.wait_for_selector("text=Runs over time")


def test_without_a_token_it_is_asked_for(open_tab: Callable[..., MockTab]) -> None:
    tab = open_tab()
    tab.expected = ["401"]
    tab.page.goto(f"{tab.mock.url}#/runs")
    tab.page.fill("input[name=token]", "wrong")
    tab.page.click("button:has-text('Sign in')")
    tab.page.wait_for_selector("text=This is not the token.")
    tab.page.fill("input[name=token]", server_mock.TOKEN)
    tab.page.click("button:has-text('Sign in')")
    tab.page.wait_for_selector(PAGES["#/runs"])


def test_who_may_only_look_is_shown_nothing_to_do(open_tab: Callable[..., MockTab]) -> None:
    tab = open_tab()
    tab.sign_in(server_mock.READ_TOKEN)
    for place, names in {
        "#/runs": "Cancel", FAILED: "Resume|Fork|Delete|Run again", "#/deployments": "Run…",
        "#/deployments/nightly_report-hourly": "Pause|Run…|Delete", "#/automations": "Switch",
        "#/limits": "Edit|Lift|New", "#/variables": "Edit|Delete|New",
    }.items():  # fmt: skip
        tab.go(place)
        assert tab.page.get_by_role("button", name=re.compile(names)).count() == 0, place
    tab.go("#/runs")
    assert tab.page.locator("td input[type=checkbox]").count() == 0


def test_it_works_below_a_prefix(browser: Any) -> None:
    with server_mock.serving(server_mock.Mock(prefix="/ops/flows")) as mock:
        context = browser.new_context()
        tab = MockTab(mock, context.new_page())
        tab.sign_in()
        tab.go("#/runs")
        assert urlsplit(tab.page.url).path == "/ops/flows/"
        context.close()
        tab.check()


# --- runs -----------------------------------------------------------------------------------------


def test_filters_are_kept_in_the_address(tab: MockTab) -> None:
    tab.go("#/runs")
    tab.page.get_by_role("button", name="Not completed").click()
    tab.until("!document.querySelector('tbody .badge[data-state=COMPLETED]')")
    assert tab.query() == {"state": ["not_completed"]}
    tab.page.get_by_label("Flow").fill("train")
    tab.until("location.hash.includes('flow=train')")
    tab.until(
        "[...document.querySelectorAll('td .sub')].every(n => n.textContent.startsWith('train'))"
    )
    shown = tab.page.locator("tbody tr").count()
    assert shown > 0
    tab.page.reload()
    tab.page.wait_for_selector("tbody tr")
    assert tab.page.locator("tbody tr").count() == shown
    assert tab.page.get_by_label("Flow").input_value() == "train"


def test_runs_are_paged(tab: MockTab) -> None:
    tab.go("#/runs")
    first = tab.page.locator("tbody tr").first.get_attribute("data-run")
    tab.page.get_by_role("button", name="Next page").click()
    tab.until(f"![undefined, '{first}'].includes(document.querySelector('tbody tr')?.dataset.run)")
    assert tab.query() == {"cursor": ["50"]}
    tab.page.get_by_role("button", name="First page").click()
    tab.page.wait_for_selector(f"tbody tr[data-run='{first}']")
    assert tab.query() == {}


def test_chosen_runs_are_deleted_after_a_question(tab: MockTab) -> None:
    tab.go("#/runs?state=FAILED", PAGES["#/runs"].replace("40", "10"))
    tab.until("!document.querySelector('tbody .badge[data-state=COMPLETED]')")
    boxes = tab.page.locator("td input[type=checkbox]")
    ids = [boxes.nth(i).get_attribute("data-id") for i in range(2)]
    for i in range(2):
        boxes.nth(i).check()
    tab.page.locator(".choice button:has-text('Delete')").click()
    assert tab.changes() == []
    tab.page.locator("dialog button:has-text('Delete 2 runs')").click()
    tab.page.wait_for_selector("text=Delete: 2 done.")
    assert sorted(done[1] for done in tab.changes()) == sorted(f"runs/{i}/delete" for i in ids)
    assert all(done[2] == {"expected_state": "FAILED"} for done in tab.changes())


def test_all_that_the_filter_finds_can_be_cancelled_at_once(tab: MockTab) -> None:
    tab.go("#/runs?text=a", PAGES["#/runs"])
    tab.page.get_by_label("Choose all of this page").check()
    tab.page.locator(".all-of button:has-text('Cancel')").click()
    tab.page.locator("dialog button:has-text('Cancel all')").click()
    tab.page.wait_for_selector("text=3 done, 1 not")
    ((_, path, body),) = tab.changes()
    assert path == "runs/bulk"
    assert body == {"action": "cancel", "filter": {"text": "a"}, "limit": 500}


def test_a_run_that_changes_is_seen_to_change(tab: MockTab) -> None:
    tab.go("#/runs")
    run = tab.mock.data.runs[6]
    run["state"], run["state_name"] = "CRASHED", "Crashed"
    tab.page.wait_for_selector("[data-live=live]")
    tab.mock.happen({"id": 1, "kind": "flow-run.Crashed", "run_id": run["id"], "state": "CRASHED"})
    tab.page.wait_for_selector(f"tr[data-run='{run['id']}'] .badge[data-state=CRASHED]")


# --- a run ----------------------------------------------------------------------------------------


def test_a_run_of_10_000_tasks_is_light(open_tab: Callable[..., MockTab]) -> None:
    tab = open_tab()
    tab.sign_in()
    tab.page.wait_for_selector("text=Runs over time")
    tab.page.wait_for_selector("[data-live=live]")
    sizes: list[int] = []
    tab.page.on("response", lambda answer: sizes.append(len(answer.body())))
    tab.mock.data.asked.clear()
    tab.page.evaluate(f"location.hash = '{RUN}'")
    tab.page.wait_for_selector(".node:has-text('9,940 / 9,940')")
    tab.page.wait_for_selector("text=The first 2,000 of 10,000 task runs.")
    assert sorted(tab.mock.data.asked) == [
        f"GET /api/runs/{server_mock.BIG_RUN}",
        f"GET /api/runs/{server_mock.BIG_RUN}/timeline?limit=2000",
    ]
    assert sum(sizes) < 500 * 1024
    assert tab.page.evaluate("document.querySelectorAll('*').length") <= 2000
    tab.page.locator(".node:has-text('fetch')").click()
    tab.page.wait_for_selector("tr.opened tbody tr >> nth=20")
    assert len(tab.mock.data.asked) == 3
    assert tab.page.evaluate("document.querySelectorAll('*').length") <= 2000


def test_a_first_visit_takes_less_than_500_kib(open_tab: Callable[..., MockTab]) -> None:
    tab = open_tab()
    tab.sign_in()
    sizes: list[int] = []
    tab.page.on(
        "response",
        lambda answer: answer.url.endswith("/stream") or sizes.append(len(answer.body())),
    )
    tab.mock.data.asked.clear()
    tab.page.goto("about:blank")
    tab.go(RUN, ".node:has-text('9,940 / 9,940')")
    tab.page.wait_for_selector("text=The first 2,000 of 10,000 task runs.")
    asked = [path.partition("?")[0] for path in tab.mock.data.asked]
    assert len(asked) <= 5
    assert sum(sizes) < 500 * 1024


def test_a_task_run_shows_its_attempts(tab: MockTab) -> None:
    tab.go(FAILED)
    tab.page.get_by_role("button", name="1 failed", exact=True).click()
    tab.until("document.querySelectorAll('tr.opened tbody tr').length === 1")
    assert tab.query() == {"task": [HOSTILE[0]], "state": ["FAILED"]}
    tab.page.locator("tr.opened tr:has(.badge[data-state=FAILED]) button").click()
    dialog = tab.page.locator("dialog")
    dialog.locator("text=Attempts that failed").wait_for()
    assert dialog.locator(".attempts li").count() == 2
    tab.page.keyboard.press("Escape")
    dialog.wait_for(state="detached")


def test_only_the_parameters_that_were_changed_are_sent_to_a_fork(tab: MockTab) -> None:
    tab.go(FAILED)
    tab.page.get_by_role("button", name="Fork…").click()
    text = tab.page.locator("dialog textarea")
    text.fill("{")
    tab.page.get_by_role("button", name="Fork", exact=True).click()
    tab.page.wait_for_selector("text=This is no JSON")
    before = tab.mock.data.detail(tab.mock.data.runs[1])["parameters"]
    text.fill(server_mock.json.dumps({**before, "pages": 41}))
    tab.page.get_by_label("Run again from").select_option("extract")
    tab.page.get_by_role("button", name="Fork", exact=True).click()
    tab.page.wait_for_selector("text=It was forked.")
    ((_, path, body),) = tab.changes()
    assert path.endswith("/fork")
    assert body == {"parameters": {"pages": 41}, "from_task": "extract"}


def test_a_run_that_moved_on_meanwhile_is_left_alone(tab: MockTab) -> None:
    tab.expected = ["409"]
    tab.go(FAILED)
    tab.mock.data.runs[1].update(state="COMPLETED", state_name="Completed")
    tab.page.get_by_role("button", name="Resume").click()
    tab.page.wait_for_selector(".toast:has-text('the run is Completed by now')")


def test_logs_are_searched_and_followed_to_their_end(tab: MockTab) -> None:
    tab.go(f"{RUN}/logs")
    tab.page.get_by_role("button", name="To the end").click()
    tab.page.wait_for_selector("text=1,200 lines seen")
    assert tab.page.locator(".log-line").count() == 250
    tab.page.get_by_label("Search the log").fill("cache hit")
    tab.until(
        "[...document.querySelectorAll('.log-text')]"
        ".every(line => line.textContent.includes('cache hit'))"
    )
    tab.page.get_by_label("Level").select_option("40")
    tab.until("!document.querySelector('.log-line[data-level=INFO]')")
    assert tab.query() == {"text": ["cache hit"], "level": ["40"]}


def test_the_timeline_zooms_and_opens_what_is_clicked(tab: MockTab) -> None:
    tab.go(FAILED, "canvas.timeline")
    canvas = tab.page.locator("canvas.timeline")
    canvas.focus()
    for key in ("+", "ArrowRight", "ArrowLeft", "0"):
        tab.page.keyboard.press(key)
    box = canvas.bounding_box()
    canvas.hover(position={"x": 150, "y": 30})
    tab.page.wait_for_selector(".tip:has-text('extract-1')")
    tab.page.mouse.click(box["x"] + 150, box["y"] + 30)
    tab.page.wait_for_selector("dialog:has-text('Result')")


# --- deployments and the rest ---------------------------------------------------------------------


def test_a_deployment_is_run_by_a_form_of_its_schema(tab: MockTab) -> None:
    tab.go("#/deployments/nightly_report-hourly")
    tab.page.get_by_role("button", name="Run nightly_report-hourly").click()
    dialog = tab.page.locator("dialog")
    dialog.get_by_label("ratio").fill("2")
    dialog.get_by_label("columns").fill('{"a": 1}')
    dialog.get_by_label("pages").fill("1.5")
    dialog.get_by_label("note").fill("longer than it may be")
    dialog.get_by_role("button", name="Run", exact=True).click()
    errors = [text for text in dialog.locator(".field-error").all_inner_texts() if text]
    assert errors == [
        "It must be given.",
        "It must be a whole number.",
        "It must be less than 1.",
        "It may have at most 10 characters.",
        "It must be a list: [...]",
    ]
    dialog.get_by_label("day").fill("2026-02-01")
    dialog.get_by_label("ratio").fill("0.25")
    dialog.get_by_label("columns").fill('["c"]')
    dialog.get_by_label("pages").fill("40")
    dialog.get_by_label("note").fill("short")
    dialog.get_by_label("dry").check()
    dialog.get_by_label("mode").select_option(label=HOSTILE[0])
    dialog.get_by_role("button", name="Run", exact=True).click()
    tab.page.wait_for_selector("text=It has begun.")
    ((_, path, body),) = tab.changes()
    assert path == "deployments/nightly_report-hourly/run"
    assert body.pop("idempotency_key").startswith("dashboard-")
    assert body == {
        "parameters": {
            "day": "2026-02-01", "ratio": 0.25, "dry": True, "mode": HOSTILE[0], "note": "short",
            "columns": ["c"],
        }
    }  # fmt: skip


def test_what_the_server_refuses_is_said_in_the_dialog(tab: MockTab) -> None:
    tab.expected = ["409"]
    tab.go("#/runs?state=RUNNING", f"tr[data-run='{server_mock.WAITING_RUN}']")
    tab.go(FAILED)
    tab.mock.data.runs[1].update(state="RUNNING", state_name="Running")
    tab.page.get_by_role("button", name="Delete").click()
    tab.page.get_by_role("button", name="Delete the run").click()
    tab.page.wait_for_selector("dialog .dialog-problem:has-text('the run is running')")


def test_a_schedule_is_paused(tab: MockTab) -> None:
    tab.go("#/deployments/nightly_report-hourly")
    tab.page.get_by_role("button", name="Pause hourly").click()
    tab.page.get_by_role("button", name="Start again hourly").wait_for()
    assert tab.changes() == [
        ("POST", "deployments/nightly_report-hourly/pause", {"schedule": "hourly"})
    ]


def test_an_automation_is_switched_off(tab: MockTab) -> None:
    tab.go("#/automations")
    tab.page.get_by_role("button", name="Switch off tell when loading fails").click()
    tab.page.get_by_role("button", name="Switch on tell when loading fails").wait_for()
    assert tab.changes() == [("POST", "automations/tell when loading fails/disable", {})]


def test_a_limit_and_a_variable_are_set(tab: MockTab) -> None:
    tab.go("#/limits")
    tab.page.get_by_role("button", name="Edit database").click()
    tab.page.get_by_role("textbox", name="Limit").fill("7")
    tab.page.get_by_role("button", name="Set").click()
    tab.page.wait_for_selector("text=7 at once")
    tab.go("#/variables")
    tab.page.get_by_role("button", name="Edit region").click()
    tab.page.get_by_role("textbox", name="Value").fill("eu-north")
    tab.page.get_by_role("button", name="Save").click()
    tab.page.wait_for_selector("text=This is no JSON")
    tab.page.get_by_role("textbox", name="Value").fill('"eu-north"')
    tab.page.get_by_role("button", name="Save").click()
    tab.page.wait_for_selector("code:has-text('eu-north')")
    assert tab.changes() == [
        ("PUT", "limits/database", {"limit": 7, "period": None, "burst": None}),
        ("PUT", "variables/region", {"value": "eu-north"}),
    ]


# --- keys and theme -------------------------------------------------------------------------------


def test_keys_lead_everywhere(tab: MockTab) -> None:
    tab.go("#/")
    tab.page.keyboard.press("g")
    tab.page.keyboard.press("r")
    tab.page.wait_for_selector("h1:has-text('Runs')")
    tab.page.keyboard.press("/")
    assert tab.page.evaluate("document.activeElement.name") == "text"
    tab.page.keyboard.press("Escape")
    tab.page.keyboard.press("?")
    tab.page.wait_for_selector("dialog:has-text('Keys')")
    tab.page.keyboard.press("Escape")
    tab.page.wait_for_selector("dialog", state="detached")
    tab.page.keyboard.press("g")
    tab.page.keyboard.press("h")
    tab.page.wait_for_selector("h1:has-text('Home')")


def test_the_theme_is_kept(tab: MockTab) -> None:
    tab.go("#/")
    background = "getComputedStyle(document.body).backgroundColor"
    light = tab.page.evaluate(background)
    tab.page.keyboard.press("t")
    tab.page.keyboard.press("t")
    tab.page.wait_for_selector("html[data-theme=dark]")
    dark = tab.page.evaluate(background)
    assert dark != light
    tab.page.reload()
    tab.page.wait_for_selector("html[data-theme=dark]")
    assert tab.page.evaluate(background) == dark


def test_dialogs_are_not_hard_to_use_for_some(tab: MockTab) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason=NEEDS).Axe()
    tab.go("#/deployments/nightly_report-hourly")
    tab.page.get_by_role("button", name="Run nightly_report-hourly").click()
    tab.page.wait_for_selector("dialog[open]")
    assert serious(axe, tab) == []


def test_an_address_without_a_run_says_so(tab: MockTab) -> None:
    tab.expected = ["404"]
    tab.go(f"#/runs/{server_mock.run_id(5000)}", "text=There is no such run")
    tab.go("#/deployments/none", "text=There is no such deployment")
    tab.go("#/automations/none", "text=There is no such automation")
