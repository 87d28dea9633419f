"""What artifacts are made of: checked, cut where it is too much, refused where it could do harm."""

from __future__ import annotations

import os
from base64 import b64encode
from decimal import Decimal
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest

from asyncflow import InvalidOption, exhibits

PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 20
PICTURES = {
    "image/png": PNG,
    "image/jpeg": b"\xff\xd8\xff\xe0" + b"\0" * 20,
    "image/gif": b"GIF89a" + b"\0" * 20,
    "image/webp": b"RIFF\0\0\0\0WEBPVP8 ",
}


def table(rows: Any) -> dict[str, Any]:
    return exhibits.table(rows, str)


def test_a_text_that_is_too_long_is_cut_at_a_whole_letter_and_says_so() -> None:
    assert exhibits.markdown("# Hello", str) == {"markdown": "# Hello"}
    found = exhibits.markdown("é" * 40_000, str)
    assert found["bytes"] == 80_000
    text = found["markdown"]
    assert text.startswith("é" * 32_768 + "\n\n*(cut: 80,000 bytes")
    with pytest.raises(InvalidOption, match="give a text"):
        exhibits.markdown(7, str)


def test_a_secret_at_the_edge_is_masked_before_the_text_is_cut() -> None:
    text = "x" * (exhibits.MOST_TEXT - 3) + "hunter22"
    found = exhibits.markdown(text, lambda t: t.replace("hunter22", "***"))
    assert "hun" not in found["markdown"]
    row = exhibits.table([["y" * 998 + "hunter22"]], lambda t: t.replace("hunter22", "***"))
    assert "hun" not in row["rows"][0][0]


@pytest.mark.parametrize(
    ("rows", "columns", "cells"),
    [
        pytest.param([{"a": 1, "b": 2}, {"b": 3, "c": 4}], ["a", "b", "c"],
                     [[1, 2, None], [None, 3, 4]], id="dicts"),
        pytest.param([[1, "x"], [2]], None, [[1, "x"], [2, None]], id="lists"),
        pytest.param({"a": [1, 2], "b": ["x", ""]}, ["a", "b"],
                     [[1, "x"], [2, ""]], id="columns"),
        pytest.param(((1, 2) for _ in range(2)), None, [[1, 2], [1, 2]], id="an iterator"),
        pytest.param([], None, [], id="nothing"),
        pytest.param({}, [], [], id="no columns"),
        pytest.param([{7: True, None: None}], ["7", "None"], [[True, None]], id="odd names"),
        pytest.param([[Decimal("1.5"), nan, inf, 2**60, 1.5, {"k": [1]}, "\ud800"]], None,
                     [["1.5", "nan", "inf", str(2**60), 1.5, "{'k': [1]}", "\\ud800"]],
                     id="what JSON does not know"),
    ],
)  # fmt: skip
def test_a_table(rows: Any, columns: Any, cells: Any) -> None:
    assert table(rows) == {"columns": columns, "rows": cells}


def test_numbers_of_numpy_stay_numbers() -> None:
    numpy = pytest.importorskip("numpy", reason="needs numpy")
    found = table([[numpy.int64(3), numpy.float64(0.5)]])["rows"]
    assert found == [[3, 0.5]]
    assert [type(cell) for cell in found[0]] == [int, float]


def test_a_table_that_is_too_large_is_cut_and_says_so() -> None:
    found = table([list(range(150))] * 1500)
    assert (len(found["rows"]), len(found["rows"][0])) == (1000, 100)
    assert (found["total_rows"], found["total_columns"]) == (1500, 150)
    assert table({"a": range(1001)})["total_rows"] == 1001
    wide = table([["x" * 5000]])["rows"][0][0]
    assert (len(wide), wide[-1]) == (1000, "…")
    heavy = table([["x" * 1000] * 100] * 50)
    assert 5 < len(heavy["rows"]) < 50, "a table of all cells has a limit, too"
    assert heavy["total_rows"] == 50


@pytest.mark.parametrize("rows", ["abc", 7, [1, 2], [{"a": 1}, [2]], {"a": 1}, {"a": "xy"}, None])
def test_what_is_no_table_is_refused(rows: Any) -> None:
    with pytest.raises(InvalidOption, match="give a list of dicts"):
        table(rows)


def test_columns_of_unequal_length_are_refused() -> None:
    with pytest.raises(InvalidOption, match=r"\[1, 2\] values"):
        table({"a": [1], "b": [1, 2]})


@pytest.mark.parametrize(
    "url",
    [
        "javascript:alert(1)", "JaVaScRiPt:alert(1)", "data:text/html,x", "ftp://host/x",
        "//host/x", "/path", "http://", "https:///x", "http://a b", "http://a\nb", "vbscript:x",
        "", "http://[x",
        "http://host/" + "x" * 4000, "\x01javascript:alert(1)", "file:///etc/passwd",
    ],
)  # fmt: skip
def test_what_is_no_web_address_is_no_link(url: str) -> None:
    with pytest.raises(InvalidOption, match="give an http or https URL"):
        exhibits.link(url, None, str)


def test_a_link() -> None:
    assert exhibits.link(" https://example.org/a?b=c ", None, str) == {
        "url": "https://example.org/a?b=c",
        "text": "https://example.org/a?b=c",
    }
    assert exhibits.link("http://example.org", "here", str)["text"] == "here"


@pytest.mark.parametrize("mime", PICTURES)
def test_a_picture_is_known_by_what_it_begins_with(mime: str, tmp_path: Path) -> None:
    content = PICTURES[mime]
    wanted = {"mime": mime, "base64": b64encode(content).decode(), "bytes": len(content)}
    file = tmp_path / "picture"
    file.write_bytes(content)
    url = f"data:{mime};base64,{b64encode(content).decode()}"
    for given in (content, bytearray(content), memoryview(content), file, str(file), url):
        assert exhibits.image(given, None, str) == wanted
        assert exhibits.image(given, mime, str) == wanted
        assert exhibits.is_sound("image", wanted)


def test_a_picture_elsewhere_is_kept_as_its_address() -> None:
    assert exhibits.image("https://example.org/x.png", None, str) == {
        "url": "https://example.org/x.png"
    }


SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'


@pytest.mark.parametrize(
    ("data", "mime", "why"),
    [
        (SVG, None, "SVG is not shown"),
        (SVG, "image/svg+xml", "pictures are image/png"),
        (SVG, "image/png", "SVG is not shown"),
        (PNG, "image/gif", "the picture is image/png: give image/gif"),
        (b"", None, "something else"),
        ("data:image/svg+xml;base64," + b64encode(SVG).decode(), None, "SVG is not shown"),
        ("data:image/png,abc", None, "is no picture"),
        ("data:image/png;base64,!!!", None, "is no picture"),
        ("http://", None, "is no link"),
        (7, None, "a picture of int"),
        (PNG + b"\0" * 2**20, None, "at most 1,048,576 are kept"),
    ],
)
def test_what_is_no_picture_is_refused(data: Any, mime: str | None, why: str) -> None:
    with pytest.raises(InvalidOption, match=why):
        exhibits.image(data, mime, str)


def test_a_pipe_or_a_missing_file_is_no_picture(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InvalidOption, match="is no file"):
        exhibits.image(tmp_path / "pipe", None, str)
    with pytest.raises(FileNotFoundError):
        exhibits.image(tmp_path / "none.png", None, str)


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("markdown", {"markdown": 7}), ("markdown", {}), ("markdown", []), ("html", {"html": "x"}),
        ("table", {"columns": [1], "rows": []}), ("table", {"columns": None, "rows": [7]}),
        ("table", {"columns": None, "rows": [[0] * 101]}), ("table", {"rows": []}),
        ("link", {"url": "javascript:alert(1)", "text": "x"}), ("link", {"url": "http://x"}),
        ("link", {"url": " http://x", "text": "x"}),
        ("image", {"url": "data:image/svg+xml,x"}), ("image", {"mime": "image/png"}),
        ("image", {"mime": "image/svg+xml", "base64": b64encode(SVG).decode()}),
        ("image", {"mime": "image/png", "base64": b64encode(SVG).decode()}),
        ("image", {"mime": "image/png", "base64": 7}),
        ("progress", {"done": -1, "total": None, "message": ""}), ("progress", {"done": 1}),
    ],
)  # fmt: skip
def test_data_that_no_function_here_gives_is_not_sound(kind: str, data: Any) -> None:
    assert not exhibits.is_sound(kind, data)


def test_what_the_functions_give_is_sound() -> None:
    assert exhibits.is_sound("markdown", exhibits.markdown("x", str))
    assert exhibits.is_sound("table", table([{"a": 1}]))
    assert exhibits.is_sound("link", exhibits.link("http://x", None, str))
    assert exhibits.is_sound("image", exhibits.image("http://x/y", None, str))
    assert exhibits.is_sound("progress", exhibits.progress(1, None, "", str))
