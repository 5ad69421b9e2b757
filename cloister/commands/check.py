"""`cloister check`: what stands in the way of a site or a server, before it costs a round."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path  # noqa: TC003 - typer reads it
from typing import TYPE_CHECKING, Annotated

import typer

from cloister.commands import Json
from cloister.views.patience import patience
from privacy.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transport.diagnosis import Finding

_MARKS = {"ok": "✓", "warning": "!", "failed": "✗"}


def check(
    site: Annotated[Path | None, typer.Argument(help="site.toml, or its folder.")] = None,
    server: Annotated[Path | None, typer.Option(help="Check a server instead: consortium.toml, or its folder.")] = None,
    as_json: Json = False,
) -> None:
    """Check keys, certificates, the way to the server, clock, disk, budget, tasks, records and memory.

    If something is wrong, it exits with 1. A site sends a TLS handshake, and random bytes that measure its line.
    """
    if (site is None) == (server is None):
        msg = "name a site, or a server with --server"
        raise ConfigError(msg)
    findings = []
    with patience("trying the tasks on the records") if site else patience("checking"):
        for finding in _findings(site, server):
            findings.append(finding)
            if not as_json:
                typer.echo(f"{_MARKS[finding.state]} {finding.check:<9} {finding.text}")
    good = all(finding.state != "failed" for finding in findings)
    if as_json:
        typer.echo(json.dumps({"ok": good, "checks": [asdict(finding) for finding in findings]}))
    if not good:
        raise typer.Exit(1)


def _findings(site: Path | None, server: Path | None) -> Iterator[Finding]:
    if site is not None:
        from client.checks import check_site  # noqa: PLC0415

        yield from check_site(site)
    elif server is not None:
        from server.checks import check_server  # noqa: PLC0415

        yield from check_server(server)
