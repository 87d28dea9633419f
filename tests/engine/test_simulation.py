"""Flows under seeded chance, crashes and faults; and broken engines that this must catch."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import simulation

from asyncflow import Engine, flow, sleep, task, testing
from asyncflow.calls import Calls, History
from asyncflow.machine import Machine

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("first", range(0, 1000, 100))
def test_a_mixed_flow_ends_as_uninterrupted_whatever_happens(first: int) -> None:
    found = testing.simulate(simulation.mixed, seeds=range(first, first + 100))
    found.check()
    assert found.trials == 100
    assert found.crashes > 30
    assert found.faults > 5


def test_a_storage_that_fails_for_a_child_run_does_not_fail_the_flow() -> None:
    testing.simulate(simulation.mixed, seeds=[651, 623]).check()


def test_a_flow_that_fails_fails_alike() -> None:
    found = testing.simulate(simulation.doomed, seeds=100)
    found.check()
    assert found.expected == "Failed: ValueError: 3"


@pytest.mark.parametrize("which", ["mixed", "doomed"])
def test_a_crash_at_any_checkpoint_changes_nothing(which: str) -> None:
    found = testing.crash_everywhere(getattr(simulation, which))
    found.check()
    assert found.trials == found.crashes > 10


def test_what_has_been_simulated_leaves_memory() -> None:
    simulated: list[weakref.ref[Engine]] = []
    made = testing._SimEngine.__init__

    def noted(self: Any, *args: Any) -> None:
        made(self, *args)
        simulated.append(weakref.ref(self))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(testing._SimEngine, "__init__", noted)
        testing.simulate(simulation.mixed, seeds=40).check()
    gc.collect()
    assert len(simulated) > 60
    assert sum(engine() is not None for engine in simulated) <= 1


def test_a_seed_is_the_same_in_every_process() -> None:
    code = "import simulation as s; print(s.simulate(s.mixed, seeds=15).trace)"
    path = os.pathsep.join([str(ROOT / "tests"), *sys.path])
    traces = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "77")
    }
    assert traces == {f"{testing.simulate(simulation.mixed, seeds=15).trace}\n"}


# --- engines that are broken on purpose -----------------------------------------------------------


def test_an_engine_that_forgets_completed_calls_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    take = History.take

    def forgetful(self: History, identity: bytes, *args: Any) -> Any:
        row = take(self, identity, *args)
        return None if row is not None and row.task == "parse" else row

    monkeypatch.setattr(History, "take", forgetful)
    found = testing.simulate(simulation.mixed, seeds=30)
    assert any("ran again" in p for trial in found.failed for p in trial.problems)
    with pytest.raises(testing.Broken, match=r"repeat it with seeds=\["):
        found.check()


def test_an_engine_that_tells_calls_apart_by_order_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def by_order(run: Any, spec: Any, parent: Any, *_inputs: Any) -> bytes:
        return b"12345678\0" + spec.name.encode()

    monkeypatch.setattr(Calls, "_first_identity", staticmethod(by_order))
    assert testing.simulate(simulation.mixed, seeds=30).failed


def test_an_engine_that_loses_slots_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(self: Machine, call: Any) -> None:
        call.holding = False

    monkeypatch.setattr(Machine, "_free_slots", lost)
    monkeypatch.setattr(testing, "PATIENCE", 600.0)
    found = testing.simulate(simulation.mixed, seeds=3)
    assert any("stuck" in p or "waits" in p for trial in found.failed for p in trial.problems)


# --- virtual time ---------------------------------------------------------------------------------


def test_a_day_takes_no_time() -> None:
    @task(retries=3, retry_delay_seconds=3600, retry_jitter_factor=0)
    async def patient() -> float:
        if len(tries) < 3:
            tries.append(asyncio.get_running_loop().time())
            raise OSError
        return asyncio.get_running_loop().time()

    tries: list[float] = []

    @flow
    async def main() -> float:
        await sleep(86_400)
        return await patient()

    async def go() -> float:
        async with testing.engine() as engine:
            return float(await engine.run(main))

    assert testing.run(go()) == pytest.approx(86_400 + 3 * 3600, abs=1)


def test_a_wait_without_end_is_told() -> None:
    async def go() -> None:
        await asyncio.Event().wait()

    with pytest.raises(testing.Deadlock, match="nothing is left that could happen"):
        testing.run(go())


async def test_an_engine_for_tests_heeds_no_configuration(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ASYNCFLOW_DATABASE", str(tmp_path / "untouched.db"))
    for _ in range(20):
        async with testing.engine() as engine:
            assert isinstance(engine, Engine)
            assert await engine.run(_one) == 1
    assert list(tmp_path.iterdir()) == []


@flow
async def _one() -> int:
    return 1
