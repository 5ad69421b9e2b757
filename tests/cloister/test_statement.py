"""`cloister audit statement`: every figure from its source, nothing made up, a page that stands by itself."""

from __future__ import annotations

import json
import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner
from typing_extensions import override

from client.settings import read_site
from cloister.audits.page import page
from cloister.audits.statement import AUDIT, write_statement
from cloister.cli import app
from privacy.accounting import Mechanism, epsilon
from privacy.config import read_toml
from privacy.entries import GENESIS
from privacy.errors import AuthenticityError, CloisterError, ConfigError, LedgerError
from privacy.ledger import Ledger, Release
from privacy.manifest import Manifest, RunSettings
from server.settings import read_consortium, read_run
from simulations.federation import Federation, SiteTerms

SITES = ("north", "south", "east")
RUN = Path(__file__).parent.parent.parent / "simulations" / "diagnosis.toml"
OTHER = Mechanism(2.0, 1.0, 1)
AUDITED = {
    "passed": True, "epsilon_claimed": 8.0, "epsilon_lower": 6.5, "epsilon_formal": 3.1, "confidence": 0.95,
    "canaries": 4000, "date": "2026-01-01T00:00:00+00:00", "version": "0.1.0",
    "checks": [{"name": "noise", "held": True}],
}  # fmt: skip


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    """Three sites that share two metrics, and a signed run; the folder's name is hostile."""
    made = Federation.create(tmp_path / "<script>&", SITES)
    made.sign(read_toml(RUN, RunSettings))
    for site in SITES:
        made.write_settings(site, "localhost:0", SiteTerms(("simulations.diagnosis:Diagnosis",), epsilon=10.0))
    return made


def _signed(federation: Federation) -> tuple[Manifest, str]:
    run = read_run(federation.manifest, read_consortium(federation.server).roster())
    return run.manifest, run.digest


def _charge(federation: Federation, *charges: tuple[str, int, Mechanism]) -> Ledger:
    place = read_site(federation.paths["north"])
    lineage = place.settings.data.lineage
    ledger = Ledger(place.folder / "ledger" / lineage, "north", lineage)
    for run, number, mechanism in charges:
        ledger.reserve(Release(run, number, 1), mechanism, place.settings.limit)
    return ledger


def _state(federation: Federation, *, run: bool = False) -> dict[str, Any]:
    return write_statement(federation.paths["north"], federation.manifest if run else None, None)[0]


def test_a_site_that_released_nothing_says_so_and_gets_no_ledger_by_it(federation: Federation) -> None:
    made = _state(federation)
    assert made["guarantee"]["epsilon_spent"] == 0
    assert made["guarantee"]["epsilon_left"] == made["guarantee"]["epsilon_budget"] == 10.0
    assert made["ledger"] | {"file": ""} == {"file": "", "entries": 0, "first": None, "last": None, "head": GENESIS}
    assert made["audit"] == {"result": "not audited; `cloister audit privacy SITE` does it"}
    assert not (federation.paths["north"] / "ledger").exists()


def test_spending_head_and_composition_are_the_ledger_s(federation: Federation) -> None:
    manifest, digest = _signed(federation)
    ledger = _charge(
        federation, (digest, 1, manifest.round_cost), ("f" * 64, 1, OTHER), (digest, 2, manifest.round_cost)
    )
    made = _state(federation, run=True)

    spent = epsilon([manifest.round_cost, OTHER, manifest.round_cost], 1e-5)
    assert made["guarantee"]["epsilon_spent"] == spent
    assert made["guarantee"]["epsilon_left"] == 10.0 - spent
    found = ledger.find(digest, 2)
    assert found
    assert made["ledger"]["head"] == found.head
    assert (made["composition"]["runs"], made["composition"]["releases"]) == (2, 3)
    assert made["mechanism"]["charged"] == [
        {"noise_multiplier": 2.0, "sample_rate": 1.0, "steps": 1},
        {"noise_multiplier": manifest.noise_multiplier, "sample_rate": 0.5, "steps": 8},
    ]
    assert made["mechanism"]["clipping_norm"] == 0.5
    assert (made["run"]["rounds_charged_here"], made["run"]["rounds"]) == (2, 12)
    assert made["run"]["epsilon_charged_here"] == epsilon([manifest.round_cost] * 2, 1e-5)
    assert made["run"]["epsilon_of_the_whole_run"] == epsilon([manifest.run_cost], 1e-5)
    assert digest in made["about"]["run"]
    assert "loss, accuracy" in made["composition"]["metrics"]
    assert any("metrics" in each for each in made["not_covered"])


def test_a_step_without_noise_is_stated_as_infinite_in_plain_json(federation: Federation) -> None:
    terms = SiteTerms(("simulations.diagnosis:Diagnosis",), epsilon=math.inf, maximum_epsilon=math.inf)
    federation.write_settings("north", "localhost:0", terms)
    _charge(federation, ("f" * 64, 1, Mechanism(0.0, 1.0, 1)))
    shown = CliRunner().invoke(app, ["audit", "statement", str(federation.paths["north"]), "--json"])
    assert shown.exit_code == 0, shown.output
    assert "Infinity" not in shown.stdout
    assert "NaN" not in shown.stdout
    assert json.loads(shown.stdout)["guarantee"]["epsilon_spent"] == "infinite"


def test_the_last_audit_stands_in_it_and_a_refuted_one_is_not_called_passed(federation: Federation) -> None:
    path = federation.paths["north"] / AUDIT
    path.write_text(json.dumps(AUDITED))
    audit = _state(federation)["audit"]
    assert (audit["result"], audit["lower_bound_implementation_test"], audit["date"]) == (
        "passed", 6.5, AUDITED["date"],
    )  # fmt: skip
    path.write_text(json.dumps(AUDITED | {"passed": False, "checks": [{"name": "noise", "held": False}]}))
    assert _state(federation)["audit"]["result"] == "REFUTED: noise"
    for text in ("{}", "no JSON"):
        path.write_text(text)
        with pytest.raises(ConfigError, match="run `cloister audit privacy"):
            _state(federation)


def test_an_altered_ledger_or_a_run_that_nobody_signed_gets_no_statement(federation: Federation) -> None:
    ledger = _charge(federation, ("f" * 64, 1, OTHER))
    data = ledger.path.read_bytes()
    ledger.path.write_bytes(data.replace(b'"noise_multiplier": 2.0', b'"noise_multiplier": 9.0'))
    with pytest.raises(LedgerError):
        _state(federation)
    ledger.path.write_bytes(data)
    signed = federation.manifest.read_bytes()
    federation.manifest.write_bytes(signed.replace(b"diagnosis", b"diagnosiz"))
    with pytest.raises(AuthenticityError):
        _state(federation, run=True)
    federation.manifest.unlink()
    with pytest.raises(CloisterError, match="as `cloister sign` wrote it"):
        _state(federation, run=True)


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


def test_the_page_has_every_field_escaped_and_nothing_from_elsewhere(federation: Federation) -> None:
    manifest, digest = _signed(federation)
    _charge(federation, (digest, 1, manifest.round_cost))
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
    assert all(each in read.text for each in statement["not_covered"])
    assert digest in read.text
    assert statement["ledger"]["head"] in read.text
    assert json.loads(path.with_suffix(".json").read_bytes()) == statement
    assert page(statement) == text


def test_the_command_writes_where_it_is_told(federation: Federation, tmp_path: Path) -> None:
    arguments = ["audit", "statement", str(federation.paths["north"] / "site.toml"), "--out", str(tmp_path / "out")]
    shown = CliRunner().invoke(app, arguments)
    assert shown.exit_code == 0, shown.output
    assert "ε 0.00 spent at δ 1e-05" in shown.stdout
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["statement.html", "statement.json"]
