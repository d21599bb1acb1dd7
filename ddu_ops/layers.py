"""Layers from the literature, composed of a convolution with a dilation map."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ddu_ops._pairs import IntOrPair
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
        kernel_size: IntOrPair,
        stride: IntOrPair = 1,
        padding: IntOrPair | str = 0,
        dilation: IntOrPair = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        dilation_groups: int = 1,
        bounds: tuple[float, float] | None = None,
        pace: float = 0.1,
    ) -> None:
        super().__init__()
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
        )
        height, width = self.conv.kernel_size
        self.mask = _StartsAtZero(
            in_channels,
            dilation_groups * height * width,
            self.conv.kernel_size,
            self.conv.stride,
            self.conv.padding,
            self.conv.dilation,
        )

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
    ) -> None:
        super().__init__()
        self.rate = DilationPredictor(in_channels, 3, padding=1, bounds=bounds, pace=pace)
        self.point = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.pyramid = nn.ModuleList(
            DynamicDilationConv2d(in_channels, out_channels, 3, padding=rate, dilation=rate, bias=False, predict=False)
            for rate in rates
        )
        self.image = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        branches = 2 + len(self.pyramid)
        self.norms = nn.ModuleList(nn.BatchNorm2d(out_channels) for _ in range(branches))
        self.project = nn.Sequential(
            nn.Conv2d(branches * out_channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels), nn.ReLU()
        )

    def forward(self, input: Tensor) -> Tensor:
        dilation_map = self.rate(input)
        image = self.image(input.mean((2, 3), keepdim=True)).expand(-1, -1, *input.shape[2:])
        branches = [self.point(input), *(branch(input, dilation_map) for branch in self.pyramid), image]
        normed = [norm(branch).relu() for norm, branch in zip(self.norms, branches, strict=True)]
        return self.project(torch.cat(normed, 1))
