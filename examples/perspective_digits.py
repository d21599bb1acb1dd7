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

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import digits
import numpy as np
import torch
import torch.nn.functional as F
from digits import CLASSES, SIZE, Job, Pictures, Result, Scores
from torch import Tensor, nn

from ddu_ops import DilationPredictor, DynamicDilationConv2d

SCALES = 1.25, 4.0  # of the digits, from the top to the bottom
CHANNELS = 12
LAYERS = 4
START = 2  # the dilation at which learned rates start
THIRDS = "far", "middle", "near"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = digits.parser(__doc__, steps=800)
    parser.add_argument("--output", type=Path, default="perspective_digits.png", help="picture to write [%(default)s]")
    args = parser.parse_args(arguments)
    jobs = [
        Job(name, "AdamW", 5e-3, seed, args.steps, args.pictures, args.device)
        for seed in range(args.seeds)
        for name in VARIANTS
    ]
    networks, results = {}, []
    for job, (network, scores) in zip(jobs, digits.side_by_side(train, jobs, args.workers), strict=True):
        networks.setdefault(job.name, network)
        results.append(Result(job, scores))
    digits.write(args.results, results, table(results))
    draw(args.output, networks[SHOWN], make_pictures(0, args.pictures)[1], results)
    print(f"wrote {args.output}")


# The pictures --------------------------------------------------------------------------------------------------------


def true_scale() -> Tensor:
    """Of a digit whose centre lies at a pixel, (SIZE, SIZE): it grows evenly from the top to the bottom."""
    return torch.linspace(*SCALES, SIZE).view(-1, 1).expand(SIZE, SIZE)


def scale(y: int, rng: np.random.Generator) -> float:
    return true_scale()[y, 0].item()


def make_pictures(seed: int, count: int) -> list[Pictures]:
    """For training and for testing: the ink, and the height of each row as a second channel."""
    height = torch.linspace(-1, 1, SIZE).view(-1, 1)
    return [
        (torch.cat([ink, height.expand_as(ink)], 1), classes)
        for ink, classes in digits.make_pictures(scale, seed, count)
    ]


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
    """Its predictors see nothing: a bias is all that they learn, and goes at the pace of the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.predictors = nn.ModuleList(DilationPredictor(1, 1, pace=1.0) for _ in range(LAYERS))

    def rates(self, features: Tensor) -> list[Tensor]:
        return [predictor(torch.zeros_like(features[:, :1])) for predictor in self.predictors]


class Predicted(Learned):
    def __init__(self, **options: float) -> None:
        super().__init__()
        self.predictor = DilationPredictor(CHANNELS, 3, padding=1, **options)

    def rates(self, features: Tensor) -> list[Tensor]:
        return [self.predictor(features)] * LAYERS


FROZEN = ", frozen at first"
SHOWN = "predicted map, pace 1" + FROZEN
VARIANTS: dict[str, Callable[[], nn.Module]] = {
    "dilation 1": functools.partial(Fixed, 1),
    "dilation 2": functools.partial(Fixed, 2),
    "dilation 4": functools.partial(Fixed, 4),
    "ASPP 1, 2, 4": functools.partial(Fixed, 1, 2, 4),
    "learned constant": Constant,
    "learned constant" + FROZEN: Constant,
    "predicted map": Predicted,
    "predicted map" + FROZEN: Predicted,
    SHOWN: functools.partial(Predicted, pace=1.0),
}


# Training ------------------------------------------------------------------------------------------------------------


def train(job: Job) -> tuple[Network, Scores]:
    pictures, test = make_pictures(job.seed, job.pictures)
    torch.manual_seed(job.seed)
    network = Network(VARIANTS[job.name]).to(job.device)
    predictors = [module for module in network.modules() if isinstance(module, DilationPredictor)]
    digits.fit(network, pictures, job, predictors if job.name.endswith(FROZEN) else [])
    scores = digits.evaluate(network, test, THIRDS)
    return network.cpu(), scores


def table(results: Sequence[Result]) -> str:
    """Mean and standard deviation over the seeds, as Markdown."""
    keys = ["mIoU", *THIRDS]
    return digits.markdown(
        ["rates", "parameters", *keys],
        [
            [name, f"{runs[0]['parameters']:.0f}", *(digits.spread([run[key] for run in runs]) for key in keys)]
            for name, runs in digits.grouped(results, lambda job: job.name).items()
        ],
    )


@torch.no_grad()
def draw(output: Path, network: Network, test: Pictures, results: Sequence[Result]) -> None:
    """A picture, the sizes in it, the dilation that the network predicts for it, and how well all networks do."""
    from matplotlib import pyplot
    from matplotlib.axes import Axes

    pictures, _ = test
    rates = torch.cat([network.layers.rates(network.stem(part))[0] for part in pictures.split(50)])
    dilation = START * F.interpolate(rates, (SIZE, SIZE), mode="bilinear")[:, 0]
    figure, axes = pyplot.subplots(2, 3, figsize=(12, 7.2), layout="constrained")

    def show(ax: Axes, title: str, image: Tensor, **options: object) -> None:
        shown = ax.imshow(image.numpy(), **options)
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

    for index, (name, runs) in enumerate(digits.grouped(results, lambda job: job.name).items()):
        values = [run["mIoU"] for run in runs]
        axes[1, 2].barh(index, np.mean(values), color="0.85")
        axes[1, 2].plot(values, [index] * len(values), "k.", markersize=5)
        axes[1, 2].text(0.01, index, name, fontsize=8, va="center")
    axes[1, 2].invert_yaxis()
    axes[1, 2].set(title=f"Mean IoU of the ten digits, {len(runs)} seeds", yticks=[])

    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=110, metadata={"Software": None})
    pyplot.close(figure)


if __name__ == "__main__":
    main()
