"""Finds the flow that ``FILE_OR_MODULE:FLOW`` names."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from asyncflow.errors import UnknownFlow
from asyncflow.registry import flows_of, load_file

if TYPE_CHECKING:
    from asyncflow.flows import Flow


def find_flow(target: str) -> Flow[..., Any]:
    """The flow; UnknownFlow says which part was not found, and what there is instead."""
    where, colon, name = target.rpartition(":")
    if not colon or (os.name == "nt" and len(where) == 1):
        where, name = target, ""
    module = _module(where)
    flows = flows_of(module)
    if not flows:
        raise UnknownFlow(f"{where} declares no flow: decorate a function with @flow")
    if not name:
        if len(flows) > 1:
            raise UnknownFlow(f"say which flow: {where}:NAME, with one of {', '.join(flows)}")
        name = next(iter(flows))
    found = flows.get(name)
    if found is None:
        value = getattr(module, name, None)
        found = [value] if value is not None and hasattr(value, "call_spec") else None
    if found is None:
        close = difflib.get_close_matches(name, flows, 1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(flows)}"
        raise UnknownFlow(f"{where} declares no flow {name!r}: {hint}")
    if len(found) > 1:
        raise UnknownFlow(
            f"{where} declares {len(found)} flows called {name!r}: give them names of their own"
            " with @flow(name=...)"
        )
    return found[0]


def find_deployments(target: str) -> list[Any]:
    """What a target names that can be served: the deployments of a module, or else its flows.

    ``FILE.py:NAME`` names one flow, or one variable that holds a deployment.
    """
    from asyncflow.deployments import Deployment

    where, colon, name = target.rpartition(":")
    if not colon or (os.name == "nt" and len(where) == 1):
        where, name = target, ""
    module = _module(where)
    if name:
        value = getattr(module, name, None)
        return [value] if isinstance(value, Deployment) else [find_flow(target)]
    found = {id(v): v for v in vars(module).values() if isinstance(v, Deployment)}
    return list(found.values()) or [find_flow(target)]


def _module(where: str) -> ModuleType:
    if not where:
        raise UnknownFlow("say where the flow is: FILE.py:FLOW, or MODULE:FLOW")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        if where.endswith(".py") or os.sep in where:
            module = load_file(where)
            assert module is not None
            return module
        return importlib.import_module(where)
    except UnknownFlow:
        raise
    except SystemExit as error:
        raise UnknownFlow(
            f"{where} cannot be imported: it calls sys.exit({error.code!r}): keep that below"
            ' `if __name__ == "__main__":`'
        ) from None
    except ModuleNotFoundError as error:
        if error.name == where.split(".")[0] or error.name == where:
            raise UnknownFlow(
                f"there is no module {where!r} here: give a file such as flows.py:NAME, or a"
                " module that can be imported"
            ) from None
        raise UnknownFlow(
            f"{where} cannot be imported, because it needs the module {error.name!r}, which is"
            " not installed"
        ) from None
    except SyntaxError as error:
        raise UnknownFlow(
            f"{where} cannot be imported: {error.msg} (line {error.lineno} of {error.filename})"
        ) from None
    except Exception as error:
        raise UnknownFlow(f"{where} cannot be imported: {type(error).__name__}: {error}") from error
