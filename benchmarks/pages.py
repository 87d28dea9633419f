"""``python -m benchmarks.pages``: what the page of a large run costs, in a real browser.

It runs flows of 10,000 tasks in an engine that serves its dashboard, and opens pages in Chromium
(extra "browser"): how long until the page of such a run can be used, how much it asks for, how
large it is, how often a tab hears something, and how much slower a run is while somebody looks.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import statistics
import sys
import tempfile
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from asyncflow import Engine, emit_event, flow, get_run_logger, task

#: What must hold: of the page of a run, of an idle tab, of a run that somebody looks at.
MUST = {
    "page, first visit: usable": 1000.0,
    "page, later visit: usable": 1000.0,
    "page, first visit: all requests": 5,
    "page, later visit: all requests": 5,
    "page: KiB": 500,
    "page: DOM nodes": 2000,
    "idle tab: messages a second": 1.0,
    "busy tab: messages a second": 1.0,
    "a run: more by": 10.0,
    "its processor time: more by": 10.0,
}
#: Seconds that half of the tasks wait, 50 at a time, as for a service that is quick.
PAUSE = 0.02
#: Notes when an element is there, and painted: in ms since the page was asked for.
WATCH = """{
  const look = new MutationObserver(() => {
    if (!document.querySelector(%s)) return;
    look.disconnect();
    requestAnimationFrame(() => setTimeout(() => {
      document.documentElement.dataset.usable = performance.now();
    }));
  });
  look.observe(document, { childList: true, subtree: true });
}"""


@task
async def fetch(page: int) -> int:
    await asyncio.sleep(PAUSE)
    return page


@task
async def parse(page: int) -> int:
    return page


@flow(max_concurrency=50)
async def crawl(pages: int) -> int:
    """Half of its calls wait, half do nothing."""
    return len(await parse.map(fetch.map(range(pages // 2))))


@flow
async def chatter(seconds: float) -> None:
    """Makes events and log lines all the time."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        get_run_logger().info("still here")
        await emit_event("benchmarks.still-here")
        await asyncio.sleep(0.02)


# --- the browser, in a process of its own ---------------------------------------------------------


class Browser:
    """What a child process does with a browser, as it is told line by line."""

    def __init__(self, playwright: Any, url: str) -> None:
        path = shutil.which("chromium") or shutil.which("chromium-browser")
        self.browser = playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-gpu"]
        )
        self.url, self.base = url, url.partition("#")[0]
        self.context: Any = None
        self.page: Any = None
        self.seen: dict[str, int] = {}
        #: What the page has asked of the server, and not found in its cache.
        self.asked: dict[tuple[str, bool], str] = {}

    def fresh(self) -> None:
        """A browser that has seen nothing but the cookie of who signed in."""
        if self.context is not None:
            self.context.close()
        first = self.browser.new_context()
        page = first.new_page()
        page.goto(self.url)
        page.wait_for_selector("h1")
        state = first.storage_state()
        first.close()
        self.context = self.browser.new_context(storage_state=state)
        self.blank()

    def blank(self) -> None:
        if self.page is not None and not self.page.is_closed():
            self.page.close()
        self.page = self.context.new_page()
        session = self.context.new_cdp_session(self.page)
        session.send("Network.enable")
        self.seen = seen = {"data": 0, "bytes": 0, "messages": 0}
        self.asked = asked = {}

        def asks(event: Any) -> None:
            # A redirect would ask again under the same id.
            url = event["request"]["url"]
            if url.startswith("http"):
                asked[event["requestId"], "redirectResponse" in event] = url
                seen["data"] += "/api/" in url

        def has(event: Any) -> None:
            if event.get("response", {}).get("fromDiskCache", True):
                asked.pop((event["requestId"], False), None)

        def add(name: str) -> Any:
            return lambda event: seen.__setitem__("bytes", seen["bytes"] + int(event[name]))

        session.on("Network.requestWillBeSent", asks)
        session.on("Network.requestServedFromCache", has)
        session.on("Network.responseReceived", has)
        session.on("Network.loadingFinished", add("encodedDataLength"))
        session.on(
            "Network.eventSourceMessageReceived",
            lambda _: seen.__setitem__("messages", seen["messages"] + 1),
        )

    def open(self, place: str, selector: str) -> dict[str, Any]:
        """Open a page anew: after how many ms it shows *selector*, and what it took."""
        self.blank()
        self.page.add_init_script(WATCH % json.dumps(selector))
        self.page.goto(self.base + place, wait_until="commit")
        self.page.wait_for_selector(selector)
        self.page.wait_for_selector("html[data-usable]")
        usable = float(self.page.locator("html").get_attribute("data-usable"))
        self.page.wait_for_selector("[data-live=live]")
        self.page.wait_for_timeout(1000)
        nodes = self.page.evaluate("document.querySelectorAll('*').length")
        urls = [url.removeprefix(self.base).partition("?")[0] for url in self.asked.values()]
        return {
            **self.seen, "usable": usable, "nodes": nodes, "requests": len(urls), "asked": urls,
        }  # fmt: skip

    def count(self, seconds: float) -> dict[str, Any]:
        """What a tab hears and asks in so many seconds."""
        before = dict(self.seen)
        self.page.wait_for_timeout(seconds * 1000)
        return {key: self.seen[key] - before[key] for key in before}

    def go(self, place: str) -> dict[str, Any]:
        self.page.goto(self.base + place, wait_until="commit")
        return {}


def child(url: str) -> None:
    """Do what the lines of standard input say."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        browser = Browser(started, url)
        browser.fresh()
        print("{}", flush=True)
        for line in sys.stdin:
            name, *arguments = json.loads(line)
            print(json.dumps(getattr(browser, name)(*arguments) or {}), flush=True)


class Tab:
    """The child process, seen from the parent."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def answer(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(await self._process.stdout.readline())

    def tell(self, *what: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(what).encode() + b"\n")

    async def ask(self, *what: Any) -> Any:
        self.tell(*what)
        return await self.answer()


@asynccontextmanager
async def a_tab(url: str, elsewhere: bool = False) -> Any:
    """A browser; as if it were *elsewhere*, it takes no time that others on this machine want."""
    nice = ("nice", "-n", "19") if elsewhere and shutil.which("nice") else ()
    process = await asyncio.create_subprocess_exec(
        *nice, sys.executable, "-m", "benchmarks.pages", "--child", url,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    tab = Tab(process)
    await tab.answer()
    try:
        yield tab
    finally:
        assert process.stdin is not None
        process.stdin.close()
        await process.wait()


# --- what is measured -----------------------------------------------------------------------------


async def measure(path: Path, tasks: int, rounds: int, idle: float) -> dict[str, float]:
    found: dict[str, float] = {}
    async with Engine(path) as engine:
        url = await engine.serve_dashboard(0)
        run = await engine.submit(crawl, tasks)
        await run
        async with a_tab(url) as tab:
            first, later = [], []
            row = "tr[data-task=parse]"
            for _ in range(rounds):
                await tab.ask("fresh")
                first.append(await tab.ask("open", f"#/runs/{run.id}", row))
                later.append(await tab.ask("open", f"#/runs/{run.id}", row))
            for name, opened in (("first", first), ("later", later)):
                usable = [one["usable"] for one in opened]
                found[f"page, {name} visit: usable"] = statistics.median(usable)
            found["page, first visit: all requests"] = max(one["requests"] for one in first)
            found["page, later visit: all requests"] = max(one["requests"] for one in later)
            found["page: KiB"] = max(one["bytes"] for one in first) / 1024
            found["page: DOM nodes"] = max(one["nodes"] for one in first)
            quiet = await tab.ask("count", idle)
            found["idle tab: messages a second"] = quiet["messages"] / idle
            found["idle tab: requests a minute"] = quiet["data"] * 60 / idle
            talks = await engine.submit(chatter, idle + 2)
            await tab.ask("open", f"#/runs/{talks.id}", "h1")
            busy = await tab.ask("count", idle)
            found["busy tab: messages a second"] = busy["messages"] / idle
            found["busy tab: requests a second"] = busy["data"] / idle
            await talks
        async with a_tab(url, elsewhere=True) as tab:
            found |= await slowed(engine, tab, tasks, rounds)
    return found


async def slowed(engine: Engine, tab: Tab, tasks: int, rounds: int) -> dict[str, float]:
    """How much longer runs take while their page is open, in turns with runs that nobody sees.

    By the clock, and in processor time of this process, which counts what the server does for it.
    """
    alone: list[tuple[float, float]] = []
    seen: list[tuple[float, float]] = []
    for _ in range(rounds + 1):
        for times in (alone, seen):
            await (tab.ask("blank") if times is alone else tab.ask("open", "#/", "h1"))
            await asyncio.sleep(1.0)  # until the browser has come to rest
            clock, cpu = time.perf_counter(), time.process_time()
            run = await engine.submit(crawl, tasks)
            if times is seen:
                tab.tell("go", f"#/runs/{run.id}")
            await run
            times.append((time.perf_counter() - clock, time.process_time() - cpu))
            if times is seen:
                await tab.answer()
    found = {}
    for n, name in enumerate(("a run", "its processor time")):
        # The first of each is to warm up.
        plain, looked = (statistics.median(t[n] for t in times[1:]) for times in (alone, seen))
        found[f"{name}, nobody looks"] = plain * 1e3
        found[f"{name}, its page is open"] = looked * 1e3
        found[f"{name}: more by"] = (looked / plain - 1) * 100
    return found


UNITS = {"usable": "ms", "by": "%", "looks": "ms", "open": "ms"}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pages", description=__doc__)
    parser.add_argument("--tasks", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--idle", type=float, default=20.0, help="seconds that a tab is watched")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        child(options.child)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state.db"
        found = asyncio.run(measure(path, options.tasks, options.rounds, options.idle))
    print(f"{'':36} {'found':>10} {'must':>8}")
    missed = False
    for name, value in found.items():
        must = MUST.get(name)
        is_missed = must is not None and value > must
        missed = missed or is_missed
        unit = next((u for end, u in UNITS.items() if name.endswith(end)), "")
        bound = f"{must:g}" if must is not None else ""
        print(f"{name:36} {value:>10.1f} {bound:>8} {unit}{'  MISSED' if is_missed else ''}")
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
