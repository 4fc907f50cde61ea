"""What every test may ask for: a real engine, or a skip that says why there is none."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Generator, Mapping
from pathlib import Path

import anyio
import pytest
from hypothesis import HealthCheck, settings

from hermitcrab.app import package_cache
from hermitcrab.containers.materials.packages import ensure_provider_packages
from hermitcrab.errors import EngineError
from hermitcrab.testing.engines import available_engines

# Nothing is asserted about time: on a busy machine, what is slow is not wrong.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

REQUIRED = frozenset(os.environ.get("HERMITCRAB_REQUIRE_ENGINES", "").split())
"""Engines whose tests may not be skipped: CI sets up all of them, and a missing one is a failure there."""


@pytest.fixture(scope="session")
def need_engine() -> Callable[[str], Mapping[str, str]]:
    """Call it with an engine's name: gives what a host needs in its environment to use it, or skips with the reason."""
    found = available_engines()

    def need(name: str) -> Mapping[str, str]:
        engine = found[name]
        if not engine.usable:
            if name in REQUIRED:
                pytest.fail(f"{name} is required here, but: {engine.why_not}")
            pytest.skip(f"{name}: {engine.why_not}")
        environment = {"HERMITCRAB__CONTAINERS__ENGINE": name}
        if engine.socket is not None:
            environment[f"HERMITCRAB__CONTAINERS__{name.upper()}_SOCKET"] = engine.socket
        if engine.image:
            environment["HERMITCRAB__CONTAINERS__IMAGE"] = engine.image
        return environment

    return need


@pytest.fixture(scope="session")
def open_files() -> Callable[[], set[str]]:
    """Call it for the numbers of all files that this process has open. Some may be other tests', and close meanwhile."""

    def look() -> set[str]:
        gc.collect()  # What earlier tests left to the collector is not closed by what this one does.
        return set(os.listdir("/proc/self/fd"))  # noqa: PTH208  # only the names are wanted

    return look


@pytest.fixture(scope="session")
def claude_packages() -> Path:
    """The real Claude packages, installed once into the cache that hosts use too; a skip without a registry."""

    async def install() -> Path:
        folder = await ensure_provider_packages("claude", package_cache(), progress=print)
        assert folder is not None
        return folder

    try:
        return anyio.run(install)
    except EngineError as error:
        if REQUIRED:
            pytest.fail(f"the Claude packages are required here: {error.message}")
        pytest.skip(f"Claude packages: {error.message}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Where engines are required, a test of one that is skipped has failed, whatever skipped it."""
    report = yield
    if report.skipped and any(name in item.nodeid for name in REQUIRED):
        report.outcome = "failed"
        report.longrepr = f"skipped, but its engine is required here: {report.longrepr}"
    return report
