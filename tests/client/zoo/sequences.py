"""Models of signals and of texts."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from opacus.layers import DPLSTM
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.checkpoint import checkpoint
from typing_extensions import override

from tests.client.zoo.parts import WORDS, Architecture, Last, Mean, Residual, Transposed, by_class, texts

if TYPE_CHECKING:
    from tests.client.zoo.parts import Records

CHANNELS, LENGTH, WIDTH = 2, 8, 8


def _signals() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv1d(CHANNELS, 6, 3), nn.GroupNorm(2, 6), nn.ReLU(), nn.MaxPool1d(2)),
        *(nn.Conv1d(6, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6, 2)),
    )


class Causal(nn.Module):
    """A dilated convolution over the past alone, with weight normalisation (Bai et al., 2018)."""

    def __init__(self, dilation: int) -> None:
        super().__init__()
        self._before = 2 * dilation
        self.layer = weight_norm(nn.Conv1d(WIDTH, WIDTH, 3, dilation=dilation))

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.layer(functional.pad(inputs, (self._before, 0))).relu()
        return outputs


def _tcn() -> nn.Module:
    blocks = [Residual(Causal(dilation)) for dilation in (1, 2)]
    return nn.Sequential(nn.Conv1d(CHANNELS, WIDTH, 1), *blocks, Transposed(), Mean(), nn.Linear(WIDTH, 2))


def _recurrent(layer: nn.Module, width: int = WIDTH) -> nn.Module:
    return nn.Sequential(Transposed(), layer, Last(), nn.Linear(width, 2))


class Given(nn.Module):
    """A GRU with an explicit initial state, as in many textbooks."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.out = nn.GRU(CHANNELS, WIDTH, num_layers=2, dropout=0.1, batch_first=True), nn.Linear(WIDTH, 2)

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        start = torch.zeros(2, len(inputs), WIDTH, device=inputs.device)
        outputs: Tensor = self.out(self.gru(inputs.transpose(1, 2), start)[0].mean(1))
        return outputs


class Cells(nn.Module):
    """A cell, called for each step."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.out = nn.GRUCell(CHANNELS, WIDTH), nn.Linear(WIDTH, 2)

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        state = inputs.new_zeros(len(inputs), WIDTH)
        for step in inputs.unbind(2):
            state = self.cell(step, state)
        outputs: Tensor = self.out(state)
        return outputs


class Packed(nn.Module):
    """An LSTM over texts of several lengths, packed."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, 6, padding_idx=0)
        self.lstm, self.out = nn.LSTM(6, WIDTH, batch_first=True, bidirectional=True), nn.Linear(2 * WIDTH, 2)

    @override
    def forward(self, words: Tensor) -> Tensor:
        lengths = (words != 0).sum(1).clamp(min=1).cpu()
        packed = pack_padded_sequence(self.embedding(words), lengths, batch_first=True, enforce_sorted=False)
        _, (state, _) = self.lstm(packed)
        outputs: Tensor = self.out(torch.cat([state[0], state[1]], 1))
        return outputs


class PackedByOpacus(Packed):
    """The same with Opacus's layer, which sorts what is packed."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = DPLSTM(6, WIDTH, batch_first=True, bidirectional=True)


class TextCNN(nn.Module):
    """Convolutions of several widths, each taken where it is largest (Kim, 2014)."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, 6, padding_idx=0)
        self.convolutions = nn.ModuleList([nn.Conv1d(6, 4, size) for size in (2, 3)])
        self.out = nn.Linear(8, 2)

    @override
    def forward(self, words: Tensor) -> Tensor:
        outputs = self.embedding(words).transpose(1, 2)
        scores: Tensor = self.out(torch.cat([layer(outputs).relu().amax(2) for layer in self.convolutions], 1))
        return scores


class Encoder(nn.Module):
    """Torch's own transformer encoder, with a mask over padding and learned places."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, WIDTH, padding_idx=0), nn.Embedding(LENGTH, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.out = nn.Linear(WIDTH, 2)
        self.register_buffer("position_ids", torch.arange(LENGTH))

    @override
    def forward(self, words: Tensor) -> Tensor:
        there = (words != 0).unsqueeze(2)
        outputs = self.words(words) + self.places(self.position_ids)
        outputs = self.encoder(outputs, src_key_padding_mask=words == 0) * there
        scores: Tensor = self.out(outputs.sum(1) / there.sum(1).clamp(min=1))
        return scores


class Attention(nn.Module):
    """Self-attention of two heads, in linear layers."""

    def __init__(self, *, causal: bool = False) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self._causal = causal

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        query, key, value = (
            layer(inputs).unflatten(2, (2, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        attended = functional.scaled_dot_product_attention(query, key, value, is_causal=self._causal)
        outputs: Tensor = self.out(attended.transpose(1, 2).flatten(2))
        return outputs


def _layer(*, causal: bool = False) -> nn.Module:
    wide = nn.Sequential(nn.Linear(WIDTH, 16), nn.GELU(), nn.Linear(16, WIDTH))
    return nn.Sequential(Residual(nn.LayerNorm(WIDTH), Attention(causal=causal)), Residual(nn.LayerNorm(WIDTH), wide))


def _linear_transformer() -> nn.Module:
    return nn.Sequential(nn.Embedding(WORDS, WIDTH, padding_idx=0), _layer(), Mean(), nn.Linear(WIDTH, 2))


class Tied(nn.Module):
    """A language model whose words go in and come out by the same weights."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.layer = nn.Embedding(WORDS, WIDTH), _layer(causal=True)
        self.out = nn.Linear(WIDTH, WORDS, bias=False)
        self.out.weight = self.words.weight
        nn.init.normal_(self.words.weight, std=0.3)

    @override
    def forward(self, words: Tensor) -> Tensor:
        outputs: Tensor = self.out(self.layer(self.words(words)))
        return outputs.transpose(1, 2)


def following(count: int) -> Records:
    """Sequences `(n, 8)` in which each word is the one after the last, and what comes next."""
    words = (torch.randint(WORDS, (count, 1)) + torch.arange(LENGTH + 1)) % WORDS
    return words[:, :-1], words[:, 1:]


class LowRank(nn.Module):
    """A frozen linear layer with a trained adapter of rank two beside it (Hu et al., 2022)."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base.requires_grad_(requires_grad=False)
        self.down, self.up = nn.Linear(base.in_features, 2, bias=False), nn.Linear(2, base.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.base(inputs) + self.up(self.down(inputs))
        return outputs


class BareLowRank(LowRank):
    """The same, its two matrices parameters of its own."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__(base)
        del self.down, self.up
        self.a = nn.Parameter(torch.randn(2, base.in_features) * 0.3)
        self.b = nn.Parameter(torch.zeros(base.out_features, 2))

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.base(inputs) + inputs @ self.a.T @ self.b.T
        return outputs


def _adapted(adapter: type[LowRank]) -> nn.Module:
    model = _linear_transformer().requires_grad_(requires_grad=False)
    for part in model.modules():
        if isinstance(part, Attention):
            part.query, part.value = adapter(part.query), adapter(part.value)  # type: ignore[assignment]
    model[-1].requires_grad_(requires_grad=True)  # type: ignore[index]
    return model


class Checkpointed(nn.Module):
    """Computes its layers again in the backward pass, for want of memory."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.layers = nn.Embedding(WORDS, WIDTH), nn.ModuleList([_layer(), _layer()])
        self.out = nn.Linear(WIDTH, 2)

    @override
    def forward(self, words: Tensor) -> Tensor:
        outputs = self.words(words)
        for layer in self.layers:
            outputs = cast("Tensor", checkpoint(layer, outputs, use_reentrant=False))
        scores: Tensor = self.out(outputs.mean(1))
        return scores


signals = by_class(CHANNELS, LENGTH)

SEQUENCES = {
    "1D CNN": Architecture("bookkeeping", _signals, signals),
    "temporal convolutions, weight_norm": Architecture("vmap", _tcn, signals),
    "nn.LSTM": Architecture("vmap", lambda: _recurrent(nn.LSTM(CHANNELS, WIDTH, batch_first=True)), signals),
    "nn.LSTM, two layers, both ways": Architecture(
        "vmap", lambda: _recurrent(nn.LSTM(CHANNELS, 4, 2, batch_first=True, bidirectional=True), 8), signals,
        learning_rate=2.0),
    "nn.LSTM with proj_size": Architecture(
        "autograd", lambda: _recurrent(nn.LSTM(CHANNELS, WIDTH, batch_first=True, proj_size=3), 3), signals,
        learning_rate=2.0),
    "nn.GRU": Architecture("vmap", lambda: _recurrent(nn.GRU(CHANNELS, WIDTH, batch_first=True)), signals),
    "nn.GRU, two layers, given a start": Architecture("vmap", Given, signals, learning_rate=2.0),
    "nn.RNN, both ways": Architecture(
        "vmap", lambda: _recurrent(nn.RNN(CHANNELS, WIDTH, batch_first=True, bidirectional=True), 2 * WIDTH), signals),
    "nn.GRUCell, step by step": Architecture("vmap", Cells, signals),
    "opacus.layers.DPLSTM": Architecture(
        "bookkeeping", lambda: _recurrent(DPLSTM(CHANNELS, WIDTH, batch_first=True)), signals),
    "nn.LSTM over packed texts": Architecture("autograd", Packed, texts(), learning_rate=1.0),
    "opacus.layers.DPLSTM over packed texts": Architecture("autograd", PackedByOpacus, texts(), learning_rate=1.0),
    "text CNN": Architecture("bookkeeping", TextCNN, texts()),
    "nn.EmbeddingBag": Architecture(
        "vmap", lambda: nn.Sequential(nn.EmbeddingBag(WORDS, 6, padding_idx=0), nn.Linear(6, 2)), texts()),
    "transformer encoder, padding mask": Architecture("vmap", Encoder, texts()),
    "transformer in linear layers": Architecture("bookkeeping", _linear_transformer, texts()),
    "language model, tied weights": Architecture("vmap", Tied, following, learning_rate=1.0),
    "LoRA in linear layers": Architecture("bookkeeping", lambda: _adapted(LowRank), texts()),
    "LoRA in bare parameters": Architecture("vmap", lambda: _adapted(BareLowRank), texts()),
    "checkpointed layers": Architecture("bookkeeping", Checkpointed, texts()),
}  # fmt: skip
