from __future__ import annotations

import io
import json
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hermitcrab.containers.images import build_agent_image, build_context, default_recipe, default_tag
from hermitcrab.errors import BadInputError, EngineError, Failure
from hermitcrab.testing.fake_docker import FakeDocker, fake_docker


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[FakeDocker]:
    async with fake_docker(tmp_path / "docker.sock") as daemon:
        yield daemon


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "image" / "wheels").mkdir(parents=True)
    (tmp_path / "image" / "Containerfile").write_text("FROM scratch\n")
    return tmp_path / "image"


def names(context: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(context)) as tar:
        return tar.getnames()


def test_only_the_recipe_and_wheels_are_sent_to_the_engine(recipe: Path) -> None:
    (recipe / ".env").write_text("SECRET")
    (recipe / "wheels" / "secret.txt").write_text("SECRET")
    (recipe / "wheels" / "a-1-py3-none-any.whl").write_bytes(b"wheel")
    (recipe / "wheels" / "link-1-py3-none-any.whl").symlink_to(recipe / ".env")
    context = build_context(recipe)
    assert names(context) == ["Containerfile", "wheels/README", "wheels/a-1-py3-none-any.whl"]
    assert b"SECRET" not in context
    assert context == build_context(recipe)


def test_the_recipe_of_the_source_can_be_sent() -> None:
    assert "Containerfile" in names(build_context(default_recipe()))


def test_a_folder_without_a_recipe_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="Containerfile"):
        build_context(tmp_path)


def lines(*messages: dict[str, str]) -> bytes:
    return b"".join(json.dumps(each).encode() + b"\n" for each in messages)


async def test_a_build_has_no_network_and_trusts_no_cache(daemon: FakeDocker, recipe: Path, tmp_path: Path) -> None:
    daemon.answers["POST /build"] = (200, lines({"stream": "Step 1\n"}, {"stream": "\n"}, {"stream": "done\n"}))
    daemon.answers["GET /images/agent:1/json"] = (200, {"Id": "sha256:5"})
    told: list[str] = []
    socket = str(tmp_path / "docker.sock")
    built = await build_agent_image(socket, base="base:1", tag="agent:1", progress=told.append, recipe=recipe)
    assert built == "sha256:5"
    assert told == ["Step 1", "done"]
    (asked,) = daemon.asked("POST /build")
    assert asked.query["networkmode"] == "none"
    assert asked.query["nocache"] == "true"
    assert json.loads(asked.query["buildargs"]) == {"BASE": "base:1", "APT_PACKAGES": ""}
    assert names(asked.body)[0] == "Containerfile"


async def test_only_named_packages_give_a_build_a_network(daemon: FakeDocker, recipe: Path, tmp_path: Path) -> None:
    daemon.answers["POST /build"] = (200, lines({"stream": "ok"}))
    daemon.answers["GET /images/agent:1/json"] = (200, {"Id": "sha256:5"})
    await build_agent_image(
        str(tmp_path / "docker.sock"),
        base=None,
        tag="agent:1",
        progress=lambda _line: None,
        recipe=recipe,
        apt_packages=("git", "ffmpeg=7:5.1"),
    )
    (asked,) = daemon.asked("POST /build")
    assert asked.query["networkmode"] == "default"
    assert json.loads(asked.query["buildargs"])["APT_PACKAGES"] == "git ffmpeg=7:5.1"


async def test_a_failed_build_ends_with_the_end_of_its_log(daemon: FakeDocker, recipe: Path, tmp_path: Path) -> None:
    log = [{"stream": f"line {number}\n"} for number in range(50)]
    daemon.answers["POST /build"] = (200, lines(*log, {"error": "exit code 100"}))
    with pytest.raises(EngineError, match="exit code 100") as raised:
        await build_agent_image(
            str(tmp_path / "docker.sock"), base=None, tag="agent:1", progress=lambda _line: None, recipe=recipe
        )
    assert raised.value.failure is Failure.IMAGE_UNAVAILABLE
    assert "line 49" in raised.value.message
    assert "line 5\n" not in raised.value.message
    assert raised.value.hint


@pytest.mark.parametrize(
    "package", ["x; curl", "-o", "--post-install", "git+https://x", "x@file:/y", "a\nRUN b", "$(x)", ""]
)
async def test_a_package_name_is_never_a_command(
    daemon: FakeDocker, recipe: Path, tmp_path: Path, package: str
) -> None:
    with pytest.raises(BadInputError):
        await build_agent_image(
            str(tmp_path / "docker.sock"),
            base=None,
            tag="agent:1",
            progress=lambda _line: None,
            recipe=recipe,
            apt_packages=(package,),
        )
    assert daemon.requests == []


@pytest.mark.parametrize("tag", ["", "-t", "a b", "../x", "a\n"])
async def test_a_bad_tag_is_bad_input(recipe: Path, tmp_path: Path, tag: str) -> None:
    with pytest.raises(BadInputError):
        await build_agent_image(
            str(tmp_path / "docker.sock"), base=None, tag=tag, progress=lambda _line: None, recipe=recipe
        )


def test_the_image_carries_the_version_of_hermitcrab() -> None:
    assert default_tag().startswith("hermitcrab-agent:")
