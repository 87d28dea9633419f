"""What the command line tells of artifacts and variables."""

from __future__ import annotations

import asyncio
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from asyncflow import (
    Engine,
    create_image_artifact,
    create_link_artifact,
    create_markdown_artifact,
    create_table_artifact,
    flow,
    set_progress,
    task,
)
from asyncflow.cli.commands import cli
from asyncflow.cli.output import amount
from asyncflow.cli.progress import Progress

DATABASES = Path(__file__).parents[1] / "contract" / "databases"
PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 20


def run(*args: str) -> Result:
    result = CliRunner().invoke(cli, args)
    assert "Traceback" not in result.output
    return result


@task
async def shows() -> None:
    create_table_artifact([{"city": "Oslo", "degrees": 4}] * 60, key="weather", description="All.")
    create_table_artifact([[1, None], [True]])
    set_progress(3, 10, message="three")


@flow
async def main() -> None:
    create_markdown_artifact("# Hello\n\x1b[31mred")
    await shows()
    create_link_artifact("https://example.org", "there")
    create_image_artifact(PNG)
    create_image_artifact("https://example.org/x.png")


@pytest.fixture
async def filled(path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("ASYNCFLOW_DATABASE", str(path))
    async with Engine(path) as engine:
        handle = await engine.submit(main)
        await handle
    return handle.id


def test_what_a_run_shows_is_printed(filled: str) -> None:
    text = run("runs", "artifacts", "last").output
    for part in (
        "markdown\n  # Hello\n  \\x1b[31mred\n",
        f"table  weather  of {filled}-1  All.\n  city  degrees\n  Oslo  4\n",
        "(60 rows, of which 60 are kept: --json)",
        f"table  of {filled}-1\n  1\n  True\n",
        f"progress  of {filled}-1  3/10 (30 %)  three\n",
        "link\n  there\n  https://example.org\n",
        "image\n  image/png, 28 bytes\n",
        "image\n  https://example.org/x.png\n",
    ):
        assert part in text
    told = json.loads(run("runs", "artifacts", filled, "--json").stdout)
    assert [one["kind"] for one in told] == [
        "markdown", "table", "table", "progress", "link", "image", "image",
    ]  # fmt: skip
    assert told[1]["data"]["rows"][0] == ["Oslo", 4]
    assert told[1]["task_run_id"] == f"{filled}-1"
    assert run("runs", "artifacts", "none-such").exit_code == 2


def test_a_run_that_is_shown_names_what_it_shows_and_how_far_it_is(filled: str) -> None:
    text = run("runs", "show", "last").output
    assert "shows\n  markdown\n" in text
    assert f"  table  weather  of {filled}-1  All.\n" in text
    assert "3/10 (30 %)  three" in text
    told = json.loads(run("runs", "show", "last", "--json").stdout)["artifacts"]
    assert [("data" in one) for one in told] == [one["kind"] == "progress" for one in told]
    assert told[3]["data"] == {"done": 3, "total": 10, "message": "three"}


async def test_a_run_that_shows_nothing_says_so(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @flow
    async def nothing() -> None: ...

    async with Engine(path) as engine:
        await engine.run(nothing)
    monkeypatch.setenv("ASYNCFLOW_DATABASE", str(path))
    # The command has a loop of its own.
    assert "it shows nothing" in (await asyncio.to_thread(run, "runs", "artifacts", "last")).output
    assert "shows" not in (await asyncio.to_thread(run, "runs", "show", "last")).output


async def test_what_is_to_come_is_told_while_it_runs(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    @task
    async def counts(progress: Any) -> None:
        set_progress(1, 4, message="one")
        set_progress(7, key="pages")
        set_progress(5, 5, key="over")
        seen.extend(progress._told())

    monkeypatch.setattr("sys.stderr", io.StringIO())
    async with Engine(path) as engine:
        progress = Progress(engine, quiet=True)

        @flow
        async def tells() -> None:
            await counts(progress)

        await engine.run(tells)
        assert seen == ["  counts-1  1/4 (25 %)  one", "  pages  7"]
        assert progress._told() == []


@pytest.mark.parametrize(
    ("done", "total", "text"),
    [
        (3, None, "3"), (0, 0, "0"), (1, 3, "1/3 (33 %)"),
        (1234567.0, 2e6, "1,234,567/2,000,000 (62 %)"),
        (0.125, 0.5, "0.125/0.5 (25 %)"), (1e200, None, "1e+200"),
    ],
)  # fmt: skip
def test_amounts(done: float, total: float | None, text: str) -> None:
    assert amount(done, total) == text


def test_variables_by_the_command_line(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASYNCFLOW_DATABASE", str(path))
    assert run("variables", "ls").exit_code == 2, "there is no database"
    assert run("variables", "set", "rate", "7").output == "set rate to 7\n"
    assert run("variables", "set", "text", "so \x1b[1m so").exit_code == 0
    assert run("variables", "set", "seven", '"7"').exit_code == 0
    assert json.loads(run("variables", "set", "hosts", '["a"]', "--json").stdout) == {
        "name": "hosts",
        "value": ["a"],
    }
    assert run("variables", "get", "rate").output == "7\n"
    assert run("variables", "get", "text").output == "so \\x1b[1m so\n"
    assert json.loads(run("variables", "get", "seven", "--json").stdout)["value"] == "7"
    listed = json.loads(run("variables", "ls", "--json").stdout)
    assert [one["name"] for one in listed] == ["hosts", "rate", "seven", "text"]
    assert '["a"]' in run("variables", "ls").output
    assert run("variables", "delete", "rate").output == "deleted rate\n"
    for wrong in (
        ("get", "rate"),
        ("delete", "rate"),
        ("set", "Two Words", "1"),
        ("set", "x", "NaN"),
    ):
        done = run("variables", *wrong)
        assert done.exit_code == 2, wrong
    assert "no variables yet" not in run("variables", "ls").output


def test_a_database_of_a_former_schema_is_named_by_those_who_only_read(path: Path) -> None:
    shutil.copy(DATABASES / "schema-3.db", path)
    done = run("variables", "ls", "--db", str(path))
    assert done.exit_code == 2
    assert "asyncflow db migrate" in done.output
    assert run("db", "migrate", "--db", str(path)).exit_code == 0
    assert "no variables yet" in run("variables", "ls", "--db", str(path)).output
