"""How the engines on one store divide a named limit among them. Pure: no clock, no store.

Each engine holds a *share* of a limit, as a row; inside its share it admits code without asking
anybody. All shares of a limit together are never more than the limit. An engine that is alone
takes all of it. When others want some, each comes down to its fair part as its code ends; where
there is not one unit for each, they take turns. The share of a dead engine comes back by itself;
that of a rate only after the period in which it may have been used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import floor
from typing import NamedTuple

#: Seconds that an engine keeps the only unit while others wait for it.
QUANTUM = 1.0


class ShareRow(NamedTuple):
    """What one engine has of one limit."""

    limit: str  #: its name
    engine: int
    units: float  #: that it may use
    wanted: float  #: that it could use
    since: float  #: when it came to have any, or to wait for one, in seconds since the epoch
    free_at: float | None  #: when what it has is free, where its engine is gone


class Demand(NamedTuple):
    """What an engine asks for."""

    limit: str
    whole: float  #: the size of the limit
    used: float  #: units in use by this engine now; it keeps those
    wanted: float  #: units that it could use, with those
    period: float | None  #: of a rate, in seconds
    idle: bool = False  #: it wants them only because it had use for them a while ago


class Part(NamedTuple):
    """What it is given.

    Attributes:
        row: its share from now on; None: none at all.
        size: how many units it may admit; less than its share while it comes down.
        alone: whether no other engine has or wants any.
        gone: rows of engines that have nothing more; `marked`: rows that will be free later.
    """

    row: ShareRow | None
    size: float
    alone: bool
    gone: list[ShareRow]
    marked: list[ShareRow]


def divide(
    demand: Demand,
    engine: int,
    rows: Sequence[ShareRow],
    is_alive: Callable[[int], bool],
    now: float,
) -> Part:
    """The part of *engine* in a limit of which others, and itself before, have *rows*."""
    mine = next((row for row in rows if row.engine == engine), None)
    had = mine.units if mine is not None else 0.0
    # Where the wall clock has been set back, nobody has waited for longer than until now.
    since = min(mine.since, now) if mine is not None else now
    taken, interested, pressed, behind = 0.0, 1, False, False
    gone: list[ShareRow] = []
    marked: list[ShareRow] = []
    for row in rows:
        if row.engine == engine:
            continue
        if row.free_at is None and not is_alive(row.engine):
            row = row._replace(free_at=now + (demand.period or 0.0), wanted=0.0)
            marked.append(row)
        if row.free_at is not None:
            latest = now + (demand.period or 0.0)
            if row.free_at > latest:
                # The wall clock has been set back: one period from now is long enough.
                row = row._replace(free_at=latest)
                marked.append(row)
            if latest <= now or (row.free_at or 0.0) <= now:
                gone.append(row)
            else:
                taken += row.units
            continue
        taken += row.units
        interested += 1
        if row.wanted > row.units:
            pressed = True
            behind = behind or (not row.units and min(row.since, now) < since)
    alone = interested == 1
    wanted = demand.whole if alone and demand.wanted else min(demand.wanted, demand.whole)
    if pressed and demand.idle:
        wanted = 0.0  # others have use for them now
    size = min(wanted, demand.whole - taken)
    if pressed:
        fair = floor(demand.whole / interested)
        if fair >= 1:
            size = min(size, fair)
        elif now - since >= QUANTUM if had else behind:
            size = 0.0
    size = max(0.0, size)
    units = max(size, demand.used)
    marked = [row for row in marked if row not in gone]
    if not units and not wanted:
        return Part(None, 0.0, alone, gone, marked)
    if bool(units) != bool(had):
        since = now
    row = ShareRow(demand.limit, engine, units, wanted, since, None)
    return Part(row, size, alone, gone, marked)
