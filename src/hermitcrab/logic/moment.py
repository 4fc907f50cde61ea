"""Moments as people write them: `30m`, `2h`, `7d` ago, or a date."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from hermitcrab.errors import BadInputError

_AGO = re.compile(r"([0-9]{1,6})(s|m|h|d|w)", re.ASCII)
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def parse_moment(text: str, now: datetime) -> datetime:
    """The moment that is meant, in UTC. A date without a zone is UTC. Raises BadInputError."""
    try:
        if (found := _AGO.fullmatch(text.strip())) is not None:
            return now.astimezone(UTC) - timedelta(**{_UNITS[found[2]]: int(found[1])})
        moment = datetime.fromisoformat(text.strip())
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise BadInputError(
            f"{text[:40]!r} is no moment.", hint="Write 30m, 2h or 7d for so long ago, or a date like 2026-11-24."
        ) from error
