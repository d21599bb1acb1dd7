"""What is timed: problem sizes and maps. The one table of them."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Workload:
    """One size: stride 1, padded so that the output has the size of the image."""

    name: str
    batch: int
    channels: int
    size: int  # height and width
    kernel_size: int
    why: str

    @property
    def padding(self) -> int:
        return self.kernel_size // 2

    @property
    def entries(self) -> int:
        """Elements of the columns."""
        return self.batch * self.channels * self.kernel_size**2 * self.size**2

    def floor_bytes(self, dtype: torch.dtype, map_dtype: torch.dtype) -> tuple[int, int]:
        """Bytes that forward and backward (both gradients) have to move: everything read or written once."""
        image = self.batch * self.channels * self.size**2 * dtype.itemsize
        rates = self.batch * self.size**2 * map_dtype.itemsize
        columns = self.entries * dtype.itemsize
        return columns + image + rates, columns + 2 * image + 2 * rates

    def __str__(self) -> str:
        return f"({self.batch}, {self.channels}, {self.size}, {self.size}) k={self.kernel_size}"


FADC = [  # frequency-adaptive dilated convolution (CVPR 2024)
    Workload("F1", 4, 128, 64, 3, "FADC, first stage"),
    Workload("F2", 4, 256, 32, 3, "FADC, second stage"),
    Workload("F3", 4, 512, 16, 3, "FADC, third stage"),
]

WORKLOADS = {
    "cuda": [
        Workload("S1", 4, 64, 128, 3, "the published benchmark"),
        Workload("S2", 8, 256, 64, 3, "many channels"),
        Workload("S3", 2, 64, 512, 3, "a large image"),
        Workload("S4", 16, 128, 56, 7, "a large kernel"),
        *FADC,
        Workload("tiny", 1, 8, 8, 3, "the time of a call"),
    ],
    "cpu": [
        Workload("C1", 1, 64, 128, 3, "one image"),
        Workload("C2", 2, 16, 64, 3, "few channels"),
        Workload("C3", 1, 32, 56, 7, "a large kernel"),
        *FADC,
        Workload("tiny", 1, 8, 8, 3, "the time of a call"),
    ],
}


def smooth_map(batch: int, size: int, device: torch.device) -> Tensor:
    """What a network predicts: 8 x 8 noise in 0.5 to 2.5, brought up to size."""
    coarse = torch.rand(batch, 1, 8, 8, device=device)
    return 0.5 + 2 * F.interpolate(coarse, (size, size), mode="bicubic", align_corners=True).clamp(0, 1)


def random_map(batch: int, size: int, device: torch.device) -> Tensor:
    """The worst case: another rate for every pixel."""
    return 3 * torch.rand(batch, 1, size, size, device=device)


MAPS = {"smooth": smooth_map, "random": random_map}
