"""Which skills an agent group has, and which folder is one."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

from hermitcrab.model.documents import Document
from hermitcrab.model.ids import FOLDER_NAME

SKILL_FILE = "SKILL.md"
"""What makes a folder a skill: what it is for, and how it is used."""

INSTRUCTIONS_FILE = "instructions.md"
"""Optional: what the agent is told of it before it opens anything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Skill:
    name: str
    files: Mapping[str, Document]
    """By their path in the skill's folder."""

    @property
    def instructions(self) -> str | None:
        found = self.files.get(INSTRUCTIONS_FILE)
        return None if found is None else found.content.decode("utf-8", "replace")


def is_skill_name(name: str) -> bool:
    return FOLDER_NAME.fullmatch(name) is not None


def chosen(selection: Literal["all"] | tuple[str, ...], available: Collection[str]) -> tuple[str, ...]:
    """The names of `selection` that there are, in order; `all` is whatever there is now."""
    return tuple(sorted(available if selection == "all" else set(selection) & set(available)))


def missing(selection: Literal["all"] | tuple[str, ...], available: Collection[str]) -> tuple[str, ...]:
    """The names of `selection` that there are not."""
    return () if selection == "all" else tuple(sorted(set(selection) - set(available)))


def missing_hint(name: str, available: Collection[str]) -> str:
    close = difflib.get_close_matches(name, sorted(available), n=1)
    if close:
        return f"Did you mean {close[0]}?"
    return f"There are {', '.join(sorted(available))}." if available else "There is no skill at all."
