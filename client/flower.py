"""The agent's app for Flower's own engines, which load `client.flower:app` in every node's process.

The node's configuration names the site (`site`, a path). In Flower's simulation, the partition's number picks it among
the folders under `sites` in the run's configuration. The agent and the `inline` engine open their sites themselves.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from client.app import make_app
from client.settings import read_site
from client.site import Site
from privacy.errors import ConfigError

if TYPE_CHECKING:
    from flwr.app import Context


@cache
def open_site(path: Path) -> Site:
    """Open a site, once per process: keys, records and device of all its sites stay loaded between rounds."""
    return Site(read_site(path))


def _site_of(context: Context) -> Site:
    if named := context.node_config.get("site"):
        return open_site(Path(str(named)))
    partition = context.node_config.get("partition-id")
    folders = folders_in(Path(str(context.run_config.get("sites", ""))))
    if not isinstance(partition, int) or partition >= len(folders):
        msg = "this node does not know its site; set `site` in its configuration, or `sites` in that of the run"
        raise ConfigError(msg)
    return open_site(folders[partition])


@cache
def folders_in(sites: Path) -> list[Path]:
    """Return the folders of the sites in a folder, in order of their names: a simulation's node i has the i-th."""
    return sorted(path.parent for path in sites.glob("*/site.toml"))


app = make_app(_site_of)
