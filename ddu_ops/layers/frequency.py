"""Frequency-adaptive dilated convolution, as published, and in three dimensions."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function

from ddu_ops._options import Ints, integer, several
from ddu_ops.functional import at_least_float32, dynamic_dilation_conv2d, dynamic_dilation_conv3d
from ddu_ops.layers._common import CONV, MEAN, Composed, numbers, numbers_per_axis, real, reset_children
from ddu_ops.modules import _given_or, _StartsAtZero, check_input

_BANDS: dict[str, Any] = {
    "k_list": (2, 4, 8),
    "fs_feat": "feat",
    "lowfreq_att": False,
    "lp_type": "freq",
    "act": "sigmoid",
    "spatial": "conv",
    "spatial_group": 1,
}


class FrequencySelection(Composed):
    r"""Weight the frequency bands of features, position by position.

    FreqSelect of L. Chen, L. Gu, D. Zheng and Y. Fu, "Frequency-Adaptive Dilated Convolution for Semantic
    Segmentation", CVPR 2024, with its options and names. The bands :math:`X_i` are the differences between consecutive
    low passes of ``k_list``. A convolution predicts the weight :math:`A_i` of each band, and the last low pass is added
    unchanged:

    .. math::
        \text{out} = X_{\text{low}} + \sum_i A_i \odot X_i.

    All weights are one at first, so the layer starts as the identity.

    Args:
        in_channels: channels of the features that the weights are predicted from.
        k_list: the low passes: with ``"freq"`` the box of :math:`1 / k` of all frequencies on each axis, with
            ``"avgpool"`` the mean over a window of :math:`k` (odd), with ``"laplacian"`` the levels of a pyramid that
            halves the size, as many as there are entries. Default: (2,).
        lowfreq_att: whether to also predict a weight for the last low pass. Default: ``True``.
        lp_type: ``"freq"``, ``"avgpool"`` or ``"laplacian"``. Default: ``"freq"``.
        act: how a weight is bounded: ``"sigmoid"``, twice a sigmoid, or ``"softmax"``, over the groups, times their
            number. Default: ``"sigmoid"``.
        spatial_group: number of channel groups, each with its own weights; more than 64 means one for each channel.
            Default: 1.
        spatial_kernel: kernel of the predictors. Default: 3.
        init: ``"zero"``; any other word means the initial values of a convolution. Default: ``"zero"``.
        global_selection: whether to also weight the real and imaginary parts of the spectrum. Default: ``False``.
        fs_feat, spatial: ``"feat"`` and ``"conv"``, the only values that the published class supports.
        axes: 2 or 3; ``"laplacian"`` and ``global_selection`` need 2. Default: 2.
        device, dtype: as in :class:`torch.nn.Conv2d`.

    Shape:
        - input: :math:`(B, C, *)`, with ``axes`` spatial axes.
        - att_feat: the features that the weights are predicted from, :math:`(B, C_{in}, *)`. Default: the input.
        - Output: as the input.

    Raises:
        ValueError: for an unsupported option, if groups do not divide ``in_channels``, and for an even
            ``spatial_kernel`` or window of ``"avgpool"``.

    Example:
        >>> select = layers.FrequencySelection(8, k_list=(2, 4, 8))
        >>> input = torch.randn(2, 8, 16, 12)
        >>> torch.allclose(select(input), input, atol=1e-6)
        True
    """

    def __init__(
        self,
        in_channels: int,
        k_list: Sequence[int] = (2,),
        lowfreq_att: bool = True,
        fs_feat: str = "feat",
        lp_type: str = "freq",
        act: str = "sigmoid",
        spatial: str = "conv",
        spatial_group: int = 1,
        spatial_kernel: int = 3,
        init: str = "zero",
        global_selection: bool = False,
        *,
        axes: int = 2,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        axes = integer(axes, "axes", "FrequencySelection", ValueError)
        (in_channels,) = numbers("FrequencySelection", least=0, in_channels=in_channels)
        spatial_group, spatial_kernel = numbers(
            "FrequencySelection", spatial_group=spatial_group, spatial_kernel=spatial_kernel
        )
        takes = {
            "fs_feat": (fs_feat, ("feat",)),
            "lp_type": (lp_type, ("freq",) if axes == 3 else ("freq", "avgpool", "laplacian")),
            "act": (act, ("sigmoid", "softmax")),
            "spatial": (spatial, ("conv",)),
            "axes": (axes, (2,) if global_selection else (2, 3)),
        }
        for name, (value, words) in takes.items():
            if value not in words:
                known = " or ".join(map(repr, words))
                raise ValueError(f"FrequencySelection(): expected {name} to be {known}, but got {value!r}")
        groups = in_channels if spatial_group > 64 else spatial_group
        if groups < 1 or in_channels % groups:
            raise ValueError(
                f"FrequencySelection(): expected spatial_group to divide in_channels = {in_channels}, but got {groups}"
            )
        self.axes = axes
        self.k_list = several(k_list, "k_list", "FrequencySelection", ValueError, least=1)
        if lp_type == "avgpool" and any(k % 2 == 0 for k in self.k_list):
            raise ValueError(
                f"FrequencySelection(): expected k_list to be odd with lp_type='avgpool', but got {self.k_list}"
            )
        if spatial_kernel % 2 == 0:
            raise ValueError(f"FrequencySelection(): expected spatial_kernel to be odd, but got {spatial_kernel}")
        if not isinstance(init, str):
            raise ValueError(f"FrequencySelection(): expected init to be a word, but got {init!r}")
        self.lowfreq_att = lowfreq_att
        self.lp_type = lp_type
        self.act = act
        self.spatial_group = groups
        self.global_selection = global_selection
        self.in_channels = in_channels
        options: dict[str, Any] = {"device": device, "dtype": dtype}

        def predictor(kernel: int) -> nn.Module:
            window: dict[str, Any] = {"padding": kernel // 2, "groups": groups, **options}
            if init == "zero":
                return _StartsAtZero(in_channels, groups, kernel, axes=axes, **window)
            return CONV[axes](in_channels, groups, kernel, **window)

        count = len(self.k_list) + lowfreq_att
        self.freq_weight_conv_list = nn.ModuleList(predictor(spatial_kernel) for _ in range(count))
        if global_selection:
            self.global_selection_conv_real = predictor(1)
            self.global_selection_conv_imag = predictor(1)

    def _weighted(self, band: Tensor, raw: Tensor) -> Tensor:
        """A band times the weights of its groups."""
        weights = 2 * raw.sigmoid() if self.act == "sigmoid" else self.spatial_group * raw.softmax(1)
        grouped = band.unflatten(1, (self.spatial_group, -1)) * weights.unsqueeze(2)
        return grouped.flatten(1, 2)

    def _low_passes(self, input: Tensor) -> list[Tensor]:
        if self.lp_type == "avgpool":
            return [F.avg_pool2d(F.pad(input, [k // 2] * 4, mode="replicate"), k, 1) for k in self.k_list]
        if self.lp_type == "laplacian":
            levels = [input]
            for _ in self.k_list:
                levels.append(_halved(levels[-1], input))
            return [_enlarged(level, input) for level in levels[1:]]
        dims = list(range(-self.axes, 0))
        # The published class shifts the channels with the frequencies, which its predictors for the spectrum notice.
        moved = [1, *dims] if self.global_selection else dims
        spectrum = torch.fft.fftshift(torch.fft.fftn(at_least_float32(input), dim=dims, norm="ortho"), dim=moved)
        if self.global_selection:
            parts = (
                self._weighted(part, conv(part.to(input.dtype)).to(part.dtype))
                for part, conv in (
                    (spectrum.real, self.global_selection_conv_real),
                    (spectrum.imag, self.global_selection_conv_imag),
                )
            )
            spectrum = torch.complex(*parts)
        low = (torch.fft.ifftshift(_boxed(spectrum, k, self.axes), dim=moved) for k in self.k_list)
        return [torch.fft.ifftn(part, dim=dims, norm="ortho").real.to(input.dtype) for part in low]

    def forward(self, input: Tensor, att_feat: Tensor | None = None) -> Tensor:
        if att_feat is None:
            check_input("FrequencySelection", input, self.axes, self.in_channels)
        source = _given_or(att_feat, input)
        rest, total = input, torch.zeros_like(input)
        for low, conv in zip(self._low_passes(input), self.freq_weight_conv_list, strict=False):
            total = total + self._weighted(rest - low, conv(source))
            rest = low
        if self.lowfreq_att:
            rest = self._weighted(rest, self.freq_weight_conv_list[-1](source))
        return total + rest

    def extra_repr(self) -> str:
        return f"k_list={self.k_list}, lp_type={self.lp_type!r}, act={self.act!r}, spatial_group={self.spatial_group}"


# fx does not know sizes, so a call that depends on them is kept as one node of the graph.


def _odd(size: Any) -> bool:
    """Whether a size, which can be a symbol or a tensor of ``torch.jit.trace``, is odd now."""
    odd = False
    if size % 2 == 1:  # a branch, which a compiler guards
        odd = True
    return odd


def _halved(level: Tensor, image: Tensor) -> Tensor:
    """The next level of a pyramid over the image."""
    if has_torch_function((level,)):
        return handle_torch_function(_halved, (level,), level, image)
    size = [n // 2 + n % 2 for n in level.shape[-2:]]
    return F.interpolate(level, size, mode="bilinear", align_corners=_odd(image.shape[-2]))


def _enlarged(level: Tensor, image: Tensor) -> Tensor:
    """A level in the size of the image."""
    if has_torch_function((level,)):
        return handle_torch_function(_enlarged, (level,), level, image)
    return F.interpolate(level, image.shape[-2:], mode="bilinear", align_corners=_odd(image.shape[-2]))


def _resized(rates: Tensor, image: Tensor) -> Tensor:
    """Rates for every pixel of the image."""
    if has_torch_function((rates,)):
        return handle_torch_function(_resized, (rates,), rates, image)
    return F.interpolate(rates, image.shape[-2:], mode="bilinear", align_corners=_odd(image.shape[-1]))


def _boxed(spectrum: Tensor, k: int, axes: int) -> Tensor:
    """The part of a shifted spectrum in the middle of every axis."""
    if has_torch_function((spectrum,)):
        return handle_torch_function(_boxed, (spectrum,), spectrum, k, axes)
    size: list[Any] = list(spectrum.shape[-axes:])
    if torch._C._get_tracing_state() is not None:  # tensors in torch.jit.trace
        size = [int(n) for n in size]
    box = torch.zeros(size, dtype=spectrum.real.dtype, device=spectrum.device)
    box[tuple(slice(round(n / 2 - n / (2 * k)), round(n / 2 + n / (2 * k))) for n in size)] = 1
    return spectrum * box


def _dct(size: int, like: Tensor) -> Tensor:
    """The orthonormal matrix of the discrete cosine transform."""
    if has_torch_function((like,)):
        return handle_torch_function(_dct, (like,), size, like)
    places = torch.arange(size, dtype=torch.float64, device=like.device)
    matrix = torch.cos(math.pi / size * torch.outer(places, places + 0.5)) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix.to(like.dtype)


class _FanOutConv2d(nn.Conv2d):
    """A convolution with the published initial values."""

    def reset_parameters(self) -> None:
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class _StartsAtRate(_StartsAtZero):
    """A predictor of rates that starts with the same rate everywhere."""

    start = 0.0

    def __init__(self, *window: Any, start: float, **options: Any) -> None:
        super().__init__(*window, **options)
        self.start = start
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the weight to zero and the bias to its initial value."""
        super().reset_parameters()
        nn.init.constant_(self.bias, self.start)


class _Attention(Composed):
    """Gains of an image's channels, filters and taps, each between 0 and 2."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        hidden: int,
        taps: int = 0,
        *,
        axes: int,
        identity: bool,
        **options: Any,
    ) -> None:
        super().__init__()
        conv = CONV[axes] if identity else _FanOutConv2d
        self.identity = identity
        self.avgpool = MEAN[axes](1)
        self.fc = conv(in_channels, hidden, 1, bias=False, **options)
        if identity:
            self.norm = nn.GroupNorm(1, hidden, **options)
        else:
            self.bn = nn.BatchNorm2d(hidden, **options)
        head: Any = _StartsAtZero if identity else conv
        place = {**options, "axes": axes} if identity else options
        self.channel_fc = head(hidden, in_channels, 1, **place)
        self.filter_fc = head(hidden, out_channels, 1, **place)
        self.spatial_fc = head(hidden, taps, 1, **place) if taps else None

    def forward(self, input: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        norm = self.norm if self.identity else self.bn
        x = norm(self.fc(self.avgpool(input))).relu()
        channels, filters = (2 * head(x).flatten(1).sigmoid() for head in (self.channel_fc, self.filter_fc))
        taps = None if self.spatial_fc is None else 2 * self.spatial_fc(x).flatten(1).sigmoid()
        return channels, filters, taps


def _gain(channels: Tensor, filters: Tensor, axes: int) -> Tensor:
    """Of every pair of a filter and a channel, (B, O, I, 1, ...)."""
    return (filters.unsqueeze(2) * channels.unsqueeze(1))[(..., *(None,) * axes)]


def _check_groups(name: str, in_channels: int, deform_groups: int) -> None:
    if in_channels % deform_groups:
        raise ValueError(
            f"{name}(): expected deform_groups to divide in_channels = {in_channels}, but got {deform_groups}"
        )


class FrequencyAdaptiveConv2d(nn.Module):
    r"""A convolution with adaptive dilation, frequency selection and adaptive kernels: FADC, as published.

    Of L. Chen, L. Gu, D. Zheng and Y. Fu, "Frequency-Adaptive Dilated Convolution for Semantic Segmentation", CVPR
    2024: the published ``AdaptiveDilatedConv`` with its arguments, names and initial values, without mmcv. It loads the
    published state dicts and has the same outputs.

    - FreqSelect weights the bands of the input: :class:`FrequencySelection`.
    - AdaKern splits the kernel into the mean over its taps and the rest, each with its own gain for each image, input
      channel and filter.
    - AdaDR predicts the rate :math:`D = 1 + d \, |z|` of every position, and a factor between 0 and 1 for every tap.

    As published, the input is padded by half a kernel, with zeros beyond, and the factors of the taps start at 0.5, so
    the layer does not start as the convolution with its weight.

    Args:
        in_channels, out_channels, stride, bias: as in :class:`torch.nn.Conv2d`.
        kernel_size: an odd number. (The published class supports only 3.)
        padding: ignored, as in the published class: the padding is always half a kernel.
        dilation: the initial rate; only the first number is used, as in the published class.
        groups: of the convolution; 1 with adaptive kernels. Default: 1.
        deform_groups: number of channel groups, each with its own rates and factors. Default: 1.
        padding_mode: of this padding: ``"repeat"`` repeats the outermost pixels; ``"zero"`` or any other word pads with
            zeros. Default: ``"repeat"``.
        kernel_decompose: AdaKern for ``"both"`` parts of the kernel, for the rest (``"high"``), for the mean
            (``"low"``), or ``None``. Default: ``"both"``.
        sp_att: whether to predict another factor that all taps of a window share. Default: ``False``.
        pre_fs: ``True`` applies FreqSelect first, with weights predicted from the features; ``False`` applies it after
            the rates, from which the weights are predicted. Default: ``True``.
        epsilon: added to the initial rate, because the gradient with respect to :math:`z` is zero at :math:`z = 0`.
            Default: 1e-4.
        use_zero_dilation: the rate is :math:`1 + d \, (\max(z + 1, 0) - 1)`, down to 0 where :math:`d = 1`. Default:
            ``False``.
        use_dct: whether AdaKern, with ``"both"``, also weights the cosine transform of the rest of the kernel, tap by
            tap. Default: ``False``.
        fs_cfg: options of FreqSelect, or ``None`` for a layer without it. Default: those of the published class.
        device, dtype: as in :class:`torch.nn.Conv2d`.

    Shape:
        - input: :math:`(B, C_{in}, H, W)`. In training, AdaKern needs more than one image.
        - Output: :math:`(B, C_{out}, H_{out}, W_{out})`, :math:`H_{out} = \lceil H / s_h \rceil`.

    Raises:
        ValueError: for an even kernel, an unknown ``kernel_decompose``, AdaKern with ``groups``, if groups do not
            divide the channels, and as :class:`FrequencySelection`.

    Example:
        >>> layer = layers.FrequencyAdaptiveConv2d(8, 4, 3, dilation=2)
        >>> layer(torch.randn(2, 8, 16, 12)).shape
        torch.Size([2, 4, 16, 12])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Ints = 3,
        stride: Ints = 1,
        padding: Ints = 0,
        dilation: Ints = 1,
        groups: int = 1,
        deform_groups: int = 1,
        bias: bool = True,
        *,
        padding_mode: str = "repeat",
        kernel_decompose: str | None = "both",
        sp_att: bool = False,
        pre_fs: bool = True,
        epsilon: float = 1e-4,
        use_zero_dilation: bool = False,
        use_dct: bool = False,
        fs_cfg: Mapping[str, Any] | None = _BANDS,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        name = "FrequencyAdaptiveConv2d"
        in_channels, out_channels = numbers(name, least=0, in_channels=in_channels, out_channels=out_channels)
        groups, deform_groups = numbers(name, groups=groups, deform_groups=deform_groups)
        window = numbers_per_axis(name, 2, kernel_size=kernel_size, stride=stride, dilation=dilation)
        numbers_per_axis(name, 2, least=0, padding=padding)
        self.kernel_size, self.stride, self.dilation = window
        if any(k % 2 == 0 for k in self.kernel_size):
            raise ValueError(f"{name}(): expected kernel_size to be odd, but got {self.kernel_size}")
        if kernel_decompose not in ("both", "high", "low", None):
            raise ValueError(
                f"{name}(): expected kernel_decompose to be 'both', 'high', 'low' or None, but got {kernel_decompose!r}"
            )
        if kernel_decompose is not None and groups != 1:
            raise ValueError(
                f"{name}(): expected groups to be 1 with kernel_decompose={kernel_decompose!r}, but got {groups}"
            )
        if in_channels % groups or out_channels % groups:
            raise ValueError(
                f"{name}(): expected groups to divide in_channels = {in_channels} and out_channels = {out_channels}, "
                f"but got {groups}"
            )
        _check_groups(name, in_channels, deform_groups)
        if not isinstance(padding_mode, str):
            raise ValueError(f"{name}(): expected padding_mode to be a word, but got {padding_mode!r}")
        epsilon = real(name, "epsilon", epsilon)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.groups = groups
        self.deform_groups = deform_groups
        self.padding_mode = padding_mode
        self.kernel_decompose = kernel_decompose
        self.pre_fs = pre_fs
        self.epsilon = epsilon
        self.use_zero_dilation = use_zero_dilation
        self.use_dct = use_dct and kernel_decompose == "both"
        options: dict[str, Any] = {"device": device, "dtype": dtype}
        taps = self.kernel_size[0] * self.kernel_size[1]
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, *self.kernel_size, **options))
        self.bias = nn.Parameter(torch.empty(out_channels, **options)) if bias else None

        def attention(taps: int = 0) -> _Attention:
            hidden = max(in_channels // 16, 16)
            return _Attention(in_channels, out_channels, hidden, taps, axes=2, identity=False, **options)

        if kernel_decompose == "both":
            self.OMNI_ATT1 = attention()
            self.OMNI_ATT2 = attention(taps if self.use_dct else 0)
        elif kernel_decompose is not None:
            self.OMNI_ATT = attention()

        def predictor(channels: int, kind: Any, **window: Any) -> Any:
            return kind(in_channels, channels, self.kernel_size, self.stride, **window, **options)

        start = (self.dilation[0] - 1) / self.dilation[0] + epsilon
        self.conv_offset = predictor(deform_groups, _StartsAtRate, start=start)
        self.conv_mask = predictor(deform_groups * taps, _StartsAtZero)
        if sp_att:
            self.conv_mask_mean_level = predictor(deform_groups, nn.Conv2d)
        if fs_cfg is not None:
            self.FS = FrequencySelection(in_channels if pre_fs else deform_groups, **fs_cfg, **options)
        self._start()

    def _start(self) -> None:
        bound = 1 / math.sqrt(self.in_channels * self.kernel_size[0] * self.kernel_size[1])
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def reset_parameters(self) -> None:
        """Reset the parameters to their initial values."""
        reset_children(self)
        self._start()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        state_dict.pop(prefix + "dilated_offset", None)  # the published class keeps the places of its taps there
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def _padded(self, input: Tensor) -> Tensor:
        height, width = (k // 2 for k in self.kernel_size)
        mode = "replicate" if self.padding_mode == "repeat" else "constant"
        return F.pad(input, (width, width, height, height), mode=mode)

    def _kernels(self, input: Tensor) -> Tensor:
        """The kernel of each image."""
        if self.kernel_decompose is None:
            return self.weight
        mean = self.weight.mean((2, 3), keepdim=True)
        rest = self.weight - mean
        if self.kernel_decompose != "both":
            channels, filters, _ = self.OMNI_ATT(input)
            gain = _gain(channels, filters, 2)
            return mean + gain * rest if self.kernel_decompose == "high" else gain * mean + rest
        channels, filters, _ = self.OMNI_ATT1(input)
        low = _gain(channels, filters, 2) * mean
        channels, filters, taps = self.OMNI_ATT2(input)
        if taps is not None:
            rows, columns = (_dct(k, rest) for k in self.kernel_size)
            weighted = (rows @ rest @ columns.mT) * taps.view(-1, 1, 1, *self.kernel_size)
            rest = rows.mT @ weighted @ columns
        return low + _gain(channels, filters, 2) * rest

    def rate(self, input: Tensor) -> Tensor:
        """The dilation map for an input, after FreqSelect if that comes first."""
        raw = at_least_float32(self.conv_offset(self._padded(input)))
        spread = (raw + 1).relu() - 1 if self.use_zero_dilation else raw.abs()
        return 1 + self.dilation[0] * spread

    def forward(self, input: Tensor) -> Tensor:
        check_input("FrequencyAdaptiveConv2d", input, 2, self.in_channels)
        select = getattr(self, "FS", None)
        if select is not None and self.pre_fs:
            input = select(input)
        kernels = self._kernels(input)
        rates = self.rate(input)
        if select is not None and not self.pre_fs:
            spread = (rates - 1).to(input.dtype)
            input = select(input, _resized(spread, input))
        padded = self._padded(input)
        mask = self.conv_mask(padded).sigmoid()
        if hasattr(self, "conv_mask_mean_level"):
            level = self.conv_mask_mean_level(padded).sigmoid()
            mask = (mask.unflatten(1, (self.deform_groups, -1)) * level.unsqueeze(2)).flatten(1, 2)
        return dynamic_dilation_conv2d(
            padded,
            kernels,
            rates,
            self.bias,
            self.stride,
            groups=self.groups,
            dilation_groups=self.deform_groups,
            mask=mask,
        )

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"dilation={self.dilation}, groups={self.groups}, deform_groups={self.deform_groups}, "
            f"padding_mode={self.padding_mode!r}, kernel_decompose={self.kernel_decompose!r}, pre_fs={self.pre_fs}"
        )


class _AdaKern3d(Composed):
    def __init__(self, in_channels: int, out_channels: int, hidden: int, taps: int, **options: Any) -> None:
        super().__init__()
        self.omni_low = _Attention(in_channels, out_channels, hidden, axes=3, identity=True, **options)
        self.omni_high = _Attention(in_channels, out_channels, hidden, taps, axes=3, identity=True, **options)

    def forward(self, input: Tensor, weight: Tensor) -> Tensor:
        mean = weight.mean((2, 3, 4), keepdim=True)
        channels, filters, _ = self.omni_low(input)
        low = _gain(channels, filters, 3) * mean
        channels, filters, taps = self.omni_high(input)
        kernels = low + _gain(channels, filters, 3) * (weight - mean)
        return kernels if taps is None else kernels * taps.view(-1, 1, 1, 3, 3, 3)


class _AdaDR3d(Composed):
    def __init__(self, in_channels: int, groups: int, start: float, **options: Any) -> None:
        super().__init__()
        self.conv_offset = _StartsAtRate(in_channels, groups, 3, start=start, axes=3, **options)
        self.conv_mask = _StartsAtZero(in_channels, 27 * groups, 3, axes=3, **options)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        for axis in "zyx":  # the places of the taps
            state_dict.pop(f"{prefix}k{axis}s_idx", None)
        super()._load_from_state_dict(state_dict, prefix, *rest)


class FrequencyAdaptiveConv3d(nn.Module):
    r"""A convolution of volumes with adaptive dilation, frequency selection and adaptive kernels.

    :class:`FrequencyAdaptiveConv2d` along three axes, after the published ``ContinuousDilatedConv3D``, whose state
    dicts it loads, with the same outputs. The differences from the layer for images: outside the input, the border is
    repeated without limit; a norm within AdaKern works with a single volume; and the gains of AdaKern start at one.

    Args:
        in_channels, out_channels: channels.
        bias: as in :class:`torch.nn.Conv3d`. Default: ``False``.
        base_dilation: the initial rate. Default: 1.
        deform_groups: number of channel groups, each with its own rates and factors. Default: 1.
        padding_mode: ``"border"`` or ``"zeros"``, of the convolution alone. Default: ``"border"``.
        fs_cfg: options of :class:`FrequencySelection`. Default: its bands 2, 4 and 8, without a weight for the last low
            pass.
        adakern_reduction, adakern_min_channel: hidden channels of AdaKern, as a fraction of the channels, and their
            minimum. Default: 0.0625 and 16.
        use_position_att: whether AdaKern also weights the taps. Default: ``False``.
        epsilon: as in :class:`FrequencyAdaptiveConv2d`. Default: 1e-4.
        device, dtype: as in :class:`torch.nn.Conv3d`.

    Shape:
        - input: :math:`(B, C_{in}, D, H, W)`. Output: :math:`(B, C_{out}, D, H, W)`.

    Example:
        >>> layer = layers.FrequencyAdaptiveConv3d(4, 6)
        >>> layer(torch.randn(1, 4, 6, 7, 8)).shape
        torch.Size([1, 6, 6, 7, 8])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        bias: bool = False,
        base_dilation: int = 1,
        deform_groups: int = 1,
        padding_mode: str = "border",
        *,
        fs_cfg: Mapping[str, Any] | None = None,
        adakern_reduction: float = 0.0625,
        adakern_min_channel: int = 16,
        use_position_att: bool = False,
        epsilon: float = 1e-4,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        name = "FrequencyAdaptiveConv3d"
        in_channels, out_channels = numbers(name, least=0, in_channels=in_channels, out_channels=out_channels)
        base_dilation, deform_groups = numbers(name, base_dilation=base_dilation, deform_groups=deform_groups)
        if padding_mode not in ("border", "zeros"):
            raise ValueError(f"{name}(): expected padding_mode to be 'border' or 'zeros', but got {padding_mode!r}")
        _check_groups(name, in_channels, deform_groups)
        epsilon = real(name, "epsilon", epsilon)
        self.base_dilation = base_dilation
        self.deform_groups = deform_groups
        self.padding_mode = padding_mode
        self.epsilon = epsilon
        options: dict[str, Any] = {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, 3, 3, 3, **options))
        self.bias = nn.Parameter(torch.empty(out_channels, **options)) if bias else None
        self.fs = FrequencySelection(in_channels, **(_BANDS if fs_cfg is None else fs_cfg), axes=3, **options)
        hidden = max(int(min(in_channels, out_channels) * adakern_reduction), adakern_min_channel)
        self.ada_kern = _AdaKern3d(in_channels, out_channels, hidden, 27 * use_position_att, **options)
        start = (base_dilation - 1) / base_dilation + epsilon
        self.adadr = _AdaDR3d(in_channels, deform_groups, start, **options)
        self._start()

    def _start(self) -> None:
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def reset_parameters(self) -> None:
        """Reset the parameters to their initial values."""
        reset_children(self)
        self._start()

    def forward(self, input: Tensor) -> Tensor:
        check_input("FrequencyAdaptiveConv3d", input, 3, self.weight.shape[1])
        selected = self.fs(input)
        kernels = self.ada_kern(selected, self.weight)
        padded = F.pad(selected, [1] * 6, mode="replicate")
        rates = 1 + self.base_dilation * at_least_float32(self.adadr.conv_offset(padded)).abs()
        return dynamic_dilation_conv3d(
            selected,
            kernels,
            rates,
            self.bias,
            padding=1,
            dilation_groups=self.deform_groups,
            mask=self.adadr.conv_mask(padded).sigmoid(),
            padding_mode=self.padding_mode,
        )

    def extra_repr(self) -> str:
        out_channels, in_channels = self.weight.shape[:2]
        return (
            f"{in_channels}, {out_channels}, base_dilation={self.base_dilation}, deform_groups={self.deform_groups}, "
            f"padding_mode={self.padding_mode!r}"
        )
