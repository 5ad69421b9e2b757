"""Standard output and error as they are: in any encoding, closed, full, or read by a program that has gone."""

from __future__ import annotations

import codecs
import io
import os
import select
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import TextIO

_PLAIN = {
    "✓": "+", "✗": "x", "ε": "eps", "δ": "delta", "σ": "sigma", "α": "alpha", "ρ": "rho", "≥": ">=", "≤": "<=",
    "–": "-", "—": "-", "−": "-", "…": "...", "’": "'", "·": "*", "×": "x", "±": "+/-", "→": "->", "←": "<-",
    "∞": "inf", "√": "sqrt", "²": "^2", "█": "#", "▒": "+", "░": ".",
    **{bar: str(height) for height, bar in enumerate("▁▂▃▄▅▆▇", start=1)},
}  # fmt: skip
"""What to write for a character that the terminal does not have."""


def make_usable() -> None:
    """Let both streams take any text. What a closed one gets is dropped, as by `/dev/null`."""
    codecs.register_error("cloister", _plain)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 - for as long as we run
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="cloister")


def flush_output() -> OSError | None:
    """Write what is left for standard output; return why it takes no more, if so."""
    error = _flush(sys.stdout)
    return OSError(error.errno, error.strerror, "standard output") if error else None


def reader_has_gone() -> bool:
    """Whether standard output is a pipe that nobody reads any more, as after `| head`."""
    with suppress(OSError, ValueError):
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)  # errors are told unasked
        return any(event & select.POLLERR for _, event in poll.poll(0))
    return False


def complain(text: str) -> None:
    """Write a line to standard error; there is nobody to tell if that fails too."""
    with suppress(OSError, ValueError):
        print(text, file=sys.stderr)  # noqa: T201 - standard error is what it is about
    _flush(sys.stderr)


def _flush(stream: TextIO) -> OSError | None:
    """Flush a stream. If that fails, drop what is left in it: Python would try again as it ends, and say so itself."""
    try:
        stream.flush()
    except OSError as error:
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
        return error
    return None


def _plain(error: UnicodeError) -> tuple[str | bytes, int]:
    """Replace characters that an encoding does not have, as Python asks an error handler to."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    found = error.object[error.start : error.end]
    known = "".join(_PLAIN.get(each) or each.encode("ascii", "backslashreplace").decode() for each in found)
    return known, error.end
