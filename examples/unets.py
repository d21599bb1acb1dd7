"""What the studies of nuclei and of brain tissue share: U-Nets that differ in one convolution of every block.

Each network learns from crops of a part of one image, or volume, and is tested on the rest; the parts take turns, and
the score of a seed is the mean over them.
"""

import functools
import itertools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import digits
import numpy as np
import torch
import torch.nn.functional as F
from digits import Job, Pictures, Result, Scores
from torch import Tensor, nn

import ddu_ops
from ddu_ops import DilationPredictor, layers
from ddu_ops.recorder import RateRecorder

SETTINGS = ("AdamW", 3e-3), ("SGD", 1e-1), ("AdamW", 1e-3), ("SGD", 3e-2)

Make = Callable[[int, int, int], nn.Module]  # a layer on so many axes, from channels to channels, without a bias


class Study(NamedTuple):
    """What one study has of its own."""

    axes: int
    widths: tuple[int, ...]  # channels of each level, divisible by the number of DILATIONS
    folds: int
    make_pictures: Callable[[int, int, int], tuple[Pictures, Pictures]]  # fold, seed, count: for training and testing
    steps: int
    pictures: int


# The networks --------------------------------------------------------------------------------------------------------


DILATIONS = 1, 2, 4
BESIDE = 1e-4  # how far beside the kink of interpolation FADC starts


def convolution(axes: int, in_channels: int, out_channels: int, size: int = 3, **options: Any) -> nn.Module:
    kinds: Any = nn.Conv2d, nn.Conv3d
    return kinds[axes - 2](in_channels, out_channels, size, **{"padding": size // 2, "bias": False, **options})


def adaptive(axes: int, in_channels: int, out_channels: int, *, start: float = 0.0, **options: Any) -> nn.Module:
    """A convolution with predicted rates, which start at one, or so far beside."""
    kinds: Any = ddu_ops.DynamicDilationConv2d, ddu_ops.DynamicDilationConv3d
    layer = kinds[axes - 2](in_channels, out_channels, 3, padding=1, bias=False, **options)
    nn.init.constant_(layer.rate.bias, start / layer.rate.pace)
    return layer


def deformable(axes: int, in_channels: int, out_channels: int, *, start: float = 0.0, pace: float = 1.0) -> nn.Module:
    """A convolution with predicted offsets and factors; the offsets start at zero, or so far beside."""
    kinds: Any = ddu_ops.DeformConv2d, ddu_ops.DeformConv3d
    layer = kinds[axes - 2](in_channels, out_channels, 3, padding=1, bias=False, predict=True)
    with torch.no_grad():
        layer.offset.bias[: axes * 3**axes].fill_(start)
    if pace != 1:
        layer.offset = Slow(layer.offset, pace)
    return layer


class Slow(nn.Module):
    """Offsets that leave zero at a pace, as rates leave one."""

    def __init__(self, predictor: Any, pace: float) -> None:
        super().__init__()
        self.predictor, self.mask, self.pace = predictor, predictor.mask, pace

    def forward(self, input: Tensor) -> tuple[Tensor, Tensor]:
        offset, mask = self.predictor(input)
        return self.pace * offset, mask


def fadc(axes: int, in_channels: int, out_channels: int) -> nn.Module:
    if axes == 2:
        return layers.FrequencyAdaptiveConv2d(in_channels, out_channels, bias=False)
    return layers.FrequencyAdaptiveConv3d(in_channels, out_channels)


class Pyramid(nn.Module):
    """A third of the channels at each of the dilations."""

    def __init__(self, axes: int, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            convolution(axes, in_channels, out_channels // len(DILATIONS), padding=d, dilation=d) for d in DILATIONS
        )

    def forward(self, input: Tensor) -> Tensor:
        return torch.cat([branch(input) for branch in self.branches], 1)


class Network(nn.Module):
    """A U-Net with two convolutions in each of its blocks, the second one made by ``make``."""

    def __init__(self, axes: int, make: Make, widths: Sequence[int]) -> None:
        super().__init__()
        norms: Any = nn.BatchNorm2d, nn.BatchNorm3d
        norm = norms[axes - 2]

        def block(in_channels: int, out_channels: int) -> nn.Module:
            return nn.Sequential(
                convolution(axes, in_channels, out_channels),
                norm(out_channels),
                nn.ReLU(),
                make(axes, out_channels, out_channels),
                norm(out_channels),
                nn.ReLU(),
            )

        self.pool = F.max_pool2d if axes == 2 else F.max_pool3d
        self.down = nn.ModuleList(block(*pair) for pair in zip((1, *widths[:-1]), widths, strict=True))
        self.up = nn.ModuleList(block(fine + coarse, fine) for fine, coarse in itertools.pairwise(widths))
        self.classifier = convolution(axes, widths[0], 3, 1, bias=True)

    def forward(self, input: Tensor) -> Tensor:
        levels = [self.down[0](input)]
        for block in self.down[1:]:
            levels.append(block(self.pool(levels[-1], 2)))
        output = levels.pop()
        for block in reversed(self.up):
            fine = levels.pop()
            output = block(torch.cat([fine, F.interpolate(output, fine.shape[2:], mode="nearest")], 1))
        return self.classifier(output)


PLAIN = "plain"
RATES = "rate map"
OFFSETS = "deformable convolution"
MAIN = PLAIN, RATES, OFFSETS  # with all settings
WIDER = {f"plain, as many parameters as the {name}": name for name in (RATES, OFFSETS)}
VARIANTS: dict[str, Make] = {
    PLAIN: convolution,
    **dict.fromkeys(WIDER, convolution),
    RATES: adaptive,
    "rate map, starting at 1.0001": functools.partial(adaptive, start=BESIDE),
    "rate per axis": functools.partial(adaptive, per_axis=True),
    OFFSETS: deformable,
    "deformable convolution, starting at 0.0001": functools.partial(deformable, start=BESIDE),
    "deformable convolution, at a pace of 0.1": functools.partial(deformable, pace=0.1),
    "FADC": fadc,
    "dilations 1, 2, 4 side by side": Pyramid,
    "kernel of 5": functools.partial(convolution, size=5),
}


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def make(study: Study, job: Job) -> Network:
    widths = study.widths
    if job.name in WIDER:
        wanted = parameters(Network(study.axes, VARIANTS[WIDER[job.name]], widths))
        while parameters(Network(study.axes, convolution, widths)) < wanted:
            widths = (*widths[:-1], widths[-1] + 1)
    torch.manual_seed(job.seed)
    network = Network(study.axes, VARIANTS[job.name], widths)
    torch.manual_seed(job.seed)  # all see the same batches
    return network


# Training ------------------------------------------------------------------------------------------------------------


def main(study: Study, description: str, arguments: Sequence[str] | None) -> None:
    parser = digits.parser(description, study.steps)
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin no network after these [%(default)s]")
    parser.set_defaults(pictures=study.pictures)
    args = parser.parse_args(arguments)
    jobs = [
        Job(name, *setting, seed, args.steps, args.pictures, args.device, autocast)
        for settings, autocast in ((SETTINGS[:2], False), (SETTINGS[:2], True), (SETTINGS[2:], False))
        for setting in settings
        for seed in range(args.seeds)
        for name in VARIANTS
        if name in MAIN or (setting == SETTINGS[0] and not autocast)
    ]
    start = time.perf_counter()
    steps = costs(study, jobs[0])  # before anything runs beside them
    # A network for each fold, so that none keeps the others waiting.
    pairs = list(itertools.product(jobs, range(study.folds)))
    seconds = args.seconds - (time.perf_counter() - start)
    scores = list(digits.side_by_side(functools.partial(train, study), pairs, args.workers, seconds))
    results = []
    for index, job in enumerate(jobs):
        of_folds = scores[index * study.folds : (index + 1) * study.folds]
        if len(of_folds) == study.folds:
            results.append(Result(job, {key: float(np.mean([s[key] for s in of_folds])) for key in of_folds[0]}))
    digits.write(args.results, results, table(results) + "\n" + steps)


def train(study: Study, pair: tuple[Job, int]) -> Scores:
    job, fold = pair
    pictures, test = study.make_pictures(fold, job.seed, job.pictures)
    network = make(study, job)
    scores = {"loss": digits.fit(network, pictures, job), **digits.evaluate(network, test)}
    if any(isinstance(part, DilationPredictor) for part in network.modules()):
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
            if name != PLAIN:
                plain = [run["mIoU"] for run in runs.get(((PLAIN, autocast), setting), [])]
                scores = [score - other for score, other in zip(scores, plain, strict=False)]
            row.append(digits.spread(scores, ".3f" if name == PLAIN else "+.3f") if scores else "")
        first = runs.get((variant, SETTINGS[0]), [])
        for key, form in (("rate", ".2f"), ("below a half", ".0%")):
            values = [run.get(key, math.nan) for run in first]
            row.append("" if np.isnan(values).any() else f"{np.mean(values):{form}}")
        rows.append(row)
    header = [f"{optimizer} {learning_rate:g}" for optimizer, learning_rate in SETTINGS]
    return digits.markdown(["second convolution", *header, "rate at the end", "below a half"], rows)


def costs(study: Study, job: Job) -> str:
    """Parameters, and time and memory of a step of training with nothing beside it."""
    pictures, _ = study.make_pictures(0, 0, job.pictures)
    on_gpu = job.device.startswith("cuda")
    rows = []
    for name in VARIANTS:
        network, steps = make(study, job._replace(name=name)), min(job.steps, 30)
        digits.fit(network, pictures, job._replace(steps=3))
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        digits.fit(network, pictures, job._replace(steps=steps))
        milliseconds = (time.perf_counter() - start) / steps * 1000
        memory = f"{torch.cuda.max_memory_allocated() / 2**20:.0f} MiB" if on_gpu else ""
        rows.append([name, f"{parameters(network):,}", f"{milliseconds:.1f} ms", memory])
    return digits.markdown(["second convolution", "parameters", "a step of training", "memory"], rows)
