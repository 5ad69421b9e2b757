"""A server may open more files than a shell allows by default, as every connection takes one."""

import resource
from collections.abc import Iterator

import pytest

from server.open_files import WANTED, allow_many_files


@pytest.fixture
def hard() -> Iterator[int]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_it_raises_a_low_limit_and_leaves_a_high_one(hard: int) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
    allow_many_files()
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert allowed == (WANTED if hard == resource.RLIM_INFINITY else min(WANTED, hard), hard)
    allow_many_files()
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == allowed
