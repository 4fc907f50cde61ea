from __future__ import annotations

from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermitcrab.errors import Failure
from hermitcrab.logic import docker_answers
from hermitcrab.model.container import ContainerStatus, ExitRecord

LABELS = {
    "hermitcrab.installation": "inst",
    "hermitcrab.session": "sess",
    "hermitcrab.generation": "7",
    "hermitcrab.spec-hash": "abc",
}


def answer(**state: Any) -> dict[str, Any]:
    return {
        "Id": "f00",
        "Name": "/crab-x",
        "Created": "2026-11-23T23:03:24Z",
        "Config": {"Labels": LABELS},
        "State": state,
    }


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
KEYS = (
    "Id",
    "Name",
    "Created",
    "Config",
    "State",
    "Runtimes",
    "SecurityOptions",
    "Components",
    "memory_stats",
    "Labels",
)
odd_answers = st.dictionaries(st.sampled_from(KEYS), json_values)


def test_a_running_container_tells_its_labels_and_process() -> None:
    seen = docker_answers.view(answer(Status="running", Running=True, Paused=False, Pid=42))
    assert (seen.name, seen.id, seen.session, seen.generation, seen.spec_hash) == ("crab-x", "f00", "sess", 7, "abc")
    assert (seen.status, seen.pid, seen.exit) == (ContainerStatus.RUNNING, 42, None)


def test_a_paused_container_is_frozen() -> None:
    assert docker_answers.view(answer(Status="paused", Running=True, Paused=True)).status is ContainerStatus.FROZEN


@pytest.mark.parametrize("status", ["created", "configured", "initialized"])
def test_a_container_that_never_ran_is_created(status: str) -> None:
    assert docker_answers.view(answer(Status=status, Running=False)).status is ContainerStatus.CREATED


@pytest.mark.parametrize("status", ["stopping", "restarting"])
def test_a_container_that_is_about_to_end_has_not_ended(status: str) -> None:
    assert docker_answers.view(answer(Status=status, Running=False)).status is ContainerStatus.RUNNING


@pytest.mark.parametrize("status", ["exited", "dead", "removing", "stopped", "what?"])
def test_everything_else_has_ended(status: str) -> None:
    assert docker_answers.view(answer(Status=status, Running=False)).status is ContainerStatus.EXITED


def test_an_ended_container_has_its_exit_record_and_no_process() -> None:
    seen = docker_answers.view(
        answer(Status="exited", Pid=0, ExitCode=137, OOMKilled=True, FinishedAt="2026-11-23T23:04:00Z")
    )
    assert seen.exit == ExitRecord(exit_code=137, oom_killed=True, finished_at="2026-11-23T23:04:00Z")
    assert seen.pid is None


def test_an_end_that_nobody_saw_has_no_exit_code() -> None:
    seen = docker_answers.view(answer(Status="exited", ExitCode=0, FinishedAt="0001-01-01T00:00:00Z"))
    assert seen.exit == ExitRecord(exit_code=None)


@given(odd_answers)
def test_no_answer_takes_the_host_down(odd: dict[str, Any]) -> None:
    docker_answers.view(odd)
    docker_answers.stats(odd)
    docker_answers.runtime_paths(odd)
    docker_answers.volumes_of(odd)
    docker_answers.runc_version(odd)
    assert docker_answers.capabilities("docker", odd).engine == "docker"


@pytest.mark.parametrize(
    ("status", "message", "failure"),
    [
        (404, "No such image: nope:1", Failure.IMAGE_UNAVAILABLE),
        (404, "no such image: docker.io/library/nope:1: image not known", Failure.IMAGE_UNAVAILABLE),
        (409, 'Conflict. The container name "/a" is already in use by container "1"', Failure.NAME_IN_USE),
        (500, 'creating storage: the container name "a" is already in use by 1', Failure.NAME_IN_USE),
        (400, 'exec: "nosuch": executable file not found in $PATH: unknown', Failure.SPEC_INVALID),
        (500, 'runc: exec: "nosuch": executable file not found in $PATH', Failure.SPEC_INVALID),
        (400, "bad parameter", Failure.SPEC_INVALID),
        (500, "write /x: no space left on device", Failure.RESOURCES_EXHAUSTED),
        (500, "fork/exec: resource temporarily unavailable", Failure.RESOURCES_EXHAUSTED),
        (500, "error setting rlimit type 6: operation not permitted", Failure.RUNTIME_UNAVAILABLE),
        (500, "something broke", Failure.UNKNOWN),
        (404, "page not found", Failure.UNKNOWN),
        (409, "Container 1 is already paused", Failure.UNKNOWN),
    ],
)
def test_faults_are_typed(status: int, message: str, failure: Failure) -> None:
    error = docker_answers.fault(status, message, doing="create it")
    assert error.failure is failure
    assert "could not create it" in error.message


@given(st.integers(400, 599), st.text())
def test_a_fault_is_bounded_whatever_the_engine_says(status: int, message: str) -> None:
    assert len(docker_answers.fault(status, message * 50, doing="x").message) < 500


@pytest.mark.parametrize(
    ("status", "message", "missing"),
    [
        (404, "No such container: x", True),
        (404, 'no container with name or ID "x" found: no such container', True),
        (404, "page not found", False),
        (500, "no such container", False),
    ],
)
def test_only_a_plain_answer_means_that_a_container_is_gone(status: int, message: str, missing: bool) -> None:
    assert docker_answers.container_is_missing(status, message) is missing


def test_memory_that_the_kernel_could_drop_is_not_counted() -> None:
    read = docker_answers.stats(
        {
            "memory_stats": {"usage": 1000, "stats": {"inactive_file": 300}},
            "cpu_stats": {"cpu_usage": {"total_usage": 2_500_000_000}},
            "pids_stats": {"current": 3},
        }
    )
    assert (read.memory_bytes, read.cpu_s, read.pids) == (700, 2.5, 3)


SECCOMP = {"SecurityOptions": ["name=seccomp,profile=default"], "Architecture": "x86_64"}


@pytest.mark.parametrize("said", ["x86_64", "aarch64", "amd64", "arm64"])
def test_an_engine_takes_a_filter_of_ours_on_machines_that_have_one_whatever_its_own_is(said: str) -> None:
    assert docker_answers.no_filter({**SECCOMP, "Architecture": said}) is None
    assert (
        docker_answers.no_filter({"SecurityOptions": ["name=seccomp,profile=unconfined"], "Architecture": said}) is None
    )


@pytest.mark.parametrize(
    ("info", "why"),
    [
        ({**SECCOMP, "SecurityOptions": []}, "the engine runs without seccomp"),
        ({**SECCOMP, "Architecture": "riscv64"}, "machine riscv64; its own is in force"),
        ({"SecurityOptions": ["name=seccomp,profile=unconfined"]}, "it does not tell); it runs without its own"),
    ],
)
def test_an_engine_that_takes_no_filter_of_ours_says_why(info: dict[str, Any], why: str) -> None:
    assert why in docker_answers.capabilities("docker", info).unrealized["seccomp"]


def test_what_the_engine_cannot_keep_is_said() -> None:
    good = {**SECCOMP, "MemoryLimit": True, "PidsLimit": True}
    assert docker_answers.capabilities("docker", good).unrealized == {}
    bad = {"MemoryLimit": False, "PidsLimit": False, "CpuCfsQuota": False, "SecurityOptions": []}
    assert set(docker_answers.capabilities("docker", bad).unrealized) == {"memory", "pids", "cpus", "seccomp"}
    assert "memory" in docker_answers.capabilities("docker", {**good, "SwapLimit": False}).unrealized
    rootless = {**good, "Rootless": True, "CgroupVersion": "1"}
    assert {"memory", "freeze", "open-files"} <= set(docker_answers.capabilities("podman", rootless).unrealized)


@pytest.mark.parametrize(
    ("engine", "version", "told"), [("podman", "4.9.3", False), ("podman", "5.0.0", True), ("docker", "20.10", True)]
)
def test_an_engine_that_does_not_tell_who_ran_out_of_memory_is_said_so(
    engine: Literal["docker", "podman"], version: str, told: bool
) -> None:
    info = {**SECCOMP, "ServerVersion": version}
    assert ("oom-report" not in docker_answers.capabilities(engine, info).unrealized) is told


@pytest.mark.parametrize(
    ("version", "level"),
    [
        ((1, 1, 5), "warning"),
        ((1, 1, 12), "warning"),
        ((1, 2, 7), "warning"),
        ((1, 2, 8), "ok"),
        ((1, 3, 0), "warning"),
        ((1, 3, 2), "warning"),
        ((1, 3, 3), "ok"),
        ((1, 4, 0), "ok"),
    ],
)
def test_runc_is_held_against_its_known_flaws(version: tuple[int, int, int], level: str) -> None:
    finding = docker_answers.runc_finding(version)
    assert finding is not None
    assert finding.level == level
    assert bool(finding.fix) == (level == "warning")


@pytest.mark.parametrize(
    ("component", "version"),
    [
        ({"Name": "runc", "Version": "1.1.5+ds1"}, (1, 1, 5)),
        ({"Name": "OCI Runtime (runc)", "Version": "runc version 1.3.3\ncommit: x"}, (1, 3, 3)),
        ({"Name": "OCI Runtime (crun)", "Version": "crun version 1.8.1"}, None),
    ],
)
def test_both_engines_say_which_runc_they_use(component: dict[str, str], version: tuple[int, ...] | None) -> None:
    assert docker_answers.runc_version({"Components": [{"Name": "Engine"}, component]}) == version


def frame(stream: int, content: bytes) -> bytes:
    return bytes([stream, 0, 0, 0]) + len(content).to_bytes(4, "big") + content


def test_lines_of_the_two_streams_do_not_run_into_each_other() -> None:
    log = frame(1, b"one\ntw") + frame(2, b"error\n") + frame(1, b"o\nthree")
    assert docker_answers.log_lines(log, 10) == ["one", "error", "two", "three"]
    assert docker_answers.log_lines(log, 2) == ["two", "three"]
    assert docker_answers.log_lines(log, 0) == []


@given(st.binary(max_size=200), st.integers(0, 5))
def test_any_log_is_readable(log: bytes, lines: int) -> None:
    assert len(docker_answers.log_lines(log, lines)) <= lines


@given(st.lists(st.text(alphabet="ab\u00e9", min_size=1, max_size=30), max_size=10), st.integers(1, 7))
def test_frames_may_be_cut_anywhere(lines: list[str], size: int) -> None:
    content = "".join(f"{line}\n" for line in lines).encode()
    log = b"".join(frame(1, content[at : at + size]) for at in range(0, len(content), size))
    assert docker_answers.log_lines(log, 100) == lines


@pytest.mark.parametrize(("text", "version"), [("1.41", (1, 41)), ("4.3.1-dev", (4, 3, 1)), ("", ()), ("x", ())])
def test_versions_are_compared_as_numbers(text: str, version: tuple[int, ...]) -> None:
    assert docker_answers.dotted(text) == version


@pytest.mark.parametrize(
    ("status", "words", "missing"),
    [
        (404, "No such container: crab-1", True),
        (404, "page not found", False),
        (500, "container 5a32 does not exist in database: no such container", True),
        (500, "no such container runtime", False),
        (500, "database is locked", False),
    ],
)
def test_only_what_the_engine_knows_to_be_gone_is_missing(status: int, words: str, *, missing: bool) -> None:
    assert docker_answers.container_is_missing(status, words) is missing
