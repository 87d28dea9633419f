"""Deployments: a flow under a name, with parameters, schedules and policies, as it is declared.

Nothing here runs anything. `asyncflow.scheduler` does, in an engine that was given the deployment.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, get_args

from asyncflow.errors import InvalidOption, InvalidParameters
from asyncflow.ticking import Catchup, Overlap, Policy, Timing

if TYPE_CHECKING:
    from asyncflow.flows import Flow
    from asyncflow.schedules import Schedule

#: Names of deployments and schedules: they stand in URLs, file names and commands.
_NAME = re.compile(r"[\w][\w .:@+-]{0,119}")
_SOURCES = ("code", "file", "api")


@dataclass(frozen=True, slots=True)
class DeploymentSchedule:
    """A schedule of a deployment, with what is its own.

    Args:
        schedule: `Cron`, `Interval` or `RRule`.
        name: unique in the deployment; by default what the schedule says of itself.
        parameters: for the runs of this schedule, beside those of the deployment.
        jitter_seconds: spreads the runs: each begins up to so much after its tick, always the
            same for a tick, and before the next one.
        start, end: aware; ticks before and after do not count.
        paused: it is there, and does not run until it is resumed. Counts when it is new.
    """

    schedule: Schedule
    name: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    jitter_seconds: float = 0.0
    start: datetime | None = None
    end: datetime | None = None
    paused: bool = False

    def __post_init__(self) -> None:
        if not callable(getattr(self.schedule, "ticks", None)):
            raise InvalidOption(
                f"schedule={self.schedule!r}: give Cron(...), Interval(...) or RRule(...)"
            )
        check_name("schedule", self.shown)
        _check_seconds("jitter_seconds", self.jitter_seconds)
        _check_flag("paused", self.paused)
        for name, moment in (("start", self.start), ("end", self.end)):
            if moment is not None and (not isinstance(moment, datetime) or moment.tzinfo is None):
                raise InvalidOption(
                    f"{name}={moment!r}: give an aware datetime, such as"
                    " datetime(2026, 1, 31, tzinfo=ZoneInfo('Europe/Berlin'))"
                )
        if self.start is not None and self.end is not None and self.end <= self.start:
            raise InvalidOption(
                f"schedule {self.shown!r}: its end {self.end.isoformat()} is not after its start"
                f" {self.start.isoformat()}"
            )
        if not isinstance(self.parameters, Mapping):
            raise InvalidOption(f"parameters={self.parameters!r}: give a dict of names and values")

    @property
    def shown(self) -> str:
        """Its name."""
        return self.name if self.name is not None else str(self.schedule)

    def timing(self, seed: str, paused: str = "") -> Timing:
        """What decides over its ticks."""
        return Timing(
            schedule=self.schedule,
            seed=seed,
            jitter=self.jitter_seconds,
            start=self.start.timestamp() if self.start is not None else None,
            end=self.end.timestamp() if self.end is not None else None,
            paused=paused,
        )

    def to_json(self, parameters: Any) -> dict[str, Any]:
        """For the store; *parameters* as they are kept there."""
        return {
            "schedule": self.schedule.to_json(),
            "parameters": parameters,
            "jitter_seconds": self.jitter_seconds,
            "start": self.start.isoformat() if self.start is not None else None,
            "end": self.end.isoformat() if self.end is not None else None,
        }

    @classmethod
    def from_json(cls, name: str, spec: Mapping[str, Any]) -> DeploymentSchedule:
        """What `to_json` gave; without its parameters."""
        from asyncflow.schedules import schedule_from_json

        start, end = (
            datetime.fromisoformat(spec[key]) if spec.get(key) else None for key in ("start", "end")
        )
        schedule = schedule_from_json(spec["schedule"])
        return cls(schedule, name, {}, spec.get("jitter_seconds", 0.0), start, end)


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """A flow under a name, with what its runs are to be like.

    Args:
        flow: the flow.
        name: unique in a store.
        schedules: when it runs by itself.
        parameters: for all of its runs; schedules and callers may give others.
        tags: for all of its runs.
        description: in words; by default the first line of the flow's docstring.
        version: of what is deployed; it is shown.
        overlap: what becomes of a tick while `concurrency_limit` runs are going on: "skip" it,
            "queue" it (one at most), "cancel_running" ones first, "allow" it. Runs that are
            started by hand are refused, unless it is "allow".
        concurrency_limit: how many runs may go on at once, unless overlap is "allow".
        catchup: of the ticks that passed while no engine was there: run the "latest", "skip" all,
            or run "all", but for those beyond `catchup_limit`.
        late_seconds: a run that begins so much after its tick begins in the state Late, and the
            event schedule.late tells of it.
        paused: it is there, and its schedules do not run until it is resumed. Counts when it is
            new.

    Raises:
        InvalidOption: a value is impossible.
        InvalidParameters: the parameters do not fit the flow.
    """

    flow: Flow[..., Any]
    name: str
    schedules: Sequence[DeploymentSchedule] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    tags: Sequence[str] = ()
    description: str = ""
    version: str | None = None
    overlap: Overlap = "skip"
    concurrency_limit: int = 1
    catchup: Catchup = "latest"
    catchup_limit: int = 100
    late_seconds: float = 15.0
    paused: bool = False

    def __post_init__(self) -> None:
        if not hasattr(self.flow, "call_spec"):
            raise InvalidOption(f"flow={self.flow!r} is not a flow: decorate it with @flow")
        check_name("deployment", self.name)
        _check_choice("overlap", self.overlap, get_args(Overlap))
        _check_choice("catchup", self.catchup, get_args(Catchup))
        for name, value in (
            ("concurrency_limit", self.concurrency_limit),
            ("catchup_limit", self.catchup_limit),
        ):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InvalidOption(f"{name}={value!r}: give a whole number from 1 on")
        _check_seconds("late_seconds", self.late_seconds)
        _check_flag("paused", self.paused)
        texts: dict[str, object] = {"description": self.description, "version": self.version}
        for name, text in texts.items():
            if not isinstance(text, str) and (name, text) != ("version", None):
                raise InvalidOption(f"{name}={text!r}: give a text")
        if isinstance(self.tags, str):
            object.__setattr__(self, "tags", (self.tags,))
        given: object = self.tags
        if not isinstance(given, Collection) or not all(isinstance(tag, str) for tag in given):
            raise InvalidOption(f"tags={given!r}: give a list of names")
        if not isinstance(self.parameters, Mapping):
            raise InvalidOption(f"parameters={self.parameters!r}: give a dict of names and values")
        names = [one.shown for one in self.schedules]
        for name in names:
            if names.count(name) > 1:
                raise InvalidOption(
                    f"deployment {self.name!r} has {names.count(name)} schedules called {name!r}:"
                    " give them names of their own"
                )
        if not self.description:
            text = (self.flow.__doc__ or "").strip().partition("\n")[0]
            object.__setattr__(self, "description", text)
        self._check_parameters()

    def _check_parameters(self) -> None:
        """Those of each schedule, with those of all, must be what the flow takes."""
        known = self.flow.parameters.signature.parameters
        open_ended = any(p.kind is p.VAR_KEYWORD for p in known.values())
        for name in self.parameters:
            if name not in known and not open_ended:
                raise InvalidParameters(
                    f"deployment {self.name!r}: flow {self.flow.name!r} has no parameter {name!r};"
                    f" it has {', '.join(known) or 'none'}"
                )
        for one in self.schedules:
            try:
                self.values(one.parameters)
            except InvalidParameters as error:
                raise InvalidParameters(
                    f"deployment {self.name!r}, schedule {one.shown!r}: {error}"
                ) from None

    def values(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """The checked arguments of a run."""
        taken = self.flow.parameters
        return taken.check(taken.bind((), {**self.parameters, **parameters}))

    @property
    def policy(self) -> Policy:
        return Policy(catchup=self.catchup, catchup_limit=self.catchup_limit)

    def spec(self, parameters: Any) -> dict[str, Any]:
        """What is stored of it, beside its name and its flow."""
        return {
            "parameters": parameters,
            "tags": sorted(self.tags),
            "description": self.description,
            "version": self.version,
            "overlap": self.overlap,
            "concurrency_limit": self.concurrency_limit,
            "catchup": self.catchup,
            "catchup_limit": self.catchup_limit,
            "late_seconds": self.late_seconds,
            "parameter_schema": self.flow.parameters.json_schema(),
        }


def deployment(
    flow: Flow[..., Any],
    name: str,
    *,
    cron: str | Iterable[str] | None = None,
    interval: float | timedelta | None = None,
    rrule: str | None = None,
    timezone: str | None = None,
    schedule: Any = None,
    schedules: Iterable[Any] = (),
    **options: Any,
) -> Deployment:
    """A deployment, with its schedules in short.

    Args:
        cron: one expression, or several.
        interval: seconds, or a timedelta.
        rrule: as in RFC 5545.
        timezone: of `cron` and `rrule`; by default UTC.
        schedule, schedules: `Cron`, `Interval`, `RRule`, or `DeploymentSchedule` with more to it.
        options: as of `Deployment`.

    Raises:
        InvalidOption, InvalidParameters: a value is impossible, or does not fit the flow.
    """
    from asyncflow.schedules import Cron, Interval, RRule

    if timezone is not None and not cron and not rrule:
        raise InvalidOption(
            f"timezone={timezone!r} is of cron and rrule: say when, too, as with cron='0 9 * * 1-5'"
        )
    given: list[Any] = list(schedules)
    if schedule is not None:
        given.append(schedule)
    zone = timezone or "UTC"
    texts = list(cron) if isinstance(cron, Iterable) and not isinstance(cron, str) else [cron]
    given += [Cron(text, timezone=zone) for text in texts if text is not None]
    if interval is not None:
        given.append(Interval(interval))
    if rrule is not None:
        given.append(RRule(rrule, timezone=zone))
    made = [
        one if isinstance(one, DeploymentSchedule) else DeploymentSchedule(one) for one in given
    ]
    unknown = set(options) - set(Deployment.__dataclass_fields__)
    if unknown:
        known = sorted(set(Deployment.__dataclass_fields__) - {"flow", "name"})
        raise InvalidOption(
            f"a deployment has no option {sorted(unknown)[0]!r}: its options are cron, interval,"
            f" rrule, timezone, schedule, {', '.join(known)}"
        )
    return Deployment(flow=flow, name=name, schedules=made, **options)


def _check_flag(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise InvalidOption(f"{name}={value!r}: give True or False")


def check_name(what: str, name: Any) -> None:
    """Raise InvalidOption unless the name is one."""
    if not isinstance(name, str) or not (name.isprintable() and 0 < len(name.strip()) <= 120):
        raise InvalidOption(f"{what} name {name!r}: give 1 to 120 characters that can be printed")
    if what == "deployment" and not _NAME.fullmatch(name):
        raise InvalidOption(
            f"deployment name {name!r}: give letters, digits, spaces and . : @ + - _ only,"
            " beginning with a letter or digit"
        )


def _check_choice(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InvalidOption(f"{name}={value!r}: give one of {', '.join(map(repr, allowed))}")


def _check_seconds(name: str, value: Any) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 1e9:
        raise InvalidOption(f"{name}={value!r}: give seconds, 0 or more")


def plain(stored: bytes) -> Any:
    """Stored parameters as JSON in JSON."""
    return json.loads(stored)
