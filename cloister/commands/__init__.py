"""The command line's groups and larger commands, one per file."""

from __future__ import annotations

from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="One JSON object, alone on the last line.")]
