"""Format a statement as one self-contained HTML page for reading and printing, without scripts."""

from __future__ import annotations

from html import escape
from typing import Any

_TITLES = {
    "about": "Subject",
    "guarantee": "The guarantee",
    "spending": "Spent and remaining budget",
    "accounting": "How ε is computed",
    "mechanism": "The mechanism",
    "run": "This run",
    "observers": "Who sees what, and ε against them",
    "composition": "Composition",
    "public": "Treated as public",
    "randomness": "Randomness and rounding",
    "audit": "Audit",
    "ledgers": "The ledgers",
    "software": "Software",
    "not_covered": "Not covered",
}
_LEADS = {
    "guarantee": "Whatever left this site would be almost as likely without the records of any one person: at most e "
    "to the power of ε times more or less likely. The smaller ε is, the less anyone learns about one person; at 0, "
    "nothing. δ is roughly the probability that this does not hold.",
    "spending": "Every run adds to the spending permanently. A run that would exceed the budget is refused.",
    "accounting": "Independent programs compute the same ε, and must agree.",
    "mechanism": "σ is the standard deviation of the noise divided by the most that a record adds; q is the "
    "probability that a record is in a step.",
    "run": "Every ε here is that of this run alone.",
    "observers": "The ledger is charged for the row marked as charged.",
    "public": "ε does not protect these.",
    "audit": "An attack on made-up records gives a lower bound on ε; a bound above the claimed ε refutes the claim.",
    "ledgers": "A head is the digest of all entries; it changes if any entry changes.",
}
_NAMES = {
    "noise_multiplier": "noise multiplier σ", "sample_rate": "sampling rate q", "clipping_norm": "clipping norm C",
    "epsilon_pld": "ε by PLD", "epsilon_rdp": "ε by RDP (from above)", "epsilon_prv": "ε by PRV",
}  # fmt: skip
_STYLE = """
body { font: 11pt/1.45 Georgia, serif; max-width: 46em; margin: 2em auto; padding: 0 1em; color: #111 }
h1 { font-size: 1.5em } h2 { font-size: 1.1em; margin: 1.6em 0 .3em; border-bottom: 1px solid #bbb }
p { margin: .3em 0 .5em } .lead { color: #444; font-style: italic } .spent { font-size: 1.15em }
table { border-collapse: collapse; width: 100% }
td, th { text-align: left; vertical-align: top; padding: .2em .8em .2em 0 }
th { font-weight: normal; color: #555; width: 30% } thead th { width: auto; border-bottom: 1px solid #ddd }
td { overflow-wrap: anywhere } thead ~ tbody td { overflow-wrap: normal }
ul { margin: 0; padding-left: 1.2em }
svg { display: block; width: 100%; height: 1em; margin: .2em 0 .8em }
@page { margin: 2cm }
@media print { body { margin: 0; max-width: none; font-size: 10pt } h2, .lead { break-after: avoid }
  tr, li, svg { break-inside: avoid } svg { print-color-adjust: exact; -webkit-print-color-adjust: exact } }
"""


def page(statement: dict[str, Any]) -> str:
    """Return a statement as HTML."""
    about, guarantee = statement["about"], statement["guarantee"]
    title = f"Differential privacy at {_text(about['site'])}: {_text(about['people'])}"
    budgets = "".join(_budget(entry) for entry in statement["spending"])
    protected = f"The unit of protection is {_text(guarantee['unit'])}: {_text(guarantee['adjacency'])}."
    body = "".join(f"<h2>{_TITLES[name]}</h2>\n{_lead(name)}{_section(value)}\n" for name, value in statement.items())
    return (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{title}</title>\n<style>{_STYLE}</style>\n'
        f"<h1>{title}</h1>\n{budgets}<p>{protected}</p>\n{body}</html>\n"
    )


def _budget(of: dict[str, Any]) -> str:
    """Return the spent part of a budget as a sentence and a bar."""
    spent, budget = of["epsilon_spent"], of["epsilon_budget"]
    text = (
        f"Records {_text(of['people'])}: ε {_text(spent)} of {_text(budget)} spent, {_text(of['epsilon_left'])} "
        f"left, at δ {_text(of['delta'])} (1 in {1 / of['delta']:,.0f})."
    )
    # An infinite spend fills the bar; an infinite budget leaves it empty.
    fraction = 0.0 if isinstance(budget, str) else 1.0 if isinstance(spent, str) else min(1.0, spent / budget)
    return (
        f'<p class="spent">{text}</p>\n<svg viewBox="0 0 1000 20" preserveAspectRatio="none" role="img" '
        f'aria-label="{text}"><rect width="1000" height="20" fill="#ddd"></rect>'
        f'<rect width="{1000 * fraction:.0f}" height="20" fill="#357"></rect></svg>\n'
    )


def _lead(name: str) -> str:
    return f'<p class="lead">{_LEADS[name]}</p>\n' if name in _LEADS else ""


def _section(value: Any) -> str:  # noqa: ANN401 - whatever JSON has
    """Return a table of names and values, a table with a header, or a list."""
    if isinstance(value, dict):
        rows = "".join(f"<tr><th>{_label(name)}</th><td>{_section(part)}</td></tr>\n" for name, part in value.items())
        return f"<table>\n{rows}</table>"
    if isinstance(value, list) and value and isinstance(value[0], dict):
        head = "".join(f"<th>{_label(name)}</th>" for name in value[0])
        rows = "".join(
            "<tr>" + "".join(f"<td>{_text(row.get(name))}</td>" for name in value[0]) + "</tr>\n" for row in value
        )
        return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>{rows}</tbody></table>"
    if isinstance(value, list):
        return "<ul>" + "".join(f"<li>{_text(item)}</li>\n" for item in value) + "</ul>" if value else "none"
    return _text(value)


def _label(name: str) -> str:
    label = _NAMES.get(name, name.replace("_", " ").replace("epsilon", "ε").replace("delta", "δ"))
    return escape(label.replace("replace one", "if replaced"))


def _text(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return escape(f"{value:.4g}" if isinstance(value, float) else str(value))
