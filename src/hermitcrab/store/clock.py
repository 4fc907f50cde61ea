"""Times as the databases hold them: ISO 8601, UTC, milliseconds, so that they sort as text."""

from __future__ import annotations

import time
from datetime import UTC, datetime


def utc_now() -> datetime:
    """What this machine's clock says. A simulation turns that clock, and with it everything that asks here."""
    return datetime.fromtimestamp(time.time(), UTC)


def timestamp(moment: datetime | None = None) -> str:
    """`moment` (now) as text."""
    moment = utc_now() if moment is None else moment.astimezone(UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
