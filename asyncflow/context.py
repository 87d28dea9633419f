"""Where the running code stands: the run or call that it belongs to, and the ambient engine.

Context variables and nothing else, so that every layer may look.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from asyncflow.run import Call, Item, Run

if TYPE_CHECKING:
    from asyncflow.engine import Engine

#: The call or flow run whose code is running; None outside of all.
CURRENT: ContextVar[Call | Item | Run | None] = ContextVar("asyncflow_current", default=None)

#: The flow run that a hook is told of, which is outside of it, with what was current then.
TOLD: ContextVar[tuple[Call | Item | Run | None, Run] | None] = ContextVar(
    "asyncflow_told", default=None
)

#: The engine of the innermost ``async with Engine(...)``.
ENGINE: ContextVar[Engine | None] = ContextVar("asyncflow_engine", default=None)

#: Tags added by ``with tags(...)``.
TAGS: ContextVar[frozenset[str]] = ContextVar("asyncflow_tags", default=frozenset())


#: The innermost ``transaction()`` block (an `asyncflow.transactions.Transaction`).
TRANSACTION: ContextVar[Any] = ContextVar("asyncflow_transaction", default=None)


def current_run() -> Run | None:
    """The flow run that the running code belongs to."""
    scope = CURRENT.get()
    return None if scope is None else scope.run


def logged() -> Call | Item | Run | None:
    """Whose log lines the running code writes."""
    scope, told = CURRENT.get(), TOLD.get()
    # What a hook calls has scopes of its own.
    return told[1] if told is not None and told[0] is scope else scope


def current_call() -> Call | None:
    """The task call that the running code belongs to; None in a flow's own body."""
    scope = CURRENT.get()
    return None if scope is None or isinstance(scope, Run) else scope.call()
