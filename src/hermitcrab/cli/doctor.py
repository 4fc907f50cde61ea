"""`crab doctor`: every precondition, each with its fix. Works with and without a running host."""

from __future__ import annotations

import os
import platform
import shutil
import sqlite3
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import anyio
from anyio import to_thread

from hermitcrab import __version__
from hermitcrab.channels.terminal.render import one_line
from hermitcrab.cli.output import GivenHome, Json, print_json, print_line
from hermitcrab.control.client import ControlClient
from hermitcrab.errors import HermitcrabError, HostUnreachableError
from hermitcrab.logic import hardening, preconditions
from hermitcrab.model.container import Finding
from hermitcrab.model.ids import InstallationId
from hermitcrab.settings.filesystem import file_system_of
from hermitcrab.settings.home import Home, lock_holder
from hermitcrab.settings.load import load
from hermitcrab.settings.model import Settings

HOST_ANSWERS_WITHIN_S = 20.0
ENGINE_ANSWERS_WITHIN_S = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One finding, with whether this installation needs it to be well."""

    area: str
    finding: Finding
    needed: bool = True

    @property
    def fails(self) -> bool:
        return self.needed and self.finding.level == "error"

    def to_json(self) -> dict[str, Any]:
        return {"area": self.area, "needed": self.needed, **asdict(self.finding)}


async def doctor(*, json: Json = False, home: GivenHome) -> int:
    """Check every precondition, each with its fix. Exit 1 when something is wrong that this installation needs."""
    checks = await examine(home)
    if json:
        print_json({"ok": not any(each.fails for each in checks), "checks": [each.to_json() for each in checks]})
    else:
        _show(checks)
    return 1 if any(each.fails for each in checks) else 0


async def examine(home: Home) -> list[Check]:
    settings, settings_finding = _settings(home)
    live, host_finding = await _live(home)
    chosen = live["engine"] if live else settings.containers.engine
    return [
        _machine(preconditions.python(sys.version_info[:3])),
        _machine(preconditions.sqlite(sqlite3.sqlite_version_info)),
        _machine(
            Finding(subject="system", level="ok", text=f"{platform.system()} {platform.release()} {platform.machine()}")
        ),
        Check(area="home", finding=_file_system(home)),
        Check(area="home", finding=_writable(home)),
        Check(area="home", finding=await to_thread.run_sync(_disk, home)),
        Check(area="home", finding=settings_finding),
        Check(area="home", finding=host_finding),
        Check(area="gateway", finding=await to_thread.run_sync(_key, settings, live)),
        *await _engines(chosen, settings),
    ]


def _machine(finding: Finding) -> Check:
    return Check(area="machine", finding=finding)


def _settings(home: Home) -> tuple[Settings, Finding]:
    try:
        settings = load(home.path)
    except HermitcrabError as error:
        return Settings(), Finding(subject="settings", level="error", text=error.message, fix=error.hint)
    where = home.settings_file if home.settings_file.exists() else "defaults (no hermitcrab.toml)"
    return settings, Finding(subject="settings", level="ok", text=f"{where}")


def _file_system(home: Home) -> Finding:
    try:
        found = file_system_of(home.path, Path("/proc/self/mountinfo").read_text(errors="surrogateescape"))
    except OSError as error:
        return Finding(
            subject="file system", level="warning", text=f"cannot be told: {error.strerror}", fix="Mount /proc."
        )
    if found is None:
        return Finding(subject="file system", level="ok", text="not a mount that is known to be unsafe")
    if not found.safe:
        return Finding(
            subject="file system",
            level="error",
            text=f"{home.path} is on {found.kind}, where databases and locks are not safe",
            fix="Choose a folder on a disk of this machine with --home or HERMITCRAB_HOME.",
        )
    return Finding(subject="file system", level="ok", text=f"{home.path} is on {found.kind}")


def _writable(home: Home) -> Finding:
    """Whether the home, or the folder that it is to be made in, can be written. The attempt leaves nothing there."""
    place = _nearest(home.path)
    choose = "Choose another folder with --home or HERMITCRAB_HOME."
    try:
        if place == home.path and (owner := place.stat().st_uid) != os.geteuid():
            return Finding(
                subject="home",
                level="error",
                text=f"{place} belongs to user {owner}, and this is user {os.geteuid()}",
                fix=f"Run crab as that user. {choose}",
            )
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        text = f"{home.path} cannot be written: {place}: {error.strerror}"
        return Finding(subject="home", level="error", text=text, fix=choose)
    if place != home.path:
        return Finding(subject="home", level="ok", text=f"{home.path} is not there yet; crab up makes it")
    return Finding(subject="home", level="ok", text=f"{home.path} can be written")


def _disk(home: Home) -> Finding:
    place = _nearest(home.path)
    try:
        free = shutil.disk_usage(place).free
    except OSError as error:
        return Finding(subject="disk", level="warning", text=f"{place}: {error.strerror}", fix="Is it readable?")
    return preconditions.disk_space(free, str(place))


def _nearest(path: Path) -> Path:
    """The path itself, or the nearest folder above it that exists."""
    # os.path says no where pathlib would raise: in a folder that we may not look into.
    return next((each for each in (path, *path.parents) if os.path.exists(each)), Path("/"))  # noqa: PTH110


async def _live(home: Home) -> tuple[dict[str, Any] | None, Finding]:
    """What the running host says, if there is one that answers."""
    holder = lock_holder(home)
    try:
        with anyio.fail_after(HOST_ANSWERS_WITHIN_S):
            async with ControlClient.connect(home) as client:
                live = await client.call("doctor")
    except HostUnreachableError:
        if holder is None:
            return None, Finding(subject="host", level="ok", text="none runs on this home; crab up starts one")
        return None, Finding(
            subject="host",
            level="warning",
            text=f"process {holder} holds the home and does not answer",
            fix=f"It may still be starting or stopping. If it hangs, end it: kill {holder}",
        )
    except (TimeoutError, HermitcrabError) as error:
        said = str(error) or f"no answer within {HOST_ANSWERS_WITHIN_S:g} s"
        return None, Finding(
            subject="host", level="warning", text=f"process {holder} does not answer: {said}", fix="Start it anew."
        )
    if live["version"] != __version__:
        return live, Finding(
            subject="host",
            level="warning",
            text=f"process {live['pid']} runs version {live['version']}; this is {__version__}",
            fix="Start it anew: crab stop, then crab up.",
        )
    return live, Finding(subject="host", level="ok", text=f"runs as process {live['pid']}")


def _key(settings: Settings, live: dict[str, Any] | None) -> Finding:
    """Whether a key is where the settings say. A running host is asked: its environment is the one that counts."""
    from hermitcrab.gateway.vault import KeyProblem, KeySource  # noqa: PLC0415

    if live is not None:
        source, problem = live["key_source"], live["key_problem"]
    else:
        source = settings.gateway.anthropic_key
        found = KeySource.parse(source).read()
        problem = asdict(found) if isinstance(found, KeyProblem) else None
    if problem is None:
        return Finding(subject="Claude key", level="ok", text=f"{source} holds one")
    return Finding(
        subject="Claude key",
        level="warning",
        text=f"{problem['text']}; provider claude needs it, echo does not",
        fix=problem["fix"],
    )


async def _engines(chosen: str, settings: Settings) -> list[Check]:
    from hermitcrab.app import engine_names  # noqa: PLC0415  # heavy

    names = engine_names()
    checks: list[Check] = []
    if chosen not in names:
        unknown = Finding(
            subject="engine",
            level="error",
            text=f"there is no engine {chosen!r}",
            fix=f"Set containers.engine to one of: {', '.join(names)}.",
        )
        checks.append(Check(area=chosen, finding=unknown))
    for name in sorted(names, key=lambda each: each != chosen):
        checks += [Check(area=name, finding=each, needed=name == chosen) for each in await _preflight(name, settings)]
    return checks


async def _preflight(name: str, settings: Settings) -> list[Finding]:
    from hermitcrab.app import open_engine  # noqa: PLC0415

    containers = settings.containers.model_copy(update={"engine": name})
    with tempfile.TemporaryDirectory(prefix="crab-doctor-") as folder:
        try:
            engine = open_engine(
                Home(Path(folder)), settings.model_copy(update={"containers": containers}), InstallationId("0" * 12)
            )
            try:
                with anyio.fail_after(ENGINE_ANSWERS_WITHIN_S):
                    found = await engine.preflight()
                    if any(each.level == "error" for each in found):
                        return found
                    return [*found, *hardening.findings(await engine.capabilities())]
            finally:
                with anyio.CancelScope(shield=True), anyio.move_on_after(5):
                    await engine.aclose()
        except TimeoutError:
            text = f"it did not answer within {ENGINE_ANSWERS_WITHIN_S:g} s"
            return [Finding(subject=name, level="error", text=text, fix=f"Is {name} itself well?")]
        except HermitcrabError as error:
            return [Finding(subject=name, level="error", text=error.message, fix=error.hint)]
        except ImportError as error:
            fix = f"pip install 'hermitcrab[{name}]'"
            return [Finding(subject=name, level="error", text=f"its adapter cannot be loaded: {error}", fix=fix)]


def _show(checks: list[Check]) -> None:
    area = ""
    for check in checks:
        if check.area != area:
            area = check.area
            print_line(f"{area}{'' if check.needed else ' (not the engine in use)'}")
        finding = check.finding
        text = f"{finding.subject}: {one_line(finding.text, width=400)}"
        match finding.level:
            case "ok":
                print_line(f"  ok       {text}", "good" if check.needed else "quiet")
            case "warning":
                print_line(f"  warning  {text}", "warning" if check.needed else "quiet")
            case "error":
                print_line(f"  {'ERROR  ' if check.needed else 'missing'}  {text}", "bad" if check.needed else "quiet")
        if finding.fix and finding.level != "ok":
            print_line(f"           fix: {one_line(finding.fix, width=400)}", "plain" if check.needed else "quiet")
    failing = sum(check.fails for check in checks)
    print_line("")
    print_line(
        "Everything that this installation needs is well." if not failing else f"{failing} thing(s) must be fixed.",
        "good" if not failing else "bad",
    )
