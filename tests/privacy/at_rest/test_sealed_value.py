"""Values that are not files: they open at their own place in their own folder, whole, or not at all."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.at_rest.protection import protect, unprotect
from privacy.at_rest.sealed_value import is_sealed_value, open_value, seal_value
from privacy.at_rest.vault import Secret
from privacy.at_rest.vaults import forget
from privacy.errors import VaultError

SECRET = Secret("key file", bytes(range(64)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("protected")
    protect(place, SECRET, ())
    return place


@given(st.binary(max_size=100))
def test_a_value_opens_as_it_was_and_at_its_own_place_only(folder: Path, value: bytes) -> None:
    sealed = seal_value(folder, "store/events/1", value)
    assert is_sealed_value(sealed)
    assert open_value(folder, "store/events/1", sealed) == value
    with pytest.raises(VaultError, match="events/2: this encrypted value was altered, or belongs at another place"):
        open_value(folder, "store/events/2", sealed)


@settings(max_examples=300)
@given(st.binary(max_size=200), st.integers(0, 200), st.booleans())
def test_bytes_that_were_not_sealed_so_are_refused(folder: Path, value: bytes, place: int, cut: bool) -> None:  # noqa: FBT001 - drawn
    sealed = seal_value(folder, "store/sums", b"a sum")
    changed = sealed[:place] if cut else sealed[:place] + value + sealed[place + len(value) :]
    for data in (value, changed):
        if data != sealed:
            with pytest.raises(VaultError, match=r"store/sums: "):
                open_value(folder, "store/sums", data)


def test_an_encrypted_value_in_a_folder_that_is_not_is_named(tmp_path: Path) -> None:
    protect(tmp_path, SECRET, ())
    sealed = seal_value(tmp_path, "store/sums", b"a sum")
    unprotect(tmp_path)
    assert open_value(tmp_path, "store/sums", seal_value(tmp_path, "store/sums", b"a sum")) == b"a sum"
    with pytest.raises(VaultError, match=r"store/sums: this value is encrypted, but there is no vault\.json"):
        open_value(tmp_path, "store/sums", sealed)
    forget(tmp_path)
