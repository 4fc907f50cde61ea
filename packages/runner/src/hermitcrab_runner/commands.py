"""Slash commands: which rows are commands, by exact word. Who may give one, the host has decided already."""

from __future__ import annotations

from collections.abc import Collection

from hermitcrab_runner.rows import Row

CLEAR = "/clear"


def command_of(row: Row, native: Collection[str]) -> str | None:
    """The command that this row gives: `/clear`, or one of the provider's own. Other slash text is ordinary text."""
    if not (row.trigger and row.from_chat):
        return None
    words = row.text.split(maxsplit=1)
    if not words:
        return None
    word = words[0].lower()
    return word if word == CLEAR or word in native else None
