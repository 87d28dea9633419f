"""The command line, as people and scripts use it."""

from __future__ import annotations

import json
import shlex
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


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("runs ls --db FOLDER", "is a folder: give the path of a database file"),
        ("runs watch last --db FOLDER", "is a folder"),
        ("schedules ls --db FOLDER", "is a folder"),
        ("runs logs last --level 99999999999999999999", "use DEBUG, INFO"),
        ("runs logs last --level ²", "use DEBUG, INFO"),
        ("limits set x inf", "give at most"),
        ("limits set x 1e300", "give at most"),
        ("limits set x 1 --period 1 --burst 99999999999999999999", "give at most"),
        ("events ls --since 0001-01-01T00:00+14:00", "is no date"),
        ("events ls --since 9999-12-31T23:59-14:00", "is no date"),
        ("deployments backfill x --start 0001-01-01T00:00+14:00 --end 2020-01-01", "is no date"),
        ("events send ''", "give it a name"),
        ("serve cli_flows.py:good --tz Europe/Berlin", "is of cron and rrule: say when"),
        ("deployments ticks x", "list what is there with `asyncflow deployments ls`"),
        ("deployments pause x", "`asyncflow deployments ls`"),
        ("deployments delete x", "`asyncflow deployments ls`"),
        ("deployments run x", "`asyncflow deployments ls`"),
        ("automations enable x", "`asyncflow automations ls`"),
        ("automations delete x", "`asyncflow automations ls`"),
        ("automations test x", "`asyncflow automations ls`"),
        ("server start --port 0 --token täken-täken-täken", "the token: give letters"),
        ("server start --port 0 --read-token short", "--read-token: give at least 16"),
        (
            "server start --port 0 --token 0123456789abcdef --read-token 0123456789abcdef",
            "the two are equal",
        ),
        (
            "server start --port 0 --host no.invalid --host-name x --token 0123456789abcdef",
            "another port or host",
        ),
    ],
)
def test_what_makes_no_sense_is_one_sentence(here: Path, command: str, said: str) -> None:
    run("run", "cli_flows.py:good")
    result = run(*shlex.split(command.replace("FOLDER", str(here))))
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    assert said in line


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


def test_the_ticks_of_a_schedule_are_previewed_with_what_clocks_do_to_them() -> None:
    spring = ["--tz", "Europe/Berlin", "--from", "2026-03-29", "-n", "2"]
    lines = run("schedules", "preview", "30 2 * * *", *spring).output.splitlines()
    assert lines[0] == "At 02:30 every day (Europe/Berlin)"
    assert lines[2] == (
        "Sun  2026-03-29 03:00:00+02:00  2026-03-29 01:00:00  02:30 does not exist: moved to the"
        " next instant; clocks changed from +01:00 to +02:00"
    )
    assert lines[3] == "Mon  2026-03-30 02:30:00+02:00  2026-03-30 00:30:00"

    rule = ["--rrule", "FREQ=DAILY;COUNT=1", "--start", "2026-03-29T09:00"]
    assert "then it is over" in run("schedules", "preview", *rule, *spring).output

    every = ["--interval", "90", "--start", "2026-01-01T00:00:30"]
    shown = json.loads(run("schedules", "preview", *every, *spring, "--json").output)
    assert shown["description"].startswith("every 1 minute 30 seconds, anchored")
    assert shown["ticks"][0] == {
        "at": "2026-03-28T23:00:30+00:00", "local": "2026-03-29T00:00:30+01:00", "note": "",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["0 9 * * x"], "the day of the week 'X' is not understood"),
        ([], "give one schedule"),
        (["@daily", "--interval", "5"], "give one schedule"),
        (["@daily", "--start", "2026-01-01"], "--start is for"),
        (["--interval", "5", "--day-and"], "--day-and is for"),
        (["@daily", "--tz", "Mars/Base"], "no time zone 'Mars/Base'"),
        (["@daily", "--from", "noon"], "--from 'noon' is not understood"),
    ],
)
def test_a_schedule_that_makes_no_sense_is_one_sentence(args: list[str], said: str) -> None:
    result = run("schedules", "preview", *args)
    assert result.exit_code == 2
    assert said in result.output
    assert len(result.output.splitlines()) == 1


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


AWKWARD = """
import logging, sys
from asyncflow import Failed, flow, task

NAME = "odd \\x1b[31m\\nname \\u202e" + "x" * 300

@task(name=NAME)
async def odd_task() -> None:
    logging.getLogger("app").warning("first\\n12:00:00 INFO forged \\x9b31m \\u202e")
    raise ValueError(NAME)

@flow(name=NAME)
async def odd():
    return Failed(NAME, name="Broken\\x1b[5m\\nstate") if await odd_task(return_state=True) else 1

@flow
async def leaves() -> None:
    sys.exit(3)

@flow
async def talks() -> str:
    for n in range(3):
        print("line", n)
    return "done"

@flow
async def takes(text: str = "", maybe: str | None = None, number: int | None = None) -> list:
    return [text, maybe, number]

@flow
async def lone() -> str:
    return "\\ud800"
"""


@pytest.fixture
def awkward(here: Path) -> Path:
    (here / "awkward.py").write_text(AWKWARD)
    return here


def shell(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """A command line in which ``asyncflow`` is the one of this interpreter."""
    alias = f'asyncflow() {{ {sys.executable} -m asyncflow "$@"; }}'
    return subprocess.run(
        ["bash", "-c", f"{alias}\nset -o pipefail\n{command}"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_names_and_logs_cannot_move_the_cursor_nor_forge_a_line(awkward: Path) -> None:
    ran = run("run", "awkward.py:odd")
    assert ran.exit_code == 1
    for args in (
        ["runs", "show", "last"],
        ["runs", "show", "last", "--json"],
        ["runs", "ls"],
        ["runs", "ls", "--json"],
        ["runs", "watch", "last"],
        ["runs", "watch", "last", "--json"],
        ["runs", "logs", "last"],
        ["runs", "logs", "last", "--json"],
    ):
        output = run(*args).output
        assert not set(output) & set("\x1b\x9b\u202e"), args
        lines = output.splitlines()
        assert not [line for line in lines if line.startswith(("name", "12:00:00", "state"))], args
    assert not set(ran.output) & set("\x1b\x9b\u202e")
    assert "\n    12:00:00 INFO forged" in run("runs", "logs", "last").output
    assert max(map(len, run("runs", "show", "last").output.splitlines())) < 600


def test_code_that_leaves_fails_its_run_and_says_so(awkward: Path) -> None:
    result = shell("asyncflow run awkward.py:leaves", awkward)
    assert result.returncode == 1
    assert "its code called sys.exit(3)" in result.stderr
    assert "Traceback" not in result.stderr
    (awkward / "leaving.py").write_text("import sys; sys.exit(5)")
    result = shell("asyncflow run leaving.py:x", awkward)
    assert result.returncode == 2
    assert "it calls sys.exit(5)" in result.stderr


@pytest.mark.parametrize(
    "command",
    [
        "asyncflow run awkward.py:talks 2>&1 | true",
        "asyncflow run awkward.py:talks --json 2>&1 | true",
        "asyncflow run awkward.py:talks 2>&1 | head -1",
        "asyncflow run awkward.py:talks | true",
    ],
)
def test_a_run_ends_though_nobody_reads_what_it_says(awkward: Path, command: str) -> None:
    result = shell(command, awkward)
    assert (result.returncode, result.stderr.count("Error")) == (0, 0)
    (listed,) = json.loads(run("runs", "ls", "--json").stdout)
    assert listed["state"] == "COMPLETED"


@pytest.mark.parametrize("what", ["runs ls", "runs show last", "runs ls --json", "db stats"])
def test_whoever_reads_no_further_ends_a_listing(awkward: Path, what: str) -> None:
    run("run", "awkward.py:talks")
    result = shell(f"asyncflow {what} | true", awkward)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
@pytest.mark.parametrize("what", ["run awkward.py:takes", "runs ls", "db stats", "version"])
def test_output_that_cannot_be_written_is_one_sentence(awkward: Path, what: str) -> None:
    run("run", "awkward.py:talks")
    result = shell(f"asyncflow {what} > /dev/full", awkward)
    assert result.returncode == 1
    assert "asyncflow: No space left on device" in result.stderr
    assert "Traceback" not in result.stderr


def test_what_a_terminal_cannot_show_is_spelled_out(awkward: Path) -> None:
    result = shell("PYTHONIOENCODING=latin-1 asyncflow run awkward.py:lone", awkward)
    assert result.returncode == 0
    assert "\\ud800" in result.stdout
    assert "\\u2713 lone Completed" in result.stderr


def test_a_value_is_taken_as_its_parameter_wants_it(awkward: Path) -> None:
    (awkward / "text.txt").write_text("two\nlines")

    def taken(*params: str) -> list[object]:
        args = [arg for param in params for arg in ("-p", param)]
        result = run("run", "awkward.py:takes", "--json", *args)
        found: list[object] = json.loads(result.stdout)["result"]
        return found

    assert taken("text=5", "maybe=5", "number=5") == ["5", "5", 5]
    assert taken("text=null", "maybe=null", "number=null") == ["null", None, None]
    assert taken("text=@text.txt", "maybe=@@me") == ["two\nlines", "@me", None]
    wrong = run("run", "awkward.py:takes", "--params-file", "absent.json")
    assert wrong.exit_code == 2
    assert "absent.json cannot be read" in wrong.output
    assert "JSON" not in wrong.output
    assert "say where the flow is" in run("run", ":takes").output


def test_a_file_of_a_package_is_imported_as_part_of_it(here: Path) -> None:
    package = here / "cli_package" / "inner"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").write_text("")
    (package / "__init__.py").write_text("")
    (package / "helper.py").write_text("VALUE = 7")
    (package / "flows.py").write_text(
        "from asyncflow import flow\nfrom .helper import VALUE\n\n"
        "@flow\nasync def value() -> int:\n    return VALUE\n"
    )
    result = shell("asyncflow run cli_package/inner/flows.py:value", here)
    assert (result.returncode, result.stdout) == (0, "7\n")


def test_what_a_run_gave_is_shown(here: Path) -> None:
    run("run", "cli_flows.py:good")
    assert 'result: ["x",[0,2]]' in run("runs", "show", "last").output
    told = run("runs", "watch", "last", "--json")
    assert json.loads(told.stdout)["tasks"] == {"work": {"completed": 2}}
    (listed,) = json.loads(run("runs", "ls", "--json").stdout)
    gone = run("runs", "delete", "last", "--yes", "--json")
    assert json.loads(gone.stdout) == {"ids": [listed["id"]], "deleted": 1}


def test_a_run_goes_from_one_database_to_another(here: Path) -> None:
    assert run("run", "cli_flows.py:bad").exit_code == 1
    shown, logged = run("runs", "show", "last"), run("runs", "logs", "last")
    result = run("runs", "export", "last", "--out", "one.gz", "--json")
    told = json.loads(result.stdout)
    assert told["task_runs"] == 6
    assert told["file"] == "one.gz"
    again = run("runs", "export", "last", "--out", "one.gz")
    assert again.exit_code == 2
    assert "one.gz exists" in again.output
    assert run("runs", "export", "last").exit_code == 0
    assert (here / f"{told['id']}.run.gz").exists()

    result = run("runs", "import", "one.gz", "--db", "there.db")
    assert result.exit_code == 0
    assert f"imported run {told['id']} of flow bad (Failed): 6 task runs" in result.output
    assert run("runs", "show", "last", "--db", "there.db").output == shown.output
    assert run("runs", "logs", "last", "--db", "there.db").output == logged.output
    result = run("runs", "import", "one.gz", "--db", "there.db")
    assert result.exit_code == 2
    assert "is in this database already" in result.output
    result = run("runs", "import", "one.gz", "--db", "there.db", "--new-id", "--json")
    assert json.loads(result.stdout)["origin"] == told["id"]
    result = run("runs", "import", "cli_flows.py", "--db", "there.db")
    assert result.exit_code == 2
    assert "is no exported run" in result.output
    result = run("resume", told["id"], "--db", "there.db", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["id"] == told["id"]
    show = json.loads(run("runs", "show", told["id"], "--db", "there.db", "--json").stdout)
    assert [line["state"] for line in show["story"]].count("Failed") == 2


def test_a_fork_takes_other_results(here: Path) -> None:
    assert run("run", "cli_flows.py:bad").exit_code == 1
    (here / "four.json").write_text("4")
    result = run(
        "fork", "last", "--result", "work-4=3", "--result", "work-5=@four.json", "--json", "-q"
    )
    assert result.exit_code == 0
    shown = run("runs", "show", "last")
    assert "2 edited" in shown.output
    assert "with edited results of work-4, work-5" in shown.output
    assert "work-4  ✓ Edited" in run("runs", "show", "last", "--tasks").output
    origin = json.loads(run("runs", "ls", "--json").stdout)[1]["id"]
    told = run("runs", "diff", origin, "last").output
    assert "-> Edited: 3" in told
    for wrong, text in {
        "work-4": "write it as NAME=JSON",
        "work-4=abc": "text is written in quotes",
        "work-4=@nothing.json": "cannot be read",
        "nothing=1": "has no task run 'nothing'",
    }.items():
        result = run("fork", "last", "--result", wrong)
        assert result.exit_code == 2
        assert text in result.output
