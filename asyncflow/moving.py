"""Runs that go from store to store, or altogether."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from asyncflow.errors import RunNotResumable, StoreClosed
from asyncflow.handle import FlowRun
from asyncflow.options import check_count
from asyncflow.states import StateType

if TYPE_CHECKING:
    from asyncflow.clock import Clock
    from asyncflow.journal import Journal
    from asyncflow.recovery import Recovery
    from asyncflow.run import Run
    from asyncflow.runner.threads import Threads
    from asyncflow.store.base import ReadableStore, RunRow
    from asyncflow.writer import Writer

T = TypeVar("T")
S = StateType


class Moving:
    """The part of an engine that exports, imports and deletes runs."""

    if TYPE_CHECKING:
        # What the engine has, of which this is a part.
        store: ReadableStore
        writer: Writer
        journal: Journal
        clock: Clock
        threads: Threads
        live: dict[str, Run]
        recovery: Recovery
        _open: bool

        def check_open(self) -> None: ...
        async def stored_run(self, run_id: str) -> RunRow: ...
        async def flush_logs(self, run: Run) -> None: ...
        async def written(self) -> None: ...
        def report(self, text: str) -> None: ...
        def handle(self, run: Run | RunRow) -> FlowRun[Any]: ...

    async def export(self, run_id: str, path: str | os.PathLike[str]) -> Path:
        """Write a run, with all runs below it, to one file that can be imported elsewhere.

        The file holds what is stored of it at one moment: parameters and results (secrets masked),
        task runs, attempts, states, decisions, messages and log lines. Only its owner may read it,
        and it is there as a whole, or not at all.

        Args:
            path: of the file, which must not exist.

        Raises:
            UnknownRun: there is no such run.
            RunNotResumable: it is a child of another run.
            StoreError: there is such a file already, or it cannot be written.
            ResultUnreadable: a stored result is lost or damaged.
        """
        from asyncflow.exporting import export

        for run in list(self.live.values()):
            await self.flush_logs(run)
        await self.written()
        row = await self.stored_run(run_id)
        if row.parent is not None:
            raise RunNotResumable(f"the run {run_id} is a child run: export the run above it")
        target = Path(path)
        await self._aside(lambda stopped: export(self.store, row, target, stopped))
        return target

    async def import_run(
        self,
        path: str | os.PathLike[str],
        *,
        new_id: bool = False,
        allow_pickle: bool = False,
        max_bytes: int | None = None,
    ) -> FlowRun[Any]:
        """Add the run in a file that `export` wrote to this store: all of it, or nothing.

        It keeps its id. One that had not ended is PAUSED then, named Interrupted: `resume` goes on
        with it, and no recovery does, since the store that it comes from may do so, too. No code is
        run by this, whoever the file comes from; a resume runs the code that it names.

        Args:
            new_id: give it, and the runs below it, other ids; `origin` names the old one.
            allow_pickle: keep results that are pickles, which run code when they are read. Without,
                a resume runs their calls again.
            max_bytes: what the file may expand to; None: 2 GiB.

        Raises:
            RunExists: there is a run with its id.
            InvalidExport: the file is no exported run, is damaged, or of a newer version.
            StoreError: the file cannot be read, or the store not be written.
        """
        from asyncflow.importing import MOST_BYTES, load

        self.check_open()
        check_count("max_bytes", max_bytes, 1)
        source, now = Path(path), self.clock.time()
        most = MOST_BYTES if max_bytes is None else max_bytes
        done = await self._aside(
            lambda stopped: load(
                self.store,
                source,
                now=now,
                new_id=new_id,
                allow_pickle=allow_pickle,
                max_bytes=most,
                stopped=stopped,
            )
        )
        for note in done.notes:
            self.report(note)
        return self.handle(done.row)

    async def _aside(self, work: Callable[[Callable[[], bool]], T | None]) -> T:
        """Do what takes long on a thread. *work* is given what tells it to stop, and gives None
        then: when its caller is cancelled, or the engine closed."""
        left = threading.Event()
        stopped = lambda: left.is_set() or not self._open  # noqa: E731 - nothing more to say
        try:
            done = await self.threads.run(lambda: work(stopped))
        finally:
            left.set()
        if done is None:
            raise StoreClosed("the engine was closed meanwhile")
        found: T = done
        return found

    async def delete(self, run_id: str) -> int:
        """Delete an ended or paused run with all that belongs to it; how many runs went.

        Raises:
            UnknownRun: there is no such run.
            RunNotResumable: it is being run, or is a child of another run.
        """
        self.check_open()
        row = await self.stored_run(run_id)
        if row.id in self.live or (not S(row.state).is_final and self.recovery.owned(row)):
            raise RunNotResumable(f"the run {run_id} is {row.state_name}: cancel it first")
        if row.parent is not None:
            raise RunNotResumable(f"the run {run_id} is a child run: delete the run above it")
        await self.journal.durable()
        return await self.writer.do(lambda: self.store.delete_run(row.pk))
