"""The filters of system calls that the kernel holds for a process, and what they answer: whoever made them, they are
judged by what is in force and not by what was asked for.
"""

from __future__ import annotations

import ctypes
import os
import struct
from dataclasses import dataclass, field
from typing import NoReturn

from hermitcrab.logic.seccomp import ALLOW, AUDIT_ARCHITECTURES

_ATTACH, _DETACH, _GET_FILTER = 16, 17, 0x420C
_WAIT_ANY_KIND = 0x40000000


@dataclass(frozen=True, slots=True)
class LoadedFilter:
    """One filter as the kernel loads it."""

    program: bytes
    _steps: list[tuple[int, ...]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_steps", list(struct.iter_unpack("<HBBI", self.program)))

    def answer(self, machine: str, number: int, *arguments: int, architecture: int | None = None) -> int:
        """What the kernel answers to a call: `ALLOW`, or what it does instead."""
        audit = AUDIT_ARCHITECTURES[machine] if architecture is None else architecture
        data = struct.pack("<IIQ6Q", number, audit, 0, *(*arguments, 0, 0, 0, 0, 0, 0)[:6])
        accumulator, position = 0, 0
        while True:
            code, jump_true, jump_false, value = self._steps[position]
            position += 1
            match code:
                case 0x20:  # load a word
                    (accumulator,) = struct.unpack_from("<I", data, value)
                case 0x54:  # and
                    accumulator &= value
                case 0x05:  # jump
                    position += value
                case 0x15:  # jump if equal
                    position += jump_true if accumulator == value else jump_false
                case 0x25:  # if above
                    position += jump_true if accumulator > value else jump_false
                case 0x35:  # if not below
                    position += jump_true if accumulator >= value else jump_false
                case 0x45:  # if any bit
                    position += jump_true if accumulator & value else jump_false
                case 0x06:  # return
                    return int(value)
                case _:
                    raise ValueError(f"unknown instruction {code:#x}")

    def lets(self, machine: str, number: int, *arguments: int) -> bool:
        return self.answer(machine, number, *arguments) == ALLOW


def filters_of(pid: int) -> list[LoadedFilter]:
    """Those of a live process. Only root may ask; raises OSError when the kernel does not tell."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    libc.ptrace.restype = ctypes.c_long
    if libc.ptrace(_ATTACH, pid, None, None) != 0:
        _fail(pid)
    try:
        os.waitpid(pid, _WAIT_ANY_KIND)
        found: list[LoadedFilter] = []
        while True:
            length = libc.ptrace(_GET_FILTER, pid, len(found), None)
            if length < 0:
                break
            program = ctypes.create_string_buffer(length * 8)
            if libc.ptrace(_GET_FILTER, pid, len(found), program) != length:
                _fail(pid)
            found.append(LoadedFilter(program.raw))
        if not found:
            _fail(pid)
        return found
    finally:
        libc.ptrace(_DETACH, pid, None, None)


def _fail(pid: int) -> NoReturn:
    number = ctypes.get_errno()
    raise OSError(number, f"The kernel tells no filter of process {pid}: {os.strerror(number)}")
