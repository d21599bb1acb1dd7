"""Offsets learned by gradient descent: a deformable convolution of a photograph equals one of its distorted copy."""

import torch
import torch.nn.functional as F
from matplotlib import pyplot
from sklearn.datasets import load_sample_image

from ddu_ops import deform_conv2d, viz

torch.manual_seed(0)
size, window = 96, {"padding": 4, "dilation": 4}
photo = (
    torch.tensor(load_sample_image("flower.jpg")).permute(2, 0, 1)[:, 20:420, 120:520]
    / 255
)
photo = F.interpolate(photo[None], (size, size), mode="bilinear", antialias=True)

# A rotation by 0.35 in the middle, which fades out with the distance from it.
row, column = torch.meshgrid(*[torch.arange(size) - (size - 1) / 2] * 2, indexing="ij")
angle = 0.35 * (1 - (row.square() + column.square()) / 40**2).clamp(min=0)
turned = torch.stack(
    [
        column * angle.cos() - row * angle.sin(),
        column * angle.sin() + row * angle.cos(),
    ],
    -1,
)
whirled = F.grid_sample(
    photo, 2 * turned[None] / size, align_corners=False, padding_mode="border"
)

weight = torch.randn(16, 3, 3, 3) / 27**0.5
knots = torch.zeros(
    1, 18, 9, 9, requires_grad=True
)  # the offsets are interpolated between them
optimizer = torch.optim.Adam([knots], lr=0.2)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 120)
for step in range(120):
    sharp = 1 if step >= 60 else 2 if step >= 30 else 4  # from coarse to fine
    seen, wanted = (
        F.avg_pool2d(x, 2 * sharp - 1, 1, sharp - 1, count_include_pad=False)
        for x in (photo, whirled)
    )
    offset = F.interpolate(knots, (size, size), mode="bicubic", align_corners=True)
    difference = deform_conv2d(seen, offset, weight, **window) - F.conv2d(
        wanted, weight, **window
    )
    optimizer.zero_grad()
    difference[..., 8:-8, 8:-8].square().mean().backward()
    optimizer.step()
    schedule.step()

places = [(r, c) for r in (24, 48, 72) for c in (24, 48, 72)]
figure, axes = pyplot.subplots(1, 2, figsize=(9, 4.8), layout="constrained")
viz.draw_taps(
    whirled[0],
    torch.zeros(18, size, size),
    places,
    source="offsets",
    **window,
    ax=axes[0],
)
axes[0].set_title("The taps of a convolution of this ...")
viz.draw_taps(photo[0], offset[0], places, source="offsets", **window, ax=axes[1])
axes[1].set_title("... and the offsets learned to find them in this")
