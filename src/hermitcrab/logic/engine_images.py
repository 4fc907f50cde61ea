"""Images as Docker and Podman tell of them, and the names by which they are asked for: pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hermitcrab.errors import BadInputError
from hermitcrab.logic.docker_body import IMAGE
from hermitcrab.logic.image_recipe import LABEL_KIND, LABEL_OWNER, LABEL_PARENT, LABEL_RECIPE


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineImage:
    """An image that Hermitcrab made, as its engine has it."""

    id: str
    names: tuple[str, ...]
    kind: str
    recipe: str
    parent: str
    owner: str
    size_bytes: int
    created: int
    """Seconds since 1970."""


def check_image_name(name: str) -> None:
    """Raise BadInputError for what could lead anywhere else in an engine's API."""
    if IMAGE.fullmatch(name) is None or ".." in name:
        raise BadInputError(f"{name[:100]!r} is not the name of an image")


def id_of(found: Mapping[str, Any]) -> str:
    return whole_id(str(found.get("Id", "")))


def whole_id(image: str) -> str:
    """Docker writes `sha256:` before an id, Podman at times, and without it takes an id that is gone for a name."""
    return f"sha256:{image.removeprefix('sha256:')}"


def name_and_tag(name: str) -> tuple[str, str]:
    if "@" in name:
        repository, _, digest = name.partition("@")
        return repository, digest
    repository, joint, tag = name.rpartition(":")
    return (repository, tag) if joint and "/" not in tag else (name, "latest")


def listed_image(answer: Mapping[str, Any]) -> EngineImage:
    told = answer.get("Labels")
    labels: Mapping[str, Any] = told if isinstance(told, dict) else {}
    names = [str(each) for each in answer.get("RepoTags") or [] if "<none>" not in str(each)]
    return EngineImage(
        id=id_of(answer),
        names=tuple(names),
        kind=str(labels.get(LABEL_KIND, "")),
        recipe=str(labels.get(LABEL_RECIPE, "")),
        parent=str(labels.get(LABEL_PARENT, "")),
        owner=str(labels.get(LABEL_OWNER, "")),
        size_bytes=int(answer.get("Size") or 0),
        created=int(answer.get("Created") or 0),
    )
