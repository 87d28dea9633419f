"""The two clocks: the wall, for what people read, and a steady one, for durations."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Protocol


class Clock(Protocol):
    """What tells the time. Timers are always the event loop's; this is for records."""

    def time(self) -> float:
        """Seconds since the epoch, UTC. May jump."""
        ...


class WallClock:
    """The system's clock."""

    time = staticmethod(time.time)


class SteadyClock:
    """Wall time that does not jump: what the wall showed once, and the time since.

    Deadlines and the ends of waits are points on it: setting the wall clock moves none of them.

    Args:
        wall: what it begins with.
        ticks: seconds since any moment, by a clock that nobody can set.
    """

    def __init__(self, wall: Clock, ticks: Callable[[], float]) -> None:
        self._ticks = ticks
        self._began = wall.time() - ticks()

    def time(self) -> float:
        return self._began + self._ticks()


def since_boot() -> float:
    """Seconds by a clock that nobody can set and that goes on while the machine sleeps."""
    # On Linux the monotonic clock stands still meanwhile; elsewhere it does not.
    return time.clock_gettime(_BOOT) if _BOOT is not None else time.monotonic()


_BOOT: int | None = getattr(time, "CLOCK_BOOTTIME", None) or (
    time.CLOCK_MONOTONIC if sys.platform == "darwin" else None
)
