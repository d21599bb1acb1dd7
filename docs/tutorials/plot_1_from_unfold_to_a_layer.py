r"""
From F.unfold to a trained layer
================================

A convolution is a window that slides over an image, and a weighted sum of what it shows. In this tutorial the window
gets a dilation rate of its own at every position; then the rates are found by gradient descent; and in the end a
network predicts them by itself, and learns.
"""

# sphinx_gallery_thumbnail_number = 5

# %%
# The window
# ----------
#
# ``F.unfold`` cuts the windows out: a column for each of the 16 × 16 positions, with the nine pixels of a 3 × 3 window.

import torch
import torch.nn.functional as F
from matplotlib import pyplot
from sklearn.datasets import load_digits

import ddu_ops
from ddu_ops import viz

torch.manual_seed(0)
digits = torch.tensor(load_digits().images, dtype=torch.float32) / 16
image = F.interpolate(digits[3][None, None], (16, 16), mode="bilinear")

columns = F.unfold(image, kernel_size=3, padding=1)
columns.shape

# %%
# ``dynamic_dilation_unfold`` does the same with a *dilation map*: a rate for every position. Where all rates are one,
# nothing changes, down to the last bit.

ones = torch.ones(1, 1, 16, 16)
torch.equal(ddu_ops.dynamic_dilation_unfold(image, 3, ones, padding=1), columns)

# %%
# Now let the rate grow from left to right. It need not be whole: a tap between pixels is interpolated.

dilation_map = torch.linspace(0.5, 4, 16).expand(1, 1, 16, 16)
columns = ddu_ops.dynamic_dilation_unfold(image, 3, dilation_map, padding=1)

figure, axes = pyplot.subplots(1, 2, figsize=(8, 3.6), layout="constrained")
viz.draw_taps(image[0], dilation_map[0, 0], [(4, 2), (10, 6), (7, 11)], padding=1, ax=axes[0])
viz.draw_map(dilation_map, ax=axes[1])

# %%
# The convolution
# ---------------
#
# A weighted sum of the columns is a convolution. ``dynamic_dilation_conv2d`` makes it without leaving the columns
# behind: they take nine times the memory of the image. With a map of ones, it is ``F.conv2d``.

weight = torch.randn(4, 1, 3, 3)
output = ddu_ops.dynamic_dilation_conv2d(image, weight, dilation_map, padding=1)
by_hand = (weight.flatten(1) @ columns).unflatten(-1, (16, 16))
torch.testing.assert_close(output, by_hand)
torch.equal(ddu_ops.dynamic_dilation_conv2d(image, weight, ones, padding=1), F.conv2d(image, weight, padding=1))

# %%
# Rates have gradients
# --------------------
#
# The output is differentiable by the rates. Here is a small riddle: ``target`` was made with the map above. Which map?
# Gradient descent from a rate of 2 everywhere finds it, nearly. A gradient looks no further than the pixels around a
# tap, so the images are smooth: they slope in the right direction from further away.

image = F.interpolate(torch.rand(8, 3, 3, 3), (16, 16), mode="bicubic")
weight = torch.randn(8, 3, 3, 3)
target = ddu_ops.dynamic_dilation_conv2d(image, weight, dilation_map, padding=1)

guess = torch.full((1, 1, 16, 16), 2.0, requires_grad=True)
optimizer = torch.optim.Adam([guess], lr=0.05)
for _ in range(200):
    difference = ddu_ops.dynamic_dilation_conv2d(image, weight, guess, padding=1) - target
    optimizer.zero_grad()
    difference.square().mean().backward()
    optimizer.step()

figure, axes = pyplot.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
viz.draw_map(dilation_map, ax=axes[0], vmin=0.5, vmax=4).set_title("The map that was sought")
viz.draw_map(guess, ax=axes[1], vmin=0.5, vmax=4).set_title("The map that was found")
print(f"mean error of the rate: {(guess - dilation_map).abs().mean():.3f}")

# %%
# The layer
# ---------
#
# In a network the map is predicted, by a small convolution. ``DynamicDilationConv2d`` has one inside. It stands in the
# place of a ``Conv2d``, takes the same arguments, and starts with the same results: its rates start at one.

conv = torch.nn.Conv2d(3, 8, 3, padding=1)
layer = ddu_ops.DynamicDilationConv2d.from_conv(conv)
print(torch.equal(layer(image), conv(image)))
layer

# %%
# A task
# ------
#
# Digits on a plane that recedes: small at the top, three times as large at the bottom. Every pixel of ink is to be told
# which digit it belongs to. A window of one size cannot suit them all.
#
# The pictures come from ``examples/perspective_digits.py``, the script of the next page. A picture has two channels:
# the ink, and the height of each row.

from perspective_digits import make_pictures, true_scale

(pictures, classes), (test_pictures, test_classes) = make_pictures(seed=0, count=200)

figure, axes = pyplot.subplots(1, 3, figsize=(9, 3), layout="constrained")
for ax, shown, title in zip(
    axes,
    (test_pictures[0, 0], test_classes[0], true_scale()),
    ("A picture", "Its classes", "Scale of a digit"),
    strict=True,
):
    ax.imshow(shown, cmap="tab20" if title == "Its classes" else "gray")
    ax.set(title=title, xticks=[], yticks=[])

# %%
# A network
# ---------
#
# A stem that halves the resolution, a few adaptive layers, a classifier for each pixel. The layers share one predictor,
# so that there is one map to look at; each could have its own, by leaving ``predict=False`` and the map out. They start
# as convolutions of dilation 2, which the map multiplies.


class Network(torch.nn.Module):
    def __init__(self, channels=12, layers=3):
        super().__init__()
        self.stem = torch.nn.Sequential(
            torch.nn.Conv2d(2, channels, 5, 2, 2, bias=False), torch.nn.BatchNorm2d(channels), torch.nn.ReLU()
        )
        self.rate = ddu_ops.DilationPredictor(channels, 3, padding=1)
        self.layers = torch.nn.ModuleList(
            ddu_ops.DynamicDilationConv2d(channels, channels, 3, padding=2, dilation=2, predict=False)
            for _ in range(layers)
        )
        self.norms = torch.nn.ModuleList(torch.nn.BatchNorm2d(channels) for _ in range(layers))
        self.classifier = torch.nn.Conv2d(channels, 11, 1)

    def forward(self, input):
        features = self.stem(input)
        rates = self.rate(features)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            features = features + norm(layer(features, rates)).relu()
        return F.interpolate(self.classifier(features), input.shape[2:], mode="bilinear")


network = Network()

# %%
# Training
# --------
#
# As any network. While the weights are still random, small rates are the easy way to a lower loss, and rates that have
# become small see too little to grow again. The predictor's default pace keeps the rates from that. Here, where the
# scale follows the position, it helps besides to let the weights learn alone at first, at the rates where the layers
# start.

STEPS, SETTLE = 200, 60
optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3)
weight = torch.tensor([0.3] + [1.0] * 10)  # most of a picture is ground
losses = []
for step in range(STEPS):
    network.rate.requires_grad_(step >= SETTLE)
    batch = torch.randint(len(pictures), (8,))
    loss = F.cross_entropy(network(pictures[batch]), classes[batch], weight)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())

figure, ax = pyplot.subplots(figsize=(6, 2.6), layout="constrained")
ax.plot(losses)
ax.axvline(SETTLE, color="0.7")
ax.set(xlabel="step", ylabel="loss")

# %%
# What it has learned
# -------------------
#
# The map that it predicts for a picture it has not seen, times the dilation of the layers, beside the picture; and what
# one pixel near the top and one near the bottom depend on.

network.eval()
with torch.no_grad():
    learned = 2 * network.rate(network.stem(test_pictures[:1]))

figure, axes = pyplot.subplots(1, 4, figsize=(11, 3), layout="constrained")
axes[0].imshow(test_pictures[0, 0], cmap="gray")
axes[0].set(title="A picture", xticks=[], yticks=[])
viz.draw_map(learned, ax=axes[1]).set_title("Dilation")
viz.draw_effective_receptive_field(network, test_pictures[:8], (8, 24), ax=axes[2]).set_title("What a far pixel sees")
viz.draw_effective_receptive_field(network, test_pictures[:8], (40, 24), ax=axes[3]).set_title("What a near pixel sees")

# %%
# More steps, several seeds, and fixed rates to compare with: :doc:`/study`. To use the layer in a
# network of your own, replace a convolution by ``DynamicDilationConv2d.from_conv(conv)`` and go on training.
