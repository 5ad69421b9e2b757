"""Write a process's log to standard error: as text for people, or as JSON for what collects logs.

A log in JSON leaves the machine, so it quotes no records: see `privacy.failures.Quoting`. Tracebacks are no part of it,
as the text of a foreign exception may quote anything.
"""

from __future__ import annotations

import json
import logging
import time
from enum import StrEnum
from typing import Any

from typing_extensions import override

from privacy.failures import Quoting, raised, sentence
from privacy.log_fields import fields
from privacy.untrusted_text import plain

_LONGEST = 2000  # characters of a log line


class LogForm(StrEnum):
    """How a log is written."""

    TEXT = "text"
    JSON = "json"


class LineFormatter(logging.Formatter):
    """Formats log entries so that only an entry starts at the beginning of a line, whatever its text contains."""

    @override
    def formatMessage(self, record: logging.LogRecord) -> str:
        """Format a record; indent what follows a line break in it."""
        return _moved_in(super().formatMessage(record))

    @override
    def formatException(self, ei: Any) -> str:
        """Format a traceback, indented."""
        return "  " + _moved_in(super().formatException(ei))


def _moved_in(text: str) -> str:
    return "\n  ".join(plain(line, _LONGEST) for line in text.split("\n"))


class JsonFormatter(logging.Formatter):
    """Formats each entry as one JSON object on a line of its own.

    `time`, `level`, `logger` and `message` are always there. `run`, `round` and `site` say what it is about, where that
    is known, and an event of a run adds its own fields.
    """

    @override
    def format(self, record: logging.LogRecord) -> str:
        """Format a record."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        entry: dict[str, Any] = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": plain(_message(record), _LONGEST),
            **fields(),
        }
        for name, value in getattr(record, "entry", {}).items():
            entry.setdefault(name, value)
        if record.exc_info and record.exc_info[1]:
            entry["error"] = raised(record.exc_info[1])
        return json.dumps(entry, allow_nan=False, default=str)


def _message(record: logging.LogRecord) -> str:
    """Return a record's text; exceptions in it as sentences."""
    if isinstance(record.args, tuple) and record.args:
        said = tuple(sentence(one) if isinstance(one, BaseException) else one for one in record.args)
        return str(record.msg) % said
    return record.getMessage()


def show_log(form: LogForm = LogForm.TEXT, *, by_thread: bool = False) -> None:
    """Write this process's log to standard error; as text with `by_thread`, entries say which thread they are from."""
    handler, who = logging.StreamHandler(), "%(threadName)s: " if by_thread else ""
    if form is LogForm.JSON:
        Quoting.records = False
        handler.setFormatter(JsonFormatter())
        logging.captureWarnings(capture=True)
        logging.getLogger("flwr").handlers.clear()  # it writes lines of its own form
    else:
        handler.setFormatter(LineFormatter(f"%(asctime)s %(levelname)s {who}%(message)s", "%H:%M:%S"))
    logging.basicConfig(handlers=[handler], level=logging.INFO)
