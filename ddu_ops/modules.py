"""The public modules, which store the options and call :mod:`ddu_ops.functional`."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function

from ddu_ops._options import Ints, integer, ints, one_or_more, require_tensor, several
from ddu_ops.functional import (
    PADDING_WORDS,
    affine_conv1d,
    affine_conv2d,
    affine_conv3d,
    affine_unfold1d,
    affine_unfold2d,
    affine_unfold3d,
    at_least_float32,
    deform_conv1d,
    deform_conv2d,
    deform_conv3d,
    deform_unfold1d,
    deform_unfold2d,
    deform_unfold3d,
    dynamic_dilation_conv1d,
    dynamic_dilation_conv2d,
    dynamic_dilation_conv3d,
    dynamic_dilation_fold,
    dynamic_dilation_fold1d,
    dynamic_dilation_fold3d,
    dynamic_dilation_unfold,
    dynamic_dilation_unfold1d,
    dynamic_dilation_unfold3d,
)

_CONVOLUTIONS: tuple[type[Any], ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_CONVOLVE: tuple[Callable[..., Tensor], ...] = (F.conv1d, F.conv2d, F.conv3d)


def _window(
    axes: int, name: str, kernel_size: Ints, stride: Ints, padding: Ints | str, dilation: Ints
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...] | str, tuple[int, ...]]:
    """The options of the module of this name, in the form that torch's convolutions take."""

    def each(value: Ints | str, argument: str, least: int = 1, words: Sequence[str] = ()) -> tuple[int, ...]:
        return ints(value, axes, argument, name, ValueError, words=words, least=least)

    words = PADDING_WORDS
    return (
        each(kernel_size, "kernel_size"),
        each(stride, "stride"),
        padding if isinstance(padding, str) and padding in words else each(padding, "padding", 0, words),
        each(dilation, "dilation"),
    )


# The padding modes of the operators, and the names that torch.nn's convolutions use for them.
_PADDING_MODES = {
    **{mode: mode for mode in ("zeros", "border", "reflection")},
    "replicate": "border",
    "reflect": "reflection",
}


def _padding_mode(word: str, name: str) -> str:
    """The operators' name for a padding mode."""
    if not isinstance(word, str) or word not in _PADDING_MODES:
        words = ", ".join(map(repr, _PADDING_MODES))
        raise ValueError(f"{name}(): expected padding_mode to be one of {words}, but got {word!r}")
    return _PADDING_MODES[word]


class _Window(nn.Module):
    """The options of a window. A subclass sets its number of axes and the function that it calls."""

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
        self.kernel_size = one_or_more(kernel_size, axes, "kernel_size", name, ValueError, least=1)
        self.stride = one_or_more(stride, axes, "stride", name, ValueError, least=1)
        in_words = isinstance(padding, str) and padding in self._padding_words
        self.padding = padding if in_words else one_or_more(padding, axes, "padding", name, ValueError, least=0)
        self.dilation = one_or_more(dilation, axes, "dilation", name, ValueError, least=1)
        self.groups = integer(groups, "groups", name, ValueError, least=1)
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

    The module form of :func:`~ddu_ops.dynamic_dilation_unfold`, with its arguments, shapes and errors. The map is an
    argument of the call because it usually comes from the network. ``padding_mode`` also accepts the names that
    :class:`torch.nn.Conv2d` uses, ``"replicate"`` and ``"reflect"``.

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
        self.output_size = one_or_more(output_size, self._axes, "output_size", type(self).__name__, ValueError, least=0)

    def forward(self, columns: Tensor, dilation_map: Tensor) -> Tensor:
        return self._call(columns, self.output_size, positions=dilation_map, aligned=self.aligned)

    def extra_repr(self) -> str:
        return f"output_size={self.output_size}, {super().extra_repr()}"


class DynamicDilationFold(_Fold):
    """Sum windows into an image, each with the dilation rate that the map has for it.

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
    """Extract sliding windows, with an offset for every tap.

    The module form of :func:`~ddu_ops.deform_unfold2d`, with its arguments, shapes and errors; the offsets are an
    argument of the call. ``padding_mode`` also accepts ``"replicate"`` and ``"reflect"``.

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


def check_input(name: str, input: Any, axes: int, channels: int) -> None:
    """Checks the input of a layer before its predictor sees it, whose own error would be about the wrong weight."""
    if not isinstance(input, Tensor):
        require_tensor(input, "input", name)
    elif torch._C._get_tracing_state() is not None:  # sizes are tensors in torch.jit.trace
        return
    elif axes < input.dim() < axes + 3 and input.shape[-axes - 1] != channels:
        raise RuntimeError(f"{name}(): expected input with {channels} channels, but got shape {tuple(input.shape)}")


def starts_without(predictor: nn.Module, state_dict: dict[str, Any], prefix: str, name: str) -> None:
    """Adds an untrained predictor of this name to the state of a layer that has none."""
    if not any(key.startswith(f"{prefix}{name}.") for key in state_dict):
        device = next(value.device for key, value in state_dict.items() if key.startswith(prefix))
        for key, parameter in predictor.named_parameters():
            # A parameter on meta is replaced by what is loaded.
            zeros = torch.zeros_like(parameter, device=device if parameter.is_meta else parameter.device)
            state_dict[f"{prefix}{name}.{key}"] = zeros


class _AffineUnfold(_Window):
    def forward(self, input: Tensor, theta: Tensor) -> Tensor:
        return self._call(input, positions=theta)


class AffineUnfold1d(_AffineUnfold):
    """The module form of :func:`~ddu_ops.affine_unfold1d`: see :class:`AffineUnfold2d`.

    Example:
        >>> unfold = AffineUnfold1d(3, padding=1)
        >>> unfold(torch.randn(2, 8, 9), torch.randn(2, 2, 9)).shape
        torch.Size([2, 24, 9])
    """

    _axes = 1
    _function = staticmethod(affine_unfold1d)


class AffineUnfold2d(_AffineUnfold):
    """Extract sliding windows, each turned, stretched and moved by an affine map of its own.

    The module form of :func:`~ddu_ops.affine_unfold2d`, with its arguments, shapes and errors; the maps are an argument
    of the call. As ``padding_mode`` it also takes ``"replicate"`` and ``"reflect"``.

    Example:
        >>> unfold = AffineUnfold2d(3, padding=1)
        >>> unfold(torch.randn(2, 8, 5, 5), torch.randn(2, 6, 5, 5)).shape
        torch.Size([2, 72, 25])
    """

    _axes = 2
    _function = staticmethod(affine_unfold2d)


class AffineUnfold3d(_AffineUnfold):
    """The module form of :func:`~ddu_ops.affine_unfold3d`: see :class:`AffineUnfold2d`.

    Example:
        >>> unfold = AffineUnfold3d(3, padding=1)
        >>> unfold(torch.randn(1, 4, 5, 5, 5), torch.randn(1, 12, 5, 5, 5)).shape
        torch.Size([1, 108, 125])
    """

    _axes = 3
    _function = staticmethod(affine_unfold3d)


class _StartsAtZero(nn.Module):
    """A convolution whose parameters start at zero.

    It is not one of the classes of :mod:`torch.nn` and is not named like one, so that loops that initialise all
    convolutions of a model, by type or by name, skip it.
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
        *,
        axes: int = 2,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        window = _window(axes, type(self).__name__, kernel_size, stride, padding, dilation)
        conv = _CONVOLUTIONS[axes - 1](in_channels, out_channels, *window, groups, device="meta")  # for its checks
        self.axes = axes
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = conv.kernel_size
        self.stride = conv.stride
        self.padding = conv.padding
        self.dilation = conv.dilation
        self.groups = groups
        self.weight = nn.Parameter(torch.empty(conv.weight.shape, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(out_channels, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set weight and bias to zero."""
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        convolve = _CONVOLVE[self.axes - 1]
        return convolve(input, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, dilation={self.dilation}"
        )


def predictors(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Iterate over the parts of a model that predict rates, offsets and masks, with their names.

    They are not instances of :class:`torch.nn.Conv2d`, so loops that initialise or group the parameters of convolutions
    skip them. Use this function where parameters are selected by shape or by name, to treat these parts differently or
    to reset them afterwards.

    Args:
        model: a model that contains layers of this library, or one such layer.

    Example:
        >>> model = torch.nn.Sequential(DynamicDilationConv2d(3, 8, 3, padding=1), torch.nn.ReLU())
        >>> for parameter in model.parameters():
        ...     if parameter.dim() > 1:
        ...         _ = torch.nn.init.xavier_uniform_(parameter)
        >>> for name, predictor in predictors(model):
        ...     print(name)
        ...     predictor.reset_parameters()  # all rates are one again
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

    The weights start at zero, and the result :math:`z` of the convolution is passed to a function :math:`f` with
    :math:`f(0) = 1` exactly, in every type. So all rates start at one, and a layer with this map starts with the same
    results as without it. With ``bounds`` :math:`(l, u)` and ``pace`` :math:`p`,

    .. math::
        f(z) = 1 + s \tanh(p z / s), \qquad s = u - 1 \text{ for } z > 0, \text{ else } 1 - l,

    which has slope :math:`p` at 0 from both sides. On the side of an infinite bound it is :math:`1 + p z`.

    The pace slows the rates down relative to the weights. Early in training, smaller rates smooth the input, which
    reduces the loss at once, and rates near zero do not recover. On digits at three sizes, with AdamW, two thirds of
    all rates fell below 0.5 with a pace of 1, and 1 % with a pace of 0.1. The head with 0.1 was better than the fixed
    one by 0.06 in mIoU with AdamW and by 0.02 to 0.04 with SGD, with all parameters in one group. In place of
    :math:`f`, :math:`\exp(p z)` worked as well, and :math:`1 + |p z|`, which only grows, gained nothing.
    ``docs/study.md`` has the tables.

    Args:
        in_channels: channels of the input.
        kernel_size, stride, padding, dilation: as in :class:`torch.nn.Conv2d`. Use those of the layer that reads the
            map to get a map of the size that it expects.
        dilation_groups: number of channel groups, each with its own map. Default: 1.
        per_axis: ``True`` for a rate for each axis, ``False`` for one rate for all axes. Default: ``False``.
        axes: number of spatial axes of the input, 1 to 3. Default: 2.
        bounds: lower and upper bound of the rates, around 1; either may be infinite. ``None`` is (0, inf).
            Default: (0, 4).
        pace: the slope of :math:`f` at 0, which sets how fast the rates move away from one. Default: 0.1.
        device, dtype: as in :class:`torch.nn.Conv2d`.

    Shape:
        - input: :math:`(B, C, H, W)` or :math:`(C, H, W)`, with ``axes`` spatial axes.
        - Output: :math:`(B, G, H_{out}, W_{out})`, or :math:`2G` channels with ``per_axis``; in float32 if the input
          has a half type, so that positions are not rounded.

    Raises:
        ValueError: if ``bounds`` are not two numbers with 1 between them, or ``pace`` is not positive and finite.

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
        axes: int = 2,
        bounds: tuple[float, float] | None = (0.0, 4.0),
        pace: float = 0.1,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        axes = integer(axes, "axes", "DilationPredictor", ValueError)
        if axes not in (1, 2, 3):
            raise ValueError(f"DilationPredictor(): expected axes to be 1, 2 or 3, but got {axes}")
        dilation_groups = integer(dilation_groups, "dilation_groups", "DilationPredictor", ValueError, least=1)
        super().__init__(
            integer(in_channels, "in_channels", "DilationPredictor", ValueError, least=0),
            axes * dilation_groups if per_axis else dilation_groups,
            kernel_size,
            stride,
            padding,
            dilation,
            axes=axes,
            device=device,
            dtype=dtype,
        )
        self.bounds = None if bounds is None else _around_one(bounds)
        self.pace = _positive(pace, "pace", "DilationPredictor")

    def forward(self, input: Tensor) -> Tensor:
        check_input("DilationPredictor", input, self.axes, self.in_channels)
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


def _positive(value: Any, option: str, name: str) -> float:
    try:
        number = _real(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name}(): expected {option} to be a number, but got {value!r}") from None
    if not 0 < number < math.inf:
        raise ValueError(f"{name}(): expected {option} to be positive and finite, but got {value}")
    return number


def _real(value: Any) -> float:
    if isinstance(value, str):
        raise TypeError("a string is not a number, even if float() converts it")
    return float(value)


def _saturate(z: Tensor, span: float) -> Tensor:
    return z if math.isinf(span) else span * torch.tanh(z / span)


class OffsetPredictor(_StartsAtZero):
    r"""A convolution that predicts the offsets of the taps of a window, and factors for them.

    The weights and the offsets start at zero and the factors at one, so a layer that reads them starts as a plain
    convolution. Weights of zero do not stop the training: their gradient is the product of the input and the gradient
    of the offsets.

    Args:
        in_channels: channels of the input.
        kernel_size, stride, padding, dilation: as in :class:`torch.nn.Conv2d`. Use those of the layer that reads the
            offsets to get offsets of the size that it expects.
        offset_groups: number of channel groups, each with its own offsets. Default: 1.
        mask: how the factors are computed from the results :math:`z` of the convolution: ``"sigmoid"``,
            :math:`2 \sigma(z)`, as in DCNv2 except for the 2; ``"softmax"``, :math:`K \, \mathrm{softmax}(z)` over the
            :math:`K` taps, as in DCNv3 except for the :math:`K`; or ``None``, no factors. Default: ``"sigmoid"``.
        bound: the largest offset :math:`b`, in pixels: the offsets are :math:`b \tanh(z / b)`. Default: none.
        moved: the axes along which taps move, counted from 0, slowest first; offsets along the others are zero. For a
            video, ``(1, 2)`` keeps taps within their frame. Default: all.
        axes: number of spatial axes of the input, 1 to 3. Default: 2.
        device, dtype: as in :class:`torch.nn.Conv2d`.

    Shape:
        - input: :math:`(B, C, H, W)` or :math:`(C, H, W)`, with ``axes`` spatial axes.
        - Output: the offsets, as in :func:`~ddu_ops.deform_conv2d`, in float32 if the input has a half type; and the
          factors, :math:`(B, G K, H_{out}, W_{out})`, or ``None``.

    Raises:
        ValueError: for an unknown ``mask``, a bound that is not positive and finite, or axes that do not exist.

    Example:
        >>> predictor = OffsetPredictor(8, 3, padding=1)
        >>> offset, mask = predictor(torch.randn(2, 8, 6, 7))
        >>> offset.shape, mask.shape
        (torch.Size([2, 18, 6, 7]), torch.Size([2, 9, 6, 7]))
        >>> bool((offset == 0).all() and (mask == 1).all())
        True
    """

    def __init__(
        self,
        in_channels: int,
        kernel_size: Ints,
        stride: Ints = 1,
        padding: Ints | str = 0,
        dilation: Ints = 1,
        *,
        offset_groups: int = 1,
        mask: str | None = "sigmoid",
        bound: float | None = None,
        moved: Sequence[int] | None = None,
        axes: int = 2,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        name = "OffsetPredictor"
        axes = integer(axes, "axes", name, ValueError)
        if axes not in (1, 2, 3):
            raise ValueError(f"{name}(): expected axes to be 1, 2 or 3, but got {axes}")
        if mask not in ("sigmoid", "softmax", None):
            raise ValueError(f"{name}(): expected mask to be 'sigmoid', 'softmax' or None, but got {mask!r}")
        if bound is not None:
            bound = _positive(bound, "bound", name)
        along = tuple(range(axes)) if moved is None else several(moved, "moved", name, ValueError)
        if not along or sorted(set(along)) != list(along) or not set(along) <= set(range(axes)):
            raise ValueError(f"{name}(): expected moved to be axes from 0 to {axes - 1}, in order, but got {moved!r}")
        taps = math.prod(ints(kernel_size, axes, "kernel_size", name, ValueError, least=1))
        offset_groups = integer(offset_groups, "offset_groups", name, ValueError, least=1)
        places = offset_groups * taps
        super().__init__(
            integer(in_channels, "in_channels", name, ValueError, least=0),
            places * (len(along) + (mask is not None)),
            kernel_size,
            stride,
            padding,
            dilation,
            axes=axes,
            device=device,
            dtype=dtype,
        )
        self.offset_groups = offset_groups
        self.mask = mask
        self.bound = bound
        self.moved = along

    def forward(self, input: Tensor) -> tuple[Tensor, Tensor | None]:  # type: ignore[override]
        check_input("OffsetPredictor", input, self.axes, self.in_channels)
        z, channels = super().forward(input), -self.axes - 1
        places = self.offset_groups * math.prod(self.kernel_size)
        offset = at_least_float32(z.narrow(channels, 0, places * len(self.moved)))
        if self.bound is not None:
            offset = self.bound * torch.tanh(offset / self.bound)
        if len(self.moved) < self.axes:
            each = offset.unflatten(channels, (places, len(self.moved)))
            still = torch.zeros_like(each.select(channels, 0))
            along = [
                each.select(channels, self.moved.index(axis)) if axis in self.moved else still
                for axis in range(self.axes)
            ]
            offset = torch.stack(along, channels).flatten(channels - 1, channels)
        if self.mask is None:
            return offset, None
        z = z.narrow(channels, places * len(self.moved), places)
        if self.mask == "sigmoid":
            return offset, 2 * z.sigmoid()
        taps = math.prod(self.kernel_size)
        factors = taps * z.unflatten(channels, (self.offset_groups, taps)).softmax(channels)
        return offset, factors.flatten(channels - 1, channels)

    def extra_repr(self) -> str:
        return (
            f"{super().extra_repr()}, offset_groups={self.offset_groups}, mask={self.mask}, bound={self.bound}, "
            f"moved={self.moved}"
        )


class AffinePredictor(_StartsAtZero):
    r"""A convolution that predicts the affine maps of windows: the identity, plus a function of the input.

    The weights start at zero, so what reads the maps starts as the plain convolution, and learns from the first step
    on.

    Args:
        in_channels: channels of the input.
        kernel_size, stride, padding, dilation: as in :class:`torch.nn.Conv2d`; those of the layer that reads the maps,
            which then have the size that the layer expects.
        theta_groups: number of channel groups that get maps of their own. Default: 1.
        axes: spatial axes of the input, one to three. Default: 2.
        device, dtype: as in :class:`torch.nn.Conv2d`.

    Shape:
        - input: :math:`(B, C, H, W)` or :math:`(C, H, W)`, or as many axes as ``axes`` says.
        - Output: ``theta``, as in :func:`~ddu_ops.affine_conv2d`, in float32 where the input is of a half type.

    Raises:
        ValueError: for a number of axes that there is not, and options that are too small.

    Example:
        >>> theta = AffinePredictor(8, 3, padding=1)(torch.randn(2, 8, 6, 7))
        >>> theta[0, :, 3, 3]
        tensor([1., 0., 0., 0., 1., 0.], grad_fn=<SelectBackward0>)
    """

    def __init__(
        self,
        in_channels: int,
        kernel_size: Ints,
        stride: Ints = 1,
        padding: Ints | str = 0,
        dilation: Ints = 1,
        *,
        theta_groups: int = 1,
        axes: int = 2,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        name = "AffinePredictor"
        axes = integer(axes, "axes", name, ValueError)
        if axes not in (1, 2, 3):
            raise ValueError(f"{name}(): expected axes to be 1, 2 or 3, but got {axes}")
        theta_groups = integer(theta_groups, "theta_groups", name, ValueError, least=1)
        super().__init__(
            integer(in_channels, "in_channels", name, ValueError, least=0),
            theta_groups * axes * (axes + 1),
            kernel_size,
            stride,
            padding,
            dilation,
            axes=axes,
            device=device,
            dtype=dtype,
        )
        self.theta_groups = theta_groups

    def forward(self, input: Tensor) -> Tensor:
        check_input("AffinePredictor", input, self.axes, self.in_channels)
        change = at_least_float32(super().forward(input))
        identity = torch.eye(self.axes, self.axes + 1, dtype=change.dtype, device=change.device)
        return change + identity.flatten().repeat(self.theta_groups)[(..., *[None] * self.axes)]

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, theta_groups={self.theta_groups}"


# Attributes that a subclass or an object may redefine without changing the result. (Python's own first.)
_HARMLESS = {
    *("__annotate_func__", "__annotations__", "__annotations_cache__", "__dict__", "__doc__", "__firstlineno__"),
    *("__module__", "__static_attributes__", "__weakref__"),
    *("__constants__", "__init__", "__repr__", "_compiled_call_impl", "extra_repr", "reset_parameters"),
}
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


def _changes_of(conv: nn.Module, kind: type[Any]) -> list[str]:
    """What may give a convolution another result than a plain one with the same parameters has."""
    plain = kind(1, 1, 1, device="meta")
    subclasses = (base for base in type(conv).__mro__ if base not in (*kind.__mro__, _Convolution))
    changes = {name for base in subclasses for name in vars(base) if hasattr(plain, name)}
    changes |= {name for name in vars(conv) if hasattr(kind, name) and name not in vars(plain)}
    changes |= {name.lstrip("_") for name in _HOOKS if getattr(conv, name)}
    return sorted(changes - _HARMLESS)


def _check_weight(conv: Any) -> None:
    """Refuses a weight that torch's convolution accepts but the layer does not."""
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
    """Whether fx traces the module as its root, and so passes proxies for optional arguments, too."""
    return isinstance(argument, torch.fx.Proxy) and argument.node.op == "placeholder" and argument.node.args == (None,)


def _given_or(argument: Tensor | None, default: Tensor) -> Tensor:
    if has_torch_function((argument,)):
        return handle_torch_function(_given_or, (argument,), argument, default)
    return default if argument is None else argument


class _Convolution(nn.modules.conv._ConvNd):
    """One of torch's convolutions, with windows that adapt. A subclass sets the following."""

    _axes: int
    _function: Callable[..., Tensor]
    _predictor: str  # the attribute that holds what predicts the positions

    def _start(
        self,
        name: str,
        channels: tuple[int, int],
        window: tuple[Any, ...],
        groups: int,
        bias: bool,
        padding_mode: str,
        options: dict[str, Any],
    ) -> None:
        """Calls torch's constructor with checked options."""
        in_channels = integer(channels[0], "in_channels", name, ValueError, least=0)
        out_channels = integer(channels[1], "out_channels", name, ValueError, least=0)
        groups = integer(groups, "groups", name, ValueError, least=1)
        mode = _padding_mode(padding_mode, name)
        kind = _CONVOLUTIONS[self._axes - 1]
        kind.__init__(self, in_channels, out_channels, *_window(self._axes, name, *window), groups, bias, **options)
        self.padding_mode = mode  # type: ignore[assignment]

    def _require_given(self, name: str, argument: str, given: Tensor | None) -> None:
        if given is None:
            raise RuntimeError(
                f"{name}{self._axes}d(): expected {argument} to be a tensor, because the layer predicts none, but got "
                "None"
            )

    def reset_parameters(self) -> None:
        """Reset the parameters as torch's convolution does, and the predictor to windows that are not moved."""
        super().reset_parameters()
        predictor = getattr(self, self._predictor, None)  # does not exist yet when the constructor calls
        if predictor is not None:
            predictor.reset_parameters()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Also loads the state of a plain convolution."""
        predictor = getattr(self, self._predictor)
        if predictor is not None and f"{prefix}weight" in state_dict:
            starts_without(predictor, state_dict, prefix, self._predictor)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    @classmethod
    def from_conv(cls, conv: nn.Module, **options: Any) -> Any:
        """Convert a trained convolution into an adaptive layer that starts with the same results.

        Conversion is idempotent: a layer of this class is returned unchanged, whatever the options.

        Args:
            conv: a convolution of :mod:`torch.nn` with the same number of axes. Its parameters are copied. Subclasses
                are accepted if they do not change the result.
            options: the keyword arguments of the constructor.

        Raises:
            TypeError: for another kind of layer, including transposed convolutions; for a subclass that changes the
                result, such as one with standardised weights or an activation, or a lazy one before its first call; for
                a parametrised convolution, or one with hooks or its own ``forward``, which would be lost; and for
                circular padding, or padding other than zeros that is wider on one side than on the other.
            ValueError: for a weight of a type or shape that the layer cannot have.

        Example:
            >>> conv = torch.nn.Conv2d(8, 4, 3, stride=2, padding=1)
            >>> layer = DynamicDilationConv2d.from_conv(conv)
            >>> input = torch.randn(2, 8, 6, 7)
            >>> torch.allclose(layer(input), conv(input), atol=1e-5)
            True
        """
        if isinstance(conv, cls):
            return conv
        kind = _CONVOLUTIONS[cls._axes - 1]
        if not isinstance(conv, kind):
            expected = f"torch.nn.{kind.__name__}"
            raise TypeError(f"from_conv(): expected conv to be a {expected}, but got {type(conv).__name__}")
        changes = _changes_of(conv, kind)
        if changes:
            raise TypeError(
                f"from_conv(): expected conv to compute what torch.nn.{kind.__name__} does, but got "
                f"{type(conv).__name__} with {', '.join(changes)} of its own"
            )
        plain: Any = conv
        if plain.padding_mode not in _PADDING_MODES:
            raise TypeError(
                "from_conv(): expected conv to have padding_mode 'zeros', 'replicate' or 'reflect', but got "
                f"{plain.padding_mode!r}"
            )
        reach = [d * (k - 1) for d, k in zip(plain.dilation, plain.kernel_size, strict=True)]
        if plain.padding == "same" and plain.padding_mode != "zeros" and any(r % 2 for r in reach):
            raise TypeError(
                "from_conv(): expected conv to pad as much on both sides with padding_mode="
                f"{plain.padding_mode!r}, but got padding='same' with dilation * (kernel_size - 1) = {tuple(reach)}"
            )
        _check_weight(plain)
        make: Any = cls
        layer = make(
            plain.in_channels,
            plain.out_channels,
            plain.kernel_size,
            plain.stride,
            plain.padding,
            plain.dilation,
            plain.groups,
            plain.bias is not None,
            **{
                "padding_mode": plain.padding_mode,
                "device": plain.weight.device,
                "dtype": plain.weight.dtype,
                **options,
            },
        )
        with torch.no_grad():
            for own, trained in ((layer.weight, plain.weight), (layer.bias, plain.bias)):
                if own is not None and trained is not None:
                    own.copy_(trained).requires_grad_(trained.requires_grad)
        return layer.train(conv.training)

    def extra_repr(self) -> str:
        text = (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, dilation={self.dilation}, groups={self.groups}, bias={self.bias is not None}"
        )
        return text if self.padding_mode == "zeros" else f"{text}, padding_mode={self.padding_mode}"


class _DynamicDilationConv(_Convolution):
    _predictor = "rate"
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
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        name = f"DynamicDilationConv{self._axes}d"
        window, options = (kernel_size, stride, padding, dilation), {"device": device, "dtype": dtype}
        in_channels = integer(in_channels, "in_channels", name, ValueError, least=0)
        dilation_groups = integer(dilation_groups, "dilation_groups", name, ValueError, least=1)
        if in_channels % dilation_groups:
            raise ValueError(
                f"{name}(): expected dilation_groups to divide in_channels = {in_channels}, but got {dilation_groups}"
            )
        self._start(name, (in_channels, out_channels), window, groups, bias, padding_mode, options)
        self.dilation_groups = dilation_groups
        self.aligned = aligned
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
                axes=self._axes,
                bounds=bounds,
                pace=pace,
                **options,
            )

    def forward(self, input: Tensor, dilation_map: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        check_input(type(self).__name__, input, self._axes, self.in_channels)
        if self.rate is None:
            self._require_given("DynamicDilationConv", "dilation_map", dilation_map)
        elif dilation_map is None or _may_be_left_out(dilation_map):
            dilation_map = _given_or(dilation_map, self.rate(input))
        return type(self)._function(
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
            padding_mode=self.padding_mode,
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, dilation_groups={self.dilation_groups}, aligned={self.aligned}"


class DynamicDilationConv1d(_DynamicDilationConv, nn.Conv1d):
    """The module form of :func:`~ddu_ops.dynamic_dilation_conv1d`: see :class:`DynamicDilationConv2d`.

    Example:
        >>> layer = DynamicDilationConv1d(8, 4, 3, padding=1, padding_mode="replicate")
        >>> layer(torch.randn(2, 8, 9)).shape
        torch.Size([2, 4, 9])
    """

    _axes = 1
    _function = staticmethod(dynamic_dilation_conv1d)


class DynamicDilationConv2d(_DynamicDilationConv, nn.Conv2d):
    """A convolution with a dilation rate for every position, which it can predict itself.

    The module form of :func:`~ddu_ops.dynamic_dilation_conv2d`, and a replacement for :class:`torch.nn.Conv2d`: it has
    the same parameters, and its first arguments are the same. It predicts the dilation map from its input with a
    :class:`DilationPredictor` that has the window of the layer. The rates start at one, so the layer starts as the
    ``Conv2d`` with the same weights, up to the order of additions.

    It is a subclass of ``Conv2d``, so code that finds convolutions by ``isinstance`` to initialise weights, to group
    them for weight decay or to prune them also finds this layer. Code that replaces every ``Conv2d`` by another layer
    has to skip it, as :meth:`from_conv` does.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias: as in
            :class:`torch.nn.Conv2d`; ``dilation`` multiplies the rates.
        dilation_groups: number of channel groups, each with its own map. Default: 1.
        per_axis: ``True`` to predict a rate for each axis, ``False`` for one rate for all axes. Default: ``False``.
        bounds, pace: of the predicted rates: see :class:`DilationPredictor`. Default: (0, 4) and 0.1.
        predict: ``False`` for a layer without a predictor; every call then needs a map. Default: ``True``.
        aligned: as in :func:`~ddu_ops.dynamic_dilation_conv2d`.
        padding_mode: as in that function, or the names that :class:`torch.nn.Conv2d` uses, ``"replicate"`` and
            ``"reflect"``. The predictor pads with zeros.
        device, dtype: as in :class:`torch.nn.Conv2d`.

    Attributes:
        weight, bias: as in :class:`torch.nn.Conv2d`, whose ``state_dict`` the layer loads with all rates one.
        rate: the predictor, or ``None``.

    Shape:
        As in :func:`~ddu_ops.dynamic_dilation_conv2d`. ``forward(input, dilation_map=None, mask=None)`` predicts the
        map if none is given.

    Raises:
        RuntimeError: in a call, as :func:`~ddu_ops.dynamic_dilation_conv2d`; or if there is neither a predictor nor a
            map.
        ValueError: from the constructor, if ``groups`` or ``dilation_groups`` do not divide the channels, if 1 does not
            lie between the bounds, and for an unsupported ``padding_mode``, such as ``"circular"``.

    Example:
        >>> layer = DynamicDilationConv2d(8, 4, 3, padding=1)
        >>> input = torch.randn(2, 8, 6, 7)
        >>> plain = F.conv2d(input, layer.weight, layer.bias, padding=1)
        >>> torch.allclose(layer(input), plain, atol=1e-5)
        True
        >>> layer.rate(input).shape  # the map
        torch.Size([2, 1, 6, 7])
    """

    _axes = 2
    _function = staticmethod(dynamic_dilation_conv2d)


class DynamicDilationConv3d(_DynamicDilationConv, nn.Conv3d):
    """The module form of :func:`~ddu_ops.dynamic_dilation_conv3d`: see :class:`DynamicDilationConv2d`.

    Example:
        >>> layer = DynamicDilationConv3d(8, 4, 3, padding=1, per_axis=True)
        >>> layer(torch.randn(2, 8, 5, 6, 7)).shape
        torch.Size([2, 4, 5, 6, 7])
        >>> layer.rate(torch.randn(2, 8, 5, 6, 7)).shape  # the map
        torch.Size([2, 3, 5, 6, 7])
    """

    _axes = 3
    _function = staticmethod(dynamic_dilation_conv3d)


class _DeformConv(_Convolution):
    _predictor = "offset"
    offset: OffsetPredictor | None

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
        predict: bool = False,
        offset_groups: int = 1,
        mask: str | None = "sigmoid",
        bound: float | None = None,
        moved: Sequence[int] | None = None,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        name = f"DeformConv{self._axes}d"
        window, options = (kernel_size, stride, padding, dilation), {"device": device, "dtype": dtype}
        in_channels = integer(in_channels, "in_channels", name, ValueError, least=0)
        offset_groups = integer(offset_groups, "offset_groups", name, ValueError, least=1)
        if in_channels % offset_groups:
            raise ValueError(
                f"{name}(): expected offset_groups to divide in_channels = {in_channels}, but got {offset_groups}"
            )
        self._start(name, (in_channels, out_channels), window, groups, bias, padding_mode, options)
        self.offset = None
        if predict:
            self.offset = OffsetPredictor(
                in_channels,
                self.kernel_size,
                self.stride,
                self.padding,
                self.dilation,
                offset_groups=offset_groups,
                mask=mask,
                bound=bound,
                moved=moved,
                axes=self._axes,
                **options,
            )

    def forward(self, input: Tensor, offset: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        check_input(type(self).__name__, input, self._axes, self.in_channels)
        if self.offset is None:
            self._require_given("DeformConv", "offset", offset)
        else:
            left_out = [argument is None or _may_be_left_out(argument) for argument in (offset, mask)]
            if any(left_out):
                own_offset, own_mask = self.offset(input)
                offset = _given_or(offset, own_offset) if left_out[0] else offset
                mask = _given_or(mask, own_mask) if left_out[1] and self.offset.mask is not None else mask
        return type(self)._function(
            input,
            offset,
            self.weight,
            self.bias,
            self.stride,
            self.padding,
            self.dilation,
            mask,
            padding_mode=self.padding_mode,
        )


class DeformConv1d(_DeformConv, nn.Conv1d):
    """The module form of :func:`~ddu_ops.deform_conv1d`: see :class:`DeformConv2d`.

    Example:
        >>> layer = DeformConv1d(8, 4, 3, padding=1, predict=True)
        >>> layer(torch.randn(2, 8, 9)).shape
        torch.Size([2, 4, 9])
    """

    _axes = 1
    _function = staticmethod(deform_conv1d)


class DeformConv2d(_DeformConv, nn.Conv2d):
    """A deformable convolution, which takes the offsets of its taps or predicts them.

    The module form of :func:`~ddu_ops.deform_conv2d`. Its first arguments and its parameters are those of
    :class:`torch.nn.Conv2d`, and so those of ``torchvision.ops.DeformConv2d``, whose ``state_dict`` it loads. With
    ``predict=True`` it predicts offsets and mask from its input with an :class:`OffsetPredictor` that has the window of
    the layer, and starts as the ``Conv2d`` with the same weights, up to the order of additions. :func:`convert_mmcv`
    converts the ``state_dict`` of mmcv's layer for it. Like :class:`DynamicDilationConv2d` it is a subclass of
    ``Conv2d``.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias: as in
            :class:`torch.nn.Conv2d`.
        predict: ``True`` to predict offsets and mask if a call has none; with ``False`` every call needs offsets.
            Default: ``False``.
        offset_groups, mask, bound, moved: of the predictor: see :class:`OffsetPredictor`.
        padding_mode: as in :func:`~ddu_ops.deform_conv2d`, or the names that :class:`torch.nn.Conv2d` uses,
            ``"replicate"`` and ``"reflect"``. The predictor pads with zeros.
        device, dtype: as in :class:`torch.nn.Conv2d`.

    Attributes:
        weight, bias: as in :class:`torch.nn.Conv2d`.
        offset: the predictor, or ``None``.

    Shape:
        As in :func:`~ddu_ops.deform_conv2d`. ``forward(input, offset=None, mask=None)`` predicts what is not given.

    Raises:
        RuntimeError: in a call, as :func:`~ddu_ops.deform_conv2d`; or if there are neither a predictor nor offsets.
        ValueError: from the constructor, if ``groups`` or ``offset_groups`` do not divide the channels, for an
            unsupported ``padding_mode``, and as :class:`OffsetPredictor`.

    Example:
        >>> layer = DeformConv2d(8, 4, 3, padding=1, predict=True)
        >>> input = torch.randn(2, 8, 6, 7)
        >>> torch.allclose(layer(input), F.conv2d(input, layer.weight, layer.bias, padding=1), atol=1e-5)
        True
        >>> given = DeformConv2d(8, 4, 3, padding=1)
        >>> given(input, torch.randn(2, 18, 6, 7)).shape
        torch.Size([2, 4, 6, 7])
    """

    _axes = 2
    _function = staticmethod(deform_conv2d)


class DeformConv3d(_DeformConv, nn.Conv3d):
    """The module form of :func:`~ddu_ops.deform_conv3d`: see :class:`DeformConv2d`.

    Example:
        >>> layer = DeformConv3d(8, 4, 3, padding=1, predict=True, moved=(1, 2))  # within the frames of a video
        >>> layer(torch.randn(2, 8, 5, 6, 7)).shape
        torch.Size([2, 4, 5, 6, 7])
    """

    _axes = 3
    _function = staticmethod(deform_conv3d)


class _AffineConv(_Convolution):
    _predictor = "theta"
    theta: AffinePredictor | None

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
        predict: bool = False,
        theta_groups: int = 1,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        name = f"AffineConv{self._axes}d"
        window, options = (kernel_size, stride, padding, dilation), {"device": device, "dtype": dtype}
        in_channels = integer(in_channels, "in_channels", name, ValueError, least=0)
        theta_groups = integer(theta_groups, "theta_groups", name, ValueError, least=1)
        if in_channels % theta_groups:
            raise ValueError(
                f"{name}(): expected theta_groups to divide in_channels = {in_channels}, but got {theta_groups}"
            )
        self._start(name, (in_channels, out_channels), window, groups, bias, padding_mode, options)
        self.theta_groups = theta_groups
        self.theta = None
        if predict:
            self.theta = AffinePredictor(
                in_channels,
                self.kernel_size,
                self.stride,
                self.padding,
                self.dilation,
                theta_groups=theta_groups,
                axes=self._axes,
                **options,
            )

    def forward(self, input: Tensor, theta: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        check_input(type(self).__name__, input, self._axes, self.in_channels)
        if self.theta is None:
            self._require_given("AffineConv", "theta", theta)
        elif theta is None or _may_be_left_out(theta):
            theta = _given_or(theta, self.theta(input))
        return type(self)._function(
            input,
            self.weight,
            theta,
            self.bias,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            theta_groups=self.theta_groups,
            mask=mask,
            padding_mode=self.padding_mode,
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, theta_groups={self.theta_groups}"


class AffineConv1d(_AffineConv, nn.Conv1d):
    """The module form of :func:`~ddu_ops.affine_conv1d`: see :class:`AffineConv2d`.

    Example:
        >>> layer = AffineConv1d(8, 4, 3, padding=1, predict=True)
        >>> layer(torch.randn(2, 8, 9)).shape
        torch.Size([2, 4, 9])
    """

    _axes = 1
    _function = staticmethod(affine_conv1d)


class AffineConv2d(_AffineConv, nn.Conv2d):
    """A convolution whose windows are turned, stretched and moved by affine maps, which it takes or predicts.

    The module form of :func:`~ddu_ops.affine_conv2d`. Its first arguments and its parameters are those of
    :class:`torch.nn.Conv2d`. With ``predict`` it makes the maps of its input by an :class:`AffinePredictor` with the
    window of the layer, and starts as the ``Conv2d`` with the same weights, up to the order of the additions. It is a
    ``Conv2d``, as :class:`DynamicDilationConv2d` is.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias: as in
            :class:`torch.nn.Conv2d`.
        predict: predict the maps of calls that pass none. Default: every call passes them.
        theta_groups: number of channel groups that have maps of their own. Default: 1.
        padding_mode: as in :func:`~ddu_ops.affine_conv2d`, or in the words of :class:`torch.nn.Conv2d`, ``"replicate"``
            and ``"reflect"``. The predictor pads with zeros.
        device, dtype: as in :class:`torch.nn.Conv2d`.

    Attributes:
        weight, bias: as in :class:`torch.nn.Conv2d`.
        theta: the predictor, or ``None``.

    Shape:
        As in :func:`~ddu_ops.affine_conv2d`. ``forward(input, theta=None, mask=None)`` takes the maps from the
        predictor where they are not given.

    Raises:
        RuntimeError: in a call, as :func:`~ddu_ops.affine_conv2d`; without a predictor and without maps.
        ValueError: from the constructor, for channels that ``groups`` or ``theta_groups`` do not divide, and for an
            unknown ``padding_mode``.

    Example:
        >>> layer = AffineConv2d(8, 4, 3, padding=1, predict=True)
        >>> input = torch.randn(2, 8, 6, 7)
        >>> torch.allclose(layer(input), F.conv2d(input, layer.weight, layer.bias, padding=1), atol=1e-5)
        True
    """

    _axes = 2
    _function = staticmethod(affine_conv2d)


class AffineConv3d(_AffineConv, nn.Conv3d):
    """The module form of :func:`~ddu_ops.affine_conv3d`: see :class:`AffineConv2d`.

    Example:
        >>> layer = AffineConv3d(8, 4, 3, padding=1, predict=True)
        >>> layer(torch.randn(2, 8, 5, 6, 7)).shape
        torch.Size([2, 4, 5, 6, 7])
    """

    _axes = 3
    _function = staticmethod(affine_conv3d)


def convert_mmcv(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert the ``state_dict`` of a model with mmcv's ``ModulatedDeformConv2dPack`` for :class:`DeformConv2d`.

    The replacement is ``DeformConv2d(..., offset_groups=deform_groups, predict=True)``. Its predictor has the channels
    of mmcv's ``conv_offset`` in the same order. mmcv's factors are sigmoids, which start at 0.5; those of
    :class:`DeformConv2d` are twice as large, so the weights of these layers are halved, which is exact. Everything else
    is unchanged. The names of mmcv's first version, ``conv2_offset`` beside ``conv2``, are also converted.

    A ``DeformConv2dPack``, which has no factors, becomes ``DeformConv2d(..., predict=True, mask=None)``, and keeps its
    weights. It is told by a number of predicted channels that is no multiple of three for each tap.

    Args:
        state_dict: the state of a layer or of a whole model.

    Example:
        >>> theirs = {"weight": torch.ones(4, 8, 3, 3), "bias": torch.zeros(4)}
        >>> theirs |= {"conv_offset.weight": torch.zeros(27, 8, 3, 3), "conv_offset.bias": torch.zeros(27)}
        >>> layer = DeformConv2d(8, 4, 3, padding=1, predict=True)
        >>> layer.load_state_dict(convert_mmcv(theirs))
        <All keys matched successfully>
    """
    converted = dict(state_dict)
    for key in state_dict:
        stem, _, parameter = key.rpartition(".")
        if stem == "conv_offset" or stem.endswith(".conv_offset"):
            layer = stem.removesuffix("conv_offset")
        elif stem.endswith("_offset") and f"{stem.removesuffix('_offset')}.weight" in state_dict:
            layer = f"{stem.removesuffix('_offset')}."
        else:
            continue
        converted[f"{layer}offset.{parameter}"] = converted.pop(key)
        weight = state_dict.get(f"{layer}weight")
        if parameter == "weight" and weight is not None:
            factors = state_dict[key].shape[0] % (3 * math.prod(weight.shape[2:])) == 0
            converted[f"{layer}weight"] = weight / 2 if factors else weight
    return converted
