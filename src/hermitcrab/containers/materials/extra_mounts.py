"""The additional mounts of an agent group's config, each decided on by the allow-list as it stands now."""

from __future__ import annotations

from hermitcrab.containers.materials.mounts import decide_each, forbidden_places
from hermitcrab.errors import SettingsError
from hermitcrab.logic.hardening import PROFILES
from hermitcrab.logic.mounts import Decision, MountRequest, Step
from hermitcrab.model.container_config import ContainerConfig
from hermitcrab.settings import allowlist
from hermitcrab.settings.home import Home


def decide_for(home: Home, group_folder: str, config: ContainerConfig) -> tuple[Decision, ...]:
    """One decision for each mount that the config asks for, in its order. Blocks.

    A broken allow-list raises nothing: each mount is refused, with what is wrong with the list.
    """
    requests = _requests(group_folder, config)
    if not requests:
        return ()
    try:
        listed = allowlist.read(home.mounts_file)
    except SettingsError as error:
        return tuple(Decision(request=each, steps=(Step("allow-list", False, error.message),)) for each in requests)
    return decide_each(requests, listed, forbidden=forbidden_places(home))


def _requests(group_folder: str, config: ContainerConfig) -> list[MountRequest]:
    profile = PROFILES[config.hardening]
    return [
        MountRequest(
            path=each.host_path,
            name=each.name,
            write=not each.read_only,
            group=group_folder,
            read_only_because=""
            if profile.extra_mounts_are_writable
            else f"hardening {profile.name!r} lets none write",
        )
        for each in config.additional_mounts
    ]
