"""The named limits of one engine: slots and rates that are found by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from asyncflow.errors import InvalidOption
from asyncflow.limits import Limit, Rate, Slots
from asyncflow.machine import Machine


class NamedLimits:
    """Limits by name. One that nobody set lets everybody in.

    Args:
        share: told of each limit that is given a size, to divide it with other engines.
    """

    def __init__(self, machine: Machine, share: Callable[[Limit], None] = lambda _: None) -> None:
        self._machine = machine
        self._share = share
        self._limits: dict[str, Limit] = {}
        self._set: set[str] = set()
        self._declared: dict[str, tuple[float, float | None]] = {}

    def get(self, name: str) -> Limit:
        limit = self._limits.get(name)
        if limit is None:
            limit = self._limits[name] = Slots(name, None)
        return limit

    def __iter__(self) -> Iterator[Limit]:
        return iter(self._limits.values())

    def set(self, name: str, limit: float | None, period: float | None, burst: int | None) -> None:
        """Set a limit for all; it outranks what code declares.

        Raises:
            InvalidOption: the size or period makes no sense.
        """
        if limit is None:
            self._set.discard(name)
        else:
            self._set.add(name)
        self._resize(name, limit, period, burst)

    def declare(self, name: str, limit: float | None, period: float | None) -> Limit:
        """The limit of this name, with the size that code declares, where nothing else did.

        Raises:
            InvalidOption: other code declared another size.
        """
        if limit is not None and name not in self._set:
            before = self._declared.setdefault(name, (limit, period))
            if before != (limit, period):
                raise InvalidOption(
                    f"the limit {name!r} was declared with {_told(*before)} before, and now with"
                    f" {_told(limit, period)}: declare it once, or set it with engine.set_limit"
                )
            found = self.get(name)
            if found.whole != limit or (period is not None) != found.timed:
                self._resize(name, limit, period, None)
        return self.get(name)

    def _resize(
        self, name: str, limit: float | None, period: float | None, burst: int | None
    ) -> None:
        old = self.get(name)
        if period is not None and limit is not None:
            if isinstance(old, Rate):
                old.resize(limit, period, burst)
            else:
                self._replace(name, old, Rate(name, limit, period, burst))
        elif isinstance(old, Slots):
            old.resize(limit)
        else:
            self._replace(name, old, Slots(name, limit))
        if limit is not None:
            self._share(self.get(name))
        self._machine.resized(self.get(name))

    def _replace(self, name: str, old: Limit, new: Limit) -> None:
        """Another kind of limit takes over; who waits for the old one is let through there."""
        self._limits[name] = new
        if isinstance(old, Slots):
            old.resize(None)
        else:
            old.resize(float("inf"), old.period)
        self._machine.resized(old)


def _told(limit: float, period: float | None) -> str:
    return f"limit={limit:g}" if period is None else f"limit={limit:g}, period={period:g}"
