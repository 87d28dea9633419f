"""What runs in a worker process: reads calls from a pipe, runs them, writes their outcomes.

Started by `asyncflow.runner.process` as ``python -m asyncflow.runner.worker``. It dies, with
everything that it started, as soon as its parent is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import inspect
import logging
import os
import pickle
import runpy
import signal
import struct
import sys
import threading
import traceback
import types
from contextvars import copy_context
from pathlib import Path
from queue import SimpleQueue
from typing import Any, BinaryIO

from asyncflow.registry import load_file
from asyncflow.runner import outside

_SIZE = struct.Struct(">Q")
#: The script whose functions are asked for, once it has been loaded. (Not told by `sys.modules`:
#: importing `multiprocessing` sets ``__mp_main__`` to whatever is the main module.)
_MAINS: list[str] = []


def read_frame(pipe: BinaryIO) -> bytes | None:
    """One message; None at the end of the pipe."""
    head = pipe.read(_SIZE.size)
    if len(head) < _SIZE.size:
        return None
    (size,) = _SIZE.unpack(head)
    data = pipe.read(size)
    return data if len(data) == size else None


def frame(data: bytes) -> bytes:
    """A message as it goes through a pipe."""
    return _SIZE.pack(len(data)) + data


class _Forward(logging.Handler):
    """Sends what is logged to the parent, which stores it with the run."""

    def __init__(self, send: Any) -> None:
        super().__init__()
        self._send = send

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(Exception):
            self._send(("log", record.name, record.levelno, record.getMessage()))


def _find(module: str, qualname: str, main: str | None, file: str | None) -> Any:
    """The function, or the task that wraps it, at ``module:qualname``."""
    found: Any
    if main is not None:
        if main not in _MAINS:
            _MAINS.append(main)
            _load_main(main)
        found = sys.modules["__main__"]
    elif file is not None:
        found = load_file(file, module)
    else:
        found = importlib.import_module(module)
    for part in qualname.split("."):
        found = getattr(found, part)
    return getattr(found, "fn", found)


def _load_main(path: str) -> None:
    """Import the script that the parent runs, without running its main part."""
    module = types.ModuleType("__mp_main__")
    sys.modules["__mp_main__"] = sys.modules["__main__"] = module
    module.__dict__.update(runpy.run_path(path, run_name="__mp_main__"))
    module.__name__ = "__main__"


def _run(request: dict[str, Any]) -> Any:
    function = _find(request["module"], request["qualname"], request["main"], request["file"])
    args, kwargs = pickle.loads(request["inputs"])  # noqa: S301 - from our own parent
    if request["trace"]:
        from asyncflow.tracing import carry_on

        carry_on(request["trace"])
    result = function(*args, **kwargs)
    if inspect.iscoroutine(result):
        return asyncio.run(result)
    return result


def _packed_error(error: BaseException) -> bytes:
    """An exception with its traceback as a note; as text where it cannot be pickled."""
    told = "".join(traceback.format_exception(error))[-8000:]
    with contextlib.suppress(Exception):
        error.add_note(f"in a worker process:\n{told}")
        data = pickle.dumps(("error", error))
        pickle.loads(data)  # noqa: S301 - some errors pickle, and then cannot be read
        return data
    return pickle.dumps(("text", type(error).__qualname__, str(error), told))


def main() -> None:
    """Serve calls until the parent is gone."""
    requests = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    # What user code reads and prints must not touch the pipes.
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    lock = threading.Lock()

    def send(message: Any) -> None:
        data = message if isinstance(message, bytes) else pickle.dumps(message)
        with lock:
            answers.write(frame(data))
            answers.flush()

    work: SimpleQueue[bytes] = SimpleQueue()

    def listen() -> None:
        while (data := read_frame(requests)) is not None:
            work.put(data)
        with contextlib.suppress(OSError):
            os.killpg(0, signal.SIGKILL) if hasattr(os, "killpg") else os._exit(1)

    threading.Thread(target=listen, name="asyncflow-parent-watch", daemon=True).start()
    outside.SEND = send
    handler = _Forward(send)
    logging.root.addHandler(handler)
    logging.getLogger("asyncflow.run").setLevel(logging.INFO)
    while True:
        request = pickle.loads(work.get())  # noqa: S301 - from our own parent
        sys.path[:] = request["path"]
        with contextlib.suppress(OSError):
            os.chdir(request["folder"])
        try:
            answer = pickle.dumps(("ok", copy_context().run(_run, request)))
        except BaseException as error:
            answer = _packed_error(error)
        artifacts = sys.modules.get("asyncflow.artifacts")
        if artifacts is not None:
            artifacts.finish_outside()
        send(answer)


if __name__ == "__main__":
    sys.path[:] = [p for p in sys.path if Path(p or ".") != Path(__file__).parent]
    main()
