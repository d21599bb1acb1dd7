"""Which pixels stacks of fixed rates read, and by how many paths."""

import warnings

from matplotlib import pyplot

from ddu_ops import receptive_field, viz

figure, axes = pyplot.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the point of the first picture
    for ax, rates in zip(axes, ([2, 2, 2, 2], [2, 3, 2, 3], [1, 2, 5]), strict=True):
        viz.draw_coverage(receptive_field.coverage(rates), ax=ax)
        ax.set_xlabel(f"rates {', '.join(map(str, rates))}")
