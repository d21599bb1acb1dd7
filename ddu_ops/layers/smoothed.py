"""Dilated convolutions without gridding artifacts."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddu_ops.layers._common import Composed, numbers
from ddu_ops.layers.blocks import same_padding


class SmoothedDilatedConv2d(Composed):
    r"""A dilated convolution whose neighbouring outputs depend on one another.

    From Z. Wang and S. Ji, "Smoothed Dilated Convolutions for Improved Dense Prediction", KDD 2018. A dilated
    convolution consists of :math:`d^2` convolutions on interleaved grids that do not interact. There are two ways to
    connect them, which both start as the plain dilated convolution:

    - ``"shared"``: a filter of :math:`(2 d - 1)^2` weights, shared by all channels, is applied to the input first
      (separable and shared convolution);
    - ``"group"``: each grid's output becomes a weighted sum of all grids' outputs, with :math:`d^2 \times d^2` weights
      (group interaction).

    Args:
        in_channels, out_channels: channels.
        kernel_size: odd. Default: 3.
        dilation: the rate :math:`d`. Default: 2.
        bias: as in :class:`torch.nn.Conv2d`. Default: ``True``.
        interaction: ``"shared"`` or ``"group"``. Default: ``"shared"``.
        device, dtype: as in :class:`torch.nn.Conv2d`.

    Attributes:
        conv: the dilated convolution.
        smoothing: the weights that are added: :math:`(2 d - 1, 2 d - 1)`, or :math:`(d^2, d^2)`, from the row's grid
            to the column's.

    Shape:
        - input: :math:`(B, C_{in}, H, W)`. Output: :math:`(B, C_{out}, H, W)`.

    Raises:
        ValueError: for an even kernel, and for an unknown ``interaction``.

    Example:
        >>> layer = layers.SmoothedDilatedConv2d(8, 4, dilation=3)
        >>> input = torch.randn(2, 8, 9, 10)
        >>> torch.allclose(layer(input), layer.conv(input), atol=1e-6)
        True
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        dilation: int = 2,
        bias: bool = True,
        *,
        interaction: str = "shared",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        name = "SmoothedDilatedConv2d"
        in_channels, out_channels = numbers(name, least=0, in_channels=in_channels, out_channels=out_channels)
        kernel_size, dilation = numbers(name, kernel_size=kernel_size, dilation=dilation)
        if kernel_size % 2 == 0:
            raise ValueError(f"{name}(): expected kernel_size to be odd, but got {kernel_size}")
        if interaction not in ("shared", "group"):
            raise ValueError(f"{name}(): expected interaction to be 'shared' or 'group', but got {interaction!r}")
        options: dict[str, Any] = {"device": device, "dtype": dtype}
        self.interaction = interaction
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, padding="same", dilation=dilation, bias=bias, **options
        )
        side = 2 * dilation - 1 if interaction == "shared" else dilation**2
        self.smoothing = nn.Parameter(torch.empty(side, side, **options))
        self._start()

    def _start(self) -> None:
        with torch.no_grad():
            if self.interaction == "shared":
                centre = self.smoothing.shape[0] // 2
                self.smoothing.zero_()[centre, centre] = 1
            else:
                nn.init.eye_(self.smoothing)

    def reset_parameters(self) -> None:
        """Reset the parameters to their initial values."""
        super().reset_parameters()
        self._start()

    def forward(self, input: Tensor) -> Tensor:
        if self.interaction == "shared":
            channels, reach = self.conv.in_channels, self.smoothing.shape[0] // 2
            filters = self.smoothing.expand(channels, 1, -1, -1)
            return self.conv(F.conv2d(input, filters, padding=reach, groups=channels))
        return self._by_grids(input)

    def _by_grids(self, input: Tensor) -> Tensor:
        d = self.conv.dilation[0]
        batch, channels, height, width = input.shape
        padded = F.pad(input, (0, -width % d, 0, -height % d))
        rows, columns = padded.shape[2] // d, padded.shape[3] // d
        grids = padded.view(batch, channels, rows, d, columns, d).permute(0, 3, 5, 1, 2, 4)
        apart = F.pad(grids.reshape(batch * d * d, channels, rows, columns), same_padding(self.conv.kernel_size))
        outputs = F.conv2d(apart, self.conv.weight, self.conv.bias).view(batch, d * d, -1, rows, columns)
        mixed = torch.einsum("bjchw,ji->bichw", outputs, self.smoothing)
        together = mixed.view(batch, d, d, -1, rows, columns).permute(0, 3, 4, 1, 5, 2)
        return together.reshape(batch, -1, rows * d, columns * d)[..., :height, :width]

    def extra_repr(self) -> str:
        return f"interaction={self.interaction!r}"
