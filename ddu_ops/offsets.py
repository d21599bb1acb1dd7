"""Offsets and masks in the layouts of other libraries, turned into ours and back.

Ours is that of ``torchvision.ops.deform_conv2d``, and so of mmcv: for every group and tap an offset along each axis,
the slowest axis first, in pixels; for every group and tap a factor; taps row by row.

Everything here is made of views, copies and one multiplication: it is differentiable, and compiles. A half type is
rounded once.
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
    r"""Offsets and mask of DCNv3, as :func:`~ddu_ops.deform_aggregate2d` and :func:`~ddu_ops.deform_conv2d` take them.

    DCNv3 (W. Wang, J. Dai, Z. Chen and others, "InternImage: Exploring Large-Scale Vision Foundation Models with
    Deformable Convolutions", CVPR 2023) has channels last, taps column by column and x before y, and multiplies what it
    has for the offset of a tap, and the tap's place in the window, by ``offset_scale``. With the place :math:`p` of a
    tap, in pixels from the centre of the window, and what DCNv3 has for it, :math:`o`, the offset is

    .. math::
        s \, (p + o) - p

    Args:
        offset: what DCNv3 takes as its offsets.
        mask: what it takes as its mask, after the softmax.
        kernel_size: taps of the window, an int or one per axis, rows first. Default: 3.
        dilation: of the window, which the operator that takes the offsets is called with, too. Default: 1.
        offset_scale: as in DCNv3. Default: 1.
        remove_center: as in DCNv3: there is nothing for the tap in the centre. Its factor becomes 0.

    Shape:
        - offset: :math:`(N, H_{out}, W_{out}, 2 G P)`, with :math:`P = k_h k_w` taps, one less without the centre.
        - mask: :math:`(N, H_{out}, W_{out}, G P)`.
        - Output: :math:`(N, 2 G \, k_h k_w, H_{out}, W_{out})` and :math:`(N, G \, k_h k_w, H_{out}, W_{out})`.

    Raises:
        RuntimeError: for tensors of other shapes, and a centre removed from a kernel that has none.

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
    """The inverse of :func:`from_dcnv3`. With ``remove_center`` it leaves out what there is for the centre.

    Args:
        offset, mask: as the results of :func:`from_dcnv3`.
        kernel_size, dilation, offset_scale, remove_center: as there.

    Raises:
        RuntimeError: as there, and for an ``offset_scale`` of 0.

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
    r"""Offsets and mask of DCNv4, as :func:`~ddu_ops.deform_aggregate2d` and :func:`~ddu_ops.deform_conv2d` take them.

    DCNv4 (Y. Xiong, Z. Li, Y. Chen and others, "Efficient Deformable ConvNets: Rethinking Dynamic and Sparse Operator
    for Vision Applications", CVPR 2024) has what DCNv3 has (see :func:`from_dcnv3`) in one tensor: group by group the
    offsets, then the factors, which it takes as they are, and at the end zeros up to a multiple of 8.

    Args:
        offset_mask: what DCNv4 takes as its offsets and mask.
        group: the number of groups, :math:`G`.
        kernel_size, dilation, offset_scale, remove_center: as in :func:`from_dcnv3`.

    Shape:
        - offset_mask: :math:`(N, H_{out}, W_{out}, \lceil 3 G P / 8 \rceil \cdot 8)`.
        - Output: as in :func:`from_dcnv3`.

    Raises:
        RuntimeError: for a tensor of another shape, and a centre removed from a kernel that has none.

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
    """The inverse of :func:`from_dcnv4`. With ``remove_center`` it leaves out what there is for the centre.

    Args:
        offset, mask: as the results of :func:`from_dcnv4`.
        kernel_size, dilation, offset_scale, remove_center: as there.

    Raises:
        RuntimeError: for tensors of other shapes, a centre removed from a kernel that has none, and an
            ``offset_scale`` of 0.

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
    r"""Offsets that come axis by axis, as ours.

    All along the slowest axis, for every group and tap, then all along the next: the layout of NDC's older releases and
    of others. Their mask, :math:`(B, 1, G K, *\text{out})`, is ours without its dimension of size 1.

    Args:
        offset: the offsets, on one to three axes.

    Shape:
        - offset: :math:`(B, N, G K, *\text{out})` with :math:`N` axes; what has its axes and taps in one dimension
          becomes that by ``offset.unflatten(1, (N, -1))``.
        - Output: :math:`(B, N G K, *\text{out})`.

    Raises:
        RuntimeError: for a tensor of another shape.

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
        RuntimeError: for a tensor of another shape.

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
    """The window of DCNv3 and DCNv4, and what is the same in both: groups, taps column by column, x before y."""

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
