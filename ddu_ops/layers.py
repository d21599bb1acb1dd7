"""Layers from the literature, composed of a convolution with a dilation map."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ddu_ops._options import Ints, integer
from ddu_ops.modules import DilationPredictor, DynamicDilationConv2d, _StartsAtZero


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
        dilation_groups: number of channel groups that have rates and factors of their own. Default: 1.
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
        """Starts again, as a new layer does."""
        self.conv.reset_parameters()
        self.mask.reset_parameters()

    def forward(self, input: Tensor) -> Tensor:
        return self.conv(input, mask=self.mask(input).sigmoid())


class DynamicASPP(nn.Module):
    """Atrous spatial pyramid pooling whose branches share one dynamic rate.

    The head of L.-C. Chen, G. Papandreou, F. Schroff and H. Adam, "Rethinking Atrous Convolution for Semantic Image
    Segmentation", 2017: a 1 × 1 convolution, dilated ones side by side, and the mean of the image, put together by
    another 1 × 1 convolution. Here one :class:`~ddu_ops.DilationPredictor` scales the whole pyramid, position by
    position: a branch with the fixed rate ``r`` reads at ``r`` times the map. It starts as the pyramid without a map.

    Args:
        in_channels: channels of the input.
        out_channels: channels of every branch, and of the output. Default: 256.
        rates: the fixed rates of the dilated branches. Default: (6, 12, 18).
        bounds, pace: of the dynamic rate: see :class:`~ddu_ops.DilationPredictor`. Default: (0, 4) and 0.1.
        device, dtype: as in :class:`torch.nn.Conv2d`.

    Shape:
        - input: :math:`(B, C, H, W)`.
        - Output: :math:`(B, C_{out}, H, W)`.

    Example:
        >>> head = layers.DynamicASPP(8, 4, rates=(1, 2, 3))
        >>> head(torch.randn(2, 8, 16, 16)).shape
        torch.Size([2, 4, 16, 16])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int = 256,
        rates: Sequence[int] = (6, 12, 18),
        *,
        bounds: tuple[float, float] | None = (0.0, 4.0),
        pace: float = 0.1,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        in_channels = integer(in_channels, "in_channels", "DynamicASPP", ValueError, least=1)
        out_channels = integer(out_channels, "out_channels", "DynamicASPP", ValueError, least=1)
        options: dict[str, Any] = {"device": device, "dtype": dtype}

        def point(channels: int) -> nn.Conv2d:
            return nn.Conv2d(channels, out_channels, 1, bias=False, **options)

        def norm() -> nn.BatchNorm2d:
            return nn.BatchNorm2d(out_channels, **options)

        self.rate = DilationPredictor(in_channels, 3, padding=1, bounds=bounds, pace=pace, **options)
        self.point = point(in_channels)
        self.pyramid = nn.ModuleList(
            DynamicDilationConv2d(
                in_channels, out_channels, 3, padding=rate, dilation=rate, bias=False, predict=False, **options
            )
            for rate in rates
        )
        self.image = point(in_channels)
        branches = 2 + len(self.pyramid)
        self.norms = nn.ModuleList(norm() for _ in range(branches))
        self.project = nn.Sequential(point(branches * out_channels), norm(), nn.ReLU())

    def reset_parameters(self) -> None:
        """Starts again, as a new head does."""
        for module in self.modules():
            reset = getattr(module, "reset_parameters", None)
            if module is not self and callable(reset):
                reset()

    def forward(self, input: Tensor) -> Tensor:
        dilation_map = self.rate(input)
        point = self.point(input)
        image = self.image(input.mean((2, 3), keepdim=True)).expand_as(point)
        branches = [point, *(branch(input, dilation_map) for branch in self.pyramid), image]
        normed = [norm(branch).relu() for norm, branch in zip(self.norms, branches, strict=True)]
        return self.project(torch.cat(normed, 1))
