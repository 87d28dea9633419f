"""The disk below the store fails, and the power goes: what is said, and what is there then."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from asyncflow.errors import StoreError
from asyncflow.store.sqlite import SqliteStore
from tests.faultyfiles import Disk, lay_out, why_not
from tests.power import (
    INLINE_LIMIT,
    STEPS,
    Contents,
    Cuts,
    Report,
    contents,
    files,
    history,
    is_sound,
    opened,
)

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())

#: Power cuts at random points, of each durability.
SEEDS = 300


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[Contents]:
    return history(tmp_path_factory.mktemp("expected"))


# --- an operation fails ---------------------------------------------------------------------------


def found(disk: Disk, folder: Path, *, keep: bool) -> Contents:
    """What another process finds after this one has died, or (not keep) the power with it."""
    lay_out(disk.found(keep=keep), folder)
    store = opened(folder)
    try:
        assert is_sound(store)
        for name in files(store):
            store.load_file(name)
        return contents(store)
    finally:
        store.close()


class Scan:
    """One history in which the k-th operation of the disk fails.

    Args:
        expected: what is in the store after each step when nothing fails.
        new: only a database that is not there yet is opened; else one is there, and used.
    """

    def __init__(
        self, folder: Path, k: int, *, for_good: bool, expected: list[Contents], new: bool
    ) -> None:
        self.folder = folder
        self.k = k
        self.for_good = for_good
        self.expected = expected[:1] if new else expected
        if not new:
            shutil.copytree(folder / "start", folder / f"{k}")
        # Once an error of the disk and once a disk that is full, in turn.
        self.disk = Disk(folder / f"{k}", fails=k, full=(k + for_good) % 2 == 0, for_good=for_good)
        self.store = SqliteStore(
            self.disk.folder / "new" / "state.db", inline_limit=INLINE_LIMIT, busy_timeout=0.1
        )

    def run(self) -> bool:
        """Whether something failed."""
        with self.disk:
            try:
                self.go()
            finally:
                self.store.close()
            # A sync that failed has lost what it was to keep. Who tries again on the same
            # connection writes it again; who opens the file anew reads it, and cannot know.
            last = found(self.disk, self.folder / f"{self.k}-end", keep=self.for_good)
            assert last == self.expected[-1]
        return bool(self.disk.failed)

    def go(self) -> None:
        if not self.does(self.open):
            self.disk.heal()
            self.open(self.store)
            assert contents(self.store) == self.expected[0]
        for n, step in enumerate(STEPS[: len(self.expected) - 1], 1):
            if not self.does(step):
                self.outcome_unknown(n)
                if contents(self.store) != self.expected[n]:
                    step(self.store)
                assert contents(self.store) == self.expected[n]
        # A file may be left over, of a transaction that was not, but none may be missing.
        assert all("belong to no run" in problem for problem in self.store.check())

    def open(self, store: SqliteStore) -> None:
        store.open("full")

    def does(self, step: Callable[[SqliteStore], None]) -> bool:
        """Whether a step succeeds. It must not if an operation of the disk failed."""
        failed = len(self.disk.failed)
        try:
            step(self.store)
        except StoreError:
            assert len(self.disk.failed) > failed, "it fails though the disk does not"
            return False
        assert len(self.disk.failed) == failed, "swallowed"
        return True

    def outcome_unknown(self, n: int) -> None:
        """Step n failed: it is there as a whole, or not at all, and all before it is."""
        possible = (self.expected[n - 1], self.expected[n])
        assert contents(self.store) in possible
        assert is_sound(self.store)
        assert found(self.disk, self.folder / f"{self.k}-then", keep=True) in possible
        if self.for_good:
            self.store.close()
            self.disk.heal()
            self.open(self.store)
            assert contents(self.store) in possible


@pytest.mark.parametrize("for_good", [False, True], ids=["once", "for good"])
@pytest.mark.parametrize("new", [True, False], ids=["new", "used"])
def test_whichever_operation_of_the_disk_fails_it_is_said_and_nothing_acknowledged_is_lost(
    tmp_path: Path, expected: list[Contents], for_good: bool, new: bool
) -> None:
    if not new:
        opened(tmp_path / "start").close()
    for k in itertools.count(1):
        scan = Scan(tmp_path, k, for_good=for_good, expected=expected, new=new)
        try:
            if not scan.run():
                break
        except BaseException as error:
            error.add_note(f"k={k}: {scan.disk.failed}")
            raise
    assert k > (20 if new else 200)


def test_a_disk_on_which_there_can_be_no_write_ahead_log_is_refused(tmp_path: Path) -> None:
    with Disk(tmp_path / "disk", shares_memory=False) as disk:
        store = SqliteStore(disk.folder / "state.db")
        with pytest.raises(StoreError, match=r"cannot keep a write-ahead log .* a disk of this"):
            store.open("full")


# --- the power goes -------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["full", "strict"])
def cuts(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Cuts:
    return Cuts(tmp_path_factory.mktemp(request.param), request.param)


def test_a_power_cut_that_drops_the_unsynced_leaves_what_is_promised(cuts: Cuts) -> None:
    report = Report()
    cuts.each(report)
    assert report.problems == []
    assert report.cuts > 200


@pytest.mark.parametrize("durability", ["full", "strict"])
def test_a_power_cut_while_a_database_is_made_leaves_one_that_opens(
    tmp_path: Path, durability: str
) -> None:
    report = Report()
    Cuts(tmp_path, durability, new=True).each(report)
    assert report.problems == []
    assert report.cuts > 20


def test_a_power_cut_that_keeps_drops_and_tears_leaves_what_is_promised(cuts: Cuts) -> None:
    report = Report()
    cuts.some(range(SEEDS), report)
    assert report.problems == []
    assert report.cuts == SEEDS


def test_without_syncs_the_model_of_a_power_cut_loses_what_was_acknowledged(tmp_path: Path) -> None:
    """The check is checked: what `strict` may lose, it sees."""
    cuts, report = Cuts(tmp_path, "strict"), Report()
    cuts.durability = "full"
    cuts.some(range(50), report)
    assert len(report.problems) > 10
