"""A statement as one page of HTML: no scripts, nothing from elsewhere, made to be read and printed."""

from __future__ import annotations

from html import escape
from typing import Any

_TITLES = {
    "about": "What this is about",
    "guarantee": "The guarantee",
    "accounting": "How ε is computed",
    "mechanism": "The mechanism",
    "run": "This run",
    "observers": "Who sees what, and ε against them",
    "composition": "What it composes over",
    "public": "Treated as public",
    "randomness": "Source of randomness",
    "audit": "Tested from outside",
    "ledger": "The ledger",
    "software": "Software",
    "not_covered": "What it does not cover",
}
_STYLE = """
body { font: 11pt/1.45 Georgia, serif; max-width: 46em; margin: 2em auto; padding: 0 1em; color: #111 }
h1 { font-size: 1.5em } h2 { font-size: 1.1em; margin: 1.6em 0 .3em; border-bottom: 1px solid #bbb }
table { border-collapse: collapse; width: 100% }
td, th { text-align: left; vertical-align: top; padding: .2em .8em .2em 0 }
th { font-weight: normal; color: #555; width: 30% } thead th { width: auto } td { overflow-wrap: anywhere }
.spent { font-size: 1.3em } ul { padding-left: 1.2em }
@media print { body { margin: 0; max-width: none } h2 { break-after: avoid } tr, li { break-inside: avoid } }
"""


def page(statement: dict[str, Any]) -> str:
    """Write a statement as HTML."""
    guarantee, about = statement["guarantee"], statement["about"]
    summary = (
        f"ε {_text(guarantee['epsilon_spent'])} spent, of {_text(guarantee['epsilon_budget'])}, "
        f"at δ {_text(guarantee['delta'])}. Protected: {_text(guarantee['unit'])} ({_text(guarantee['adjacency'])})"
    )
    title = f"Differential privacy at {_text(about['site'])}: {_text(about['people'])}"
    body = "".join(f"<h2>{_TITLES[name]}</h2>\n{_section(value)}\n" for name, value in statement.items())
    return (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{title}</title>\n<style>{_STYLE}</style>\n'
        f'<h1>{title}</h1>\n<p class="spent">{summary}</p>\n{body}</html>\n'
    )


def _section(value: Any) -> str:  # noqa: ANN401 - whatever JSON has
    """Write a table of names and values, a table with a head, or a list."""
    if isinstance(value, dict):
        rows = "".join(f"<tr><th>{_label(name)}</th><td>{_section(each)}</td></tr>\n" for name, each in value.items())
        return f"<table>\n{rows}</table>"
    if isinstance(value, list) and value and isinstance(value[0], dict):
        head = "".join(f"<th>{_label(name)}</th>" for name in value[0])
        rows = "".join(
            "<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row.values()) + "</tr>\n" for row in value
        )
        return f"<table>\n<thead><tr>{head}</tr></thead>\n{rows}</table>"
    if isinstance(value, list):
        return "<ul>" + "".join(f"<li>{_text(each)}</li>\n" for each in value) + "</ul>" if value else "none"
    return _text(value)


def _label(name: str) -> str:
    return escape(name.replace("_", " ").replace("epsilon", "ε").replace("delta", "δ"))


def _text(value: object) -> str:
    if value is None:
        return "none"
    return escape(f"{value:.6g}" if isinstance(value, float) else str(value))
