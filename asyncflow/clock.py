"""The two clocks: the wall, for what people read, and the monotonic one, for durations."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """What tells the time. Timers are always the event loop's; this is for records."""

    def time(self) -> float:
        """Seconds since the epoch, UTC. May jump."""
        ...


class WallClock:
    """The system's clock."""

    time = staticmethod(time.time)
