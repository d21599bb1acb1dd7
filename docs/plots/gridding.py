"""Which pixels a stack of layers reads."""

import torch

from ddu_ops import viz

wave = 2 + torch.sin(torch.linspace(0, 6, 33)).view(-1, 1) * torch.cos(
    torch.linspace(0, 5, 33)
)
viz.draw_gridding([wave] * 3, fixed=[2, 2, 2])
