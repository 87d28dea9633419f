"""Where results are kept, and how documents quote them: never by hand.

Results lie in ``benchmarks/results``: ``DATE.json`` of ``python -m benchmarks``, and
``peers-DATE.json`` of ``python -m benchmarks.peers``. A document has a pair of comments for each
kind it quotes; ``python -m benchmarks --update`` puts the table of the newest file between them.
"""

from __future__ import annotations

import json
import math
import platform
import re
import sqlite3
import statistics
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
DOCUMENTS = (ROOT / "README.md", ROOT / "docs" / "benchmarks.md")

#: Names of result files, by kind; a date sorts as text.
KINDS = {
    "promises": "[0-9]*.json",
    "peers": "peers-[0-9]*.json",
    "commits": "commits-[0-9]*.json",
}

VERSIONS = ("asyncflow", "uvloop", "anyio", "aiosqlite", "pydantic")

Document = dict[str, Any]


def machine() -> Document:
    """The date, the machine, and the versions of what is measured."""
    cpu = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [x for x in info.read_text().splitlines() if x.startswith("model name")]
        cpu = f"{len(lines)} x {lines[0].partition(': ')[2]}" if lines else cpu
    versions = {"python": platform.python_version(), "sqlite": sqlite3.sqlite_version}
    for name in VERSIONS:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "cpu": cpu,
        "os": platform.platform(),
        "versions": versions,
    }


def machine_line(found: Document) -> str:
    """The machine and the versions in one sentence."""
    names = {"python": "Python", "sqlite": "SQLite"}
    versions = ", ".join(f"{names.get(n, n)} {v}" for n, v in found["versions"].items())
    return f"{found['date']}, {found['cpu']}, {found['os']}; {versions}."


def newest(kind: str) -> Path:
    """The newest committed result of a kind.

    Raises:
        FileNotFoundError: there is none.
    """
    found = sorted(RESULTS.glob(KINDS[kind]))
    if not found:
        raise FileNotFoundError(f"no {RESULTS / KINDS[kind]}: measure first, with --json")
    return found[-1]


def markdown(file: Path) -> str:
    """The table of a result file, with its machine and versions."""
    document = json.loads(file.read_text())
    source = f"{machine_line(document['machine'])} Source: `{_place(file)}`."
    return f"{markdown_of(document)}\n\n{source}"


def markdown_of(document: Document) -> str:
    """The table of a result, of whichever kind it is."""
    return TABLES[document.get("kind", "promises")](document)


def _place(file: Path) -> str:
    file = file.resolve()
    return str(file.relative_to(ROOT)) if file.is_relative_to(ROOT) else file.name


def update(document: Path) -> bool:
    """Put the newest tables and pictures into a document; whether it changed."""
    before = document.read_text()
    after = QUOTE.sub(lambda m: f"{m[1]}\n{markdown(newest(m[2]))}\n\n{m[3]}", before)
    after = PICTURE.sub(lambda m: _picture("peers" if m[1] else "promises"), after)
    if after != before:
        document.write_text(after)
    return after != before


def _picture(kind: str) -> str:
    return f"results/{newest(kind).with_suffix('.png').name}"


#: What a document has where it quotes a result, and where it shows the picture of one.
QUOTE = re.compile(r"(<!-- measured: (\w+) -->\n).*?(<!-- /measured -->)", re.S)
PICTURE = re.compile(r"results/(peers-)?\d{4}-\d\d-\d\d\.png")


# --- tables -------------------------------------------------------------------------------------


def grid(rows: Sequence[Sequence[str]], *, left: Iterable[int] = (0,)) -> str:
    """A Markdown table that reads well as plain text: the first row is its head."""
    left = set(left)
    widths = [max(3, *(len(row[n]) for row in rows)) for n in range(len(rows[0]))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            c.ljust(w) if n in left else c.rjust(w)
            for n, (c, w) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    rule = ["-" * w if n in left else "-" * (w - 1) + ":" for n, w in enumerate(widths)]
    return "\n".join([line(rows[0]), line(rule), *(line(row) for row in rows[1:])])


def _promises(document: Document) -> str:
    """One row for each promise, with its figure on each loop."""
    loops = list(document["results"])
    by_name: dict[str, dict[str, Document]] = {}
    for loop in loops:
        for one in document["results"][loop]:
            by_name.setdefault(one["name"], {})[loop] = one
    rows = [["what", "unit", *(f"{loop} loop" for loop in loops), "must", "aim", "verdict"]]
    for name, found in by_name.items():
        some = next(iter(found.values()))
        cells = [f"{found[loop]['value']:,.2f}" if loop in found else "" for loop in loops]
        worst = max(found.values(), key=lambda one: one["value"])
        limits = [f"{some['must']:g}", f"{some['aim']:g}"]
        rows.append([name, some["unit"], *cells, *limits, worst["verdict"]])
    return grid(rows, left=(0, 1, len(rows[0]) - 1))


def duration(seconds: float) -> str:
    """A time in the unit that suits it."""
    unit, factor = _unit(seconds)
    return f"{_short(seconds * factor)} {unit}"


def round_duration(seconds: float) -> str:
    """A time for the scale of a picture."""
    unit, factor = _unit(seconds)
    return f"{seconds * factor:g} {unit}"


def spread(samples: Sequence[float]) -> str:
    """The median, and from where to where the samples go, in seconds or a part of it."""
    value = statistics.median(samples)
    unit, factor = _unit(value)
    if len(samples) == 1:
        return f"{_short(value * factor)} {unit}"
    least, most = _short(min(samples) * factor), _short(max(samples) * factor)
    return f"{_short(value * factor)} {unit} [{least}..{most}]"


def _unit(seconds: float) -> tuple[str, float]:
    for unit, factor in (("us", 1e6), ("ms", 1e3)):
        if seconds * factor < 999.5:
            return unit, factor
    return "s", 1.0


def _short(number: float) -> str:
    """Three figures, never as a power of ten."""
    if number == 0:
        return "0"
    number = float(f"{number:.3g}")  # before its size is asked for: 99.96 is 100
    digits = 2 - math.floor(math.log10(abs(number)))
    return f"{number:,.{max(0, digits)}f}"


#: Versions that the line of the machine names already.
COMMON = ("python", "sqlite")

#: The columns of the table of peers: what is measured, and its unit.
CELLS = {
    "fan": "fan-out, a task",
    "chain": "chain, a task",
    "resume": "resume, a task",
    "hello": "hello, a process",
}


def per_task(variant: Document, cell: str, part: str = "wall") -> list[float]:
    """The samples of a cell, seconds for each task (of `hello`: for the process).

    *part* is "wall", "cpu" (of the process that was timed) or "body" (of the flow).
    """
    samples = variant["cells"].get(cell, [])
    n = {"hello": 1, "chain": variant["chain"]}.get(cell, variant["n"])
    return [one[part] / n for one in samples if part in one]


def _cell(variant: Document, cell: str, rounds: int) -> str:
    samples = per_task(variant, cell)
    if not samples:
        failed = any(cell in error["cells"] for error in variant["errors"])
        return "failed" if failed else "-"
    text = spread(samples)
    within = body_apart(variant, cell)
    if within is not None:
        text += f", body {duration(within)}"
    return text if len(samples) == rounds else f"{text}, {len(samples)} of {rounds} rounds"


def body_apart(variant: Document, cell: str) -> float | None:
    """The part of a cell that the body of the flow took, where it is clearly less than all."""
    within = per_task(variant, cell, "body")
    if not within:
        return None
    value = statistics.median(within)
    return value if value < statistics.median(per_task(variant, cell)) / 1.25 else None


def _ratio(samples: Sequence[float], reference: Sequence[float]) -> str:
    if not samples or not reference:
        return "-"
    return _short(statistics.median(samples) / statistics.median(reference))


def _peers(document: Document) -> str:
    """One row for each way to use a peer; failures and what was left out below."""
    rounds = document["settings"]["rounds"]
    found = document["variants"]
    reference = per_task(found[0], "fan")
    rows = [["", "keeps", "tasks", *CELLS.values(), "fan-out / asyncio"]]
    for v in found:
        cells = [_cell(v, cell, rounds) for cell in CELLS]
        rows.append(
            [v["name"], v["keeps"], f"{v['n']:,}", *cells, _ratio(per_task(v, "fan"), reference)]
        )
    lines = [grid(rows, left=(0, 1))]
    for v in found:
        lines += [
            f"{v['name']} failed in {e['stage']}, round {e['round']}: {e['error']}."
            for e in v["errors"]
        ]
        if any(v["ran again"]):
            lines.append(f"{v['name']} ran tasks again on resume, by round: {v['ran again']}.")
    if any(v["ran again"] for v in found) and not any(any(v["ran again"]) for v in found):
        lines.append("No task ran again on resume.")
    lines += [f"Not measured: {name} ({why})." for name, why in document["not measured"].items()]
    names = {f"{n} {x}" for v in found for n, x in v["versions"].items() if n not in COMMON}
    lines.append(
        f"{', '.join(sorted(names))}. Medians of {rounds} rounds [least..most]; at most"
        f" {document['settings']['concurrency']} tasks at once."
    )
    return "\n\n".join(lines)


def _commits(document: Document) -> str:
    """One row for each way to write, one column for each number of rows."""
    sizes = sorted({one["rows"] for one in document["results"]})
    ways: dict[tuple[str, str], dict[int, str]] = {}
    for one in document["results"]:
        cells = ways.setdefault((one["synchronous"], one["where"]), {})
        cells[one["rows"]] = spread([us / 1e6 for us in one["us a commit"]])
    head = [f"{n:,} row" if n == 1 else f"{n:,} rows" for n in sizes]
    rows = [["synchronous", "where", *head]]
    rows += [[*way, *(cells.get(n, "-") for n in sizes)] for way, cells in ways.items()]
    return f"{grid(rows, left=(0, 1))}\n\nTime of one commit."


TABLES: dict[str, Callable[[Document], str]] = {
    "promises": _promises,
    "peers": _peers,
    "commits": _commits,
}
