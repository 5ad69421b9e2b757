"""Updates are found again as they came, from memory or from disk, and leave nothing behind."""

from pathlib import Path

import pytest

from privacy.codec.envelope import SignedUpdate
from strategies import bodies
from strategies.bodies import Bodies


@pytest.mark.parametrize("most", [1 << 20, 10], ids=["in memory", "on disk"])
def test_updates_are_read_back_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    monkeypatch.setattr(bodies, "_IN_MEMORY", most)
    updates = {
        site: SignedUpdate(b"header of " + site.encode(), bytes(64), (site.encode() * 9, b"", b"rest"), b"masks")
        for site in ("north", "south", "west")
    }
    kept = Bodies(tmp_path)
    for site, update in updates.items():
        kept.keep(site, update)
    assert {site: kept.find(site) for site in ("west", "north", "south")} == updates
    assert list(tmp_path.iterdir()) == []  # it has no name
    kept.clear()
    with pytest.raises(KeyError):
        kept.find("north")
    kept.keep("north", updates["south"])
    assert kept.find("north") == updates["south"]
    kept.clear()
