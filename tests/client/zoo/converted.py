"""Models that are refused as they are, and taken once converted: how, and the mode that they get."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from opacus.validators import ModuleValidator
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.nn.utils.parametrize import remove_parametrizations
from typing_extensions import override

from tests.probes import CLASSES, Toy, head

if TYPE_CHECKING:
    from collections.abc import Callable

    from client.settings import Gradients

    Records = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Conversion:
    """How to convert a model, in the words of docs/models.md and as a test does it."""

    words: str
    model: Callable[[], nn.Module]
    convert: Callable[[nn.Module], nn.Module]
    mode: Gradients
    example: Callable[[], Records]

    @property
    def before(self) -> Toy:
        """The task that is refused."""
        return Toy(self.model, example=self.example)

    @property
    def after(self) -> Toy:
        """The task that is taken."""
        return Toy(lambda: self.convert(self.model()), example=self.example)


class Still(nn.Module):
    """A frozen body in evaluation mode under a new head."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body, self.head = body.requires_grad_(requires_grad=False), nn.Linear(CLASSES, CLASSES)

    @override
    def train(self, mode: bool = True) -> Still:
        super().train(mode)
        self.body.eval()
        return self

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.body(inputs))
        return outputs


def pictures() -> Records:
    """Eight pictures of two channels: `(8, 2, 5, 5)` and `(8,)`."""
    return torch.randn(8, 2, 5, 5), torch.arange(8) % CLASSES


def _vectors() -> Records:
    return Toy().example()


def _normalised() -> nn.Module:
    layers = nn.Conv2d(2, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(32, CLASSES))


CONVERTED: dict[str, Conversion] = {
    "batch normalisation, to be trained": Conversion(
        "`opacus.validators.ModuleValidator.fix(model)`: `nn.GroupNorm` in its place",
        _normalised, ModuleValidator.fix, "bookkeeping", pictures),
    "batch normalisation, pretrained": Conversion(
        "`requires_grad_(False)` and evaluation mode, under a head that is trained",
        _normalised, Still, "bookkeeping", pictures),
    "`spectral_norm`": Conversion(
        '`torch.nn.utils.parametrize.remove_parametrizations(layer, "weight")`: gradients are clipped anyway',
        lambda: spectral_norm(head()), lambda model: remove_parametrizations(model, "weight"), "bookkeeping", _vectors),
    "weights in float64 or 16 bits": Conversion(
        '`model.float()`; `precision = "bfloat16"` in `site.toml` computes in 16 bits',
        lambda: head().bfloat16(), nn.Module.float, "bookkeeping", _vectors),
}  # fmt: skip
