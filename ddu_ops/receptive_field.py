r"""Closed formulas for the receptive field of a layer, of a stack and of a traced model, and for the holes in it.

For output position :math:`i` along an axis, a layer with kernel size :math:`k`, stride :math:`s`, padding :math:`p`,
dilation :math:`d` and rate :math:`D` at this position reads between

.. math::
    c - \tfrac{k - 1}{2} d \, |D| \quad \text{and} \quad c + \tfrac{k - 1}{2} d \, |D|, \qquad
    c = i \, s - p + d \, \tfrac{k - 1}{2},

and linear interpolation touches the pixels on both sides of both ends. In a stack of layers these half widths add up,
each multiplied by the strides of the layers below it; the formulas for fixed rates are those of A. Araujo, W. Norris
and J. Sim, "Computing Receptive Fields of Convolutional Neural Networks", Distill, 2019.

The size of a receptive field does not tell which of its pixels are read. :func:`coverage` counts them.
"""

import math
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from ddu_ops._options import Ints, integer, length_of_ints, one_or_more

Interval = tuple[float, float]

_OPTIONS = ("kernel_size", "stride", "padding", "dilation")


@dataclass(frozen=True)
class Layer:
    """The window of a layer and its largest rate, which is 1 for a plain convolution.

    Args:
        kernel_size, stride, padding, dilation: as in the layer, on any number of axes: an int, or one per axis.
        rate: the rate; for a dynamic layer the largest absolute rate, as in ``dilation_map.abs().max().item()``.
        aligned: as in :func:`~ddu_ops.dynamic_dilation_unfold`.

    Raises:
        ValueError: if options are not ints, or are for different numbers of axes.

    Example:
        >>> receptive_field.Layer(3, padding=1, rate=2.5)
        Layer(kernel_size=3, stride=1, padding=1, dilation=1, rate=2.5, aligned=True)
    """

    kernel_size: Ints
    stride: Ints = 1
    padding: Ints = 0
    dilation: Ints = 1
    rate: float = 1.0
    aligned: bool = True

    def __post_init__(self) -> None:
        lengths = [length_of_ints(getattr(self, name)) for name in _OPTIONS]
        axes = max((length for length in lengths if length in (2, 3)), default=2)
        for name, length in zip(_OPTIONS, lengths, strict=True):
            value = getattr(self, name)
            if length not in (1, 2, 3):
                raise ValueError(
                    f"Layer(): expected {name} to be an int, or one for each of one to three axes, but got {value!r}"
                )
            for_one = 1 if length == 1 else axes  # a list with one number stays one
            object.__setattr__(self, name, one_or_more(value, for_one, name, "Layer", ValueError))

    @property
    def axes(self) -> int | None:
        """The number of axes, or ``None`` if all options are numbers, which do for any."""
        return max((len(value) for name in _OPTIONS if isinstance(value := getattr(self, name), tuple)), default=None)

    def along(self, axis: int) -> tuple[int, int, int, int]:
        """Kernel size, stride, padding and dilation along an axis, slowest axis first."""
        kernel_size, stride, padding, dilation = (
            value[axis if len(value) > 1 else 0] if isinstance(value := getattr(self, name), tuple) else value
            for name in _OPTIONS
        )
        return kernel_size, stride, padding, dilation


def interval(layer: Layer, position: Interval, axis: int = 0, rate: float | None = None) -> Interval:
    """Return the interval that a layer reads for a range of output positions, which may end between pixels.

    Args:
        layer: the layer.
        position: the first and the last output position.
        axis: slowest first: in two dimensions 0 for the height, 1 for the width.
        rate: a rate to use in place of that of the layer.

    Returns:
        The first and the last position of a tap, in pixels of the layer's input, possibly outside of it.

    Example:
        >>> receptive_field.interval(receptive_field.Layer(3, padding=1), (4, 4), rate=2.5)
        (1.5, 6.5)
    """
    kernel_size, stride, padding, dilation = layer.along(axis)
    reach = dilation * (kernel_size - 1) / 2
    centre = reach if layer.aligned else 0.0
    spread = reach * abs(layer.rate if rate is None else rate)
    first, last = (i * stride - padding + centre for i in position)
    return first - spread, last + spread


def pixels(places: Interval, size: int | None = None) -> tuple[int, int]:
    """Return the pixels that linear samples between two positions can touch, clipped to the image.

    Example:
        >>> receptive_field.pixels((1.5, 6.5))
        (1, 7)
        >>> receptive_field.pixels((-0.5, 6.5), size=6)
        (0, 5)
    """
    first, last = math.floor(places[0]), math.ceil(places[1])
    if size is None:
        return first, last
    return max(first, 0), min(last, integer(size, "size", "pixels", ValueError) - 1)


def size(layers: Sequence[Layer], axis: int = 0) -> float:
    r"""Return the width of the receptive field of one output position, in pixels.

    It is :math:`1 + \sum_l (k_l - 1) \, d_l \, |D_l| \prod_{m < l} s_m`, which is exact if no tap lies between pixels.
    With the largest rates of dynamic layers it is their largest receptive field.

    Args:
        layers: the stack, the layer that reads the image first.
        axis: slowest first: in two dimensions 0 for the height, 1 for the width.

    Example:
        >>> stack = [receptive_field.Layer(3, dilation=d) for d in (1, 2, 4)]
        >>> receptive_field.size(stack)
        15.0
        >>> receptive_field.size([receptive_field.Layer(3, rate=1.5)] * 3)
        10.0
    """
    total, step = 1.0, 1
    for layer in layers:
        kernel_size, stride, _, dilation = layer.along(axis)
        total += (kernel_size - 1) * dilation * abs(layer.rate) * step
        step *= stride
    return total


def stack_interval(
    layers: Sequence[Layer],
    position: int,
    axis: int = 0,
    dilation_maps: Sequence[Tensor | None] | None = None,
    sizes: Sequence[int] | None = None,
) -> tuple[int, int]:
    """Return the first and the last pixel of the image that an output position of a stack can read.

    The interval is followed from the last layer to the first, because what a layer reads are output positions of the
    layer before it. If a layer has a map, the rates within the interval are used, otherwise the layer's own rate. The
    result is a bound: a pixel in between may be skipped (gridding) or have no weight.

    Args:
        layers: the stack, the layer that reads the image first.
        position: the output position along the axis.
        axis: slowest first: in two dimensions 0 for the height, 1 for the width.
        dilation_maps: for each layer ``None`` or its rates along the axis, :math:`(n)`, one for each of its output
            positions; for a two-dimensional map, use the largest rate of every row or column.
        sizes: the size of each layer's input along the axis, to exclude positions outside of it.

    Returns:
        The first and the last pixel, or (0, -1) if there are none, because all windows lie outside or their rates are
        not finite.

    Raises:
        ValueError: if the number of maps or sizes is not the number of layers.

    Example:
        >>> layers = [receptive_field.Layer(3, padding=1)] * 2
        >>> receptive_field.stack_interval(layers, 8)
        (6, 10)
        >>> rates = torch.linspace(1, 3, 17)
        >>> receptive_field.stack_interval(layers, 8, dilation_maps=[rates, rates])
        (4, 13)
    """
    maps = [None] * len(layers) if dilation_maps is None else list(dilation_maps)
    name = "stack_interval"
    extents: list[int | None] = [None] * len(layers)
    if sizes is not None:
        extents = [None if size is None else integer(size, "sizes", name, ValueError) for size in sizes]
    position = integer(position, "position", name, ValueError)
    for option, given in (("dilation_maps", maps), ("sizes", extents)):
        if len(given) != len(layers):
            raise ValueError(
                f"{name}(): expected {option} to be as many as the layers, {len(layers)}, but got {len(given)}"
            )
    first = last = position
    for layer, rates, extent in reversed(list(zip(layers, maps, extents, strict=True))):
        if rates is None:
            places = interval(layer, (first, last), axis)
        else:
            positions = range(max(first, 0), min(last, len(rates) - 1) + 1)
            finite = ((i, float(rates[i])) for i in positions if math.isfinite(rates[i]))
            reads = [interval(layer, (i, i), axis, rate) for i, rate in finite]
            if not reads:
                return 0, -1
            places = min(low for low, _ in reads), max(high for _, high in reads)
        first, last = pixels(places, extent)
        if first > last:
            return 0, -1
    return first, last


# ---- Size, step and place of what a position reads ----

Number = int | float | Fraction


@dataclass(frozen=True)
class Field:
    """What the positions of an output read of the image, each entry a tuple with a number per axis, slowest axis first.

    Position ``i`` reads between ``i * jump + first`` and ``i * jump + last``.

    Attributes:
        jump: pixels from one position to the next: the output stride.
        first, last: the first and the last pixel that position 0 reads, infinite where it reads all there are.
        aligned: whether branches that came together had their centres in common.
    """

    jump: tuple[Number, ...]
    first: tuple[Number, ...]
    last: tuple[Number, ...]
    aligned: bool = True

    @property
    def size(self) -> tuple[Number, ...]:
        """Pixels from the first to the last."""
        return tuple(last - first + 1 for first, last in zip(self.first, self.last, strict=True))

    @property
    def start(self) -> tuple[Number, ...]:
        """The centre of what position 0 reads; NaN where it reads all there are."""
        return tuple((first + last) / 2 for first, last in zip(self.first, self.last, strict=True))

    def __str__(self) -> str:
        size, jump, start = (
            " × ".join(f"{float(value):g}" for value in values) for values in (self.size, self.jump, self.start)
        )
        return f"{size} pixels, every {jump} from {start}{'' if self.aligned else ', branches not aligned'}"


def field(layers: Layer | Sequence[Layer]) -> Field:
    r"""Receptive field, jump and start of a layer or of a stack of layers.

    From one layer to the next, on every axis, from the jump :math:`j_0 = 1`, the size :math:`r_0 = 1` and the start
    :math:`c_0 = 0` on,

    .. math::
        j_l = j_{l - 1} s_l, \quad r_l = r_{l - 1} + (k_l - 1) \, d_l \, j_{l - 1}, \quad
        c_l = c_{l - 1} + \bigl(\tfrac{d_l (k_l - 1)}{2} - p_l\bigr) \, j_{l - 1}.

    The reach of a layer with another rate than one is rounded out to whole pixels of its input.

    Args:
        layers: a layer, or a stack, the layer that reads the image first.

    Returns:
        A field with as many axes as the layers have; with one if all their options are numbers.

    Raises:
        ValueError: for layers with different numbers of axes.

    Example:
        >>> stem = [receptive_field.Layer(7, 2, 3), receptive_field.Layer(3, 2, 1)]
        >>> print(receptive_field.field(stem))
        11 pixels, every 4 from 0
    """
    layers = [layers] if isinstance(layers, Layer) else list(layers)
    axes = {layer.axes for layer in layers if layer.axes is not None}
    if len(axes) > 1:
        raise ValueError(f"field(): expected layers with one number of axes, but got {sorted(axes)}")
    found = _image(axes.pop() if axes else 1)
    for layer in layers:
        ends = [pixels(interval(layer, (0, 0), axis)) for axis in range(len(found.jump))]
        found = _read(found, [(layer.along(axis)[1], *end) for axis, end in enumerate(ends)])
    return _rounded(found)


def _image(axes: int) -> Field:
    """Every pixel reads itself. In fractions, so that nothing is rounded on the way."""
    return Field((Fraction(1),) * axes, (Fraction(0),) * axes, (Fraction(0),) * axes)


def _rounded(found: Field) -> Field:
    def numbers(values: tuple[Number, ...]) -> tuple[Number, ...]:
        return tuple(int(value) if value == value // 1 else float(value) for value in values)

    return Field(numbers(found.jump), numbers(found.first), numbers(found.last), found.aligned)


def _read(below: Field, windows: Sequence[tuple[Number, Number, Number]]) -> Field:
    """The field of what reads, for its position ``i``, between ``i * step + low`` and ``i * step + high``."""
    rows = zip(windows, below.jump, below.first, below.last, strict=True)
    found = [(jump * step, first + jump * low, last + jump * high) for (step, low, high), jump, first, last in rows]
    jump, first, last = (tuple(row[entry] for row in found) for entry in range(3))
    return Field(jump, first, last, below.aligned)


def _everything(below: Field) -> Field:
    axes = len(below.jump)
    return Field(below.jump, (-math.inf,) * axes, (math.inf,) * axes, below.aligned)


def _together(branches: Sequence[Field], where: str) -> Field:
    """Of branches that are read at the same position, the hull."""
    finite = [branch for branch in branches if math.inf not in branch.last]
    if len({branch.jump for branch in finite}) > 1:
        steps = sorted({tuple(map(float, branch.jump)) for branch in finite})
        raise ValueError(f"trace(): expected the branches that {where} puts together to have one jump, but got {steps}")
    return Field(
        (finite or branches)[0].jump,
        tuple(min(ends) for ends in zip(*(branch.first for branch in branches), strict=True)),
        tuple(max(ends) for ends in zip(*(branch.last for branch in branches), strict=True)),
        all(branch.aligned for branch in branches) and len({branch.start for branch in finite}) <= 1,
    )


# ---- Of a model that runs ----


def trace(model: nn.Module, input: Tensor | None = None) -> dict[str, Field]:
    """Compute receptive field, jump and start of the outputs of all parts of a model, on any number of axes.

    The model, which may have branches, runs once, in evaluation mode and without gradients, and every operator that it
    calls is followed. Dynamic layers count with the largest rates or offsets of this run. The result is an upper bound:
    operators that are not known to be local, such as attention, count as reading the whole image. Batch statistics of
    norms, which are used in training, do not count. Within a branch, positions keep their meaning when the layout
    changes.

    Args:
        model: the model. Its first argument is the image.
        input: a batched image to run it on. Default: zeros with 64 pixels per axis and the channels of the first
            convolution of the model.

    Returns:
        The :class:`Field` of the last output of every module that returns a tensor, by the name of the module; the
        model itself, whose name is empty, comes last.

    Raises:
        ValueError: if branches with different jumps are combined; without ``input``, if the model has no convolution.

    Example:
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Conv2d(3, 8, 3, stride=2, padding=1), torch.nn.ReLU(), torch.nn.MaxPool2d(2)
        ... )
        >>> for name, field in receptive_field.trace(model).items():
        ...     print(name, field)
        0 3 × 3 pixels, every 2 × 2 from 0 × 0
        1 3 × 3 pixels, every 2 × 2 from 0 × 0
        2 5 × 5 pixels, every 4 × 4 from 1 × 1
         5 × 5 pixels, every 4 × 4 from 1 × 1
    """
    _, outputs = traced(model, input)
    return {name: _rounded(found) for name, found in outputs.items()}


def traced(model: nn.Module, input: Tensor | None = None) -> tuple[dict[str, Field], dict[str, Field]]:
    """What every module's first argument and its output read, in fractions."""
    input = example(model) if input is None else input
    names = {module: name for name, module in model.named_modules()}
    mode = _Follow(input)
    arguments: dict[str, Field] = {}
    outputs: dict[str, Field] = {}

    def enter(module: nn.Module, args: tuple[Any, ...]) -> None:
        if args and isinstance(args[0], Tensor) and args[0] in mode.fields:
            arguments[names[module]] = mode.fields[args[0]]

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        found = [mode.fields[t] for t in tree_leaves(output) if isinstance(t, Tensor) and t in mode.fields]
        if found:
            outputs.pop(names[module], None)
            outputs[names[module]] = found[0]

    with ExitStack() as stack:
        for module in names:
            stack.callback(module.register_forward_pre_hook(enter).remove)
            stack.callback(module.register_forward_hook(leave).remove)
        stack.enter_context(_evaluating(model))
        stack.enter_context(torch.no_grad())
        stack.enter_context(mode)
        model(input)
    return arguments, outputs


def example(model: nn.Module) -> Tensor:
    """An image for a model, made for its first convolution."""
    for module in model.modules():
        if isinstance(module, nn.modules.conv._ConvNd):
            axes = len(module.kernel_size)
            return module.weight.new_zeros(1, module.in_channels, *(64,) * axes)
    raise ValueError("trace(): expected input to be a tensor, because the model has no convolution, but got None")


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


# Operators that leave every position where it is, beside those that torch calls pointwise. (A matrix product with
# parameters is a linear layer.)
_IN_PLACE = {
    *("alias", "clone", "contiguous", "detach", "expand", "lift_fresh", "permute", "squeeze", "t", "transpose"),
    *("unsqueeze", "_reshape_alias", "_to_copy", "_unsafe_view", "view", "view_as", "copy_", "copy"),
    *("cat", "stack", "split", "split_with_sizes", "chunk", "unbind", "select", "slice"),
    *("batch_norm", "native_batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm"),
    *("_native_batch_norm_legit", "_batch_norm_no_update", "native_layer_norm", "native_group_norm"),
    *("addmm", "mm", "native_dropout"),
}
_NEW = re.compile(r"aten::(new_\w+|\w+_like)")  # of the image they take the size alone
_REDUCTIONS = {"mean", "sum", "amax", "amin", "var", "std", "var_mean", "linalg_vector_norm", "_softmax"}


class _Follow(TorchDispatchMode):
    """Knows of every tensor that comes from the image what it reads."""

    def __init__(self, image: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.axes = image.dim() - 2
        self.fields: Any = WeakTensorKeyDictionary()
        self.fields[image] = _image(self.axes)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        branches = [self.fields[t] for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor) and t in self.fields]
        result = func(*args, **kwargs)
        if branches and not _NEW.fullmatch(func._schema.name):
            names = [argument.name for argument in func._schema.arguments]
            defaults = {argument.name: argument.default_value for argument in func._schema.arguments}
            found = self._after(func, {**defaults, **dict(zip(names, args, strict=False)), **kwargs}, branches, result)
            for tensor in tree_leaves(result):
                if isinstance(tensor, Tensor):
                    self.fields[tensor] = found
        return result

    def _after(self, func: Any, given: dict[str, Any], branches: list[Field], result: Any) -> Field:
        namespace, name = func._schema.name.split("::")
        if namespace == "ddu" and "stride" in given:
            return _read(self.fields[given["input"]], self._dynamic(given))
        if name.startswith("upsample_"):
            return _read(branches[0], self._enlarged(name, given, result))
        below = _together(branches, name)
        if name == "convolution":
            return _read(below, self._convolved(given))
        if "pool" in name and "kernel_size" in given:
            return _read(below, self._fixed(given, self._along(given["kernel_size"])))
        if name in ("constant_pad_nd", "replication_pad1d", "replication_pad2d", "replication_pad3d"):
            pad = given.get("pad") or given["padding"]
            before = [pad[2 * i] if 2 * i < len(pad) else 0 for i in reversed(range(self.axes))]
            return _read(below, [(1, -p, -p) for p in before])
        if name == "slice" and given["self"].dim() - given["dim"] % given["self"].dim() <= self.axes:
            axis = given["dim"] % given["self"].dim() - (given["self"].dim() - self.axes)
            start = given["start"] or 0
            start += given["self"].shape[given["dim"]] if start < 0 else 0
            step = [(given["step"], start, start) if a == axis else (1, 0, 0) for a in range(self.axes)]
            return _read(below, step)
        if name == "cat" and given["dim"] % given["tensors"][0].dim() >= given["tensors"][0].dim() - self.axes:
            return self._one_behind_another(given["tensors"], given["dim"]) or _everything(below)
        if name in _REDUCTIONS and given.get("dim") is not None:
            dims = given["dim"] if isinstance(given["dim"], Sequence) else [given["dim"]]
            rank = given["self"].dim()
            return _everything(below) if any(dim % rank >= rank - self.axes for dim in dims) else below
        if name in ("mm", "addmm", "bmm", "baddbmm") and len(branches) > 1:
            return _everything(below)
        if torch.Tag.pointwise in func.tags or name in _IN_PLACE:
            return below
        return _everything(below)

    def _one_behind_another(self, tensors: Sequence[Tensor], dim: int) -> Field | None:
        """Where what comes from the image is put together with something else: it moves behind what is in front."""
        (place, *others) = [index for index, tensor in enumerate(tensors) if tensor in self.fields]
        if others:
            return None
        axis = dim % tensors[place].dim() - (tensors[place].dim() - self.axes)
        before = sum(tensor.shape[dim] for tensor in tensors[:place])
        return _read(
            self.fields[tensors[place]], [(1, -before, -before) if a == axis else (1, 0, 0) for a in range(self.axes)]
        )

    def _along(self, values: Sequence[int] | int) -> list[int]:
        """An option for every axis; where torch pools a line, it pools an image of one row."""
        values = [values] if isinstance(values, int) else list(values)
        return (values * self.axes if len(values) == 1 else values)[-self.axes :]

    def _fixed(self, given: dict[str, Any], kernel_size: Sequence[int]) -> list[tuple[Number, Number, Number]]:
        strides = self._along(given["stride"] or kernel_size)
        dilations = self._along(given.get("dilation") or 1)
        rows = zip(kernel_size, strides, self._along(given["padding"]), dilations, strict=True)
        return [(s, -p, d * (k - 1) - p) for k, s, p, d in rows]

    def _convolved(self, given: dict[str, Any]) -> list[tuple[Number, Number, Number]]:
        windows = self._fixed(given, given["weight"].shape[-self.axes :])
        if not given["transposed"]:
            return windows
        # Position o reads the positions i with i * s - p + m * d = o for a tap m.
        return [(Fraction(1, s), Fraction(-high, s), Fraction(-low, s)) for s, low, high in windows]  # type: ignore[arg-type]

    def _enlarged(self, name: str, given: dict[str, Any], result: Tensor) -> list[tuple[Number, Number, Number]]:
        reach = 0 if "nearest" in name else 2 if "bicubic" in name else 1
        windows: list[tuple[Number, Number, Number]] = []
        source: Tensor = given["input"] if "input" in given else given["self"]
        for before, after in zip(source.shape[-self.axes :], result.shape[-self.axes :], strict=True):
            if given.get("align_corners"):
                step, place = Fraction(before - 1, max(after - 1, 1)), Fraction(0)
            else:
                step = Fraction(before, after)
                place = (step - 1) / 2 if reach else Fraction(0)
            # Places are multiples of a fraction, so the pixels before and behind them are less than one away.
            parts = math.lcm(step.denominator, place.denominator)
            rest = Fraction(parts - 1, parts)
            windows.append((step, place - rest - max(reach - 1, 0), place + (rest + reach - 1 if reach else 0)))
        return windows

    def _dynamic(self, given: dict[str, Any]) -> list[tuple[Number, Number, Number]]:
        """With the largest rates, the largest offsets or the furthest taps of affine maps that the call has."""
        kernel_size = self._along(given.get("kernel_size") or given["weight"].shape[-self.axes :])
        strides, paddings, dilations = (self._along(given[name]) for name in ("stride", "padding", "dilation"))
        positions = given["positions"] if "positions" in given else given["dilation_map"]
        windows: list[tuple[Number, Number, Number]] = []
        groups = given.get("dilation_groups", given.get("groups", 1))
        for axis, (k, s, p, d) in enumerate(zip(kernel_size, strides, paddings, dilations, strict=True)):
            if given.get("source", "rates") == "rates":
                per_axis = positions.shape[1] == self.axes * groups and self.axes > 1
                rates = positions[:, axis :: self.axes] if per_axis else positions
                rate = rates.abs().max().item() if rates.numel() else 0.0
                low, high = pixels(interval(Layer(k, s, p, d, rate, given["aligned"]), (0, 0)))
            elif given["source"] == "affine":
                rows = positions.unflatten(1, (-1, self.axes, self.axes + 1))[:, :, axis].unbind(2)
                reach = [(t - 1) * e / 2 for t, e in zip(kernel_size, dilations, strict=True)]
                half = sum(entry.abs() * r for entry, r in zip(rows, reach, strict=False))
                ends = ((rows[-1] - half).min().item(), (rows[-1] + half).max().item()) if half.numel() else (0.0, 0.0)
                low, high = math.floor(ends[0] + reach[axis] - p), math.ceil(ends[1] + reach[axis] - p)
            else:
                offsets = positions[:, axis :: self.axes]
                ends = (offsets.min().item(), offsets.max().item()) if offsets.numel() else (0.0, 0.0)
                low, high = math.floor(ends[0] - p), math.ceil(ends[1] + d * (k - 1) - p)
            windows.append((s, low, high))
        return windows


# ---- Which pixels take part ----


@dataclass(frozen=True)
class Coverage:
    r"""Along one axis, which pixels a position of a stack reads, and by how many paths.

    Attributes:
        multiplicity: for every pixel from the first to the last that the stack reaches, the number of paths of taps.
        hdc: the distance :math:`M_2` of hybrid dilated convolution; ``None`` where that criterion says nothing: for
            fewer than two layers, and for layers with strides or different kernels.
        hdc_holds: whether the criterion, :math:`M_2 \le k`, finds the stack free of holes; ``None`` without it.
    """

    multiplicity: tuple[int, ...]
    hdc: int | None
    hdc_holds: bool | None

    @property
    def size(self) -> int:
        """Pixels from the first to the last: the receptive field."""
        return len(self.multiplicity)

    @property
    def covered(self) -> int:
        """Pixels with a path."""
        return sum(count > 0 for count in self.multiplicity)

    @property
    def holes(self) -> tuple[int, ...]:
        """Where pixels without a path are, counted from the first pixel."""
        return tuple(index for index, count in enumerate(self.multiplicity) if not count)

    def share(self, axes: int = 2) -> float:
        """The fraction of the receptive field that is read, with the same stack on this many axes."""
        return (self.covered / self.size) ** axes


def coverage(rates: Sequence[int | Layer], kernel_size: int = 3, axis: int = 0) -> Coverage:
    r"""Count the paths from every pixel through a stack of fixed rates to one output position.

    The count is exact: the taps of a layer are :math:`d` positions of its input apart, and these positions are
    :math:`j` pixels apart, the jump. So the product of the polynomials :math:`\sum_m z^{m d_l j_l}` counts the paths.

    The result also has the criterion of P. Wang et al., "Understanding Convolution for Semantic Segmentation", WACV
    2018, hybrid dilated convolution (HDC): with :math:`M_n = r_n` and
    :math:`M_i = \max(M_{i + 1} - 2 r_i, \, 2 r_i - M_{i + 1}, \, r_i)`, :math:`M_2 \le k`. It is not
    sufficient: the rates 2, 2, 2, 2 fulfil it and skip nearly half of the pixels of every line. If the criterion
    contradicts the count, which is right, there is a warning.

    Args:
        rates: for each layer, starting with the one that reads the image, a rate, or a :class:`Layer` if it has a
            stride or another kernel size.
        kernel_size: of the layers that are given as rates. Default: 3.
        axis: the axis of each :class:`Layer` that is used.

    Raises:
        ValueError: if the rate of a :class:`Layer` is not a whole number.

    Example:
        >>> found = receptive_field.coverage([1, 2, 5])
        >>> found.size, found.covered, found.hdc
        (17, 17, 2)
        >>> receptive_field.coverage([2, 3, 2, 3]).holes
        (1, 19)
    """
    layers = [rate if isinstance(rate, Layer) else Layer(kernel_size, dilation=rate) for rate in rates]
    paths = Counter({0: 1})
    jump = 1
    fixed = []
    for layer in layers:
        taps, stride, _, dilation = layer.along(axis)
        spacing = dilation * abs(layer.rate)
        if spacing != int(spacing):
            raise ValueError(f"coverage(): expected rates to be whole numbers, but got {layer}")
        through: Counter[int] = Counter()
        for place, count in paths.items():
            for tap in range(taps):
                through[place + tap * int(spacing) * jump] += count
        paths = through
        jump *= stride
        fixed.append((taps, int(spacing)))
    found = tuple(paths[place] for place in range(max(paths) + 1))
    hdc = None
    if len(fixed) > 1 and jump == 1 and len({taps for taps, _ in fixed}) == 1:
        hdc = fixed[-1][1]
        for _, rate in reversed(fixed[1:-1]):
            hdc = max(hdc - 2 * rate, 2 * rate - hdc, rate)
    holds = None if hdc is None else hdc <= fixed[0][0]
    result = Coverage(found, hdc, holds)
    if holds is not None and holds != (not result.holes):
        warnings.warn(
            f"coverage(): HDC's criterion {'passes' if holds else 'refuses'} the rates {[rate for _, rate in fixed]}, "
            f"M_2 = {hdc} for kernels of {fixed[0][0]}, but {len(result.holes)} of {result.size} pixels along an axis "
            "have no path",
            stacklevel=2,
        )
    return result
