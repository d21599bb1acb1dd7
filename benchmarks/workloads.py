"""The problem sizes and positions that are timed."""

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Workload:
    """One size: stride 1, padded so that the output has the size of the image."""

    name: str
    batch: int
    channels: int
    size: tuple[int, ...]
    kernel_size: int  # along every axis, odd
    why: str
    source: str = "rates"
    padding_mode: str = "zeros"

    @property
    def axes(self) -> int:
        return len(self.size)

    @property
    def padding(self) -> int:
        return self.kernel_size // 2

    @property
    def parameters(self) -> int:
        """Channels of the positions."""
        return 1 if self.source == "rates" else self.axes * self.kernel_size**self.axes

    @property
    def image_entries(self) -> int:
        return self.batch * self.channels * math.prod(self.size)

    @property
    def entries(self) -> int:
        """Elements of the columns."""
        return self.image_entries * self.kernel_size**self.axes

    def floor_bytes(self, dtype: torch.dtype) -> tuple[int, int]:
        """Bytes that forward and backward (both gradients) have to move: everything read or written once."""
        positions = self.batch * self.parameters * math.prod(self.size)
        forward = self.entries + self.image_entries + positions
        return forward * dtype.itemsize, (forward + self.image_entries + positions) * dtype.itemsize

    def __str__(self) -> str:
        words = [str((self.batch, self.channels, *self.size)), f"k={self.kernel_size}"]
        words += [self.source] if self.source != "rates" else []
        words += [self.padding_mode] if self.padding_mode != "zeros" else []
        return " ".join(words)


FADC = [  # frequency-adaptive dilated convolution (CVPR 2024)
    Workload("F1", 4, 128, (64, 64), 3, "FADC, first stage"),
    Workload("F2", 4, 256, (32, 32), 3, "FADC, second stage"),
    Workload("F3", 4, 512, (16, 16), 3, "FADC, third stage"),
]

WORKLOADS = {
    "cuda": [
        Workload("S1", 4, 64, (128, 128), 3, "the published benchmark"),
        Workload("S2", 8, 256, (64, 64), 3, "many channels"),
        Workload("S3", 2, 64, (512, 512), 3, "a large image"),
        Workload("S4", 16, 128, (56, 56), 7, "a large kernel"),
        *FADC,
        Workload("tiny", 1, 8, (8, 8), 3, "the time of a call"),
    ],
    "cpu": [
        Workload("C1", 1, 64, (128, 128), 3, "one image"),
        Workload("C2", 2, 16, (64, 64), 3, "few channels"),
        Workload("C3", 1, 32, (56, 56), 7, "a large kernel"),
        *FADC,
        Workload("tiny", 1, 8, (8, 8), 3, "the time of a call"),
    ],
}


def offsets(workload: Workload) -> Workload:
    return replace(workload, source="offsets")


def modes(*workloads: Workload) -> list[Workload]:
    return [replace(workload, padding_mode=mode) for workload in workloads for mode in ("border", "reflection")]


_SIGNALS = [
    Workload("L1", 8, 64, (16384,), 3, "speech"),
    Workload("L2", 16, 256, (4096,), 7, "many channels, a large kernel"),
]
_VOLUMES = [  # three-dimensional FADC, whose border is continued
    Workload("V1", 2, 32, (64, 64, 32), 3, "second stage", padding_mode="border"),
    Workload("V2", 2, 32, (128, 128, 64), 3, "first stage", padding_mode="border"),
]
_S1, _S2, *_ = WORKLOADS["cuda"]

# Other axes, sources and padding modes, by section.
CORE = {
    "cuda": {
        "one axis": _SIGNALS,
        "three axes": [*_VOLUMES, replace(_VOLUMES[0], padding_mode="zeros")],
        "offsets": [*map(offsets, [_S1, _S2, *FADC]), offsets(replace(_VOLUMES[0], padding_mode="zeros"))],
        "padding modes": [*modes(_S1, offsets(_S1)), replace(_VOLUMES[0], padding_mode="reflection")],
    },
    "cpu": {
        "one axis": [Workload("L3", 1, 64, (16384,), 3, "speech")],
        "three axes": [
            Workload("V3", 1, 32, (16, 32, 32), 3, "FADC, third stage"),
            Workload("V4", 1, 128, (8, 16, 16), 3, "FADC, fourth stage"),
        ],
        "offsets": [
            offsets(Workload("A1", 1, 32, (60, 80), 3, "ALIKED, an eighth of the image")),
            offsets(Workload("A2", 1, 128, (28, 28), 3, "InternImage, second stage")),
            offsets(Workload("V5", 1, 64, (7, 32, 18), 3, "D3Dnet, seven frames")),
        ],
        "padding modes": [
            *modes(Workload("C1", 1, 64, (128, 128), 3, "one image")),
            *modes(Workload("V3", 1, 32, (16, 32, 32), 3, "FADC, third stage")),
        ],
    },
}


def smooth(workload: Workload, device: torch.device) -> Tensor:
    """What a network predicts: noise of 8 pixels along every axis in 0.5 to 2.5, brought up to size."""
    coarse = torch.rand(workload.batch, workload.parameters, *[8] * workload.axes, device=device)
    mode = ("linear", "bicubic", "trilinear")[workload.axes - 1]
    return 0.5 + 2 * F.interpolate(coarse, workload.size, mode=mode, align_corners=True).clamp(0, 1)


def random(workload: Workload, device: torch.device) -> Tensor:
    """The worst case: other positions for every pixel."""
    return 3 * torch.rand(workload.batch, workload.parameters, *workload.size, device=device)


MAPS = {"smooth": smooth, "random": random}


def positions(workload: Workload, map_name: str, device: torch.device) -> Tensor:
    """Rates, or offsets about zero that are spread as widely."""
    rates = MAPS[map_name](workload, device)
    return rates if workload.source == "rates" else rates - 1.5
