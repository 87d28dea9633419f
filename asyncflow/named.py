"""The named limits of one engine: slots and rates that are found by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from asyncflow.errors import InvalidOption
from asyncflow.limits import Limit, Rate, Slots, become_rate, become_slots
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
        self._inherited: dict[str, tuple[float, float, int | None]] = {}

    def get(self, name: str) -> Limit:
        limit = self._limits.get(name)
        if limit is None:
            limit = self._limits[name] = Slots(name, None)
        return limit

    def has(self, limit: Limit) -> bool:
        """Whether it is one of them."""
        return self._limits.get(limit.name) is limit

    def __iter__(self) -> Iterator[Limit]:
        return iter(self._limits.values())

    def set(self, name: str, limit: float | None, period: float | None, burst: int | None) -> None:
        """Set a limit for all; it outranks what code declares.

        Raises:
            InvalidOption: the name, size or period makes no sense.
        """
        if not isinstance(name, str) or not name:
            raise InvalidOption(f"the name of a limit must be text, not {name!r}")
        if burst is not None and period is None:
            raise InvalidOption(f"limit {name!r}: burst={burst!r} needs a period: slots have none")
        self._resize(name, limit, period, burst)
        if limit is None:
            self._set.discard(name)
        else:
            self._set.add(name)

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

    def keyed(self, name: str, key: str | None, limit: float | None, period: float | None) -> Limit:
        """`declare`, of the part of a rate that *key* has for itself.

        What was set for the name is the size of each part that has none of its own.
        """
        if key is None:
            return self.declare(name, limit, period)
        part = f"{name}:{key}"
        whole = self._limits.get(name)
        if name in self._set and part not in self._set and isinstance(whole, Rate):
            size = (whole.whole, whole.period, whole.burst)
            if self._inherited.get(part) != size:
                self._inherited[part] = size
                self._resize(part, *size)
            return self.get(part)
        if self._inherited.pop(part, None) is not None and part not in self._set:
            self._resize(part, None, None, None)
        return self.declare(part, limit, period)

    def _resize(
        self, name: str, limit: float | None, period: float | None, burst: int | None
    ) -> None:
        found = self.get(name)
        if period is not None and limit is not None:
            if isinstance(found, Rate):
                found.resize(limit, period, burst)
            else:
                become_rate(found, limit, period, burst)
        elif isinstance(found, Slots):
            found.resize(limit)
        else:
            become_slots(found, limit)
        if limit is not None:
            self._share(found)
        self._machine.resized(found)


def _told(limit: float, period: float | None) -> str:
    return f"limit={limit:g}" if period is None else f"limit={limit:g}, period={period:g}"
