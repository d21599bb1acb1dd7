"""Digits in perspective: segmenting things whose size changes over the picture.

Handwritten digits stand on a plane that recedes: small at the top of the picture, three times as large at the bottom.
Every pixel of ink is to be told which digit it belongs to. A convolution with a fixed dilation rate fits one size; one
that reads its rate from a map can follow the perspective. Networks that differ in their rates alone, with as many
parameters to within a few per cent, learn from the same pictures:

- a fixed rate of 1, 2 or 4;
- ASPP: a third of the channels of every layer at each of the three;
- one learned rate for each layer, the same everywhere;
- a map of rates, predicted from the picture, that all layers share.
"""

import argparse
import contextlib
import functools
import json
import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import pyplot
from matplotlib.axes import Axes
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from tqdm import tqdm

from ddu_ops import DilationPredictor, DynamicDilationConv2d

SIZE = 64  # of a picture, in pixels
SCALES = 1.25, 4.0  # of the digits, from the top to the bottom: a digit of scale 1 has 8 x 8 pixels
CLASSES = 11  # the ten digits and the ground
CHANNELS = 12
LAYERS = 4
BATCH = 8
LEARNING_RATE = 5e-3
START = 2  # the dilation at which learned rates start
BOUNDS = 0.5, 3.0  # of what they multiply it by
SETTLE = 1 / 3  # of the steps: until then the weights learn alone, and the rates stay where they start


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_args(arguments)
    jobs = [Job(name, seed, args.steps, args.pictures) for seed in range(args.seeds) for name in VARIANTS]
    results: dict[str, list[Scores]] = {name: [] for name in VARIANTS}
    shown: Network | None = None
    start = time.perf_counter()
    with contextlib.ExitStack() as stack:
        trained = map(train, jobs)
        if args.workers > 1:
            pool = ProcessPoolExecutor(args.workers, multiprocessing.get_context("spawn"))
            trained = stack.enter_context(pool).map(train, jobs)
        for job, (network, scores) in zip(jobs, tqdm(trained, "networks", len(jobs)), strict=True):
            results[job.name].append(scores)
            if shown is None and job.name == PREDICTED:
                shown = network
    print(f"{len(jobs)} networks, {args.steps} steps each: {time.perf_counter() - start:.0f} s")
    print(table(results))
    if args.results is not None:
        args.results.parent.mkdir(parents=True, exist_ok=True)
        args.results.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        args.results.with_suffix(".md").write_text(table(results), encoding="utf-8")
    assert shown is not None
    draw(args.output, shown, make_pictures(0, args.pictures)[1], results)
    print(f"wrote {args.output}")


def parse_args(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1, help="networks of every kind [%(default)s]")
    parser.add_argument("--steps", type=int, default=800, help="steps of training for each [%(default)s]")
    parser.add_argument("--pictures", type=int, default=400, help="to train on [%(default)s]")
    parser.add_argument("--workers", type=int, default=2, help="networks at a time, on a core each [%(default)s]")
    parser.add_argument("--output", type=Path, default="perspective_digits.png", help="picture to write [%(default)s]")
    parser.add_argument("--results", type=Path, help="file to write all scores to, as .json, and their table, as .md")
    return parser.parse_args(arguments)


# The pictures --------------------------------------------------------------------------------------------------------


def true_scale() -> Tensor:
    """Of a digit whose centre lies at a pixel, (SIZE, SIZE): it grows evenly from the top to the bottom."""
    return torch.linspace(*SCALES, SIZE).view(-1, 1).expand(SIZE, SIZE)


Pictures = tuple[Tensor, Tensor]  # (N, 2, SIZE, SIZE): the picture and its rows' height; (N, SIZE, SIZE): classes


@functools.lru_cache(1)
def make_pictures(seed: int, count: int) -> tuple[Pictures, Pictures]:
    """For training and for testing, with no digit in common."""
    digits = load_digits()
    images = torch.tensor(digits.images / 16, dtype=torch.float32)
    labels = torch.tensor(digits.target)
    rng = np.random.default_rng(seed)
    train, test = train_test_split(np.arange(len(labels)), test_size=0.4, random_state=seed, stratify=digits.target)
    return compose(images[train], labels[train], count, rng), compose(images[test], labels[test], 100, rng)


def compose(images: Tensor, labels: Tensor, count: int, rng: np.random.Generator) -> Pictures:
    ink = torch.zeros(count, SIZE, SIZE)
    classes = torch.zeros(count, SIZE, SIZE, dtype=torch.long)
    scale = true_scale()[:, 0]
    for picture, truth in zip(ink, classes, strict=True):
        taken = torch.zeros(SIZE, SIZE, dtype=torch.bool)
        for _ in range(40):  # attempts, of which those count that find a free place
            y, x = rng.integers(0, SIZE, 2)
            size = round(8 * scale[y].item())
            top, left = y - size // 2, x - size // 2
            if min(top, left) < 0 or max(top, left) + size > SIZE:
                continue
            place = slice(top, top + size), slice(left, left + size)
            if taken[place].any():
                continue
            taken[place] = True
            index = rng.integers(len(labels))
            drawn = F.interpolate(images[index][None, None], (size, size), mode="bilinear")[0, 0]
            picture[place] = drawn
            truth[place] = torch.where(drawn > 0.4, labels[index] + 1, 0)
    ink += 0.1 * torch.tensor(rng.standard_normal(ink.shape), dtype=torch.float32)
    height = torch.linspace(-1, 1, SIZE).view(-1, 1).expand(count, SIZE, SIZE)
    return torch.stack([ink, height], 1), classes


# The networks --------------------------------------------------------------------------------------------------------


class Network(nn.Module):
    """A stem, layers that differ in their dilation rates alone, and a classifier for every pixel."""

    def __init__(self, make_layers: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, CHANNELS, 5, 2, 2, bias=False), nn.BatchNorm2d(CHANNELS), nn.ReLU())
        self.layers = make_layers()
        self.norms = nn.ModuleList(nn.BatchNorm2d(CHANNELS) for _ in range(LAYERS))
        self.classifier = nn.Conv2d(CHANNELS, CLASSES, 1)

    def forward(self, input: Tensor) -> Tensor:
        features = self.stem(input)
        rates = self.layers.rates(features)
        for layer, norm, rate in zip(self.layers.convolutions, self.norms, rates, strict=True):
            features = features + norm(layer(features, rate)).relu()
        return F.interpolate(self.classifier(features), input.shape[2:], mode="bilinear")


class Fixed(nn.Module):
    def __init__(self, *dilations: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(Parallel(dilations) for _ in range(LAYERS))

    def rates(self, features: Tensor) -> list[None]:
        return [None] * LAYERS


class Parallel(nn.Module):
    """The channels of the output in equal parts, each at a dilation of its own."""

    def __init__(self, dilations: tuple[int, ...]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Conv2d(CHANNELS, CHANNELS // len(dilations), 3, padding=d, dilation=d, bias=False) for d in dilations
        )

    def forward(self, input: Tensor, rate: None) -> Tensor:
        return torch.cat([branch(input) for branch in self.branches], 1)


class Learned(nn.Module):
    """Convolutions that read one rate from a map each."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            DynamicDilationConv2d(CHANNELS, CHANNELS, 3, 1, START, START, bias=False, predict=False)
            for _ in range(LAYERS)
        )


class Constant(Learned):
    def __init__(self) -> None:
        super().__init__()
        self.predictors = nn.ModuleList(DilationPredictor(1, 1, bounds=BOUNDS) for _ in range(LAYERS))

    def rates(self, features: Tensor) -> list[Tensor]:
        return [predictor(torch.zeros_like(features[:, :1])) for predictor in self.predictors]


class Predicted(Learned):
    def __init__(self) -> None:
        super().__init__()
        self.predictor = DilationPredictor(CHANNELS, 3, padding=1, bounds=BOUNDS)

    def rates(self, features: Tensor) -> list[Tensor]:
        return [self.predictor(features)] * LAYERS


PREDICTED = "predicted map"
VARIANTS: dict[str, Callable[[], nn.Module]] = {
    "dilation 1": functools.partial(Fixed, 1),
    "dilation 2": functools.partial(Fixed, 2),
    "dilation 4": functools.partial(Fixed, 4),
    "ASPP 1, 2, 4": functools.partial(Fixed, 1, 2, 4),
    "learned constant": Constant,
    PREDICTED: Predicted,
}


# Training ------------------------------------------------------------------------------------------------------------


Scores = dict[str, float]


class Job(NamedTuple):
    """One network to be trained."""

    name: str
    seed: int
    steps: int
    pictures: int


def train(job: Job) -> tuple[Network, Scores]:
    torch.set_num_threads(1)
    (pictures, classes), test = make_pictures(job.seed, job.pictures)
    torch.manual_seed(job.seed)
    network = Network(VARIANTS[job.name])
    fit(network, pictures, classes, job.steps)
    return network, evaluate(network, *test)


def fit(network: nn.Module, pictures: Tensor, classes: Tensor, steps: int) -> None:
    predictors = [module for module in network.modules() if isinstance(module, DilationPredictor)]
    of_rates = [parameter for predictor in predictors for parameter in predictor.parameters()]
    others = [parameter for parameter in network.parameters() if all(parameter is not rate for rate in of_rates)]
    groups = [{"params": others}, {"params": of_rates}]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], LEARNING_RATE)

    def pace(step: int) -> float:
        return min(1.0, 10 * step / steps, 1.5 * (1 - step / steps))

    paces = [pace, lambda step: pace(step) if step >= SETTLE * steps else 0.0]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, paces[: len(optimizer.param_groups)])
    weight = torch.ones(CLASSES)
    weight[0] = 0.3  # most of a picture is ground
    network.train()
    for _ in range(steps):
        batch = torch.randint(len(pictures), (BATCH,))
        loss = F.cross_entropy(network(pictures[batch]), classes[batch], weight)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


@torch.no_grad()
def evaluate(network: Network, pictures: Tensor, classes: Tensor) -> Scores:
    network.eval()
    predicted = torch.cat([network(part).argmax(1) for part in pictures.split(50)])
    union = [((predicted == c) | (classes == c)).sum() for c in range(1, CLASSES)]
    both = [((predicted == c) & (classes == c)).sum() for c in range(1, CLASSES)]
    ink = classes > 0
    right = (predicted == classes) & ink
    thirds = [right[:, rows].sum() / ink[:, rows].sum() for rows in torch.arange(SIZE).chunk(3)]
    return {
        "mIoU": torch.stack([b / u for b, u in zip(both, union, strict=True)]).mean().item(),
        **{name: share.item() for name, share in zip(("far", "middle", "near"), thirds, strict=True)},
        "parameters": float(sum(parameter.numel() for parameter in network.parameters())),
    }


def table(results: dict[str, list[Scores]]) -> str:
    """Mean and standard deviation over the seeds, as Markdown."""
    keys = ["mIoU", "far", "middle", "near"]
    lines = [f"| {' | '.join(['rates', 'parameters', *keys])} |", "| --- " * (2 + len(keys)) + "|"]
    for name, runs in results.items():
        cells = [
            f"{np.mean([run[key] for run in runs]):.3f} ± {np.std([run[key] for run in runs]):.3f}" for key in keys
        ]
        lines.append(f"| {' | '.join([name, str(int(runs[0]['parameters'])), *cells])} |")
    return "\n".join(lines) + "\n"


@torch.no_grad()
def draw(output: Path, network: Network, test: Pictures, results: dict[str, list[Scores]]) -> None:
    """A picture, the sizes in it, the dilation that the network predicts for it, and how well all networks do."""
    pictures, _ = test
    network.eval()
    rates = torch.cat([network.layers.rates(network.stem(part))[0] for part in pictures.split(50)])
    dilation = START * F.interpolate(rates, (SIZE, SIZE), mode="bilinear")[:, 0]
    figure, axes = pyplot.subplots(2, 3, figsize=(12, 7.2), layout="constrained")

    def show(ax: Axes, title: str, image: Tensor, **options: object) -> None:
        shown = ax.imshow(image, **options)
        ax.set(title=title, xticks=[], yticks=[])
        if "cmap" not in options:
            figure.colorbar(shown, ax=ax, shrink=0.8)

    show(axes[0, 0], "A picture", pictures[0, 0], cmap="gray")
    show(axes[0, 1], "True scale of a digit", true_scale())
    show(axes[0, 2], "Dilation that the network predicts for it", dilation[0])
    show(axes[1, 0], "The same, mean of all test pictures", dilation.mean(0))

    rows = dilation.mean((0, 2))
    axes[1, 1].plot(true_scale()[:, 0], rows, ".")
    axes[1, 1].set(title="Row by row", xlabel="true scale", ylabel="mean predicted dilation", ylim=(0, None))

    for index, runs in enumerate(results.values()):
        values = [run["mIoU"] for run in runs]
        axes[1, 2].bar(index, np.mean(values), yerr=np.std(values), color="0.8", capsize=4)
        axes[1, 2].plot([index] * len(values), values, "k.", markersize=5)
    axes[1, 2].set_xticks(range(len(results)), [name.replace(" ", "\n", 1) for name in results], fontsize=7)
    axes[1, 2].set(title=f"Mean IoU of the ten digits, {len(runs)} seeds")

    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    main()
