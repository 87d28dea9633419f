"""A lock is held exactly as long as the process that took it lives."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import asyncflow
from asyncflow.errors import StoreError
from asyncflow.ownership import EngineLock, is_alive

posix = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")

TIMEOUT = 30

HOLD = """
import sys
from pathlib import Path
from asyncflow.ownership import EngineLock
lock = EngineLock(Path(sys.argv[1]), 1)
print("held", flush=True)
sys.stdin.read()
"""

FORK = """
import os, sys
from pathlib import Path
from asyncflow.ownership import EngineLock
lock = EngineLock(Path(sys.argv[1]), 1)
if os.fork() == 0:
    print("held", os.getpid(), flush=True)
    sys.stdin.read()
    print("ended", flush=True)
    os._exit(0)
sys.stdin.read()
"""

FORK_AND_RELEASE = """
import os, sys
from pathlib import Path
from asyncflow.ownership import EngineLock
lock = EngineLock(Path(sys.argv[1]), 1)
pid = os.fork()
if pid == 0:
    lock.release()
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
print("released", flush=True)
sys.stdin.read()
"""

SPAWN = """
import subprocess, sys
from pathlib import Path
from asyncflow.ownership import EngineLock
CHILD = "import sys; print('held', flush=True); sys.stdin.read()"
lock = EngineLock(Path(sys.argv[1]), 1)
subprocess.Popen([sys.executable, "-c", CHILD], close_fds=False)
sys.stdin.read()
"""


@contextlib.contextmanager
def process(script: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that has taken lock 1 of *folder*, and lives until its input ends."""
    env = {**os.environ, "PYTHONPATH": str(Path(asyncflow.__file__).parents[1])}
    child = subprocess.Popen(
        [sys.executable, "-c", script, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=env,
    )
    try:
        yield child
    finally:
        child.kill()
        child.communicate(timeout=TIMEOUT)


def line(child: subprocess.Popen[str]) -> list[str]:
    assert child.stdout is not None
    return child.stdout.readline().split()


def kill(child: subprocess.Popen[str]) -> None:
    child.send_signal(signal.SIGKILL)
    assert child.wait(TIMEOUT) == -signal.SIGKILL


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state.db.locks"


def test_an_engine_that_never_was_is_not_alive(folder: Path) -> None:
    assert not is_alive(folder, 1)
    assert not folder.exists()


def test_an_engine_is_alive_until_it_releases_its_lock(folder: Path) -> None:
    lock = EngineLock(folder, 1)
    assert is_alive(folder, 1)
    assert is_alive(folder, 1)
    assert not is_alive(folder, 2)
    lock.release()
    assert not is_alive(folder, 1)
    assert os.listdir(folder) == []


def test_a_lock_is_released_twice_without_harm(folder: Path) -> None:
    first = EngineLock(folder, 1)
    first.release()
    again = EngineLock(folder, 1)
    first.release()
    first.drop()
    assert is_alive(folder, 1)
    again.release()


def test_each_engine_has_a_lock_of_its_own(folder: Path) -> None:
    locks = {n: EngineLock(folder, n) for n in (1, 2, 3)}
    locks[2].release()
    assert [is_alive(folder, n) for n in locks] == [True, False, True]
    for lock in locks.values():
        lock.release()


def test_a_lock_that_is_held_is_not_taken_a_second_time(folder: Path) -> None:
    lock = EngineLock(folder, 1)
    with pytest.raises(RuntimeError, match="is held already"):
        EngineLock(folder, 1)
    assert is_alive(folder, 1)
    lock.release()


def test_a_refused_lock_leaves_no_descriptor_open(folder: Path) -> None:
    lock = EngineLock(folder, 1)
    before = len(os.listdir("/dev/fd"))
    for _ in range(5):
        with pytest.raises(RuntimeError):
            EngineLock(folder, 1)
        assert is_alive(folder, 1)
    assert len(os.listdir("/dev/fd")) == before
    lock.release()


def test_asking_who_is_alive_does_not_touch_the_lock_of_the_dead(folder: Path) -> None:
    EngineLock(folder, 1).drop()
    assert os.listdir(folder) == ["1.lock"]
    assert not is_alive(folder, 1)
    assert os.listdir(folder) == ["1.lock"]
    EngineLock(folder, 1).release()


@posix
def test_two_who_ask_at_once_do_not_take_each_other_for_the_owner(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    EngineLock(folder, 1).drop()
    answers: list[bool] = []
    close = os.close

    def asked_again_before_the_first_is_done(fd: int) -> None:
        monkeypatch.setattr(os, "close", close)
        answers.append(is_alive(folder, 1))
        close(fd)

    monkeypatch.setattr(os, "close", asked_again_before_the_first_is_done)
    answers.append(is_alive(folder, 1))
    assert answers == [False, False]


def test_only_the_owner_of_the_files_can_read_the_locks(folder: Path) -> None:
    umask = os.umask(0)
    try:
        lock = EngineLock(folder, 1)
    finally:
        os.umask(umask)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "1.lock").stat().st_mode & 0o777 == 0o600
    lock.release()


def test_a_lock_that_is_forgotten_is_held_all_the_same(folder: Path) -> None:
    lock = EngineLock(folder, 1)
    fd = lock._fd
    assert fd is not None
    del lock
    gc.collect()
    assert is_alive(folder, 1)
    os.close(fd)
    assert not is_alive(folder, 1)


def test_a_process_holds_its_lock_while_it_lives_and_loses_it_when_it_is_killed(
    folder: Path,
) -> None:
    with process(HOLD, folder) as child:
        assert line(child) == ["held"]
        assert is_alive(folder, 1)
        with pytest.raises(RuntimeError):
            EngineLock(folder, 1)
        kill(child)
        assert not is_alive(folder, 1)
        assert (folder / "1.lock").exists()
        EngineLock(folder, 1).release()


@posix
def test_a_stopped_process_still_holds_its_lock(folder: Path) -> None:
    with process(HOLD, folder) as child:
        assert line(child) == ["held"]
        child.send_signal(signal.SIGSTOP)
        os.waitpid(child.pid, os.WUNTRACED)
        assert is_alive(folder, 1)
        kill(child)
        assert not is_alive(folder, 1)


def test_a_process_that_ends_in_order_loses_its_lock(folder: Path) -> None:
    with process(HOLD, folder) as child:
        assert line(child) == ["held"]
        child.communicate(timeout=TIMEOUT)
        assert child.returncode == 0
        assert not is_alive(folder, 1)


@posix
def test_a_forked_child_does_not_hold_the_lock_of_its_dead_parent(folder: Path) -> None:
    with process(FORK, folder) as child:
        word, pid = line(child)
        assert word == "held"
        assert is_alive(folder, 1)
        kill(child)
        os.kill(int(pid), 0)
        assert not is_alive(folder, 1)
        assert child.stdin is not None
        child.stdin.close()
        assert line(child) == ["ended"]
        child.stdin = None


@posix
def test_a_forked_child_that_releases_its_copy_leaves_the_lock_to_its_parent(
    folder: Path,
) -> None:
    with process(FORK_AND_RELEASE, folder) as child:
        assert line(child) == ["released"]
        assert is_alive(folder, 1)
        assert (folder / "1.lock").exists()


@posix
def test_a_program_that_an_engine_started_does_not_hold_its_lock(folder: Path) -> None:
    with process(SPAWN, folder) as child:
        assert line(child) == ["held"]
        assert is_alive(folder, 1)
        kill(child)
        assert not is_alive(folder, 1)


def test_an_engine_whose_lock_cannot_be_asked_is_not_taken_for_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    assert not is_alive(tmp_path, 1)
    (tmp_path / "1.lock").touch()
    monkeypatch.setattr(os, "open", refused)
    assert is_alive(tmp_path, 1)


def test_a_lock_that_cannot_be_made_is_an_error_of_the_store(tmp_path: Path) -> None:
    (tmp_path / "locks").touch()
    with pytest.raises(StoreError, match=r"locks/1\.lock of a new engine cannot be made"):
        EngineLock(tmp_path / "locks", 1)
