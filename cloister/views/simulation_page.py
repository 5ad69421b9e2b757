"""Format a simulation's result as one page of HTML, with its plot inside; it loads nothing from elsewhere."""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_SMALL = 0.01  # figures below it are written with three digits
_STYLE = """
body { font: 11pt/1.45 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; color: #111 }
h1 { font-size: 1.4em } h2 { font-size: 1.1em; border-bottom: 1px solid #bbb } svg { max-width: 100%; height: auto }
table { border-collapse: collapse } td, th { text-align: right; padding: .15em .9em .15em 0 } th { font-weight: normal;
color: #555 } td { font-variant-numeric: tabular-nums } tr:nth-child(even) td { background: #f6f6f6 }
pre { background: #f6f6f6; padding: .8em; overflow: auto; max-height: 30em }
"""


_HEADS = {"epsilon": "ε", "bytes": "bytes sent", "seconds": "seconds so far"}
_MOST_PROBLEMS, _MOST_SITES = 10, 200


def page(
    title: str, lead: Sequence[str], picture: str, rows: Sequence[Mapping[str, Any]],
    personal: Mapping[str, Mapping[str, Any]], settings: str,
) -> str:  # fmt: skip
    """Return a page.

    Args:
        title: what was simulated.
        lead: what came out and how it was simulated, in paragraphs.
        picture: an SVG file's text.
        rows: figures of each round.
        personal: what each site's own model is worth there, as `Result.personal` has it; empty if sites have none.
        settings: the run's, as run.toml.
    """
    names = list(dict.fromkeys(name for row in rows for name in row if name not in {"problems", "released"}))
    rounds = _table([_HEADS.get(name, name) for name in names], ([row.get(name) for name in names] for row in rows))
    svg = picture[picture.index("<svg") :]
    problems = [f"<li>round {row['round']}: {escape(row['problems'])}</li>" for row in rows if row.get("problems")]
    if len(problems) > _MOST_PROBLEMS:
        problems[_MOST_PROBLEMS:] = [f"<li>and in {len(problems) - _MOST_PROBLEMS} rounds more</li>"]
    listed = f"<h2>Problems</h2>\n<ul>{''.join(problems)}</ul>\n" if problems else ""
    return (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        f"<style>{_STYLE}</style>\n<h1>{escape(title)}</h1>\n"
        f"{''.join(f'<p>{escape(text)}</p>' for text in lead)}\n{svg}\n{listed}{_own_models(personal)}<h2>Rounds</h2>\n"
        f"{rounds}"
        f'<h2>The run</h2>\n<p>To sign it, save it as run.toml, or call result.to_run("run.toml").</p>\n'
        f"<pre>{escape(settings)}</pre>\n</html>\n"
    )


def _own_models(personal: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a table of the sites' own models beside the shared one; empty if there are none."""
    if not personal:
        return ""
    figures = list(dict.fromkeys(name for worth in personal.values() for name in worth["shared"]))
    heads = [f"{name}, {kind}" for name in figures for kind in ("shared", "own")]
    rows = [
        [site, worth["records"], *(worth[kind].get(name) for name in figures for kind in ("shared", "personal"))]
        for site, worth in personal.items()
    ]
    more = f"<p>{len(rows) - _MOST_SITES:,} more are in result.json.</p>\n" if len(rows) > _MOST_SITES else ""
    return f"<h2>Own models</h2>\n{_table(['site', 'test records', *heads], rows[:_MOST_SITES])}{more}"


def _table(heads: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    body = "".join(f"<tr>{''.join(f'<td>{_cell(value)}</td>' for value in row)}</tr>\n" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>\n"


def _cell(value: Any) -> str:  # noqa: ANN401 - a figure of any kind
    if isinstance(value, float):
        return "∞" if math.isinf(value) else f"{value:.3g}" if 0 < abs(value) < _SMALL else f"{value:.3f}"
    return "" if value is None else escape(f"{value:,}" if isinstance(value, int) else str(value))
