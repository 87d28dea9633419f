"""Does what automations say when something happens: the shell around `asyncflow.triggers`.

Events are stored with what they tell of, in one transaction. An automation goes through them in
order: how far it is, and what it has to do for what it saw, are written in one transaction, too. So
whatever dies in between, each firing has its deliveries exactly once; and each is tried until it
is done or has failed for good, by whichever engine knows the automation.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from math import inf, nextafter
from typing import TYPE_CHECKING, Any, TypeVar

from asyncflow import automations as declared
from asyncflow import triggers
from asyncflow.automations import Automation, automation_from_dict
from asyncflow.errors import (
    DeliveryFailed,
    DeploymentBusy,
    InvalidOption,
    MissingExtra,
    UnknownAutomation,
    UnknownChannel,
)
from asyncflow.failures import told
from asyncflow.ids import new_run_id
from asyncflow.loops import DeploymentFacts, check_loops, guarded
from asyncflow.rounds import Rounds
from asyncflow.store import planning
from asyncflow.store.base import EventRow, RunInfo
from asyncflow.store.planning import AutomationRow, DeliveryRow, Planning
from asyncflow.triggers import EventRecord, Firing

if TYPE_CHECKING:
    from asyncflow.engine import Engine
    from asyncflow.notifications.channels import Channel
    from asyncflow.notifications.outbox import Decision

T = TypeVar("T")

#: Seconds between two looks at what has happened in other processes.
LOOK = 0.5
#: Seconds after an event of our own.
SOON = 0.02
#: Events that are read at once.
PAGE = 500
#: Events after which it is stored how far an automation is, though it has not changed.
STRIDE = 2_000
#: Attempts of an action that is no notification, and seconds before each of them.
WAITS = (0.0, 1.0, 10.0, 60.0)
#: Actions that are carried out at once.
AT_ONCE = 10
#: Seconds that an action may take.
PATIENCE = 60.0
#: Seconds that messages which are on their way have when an engine is closed.
LAST_WORDS = 5.0


@dataclass(slots=True, eq=False)
class Watched:
    """An automation that this engine watches for."""

    automation: Automation
    row: AutomationRow  #: as it was when it was last stored
    state: dict[str, Any]
    position: int  #: the last event that it has seen, stored or not


def record_of(row: EventRow, info: RunInfo | None) -> EventRecord:
    """A stored event, as triggers see it."""
    payload: Any = json.loads(row.payload) if row.payload is not None else None
    fields: dict[str, Any] = {"message": row.message, "payload": payload}
    if row.state:
        fields["state"] = row.state
        fields["state_name"] = row.state_name
    if isinstance(payload, dict):
        for key in ("task", "schedule", "deployment", "flow", "automation", "cause"):
            if key in payload:
                fields[key] = payload[key]
    if info is not None:
        fields["run_id"] = info.id
        fields["flow"] = info.flow_name
        fields["run_name"] = info.name or info.flow_name
        fields["tags"] = list(info.tags)
        if info.deployment is not None:
            fields["deployment"] = info.deployment
        if row.seq is not None:
            fields["task_run_id"] = f"{info.id}-{row.seq}"
        fields["cause"] = causes(info.cause)
    return EventRecord(row.id, row.time, row.called, fields)


def causes(cause: str | None) -> list[str]:
    """The automations that led to a run, the first of them first."""
    if cause is None or not cause.startswith("automation:"):
        return []
    found: list[str] = json.loads(cause.partition(":")[2])
    return found


class Automations(Rounds):
    """The automations of one engine."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine, "automations", LOOK)
        self._own: dict[str, Automation] = {}
        self._watched: dict[str, Watched] = {}
        self.channels: dict[str, Channel] = {}
        self._all = False  # whether it watches for all automations of the store
        #: What is being sent, by channel, beside everything else: a channel may be slow.
        self._senders: dict[str, asyncio.Task[None]] = {}
        #: When attempts failed, by channel: they count for its rate.
        self._tried: dict[str, list[float]] = {}

    # --- what it watches for --------------------------------------------------------------------

    async def add(self, automation: Automation, source: str = "code") -> AutomationRow:
        """Store an automation, and watch for it from now on.

        Raises:
            AutomationLoop: it would fire itself.
            TemplateError: a template of it is wrong.
        """
        engine = self._engine
        _check_templates(automation)
        now = engine.clock.time()
        spec = json.dumps(automation.to_dict()).encode()
        state = json.dumps(triggers.start(automation.trigger, now)).encode()
        new = AutomationRow(
            0, automation.name, spec, source, automation.enabled, state, 0, now, now, 0, None
        )

        def work(plans: Planning) -> AutomationRow:
            others = [
                automation_from_dict(json.loads(row.spec))
                for row in plans.automations()
                if row.name != automation.name
            ]
            check_loops([*others, automation], _facts(plans.deployments()))
            return plans.automate(new)

        row = await engine.writer.do(lambda: engine.store.plan(work))
        self._own[automation.name] = automation
        self._watched.pop(automation.name, None)
        self.look()
        return row

    def add_channel(self, channel: Channel) -> None:
        """Send through this channel from now on what is for it."""
        self.channels[channel.name] = channel
        self.look()

    def serve_stored(self) -> None:
        """Watch for all automations of the store."""
        self._all = True
        self.look()

    async def enable(self, name: str, enabled: bool) -> None:
        """Switch an automation on or off; what happens while it is off never fires it."""
        engine, now = self._engine, self._engine.clock.time()

        def work(plans: Planning) -> bool:
            row = next((row for row in plans.automations() if row.name == name), None)
            if row is None:
                return False
            trigger = automation_from_dict(json.loads(row.spec)).trigger
            state = json.dumps(triggers.start(trigger, now)).encode()
            plans.enable(name, enabled, state, now)
            return True

        if not await engine.writer.do(lambda: engine.store.plan(work)):
            raise UnknownAutomation.named(name)
        self.look()

    async def remove(self, name: str) -> None:
        engine = self._engine
        if not await engine.writer.do(lambda: engine.store.plan(lambda p: p.drop_automation(name))):
            raise UnknownAutomation.named(name)
        self._own.pop(name, None)
        self._watched.pop(name, None)

    # --- again and again ------------------------------------------------------------------------

    @property
    def active(self) -> bool:
        return bool(self._own or self.channels or self._all)

    async def round(self) -> float:
        await self._see()
        while await self._watch():
            pass
        return await self._act()

    def happened(self) -> None:
        """Events were written by this engine: see them soon, many at once."""
        if self._watched:
            self.sooner(SOON)

    def _soon(self, seconds: float) -> None:
        """Have a round in so many seconds at the latest, also where one is under way."""
        if self._task is not None and not self._task.done():
            self._again = True
        else:
            self.sooner(seconds)

    async def aclose(self) -> None:
        self._own.clear()
        self.channels.clear()
        self._all = False
        await super().aclose()
        if senders := [one for one in self._senders.values() if not one.done()]:
            # What is cut off is sent by the next life, perhaps once more.
            _, late = await asyncio.wait(senders, timeout=LAST_WORDS)
            for one in late:
                one.cancel()
            await asyncio.wait(senders)

    # --- events ---------------------------------------------------------------------------------

    async def _see(self) -> None:
        """Which automations there are, and how far they are."""
        if not self._own and not self._all:
            return
        rows = await self._engine.reader.planned(planning.automations())
        wanted = {r.name: r for r in rows if r.enabled and (self._all or r.name in self._own)}
        for name in [name for name in self._watched if name not in wanted]:
            del self._watched[name]
        for name, row in wanted.items():
            known = self._watched.get(name)
            if known is not None and (known.row.spec, known.row.position, known.row.state) == (
                row.spec,
                row.position,
                row.state,
            ):
                continue  # what we know is what is stored, or further
            try:
                self._watched[name] = self._begun(row)
            except InvalidOption as error:
                self._engine.report(f"the automation {name!r} cannot be read: {error}")

    def _begun(self, row: AutomationRow) -> Watched:
        automation = automation_from_dict(json.loads(row.spec))
        state = json.loads(row.state)
        if not triggers.fits(automation.trigger, state):
            state = triggers.start(automation.trigger, self._engine.clock.time())
        return Watched(automation, row, state, row.position)

    async def _watch(self) -> bool:
        """Take what has happened since; whether there is more."""
        if not self._watched:
            return False
        engine = self._engine
        now = engine.clock.time()
        low = min(one.position for one in self._watched.values())
        found = await engine.writer.do(lambda: engine.store.events_after(low, PAGE))
        records = [record_of(row, info) for row, info in found]
        more = len(found) == PAGE
        for one in list(self._watched.values()):
            fired = self._stepped(one, records)
            if not more:
                one.state, late = triggers.elapse(one.automation.trigger, one.state, now)
                fired += late
            await self._store(one, fired, now)
        return more and engine.usable_still

    @staticmethod
    def _stepped(one: Watched, records: Iterable[EventRecord]) -> list[Firing]:
        trigger, fired = one.automation.trigger, []
        for record in records:
            if record.id <= one.position:
                continue
            one.position = record.id
            if record.fields.get("automation") == one.automation.name:
                continue  # what is told of itself
            due = triggers.next_due(trigger, one.state)
            if due is not None and due < record.time:
                before = nextafter(record.time, -inf)
                one.state, late = triggers.elapse(trigger, one.state, before)
                fired += late
            one.state, now = triggers.step(trigger, one.state, record)
            fired += now
        return fired

    async def _store(self, one: Watched, fired: list[Firing], now: float) -> None:
        """Store how far an automation is, and what it has to do, where there is a need to."""
        engine, row = self._engine, one.row
        before = json.loads(row.state).get("changes") if row.state else None
        if not fired and one.state["changes"] == before and one.position < row.position + STRIDE:
            return
        after = row._replace(
            state=json.dumps(one.state).encode(),
            position=one.position,
            fired=row.fired + len(fired),
            fired_at=fired[-1].time if fired else row.fired_at,
        )
        deliveries: list[DeliveryRow] = []
        events: list[EventRow] = []
        for firing in fired:
            deliveries += self._deliveries(one.automation, firing, now)
            events.append(self._told(one.automation, firing, now))

        def work(plans: Planning) -> bool:
            if not plans.progress(row, after, deliveries):
                return False
            plans.emit(events)
            return True

        if await engine.writer.do(lambda: engine.store.plan(work)):
            one.row = after
        else:
            # Another engine was quicker: what it stored counts.
            self._watched.pop(one.automation.name, None)
            self._again = True

    def _deliveries(self, automation: Automation, firing: Firing, now: float) -> list[DeliveryRow]:
        event = firing.event
        fields = event.fields if event is not None else {}
        cause = fields.get("cause") or []
        stopped = guarded(automation.name, cause, starts_runs=automation.starts_runs)
        payload = {
            "automation": automation.name,
            "firing": firing.to_dict(),
            "cause": [*cause, automation.name],
        }
        return [
            DeliveryRow(
                0, automation.name, number, firing.key, action.type,
                getattr(action, "channel", ""), fields.get("run_id"),
                event.id if event is not None else 0, payload,
                "suppressed" if stopped else "pending", 0,
                now + getattr(action, "delay_seconds", 0.0), now, now if stopped else None,
                stopped or "", "",
            )
            for number, action in enumerate(_actions(automation))
        ]  # fmt: skip

    @staticmethod
    def _told(automation: Automation, firing: Firing, now: float) -> EventRow:
        event = firing.event
        cause = (event.fields.get("cause") or []) if event is not None else []
        payload = {
            "automation": automation.name,
            "key": firing.key,
            "events": list(firing.event_ids),
            "labels": dict(firing.labels),
            "cause": [*cause, automation.name],
        }
        return EventRow(
            0, 0, now, "", "", f"{automation.name} fired", 0, "automation.fired", None,
            json.dumps(payload).encode(),
        )  # fmt: skip

    # --- actions --------------------------------------------------------------------------------

    async def _act(self) -> float:
        """Carry out what is due; seconds until there is something again."""
        engine = self._engine
        if self.channels:
            await self._send()
        while engine.usable_still and (rows := await self._claimed()):
            gate = asyncio.Semaphore(AT_ONCE)
            await asyncio.gather(*[self._carry_out(row, gate) for row in rows])
        return LOOK

    async def _claimed(self) -> list[DeliveryRow]:
        """Actions that are due, taken by this engine so that no other one takes them."""
        engine, now = self._engine, self._engine.clock.time()

        def work(plans: Planning) -> list[DeliveryRow]:
            due = plans.due(now, [""], engine.id, engine.recovery.is_alive, AT_ONCE * 5)
            known = [r for r in due if self._all or r.automation in self._own]
            taken = [
                row._replace(state="sending", engine=engine.id, attempts=row.attempts + 1)
                for row in known
            ]
            plans.save(taken)
            return taken

        if not self._own and not self._all:
            return []
        return await engine.writer.do(lambda: engine.store.plan(work))

    async def _carry_out(self, row: DeliveryRow, gate: asyncio.Semaphore) -> None:
        async with gate:
            error, reply = "", ""
            try:
                async with asyncio.timeout(PATIENCE):
                    reply = await self._done(row)
            except TimeoutError:
                error = f"it took more than {PATIENCE:g} s"
            except asyncio.CancelledError:
                raise
            except Exception as raised:
                error = self._engine.masker.text(told(raised, 500))
        await self._settle(row, error, reply)

    async def _settle(self, row: DeliveryRow, error: str, reply: str) -> None:
        now = self._engine.clock.time()
        row = row._replace(engine=None, error=error, reply=reply[:500])
        if not error:
            row = row._replace(state="delivered", ended_at=now)
        elif row.attempts < len(WAITS):
            row = row._replace(state="pending", next_at=now + WAITS[row.attempts])
        else:
            row = row._replace(state="failed", ended_at=now)
        await self.save([row])

    async def save(self, rows: list[DeliveryRow]) -> None:
        """Store how deliveries went; those that failed for good are events."""
        engine = self._engine
        failed = [self._failure(row) for row in rows if row.state == "failed"]

        def work(plans: Planning) -> None:
            plans.save(rows)
            plans.emit(failed)

        await engine.writer.do(lambda: engine.store.plan(work))

    def _failure(self, row: DeliveryRow) -> EventRow:
        payload = {
            "automation": row.automation,
            "kind": row.kind,
            "channel": row.channel,
            "run_id": row.run,
            "error": row.error,
            "cause": row.payload.get("cause", []),
        }
        text = f"{row.kind} of {row.automation} failed: {row.error}"[:500]
        return EventRow(
            0, 0, self._engine.clock.time(), "", "", text, 0, "delivery.failed", None,
            json.dumps(payload).encode(),
        )  # fmt: skip

    async def _done(self, row: DeliveryRow) -> str:
        """Carry out one action; what there is to tell of it."""
        engine = self._engine
        action = await self._action(row)
        cause = row.payload.get("cause", [])
        match action:
            case declared.RunDeployment():
                parameters = await self._aside(partial(self._rendered, action.parameters, row))
                key = f"automation:{row.automation}/{row.action}:{row.key}"
                if engine.commands.only_asks:
                    given = {"parameters": parameters, "cause": _because(cause)}
                    made = await engine.commands.asked(
                        "run", given, deployment=action.name, key=key
                    )
                    return f"run {made}"
                try:
                    run = await engine.planner().run_now(
                        action.name, parameters, idempotency_key=key, cause=_because(cause)
                    )
                except DeploymentBusy as busy:
                    return f"not run: {busy}"
                return f"run {run.id}"
            case declared.CancelRun():
                await engine.cancel(_run(row))
                return f"cancelled {row.run}"
            case declared.ResumeRun():
                if engine.commands.only_asks:
                    given = {"cause": _because(cause)}
                    made = await engine.commands.asked("resume", given, run=_run(row))
                    return f"resumed {made}"
                run = await engine.recovery.resume(_because(cause), _run(row))
                return f"resumed {run.id}"
            case declared.PauseSchedule():
                await engine.pause_deployment(action.deployment, action.schedule)
                return f"paused {action.deployment}"
            case declared.ResumeSchedule():
                await engine.resume_deployment(action.deployment, action.schedule)
                return f"resumed {action.deployment}"
            case declared.SetLimit():
                await engine.set_limit(action.name, action.limit, action.period)
                return f"{action.name} = {action.limit}"
            case declared.CallFunction():
                found = _function(str(action.function))(Firing.from_dict(row.payload["firing"]))
                if inspect.isawaitable(found):
                    found = await found
                return "" if found is None else str(found)
        raise InvalidOption(f"nothing is known of the action {row.kind!r}")

    async def _action(self, row: DeliveryRow) -> Any:
        """What an automation says that is to be done, as it is declared now."""
        automation = self._own.get(row.automation)
        if automation is None:
            rows = await self._engine.reader.planned(planning.automations(row.automation))
            if not rows:
                raise UnknownAutomation(f"the automation {row.automation!r} was removed")
            automation = automation_from_dict(json.loads(rows[0].spec))
        actions = _actions(automation)
        if row.action >= len(actions) or actions[row.action].type != row.kind:
            raise UnknownAutomation(
                f"the automation {row.automation!r} was changed, and has no such action any more"
            )
        return actions[row.action]

    def _rendered(self, value: Any, row: DeliveryRow) -> Any:
        """Parameters with their templates filled in."""
        if isinstance(value, str):
            if "{{" not in value and "{%" not in value:
                return value
            from asyncflow.notifications.templates import render

            return render(value, message_data(row))
        if isinstance(value, dict):
            return {key: self._rendered(one, row) for key, one in value.items()}
        if isinstance(value, list):
            return [self._rendered(one, row) for one in value]
        return value

    async def _aside(self, function: Callable[[], T]) -> T:
        """Call a function that computes for a while, in a thread of the engine."""
        value: T = await self._engine.threads.run(function)
        return value

    # --- notifications --------------------------------------------------------------------------

    async def _send(self) -> None:
        """See that what is due through our channels is sent, each at its own pace."""
        engine = self._engine
        now = engine.clock.time()
        for channel in list(self.channels.values()):
            sender = self._senders.get(channel.name)
            if (sender is not None and not sender.done()) or channel.quiet_until(now) is not None:
                continue
            if engine.usable_still and await engine.reader.planned(
                planning.waiting(channel.name, now)
            ):
                self._senders[channel.name] = engine.loop.create_task(
                    self._send_through(channel), name=f"asyncflow-channel-{channel.name}"
                )

    async def _send_through(self, channel: Channel) -> None:
        """Send what is due through one channel."""
        engine = self._engine
        try:
            found = await self._claimed_for(channel)
            gate = asyncio.Semaphore(AT_ONCE)
            await asyncio.gather(*[self._send_one(channel, rows, gate) for rows in found.send])
        except Exception as error:
            text = channel.mask(told(error, 300))
            engine.report(f"nothing goes through {channel.name!r}, which is tried again: {text}")
            return
        if found.send:
            self._soon(0.0)
        elif found.wait_until is not None:
            self._soon(max(0.0, found.wait_until - engine.clock.time()))

    async def _claimed_for(self, channel: Channel) -> Decision:
        """What is to be sent through a channel, taken by this engine. It is so on disk before it
        is sent: what a crash cuts off is tried again, and counted.
        """
        from asyncflow.notifications import outbox

        engine = self._engine
        now = engine.clock.time()
        since = now - (channel.rate_limit[1] if channel.rate_limit is not None else 0.0)
        tried = self._tried[channel.name] = [
            at for at in self._tried.get(channel.name, ()) if at > since
        ]

        def claim(plans: Planning) -> outbox.Decision:
            due: list[DeliveryRow] = []
            spent: list[DeliveryRow] = []
            for row in plans.due(now, [channel.name], engine.id, engine.recovery.is_alive, PAGE):
                (spent if outbox.is_spent(row, channel) else due).append(row)
            if spent:
                text = "the process died in the middle, time and again"
                spent = [
                    r._replace(state="failed", ended_at=now, error=text, engine=None) for r in spent
                ]
                plans.save(spent)
                plans.emit([self._failure(row) for row in spent])
            left = {row.next_at for row in due if row.state == "sending"}  # by the dead
            sent = plans.sent_since(channel.name, since, channel.digest_seconds is not None)
            lately = [at for at in sent if at not in left] + tried
            found = outbox.decide(due, channel, lately, now)
            taken = [[outbox.claimed(r, engine.id, now) for r in rows] for rows in found.send]
            plans.save([row for rows in taken for row in rows])
            return outbox.Decision(taken, found.wait_until)

        return await engine.writer.do(lambda: engine.store.plan(claim))

    async def _send_one(
        self, channel: Channel, rows: list[DeliveryRow], gate: asyncio.Semaphore
    ) -> None:
        from asyncflow.notifications import outbox, sending

        engine = self._engine
        failure: DeliveryFailed | None = None
        reply = ""
        async with gate:
            try:
                parts = []
                for row in rows:
                    action = await self._action(row)
                    parts.append((message_data(row), action.subject, action.body))
                id_ = _message_id(rows)
                message = await self._aside(partial(sending.compose, channel, id_, parts))
                reply = await sending.send(channel, message, engine.clock.time())
            except DeliveryFailed as error:
                failure = error
            except UnknownAutomation as error:
                failure = DeliveryFailed(str(error), final=True)
            except (MissingExtra, InvalidOption) as error:
                # Of this process; the next one may have what is missing.
                failure = DeliveryFailed(str(error))
            except Exception as error:
                failure = DeliveryFailed(channel.mask(engine.masker.text(told(error, 300))))
        now = engine.clock.time()
        if failure is not None and channel.rate_limit is not None:
            self._tried.setdefault(channel.name, []).append(now)
        await self.save([outbox.after(row, channel, failure, reply, now) for row in rows])

    async def send_test(self, channel: str | Channel) -> str:
        """Send a test message; what came of it."""
        from asyncflow.notifications import sending, templates

        if isinstance(channel, str):
            found = self.channels.get(channel)
            if found is None:
                names = ", ".join(sorted(self.channels)) or "none"
                raise UnknownChannel(
                    f"there is no channel {channel!r} in this engine: it has {names}"
                )
            channel = found
        now = self._engine.clock.time()
        data = {**templates.SAMPLE, "automation": "a test"}
        subject = "a test message of asyncflow"
        parts = [(data, subject, None)]
        id_ = f"test-{new_run_id(now)}"
        message = await self._aside(partial(sending.compose, channel, id_, parts))
        return await sending.send(channel, message, now)


def message_data(row: DeliveryRow) -> dict[str, Any]:
    """What templates may say of a firing: plain data only."""
    firing = row.payload["firing"]
    event = firing.get("event")
    fields = dict(event[3]) if event else {}
    return {
        "automation": row.automation,
        "event": {
            **fields,
            "id": event[0] if event else 0,
            "time": event[1] if event else firing["time"],
            "kind": event[2] if event else "",
        },
        "labels": firing["labels"],
        "count": len(firing["event_ids"]),
        **row.payload.get("about", {}),
    }


def _message_id(rows: Sequence[DeliveryRow]) -> str:
    """The same for all attempts at these deliveries, and for no others."""
    text = "\n".join(f"{row.automation}/{row.action}/{row.key}" for row in rows)
    return blake2b(text.encode(), digest_size=16).hexdigest()


def _actions(automation: Automation) -> tuple[Any, ...]:
    actions: Any = automation.actions
    return tuple(actions)


def _check_templates(automation: Automation) -> None:
    texts: list[str] = []
    for action in _actions(automation):
        if isinstance(action, declared.Notify):
            texts += [text for text in (action.subject, action.body) if text is not None]
        elif isinstance(action, declared.RunDeployment):
            open_: list[Any] = [action.parameters]
            while open_:
                one = open_.pop()
                if isinstance(one, str) and ("{{" in one or "{%" in one):
                    texts.append(one)
                elif isinstance(one, dict | list):
                    open_ += one.values() if isinstance(one, dict) else one
    if texts:
        from asyncflow.notifications import templates

        for text in texts:
            templates.check(text)


def _because(cause: list[str]) -> str:
    """The cause of a run that automations have led to; `causes` reads it."""
    return f"automation:{json.dumps(cause)}"


def _run(row: DeliveryRow) -> str:
    if row.run is None:
        raise InvalidOption("the event is about no run")
    return row.run


def _function(where: str) -> Callable[[Any], Any]:
    module, _, name = where.partition(":")
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found  # type: ignore[no-any-return] # what the user named


def _facts(rows: Iterable[planning.DeploymentRow]) -> dict[str, DeploymentFacts]:
    return {
        row.name: DeploymentFacts(row.flow_name, json.loads(row.spec).get("tags", ()))
        for row in rows
    }


__all__ = ["Automations", "Watched", "causes", "message_data", "record_of"]
