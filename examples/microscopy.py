"""Nuclei under a microscope: does a small U-Net tell them, and the borders between them, better with adaptive rates?

The image and its labels are those that the package `stardist` ships: 512 x 512 pixels, 125 nuclei. Every pixel is
ground, the inside of a nucleus or its border. A network learns from crops of three quadrants and is tested on the
fourth, each quadrant in turn. The networks start with the same weights and see the same crops; they differ in the
second convolution of every block.
"""

import functools
import importlib.util
import itertools
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import digits
import numpy as np
import torch
import torch.nn.functional as F
from digits import Job, Pictures, Result, Scores
from PIL import Image
from torch import Tensor, nn

from ddu_ops import DynamicDilationConv2d, deform_unfold2d
from ddu_ops.recorder import RateRecorder

CROP = 96  # pixels of a side
CLASSES = 3  # the ground, the inside of a nucleus, its border
WIDTHS = 12, 24, 48
FOLDS = 4
SETTINGS = ("AdamW", 3e-3), ("SGD", 1e-1), ("AdamW", 1e-3), ("SGD", 3e-2)


def main(arguments: Sequence[str] | None = None) -> None:
    args = digits.parser(__doc__, steps=300).parse_args(arguments)
    jobs = [
        Job(name, *setting, seed, args.steps, args.pictures, args.device, autocast)
        for seed in range(args.seeds)
        for index, setting in enumerate(SETTINGS)
        for name in VARIANTS
        for autocast in (False, True)
        if name in MAIN or (index == 0 and not autocast)
    ]
    results = [Result(*pair) for pair in zip(jobs, digits.side_by_side(train, jobs, args.workers), strict=True)]
    digits.write(args.results, results, table(results) + "\n" + costs(jobs[0]))


# The image -----------------------------------------------------------------------------------------------------------


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


# The networks --------------------------------------------------------------------------------------------------------


Make = Callable[[int, int], nn.Module]  # from channels to channels, without a bias


class Deformable(nn.Module):
    """A deformable convolution: its offsets start at zero."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.weight = nn.Conv2d(in_channels, out_channels, 3, bias=False).weight
        self.offset = nn.Conv2d(in_channels, 18, 3, padding=1)
        nn.init.zeros_(self.offset.weight)
        nn.init.zeros_(self.offset.bias)

    def forward(self, input: Tensor) -> Tensor:
        columns = deform_unfold2d(input, 3, self.offset(input).float(), padding=1)
        return (self.weight.flatten(1) @ columns).unflatten(2, input.shape[2:])


class Pyramid(nn.Module):
    """A third of the channels at each of the dilations 1, 2 and 4."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Conv2d(in_channels, out_channels // 3, 3, padding=d, dilation=d, bias=False) for d in (1, 2, 4)
        )

    def forward(self, input: Tensor) -> Tensor:
        return torch.cat([branch(input) for branch in self.branches], 1)


def convolution(in_channels: int, out_channels: int, size: int = 3) -> nn.Module:
    return nn.Conv2d(in_channels, out_channels, size, padding=size // 2, bias=False)


def adaptive(in_channels: int, out_channels: int, **options: bool) -> nn.Module:
    return DynamicDilationConv2d(in_channels, out_channels, 3, padding=1, bias=False, **options)


class Network(nn.Module):
    """A U-Net of three levels, with two convolutions in each of its blocks."""

    def __init__(self, make: Make, widths: Sequence[int] = WIDTHS) -> None:
        super().__init__()

        def block(in_channels: int, out_channels: int) -> nn.Module:
            return nn.Sequential(
                convolution(in_channels, out_channels),
                nn.BatchNorm2d(out_channels),
                nn.ReLU(),
                make(out_channels, out_channels),
                nn.BatchNorm2d(out_channels),
                nn.ReLU(),
            )

        self.down = nn.ModuleList(block(*pair) for pair in zip((1, *widths[:-1]), widths, strict=True))
        self.up = nn.ModuleList(block(fine + coarse, fine) for fine, coarse in itertools.pairwise(widths))
        self.classifier = nn.Conv2d(widths[0], CLASSES, 1)

    def forward(self, input: Tensor) -> Tensor:
        levels = [self.down[0](input)]
        for block in self.down[1:]:
            levels.append(block(F.max_pool2d(levels[-1], 2)))
        output = levels.pop()
        for block in reversed(self.up):
            fine = levels.pop()
            output = block(torch.cat([fine, F.interpolate(output, fine.shape[2:], mode="nearest")], 1))
        return self.classifier(output)


PLAIN = "plain"
RATES = "rate map"
MAIN = PLAIN, RATES
WIDER = "plain, as many parameters as with a rate map"
VARIANTS: dict[str, Make] = {
    PLAIN: convolution,
    WIDER: convolution,
    RATES: adaptive,
    "rate per axis": functools.partial(adaptive, per_axis=True),
    "deformable": Deformable,
    "dilations 1, 2, 4 side by side": Pyramid,
    "5 × 5": functools.partial(convolution, size=5),
}


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def make(job: Job) -> Network:
    torch.manual_seed(job.seed)
    widths = WIDTHS
    if job.name == WIDER:
        wanted = parameters(Network(VARIANTS[RATES]))
        while parameters(Network(convolution, widths)) < wanted:
            widths = (*widths[:-1], widths[-1] + 1)
        torch.manual_seed(job.seed)
    network = Network(VARIANTS[job.name], widths)
    torch.manual_seed(job.seed)  # all see the same batches
    return network


# Training ------------------------------------------------------------------------------------------------------------


def train(job: Job) -> Scores:
    """The mean over the folds."""
    of_folds = [train_fold(job, fold) for fold in range(FOLDS)]
    return {key: float(np.mean([scores[key] for scores in of_folds])) for key in of_folds[0]}


def train_fold(job: Job, fold: int) -> Scores:
    pictures, test = make_pictures(fold, job.seed, job.pictures)
    network = make(job)
    scores = {"loss": digits.fit(network, pictures, job), **digits.evaluate(network, test)}
    if any(isinstance(part, DynamicDilationConv2d) for part in network.modules()):
        with RateRecorder(network, every=1, collapse=1.0) as recorder, torch.no_grad():
            network.train()(test[0].to(job.device))
            recorder.step()
        histories = recorder.history.values()
        scores["rate"] = float(np.mean([history.mean[-1] for history in histories]))
        scores["below a half"] = float(np.mean([history.below_half[-1] for history in histories]))
    return scores


def table(results: Sequence[Result]) -> str:
    """The mIoU of the plain network, and by how much the others exceed it, seed by seed."""
    runs = digits.grouped(results, lambda job: ((job.name, job.autocast), (job.optimizer, job.learning_rate)))
    rows = []
    for variant in digits.grouped(results, lambda job: (job.name, job.autocast)):
        name, autocast = variant
        row = [name + (", bfloat16" if autocast else "")]
        for setting in SETTINGS:
            scores = [run["mIoU"] for run in runs.get((variant, setting), [])]
            plain = [run["mIoU"] for run in runs[(PLAIN, autocast), setting]]
            if name != PLAIN:
                scores = [score - other for score, other in zip(scores, plain, strict=False)]
            row.append(digits.spread(scores, ".3f" if name == PLAIN else "+.3f") if scores else "")
        first = runs[variant, SETTINGS[0]]
        for key, form in (("rate", ".2f"), ("below a half", ".0%")):
            values = [run.get(key, math.nan) for run in first]
            row.append("" if np.isnan(values).any() else f"{np.mean(values):{form}}")
        rows.append(row)
    header = [f"{optimizer} {learning_rate:g}" for optimizer, learning_rate in SETTINGS]
    return digits.markdown(["second convolution", *header, "rate at the end", "below a half"], rows)


def costs(job: Job) -> str:
    """Parameters, and time and memory of a step of training with nothing beside it."""
    pictures, _ = make_pictures(0, 0, job.pictures)
    on_gpu = job.device.startswith("cuda")
    rows = []
    for name in VARIANTS:
        network, steps = make(job._replace(name=name)), min(job.steps, 30)
        digits.fit(network, pictures, job._replace(steps=3))
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        digits.fit(network, pictures, job._replace(steps=steps))
        milliseconds = (time.perf_counter() - start) / steps * 1000
        memory = f"{torch.cuda.max_memory_allocated() / 2**20:.0f} MiB" if on_gpu else ""
        rows.append([name, f"{parameters(network):,}", f"{milliseconds:.1f} ms", memory])
    return digits.markdown(["second convolution", "parameters", "a step of training", "memory"], rows)


if __name__ == "__main__":
    main()
