"""The search for secrets on the server's disk finds any piece of one, wherever it stands, and nothing else."""

import random
from pathlib import Path

import pytest

from simulations.engine.inspection import find_secrets

DRAWN = random.Random(3)  # noqa: S311 - guards nothing
SECRETS = {name: DRAWN.randbytes(1000) for name in ("key", "pairs", "model")}


@pytest.mark.parametrize("before", range(9))
def test_a_piece_is_found_at_any_place_of_a_file_and_named_with_every_secret_that_has_it(
    tmp_path: Path, before: int
) -> None:
    (tmp_path / "below").mkdir()
    leak = tmp_path / "below" / "leak"
    leak.write_bytes(bytes(before) + SECRETS["pairs"][301:324] + b"after")
    leaks = find_secrets(tmp_path, SECRETS | {"copy": SECRETS["pairs"]})
    assert sorted(leaks) == [f"copy in {leak}", f"pairs in {leak}"]


def test_other_text_is_not_reported_as_a_secret(tmp_path: Path) -> None:
    (tmp_path / "random").write_bytes(DRAWN.randbytes(100_000))
    (tmp_path / "half").write_bytes(SECRETS["key"][80:88] * 2 + SECRETS["key"][96:104])
    (tmp_path / "zeros").write_bytes(bytes(500))
    for size in range(3):
        (tmp_path / str(size)).write_bytes(bytes(size))
    assert find_secrets(tmp_path, SECRETS | {"zeros": bytes(100), "short": b"\1\2"}) == []
    assert find_secrets(tmp_path, {}) == []
