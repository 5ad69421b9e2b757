"""Make standard output and error robust: any encoding, closed, full, or a pipe whose reader has gone."""

from __future__ import annotations

import codecs
import io
import os
import select
import sys
import warnings
from contextlib import suppress
from getpass import getpass
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
"""Replacements for characters that the terminal's encoding lacks."""


def make_usable() -> None:
    """Let both streams accept any text; a closed stream discards it, like `/dev/null`."""
    codecs.register_error("cloister", _plain)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 - open until exit
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="cloister")


def quieten_libraries() -> None:
    """Let no library write progress bars, tables, or its own notes and warnings over a command's output.

    transformers loads a pretrained model with a bar, and reports what it did not use; the checks load it several times.
    Whoever sets these variables decides otherwise.
    """
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # whoever dials without a certificate is no line in a log
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not sys.warnoptions:
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft)\.")  # not the user's


def flush_output() -> OSError | None:
    """Flush standard output; return the error if that fails."""
    error = _flush(sys.stdout)
    return OSError(error.errno, error.strerror, "standard output") if error else None


def reader_has_gone() -> bool:
    """Whether standard output is a pipe whose reader has gone, as after `| head`."""
    with suppress(OSError, ValueError):
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)  # errors are always reported
        return any(event & select.POLLERR for _, event in poll.poll(0))
    return False


def complain(text: str) -> None:
    """Write a line to standard error; ignore failures, which nobody could see."""
    with suppress(OSError, ValueError):
        print(text, file=sys.stderr)  # noqa: T201 - writes to standard error on purpose
    _flush(sys.stderr)


def _flush(stream: TextIO) -> OSError | None:
    """Flush a stream. If that fails, discard its buffer: otherwise Python retries at exit, and prints its own error."""
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
    """Replace characters that an encoding lacks; an error handler for `codecs`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    known = "".join(
        _PLAIN.get(character) or character.encode("ascii", "backslashreplace").decode() for character in text
    )
    return known, error.end


def ask_secretly(question: str) -> str | None:
    """Ask for a passphrase without showing it; None if nobody is at a terminal."""
    if sys.stdin is None or not sys.stdin.isatty():
        return None
    try:
        return getpass(question, stream=sys.stderr)
    except EOFError:
        return None
