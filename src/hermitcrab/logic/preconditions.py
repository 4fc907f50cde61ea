"""Judgements of `crab doctor` on figures of the machine. Pure."""

from __future__ import annotations

from hermitcrab.model.container import Finding

OLDEST_PYTHON = (3, 11)
SOUND_SQLITE = (3, 51, 3)
"""The first release whose write-ahead log cannot be reset under a writer's feet."""

LITTLE_SPACE = 2 * 1024**3
NO_SPACE = 200 * 1024**2


def python(version: tuple[int, int, int]) -> Finding:
    text = ".".join(str(part) for part in version)
    if version[:2] < OLDEST_PYTHON:
        return Finding(
            subject="Python",
            level="error",
            text=f"{text} is too old",
            fix="Install Python 3.11 or newer and make the environment anew with it.",
        )
    return Finding(subject="Python", level="ok", text=text)


def sqlite(version: tuple[int, int, int]) -> Finding:
    text = ".".join(str(part) for part in version)
    if version < SOUND_SQLITE:
        return Finding(
            subject="SQLite",
            level="warning",
            text=f"{text} has a rare fault in its write-ahead log when several connections write; "
            "Hermitcrab writes each database through one connection, which avoids it",
            fix="Use a Python that is linked to SQLite 3.51.3 or newer, when your system has one.",
        )
    return Finding(subject="SQLite", level="ok", text=text)


def disk_space(free_bytes: int, place: str) -> Finding:
    text = f"{free_bytes / 1024**3:.1f} GB free at {place}"
    if free_bytes < NO_SPACE:
        return Finding(
            subject="disk", level="error", text=text, fix="Free some space: messages cannot be taken without it."
        )
    if free_bytes < LITTLE_SPACE:
        return Finding(subject="disk", level="warning", text=text, fix="Free some space soon.")
    return Finding(subject="disk", level="ok", text=text)


def rootless(user: str, uid: int, *, subuid: str, subgid: str, programs: bool) -> Finding:
    """Whether an ordinary user can have containers with more than one user in them, as rootless Podman makes them.

    `subuid`, `subgid`: the text of those files. `programs`: newuidmap and newgidmap are installed.
    """
    subject = "rootless"
    if not programs:
        return Finding(
            subject=subject,
            level="error",
            text="newuidmap and newgidmap are not installed, and without them there is no user for a container",
            fix="Install the system's package `uidmap` (Debian) or `shadow-utils`.",
        )
    lacking = [name for name, text in (("/etc/subuid", subuid), ("/etc/subgid", subgid)) if not _has(text, user, uid)]
    if lacking:
        return Finding(
            subject=subject,
            level="error",
            text=f"{' and '.join(lacking)} give no ids to {user}",
            fix=f"usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}; podman system migrate",
        )
    return Finding(subject=subject, level="ok", text=f"{user} has ids for the users of containers")


def _has(text: str, user: str, uid: int) -> bool:
    """Whether a line of /etc/subuid gives the user at least one id."""
    for line in text.splitlines():
        owner, _, numbers = line.partition(":")
        first, _, count = numbers.partition(":")
        if owner in {user, str(uid)} and first.isdecimal() and count.isdecimal() and int(count) > 0:
            return True
    return False
