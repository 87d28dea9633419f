"""The names and signatures that users rely on: they are there, and nothing else is."""

from __future__ import annotations

import asyncio
import inspect
from typing import Any

import pytest

import asyncflow
from asyncflow import (
    Engine,
    FlowRun,
    MemoryStore,
    State,
    StateType,
    TaskFuture,
    TaskFutureList,
    TaskRun,
    errors,
    flow,
    runtime,
    task,
)


def words(text: str) -> list[str]:
    return text.split()


NAMES = words("""
    flow task Flow Task TaskFuture TaskFutureList FlowRun TaskRun Engine MemoryStore SqliteStore
    unmapped allow_failure as_completed wait resolve resource
    State StateType Completed Failed Cancelled
    exponential_backoff RetryAfter
    concurrency rate_limit tags runtime get_run_logger
    INPUTS TASK_SOURCE RUN_ID FLOW_PARAMETERS NO_CACHE
    sleep sleep_until wait_for_event send_event pause_flow_run
    now uuid4 random idempotency_key
    transaction
    Cron Interval RRule serve Automation set_progress DaskRunner RayRunner
""")
#: Of these the ones that do not exist yet. Remove a name when it comes.
LATER = {
    "DaskRunner", "RayRunner",
}  # fmt: skip
#: Names of the root that no page promises, each with its reason.
BESIDES = {
    "CacheKeyFn": "what users compose cache policies of",
    "CachePolicy": "the type of the policies, for annotations",
    "AbsenceTrigger": "of automations: what was expected and did not come",
    "AllOf": "of automations: several triggers",
    "AnyOf": "of automations: one of several triggers",
    "CallFunction": "what an automation does",
    "CancelRun": "what an automation does",
    "Channel": "where notifications go",
    "Deployment": "the type of deployments",
    "DeploymentSchedule": "a schedule with parameters of its own",
    "DurationTrigger": "of automations: what takes long",
    "EventTrigger": "of automations: what happened",
    "InSequence": "of automations: one trigger after another",
    "Notify": "what an automation does",
    "PauseSchedule": "what an automation does",
    "ResumeRun": "what an automation does",
    "ResumeSchedule": "what an automation does",
    "RunDeployment": "what an automation does",
    "SetLimit": "what an automation does",
    "fallback": "a failure policy, named by the contract",
    "Artifact": "the type of what runs show",
    "create_image_artifact": "named by the issue on artifacts",
    "create_link_artifact": "named by the issue on artifacts",
    "create_markdown_artifact": "named by the issue on artifacts",
    "create_table_artifact": "named by the issue on artifacts",
    "Variable": "the type of what `engine.variables` lists",
    "get_variable": "named by the issue on artifacts",
    "set_variable": "named by the issue on artifacts",
    "emit_event": "named by the issue on automations",
    "verify_webhook": "for those who get notifications",
    "Transaction": "the type of what `transaction` gives, for annotations",
    "__version__": "asked for by everybody",
}

ERRORS: dict[str, tuple[type[BaseException], ...]] = {
    "AsyncflowError": (Exception,),
    "TaskTimeout": (TimeoutError,),
    "UnknownRun": (LookupError,),
    "InvalidParameters": (ValueError, TypeError),
    "MappingLengthMismatch": (ValueError,),
    "ResultNotStored": (LookupError,),
    "StoreError": (OSError,),
    "QueueTimeout": (TimeoutError,),
    "EventTimeout": (TimeoutError,),
    "PauseTimeout": (TimeoutError,),
    "TaskCancelled": (),
    "UpstreamFailed": (),
    "RecordedFailure": (),
}


@task
async def a_task() -> None: ...


@flow
async def a_flow() -> None: ...


def has(owner: Any, names: str) -> None:
    missing = [name for name in names.split() if not hasattr(owner, name)]
    assert not missing


def takes(function: Any, names: str) -> None:
    """*function* can be given these arguments, by these names."""
    known = inspect.signature(function).parameters
    assert [name for name in names.split() if name not in known] == []


@pytest.mark.parametrize("name", [name for name in NAMES if name not in LATER])
def test_a_promised_name_is_there(name: str) -> None:
    assert name in asyncflow.__all__
    assert getattr(asyncflow, name) is not None


@pytest.mark.parametrize("name", sorted(LATER))
def test_a_name_that_comes_later_is_not_there_yet(name: str) -> None:
    assert name not in asyncflow.__all__, f"{name} has come: take it out of LATER"


def test_nothing_is_shown_that_nobody_promised() -> None:
    kinds = {name for name, value in vars(errors).items() if inspect.isclass(value)}
    assert set(asyncflow.__all__) - kinds - set(NAMES) == set(BESIDES)


def test_every_error_can_be_caught_by_a_name_of_the_root() -> None:
    ours = {
        name
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, errors.AsyncflowError)
    }
    assert ours <= set(asyncflow.__all__)
    for name in ours:
        assert getattr(asyncflow, name).__doc__, f"{name} does not say when it is raised"


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_is_also_the_builtin_that_it_resembles(name: str) -> None:
    error = getattr(asyncflow, name)
    assert issubclass(error, asyncflow.AsyncflowError)
    assert all(issubclass(error, other) for other in ERRORS[name])


def test_a_cancelled_task_is_not_taken_for_a_cancelled_host() -> None:
    assert not issubclass(asyncflow.TaskCancelled, asyncio.CancelledError)


def test_each_name_has_one_home() -> None:
    names = [name for homes in asyncflow._HOMES.values() for name in homes]
    assert len(names) == len(set(names))
    for module, homes in asyncflow._HOMES.items():
        for name in homes:
            value = getattr(asyncflow, name)
            home = getattr(value, "__module__", module)
            assert home == module, f"{name} is listed in {module} and lives in {home}"


def test_the_states() -> None:
    assert {s.value for s in StateType} == {
        "SCHEDULED", "PENDING", "RUNNING", "PAUSED", "CANCELLING", "COMPLETED", "FAILED",
        "CANCELLED", "CRASHED",
    }  # fmt: skip
    has(State(StateType.RUNNING), "type name message timestamp attempt result")
    has(
        State,
        "is_scheduled is_pending is_running is_paused is_cancelling is_completed is_failed"
        " is_cancelled is_crashed is_final",
    )
    takes(State.result, "raise_on_failure")


def test_tasks_flows_and_futures() -> None:
    has(a_task, "submit map stream with_options fn name")
    has(a_flow, "submit with_options fn name")
    hooks = "on_completion on_failure on_cancellation on_crashed on_running"
    has(a_task, hooks)
    has(a_flow, hooks)
    takes(a_task.submit, "wait_for return_state priority key")
    takes(a_task.map, "wait_for return_state priority")
    takes(a_task.stream, "source max_in_flight ordered on_error")
    has(TaskFuture, "__await__ result wait state done cancel task_run_id add_done_callback")
    takes(TaskFuture.result, "timeout raise_on_failure")
    takes(TaskFuture.wait, "timeout")
    has(TaskFutureList, "__await__ result wait")
    takes(TaskFutureList.result, "timeout raise_on_failure")


def test_functions() -> None:
    takes(asyncflow.wait, "futures timeout return_when")
    takes(asyncflow.as_completed, "futures timeout")
    has(asyncflow.as_completed([]), "__aiter__ __iter__")
    takes(asyncflow.concurrency, "name occupy limit timeout")
    has(asyncflow.concurrency("x"), "__aenter__ __aexit__ __enter__ __exit__")
    takes(asyncflow.rate_limit, "name occupy limit period key")
    takes(asyncflow.wait_for_event, "name timeout")
    takes(asyncflow.send_event, "name payload run_id")
    takes(asyncflow.pause_flow_run, "wait_for_input timeout")
    takes(asyncflow.exponential_backoff, "base factor max_delay")


def test_the_engine_and_what_it_gives() -> None:
    takes(Engine, "store max_concurrency max_threads durability max_recoveries")
    takes(Engine, "cancel_grace_seconds")
    takes(Engine.submit, "flow idempotency_key tags run_name")
    has(Engine, "run answer recover cancel wait resume")
    takes(Engine.rerun, "run_id parameters")
    takes(Engine.fork, "run_id from_task parameters")
    takes(Engine.set_limit, "name limit period burst")
    takes(Engine.runs, "state flow tags since parent_id limit cursor")
    for listing in (Engine.task_runs, Engine.logs, Engine.events):
        takes(listing, "run_id limit cursor")
    has(
        FlowRun,
        "__await__ wait cancel id name flow_name parameters state parent_id created_at started_at"
        " ended_at tags",
    )
    has(
        TaskRun,
        "id name task_key state parent_id attempts interruptions started_at ended_at upstream",
    )


def test_the_defaults_of_the_engine() -> None:
    defaults = {p.name: p.default for p in inspect.signature(Engine).parameters.values()}
    assert defaults["max_concurrency"] == 1000
    assert defaults["max_recoveries"] == 3
    assert defaults["cancel_grace_seconds"] == 30
    assert defaults["durability"] == "strict"


def test_schedules() -> None:
    takes(asyncflow.Cron, "cron timezone day_or")
    takes(asyncflow.Interval, "seconds anchor")
    takes(asyncflow.RRule, "rrule timezone start")
    for kind in (asyncflow.Cron, asyncflow.Interval, asyncflow.RRule):
        takes(kind.upcoming, "after n")
        has(kind, "ticks description to_json")


async def test_listings_say_where_they_go_on() -> None:
    async with Engine(MemoryStore()) as engine:
        run = await engine.submit(a_flow)
        await run
        for listing in (engine.runs, engine.task_runs, engine.logs, engine.events):
            found = await listing() if listing == engine.runs else await listing(run.id)
            assert found.next_cursor is None


def test_what_is_not_in_a_run_is_none() -> None:
    for name in words("id name parameters parent_id attempt"):
        assert getattr(runtime.flow_run, name) is None
    for name in words("id name attempt"):
        assert getattr(runtime.task_run, name) is None
    assert not runtime.flow_run.tags
    assert not runtime.task_run.tags


OPTIONS = words(
    "retries retry_delay_seconds retry_jitter_factor retry_on retry_condition_fn timeout_seconds"
    " total_timeout_seconds max_concurrency tags limits priority runner log_prints persist_result"
    " cache_policy cache_key_fn cache_expiration refresh_cache queue_timeout_seconds"
    " cancel_grace_seconds name key on_completion on_failure"
)
VALUES: dict[str, Any] = {
    "retries": 1, "retry_delay_seconds": [1, 2], "retry_jitter_factor": 0, "retry_on": OSError,
    "timeout_seconds": 1, "total_timeout_seconds": 2, "max_concurrency": 1, "tags": ["a"],
    "limits": {"db": 1}, "priority": 1, "runner": "async", "log_prints": True,
    "persist_result": True, "cache_policy": asyncflow.INPUTS, "cache_expiration": 5,
    "refresh_cache": True, "queue_timeout_seconds": 1, "cancel_grace_seconds": 1, "name": "n",
    "key": "k",
}  # fmt: skip


@pytest.mark.parametrize("name", OPTIONS)
def test_a_task_takes_the_option(name: str) -> None:
    value = VALUES.get(name, lambda *_: True)
    more = (
        {"cache_policy": asyncflow.INPUTS} if name in ("refresh_cache", "cache_expiration") else {}
    )

    async def fn() -> None: ...

    task(**{name: value}, **more)(fn)
    task(fn).with_options(**{name: value}, **more)


@pytest.mark.parametrize(
    "name",
    words(
        "retries retry_delay_seconds retry_jitter_factor retry_on timeout_seconds max_concurrency"
        " total_timeout_seconds tags log_prints persist_result validate_parameters version"
        " retry_budget max_recoveries keep_last cancel_grace_seconds name flow_run_name"
    ),
)
def test_a_flow_takes_the_option(name: str) -> None:
    value = {
        "validate_parameters": False, "version": "1", "retry_budget": 0.1, "max_recoveries": 1,
        "keep_last": 5, "flow_run_name": "r",
    }.get(name, VALUES.get(name))  # fmt: skip

    async def fn() -> None: ...

    flow(**{name: value})(fn)
    flow(fn).with_options(**{name: value})
