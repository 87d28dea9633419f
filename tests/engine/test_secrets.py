"""Secrets reach nothing that is stored, however deep they stand in a parameter."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydantic
import pytest

from asyncflow import Engine, Flow, InvalidParameters, ResultNotStored, flow, task

SECRET = "hunter2-very-secret"


class Login(pydantic.BaseModel):
    user: str = "me"
    password: pydantic.SecretStr


@dataclass
class Account:
    key: pydantic.SecretBytes


GATE: dict[str, bool] = {}
SEEN: list[str] = []


@task
async def use(secret: str) -> int:
    logging.getLogger("app").warning("using %s", secret)
    return len(secret)


@task
async def header(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


async def body(secret: str) -> int:
    SEEN.append(secret)
    await use(secret)
    if GATE.get("shut"):
        raise ValueError(f"wrong password {secret}")
    return 1


@flow
async def plain(given: pydantic.SecretStr) -> int:
    return await body(given.get_secret_value())


@flow
async def of_model(given: Login) -> int:
    return await body(given.password.get_secret_value())


@flow
async def of_list(given: list[pydantic.SecretStr]) -> int:
    return await body(given[0].get_secret_value())


@flow
async def of_dict(given: dict[str, Login]) -> int:
    return await body(given["a"].password.get_secret_value())


@flow
async def of_dataclass(given: Account) -> int:
    return await body(given.key.get_secret_value().decode())


@flow
async def beside(given: pydantic.SecretStr, url: str) -> int:
    return await body(url.partition(":")[0])


@flow
async def returns(given: pydantic.SecretStr) -> dict[str, str]:
    return await header(given.get_secret_value())


def kept(path: Path) -> bytes:
    return b"".join(p.read_bytes() for p in path.parent.rglob("*") if p.is_file())


@pytest.fixture(autouse=True)
def _gate() -> None:
    GATE["shut"] = True
    SEEN.clear()


@pytest.mark.parametrize(
    ("called", "make", "shown"),
    [
        (plain, lambda: SECRET, "**********"),
        (of_model, lambda: {"password": SECRET}, {"user": "me", "password": "**********"}),
        (of_list, lambda: [SECRET, "other-secret"], ["**********", "**********"]),
        (of_dict, lambda: {"a": {"password": SECRET}}, None),
        (of_dataclass, lambda: Account(pydantic.SecretBytes(SECRET.encode())), None),
    ],
    ids=["plain", "model", "list", "dict", "dataclass"],
)
async def test_a_secret_in_a_parameter_is_not_stored_and_is_asked_for_again(
    path: Path, called: Flow[..., Any], make: Callable[[], Any], shown: Any
) -> None:
    async with Engine(path) as engine:
        run = await engine.submit(called, make())
        assert (await run.wait()).is_failed()
        stored = (await engine.runs())[0]
        if shown is not None:
            assert stored.parameters["given"] == shown
    assert SECRET.encode() not in kept(path)
    GATE["shut"] = False
    async with Engine(path) as engine:
        with pytest.raises(InvalidParameters, match="holds a secret and was not stored: give it"):
            await engine.resume(run.id)
        again = await engine.resume(run.id, parameters={"given": make()})
        assert await again == 1
    assert SEEN == [SECRET, SECRET]
    assert SECRET.encode() not in kept(path)


async def test_a_parameter_in_which_the_text_of_a_secret_stands_is_not_stored_either(
    path: Path,
) -> None:
    GATE["shut"] = False
    async with Engine(path) as engine:
        run = await engine.submit(beside, SECRET, f"https://me:{SECRET}@host")
        await run
        (stored,) = await engine.runs()
        assert stored.parameters == {"given": "**********", "url": "https://me:**********@host"}
    assert SECRET.encode() not in kept(path)


async def test_a_result_that_holds_a_secret_is_marked_as_not_stored(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with Engine(path) as engine:
        run = await engine.submit(returns, SECRET)
        assert await run == {"Authorization": f"Bearer {SECRET}"}
        (stored,) = await engine.task_runs(run.id)
        with pytest.raises(ResultNotStored):
            stored.state.result()
        with pytest.raises(ResultNotStored):
            (await engine.runs())[0].state.result()
    assert SECRET.encode() not in kept(path)
    told = [m for m in caplog.messages if "holds a secret and is not stored" in m]
    assert len(told) == 2


async def test_a_cached_result_that_holds_a_secret_is_not_stored(path: Path) -> None:
    from asyncflow import INPUTS

    made: list[int] = []

    @task(cache_policy=INPUTS)
    async def token(secret: str, n: int) -> str:
        made.append(n)
        return f"{secret}-{n}"

    @flow
    async def main(given: pydantic.SecretStr) -> str:
        return await token(given.get_secret_value(), 1)

    async with Engine(path) as engine:
        await engine.run(main, SECRET)
        await engine.run(main, SECRET)
    assert made == [1, 1]
    assert SECRET.encode() not in kept(path)
