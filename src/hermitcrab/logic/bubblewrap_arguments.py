"""What bubblewrap is told: pure functions from a container's spec to its arguments.

The engine opens everything that is mounted beforehand and names it by descriptor, so that what was verified is what is
mounted. Order is meaning: bubblewrap carries out its arguments one after the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from hermitcrab.errors import EngineError, Failure
from hermitcrab.logic import spec_check
from hermitcrab.model.container import ContainerSpec

USER_IN_SANDBOX = 1000
"""How the host's ordinary user appears inside, where the host is no superuser."""

HOST_ROOT_INSIDE = 65534
"""As which uid and gid the host's superuser appears inside: nobody, and never the container's own user."""

SHARED_MEMORY_BYTES = 64 * 1024 * 1024

INSIDE = 'echo >&0; exec </dev/null >&2; exec "$@"'
"""The first program inside: says "ready", closes the two descriptors of the set-up (stdin is the socket that waits for
"ready", stdout the user namespace), and becomes the container's main process."""

USER_NAMESPACE = 1
"""The descriptor of the user namespace: one that every shell can close, and not 0, which bubblewrap takes for none."""

INSIDE_WITH_PROCESS_LIMIT = f'{{ ulimit -u "$0" || ulimit -p "$0"; }} 2>/dev/null; {INSIDE}'
"""The same, limiting processes where no control group does: shells differ in the letter. The kernel counts them per
user namespace, so the limit is the sandbox's own only when it is set inside."""

LAUNCH = """\
ulimit -c 0; ulimit -n "$0"; ulimit -f "$1"; shift
while [ "$1" != -- ]; do echo 0 >"$1" || exit 125; shift; done
shift
echo 500 >/proc/self/oom_score_adj
exec "$@"
"""
"""Runs on the host before bubblewrap: joins the control groups, so that nothing of the container is ever outside them;
offers the container to the kernel before the host when memory runs out; sets limits that are inherited."""

LAUNCH_BLOCK = 512
"""Bytes in which a POSIX shell counts the size of files."""


@dataclass(frozen=True, slots=True)
class Bind:
    """Something of the host, by its open descriptor."""

    target: str
    descriptor: int
    writable: bool = False


@dataclass(frozen=True, slots=True)
class Tmpfs:
    target: str
    size_bytes: int
    mode: int = 0o755


@dataclass(frozen=True, slots=True)
class Link:
    target: str
    to: str


@dataclass(frozen=True, slots=True)
class Folder:
    target: str


@dataclass(frozen=True, slots=True)
class Data:
    """A small read-only file with what can be read from the descriptor."""

    target: str
    descriptor: int
    over_existing: bool = False
    """Mounted over the file that the image has there, instead of made."""


Step = Bind | Tmpfs | Link | Folder | Data


@dataclass(frozen=True, slots=True)
class Identity:
    """Who the container is. `user_namespace` None: an ordinary user's own, made by bubblewrap."""

    uid: int
    gid: int
    user_namespace: int | None


def arguments(
    *,
    steps: Iterable[Step],
    identity: Identity,
    env: Mapping[str, str],
    hostname: str,
    workdir: str,
    status: int,
    seccomp: int | None,
) -> list[str]:
    """The options for bubblewrap, to be given to it through a descriptor."""
    told = ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"]
    if identity.user_namespace is None:
        told += ["--unshare-user", "--disable-userns"]
    else:
        told += ["--userns", str(identity.user_namespace)]
    told += ["--uid", str(identity.uid), "--gid", str(identity.gid), "--cap-drop", "ALL"]
    told += ["--as-pid-1", "--new-session", "--hostname", hostname[:63], "--json-status-fd", str(status), "--clearenv"]
    for name, value in env.items():
        told += ["--setenv", name, value]
    for step in steps:
        told += _step(step)
    # After everything was put in place: neither the root nor the device folder can be written or filled.
    told += ["--proc", "/proc", "--dev", "/dev"]
    told += _step(Tmpfs("/dev/shm", SHARED_MEMORY_BYTES, 0o1777))  # noqa: S108  # in the container
    told += ["--remount-ro", "/dev", "--remount-ro", "/"]
    if seccomp is not None:
        told += ["--seccomp", str(seccomp)]
    return [*told, "--chdir", workdir]


def _step(step: Step) -> list[str]:
    match step:
        case Bind(target, descriptor, writable):
            return ["--bind-fd" if writable else "--ro-bind-fd", str(descriptor), target]
        case Tmpfs(target, size_bytes, mode):
            return ["--perms", f"{mode:04o}", "--size", str(size_bytes), "--tmpfs", target]
        case Link(target, to):
            return ["--symlink", to, target]
        case Folder(target):
            return ["--dir", target]
        case Data(target, descriptor, over_existing):
            return ["--perms", "0444", "--ro-bind-data" if over_existing else "--file", str(descriptor), target]


def ordered(targets: Iterable[str]) -> list[str]:
    """Parents before children, so that no mount hides an earlier one."""
    return sorted(targets, key=lambda target: (target.count("/") if target != "/" else 0, target))


def enclosing(target: str, others: Iterable[str]) -> str | None:
    """The deepest of `others` in which `target` lies."""
    inside = [other for other in others if other != target and target.startswith(other.rstrip("/") + "/")]
    return max(inside, key=len, default=None)


def check(spec: ContainerSpec) -> None:
    """Raise `spec-invalid` for what no sandbox can be made of, before anything is opened."""
    spec_check.check(spec)
    if HOST_ROOT_INSIDE in {spec.uid, spec.gid}:
        raise EngineError(
            Failure.SPEC_INVALID,
            f"A container cannot run as uid {spec.uid}, gid {spec.gid}",
            hint=f"{HOST_ROOT_INSIDE} is how the superuser appears inside.",
        )


def user_namespace_map() -> str:
    """The map of uids, and of gids, of containers made by the superuser.

    Everybody keeps their number but the superuser, so that no number inside means it: capabilities that bubblewrap has
    in the namespace during set-up reach every folder, and files that the container writes belong to its user outside.
    """
    after = HOST_ROOT_INSIDE + 1
    return f"1 1 {HOST_ROOT_INSIDE - 1}\n{HOST_ROOT_INSIDE} 0 1\n{after} {after} {2**32 - 1 - after}\n"


def etc_files(uid: int, gid: int, hostname: str) -> dict[str, str]:
    """The few files that programs expect to find, telling nothing of the host."""
    return {
        "/etc/passwd": (
            f"root:x:0:0:root:/root:/usr/sbin/nologin\nagent:x:{uid}:{gid}:agent:/home/agent:/bin/sh\n"
            "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
        ),
        "/etc/group": f"root:x:0:\nagent:x:{gid}:\nnogroup:x:65534:\n",
        "/etc/hosts": f"127.0.0.1 localhost {hostname}\n::1 localhost\n",
        "/etc/hostname": f"{hostname}\n",
        "/etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\nservices: files\nprotocols: files\n",
        "/etc/resolv.conf": "",
    }
