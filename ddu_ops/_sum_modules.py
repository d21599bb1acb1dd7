"""The modules of the sums of windows: they hold the options and delegate to :mod:`ddu_ops.sums`."""

from typing import Any

from torch import Tensor

from ddu_ops import sums
from ddu_ops._options import Ints, integer
from ddu_ops.modules import _RateWindow, _Window


class _Aggregate(_RateWindow):
    def forward(self, input: Tensor, mask: Tensor, dilation_map: Tensor) -> Tensor:
        return self._call(input, mask, positions=dilation_map, aligned=self.aligned)


class _DeformAggregate(_Window):
    def forward(self, input: Tensor, mask: Tensor, offset: Tensor) -> Tensor:
        return self._call(input, mask, positions=offset)


class _AffineAggregate(_Window):
    def forward(self, input: Tensor, mask: Tensor, theta: Tensor) -> Tensor:
        return self._call(input, mask, positions=theta)


class _Correlate(_RateWindow):
    def __init__(
        self,
        kernel_size: Ints,
        stride: Ints = 1,
        padding: Ints | str = 0,
        dilation: Ints = 1,
        groups: int = 1,
        *,
        mask_groups: int = 1,
        aligned: bool = True,
        padding_mode: str = "zeros",
    ) -> None:
        super().__init__(kernel_size, stride, padding, dilation, groups, aligned=aligned, padding_mode=padding_mode)
        self.mask_groups = integer(mask_groups, "mask_groups", type(self).__name__, ValueError, least=1)

    def forward(self, query: Tensor, input: Tensor, dilation_map: Tensor) -> Tensor:
        return self._call(query, input, positions=dilation_map, mask_groups=self.mask_groups, aligned=self.aligned)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, mask_groups={self.mask_groups}"


class _MovedCorrelate(_Window):
    """From offsets, or affine maps."""

    def __init__(
        self,
        kernel_size: Ints,
        stride: Ints = 1,
        padding: Ints | str = 0,
        dilation: Ints = 1,
        groups: int = 1,
        *,
        mask_groups: int = 1,
        padding_mode: str = "zeros",
    ) -> None:
        super().__init__(kernel_size, stride, padding, dilation, groups, padding_mode=padding_mode)
        self.mask_groups = integer(mask_groups, "mask_groups", type(self).__name__, ValueError, least=1)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, mask_groups={self.mask_groups}"


class _DeformCorrelate(_MovedCorrelate):
    def forward(self, query: Tensor, input: Tensor, offset: Tensor) -> Tensor:
        return self._call(query, input, positions=offset, mask_groups=self.mask_groups)


class _AffineCorrelate(_MovedCorrelate):
    def forward(self, query: Tensor, input: Tensor, theta: Tensor) -> Tensor:
        return self._call(query, input, positions=theta, mask_groups=self.mask_groups)


class _MaxPool(_RateWindow):
    def __init__(
        self,
        kernel_size: Ints,
        stride: Ints | None = None,
        padding: Ints | str = 0,
        dilation: Ints = 1,
        groups: int = 1,
        *,
        return_indices: bool = False,
        aligned: bool = True,
        padding_mode: str = "ignore",
    ) -> None:
        ignore = padding_mode == "ignore"
        super().__init__(
            kernel_size,
            kernel_size if stride is None else stride,
            padding,
            dilation,
            groups,
            aligned=aligned,
            padding_mode="zeros" if ignore else padding_mode,
        )
        self.padding_mode = "ignore" if ignore else self.padding_mode
        self.return_indices = return_indices

    def forward(self, input: Tensor, dilation_map: Tensor) -> Any:
        return self._call(input, positions=dilation_map, return_indices=self.return_indices, aligned=self.aligned)


class DynamicDilationAggregate1d(_Aggregate):
    """The module form of :func:`~ddu_ops.dynamic_dilation_aggregate1d`, with its options, shapes and errors.

    Called with ``(input, mask, dilation_map)``. The constructor also takes the words of
    :class:`torch.nn.Conv1d` as ``padding_mode``, ``"replicate"`` and ``"reflect"``.

    Example:
        >>> input, mask = torch.randn(2, 8, 6), torch.rand(2, 3, 6)
        >>> DynamicDilationAggregate1d(3, padding=1)(input, mask, torch.ones(2, 1, 6)).shape
        torch.Size([2, 8, 6])
    """

    _axes = 1
    _function = staticmethod(sums.dynamic_dilation_aggregate1d)


class DynamicDilationAggregate2d(_Aggregate):
    """The module form of :func:`~ddu_ops.dynamic_dilation_aggregate2d`, with its options, shapes and errors.

    Called with ``(input, mask, dilation_map)``. The constructor also takes the words of
    :class:`torch.nn.Conv2d` as ``padding_mode``, ``"replicate"`` and ``"reflect"``.

    Example:
        >>> input, mask = torch.randn(2, 8, 6, 7), torch.rand(2, 9, 6, 7)
        >>> DynamicDilationAggregate2d(3, padding=1)(input, mask, torch.ones(2, 1, 6, 7)).shape
        torch.Size([2, 8, 6, 7])
    """

    _axes = 2
    _function = staticmethod(sums.dynamic_dilation_aggregate2d)


class DynamicDilationAggregate3d(_Aggregate):
    """The module form of :func:`~ddu_ops.dynamic_dilation_aggregate3d`, with its options, shapes and errors.

    Called with ``(input, mask, dilation_map)``. The constructor also takes the words of
    :class:`torch.nn.Conv3d` as ``padding_mode``, ``"replicate"`` and ``"reflect"``.

    Example:
        >>> input, mask = torch.randn(2, 8, 4, 5, 6), torch.rand(2, 27, 4, 5, 6)
        >>> DynamicDilationAggregate3d(3, padding=1)(input, mask, torch.ones(2, 1, 4, 5, 6)).shape
        torch.Size([2, 8, 4, 5, 6])
    """

    _axes = 3
    _function = staticmethod(sums.dynamic_dilation_aggregate3d)


class DynamicDilationCorrelate1d(_Correlate):
    """The module form of :func:`~ddu_ops.dynamic_dilation_correlate1d`, with its options, shapes and errors.

    Called with ``(query, input, dilation_map)``. The constructor also takes the words of
    :class:`torch.nn.Conv1d` as ``padding_mode``, ``"replicate"`` and ``"reflect"``.

    Example:
        >>> query, input = torch.randn(2, 2, 8, 6)
        >>> DynamicDilationCorrelate1d(3, padding=1)(query, input, torch.ones(2, 1, 6)).shape
        torch.Size([2, 3, 6])
    """

    _axes = 1
    _function = staticmethod(sums.dynamic_dilation_correlate1d)


class DynamicDilationCorrelate2d(_Correlate):
    """The module form of :func:`~ddu_ops.dynamic_dilation_correlate2d`, with its options, shapes and errors.

    Called with ``(query, input, dilation_map)``. The constructor also takes the words of
    :class:`torch.nn.Conv2d` as ``padding_mode``, ``"replicate"`` and ``"reflect"``.

    Example:
        >>> query, input = torch.randn(2, 2, 8, 6, 7)
        >>> DynamicDilationCorrelate2d(3, padding=1)(query, input, torch.ones(2, 1, 6, 7)).shape
        torch.Size([2, 9, 6, 7])
    """

    _axes = 2
    _function = staticmethod(sums.dynamic_dilation_correlate2d)


class DynamicDilationCorrelate3d(_Correlate):
    """The module form of :func:`~ddu_ops.dynamic_dilation_correlate3d`, with its options, shapes and errors.

    Called with ``(query, input, dilation_map)``. The constructor also takes the words of
    :class:`torch.nn.Conv3d` as ``padding_mode``, ``"replicate"`` and ``"reflect"``.

    Example:
        >>> query, input = torch.randn(2, 2, 8, 4, 5, 6)
        >>> DynamicDilationCorrelate3d(3, padding=1)(query, input, torch.ones(2, 1, 4, 5, 6)).shape
        torch.Size([2, 27, 4, 5, 6])
    """

    _axes = 3
    _function = staticmethod(sums.dynamic_dilation_correlate3d)


class DynamicDilationMaxPool1d(_MaxPool):
    """The module form of :func:`~ddu_ops.dynamic_dilation_max_pool1d`, with its options, shapes and errors.

    Called with ``(input, dilation_map)``. The constructor also takes the words of
    :class:`torch.nn.Conv1d` as ``padding_mode``, ``"replicate"`` and ``"reflect"``.

    Example:
        >>> input = torch.randn(2, 8, 6)
        >>> DynamicDilationMaxPool1d(3, 1, 1)(input, torch.ones(2, 1, 6)).shape
        torch.Size([2, 8, 6])
    """

    _axes = 1
    _function = staticmethod(sums.dynamic_dilation_max_pool1d)


class DynamicDilationMaxPool2d(_MaxPool):
    """The module form of :func:`~ddu_ops.dynamic_dilation_max_pool2d`, with its options, shapes and errors.

    Called with ``(input, dilation_map)``. The constructor also takes the words of
    :class:`torch.nn.Conv2d` as ``padding_mode``, ``"replicate"`` and ``"reflect"``.

    Example:
        >>> input = torch.randn(2, 8, 6, 7)
        >>> DynamicDilationMaxPool2d(3, 1, 1)(input, torch.ones(2, 1, 6, 7)).shape
        torch.Size([2, 8, 6, 7])
    """

    _axes = 2
    _function = staticmethod(sums.dynamic_dilation_max_pool2d)


class DynamicDilationMaxPool3d(_MaxPool):
    """The module form of :func:`~ddu_ops.dynamic_dilation_max_pool3d`, with its options, shapes and errors.

    Called with ``(input, dilation_map)``. The constructor also takes the words of
    :class:`torch.nn.Conv3d` as ``padding_mode``, ``"replicate"`` and ``"reflect"``.

    Example:
        >>> input = torch.randn(2, 8, 4, 5, 6)
        >>> DynamicDilationMaxPool3d(3, 1, 1)(input, torch.ones(2, 1, 4, 5, 6)).shape
        torch.Size([2, 8, 4, 5, 6])
    """

    _axes = 3
    _function = staticmethod(sums.dynamic_dilation_max_pool3d)


class DeformAggregate1d(_DeformAggregate):
    """The module form of :func:`~ddu_ops.deform_aggregate1d`, with its options, shapes and errors.

    Called with ``(input, mask, offset)``. The constructor also takes the words of
    :class:`torch.nn.Conv1d` as ``padding_mode``, ``"replicate"`` and ``"reflect"``.

    Example:
        >>> input, mask = torch.randn(2, 8, 6), torch.rand(2, 3, 6)
        >>> DeformAggregate1d(3, padding=1)(input, mask, torch.zeros(2, 3, 6)).shape
        torch.Size([2, 8, 6])
    """

    _axes = 1
    _function = staticmethod(sums.deform_aggregate1d)


class DeformAggregate2d(_DeformAggregate):
    """The module form of :func:`~ddu_ops.deform_aggregate2d`, with its options, shapes and errors.

    Called with ``(input, mask, offset)``. The constructor also takes the words of
    :class:`torch.nn.Conv2d` as ``padding_mode``, ``"replicate"`` and ``"reflect"``.

    Example:
        >>> input, mask = torch.randn(2, 8, 6, 7), torch.rand(2, 9, 6, 7)
        >>> DeformAggregate2d(3, padding=1)(input, mask, torch.zeros(2, 18, 6, 7)).shape
        torch.Size([2, 8, 6, 7])
    """

    _axes = 2
    _function = staticmethod(sums.deform_aggregate2d)


class DeformAggregate3d(_DeformAggregate):
    """The module form of :func:`~ddu_ops.deform_aggregate3d`, with its options, shapes and errors.

    Called with ``(input, mask, offset)``. The constructor also takes the words of
    :class:`torch.nn.Conv3d` as ``padding_mode``, ``"replicate"`` and ``"reflect"``.

    Example:
        >>> input, mask = torch.randn(2, 8, 4, 5, 6), torch.rand(2, 27, 4, 5, 6)
        >>> DeformAggregate3d(3, padding=1)(input, mask, torch.zeros(2, 81, 4, 5, 6)).shape
        torch.Size([2, 8, 4, 5, 6])
    """

    _axes = 3
    _function = staticmethod(sums.deform_aggregate3d)


class DeformCorrelate1d(_DeformCorrelate):
    """The module form of :func:`~ddu_ops.deform_correlate1d`, with its options, shapes and errors.

    Called with ``(query, input, offset)``. The constructor also takes the words of
    :class:`torch.nn.Conv1d` as ``padding_mode``, ``"replicate"`` and ``"reflect"``.

    Example:
        >>> query, input = torch.randn(2, 2, 8, 6)
        >>> DeformCorrelate1d(3, padding=1)(query, input, torch.zeros(2, 3, 6)).shape
        torch.Size([2, 3, 6])
    """

    _axes = 1
    _function = staticmethod(sums.deform_correlate1d)


class DeformCorrelate2d(_DeformCorrelate):
    """The module form of :func:`~ddu_ops.deform_correlate2d`, with its options, shapes and errors.

    Called with ``(query, input, offset)``. The constructor also takes the words of
    :class:`torch.nn.Conv2d` as ``padding_mode``, ``"replicate"`` and ``"reflect"``.

    Example:
        >>> query, input = torch.randn(2, 2, 8, 6, 7)
        >>> DeformCorrelate2d(3, padding=1)(query, input, torch.zeros(2, 18, 6, 7)).shape
        torch.Size([2, 9, 6, 7])
    """

    _axes = 2
    _function = staticmethod(sums.deform_correlate2d)


class DeformCorrelate3d(_DeformCorrelate):
    """The module form of :func:`~ddu_ops.deform_correlate3d`, with its options, shapes and errors.

    Called with ``(query, input, offset)``. The constructor also takes the words of
    :class:`torch.nn.Conv3d` as ``padding_mode``, ``"replicate"`` and ``"reflect"``.

    Example:
        >>> query, input = torch.randn(2, 2, 8, 4, 5, 6)
        >>> DeformCorrelate3d(3, padding=1)(query, input, torch.zeros(2, 81, 4, 5, 6)).shape
        torch.Size([2, 27, 4, 5, 6])
    """

    _axes = 3
    _function = staticmethod(sums.deform_correlate3d)


class AffineAggregate1d(_AffineAggregate):
    """The module form of :func:`~ddu_ops.affine_aggregate1d`, with its options, shapes and errors.

    Called with ``(input, mask, theta)``. The constructor also takes the words of
    :class:`torch.nn.Conv1d` as ``padding_mode``, ``"replicate"`` and ``"reflect"``.

    Example:
        >>> input, mask = torch.randn(2, 8, 6), torch.rand(2, 3, 6)
        >>> theta = torch.eye(1, 2).view(1, 2, 1)
        >>> AffineAggregate1d(3, padding=1)(input, mask, theta).shape
        torch.Size([2, 8, 6])
    """

    _axes = 1
    _function = staticmethod(sums.affine_aggregate1d)


class AffineAggregate2d(_AffineAggregate):
    """The module form of :func:`~ddu_ops.affine_aggregate2d`, with its options, shapes and errors.

    Called with ``(input, mask, theta)``. The constructor also takes the words of
    :class:`torch.nn.Conv2d` as ``padding_mode``, ``"replicate"`` and ``"reflect"``.

    Example:
        >>> input, mask = torch.randn(2, 8, 6, 7), torch.rand(2, 9, 6, 7)
        >>> theta = torch.eye(2, 3).view(1, 6, 1, 1)
        >>> AffineAggregate2d(3, padding=1)(input, mask, theta).shape
        torch.Size([2, 8, 6, 7])
    """

    _axes = 2
    _function = staticmethod(sums.affine_aggregate2d)


class AffineAggregate3d(_AffineAggregate):
    """The module form of :func:`~ddu_ops.affine_aggregate3d`, with its options, shapes and errors.

    Called with ``(input, mask, theta)``. The constructor also takes the words of
    :class:`torch.nn.Conv3d` as ``padding_mode``, ``"replicate"`` and ``"reflect"``.

    Example:
        >>> input, mask = torch.randn(2, 8, 4, 5, 6), torch.rand(2, 27, 4, 5, 6)
        >>> theta = torch.eye(3, 4).view(1, 12, 1, 1, 1)
        >>> AffineAggregate3d(3, padding=1)(input, mask, theta).shape
        torch.Size([2, 8, 4, 5, 6])
    """

    _axes = 3
    _function = staticmethod(sums.affine_aggregate3d)


class AffineCorrelate1d(_AffineCorrelate):
    """The module form of :func:`~ddu_ops.affine_correlate1d`, with its options, shapes and errors.

    Called with ``(query, input, theta)``. The constructor also takes the words of
    :class:`torch.nn.Conv1d` as ``padding_mode``, ``"replicate"`` and ``"reflect"``.

    Example:
        >>> query, input = torch.randn(2, 2, 8, 6)
        >>> theta = torch.eye(1, 2).view(1, 2, 1)
        >>> AffineCorrelate1d(3, padding=1)(query, input, theta).shape
        torch.Size([2, 3, 6])
    """

    _axes = 1
    _function = staticmethod(sums.affine_correlate1d)


class AffineCorrelate2d(_AffineCorrelate):
    """The module form of :func:`~ddu_ops.affine_correlate2d`, with its options, shapes and errors.

    Called with ``(query, input, theta)``. The constructor also takes the words of
    :class:`torch.nn.Conv2d` as ``padding_mode``, ``"replicate"`` and ``"reflect"``.

    Example:
        >>> query, input = torch.randn(2, 2, 8, 6, 7)
        >>> theta = torch.eye(2, 3).view(1, 6, 1, 1)
        >>> AffineCorrelate2d(3, padding=1)(query, input, theta).shape
        torch.Size([2, 9, 6, 7])
    """

    _axes = 2
    _function = staticmethod(sums.affine_correlate2d)


class AffineCorrelate3d(_AffineCorrelate):
    """The module form of :func:`~ddu_ops.affine_correlate3d`, with its options, shapes and errors.

    Called with ``(query, input, theta)``. The constructor also takes the words of
    :class:`torch.nn.Conv3d` as ``padding_mode``, ``"replicate"`` and ``"reflect"``.

    Example:
        >>> query, input = torch.randn(2, 2, 8, 4, 5, 6)
        >>> theta = torch.eye(3, 4).view(1, 12, 1, 1, 1)
        >>> AffineCorrelate3d(3, padding=1)(query, input, theta).shape
        torch.Size([2, 27, 4, 5, 6])
    """

    _axes = 3
    _function = staticmethod(sums.affine_correlate3d)
