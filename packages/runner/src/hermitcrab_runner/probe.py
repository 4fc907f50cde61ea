"""Whether this container can write where it must: tried once, before hello, by making a file and removing it again."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping
from typing import Any, NamedTuple

PLACES = "HERMITCRAB_WRITABLE"
"""Names the variable with the places, separated by colons."""


class Proof(NamedTuple):
    writable: list[str]
    unwritable: list[dict[str, Any]]
    """Each {path, error}, with the error's name."""


def prove(environment: Mapping[str, str]) -> Proof:
    proof = Proof([], [])
    for path in filter(None, environment.get(PLACES, "").split(":")):
        try:
            _try(path)
        except OSError as error:
            proof.unwritable.append({"path": path, "error": errno.errorcode.get(error.errno or 0, str(error))})
        else:
            proof.writable.append(path)
    return proof


def _try(path: str) -> None:
    flags = os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    if not stat.S_ISDIR(os.lstat(path).st_mode):
        os.close(os.open(path, flags))
        return
    file = f"{path}/.hermitcrab-{os.urandom(6).hex()}"
    descriptor = os.open(file, flags | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(descriptor, b"x")
    finally:
        os.close(descriptor)
        os.unlink(file)
