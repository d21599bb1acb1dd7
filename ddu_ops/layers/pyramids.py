"""Pyramids of dilated convolutions, and the heads for segmentation that are made of them."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddu_ops.layers._common import (
    CONV,
    MEAN,
    Composed,
    axes_of,
    conv_norm_relu,
    numbers,
    rates_of,
    run,
    spread,
)
from ddu_ops.layers.blocks import MultiScale, SeparableConv
from ddu_ops.modules import (
    DilationPredictor,
    DynamicDilationConv1d,
    DynamicDilationConv2d,
    DynamicDilationConv3d,
    check_input,
    starts_without,
)

_DYNAMIC: dict[int, Any] = {1: DynamicDilationConv1d, 2: DynamicDilationConv2d, 3: DynamicDilationConv3d}


class _Mean(nn.Sequential):
    """The mean of the image, a 1 × 1 convolution, a norm and a ReLU, repeated for every position."""

    def forward(self, input: Tensor) -> Tensor:
        return spread(super().forward(input), input)  # type: ignore[no-untyped-call]


class ASPP(Composed):
    r"""Atrous spatial pyramid pooling.

    The head of L.-C. Chen, G. Papandreou, F. Schroff and H. Adam, "Rethinking Atrous Convolution for Semantic Image
    Segmentation", 2017 (DeepLabv3): a 1 × 1 convolution, dilated ones side by side, and the mean of the image, each
    with a norm and a ReLU, combined by another 1 × 1 convolution. With ``separable=True``, as in DeepLabv3+ (L.-C. Chen
    et al., "Encoder-Decoder with Atrous Separable Convolution for Semantic Image Segmentation", 2018), the dilated ones
    are :class:`SeparableConv`\ s. It has the parameter names of torchvision's ``ASPP`` and loads its state.

    Args:
        in_channels: channels of the input.
        out_channels: channels of every branch, and of the output. Default: 256.
        rates: the rates of the dilated branches. The default is for an input with output stride 16; for 8, double the
            rates. Default: (6, 12, 18).
        separable: whether to use the branches of DeepLabv3+. Default: ``False``.
        dropout: of the output. Default: 0.5.
        checkpoint: recomputes the branches in the backward. Default: ``False``.
        axes: the number of axes. Default: 2.
        device, dtype: as in :class:`torch.nn.Conv2d`.

    Shape:
        - input: :math:`(B, C_{in}, *)`. Output: :math:`(B, C_{out}, *)`, of the same size.

    Example:
        >>> head = layers.ASPP(8, 4, rates=(1, 2, 3), separable=True)
        >>> head(torch.randn(2, 8, 16, 16)).shape
        torch.Size([2, 4, 16, 16])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int = 256,
        rates: Sequence[int] = (6, 12, 18),
        *,
        separable: bool = False,
        dropout: float = 0.5,
        checkpoint: bool = False,
        axes: int = 2,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        axes = axes_of(name, axes)
        in_channels, out_channels = numbers(name, in_channels=in_channels, out_channels=out_channels)
        rates = rates_of(name, rates)
        self.checkpoint = checkpoint
        options: dict[str, Any] = {"device": device, "dtype": dtype}
        conv = CONV[axes]

        def rest(first: nn.Module) -> list[nn.Module]:
            return conv_norm_relu(first, out_channels, axes, **options)

        def dilated(rate: int) -> nn.Module:
            window: dict[str, Any] = {"padding": rate, "dilation": rate, "bias": False, **options}
            if separable:
                return SeparableConv(in_channels, out_channels, 3, axes=axes, **window)
            return self._dilated(in_channels, out_channels, axes, **window)

        point = nn.Sequential(*rest(conv(in_channels, out_channels, 1, bias=False, **options)))
        branches = [self._branch(*rest(dilated(rate))) for rate in rates]
        mean = _Mean(MEAN[axes](1), *rest(conv(in_channels, out_channels, 1, bias=False, **options)))
        self.convs = nn.ModuleList([point, *branches, mean])
        together = conv(len(self.convs) * out_channels, out_channels, 1, bias=False, **options)
        self.project = nn.Sequential(*rest(together), nn.Dropout(dropout))

    _branch: type[nn.Module] = nn.Sequential

    def _dilated(self, in_channels: int, out_channels: int, axes: int, **window: Any) -> nn.Module:
        return CONV[axes](in_channels, out_channels, 3, **window)

    def _branches(self, input: Tensor) -> Tensor:
        return torch.cat([conv(input) for conv in self.convs], 1)

    def forward(self, input: Tensor) -> Tensor:
        return self.project(run(self._branches, input, again=self.checkpoint))


class _Scaled(nn.Sequential):
    """A dynamic convolution with the map that it is given, a norm and a ReLU."""

    def forward(self, input: Tensor, dilation_map: Tensor) -> Tensor:  # type: ignore[override]
        conv, norm, relu = self
        return relu(norm(conv(input, dilation_map)))


class DynamicASPP(ASPP):
    """Atrous spatial pyramid pooling whose branches share one dynamic rate.

    :class:`ASPP` with one :class:`~ddu_ops.DilationPredictor` that scales the whole pyramid, position by position: a
    branch with the fixed rate ``r`` has ``r`` times the map as its rates. It starts as the pyramid without a map, and
    also loads the state of :class:`ASPP` and of torchvision's, with all predicted rates one.

    Args:
        in_channels, out_channels, rates, dropout, checkpoint, axes: as in :class:`ASPP`.
        bounds, pace: of the dynamic rate: see :class:`~ddu_ops.DilationPredictor`. Default: (0, 4) and 0.1.
        device, dtype: as in :class:`torch.nn.Conv2d`.

    Shape:
        - input: :math:`(B, C_{in}, *)`. Output: :math:`(B, C_{out}, *)`, of the same size.

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
        dropout: float = 0.5,
        checkpoint: bool = False,
        axes: int = 2,
        bounds: tuple[float, float] | None = (0.0, 4.0),
        pace: float = 0.1,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        options: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__(in_channels, out_channels, rates, dropout=dropout, checkpoint=checkpoint, axes=axes, **options)
        self.rate = DilationPredictor(in_channels, 3, padding=1, axes=axes, bounds=bounds, pace=pace, **options)

    _branch = _Scaled

    def _dilated(self, in_channels: int, out_channels: int, axes: int, **window: Any) -> nn.Module:
        return _DYNAMIC[axes](in_channels, out_channels, 3, predict=False, **window)

    def _branches(self, input: Tensor) -> Tensor:
        point: Any = self.convs[0]
        check_input(type(self).__name__, input, len(point[0].kernel_size), point[0].in_channels)
        dilation_map = self.rate(input)
        first, last = self.convs[0], self.convs[-1]
        scaled = [conv(input, dilation_map) for conv in self.convs[1:-1]]
        return torch.cat([first(input), *scaled, last(input)], 1)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        if any(key.startswith(prefix + "convs.") for key in state_dict):
            starts_without(self.rate, state_dict, prefix, "rate")
        super()._load_from_state_dict(state_dict, prefix, *rest)


class DeepLabV2Head(MultiScale):
    r"""Classifiers of different dilation rates whose results are added.

    Of L.-C. Chen et al., "DeepLab: Semantic Image Segmentation with Deep Convolutional Nets, Atrous Convolution, and
    Fully Connected CRFs", 2016, in the form that has become usual: each branch is one convolution.

    Args:
        in_channels: channels of the input.
        num_classes: channels of the output.
        rates: Default: (6, 12, 18, 24).
        options: of :class:`MultiScale`, but for ``fuse``.
        device, dtype: as in :class:`torch.nn.Conv2d`.

    Shape:
        - input: :math:`(B, C, H, W)`. Output: :math:`(B, \text{classes}, H, W)`.

    Example:
        >>> head = layers.DeepLabV2Head(8, 21)
        >>> head(torch.randn(2, 8, 16, 16)).shape
        torch.Size([2, 21, 16, 16])
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        rates: Sequence[int] = (6, 12, 18, 24),
        *,
        device: Any = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        (num_classes,) = numbers("DeepLabV2Head", num_classes=num_classes)
        super().__init__(in_channels, num_classes, rates, fuse="sum", device=device, dtype=dtype, **options)


class DeepLabV3Head(Composed, nn.Sequential):
    r"""A pyramid, a 3 × 3 convolution with norm and ReLU, and a classifier.

    The head of DeepLabv3 as in torchvision, whose state it loads: see :class:`ASPP`.

    Args:
        in_channels: channels of the input.
        num_classes: channels of the output.
        rates: of the pyramid. Default: (12, 24, 36), for output stride 8.
        channels: between pyramid and classifier. Default: 256.
        dynamic: whether the pyramid is a :class:`DynamicASPP`. Default: ``False``.
        options: of the pyramid.

    Shape:
        - input: :math:`(B, C, H, W)`. Output: :math:`(B, \text{classes}, H, W)`.

    Example:
        >>> head = layers.DeepLabV3Head(8, 21, channels=16, dynamic=True)
        >>> head(torch.randn(2, 8, 16, 16)).shape
        torch.Size([2, 21, 16, 16])
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        rates: Sequence[int] = (12, 24, 36),
        *,
        channels: int = 256,
        dynamic: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        name, place = "DeepLabV3Head", {"device": device, "dtype": dtype}
        num_classes, channels = numbers(name, num_classes=num_classes, channels=channels)
        pyramid = DynamicASPP if dynamic else ASPP
        super().__init__(
            pyramid(in_channels, channels, rates, **options, **place),
            *conv_norm_relu(nn.Conv2d(channels, channels, 3, padding=1, bias=False, **place), channels, 2, **place),
            nn.Conv2d(channels, num_classes, 1, **place),
        )


class EfficientASPP(Composed, nn.Sequential):
    """A pyramid in fewer channels: a 1 × 1 convolution reduces them, dilated ones read, another 1 × 1 expands.

    Args:
        in_channels, out_channels: of input and output.
        reduced_channels: in between, as many for each branch.
        rates: of the branches. Default: (3, 6, 9).
        axes: the number of axes. Default: 2.
        device, dtype: as in :class:`torch.nn.Conv2d`.

    Shape:
        - input: :math:`(B, C_{in}, *)`. Output: :math:`(B, C_{out}, *)`, of the same size.

    Example:
        >>> head = layers.EfficientASPP(8, 16, 4)
        >>> head(torch.randn(2, 8, 16, 16)).shape
        torch.Size([2, 16, 16, 16])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        reduced_channels: int,
        rates: Sequence[int] = (3, 6, 9),
        *,
        axes: int = 2,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        name = "EfficientASPP"
        axes = axes_of(name, axes)
        in_channels, out_channels = numbers(name, in_channels=in_channels, out_channels=out_channels)
        (reduced_channels,) = numbers(name, reduced_channels=reduced_channels)
        rates = rates_of(name, rates)
        conv = CONV[axes]
        options: dict[str, Any] = {"device": device, "dtype": dtype}
        wide = len(rates) * reduced_channels
        super().__init__(
            *conv_norm_relu(
                conv(in_channels, reduced_channels, 1, bias=False, **options), reduced_channels, axes, **options
            ),
            *conv_norm_relu(
                MultiScale(reduced_channels, wide, rates, bias=False, axes=axes, **options), wide, axes, **options
            ),
            *conv_norm_relu(conv(wide, out_channels, 1, bias=False, **options), out_channels, axes, **options),
        )


class _DenseBlock(Composed, nn.Sequential):
    """With the published names."""

    def __init__(
        self, in_channels: int, hidden: int, growth: int, rate: int, dropout: float, norm: bool, **options: Any
    ) -> None:
        super().__init__()
        if norm:
            self.norm1 = nn.BatchNorm2d(in_channels, momentum=3e-4, **options)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(in_channels, hidden, 1, **options)
        self.norm2 = nn.BatchNorm2d(hidden, momentum=3e-4, **options)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(hidden, growth, 3, padding=rate, dilation=rate, **options)
        self.drop = nn.Dropout2d(dropout)


class DenseASPP(Composed):
    """A sequence of dilated convolutions, each of which reads the results of all previous ones.

    From M. Yang et al., "DenseASPP for Semantic Segmentation in Street Scenes", CVPR 2018: the result of each branch is
    concatenated in front of the features for the following branches. The names are the published ones, ``ASPP_3`` to
    ``ASPP_24``.

    Args:
        in_channels: channels of the input.
        rates: Default: (3, 6, 12, 18, 24).
        hidden: channels in front of each dilated convolution. Default: 128.
        growth: channels that each branch adds. Default: 64.
        dropout: of whole channels of a branch. Default: 0.1.
        checkpoint: recomputes each branch in the backward. Default: ``False``.
        device, dtype: as in :class:`torch.nn.Conv2d`.

    Attributes:
        out_channels: ``in_channels`` and ``growth`` for every rate.

    Shape:
        - input: :math:`(B, C, H, W)`. Output: :math:`(B, C_{out}, H, W)`, the last branch first, the input last.

    Example:
        >>> head = layers.DenseASPP(8, hidden=16, growth=4)
        >>> head(torch.randn(2, 8, 16, 16)).shape
        torch.Size([2, 28, 16, 16])
    """

    def __init__(
        self,
        in_channels: int,
        rates: Sequence[int] = (3, 6, 12, 18, 24),
        *,
        hidden: int = 128,
        growth: int = 64,
        dropout: float = 0.1,
        checkpoint: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        in_channels, hidden, growth = numbers("DenseASPP", in_channels=in_channels, hidden=hidden, growth=growth)
        rates = rates_of("DenseASPP", rates)
        if len(set(rates)) != len(rates):
            raise ValueError(
                f"DenseASPP(): expected rates to differ, because they name the branches, but got {tuple(rates)}"
            )
        self.checkpoint = checkpoint
        options: dict[str, Any] = {"device": device, "dtype": dtype}
        for index, rate in enumerate(rates):
            channels = in_channels + index * growth
            block = _DenseBlock(channels, hidden, growth, rate, dropout, norm=index > 0, **options)
            self.add_module(f"ASPP_{rate}", block)
        self.out_channels = in_channels + len(rates) * growth

    def forward(self, input: Tensor) -> Tensor:
        for block in self.children():
            input = torch.cat([run(block, input, again=self.checkpoint), input], 1)
        return input


class Segmenter(Composed):
    r"""A backbone and a head, whose result is upsampled to the size of the image.

    Args:
        backbone: from :math:`(B, C, H, W)` to features; :func:`replace_stride_with_dilation` keeps their resolution.
        head: from the features to classes, such as :class:`DeepLabV3Head`.

    Shape:
        - input: :math:`(B, C, H, W)`. Output: :math:`(B, \text{classes}, H, W)`.

    Example:
        >>> backbone = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, 2, 1), torch.nn.ReLU())
        >>> net = layers.Segmenter(backbone, layers.DeepLabV2Head(8, 19))
        >>> net(torch.randn(2, 3, 16, 16)).shape
        torch.Size([2, 19, 16, 16])
    """

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, input: Tensor) -> Tensor:
        return F.interpolate(self.head(self.backbone(input)), input.shape[2:], mode="bilinear")
