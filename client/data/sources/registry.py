"""Open the source that a site's settings name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from client.data.sources.options import Csv, Dicom, Fhir, Images, Nifti, Parquet, Sql
from privacy.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

    from client.data.sources.chunks import Table
    from client.data.sources.listed_files import ImageForm, ImageReader, ListedTable
    from client.data.sources.options import ListedOptions, TableOptions

_BY_SUFFIX: dict[str, Csv | Parquet] = {".csv": Csv(), ".parquet": Parquet()}


@dataclass(frozen=True)
class Source:
    """A site's records: the file that it names, and how to read it.

    Attributes:
        path: the file or folder.
        options: the source's options; None: the site names no source, and the file's suffix decides.
        folder: to which paths in the options are relative.
    """

    path: Path
    options: TableOptions | ListedOptions | None = None
    folder: Path | None = None

    @property
    def kind(self) -> str:
        """The source's name, as in `site.toml`."""
        return self._options.name

    @property
    def _options(self) -> TableOptions | ListedOptions:
        options = self.options or _BY_SUFFIX.get(self.path.suffix.lower())
        if options is None:
            msg = f"{self.path}: this task reads no file by itself; set source in [data] of site.toml"
            raise DataError(msg)
        return options

    def table(self) -> Table:
        """Return a source of tables.

        Raises:
            DataError: if the site has images.
        """
        match options := self._options:
            case Csv():
                from client.data.sources.text_tables import TextTable  # noqa: PLC0415 - each source loads its own

                return TextTable(self.path, options)
            case Parquet():
                from client.data.sources.parquet import ParquetTable  # noqa: PLC0415

                return ParquetTable(self.path, options)
            case Sql():
                from client.data.sources.sql import SqlTable  # noqa: PLC0415

                return SqlTable(self.path, options, self.folder or self.path.parent)
            case Fhir():
                from client.data.sources.fhir import FhirTable  # noqa: PLC0415

                return FhirTable(self.path, options)
        msg = f"this task reads tables, but source in [data] is {options.name!r}; name csv, parquet, sql or fhir"
        raise DataError(msg)

    def images(self, form: ImageForm) -> tuple[ListedTable, ImageReader]:
        """Return the table that lists a site's images, and what reads them.

        Raises:
            DataError: if the site has tables, or another number of dimensions than the task declares.
        """
        from client.data.sources.listed_files import ListedTable  # noqa: PLC0415

        options = self._options
        reader: ImageReader | None = None
        match options:
            case Images():
                from client.data.sources.images import PillowReader  # noqa: PLC0415

                reader = PillowReader(form, options.most_megapixels)
            case Dicom():
                from client.data.sources.dicom import DicomReader  # noqa: PLC0415

                reader = DicomReader(form, options.most_megapixels)
            case Nifti():
                from client.data.sources.nifti import NiftiReader  # noqa: PLC0415

                reader = NiftiReader(form, options.most_megapixels)
        if reader is None or isinstance(options, Csv | Parquet | Sql | Fhir):
            msg = f"this task reads images, but source in [data] is {options.name!r}; name images, dicom or nifti"
            raise DataError(msg)
        if len(form.size) not in reader.dimensions:
            msg = (
                f"this task declares images of {len(form.size)} dimensions, which source {options.name!r} does not "
                "have; name another source"
            )
            raise DataError(msg)
        return ListedTable(self.path, options, folders=reader.folders), reader
