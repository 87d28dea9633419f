"""Tells other processes what only this engine knows: what its runs wait for, who holds its limits.

Whoever looks from elsewhere, such as `asyncflow server start` or `asyncflow runs show`, sees only
the store, and a call that waits for its turn has no row of its own there. So an engine whose runs
last looks at itself now and then, and writes down what it finds where that has changed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from asyncflow.standing import Standing
from asyncflow.store.base import NoticeRow
from asyncflow.why import dumped, held_dumped

if TYPE_CHECKING:
    from asyncflow.engine import Engine

#: Seconds between two looks, and for which a run lasts before anything is told of it.
EVERY, YOUNG = 2.0, 1.0
#: Calls that one look goes through, and runs that are told of.
MOST_CALLS, MOST_RUNS = 2_000, 200
#: Seconds after which what has not changed is told again, and after which what an engine told that
#: has died is removed.
AGAIN, OLD = 600.0, 3_600.0


class Telling:
    """What one engine tells.

    Attributes:
        told: what it has told last.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.told: dict[tuple[str, str], bytes] = {}
        self._next = 0.0
        self._again = 0.0
        self._busy = False

    def look(self) -> None:
        """Tell what has changed, if it is time to; on the loop, at intervals while runs live."""
        engine, now = self._engine, self._engine.loop.time()
        if self._busy or (engine.live and now < self._next):
            return
        self._next = now + EVERY
        found = self._found() if engine.live else {}
        if found == self.told and (not found or now < self._again):
            return
        self._again = now + AGAIN
        self.told = found
        self._busy = True
        time = engine.clock.time()
        rows = [NoticeRow(*key, engine.id, time, data) for key, data in found.items()]

        def done(_: None, error: BaseException | None) -> None:
            self._busy = False
            if error is not None:
                self.told = {}
                engine.report(f"what runs wait for cannot be told to other processes: {error}")

        engine.writer.submit(lambda: engine.store.tell(engine.id, rows, time - OLD), done)

    def _found(self) -> dict[tuple[str, str], bytes]:
        engine = self._engine
        old = engine.clock.time() - YOUNG
        runs = [
            run for run in engine.live.values() if run.started is not None and run.started <= old
        ]
        if not runs:
            return {}
        standing = Standing(engine, MOST_CALLS)
        found = {("limit", name): held_dumped(held) for name, held in standing.shared().items()}
        left = MOST_CALLS
        for run in runs[:MOST_RUNS]:
            known = standing.why(run)
            if known.reasons or known.pending:
                found["run", str(run.pk)] = dumped(known.reasons, known.pending)
            left -= len(run.calls)
            if left <= 0:
                break
        return found
