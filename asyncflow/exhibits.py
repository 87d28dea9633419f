"""What artifacts are made of: each function checks what it is given and gives plain data.

Pure, but for the file of a picture. Nothing here knows runs or stores. What is too much is cut,
and the data says so; what makes no sense, or could do harm to who looks at it, is refused.
"""

from __future__ import annotations

import os
import stat
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from math import isfinite
from numbers import Integral
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson

from asyncflow.errors import InvalidOption

#: Bytes of a text, as UTF-8.
MOST_TEXT = 64 * 1024
#: Rows and columns of a table, characters of one cell, and bytes of all rows as JSON.
MOST_ROWS, MOST_COLUMNS, MOST_CELL, MOST_TABLE = 1000, 100, 1000, 1024 * 1024
#: Bytes of a picture.
MOST_IMAGE = 1024 * 1024
#: Characters of a URL, of a description, and of the message of a progress.
MOST_URL, MOST_DESCRIPTION, MOST_MESSAGE = 4000, 2000, 500

KINDS = ("markdown", "table", "link", "image", "progress")

#: What hides secrets in a text.
Mask = Callable[[str], str]

#: What a picture begins with, by type. SVG is not among them: it is a program as well.
_BEGINNINGS = {
    "image/png": (b"\x89PNG\r\n\x1a\n",),
    "image/jpeg": (b"\xff\xd8\xff",),
    "image/gif": (b"GIF87a", b"GIF89a"),
}
MIMES = (*_BEGINNINGS, "image/webp")


def cut(text: str, most: int) -> str:
    """*text*, of at most so many characters."""
    return text if len(text) <= most else text[: most - 1] + "…"


def clean(text: str) -> str:
    """*text* without lone surrogates, which no UTF-8 can hold."""
    return text.encode("utf-8", "backslashreplace").decode()


def markdown(text: Any, mask: Mask) -> dict[str, Any]:
    """A text: `markdown`, and of one that was cut `bytes`, how long it was.

    Raises:
        InvalidOption: it is no text.
    """
    if not isinstance(text, str):
        raise InvalidOption(f"markdown={type(text).__name__}: give a text")
    # Masked before it is cut, so that no half of a secret is left.
    data = clean(mask(text)).encode()
    if len(data) <= MOST_TEXT:
        return {"markdown": data.decode()}
    note = f"\n\n*(cut: {len(data):,} bytes, of which the first {MOST_TEXT:,} are kept)*"
    kept = data[:MOST_TEXT].decode("utf-8", "ignore")
    return {"markdown": kept + note, "bytes": len(data)}


def table(rows: Any, mask: Mask) -> dict[str, Any]:
    """A table: `columns` (None: they have no names), `rows` of as many cells, and of one that was
    cut `total_rows` and `total_columns`, what there was.

    Args:
        rows: dicts (columns in the order in which they first occur), or lists, or a dict of
            columns. What is more than enough is counted, not looked at.

    Raises:
        InvalidOption: it is none of them.
    """
    found: list[Any]
    columns: list[Any] | None
    if isinstance(rows, Mapping):
        found, columns, total = _of_columns(rows)
    else:
        if isinstance(rows, str | bytes) or not isinstance(rows, Iterable):
            raise InvalidOption(f"a table of {type(rows).__name__}: {_WANTED}")
        given = rows if isinstance(rows, list | tuple) else list(rows)
        found, total = list(given[:MOST_ROWS]), len(given)
        columns = None
        if found and all(isinstance(row, Mapping) for row in found):
            columns = list(dict.fromkeys(name for row in found for name in row))
            found = [[row.get(name) for name in columns[:MOST_COLUMNS]] for row in found]
        elif not all(isinstance(row, list | tuple) for row in found):
            odd = next(row for row in found if not isinstance(row, list | tuple))
            raise InvalidOption(f"a row of a table is a {type(odd).__name__}: {_WANTED}")
    wide = max((len(row) for row in found), default=0) if columns is None else len(columns)
    width = min(wide, MOST_COLUMNS)
    kept: list[list[Any]] = []
    room = MOST_TABLE
    for row in found:
        cells = [_cell(value, mask) for value in row[:width]]
        cells += [None] * (width - len(cells))
        room -= len(orjson.dumps(cells))
        if room < 0:
            break
        kept.append(cells)
    names = None if columns is None else [str(_cell(name, mask)) for name in columns[:width]]
    data: dict[str, Any] = {"columns": names, "rows": kept}
    if len(kept) < total:
        data["total_rows"] = total
    if width < wide:
        data["total_columns"] = wide
    return data


_WANTED = "give a list of dicts, a list of lists, or a dict of columns"


def _of_columns(rows: Mapping[Any, Any]) -> tuple[list[list[Any]], list[Any], int]:
    columns: dict[Any, Any] = dict(rows)
    for name, values in columns.items():
        if isinstance(values, str | bytes) or not isinstance(values, Iterable):
            raise InvalidOption(
                f"the column {name!r} of a table is a {type(values).__name__}: {_WANTED}"
            )
        columns[name] = values if isinstance(values, list | tuple) else list(values)
    lengths = {len(values) for values in columns.values()}
    if len(lengths) > 1:
        raise InvalidOption(
            f"the columns of a table have {sorted(lengths)} values: give equal ones"
        )
    kept = [values[:MOST_ROWS] for values in islice(columns.values(), MOST_COLUMNS)]
    found = [list(cells) for cells in zip(*kept, strict=True)]
    return found, list(columns), max(lengths, default=0)


def _cell(value: Any, mask: Mask) -> Any:
    """A value as JSON knows it: what it does not know is shown as text."""
    if value is None or value is True or value is False:
        return value
    if isinstance(value, Integral) and abs(int(value)) <= 2**53:
        return int(value)
    if isinstance(value, float) and isfinite(value):
        return float(value)
    return cut(clean(mask(value if type(value) is str else str(value))), MOST_CELL)


def address(url: Any) -> str:
    """A URL that may be followed.

    Raises:
        InvalidOption: it is no http or https URL.
    """
    text = str(url).strip()
    try:
        parts = urlsplit(text)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        sound = False
    if not sound or len(text) > MOST_URL or any(c.isspace() or c < " " for c in text):
        raise InvalidOption(
            f"{cut(text, 80)!r} is no link: give an http or https URL of at most {MOST_URL:,}"
            " characters"
        )
    return clean(text)


def link(url: Any, text: str | None, mask: Mask) -> dict[str, Any]:
    """A link: `url` and `text`.

    Raises:
        InvalidOption: as of `address`.
    """
    target = address(url)
    shown = target if text is None else str(text)
    return {"url": mask(target), "text": cut(clean(mask(shown)), MOST_DESCRIPTION)}


def image(data: Any, mime: str | None, mask: Mask) -> dict[str, Any]:
    """A picture: `mime`, `base64` and `bytes`, or the `url` where it is.

    Args:
        data: its bytes, the path of a file, a ``data:`` URL, or an http or https URL, which is
            kept as it is and never fetched here.

    Raises:
        InvalidOption: it is no PNG, JPEG, GIF or WebP, another one than *mime* says, or too large.
        OSError: the file cannot be read.
    """
    if mime is not None and mime not in MIMES:
        raise InvalidOption(f"mime={mime!r}: pictures are {', '.join(MIMES)}")
    if isinstance(data, str) and data.lower().startswith(("http://", "https://")):
        return {"url": mask(address(data))}
    if isinstance(data, str) and data[:5].lower() == "data:":
        content = _from_data_url(data)
    elif isinstance(data, str | os.PathLike):
        content = _from_file(Path(data))
    elif isinstance(data, bytes | bytearray | memoryview):
        content = bytes(data)
    else:
        raise InvalidOption(
            f"a picture of {type(data).__name__}: give bytes, a path, or a data or http URL"
        )
    if len(content) > MOST_IMAGE:
        raise InvalidOption(
            f"the picture has {len(content):,} bytes, and at most {MOST_IMAGE:,} are kept: make it"
            " smaller, or give the URL where it is"
        )
    found = _mime(content)
    if found is None or (mime is not None and mime != found):
        told = found or "something else (SVG is not shown: it can hold programs)"
        raise InvalidOption(f"the picture is {told}: give {mime or ', '.join(MIMES)}")
    return {"mime": found, "base64": b64encode(content).decode(), "bytes": len(content)}


def _from_data_url(url: str) -> bytes:
    head, comma, body = url.partition(",")
    try:
        if not comma or not head.lower().endswith(";base64") or len(body) > 2 * MOST_IMAGE:
            raise ValueError
        return b64decode(body, validate=True)
    except (ValueError, Base64Error):
        raise InvalidOption(
            f"{cut(url, 40)!r} is no picture: give data:image/png;base64,... of at most"
            f" {MOST_IMAGE:,} bytes"
        ) from None


def _from_file(path: Path) -> bytes:
    with open(path, "rb", opener=_open) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise InvalidOption(f"{path} is no file: give the path of a picture")
        return file.read(MOST_IMAGE + 1)


def _open(path: str, flags: int) -> int:
    # Not to wait for a writer, where it is a pipe.
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _mime(content: bytes) -> str | None:
    """What a picture is, by what it begins with."""
    for mime, beginnings in _BEGINNINGS.items():
        if content.startswith(beginnings):
            return mime
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "image/webp"
    return None


def progress(done: float, total: float | None, message: str, mask: Mask) -> dict[str, Any]:
    """How far something is: `done`, `total` (None: not known) and `message`."""
    return {"done": done, "total": total, "message": cut(clean(mask(message)), MOST_MESSAGE)}


def check_progress(done: Any, total: Any) -> None:
    """Raise InvalidOption where these are no numbers."""
    for name, value in (("done", done), ("total", total)):
        if value is None and name == "total":
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e300:
            raise InvalidOption(f"set_progress({name}={value!r}): give a number, 0 or more")


def is_sound(kind: str, data: Any) -> bool:
    """Whether data from elsewhere is what the functions here give of this kind."""
    if type(data) is not dict:
        return False
    try:
        match kind:
            case "markdown":
                text = data["markdown"]
                return type(text) is str and len(text) <= MOST_TEXT + 200
            case "table":
                columns, rows = data["columns"], data["rows"]
                return (
                    (columns is None or all(type(name) is str for name in columns))
                    and type(rows) is list
                    and len(rows) <= MOST_ROWS
                    and all(type(row) is list and len(row) <= MOST_COLUMNS for row in rows)
                )
            case "link":
                return type(data["text"]) is str and bool(address(data["url"]) == data["url"])
            case "image" if "url" in data:
                return bool(address(data["url"]) == data["url"])
            case "image":
                content = b64decode(data["base64"], validate=True)
                return len(content) <= MOST_IMAGE and bool(_mime(content) == data["mime"])
            case "progress":
                check_progress(data["done"], data["total"])
                return type(data["message"]) is str
    except (LookupError, ValueError, TypeError):
        return False
    return False
