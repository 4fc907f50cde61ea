"""A look into an image: a container of it that runs one script of ours without a network. Used by the image builder."""

from __future__ import annotations

import io
import resource
import tarfile
from typing import Any

from hermitcrab.containers.engines.docker_api import ApiError, EngineApi, EngineName
from hermitcrab.logic import docker_answers
from hermitcrab.logic.docker_body import security
from hermitcrab.logic.image_recipe import LABEL_BUILD, LABEL_OWNER

FILE_BYTES_AT_MOST = 32 * 1024 * 1024
"""The largest file that is read out of an image: Debian's list of installed packages."""

OUTPUT_LINES_AT_MOST = 1000

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Probe:
    """A container that looks into an image."""

    def __init__(self, api: EngineApi, container: str) -> None:
        self._api, self.container = api, container

    async def output(self, *, seconds: float = 30.0) -> list[str]:
        """What its script writes, at most a thousand lines."""
        await self._api.request("POST", f"/containers/{self.container}/start", doing="look into the image")
        await self._api.request(
            "POST", f"/containers/{self.container}/wait", doing="look into the image", deadline_s=seconds
        )
        content = await self._api.read(
            "GET",
            f"/containers/{self.container}/logs",
            doing="look into the image",
            params={"stdout": "1", "tail": str(OUTPUT_LINES_AT_MOST)},
        )
        return docker_answers.log_lines(content, OUTPUT_LINES_AT_MOST)

    async def file(self, path: str) -> bytes | None:
        """The content of a plain file of the image, or None when there is none or it is too large."""
        content = bytearray()
        try:
            async with self._api.content(
                "GET", f"/containers/{self.container}/archive", doing=f"read {path}", params={"path": path}
            ) as chunks:
                async for chunk in chunks:
                    content += chunk
                    if len(content) > FILE_BYTES_AT_MOST:
                        return None
        except ApiError:
            return None
        with tarfile.open(fileobj=io.BytesIO(content)) as tar:
            entry = tar.next()
            opened = tar.extractfile(entry) if entry is not None and entry.isreg() else None
            return None if opened is None else opened.read()


def probe_body(image: str, script: str, *, owner: str, engine: EngineName, system_calls: str | None) -> dict[str, Any]:
    """The body of `POST /containers/create` for a look into the image."""
    return {
        "Image": image,
        "Entrypoint": ["/bin/sh", "-c", script],
        "Cmd": [],
        "Env": [f"PATH={_PATH}"],
        "User": "65534:65534",
        "WorkingDir": "/",
        "Healthcheck": {"Test": ["NONE"]},
        "Labels": {LABEL_BUILD: "probe", LABEL_OWNER: owner},
        "NetworkDisabled": True,
        "HostConfig": {
            "CapDrop": ["ALL"],
            "NetworkMode": "none",
            "ReadonlyRootfs": True,
            "SecurityOpt": security(system_calls),
            "Memory": 256 * 1024**2,
            "PidsLimit": 64,
            "Ulimits": _ulimits(engine),
        },
    }


def processes_at_most() -> int:
    """How many processes Podman may be told to allow: it asks for more than the machine may give, unless it is told."""
    _, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    return 32768 if hard == resource.RLIM_INFINITY else min(hard, 32768)


def _ulimits(engine: EngineName) -> list[dict[str, Any]]:
    if engine == "docker":
        return []
    values = {"nofile": 4096, "nproc": processes_at_most()}
    return [{"Name": name, "Soft": value, "Hard": value} for name, value in values.items()]
