"""Attacks beyond the checklist: calls, sockets and files by which an agent could try to get around its container."""

from __future__ import annotations

import socket
import uuid
from pathlib import Path
from typing import Any

import pytest
from anyio import to_thread

from hermitcrab.containers.disk import trees
from hermitcrab.containers.disk.measuring import measure
from hermitcrab.logic.workspace import Allowance
from hermitcrab.model.container import Hardening
from hermitcrab.model.container_config import ContainerConfig
from hermitcrab.store import container_configs
from hermitcrab.testing.intruder import intrude
from hermitcrab.testing.scratch import host_on

every_engine = pytest.mark.parametrize("engine", ["bubblewrap", "docker", "podman"])
CALLS = """
import fcntl, platform, struct
descriptors = sorted(int(each) for each in os.listdir("/proc/self/fd"))
libc = ctypes.CDLL(None, use_errno=True)
x86 = platform.machine() == "x86_64"
NUMBERS = {
    "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218),
    "io_uring_setup": (425, 425), "userfaultfd": (323, 282), "bpf": (321, 280), "perf_event_open": (298, 241),
    "open_by_handle_at": (304, 265), "init_module": (175, 105), "kexec_load": (246, 104), "swapon": (167, 224),
    "settimeofday": (164, 170), "sethostname": (170, 161), "quotactl": (179, 60), "pivot_root": (155, 41),
    "mount": (165, 40), "umount2": (166, 39), "unshare": (272, 97), "acct": (163, 89), "reboot": (169, 142),
    "move_mount": (429, 429), "open_tree": (428, 428), "fsopen": (430, 430), "ptrace-init": (101, 117),
}
ARGUMENTS = {
    "keyctl": (0, -4, 0), "add_key": (b"user", b"x", b"y", 1, -3), "request_key": (b"user", b"x", None, -3),
    "io_uring_setup": (4, ctypes.create_string_buffer(256)), "userfaultfd": (0,), "bpf": (0, None, 0),
    "perf_event_open": (ctypes.create_string_buffer(b"\\0" * 4 + b"\\x70", 112), -1, 0, -1, 0),
    "open_by_handle_at": (-100, ctypes.create_string_buffer(128), 0), "swapon": (b"/dev/zero", 0),
    "settimeofday": (ctypes.create_string_buffer(16), None), "sethostname": (b"mine", 4),
    "quotactl": (0x80000100, None, 0, None), "pivot_root": (b"/", b"/"), "mount": (b"none", b"/tmp", b"tmpfs", 0, None),
    "umount2": (b"/workspace/agent/CLAUDE.md", 2), "unshare": (0x10000000,), "acct": (b"/tmp/a",),
    "reboot": (0xfee1dead, 672274793, 0x89abcdef, None), "open_tree": (-100, b"/", 1), "fsopen": (b"tmpfs", 0),
    "ptrace-init": (16, 1, None, None),
}

def call(name):
    ctypes.set_errno(0)
    got = libc.syscall(NUMBERS[name][0 if x86 else 1], *ARGUMENTS.get(name, (None,) * 5))
    return "done" if got >= 0 else errno.errorcode.get(ctypes.get_errno(), "?")

FLAGS = {"user": 0x10000000, "mount": 0x20000, "net": 0x40000000, "pid": 0x20000000, "time": 0x80}

def cloned(flag):
    ctypes.set_errno(0)
    child = libc.syscall(56 if x86 else 220, flag | signal.SIGCHLD, None, None, None, None)
    if child == 0:
        os._exit(0)
    return "done" if child > 0 else errno.errorcode.get(ctypes.get_errno(), "?")

def cloned_anew(flag):
    ctypes.set_errno(0)
    wanted = struct.pack("<11Q", flag, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, 0, 0, 0)
    child = libc.syscall(435, ctypes.create_string_buffer(wanted, len(wanted)), len(wanted))
    if child == 0:
        os._exit(0)
    return "done" if child > 0 else errno.errorcode.get(ctypes.get_errno(), "?")

def made(family, kind, protocol=0):
    return attempt(lambda: socket.socket(family, kind, protocol).close())

def made_by_number(family):
    ctypes.set_errno(0)
    got = libc.syscall(41 if x86 else 198, ctypes.c_long(family), socket.SOCK_STREAM, 0)
    return "done" if got >= 0 else errno.errorcode.get(ctypes.get_errno(), "?")

def entered(which):
    return attempt(lambda: libc.setns(os.open(f"/proc/1/ns/{which}", os.O_RDONLY), 0) and
                   (_ for _ in ()).throw(OSError(ctypes.get_errno(), "")))

def connected(name):
    with socket.socket(socket.AF_UNIX) as door:
        door.connect(name)

answer({
    "calls": {name: call(name) for name in NUMBERS},
    "sockets": {
        "packet": made(17, socket.SOCK_RAW, 768), "raw": made(socket.AF_INET, socket.SOCK_RAW, 1),
        "vsock": made(40, socket.SOCK_STREAM), "alg": made(38, socket.SOCK_SEQPACKET),
        "vsock datagrams": made(40, socket.SOCK_DGRAM), "vsock by another number": made_by_number(40 | 1 << 32),
        "xdp": made(44, socket.SOCK_RAW), "bluetooth": made(31, socket.SOCK_RAW), "can": made(29, socket.SOCK_RAW),
        "tipc": made(30, socket.SOCK_RDM), "rds": made(21, socket.SOCK_SEQPACKET), "smc": made(43, socket.SOCK_STREAM),
    },
    "new namespaces": {name: [libc.unshare(flag), cloned(flag) if flag > 255 else "?", cloned_anew(flag)]
                       for name, flag in FLAGS.items()},
    "namespaces": {which: entered(which) for which in ("net", "mnt", "pid", "user", "ipc", "uts")},
    "abstract": attempt(connected, "\\0" + ABSTRACT),
    "descriptors": descriptors,
    "terminal": attempt(lambda: fcntl.ioctl(0, 0x5412, b"x")),
    "tty": attempt(os.open, "/dev/tty", os.O_RDWR),
    "device": attempt(os.mknod, "/workspace/mem", stat.S_IFCHR | 0o600, os.makedev(1, 1)),
    "hosts processes": [each for each in os.listdir("/proc") if each.isdecimal() and int(each) > 1000],
    "kernel": [attempt(write, path, b"1") for path in (
        "/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/proc/1/oom_score_adj", "/sys/fs/cgroup/x",
        "/sys/kernel/uevent_helper", "/proc/self/attr/current")],
})
"""


@every_engine
@pytest.mark.parametrize("hardening", ["standard", "strict"])
async def test_no_call_of_the_kernels_leads_out(
    engine: str, options: dict[str, Any], tmp_path: Path, hardening: Hardening
) -> None:
    name = f"crab-test-{uuid.uuid4().hex}"
    with socket.socket(socket.AF_UNIX) as hosts:
        hosts.bind(f"\0{name}")
        hosts.listen()
        async with host_on(tmp_path / "home", engine, **options) as (host, _):
            intruder = await intrude(host, "caller")
            config = ContainerConfig(hardening=hardening)
            await host.store.write(lambda connection: container_configs.put(connection, intruder.group.id, config))
            found = await intruder.ask(f"ABSTRACT = {name!r}\n{CALLS}")
    assert {each for each, outcome in found["calls"].items() if outcome not in {"EPERM", "ENOSYS"}} == set()
    assert "done" not in found["sockets"].values()
    for unshared, *cloned in found["new namespaces"].values():
        assert unshared == -1
        assert "done" not in cloned
    assert "done" not in found["namespaces"].values()
    assert found["abstract"] == "ECONNREFUSED"
    assert [each for each in found["descriptors"] if each > 3] == []
    assert found["terminal"] != "done"
    assert found["tty"] != "done"
    assert found["device"] != "done"
    assert found["hosts processes"] == []
    assert "done" not in [*found["kernel"][:2], *found["kernel"][3:5]]


ODD = """
os.makedirs("/workspace/odd")
os.chdir("/workspace/odd")
attempt(write, "n" * 255)
attempt(write, b"\\xff\\xfe".decode("utf-8", "surrogateescape"))
attempt(write, "new\\nline")
attempt(write, "-rf")
attempt(write, "\\u202egnp.exe")
attempt(os.mkfifo, "pipe")
listener = socket.socket(socket.AF_UNIX)
listener.bind("socket")
for number, when in enumerate((0, -1, 2**31, 2**33, -(2**31), 2**40)):
    attempt(write, f"when-{number}")
    attempt(os.utime, f"when-{number}", (when, when))
with open("sparse", "wb") as file:
    attempt(file.truncate, 4 << 30)
os.symlink("sparse", "link")
os.symlink("x" * 4000, "far")
os.symlink("../" * 50 + "etc/passwd", "out")
os.link("sparse", "twice")
os.chmod("sparse", 0o6777)
answer(len(os.listdir(".")))
"""


@every_engine
async def test_whatever_lies_in_the_workspace_can_be_measured_exported_and_removed(
    engine: str, options: dict[str, Any], tmp_path: Path
) -> None:
    async with host_on(tmp_path / "home", engine, **options) as (host, _):
        intruder = await intrude(host, "odd")
        made = await intruder.ask(ODD)
        work = intruder.folders.work

        def take() -> list[trees.Entry]:
            return [entry for entry, _ in trees.walk(work)]

        found = await to_thread.run_sync(take)
        assert len([each for each in found if each.path[0] == "odd"]) == 1 + made - 2, "all but the pipe and the socket"
        assert [trees.problem_of(each) for each in found if trees.problem_of(each)] == []
        assert {each.mode for each in found if each.path[-1] == "sparse"} == {0o777}, "no right is taken along"
        used = await to_thread.run_sync(measure, [work], Allowance(bytes=1 << 30, files=1000))
        assert used.bytes < 1 << 20
        await to_thread.run_sync(trees.remove, work)
        assert not work.exists()
