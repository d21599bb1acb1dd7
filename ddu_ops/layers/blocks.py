"""Dilated convolutions in parallel and in sequence."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ddu_ops._options import Ints, integer, ints
from ddu_ops.functional import grid_size
from ddu_ops.layers._common import BLUR, CONV, NORM, Composed, axes_of, numbers, numbers_per_axis, rates_of, reals, run
from ddu_ops.modules import DynamicDilationConv2d, _given_or, _may_be_left_out, _window

Rates = int | Sequence[int]

_FUSE = ("cat", "sum", "mean")


def same_padding(kernel_size: Ints, dilation: Ints = 1, axes: int = 2) -> list[int]:
    r"""Return the padding with which a convolution with stride 1 keeps the size, for any kernel and rate.

    It is :math:`d (k - 1)` in total on every axis. If that is odd, the extra pixel goes to the end, as in
    ``F.conv2d(..., padding="same")``.

    Args:
        kernel_size, dilation: of the convolution, an int or one per axis.
        axes: the number of axes. Default: 2.

    Returns:
        The argument of :func:`torch.nn.functional.pad`: before and after, last axis first.

    Example:
        >>> layers.same_padding((3, 2), dilation=3)
        [1, 2, 3, 3]
        >>> input, weight = torch.randn(1, 1, 8, 8), torch.randn(1, 1, 3, 2)
        >>> F.conv2d(F.pad(input, layers.same_padding((3, 2), 3)), weight, dilation=3).shape
        torch.Size([1, 1, 8, 8])
    """
    kernel = ints(kernel_size, axes, "kernel_size", "same_padding", ValueError)
    rates = ints(dilation, axes, "dilation", "same_padding", ValueError)
    reach = [d * (k - 1) for k, d in zip(kernel, rates, strict=True)]
    return [side for r in reversed(reach) for side in (r // 2, r - r // 2)]


def exponential_rates(count: int, cycles: int = 1, base: int = 2) -> list[int]:
    r"""Return the rates :math:`1, b, b^2, \ldots`, optionally repeated.

    With rates that double from layer to layer, as in F. Yu and V. Koltun, "Multi-Scale Context Aggregation by Dilated
    Convolutions", 2015, kernels of size 3 read every pixel of a receptive field that also doubles.

    Args:
        count: number of rates in a cycle.
        cycles: number of cycles. Default: 1.
        base: the factor between consecutive rates. Default: 2.

    Example:
        >>> layers.exponential_rates(4, cycles=2)
        [1, 2, 4, 8, 1, 2, 4, 8]
    """
    name = "exponential_rates"
    count, cycles = integer(count, "count", name, ValueError), integer(cycles, "cycles", name, ValueError)
    base = integer(base, "base", name, ValueError)
    return [base**i for i in range(count)] * cycles


class SeparableConv(Composed, nn.Sequential):
    """A dilated depthwise convolution followed by a 1 × 1 convolution.

    As in F. Chollet, "Xception: Deep Learning with Depthwise Separable Convolutions", CVPR 2017, and, dilated, L.-C.
    Chen et al., "Encoder-Decoder with Atrous Separable Convolution for Semantic Image Segmentation", ECCV 2018.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, bias: as in :class:`torch.nn.Conv2d`; the
            1 × 1 convolution has the bias. ``padding="same"`` keeps the size for even kernels, too.
        axes: the number of axes. Default: 2.
        device, dtype: as in :class:`torch.nn.Conv2d`.

    Shape:
        As of the convolution with these arguments.

    Example:
        >>> layer = layers.SeparableConv(8, 4, 3, padding="same", dilation=2)
        >>> layer(torch.randn(2, 8, 6, 7)).shape
        torch.Size([2, 4, 6, 7])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Ints,
        stride: Ints = 1,
        padding: Ints | str = 0,
        dilation: Ints = 1,
        bias: bool = True,
        *,
        axes: int = 2,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        name = "SeparableConv"
        axes = axes_of(name, axes)
        in_channels, out_channels = numbers(name, least=0, in_channels=in_channels, out_channels=out_channels)
        window = _window(axes, name, kernel_size, stride, padding, dilation)
        conv = CONV[axes]
        options: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__(
            conv(in_channels, in_channels, *window, in_channels, bias=False, **options),
            conv(in_channels, out_channels, 1, bias=bias, **options),
        )


class MultiScale(Composed):
    r"""Parallel convolutions with different dilation rates.

    They read the same input and keep its size; their results are concatenated, added or averaged. With ``fuse="cat"``
    and the rates (1, 4) this is a hybrid block, half local, half wide. With ``fuse="mean"`` and rates without a common
    factor, such as (2, 3), each rate fills the holes of the other.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output. With ``"cat"`` they are divided among the branches; the first ones get
            the remainder.
        rates: the dilation rates, one for each branch.
        kernel_size: of all branches, odd or even. Default: 3.
        groups: of every branch, as in :class:`torch.nn.Conv2d`. Default: 1.
        bias: as in :class:`torch.nn.Conv2d`. Default: ``True``.
        fuse: ``"cat"``, ``"sum"`` or ``"mean"``. Default: ``"cat"``.
        separable: whether the branches are :class:`SeparableConv`\ s. Default: ``False``.
        axes: the number of axes. Default: 2.
        device, dtype: as in :class:`torch.nn.Conv2d`.

    Shape:
        - input: :math:`(B, C_{in}, *)`, with as many axes.
        - Output: :math:`(B, C_{out}, *)`, of the same size.

    Raises:
        ValueError: for an unknown ``fuse``, an empty list of rates, and fewer channels than concatenated branches.

    Example:
        >>> hybrid = layers.MultiScale(8, 8, (1, 4))
        >>> hybrid(torch.randn(2, 8, 9, 9)).shape
        torch.Size([2, 8, 9, 9])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        rates: Sequence[int],
        *,
        kernel_size: Ints = 3,
        groups: int = 1,
        bias: bool = True,
        fuse: str = "cat",
        separable: bool = False,
        axes: int = 2,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if fuse not in _FUSE:
            raise ValueError(f"{name}(): expected fuse to be 'cat', 'sum' or 'mean', but got {fuse!r}")
        axes = axes_of(name, axes)
        in_channels, out_channels = numbers(name, least=0, in_channels=in_channels, out_channels=out_channels)
        rates = rates_of(name, rates, some=False)
        (groups,), (kernel,) = numbers(name, groups=groups), numbers_per_axis(name, axes, kernel_size=kernel_size)
        if not rates or (fuse == "cat" and out_channels < len(rates)):
            raise ValueError(
                f"{name}(): expected rates to be at least one, and with fuse='cat' no more than out_channels = "
                f"{out_channels}, but got {tuple(rates)}"
            )
        if separable and groups != 1:
            raise ValueError(f"{name}(): expected groups to be 1 where separable, but got {groups}")
        self.fuse = fuse
        options: dict[str, Any] = {"padding": "same", "bias": bias, "device": device, "dtype": dtype}
        share, left = divmod(out_channels, len(rates)) if fuse == "cat" else (out_channels, 0)
        self.branches = nn.ModuleList()
        for index, rate in enumerate(rates):
            channels = share + (index < left)
            if separable:
                branch: nn.Module = SeparableConv(in_channels, channels, kernel, dilation=rate, axes=axes, **options)
            else:
                branch = CONV[axes](in_channels, channels, kernel, dilation=rate, groups=groups, **options)
            self.branches.append(branch)

    def forward(self, input: Tensor) -> Tensor:
        outputs = [branch(input) for branch in self.branches]
        if self.fuse == "cat":
            return torch.cat(outputs, 1)
        total = outputs[0]
        for output in outputs[1:]:
            total = total + output
        return total / len(outputs) if self.fuse == "mean" else total

    def extra_repr(self) -> str:
        return f"fuse={self.fuse!r}"


class DilatedBlock(Composed):
    """Dilated convolutions, a norm and a ReLU, with a residual connection.

    Args:
        channels: of input and output.
        rates: a rate, or the rates of parallel branches: see :class:`MultiScale`.
        residual: whether to add the input. Default: ``True``.
        norm: whether a batch norm follows the convolution, which then has no bias. Default: ``True``.
        blur: whether an average pooling over three pixels follows the convolution, to smooth gridding artifacts.
            Default: ``False``.
        checkpoint: recomputes the block in the backward and stores only its input. Default: ``False``.
        kernel_size, groups, fuse, separable, axes: as in :class:`MultiScale`.
        device, dtype: as in :class:`torch.nn.Conv2d`.

    Shape:
        - input: :math:`(B, C, *)`. Output: the same.

    Example:
        >>> block = layers.DilatedBlock(8, (2, 3), fuse="mean", blur=True)
        >>> block(torch.randn(2, 8, 9, 9)).shape
        torch.Size([2, 8, 9, 9])
    """

    def __init__(
        self,
        channels: int,
        rates: Rates,
        *,
        kernel_size: Ints = 3,
        groups: int = 1,
        fuse: str = "cat",
        separable: bool = False,
        residual: bool = True,
        norm: bool = True,
        blur: bool = False,
        checkpoint: bool = False,
        axes: int = 2,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        axes = axes_of("DilatedBlock", axes)
        (channels,) = numbers("DilatedBlock", channels=channels)
        self.residual = residual
        self.checkpoint = checkpoint
        options: dict[str, Any] = {"device": device, "dtype": dtype}
        self.conv = MultiScale(
            channels,
            channels,
            tuple(rates) if isinstance(rates, Sequence) else (rates,),
            kernel_size=kernel_size,
            groups=groups,
            bias=not norm,
            fuse=fuse,
            separable=separable,
            axes=axes,
            **options,
        )
        self.norm = NORM[axes](channels, **options) if norm else nn.Identity()
        self.blur = BLUR[axes](3, 1, 1, count_include_pad=False) if blur else nn.Identity()

    def _through(self, input: Tensor) -> Tensor:
        output = self.blur(self.norm(self.conv(input)))
        return (output + input if self.residual else output).relu()

    def forward(self, input: Tensor) -> Tensor:
        return run(self._through, input, again=self.checkpoint)


class DilatedStack(Composed, nn.Sequential):
    """Blocks of dilated convolutions, one for each entry of a list of rates.

    The list determines the design. Exponential, as in Yu and Koltun: ``exponential_rates(5)``. Gradual:
    ``range(1, 6)``. A sawtooth without gridding, as in hybrid dilated convolution: ``(1, 2, 5) * 2``. Multi-scale: an
    entry that is a list is a block with parallel rates. :func:`ddu_ops.receptive_field.trace` computes the receptive
    field of the stack, and :func:`ddu_ops.receptive_field.coverage` the pixels that it skips.

    Args:
        channels: of input and output.
        rates: for each block a rate, or a list of parallel rates.
        options: options of :class:`DilatedBlock`, for all blocks.
        device, dtype: as in :class:`torch.nn.Conv2d`.

    Shape:
        - input: :math:`(B, C, *)`. Output: the same.

    Example:
        >>> stack = layers.DilatedStack(8, [1, 2, 5, (1, 4)], checkpoint=True)
        >>> stack(torch.randn(2, 8, 16, 16)).shape
        torch.Size([2, 8, 16, 16])
        >>> receptive_field.trace(stack)[""].size
        (25, 25)
    """

    def __init__(
        self,
        channels: int,
        rates: Sequence[Rates],
        *,
        device: Any = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        super().__init__(*(DilatedBlock(channels, entry, device=device, dtype=dtype, **options) for entry in rates))


class RandomDilationConv2d(DynamicDilationConv2d):
    """A convolution with random dilation rates during training.

    In every training call a rate is drawn for each image, or for each position, uniformly between two bounds. In
    evaluation the rate is the mean of the bounds. ``from_conv(conv, rates=(1, 1))`` keeps the results of the
    convolution; other rates change them.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias: as in
            :class:`torch.nn.Conv2d`; ``dilation`` multiplies the rates.
        rates: the lowest and the highest rate. Default: (0.5, 2).
        everywhere: ``True`` for a rate for each position, ``False`` for one for each image. Default: ``False``.
        options: keyword arguments of :class:`ddu_ops.DynamicDilationConv2d`, except those of the predictor.
        device, dtype: as in :class:`torch.nn.Conv2d`.

    Shape:
        As of :class:`torch.nn.Conv2d`.

    Raises:
        ValueError: as :class:`ddu_ops.DynamicDilationConv2d`, and if ``rates`` are not two finite numbers, the lower
            one first.

    Example:
        >>> layer = layers.RandomDilationConv2d(8, 4, 3, padding="same", dilation=2)
        >>> layer(torch.randn(2, 8, 6, 7)).shape
        torch.Size([2, 4, 6, 7])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Ints,
        stride: Ints = 1,
        padding: Ints | str = 0,
        dilation: Ints = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        rates: tuple[float, float] = (0.5, 2.0),
        everywhere: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            predict=False,
            device=device,
            dtype=dtype,
            **options,
        )
        name = type(self).__name__
        found = reals(name, "rates", rates)
        if len(found) != 2 or found[0] > found[1]:
            raise ValueError(f"{name}(): expected rates to be the lowest and the highest, but got {rates!r}")
        self.rates = found
        self.everywhere = everywhere

    def forward(self, input: Tensor, dilation_map: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        if dilation_map is None or _may_be_left_out(dilation_map):
            dilation_map = _given_or(dilation_map, _draw(input, self, self.training))
        return super().forward(input, dilation_map, mask)


def _draw(input: Tensor, layer: RandomDilationConv2d, training: bool) -> Tensor:
    """The rates of a call."""
    low, high = layer.rates
    shape = [input.shape[0], layer.dilation_groups, 1, 1]
    if layer.everywhere and layer.padding == "same":
        shape[2:] = input.shape[2:]
    elif layer.everywhere:
        padding = 0 if isinstance(layer.padding, str) else layer.padding
        shape[2:] = grid_size(input.shape[2:], layer.kernel_size, layer.stride, padding, layer.dilation)
    dtype = torch.promote_types(input.dtype, torch.float32)
    rates = torch.full(shape, (low + high) / 2, dtype=dtype, device=input.device)
    return rates.uniform_(low, high) if training else rates
