from __future__ import annotations

from pathlib import Path

import pytest

from hermitcrab.cli import demo
from hermitcrab.logic.evidence import Line


def outcome(*, reply: str = "Echo", oks: tuple[bool, ...] = (True,)) -> demo.Outcome:
    return demo.Outcome(
        reply=reply,
        engine="bubblewrap",
        provider="echo",
        evidence=[Line(f"line_{number}", ok, number, "why") for number, ok in enumerate(oks)],
        wake_ms=123.456,
        roundtrip_ms=4.56,
    )


@pytest.mark.parametrize(
    ("given", "holds"),
    [
        (outcome(oks=(True, True)), True),
        (outcome(oks=(True, False)), False),
        (outcome(oks=()), False),
        (outcome(reply=""), False),
    ],
)
def test_it_holds_only_with_an_answer_and_every_line(given: demo.Outcome, holds: bool) -> None:
    assert given.holds is holds


def test_the_json_has_the_promised_shape() -> None:
    assert outcome().to_json() == {
        "reply": "Echo",
        "engine": "bubblewrap",
        "provider": "echo",
        "evidence": {"line_0": {"ok": True, "value": 0, "detail": "why"}},
        "timings_ms": {"wake": 123.5, "roundtrip": 4.6},
    }


def test_a_host_that_does_not_come_up_is_told_in_its_own_words(tmp_path: Path) -> None:
    log = tmp_path / "host.log"
    log.write_text('{"event": "noise"}\ncrab: There is no engine \'x\'.\n      Known engines: bubblewrap\n')
    error = demo._why_it_ended(2, log)
    assert (error.message, error.hint, error.exit_code) == (
        "There is no engine 'x'.",
        "Known engines: bubblewrap",
        2,
    )


def test_a_host_that_dies_without_a_word_shows_the_end_of_its_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "host.log"
    log.write_text("".join(f"line {number}\n" for number in range(100)))
    assert "code -9" in demo._why_it_ended(-9, log).message
    assert capsys.readouterr().err.splitlines() == [f"line {number}" for number in range(80, 100)]
