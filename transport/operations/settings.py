"""Read `[operations]`, of a server's or a site's settings."""

from __future__ import annotations

from pydantic.dataclasses import dataclass

from privacy.config import STRICT
from transport.address import ListenedOn


@dataclass(frozen=True, config=STRICT)
class Operations:
    """`[operations]`: where `/livez`, `/readyz` and `/metrics` are, without TLS and for anybody who reaches it."""

    listen: ListenedOn
