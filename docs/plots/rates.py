"""From the result of a convolution to a rate."""

import math

import torch
from matplotlib import pyplot

from ddu_ops import DilationPredictor

z = torch.linspace(-6, 6, 241).view(1, 1, 1, -1)
figure, ax = pyplot.subplots(figsize=(6, 3), layout="constrained")
for bounds in ((0.0, 4.0), (0.5, 2.0), (0.0, math.inf)):
    predictor = DilationPredictor(1, 1, bounds=bounds, pace=1.0)
    torch.nn.init.ones_(predictor.weight)
    ax.plot(
        z.flatten(),
        predictor(z).detach().flatten(),
        label=f"bounds=({bounds[0]:g}, {bounds[1]:g})",
    )
ax.plot(0, 1, "ko", markersize=4)
ax.set(xlabel="z", ylabel="rate", ylim=(-0.2, 6.2))
ax.legend()
