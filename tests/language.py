"""A text classifier of transformers with LoRA of peft, from a configuration alone: nothing is downloaded."""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional
from transformers import BertConfig, BertForSequenceClassification
from typing_extensions import override

from client.task.task import Task


class Classifier(nn.Module):
    """A classifier whose input is one tensor `(n, 2, length)`: tokens and attention mask."""

    def __init__(self, config: BertConfig, rank: int) -> None:
        super().__init__()
        lora = LoraConfig(
            task_type="SEQ_CLS", r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules=["query", "value"]
        )
        self.adapted = get_peft_model(BertForSequenceClassification(config), lora)

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        scores: Tensor = self.adapted(input_ids=inputs[:, 0], attention_mask=inputs[:, 1]).logits
        return scores


class Intents(Task):
    """Three intents, in made-up sentences of a small vocabulary."""

    words: ClassVar[int] = 50
    length: ClassVar[int] = 12
    rank: ClassVar[int] = 2
    config: ClassVar[dict[str, Any]] = {
        "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
        "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
    }  # fmt: skip

    @override
    def model(self) -> nn.Module:
        config = BertConfig(vocab_size=self.words, max_position_embeddings=self.length, **self.config)
        config.num_labels = 3
        return Classifier(config, self.rank)

    @override
    def load(self, path: Path) -> tuple[Tensor, Tensor]:
        rows = np.genfromtxt(path, delimiter=",", skip_header=1)
        return sentences(self.words, self.length, len(rows), 1), torch.from_numpy(rows[:, -1] % 3).long()

    @override
    def example(self) -> tuple[Tensor, Tensor]:
        return sentences(self.words, self.length, 6, 0), torch.arange(6) % 3

    @override
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(outputs, targets)


class Base(Intents):
    """A hundred million frozen parameters (BERT's own 12 layers of width 768), to which LoRA adds half a percent."""

    words = 30_000
    length = 64
    rank = 15
    config: ClassVar[dict[str, Any]] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def sentences(words: int, length: int, count: int, seed: int) -> Tensor:
    """Return sentences of different lengths, `(count, 2, length)`: tokens, and 1 where there is one."""
    rng = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, words, (count, length), generator=rng)
    mask = (torch.arange(length) < length - torch.arange(count)[:, None] % (length // 2)).long()
    return torch.stack([tokens * mask, mask], 1)
