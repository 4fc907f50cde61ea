"""Images as somebody else makes them, with an engine's own builder and whatever a build file may say."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from hermitcrab.containers.engines.docker_api import EngineApi, EngineName
from hermitcrab.errors import EngineError, Failure

HOSTILE = """\
ARG BASE
FROM ${BASE}
VOLUME /data /workspace/volume /usr/local/volume
USER root
WORKDIR /proc/self/fd/8
ENV PYTHONSTARTUP=/tmp/x LD_PRELOAD=/no/such.so HTTPS_PROXY=http://192.0.2.1:1
HEALTHCHECK --interval=1s CMD touch /workspace/agent/healthy
ENTRYPOINT ["sh", "-c", "touch /workspace/agent/entered /entered; sleep 600"]
CMD ["touch", "/workspace/agent/commanded"]
ONBUILD RUN touch /built
ONBUILD COPY . /copied
STOPSIGNAL SIGCONT
LABEL hermitcrab.session=another hermitcrab.installation=another
"""
"""Everything that an image can say of itself, said to do harm."""


@asynccontextmanager
async def foreign_image(
    engine: EngineName, socket: str, *, tag: str, base: str, containerfile: str = HOSTILE
) -> AsyncIterator[str]:
    """An image `tag` made of the build file, for as long as the context is open."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        entry = tarfile.TarInfo("Containerfile")
        entry.size = len(containerfile)
        tar.addfile(entry, io.BytesIO(containerfile.encode()))
    params = {
        "t": tag,
        "dockerfile": "Containerfile",
        "buildargs": json.dumps({"BASE": base}),
        "networkmode": "none",
        "rm": "true",
        "forcerm": "true",
    }
    api = EngineApi(engine, socket)
    try:
        async with api.stream(
            "POST", "/build", doing=f"build {tag}", params=params, data=content.getvalue()
        ) as messages:
            async for message in messages:
                if message.get("error"):
                    raise EngineError(Failure.IMAGE_UNAVAILABLE, f"{tag} cannot be built: {message['error']}")
        try:
            yield tag
        finally:
            await remove_image(api, tag)
    finally:
        await api.aclose()


async def remove_image(api: EngineApi, image: str) -> None:
    """Remove it whatever it is needed for; one that is gone is success."""
    try:
        await api.request("DELETE", f"/images/{image}", doing=f"remove {image}", params={"force": "true"})
    except EngineError as error:
        if error.failure is not Failure.IMAGE_UNAVAILABLE:
            raise
