"""Which mount a path lies on, and which file systems are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from hermitcrab.settings.filesystem import FileSystem, file_system_of

MOUNTS = r"""22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 22 0:26 / /home rw,relatime - nfs4 server:/home rw
31 30 0:27 / /home/ann/local rw - xfs /dev/sdb rw
32 22 0:28 / /mnt/with\040space rw master:1 - cifs //server/share rw
33 22 0:29 / /data rw - ext4 /dev/sdc rw
34 33 0:30 / /data rw - virtiofs share rw
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/var/lib/hermitcrab", "ext4"),
        ("/home", "nfs4"),
        ("/home/ann/.local/share/hermitcrab", "nfs4"),
        ("/home/ann/local/crab", "xfs"),
        ("/homeless", "ext4"),
        ("/mnt/with space/crab", "cifs"),
        ("/data/crab", "virtiofs"),
    ],
)
def test_the_deepest_and_latest_mount_counts(path: str, kind: str) -> None:
    found = file_system_of(Path(path), MOUNTS)
    assert found is not None
    assert found.kind == kind


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "smb3", "9p", "virtiofs", "fuse.sshfs", "fuse.rclone", "ceph"])
def test_what_other_machines_share_is_unsafe(kind: str) -> None:
    assert not FileSystem(kind, "/x").safe


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "zfs", "overlay", "tmpfs", "fuse.fuse-overlayfs", "fuseblk"])
def test_what_this_machine_alone_serves_is_safe(kind: str) -> None:
    assert FileSystem(kind, "/x").safe


@pytest.mark.parametrize("text", ["", "nonsense", "22 1 0:1 / /", "a b c d /x e - "])
def test_text_that_is_no_mount_table_says_nothing(text: str) -> None:
    assert file_system_of(Path("/x"), text) is None
