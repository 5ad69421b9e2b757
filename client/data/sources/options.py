"""The settings of sources: `source` in `[data]` of `site.toml`, a name or a table with the source's own options.

source = "csv"

[data.source]
name = "csv"
separator = ";"
decimal = ","
"""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic.dataclasses import dataclass

from privacy.config import STRICT, did_you_mean

MISSING = ("", "NA", "N/A", "NaN", "nan", "NULL", "null")
"""Texts that stand for a missing value, unless the site says otherwise."""


@dataclass(frozen=True, config=STRICT, kw_only=True)
class _Table:
    """Options of every source of tables."""

    columns: dict[str, str] = field(default_factory=dict)  # what the site calls a column of the task
    units: dict[str, str] = field(default_factory=dict)  # the unit in which the site has a column, if it is another
    dates: str = "iso"  # or a format such as "%d.%m.%Y"
    missing: Annotated[tuple[str, ...], Field(strict=False)] = MISSING


@dataclass(frozen=True, config=STRICT, kw_only=True)
class _Text(_Table):
    """Options of text files."""

    separator: Literal[",", ";", "\t", "|"] = ","
    decimal: Literal[".", ","] = "."
    encoding: Literal["utf-8", "utf-16", "latin-1", "windows-1252"] = "utf-8"

    def __post_init__(self) -> None:
        """Check that a comma does not mean two things."""
        if self.separator == self.decimal:
            msg = 'a comma cannot separate both columns and decimals; set separator = ";" or decimal = "."'
            raise ValueError(msg)


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Csv(_Text):
    """A text file whose first line names its columns."""

    name: Literal["csv"] = "csv"


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Parquet(_Table):
    """A Parquet file, or a folder of them in the order of their names."""

    name: Literal["parquet"] = "parquet"


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Sql(_Table):
    """A database; `file` has the query, one SELECT."""

    name: Literal["sql"] = "sql"
    url: str  # of SQLAlchemy, without a password
    order_by: str  # a column of the query, different in every row: so each record keeps its place
    password_variable: str = "CLOISTER_SQL_PASSWORD"  # noqa: S105 - the name of an environment variable


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Fhir(_Table):
    """FHIR bundles as JSON: a file, or a folder of them."""

    name: Literal["fhir"] = "fhir"


@dataclass(frozen=True, config=STRICT, kw_only=True)
class _Listed(_Text):
    """Options of images; `file` is a table that lists them, in the images' folder."""

    most_megapixels: Annotated[float, Field(gt=0)] = 100.0  # of one image or scan, all slices together


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Images(_Listed):
    """PNG, JPEG, TIFF, BMP and WebP."""

    name: Literal["images"] = "images"


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Dicom(_Listed):
    """DICOM: single files, or folders with the slices of a series."""

    name: Literal["dicom"] = "dicom"


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Nifti(_Listed):
    """NIfTI, `.nii` or `.nii.gz`."""

    name: Literal["nifti"] = "nifti"


TableOptions = Csv | Parquet | Sql | Fhir
ListedOptions = Images | Dicom | Nifti
_NAMES = ("csv", "parquet", "sql", "images", "dicom", "nifti", "fhir")


def _source(value: object) -> object:
    """Return a source as a table with a known name.

    Raises:
        ValueError: if there is no such source.
    """
    table: Any = {"name": value} if isinstance(value, str) else value
    if isinstance(table, dict) and table.get("name") not in _NAMES:
        hint = did_you_mean(str(table.get("name")), _NAMES) or f"name one of {', '.join(_NAMES)}"
        msg = f"there is no source {table.get('name')!r}; {hint}" if "name" in table else f"its name is missing; {hint}"
        raise ValueError(msg)
    return table


SourceOptions = Annotated[
    Annotated[Csv | Parquet | Sql | Images | Dicom | Nifti | Fhir, Field(discriminator="name")],
    BeforeValidator(_source),
]
"""A setting: a table, or a name alone as a short form of it."""
