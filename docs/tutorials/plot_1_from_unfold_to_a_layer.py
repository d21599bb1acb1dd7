r"""
From F.unfold to a trained layer
================================

A convolution slides a window over an image and sums what it sees, with weights. In this tutorial the window gets its
own dilation rate at every position. First you set the rates by hand, then gradient descent finds them, and finally a
network predicts them.
"""

# %%
# The window
# ----------
#
# ``F.unfold`` extracts the windows: one column of nine pixels, from a 3 × 3 window, for each of the 16 × 16 positions.

# sphinx_gallery_thumbnail_number = 5

import torch
import torch.nn.functional as F
from matplotlib import pyplot
from sklearn.datasets import load_digits

import ddu_ops
from ddu_ops import viz

torch.manual_seed(0)
loaded = load_digits()
digits = torch.tensor(loaded.images, dtype=torch.float32) / 16
labels = torch.tensor(loaded.target)
image = F.interpolate(digits[3][None, None], (16, 16), mode="bilinear")

columns = F.unfold(image, kernel_size=3, padding=1)
columns.shape

# %%
# ``dynamic_dilation_unfold`` does the same with a *dilation map*: one rate for every position. A map of ones gives the
# same result, bit for bit.

ones = torch.ones(1, 1, 16, 16)
torch.equal(ddu_ops.dynamic_dilation_unfold(image, 3, ones, padding=1), columns)

# %%
# Now let the rate increase from left to right. It need not be an integer: a tap between pixels is interpolated.

dilation_map = torch.linspace(0.5, 4, 16).expand(1, 1, 16, 16)
columns = ddu_ops.dynamic_dilation_unfold(image, 3, dilation_map, padding=1)

positions = [(4, 2), (10, 6), (7, 11)]
figure, axes = pyplot.subplots(1, 2, figsize=(8, 3.6), layout="constrained")
viz.draw_taps(image[0], dilation_map[0, 0], positions, padding=1, ax=axes[0])
viz.draw_map(dilation_map, ax=axes[1])

# %%
# The convolution
# ---------------
#
# A weighted sum of the columns is a convolution. ``dynamic_dilation_conv2d`` computes it without storing the columns,
# which take nine times the memory of the image. With a map of ones it is ``F.conv2d``.

weight = torch.randn(4, 1, 3, 3)
output = ddu_ops.dynamic_dilation_conv2d(image, weight, dilation_map, padding=1)
by_hand = (weight.flatten(1) @ columns).unflatten(-1, (16, 16))
torch.testing.assert_close(output, by_hand)

with_ones = ddu_ops.dynamic_dilation_conv2d(image, weight, ones, padding=1)
torch.equal(with_ones, F.conv2d(image, weight, padding=1))

# %%
# Rates have gradients
# --------------------
#
# The output is differentiable with respect to the rates. Here ``target`` is computed with the map above, and gradient
# descent recovers that map, starting from a rate of 2 everywhere. A gradient only sees the pixels around a tap, so the
# images are smooth: their slope then points the right way from further away.

image = F.interpolate(torch.rand(8, 3, 3, 3), (16, 16), mode="bicubic")
weight = torch.randn(8, 3, 3, 3)
target = ddu_ops.dynamic_dilation_conv2d(image, weight, dilation_map, padding=1)

guess = torch.full((1, 1, 16, 16), 2.0, requires_grad=True)
optimizer = torch.optim.Adam([guess], lr=0.05)
for _ in range(200):
    output = ddu_ops.dynamic_dilation_conv2d(image, weight, guess, padding=1)
    optimizer.zero_grad()
    F.mse_loss(output, target).backward()
    optimizer.step()

figure, axes = pyplot.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
viz.draw_map(dilation_map, ax=axes[0], vmin=0.5, vmax=4).set_title("True map")
viz.draw_map(guess, ax=axes[1], vmin=0.5, vmax=4).set_title("Recovered map")
print(f"mean error of the rate: {(guess - dilation_map).abs().mean():.3f}")

# %%
# The layer
# ---------
#
# In a network, a small convolution predicts the map. ``DynamicDilationConv2d`` contains one. It replaces a ``Conv2d``,
# takes the same arguments and gives the same results at first, because its rates start at one.

conv = torch.nn.Conv2d(3, 8, 3, padding=1)
layer = ddu_ops.DynamicDilationConv2d.from_conv(conv)
print(torch.equal(layer(image), conv(image)))
layer

# %%
# A task
# ------
#
# Digits on a receding plane: small at the top, three times as large at the bottom. The network has to tell, for every
# pixel of ink, which digit it belongs to. No single window size suits all of them. Each picture has two channels, the
# ink and the height of each row. Training and test pictures share no digit.

SIZE = 64
scale = torch.linspace(1.25, 4, SIZE)  # of a digit of 8 x 8 pixels, by row


def make_pictures(count, digits, labels):
    ink = torch.zeros(count, 1, SIZE, SIZE)
    classes = torch.zeros(count, SIZE, SIZE, dtype=torch.long)
    for picture, truth in zip(ink[:, 0], classes, strict=True):
        taken = torch.zeros(SIZE, SIZE, dtype=torch.bool)
        for _ in range(40):  # attempts to find a free place
            y, x = torch.randint(SIZE, (2,)).tolist()
            size = round(8 * scale[y].item())
            top, left = y - size // 2, x - size // 2
            place = slice(top, top + size), slice(left, left + size)
            if min(top, left) < 0 or max(top, left) + size > SIZE or taken[place].any():
                continue
            index = torch.randint(len(digits), ()).item()
            digit = F.interpolate(
                digits[index][None, None], (size, size), mode="bilinear"
            )
            taken[place] = True
            picture[place] = digit[0, 0]
            truth[place] = torch.where(digit[0, 0] > 0.4, labels[index] + 1, 0)
    ink += 0.1 * torch.randn_like(ink)
    height = torch.linspace(-1, 1, SIZE).view(-1, 1).expand_as(ink)
    return torch.cat([ink, height], 1), classes


pictures, classes = make_pictures(200, digits[:1000], labels[:1000])
test_pictures, test_classes = make_pictures(8, digits[1000:], labels[1000:])

figure, axes = pyplot.subplots(1, 2, figsize=(7, 3.2), layout="constrained")
axes[0].imshow(test_pictures[0, 0], cmap="gray")
axes[0].set(title="A picture", xticks=[], yticks=[])
axes[1].imshow(test_classes[0], cmap="tab20")
_ = axes[1].set(title="Its classes", xticks=[], yticks=[])

# %%
# A network
# ---------
#
# A stem that halves the resolution, three adaptive layers, and a classifier for each pixel. The layers share one
# predictor, so that there is a single map to look at. (Without ``predict=False`` each layer has a predictor of its own,
# which a map that is passed replaces.) They start as convolutions with a dilation of 2, which the map multiplies.


class Network(torch.nn.Module):
    def __init__(self, channels=12, layers=3):
        super().__init__()
        self.stem = torch.nn.Sequential(
            torch.nn.Conv2d(2, channels, 5, 2, 2, bias=False),
            torch.nn.BatchNorm2d(channels),
            torch.nn.ReLU(),
        )
        self.rate = ddu_ops.DilationPredictor(channels, 3, padding=1)
        self.layers = torch.nn.ModuleList(
            ddu_ops.DynamicDilationConv2d(
                channels, channels, 3, padding=2, dilation=2, predict=False
            )
            for _ in range(layers)
        )
        self.norms = torch.nn.ModuleList(
            torch.nn.BatchNorm2d(channels) for _ in range(layers)
        )
        self.classifier = torch.nn.Conv2d(channels, 11, 1)

    def forward(self, input):
        features = self.stem(input)
        rates = self.rate(features)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            features = features + norm(layer(features, rates)).relu()
        scores = self.classifier(features)
        return F.interpolate(scores, input.shape[2:], mode="bilinear")


network = Network()

# %%
# Training
# --------
#
# Training works as for any network. While the weights are still random, small rates are the easy way to a lower loss,
# and rates that have become small see too little to grow again. The predictor's default ``pace`` prevents this. In this
# task, where the scale depends on the position, it also helps to freeze the rates at first, so that the weights learn
# alone.

STEPS, FROZEN = 200, 60
optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3)
weight = torch.tensor([0.3] + [1.0] * 10)  # most of a picture is background
losses = []
for step in range(STEPS):
    network.rate.requires_grad_(step >= FROZEN)
    batch = torch.randint(len(pictures), (8,))
    loss = F.cross_entropy(network(pictures[batch]), classes[batch], weight)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())

figure, ax = pyplot.subplots(figsize=(6, 2.6), layout="constrained")
ax.plot(losses)
ax.axvline(FROZEN, color="0.7")
_ = ax.set(xlabel="step", ylabel="loss")

# %%
# What it has learned
# -------------------
#
# A test picture, the dilation that the network predicts for it, and what one pixel near the top and one near the bottom
# depend on.

network.eval()
with torch.no_grad():
    learned = 2 * network.rate(network.stem(test_pictures[:1]))

figure, axes = pyplot.subplots(1, 4, figsize=(11, 3), layout="constrained")
axes[0].imshow(test_pictures[0, 0], cmap="gray")
axes[0].set(title="A picture", xticks=[], yticks=[])
viz.draw_map(learned, ax=axes[1]).set_title("Dilation")
for ax, row, title in zip(axes[2:], (8, 40), ("far", "near"), strict=True):
    viz.draw_effective_receptive_field(network, test_pictures, (row, 24), ax=ax)
    ax.set_title(f"Seen by a {title} pixel")

# %%
# :doc:`/study` trains for longer, with several seeds, and compares with fixed rates. To use the layer in your own
# network, replace a convolution by ``DynamicDilationConv2d.from_conv(conv)`` and continue training.
