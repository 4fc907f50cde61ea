"""Images made and run by the real engines of this machine, with packages from registries on loopback."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from hermitcrab.app import Host
from hermitcrab.containers.engines.docker_api import EngineName
from hermitcrab.containers.images.desk import ImageDesk, owner_of
from hermitcrab.containers.images.engines import unpack_archive
from hermitcrab.containers.images.shelf import ImageShelf
from hermitcrab.errors import BadInputError, EngineError, Failure
from hermitcrab.logic.image_packages import parse_packages
from hermitcrab.model.container_config import ContainerConfig, Packages
from hermitcrab.model.groups import AgentGroup
from hermitcrab.model.messages import Address
from hermitcrab.settings.home import Home
from hermitcrab.settings.model import ImageSettings
from hermitcrab.store import agent_groups, container_configs
from hermitcrab.testing.engines import EngineAvailability, available_engines
from hermitcrab.testing.image_workshop import tidy, workshop
from hermitcrab.testing.intruder import intrude
from hermitcrab.testing.package_archive import PackageArchive, package_archive
from hermitcrab.testing.scratch import CHANNEL, host_on, say

AVAILABLE = available_engines()

BASE = os.environ.get("HERMITCRAB_TEST_BASE", "hermitcrab-base:bookworm")
GREETS = """
answer([subprocess.run([each], capture_output=True, text=True).stdout for each in ("greet", "crab-shell")])
"""

ENGINES = [pytest.param(name, marks=pytest.mark.engine(name)) for name in ("docker", "podman")]


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> tuple[EngineName, EngineAvailability]:
    return usable(request.param), AVAILABLE[request.param]


def usable(name: EngineName) -> EngineName:
    if not AVAILABLE[name].usable:
        pytest.skip(AVAILABLE[name].why_not)
    return name


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PackageArchive]:
    """Registries with one package each."""
    (tmp_path / "archive").mkdir()
    with package_archive(tmp_path / "archive") as opened:
        for name, value in opened.environment.items():
            monkeypatch.setenv(name, value)
        opened.add_deb("greeting", files={"usr/bin/greet": ("#!/bin/sh\necho hello from a package\n", 0o755)})
        opened.add_wheel("crab-shell", program="a borrowed shell")
        yield opened


@pytest.mark.engine("docker")
async def test_an_agent_image_is_made_without_a_network_and_only_once(tmp_path: Path) -> None:
    engine = usable("docker"), AVAILABLE["docker"]
    wheels = tmp_path / "wheels"
    with package_archive(tmp_path) as packages:
        packages.add_wheel("crab-shell", program="a borrowed shell")
    shutil.copytree(tmp_path / "pip/crab-shell", wheels)
    tag = f"hermitcrab-test-image:{uuid.uuid4().hex[:8]}"
    async with workshop(engine[0], engine[1].socket, tmp_path / "home") as shop:
        built = await shop.desk.build_agent(shop.builder, base=BASE, name=tag, wheels=wheels, progress=shop.told.append)
        assert built.fresh
        assert "==> Done" in shop.told
        assert built.log is not None
        assert built.log.read_text().splitlines() == shop.told
        (image,) = await shop.mine()
        assert (image.id, image.kind, image.recipe) == (built.image, "agent", built.recipe)
        assert image.parent == await shop.builder.resolve(BASE)
        script = (
            "import os, pwd, sys; sys.path.insert(0, '/app/src'); import hermitcrab_runner, hermitcrab_wire;"
            "print(sys.version_info >= (3, 11), os.getuid(), pwd.getpwuid(os.getuid()).pw_dir)"
        )
        assert await shop.output(built.image, "python3", "-P", "-c", script) == ["True 1000 /home/agent"]
        assert await shop.output(built.image, "crab-shell") == ["a borrowed shell"]

        again = await shop.desk.build_agent(shop.builder, base=BASE, name=tag, wheels=wheels, progress=shop.told.append)
        assert (again.image, again.fresh, again.log) == (built.image, False, None)


@pytest.mark.claude
@pytest.mark.engine("docker")
async def test_the_whole_agent_image_has_node_and_claude_code_and_takes_npm_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, claude_packages: Path
) -> None:
    """As users make it: Node.js and Claude Code come from the registry that this machine has for Python packages."""
    del claude_packages  # without a registry this is skipped
    if shutil.which("npm") is None:
        pytest.skip("this machine has no npm to fetch packages with")
    name = usable("docker")
    tag = f"hermitcrab-test-image:{uuid.uuid4().hex[:8]}"
    (tmp_path / "archive").mkdir()
    async with workshop(name, AVAILABLE[name].socket, tmp_path / "home") as shop:
        agent = await shop.desk.build_agent(shop.builder, base=BASE, name=tag, progress=shop.told.append)
        versions = "node --version; npm --version; git --version; claude --version; find / -xdev -type f -perm /6000 2>/dev/null"
        told = await shop.output(agent.image, "sh", "-c", versions)
        assert told[0].startswith("v2")
        assert told[2].startswith("git version")
        assert "Claude Code" in told[3]
        assert told[4:] == []

        with package_archive(tmp_path / "archive") as archive:
            for variable, value in archive.environment.items():
                monkeypatch.setenv(variable, value)
            archive.add_npm("claw", program="snap")
            archive.add_npm("pincer", program="pinch", dependencies={"claw": "1.0.0"}, install_script="id -u >built-by")
            built = await shop.desk.build_group(
                shop.builder,
                folder="crab",
                parent=agent.image,
                packages=parse_packages(npm=["pincer@1.0.0"]),
                progress=shop.told.append,
            )
        programs = "pincer; claw; cat /opt/hermitcrab/npm/node_modules/pincer/built-by"
        assert await shop.output(built.image, "sh", "-c", programs) == ["pinch", "snap", "0"]


async def test_a_base_that_is_not_there_is_said_with_its_fix(
    engine: tuple[EngineName, EngineAvailability], tmp_path: Path
) -> None:
    async with workshop(engine[0], engine[1].socket, tmp_path / "home") as shop:
        with pytest.raises(EngineError) as raised:
            # A registry of this machine that does not listen: nothing outside is asked.
            await shop.desk.build_agent(
                shop.builder, base="127.0.0.1:1/absent:1", wheels=tmp_path, progress=shop.told.append
            )
    assert raised.value.failure is Failure.IMAGE_UNAVAILABLE
    assert "absent" in raised.value.message
    assert "image/base.sh" in raised.value.hint


async def test_a_group_has_its_packages_from_its_next_container_on(
    engine: tuple[EngineName, EngineAvailability], tmp_path: Path, archive: PackageArchive
) -> None:
    name, found = engine
    options = {"image": found.image, f"{name}_socket": found.socket}
    sources = {"images.apt_sources": str(archive.apt_sources)}
    home = tmp_path / "home"
    async with (
        tidy(name, AVAILABLE[name].socket, Home(home)) as builder,
        host_on(home, name, sources, **options) as (host, _),
    ):
        intruder = await intrude(host, "crab")
        group = intruder.group
        await configure(host, group, Packages(apt=("greeting",), pip=("crab-shell==1.0",)))
        assert await image_of(host, group) == found.image
        assert "in no image yet" in str(await shortcoming(host, group))
        lines: list[str] = []
        built = await host.images.build(group, progress=lines.append)
        assert built.packages == {"apt": ["greeting"], "npm": [], "pip": ["crab-shell==1.0"]}
        assert "==> Installing Debian packages" in lines
        assert await image_of(host, group) == built.image
        assert await shortcoming(host, group) is None
        assert not (await host.images.build(group, progress=lines.append)).fresh
        assert await intruder.ask(GREETS) == ["hello from a package\n", "a borrowed shell\n"]

        # Its containers have the image's labels, and are no builds that somebody left.
        await intruder.launch("time.sleep(600)")
        assert await builder.leftovers(owner_of(host.home)) == []
        await host.engine.remove(intruder.name)

        # A build that fails changes nothing but what is known of it.
        await configure(host, group, Packages(apt=("greeting", "absent-package")))
        with pytest.raises(EngineError, match=r"absent-package[^$]*Group crab keeps the image that it has"):
            await host.images.build(group, progress=lines.append)
        assert await image_of(host, group) == built.image
        short = str(await shortcoming(host, group))
        assert "other packages" in short
        assert "newest build failed: The image" in short
        assert len(list((home / "logs/images").glob("*.log"))) == 2

        # Nothing that a group needs is pruned; what no group needs any more is, and nothing else.
        (listed,) = (await host.images.catalogue()).images
        assert (listed.image, listed.use) == (built.image, "group")
        assert await host.images.prune(dry_run=False) == []
        await host.store.write(lambda connection: connection.execute("DELETE FROM group_images"))
        assert [each.image.image for each in await host.images.prune(dry_run=True)] == [built.image]
        assert await builder.has(built.image)
        assert [each.kept_because for each in await host.images.prune(dry_run=False)] == [""]
        assert not await builder.has(built.image)
        await builder.resolve(found.image)


async def test_bubblewrap_runs_a_group_on_an_unpacked_image_of_the_same_recipe(
    tmp_path: Path, archive: PackageArchive
) -> None:
    """The echo road: a message goes in, and the runner in the unpacked root answers it."""
    name = usable("docker")
    sources = {"images.apt_sources": str(archive.apt_sources)}
    socket = AVAILABLE[name].socket
    home = tmp_path / "home"
    async with (
        tidy(name, AVAILABLE[name].socket, Home(home)),
        host_on(home, "bubblewrap", sources, docker_socket=socket) as (host, channel),
    ):
        intruder = await intrude(host, "crab")
        group = intruder.group
        await configure(host, group, Packages(apt=("greeting",), pip=("crab-shell==1.0",)))
        assert await image_of(host, group) is None
        built = await host.images.build(group, progress=print)
        assert await image_of(host, group) == built.image
        assert Path(built.image).is_relative_to(home)
        assert await intruder.ask(GREETS) == ["hello from a package\n", "a borrowed shell\n"]
        looks = "answer([attempt(write, '/usr/x'), attempt(write, '/x'), os.path.isdir('/boot'), os.getuid() != 0])"
        assert await intruder.ask(looks) == ["EROFS", "EROFS", True, True]
        address = Address(channel_type=CHANNEL, platform_id="crab")
        receipt = await say(host, address, "one", "hello")
        _, delivery = await channel.answer_to(receipt.row_ids[0])
        assert delivery.content["text"] == "Echo: hello"
        uses = {each.engine: each.use for each in (await host.images.catalogue()).images}
        assert uses["bubblewrap"] == "container"


async def test_a_root_file_system_from_an_archive_is_unpacked_once(tmp_path: Path) -> None:
    source = tmp_path / "root.tar"
    (tmp_path / "root/usr/bin").mkdir(parents=True)
    shutil.make_archive(str(tmp_path / "root"), "tar", tmp_path / "root")
    shelf = ImageShelf(tmp_path / "images", ImageDesk(Home(tmp_path), ImageSettings()).limits)
    lines: list[str] = []
    first = await unpack_archive(source, shelf, progress=lines.append)
    assert sorted(os.listdir(first.path)) == ["usr"]  # noqa: PTH208
    assert await unpack_archive(source, shelf, progress=lines.append) == first
    assert len(lines) == 1
    (tmp_path / "empty").mkdir()
    shutil.make_archive(str(tmp_path / "empty"), "tar", tmp_path / "empty")
    with pytest.raises(EngineError, match="no root file system"):
        await unpack_archive(tmp_path / "empty.tar", shelf, progress=lines.append)
    with pytest.raises(BadInputError, match="cannot be read"):
        await unpack_archive(tmp_path / "absent.tar", shelf, progress=lines.append)
    assert shelf.images() == [first]
    shelf.remove(first)
    assert [each.name for each in (tmp_path / "images").iterdir()] == [".unpacking.lock"]


async def configure(host: Host, group: AgentGroup, packages: Packages) -> None:
    config = ContainerConfig(packages=packages)
    await host.store.write(lambda connection: container_configs.put(connection, group.id, config))


async def image_of(host: Host, group: AgentGroup) -> str | None:
    found = await host.store.read(lambda connection: agent_groups.by_id(connection, group.id))
    assert found is not None
    config = await host.store.read(lambda connection: container_configs.of(connection, group.id))
    return await host.images.image_for(found, config)


async def shortcoming(host: Host, group: AgentGroup) -> str | None:
    config = await host.store.read(lambda connection: container_configs.of(connection, group.id))
    return await host.images.shortcoming(group, config)
