"""The hours of the day in which a site trains, such as "20:00-06:00", in its local time."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, time, timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Self

HOURS = r"^([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d$"
"""The form of `hours`: two times of the day; the second may be on the next day."""


@dataclass(frozen=True)
class Hours:
    """From `start`, inclusive, to `end`, exclusive."""

    start: time
    end: time

    @classmethod
    def read(cls, text: str) -> Self:
        """Read hours of the form `HOURS`.

        Raises:
            ValueError: if they end when they start.
        """
        start, end = (time.fromisoformat(part) for part in text.split("-"))
        if start == end:
            msg = f'hours = "{text}" ends when it starts; remove it to train at any time'
            raise ValueError(msg)
        return cls(start, end)

    def include(self, moment: datetime) -> bool:
        """Return whether a moment, in local time, lies within these hours."""
        of_day = moment.time()
        if self.start < self.end:
            return self.start <= of_day < self.end
        return of_day >= self.start or of_day < self.end

    def next_start(self, moment: datetime) -> datetime:
        """Return when these hours start next after a moment, both in local time."""
        day = moment.date() if moment.time() < self.start else moment.date() + timedelta(days=1)
        return datetime.combine(day, self.start).astimezone()
