"""What is written when something is logged, by us or by a library."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Literal

import pytest
import structlog

from hermitcrab.observe.logs import configure_logs, redactor

# A made-up value that stands for a key.
CANARY = "canary-value-that-no-log-may-hold"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_events_are_json_lines_where_nobody_looks() -> None:
    stream = io.StringIO()
    configure_logs(stream=stream)
    with structlog.contextvars.bound_contextvars(session="sess-1"):
        structlog.get_logger("hermitcrab.x").info("container.started", took_s=0.5)
    (event,) = lines(stream)
    assert event["event"] == "container.started"
    assert (event["session"], event["took_s"], event["level"]) == ("sess-1", 0.5, "info")
    assert event["logger"] == "hermitcrab.x"
    assert str(event["timestamp"]).endswith("Z")


def test_events_are_for_people_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    stream = Terminal()
    configure_logs(stream=stream)
    structlog.get_logger().info("host.ready", home="/x")
    assert "host.ready" in stream.getvalue()
    assert "\x1b" not in stream.getvalue()
    with pytest.raises(ValueError):
        json.loads(stream.getvalue())


def test_the_format_can_be_chosen() -> None:
    stream = Terminal()
    configure_logs(stream=stream, format="json")
    structlog.get_logger().info("x")
    assert lines(stream)[0]["event"] == "x"


def test_what_is_below_the_level_is_not_written() -> None:
    stream = io.StringIO()
    configure_logs(stream=stream, level="warning")
    structlog.get_logger().info("quiet")
    logging.getLogger("library").info("quiet too")
    structlog.get_logger().warning("loud")
    assert [event["event"] for event in lines(stream)] == ["loud"]


def test_the_last_configuration_counts_and_nothing_is_written_twice() -> None:
    first, second = io.StringIO(), io.StringIO()
    configure_logs(stream=first)
    configure_logs(stream=second)
    structlog.get_logger().info("once")
    assert first.getvalue() == ""
    assert len(lines(second)) == 1


@pytest.mark.parametrize("shape", ["json", "console"])
def test_secrets_are_in_no_part_of_an_event(shape: Literal["json", "console"]) -> None:
    redactor.register(CANARY)
    stream = io.StringIO()
    configure_logs(stream=stream, format=shape)
    log = structlog.get_logger()
    log.warning(CANARY, field=CANARY, nested={"deep": [CANARY]}, **{CANARY: 1})
    logging.getLogger("library").warning("from a library: %s", CANARY)
    with structlog.contextvars.bound_contextvars(bound=CANARY):
        try:
            raise ValueError(CANARY)
        except ValueError:
            log.exception("failed")
            logging.getLogger("library").exception("failed")
    assert "ValueError" in stream.getvalue()
    assert CANARY not in stream.getvalue()


def test_nobody_forges_a_line_or_moves_the_cursor() -> None:
    stream = io.StringIO()
    configure_logs(stream=stream, format="console")
    structlog.get_logger().info("said", text="hello\n2026-01-01 [error] forged\x1b[2J\x9b1A")
    assert len(stream.getvalue().splitlines()) == 1
    assert "\x1b[2J" not in stream.getvalue()
    assert "\x9b" not in stream.getvalue()
