"""`cloister person`: people in the roster, who sign runs, administer, operate and audit."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - read by typer
from typing import Annotated

import typer

from cloister.commands import Json
from cloister.commands.joining import (
    Authentication,
    CaBundle,
    Document,
    Files,
    KeyFile,
    Protect,
    Proxy,
    Server,
    Wait,
    enter,
    way_to,
)

person = typer.Typer(help="Take a role in a consortium.", no_args_is_help=True)


@person.callback()
def about() -> None:
    """Take a role in a consortium."""


@person.command("join", epilog="Example:  cloister person join ana.invitation    (or: cloister person join - < FILE)")
def join(
    document: Document,
    folder: Annotated[Path | None, typer.Option(help="Your own folder; by default, one of your name.")] = None,
    files: Files = False,
    wait: Wait = 0.0,
    proxy: Proxy = None,
    authentication: Authentication = "tls",
    server: Server = None,
    ca_bundle: CaBundle = None,
    protect: Protect = False,
    key_file: KeyFile = None,
    as_json: Json = False,
) -> None:
    """Get into a consortium's roster: make your key here, ask for your entry, and take in the answer.

    The key never leaves this folder. Interrupted or not approved yet: run the same command again.
    """
    way = way_to(proxy, authentication, ca_bundle)
    enter(document, folder, way, server, (protect, key_file), minutes=wait, files=files, as_json=as_json,
          person=True)  # fmt: skip
