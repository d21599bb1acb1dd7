"""The taps of four windows, and the map that says how far apart they are."""

import torch
from matplotlib import pyplot
from sklearn.datasets import load_digits

from ddu_ops import viz

figure, axes = pyplot.subplots(1, 2, figsize=(8, 3.6), layout="constrained")
image = torch.tensor(load_digits().images[12])
image = torch.nn.functional.interpolate(image[None, None], (32, 32), mode="bilinear")[
    0, 0
]
rates = torch.linspace(0.25, 4, 32).expand(32, 32)
viz.draw_taps(
    image, rates, [(8, 3), (22, 8), (10, 17), (22, 25)], padding=1, ax=axes[0]
)
viz.draw_map(rates, ax=axes[1])
