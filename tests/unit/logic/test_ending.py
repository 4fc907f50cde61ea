"""Each way in which a container can end has a cause of its own and a sentence."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermitcrab.logic.ending import PLANNED, Cause, Circumstances, Ending, explain, failed_start
from hermitcrab.model.container import ExitRecord

REBOOT = Circumstances(machine_restarted=True, host_was_away=True)
ENGINE = Circumstances(engine_was_away=True)
AWAY = Circumstances(host_was_away=True)


def ended(code: int | None, *, oom: bool = False) -> ExitRecord:
    return ExitRecord(exit_code=code, oom_killed=oom)


@pytest.mark.parametrize(
    ("record", "around", "cause", "words"),
    [
        (ended(3), Circumstances(), Cause.EXITED, "code 3"),
        (ended(139), Circumstances(), Cause.SIGNALLED, "SIGSEGV"),
        (ended(137), Circumstances(), Cause.SIGNALLED, "SIGKILL"),
        (ended(162), Circumstances(), Cause.SIGNALLED, "signal 34"),
        (ended(137, oom=True), Circumstances(), Cause.OUT_OF_MEMORY, "memory"),
        (ended(137, oom=True), REBOOT, Cause.OUT_OF_MEMORY, "memory"),
        (ended(0), Circumstances(), Cause.DRAINED, "by itself"),
        (ended(70), Circumstances(), Cause.EXITED, "error of its own"),
        (ended(75), Circumstances(), Cause.ORPHANED, "no host"),
        (ended(76), Circumstances(), Cause.DRAINED, "newer"),
        (ended(77), Circumstances(), Cause.MISCONFIGURED, "protocol"),
        (ended(78), Circumstances(), Cause.MISCONFIGURED, "not told"),
        (None, Circumstances(), Cause.VANISHED, "somebody else"),
        (None, AWAY, Cause.HOST_DIED, "earlier host"),
        (None, ENGINE, Cause.ENGINE_GONE, "engine"),
        (None, REBOOT, Cause.MACHINE_RESTARTED, "machine"),
        (ended(None), Circumstances(), Cause.VANISHED, "without leaving an exit code"),
        (ended(None), REBOOT, Cause.MACHINE_RESTARTED, "machine"),
        (ended(255), REBOOT, Cause.MACHINE_RESTARTED, "machine"),
        (ended(255), ENGINE, Cause.ENGINE_GONE, "engine"),
        (ended(3), ENGINE, Cause.EXITED, "code 3"),
    ],
)
def test_what_the_engine_says_is_explained_by_what_happened_around_it(
    record: ExitRecord | None, around: Circumstances, cause: Cause, words: str
) -> None:
    found = explain(record, wanted=None, farewell=None, around=around)
    assert found.cause is cause
    assert words in found.text


@pytest.mark.parametrize("cause", Cause)
def test_an_end_that_we_want_is_told_as_that_whatever_the_engine_says(cause: Cause) -> None:
    found = explain(ended(137), wanted=cause, farewell=None, around=ENGINE)
    assert found.cause is cause
    assert found.text.endswith(".")
    assert explain(None, wanted=cause, farewell=None, note="It was late.") == Ending(cause, "It was late.")


@pytest.mark.parametrize(
    ("passed", "stage", "cause"),
    [
        ((), "preparing it", Cause.START_FAILED),
        (("materials",), "its sockets", Cause.START_FAILED),
        (("materials", "sockets"), "the gateway", Cause.GATEWAY_DOWN),
        (("materials", "sockets", "prepared"), "creating it", Cause.START_FAILED),
        (("materials", "sockets", "prepared", "created"), "starting it", Cause.START_FAILED),
        (("materials", "sockets", "prepared", "created", "started"), "its hello", Cause.START_FAILED),
    ],
)
def test_a_failed_start_names_its_step(passed: tuple[str, ...], stage: str, cause: Cause) -> None:
    found = failed_start(passed, "no such file", None)
    assert found == Ending(cause, f"It did not come up; the step that failed was {stage}: no such file.")
    assert not found.planned


def test_a_start_that_ended_tells_how() -> None:
    assert failed_start(("started",), "no hello", ended(137, oom=True)).text.endswith("the kernel ended it.")


@given(code=st.none() | st.integers(-1, 300), oom=st.booleans(), flags=st.tuples(*[st.booleans()] * 3))
def test_every_end_has_a_cause_and_a_whole_sentence(code: int | None, oom: bool, flags: tuple[bool, ...]) -> None:
    found = explain(ended(code, oom=oom), wanted=None, farewell=None, around=Circumstances(*flags))
    assert found.cause in Cause
    assert found.text[0].isupper()
    assert found.text[-1] == "."
    assert found.planned == (found.cause in PLANNED)
