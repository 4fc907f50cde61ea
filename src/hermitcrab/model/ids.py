"""Identifiers, and the one grammar for names that people choose."""

from __future__ import annotations

import re
import secrets
from typing import NewType

AgentGroupId = NewType("AgentGroupId", str)
MessagingGroupId = NewType("MessagingGroupId", str)
WiringId = NewType("WiringId", str)
SessionId = NewType("SessionId", str)
MessageId = NewType("MessageId", str)
InstallationId = NewType("InstallationId", str)
Generation = NewType("Generation", int)

FOLDER_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}", re.ASCII)
"""Names of agent groups' folders: safe as a file name, a container name and an argument."""

RESERVED_FOLDER_NAMES = frozenset({"global"})


def new_id(prefix: str, now_ms: int) -> str:
    """`<prefix>-<epoch ms>-<10 hex digits>`: sorts by time and cannot be guessed or collide."""
    return f"{prefix}-{now_ms}-{secrets.token_hex(5)}"
