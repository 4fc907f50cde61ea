"""`crab` as people run it: real processes, a real home, bubblewrap and the echo provider where the machine has them."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import secrets
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from hermitcrab.control.client import ControlClient
from hermitcrab.errors import HomeError
from hermitcrab.settings.home import Home

CRAB = (sys.executable, "-m", "hermitcrab.cli.main")
WITHIN_S = 300.0
"""For one wait. Nothing takes this long unless something is wrong, on the busiest machine."""

sandboxed = pytest.mark.usefixtures("bubblewrap")


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HERMITCRAB")}
    return {**kept, "NO_COLOR": "1", **more}


def crab(
    home: Path, *words: str | bytes, stdin: bytes = b"", more: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*CRAB, "--home", str(home), *words],
        input=stdin,
        capture_output=True,
        env=environment(**(more or {})),
        check=False,
    )
    return subprocess.CompletedProcess(
        done.args, done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
    )


@contextmanager
def host(home: Path, *options: str, more: dict[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A host that has said that it is ready."""
    log_path = home.parent / f"{home.name}.log"
    address = f"hermitcrab-test-{secrets.token_hex(8)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready, log_path.open("wb") as log:
        ready.bind(f"\0{address}")
        ready.settimeout(WITHIN_S)
        process = subprocess.Popen(
            [*CRAB, "--home", str(home), "up", "--provider", "echo", *options],
            stdout=log,
            stderr=log,
            env=environment(NOTIFY_SOCKET=f"@{address}", **(more or {})),
        )
        try:
            try:
                assert ready.recv(64) == b"READY=1"
            except TimeoutError:
                pytest.fail(f"the host did not come up: {log_path.read_text(errors='replace')}")
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
            process.wait(WITHIN_S)


def one_sentence(done: subprocess.CompletedProcess[str], code: int) -> str:
    """The message of a command that failed as it should: no traceback, nothing on stdout, a hint."""
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert lines[0].startswith("crab: "), done.stderr
    assert 1 < len(lines) < 4, done.stderr
    return done.stderr


def until_it_works(home: Path, group: str) -> None:
    """Wait until the group's agent is in a turn. The test's own timeout is the deadline."""
    while True:
        shown = json.loads(crab(home, "sessions", "show", group, "--json").stdout)["session"]
        if shown["container"] and shown["container"]["activity"] not in {"", "idle"}:
            return


async def last_seqs(home: Path) -> dict[str, int]:
    """How far the messages of each session go."""
    async with ControlClient.connect(Home(home)) as client:
        listed = (await client.call("sessions.list"))["sessions"]
        return {
            each["id"]: (await client.call("sessions.show", session=each["id"]))["mailbox"]["last_seq"]
            for each in listed
        }


@pytest.fixture(scope="module")
def bubblewrap(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skips what needs a sandbox where this machine cannot make one, with the engine's own reason."""
    done = crab(tmp_path_factory.mktemp("doctor") / "home", "doctor", "--json")
    for each in json.loads(done.stdout)["checks"]:
        if each["area"] == "bubblewrap" and each["level"] == "error":
            pytest.skip(f"bubblewrap: {each['text']}")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    home = tmp_path_factory.mktemp("running") / "home"
    with host(home):
        yield home


# What is wrong on the line, in the settings, with the home.


@pytest.mark.parametrize("words", [("up", "--bogus"), ("status", "--bogus"), ("chat", "--bogus"), ("nonsense",)])
def test_a_wrong_flag_or_command_is_one_sentence(tmp_path: Path, words: tuple[str, ...]) -> None:
    assert words[-1] in one_sentence(crab(tmp_path / "home", *words), 2)
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"[containers\n", "line 1"),
        (b"\xff\xfe", "UTF-8"),
        (b"[containers]\nmemory_mbs = 1\n", "memory_mb"),
        (b"[containers]\nmemory_mb = 'much'\n", "memory_mb"),
        (b"[agents]\ntimezone = 'Mars/Olympus'\n", "timezone"),
    ],
)
def test_settings_that_cannot_be_used_stop_the_host_before_it_begins(tmp_path: Path, text: bytes, words: str) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    (home / "hermitcrab.toml").write_bytes(text)
    assert words in one_sentence(crab(home, "up"), 2)
    assert not (home / "hermitcrab.db").exists()


def test_settings_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "hermitcrab.toml").mkdir(parents=True)
    assert "hermitcrab.toml" in one_sentence(crab(home, "up"), 2)


@pytest.mark.parametrize(("option", "known"), [("--engine", "bubblewrap"), ("--provider", "echo")])
def test_an_unknown_engine_or_provider_names_the_known_ones(tmp_path: Path, option: str, known: str) -> None:
    said = one_sentence(crab(tmp_path / "home", "up", option, "nonsense"), 2)
    assert "nonsense" in said
    assert known in said


def test_a_home_that_cannot_be_written_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "file" in one_sentence(crab(tmp_path / "file" / "home", "up"), 1)


def test_a_home_on_a_network_file_system_is_refused(tmp_path: Path) -> None:
    mounts = f"22 1 0:20 / / rw - ext4 /dev/sda rw\n23 22 0:21 / {tmp_path} rw - nfs4 server:/x rw\n"
    with pytest.raises(HomeError, match="nfs4") as raised:
        Home(tmp_path / "home").prepare(mountinfo=mounts)
    assert raised.value.hint
    assert not (tmp_path / "home").exists()


# Without a host.


@pytest.mark.parametrize(
    "words",
    [
        ("status",),
        ("stop",),
        ("chat", "hello"),
        ("groups", "list"),
        ("explain", "x"),
        ("groups", "create", "x"),
        ("sessions", "list"),
        ("sessions", "show", "x"),
        ("logs", "x"),
    ],
)
def test_without_a_host_every_admin_command_says_how_to_start_one(tmp_path: Path, words: tuple[str, ...]) -> None:
    assert "crab up" in one_sentence(crab(tmp_path / "home", *words), 2)
    assert not (tmp_path / "home").exists()


def test_doctor_examines_a_machine_without_a_host(tmp_path: Path) -> None:
    done = crab(tmp_path / "home", "doctor", "--json")
    found: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == (0 if found["ok"] else 1)
    subjects = {each["subject"] for each in found["checks"]}
    assert {"Python", "SQLite", "disk", "home", "file system", "settings", "host", "Claude key"} <= subjects
    assert {each["area"] for each in found["checks"]} >= {"bubblewrap", "docker", "podman"}
    assert all(each["fix"] for each in found["checks"] if each["level"] != "ok")
    assert not (tmp_path / "home").exists()


def test_doctor_fails_for_an_engine_that_is_chosen_and_not_there(tmp_path: Path) -> None:
    more = {
        "HERMITCRAB__CONTAINERS__ENGINE": "docker",
        "HERMITCRAB__CONTAINERS__DOCKER_SOCKET": str(tmp_path / "no.sock"),
    }
    done = crab(tmp_path / "home", "doctor", "--json", more=more)
    failing = [each for each in json.loads(done.stdout)["checks"] if each["level"] == "error" and each["needed"]]
    assert done.returncode == 1
    assert {each["area"] for each in failing} == {"docker"}


# With a host.


def test_a_second_host_on_a_home_is_refused_and_names_the_first(running: Path) -> None:
    pid = json.loads(crab(running, "status", "--json").stdout)["pid"]
    assert str(pid) in one_sentence(crab(running, "up"), 1)


@sandboxed
def test_a_message_is_answered(running: Path) -> None:
    done = crab(running, "chat", "hello there")
    assert (done.returncode, done.stdout) == (0, "Echo: hello there\n"), done.stderr


@sandboxed
def test_a_message_from_a_pipe_and_in_any_script_is_answered(running: Path) -> None:
    text = "zwei Zeilen\nund 🦀 日本"
    assert crab(running, "chat", "-", stdin=text.encode()).stdout == f"Echo: {text}\n"
    assert crab(running, "chat", stdin=text.encode()).stdout == f"Echo: {text}\n"


@sandboxed
def test_files_go_both_ways(running: Path, tmp_path: Path) -> None:
    data = bytes(range(256)) * 1500
    (tmp_path / "to the agent.pdf").write_bytes(data)
    sent = crab(running, "chat", "--json", "--file", str(tmp_path / "to the agent.pdf"), "look at this")
    assert json.loads(sent.stdout)["reply"] == "Echo: look at this"
    (inbox,) = (each for each in running.glob("sessions/*/*/inbox/*/*") if each.stat().st_size == len(data))
    assert (inbox.name, inbox.read_bytes()) == ("1.pdf", data)
    (running / "groups" / "main" / "from-the-agent.bin").write_bytes(data)
    back = '/tool send_file {"path": "from-the-agent.bin", "filename": "../answer.bin", "text": "here"}'
    for folder, name in (("received", "answer.bin"), ("received", "answer (2).bin")):
        answer = json.loads(crab(running, "chat", "--json", "--files-to", str(tmp_path / folder), back).stdout)
        (saved,) = answer["messages"][0]["files"]
        assert saved == {"name": "answer.bin", "path": str(tmp_path / folder / name)}
        assert Path(saved["path"]).read_bytes() == data
    refused = crab(running, "chat", "--file", str(tmp_path / "nothing"))
    assert "cannot be read" in one_sentence(refused, 2)


@sandboxed
def test_an_agents_question_is_answered_with_a_number(running: Path) -> None:
    ask = '/tool ask_user_question {"title": "Lunch", "question": "Where?", "options": ["here", "there"]}'
    command = [*CRAB, "--home", str(running), "chat", ask]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment(), text=True) as asking:
        assert asking.stdout is not None
        lines = [asking.stdout.readline().strip() for _ in range(5)]
        assert lines == ["Lunch", "Where?", "1. here", "2. there", "Answer with the number or the words."]
        assert crab(running, "chat", "2").stdout == "Echo: there\n"
        # Whoever asked for the question is told of the answer, which names the message that chose.
        asking.communicate(timeout=WITHIN_S)
        assert asking.returncode == 0


@sandboxed
def test_an_answer_as_json_is_one_document(running: Path) -> None:
    done = crab(running, "chat", "--json", "hello")
    answer = json.loads(done.stdout)
    assert (answer["reply"], answer["failed"]) == ("Echo: hello", False)


@pytest.mark.parametrize(
    ("words", "stdin", "what"),
    [
        (("chat", "-"), b"a" * 10_000_000, "bytes"),
        (("chat", "-"), b"a" * 300_000, "262,144"),
        (("chat", "-"), b"a\0b", "NUL"),
        (("chat", "-"), b"\xff\xfe", "UTF-8"),
        (("chat", b"\xff\xfe"), b"", "UTF-8"),
        (("chat", ""), b"", "empty"),
        (("chat", "--group", "nobody", "x"), b"", "nobody"),
    ],
)
def test_what_cannot_be_sent_is_refused_and_nothing_of_it_is_kept(
    running: Path, words: tuple[str | bytes, ...], stdin: bytes, what: str
) -> None:
    before = anyio.run(last_seqs, running)
    assert what in one_sentence(crab(running, *words, stdin=stdin), 1 if what == "nobody" else 2)
    assert anyio.run(last_seqs, running) == before


@sandboxed
def test_without_an_answer_in_time_it_says_that_the_message_is_kept(running: Path) -> None:
    done = crab(running, "chat", "--timeout", "0.5", "/sleep 600")
    assert "kept" in one_sentence(done, 3)
    until_it_works(running, "main")
    assert crab(running, "sessions", "interrupt", "main").returncode == 0
    # Whoever comes next gets it, and not as the answer to something else.
    later = crab(running, "chat", "next")
    assert later.stdout == "Echo: next\n"


@sandboxed
def test_groups_sessions_and_logs_are_shown(running: Path) -> None:
    # Other tests of this file make groups on the same host, before or after, as they are spread.
    before = [each["folder"] for each in json.loads(crab(running, "groups", "list", "--json").stdout)]
    assert "Made group ops" in crab(running, "groups", "create", "ops", "--name", "Operations").stdout
    assert crab(running, "chat", "--group", "ops", "hello").stdout == "Echo: hello\n"
    after = [each["folder"] for each in json.loads(crab(running, "groups", "list", "--json").stdout)]
    assert "main" in before
    assert after == sorted([*before, "ops"])
    assert "terminal:ops" in crab(running, "groups", "show", "ops").stdout
    explained = json.loads(crab(running, "explain", "ops", "--json").stdout)
    assert "/workspace/agent" in {each["container"] for each in explained["mounts"]}
    told = crab(running, "explain", "ops").stdout
    assert all(each["container"] in told for each in explained["mounts"])
    assert one_sentence(crab(running, "explain", "nobody"), 1).startswith("crab: There is no group 'nobody'")
    sessions = json.loads(crab(running, "sessions", "list", "--group", "ops", "--json").stdout)
    assert [each["phase"] for each in sessions] == ["ready"]
    assert sessions[0]["id"] in crab(running, "sessions", "show", "ops").stdout
    assert crab(running, "logs", "ops").returncode == 0
    assert crab(running, "sessions", "stop", "ops").stdout == "Its container has ended.\n"
    shown = json.loads(crab(running, "sessions", "show", "ops", "--json").stdout)
    assert [each["cause"] for each in shown["certificates"]] == ["stopped"]
    assert crab(running, "chat", "--group", "ops", "again").stdout == "Echo: again\n"


def test_doctor_sees_the_running_host(running: Path) -> None:
    found = json.loads(crab(running, "doctor", "--json").stdout)
    host_check = next(each for each in found["checks"] if each["subject"] == "host")
    assert "runs as process" in host_check["text"]


@sandboxed
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_host_leaves_in_good_order(tmp_path: Path, number: signal.Signals) -> None:
    home = tmp_path / "home"
    with host(home) as process:
        assert crab(home, "chat", "hello").stdout == "Echo: hello\n"
        process.send_signal(number)
        assert process.wait(WITHIN_S) == 0
    said = (tmp_path / "home.log").read_text()
    assert "Traceback" not in said
    assert number.name in said
    assert not (home / "run" / "control.sock").exists()
    with host(home):
        assert crab(home, "chat", "hello again").stdout == "Echo: hello again\n"


def test_a_host_is_asked_to_leave(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with host(home) as process:
        assert str(process.pid) in crab(home, "stop").stdout
        assert process.wait(WITHIN_S) == 0


@sandboxed
def test_an_answer_survives_that_the_host_is_killed_and_started_again(tmp_path: Path) -> None:
    home, token = tmp_path / "home", tmp_path / "token"
    # It dies in the middle of the turn, however slow whoever looks on is.
    with host(home, more={"HERMITCRAB_FAULT": f"link.claimed:{token}"}) as first:
        assert crab(home, "chat", "hello").returncode == 0
        token.touch()
        chat = subprocess.Popen(
            [*CRAB, "--home", str(home), "chat", "/sleep 1"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(),
        )
        assert first.wait(WITHIN_S) == -signal.SIGKILL
    with chat, host(home):
        out, err = chat.communicate(timeout=WITHIN_S)
        assert chat.returncode == 0, err
        assert out.count(b"Echo:") == 1, out
        assert crab(home, "chat", "afterwards").stdout == "Echo: afterwards\n"


@sandboxed
def test_a_conversation_at_a_terminal(running: Path) -> None:
    leader, follower = pty.openpty()
    chat = subprocess.Popen(
        [*CRAB, "--home", str(running), "chat"],
        stdin=follower,
        stdout=follower,
        stderr=follower,
        env=environment(TERM="xterm"),
        start_new_session=True,
    )
    os.close(follower)
    seen = b""

    def read_until(*words: bytes) -> None:
        """Until these were written, one after the other."""
        nonlocal seen
        for each in words:
            while each not in seen:
                assert select.select([leader], [], [], WITHIN_S)[0], seen
                data = os.read(leader, 65536)
                if b"\x1b[6n" in data:
                    os.write(leader, b"\x1b[1;1R")  # a terminal's answer to "where is the cursor?"
                seen += data
            seen = seen.partition(each)[2]

    prompt_is_back = b"\x1b[?2004h"
    try:
        read_until(b"Talking to main", prompt_is_back)
        os.write(leader, b"hello from a keyboard\r")
        read_until(b"Echo: hello from a keyboard", prompt_is_back)
        os.write(leader, b"\x04")
        with contextlib.suppress(OSError):  # what reading gives once the other end is closed
            read_until(b"this is never written")
        assert chat.wait(WITHIN_S) == 0
    finally:
        chat.kill()
        chat.wait(WITHIN_S)
        os.close(leader)


@sandboxed
def test_a_turn_is_interrupted_and_the_next_message_is_answered(running: Path) -> None:
    assert crab(running, "groups", "create", "sleeper").returncode == 0
    assert crab(running, "chat", "--group", "sleeper", "good morning").returncode == 0
    with subprocess.Popen(
        [*CRAB, "--home", str(running), "chat", "--group", "sleeper", "/sleep 600"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    ) as sleeping:
        until_it_works(running, "sleeper")
        done = crab(running, "sessions", "interrupt", "sleeper")
        assert done.returncode == 0, done.stderr
        sleeping.communicate(timeout=WITHIN_S)
    assert crab(running, "chat", "--group", "sleeper", "and now?").stdout == "Echo: and now?\n"


@sandboxed
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small file system to fill")
def test_a_full_disk_is_one_sentence_and_loses_nothing(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(small)], check=True)
    try:
        with host(small / "home"):
            assert crab(small / "home", "chat", "before").stdout == "Echo: before\n"
            filler = small / "filler"
            with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
                while file.write(b"x" * 4096):
                    pass
            message = one_sentence(crab(small / "home", "chat", "x" * 50_000), 1)
            assert "disk is full" in message
            (tmp_path / "file").write_bytes(bytes(300_000))
            message = one_sentence(crab(small / "home", "chat", "--file", str(tmp_path / "file")), 1)
            assert "disk is full" in message
            filler.unlink()
            assert crab(small / "home", "chat", "--file", str(tmp_path / "file"), "a file").stdout == "Echo: a file\n"
            assert crab(small / "home", "chat", "after").stdout == "Echo: after\n"
    finally:
        subprocess.run(["umount", "--lazy", str(small)], check=True)
