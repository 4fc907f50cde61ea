"""`crab demo` as people run it, and what it leaves behind when it is interrupted: nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

CRAB = (sys.executable, "-m", "hermitcrab.cli.main")


def environment(folder: Path, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HERMITCRAB")}
    return {**kept, "TMPDIR": str(folder), "NO_COLOR": "1", **more}


@pytest.fixture(scope="module", autouse=True)
def _bubblewrap(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("doctor")
    done = subprocess.run(
        [*CRAB, "--home", str(folder / "home"), "doctor", "--json"],
        capture_output=True,
        check=False,
        env=environment(folder),
    )
    for each in json.loads(done.stdout)["checks"]:
        if each["area"] == "bubblewrap" and each["level"] == "error":
            pytest.skip(f"bubblewrap: {each['text']}")


def test_every_line_of_the_evidence_holds(tmp_path: Path) -> None:
    done = subprocess.run(
        [*CRAB, "demo", "--json"], capture_output=True, text=True, check=False, env=environment(tmp_path)
    )
    shown = json.loads(done.stdout)
    assert [name for name, line in shown["evidence"].items() if not line["ok"]] == []
    assert done.returncode == 0
    assert set(shown) == {"reply", "engine", "provider", "evidence", "timings_ms"}
    assert shown["reply"].startswith("Echo: Hello")
    assert (shown["engine"], shown["provider"]) == ("bubblewrap", "echo")
    assert shown["evidence"]["uid"]["value"] > 0
    assert shown["evidence"]["seccomp"]["value"] == 2
    assert shown["evidence"]["tcp_outside_unreachable"]["value"] == "ENETUNREACH"
    assert shown["timings_ms"]["wake"] > 0
    assert shown["timings_ms"]["roundtrip"] > 0
    assert list(tmp_path.iterdir()) == []


STAYS = """
import sys
import anyio
from hermitcrab.cli import demo, main
ask = demo._ask

async def ask_and_stay(*arguments):
    await ask(*arguments)
    await anyio.sleep_forever()

demo._ask = ask_and_stay
sys.argv = ["crab", "demo"]
main.main()
"""
"""A demo that goes no further than its first answer: however late a signal is, it finds it at work."""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_demo_leaves_no_home_and_no_host(tmp_path: Path, number: signal.Signals, code: int) -> None:
    with subprocess.Popen(
        # A shell that puts tests into the background has them, and what they start, ignore SIGINT.
        ["env", "--default-signal=INT", sys.executable, "-c", STAYS],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(tmp_path),
    ) as demo:
        assert demo.stderr is not None
        for line in demo.stderr:
            if "Sending a message" in line:
                break
        host = Path(f"/proc/{demo.pid}/task/{demo.pid}/children").read_text().split()
        demo.send_signal(number)
        assert "Traceback" not in demo.stderr.read()
        assert demo.wait() == code
    assert host
    assert not any(Path(f"/proc/{pid}").exists() for pid in host)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--engine", "nonsense"), "bubblewrap"),
        (("--provider", "nonsense"), "echo"),
        (("--engine", "docker"), "docker"),
    ],
)
def test_what_cannot_work_is_said_at_once_with_the_fix(tmp_path: Path, options: tuple[str, ...], words: str) -> None:
    more = {"HERMITCRAB__CONTAINERS__DOCKER_SOCKET": str(tmp_path.parent / "no-such.sock")}
    done = subprocess.run(
        [*CRAB, "demo", "--json", *options],
        capture_output=True,
        text=True,
        check=False,
        env=environment(tmp_path, **more),
    )
    assert done.returncode in {1, 2}
    assert done.stdout == ""
    said = [line for line in done.stderr.splitlines() if not line.startswith("==>")]
    assert said[0].startswith("crab: ")
    assert words in " ".join(said)
    assert list(tmp_path.iterdir()) == []
