"""What `retrieve.py` makes of its records: models, a join, a table and a picture.

Nothing in here knows of asyncflow, and the same records give the same files, byte for byte.
"""

import csv
import os
from collections.abc import Iterable, Sequence
from datetime import date
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from pydantic import BaseModel, Field

Row = dict[str, Any]


class Flight(BaseModel):
    """One scheduled flight; it was cancelled where `dep_delay` is None."""

    date: date
    carrier: str
    flight: int
    tailnum: str | None
    origin: str
    dest: str
    hour: int = Field(ge=0, le=24)
    dep_delay: float | None
    arr_delay: float | None
    distance: int = Field(gt=0)


class Plane(BaseModel):
    tailnum: str
    year: int | None
    manufacturer: str
    model: str
    seats: int = Field(gt=0)


class Airport(BaseModel):
    faa: str
    name: str


class Airline(BaseModel):
    carrier: str
    name: str


class Weather(BaseModel):
    """One hour at one airport; `visib` is the visibility in miles, at most 10."""

    origin: str
    date: date
    hour: int = Field(ge=0, le=24)
    visib: float = Field(ge=0)


MODELS: dict[str, type[BaseModel]] = {
    "flights": Flight,
    "planes": Plane,
    "airports": Airport,
    "airlines": Airline,
    "weather": Weather,
}


def join(
    flights: list[Row], planes: list[Row], airlines: list[Row], airports: list[Row]
) -> list[Row]:
    """The flights with what is known of their plane, airline and destination."""
    plane_of = {plane["tailnum"]: plane for plane in planes}
    airline_of = {airline["carrier"]: airline["name"] for airline in airlines}
    airport_of = {airport["faa"]: airport["name"] for airport in airports}
    rows = []
    for flight in flights:
        plane = plane_of.get(flight["tailnum"], {})
        built = plane.get("year")
        row = flight | {
            "airline": airline_of.get(flight["carrier"], flight["carrier"]),
            "dest_name": airport_of.get(flight["dest"]),
            "plane": plane.get("model"),
            "seats": plane.get("seats"),
            "plane_age": int(flight["date"][:4]) - built if built else None,
        }
        rows.append(row)
    return rows


def summarise(rows: Iterable[Row]) -> list[Row]:
    """One row an airline, most flights first, and a row of all."""
    by_airline: dict[str, list[Row]] = {}
    for row in rows:
        by_airline.setdefault(row["airline"], []).append(row)
    table = [_summary(name, by_airline[name]) for name in sorted(by_airline)]
    table.sort(key=lambda line: -line["flights"])
    return [*table, _summary("all", [row for name in by_airline for row in by_airline[name]])]


def _summary(name: str, rows: list[Row]) -> Row:
    delays = _known(rows, "dep_delay")
    return {
        "airline": name,
        "flights": len(rows),
        "cancelled": len(rows) - len(delays),
        "late_percent": _round(100 * fmean(delay > 15 for delay in delays)) if delays else None,
        "mean_delay": _mean(delays),
        "planes": len(set(_known(rows, "tailnum"))),
        "mean_age": _mean(_known(rows, "plane_age")),
        "mean_seats": _mean(_known(rows, "seats")),
    }


def _known(rows: Iterable[Row], key: str) -> list[Any]:
    return [row[key] for row in rows if row[key] is not None]


def _mean(values: Sequence[float]) -> float | None:
    return _round(fmean(values)) if values else None


def _round(value: float) -> float:
    return round(value, 1)


def as_text(table: Sequence[Row], width: int = 60) -> str:
    """The table in columns: texts to the left and cut to the *width*, numbers to the right."""
    columns = []
    for name in table[0] if table else ():
        values = [row[name] for row in table]
        cells = [name, *("-" if value is None else str(value)[:width] for value in values)]
        wide = max(map(len, cells))
        left = any(isinstance(value, str) for value in values)
        columns.append([cell.ljust(wide) if left else cell.rjust(wide) for cell in cells])
    return "\n".join("  ".join(line).rstrip() for line in zip(*columns, strict=True))


def write_csv(path: Path, rows: Sequence[Row], columns: Sequence[str] | None = None) -> None:
    """Write all rows or, when interrupted, nothing: never half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    with part.open("w", newline="", encoding="utf-8") as file:
        names = columns or list(rows[0] if rows else [])
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    os.replace(part, path)


# --- the picture ------------------------------------------------------------------------------

COLOURS = {"EWR": "#1b6ca8", "JFK": "#e07a1f", "LGA": "#3a8f5c"}
NAMES = {"EWR": "Newark", "JFK": "Kennedy", "LGA": "LaGuardia"}


def draw(path: Path, rows: list[Row], weather: list[Row], summary: list[Row]) -> None:
    """Visibility, delays and cancellations over the days, and the airlines compared."""
    days = {row["date"]: date.fromisoformat(row["date"]) for row in rows}
    midnights = sorted(24.0 * day.toordinal() for day in days.values())
    figure = Figure(
        figsize=(13, 7.5), dpi=110, layout=ConstrainedLayoutEngine(w_pad=0.12, hspace=0.04)
    )
    grid = figure.add_gridspec(3, 2, width_ratios=(2.3, 1), height_ratios=(1, 2.6, 1.2))
    sky = figure.add_subplot(grid[0, 0])
    delays = figure.add_subplot(grid[1, 0], sharex=sky)
    gone = figure.add_subplot(grid[2, 0], sharex=sky)
    airlines = figure.add_subplot(grid[:, 1])

    mean = _by_hour(weather, "visib")
    sky.fill_between(list(mean), list(mean.values()), color="#9ec9e8", linewidth=0)
    sky.set(ylim=(0, 10.5), yticks=(0, 5, 10), ylabel="miles")
    _title(sky, "Visibility")

    for origin, colour in COLOURS.items():
        line = _by_hour((row for row in rows if row["origin"] == origin), "dep_delay", width=3)
        for start in midnights:  # a line a day: at night nothing leaves
            at = [when for when in line if start <= when < start + 24]
            label = NAMES[origin] if start == midnights[0] else None
            delays.plot(
                at, [line[when] for when in at], color=colour, lw=2, marker="o", ms=3.5, label=label
            )
    delays.axhline(0, color="#6b7280", lw=0.8)
    delays.set(ylabel="minutes")
    _title(delays, "Mean departure delay, in steps of three hours")
    delays.legend(frameon=False, loc="upper left")

    bottom: dict[float, int] = {}
    for origin, colour in COLOURS.items():
        count: dict[float, int] = {}
        for row in rows:
            if row["origin"] == origin and row["dep_delay"] is None:
                count[_when(row, 3)] = count.get(_when(row, 3), 0) + 1
        hours, heights = list(count), list(count.values())
        gone.bar(hours, heights, 2.7, [bottom.get(h, 0) for h in hours], color=colour)
        bottom |= {hour: bottom.get(hour, 0) + height for hour, height in count.items()}
    gone.set(ylabel="flights")
    _title(gone, "Cancelled")
    labels = [f"{day:%a} {day.day} {day:%b}" for day in sorted(days.values())]
    gone.set_xticks([start + 12 for start in midnights], labels)
    for axes in (sky, delays, gone):
        axes.tick_params(axis="x", length=0, labelbottom=axes is gone)
        axes.grid(axis="y", color="#e5e7eb", lw=0.8)
        axes.set_axisbelow(True)
        for start in midnights[1:]:
            axes.axvline(start, color="#d1d5db", lw=0.8, ls=":")

    *each, total = summary
    ranked = [
        line for line in each if line["flights"] >= total["flights"] / 100 and line["mean_delay"]
    ]
    ranked.sort(key=lambda line: line["mean_delay"])
    names = [f"{line['airline']} ({line['flights']})" for line in ranked]
    bars = airlines.barh(names, [line["mean_delay"] for line in ranked], color="#7a8ca3")
    airlines.bar_label(
        bars, [f"{line['mean_delay']:.0f}" for line in ranked], padding=3, fontsize=9
    )
    _title(airlines, "Mean delay, minutes, by airline (flights)")
    airlines.set_xticks([])
    airlines.tick_params(axis="y", length=0, labelsize=9)
    airlines.margins(x=0.12, y=0.01)
    airlines.spines["bottom"].set_visible(False)

    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(
        "Flights from New York, 6 to 9 March 2013: the snow storm and the airlines",
        x=0.01, ha="left", fontsize=16, fontweight="bold",
    )  # fmt: skip
    part = path.with_suffix(".part")
    figure.savefig(part, format=path.suffix[1:])
    os.replace(part, path)


def _title(axes: Axes, text: str) -> None:
    axes.set_title(text, loc="left", fontsize=10, color="#6b7280")


def _when(row: Row, width: int) -> float:
    """The middle of the *width* hours that the row falls in, in hours since the year 1."""
    hour: int = row["hour"]
    return 24.0 * date.fromisoformat(row["date"]).toordinal() + hour // width * width + width / 2


def _by_hour(rows: Iterable[Row], key: str, width: int = 1) -> dict[float, float]:
    """The mean of *key* in steps of *width* hours, where there are at least three values."""
    values: dict[float, list[float]] = {}
    for row in rows:
        if row[key] is not None:
            values.setdefault(_when(row, width), []).append(row[key])
    return {when: fmean(some) for when, some in sorted(values.items()) if len(some) >= 3}
