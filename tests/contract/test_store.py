"""What every store has to do, asked of each of them in the same words."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from asyncflow import codec
from asyncflow.errors import ResultUnreadable, RunTaken, StoreClosed, StoreError
from asyncflow.states import StateType
from asyncflow.store.base import (
    ALL,
    ArtifactQuery,
    ArtifactRow,
    AttemptRow,
    CacheRow,
    EngineRow,
    LimitRow,
    LogQuery,
    LogRow,
    MarkRow,
    MessageRow,
    NoticeRow,
    Page,
    ReadableStore,
    Reader,
    ResultKind,
    RunQuery,
    RunRow,
    StateRow,
    TaskCount,
    TaskQuery,
    TaskRow,
    WorkError,
    Writes,
)
from asyncflow.store.memory import MemoryStore
from asyncflow.store.sqlite import SqliteStore

S = StateType
UNFINISHED = [s for s in S if not s.is_final]
FINAL = [s for s in S if s.is_final]


def run_row(run_id: str, **changes: Any) -> RunRow:
    plain = RunRow(
        pk=0,
        id=run_id,
        flow_name="flow",
        flow_ref='{"module": "m"}',
        name="a name",
        parent=None,
        parent_identity=None,
        parent_seq=None,
        root=0,
        state=S.RUNNING.value,
        state_name="Running",
        message="",
        state_at=1.5,
        parameters=b"{}",
        tags=(),
        created_at=1.0,
        started_at=None,
        ended_at=None,
        deadline_at=None,
        engine=None,
        epoch=1,
        attempt=1,
        recoveries=0,
        idempotency_key=None,
        version=None,
        result_kind=ResultKind.NONE,
        result=None,
        error=None,
        ended_by=(),
    )
    return plain._replace(**changes)


def task_row(run: int, seq: int, **changes: Any) -> TaskRow:
    plain = TaskRow(
        run=run,
        seq=seq,
        identity=b"identity %d" % seq,
        task="task",
        name=None,
        parent=None,
        state=S.RUNNING.value,
        state_name=None,
        message="",
        attempt=1,
        failures=0,
        interruptions=0,
        created_at=1.0,
        started_at=None,
        ended_at=None,
        retry_at=None,
        upstream=(),
        tags=(),
        result_kind=ResultKind.NONE,
        result=None,
        error=None,
    )
    return plain._replace(**changes)


def cache_row(run: int, key: bytes, **changes: Any) -> CacheRow:
    return CacheRow(key, "task", run, 1, 1.0, None, ResultKind.JSON, b"1")._replace(**changes)


def log_row(run: int, message: str, **changes: Any) -> LogRow:
    return LogRow(run, None, 1.0, 20, "logger", message)._replace(**changes)


def state_row(run: int, state: str = "RUNNING", **changes: Any) -> StateRow:
    return StateRow(run, 1.0, state, state.title(), "", 1)._replace(**changes)


def engine_row(**changes: Any) -> EngineRow:
    return EngineRow(0, 42, "host", "boot", 1.0, 2.0, None)._replace(**changes)


def artifact_row(run: int, key: str, **changes: Any) -> ArtifactRow:
    row = ArtifactRow(0, run, key, None, "markdown", "", b'{"markdown": "x"}', 1.0, 1.0)
    return row._replace(**changes)


def create(store: ReadableStore, run_id: str, **changes: Any) -> RunRow:
    row, created = store.create_run(run_row(run_id, **changes), [])
    assert created
    return row


def below(store: ReadableStore, parent: RunRow, run_id: str, **changes: Any) -> RunRow:
    changes = {"parent": parent.pk, "parent_seq": 1, "parent_identity": b"p", **changes}
    return create(store, run_id, root=parent.root, **changes)


def one_of_each(run: RunRow, word: str = "new") -> Writes:
    """A transaction with a row of every type, under the epoch of *run*."""
    return Writes(
        tasks=[task_row(run.pk, 1, task=word), task_row(run.pk, 2, message=word)],
        runs=[run._replace(message=word)],
        attempts=[AttemptRow(run.pk, 1, 1, None, 2.0, None, word.encode())],
        logs=[log_row(run.pk, word)],
        states=[state_row(run.pk, message=word)],
        marks=[MarkRow(run.pk, b"scope", 0, word.encode())],
        cache=[cache_row(run.pk, b"k")],
        limits=[LimitRow(word, 3.0, None, None)],
        artifacts=[artifact_row(run.pk, "key", data=word.encode())],
        fences={run.pk: run.epoch},
    )


async def pages(ask: Callable[[Any], Awaitable[Page[Any]]], query: Any) -> list[Any]:
    """Every row of a listing, page after page."""
    rows: list[Any] = []
    for _ in range(1000):
        page = await ask(query)
        assert len(page.rows) <= query.limit
        rows += page.rows
        if page.next_cursor is None:
            return rows
        query = replace(query, after=page.next_cursor)
    raise AssertionError(f"the pages of {query} have no end")


async def ids(reader: Reader, **query: Any) -> list[str]:
    return [row.id for row in (await reader.runs(RunQuery(**query))).rows]


async def messages(reader: Reader, **query: Any) -> list[str]:
    return [row.message for _, row in (await reader.logs(LogQuery(**query))).rows]


async def everything(store: ReadableStore, reader: Reader, pks: list[int]) -> dict[str, Any]:
    """All that can be asked of a store about these runs."""
    engines = [await reader.engine(n) for n in range(1, 8)]
    answers: dict[str, Any] = {
        "runs": await pages(reader.runs, RunQuery(limit=7)),
        "unfinished": store.unfinished(),
        "limits": store.limits(),
        "cached": sorted(store.cached([bytes([n]) for n in range(256)])),
        "engines": engines,
    }
    for pk in pks:
        answers[f"run {pk}"] = {
            "calls": store.calls(pk),
            "children": store.children(pk),
            "marks": store.marks(pk),
            "attempts": await reader.attempts(pk),
            "states": await reader.states(pk),
            "artifacts": [
                row._replace(id=0)  # only their order is told
                for row in await pages(reader.artifacts, ArtifactQuery(run=pk, limit=3))
            ],
            "keys": store.artifact_keys(pk),
            "counts": await reader.task_counts(pk),
            "tasks": await pages(reader.task_runs, TaskQuery(run=pk, limit=3)),
            "logs": await pages(reader.logs, LogQuery(run=pk, limit=3)),
        }
    return answers


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Any) -> Iterator[ReadableStore]:
    made = MemoryStore() if request.param == "memory" else SqliteStore(tmp_path / "state.db")
    made.open("relaxed")
    yield made
    made.close()


@pytest.fixture
def sqlite(tmp_path: Any) -> Iterator[SqliteStore]:
    made = SqliteStore(tmp_path / "state.db", inline_limit=100)
    made.open("full")
    yield made
    made.close()


@pytest.fixture
async def reader(store: ReadableStore) -> Any:
    made = store.reader()
    yield made
    await made.aclose()


# --- rows -----------------------------------------------------------------------------------------


def test_both_stores_and_their_readers_satisfy_the_protocols(store: ReadableStore) -> None:
    assert isinstance(store, ReadableStore)
    assert isinstance(store.reader(), Reader)


async def test_a_full_run_row_is_read_as_it_was_written(
    store: ReadableStore, reader: Reader
) -> None:
    parent = create(store, "parent")
    row = below(store, parent, "child", idempotency_key="key")
    full = row._replace(
        state=S.FAILED.value,
        state_name="TimedOut",
        message="späte \u2014 🦊",
        state_at=9.25,
        parameters=b'{"x": 1}',
        tags=("a", "ü", 'quo"te'),
        started_at=2.5,
        ended_at=9.25,
        deadline_at=8.0,
        engine=3,
        attempt=2,
        recoveries=1,
        version="v1",
        result_kind=ResultKind.PICKLE,
        result=b"\x00\xff",
        error=b'{"type": "E"}',
        ended_by=(4, 2),
    )
    assert store.write(Writes(runs=[full], fences={full.pk: full.epoch})) is True
    assert store.run("child") == full
    assert await reader.find_run("child") == full
    assert store.children(parent.pk) == [full]
    assert (await reader.runs(RunQuery(parent=parent.pk))).rows == [full]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "state": "COMPLETED",
            "started_at": 2.0,
            "ended_at": 3.5,
            "result_kind": 1,
            "result": b"1",
        },
        {"parent": 4},
        {"name": "my name"},
        {"state_name": "Cached"},
        {"message": "späte 🦊"},
        {"failures": 2, "attempt": 3},
        {"interruptions": 1},
        {"retry_at": 4.5, "state": "SCHEDULED"},
        {"upstream": (3, 1)},
        {"tags": ("a", "ü")},
        {"error": b"{}"},
        {"result_kind": 3},
    ],
    ids=lambda changes: "-".join(changes) or "plain",
)
async def test_a_task_row_is_read_as_it_was_written(
    store: ReadableStore, reader: Reader, changes: dict[str, Any]
) -> None:
    run = create(store, "run")
    row = task_row(run.pk, 1, **changes)
    store.write(Writes(tasks=[row]))
    assert store.calls(run.pk) == [row]
    assert (await reader.task_runs(TaskQuery(run=run.pk))).rows == [row]


@pytest.mark.parametrize("number", [0, 1, 3, 4, 5, 16, 63, 85, 341, 600])
def test_any_number_of_task_rows_fits_one_transaction(store: ReadableStore, number: int) -> None:
    run = create(store, "run")
    rows = [task_row(run.pk, n, message="odd" if n % 7 == 0 else "") for n in range(1, number + 1)]
    store.write(Writes(tasks=rows[::-1]))
    assert store.calls(run.pk) == rows


def test_task_rows_in_one_state_are_read_by_their_numbers(store: ReadableStore) -> None:
    run = create(store, "run")
    odd = {"state": "PAUSED", "message": "odd"}
    more: list[dict[str, Any]] = [{"state": "PAUSED"}, odd, {"state": "COMPLETED"}]
    rows = [task_row(run.pk, n, **more[n % 3]) for n in range(1, 20)]
    store.write(Writes(tasks=rows[::-1]))
    assert store.calls(run.pk, "PAUSED") == [row for row in rows if row.state == "PAUSED"]
    assert store.calls(run.pk, "FAILED") == []


def test_a_later_task_row_replaces_every_column_of_the_earlier_one(store: ReadableStore) -> None:
    run = create(store, "run")
    full = task_row(
        run.pk, 1, name="n", message="m", retry_at=2.0, upstream=(1,), tags=("t",), error=b"{}"
    )
    plain = task_row(run.pk, 1, state="COMPLETED")
    for row in (full, plain, full):
        store.write(Writes(tasks=[row]))
        assert store.calls(run.pk) == [row]


@pytest.mark.parametrize("last", ["plain", "full"])
def test_of_two_rows_of_one_call_in_a_transaction_the_later_one_stays(
    store: ReadableStore, last: str
) -> None:
    run = create(store, "run")
    full = task_row(run.pk, 1, state="FAILED", error=b"{}")
    rows = {"full": full, "plain": task_row(run.pk, 1)}
    store.write(Writes(tasks=[rows["plain"], full, rows["plain"], rows[last]]))
    assert store.calls(run.pk) == [rows[last]]


def test_the_largest_seq_belongs_to_its_own_run(store: ReadableStore) -> None:
    first, second = create(store, "1"), create(store, "2")
    last = task_row(first.pk, 0xFFFFFFFF)
    store.write(Writes(tasks=[last, task_row(second.pk, 1)]))
    assert store.calls(first.pk) == [last]
    assert store.calls(second.pk) == [task_row(second.pk, 1)]


async def test_attempts_are_kept_by_number_and_read_for_one_call_or_all(
    store: ReadableStore, reader: Reader
) -> None:
    run = create(store, "run")
    rows = [
        AttemptRow(run.pk, seq, attempt, 1.0, 2.0, 3.0, b"e")
        for seq in (1, 2)
        for attempt in (1, 2, 3)
    ]
    elsewhere = AttemptRow(run.pk + 1, 1, 1, None, 2.0, None, b"other")
    store.write(Writes(attempts=[*rows[::-1], elsewhere]))
    again = rows[0]._replace(error=b"again", started_at=None, retry_at=None)
    store.write(Writes(attempts=[again]))
    assert await reader.attempts(run.pk) == [again, *rows[1:]]
    assert await reader.attempts(run.pk, 2) == rows[3:]
    assert await reader.attempts(run.pk, 3) == []


async def test_the_moves_of_a_run_are_read_in_the_order_they_were_written(
    store: ReadableStore, reader: Reader
) -> None:
    row, _ = store.create_run(run_row("run"), [state_row(0, "PENDING"), state_row(77)])
    store.write(
        Writes(states=[state_row(row.pk, "PAUSED", time=0.5, epoch=2), state_row(row.pk + 1)])
    )
    assert await reader.states(row.pk) == [
        state_row(row.pk, "PENDING"),
        state_row(row.pk, "RUNNING"),
        state_row(row.pk, "PAUSED", time=0.5, epoch=2),
    ]


def test_marks_are_read_by_scope_and_number_and_replaced_by_key(store: ReadableStore) -> None:
    run = create(store, "run")
    rows = [MarkRow(run.pk, scope, n, b"v") for scope in (b"", b"a", b"a\xff") for n in (0, 1, 10)]
    store.write(Writes(marks=[*rows[::-1], MarkRow(run.pk + 1, b"a", 0, b"other")]))
    changed = rows[4]._replace(value=b"\x00")
    store.write(Writes(marks=[changed]))
    assert store.marks(run.pk) == [*rows[:4], changed, *rows[5:]]


async def test_an_artifact_keeps_its_place_and_its_first_time_when_it_is_replaced(
    store: ReadableStore, reader: Reader
) -> None:
    run = create(store, "run")
    rows = [artifact_row(run.pk, key, seq=n or None) for n, key in enumerate("cab")]
    store.write(Writes(artifacts=[*rows, artifact_row(run.pk + 1, "a")]))
    newer = artifact_row(
        run.pk,
        "c",
        seq=7,
        kind="table",
        description="d",
        data=b"{}",
        created_at=5.0,
        updated_at=6.0,
    )
    store.write(Writes(artifacts=[newer]))
    found = (await reader.artifacts(ArtifactQuery(run=run.pk))).rows
    assert [row.key for row in found] == ["c", "a", "b"] == store.artifact_keys(run.pk)
    assert found[0] == newer._replace(id=found[0].id, created_at=1.0)
    assert 0 < found[0].id < found[1].id < found[2].id

    async def keys(**query: Any) -> list[str]:
        page = await reader.artifacts(ArtifactQuery(run=run.pk, **query))
        return [row.key for row in page.rows]

    assert await keys(kinds=("table",)) == ["c"]
    assert await keys(kinds=("table", "markdown")) == ["c", "a", "b"]
    assert await keys(key="a") == ["a"]
    assert await keys(seq=1) == ["a"]
    assert await keys(seq=0) == []
    without = (await reader.artifacts(ArtifactQuery(run=run.pk, data=False))).rows
    assert without == [row._replace(data=b"") for row in found]
    gone = artifact_row(run.pk, "a", data=b"")
    store.write(Writes(artifacts=[gone, artifact_row(run.pk, "none", data=b"")]))
    assert await keys() == ["c", "b"]
    store.write(Writes(artifacts=[artifact_row(run.pk, "a")]))
    assert await keys() == ["c", "b", "a"], "what comes again comes last"
    store.delete_run(run.pk)
    assert await keys() == []
    assert store.artifact_keys(run.pk + 1) == ["a"]


async def test_a_copy_shows_what_its_task_runs_showed(store: ReadableStore, reader: Reader) -> None:
    run = create(store, "run")
    child = below(store, run, "child")
    rows = [artifact_row(run.pk, f"k{seq}", seq=seq or None) for seq in (0, 1, 5)]
    store.write(Writes(artifacts=[*rows, artifact_row(child.pk, "own")]))
    part = store.copy_run(run.pk, run_row("part"), [state_row(0)], 5)
    assert store.artifact_keys(part.pk) == ["k1"], "the flow itself runs again"
    assert store.artifact_keys(store.children(part.pk)[0].pk) == ["own"]
    whole = store.copy_run(run.pk, run_row("whole"), [state_row(0)], ALL)
    assert store.artifact_keys(whole.pk) == ["k0", "k1", "k5"]
    none = store.copy_run(run.pk, run_row("none"), [state_row(0)], 0)
    assert store.artifact_keys(none.pk) == []


def test_limits_are_read_by_name_replaced_and_lifted(store: ReadableStore) -> None:
    a, b = LimitRow("a", 2.0, None, None), LimitRow("b", 10.0, 60.0, 5)
    store.write(Writes(limits=[b, a]))
    assert store.limits() == [a, b]
    store.write(Writes(limits=[a._replace(limit=7.5), LimitRow("b", None, None, None)]))
    assert store.limits() == [a._replace(limit=7.5)]
    store.write(Writes(limits=[LimitRow("never set", None, None, None)]))
    assert store.limits() == [a._replace(limit=7.5)]


async def test_what_an_engine_tells_is_replaced_as_a_whole_and_goes_with_it(
    store: ReadableStore, reader: Reader
) -> None:
    one, other = store.register_engine(engine_row()), store.register_engine(engine_row(pid=43))
    run = NoticeRow("run", "7", one.id, 5.0, b"{}")
    limit = NoticeRow("limit", "7", one.id, 5.0, b"{}")
    others = NoticeRow("limit", "db", other.id, 4.0, b"[]")
    store.tell(one.id, [run, limit], 0.0)
    store.tell(other.id, [others], 0.0)
    assert await reader.notices("run") == [run]
    assert await reader.notices("limit") == [limit, others]
    assert await reader.notices("limit", ["db", "none"]) == [others]
    assert await reader.notices("limit", []) == []
    store.tell(one.id, [limit._replace(time=6.0)], 4.5)
    assert await reader.notices("run") == []
    assert await reader.notices("limit") == [limit._replace(time=6.0)], "what is too old is gone"
    store.close_engine(one.id, 7.0)
    assert await reader.notices("limit") == []


async def test_edges_lead_from_task_to_task(store: ReadableStore, reader: Reader) -> None:
    run, other = create(store, "run"), create(store, "other")
    rows = [
        task_row(run.pk, 1, task="a", upstream=(), parent=None),
        task_row(run.pk, 2, task="b", upstream=(1,), parent=None),
        task_row(run.pk, 3, task="b", upstream=(1, 2, 0), parent=None),
        task_row(run.pk, 4, task="c", upstream=(), parent=3),
        task_row(run.pk, 5, task="d", upstream=(9,), parent=9),
        task_row(other.pk, 1, task="z", upstream=(1,), parent=None),
    ]
    store.write(Writes(tasks=rows))
    assert sorted(await reader.edges(run.pk, 100)) == [("a", "b"), ("b", "b"), ("b", "c")]
    assert sorted(await reader.edges(run.pk, 1)) == [("a", "b"), ("b", "c")]
    assert await reader.edges(99, 100) == []


async def test_engines_are_registered_under_ids_of_their_own_and_closed(
    store: ReadableStore, reader: Reader
) -> None:
    first, second = store.register_engine(engine_row()), store.register_engine(engine_row(pid=43))
    assert 0 < first.id < second.id
    assert first == engine_row(id=first.id)
    store.close_engine(first.id, 5.5)
    assert await reader.engine(first.id) == first._replace(closed_at=5.5)
    assert await reader.engine(second.id) == second
    assert await reader.engine(second.id + 1) is None


def test_a_writes_counts_the_rows_it_holds(store: ReadableStore) -> None:
    run = create(store, "run")
    assert len(Writes(fences={1: 1})) == 0
    assert len(one_of_each(run)) == 10


async def test_an_empty_transaction_changes_nothing(store: ReadableStore, reader: Reader) -> None:
    run = create(store, "run")
    before = await everything(store, reader, [run.pk])
    assert store.write(Writes(fences={run.pk: run.epoch})) is True
    assert await everything(store, reader, [run.pk]) == before


async def test_text_with_lone_surrogates_does_not_stop_the_rest_from_being_written(
    store: ReadableStore, reader: Reader
) -> None:
    run = create(store, "run")
    writes = one_of_each(run)
    writes.logs.append(log_row(run.pk, "file \udc80"))
    assert store.write(writes) is True
    assert store.run("run") == run._replace(message="new")
    first, second = await messages(reader, run=run.pk)
    assert first == "new"
    assert second in ("file \udc80", "file \\udc80")


# --- fences ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("stale", [0, 2, -1])
async def test_a_stale_epoch_is_refused_and_nothing_is_written(
    store: ReadableStore, reader: Reader, stale: int
) -> None:
    run = create(store, "run")
    store.write(one_of_each(run, "old"))
    before = await everything(store, reader, [run.pk])
    writes = one_of_each(run)
    writes.fences[run.pk] = stale
    with pytest.raises(RunTaken, match=f"another engine has taken over run number {run.pk}"):
        store.write(writes)
    assert await everything(store, reader, [run.pk]) == before


async def test_one_stale_epoch_among_good_ones_refuses_all(
    store: ReadableStore, reader: Reader
) -> None:
    good, taken = create(store, "good"), create(store, "taken")
    store.claim(taken.pk, 9, taken.epoch)
    pks = [good.pk, taken.pk]
    before = await everything(store, reader, pks)
    writes = one_of_each(good)
    writes.fences[taken.pk] = taken.epoch
    with pytest.raises(RunTaken):
        store.write(writes)
    assert await everything(store, reader, pks) == before


async def test_a_fence_on_a_run_that_is_not_there_is_refused(
    store: ReadableStore, reader: Reader
) -> None:
    run = create(store, "run")
    before = await everything(store, reader, [run.pk, 77])
    with pytest.raises(RunTaken):
        store.write(Writes(tasks=[task_row(77, 1)], fences={run.pk: 1, 77: 1}))
    assert await everything(store, reader, [run.pk, 77]) == before


def test_a_store_goes_on_after_a_refused_write(store: ReadableStore) -> None:
    run = create(store, "run")
    with pytest.raises(RunTaken):
        store.write(Writes(fences={run.pk: 5}))
    store.write(one_of_each(run))
    assert store.run("run") == run._replace(message="new")


# --- creating and claiming ------------------------------------------------------------------------


def test_a_created_root_is_its_own_root_and_a_child_has_the_root_it_was_given(
    store: ReadableStore,
) -> None:
    root = create(store, "root")
    child = below(store, root, "child")
    assert root == run_row("root", pk=root.pk, root=root.pk)
    assert (child.parent, child.root) == (root.pk, root.pk)
    assert child.pk > root.pk > 0
    assert (store.run("root"), store.run("child")) == (root, child)
    assert store.run("nobody") is None


async def test_an_idempotency_key_gives_the_run_that_has_it(
    store: ReadableStore, reader: Reader
) -> None:
    first, created = store.create_run(run_row("1", idempotency_key="k"), [state_row(0)])
    assert created
    store.write(one_of_each(first))
    second, created = store.create_run(
        run_row("2", idempotency_key="k", flow_name="other"), [state_row(0, "PENDING")]
    )
    assert (second, created) == (first._replace(message="new"), False)
    assert await ids(reader) == ["1"]
    assert await reader.states(first.pk) == [
        state_row(first.pk),
        state_row(first.pk, message="new"),
    ]
    assert create(store, "3", idempotency_key="other").pk > first.pk


def test_runs_without_an_idempotency_key_are_all_created(store: ReadableStore) -> None:
    assert create(store, "1").pk != create(store, "2").pk


def test_the_number_of_a_deleted_run_is_not_given_again(store: ReadableStore) -> None:
    first = create(store, "1")
    store.delete_run(first.pk)
    assert create(store, "2").pk > first.pk


def test_a_claim_takes_the_root_and_the_unfinished_runs_of_its_tree(store: ReadableStore) -> None:
    root = create(store, "root", engine=1)
    child = below(store, root, "child", engine=1, epoch=4)
    grandchild = below(store, child, "grandchild", engine=1)
    ended = [below(store, root, s.value, state=s.value, engine=1) for s in FINAL]
    other = create(store, "other", engine=1)

    claimed = store.claim(root.pk, 2, root.epoch)

    assert claimed == [r._replace(engine=2, epoch=r.epoch + 1) for r in (root, child, grandchild)]
    assert [store.run(r.id) for r in claimed] == claimed
    assert [store.run(r.id) for r in (*ended, other)] == [*ended, other]


@pytest.mark.parametrize("state", list(S))
def test_a_root_in_any_state_can_be_claimed(store: ReadableStore, state: StateType) -> None:
    root = create(store, "root", state=state.value)
    assert store.claim(root.pk, 2, 1) == [root._replace(engine=2, epoch=2)]


async def test_a_claim_with_another_epoch_gives_none_and_changes_nothing(
    store: ReadableStore, reader: Reader
) -> None:
    root = create(store, "root")
    child = below(store, root, "child")
    before = await everything(store, reader, [root.pk, child.pk])
    for epoch in (0, 2):
        assert store.claim(root.pk, 2, epoch) is None
    assert store.claim(root.pk + 50, 2, 1) is None
    assert await everything(store, reader, [root.pk, child.pk]) == before


def test_of_two_claims_with_the_same_epoch_only_the_first_succeeds(store: ReadableStore) -> None:
    root = create(store, "root")
    assert store.claim(root.pk, 1, root.epoch)
    assert store.claim(root.pk, 2, root.epoch) is None
    found = store.run("root")
    assert found is not None
    assert (found.engine, found.epoch) == (1, 2)


def test_a_claim_that_recovers_a_run_counts_that_for_its_root_only(store: ReadableStore) -> None:
    root = create(store, "root")
    below(store, root, "child")
    for number in (1, 2):
        claimed = store.claim(root.pk, 2, number, recovers=True)
        assert claimed is not None
        assert [row.recoveries for row in claimed] == [number, 0]
        assert store.run("root") == claimed[0]
    claimed = store.claim(root.pk, 2, 3)
    assert claimed is not None
    assert claimed[0].recoveries == 2


def test_after_a_claim_the_earlier_owner_can_no_longer_write_to_the_tree(
    store: ReadableStore,
) -> None:
    root = create(store, "root")
    child = below(store, root, "child")
    claimed = store.claim(root.pk, 2, root.epoch)
    assert claimed is not None
    for row in (root, child):
        with pytest.raises(RunTaken):
            store.write(one_of_each(row))
    for row in claimed:
        store.write(one_of_each(row))
        assert store.run(row.id) == row._replace(message="new")


def test_a_copy_whose_key_is_taken_is_the_run_that_has_it(store: ReadableStore) -> None:
    run = create(store, "run")
    first = store.copy_run(run.pk, run_row("first", idempotency_key="k"), [state_row(0)], ALL)
    again = store.copy_run(run.pk, run_row("again", idempotency_key="k"), [state_row(0)], ALL)
    assert again == first
    assert store.run("again") is None


def test_children_are_the_direct_ones_in_the_order_of_their_creation(store: ReadableStore) -> None:
    root = create(store, "root")
    children = [below(store, root, str(n), state="COMPLETED") for n in range(3)]
    below(store, children[0], "grandchild")
    assert store.children(root.pk) == children
    assert store.children(children[1].pk) == []


def test_unfinished_are_the_roots_that_have_not_ended_each_with_its_owner(
    store: ReadableStore,
) -> None:
    engine = store.register_engine(engine_row())
    roots = [create(store, s.value, state=s.value, engine=engine.id) for s in UNFINISHED]
    for s in FINAL:
        create(store, s.value, state=s.value, engine=engine.id)
    unowned = create(store, "unowned")
    lost = create(store, "lost", engine=engine.id + 5)
    below(store, unowned, "child")
    assert store.unfinished() == [
        *((root, engine) for root in roots),
        (unowned, None),
        (lost, None),
    ]


# --- requests -------------------------------------------------------------------------------------


def test_requests_reach_the_owner_of_the_run_once(store: ReadableStore) -> None:
    mine = [create(store, str(n), engine=1) for n in range(2)]
    other = create(store, "other", engine=2)
    unowned = create(store, "unowned")
    for run in (*mine, other, unowned):
        store.request(run.pk, "cancel", 1.0)
    store.request(mine[0].pk, "cancel", 2.0)
    store.request(mine[0].pk, "pause", 2.0)
    store.request(unowned.pk + 50, "cancel", 1.0)

    assert sorted(store.requests(1)) == [
        (mine[0].pk, "cancel"),
        (mine[0].pk, "pause"),
        (mine[1].pk, "cancel"),
    ]
    assert store.requests(1) == []
    assert store.requests(2) == [(other.pk, "cancel")]
    assert store.requests(3) == []


def test_a_claim_forgets_what_was_asked_of_the_run_before(store: ReadableStore) -> None:
    claimed, kept = create(store, "claimed", engine=1), create(store, "kept", engine=1)
    for run in (claimed, kept):
        store.request(run.pk, "cancel", 1.0)
    assert store.claim(claimed.pk, 1, 99) is None
    store.claim(claimed.pk, 1, claimed.epoch)
    assert store.requests(1) == [(kept.pk, "cancel")]
    store.request(claimed.pk, "cancel", 2.0)
    assert store.requests(1) == [(claimed.pk, "cancel")]


# --- listings -------------------------------------------------------------------------------------


async def test_runs_are_listed_newest_first_through_every_filter(
    store: ReadableStore, reader: Reader
) -> None:
    a = create(store, "aa-1", flow_name="one", tags=("x",), created_at=1.0)
    create(store, "ab-2", flow_name="two", tags=("x", "y"), created_at=2.0, state="PAUSED")
    create(store, "b%-3", flow_name="one", created_at=3.0, state="FAILED", state_name="TimedOut")
    below(store, a, "b_-4", flow_name="two", tags=("xy",), created_at=4.0)

    assert await ids(reader) == ["b_-4", "b%-3", "ab-2", "aa-1"]
    assert await ids(reader, states=("PAUSED", "FAILED")) == ["b%-3", "ab-2"]
    assert await ids(reader, states=("CRASHED",)) == []
    assert await ids(reader, names=("TimedOut", "None")) == ["b%-3"]
    assert await ids(reader, flow="two") == ["b_-4", "ab-2"]
    assert await ids(reader, tags=("x",)) == ["ab-2", "aa-1"]
    assert await ids(reader, tags=("y", "x")) == ["ab-2"]
    assert await ids(reader, tags=("y", "z")) == []
    assert await ids(reader, since=3.0) == ["b_-4", "b%-3"]
    assert await ids(reader, parent=None) == ["b%-3", "ab-2", "aa-1"]
    assert await ids(reader, parent=a.pk) == ["b_-4"]
    assert await ids(reader, id_prefix="a") == ["ab-2", "aa-1"]
    assert await ids(reader, id_prefix="b%") == ["b%-3"]
    assert await ids(reader, id_prefix="b_") == ["b_-4"]
    assert await ids(reader, id_prefix="aa-1") == ["aa-1"]
    assert await ids(reader, after=a.pk) == []
    assert await ids(reader, limit=2) == ["b_-4", "b%-3"]
    assert await ids(reader, flow="one", states=("RUNNING",), tags=("x",), since=0.5) == ["aa-1"]


@pytest.mark.parametrize("limit", [1, 2, 3, 6, 7, 8, 200])
async def test_the_pages_of_each_listing_hold_every_row_exactly_once(
    store: ReadableStore, reader: Reader, limit: int
) -> None:
    run = create(store, "run", flow_name="parent")
    noise = create(store, "noise", flow_name="parent")
    runs = [below(store, run, str(n)) for n in range(7)]
    tasks = [task_row(run.pk, n * 3) for n in range(1, 8)]
    lines = [log_row(run.pk, str(n)) for n in range(7)]
    for task, line in zip(tasks, lines, strict=True):
        other = task._replace(run=noise.pk), line._replace(run=noise.pk)
        store.write(Writes(tasks=[other[0], task], logs=[other[1], line]))

    assert await pages(reader.runs, RunQuery(flow="flow", limit=limit)) == runs[::-1]
    assert await pages(reader.task_runs, TaskQuery(run=run.pk, limit=limit)) == tasks
    found = await pages(reader.logs, LogQuery(run=run.pk, limit=limit))
    assert [row for _, row in found] == lines


async def test_of_those_that_are_paused_some_are_listed_by_name(
    store: ReadableStore, reader: Reader
) -> None:
    for id_, state, name in (
        ("1", "PAUSED", "NeedsAttention"), ("2", "PAUSED", "Suspended"),
        ("3", "RUNNING", "Running"), ("4", "PAUSED", "Paused"), ("5", "COMPLETED", "Paused"),
    ):  # fmt: skip
        create(store, id_, state=state, state_name=name)
    named = ("NeedsAttention", "Paused")
    assert await ids(reader, states=("PAUSED", "RUNNING"), paused_as=named) == ["4", "3", "1"]
    assert await ids(reader, states=("PAUSED",), paused_as=named, limit=1) == ["4"]
    assert await ids(reader, paused_as=("Suspended",)) == ["5", "3", "2"]


async def test_the_newest_root_runs_are_counted_by_when_they_were_created(
    store: ReadableStore, reader: Reader
) -> None:
    times = [(100.0, "FAILED"), (160.0, "COMPLETED"), (200.0, "FAILED"), (259.0, "FAILED")]
    rows = [
        create(store, str(n), state=state, created_at=time) for n, (time, state) in enumerate(times)
    ]
    below(store, rows[-1], "child")
    assert await reader.created_since(0.0, 100.0, 10) == [
        (100.0, "COMPLETED", 1), (100.0, "FAILED", 1), (200.0, "FAILED", 2),
    ]  # fmt: skip
    assert await reader.created_since(150.0, 100.0, 2) == [(200.0, "FAILED", 2)]
    assert await reader.created_since(300.0, 100.0, 2) == []


async def test_task_runs_are_listed_by_state_and_by_task(
    store: ReadableStore, reader: Reader
) -> None:
    run = create(store, "run")
    rows = [
        task_row(run.pk, 1, task="a", state="COMPLETED"),
        task_row(run.pk, 2, task="b", state="COMPLETED"),
        task_row(run.pk, 3, task="a", state="FAILED"),
        task_row(run.pk, 4, task="a"),
    ]
    store.write(Writes(tasks=rows))

    async def seqs(**query: Any) -> list[int]:
        return [r.seq for r in (await reader.task_runs(TaskQuery(run=run.pk, **query))).rows]

    assert await seqs(task="a") == [1, 3, 4]
    assert await seqs(states=("COMPLETED", "FAILED")) == [1, 2, 3]
    assert await seqs(states=("COMPLETED",), task="a", after=0) == [1]
    assert await seqs(after=2) == [3, 4]
    assert await seqs(task="c") == []


async def test_task_counts_are_by_task_state_and_name_with_the_outermost_times(
    store: ReadableStore, reader: Reader
) -> None:
    run = create(store, "run")
    done = {"task": "b", "state": "COMPLETED"}
    rows = [
        task_row(run.pk, 1, **done, started_at=5.0, ended_at=6.0),
        task_row(run.pk, 2, task="a"),
        task_row(run.pk, 3, **done, started_at=4.0, ended_at=9.0),
        task_row(run.pk, 4, **done, state_name="Cached"),
        task_row(run.pk, 5, **done, started_at=None, ended_at=7.0),
        task_row(run.pk + 1, 1, **done),
    ]
    store.write(Writes(tasks=rows))
    assert await reader.task_counts(run.pk) == [
        TaskCount("b", "COMPLETED", None, 3, 4.0, 9.0),
        TaskCount("a", "RUNNING", None, 1, None, None),
        TaskCount("b", "COMPLETED", "Cached", 1, None, None),
    ]
    assert await reader.task_counts(run.pk + 7) == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", ["100% done", "1000 done", "file_a", "fileXa", "back\\slash", "ÄRGER Abc"]),
        ("100%", ["100% done"]),
        ("%", ["100% done"]),
        ("_", ["file_a"]),
        ("FILE_A", ["file_a"]),
        ("\\", ["back\\slash"]),
        ("\\%", []),
        ("abC", ["ÄRGER Abc"]),
        ("Ärger", ["ÄRGER Abc"]),
        ("ärger", []),
        ("'", []),
    ],
)
async def test_log_text_is_searched_literally_and_without_regard_to_the_case_of_ascii(
    store: ReadableStore, reader: Reader, text: str, found: list[str]
) -> None:
    run = create(store, "run")
    lines = ["100% done", "1000 done", "file_a", "fileXa", "back\\slash", "ÄRGER Abc"]
    store.write(Writes(logs=[log_row(run.pk, line) for line in lines]))
    assert await messages(reader, run=run.pk, text=text) == found


async def test_logs_are_listed_by_call_and_from_a_level_up(
    store: ReadableStore, reader: Reader
) -> None:
    run = create(store, "run")
    rows = [
        log_row(run.pk, "debug", level=10, time=9.0),
        log_row(run.pk, "flow", level=20, logger="other"),
        log_row(run.pk, "one", level=30, seq=1),
        log_row(run.pk, "two", level=40, seq=2),
    ]
    store.write(Writes(logs=rows))
    found = (await reader.logs(LogQuery(run=run.pk))).rows
    assert [row for _, row in found] == rows
    assert await messages(reader, run=run.pk, level=30) == ["one", "two"]
    assert await messages(reader, run=run.pk, level=31) == ["two"]
    assert await messages(reader, run=run.pk, seq=1) == ["one"]
    assert await messages(reader, run=run.pk, seq=1, level=40) == []
    assert await messages(reader, run=run.pk, after=found[1][0]) == ["one", "two"]
    assert await messages(reader, run=run.pk + 1) == []


async def test_a_log_cursor_stays_good_while_lines_come_and_other_runs_go(
    store: ReadableStore, reader: Reader
) -> None:
    gone, run = create(store, "gone"), create(store, "run")
    store.write(Writes(logs=[log_row(gone.pk, "x"), log_row(gone.pk, "y")]))
    store.write(Writes(logs=[log_row(run.pk, "1"), log_row(run.pk, "2")]))
    cursor = (await reader.logs(LogQuery(run=run.pk, limit=1))).next_cursor
    assert cursor is not None
    store.delete_run(gone.pk)
    store.write(Writes(logs=[log_row(run.pk, "3")]))
    assert await messages(reader, run=run.pk, after=cursor) == ["2", "3"]


# --- deleting -------------------------------------------------------------------------------------


async def test_a_deleted_run_takes_its_tree_along_and_nothing_else(
    store: ReadableStore, reader: Reader
) -> None:
    kept = create(store, "kept", engine=1)
    root = create(store, "root", engine=1)
    child = below(store, root, "child", engine=1)
    grandchild = below(store, child, "grandchild", engine=1)
    sibling = below(store, kept, "sibling", engine=1)
    gone, stay = (root, child, grandchild), (kept, sibling)
    for row in (*gone, *stay):
        store.write(one_of_each(row, row.id))
    stay_pks = [row.pk for row in stay]
    before = await everything(store, reader, stay_pks)
    before["runs"] = [row for row in before["runs"] if row.pk in stay_pks]
    before["unfinished"] = [pair for pair in before["unfinished"] if pair[0].pk == kept.pk]
    for row in (*gone, kept):
        store.request(row.pk, "cancel", 1.0)

    assert store.delete_run(root.pk) == 3

    assert await everything(store, reader, stay_pks) == before
    assert store.requests(1) == [(kept.pk, "cancel")]
    empty = await everything(store, reader, [row.pk for row in gone])
    for row in gone:
        assert store.run(row.id) is None
        assert not any(empty[f"run {row.pk}"].values())
    assert store.delete_run(root.pk) == 0


def test_a_deleted_child_leaves_its_parent(store: ReadableStore) -> None:
    root = create(store, "root")
    child = below(store, root, "child")
    assert store.delete_run(child.pk) == 1
    assert store.run("root") == root
    assert store.children(root.pk) == []


# --- large results --------------------------------------------------------------------------------


def test_a_file_that_is_not_there_is_unreadable(store: ReadableStore) -> None:
    with pytest.raises(ResultUnreadable, match="result file"):
        store.load_file("0" * 64)


@pytest.mark.parametrize(
    ("kind", "moved"),
    [
        (ResultKind.JSON, ResultKind.JSON_FILE),
        (ResultKind.PICKLE, ResultKind.PICKLE_FILE),
    ],
)
def test_large_results_of_tasks_and_runs_go_to_files(
    sqlite: SqliteStore, kind: int, moved: int
) -> None:
    run = create(sqlite, "run")
    data = b"x" * 101
    big = {"result_kind": kind, "result": data}
    small = {"result_kind": kind, "result": b"y" * 100}
    sqlite.write(
        Writes(
            tasks=[task_row(run.pk, 1, **big), task_row(run.pk, 2, **small)],
            runs=[run._replace(**big)],
        )
    )
    first, second = sqlite.calls(run.pk)
    found = sqlite.run("run")
    assert found is not None
    assert (first.result_kind, found.result_kind) == (moved, moved)
    assert first.result == found.result
    assert first.result is not None
    assert sqlite.load_file(first.result.decode()) == data
    assert second == task_row(run.pk, 2, **small)


def test_a_row_that_points_to_a_file_can_be_written_again_as_it_is(sqlite: SqliteStore) -> None:
    run = create(sqlite, "run")
    row = run._replace(result_kind=ResultKind.JSON, result=b"x" * 1000)
    sqlite.write(Writes(runs=[row]))
    stored = sqlite.run("run")
    assert stored is not None
    sqlite.write(Writes(runs=[stored._replace(message="again")]))
    assert sqlite.run("run") == stored._replace(message="again")


def test_a_result_file_goes_with_the_last_run_that_points_to_it(sqlite: SqliteStore) -> None:
    runs = [create(sqlite, str(n)) for n in range(3)]
    shared = {"result_kind": ResultKind.JSON, "result": b"s" * 200}
    alone = {"result_kind": ResultKind.JSON, "result": b"a" * 200}
    sqlite.write(
        Writes(
            tasks=[task_row(runs[0].pk, 1, **shared), task_row(runs[0].pk, 2, **alone)],
            runs=[runs[1]._replace(**shared), runs[2]],
        )
    )
    folder = sqlite.path.parent / "state.db.results"

    def files() -> list[bytes]:
        return sorted(path.read_bytes() for path in folder.rglob("*") if path.is_file())

    assert files() == [alone["result"], shared["result"]]
    sqlite.delete_run(runs[2].pk)
    assert files() == [alone["result"], shared["result"]]
    sqlite.delete_run(runs[0].pk)
    assert files() == [shared["result"]]
    sqlite.delete_run(runs[1].pk)
    assert files() == []


def test_a_store_in_memory_keeps_large_results_in_their_rows() -> None:
    store = MemoryStore()
    store.open("full")
    run = create(store, "run")
    row = task_row(run.pk, 1, result_kind=ResultKind.JSON, result=b"x" * 1_000_000)
    store.write(Writes(tasks=[row]))
    assert store.calls(run.pk) == [row]


# --- transactions ---------------------------------------------------------------------------------


def test_a_reader_never_sees_half_a_transaction(store: ReadableStore) -> None:
    run = create(store, "run")
    seen: list[list[StateRow]] = []

    def look() -> None:
        async def ask() -> list[StateRow]:
            reader = store.reader()
            try:
                return await reader.states(run.pk)
            finally:
                await reader.aclose()

        seen.append(asyncio.run(ask()))

    looking = threading.Thread(target=look)

    def states() -> Iterator[StateRow]:
        yield state_row(run.pk, "PENDING")
        looking.start()
        looking.join(timeout=0.2)
        yield state_row(run.pk, "RUNNING")

    rows: Any = states()
    store.write(Writes(states=[state_row(run.pk, "SCHEDULED")]))
    writes = Writes()
    writes.states = rows
    writes.logs = [log_row(run.pk, "not empty")]
    store.write(writes)
    looking.join(timeout=30)
    assert not looking.is_alive()
    assert len(seen[0]) in (1, 3)


async def test_a_row_that_cannot_be_stored_takes_its_whole_transaction_back(
    sqlite: SqliteStore,
) -> None:
    run = create(sqlite, "run")
    reader = sqlite.reader()
    before = await everything(sqlite, reader, [run.pk])
    writes = one_of_each(run)
    unsound: Any = object()
    writes.logs.append(log_row(run.pk, unsound))
    with pytest.raises(StoreError, match="failed"):
        sqlite.write(writes)
    assert await everything(sqlite, reader, [run.pk]) == before
    sqlite.write(one_of_each(run))
    assert await messages(reader, run=run.pk) == ["new"]
    await reader.aclose()


def test_a_write_that_may_not_wait_gives_false_while_another_holds_the_lock(
    sqlite: SqliteStore,
) -> None:
    run = create(sqlite, "run")
    other = SqliteStore(sqlite.path)
    other.open("full")
    with other._transaction():
        assert sqlite.write(one_of_each(run), wait=False) is False
        assert sqlite.run("run") == run
    assert sqlite.write(one_of_each(run), wait=False) is True
    assert sqlite.run("run") == run._replace(message="new")
    other.close()


# --- opening and closing --------------------------------------------------------------------------


async def test_a_store_that_is_opened_again_holds_what_it_held(store: ReadableStore) -> None:
    run = create(store, "run", idempotency_key="k")
    store.write(one_of_each(run))
    store.register_engine(engine_row())
    reader = store.reader()
    before = await everything(store, reader, [run.pk])
    await reader.aclose()
    store.close()
    store.close()
    store.open("full")
    reader = store.reader()
    assert await everything(store, reader, [run.pk]) == before
    await reader.aclose()
    assert create(store, "next").pk > run.pk


@pytest.mark.parametrize(
    "use",
    [
        lambda s: s.write(Writes()),
        lambda s: s.write(Writes(), wait=False),
        lambda s: s.create_run(run_row("x"), []),
        lambda s: s.register_engine(engine_row()),
        lambda s: s.close_engine(1, 1.0),
        lambda s: s.claim(1, 1, 1),
        lambda s: s.run("x"),
        lambda s: s.calls(1),
        lambda s: s.children(1),
        lambda s: s.marks(1),
        lambda s: s.artifact_keys(1),
        lambda s: s.limits(),
        lambda s: s.cached([b"key"]),
        lambda s: s.transact({}, lambda db: None),
        lambda s: s.drop_cached(),
        lambda s: s.unfinished(),
        lambda s: s.asked(),
        lambda s: s.request(1, "cancel", 1.0),
        lambda s: s.requests(1),
        lambda s: s.delete_run(1),
        lambda s: s.checkpoint(),
    ],
    ids=[
        "write", "write-now", "create_run", "register_engine", "close_engine", "claim", "run",
        "calls", "children", "marks", "artifact_keys", "limits", "cached", "transact",
        "drop_cached", "unfinished", "asked", "request", "requests", "delete_run", "checkpoint",
    ],
)  # fmt: skip
def test_a_closed_store_says_so(sqlite: SqliteStore, use: Callable[[SqliteStore], Any]) -> None:
    sqlite.close()
    with pytest.raises(StoreClosed, match=r"the database .*state\.db is closed"):
        use(sqlite)


async def test_a_reader_can_be_closed_twice_and_asked_again(
    store: ReadableStore, reader: Reader
) -> None:
    run = create(store, "run")
    assert await reader.find_run("run") == run
    await reader.aclose()
    await reader.aclose()
    assert await reader.find_run("run") == run


# --- the stores against each other ----------------------------------------------------------------

TAGS = ["x", "y", "xy", "ü"]
WORDS = ["100% sure", "a_b", "axb", "Über", "back\\slash", ""]


class Trial:
    """The same random operations on two stores."""

    def __init__(self, seed: int, stores: list[ReadableStore]) -> None:
        self.dice = random.Random(seed)
        self.stores = stores
        self.runs: list[RunRow] = []
        self.engines = 0
        self.made = 0

    def pick(self) -> RunRow:
        return self.dice.choice(self.runs)

    def current(self, row: RunRow) -> RunRow:
        return self.stores[0].run(row.id) or row

    def some(self, choices: list[str], most: int = 2) -> tuple[str, ...]:
        return tuple(self.dice.sample(choices, self.dice.randint(0, most)))

    def both(self, operation: Callable[[ReadableStore], Any]) -> Any:
        outcomes = []
        for store in self.stores:
            try:
                outcomes.append(operation(store))
            except RunTaken as error:
                outcomes.append(str(error))
        first, second = outcomes
        assert first == second
        return first

    def create(self) -> None:
        self.made += 1
        changes: dict[str, Any] = {
            "flow_name": self.dice.choice("fg"),
            "state": self.dice.choice(list(S)).value,
            "state_name": self.dice.choice(["One", "Two"]),
            "tags": self.some(TAGS),
            "created_at": float(self.made // 3),
            "engine": self.dice.choice([None, 1, 2, 3]),
            "idempotency_key": self.dice.choice([None, None, "k1", "k2", "k3"]),
        }
        if self.runs and self.dice.random() < 0.5:
            parent = self.pick()
            changes |= {"parent": parent.pk, "root": parent.root, "parent_seq": 1}
        row = run_row(f"{self.dice.choice('abc')}{self.made}", **changes)
        moves = [state_row(0, self.dice.choice(list(S)).value) for _ in range(self.made % 3)]
        created, new = self.both(lambda s: s.create_run(row, moves))
        if new:
            self.runs.append(created)

    def write(self) -> None:
        dice, writes = self.dice, Writes()
        picked = {run.pk: run for run in (self.pick() for _ in range(dice.randint(1, 3)))}
        for run in map(self.current, picked.values()):
            writes.fences[run.pk] = run.epoch - (dice.random() < 0.1)
            seqs = [dice.randint(1, 12) for _ in range(dice.randint(0, 6))]
            writes.tasks += [
                task_row(
                    run.pk,
                    seq,
                    task=dice.choice("tu"),
                    state=dice.choice(list(S)).value,
                    state_name=dice.choice([None, None, "Cached"]),
                    message=dice.choice(["", "", "m"]),
                    started_at=dice.choice([None, 1.0, 2.0]),
                    ended_at=dice.choice([None, 3.0]),
                    upstream=tuple(dice.sample(range(9), dice.choice([0, 0, 2]))),
                    tags=self.some(TAGS, 1),
                )
                for seq in seqs
            ]
            writes.attempts += [
                AttemptRow(run.pk, seq, dice.randint(1, 3), None, dice.random(), None, b"e")
                for seq in seqs[:2]
            ]
            writes.marks += [
                MarkRow(run.pk, dice.randbytes(1), dice.randint(0, 2), dice.randbytes(2))
                for _ in seqs
            ]
            writes.logs += [
                log_row(
                    run.pk,
                    dice.choice(WORDS),
                    seq=dice.choice([None, seq]),
                    level=dice.choice([0, 10, 20]),
                )
                for seq in seqs
            ]
            writes.states += [state_row(run.pk, dice.choice(list(S)).value) for _ in seqs[:2]]
            writes.artifacts += [
                artifact_row(
                    run.pk,
                    dice.choice("abcdefg"),
                    seq=dice.choice([None, seq]),
                    data=dice.choice([b"", b"{}", b'{"x": 1}']),
                    updated_at=dice.random(),
                )
                for seq in seqs[:3]
            ]
            writes.cache += [
                cache_row(
                    run.pk,
                    dice.randbytes(1)[:1],
                    seq=seq,
                    task=dice.choice("tu"),
                    expires_at=dice.choice([None, 2.0, 4.0]),
                )
                for seq in seqs[:2]
            ]
            if dice.random() < 0.5:
                state = dice.choice(list(S)).value
                writes.runs.append(run._replace(state=state, tags=self.some(TAGS)))
        if dice.random() < 0.3:
            limit = dice.choice([None, 1.0, 2.5])
            writes.limits.append(LimitRow(dice.choice("ab"), limit, None, None))
        self.both(lambda s: s.write(writes))

    def claim(self) -> None:
        run = self.current(self.pick())
        epoch = run.epoch - (self.dice.random() < 0.3)
        engine = self.dice.randint(1, 3)
        self.both(lambda s: s.claim(run.root, engine, epoch))

    def ask(self) -> None:
        pk, kind = self.pick().pk, self.dice.choice(["cancel", "pause"])
        self.both(lambda s: s.request(pk, kind, 1.0))

    def answer(self) -> None:
        engine = self.dice.randint(1, 3)
        self.both(lambda s: sorted(s.requests(engine)))

    def delete(self) -> None:
        pk = self.pick().pk
        self.both(lambda s: s.delete_run(pk))

    def drop(self) -> None:
        task, expired = self.dice.choice([None, "t"]), self.dice.choice([None, 1.0, 3.0])
        self.both(lambda s: s.drop_cached(task, expired))

    def engine(self) -> None:
        if self.engines < 5:
            self.engines += 1
            self.both(lambda s: s.register_engine(engine_row(pid=self.engines)))
        number = self.dice.randint(1, self.engines)
        self.both(lambda s: s.close_engine(number, 7.0))

    def step(self) -> None:
        if len(self.runs) < 3:
            return self.create()
        operations = [
            self.create, self.write, self.claim, self.ask, self.answer, self.delete, self.engine,
            self.drop,
        ]  # fmt: skip
        return self.dice.choices(operations, weights=[20, 50, 8, 6, 6, 4, 3, 1])[0]()

    def queries(self) -> list[tuple[str, Any]]:
        dice, run = self.dice, self.pick()
        return [
            (
                "runs",
                RunQuery(
                    states=self.some([s.value for s in S]),
                    names=self.some(["One", "Two"], 1),
                    paused_as=self.some(["One", "Two"], 1),
                    flow=dice.choice([None, "f", "g"]),
                    tags=self.some(TAGS, 1),
                    since=dice.choice([None, float(self.made // 6)]),
                    parent=dice.choice([-1, -1, None, run.pk]),
                    id_prefix=dice.choice(["", "", "a", "b1"]),
                    limit=dice.randint(1, 9),
                ),
            ),
            (
                "task_runs",
                TaskQuery(
                    run=run.pk,
                    states=self.some([s.value for s in S]),
                    task=dice.choice([None, "t"]),
                    limit=dice.randint(1, 5),
                ),
            ),
            (
                "logs",
                LogQuery(
                    run=run.pk,
                    seq=dice.choice([None, None, 3]),
                    level=dice.choice([0, 10, 15]),
                    text=dice.choice(["", "%", "_", "\\", "Ü", "über", "B"]),
                    limit=dice.randint(1, 5),
                ),
            ),
        ]


async def agree(trial: Trial, readers: list[Reader], whole: bool) -> None:
    for name, query in trial.queries():
        first, second = [await pages(getattr(reader, name), query) for reader in readers]
        assert first == second, query
    if whole:
        pks = [row.pk for row in trial.runs]
        pairs = zip(trial.stores, readers, strict=True)
        first, second = [await everything(store, reader, pks) for store, reader in pairs]
        assert first == second


@pytest.mark.parametrize("seed", range(4))
async def test_random_operations_have_equal_effects_on_both_stores(
    seed: int, tmp_path: Any
) -> None:
    stores: list[ReadableStore] = [MemoryStore(), SqliteStore(tmp_path / "state.db")]
    for store in stores:
        store.open("relaxed")
    readers = [store.reader() for store in stores]
    trial, step = Trial(seed, stores), 0
    try:
        for step in range(400):
            trial.step()
            if step % 5 == 4:
                await agree(trial, readers, whole=step % 50 == 49)
    except Exception:
        print(f"the stores differ: seed {seed}, step {step}")
        raise
    finally:
        for reader in readers:
            await reader.aclose()
        for store in stores:
            store.close()
    assert len(trial.runs) > 20


# --- messages and copies --------------------------------------------------------------------------


def test_messages_for_a_run_and_for_all_come_in_order(store: ReadableStore) -> None:
    first, second = create(store, "first"), create(store, "second", created_at=5.0)
    sent = [
        store.send(MessageRow(0, "a", first.pk, b"1", 2.0)),
        store.send(MessageRow(0, "b", None, b"2", 3.0)),
        store.send(MessageRow(0, "a", second.pk, b"3", 6.0)),
        store.send(MessageRow(0, "b", None, b"4", 7.0)),
    ]
    assert all(sent)
    ids = [message.id for message in sent if message is not None]
    assert store.newest_message() == ids[-1]
    assert [m.payload for m in store.messages(first.pk, 0)] == [b"1", b"2", b"4"]
    assert [m.payload for m in store.messages(second.pk, 0)] == [b"3", b"4"]
    assert store.messages(first.pk, ids[1]) == [sent[3]]


def test_a_message_that_may_be_sent_once_is_refused_the_second_time(store: ReadableStore) -> None:
    run, other = create(store, "run"), create(store, "other")
    message = MessageRow(0, "answer", run.pk, b"1", 1.0)
    assert store.send(message, once=True) is not None
    assert store.send(message, once=True) is None
    assert store.send(message._replace(run=other.pk), once=True) is not None
    assert store.send(message) is not None


def test_messages_go_with_their_run(store: ReadableStore) -> None:
    run = create(store, "run")
    store.send(MessageRow(0, "a", run.pk, b"1", 1.0))
    store.delete_run(run.pk)
    again = create(store, "again")
    assert store.messages(again.pk, 0) == []


async def test_a_copy_has_edited_task_runs_in_the_places_of_others(store: ReadableStore) -> None:
    run = create(store, "run")
    store.write(Writes(tasks=[task_row(run.pk, n) for n in range(1, 5)]))
    big = codec.seal(codec.encode("x" * 100_000))
    edited = task_row(run.pk, 2, state="COMPLETED", state_name="Edited", result_kind=1, result=big)
    copy = store.copy_run(run.pk, run_row("copy"), [state_row(0)], 4, [edited])
    first, second, third = store.calls(copy.pk)
    assert (first, third) == (task_row(copy.pk, 1), task_row(copy.pk, 3))
    assert second[:2] == (copy.pk, 2)
    assert second.state_name == "Edited"
    result = second.result or b""
    assert (store.load_file(result.decode()) if second.result_kind == 4 else result) == big
    assert store.calls(run.pk)[1] == task_row(run.pk, 2)


def test_a_copy_has_what_came_before_a_call(store: ReadableStore) -> None:
    run = create(store, "run")
    child = create(store, "child", parent=run.pk, parent_seq=2, root=run.pk, parent_identity=b"c")
    late = create(store, "late", parent=run.pk, parent_seq=9, root=run.pk, parent_identity=b"l")
    store.write(
        Writes(
            tasks=[task_row(run.pk, n) for n in (1, 3, 9)] + [task_row(child.pk, 7)],
            marks=[MarkRow(run.pk, b"s", n, b"v", seq) for n, seq in enumerate((0, 2, 8))],
            attempts=[AttemptRow(run.pk, n, 1, 1.0, 2.0, None, b"{}") for n in (1, 9)],
            fences={run.pk: run.epoch, child.pk: child.epoch},
        )
    )
    copy = store.copy_run(run.pk, run_row("copy", origin="run"), [state_row(0)], 8)
    assert [row.seq for row in store.calls(copy.pk)] == [1, 3]
    assert {row.run for row in store.calls(copy.pk)} == {copy.pk}
    assert [mark.seq for mark in store.marks(copy.pk)] == [0, 2]
    (below,) = store.children(copy.pk)
    assert (below.origin, below.parent_seq, below.root) == ("child", 2, copy.pk)
    assert below.id not in ("child", late.id)
    assert [row.seq for row in store.calls(below.pk)] == [7]
    assert [row.seq for row in store.calls(run.pk)] == [1, 3, 9]
    assert store.run("copy") == copy


# --- results for other runs -----------------------------------------------------------------------


def test_cached_results_are_found_by_key_and_replaced(store: ReadableStore) -> None:
    run = create(store, "a")
    one, two = cache_row(run.pk, b"one"), cache_row(run.pk, b"two", expires_at=5.0, result=b"null")
    store.write(Writes(cache=[one, two]))
    assert sorted(store.cached([b"two", b"none", b"one", b"one"])) == sorted([one, two])
    newer = one._replace(created_at=2.0, result=b"2")
    store.write(Writes(cache=[newer]))
    assert store.cached([b"one"]) == [newer]
    assert store.cached([]) == []


def test_any_number_of_keys_can_be_asked_for(store: ReadableStore) -> None:
    run = create(store, "a")
    found = [cache_row(run.pk, b"%d" % n) for n in range(1000)]
    store.write(Writes(cache=found))
    assert len(store.cached([row.key for row in found])) == 1000


def test_a_cached_result_of_a_lost_run_is_refused_with_the_rest(store: ReadableStore) -> None:
    run = create(store, "a")
    with pytest.raises(RunTaken):
        store.write(Writes(cache=[cache_row(run.pk, b"one")], fences={run.pk: run.epoch + 1}))
    assert store.cached([b"one"]) == []


def test_cached_results_are_dropped_by_task_and_by_expiry(store: ReadableStore) -> None:
    run = create(store, "a")
    found = [
        cache_row(run.pk, b"kept"),
        cache_row(run.pk, b"old", expires_at=5.0),
        cache_row(run.pk, b"young", expires_at=5.1),
        cache_row(run.pk, b"other", task="other", expires_at=5.0),
    ]
    store.write(Writes(cache=found))
    keys = [row.key for row in found]

    def left() -> set[bytes]:
        return {row.key for row in store.cached(keys)}

    assert store.drop_cached("task", 5.0) == 1
    assert left() == {b"kept", b"young", b"other"}
    assert store.drop_cached(None, 5.0, 0) == 0
    assert store.drop_cached(None, 5.0, 7) == 1
    assert store.drop_cached("task") == 2
    assert left() == set()
    assert store.drop_cached() == 0


def test_cached_results_go_with_the_run_that_made_them(store: ReadableStore) -> None:
    root, other = create(store, "a"), create(store, "b")
    child = create(store, "c", parent=root.pk, root=root.pk)
    store.write(Writes(cache=[cache_row(r.pk, r.id.encode()) for r in (root, other, child)]))
    store.delete_run(root.pk)
    assert [row.key for row in store.cached([b"a", b"b", b"c"])] == [b"b"]


def test_the_file_of_a_cached_result_stays_as_long_as_anything_points_to_it(
    sqlite: SqliteStore,
) -> None:
    run, other = create(sqlite, "a"), create(sqlite, "b")
    large = b'"%s"' % (b"x" * 100_000)
    kept = cache_row(run.pk, b"kept", result=large)
    sqlite.write(
        Writes(
            tasks=[task_row(other.pk, 1, result_kind=ResultKind.JSON, result=large)], cache=[kept]
        )
    )
    (row,) = sqlite.cached([b"kept"])
    assert row.result_kind == ResultKind.JSON_FILE
    assert row.result is not None
    name = row.result.decode()
    sqlite.delete_run(other.pk)
    assert sqlite.load_file(name) == large
    sqlite.drop_cached()
    with pytest.raises(ResultUnreadable):
        sqlite.load_file(name)


# --- the tables of users --------------------------------------------------------------------------


def test_a_function_and_its_row_are_one_transaction(store: ReadableStore) -> None:
    run = create(store, "a")
    fences = {run.pk: run.epoch}
    row = task_row(run.pk, 1, state="COMPLETED", result_kind=ResultKind.JSON, result=b"1")

    def make(db: sqlite3.Connection) -> TaskRow:
        db.execute("CREATE TABLE mine (x)")
        db.execute("INSERT INTO mine VALUES (7)")
        return row

    def fail(db: sqlite3.Connection) -> TaskRow:
        db.execute("INSERT INTO mine VALUES (8)")
        raise KeyError("mine")

    def look(db: sqlite3.Connection) -> None:
        seen.append(db.execute("SELECT x FROM mine").fetchall())

    seen: list[Any] = []
    store.transact(fences, make)
    assert store.calls(run.pk) == [row]
    with pytest.raises(WorkError) as caught:
        store.transact(fences, fail)
    assert isinstance(caught.value.__cause__, KeyError)
    with pytest.raises(RunTaken):
        store.transact({run.pk: run.epoch + 1}, fail)
    store.transact(fences, look)
    assert seen == [[(7,)]]
    assert store.calls(run.pk) == [row]


def test_other_writes_go_on_after_a_function_failed(store: ReadableStore) -> None:
    run = create(store, "a")

    def fail(db: sqlite3.Connection) -> TaskRow:
        db.execute("CREATE TABLE mine (x)")
        raise KeyError

    with pytest.raises(WorkError):
        store.transact({run.pk: run.epoch}, fail)
    assert store.write(Writes(tasks=[task_row(run.pk, 1)], fences={run.pk: run.epoch}))
    assert len(store.calls(run.pk)) == 1


def test_a_function_waits_for_other_processes_and_then_says_who_hinders_it(
    tmp_path: Any,
) -> None:
    path = tmp_path / "state.db"
    one, other = SqliteStore(path, busy_timeout=0.01), sqlite3.connect(path, isolation_level=None)
    try:
        one.open("strict")
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="kept the database"):
            one.transact({}, lambda db: None)
        other.execute("ROLLBACK")
        one.transact({}, lambda db: None)
    finally:
        other.close()
        one.close()
