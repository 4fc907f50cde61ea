"""What makes an image what it is, and what an engine is told to make it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermitcrab.errors import BadInputError
from hermitcrab.logic.image_packages import PackageList, parse_packages
from hermitcrab.logic.image_recipe import BuildLimits, Recipe, build_body, build_name, commit_changes
from hermitcrab.model.container import LABEL_INSTALLATION

RECIPE = Recipe(
    kind="group",
    parent="ab" * 32,
    packages=parse_packages(apt=["jq"], npm=["@types/node@22.1.0"], pip=["requests==2.32.4"]),
    files={"a.whl": "11"},
    installer="22",
)
LIMITS = BuildLimits()


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "agent"},
        {"parent": "cd" * 32},
        {"packages": PackageList()},
        {"packages": parse_packages(apt=["jq=1.6"], npm=["@types/node@22.1.0"], pip=["requests==2.32.4"])},
        {"files": {"a.whl": "12"}},
        {"files": {"b.whl": "11"}},
        {"installer": "23"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_whatever_could_change_the_image_changes_its_digest(change: dict[str, Any]) -> None:
    assert replace(RECIPE, **change).digest != RECIPE.digest


def test_the_order_of_wishes_changes_nothing() -> None:
    one = replace(RECIPE, packages=parse_packages(apt=["b1", "a1"]), files={"x": "1", "y": "2"})
    other = replace(RECIPE, packages=parse_packages(apt=["a1", "b1"]), files={"y": "2", "x": "1"})
    assert one.digest == other.digest


@pytest.mark.parametrize("engine", ["docker", "podman"])
def test_a_build_has_no_network_no_device_and_limits(engine: Any) -> None:
    body = build_body(
        RECIPE, context="/c", owner="home", limits=LIMITS, processes=1000, engine=engine, system_calls="THE-FILTER"
    )
    host = body["HostConfig"]
    assert body["Image"] == RECIPE.parent
    assert (host["NetworkMode"], body["NetworkDisabled"]) == ("none", True)
    assert host["CapDrop"] == ["ALL"]
    assert not {"SYS_ADMIN", "NET_RAW", "MKNOD", "SYS_PTRACE", "SETFCAP"} & set(host["CapAdd"])
    assert host["SecurityOpt"] == ["no-new-privileges", "seccomp=THE-FILTER"]
    assert (host["Privileged"], host["Memory"], host["MemorySwap"]) == (False, LIMITS.memory_bytes, LIMITS.memory_bytes)
    assert host["PidsLimit"] == LIMITS.pids
    assert [(each["Source"], each["ReadOnly"]) for each in host["Mounts"]] == [("/c", True)]
    assert {each["Name"] for each in host["Ulimits"]} >= {"core", "nofile", "fsize"}
    # Whatever the parent says of itself decides nothing.
    assert body["Entrypoint"][:1] == ["/bin/sh"]
    assert (body["User"], body["WorkingDir"], body["Healthcheck"]) == ("0:0", "/", {"Test": ["NONE"]})
    # A running host must not take it for a container of a session, and remove it.
    assert LABEL_INSTALLATION not in body["Labels"]


names = st.text(max_size=40) | st.from_regex(r"[-@a-z0-9./:=+~^#;$(){}\n\" ]+", fullmatch=True)


@given(st.lists(names, max_size=5), st.lists(names, max_size=5), st.lists(names, max_size=5))
def test_no_name_of_a_package_reaches_the_engine(apt: list[str], npm: list[str], pip: list[str]) -> None:
    """Names are in the digest only: there is nothing that one could turn into an instruction or an argument."""
    try:
        packages = parse_packages(apt=apt, npm=npm, pip=pip)
    except BadInputError:
        return
    recipe = replace(RECIPE, packages=packages)
    empty = replace(RECIPE, packages=PackageList())

    def told(of: Recipe) -> str:
        body = build_body(
            of, context="/c", owner="home", limits=LIMITS, processes=1000, engine="docker", system_calls=None
        )
        name = build_name(of, owner="home")
        return json.dumps([body, commit_changes(of, owner="home"), name]).replace(of.digest, "DIGEST")

    assert told(recipe) == told(empty)


def test_the_kept_image_runs_as_nobody_of_its_parents_choice() -> None:
    changes = commit_changes(RECIPE, owner="home")
    assert "USER 1000:1000" in changes
    assert any(each.startswith("ENTRYPOINT ") for each in changes)
    assert f'LABEL hermitcrab.parent="{RECIPE.parent}"' in changes
    assert not any("\n" in each for each in changes)
