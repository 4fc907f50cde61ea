"""`crab demo`: the whole road once, for real, on a scratch home, and then what holds inside the sandbox, measured."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import anyio
from anyio import to_thread
from anyio.abc import Process
from cyclopts import Parameter

from hermitcrab.channels.terminal.manifest import DEFAULT_GROUP
from hermitcrab.channels.terminal.render import one_line, text_of
from hermitcrab.cli import outside
from hermitcrab.cli.leaving import leave_on_sigterm
from hermitcrab.cli.output import Json, console, print_json, print_trimmed, styled
from hermitcrab.cli.terminal import Answer, Terminal
from hermitcrab.control.client import ControlClient
from hermitcrab.errors import HermitcrabError, NoAnswerError, sole
from hermitcrab.logic.evidence import OUTSIDE, Expected, Line, judge
from hermitcrab.model.container import Limits
from hermitcrab.settings.home import Home
from hermitcrab.settings.load import load
from hermitcrab.settings.model import Settings

READY_WITHIN_S = 60.0
ANSWER_WITHIN_S = 180.0
LEAVES_WITHIN_S = 40.0

GREETING = "Hello from the demo. Please answer in one short sentence."
SECOND = "And once more, please."


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    reply: str
    engine: str
    provider: str
    evidence: list[Line]
    wake_ms: float | None
    roundtrip_ms: float

    @property
    def holds(self) -> bool:
        return bool(self.reply) and bool(self.evidence) and all(line.ok for line in self.evidence)

    def to_json(self) -> dict[str, Any]:
        return {
            "reply": self.reply,
            "engine": self.engine,
            "provider": self.provider,
            "evidence": {
                line.name: {"ok": line.ok, "value": line.value, "detail": line.detail} for line in self.evidence
            },
            "timings_ms": {
                "wake": None if self.wake_ms is None else round(self.wake_ms, 1),
                "roundtrip": round(self.roundtrip_ms, 1),
            },
        }


async def demo(
    *,
    engine: Annotated[str, Parameter(help="bubblewrap, docker or podman.")] = "bubblewrap",
    provider: Annotated[str, Parameter(help="echo (needs nothing) or claude (needs a key).")] = "echo",
    json: Json = False,
) -> int:
    """One real message, answered by an agent in a sandbox of its own, then evidence measured inside that sandbox."""
    outcome: Outcome | None = None
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(leave_on_sigterm, tasks.cancel_scope)
            outcome = await _run(engine, provider)
            tasks.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise sole(group) from None
    if outcome is None:
        return 128 + signal.SIGTERM
    if json:
        print_json(outcome.to_json())
    else:
        _show(outcome)
    return 0 if outcome.holds else 1


async def _run(engine: str, provider: str) -> Outcome:
    folder = Path(await to_thread.run_sync(lambda: tempfile.mkdtemp(prefix="crab-demo-")))
    try:
        _say(f"Making a scratch home in {folder}")
        home = Home(folder / "home")
        settings = load(home.path, {"containers.engine": engine, "agents.provider": provider})
        _say(f"Starting a host with engine {engine} and provider {provider}")
        async with _host(home, engine, provider, folder / "host.log") as host:
            return await _converse(home, host, settings)
    finally:
        with anyio.CancelScope(shield=True):
            _say("Removing the scratch home")
            await to_thread.run_sync(lambda: shutil.rmtree(folder, ignore_errors=True))


@asynccontextmanager
async def _host(home: Home, engine: str, provider: str, log: Path) -> AsyncIterator[Process]:
    """A real host process that is ready, for as long as the block lasts."""
    command = [sys.executable, "-m", "hermitcrab.cli.main", "up", "--home", str(home.path)]
    command += ["--engine", engine, "--provider", provider]
    # A name in no folder, so that no length of TMPDIR can be too long for it.
    address = f"hermitcrab-demo-{secrets.token_hex(8)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as ready:
        ready.bind(f"\0{address}")
        with log.open("wb") as output:
            process = await anyio.open_process(
                command,
                stdin=None,
                stdout=output,
                stderr=output,
                env={**os.environ, "NOTIFY_SOCKET": f"@{address}"},
                # Ctrl-C is for the demo, which then ends the host in good order.
                start_new_session=True,
            )
        try:
            await _until_ready(process, ready, log)
            yield process
        finally:
            with anyio.CancelScope(shield=True):
                await _end(process)


async def _until_ready(process: Process, ready: socket.socket, log: Path) -> None:
    async with anyio.create_task_group() as tasks:

        async def ended() -> None:
            await process.wait()
            tasks.cancel_scope.cancel()

        tasks.start_soon(ended)
        with anyio.move_on_after(READY_WITHIN_S):
            await anyio.wait_readable(ready)
        tasks.cancel_scope.cancel()
    if process.returncode is not None:
        raise _why_it_ended(process.returncode, log)
    try:
        ready.recv(64)
    except BlockingIOError as error:
        raise HermitcrabError(
            f"The host was not ready within {READY_WITHIN_S:g} s.", hint="crab doctor looks for the reason."
        ) from error


def _why_it_ended(code: int, log: Path) -> HermitcrabError:
    """The host's own words: its one clear sentence, or else the end of its log."""
    lines = log.read_text(errors="replace").splitlines()
    for number, line in enumerate(lines):
        if line.startswith("crab: "):
            hint = lines[number + 1].strip() if number + 1 < len(lines) else ""
            error = HermitcrabError(line.removeprefix("crab: "), hint=hint)
            error.exit_code = code if 0 < code < 128 else 1
            return error
    for line in lines[-20:]:
        print(one_line(line), file=sys.stderr)
    return HermitcrabError(f"The host ended with code {code} before it was ready.", hint="Its last lines stand above.")


async def _end(process: Process) -> None:
    if process.returncode is None:
        _say("Stopping the host")
        process.terminate()
        with anyio.move_on_after(LEAVES_WITHIN_S):
            await process.wait()
        if process.returncode is None:
            _say("It does not leave; killing it")
            process.kill()
            await process.wait()
    await process.aclose()


async def _converse(home: Home, host: Process, settings: Settings) -> Outcome:
    times: list[float] = []

    def show(event: dict[str, Any]) -> None:
        times.append(time.monotonic())
        if event["content"].get("notice"):
            print(f"    {text_of(event['content'])}", file=sys.stderr)

    async with ControlClient.connect(home) as client, anyio.create_task_group() as tasks:
        await _check_engine(client)
        terminal = Terminal(home, DEFAULT_GROUP, show=show)
        await tasks.start(terminal.run)
        _say(f"Sending a message: {GREETING}")
        session, answer = await _ask(terminal, GREETING)
        reply = "\n".join(text_of(each["content"]) for each in answer.messages)
        _say(f"Answer: {one_line(reply)}")
        if answer.failed or not reply:
            raise HermitcrabError(
                "The agent could not answer.", hint="Its own words stand above; crab doctor may know."
            )
        _say("Sending a second message on the live link")
        del times[:]
        began = time.monotonic()
        await _ask(terminal, SECOND)
        roundtrip_ms = (times[0] - began) * 1000 if times else float("nan")
        _say("Measuring inside the sandbox")
        lines = await _measure(client, home, host, settings, session)
        shown = await client.call("sessions.show", session=session)
        tasks.cancel_scope.cancel()
    return Outcome(
        reply=reply,
        engine=settings.containers.engine,
        provider=settings.agents.provider,
        evidence=lines,
        wake_ms=shown["timings_ms"].get("wake"),
        roundtrip_ms=roundtrip_ms,
    )


async def _check_engine(client: ControlClient) -> None:
    """An engine that cannot be used is said at once, with its fix, instead of after a wait for an answer."""
    findings = (await client.call("doctor"))["findings"]
    problems = [each for each in findings if each["level"] == "error"]
    if problems:
        raise HermitcrabError(
            "; ".join(f"{each['subject']}: {each['text']}" for each in problems),
            hint="; ".join(each["fix"] for each in problems if each["fix"]),
        )


async def _ask(terminal: Terminal, text: str) -> tuple[str, Answer]:
    """(session, answer) to one message."""
    with anyio.move_on_after(ANSWER_WITHIN_S):
        sent = await terminal.send(text)
        return sent.heard_by[0][0], await terminal.answer_to(sent, lambda _message: None)
    raise NoAnswerError(f"No answer within {ANSWER_WITHIN_S:g} s.", hint="crab doctor looks for the reason.")


async def _measure(client: ControlClient, home: Home, host: Process, settings: Settings, session: str) -> list[Line]:
    arguments = {"host_home": str(home.path), "host_pid": host.pid, "outside": list(OUTSIDE)}
    asked = await client.call("session.ask", session=session, subject="evidence", arguments=arguments)
    facts = asked["answer"]
    engine = (await client.call("status"))["engine"]
    expected = Expected(
        host_cmdline=await to_thread.run_sync(_cmdline, host.pid),
        host_pid_namespace=outside.own_pid_namespace(),
        memory_bytes=settings.containers.memory_mb * 1024 * 1024,
        pids=settings.containers.pids,
        cpus=settings.containers.cpus,
        open_files=Limits().open_files,
        unrealized=engine.get("unrealized", {}),
    )
    return judge(facts, await to_thread.run_sync(outside.limits_of, facts.get("pid_namespace")), expected)


def _cmdline(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()


def _say(text: str) -> None:
    print(f"==> {text}", file=sys.stderr, flush=True)


def _show(outcome: Outcome) -> None:
    from rich.table import Table  # noqa: PLC0415

    table = Table(title="Evidence, measured inside the sandbox", title_justify="left", box=None, padding=(0, 2, 0, 0))
    for column in ("", "FACT", "VALUE", "DETAIL"):
        table.add_column(column, overflow="fold")
    for line in outcome.evidence:
        table.add_row(
            styled("holds", "good") if line.ok else styled("FAILS", "bad"),
            styled(line.name.replace("_", " "), "plain"),
            styled(one_line(str(line.value), width=60), "plain"),
            styled(one_line(line.detail), "quiet"),
        )
    target = console()
    print()
    print_trimmed(table)
    print()
    wake = "unknown" if outcome.wake_ms is None else f"{outcome.wake_ms:.0f} ms"
    target.print(f"Wake (message to the runner's hello): {wake}")
    target.print(f"Roundtrip on the live link: {outcome.roundtrip_ms:.1f} ms")
    if outcome.holds:
        target.print(styled("Every line holds.", "good"))
    else:
        failing = sum(not line.ok for line in outcome.evidence)
        target.print(styled(f"{failing} line(s) do not hold.", "bad"))
