"""What a person sees: rows that fit, log entries that each begin a line, and no text that acts."""

import io
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from cloister.views.log import LineFormatter
from cloister.views.run import RoundTable

EVENT: dict[str, object] = {
    "event": "round", "round": 1, "released": True, "sites": ["a"], "problems": {}, "epsilon": {"a": 0.5},
    "bytes_up": 1, "seconds": 0.1,
}  # fmt: skip


def rows_of(*events: dict[str, object]) -> list[str]:
    console = Console(file=io.StringIO(), force_terminal=True, width=80, highlight=False, color_system=None)
    table = RoundTable(console)
    for event in events:
        table.show(event)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize("value", [0.5, -0.5, 3.4e38, -3.4e38, 1e6, 0.0])
def test_a_row_keeps_its_columns_for_all_figures(value: float) -> None:
    (row,) = rows_of(EVENT | {"metrics": {"loss": value, "accuracy": value}, "epsilon": {"a": abs(value)}})
    (plain,) = rows_of(EVENT | {"metrics": {"loss": 0.5, "accuracy": 0.5}})
    assert len(row) <= 80
    assert row[45:] == plain[45:]


def test_a_sites_answer_is_shown_verbatim() -> None:
    _, line = rows_of(EVENT | {"problems": {"a": "“[red]no[/red] :pile_of_poo:”"}})
    assert line == "       a: “[red]no[/red] :pile_of_poo:”"


@given(line=st.text(), raised=st.text())
def test_only_an_entry_of_the_log_begins_a_line(line: str, raised: str) -> None:
    error = ValueError(raised)
    failure = type(error), error, None
    record = logging.LogRecord("cloister.agent", logging.INFO, "", 0, "it says %s", (line,), failure)
    text = LineFormatter("%(levelname)s %(message)s").format(record)
    first, *others = text.split("\n")
    assert first.startswith("INFO it says ")
    assert all(line.startswith("  ") for line in others)
    assert all(line.isprintable() for line in (first, *others))
