r"""
Receptive fields
================

Which pixels does an output pixel depend on? How far it reaches follows from a formula. Which pixels within that reach
matter, and how much, follows from the gradient.
"""

# %%
# How far: the formula
# --------------------
#
# Three layers with dilation 1, 2 and 4, and three layers whose rate goes up to 2.5.

import torch
from matplotlib import pyplot

from ddu_ops import DynamicDilationConv2d, receptive_field, viz

fixed = [receptive_field.Layer(3, padding=d, dilation=d) for d in (1, 2, 4)]
dynamic = [receptive_field.Layer(3, padding=1, rate=2.5)] * 3
receptive_field.size(fixed), receptive_field.size(dynamic)

# %%
# With a map, the reach differs from position to position. Here the rates increase from 0.5 at the top to 2.5 at the
# bottom.

rates = torch.linspace(0.5, 2.5, 48)
for row in (10, 24, 38):
    first, last = receptive_field.stack_interval(
        dynamic, row, dilation_maps=[rates] * 3
    )
    print(f"row {row}: rows {first} to {last}")

# %%
# ``receptive_field.trace`` runs a model once and follows every operator, branches included.

from ddu_ops import layers

pyramid = layers.DilatedStack(4, [1, 2, (1, 4), 8])  # the third block has two branches
fields = receptive_field.trace(pyramid)
viz.draw_receptive_fields({name: fields[name] for name in ("0", "1", "2", "3")})

# %%
# Which pixels: the gradient
# --------------------------
#
# The effective receptive fields of three random layers that read this map, at the same rows.

torch.manual_seed(0)
convolutions = [
    DynamicDilationConv2d(channels, 16, 3, padding=1, predict=False)
    for channels in (1, 16, 16)
]
dilation_map = rates.view(1, 1, -1, 1).expand(1, 1, 48, 48)


def stack(image):
    for convolution in convolutions:
        image = convolution(image, dilation_map).relu()
    return image


images = torch.randn(16, 1, 48, 48)
figure, axes = pyplot.subplots(1, 4, figsize=(11, 3), layout="constrained")
viz.draw_map(dilation_map, ax=axes[0])
for ax, row in zip(axes[1:], (10, 24, 38), strict=True):
    viz.draw_effective_receptive_field(stack, images, (row, 24), ax=ax)
    ax.set_title(f"Row {row}")

# %%
# Holes: gridding
# ---------------
#
# Fixed rates with a common factor skip most of the pixels within their reach. Fractional rates that vary a little read
# nearly all of them.

down = torch.sin(torch.linspace(0, 9, 33)).view(-1, 1)
wave = 2 + 0.5 * down * torch.cos(torch.linspace(0, 7, 33))
figure = viz.draw_gridding([wave] * 3, fixed=[2, 2, 2])

# %%
# ``receptive_field.coverage`` counts the pixels that a stack of integer rates skips. The criterion of hybrid dilated
# convolution, often used instead of counting, accepts these rates, so there is a warning.

import warnings

with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    found = receptive_field.coverage([2, 2, 2])
print(caught[0].message)
viz.draw_coverage(found)
