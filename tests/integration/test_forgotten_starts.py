"""A real Podman whose service dies in the middle of a start, and forgets what it had started."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest

from hermitcrab.containers.engines.docker import podman_engine
from hermitcrab.containers.engines.podman_forgotten import forgotten
from hermitcrab.errors import EngineError
from hermitcrab.model.container import ContainerStatus
from hermitcrab.model.ids import InstallationId
from hermitcrab.selftest.daemons import Service
from hermitcrab.testing.engine_harness import RUNS, EngineHarness
from hermitcrab.testing.engines import available_engines

PODMAN = available_engines()["podman"]
pytestmark = [
    pytest.mark.engine("podman"),
    pytest.mark.skipif(not PODMAN.usable, reason=f"podman: {PODMAN.why_not}"),
    pytest.mark.timeout(120),
]

RUNTIME = """\
#!/bin/sh
{runtime} "$@"
code=$?
case " $* " in *" create "*) rm {token} 2>/dev/null && kill -9 "$(cat {pid})" ;; esac
exit $code
"""
"""The real runtime, after which the service is killed that has asked for a container and not heard of it yet."""


async def test_what_podman_forgot_of_a_start_goes_with_its_container(tmp_path: Path) -> None:
    real = next(found for name in ("crun", "runc") if (found := shutil.which(name)))
    token, pid, socket = tmp_path / "token", tmp_path / "pid", tmp_path / "podman.sock"
    runtime = tmp_path / Path(real).name  # Podman goes by the name in what it tells a runtime.
    runtime.write_text(RUNTIME.format(runtime=real, token=token, pid=pid))
    runtime.chmod(0o755)
    command = f'echo $$ >{pid}; exec podman --runtime {runtime} system service --time 0 "unix://{socket}"'
    service = Service(["/bin/sh", "-c", command], socket=socket, log=tmp_path / "podman.log")
    harness = EngineHarness(
        podman_engine,
        tmp_path,
        image=PODMAN.image,
        socket=str(socket),
        installation=InstallationId(f"f{os.urandom(4).hex()}"),
    )
    try:
        await service.start()
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
        assert list(forgotten(view.id)) == []
    finally:
        await harness.aclose()
        await service.end(signal.SIGTERM)
