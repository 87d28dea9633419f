"""Which flows exist, and how a stored run finds its code again.

A flow is found by the reference that its run stored: module and qualified name, or the file
that was run as a script. Nothing is imported but what such a reference, or the user, names.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import os
import sys
import weakref
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from asyncflow.errors import UnknownFlow
from asyncflow.naming import is_from_file, loaded_from_file, module_name, modules_called

if TYPE_CHECKING:
    from asyncflow.flows import Flow

_DIGESTS: weakref.WeakKeyDictionary[Callable[..., Any], str] = weakref.WeakKeyDictionary()
_REFERENCES: weakref.WeakKeyDictionary[Flow[..., Any], str] = weakref.WeakKeyDictionary()
#: Flows by key and file: two files of one name are two modules, though both are called alike.
_FLOWS: weakref.WeakValueDictionary[tuple[str, str | None], Flow[..., Any]] = (
    weakref.WeakValueDictionary()
)


def register(flow: Flow[..., Any], *, replace: bool = True) -> None:
    """Remember a flow by its key. One that is declared again (a reload) replaces the old one.

    A copy with other options (*replace* is False) does not, unless it has a name of its own.
    """
    at = (flow.key, _file_of(flow))
    if replace or at not in _FLOWS:
        _FLOWS[at] = flow


def keep_last() -> dict[str, int]:
    """How many ended runs are kept of flows that say so, by name."""
    return {
        flow.name: flow.options.keep_last
        for flow in list(_FLOWS.values())
        if flow.options.keep_last is not None
    }


def declared(name: str) -> list[Flow[..., Any]]:
    """The flows of this process that are called so."""
    return [flow for flow in list(_FLOWS.values()) if flow.name == name]


def reference(flow: Flow[..., Any]) -> str:
    """Where the code of a flow is, as JSON for the store."""
    known = _REFERENCES.get(flow)
    if known is None:
        known = _REFERENCES[flow] = _reference(flow)
    return known


def _reference(flow: Flow[..., Any]) -> str:
    module = _module_of(flow)
    return json.dumps(
        {
            "key": flow.key,
            "module": module if module == "__main__" else module_name(module),
            "qualname": getattr(flow.fn, "__qualname__", flow.name),
            "file": _file_of(flow),
            "source": source_digest(flow.fn),
        }
    )


def _module_of(flow: Flow[..., Any]) -> str:
    name = getattr(flow.fn, "__module__", None) or ""
    script = sys.modules.get("__main__")
    # A script that was found by its name, with ``python -m``, can be found by it again.
    named = name == "__main__" and getattr(script, "__spec__", None) is not None
    return module_name(name) if named else name


def _file_of(flow: Flow[..., Any]) -> str | None:
    file = getattr(sys.modules.get(getattr(flow.fn, "__module__", None) or ""), "__file__", None)
    return str(Path(file).resolve()) if file else None


def source_digest(fn: Callable[..., Any]) -> str | None:
    """Tells one version of a function's source from another; None where it cannot be read."""
    known = _DIGESTS.get(fn)
    if known is None:
        try:
            source = inspect.getsource(fn)
        except (OSError, TypeError):
            return None
        known = _DIGESTS[fn] = blake2b(source.encode(), digest_size=8).hexdigest()
    return known


def has_changed(stored: str, flow: Flow[..., Any]) -> bool:
    """Whether the source of a flow's function is another than when the reference was stored."""
    before, after = json.loads(stored).get("source"), source_digest(flow.fn)
    return before is not None and after is not None and before != after


def is_at_hand(stored: str) -> bool:
    """Whether `find` needs to import nothing for it."""
    try:
        ref = json.loads(stored)
        return _known(ref["key"], ref["file"]) is not None
    except (ValueError, KeyError, TypeError):
        return False


def find(stored: str, name: str) -> Flow[..., Any]:
    """The flow that a stored reference names.

    Raises:
        UnknownFlow: it is not declared, and cannot be imported.
    """
    try:
        ref = json.loads(stored)
        key, module, file = ref["key"], ref["module"], ref["file"]
    except (ValueError, KeyError, TypeError):
        raise UnknownFlow(f"the run of flow {name!r} does not say where its code is") from None
    known = _known(key, file)
    if known is not None:
        return known
    reasons = []
    loads: list[Callable[[], object]] = [lambda: _import(module), lambda: load_file(file)]
    if "." not in module:
        # Other folders may have a module of this name.
        loads.reverse()
    for load in loads:
        try:
            load()
        except (Exception, SystemExit) as error:
            reasons.append(_reason(error))
            continue
        known = _known(key, file)
        if known is not None:
            return known
    same_name = [f for f in _FLOWS.values() if f.name == name and _may_be(f, file)]
    if len(same_name) == 1:
        return same_name[0]
    where = file or module
    why = f" ({'; '.join(dict.fromkeys(r for r in reasons if r))})" if reasons else ""
    raise UnknownFlow(
        f"the code of flow {name!r} was not found in {where}{why}: import the module that declares"
        " it before, or name its file"
    )


def _known(key: str, file: str | None) -> Flow[..., Any] | None:
    """The flow of this key that was declared in *file*, or else may stand for it."""
    exact = _FLOWS.get((key, file))
    if exact is not None:
        return exact
    found = [f for (known, _), f in list(_FLOWS.items()) if known == key and _may_be(f, file)]
    return found[-1] if found else None


def _may_be(flow: Flow[..., Any], file: str | None) -> bool:
    """Whether a flow may be one that was declared in *file*, which is another than its own.

    A module that is imported by its name may have moved, as with each release of a service. What
    was loaded from a file is no other file that is there, though both have the same name.
    """
    own = _file_of(flow)
    return (
        own == file or not is_from_file(flow.fn.__module__) or not (file and os.path.exists(file))
    )


def _reason(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return "it ends the program when it is imported"
    return str(error)


def _import(module: str) -> ModuleType | None:
    if not module or module == "__main__":
        return None
    return importlib.import_module(module)


def load_file(file: str | None, name: str | None = None) -> ModuleType | None:
    """Import a Python file once.

    Args:
        file: its path; without one, nothing is done.
        name: under which name, in `sys.modules`; the stem of the file, if that is free.
    """
    if not file:
        return None
    path = Path(file).resolve()
    for known in modules_called(path.stem):
        if _same_file(known, path):
            return known
    main = sys.modules.get("__main__")
    if main is not None and _same_file(main, path):
        return main
    # Where another module has its name, this one has to have another; the same in each process.
    alias = f"{path.stem}_{blake2b(str(path).encode(), digest_size=4).hexdigest()}"
    name = name or (alias if path.stem in sys.modules else path.stem)
    if not path.is_file():
        raise UnknownFlow(f"there is no file {path}")
    if (path.parent / "__init__.py").exists():
        return _import_of_package(path)
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UnknownFlow(f"{path} is not a Python file")
    folder = str(path.parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    module = importlib.util.module_from_spec(spec)
    # By both, so that what another process has pickled by one of them is found.
    sys.modules[name] = sys.modules[alias] = module
    loaded_from_file(name, path.stem)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        sys.modules.pop(alias, None)
        raise
    return module


def _import_of_package(path: Path) -> ModuleType:
    """Import a file that belongs to a package under its name there, as its own imports need it."""
    names, folder = [path.stem], path.parent
    if path.stem == "__init__":
        names.pop()
    while (folder / "__init__.py").exists():
        names.insert(0, folder.name)
        folder = folder.parent
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    if str(path.parent) not in sys.path:
        # For modules beside it that it imports as if it were a script; the installed goes first.
        sys.path.append(str(path.parent))
    return importlib.import_module(".".join(names))


def _same_file(module: ModuleType, path: Path) -> bool:
    file = getattr(module, "__file__", None)
    return file is not None and Path(file).resolve() == path


def flows_of(module: ModuleType) -> dict[str, list[Flow[..., Any]]]:
    """The flows that a module declares, by name."""
    from asyncflow.flows import Flow

    found: dict[str, list[Flow[..., Any]]] = {}
    for value in vars(module).values():
        if isinstance(value, Flow) and all(value is not f for f in found.get(value.name, [])):
            found.setdefault(value.name, []).append(value)
    return found
