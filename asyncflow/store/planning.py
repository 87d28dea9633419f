"""The tables of what is to be done (deployments and schedules, automations and deliveries, what
one process asks another for), and of variables.

They are few and small beside those of runs, so both stores keep them alike, in SQLite: the one in
its file, the other in memory. `Planning` is what one transaction can do to them; what it does to
runs and events goes through the store (`Outside`), in the same transaction.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar

if TYPE_CHECKING:
    import sqlite3

    from asyncflow.store.base import EventRow, RunRow, StateRow

T = TypeVar("T")

TABLES = (
    "deployments",
    "schedules",
    "ticks",
    "backfills",
    "automations",
    "deliveries",
    "variables",
    "commands",
    "takers",
)


class DeploymentRow(NamedTuple):
    """A flow with parameters and policies, under a name."""

    id: int  #: 0 until it is stored
    name: str
    flow_name: str
    flow_ref: str  #: JSON: where the code is
    spec: bytes  #: JSON: all else that was declared
    source: str  #: "code", "file" or "api"
    paused: bool
    created_at: float
    updated_at: float


class ScheduleRow(NamedTuple):
    """When a deployment runs by itself."""

    id: int  #: 0 until it is stored
    deployment: int
    name: str  #: unique in its deployment
    spec: bytes  #: JSON: the schedule, its parameters, jitter, start and end
    paused: bool
    reason: str  #: why, where nobody paused it by hand
    position: float  #: all ticks up to this instant have been dealt with
    created_at: float
    updated_at: float


class TickState:
    """What became of a tick."""

    RUN = "RUN"  #: it began a run
    QUEUED = "QUEUED"  #: its run begins when another has ended
    SKIPPED = "SKIPPED"  #: a policy or a person said that it does not run
    MISSED = "MISSED"  #: nobody was there, and its time is over


class TickRow(NamedTuple):
    """One planned instant of a schedule (or `count` of them that were not run)."""

    schedule: int
    tick: float  #: the planned instant, seconds since the epoch
    deployment: int
    state: str
    reason: str
    run: str | None  #: id of the run
    backfill: int | None
    at: float  #: when that was decided
    count: int = 1  # type: ignore[assignment] # hides tuple.count, which nobody asks for
    until: float = 0.0  #: the last of them


class BackfillRow(NamedTuple):
    """Ticks of the past that are run on demand."""

    id: int
    deployment: int
    schedule: int
    start_at: float
    end_at: float
    max_concurrency: int
    created_at: float
    ended_at: float | None


class AutomationRow(NamedTuple):
    """What is done when something happens."""

    id: int
    name: str
    spec: bytes  #: JSON: trigger and actions
    source: str
    enabled: bool
    state: bytes  #: JSON: how far its trigger is
    position: int  #: id of the last event that it has seen
    created_at: float
    updated_at: float
    fired: int
    fired_at: float | None


class DeliveryRow(NamedTuple):
    """One thing that an automation has to do. It is unique by automation, action and key."""

    id: int
    automation: str
    action: int  #: its number in the automation
    key: str  #: the firing that it is for
    kind: str  #: such as "notify"
    channel: str  #: "" where it needs none
    run: str | None  #: id of the run that it is about
    event: int  #: id of the event that it is for
    payload: dict[str, Any]  #: plain data
    state: str  #: "pending", "sending", "delivered", "failed" or "suppressed"
    attempts: int
    next_at: float
    created_at: float
    ended_at: float | None
    error: str
    reply: str
    engine: int | None = None  #: the engine that is at it


class VariableRow(NamedTuple):
    """A value under a name."""

    name: str
    value: bytes  #: JSON
    updated_at: float


class CommandRow(NamedTuple):
    """What one process asks another to do (see `asyncflow.commands`)."""

    pk: int  #: 0 until it is stored
    id: str
    kind: str  #: such as "rerun"
    run: str | None  #: id of the run, or `deployment`: the name of what it is about
    deployment: str | None
    arguments: bytes  #: JSON
    key: str | None  #: what is asked with the same one is the same command
    asked_by: str
    asked_at: float
    expires_at: float  #: nobody takes it from then on
    state: str
    engine: int | None = None  #: the one that took it last
    taken_at: float | None = None
    taken: int = 0  #: how often it was taken
    declined: bytes = b"[]"  #: JSON: the engines that cannot do it
    ended_at: float | None = None
    made: str | None = None  #: id of the run that it made, or that goes on
    detail: str = ""  #: what came of it; of one that waits: why an engine cannot do it


class TakerRow(NamedTuple):
    """An engine that looks for commands."""

    engine: int
    pid: int
    host: str
    since: float


class Begin(NamedTuple):
    """A run that is to begin for a deployment, unless something is in its way."""

    deployment: int
    name: str  #: of the deployment
    run: RunRow
    state: StateRow
    overlap: str  #: "skip", "queue", "cancel_running" or "allow"
    limit: int  #: runs of the deployment at once
    tick: TickRow | None = None  #: the tick that it is for


class Begun(NamedTuple):
    """What came of it: `run` is there only where it was made now."""

    run: RunRow | None
    state: str  #: a `TickState`, or "TAKEN" where somebody else has dealt with the tick
    reason: str = ""


TAKEN = "TAKEN"


class Outside(Protocol):
    """What the transaction can do to the rest of the store."""

    def create_run(self, row: RunRow, states: Sequence[StateRow]) -> tuple[RunRow, bool]: ...

    def unfinished_of(self, deployment: str) -> list[tuple[int, str, str]]:
        """Runs of a deployment that are going on: pk, id and cause."""
        ...

    def request(self, run: int, kind: str, time: float) -> None: ...

    def emit(self, rows: Sequence[EventRow]) -> None: ...

    def newest_event(self) -> int: ...


class Planning:
    """One transaction on these tables.

    Args:
        db: a connection that is inside a transaction.
        outside: the rest of the store, in the same transaction.
    """

    def __init__(self, db: sqlite3.Connection, outside: Outside) -> None:
        self._db = db
        self._outside = outside

    # --- deployments ----------------------------------------------------------------------------

    def deployments(self) -> list[DeploymentRow]:
        return [_deployment(row) for row in self._db.execute(f"{DEPLOYMENTS} ORDER BY name")]

    def deployment(self, name: str) -> DeploymentRow | None:
        row = self._db.execute(f"{DEPLOYMENTS} WHERE name = ?", (name,)).fetchone()
        return _deployment(row) if row is not None else None

    def schedules(self, deployment: int) -> list[ScheduleRow]:
        sql = f"{SCHEDULES} WHERE deployment = ? ORDER BY name"
        return [_schedule(row) for row in self._db.execute(sql, (deployment,))]

    def deploy(
        self, row: DeploymentRow, schedules: Sequence[ScheduleRow], now: float
    ) -> tuple[DeploymentRow, list[ScheduleRow]]:
        """Make a deployment what is declared, and its schedules.

        What people paused stays so. A schedule that is new or another than it was begins now; one
        that is declared no more is paused.
        """
        db = self._db
        before = self.deployment(row.name)
        if before is None:
            made = db.execute("INSERT INTO deployments VALUES (NULL,?,?,?,?,?,?,?,?)", row[1:])
            assert made.lastrowid is not None
            row = row._replace(id=made.lastrowid)
        else:
            row = row._replace(id=before.id, paused=before.paused, created_at=before.created_at)
            if row._replace(updated_at=before.updated_at) != before:
                db.execute(
                    "UPDATE deployments SET flow_name = ?, flow_ref = ?, spec = ?, source = ?,"
                    " updated_at = ? WHERE id = ?",
                    (row.flow_name, row.flow_ref, row.spec, row.source, now, row.id),
                )
        known = {one.name: one for one in self.schedules(row.id)}
        for one in schedules:
            old = known.pop(one.name, None)
            if old is None:
                values = (row.id, one.name, one.spec, one.paused, "", now, now, now)
                db.execute("INSERT INTO schedules VALUES (NULL,?,?,?,?,?,?,?,?)", values)
            elif old.spec != one.spec or old.reason:
                paused = old.paused and not old.reason
                db.execute(
                    "UPDATE schedules SET spec = ?, paused = ?, reason = '', position = ?,"
                    " updated_at = ? WHERE id = ?",
                    (one.spec, paused, now, now, old.id),
                )
        for old in known.values():
            if not old.paused:
                db.execute(
                    "UPDATE schedules SET paused = 1, reason = ?, updated_at = ? WHERE id = ?",
                    ("it is declared no more", now, old.id),
                )
        return row, self.schedules(row.id)

    def pause(self, name: str, schedule: str | None, paused: bool, now: float) -> int:
        """Pause or unpause a deployment, or one of its schedules; how many schedules that are.

        What passed meanwhile is never run: unpaused schedules begin now.
        """
        row = self.deployment(name)
        if row is None:
            return 0
        if schedule is None:
            self._db.execute(
                "UPDATE deployments SET paused = ?, updated_at = ? WHERE id = ?",
                (paused, now, row.id),
            )
            found = self.schedules(row.id)
        else:
            found = [one for one in self.schedules(row.id) if one.name == schedule]
            self._db.executemany(
                "UPDATE schedules SET paused = ?, reason = '', updated_at = ? WHERE id = ?",
                [(paused, now, one.id) for one in found],
            )
        if not paused:
            self._db.executemany(
                "UPDATE schedules SET position = max(position, ?) WHERE id = ?",
                [(now, one.id) for one in found],
            )
        return len(found)

    def remove(self, name: str) -> bool:
        """Forget a deployment and all that belongs to it, but for its runs."""
        row = self.deployment(name)
        if row is None:
            return False
        self._db.execute("DELETE FROM ticks WHERE deployment = ?", (row.id,))
        self._db.execute("DELETE FROM schedules WHERE deployment = ?", (row.id,))
        self._db.execute("DELETE FROM backfills WHERE deployment = ?", (row.id,))
        self._db.execute("DELETE FROM deployments WHERE id = ?", (row.id,))
        return True

    # --- ticks ----------------------------------------------------------------------------------

    def advance(self, schedule: int, position: float) -> None:
        """All ticks of a schedule up to this instant have been dealt with."""
        self._db.execute(
            "UPDATE schedules SET position = ? WHERE id = ? AND position < ?",
            (position, schedule, position),
        )

    def note(self, rows: Iterable[TickRow]) -> int:
        """Record ticks that do not run now; how many of these rows were not there."""
        return sum(
            self._db.execute(
                f"INSERT OR IGNORE INTO ticks ({TICK_COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?,?)",
                (*row[:9], row.until or row.tick),
            ).rowcount
            for row in rows
        )

    def begin(self, what: Begin, now: float) -> Begun:
        """Begin a run, if its tick has not been dealt with and nothing is in its way."""
        tick = what.tick
        if tick is not None:
            if not self.note([tick._replace(state=TickState.RUN, run=what.run.id)]):
                return Begun(None, TAKEN)
            paused = self._paused(tick)
            if paused:
                return self._settle(tick, TickState.SKIPPED, paused)
        running = self._running(what.name)
        if what.overlap != "allow" and len(running) >= what.limit:
            return self._overlaps(what, running, now)
        if what.overlap == "queue" and tick is not None and self._queued(what.deployment):
            return self._settle(tick, TickState.SKIPPED, "overlap: another tick is queued")
        made, created = self._outside.create_run(what.run, [what.state])
        if not created:
            # Its key was taken: the tick ran before, though its row has gone.
            if tick is not None:
                self._set(tick, TickState.RUN, "", made.id)
            return Begun(None, TAKEN)
        return Begun(made, TickState.RUN)

    def _paused(self, tick: TickRow) -> str:
        found = self._db.execute(
            "SELECT d.paused, s.paused FROM schedules s JOIN deployments d ON d.id = s.deployment"
            " WHERE s.id = ?",
            (tick.schedule,),
        ).fetchone()
        if found is None:
            return "its schedule was removed"
        if found[0]:
            return "the deployment is paused"
        return "the schedule is paused" if found[1] else ""

    def _running(self, name: str) -> list[tuple[int, str]]:
        return [
            (pk, id_)
            for pk, id_, cause in self._outside.unfinished_of(name)
            if not cause.startswith("backfill:")
        ]

    def _overlaps(self, what: Begin, running: list[tuple[int, str]], now: float) -> Begun:
        tick, (_, first) = what.tick, running[0]
        if what.overlap == "skip" or tick is None:
            reason = f"overlap: the run {first} is going on"
            if what.overlap == "cancel_running":
                self._cancel(running, now)
            return self._settle(tick, TickState.SKIPPED, reason)
        waiting = self._queued(what.deployment)
        if what.overlap == "queue":
            if waiting:
                reason = f"overlap: the run {first} is going on, and another tick is queued"
                return self._settle(tick, TickState.SKIPPED, reason)
            return self._settle(tick, TickState.QUEUED, f"overlap: the run {first} is going on")
        self._cancel(running, now)
        for older in waiting:
            self._settle(older, TickState.SKIPPED, "overlap: a newer tick took its place")
        return self._settle(tick, TickState.QUEUED, f"the run {first} is being cancelled")

    def _cancel(self, running: list[tuple[int, str]], now: float) -> None:
        for pk, _ in running:
            self._outside.request(pk, "cancel", now)

    def _settle(self, tick: TickRow | None, state: str, reason: str) -> Begun:
        if tick is not None:
            self._set(tick, state, reason, None)
        return Begun(None, state, reason)

    def _set(self, tick: TickRow, state: str, reason: str, run: str | None) -> None:
        self._db.execute(
            "UPDATE ticks SET state = ?, reason = ?, run = ? WHERE schedule = ? AND tick = ?",
            (state, reason, run, tick.schedule, tick.tick),
        )

    def _queued(self, deployment: int) -> list[TickRow]:
        question = queued(deployment, None)
        return [question.make(row) for row in self._db.execute(question.sql, question.values)]

    def begin_queued(self, what: Begin) -> Begun:
        """Begin the run of a queued tick, if there is room now."""
        tick = what.tick
        assert tick is not None
        found = self._db.execute(
            "SELECT 1 FROM ticks WHERE schedule = ? AND tick = ? AND state = 'QUEUED'",
            (tick.schedule, tick.tick),
        ).fetchone()
        if found is None:
            return Begun(None, TAKEN)
        if tick.backfill is None:
            room = what.limit - len(self._running(what.name))
        else:
            cause = f"backfill:{tick.backfill}"
            going = [c for _, _, c in self._outside.unfinished_of(what.name) if c == cause]
            row = self.backfill(tick.backfill)
            room = (row.max_concurrency if row is not None else 1) - len(going)
        if room <= 0:
            return Begun(None, TickState.QUEUED)
        made, created = self._outside.create_run(what.run, [what.state])
        self._set(tick, TickState.RUN, "", made.id)
        return Begun(made, TickState.RUN) if created else Begun(None, TAKEN)

    # --- backfills ------------------------------------------------------------------------------

    def backfill(self, number: int) -> BackfillRow | None:
        sql = f"SELECT {BACKFILL_COLUMNS} FROM backfills WHERE id = ?"
        row = self._db.execute(sql, (number,)).fetchone()
        return BackfillRow(*row) if row is not None else None

    def add_backfill(
        self, row: BackfillRow, ticks: Sequence[float]
    ) -> tuple[BackfillRow, int, int]:
        """Queue the ticks of a backfill that have not run: the row, how many, and how many ran."""
        made = self._db.execute("INSERT INTO backfills VALUES (NULL,?,?,?,?,?,?,?)", row[1:])
        assert made.lastrowid is not None
        row = row._replace(id=made.lastrowid)
        added = 0
        for tick in ticks:
            added += self._db.execute(
                f"INSERT INTO ticks ({TICK_COLUMNS})"
                " VALUES (?,?,?,'QUEUED','backfill',NULL,?,?,1,?)"
                " ON CONFLICT (schedule, tick) DO UPDATE SET state = 'QUEUED', reason = 'backfill',"
                " backfill = excluded.backfill, at = excluded.at, count = 1, until = excluded.tick"
                " WHERE state IN ('SKIPPED', 'MISSED')",
                (row.schedule, tick, row.deployment, row.id, row.created_at, tick),
            ).rowcount
        return row, added, len(ticks) - added

    def end_backfill(self, number: int, now: float) -> bool:
        """Close a backfill that has no queued ticks left; whether it has ended now."""
        left = self._db.execute(
            "SELECT 1 FROM ticks WHERE backfill = ? AND state = 'QUEUED' LIMIT 1", (number,)
        ).fetchone()
        if left is not None:
            return False
        return bool(
            self._db.execute(
                "UPDATE backfills SET ended_at = ? WHERE id = ? AND ended_at IS NULL", (now, number)
            ).rowcount
        )

    def cancel_backfill(self, number: int, now: float) -> int:
        """Let its queued ticks not run; how many."""
        gone = self._db.execute(
            "UPDATE ticks SET state = 'SKIPPED', reason = 'its backfill was cancelled'"
            " WHERE backfill = ? AND state = 'QUEUED'",
            (number,),
        ).rowcount
        self.end_backfill(number, now)
        return gone

    # --- events ---------------------------------------------------------------------------------

    def emit(self, rows: Sequence[EventRow]) -> None:
        """Add events, in this transaction."""
        self._outside.emit(rows)

    # --- automations ----------------------------------------------------------------------------

    def automations(self) -> list[AutomationRow]:
        return [_automation(row) for row in self._db.execute(f"{AUTOMATIONS} ORDER BY name")]

    def automate(self, row: AutomationRow) -> AutomationRow:
        """Make an automation what is declared. One that is new or another begins with what
        happens from now on; one that is as it was goes on where it was."""
        found = self._db.execute(f"{AUTOMATIONS} WHERE name = ?", (row.name,)).fetchone()
        before = _automation(found) if found is not None else None
        if before is not None and before.spec == row.spec:
            return before
        row = row._replace(position=self._outside.newest_event())
        if before is None:
            made = self._db.execute(
                "INSERT INTO automations VALUES (NULL,?,?,?,?,?,?,?,?,?,?)", row[1:]
            )
            assert made.lastrowid is not None
            return row._replace(id=made.lastrowid)
        row = row._replace(
            id=before.id, enabled=before.enabled, created_at=before.created_at,
            fired=before.fired, fired_at=before.fired_at,
        )  # fmt: skip
        self._db.execute(
            "UPDATE automations SET spec = ?, source = ?, state = ?, position = ?, updated_at = ?"
            " WHERE id = ?",
            (row.spec, row.source, row.state, row.position, row.updated_at, row.id),
        )
        return row

    def enable(self, name: str, enabled: bool, state: bytes, now: float) -> bool:
        """Switch an automation on or off. What happens while it is off never fires it."""
        return bool(
            self._db.execute(
                "UPDATE automations SET enabled = ?, state = ?, position = ?, updated_at = ?"
                " WHERE name = ? AND enabled <> ?",
                (enabled, state, self._outside.newest_event(), now, name, enabled),
            ).rowcount
        )

    def drop_automation(self, name: str) -> bool:
        return bool(self._db.execute("DELETE FROM automations WHERE name = ?", (name,)).rowcount)

    def progress(
        self, before: AutomationRow, after: AutomationRow, deliveries: Sequence[DeliveryRow]
    ) -> bool:
        """An automation has seen more events, and has this to do for it: all or nothing.

        Returns:
            False where another engine was quicker; nothing has changed then.
        """
        moved = self._db.execute(
            "UPDATE automations SET state = ?, position = ?, fired = ?, fired_at = ?"
            " WHERE id = ? AND position = ? AND state = ? AND enabled",
            (
                after.state,
                after.position,
                after.fired,
                after.fired_at,
                before.id,
                before.position,
                before.state,
            ),
        )
        if not moved.rowcount:
            return False
        for row in deliveries:
            self.deliver(row)
        return True

    # --- deliveries -----------------------------------------------------------------------------

    def deliver(self, row: DeliveryRow) -> bool:
        """Add something to do, unless it is there already."""
        return bool(
            self._db.execute(
                f"INSERT OR IGNORE INTO deliveries ({DELIVERY_COLUMNS})"
                f" VALUES (NULL{',?' * (len(DeliveryRow._fields) - 1)})",
                (*row[1:8], json.dumps(row.payload), *row[9:]),
            ).rowcount
        )

    def due(
        self,
        now: float,
        channels: Sequence[str],
        engine: int,
        is_alive: Callable[[int], bool],
        limit: int,
    ) -> list[DeliveryRow]:
        """What is to be done by now, through these channels: pending, or left by the dead."""
        marks = ",".join("?" * len(channels))
        rows = self._db.execute(
            f"SELECT {DELIVERY_COLUMNS} FROM deliveries WHERE ended_at IS NULL AND next_at <= ?"
            f" AND channel IN ({marks}) ORDER BY next_at, id LIMIT ?",
            (now, *channels, limit),
        )
        found = [_delivery(row) for row in rows]
        return [
            row
            for row in found
            if row.state == "pending"
            or row.engine is None
            or (row.engine != engine and not is_alive(row.engine))
        ]

    def save(self, rows: Iterable[DeliveryRow]) -> None:
        """Deliveries have changed."""
        self._db.executemany(
            "UPDATE deliveries SET state = ?, attempts = ?, next_at = ?, ended_at = ?, error = ?,"
            " reply = ?, engine = ? WHERE id = ? AND ended_at IS NULL",
            [
                (r.state, r.attempts, r.next_at, r.ended_at, r.error, r.reply, r.engine, r.id)
                for r in rows
            ],
        )

    def next_delivery(self, channels: Sequence[str]) -> float | None:
        """When the next one is to be done."""
        marks = ",".join("?" * len(channels))
        found = self._db.execute(
            "SELECT min(next_at) FROM deliveries WHERE ended_at IS NULL AND state = 'pending'"
            f" AND channel IN ({marks})",
            tuple(channels),
        ).fetchone()
        return found[0] if found is not None else None

    def sent_since(self, channel: str, since: float, together: bool = False) -> list[float]:
        """When messages of a channel went, or began to go, for its rate.

        Args:
            together: deliveries that ended in one instant were one message.
        """
        sql = (
            f"SELECT {'DISTINCT ' if together else ''}ended_at FROM deliveries WHERE ended_at >= ?"
            " AND channel = ? AND state = 'delivered' UNION ALL"
            f" SELECT {'DISTINCT ' if together else ''}next_at FROM deliveries"
            " WHERE ended_at IS NULL AND next_at >= ? AND channel = ? AND state = 'sending'"
            " ORDER BY 1"
        )
        return [row[0] for row in self._db.execute(sql, (since, channel, since, channel))]

    # --- commands -------------------------------------------------------------------------------

    def add_command(self, row: CommandRow) -> CommandRow:
        made = self._db.execute(
            f"INSERT INTO commands ({COMMAND_COLUMNS})"
            f" VALUES (NULL{',?' * (len(CommandRow._fields) - 1)})",
            row[1:],
        )
        assert made.lastrowid is not None
        return row._replace(pk=made.lastrowid)

    def command(self, command: str) -> CommandRow | None:
        return self._first(commands(command))

    def same_command(self, row: CommandRow) -> CommandRow | None:
        """The command that was asked with the key of this one, and may still come to something,
        or has."""
        sql = (
            f"SELECT {COMMAND_COLUMNS} FROM commands WHERE key = ?"
            " AND state NOT IN ('FAILED', 'EXPIRED')"
        )
        return self._first(Question(sql, (row.key,), CommandRow._make))

    def open_commands(self) -> list[CommandRow]:
        """Those that have not ended, oldest first."""
        question = open_commands()
        return [question.make(row) for row in self._db.execute(question.sql, question.values)]

    def save_command(self, row: CommandRow) -> None:
        """It has changed."""
        self._db.execute(
            "UPDATE commands SET arguments = ?, expires_at = ?, state = ?, engine = ?,"
            " taken_at = ?, taken = ?, declined = ?, ended_at = ?, made = ?, detail = ?"
            " WHERE pk = ?",
            (row.arguments, row.expires_at, *row[10:], row.pk),
        )

    def add_taker(self, row: TakerRow) -> None:
        """An engine looks for commands from now on."""
        self._db.execute("INSERT OR REPLACE INTO takers VALUES (?,?,?,?)", row)

    def takers(self, is_alive: Callable[[int], bool]) -> list[TakerRow]:
        """The living engines that look for commands; the dead ones are forgotten."""
        found = [TakerRow(*row) for row in self._db.execute(TAKERS)]
        alive = [row for row in found if is_alive(row.engine)]
        for row in found:
            if row not in alive:
                self._db.execute("DELETE FROM takers WHERE engine = ?", (row.engine,))
        return alive

    def _first(self, question: Question[T]) -> T | None:
        row = self._db.execute(question.sql, question.values).fetchone()
        return question.make(row) if row is not None else None

    # --- variables ------------------------------------------------------------------------------

    def set_variable(self, name: str, value: bytes, now: float) -> None:
        self._db.execute("INSERT OR REPLACE INTO variables VALUES (?,?,?)", (name, value, now))

    def delete_variable(self, name: str) -> bool:
        return self._db.execute("DELETE FROM variables WHERE name = ?", (name,)).rowcount > 0

    # --- retention ------------------------------------------------------------------------------

    def prune(self, before: float, rows: int) -> int:
        """Remove at most so many old ticks, deliveries and commands each; how many went."""
        gone = self._db.execute(
            "DELETE FROM ticks WHERE (schedule, tick) IN (SELECT schedule, tick FROM ticks"
            " WHERE until < ? AND state <> 'QUEUED' LIMIT ?)",
            (before, rows),
        ).rowcount
        gone += self._db.execute(
            "DELETE FROM deliveries WHERE id IN (SELECT id FROM deliveries"
            " WHERE ended_at < ? LIMIT ?)",
            (before, rows),
        ).rowcount
        gone += self._db.execute(
            "DELETE FROM commands WHERE pk IN (SELECT pk FROM commands WHERE ended_at < ? LIMIT ?)",
            (before, rows),
        ).rowcount
        gone += self._db.execute(
            # Of servers that died before they could say that nobody has taken them.
            "DELETE FROM commands WHERE pk IN (SELECT pk FROM commands"
            " WHERE ended_at IS NULL AND expires_at < ? LIMIT ?)",
            (before, rows),
        ).rowcount
        self._db.execute(
            "DELETE FROM backfills WHERE ended_at < ? AND id NOT IN"
            " (SELECT backfill FROM ticks WHERE backfill IS NOT NULL)",
            (before,),
        )
        return gone


# --- questions ------------------------------------------------------------------------------------


class Question(NamedTuple, Generic[T]):
    """A SELECT on these tables, and what is made of its rows. Only fixed text is in it."""

    sql: str
    values: tuple[Any, ...]
    make: Callable[[Any], T]


DEPLOYMENTS = (
    "SELECT id, name, flow_name, flow_ref, spec, source, paused, created_at, updated_at"
    " FROM deployments"
)
SCHEDULES = (
    "SELECT id, deployment, name, spec, paused, reason, position, created_at, updated_at"
    " FROM schedules"
)
TICK_COLUMNS = ", ".join(TickRow._fields)
BACKFILL_COLUMNS = ", ".join(BackfillRow._fields)
AUTOMATIONS = f"SELECT {', '.join(AutomationRow._fields)} FROM automations"
DELIVERY_COLUMNS = ", ".join(DeliveryRow._fields)
COMMAND_COLUMNS = ", ".join(CommandRow._fields)
TAKERS = "SELECT engine, pid, host, since FROM takers ORDER BY engine"
OPEN_COMMANDS = "(SELECT count(*) FROM commands WHERE ended_at IS NULL)"


def deployments(name: str | None = None) -> Question[DeploymentRow]:
    """All deployments by name, or one."""
    if name is not None:
        return Question(f"{DEPLOYMENTS} WHERE name = ?", (name,), _deployment)
    return Question(f"{DEPLOYMENTS} ORDER BY name", (), _deployment)


def schedules(deployment: int | None = None) -> Question[ScheduleRow]:
    """The schedules of all deployments, or of one."""
    if deployment is not None:
        sql = f"{SCHEDULES} WHERE deployment = ? ORDER BY name"
        return Question(sql, (deployment,), _schedule)
    return Question(f"{SCHEDULES} ORDER BY deployment, name", (), _schedule)


def version() -> Question[tuple[Any, int]]:
    """Another value whenever a deployment or a schedule was added, changed or removed; and how many
    commands are open."""
    sql = (
        "SELECT (SELECT count(*) FROM deployments), (SELECT max(updated_at) FROM deployments),"
        " (SELECT count(*) FROM schedules), (SELECT max(updated_at) FROM schedules),"
        f" {OPEN_COMMANDS}"
    )
    return Question(sql, (), lambda row: (tuple(row[:-1]), row[-1]))


def ticks(
    deployment: int,
    states: Sequence[str] = (),
    since: float | None = None,
    before: tuple[float, int] | None = None,
    limit: int = 200,
) -> Question[TickRow]:
    """The ticks of a deployment, newest first: those before a tick of a schedule."""
    where: list[str] = ["deployment = ?"]
    values: list[Any] = [deployment, *states]
    if states:
        where.append(f"state IN ({','.join('?' * len(states))})")
    if since is not None:
        where.append("tick >= ?")
        values.append(since)
    if before is not None:
        where.append("(tick, schedule) < (?, ?)")
        values += before
    sql = (
        f"SELECT {TICK_COLUMNS} FROM ticks WHERE {' AND '.join(where)}"
        " ORDER BY tick DESC, schedule DESC LIMIT ?"
    )
    return Question(sql, (*values, limit), lambda row: TickRow(*row))


def tick_counts(deployment: int | None = None) -> Question[tuple[int, str, int]]:
    """How many ticks of all deployments, or of one, are in each state."""
    one = "" if deployment is None else " WHERE deployment = ?"
    # In the order of an index, each row of a whole table would have to be looked up.
    sql = f"SELECT deployment, state, sum(count) FROM ticks{one} GROUP BY +deployment, state"
    values = () if deployment is None else (deployment,)
    return Question(sql, values, lambda row: (row[0], row[1], row[2]))


def queued(deployment: int, backfill: int | None) -> Question[TickRow]:
    """Ticks that wait for room, oldest first: those of a backfill, or of none."""
    sql = (
        f"SELECT {TICK_COLUMNS} FROM ticks WHERE deployment = ? AND state = 'QUEUED'"
        " AND backfill IS ? ORDER BY tick LIMIT 100"
    )
    return Question(sql, (deployment, backfill), lambda row: TickRow(*row))


def backfills(deployment: int | None = None, *, unfinished: bool = False) -> Question[BackfillRow]:
    """Backfills, newest first."""
    one = "" if deployment is None else " WHERE deployment = ?"
    if unfinished:
        one += f" {'AND' if one else 'WHERE'} ended_at IS NULL"
    sql = f"SELECT {BACKFILL_COLUMNS} FROM backfills{one} ORDER BY id DESC LIMIT 1000"
    values = () if deployment is None else (deployment,)
    return Question(sql, values, lambda row: BackfillRow(*row))


def automations(name: str | None = None) -> Question[AutomationRow]:
    """All automations by name, or one."""
    if name is not None:
        return Question(f"{AUTOMATIONS} WHERE name = ?", (name,), _automation)
    return Question(f"{AUTOMATIONS} ORDER BY name", (), _automation)


def variables(name: str | None = None) -> Question[VariableRow]:
    """All variables by name, or one."""
    sql = "SELECT name, value, updated_at FROM variables"
    if name is not None:
        return Question(f"{sql} WHERE name = ?", (name,), VariableRow._make)
    return Question(f"{sql} ORDER BY name", (), VariableRow._make)


def open_commands() -> Question[CommandRow]:
    """Commands that have not ended, oldest first."""
    sql = f"SELECT {COMMAND_COLUMNS} FROM commands WHERE ended_at IS NULL ORDER BY pk LIMIT 1000"
    return Question(sql, (), CommandRow._make)


def commands(
    command: str | None = None,
    *,
    states: Sequence[str] = (),
    before: int | None = None,
    limit: int = 200,
) -> Question[CommandRow]:
    """Commands, newest first, or the one with an id."""
    given = {"id = ?": command, "pk < ?": before}
    sql, values = _newest(f"{COMMAND_COLUMNS} FROM commands", "pk", given, states, limit)
    return Question(sql, values, CommandRow._make)


def takers() -> Question[TakerRow]:
    """The engines that look for commands, dead ones too."""
    return Question(TAKERS, (), TakerRow._make)


def waiting(channel: str, now: float) -> Question[int]:
    """Whether there is something to do for a channel by now: one id, or none."""
    sql = (
        "SELECT id FROM deliveries WHERE ended_at IS NULL AND next_at <= ? AND channel = ? LIMIT 1"
    )
    return Question(sql, (now, channel), lambda row: int(row[0]))


def deliveries(
    *,
    automation: str | None = None,
    run: str | None = None,
    states: Sequence[str] = (),
    before: int | None = None,
    limit: int = 200,
) -> Question[DeliveryRow]:
    """Deliveries, newest first."""
    given = {"automation = ?": automation, "run = ?": run, "id < ?": before}
    sql, values = _newest(f"{DELIVERY_COLUMNS} FROM deliveries", "id", given, states, limit)
    return Question(sql, values, _delivery)


def _newest(
    what: str, key: str, given: dict[str, Any], states: Sequence[str], limit: int
) -> tuple[str, tuple[Any, ...]]:
    """SQL for the newest rows that fulfil each condition whose value is not None."""
    asked = {text: value for text, value in given.items() if value is not None}
    where = ["1", *asked]
    if states:
        where.append(f"state IN ({','.join('?' * len(states))})")
    sql = f"SELECT {what} WHERE {' AND '.join(where)} ORDER BY {key} DESC LIMIT ?"
    return sql, (*asked.values(), *states, limit)


def _deployment(row: Sequence[Any]) -> DeploymentRow:
    return DeploymentRow._make((*row[:6], bool(row[6]), *row[7:]))


def _schedule(row: Sequence[Any]) -> ScheduleRow:
    return ScheduleRow._make((*row[:4], bool(row[4]), *row[5:]))


def _automation(row: Sequence[Any]) -> AutomationRow:
    return AutomationRow._make((*row[:4], bool(row[4]), *row[5:]))


_PAYLOAD = DeliveryRow._fields.index("payload")


def _delivery(row: Sequence[Any]) -> DeliveryRow:
    return DeliveryRow._make((*row[:_PAYLOAD], json.loads(row[_PAYLOAD]), *row[_PAYLOAD + 1 :]))
