"""Spans for OpenTelemetry: one for each life of a run, one for each task run, one for each attempt.

What user code does inside of an attempt, or of a flow's body, is below that span, because the
span is current in its context. A run that goes on in another process, or after it has left
memory, gets a new span with a link to the one before: that one's traceparent is kept among the
marks of the run.

Nothing of OpenTelemetry is imported unless it is wanted. A span that cannot be made or ended
changes nothing for the run.
"""

from __future__ import annotations

import logging
import re
import sys
import traceback
from collections.abc import Callable
from contextvars import Context
from typing import TYPE_CHECKING, Any

from asyncflow._version import __version__
from asyncflow.errors import InvalidOption, MissingExtra
from asyncflow.failures import message_of, outcome
from asyncflow.run import Batch, Call, Run
from asyncflow.states import StateType

if TYPE_CHECKING:
    from opentelemetry.trace import Span, SpanContext, TracerProvider

    from asyncflow.engine import Engine

S = StateType
_BAD = (S.FAILED, S.CRASHED)
#: Characters of an error's message, and of its traceback, that a span holds.
LONGEST = 10_000
_MARK = "trace"
_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
_log = logging.getLogger("asyncflow")


def provider_of(wanted: Any) -> TracerProvider | None:
    """Whom to ask for spans; None: nobody wants any.

    Args:
        wanted: a provider; True: the global one; None: that one if it has been set; False: none.

    Raises:
        MissingExtra: `opentelemetry-api` is not installed.
        InvalidOption: it is something else.
    """
    if wanted is False:
        return None
    if wanted is None:
        # Whoever has set a provider has imported this.
        api = sys.modules.get("opentelemetry.trace")
        if api is None:
            return None
        found: TracerProvider = api.get_tracer_provider()
        idle = isinstance(found, api.ProxyTracerProvider | api.NoOpTracerProvider)
        return None if idle else found
    try:
        from opentelemetry import trace
    except ImportError:
        raise MissingExtra("opentelemetry-api", "tracing", "tracing") from None
    if wanted is True:
        return trace.get_tracer_provider()
    if not isinstance(wanted, trace.TracerProvider):
        raise InvalidOption(
            f"tracing={wanted!r}: give True, False, None or a TracerProvider of OpenTelemetry"
        )
    return wanted


class Tracing:
    """The spans of one engine; an `Observer` of its machine."""

    def __init__(self, engine: Engine, provider: TracerProvider) -> None:
        from opentelemetry import context, trace

        self._engine = engine
        self._trace = trace
        self._context = context
        self._tracer = provider.get_tracer("asyncflow", __version__)
        self._runs: dict[Run, Span] = {}
        self._outer: dict[Run, Any] = {}  # what was current where the run was asked for
        self._former: dict[Run, SpanContext] = {}
        self._tasks: dict[Call, Span] = {}
        self._attempts: dict[Call, Span] = {}
        self._failed = False
        engine.machine.observe(self)
        engine.executor.tracing = self
        engine.calls.traced = True

    # --- runs -----------------------------------------------------------------------------------

    def run_begins(self, run: Run, context: Context) -> None:
        """The body of a run is about to be entered, or replayed, in *context*."""
        span = self._runs.get(run)
        if span is None:
            self._safely(context.run, self._enter_run, run)
        else:
            about = {"asyncflow.attempt": run.attempt}
            self._safely(span.add_event, "asyncflow.retry", about, self._now())

    def _enter_run(self, run: Run) -> None:
        outer = self._outer.setdefault(run, self._context.get_current())
        attributes: dict[str, str | int] = {
            "asyncflow.flow.name": run.flow_name,
            "asyncflow.run.id": run.id,
            "asyncflow.attempt": run.attempt,
        }
        if run.run_name:
            attributes["asyncflow.run.name"] = self._engine.masker.text(run.run_name)
        decisions = run.extra.decisions
        former = self._former.get(run) or self._read(decisions.word(_MARK))
        span = self._runs[run] = self._tracer.start_span(
            f"flow {run.flow_name}",
            outer,
            attributes=attributes,
            links=[] if former is None else [self._trace.Link(former)],
            start_time=self._now(),
        )
        self._context.attach(self._trace.set_span_in_context(span, outer))
        own = span.get_span_context()
        if own.is_valid:
            text = f"00-{own.trace_id:032x}-{own.span_id:016x}-{own.trace_flags:02x}"
            decisions.leave(_MARK, text.encode())

    def _read(self, traceparent: bytes | None) -> SpanContext | None:
        """The span that a former life of a run has left word of."""
        found = _TRACEPARENT.fullmatch((traceparent or b"").decode("ascii", "replace"))
        if found is None:
            return None
        trace, span, flags = (int(part, 16) for part in found.groups())
        return self._trace.SpanContext(trace, span, True, self._trace.TraceFlags(flags))

    def run_ends(self, run: Run, suspended: bool = False) -> None:
        """The body of a run has ended and is wound up, or the run leaves memory."""
        span = self._runs.pop(run, None)
        if not suspended:
            self._outer.pop(run, None)
            self._former.pop(run, None)
        if span is None:
            return
        if suspended:
            self._former[run] = span.get_span_context()
        error = run.error if run.phase in _BAD else None
        self._safely(self._end, span, run, run.shown_phase, error)

    # --- task runs ------------------------------------------------------------------------------

    def attempt_begins(self, call: Call, context: Context) -> None:
        """The code of a call is about to be entered, in *context*. A child run has its own."""
        if not call.spec.is_flow:
            self._safely(context.run, self._enter_attempt, call)

    def _enter_attempt(self, call: Call) -> None:
        outer, now = self._context.get_current(), self._now()
        about: dict[str, str | int] = {
            "asyncflow.flow.name": call.run.flow_name,
            "asyncflow.run.id": call.run.id,
            "asyncflow.task.name": call.spec.name,
            "asyncflow.task_run.id": f"{call.run.id}-{call.seq}",
        }
        task = self._tasks.get(call)
        if task is None:
            # Of a task run that former attempts of another life belong to, what is seen here.
            began = int(call.created * 1e9) if call.attempt == 1 else now
            task = self._tasks[call] = self._tracer.start_span(
                f"task {call.spec.name}", outer, attributes=about, start_time=began
            )
        span = self._tracer.start_span(
            f"attempt {call.spec.name}",
            self._trace.set_span_in_context(task, outer),
            attributes={**about, "asyncflow.attempt": call.attempt},
            start_time=now,
        )
        self._attempts[call] = span
        self._context.attach(self._trace.set_span_in_context(span, outer))

    def attempt_ends(self, call: Call) -> None:
        """The code of a call has ended; its state says what came of that."""
        span = self._attempts.pop(call, None)
        if span is None:
            return
        # Whatever is to follow: an attempt that raised has failed.
        error = None if call.own or call.phase is S.CANCELLED else call.error
        self._safely(self._end, span, call, outcome(call), error)

    def made(self, source: Call | Batch, count: int) -> None:
        """A task run has a span as soon as its code is entered."""

    def completed(self, source: Batch, count: int, before: int) -> None:
        """Items without calls are those that another life has completed: they have no spans."""

    def ended(self, call: Call) -> None:
        """A call has ended, and that is recorded."""
        span = self._tasks.pop(call, None)
        if span is None:
            return
        if call.label is not None:
            name = self._engine.masker.text(call.label)
            self._safely(span.set_attribute, "asyncflow.task_run.name", name)
        error = call.error if call.phase in _BAD else None
        self._safely(self._end, span, call, call.shown_phase, error)

    # --- the end --------------------------------------------------------------------------------

    def _end(self, span: Span, of: Run | Call, state: str, error: BaseException | None) -> None:
        try:
            span.set_attribute("asyncflow.state", state)
            if error is not None and span.is_recording():
                self._tell(span, error)
        finally:
            span.end(self._now() if of.ended is None else int(of.ended * 1e9))

    def _tell(self, span: Span, error: BaseException) -> None:
        # Not `record_exception`: what is secret must not leave by it.
        # Masked before it is cut, so that no half of a secret is left.
        kind, masked = type(error), self._engine.masker.text
        text = masked(message_of(error))[:LONGEST]
        trace = masked("".join(traceback.format_exception(error)))[-LONGEST:]
        span.set_status(self._trace.Status(self._trace.StatusCode.ERROR, text or kind.__name__))
        span.add_event(
            "exception",
            {
                "exception.type": f"{kind.__module__}.{kind.__qualname__}",
                "exception.message": text,
                "exception.stacktrace": trace,
            },
            self._now(),
        )

    def close(self) -> None:
        """End what is left."""
        for span in (*self._attempts.values(), *self._tasks.values(), *self._runs.values()):
            self._safely(span.end)
        for kept in (self._attempts, self._tasks, self._runs, self._outer, self._former):
            kept.clear()

    def apart(self) -> None:
        """Have the current context belong to no trace."""
        self._context.attach(self._context.Context())

    def _now(self) -> int:
        return int(self._engine.clock.time() * 1e9)

    def _safely(self, function: Callable[..., Any], *args: Any) -> None:
        """A sampler or exporter that fails must not fail a run: it is said once."""
        try:
            function(*args)
        except Exception:
            if not self._failed:
                self._failed = True
                _log.warning("a span could not be made or ended", exc_info=True)


# --- to a worker process ----------------------------------------------------------------------


def carried() -> dict[str, str]:
    """What a worker process has to know of the current span; nothing where nobody traces."""
    carrier: dict[str, str] = {}
    if "opentelemetry.trace" in sys.modules:
        from opentelemetry.propagate import inject

        try:
            inject(carrier)
        except Exception:
            _log.warning("a worker process was not told of its span", exc_info=True)
    return carrier


def carry_on(carrier: dict[str, str]) -> None:
    """In a worker process: let what the function does be below the span of its attempt."""
    from opentelemetry import context
    from opentelemetry.propagate import extract

    context.attach(extract(carrier, context.Context()))
