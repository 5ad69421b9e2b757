"""Models of images and volumes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from typing_extensions import override

from tests.client.zoo.parts import Architecture, Residual, by_class

if TYPE_CHECKING:
    from tests.client.zoo.parts import Records

SIDE = 8


def _lenet() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout2d(0.1)),
        *(nn.Conv2d(4, 8, 3), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(8, 2)),
    )


def _resnet() -> nn.Module:
    def block(width: int) -> nn.Module:
        return Residual(
            *(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.GroupNorm(2, width), nn.ReLU()),
            *(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.GroupNorm(2, width)),
        )

    return nn.Sequential(
        *(nn.Conv2d(1, 4, 3, padding=1), block(4), nn.ReLU()),
        *(nn.Conv2d(4, 8, 3, stride=2, padding=1), block(8), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)),
    )


class Dense(nn.Module):
    """Each layer sees what all before it have made (Huang et al., 2017), normalised over groups."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [nn.Sequential(nn.GroupNorm(1, n), nn.ReLU(), nn.Conv2d(n, 3, 3, padding=1)) for n in (1, 4, 7)]
        )
        self.out = nn.Linear(10 * SIDE * SIDE, 2)

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        for layer in self.layers:
            inputs = torch.cat([inputs, layer(inputs)], 1)
        outputs: Tensor = self.out(inputs.flatten(1))
        return outputs


class Squeeze(nn.Module):
    """Weighs channels by what all pixels of a record say (Hu et al., 2018)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, 2), nn.ReLU(), nn.Linear(2, width), nn.Hardsigmoid())

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = inputs * self.layers(inputs.mean((2, 3)))[:, :, None, None]
        return outputs


def _mobilenet() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.GroupNorm(2, 8), nn.Hardswish()),
        *(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.GroupNorm(2, 8), nn.Hardswish(), Squeeze(8)),
        *(nn.Conv2d(8, 8, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)),
    )


class ConvNext(nn.Module):
    """Wide depthwise kernels, norms over channels, and a learned scale of each layer (Liu et al., 2022)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depthwise = nn.Conv2d(1, 6, 2, stride=2), nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.layers = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 6))
        self.scale, self.out = nn.Parameter(torch.full((6,), 0.1)), nn.Linear(6, 2)

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        outputs = self.stem(inputs)
        outputs = outputs.permute(0, 2, 3, 1) + self.scale * self.layers(self.depthwise(outputs).permute(0, 2, 3, 1))
        scores: Tensor = self.out(outputs.mean((1, 2)))
        return scores


def _instance() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 4, 3), nn.InstanceNorm2d(4, affine=True), nn.PReLU()),
        *(nn.Conv2d(4, 4, 3, stride=2), nn.ELU(), nn.Flatten(), nn.Linear(16, 2)),
    )


class UNet(nn.Module):
    """Down, up again, and across (Ronneberger et al., 2015): a class for each pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.ReLU())
        self.middle = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(4, 8, 3, padding=1), nn.ReLU())
        self.up, self.out = nn.ConvTranspose2d(8, 4, 2, stride=2), nn.Conv2d(8, 2, 1)

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        across = self.down(inputs)
        outputs: Tensor = self.out(torch.cat([across, self.up(self.middle(across))], 1))
        return outputs


class Upsampled(UNet):
    """The same, up by interpolation."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(8, 4, 3, padding=1))  # type: ignore[assignment]


def outlined(count: int) -> Records:
    """Images `(n, 1, 8, 8)`, and which pixels are bright `(n, 8, 8)`."""
    inputs = torch.randn(count, 1, SIDE, SIDE)
    return inputs, (inputs[:, 0] > 0.3).long()


class VisionTransformer(nn.Module):
    """Patches as words (Dosovitskiy et al., 2021), with torch's own encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 8, 4, stride=4)
        self.head, self.places = nn.Parameter(torch.zeros(1, 1, 8)), nn.Parameter(torch.randn(1, 5, 8) * 0.1)
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.out = nn.Linear(8, 2)

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        patches = self.patches(inputs).flatten(2).transpose(1, 2)
        outputs = torch.cat([self.head.expand(len(inputs), -1, -1), patches], 1) + self.places
        scores: Tensor = self.out(self.encoder(outputs)[:, 0])
        return scores


class Transfer(nn.Module):
    """A frozen backbone with batch normalisation, which stays in evaluation, and a trained head."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            *(nn.Conv2d(1, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(2), nn.Flatten()),
        ).requires_grad_(requires_grad=False)
        self.head = nn.Linear(32, 2)
        self.register_buffer("mean", torch.tensor([0.1]).view(1, 1, 1))

    @override
    def train(self, mode: bool = True) -> Transfer:
        super().train(mode)
        self.backbone.eval()
        return self

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.backbone(inputs - self.mean))
        return outputs


class Unfrozen(Transfer):
    """The same; the backbone's norms are trained too, with the statistics that they came with."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone[1].requires_grad_(requires_grad=True)


def _volumes() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv3d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.AdaptiveAvgPool3d(2)),
        *(nn.Flatten(), nn.Linear(32, 2)),
    )


class Instances(nn.Module):
    """Attention over the tiles of a record's slide (Ilse et al., 2018)."""

    def __init__(self) -> None:
        super().__init__()
        self.tile = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 6))
        self.score, self.out = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 1)), nn.Linear(6, 2)

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        tiles = torch.stack([self.tile(tile) for tile in inputs.unbind(1)], 1)
        outputs: Tensor = self.out((self.score(tiles).softmax(1) * tiles).sum(1))
        return outputs


images = by_class(1, SIDE, SIDE)

IMAGES = {
    "CNN with pooling and dropout": Architecture("bookkeeping", _lenet, images),
    "ResNet with GroupNorm": Architecture("bookkeeping", _resnet, images),
    "DenseNet with GroupNorm": Architecture("bookkeeping", Dense, images, learning_rate=0.2),
    "MobileNet with squeeze and excitation": Architecture("bookkeeping", _mobilenet, images, learning_rate=2.0),
    "ConvNeXt": Architecture("vmap", ConvNext, images),
    "CNN with InstanceNorm": Architecture("vmap", _instance, images, learning_rate=0.2),
    "U-Net, transposed convolution": Architecture("vmap", UNet, outlined),
    "U-Net, interpolation": Architecture("bookkeeping", Upsampled, outlined),
    "vision transformer": Architecture("vmap", VisionTransformer, images),
    "volumes, Conv3d": Architecture("vmap", _volumes, by_class(1, 6, 6, 6)),
    "attention over tiles": Architecture("bookkeeping", Instances, by_class(3, 1, 4, 4)),
    "frozen backbone, trained head": Architecture("bookkeeping", Transfer, images),
    "frozen backbone, norms trained": Architecture("vmap", Unfrozen, images),
}
