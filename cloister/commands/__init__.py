"""The command line's groups and larger commands, one per file."""

from __future__ import annotations

from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on the last line.")]
