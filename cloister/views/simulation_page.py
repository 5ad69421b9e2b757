"""Format a simulation's result as one page of HTML, with its plot inside; it loads nothing from elsewhere."""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_STYLE = """
body { font: 11pt/1.45 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; color: #111 }
h1 { font-size: 1.4em } h2 { font-size: 1.1em; border-bottom: 1px solid #bbb } svg { max-width: 100%; height: auto }
table { border-collapse: collapse } td, th { text-align: right; padding: .15em .9em .15em 0 } th { font-weight: normal;
color: #555 } pre { background: #f6f6f6; padding: .8em; overflow-x: auto }
"""


def page(title: str, lead: str, picture: str, rows: Sequence[Mapping[str, Any]], settings: str) -> str:
    """Return a page.

    Args:
        title: what was simulated, and what came out.
        lead: how it was simulated.
        picture: an SVG file's text.
        rows: figures of each round.
        settings: the run's, as run.toml.
    """
    names = list(dict.fromkeys(name for row in rows for name in row if name not in {"problems", "released"}))
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    body = "".join(f"<tr>{''.join(f'<td>{_cell(row.get(name))}</td>' for name in names)}</tr>\n" for row in rows)
    svg = picture[picture.index("<svg") :]
    return (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        f"<style>{_STYLE}</style>\n<h1>{escape(title)}</h1>\n<p>{escape(lead)}</p>\n{svg}\n<h2>Rounds</h2>\n"
        f"<table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>\n"
        f"<h2>The run</h2>\n<pre>{escape(settings)}</pre>\n</html>\n"
    )


def _cell(value: Any) -> str:  # noqa: ANN401 - a figure of any kind
    if isinstance(value, float):
        return "∞" if math.isinf(value) else f"{value:.4g}"
    return "" if value is None else escape(f"{value:,}" if isinstance(value, int) else str(value))
