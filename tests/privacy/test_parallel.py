"""A long stream is worked on by several processes, which change nothing, hold little, and outlive nobody."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import count
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

import numpy as np
import pytest

from privacy import parallel
from privacy.codec.packing import BLOCK, RING_DEGREE
from privacy.errors import EncryptionError, MalformedError
from privacy.parallel import in_processes
from tests.privacy.consortium import decryption_key, joined, tagged, uncoded
from tests.privacy.work import end, refuse, squared

if TYPE_CHECKING:
    from collections.abc import Iterator

LONG = 30.0  # seconds


def alive(pid: int) -> bool:
    """Whether a process still runs; one that only waits for its exit code to be fetched does not."""
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def await_end(pids: set[int]) -> None:
    deadline = time.monotonic() + LONG
    while any(map(alive, pids)):
        assert time.monotonic() < deadline, [pid for pid in pids if alive(pid)]
        Event().wait(0.02)


@pytest.mark.parametrize("length", [0, 1, parallel._FEW, parallel._FEW + 1, 100])
def test_results_are_those_of_map_in_their_order(length: int) -> None:
    results = list(in_processes(2)(squared, range(length)))
    assert [square for square, _ in results] == [number * number for number in range(length)]
    pids = [pid for _, pid in results]
    assert set(pids[: parallel._FEW]) <= {os.getpid()}  # a short stream starts no process
    assert os.getpid() not in pids[parallel._FEW :]


def test_one_process_means_the_calling_process() -> None:
    assert {pid for _, pid in in_processes(1)(squared, range(100))} == {os.getpid()}


def test_work_is_lazy_and_a_long_stream_never_holds_more_than_a_few_items() -> None:
    pulled, most = 0, 2 * parallel._AHEAD

    def items() -> Iterator[int]:
        nonlocal pulled
        for number in count():
            pulled += 1
            yield number

    results = in_processes(2)(squared, items())
    assert pulled == 0
    for done in range(1, parallel._FEW + 60):
        next(results)
        assert pulled - done <= most
    results.close()  # type: ignore[attr-defined]  # typed as an iterator, it is a generator


def test_processes_end_when_the_stream_does_or_is_left() -> None:
    whole = {pid for _, pid in in_processes(2)(squared, range(80))} - {os.getpid()}
    results = in_processes(2)(squared, count())
    left = {next(results)[1] for _ in range(80)} - {os.getpid()}
    assert any(map(alive, left))
    results.close()  # type: ignore[attr-defined]  # typed as an iterator, it is a generator
    await_end(whole | left)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_process_that_is_ended_from_outside_is_an_error_of_ours() -> None:
    with pytest.raises(
        EncryptionError, match="killed from outside; check that this machine has memory for the encryption_processes"
    ):
        list(in_processes(2)(end, range(80)))


def test_an_error_of_the_work_comes_out_in_its_place() -> None:
    results = in_processes(2)(refuse, count())
    assert [next(results) for _ in range(parallel._FEW + 2)] == list(range(parallel._FEW + 2))
    with pytest.raises(MalformedError, match=f"item {parallel._FEW + 2} is malformed"):
        next(results)


PARENT = """
import sys
from privacy import parallel
from tests.privacy.work import wait

def items():
    while True:
        yield seconds

parallel._FEW, seconds, pids = 0, 0.1, set()
results = parallel.in_processes(2)(wait, items())
while len(pids) < 2:
    pids.add(next(results))
print(*pids, flush=True)
if seconds := float(sys.argv[1]):
    for _ in results:
        pass
sys.stdin.read()
"""


@pytest.mark.parametrize(
    "busy", [pytest.param(0.0, id="idle", marks=pytest.mark.soak), pytest.param(600.0, id="at work")]
)
def test_processes_end_when_their_parent_is_killed(busy: float) -> None:
    command = [sys.executable, "-c", PARENT, str(busy)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        try:
            assert parent.stdout is not None
            pids = {int(pid) for pid in parent.stdout.readline().split()}
            assert len(pids) == 2
            assert all(map(alive, pids))
        finally:
            parent.send_signal(signal.SIGKILL)
        await_end(pids)


# --- Encryption ----------------------------------------------------------------------------------------------------


def test_several_processes_encrypt_and_decrypt_as_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "_FEW", 1)
    apply, key, rows = in_processes(2), decryption_key(), 3 * BLOCK + 1
    coefficients = np.random.default_rng(1).integers(0, 1 << 47, (rows, RING_DEGREE), np.uint64)
    encrypted = uncoded(key.encrypt(tagged(coefficients), apply))
    seeds = encrypted.seeds
    assert encrypted.count == rows
    assert len({seeds[start : start + 64] for start in range(0, len(seeds), 64)}) == rows
    for how in (map, apply):
        np.testing.assert_array_equal(joined(key.decrypt(encrypted.alone.chunks(), how)), coefficients)


def test_a_bad_chunk_is_refused_by_whichever_process_gets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "_FEW", 1)
    encrypted = uncoded(decryption_key().encrypt(tagged(np.zeros((2 * BLOCK, RING_DEGREE), np.uint64)))).alone
    bad = replace(encrypted, c0=(encrypted.c0[0], b"\xff" * len(encrypted.c0[1])))
    with pytest.raises(MalformedError, match="not below the modulus q"):
        joined(decryption_key().decrypt(bad.chunks(), in_processes(2)))
