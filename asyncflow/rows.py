"""Live records to stored rows, and back to values. Nothing here decides or writes anything."""

from __future__ import annotations

import json
import pickle
from typing import TYPE_CHECKING, Any

from asyncflow import codec, failures
from asyncflow.errors import NotSerializable, ResultNotStored, ResultUnreadable
from asyncflow.run import MISSING, Call, Item, Run
from asyncflow.states import StateType, default_name
from asyncflow.store.base import CacheRow, EventRow, ResultKind, RunRow, TaskRow

if TYPE_CHECKING:
    from collections.abc import Callable

_new = tuple.__new__
_COMPLETED = StateType.COMPLETED
_NO_TAGS: tuple[str, ...] = ()
_PICKLE = pickle.PROTO  # what every pickle that we have written begins with
_NULL = codec.seal(b"null")
_EMPTY = (ResultKind.NONE, ResultKind.NOT_STORED)
_INLINE = (ResultKind.JSON, ResultKind.PICKLE)


def task_row(call: Call, warn: Callable[[Call, Exception], None]) -> TaskRow:
    """The row of a call as it is now.

    An unserialisable result marks the row as NOT_STORED, and `warn` is told.
    """
    kind, result, error = ResultKind.NONE, None, None
    if call.phase is _COMPLETED:
        kind, result = result_of(call, call.value, warn)
        if call.phase_name is not None and call.error is not None and not call.own:
            error = call.run.engine.masker.data(failures.dump(call.error))
    elif call.error is not None:
        error = call.run.engine.masker.data(failures.dump(call.error))
    # Filled by position and without TaskRow.__new__: it is the hottest line of the package.
    row: TaskRow = _new(
        TaskRow,
        (
            call.run.pk,
            call.seq,
            call.identity,
            call.spec.name,
            call.label and call.run.engine.masker.text(call.label),
            None if call.parent is None else call.parent.seq,
            call.phase._value_,
            call.phase_name,
            call.message and call.run.engine.masker.text(call.message),
            call.attempt,
            call.failures,
            call.interruptions,
            call.created,
            call.started,
            call.ended,
            call.retry_at,
            call.upstream,
            tuple(sorted(call.tags)) if call.tags else _NO_TAGS,
            kind,
            result,
            error,
        ),
    )
    return row


def task_event(row: TaskRow) -> EventRow:
    """What happened to a task run that did not complete, or is tried again."""
    state = StateType(row.state)
    name = row.state_name or default_name(state)
    payload = {"task": row.task, "attempt": row.attempt, "tags": row.tags}
    return EventRow(
        0,
        row.run,
        row.ended_at or row.started_at or row.created_at,
        state.value,
        name,
        row.message[:500],
        0,
        f"task-run.{name}",
        row.seq,
        json.dumps(payload).encode(),
    )


def item_row(item: Item, warn: Callable[[Call, Exception], None]) -> TaskRow:
    """The row of an item of a map that completed without becoming a call."""
    batch, value = item.batch, item.value
    options = batch.options
    kind, result = result_of(item, value, warn)
    row: TaskRow = _new(
        TaskRow,
        (
            batch.run.pk,
            batch.seq + item.index,
            item.identity,
            batch.spec.name,
            None,
            None if batch.parent is None else batch.parent.seq,
            "COMPLETED",
            None,
            "",
            1,
            0,
            0,
            batch.created,
            item.started,
            item.ended,
            None,
            batch.upstream,
            tuple(sorted(options.tags)) if options.tags else _NO_TAGS,
            kind,
            result,
            None,
        ),
    )
    return row


def result_of(
    call: Call | Item, value: Any, warn: Callable[[Call, Exception], None]
) -> tuple[int, bytes | None]:
    """How the result of a call is stored: its kind and bytes."""
    if value is None:
        return ResultKind.JSON, _NULL
    options = call.batch.options if isinstance(call, Item) else call.options
    if not options.persist:
        return ResultKind.NOT_STORED, None
    try:
        if options.serializer == "pickle":
            return ResultKind.PICKLE, codec.seal(pickle.dumps(value, protocol=5))
        return ResultKind.JSON, codec.seal(codec.encode(value))
    except (NotSerializable, pickle.PicklingError, TypeError, AttributeError) as error:
        warn(call.call(), error)
        return ResultKind.NOT_STORED, None


def cache_row(call: Call, kind: int, result: bytes | None) -> CacheRow | None:
    """The row by which other runs find the result of a call; None if there is nothing to find."""
    if not call.own:
        return None
    return cache_row_of(call, call.ended or call.created, kind, result)


def cache_row_of(call: Call, ended: float, kind: int, result: bytes | None) -> CacheRow | None:
    """The same, of a call that completes at *ended*."""
    if call.cache_key is None or kind not in _INLINE:
        return None
    expiration = call.spec.caching.expiration
    return CacheRow(
        call.cache_key,
        call.spec.name,
        call.run.pk,
        call.seq,
        ended,
        None if expiration is None else ended + expiration,
        kind,
        result,
    )


def value_of(kind: int, data: bytes | None, load_file: Callable[[str], bytes], what: str) -> Any:
    """The value of a stored result; `MISSING` when the row says that it was not stored.

    Raises:
        ResultUnreadable: it is damaged, or needs a type that cannot be found.
    """
    if data is None or kind in _EMPTY:
        return MISSING
    if data == _NULL:
        return None
    try:
        if kind == ResultKind.JSON:
            # Nearly all are so, and a replay reads all that there are.
            return codec.decode(codec.unseal(data))
        if kind in (ResultKind.JSON_FILE, ResultKind.PICKLE_FILE):
            data = load_file(data.decode("ascii"))
        data = codec.unseal(data)
        if kind in (ResultKind.PICKLE, ResultKind.PICKLE_FILE):
            # Only a task that asked for it is stored so, and only an engine comes here.
            if data[:1] != _PICKLE:
                raise ValueError("it is damaged, and no pickle any more")
            return pickle.loads(data)  # noqa: S301 - asked for by its task
        return codec.decode(data)
    except Exception as error:
        raise ResultUnreadable(f"the stored result of {what} cannot be read: {error}") from error


def not_stored(what: str) -> ResultNotStored:
    """The error for asking for a result that was not kept."""
    return ResultNotStored(
        f"{what} completed, but its result was not stored: see the warning in its log, give the"
        " task serializer='pickle', or return plain data"
    )


def run_row(run: Run, engine: int | None, now: float) -> RunRow:
    """The row of a flow run as it is now."""
    extra = run.extra
    return RunRow(
        pk=run.pk,
        id=run.id,
        flow_name=run.flow_name,
        flow_ref=extra.ref,
        name=run.run_name,
        parent=run.parent.pk if run.parent is not None else None,
        parent_identity=run.call.identity if run.call is not None else None,
        parent_seq=run.call.seq if run.call is not None else None,
        root=extra.root,
        state=run.phase.value,
        state_name=run.shown_phase,
        message=run.engine.masker.text(run.message),
        state_at=now,
        parameters=extra.stored_parameters,
        tags=tuple(sorted(run.tags)),
        created_at=run.created,
        started_at=run.started,
        ended_at=run.ended,
        deadline_at=run.deadline,
        engine=engine,
        epoch=run.epoch,
        attempt=run.attempt,
        recoveries=run.recoveries,
        idempotency_key=run.idempotency_key,
        version=run.options.version,
        result_kind=extra.result_kind,
        result=extra.result,
        error=(run.engine.masker.data(failures.dump(run.error)) if run.error is not None else None),
        ended_by=run.failed_seqs,
        wake_at=extra.wake_at,
        waits_for=extra.waits_for,
        origin=extra.origin,
        deployment=extra.deployment,
        scheduled_at=extra.scheduled_at,
        cause=extra.cause,
    )
