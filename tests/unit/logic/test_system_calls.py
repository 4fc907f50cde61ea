"""What programs may ask of the kernel, as a list and as the profile that Docker and Podman take."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermitcrab.logic import system_calls
from hermitcrab.logic.call_numbers import CALLS
from hermitcrab.logic.seccomp_profile import others_than, profile
from hermitcrab.model.container import Hardening

HARDENINGS: list[Hardening] = ["standard", "strict"]
words = st.integers(0, 0xFFFFFFFF)

SURFACE = (
    *("keyctl", "add_key", "request_key", "bpf", "perf_event_open", "userfaultfd", "vmsplice", "kcmp", "pidfd_getfd"),
    *("io_uring_setup", "io_uring_enter", "io_uring_register", "memfd_secret", "mbind", "move_pages", "migrate_pages"),
    *("mount", "umount2", "open_tree", "move_mount", "fsopen", "fsmount", "mount_setattr", "pivot_root", "chroot"),
    *("unshare", "setns", "kexec_load", "kexec_file_load", "init_module", "finit_module", "reboot", "syslog", "acct"),
    *("name_to_handle_at", "open_by_handle_at", "fanotify_init", "clock_settime", "settimeofday", "sethostname"),
    *("quotactl", "swapon", "vhangup", "lookup_dcookie"),
)
DEBUGGERS = ("ptrace", "process_vm_readv", "process_vm_writev")
OLD_QUEUES = ("mq_open", "msgget", "semget", "shmget")


@pytest.mark.parametrize("hardening", HARDENINGS)
@pytest.mark.parametrize("machine", sorted(CALLS))
def test_surface_that_no_agent_needs_is_refused_by_name(machine: str, hardening: Hardening) -> None:
    assert set(SURFACE) <= set(system_calls.refused(machine, hardening))
    assert {"clone3"} | system_calls.JUDGED <= CALLS[machine].keys() - system_calls.allowed(hardening)


def test_debuggers_and_old_queues_work_unless_strict() -> None:
    assert {*DEBUGGERS, *OLD_QUEUES} <= system_calls.allowed("standard")
    assert not {*DEBUGGERS, *OLD_QUEUES} & system_calls.allowed("strict")
    assert system_calls.allowed("strict") < system_calls.allowed("standard")


def test_every_name_is_a_call_of_some_machine() -> None:
    assert system_calls.allowed("standard") <= CALLS["x86_64"].keys() | CALLS["aarch64"].keys()


def test_another_list_is_another_fingerprint() -> None:
    assert system_calls.fingerprint("standard") != system_calls.fingerprint("strict")


@pytest.mark.parametrize("hardening", HARDENINGS)
@pytest.mark.parametrize("machine", sorted(CALLS))
def test_the_profile_says_of_every_call_what_the_list_says(machine: str, hardening: Hardening) -> None:
    made = profile(machine, hardening)
    assert made is not None
    assert json.loads(json.dumps(made)) == made
    assert (made["defaultAction"], made["defaultErrnoRet"]) == ("SCMP_ACT_ERRNO", 38)
    assert len(made["architectures"]) == 1
    whole = [each for each in made["syscalls"] if "args" not in each]
    judged = [each for each in made["syscalls"] if "args" in each]
    said = {name: (each["action"], each.get("errnoRet")) for each in whole for name in each["names"]}
    assert len(said) == sum(len(each["names"]) for each in whole), "each name once"
    wanted: dict[str, tuple[str, int | None]] = {
        name: ("SCMP_ACT_ALLOW", None) if name in system_calls.allowed(hardening) else ("SCMP_ACT_ERRNO", 1)
        for name in CALLS[machine].keys() - system_calls.JUDGED
    }
    assert said == wanted | {"clone3": ("SCMP_ACT_ERRNO", 38)}
    assert {name for each in judged for name in each["names"]} == system_calls.JUDGED
    # One condition each, and all of them let through: no rule's outcome depends on the order that an engine gives them.
    assert {(each["action"], len(each["args"])) for each in judged} == {("SCMP_ACT_ALLOW", 1)}


def lets(name: str, argument: int) -> bool:
    """Whether a rule with a condition lets the call through, as libseccomp reads one."""
    made = profile("x86_64", "standard")
    assert made is not None
    return any(_fits(rule["args"][0], argument) for rule in made["syscalls"] if name in rule["names"])


def _fits(condition: dict[str, Any], argument: int) -> bool:
    if condition["op"] == "SCMP_CMP_MASKED_EQ":
        return bool(argument & condition["value"] == condition["valueTwo"])
    assert condition["op"] == "SCMP_CMP_EQ"
    return bool(argument == condition["value"])


@given(st.one_of(words, st.sampled_from([0x5412, 0x541C])), words)
def test_the_profile_lets_every_ioctl_through_but_typing_into_terminals(command: int, high: int) -> None:
    assert lets("ioctl", command | high << 32) is (command not in {0x5412, 0x541C})


@given(words)
def test_the_profile_lets_a_clone_through_that_asks_for_no_namespace(flags: int) -> None:
    assert lets("clone", flags) is (flags & 0x7E020000 == 0)


@given(st.one_of(st.integers(0, 100), words))
def test_the_profile_lets_ordinary_sockets_through(family: int) -> None:
    assert lets("socket", family) is lets("socketpair", family) is (family in {1, 2, 10, 16})


@given(st.lists(st.integers(0, 255), max_size=5), st.integers(0, 255))
def test_every_number_but_those_fits_one_mask_and_no_other(values: list[int], number: int) -> None:
    fitting = [mask for mask, bits in others_than(*values, bit=8) if number & mask == bits]
    assert len(fitting) == (0 if number in values else 1)


def test_a_machine_without_a_table_has_no_profile() -> None:
    assert profile("riscv64", "standard") is None


def test_numbers_are_those_of_this_machine() -> None:
    """On a machine that has the kernel's header, the table is compared with it."""

    def defined() -> Iterator[tuple[str, int]]:
        text = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h").read_text()
        for found in re.finditer(r"^#define __NR_(\w+) (\d+)$", text, flags=re.MULTILINE):
            yield found[1], int(found[2])

    try:
        numbers = dict(defined())
    except FileNotFoundError:
        pytest.skip("no kernel headers for x86_64 here")
    table = CALLS["x86_64"]
    assert {name: table[name] for name in table.keys() & numbers.keys()} == {
        name: numbers[name] for name in table.keys() & numbers.keys()
    }
    assert len(table.keys() & numbers.keys()) > 350
