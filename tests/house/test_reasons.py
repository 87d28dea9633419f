"""Whatever is left out, or let pass, says why beside it."""

from __future__ import annotations

import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("asyncflow", "benchmarks", "examples", "tests")
FILES = sorted(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py"))
#: What tells a checker to let something pass; the reason comes after it, or after the last of them.
_PASS = re.compile(
    r"(?:type|pyright): ignore(?:\[[\w ,-]*\])?"
    r"|noqa(?:: [A-Z]+\d+(?:, ?[A-Z]+\d+)*)?|pragma: no cover"
)
#: What leaves a test out without saying why, at a glance.
_SKIP = re.compile(
    r"pytest\.(?:skip\(\)|importorskip\(\s*\"[\w.]+\"\s*\)|mark\.(?:skip|xfail)\b(?!\())"
)
#: What should have been done; a method of whoever extends a class is an abstract one.
_LATER = re.compile(r"raise NotImplementedError")


def _without_reason(file: Path) -> Iterator[str]:
    with tokenize.open(file) as source:
        for token in tokenize.generate_tokens(source.readline):
            if token.type == tokenize.COMMENT and _PASS.search(token.string):
                reason = _PASS.sub("", token.string).strip(" #-")
                if len(reason) < 4:
                    yield f"{file.relative_to(ROOT)}:{token.start[0]}: {token.string}"


def test_what_a_checker_lets_pass_has_its_reason_beside_it() -> None:
    assert [line for file in FILES for line in _without_reason(file)] == []


@pytest.mark.parametrize("pattern", [_SKIP, _LATER], ids=["left out", "left for later"])
def test_nothing_is_left(pattern: re.Pattern[str]) -> None:
    found = [
        f"{file.relative_to(ROOT)}: {match[0]}"
        for file in FILES
        if file != Path(__file__)
        for match in pattern.finditer(file.read_text())
    ]
    assert found == []
