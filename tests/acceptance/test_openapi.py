"""The REST API does what its OpenAPI document says, whatever it is asked."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from pathlib import Path

import pytest

from asyncflow import Engine, flow, task
from asyncflow.server.app import serve_app

CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,"
    "response_schema_conformance"
)


@task
async def work(n: int) -> int:
    return n


@flow
async def generated(n: int = 2) -> list[int]:
    return await work.map(range(n))


@pytest.mark.skipif(
    importlib.util.find_spec("schemathesis") is None, reason="schemathesis is not installed"
)
@pytest.mark.parametrize("embedded", [True, False], ids=["with code", "without code"])
async def test_no_question_breaks_the_api_or_its_document(
    embedded: bool, path: Path, tmp_path: Path
) -> None:
    async with Engine(path) as runs, Engine(path) as other:
        engine = runs if embedded else other
        await (await runs.submit(generated)).wait()
        await runs.deploy(generated, "dep", cron="0 3 * * *", overlap="allow")
        await runs.recover()
        runner, url = await serve_app(engine, "127.0.0.1", 0, None, embedded=embedded)
        base, _, token = url.partition("/#token=")
        asking = await asyncio.create_subprocess_exec(
            *[sys.executable, "-m", "schemathesis.cli", "run", f"{base}/api/openapi.json"],
            *["--url", base, "-H", f"Authorization: Bearer {token}", "-H", "X-Asyncflow: 1"],
            *["--checks", CHECKS, "-n", "10", "--phases", "coverage,fuzzing", "--seed", "1"],
            # A longer line than a server of HTTP takes is no question to an API.
            *["--suppress-health-check", "all", "--no-color", "--generation-codec", "ascii"],
            cwd=tmp_path,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        out, _ = await asyncio.wait_for(asking.communicate(), 300)
        await runner.cleanup()
    assert asking.returncode == 0, out.decode()[-5000:]
    assert b" passed" in out
