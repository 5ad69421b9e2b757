"""Make text from outside, whether from a member or a server, safe to display and to store.

An error's reason, a name or a digest from outside may hold terminal escapes, line breaks, bidirectional controls
(Boucher and Anderson, "Trojan Source", USENIX Security 2023), or megabytes. After `plain` it is short, and every
character stands for itself; `quoted` also marks it as somebody else's words.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Any

MOST = 300  # characters of text from others; Cloister's own sentences are shorter
_BLANK = frozenset("\u115f\u1160\u2800\u3164\uffa0")  # printable but invisible
_TURNING = frozenset({"R", "AL", "AN"})  # right-to-left text, which reorders digits and signs beside it


def plain(text: str, most: int = MOST) -> str:
    r"""Return text on one line, of at most `most` characters that each stand for themselves.

    All others are replaced by Python escapes. Plain text stays as it is.

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
    r"""Return somebody else's text, made safe by `plain`, in quotation marks that it cannot close.

    Runs of spaces become one, so that no part of it can imitate a table above.

    >>> quoted("no ”      7    3/3")
    '“no \\u201d 7 3/3”'
    """
    short = re.sub(" +", " ", text[: 4 * most])
    return f"“{plain(re.sub('[“”]', lambda mark: _escape(mark[0]), short), most)}”"


def _escaped(character: str) -> str:
    shows = (
        character.isprintable()
        and character not in _BLANK
        and unicodedata.category(character)[0] != "M"  # combining marks alter the characters before them
        and unicodedata.bidirectional(character) not in _TURNING
    )
    return character if shows else _escape(character)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def plain_values(value: Any, most: int = 2000) -> Any:  # noqa: ANN401 - whatever JSON holds
    r"""Return what JSON holds with all text made plain: names, and values of at most `most` characters.

    >>> plain_values({"why": ["\x1b[2J", 3]})
    {'why': ['\\x1b[2J', 3]}
    """
    if isinstance(value, str):
        return plain(value, most)
    if isinstance(value, dict):
        return {plain(str(name)): plain_values(item, most) for name, item in value.items()}
    return [plain_values(item, most) for item in value] if isinstance(value, list) else value
