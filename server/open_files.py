"""How many files the server's process may open: each connection takes one, also of whoever only connects."""

from __future__ import annotations

import logging
import resource

log = logging.getLogger("cloister.server")

WANTED = 16_384
"""More than all ports take together, at their limits; a shell often allows 1,024."""


def allow_many_files() -> None:
    """Let this process open more files, as far as the system lets it without being asked."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED if hard == resource.RLIM_INFINITY else min(WANTED, hard)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError) as error:
        log.warning("this process may open only %d files (%s); allow more, as with LimitNOFILE", soft, error)
