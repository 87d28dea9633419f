"""``asyncflow limits ls|set|lift``."""

from __future__ import annotations

from typing import Any

from asyncflow.cli.output import answered_async, label, one_line, print_json, say, table
from asyncflow.cli.place import Place
from asyncflow.cli.source import looking

#: Holders of one limit that are named.
MOST = 4


def list_limits(*, at: Place, as_json: bool) -> int:
    """``limits ls``."""

    async def work() -> int:
        async with looking(at) as place:
            found = await place.limits()
        if as_json:
            print_json(found)
        elif not found:
            say("no limits yet: asyncflow limits set NAME LIMIT")
        else:
            rows = [
                (
                    label(one["name"]),
                    _size(one["size"], one["period"], one["burst"]),
                    f"{one['used']:g}",
                    f"{one['waiting']:,}" if one["waiting"] else "",
                    _holders(one),
                )
                for one in found
            ]
            say(table(("LIMIT", "SIZE", "USED", "WAITING", "HELD BY"), rows))
        return 0

    return answered_async(work)


def _size(size: float | None, period: float | None, burst: int | None) -> str:
    if size is None:
        return ""
    if period is None:
        return f"{size:g} at once"
    saved = f", {burst:,} saved up" if burst is not None else ""
    return f"{size:g} in {period:g} s{saved}"


def _holders(one: dict[str, Any]) -> str:
    """Who holds it, or which engines have it where that is not known."""
    names = []
    for held in one["holders"][:MOST]:
        name = held["name"] or f"engine {held['engine']}"
        of = f" of {held['run_name']}" if held["seq"] is not None and held["run_name"] else ""
        units = f" ({held['units']:g})" if held["units"] != 1 else ""
        names.append(one_line(f"{name}{of}{units}", 60))
    more = one["more"] + len(one["holders"]) - len(names)
    return ", ".join(names) + (f" and {more:,} more" if more else "")


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
            say(f"set {label(name)} to {_size(limit, period, burst)}")
        return 0

    return answered_async(work)


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

    return answered_async(work)


__all__ = ["lift_limit", "list_limits", "set_limit"]
