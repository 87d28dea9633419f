"""asyncflow: asyncio-native orchestration. Plain functions become durable flows and tasks.

Importing this does nothing; each name is loaded when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from asyncflow._version import __version__ as __version__

if TYPE_CHECKING:
    from asyncflow import runtime as runtime
    from asyncflow.artifacts import create_image_artifact as create_image_artifact
    from asyncflow.artifacts import create_link_artifact as create_link_artifact
    from asyncflow.artifacts import create_markdown_artifact as create_markdown_artifact
    from asyncflow.artifacts import create_table_artifact as create_table_artifact
    from asyncflow.artifacts import set_progress as set_progress
    from asyncflow.automations import AbsenceTrigger as AbsenceTrigger
    from asyncflow.automations import AllOf as AllOf
    from asyncflow.automations import AnyOf as AnyOf
    from asyncflow.automations import Automation as Automation
    from asyncflow.automations import CallFunction as CallFunction
    from asyncflow.automations import CancelRun as CancelRun
    from asyncflow.automations import DurationTrigger as DurationTrigger
    from asyncflow.automations import EventTrigger as EventTrigger
    from asyncflow.automations import InSequence as InSequence
    from asyncflow.automations import Notify as Notify
    from asyncflow.automations import PauseSchedule as PauseSchedule
    from asyncflow.automations import ResumeRun as ResumeRun
    from asyncflow.automations import ResumeSchedule as ResumeSchedule
    from asyncflow.automations import RunDeployment as RunDeployment
    from asyncflow.automations import SetLimit as SetLimit
    from asyncflow.caching import FLOW_PARAMETERS as FLOW_PARAMETERS
    from asyncflow.caching import INPUTS as INPUTS
    from asyncflow.caching import NO_CACHE as NO_CACHE
    from asyncflow.caching import RUN_ID as RUN_ID
    from asyncflow.caching import TASK_SOURCE as TASK_SOURCE
    from asyncflow.caching import CacheKeyFn as CacheKeyFn
    from asyncflow.caching import CachePolicy as CachePolicy
    from asyncflow.deployments import Deployment as Deployment
    from asyncflow.deployments import DeploymentSchedule as DeploymentSchedule
    from asyncflow.engine import Engine as Engine
    from asyncflow.errors import AlreadyAnswered as AlreadyAnswered
    from asyncflow.errors import AsyncflowError as AsyncflowError
    from asyncflow.errors import AutomationLoop as AutomationLoop
    from asyncflow.errors import BlockingCall as BlockingCall
    from asyncflow.errors import CommandFailed as CommandFailed
    from asyncflow.errors import ConcurrencyDeadlock as ConcurrencyDeadlock
    from asyncflow.errors import DeliveryFailed as DeliveryFailed
    from asyncflow.errors import DependencyCycle as DependencyCycle
    from asyncflow.errors import DeploymentBusy as DeploymentBusy
    from asyncflow.errors import EventTimeout as EventTimeout
    from asyncflow.errors import FlowTimeout as FlowTimeout
    from asyncflow.errors import IllegalMove as IllegalMove
    from asyncflow.errors import InvalidCacheKey as InvalidCacheKey
    from asyncflow.errors import InvalidDefinition as InvalidDefinition
    from asyncflow.errors import InvalidExport as InvalidExport
    from asyncflow.errors import InvalidOption as InvalidOption
    from asyncflow.errors import InvalidParameters as InvalidParameters
    from asyncflow.errors import InvalidSignature as InvalidSignature
    from asyncflow.errors import MappingLengthMismatch as MappingLengthMismatch
    from asyncflow.errors import MissingExtra as MissingExtra
    from asyncflow.errors import NoEngine as NoEngine
    from asyncflow.errors import NotReady as NotReady
    from asyncflow.errors import NotSerializable as NotSerializable
    from asyncflow.errors import PauseTimeout as PauseTimeout
    from asyncflow.errors import QueueTimeout as QueueTimeout
    from asyncflow.errors import RecordedFailure as RecordedFailure
    from asyncflow.errors import ResultNotStored as ResultNotStored
    from asyncflow.errors import ResultUnreadable as ResultUnreadable
    from asyncflow.errors import RetryAfter as RetryAfter
    from asyncflow.errors import RollbackIncomplete as RollbackIncomplete
    from asyncflow.errors import RunCancelled as RunCancelled
    from asyncflow.errors import RunCrashed as RunCrashed
    from asyncflow.errors import RunExists as RunExists
    from asyncflow.errors import RunFailed as RunFailed
    from asyncflow.errors import RunInterrupted as RunInterrupted
    from asyncflow.errors import RunNotResumable as RunNotResumable
    from asyncflow.errors import RunTaken as RunTaken
    from asyncflow.errors import ServerError as ServerError
    from asyncflow.errors import ServerTimeout as ServerTimeout
    from asyncflow.errors import ServerUnreachable as ServerUnreachable
    from asyncflow.errors import Skipped as Skipped
    from asyncflow.errors import StoreClosed as StoreClosed
    from asyncflow.errors import StoreError as StoreError
    from asyncflow.errors import TaskCancelled as TaskCancelled
    from asyncflow.errors import TaskTimeout as TaskTimeout
    from asyncflow.errors import TemplateError as TemplateError
    from asyncflow.errors import UnknownAutomation as UnknownAutomation
    from asyncflow.errors import UnknownChannel as UnknownChannel
    from asyncflow.errors import UnknownDeployment as UnknownDeployment
    from asyncflow.errors import UnknownFlow as UnknownFlow
    from asyncflow.errors import UnknownRun as UnknownRun
    from asyncflow.errors import UnknownTask as UnknownTask
    from asyncflow.errors import Unresponsive as Unresponsive
    from asyncflow.errors import UpstreamFailed as UpstreamFailed
    from asyncflow.errors import WorkerLost as WorkerLost
    from asyncflow.flows import Flow as Flow
    from asyncflow.flows import flow as flow
    from asyncflow.future import TaskFuture as TaskFuture
    from asyncflow.future import TaskFutureList as TaskFutureList
    from asyncflow.future import as_completed as as_completed
    from asyncflow.future import resolve as resolve
    from asyncflow.future import wait as wait
    from asyncflow.handle import FlowRun as FlowRun
    from asyncflow.holds import concurrency as concurrency
    from asyncflow.holds import rate_limit as rate_limit
    from asyncflow.logs import get_run_logger as get_run_logger
    from asyncflow.notifications.channels import Channel as Channel
    from asyncflow.notifications.webhook import verify_webhook as verify_webhook
    from asyncflow.planned import emit_event as emit_event
    from asyncflow.policy import fallback as fallback
    from asyncflow.resources import resource as resource
    from asyncflow.retry import exponential_backoff as exponential_backoff
    from asyncflow.runtime import tags as tags
    from asyncflow.schedules import Cron as Cron
    from asyncflow.schedules import Interval as Interval
    from asyncflow.schedules import RRule as RRule
    from asyncflow.serving import serve as serve
    from asyncflow.states import Cancelled as Cancelled
    from asyncflow.states import Completed as Completed
    from asyncflow.states import Failed as Failed
    from asyncflow.states import State as State
    from asyncflow.states import StateType as StateType
    from asyncflow.store.memory import MemoryStore as MemoryStore
    from asyncflow.store.sqlite import SqliteStore as SqliteStore
    from asyncflow.tasks import Task as Task
    from asyncflow.tasks import allow_failure as allow_failure
    from asyncflow.tasks import task as task
    from asyncflow.tasks import unmapped as unmapped
    from asyncflow.transactions import Transaction as Transaction
    from asyncflow.transactions import transaction as transaction
    from asyncflow.variables import Variable as Variable
    from asyncflow.variables import get_variable as get_variable
    from asyncflow.variables import set_variable as set_variable
    from asyncflow.views import Artifact as Artifact
    from asyncflow.views import TaskRun as TaskRun
    from asyncflow.waits import idempotency_key as idempotency_key
    from asyncflow.waits import now as now
    from asyncflow.waits import pause_flow_run as pause_flow_run
    from asyncflow.waits import random as random
    from asyncflow.waits import send_event as send_event
    from asyncflow.waits import sleep as sleep
    from asyncflow.waits import sleep_until as sleep_until
    from asyncflow.waits import uuid4 as uuid4
    from asyncflow.waits import wait_for_event as wait_for_event

#: Where each name lives.
_HOMES = {
    "asyncflow.artifacts": (
        "create_image_artifact", "create_link_artifact", "create_markdown_artifact",
        "create_table_artifact", "set_progress",
    ),
    "asyncflow.automations": (
        "AbsenceTrigger", "AllOf", "AnyOf", "Automation", "CallFunction", "CancelRun",
        "DurationTrigger", "EventTrigger", "InSequence", "Notify", "PauseSchedule",
        "ResumeRun", "ResumeSchedule", "RunDeployment", "SetLimit",
    ),
    "asyncflow.caching": (
        "CacheKeyFn", "CachePolicy", "FLOW_PARAMETERS", "INPUTS", "NO_CACHE", "RUN_ID",
        "TASK_SOURCE",
    ),
    "asyncflow.holds": ("concurrency", "rate_limit"),
    "asyncflow.deployments": ("Deployment", "DeploymentSchedule"),
    "asyncflow.engine": ("Engine",),
    "asyncflow.handle": ("FlowRun",),
    "asyncflow.errors": (
        "AlreadyAnswered", "AsyncflowError", "AutomationLoop", "BlockingCall", "CommandFailed",
        "ConcurrencyDeadlock", "DeliveryFailed", "DependencyCycle", "DeploymentBusy",
        "EventTimeout", "FlowTimeout", "IllegalMove", "InvalidCacheKey", "InvalidDefinition",
        "InvalidExport", "InvalidOption", "InvalidParameters", "InvalidSignature",
        "MappingLengthMismatch", "MissingExtra", "NoEngine", "NotReady", "NotSerializable",
        "PauseTimeout", "QueueTimeout", "RecordedFailure", "ResultNotStored", "ResultUnreadable",
        "RetryAfter", "RollbackIncomplete", "RunCancelled", "RunCrashed", "RunExists", "RunFailed",
        "RunInterrupted", "RunNotResumable", "RunTaken", "ServerError", "ServerTimeout",
        "ServerUnreachable", "Skipped", "StoreClosed", "StoreError", "TaskCancelled", "TaskTimeout",
        "TemplateError", "UnknownAutomation", "UnknownChannel", "UnknownDeployment", "UnknownFlow",
        "UnknownRun", "UnknownTask", "Unresponsive", "UpstreamFailed", "WorkerLost",
    ),
    "asyncflow.flows": ("Flow", "flow"),
    "asyncflow.future": ("TaskFuture", "TaskFutureList", "as_completed", "resolve", "wait"),
    "asyncflow.logs": ("get_run_logger",),
    "asyncflow.notifications.channels": ("Channel",),
    "asyncflow.notifications.webhook": ("verify_webhook",),
    "asyncflow.planned": ("emit_event",),
    "asyncflow.policy": ("fallback",),
    "asyncflow.resources": ("resource",),
    "asyncflow.retry": ("exponential_backoff",),
    "asyncflow.runtime": ("tags",),
    "asyncflow.schedules": ("Cron", "Interval", "RRule"),
    "asyncflow.serving": ("serve",),
    "asyncflow.states": ("Cancelled", "Completed", "Failed", "State", "StateType"),
    "asyncflow.store.memory": ("MemoryStore",),
    "asyncflow.store.sqlite": ("SqliteStore",),
    "asyncflow.tasks": ("Task", "allow_failure", "task", "unmapped"),
    "asyncflow.transactions": ("Transaction", "transaction"),
    "asyncflow.variables": ("Variable", "get_variable", "set_variable"),
    "asyncflow.views": ("Artifact", "TaskRun"),
    "asyncflow.waits": (
        "idempotency_key", "now", "pause_flow_run", "random", "send_event", "sleep",
        "sleep_until", "uuid4", "wait_for_event",
    ),
}  # fmt: skip

_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

if not TYPE_CHECKING:  # to checkers, the imports above say what is public
    __all__ = [*sorted(_HOME_OF), "__version__", "runtime"]


def __getattr__(name: str) -> Any:
    import importlib

    if name == "runtime":
        return importlib.import_module("asyncflow.runtime")
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'asyncflow' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    # Written over whatever the import put there: submodules `task`, `flow`, `resource` and
    # `concurrency` have the names of what they hold.
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*_HOME_OF, "__version__", "runtime"])
