"""The waits of an engine's runs for time, for messages and for people, and what ends them.

A wait is recorded before it begins, so that a resumed run waits only for the rest. While the
body of a flow itself waits, its run is PAUSED; when it has waited for a while and has nothing
else to do, the body is unwound (it *suspends*: the run leaves memory but for a small record),
and it is replayed when the wait is over.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from asyncflow import drive as driving
from asyncflow.naming import class_name
from asyncflow.run import Call, Run
from asyncflow.states import StateType
from asyncflow.store.base import MessageRow

if TYPE_CHECKING:
    from asyncflow.engine import Engine

S = StateType

#: The longest time (seconds) that is slept without looking at the clock again: the wall's may
#: have been set, and both go on while the machine is suspended, which timers do not.
LONGEST = 60.0
#: Waits that end sooner (seconds) do not change the state of their run.
BRIEF = 1.0


@dataclass(slots=True, eq=False)
class Wait:
    """One wait.

    Attributes:
        until: when it is over by itself, in seconds since the epoch; None: never. By the
            engine's steady clock, or by the wall clock where a point in time was asked for.
        name: of the message that ends it; None: only time does.
        kind: "sleep", "event" or "pause", for people.
        model: what an answer is checked with.
        body: whether the body of the flow waits, and nothing beside it.
        ended: the message, or None when its time was over.
        by_wall: whether *until* is a point in time, and not the end of a duration.
        came: what came while the store was asked what had come before; None: it has been asked.
        call: whose code waits; None: that of the flow.
        began: when, in seconds since the epoch.
    """

    run: Run
    kind: str
    until: float | None = None
    name: str | None = None
    label: str = ""
    model: Any = None
    body: bool = False
    by_wall: bool = False
    ended: asyncio.Future[MessageRow | None] = field(init=False)
    timer: asyncio.TimerHandle | None = None
    came: list[MessageRow] | None = field(default_factory=list)
    call: Call | None = None
    began: float = 0.0

    def describe(self) -> bytes:
        """What is stored of it, as JSON."""
        told: dict[str, Any] = {"kind": self.kind}
        if self.label:
            told["name"] = self.label
        if self.name is not None:
            told["message"] = self.name
        if self.model is not None:
            told["model"] = class_name(self.model)
            told["schema"] = self.model.model_json_schema()
        return json.dumps(told).encode()

    def sentence(self) -> str:
        """The same, for people."""
        match self.kind:
            case "sleep":
                return "sleeps"
            case "pause":
                return "waits for an answer"
            case _:
                return f"waits for the event {self.label!r}"


class Waiting:
    """All waits of one engine.

    Args:
        suspend_after: seconds after which a run that only waits leaves memory; None: never.
    """

    def __init__(self, engine: Engine, suspend_after: float | None) -> None:
        self._engine = engine
        self._suspend_after = suspend_after
        self._waits: dict[Wait, None] = {}
        self._seen = 0
        self._fetching = False

    # --- waiting --------------------------------------------------------------------------------

    async def wait(self, wait: Wait, call: Call | None) -> MessageRow | None:
        """Wait; the message that came, or None when the time was over."""
        wait.call, wait.began = call, self._engine.clock.time()
        self.begin(wait)
        paused = wait.body and (wait.until is None or self._left(wait.until, wait) >= BRIEF)
        leave: asyncio.TimerHandle | None = None
        try:
            if wait.name is not None:
                await self._fetch(wait)
            if paused and not wait.ended.done():
                self._engine.flows.pause(wait.run, wait)
                if self._suspend_after is not None:
                    leave = self._engine.loop.call_later(self._suspend_after, self._suspend, wait)
            if call is None:
                return await wait.ended
            message: MessageRow | None = await self._engine.executor.lend_while(call, wait.ended)
            return message
        finally:
            if leave is not None:
                leave.cancel()
            self.end(wait)
            if paused and wait.run.stop is None:
                self._engine.flows.unpause(wait.run)

    def begin(self, wait: Wait) -> None:
        """Look out for what ends it."""
        wait.ended = self._engine.loop.create_future()
        self._waits[wait] = None
        self._arm(wait)
        if wait.name is not None:
            self._engine.look_out()

    def end(self, wait: Wait) -> None:
        """It is over, or given up."""
        self._waits.pop(wait, None)
        if wait.timer is not None:
            wait.timer.cancel()

    def _left(self, until: float, wait: Wait) -> float:
        engine = self._engine
        return until - (engine.clock if wait.by_wall else engine.steady).time()

    def _arm(self, wait: Wait) -> None:
        wait.timer = None
        if wait.until is None or wait.ended.done():
            return
        left = self._left(wait.until, wait)
        if left <= 0:
            wait.ended.set_result(None)
            return
        wait.timer = self._engine.loop.call_later(min(left, LONGEST), self._arm, wait)

    # --- leaving memory ---------------------------------------------------------------------------

    def _suspend(self, wait: Wait) -> None:
        run = wait.run
        if run.parent is not None or run.live or run.stop is not None or wait.ended.done():
            return
        if run.extra.transactions:
            return  # to be cancelled it would have to be read again, or nothing would be undone
        if wait.until is not None and self._left(wait.until, wait) < BRIEF:
            return
        # What ends the wait now ends the sleep of the run.
        asleep = Wait(run, wait.kind, wait.until, wait.name, wait.label, wait.model)
        asleep.came, asleep.by_wall, asleep.began = None, wait.by_wall, wait.began
        run.extra.asleep = asleep
        self.begin(asleep)
        driving.stop(run, "suspend")

    # --- messages ---------------------------------------------------------------------------------

    @property
    def expecting(self) -> bool:
        """Whether any run waits for a message."""
        return any(wait.name is not None for wait in self._waits)

    def of(self, run_id: str) -> list[Wait]:
        """The waits of a run."""
        return [wait for wait in self._waits if wait.run.id == run_id]

    def deliver(self, message: MessageRow) -> None:
        """A message was sent and is stored: whoever waits for it goes on."""
        for wait in list(self._waits):
            if not self._fits(wait, message):
                continue
            if wait.came is None or wait.name is None:
                self._give(wait, message)
            else:
                wait.came.append(message)

    @staticmethod
    def _fits(wait: Wait, message: MessageRow) -> bool:
        run = wait.run
        return (
            wait.name == message.name
            and not wait.ended.done()
            and message.id not in run.extra.decisions.taken
            and (message.run == run.pk or (message.run is None and message.time >= run.created))
        )

    @staticmethod
    def _give(wait: Wait, message: MessageRow) -> None:
        if wait is not wait.run.extra.asleep:
            # Each run takes a message once, whatever else in it waits for the same.
            wait.run.extra.decisions.taken.add(message.id)
        wait.ended.set_result(message)

    async def _fetch(self, wait: Wait) -> None:
        """Whether what it waits for was sent before."""
        engine, pk = self._engine, wait.run.pk
        await engine.journal.durable()
        before = await engine.writer.do(lambda: engine.store.messages(pk, 0))
        came, wait.came = wait.came or [], None
        for message in [*before, *came]:
            if self._fits(wait, message):
                self._give(wait, message)
                return

    def look(self) -> None:
        """Look for what other processes have sent; on the loop, at intervals."""
        engine = self._engine
        if self._fetching or not self.expecting:
            return
        self._fetching = True
        pks = {wait.run.pk for wait in self._waits if wait.name is not None}
        seen = self._seen

        def read() -> tuple[int, list[MessageRow]]:
            newest = engine.store.newest_message()
            if newest <= seen:
                return newest, []
            found = {m.id: m for pk in pks for m in engine.store.messages(pk, seen)}
            return newest, [found[i] for i in sorted(found)]

        def done(result: tuple[int, list[MessageRow]] | None, error: Any) -> None:
            self._fetching = False
            if result is None or error is not None:
                return
            self._seen = max(self._seen, result[0])
            for message in result[1]:
                self.deliver(message)

        engine.writer.submit(read, done)


__all__ = ["Wait", "Waiting"]
