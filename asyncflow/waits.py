"""What flows wait for: time, events and people; and chance and time that a resume repeats.

All of it is recorded with the run: what was waited for before a crash is not waited for again,
and what was answered is not asked again.
"""

from __future__ import annotations

import asyncio
import random as _random
import struct
import time
import uuid
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any, TypeVar, overload

from asyncflow import codec
from asyncflow.context import ENGINE, current_call, current_run
from asyncflow.decisions import MESSAGE
from asyncflow.errors import EventTimeout, InvalidOption, InvalidParameters, NoEngine, PauseTimeout
from asyncflow.run import MISSING, Call, Run
from asyncflow.store.base import MessageRow
from asyncflow.waiting import Wait

M = TypeVar("M")

#: The recorded value of a wait whose time was over.
_OVER = b"\0over"


# --- time -----------------------------------------------------------------------------------------


async def sleep(seconds: float) -> None:
    """Wait; a resumed run waits only for the rest. No slot is held meanwhile.

    In the body of a flow, the run is PAUSED (Suspended) while it sleeps a second or longer.

    Args:
        seconds: 0 or more.

    Raises:
        InvalidOption: *seconds* is negative or no number.
    """
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds >= 0:
        raise InvalidOption(f"sleep({seconds!r}): give seconds, 0 or more")
    run = current_run()
    if run is None:
        await asyncio.sleep(seconds)
        return
    await _sleep(run, lambda: run.engine.steady.time() + seconds, by_wall=False)


async def sleep_until(when: datetime) -> None:
    """Wait until a point in time; one that is past is no wait.

    Args:
        when: an aware datetime.

    Raises:
        InvalidOption: *when* has no time zone.
    """
    if not isinstance(when, datetime) or when.tzinfo is None:
        raise InvalidOption(
            f"sleep_until({when!r}): give an aware datetime, such as datetime(..., tzinfo=UTC)"
        )
    run = current_run()
    if run is None:
        await asyncio.sleep(max(0.0, when.timestamp() - time.time()))
        return
    await _sleep(run, when.timestamp, by_wall=True)


async def _sleep(run: Run, until: Any, by_wall: bool) -> None:
    call = current_call()
    series = run.extra.decisions.series("sleep", _parent(call), b"")
    wake_at = _deadline(series, until)
    clock = run.engine.clock if by_wall else run.engine.steady
    if wake_at > clock.time():
        wait = Wait(run, "sleep", wake_at, body=_is_body(run, call), by_wall=by_wall)
        await run.engine.waiting.wait(wait, call)


def _deadline(series: Any, until: Any) -> float:
    """A point in time that is recorded when it is first worked out."""
    known = series.replay()
    if known is not None:
        return float(struct.unpack(">d", known)[0])
    moment = float(until())
    series.record(struct.pack(">d", moment))
    return moment


def _parent(call: Call | None) -> bytes:
    return call.identity if call is not None else b""


def _is_body(run: Run, call: Call | None) -> bool:
    """Whether it is the body of the flow that asks, and not a task that the body started."""
    return call is None and asyncio.current_task() is run.extra.carrier


# --- events ---------------------------------------------------------------------------------------


async def wait_for_event(name: str, timeout: float | None = None, *, default: Any = MISSING) -> Any:
    """Wait for an event and give its payload. What was sent before the wait counts too.

    A run takes each event once; one that is addressed to nobody goes to every run that exists
    when it is sent.

    Args:
        name: of the event.
        timeout: seconds, resumes included; None waits as long as it takes.
        default: what to give when the time is over, instead of raising.

    Raises:
        EventTimeout: it did not come in time (a TimeoutError).
        NoEngine: not called inside a flow.
    """
    run = _needs(f"wait_for_event({name!r})")
    call = current_call()
    series = run.extra.decisions.series("event", _parent(call), name.encode())
    until = _until(run, series, timeout)
    found = series.replay()
    if found is None:
        wait = Wait(run, "event", until, _event(name), name, body=_is_body(run, call))
        found = _taken(await run.engine.waiting.wait(wait, call))
        series.record(found)
    if found != _OVER:
        return codec.decode(found[len(MESSAGE) + 8 :])
    if default is not MISSING:
        return default
    raise EventTimeout(f"the event {name!r} did not come within {timeout:g} s")


def _until(run: Run, series: Any, timeout: float | None) -> float | None:
    """The end of a wait with a timeout, recorded so that a resumed run waits only for the rest."""
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout >= 0:
        raise InvalidOption(f"timeout={timeout!r}: give seconds, 0 or more, or None")
    return _deadline(series, lambda: run.engine.steady.time() + timeout)


def _taken(message: MessageRow | None) -> bytes:
    if message is None:
        return _OVER
    return MESSAGE + message.id.to_bytes(8, "big") + message.payload


def _event(name: str) -> str:
    return f"event:{name}"


async def send_event(name: str, payload: Any = None, run_id: str | None = None) -> None:
    """Send an event to one run, or to all. It is on disk when this returns.

    Inside a run it is sent once, however often that is resumed.

    Args:
        payload: plain data.
        run_id: of the run that shall get it; None: every run that exists now.

    Raises:
        UnknownRun: there is no such run.
        NotSerializable: the payload cannot be stored.
        NoEngine: neither inside a run nor of `async with Engine()`.
    """
    run = current_run()
    engine = run.engine if run is not None else ENGINE.get()
    if engine is None:
        raise NoEngine(
            f"send_event({name!r}) was used outside of a flow and of `async with Engine()`"
        )
    if run is None:
        await engine.send_event(name, payload, run_id)
        return
    call = current_call()
    series = run.extra.decisions.series("send", _parent(call), name.encode())
    if series.replay() is None:
        await engine.send_event(name, payload, run_id)
        series.record(b"")


# --- people ---------------------------------------------------------------------------------------


@overload
async def pause_flow_run(wait_for_input: None = None, timeout: float | None = None) -> None: ...
@overload
async def pause_flow_run(wait_for_input: type[M], timeout: float | None = None) -> M: ...
async def pause_flow_run(wait_for_input: Any = None, timeout: float | None = None) -> Any:
    """Pause the run until somebody answers (`engine.answer`) or resumes it.

    Args:
        wait_for_input: a pydantic model. An answer that does not fit is refused where it is
            given; None: nothing is asked for.
        timeout: seconds, resumes included; None waits as long as it takes.

    Returns:
        An instance of the model, or None.

    Raises:
        PauseTimeout: nobody answered in time (a TimeoutError).
        InvalidOption: *wait_for_input* is no pydantic model, or a task calls this.
    """
    run = _needs("pause_flow_run()")
    call = current_call()
    if call is not None:
        raise InvalidOption("pause_flow_run() pauses a flow: call it in the body of one")
    if wait_for_input is not None and not hasattr(wait_for_input, "model_validate"):
        raise InvalidOption(f"wait_for_input={wait_for_input!r}: give a pydantic model class")
    series = run.extra.decisions.series("pause", b"", b"")
    until = _until(run, series, timeout)
    found = series.replay()
    if found is None:
        wait = Wait(
            run, "pause", until, f"answer:{series.name}", "", wait_for_input, _is_body(run, call)
        )
        found = _taken(await run.engine.waiting.wait(wait, call))
        series.record(found)
    if found == _OVER:
        raise PauseTimeout(f"nobody answered {run.display} within {timeout:g} s")
    data = codec.decode(found[len(MESSAGE) + 8 :])
    return None if wait_for_input is None else wait_for_input.model_validate(data)


def check_answer(model: Any, data: Any) -> bytes:
    """An answer as it is stored.

    Raises:
        InvalidParameters: it does not fit the model; the message says where.
    """
    if model is None:
        if data is not None:
            raise InvalidParameters("the run waits for no input: answer it with None")
        return codec.encode(None)
    import pydantic

    try:
        checked = data if isinstance(data, model) else model.model_validate(data)
    except pydantic.ValidationError as error:
        told = "; ".join(
            f"{'.'.join(map(str, e['loc'])) or 'it'}: {e['msg']}" for e in error.errors()
        )
        raise InvalidParameters(f"the answer does not fit {model.__name__}: {told}") from None
    return codec.encode(checked.model_dump(mode="json"))


# --- what is the same in every life of a run ------------------------------------------------------


def now() -> datetime:
    """The time, in UTC; a resumed run gets what it got before."""
    run = current_run()
    if run is None:
        return datetime.now(UTC)
    value = _recorded(run, "now", lambda: struct.pack(">d", run.engine.clock.time()))
    return datetime.fromtimestamp(struct.unpack(">d", value)[0], UTC)


def uuid4() -> uuid.UUID:
    """A random UUID; a resumed run gets those that it got before."""
    run = current_run()
    if run is None:
        return uuid.uuid4()
    return uuid.UUID(bytes=_recorded(run, "uuid4", lambda: uuid.uuid4().bytes))


def random() -> float:
    """A number from 0 to below 1; a resumed run gets those that it got before."""
    run = current_run()
    if run is None:
        return _random.random()
    value = _recorded(run, "random", lambda: struct.pack(">d", run.engine.rng.random()))
    return float(struct.unpack(">d", value)[0])


def _recorded(run: Run, kind: str, make: Any) -> bytes:
    call = current_call()

    def get() -> bytes:
        series = run.extra.decisions.flowing(kind, _parent(call))
        known: bytes | None = series.replay()
        if known is not None:
            return known
        value: bytes = make()
        series.record(value)
        return value

    found: bytes = run.engine.call(get)
    return found


def idempotency_key() -> str:
    """A key for the running task (or flow) that is the same over its attempts and resumes.

    Hand it to services that take one, so that what a crash makes happen twice counts once.

    Raises:
        NoEngine: not called inside a run.
    """
    run = _needs("idempotency_key()")
    call = current_call()
    return blake2b(run.id.encode() + _parent(call), digest_size=16).hexdigest()


def _needs(what: str) -> Run:
    run = current_run()
    if run is None:
        raise NoEngine(f"{what} was called outside of a flow: call it inside one")
    return run
