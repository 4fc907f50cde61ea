"""Who has the say: session, group, installation."""

from __future__ import annotations

import pytest

from hermitcrab.logic.precedence import limits, provider_name
from hermitcrab.model.container import Limits
from hermitcrab.model.container_config import GroupLimits


@pytest.mark.parametrize(
    ("session", "group", "installation", "name"),
    [
        ("echo", "acp", "claude", "echo"),
        (None, "acp", "claude", "acp"),
        ("", "acp", "claude", "acp"),
        (None, None, "claude", "claude"),
        ("", "", "claude", "claude"),
        ("Echo", None, "claude", "echo"),
        (None, "ACP", "claude", "acp"),
    ],
)
def test_the_session_goes_before_the_group_and_that_before_the_installation(
    session: str | None, group: str | None, installation: str, name: str
) -> None:
    assert provider_name(session, group, installation) == name


def test_a_group_changes_the_limits_that_it_names_and_no_others() -> None:
    base = Limits(memory_bytes=1024, pids=100, cpus=2.0, open_files=7)
    assert limits(GroupLimits(), base) == base
    assert limits(GroupLimits(memory_mb=2, cpus=0.5), base) == Limits(
        memory_bytes=2 * 1024 * 1024, pids=100, cpus=0.5, open_files=7
    )
