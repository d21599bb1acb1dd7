"""Windows of an attention head that looks for pixels of the same colour, in wider windows where the picture is flat."""

import torch
import torch.nn.functional as F
from matplotlib import pyplot
from sklearn.datasets import load_sample_image

from ddu_ops import dynamic_dilation_correlate2d, viz

photo = (
    torch.tensor(load_sample_image("china.jpg")).permute(2, 0, 1)[:, 40:400, 60:560]
    / 255
)
photo = F.interpolate(photo[None], (60, 83), mode="bilinear", antialias=True)
brightness = photo.mean(1, keepdim=True)
mean = F.avg_pool2d(brightness, 7, 1, 3, count_include_pad=False)
contrast = F.avg_pool2d((brightness - mean).square(), 7, 1, 3).sqrt()
rates = 1.3 + 2 * torch.exp(-contrast / 0.04)

# The score of a tap is the negative squared distance of the colours, up to a term that all taps of a window share.
query = 30 * torch.cat([2 * photo, -torch.ones_like(brightness)], 1)
key = torch.cat([photo, photo.square().sum(1, keepdim=True)], 1)
weights = dynamic_dilation_correlate2d(query, key, 5, rates, padding=2).softmax(1)

places = [(9, 15), (9, 66), (20, 41), (36, 18), (37, 62), (52, 70)]
figure, axes = pyplot.subplots(1, 2, figsize=(11, 3.9), layout="constrained")
viz.draw_taps(photo[0], rates[0], places, 5, padding=2, weights=weights[0], ax=axes[0])
axes[0].set_title("Taps of 6 windows, as large as their weights")
viz.draw_map(rates, ax=axes[1])
