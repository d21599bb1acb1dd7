"""Brain tissue: does a small U-Net tell grey from white matter better with adaptive rates, in three dimensions?

The volume is the template MNI152 that the package `nilearn` ships: a T1-weighted image, the mean of 152 heads, and maps
of how much of each voxel is grey and white matter. At 2 mm, every voxel is ground, grey or white matter, whichever
there is most of. A network learns from crops of the front half and is tested on the back half, and the other way round.
(The template is symmetric: of left and right, each would give away the other.) The networks start with the same weights
and see the same crops; they differ in the second convolution of every block.
"""

import functools
import gzip
import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import unets
from digits import Pictures
from torch import Tensor

CROP = 20  # voxels of a side
SHAPE = 197, 233, 189  # of the template, from left to right, from back to front, and upward


def main(arguments: Sequence[str] | None = None) -> None:
    unets.main(STUDY, __doc__, arguments)


def read(path: Path) -> Tensor:
    """A volume of bytes: NIfTI-1, of whose header no more is read than where the voxels start.

    See https://nifti.nimh.nih.gov/nifti-1.
    """
    content = gzip.decompress(path.read_bytes())
    sizes = np.frombuffer(content, "<i2", 4, offset=40)
    (kind,) = np.frombuffer(content, "<i2", 1, offset=70)
    (start,) = np.frombuffer(content, "<f4", 1, offset=108)
    if tuple(sizes) != (3, *SHAPE) or kind != 2:
        raise ValueError(f"expected {path} to have {SHAPE} bytes, but got sizes {sizes[1:]} of the type {kind}")
    voxels = np.frombuffer(content, np.uint8, offset=int(start))
    return torch.tensor(voxels.reshape(SHAPE[::-1])).float().permute(2, 1, 0)


@functools.lru_cache(1)
def image_and_classes() -> tuple[Tensor, Tensor]:
    """Read from the files of the package, which is not imported; the box around the brain, with brightness 0 to 1."""
    spec = importlib.util.find_spec("nilearn")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("the template is in the package nilearn: run `pip install --no-deps nilearn`")
    folder = Path(spec.origin).parent / "datasets" / "data"
    volumes = [read(folder / f"mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz") for name in ("t1", "gm", "wm")]
    image, grey, white = F.avg_pool3d(torch.stack(volumes) / 255, 2)
    return in_box(image, torch.stack([1 - grey - white, grey, white]).argmax(0))


def in_box(image: Tensor, classes: Tensor, margin: int = 2) -> tuple[Tensor, Tensor]:
    """The part of both that has anything but ground, with a margin."""
    for axis in range(3):
        where = classes.amax([other for other in range(3) if other != axis]).nonzero()
        start = max(0, int(where.min()) - margin)
        length = min(classes.shape[axis], int(where.max()) + 1 + margin) - start
        image, classes = image.narrow(axis, start, length), classes.narrow(axis, start, length)
    return image, classes


def make_pictures(fold: int, seed: int, count: int) -> tuple[Pictures, Pictures]:
    """Crops of one half, and the whole of the other."""
    image, classes = image_and_classes()
    halves = list(zip(image.chunk(2, 1), classes.chunk(2, 1), strict=True))
    whole, truth = halves.pop(fold)
    rng = np.random.default_rng((seed, fold))
    images = torch.empty(count, 1, CROP, CROP, CROP)
    truths = torch.empty(count, CROP, CROP, CROP, dtype=torch.long)
    for index in range(count):
        corner = rng.integers(0, [size - CROP + 1 for size in halves[0][0].shape])
        place = tuple(slice(start, start + CROP) for start in corner)
        images[index, 0], truths[index] = (volume[place] for volume in halves[0])
    return (images, truths), (whole[None, None], truth[None])


STUDY = unets.Study(axes=3, widths=(6, 12, 24), folds=2, make_pictures=make_pictures, steps=150, pictures=200)

if __name__ == "__main__":
    main()
