"""Digits at three sizes: does an adaptive head train at least as well as the fixed one that it replaces?

Digits of 8, 16 and 32 pixels lie anywhere in a picture, and the network is not told which is where. Networks with a
DeepLab head of three dilation rates learn from the same pictures, from the same initial weights. They differ in what
multiplies the rates alone: nothing, or a map from a predictor; the default one, or one that could be.
"""

import functools
import math
import time
from collections.abc import Callable, Sequence

import digits
import numpy as np
import torch
import torch.nn.functional as F
from digits import CLASSES, Job, Result, Scores
from torch import Tensor, nn

from ddu_ops import DilationPredictor, layers

SCALES = 1, 2, 4
CHANNELS = 48
RATES = 1, 2, 4
SETTINGS = ("AdamW", 3e-3), ("SGD", 1e-1), ("AdamW", 1e-3), ("SGD", 3e-2)


def main(arguments: Sequence[str] | None = None) -> None:
    args = digits.parser(__doc__, steps=400).parse_args(arguments)
    jobs = [
        Job(name, *setting, seed, args.steps, args.pictures, args.device, autocast)
        for seed in range(args.seeds)
        for index, setting in enumerate(SETTINGS)
        for name in VARIANTS
        for autocast in (False, True)
        if (index < 2 or name in MAIN) and (not autocast or name in MAIN)
    ]
    results = [Result(*pair) for pair in zip(jobs, digits.side_by_side(train, jobs, args.workers), strict=True)]
    digits.write(args.results, results, table(results) + "\n" + costs(jobs[0]))


def scale(y: int, rng: np.random.Generator) -> float:
    return float(rng.choice(SCALES))


# The networks --------------------------------------------------------------------------------------------------------


class Network(nn.Module):
    """A stem that halves the resolution, the head, and a classifier for every pixel."""

    def __init__(self, make_predictor: Callable[[], nn.Module] | None) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, CHANNELS // 2, 5, 2, 2, bias=False),
            nn.BatchNorm2d(CHANNELS // 2),
            nn.ReLU(),
            nn.Conv2d(CHANNELS // 2, CHANNELS, 3, 1, 1, bias=False),
            nn.BatchNorm2d(CHANNELS),
            nn.ReLU(),
        )
        self.head = layers.DynamicASPP(CHANNELS, CHANNELS, RATES, dropout=0)
        self.classifier = nn.Conv2d(CHANNELS, CLASSES, 1)
        if make_predictor is None:
            self.head.rate = nn.Identity()
            for branch in self.head.convs[1:-1]:
                branch[0] = Fixed(branch[0])
        else:  # last, so that the other weights are the same for all
            self.head.rate = make_predictor()

    def forward(self, input: Tensor) -> Tensor:
        return F.interpolate(self.classifier(self.head(self.stem(input))), input.shape[2:], mode="bilinear")


class Fixed(nn.Module):
    """The same convolution without a map."""

    def __init__(self, dynamic: nn.Module) -> None:
        super().__init__()
        self.weight = dynamic.weight
        self.dilation = dynamic.dilation

    def forward(self, input: Tensor, dilation_map: Tensor) -> Tensor:
        return F.conv2d(input, self.weight, padding=self.dilation, dilation=self.dilation)


class Other(nn.Module):
    """A predictor with another function."""

    def __init__(self, function: Callable[[Tensor], Tensor], bias: float = 0.0) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(CHANNELS, 1, 3, padding=1)
        self.function = function
        nn.init.zeros_(self.convolution.weight)
        nn.init.constant_(self.convolution.bias, bias)

    def forward(self, input: Tensor) -> Tensor:
        return self.function(self.convolution(input).float())


def default(**options: float) -> DilationPredictor:
    return DilationPredictor(CHANNELS, 3, padding=1, **options)


def beside_the_kink() -> DilationPredictor:
    predictor = default()
    nn.init.constant_(predictor.bias, 1e-4 / predictor.pace)
    return predictor


FIXED = "fixed"
DEFAULT = "default"
FROZEN = "default, frozen at first"
MAIN = FIXED, DEFAULT, FROZEN
VARIANTS: dict[str, Callable[[], nn.Module] | None] = {
    FIXED: None,
    DEFAULT: default,
    FROZEN: default,
    "rates start at 1.0001": beside_the_kink,
    "pace 0.03": functools.partial(default, pace=0.03),
    "pace 0.3": functools.partial(default, pace=0.3),
    "pace 1": functools.partial(default, pace=1.0),
    "bounds 0.5 and 4": functools.partial(default, bounds=(0.5, 4.0)),
    "exp(z / 10)": functools.partial(Other, lambda z: (z / 10).exp()),
    "exp(z / 10) between 1/4 and 4": functools.partial(
        Other, lambda z: (math.log(4) * torch.tanh(z / 10 / math.log(4))).exp()
    ),
    "exp(z)": functools.partial(Other, torch.exp),
    "1 + abs(z / 10)": functools.partial(Other, lambda z: 1 + (z / 10).abs()),
    "1 + abs(z)": functools.partial(Other, lambda z: 1 + z.abs()),
    "relu(1 + z)": functools.partial(Other, torch.relu, 1.0),
}


# Training ------------------------------------------------------------------------------------------------------------


def train(job: Job) -> Scores:
    pictures, test = digits.make_pictures(scale, job.seed, job.pictures)
    network = make(job)
    frozen = [network.head.rate] if job.name == FROZEN else []
    scores = {"loss": digits.fit(network, pictures, job, frozen), **digits.evaluate(network, test)}
    if job.name != FIXED:
        with torch.no_grad():
            rates = network.head.rate(network.stem(test[0].to(job.device)))
        scores |= {
            "rate": rates.mean().item(),
            "deviation": rates.std().item(),
            "below a half": (rates < 0.5).double().mean().item(),
        }
    return scores


def make(job: Job) -> Network:
    torch.manual_seed(job.seed)
    network = Network(VARIANTS[job.name])
    torch.manual_seed(job.seed)  # all see the same batches
    return network


def table(results: Sequence[Result]) -> str:
    """The mIoU of the fixed head, by how much the others exceed it, and their rates at the first setting."""
    runs = digits.grouped(results, lambda job: ((job.name, job.autocast), (job.optimizer, job.learning_rate)))
    rows = []
    for variant in digits.grouped(results, lambda job: (job.name, job.autocast)):
        name, autocast = variant
        row = [name + (", bfloat16" if autocast else "")]
        for setting in SETTINGS:
            scores = [run["mIoU"] for run in runs.get((variant, setting), [])]
            if name != FIXED:
                fixed = [run["mIoU"] for run in runs[(FIXED, autocast), setting]] if scores else []
                scores = [score - other for score, other in zip(scores, fixed, strict=True)]
            row.append(digits.spread(scores, ".3f" if name == FIXED else "+.3f") if scores else "")
        if name != FIXED:
            first = runs[variant, SETTINGS[0]]
            mean = {key: np.mean([run[key] for run in first]) for key in ("rate", "deviation", "below a half")}
            row += [f"{mean['rate']:.2f} ± {mean['deviation']:.2f}", f"{mean['below a half']:.0%}"]
        rows.append(row + [""] * (3 + len(SETTINGS) - len(row)))
    header = [f"{optimizer} {learning_rate:g}" for optimizer, learning_rate in SETTINGS]
    return digits.markdown(["rates", *header, "rates at the end", "below a half"], rows)


def costs(job: Job) -> str:
    """Time and memory of a step of training, with nothing beside it."""
    pictures, _ = digits.make_pictures(scale, 0, job.pictures)
    rows = []
    for name in (FIXED, DEFAULT):
        network = make(job._replace(name=name))
        digits.fit(network, pictures, job._replace(steps=5))
        steps = min(job.steps, 30)
        on_gpu = job.device.startswith("cuda")
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        digits.fit(network, pictures, job._replace(steps=steps))
        milliseconds = (time.perf_counter() - start) / steps * 1000
        memory = f"{torch.cuda.max_memory_allocated() / 2**20:.0f} MiB" if on_gpu else ""
        rows.append([name, f"{milliseconds:.1f} ms", memory])
    return digits.markdown(["rates", "a step of training", "memory"], rows)


if __name__ == "__main__":
    main()
