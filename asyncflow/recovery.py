"""Runs that are taken over: resumed, or left by an engine that has died."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from asyncflow import rows
from asyncflow.errors import AsyncflowError, RunNotResumable, RunTaken
from asyncflow.handle import FlowRun
from asyncflow.ownership import MemoryLock, is_alive
from asyncflow.registry import find, has_changed
from asyncflow.run import Run
from asyncflow.states import StateType
from asyncflow.store.base import (
    IMPORTED,
    EngineRow,
    LimitRow,
    LogRow,
    RunRow,
    StateRow,
    Writes,
)

if TYPE_CHECKING:
    from asyncflow.engine import Engine

S = StateType

#: Seconds between two looks at what another process asks for, or has done.
POLL = 0.25
#: Seconds between two looks for runs whose engine has died.
WATCH = 2.0


class Recovery:
    """Takes over runs for one engine.

    Args:
        most: recoveries of a run in a row without a newly completed task, where its flow does
            not say.
    """

    def __init__(self, engine: Engine, most: int) -> None:
        self._engine = engine
        self._most = most
        self._watching: asyncio.TimerHandle | None = None
        self.watchful = False

    def close(self) -> None:
        """Look for no more."""
        if self._watching is not None:
            self._watching.cancel()

    # --- of dead engines --------------------------------------------------------------------------

    async def recover(self) -> list[FlowRun[Any]]:
        """`Engine.recover`: now, and from now on at intervals."""
        await self._engine.commands.begin()
        taken = await self._recover()
        self.watchful = True
        self.watch_later()
        return taken

    def watch_later(self) -> None:
        engine = self._engine
        if self._watching is None and self.watchful and engine.has_company:
            self._watching = engine.loop.call_later(WATCH, self._watch)

    def _watch(self) -> None:
        """Look for runs without an owner, again and again."""
        engine = self._engine
        self._watching = None
        if engine.is_working:
            engine.apart().run(engine.executor.background, self._watch_once(), "asyncflow-watch")

    async def _watch_once(self) -> None:
        engine = self._engine
        try:
            await self._recover()
        except AsyncflowError as error:
            engine.report(f"looking for runs without an owner failed, and is done again: {error}")
        if engine.is_working:
            self.watch_later()

    async def _recover(self) -> list[FlowRun[Any]]:
        engine = self._engine
        taken: list[FlowRun[Any]] = []
        await engine.journal.durable()  # what we have let go of just now
        unfinished, asked = await engine.writer.do(
            lambda: (engine.store.unfinished(engine.id), engine.store.asked())
        )
        engine.commands.seen(asked)
        for row, dead in unfinished:
            if not engine.is_open:
                break
            if row.id in engine.live or self.owned(row) or row.waits_for == IMPORTED:
                continue
            try:
                run = await self._reopen(row, fresh=False, crashed=row.state != S.PAUSED)
            except RunTaken:
                continue  # another engine was quicker
            except AsyncflowError as error:
                await engine.written()
                await self._park(await engine.stored_run(row.id), str(error))
            else:
                if row.state != S.PAUSED:
                    self._tell_death(row, dead)
                taken.append(run)
        return taken

    def _tell_death(self, row: RunRow, dead: EngineRow | None) -> None:
        """Close the log of a life that ended in the middle, and may have ended anywhere."""
        engine = self._engine
        who = f"its process ({dead.pid} on {dead.host})" if dead is not None else "its process"
        now = engine.clock.time()
        text = f"killed: {who} died without a word; what it logged last may be missing"
        engine.journal.logs([LogRow(row.pk, None, now, logging.WARNING, "asyncflow", text)])

    async def _park(self, row: RunRow, reason: str) -> None:
        """Leave a run that cannot go on here, with its reason, for people to see."""
        engine = self._engine
        if row.state_name == "NeedsAttention" and row.message == reason:
            return
        claimed = await self.claim(row)
        if claimed is None:
            return
        now = engine.clock.time()
        name = "NeedsAttention"
        parked = claimed._replace(
            state=S.PAUSED.value, state_name=name, message=reason, state_at=now, engine=None
        )
        state = StateRow(row.pk, now, S.PAUSED.value, name, reason, parked.epoch)
        engine.journal.run(parked, state)
        await engine.journal.durable()
        engine.report(f"the run {row.id} needs attention: {reason}")

    # --- of anybody -------------------------------------------------------------------------------

    async def resume(
        self,
        cause: str | None,
        run_id: str,
        parameters: dict[str, Any] | None = None,
        any_version: bool = False,
    ) -> FlowRun[Any]:
        """Go on with a run (see `Engine.resume`).

        Args:
            cause: what made it so; None: a call.
        """
        engine = self._engine
        engine.check_open()
        live = engine.live.get(run_id)
        if live is not None:
            if any(wait.kind == "pause" for wait in engine.waiting.of(run_id)):
                await engine.answer(run_id)
            if engine.asides.retry(live):
                await engine.journal.durable()
            return FlowRun(engine, live)
        row = await engine.stored_run(run_id)
        if row.state_name == "NeedsAttention" and self.owned(row):
            row = await self._retry_elsewhere(row)
            if row.state_name != "NeedsAttention":
                return FlowRun(engine, None, row)
        if row.state == S.PAUSED and row.state_name == "Paused":
            await engine.answer(run_id)
            if self.owned(row):
                return FlowRun(engine, None, await engine.stored_run(run_id))
        if row.parent is not None:
            raise RunNotResumable(
                f"the run {run_id} is a child run: resume the run that it belongs to"
            )
        state = S(row.state)
        if state is S.COMPLETED:
            raise RunNotResumable(f"the run {run_id} has completed: there is nothing to resume")
        if state not in (S.PAUSED, S.FAILED, S.CANCELLED, S.CRASHED) and self.owned(row):
            raise RunNotResumable(f"the run {run_id} is {row.state_name} in another process")
        fresh = state in (S.FAILED, S.CANCELLED, S.CRASHED)
        if cause is not None:
            row = row._replace(cause=cause)
        return await self._reopen(
            row, fresh=fresh, retry=True, parameters=parameters, any_version=any_version
        )

    async def _retry_elsewhere(self, row: RunRow) -> RunRow:
        """Ask the process that owns a run to try again what waits for a person there."""
        engine = self._engine
        now = engine.clock.time()
        await engine.writer.do(lambda: engine.store.request(row.pk, "resume", now))
        while row.state_name == "NeedsAttention" and self.owned(row):
            await asyncio.sleep(POLL)
            row = await engine.stored_run(row.id)
        return row

    async def _retry_stored(self, root: RunRow) -> None:
        """What waits for a person in a run that nobody runs, or below it, begins anew."""
        engine = self._engine

        def write() -> None:
            open_ = [(root.pk, root.epoch)]
            for pk, epoch in open_:
                open_ += [(child.pk, child.epoch) for child in engine.store.children(pk)]
                paused = [
                    row._replace(state=S.PENDING.value, message="", failures=0, error=None)
                    for row in engine.store.calls(pk, S.PAUSED.value)
                ]
                if paused:
                    engine.store.write(Writes(tasks=paused, fences={pk: epoch}))

        await engine.writer.do(write)

    async def _reopen(
        self,
        row: RunRow,
        *,
        fresh: bool,
        crashed: bool = False,
        retry: bool = False,
        parameters: dict[str, Any] | None = None,
        any_version: bool = False,
    ) -> FlowRun[Any]:
        engine = self._engine
        flow = find(row.flow_ref, row.flow_name)
        if flow.options.version != row.version and not any_version:
            raise RunNotResumable(
                f"the run {row.id} was begun by version {row.version!r} of flow {flow.name!r},"
                f" and the code is version {flow.options.version!r}: bring that version back, or"
                " resume it with any_version=True"
            )
        values = flow.parameters.load(row.parameters, parameters)
        claimed = await self.claim(row, recovers=crashed)
        if claimed is None:
            raise RunTaken(f"the run {row.id} was taken by another process just now")
        try:
            if retry:
                await self._retry_stored(claimed)
            if has_changed(row.flow_ref, flow):
                engine.report(
                    f"the code of flow {flow.name!r} has changed since the run {row.id} began:"
                    " calls that are made as before are kept, others run"
                )
            revived = claimed._replace(cause=row.cause)
            run = engine.flows.revive(revived, flow, values, None, fresh)
            began = not crashed or await self._has_begun(row)
            if crashed and not began and not self._may_recover(run):
                return await self._give_up(run)  # what reads its record dies of it
            # Where its next attempt has not begun, that begins now.
            await engine.flows.load(run, fresh or row.state == S.SCHEDULED)
            if not fresh:
                await engine.flows.count_failures(run)
            if crashed and began and run.history.completed_since(row.state_at):
                run.recoveries = 1
                engine.journal.run(rows.run_row(run, engine.id, engine.clock.time()))
                await engine.journal.durable()
            if crashed and not self._may_recover(run):
                return await self._give_up(run)
            engine.check_open()
        except BaseException:
            self._disclaim(claimed)
            raise
        return engine.start_run(run)

    async def _has_begun(self, row: RunRow) -> bool:
        """Whether the last life of a run came so far as to run its code."""
        story = await self._engine.reader.states(row.pk)
        return not story or story[-1].epoch == row.epoch

    def _may_recover(self, run: Run) -> bool:
        most = run.options.max_recoveries
        return run.recoveries <= (self._most if most is None else most)

    async def _give_up(self, run: Run) -> FlowRun[Any]:
        engine = self._engine
        text = f"its process died {run.recoveries} times in a row without completing anything more"
        run.ended = engine.clock.time()
        engine.move_run(run, S.CRASHED, None, text)
        await engine.journal.durable()
        engine.report(f"the run {run.id} of flow {run.flow_name!r} is CRASHED: {text}")
        # It is over when its hooks are; the recovery of others does not wait for them.
        engine.live[run.id] = run
        engine.executor.background(engine.flows.tell_end(run), "asyncflow-end")
        return FlowRun(engine, run)

    # --- ownership --------------------------------------------------------------------------------

    def owned(self, row: RunRow) -> bool:
        """Whether a living engine owns the run."""
        engine = self._engine
        if row.engine is None:
            return False
        if row.engine == engine.id:
            return row.id in engine.live
        return self.is_alive(row.engine)

    def is_alive(self, engine: int) -> bool:
        """Whether the engine with this id is alive: one on the same store."""
        folder = self._engine.locks()
        if folder is not None:
            return is_alive(folder, engine)
        return MemoryLock.is_held(self._engine.store, engine)

    async def claim(self, row: RunRow, recovers: bool = False) -> RunRow | None:
        """Make this engine the owner of a run; None if another was quicker.

        Args:
            recovers: count it as a recovery: before anything else, as whatever follows may be
                what kills the process.
        """
        claimed = await self._claim_tree(row, recovers)
        return claimed[0] if claimed else None

    async def _claim_tree(self, row: RunRow, recovers: bool = False) -> list[RunRow]:
        """`claim`: the rows of the run and of all below it that have not ended."""
        engine = self._engine
        claimed: list[RunRow] = []

        def take() -> list[LimitRow] | None:
            claimed[:] = engine.store.claim(row.pk, engine.id, row.epoch, recovers=recovers) or []
            return engine.stored_limits()

        try:
            engine.apply_limits(await engine.writer.shortly(take))
        except BaseException:
            if claimed:
                self._disclaim(claimed[0])  # nobody waits for it any more
            raise
        return claimed

    def _disclaim(self, claimed: RunRow) -> None:
        """Give up the ownership of a run that cannot go on here: others may take it."""
        engine = self._engine
        if not engine.is_working or claimed.id in engine.live:
            return
        claimed = claimed._replace(engine=None)
        if S(claimed.state).is_final or claimed.state == S.PAUSED:
            engine.journal.run(claimed)
            return
        now, why = engine.clock.time(), "going on with it was given up"
        engine.journal.run(
            claimed._replace(
                state=S.PAUSED.value, state_name="Interrupted", message=why, state_at=now
            ),
            StateRow(claimed.pk, now, S.PAUSED.value, "Interrupted", why, claimed.epoch),
        )

    async def cancel_stored(self, row: RunRow, message: str = "cancelled") -> bool:
        """Cancel a run that nobody is running."""
        engine = self._engine
        claimed = await self._claim_tree(row)
        if not claimed:
            return False
        now = engine.clock.time()
        for one in claimed:
            changed = one._replace(
                state=S.CANCELLED.value,
                state_name="Cancelled",
                message=message,
                state_at=now,
                ended_at=now,
                engine=None,
            )
            engine.journal.run(
                changed,
                StateRow(one.pk, now, S.CANCELLED.value, "Cancelled", message, one.epoch),
            )
        await engine.journal.durable()
        return True
