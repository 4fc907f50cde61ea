"""A real Docker and a real Podman whose service dies in the middle of a start, and forgets what it had started."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import tarfile
from pathlib import Path

import anyio
import pytest

from hermitcrab.containers.engines.docker import docker_engine, podman_engine
from hermitcrab.containers.engines.docker_forgotten import forgotten
from hermitcrab.errors import EngineError
from hermitcrab.model.container import ContainerStatus
from hermitcrab.model.ids import InstallationId
from hermitcrab.selftest.daemons import Service, docker_folders, dockerd
from hermitcrab.testing.engine_harness import DEADLINE_S, RUNS, EngineHarness
from hermitcrab.testing.engines import available_engines

AVAILABLE = available_engines()
RUNTIME = """\
#!/bin/sh
{runtime} "$@"
code=$?
case " $* " in *" create "*) rm {token} 2>/dev/null && kill -9 "$(cat {pid})" ;; esac
exit $code
"""
"""The real runtime, after which the service is killed that has asked for a container and not heard of it yet."""


def runtime(folder: Path, *names: str, pid: Path) -> Path:
    real = next(found for name in names if (found := shutil.which(name)))
    place = folder / Path(real).name  # Podman goes by the name in what it tells a runtime.
    place.write_text(RUNTIME.format(runtime=real, token=folder / "token", pid=pid))
    place.chmod(0o755)
    return place


async def start_that_is_forgotten(harness: EngineHarness, service: Service) -> None:
    """And the container's removal after it, which leaves nothing."""
    token = harness.folder / "token"
    try:
        spec = harness.spec(RUNS)
        await harness.engine.create(spec)
        token.touch()
        with pytest.raises(EngineError):
            await harness.engine.start(spec.name)
        assert not token.exists()
        await service.start()
        view = await harness.view(spec.name)
        assert view.status is ContainerStatus.CREATED
        assert len(list(forgotten(view.id))) >= 2
        await harness.engine.remove(spec.name)
        with anyio.fail_after(DEADLINE_S):
            while list(forgotten(view.id)):  # noqa: ASYNC110  # what the engine itself calls to clear up ends by itself
                await anyio.sleep(0.05)
    finally:
        await harness.aclose()


@pytest.mark.engine("podman")
@pytest.mark.skipif(not AVAILABLE["podman"].usable, reason=f"podman: {AVAILABLE['podman'].why_not}")
async def test_what_podman_forgot_of_a_start_goes_with_its_container(tmp_path: Path) -> None:
    pid, socket = tmp_path / "pid", tmp_path / "podman.sock"
    made = runtime(tmp_path, "crun", "runc", pid=pid)
    command = f'echo $$ >{pid}; exec podman --runtime {made} system service --time 0 "unix://{socket}"'
    service = Service(["/bin/sh", "-c", command], socket=socket, log=tmp_path / "podman.log")
    try:
        await service.start()
        installation = InstallationId(f"f{os.urandom(4).hex()}")
        image = AVAILABLE["podman"].image
        harness = EngineHarness(podman_engine, tmp_path, image=image, socket=str(socket), installation=installation)
        await start_that_is_forgotten(harness, service)
    finally:
        await service.end(signal.SIGTERM)


@pytest.mark.engine("docker")
@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("dockerd") is None, reason="needs root and dockerd")
async def test_what_docker_forgot_of_a_start_goes_with_its_container(tmp_path: Path) -> None:
    folder = tmp_path / f"crab-{os.urandom(6).hex()}"  # Its name is used outside of it: no other test may have it.
    folder.mkdir()
    with docker_folders(folder):
        run = Path("/run") / folder.name
        made = runtime(folder, "runc", pid=run / "pid")
        service = dockerd(folder, f"--add-runtime=dying={made}", "--default-runtime=dying")
        try:
            await service.start()
            command = ["docker", "--host", f"unix://{service.socket}", "import", "-", "tiny:latest"]
            await anyio.run_process(command, input=tiny_root())
            harness = EngineHarness(
                docker_engine,
                folder,
                image="tiny:latest",
                socket=str(service.socket),
                installation=InstallationId(f"f{os.urandom(4).hex()}"),
            )
            await start_that_is_forgotten(harness, service)
        finally:
            await service.end(signal.SIGTERM)


def tiny_root() -> bytes:
    """A root file system with a shell in it, as a tar."""
    made = io.BytesIO()
    told = subprocess.run(["ldd", "/bin/sh"], capture_output=True, text=True, check=True).stdout
    with tarfile.open(fileobj=made, mode="w", dereference=True) as tar:
        for path in ("/bin/sh", *(word for word in told.split() if word.startswith("/"))):
            tar.add(path, path.lstrip("/"))
    return made.getvalue()
