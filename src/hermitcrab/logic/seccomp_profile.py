"""`system_calls.py` as the profile that Docker and Podman take, in JSON. It stands in the place of their own filter."""

from __future__ import annotations

from collections.abc import Iterator
from errno import ENOSYS, EPERM
from typing import Any

from hermitcrab.logic import system_calls
from hermitcrab.logic.call_numbers import CALLS
from hermitcrab.model.container import Hardening

ARCHITECTURES = {"x86_64": "SCMP_ARCH_X86_64", "aarch64": "SCMP_ARCH_AARCH64"}

_ARGUMENT_BITS = 32
"""The kernel reads an ioctl's command as so many bits, whatever stands above them."""


def profile(machine: str, hardening: Hardening) -> dict[str, Any] | None:
    """The profile for a machine (`uname -m`); None for one that there is no table for."""
    if machine not in CALLS:
        return None
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        # A program that is younger than this table does without a call that is not there.
        "defaultErrnoRet": ENOSYS,
        # One architecture: calls of the 32-bit one have numbers of their own, and none of them is allowed.
        "architectures": [ARCHITECTURES[machine]],
        "syscalls": [
            _allow(*sorted(system_calls.allowed(hardening) & CALLS[machine].keys())),
            _refuse(EPERM, *system_calls.refused(machine, hardening)),
            _refuse(ENOSYS, system_calls.NOT_THERE),
            _allow("clone", argument=_masked(0, system_calls.NEW_NAMESPACE_FLAGS, 0)),
            *(_allow("personality", argument=_equal(value)) for value in system_calls.PERSONALITIES),
            *(_allow("socket", "socketpair", argument=_equal(value)) for value in system_calls.SOCKET_FAMILIES),
            *(
                _allow("ioctl", argument=_masked(1, mask, bits))
                for mask, bits in others_than(*system_calls.TERMINAL_INJECTIONS)
            ),
        ],
    }


def others_than(*values: int, bit: int = _ARGUMENT_BITS, mask: int = 0, bits: int = 0) -> Iterator[tuple[int, int]]:
    """Masks and bits that every number of 32 bits fits into one of, but for these values.

    A profile can let through a value, or those with certain bits, but not all values but two.
    """
    if not values:
        yield mask, bits
    elif bit > 0:
        here = 1 << (bit - 1)
        for side in (0, here):
            left = [value for value in values if value & here == side]
            yield from others_than(*left, bit=bit - 1, mask=mask | here, bits=bits | side)


def _allow(*names: str, argument: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"names": [*names], "action": "SCMP_ACT_ALLOW", **({"args": [argument]} if argument else {})}


def _refuse(errno: int, *names: str) -> dict[str, Any]:
    return {"names": [*names], "action": "SCMP_ACT_ERRNO", "errnoRet": errno}


def _masked(index: int, mask: int, bits: int) -> dict[str, Any]:
    return {"index": index, "value": mask, "valueTwo": bits, "op": "SCMP_CMP_MASKED_EQ"}


def _equal(value: int) -> dict[str, Any]:
    return {"index": 0, "value": value, "op": "SCMP_CMP_EQ"}
