"""The agent image: its name, and how it is built through an engine's API. Called by the `crab` command and by tests.

What goes to the engine is made here file by file: a folder is never sent as it is, so that nothing that happens to lie
in it (a key, another session's files) ends up in an image.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path

import anyio.to_thread

from hermitcrab import __version__
from hermitcrab.containers.engines.docker_api import EngineApi, EngineName
from hermitcrab.errors import BadInputError, EngineError, Failure
from hermitcrab.logic.docker_body import IMAGE

DEFAULT_BASE = "python:3.11-slim-bookworm"
"""An official Debian image: the bundled Claude CLI needs glibc."""

BUILD_DEADLINE_S = 900.0
CONTEXT_BYTES_AT_MOST = 512 * 1024 * 1024

_LOG_LINES = 20
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]{0,80}(?:=[A-Za-z0-9.+:~-]{1,80})?", re.ASCII)
_WHEEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*\.whl", re.ASCII)


def default_tag() -> str:
    """The name of the agent image of this version of Hermitcrab."""
    return f"hermitcrab-agent:{__version__}"


def default_recipe() -> Path:
    """The folder with the Containerfile: beside the source, where Hermitcrab runs from its source."""
    return Path(__file__).resolve().parents[3] / "image"


def build_context(recipe: Path) -> bytes:
    """The tar archive that an engine builds from: the Containerfile, and wheels where there are any."""
    containerfile = recipe / "Containerfile"
    if not containerfile.is_file():
        raise BadInputError(
            f"There is no Containerfile in {recipe}", hint="Name the folder image/ of Hermitcrab's source."
        )
    files = {"Containerfile": containerfile.read_bytes(), "wheels/README": b""}
    for wheel in sorted((recipe / "wheels").glob("*.whl")):
        if _WHEEL.fullmatch(wheel.name) is not None and wheel.is_file() and not wheel.is_symlink():
            files[f"wheels/{wheel.name}"] = wheel.read_bytes()
        if sum(map(len, files.values())) > CONTEXT_BYTES_AT_MOST:
            raise BadInputError(f"The wheels in {recipe} are larger than {CONTEXT_BYTES_AT_MOST} bytes together")
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)  # owner root, time zero: the same files make the same archive
            entry.size, entry.mode = len(content), 0o644
            tar.addfile(entry, io.BytesIO(content))
    return archive.getvalue()


async def build_agent_image(
    engine_socket: str,
    *,
    base: str | None,
    tag: str,
    progress: Callable[[str], object],
    apt_packages: tuple[str, ...] = (),
    recipe: Path | None = None,
    engine: EngineName = "docker",
) -> str:
    """Build the agent image as `tag` from `base` and return its id. `progress` gets each line of the build's log.

    Only `apt_packages` give the build a network. Raises EngineError `image-unavailable` with the log's last lines.
    """
    for name in (tag, base or DEFAULT_BASE):
        if IMAGE.fullmatch(name) is None or ".." in name:
            raise BadInputError(f"{name!r} is not the name of an image")
    for package in apt_packages:
        if _PACKAGE.fullmatch(package) is None:
            raise BadInputError(f"{package!r} is not the name of a Debian package")
    context = await anyio.to_thread.run_sync(build_context, recipe or default_recipe())
    arguments = {"BASE": base or DEFAULT_BASE, "APT_PACKAGES": " ".join(apt_packages)}
    api = EngineApi(engine, engine_socket)
    try:
        with anyio.fail_after(BUILD_DEADLINE_S):
            await _build(api, context, tag=tag, arguments=arguments, progress=progress)
            answer = await api.request("GET", f"/images/{tag}/json", doing=f"look up the image {tag}")
    except TimeoutError as error:
        raise EngineError(
            Failure.IMAGE_UNAVAILABLE, f"Building {tag} took longer than {BUILD_DEADLINE_S:.0f} s"
        ) from error
    finally:
        await api.aclose()
    return str((answer or {}).get("Id", ""))


async def _build(
    api: EngineApi, context: bytes, *, tag: str, arguments: Mapping[str, str], progress: Callable[[str], object]
) -> None:
    params = {
        "t": tag,
        "dockerfile": "Containerfile",
        "buildargs": json.dumps(dict(arguments)),
        "networkmode": "default" if arguments["APT_PACKAGES"] else "none",
        "rm": "true",
        "forcerm": "true",
        # Layers that somebody else left in the engine's cache are not to be trusted (CVE-2024-24557).
        "nocache": "true",
    }
    told: deque[str] = deque(maxlen=_LOG_LINES)
    async with api.stream("POST", "/build", doing=f"build {tag}", params=params, data=context) as messages:
        async for message in messages:
            failed = message.get("error")
            text = str(message.get("stream") or message.get("status") or failed or "")
            for line in text.splitlines():
                if line.strip():
                    told.append(line)
                    progress(line)
            if failed:
                raise EngineError(
                    Failure.IMAGE_UNAVAILABLE,
                    f"Building {tag} from {arguments['BASE']} failed. The log ends with:\n" + "\n".join(told),
                    hint=f"Is the base image {arguments['BASE']} there? Without a registry, make one: "
                    f"bash image/base.sh NAME {api.engine}",
                )
