"""What a program inside may ask of the kernel, on any real engine; the rest of `engine_conformance`."""

from __future__ import annotations

import json
import os
import platform
from errno import ENOSYS, EPERM

import anyio.to_thread
import pytest

from hermitcrab.logic import system_calls
from hermitcrab.logic.call_numbers import CALLS
from hermitcrab.model.container import Hardening
from hermitcrab.testing.engine_conformance_inside import ask
from hermitcrab.testing.engine_harness import EngineHarness
from hermitcrab.testing.loaded_filters import LoadedFilter, filters_of

REFUSED = (
    *("add_key", "bpf", "chroot", "clone3", "fanotify_init", "io_uring_enter", "io_uring_register", "io_uring_setup"),
    *("kcmp", "keyctl", "mbind", "memfd_secret", "mount", "move_mount", "move_pages", "name_to_handle_at", "open_tree"),
    *("perf_event_open", "pidfd_getfd", "pivot_root", "request_key", "setns", "syslog", "umount2", "unshare"),
    *("userfaultfd", "vmsplice"),
)
"""Calls that no program in a container can make, whatever their arguments are."""

REFUSED_IF_STRICT = ("mq_open", "msgget", "process_vm_readv", "ptrace", "semget", "shmget")

LATER = frozenset({"fchmodat2"})
"""Let through, unless the engine was made before they were: they seem not to be there then, and programs do without."""

both = pytest.mark.parametrize("hardening", ["standard", "strict"])


class EngineCalls:
    async def test_a_filter_of_system_calls_is_in_force(self, harness: EngineHarness) -> None:
        await harness.unrealized("seccomp")
        probe = "[l.split()[1] for l in open('/proc/self/status') if l.startswith('Seccomp:')]"
        assert await ask(harness, probe) == ["2"]

    @both
    async def test_the_calls_of_exploits_are_refused(self, harness: EngineHarness, hardening: Hardening) -> None:
        await harness.unrealized("seccomp")
        tried = (*REFUSED, *(REFUSED_IF_STRICT if hardening == "strict" else ()))
        numbers = {machine: {each: calls[each] for each in tried} for machine, calls in CALLS.items()}
        probe = f"{{name: call(number, 0, 0, 0, 0, 0) for name, number in {numbers!r}[os.uname().machine].items()}}"
        found = await ask(harness, probe, hardening=hardening)
        # From the filter. Any other error would be the call's own, and the filter had let it through.
        assert {name: errno for name, errno in found.items() if errno not in {EPERM, ENOSYS}} == {}

    @both
    async def test_no_further_namespace_can_be_had(self, harness: EngineHarness, hardening: Hardening) -> None:
        flags = (0x10000000, 0x20000, 0x40000000, 0x20000000, 0x4000000, 0x8000000, 0x2000000)
        numbers = {machine: calls["clone"] for machine, calls in CALLS.items()}
        probe = f"[call({numbers!r}[os.uname().machine], flag | 17, 0, 0, 0, 0) for flag in {flags!r}]"
        assert set(await ask(harness, probe, hardening=hardening)) <= {EPERM, ENOSYS}

    @both
    async def test_only_ordinary_sockets_exist(self, harness: EngineHarness, hardening: Hardening) -> None:
        probe = "[family for family in range(64) if not refused(socket.socket, family, socket.SOCK_DGRAM, 0)]"
        assert set(await ask(harness, probe, hardening=hardening)) <= {1, 2, 10, 16}  # UNIX, INET, INET6, NETLINK
        probe = "[refused(socket.socket, family, kind, 0) for family, kind in ((1, 1), (2, 1), (38, 5), (40, 1))]"
        assert await ask(harness, probe, hardening=hardening) == [False, False, True, True]  # 38: ALG, 40: VSOCK

    @both
    async def test_the_kernel_judges_every_call_as_the_profile_says(
        self, harness: EngineHarness, hardening: Hardening
    ) -> None:
        await harness.unrealized("seccomp")
        if os.geteuid() != 0:
            pytest.skip("only root may read the filter of a process from the kernel")
        name = await harness.started(hardening=hardening)
        await harness.said(name, "ready")
        pid = (await harness.view(name)).pid
        assert pid is not None
        (loaded,) = await anyio.to_thread.run_sync(filters_of, pid)
        machine = platform.machine()
        allowed = system_calls.allowed(hardening)
        let = {each for each, number in CALLS[machine].items() if loaded.lets(machine, number)}
        # With no arguments at all, the judged ones are harmless; but for a socket, which then has no family.
        wanted = (allowed & CALLS[machine].keys()) | (system_calls.JUDGED - {"socket", "socketpair"})
        assert let - wanted == set()
        assert wanted - let <= LATER
        beyond = max(CALLS[machine].values()) + 1
        assert not any(loaded.lets(machine, number) for number in (*range(beyond, beyond + 200), 0x40000000, 2**32 - 1))
        _assert_judged(loaded, machine)

    @both
    async def test_ordinary_programs_go_on(self, harness: EngineHarness, hardening: Hardening) -> None:
        _, lines = await harness.run(harness.spec("", argv=("python3", "-c", _ORDINARY), hardening=hardening))
        assert json.loads(lines[-1]) == ["hello\n", 0], lines


def _assert_judged(loaded: LoadedFilter, machine: str) -> None:
    """Calls that one argument decides about, with every value that matters and its neighbours."""
    number = CALLS[machine]
    for made_by in ("socket", "socketpair"):
        families = {each for each in range(100) if loaded.lets(machine, number[made_by], each, 1, 0)}
        assert families == set(system_calls.SOCKET_FAMILIES)
    for bit in range(32):
        asks_for_a_namespace = bool(system_calls.NEW_NAMESPACE_FLAGS >> bit & 1)
        assert loaded.lets(machine, number["clone"], 1 << bit | 17) is not asks_for_a_namespace
    assert loaded.lets(machine, number["clone"], 0x3D0F00), "a thread"
    for flags in (0, 0x8, 0x20000, 0x40000, 0x400000, 0xFFFFFFFF):
        assert loaded.lets(machine, number["personality"], flags) is (flags in system_calls.PERSONALITIES)
    for command in (*range(0x5400, 0x5480), *(1 << bit for bit in range(32)), 0x5412 ^ 0x80000000):
        for high in (0, 1 << 32):
            wanted = command not in system_calls.TERMINAL_INJECTIONS
            assert loaded.lets(machine, number["ioctl"], 0, command | high) is wanted, hex(command)


_ORDINARY = """
import json, socket, subprocess, tempfile, threading, time
threads = [threading.Thread(target=time.sleep, args=(0,)) for _ in range(9)]
for each in threads:
    each.start()
for each in threads:
    each.join()
with tempfile.TemporaryFile() as file:
    file.write(b"x")
command = ["/bin/sh", "-c", "echo hello | cat; ls / >/dev/null"]
said = subprocess.run(command, capture_output=True, text=True)
with socket.socket() as listener:
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    socket.create_connection(listener.getsockname(), 5).close()
print(json.dumps([said.stdout, said.returncode]))
"""
