"""Small pictures, and networks of which a part is frozen or stays at each site."""

from pathlib import Path

import torch
from torch import Tensor, nn
from typing_extensions import override

from tests.studies import Tiny

SIDE = 6


class Net(nn.Module):
    """A convolutional backbone, a normalisation and a linear head."""

    def __init__(self, *, frozen: bool) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU())
        if not frozen:
            self.backbone = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU())
        self.backbone.requires_grad_(not frozen)
        self.norm, self.head = nn.GroupNorm(2, 4), nn.Linear(4, 1)
        self._frozen = frozen

    @override
    def train(self, mode: bool = True) -> "Net":
        super().train(mode)
        self.backbone.train(mode and not self._frozen)  # the statistics of a frozen backbone are constants
        return self

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.norm(self.backbone(inputs)).mean((2, 3)))
        return outputs


class Pictures(Tiny):
    """All of the network is trained and shared."""

    @override
    def model(self) -> nn.Module:
        return Net(frozen=False)

    @override
    def load(self, path: Path) -> tuple[Tensor, Tensor]:
        inputs, targets = super().load(path)
        return drawn(inputs), targets

    @override
    def example(self) -> tuple[Tensor, Tensor]:
        inputs, targets = super().example()
        return drawn(inputs), targets

    @override
    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        return {"near": ((outputs - targets).abs() < 1).float()[:, 0]}


class Transfer(Pictures):
    """The backbone is frozen."""

    @override
    def model(self) -> nn.Module:
        return Net(frozen=True)


class LocalHead(Pictures):
    """FedPer: each site has its own head."""

    local = ("head.*",)


class LocalNorm(Transfer):
    """FedBN without statistics, over a frozen backbone: each site has its own normalisation."""

    local = ("norm.*",)


class InTurn(LocalHead):
    """FedRep: two steps for the head, then the body's."""

    local_steps = 2


class NoneInTurn(Pictures):
    """Has steps for what stays at the site, and keeps nothing there."""

    local_steps = 2


class Misnamed(Pictures):
    """Names a parameter that the network lacks."""

    local = ("heads.*",)


class AllLocal(Pictures):
    """Shares nothing."""

    local = ("*",)


def drawn(numbers: Tensor) -> Tensor:
    """Return a picture for each pair of numbers: `(n, 1, SIDE, SIDE)`."""
    across, down = torch.meshgrid(torch.linspace(-1, 1, SIDE), torch.linspace(0, 1, SIDE), indexing="ij")
    return (numbers[:, :1, None, None] * across + numbers[:, 1:, None, None] * down) / 4
