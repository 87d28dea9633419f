"""Spans: runs, task runs and attempts lie in each other, over retries, threads and restarts."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Sampler
from opentelemetry.trace import StatusCode
from pydantic import SecretStr
from virtual import virtual_engine, virtually

from asyncflow import (
    INPUTS,
    Engine,
    Interval,
    MemoryStore,
    SqliteStore,
    flow,
    sleep,
    task,
    testing,
)
from asyncflow import tracing as ours
from asyncflow.errors import InvalidOption, MissingExtra


class Traced:
    """A provider that keeps what it is given."""

    def __init__(self) -> None:
        self.kept = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self.kept))

    def spans(self, name: str = "") -> list[ReadableSpan]:
        return [s for s in self.kept.get_finished_spans() if s.name.startswith(name)]

    def one(self, name: str) -> ReadableSpan:
        (span,) = self.spans(name)
        return span

    def tree(self) -> list[str]:
        """Names with those of the spans that they lie in, outermost first."""
        spans = self.spans()
        by_id = {s.context.span_id: s for s in spans}

        def path(span: ReadableSpan) -> str:
            above = by_id.get(span.parent.span_id) if span.parent is not None else None
            return f"{path(above)} > {span.name}" if above is not None else span.name

        return sorted(path(s) for s in spans)

    def inside(self, name: str) -> Any:
        """A span of a library that user code calls."""
        return self.provider.get_tracer("library").start_as_current_span(name)


@pytest.fixture
def traced() -> Traced:
    return Traced()


@task
async def double(i: int) -> int:
    return 2 * i


async def test_runs_tasks_and_attempts_lie_in_each_other(
    traced: Traced, store: MemoryStore | SqliteStore
) -> None:
    @task
    async def outer_task(i: int) -> int:
        with traced.inside("GET"):
            await asyncio.sleep(0)
        return await double(i)

    @flow
    async def inner() -> int:
        return sum(await double.map([1, 2]))

    @flow
    async def outer() -> int:
        return await outer_task(1) + await inner()

    async with Engine(store, tracing=traced.provider) as engine:
        run = await engine.submit(outer)
        assert await run == 8
    task_ = "flow outer > task outer_task > attempt outer_task"
    assert traced.tree() == sorted([
        "flow outer",
        "flow outer > task outer_task",
        task_,
        f"{task_} > GET",
        f"{task_} > task double",
        f"{task_} > task double > attempt double",
        "flow outer > flow inner",
        *["flow outer > flow inner > task double"] * 2,
        *["flow outer > flow inner > task double > attempt double"] * 2,
    ])  # fmt: skip
    assert dict(traced.one("task outer_task").attributes or {}) == {
        "asyncflow.flow.name": "outer",
        "asyncflow.run.id": run.id,
        "asyncflow.task.name": "outer_task",
        "asyncflow.task_run.id": f"{run.id}-1",
        "asyncflow.state": "Completed",
    }
    assert (traced.one("attempt outer_task").attributes or {})["asyncflow.attempt"] == 1
    assert all(s.status.status_code is StatusCode.UNSET for s in traced.spans())


async def test_what_awaits_a_run_is_above_it(traced: Traced) -> None:
    @flow
    async def called() -> int:
        return await double(1)

    async with Engine(MemoryStore(), tracing=traced.provider) as engine:
        with traced.inside("request"):
            await called()
        with traced.inside("other request"):
            run = await engine.submit(called)
        await run
    assert "request > flow called > task double > attempt double" in traced.tree()
    assert "other request > flow called > task double > attempt double" in traced.tree()
    assert not trace.get_current_span().get_span_context().is_valid


async def test_code_in_threads_is_inside_of_its_attempt(traced: Traced) -> None:
    @task
    def plain() -> int:
        with traced.inside("query"):
            return 1

    @flow
    def sync_flow() -> int:
        with traced.inside("in its body"):
            return plain()

    async with Engine(MemoryStore(), tracing=traced.provider) as engine:
        assert await engine.run(sync_flow) == 1
    assert "flow sync_flow > in its body > task plain > attempt plain > query" in traced.tree()


@task(runner="process")
def in_a_process() -> str:
    return format(trace.get_current_span().get_span_context().span_id, "x")


@flow
async def of_processes() -> list[str]:
    return [await in_a_process.submit(), await in_a_process.submit()]


async def test_code_in_a_worker_process_is_below_its_attempt(traced: Traced) -> None:
    async with Engine(MemoryStore(), tracing=traced.provider) as engine:
        known = await engine.run(of_processes)
    attempts = traced.spans("attempt in_a_process")
    assert known == [format(span.context.span_id, "x") for span in attempts]
    assert len(set(known)) == 2


async def test_each_item_of_a_stream_or_of_a_map_over_a_future_has_spans(traced: Traced) -> None:
    @task
    async def pages() -> list[int]:
        return [1, 2]

    @flow
    async def items() -> list[int]:
        streamed = [i async for i in double.stream(range(3), max_in_flight=2)]
        return [*streamed, *await double.map(pages.submit())]

    async with Engine(MemoryStore(), tracing=traced.provider) as engine:
        assert await engine.run(items) == [0, 2, 4, 2, 4]
    assert traced.tree().count("flow items > task double > attempt double") == 5
    numbers = {(s.attributes or {})["asyncflow.task_run.id"] for s in traced.spans("task double")}
    assert len(numbers) == 5


async def test_what_was_answered_from_the_cache_has_no_span(traced: Traced) -> None:
    @task(cache_policy=INPUTS)
    async def costly(i: int) -> int:
        return i

    @flow
    async def asks() -> list[int]:
        return [await costly(1), await costly(1), *await costly.map([1, 2])]

    async with Engine(MemoryStore(), tracing=traced.provider) as engine:
        assert await engine.run(asks) == [1, 1, 1, 2]
    assert len(traced.spans("task costly")) == 2


async def test_a_task_run_that_has_a_name_of_its_own_tells_it(traced: Traced) -> None:
    @task(task_run_name="page {i}")
    async def fetch(i: int) -> None: ...

    @flow(flow_run_name="of {i}")
    async def named(i: int) -> None:
        await fetch(i)

    async with Engine(MemoryStore(), tracing=traced.provider) as engine:
        await engine.run(named, 3)
    assert (traced.one("task fetch").attributes or {})["asyncflow.task_run.name"] == "page 3"
    assert (traced.one("flow named").attributes or {})["asyncflow.run.name"] == "of 3"


def test_what_begins_by_itself_belongs_to_no_trace_of_others(traced: Traced) -> None:
    @flow
    async def planned() -> None: ...

    async def main() -> None:
        async with testing.engine(tracing=traced.provider) as engine:
            with traced.inside("start of the service"):
                await engine.deploy(planned, schedule=Interval(60))
            await asyncio.sleep(200)

    testing.run(main())
    assert len(traced.spans("flow planned")) >= 3
    assert all(span.parent is None for span in traced.spans("flow planned"))


@virtually
async def test_a_task_span_holds_its_wait_and_each_of_its_attempts() -> None:
    traced = Traced()
    tries: list[int] = []

    @task(retries=1, retry_delay_seconds=30, retry_jitter_factor=0)
    async def shaky() -> None:
        tries.append(1)
        await asyncio.sleep(2)
        if len(tries) == 1:
            raise ValueError("the first fails")

    @task
    async def waits() -> None:
        await asyncio.sleep(10)

    @flow(max_concurrency=1)
    async def line() -> None:
        first = waits.submit()
        await shaky()
        await first

    async with virtual_engine(tracing=traced.provider):
        await line()

    def seconds(span: ReadableSpan) -> float:
        return round((span.end_time - span.start_time) / 1e9, 3)

    first, second = traced.spans("attempt shaky")
    assert [seconds(first), seconds(second)] == [2, 2]
    assert seconds(traced.one("task shaky")) == 10 + 2 + 30 + 2
    assert first.status.status_code is StatusCode.ERROR
    assert first.status.description == "the first fails"
    (event,) = first.events
    told = dict(event.attributes or {})
    assert told["exception.type"] == "builtins.ValueError"
    assert "in shaky" in str(told["exception.stacktrace"])
    about = [dict(s.attributes or {}) for s in (first, second)]
    assert [a["asyncflow.attempt"] for a in about] == [1, 2]
    assert [a["asyncflow.state"] for a in about] == ["Failed", "Completed"]
    assert second.status.status_code is StatusCode.UNSET
    assert traced.one("task shaky").status.status_code is StatusCode.UNSET


async def test_failures_are_told_without_secrets(traced: Traced) -> None:
    @task
    async def broken(text: str) -> None:
        raise ValueError(f"cannot log in with {text}")

    @flow
    async def fails(password: SecretStr) -> None:
        await broken(password.get_secret_value())

    async with Engine(MemoryStore(), tracing=traced.provider) as engine:
        run = await engine.submit(fails, SecretStr("swordfish-12345"))
        assert (await run.wait()).is_failed()
    for name in ("flow fails", "task broken", "attempt broken"):
        span = traced.one(name)
        assert span.status.status_code is StatusCode.ERROR
        assert (span.attributes or {})["asyncflow.state"] == "Failed"
        assert "swordfish" not in span.to_json()
    assert traced.one("flow fails").events
    assert traced.one("attempt broken").events


async def test_no_half_of_a_secret_is_left_where_a_text_is_cut(traced: Traced) -> None:
    secret = "swordfish" * 8

    @flow
    async def fails(password: SecretStr) -> None:
        text = password.get_secret_value()
        raise ValueError("x" * (ours.LONGEST - 20) + text + "y" * ours.LONGEST)

    async with Engine(MemoryStore(), tracing=traced.provider) as engine:
        await (await engine.submit(fails, SecretStr(secret))).wait()
    assert "swordfish" not in traced.one("flow fails").to_json()


async def test_an_error_that_cannot_be_told_ends_its_span(traced: Traced) -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no words")

    @flow
    async def fails() -> None:
        raise Mute

    async with Engine(MemoryStore(), tracing=traced.provider) as engine:
        await (await engine.submit(fails)).wait()
    assert traced.one("flow fails").status.status_code is StatusCode.ERROR


@pytest.mark.parametrize("how", ["Cancelled", "Interrupted"])
async def test_a_run_that_is_cut_off_has_no_error_and_leaves_no_span_open(
    traced: Traced, how: str
) -> None:
    began = asyncio.Event()

    @task
    async def long() -> None:
        began.set()
        await asyncio.sleep(3600)

    @flow
    async def cut_off() -> None:
        await long()

    async with Engine(MemoryStore(), tracing=traced.provider) as engine:
        run = await engine.submit(cut_off)
        await began.wait()
        if how == "Cancelled":
            await run.cancel()
            await run.wait()
    spans = traced.spans()
    assert sorted(s.name for s in spans) == ["attempt long", "flow cut_off", "task long"]
    assert {s.status.status_code for s in spans} == {StatusCode.UNSET}
    assert (traced.one("flow").attributes or {})["asyncflow.state"] == how
    if how == "Cancelled":
        assert {(s.attributes or {})["asyncflow.state"] for s in spans} == {how}


async def test_another_life_of_a_run_is_linked_to_the_one_before(
    store: MemoryStore | SqliteStore,
) -> None:
    lives: list[Traced] = []

    @task
    async def once() -> None:
        if len(lives) < 3:
            raise ValueError("not yet")

    @flow
    async def goes_on() -> None:
        await double(1)
        await once()

    run_id = ""
    for _ in range(3):
        lives.append(Traced())
        async with Engine(store, tracing=lives[-1].provider) as engine:
            run = await (engine.resume(run_id) if run_id else engine.submit(goes_on))
            run_id = run.id
            await run.wait()
    first, second, third = (one.one("flow goes_on") for one in lives)
    assert first.links == ()
    for later, before in ((second, first), (third, second)):
        (link,) = later.links
        assert link.context.span_id == before.context.span_id
        assert link.context.trace_id == before.context.trace_id != later.context.trace_id
        assert link.context.is_remote
    assert lives[0].spans("task double")
    assert not lives[1].spans("task double"), "what is answered from the store has no span"


@virtually
async def test_a_run_that_leaves_memory_has_a_span_for_each_time_that_it_is_there() -> None:
    traced = Traced()

    @flow
    async def sleeps() -> None:
        await double(1)
        await sleep(3600)
        await double(2)

    async with virtual_engine(tracing=traced.provider, suspend_after_seconds=10):
        with traced.inside("request"):
            await sleeps()
    first, second = traced.spans("flow sleeps")
    assert (second.start_time - first.end_time) / 1e9 > 3000
    (link,) = second.links
    assert link.context.span_id == first.context.span_id
    assert traced.tree().count("request > flow sleeps > task double > attempt double") == 2


async def test_a_fork_is_linked_to_what_it_was_made_of(traced: Traced) -> None:
    @flow
    async def original() -> int:
        return await double(1)

    async with Engine(MemoryStore(), tracing=traced.provider) as engine:
        run = await engine.submit(original)
        await run
        await (await engine.fork(run.id, "double"))
    first, second = traced.spans("flow original")
    assert [link.context.span_id for link in second.links] == [first.context.span_id]


@pytest.mark.parametrize("at", ["sampling", "start", "end"])
async def test_a_broken_sampler_or_exporter_fails_no_run(
    at: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Fails(SpanProcessor):
        def on_start(self, span: Any, parent_context: Any = None) -> None:
            if at == "start":
                raise RuntimeError("on start")

        def on_end(self, span: ReadableSpan) -> None:
            if at == "end":
                raise RuntimeError("on end")

    class Undecided(Sampler):
        def should_sample(self, *args: Any, **kwargs: Any) -> Any:
            raise RuntimeError("on sampling")

        def get_description(self) -> str:
            return "undecided"

    provider = TracerProvider(
        shutdown_on_exit=False, sampler=Undecided() if at == "sampling" else ALWAYS_ON
    )
    provider.add_span_processor(Fails())

    @flow
    async def works() -> list[int]:
        return await double.map([1, 2])

    async with Engine(MemoryStore(), tracing=provider):
        with caplog.at_level(logging.WARNING, "asyncflow"):
            assert await works() == [2, 4]
    assert len([r for r in caplog.records if "span could not be made" in r.message]) == 1


async def test_without_a_provider_there_are_no_spans(engine: Engine) -> None:
    assert engine.tracing is None
    assert ours.provider_of(None) is None
    assert ours.provider_of(False) is None
    async with Engine(MemoryStore(), tracing=False) as other:
        assert other.tracing is None


@pytest.mark.parametrize(
    ("wanted", "error", "told"),
    [
        pytest.param("jaeger", InvalidOption, "TracerProvider", id="something else"),
        pytest.param(1, InvalidOption, "TracerProvider", id="a number"),
    ],
)
def test_tracing_is_a_provider_or_a_bool(wanted: Any, error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        Engine(MemoryStore(), tracing=wanted)


def test_without_the_package_tracing_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(MissingExtra, match=r"asyncflow\[tracing\]"):
        Engine(MemoryStore(), tracing=True)


SCRIPT = """
import asyncio, sys
from asyncflow import Engine, MemoryStore, flow

@flow
async def some(): return 1

async def main():
    async with Engine(MemoryStore()) as engine:
        await some()
        assert engine.tracing is None
    assert not any(name.startswith("opentelemetry") for name in sys.modules)
    from opentelemetry import trace
    async with Engine(MemoryStore()) as engine:
        assert engine.tracing is None
    from opentelemetry.sdk.trace import TracerProvider
    trace.set_tracer_provider(TracerProvider())
    async with Engine(MemoryStore()) as engine:
        assert engine.tracing is not None
        await some()
    async with Engine(MemoryStore(), tracing=True) as engine:
        assert engine.tracing is not None

asyncio.run(main())
"""


def test_a_global_provider_is_used_as_soon_as_it_is_set(tmp_path: Path) -> None:
    file = tmp_path / "script.py"
    file.write_text(SCRIPT)
    done = subprocess.run([sys.executable, str(file)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
