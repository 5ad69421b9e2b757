"""The cache of decoded images: the same records with and without it; never anything stale or damaged; bounded."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import time
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

from client.data import decoded
from client.data.decoded import Decoded, code_of, make_room
from client.data.fitness import load_records
from client.data.site_records import InMemory
from client.data.sources.listed_files import ImageRecords
from client.data.sources.options import Images
from client.data.sources.registry import Source
from client.settings import Data
from client.task.probe import Example
from privacy.at_rest.protection import protect, unprotect
from privacy.at_rest.sealed import MAGIC
from privacy.at_rest.vault import Secret
from privacy.at_rest.vaults import forget
from tests.client.data.sources.cohorts import Picture
from tests.federations import task_name
from tests.studies import Tiny

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from torch import Tensor

    from client.data.stored import Stored

COUNT, PHRASE = 6, "correct horse battery staple"


class Larger(Picture):
    """The same images, of another size."""

    size: ClassVar[tuple[int, ...]] = (8, 12)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Path]:
    """A site's folder with six images, and a table that lists them."""
    for number in range(COUNT):
        paint(tmp_path, number, seed=number)
    rows = [f"{number}.png,{'benign' if number % 2 else 'malignant'}" for number in range(COUNT)]
    (tmp_path / "labels.csv").write_text("\n".join(["file,label", *rows]), encoding="utf-8")
    yield tmp_path
    forget(tmp_path)


def paint(folder: Path, number: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 7), np.uint8)
    Image.fromarray(pixels).save(folder / f"{number}.png")


def loaded(site: Path, task: Picture | None = None, **options: Any) -> Any:  # noqa: ANN401 - settings
    task, path = task or Picture(), site / "labels.csv"
    data = Data(path, "patients", **options)
    own = load_records(task, task_name(type(task)), Example.of(task), Source(path, Images(), site), data)
    return own.records


def images(site: Path, task: Picture | None = None, **options: Any) -> Tensor:  # noqa: ANN401 - settings
    inputs: Tensor
    inputs, _ = loaded(site, task, **options).whole()
    return inputs


def cache_of(site: Path) -> Decoded:
    records: Stored = loaded(site, cache=True)
    dataset = records.feed.reader.dataset
    assert isinstance(dataset, ImageRecords)
    assert dataset.cache
    return dataset.cache


def entries(site: Path) -> list[Path]:
    return sorted((site / "cache").rglob("*.safetensors"))


def test_images_are_the_same_bit_for_bit_and_are_decoded_once(site: Path) -> None:
    without = images(site)
    assert not (site / "cache").exists()
    assert torch.equal(images(site, cache=True), without)
    assert len(entries(site)) == COUNT
    assert {path.stat().st_mode & 0o777 for path in entries(site)} == {0o600}
    assert torch.equal(images(site, cache=True), without)
    cache = cache_of(site)
    cache.put(cache.key_of(site / "0.png"), site / "0.png", torch.full((1, 4, 6), 0.5))
    assert torch.equal(images(site, cache=True)[0], torch.full((1, 4, 6), 0.5))  # it is the cache that answers


def test_a_label_comes_from_the_table_as_it_is_now(site: Path) -> None:
    images(site, cache=True)
    table = site / "labels.csv"
    table.write_text(table.read_text("utf-8").replace("malignant", "benign"), "utf-8")
    assert loaded(site, cache=True).whole()[1].tolist() == [0] * COUNT


def test_a_file_that_changed_is_decoded_anew_though_its_date_did_not(site: Path) -> None:
    images(site, cache=True)
    state = (site / "3.png").stat()
    paint(site, 3, seed=99)
    os.utime(site / "3.png", ns=(state.st_atime_ns, state.st_mtime_ns))
    assert torch.equal(images(site, cache=True), images(site))
    assert len(entries(site)) == COUNT + 1


def test_a_file_that_changes_while_it_is_decoded_is_not_kept(site: Path) -> None:
    cache = cache_of(site)
    key = cache.key_of(site / "3.png")
    paint(site, 3, seed=99)
    cache.put(key, site / "3.png", torch.ones(1, 4, 6))
    assert cache.get(key) is None


def test_another_task_form_or_version_of_a_package_decodes_anew(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images(site, cache=True)
    assert images(site, Larger(), cache=True).shape == (COUNT, 1, 8, 12)
    task = Picture()
    codes = {code_of(task, task.form), code_of(Larger(), task.form), code_of(task, Larger().form)}
    monkeypatch.setattr(decoded, "distributions", list)  # as if everything were of another version
    codes.add(code_of(task, task.form))
    monkeypatch.setattr(decoded, "package_digest", lambda *_: "another")  # as if somebody had edited the task
    codes.add(code_of(task, task.form))
    assert len(codes) == 5


def test_the_code_of_a_task_covers_cloister_and_the_tasks_package(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[str]()
    monkeypatch.setattr(decoded, "package_digest", lambda package, _: asked.append(package))
    code_of(Picture(), Picture().form)
    assert asked == ["client", "tests"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:0],
        lambda data: data[:-1],
        lambda data: data[: len(data) // 2],
        lambda data: bytes(len(data)),
        lambda data: data[:-5] + bytes([data[-5] ^ 1]) + data[-4:],
        lambda data: data.replace(b'"F32"', b'"I32"'),
        lambda data: data.replace(b"[1,4,6]", b"[1,6,4]"),
        lambda data: data.replace(b'"image"', b'"imagf"'),
    ],
    ids=["empty", "one byte short", "cut", "zeros", "a bit", "another type", "another shape", "another name"],
)
def test_a_damaged_entry_is_noticed_removed_and_made_again(
    site: Path, damage: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    whole = images(site, cache=True)
    before = {path: path.read_bytes() for path in entries(site)}
    for path, data in before.items():
        path.write_bytes(damage(data))
        assert path.read_bytes() != data
    assert torch.equal(images(site, cache=True), whole)
    assert caplog.text.count("is damaged; its image is decoded anew") == COUNT
    assert {path: path.read_bytes() for path in entries(site)} == before


def test_a_protected_site_keeps_them_encrypted_and_other_processes_read_them_without_the_passphrase(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = images(site, cache=True)
    plain = entries(site)[0].read_bytes()
    assert protect(site, Secret.of_passphrase(PHRASE), ()) == COUNT
    assert all(path.read_bytes().startswith(MAGIC) for path in entries(site))
    for path in entries(site)[:3]:
        path.unlink()
    entries(site)[0].write_bytes(plain)  # an entry in the clear, or of another name, does not open
    assert torch.equal(images(site, cache=True), whole)
    assert all(path.read_bytes().startswith(MAGIC) for path in entries(site))
    sent = pickle.dumps(cache_of(site))
    forget(site)
    monkeypatch.delenv("CLOISTER_PASSPHRASE", raising=False)
    cache: Decoded = pickle.loads(sent)  # noqa: S301 - as processes that read ahead get it
    image = cache.get(cache.key_of(site / "1.png"))
    assert image is not None
    assert torch.equal(image, whole[1])
    unprotect(site)
    assert torch.equal(images(site, cache=True), whole)


def fill(site: Path, cache: Decoded, first: int) -> None:
    """Put and get the same entries as other processes, in another order."""
    gc.freeze()  # see `tests.interrupted`
    for number in range(200):
        place = site / f"{(first + number) % COUNT}.png"
        key = cache.key_of(place)
        found = cache.get(key)
        assert found is None or torch.equal(found, torch.full((1, 4, 6), float(place.stem)))
        if found is None or number % 2:  # entries are also replaced
            cache.put(key, place, torch.full((1, 4, 6), float(place.stem)))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # these processes only read and write files
def test_processes_share_it_without_harm_and_keep_to_its_bound(site: Path) -> None:
    task = Picture()
    cache = Decoded.open(site, task, task.form, 100_000, 4)
    processes = [multiprocessing.get_context("fork").Process(target=fill, args=(site, cache, n)) for n in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    assert [path.name for path in (site / "cache").rglob(".*")] == []
    one = entries(site)[0].stat().st_size
    for path in entries(site):
        path.unlink()
    small = Decoded.open(site, task, task.form, 5 * one, 2)  # room for two entries each, and a bit
    for first in range(0, 4, 2):
        own: Decoded = pickle.loads(pickle.dumps(small))  # noqa: S301 - as processes that read ahead get it
        for number in range(first, first + 3):
            own.put(own.key_of(site / f"{number}.png"), site / f"{number}.png", torch.ones(1, 4, 6))
    assert len(entries(site)) == 4


def test_a_full_cache_drops_what_was_not_used_for_a_week_and_a_smaller_one_the_oldest(site: Path) -> None:
    images(site, cache=True)
    found, now = entries(site), time.time()
    size = sum(path.stat().st_size for path in found)
    for path in found[:2]:
        os.utime(path, (now, now - 8 * 24 * 3600))
    assert make_room(site / "cache", 2 * size) == size  # not full
    cache = cache_of(site)
    old = next(number for number in range(COUNT) if cache.key_of(site / f"{number}.png") in found[0].name)
    assert cache.get(cache.key_of(site / f"{old}.png")) is not None  # which counts as use
    assert make_room(site / "cache", size) < size
    assert entries(site) == [found[0], *found[2:]]
    (site / "cache" / found[0].parent.name / ".x.1.new").write_bytes(b"left")
    os.utime(site / "cache" / found[0].parent.name / ".x.1.new", (now, now - 2 * 24 * 3600))
    assert make_room(site / "cache", size // 2) <= size // 2
    assert list((site / "cache").rglob(".*")) == []


def test_a_task_that_reads_its_own_records_is_told_that_they_are_not_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "records.csv").write_text("a,b,y\n1,2,3\n4,5,6\n")
    task, path = Tiny(), tmp_path / "records.csv"
    data = Data(path, "patients", cache=True)
    own = load_records(task, task_name(Tiny), Example.of(task), Source(path, None, tmp_path), data)
    assert isinstance(own.records, InMemory)
    assert "is for tasks that declare images; tests.studies:Tiny reads its own" in caplog.text
    assert not (tmp_path / "cache").exists()
