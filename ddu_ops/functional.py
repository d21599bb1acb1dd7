"""The public functions: one call of the operator of the same name each."""

import math
import numbers
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from ddu_ops import _extension, reference
from ddu_ops._options import Ints, integer, ints, windows

_extension.require()

PADDING_WORDS = ("valid", "same")

Number = int | float


def at_least_float32(tensor: Tensor) -> Tensor:
    """Half types are cast up, because positions are not to be rounded."""
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

    This is :func:`torch.nn.functional.unfold` with the dilation :math:`d` multiplied by :math:`D`, what
    ``dilation_map[b, g, i, j]`` holds for output position :math:`(i, j)`. Tap :math:`(m, n)` of the window is
    the bilinear sample of the input, zero outside unless ``padding_mode`` says otherwise, at

    .. math::
        y &= i \, s_h - p_h + d_h \tfrac{k_h - 1}{2} + (m - \tfrac{k_h - 1}{2}) \, d_h \, D_h \\
        x &= j \, s_w - p_w + d_w \tfrac{k_w - 1}{2} + (n - \tfrac{k_w - 1}{2}) \, d_w \, D_w

    and the output has the size that ``F.unfold`` gives it, whatever the map holds:
    :math:`H_{out} = \lfloor (H + 2 p_h - d_h (k_h - 1) - 1) / s_h \rfloor + 1`, :math:`W_{out}` alike. A map of ones
    makes it ``F.unfold`` itself. Gradients of every order flow to ``input`` and to ``dilation_map``. Where a tap
    falls on a whole pixel, its derivative is the one from the right in the position: by the rate it is from the right
    for the taps right of the kernel's centre or below it, and from the left for those left of it or above it.

    Args:
        input: the image.
        kernel_size: taps of the window, an int or a pair (height, width).
        dilation_map: the dilation rates, any real number: fractional, zero (all taps on the centre), negative (the
            window is mirrored). A rate that is not finite makes its window NaN. A number, or a tensor without
            dimensions, which keeps its gradient, is one rate everywhere.
        stride: step of the window, an int or a pair. Default: 1.
        padding: how far windows reach beyond every side of the input, an int or a pair; or ``"valid"`` for not at all,
            or ``"same"`` for an output of the size of the input, as in ``F.conv2d``. Default: 0.
        dilation: multiplier of the map, an int or a pair. Default: 1.
        groups: number of channel groups that have a map of their own; channel ``c`` reads the map of group
            ``c // (C / groups)``. Default: 1.
        aligned: ``True`` centres a window where ``F.unfold`` centres its own; ``False`` centres it on ``F.unfold``'s
            first tap (the term :math:`d (k - 1) / 2` is dropped). Default: ``True``.
        padding_mode: what lies outside the input: ``"zeros"``; ``"border"``, its outermost pixels continued; or
            ``"reflection"``, the input reflected at the centres of its outermost pixels, as often as needed. As in
            ``F.grid_sample`` with ``align_corners=True``. Default: ``"zeros"``.

    Shape:
        - input: :math:`(B, C, H, W)` or :math:`(C, H, W)`.
        - dilation_map: :math:`(B, G, H_{out}, W_{out})`, one rate for both axes, or :math:`(B, 2G, H_{out}, W_{out})`,
          a rate per axis: channel :math:`2g` for the height, :math:`2g + 1` for the width of group :math:`g`. Without
          :math:`B` where the input has none; a batch size of 1 is broadcast, and so is a grid of :math:`1 \times 1`.
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
    :math:`(i, j)`, with the taps :math:`x_{c,m,n}(i, j)` at the places given there,

    .. math::
        \text{out}[b, o, i, j] = \text{bias}[o] + \sum_{c, m, n} \text{weight}[o, c, m, n] \;
        \text{mask}[b, g k_h k_w + m k_w + n, i, j] \; x_{c,m,n}(i, j)

    where :math:`g` is the mask's group of channel :math:`c`. A map of ones makes it ``F.conv2d``, up to the order of
    the additions. Gradients of every order flow to all five tensors. The windows are never in memory as a whole, but
    where gradients are themselves differentiated, and in forward mode, as by :func:`torch.func.jvp`.

    Args:
        input: the image.
        weight: the kernels, the same for every image or each image's own.
        dilation_map: the dilation rates, as in :func:`dynamic_dilation_unfold`.
        bias: added to every output channel. Default: none.
        stride: step of the window, an int or a pair (height, width). Default: 1.
        padding: how far windows reach beyond every side of the input, an int or a pair; or ``"valid"`` for not at all,
            or ``"same"`` for an output of the size of the input, as in ``F.conv2d``. Default: 0.
        dilation: multiplier of the map, an int or a pair. Default: 1.
        groups: groups of the convolution, as in ``F.conv2d``. Default: 1.
        dilation_groups: number of channel groups that have a map of their own. The groups of the convolution, of the
            map and of the mask each divide the channels, and need not divide one another. Default: 1.
        mask: factors of the taps, one for every tap and output position of each of its groups. Default: none.
        aligned: ``True`` centres a window where ``F.conv2d`` centres its own, ``False`` on its first tap, as in
            :func:`dynamic_dilation_unfold`. Default: ``True``.
        padding_mode: what lies outside the input, as in :func:`dynamic_dilation_unfold`. Default: ``"zeros"``.

    Shape:
        - input: :math:`(B, C, H, W)` or :math:`(C, H, W)`.
        - weight: :math:`(C_{out}, C / \text{groups}, k_h, k_w)`, or :math:`(B, C_{out}, C / \text{groups}, k_h, k_w)`
          with an input that has :math:`B`; a batch size of 1 is broadcast.
        - dilation_map: :math:`(B, G, H_{out}, W_{out})` or :math:`(B, 2G, H_{out}, W_{out})`, where :math:`G` is
          ``dilation_groups``, as in :func:`dynamic_dilation_unfold`.
        - bias: :math:`(C_{out})`, or with a weight for each image also :math:`(B, C_{out})`.
        - mask: :math:`(B, M \, k_h k_w, H_{out}, W_{out})`, where :math:`M`, its number of groups, is any divisor of
          :math:`C`. Without :math:`B` where the input has none; a batch size of 1 is broadcast.
        - Output: :math:`(B, C_{out}, H_{out}, W_{out})` or :math:`(C_{out}, H_{out}, W_{out})`; channels-last where
          the input is, otherwise contiguous.

    Types:
        float64, float32, float16 or bfloat16 for ``input``, ``weight`` and ``bias`` alike; a mask of the same type or,
        beside a half type, float32; a map as in :func:`dynamic_dilation_unfold`. Under autocast all are cast as a
        convolution's would be, but for the map. On CUDA the products of float32 are as exact as torch's switches for
        TF32 say.

    Raises:
        RuntimeError: for an argument of the wrong shape, type, device or value; the message names the argument, what
            it got and what it takes.

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
    r"""Extract windows of a signal, each with the dilation rate that the map holds for it.

    :func:`dynamic_dilation_unfold` along one axis: ``input`` is :math:`(B, C, W)`, ``dilation_map``
    :math:`(B, G, W_{out})`, the output :math:`(B, C \, k, W_{out})`; unbatched without the :math:`B`. All else, the
    errors included, is as there.

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
    r"""Extract windows of a volume, each with the dilation rate that the map holds for it.

    :func:`dynamic_dilation_unfold` along three axes, with samples that are trilinear: ``input`` is
    :math:`(B, C, D, H, W)`, ``dilation_map`` :math:`(B, G, D_{out}, H_{out}, W_{out})` or, with a rate per axis,
    :math:`(B, 3G, D_{out}, H_{out}, W_{out})`, depth first, the output :math:`(B, C \, k_d k_h k_w, L)`; unbatched
    without the :math:`B`. All else, the errors included, is as there.

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
    """Add windows into a signal: the adjoint of :func:`dynamic_dilation_unfold1d` with respect to its input.

    Shapes are those of :func:`dynamic_dilation_unfold1d`; all else, the errors included, is as in
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
    """Add windows into a volume: the adjoint of :func:`dynamic_dilation_unfold3d` with respect to its input.

    Shapes are those of :func:`dynamic_dilation_unfold3d`; all else, the errors included, is as in
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
    r"""Extract windows of a signal whose taps are moved by an offset each.

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
    r"""Extract sliding windows whose taps are moved by an offset each: the windows of a deformable convolution.

    Tap :math:`(m, n)` of the window at output position :math:`(i, j)` is the bilinear sample of the input at

    .. math::
        y = i \, s_h - p_h + m \, d_h + \Delta y, \qquad x = j \, s_w - p_w + n \, d_w + \Delta x,

    with the offset :math:`(\Delta y, \Delta x)` of that tap, in pixels, as in J. Dai et al., "Deformable Convolutional
    Networks", ICCV 2017. Values and layout are those of ``torchvision.ops.deform_conv2d``; with offsets of zero it is
    :func:`torch.nn.functional.unfold`. Gradients of every order flow to ``input`` and to ``offset``.

    Args:
        input: the image.
        kernel_size: taps of the window, an int or a pair (height, width).
        offset: the displacements, any real number. One that is not finite makes its tap NaN.
        stride, padding, dilation, padding_mode: as in :func:`dynamic_dilation_unfold`.
        groups: number of channel groups that have offsets of their own. Default: 1.

    Shape:
        - input: :math:`(B, C, H, W)` or :math:`(C, H, W)`.
        - offset: :math:`(B, 2 G \, k_h k_w, H_{out}, W_{out})`: for every group and tap the offset down, then the one
          to the right. Without :math:`B` where the input has none; a batch of 1 is broadcast, and so is a grid of
          :math:`1 \times 1`.
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
    r"""Extract windows of a volume whose taps are moved by an offset each.

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
    contiguous; unbatched without the :math:`B`. All else, the errors included, is as there.

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
    :math:`(B, C_{out}, D_{out}, H_{out}, W_{out})`; unbatched without the :math:`B`. All else, the errors included,
    is as there.

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
    r"""Convolve a signal with a kernel whose taps are moved by an offset each.

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
    r"""Convolve with a kernel whose taps are moved by an offset each: the deformable convolution, modulated or not.

    Arguments, layouts and values are those of ``torchvision.ops.deform_conv2d``. With the samples
    :math:`x_{c,m,n}(i, j)` of :func:`deform_unfold2d`,

    .. math::
        \text{out}[b, o, i, j] = \text{bias}[o] + \sum_{c, m, n} \text{weight}[o, c, m, n] \;
        \text{mask}[b, g k_h k_w + m k_w + n, i, j] \; x_{c,m,n}(i, j)

    where :math:`g` is the mask's group of channel :math:`c`, as in X. Zhu et al., "Deformable ConvNets v2: More
    Deformable, Better Results", CVPR 2019. Offsets of zero make it :func:`torch.nn.functional.conv2d`, up to the order
    of the additions. Gradients of every order flow to all five tensors. The windows are never in memory as a whole, but
    where gradients are themselves differentiated, and in forward mode, as by :func:`torch.func.jvp`.

    Args:
        input: the image.
        offset: the displacements in pixels, any real number. One that is not finite makes its tap NaN. The number of
            groups that have offsets of their own follows from its channels.
        weight: the kernels, the same for every image or each image's own. The number of groups of the convolution
            follows from its channels.
        bias: added to every output channel. Default: none.
        stride, padding, dilation, padding_mode: as in :func:`dynamic_dilation_conv2d`.
        mask: factors of the taps, one for every tap and output position of each of its groups, of which there may be
            another number than of the offsets. Default: none.

    Shape:
        - input: :math:`(B, C, H, W)` or :math:`(C, H, W)`.
        - offset: :math:`(B, 2 G \, k_h k_w, H_{out}, W_{out})`: for every group and tap the offset down, then the one
          to the right. Without :math:`B` where the input has none; a batch of 1 is broadcast, and so is a grid of
          :math:`1 \times 1`.
        - weight, bias, mask, output: as in :func:`dynamic_dilation_conv2d`.

    Types:
        As in :func:`dynamic_dilation_conv2d`, with offsets in the place of the map.

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
    r"""Convolve a volume with a kernel whose taps are moved by an offset each.

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
    r"""The size of the output grid, for whoever makes a map.

    On every axis :math:`\lfloor (\text{size} + 2 p - d (k - 1) - 1) / s \rfloor + 1`, as in ``F.unfold``.

    Args:
        size: of the image, one number for each axis, or one for all that the other arguments name.
        kernel_size, stride, padding, dilation: as in :func:`dynamic_dilation_unfold`.

    Raises:
        RuntimeError: for options that are no numbers, not one for each axis, or too small; for a stride other than 1
            with ``padding="same"``.

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
    """The number of axes that an option is for, 1 for a number."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return len(value)
    return value.shape[0] if getattr(value, "ndim", 0) == 1 else 1


def _check_same(name: str, stride: Sequence[int]) -> None:
    if tuple(stride) != (1,) * len(stride):
        raise RuntimeError(f"{name}(): expected stride to be 1 with padding='same', but got {tuple(stride)}")


# ---- For any number of axes ----
#
# Where a call looks at the sizes or the type of its arguments, fx, which does not know them, keeps it as one node.

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
    """The fold for ``torch.jit.trace``, which follows no sizes into an operator, but those of a new tensor.

    It is the gradient of the unfold by an image of that size.
    """
    if columns.dim() == 2:
        return _fold_to_traced_size(columns[None], output_size, kernel_size, dilation_map[None], steps, *options)[0]
    batch, rows, _ = columns.shape
    if torch.is_autocast_enabled(columns.device.type) and columns.dtype != torch.float64:
        columns, dilation_map = columns.to(torch.get_autocast_dtype(columns.device.type)), dilation_map.float()
    image = columns.new_zeros(batch, rows // math.prod(kernel_size), *output_size)
    dilation_map = dilation_map.expand(batch, -1, *grid_size(output_size, kernel_size, *steps))
    return torch.ops.ddu.unfold_backward(columns, image, kernel_size, dilation_map, *steps, *options)[0]


def _looks_at_sizes(positions: Any, padding: Any = 0) -> bool:
    """A number in the place of a map, or a padding that depends on the kernel and that may have to be made."""
    return _is_number(positions) or (isinstance(padding, str) and padding == "same")


def _is_number(positions: Any) -> bool:
    """Also an array of NumPy's without dimensions."""
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
    """The input and its window in numbers."""
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
    """The same of a convolution, whose weight has the size of the window."""
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
    """What ``F.conv2d`` means by a padding in words: the input, and the padding on every side of it.

    Of an odd number of pixels the one that is left over goes to the end of the axis. It becomes part of the input: a
    zero, or the outermost pixel once more, beyond which a border goes on as before. A reflection would turn elsewhere.
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
                f"because an image that is longer is reflected elsewhere, but got dilation * (kernel_size - 1) = "
                f"{tuple(reach)}"
            )
        input = F.pad(input, [side for one in reversed(odd) for side in (0, one)])
    return input, tuple(r // 2 for r in reach)


def _rates(axes: int, dilation_map: Any, lead: Any, groups: int, batched_dim: int | None = None) -> Tensor:
    """A map from a number or from a tensor without dimensions, which keeps its gradient: one rate everywhere."""
    unknown = isinstance(dilation_map, torch.fx.Proxy)  # perhaps a number, when the graph runs
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

    With them, and the same stride, padding, dilation and mask, ``torchvision.ops.deform_conv2d`` computes what
    :func:`dynamic_dilation_conv2d` does. It moves every tap on its own; here all taps of a window move away from its
    centre together. The offset of tap :math:`(m, n)` is

    .. math::
        \bigl((m - \tfrac{k_h - 1}{2}) \, d_h \, (D_h - 1), \; (n - \tfrac{k_w - 1}{2}) \, d_w \, (D_w - 1)\bigr)

    less :math:`(d_h \tfrac{k_h - 1}{2}, d_w \tfrac{k_w - 1}{2})` where ``aligned`` is false. Along one and three axes
    it is alike.

    Args:
        dilation_map: the dilation rates. The offsets of a window with a rate that is not finite are NaN.
        kernel_size: taps of the window, an int or one per axis.
        dilation: the dilation that both are called with, an int or one per axis. Default: 1.
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

    rates = at_least_float32(dilation_map)  # and rounded once, at the end
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
