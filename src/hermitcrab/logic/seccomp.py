"""`system_calls.py` as the classic BPF program that the kernel loads: what bubblewrap takes, which has no filter."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from errno import EAFNOSUPPORT, ENOSYS, EPERM
from functools import cache
from types import MappingProxyType

from hermitcrab.logic import system_calls
from hermitcrab.logic.call_numbers import CALLS
from hermitcrab.model.container import Hardening

# Classic BPF, as far as this filter needs it.
LOAD_WORD = 0x20
JUMP_EQUAL = 0x15
JUMP_NOT_BELOW = 0x35
JUMP_ANY_BIT = 0x45
RETURN = 0x06

# What a filter answers. The low 16 bits of RETURN_ERRNO are the errno that the program sees.
ALLOW = 0x7FFF0000
KILL_PROCESS = 0x80000000
RETURN_ERRNO = 0x00050000

# Offsets in the `seccomp_data` that a filter reads. Arguments are 64 bits wide, low word first on both machines. The
# low word alone is compared: the kernel itself reads these arguments as 32-bit values or refuses any higher bit.
_NUMBER = 0
_ARCHITECTURE = 4


def _argument(index: int) -> int:
    return 16 + 8 * index


AUDIT_ARCHITECTURES = MappingProxyType({"x86_64": 0xC000003E, "aarch64": 0xC00000B7})
"""What the kernel calls a machine's own calls, by the machine."""

X32_BIT = 0x40000000
"""Marks calls of the x32 ABI of x86_64, which would pass by every comparison with an ordinary number."""


@dataclass(frozen=True, slots=True)
class Instruction:
    code: int
    jump_true: int
    jump_false: int
    value: int


@cache
def filter_bytes(machine: str, hardening: Hardening) -> bytes | None:
    """The filter as bubblewrap reads it from a descriptor; None for a machine (`uname -m`) that has none."""
    if machine not in CALLS:
        return None
    return b"".join(
        struct.pack("<HBBI", each.code, each.jump_true, each.jump_false, each.value)
        for each in program(machine, hardening)
    )


def program(machine: str, hardening: Hardening) -> tuple[Instruction, ...]:
    return tuple(_instructions(machine, hardening))


def _instructions(machine: str, hardening: Hardening) -> Iterator[Instruction]:
    calls = CALLS[machine]
    yield Instruction(LOAD_WORD, 0, 0, _ARCHITECTURE)
    # 32-bit calls have numbers of their own; whoever makes one gets past no table of ours.
    yield Instruction(JUMP_EQUAL, 1, 0, AUDIT_ARCHITECTURES[machine])
    yield _return(KILL_PROCESS)
    yield Instruction(LOAD_WORD, 0, 0, _NUMBER)
    if machine == "x86_64":
        yield Instruction(JUMP_NOT_BELOW, 0, 1, X32_BIT)
        yield _refuse(ENOSYS)
    yield Instruction(JUMP_EQUAL, 0, 1, calls[system_calls.NOT_THERE])
    yield _refuse(ENOSYS)
    for name, judge in _JUDGES.items():
        body = tuple(judge())
        yield Instruction(JUMP_EQUAL, 0, len(body), calls[name])
        yield from body
    for first, last in _runs(calls[name] for name in system_calls.allowed(hardening) & calls.keys()):
        yield Instruction(JUMP_NOT_BELOW, 0, 2, first)
        yield Instruction(JUMP_NOT_BELOW, 1, 0, last + 1)
        yield _return(ALLOW)
    # A program that is younger than this table does without a call that is not there, and fails for one forbidden.
    yield Instruction(JUMP_NOT_BELOW, 0, 1, max(calls.values()) + 1)
    yield _refuse(ENOSYS)
    yield _refuse(EPERM)


def _runs(numbers: Iterator[int]) -> list[tuple[int, int]]:
    """The numbers as first and last of each run without a gap: a third of the comparisons."""
    runs: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if runs and runs[-1][1] == number - 1:
            runs[-1] = runs[-1][0], number
        else:
            runs.append((number, number))
    return runs


def _without_bits(bits: int) -> Iterator[Instruction]:
    yield Instruction(LOAD_WORD, 0, 0, _argument(0))
    yield Instruction(JUMP_ANY_BIT, 0, 1, bits)
    yield _refuse(EPERM)
    yield _return(ALLOW)


def _one_of(values: tuple[int, ...], errno: int) -> Iterator[Instruction]:
    yield Instruction(LOAD_WORD, 0, 0, _argument(0))
    for index, value in enumerate(values):
        yield Instruction(JUMP_EQUAL, len(values) - index, 0, value)
    yield _refuse(errno)
    yield _return(ALLOW)


def _no_terminal_injection() -> Iterator[Instruction]:
    yield Instruction(LOAD_WORD, 0, 0, _argument(1))
    for command in system_calls.TERMINAL_INJECTIONS:
        yield Instruction(JUMP_EQUAL, 0, 1, command)
        yield _refuse(EPERM)
    yield _return(ALLOW)


# Each body ends in a return, because it has overwritten the call's number in the accumulator.
_JUDGES: dict[str, Callable[[], Iterator[Instruction]]] = {
    "clone": lambda: _without_bits(system_calls.NEW_NAMESPACE_FLAGS),
    "personality": lambda: _one_of(system_calls.PERSONALITIES, EPERM),
    "ioctl": _no_terminal_injection,
    "socket": lambda: _one_of(system_calls.SOCKET_FAMILIES, EAFNOSUPPORT),
    "socketpair": lambda: _one_of(system_calls.SOCKET_FAMILIES, EAFNOSUPPORT),
}


def _return(value: int) -> Instruction:
    return Instruction(RETURN, 0, 0, value)


def _refuse(errno: int) -> Instruction:
    return _return(RETURN_ERRNO | errno)
