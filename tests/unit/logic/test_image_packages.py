"""The grammar of packages: what a package manager could take for something else never gets through."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermitcrab.errors import BadInputError
from hermitcrab.logic.image_packages import PACKAGES_AT_MOST, Package, parse_package, parse_packages

GOOD = [
    ("apt", "ffmpeg", Package("apt", "ffmpeg")),
    ("apt", "g++", Package("apt", "g++")),
    ("apt", "libc6=2.36-9+deb12u10", Package("apt", "libc6", "2.36-9+deb12u10")),
    ("apt", "ffmpeg=7:5.1.6-0+deb12u1", Package("apt", "ffmpeg", "7:5.1.6-0+deb12u1")),
    ("npm", "typescript", Package("npm", "typescript")),
    ("npm", "@types/node", Package("npm", "@types/node")),
    ("npm", "@types/node@22.1.0", Package("npm", "@types/node", "22.1.0")),
    ("npm", "left-pad@1.3.0-beta.1+build", Package("npm", "left-pad", "1.3.0-beta.1+build")),
    ("pip", "Requests_OAuth.lib", Package("pip", "requests-oauth-lib")),
    ("pip", "requests==2.32.4", Package("pip", "requests", "2.32.4")),
    ("pip", "torch==2.1.0+cpu", Package("pip", "torch", "2.1.0+cpu")),
]

BAD = [
    *[
        (ecosystem, text)
        for ecosystem in ("apt", "npm", "pip")
        for text in (
            "", " ", "-o", "--post-install", "--", "x; curl", "x && y", "x|y", "$(id)", "`id`", "x\n RUN id", "x\nRUN",
            "git+https://example.org/x", "https://example.org/x", "file:/etc", "../x", "/etc/passwd", "./x", "x y",
            "x@file:/etc", "x\0", "x=", "x==", "x@", "é", "x" * 300, "'x'", '"x"', "x*", "x?", "x,y", "~x", "x\t",
            "-r/etc/passwd", "@/x", "x#egg=y", "\uff58", "x\r", "x ", "x==1; python_version<'4'",
        )
    ],
    ("apt", "libc6-"), ("apt", "bash="), ("apt", "bash/stable"), ("apt", "bash:i386"), ("apt", "task^"),
    ("apt", "bash=1 2"), ("apt", "bash=1/../x"), ("apt", "Bash"), ("apt", "bash=git:1"),
    ("npm", "a/b"), ("npm", "x@npm:y"), ("npm", "x@latest"), ("npm", "x@^1.0.0"), ("npm", "x@git+ssh://h/x"),
    ("npm", "x.tgz"), ("npm", "x.tar.gz"), ("npm", "@a/b/c"), ("npm", "@a"), ("npm", "x@1"), ("npm", "x@>=1.0.0"),
    ("pip", "x>=1"), ("pip", "x[all]"), ("pip", "x @ https://h/x.whl"), ("pip", "x==1.*"), ("pip", "x==/etc"),
    ("pip", "-e"), ("pip", "x==1 --hash=sha256:0"), ("pip", "x-"),
]  # fmt: skip


@pytest.mark.parametrize(("ecosystem", "text", "package"), GOOD, ids=[text for _, text, _ in GOOD])
def test_a_name_with_or_without_a_version_is_a_package(ecosystem: Any, text: str, package: Package) -> None:
    assert parse_package(ecosystem, text) == package
    assert parse_package(ecosystem, str(package)) == package


@pytest.mark.parametrize(("ecosystem", "text"), BAD)
def test_whatever_could_be_more_than_a_name_is_refused(ecosystem: Any, text: str) -> None:
    with pytest.raises(BadInputError, match="is not the name of a package"):
        parse_package(ecosystem, text)


@given(st.sampled_from(["apt", "npm", "pip"]), st.text() | st.from_regex(r"[-@a-z0-9./:=+~^#;| \n]+", fullmatch=True))
def test_what_gets_through_has_nothing_that_a_shell_or_a_package_manager_obeys(ecosystem: Any, text: str) -> None:
    try:
        package = parse_package(ecosystem, text)
    except BadInputError:
        return
    written = str(package)
    assert re.fullmatch(r"[A-Za-z0-9@._+:~=/!-]+", written)
    assert written[0] not in "-./~"
    assert ".." not in package.name.split("/")
    assert package.name.count("/") == (1 if package.name.startswith("@") else 0)
    assert not re.search(r"(git|file|npm|https?):", written)
    assert parse_package(ecosystem, written) == package


def test_a_list_is_in_order_and_has_each_package_once() -> None:
    found = parse_packages(apt=["b1", "a1", "b1"], npm=["x"], pip=["A.b==1", "a-b==1"])
    assert found.texts == {"apt": ["a1", "b1"], "npm": ["x"], "pip": ["a-b==1"]}
    assert found
    assert not parse_packages()


def test_two_versions_of_one_package_and_too_many_packages_are_refused() -> None:
    with pytest.raises(BadInputError, match="asked for twice"):
        parse_packages(pip=["a==1", "A==2"])
    with pytest.raises(BadInputError, match="too many"):
        parse_packages(apt=[f"a{number}" for number in range(PACKAGES_AT_MOST + 1)])
