"""Keeps automations from firing themselves.

`check_loops` looks at what is declared: a deployment that is run and whose runs fire the automation
that runs it, directly or through others. `guarded` looks at what happened: each run carries the
automations that led to it. What neither can know before is left to the second.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from asyncflow.automations import (
    COMPOSITES,
    AbsenceTrigger,
    AllOf,
    Automation,
    DurationTrigger,
    InSequence,
    RunDeployment,
    Trigger,
    leaves,
)
from asyncflow.errors import AutomationLoop
from asyncflow.matching import KINDS, Conditions, Names, event_name, is_glob, names_of
from asyncflow.states import NAMES, StateType

#: How many automations may lead to a run.
CHAIN = 5


@dataclass(frozen=True, slots=True)
class DeploymentFacts:
    """What is known of the runs of a deployment before there are any.

    Args:
        flow: the name of its flow.
        tags: those of its runs.
    """

    flow: str
    tags: Collection[str] = ()


def guarded(automation: str, cause: Sequence[str], *, starts_runs: bool = True) -> str | None:
    """Why an automation must not fire on a run; None when it may.

    A run that an automation starts or resumes carries the *cause* of the run that fired it, and
    the automation's name after it. So do the runs that it starts itself.

    Args:
        automation: the name of the automation that would fire.
        cause: the names of the automations that led to the run, the first of them first.
        starts_runs: whether it has actions that start runs (`Automation.starts_runs`): others may
            end a chain of any length.
    """
    chain = " -> ".join(cause)
    if automation in cause:
        return f"automation {automation!r} has led to this run itself ({chain})"
    if starts_runs and len(cause) >= CHAIN:
        return f"{len(cause)} automations have led to this run ({chain}): no other may go on"
    return None


def check_loops(
    automations: Iterable[Automation], deployments: Mapping[str, DeploymentFacts]
) -> None:
    """Refuse automations that would fire themselves, for ever.

    An automation is in a loop when the runs that it starts, and those that other automations
    start because of them, are enough to fire it. It is not when a condition on what cannot be known
    before (a payload, the name of a run or task) stands between: then `guarded` ends it.

    Args:
        automations: all of them, also those that are not enabled.
        deployments: what is known of the deployments, by name.

    Raises:
        AutomationLoop: some would. The message names them, and what to do.
    """
    runs = {
        automation.name: (automation, run)
        for automation in automations
        if (run := _run_by(automation))
    }
    names = {name for _, deployed in runs.values() for name in deployed}
    events = {name: _events_of(name, deployments.get(name)) for name in sorted(names)}
    fires = {name: _Fires(automation.trigger, events) for name, (automation, _) in runs.items()}
    # What the runs of all that are left do not fire goes, until nothing goes any more.
    left = dict(runs)
    while True:
        there = {name for _, deployed in left.values() for name in deployed}
        gone = [name for name in left if not fires[name].by(there)]
        if not gone:
            break
        for name in gone:
            del left[name]
    if not left:
        return
    follow: dict[str, dict[str, str]] = {
        one: {
            other: next(name for name in runs[one][1] if name in fires[other].any)
            for other in left
            if not fires[other].any.isdisjoint(runs[one][1])
        }
        for one in left
    }
    chain = _shortest(follow)
    raise AutomationLoop(_sentence(chain, follow, runs[chain[0]][0]), chain)


def _run_by(automation: Automation) -> tuple[str, ...]:
    actions = cast("tuple[object, ...]", automation.actions)
    return tuple(dict.fromkeys(a.name for a in actions if isinstance(a, RunDeployment)))


#: What the names of states that are not those of their types refine.
_REFINES = {
    "AwaitingFallback": StateType.SCHEDULED,
    "AwaitingRetry": StateType.SCHEDULED,
    "Cached": StateType.COMPLETED,
    "Edited": StateType.COMPLETED,
    "Fallback": StateType.COMPLETED,
    "Interrupted": StateType.PAUSED,
    "Late": StateType.SCHEDULED,
    "NeedsAttention": StateType.PAUSED,
    "Retrying": StateType.RUNNING,
    "Skipped": StateType.COMPLETED,
    "Suspended": StateType.PAUSED,
    "TimedOut": StateType.FAILED,
    "UpstreamFailed": StateType.FAILED,
}
assert set(_REFINES) == set(NAMES)

_Event = tuple[str, tuple[str, ...], dict[str, object]]


def _events_of(deployment: str, facts: DeploymentFacts | None) -> list[_Event]:
    """The events that the runs of a deployment may give, as far as they are known."""
    known: dict[str, object] = {"deployment": deployment}
    if facts is not None:
        known.update(flow=facts.flow, tags=list(facts.tags))
    states = [(type_, None) for type_ in StateType] + [(t, n) for n, t in _REFINES.items()]
    events = []
    for kind in KINDS:
        for type_, name in states:
            stored = event_name(kind, type_)
            state_name = name or stored.partition(".")[2]
            fields = {**known, "state": type_.value, "state_name": state_name}
            events.append((kind, names_of(stored, fields), fields))
    return events


class _Fires:
    """Which deployments have runs that fire a trigger.

    Attributes:
        any: those whose runs fire some part of it.
    """

    def __init__(self, trigger: Trigger, events: Mapping[str, list[_Event]]) -> None:
        self._trigger = trigger
        self._of = {
            id(leaf): {name for name, own in events.items() if _fires(leaf, own)}
            for leaf in leaves(trigger)
        }
        self.any = {name for own in self._of.values() for name in own}

    def by(self, deployments: set[str]) -> bool:
        """Whether runs of these deployments are enough."""
        return self._by(self._trigger, deployments)

    def _by(self, trigger: Trigger, deployments: set[str]) -> bool:
        if not isinstance(trigger, COMPOSITES):
            return not self._of[id(trigger)].isdisjoint(deployments)
        parts = (self._by(part, deployments) for part in trigger.triggers)
        return all(parts) if isinstance(trigger, AllOf | InSequence) else any(parts)


def _fires(leaf: Trigger, events: list[_Event]) -> bool:
    if isinstance(leaf, COMPOSITES):
        return False
    conditions = Conditions(leaf.match)
    if isinstance(leaf, DurationTrigger):
        state = leaf.state.upper()
        return any(
            kind == KINDS[0]
            and state in (fields["state"], str(fields["state_name"]).upper())
            and conditions.hold(fields)
            for kind, _, fields in events
        )
    expect = leaf.expect
    if isinstance(leaf, AbsenceTrigger):
        if leaf.after is None:
            return False  # a run that is seen ends the silence
        expect = leaf.after
    names = Names(expect)
    return any(names.hit(own) and conditions.hold(fields) for _, own, fields in events)


def _shortest(follow: Mapping[str, Mapping[str, str]]) -> tuple[str, ...]:
    """The shortest way from an automation back to itself."""
    best: tuple[str, ...] = ()
    for start in follow:
        ways: list[tuple[str, ...]] = [(start,)]
        reached = {start}
        while ways and (not best or len(ways[0]) < len(best)):
            longer: list[tuple[str, ...]] = []
            for way in ways:
                if start in follow[way[-1]]:
                    best = way
                    longer = []
                    break
                for name in follow[way[-1]]:
                    if name not in reached:
                        reached.add(name)
                        longer.append((*way, name))
            ways = longer
    return best


def _sentence(
    chain: Sequence[str], follow: Mapping[str, Mapping[str, str]], first: Automation
) -> str:
    pairs = list(zip(chain, (*chain[1:], chain[0]), strict=True))
    steps = [f"{one!r} runs deployment {follow[one][other]!r}" for one, other in pairs]
    last = follow[chain[-1]][chain[0]]
    if len(chain) == 1:
        what = (
            f"automation {chain[0]!r} would fire itself: it {steps[0][len(repr(chain[0])) + 1 :]}"
        )
        what += ", whose events match its trigger"
    else:
        what = (
            f"automations {' -> '.join(repr(name) for name in (*chain, chain[0]))} would fire one"
            f" another: {', '.join(steps)}, and the events of each match the trigger of the next"
        )
    return f"{what}; {_remedy(chain, last, first.trigger)}"


def _remedy(chain: Sequence[str], deployment: str, trigger: Trigger) -> str:
    """How the loop is broken, in the automation that closes it."""
    name = chain[0]
    for leaf in leaves(trigger):
        wanted = leaf.match.get("deployment")
        if wanted is None:
            continue
        if wanted == deployment and not is_glob(deployment):
            if len(chain) > 1:
                return "let one of them run another deployment, or do something else"
            return (
                "run another deployment, or give its flow retries=, or use ResumeRun() to go on"
                " with the run"
            )
        many = (
            [*wanted, f"!{deployment}"] if isinstance(wanted, tuple) else [wanted, f"!{deployment}"]
        )
        return f"leave its runs out of {name!r} with match={{'deployment': {many!r}}}"
    return f'leave its runs out of {name!r} with match={{"deployment": "!{deployment}"}}'
