"""A folder of images with a table of labels: what every image becomes, and which files are refused."""

from __future__ import annotations

import os
import struct
import zlib
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

from client.data.sources.listed_files import ImageForm
from client.data.sources.options import Csv, Images
from client.data.sources.registry import Source
from client.data.sources.table_tensors import Findings
from tests.client.data.sources.cohorts import Picture, Ward, complaint, read

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

GREY = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10


class Colour(Picture):
    """The same in colour."""

    channels = 3


def labels(folder: Path, *rows: str) -> Path:
    path = folder / "labels.csv"
    path.write_text("\n".join(["file,label", *rows, ""]))
    return path


def save(folder: Path, name: str, pixels: np.ndarray = GREY, **options: Any) -> None:  # noqa: ANN401 - Pillow's
    (folder / name).parent.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(folder / name, **options)


@pytest.mark.parametrize("name", ["a.png", "scans/a.bmp", "a.tiff", "ä b.webp", "a.jpg"])
def test_an_image_is_read_whatever_its_kind(tmp_path: Path, name: str) -> None:
    options: dict[str, Any] = (
        {"lossless": True} if name.endswith("webp") else {"quality": 100} if name.endswith("jpg") else {}
    )
    save(tmp_path, name, **options)
    images, targets = read(labels(tmp_path, f"{name},malignant"), Images(), Picture())
    assert images.shape == (1, 1, 4, 6)
    torch.testing.assert_close(images[0, 0], torch.from_numpy(GREY) / 127.5 - 1, atol=0.02, rtol=0)
    assert targets.tolist() == [1]


def test_grey_and_colour_become_what_the_task_declares(tmp_path: Path) -> None:
    colours = np.stack([GREY, GREY * 0, GREY // 2], axis=2)
    save(tmp_path, "colour.png", colours)
    save(tmp_path, "grey.png")
    save(tmp_path, "deep.png", (GREY.astype(np.uint16) * 256))
    Image.fromarray(colours).convert("P").save(tmp_path / "palette.png")
    Image.fromarray(colours).convert("RGBA").save(tmp_path / "alpha.png")
    path = labels(tmp_path, *(f"{name}.png,benign" for name in ("colour", "grey", "palette", "alpha")))
    images, _ = read(path, Images(), Colour())
    assert images.shape == (4, 3, 4, 6)
    torch.testing.assert_close(images[0], torch.from_numpy(colours).permute(2, 0, 1) / 127.5 - 1)
    torch.testing.assert_close(images[1], (torch.from_numpy(GREY) / 127.5 - 1).expand(3, 4, 6))
    assert read(path, Images(), Picture())[0].shape == (4, 1, 4, 6)

    class Deep(Picture):
        values = (0, 65535)

    deep, _ = read(labels(tmp_path, "deep.png,benign"), Images(), Deep())
    torch.testing.assert_close(deep[0, 0], torch.from_numpy(GREY * 256.0).float() / 32767.5 - 1)


def tiff(data: bytes, bits: int, interpretation: int = 1) -> bytes:
    """A grey TIFF of 6 × 4 pixels, not compressed."""
    tags = {256: 6, 257: 4, 258: bits, 259: 1, 262: interpretation, 273: 8, 277: 1, 278: 4, 279: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return struct.pack("<2sHI", b"II", 42, 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4)


def packed(values: np.ndarray) -> bytes:
    """Numbers of 12 bits, two in three bytes."""
    bits = (values.reshape(-1, 1) >> np.arange(11, -1, -1)) & 1
    return np.packbits(bits).tobytes()


WORDS = GREY.astype(np.uint16) * 257
ALPHA = np.stack([GREY, GREY, GREY, 255 - GREY], axis=2)
KINDS: dict[str, Callable[[Path], object]] = {
    "8 bits": lambda path: Image.fromarray(GREY).save(path, "PNG"),
    "16 bits": lambda path: Image.fromarray(WORDS).save(path, "PNG"),
    "16 bits, TIFF": lambda path: Image.fromarray(WORDS).save(path, "TIFF"),
    "16 bits, the higher byte first": lambda path: Image.fromarray(WORDS.astype(">u2")).save(path, "TIFF"),
    "16 bits, 0 is white": lambda path: path.write_bytes(tiff((65535 - WORDS).astype("<u2").tobytes(), 16, 0)),
    "8 bits, 0 is white": lambda path: path.write_bytes(tiff((255 - GREY).tobytes(), 8, 0)),
    "12 bits": lambda path: path.write_bytes(tiff(packed((WORDS / 65535 * 4095).round().astype(np.uint16)), 12)),
    "palette": lambda path: Image.fromarray(GREY).convert("P").save(path, "PNG"),
    "transparent": lambda path: Image.fromarray(ALPHA).save(path, "PNG"),
    "transparent grey": lambda path: Image.fromarray(ALPHA).convert("LA").save(path, "PNG"),
    "transparent palette": lambda path: Image.fromarray(GREY).convert("P").save(path, "PNG", transparency=3),
    "CMYK": lambda path: Image.fromarray(ALPHA[..., :3]).convert("CMYK").save(path, "TIFF"),
    "CMYK, JPEG": lambda path: Image.fromarray(ALPHA[..., :3]).convert("CMYK").save(path, "JPEG", quality=100),
    "grey, JPEG": lambda path: Image.fromarray(GREY).save(path, "JPEG", quality=100),
    "a photograph and its preview": lambda path: Image.fromarray(GREY).save(
        path, "MPO", quality=100, save_all=True, append_images=[Image.fromarray(GREY[:2])]
    ),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("task", [Picture(), Colour()])
@pytest.mark.parametrize("white", [1, 255, 65535])
def test_brightness_is_the_same_however_a_file_stores_it(
    tmp_path: Path, kind: str, task: Picture, white: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(task), "values", (0, white))
    KINDS[kind](tmp_path / "a")
    images, _ = read(labels(tmp_path, "a,benign"), Images(), task)
    expected = (torch.from_numpy(GREY) / 127.5 - 1).expand(1, task.channels, 4, 6)
    torch.testing.assert_close(images, expected, atol=0.03, rtol=0)


def test_one_bit_is_black_or_white(tmp_path: Path) -> None:
    Image.fromarray(GREY > 100).save(tmp_path / "a.png")
    images, _ = read(labels(tmp_path, "a.png,benign"), Images(), Picture())
    assert torch.equal(images[0, 0], torch.from_numpy(GREY > 100) * 2.0 - 1)


@pytest.mark.parametrize(
    ("pixels", "values", "problem"),
    [
        (GREY / np.float32(255), (0, 1), None),
        (GREY / np.float32(255), (0, 255), "numbers of 32 bits, which do not say what is white, where the task decl"),
        (WORDS.astype(np.int32), (0, 255), "numbers of 32 bits, which do not say what is white, where the task decl"),
        (WORDS.astype(np.int32), (0, 1), "numbers of 32 bits, which do not say what is white, where the task declar"),
        (GREY.astype(np.float32) * 10, (0, 2550), None),
        (GREY.astype(np.int32) * 10, (0, 2550), None),
        (GREY.astype(np.uint16) * 10, (0, 2550), None),
        (GREY, (0, 2550), "8 bits a channel, which end at 255, where the task declares values up to 2550; save the"),
    ],
)
def test_values_as_measured_need_a_file_that_can_hold_them(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    pixels: np.ndarray,
    values: tuple[float, float],
    problem: str | None,
) -> None:
    monkeypatch.setattr(Picture, "values", values)
    save(tmp_path, "a.tiff", pixels)
    path = labels(tmp_path, "a.tiff,benign")
    if problem:
        message = complaint(path, Images(), Picture())
        assert message.removeprefix("labels.csv, line 2, column `file`: ").startswith(problem)
    else:
        expected = torch.from_numpy(GREY) / 127.5 - 1
        torch.testing.assert_close(read(path, Images(), Picture())[0][0, 0], expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("name", "save_as", "problem"),
    [
        ("a.tiff", "LAB", "colours of the kind LAB, which this source cannot convert; save the image in grey or RGB"),
        ("a.gif", "P", "not an image of the kinds PNG, JPEG, TIFF, BMP, WEBP, or its start is damaged; convert it"),
    ],
)
def test_other_kinds_of_image_are_named(tmp_path: Path, name: str, save_as: str, problem: str) -> None:
    image = Image.fromarray(ALPHA[..., :3])
    (image.convert(save_as) if save_as == "P" else Image.frombytes("LAB", image.size, image.tobytes())).save(
        tmp_path / name
    )
    message = complaint(labels(tmp_path, f"{name},benign"), Images(), Picture())
    assert message == f"labels.csv, line 2, column `file`: {problem}"


@pytest.mark.parametrize("name", ["a.png", "a.webp"])
def test_a_film_is_not_an_image(tmp_path: Path, name: str) -> None:
    frames = [Image.fromarray(GREY).convert("RGB"), Image.fromarray(255 - GREY).convert("RGB")]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    message = complaint(labels(tmp_path, f"{name},benign"), Images(), Picture())
    assert message.endswith("several images in one file; save them one by one")


def test_other_sizes_are_resized_and_turned_photographs_turned_back(tmp_path: Path) -> None:
    save(tmp_path, "large.png", np.kron(GREY, np.ones((8, 8), np.uint8)))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    save(tmp_path, "turned.png", np.ascontiguousarray(np.rot90(GREY)), exif=exif)
    images, _ = read(labels(tmp_path, "large.png,benign", "turned.png,benign"), Images(), Picture())
    expected = torch.from_numpy(GREY) / 127.5 - 1
    torch.testing.assert_close(images[0, 0], expected, atol=0.1, rtol=0)
    torch.testing.assert_close(images[1, 0], expected)


def test_values_beyond_the_declared_range_are_clipped_and_gaps_become_the_lowest() -> None:
    form = ImageForm(1, (1, 4), (-1000, 400))
    image = torch.tensor([[[float("nan"), -3000, -300, float("inf")]]])
    assert form.finish(image).tolist() == [[[-1, -1, 0, 1]]]


def test_images_are_read_when_they_are_used_and_in_the_order_of_the_table(tmp_path: Path) -> None:
    for number in range(5):
        save(tmp_path, f"{number}.png", np.full((4, 6), number * 50, np.uint8))
    path = labels(tmp_path, *(f"{number}.png,benign" for number in (3, 1, 4)))
    records = Picture().records(Source(path, Images()), Findings())
    (tmp_path / "1.png").unlink()
    assert len(records) == 3
    assert records[0][0].mean().item() == pytest.approx(150 / 127.5 - 1)
    assert records[2][0].mean().item() == pytest.approx(200 / 127.5 - 1)
    with pytest.raises(Exception, match=r"labels\.csv, line 3, column `file`: the file is cut, damaged, or"):
        records[1]


def test_a_transform_of_the_task_is_applied_to_records_and_examples(tmp_path: Path) -> None:
    class Summed(Picture):
        def transform(self, image: torch.Tensor) -> torch.Tensor:
            return image.sum(0)

    save(tmp_path, "a.png")
    assert read(labels(tmp_path, "a.png,benign"), Images(), Summed())[0].shape == (1, 4, 6)
    assert Summed().example()[0].shape[1:] == (4, 6)


def png_of(width: int, height: int) -> bytes:
    """A PNG that claims this size."""
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    parts = [struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
             for kind, body in chunks]  # fmt: skip
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_every_image_that_cannot_be_used_has_its_line(tmp_path: Path) -> None:
    buffer = BytesIO()
    Image.fromarray(np.random.default_rng(1).integers(0, 255, (60, 60), np.uint8)).save(buffer, "PNG")
    files = {
        "cut.png": buffer.getvalue()[:-1500],
        "stub.png": buffer.getvalue()[:10],
        "text.png": b"Mrs Smith",
        "empty.png": b"",
        "bomb.png": png_of(60_000, 60_000),
        "large.png": png_of(11_000, 10_000),
        "page.svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    frames = [Image.fromarray(GREY), Image.fromarray(GREY + 1)]
    frames[0].save(tmp_path / "pages.tiff", save_all=True, append_images=frames[1:])
    kinds = "not an image of the kinds PNG, JPEG, TIFF, BMP, WEBP, or its start is damaged; convert it"
    damaged = "the file is cut, damaged, or of another kind; copy it again, or leave it out"
    large = "larger than 100 megapixels; shrink it, or raise most_megapixels in [data.source]"
    expected_texts = {
        "cut.png": damaged, "stub.png": (kinds, damaged), "text.png": kinds, "empty.png": kinds, "bomb.png": large,
        "large.png": large, "page.svg": kinds, "pages.tiff": "several images in one file; save them one by one",
    }  # fmt: skip
    for name, expected in expected_texts.items():
        message = complaint(labels(tmp_path, f"{name},benign"), Images(), Picture())
        assert message.removeprefix("labels.csv, line 2, column `file`: ") in expected, name


@pytest.mark.parametrize(
    ("name", "sentence_"),
    [
        ("../outside.png", "leads out of this table's folder; name files in it, such as scans/1.png"),
        ("scans/../../outside.png", "leads out of this table's folder"),
        ("/etc/passwd", "leads out of this table's folder"),
        ("scans\\..\\..\\outside.png", "leads out of this table's folder"),
        ("link.png", "a link out of this table's folder; copy the file itself here"),
        ("folder/outside.png", "a link out of this table's folder"),
        ("loop", "there is no such file; copy it here, or leave the record out"),
        ("missing.png", "there is no such file; copy it here, or leave the record out"),
        (
            "INSIDE.png",
            "there is no such file, but one whose name has other capitals or accents; write its name as it is",
        ),
        ("folder/outside.PNG", "there is no such file; copy it here, or leave the record out"),
        ("x" * 300, "there is no such file"),
        ("x" * 2000, "no file name, or a very long one; correct it, or leave the record out"),
        ('""', "no file name"),
        (".", "not a file; name one, or leave the record out"),
        ("pipe", "not a file"),
    ],
)
def test_a_name_may_not_lead_out_of_the_folder(tmp_path: Path, name: str, sentence_: str) -> None:
    folder = tmp_path / "images"
    save(folder, "inside.png")
    save(tmp_path, "outside.png")
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    (folder / "own.png").symlink_to("inside.png")
    (folder / "folder").symlink_to(tmp_path)
    (folder / "loop").symlink_to("loop")
    os.mkfifo(folder / "pipe")
    message = complaint(labels(folder, "own.png,benign", f"{name},benign"), Images(), Picture())
    assert message.startswith(f"labels.csv, line 3, column `file`: {sentence_}")


def test_folders_may_be_named_as_windows_names_them(tmp_path: Path) -> None:
    save(tmp_path / "scans", "a.png")
    assert len(read(labels(tmp_path, "scans\\a.png,benign"), Images(), Picture())[0]) == 1


def test_labels_are_checked_as_any_column_is(tmp_path: Path) -> None:
    for name in "abcd":
        save(tmp_path, f"{name}.png")
    message = complaint(labels(tmp_path, "a.png,benign", "b.png,doubtful", "c.png,", "d.png"), Images(), Picture())
    assert message == (
        "labels.csv, line 3, column `label`: none of the task's 2 values (benign, malignant); correct it (2 more; "
        "`cloister data check` lists them)"
    )
    path = labels(tmp_path, "a.png;benign")
    path.write_text("name;finding\na.png;benign\n")
    own = Images(separator=";", columns={"file": "name", "label": "finding"})
    assert len(read(path, own, Picture())[0]) == 1
    assert "there is no column `file`" in complaint(path, Images(separator=";"), Picture())


def test_a_file_is_listed_once_unless_persons_are_named(tmp_path: Path) -> None:
    class OfPatients(Picture):
        person = "patient"

    save(tmp_path, "a.png")
    save(tmp_path, "b.png")
    (tmp_path / "link.png").symlink_to("a.png")
    again = "the file of line 2 again; leave one out, or have the task name a column for persons"
    for name in ("a.png", "./a.png", "link.png"):
        table = labels(tmp_path, "a.png,benign", "b.png,benign", f"{name},malignant")
        assert complaint(table, Images(), Picture()) == f"labels.csv, line 4, column `file`: {again}"
    path = labels(tmp_path)
    path.write_text("file,label,patient\na.png,benign,1\na.png,malignant,1\n")
    assert len(read(path, Images(), OfPatients())[0]) == 2


def test_a_source_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = labels(tmp_path)
    assert complaint(path, Csv(), Picture()) == (
        "this task reads images, but source in [data] is 'csv'; name images, dicom or nifti"
    )
    assert complaint(path, Images(), Ward()) == (
        "this task reads tables, but source in [data] is 'images'; name csv, parquet, sql or fhir"
    )

    class Volume(Picture):
        size = (4, 4, 4)

    assert "images of 3 dimensions, which source 'images' does not have" in complaint(path, Images(), Volume())


def test_a_folder_is_not_the_table_that_lists_its_images(tmp_path: Path) -> None:
    save(tmp_path, "scans/a.png")
    assert complaint(tmp_path / "scans", Images(), Picture()) == (
        "scans: is a directory; name the table that lists the images, one per line, with a column `file` and the "
        "labels, that this account can read"
    )
