"""A run goes from one store to another through a file: all of it, or nothing, and nothing else."""

from __future__ import annotations

import gzip
import itertools
import json
import os
import random
import stat
import tracemalloc
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import orjson
import pytest

from asyncflow import capsule, codec, exhibits, exporting, importing
from asyncflow.errors import InvalidExport, ResultUnreadable, RunExists, StoreError, UnknownRun
from asyncflow.states import StateType
from asyncflow.store.base import (
    ALL,
    ELSEWHERE,
    IMPORTED,
    AnyRow,
    ArtifactRow,
    AttemptRow,
    EventRow,
    LogRow,
    MarkRow,
    MessageRow,
    ReadableStore,
    ResultKind,
    RunRow,
    StateRow,
    TaskRow,
    Writes,
)
from asyncflow.store.memory import MemoryStore
from asyncflow.store.sqlite import SqliteStore

Line = dict[str, Any]

S = StateType
BIG = codec.seal(codec.encode("x" * 500_000))
ODD = bytes(range(256))
TEXT, TABLE = b'{"markdown": "x"}', b'{"columns": null, "rows": []}'
PICTURE = orjson.dumps(exhibits.image(b"\x89PNG\r\n\x1a\n" + ODD * 2000, None, str))


def a_run(run_id: str, **changes: Any) -> RunRow:
    row = RunRow(
        pk=0, id=run_id, flow_name="flow", flow_ref='{"module": "m"}', name="", parent=None,
        parent_identity=None, parent_seq=None, root=0, state=S.COMPLETED.value,
        state_name="Completed", message="", state_at=1.5, parameters=b'{"x": 1}', tags=(),
        created_at=1.0, started_at=1.0, ended_at=1.5, deadline_at=None, engine=None, epoch=1,
        attempt=1, recoveries=0, idempotency_key=None, version=None, result_kind=ResultKind.NONE,
        result=None, error=None, ended_by=(),
    )  # fmt: skip
    return row._replace(**changes)


def a_task(run: int, seq: int, **changes: Any) -> TaskRow:
    row = TaskRow(
        run=run, seq=seq, identity=b"identity\x00%d" % seq, task="task", name=None, parent=None,
        state=S.COMPLETED.value, state_name=None, message="", attempt=1, failures=0,
        interruptions=0, created_at=1.0, started_at=1.25, ended_at=1.5, retry_at=None, upstream=(),
        tags=(), result_kind=ResultKind.JSON, result=codec.seal(b"%d" % seq), error=None,
    )  # fmt: skip
    return row._replace(**changes)


def a_store(kind: str, folder: Path, name: str) -> Any:
    store = MemoryStore() if kind == "memory" else SqliteStore(folder / f"{name}.db")
    store.open("relaxed")
    return store


@pytest.fixture(params=["memory", "sqlite"])
def here(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ReadableStore]:
    """The store that a run comes from."""
    store = a_store(request.param, tmp_path, "here")
    yield store
    store.close()


@pytest.fixture(params=["memory", "sqlite"])
def there(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ReadableStore]:
    """The store that it goes to, in which there are runs and messages already."""
    store = a_store(request.param, tmp_path, "there")
    for n in range(3):
        store.create_run(a_run(f"other-{n}"), [])
        store.send(MessageRow(0, "event:other", None, b"0", 0.5))
    yield store
    store.close()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "one.run.gz"


def fill(store: ReadableStore, **changes: Any) -> RunRow:
    """A run with something of everything: its row."""
    for n in range(5):
        store.create_run(a_run(f"before-{n}"), [])
    rows = {
        "tags": ("a", "ü"), "name": "späte \u2014 🦊", "version": "2", "origin": "older",
        "deployment": "nightly", "scheduled_at": 1.0, "cause": "schedule:nightly",
        "idempotency_key": "key", "recoveries": 2, "attempt": 3, "ended_by": (2,),
        "result_kind": ResultKind.JSON, "result": BIG,
    } | changes  # fmt: skip
    run, _ = store.create_run(a_run("root", **rows), [StateRow(0, 1.0, "RUNNING", "Late", "é", 1)])
    child = a_run("child", parent=run.pk, parent_identity=ODD, parent_seq=3, root=run.pk)
    child, _ = store.create_run(child, [StateRow(0, 1.0, "RUNNING", "Running", "", 1)])
    grandchild = a_run("grandchild", parent=child.pk, parent_identity=ODD, parent_seq=1)
    grandchild, _ = store.create_run(grandchild._replace(root=run.pk), [])
    to_it = store.send(MessageRow(0, "event:a", run.pk, b'"to it"', 2.0))
    store.send(MessageRow(0, "event:b", None, b'"to all"', 2.5))
    store.send(MessageRow(0, "event:c", run.pk - 1, b'"to another"', 2.5))
    assert to_it is not None
    taken = b"\0message" + to_it.id.to_bytes(8, "big") + to_it.payload
    error = b'{"type": "builtins:ValueError", "text": "no", "args": null}'
    store.write(
        Writes(
            tasks=[
                a_task(run.pk, 1, upstream=(2, 1), tags=("t",), name="own", message="m"),
                a_task(run.pk, 2, state="FAILED", result_kind=0, result=None, error=error),
                a_task(run.pk, 4, result=BIG, parent=1, retry_at=9.5, state_name="Cached"),
                a_task(run.pk, 5, result_kind=ResultKind.PICKLE, result=ODD, interruptions=1),
                a_task(run.pk, 6, result_kind=ResultKind.NOT_STORED, result=None, failures=1),
                a_task(run.pk, 7, identity=ODD, result=codec.seal(codec.encode("🦊"))),
                a_task(child.pk, 1), a_task(grandchild.pk, 1),
            ],
            attempts=[
                AttemptRow(run.pk, 2, 1, 1.0, 1.5, 2.0, error),
                AttemptRow(run.pk, 2, 2, None, 1.5, None, error),
            ],
            marks=[
                MarkRow(run.pk, b"a", 0, ODD, 2), MarkRow(run.pk, b"a", 1, taken, 3),
                MarkRow(child.pk, ODD, 7, b"", 0),
            ],
            logs=[
                LogRow(run.pk, None, 1.0, 20, "app", "first"),
                LogRow(run.pk, 2, 1.5, 30, "app", "second \x1b[31m\n"),
                LogRow(child.pk, None, 1.0, 20, "app", "of the child"),
            ],
            states=[StateRow(run.pk, 1.5, "COMPLETED", "Completed", "", 2)],
            artifacts=[
                ArtifactRow(0, run.pk, "~0.1", None, "markdown", "é", TEXT, 1.0, 2.0),
                ArtifactRow(0, run.pk, "a.b", 2, "table", "", TABLE, 1.0, 1.0),
                ArtifactRow(0, child.pk, "~1.0", 1, "image", "", PICTURE, 1.0, 1.0),
            ],
            events=[
                EventRow(0, run.pk, 1.5, "FAILED", "Failed", "", 1, "task-run.Failed", 2),
                EventRow(0, run.pk, 1.5, "", "", "m", 1, "mine", None, b'{"x": [1]}'),
                EventRow(0, 0, 1.5, "", "", "m", 1, "of no run"),
            ],
        )
    )  # fmt: skip
    return run


def moved(
    source: ReadableStore, run: RunRow, target: ReadableStore, file: Path, **options: Any
) -> importing.Imported:
    assert exporting.export(source, run, file) is not None
    done = importing.load(target, file, now=100.0, **options)
    assert done is not None
    return done


def seen(store: ReadableStore, run: RunRow) -> list[AnyRow]:
    """All that belongs to a run, without what is a store's own: numbers, and where results are."""
    rows: list[AnyRow] = []
    numbers: dict[int | None, int | None] = {None: None}
    ids: dict[int, int] = {}
    for row in store.dump(run.pk):
        if isinstance(row, RunRow | TaskRow) and row.result_kind in (4, 5):
            data = store.load_file((row.result or b"").decode())
            row = row._replace(result_kind=row.result_kind - 3, result=data)
        if isinstance(row, RunRow):
            numbers[row.pk] = len(numbers)
            numbers.setdefault(row.root, numbers[row.pk])
            row = row._replace(
                pk=numbers[row.pk] or 0, root=numbers[row.root] or 0, parent=numbers[row.parent],
                engine=None,
            )  # fmt: skip
            rows.append(row)
            ids.clear()
            continue
        current = len(numbers) - 1
        if isinstance(row, ArtifactRow):
            row = row._replace(id=0)
        if isinstance(row, EventRow):
            row = row._replace(id=0, epoch=max(row.epoch, ~row.epoch))
        if isinstance(row, MessageRow):
            ids[row.id] = len(ids)
            row = row._replace(id=ids[row.id])
        if isinstance(row, MarkRow) and row.value.startswith(b"\0message"):
            old = ids.get(int.from_bytes(row.value[8:16], "big"), -1)
            row = row._replace(value=b"message %d %s" % (old, row.value[16:]))
        rows.append(row._replace(run=current))
    return rows


def lines(file: Path) -> list[Line]:
    with gzip.open(file) as packed:
        return [json.loads(line) for line in packed]


def first(told: list[Line], kind: str) -> int:
    """Where the first line of this kind is, after the head."""
    return next(n for n, line in enumerate(told) if kind in line and n)


def write_lines(file: Path, told: list[Line], end: Line | None = None) -> Path:
    """A file whose check sum fits, whatever it holds."""
    body = b"".join(json.dumps(line).encode() + b"\n" for line in told if "end" not in line)
    if end is None:
        count = body.count(b"\n")
        end = {"lines": count, "sha256": sha256(body).hexdigest()}
    file.write_bytes(gzip.compress(body + json.dumps({"end": end}).encode() + b"\n"))
    return file


def refused(store: ReadableStore, file: Path, **options: Any) -> str:
    """Nothing of the file comes into the store; what is said about it, which is one sentence."""
    before = contents(store)
    with pytest.raises(InvalidExport) as caught:
        importing.load(store, file, now=100.0, **options)
    assert contents(store) == before
    text = str(caught.value)
    assert len(text) < 400
    assert "\n" not in text
    assert file.name in text
    return text


def contents(store: Any) -> Any:
    if isinstance(store, MemoryStore):
        kept = vars(store.copy())
        return {name: kept[name] for name in kept if isinstance(kept[name], dict | list)}
    folder = Path(f"{store.path}.results")
    files = sorted(str(path) for path in folder.rglob("*"))
    return [*store._connection.iterdump(), files, store.check()]


# --- the way there --------------------------------------------------------------------------------


def test_a_run_is_there_as_it_was_here(
    here: ReadableStore, there: ReadableStore, file: Path
) -> None:
    run = fill(here)
    done = moved(here, run, there, file, allow_pickle=True)
    assert (done.runs, done.tasks, done.notes) == (3, 8, [])
    assert done.row == there.run("root")
    assert done.row.pk != run.pk
    assert done.row.engine is None
    assert seen(there, done.row) == seen(here, run)
    assert there.children(done.row.pk)[0].id == "child"
    if isinstance(there, SqliteStore):
        assert there.check() == []
        assert there.stats()["result_files"] == 1


def test_what_went_there_and_back_is_the_same(
    here: ReadableStore, there: ReadableStore, tmp_path: Path, file: Path
) -> None:
    run = fill(here)
    before = seen(here, run)
    done = moved(here, run, there, file, allow_pickle=True)
    here.delete_run(run.pk)
    again = moved(there, done.row, here, tmp_path / "back", allow_pickle=True)
    assert seen(here, again.row) == before


def test_messages_are_for_the_run_only_and_taken_ones_stay_taken(
    here: ReadableStore, there: ReadableStore, file: Path
) -> None:
    row = moved(here, fill(here), there, file).row
    messages = {m.name: m for m in there.messages(row.pk, 0) if m.run == row.pk}
    assert set(messages) == {"event:a", "event:b"}
    marks = [m.value for m in there.marks(row.pk) if m.value.startswith(b"\0message")]
    assert [int.from_bytes(value[8:16], "big") for value in marks] == [messages["event:a"].id]
    other = there.run("other-0")
    assert other is not None
    assert "event:b" not in {m.name for m in there.messages(other.pk, 0)}


def test_what_was_sent_to_all_before_a_run_came_is_not_for_it(
    here: ReadableStore, there: ReadableStore, file: Path
) -> None:
    there.send(MessageRow(0, "event:b", None, b'"to all, there"', 3.0))
    row = moved(here, fill(here), there, file).row
    there.send(MessageRow(0, "event:b", None, b'"later"', 4.0))
    payloads = [m.payload for m in there.messages(row.pk, 0) if m.name == "event:b"]
    assert payloads == [b'"to all"', b'"later"']
    assert [m.payload for m in there.messages(row.pk, 0)][-1] == b'"later"'
    again = importing.load(there, file, now=1.0, new_id=True)
    assert again is not None
    assert len(there.messages(again.row.pk, 0)) == 2
    if isinstance(there, SqliteStore):
        assert there.check() == []


def test_nobody_acts_on_what_happened_elsewhere(
    here: ReadableStore, there: ReadableStore, file: Path
) -> None:
    run = fill(here, state="RUNNING", state_name="Running")
    row = moved(here, run, there, file).row
    told = [event for event, info in there.events_after(0, 100) if event.run == row.pk]
    assert [event.kind for event in told] == [ELSEWHERE] * 4 + [None]
    assert told[-1].called == "flow-run.Interrupted"
    assert there.plan(lambda plans: plans._outside.unfinished_of("nightly")) == []
    there.write(Writes(runs=[row._replace(waits_for=None)]))
    ((pk, _, cause),) = there.plan(lambda plans: plans._outside.unfinished_of("nightly"))
    assert (pk, cause) == (row.pk, "schedule:nightly")


def test_a_message_that_is_not_there_is_not_taken_for_another(
    here: ReadableStore, there: ReadableStore, file: Path
) -> None:
    exporting.export(here, fill(here), file)
    write_lines(file, [line for line in lines(file) if "message" not in line])
    importing.load(there, file, now=1.0)
    row = there.run("root")
    assert row is not None
    (value,) = (m.value for m in there.marks(row.pk) if m.value.startswith(b"\0message"))
    assert int.from_bytes(value[8:16], "big") == 0


def test_an_id_that_is_taken_is_refused_unless_another_is_asked_for(
    here: ReadableStore, tmp_path: Path, file: Path
) -> None:
    run = fill(here)
    exporting.export(here, run, file)
    before = contents(here)
    with pytest.raises(RunExists, match=r"the run root is in this database already.*--new-id"):
        importing.load(here, file, now=100.0)
    assert contents(here) == before
    done = importing.load(here, file, now=100.0, new_id=True)
    assert done is not None
    assert done.row.origin == "root"
    assert done.row.id != "root"
    assert done.row.idempotency_key is None
    (note,) = (note for note in done.notes if "idempotency" in note)
    assert "'key' is that of another run" in note
    (child,) = here.children(done.row.pk)
    assert child.origin == "child"
    assert here.run("root") == run


def test_a_run_that_is_there_below_another_is_refused(
    here: ReadableStore, there: ReadableStore, file: Path
) -> None:
    exporting.export(here, fill(here), file)
    there.create_run(a_run("grandchild"), [])
    before = contents(there)
    with pytest.raises(RunExists, match="grandchild"):
        importing.load(there, file, now=100.0)
    assert contents(there) == before


@pytest.mark.parametrize("state", [s for s in S if not s.is_final])
def test_an_unfinished_run_waits_to_be_resumed(
    here: ReadableStore, there: ReadableStore, file: Path, state: StateType
) -> None:
    run = fill(here, state=state.value, state_name="X", engine=7, ended_at=None)
    below = here.children(run.pk)[0]
    here.write(Writes(runs=[below._replace(state="RUNNING", state_name="Running", engine=7)]))
    row = moved(here, run, there, file).row
    child = there.children(row.pk)[0]
    for one in (row, child):
        assert (one.state, one.state_name, one.engine) == ("PAUSED", "Interrupted", None)
        assert (one.state_at, one.waits_for) == (100.0, IMPORTED)
        told = [r for r in there.dump(row.pk) if isinstance(r, EventRow) and r.run == one.pk]
        assert told[-1].message == one.message
        assert told[-1].state_name == "Interrupted"
    assert "asyncflow resume root" in row.message
    assert there.children(child.pk)[0].state == "COMPLETED"


def test_pickles_are_left_out_unless_they_are_trusted(
    here: ReadableStore, there: ReadableStore, file: Path
) -> None:
    done = moved(here, fill(here), there, file)
    (note,) = done.notes
    assert "the run root came without its pickled results (1)" in note
    assert "--allow-pickle" in note
    kinds = {row.seq: (row.result_kind, row.result) for row in there.calls(done.row.pk)}
    assert kinds[5] == (ResultKind.NOT_STORED, None)


def test_a_run_that_ended_long_ago_is_not_kept_without_a_word(
    here: ReadableStore, there: ReadableStore, file: Path
) -> None:
    exporting.export(here, fill(here), file)
    done = importing.load(there, file, now=86_400 * 45.0, allow_pickle=True)
    assert done is not None
    (note,) = done.notes
    assert "45 days ago" in note


def test_lone_surrogates_are_spelled_out(file: Path) -> None:
    here, there = MemoryStore(), MemoryStore()
    row, _ = here.create_run(a_run("root", flow_name="\ud800", name="\udcff"), [])
    here.write(Writes(logs=[LogRow(row.pk, None, 1.0, 20, "l", "odd \ud83e")]))
    assert moved(here, row, there, file).row.name == "\\udcff"


# --- the file -------------------------------------------------------------------------------------


def test_only_its_owner_may_read_the_file_and_no_other_is_left(
    here: ReadableStore, tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    done = exporting.export(here, fill(here), folder / "one")
    assert done is not None
    assert os.listdir(folder) == ["one"]
    assert stat.S_IMODE((folder / "one").stat().st_mode) == 0o600
    assert (done.runs, done.tasks) == (3, 8)
    assert done.bytes == (folder / "one").stat().st_size


@pytest.mark.parametrize("kind", ["file", "folder", "link", "dangling link"])
def test_nothing_is_overwritten(here: ReadableStore, tmp_path: Path, kind: str) -> None:
    run, target = fill(here), tmp_path / "one"
    other = tmp_path / "other"
    if kind == "folder":
        target.mkdir()
    elif kind == "file":
        target.write_text("mine")
    else:
        if kind == "link":
            other.write_text("mine")
        target.symlink_to(other)
    with pytest.raises(StoreError, match="exists: give the file another name"):
        exporting.export(here, run, target)
    assert kind not in ("file", "link") or target.read_text() == "mine"
    assert kind != "dangling link" or not other.exists()


def test_nothing_is_overwritten_that_came_meanwhile(tmp_path: Path, file: Path) -> None:
    class Slow(MemoryStore):
        def dump(self, run: int) -> Iterator[AnyRow]:
            file.write_text("mine")
            return super().dump(run)

    store = Slow()
    run = fill(store)
    with pytest.raises(StoreError, match="exists"):
        exporting.export(store, run, file)
    assert file.read_text() == "mine"
    assert os.listdir(tmp_path) == [file.name]


def test_what_cannot_be_exported_leaves_no_file(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    store = a_store("sqlite", tmp_path, "here")
    run = fill(store)
    with pytest.raises(StoreError, match="cannot be written: No such file"):
        exporting.export(store, run, folder / "no" / "one")
    with pytest.raises(UnknownRun):
        exporting.export(store, run._replace(pk=10_000), folder / "one")
    assert exporting.export(store, run, folder / "one", itertools.count().__next__) is None
    next(Path(f"{store.path}.results").rglob("*.bin")).write_bytes(b"changed")
    with pytest.raises(ResultUnreadable, match="damaged"):
        exporting.export(store, run, folder / "one")
    assert os.listdir(folder) == []
    store.close()


def test_an_export_is_of_one_moment(tmp_path: Path) -> None:
    store = a_store("sqlite", tmp_path, "here")
    run = fill(store)
    before = seen(store, run)
    rows = store.dump(run.pk)
    first = next(rows)
    store.write(Writes(tasks=[a_task(run.pk, n) for n in range(50, 60)]))
    store.delete_run(store.children(run.pk)[0].pk)
    assert len([first, *rows]) == len(before)
    store.close()


def test_every_field_is_either_written_or_a_store_s_own() -> None:
    own = {"pk", "root", "engine", "wake_at", "waits_for", "run"}
    for table in capsule.TABLES:
        left = set(table.row._fields) - set(table.fields)
        left -= {"id"} if table.row in (EventRow, ArtifactRow) else set()
        assert left <= own, f"add {left} to the table of asyncflow.capsule: exports would lose it"


# --- files from strangers -------------------------------------------------------------------------


def test_files_that_are_none_of_ours_are_refused(there: ReadableStore, tmp_path: Path) -> None:
    for name, data in {
        "empty": b"",
        "text": b"hello",
        "zip": b"PK\x03\x04" + bytes(100),
        "gzip": gzip.compress(b"hello\n"),
        "json": gzip.compress(b"{}\n"),
        "list": gzip.compress(b"[]\n"),
        "another": gzip.compress(b'{"format": "another", "version": 1}\n'),
        "no version": gzip.compress(b'{"format": "asyncflow run"}\n'),
        "odd version": gzip.compress(b'{"format": "asyncflow run", "version": "1"}\n'),
        "database": b"SQLite format 3\x00" + bytes(4096),
        "empty gzip": gzip.compress(b""),
    }.items():
        (tmp_path / name).write_bytes(data)
        assert "is no exported run" in refused(there, tmp_path / name)


def test_what_is_no_file_is_refused_and_not_waited_for(
    there: ReadableStore, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "is no file" in refused(there, tmp_path / "pipe")
    assert "is no file" in refused(there, tmp_path)
    with pytest.raises(StoreError, match="cannot be read: No such file"):
        importing.load(there, tmp_path / "nothing", now=1.0)


def test_a_newer_format_is_named(there: ReadableStore, file: Path) -> None:
    fill(store := MemoryStore())
    run = store.run("root")
    assert run is not None
    exporting.export(store, run, file)
    told = lines(file)
    newer = write_lines(file, [{**told[0], "version": 2}, *told[1:]])
    assert "newer asyncflow (format 2; this one knows 1)" in refused(there, newer)
    newer = write_lines(file, [told[0], {"run": {**told[1]["run"], "colour": 1}}, *told[2:]])
    assert "newer asyncflow (a run has 'colour')" in refused(there, newer)
    newer = write_lines(file, [*told[:-1], {"hologram": {}}])
    assert "newer asyncflow (it holds 'hologram')" in refused(there, newer)


def test_a_file_that_is_cut_off_anywhere_is_refused(file: Path) -> None:
    store, there = MemoryStore(), MemoryStore()
    run, _ = store.create_run(a_run("root"), [])
    store.write(Writes(tasks=[a_task(run.pk, n) for n in range(1, 30)]))
    exporting.export(store, run, file)
    whole = file.read_bytes()
    for size in range(len(whole)):
        file.write_bytes(whole[:size])
        refused(there, file)
    assert there.run("root") is None


def test_a_byte_that_has_changed_is_found(file: Path) -> None:
    store = MemoryStore()
    run, _ = store.create_run(a_run("root"), [])
    exporting.export(store, run, file)
    whole, found = file.read_bytes(), 0
    for at in range(len(whole)):
        there = MemoryStore()
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        try:
            done = importing.load(there, file, now=1.0)
        except InvalidExport:
            found += 1
            assert there.run("root") is None
        else:
            # Not of what it holds, but of how it is packed, such as the time in the head of gzip.
            assert done is not None
            assert seen(there, done.row) == seen(store, run)
    assert found > len(whole) // 2
    file.write_bytes(whole + whole)
    assert "more after its end" in refused(MemoryStore(), file)


def test_a_check_sum_that_does_not_fit_is_refused(there: ReadableStore, file: Path) -> None:
    store = MemoryStore()
    run, _ = store.create_run(a_run("root"), [])
    exporting.export(store, run, file)
    told = lines(file)
    for end in ({}, {"lines": 2}, None, {**told[-1]["end"], "lines": 99}, 7):
        write_lines(file, told, end={"x": end})
        assert "check sum" in refused(there, file)


def test_a_bomb_is_not_expanded(there: ReadableStore, tmp_path: Path) -> None:
    bomb = tmp_path / "bomb"
    with gzip.open(bomb, "wb") as packed:
        for _ in range(64):
            packed.write(b" " * 1024**2)
    assert "expands to more than 1,000,000 bytes" in refused(there, bomb, max_bytes=1_000_000)
    tracemalloc.start()
    try:
        assert "a line of it is too long" in refused(there, bomb)
        assert tracemalloc.get_traced_memory()[1] < 3 * capsule.MOST_LINE
    finally:
        tracemalloc.stop()


def test_parts_that_never_come_to_an_end_are_refused(
    there: ReadableStore, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = MemoryStore()
    run, _ = store.create_run(a_run("root", result_kind=1, result=BIG), [])
    exporting.export(store, run, file)
    told = lines(file)
    at = first(told, "part")
    for wrong in (
        [*told[:at], {"part": ""}, {"no": ""}, *told[at + 1 :]],
        [*told[:at], {"part": "%"}, *told[at + 1 :]],
        [*told[:at], {"part": 7}, *told[at + 1 :]],
        [*told[:at], *told[at + 1 :]],
        [*told[: at + 1], *told[at:]],
        told[:at],
    ):
        assert "is damaged" in refused(there, write_lines(file, wrong))
    monkeypatch.setattr(importing, "MOST_VALUE", 1000)
    assert "the result of a run makes no sense" in refused(there, write_lines(file, told))


def changed(told: list[Line], kind: str, /, **values: Any) -> list[Line]:
    """The lines, the first of this kind with other values."""
    told = list(told)
    at = first(told, kind)
    told[at] = {kind: {**told[at][kind], **values}}
    return told


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("run", {"id": "../../etc/passwd"}),
        ("run", {"id": "a/b"}),
        ("run", {"id": "A"}),
        ("run", {"id": ""}),
        ("run", {"id": "x" * 65}),
        ("run", {"id": "x\n"}),
        ("run", {"id": ["x"]}),
        ("run", {"id": None}),
        ("run", {"state": "WON"}),
        ("run", {"state": {"b64": "QQ=="}}),
        ("run", {"created_at": 1e300}),
        ("run", {"created_at": -1}),
        ("run", {"created_at": True}),
        ("run", {"created_at": None}),
        ("run", {"parameters": "[1]"}),
        ("run", {"parameters": "{"}),
        ("run", {"parameters": '{"x":' + "[" * 400 + "]" * 400 + "}"}),
        ("run", {"parameters": '{"x":' + "[" * 100_000 + "]" * 100_000 + "}"}),
        ("run", {"parameters": {"b64": "!"}}),
        ("run", {"flow_ref": "no JSON"}),
        ("run", {"tags": "abc"}),
        ("run", {"tags": [1]}),
        ("run", {"ended_by": [2**40]}),
        ("run", {"attempt": 2**70}),
        ("run", {"attempt": 1.5}),
        ("run", {"result_kind": ResultKind.JSON_FILE, "result": "0" * 64}),
        ("run", {"result_kind": 99}),
        ("run", {"result_kind": ResultKind.NONE, "result": "1"}),
        ("run", {"result_kind": ResultKind.JSON, "result": None}),
        ("run", {"result": {"bytes": -1}}),
        ("run", {"result": {"bytes": 2**62}}),
        ("run", {"result": {}}),
        ("run", {"parent": 1}),
        ("run", {"parent_seq": 1}),
        ("task", {"seq": 0}),
        ("task", {"seq": 2**32}),
        ("task", {"identity": "short"}),
        ("task", {"error": "null"}),
        ("task", {"result_kind": ResultKind.PICKLE_FILE}),
        ("task", {"upstream": {"bytes": 3}}),
        ("log", {"time": "now"}),
        ("log", {"message": None}),
        ("attempt", {"error": None}),
        ("message", {"payload": 7}),
        ("event", {"state": "WON"}),
        ("event", {"payload": "{"}),
        ("event", {"epoch": -1}),
        ("run", {"scheduled_at": 1e300}),
        ("mark", {"n": -1}),
        ("artifact", {"key": "../x"}),
        ("artifact", {"key": "a" * 101}),
        ("artifact", {"seq": 0}),
        ("artifact", {"kind": "html"}),
        ("artifact", {"data": "[]"}),
        ("artifact", {"kind": "link", "data": '{"url": "javascript:alert(1)", "text": "x"}'}),
        ("artifact", {"kind": "image", "data": '{"mime": "image/svg+xml", "base64": "PHN2Zz4="}'}),
    ],
)
def test_a_value_that_makes_no_sense_is_refused(
    file: Path, kind: str, values: dict[str, Any]
) -> None:
    store, there = MemoryStore(), MemoryStore()
    exporting.export(store, fill(store), file)
    text = refused(there, write_lines(file, changed(lines(file), kind, **values)))
    assert "nothing of it was imported" in text


def test_runs_that_do_not_belong_together_are_refused(there: ReadableStore, file: Path) -> None:
    store = MemoryStore()
    exporting.export(store, fill(store), file)
    told = lines(file)
    runs = [n for n, line in enumerate(told) if "run" in line and n]
    second = told[runs[1]]["run"]
    for wrong in (
        {**second, "parent": None},
        {**second, "parent": 2},
        {**second, "parent": 3},
        {**second, "id": "root"},
        {**second, "parent_seq": None},
        {**second, "parent_identity": None},
    ):
        broken = [*told[: runs[1]], {"run": wrong}, *told[runs[1] + 1 :]]
        assert "belong together" in refused(there, write_lines(file, broken))
    text = refused(there, write_lines(file, [line for line in told if "run" not in line]))
    assert "is no exported run" in text
    without = [told[0], *(line for line in told[1:] if "run" not in line and "part" not in line)]
    assert "an event belongs to no run" in refused(there, write_lines(file, without))
    assert "no run in it" in refused(there, write_lines(file, [told[0]]))


def test_rows_that_are_there_twice_are_refused(there: ReadableStore, file: Path) -> None:
    store = MemoryStore()
    exporting.export(store, fill(store), file)
    told = lines(file)
    for kind in ("task", "attempt", "mark", "message"):
        at = first(told, kind)
        text = refused(there, write_lines(file, [*told[: at + 1], told[at], *told[at + 1 :]]))
        assert "is there twice" in text


def test_runs_that_are_nested_too_deep_are_refused(
    there: ReadableStore, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importing, "MOST_DEPTH", 1)
    store = MemoryStore()
    exporting.export(store, fill(store), file)
    assert "nested too deep" in refused(there, file)


def test_no_name_in_a_file_becomes_a_path(tmp_path: Path, file: Path) -> None:
    store, there = MemoryStore(), a_store("sqlite", tmp_path / "deep" / "down", "there")
    names = {"name": "../../x", "flow_name": "/etc/x", "idempotency_key": "..\\x"}
    run, _ = store.create_run(a_run("root", result_kind=1, result=BIG, **names), [])
    row = moved(store, run, there, file).row
    assert (row.name, row.flow_name) == ("../../x", "/etc/x")
    made = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    digest = sha256(BIG).hexdigest()
    assert {n for n in made if "deep" not in n} == {file.name}
    assert f"deep/down/there.db.results/{digest[:2]}/{digest}.bin" in made
    there.close()


def test_a_failure_in_the_middle_leaves_nothing_in_the_store(
    here: ReadableStore, there: ReadableStore, file: Path
) -> None:
    run = fill(here)
    before = contents(there)
    rows = [row for row in here.dump(run.pk) if not isinstance(row, RunRow) or row.pk == run.pk]

    def broken() -> Iterator[AnyRow]:
        yield from (row._replace(result=BIG) if isinstance(row, RunRow) else row for row in rows)
        raise InvalidExport("in the middle")

    keep: Callable[..., MarkRow] = lambda mark, _: mark  # noqa: E731 - as it is
    with pytest.raises(InvalidExport, match="in the middle"):
        there.load(broken(), keep)
    assert contents(there) == before


def test_an_import_that_nobody_wants_any_more_leaves_nothing(
    here: ReadableStore, there: ReadableStore, file: Path
) -> None:
    exporting.export(here, fill(here), file)
    before = contents(there)
    steps = iter([False] * 10)
    assert importing.load(there, file, now=1.0, stopped=lambda: next(steps, True)) is None
    assert contents(there) == before


@pytest.mark.parametrize("seed", range(100))
def test_whatever_a_file_holds_it_is_refused_or_can_be_read(
    tmp_path: Path, file: Path, seed: int
) -> None:
    chance = random.Random(seed)
    store, there = MemoryStore(), a_store("sqlite" if seed % 4 else "memory", tmp_path, "there")
    exporting.export(store, fill(store), file)
    told = lines(file)[:-1]
    odd: list[Any] = [
        None, True, 0, -1, 2**31, 2**63, 1.5, 1e18, "", "x", "{}", "[]", "null", "\x00", [], [1],
        {}, {"b64": "AAAA"}, {"bytes": 5}, [[]], "COMPLETED", "#00000000 1", 3, "\u202e",
    ]  # fmt: skip
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(1, len(told))
        match chance.randrange(6):
            case 0:
                del told[at]
            case 1:
                told.insert(chance.randrange(1, len(told)), told[at])
            case _:
                kind, values = next(iter(told[at].items()))
                if isinstance(values, dict):
                    name = chance.choice(list(values) or ["x"])
                    told[at] = {kind: {**values, name: chance.choice(odd)}}
    write_lines(file, told)
    before = contents(there)
    try:
        done = importing.load(there, file, now=100.0)
    except (InvalidExport, RunExists):
        assert contents(there) == before
        there.close()
        return
    assert done is not None
    assert len(seen(there, done.row)) >= 1
    assert exporting.export(there, done.row, tmp_path / "again") is not None
    assert there.copy_run(done.row.pk, done.row._replace(pk=0, id="fork", root=0,
                          idempotency_key=None), [], ALL).pk  # fmt: skip
    there.close()


# --- size -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [500, 5_000])
def test_memory_does_not_grow_with_the_run(tmp_path: Path, file: Path, number: int) -> None:
    here = a_store("sqlite", tmp_path, "here")
    there = a_store("sqlite", tmp_path, "there")
    run, _ = here.create_run(a_run("root"), [])
    here.write(Writes(tasks=[a_task(run.pk, 1)]))
    moved(here, run, there, tmp_path / "first")  # what is loaded once
    there.delete_run(1)
    text = codec.seal(codec.encode("x" * 1_000))
    for at in range(2, number, 500):
        rows = [a_task(run.pk, n, result=text) for n in range(at, at + 500)]
        here.write(Writes(tasks=rows))
    tracemalloc.start()
    try:
        done = moved(here, run, there, file)
        assert tracemalloc.get_traced_memory()[1] < 3 * 1024**2
    finally:
        tracemalloc.stop()
    assert done.tasks >= number
    assert there.calls(done.row.pk)[-1].result == text
    here.close()
    there.close()
