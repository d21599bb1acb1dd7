"""The public functions. Each calls the operator of the same name."""

import math
import numbers
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from ddu_ops import _extension, reference
from ddu_ops._options import Ints, integer, ints, require_tensor, windows

_extension.require()

PADDING_WORDS = ("valid", "same")

Number = int | float


def at_least_float32(tensor: Tensor) -> Tensor:
    """Casts half types up, so that positions are not rounded."""
    if has_torch_function((tensor,)):  # fx does not know the type yet
        return handle_torch_function(at_least_float32, (tensor,), tensor)
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def dynamic_dilation_unfold(
    input: Tensor,
    kernel_size: Ints,
    dilation_map: Tensor | Number,
    stride: Ints = 1,
    padding: Ints | str = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    aligned: bool = True,
    padding_mode: str = "zeros",
) -> Tensor:
    r"""Extract sliding windows whose dilation rate is read from a map, position by position.

    This is :func:`torch.nn.functional.unfold` with the dilation :math:`d` multiplied by :math:`D`, the value of
    ``dilation_map[b, g, i, j]`` at output position :math:`(i, j)`. Tap :math:`(m, n)` of the window is a bilinear
    sample of the input, which is zero outside unless ``padding_mode`` says otherwise, at

    .. math::
        y &= i \, s_h - p_h + d_h \tfrac{k_h - 1}{2} + (m - \tfrac{k_h - 1}{2}) \, d_h \, D_h \\
        x &= j \, s_w - p_w + d_w \tfrac{k_w - 1}{2} + (n - \tfrac{k_w - 1}{2}) \, d_w \, D_w

    The output has the same size as that of ``F.unfold``, whatever the map contains:
    :math:`H_{out} = \lfloor (H + 2 p_h - d_h (k_h - 1) - 1) / s_h \rfloor + 1`, and likewise :math:`W_{out}`. With a
    map of ones the result equals that of ``F.unfold``. Gradients of every order flow to ``input`` and ``dilation_map``.
    Where a tap falls exactly on a pixel, the derivative with respect to the position is the one from the right. With
    respect to the rate it is therefore the one from the right for taps to the right of the kernel's centre or below it,
    and the one from the left for taps to the left of it or above it.

    Args:
        input: the image.
        kernel_size: taps of the window, an int or a pair (height, width).
        dilation_map: the dilation rates. Any real number is valid: fractional, zero (all taps at the centre) or
            negative (the window is mirrored). A rate that is not finite makes its window NaN. A number or a 0-d tensor
            is one rate for all positions; the tensor keeps its gradient.
        stride: step of the window, an int or a pair. Default: 1.
        padding: how many pixels windows extend beyond every side of the input, an int or a pair; or ``"valid"`` for
            no padding, or ``"same"`` for an output of the size of the input, as in ``F.conv2d``. Default: 0.
        dilation: multiplier of the map, an int or a pair. Default: 1.
        groups: number of channel groups, each with its own map; channel ``c`` reads the map of group
            ``c // (C / groups)``. Default: 1.
        aligned: ``True`` centres a window where ``F.unfold`` centres its own; ``False`` centres it on ``F.unfold``'s
            first tap (the term :math:`d (k - 1) / 2` is dropped). Default: ``True``.
        padding_mode: the values outside the input: ``"zeros"``; ``"border"``, which repeats the outermost pixels; or
            ``"reflection"``, which reflects the input at the centres of its outermost pixels, as often as needed. Same
            as in ``F.grid_sample`` with ``align_corners=True``. Default: ``"zeros"``.

    Shape:
        - input: :math:`(B, C, H, W)` or :math:`(C, H, W)`.
        - dilation_map: :math:`(B, G, H_{out}, W_{out})`, one rate for both axes, or :math:`(B, 2G, H_{out}, W_{out})`,
          a rate per axis: channel :math:`2g` for the height, :math:`2g + 1` for the width of group :math:`g`. Without
          :math:`B` if the input has none. A batch size of 1 and a grid of :math:`1 \times 1` are broadcast.
        - Output: :math:`(B, C \, k_h k_w, L)` or :math:`(C \, k_h k_w, L)`, :math:`L = H_{out} W_{out}`, contiguous.
          Row :math:`(c \, k_h + m) \, k_w + n` is channel :math:`c` at tap :math:`(m, n)`, the order of ``F.unfold``.

    Types:
        float64 with a float64 map, float32 with a float32 map, float16 and bfloat16 with a map of the same type or
        float32. For the half types, positions and sums are computed in float32.

    Raises:
        RuntimeError: if an argument has the wrong shape, type, device or value. The message names the argument, what
            was expected and what was passed.

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
    return _unfold(2, input, kernel_size, dilation_map, stride, padding, dilation, groups, aligned, padding_mode)


def dynamic_dilation_fold(
    columns: Tensor,
    output_size: Ints,
    kernel_size: Ints,
    dilation_map: Tensor | Number,
    stride: Ints = 1,
    padding: Ints = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    aligned: bool = True,
    padding_mode: str = "zeros",
) -> Tensor:
    r"""Sum windows into an image, each with the dilation rate that the map has for it.

    The adjoint of :func:`dynamic_dilation_unfold` with respect to its input,
    :math:`\langle \mathrm{unfold}(x, D), g \rangle = \langle x, \mathrm{fold}(g, D) \rangle`: every entry of
    ``columns`` is distributed over the four pixels around its tap with the bilinear weights. What falls outside the
    image is dropped. With a map of ones the result equals that of :func:`torch.nn.functional.fold`. Gradients of every
    order flow to ``columns`` and ``dilation_map``.

    Args:
        columns: the windows.
        output_size: height and width of the image, an int or a pair.
        kernel_size, dilation_map, stride, padding, dilation, groups, aligned: as in :func:`dynamic_dilation_unfold`.

    Shape:
        - columns: :math:`(B, C \, k_h k_w, L)` or :math:`(C \, k_h k_w, L)`.
        - dilation_map: :math:`(B, G, H_{out}, W_{out})` or :math:`(B, 2G, H_{out}, W_{out})` with
          :math:`H_{out} W_{out} = L`; without :math:`B` if ``columns`` has none. A batch size of 1 is broadcast.
        - Output: :math:`(B, C, H, W)` or :math:`(C, H, W)`, where :math:`(H, W)` is ``output_size``; contiguous.

    Raises:
        RuntimeError: as in :func:`dynamic_dilation_unfold`.

    Example:
        >>> dilation_map = torch.full((1, 1, 4, 4), 1.5)
        >>> columns = torch.ones(1, 9, 16)
        >>> dynamic_dilation_fold(columns, 4, 3, dilation_map, padding=1).shape
        torch.Size([1, 1, 4, 4])
    """
    return _fold(
        2, columns, output_size, kernel_size, dilation_map, stride, padding, dilation, groups, aligned, padding_mode
    )


def dynamic_dilation_conv2d(
    input: Tensor,
    weight: Tensor,
    dilation_map: Tensor | Number,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints | str = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    dilation_groups: int = 1,
    mask: Tensor | None = None,
    aligned: bool = True,
    padding_mode: str = "zeros",
) -> Tensor:
    r"""Convolve with a kernel whose dilation rate is read from a map, position by position.

    This is :func:`torch.nn.functional.conv2d` with the windows of :func:`dynamic_dilation_unfold`: at output position
    :math:`(i, j)`, with the taps :math:`x_{c,m,n}(i, j)` sampled as described there,

    .. math::
        \text{out}[b, o, i, j] = \text{bias}[o] + \sum_{c, m, n} \text{weight}[o, c, m, n] \;
        \text{mask}[b, g k_h k_w + m k_w + n, i, j] \; x_{c,m,n}(i, j)

    where :math:`g` is the mask's group of channel :math:`c`. With a map of ones the result equals that of ``F.conv2d``,
    up to the order of additions. Gradients of every order flow to all five tensors. The windows are never in memory as
    a whole, except when gradients are themselves differentiated, and in forward mode, as with :func:`torch.func.jvp`.

    Args:
        input: the image.
        weight: the kernels, shared by all images or separate for each image.
        dilation_map: the dilation rates, as in :func:`dynamic_dilation_unfold`.
        bias: one value for each output channel, added to the result. Default: none.
        stride: step of the window, an int or a pair (height, width). Default: 1.
        padding: how many pixels windows extend beyond every side of the input, an int or a pair; or ``"valid"`` for
            no padding, or ``"same"`` for an output of the size of the input, as in ``F.conv2d``. Default: 0.
        dilation: multiplier of the map, an int or a pair. Default: 1.
        groups: groups of the convolution, as in ``F.conv2d``. Default: 1.
        dilation_groups: number of channel groups, each with its own map. The groups of the convolution, of the map and
            of the mask must each divide the channels; they are otherwise independent. Default: 1.
        mask: factors of the taps, one for every tap and output position of each of its groups. Default: none.
        aligned: ``True`` centres a window where ``F.conv2d`` centres its own, ``False`` on its first tap, as in
            :func:`dynamic_dilation_unfold`. Default: ``True``.
        padding_mode: what lies outside the input, as in :func:`dynamic_dilation_unfold`. Default: ``"zeros"``.

    Shape:
        - input: :math:`(B, C, H, W)` or :math:`(C, H, W)`.
        - weight: :math:`(C_{out}, C / \text{groups}, k_h, k_w)`, or :math:`(B, C_{out}, C / \text{groups}, k_h, k_w)`
          if the input has :math:`B`. A batch size of 1 is broadcast.
        - dilation_map: :math:`(B, G, H_{out}, W_{out})` or :math:`(B, 2G, H_{out}, W_{out})`, where :math:`G` is
          ``dilation_groups``, as in :func:`dynamic_dilation_unfold`.
        - bias: :math:`(C_{out})`, or also :math:`(B, C_{out})` with a weight for each image.
        - mask: :math:`(B, M \, k_h k_w, H_{out}, W_{out})`, where :math:`M`, its number of groups, is any divisor of
          :math:`C`. Without :math:`B` if the input has none. A batch size of 1 is broadcast.
        - Output: :math:`(B, C_{out}, H_{out}, W_{out})` or :math:`(C_{out}, H_{out}, W_{out})`; channels-last if the
          input is, otherwise contiguous.

    Types:
        ``input``, ``weight`` and ``bias`` have the same type: float64, float32, float16 or bfloat16. The mask has that
        type too, or float32 with half types; the map is as in :func:`dynamic_dilation_unfold`. Under autocast all of
        them are cast as for a convolution, except the map. On CUDA, torch's TF32 switches set the precision of float32
        products.

    Raises:
        RuntimeError: if an argument has the wrong shape, type, device or value. The message names the argument, what
            was expected and what was passed.

    Example:
        >>> input, weight = torch.randn(2, 8, 6, 7), torch.randn(4, 8, 3, 3)
        >>> dilation_map = torch.full((2, 1, 6, 7), 1.5)
        >>> dynamic_dilation_conv2d(input, weight, dilation_map, padding=1).shape
        torch.Size([2, 4, 6, 7])
        >>> plain = F.conv2d(input, weight, padding=1)
        >>> torch.allclose(dynamic_dilation_conv2d(input, weight, 1, padding=1), plain, atol=1e-4)
        True
    """
    options = (bias, stride, padding, dilation, groups, dilation_groups, mask, aligned, padding_mode)
    return _conv(2, input, weight, dilation_map, *options)


def dynamic_dilation_unfold1d(
    input: Tensor,
    kernel_size: Ints,
    dilation_map: Tensor | Number,
    stride: Ints = 1,
    padding: Ints | str = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    aligned: bool = True,
    padding_mode: str = "zeros",
) -> Tensor:
    r"""Extract windows of a signal, each with the dilation rate that the map has for it.

    :func:`dynamic_dilation_unfold` along one axis: ``input`` is :math:`(B, C, W)`, ``dilation_map``
    :math:`(B, G, W_{out})`, the output :math:`(B, C \, k, W_{out})`; unbatched without the :math:`B`. Everything
    else, including errors, is the same.

    Example:
        >>> signal = torch.arange(6.0).view(1, 1, 6)
        >>> dynamic_dilation_unfold1d(signal, 3, 0.5, padding=1)[0, :, 2]
        tensor([1.5000, 2.0000, 2.5000])
    """
    return _unfold(1, input, kernel_size, dilation_map, stride, padding, dilation, groups, aligned, padding_mode)


def dynamic_dilation_unfold3d(
    input: Tensor,
    kernel_size: Ints,
    dilation_map: Tensor | Number,
    stride: Ints = 1,
    padding: Ints | str = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    aligned: bool = True,
    padding_mode: str = "zeros",
) -> Tensor:
    r"""Extract windows of a volume, each with the dilation rate that the map has for it.

    :func:`dynamic_dilation_unfold` along three axes, with trilinear samples: ``input`` is
    :math:`(B, C, D, H, W)`, ``dilation_map`` :math:`(B, G, D_{out}, H_{out}, W_{out})` or, with a rate per axis,
    :math:`(B, 3G, D_{out}, H_{out}, W_{out})`, depth first, the output :math:`(B, C \, k_d k_h k_w, L)`; unbatched
    without the :math:`B`. Everything else, including errors, is the same.

    Example:
        >>> volume = torch.randn(2, 4, 5, 6, 7)
        >>> rates = torch.full((2, 3, 5, 6, 7), 1.5)  # per axis
        >>> dynamic_dilation_unfold3d(volume, 3, rates, padding=1, padding_mode="border").shape
        torch.Size([2, 108, 210])
    """
    return _unfold(3, input, kernel_size, dilation_map, stride, padding, dilation, groups, aligned, padding_mode)


def dynamic_dilation_fold1d(
    columns: Tensor,
    output_size: Ints,
    kernel_size: Ints,
    dilation_map: Tensor | Number,
    stride: Ints = 1,
    padding: Ints = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    aligned: bool = True,
    padding_mode: str = "zeros",
) -> Tensor:
    """Sum windows into a signal: the adjoint of :func:`dynamic_dilation_unfold1d` with respect to its input.

    Shapes are those of :func:`dynamic_dilation_unfold1d`. Everything else, including errors, is as in
    :func:`dynamic_dilation_fold`.

    Example:
        >>> dynamic_dilation_fold1d(torch.ones(1, 3, 6), 6, 3, 1.0, padding=1)
        tensor([[[2., 3., 3., 3., 3., 2.]]])
    """
    return _fold(
        1, columns, output_size, kernel_size, dilation_map, stride, padding, dilation, groups, aligned, padding_mode
    )


def dynamic_dilation_fold3d(
    columns: Tensor,
    output_size: Ints,
    kernel_size: Ints,
    dilation_map: Tensor | Number,
    stride: Ints = 1,
    padding: Ints = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    aligned: bool = True,
    padding_mode: str = "zeros",
) -> Tensor:
    """Sum windows into a volume: the adjoint of :func:`dynamic_dilation_unfold3d` with respect to its input.

    Shapes are those of :func:`dynamic_dilation_unfold3d`. Everything else, including errors, is as in
    :func:`dynamic_dilation_fold`.

    Example:
        >>> rates = torch.full((1, 1, 4, 4, 4), 1.5)
        >>> dynamic_dilation_fold3d(torch.ones(1, 27, 64), 4, 3, rates, padding=1).shape
        torch.Size([1, 1, 4, 4, 4])
    """
    return _fold(
        3, columns, output_size, kernel_size, dilation_map, stride, padding, dilation, groups, aligned, padding_mode
    )


def deform_unfold1d(
    input: Tensor,
    kernel_size: Ints,
    offset: Tensor,
    stride: Ints = 1,
    padding: Ints | str = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
) -> Tensor:
    r"""Extract windows of a signal, with an offset for every tap.

    :func:`deform_unfold2d` along one axis: ``input`` is :math:`(B, C, W)`, ``offset`` :math:`(B, G \, k, W_{out})`,
    the output :math:`(B, C \, k, W_{out})`; unbatched without the :math:`B`.

    Example:
        >>> signal, offset = torch.arange(6.0).view(1, 1, 6), torch.full((1, 3, 6), 0.5)
        >>> deform_unfold1d(signal, 3, offset, padding=1)[0, :, 2]
        tensor([1.5000, 2.5000, 3.5000])
    """
    return _moved_unfold("deform", 1, input, kernel_size, offset, stride, padding, dilation, groups, padding_mode)


def deform_unfold2d(
    input: Tensor,
    kernel_size: Ints,
    offset: Tensor,
    stride: Ints = 1,
    padding: Ints | str = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
) -> Tensor:
    r"""Extract sliding windows with an offset for every tap: the windows of a deformable convolution.

    Tap :math:`(m, n)` of the window at output position :math:`(i, j)` is a bilinear sample of the input at

    .. math::
        y = i \, s_h - p_h + m \, d_h + \Delta y, \qquad x = j \, s_w - p_w + n \, d_w + \Delta x,

    with the offset :math:`(\Delta y, \Delta x)` of that tap, in pixels, as in J. Dai et al., "Deformable Convolutional
    Networks", ICCV 2017. Values and layout are those of ``torchvision.ops.deform_conv2d``. With offsets of zero the
    result equals that of :func:`torch.nn.functional.unfold`. Gradients of every order flow to ``input`` and ``offset``.

    Args:
        input: the image.
        kernel_size: taps of the window, an int or a pair (height, width).
        offset: the displacements in pixels, any real numbers. One that is not finite makes its tap NaN.
        stride, padding, dilation, padding_mode: as in :func:`dynamic_dilation_unfold`.
        groups: number of channel groups, each with its own offsets. Default: 1.

    Shape:
        - input: :math:`(B, C, H, W)` or :math:`(C, H, W)`.
        - offset: :math:`(B, 2 G \, k_h k_w, H_{out}, W_{out})`: for every group and tap the offset down, then the
          offset to the right. Without :math:`B` if the input has none. A batch size of 1 and a grid of
          :math:`1 \times 1` are broadcast.
        - Output: :math:`(B, C \, k_h k_w, L)` or :math:`(C \, k_h k_w, L)`, as of :func:`dynamic_dilation_unfold`.

    Raises:
        RuntimeError: as in :func:`dynamic_dilation_unfold`.

    Example:
        >>> input, offset = torch.randn(2, 4, 6, 7), torch.zeros(2, 18, 6, 7)
        >>> torch.equal(deform_unfold2d(input, 3, offset, padding=1), F.unfold(input, 3, padding=1))
        True
    """
    return _moved_unfold("deform", 2, input, kernel_size, offset, stride, padding, dilation, groups, padding_mode)


def deform_unfold3d(
    input: Tensor,
    kernel_size: Ints,
    offset: Tensor,
    stride: Ints = 1,
    padding: Ints | str = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
) -> Tensor:
    r"""Extract windows of a volume, with an offset for every tap.

    :func:`deform_unfold2d` along three axes: ``input`` is :math:`(B, C, D, H, W)`, ``offset``
    :math:`(B, 3 G \, k_d k_h k_w, D_{out}, H_{out}, W_{out})`, for every group and tap the offset along the depth, the
    height and the width, the output :math:`(B, C \, k_d k_h k_w, L)`; unbatched without the :math:`B`.

    Example:
        >>> volume, offset = torch.randn(1, 4, 5, 6, 7), torch.randn(1, 81, 5, 6, 7)
        >>> deform_unfold3d(volume, 3, offset, padding=1).shape
        torch.Size([1, 108, 210])
    """
    return _moved_unfold("deform", 3, input, kernel_size, offset, stride, padding, dilation, groups, padding_mode)


def affine_unfold1d(
    input: Tensor,
    kernel_size: Ints,
    theta: Tensor,
    stride: Ints = 1,
    padding: Ints | str = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
) -> Tensor:
    r"""Extract windows of a signal, each stretched and moved.

    :func:`affine_unfold2d` along one axis: ``input`` is :math:`(B, C, W)`, ``theta`` :math:`(B, 2G, W_{out})`, for
    every group the factor and the shift, the output :math:`(B, C \, k, L)`; unbatched without the :math:`B`.

    Example:
        >>> signal, theta = torch.arange(6.0).view(1, 1, 6), torch.tensor([2.0, 0.5]).view(1, 2, 1)
        >>> affine_unfold1d(signal, 3, theta, padding=1)[0, :, 2]
        tensor([0.5000, 2.5000, 4.5000])
    """
    return _moved_unfold("affine", 1, input, kernel_size, theta, stride, padding, dilation, groups, padding_mode)


def affine_unfold2d(
    input: Tensor,
    kernel_size: Ints,
    theta: Tensor,
    stride: Ints = 1,
    padding: Ints | str = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
) -> Tensor:
    r"""Extract sliding windows, each turned, stretched and moved by an affine map of its own.

    The windows of alignment convolution (J. Han et al., "Align Deep Features for Oriented Object Detection", TGRS
    2021) and of adaptive convolution (T. Vu et al., "Cascade RPN", NeurIPS 2019), which follow boxes; and of any other
    map that six numbers say. :func:`theta_from_boxes` and :func:`theta_from_rates` make them. With the entries
    :math:`A` and :math:`s` of ``theta`` for output position :math:`(i, j)`, tap :math:`(m, n)` of the window is the
    bilinear sample of the input at

    .. math::
        y &= i \, s_h - p_h + d_h \tfrac{k_h - 1}{2} + s_y + A_{yy} u_y + A_{yx} u_x, \qquad
        u_y = (m - \tfrac{k_h - 1}{2}) \, d_h \\
        x &= j \, s_w - p_w + d_w \tfrac{k_w - 1}{2} + s_x + A_{xy} u_y + A_{xx} u_x, \qquad
        u_x = (n - \tfrac{k_w - 1}{2}) \, d_w

    The identity without a shift makes it :func:`torch.nn.functional.unfold`, :math:`D` times the identity
    :func:`dynamic_dilation_unfold` with the rate :math:`D`. Gradients of every order flow to ``input`` and to
    ``theta``.

    Args:
        input: the image.
        kernel_size: taps of the window, an int or a pair (height, width).
        theta: the affine maps, any real numbers. One that is not finite makes its window NaN.
        stride, padding, dilation, padding_mode: as in :func:`dynamic_dilation_unfold`.
        groups: number of channel groups that have maps of their own. Default: 1.

    Shape:
        - input: :math:`(B, C, H, W)` or :math:`(C, H, W)`.
        - theta: :math:`(B, 6G, H_{out}, W_{out})`: for every group :math:`A_{yy}, A_{yx}, s_y, A_{xy}, A_{xx}, s_x`,
          the shifts in pixels. (Not the matrix of :func:`torch.nn.functional.affine_grid`, which is x first, in units
          of half the image, and maps the whole of it.) Without :math:`B` where the input has none; a batch of 1 is
          broadcast, and so is a grid of :math:`1 \times 1`.
        - Output: :math:`(B, C \, k_h k_w, L)` or :math:`(C \, k_h k_w, L)`, as of :func:`dynamic_dilation_unfold`.

    Raises:
        RuntimeError: as in :func:`dynamic_dilation_unfold`.

    Example:
        >>> input, turned = torch.arange(25.0).view(1, 1, 5, 5), torch.tensor([0.0, 1.0, 0.0, -1.0, 0.0, 0.0])
        >>> columns = affine_unfold2d(input, 3, turned.view(1, 6, 1, 1), padding=1)  # by a right angle
        >>> columns[0, :, 12].view(3, 3)
        tensor([[ 8., 13., 18.],
                [ 7., 12., 17.],
                [ 6., 11., 16.]])
    """
    return _moved_unfold("affine", 2, input, kernel_size, theta, stride, padding, dilation, groups, padding_mode)


def affine_unfold3d(
    input: Tensor,
    kernel_size: Ints,
    theta: Tensor,
    stride: Ints = 1,
    padding: Ints | str = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
) -> Tensor:
    r"""Extract windows of a volume, each turned, stretched and moved by an affine map of its own.

    :func:`affine_unfold2d` along three axes: ``input`` is :math:`(B, C, D, H, W)`, ``theta``
    :math:`(B, 12 G, D_{out}, H_{out}, W_{out})`, for every group and axis, depth first, the row of the matrix and the
    shift, the output :math:`(B, C \, k_d k_h k_w, L)`; unbatched without the :math:`B`.

    Example:
        >>> volume, theta = torch.randn(1, 4, 5, 6, 7), torch.eye(3, 4).view(1, 12, 1, 1, 1)
        >>> affine_unfold3d(volume, 3, theta, padding=1).shape
        torch.Size([1, 108, 210])
    """
    return _moved_unfold("affine", 3, input, kernel_size, theta, stride, padding, dilation, groups, padding_mode)


def dynamic_dilation_conv1d(
    input: Tensor,
    weight: Tensor,
    dilation_map: Tensor | Number,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints | str = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    dilation_groups: int = 1,
    mask: Tensor | None = None,
    aligned: bool = True,
    padding_mode: str = "zeros",
) -> Tensor:
    r"""Convolve a signal with a kernel whose dilation rate is read from a map.

    :func:`dynamic_dilation_conv2d` along one axis: ``input`` is :math:`(B, C, W)`, ``weight``
    :math:`(C_{out}, C / \text{groups}, k)` or :math:`(B, C_{out}, C / \text{groups}, k)`, ``dilation_map``
    :math:`(B, G, W_{out})`, ``mask`` :math:`(B, M \, k, W_{out})`, the output :math:`(B, C_{out}, W_{out})`, always
    contiguous; unbatched without the :math:`B`. Everything else, including errors, is the same.

    Example:
        >>> signal, difference = torch.arange(6.0).view(1, 1, 6), torch.tensor([[[-1.0, 0.0, 1.0]]])
        >>> dynamic_dilation_conv1d(signal, difference, 1.5, padding=1)[0, 0, 2]
        tensor(3.)
    """
    options = (bias, stride, padding, dilation, groups, dilation_groups, mask, aligned, padding_mode)
    return _conv(1, input, weight, dilation_map, *options)


def dynamic_dilation_conv3d(
    input: Tensor,
    weight: Tensor,
    dilation_map: Tensor | Number,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints | str = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    dilation_groups: int = 1,
    mask: Tensor | None = None,
    aligned: bool = True,
    padding_mode: str = "zeros",
) -> Tensor:
    r"""Convolve a volume with a kernel whose dilation rate is read from a map.

    :func:`dynamic_dilation_conv2d` along three axes: ``input`` is :math:`(B, C, D, H, W)`, ``weight``
    :math:`(C_{out}, C / \text{groups}, k_d, k_h, k_w)`, with a :math:`B` in front for one per image,
    ``dilation_map`` as in :func:`dynamic_dilation_unfold3d`, ``mask``
    :math:`(B, M \, k_d k_h k_w, D_{out}, H_{out}, W_{out})`, the output
    :math:`(B, C_{out}, D_{out}, H_{out}, W_{out})`; unbatched without the :math:`B`. Everything else,
    including errors, is the same.

    Example:
        >>> volume, weights = torch.randn(2, 4, 5, 6, 7), torch.randn(2, 3, 4, 3, 3, 3)  # one for each volume
        >>> rates = torch.full((2, 1, 5, 6, 7), 1.5)
        >>> dynamic_dilation_conv3d(volume, weights, rates, padding=1, padding_mode="border").shape
        torch.Size([2, 3, 5, 6, 7])
    """
    options = (bias, stride, padding, dilation, groups, dilation_groups, mask, aligned, padding_mode)
    return _conv(3, input, weight, dilation_map, *options)


def deform_conv1d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints | str = 0,
    dilation: Ints = 1,
    mask: Tensor | None = None,
    *,
    padding_mode: str = "zeros",
) -> Tensor:
    r"""Convolve a signal, with an offset for every tap of the kernel.

    :func:`deform_conv2d` along one axis: ``input`` is :math:`(B, C, W)`, ``offset`` :math:`(B, G \, k, W_{out})`,
    ``weight`` :math:`(C_{out}, C / \text{groups}, k)`, ``mask`` :math:`(B, M \, k, W_{out})`, the output
    :math:`(B, C_{out}, W_{out})`; unbatched without the :math:`B`.

    Example:
        >>> signal, difference = torch.arange(6.0).view(1, 1, 6), torch.tensor([[[-1.0, 0.0, 1.0]]])
        >>> offset = torch.tensor([-0.5, 0.0, 0.5]).view(1, 3, 1)  # the same everywhere
        >>> deform_conv1d(signal, offset, difference, padding=1)[0, 0, 2]
        tensor(3.)
    """
    return _deform_conv(1, input, offset, weight, bias, stride, padding, dilation, mask, padding_mode)


def deform_conv2d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints | str = 0,
    dilation: Ints = 1,
    mask: Tensor | None = None,
    *,
    padding_mode: str = "zeros",
) -> Tensor:
    r"""Convolve with an offset for every tap of the kernel: a deformable convolution, optionally modulated.

    Arguments, layouts and values are those of ``torchvision.ops.deform_conv2d``. With the samples
    :math:`x_{c,m,n}(i, j)` of :func:`deform_unfold2d`,

    .. math::
        \text{out}[b, o, i, j] = \text{bias}[o] + \sum_{c, m, n} \text{weight}[o, c, m, n] \;
        \text{mask}[b, g k_h k_w + m k_w + n, i, j] \; x_{c,m,n}(i, j)

    where :math:`g` is the mask's group of channel :math:`c`, as in X. Zhu et al., "Deformable ConvNets v2: More
    Deformable, Better Results", CVPR 2019. With offsets of zero the result equals that of
    :func:`torch.nn.functional.conv2d`, up to the order of additions. Gradients of every order flow to all five tensors.
    The windows are never in memory as a whole, except when gradients are themselves differentiated, and in forward
    mode, as with :func:`torch.func.jvp`.

    Args:
        input: the image.
        offset: the displacements in pixels, any real numbers. One that is not finite makes its tap NaN. Its channels
            determine how many groups of channels have their own offsets.
        weight: the kernels, shared by all images or separate for each image. Their channels determine the number of
            groups of the convolution.
        bias: one value for each output channel, added to the result. Default: none.
        stride, padding, dilation, padding_mode: as in :func:`dynamic_dilation_conv2d`.
        mask: factors of the taps, one for every tap and output position of each of its groups, whose number is
            independent of that of the offsets. Default: none.

    Shape:
        - input: :math:`(B, C, H, W)` or :math:`(C, H, W)`.
        - offset: :math:`(B, 2 G \, k_h k_w, H_{out}, W_{out})`: for every group and tap the offset down, then the
          offset to the right. Without :math:`B` if the input has none. A batch size of 1 and a grid of
          :math:`1 \times 1` are broadcast.
        - weight, bias, mask, output: as in :func:`dynamic_dilation_conv2d`.

    Types:
        As in :func:`dynamic_dilation_conv2d`, with offsets in place of the map.

    Raises:
        RuntimeError: as in :func:`dynamic_dilation_conv2d`.

    Example:
        >>> input, weight, offset = torch.randn(2, 8, 6, 7), torch.randn(4, 8, 3, 3), torch.randn(2, 18, 6, 7)
        >>> deform_conv2d(input, offset, weight, padding=1, mask=torch.rand(2, 9, 6, 7)).shape
        torch.Size([2, 4, 6, 7])
        >>> plain = F.conv2d(input, weight, padding=1)
        >>> torch.allclose(deform_conv2d(input, 0 * offset, weight, padding=1), plain, atol=1e-4)
        True
    """
    return _deform_conv(2, input, offset, weight, bias, stride, padding, dilation, mask, padding_mode)


def deform_conv3d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints | str = 0,
    dilation: Ints = 1,
    mask: Tensor | None = None,
    *,
    padding_mode: str = "zeros",
) -> Tensor:
    r"""Convolve a volume, with an offset for every tap of the kernel.

    :func:`deform_conv2d` along three axes: ``input`` is :math:`(B, C, D, H, W)`, ``offset`` as in
    :func:`deform_unfold3d`, ``weight`` :math:`(C_{out}, C / \text{groups}, k_d, k_h, k_w)`, ``mask``
    :math:`(B, M \, k_d k_h k_w, D_{out}, H_{out}, W_{out})`, the output
    :math:`(B, C_{out}, D_{out}, H_{out}, W_{out})`; unbatched without the :math:`B`.

    Example:
        >>> volume, weight = torch.randn(1, 4, 5, 6, 7), torch.randn(2, 4, 3, 3, 3)
        >>> deform_conv3d(volume, torch.randn(1, 81, 5, 6, 7), weight, padding=1).shape
        torch.Size([1, 2, 5, 6, 7])
    """
    return _deform_conv(3, input, offset, weight, bias, stride, padding, dilation, mask, padding_mode)


def affine_conv1d(
    input: Tensor,
    weight: Tensor,
    theta: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints | str = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    theta_groups: int = 1,
    mask: Tensor | None = None,
    padding_mode: str = "zeros",
) -> Tensor:
    r"""Convolve a signal with a kernel that is stretched and moved, position by position.

    :func:`affine_conv2d` along one axis: ``input`` is :math:`(B, C, W)`, ``theta`` as in :func:`affine_unfold1d`, all
    else as in :func:`dynamic_dilation_conv1d`.

    Example:
        >>> signal, difference = torch.arange(6.0).view(1, 1, 6), torch.tensor([[[-1.0, 0.0, 1.0]]])
        >>> affine_conv1d(signal, difference, torch.tensor([1.5, 0.5]).view(1, 2, 1), padding=1)[0, 0, 2]
        tensor(3.)
    """
    options = (bias, stride, padding, dilation, groups, theta_groups, mask, padding_mode)
    return _affine_conv(1, input, weight, theta, *options)


def affine_conv2d(
    input: Tensor,
    weight: Tensor,
    theta: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints | str = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    theta_groups: int = 1,
    mask: Tensor | None = None,
    padding_mode: str = "zeros",
) -> Tensor:
    r"""Convolve with a kernel that is turned, stretched and moved by an affine map, position by position.

    :func:`dynamic_dilation_conv2d` with the windows of :func:`affine_unfold2d`: arguments, layouts, memory and
    gradients are as there. The identity without a shift makes it :func:`torch.nn.functional.conv2d`, up to the order of
    the additions.

    Args:
        input: the image.
        weight: the kernels, the same for every image or each image's own.
        theta: the affine maps, any real numbers. One that is not finite makes its window NaN.
        bias, stride, padding, dilation, groups, mask, padding_mode: as in :func:`dynamic_dilation_conv2d`.
        theta_groups: number of channel groups that have maps of their own. Default: 1.

    Shape:
        - theta: :math:`(B, 6G, H_{out}, W_{out})`, as in :func:`affine_unfold2d`.
        - input, weight, bias, mask, output: as in :func:`dynamic_dilation_conv2d`.

    Types:
        As in :func:`dynamic_dilation_conv2d`, with ``theta`` in the place of the map.

    Raises:
        RuntimeError: as in :func:`dynamic_dilation_conv2d`.

    Example:
        >>> input, weight, theta = torch.randn(2, 8, 6, 7), torch.randn(4, 8, 3, 3), torch.eye(2, 3).view(1, 6, 1, 1)
        >>> plain = F.conv2d(input, weight, padding=1)
        >>> torch.allclose(affine_conv2d(input, weight, theta, padding=1), plain, atol=1e-4)
        True
    """
    options = (bias, stride, padding, dilation, groups, theta_groups, mask, padding_mode)
    return _affine_conv(2, input, weight, theta, *options)


def affine_conv3d(
    input: Tensor,
    weight: Tensor,
    theta: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints | str = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    theta_groups: int = 1,
    mask: Tensor | None = None,
    padding_mode: str = "zeros",
) -> Tensor:
    r"""Convolve a volume with a kernel that is turned, stretched and moved by an affine map, position by position.

    :func:`affine_conv2d` along three axes: ``input`` is :math:`(B, C, D, H, W)`, ``theta`` as in
    :func:`affine_unfold3d`, all else as in :func:`dynamic_dilation_conv3d`.

    Example:
        >>> volume, weight = torch.randn(1, 4, 5, 6, 7), torch.randn(2, 4, 3, 3, 3)
        >>> affine_conv3d(volume, weight, torch.randn(1, 12, 5, 6, 7), padding=1).shape
        torch.Size([1, 2, 5, 6, 7])
    """
    options = (bias, stride, padding, dilation, groups, theta_groups, mask, padding_mode)
    return _affine_conv(3, input, weight, theta, *options)


def grid_size(
    size: Ints, kernel_size: Ints, stride: Ints = 1, padding: Ints | str = 0, dilation: Ints = 1
) -> tuple[int, ...]:
    r"""Return the size of the output grid, which is the size of a dilation map.

    On every axis :math:`\lfloor (\text{size} + 2 p - d (k - 1) - 1) / s \rfloor + 1`, as in ``F.unfold``.

    Args:
        size: of the image, one number per axis, or one number for as many axes as the other arguments have.
        kernel_size, stride, padding, dilation: as in :func:`dynamic_dilation_unfold`.

    Raises:
        RuntimeError: if an option is not an int or one int per axis, or is too small; for a stride other than 1 with
            ``padding="same"``.

    Example:
        >>> grid_size((480, 640), 3, stride=2, padding=1)
        (240, 320)
    """
    if isinstance(size, torch.fx.Proxy):  # a number or several
        return handle_torch_function(grid_size, (size,), size, kernel_size, stride, padding, dilation)
    name = "grid_size"
    options = {"size": size, "kernel_size": kernel_size, "stride": stride, "padding": padding, "dilation": dilation}
    axes = 1
    for option, value in options.items():
        length = _length(value)
        if length not in (1, 2, 3):
            raise RuntimeError(f"{name}(): expected {option} to be one, two or three ints, but got {value!r}")
        axes = max(axes, length)
    sizes = ints(size, axes, "size", name, symbolic=True)
    kernel_size = ints(kernel_size, axes, "kernel_size", name, least=1)
    stride = ints(stride, axes, "stride", name, least=1)
    dilation = ints(dilation, axes, "dilation", name, least=1)
    if isinstance(padding, str) and padding in PADDING_WORDS:
        if padding == "same":
            _check_same(name, stride)
            return sizes
        padding = 0
    padding = ints(padding, axes, "padding", name, words=PADDING_WORDS, least=0)
    return windows(sizes, kernel_size, stride, padding, dilation)


def _length(value: Any) -> int:
    """The number of axes that an option has values for; 1 for a number."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return len(value)
    return value.shape[0] if getattr(value, "ndim", 0) == 1 else 1


def _check_same(name: str, stride: Sequence[int]) -> None:
    if tuple(stride) != (1,) * len(stride):
        raise RuntimeError(f"{name}(): expected stride to be 1 with padding='same', but got {tuple(stride)}")


# ---- For any number of axes ----
#
# fx does not know sizes and types, so a call that depends on them is kept as one node of the graph.

_UNFOLD = ("dynamic_dilation_unfold1d", "dynamic_dilation_unfold", "dynamic_dilation_unfold3d")
_FOLD = ("dynamic_dilation_fold1d", "dynamic_dilation_fold", "dynamic_dilation_fold3d")
_CONV = ("dynamic_dilation_conv1d", "dynamic_dilation_conv2d", "dynamic_dilation_conv3d")
_DEFORM_CONV = ("deform_conv1d", "deform_conv2d", "deform_conv3d")
_AFFINE_CONV = ("affine_conv1d", "affine_conv2d", "affine_conv3d")


def _unfold(
    axes: int,
    input: Tensor,
    kernel_size: Ints,
    dilation_map: Tensor | Number,
    stride: Ints,
    padding: Ints | str,
    dilation: Ints,
    groups: int,
    aligned: bool,
    padding_mode: str,
) -> Tensor:
    if _looks_at_sizes(dilation_map, padding) and has_torch_function((input,)):
        arguments = (axes, input, kernel_size, dilation_map, stride, padding, dilation, groups, aligned, padding_mode)
        return handle_torch_function(_unfold, (input,), *arguments)
    name = _UNFOLD[axes - 1]
    _require_image(input, "input", name)
    _require_rates(dilation_map, name)
    groups = integer(groups, "groups", name)
    input, *window = _window(axes, name, input, kernel_size, stride, padding, dilation, padding_mode)
    return getattr(torch.ops.ddu, name)(
        input,
        window[0],
        _rates(axes, dilation_map, input, groups),
        *window[1:],
        groups,
        aligned=aligned,
        padding_mode=padding_mode,
    )


def _moved_unfold(
    kind: str,
    axes: int,
    input: Tensor,
    kernel_size: Ints,
    positions: Tensor,
    stride: Ints,
    padding: Ints | str,
    dilation: Ints,
    groups: int,
    padding_mode: str,
) -> Tensor:
    """From offsets, or affine maps."""
    if _looks_at_sizes(positions, padding) and has_torch_function((input,)):
        arguments = (kind, axes, input, kernel_size, positions, stride, padding, dilation, groups, padding_mode)
        return handle_torch_function(_moved_unfold, (input,), *arguments)
    name = f"{kind}_unfold{axes}d"
    _require_image(input, "input", name)
    require_tensor(positions, "theta" if kind == "affine" else "offset", name)
    groups = integer(groups, "groups", name)
    input, *window = _window(axes, name, input, kernel_size, stride, padding, dilation, padding_mode)
    return getattr(torch.ops.ddu, name)(input, window[0], positions, *window[1:], groups, padding_mode=padding_mode)


def _conv(
    axes: int,
    input: Tensor,
    weight: Tensor,
    dilation_map: Tensor | Number,
    bias: Tensor | None,
    stride: Ints,
    padding: Ints | str,
    dilation: Ints,
    groups: int,
    dilation_groups: int,
    mask: Tensor | None,
    aligned: bool,
    padding_mode: str,
) -> Tensor:
    if _looks_at_sizes(dilation_map, padding) and has_torch_function((input, weight)):
        options = (bias, stride, padding, dilation, groups, dilation_groups, mask, aligned, padding_mode)
        return handle_torch_function(_conv, (input, weight), axes, input, weight, dilation_map, *options)
    name = _CONV[axes - 1]
    _require_tensors(name, input, weight, bias, mask)
    _require_rates(dilation_map, name)
    input, *steps = _steps(axes, name, input, weight, stride, padding, dilation, padding_mode)
    groups, dilation_groups = integer(groups, "groups", name), integer(dilation_groups, "dilation_groups", name)
    return getattr(torch.ops.ddu, name)(
        input,
        weight,
        _rates(axes, dilation_map, input, dilation_groups),
        bias,
        *steps,
        groups,
        dilation_groups=dilation_groups,
        mask=mask,
        aligned=aligned,
        padding_mode=padding_mode,
    )


def _deform_conv(
    axes: int,
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Ints,
    padding: Ints | str,
    dilation: Ints,
    mask: Tensor | None,
    padding_mode: str,
) -> Tensor:
    if _looks_at_sizes(offset, padding) and has_torch_function((input, weight)):
        options = (bias, stride, padding, dilation, mask, padding_mode)
        return handle_torch_function(_deform_conv, (input, weight), axes, input, offset, weight, *options)
    name = _DEFORM_CONV[axes - 1]
    _require_tensors(name, input, weight, bias, mask)
    require_tensor(offset, "offset", name)
    input, *steps = _steps(axes, name, input, weight, stride, padding, dilation, padding_mode)
    return getattr(torch.ops.ddu, name)(input, offset, weight, bias, *steps, mask, padding_mode=padding_mode)


def _affine_conv(
    axes: int,
    input: Tensor,
    weight: Tensor,
    theta: Tensor,
    bias: Tensor | None,
    stride: Ints,
    padding: Ints | str,
    dilation: Ints,
    groups: int,
    theta_groups: int,
    mask: Tensor | None,
    padding_mode: str,
) -> Tensor:
    if _looks_at_sizes(theta, padding) and has_torch_function((input, weight)):
        options = (bias, stride, padding, dilation, groups, theta_groups, mask, padding_mode)
        return handle_torch_function(_affine_conv, (input, weight), axes, input, weight, theta, *options)
    name = _AFFINE_CONV[axes - 1]
    _require_tensors(name, input, weight, bias, mask)
    require_tensor(theta, "theta", name)
    input, *steps = _steps(axes, name, input, weight, stride, padding, dilation, padding_mode)
    groups, theta_groups = integer(groups, "groups", name), integer(theta_groups, "theta_groups", name)
    return getattr(torch.ops.ddu, name)(
        input, weight, theta, bias, *steps, groups, theta_groups=theta_groups, mask=mask, padding_mode=padding_mode
    )


def _fold(
    axes: int,
    columns: Tensor,
    output_size: Ints,
    kernel_size: Ints,
    dilation_map: Tensor | Number,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
    aligned: bool,
    padding_mode: str,
) -> Tensor:
    one = isinstance(output_size, torch.fx.Proxy)  # a number or several
    if one or (_looks_at_sizes(dilation_map) and has_torch_function((columns,))):
        window = (kernel_size, dilation_map, stride, padding, dilation, groups, aligned, padding_mode)
        return handle_torch_function(_fold, (columns, output_size), axes, columns, output_size, *window)
    name = _FOLD[axes - 1]
    _require_image(columns, "columns", name)
    _require_rates(dilation_map, name)
    groups = integer(groups, "groups", name)
    size = ints(output_size, axes, "output_size", name, symbolic=True)
    taps = ints(kernel_size, axes, "kernel_size", name)
    rates = _rates(axes, dilation_map, columns, groups, batched_dim=3)
    steps = (
        ints(stride, axes, "stride", name),
        ints(padding, axes, "padding", name),
        ints(dilation, axes, "dilation", name),
    )
    if any(isinstance(entry, Tensor) for entry in size):
        return _fold_to_traced_size(columns, size, taps, rates, steps, groups, aligned, padding_mode)
    return getattr(torch.ops.ddu, name)(
        columns, size, taps, rates, *steps, groups, aligned=aligned, padding_mode=padding_mode
    )


def _fold_to_traced_size(
    columns: Tensor,
    output_size: tuple[Any, ...],
    kernel_size: tuple[int, ...],
    dilation_map: Tensor,
    steps: tuple[tuple[int, ...], ...],
    *options: Any,
) -> Tensor:
    """The fold for ``torch.jit.trace``, which can pass a traced size only to the constructor of a tensor.

    It is computed as the gradient of the unfold with respect to an image of that size.
    """
    if columns.dim() == 2:
        return _fold_to_traced_size(columns[None], output_size, kernel_size, dilation_map[None], steps, *options)[0]
    batch, rows, _ = columns.shape
    if torch.is_autocast_enabled(columns.device.type) and columns.dtype != torch.float64:
        columns, dilation_map = columns.to(torch.get_autocast_dtype(columns.device.type)), dilation_map.float()
    image = columns.new_zeros(batch, rows // math.prod(kernel_size), *output_size)
    dilation_map = dilation_map.expand(batch, -1, *grid_size(output_size, kernel_size, *steps))
    return torch.ops.ddu.unfold_backward(columns, image, kernel_size, dilation_map, *steps, *options)[0]


def _require_image(value: Any, argument: str, name: str) -> None:
    """The tensor that windows are extracted from, or summed from."""
    if type(value) is Tensor:
        return
    require_tensor(value, argument, name)
    if torch.onnx.is_in_onnx_export() and "ddu_ops.onnx" not in sys.modules:
        # The exporter would ignore an error here: it traces again in another way.
        warnings.warn(f"{name}() has no ONNX translation before `import ddu_ops.onnx`", stacklevel=2)


def _require_tensors(name: str, input: Any, weight: Any, bias: Any, mask: Any) -> None:
    """The tensors of a convolution, except the positions."""
    _require_image(input, "input", name)
    require_tensor(weight, "weight", name)
    if bias is not None:
        require_tensor(bias, "bias", name, "a tensor or None")
    if mask is not None:
        require_tensor(mask, "mask", name, "a tensor or None")


def _require_rates(dilation_map: Any, name: str) -> None:
    if not _is_number(dilation_map):
        require_tensor(dilation_map, "dilation_map", name, "a tensor or a number")


def _looks_at_sizes(positions: Any, padding: Any = 0) -> bool:
    """Whether the call needs the sizes of its arguments: for a number in place of a map, or ``padding="same"``."""
    return _is_number(positions) or (isinstance(padding, str) and padding == "same")


def _is_number(positions: Any) -> bool:
    """Includes 0-d NumPy arrays."""
    if isinstance(positions, (Tensor, torch.fx.Proxy)):
        return False
    kind = getattr(getattr(positions, "dtype", None), "kind", "")
    return isinstance(positions, numbers.Real) or (kind in ("i", "u", "f") and positions.shape == ())


def _window(
    axes: int,
    name: str,
    input: Tensor,
    kernel_size: Ints,
    stride: Ints,
    padding: Ints | str,
    dilation: Ints,
    padding_mode: str,
) -> tuple[Any, ...]:
    """The input and the options of its window, as numbers."""
    kernel_size = ints(kernel_size, axes, "kernel_size", name)
    stride = ints(stride, axes, "stride", name)
    dilation = ints(dilation, axes, "dilation", name)
    if isinstance(padding, str) and padding in PADDING_WORDS:
        input, padding = _in_numbers(axes, name, input, kernel_size, stride, padding, dilation, padding_mode)
    return input, kernel_size, stride, ints(padding, axes, "padding", name, words=PADDING_WORDS), dilation


def _steps(
    axes: int,
    name: str,
    input: Tensor,
    weight: Tensor,
    stride: Ints,
    padding: Ints | str,
    dilation: Ints,
    padding_mode: str,
) -> tuple[Any, ...]:
    """The same for a convolution, whose weight determines the kernel size."""
    in_words = isinstance(padding, str) and padding == "same"
    kernel_size = tuple(weight.shape[-axes:]) if in_words else (1,) * axes
    input, _, *steps = _window(axes, name, input, kernel_size, stride, padding, dilation, padding_mode)
    return input, *steps


def _in_numbers(
    axes: int,
    name: str,
    input: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: str,
    dilation: Sequence[int],
    padding_mode: str,
) -> tuple[Tensor, Sequence[int]]:
    """The input and its padding as numbers, with the meaning that ``F.conv2d`` gives to "valid" and "same".

    If the padding of an axis is an odd number of pixels, the extra one goes to the end of the axis and becomes part of
    the input: a zero, or a repeated outermost pixel, which leaves ``"border"`` unchanged. A reflection would change.
    """
    if padding == "valid":
        return input, (0,) * axes
    _check_same(name, stride)
    reach = [d * (k - 1) for d, k in zip(dilation, kernel_size, strict=True)]
    odd = [r % 2 for r in reach]
    if any(odd) and padding_mode == "border":
        for dim, one in zip(range(-axes, 0), odd, strict=True):
            if one and input.shape[dim] > 0:
                input = torch.cat([input, input.narrow(dim, input.shape[dim] - 1, 1)], dim)
    elif any(odd):
        if padding_mode != "zeros":
            raise RuntimeError(
                f"{name}(): expected padding='same' to add as much on both sides with padding_mode={padding_mode!r}, "
                f"because padding one side more would move the reflection, but got dilation * (kernel_size - 1) = "
                f"{tuple(reach)}"
            )
        input = F.pad(input, [side for one in reversed(odd) for side in (0, one)])
    return input, tuple(r // 2 for r in reach)


def _rates(axes: int, dilation_map: Any, lead: Any, groups: int, batched_dim: int | None = None) -> Tensor:
    """A map with one rate everywhere, from a number or from a 0-d tensor, which keeps its gradient."""
    unknown = isinstance(dilation_map, torch.fx.Proxy)  # could be a number when the graph runs
    one = isinstance(dilation_map, Tensor) and dilation_map.dim() == 0
    if unknown or (one and isinstance(lead, torch.fx.Proxy)):
        tensors = (dilation_map, lead)
        return handle_torch_function(_rates, tensors, axes, dilation_map, lead, groups, batched_dim)
    if isinstance(dilation_map, Tensor):
        if not one:
            return dilation_map
    elif _is_number(dilation_map):
        exact = lead.dtype == torch.float64
        dilation_map = torch.tensor(
            float(dilation_map), dtype=torch.float64 if exact else torch.float32, device=lead.device
        )
    else:
        return dilation_map
    batched = lead.dim() == (axes + 2 if batched_dim is None else batched_dim)
    return dilation_map.expand(*[1] * batched, groups, *[1] * axes)


def to_offsets(
    dilation_map: Tensor,
    kernel_size: Ints,
    dilation: Ints = 1,
    dilation_groups: int = 1,
    *,
    aligned: bool = True,
) -> Tensor:
    r"""Offsets with which a deformable convolution or :func:`deform_unfold2d` takes the samples of a dilation map.

    With these offsets, and the same stride, padding, dilation and mask, ``torchvision.ops.deform_conv2d`` computes the
    same result as :func:`dynamic_dilation_conv2d`. A deformable convolution moves every tap independently; a dilation
    rate moves all taps of a window away from its centre together. The offset of tap :math:`(m, n)` is

    .. math::
        \bigl((m - \tfrac{k_h - 1}{2}) \, d_h \, (D_h - 1), \; (n - \tfrac{k_w - 1}{2}) \, d_w \, (D_w - 1)\bigr)

    minus :math:`(d_h \tfrac{k_h - 1}{2}, d_w \tfrac{k_w - 1}{2})` if ``aligned`` is false; likewise along one and
    three axes.

    Args:
        dilation_map: the dilation rates. The offsets of a window with a rate that is not finite are NaN.
        kernel_size: taps of the window, an int or one per axis.
        dilation: the dilation that both are called with, an int or one per axis. Default: 1.
        dilation_groups: number of groups of the map. Default: 1.
        aligned: as in :func:`dynamic_dilation_unfold`. Default: ``True``.

    Shape:
        - dilation_map: :math:`(B, G, H_{out}, W_{out})` or :math:`(B, 2G, H_{out}, W_{out})`.
        - Output: :math:`(B, 2 G \, k_h k_w, H_{out}, W_{out})`: for every group and tap the offset down, then the one
          to the right, as in torchvision.

    Raises:
        RuntimeError: if the map has another shape.

    Example:
        >>> to_offsets(torch.tensor(3.0).view(1, 1, 1, 1), (1, 3)).flatten()
        tensor([ 0., -2.,  0.,  0.,  0.,  2.])
    """
    if has_torch_function((dilation_map,)):
        return handle_torch_function(
            to_offsets, (dilation_map,), dilation_map, kernel_size, dilation, dilation_groups, aligned=aligned
        )
    name = "to_offsets"
    dilation_groups = integer(dilation_groups, "dilation_groups", name)
    axes = dilation_map.dim() - 2
    if axes not in (1, 2, 3) or dilation_map.shape[1] not in (dilation_groups, axes * dilation_groups):
        axes = axes if axes in (1, 2, 3) else 2
        out = ", ".join(("D_out", "H_out", "W_out")[-axes:])
        shapes = " or ".join(f"(B, {rates * dilation_groups}, {out})" for rates in sorted({1, axes}))
        raise RuntimeError(
            f"to_offsets(): expected dilation_map of shape {shapes}, but got {tuple(dilation_map.shape)}"
        )
    kernel_size, dilation = ints(kernel_size, axes, "kernel_size", name), ints(dilation, axes, "dilation", name)

    def places(rates: Tensor, groups: int, aligned: bool) -> list[tuple[Tensor, Tensor]]:
        return reference.positions(rates, "rates", kernel_size, dilation=dilation, groups=groups, aligned=aligned)

    rates = at_least_float32(dilation_map)  # the result is rounded once, at the end
    moved, resting = places(rates, dilation_groups, aligned), places(rates.new_ones(1, 1, *rates.shape[2:]), 1, True)
    offsets = [
        (pixel - pixel_at_rest) + (displacement - displacement_at_rest)
        for (pixel, displacement), (pixel_at_rest, displacement_at_rest) in zip(moved, resting, strict=True)
    ]
    shape = (rates.shape[0], dilation_groups, *kernel_size, *rates.shape[2:])
    stacked = torch.stack([offset.expand(shape) for offset in offsets], 2 + axes)
    return stacked.flatten(1, 2 + axes).to(dilation_map.dtype)


def theta_from_rates(
    dilation_map: Tensor, angle: Tensor | None = None, shift: Tensor | None = None, groups: int = 1
) -> Tensor:
    r"""Affine maps that stretch a window, turn it, and move it: ``theta`` of :func:`affine_unfold2d`.

    .. math::
        \begin{pmatrix} A_{yy} & A_{yx} \\ A_{xy} & A_{xx} \end{pmatrix} =
        \begin{pmatrix} \cos \varphi & \sin \varphi \\ -\sin \varphi & \cos \varphi \end{pmatrix}
        \begin{pmatrix} D_h & 0 \\ 0 & D_w \end{pmatrix}

    so the angle :math:`\varphi` turns the x axis towards the y axis, clockwise where y points down. Along three axes it
    turns within the last two. Gradients flow to all three tensors.

    Args:
        dilation_map: the rates, as in :func:`dynamic_dilation_unfold`.
        angle: how far a window is turned, in radians. Default: not at all.
        shift: how far its centre is moved, in pixels. Default: not at all.
        groups: the number of groups that the maps are for. Default: 1.

    Shape:
        - dilation_map: :math:`(B, G, H_{out}, W_{out})` or :math:`(B, 2G, H_{out}, W_{out})`, or as many axes as the
          windows have.
        - angle: :math:`(B, G, H_{out}, W_{out})`.
        - shift: :math:`(B, 2G, H_{out}, W_{out})`: for every group down, then to the right.
        - Output: :math:`(B, 6G, H_{out}, W_{out})`, in float32 at least. Sizes of 1 of the three are broadcast.

    Raises:
        RuntimeError: for tensors of other shapes, and an angle along one axis.

    Example:
        >>> rates = torch.full((1, 1, 6, 7), 2.0)
        >>> theta = theta_from_rates(rates)
        >>> input = torch.randn(1, 4, 6, 7)
        >>> stretched = dynamic_dilation_unfold(input, 3, rates, padding=1)
        >>> torch.allclose(affine_unfold2d(input, 3, theta, padding=1), stretched, atol=1e-5)
        True
        >>> theta_from_rates(rates, angle=torch.full((1, 1, 1, 1), 0.5)).shape
        torch.Size([1, 6, 6, 7])
    """
    tensors = tuple(t for t in (dilation_map, angle, shift) if t is not None)
    if has_torch_function(tensors):
        return handle_torch_function(theta_from_rates, tensors, dilation_map, angle, shift, groups)
    name = "theta_from_rates"
    groups = integer(groups, "groups", name, least=1)
    axes = dilation_map.dim() - 2

    def grouped(argument: str, tensor: Tensor, most: Sequence[int]) -> Tensor:
        """``(B, G, parameters, *out)``, for as many parameters as ``most`` has."""
        channels = sorted({groups * n for n in most})
        if axes not in (1, 2, 3) or tensor.dim() != axes + 2 or tensor.shape[1] not in channels:
            out = ", ".join(("D_out", "H_out", "W_out")[-(axes if axes in (1, 2, 3) else 2) :])
            shapes = " or ".join(f"(B, {n}, {out})" for n in channels)
            raise RuntimeError(f"{name}(): expected {argument} of shape {shapes}, but got {tuple(tensor.shape)}")
        return at_least_float32(tensor).unflatten(1, (groups, -1))

    rates = grouped("dilation_map", dilation_map, (1, axes))
    rates = rates.expand(-1, -1, axes, *[-1] * axes)
    rows = [[torch.zeros_like(rates[:, :, 0])] * axes for _ in range(axes)]
    for axis in range(axes):
        rows[axis][axis] = rates[:, :, axis]
    if angle is not None:
        if axes == 1:
            raise RuntimeError(f"{name}(): expected angle to be None along one axis, but got a tensor")
        turn = grouped("angle", angle, (1,))[:, :, 0]
        down, right = rates[:, :, -2], rates[:, :, -1]
        rows[-2][-2:] = [turn.cos() * down, turn.sin() * right]
        rows[-1][-2:] = [-turn.sin() * down, turn.cos() * right]
    moved = [torch.zeros_like(rates[:, :, 0])] * axes
    if shift is not None:
        moved = list(grouped("shift", shift, (axes,)).unbind(2))
    return _theta([[*row, move] for row, move in zip(rows, moved, strict=True)])


def theta_from_boxes(
    boxes: Tensor,
    kernel_size: Ints,
    stride: Ints = 1,
    padding: Ints | str = 0,
    dilation: Ints = 1,
    groups: int = 1,
) -> Tensor:
    r"""Affine maps with which windows fill boxes: ``theta`` of :func:`affine_unfold2d`.

    A box is divided into :math:`k_h \times k_w` cells, and the taps lie on the centres of these, as in alignment
    convolution (J. Han et al., "Align Deep Features for Oriented Object Detection", TGRS 2021) and Cascade RPN's
    adaptive convolution (T. Vu et al., NeurIPS 2019). Gradients flow to the boxes.

    Args:
        boxes: a box for every output position, x before y, as detectors have them: the centre :math:`x, y`, the width
            and the height, in pixels of the input, where the centre of the first pixel is 0; and the angle, if there
            is one, in radians, by which the x axis is turned towards the y axis: clockwise where y points down. Boxes
            in pixels of an image of which the input is a feature map are divided by its stride first.
        kernel_size, stride, padding, dilation: those that :func:`affine_unfold2d` is called with.
        groups: number of boxes of a position, for as many groups of channels. Default: 1.

    Shape:
        - boxes: :math:`(B, 4G, H_{out}, W_{out})` or, with angles, :math:`(B, 5G, H_{out}, W_{out})`.
        - Output: :math:`(B, 6G, H_{out}, W_{out})`, in float32 at least.

    Raises:
        RuntimeError: for boxes of another shape.

    Example:
        >>> input = torch.arange(49.0).view(1, 1, 7, 7)
        >>> box = torch.tensor([3.0, 3.0, 6.0, 3.0]).view(1, 4, 1, 1).expand(1, 4, 7, 7)  # wider than high
        >>> theta = theta_from_boxes(box, 3, padding=1)
        >>> affine_unfold2d(input, 3, theta, padding=1)[0, :, 0].view(3, 3)  # the same box everywhere
        tensor([[15., 17., 19.],
                [22., 24., 26.],
                [29., 31., 33.]])
    """
    if has_torch_function((boxes,)):
        return handle_torch_function(theta_from_boxes, (boxes,), boxes, kernel_size, stride, padding, dilation, groups)
    name = "theta_from_boxes"
    groups = integer(groups, "groups", name, least=1)
    if boxes.dim() != 4 or boxes.shape[1] not in (4 * groups, 5 * groups):
        shapes = " or ".join(f"(B, {n * groups}, H_out, W_out)" for n in (4, 5))
        raise RuntimeError(f"{name}(): expected boxes of shape {shapes}, but got {tuple(boxes.shape)}")
    kernel_size, stride, dilation = (
        ints(option, 2, argument, name, least=1)
        for option, argument in ((kernel_size, "kernel_size"), (stride, "stride"), (dilation, "dilation"))
    )
    reach = [d * (k - 1) for d, k in zip(dilation, kernel_size, strict=True)]
    if isinstance(padding, str) and padding in PADDING_WORDS:
        if padding == "same":
            _check_same(name, stride)
        before = tuple(r // 2 if padding == "same" else 0 for r in reach)
    else:
        before = ints(padding, 2, "padding", name, words=PADDING_WORDS, least=0)
    x, y, width, height, *angle = at_least_float32(boxes).unflatten(1, (groups, -1)).unbind(2)
    turn = angle[0] if angle else torch.zeros_like(x)
    down, right = height / (kernel_size[0] * dilation[0]), width / (kernel_size[1] * dilation[1])
    centre_y, centre_x = (
        torch.arange(n, device=x.device, dtype=x.dtype) * s - p + r / 2
        for n, s, p, r in zip(boxes.shape[2:], stride, before, reach, strict=True)
    )
    return _theta(
        [
            [turn.cos() * down, turn.sin() * right, y - centre_y.unsqueeze(1)],
            [-turn.sin() * down, turn.cos() * right, x - centre_x],
        ]
    )


def _theta(rows: list[list[Tensor]]) -> Tensor:
    """From the entries ``(B, G, *out)``, row by row, each with its shift at the end."""
    entries = torch.broadcast_tensors(*(entry for row in rows for entry in row))
    return torch.stack(entries, 2).flatten(1, 2)
