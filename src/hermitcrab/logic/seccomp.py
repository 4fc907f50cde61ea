"""The system-call filter of a bubblewrap container, as the classic BPF program that the kernel loads.

It is a deny list on top of dropped capabilities and no new privileges: it takes away kernel surface that an agent's
programs do not need (keyrings, BPF, io_uring, mounts, further namespaces, module loading, odd sockets), and leaves
compilers, interpreters, browsers and debuggers working. Docker and Podman bring their own; only bubblewrap has none.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from errno import EAFNOSUPPORT, ENOSYS, EPERM
from types import MappingProxyType

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


X32_BIT = 0x40000000
"""Marks calls of the x32 ABI, which would pass by every comparison with an ordinary number."""

NEW_NAMESPACE_FLAGS = 0x7E020000
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET."""
NEW_TIME_NAMESPACE = 0x80
"""CLONE_NEWTIME. Only for unshare: in clone's flags this bit belongs to the child's exit signal."""

PERSONALITIES = (0x0, 0xFFFFFFFF)
"""Plain Linux, and "only tell me"."""
TERMINAL_INJECTIONS = (0x5412, 0x541C)
"""TIOCSTI and TIOCLINUX: typing into somebody else's terminal."""
SOCKET_FAMILIES = (1, 2, 10, 16)
"""UNIX, INET, INET6 and NETLINK (interface lists). Never VSOCK, PACKET, ALG and the rest."""


@dataclass(frozen=True, slots=True)
class Instruction:
    code: int
    jump_true: int
    jump_false: int
    value: int


@dataclass(frozen=True, slots=True)
class Machine:
    """A processor architecture as seccomp knows it."""

    audit_architecture: int
    has_x32: bool
    calls: MappingProxyType[str, int]


# Numbers that both machines share, because they were given after 2019 to all of them at once.
_COMMON_CALLS = {
    "io_uring_setup": 425,
    "io_uring_enter": 426,
    "io_uring_register": 427,
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "fsconfig": 431,
    "fsmount": 432,
    "fspick": 433,
    "clone3": 435,
    "pidfd_getfd": 438,
    "process_madvise": 440,
    "mount_setattr": 442,
    "quotactl_fd": 443,
    "memfd_secret": 447,
    "process_mrelease": 448,
    "set_mempolicy_home_node": 450,
    "open_tree_attr": 467,
}

MACHINES = MappingProxyType(
    {
        "x86_64": Machine(
            0xC000003E,
            has_x32=True,
            calls=MappingProxyType(
                {
                    **_COMMON_CALLS,
                    "ioctl": 16,
                    "shmget": 29,
                    "shmat": 30,
                    "shmctl": 31,
                    "socket": 41,
                    "socketpair": 53,
                    "clone": 56,
                    "semget": 64,
                    "semop": 65,
                    "semctl": 66,
                    "msgget": 68,
                    "msgsnd": 69,
                    "msgrcv": 70,
                    "msgctl": 71,
                    "ptrace": 101,
                    "syslog": 103,
                    "uselib": 134,
                    "personality": 135,
                    "vhangup": 153,
                    "modify_ldt": 154,
                    "pivot_root": 155,
                    "_sysctl": 156,
                    "adjtimex": 159,
                    "chroot": 161,
                    "acct": 163,
                    "settimeofday": 164,
                    "mount": 165,
                    "umount2": 166,
                    "swapon": 167,
                    "swapoff": 168,
                    "reboot": 169,
                    "sethostname": 170,
                    "setdomainname": 171,
                    "iopl": 172,
                    "ioperm": 173,
                    "init_module": 175,
                    "delete_module": 176,
                    "quotactl": 179,
                    "nfsservctl": 180,
                    "lookup_dcookie": 212,
                    "semtimedop": 220,
                    "clock_settime": 227,
                    "mbind": 237,
                    "set_mempolicy": 238,
                    "mq_open": 240,
                    "kexec_load": 246,
                    "add_key": 248,
                    "request_key": 249,
                    "keyctl": 250,
                    "migrate_pages": 256,
                    "unshare": 272,
                    "vmsplice": 278,
                    "move_pages": 279,
                    "perf_event_open": 298,
                    "fanotify_init": 300,
                    "name_to_handle_at": 303,
                    "open_by_handle_at": 304,
                    "clock_adjtime": 305,
                    "setns": 308,
                    "process_vm_readv": 310,
                    "process_vm_writev": 311,
                    "kcmp": 312,
                    "finit_module": 313,
                    "kexec_file_load": 320,
                    "bpf": 321,
                    "userfaultfd": 323,
                }
            ),
        ),
        "aarch64": Machine(
            0xC00000B7,
            has_x32=False,
            calls=MappingProxyType(
                {
                    **_COMMON_CALLS,
                    "lookup_dcookie": 18,
                    "ioctl": 29,
                    "umount2": 39,
                    "mount": 40,
                    "pivot_root": 41,
                    "nfsservctl": 42,
                    "chroot": 51,
                    "vhangup": 58,
                    "quotactl": 60,
                    "vmsplice": 75,
                    "acct": 89,
                    "personality": 92,
                    "unshare": 97,
                    "kexec_load": 104,
                    "init_module": 105,
                    "delete_module": 106,
                    "clock_settime": 112,
                    "syslog": 116,
                    "ptrace": 117,
                    "reboot": 142,
                    "sethostname": 161,
                    "setdomainname": 162,
                    "settimeofday": 170,
                    "adjtimex": 171,
                    "mq_open": 180,
                    "msgget": 186,
                    "msgctl": 187,
                    "msgrcv": 188,
                    "msgsnd": 189,
                    "semget": 190,
                    "semctl": 191,
                    "semtimedop": 192,
                    "semop": 193,
                    "shmget": 194,
                    "shmctl": 195,
                    "shmat": 196,
                    "socket": 198,
                    "socketpair": 199,
                    "add_key": 217,
                    "request_key": 218,
                    "keyctl": 219,
                    "clone": 220,
                    "swapon": 224,
                    "swapoff": 225,
                    "mbind": 235,
                    "set_mempolicy": 237,
                    "migrate_pages": 238,
                    "move_pages": 239,
                    "perf_event_open": 241,
                    "fanotify_init": 262,
                    "name_to_handle_at": 264,
                    "open_by_handle_at": 265,
                    "clock_adjtime": 266,
                    "setns": 268,
                    "process_vm_readv": 270,
                    "process_vm_writev": 271,
                    "kcmp": 272,
                    "finit_module": 273,
                    "bpf": 280,
                    "userfaultfd": 282,
                    "kexec_file_load": 294,
                }
            ),
        ),
    }
)

_CHECKED = frozenset({"clone", "clone3", "ioctl", "personality", "socket", "socketpair", "unshare"})
"""Judged by their arguments, or refused in a way of their own."""

_DEBUGGING = frozenset({"kcmp", "modify_ldt", "pidfd_getfd", "process_vm_readv", "process_vm_writev", "ptrace"})
"""Reach only the container's own processes of the same user. Debuggers need them; `strict` does without."""

_SELDOM_NEEDED = frozenset(
    {
        *("mq_open", "msgctl", "msgget", "msgrcv", "msgsnd"),
        *("semctl", "semget", "semop", "semtimedop", "shmat", "shmctl", "shmget"),
        *("mbind", "migrate_pages", "move_pages", "set_mempolicy", "set_mempolicy_home_node"),
        *("memfd_secret", "process_madvise", "process_mrelease", "vmsplice"),
    }
)
"""Old message queues, shared memory by number, memory placement: where kernel exploits prepare the heap, and what few
programs use. `strict` does without."""


def filter_bytes(machine: str, hardening: Hardening) -> bytes | None:
    """The filter as bubblewrap reads it from a descriptor; None for a machine (`uname -m`) that has none."""
    if machine not in MACHINES:
        return None
    return b"".join(
        struct.pack("<HBBI", each.code, each.jump_true, each.jump_false, each.value)
        for each in program(machine, hardening)
    )


def denied_calls(machine: str, hardening: Hardening) -> dict[str, int]:
    """Calls by name and number that are refused whatever their arguments are."""
    kept = _CHECKED if hardening == "strict" else _CHECKED | _DEBUGGING | _SELDOM_NEEDED
    return {name: number for name, number in MACHINES[machine].calls.items() if name not in kept}


def program(machine: str, hardening: Hardening) -> tuple[Instruction, ...]:
    return tuple(_instructions(MACHINES[machine], denied_calls(machine, hardening)))


def _instructions(machine: Machine, denied: dict[str, int]) -> Iterator[Instruction]:
    yield Instruction(LOAD_WORD, 0, 0, _ARCHITECTURE)
    # 32-bit calls have numbers of their own; whoever makes one gets past no table of ours.
    yield Instruction(JUMP_EQUAL, 1, 0, machine.audit_architecture)
    yield _return(KILL_PROCESS)
    yield Instruction(LOAD_WORD, 0, 0, _NUMBER)
    if machine.has_x32:
        yield Instruction(JUMP_NOT_BELOW, 0, 1, X32_BIT)
        yield _refuse(ENOSYS)
    for number in sorted(denied.values()):
        yield Instruction(JUMP_EQUAL, 0, 1, number)
        yield _refuse(EPERM)
    # "Not there" sends libc back to clone, whose flags can be read; those of clone3 lie in memory, out of reach here.
    yield Instruction(JUMP_EQUAL, 0, 1, machine.calls["clone3"])
    yield _refuse(ENOSYS)
    for name, judge in _JUDGES.items():
        body = tuple(judge())
        yield Instruction(JUMP_EQUAL, 0, len(body), machine.calls[name])
        yield from body
    yield _return(ALLOW)


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
    for command in TERMINAL_INJECTIONS:
        yield Instruction(JUMP_EQUAL, 0, 1, command)
        yield _refuse(EPERM)
    yield _return(ALLOW)


# Each body ends in a return, because it has overwritten the call's number in the accumulator.
_JUDGES: dict[str, Callable[[], Iterator[Instruction]]] = {
    "clone": lambda: _without_bits(NEW_NAMESPACE_FLAGS),
    "unshare": lambda: _without_bits(NEW_NAMESPACE_FLAGS | NEW_TIME_NAMESPACE),
    "personality": lambda: _one_of(PERSONALITIES, EPERM),
    "ioctl": _no_terminal_injection,
    "socket": lambda: _one_of(SOCKET_FAMILIES, EAFNOSUPPORT),
    "socketpair": lambda: _one_of(SOCKET_FAMILIES, EAFNOSUPPORT),
}


def _return(value: int) -> Instruction:
    return Instruction(RETURN, 0, 0, value)


def _refuse(errno: int) -> Instruction:
    return _return(RETURN_ERRNO | errno)
