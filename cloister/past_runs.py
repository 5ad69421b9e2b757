"""Read a run that is over, for reports: whoever signed it may have left the roster since."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from privacy.errors import AuthenticityError, RefusedError
from privacy.run.manifest import open_run
from privacy.run.roster import open_roster
from privacy.storage import read_document, read_file
from transport.pki import read_authority_key

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from client.settings import SiteFolder
    from privacy.run.manifest import SignedRun
    from privacy.run.roster import Roster


def read_past_run(place: SiteFolder, path: Path) -> SignedRun:
    """Read a signed run under the site's roster, or under an earlier one that the site keeps.

    Raises:
        CloisterError: if it cannot be read, or nobody whom these rosters allow to sign runs signed it.
    """

    def opened(data: bytes) -> SignedRun:
        try:
            return open_run(data, roster)
        except (AuthenticityError, RefusedError) as error:
            for older in _earlier(place):
                with suppress(AuthenticityError, RefusedError):
                    return open_run(data, older)
            raise error from None

    roster = place.roster()
    return read_document(path, opened, "name the signed run, as `cloister sign` wrote it")


def _earlier(place: SiteFolder) -> Iterator[Roster]:
    """Yield the site's earlier rosters."""
    keys = place.settings.keys
    path, authority = place.path(keys.roster), read_authority_key(place.path(keys.authority))
    for file in sorted(path.parent.glob(f"{path.name}-*"), reverse=True):
        yield open_roster(read_file(file), authority, expired=True)
