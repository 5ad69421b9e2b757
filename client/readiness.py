"""What a site can know before a round is charged, it finds out before: as it says that it is ready, and at each plan.

    dates    its roster and its certificate outlast the round
    disk     there is room for all that the round writes, and the ledger can be written
    records  there are some, and the task can use every one of them: `Work.check_records`
    memory   a step on made-up records fits, as many as are computed at a time: `Work.check_memory`

Records and memory are looked at once a process. Nothing of that leaves the site, but that it takes part or not.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from client.space import needs, space_for
from privacy.errors import RefusedError
from transport.pki import read_certificate

if TYPE_CHECKING:
    from collections.abc import Iterator

    from client.site import Site
    from privacy.manifest import Manifest
    from privacy.update import Layout


@contextmanager
def ready_to_be_charged(site: Site, manifest: Manifest, layout: Layout) -> Iterator[None]:
    """Check all of it but memory, and keep the room on the disk for as long as the context lasts.

    Raises:
        CloisterError: saying what stands in the way; nothing is charged then.
    """
    check_dates(site, manifest.settings.cohort.round_deadline_seconds)
    site.work(manifest.settings).check_records(manifest.settings)
    ledger, _ = site.account(manifest.settings.kind)
    ledger.check_writable()
    with space_for(needs(site, ledger.path.parent, manifest, layout)):
        yield


def check_dates(site: Site, seconds: float) -> None:
    """Check that what a site is known by outlasts a round.

    Raises:
        RefusedError: if it does not.
    """
    ends = {"roster": site.roster.expires}
    certificate = site.place.tls.certificate
    if certificate.exists():  # under Flower's own engines, connections are Flower's
        ends["TLS certificate"] = read_certificate(certificate).not_valid_after_utc.timestamp()
    for what, end in ends.items():
        if end < time.time() + seconds:
            date = datetime.fromtimestamp(end, UTC).strftime("%Y-%m-%d %H:%M UTC")
            msg = f"{site.name}'s {what} ends on {date}, before a round would; it needs a new one from the coordinator"
            raise RefusedError(msg)
