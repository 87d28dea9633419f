"""Engines, lists and the command line on one file (a minute of it: `python -m tests.shared`)."""

from __future__ import annotations

from pathlib import Path

from tests.shared import share


def test_nobody_who_shares_a_database_gets_an_error(tmp_path: Path) -> None:
    report = share(tmp_path, seconds=1.5, rate=500)
    assert report, str(report)
    assert all(account.count for account in report.accounts), str(report)
