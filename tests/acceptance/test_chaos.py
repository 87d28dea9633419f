"""Random kills of a mixed flow (see `tests/chaos.py`; 200 of them by `python -m tests.chaos`)."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

SEED = 20


def chaos() -> Any:
    file = Path(__file__).parents[1] / "chaos.py"
    spec = importlib.util.spec_from_file_location("chaos_of_tests", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_nothing_is_lost_repeated_or_stuck_over_twelve_kills(tmp_path: Path) -> None:
    trial = chaos().Chaos(tmp_path, SEED)
    for _ in range(12):
        trial.life()
    report = trial.finish()
    assert report, f"seed {SEED}: {report}: {report.lost} {report.repeated}"
    assert report.runs >= 2
    assert report.kills == 12
