"""`crab image` over the real methods and a real store; the engine only answers as one would."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from hermitcrab.cli.main import build_app
from hermitcrab.containers.images.desk import owner_of
from hermitcrab.control.host import ControlledHost
from hermitcrab.control.image_methods import ImageMethods
from hermitcrab.control.server import serving
from hermitcrab.errors import BadInputError, ConflictError, EngineError, Failure, HermitcrabError, NotFoundError
from hermitcrab.groups.creation import create_group
from hermitcrab.groups.images import GroupBuilt, GroupImages
from hermitcrab.logic.image_recipe import LABEL_KIND, LABEL_OWNER, LABEL_RECIPE
from hermitcrab.model.container_config import ContainerConfig, Packages
from hermitcrab.model.groups import AgentGroup
from hermitcrab.settings.home import Home
from hermitcrab.settings.load import load
from hermitcrab.store import container_configs, group_images
from hermitcrab.store.database import Store
from hermitcrab.testing.fake_docker import FakeDocker, fake_docker

USED, KEPT, NAMED, LOOSE, FOREIGN = (f"sha256:{letter * 64}" for letter in "abcde")


@dataclass
class Scene:
    home: Home
    daemon: FakeDocker
    store: Store
    group: AgentGroup
    capsys: pytest.CaptureFixture[str]
    built: list[str] = field(default_factory=list)
    outcome: Callable[[], GroupBuilt] | None = None

    async def crab(self, *words: str) -> tuple[str, str]:
        """What the command prints, and says beside it."""
        command, bound, _ = build_app().parse_args(["image", *words], print_error=False, exit_on_error=False)
        await command(*bound.args, **bound.kwargs, home=self.home)
        captured = self.capsys.readouterr()
        return captured.out, captured.err

    async def json(self, *words: str) -> Any:
        return json.loads((await self.crab(*words, "--json"))[0])

    async def build(self, group: AgentGroup, *, progress: Callable[[str], object]) -> GroupBuilt:
        self.built.append(group.folder)
        progress("==> Installing\x1b[31m")
        assert self.outcome is not None
        return self.outcome()


def image(scene_home: Home, image_id: str, kind: str, *names: str, owner: str | None = None) -> dict[str, Any]:
    return {
        "Id": image_id,
        "RepoTags": list(names) or None,
        "Labels": {LABEL_KIND: kind, LABEL_RECIPE: "1", LABEL_OWNER: owner or owner_of(scene_home)},
        "Size": 300_000_000,
        "Created": 1_790_000_000,
    }


@asynccontextmanager
async def on_stage(path: Path, capsys: pytest.CaptureFixture[str], *, host_runs: bool) -> AsyncIterator[Scene]:
    home = Home(path / "home")
    home.prepare()
    home.settings_file.write_text(
        f'[containers]\nengine = "docker"\ndocker_socket = "{path}/docker.sock"\npodman_socket = "{path}/none.sock"\n'
    )
    async with fake_docker(path / "docker.sock") as daemon, Store.open(home.database) as store:
        group = await create_group(store, folder="crab", name="Crab")
        scene = Scene(home, daemon, store, group, capsys)
        daemon.answers["GET /images/json"] = (
            200,
            [
                image(home, USED, "group"),
                image(home, KEPT, "group", "hermitcrab-group-x:crab"),
                image(home, NAMED, "agent", "hermitcrab-agent:1"),
                image(home, LOOSE, "agent"),
                image(home, FOREIGN, "group", owner="another-home"),
                {"Id": "sha256:0", "Labels": None},
            ],
        )
        daemon.answers["GET /containers/json"] = (200, [{"Id": "c", "ImageID": USED}])
        daemon.answers[f"GET /images/{LOOSE}/json"] = (200, {"Id": LOOSE})
        daemon.answers[f"DELETE /images/{LOOSE}"] = (200, [])
        await store.write(
            lambda connection: group_images.built(connection, group.id, engine="docker", image=KEPT, packages="{}")
        )
        config = ContainerConfig(packages=Packages(apt=("jq",)))
        await store.write(lambda connection: container_configs.put(connection, group.id, config))
        real = GroupImages(store, home, load(home.path), engine="docker", default=None)
        images = SimpleNamespace(catalogue=real.catalogue, prune=real.prune, build=scene.build)
        methods = ImageMethods(cast("ControlledHost", SimpleNamespace(home=home, store=store, images=images)))
        served = {"images.build": methods.build, "images.list": methods.list, "images.prune": methods.prune}
        if host_runs:
            async with serving(home.run, served):
                yield scene
        else:
            yield scene


@pytest.mark.parametrize("host_runs", [True, False], ids=["a host runs", "no host runs"])
async def test_the_list_says_what_needs_each_image_of_this_home(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], host_runs: bool
) -> None:
    async with on_stage(tmp_path, capsys, host_runs=host_runs) as scene:
        found = await scene.json("list")
        assert {each["image"]: each["use"] for each in found["images"]} == {
            USED: "container",
            KEPT: "group",
            NAMED: "name",
            LOOSE: "",
        }
        table, _ = await scene.crab("list")
        assert "hermitcrab-group-x:crab" in table
        assert "nothing" in table


@pytest.mark.parametrize("host_runs", [True, False], ids=["a host runs", "no host runs"])
async def test_only_what_nothing_needs_is_pruned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], host_runs: bool
) -> None:
    async with on_stage(tmp_path, capsys, host_runs=host_runs) as scene:
        shown = await scene.json("prune", "--dry-run")
        assert [(each["image"]["image"], each["kept_because"]) for each in shown] == [(LOOSE, "")]
        assert [each for each in scene.daemon.requests if each.method == "DELETE"] == []
        table, _ = await scene.crab("prune")
        assert "removed" in table
        deleted = [each.path for each in scene.daemon.requests if each.method == "DELETE"]
        assert deleted == [f"/images/{LOOSE}"]
        scene.daemon.answers[f"DELETE /images/{LOOSE}"] = (409, {"message": "image has dependent child images"})
        assert "kept: image has dependent" in (await scene.crab("prune"))[0]


async def test_the_image_of_a_group_that_has_no_packages_any_more_is_pruned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with on_stage(tmp_path, capsys, host_runs=True) as scene:
        config = ContainerConfig(model="opus")
        await scene.store.write(lambda connection: container_configs.put(connection, scene.group.id, config))
        shown = await scene.json("prune", "--dry-run")
        assert sorted(each["image"]["image"] for each in shown) == sorted([KEPT, LOOSE])


async def test_an_engine_that_does_not_answer_is_not_one_without_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with on_stage(tmp_path, capsys, host_runs=False) as scene:
        scene.daemon.answers["GET /containers/json"] = (500, {"message": "out of order"})
        found = await scene.json("list")
        assert found["images"] == []
        assert "out of order" in found["problems"]["docker"]
        _, said = await scene.crab("list")
        assert "What docker has is not known" in said
        assert await scene.json("prune") == []


async def test_a_groups_build_is_followed_to_its_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with on_stage(tmp_path, capsys, host_runs=True) as scene:
        scene.outcome = lambda: GroupBuilt(
            group="crab", image=KEPT, packages={"apt": ["jq"], "npm": [], "pip": []}, fresh=True, log=None
        )
        said, log = await scene.crab("build", "--group", "crab")
        assert KEPT in said
        assert "==> Installing" in log
        assert "\x1b" not in log
        assert (await scene.json("build", "--group", "crab"))["packages"]["apt"] == ["jq"]


async def test_a_groups_build_that_fails_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> GroupBuilt:
        raise EngineError(Failure.IMAGE_UNAVAILABLE, "The installer failed. Its log ends with:\nno such package")

    async with on_stage(tmp_path, capsys, host_runs=True) as scene:
        scene.outcome = fail
        with pytest.raises(HermitcrabError, match="no such package"):
            await scene.crab("build", "--group", "crab")
        with pytest.raises(NotFoundError, match="absent"):
            await scene.crab("build", "--group", "absent")
    assert scene.built == ["crab"]


async def test_a_group_and_an_agent_image_are_not_made_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with on_stage(tmp_path, capsys, host_runs=False) as scene:
        for option in ("--base", "--wheels", "--tag"):
            with pytest.raises(BadInputError, match="--group goes alone"):
                await scene.crab("build", "--group", "crab", option, "x")


@pytest.mark.parametrize("name", ["", "-t", "a b", "../x", "a\n", "x" * 300, "a;id"])
async def test_what_is_no_name_of_an_image_never_reaches_an_engine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    async with on_stage(tmp_path, capsys, host_runs=False) as scene:
        with pytest.raises(BadInputError, match="is not the name of an image"):
            await scene.crab("build", f"--base={name}")
        with pytest.raises(BadInputError, match="is not the name of an image"):
            await scene.crab("build", f"--tag={name}")
        assert scene.daemon.requests == []


async def test_no_image_is_pruned_while_one_is_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with on_stage(tmp_path, capsys, host_runs=False) as scene:
        images = GroupImages(scene.store, scene.home, load(scene.home.path), engine="docker", default=None)
        images._building.add(scene.group.id)
        with pytest.raises(ConflictError, match="being made"):
            await images.prune(dry_run=False)
        with pytest.raises(ConflictError, match="being made"):
            await images.build(scene.group, progress=print)


async def test_a_failed_build_is_noted_and_the_image_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with on_stage(tmp_path, capsys, host_runs=False) as scene:
        images = GroupImages(scene.store, scene.home, load(scene.home.path), engine="docker", default=None)
        await scene.store.write(lambda connection: container_configs.put(connection, scene.group.id, ContainerConfig()))
        with pytest.raises(BadInputError, match="has no packages") as raised:
            await images.build(scene.group, progress=print)
        assert "packages.apt" in raised.value.hint
        found = await scene.store.read(lambda connection: group_images.of(connection, scene.group.id))
        assert found is not None
        assert (found.image, found.engine) == (KEPT, "docker")
        assert "has no packages" in str(found.failure)
        config = ContainerConfig(packages=Packages(apt=("jq",)))
        short = await images.shortcoming(scene.group, config)
        assert short is not None
        assert "other packages" in short
        assert "newest build failed" in short
        assert "has no packages" in short
        await scene.store.write(
            lambda connection: group_images.built(
                connection,
                scene.group.id,
                engine="docker",
                image=LOOSE,
                packages='{"apt": ["jq"], "npm": [], "pip": []}',
            )
        )
        assert await images.shortcoming(scene.group, config) is None
        assert await images.shortcoming(scene.group, ContainerConfig()) is None
        elsewhere = GroupImages(scene.store, scene.home, load(scene.home.path), engine="podman", default=None)
        assert "in no image yet" in str(await elsewhere.shortcoming(scene.group, config))
