"""The files of the dashboard: what they may not hold, without a browser."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import asyncflow

STATIC = Path(asyncflow.__file__).parent / "server" / "static"
FILES = sorted(file for file in STATIC.rglob("*") if file.is_file())
MODULES = [file for file in FILES if file.suffix == ".js"]
#: Ways to make markup or code of a text, and to reach what the policy forbids.
FORBIDDEN = re.compile(
    r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|createContextualFragment"
    r"|\beval\(|new Function|setAttribute\(\"style\"|javascript:|\.srcdoc|postMessage"
)
#: Addresses that are names and are never asked.
NAMES = {"http://www.w3.org/2000/svg"}


def test_the_files_are_there() -> None:
    assert {"index.html", "app.js", "style.css"} <= {file.name for file in FILES}
    assert {file.suffix for file in FILES} == {".html", ".js", ".css"}
    assert sum(file.stat().st_size for file in FILES) < 250 * 1024


@pytest.mark.parametrize("file", MODULES, ids=lambda file: file.relative_to(STATIC).as_posix())
def test_a_module_makes_no_markup_of_texts(file: Path) -> None:
    assert FORBIDDEN.findall(file.read_text()) == []


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(STATIC).as_posix())
def test_nothing_is_loaded_from_elsewhere(file: Path) -> None:
    text = file.read_text()
    assert set(re.findall(r"https?://[\w./-]+", text)) <= NAMES
    assert not re.search(r"(?:src|href)=\"/|url\(|@import", text), "all addresses are relative"


@pytest.mark.parametrize("file", MODULES, ids=lambda file: file.relative_to(STATIC).as_posix())
def test_what_a_module_imports_is_there_and_is_used(file: Path) -> None:
    text = file.read_text()
    for names, path in re.findall(
        r"^import \{([^}]*)\} from \"(\./[^\"]+|\.\./[^\"]+)\";", text, re.M
    ):
        source = (file.parent / path).resolve().read_text()
        for name in (one.strip() for one in names.split(",")):
            if not name:
                continue
            assert re.search(rf"^export (?:async )?(?:function|const|class) {name}\b", source, re.M)
            assert len(re.findall(rf"\b{name}\b", text)) > 1, f"{name} is imported for nothing"


def test_the_page_has_no_code_of_its_own() -> None:
    text = (STATIC / "index.html").read_text()
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=", text)
