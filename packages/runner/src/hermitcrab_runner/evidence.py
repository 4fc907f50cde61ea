"""What this container can see and do, measured from inside. The host asks for it; `crab demo` shows it."""

from __future__ import annotations

import errno
import os
import resource
import socket
import sys
from collections.abc import Mapping
from typing import Any

from hermitcrab_wire.limits import MAX_INTEGER

_CONNECT_TIMEOUT_S = 2.0
_FIRST_CONTAINER_FILES = {
    "memory": ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"),
    "pids": ("/sys/fs/cgroup/pids.max", "/sys/fs/cgroup/pids/pids.max"),
}


def collect(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The facts. `arguments`: host_home and host_pid, to look for; outside, a host and port to try to reach."""
    status = _status("/proc/self/status")
    readonly, writable = _mounts()
    return {
        "pid": os.getpid(),
        "pid_1_cmdline": _cmdline(1),
        "uid": os.getuid(),
        "gid": os.getgid(),
        "effective_capabilities": _hexadecimal(status.get("CapEff")),
        "bounding": _hexadecimal(status.get("CapBnd")),
        "no_new_privs": _integer(status.get("NoNewPrivs")),
        "seccomp": _integer(status.get("Seccomp")),
        **_root(),
        **_host_home(arguments.get("host_home")),
        **_processes(arguments.get("host_pid")),
        "gateway": _gateway(),
        "tcp_outside": _tcp(arguments.get("outside")),
        "interfaces": _interfaces(),
        "limits": _limits(),
        "writable_mounts": writable,
        "readonly_mounts": readonly,
        "python": sys.version.split()[0],
    }


def _root() -> dict[str, Any]:
    """Whether the root folder refuses a new file, and with which error."""
    path = f"/.hermitcrab-{os.getpid()}"
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    except OSError as error:
        return {"root_read_only": error.errno in {errno.EROFS, errno.EACCES}, "root_write_error": _name(error)}
    os.unlink(path)
    return {"root_read_only": False, "root_write_error": None}


def _host_home(path: object) -> dict[str, Any]:
    if not isinstance(path, str) or not path.startswith("/"):
        return {"host_home_visible": None}
    return {"host_home_visible": os.path.lexists(path)}


def _processes(host_pid: object) -> dict[str, Any]:
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    facts: dict[str, Any] = {"processes_visible": len(pids), "pid_namespace": _link("/proc/self/ns/pid")}
    if isinstance(host_pid, int) and host_pid > 0:
        seen = host_pid in pids and not _is_of_this_container(host_pid)
        facts["host_processes_visible"] = seen
        facts["host_pid_cmdline"] = _cmdline(host_pid) if seen else None
    return facts


def _is_of_this_container(pid: int) -> bool:
    """Whether a process only happens to have the host's number: it is process 1 of this container, or came from it."""
    first_is_ours = 1 in {os.getpid(), os.getppid()}
    while pid > 1:
        if pid == os.getpid():
            return True
        pid = _parent(pid)
    return pid == 1 and first_is_ours


def _parent(pid: int) -> int:
    return _integer(_status(f"/proc/{pid}/status").get("PPid")) or 0


def _tcp(outside: object) -> str:
    """`connected`, or the name of the error."""
    if not (isinstance(outside, (list, tuple)) and len(outside) == 2 and isinstance(outside[1], int)):
        return "not tried"
    try:
        socket.create_connection((str(outside[0]), outside[1]), timeout=_CONNECT_TIMEOUT_S).close()
    except TimeoutError:
        return "ETIMEDOUT"
    except (OSError, OverflowError) as error:
        return _name(error)
    return "connected"


def _gateway() -> int | str:
    """The status with which the gateway answers a request for nothing, or the name of the error."""
    path = os.environ.get("HERMITCRAB_GATEWAY")
    if not path:
        return "none"
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(_CONNECT_TIMEOUT_S)
            connection.connect(path)
            connection.sendall(b"GET / HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\n\r\n")
            words = connection.recv(64).split(b" ", 2)
    except TimeoutError:
        return "ETIMEDOUT"
    except (OSError, ValueError) as error:
        return _name(error)
    return int(words[1]) if len(words) > 2 and words[1].isdigit() else "no answer"


def _interfaces() -> list[str]:
    return sorted(line.partition(":")[0].strip() for line in _text("/proc/net/dev").splitlines()[2:])


def _limits() -> dict[str, Any]:
    limits: dict[str, Any] = {}
    for name, number in (
        ("open_files", resource.RLIMIT_NOFILE),
        ("core", resource.RLIMIT_CORE),
        ("nproc", resource.RLIMIT_NPROC),
        ("address_space", resource.RLIMIT_AS),
    ):
        soft = resource.getrlimit(number)[0]
        limits[name] = None if soft == resource.RLIM_INFINITY or soft > MAX_INTEGER else soft
    for name, paths in _FIRST_CONTAINER_FILES.items():
        text = next((found for path in paths if (found := _text(path).strip())), "")
        # Without a limit, a group of version 1 says so by an enormous one.
        limits[name] = int(text) if text.isdigit() and int(text) <= MAX_INTEGER else None
    return limits


def _mounts() -> tuple[list[str], list[str]]:
    """Mount points that are read-only, and those that can be written."""
    readonly: set[str] = set()
    writable: set[str] = set()
    for line in _text("/proc/self/mountinfo").splitlines():
        fields = line.split(" ")
        if len(fields) > 5:
            target = fields[4].replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")
            # A later mount on the same place hides the earlier one.
            (readonly if "ro" in fields[5].split(",") else writable).add(target)
            (writable if "ro" in fields[5].split(",") else readonly).discard(target)
    return sorted(readonly), sorted(writable)


def _status(path: str) -> dict[str, str]:
    lines = (line.partition(":") for line in _text(path).splitlines())
    return {name: value.strip() for name, _, value in lines}


def _cmdline(pid: int) -> str | None:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read(4096).replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return None


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(1024 * 1024)
    except OSError:
        return ""


def _link(path: str) -> str | None:
    try:
        return os.readlink(path)
    except OSError:
        return None


def _name(error: OSError | OverflowError | ValueError) -> str:
    number = getattr(error, "errno", None)
    return errno.errorcode.get(number, str(error)) if number else type(error).__name__


def _hexadecimal(text: str | None) -> int | None:
    # Above 2**53 an integer is no wire integer; the kernel has had 41 capabilities since 2020.
    return int(text, 16) if text else None


def _integer(text: str | None) -> int | None:
    return int(text) if text and text.isdigit() else None
