"""The public functions: one call of the operator of the same name each."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ddu_ops import _extension
from ddu_ops._options import Ints, integer, ints

_extension.require()

PADDING_WORDS = ("valid", "same")


def dynamic_dilation_unfold(
    input: Tensor,
    kernel_size: Ints,
    dilation_map: Tensor,
    stride: Ints = 1,
    padding: Ints = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    aligned: bool = True,
) -> Tensor:
    r"""Extract sliding windows whose dilation rate is read from a map, position by position.

    This is :func:`torch.nn.functional.unfold` with the dilation :math:`d` multiplied by :math:`D`, what
    ``dilation_map[b, g, i, j]`` holds for output position :math:`(i, j)`. Tap :math:`(m, n)` of the window is
    the bilinear sample of the zero-padded input at

    .. math::
        y &= i \, s_h - p_h + d_h \tfrac{k_h - 1}{2} + (m - \tfrac{k_h - 1}{2}) \, d_h \, D_h \\
        x &= j \, s_w - p_w + d_w \tfrac{k_w - 1}{2} + (n - \tfrac{k_w - 1}{2}) \, d_w \, D_w

    and the output has the size that ``F.unfold`` gives it, whatever the map holds:
    :math:`H_{out} = \lfloor (H + 2 p_h - d_h (k_h - 1) - 1) / s_h \rfloor + 1`, :math:`W_{out}` alike. A map of ones
    makes it ``F.unfold`` itself. Gradients of every order flow to ``input`` and to ``dilation_map``; where a tap
    falls on a whole pixel, the derivative by the rate is the one from the right.

    Args:
        input: the image.
        kernel_size: taps of the window, an int or a pair (height, width).
        dilation_map: the dilation rates, any real number: fractional, zero (all taps on the centre), negative (the
            window is mirrored). A rate that is not finite makes its window NaN.
        stride: step of the window, an int or a pair. Default: 1.
        padding: implicit zeros on every side of the input, an int or a pair. Default: 0.
        dilation: multiplier of the map, an int or a pair. Default: 1.
        groups: number of channel groups that have a map of their own; channel ``c`` reads the map of group
            ``c // (C / groups)``. Default: 1.
        aligned: ``True`` centres a window where ``F.unfold`` centres its own; ``False`` centres it on ``F.unfold``'s
            first tap (the term :math:`d (k - 1) / 2` is dropped). Default: ``True``.

    Shape:
        - input: :math:`(B, C, H, W)` or :math:`(C, H, W)`.
        - dilation_map: :math:`(B, G, H_{out}, W_{out})`, one rate for both axes, or :math:`(B, 2G, H_{out}, W_{out})`,
          a rate per axis: channel :math:`2g` for the height, :math:`2g + 1` for the width of group :math:`g`. Without
          :math:`B` where the input has none; a batch size of 1 is broadcast.
        - Output: :math:`(B, C \, k_h k_w, L)` or :math:`(C \, k_h k_w, L)`, :math:`L = H_{out} W_{out}`, contiguous.
          Row :math:`(c \, k_h + m) \, k_w + n` is channel :math:`c` at tap :math:`(m, n)`, the order of ``F.unfold``.

    Types:
        float64 with a float64 map, float32 with float32, float16 and bfloat16 with a map of the same type or float32.
        Positions and sums of the half types are computed in float32.

    Raises:
        RuntimeError: for an argument of the wrong shape, type, device or value; the message names the argument, what
            it got and what it takes.

    Example:
        >>> input = torch.arange(25.0).view(1, 1, 5, 5)
        >>> dilation_map = torch.ones(1, 1, 5, 5)
        >>> dilation_map[..., 2, 2] = 1.5
        >>> columns = dynamic_dilation_unfold(input, 3, dilation_map, padding=1)
        >>> columns.shape
        torch.Size([1, 9, 25])
        >>> columns[0, :, 12].view(3, 3)
        tensor([[ 3.0000,  4.5000,  6.0000],
                [10.5000, 12.0000, 13.5000],
                [18.0000, 19.5000, 21.0000]])
    """
    name = "dynamic_dilation_unfold"
    return torch.ops.ddu.dynamic_dilation_unfold(
        input,
        ints(kernel_size, 2, "kernel_size", name),
        dilation_map,
        ints(stride, 2, "stride", name),
        ints(padding, 2, "padding", name),
        ints(dilation, 2, "dilation", name),
        integer(groups, "groups", name),
        aligned,
    )


def dynamic_dilation_fold(
    columns: Tensor,
    output_size: Ints,
    kernel_size: Ints,
    dilation_map: Tensor,
    stride: Ints = 1,
    padding: Ints = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    aligned: bool = True,
) -> Tensor:
    r"""Add windows into an image, each with the dilation rate that the map holds for it.

    The adjoint of :func:`dynamic_dilation_unfold` by its input,
    :math:`\langle \mathrm{unfold}(x, D), g \rangle = \langle x, \mathrm{fold}(g, D) \rangle`: every entry of
    ``columns`` is shared out over the four pixels around its tap, by the bilinear weights; what falls outside the image
    is dropped. A map of ones makes it :func:`torch.nn.functional.fold`. Gradients of every order flow to ``columns``
    and to ``dilation_map``.

    Args:
        columns: the windows.
        output_size: height and width of the image, an int or a pair.
        kernel_size, dilation_map, stride, padding, dilation, groups, aligned: as in :func:`dynamic_dilation_unfold`.

    Shape:
        - columns: :math:`(B, C \, k_h k_w, L)` or :math:`(C \, k_h k_w, L)`.
        - dilation_map: :math:`(B, G, H_{out}, W_{out})` or :math:`(B, 2G, H_{out}, W_{out})` with
          :math:`H_{out} W_{out} = L`; without :math:`B` where ``columns`` has none; a batch size of 1 is broadcast.
        - Output: :math:`(B, C, H, W)` or :math:`(C, H, W)`, where :math:`(H, W)` is ``output_size``; contiguous.

    Raises:
        RuntimeError: as in :func:`dynamic_dilation_unfold`.

    Example:
        >>> dilation_map = torch.full((1, 1, 4, 4), 1.5)
        >>> columns = torch.ones(1, 9, 16)
        >>> dynamic_dilation_fold(columns, 4, 3, dilation_map, padding=1).shape
        torch.Size([1, 1, 4, 4])
    """
    name = "dynamic_dilation_fold"
    return torch.ops.ddu.dynamic_dilation_fold(
        columns,
        ints(output_size, 2, "output_size", name, symbolic=True),
        ints(kernel_size, 2, "kernel_size", name),
        dilation_map,
        ints(stride, 2, "stride", name),
        ints(padding, 2, "padding", name),
        ints(dilation, 2, "dilation", name),
        integer(groups, "groups", name),
        aligned,
    )


def dynamic_dilation_conv2d(
    input: Tensor,
    weight: Tensor,
    dilation_map: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints | str = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    dilation_groups: int = 1,
    mask: Tensor | None = None,
    aligned: bool = True,
    workspace_limit: int = 2**28,
) -> Tensor:
    r"""Convolve with a kernel whose dilation rate is read from a map, position by position.

    This is :func:`torch.nn.functional.conv2d` with the windows of :func:`dynamic_dilation_unfold`: at output position
    :math:`(i, j)`, with the taps :math:`x_{c,m,n}(i, j)` at the places given there,

    .. math::
        \text{out}[b, o, i, j] = \text{bias}[o] + \sum_{c, m, n} \text{weight}[o, c, m, n] \;
        \text{mask}[b, g k_h k_w + m k_w + n, i, j] \; x_{c,m,n}(i, j)

    where :math:`g` is the dilation group of channel :math:`c`. A map of ones makes it ``F.conv2d``: on the CPU bit for
    bit (without a mask), elsewhere up to the order of the additions. Gradients of every order flow to all five tensors.

    Args:
        input: the image.
        weight: the kernels.
        dilation_map: the dilation rates, as in :func:`dynamic_dilation_unfold`.
        bias: added to every output channel. Default: none.
        stride: step of the window, an int or a pair (height, width). Default: 1.
        padding: implicit zeros on every side of the input, an int or a pair; or ``"valid"`` for none, or ``"same"``
            for an output of the size of the input, as in ``F.conv2d``. Default: 0.
        dilation: multiplier of the map, an int or a pair. Default: 1.
        groups: groups of the convolution, as in ``F.conv2d``. Default: 1.
        dilation_groups: number of channel groups that have a map of their own. Both kinds of groups divide the
            channels, and need not divide one another. Default: 1.
        mask: factors of the taps, one for every dilation group, tap and output position. Default: none.
        aligned: ``True`` centres a window where ``F.conv2d`` centres its own, ``False`` on its first tap, as in
            :func:`dynamic_dilation_unfold`. Default: ``True``.
        workspace_limit: bytes of temporary memory that a call may take in forward and backward, besides its results.
            The batch is worked on in as many parts as that needs; a part has at least one image. Where gradients are
            themselves differentiated the limit does not hold. Default: 256 MiB.

    Shape:
        - input: :math:`(B, C, H, W)` or :math:`(C, H, W)`.
        - weight: :math:`(C_{out}, C / \text{groups}, k_h, k_w)`.
        - dilation_map: :math:`(B, G, H_{out}, W_{out})` or :math:`(B, 2G, H_{out}, W_{out})`, where :math:`G` is
          ``dilation_groups``, as in :func:`dynamic_dilation_unfold`.
        - bias: :math:`(C_{out})`.
        - mask: :math:`(B, G \, k_h k_w, H_{out}, W_{out})`. Without :math:`B` where the input has none; a batch size
          of 1 is broadcast.
        - Output: :math:`(B, C_{out}, H_{out}, W_{out})` or :math:`(C_{out}, H_{out}, W_{out})`, contiguous.

    Types:
        float64, float32, float16 or bfloat16 for ``input``, ``weight``, ``bias`` and ``mask`` alike; a map as in
        :func:`dynamic_dilation_unfold`. Under autocast all are cast as a convolution's would be, but for the map. On
        CUDA the products of float32 are as exact as torch's switches for TF32 say.

    Raises:
        RuntimeError: for an argument of the wrong shape, type, device or value; the message names the argument, what
            it got and what it takes.

    Example:
        >>> input, weight = torch.randn(2, 8, 6, 7), torch.randn(4, 8, 3, 3)
        >>> dilation_map = torch.full((2, 1, 6, 7), 1.5)
        >>> dynamic_dilation_conv2d(input, weight, dilation_map, padding=1).shape
        torch.Size([2, 4, 6, 7])
        >>> ones = torch.ones(2, 1, 6, 7)
        >>> torch.equal(dynamic_dilation_conv2d(input, weight, ones, padding=1), F.conv2d(input, weight, padding=1))
        True
    """
    name = "dynamic_dilation_conv2d"
    stride, dilation = ints(stride, 2, "stride", name), ints(dilation, 2, "dilation", name)
    if isinstance(padding, str) and padding in PADDING_WORDS:
        input, padding = _padded(input, weight, stride, padding, dilation)
    return torch.ops.ddu.dynamic_dilation_conv2d(
        input,
        weight,
        dilation_map,
        bias,
        stride,
        ints(padding, 2, "padding", name, words=PADDING_WORDS),
        dilation,
        integer(groups, "groups", name),
        dilation_groups=integer(dilation_groups, "dilation_groups", name),
        mask=mask,
        aligned=aligned,
        workspace_limit=integer(workspace_limit, "workspace_limit", name),
    )


def _padded(
    input: Tensor, weight: Tensor, stride: Sequence[int], padding: str, dilation: Sequence[int]
) -> tuple[Tensor, Sequence[int]]:
    """What ``F.conv2d`` means by a padding in words: the input, and the zeros to add on every side of it.

    Of an odd number of zeros the one that is left over goes to the bottom or the right.
    """
    if padding == "valid":
        return input, (0, 0)
    if tuple(stride) != (1, 1):
        raise RuntimeError(f"dynamic_dilation_conv2d(): expected stride to be 1 with padding='same', but got {stride}")
    height, width = (d * (k - 1) for d, k in zip(dilation, weight.shape[-2:], strict=True))
    if height % 2 or width % 2:
        input = F.pad(input, (0, width % 2, 0, height % 2))
    return input, (height // 2, width // 2)


def to_offsets(
    dilation_map: Tensor,
    kernel_size: Ints,
    dilation: Ints = 1,
    dilation_groups: int = 1,
    *,
    aligned: bool = True,
) -> Tensor:
    r"""Offsets with which ``torchvision.ops.deform_conv2d`` takes the samples of a dilation map.

    With them, and the same stride, padding, dilation and mask, it computes what :func:`dynamic_dilation_conv2d` does.
    A deformable convolution moves every tap on its own; here all taps of a window move away from its centre together.
    The offset of tap :math:`(m, n)` is

    .. math::
        \bigl((m - \tfrac{k_h - 1}{2}) \, d_h \, (D_h - 1), \; (n - \tfrac{k_w - 1}{2}) \, d_w \, (D_w - 1)\bigr)

    less :math:`(d_h \tfrac{k_h - 1}{2}, d_w \tfrac{k_w - 1}{2})` where ``aligned`` is false.

    Args:
        dilation_map: the dilation rates.
        kernel_size: taps of the window, an int or a pair (height, width).
        dilation: the dilation that both convolutions are called with, an int or a pair. Default: 1.
        dilation_groups: the number of groups that the map is for. Default: 1.
        aligned: as in :func:`dynamic_dilation_unfold`. Default: ``True``.

    Shape:
        - dilation_map: :math:`(B, G, H_{out}, W_{out})` or :math:`(B, 2G, H_{out}, W_{out})`.
        - Output: :math:`(B, 2 G \, k_h k_w, H_{out}, W_{out})`: for every group and tap the offset down, then the one
          to the right, as torchvision has them.

    Raises:
        RuntimeError: for a map of another shape.

    Example:
        >>> to_offsets(torch.tensor(3.0).view(1, 1, 1, 1), (1, 3)).flatten()
        tensor([ 0., -2.,  0.,  0.,  0.,  2.])
    """
    name = "to_offsets"
    dilation_groups = integer(dilation_groups, "dilation_groups", name)
    kernel_h, kernel_w = ints(kernel_size, 2, "kernel_size", name)
    dilation_h, dilation_w = ints(dilation, 2, "dilation", name)
    if dilation_map.dim() != 4 or dilation_map.shape[1] not in (dilation_groups, 2 * dilation_groups):
        raise RuntimeError(
            f"to_offsets(): expected dilation_map of shape (B, {dilation_groups}, H_out, W_out) or "
            f"(B, {2 * dilation_groups}, H_out, W_out), but got {tuple(dilation_map.shape)}"
        )
    options: dict[str, Any] = {"dtype": dilation_map.dtype, "device": dilation_map.device}
    tap_h = (torch.arange(kernel_h, **options) - (kernel_h - 1) / 2) * dilation_h
    tap_w = (torch.arange(kernel_w, **options) - (kernel_w - 1) / 2) * dilation_w
    taps = torch.stack(torch.meshgrid(tap_h, tap_w, indexing="ij"), -1).view(1, 1, kernel_h * kernel_w, 2, 1, 1)
    batch, channels, height, width = dilation_map.shape
    rates = dilation_map.reshape(batch, dilation_groups, 1, channels // dilation_groups, height, width)
    offsets = taps * (rates - 1)
    if not aligned:
        centre = torch.tensor([dilation_h * (kernel_h - 1) / 2, dilation_w * (kernel_w - 1) / 2], **options)
        offsets = offsets - centre.view(1, 1, 1, 2, 1, 1)
    return offsets.flatten(1, 3)
