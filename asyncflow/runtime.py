"""`runtime.flow_run` and `runtime.task_run`: what the running code may know of itself.

Every field is None outside of a run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from asyncflow.context import TAGS, current_call, current_run


class _FlowRunInfo:
    """The flow run that this code belongs to."""

    @property
    def id(self) -> str | None:
        run = current_run()
        return run.id if run is not None else None

    @property
    def name(self) -> str | None:
        run = current_run()
        return (run.run_name or run.flow_name) if run is not None else None

    @property
    def flow_name(self) -> str | None:
        run = current_run()
        return run.flow_name if run is not None else None

    @property
    def parameters(self) -> dict[str, Any] | None:
        run = current_run()
        return dict(run.parameters) if run is not None else None

    @property
    def tags(self) -> list[str] | None:
        run = current_run()
        return sorted(run.tags | TAGS.get()) if run is not None else None

    @property
    def attempt(self) -> int | None:
        run = current_run()
        return run.attempt if run is not None else None

    @property
    def parent_id(self) -> str | None:
        run = current_run()
        return run.parent.id if run is not None and run.parent is not None else None

    @property
    def scheduled_at(self) -> datetime | None:
        """The planned instant that it is for, aware, in UTC; None where nothing planned it."""
        run = current_run()
        at = run.extra.scheduled_at if run is not None else None
        return datetime.fromtimestamp(at, UTC) if at is not None else None

    @property
    def deployment(self) -> str | None:
        """The name of the deployment that it is of."""
        run = current_run()
        return run.extra.deployment if run is not None else None


class _TaskRunInfo:
    """The task run that this code belongs to."""

    @property
    def id(self) -> str | None:
        call = current_call()
        return f"{call.run.id}-{call.seq}" if call is not None else None

    @property
    def name(self) -> str | None:
        call = current_call()
        return call.display if call is not None else None

    @property
    def task_name(self) -> str | None:
        call = current_call()
        return call.spec.name if call is not None else None

    @property
    def attempt(self) -> int | None:
        call = current_call()
        return call.attempt if call is not None else None

    @property
    def tags(self) -> list[str] | None:
        call = current_call()
        if call is None:
            return None
        return sorted(call.tags | call.run.tags | TAGS.get())


flow_run = _FlowRunInfo()
task_run = _TaskRunInfo()


@contextmanager
def tags(*names: str) -> Iterator[frozenset[str]]:
    """Give tags to the runs and calls that are made inside the block."""
    before = TAGS.get()
    token = TAGS.set(before | frozenset(names))
    try:
        yield TAGS.get()
    finally:
        TAGS.reset(token)
