"""The whole road as an ordinary user: a host without root's rights, with bubblewrap and with rootless Podman."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hermitcrab.testing.ordinary_user import OrdinaryUser, ordinary_user

IMAGE = "hermitcrab-small:test"


@pytest.fixture
def user() -> Iterator[OrdinaryUser]:
    with ordinary_user() as made:
        yield made


def demo(user: OrdinaryUser, engine: str, env: dict[str, str] | None = None) -> dict[str, dict[str, object]]:
    done = user.crab("demo", "--engine", engine, "--json", env=env)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    told = json.loads(done.stdout)
    assert told["reply"].startswith("Echo: Hello")
    evidence: dict[str, dict[str, object]] = told["evidence"]
    assert [name for name, line in evidence.items() if not line["ok"]] == []
    return evidence


def test_the_main_job_is_done_without_roots_rights(user: OrdinaryUser) -> None:
    evidence = demo(user, "bubblewrap")
    assert evidence["uid"]["value"] == 1000
    # What it cannot keep without them, it says.
    assert evidence["limit_memory"]["value"] == "unrealized"
    doctor = user.crab("doctor", "--json")
    assert doctor.returncode == 0, doctor.stdout
    texts = [each["text"] for each in json.loads(doctor.stdout)["checks"] if each["area"] == "bubblewrap"]
    assert any(text.startswith("memory: ") for text in texts)


def small_image() -> bytes:
    """The system's Python with what it links to, a shell, and nothing else: enough for the runner."""
    python = Path("/usr/bin/python3").resolve()
    stdlib = Path("/usr/lib") / f"python3.{python.name.rpartition('.')[2]}"
    programs = [python, Path("/bin/sh").resolve()]
    linked = [*programs, *(stdlib / "lib-dynload").glob("*.so")]
    told = subprocess.run(["ldd", *map(str, linked)], capture_output=True, text=True, check=True).stdout
    libraries = {
        word for line in told.splitlines() for word in line.split() if word.startswith("/") and word[-1] != ":"
    }
    unwanted = ("__pycache__", "test", "idlelib", "lib2to3", "ensurepip", "tkinter", "pydoc_data")

    def without(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
        return None if any(part in unwanted for part in Path(info.name).parts) else info

    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for name, to in (("usr/bin/python3", python.name), ("bin/sh", programs[1].name)):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, to
            tar.addfile(link)
        tar.add(python, f"usr/bin/{python.name}")
        tar.add(programs[1], f"bin/{programs[1].name}")
        tar.add(stdlib, str(stdlib).lstrip("/"), filter=without)
        for each in sorted(libraries):
            tar.add(Path(each).resolve(), each.lstrip("/"))
    return content.getvalue()


@contextmanager
def rootless_podman(user: OrdinaryUser) -> Iterator[str]:
    """The user's own Podman service with a small image: the path of its socket. Or a skip that says what is missing."""
    for name in ("podman", "newuidmap", "newgidmap"):
        if shutil.which(name) is None:
            pytest.skip(f"{name} is not installed")
    info = user.run("podman", "info")
    if info.returncode != 0:
        pytest.skip(f"an ordinary user cannot use podman here: {info.stderr.strip().splitlines()[-1:]}")
    archive = user.folder / "image.tar"
    archive.write_bytes(small_image())
    archive.chmod(0o644)
    made = user.run("podman", "import", "--quiet", str(archive), IMAGE)
    if made.returncode != 0:
        pytest.skip(f"an ordinary user's podman cannot make an image here: {made.stderr.strip().splitlines()[-1:]}")
    socket = user.runtime / "podman.sock"
    command = user.command("podman", "system", "service", "--time", "0", f"unix://{socket}")
    with (user.folder / "service.log").open("wb") as log:
        service = subprocess.Popen(command, cwd=user.folder, env=user.environment(), stdout=log, stderr=log)
    try:
        while not socket.exists():  # Nobody tells of it.
            assert service.poll() is None, (user.folder / "service.log").read_text()
            time.sleep(0.02)
        yield str(socket)
    finally:
        service.terminate()
        service.wait()
        # Files of the ids that only its containers had; root's own removal of the home comes after.
        user.run("podman", "system", "reset", "--force")


def test_the_main_job_is_done_with_a_rootless_engine(user: OrdinaryUser) -> None:
    with rootless_podman(user) as socket:
        env = {
            "HERMITCRAB__CONTAINERS__ENGINE": "podman",
            "HERMITCRAB__CONTAINERS__PODMAN_SOCKET": socket,
            "HERMITCRAB__CONTAINERS__IMAGE": IMAGE,
        }
        evidence = demo(user, "podman", env)
        assert evidence["uid"]["value"] == user.uid  # The user's own id, and so the owner of what is written.
        doctor = user.crab("doctor", "--json", env=env)
        checks = [each for each in json.loads(doctor.stdout)["checks"] if each["area"] == "podman"]
        assert ("rootless", "ok") in [(each["subject"], each["level"]) for each in checks]


def test_the_doctor_says_why_an_ordinary_user_has_no_rootless_engine(user: OrdinaryUser) -> None:
    (user.etc / "subuid").write_text("somebody:100000:65536\n")
    env = {"HERMITCRAB__CONTAINERS__ENGINE": "podman"}
    doctor = user.crab("doctor", "--json", env=env)
    assert doctor.returncode == 1
    checks = {each["subject"]: each for each in json.loads(doctor.stdout)["checks"] if each["area"] == "podman"}
    assert checks["rootless"]["text"] == f"/etc/subuid give no ids to {user.name}"
    assert f"usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user.name}" in checks["rootless"]["fix"]
    assert checks["podman"]["level"] == "error"
