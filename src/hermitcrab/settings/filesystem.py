"""Which file systems a home may lie on: SQLite and file locks need one that this machine alone serves."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_UNSAFE = frozenset(
    {
        *("nfs", "nfs4", "cifs", "smb", "smb2", "smb3", "smbfs", "ncpfs", "afs", "coda"),
        *("9p", "virtiofs", "vboxsf", "vmhgfs", "prl_fs", "drvfs"),
        *("ceph", "glusterfs", "lustre", "gpfs", "beegfs", "ocfs2", "gfs2", "orangefs", "fuse"),
    }
)
"""Shared with another machine or with the machine below: locks and shared memory do not reach across."""

_SAFE_FUSE = frozenset({"fuse.fuse-overlayfs", "fuse.gocryptfs"})
"""Served by a program on this machine that keeps locks and shared memory right. Any other `fuse.*` may be a network."""


@dataclass(frozen=True, slots=True)
class FileSystem:
    kind: str
    mount_point: str

    @property
    def safe(self) -> bool:
        if self.kind.startswith("fuse."):
            return self.kind in _SAFE_FUSE
        return self.kind not in _UNSAFE


def file_system_of(path: Path, mountinfo: str) -> FileSystem | None:
    """The file system that holds the absolute `path`, from the text of /proc/self/mountinfo.

    None: the text names no mount over it, or was cut off.
    """
    best: FileSystem | None = None
    for line in mountinfo.splitlines():
        before, separator, after = line.partition(" - ")
        fields, kind = before.split(" "), after.split(" ")[0]
        if not separator or len(fields) < 5 or not kind:  # the mount point is the fifth field
            continue
        mount_point = _unescape(fields[4])
        # Of two mounts on one point the later hides the earlier.
        if path.is_relative_to(mount_point) and (best is None or len(mount_point) >= len(best.mount_point)):
            best = FileSystem(kind, mount_point)
    return best


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)
