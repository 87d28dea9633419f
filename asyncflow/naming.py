"""What modules, classes and functions are called in the store.

A file is one module, whether it was run as a script, named on the command line, or imported: what
one process has stored under its name, the next must find, however it came by the file. So a
script is called by the stem of its file (or, run with ``python -m``, by that name), and so is a
file that was loaded where another module already has that name.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

#: What Python calls the script that it runs, and the same script in a process of `multiprocessing`.
_MAINS = ("__main__", "__mp_main__")

#: The scripts that are there, by those names, and what they are called in the store.
_SCRIPTS: dict[str, tuple[Any, str | None]] = {}

#: Modules that were loaded from files, by their name in `sys.modules`: what they are called here.
_LOADED: dict[str, str] = {}


def loaded_from_file(module: str, stem: str) -> None:
    """A file was loaded as *module*; whatever that is, it is called *stem*."""
    _LOADED.pop(module, None)
    _LOADED[module] = stem


def is_from_file(module: str) -> bool:
    """Whether *module* is a script or was loaded from a file, and not found by its name."""
    return module in _MAINS or module in _LOADED


def module_name(module: str) -> str:
    """What a module of this name in `sys.modules` is called in the store."""
    if module in _MAINS:
        return _script_name(module) or module
    return _LOADED.get(module, module)


def class_name(cls: type) -> str:
    """``module:qualname`` of a class."""
    module = cls.__module__
    if module in _MAINS or module in _LOADED:
        module = module_name(module)
    return f"{module}:{cls.__qualname__}"


def modules_called(name: str) -> Iterator[ModuleType]:
    """The modules, of those that are there, that may be called *name*, the likeliest first."""
    for main in _MAINS:
        if _script_name(main) == name:
            yield sys.modules[main]
    for module, stem in reversed(_LOADED.items()):
        if stem == name and (found := sys.modules.get(module)) is not None:
            yield found
    if name in sys.modules:
        yield sys.modules[name]


def _script_name(main: str) -> str | None:
    script = sys.modules.get(main)
    known, name = _SCRIPTS.get(main, (None, None))
    if known is script:
        return name
    spec, file = getattr(script, "__spec__", None), getattr(script, "__file__", None)
    name = str(spec.name) if spec is not None else Path(file).stem if file else None
    if name is not None:
        # Each stored object of a class asks for it.
        _SCRIPTS[main] = script, name
    return name
