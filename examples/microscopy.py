"""Nuclei under a microscope: does a small U-Net tell them, and the borders between them, better with adaptive rates?

The image and its labels are those that the package `stardist` ships: 512 x 512 pixels, 125 nuclei. Every pixel is
ground, the inside of a nucleus or its border. A network learns from crops of three quadrants and is tested on the
fourth, each quadrant in turn. The networks start with the same weights and see the same crops; they differ in the
second convolution of every block.
"""

import functools
import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import unets
from digits import Pictures
from PIL import Image
from torch import Tensor

CROP = 96  # pixels of a side


def main(arguments: Sequence[str] | None = None) -> None:
    unets.main(STUDY, __doc__, arguments)


@functools.lru_cache(1)
def image_and_classes() -> tuple[Tensor, Tensor]:
    """Read from the files of the package, which is not imported. The brightness is 0 to 1 for all but 2 %."""
    spec = importlib.util.find_spec("stardist")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("the image is in the package stardist: run `pip install --no-deps stardist`")
    folder = Path(spec.origin).parent / "data" / "images"
    image, labels = (np.array(Image.open(folder / f"{name}2d.tif")).astype(np.float32) for name in ("img", "mask"))
    dark, bright = np.percentile(image, (1, 99))
    return torch.tensor((image - dark) / (bright - dark), dtype=torch.float32), classes_of(torch.tensor(labels))


def classes_of(labels: Tensor) -> Tensor:
    """A pixel of a nucleus is at its border if one of its eight neighbours has another label."""
    around = F.pad(labels[None, None], (1, 1, 1, 1), mode="replicate")
    largest, smallest = F.max_pool2d(around, 3, 1)[0, 0], -F.max_pool2d(-around, 3, 1)[0, 0]
    return torch.where(labels == 0, 0, torch.where(largest == smallest, 1, 2))


def quadrants(image: Tensor) -> list[Tensor]:
    return [part for half in image.chunk(2) for part in half.chunk(2, 1)]


def make_pictures(fold: int, seed: int, count: int) -> tuple[Pictures, Pictures]:
    """Crops of three quadrants, turned and mirrored at random, and the whole of the fourth."""
    parts = list(zip(*map(quadrants, image_and_classes()), strict=True))
    image, classes = parts.pop(fold)
    rng = np.random.default_rng((seed, fold))
    images, truths = torch.empty(count, 1, CROP, CROP), torch.empty(count, CROP, CROP, dtype=torch.long)
    for crop, truth in zip(images, truths, strict=True):
        part = parts[rng.integers(len(parts))]
        top, left = rng.integers(0, [size - CROP + 1 for size in part[0].shape])
        turns, mirrored = rng.integers(4), rng.integers(2)
        for whole, place in zip(part, (crop[0], truth), strict=True):
            turned = torch.rot90(whole[top : top + CROP, left : left + CROP], turns)
            place.copy_(turned.flip(1) if mirrored else turned)
    return (images, truths), (image[None, None], classes[None])


STUDY = unets.Study(axes=2, widths=(12, 24, 48), folds=4, make_pictures=make_pictures, steps=160, pictures=400)

if __name__ == "__main__":
    main()
