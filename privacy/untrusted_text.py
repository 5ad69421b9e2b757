"""Text that others wrote, made safe to show and to keep: one place, for whatever a member or a server says.

An error's reason, a name or a digest from outside may hold terminal escapes, line breaks, marks that turn the line
around (Boucher and Anderson, "Trojan Source", USENIX Security 2023), or megabytes. After `plain` it is short, and every
character stands for itself; `quoted` also says that the words are somebody else's.
"""

from __future__ import annotations

import re
import unicodedata

MOST = 300  # characters of what others say; our own sentences are shorter
_BLANK = frozenset("\u115f\u1160\u2800\u3164\uffa0")  # printed, but as nothing
_TURNING = frozenset({"R", "AL", "AN"})  # written from right to left: digits and signs beside them change places


def plain(text: str, most: int = MOST) -> str:
    r"""Return text of at most `most` characters, on one line, of characters that each stand for themselves.

    All others are written as Python escapes them. What is plain stays as it is.

    >>> plain("ε 0.5\x1b[2J\n\u202eoo")
    'ε 0.5\\x1b[2J\\n\\u202eoo'
    >>> plain("a" * 10, most=4)
    'aaa…'
    """
    text = text[: most + 1]
    if not (text.isascii() and text.isprintable()):
        text = "".join(map(_escaped, unicodedata.normalize("NFC", text)))
    return text if len(text) <= most else text[: most - 1] + "…"


def quoted(text: str, most: int = MOST) -> str:
    r"""Return what somebody else said, as `plain`, in quotation marks that it cannot close.

    Runs of spaces become one, so that no part of it lines up with a table above.

    >>> quoted("no ”      7    3/3")
    '“no \\u201d 7 3/3”'
    """
    short = re.sub(" +", " ", text[: 4 * most])
    return f"“{plain(re.sub('[“”]', lambda mark: _escape(mark[0]), short), most)}”"


def _escaped(character: str) -> str:
    shows = (
        character.isprintable()
        and character not in _BLANK
        and unicodedata.category(character)[0] != "M"  # marks are set upon what stands around them
        and unicodedata.bidirectional(character) not in _TURNING
    )
    return character if shows else _escape(character)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
