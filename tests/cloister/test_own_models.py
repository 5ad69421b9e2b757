"""A Hugging Face classifier with LoRA, and a folder of images, are trained to the end by real agents, as a user would.

Fast tests of the rules: `tests/client/test_lora.py`, `tests/client/data/sources`, `tests/cloister/test_own_study.py`.
"""

from __future__ import annotations

import re
import subprocess
import sys
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from shutil import copy, copytree
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from cloister.processes import Processes
from server.process import open_joining_port
from server.settings import read_consortium
from tests.cloister.test_own_study import LONG, SITES, unused_ports

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tests.cloister.in_process import Run

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900)]

RUN = """
name = "own"
task = "{task}"
rounds = 2
[training]
steps_per_round = 1
sample_rate = 1.0
learning_rate = 1.0
[privacy]
epsilon = 3.0
delta = 1e-5
max_grad_norm = 0.3
[encryption]
update_bound = 2.0
[cohort.sizes]
north = 24
south = 24
east = 24
"""

CLASSIFIER = """
import csv
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn import functional
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from cloister import Task

FOLDER = Path(__file__).parent / "bert"
LABELS = ("card", "transfer")
LENGTH = 8


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        model = AutoModelForSequenceClassification.from_pretrained(FOLDER, local_files_only=True)
        lora = LoraConfig(task_type="SEQ_CLS", r=2, lora_alpha=4, lora_dropout=0.0, target_modules=["query", "value"])
        self.adapted = get_peft_model(model, lora)

    def forward(self, input_ids, attention_mask):
        return self.adapted(input_ids=input_ids, attention_mask=attention_mask).logits


class Wishes(Task):
    metrics = ["accuracy"]

    def model(self):
        return Classifier()

    def load(self, path):
        rows = list(csv.DictReader(path.open(encoding="utf-8", newline="")))
        tokenizer = AutoTokenizer.from_pretrained(FOLDER, local_files_only=True)
        read = tokenizer([row["text"] for row in rows], padding="max_length", truncation=True, max_length=LENGTH,
                         return_tensors="pt")
        inputs = {name: read[name] for name in ("input_ids", "attention_mask")}
        return inputs, torch.tensor([LABELS.index(row["label"]) for row in rows])

    def example(self):
        mask = (torch.arange(LENGTH) < torch.arange(3, 7)[:, None]).long()
        return {"input_ids": torch.randint(5, 12, (4, LENGTH)) * mask, "attention_mask": mask}, torch.arange(4) % 2

    def loss(self, outputs, targets):
        return functional.cross_entropy(outputs, targets)
"""

PRETRAINED = """
import sys
from pathlib import Path
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

words = "[PAD] [UNK] [CLS] [SEP] [MASK] my card was stolen please send money".split()
folder = Path(sys.argv[1])
folder.mkdir()
(folder / "vocab.txt").write_text("\\n".join(words))
BertTokenizerFast.from_pretrained(folder).save_pretrained(folder)
BertForSequenceClassification(BertConfig(
    vocab_size=len(words), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
    max_position_embeddings=16, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
)).save_pretrained(folder)
"""

CHEST = """
from torch import nn
from torch.nn import functional

from cloister import Category, ImageTask


class Chest(ImageTask):
    size = (32, 32)
    label = Category("finding", ["none", "nodule"])
    metrics = ["accuracy"]

    def model(self):
        return nn.Sequential(nn.Conv2d(1, 4, 5, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(196, 2))

    def loss(self, outputs, targets):
        return functional.cross_entropy(outputs, targets)
"""


def train(cloister: Run, task: str, settings: Mapping[str, str], prepare: Callable[[Path], None]) -> dict[str, str]:
    """Found a consortium here, have three sites join, check their records and train; return what each command said."""
    ports, said = unused_ports(), dict[str, str]()

    def run(*command: str) -> None:
        done = cloister(*command)
        assert done.returncode == 0, done.stdout + done.stderr
        said[" ".join(command[:2])] = done.stdout + done.stderr

    run("init", "own", "--host", "localhost", "--online", "--port", ports[0], "--joining-port", ports[1])
    with ExitStack() as joining:
        open_joining_port(read_consortium(Path("server")), joining)
        for site in SITES:
            run("invite", site)
            run("join", f"{site}.invitation")
    for site in SITES:
        path = Path(site, "site.toml")
        text = path.read_text(encoding="utf-8").replace("tasks = []", f'tasks = ["{task}"]')
        for key, value in settings.items():
            text = re.sub(rf"^{key} = \S+", value, text, flags=re.MULTILINE)
        path.write_text(text, encoding="utf-8")
        prepare(Path(site))
    Path("run.toml").write_text(RUN.format(task=task), encoding="utf-8")
    files = ("--out", "run.manifest")
    run("sign", "run.toml", *files)
    with Processes() as processes:
        for site in SITES:
            processes.start(site, Path(f"{site}-check.log"), "data", "check", site)
            processes.wait(site, 3 * LONG)
        processes.start("server", Path("server.log"), "server", "server", "run.manifest")
        for site in SITES:
            processes.start(site, Path(f"{site}.log"), "agent", site)
        processes.wait("server", 5 * LONG)
    return said


def models() -> dict[str, bytes]:
    return {site: next(Path(site, "models").glob("own-*.safetensors")).read_bytes() for site in SITES}


@pytest.mark.skipif(not (find_spec("peft") and find_spec("transformers")), reason="needs the extra `text`")
def test_a_hugging_face_classifier_with_weights_on_disk(
    tmp_path: Path, cloister: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    subprocess.run([sys.executable, "-c", PRETRAINED, "bert"], check=True, timeout=300)
    Path("wishes.py").write_text(CLASSIFIER, encoding="utf-8")

    def prepare(site: Path) -> None:
        texts = ["my card was stolen,card", "please send money,transfer"] * 15
        (site / "texts.csv").write_text("\n".join(["text,label", *texts]), encoding="utf-8")
        copy("wishes.py", site)
        copytree("bert", site / "bert")

    train(cloister, "wishes:Wishes", {"file": 'file = "texts.csv"'}, prepare)
    assert len(set(models().values())) == 1
    names = set(load_file(next(Path("north", "models").glob("own-*.safetensors"))))
    assert all("lora_" in name or "classifier" in name for name in names)  # the language model itself is not in it
    for site in SITES:
        log = Path(f"{site}.log").read_text(encoding="utf-8")
        assert re.search(r"round 2 of 2: loss \d\.\d+, accuracy", log)
        for text in (log, Path(f"{site}-check.log").read_text(encoding="utf-8")):
            assert "it/s" not in text  # no bars
            assert "Warning: " not in text.replace("WARNING", "")


def test_a_folder_of_images(tmp_path: Path, cloister: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def prepare(site: Path) -> None:
        draw = np.random.default_rng(len(site.name))
        (site / "images" / "scans").mkdir(parents=True)
        rows = ["file,finding"]
        for number in range(30):
            pixels = draw.normal(90, 20, (70, 80))
            pixels[20:40, 20:40] += 120 * (number % 2)
            name = f"scans/{number:04}.png"
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(site / "images" / name)
            rows.append(f"{name},{['none', 'nodule'][number % 2]}")
        (site / "images" / "labels.csv").write_text("\n".join(rows), encoding="utf-8")
        (site / "chest.py").write_text(CHEST, encoding="utf-8")

    changes = {"file": 'file = "images/labels.csv"\nsource = "images"\ncache = true\nloader_workers = 1'}
    train(cloister, "chest:Chest", changes, prepare)
    assert len(set(models().values())) == 1
    for site in SITES:
        assert "round 2 of 2: loss" in Path(f"{site}.log").read_text(encoding="utf-8")
        assert len(list(Path(site, "cache").rglob("*.safetensors"))) == 30
