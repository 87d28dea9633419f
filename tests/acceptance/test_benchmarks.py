"""The benchmarks run, say plainly what failed, and documents quote their newest results."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import __main__ as promises
from benchmarks import peers, report, store_write
from benchmarks.cases import CASES, Sizes

TINY = Sizes(rounds=1, fan=50, chain=20, resume=100, many=2_000)
NO_PYTHON = "/no/such/python"
PLOTS = importlib.util.find_spec("matplotlib") is not None


@pytest.mark.parametrize("name", list(CASES))
def test_a_case_measures_something(name: str) -> None:
    result = asyncio.run(CASES[name](TINY))  # type: ignore[arg-type] # a coroutine function
    assert result.value > 0 or name == "released"
    assert result.samples
    assert result.verdict in ("aim reached", "met", "MISSED")


def test_the_benchmark_of_promises_prints_and_writes_what_it_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Sizes, "quick", lambda: TINY)
    file = tmp_path / "promises.json"
    promises.main(["--quick", "--loop", "stock", "--only", "handover", "--json", str(file)])
    assert "hand-over of a slot" in capsys.readouterr().out
    (found,) = json.loads(file.read_text())["results"]["stock"]
    assert found["name"] == "hand-over of a slot"
    promises.main(["--markdown", str(file)])
    table = capsys.readouterr().out
    assert re.search(r"\| hand-over of a slot +\| ms +\| +[\d.]+ \|", table)
    assert "Python" in table


def test_the_benchmark_of_commits_measures_every_way_to_write(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "commits.json"
    arguments = ["--rounds", "1", "--commits", "2", "--folder", str(tmp_path)]
    assert store_write.main([*arguments, "--json", str(file)]) == 0
    found = json.loads(file.read_text())["results"]
    ways = 2 * len(store_write.places())
    assert len(found) == ways * len(store_write.ROWS)
    assert all(one["us a commit"][0] > 0 for one in found)
    assert len(re.findall(r"^\| (?:NORMAL|FULL) ", capsys.readouterr().out, re.M)) == ways


@pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2,
    reason="threads cannot be pinned to two cores here",
)
def test_the_benchmark_of_commits_leaves_the_cores_as_they_were(tmp_path: Path) -> None:
    before = os.sched_getaffinity(0)
    pinned = {cell.cores for cell in store_write.places()}
    assert len(pinned) == 3  # none, one core, two cores
    asyncio.run(store_write.measure(tmp_path, 1, 1))
    assert os.sched_getaffinity(0) == before


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few processes: asyncio, asyncflow in one durability, and one peer."""
    every = peers.variants
    chosen = {"asyncio", "asyncflow, strict", "DBOS"}
    monkeypatch.setattr(peers, "variants", lambda n: [v for v in every(n) if v.name in chosen])


def measured(tmp_path: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    """The exit code of the benchmark of peers, and the variants that it wrote, by name."""
    file = tmp_path / "peers.json"
    tiny = ["--rounds", "1", "--n", "asyncio=20", "--n", "asyncflow=20", "--n", "dbos=20"]
    code = peers.main([*tiny, "--json", str(file), *arguments])
    document = json.loads(file.read_text())
    return code, {v["name"]: v for v in document["variants"]} | {"document": document}


@pytest.mark.usefixtures("small")
def test_peers_that_are_not_given_are_named_and_the_others_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found = measured(tmp_path)
    assert code == 0
    ours = found["asyncflow, strict"]
    assert {cell: len(samples) for cell, samples in ours["cells"].items()} == {
        "hello": 1, "fan": 1, "chain": 1, "resume": 1,
    }  # fmt: skip
    assert ours["ran again"] == [0]
    assert "asyncflow" in ours["versions"]
    assert set(found["asyncio"]["cells"]) == {"hello", "fan", "chain"}
    assert found["document"]["not measured"] == {"dbos": "give --dbos PYTHON"}
    assert "Not measured: dbos (give --dbos PYTHON)." in capsys.readouterr().out


@pytest.mark.usefixtures("small")
def test_a_peer_that_cannot_be_started_is_said_plainly_and_has_no_figure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found = measured(tmp_path, "--dbos", NO_PYTHON)
    assert code == 1
    assert found["DBOS"]["cells"] == {}
    said = capsys.readouterr().out
    assert f"DBOS failed in first hello, round 0: {NO_PYTHON}: No such file or directory." in said
    assert re.search(
        r"^\| DBOS .*\| +failed \| +failed \| +failed \| +failed \| +- \|$", said, re.M
    )


#: A peer that does what a test says at one stage, and nothing at the others.
SCRIPT = """
import sys, threading
from common import check, main
def fine(work): return {{"fan": {{"wall": 1.0}}, "chain": {{"wall": 1.0}}}}
def odd(work): {odd}
stages = dict.fromkeys(("hello", "measure", "stop", "resume"), fine) | {{"{stage}": odd}}
main([], **stages)
"""


def pretend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, odd: str) -> None:
    scripts = shutil.copytree(peers.SCRIPTS, tmp_path / "scripts")
    (scripts / "with_dbos.py").write_text(SCRIPT.format(stage=stage, odd=odd))
    monkeypatch.setattr(peers, "SCRIPTS", scripts)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("stage", "odd", "error"),
    [
        ("measure", "raise KeyError('x')", "measure, round 1: KeyError: 'x'"),
        ("measure", "check(1, 2)", "measure, round 1: ValueError: the result is 1 and should be 2"),
        ("stop", "return {}", "stop, round 1: was to be killed, and ended by itself"),
    ],
    ids=["raises", "wrong result", "was not killed"],
)
def test_a_stage_that_fails_has_no_figure(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    stage: str,
    odd: str,
    error: str,
) -> None:
    pretend(tmp_path, monkeypatch, stage, odd)
    code, found = measured(tmp_path, "--dbos", sys.executable)
    assert code == 1
    assert f"DBOS failed in {error}" in capsys.readouterr().out
    lost = {"measure": {"fan", "chain", "resume"}, "stop": {"resume"}}[stage]
    assert not lost & set(found["DBOS"]["cells"])


@pytest.mark.usefixtures("small")
def test_a_peer_that_does_not_end_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend(tmp_path, monkeypatch, "hello", "threading.Event().wait()")
    every = peers.variants
    monkeypatch.setattr(peers, "variants", lambda n: [v for v in every(n) if v.peer == "dbos"])
    code, found = measured(tmp_path, "--dbos", sys.executable, "--limit", "0.5")
    assert code == 1
    assert "did not end within 0.5 s, and was ended" in capsys.readouterr().out
    assert found["DBOS"]["cells"] == {}


@pytest.mark.skipif(not PLOTS, reason="pictures need matplotlib, of the extra 'bench'")
@pytest.mark.parametrize("kind", ["peers"])
def test_the_newest_result_of_peers_can_be_drawn(kind: str, tmp_path: Path) -> None:
    document = json.loads(report.newest(kind).read_text())
    peers.plot(document, tmp_path / "peers.png")
    assert (tmp_path / "peers.png").read_bytes().startswith(b"\x89PNG")


def test_the_newest_result_is_that_of_the_latest_date(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    with pytest.raises(FileNotFoundError, match="measure first"):
        report.newest("promises")
    for name in ("2026-11-24.json", "2027-01-02.json", "2026-12-31.json", "peers-2028-01-01.json"):
        (tmp_path / name).touch()
    assert report.newest("promises").name == "2027-01-02.json"
    assert report.newest("peers").name == "peers-2028-01-01.json"


@pytest.mark.parametrize("file", report.DOCUMENTS, ids=lambda file: file.name)
def test_a_document_quotes_the_newest_results_word_for_word(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pattern = r"<!-- measured: (\w+) -->\n\n(.*?)\n\n<!-- /measured -->"
    quotes = re.findall(pattern, file.read_text(), re.S)
    assert {kind for kind, _ in quotes} >= {"promises", "peers"}
    for kind, quote in quotes:
        promises.main(["--markdown", kind])
        assert quote == capsys.readouterr().out.rstrip("\n"), "run: python -m benchmarks --update"


@pytest.mark.parametrize("file", report.DOCUMENTS, ids=lambda file: file.name)
def test_a_document_shows_the_pictures_of_the_newest_results(file: Path) -> None:
    for picture in re.findall(r"results/([\w-]+)\.png", file.read_text()):
        kind = "peers" if picture.startswith("peers") else "promises"
        assert picture == report.newest(kind).stem, "run: python -m benchmarks --update"
        assert (report.RESULTS / f"{picture}.png").exists()


def test_updating_a_document_puts_the_newest_in_and_leaves_the_rest(tmp_path: Path) -> None:
    file = tmp_path / "page.md"
    file.write_text(
        "before\n\n<!-- measured: peers -->\nold\n<!-- /measured -->\nafter"
        " ![](results/peers-2020-01-01.png) ![](results/2020-01-01.png)\n"
    )
    assert report.update(file)
    table = report.markdown(report.newest("peers"))
    pictures = [f"![](results/{report.newest(kind).stem}.png)" for kind in ("peers", "promises")]
    assert file.read_text() == (
        f"before\n\n<!-- measured: peers -->\n\n{table}\n\n<!-- /measured -->\nafter"
        f" {' '.join(pictures)}\n"
    )
    assert not report.update(file)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 us"),
        (6.321e-6, "6.32 us"),
        (99.96e-6, "100 us"),
        (999.6e-6, "1.00 ms"),
        (0.01234, "12.3 ms"),
        (1.5, "1.50 s"),
        (12345.0, "12,300 s"),
    ],
)
def test_a_time_has_three_figures_and_a_unit(seconds: float, text: str) -> None:
    assert report.duration(seconds) == text
