"""The start of one sandbox: everything opened, told to bubblewrap, and written down so that a later host finds it."""

from __future__ import annotations

import os
import platform
import resource
import signal

from hermitcrab.containers.control_group import Group
from hermitcrab.containers.engines import bubblewrap_log, bubblewrap_root
from hermitcrab.containers.engines import bubblewrap_processes as process
from hermitcrab.containers.engines.bubblewrap_processes import Process
from hermitcrab.containers.engines.bubblewrap_records import LOG, STATUS, ContainerFolder, Processes, Record
from hermitcrab.errors import EngineError, Failure
from hermitcrab.logic import bubblewrap_arguments, seccomp
from hermitcrab.logic.bubblewrap_arguments import INSIDE, INSIDE_WITH_PROCESS_LIMIT, LAUNCH, LAUNCH_BLOCK, Identity

LAUNCH_FAILED = 125
"""Exit code of the launcher when it could not join a control group."""

END_S = 5.0
"""How long what failed to start may take to end."""


def start(
    folder: ContainerFolder,
    record: Record,
    *,
    identity: Identity,
    user_namespace: int | None,
    group: Group | None,
    limits_processes_inside: bool,
) -> None:
    """Start the container. Its folder is locked by the caller. Raises EngineError when it cannot be set up."""
    spec = record.spec
    bubblewrap = process.bubblewrap()
    with bubblewrap_root.descriptors() as opened:
        steps = bubblewrap_root.steps(spec, identity.uid, identity.gid, opened)
        status = opened.keep(folder.open_new(STATUS, os.O_WRONLY))
        log = opened.keep(folder.open_new(LOG, os.O_WRONLY | os.O_APPEND))
        program = seccomp.filter_bytes(platform.machine(), spec.hardening)
        told = bubblewrap_arguments.arguments(
            steps=steps,
            identity=identity,
            env=spec.env,
            hostname=spec.name,
            workdir=spec.workdir,
            status=status,
            seccomp=None if program is None else opened.data(program),
        )
        # Surrogates stand for bytes that are no UTF-8, as everywhere in this interpreter.
        words = opened.data(b"".join(os.fsencode(each) + b"\0" for each in told))
        if group is not None:
            group.make(spec.limits)
        boot = process.boot_id()
        folder.write_processes(Processes(boot))
        open_files = min(spec.limits.open_files, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
        blocks = max(spec.limits.file_bytes // LAUNCH_BLOCK, 1)
        inside = [INSIDE_WITH_PROCESS_LIMIT, str(spec.limits.pids)] if limits_processes_inside else [INSIDE, "sh"]
        supervisor, is_ready = process.start(
            [
                *("/bin/sh", "-c", LAUNCH, str(open_files), str(blocks), *(group.entrances() if group else ()), "--"),
                # The superuser's groups would otherwise come along.
                *(("setpriv", "--clear-groups", "--") if user_namespace is not None else ()),
                *(bubblewrap, "--args", str(words), "--", "/bin/sh", "-c", *inside, *spec.argv),
            ],
            container=record.id,
            user_namespace=user_namespace,
            log=log,
            inherited=[each for each in opened.numbers if each != log],
        )
    if not is_ready:
        _give_up(folder, record, supervisor, boot)
    folder.write_processes(Processes(boot, supervisor, folder.status().main()))


def break_off(folder: ContainerFolder, record: Record) -> None:
    """Kill all of a start, wherever it is between the launcher and the container's main process."""
    process.end_all(lambda: process.marked(record.id), END_S)
    # The supervisor writes it down before it lets it go on to where nothing marks it any more.
    main = folder.status().main()
    if main is not None:
        process.send(main, signal.SIGKILL)


def _give_up(folder: ContainerFolder, record: Record, supervisor: Process, boot: str) -> None:
    """Say why a sandbox could not be set up, when nothing of it is left."""
    exit_code = process.wait(supervisor, END_S)
    # Also when it has ended: killed in the middle, it leaves a child that waits for it for ever.
    break_off(folder, record)
    folder.write_processes(Processes(boot, supervisor, None))
    last = bubblewrap_log.tail(str(folder.path / LOG), 1)
    raise EngineError(
        Failure.RESOURCES_EXHAUSTED if exit_code == LAUNCH_FAILED else Failure.UNKNOWN,
        f"The sandbox {record.spec.name} could not be set up",
        hint=f"Its set-up said: {last[0]}" if last else "`crab doctor` tries out whether this machine can do it.",
    )
