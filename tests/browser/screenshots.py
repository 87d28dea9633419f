"""Pictures of the pages, for the documents.

    python tests/browser/screenshots.py docs/images

It fills an engine with the flows of `scene`, serves it, and opens each page in Chromium.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
import tempfile
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

import scene
from patience import until
from playwright.async_api import async_playwright

from asyncflow import Engine

#: Name of a picture: the page, and what is on it once it is complete.
PAGES = {
    "home": ("#/", ".tile"),
    "runs": ("#/runs", "tbody tr >> nth=5"),
    "run": ("#/runs/@large", "tr[data-task=fetch]"),
    "waits": ("#/runs/@index", ".banner a >> nth=1"),
    "task-run": ("#/runs/@large?task=fetch&open=29", "dialog h3"),
    "answer": ("#/runs/@release", "button:has-text('Answer')"),
    "artifacts": ("#/runs/@good/artifacts", "main img"),
    "logs": ("#/runs/@large/logs", ".log-line >> nth=20"),
    "attention": ("#/attention", ".item"),
    "deployments": ("#/deployments", "tbody tr"),
    "deployment": ("#/deployments/often", "tbody tr >> nth=3"),
    "automations": ("#/automations", "tbody tr"),
    "events": ("#/events", "tbody tr >> nth=9"),
    "limits": ("#/limits", "td.wide li"),
    "variables": ("#/variables", "tbody tr"),
}
#: Of these there are pictures in the dark, and as on a phone.
DARK, PHONE = ("home", "run"), ("home", "waits", "attention")


async def some_ticks(engine: Engine) -> bool:
    """Whether the deployment that runs often has run, a few times."""
    return len(await engine.ticks("often")) >= 3


async def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    with tempfile.TemporaryDirectory() as work:
        async with Engine(Path(work) / "state.db") as engine:
            ids = await scene.fill(engine)
            await until(partial(some_ticks, engine))
            url = await engine.serve_dashboard(0)
            base = url.partition("#")[0]
            async with async_playwright() as started:
                browser = await started.chromium.launch(
                    executable_path=chromium, args=["--no-sandbox", "--disable-gpu"]
                )
                for suffix, names, width, scheme in (
                    ("", tuple(PAGES), 1180, "light"),
                    ("-dark", DARK, 1180, "dark"),
                    ("-phone", PHONE, 390, "light"),
                ):
                    context = await browser.new_context(
                        viewport={"width": width, "height": 760}, color_scheme=scheme
                    )
                    page = await context.new_page()
                    await page.goto(url)
                    await page.wait_for_selector("h1")
                    for name in names:
                        place, shows = PAGES[name]
                        for key, run_id in ids.items():
                            place = place.replace(f"@{key}", run_id)
                        await page.goto(base + place)
                        await page.wait_for_selector(shows)
                        if name == "answer":
                            await page.get_by_role("button", name="Answer…").click()
                        await page.wait_for_timeout(1200)
                        await page.screenshot(path=folder / f"{name}{suffix}.png")
                await browser.close()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/images")))
