"""Many small modules as one script, so that a browser asks once.

It understands the forms that the sources of the dashboard use, and refuses all others:

- ``import { a, b } from "./x.js";`` and ``import * as x from "./x.js";``, before all else;
- ``export`` before ``function``, ``async function``, ``class`` and ``const name =``;
- ``await`` outside of functions in the first module only, which exports nothing.

Each module becomes a function that is called once, after those that it imports. A line of a
source is one line of the script, so that a source map leads back to the sources.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass

_NAME = r"[A-Za-z_][A-Za-z0-9_]*"
_IMPORT = re.compile(
    rf'^import (?:\{{([^{{}}"]*)\}}|\* as ({_NAME})) from "(\.\.?/[^"\n]+)";$', re.MULTILINE
)
_EXPORT = re.compile(
    rf"^export (?=(?:async )?function ({_NAME})\(|class ({_NAME})\b|const ({_NAME}) = )",
    re.MULTILINE,
)
#: What may be between imports: nothing, and comments.
_NO_CODE = re.compile(r"(?:\s|//.*|/\*(?:[^*]|\*(?!/))*\*/)*")
_LEFT = re.compile(r"^\s*(?:import|export)\b|\bimport\s*[.(]", re.MULTILINE)
_WAITS = re.compile(r"^(?:(?:for )?await\b|(?:const|let|var) [^=\n]*= await\b)", re.MULTILINE)
_PATH = re.compile(r"[a-z][a-z0-9]*(?:/[a-z][a-z0-9]*)*\.js")


class BundleError(ValueError):
    """A source has a form that is not understood here; says where."""


@dataclass(slots=True, frozen=True)
class Bundle:
    """One script, and what leads from its lines to those of its sources."""

    script: str
    #: Version 3, as JSON; sources are named by their paths.
    source_map: str


def join(modules: Mapping[str, str], first: str, style: str = "") -> Bundle:
    """Join modules into one script, which is a module, too.

    Args:
        modules: the sources by path, such as ``pages/run.js``; all of them are needed.
        first: the path of the one that begins; the others come before it.
        style: a stylesheet that holds before any of them runs.

    Raises:
        BundleError: a source is missing, not needed, or not understood; imports go in a circle.
    """
    exports: dict[str, list[str]] = {}
    chunks: list[tuple[str, str]] = []

    def add(path: str, trail: tuple[str, ...]) -> None:
        if path in trail:
            circle = " -> ".join((*trail[trail.index(path) :], path))
            raise BundleError(f"{circle}: imports go in a circle")
        if path in exports:
            return
        if _PATH.fullmatch(path) is None:
            raise BundleError(f"{path}: only small letters and digits may be in the name")
        source = modules[path]
        for _, _, given in _IMPORT.findall(source):
            needed = _beside(path, given)
            if needed not in modules:
                raise BundleError(f"{_at(path, source, given)}: there is no {needed}")
            add(needed, (*trail, path))
        text, exports[path] = _body(path, source, exports, is_first=path == first)
        chunks.append((path, text))

    if first not in modules:
        raise BundleError(f"there is no {first}")
    add(first, ())
    unused = sorted(set(modules) - set(exports))
    if unused:
        raise BundleError(f"{', '.join(unused)}: imported by nothing")
    lines = _styled(style) if style else []
    found: list[tuple[int, int]] = [(-1, 0)] * len(lines)
    for number, (path, text) in enumerate(chunks):
        body = text.split("\n")
        if body[-1] == "":
            body.pop()
        is_first = path == first
        lines.append(f"{{ // {path}" if is_first else f"const {_scope(path)} = (() => {{ // {path}")
        lines += body
        lines.append("}" if is_first else f"return {{ {', '.join(exports[path])} }}; }})();")
        found += [(-1, 0), *((number, line) for line in range(len(body))), (-1, 0)]
    mapped = {
        "version": 3,
        "sources": [path for path, _ in chunks],
        "names": [],
        "mappings": _mappings(found),
    }
    return Bundle("\n".join(lines) + "\n", json.dumps(mapped))


def _body(
    path: str, source: str, exports: Mapping[str, list[str]], *, is_first: bool
) -> tuple[str, list[str]]:
    """A module without its imports and exports, as many lines as before; and what it exports."""
    end = 0
    for found in _IMPORT.finditer(source):
        if _NO_CODE.fullmatch(source, end, found.start()) is None:
            raise BundleError(f"{_line(path, source, found.start())}: an import after other code")
        end = found.end()

    def imported(found: re.Match[str]) -> str:
        names, whole, given = found.groups()
        needed = _beside(path, given)
        where = _line(path, source, found.start())
        if whole is not None:
            return f"const {whole} = {_scope(needed)};"
        for name in (one.strip() for one in names.split(",")):
            if name and re.fullmatch(_NAME, name) is None:
                raise BundleError(f"{where}: {name!r} is no plain name")
            if name and name not in exports[needed]:
                raise BundleError(f"{where}: {needed} exports no {name}")
        return f"const {{{names}}} = {_scope(needed)};"

    own = [next(filter(None, names)) for names in _EXPORT.findall(source)]
    text = _EXPORT.sub("", _IMPORT.sub(imported, source))
    left = _LEFT.search(text)
    if left is not None:
        at = left.end() - 1
        said = text.splitlines()[text.count("\n", 0, at)].strip()
        raise BundleError(f"{_line(path, text, at)}: this form is not understood: {said[:80]}")
    if is_first and own:
        raise BundleError(f"{path}: the first module exports nothing, but {own[0]}")
    waits = None if is_first else _WAITS.search(text)
    if waits is not None:
        raise BundleError(
            f"{_line(path, text, waits.start())}: only the first module waits outside of functions"
        )
    return text, own


def _beside(path: str, given: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(path), given))


def _scope(path: str) -> str:
    """The name of what a module exports; no source has names with a dollar sign."""
    return "$" + path.removesuffix(".js").replace("/", "$")


def _line(path: str, text: str, at: int) -> str:
    return f"{path}:{text.count(chr(10), 0, at) + 1}"


def _at(path: str, source: str, given: str) -> str:
    return _line(path, source, source.index(f'"{given}"'))


def _styled(style: str) -> list[str]:
    """The stylesheet as lines of a script; the policy lets a script make one, but no page."""
    lines = style.splitlines()
    return [
        "{ // style.css",
        "const sheet = new CSSStyleSheet();",
        "sheet.replaceSync([",
        *(f"{json.dumps(line)}," for line in lines),
        '].join("\\n"));',
        "document.adoptedStyleSheets = [sheet];",
        "}",
    ]


_DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"


def _quantity(value: int) -> str:
    """A number as source maps write it: the sign last, five bits a digit, the lowest first."""
    rest = abs(value) << 1 | (value < 0)
    said = ""
    while True:
        rest, digit = rest >> 5, rest & 31
        said += _DIGITS[digit | (32 if rest else 0)]
        if not rest:
            return said


def _mappings(found: list[tuple[int, int]]) -> str:
    """Of which source, and which of its lines, each line of the script is; source -1: of none."""
    said: list[str] = []
    last_source = last_line = 0
    for source, line in found:
        if source < 0:
            said.append("")
            continue
        said.append(f"A{_quantity(source - last_source)}{_quantity(line - last_line)}A")
        last_source, last_line = source, line
    return ";".join(said)
