"""Logs: events with fields, on stderr, as JSON lines or for people. Called once by whoever starts a process.

Our own events (structlog) and those of libraries (stdlib logging) take the same road, so that nothing is written that
was not redacted.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Literal, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from hermitcrab.observe.redaction import Redactor

_CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if code not in {9, 10}}
_CONTROL_AND_NEWLINE = _CONTROL | {10: "\\n"}

redactor = Redactor()
"""Register here every secret that the process comes to know."""


def configure_logs(
    *,
    level: Literal["debug", "info", "warning", "error"] = "info",
    format: Literal["auto", "console", "json"] = "auto",  # noqa: A002  # the setting's name
    stream: TextIO | None = None,
) -> None:
    """Send every event of `level` and above to `stream` (stderr). May be called again; the last call counts."""
    stream = sys.stderr if stream is None else stream
    for_people = format == "console" or (format == "auto" and stream.isatty())
    first: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
    ]
    last: list[Processor] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta, redact]
    if for_people:
        colors = stream.isatty() and not os.environ.get("NO_COLOR")
        last += [_printable, structlog.dev.ConsoleRenderer(colors=colors)]
    else:
        last += [structlog.processors.JSONRenderer()]
    handler = logging.StreamHandler(stream)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=first, processors=last))
    root = logging.getLogger()
    for each in root.handlers[:]:
        if isinstance(each.formatter, structlog.stdlib.ProcessorFormatter):
            root.removeHandler(each)
    root.addHandler(handler)
    root.setLevel(level.upper())
    # Libraries tell of every request at "info"; that is our "debug".
    for library in ("asyncio", "httpx2", "httpcore2", "aiodocker", "aiohttp"):
        logging.getLogger(library).setLevel(logging.WARNING if level != "debug" else logging.DEBUG)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *first,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )


def redact(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """The last processor before a renderer."""
    redacted = redactor.value(dict(event))
    assert isinstance(redacted, dict)
    return redacted


def _printable(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    # What an agent or a chat wrote must not move the cursor, change colours or forge a line on somebody's terminal.
    for key, value in event.items():
        if isinstance(value, str):
            event[key] = value.translate(_CONTROL if key in {"exception", "stack"} else _CONTROL_AND_NEWLINE)
    return event
