"""The filter judged by an interpreter of its own language, call by call."""

from __future__ import annotations

import struct
from errno import EAFNOSUPPORT, ENOSYS, EPERM
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermitcrab.logic import seccomp
from hermitcrab.logic.seccomp import ALLOW, KILL_PROCESS, MACHINES, RETURN_ERRNO, Hardening

MACHINE_NAMES = sorted(MACHINES)
HARDENINGS: list[Hardening] = ["standard", "strict"]
words = st.integers(0, 0xFFFFFFFF)


def judge(
    machine: str, number: int, *arguments: int, hardening: Hardening = "standard", architecture: int | None = None
) -> int:
    """What the kernel would answer, from the very bytes that it is given."""
    raw = seccomp.filter_bytes(machine, hardening)
    assert raw is not None
    instructions = [struct.unpack_from("<HBBI", raw, offset) for offset in range(0, len(raw), 8)]
    audit = MACHINES[machine].audit_architecture if architecture is None else architecture
    data = struct.pack("<IIQ6Q", number, audit, 0, *(*arguments, 0, 0, 0, 0, 0, 0)[:6])
    accumulator = 0
    position = 0
    while True:
        code, jump_true, jump_false, value = instructions[position]
        position += 1
        match code:
            case seccomp.LOAD_WORD:
                (accumulator,) = struct.unpack_from("<I", data, value)
            case seccomp.JUMP_EQUAL:
                position += jump_true if accumulator == value else jump_false
            case seccomp.JUMP_NOT_BELOW:
                position += jump_true if accumulator >= value else jump_false
            case seccomp.JUMP_ANY_BIT:
                position += jump_true if accumulator & value else jump_false
            case seccomp.RETURN:
                return int(value)
            case _:
                raise AssertionError(f"unknown instruction {code:#x}")


def refused(errno: int) -> int:
    return RETURN_ERRNO | errno


@pytest.fixture(params=MACHINE_NAMES)
def machine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def call(machine: str, name: str) -> int:
    return MACHINES[machine].calls[name]


def test_a_machine_without_a_table_has_no_filter() -> None:
    assert seccomp.filter_bytes("riscv64", "standard") is None


@given(st.sampled_from(MACHINE_NAMES), st.sampled_from(HARDENINGS), words, st.lists(words, max_size=6), words)
def test_a_call_of_another_architecture_kills(
    name: str, hardening: Hardening, number: int, arguments: list[int], architecture: int
) -> None:
    if architecture != MACHINES[name].audit_architecture:
        answer = judge(name, number, *arguments, hardening=hardening, architecture=architecture)
        assert answer == KILL_PROCESS


@given(st.integers(seccomp.X32_BIT, 0xFFFFFFFF), st.lists(words, max_size=6))
def test_no_call_of_the_x32_abi_exists(number: int, arguments: list[int]) -> None:
    assert judge("x86_64", number, *arguments) == refused(ENOSYS)


@given(st.sampled_from(MACHINE_NAMES), st.sampled_from(HARDENINGS), st.integers(0, 2000), st.lists(words, max_size=6))
def test_a_call_in_no_table_is_allowed_whatever_its_arguments_are(
    name: str, hardening: Hardening, number: int, arguments: list[int]
) -> None:
    if number not in MACHINES[name].calls.values():
        assert judge(name, number, *arguments, hardening=hardening) == ALLOW


@given(st.sampled_from(MACHINE_NAMES), st.sampled_from(HARDENINGS), st.data())
def test_a_denied_call_is_refused_whatever_its_arguments_are(
    name: str, hardening: Hardening, data: st.DataObject
) -> None:
    number = data.draw(st.sampled_from(sorted(seccomp.denied_calls(name, hardening).values())))
    arguments = data.draw(st.lists(st.integers(0, 2**64 - 1), max_size=6))
    assert judge(name, number, *arguments, hardening=hardening) == refused(EPERM)


@pytest.mark.parametrize(
    "name",
    ["keyctl", "add_key", "request_key", "bpf", "io_uring_setup", "userfaultfd", "perf_event_open", "mount", "umount2",
     "open_tree", "pivot_root", "setns", "kexec_load", "init_module", "reboot", "open_by_handle_at", "clock_settime",
     "process_vm_writev", "ptrace"],
)  # fmt: skip
def test_kernel_surface_is_denied_by_name(machine: str, name: str) -> None:
    hardening: Hardening = "strict" if name in {"ptrace", "process_vm_writev"} else "standard"
    assert judge(machine, call(machine, name), hardening=hardening) == refused(EPERM)


def test_debuggers_work_unless_strict(machine: str) -> None:
    assert judge(machine, call(machine, "ptrace")) == ALLOW
    assert judge(machine, call(machine, "ptrace"), hardening="strict") == refused(EPERM)


def test_clone3_seems_not_to_be_there(machine: str) -> None:
    assert judge(machine, call(machine, "clone3")) == refused(ENOSYS)


@given(st.sampled_from(MACHINE_NAMES), st.integers(0, 2**64 - 1))
def test_clone_is_refused_exactly_when_it_asks_for_a_namespace(name: str, flags: int) -> None:
    wanted = refused(EPERM) if flags & seccomp.NEW_NAMESPACE_FLAGS else ALLOW
    assert judge(name, call(name, "clone"), flags) == wanted


@given(st.sampled_from(MACHINE_NAMES), st.integers(0, 2**64 - 1))
def test_unshare_is_refused_exactly_when_it_asks_for_a_namespace(name: str, flags: int) -> None:
    wanted = refused(EPERM) if flags & (seccomp.NEW_NAMESPACE_FLAGS | seccomp.NEW_TIME_NAMESPACE) else ALLOW
    assert judge(name, call(name, "unshare"), flags) == wanted


def test_the_flags_of_threads_and_of_fork_are_allowed(machine: str) -> None:
    assert judge(machine, call(machine, "clone"), 0x3D0F00) == ALLOW
    assert judge(machine, call(machine, "clone"), 0x1200011) == ALLOW


@given(st.sampled_from(MACHINE_NAMES), st.sampled_from(["socket", "socketpair"]), words)
def test_only_ordinary_socket_families_exist(name: str, made_by: str, family: int) -> None:
    wanted = ALLOW if family in {1, 2, 10, 16} else refused(EAFNOSUPPORT)
    assert judge(name, call(name, made_by), family, 1, 0) == wanted


@given(st.sampled_from(MACHINE_NAMES), words, words, words)
def test_nothing_can_be_typed_into_a_terminal(name: str, descriptor: int, command: int, high: int) -> None:
    wanted = refused(EPERM) if command in {0x5412, 0x541C} else ALLOW
    assert judge(name, call(name, "ioctl"), descriptor, command | high << 32) == wanted


@pytest.mark.parametrize("command", [0x5412, 0x541C])
def test_a_high_word_does_not_hide_an_injection(machine: str, command: int) -> None:
    assert judge(machine, call(machine, "ioctl"), 0, command | 1 << 32) == refused(EPERM)


@given(st.sampled_from(MACHINE_NAMES), words)
def test_only_the_plain_personality_can_be_had(name: str, personality: int) -> None:
    wanted = ALLOW if personality in {0, 0xFFFFFFFF} else refused(EPERM)
    assert judge(name, call(name, "personality"), personality) == wanted


def test_the_program_is_small_enough_for_the_kernel(machine: str) -> None:
    assert len(seccomp.program(machine, "strict")) < 4096


def test_numbers_are_those_of_this_machine() -> None:
    """On a machine that has the kernel's header, the table is compared with it."""
    found: dict[str, int] = {}
    try:
        with Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h").open() as header:
            for line in header:
                parts = line.split()
                if len(parts) == 3 and parts[1].startswith("__NR_"):
                    found[parts[1].removeprefix("__NR_")] = int(parts[2])
    except FileNotFoundError:
        pytest.skip("no kernel headers for x86_64 here")
    table = MACHINES["x86_64"].calls
    assert {name: number for name, number in table.items() if name in found} == {
        name: found[name] for name in table if name in found
    }
    assert len(set(table) & set(found)) > 50
