"""Modules as one script: what is understood, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import asyncflow
from asyncflow.server.bundle import BundleError, join
from asyncflow.server.files import read_files

STATIC = Path(asyncflow.__file__).parent / "server" / "static"
MODULES = {file.relative_to(STATIC).as_posix(): file.read_text() for file in STATIC.rglob("*.js")}
DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"


def read_map(text: str) -> dict[int, tuple[str, int]]:
    """Source and line of each line of a script that has one."""
    told = json.loads(text)
    assert (told["version"], told["names"]) == (3, [])
    found: dict[int, tuple[str, int]] = {}
    at = [0, 0, 0, 0]
    for number, segment in enumerate(told["mappings"].split(";")):
        values, value, shift = [], 0, 0
        for digit in map(DIGITS.index, segment):
            value |= (digit & 31) << shift
            shift += 5
            if not digit & 32:
                values.append(-(value >> 1) if value & 1 else value >> 1)
                value = shift = 0
        if values:
            at = [0, *(old + new for old, new in zip(at[1:], values[1:], strict=True))]
            found[number] = (told["sources"][at[1]], at[2])
    return found


def test_a_module_comes_after_those_that_it_imports_and_gives_what_it_exports() -> None:
    modules = {
        "app.js": 'import { a } from "./pages/a.js";\nimport * as b from "./b.js";\n\na(b.B);\n',
        "pages/a.js": '// Says.\nimport { B } from "../b.js";\n\nexport async function a() { B; }',
        "b.js": "export const B = 1;\nconst own = 2;\nexport function c() {}\nexport class D {}\n",
    }
    assert join(modules, "app.js").script.splitlines() == [
        "const $b = (() => { // b.js",
        "const B = 1;",
        "const own = 2;",
        "function c() {}",
        "class D {}",
        "return { B, c, D }; })();",
        "const $pages$a = (() => { // pages/a.js",
        "// Says.",
        "const { B } = $b;",
        "",
        "async function a() { B; }",
        "return { a }; })();",
        "{ // app.js",
        "const { a } = $pages$a;",
        "const b = $b;",
        "",
        "a(b.B);",
        "}",
    ]


def test_names_may_stand_on_lines_of_their_own() -> None:
    modules = {
        "app.js": 'import {\n  a,\n  b,\n} from "./x.js";\na(b);\n',
        "x.js": "export const a = 1;\nexport const b = 2;\n",
    }
    assert "const {\n  a,\n  b,\n} = $x;\na(b);\n" in join(modules, "app.js").script


def test_a_stylesheet_comes_first_and_is_a_text() -> None:
    rule = 'a { content: "</script>\\2014`${x}"; }'
    script = join({"app.js": "go();\n"}, "app.js", f"{rule}\n").script
    assert script.index("adoptedStyleSheets") < script.index("go();")
    (line,) = re.findall(r"^\"a .*\",$", script, re.MULTILINE)
    assert json.loads(line[:-1]) == rule


X = "export const a = 1;\n"


@pytest.mark.parametrize(
    ("app", "x", "said"),
    [
        ('import { a } from "./none.js";\n', X, "app.js:1: there is no none.js"),
        ('import { b } from "./x.js";\n', X, "app.js:1: x.js exports no b"),
        ('\nimport { a as b } from "./x.js";\n', X, "app.js:2: 'a as b' is no plain name"),
        ('import a from "./x.js";\n', X, "app.js:1: this form is not understood: import a from"),
        ('import "./x.js";\n', X, "app.js:1: this form is not understood"),
        ('import { a } from "x";\n', X, "app.js:1: this form is not understood"),
        ("import { a } from './x.js';\n", X, "app.js:1: this form is not understood"),
        ('import { a } from "./x.js"\n', X, "app.js:1: this form is not understood"),
        ('let b;\nimport { a } from "./x.js";\n', X, "app.js:2: an import after other code"),
        ('import { a } from "./x.js";\n\nb = await import("./x.js");\n', X, "app.js:3: this form"),
        ('import { a } from "./x.js";\nb = import.meta.url;\n', X, "app.js:2: this form is not"),
        ('import { a } from "./x.js";\nexport const b = 1;\n', X, "exports nothing, but b"),
        ('import { a } from "./x.js";\n', "const a = 1;\n", "x.js exports no a"),
        ('import * as x from "./x.js";\n', "export default 1;\n", "x.js:1: this form is not"),
        ('import * as x from "./x.js";\n', "const a = 1;\nexport { a };\n", "x.js:2: this form"),
        ('import * as x from "./x.js";\n', 'export * from "./y.js";\n', "x.js:1: this form"),
        ('import * as x from "./x.js";\n', "export let a = 1;\n", "x.js:1: this form is not"),
        ('import * as x from "./x.js";\n', "export function* a() {}\n", "x.js:1: this form"),
        ('import * as x from "./x.js";\n', "export const { a } = b;\n", "x.js:1: this form"),
        ('import * as x from "./x.js";\n', "{\n  export const a = 1;\n}\n", "x.js:2: this form"),
        ('import * as x from "./x.js";\n', "await 1;\n", "x.js:1: only the first module waits"),
        ('import * as x from "./x.js";\n', "\nconst a = await b();\n", "x.js:2: only the first"),
        ('import * as x from "./x.js";\n', 'import * as app from "./app.js";\n',
         "app.js -> x.js -> app.js: imports go in a circle"),
        ("go();\n", X, "x.js: imported by nothing"),
        ('import { a } from "./x-y.js";\n', X, "x-y.js: only small letters"),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_refused_with_its_place(app: str, x: str, said: str) -> None:
    modules = {"app.js": app, "x.js": x}
    if "x-y.js" in app:
        modules["x-y.js"] = modules.pop("x.js")
    with pytest.raises(BundleError) as refused:
        join(modules, "app.js")
    assert said in str(refused.value)


def test_there_must_be_a_first_module() -> None:
    with pytest.raises(BundleError, match=r"there is no app\.js"):
        join({}, "app.js")


def test_each_line_of_the_dashboard_is_in_its_script_and_is_found_again() -> None:
    bundle = join(MODULES, "app.js", (STATIC / "style.css").read_text())
    lines = bundle.script.splitlines()
    sources = {path: text.splitlines() for path, text in MODULES.items()}
    found = read_map(bundle.source_map)
    assert sorted(found.values()) == sorted(
        (path, line) for path, text in sources.items() for line in range(len(text))
    )
    changed = 0
    for number, (path, line) in found.items():
        here, there = lines[number], sources[path][line]
        if here != there:
            assert there.startswith(("import ", "export ", "} from ")), f"{path}:{line + 1}"
            changed += 1
    assert changed > 100
    assert not re.search(r"^\s*(import|export)\b", bundle.script, re.MULTILINE)


def test_a_page_asks_for_one_script_and_is_told_who_looks() -> None:
    files = read_files()
    plain = files.page().decode()
    (script,) = re.findall(r"(?:src|href)=\"(static/[^\"]+)\"", plain)
    data = files.files[f"/{script}"].data.decode()
    assert data.endswith("//# sourceMappingURL=all.js.map\n")
    folder = script.removesuffix("all.js")
    told = json.loads(files.files[f"/{folder}all.js.map"].data)
    assert set(told["sources"]) == set(MODULES)
    for source in told["sources"]:
        assert files.files[f"/{folder}{source}"].data.decode() == MODULES[source]
    assert "asyncflow-session" not in plain
    known = files.page({"role": "admin", "version": '"><script>'}).decode()
    assert known.index("asyncflow-session") < known.index("<script")
    assert known.count("<script") == 1
