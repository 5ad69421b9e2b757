"""`cloister bench encryption`: one round of encrypted sums, in bytes, CPU and error, compared with NVFlare's CKKS.

All pipelines take the same updates through the same steps in the same run: every site encrypts its update, the server
adds them and closes the sum, a site decrypts it. CPU time is measured, not wall-clock time. Other load on the machine
only ever adds to it, so the pipelines take turns, and the minimum over several rounds counts.

- `compact`, `precise` and `dense` are the production code: pack, tag, encrypt and digest at a site; length, digest and
  range checks at the server before it adds. The signed header, about a kilobyte for any model, is left out.
- `ckks-nvflare` is CKKS through TenSEAL with NVFlare 2's parameters (ring degree 8192, moduli of 60, 40 and 40 bits,
  scale 2^40) under a public key, and the calls of its `HEModelEncryptor`, its in-time aggregator and its
  `HEModelDecryptor`, which make one vector of every tensor. By default the model has as few tensors as possible, so
  that its ciphertexts are full. (Tensors of 4,096 values each would take an eighth less CPU.)
- `ckks-symmetric` is the same with the symmetric encryption that NVFlare's own `HEBuilder` chooses: cheaper for a site.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import tenseal as ts
from rich.console import Console
from rich.progress import Progress

from cloister.benchmarks.comparison import NVFLARE, STEPS, Row, best, table
from cloister.benchmarks.pipelines import UPDATE_BOUND, Cloister, Pipeline, charge_for_nobody

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

__all__ = ["measure", "table"]

_SPREAD = 0.2  # standard deviation of the synthetic updates
_LEAST_WEIGHT = 0.5  # the sites' weights range from 1 down to this
_MILLION = 1_000_000
_LARGE_TENSOR = 1 << 20  # values
_LEAST_ROUNDS, _MOST_ROUNDS = 3, 15


class Nvflare(Pipeline):
    """NVFlare's pipeline: CKKS through TenSEAL's vectors. Sites apply the weights, the server divides by their sum."""

    def __init__(self, name: str, weights: Sequence[float], encryption: ts.ENCRYPTION_TYPE, tensor: int) -> None:
        self.name, self._tensor = name, tensor  # values per tensor
        self._scale, self._total = 1.0 / sum(weights), list[Any]()
        context = ts.context(
            ts.SCHEME_TYPE.CKKS,
            poly_modulus_degree=8192,
            coeff_mod_bit_sizes=[60, 40, 40],
            encryption_type=encryption,
        )
        context.generate_relin_keys()
        context.global_scale = 2**40
        self._site, self._server = (
            ts.context_from(
                context.serialize(
                    save_public_key=keys, save_secret_key=keys, save_galois_keys=False, save_relin_keys=True
                )
            )
            for keys in (True, False)
        )

    def encrypt(self, update: NDArray[np.float32], weight: float) -> list[bytes]:
        """Weight, encrypt and serialise."""
        weighted = update * np.float64(weight)
        tensors = (weighted[start : start + self._tensor] for start in range(0, weighted.size, self._tensor))
        return [ts.ckks_vector(self._site, tensor).serialize() for tensor in tensors]

    def tag(self) -> None:
        """Do nothing: this pipeline does not protect the sum from the server."""

    def add(self, upload: list[bytes]) -> None:
        """Parse and add."""
        for index, data in enumerate(upload):
            vector = ts.ckks_vector_from(self._server, data)
            if index == len(self._total):
                self._total.append(vector)
            else:
                self._total[index] = self._total[index] + vector

    def close(self) -> list[bytes]:
        """Divide by the sum of the weights, which drops a modulus, and serialise."""
        download = [(vector * self._scale).serialize() for vector in self._total]
        self._total = []
        return download

    def decrypt(self, download: list[bytes]) -> NDArray[Any]:
        """Parse and decrypt."""
        return np.concatenate([ts.ckks_vector_from(self._site, data).decrypt() for data in download])


def measure(parameters: int, sites: int, tensors: int | None = None) -> dict[str, Any]:
    """Measure rounds in every pipeline; show progress on standard error.

    Raises:
        ConfigError: if `compact` has no room for this many sites.
    """
    weights = np.linspace(1.0, _LEAST_WEIGHT, sites).tolist()
    rounds = min(_MOST_ROUNDS, max(_LEAST_ROUNDS, 7 * _MILLION // parameters))
    pipelines = _pipelines(parameters, weights, -(-parameters // tensors) if tensors else _LARGE_TENSOR)
    expected = np.zeros(parameters)
    for site, weight in enumerate(weights):
        expected += weight / sum(weights) * _update(site, parameters).astype(np.float64)
    results: dict[str, list[Row]] = {pipeline.name: [] for pipeline in pipelines}
    console = Console(stderr=True, highlight=False)
    console.print(f"{len(pipelines)} pipelines, {rounds} rounds of each: {parameters:,} parameters, {sites} sites")
    # Drawing the bar takes CPU time, so it moves only between measurements.
    bar = Progress(console=console, transient=True, auto_refresh=False, disable=not console.is_terminal)
    with bar, _tenseal_silent():
        task = bar.add_task("measuring", total=rounds * len(pipelines) * sites)
        advance = partial(bar.update, task, advance=1, refresh=True)
        for _ in range(rounds):
            for pipeline in pipelines:
                results[pipeline.name].append(_run(pipeline, expected, weights, advance))
    return {"rows": [asdict(best(rows)) for rows in results.values()], "repetitions": rounds}


def _pipelines(parameters: int, weights: Sequence[float], tensor: int) -> list[Pipeline]:
    charge = charge_for_nobody()
    return [
        Cloister("compact", parameters, weights, charge),
        Cloister("precise", parameters, weights, charge),
        Cloister("dense", parameters, weights, charge),
        Nvflare(NVFLARE, weights, ts.ENCRYPTION_TYPE.ASYMMETRIC, tensor),
        Nvflare("ckks-symmetric", weights, ts.ENCRYPTION_TYPE.SYMMETRIC, tensor),
    ]


def _update(site: int, parameters: int) -> NDArray[np.float32]:
    """Return a site's synthetic update `(n,)`, the same every time."""
    drawn = np.random.default_rng(site).standard_normal(parameters, dtype=np.float32) * np.float32(_SPREAD)
    update: NDArray[np.float32] = np.clip(drawn, -UPDATE_BOUND, UPDATE_BOUND)
    return update


def _run(
    pipeline: Pipeline, expected: NDArray[np.float64], weights: Sequence[float], advance: Callable[[], None]
) -> Row:
    """Take all sites' updates through a pipeline once."""
    parameters, sites, bytes_up = expected.size, len(weights), 0
    spent: dict[str, float] = dict.fromkeys(STEPS, 0.0)

    @contextmanager
    def timed(step: str) -> Iterator[None]:
        start = time.process_time()
        yield
        spent[step] += time.process_time() - start

    for site, weight in enumerate(weights):
        update = _update(site, parameters)
        with timed("client_cpu"):
            upload = pipeline.encrypt(update, weight)
        with timed("tag_cpu"):
            pipeline.tag()
        with timed("server_cpu"):
            pipeline.add(upload)
        bytes_up = sum(map(len, upload))
        del upload  # free it before the next one is made
        advance()
    with timed("server_cpu"):
        download = pipeline.close()
    with timed("decrypt_cpu"):
        mean = pipeline.decrypt(download)
    return Row(
        pipeline=pipeline.name,
        parameters=parameters,
        sites=sites,
        bytes_up=bytes_up / parameters,
        bytes_down=sum(map(len, download)) / parameters,
        tag_cpu=spent["tag_cpu"] / sites / parameters * _MILLION,
        client_cpu=spent["client_cpu"] / sites / parameters * _MILLION,
        server_cpu=spent["server_cpu"] / sites / parameters * _MILLION,
        decrypt_cpu=spent["decrypt_cpu"] / parameters * _MILLION,
        max_error=float(np.abs(mean - expected).max()),
    )


@contextmanager
def _tenseal_silent() -> Iterator[None]:
    """Silence standard output: TenSEAL warns there, from C++, about every vector that takes several ciphertexts."""
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        ctypes.CDLL(None).fflush(None)  # flush what C has buffered
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)
