"""Writes commands for other engines, and carries out those of others: the shell around
`asyncflow.commands`.

An engine looks for commands when what it asks the store anyway, again and again, tells that there
are some: for deployments that it serves each second, for runs without an owner every two. So one
that does neither takes none, and one that is idle asks no more than before.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

from asyncflow import commands
from asyncflow.errors import (
    AlreadyAnswered,
    AsyncflowError,
    CommandFailed,
    RunNotResumable,
    RunTaken,
    StoreClosed,
    StoreError,
    UnknownFlow,
    UnknownRun,
)
from asyncflow.failures import told
from asyncflow.ids import new_run_id
from asyncflow.registry import declared, find, is_at_hand
from asyncflow.rounds import Rounds
from asyncflow.states import StateType
from asyncflow.store import planning
from asyncflow.store.planning import CommandRow, Planning, TakerRow

if TYPE_CHECKING:
    from asyncflow.engine import Engine
    from asyncflow.store.base import RunRow

#: Commands that one engine carries out at once.
AT_ONCE = 10
#: Seconds between two looks at what has become of a command.
LOOK = 0.5
#: Seconds after the time of a command is over until that is written.
AFTER = 0.2
#: Seconds between attempts to store what has become of one.
WAITS = (0.2, 1.0, 5.0)
#: Seconds that commands which are being carried out have when an engine is closed.
LAST_WORDS = 5.0

_DONE = {
    "resume": "it goes on",
    "rerun": "it runs again under a new id",
    "fork": "it was forked",
    "run": "it has begun",
    "answer": "it was answered",
    "deploy": "it is deployed",
}


class Commands(Rounds):
    """What one engine asks others for, and does for others."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine, "commands", 1.0)
        #: Whether this engine may take commands: not one that is about to end with its runs.
        self.allowed = True
        #: Whether no code of the user may be imported here: others are asked for what needs it.
        self.only_asks = False
        self._taker = False
        self._wanted = False
        self._passed: set[str] = set()  # what cannot be done here
        self._under_way: dict[str, asyncio.Task[None]] = {}
        self._gate = asyncio.Semaphore(AT_ONCE)
        self._over: asyncio.TimerHandle | None = None
        self._sweeping: asyncio.Task[None] | None = None

    # --- asking ---------------------------------------------------------------------------------

    async def ask(
        self,
        kind: str,
        arguments: dict[str, Any],
        *,
        run: str | None = None,
        deployment: str | None = None,
        key: str | None = None,
    ) -> CommandRow | None:
        """Ask whichever engine has the code to do something.

        Args:
            run, deployment: what it is about.
            key: the same key gives the same command, unless that failed or expired.

        Returns:
            None where no living engine looks for commands: nothing is asked then.
        """
        engine, now = self._engine, self._engine.clock.time()
        key = commands.plain(key) if key is not None else None
        row = CommandRow(
            0, new_run_id(now), kind, run, deployment, commands.canonical(arguments), key,
            f"process {os.getpid()} on {platform.node()}", now, now + commands.PATIENCE,
            commands.CommandState.WAITING.value,
        )  # fmt: skip

        def work(plans: Planning) -> CommandRow | None:
            same = plans.same_command(row) if key is not None else None
            if same is not None:
                return same
            return plans.add_command(row) if plans.takers(engine.recovery.is_alive) else None

        await self._lapse()
        made = await engine.writer.do(lambda: engine.store.plan(work))
        if made is not None and made.ended_at is None:
            self._sweep_in(commands.PATIENCE + AFTER)
        return made

    async def asked(
        self,
        kind: str,
        arguments: dict[str, Any],
        *,
        run: str | None = None,
        deployment: str | None = None,
        key: str | None = None,
    ) -> str | None:
        """`ask`, and wait for the end: the id of the run that was made, or goes on.

        Raises:
            CommandFailed: it was not done.
        """
        row = await self.ask(kind, arguments, run=run, deployment=deployment, key=key)
        if row is None:
            raise CommandFailed(f"no engine that is open takes commands ({kind})")
        while row.ended_at is None:
            await asyncio.sleep(LOOK)
            rows = await self._engine.reader.planned(planning.commands(row.id))
            if not rows:
                raise CommandFailed(f"the command ({kind}) was removed")
            row = commands.shown(rows[0], self._engine.clock.time())
        if row.state != commands.CommandState.DONE:
            raise CommandFailed(row.detail)
        return row.made

    def _sweep_in(self, seconds: float) -> None:
        if self._over is None and self._engine.usable_still:
            self._over = self._engine.loop.call_later(seconds, self._sweep)

    def _sweep(self) -> None:
        self._over = None
        self._sweeping = copy_context().run(
            self._engine.loop.create_task, self._sweep_once(), name="asyncflow-commands-over"
        )

    async def _sweep_once(self) -> None:
        try:
            left = await self._lapse()
        except AsyncflowError as error:
            self._report(str(error))
            left = commands.PATIENCE
        if left is not None:
            self._sweep_in(left + AFTER)

    async def _lapse(self) -> float | None:
        """Write what has become of commands whose time is over; seconds to the next look, if
        there are others."""
        engine, now = self._engine, self._engine.clock.time()
        store = engine.store

        def work() -> float | None:
            if not store.asked():
                return None
            rows = store.plan(lambda plans: plans.open_commands())
            over = [row for row in rows if commands.is_over(row, now, engine.recovery.is_alive)]
            ends = []
            for row in over:
                made = store.run_by_key(commands.run_key(row)) if row.taken else None
                ends.append((row, commands.lapsed(row, now, made.id if made else None)))

            def settle(plans: Planning) -> None:
                for row, end in ends:
                    if plans.command(row.id) == row:  # nobody was quicker
                        plans.save_command(end)
                        plans.emit([commands.event_of(end)])

            if ends:
                store.plan(settle)
            if len(over) == len(rows):
                return None
            return min(max(1.0, r.expires_at - now) for r in rows if r not in over)

        return await engine.writer.do(work)

    # --- doing ----------------------------------------------------------------------------------

    async def begin(self) -> None:
        """Take commands from now on, where others may ask."""
        engine = self._engine
        if self._taker or not self.allowed or not engine.has_company:
            return
        self._taker = True
        row = TakerRow(engine.id, os.getpid(), platform.node(), engine.clock.time())
        try:
            await engine.writer.do(lambda: engine.store.plan(lambda plans: plans.add_taker(row)))
        except BaseException:
            self._taker = False
            raise

    def begin_soon(self) -> None:
        """`begin`, in the background."""
        if not self._taker:
            self._engine.executor.background(self.begin(), "asyncflow-taker")

    def seen(self, count: int) -> None:
        """So many commands are open."""
        if count and self._taker:
            self.look()

    def look(self) -> None:
        self._wanted = True
        super().look()

    @property
    def active(self) -> bool:
        return self._wanted

    async def round(self) -> float:
        self._wanted = False
        engine, now = self._engine, self._engine.clock.time()
        rows = await engine.reader.planned(planning.open_commands())
        self._passed &= {row.id for row in rows}
        if any(commands.is_over(row, now, engine.recovery.is_alive) for row in rows):
            await self._lapse()
        for row in rows:
            if row.id in self._passed or row.id in self._under_way or not engine.usable_still:
                continue
            if commands.is_for(row, now, engine.recovery.is_alive):
                await self._consider(row)
        return self._every

    async def _consider(self, row: CommandRow) -> None:
        """Take a command that can be done here, and say of another one why it cannot."""
        why = await self._why_not(row)
        if why is None:
            return  # an engine that needs not import the code goes first
        if why:
            self._passed.add(row.id)
            await self._change(row.id, lambda now, seen, p: self._declined(now, seen, p, why))
            return
        taken = await self._change(
            row.id, lambda now, seen, _: commands.taken(seen, self._engine.id, now, self._alive)
        )
        if taken is not None:
            self._under_way[row.id] = copy_context().run(
                self._engine.loop.create_task, self._carry_out(taken), name="asyncflow-command"
            )

    def _alive(self, engine: int) -> bool:
        return self._engine.recovery.is_alive(engine)

    def _declined(
        self, now: float, row: CommandRow, plans: Planning, why: str
    ) -> CommandRow | None:
        alive = [one.engine for one in plans.takers(self._alive)]
        return commands.declined(row, self._engine.id, why, alive, now)

    async def _change(self, command: str, decide: Any) -> CommandRow | None:
        """Decide about a command as it is stored now, and store that, in one transaction."""
        engine = self._engine

        def work(plans: Planning) -> CommandRow | None:
            now = engine.clock.time()
            row = plans.command(command)
            after: CommandRow | None = decide(now, row, plans) if row is not None else None
            if after is not None:
                plans.save_command(after)
                if after.ended_at is not None:
                    plans.emit([commands.event_of(after)])
            return after

        return await engine.writer.do(lambda: engine.store.plan(work))

    async def _why_not(self, row: CommandRow) -> str | None:
        """Why it cannot be done here; "" if it can, None if others go first."""
        engine = self._engine
        if row.kind not in commands.KINDS:
            return f"it is older, and knows nothing of {row.kind!r}"
        if row.kind == "run":
            scheduler = engine.scheduler
            if scheduler is not None and scheduler.serves(row.deployment or ""):
                return ""
            return f"it does not serve the deployment {row.deployment!r}"
        if row.kind == "deploy":
            name = json.loads(row.arguments)["flow"]
            count = len(declared(name))
            if count == 1:
                return ""
            return f"{count or 'no'} flow{'s' if count > 1 else ''} called {name!r} is loaded there"
        stored = await engine.reader.find_run(row.run or "")
        if stored is None:
            return ""  # it is taken, and fails of that
        if not is_at_hand(stored.flow_ref):
            takers = await engine.reader.planned(planning.takers())
            alone = not any(t.engine != engine.id and self._alive(t.engine) for t in takers)
            if not commands.may_import(row, engine.clock.time(), alone):
                return None
        try:
            flow = find(stored.flow_ref, stored.flow_name)
        except UnknownFlow as error:
            return str(error)
        version = flow.options.version
        if row.kind == "resume" and version != stored.version:
            return (
                f"the run was begun by version {stored.version!r} of flow {flow.name!r}, and its"
                f" code is version {version!r}"
            )
        return ""

    async def _carry_out(self, row: CommandRow) -> None:
        engine = self._engine
        try:
            failed, detail, made = False, _DONE[row.kind], None
            try:
                async with self._gate:
                    made = await self._done(row)
            except Exception as error:
                if isinstance(error, StoreClosed) or not engine.usable_still:
                    await self._change(
                        row.id, lambda _now, seen, _p: commands.given_back(seen, engine.id)
                    )
                    return
                known = isinstance(error, AsyncflowError | ValueError)
                failed, detail = True, engine.masker.text(str(error) if known else told(error))
            # By now the secrets among its arguments are known.
            hidden = engine.masker.data(row.arguments)

            def settle(now: float, seen: CommandRow, _: Planning) -> CommandRow | None:
                end = commands.ended(seen, engine.id, now, failed=failed, detail=detail, made=made)
                return end._replace(arguments=hidden) if end is not None else None

            for wait in WAITS:
                try:
                    await self._change(row.id, settle)
                    break
                except StoreError:
                    await asyncio.sleep(wait)
            else:
                await self._change(row.id, settle)
        except AsyncflowError as error:
            engine.report(f"what became of a command ({row.kind}) cannot be stored: {error}")
        finally:
            del self._under_way[row.id]

    async def _done(self, row: CommandRow) -> str | None:
        """Do it: the id of the run that was made, or goes on."""
        engine, given = self._engine, json.loads(row.arguments)
        run_id, name, key = row.run or "", row.deployment or "", commands.run_key(row)
        parameters = given.get("parameters")
        match row.kind:
            case "rerun":
                return (await engine.rerun(run_id, parameters, idempotency_key=key)).id
            case "fork":
                run = await engine.fork(
                    run_id,
                    given.get("from_task"),
                    parameters,
                    given.get("results"),
                    idempotency_key=key,
                )
                return run.id
            case "run":
                run = await engine.planner().run_now(
                    name,
                    parameters,
                    run_name=given.get("name"),
                    idempotency_key=key,
                    cause=given.get("cause"),
                )
                return run.id
            case "resume" | "answer":
                stored = await engine.reader.find_run(run_id)
                if stored is None:
                    raise UnknownRun(run_id)
                if await self._was_done(row, stored, given):
                    return run_id
                if row.kind == "answer":
                    await self._answer(row, given)
                else:
                    await self._resume(row, stored, given)
                return run_id
            case "deploy":
                await engine.deploy(_deployment(name, given), source="api")
                return None
        raise AssertionError(row.kind)

    async def _was_done(self, row: CommandRow, stored: RunRow, given: dict[str, Any]) -> bool:
        """Whether an engine that took it before has done it, and the run is not in need of us."""
        if row.taken < 2 or not commands.has_moved(given, stored.state_at):
            return False
        state = StateType(stored.state)
        return state.is_final or state is StateType.PAUSED or self._engine.recovery.owned(stored)

    async def _answer(self, row: CommandRow, given: dict[str, Any]) -> None:
        try:
            await self._engine.answer(row.run or "", given.get("data"))
        except AlreadyAnswered:
            if row.taken < 2:
                raise  # else by the engine that took it before us

    async def _resume(self, row: CommandRow, stored: RunRow, given: dict[str, Any]) -> None:
        expected = given.get("expected_state")
        is_ = self._engine.as_it_is(stored)
        if row.taken < 2 and expected is not None and expected not in (is_.state, is_.state_name):
            raise RunNotResumable(f"the run is {is_.state_name} by now, not {expected}")
        try:
            await self._engine.recovery.resume(given.get("cause"), stored.id)
        except (AlreadyAnswered, RunTaken):
            if row.taken < 2:
                raise  # else it goes on, by whomever

    async def aclose(self) -> None:
        self._wanted = False
        if self._over is not None:
            self._over.cancel()
        if self._sweeping is not None and not self._sweeping.done():
            await asyncio.wait([self._sweeping])
        await super().aclose()
        if tasks := list(self._under_way.values()):
            # What is cut off is gone on with by another engine, which sees what was done.
            _, late = await asyncio.wait(tasks, timeout=LAST_WORDS)
            for one in late:
                one.cancel()
            await asyncio.wait(tasks)


def _deployment(name: str, given: dict[str, Any]) -> Any:
    from asyncflow.configfile import schedules_from_json
    from asyncflow.deployments import Deployment

    options = dict(given)
    (flow,) = declared(options.pop("flow"))
    schedules = schedules_from_json(options.pop("schedules", []))
    return Deployment(flow=flow, name=name, schedules=schedules, **options)
