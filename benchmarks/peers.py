"""The same work on asyncio alone, asyncflow, DBOS and Prefect.

``python -m benchmarks.peers --dbos VENV/bin/python --prefect VENV/bin/python``: each peer runs
in processes of its own environment, all of them in turn in each round, so that a slow minute
of the machine slows all. What is measured, and what it does not say: docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.report import (
    CELLS,
    Document,
    body_apart,
    duration,
    machine,
    machine_line,
    markdown_of,
    per_task,
    round_duration,
)

SCRIPTS = Path(__file__).parent / "peer_scripts"
#: Links of a chain, at most.
CHAIN = 1_000
#: What each stage measures; a stage that fails leaves these cells empty.
STAGES = {
    "hello": ("hello",),
    "measure": ("fan", "chain"),
    "stop": ("resume",),
    "resume": ("resume",),
}
#: Settings of a user must not change what is measured, nor be touched by it.
FOREIGN = re.compile(r"(ASYNCFLOW|DBOS|PREFECT|PYTHON)")


@dataclass
class Variant:
    """A way to use a peer, and what was found of it."""

    name: str
    peer: str
    variant: str
    n: int  #: tasks of the fan-out
    keeps: str  #: what is on disk, and when
    stages: tuple[str, ...]
    cells: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    ran_again: list[int] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    errors: list[dict[str, Any]] = field(default_factory=list)
    dead: bool = False  #: its first hello failed: it is not asked for more

    @property
    def chain(self) -> int:
        return min(self.n, CHAIN)

    def failed(self, stage: str, number: int, error: str, cells: tuple[str, ...]) -> None:
        self.errors.append({"stage": stage, "round": number, "error": error, "cells": cells})

    def plain(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "peer": self.peer,
            "keeps": self.keeps,
            "n": self.n,
            "chain": self.chain,
            "versions": self.versions,
            "cells": self.cells,
            "ran again": self.ran_again,
            "errors": self.errors,
        }


def variants(sizes: dict[str, int]) -> list[Variant]:
    """What is compared. The first is what the others' ratios refer to."""
    stopped = ("hello", "measure", "stop", "resume")
    n = {"asyncio": 10_000, "asyncflow": 10_000, "dbos": 1_000, "prefect": 200} | sizes
    return [
        Variant("asyncio", "asyncio", "-", n["asyncio"], "nothing", ("hello", "measure")),
        Variant(
            "asyncflow, off", "asyncflow", "off", n["asyncflow"], "nothing", ("hello", "measure")
        ),
        Variant(
            "asyncflow, strict",
            "asyncflow",
            "strict",
            n["asyncflow"],
            "each result before it is used; outlives kill -9",
            stopped,
        ),
        Variant(
            "asyncflow, full",
            "asyncflow",
            "full",
            n["asyncflow"],
            "each result before it is used; outlives power cuts",
            stopped,
        ),
        Variant(
            "DBOS",
            "dbos",
            "-",
            n["dbos"],
            "each result before it is used; outlives power cuts",
            stopped,
        ),
        Variant(
            "Prefect",
            "prefect",
            "plain",
            n["prefect"],
            "states of tasks, some time later, by its server",
            ("hello", "measure"),
        ),
        Variant(
            "Prefect, results kept",
            "prefect",
            "kept",
            n["prefect"],
            "states likewise; each result in a file",
            ("measure", "resume"),
        ),
    ]


@dataclass
class Bench:
    """Runs the scripts, one process at a time."""

    pythons: dict[str, str]  #: peer -> interpreter of its environment
    limit: float  #: seconds for one process
    folder: Path

    def first(self, variant: Variant) -> None:
        """Make the databases of a variant, unmeasured; a peer that cannot is left out."""
        try:
            self._run(variant, "hello", self._template(variant))
        except Failure as error:
            variant.dead = True
            cells = tuple(cell for stage in variant.stages for cell in STAGES[stage])
            variant.failed("first hello", 0, str(error), cells)

    def round(self, variant: Variant, number: int) -> None:
        """Each stage of a variant, on a copy of its fresh databases."""
        folder = self.folder / "round"
        shutil.copytree(self._template(variant), folder)
        try:
            for stage in variant.stages:
                try:
                    answer = self._run(variant, stage, folder)
                except Failure as error:
                    variant.failed(stage, number, str(error), STAGES[stage])
                    if stage != "hello":
                        return  # what follows builds on it
                    continue
                variant.versions |= answer.pop("versions", {})
                variant.ran_again += [answer.pop("ran again")] if "ran again" in answer else []
                for cell in STAGES[stage]:
                    if cell in answer:
                        variant.cells.setdefault(cell, []).append(answer[cell])
        finally:
            shutil.rmtree(folder)

    def _template(self, variant: Variant) -> Path:
        folder = self.folder / variant.name.replace(" ", "-")
        folder.mkdir(exist_ok=True)
        return folder

    def _run(self, variant: Variant, stage: str, folder: Path) -> dict[str, Any]:
        """One process; what it answered.

        Raises:
            Failure: it cannot be started, failed, or did not end in time.
        """
        script = SCRIPTS / f"with_{variant.peer}.py"
        arguments = [stage, variant.variant, str(variant.n), str(variant.chain), str(folder)]
        said = folder / "answer.json"
        said.unlink(missing_ok=True)
        log = folder / "output.txt"
        print(f"  {variant.name}: {stage}", file=sys.stderr, flush=True)
        with log.open("w") as output:
            began = time.perf_counter()
            try:
                process = subprocess.Popen(
                    [self.pythons[variant.peer], str(script), *arguments],
                    stdout=output,
                    stderr=output,
                    stdin=subprocess.DEVNULL,
                    cwd=folder,
                    env=_environment(folder),
                    start_new_session=True,
                )
            except OSError as error:
                raise Failure(f"{self.pythons[variant.peer]}: {error.strerror}") from None
            try:
                code = process.wait(self.limit)
            except BaseException as error:
                os.killpg(process.pid, signal.SIGKILL)  # a server that it started, too
                process.wait()
                if isinstance(error, subprocess.TimeoutExpired):
                    raise Failure(f"did not end within {self.limit:g} s, and was ended") from None
                raise
            took = time.perf_counter() - began
        answer: dict[str, Any] = json.loads(said.read_text()) if said.exists() else {}
        if stage == "stop" and code == -signal.SIGKILL:
            return {}
        if stage == "stop" and code == 0:
            raise Failure("was to be killed, and ended by itself")
        if code != 0 or not said.exists() or "error" in answer:
            raise Failure(answer.get("error") or _last_line(log) or f"exit code {code}")
        return answer | ({"hello": {"wall": took}} if stage == "hello" else {})


class Failure(Exception):
    """A peer did not do its work."""


def _environment(folder: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not FOREIGN.match(name)}
    return kept | {
        "DO_NOT_TRACK": "1",
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_LOGGING_LEVEL": "WARNING",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        # Its own 20 s are too few for a fresh home on a busy machine.
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    }


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    return next((line[:500] for line in reversed(lines) if line), "")


def run(chosen: list[Variant], bench: Bench, rounds: int) -> list[list[float]]:
    """Measure all; the load of the machine (1, 5, 15 minutes) before each round and at the end."""
    for variant in chosen:
        bench.first(variant)
    load = []
    for number in range(1, rounds + 1):
        load.append(list(os.getloadavg()))
        print(f"round {number} of {rounds}", file=sys.stderr, flush=True)
        for variant in chosen:
            if not variant.dead:
                bench.round(variant, number)
    return [*load, list(os.getloadavg())]


def plot(document: dict[str, Any], path: Path) -> None:
    """A panel for each thing that is measured: medians, and from where to where samples go."""
    try:
        import matplotlib
    except ImportError:
        print("the plot needs matplotlib: pip install 'asyncflow[bench]'", file=sys.stderr)
        return
    matplotlib.use("Agg")
    from statistics import median

    from matplotlib import pyplot as plt

    colours = {"asyncio": "#555555", "asyncflow": "#2e86ab", "dbos": "#d35400"}
    shown = document["variants"][::-1]
    figure, panels = plt.subplots(1, len(CELLS), figsize=(15, 0.45 * len(shown) + 1.8), sharey=True)
    tasks = [s for v in shown for c in CELLS if c != "hello" for s in per_task(v, c)]
    for axes, (cell, title) in zip(panels, CELLS.items(), strict=True):
        axes.set_xscale("log")
        for place, variant in enumerate(shown):
            samples = per_task(variant, cell)
            if not samples:
                failed = any(cell in error["cells"] for error in variant["errors"])
                note = "failed" if failed else "-"
                axes.text(0.03, place, note, transform=axes.get_yaxis_transform(), va="center")
                continue
            value = median(samples)
            reach = [[value - min(samples)], [max(samples) - value]]
            colour = colours.get(variant["peer"], "#8e44ad")
            axes.errorbar(value, place, xerr=reach, fmt="o", capsize=3, color=colour)
            within = body_apart(variant, cell)
            if within is not None:
                axes.plot(within, place, "o", mfc="none", color=colour)
            axes.annotate(
                duration(value),
                (value, place),
                xytext=(0, 7),
                textcoords="offset points",
                ha="center",
                fontsize=8,
            )
        # The same scale for all that is counted per task, so that panels can be compared.
        if cell != "hello" and tasks:
            axes.set_xlim(min(tasks) / 3, max(tasks) * 3)
        else:
            axes.margins(x=0.2)
        axes.set_ylim(-0.6, len(shown) - 0.3)
        axes.xaxis.set_major_formatter(lambda seconds, _: round_duration(seconds))
        axes.set_title(title, fontsize=10)
        axes.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(range(len(shown)), [f"{v['name']} ({v['n']:,})" for v in shown])
    figure.suptitle(
        f"{document['machine']['date']}: median of {document['settings']['rounds']} rounds,"
        " lines from the least to the most; hollow: in the body of the flow alone; tasks of the"
        " fan-out in brackets; log scale, less is better",
        fontsize=9,
    )
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def _size(text: str) -> tuple[str, int]:
    name, _, number = text.partition("=")
    if name not in ("asyncio", "asyncflow", "dbos", "prefect") or not number.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}: give PEER=NUMBER, such as dbos=500")
    return name, max(1, int(number))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("--dbos", metavar="PYTHON", help="of an environment with dbos")
    parser.add_argument("--prefect", metavar="PYTHON", help="of an environment with prefect")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--limit", type=float, default=300, metavar="SECONDS", help="for each process (300)"
    )
    parser.add_argument(
        "--n", action="append", type=_size, default=[], metavar="PEER=N", help="tasks of a peer"
    )
    parser.add_argument("--json", type=Path, help="write all samples here")
    parser.add_argument("--plot", type=Path, help="write a picture (PNG) here")
    options = parser.parse_args(arguments)
    pythons = {"asyncio": sys.executable, "asyncflow": sys.executable}
    pythons |= {p: v for p in ("dbos", "prefect") if (v := getattr(options, p)) is not None}
    every = variants(dict(options.n))
    chosen = [variant for variant in every if variant.peer in pythons]
    absent = dict.fromkeys(v.peer for v in every if v.peer not in pythons)
    with tempfile.TemporaryDirectory() as folder:
        load = run(chosen, Bench(pythons, options.limit, Path(folder)), options.rounds)
    document: Document = {
        "kind": "peers",
        "machine": machine(),
        "settings": {"rounds": options.rounds, "concurrency": 100, "limit s": options.limit},
        "load": load,
        "variants": [variant.plain() for variant in chosen],
        "not measured": {peer: f"give --{peer} PYTHON" for peer in absent},
    }
    print(machine_line(document["machine"]))
    print(markdown_of(document))
    if options.json:
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    if options.plot:
        plot(document, options.plot)
    return 1 if any(variant.errors for variant in chosen) else 0


if __name__ == "__main__":
    sys.exit(main())
