"""A network that chooses its own dilation, in one figure: the taps of three positions, the map, the output.

Trains the network of examples/perspective_digits.py whose dilation map is predicted, and draws what it does to one test
picture.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import perspective_digits
import torch
import torch.nn.functional as F
from digits import CLASSES, SIZE, Job
from matplotlib import colormaps, pyplot
from matplotlib.colors import ListedColormap
from perspective_digits import SHOWN, START, Network
from torch import Tensor

from ddu_ops import viz

STRIDE = 2  # of the stem: features per pixel
POSITIONS = (4, 10), (13, 8), (19, 25)  # of the features: on a far digit, one in between and a near one


@torch.no_grad()
def draw(output: Path, network: Network, picture: Tensor) -> None:
    """Picture: (2, SIZE, SIZE), the ink and the height of each row."""
    network.eval()
    rates = network.layers.rates(network.stem(picture[None]))[0]
    classes = network(picture[None])[0].argmax(0)

    figure, axes = pyplot.subplots(1, 3, figsize=(11.5, 3.9), layout="constrained")
    window = {"stride": STRIDE, "padding": STRIDE * START, "dilation": STRIDE * START}
    viz.draw_taps(picture[0], rates[0, 0], POSITIONS, 3, **window, ax=axes[0])
    axes[0].set_title("Input, and the taps of three positions")

    dilation = F.interpolate(START * rates, (SIZE, SIZE), mode="bilinear")
    viz.draw_map(dilation, ax=axes[1])
    axes[1].imshow(picture[0].numpy(), cmap="gray", alpha=(0.7 * picture[0]).clamp(0, 1).numpy())
    axes[1].set_title("Dilation map that the network predicts")

    colours = ListedColormap(["0.93", *colormaps["tab10"].colors])
    shown = axes[2].imshow(classes.numpy(), cmap=colours, vmin=-0.5, vmax=CLASSES - 0.5, interpolation="nearest")
    bar = figure.colorbar(shown, ax=axes[2], shrink=0.8, ticks=range(CLASSES))
    bar.ax.set_yticklabels(["none", *"0123456789"])
    axes[2].set(title="Output: the digit at each pixel", xticks=[], yticks=[])
    figure.savefig(output, dpi=110, metadata={"Software": None})
    pyplot.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default="examples/network.png", help="figure to write [%(default)s]")
    parser.add_argument("--steps", type=int, default=800, help="of training [%(default)s]")
    parser.add_argument("--pictures", type=int, default=1000, help="to train on [%(default)s]")
    parser.add_argument("--picture", type=int, default=82, help="which test picture to show [%(default)s]")
    args = parser.parse_args(arguments)
    job = Job(SHOWN, "AdamW", 5e-3, 0, args.steps, args.pictures, "cpu")
    network, scores = perspective_digits.train(job)
    print(f"mIoU of the ten digits on 100 test pictures: {scores['mIoU']:.3f}")
    pictures, _ = perspective_digits.make_pictures(job.seed, job.pictures)[1]
    draw(args.output, network, pictures[args.picture])
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
