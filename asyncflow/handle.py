"""The handle on a flow run that users hold: of one that is live here, or of one that is stored."""

from __future__ import annotations

from collections.abc import Generator
from datetime import datetime
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from asyncflow.errors import RunInterrupted, StoreError
from asyncflow.flowrun import run_state
from asyncflow.parameters import masked
from asyncflow.states import State
from asyncflow.views import moment, row_state

if TYPE_CHECKING:
    from asyncflow.engine import Engine
    from asyncflow.run import Run
    from asyncflow.store.base import RunRow

R = TypeVar("R")


class FlowRun(Generic[R]):
    """A handle on one flow run. Await it for its value, or for its exception."""

    def __init__(self, engine: Engine, run: Run | None, row: RunRow | None = None) -> None:
        self._engine = engine
        self._run = run
        self._row = row

    @property
    def id(self) -> str:
        return self._run.id if self._run is not None else self._stored.id

    @property
    def _stored(self) -> RunRow:
        assert self._row is not None
        return self._row

    @property
    def name(self) -> str:
        """Its own name, or that of its flow."""
        if self._run is not None:
            return self._run.run_name or self._run.flow_name
        return self._stored.name or self._stored.flow_name

    @property
    def flow_name(self) -> str:
        return self._run.flow_name if self._run is not None else self._stored.flow_name

    @property
    def parameters(self) -> dict[str, Any]:
        """Its parameters, by name: of a stored run as plain JSON, secrets masked."""
        if self._run is not None:
            return dict(self._run.parameters)
        return masked(self._stored.parameters)

    @property
    def tags(self) -> list[str]:
        return sorted(self._run.tags) if self._run is not None else list(self._stored.tags)

    @property
    def state(self) -> State[R]:
        """Its state: live, or as stored when this handle was made."""
        if self._run is not None:
            return run_state(self._run)
        row = self._stored
        return row_state(row, self._engine.stored_value(row))

    @property
    def parent_id(self) -> str | None:
        if self._run is not None:
            return self._run.parent.id if self._run.parent is not None else None
        return self._engine.parent_ids.get(self._stored.parent or 0)

    @property
    def attempt(self) -> int:
        return self._run.attempt if self._run is not None else self._stored.attempt

    @property
    def created_at(self) -> datetime | None:
        return moment(self._run.created if self._run is not None else self._stored.created_at)

    @property
    def started_at(self) -> datetime | None:
        return moment(self._run.started if self._run is not None else self._stored.started_at)

    @property
    def ended_at(self) -> datetime | None:
        return moment(self._run.ended if self._run is not None else self._stored.ended_at)

    @property
    def recoveries(self) -> int:
        return self._run.recoveries if self._run is not None else self._stored.recoveries

    @property
    def row(self) -> RunRow | None:
        """The stored row that it was made from, for tools; None of a live run."""
        return self._row

    def __await__(self) -> Generator[Any, Any, R]:
        return self._value().__await__()

    async def _value(self) -> R:
        state = await self.wait()
        if isinstance(state.error, StoreError):
            raise state.error
        if state.is_paused():
            raise RunInterrupted(f"the run {self.id} is {state}: go on with resume({self.id!r})")
        value: R = state.result()
        return value

    async def wait(self) -> State[R]:
        """Wait until it has ended, and is recorded; its last state."""
        if self._run is not None:
            await self._engine.wait_live(self._run)
            return run_state(self._run)
        return await self._engine.wait(self.id)

    async def cancel(self) -> bool:
        """Cancel it, with everything below it. Returns whether it was still unfinished."""
        return await self._engine.cancel(self.id)

    def __repr__(self) -> str:
        run, row = self._run, self._row
        state = run.shown_phase if run is not None else row.state_name if row else "?"
        return f"<FlowRun {self.flow_name!r} {self.id} {state}>"
