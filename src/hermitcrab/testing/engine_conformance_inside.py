"""What a program finds inside a container of any real engine: the second half of the suite in `engine_conformance`."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Callable
from typing import Any

import anyio
import anyio.to_thread

from hermitcrab.errors import EngineError
from hermitcrab.model.container import ContainerStatus, Limits, Mount, MountClass
from hermitcrab.testing.engine_harness import DEADLINE_S, EngineHarness

ADDED_BY_ENGINES = frozenset({"PWD", "HOSTNAME", "HOME", "TERM", "LANG", "container", "LC_CTYPE"})
"""What an engine, an image or the asking interpreter puts into every environment. Nothing of it tells of the host."""


class EngineInside:
    """Law 11: secure and bounded by default, seen by a program that asks."""

    async def test_the_main_process_is_the_specs_and_is_pid_1(self, harness: EngineHarness) -> None:
        assert await ask(harness, "os.getpid()") == 1

    async def test_arguments_arrive_as_they_are(self, harness: EngineHarness) -> None:
        words = ("", " ", "a b", "'", '"', "$HOME", "*", "--", "-x", "new\nline", "ü", "\\")
        probe = "import json, sys; print(json.dumps(sys.argv[1:]))"
        _, lines = await harness.run(harness.spec("", argv=("python3", "-c", probe, *words)))
        assert json.loads(lines[-1]) == list(words)

    async def test_the_environment_is_the_specs_and_nothing_of_the_hosts(self, harness: EngineHarness) -> None:
        env = {"MY_WORD": "one", "MY_EMPTY": "", "MY_TEXT": "ünï\tcode\n'\"$x\\", "MY_LONG": "x" * 20_000}
        found = await ask(harness, "dict(os.environ)", env=env)
        wanted = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/home/agent", **env}
        assert {name: found.get(name) for name in wanted} == wanted
        added = set(found) - set(wanted)
        assert added <= ADDED_BY_ENGINES, added - ADDED_BY_ENGINES

    async def test_the_engine_knows_which_python_runs_in_it(self, harness: EngineHarness) -> None:
        known = await harness.engine.python(harness.image)
        assert await harness.engine.containers() == []  # whatever was asked is gone
        # Without an image, our programs run on the interpreter that this host has, which is mounted for them.
        found = (
            sys.version_info[:2]
            if harness.image is None
            else await ask(harness, "list(__import__('sys').version_info[:2])")
        )
        assert list(known) == list(found)
        await harness.reopen()
        assert await harness.engine.python(harness.image) == known

    async def test_work_begins_in_the_workdir(self, harness: EngineHarness) -> None:
        assert await ask(harness, "os.getcwd()") == "/workspace"

    async def test_the_user_is_nobody_special_and_owns_what_it_writes_outside_too(self, harness: EngineHarness) -> None:
        found = await ask(harness, "[open('/workspace/mine', 'w').close(), os.getuid(), os.getgid(), os.getgroups()]")
        _, uid, gid, groups = found
        assert uid != 0
        assert gid != 0
        assert 0 not in groups
        made = (harness.folder / "work/mine").stat()
        assert (made.st_uid, made.st_gid) == (harness.uid, harness.gid)

    async def test_the_user_has_a_name(self, harness: EngineHarness) -> None:
        view, _ = await harness.run(harness.spec("id -un && id -gn"))
        assert view.exit is not None
        assert view.exit.exit_code == 0

    async def test_there_are_no_capabilities_and_none_to_be_had(self, harness: EngineHarness) -> None:
        status = await ask(harness, "dict(l.strip().partition(':\\t')[::2] for l in open('/proc/self/status'))")
        sets = {name: int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")}
        assert sets == dict.fromkeys(sets, 0)
        assert status["NoNewPrivs"] == "1"

    async def test_only_the_standard_descriptors_are_open(self, harness: EngineHarness) -> None:
        assert await ask(harness, "sorted(int(each) for each in os.listdir('/proc/1/fd'))[:3]") == [0, 1, 2]
        # In place of the shell, which would hold some for a moment while it starts a program. 3 is the folder itself.
        _, lines = await harness.run(harness.spec("exec ls /proc/self/fd"))
        assert lines == ["0", "1", "2", "3"]

    async def test_there_is_nothing_to_read_on_stdin(self, harness: EngineHarness) -> None:
        assert await ask(harness, "os.read(0, 10).decode()") == ""

    async def test_only_its_own_processes_are_seen(self, harness: EngineHarness) -> None:
        assert await ask(harness, "[each for each in os.listdir('/proc') if each.isdigit()]") == ["1"]

    async def test_the_hosts_name_is_not_told(self, harness: EngineHarness) -> None:
        assert await ask(harness, "os.uname().nodename") != os.uname().nodename

    async def test_the_root_cannot_be_written(self, harness: EngineHarness) -> None:
        await harness.unrealized("read-only-root")
        places = ["/x", "/etc/x", "/usr/x", "/usr/bin/x", "/run/x", "/var/x", "/opt/x", "/dev/x", "/proc/x"]
        assert await ask(harness, f"[each for each in {places!r} if written(each)]") == []

    async def test_tmp_and_home_can_be_written_and_are_empty_and_bounded(self, harness: EngineHarness) -> None:
        await harness.unrealized("tmp-size")
        limits = Limits(memory_bytes=256 * 1024 * 1024, pids=64, tmp_bytes=1024 * 1024)
        assert await ask(harness, "[os.listdir('/tmp'), os.listdir('/home/agent')]") == [[], []]
        found = await ask(
            harness, "[(written(p + '/a', 500_000), written(p + '/b', 2_000_000)) for p in ('/tmp', '/home/agent')]",
            limits=limits,
        )  # fmt: skip
        assert found == [[True, False], [True, False]]

    async def test_a_read_only_mount_cannot_be_written(self, harness: EngineHarness) -> None:
        folder = harness.writable("readable")
        (folder / "file").write_text("from the host")
        mounts = (Mount(source=str(folder), target="/given"), Mount(source=str(folder / "file"), target="/etc/given"))
        found = await ask(
            harness, "[*map(written, ('/given/new', '/given/file', '/etc/given')), open('/given/file').read()]",
            mounts=mounts,
        )  # fmt: skip
        assert found == [False, False, False, "from the host"]

    async def test_a_read_only_mount_inside_a_writable_one_stays_read_only(self, harness: EngineHarness) -> None:
        outer = harness.writable("outer")
        (outer / "rules").write_text("the agent's")
        (outer / "deep").mkdir(exist_ok=True)
        given = harness.writable("given")
        (given / "rules").write_text("the host's")
        mounts = (
            # Deepest first, on purpose.
            Mount(source=str(given), target="/workspace/outer/deep"),
            Mount(source=str(given / "rules"), target="/workspace/outer/rules"),
            Mount(source=str(outer), target="/workspace/outer", writable=True, mount_class=MountClass.WORK),
        )
        harness.writable("work").joinpath("outer").mkdir(exist_ok=True)
        found = await ask(
            harness,
            "[written('/workspace/outer/new'), written('/workspace/outer/rules'), written('/workspace/outer/deep/new'),"
            " open('/workspace/outer/rules').read(), refused(os.remove, '/workspace/outer/rules'),"
            " refused(os.rename, '/workspace/outer/deep', '/workspace/outer/moved')]",
            mounts=mounts,
        )
        assert found == [True, False, False, "the host's", True, True]
        assert (outer / "rules").read_text() == "the agent's"

    async def test_there_is_no_network(self, harness: EngineHarness) -> None:
        await harness.unrealized("network-none")
        found = await ask(
            harness, "[reached(socket.AF_INET, ('192.0.2.1', 443)), sorted(name for _, name in socket.if_nameindex())]"
        )
        assert found[0] in {"ENETUNREACH", "EHOSTUNREACH"}
        assert "lo" in found[1]
        # Tunnels that the kernel puts into every namespace are down and have no address.
        assert not {name for name in found[1] if name.startswith(("eth", "en", "veth", "tap"))}

    async def test_loopback_works_inside(self, harness: EngineHarness) -> None:
        assert await ask(harness, "loopback()") == "done"

    async def test_loopback_is_not_the_hosts(self, harness: EngineHarness) -> None:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            found = await ask(harness, f"reached(socket.AF_INET, {listener.getsockname()!r})")
        assert found == "ECONNREFUSED"

    async def test_a_socket_in_a_read_only_mount_can_be_reached(self, harness: EngineHarness) -> None:
        folder = harness.writable("run")
        before = os.open(".", os.O_RDONLY)
        try:
            # A socket's address is short; the scratch folder's path may not be.
            os.chdir(folder)
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind("link.sock")
                (folder / "link.sock").chmod(0o666)
                listener.listen()
                found = await ask(
                    harness, "[reached(socket.AF_UNIX, '/run/hermitcrab/link.sock'), written('/run/hermitcrab/x')]",
                    mounts=(Mount(source=str(folder), target="/run/hermitcrab"),),
                )  # fmt: skip
        finally:
            os.fchdir(before)
            os.close(before)
        assert found == ["done", False]

    async def test_too_much_memory_ends_it_and_that_is_told(self, harness: EngineHarness) -> None:
        await harness.unrealized("memory")
        limits = Limits(memory_bytes=48 * 1024 * 1024, pids=64)
        probe = "b = [bytes([1]) * 1_000_000 for _ in range(400)]"
        view, _ = await harness.run(harness.spec("", argv=("python3", "-c", probe), limits=limits))
        assert view.exit is not None
        assert view.exit.exit_code == 137
        assert view.exit.oom_killed or not await harness.keeps("oom-report")

    async def test_time_on_the_processor_is_bounded(self, harness: EngineHarness) -> None:
        await harness.unrealized("cpus")
        limits = Limits(memory_bytes=256 * 1024 * 1024, pids=64, cpus=0.4)
        # A busy machine gives it less, and never more than its quota and the beginning of one more period.
        assert await ask(harness, "spent(1.0)", limits=limits) <= 0.6

    async def test_a_flood_of_output_is_bounded_and_ends_with_its_end(self, harness: EngineHarness) -> None:
        limits = Limits(memory_bytes=256 * 1024 * 1024, pids=64, log_bytes=256 * 1024)
        flood = "[print('x' * 99) for _ in range(20_000)]; print('last')"
        view, _ = await harness.run(harness.spec("", argv=("python3", "-c", flood), limits=limits))
        lines = await harness.engine.logs(view.name, lines=20_000)
        assert lines[-1] == "last"
        assert sum(len(line) + 1 for line in lines) <= limits.log_bytes or not await harness.keeps("log-size")

    async def test_too_many_processes_are_refused(self, harness: EngineHarness) -> None:
        await harness.unrealized("pids")
        # Beyond what an engine's own program needs, with its threads, before it becomes ours: that has been 9.
        limits = Limits(memory_bytes=256 * 1024 * 1024, pids=30)
        assert 25 <= await ask(harness, "forks(100)", limits=limits) <= 30

    async def test_open_files_are_bounded_and_nothing_dumps_core(self, harness: EngineHarness) -> None:
        await harness.unrealized("open-files")
        limits = Limits(memory_bytes=256 * 1024 * 1024, pids=64, open_files=123)
        found = await ask(
            harness, "[resource.getrlimit(resource.RLIMIT_NOFILE), resource.getrlimit(resource.RLIMIT_CORE)[0]]",
            limits=limits,
        )  # fmt: skip
        assert found == [[123, 123], 0]

    async def test_no_file_grows_beyond_its_bound(self, harness: EngineHarness) -> None:
        await harness.unrealized("file-size")
        limits = Limits(memory_bytes=256 * 1024 * 1024, pids=64, file_bytes=1024 * 1024)
        found = await ask(
            harness,
            "[resource.getrlimit(resource.RLIMIT_FSIZE), written('/workspace/a'), written('/workspace/b', 2 << 20)]",
            limits=limits,
        )
        assert found == [[1024 * 1024, 1024 * 1024], True, False]

    async def test_a_frozen_one_makes_no_progress(self, harness: EngineHarness) -> None:
        await harness.unrealized("freeze")
        ticks = harness.writable("work") / "ticks"
        name = await harness.started("while :; do echo x >>/workspace/ticks; sleep 0.005; done")
        await until(ticks.exists)
        await harness.engine.freeze(name)
        before = ticks.stat().st_size
        # Time has to pass for something not to happen in.
        await anyio.sleep(0.2)
        assert ticks.stat().st_size == before
        await harness.engine.thaw(name)
        await until(lambda: ticks.stat().st_size > before)

    async def test_its_other_processes_end_with_the_main_one(self, harness: EngineHarness) -> None:
        alive = harness.writable("work") / "alive"
        os.mkfifo(alive)
        alive.chmod(0o666)
        # The pipe ends when the last process that has it open for writing is gone.
        script = "(exec sleep 600) >/workspace/alive & exec sleep 600"
        name = await harness.started(script)
        with anyio.fail_after(DEADLINE_S):
            reader = await anyio.to_thread.run_sync(lambda: os.open(alive, os.O_RDONLY))
            try:
                await harness.engine.stop(name, grace_s=0)
                assert await anyio.to_thread.run_sync(lambda: os.read(reader, 1)) == b""
            finally:
                os.close(reader)
        assert (await harness.view(name)).status is ContainerStatus.EXITED

    async def test_a_command_that_is_not_there_ends_or_is_refused(self, harness: EngineHarness) -> None:
        try:
            view, _ = await harness.run(harness.spec("", argv=("/no/such/program",)))
        except EngineError:
            return
        assert view.exit is not None
        assert view.exit.exit_code == 127

    async def test_a_long_log_gives_its_last_lines(self, harness: EngineHarness) -> None:
        view, _ = await harness.run(harness.spec("i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done"))
        lines = await harness.engine.logs(view.name, lines=3)
        assert lines == ["line 19997", "line 19998", "line 19999"]

    async def test_a_log_that_is_no_text_is_still_told(self, harness: EngineHarness) -> None:
        view, lines = await harness.run(harness.spec("printf 'a\\377b\\n'; echo last"))
        assert view.status is ContainerStatus.EXITED
        assert lines[-1] == "last"
        assert lines[0].startswith("a")
        assert lines[0].endswith("b")


_HELPERS = """
import ctypes, errno, json, os, resource, socket, time

def written(path, size=1):
    try:
        with open(path, "wb") as file:
            file.write(bytes(size))
    except OSError:
        return False
    return True

def spent(seconds):
    until, before = time.monotonic() + seconds, time.process_time()
    while time.monotonic() < until:
        pass
    return time.process_time() - before

def refused(action, *arguments):
    try:
        action(*arguments)
    except OSError:
        return True
    return False

def reached(family, address):
    with socket.socket(family) as connection:
        connection.settimeout(5)
        try:
            connection.connect(address)
        except OSError as error:
            return errno.errorcode.get(error.errno, str(error))
    return "done"

def loopback():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        return reached(socket.AF_INET, listener.getsockname())

def forks(wanted):
    made = 1
    for _ in range(wanted):
        try:
            if os.fork() == 0:
                time.sleep(600)
        except OSError:
            break
        made += 1
    return made

def call(*arguments):
    libc = ctypes.CDLL(None, use_errno=True)
    return 0 if libc.syscall(*arguments) >= 0 else ctypes.get_errno()
"""


async def until(happened: Callable[[], bool]) -> None:
    """Wait for a file that a container writes: nobody tells of that, so that this asks again."""
    with anyio.fail_after(DEADLINE_S):
        while not happened():  # noqa: ASYNC110
            await anyio.sleep(0.01)


async def ask(harness: EngineHarness, expression: str, **options: Any) -> Any:
    """The value of a Python expression inside a container of its own."""
    program = f"{_HELPERS}\nprint('answer', json.dumps({expression}), flush=True)\nos._exit(0)"
    view, lines = await harness.run(harness.spec("", argv=("python3", "-c", program), **options))
    answers = [line.removeprefix("answer ") for line in lines if line.startswith("answer ")]
    assert answers, (view.exit, lines)
    return json.loads(answers[0])
