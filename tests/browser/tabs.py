"""Pages in a browser that note what they should not do."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs, urlsplit

#: Why tests of pages are left out.
NEEDS = "the extra 'browser' is not installed"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
#: Milliseconds after which what is not on a page never will be.
PATIENCE = 20_000


class Tab:
    """A page of the dashboard."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.wrong: list[str] = []
        self.expected: list[str] = []  # of what is wrong on purpose
        page.on("console", lambda m: m.type in ("error", "warning") and self.wrong.append(m.text))
        page.on("pageerror", lambda error: self.wrong.append(f"uncaught: {error}"))
        page.on("dialog", self._dialog)
        page.set_default_timeout(PATIENCE)
        page.add_init_script(
            "addEventListener('securitypolicyviolation',"
            " event => console.error(`CSP ${event.violatedDirective}`));"
        )

    def _dialog(self, dialog: Any) -> None:
        self.wrong.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def check(self) -> None:
        """Nothing was wrong but what was expected."""
        assert [w for w in self.wrong if not any(e in w for e in self.expected)] == []

    def press(self, name: str, exact: bool = True) -> None:
        self.page.get_by_role("button", name=name, exact=exact).first.click()

    def until(self, condition: str) -> None:
        """Wait until an expression is true; the policy lets no page wait for a text as code."""
        for _ in range(PATIENCE // 50):
            if self.page.evaluate(condition):
                return
            self.page.wait_for_timeout(50)
        raise AssertionError(f"never true: {condition}")

    def query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.page.url).fragment.partition("?")[2])

    def errors(self) -> list[str]:
        """What a dialog says at its fields."""
        texts = self.page.locator("dialog .field-error").all_inner_texts()
        return [text for text in texts if text]


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser without a window."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        browser = started.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        yield browser
        browser.close()


@contextmanager
def opener(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens pages, each for a visitor of its own; when they are closed nothing was wrong."""
    contexts: list[Any] = []
    tabs: list[Tab] = []

    def open_(kind: Callable[[Any], Tab], **options: Any) -> Tab:
        context = browser.new_context(**options)
        contexts.append(context)
        tabs.append(kind(context.new_page()))
        return tabs[-1]

    yield open_
    for context in contexts:
        context.close()
    for tab in tabs:
        tab.check()
