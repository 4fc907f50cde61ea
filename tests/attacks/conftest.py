"""What the attacks on containers share: the engines that they are tried on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest


@pytest.fixture
def options(engine: str, need_engine: Callable[[str], Mapping[str, str]]) -> dict[str, Any]:
    """Settings of the engine under test, or a skip."""
    prefix = "HERMITCRAB__CONTAINERS__"
    found = need_engine(engine)
    return {key.removeprefix(prefix).lower(): value for key, value in found.items() if key != f"{prefix}ENGINE"}
