"""Pictures of dilation maps and of what they make layers see.

Needs matplotlib, ``pip install ddu_ops[viz]``; it is imported when something is drawn. Every function draws on the axes
that it is given, or on new ones, and returns them.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ddu_ops._options import Ints, integer, ints
from ddu_ops.functional import at_least_float32, dynamic_dilation_conv2d, to_offsets

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

Position = tuple[int, int]


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
) -> Tensor:
    """Where the taps of every window lie, in pixels of the image.

    Args:
        dilation_map: the rates, as of :func:`~ddu_ops.dynamic_dilation_unfold`.
        kernel_size, stride, padding, dilation, aligned: as in :func:`~ddu_ops.dynamic_dilation_unfold`.

    Shape:
        - dilation_map: :math:`(H_{out}, W_{out})`, or :math:`(2, H_{out}, W_{out})` with a rate per axis.
        - Output: :math:`(H_{out}, W_{out}, k_h k_w, 2)`: row and column of every tap, in float32 where the map is of a
          half type, because positions are not to be rounded.

    Raises:
        ValueError: for a map of another shape.

    Example:
        >>> places = viz.tap_positions(torch.full((5, 5), 1.5), 3, padding=1)
        >>> places[2, 2, 0]
        tensor([0.5000, 0.5000])
    """
    rates = at_least_float32(dilation_map.detach())
    rates = rates[None] if rates.dim() == 2 else rates
    if rates.dim() != 3 or len(rates) not in (1, 2):
        raise ValueError(
            "tap_positions(): expected dilation_map of shape (H_out, W_out) or (2, H_out, W_out), but got "
            f"{tuple(dilation_map.shape)}"
        )
    height, width = rates.shape[1:]
    name = "tap_positions"
    kernel_h, kernel_w = ints(kernel_size, 2, "kernel_size", name, ValueError)
    strides = ints(stride, 2, "stride", name, ValueError)
    paddings = ints(padding, 2, "padding", name, ValueError)
    dilations = ints(dilation, 2, "dilation", name, ValueError)
    options: dict[str, Any] = {"dtype": rates.dtype, "device": rates.device}
    windows = [
        torch.arange(size, **options) * s - p for size, s, p in zip((height, width), strides, paddings, strict=True)
    ]
    taps = [torch.arange(k, **options) * d for k, d in zip((kernel_h, kernel_w), dilations, strict=True)]
    window = torch.stack(torch.meshgrid(*windows, indexing="ij"), -1).view(height, width, 1, 2)
    tap = torch.stack(torch.meshgrid(*taps, indexing="ij"), -1).view(1, 1, kernel_h * kernel_w, 2)
    offsets = to_offsets(rates[None], (kernel_h, kernel_w), dilations, aligned=aligned)[0]
    return window + tap + offsets.view(kernel_h * kernel_w, 2, height, width).permute(2, 3, 0, 1)


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
    ax: "Axes | None" = None,
) -> "Axes":
    """Draw the taps of chosen output positions over the image, each position in a colour of its own.

    Args:
        image: what is looked at, :math:`(H, W)`, :math:`(1, H, W)` or, between 0 and 1, :math:`(3, H, W)`.
        dilation_map: the rates, :math:`(H_{out}, W_{out})` or :math:`(2, H_{out}, W_{out})`.
        positions: output positions (row, column).
        kernel_size, stride, padding, dilation, aligned: as in :func:`~ddu_ops.dynamic_dilation_unfold`.
        ax: what to draw on. Default: new axes.

    Example:
        >>> rates = torch.linspace(0.5, 3, 16).view(-1, 1).expand(16, 16)
        >>> viz.draw_taps(torch.rand(16, 16), rates, [(3, 4), (11, 10)], padding=1).get_title()
        'Taps of 2 windows'
    """
    ax = _axes(ax)
    places = tap_positions(dilation_map, kernel_size, stride, padding, dilation, aligned=aligned).cpu()
    shown = _show(ax, image, cmap="gray")
    for index, (row, column) in enumerate(positions):
        taps = places[row, column]
        centre = taps.mean(0)
        ax.scatter(taps[:, 1], taps[:, 0], s=28, color=f"C{index}", edgecolors="white", linewidths=0.7, zorder=3)
        ax.scatter(centre[1], centre[0], s=60, marker="+", color=f"C{index}", zorder=4)
    ax.axis(shown.get_extent())
    ax.set_title(f"Taps of {len(positions)} windows")
    return ax


def draw_map(dilation_map: Tensor, *, ax: "Axes | None" = None, **options: Any) -> "Axes":
    """Draw a dilation map, with a bar that tells its colours.

    Args:
        dilation_map: the rates, :math:`(H_{out}, W_{out})`, with leading dimensions of size 1 if need be.
        ax: what to draw on. Default: new axes.
        options: of ``Axes.imshow``, such as ``vmin`` and ``vmax``.

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


def effective_receptive_field(function: Callable[[Tensor], Tensor], input: Tensor, position: Position) -> Tensor:
    """How much an output position depends on every pixel: the sum of the gradients' magnitudes over the channels.

    After W. Luo, Y. Li, R. Urtasun and R. Zemel, "Understanding the Effective Receptive Field in Deep Convolutional
    Neural Networks", 2016. Rates that are predicted from the input take part in the gradient.

    Args:
        function: a network or a layer, from :math:`(B, C, H, W)` to :math:`(B, C', H', W')`.
        input: the images; magnitudes are averaged over the batch.
        position: of the output, (row, column); the sum of its channels is what is differentiated.

    Returns:
        :math:`(H, W)`, in float32 where the input is of a half type.

    Example:
        >>> conv = torch.nn.Conv2d(1, 1, 3, padding=2, dilation=2)
        >>> field = viz.effective_receptive_field(conv, torch.randn(1, 1, 9, 9), (4, 4))
        >>> int((field > 0).sum())
        9
    """
    with torch.inference_mode(mode=False), torch.enable_grad():
        input = input.detach().clone().requires_grad_()
        output = function(input)[..., position[0], position[1]].sum()
        (gradient,) = torch.autograd.grad(output, input)
    return at_least_float32(gradient).abs().sum((0, 1)) / max(len(gradient), 1)


def draw_effective_receptive_field(
    function: Callable[[Tensor], Tensor], input: Tensor, position: Position, *, ax: "Axes | None" = None
) -> "Axes":
    """Draw :func:`effective_receptive_field`, as parts of its largest value.

    Args:
        function, input, position: as in :func:`effective_receptive_field`.
        ax: what to draw on. Default: new axes.

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
    r"""Draw where the weights of one kernel with learnable spacings lie.

    Args:
        positions: relative to the cell ``kernel_size // 2``, row and column, as of
            :func:`ddu_ops.dcls.dcls_kernel` and of a layer's ``positions()``, of one pair of channels.
        kernel_size: of the dense kernel: its cells are drawn as a grid.
        weight: what colours the points: red above zero, blue below. Default: one colour.
        before: where they lay before, which a line leads from. Default: no lines.
        ax: what to draw on. Default: new axes.

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
    """How many paths lead from every pixel through a stack of layers to the output position in the middle.

    With fixed integer rates that have a common factor a pixel has many paths or none: the gridding of F. Yu, V. Koltun
    and T. Funkhouser, "Dilated Residual Networks", 2017. It is the effective receptive field of a stack whose weights
    are all one; a path through a bilinear sample counts as much as its weight.

    Args:
        rates: of each layer, the one that reads the image first: a rate, or a map :math:`(size, size)`.
        kernel_size: of every layer, odd. Default: 3.
        size: height and width of the image. Default: 33.

    Returns:
        :math:`(size, size)`.

    Raises:
        ValueError: for an even kernel, which has no middle.

    Example:
        >>> pattern = viz.gridding_pattern([2, 2, 2], size=17)
        >>> int((pattern > 0).sum()), int((viz.gridding_pattern([1, 2, 3], size=17) > 0).sum())
        (49, 169)
    """
    kernel_size = integer(kernel_size, "kernel_size", "gridding_pattern", ValueError)
    size = integer(size, "size", "gridding_pattern", ValueError)
    if kernel_size % 2 == 0:
        raise ValueError(f"gridding_pattern(): expected kernel_size to be odd, but got {kernel_size}")

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
    """Draw the gridding pattern of a stack of layers beside that of a stack with fixed rates.

    Pixels without a path are white.

    Args:
        rates: of each layer of the stack: see :func:`gridding_pattern`.
        fixed: of each layer of the other.
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
