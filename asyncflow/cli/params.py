"""Parameters from the command line: ``--param name=value`` and ``--params-file``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asyncflow.errors import InvalidParameters

if TYPE_CHECKING:
    from asyncflow.flows import Flow
    from asyncflow.parameters import Parameters


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
    for name, text in pairs("--param", params):
        if name not in known and not any(p.kind is p.VAR_KEYWORD for p in known.values()):
            raise InvalidParameters(
                f"flow {flow.name!r} has no parameter {name!r}: its parameters are"
                f" {', '.join(known) or 'none'}"
            )
        values[name] = _value(text, flow.parameters, name)
    return values


def pairs(option: str, given: Sequence[str], form: str = "NAME=VALUE") -> Iterator[tuple[str, str]]:
    """Names and texts of what an option was given, each as NAME=TEXT.

    Raises:
        InvalidParameters: one is not.
    """
    for one in given:
        name, equals, text = one.partition("=")
        if not equals or not name:
            raise InvalidParameters(f"{option} {one!r}: write it as {form}")
        yield name, text


def parse_results(given: Sequence[str]) -> dict[str, Any]:
    """Results by the names of their calls, each given as NAME=JSON or NAME=@FILE."""
    results: dict[str, Any] = {}
    for name, text in pairs("--result", given, "NAME=JSON"):
        if text.startswith("@"):
            results[name] = _json_file(Path(text[1:]))
            continue
        try:
            results[name] = json.loads(text)
        except ValueError as error:
            raise InvalidParameters(
                f"--result {f'{name}={text}'!r} is no JSON ({error}): text is written in quotes, as"
                f" '{name}=\"text\"'"
            ) from None
    return results


def _value(text: str, parameters: Parameters, name: str) -> Any:
    parameter = parameters.signature.parameters.get(name)
    is_text = parameter is not None and _is_text(parameter.annotation)
    value = plain_value(text, is_text)
    if is_text or (text.startswith("@") and not text.startswith("@@")):
        return value
    text = text.removeprefix("@")
    # A number that stands where only text is taken, as of ``str | None``, is text.
    return text if not parameters.takes(name, value) and parameters.takes(name, text) else value


def plain_value(text: str, is_text: bool) -> Any:
    """What somebody wrote for a parameter: JSON, else text; ``@FILE`` is what is in a file.

    Args:
        is_text: whether the parameter takes text only.
    """
    if text.startswith("@@"):
        text = text[1:]
    elif text.startswith("@"):
        return _read(Path(text[1:])) if is_text else _file(Path(text[1:]))
    if is_text:
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
    text = _read(path)
    try:
        return json.loads(text)
    except ValueError as error:
        raise InvalidParameters(f"{path} is not JSON: {error}") from None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InvalidParameters(f"{path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise InvalidParameters(f"{path} is not UTF-8 text") from None
