"""Whatever somebody else wrote is short, on one line, and each of its characters stands for itself."""

import json
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from privacy.untrusted_text import MOST, plain, quoted

hostile = st.text(st.characters(exclude_categories=())) | st.text(
    "\x1b[]\n\r\t\u202e\u2066\u200b\u0301“”  \\ abε", max_size=600
)


@given(text=hostile)
@example(text="\ud800")
@example(text="\u0627\u0644" * 400)
@example(text="e\u0301")
def test_foreign_text_is_shown_verbatim(text: str) -> None:
    output = plain(text)
    assert len(output) <= MOST
    assert output.isprintable()
    assert plain(output) == output
    output.encode()
    for character in output:
        assert unicodedata.category(character)[0] not in "CM"
        assert unicodedata.bidirectional(character) not in {"R", "AL", "AN", "RLE", "RLO", "RLI"}
    assert json.loads(json.dumps(output)) == output


@given(text=st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=MOST))
def test_plain_english_stays_as_it_is(text: str) -> None:
    assert plain(text) == text


@pytest.mark.parametrize("text", ["ε 2.90 of 3, δ ≤ 1e-05", "Zürich – „Bern“", "第三医院", 'tasks = ["a:B"]'])
def test_letters_and_signs_stay_as_they_are(text: str) -> None:
    assert plain(text) == text


@given(text=hostile)
def test_foreign_text_cannot_close_the_quotation_marks(text: str) -> None:
    message = quoted(text)
    assert (message[0], message[-1]) == ("“", "”")
    assert not set("“”") & set(message[1:-1])
    assert "  " not in message
    assert len(message) <= MOST + 2
    assert plain(message, MOST + 2) == message


def test_long_text_is_cut_before_it_is_processed() -> None:
    assert plain("\x1b" * 10_000_000).startswith("\\x1b\\x1b")
    assert len(quoted("”" * 10_000_000)) <= MOST + 2
