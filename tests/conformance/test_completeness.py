"""The suite forgets nothing: neither a method of the port nor a promise that an engine may decline."""

from __future__ import annotations

import inspect
import re

import pytest

from hermitcrab.containers.engine import Engine
from hermitcrab.model.container import PROMISES, STRICT_PROMISES
from hermitcrab.testing import (
    engine_conformance,
    engine_conformance_calls,
    engine_conformance_inside,
    engine_conformance_strict,
    engine_harness,
)

SUITE = "".join(
    inspect.getsource(module)
    for module in (
        engine_conformance,
        engine_conformance_calls,
        engine_conformance_inside,
        engine_conformance_strict,
        engine_harness,
    )
)
METHODS = sorted(name for name, each in vars(Engine).items() if inspect.isfunction(each) and not name.startswith("_"))

ELSEWHERE = {"gvisor"}
"""Whether gVisor's runtime is there is asked when a container is made; see the tests of the Docker adapter."""


def test_the_port_has_the_methods_that_are_looked_for() -> None:
    assert len(METHODS) >= 15


@pytest.mark.parametrize("method", METHODS)
def test_every_method_of_the_port_is_called_by_the_suite(method: str) -> None:
    assert re.search(rf"\b(engine|_engine|stranger)\.{method}\b", SUITE)


@pytest.mark.parametrize("promise", sorted((PROMISES | STRICT_PROMISES) - ELSEWHERE))
def test_every_promise_has_a_behaviour(promise: str) -> None:
    assert re.search(rf'(unrealized|keeps)\("{promise}"\)', SUITE)


def test_the_suite_has_at_least_forty_behaviours() -> None:
    assert len(re.findall(r"^    async def test_", SUITE, flags=re.MULTILINE)) >= 40
