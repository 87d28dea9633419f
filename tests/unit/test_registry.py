"""How a stored run finds its code again."""

from __future__ import annotations

import gc
import json
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from asyncflow import UnknownFlow, flow, naming, registry
from asyncflow.registry import find, flows_of, has_changed, keep_last, load_file, reference

FLOW = """
from asyncflow import flow

@flow(keep_last=3)
async def crawl() -> str:
    return "TAG"
"""


@flow
async def here() -> None: ...


@pytest.fixture(autouse=True)
def _as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(naming, "_LOADED", {})
    # The process may know other flows called so, of whatever was imported before.
    flows = weakref.WeakValueDictionary({(here.key, str(Path(__file__).resolve())): here})
    monkeypatch.setattr(registry, "_FLOWS", flows)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = dict(sys.modules)
    yield
    for name in set(sys.modules) - set(before):
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", None)):
            del sys.modules[name]
    sys.modules.update(before)
    gc.collect()


def put(folder: Path, text: str = FLOW, name: str = "some_flows.py", tag: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / name
    file.write_text(text.replace("TAG", tag))
    return file


def loaded(file: Path) -> Any:
    module: Any = load_file(str(file))
    return module


def unload(module: Any) -> None:
    for name in [name for name, value in sys.modules.items() if value is module]:
        del sys.modules[name]
    module.__dict__.clear()
    gc.collect()


def ref(**changes: Any) -> str:
    return json.dumps({"key": "no:where", "module": "no", "file": None, "source": None} | changes)


def test_a_flow_that_is_there_is_found_by_what_its_runs_store() -> None:
    stored = reference(here)
    assert find(stored, "here") is here
    told = json.loads(stored)
    assert told["qualname"] == "here"
    assert told["file"] == str(Path(__file__).resolve())
    assert not has_changed(stored, here)


def test_a_copy_with_other_options_does_not_stand_for_the_flow() -> None:
    copy = here.with_options(retries=1)
    assert find(reference(copy), "here") is here


def test_a_flow_that_is_not_loaded_is_loaded_from_its_file(tmp_path: Path) -> None:
    module = loaded(put(tmp_path))
    stored = reference(module.crawl)
    unload(module)
    del module
    found = find(stored, "crawl")
    assert found.name == "crawl"
    assert find(stored, "crawl") is found


def test_a_file_that_has_changed_is_found_and_said_to_have(tmp_path: Path) -> None:
    file = put(tmp_path, tag="before")
    module = loaded(file)
    stored = reference(module.crawl)
    unload(module)
    put(tmp_path, tag="after, and longer")
    assert has_changed(stored, find(stored, "crawl"))


def test_files_of_one_name_are_told_apart(tmp_path: Path) -> None:
    flows = [loaded(put(tmp_path / tag, tag=tag)).crawl for tag in "ab"]
    assert flows[0].key == flows[1].key
    for one in flows:
        assert find(reference(one), "crawl") is one


def test_what_another_file_of_the_same_name_declares_does_not_stand_for_a_flow(
    tmp_path: Path,
) -> None:
    lost = put(tmp_path / "a")
    module = loaded(lost)
    stored = reference(module.crawl)
    unload(module)
    other = loaded(put(tmp_path / "b")).crawl
    lost.write_text("x = 1")
    with pytest.raises(UnknownFlow, match="was not found in"):
        find(stored, "crawl")
    lost.unlink()
    # Now it may have been moved.
    assert find(stored, "crawl") is other


def test_a_module_that_moved_is_found_by_its_name() -> None:
    stored = json.loads(reference(here))
    for file in (None, "gone/by.py", sys.executable):
        assert find(json.dumps(stored | {"file": file}), "here") is here


def test_a_flow_that_moved_to_another_module_is_found_by_its_name_if_there_is_one_of_it() -> None:
    assert find(ref(), "here") is here


def test_a_module_that_is_imported_by_name_is_imported(tmp_path: Path) -> None:
    put(tmp_path / "a_package", name="some_flows.py")
    (tmp_path / "a_package" / "__init__.py").touch()
    sys.path.insert(0, str(tmp_path))
    found = find(ref(key="a_package.some_flows:crawl", module="a_package.some_flows"), "crawl")
    assert found.fn.__module__ == "a_package.some_flows"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        pytest.param("import no_such_module", "no_such_module", id="an import that fails"),
        pytest.param("raise SystemExit(3)", "it ends the program", id="the end of the program"),
        pytest.param("def", "invalid syntax", id="a syntax error"),
        pytest.param("x = 1", "was not found in", id="no such flow"),
    ],
)
def test_why_code_was_not_found_is_told(tmp_path: Path, text: str, told: str) -> None:
    file = put(tmp_path, text)
    with pytest.raises(UnknownFlow, match=told) as caught:
        find(ref(key="some_flows:crawl", file=str(file)), "crawl")
    assert str(file) in str(caught.value)
    assert "some_flows" not in sys.modules or text == "x = 1"


@pytest.mark.parametrize("stored", ["", "null", "{}", "[]", "nonsense"])
def test_a_reference_that_nobody_wrote_says_so(stored: str) -> None:
    with pytest.raises(UnknownFlow, match="'crawl' does not say where its code is"):
        find(stored, "crawl")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnknownFlow, match="there is no file .*none.py"):
        load_file(str(tmp_path / "none.py"))
    (tmp_path / "text.txt").touch()
    with pytest.raises(UnknownFlow, match="is not a Python file"):
        load_file(str(tmp_path / "text.txt"))
    assert load_file(None) is None


def test_the_flows_of_a_module_are_found_by_name_each_once(tmp_path: Path) -> None:
    module = loaded(put(tmp_path))
    module.again = module.crawl
    assert flows_of(module) == {"crawl": [module.crawl]}
    module.other = flow(name="crawl")(lambda: None)
    assert flows_of(module) == {"crawl": [module.crawl, module.other]}


def test_how_many_runs_are_kept_is_known_by_name(tmp_path: Path) -> None:
    module = loaded(put(tmp_path))
    assert keep_last()["crawl"] == 3
    assert "here" not in keep_last()
    assert module.crawl


def test_flows_that_nobody_holds_are_forgotten() -> None:
    def declare() -> str:
        @flow
        async def passing() -> None: ...

        return passing.key

    key = declare()
    gc.collect()
    assert [k for k, _ in registry._FLOWS if k == key] == []
