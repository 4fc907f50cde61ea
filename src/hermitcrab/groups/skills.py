"""Where skills lie, and what is in them: shipped ones, the installation's own, one group's own.

A later place wins over an earlier one that has a skill of the same name. All of them are the host's: no container can
write there, so that they may be read by name. A link is passed over all the same, as it may lead to where agents write.
"""

from __future__ import annotations

import os
import stat
from importlib import resources
from pathlib import Path

import structlog

from hermitcrab.logic.skills import SKILL_FILE, Skill, chosen, is_skill_name, missing
from hermitcrab.model.container_config import ContainerConfig
from hermitcrab.model.documents import Document
from hermitcrab.settings.home import Home

SKILL_BYTES_AT_MOST = 8 * 1024 * 1024
SKILL_FILES_AT_MOST = 400
ALL_BYTES_AT_MOST = 64 * 1024 * 1024

log = structlog.get_logger(__name__)


class SkillShelf:
    """All methods block; call them in a thread."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._shipped = Path(str(resources.files("hermitcrab.groups") / "shared/skills"))

    def folders(self, group_folder: str | None) -> dict[str, Path]:
        """The folder of each skill that the group can have, by name. None: that any group can have."""
        places = [self._shipped, self._home.skills]
        if group_folder is not None:
            places.append(self._home.group_skills(group_folder))
        found: dict[str, Path] = {}
        for place in places:
            found.update(_skills_in(place))
        return found

    def read(self, group_folder: str, config: ContainerConfig) -> tuple[Skill, ...]:
        """The skills that the config chose, by name. What is gone or cannot be used is logged and passed over."""
        folders = self.folders(group_folder)
        for name in missing(config.skills, folders):
            log.warning("skill.missing", group=group_folder, skill=name)
        skills = []
        left = ALL_BYTES_AT_MOST
        for name in chosen(config.skills, folders):
            try:
                skill = _read(name, folders[name], min(left, SKILL_BYTES_AT_MOST))
            except OSError as error:
                log.warning("skill.unusable", group=group_folder, skill=name, reason=str(error))
                continue
            left -= sum(len(each.content) for each in skill.files.values())
            skills.append(skill)
        return tuple(skills)


def _skills_in(place: Path) -> dict[str, Path]:
    try:
        entries = sorted(os.scandir(place), key=lambda entry: entry.name)
    except FileNotFoundError:
        return {}
    except OSError as error:
        log.warning("skills.unreadable", folder=str(place), reason=str(error))
        return {}
    found = {}
    for entry in entries:
        if not entry.is_dir(follow_symlinks=False) or not is_skill_name(entry.name):
            if not entry.name.startswith((".", "__")):
                log.warning("skill.unusable", folder=entry.path, reason="no folder with the name of a skill")
            continue
        if not stat.S_ISREG(_mode(Path(entry.path) / SKILL_FILE)):
            log.warning("skill.unusable", folder=entry.path, reason=f"it has no {SKILL_FILE}")
            continue
        found[entry.name] = Path(entry.path)
    return found


def _mode(path: Path) -> int:
    try:
        return path.lstat().st_mode
    except OSError:
        return 0


def _read(name: str, folder: Path, bytes_at_most: int) -> Skill:
    files: dict[str, Document] = {}
    size = 0
    for parent, folders, names in os.walk(folder):
        # Names are sorted and links not followed; caches of interpreters are nobody's skill.
        folders[:] = sorted(each for each in folders if each != "__pycache__")
        for each in sorted(names):
            path = Path(parent) / each
            found = path.lstat()
            if not stat.S_ISREG(found.st_mode):
                log.warning("skill.file-passed-over", skill=name, file=str(path))
                continue
            size += found.st_size
            if size > bytes_at_most or len(files) >= SKILL_FILES_AT_MOST:
                raise OSError(f"it has more than {SKILL_FILES_AT_MOST} files or {bytes_at_most} bytes")
            files[str(path.relative_to(folder))] = Document(
                path.read_bytes(), executable=bool(found.st_mode & stat.S_IXUSR)
            )
    return Skill(name=name, files=files)
