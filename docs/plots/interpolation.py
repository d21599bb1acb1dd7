"""A tap and its derivative by the rate."""

import torch
from matplotlib import pyplot

from ddu_ops import dynamic_dilation_unfold

image = torch.tensor([0, 0, 0, 0, 1, 3, 2, 2.5, 1]).view(1, 1, 1, 9).double()
rates = torch.linspace(0, 4.5, 451, dtype=torch.float64)
maps = torch.zeros(451, 1, 1, 7, dtype=torch.float64)
maps[..., 3] = rates.view(-1, 1, 1)
maps.requires_grad_()
samples = dynamic_dilation_unfold(image.expand(451, -1, -1, -1), (1, 3), maps)[:, 2, 3]
(slopes,) = torch.autograd.grad(samples.sum(), maps)

figure, axes = pyplot.subplots(1, 2, figsize=(8, 2.8), layout="constrained")
axes[0].plot(rates, samples.detach())
axes[0].set(title="A tap", xlabel="dilation rate")
axes[1].plot(rates, slopes[..., 3].flatten(), drawstyle="steps-post")
axes[1].set(title="Its derivative by the rate", xlabel="dilation rate")
