"""Format a simulation's result as one page of HTML, with its plot inside; it loads nothing from elsewhere."""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_SMALL = 0.01  # figures below it are written with three digits
_STYLE = """
body { font: 11pt/1.45 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; color: #111 }
h1 { font-size: 1.4em } h2 { font-size: 1.1em; border-bottom: 1px solid #bbb } svg { max-width: 100%; height: auto }
table { border-collapse: collapse } td, th { text-align: right; padding: .15em .9em .15em 0 } th { font-weight: normal;
color: #555 } td { font-variant-numeric: tabular-nums } tr:nth-child(even) td { background: #f6f6f6 }
pre { background: #f6f6f6; padding: .8em; overflow: auto; max-height: 30em }
"""


_HEADS = {"epsilon": "ε", "bytes": "bytes sent", "seconds": "seconds so far"}
_MOST_PROBLEMS = 10


def page(title: str, lead: Sequence[str], picture: str, rows: Sequence[Mapping[str, Any]], settings: str) -> str:
    """Return a page.

    Args:
        title: what was simulated.
        lead: what came out and how it was simulated, in paragraphs.
        picture: an SVG file's text.
        rows: figures of each round.
        settings: the run's, as run.toml.
    """
    names = list(dict.fromkeys(name for row in rows for name in row if name not in {"problems", "released"}))
    head = "".join(f"<th>{escape(_HEADS.get(name, name))}</th>" for name in names)
    body = "".join(f"<tr>{''.join(f'<td>{_cell(row.get(name))}</td>' for name in names)}</tr>\n" for row in rows)
    svg = picture[picture.index("<svg") :]
    problems = [f"<li>round {row['round']}: {escape(row['problems'])}</li>" for row in rows if row.get("problems")]
    if len(problems) > _MOST_PROBLEMS:
        problems[_MOST_PROBLEMS:] = [f"<li>and in {len(problems) - _MOST_PROBLEMS} rounds more</li>"]
    listed = f"<h2>Problems</h2>\n<ul>{''.join(problems)}</ul>\n" if problems else ""
    return (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        f"<style>{_STYLE}</style>\n<h1>{escape(title)}</h1>\n"
        f"{''.join(f'<p>{escape(text)}</p>' for text in lead)}\n{svg}\n{listed}<h2>Rounds</h2>\n"
        f"<table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>\n"
        f'<h2>The run</h2>\n<p>To sign it, save it as run.toml, or call result.to_run("run.toml").</p>\n'
        f"<pre>{escape(settings)}</pre>\n</html>\n"
    )


def _cell(value: Any) -> str:  # noqa: ANN401 - a figure of any kind
    if isinstance(value, float):
        return "∞" if math.isinf(value) else f"{value:.3g}" if 0 < abs(value) < _SMALL else f"{value:.3f}"
    return "" if value is None else escape(f"{value:,}" if isinstance(value, int) else str(value))
