"""People of a federation: they join with the functions of the commands, and sign runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from client.flower import open_site
from client.joining import finish, prepare, take_roster
from client.person import PersonFolder, read_person
from client.settings import read_site
from privacy.run.new_manifest import sign_manifest
from server.coordinator import Coordinator
from strategies.registry import completed

if TYPE_CHECKING:
    from privacy.run.people import Role
    from privacy.run.settings import RunSettings
    from simulations.engine.federation import Federation


def enter(federation: Federation, name: str, role: Role) -> PersonFolder:
    """Enter a person into the roster, and have all sites take it."""
    coordinator, folder = coordinator_of(federation), federation.folder / name
    (approval,) = coordinator.approve([prepare(folder, coordinator.invite(name, role=role))])[1]
    finish(folder, approval.welcome)
    spread(federation)
    return read_person(folder)


def leave(federation: Federation, name: str) -> None:
    """Remove a person from the roster, and have all sites take it."""
    coordinator_of(federation).remove(name)
    spread(federation)


def spread(federation: Federation) -> None:
    """Have all sites take the latest roster, as their agents do while they run."""
    data = (federation.server / "roster").read_bytes()
    for site, path in federation.paths.items():
        place = read_site(path)
        open_site(path).use_roster(take_roster(place.folder, place.settings.keys, site, data))


def sign_as(federation: Federation, who: PersonFolder, settings: RunSettings) -> None:
    """Sign the federation's run as a person."""
    document = sign_manifest(completed(settings), who.signing_key(), roster_version=1)
    federation.manifest.write_bytes(document.to_bytes())


def coordinator_of(federation: Federation) -> Coordinator:
    return Coordinator(federation.folder / "coordinator")
