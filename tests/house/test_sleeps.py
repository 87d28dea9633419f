"""No test sleeps in the hope that it is long enough: it waits for what it means."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
FILES = sorted(TESTS.rglob("*.py"))
#: Where time passes on purpose, and why. Everyone else waits with `tests/patience.py`.
MAY = {
    "patience.py:until": "it is what all others wait with",
    "patience.py:eventually": "it is what all others wait with, in threads",
    "chaos.py:Chaos.life": "it kills at random moments: that is the trial",
    "shared.py:write": "it paces the load that is measured",
    "shared.py:poll": "it paces the load that is measured",
}
#: Decorators of what an engine runs: there a sleep is work, for which no test has to wait.
_WORK = {"task", "flow"}
#: Decorators and functions that run a test in virtual time, where sleeping takes none.
_VIRTUAL = {"virtually", "testing.run"}

_Def = ast.FunctionDef | ast.AsyncFunctionDef


class _Module:
    """What sleeps in a file, by function."""

    def __init__(self, source: str) -> None:
        self._tree = ast.parse(source)
        #: What names stand for that were imported from the modules that matter.
        self._known: dict[str, str] = {}
        for node in ast.walk(self._tree):
            if isinstance(node, ast.Import):
                for one in node.names:
                    self._known[one.asname or one.name] = one.name
            elif isinstance(node, ast.ImportFrom) and node.module is not None:
                below = {"asyncio": "asyncio.", "time": "time.", "asyncflow.testing": "testing."}
                for one in node.names:
                    self._known[one.asname or one.name] = below.get(node.module, "") + one.name
        self._functions = dict(self._find(self._tree, ""))
        self._kinds = self._kinds_of_all()

    def sleeps(self) -> list[tuple[str, int]]:
        """The function and the line of each sleep for which a test has to wait."""
        return list(self._sleeps(self._tree, "", ""))

    def _sleeps(self, above: ast.AST, name: str, kind: str) -> Iterator[tuple[str, int]]:
        for node in ast.iter_child_nodes(above):
            if isinstance(node, ast.ClassDef):
                yield from self._sleeps(node, f"{name}{node.name}.", kind)
            elif isinstance(node, _Def):
                at = name if name and not name.endswith(".") else name + node.name
                yield from self._sleeps(node, at, self._kind(node, at) or kind)
            else:
                if isinstance(node, ast.Call) and not _is_zero(node):
                    # A thread sleeps in real time whatever its loop does.
                    fine = {"asyncio.sleep": {"work", "virtual"}, "time.sleep": {"work"}}
                    if kind not in fine.get(self._name(node), {kind}):
                        yield name, node.lineno
                yield from self._sleeps(node, name, kind)

    def _find(self, above: ast.AST, name: str) -> Iterator[tuple[str, _Def]]:
        for node in ast.iter_child_nodes(above):
            if isinstance(node, _Def):
                yield name + node.name, node
            elif isinstance(node, ast.ClassDef):
                yield from self._find(node, f"{name}{node.name}.")

    def _kinds_of_all(self) -> dict[str, str]:
        """Of each function; a helper or hook is of the kind of those who name it, if they agree."""
        reads = {name: _reads(node) for name, node in self._functions.items()}
        loose = _reads(self._tree, inside=False)
        kinds = {name: self._own(node) for name, node in self._functions.items()}
        while True:
            before = dict(kinds)
            for name, node in self._functions.items():
                users = {kinds[o] for o, of in reads.items() if o != name and node.name in of}
                if not kinds[name] and users and all(users) and node.name not in loose:
                    kinds[name] = "work" if users == {"work"} else "virtual"
            if kinds == before:
                return kinds

    def _kind(self, node: _Def, name: str) -> str:
        return self._kinds[name] if self._functions.get(name) is node else self._decorated(node)

    def _decorated(self, node: _Def) -> str:
        decorators = {self._name(one) for one in node.decorator_list}
        return "work" if decorators & _WORK else "virtual" if decorators & _VIRTUAL else ""

    def _own(self, node: _Def) -> str:
        calls = {self._name(one) for one in ast.walk(node) if isinstance(one, ast.Call)}
        return self._decorated(node) or ("virtual" if calls & _VIRTUAL else "")

    def _name(self, node: ast.expr) -> str:
        """What is called, or decorates, whatever it was imported as."""
        called = ast.unparse(node.func if isinstance(node, ast.Call) else node)
        first, dot, rest = called.partition(".")
        return self._known.get(first, first) + dot + rest


def _reads(of: ast.AST, inside: bool = True) -> set[str]:
    """The names that are read; those outside of functions only, if asked."""
    found: set[str] = set()
    for node in ast.iter_child_nodes(of):
        if isinstance(node, ast.Name | ast.Attribute):
            found.add(node.id if isinstance(node, ast.Name) else node.attr)
        if inside or not isinstance(node, _Def):
            found |= _reads(node, inside)
    return found


def _is_zero(call: ast.Call) -> bool:
    """It only lets others have their turn."""
    return bool(call.args) and isinstance(call.args[0], ast.Constant) and call.args[0].value == 0


@cache
def _sleeps(file: Path) -> list[tuple[str, str]]:
    name = file.relative_to(TESTS).as_posix()
    return [(f"{name}:{at}", f"{name}:{n} {at}") for at, n in _Module(file.read_text()).sleeps()]


def test_no_test_sleeps() -> None:
    assert [line for file in FILES for name, line in _sleeps(file) if name not in MAY] == []


def test_what_may_sleep_does() -> None:
    assert set(MAY) <= {name for file in FILES for name, _ in _sleeps(file)}


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("async def test(): await asyncio.sleep(0.1)", ["test"]),
        ("from time import sleep as nap\nclass A:\n def test(self): nap(1)", ["A.test"]),
        ("async def test():\n async def main(): await asyncio.sleep(n)\n await main()", ["test"]),
        ("async def test(): await asyncio.sleep(0)", []),
        ("@virtually\nasync def test(): await asyncio.sleep(9)", []),
        ("@virtually\nasync def test(): time.sleep(9)", ["test"]),
        ("def test():\n async def main(): await asyncio.sleep(9)\n testing.run(main())", []),
        ("@task(retries=1)\ndef work(): time.sleep(1)", []),
        ("async def test():\n @flow\n async def hold(): await asyncio.sleep(9)", []),
        ("async def hook(): await asyncio.sleep(9)\n@flow(on_failure=hook)\ndef main(): ...", []),
        ("async def help(): await asyncio.sleep(9)\n@virtually\nasync def test(): help()", []),
        ("async def help(): await asyncio.sleep(9)\nasync def test(): help()", ["help"]),
    ],
)
def test_sleeps_are_seen(source: str, found: list[str]) -> None:
    assert [name for name, _ in _Module(source).sleeps()] == found
