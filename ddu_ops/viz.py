"""Plots of dilation maps and of the receptive fields that they produce.

They need matplotlib, ``pip install ddu_ops[viz]``, which is imported when something is drawn. Every function draws on
the given axes, or on new ones, and returns them.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ddu_ops import reference
from ddu_ops._options import Ints, integer, ints, several
from ddu_ops.functional import at_least_float32, dynamic_dilation_conv2d
from ddu_ops.receptive_field import Coverage, Field

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

    from ddu_ops.recorder import RateHistory

Position = tuple[int, int]


def _place(position: Any, option: str, name: str) -> tuple[int, ...]:
    """The row and the column of a position."""
    place = several(position, option, name, ValueError)
    if len(place) != 2:
        raise ValueError(f"{name}(): expected {option} to be a row and a column, but got {place}")
    return place


def _axes(ax: "Axes | None") -> "Axes":
    if ax is not None:
        return ax
    from matplotlib import pyplot

    return pyplot.subplots(layout="constrained")[1]


def _show(ax: "Axes", image: Tensor, **options: Any) -> "AxesImage":
    """``(H, W)`` or ``(1, H, W)``, or ``(3, H, W)`` between 0 and 1. Without pixels it is an empty frame."""
    image = image.detach().float().cpu()
    if image.dim() == 3:
        image = image[0] if image.shape[0] not in (3, 4) else image.permute(1, 2, 0).clamp(0, 1)
    height, width = (max(size, 1) for size in image.shape[:2])
    ax.set(xticks=[], yticks=[])
    return ax.imshow(image.numpy(), extent=(-0.5, width - 0.5, height - 0.5, -0.5), **options)


def tap_positions(
    dilation_map: Tensor,
    kernel_size: Ints,
    stride: Ints = 1,
    padding: Ints = 0,
    dilation: Ints = 1,
    *,
    aligned: bool = True,
    source: str = "rates",
) -> Tensor:
    """Return the positions of the taps of every window, in pixels of the image.

    Args:
        dilation_map: the rates, as in :func:`~ddu_ops.dynamic_dilation_unfold`; the offsets, as in
            :func:`~ddu_ops.deform_unfold2d`; or the affine maps, as in :func:`~ddu_ops.affine_unfold2d`.
        kernel_size, stride, padding, dilation, aligned: as in :func:`~ddu_ops.dynamic_dilation_unfold`.
        source: what ``dilation_map`` holds, ``"rates"``, ``"offsets"`` or ``"affine"``. Default: ``"rates"``.

    Shape:
        - dilation_map: :math:`(H_{out}, W_{out})`, or :math:`(2, H_{out}, W_{out})` with a rate per axis; offsets are
          :math:`(2 k_h k_w, H_{out}, W_{out})`, affine maps :math:`(6, H_{out}, W_{out})`.
        - Output: :math:`(H_{out}, W_{out}, k_h k_w, 2)`: row and column of every tap, in float32 if the map has a half
          type, so that positions are not rounded.

    Raises:
        ValueError: if the map has another shape, or ``source`` is another word.

    Example:
        >>> places = viz.tap_positions(torch.full((5, 5), 1.5), 3, padding=1)
        >>> places[2, 2, 0]
        tensor([0.5000, 0.5000])
    """
    name = "tap_positions"
    kernel_size = ints(kernel_size, 2, "kernel_size", name, ValueError)
    channels = {"rates": (1, 2), "offsets": (2 * math.prod(kernel_size),), "affine": (6,)}.get(source)
    if channels is None:
        raise ValueError(f"{name}(): expected source to be 'rates', 'offsets' or 'affine', but got {source!r}")
    rates = at_least_float32(dilation_map.detach())
    rates = rates[None] if rates.dim() == 2 else rates
    if rates.dim() != 3 or len(rates) not in channels:
        shapes = "(H_out, W_out) or (2, H_out, W_out)" if source == "rates" else f"({channels[0]}, H_out, W_out)"
        raise ValueError(f"{name}(): expected dilation_map of shape {shapes}, but got {tuple(dilation_map.shape)}")
    stride = ints(stride, 2, "stride", name, ValueError)
    padding = ints(padding, 2, "padding", name, ValueError)
    dilation = ints(dilation, 2, "dilation", name, ValueError)
    along = reference.positions(rates[None], source, kernel_size, stride, padding, dilation, aligned=aligned)
    places = [(pixel + displacement).expand(1, 1, *kernel_size, *rates.shape[1:]) for pixel, displacement in along]
    return torch.stack(places, -1)[0, 0].flatten(0, 1).movedim(0, 2)


def draw_taps(
    image: Tensor,
    dilation_map: Tensor,
    positions: Sequence[Position],
    kernel_size: Ints = 3,
    stride: Ints = 1,
    padding: Ints = 0,
    dilation: Ints = 1,
    *,
    aligned: bool = True,
    source: str = "rates",
    weights: Tensor | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    """Draw the taps of selected output positions over the image, in a different colour for each position.

    Args:
        image: what is looked at, :math:`(H, W)`, :math:`(1, H, W)` or, between 0 and 1, :math:`(3, H, W)`.
        dilation_map: the rates or the offsets, as in :func:`tap_positions`.
        positions: output positions (row, column).
        kernel_size, stride, padding, dilation, aligned, source: as in :func:`tap_positions`.
        weights: weights of the taps, such as those of attention, :math:`(k_h k_w, H_{out}, W_{out})`. The areas of a
            window's dots are proportional to them. Default: equal weights.
        ax: what to draw on. Default: new axes.

    Raises:
        ValueError: if image, map or weights have another shape, or a position is outside of the map.

    Example:
        >>> rates = torch.linspace(0.5, 3, 16).view(-1, 1).expand(16, 16)
        >>> viz.draw_taps(torch.rand(16, 16), rates, [(3, 4), (11, 10)], padding=1).get_title()
        'Taps of 2 windows'
    """
    if image.dim() not in (2, 3) or (image.dim() == 3 and len(image) not in (1, 3, 4)):
        raise ValueError(
            f"draw_taps(): expected image of shape (H, W), (1, H, W) or (3, H, W), but got {tuple(image.shape)}"
        )
    ax = _axes(ax)
    places = tap_positions(dilation_map, kernel_size, stride, padding, dilation, aligned=aligned, source=source).cpu()
    if weights is not None and weights.shape != (places.shape[2], *places.shape[:2]):
        expected = (places.shape[2], *places.shape[:2])
        raise ValueError(f"draw_taps(): expected weights of shape {expected}, but got {tuple(weights.shape)}")
    shown = _show(ax, image, cmap="gray")
    for index, position in enumerate(positions):
        row, column = _place(position, "positions", "draw_taps")
        if not (-len(places) <= row < len(places) and -places.shape[1] <= column < places.shape[1]):
            raise ValueError(
                f"draw_taps(): expected positions to lie in a map of size {tuple(places.shape[:2])}, but got "
                f"{(row, column)}"
            )
        taps = places[row, column]
        centre = taps.mean(0)
        share = torch.ones(len(taps)) if weights is None else weights[:, row, column].detach().float().cpu()
        areas = 28 * share / share.mean()
        ax.scatter(taps[:, 1], taps[:, 0], s=areas, color=f"C{index}", edgecolors="white", linewidths=0.7, zorder=3)
        ax.scatter(centre[1], centre[0], s=60, marker="+", color=f"C{index}", zorder=4)
    ax.axis(shown.get_extent())
    ax.set_title(f"Taps of {len(positions)} windows")
    return ax


def draw_map(dilation_map: Tensor, *, ax: "Axes | None" = None, **options: Any) -> "Axes":
    """Draw a dilation map with a colour bar.

    Args:
        dilation_map: the rates, :math:`(H_{out}, W_{out})`, possibly with leading dimensions of size 1.
        ax: the axes to draw on. Default: new axes.
        options: options of ``Axes.imshow``, such as ``vmin`` and ``vmax``.

    Raises:
        ValueError: for more than one map.

    Example:
        >>> viz.draw_map(torch.rand(1, 1, 8, 8) * 3).get_title()
        'Dilation rate'
    """
    if dilation_map.shape[:-2].numel() != 1:
        raise ValueError(f"draw_map(): expected dilation_map to be one map, but got shape {tuple(dilation_map.shape)}")
    ax = _axes(ax)
    shown = _show(ax, dilation_map.reshape(dilation_map.shape[-2:]), **{"cmap": "viridis", **options})
    ax.figure.colorbar(shown, ax=ax, shrink=0.8)
    ax.set_title("Dilation rate")
    return ax


def draw_rates(history: "RateHistory", *, ax: "Axes | None" = None) -> "Axes":
    """Draw how the rates of a layer changed during training: a histogram for each record, and the mean.

    Args:
        history: the history of a layer, from :class:`~ddu_ops.recorder.RateRecorder`.
        ax: the axes to draw on. Default: new axes.

    Example:
        >>> layer = DynamicDilationConv2d(3, 4, 3, padding=1)
        >>> with recorder.RateRecorder(layer, every=1) as rates:
        ...     for _ in range(2):
        ...         _ = layer(torch.randn(1, 3, 8, 8))
        ...         rates.step()
        >>> viz.draw_rates(rates.history["rate"]).get_title()
        'Below one half: 0%, at a bound: 0%, at step 2'
    """
    ax = _axes(ax)
    edges = history.edges.tolist()
    ax.set(xlabel="step", ylabel="rate", ylim=(edges[0], edges[-1]))
    if not history.steps:
        ax.set_title("No rates were recorded")
        return ax
    before = [0 if history.steps[0] > 0 else history.steps[0] - 1, *history.steps]
    shares = torch.stack(history.histograms).T
    shown = ax.pcolormesh(before, edges, shares.sqrt().numpy(), cmap="Blues")  # makes small shares visible
    colours = ax.figure.colorbar(shown, ax=ax, shrink=0.8, label="share of the rates")
    largest = float(shares.max()) or 1.0
    ticks = [largest * part for part in (0.0, 0.01, 0.1, 0.25, 0.5, 1.0)]
    colours.set_ticks([tick**0.5 for tick in ticks], labels=[f"{tick:.1%}" for tick in ticks])
    middles = [(first + last) / 2 for first, last in zip(before, history.steps, strict=False)]
    ax.plot(middles, history.mean, color="C1")
    at_a_bound = history.at_lower[-1] + history.at_upper[-1]
    ax.set_title(
        f"Below one half: {history.below_half[-1]:.0%}, at a bound: {at_a_bound:.0%}, at step {history.steps[-1]}"
    )
    return ax


def effective_receptive_field(function: Callable[[Tensor], Tensor], input: Tensor, position: Position) -> Tensor:
    """Return how much an output position depends on every pixel: the sum of gradient magnitudes over the channels.

    After W. Luo, Y. Li, R. Urtasun and R. Zemel, "Understanding the Effective Receptive Field in Deep Convolutional
    Neural Networks", 2016. The gradient includes the dependence of predicted rates on the input.

    Args:
        function: a network or a layer, from :math:`(B, C, H, W)` to :math:`(B, C', H', W')`.
        input: the images; magnitudes are averaged over the batch.
        position: the output position, (row, column). The sum of its channels is differentiated.

    Returns:
        :math:`(H, W)`, in float32 if the input has a half type.

    Raises:
        ValueError: if the position is outside of the output.

    Example:
        >>> conv = torch.nn.Conv2d(1, 1, 3, padding=2, dilation=2)
        >>> field = viz.effective_receptive_field(conv, torch.randn(1, 1, 9, 9), (4, 4))
        >>> int((field > 0).sum())
        9
    """
    row, column = _place(position, "position", "effective_receptive_field")
    with torch.inference_mode(mode=False), torch.enable_grad():
        input = input.detach().clone().requires_grad_()
        output = function(input)
        if any(not -size <= place < size for place, size in zip((row, column), output.shape[-2:], strict=True)):
            raise ValueError(
                f"effective_receptive_field(): expected position to lie in an output of size "
                f"{tuple(output.shape[-2:])}, but got {(row, column)}"
            )
        (gradient,) = torch.autograd.grad(output[..., row, column].sum(), input)
    return at_least_float32(gradient).abs().sum((0, 1)) / max(len(gradient), 1)


def draw_effective_receptive_field(
    function: Callable[[Tensor], Tensor], input: Tensor, position: Position, *, ax: "Axes | None" = None
) -> "Axes":
    """Draw :func:`effective_receptive_field`, relative to its largest value.

    Args:
        function, input, position: as in :func:`effective_receptive_field`, with the same errors.
        ax: the axes to draw on. Default: new axes.

    Example:
        >>> layer = DynamicDilationConv2d(1, 1, 3, padding=1)
        >>> viz.draw_effective_receptive_field(layer, torch.randn(4, 1, 9, 9), (4, 4)).get_title()
        'Effective receptive field'
    """
    ax = _axes(ax)
    field = effective_receptive_field(function, input, position).cpu()
    largest = field.max().clamp(min=torch.finfo(field.dtype).tiny) if field.numel() else 1
    _show(ax, field / largest, cmap="magma", vmin=0, vmax=1)
    ax.set_title("Effective receptive field")
    return ax


def draw_positions(
    positions: Tensor,
    kernel_size: Ints,
    weight: Tensor | None = None,
    *,
    before: Tensor | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    r"""Draw the positions of the weights of one kernel with learnable spacings.

    Args:
        positions: rows and columns relative to the cell ``kernel_size // 2``, as in :func:`ddu_ops.dcls.dcls_kernel`
            and in the ``positions()`` of a layer, for one pair of channels.
        kernel_size: of the dense kernel, whose cells are drawn as a grid.
        weight: the weights, to colour the points: red above zero, blue below. Default: one colour.
        before: earlier positions, which are connected to the current ones by lines. Default: no lines.
        ax: the axes to draw on. Default: new axes.

    Shape:
        - positions, before: :math:`(2, \text{count})`.
        - weight: :math:`(\text{count})`.

    Example:
        >>> layer = dcls.Dcls2d(4, 4, 6, groups=4, dilated_kernel_size=9)
        >>> viz.draw_positions(layer.positions()[:, 0, 0], 9, layer.weight[0, 0]).get_title()
        '6 weights in 9 x 9 cells'
    """
    ax = _axes(ax)
    height, width = ints(kernel_size, 2, "kernel_size", "draw_positions")
    shift = torch.tensor([[height // 2], [width // 2]])
    rows, columns = at_least_float32(positions.detach()).cpu() + shift
    if before is not None:
        old_rows, old_columns = at_least_float32(before.detach()).cpu() + shift
        ax.plot(torch.stack([old_columns, columns]), torch.stack([old_rows, rows]), color="0.6", linewidth=1, zorder=2)
    colours: dict[str, Any] = {"color": "C0"}
    if weight is not None:
        values = at_least_float32(weight.detach()).cpu()
        reach = float(values.abs().max()) if values.numel() else 1.0
        colours = {"c": values, "cmap": "RdBu_r", "vmin": -reach, "vmax": reach}
    ax.scatter(columns, rows, s=28, edgecolors="black", linewidths=0.7, zorder=3, **colours)
    ax.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5), aspect="equal")
    ax.set_xticks([edge - 0.5 for edge in range(width + 1)], [""] * (width + 1))
    ax.set_yticks([edge - 0.5 for edge in range(height + 1)], [""] * (height + 1))
    ax.grid(color="0.9")
    ax.set_title(f"{positions.shape[1]} weights in {height} x {width} cells")
    return ax


def gridding_pattern(rates: Sequence[float | Tensor], kernel_size: int = 3, size: int = 33) -> Tensor:
    """Return the number of paths from every pixel through a stack of layers to the output position in the middle.

    With fixed integer rates that have a common factor a pixel has many paths or none: the gridding of F. Yu, V. Koltun
    and T. Funkhouser, "Dilated Residual Networks", 2017. The result is the effective receptive field of a stack whose
    weights are all one; a path through a bilinear sample counts with the weight of the sample.

    Args:
        rates: for each layer, starting with the one that reads the image, a rate, or a map :math:`(size, size)`.
        kernel_size: of every layer, odd. Default: 3.
        size: height and width of the image. Default: 33.

    Returns:
        :math:`(size, size)`.

    Raises:
        ValueError: for an even kernel, which has no middle, for a size below 1, and if a map has another size.

    Example:
        >>> pattern = viz.gridding_pattern([2, 2, 2], size=17)
        >>> int((pattern > 0).sum()), int((viz.gridding_pattern([1, 2, 3], size=17) > 0).sum())
        (49, 169)
    """
    kernel_size = integer(kernel_size, "kernel_size", "gridding_pattern", ValueError)
    size = integer(size, "size", "gridding_pattern", ValueError)
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"gridding_pattern(): expected kernel_size to be odd, but got {kernel_size}")
    if size < 1:
        raise ValueError(f"gridding_pattern(): expected size to be at least 1, but got {size}")
    for rate in rates:
        if isinstance(rate, Tensor) and rate.shape not in ((), (size, size)):
            raise ValueError(
                f"gridding_pattern(): expected rates to be numbers or maps of shape {(size, size)}, but got "
                f"{tuple(rate.shape)}"
            )

    def stack(image: Tensor) -> Tensor:
        weight = image.new_ones(1, 1, kernel_size, kernel_size)
        for rate in rates:
            rate = torch.as_tensor(rate, dtype=torch.float64, device="cpu").clone()  # no tensor of inference mode
            dilation_map = rate.expand(1, 1, size, size)
            image = dynamic_dilation_conv2d(image, weight, dilation_map, padding=kernel_size // 2)
        return image

    return effective_receptive_field(stack, torch.zeros(1, 1, size, size, dtype=torch.float64), (size // 2, size // 2))


def draw_gridding(
    rates: Sequence[float | Tensor], fixed: Sequence[float | Tensor], kernel_size: int = 3, size: int = 33
) -> "Figure":
    """Draw the gridding pattern of a stack of layers next to that of a stack with fixed rates.

    Pixels without a path are white.

    Args:
        rates: the rates of the stack: see :func:`gridding_pattern`.
        fixed: the rates of the stack with fixed rates.
        kernel_size, size: as in :func:`gridding_pattern`.

    Example:
        >>> smooth = torch.linspace(1, 3, 33).expand(33, 33)
        >>> figure = viz.draw_gridding([smooth] * 3, fixed=[2, 2, 2])
        >>> [ax.get_title() for ax in figure.axes]
        ['Fixed rates: 29% of the pixels in reach', 'Dynamic rates: 94% of the pixels in reach']
    """
    from matplotlib import colormaps, pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(7.5, 4), layout="constrained")
    for ax, name, stack in zip(axes, ("Fixed", "Dynamic"), (fixed, rates), strict=True):
        pattern = gridding_pattern(stack, kernel_size, size)
        rows, columns = (pattern.sum(dim).nonzero() for dim in (1, 0))
        share = 0.0
        if len(rows):
            box = pattern[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
            share = (box > 0).double().mean().item()
        colours = colormaps["viridis"].with_extremes(bad="white")
        _show(ax, pattern.masked_fill(pattern == 0, torch.nan), cmap=colours)
        ax.set_title(f"{name} rates: {share:.0%} of the pixels in reach", fontsize=10)
    return figure


def draw_coverage(found: Coverage, *, ax: "Axes | None" = None) -> "Axes":
    r"""Draw the number of paths from every pixel of a receptive field to its output position.

    For a stack that is the same on both axes. Pixels without a path are white. The colour scale is logarithmic, because
    the numbers of paths differ widely.

    Args:
        found: the result of :func:`ddu_ops.receptive_field.coverage`.
        ax: the axes to draw on. Default: new axes.

    Example:
        >>> viz.draw_coverage(receptive_field.coverage([2, 3, 2, 3])).get_title()
        '82% of 21 × 21 pixels\nHDC refuses: M₂ = 4'
    """
    from matplotlib import colormaps, colors

    ax = _axes(ax)
    line = torch.tensor([float(count) for count in found.multiplicity])
    paths = torch.outer(line, line)
    shown = _show(
        ax,
        paths.masked_fill(paths == 0, torch.nan),
        cmap=colormaps["viridis"].with_extremes(bad="white"),
        norm=colors.LogNorm(1, max(paths.max().item(), 2)),
    )
    ax.figure.colorbar(shown, ax=ax, shrink=0.8, label="paths")
    criterion = "" if found.hdc is None else f"\nHDC {'passes' if found.hdc_holds else 'refuses'}: M₂ = {found.hdc}"
    ax.set_title(f"{found.share():.0%} of {found.size} × {found.size} pixels{criterion}", fontsize=10)
    return ax


def draw_receptive_fields(fields: Mapping[str, Field], axis: int = 0, *, ax: "Axes | None" = None) -> "Axes":
    """Draw the receptive fields of the outputs of a model along an axis, one line for each.

    A line goes from the first to the last pixel that position 0 reads, a dot marks the start, and ticks the starts of
    the next three positions: they are one jump apart. A line without ends reads the whole image.

    Args:
        fields: the result of :func:`ddu_ops.receptive_field.trace`, or a selection.
        axis: slowest first.
        ax: the axes to draw on. Default: new axes.

    Example:
        >>> stem = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 7, 2, 3), torch.nn.MaxPool2d(3, 2, 1))
        >>> fields = receptive_field.trace(stem)
        >>> [label.get_text() for label in viz.draw_receptive_fields(fields).get_yticklabels()]
        ['0: 7', '1: 11', 'model: 11']
    """
    ax = _axes(ax)
    ends_of_all = [float(end) for field in fields.values() for end in (field.first[axis], field.last[axis])]
    finite = [end for end in ends_of_all if math.isfinite(end)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    labels = []
    for row, (name, field) in enumerate(fields.items()):
        ends = max(float(field.first[axis]), low), min(float(field.last[axis]), high)
        ax.plot(ends, (row, row), color="C0", linewidth=3, solid_capstyle="butt")
        size, start = float(field.size[axis]), float(field.start[axis])
        if size < math.inf:
            ax.plot(start, row, "o", color="C1")
            ax.plot([start + n * float(field.jump[axis]) for n in (1, 2, 3)], [row] * 3, "|", color="C1")
        labels.append(f"{name or 'model'}: {'all' if size == math.inf else f'{size:g}'}")
    ax.set_yticks(range(len(labels)), labels, fontsize=8)
    ax.invert_yaxis()
    ax.set(xlabel="pixels of the image", title="Receptive fields")
    return ax
