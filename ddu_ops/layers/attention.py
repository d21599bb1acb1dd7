"""Layers that sum over windows: attention, DCNv4, involution, pooling.

None of them stores columns. Layers that replace a published layer use its names and load its state.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function

import ddu_ops.sums
from ddu_ops._options import Ints, integer, ints, one_or_more
from ddu_ops.layers._common import Composed, numbers, real, reals
from ddu_ops.modules import DilationPredictor, _given_or, _may_be_left_out, _StartsAtZero, starts_without
from ddu_ops.offsets import from_dcnv4

#: How taps outside the image are treated.
OUTSIDE = ("zero", "exclude")


def _function(stem: str, axes: int) -> Callable[..., Any]:
    return getattr(ddu_ops.sums, f"{stem}{axes}d")


# fx does not know sizes and types, so a call that depends on them is kept as one node of the graph.


def _times(rates: Tensor, dilation_map: Tensor | None, input: Tensor) -> Tensor:
    """The rates of a layer times the map, if there is one, in a type that does not round positions."""
    tensors = (rates, dilation_map, input)
    if has_torch_function(tensors):
        return handle_torch_function(_times, tensors, *tensors)
    rates = rates.to(torch.promote_types(input.dtype, torch.float32))
    return rates if dilation_map is None else rates * dilation_map


def _share(input: Tensor, kernel: tuple[int, ...], stride: Ints, padding: Ints, dilation: Ints) -> Tensor:
    """The mask of a mean, with equal factors."""
    if has_torch_function((input,)):
        return handle_torch_function(_share, (input,), input, kernel, stride, padding, dilation)
    taps = math.prod(kernel)
    out = ddu_ops.grid_size(tuple(input.shape[2:]), kernel, stride, padding, dilation)
    return input.new_full((), 1 / taps).expand(1, taps, *out)


def window_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel_size: Ints,
    dilation_map: Tensor,
    *,
    num_heads: int = 1,
    groups: int = 1,
    scale: float | None = None,
    bias: Tensor | None = None,
    outside: str = "zero",
    dropout: float = 0.0,
) -> Tensor:
    r"""Attend from every position to a window around it, whose dilation rate is read from a map.

    For each head, the scaled products of query and keys go through a softmax over the taps of the window, which weights
    the values at the same taps. Keys and values are interpolated between pixels. Neither is unfolded: see
    :func:`ddu_ops.dynamic_dilation_correlate2d` and :func:`ddu_ops.dynamic_dilation_aggregate2d`.

    Args:
        query, key, value: images of the same size, whose channels are divided among the heads.
        kernel_size: taps of the window, odd numbers, so that it is centred on its position.
        dilation_map: the dilation rates, as in :func:`ddu_ops.dynamic_dilation_unfold`.
        num_heads: number of attention heads. Default: 1.
        groups: number of groups of channels, each with its own rates; it divides ``num_heads``. Default: 1.
        scale: factor of the scores. Default: ``None``, one over the square root of a head's channels.
        bias: added to the scores, one for each head and tap. Default: ``None``.
        outside: ``"zero"`` uses keys and values of zero for taps outside the image, which take part in the softmax, as
            with ``nn.Unfold``; ``"exclude"`` excludes taps without a pixel of the image from the softmax.
            Default: ``"zero"``.
        dropout: fraction of the weights that is set to zero. Default: 0.

    Shape:
        - query, key, value: :math:`(B, C, *\text{size})`, on one to three axes.
        - dilation_map: :math:`(B, G, *\text{size})` or a rate per axis.
        - bias: :math:`(\text{heads}, K)`.
        - Output: :math:`(B, C, *\text{size})`.

    Raises:
        ValueError: for an even ``kernel_size``, an unknown ``outside``, and if ``groups`` does not divide the heads.

    Example:
        >>> query, key, value = torch.randn(3, 2, 8, 6, 7)
        >>> layers.window_attention(query, key, value, 3, torch.full((2, 1, 6, 7), 1.5), num_heads=4).shape
        torch.Size([2, 8, 6, 7])
    """
    tensors = (query, key, value, dilation_map, bias)
    if has_torch_function(tensors):
        return handle_torch_function(
            window_attention,
            tensors,
            *(query, key, value, kernel_size, dilation_map),
            num_heads=num_heads,
            groups=groups,
            scale=scale,
            bias=bias,
            outside=outside,
            dropout=dropout,
        )
    axes = query.dim() - 2
    name = "window_attention"
    kernel = _odd(kernel_size, axes, name)
    if outside not in OUTSIDE:
        raise ValueError(f"{name}(): expected outside to be 'zero' or 'exclude', but got {outside!r}")
    num_heads = integer(num_heads, "num_heads", name, ValueError, least=1)
    groups = integer(groups, "groups", name, ValueError, least=1)
    if num_heads % groups != 0:
        raise ValueError(f"{name}(): expected groups to divide the {num_heads} heads, but got {groups}")
    taps, size = math.prod(kernel), query.shape[2:]
    window = (kernel, dilation_map, 1, tuple(k // 2 for k in kernel), 1, groups)
    correlate, aggregate = _function("dynamic_dilation_correlate", axes), _function("dynamic_dilation_aggregate", axes)
    scale = (query.shape[1] // num_heads) ** -0.5 if scale is None else scale
    scores = correlate(query * scale, key, *window, mask_groups=num_heads)
    scores = scores.unflatten(1, (num_heads, taps))
    if bias is not None:
        scores = scores + bias.view(num_heads, taps, *[1] * axes)
    if outside == "exclude":
        # The weights of the pixels around a tap sum to zero if none of them lies in the image.
        ones = torch.ones((), dtype=key.dtype, device=key.device).expand(key.shape[0], groups, *size)
        with torch.no_grad():
            covered = correlate(ones, ones, *window, mask_groups=groups).unflatten(1, (groups, taps)) != 0
        scores = scores.masked_fill(covered.repeat_interleave(num_heads // groups, 1).logical_not(), -math.inf)
    weights = scores.softmax(2)
    weights = nn.functional.dropout(weights, dropout) if dropout > 0 else weights
    return aggregate(value, weights.flatten(1, 2), *window)


def _odd(kernel_size: Ints, axes: int, name: str) -> tuple[int, ...]:
    kernel = ints(kernel_size, axes, "kernel_size", name, ValueError, least=1)
    if any(k % 2 == 0 for k in kernel):
        raise ValueError(f"{name}(): expected kernel_size to be odd, but got {kernel}")
    return kernel


class _NeighborhoodAttention(Composed):
    axes: int
    rates: Tensor  # (1, groups, 1, ...)

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        kernel_size: Ints = 7,
        rates: float | Sequence[float] = 1.0,
        *,
        qkv_bias: bool = True,
        position_bias: bool = False,
        outside: str = "exclude",
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        predict: bool = False,
        bounds: tuple[float, float] | None = (0.0, 4.0),
        pace: float = 0.1,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        name, options = type(self).__name__, {"device": device, "dtype": dtype}
        fixed = reals(name, "rates", rates)
        dim, self.num_heads = numbers(name, dim=dim, num_heads=num_heads)
        self.groups = len(fixed)
        self.kernel_size = _odd(kernel_size, self.axes, name)
        if dim % self.num_heads != 0:
            raise ValueError(f"{name}(): expected num_heads to divide the {dim} channels, but got {num_heads}")
        if self.num_heads % self.groups != 0:
            raise ValueError(f"{name}(): expected as many rates as divide the {num_heads} heads, but got {len(fixed)}")
        if outside not in OUTSIDE:
            raise ValueError(f"{name}(): expected outside to be 'zero' or 'exclude', but got {outside!r}")
        if predict and self.axes != 2:
            raise ValueError(f"{name}(): expected predict to be False, because a predictor is for images, but got True")
        self.outside, self.attn_drop = outside, attn_drop
        conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[self.axes - 1]
        self.qkv = conv(dim, 3 * dim, 1, bias=qkv_bias, **options)
        self.proj = conv(dim, dim, 1, **options)
        self.proj_drop = nn.Dropout(proj_drop)
        self._fixed = fixed
        self.register_buffer("rates", torch.empty(1, self.groups, *[1] * self.axes, **options))
        self.position_bias = (
            nn.Parameter(torch.empty(self.num_heads, math.prod(self.kernel_size), **options)) if position_bias else None
        )
        self.rate = (
            DilationPredictor(dim, 3, padding=1, dilation_groups=self.groups, bounds=bounds, pace=pace, **options)
            if predict
            else None
        )
        self._start()

    def _start(self) -> None:
        with torch.no_grad():
            for group, rate in enumerate(self._fixed):
                self.rates[:, group].fill_(rate)
            if self.position_bias is not None:
                self.position_bias.zero_()

    def reset_parameters(self) -> None:
        """Reset the parameters to their initial values."""
        super().reset_parameters()
        self._start()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        if self.rate is not None and f"{prefix}qkv.weight" in state_dict:
            starts_without(self.rate, state_dict, prefix, "rate")
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def forward(self, input: Tensor, dilation_map: Tensor | None = None) -> Tensor:
        query, key, value = self.qkv(input).chunk(3, 1)
        if self.rate is not None and (dilation_map is None or _may_be_left_out(dilation_map)):
            dilation_map = _given_or(dilation_map, self.rate(input))
        attended = window_attention(
            query,
            key,
            value,
            self.kernel_size,
            _times(self.rates, dilation_map, query),
            num_heads=self.num_heads,
            groups=self.groups,
            bias=self.position_bias,
            outside=self.outside,
            dropout=self.attn_drop if self.training else 0.0,
        )
        return self.proj_drop(self.proj(attended))


class NeighborhoodAttention1d(_NeighborhoodAttention):
    """:class:`NeighborhoodAttention2d` of a signal, :math:`(B, C, W)`, without ``predict``.

    Example:
        >>> layers.NeighborhoodAttention1d(8, 2, 3)(torch.randn(2, 8, 6)).shape
        torch.Size([2, 8, 6])
    """

    axes = 1


class NeighborhoodAttention2d(_NeighborhoodAttention):
    r"""Self-attention of every position to a window around it, with dilation rates for groups of heads.

    The neighbourhood attention of A. Hassani, S. Walton, J. Li, S. Li and H. Shi, "Neighborhood Attention Transformer",
    CVPR 2023, and its dilated form, with rates that may be fractional: fixed for each group of heads, from a map, or
    predicted. NATTEN shifts windows that extend beyond the image. That is not possible with rates from a map, so taps
    outside are excluded from the softmax instead, or are zeros.

    Args:
        dim: channels.
        num_heads: attention heads. Default: 8.
        kernel_size: taps of the window, odd. Default: 7.
        rates: the dilation rate, or one for each of several groups of equally many heads. Default: 1.
        qkv_bias: whether queries, keys and values have a bias. Default: ``True``.
        position_bias: whether every head learns a bias for each tap. Default: ``False``.
        outside: how taps outside the image are treated: see :func:`window_attention`. Default: ``"exclude"``.
        attn_drop, proj_drop: dropout of the weights and of the output. Default: 0.
        predict: whether to multiply the rates by those of a :class:`~ddu_ops.DilationPredictor`, which start at one.
            Default: ``False``.
        bounds, pace: of the predicted rates: see :class:`~ddu_ops.DilationPredictor`. Default: (0, 4) and 0.1.
        device, dtype: as in :class:`torch.nn.Conv2d`.

    Shape:
        - input: :math:`(B, C, H, W)`.
        - dilation_map, an optional argument of ``forward``, used in place of a prediction: :math:`(B, 1, H, W)` or
          :math:`(B, G, H, W)` with a rate for each group of heads.
        - Output: :math:`(B, C, H, W)`.

    Raises:
        ValueError: for arguments that are incompatible.

    Example:
        >>> layer = layers.NeighborhoodAttention2d(8, 4, 3, rates=(1, 2), predict=True)
        >>> layer(torch.randn(2, 8, 6, 7)).shape
        torch.Size([2, 8, 6, 7])
    """

    axes = 2


class NeighborhoodAttention3d(_NeighborhoodAttention):
    """:class:`NeighborhoodAttention2d` of a volume, :math:`(B, C, D, H, W)`, without ``predict``.

    Example:
        >>> layers.NeighborhoodAttention3d(8, 2, 3)(torch.randn(2, 8, 4, 5, 6)).shape
        torch.Size([2, 8, 4, 5, 6])
    """

    axes = 3


class MultiDilatelocalAttention(Composed):
    """DilateFormer's attention over windows, with a dilation rate for each group of heads.

    J. Jiao, Y.-M. Tang, K.-Y. Lin, Y. Gao, J. Ma, Y. Wang and W.-S. Zheng, "DilateFormer: Multi-Scale Dilated
    Transformer for Visual Recognition", 2023. It has the arguments, the layout and the state of the published layer
    and the same outputs: taps outside the image are zeros that take part in the softmax.

    Args:
        dim, num_heads, qkv_bias, qk_scale, attn_drop, proj_drop, kernel_size, dilation: as published; entries of
            ``dilation`` may be fractional.
        predict: whether to multiply the rates by those of a :class:`~ddu_ops.DilationPredictor`, which start at one, so
            that the layer starts as the published one. Default: ``False``.
        bounds, pace: of the predicted rates. Default: (0, 4) and 0.1.
        device, dtype: as in :class:`torch.nn.Conv2d`.

    Shape:
        - input: :math:`(B, H, W, C)`.
        - dilation_map, an optional argument of ``forward``, used in place of a prediction: :math:`(B, 1, H, W)` or
          :math:`(B, G, H, W)` with a rate for each entry of ``dilation``.
        - Output: :math:`(B, H, W, C)`.

    Raises:
        ValueError: if the number of entries of ``dilation`` does not divide the number of heads.

    Example:
        >>> layer = layers.MultiDilatelocalAttention(12, num_heads=6)
        >>> layer(torch.randn(2, 6, 7, 12)).shape
        torch.Size([2, 6, 7, 12])
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        qkv_bias: bool = False,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        kernel_size: int = 3,
        dilation: Sequence[float] = (1, 2, 3),
        *,
        predict: bool = False,
        bounds: tuple[float, float] | None = (0.0, 4.0),
        pace: float = 0.1,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        name, options = "MultiDilatelocalAttention", {"device": device, "dtype": dtype}
        dim, num_heads = numbers(name, dim=dim, num_heads=num_heads)
        dilation = reals(name, "dilation", dilation)
        if num_heads % len(dilation) != 0 or dim % num_heads != 0:
            raise ValueError(
                f"{name}(): expected num_heads to divide the {dim} channels and to be a multiple of "
                f"the {len(dilation)} rates, but got {num_heads}"
            )
        (kernel_size,) = numbers(name, kernel_size=kernel_size)
        _odd(kernel_size, 2, name)
        self.num_heads, self.kernel_size, self.attn_drop = num_heads, kernel_size, attn_drop
        self.scale = qk_scale or (dim // num_heads) ** -0.5
        self.dilation = dilation
        self.qkv = nn.Conv2d(dim, 3 * dim, 1, bias=qkv_bias, **options)
        self.proj = nn.Linear(dim, dim, **options)
        self.proj_drop = nn.Dropout(proj_drop)
        self.rate = (
            DilationPredictor(dim, 3, padding=1, dilation_groups=len(dilation), bounds=bounds, pace=pace, **options)
            if predict
            else None
        )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        if self.rate is not None and f"{prefix}qkv.weight" in state_dict:
            starts_without(self.rate, state_dict, prefix, "rate")
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def forward(self, input: Tensor, dilation_map: Tensor | None = None) -> Tensor:
        image = input.permute(0, 3, 1, 2)
        query, key, value = self.qkv(image).chunk(3, 1)
        # Not a buffer, which the published state does not have, and which would be uninitialised after skip_init.
        rates = torch.cat([query.new_full((1, 1, 1, 1), rate, dtype=torch.float32) for rate in self.dilation], 1)
        if self.rate is not None and (dilation_map is None or _may_be_left_out(dilation_map)):
            dilation_map = _given_or(dilation_map, self.rate(image))
        attended = window_attention(
            query,
            key,
            value,
            self.kernel_size,
            _times(rates, dilation_map, query),
            num_heads=self.num_heads,
            groups=len(self.dilation),
            scale=self.scale,
            dropout=self.attn_drop if self.training else 0.0,
        )
        return self.proj_drop(self.proj(attended.permute(0, 2, 3, 1)))


class _Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int, activation: Callable[[], nn.Module], drop: float, **options: Any) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden, **options)
        self.act = activation()
        self.fc2 = nn.Linear(hidden, dim, **options)
        self.drop = nn.Dropout(drop)

    def forward(self, input: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(self.act(self.fc1(input)))))


class DilateBlock(Composed):
    """A block of DilateFormer's first stages: :class:`MultiDilatelocalAttention` and a perceptron, both with shortcuts.

    It has the arguments, the state and the outputs of the published block.

    Args:
        dim, num_heads, mlp_ratio, qkv_bias, qk_scale, drop, attn_drop: as published.
        act_layer, norm_layer, kernel_size, dilation: as published.
        cpe_per_block: as published: whether the block starts with a depthwise convolution, the position embedding.
        predict, bounds, pace: as in :class:`MultiDilatelocalAttention`.
        device, dtype: as in :class:`torch.nn.Conv2d`. Layers of ``norm_layer`` are created without them and then moved.

    Shape:
        - input: :math:`(B, C, H, W)`.
        - Output: :math:`(B, C, H, W)`.

    Example:
        >>> block = layers.DilateBlock(12, 6, predict=True)
        >>> block(torch.randn(2, 12, 6, 7)).shape
        torch.Size([2, 12, 6, 7])
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = False,
        qk_scale: float | None = None,
        drop: float = 0.0,
        attn_drop: float = 0.0,
        act_layer: Callable[[], nn.Module] = nn.GELU,
        norm_layer: Callable[[int], nn.Module] = nn.LayerNorm,
        kernel_size: int = 3,
        dilation: Sequence[float] = (1, 2, 3),
        cpe_per_block: bool = False,
        *,
        predict: bool = False,
        bounds: tuple[float, float] | None = (0.0, 4.0),
        pace: float = 0.1,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        options: dict[str, Any] = {"device": device, "dtype": dtype}
        dim, num_heads = numbers("DilateBlock", dim=dim, num_heads=num_heads)
        self.pos_embed = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, **options) if cpe_per_block else None
        self.norm1 = norm_layer(dim).to(**options)
        self.attn = MultiDilatelocalAttention(
            dim,
            num_heads,
            qkv_bias,
            qk_scale,
            attn_drop,
            kernel_size=kernel_size,
            dilation=dilation,
            predict=predict,
            bounds=bounds,
            pace=pace,
            **options,
        )
        self.norm2 = norm_layer(dim).to(**options)
        self.mlp = _Mlp(dim, int(dim * mlp_ratio), act_layer, drop, **options)

    def forward(self, input: Tensor) -> Tensor:
        image = input if self.pos_embed is None else input + self.pos_embed(input)
        rows = image.permute(0, 2, 3, 1)
        rows = rows + self.attn(self.norm1(rows))
        rows = rows + self.mlp(self.norm2(rows))
        return rows.permute(0, 3, 1, 2)


class _StartsAtZeroOfRows(_StartsAtZero):
    """A linear layer that starts at zero, and that initialisation loops over torch's layers skip."""

    def __init__(self, in_features: int, out_features: int, **options: Any) -> None:
        nn.Module.__init__(self)
        self.weight = nn.Parameter(torch.empty(out_features, in_features, **options))
        self.bias = nn.Parameter(torch.empty(out_features, **options))
        self.reset_parameters()

    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.linear(input, self.weight, self.bias)

    def extra_repr(self) -> str:
        out_features, in_features = self.weight.shape
        return f"{in_features}, {out_features}"


class _XavierLinear(nn.Linear):
    def reset_parameters(self) -> None:
        nn.init.xavier_uniform_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


def _sides(input: Tensor, shape: tuple[int, int] | None) -> tuple[int, int]:
    """Height and width of an image whose positions are listed row by row."""
    if has_torch_function((input, shape)):
        return handle_torch_function(_sides, (input, shape), input, shape)
    return (math.isqrt(input.shape[1]),) * 2 if shape is None else shape


class DCNv4(Composed):
    r"""The deformable operator of DCNv4 between two linear layers.

    Y. Xiong, Z. Li, Y. Chen and others, "Efficient Deformable ConvNets: Rethinking Dynamic and Sparse Operator for
    Vision Applications", CVPR 2024: every position predicts an offset and an unbounded factor for each tap of each
    group, and sums the taps. The layer has the arguments, the layout and the state of the published one and runs on
    every device. In addition it supports any stride, and groups of any number of channels.

    Args:
        channels, kernel_size, stride, pad, dilation, group, dw_kernel_size, center_feature_scale: as published.
        offset_scale: as published. It scales the whole window, so it is a static dilation rate.
        remove_center, output_bias, without_pointwise: as published.
        device, dtype: as in :class:`torch.nn.Conv2d`.

    Shape:
        - input: :math:`(B, L, C)`, the positions of an image row by row.
        - shape, an optional argument of ``forward``: the height and the width of the image. Default: a square.
        - Output: :math:`(B, L_{out}, C)`.

    Raises:
        ValueError: if ``group`` does not divide the channels, and for ``remove_center`` with a kernel without a centre.

    Example:
        >>> layer = layers.DCNv4(16, group=2)
        >>> layer(torch.randn(2, 42, 16), shape=(6, 7)).shape
        torch.Size([2, 42, 16])
    """

    def __init__(
        self,
        channels: int = 64,
        kernel_size: int = 3,
        stride: int = 1,
        pad: int = 1,
        dilation: int = 1,
        group: int = 4,
        offset_scale: float = 1.0,
        dw_kernel_size: int | None = None,
        center_feature_scale: bool = False,
        remove_center: bool = False,
        output_bias: bool = True,
        without_pointwise: bool = False,
        *,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        options: dict[str, Any] = {"device": device, "dtype": dtype}
        channels, group = numbers("DCNv4", channels=channels, group=group)
        kernel_size, stride, dilation = numbers("DCNv4", kernel_size=kernel_size, stride=stride, dilation=dilation)
        (pad,) = numbers("DCNv4", least=0, pad=pad)
        if dw_kernel_size is not None:
            (dw_kernel_size,) = numbers("DCNv4", dw_kernel_size=dw_kernel_size)
        if channels % group != 0:
            raise ValueError(f"DCNv4(): expected group to divide the {channels} channels, but got {group}")
        if remove_center and kernel_size % 2 == 0:
            raise ValueError(f"DCNv4(): expected kernel_size to be odd with remove_center=True, but got {kernel_size}")
        self.channels, self.kernel_size, self.stride, self.pad = channels, kernel_size, stride, pad
        self.dilation, self.group, self.offset_scale = dilation, group, real("DCNv4", "offset_scale", offset_scale)
        self.remove_center, self.without_pointwise = bool(remove_center), without_pointwise
        self.offset_mask = _StartsAtZeroOfRows(channels, math.ceil(3 * group * self.points / 8) * 8, **options)
        self.offset_mask_dw = (
            nn.Conv2d(channels, channels, dw_kernel_size, padding=(dw_kernel_size - 1) // 2, groups=channels, **options)
            if dw_kernel_size is not None
            else None
        )
        self.value_proj = None if without_pointwise else _XavierLinear(channels, channels, **options)
        self.output_proj = None if without_pointwise else _XavierLinear(channels, channels, bias=output_bias, **options)
        self.center_feature_scale = center_feature_scale
        if center_feature_scale:
            self.center_feature_scale_proj_weight = nn.Parameter(torch.empty(group, channels, **options))
            self.center_feature_scale_proj_bias = nn.Parameter(torch.empty(group, **options))
            self._start()

    @property
    def points(self) -> int:
        """The number of taps of a window."""
        return self.kernel_size**2 - self.remove_center

    def reset_parameters(self) -> None:
        """Reset the parameters to their initial values: all offsets and factors are zero."""
        super().reset_parameters()
        if self.center_feature_scale:
            self._start()

    def _start(self) -> None:
        nn.init.zeros_(self.center_feature_scale_proj_weight)
        nn.init.zeros_(self.center_feature_scale_proj_bias)

    def forward(self, input: Tensor, shape: tuple[int, int] | None = None) -> Tensor:
        height, width = _sides(input, shape)
        value = input if self.value_proj is None else self.value_proj(input)
        image = value.unflatten(1, (height, width)).permute(0, 3, 1, 2)
        source = input
        if self.offset_mask_dw is not None:
            source = self.offset_mask_dw(input.unflatten(1, (height, width)).permute(0, 3, 1, 2))
            source = source.flatten(2).transpose(1, 2)
        predicted = self.offset_mask(source).unflatten(1, (height, width))
        if self.stride != 1:  # at the centres of the windows
            reach = self.dilation * (self.kernel_size - 1)
            start, out = (
                reach // 2 - self.pad,
                [(n + 2 * self.pad - reach - 1) // self.stride + 1 for n in (height, width)],
            )
            rows, columns = (
                (torch.arange(n, device=input.device) * self.stride + start).clamp(0, size - 1)
                for n, size in zip(out, (height, width), strict=True)
            )
            predicted = predicted[:, rows][:, :, columns]
        offset, mask = from_dcnv4(
            predicted,
            self.group,
            self.kernel_size,
            self.dilation,
            self.offset_scale,
            remove_center=self.remove_center,
        )
        summed = ddu_ops.sums.deform_aggregate2d(
            image, mask, self.kernel_size, offset, self.stride, self.pad, self.dilation, self.group
        )
        rows_out = summed.flatten(2).transpose(1, 2)
        if self.center_feature_scale:
            centre = nn.functional.linear(
                rows_out, self.center_feature_scale_proj_weight, self.center_feature_scale_proj_bias
            )
            share = centre.sigmoid().repeat_interleave(self.channels // self.group, 2)
            rows_out = rows_out * (1 - share) + value * share
        return rows_out if self.output_proj is None else self.output_proj(rows_out)


class Involution2d(Composed):
    """Sum every window with a kernel that is predicted from its centre, one for every 16 channels.

    D. Li, J. Hu, C. Wang and others, "Involution: Inverting the Inherence of Convolution for Visual Recognition",
    CVPR 2021. The layer has the arguments, the state and the outputs of the published one. In addition each window may
    have a dilation rate.

    Args:
        channels: channels, a multiple of 16 and of 4.
        kernel_size: taps of the window, odd.
        stride: step of the window. Default: 1.
        device, dtype: as in :class:`torch.nn.Conv2d`.

    Shape:
        - input: :math:`(B, C, H, W)`.
        - dilation_map, an optional argument of ``forward``: as in :func:`ddu_ops.dynamic_dilation_unfold`. Default: 1.
        - Output: :math:`(B, C, H_{out}, W_{out})`.

    Raises:
        ValueError: if ``channels`` is not a multiple of 16, and for an even ``kernel_size``.

    Example:
        >>> layers.Involution2d(32, 7)(torch.randn(2, 32, 6, 7)).shape
        torch.Size([2, 32, 6, 7])
    """

    reduction = 4
    group_channels = 16

    def __init__(
        self,
        channels: int,
        kernel_size: int,
        stride: int = 1,
        *,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        name, options = "Involution2d", {"device": device, "dtype": dtype}
        channels, kernel_size, stride = numbers(name, channels=channels, kernel_size=kernel_size, stride=stride)
        if channels % self.group_channels != 0:
            raise ValueError(f"{name}(): expected channels to be a multiple of 16, but got {channels}")
        (self.kernel_size, _), self.stride = _odd(kernel_size, 2, name), stride
        hidden, groups = channels // self.reduction, channels // self.group_channels
        self.conv1 = nn.Sequential()
        self.conv1.add_module("conv", nn.Conv2d(channels, hidden, 1, bias=False, **options))
        self.conv1.add_module("bn", nn.BatchNorm2d(hidden, **options))
        self.conv1.add_module("activate", nn.ReLU())
        self.conv2 = nn.Sequential()
        self.conv2.add_module("conv", nn.Conv2d(hidden, self.kernel_size**2 * groups, 1, **options))
        if stride > 1:
            self.avgpool = nn.AvgPool2d(stride, stride)

    def forward(self, input: Tensor, dilation_map: Tensor | float = 1.0) -> Tensor:
        kernels = self.conv2(self.conv1(input if self.stride == 1 else self.avgpool(input)))
        padding = self.kernel_size // 2
        return ddu_ops.sums.dynamic_dilation_aggregate2d(
            input, kernels, self.kernel_size, dilation_map, self.stride, padding
        )


class _Pool(nn.Module):
    axes: int

    def __init__(
        self,
        kernel_size: Ints,
        stride: Ints | None = None,
        padding: Ints = 0,
        dilation: Ints = 1,
        *,
        groups: int = 1,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__

        def checked(value: Any, option: str, least: int = 1) -> Ints:
            return one_or_more(value, self.axes, option, name, ValueError, least=least)

        self.kernel_size = checked(kernel_size, "kernel_size")
        self.stride = self.kernel_size if stride is None else checked(stride, "stride")
        self.padding = checked(padding, "padding", 0)
        self.dilation = checked(dilation, "dilation")
        (self.groups,) = numbers(name, groups=groups)
        self.rate = nn.Parameter(torch.empty(self.groups, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the rates to one."""
        nn.init.ones_(self.rate)

    def extra_repr(self) -> str:
        return (
            f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}, "
            f"dilation={self.dilation}, groups={self.groups}"
        )

    def _window(self, input: Tensor, dilation_map: Tensor | None) -> tuple[Any, ...]:
        rates = _times(self.rate.view(1, -1, *[1] * self.axes), dilation_map, input)
        return (self.kernel_size, rates, self.stride, self.padding, self.dilation, self.groups)


class _MaxPool(_Pool):
    def forward(self, input: Tensor, dilation_map: Tensor | None = None) -> Tensor:
        pool = _function("dynamic_dilation_max_pool", self.axes)
        return pool(input, *self._window(input, dilation_map))


class _AvgPool(_Pool):
    def forward(self, input: Tensor, dilation_map: Tensor | None = None) -> Tensor:
        kernel_size, rates, stride, padding, dilation, groups = self._window(input, dilation_map)
        mask = _share(input, ints(kernel_size, self.axes, "kernel_size", "AvgPool"), stride, padding, dilation)
        aggregate = _function("dynamic_dilation_aggregate", self.axes)
        return aggregate(input, mask, kernel_size, rates, stride, padding, dilation, groups)


class MaxPool2d(_MaxPool):
    """The largest sample of every window, with a learned dilation rate for each group of channels.

    It starts as :class:`torch.nn.MaxPool2d`, with rates of one.

    Args:
        kernel_size, stride, padding, dilation: as in :class:`torch.nn.MaxPool2d`.
        groups: number of groups of channels, each with its own rate. Default: 1.
        device, dtype: as in :class:`torch.nn.Conv2d`.

    Attributes:
        rate: the rates, one for each group. Exclude them from weight decay, which would pull them to zero.

    Shape:
        - input: :math:`(B, C, H, W)`.
        - dilation_map, an optional argument of ``forward`` that multiplies the rates: as in
          :func:`ddu_ops.dynamic_dilation_max_pool2d`.
        - Output: :math:`(B, C, H_{out}, W_{out})`.

    Example:
        >>> input = torch.randn(1, 4, 6, 6)
        >>> torch.equal(layers.MaxPool2d(3)(input), torch.nn.MaxPool2d(3)(input))
        True
    """

    axes = 2


class MaxPool1d(_MaxPool):
    """:class:`MaxPool2d` of a signal.

    Example:
        >>> layers.MaxPool1d(3)(torch.randn(2, 4, 9)).shape
        torch.Size([2, 4, 3])
    """

    axes = 1


class MaxPool3d(_MaxPool):
    """:class:`MaxPool2d` of a volume.

    Example:
        >>> layers.MaxPool3d(3)(torch.randn(2, 4, 6, 6, 6)).shape
        torch.Size([2, 4, 2, 2, 2])
    """

    axes = 3


class AvgPool2d(_AvgPool):
    """The mean of every window, with a learned dilation rate for each group of channels.

    It starts as :class:`torch.nn.AvgPool2d`, with rates of one; zeros outside the input count.

    Args:
        kernel_size, stride, padding: as in :class:`torch.nn.AvgPool2d`.
        dilation: multiplier of the rates. Default: 1.
        groups: number of groups of channels, each with its own rate. Default: 1.
        device, dtype: as in :class:`torch.nn.Conv2d`.

    Attributes:
        rate: the rates, one for each group. Exclude them from weight decay, which would pull them to zero.

    Shape:
        - input: :math:`(B, C, H, W)`.
        - dilation_map, an optional argument of ``forward`` that multiplies the rates: as in
          :func:`ddu_ops.dynamic_dilation_aggregate2d`.
        - Output: :math:`(B, C, H_{out}, W_{out})`.

    Example:
        >>> input = torch.randn(1, 4, 6, 6)
        >>> torch.allclose(layers.AvgPool2d(3)(input), torch.nn.AvgPool2d(3)(input), atol=1e-6)
        True
    """

    axes = 2


class AvgPool1d(_AvgPool):
    """:class:`AvgPool2d` of a signal.

    Example:
        >>> layers.AvgPool1d(3)(torch.randn(2, 4, 9)).shape
        torch.Size([2, 4, 3])
    """

    axes = 1


class AvgPool3d(_AvgPool):
    """:class:`AvgPool2d` of a volume.

    Example:
        >>> layers.AvgPool3d(3)(torch.randn(2, 4, 6, 6, 6)).shape
        torch.Size([2, 4, 2, 2, 2])
    """

    axes = 3
