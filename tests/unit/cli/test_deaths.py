"""What `crab deaths` prints of what the host tells."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from hermitcrab.cli.deaths import deaths
from hermitcrab.control.protocol import Json, Params
from hermitcrab.control.server import Emit, serving
from hermitcrab.settings.home import Home

DEATH: dict[str, Any] = {
    "session": "s1",
    "generation": 2,
    "cause": "out-of-memory",
    "text": "It used more memory than it may.",
    "ended_at": "2026-01-01T00:00:00+00:00",
    "duration_s": 12.34,
    "exit_code": 137,
    "rows_returned": 1,
}


@asynccontextmanager
async def host(path: Path, *found: dict[str, Any]) -> AsyncIterator[tuple[Home, list[Json]]]:
    """A control socket that knows these deaths and notes what it is asked."""
    home = Home(path / "home")
    home.prepare()
    asked: list[Json] = []

    async def answer(params: Params, emit: Emit) -> Json:
        asked.append(
            {
                "session": params.optional_text("session"),
                "cause": params.optional_text("cause"),
                "since": params.optional_text("since"),
                "limit": params.integer("limit", default=0, least=0, most=9999),
                "logs": params.flag("logs"),
            }
        )
        params.done()
        for each in found:
            await emit(each)
        return {}

    async with serving(home.run, {"deaths": answer}):
        yield home, asked


async def test_each_death_is_a_line_with_cause_and_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with host(tmp_path, DEATH) as (home, asked):
        await deaths(home=home)
    heading, line = capsys.readouterr().out.splitlines()
    assert heading.split()[:4] == ["ENDED", "SESSION", "GENERATION", "CAUSE"]
    assert line.split()[:8] == ["2026-01-01T00:00:00+00:00", "s1", "2", "out-of-memory", "137", "12.3", "s", "1"]
    assert line.endswith("It used more memory than it may.")
    assert asked == [{"session": None, "cause": None, "since": None, "limit": 20, "logs": False}]


async def test_json_is_the_list_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with host(tmp_path, DEATH) as (home, asked):
        await deaths("s1", cause="hung", since="2h", limit=3, json=True, home=home)
    assert json.loads(capsys.readouterr().out) == [DEATH]
    assert asked == [{"session": "s1", "cause": "hung", "since": "2h", "limit": 3, "logs": False}]


async def test_log_lines_follow_their_death_and_cannot_steer_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with host(
        tmp_path, {**DEATH, "log": ["first", "\x1b[2Jgone"]}, {**DEATH, "generation": 1, "log": ["older"]}
    ) as (home, _):
        await deaths(logs=True, home=home)
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert out.index("  | first") < out.index("gone") < out.index("  | older")


@pytest.mark.parametrize("logs", [False, True])
async def test_without_deaths_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str], logs: bool) -> None:
    async with host(tmp_path) as (home, _):
        await deaths(logs=logs, home=home)
    assert capsys.readouterr().out == "No container has ended yet.\n"
