"""Search everything that a party wrote to disk for secrets and plaintext weights that must not be there."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
from safetensors.numpy import load

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from simulations.engine.federation import Federation

_PEM_PREFIX = 48  # characters at the start of a PEM key that only encode its kind
_WINDOW = 16  # bytes: long enough never to occur by chance, short enough to find a piece
_WORD = _WINDOW // 2


def site_secrets(federation: Federation) -> dict[str, bytes]:
    """Return what only sites may have: private keys, mask secrets, and the parameters of every model."""
    secrets = {}
    for path in federation.paths.values():
        for file in path.glob("keys/**/*.key"):
            data = file.read_bytes()
            body = b"".join(data.splitlines()[1:-1])
            secrets[str(file)] = body[_PEM_PREFIX:] if data.startswith(b"-----") else data
        for file in path.glob("keys/**/*.pairs"):
            for other, secret in json.loads(file.read_bytes())["secrets"].items():
                secrets[f"{file}, {other}"] = bytes.fromhex(secret)
                secrets[f"{file}, {other}, in hex"] = secret.encode()
        for file in (*path.glob("models/*.safetensors"), *path.glob("local/*.safetensors")):
            values = [np.ravel(tensor) for tensor in load(file.read_bytes()).values()]
            secrets[str(file)] = np.concatenate(values).astype("<f4").tobytes()
    return secrets


def find_secrets(folder: Path, secrets: Mapping[str, bytes]) -> list[str]:
    """Return each secret of which a file below `folder` contains a 16-byte piece, and that file."""
    pieces = {name: _pieces(secret) for name, secret in secrets.items()}
    found = []
    for path in (path for path in folder.rglob("*") if path.is_file()):
        data = path.read_bytes()
        words = _words(data)
        for name, (firsts, whole) in pieces.items():
            # Few words of the file are the first half of a piece; only those pieces are searched for.
            likely = np.isin(firsts, words).nonzero()[0]
            if any(whole[number] in data for number in likely):
                found.append(f"{name} in {path}")
    return found


def _pieces(secret: bytes) -> tuple[NDArray[np.uint64], list[bytes]]:
    """Cut a secret into overlapping pieces; return their first halves as numbers, and the pieces."""
    pieces = {secret[start : start + _WINDOW] for start in range(0, len(secret) - _WINDOW + 1, _WINDOW // 2)}
    whole = [piece for piece in pieces if len(set(piece)) > 2]  # noqa: PLR2004 - runs of zeros prove nothing
    return np.array([int.from_bytes(piece[:_WORD], "little") for piece in whole], np.uint64), whole


def _words(data: bytes) -> NDArray[np.uint64]:
    """Return the words of 8 bytes at every place in the data, without repetitions."""
    starts = [
        np.frombuffer(data[start : start + (len(data) - start) // _WORD * _WORD], "<u8") for start in range(_WORD)
    ]
    return np.unique(np.concatenate(starts))
