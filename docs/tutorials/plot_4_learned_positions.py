r"""
Weights that learn where they lie
=================================

A large kernel of few weights, whose positions are parameters: a dilated convolution with learnable spacings.
"""

# %%
# A kernel
# --------
#
# Five weights in 9 x 9 cells. Each shares itself out over the cells around its position; in version ``v1`` over the
# four next to it, in version ``gauss`` over all, by a width that is learned too.

import torch
import torch.nn.functional as F
from matplotlib import pyplot

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
    ax.set(title=version, xticks=[], yticks=[])

# %%
# A block
# -------
#
# The block of ConvNeXt, with such a depthwise convolution in the place of its 7 x 7. The layer has the arguments and
# the parameters of the published package.


class Block(torch.nn.Module):
    def __init__(self, channels, weights=8, size=13):
        super().__init__()
        self.dwconv = dcls.Dcls2d(
            channels, channels, weights, padding=size // 2, dilated_kernel_size=size, groups=channels, version="v1"
        )
        self.norm = torch.nn.BatchNorm2d(channels)
        self.mix = torch.nn.Sequential(
            torch.nn.Conv2d(channels, 4 * channels, 1), torch.nn.GELU(), torch.nn.Conv2d(4 * channels, channels, 1)
        )

    def forward(self, input):
        return input + self.mix(self.norm(self.dwconv(input)))


class Network(torch.nn.Module):
    def __init__(self, channels=12):
        super().__init__()
        self.stem = torch.nn.Conv2d(2, channels, 4, 2, 1)
        self.block = Block(channels)
        self.classifier = torch.nn.Conv2d(channels, 11, 1)

    def forward(self, input):
        return F.interpolate(self.classifier(self.block(self.stem(input))), input.shape[2:], mode="bilinear")


network = Network()
before = network.block.dwconv.positions().detach()

# %%
# Training
# --------
#
# The task is that of :doc:`the first page <plot_1_from_unfold_to_a_layer>`: which digit a pixel of ink belongs to. The
# positions learn five times as fast as the weights and do not decay; a loss keeps them apart. They stay inside the
# kernel by themselves.

from perspective_digits import make_pictures

(pictures, classes), _ = make_pictures(seed=0, count=200)
optimizer = torch.optim.AdamW(dcls.parameter_groups(network, lr=5e-3, weight_decay=0.05))
weight = torch.tensor([0.3] + [1.0] * 10)  # most of a picture is ground
losses = []
for _ in range(150):
    batch = torch.randint(len(pictures), (8,))
    loss = F.cross_entropy(network(pictures[batch]), classes[batch], weight)
    optimizer.zero_grad()
    (loss + dcls.repulsion_loss(network)).backward()
    optimizer.step()
    losses.append(loss.item())
print(f"loss {losses[0]:.2f} at first, {sum(losses[-10:]) / 10:.2f} in the end")

# %%
# Where the weights have gone
# ---------------------------
#
# Of four channels: the positions now, and lines from where they were.

layer = network.block.dwconv
after = layer.positions().detach()
figure, axes = pyplot.subplots(1, 4, figsize=(11, 3), layout="constrained")
for channel, ax in enumerate(axes):
    viz.draw_positions(
        after[:, channel, 0], layer.dilated_kernel_size, layer.weight[channel, 0], before=before[:, channel, 0], ax=ax
    ).set_title(f"Channel {channel}")
print(f"moved by {(after - before).norm(dim=0).mean():.1f} cells on average")
