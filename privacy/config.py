"""Read settings files, TOML, into frozen dataclasses, with errors that point at the line.

    study.toml:7  rouns = 20
                  ^^^^^ unknown key; did you mean `rounds`?

Types, bounds and cross-field rules are in the dataclasses themselves (pydantic checks them whenever one is made, from a
file or not); this module only turns pydantic's errors into a location and a sentence.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import tomllib
from codecs import BOM_UTF8
from difflib import get_close_matches
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_args, get_type_hints

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError

from privacy.errors import ArgumentError, ConfigError
from privacy.storage import read_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from pydantic_core import ErrorDetails

T = TypeVar("T")

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=True)
"""Pydantic configuration of every settings dataclass: no unknown keys, no silent conversions."""


def _possible(path: Path) -> Path:
    if "\0" in str(path):
        msg = "a file name cannot contain a NUL character; remove it"
        raise ValueError(msg)
    return path


File = Annotated[Path, Field(strict=False), AfterValidator(_possible)]
"""A setting: a file or folder, relative to the settings file."""

Hex32 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
"""32 bytes as hexadecimal digits: a SHA-256 or a key."""

_ROOT_LINK = 2  # parts of a path such as /tmp
_SHOWN = 120  # characters of a line
_KINDS = {
    "site.toml": "a site's", "person.toml": "a person's", "consortium.toml": "a server's",
    "coordinator.toml": "a coordinator's",
}  # fmt: skip
_UNKNOWN = {"unexpected_keyword_argument", "extra_forbidden"}


def read_toml(path: Path, into: type[T]) -> T:
    """Read a TOML file into the settings dataclass `into`.

    Raises:
        ConfigError: if the file is missing, is not TOML, or does not fit; the message shows the line with a caret.
    """
    text = _read(path)
    try:
        return TypeAdapter(into).validate_json(json.dumps(tomllib.loads(text), default=_dated))
    except tomllib.TOMLDecodeError as error:
        place = re.search(r"at line (\d+), column (\d+)", str(error))
        line, column = (int(place[1]), int(place[2])) if place else (text.count("\n") + 1, 1)
        problem = str(error).partition(" (at")[0]
        raise ConfigError(_point(path, text, line, column - 1, 1, f"not valid TOML: {problem.lower()}")) from error
    except RecursionError as error:
        msg = f"{path}: nested too deeply for a settings file; settings have two levels at most"
        raise ConfigError(msg) from error
    except ValidationError as error:
        raise ConfigError(_explain(path, text, _first(error), into)) from error
    except ValueError as error:  # Python refuses integers of thousands of digits
        msg = f"{path}: {str(error).partition(';')[0]}; write a smaller number"
        raise ConfigError(msg) from error


def read_mapping(values: Mapping[str, Any], into: type[T], name: str) -> T:
    """Read settings from a mapping as if they were in a TOML file; values may be settings dataclasses.

    Args:
        values: the settings.
        into: their dataclass.
        name: what to call them in messages.

    Raises:
        ConfigError: if they do not fit; names the setting.
    """
    plain = {
        key: TypeAdapter(type(value)).dump_python(value, mode="json", exclude_none=True)
        if dataclasses.is_dataclass(value)
        else value
        for key, value in values.items()
    }
    try:
        return TypeAdapter(into).validate_json(json.dumps(plain))
    except ValidationError as error:
        raise ConfigError(_explain(Path(name), "", _first(error), into)) from error
    except (TypeError, ValueError) as error:
        msg = f"{name}: {error}; give what a TOML file can hold"
        raise ConfigError(msg) from error


def explained(kind: type[T]) -> type[T]:
    """Make a settings dataclass, when it is called with wrong arguments, say so in one sentence.

    Raises:
        ArgumentError: in place of pydantic's error, by the dataclass's `__init__`.
    """
    check: Callable[..., None] = kind.__init__

    @wraps(check)
    def __init__(self: T, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401, N807 - as the class has them
        try:
            check(self, *args, **kwargs)
        except ValidationError as error:
            raise ArgumentError(_explain(Path(kind.__name__), "", _first(error), kind)) from error

    kind.__init__ = __init__  # type: ignore[method-assign]
    return kind


def _first(error: ValidationError) -> ErrorDetails:
    """Return the problem to report: a misspelt key is also a missing one, and the misspelling helps more."""
    return min(error.errors(), key=lambda problem: problem["type"] not in _UNKNOWN)


def _dated(value: object) -> dict[str, str]:
    """Convert a TOML date to a table, which no setting accepts."""
    return {"date": str(value)}


def settings_file(path: Path, name: str) -> Path:
    """Return the absolute path of a settings file; `path` is the file itself or the folder that holds it.

    Paths in the settings are relative to the folder of the file as given. The file itself may be a link (a mounted
    ConfigMap): if its target changes, nothing else moves. If its folder were a link, a change of target would silently
    start new ledgers.

    Raises:
        ConfigError: if a folder above it is a link, other than the system's links in the root folder, such as /tmp.
    """
    file = Path(os.path.abspath(path / name if path.is_dir() else path))  # noqa: PTH100 - resolve() follows links
    for folder in file.parents:
        if folder.is_symlink() and len(folder.parts) > _ROOT_LINK:
            msg = (
                f"{file}: {folder} is a link; if it were changed, the files beside the settings, such as "
                f"ledgers, would be left behind; give {file.parent.resolve() / file.name}, or link only {name} "
                "itself"
            )
            raise ConfigError(msg)
    return file


def _of_another_kind(path: Path) -> str | None:
    """Return what to do if a folder lacks this settings file but has that of another kind of folder."""
    if path.name not in _KINDS or path.exists():
        return None
    there = next((kind for name, kind in _KINDS.items() if (path.parent / name).is_file()), None)
    return f"{path.parent} is {there} folder; name {_KINDS[path.name]}" if there else None


def _read(path: Path) -> str:
    try:
        # Some editors put an invisible byte order mark before the text, which TOML does not allow.
        return read_file(path).removeprefix(BOM_UTF8).decode()
    except OSError as error:
        msg = f"{path}: {error.strerror or error}; {_of_another_kind(path) or 'name an existing settings file'}"
        raise ConfigError(msg) from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        msg = f"{path}:{line}: not UTF-8 text; save the file as UTF-8"
        raise ConfigError(msg) from error


def _explain(path: Path, text: str, error: ErrorDetails, into: type) -> str:
    """Return a message for a pydantic error that points at its line."""
    keys, known = _resolve(into, [part for part in error["loc"] if isinstance(part, str)])
    kind, message = error["type"], error["msg"].removeprefix("Value error, ")
    if kind in _UNKNOWN:
        near = did_you_mean(keys[-1], known) or _elsewhere(keys[-1], into)
        message = f"unknown key; {near or ('remove it' if text else 'keys are ' + ', '.join(known))}"
    elif kind in {"missing", "missing_argument"}:
        table = f" in [{'.'.join(keys[:-1])}]" if keys[:-1] else ""
        return f"{path}: the key `{keys[-1]}` is missing{table}; add it"
    else:
        message = message.replace("Input should be", "must be").replace("String should match", "must match the")
        message = message[:1].lower() + message[1:]
    keys = keys[:-1] if keys[-1:] == ["[key]"] else keys  # the key itself is wrong
    line, column = _locate(text, keys)
    if line == 0:
        return f"{path}: {f'{keys[-1]!r} ' if keys else ''}{message}"
    return _point(path, text, line, column, len(keys[-1]) if keys else 1, message)


def did_you_mean(word: str, known: Iterable[str]) -> str | None:
    """Return a question that names the known name nearest to a given one, or None if none is near."""
    near = get_close_matches(word, list(known), n=1)
    return f"did you mean `{near[0]}`?" if near else None


def _elsewhere(key: str, into: type) -> str | None:
    """Return in which table of the settings a key belongs, if there is one."""
    for table, hint in get_type_hints(into).items():
        for kind in get_args(hint) or (hint,):
            if dataclasses.is_dataclass(kind) and key in {field.name for field in dataclasses.fields(kind)}:
                return f"it belongs in [{table}]"
    return None


def _resolve(into: Any, path: list[str]) -> tuple[list[str], list[str]]:  # noqa: ANN401 - walks type hints
    """Return the keys of pydantic's path to a setting, and all keys of the table that holds the last.

    Where a table's `name` chooses its class, the path also has that name, which is no key.
    """
    keys, known = list[str](), list[str]()
    for part in path:
        classes = [option for option in get_args(into) or (into,) if dataclasses.is_dataclass(option)]
        chosen = [kind for kind in classes if getattr(kind, "name", None) == part]
        if len(classes) > 1 and chosen:
            into = chosen[0]
            continue
        keys.append(part)
        known = [field.name for kind in classes for field in dataclasses.fields(kind)]
        into = get_type_hints(classes[0]).get(part) if classes else None
    return keys, known


def _locate(text: str, keys: list[str]) -> tuple[int, int]:
    """Return line (from 1; 0 if nowhere) and column (from 0) where the key at this path is set or its table opens."""
    table: list[str] = []
    opened = (0, 0)
    for number, line in enumerate(text.splitlines(), start=1):
        if header := re.match(r"\s*\[\[?([^\]]+)\]", line):
            table = [part.strip().strip("\"'") for part in header[1].split(".")]
            if table == keys:
                opened = (number, line.index("[") + 1)
        elif (pair := re.match(r"""(\s*)(["']?[\w.-]+["']?)\s*=""", line)) and table + [
            part.strip("\"'") for part in pair[2].split(".")
        ] == keys:
            return number, len(pair[1])
    return opened


def _point(path: Path, text: str, line: int, column: int, width: int, message: str) -> str:
    place = f"{path}:{line}  "
    lines = text.splitlines()
    excerpt = lines[line - 1] if line <= len(lines) else ""
    left = max(0, column - _SHOWN // 2) if len(excerpt) > _SHOWN else 0
    # Control characters could control the terminal; one dot for each keeps the caret in place.
    excerpt = "".join(character if character.isprintable() else "·" for character in excerpt[left : left + _SHOWN])
    width = max(1, min(width, _SHOWN))
    return f"{place}{excerpt}\n{' ' * (len(place) + column - left)}{'^' * width} {message}"
