"""What all tests share."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from asyncflow import Engine, MemoryStore, SqliteStore


@pytest.fixture(autouse=True)
def _own_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test touches the default database of the machine."""
    monkeypatch.setenv("ASYNCFLOW_DATABASE", str(tmp_path / "default.db"))


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    """An engine whose state is in memory."""
    async with Engine(MemoryStore(), seed=1) as opened:
        yield opened


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.db"


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, path: Path) -> MemoryStore | SqliteStore:
    """A store that outlives the engines that use it."""
    return MemoryStore() if request.param == "memory" else SqliteStore(path)
