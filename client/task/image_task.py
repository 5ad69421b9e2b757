"""A task over images: it declares their form and labels, and the site's settings say where they are.

    class Chest(ImageTask):
        size, channels, values = (224, 224), 1, (-1000, 400)
        modality = "CT"
        label = Category("finding", ["none", "nodule"])
        def model(self):                   return network()
        def loss(self, outputs, targets):  return F.cross_entropy(outputs, targets)

An image becomes `(channels, *size)` from -1 to 1, whatever the site has: clipped to `values`, scaled and resized.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from client.data.columns import AnyColumn, check_columns
from client.data.sources.listed_files import FILE, ImageForm, ImageRecords
from client.data.sources.registry import Source
from client.data.sources.table_tensors import Declared, Findings, raise_first
from client.task.table_task import made_up_targets, take_values, targets_of
from client.task.task import Task
from privacy.errors import TaskError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from client.data.inputs import Loaded

_DIMENSIONS = (2, 3)
_FEWEST = 4  # made-up records


class ImageTask(Task):
    """A task whose records are images or volumes."""

    size: ClassVar[tuple[int, ...]]
    """Height and width; of volumes depth, height and width."""

    channels: ClassVar[int] = 1
    values: ClassVar[tuple[float, float]] = (0, 255)
    modality: ClassVar[str | None] = None
    """What DICOM files must be, such as `"CT"`; None: anything."""

    label: ClassVar[AnyColumn | Sequence[AnyColumn]]
    """What to predict: as `target` of a `TableTask`."""

    person: ClassVar[str | None] = None
    """The column of the table that says whom an image is about, where persons have several."""

    def __init_subclass__(cls, **settings: Any) -> None:  # noqa: ANN401 - Python's
        """Check the declarations."""
        super().__init_subclass__(**settings)
        if not (hasattr(cls, "size") and hasattr(cls, "label")):
            return
        check_columns(targets_of(cls.label))
        if "label" in vars(cls):
            take_values(cls, targets_of(cls.label))
        low, high = cls.values
        if len(cls.size) not in _DIMENSIONS or min(*cls.size, cls.channels) < 1:
            msg = "size of this task must be two or three numbers above 0, and channels at least 1"
            raise TaskError(msg)
        if not -math.inf < low < high < math.inf:
            msg = "values of this task must be two finite numbers, the lowest and the highest"
            raise TaskError(msg)
        if any(column.name == FILE for column in targets_of(cls.label)):
            msg = f"the label of this task is called {FILE!r}, as the column of file names; choose another name"
            raise TaskError(msg)

    def transform(self, image: Tensor) -> Tensor:
        """Change an image `(channels, *size)`, from -1 to 1, before the model sees it: a hook, such as for MONAI.

        It must depend on nothing but this image, and always return the same for it.
        """
        return image

    @property
    def form(self) -> ImageForm:
        """What every image is brought to."""
        return ImageForm(self.channels, tuple(self.size), self.values, self.modality)

    @property
    def declared(self) -> Declared:
        """What the task declares of the table that lists its images."""
        return Declared((), targets_of(self.label), self.person)

    def records(
        self, source: Source, findings: Findings, progress: Callable[[int], None] = lambda _: None
    ) -> ImageRecords:
        """Return the records whose label and file name can be used; images are read later.

        Raises:
            DataError: if the table of labels cannot be read.
        """
        table, reader = source.images(self.form)
        return ImageRecords(table, table.labels(self.declared, findings, progress), reader, self.transform)

    @override
    def load(self, path: Path) -> Loaded:
        return self.load_from(Source(path))

    @override
    def load_from(self, source: Source) -> Loaded:
        findings = Findings()
        records = self.records(source, findings)
        raise_first(records.table, findings)
        return records if records.persons is None else (records, records.persons)

    @override
    def example(self) -> tuple[Tensor, Tensor]:
        count = _FEWEST * max(column.width for column in self.declared.targets)
        images = torch.rand(count, self.channels, *self.size) * 2 - 1
        return torch.stack([self.transform(image) for image in images]), made_up_targets(self.declared.targets, count)
