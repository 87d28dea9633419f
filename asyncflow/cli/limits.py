"""``asyncflow limits ls|set|lift``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import asdict
from typing import Any

from asyncflow.cli.output import answered, label, print_json, say, table
from asyncflow.cli.place import Place
from asyncflow.cli.source import looking
from asyncflow.views import LimitInfo


def _answered(work: Callable[[], Coroutine[Any, Any, int]]) -> int:
    return answered(lambda: asyncio.run(work()))


def list_limits(*, at: Place, as_json: bool) -> int:
    """``limits ls``."""

    async def work() -> int:
        async with looking(at) as place:
            found = await place.limits()
        if as_json:
            print_json([asdict(one) for one in found])
        elif not found:
            say("no limits yet: asyncflow limits set NAME LIMIT")
        else:
            rows = [(label(one.name), _size(one), f"{one.used:g}", _holders(one)) for one in found]
            say(table(("LIMIT", "SIZE", "USED", "ENGINES"), rows))
        return 0

    return _answered(work)


def _size(one: LimitInfo) -> str:
    if one.limit is None:
        return ""
    if one.period is None:
        return f"{one.limit:g} at once"
    burst = f", {one.burst:,} saved up" if one.burst is not None else ""
    return f"{one.limit:g} in {one.period:g} s{burst}"


def _holders(one: LimitInfo) -> str:
    return ", ".join(
        f"{h.engine} has {h.units:g}" + (f" of {h.waiting:g}" if h.waiting > h.units else "")
        for h in one.holders
    )


def set_limit(
    *,
    name: str,
    limit: float,
    period: float | None,
    burst: int | None,
    at: Place,
    as_json: bool,
) -> int:
    """``limits set``."""

    async def work() -> int:
        whole = int(limit) if limit.is_integer() else limit
        async with looking(at, must_exist=False) as place:
            await place.set_limit(name, whole, period, burst)
        if as_json:
            print_json({"name": name, "limit": whole, "period": period, "burst": burst})
        else:
            size = _size(
                LimitInfo(name=name, limit=limit, period=period, burst=burst, used=0, holders=[])
            )
            say(f"set {label(name)} to {size}")
        return 0

    return _answered(work)


def lift_limit(*, name: str, at: Place, as_json: bool) -> int:
    """``limits lift``."""

    async def work() -> int:
        async with looking(at) as place:
            await place.set_limit(name, None, None, None)
        if as_json:
            print_json({"name": name, "lifted": True})
        else:
            say(f"lifted {label(name)}")
        return 0

    return _answered(work)


__all__ = ["lift_limit", "list_limits", "set_limit"]
