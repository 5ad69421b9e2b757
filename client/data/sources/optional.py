"""Import packages that only some sources need."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING

from privacy.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def needing(package: str, extra: str, logger: str | None = None) -> Iterator[None]:
    """Import a package that belongs to an extra of Cloister's, and silence its log, which may quote a file.

    Raises:
        DataError: if it is not installed; says how to install it.
    """
    try:
        yield
        if logger:
            logging.getLogger(logger).setLevel(logging.CRITICAL + 1)
    except ImportError as error:
        msg = f"this source needs the package {package}; install it with: pip install 'cloister[{extra}]'"
        raise DataError(msg) from error
