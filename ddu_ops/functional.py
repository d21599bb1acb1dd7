"""The public functions: one call of the operator of the same name each."""

from collections.abc import Sequence

import torch
from torch import Tensor

IntOrPair = int | Sequence[int]


def dynamic_dilation_unfold(
    input: Tensor,
    kernel_size: IntOrPair,
    dilation_map: Tensor,
    stride: IntOrPair = 1,
    padding: IntOrPair = 0,
    dilation: IntOrPair = 1,
    groups: int = 1,
    *,
    aligned: bool = True,
) -> Tensor:
    r"""Extract sliding windows whose dilation rate is read from a map, position by position.

    This is :func:`torch.nn.functional.unfold` with the dilation :math:`d` multiplied by
    :math:`D = \text{dilation\_map}[b, g, i, j]` at output position :math:`(i, j)`. Tap :math:`(m, n)` of the window is
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
    return torch.ops.ddu.dynamic_dilation_unfold(
        input, kernel_size, dilation_map, stride, padding, dilation, groups, aligned
    )


def dynamic_dilation_fold(
    columns: Tensor,
    output_size: IntOrPair,
    kernel_size: IntOrPair,
    dilation_map: Tensor,
    stride: IntOrPair = 1,
    padding: IntOrPair = 0,
    dilation: IntOrPair = 1,
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
    # Unlike int[2], SymInt[2] takes no single int. What is no int may be the proxy of a size, when fx traces.
    size = (output_size, output_size) if isinstance(output_size, (int, torch.SymInt)) else output_size
    return torch.ops.ddu.dynamic_dilation_fold(
        columns, size, kernel_size, dilation_map, stride, padding, dilation, groups, aligned
    )
