"""Parameters from the command line: ``--param name=value`` and ``--params-file``."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asyncflow.errors import InvalidParameters

if TYPE_CHECKING:
    from asyncflow.flows import Flow


def parse(
    flow: Flow[..., Any], params: Sequence[str], params_file: str | None = None
) -> dict[str, Any]:
    """Parameters by name; InvalidParameters says what is wrong."""
    values: dict[str, Any] = {}
    if params_file:
        loaded = _json_file(Path(params_file))
        if not isinstance(loaded, dict):
            raise InvalidParameters(
                f"{params_file} holds a {type(loaded).__name__}: it must be a JSON object with"
                " parameters by name"
            )
        values.update(loaded)
    known = flow.parameters.signature.parameters
    for given in params:
        name, equals, text = given.partition("=")
        if not equals or not name:
            raise InvalidParameters(f"--param {given!r}: write it as NAME=VALUE")
        if name not in known and not any(p.kind is p.VAR_KEYWORD for p in known.values()):
            raise InvalidParameters(
                f"flow {flow.name!r} has no parameter {name!r}: its parameters are"
                f" {', '.join(known) or 'none'}"
            )
        values[name] = _value(text, known.get(name))
    return values


def _value(text: str, parameter: inspect.Parameter | None) -> Any:
    if text.startswith("@"):
        return _file(Path(text[1:]))
    if parameter is not None and _is_text(parameter.annotation):
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text


def _is_text(annotation: Any) -> bool:
    """Whether the parameter is a string, so that ``5`` and ``null`` are taken as they stand."""
    return annotation is str or (isinstance(annotation, str) and annotation.strip("'\"") == "str")


def _file(path: Path) -> Any:
    """A JSON document, or the lines of a text file."""
    if path.suffix == ".json":
        return _json_file(path)
    text = _read(path)
    return [line.strip() for line in text.splitlines() if line.strip()]


def _json_file(path: Path) -> Any:
    try:
        return json.loads(_read(path))
    except ValueError as error:
        raise InvalidParameters(f"{path} is not JSON: {error}") from None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InvalidParameters(f"{path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise InvalidParameters(f"{path} is not UTF-8 text") from None
