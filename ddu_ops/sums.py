"""Sums of windows: aggregation, correlation and pooling, which need no columns.

Each function calls the operator of the same name. Windows and options are described at
:func:`ddu_ops.dynamic_dilation_unfold`.
"""

from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from ddu_ops._options import Ints, integer, require_tensor
from ddu_ops.functional import Number, _looks_at_sizes, _rates, _require_rates, _window


def dynamic_dilation_aggregate2d(
    input: Tensor,
    mask: Tensor,
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
    r"""Sum the taps of every window, each multiplied by its own factor.

    With the samples :math:`x_{c,t}(i, j)` of :func:`ddu_ops.dynamic_dilation_unfold`, tap :math:`t` of channel
    :math:`c` at output position :math:`(i, j)`,

    .. math::
        \text{out}[b, c, i, j] = \sum_t \text{mask}[b, m \, k_h k_w + t, i, j] \; x_{c,t}(i, j)

    where :math:`m` is the group of the mask that channel :math:`c` reads. With the softmax of
    :func:`dynamic_dilation_correlate2d` as the mask this is attention over a window; involution is another use. No
    columns are stored: the memory that a call needs is proportional to its arguments and results, forward and backward.
    Gradients of every order flow to all three tensors.

    Args:
        input: the image.
        mask: the factors. Its shape determines how many groups of channels have their own factors, independently of
            ``groups``. If it is float32 and the input has a half type, as after a softmax under autocast, it is cast to
            the type of the input.
        kernel_size, dilation_map, stride, padding, dilation, groups, aligned, padding_mode: as in
            :func:`ddu_ops.dynamic_dilation_unfold`.

    Shape:
        - input: :math:`(B, C, H, W)` or :math:`(C, H, W)`.
        - mask: :math:`(B, M \, k_h k_w, H_{out}, W_{out})`, where :math:`M` divides :math:`C`; without :math:`B` if
          the input has none. A batch size of 1 is broadcast.
        - dilation_map: :math:`(B, G, H_{out}, W_{out})` or :math:`(B, 2G, H_{out}, W_{out})`.
        - Output: :math:`(B, C, H_{out}, W_{out})` or :math:`(C, H_{out}, W_{out})`, channels-last if the input is.

    Raises:
        RuntimeError: as in :func:`ddu_ops.dynamic_dilation_unfold`.

    Example:
        >>> input, rates = torch.randn(2, 8, 6, 7), torch.full((2, 1, 6, 7), 1.5)
        >>> mask = torch.full((2, 9, 6, 7), 1 / 9)
        >>> dynamic_dilation_aggregate2d(input, mask, 3, rates, padding=1).shape  # the mean of every window
        torch.Size([2, 8, 6, 7])
    """
    return _call(
        "dynamic_dilation_aggregate2d",
        2,
        (input, mask),
        0,
        kernel_size,
        dilation_map,
        stride,
        padding,
        dilation,
        groups,
        aligned=aligned,
        padding_mode=padding_mode,
    )


def dynamic_dilation_aggregate1d(
    input: Tensor,
    mask: Tensor,
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
    r"""Sum the taps of every window of a signal, each multiplied by a factor.

    Like :func:`dynamic_dilation_aggregate2d`: ``input`` is :math:`(B, C, W)`, ``mask`` :math:`(B, M \, k,
    W_{out})`, the output :math:`(B, C, W_{out})`; ``dilation_map`` is as in
    :func:`ddu_ops.dynamic_dilation_unfold1d`; unbatched without the :math:`B`. Everything else, including errors, is
    the same.

    Example:
        >>> input, mask = torch.randn(2, 8, 6), torch.rand(2, 6, 6)
        >>> dynamic_dilation_aggregate1d(input, mask, 3, 1.5, padding=1).shape
        torch.Size([2, 8, 6])
    """
    return _call(
        "dynamic_dilation_aggregate1d",
        1,
        (input, mask),
        0,
        kernel_size,
        dilation_map,
        stride,
        padding,
        dilation,
        groups,
        aligned=aligned,
        padding_mode=padding_mode,
    )


def dynamic_dilation_aggregate3d(
    input: Tensor,
    mask: Tensor,
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
    r"""Sum the taps of every window of a volume, each multiplied by a factor.

    Like :func:`dynamic_dilation_aggregate2d`: ``input`` is :math:`(B, C, D, H, W)`, ``mask`` :math:`(B, M \, k_d
    k_h k_w, D_{out}, H_{out}, W_{out})`, the output :math:`(B, C, D_{out}, H_{out}, W_{out})`; ``dilation_map`` is
    as in :func:`ddu_ops.dynamic_dilation_unfold3d`; unbatched without the :math:`B`. Everything else, including
    is as there.

    Example:
        >>> input, mask = torch.randn(2, 8, 4, 5, 6), torch.rand(2, 54, 4, 5, 6)
        >>> dynamic_dilation_aggregate3d(input, mask, 3, 1.5, padding=1).shape
        torch.Size([2, 8, 4, 5, 6])
    """
    return _call(
        "dynamic_dilation_aggregate3d",
        3,
        (input, mask),
        0,
        kernel_size,
        dilation_map,
        stride,
        padding,
        dilation,
        groups,
        aligned=aligned,
        padding_mode=padding_mode,
    )


def deform_aggregate1d(
    input: Tensor,
    mask: Tensor,
    kernel_size: Ints,
    offset: Tensor,
    stride: Ints = 1,
    padding: Ints | str = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
) -> Tensor:
    r"""Sum the taps of every window of a signal, each moved by an offset and multiplied by a factor.

    Like :func:`dynamic_dilation_aggregate2d`: ``input`` is :math:`(B, C, W)`, ``mask`` :math:`(B, M \, k,
    W_{out})`, the output :math:`(B, C, W_{out})`; ``offset`` is as in :func:`ddu_ops.deform_unfold1d`; unbatched
    without the :math:`B`. Everything else, including errors, is the same.

    Example:
        >>> input, mask = torch.randn(2, 8, 6), torch.rand(2, 6, 6)
        >>> deform_aggregate1d(input, mask, 3, torch.zeros(2, 3, 6), padding=1).shape
        torch.Size([2, 8, 6])
    """
    return _call(
        "deform_aggregate1d",
        1,
        (input, mask),
        0,
        kernel_size,
        offset,
        stride,
        padding,
        dilation,
        groups,
        padding_mode=padding_mode,
    )


def deform_aggregate2d(
    input: Tensor,
    mask: Tensor,
    kernel_size: Ints,
    offset: Tensor,
    stride: Ints = 1,
    padding: Ints | str = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
) -> Tensor:
    r"""Sum the taps of every window of an image, each moved by an offset and multiplied by a factor.

    Like :func:`dynamic_dilation_aggregate2d`: ``input`` is :math:`(B, C, H, W)`, ``mask`` :math:`(B, M \, k_h k_w,
    H_{out}, W_{out})`, the output :math:`(B, C, H_{out}, W_{out})`; ``offset`` is as in
    :func:`ddu_ops.deform_unfold2d`; unbatched without the :math:`B`. Everything else, including errors, is the same.

    Example:
        >>> input, mask = torch.randn(2, 8, 6, 7), torch.rand(2, 18, 6, 7)
        >>> deform_aggregate2d(input, mask, 3, torch.zeros(2, 18, 6, 7), padding=1).shape
        torch.Size([2, 8, 6, 7])
    """
    return _call(
        "deform_aggregate2d",
        2,
        (input, mask),
        0,
        kernel_size,
        offset,
        stride,
        padding,
        dilation,
        groups,
        padding_mode=padding_mode,
    )


def deform_aggregate3d(
    input: Tensor,
    mask: Tensor,
    kernel_size: Ints,
    offset: Tensor,
    stride: Ints = 1,
    padding: Ints | str = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
) -> Tensor:
    r"""Sum the taps of every window of a volume, each moved by an offset and multiplied by a factor.

    Like :func:`dynamic_dilation_aggregate2d`: ``input`` is :math:`(B, C, D, H, W)`, ``mask`` :math:`(B, M \, k_d
    k_h k_w, D_{out}, H_{out}, W_{out})`, the output :math:`(B, C, D_{out}, H_{out}, W_{out})`; ``offset`` is as in
    :func:`ddu_ops.deform_unfold3d`; unbatched without the :math:`B`. Everything else, including errors, is the same.

    Example:
        >>> input, mask = torch.randn(2, 8, 4, 5, 6), torch.rand(2, 54, 4, 5, 6)
        >>> deform_aggregate3d(input, mask, 3, torch.zeros(2, 81, 4, 5, 6), padding=1).shape
        torch.Size([2, 8, 4, 5, 6])
    """
    return _call(
        "deform_aggregate3d",
        3,
        (input, mask),
        0,
        kernel_size,
        offset,
        stride,
        padding,
        dilation,
        groups,
        padding_mode=padding_mode,
    )


def affine_aggregate1d(
    input: Tensor,
    mask: Tensor,
    kernel_size: Ints,
    theta: Tensor,
    stride: Ints = 1,
    padding: Ints | str = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
) -> Tensor:
    r"""Sum the taps of every window of a signal, placed by an affine map, each multiplied by a factor.

    Like :func:`dynamic_dilation_aggregate2d`: ``input`` is :math:`(B, C, W)`, ``mask`` :math:`(B, M \, k,
    W_{out})`, the output :math:`(B, C, W_{out})`; ``theta`` is as in :func:`ddu_ops.affine_unfold1d`; unbatched
    without the :math:`B`. Everything else, including errors, is the same.

    Example:
        >>> input, mask = torch.randn(2, 8, 6), torch.rand(2, 6, 6)
        >>> affine_aggregate1d(input, mask, 3, torch.eye(1, 2).view(1, 2, 1), padding=1).shape
        torch.Size([2, 8, 6])
    """
    return _call(
        "affine_aggregate1d",
        1,
        (input, mask),
        0,
        kernel_size,
        theta,
        stride,
        padding,
        dilation,
        groups,
        padding_mode=padding_mode,
    )


def affine_aggregate2d(
    input: Tensor,
    mask: Tensor,
    kernel_size: Ints,
    theta: Tensor,
    stride: Ints = 1,
    padding: Ints | str = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
) -> Tensor:
    r"""Sum the taps of every window of an image, placed by an affine map, each multiplied by a factor.

    Like :func:`dynamic_dilation_aggregate2d`: ``input`` is :math:`(B, C, H, W)`, ``mask`` :math:`(B, M \, k_h k_w,
    H_{out}, W_{out})`, the output :math:`(B, C, H_{out}, W_{out})`; ``theta`` is as in
    :func:`ddu_ops.affine_unfold2d`; unbatched without the :math:`B`. Everything else, including errors, is the same.

    Example:
        >>> input, mask = torch.randn(2, 8, 6, 7), torch.rand(2, 18, 6, 7)
        >>> affine_aggregate2d(input, mask, 3, torch.eye(2, 3).view(1, 6, 1, 1), padding=1).shape
        torch.Size([2, 8, 6, 7])
    """
    return _call(
        "affine_aggregate2d",
        2,
        (input, mask),
        0,
        kernel_size,
        theta,
        stride,
        padding,
        dilation,
        groups,
        padding_mode=padding_mode,
    )


def affine_aggregate3d(
    input: Tensor,
    mask: Tensor,
    kernel_size: Ints,
    theta: Tensor,
    stride: Ints = 1,
    padding: Ints | str = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
) -> Tensor:
    r"""Sum the taps of every window of a volume, placed by an affine map, each multiplied by a factor.

    Like :func:`dynamic_dilation_aggregate2d`: ``input`` is :math:`(B, C, D, H, W)`, ``mask`` :math:`(B, M \, k_d
    k_h k_w, D_{out}, H_{out}, W_{out})`, the output :math:`(B, C, D_{out}, H_{out}, W_{out})`; ``theta`` is as in
    :func:`ddu_ops.affine_unfold3d`; unbatched without the :math:`B`. Everything else, including errors, is the same.

    Example:
        >>> input, mask = torch.randn(2, 8, 4, 5, 6), torch.rand(2, 54, 4, 5, 6)
        >>> affine_aggregate3d(input, mask, 3, torch.eye(3, 4).view(1, 12, 1, 1, 1), padding=1).shape
        torch.Size([2, 8, 4, 5, 6])
    """
    return _call(
        "affine_aggregate3d",
        3,
        (input, mask),
        0,
        kernel_size,
        theta,
        stride,
        padding,
        dilation,
        groups,
        padding_mode=padding_mode,
    )


def dynamic_dilation_correlate2d(
    query: Tensor,
    input: Tensor,
    kernel_size: Ints,
    dilation_map: Tensor | Number,
    stride: Ints = 1,
    padding: Ints | str = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    mask_groups: int = 1,
    aligned: bool = True,
    padding_mode: str = "zeros",
) -> Tensor:
    r"""Multiply every window by a query.

    With the samples :math:`x_{c,t}(i, j)` of :func:`ddu_ops.dynamic_dilation_unfold`,

    .. math::
        \text{out}[b, m \, k_h k_w + t, i, j] = \sum_{c \text{ in } m} \text{query}[b, c, i, j] \; x_{c,t}(i, j)

    summed over the channels of group :math:`m`, for example an attention head. These are the scores of attention over a
    window, before scaling and softmax. If the query is another image, the result is the local correlation of the two
    images. Like :func:`dynamic_dilation_aggregate2d` it stores no columns. Gradients of every order flow to all three
    tensors.

    Args:
        query: the tensor that windows are multiplied by. If it is float32 and the input has a half type, it is cast to
            the type of the input.
        input: the image; in attention, the keys.
        kernel_size, dilation_map, stride, padding, dilation, groups, aligned, padding_mode: as in
            :func:`ddu_ops.dynamic_dilation_unfold`.
        mask_groups: number :math:`M` of groups of channels; the sum is over the channels of each group. Default: 1.

    Shape:
        - query: :math:`(B, C, H_{out}, W_{out})` or :math:`(C, H_{out}, W_{out})`.
        - input: :math:`(B, C, H, W)` or :math:`(C, H, W)`.
        - dilation_map: :math:`(B, G, H_{out}, W_{out})` or :math:`(B, 2G, H_{out}, W_{out})`.
        - Output: :math:`(B, M \, k_h k_w, H_{out}, W_{out})`, without :math:`B` if the input has none: the shape of
          the mask of :func:`dynamic_dilation_aggregate2d`. Channels-last if the input is.

    Raises:
        RuntimeError: as in :func:`ddu_ops.dynamic_dilation_unfold`.

    Example:
        >>> query, key, value = torch.randn(3, 2, 8, 6, 7)
        >>> options = {"kernel_size": 3, "dilation_map": torch.full((2, 1, 6, 7), 1.5), "padding": 1}
        >>> scores = dynamic_dilation_correlate2d(query, key, **options, mask_groups=4)
        >>> weights = scores.unflatten(1, (4, 9)).softmax(2).flatten(1, 2)  # four heads, nine taps
        >>> dynamic_dilation_aggregate2d(value, weights, **options).shape
        torch.Size([2, 8, 6, 7])
    """
    name = "dynamic_dilation_correlate2d"
    return _call(
        name,
        2,
        (query, input),
        1,
        kernel_size,
        dilation_map,
        stride,
        padding,
        dilation,
        groups,
        mask_groups=integer(mask_groups, "mask_groups", name),
        aligned=aligned,
        padding_mode=padding_mode,
    )


def dynamic_dilation_correlate1d(
    query: Tensor,
    input: Tensor,
    kernel_size: Ints,
    dilation_map: Tensor | Number,
    stride: Ints = 1,
    padding: Ints | str = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    mask_groups: int = 1,
    aligned: bool = True,
    padding_mode: str = "zeros",
) -> Tensor:
    r"""Multiply every window of a signal by a query.

    Like :func:`dynamic_dilation_correlate2d`: ``query`` is :math:`(B, C, W_{out})`, ``input`` :math:`(B, C, W)`,
    the output :math:`(B, M \, k, W_{out})`; ``dilation_map`` is as in :func:`ddu_ops.dynamic_dilation_unfold1d`;
    unbatched without the :math:`B`. Everything else, including errors, is the same.

    Example:
        >>> query, input = torch.randn(2, 2, 8, 6)
        >>> dynamic_dilation_correlate1d(query, input, 3, 1.5, padding=1, mask_groups=2).shape
        torch.Size([2, 6, 6])
    """
    name = "dynamic_dilation_correlate1d"
    return _call(
        name,
        1,
        (query, input),
        1,
        kernel_size,
        dilation_map,
        stride,
        padding,
        dilation,
        groups,
        mask_groups=integer(mask_groups, "mask_groups", name),
        aligned=aligned,
        padding_mode=padding_mode,
    )


def dynamic_dilation_correlate3d(
    query: Tensor,
    input: Tensor,
    kernel_size: Ints,
    dilation_map: Tensor | Number,
    stride: Ints = 1,
    padding: Ints | str = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    mask_groups: int = 1,
    aligned: bool = True,
    padding_mode: str = "zeros",
) -> Tensor:
    r"""Multiply every window of a volume by a query.

    Like :func:`dynamic_dilation_correlate2d`: ``query`` is :math:`(B, C, D_{out}, H_{out}, W_{out})`, ``input``
    :math:`(B, C, D, H, W)`, the output :math:`(B, M \, k_d k_h k_w, D_{out}, H_{out}, W_{out})`; ``dilation_map``
    is as in :func:`ddu_ops.dynamic_dilation_unfold3d`; unbatched without the :math:`B`. Everything else, including
    errors, is the same.

    Example:
        >>> query, input = torch.randn(2, 2, 8, 4, 5, 6)
        >>> dynamic_dilation_correlate3d(query, input, 3, 1.5, padding=1, mask_groups=2).shape
        torch.Size([2, 54, 4, 5, 6])
    """
    name = "dynamic_dilation_correlate3d"
    return _call(
        name,
        3,
        (query, input),
        1,
        kernel_size,
        dilation_map,
        stride,
        padding,
        dilation,
        groups,
        mask_groups=integer(mask_groups, "mask_groups", name),
        aligned=aligned,
        padding_mode=padding_mode,
    )


def deform_correlate1d(
    query: Tensor,
    input: Tensor,
    kernel_size: Ints,
    offset: Tensor,
    stride: Ints = 1,
    padding: Ints | str = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    mask_groups: int = 1,
    padding_mode: str = "zeros",
) -> Tensor:
    r"""Multiply every window of a signal by a query, with an offset for every tap.

    Like :func:`dynamic_dilation_correlate2d`: ``query`` is :math:`(B, C, W_{out})`, ``input`` :math:`(B, C, W)`,
    the output :math:`(B, M \, k, W_{out})`; ``offset`` is as in :func:`ddu_ops.deform_unfold1d`; unbatched without
    the :math:`B`. Everything else, including errors, is the same.

    Example:
        >>> query, input = torch.randn(2, 2, 8, 6)
        >>> deform_correlate1d(query, input, 3, torch.zeros(2, 3, 6), padding=1, mask_groups=2).shape
        torch.Size([2, 6, 6])
    """
    name = "deform_correlate1d"
    return _call(
        name,
        1,
        (query, input),
        1,
        kernel_size,
        offset,
        stride,
        padding,
        dilation,
        groups,
        mask_groups=integer(mask_groups, "mask_groups", name),
        padding_mode=padding_mode,
    )


def deform_correlate2d(
    query: Tensor,
    input: Tensor,
    kernel_size: Ints,
    offset: Tensor,
    stride: Ints = 1,
    padding: Ints | str = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    mask_groups: int = 1,
    padding_mode: str = "zeros",
) -> Tensor:
    r"""Multiply every window of an image by a query, with an offset for every tap.

    Like :func:`dynamic_dilation_correlate2d`: ``query`` is :math:`(B, C, H_{out}, W_{out})`, ``input`` :math:`(B,
    C, H, W)`, the output :math:`(B, M \, k_h k_w, H_{out}, W_{out})`; ``offset`` is as in
    :func:`ddu_ops.deform_unfold2d`; unbatched without the :math:`B`. Everything else, including errors, is the same.

    Example:
        >>> query, input = torch.randn(2, 2, 8, 6, 7)
        >>> deform_correlate2d(query, input, 3, torch.zeros(2, 18, 6, 7), padding=1, mask_groups=2).shape
        torch.Size([2, 18, 6, 7])
    """
    name = "deform_correlate2d"
    return _call(
        name,
        2,
        (query, input),
        1,
        kernel_size,
        offset,
        stride,
        padding,
        dilation,
        groups,
        mask_groups=integer(mask_groups, "mask_groups", name),
        padding_mode=padding_mode,
    )


def deform_correlate3d(
    query: Tensor,
    input: Tensor,
    kernel_size: Ints,
    offset: Tensor,
    stride: Ints = 1,
    padding: Ints | str = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    mask_groups: int = 1,
    padding_mode: str = "zeros",
) -> Tensor:
    r"""Multiply every window of a volume by a query, with an offset for every tap.

    Like :func:`dynamic_dilation_correlate2d`: ``query`` is :math:`(B, C, D_{out}, H_{out}, W_{out})`, ``input``
    :math:`(B, C, D, H, W)`, the output :math:`(B, M \, k_d k_h k_w, D_{out}, H_{out}, W_{out})`; ``offset`` is as
    in :func:`ddu_ops.deform_unfold3d`; unbatched without the :math:`B`. Everything else, including errors, is the same.

    Example:
        >>> query, input = torch.randn(2, 2, 8, 4, 5, 6)
        >>> deform_correlate3d(query, input, 3, torch.zeros(2, 81, 4, 5, 6), padding=1, mask_groups=2).shape
        torch.Size([2, 54, 4, 5, 6])
    """
    name = "deform_correlate3d"
    return _call(
        name,
        3,
        (query, input),
        1,
        kernel_size,
        offset,
        stride,
        padding,
        dilation,
        groups,
        mask_groups=integer(mask_groups, "mask_groups", name),
        padding_mode=padding_mode,
    )


def affine_correlate1d(
    query: Tensor,
    input: Tensor,
    kernel_size: Ints,
    theta: Tensor,
    stride: Ints = 1,
    padding: Ints | str = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    mask_groups: int = 1,
    padding_mode: str = "zeros",
) -> Tensor:
    r"""Multiply every window of a signal by a query, with an affine map for every window.

    Like :func:`dynamic_dilation_correlate2d`: ``query`` is :math:`(B, C, W_{out})`, ``input`` :math:`(B, C, W)`,
    the output :math:`(B, M \, k, W_{out})`; ``theta`` is as in :func:`ddu_ops.affine_unfold1d`; unbatched without
    the :math:`B`. Everything else, including errors, is the same.

    Example:
        >>> query, input = torch.randn(2, 2, 8, 6)
        >>> affine_correlate1d(query, input, 3, torch.eye(1, 2).view(1, 2, 1), padding=1, mask_groups=2).shape
        torch.Size([2, 6, 6])
    """
    name = "affine_correlate1d"
    return _call(
        name,
        1,
        (query, input),
        1,
        kernel_size,
        theta,
        stride,
        padding,
        dilation,
        groups,
        mask_groups=integer(mask_groups, "mask_groups", name),
        padding_mode=padding_mode,
    )


def affine_correlate2d(
    query: Tensor,
    input: Tensor,
    kernel_size: Ints,
    theta: Tensor,
    stride: Ints = 1,
    padding: Ints | str = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    mask_groups: int = 1,
    padding_mode: str = "zeros",
) -> Tensor:
    r"""Multiply every window of an image by a query, with an affine map for every window.

    Like :func:`dynamic_dilation_correlate2d`: ``query`` is :math:`(B, C, H_{out}, W_{out})`, ``input`` :math:`(B,
    C, H, W)`, the output :math:`(B, M \, k_h k_w, H_{out}, W_{out})`; ``theta`` is as in
    :func:`ddu_ops.affine_unfold2d`; unbatched without the :math:`B`. Everything else, including errors, is the same.

    Example:
        >>> query, input = torch.randn(2, 2, 8, 6, 7)
        >>> affine_correlate2d(query, input, 3, torch.eye(2, 3).view(1, 6, 1, 1), padding=1, mask_groups=2).shape
        torch.Size([2, 18, 6, 7])
    """
    name = "affine_correlate2d"
    return _call(
        name,
        2,
        (query, input),
        1,
        kernel_size,
        theta,
        stride,
        padding,
        dilation,
        groups,
        mask_groups=integer(mask_groups, "mask_groups", name),
        padding_mode=padding_mode,
    )


def affine_correlate3d(
    query: Tensor,
    input: Tensor,
    kernel_size: Ints,
    theta: Tensor,
    stride: Ints = 1,
    padding: Ints | str = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    mask_groups: int = 1,
    padding_mode: str = "zeros",
) -> Tensor:
    r"""Multiply every window of a volume by a query, with an affine map for every window.

    Like :func:`dynamic_dilation_correlate2d`: ``query`` is :math:`(B, C, D_{out}, H_{out}, W_{out})`, ``input``
    :math:`(B, C, D, H, W)`, the output :math:`(B, M \, k_d k_h k_w, D_{out}, H_{out}, W_{out})`; ``theta`` is as
    in :func:`ddu_ops.affine_unfold3d`; unbatched without the :math:`B`. Everything else, including errors, is the same.

    Example:
        >>> query, input = torch.randn(2, 2, 8, 4, 5, 6)
        >>> affine_correlate3d(query, input, 3, torch.eye(3, 4).view(1, 12, 1, 1, 1), padding=1, mask_groups=2).shape
        torch.Size([2, 54, 4, 5, 6])
    """
    name = "affine_correlate3d"
    return _call(
        name,
        3,
        (query, input),
        1,
        kernel_size,
        theta,
        stride,
        padding,
        dilation,
        groups,
        mask_groups=integer(mask_groups, "mask_groups", name),
        padding_mode=padding_mode,
    )


def dynamic_dilation_max_pool2d(
    input: Tensor,
    kernel_size: Ints,
    dilation_map: Tensor | Number,
    stride: Ints | None = None,
    padding: Ints | str = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    return_indices: bool = False,
    aligned: bool = True,
    padding_mode: str = "ignore",
) -> Any:
    r"""Take the largest sample of every window.

    With a map of ones the result equals that of :func:`torch.nn.functional.max_pool2d`. Of several equal samples the
    first is taken, and a NaN counts as the largest. The gradient goes to the pixels around the largest sample and to
    the rate that determined its position.

    Args:
        input: the image.
        kernel_size, dilation_map, padding, dilation, groups, aligned: as in :func:`ddu_ops.dynamic_dilation_unfold`.
        stride: step of the window; ``None`` for the size of the window. Default: ``None``.
        return_indices: ``True`` to also return which tap of the window it was. Default: ``False``.
        padding_mode: ``"ignore"``: taps outside the input do not count, and a window with no taps inside gives
            :math:`-\infty`; or a mode of :func:`ddu_ops.dynamic_dilation_unfold`. Default: ``"ignore"``.

    Shape:
        - input: :math:`(B, C, H, W)` or :math:`(C, H, W)`.
        - dilation_map: :math:`(B, G, H_{out}, W_{out})` or :math:`(B, 2G, H_{out}, W_{out})`.
        - Output: :math:`(B, C, H_{out}, W_{out})` or :math:`(C, H_{out}, W_{out})`, channels-last where the input is;
          the taps likewise, int64, :math:`m \, k_w + n` for tap :math:`(m, n)`, and -1 for a window that has none.

    Raises:
        RuntimeError: as in :func:`ddu_ops.dynamic_dilation_unfold`.

    Example:
        >>> input = torch.randn(1, 4, 6, 6)
        >>> torch.equal(dynamic_dilation_max_pool2d(input, 3, 1.0), torch.nn.functional.max_pool2d(input, 3))
        True
    """
    return _max_pool(
        2,
        input,
        kernel_size,
        dilation_map,
        stride,
        padding,
        dilation,
        groups,
        return_indices=return_indices,
        aligned=aligned,
        padding_mode=padding_mode,
    )


def dynamic_dilation_max_pool1d(
    input: Tensor,
    kernel_size: Ints,
    dilation_map: Tensor | Number,
    stride: Ints | None = None,
    padding: Ints | str = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    return_indices: bool = False,
    aligned: bool = True,
    padding_mode: str = "ignore",
) -> Any:
    r"""Take the largest sample of every window of a signal.

    Like :func:`dynamic_dilation_max_pool2d`: ``input`` is :math:`(B, C, W)`, the output :math:`(B, C, W_{out})`;
    ``dilation_map`` is as in :func:`ddu_ops.dynamic_dilation_unfold1d`; unbatched without the :math:`B`. Everything
    else, including errors, is the same.

    Example:
        >>> dynamic_dilation_max_pool1d(torch.randn(2, 8, 6), 3, 1.5, padding=1).shape
        torch.Size([2, 8, 2])
    """
    return _max_pool(
        1,
        input,
        kernel_size,
        dilation_map,
        stride,
        padding,
        dilation,
        groups,
        return_indices=return_indices,
        aligned=aligned,
        padding_mode=padding_mode,
    )


def dynamic_dilation_max_pool3d(
    input: Tensor,
    kernel_size: Ints,
    dilation_map: Tensor | Number,
    stride: Ints | None = None,
    padding: Ints | str = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    return_indices: bool = False,
    aligned: bool = True,
    padding_mode: str = "ignore",
) -> Any:
    r"""Take the largest sample of every window of a volume.

    Like :func:`dynamic_dilation_max_pool2d`: ``input`` is :math:`(B, C, D, H, W)`, the output :math:`(B, C,
    D_{out}, H_{out}, W_{out})`; ``dilation_map`` is as in :func:`ddu_ops.dynamic_dilation_unfold3d`; unbatched
    without the :math:`B`. Everything else, including errors, is the same.

    Example:
        >>> dynamic_dilation_max_pool3d(torch.randn(2, 8, 4, 5, 6), 3, 1.5, padding=1).shape
        torch.Size([2, 8, 2, 2, 2])
    """
    return _max_pool(
        3,
        input,
        kernel_size,
        dilation_map,
        stride,
        padding,
        dilation,
        groups,
        return_indices=return_indices,
        aligned=aligned,
        padding_mode=padding_mode,
    )


# ---- For any number of axes ----
#
# fx does not know sizes and types, so a call that depends on them is kept as one node of the graph.


# The names of arguments, by the last and the first part of a function's name; where there is none, rates.
_TENSORS = {"aggregate": ("input", "mask"), "correlate": ("query", "input"), "pool": ("input",)}
_POSITIONS = {"deform": "offset", "affine": "theta"}


def _call(
    name: str,
    axes: int,
    tensors: tuple[Tensor, ...],
    image: int,
    kernel_size: Ints,
    positions: Any,
    stride: Ints,
    padding: Ints | str,
    dilation: Ints,
    groups: int,
    **keywords: Any,
) -> Any:
    """Calls the operator for these tensors; windows are extracted from the one with the index ``image``."""
    if _looks_at_sizes(positions, padding) and has_torch_function(tensors):
        arguments = (name, axes, tensors, image, kernel_size, positions, stride, padding, dilation, groups)
        return handle_torch_function(_call, tensors, *arguments, **keywords)
    for tensor, argument in zip(tensors, _TENSORS[name.rstrip("123d").rpartition("_")[2]], strict=True):
        require_tensor(tensor, argument, name)
    offset = _POSITIONS.get(name.partition("_")[0])
    if offset is None:
        _require_rates(positions, name)
    else:
        require_tensor(positions, offset, name)
    groups = integer(groups, "groups", name)
    beyond = keywords["padding_mode"]
    input, *window = _window(axes, name, tensors[image], kernel_size, stride, padding, dilation, beyond)
    tensors = (*tensors[:image], input, *tensors[image + 1 :])
    positions = _rates(axes, positions, input, groups)
    return getattr(torch.ops.ddu, name)(*tensors, window[0], positions, *window[1:], groups, **keywords)


def _max_pool(
    axes: int,
    input: Tensor,
    kernel_size: Ints,
    dilation_map: Tensor | Number,
    stride: Ints | None,
    *window: Any,
    return_indices: bool,
    **keywords: Any,
) -> Any:
    name = f"dynamic_dilation_max_pool{axes}d"
    stride = kernel_size if stride is None else stride
    values, taps = _call(name, axes, (input,), 0, kernel_size, dilation_map, stride, *window, **keywords)
    return (values, taps) if return_indices else values
