"""Convert offsets and masks from the layouts of other libraries, and back.

The layout of ``ddu_ops`` is that of ``torchvision.ops.deform_conv2d`` and of mmcv: for each group and tap, taps row by
row, an offset in pixels along each axis, the slowest axis first, and a factor.

All functions are differentiable and compile in one graph. Half types are computed in float32 and rounded once.
"""

import math

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from ddu_ops._options import Ints, integer, ints
from ddu_ops.functional import at_least_float32

__all__ = ["from_axis_blocks", "from_dcnv3", "from_dcnv4", "to_axis_blocks", "to_dcnv3", "to_dcnv4"]


def from_dcnv3(
    offset: Tensor,
    mask: Tensor,
    kernel_size: Ints = 3,
    dilation: Ints = 1,
    offset_scale: float = 1.0,
    *,
    remove_center: bool = False,
) -> tuple[Tensor, Tensor]:
    r"""Convert offsets and mask of DCNv3 for :func:`~ddu_ops.deform_aggregate2d` or :func:`~ddu_ops.deform_conv2d`.

    DCNv3 (W. Wang, J. Dai, Z. Chen and others, "InternImage: Exploring Large-Scale Vision Foundation Models with
    Deformable Convolutions", CVPR 2023) stores channels last, taps column by column and x before y. It multiplies both
    the offset of a tap and the tap's place in the window by ``offset_scale``. For a tap whose place is :math:`p` pixels
    from the centre of the window, an offset :math:`o` of DCNv3 and its scale :math:`s` become the offset

    .. math::
        s \, (p + o) - p

    Args:
        offset: the offsets, as DCNv3 takes them.
        mask: the mask, as DCNv3 takes it, after the softmax.
        kernel_size: taps of the window, an int or one per axis, rows first. Default: 3.
        dilation: the dilation of the window; pass the same to the operator. Default: 1.
        offset_scale: as in DCNv3. Default: 1.
        remove_center: as in DCNv3: the tap in the centre has neither offset nor factor. It gets the factor 0.

    Shape:
        - offset: :math:`(N, H_{out}, W_{out}, 2 G P)`, with :math:`P = k_h k_w` taps, one less without the centre.
        - mask: :math:`(N, H_{out}, W_{out}, G P)`.
        - Output: :math:`(N, 2 G \, k_h k_w, H_{out}, W_{out})` and :math:`(N, G \, k_h k_w, H_{out}, W_{out})`.

    Raises:
        RuntimeError: if the shapes differ, or ``remove_center`` is set for a kernel without a centre.

    Example:
        >>> offset, mask = torch.randn(2, 6, 7, 4 * 18), torch.rand(2, 6, 7, 4 * 9)
        >>> ours = offsets.from_dcnv3(offset, mask)
        >>> [tuple(t.shape) for t in ours]
        [(2, 72, 6, 7), (2, 36, 6, 7)]
        >>> deform_aggregate2d(torch.randn(2, 64, 6, 7), ours[1], 3, ours[0], padding=1, groups=4).shape
        torch.Size([2, 64, 6, 7])
    """
    if has_torch_function((offset, mask)):
        return handle_torch_function(
            from_dcnv3,
            (offset, mask),
            *(offset, mask, kernel_size, dilation, offset_scale),
            remove_center=remove_center,
        )
    window = _Window("from_dcnv3", kernel_size, dilation, offset_scale, remove_center)
    points = window.points
    if (
        offset.dim() != 4
        or offset.shape[:3] != mask.shape[:3]
        or mask.shape[3] % points
        or offset.shape[3] != 2 * mask.shape[3]
    ):
        raise RuntimeError(
            f"from_dcnv3(): expected offset of shape (N, H_out, W_out, G * {2 * points}) and mask of shape (N, H_out, "
            f"W_out, G * {points}), but got {tuple(offset.shape)} and {tuple(mask.shape)}"
        )
    return window.ours(offset.unflatten(3, (-1, points, 2)), mask.unflatten(3, (-1, points)))


def to_dcnv3(
    offset: Tensor,
    mask: Tensor,
    kernel_size: Ints = 3,
    dilation: Ints = 1,
    offset_scale: float = 1.0,
    *,
    remove_center: bool = False,
) -> tuple[Tensor, Tensor]:
    """The inverse of :func:`from_dcnv3`. With ``remove_center`` it drops offset and factor of the tap in the centre.

    Args:
        offset, mask: as the results of :func:`from_dcnv3`.
        kernel_size, dilation, offset_scale, remove_center: as there.

    Raises:
        RuntimeError: as there, and if ``offset_scale`` is 0.

    Example:
        >>> offset, mask = torch.randn(2, 72, 6, 7), torch.rand(2, 36, 6, 7)
        >>> [tuple(t.shape) for t in offsets.to_dcnv3(offset, mask, offset_scale=0.5)]
        [(2, 6, 7, 72), (2, 6, 7, 36)]
    """
    if has_torch_function((offset, mask)):
        return handle_torch_function(
            to_dcnv3,
            (offset, mask),
            *(offset, mask, kernel_size, dilation, offset_scale),
            remove_center=remove_center,
        )
    window = _Window("to_dcnv3", kernel_size, dilation, offset_scale, remove_center)
    theirs = window.theirs(offset, mask)
    return theirs[0].flatten(3), theirs[1].flatten(3)


def from_dcnv4(
    offset_mask: Tensor,
    group: int,
    kernel_size: Ints = 3,
    dilation: Ints = 1,
    offset_scale: float = 1.0,
    *,
    remove_center: bool = False,
) -> tuple[Tensor, Tensor]:
    r"""Convert offsets and mask of DCNv4 for :func:`~ddu_ops.deform_aggregate2d` or :func:`~ddu_ops.deform_conv2d`.

    DCNv4 (Y. Xiong, Z. Li, Y. Chen and others, "Efficient Deformable ConvNets: Rethinking Dynamic and Sparse Operator
    for Vision Applications", CVPR 2024) stores the same as DCNv3 (see :func:`from_dcnv3`) in one tensor: for each group
    its offsets, then its factors, to which no activation is applied; then zeros up to a multiple of 8 channels.

    Args:
        offset_mask: offsets and mask, as DCNv4 takes them.
        group: the number of groups, :math:`G`.
        kernel_size, dilation, offset_scale, remove_center: as in :func:`from_dcnv3`.

    Shape:
        - offset_mask: :math:`(N, H_{out}, W_{out}, \lceil 3 G P / 8 \rceil \cdot 8)`.
        - Output: as in :func:`from_dcnv3`.

    Raises:
        RuntimeError: if the shape differs, or ``remove_center`` is set for a kernel without a centre.

    Example:
        >>> offset, mask = offsets.from_dcnv4(torch.randn(2, 6, 7, 112), group=4)
        >>> offset.shape, mask.shape
        (torch.Size([2, 72, 6, 7]), torch.Size([2, 36, 6, 7]))
    """
    if has_torch_function((offset_mask,)):
        return handle_torch_function(
            from_dcnv4,
            (offset_mask,),
            *(offset_mask, group, kernel_size, dilation, offset_scale),
            remove_center=remove_center,
        )
    window = _Window("from_dcnv4", kernel_size, dilation, offset_scale, remove_center)
    group, points = integer(group, "group", "from_dcnv4", least=1), window.points
    width = 3 * group * points
    if offset_mask.dim() != 4 or offset_mask.shape[3] != _padded(width):
        raise RuntimeError(
            f"from_dcnv4(): expected offset_mask of shape (N, H_out, W_out, {_padded(width)}), but got "
            f"{tuple(offset_mask.shape)}"
        )
    groups = offset_mask[..., :width].unflatten(3, (group, 3 * points))
    return window.ours(groups[..., : 2 * points].unflatten(4, (points, 2)), groups[..., 2 * points :])


def to_dcnv4(
    offset: Tensor,
    mask: Tensor,
    kernel_size: Ints = 3,
    dilation: Ints = 1,
    offset_scale: float = 1.0,
    *,
    remove_center: bool = False,
) -> Tensor:
    """The inverse of :func:`from_dcnv4`. With ``remove_center`` it drops offset and factor of the tap in the centre.

    Args:
        offset, mask: as the results of :func:`from_dcnv4`.
        kernel_size, dilation, offset_scale, remove_center: as there.

    Raises:
        RuntimeError: if the shapes differ, ``remove_center`` is set for a kernel without a centre, or
            ``offset_scale`` is 0.

    Example:
        >>> offsets.to_dcnv4(torch.randn(2, 72, 6, 7), torch.rand(2, 36, 6, 7)).shape
        torch.Size([2, 6, 7, 112])
    """
    if has_torch_function((offset, mask)):
        return handle_torch_function(
            to_dcnv4,
            (offset, mask),
            *(offset, mask, kernel_size, dilation, offset_scale),
            remove_center=remove_center,
        )
    theirs = _Window("to_dcnv4", kernel_size, dilation, offset_scale, remove_center).theirs(offset, mask)
    together = torch.cat([theirs[0].flatten(4), theirs[1]], 4).flatten(3)
    return torch.nn.functional.pad(together, (0, _padded(together.shape[3]) - together.shape[3]))


def from_axis_blocks(offset: Tensor) -> Tensor:
    r"""Convert offsets that are stored axis by axis.

    These are first the offsets of all groups and taps along the slowest axis, then those along the next: the layout of
    older releases of NDC, among others. Its mask, :math:`(B, 1, G K, *\text{out})`, needs ``squeeze(1)`` alone.

    Args:
        offset: the offsets, for one to three axes.

    Shape:
        - offset: :math:`(B, N, G K, *\text{out})` for :math:`N` axes. If axes and taps share one dimension, separate
          them first: ``offset.unflatten(1, (N, -1))``.
        - Output: :math:`(B, N G K, *\text{out})`.

    Raises:
        RuntimeError: if the shape differs.

    Example:
        >>> offsets.from_axis_blocks(torch.randn(2, 2, 9, 6, 7)).shape
        torch.Size([2, 18, 6, 7])
    """
    if has_torch_function((offset,)):
        return handle_torch_function(from_axis_blocks, (offset,), offset)
    axes = offset.dim() - 3
    if axes not in (1, 2, 3) or offset.shape[1] != axes:
        raise RuntimeError(
            "from_axis_blocks(): expected offset of shape (B, N, G * K, *out), with as many sizes in out as N says, "
            f"but got {tuple(offset.shape)}"
        )
    return offset.transpose(1, 2).flatten(1, 2)


def to_axis_blocks(offset: Tensor) -> Tensor:
    """The inverse of :func:`from_axis_blocks`.

    Args:
        offset: as its result.

    Raises:
        RuntimeError: if the shape differs.

    Example:
        >>> offsets.to_axis_blocks(torch.randn(2, 81, 4, 6, 7)).shape
        torch.Size([2, 3, 27, 4, 6, 7])
    """
    if has_torch_function((offset,)):
        return handle_torch_function(to_axis_blocks, (offset,), offset)
    axes = offset.dim() - 2
    if axes not in (1, 2, 3) or offset.shape[1] % axes:
        raise RuntimeError(
            "to_axis_blocks(): expected offset of shape (B, N * G * K, *out), with as many sizes in out as N says, but "
            f"got {tuple(offset.shape)}"
        )
    return offset.unflatten(1, (-1, axes)).transpose(1, 2)


def _padded(width: int) -> int:
    return math.ceil(width / 8) * 8


class _Window:
    """The window of DCNv3 and DCNv4, and the order of taps and axes, which they share."""

    def __init__(self, name: str, kernel_size: Ints, dilation: Ints, offset_scale: float, remove_center: bool) -> None:
        self.name = name
        self.kernel = ints(kernel_size, 2, "kernel_size", name, least=1)
        self.dilation = ints(dilation, 2, "dilation", name, least=1)
        self.scale, self.remove_center = float(offset_scale), bool(remove_center)
        self.points = math.prod(self.kernel) - self.remove_center
        if remove_center and (self.points == 0 or not all(k % 2 for k in self.kernel)):
            raise RuntimeError(
                f"{name}(): expected kernel_size to be odd and above 1 with remove_center=True, but got {self.kernel}"
            )
        if self.scale == 0 and name.startswith("to_"):
            raise RuntimeError(f"{name}(): expected offset_scale to be other than 0, but got {offset_scale}")

    def _places(self, like: Tensor) -> Tensor:
        """Of the taps, row by row, from the centre of the window: ``(taps, 2)``."""
        rows, columns = (
            torch.arange(k, device=like.device, dtype=like.dtype) * d - (d * (k - 1) >> 1)
            for k, d in zip(self.kernel, self.dilation, strict=True)
        )
        return torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1).flatten(0, 1)

    def ours(self, offset: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """From ``(N, H_out, W_out, G, points, 2)`` and ``(N, H_out, W_out, G, points)``."""
        kernel_h, kernel_w = self.kernel
        if self.remove_center:
            centre = self.points // 2
            offset = torch.cat(
                [offset[..., :centre, :], torch.zeros_like(offset[..., :1, :]), offset[..., centre:, :]], 4
            )
            mask = torch.cat([mask[..., :centre], torch.zeros_like(mask[..., :1]), mask[..., centre:]], 4)
        offset = offset.unflatten(4, (kernel_w, kernel_h)).transpose(4, 5).flatten(4, 5).flip(5)
        mask = mask.unflatten(4, (kernel_w, kernel_h)).transpose(4, 5)
        if self.scale != 1:
            exact = at_least_float32(offset)
            offset = (self.scale * exact + (self.scale - 1) * self._places(exact)).to(offset.dtype)
        return offset.flatten(3).permute(0, 3, 1, 2), mask.flatten(3).permute(0, 3, 1, 2)

    def theirs(self, offset: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """To ``(N, H_out, W_out, G, points, 2)`` and ``(N, H_out, W_out, G, points)``."""
        kernel_h, kernel_w = self.kernel
        taps = kernel_h * kernel_w
        if (
            offset.dim() != 4
            or offset.shape[::2] != mask.shape[::2]
            or offset.shape[3] != mask.shape[3]
            or mask.shape[1] % taps
            or offset.shape[1] != 2 * mask.shape[1]
        ):
            raise RuntimeError(
                f"{self.name}(): expected offset of shape (N, G * {2 * taps}, H_out, W_out) and mask of shape (N, G * "
                f"{taps}, H_out, W_out), but got {tuple(offset.shape)} and {tuple(mask.shape)}"
            )
        offset = offset.permute(0, 2, 3, 1).unflatten(3, (-1, taps, 2))
        mask = mask.permute(0, 2, 3, 1).unflatten(3, (-1, kernel_h, kernel_w)).transpose(4, 5).flatten(4)
        if self.scale != 1:
            exact = at_least_float32(offset)
            offset = ((exact - (self.scale - 1) * self._places(exact)) / self.scale).to(offset.dtype)
        offset = offset.unflatten(4, (kernel_h, kernel_w)).transpose(4, 5).flatten(4, 5).flip(5)
        if self.remove_center:
            centre = taps // 2
            offset = torch.cat([offset[..., :centre, :], offset[..., centre + 1 :, :]], 4)
            mask = torch.cat([mask[..., :centre], mask[..., centre + 1 :]], 4)
        return offset, mask
