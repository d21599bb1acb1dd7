"""The public modules: they hold the options and delegate to :mod:`ddu_ops.functional`."""

from torch import Tensor, nn

from ddu_ops.functional import IntOrPair, dynamic_dilation_fold, dynamic_dilation_unfold


class _Window(nn.Module):
    """The options that unfold and fold share."""

    def __init__(
        self,
        kernel_size: IntOrPair,
        stride: IntOrPair = 1,
        padding: IntOrPair = 0,
        dilation: IntOrPair = 1,
        groups: int = 1,
        *,
        aligned: bool = True,
    ) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.stride = stride
        self.padding = padding
        self.dilation = dilation
        self.groups = groups
        self.aligned = aligned

    def extra_repr(self) -> str:
        return (
            f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}, dilation={self.dilation}, "
            f"groups={self.groups}, aligned={self.aligned}"
        )


class DynamicDilationUnfold(_Window):
    """Extract sliding windows whose dilation rate is read from a map.

    The module form of :func:`~ddu_ops.dynamic_dilation_unfold`, with its arguments, shapes and errors; the map is an
    argument of the call, for it usually comes from the network.

    Example:
        >>> unfold = DynamicDilationUnfold(3, padding=1)
        >>> unfold(torch.randn(2, 8, 5, 5), torch.rand(2, 1, 5, 5) + 0.5).shape
        torch.Size([2, 72, 25])
    """

    def forward(self, input: Tensor, dilation_map: Tensor) -> Tensor:
        return dynamic_dilation_unfold(
            input,
            self.kernel_size,
            dilation_map,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            aligned=self.aligned,
        )


class DynamicDilationFold(_Window):
    """Add windows into an image, each with the dilation rate that the map holds for it.

    The module form of :func:`~ddu_ops.dynamic_dilation_fold`, with its arguments, shapes and errors.

    Example:
        >>> fold = DynamicDilationFold((5, 5), 3, padding=1)
        >>> fold(torch.randn(2, 72, 25), torch.rand(2, 1, 5, 5) + 0.5).shape
        torch.Size([2, 8, 5, 5])
    """

    def __init__(
        self,
        output_size: IntOrPair,
        kernel_size: IntOrPair,
        stride: IntOrPair = 1,
        padding: IntOrPair = 0,
        dilation: IntOrPair = 1,
        groups: int = 1,
        *,
        aligned: bool = True,
    ) -> None:
        super().__init__(kernel_size, stride, padding, dilation, groups, aligned=aligned)
        self.output_size = output_size

    def forward(self, columns: Tensor, dilation_map: Tensor) -> Tensor:
        return dynamic_dilation_fold(
            columns,
            self.output_size,
            self.kernel_size,
            dilation_map,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            aligned=self.aligned,
        )

    def extra_repr(self) -> str:
        return f"output_size={self.output_size}, {super().extra_repr()}"
