"""The filter of bubblewrap judged by an interpreter of its own language, call by call."""

from __future__ import annotations

from errno import EAFNOSUPPORT, ENOSYS, EPERM

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermitcrab.logic import seccomp, system_calls
from hermitcrab.logic.call_numbers import CALLS
from hermitcrab.logic.seccomp import ALLOW, KILL_PROCESS, RETURN_ERRNO
from hermitcrab.model.container import Hardening
from hermitcrab.testing.loaded_filters import LoadedFilter

MACHINE_NAMES = sorted(CALLS)
HARDENINGS: list[Hardening] = ["standard", "strict"]
words = st.integers(0, 0xFFFFFFFF)
long_words = st.integers(0, 2**64 - 1)


def judge(
    machine: str, number: int, *arguments: int, hardening: Hardening = "standard", architecture: int | None = None
) -> int:
    """What the kernel would answer, from the very bytes that it is given."""
    raw = seccomp.filter_bytes(machine, hardening)
    assert raw is not None
    return LoadedFilter(raw).answer(machine, number, *arguments, architecture=architecture)


def refused(errno: int) -> int:
    return RETURN_ERRNO | errno


@pytest.fixture(params=MACHINE_NAMES)
def machine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def call(machine: str, name: str) -> int:
    return CALLS[machine][name]


def test_a_machine_without_a_table_has_no_filter() -> None:
    assert seccomp.filter_bytes("riscv64", "standard") is None


@given(st.sampled_from(MACHINE_NAMES), st.sampled_from(HARDENINGS), words, st.lists(words, max_size=6), words)
def test_a_call_of_another_architecture_kills(
    name: str, hardening: Hardening, number: int, arguments: list[int], architecture: int
) -> None:
    if architecture != seccomp.AUDIT_ARCHITECTURES[name]:
        answer = judge(name, number, *arguments, hardening=hardening, architecture=architecture)
        assert answer == KILL_PROCESS


@given(st.integers(seccomp.X32_BIT, 0xFFFFFFFF), st.lists(words, max_size=6))
def test_no_call_of_the_x32_abi_exists(number: int, arguments: list[int]) -> None:
    assert judge("x86_64", number, *arguments) == refused(ENOSYS)


@pytest.mark.parametrize("hardening", HARDENINGS)
@pytest.mark.parametrize("arguments", [(), (2**64 - 1,) * 6])
def test_every_call_is_answered_as_its_name_says_whatever_its_arguments_are(
    machine: str, hardening: Hardening, arguments: tuple[int, ...]
) -> None:
    allowed = system_calls.allowed(hardening)
    for name, number in CALLS[machine].items():
        if name not in system_calls.JUDGED:
            other = ENOSYS if name == "clone3" else EPERM
            wanted = ALLOW if name in allowed else refused(other)
            assert judge(machine, number, *arguments, hardening=hardening) == wanted, name


@given(st.sampled_from(MACHINE_NAMES), st.sampled_from(HARDENINGS), st.lists(long_words, max_size=6), st.data())
def test_a_call_that_is_younger_than_the_table_seems_not_to_be_there(
    name: str, hardening: Hardening, arguments: list[int], data: st.DataObject
) -> None:
    number = data.draw(st.integers(max(CALLS[name].values()) + 1, seccomp.X32_BIT - 1))
    assert judge(name, number, *arguments, hardening=hardening) == refused(ENOSYS)


@given(st.sampled_from(MACHINE_NAMES), long_words)
def test_clone_is_refused_exactly_when_it_asks_for_a_namespace(name: str, flags: int) -> None:
    wanted = refused(EPERM) if flags & system_calls.NEW_NAMESPACE_FLAGS else ALLOW
    assert judge(name, call(name, "clone"), flags) == wanted


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
    assert len(seccomp.program(machine, "standard")) < 4096
