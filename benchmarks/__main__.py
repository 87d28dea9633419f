"""``python -m benchmarks``: measures every promise, prints a table, writes JSON and a plot."""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.cases import CASES, LOOPLESS, Result, Sizes
from benchmarks.report import DOCUMENTS, KINDS, machine, markdown, newest, update


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller sizes, for a first look")
    parser.add_argument("--only", action="append", choices=list(CASES), metavar="NAME")
    parser.add_argument("--loop", choices=["stock", "uvloop", "both"], default="both")
    parser.add_argument("--json", type=Path, help="write all samples here")
    parser.add_argument("--plot", type=Path, help="write a picture (PNG) here")
    parser.add_argument("--list", action="store_true", help="print the names of the cases")
    parser.add_argument(
        "--markdown",
        nargs="?",
        const="promises",
        metavar="FILE",
        help=f"print the table of a result file, or of the newest of {', '.join(KINDS)}",
    )
    parser.add_argument(
        "--update", action="store_true", help="put the newest tables into the documents"
    )
    parser.add_argument("--raw", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.list:
        print("\n".join(CASES))
        return 0
    if options.markdown:
        kind = options.markdown
        print(markdown(newest(kind) if kind in KINDS else Path(kind)))
        return 0
    if options.update:
        for file in DOCUMENTS:
            print(f"{file.name}: {'updated' if update(file) else 'as it was'}")
        return 0
    names = options.only or list(CASES)
    if options.loop != "both":
        found = _measure(names, options.loop, Sizes.quick() if options.quick else Sizes())
        if options.raw:
            print(json.dumps([asdict(r) for r in found]))
            return 0
        results = {options.loop: found}
    else:
        results = {loop: _in_a_child(names, loop, options.quick) for loop in ("stock", "uvloop")}
    _print(results)
    if options.json:
        document = {"machine": machine(), "results": _plain(results)}
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    if options.plot:
        _plot(results, options.plot)
    missed = [r for found in results.values() for r in found if r.verdict == "MISSED"]
    return 1 if missed else 0


def _measure(names: list[str], loop: str, sizes: Sizes) -> list[Result]:
    run: Any
    if loop == "uvloop":
        import uvloop

        run = uvloop.run
        names = [n for n in names if n not in LOOPLESS]
    else:
        run = asyncio.run
    found = []
    for name in names:
        print(f"{loop}: {name}", file=sys.stderr, flush=True)
        found.append(run(CASES[name](sizes)))
    return found


def _in_a_child(names: list[str], loop: str, quick: bool) -> list[Result]:
    """Each loop in a process of its own, so that both begin alike."""
    args = [sys.executable, "-m", "benchmarks", "--loop", loop, "--raw"]
    args += [f"--only={name}" for name in names] + (["--quick"] if quick else [])
    out = subprocess.run(args, check=True, stdout=subprocess.PIPE, text=True).stdout
    return [Result(**one) for one in json.loads(out)]


def _print(results: dict[str, list[Result]]) -> None:
    print(f"{'':40} {'loop':7} {'measured':>10} {'must':>7} {'aim':>6}  {'':12}")
    for loop, found in results.items():
        for r in found:
            measured = f"{r.value:,.2f}"
            print(
                f"{r.name:40} {loop:7} {measured:>10} {r.must:>7g} {r.aim:>6g}"
                f"  {r.unit:10} {r.verdict}"
            )


def _plain(results: dict[str, list[Result]]) -> dict[str, Any]:
    return {
        loop: [{**asdict(r), "verdict": r.verdict} for r in found]
        for loop, found in results.items()
    }


def _plot(results: dict[str, list[Result]], path: Path) -> None:
    try:
        import matplotlib
    except ImportError:
        print("the plot needs matplotlib: pip install 'asyncflow[bench]'", file=sys.stderr)
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = [(f"{r.name} ({loop})", r) for loop, found in results.items() for r in found][::-1]
    figure, axes = plt.subplots(figsize=(9, 0.32 * len(rows) + 1.2))
    shares = [r.value / r.must for _, r in rows]
    colours = ["#c0392b" if s > 1 else "#2e86ab" for s in shares]
    axes.barh([name for name, _ in rows], shares, color=colours)
    aims = [r.aim / r.must for _, r in rows]
    axes.scatter(aims, range(len(rows)), marker="|", s=120, color="black", label="aim")
    axes.axvline(1, color="black", linewidth=1, label="must")
    axes.set_xlabel("measured, as a share of what it must be at most")
    axes.legend(loc="lower right")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    sys.exit(main())
