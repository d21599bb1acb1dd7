"""The public modules: they hold the options and delegate to :mod:`ddu_ops.functional`."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function

from ddu_ops._options import Ints, integer, ints, one_or_more
from ddu_ops.functional import (
    PADDING_WORDS,
    at_least_float32,
    deform_unfold1d,
    deform_unfold2d,
    deform_unfold3d,
    dynamic_dilation_conv2d,
    dynamic_dilation_fold,
    dynamic_dilation_fold1d,
    dynamic_dilation_fold3d,
    dynamic_dilation_unfold,
    dynamic_dilation_unfold1d,
    dynamic_dilation_unfold3d,
)

Pair = tuple[int, int]


def _window(
    name: str, kernel_size: Ints, stride: Ints, padding: Ints | str, dilation: Ints
) -> tuple[Pair, Pair, Pair | str, Pair]:
    """The options that a module of this name was given, as the constructor of ``Conv2d`` takes them."""

    def pair(value: Ints | str, argument: str, words: Sequence[str] = ()) -> Pair:
        height, width = ints(value, 2, argument, name, ValueError, words=words)
        return height, width

    return (
        pair(kernel_size, "kernel_size"),
        pair(stride, "stride"),
        padding if isinstance(padding, str) and padding in PADDING_WORDS else pair(padding, "padding", PADDING_WORDS),
        pair(dilation, "dilation"),
    )


# The words of torch.nn's convolutions for what lies outside the image, beside those of the operators.
_PADDING_MODES = {
    **{mode: mode for mode in ("zeros", "border", "reflection")},
    "replicate": "border",
    "reflect": "reflection",
}


def _padding_mode(word: str, name: str) -> str:
    """The operators' word for a padding mode."""
    if not isinstance(word, str) or word not in _PADDING_MODES:
        words = ", ".join(map(repr, _PADDING_MODES))
        raise ValueError(f"{name}(): expected padding_mode to be one of {words}, but got {word!r}")
    return _PADDING_MODES[word]


class _Window(nn.Module):
    """The options of a window. A subclass names the number of its axes, and the function that it is the module of."""

    _axes: int
    _function: Callable[..., Tensor]
    _padding_words: Sequence[str] = PADDING_WORDS

    def __init__(
        self,
        kernel_size: Ints,
        stride: Ints = 1,
        padding: Ints | str = 0,
        dilation: Ints = 1,
        groups: int = 1,
        *,
        padding_mode: str = "zeros",
    ) -> None:
        super().__init__()
        name, axes = type(self).__name__, self._axes
        self.kernel_size = one_or_more(kernel_size, axes, "kernel_size", name, ValueError)
        self.stride = one_or_more(stride, axes, "stride", name, ValueError)
        in_words = isinstance(padding, str) and padding in self._padding_words
        self.padding = padding if in_words else one_or_more(padding, axes, "padding", name, ValueError)
        self.dilation = one_or_more(dilation, axes, "dilation", name, ValueError)
        self.groups = integer(groups, "groups", name, ValueError)
        self.padding_mode = _padding_mode(padding_mode, name)

    def _call(self, *leading: Any, positions: Tensor, **later: Any) -> Tensor:
        return type(self)._function(
            *leading,
            self.kernel_size,
            positions,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            padding_mode=self.padding_mode,
            **later,
        )

    def extra_repr(self) -> str:
        text = (
            f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding!r}, "
            f"dilation={self.dilation}, groups={self.groups}"
        )
        return text if self.padding_mode == "zeros" else f"{text}, padding_mode={self.padding_mode}"


class _RateWindow(_Window):
    """The same with rates from a map."""

    def __init__(
        self,
        kernel_size: Ints,
        stride: Ints = 1,
        padding: Ints | str = 0,
        dilation: Ints = 1,
        groups: int = 1,
        *,
        aligned: bool = True,
        padding_mode: str = "zeros",
    ) -> None:
        super().__init__(kernel_size, stride, padding, dilation, groups, padding_mode=padding_mode)
        self.aligned = aligned

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, aligned={self.aligned}"


class _Unfold(_RateWindow):
    def forward(self, input: Tensor, dilation_map: Tensor) -> Tensor:
        return self._call(input, positions=dilation_map, aligned=self.aligned)


class DynamicDilationUnfold(_Unfold):
    """Extract sliding windows whose dilation rate is read from a map.

    The module form of :func:`~ddu_ops.dynamic_dilation_unfold`, with its arguments, shapes and errors; the map is an
    argument of the call, for it usually comes from the network. As ``padding_mode`` it also takes the words of
    :class:`torch.nn.Conv2d`, ``"replicate"`` and ``"reflect"``.

    Example:
        >>> unfold = DynamicDilationUnfold(3, padding=1)
        >>> unfold(torch.randn(2, 8, 5, 5), torch.rand(2, 1, 5, 5) + 0.5).shape
        torch.Size([2, 72, 25])
    """

    _axes = 2
    _function = staticmethod(dynamic_dilation_unfold)


class DynamicDilationUnfold1d(_Unfold):
    """The module form of :func:`~ddu_ops.dynamic_dilation_unfold1d`: see :class:`DynamicDilationUnfold`.

    Example:
        >>> unfold = DynamicDilationUnfold1d(3, padding="same", padding_mode="replicate")
        >>> unfold(torch.randn(2, 8, 9), torch.rand(2, 1, 9) + 0.5).shape
        torch.Size([2, 24, 9])
    """

    _axes = 1
    _function = staticmethod(dynamic_dilation_unfold1d)


class DynamicDilationUnfold3d(_Unfold):
    """The module form of :func:`~ddu_ops.dynamic_dilation_unfold3d`: see :class:`DynamicDilationUnfold`.

    Example:
        >>> unfold = DynamicDilationUnfold3d(3, padding=1)
        >>> unfold(torch.randn(2, 4, 5, 5, 5), torch.rand(2, 1, 5, 5, 5) + 0.5).shape
        torch.Size([2, 108, 125])
    """

    _axes = 3
    _function = staticmethod(dynamic_dilation_unfold3d)


class _Fold(_RateWindow):
    _padding_words = ()

    def __init__(
        self,
        output_size: Ints,
        kernel_size: Ints,
        stride: Ints = 1,
        padding: Ints = 0,
        dilation: Ints = 1,
        groups: int = 1,
        *,
        aligned: bool = True,
        padding_mode: str = "zeros",
    ) -> None:
        super().__init__(kernel_size, stride, padding, dilation, groups, aligned=aligned, padding_mode=padding_mode)
        self.output_size = one_or_more(output_size, self._axes, "output_size", type(self).__name__, ValueError)

    def forward(self, columns: Tensor, dilation_map: Tensor) -> Tensor:
        return self._call(columns, self.output_size, positions=dilation_map, aligned=self.aligned)

    def extra_repr(self) -> str:
        return f"output_size={self.output_size}, {super().extra_repr()}"


class DynamicDilationFold(_Fold):
    """Add windows into an image, each with the dilation rate that the map holds for it.

    The module form of :func:`~ddu_ops.dynamic_dilation_fold`, with its arguments, shapes and errors.

    Example:
        >>> fold = DynamicDilationFold((5, 5), 3, padding=1)
        >>> fold(torch.randn(2, 72, 25), torch.rand(2, 1, 5, 5) + 0.5).shape
        torch.Size([2, 8, 5, 5])
    """

    _axes = 2
    _function = staticmethod(dynamic_dilation_fold)


class DynamicDilationFold1d(_Fold):
    """The module form of :func:`~ddu_ops.dynamic_dilation_fold1d`: see :class:`DynamicDilationFold`.

    Example:
        >>> fold = DynamicDilationFold1d(9, 3, padding=1)
        >>> fold(torch.randn(2, 24, 9), torch.rand(2, 1, 9) + 0.5).shape
        torch.Size([2, 8, 9])
    """

    _axes = 1
    _function = staticmethod(dynamic_dilation_fold1d)


class DynamicDilationFold3d(_Fold):
    """The module form of :func:`~ddu_ops.dynamic_dilation_fold3d`: see :class:`DynamicDilationFold`.

    Example:
        >>> fold = DynamicDilationFold3d(5, 3, padding=1)
        >>> fold(torch.randn(2, 108, 125), torch.rand(2, 1, 5, 5, 5) + 0.5).shape
        torch.Size([2, 4, 5, 5, 5])
    """

    _axes = 3
    _function = staticmethod(dynamic_dilation_fold3d)


class _DeformUnfold(_Window):
    def forward(self, input: Tensor, offset: Tensor) -> Tensor:
        return self._call(input, positions=offset)


class DeformUnfold1d(_DeformUnfold):
    """The module form of :func:`~ddu_ops.deform_unfold1d`: see :class:`DeformUnfold2d`.

    Example:
        >>> unfold = DeformUnfold1d(3, padding=1)
        >>> unfold(torch.randn(2, 8, 9), torch.randn(2, 3, 9)).shape
        torch.Size([2, 24, 9])
    """

    _axes = 1
    _function = staticmethod(deform_unfold1d)


class DeformUnfold2d(_DeformUnfold):
    """Extract sliding windows whose taps are moved by an offset each.

    The module form of :func:`~ddu_ops.deform_unfold2d`, with its arguments, shapes and errors; the offsets are an
    argument of the call. As ``padding_mode`` it also takes ``"replicate"`` and ``"reflect"``.

    Example:
        >>> unfold = DeformUnfold2d(3, padding=1)
        >>> unfold(torch.randn(2, 8, 5, 5), torch.randn(2, 18, 5, 5)).shape
        torch.Size([2, 72, 25])
    """

    _axes = 2
    _function = staticmethod(deform_unfold2d)


class DeformUnfold3d(_DeformUnfold):
    """The module form of :func:`~ddu_ops.deform_unfold3d`: see :class:`DeformUnfold2d`.

    Example:
        >>> unfold = DeformUnfold3d(3, padding=1)
        >>> unfold(torch.randn(1, 4, 5, 5, 5), torch.randn(1, 81, 5, 5, 5)).shape
        torch.Size([1, 108, 125])
    """

    _axes = 3
    _function = staticmethod(deform_unfold3d)


class _StartsAtZero(nn.Module):
    """A convolution whose parameters start at zero.

    It is no :class:`torch.nn.Conv2d`, and its name does not sound like one: loops that initialise the convolutions of
    a model, found by their type or by their name, leave it alone.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Ints,
        stride: Ints = 1,
        padding: Ints | str = 0,
        dilation: Ints = 1,
        *,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        conv = nn.Conv2d(
            in_channels,
            out_channels,
            *_window(type(self).__name__, kernel_size, stride, padding, dilation),
            device="meta",
        )  # for its checks
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = conv.kernel_size
        self.stride = conv.stride
        self.padding = conv.padding
        self.dilation = conv.dilation
        self.weight = nn.Parameter(torch.empty(conv.weight.shape, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(out_channels, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set weight and bias to zero."""
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        return F.conv2d(input, self.weight, self.bias, self.stride, self.padding, self.dilation)

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, dilation={self.dilation}"
        )


def predictors(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The parts of a model that predict where taps lie and what they count, with their names.

    They are no :class:`torch.nn.Conv2d`, so loops that initialise or group the parameters of convolutions leave them
    alone. Whoever treats parameters by their shape or their name finds here what to treat otherwise, or to put right
    afterwards.

    Args:
        model: a model that has layers of this library in it, or one of them.

    Example:
        >>> model = torch.nn.Sequential(DynamicDilationConv2d(3, 8, 3, padding=1), torch.nn.ReLU())
        >>> for parameter in model.parameters():
        ...     if parameter.dim() > 1:
        ...         _ = torch.nn.init.xavier_uniform_(parameter)
        >>> for name, predictor in predictors(model):
        ...     print(name)
        ...     predictor.reset_parameters()  # the rates are one again
        0.rate
        >>> kept = {id(p) for _, predictor in predictors(model) for p in predictor.parameters()}
        >>> groups = [
        ...     {"params": [p for p in model.parameters() if id(p) not in kept], "weight_decay": 1e-2},
        ...     {"params": [p for p in model.parameters() if id(p) in kept], "weight_decay": 0.0},
        ... ]
        >>> [len(group["params"]) for group in groups]
        [2, 2]
    """
    return ((name, part) for name, part in model.named_modules() if isinstance(part, _StartsAtZero))


class DilationPredictor(_StartsAtZero):
    r"""A convolution that predicts a dilation map.

    The weights start at zero, and the result :math:`z` of the convolution goes through a function :math:`f` with
    :math:`f(0) = 1` exactly, in every type. So all rates start at one: what reads the map starts as what it is without
    one. With ``bounds`` :math:`(l, u)` and ``pace`` :math:`p`,

    .. math::
        f(z) = 1 + s \tanh(p z / s), \qquad s = u - 1 \text{ for } z > 0, \text{ else } 1 - l,

    which has slope :math:`p` at 0 from both sides. On the side of an infinite bound it is :math:`1 + p z`.

    The pace keeps the rates behind the weights. Early in training smaller rates smooth, which pays at once, and rates
    near zero find no way back. On digits at three sizes, with AdamW, two thirds of all rates fell below a half with a
    pace of 1, and one in a hundred with 0.1. The head with 0.1 was better than the fixed one by 0.06 in mIoU with AdamW
    and by 0.02 to 0.04 with SGD, with all parameters in one group. In the place of :math:`f`, :math:`\exp(p z)` did as
    well, and :math:`1 + |p z|`, which only grows, gained nothing. ``docs/study.md`` has the tables.

    Args:
        in_channels: channels of the input.
        kernel_size, stride, padding, dilation: as in :class:`torch.nn.Conv2d`. With those of the layer that reads the
            map, the map has the size that the layer expects.
        dilation_groups: number of channel groups that get a map of their own. Default: 1.
        per_axis: a rate for the height and one for the width. Default: one for both.
        bounds: lower and upper bound of the rates, around 1; either may be infinite. ``None`` is (0, inf).
            Default: (0, 4).
        pace: how fast the rates leave one: the slope of :math:`f` at 0. Default: 0.1.
        device, dtype: as in :class:`torch.nn.Conv2d`.

    Shape:
        - input: :math:`(B, C, H, W)` or :math:`(C, H, W)`.
        - Output: :math:`(B, G, H_{out}, W_{out})`, or :math:`2G` channels with ``per_axis``; in float32 where the
          input is of a half type, because positions are not to be rounded.

    Raises:
        ValueError: for bounds that are not two numbers on both sides of 1, and for a pace that is not positive and
            finite.

    Example:
        >>> predictor = DilationPredictor(8, 3, padding=1)
        >>> predictor(torch.randn(2, 8, 6, 7)).unique()
        tensor([1.], grad_fn=<Unique2Backward0>)
    """

    def __init__(
        self,
        in_channels: int,
        kernel_size: Ints,
        stride: Ints = 1,
        padding: Ints | str = 0,
        dilation: Ints = 1,
        *,
        dilation_groups: int = 1,
        per_axis: bool = False,
        bounds: tuple[float, float] | None = (0.0, 4.0),
        pace: float = 0.1,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        dilation_groups = integer(dilation_groups, "dilation_groups", "DilationPredictor", ValueError)
        super().__init__(
            integer(in_channels, "in_channels", "DilationPredictor", ValueError),
            2 * dilation_groups if per_axis else dilation_groups,
            kernel_size,
            stride,
            padding,
            dilation,
            device=device,
            dtype=dtype,
        )
        self.bounds = None if bounds is None else _around_one(bounds)
        self.pace = _positive(pace)

    def forward(self, input: Tensor) -> Tensor:
        z = super().forward(input)
        z = self.pace * at_least_float32(z)
        lower, upper = self.bounds or (0.0, math.inf)
        return 1 + torch.where(z > 0, _saturate(z, upper - 1), _saturate(z, 1 - lower))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, bounds={self.bounds}, pace={self.pace}"


def _around_one(bounds: Any) -> tuple[float, float]:
    try:
        lower, upper = map(_real, bounds)
    except (TypeError, ValueError):
        raise ValueError(f"DilationPredictor(): expected bounds to be two numbers, but got {bounds!r}") from None
    if not lower < 1 < upper:
        raise ValueError(f"DilationPredictor(): expected bounds on both sides of 1, but got {bounds}")
    return lower, upper


def _positive(pace: Any) -> float:
    try:
        number = _real(pace)
    except (TypeError, ValueError):
        raise ValueError(f"DilationPredictor(): expected pace to be a number, but got {pace!r}") from None
    if not 0 < number < math.inf:
        raise ValueError(f"DilationPredictor(): expected pace to be positive and finite, but got {pace}")
    return number


def _real(value: Any) -> float:
    if isinstance(value, str):
        raise TypeError("a text is no number, even if float takes it")
    return float(value)


def _saturate(z: Tensor, span: float) -> Tensor:
    return z if math.isinf(span) else span * torch.tanh(z / span)


# What a subclass or an object may define anew, and the result is still the base class's. (Python's own first.)
_HARMLESS = {
    *("__annotate_func__", "__annotations__", "__annotations_cache__", "__dict__", "__doc__", "__firstlineno__"),
    *("__module__", "__static_attributes__", "__weakref__"),
    *("__constants__", "__init__", "__repr__", "_compiled_call_impl", "extra_repr", "reset_parameters"),
}
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


def _changes_of(conv: nn.Conv2d) -> list[str]:
    """What may make the result of a convolution another one than that of a ``torch.nn.Conv2d`` with its parameters."""
    plain = nn.Conv2d(1, 1, 1, device="meta")
    subclasses = (base for base in type(conv).__mro__ if base not in nn.Conv2d.__mro__)
    changes = {name for base in subclasses for name in vars(base) if hasattr(plain, name)}
    changes |= {name for name in vars(conv) if hasattr(nn.Conv2d, name) and name not in vars(plain)}
    changes |= {name.lstrip("_") for name in _HOOKS if getattr(conv, name)}
    return sorted(changes - _HARMLESS)


def _check_weight(conv: nn.Conv2d) -> None:
    """Refuses a weight that the layer does not take, though its convolution would run."""
    shape = (conv.out_channels, conv.in_channels // conv.groups, *conv.kernel_size)
    if conv.weight.shape != shape:
        raise ValueError(
            f"from_conv(): expected conv to have a weight of the shape that its options say, {shape}, but got "
            f"{tuple(conv.weight.shape)}"
        )
    if conv.weight.dtype not in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(
            f"from_conv(): expected conv to have a weight of type float64, float32, float16 or bfloat16, but got "
            f"{str(conv.weight.dtype).removeprefix('torch.')}"
        )


def _may_be_left_out(argument: Any) -> bool:
    """Whether fx traces a module of its own, which it calls with proxies for its optional arguments, too."""
    return isinstance(argument, torch.fx.Proxy) and argument.node.op == "placeholder" and argument.node.args == (None,)


def _given_or(argument: Tensor | None, default: Tensor) -> Tensor:
    if has_torch_function((argument,)):
        return handle_torch_function(_given_or, (argument,), argument, default)
    return default if argument is None else argument


class DynamicDilationConv2d(nn.Conv2d):
    """A convolution whose dilation rate differs from position to position, and that can predict it.

    The module form of :func:`~ddu_ops.dynamic_dilation_conv2d`. In the place of a :class:`torch.nn.Conv2d`, whose
    arguments come first and whose parameters it has, it predicts the dilation map from its input by a
    :class:`DilationPredictor` with the window of the layer. The rates start at one, so the layer starts as the
    ``Conv2d`` with the same weights: on the CPU bit for bit, elsewhere up to the order of the additions.

    It is a ``Conv2d``, padded with zeros, so code that finds convolutions by ``isinstance`` finds its weight: what
    initialises weights, groups them for weight decay, or prunes them. What replaces every ``Conv2d`` by another layer
    has to leave it out, as :meth:`from_conv` does.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias: as in
            :class:`torch.nn.Conv2d`; ``dilation`` multiplies the rates.
        dilation_groups: number of channel groups that have a map of their own. Default: 1.
        per_axis: predict a rate for the height and one for the width. Default: one for both.
        bounds, pace: of the predicted rates: see :class:`DilationPredictor`. Default: (0, 4) and 0.1.
        predict: ``False`` leaves the predictor out; every call then brings its map. Default: ``True``.
        aligned, workspace_limit: as in :func:`~ddu_ops.dynamic_dilation_conv2d`.
        device, dtype: as in :class:`torch.nn.Conv2d`.

    Attributes:
        weight, bias: as in :class:`torch.nn.Conv2d`, so that its ``state_dict`` can be loaded; with a predictor, by
            ``strict=False``.
        rate: the predictor, or ``None``.

    Shape:
        As in :func:`~ddu_ops.dynamic_dilation_conv2d`. ``forward(input, dilation_map=None, mask=None)`` takes the map
        from the predictor where none is given.

    Raises:
        RuntimeError: in a call, as :func:`~ddu_ops.dynamic_dilation_conv2d`; without a predictor and without a map.
        ValueError: from the constructor, for channels that ``groups`` or ``dilation_groups`` do not divide, and for
            bounds that do not lie on both sides of 1.

    Example:
        >>> layer = DynamicDilationConv2d(8, 4, 3, padding=1)
        >>> input = torch.randn(2, 8, 6, 7)
        >>> torch.equal(layer(input), F.conv2d(input, layer.weight, layer.bias, padding=1))
        True
        >>> layer.rate(input).shape  # the map
        torch.Size([2, 1, 6, 7])
    """

    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: str | tuple[int, int]
    dilation: tuple[int, int]
    rate: DilationPredictor | None

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
        per_axis: bool = False,
        bounds: tuple[float, float] | None = (0.0, 4.0),
        pace: float = 0.1,
        predict: bool = True,
        aligned: bool = True,
        workspace_limit: int = 2**28,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        name = "DynamicDilationConv2d"
        in_channels = integer(in_channels, "in_channels", name, ValueError)
        out_channels = integer(out_channels, "out_channels", name, ValueError)
        groups = integer(groups, "groups", name, ValueError)
        dilation_groups = integer(dilation_groups, "dilation_groups", name, ValueError)
        workspace_limit = integer(workspace_limit, "workspace_limit", name, ValueError)
        if dilation_groups < 1 or in_channels % dilation_groups:
            raise ValueError(
                f"DynamicDilationConv2d(): expected dilation_groups to divide in_channels = {in_channels}, but got "
                f"{dilation_groups}"
            )
        options: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__(
            in_channels,
            out_channels,
            *_window(name, kernel_size, stride, padding, dilation),
            groups,
            bias,
            **options,
        )
        self.dilation_groups = dilation_groups
        self.aligned = aligned
        self.workspace_limit = workspace_limit
        self.rate = None
        if predict:
            self.rate = DilationPredictor(
                in_channels,
                self.kernel_size,
                self.stride,
                self.padding,
                self.dilation,
                dilation_groups=dilation_groups,
                per_axis=per_axis,
                bounds=bounds,
                pace=pace,
                **options,
            )

    def reset_parameters(self) -> None:
        """Starts again as a ``Conv2d`` does, with rates of one."""
        super().reset_parameters()
        rate = getattr(self, "rate", None)  # not yet there when the constructor of Conv2d calls
        if rate is not None:
            rate.reset_parameters()

    @classmethod
    def from_conv(cls, conv: nn.Conv2d, **options: Any) -> "DynamicDilationConv2d":
        """Make an adaptive layer of a trained one: it starts with its results, or the call is refused.

        Converting twice is converting once: a layer that is one already is returned as it is, whatever the options.

        Args:
            conv: a two-dimensional convolution that pads with zeros. Its parameters are copied. A subclass of
                :class:`torch.nn.Conv2d` will do if it leaves everything as it is that makes the result.
            options: the keyword arguments of the constructor.

        Raises:
            TypeError: for another kind of layer, a transposed convolution among them; for a subclass that changes the
                result, such as one with standardised weights or an activation, or a lazy one before its first call; for
                a parametrised convolution, and for one with hooks or a ``forward`` of its own, which would be lost.
            ValueError: for another ``padding_mode``, and for a weight of a type or shape that the layer can't have.

        Example:
            >>> conv = torch.nn.Conv2d(8, 4, 3, stride=2, padding=1)
            >>> layer = DynamicDilationConv2d.from_conv(conv)
            >>> input = torch.randn(2, 8, 6, 7)
            >>> torch.equal(layer(input), conv(input))
            True
        """
        if isinstance(conv, cls):
            return conv
        if not isinstance(conv, nn.Conv2d):
            raise TypeError(f"from_conv(): expected conv to be a torch.nn.Conv2d, but got {type(conv).__name__}")
        changes = _changes_of(conv)
        if changes:
            raise TypeError(
                f"from_conv(): expected conv to compute what torch.nn.Conv2d does, but got {type(conv).__name__} with "
                f"{', '.join(changes)} of its own"
            )
        if conv.padding_mode != "zeros":
            raise ValueError(
                f"from_conv(): expected conv to have padding_mode='zeros', but got padding_mode={conv.padding_mode!r}"
            )
        _check_weight(conv)
        layer = cls(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            conv.stride,
            conv.padding,
            conv.dilation,
            conv.groups,
            conv.bias is not None,
            **{"device": conv.weight.device, "dtype": conv.weight.dtype, **options},
        )
        with torch.no_grad():
            for own, trained in ((layer.weight, conv.weight), (layer.bias, conv.bias)):
                if own is not None and trained is not None:
                    own.copy_(trained).requires_grad_(trained.requires_grad)
        return layer.train(conv.training)

    def forward(self, input: Tensor, dilation_map: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        if self.rate is None:
            if dilation_map is None:
                raise RuntimeError(
                    "DynamicDilationConv2d(): expected dilation_map to be a tensor, because the layer predicts none, "
                    "but got None"
                )
        elif dilation_map is None or _may_be_left_out(dilation_map):
            dilation_map = _given_or(dilation_map, self.rate(input))
        return dynamic_dilation_conv2d(
            input,
            self.weight,
            dilation_map,
            self.bias,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            dilation_groups=self.dilation_groups,
            mask=mask,
            aligned=self.aligned,
            workspace_limit=self.workspace_limit,
        )

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, dilation={self.dilation}, groups={self.groups}, bias={self.bias is not None}, "
            f"dilation_groups={self.dilation_groups}, aligned={self.aligned}"
        )
