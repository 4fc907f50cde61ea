"""The home that histories begin on, made once for each test process."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import structlog

from hermitcrab.testing.histories.history import template
from hermitcrab.testing.histories.homes import Template


@pytest.fixture(scope="session")
def begun() -> Iterator[Template]:
    # Hosts say thousands of things that go wrong as they must; drawing their tracebacks would take most of the time.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    before = structlog.get_config()
    structlog.configure(processors=[_drop])
    with template() as made:
        yield made
    structlog.configure(**before)


def _drop(_logger: object, _name: str, _event: object) -> object:
    raise structlog.DropEvent
