"""The real shim with the stand-in for a v2 runner as processes, on a host of one session."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import pytest

from hermitcrab.testing import foreign_runner
from hermitcrab.testing.engine_harness import DEADLINE_S
from hermitcrab.testing.fake_host import FakeHost, running_runner

STAND_IN = str(Path(foreign_runner.__file__).resolve())


@dataclass(frozen=True)
class Foreign:
    """A work folder with a foreign runner in it."""

    root: Path
    options: tuple[str, ...] = ()

    def command(self, poll_s: float = 0.02) -> list[str]:
        return [sys.executable, STAND_IN, "--workspace", str(self.root), "--poll", str(poll_s), *self.options]

    def let(self, name: str) -> None:
        """What holds for `name` may go on."""
        (self.root / "agent" / name).touch()

    def rows(self, file: str, query: str, *values: object) -> list[tuple[Any, ...]]:
        connection = sqlite3.connect(f"file:{self.root / file}?mode=ro", uri=True, timeout=DEADLINE_S)
        try:
            return connection.execute(query, values).fetchall()
        finally:
            connection.close()

    def write_out(
        self, key: str, content: object, place: Mapping[str, Any], *, deliver_after: str | None = None
    ) -> None:
        """As the runner, or any program in its container, may write it."""
        connection = sqlite3.connect(self.root / "outbound.db", isolation_level=None, timeout=DEADLINE_S)
        connection.execute(
            "INSERT INTO messages_out (id, timestamp, deliver_after, kind, platform_id, channel_type, content)"
            " VALUES (?, datetime('now'), ?, 'chat', ?, ?, ?)",
            (key, deliver_after, place["platform_id"], place["channel_type"], json.dumps(content)),
        )
        connection.close()

    def runners(self) -> list[int]:
        """Stand-ins that run on this folder, whoever started them."""
        wanted = [os.fsencode(part) for part in self.command()[1:4]]
        return [int(path.name) for path in Path("/proc").glob("[0-9]*") if _command_of(path)[1:4] == wanted]

    @asynccontextmanager
    async def shim(
        self, host: FakeHost, *, env: Mapping[str, str] | None = None, command: list[str] | None = None
    ) -> AsyncIterator[anyio.abc.Process]:
        variables = {
            "HERMITCRAB_WORKSPACE": str(self.root),
            "HERMITCRAB_WORKDIR": str(self.root / "agent"),
            **(env or {}),
        }
        arguments = ["shim", "--", *(self.command() if command is None else command)]
        async with running_runner(host, env=variables, arguments=arguments) as process:
            try:
                yield process
            finally:
                # Outside of a container, nobody ends the command when its shim is killed.
                for pid in self.runners():
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)


async def until(condition: Callable[[], object]) -> None:
    """For what happens in files and processes, and tells nobody here. The test's own timeout is the deadline."""
    while not condition():  # noqa: ASYNC110
        await anyio.sleep(0.01)


def _command_of(process: Path) -> list[bytes]:
    try:
        return (process / "cmdline").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return []


@pytest.fixture
def foreign(tmp_path: Path) -> Foreign:
    root = tmp_path / "workspace"
    (root / "agent").mkdir(parents=True)
    (root / "agent" / "container.json").write_text(json.dumps({"maxMessagesPerPrompt": 10}))
    return Foreign(root)
