"""A run that is stopped in the moment in which it ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from privacy.errors import RunError
from server.service.service import Service
from server.store.store import Store
from tests.server.store.stores import place_in, run_named

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("ended", ["finished", "failed"])
def test_a_run_that_ends_as_it_is_stopped_has_not_been_stopped(
    ended: Any,  # noqa: ANN401 - a status
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = place_in(tmp_path)
    with Store.open(place) as store, store.lead() as leadership:
        service = Service(place, store, None, None, leadership)  # type: ignore[arg-type]  # it serves no run
        run, mark = store.submit(run_named()), store.mark
        mark(run.digest, "running")

        def overtaken(digest: str, status: Any, reason: str = "") -> None:  # noqa: ANN401
            mark(digest, ended, "by itself")  # as the run's own thread may, at any time
            mark(digest, status, reason)

        monkeypatch.setattr(store, "mark", overtaken)
        with pytest.raises(RunError, match=f"has already {ended}, so it cannot be stopped"):
            service.stop(run.digest, "ana")
        now = store.run(run.digest)
        assert (now.status, now.reason) == (ended, "by itself")
        assert store.events(run.digest) == []
