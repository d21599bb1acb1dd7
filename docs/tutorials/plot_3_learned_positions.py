r"""
Weights that learn their positions
==================================

A dilated convolution with learnable spacings (DCLS): a large kernel with few weights, whose positions are parameters.
"""

# %%
# The kernel
# ----------
#
# Five weights in 9 × 9 cells. Each weight is spread over the cells around its position: over the nearest four in
# version ``v1``, and over all of them, with a learnable width, in version ``gauss``.

import torch
import torch.nn.functional as F
from matplotlib import pyplot
from sklearn.datasets import load_digits

from ddu_ops import dcls, viz

torch.manual_seed(0)
weight = torch.tensor([[[1.0, -0.6, 0.8, 0.5, -1.0]]])
positions = 2 * torch.randn(2, 1, 1, 5)
width = torch.full_like(positions, 0.4)

figure, axes = pyplot.subplots(1, 3, figsize=(9, 3), layout="constrained")
viz.draw_positions(positions[:, 0, 0], 9, weight[0, 0], ax=axes[0])
for ax, version in zip(axes[1:], ("v1", "gauss"), strict=True):
    sigma = width if version == "gauss" else None
    kernel = dcls.dcls_kernel(weight, positions, 9, sigma, version=version)
    ax.imshow(kernel[0, 0], cmap="RdBu_r", vmin=-1, vmax=1)
    ax.set_title(version)
    ax.set_axis_off()

# %%
# A block
# -------
#
# The ConvNeXt block, with DCLS in place of its 7 × 7 depthwise convolution. The layer has the arguments and the
# parameters of the published package.


class Block(torch.nn.Module):
    def __init__(self, channels, weights=8, size=13):
        super().__init__()
        self.dwconv = dcls.Dcls2d(
            channels,
            channels,
            weights,
            padding=size // 2,
            dilated_kernel_size=size,
            groups=channels,
            version="v1",
        )
        self.norm = torch.nn.BatchNorm2d(channels)
        self.mix = torch.nn.Sequential(
            torch.nn.Conv2d(channels, 4 * channels, 1),
            torch.nn.GELU(),
            torch.nn.Conv2d(4 * channels, channels, 1),
        )

    def forward(self, input):
        return input + self.mix(self.norm(self.dwconv(input)))


channels = 12
network = torch.nn.Sequential(
    torch.nn.Conv2d(1, channels, 4, 2, 1),
    Block(channels),
    torch.nn.AdaptiveMaxPool2d(4),
    torch.nn.Flatten(),
    torch.nn.Linear(16 * channels, 10),
)
layer = network[1].dwconv
before = layer.positions().detach()

# %%
# Training
# --------
#
# The task is to classify handwritten digits of 32 × 32 pixels. ``dcls.parameter_groups`` gives the positions five times
# the learning rate of the weights and no weight decay; ``dcls.repulsion_loss`` keeps them apart. They stay inside the
# kernel without clamping.

digits = load_digits()
images = torch.tensor(digits.images / 16, dtype=torch.float32)
images = F.interpolate(images[:, None], (32, 32), mode="bilinear")
labels = torch.tensor(digits.target)
train, test = torch.arange(1000), torch.arange(1000, len(images))

groups = dcls.parameter_groups(network, lr=5e-3, weight_decay=0.05)
optimizer = torch.optim.AdamW(groups)
for step in range(151):
    batch = train[torch.randint(len(train), (32,))]
    loss = F.cross_entropy(network(images[batch]), labels[batch])
    optimizer.zero_grad()
    (loss + dcls.repulsion_loss(network)).backward()
    optimizer.step()
    if step % 50 == 0:
        print(f"step {step}: loss {loss:.2f}")

network.eval()
with torch.no_grad():
    right = network(images[test]).argmax(1) == labels[test]
print(f"{right.float().mean():.0%} of the test digits are classified correctly")

# %%
# Where the weights are now
# -------------------------
#
# The positions of four channels, with lines from where they started.

after = layer.positions().detach()
figure, axes = pyplot.subplots(1, 4, figsize=(11, 3), layout="constrained")
for channel, ax in enumerate(axes):
    viz.draw_positions(
        after[:, channel, 0],
        layer.dilated_kernel_size,
        layer.weight[channel, 0],
        before=before[:, channel, 0],
        ax=ax,
    ).set_title(f"Channel {channel}")
print(f"moved by {(after - before).norm(dim=0).mean():.1f} cells on average")
