"""Packages for an image, fetched as files before its build, so that the build itself needs no network.

Each ecosystem's own program resolves, downloads and checks them; none of the packages' code runs. It works in a sandbox
that sees the machine's programs, its package settings and the one folder it fills. What may be asked for was decided by
the grammar in `logic/image_packages.py`, and is handed over in files. Used by `desk.py`.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import anyio
import anyio.to_thread

from hermitcrab.containers.engines import bubblewrap_processes
from hermitcrab.containers.materials.tool import ToolEnd, run_tool
from hermitcrab.errors import EngineError, Failure
from hermitcrab.logic.image_packages import Package, PackageList

SIZE_LOOK_S = 1.0

DEBIAN_SOURCES = """\
deb {options}http://deb.debian.org/debian {codename} main
deb {options}http://deb.debian.org/debian {codename}-updates main
deb {options}http://deb.debian.org/debian-security {codename}-security main
"""
_DEBIAN_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")

_HANDED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE")
_HANDED_ON_BEGINNINGS = ("PIP_", "NPM_CONFIG_", "NODE_EXTRA_CA_CERTS")
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY")

_ETC = (
    "alternatives", "apt", "ca-certificates", "crypto-policies", "gai.conf", "host.conf", "hosts", "ld.so.cache",
    "ld.so.conf", "ld.so.conf.d", "nsswitch.conf", "npmrc", "pip.conf", "pki", "resolv.conf", "ssl", "xdg/pip",
)  # fmt: skip
_OF_USER = (".npmrc", ".netrc", ".pip", ".config/pip", ".config/npm")

Progress = Callable[[str], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFacts:
    """What fetching must know of the image that the packages go into."""

    python: tuple[int, int] | None
    distribution: str
    codename: str
    architecture: str
    installed: bytes | None
    """Its list of Debian packages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchLimits:
    seconds: float
    disk_bytes: int


async def fetch(
    packages: PackageList,
    facts: ImageFacts,
    folder: Path,
    *,
    limits: FetchLimits,
    progress: Progress,
    apt_sources: Path | None = None,
) -> None:
    """Fill `folder` with apt/, npm/ and pip/ for the installer, with everything that the packages need.

    Raises EngineError with the tool's last words.
    """
    desk = _Desk(folder, limits, progress)
    async with desk.within_size():
        if packages.apt:
            await _fetch_apt(desk, packages.apt, facts, apt_sources)
        if packages.pip:
            await _fetch_pip(desk, [str(each) for each in packages.pip], facts)
        if packages.npm:
            await _fetch_npm(desk, packages.npm)


class _Desk:
    def __init__(self, folder: Path, limits: FetchLimits, progress: Progress) -> None:
        self.folder, self.progress = folder, progress
        self._limits = limits
        self._deadline = anyio.current_time() + limits.seconds

    async def run(
        self,
        what: str,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        quiet: list[str] | None = None,
    ) -> None:
        """Run a tool in the sandbox with the folder as its working one. `quiet` gets its lines instead of the log."""
        program = shutil.which(argv[0])
        if program is None:
            raise EngineError(
                Failure.IMAGE_UNAVAILABLE,
                f"Fetching {what} needs {argv[0]} on this machine, which it does not have",
                hint=f"Install {argv[0]}, or take a base image that has what you need (crab image build --base).",
            )
        told = {**_environment(), "TMPDIR": "/tmp", **(env or {})}  # noqa: S108  # the sandbox's own
        end = await run_tool(
            sandboxed([program, *argv[1:]], self.folder),
            progress=self.progress if quiet is None else quiet.append,
            seconds=max(self._deadline - anyio.current_time(), 0.001),
            env=told,
        )
        if end.code != 0:
            raise _failed(what, end, self._limits)

    @contextlib.asynccontextmanager
    async def within_size(self) -> AsyncIterator[None]:
        """End what is done inside when the folder outgrows its limit."""
        grown = False

        async def watch() -> None:
            nonlocal grown
            while True:
                await anyio.sleep(SIZE_LOOK_S)
                if await anyio.to_thread.run_sync(size_of, self.folder) > self._limits.disk_bytes:
                    grown = True
                    watching.cancel_scope.cancel()

        failure: EngineError | None = None
        async with anyio.create_task_group() as watching:
            watching.start_soon(watch)
            try:
                yield
            except EngineError as error:
                failure = error  # out of the task group by itself, not in a group of one
            watching.cancel_scope.cancel()
        if grown:
            megabytes = self._limits.disk_bytes // 1024**2
            raise EngineError(Failure.RESOURCES_EXHAUSTED, f"The packages are larger than {megabytes} MB together")
        if failure is not None:
            raise failure


async def _fetch_pip(desk: _Desk, requirements: list[str], facts: ImageFacts) -> None:
    if facts.python is None:
        raise EngineError(Failure.IMAGE_UNAVAILABLE, "The image has no Python, so that it cannot have pip packages")
    (desk.folder / "pip").mkdir()
    (desk.folder / "pip.txt").write_text("".join(f"{each}\n" for each in requirements))
    argv = [
        sys.executable, "-m", "pip", "download", "--only-binary", ":all:", "--no-input", "--progress-bar", "off",
        "--disable-pip-version-check", "--no-cache-dir", "--python-version", "{}.{}".format(*facts.python),
        "--dest", str(desk.folder / "pip"), "--requirement", str(desk.folder / "pip.txt"),
    ]  # fmt: skip
    await desk.run("Python packages", argv)
    (desk.folder / "pip.txt").unlink()


async def _fetch_npm(desk: _Desk, packages: Sequence[Package]) -> None:
    tree = desk.folder / "npm"
    tree.mkdir()
    wanted = {each.name: each.version or "latest" for each in packages}
    (tree / "package.json").write_text(json.dumps({"name": "agent", "private": True, "dependencies": wanted}))
    argv = [
        "npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--no-update-notifier", "--no-progress",
        "--omit-lockfile-registry-resolved=false",
        "--cache", str(desk.folder / ".npm"), "--prefix", str(tree),
    ]  # fmt: skip
    # A package may name a repository as its dependency; git runs programs that the repository chooses.
    await desk.run("npm packages", argv, env={"npm_config_git": "/bin/false"})
    check_npm_tree(json.loads((tree / "package-lock.json").read_text()))
    await anyio.to_thread.run_sync(lambda: shutil.rmtree(desk.folder / ".npm", ignore_errors=True))


def check_npm_tree(lock: Mapping[str, object]) -> None:
    """Raise EngineError if a package came from elsewhere than a registry: from this machine, or from a repository."""
    entries = lock.get("packages")
    for place, entry in entries.items() if isinstance(entries, dict) else ():
        if not place:
            continue
        source = str(entry.get("resolved", ""))
        if entry.get("link") or not (source.startswith(("https://", "http://")) or entry.get("inBundle")):
            raise EngineError(
                Failure.DENIED_BY_POLICY,
                f"The npm package at {str(place)[:200]} does not come from a registry but from {source[:200] or '?'}",
                hint="Only packages of a registry, with dependencies from there, may be installed.",
            )


async def _fetch_apt(desk: _Desk, packages: Sequence[Package], facts: ImageFacts, sources: Path | None) -> None:
    if facts.installed is None or not facts.architecture:
        raise EngineError(
            Failure.IMAGE_UNAVAILABLE, "The image does not say which Debian packages it has, so that it can get no more"
        )
    scratch = desk.folder / ".apt"
    for each in ("state/lists/partial", "cache/archives/partial", "etc/apt.conf.d", "log"):
        (scratch / each).mkdir(parents=True)
    (scratch / "status").write_bytes(facts.installed)
    (scratch / "etc/sources.list").write_text(await anyio.to_thread.run_sync(_sources, facts, sources))
    transport: list[str] = []
    # How this machine reaches archives: proxies and the like, nothing else of its settings.
    await desk.run("the settings of apt", ["apt-config", "dump"], quiet=transport)
    kept = [line for line in transport if line.startswith("Acquire::") and "Invoke" not in line]
    (scratch / "apt.conf").write_text(_apt_settings(scratch, facts) + "".join(f"{line}\n" for line in kept))
    env = {"APT_CONFIG": str(scratch / "apt.conf")}
    await desk.run("the list of Debian packages", ["apt-get", "update", "--error-on=any"], env=env)
    names = [str(each) for each in packages]
    argv = ["apt-get", "install", "--download-only", "--yes", "--no-install-recommends", "--allow-downgrades"]
    await desk.run("Debian packages", [*argv, "--", *names], env=env)
    archives = sorted((scratch / "cache/archives").glob("*.deb"))
    if archives:  # otherwise the image has them all
        (desk.folder / "apt").mkdir()
        for archive in archives:
            archive.rename(desk.folder / "apt" / archive.name)
    await anyio.to_thread.run_sync(lambda: shutil.rmtree(scratch))


def _apt_settings(scratch: Path, facts: ImageFacts) -> str:
    own = {
        "Dir::Etc": scratch / "etc",
        "Dir::Etc::SourceList": scratch / "etc/sources.list",
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::Etc::Preferences": "/dev/null",
        "Dir::Etc::PreferencesParts": "/dev/null",
        "Dir::State": scratch / "state",
        "Dir::State::status": scratch / "status",
        "Dir::Cache": scratch / "cache",
        "Dir::Log": scratch / "log",
        "APT::Architecture": facts.architecture,
        "APT::Sandbox::User": "root",
        # A name that is no package is an error, never a pattern or a task.
        "APT::Cmd::Pattern-Only": "true",
        "Acquire::Languages": "none",
        "Acquire::Retries": "2",
        "Debug::NoLocking": "true",
    }
    return "".join(f'{name} "{value}";\n' for name, value in own.items())


def _sources(facts: ImageFacts, given: Path | None) -> str:
    if given is not None:
        try:
            return given.read_text()
        except (OSError, ValueError) as error:
            raise EngineError(
                Failure.IMAGE_UNAVAILABLE, f"The file of Debian sources cannot be read: {given}: {error}"
            ) from error
    if facts.distribution != "debian" or not facts.codename.isalnum():
        raise EngineError(
            Failure.IMAGE_UNAVAILABLE,
            f"Where packages for {facts.distribution or 'an unknown distribution'} come from is not known",
            hint="Write a sources.list for it and name that file in the setting images.apt_sources.",
        )
    options = f"[signed-by={_DEBIAN_KEYRING}] " if _DEBIAN_KEYRING.exists() else ""
    return DEBIAN_SOURCES.format(options=options, codename=facts.codename)


def sandboxed(argv: Sequence[str], folder: Path) -> list[str]:
    """The command in a sandbox: the machine's programs and package settings to read, one folder to write, the net."""
    home = Path.home()
    told = [bubblewrap_processes.bubblewrap(), "--die-with-parent", "--unshare-pid", "--unshare-ipc", "--unshare-uts"]
    told += ["--unshare-cgroup-try", "--cap-drop", "ALL", "--new-session", "--proc", "/proc", "--dev", "/dev"]
    told += ["--tmpfs", "/tmp", "--ro-bind", "/usr", "/usr"]  # noqa: S108  # the sandbox's own
    for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
        path = Path("/", name)
        if path.is_symlink():
            told += ["--symlink", str(path.readlink()), str(path)]
        elif path.is_dir():
            told += ["--ro-bind", str(path), str(path)]
    for name in _ETC:
        told += ["--ro-bind-try", f"/etc/{name}", f"/etc/{name}"]
    told += ["--ro-bind-try", "/var/lib/ca-certificates", "/var/lib/ca-certificates"]
    for name in _OF_USER:
        told += ["--ro-bind-try", str(home / name), str(home / name)]
    # The interpreter that runs this, and where its own program lies.
    for prefix in dict.fromkeys((sys.prefix, sys.base_prefix, *_npm_places(argv[0]))):
        if not Path(prefix).is_relative_to("/usr"):
            told += ["--ro-bind", prefix, prefix]
    return [*told, "--bind", str(folder), str(folder), "--chdir", str(folder), "--", *argv]


def _npm_places(program: str) -> list[str]:
    """Where Node.js lies, when that is not in /usr: version managers keep it at home."""
    real = Path(program).resolve()
    if real.is_relative_to("/usr") or real.is_relative_to(sys.prefix) or real.is_relative_to(sys.base_prefix):
        return []
    parent = Path(program).parent.parent.resolve()
    return [str(parent)] if parent != Path("/") and parent != Path.home() else []


def _environment() -> dict[str, str]:
    """What package tools need of ours, and no key that lies in it for somebody else."""
    kept = {}
    for name, value in os.environ.items():
        upper = name.upper()
        if name in _HANDED_ON or upper in _PROXIES or upper.startswith(_HANDED_ON_BEGINNINGS):
            kept[name] = value
    return kept


def _failed(what: str, end: ToolEnd, limits: FetchLimits) -> EngineError:
    if end.code is None:
        return EngineError(
            Failure.RESOURCES_EXHAUSTED, f"Fetching {what} took longer than {limits.seconds:g} s and was ended"
        )
    return EngineError(Failure.IMAGE_UNAVAILABLE, f"Fetching {what} failed. The last words:\n{end.tail}")


def size_of(folder: Path) -> int:
    """Bytes of all plain files below the folder, links not followed."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # gone meanwhile
                found = os.lstat(Path(place, name))
                total += found.st_blocks * 512 if stat.S_ISREG(found.st_mode) else 0
    return total
