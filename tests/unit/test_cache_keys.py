"""Keys of cached results: the same everywhere and always, and different where it matters."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from decimal import Decimal
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from asyncflow import (
    FLOW_PARAMETERS,
    INPUTS,
    NO_CACHE,
    RUN_ID,
    TASK_SOURCE,
    CacheKeyFn,
    InvalidCacheKey,
)
from asyncflow.caching import CachePolicy, Caching, source

GOLDEN = Path(__file__).parent / "golden" / "cache_keys.json"


def body(x: Any, y: Any = 1) -> Any:
    return x  # what this does counts only with TASK_SOURCE


def by_x(context: Any, parameters: dict[str, Any]) -> str:
    return f"x={parameters['x']}"


#: By name: a policy, and the arguments of the call.
CASES: dict[str, tuple[CachePolicy, dict[str, Any]]] = {
    "nothing but the task": (INPUTS, {}),
    "plain inputs": (INPUTS, {"x": 1, "y": "a"}),
    "inputs in another order": (INPUTS, {"y": "a", "x": 1}),
    "nested inputs": (INPUTS, {"x": {"b": [1, {2}], "a": (None, 1.5)}, "y": Decimal("1.10")}),
    "one input left out": (INPUTS - "y", {"x": 1, "y": "a"}),
    "source": (TASK_SOURCE, {"x": 1}),
    "run": (RUN_ID, {"x": 1}),
    "parameters of the flow": (FLOW_PARAMETERS, {"x": 1}),
    "all of them": (INPUTS + TASK_SOURCE + RUN_ID + FLOW_PARAMETERS, {"x": 1}),
    "a function": (CacheKeyFn(by_x), {"x": 1}),
    "a function and inputs": (CacheKeyFn(by_x) + INPUTS, {"x": 1}),
}
#: Those that say the same.
SAME = {("plain inputs", "inputs in another order")}


def key(policy: CachePolicy, arguments: dict[str, Any], **changes: Any) -> bytes | None:
    run = SimpleNamespace(id="run 1", parameters={"day": "monday", "n": 3})
    spec = SimpleNamespace(name="body", key="module:body", fn=body, task=None)
    for name, value in changes.items():
        setattr(run if hasattr(run, name) else spec, name, value)
    caching = Caching(policy=policy)
    return caching.key(spec, SimpleNamespace(run=run), arguments, lambda: None)


def keys() -> dict[str, str]:
    made = {name: key(policy, arguments) for name, (policy, arguments) in CASES.items()}
    return {name: value.hex() for name, value in made.items() if value is not None}


def test_keys_are_those_of_the_golden_file() -> None:
    assert keys() == json.loads(GOLDEN.read_text())


@pytest.mark.parametrize("seed", ["0", "1", "4242"])
def test_keys_are_the_same_in_every_process(seed: str) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import json, unit.test_cache_keys as t; print(json.dumps(t.keys()))",
        ],
        env={
            **os.environ,
            "PYTHONHASHSEED": seed,
            "PYTHONPATH": os.pathsep.join(map(str, Path(__file__).parents[1:3])),
        },
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert json.loads(done.stdout) == json.loads(GOLDEN.read_text())


@pytest.mark.parametrize(("one", "other"), list(combinations(CASES, 2)))
def test_policies_and_inputs_that_differ_have_keys_that_differ(one: str, other: str) -> None:
    equal = key(*CASES[one]) == key(*CASES[other])
    assert equal is ((one, other) in SAME)


def test_no_input_stands_in_a_key_as_it_is() -> None:
    made = key(INPUTS, {"x": "password"})
    assert made is not None
    assert b"password" not in made


@pytest.mark.parametrize(
    ("policy", "change", "counts"),
    [
        (INPUTS, {"id": "run 2"}, False),
        (RUN_ID, {"id": "run 2"}, True),
        (INPUTS, {"parameters": {}}, False),
        (FLOW_PARAMETERS, {"parameters": {}}, True),
        (FLOW_PARAMETERS - "n", {"parameters": {"day": "monday", "n": 4}}, False),
        (FLOW_PARAMETERS - "n", {"parameters": {"day": "friday", "n": 3}}, True),
        (INPUTS, {"fn": by_x}, False),
        (TASK_SOURCE, {"fn": by_x}, True),
        (INPUTS, {"key": "module:other"}, True),
        (CacheKeyFn(by_x), {"key": "module:other"}, False),
        (CacheKeyFn(by_x) + INPUTS, {"key": "module:other"}, True),
    ],
)
def test_what_a_policy_names_counts_and_nothing_else(
    policy: CachePolicy, change: dict[str, Any], counts: bool
) -> None:
    assert (key(policy, {"x": 1}) != key(policy, {"x": 1}, **change)) is counts


def test_a_function_that_gives_none_means_no_key() -> None:
    assert key(CacheKeyFn(lambda context, parameters: None) + INPUTS, {"x": 1}) is None


def test_the_order_in_which_policies_are_put_together_does_not_count() -> None:
    assert INPUTS + RUN_ID == RUN_ID + INPUTS
    assert (INPUTS + RUN_ID) - "x" == RUN_ID + (INPUTS - "x")
    assert INPUTS - "x" - "y" == INPUTS - "y" - "x"


def test_no_cache_adds_nothing() -> None:
    assert NO_CACHE + INPUTS == INPUTS
    assert not NO_CACHE
    assert INPUTS


def test_what_one_policy_leaves_out_and_another_counts_does_count() -> None:
    assert (INPUTS - "x") + INPUTS == INPUTS
    assert (INPUTS - "x" - "y") + (INPUTS - "x") == INPUTS - "x"


def test_a_policy_shows_itself_as_it_is_written() -> None:
    policy = (INPUTS - "b" - "a") + TASK_SOURCE + RUN_ID + FLOW_PARAMETERS + CacheKeyFn(by_x)
    assert repr(policy) == (
        "(INPUTS - 'a' - 'b') + TASK_SOURCE + RUN_ID + FLOW_PARAMETERS + CacheKeyFn(by_x)"
    )
    assert repr(NO_CACHE) == "NO_CACHE"


def test_only_policies_can_be_added() -> None:
    with pytest.raises(TypeError):
        _ = INPUTS + 1  # type: ignore[operator] # wrong on purpose
    with pytest.raises(TypeError):
        _ = INPUTS - 1  # type: ignore[operator] # wrong on purpose


def decorated(n: int) -> Any:
    def with_(fn: Any) -> Any:
        return fn

    return with_


def test_the_source_is_that_of_the_function_without_its_decorators() -> None:
    if True:

        @decorated(1)
        @decorated(2)
        def one(x: int) -> int:
            # a comment
            return x

    assert source("one", one) == ("def one(x: int) -> int:\n    # a comment\n    return x")


def test_an_object_that_is_called_has_the_source_of_its_call() -> None:
    class Called:
        def __call__(self) -> None:
            return

    assert source("it", Called()).startswith("def __call__(self)")


def test_a_function_without_a_source_says_so() -> None:
    space: dict[str, Any] = {}
    exec("def typed(): ...", space)
    with pytest.raises(InvalidCacheKey, match="the source of its function cannot be read"):
        source("typed", space["typed"])
