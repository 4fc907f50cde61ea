"""What hardening `strict` takes away from a program inside, on any real engine; the rest of `engine_conformance`."""

from __future__ import annotations

import json

from hermitcrab.logic import seccomp
from hermitcrab.testing.engine_conformance_inside import ask
from hermitcrab.testing.engine_harness import EngineHarness

REFUSED = (
    *("add_key", "bpf", "io_uring_setup", "kcmp", "keyctl", "memfd_secret", "mount", "mq_open", "msgget", "open_tree"),
    *("perf_event_open", "process_vm_readv", "ptrace", "semget", "setns", "shmget", "umount2", "userfaultfd"),
    "vmsplice",
)
"""Calls that no program in a strict container can make, whatever their arguments are."""


class EngineStrict:
    async def test_the_calls_of_exploits_and_debuggers_are_refused(self, harness: EngineHarness) -> None:
        await harness.unrealized("strict-seccomp")
        numbers = {name: {each: machine.calls[each] for each in REFUSED} for name, machine in seccomp.MACHINES.items()}
        probe = f"{{name: call(number, 0, 0, 0, 0, 0) for name, number in {numbers!r}[os.uname().machine].items()}}"
        found = await ask(harness, probe, hardening="strict")
        # EPERM or ENOSYS: from the filter. Any other error would be the call's own, and the filter had let it through.
        assert {name: errno for name, errno in found.items() if errno not in {1, 38}} == {}

    async def test_no_further_namespace_can_be_had(self, harness: EngineHarness) -> None:
        flags = (0x10000000, 0x20000, 0x40000000, 0x20000000, 0x4000000, 0x8000000, 0x2000000)
        numbers = {name: machine.calls["unshare"] for name, machine in seccomp.MACHINES.items()}
        probe = f"[call({numbers!r}[os.uname().machine], flag) for flag in {flags!r}]"
        assert set(await ask(harness, probe, hardening="strict")) <= {1, 38}

    async def test_only_ordinary_sockets_exist(self, harness: EngineHarness) -> None:
        probe = "[refused(socket.socket, family, 1, 0) for family in (1, 2, 38, 40)]"  # UNIX, INET, ALG, VSOCK
        assert await ask(harness, probe, hardening="strict") == [False, False, True, True]

    async def test_no_program_is_run_from_memory(self, harness: EngineHarness) -> None:
        script = "for f in /tmp /home/agent; do cp /bin/true $f/t && $f/t && echo ran in $f; done; exit 0"
        _, lines = await harness.run(harness.spec(script, hardening="strict"))
        assert [line for line in lines if line.startswith("ran")] == [] or not await harness.keeps("noexec-tmp")
        _, lines = await harness.run(harness.spec(script))
        assert [line for line in lines if line.startswith("ran")] == ["ran in /tmp", "ran in /home/agent"]

    async def test_ordinary_programs_go_on(self, harness: EngineHarness) -> None:
        _, lines = await harness.run(harness.spec("", argv=("python3", "-c", _ORDINARY), hardening="strict"))
        assert json.loads(lines[-1]) == ["hello\n", 0], lines


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
