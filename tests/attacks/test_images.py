"""Families A8 to A11: packages, builds, bases and tags that were made to reach beyond an image."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest

from hermitcrab.containers.engines.docker_api import EngineName
from hermitcrab.containers.engines.docker_builder import ImageBuilder
from hermitcrab.containers.images import desk
from hermitcrab.containers.images.package_fetch import FetchLimits, fetch
from hermitcrab.containers.images.shelf import ImageShelf
from hermitcrab.errors import EngineError, Failure, HermitcrabError
from hermitcrab.logic.image_packages import PackageList, parse_packages
from hermitcrab.logic.image_recipe import BuildLimits, Recipe, export_name
from hermitcrab.testing.engine_harness import DEADLINE_S
from hermitcrab.testing.engines import available_engines
from hermitcrab.testing.foreign_images import foreign_image
from hermitcrab.testing.image_workshop import Workshop, workshop
from hermitcrab.testing.package_archive import PackageArchive, package_archive
from hermitcrab.testing.scratch import add_chat, host_on, scratch_host

AVAILABLE = available_engines()
BASE = os.environ.get("HERMITCRAB_TEST_BASE", "hermitcrab-base:bookworm")
CANARY = "sk-ant-api03-CANARY-of-the-images-0123456789"  # made up; opens nothing
GREETING = parse_packages(apt=["greeting"])


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.engine(name)) for name in ("docker", "podman")])
def engine(request: pytest.FixtureRequest) -> EngineName:
    return usable(request.param)


def usable(name: EngineName) -> EngineName:
    if not AVAILABLE[name].usable:
        pytest.skip(AVAILABLE[name].why_not)
    return name


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PackageArchive]:
    (tmp_path / "archive").mkdir()
    with package_archive(tmp_path / "archive") as opened:
        for name, value in opened.environment.items():
            monkeypatch.setenv(name, value)
        yield opened


async def build(shop: Workshop, parent: str, packages: PackageList = GREETING) -> str:
    built = await shop.desk.build_group(
        shop.builder, folder="crab", parent=parent, packages=packages, progress=shop.told.append
    )
    return built.image


async def leaves_nothing(shop: Workshop) -> None:
    assert await shop.mine() == []
    assert await shop.builder.leftovers(shop.desk.owner) == []
    assert [each.name for each in shop.home.images.iterdir() if not each.name.endswith(".lock")] == []


TRIES = """
set +e
{
    env
    cat /proc/self/status
    ls -R /mnt
    python3 -c 'import socket; socket.create_connection(("127.0.0.1", PORT), 2)' && echo REACHED-LOOPBACK
    python3 -c 'import socket; socket.create_connection(("192.0.2.1", 80), 2)' && echo REACHED-OUTSIDE
    touch /mnt/planted && echo WROTE-CONTEXT
    mount -t tmpfs none /media && echo MOUNTED
    mknod /media/disk b 8 0 && echo MADE-DEVICE
    python3 -c 'import socket; socket.socket(40, 1)' && echo MADE-SOCKET-TO-THE-HYPERVISOR
    unshare --user true && echo MADE-NAMESPACE
    echo x >/proc/sys/kernel/core_pattern && echo WROTE-KERNEL
    cp /bin/sh /usr/bin/rootsh && chmod 6755 /usr/bin/rootsh && echo made-setuid
    ls /run/*.sock /var/run/docker.sock && echo SAW-SOCKET
} >/usr/share/tries 2>&1
exit 0
"""


async def test_what_a_package_runs_at_its_installation_reaches_nothing(
    engine: EngineName, tmp_path: Path, archive: PackageArchive, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is root in the build, and that is all."""
    monkeypatch.setenv("ANTHROPIC_API_KEY", CANARY)
    port = archive.url.rpartition(":")[2]
    archive.add_deb("greeting", files={}, install_script=TRIES.replace("PORT", port))
    found = AVAILABLE[engine]
    sources = str(archive.apt_sources)
    async with workshop(engine, found.socket, tmp_path / "home", apt_sources=sources) as shop:
        (shop.home.path / "hermitcrab.toml").write_text(f"# {CANARY}\n")
        image = await build(shop, found.image)
        (tries,) = [json.loads(line) for line in await shop.output(image, "python3", "-c", TOLD)]
    text, mode = tries
    assert "made-setuid" in text
    assert mode & 0o6000 == 0
    assert not [word for word in text.split() if word.startswith(("REACHED", "WROTE", "MOUNTED", "MADE", "SAW"))]
    assert CANARY not in text
    status = dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
    assert int(status["CapEff"], 16) & (1 << 21 | 1 << 27 | 1 << 13) == 0  # SYS_ADMIN, MKNOD, NET_RAW
    assert status["NoNewPrivs"].strip() == "1"


TOLD = """
import json, os
print(json.dumps([open("/usr/share/tries").read(), os.stat("/usr/bin/rootsh").st_mode]))
"""


async def test_a_hostile_base_and_secrets_that_lie_about_take_no_part_in_a_build(
    engine: EngineName, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    (tmp_path / "secret").write_text(CANARY)
    for name in (".env", "id_ed25519", ".netrc", "key.pem", "a.whl.txt"):
        (wheels / name).write_text(CANARY)
    (wheels / "linked-1.0-py3-none-any.whl").symlink_to(tmp_path / "secret")
    os.mkfifo(wheels / "fifo-1.0-py3-none-any.whl")
    monkeypatch.chdir(wheels)
    monkeypatch.setenv("SOME_KEY", CANARY)
    socket = AVAILABLE[engine].socket
    tag = f"hermitcrab-test-hostile:{uuid.uuid4().hex[:8]}"
    assert socket is not None
    async with (
        workshop(engine, socket, tmp_path / "home") as shop,
        foreign_image(engine, socket, tag=tag, base=BASE) as base,
    ):
        (shop.home.logs / "x.log").write_text(CANARY)
        built = await shop.desk.build_agent(
            shop.builder, base=base, name=f"{tag}-made", wheels=wheels, progress=shop.told.append
        )
        places = "/etc /usr/local /opt /app /home /root /mnt /tmp /var /workspace"
        look = f"grep -rls CANARY-of-the-images {places}; ls -a /; id -u; pwd"
        told = await shop.output(built.image, "sh", "-c", look)
        # The base preloads a library that is not there. Engines read output and errors apart, in no order.
        seen = [line for line in told if not line.startswith("ERROR: ld.so")]
        # Neither its ONBUILD, nor its entrypoint, nor its health check ever ran, and it chose no user and no folder.
        assert not {"built", "copied", "entered"} & set(seen)
        assert seen[-2:] == ["1000", "/workspace/agent"]
        assert [line for line in seen if line.startswith("/")] == ["/workspace/agent"]
        assert CANARY not in "\n".join(shop.told)


async def patient_fetch(*arguments: Any, limits: FetchLimits, **named: Any) -> None:
    await fetch(*arguments, limits=replace(limits, seconds=DEADLINE_S), **named)


ENDLESS = {
    "for ever": ("sleep 600", {"build_deadline_s": 3.0}),
    "without bound": ("while :; do head -c 8000000 /dev/zero >>/var/big-$RANDOM$$; done", {"build_disk_mb": 64}),
}


@pytest.mark.parametrize(
    ("name", "what"), [("docker", "for ever"), ("docker", "without bound"), ("podman", "without bound")]
)
async def test_a_build_that_would_go_on_is_ended_and_leaves_nothing(
    tmp_path: Path, archive: PackageArchive, monkeypatch: pytest.MonkeyPatch, name: EngineName, what: str
) -> None:
    engine = usable(name)
    # The deadline is the build's. Fetching, which has the same one, is honest here and may take its time.
    monkeypatch.setattr(desk, "fetch", patient_fetch)
    script, limits = ENDLESS[what]
    archive.add_deb("greeting", files={}, install_script=script)
    found = AVAILABLE[engine]
    sources = str(archive.apt_sources)
    async with workshop(engine, found.socket, tmp_path / "home", apt_sources=sources, **limits) as shop:
        with anyio.fail_after(DEADLINE_S), pytest.raises(EngineError) as raised:
            await build(shop, found.image)
        assert raised.value.failure is Failure.RESOURCES_EXHAUSTED
        await leaves_nothing(shop)
        (log,) = (shop.home.logs / "images").iterdir()
        assert "Failed: The build" in log.read_text()


async def test_a_build_that_is_cancelled_leaves_nothing(
    engine: EngineName, tmp_path: Path, archive: PackageArchive
) -> None:
    archive.add_deb("greeting", files={}, install_script="echo under way; sleep 600")
    found = AVAILABLE[engine]
    sources = str(archive.apt_sources)
    async with workshop(engine, found.socket, tmp_path / "home", apt_sources=sources) as shop:
        with anyio.CancelScope() as scope, anyio.fail_after(DEADLINE_S):

            def tell(line: str) -> None:
                shop.told.append(line)
                if line == "under way":
                    scope.cancel()

            await shop.desk.build_group(
                shop.builder, folder="crab", parent=found.image, packages=GREETING, progress=tell
            )
        assert scope.cancelled_caught
        await leaves_nothing(shop)


async def test_what_a_killed_build_left_is_removed_by_the_next(tmp_path: Path, archive: PackageArchive) -> None:
    name = usable("docker")
    found = AVAILABLE[name]
    archive.add_deb("greeting", files={})
    sources = str(archive.apt_sources)
    async with workshop(name, found.socket, tmp_path / "home", apt_sources=sources) as shop:
        parent = await shop.builder.resolve(found.image)
        making = shop.home.images / f".{name}.making"
        (making / "pip").mkdir(parents=True)
        # As a host that died in the middle of another build left it.
        other = Recipe(kind="group", parent=parent, installer="0" * 64)
        await shop.builder._create_build(other, context=making, owner=shop.desk.owner, limits=BuildLimits())
        assert len(await shop.builder.leftovers(shop.desk.owner)) == 1
        await build(shop, found.image)
        assert await shop.builder.leftovers(shop.desk.owner) == []
        assert not making.exists()


async def test_what_a_host_left_that_was_killed_while_it_unpacked_an_image_is_removed_by_the_next(
    tmp_path: Path,
) -> None:
    name = usable("docker")
    found = AVAILABLE[name]
    async with workshop(name, found.socket, tmp_path / "home") as shop, AsyncExitStack() as abandoned:
        owner = shop.desk.owner
        await abandoned.enter_async_context(shop.builder.root(found.image, owner=owner))
        shop.home.images.mkdir(exist_ok=True)
        shelf = ImageShelf(shop.home.images, shop.desk.limits)
        shelf.exporting.write_text(name)
        before = await exports(shop)
        assert len(before) == 1
        async with host_on(shop.home.path, "bubblewrap", docker_socket=found.socket):
            with anyio.fail_after(DEADLINE_S):
                while shelf.exporting.exists():  # noqa: ASYNC110  # nobody tells of it
                    await anyio.sleep(0.05)
        assert await exports(shop) == []


async def exports(shop: Workshop) -> list[str]:
    """Containers of the engine that an image is being read from, for this home."""
    listed = await shop.builder._api.request("GET", "/containers/json", doing="list", params={"all": "true"})
    names = [str(name).removeprefix("/") for each in listed for name in each["Names"]]
    return [each for each in names if each == export_name(shop.desk.owner)]


async def test_a_parents_tag_that_is_moved_during_the_build_changes_nothing(
    tmp_path: Path, archive: PackageArchive, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = usable("docker")
    found = AVAILABLE[name]
    archive.add_deb("greeting", files={})
    tag = f"hermitcrab-test-moved:{uuid.uuid4().hex[:8]}"
    sources = str(archive.apt_sources)
    async with workshop(name, found.socket, tmp_path / "home", apt_sources=sources) as shop:
        honest = await shop.builder.resolve(found.image)
        other = await shop.builder.resolve(BASE)
        await shop.builder.name(honest, tag)
        look_up = ImageBuilder.resolve

        async def then_moved(builder: ImageBuilder, image: str) -> str:
            resolved = await look_up(builder, image)
            await builder.name(other, tag)
            return resolved

        try:
            with monkeypatch.context() as patch:
                patch.setattr(ImageBuilder, "resolve", then_moved)
                await build(shop, tag)
            assert await shop.builder.resolve(tag) == other
            (image,) = await shop.mine()
            assert image.parent == honest
            assert await shop.output(image.id, "sh", "-c", "ls -d /app/src") == ["/app/src"]
        finally:
            await shop.builder._api.request("DELETE", f"/images/{tag}", doing="remove the tag")


async def test_a_package_that_got_into_the_store_by_another_hand_reaches_no_tool() -> None:
    async with scratch_host("bubblewrap") as (host, _):
        group, _ = await add_chat(host, "crab")
        document = json.dumps({"packages": {"apt": ["-oDpkg::Pre-Invoke::=touch /tmp/x"]}})
        await host.store.write(
            lambda connection: connection.execute(
                "INSERT OR REPLACE INTO container_configs VALUES (?, ?, '2026-01-01T00:00:00.000Z')",
                (group.id, document),
            )
        )
        told: list[str] = []
        with pytest.raises(HermitcrabError, match="is not the name of a package"):
            await host.images.build(group, progress=told.append)
        assert told == []
