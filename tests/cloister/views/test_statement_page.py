"""The page of a statement: it is complete and self-contained, and nothing in it can be taken for markup."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
from typer.testing import CliRunner
from typing_extensions import override

from client.settings import read_site
from cloister.audit.statement import write_statement
from cloister.cli import app
from cloister.views.statement_page import page
from privacy.accounting.accounting import Mechanism
from privacy.config import read_toml
from privacy.ledger.ledger import Release
from privacy.run.settings import RunSettings
from simulations.engine.federation import Federation, SiteTerms

RUN = Path(__file__).parents[3] / "simulations" / "tasks" / "diagnosis.toml"


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    """A site and a signed run, in a folder with a hostile name."""
    consortium = Federation.create(tmp_path / "<script>&", ("north",))
    consortium.sign(read_toml(RUN, RunSettings))
    consortium.write_settings(
        "north", "localhost:1", SiteTerms(("simulations.tasks.diagnosis:Diagnosis",), epsilon=10.0)
    )
    return consortium


class _Reader(HTMLParser):
    """Reads a page: its tags, whatever points elsewhere, its text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.links: list[str] = []
        self.text = ""

    @override
    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [name for name, _ in attrs if name in {"src", "href"}]
        if tag != "meta":
            self.open.append(tag)

    @override
    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    @override
    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_escapes_every_field_and_loads_nothing(federation: Federation) -> None:
    place = read_site(federation.paths["north"])
    place.ledger.reserve(Release("f" * 64, 1, 1), Mechanism(2.0, 1.0, 1), place.settings.limit)
    statement, path = write_statement(federation.paths["north"], federation.manifest, None)
    text = path.read_text()
    read = _Reader()
    read.feed(text)

    assert not read.open
    assert not read.links
    assert not read.tags & {"script", "link", "img", "iframe"}
    assert "url(" not in text
    assert "@import" not in text
    assert "<script>&/north/ledger" in read.text
    assert all(sentence in read.text for sentence in statement["not_covered"])
    assert statement["about"]["run"] in read.text
    assert all(ledger["head"] in read.text for ledger in statement["ledgers"].values())
    assert f'<rect width="{100 * statement["spending"][0]["epsilon_spent"]:.0f}"' in text  # of 1000, for ε 10
    assert json.loads(path.with_suffix(".json").read_bytes()) == statement
    assert page(statement) == text


def test_the_command_writes_to_the_given_folder(federation: Federation, tmp_path: Path) -> None:
    arguments = ["audit", "statement", str(federation.paths["north"] / "site.toml"), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert result.stdout.count("ε 0.00 of 10.00 spent at δ 1e-05") == 2
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["statement.html", "statement.json"]


def test_a_budget_is_a_bar_and_an_infinite_budget_is_an_empty_bar(federation: Federation) -> None:
    statement, _ = write_statement(federation.paths["north"], None, None)
    row = statement["spending"][0]

    def bar(spent: float | str, budget: float | str) -> str:
        text = page(statement | {"spending": [row | {"epsilon_spent": spent, "epsilon_budget": budget}]})
        return text.partition('fill="#ddd"></rect><rect width="')[2].partition('"')[0]

    assert [bar(2.5, 10.0), bar(11.0, 10.0), bar("infinite", 10.0)] == ["250", "1000", "1000"]
    assert [bar(2.5, "infinite"), bar("infinite", "infinite")] == ["0", "0"]
