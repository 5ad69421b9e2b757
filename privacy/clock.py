"""The date, by the clock that `time.time` reads: a schedule that plays in virtual time replaces it in one place."""

from __future__ import annotations

import time
from datetime import UTC, datetime


def now() -> datetime:
    """Return the time in UTC."""
    return datetime.fromtimestamp(time.time(), UTC)


def date() -> str:
    """Return the time in UTC, to the second, in the format of ISO 8601: `2026-01-31T09:30:00+00:00`."""
    return now().isoformat(timespec="seconds")
