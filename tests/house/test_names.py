"""What the package shows, and what it costs to look at it."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import asyncflow

PACKAGE = Path(asyncflow.__file__).parent
#: Modules that `import asyncflow` must not load: they are for those who use them.
HEAVY = [
    "aiohttp", "aiosmtplib", "aiosqlite", "anyio", "apprise", "asyncio", "click", "cronsim",
    "dateutil", "jinja2", "matplotlib", "opentelemetry", "orjson", "prometheus_client", "pydantic",
    "sqlite3", "uvloop", "zoneinfo",
]  # fmt: skip


@pytest.mark.parametrize("name", asyncflow.__all__)
def test_a_public_name_is_there(name: str) -> None:
    assert getattr(asyncflow, name) is not None


def test_the_names_for_type_checkers_are_those_that_are_loaded() -> None:
    text = (PACKAGE / "__init__.py").read_text()
    told = set(re.findall(r"^    from asyncflow\.?\S* import (\w+) as \w+$", text, re.M))
    assert told | {"__version__", "runtime"} == set(asyncflow.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'nothing'"):
        _ = asyncflow.nothing


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, asyncflow; print(' '.join(sorted(sys.modules)))"
    # What measures coverage loads modules of its own.
    env = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], env=env, capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert [name for name in HEAVY if name in loaded] == []
    ours = {name for name in loaded if name.startswith("asyncflow")}
    assert ours == {"asyncflow", "asyncflow._version"}


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_a_module_says_what_it_is_for_and_can_be_imported(path: Path) -> None:
    name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    if path.name == "__main__.py":
        return
    module = importlib.import_module(name.removesuffix(".__init__"))
    assert module.__doc__ or not path.read_text().strip()


ROOT = PACKAGE.parent
TEXT = {".py", ".md", ".toml", ".sql", ".json", ".yml", ".yaml", ".txt", ".cfg"}
#: Folders of one machine. The names are put together so that this file is not among what it finds.
LOCAL = re.compile(r"(?<![\w.:/-])/(?:" + "|".join(["home", "root", "Users", "work", "tmp"]) + ")/")
UNFINISHED = re.compile(r"\b(?:" + "|".join(["TO" + "DO", "FIX" + "ME", "XX" + "X"]) + r")\b")


@pytest.mark.parametrize("folder", ["asyncflow", "tests", "docs", "examples", "benchmarks", ".ci"])
def test_no_text_names_a_place_on_one_machine_or_is_unfinished(folder: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}"
        for path in sorted((ROOT / folder).rglob("*"))
        if path.is_file() and (path.suffix in TEXT or folder == ".ci")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if LOCAL.search(line) or UNFINISHED.search(line)
    ]
    assert found == []
