"""Runs functions in processes of their own, which can be killed: with all that they started.

Each worker is the leader of a session, so that killing its process group reaches everything
that the function started and did not put into a session of its own. Workers are reused.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import pickle
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable
from pathlib import Path
from typing import Any

from asyncflow.errors import NotSerializable, RecordedFailure, WorkerLost
from asyncflow.naming import is_from_file
from asyncflow.runner.worker import _SIZE, frame
from asyncflow.tracing import carried


class ProcessRunner:
    """The worker processes of one engine."""

    def __init__(self) -> None:
        self._idle: list[Process] = []
        self._all: set[Process] = set()

    async def run(
        self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Run a function of a module in a worker; a cancellation kills the worker.

        Raises:
            NotSerializable: function or arguments cannot be sent to another process.
            WorkerLost: the worker died.
            Exception: whatever the function raised.
        """
        request = pickle.dumps(_request(fn, args, kwargs))
        worker = await self._worker()
        done = False
        try:
            assert worker.stdin is not None
            worker.stdin.write(frame(request))
            with contextlib.suppress(ConnectionError):
                await worker.stdin.drain()
            answer = await self._answer(worker)
            done = True
        finally:
            if done:
                self._idle.append(worker)
            else:
                self._kill(worker)
        return _outcome(answer)

    async def _worker(self) -> Process:
        while self._idle:
            worker = self._idle.pop()
            if worker.returncode is None:
                return worker
            self._all.discard(worker)
        worker = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "asyncflow.runner.worker",
            stdin=PIPE,
            stdout=PIPE,
            start_new_session=True,
            limit=2**26,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        )
        self._all.add(worker)
        return worker

    async def _answer(self, worker: Process) -> Any:
        assert worker.stdout is not None
        while True:
            try:
                head = await worker.stdout.readexactly(_SIZE.size)
                data = await worker.stdout.readexactly(_SIZE.unpack(head)[0])
            except (asyncio.IncompleteReadError, ConnectionError):
                code = await worker.wait()
                raise WorkerLost(
                    f"the worker process {worker.pid} died ({_told(code)}) while it ran a task"
                ) from None
            message = pickle.loads(data)  # noqa: S301 - from our own child
            if message[0] == "call":
                from asyncflow.artifacts import from_outside

                from_outside(message[1], message[2])
                continue
            if message[0] != "log":
                return message
            _, name, level, text = message
            logger = logging.getLogger(name)
            # Not `logger.log`: whether it counts was decided in the worker.
            logger.handle(logger.makeRecord(name, level, "(worker process)", 0, text, (), None))

    def _kill(self, worker: Process) -> None:
        self._all.discard(worker)
        try:
            os.killpg(worker.pid, signal.SIGKILL)
        except (OSError, AttributeError):
            with contextlib.suppress(ProcessLookupError):
                worker.kill()
        transport = getattr(worker, "_transport", None)
        if transport is not None:
            transport.close()

    async def aclose(self) -> None:
        """Kill all workers and wait until they are gone."""
        workers = list(self._all)
        for worker in workers:
            self._kill(worker)
        for worker in workers:
            await worker.wait()
        self._idle.clear()


def _request(
    fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    qualname = getattr(fn, "__qualname__", "")
    module = getattr(fn, "__module__", "")
    if not qualname or "<locals>" in qualname or "<lambda>" in qualname:
        raise NotSerializable(
            f"the function {qualname or fn!r}",
            type(fn).__name__,
            "another process finds only functions at the top level of a module",
        )
    main: str | None = None
    if module == "__main__":
        file = getattr(sys.modules["__main__"], "__file__", None)
        if file is None:
            raise NotSerializable(
                f"the function {qualname}",
                "function of an interactive session",
                "put it in a file, so that another process can import it",
            )
        main = str(Path(file).resolve())
    try:
        inputs = pickle.dumps((args, kwargs))
    except Exception as error:
        raise NotSerializable(
            f"an argument of {qualname}", "value that cannot be pickled", str(error)
        ) from error
    return {
        "module": module,
        "qualname": qualname,
        "main": main,
        "file": None if main or not is_from_file(module) else sys.modules[module].__file__,
        "inputs": inputs,
        "path": sys.path,
        "folder": str(Path.cwd()),
        "trace": carried(),
    }


def _outcome(answer: Any) -> Any:
    match answer:
        case ("ok", value):
            return value
        case ("error", error):
            raise error
        case ("text", name, text, told):
            raise RecordedFailure(name, text, told)
    raise WorkerLost(f"a worker process answered {answer!r}")


def _told(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
