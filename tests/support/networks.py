"""Small networks with the structure and the names of well-known ones."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Bottleneck(nn.Module):
    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample = None
        if stride > 1 or in_channels != 4 * width:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width)
            )

    def forward(self, input: Tensor) -> Tensor:
        skip = input if self.downsample is None else self.downsample(input)
        x = F.relu(self.bn1(self.conv1(input)))
        x = F.relu(self.bn2(self.conv2(x)))
        return F.relu(self.bn3(self.conv3(x)) + skip)


class ResNet50(nn.Module):
    """Of 50 layers, with the names of torchvision's; 64 channels in its widest bottleneck, not 512."""

    def __init__(self, width: int = 8, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        channels = width
        for stage, blocks in enumerate((3, 4, 6, 3)):
            inner = width * 2**stage
            layers = []
            for block in range(blocks):
                layers.append(Bottleneck(channels, inner, 2 if stage and not block else 1))
                channels = 4 * inner
            setattr(self, f"layer{stage + 1}", nn.Sequential(*layers))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, classes)

    def features(self, input: Tensor) -> Tensor:
        x = self.maxpool(F.relu(self.bn1(self.conv1(input))))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))

    def forward(self, input: Tensor) -> Tensor:
        return self.fc(self.avgpool(self.features(input)).flatten(1))


class ConvNeXt(nn.Module):
    """Depthwise convolutions of 7 × 7 between norms over the channels, of two stages."""

    class Block(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.conv_dw = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
            self.norm = nn.LayerNorm(channels)
            self.mlp = nn.Sequential(nn.Linear(channels, 2 * channels), nn.GELU(), nn.Linear(2 * channels, channels))
            self.gamma = nn.Parameter(torch.ones(channels))

        def forward(self, input: Tensor) -> Tensor:
            x = self.gamma * self.mlp(self.norm(self.conv_dw(input).permute(0, 2, 3, 1)))
            return input + x.permute(0, 3, 1, 2)

    def __init__(self, width: int = 8, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 4, 4)
        self.stages = nn.Sequential(
            *(self.Block(width) for _ in range(2)),
            nn.Conv2d(width, 2 * width, 2, 2),
            *(self.Block(2 * width) for _ in range(2)),
        )
        self.head = nn.Linear(2 * width, classes)

    def forward(self, input: Tensor) -> Tensor:
        return self.head(self.stages(self.stem(input)).mean((2, 3)))


def conv_norm_relu(conv: nn.Module, channels: int) -> list[nn.Module]:
    return [conv, nn.BatchNorm2d(channels), nn.ReLU()]


class ASPPPooling(nn.Sequential):
    def forward(self, input: Tensor) -> Tensor:
        return F.interpolate(super().forward(input), size=input.shape[-2:], mode="bilinear", align_corners=False)


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling with the names of torchvision's."""

    def __init__(self, in_channels: int, rates: Sequence[int], channels: int) -> None:
        super().__init__()

        def branch(*window: int) -> list[nn.Module]:
            kernel_size, rate = window
            padding = rate if kernel_size > 1 else 0
            conv = nn.Conv2d(in_channels, channels, kernel_size, padding=padding, dilation=rate, bias=False)
            return conv_norm_relu(conv, channels)

        self.convs = nn.ModuleList(
            [
                nn.Sequential(*branch(1, 1)),
                *(nn.Sequential(*branch(3, rate)) for rate in rates),
                ASPPPooling(nn.AdaptiveAvgPool2d(1), *branch(1, 1)),
            ]
        )
        together = nn.Conv2d(len(self.convs) * channels, channels, 1, bias=False)
        self.project = nn.Sequential(*conv_norm_relu(together, channels), nn.Dropout(0.5))

    def forward(self, input: Tensor) -> Tensor:
        return self.project(torch.cat([conv(input) for conv in self.convs], 1))


def deeplab_head(in_channels: int, classes: int, rates: Sequence[int] = (1, 2), channels: int = 8) -> nn.Sequential:
    """With the names of torchvision's ``DeepLabHead``."""
    conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
    last = nn.Conv2d(channels, classes, 1)
    return nn.Sequential(ASPP(in_channels, rates, channels), *conv_norm_relu(conv, channels), last)


class DeepLabV3(nn.Module):
    def __init__(self, width: int = 4, classes: int = 5) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            *conv_norm_relu(nn.Conv2d(3, width, 3, 2, 1), width), Bottleneck(width, width, 2), Bottleneck(4 * width, width, 1)
        )  # fmt: skip
        self.classifier = deeplab_head(4 * width, classes)

    def forward(self, input: Tensor) -> Tensor:
        return F.interpolate(self.classifier(self.backbone(input)), size=input.shape[-2:], mode="bilinear")


class UNet3d(nn.Module):
    """With one skip connection."""

    def __init__(self, width: int = 4, classes: int = 2) -> None:
        super().__init__()

        def block(in_channels: int, channels: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv3d(in_channels, channels, 3, padding=1), nn.InstanceNorm3d(channels), nn.LeakyReLU(0.01)
            )

        self.down = block(1, width)
        self.pool = nn.MaxPool3d(2)
        self.bottom = block(width, 2 * width)
        self.up = nn.ConvTranspose3d(2 * width, width, 2, 2)
        self.join = block(2 * width, width)
        self.head = nn.Conv3d(width, classes, 1)

    def forward(self, input: Tensor) -> Tensor:
        skip = self.down(input)
        return self.head(self.join(torch.cat([skip, self.up(self.bottom(self.pool(skip)))], 1)))


class Causal(nn.Module):
    """A stack of gated convolutions along time that pad on both sides and cut the end off."""

    def __init__(self, width: int = 4, classes: int = 3) -> None:
        super().__init__()
        rates = (1, 2, 4, 1, 2, 4)
        self.first = nn.Conv1d(1, width, 1)
        self.gates = nn.ModuleList(nn.Conv1d(width, 2 * width, 3, padding=2 * r, dilation=r) for r in rates)
        self.outs = nn.ModuleList(nn.Conv1d(width, width, 1) for _ in rates)
        self.last = nn.Conv1d(width, classes, 1)

    def forward(self, input: Tensor) -> Tensor:
        x = self.first(input)
        for gate, out in zip(self.gates, self.outs):
            signal, opening = gate(x)[..., : x.shape[-1]].chunk(2, 1)
            x = x + out(signal.tanh() * opening.sigmoid())
        return self.last(x)
