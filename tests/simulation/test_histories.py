"""Whole hosts by seed, in virtual time: router, mailboxes, lifecycle, link and delivery, and what holds of every history.

A failure names its seed, and `live(seed, ...)` lives the same again, to the last event.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from hermitcrab.testing.histories.history import live
from hermitcrab.testing.histories.homes import Template

HISTORIES = int(os.environ.get("HERMITCRAB_HISTORIES", "1000"))
"""How many are lived. More of them are other ones: seeds go on where these end."""
PARTS = 8
"""So that several processes can share them."""

_ONE = """
import logging, sys, structlog
logging.disable(logging.CRITICAL)
from hermitcrab.testing.histories.history import live, nothing_else, template
structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
with nothing_else(), template() as begun:
    print(*(live(int(seed), begun).digest for seed in sys.argv[1:]))
"""


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("part", range(PARTS))
def test_none_is_lost_none_doubled_order_is_kept_and_nothing_is_left_over(begun: Template, part: int) -> None:
    wrong: dict[int, list[str]] = {}
    for seed in range(part, HISTORIES, PARTS):
        told = live(seed, begun)
        if told.wrong:
            wrong[seed] = told.wrong
    assert not wrong, f"by seed: {wrong}"


def test_a_seed_gives_the_same_history_again_in_any_process(begun: Template) -> None:
    seeds = ("3", "14", "159")
    here = [live(int(seed), begun).digest for seed in seeds]
    assert [live(int(seed), begun).digest for seed in seeds] == here
    for hash_seed in ("1", "2"):
        # Other hashes of strings, so that no order may come from a set.
        found = subprocess.run(
            [sys.executable, "-c", _ONE, *seeds],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert found.stdout.split() == here
