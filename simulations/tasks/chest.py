"""Find opacities in radiographs of the chest, read from DICOM files, of which most patients have two.

The 1,586 radiographs of 1,000 patients are made up, by `radiograph` below, and written as DICOM files of 16 bits
with a table of labels, as an archive would export them: point `file` of `site.toml` to such a table, with
`source = "dicom"` and `records_per_person = 2`. Half of the patients have an opacity in a lung, in all of their images.
Body, heart and ribs are a patient's own; place, exposure, noise, and in some images a button vary. Some files are
MONOCHROME1, in which bright means little; slopes, intercepts, windows and sizes differ, as between devices. No patient
was X-rayed.
"""

from __future__ import annotations

from functools import cache
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from client.data.columns import Category
from client.task.image_task import ImageTask

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

SIDE = 64  # pixels, as the model sees an image
FINDINGS = ("none", "opacity")
_MOST = 4095.0  # the largest value in the modality's units
_SEED, _PATIENTS = 2030, 1000
_SMALLER, _START = 4, 3.0  # how much smaller the model makes an image; what its filters start with
_SIDES, _SLOPES, _INTERCEPTS = (96, 128), (0.25, 0.5, 1.0), (0.0, -512.0)


class Chest(ImageTask):
    """Opacity or none, by a network that compares both sides of the body, as radiologists do: 534 parameters.

    The filters start as the difference between the sides, of either sign, and the linear layer at zero. From random
    weights, the few steps that DP-SGD allows end anywhere between chance and a good model.
    """

    size, channels, values = (SIDE, SIDE), 1, (0, _MOST)
    modality = "DX"
    label = Category("finding", FINDINGS)
    person = "PatientID"

    @override
    def model(self) -> nn.Module:
        """Make the untrained model: inputs `(n, 1, 64, 64)` to logits `(n, 2)`."""
        small = SIDE // _SMALLER
        filters, linear = nn.Conv2d(1, 2, 3, padding=1), nn.Linear(small**2, 2)
        with torch.no_grad():
            for parameter in (*filters.parameters(), *linear.parameters()):
                parameter.zero_()
            filters.weight[:, 0, 1, 1] = torch.tensor([_START, -_START])
        return nn.Sequential(nn.AvgPool2d(_SMALLER), _Sides(), filters, nn.ReLU(), nn.Flatten(), linear)

    @override
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy of logits `(n, 2)`, in nats."""
        return functional.cross_entropy(outputs, targets)

    @override
    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return whether each radiograph is classified correctly: 1 or 0, `(n,)`."""
        return {"accuracy": (outputs.argmax(1) == targets).float()}


class _Sides(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        """Subtract one side of the body from the other: `(n, 1, height, width)` to `(n, 1, height, width / 2)`."""
        left, right = images.chunk(2, -1)
        return left - right.flip(-1)


@cache
def patients() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Make up all patients: 1 for an opacity, `(1000,)`, and the number of radiographs, 1 or 2, `(1000,)`."""
    rng = np.random.default_rng(_SEED)
    return rng.integers(2, size=_PATIENTS), 1 + (rng.random(_PATIENTS) < 0.6)


def radiograph(patient: int, number: int) -> NDArray[np.float64]:
    """Make up a patient's radiograph of this number, from 1: `(side, side)`, 0 to 4095; the same every time."""
    own, rng = np.random.default_rng((_SEED, patient)), np.random.default_rng((_SEED, patient, number))
    side = int(rng.choice(_SIDES))
    place = np.linspace(-1, 1, side)
    y, x = place[:, None] + rng.uniform(-0.08, 0.08), place[None] + rng.uniform(-0.08, 0.08)
    height, width = own.uniform(0.6, 0.75), own.uniform(0.28, 0.36)
    middles = (-own.uniform(0.38, 0.46), own.uniform(0.38, 0.46))
    lungs = np.maximum(*(_ellipse(y + 0.05, x - middle, height, width) for middle in middles))
    heart = _ellipse(y - 0.3, x - 0.1, own.uniform(0.3, 0.4), own.uniform(0.22, 0.34))
    ribs = np.cos(own.uniform(16, 20) * (y + 0.35 * x**2) + own.uniform(0, 2 * np.pi)) > 0.5
    image = 0.7 - 0.2 * x**2 - 0.42 * lungs * (1 - 0.8 * heart) + 0.05 * ribs
    if patients()[0][patient]:
        lung = middles[own.integers(2)]
        down, across = own.uniform(-0.4, 0.3), lung + own.uniform(-0.12, 0.12)
        radius = own.uniform(0.2, 0.32)
        distance = np.hypot(y - down, (x - across) * own.uniform(0.8, 1.2)) / radius
        image += own.uniform(0.3, 0.45) * np.exp(-(distance**2)) * lungs
    if rng.random() < 1 / 3:
        image += 0.3 * _ellipse(y - rng.uniform(-0.8, 0.8), x - rng.uniform(-0.8, 0.8), 0.05, 0.05)
    image = image * rng.uniform(0.85, 1.1) + rng.uniform(-0.05, 0.05) + rng.normal(0, 0.03, image.shape)
    return (_MOST * image).clip(0, _MOST)


def _ellipse(y: NDArray[np.float64], x: NDArray[np.float64], height: float, width: float) -> NDArray[np.float64]:
    """Return 1 inside of an ellipse and 0 outside, with a soft edge, given distances from its middle."""
    inside: NDArray[np.float64] = (0.5 + 4 * (1 - np.hypot(y / height, x / width))).clip(0, 1)
    return inside


@cache
def _file(patient: int, number: int) -> bytes:
    """Return a radiograph as a DICOM file."""
    from pydicom.dataset import FileDataset, FileMetaDataset  # noqa: PLC0415 - only those who make the records need it
    from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid  # noqa: PLC0415

    image, rng = radiograph(patient, number), np.random.default_rng((_SEED, patient, number, 1))
    slope, intercept, inverted = rng.choice(_SLOPES), rng.choice(_INTERCEPTS), rng.random() < 0.25
    study, uid = (generate_uid(entropy_srcs=[str(_SEED), str(patient), each]) for each in ("study", str(number)))
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = DigitalXRayImageStorageForPresentation, uid
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    data.SOPClassUID, data.SOPInstanceUID = DigitalXRayImageStorageForPresentation, uid
    data.StudyInstanceUID, data.SeriesInstanceUID, data.InstanceNumber = study, study, number
    data.PatientID, data.PatientName, data.Modality, data.BodyPartExamined = _name(patient), "", "DX", "CHEST"
    data.Rows, data.Columns = image.shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME1" if inverted else "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 0
    data.RescaleSlope, data.RescaleIntercept, data.RescaleType = float(slope), float(intercept), "US"
    data.WindowCenter, data.WindowWidth = float(rng.integers(1500, 2500)), float(rng.integers(2500, 4000))
    shown = _MOST - image if inverted else image
    data.PixelData = ((shown - intercept) / slope).round().astype("<u2").tobytes()
    file = BytesIO()
    data.save_as(file, enforce_file_format=True)
    return file.getvalue()


def _name(patient: int) -> str:
    return f"P{patient:04}"


def write_radiographs(path: Path, rows: NDArray[np.intp]) -> None:
    """Write all radiographs of these patients into a folder beside `path`, and the table that lists them to `path`."""
    folder, lines = path.parent / "radiographs", ["file,PatientID,finding"]
    folder.mkdir(exist_ok=True)
    findings, counts = patients()
    for patient in map(int, rows):
        for number in range(1, counts[patient] + 1):
            name = f"{_name(patient)}-{number}.dcm"
            (folder / name).write_bytes(_file(patient, number))
            lines.append(f"radiographs/{name},{_name(patient)},{FINDINGS[int(findings[patient])]}")
    path.write_text("\n".join([*lines, ""]), encoding="utf-8")
