"""What a simulation needs to go on after its last whole round, on disk.

    folder/study.json     the digest of what is simulated: another study does not go on from here
    folder/rows.jsonl     the rows of the history
    folder/round-N/       after round N: the engine's state, as safetensors; nothing of an earlier round is needed
    folder/models/        the models after every round, if they are kept
    folder/federation/    server and sites, in the whole protocol

A round's folder gets its name once all of it is on disk, and the one before is removed then: whenever the process is
killed, one whole round is there.
"""

from __future__ import annotations

import json
import re
import shutil
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from privacy.errors import ConfigError, VaultError
from privacy.failures import reason
from privacy.files import make_folder, sync_folder, unfinished
from privacy.folder_locks import folder_alone
from privacy.storage import read_file, write_atomically

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path
    from typing import Self

    from numpy.typing import NDArray

    from privacy.codec.update import Model

Arrays = dict[str, "NDArray[Any]"]
_NEW = "new"


@dataclass(frozen=True)
class Checkpoint:
    """What is on disk after a round."""

    number: int
    rows: list[dict[str, Any]]
    arrays: Arrays = field(default_factory=dict)  # by name, of the study and its engine; parts of sites' in `parts`
    folder: Path | None = None

    def model(self, like: Model) -> Model:
        """Return the model after this round; its layout is that of the untrained one.

        Raises:
            ConfigError: if it has another.
        """
        if self.arrays["model"].shape != like.vector.shape:
            raise self.damaged()
        return replace(like, vector=self.arrays["model"])

    def parts(self, name: str) -> Iterator[NDArray[Any]]:
        """Yield what was written by `Checkpoints.write` under this name, part by part."""
        assert self.folder is not None  # noqa: S101 - there are parts only after a round
        for path in sorted(self.folder.glob(f"{name}-*.safetensors")):
            yield _read(path, name)[name]

    def damaged(self) -> ConfigError:
        """Return what says that some of it is missing, or is not what was written."""
        assert self.folder is not None  # noqa: S101 - round 0 has nothing
        return _damaged(self.folder)


class Checkpoints:
    """The folder of one simulation."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def opened(cls, folder: Path, digest: str) -> Self:
        """Open a folder, or make it.

        Args:
            folder: its path.
            digest: of what is simulated, `simulations.study.digest`.

        Raises:
            ConfigError: if another study is in it, or something else.
        """
        path = folder / "study.json"
        if folder.exists() and not folder.is_dir():
            msg = f"{folder} is a file; name a folder for the checkpoint"
            raise ConfigError(msg)
        if path.exists():
            try:
                known = json.loads(read_file(path))["digest"]
            except (ValueError, KeyError, TypeError) as error:
                msg = f"{path} is damaged; name another folder for the checkpoint"
                raise ConfigError(msg) from error
            if known != digest:
                msg = (
                    f"{folder} has the checkpoint of another simulation: its run, task, records, sites or options "
                    "differ; repeat that call to go on with it, or name another folder"
                )
                raise ConfigError(msg)
        elif folder.exists() and set(folder.iterdir()) - set(unfinished(path)):
            msg = f"{folder} is not empty, and has no checkpoint; name an empty or a new folder"
            raise ConfigError(msg)
        else:
            make_folder(folder)
            write_atomically(path, json.dumps({"digest": digest}).encode())
        return cls(folder)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other processes from writing here.

        Raises:
            ConfigError: if one does.
        """
        try:
            with folder_alone(self.folder):
                yield
        except VaultError as error:
            msg = f"{self.folder}: another process simulates here; wait for it, or name another folder"
            raise ConfigError(msg) from error

    def last(self) -> Checkpoint:
        """Return the state after the last whole round; round 0 has none.

        Raises:
            ConfigError: if files are damaged.
        """
        number = max(self._numbers(), default=0)
        if not number:
            return Checkpoint(0, [])
        try:
            lines = read_file(self._rows).split(b"\n")[:number]
            rows = [_unfinite(json.loads(line)) for line in lines]
        except (OSError, ValueError, AttributeError) as error:  # no JSON, or no object
            raise _damaged(self._rows) from error
        if [row.get("round") for row in rows] != list(range(1, number + 1)) or not {"bytes", "seconds"} <= set(
            rows[-1]
        ):
            raise _damaged(self._rows)
        folder = self._round(number)
        return Checkpoint(number, rows, _read(folder / "state.safetensors", "model", "rounds"), folder)

    def write(
        self, row: Mapping[str, Any], arrays: Arrays, parts: Mapping[str, Iterable[NDArray[Any]]], *, keep_model: bool
    ) -> None:
        """Put a round's state on disk, from which the simulation then goes on.

        Args:
            row: of the history; its round is the next.
            arrays: the state, by name.
            parts: arrays too large for memory, by name, part by part.
            keep_model: whether the array `model` is kept after later rounds, too.
        """
        number, new = int(row["round"]), self.folder / _NEW
        shutil.rmtree(new, ignore_errors=True)
        make_folder(new)
        for name, pieces in parts.items():
            for place, piece in enumerate(pieces):
                write_atomically(new / f"{name}-{place:06d}.safetensors", save({name: piece}))
        write_atomically(new / "state.safetensors", save(arrays))
        if keep_model:
            write_atomically(self._model(number), save({"model": arrays["model"]}))
        known = read_file(self._rows).split(b"\n")[: number - 1] if number > 1 else []
        line = json.dumps({key: _finite(value) for key, value in row.items()}).encode()
        write_atomically(self._rows, b"\n".join([*known, line, b""]))
        new.rename(self._round(number))
        sync_folder(self.folder)
        for earlier in self._numbers() - {number}:
            shutil.rmtree(self._round(earlier), ignore_errors=True)

    def model(self, number: int) -> NDArray[np.float32]:
        """Return the vector of a model that was kept."""
        return _read(self._model(number), "model")["model"]

    @property
    def _rows(self) -> Path:
        return self.folder / "rows.jsonl"

    def _round(self, number: int) -> Path:
        return self.folder / f"round-{number}"

    def _model(self, number: int) -> Path:
        return self.folder / "models" / f"round-{number}.safetensors"

    def _numbers(self) -> set[int]:
        names = (re.fullmatch(r"round-([1-9]\d{0,5})", path.name) for path in self.folder.iterdir())
        return {int(name[1]) for name in names if name}


def _finite(value: Any) -> Any:  # noqa: ANN401 - a value of a row
    return str(value) if isinstance(value, float) and not np.isfinite(value) else value


def _unfinite(row: dict[str, Any]) -> dict[str, Any]:
    return {key: float(value) if value in {"inf", "-inf", "nan"} else value for key, value in row.items()}


def _read(path: Path, *names: str) -> Arrays:
    """Return the arrays in a file, which has those of these names."""
    try:
        arrays = load(read_file(path))
    except (OSError, SafetensorError, KeyError) as error:  # a type that NumPy has not
        raise _damaged(path, error) from error
    if not set(names) <= arrays.keys():
        raise _damaged(path)
    return arrays


def _damaged(path: Path, error: BaseException | None = None) -> ConfigError:
    why = f" ({reason(error)})" if isinstance(error, OSError) else ""
    return ConfigError(f"{path} is damaged{why}; remove its folder, and simulate from the start")
