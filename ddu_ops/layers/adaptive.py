"""A convolution that predicts its rates and a factor for every tap."""

from typing import Any

import torch
from torch import Tensor, nn

from ddu_ops._options import Ints
from ddu_ops.modules import DynamicDilationConv2d, _StartsAtZero, check_input


class AdaptiveDilationConv2d(nn.Module):
    r"""A modulated convolution with adaptive dilation, as in FADC.

    The adaptive dilation rate of L. Chen, L. Gu, D. Zheng and Y. Fu, "Frequency-Adaptive Dilated Convolution for
    Semantic Segmentation", CVPR 2024: a convolution predicts the rate of every position, a second one a factor for
    every tap, through a sigmoid, and

    .. math::
        \text{out}(p) = \sum_i W_i \, M_i(p) \, X(p + \Delta p_i \, D(p)).

    Where the paper keeps the rate from being negative by a ReLU, which has no slope left once it is at zero, here a
    :class:`~ddu_ops.DilationPredictor` bounds it. The paper's reweighting of frequencies (FreqSelect) and of kernels
    (AdaKern) work on the input and on the weight, and can be put around the layer.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias: as in
            :class:`torch.nn.Conv2d`; ``dilation`` multiplies the rates.
        dilation_groups: number of channel groups, each with its own rates and factors. Default: 1.
        bounds, pace: of the rates: see :class:`~ddu_ops.DilationPredictor`. Default: ``None``, no upper bound, and 0.1.
        device, dtype: as in :class:`torch.nn.Conv2d`.

    Shape:
        - input: :math:`(B, C, H, W)` or :math:`(C, H, W)`.
        - Output: as of :class:`torch.nn.Conv2d`.

    Example:
        >>> layer = layers.AdaptiveDilationConv2d(8, 4, 3, padding=1)
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
        dilation_groups: int = 1,
        bounds: tuple[float, float] | None = None,
        pace: float = 0.1,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        options: dict[str, Any] = {"device": device, "dtype": dtype}
        self.conv = DynamicDilationConv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            dilation_groups=dilation_groups,
            bounds=bounds,
            pace=pace,
            **options,
        )
        height, width = self.conv.kernel_size
        self.mask = _StartsAtZero(
            self.conv.in_channels,
            self.conv.dilation_groups * height * width,
            self.conv.kernel_size,
            self.conv.stride,
            self.conv.padding,
            self.conv.dilation,
            **options,
        )

    def reset_parameters(self) -> None:
        """Reset the parameters to their initial values."""
        self.conv.reset_parameters()
        self.mask.reset_parameters()

    def forward(self, input: Tensor) -> Tensor:
        check_input("AdaptiveDilationConv2d", input, 2, self.conv.in_channels)
        return self.conv(input, mask=self.mask(input).sigmoid())
