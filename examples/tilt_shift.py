"""Tilt-shift: blur a photograph by an amount that varies over the picture, and recover the amount.

A dilation map sets the aperture at each pixel: 0 on the plane in focus, and larger with the distance from it. Unfold
reads the taps at that rate, and their weighted sum is the photograph taken through the lens. Then gradient descent
through the operator recovers the map from the two pictures.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MultipleLocator
from PIL import Image
from sklearn.datasets import load_sample_image
from torch import Tensor
from tqdm import tqdm

from ddu_ops import dynamic_dilation_unfold

TAPS = 11  # the lens is a disc of 11 x 11 taps, at rate 1 as many pixels wide
MAX_RATE = 1.5
SATURATION = 1.35  # colours as of a painted model
STRIDE = 3  # the recovery looks at every third pixel in both directions
KNOT_SPACING = 32  # pixels between the knots of the recovered map, which is linear between them
MIN_CONTRAST = 0.03  # of the brightness nearby; below it, blurring shows too little to tell the rate by


def main() -> None:
    args = parse_args()
    photo = load_photo(args.image, args.size)  # (3, H, W), sRGB in 0..1
    height, width = photo.shape[1:]
    print(f"photograph: {args.image}, {width} x {height} pixels")

    true_map = focus_map(height, width)
    with torch.no_grad():
        result = (shoot(photo, true_map) * 255).round() / 255  # as precise as a picture file
    print(
        f"tilt-shift: a lens of {TAPS} x {TAPS} taps, dilation rates from {true_map.min():.2f} to {true_map.max():.2f}"
    )
    compare_speed(photo, true_map)

    print(f"\nrecovery: {args.steps} steps of Adam from a rate of 1 everywhere, windows at stride {STRIDE}")
    recovered = recover_map(photo, result, args.steps)
    error = (recovered - true_map).abs()
    textured = local_contrast(photo) > MIN_CONTRAST
    seen, share = error[textured], textured.float().mean()
    print(f"error of the recovered rate: mean {error.mean():.3f} over the whole picture;")
    print(f"mean {seen.mean():.3f}, median {seen.median():.3f} over the {share:.0%} with texture to tell it by")

    draw(args.output, photo, result, true_map, recovered, error.masked_fill(~textured, torch.nan))
    print(f"\nwrote {args.output}")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", default="china.jpg", help="one of scikit-learn's samples, or a file [%(default)s]")
    parser.add_argument("--output", type=Path, default="tilt_shift.png", help="picture to write [%(default)s]")
    parser.add_argument("--steps", type=int, default=100, help="steps of the recovery [%(default)s]")
    parser.add_argument("--size", type=int, default=640, help="longer side to scale down to, in pixels [%(default)s]")
    return parser.parse_args()


def load_photo(name: str, size: int) -> Tensor:
    pixels = np.array(Image.open(name).convert("RGB")) if Path(name).is_file() else load_sample_image(name)
    photo = torch.tensor(pixels).permute(2, 0, 1) / 255
    factor = size / max(photo.shape[1:])
    if factor >= 1:
        return photo
    return F.interpolate(photo[None], scale_factor=factor, mode="bilinear", antialias=True)[0].clamp(0, 1)


# The lens ------------------------------------------------------------------------------------------------------------


def focus_map(height: int, width: int) -> Tensor:
    """The rates: 0 in a slightly tilted band, growing with the distance from it."""
    y = torch.linspace(-1, 1, height)[:, None]
    x = torch.linspace(-1, 1, width)
    distance = (y + 0.12 * x - 0.05).abs()
    return ((distance - 0.14) / 0.75).clamp(0, 1) * MAX_RATE


def shoot(photo: Tensor, dilation_map: Tensor, stride: int = 1) -> Tensor:
    """The photograph seen through the lens: (3, H, W) and rates (H_out, W_out) to (3, H_out, W_out)."""
    light = torch.cat([to_linear(photo), torch.ones_like(photo[:1])])  # the last channel counts the taps inside
    columns = dynamic_dilation_unfold(light, TAPS, dilation_map[None], stride=stride, padding=TAPS // 2)
    blurred = (lens() @ columns.unflatten(0, (-1, TAPS**2))).unflatten(-1, dilation_map.shape)
    return to_srgb(saturate(blurred[:3] / blurred[3:]))


def lens() -> Tensor:
    """The weights of the taps, a disc with a soft edge, as an open aperture draws a point of light."""
    offset = torch.arange(TAPS) - (TAPS - 1) / 2
    distance = torch.hypot(offset[:, None], offset)
    disc = ((TAPS / 2 - 0.3 - distance) / 0.8 + 0.5).clamp(0, 1)
    return (disc / disc.sum()).flatten()


def saturate(light: Tensor) -> Tensor:
    grey = (light * light.new_tensor([0.2126, 0.7152, 0.0722])[:, None, None]).sum(0)
    return (grey + SATURATION * (light - grey)).clamp(0, 1)


def to_linear(srgb: Tensor) -> Tensor:
    return torch.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def to_srgb(light: Tensor) -> Tensor:
    power = 1.055 * light.clamp(min=0.0031308) ** (1 / 2.4) - 0.055  # clamped: its slope at 0 is infinite
    return torch.where(light <= 0.0031308, 12.92 * light, power)


# The way back --------------------------------------------------------------------------------------------------------


def recover_map(photo: Tensor, result: Tensor, steps: int) -> Tensor:
    """Recover the map that turns ``photo`` into ``result``, from the two pictures alone."""
    height, width = photo.shape[1:]
    target = result[:, ::STRIDE, ::STRIDE]
    knots = torch.ones(1, 1, height // KNOT_SPACING + 2, width // KNOT_SPACING + 2, requires_grad=True)
    optimizer = torch.optim.Adam([knots], lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

    def upsampled() -> Tensor:
        # The lens is symmetric, a rate and its negative give the same picture: look among the positive ones.
        return F.interpolate(knots.abs(), (height, width), mode="bilinear", align_corners=True)[0, 0]

    with tqdm(range(steps), unit="step", disable=None) as progress:
        for _ in progress:
            candidate = shoot(photo, upsampled()[::STRIDE, ::STRIDE], stride=STRIDE)
            mismatch = (candidate - target).square().mean()
            bending = knots.diff(n=2, dim=2).square().mean() + knots.diff(n=2, dim=3).square().mean()
            optimizer.zero_grad()
            (mismatch + 1e-4 * bending).backward()
            optimizer.step()
            schedule.step()
            progress.set_postfix_str(f"rms difference of the pictures {255 * mismatch.item() ** 0.5:.2f} / 255")
    return upsampled().detach()


def local_contrast(photo: Tensor, size: int = 17) -> Tensor:
    """Standard deviation of the brightness around each pixel: where it is low, no blur can be seen."""

    def average(image: Tensor) -> Tensor:
        return F.avg_pool2d(image, size, stride=1, padding=size // 2, count_include_pad=False)

    brightness = photo.mean(0)[None, None]
    return (average(brightness**2) - average(brightness) ** 2).clamp(min=0).sqrt()[0, 0]


# Time ----------------------------------------------------------------------------------------------------------------


def compare_speed(photo: Tensor, dilation_map: Tensor) -> None:
    image = photo[None].requires_grad_()
    rates = dilation_map[None, None].requires_grad_()
    ones = torch.ones_like(rates, requires_grad=True)

    def fixed() -> Tensor:
        return F.unfold(image, TAPS, padding=TAPS // 2)

    def dynamic(dilation_map: Tensor) -> Tensor:
        return dynamic_dilation_unfold(image, TAPS, dilation_map, padding=TAPS // 2)

    with torch.no_grad():
        same = torch.equal(dynamic(ones), fixed())
    print(f"a map of ones gives the columns of F.unfold, bit for bit: {'yes' if same else 'NO'}")
    print(
        f"\n{f'{torch.get_num_threads()} threads, ms, median of 5':34}{'forward':>9}{'and backward':>15}   gradients by"
    )
    print_times("F.unfold", fixed, {"image": image})
    print_times("dynamic_dilation_unfold, ones", lambda: dynamic(ones), {"image": image, "map": ones})
    print_times("dynamic_dilation_unfold, this map", lambda: dynamic(rates), {"image": image, "map": rates})


def print_times(name: str, unfold: Callable[[], Tensor], sources: dict[str, Tensor]) -> None:
    with torch.no_grad():
        grad_columns = torch.ones_like(unfold())
        forward = milliseconds(unfold)
    both = milliseconds(lambda: torch.autograd.grad(unfold(), list(sources.values()), grad_columns))
    print(f"{name:34}{forward:9.0f}{both:15.0f}   {' and '.join(sources)}")


def milliseconds(function: Callable[[], object]) -> float:
    times = []
    for _ in range(6):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times[1:])  # the first one warms up


# The picture ---------------------------------------------------------------------------------------------------------


def draw(output: Path, photo: Tensor, result: Tensor, true_map: Tensor, recovered: Tensor, error: Tensor) -> None:
    """Two photographs over three maps, laid out in inches so that the rows are flush."""
    page, margin, gap, title, bar = 12.0, 0.2, 0.15, 0.4, 0.75
    ratio = true_map.shape[0] / true_map.shape[1]
    wide = (page - 2 * margin - gap) / 2
    narrow = (page - 2 * margin - 2 * gap) / 3
    left, right = margin, page - margin
    page_height = title + wide * ratio + title + narrow * ratio + bar
    figure = Figure(figsize=(page, page_height), dpi=110)

    def place(x: float, y: float, width: float, height: float) -> Axes:
        return figure.add_axes((x / page, y / page_height, width / page, height / page_height))

    def show(x: float, y: float, width: float, name: str, image: Tensor, **options: object) -> AxesImage:
        axes = place(x, y, width, width * ratio)
        axes.set_axis_off()
        axes.set_title(name, loc="left", fontsize=12, pad=5)
        return axes.imshow(image.numpy(), aspect="auto", **options)

    def colour_bar(x: float, width: float, shown: AxesImage, step: float) -> None:
        axes = place(x + 0.2, bar - 0.24, width - 0.4, 0.12)
        figure.colorbar(shown, axes, orientation="horizontal", ticks=MultipleLocator(step), label="dilation rate")

    y = page_height - title - wide * ratio
    show(left, y, wide, "Photograph", photo.permute(1, 2, 0))
    show(right - wide, y, wide, "Through a lens that opens as the dilation map says", result.permute(1, 2, 0))

    rates = {"cmap": "viridis", "vmin": 0, "vmax": MAX_RATE}
    errors = {"cmap": colormaps["inferno"].with_extremes(bad="0.85"), "vmin": 0, "vmax": 0.1}
    show(left, bar, narrow, "Dilation map", true_map, **rates)
    shown = show(left + narrow + gap, bar, narrow, "Map recovered from the two pictures", recovered, **rates)
    colour_bar(left, 2 * narrow + gap, shown, 0.25)
    shown = show(right - narrow, bar, narrow, "Its error (grey: too little texture to tell)", error, **errors)
    colour_bar(right - narrow, narrow, shown, 0.025)

    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, metadata={"Software": None})


if __name__ == "__main__":
    main()
