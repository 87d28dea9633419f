"""What modules and classes are called in the store, however their file was started."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from asyncflow import ResultUnreadable, naming
from asyncflow.canonical import fingerprint
from asyncflow.codec import decode, encode
from asyncflow.failures import dump, rebuild
from asyncflow.naming import class_name, is_from_file, module_name, modules_called
from asyncflow.registry import load_file

SOURCE = """
from dataclasses import dataclass

@dataclass
class Box:
    n: int

class Odd(Exception):
    pass
"""


@pytest.fixture(autouse=True)
def _as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Modules, paths and names are as they were after each test."""
    monkeypatch.setattr(naming, "_LOADED", {})
    monkeypatch.setattr(naming, "_SCRIPTS", {})
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = dict(sys.modules)
    yield
    for name in set(sys.modules) - set(before):
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", None)):
            del sys.modules[name]
    sys.modules.update(before)


def script(
    monkeypatch: pytest.MonkeyPatch, file: str | None, spec: ModuleSpec | None = None
) -> Any:
    """A module in the place of the one that Python runs."""
    main = ModuleType("__main__")
    if file is not None:
        main.__file__ = file
    main.__spec__ = spec
    exec(SOURCE, main.__dict__)
    monkeypatch.setitem(sys.modules, "__main__", main)
    return main


def put(folder: Path, name: str = "things.py") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / name
    file.write_text(SOURCE)
    return file


@pytest.mark.parametrize(
    ("file", "spec", "name"),
    [
        pytest.param("a/b/flows.py", None, "flows", id="a script"),
        pytest.param("a/b.py", ModuleSpec("a.b", None), "a.b", id="python -m a.b"),
        pytest.param(None, None, "__main__", id="an interactive session"),
    ],
)
def test_the_main_module_is_called_as_if_it_were_imported(
    monkeypatch: pytest.MonkeyPatch, file: str | None, spec: ModuleSpec | None, name: str
) -> None:
    main = script(monkeypatch, file, spec)
    assert module_name("__main__") == name
    assert class_name(main.Box) == f"{name}:Box"
    if name != "__main__":
        assert next(modules_called(name)) is main


def test_another_module_is_called_what_it_is() -> None:
    assert module_name("os.path") == "os.path"
    assert class_name(Path) == f"{Path.__module__}:Path"
    assert not is_from_file("os")


def test_a_file_whose_name_is_taken_is_called_by_that_name_nevertheless(tmp_path: Path) -> None:
    module = load_file(str(put(tmp_path, "json.py")))
    assert module is not None
    assert module is not sys.modules["json"]
    assert is_from_file(module.__name__)
    assert module_name(module.__name__) == "json"
    assert list(modules_called("json")) == [module, sys.modules["json"]]


def test_what_a_script_has_written_is_read_where_its_file_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = put(tmp_path)
    with monkeypatch.context() as patch:
        main = script(patch, str(file))
        written = encode([main.Box(3)])
        identity = fingerprint(main.Box(3))
        failure = dump(main.Odd("x"))
        assert type(decode(written)[0]) is main.Box
    loaded: Any = load_file(str(file))
    assert decode(written) == [loaded.Box(3)]
    assert fingerprint(loaded.Box(3)) == identity
    assert type(rebuild(failure)) is loaded.Odd


def test_what_an_importer_has_written_is_read_by_the_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = put(tmp_path)
    loaded: Any = load_file(str(file))
    written = encode(loaded.Box(3))
    for name in [name for name, module in sys.modules.items() if module is loaded]:
        del sys.modules[name]
    main = script(monkeypatch, str(file))
    assert type(decode(written)) is main.Box


def test_the_name_of_a_file_is_the_same_in_every_process(tmp_path: Path) -> None:
    files = [put(tmp_path / folder) for folder in ("a", "b")]
    names = []
    for _ in range(2):
        modules = [load_file(str(file)) for file in files]
        names.append([module.__name__ for module in modules if module])
        assert modules[0] is not modules[1]
        for name in [n for n, module in sys.modules.items() if module in modules]:
            del sys.modules[name]
    assert names[0] == names[1]
    assert names[0][0] == "things"
    assert names[0][1].startswith("things_")


def test_a_file_is_loaded_once(tmp_path: Path) -> None:
    file = put(tmp_path)
    assert load_file(str(file)) is load_file(f"{tmp_path}/../{tmp_path.name}/things.py")


def test_of_two_files_of_one_name_the_last_is_asked_first_and_the_other_too(
    tmp_path: Path,
) -> None:
    load_file(str(put(tmp_path / "a")))
    other = put(tmp_path / "b")
    other.write_text("class Else: ...")
    load_file(str(other))
    # A class that only one of them has is found.
    assert decode(b'{"$":"dataclass","c":"things:Box","v":{"n":1}}').n == 1


def test_a_module_that_is_not_there_any_more_is_said_so() -> None:
    with pytest.raises(ResultUnreadable, match="'nowhere:Box' of a stored value cannot be found"):
        decode(b'{"$":"dataclass","c":"nowhere:Box","v":{"n":1}}')
