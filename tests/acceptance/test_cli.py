"""The command line, as people and scripts use it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from asyncflow.cli.commands import cli

FLOWS = """
from asyncflow import flow, task, get_run_logger

@task(retries=1)
async def work(x: int) -> int:
    if x == 3:
        raise ValueError("no threes \\x1b[31m")
    return x * 2

@flow(log_prints=True)
async def good(n: int = 2, name: str = "x") -> list:
    print("printed", name)
    get_run_logger().warning("logged")
    return [name, await work.map(range(n))]

@flow
async def bad(password: str = "secret") -> None:
    await work.map(range(6))
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "cli_flows.py").write_text(FLOWS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*args: str) -> Result:
    result = CliRunner().invoke(cli, args)
    assert "Traceback" not in result.output
    return result


def test_run_prints_the_result_and_exits_with_0(here: Path) -> None:
    result = run("run", "cli_flows.py:good", "-p", "n=3", "-p", "name=5")
    assert result.exit_code == 0
    assert "['5', [0, 2, 4]]" in result.output
    assert "Completed in" in result.output


def test_a_failed_run_exits_with_1_and_says_why(here: Path) -> None:
    result = run("run", "cli_flows.py:bad")
    assert result.exit_code == 1
    assert "ValueError: no threes" in result.output
    assert "asyncflow runs show" in result.output


def test_run_as_json_is_one_document(here: Path) -> None:
    result = CliRunner().invoke(cli, ["run", "cli_flows.py:good", "--json"])
    assert json.loads(result.stdout)["result"] == ["x", [0, 2]]


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["cli_flows.py:god"], "did you mean 'good'?"),
        (["cli_flows.py"], "one of good, bad"),
        (["nothing.py:x"], "there is no file"),
        (["no.such.module:x"], "there is no module"),
        (["cli_flows.py:good", "-p", "n"], "NAME=VALUE"),
        (["cli_flows.py:good", "-p", "m=1"], "no parameter 'm'"),
        (["cli_flows.py:good", "-p", "n=x"], "'x' is not accepted"),
        (["cli_flows.py:good", "-p", "n=@no.json"], "cannot be read"),
        (["cli_flows.py:good", "--params-file", "cli_flows.py"], "is not JSON"),
        (["broken.py:x"], "cannot be imported: ZeroDivisionError"),
        (["syntax.py:x"], "line 1"),
        (["cli_flows.py:good", "--db", "/dev/null/x.db"], "cannot be made"),
        (["cli_flows.py:good", "--db", "cli_flows.py"], "is not a database"),
    ],
)
def test_wrong_usage_is_one_sentence_and_exits_with_2(
    here: Path, args: list[str], text: str
) -> None:
    (here / "broken.py").write_text("1 / 0")
    (here / "syntax.py").write_text("def (")
    result = run("run", *args)
    assert result.exit_code == 2, result.output
    assert text in result.output


def test_runs_can_be_listed_shown_and_their_logs_read(here: Path) -> None:
    run("run", "cli_flows.py:good")
    run("run", "cli_flows.py:bad")
    listed = json.loads(run("runs", "ls", "--json").stdout)
    assert [r["flow"] for r in listed] == ["bad", "good"]
    assert "✗ Failed" in run("runs", "ls").output
    assert [
        r["flow"] for r in json.loads(run("runs", "ls", "--json", "--state", "failed").stdout)
    ] == ["bad"]
    shown = run("runs", "show", "last").output
    assert "work × 6" in shown
    assert "attempt 1: ValueError: no threes" in shown
    assert "\\x1b" in shown
    assert "\x1b[31m" not in shown
    tree = json.loads(run("runs", "show", listed[1]["id"], "--json").stdout)
    assert len(tree["task_runs"]) == 2
    assert [s["state"] for s in tree["story"]] == ["Scheduled", "Running", "Completed"]
    logs = run("runs", "logs", listed[1]["id"]).output
    assert "printed x" in logs
    assert "logged" in logs
    assert "printed" not in run("runs", "logs", listed[1]["id"], "--level", "warning").output


def test_a_run_is_resumed_watched_and_deleted(here: Path) -> None:
    run("run", "cli_flows.py:bad")
    (run_,) = json.loads(run("runs", "ls", "--json").stdout)
    assert run("resume", run_["id"]).exit_code == 1
    assert run("runs", "watch", run_["id"]).exit_code == 1
    assert run("runs", "delete", run_["id"]).exit_code == 2
    assert "deleted 1 run" in run("runs", "delete", run_["id"], "--yes").output
    assert json.loads(run("runs", "ls", "--json").stdout) == []
    assert "no run" in run("resume", run_["id"]).output


def test_nothing_to_look_at_is_said(here: Path) -> None:
    for args in (
        ["runs", "ls"],
        ["recover"],
        ["resume", "x"],
        ["cancel", "x"],
        ["runs", "show", "x"],
    ):
        result = run(*args)
        assert result.exit_code == 2
        assert "there is no database" in result.output


def test_the_version_is_printed(here: Path) -> None:
    from asyncflow import __version__

    assert run("version").output == f"asyncflow {__version__}\n"
    assert json.loads(run("version", "--json").output)["version"] == __version__


WAITING = """
import pydantic
from asyncflow import flow, pause_flow_run, task

class Answer(pydantic.BaseModel):
    n: int

@task
async def double(x: int) -> int:
    return 2 * x

@flow
async def asks(a: int = 1) -> int:
    return await double(a) + (await pause_flow_run(wait_for_input=Answer)).n
"""


def test_a_paused_run_is_answered_forked_and_compared(here: Path) -> None:
    (here / "cli_waiting.py").write_text(WAITING)
    code = (
        "import asyncio, sys; sys.path.insert(0, '.')\n"
        "from asyncflow import Engine; from cli_waiting import asks\n"
        "async def main():\n"
        "    async with Engine() as engine:\n"
        "        run = await engine.submit(asks)\n"
        "        while not run.state.is_paused(): await asyncio.sleep(0)\n"
        "asyncio.run(main())"
    )
    subprocess.run([sys.executable, "-c", code], cwd=here, check=True, timeout=60)
    wrong = run("runs", "answer", "last", "-p", "n=many")
    assert wrong.exit_code == 2
    assert "n: Input should be a valid integer" in wrong.output
    assert run("runs", "answer", "last", "-p", "n=5").exit_code == 0
    twice = run("runs", "answer", "last", "--data", '{"n": 6}')
    assert twice.exit_code == 2
    assert "has been answered" in twice.output
    assert "7" in run("recover").output
    forked = run("fork", "last", "-p", "a=10", "--json")
    assert forked.exit_code == 0
    assert json.loads(forked.stdout)["result"] == 25
    new, old = (r["id"] for r in json.loads(run("runs", "ls", "--json").stdout))
    differ = run("runs", "diff", old, new)
    assert differ.exit_code == 1
    assert "parameter a: 1 -> 10" in differ.output
    assert "+ double (10)" in differ.output
    assert run("runs", "diff", old, old).exit_code == 0
    assert run("rerun", "nothing").exit_code == 2
    assert "no run" in run("events", "send", "go", "--run", "nobody").output
