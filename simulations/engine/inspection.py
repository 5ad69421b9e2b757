"""Search everything that a party wrote to disk for secrets and plaintext weights that must not be there."""

from __future__ import annotations

import json
from collections import defaultdict
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
_MODELS = "models", "local", "personal"


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
        for file in (file for folder in _MODELS for file in path.glob(f"{folder}/*.safetensors")):
            values = [np.ravel(tensor) for tensor in load(file.read_bytes()).values()]
            secrets[str(file)] = np.concatenate(values).astype("<f4").tobytes()
    return secrets


def find_secrets(folder: Path, secrets: Mapping[str, bytes]) -> list[str]:
    """Return each secret of which a file below `folder` contains a 16-byte piece, and that file."""
    pieces = defaultdict[int, list[tuple[str, bytes]]](list)  # by their first half
    for name, secret in secrets.items():
        for piece in _pieces(secret):
            pieces[int.from_bytes(piece[:_WORD], "little")].append((name, piece))
    firsts = np.sort(np.array(list(pieces), np.uint64))
    places = []
    for path in (path for path in folder.rglob("*") if path.is_file()):
        data = path.read_bytes()
        # Few words of the file are the first half of a piece; only those pieces are searched for.
        likely = (item for word in _words_among(firsts, data) for item in pieces[word])
        places += [f"{name} in {path}" for name in dict.fromkeys(name for name, piece in likely if piece in data)]
    return places


def _pieces(secret: bytes) -> set[bytes]:
    """Cut a secret into overlapping pieces, but for runs of zeros and the like, which prove nothing."""
    pieces = {secret[start : start + _WINDOW] for start in range(0, len(secret) - _WINDOW + 1, _WINDOW // 2)}
    return {piece for piece in pieces if len(set(piece)) > 2}  # noqa: PLR2004


def _words_among(sought: NDArray[np.uint64], data: bytes) -> set[int]:
    """Return those of the words `sought`, which are sorted, that are at any place in the data."""
    words_present = set[int]()
    for start in range(_WORD if len(sought) else 0):
        words = np.frombuffer(data[start : start + (len(data) - start) // _WORD * _WORD], "<u8")
        places = np.minimum(np.searchsorted(sought, words), len(sought) - 1)
        words_present.update(words[sought[places] == words].tolist())
    return words_present
