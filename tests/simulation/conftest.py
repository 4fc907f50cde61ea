"""The home that histories begin on, made once for each test process."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import structlog

from hermitcrab.testing.histories.history import nothing_else, template
from hermitcrab.testing.histories.homes import Template


@pytest.fixture(scope="session")
def begun() -> Iterator[Template]:
    with template() as made:
        yield made


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    # Hosts say thousands of things that go wrong as they must; drawing their tracebacks would take most of the time.
    asyncio_log = logging.getLogger("asyncio")
    level, before = asyncio_log.level, structlog.get_config()
    asyncio_log.setLevel(logging.CRITICAL)
    structlog.configure(processors=[_drop])
    try:
        with nothing_else():
            yield
    finally:
        structlog.configure(**before)
        asyncio_log.setLevel(level)


def _drop(_logger: object, _name: str, _event: object) -> object:
    raise structlog.DropEvent
