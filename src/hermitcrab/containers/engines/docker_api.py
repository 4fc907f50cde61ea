"""The HTTP API of a Docker or Podman daemon on its Unix socket: requests out, plain JSON back, faults as EngineError.

aiodocker gives the connection and the API's version. Requests go through its session directly, so that every answer is
judged in this one place and nothing of the library is seen outside. Used by the Docker engine and by the image builder.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import anyio

from hermitcrab.errors import EngineError, Failure
from hermitcrab.logic import docker_answers

EngineName = Literal["docker", "podman"]

Parameters = Mapping[str, str] | Sequence[tuple[str, str]]
"""Of an address; as pairs where one is given several times."""

ANSWER_DEADLINE_S = 30.0
"""For requests that an engine answers at once, or never."""

_OK_UNTIL = 400

_START = {
    "docker": "Start it (systemctl start docker), or say in the settings where its socket is.",
    "podman": "Start it (systemctl --user enable --now podman.socket; as root without --user), or say in the settings "
    "where its socket is.",
}
_ALLOW = {
    "docker": "Add the host's user to the group 'docker' and log in again, or use rootless Podman.",
    "podman": "Use the socket of the host's own user: systemctl --user enable --now podman.socket.",
}


def usual_sockets(engine: EngineName, environ: Mapping[str, str]) -> list[str]:
    """Where the engine's socket may be, the likeliest first."""
    variable = {"docker": "DOCKER_HOST", "podman": "CONTAINER_HOST"}[engine]
    told = environ.get(variable, "")
    runtime = environ.get("XDG_RUNTIME_DIR", f"/run/user/{os.getuid()}")
    places = [told.removeprefix("unix://")] if told.startswith("unix://") else []
    if engine == "docker":
        return [*places, "/var/run/docker.sock", f"{runtime}/docker.sock"]
    return [*places, f"{runtime}/podman/podman.sock", "/run/podman/podman.sock"]


def find_socket(engine: EngineName, told: str | None = None) -> str:
    """The path of the engine's socket: `told`, else the first of the usual ones that exists, else the first."""
    if told is not None:
        return told.removeprefix("unix://")
    usual = usual_sockets(engine, os.environ)
    return next((each for each in usual if Path(each).is_socket()), usual[0])


class EngineApi:
    """One daemon. Connects at the first request, in the event loop that makes it; `aclose` lets go."""

    def __init__(self, engine: EngineName, socket: str | None = None) -> None:
        self.engine = engine
        self.socket = find_socket(engine, socket)
        self._client: Any = None
        self._faults: tuple[type[Exception], ...] = (OSError,)

    async def aclose(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def request(
        self,
        method: str,
        path: str,
        *,
        doing: str,
        params: Parameters | None = None,
        body: object = None,
        deadline_s: float | None = None,
    ) -> Any:
        """The answer's JSON, or None when it has none. `doing` says in errors what could not be done.

        `deadline_s` is for what may take longer than the usual answer; `math.inf`: whoever calls has a deadline.
        """
        content = await self.read(method, path, doing=doing, params=params, body=body, deadline_s=deadline_s)
        return self._json(content, doing) if content.strip() else None

    async def read(
        self,
        method: str,
        path: str,
        *,
        doing: str,
        params: Parameters | None = None,
        body: object = None,
        deadline_s: float | None = None,
    ) -> bytes:
        """The answer's bytes."""
        try:
            with anyio.fail_after(ANSWER_DEADLINE_S if deadline_s is None else deadline_s):
                async with self._answer(method, path, doing, params, self._encoded(body)) as answer:
                    return bytes(await answer.read())
        except TimeoutError as error:
            raise self._silent(doing) from error

    @contextlib.asynccontextmanager
    async def stream(
        self,
        method: str,
        path: str,
        *,
        doing: str,
        params: Parameters | None = None,
        data: bytes | None = None,
    ) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
        """JSON objects for as long as the engine sends them; entered = the engine has agreed to send."""
        async with contextlib.AsyncExitStack() as opened:
            try:
                with anyio.fail_after(ANSWER_DEADLINE_S):
                    answer = await opened.enter_async_context(self._answer(method, path, doing, params, data))
            except TimeoutError as error:
                raise self._silent(doing) from error
            opened.callback(answer.close)  # an endless answer is never read to its end
            yield await opened.enter_async_context(contextlib.aclosing(self._objects(answer, doing)))

    @contextlib.asynccontextmanager
    async def content(
        self, method: str, path: str, *, doing: str, params: Parameters | None = None
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """The answer's bytes as they come, for what is too large or too slow to be waited for."""
        async with contextlib.AsyncExitStack() as opened:
            try:
                with anyio.fail_after(ANSWER_DEADLINE_S):
                    answer = await opened.enter_async_context(self._answer(method, path, doing, params, None))
            except TimeoutError as error:
                raise self._silent(doing) from error
            opened.callback(answer.close)
            yield await opened.enter_async_context(contextlib.aclosing(self._chunks(answer, doing)))

    async def _chunks(self, answer: Any, doing: str) -> AsyncGenerator[bytes]:
        try:
            async for chunk in answer.content.iter_any():
                yield chunk
        except self._faults as error:
            raise self._lost(error, doing) from error

    async def _objects(self, answer: Any, doing: str) -> AsyncGenerator[dict[str, Any]]:
        # Not the response's readline: that one refuses lines longer than its buffer.
        pending = b""
        try:
            async for chunk in answer.content.iter_any():
                *lines, pending = (pending + chunk).split(b"\n")
                for line in lines:
                    if line.strip():
                        yield self._json(line, doing)
        except self._faults as error:
            raise self._lost(error, doing) from error
        if pending.strip():
            yield self._json(pending, doing)

    @contextlib.asynccontextmanager
    async def _answer(
        self, method: str, path: str, doing: str, params: Parameters | None, data: bytes | None
    ) -> AsyncIterator[Any]:
        client = await self._connected()
        kind = "application/x-tar" if path == "/build" else "application/json"
        try:
            async with client.session.request(
                method,
                f"http://localhost/{client.api_version}{path}",
                params=params,
                data=data,
                headers={"Content-Type": kind},
            ) as answer:
                if answer.status >= _OK_UNTIL:
                    content = bytes(await answer.read())
                    raise ApiError(answer.status, _message(content), doing)
                yield answer
        except self._faults as error:
            raise self._lost(error, doing) from error

    async def _connected(self) -> Any:
        """The client, once the engine has said which API it speaks."""
        if self._client is None:
            try:
                import aiodocker  # noqa: PLC0415  # who uses bubblewrap only need not have it
                import aiohttp  # noqa: PLC0415
            except ModuleNotFoundError as error:
                raise EngineError(
                    Failure.RUNTIME_UNAVAILABLE,
                    f"The {self.engine} engine needs the package {error.name}",
                    hint="pip install 'hermitcrab[docker]'",
                ) from error
            self._faults = (OSError, aiohttp.ClientError)
            self._client = aiodocker.Docker(url=f"unix://{self.socket}")
        client = self._client
        if client.api_version == "auto":
            doing = "say its version"
            try:
                with anyio.fail_after(ANSWER_DEADLINE_S):
                    await client.version()
            except TimeoutError as error:
                raise self._silent(doing) from error
            except self._faults as error:
                raise self._lost(error, doing) from error
            except (aiodocker_error(), ValueError, KeyError, TypeError) as error:
                cause = error.__context__
                raise self._lost(cause if isinstance(cause, OSError) else error, doing) from error
        return client

    def _encoded(self, body: object) -> bytes | None:
        return None if body is None else json.dumps(body).encode()

    def _json(self, content: bytes, doing: str) -> Any:
        try:
            return json.loads(content)
        except ValueError as error:
            raise EngineError(
                Failure.UNKNOWN, f"{self.engine} answered something that is not JSON when asked to {doing}"
            ) from error

    def _silent(self, doing: str) -> EngineError:
        return EngineError(
            Failure.RUNTIME_UNAVAILABLE,
            f"{self.engine} on {self.socket} did not answer in time when asked to {doing}",
            hint=f"Look at its log; restart it if it hangs. {_START[self.engine]}",
        )

    def _lost(self, error: BaseException, doing: str) -> EngineError:
        number = getattr(error, "errno", None)
        hint = _START[self.engine]
        if number == errno.ENOENT:
            text = f"{self.engine} does not run: there is no socket {self.socket}"
        elif number == errno.ECONNREFUSED:
            text = f"{self.engine} does not run: nobody answers on {self.socket}"
        elif number in {errno.EACCES, errno.EPERM}:
            text, hint = f"{self.engine}'s socket {self.socket} may not be used by this user", _ALLOW[self.engine]
        else:
            text = f"The connection to {self.engine} on {self.socket} broke when it was asked to {doing}"
        return EngineError(Failure.RUNTIME_UNAVAILABLE, text, hint=hint)


class ApiError(EngineError):
    """The engine answered, and said no. `status` and `words` are its own."""

    def __init__(self, status: int, words: str, doing: str) -> None:
        typed = docker_answers.fault(status, words, doing=doing)
        super().__init__(typed.failure, typed.message, hint=typed.hint)
        self.status = status
        self.words = words


def aiodocker_error() -> type[Exception]:
    from aiodocker import DockerError  # noqa: PLC0415  # imported already when this is called

    return DockerError


def _message(content: bytes) -> str:
    try:
        answer = json.loads(content)
    except ValueError:
        answer = None
    if isinstance(answer, dict):
        for key in ("message", "cause"):
            if isinstance(answer.get(key), str):
                return str(answer[key])
    return content[:1000].decode(errors="replace")
