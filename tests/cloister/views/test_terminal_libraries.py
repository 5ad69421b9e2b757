"""Libraries of a task's model do not write over a command's output, unless the user wants it."""

import os

import pytest

from cloister.views.terminal import quieten_libraries


def test_bars_are_off_unless_somebody_asked_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "info")
    quieten_libraries()
    assert (os.environ["TQDM_DISABLE"], os.environ["TRANSFORMERS_VERBOSITY"]) == ("1", "info")
