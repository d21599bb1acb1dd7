"""Convert the convolutions of a model into adaptive layers, and adaptive layers with constant rates back."""

import copy
import fnmatch
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ddu_ops._options import ints
from ddu_ops.modules import (
    _CONVOLUTIONS,
    _HOOKS,
    _PADDING_MODES,
    AffineConv1d,
    AffineConv2d,
    AffineConv3d,
    DeformConv1d,
    DeformConv2d,
    DeformConv3d,
    DynamicDilationConv1d,
    DynamicDilationConv2d,
    DynamicDilationConv3d,
    _changes_of,
)

# By the number of axes, as _CONVOLUTIONS.
_ADAPTIVE: dict[str, tuple[type[Any], ...]] = {
    "rates": (DynamicDilationConv1d, DynamicDilationConv2d, DynamicDilationConv3d),
    "offsets": (DeformConv1d, DeformConv2d, DeformConv3d),
    "affine": (AffineConv1d, AffineConv2d, AffineConv3d),
}
_ALREADY = tuple(kind for kinds in _ADAPTIVE.values() for kind in kinds)
_OPTIONS = ("dilation_groups", "aligned")  # of adaptive layers alone
# torch's words for what lies outside, which come last.
_WORDS: dict[str, Any] = {mode: word for word, mode in _PADDING_MODES.items()}


@dataclass(frozen=True)
class Change:
    """A layer that was replaced, or the reason why it was not.

    Attributes:
        name: the name of the layer in the model; the first one if the layer is used in several places.
        before, after: the layers; ``after`` is ``before`` if nothing was changed.
        note: what was changed, or why not.
    """

    name: str
    before: nn.Module
    after: nn.Module
    note: str


@dataclass(frozen=True, repr=False)
class Conversion:
    """The result of a conversion.

    Attributes:
        model: the same object that was passed, unless it was itself a layer that was replaced.
        changes: a :class:`Change` for each layer that was considered. Printing the conversion shows them as a table.
        added: the new parameters, for a separate group of an optimiser.
    """

    model: nn.Module
    changes: tuple[Change, ...]
    added: list[nn.Parameter] = field(default_factory=list)

    def parameter_groups(self, **options: Any) -> list[dict[str, Any]]:
        """Two groups for an optimiser: the existing parameters, and the new ones with separate options.

        Args:
            options: options of the new group, such as ``lr``.
        """
        new = {id(parameter) for parameter in self.added}
        rest = [parameter for parameter in self.model.parameters() if id(parameter) not in new]
        return [{"params": rest}, {"params": self.added, **options}]

    def __repr__(self) -> str:
        rows = [("layer", "was", "is", "")]
        rows += [(c.name or "(the model)", _kind(c.before), _kind(c.after), c.note) for c in self.changes]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join(lines)


def _kind(module: nn.Module) -> str:
    return type(module).__name__


# ---- Fixed to adaptive ----


def adapt(
    model: nn.Module,
    names: str | Sequence[str] = "*",
    *,
    types: type[nn.Module] | tuple[type[nn.Module], ...] = _CONVOLUTIONS,
    where: Callable[[str, nn.Module], bool] | None = None,
    source: str = "rates",
    **options: Any,
) -> Conversion:
    """Replace convolutions of a model by adaptive layers, which start with the same results.

    Each selected layer becomes a :class:`~ddu_ops.DynamicDilationConv2d`, or its counterpart for signals and volumes,
    a :class:`~ddu_ops.DeformConv2d` or an :class:`~ddu_ops.AffineConv2d`. The layers keep their parameter objects, and
    so optimiser state, ties and ``requires_grad``; hooks, with the handles that remove them; device, type and mode; and
    the padding modes ``replicate`` and ``reflect``. The predictors start at rates of one, offsets of zero or the
    identity, so the results of the model are unchanged up to rounding. Layers that are already adaptive are left
    unchanged, so calling this twice has no further effect.

    Args:
        model: changed in place. Adapt it before it is compiled or wrapped for several processes.
        names: glob patterns, one of which has to match the name of a layer: ``"layer[34].*"``. Default: all names.
        types: classes of layers. Default: convolutions that are not transposed, including all subclasses.
        where: a function of a layer's name and the layer that returns whether to replace it. Default: layers whose
            kernel has three or more taps on some axis.
        source: what the new layers predict: ``"rates"``, ``"offsets"`` or ``"affine"``. Default: ``"rates"``.
        options: keyword arguments of the new layers, such as ``bounds``.

    Returns:
        A :class:`~ddu_ops.conversion.Conversion` with the model and the new parameters, which prints as a table.

    Raises:
        ValueError: for an unknown ``source``.
        TypeError: for selected layers whose results would change, with names and reasons: ``circular`` padding,
            subclasses with their own ``forward``, parametrised weights, lazy layers. The model is then unchanged; use
            ``names`` and ``where`` to exclude such layers.

    Warns:
        UserWarning: if no layer is selected and the model has no adaptive layer.

    Example:
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 1)
        ... )
        >>> adapted = adapt(model)
        >>> print(adapted)
        layer  was     is
        0      Conv2d  DynamicDilationConv2d  28 new parameters
        >>> optimizer = torch.optim.AdamW(adapted.parameter_groups(lr=1e-4, weight_decay=0.0), lr=1e-3)
    """
    if source not in _ADAPTIVE:
        *known, last = map(repr, _ADAPTIVE)
        raise ValueError(f"adapt(): expected source to be {', '.join(known)} or {last}, but got {source!r}")
    patterns = [names] if isinstance(names, str) else list(names)
    chosen: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if (
            isinstance(module, types)
            and isinstance(module, _CONVOLUTIONS)
            and not isinstance(module, _ALREADY)
            and any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
            and (max(module.kernel_size) >= 3 if where is None else where(name, module))
        ):
            chosen[name] = module
    if not chosen and not any(isinstance(module, _ALREADY) for module in model.modules()):
        warnings.warn(
            "adapt(): no layer was replaced, because none is selected by names, types and where", stacklevel=2
        )
    made: dict[nn.Module, nn.Module] = {}
    refused = []
    for name, module in chosen.items():
        try:
            made[module] = _adaptive(module, source, options)
        except (TypeError, ValueError) as error:
            refused.append(f"{name or '(the model)'}: {error}")
    if refused:
        raise TypeError(
            "adapt(): expected layers whose results can be kept, but got\n  "
            + "\n  ".join(refused)
            + "\nLeave them out by names or where."
        )
    changes = []
    added: list[nn.Parameter] = []
    for name, module in chosen.items():
        layer = made[module]
        new = [p for key, p in layer.named_parameters() if key not in ("weight", "bias")]
        added += new
        changes.append(Change(name, module, layer, f"{sum(p.numel() for p in new)} new parameters"))
        _take_over(module, layer)
    return Conversion(_replaced(model, made), tuple(changes), added)


def _adaptive(conv: Any, source: str, options: dict[str, Any]) -> nn.Module:
    """An adaptive layer, without the parameters and hooks of the layer that it replaces."""
    others = _others(conv)
    if others:
        raise TypeError(f"expected parameters weight and bias, but got {', '.join(others)}, too")
    bare = _bare(conv)
    kind = _ADAPTIVE[source][len(bare.kernel_size) - 1]
    return kind.from_conv(bare, **(options if source == "rates" else {"predict": True, **options}))


def _others(layer: nn.Module, *known: str) -> list[str]:
    """The parameters that a plain convolution does not have."""
    return sorted({*layer._parameters, *layer._buffers, *layer._modules} - {"weight", "bias", *known})


def _bare(layer: Any) -> Any:
    """The layer without its hooks, which are moved separately."""
    bare = copy.copy(layer)
    for key in _hooks(layer):
        vars(bare)[key] = type(vars(layer)[key])()
    return bare


def _hooks(module: nn.Module) -> list[str]:
    return [key for key, value in vars(module).items() if "_hooks" in key and isinstance(value, dict)]


def _take_over(old: nn.Module, new: nn.Module) -> None:
    """Moves parameters and hooks, as the same objects, and other attributes that users added to the layer."""
    for key in ("weight", "bias"):
        setattr(new, key, getattr(old, key))
    for key in (*_hooks(old), "_is_full_backward_hook"):
        vars(new)[key] = vars(old)[key]
    for key, value in vars(old).items():
        if key not in _OPTIONS:
            vars(new).setdefault(key, value)


def _replaced(model: nn.Module, made: dict[nn.Module, nn.Module]) -> nn.Module:
    """The model, with every occurrence of the old layers replaced."""
    for parent in list(model.modules()):
        for key, child in parent._modules.items():
            if child in made:
                parent._modules[key] = made[child]
    return made.get(model, model)


# ---- Adaptive to fixed ----


class _Rates:
    """The rates of a layer, per map, and whether its calls could be those of a plain convolution."""

    def __init__(self, axes: int) -> None:
        self.axes = axes
        self.called, self.plain = False, True
        self.count = 0
        self.total = self.squares = torch.zeros(())
        self.low, self.high = torch.full((), torch.inf), torch.full((), -torch.inf)

    def look(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        self.called = True
        self.plain &= len(args) == 1 and not kwargs

    def add(self, predictor: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], rates: Tensor) -> None:
        found = rates.detach().double().cpu().movedim(-1 - self.axes, 0).flatten(1)  # (maps, positions)
        if not found.numel():
            return
        self.count += found.shape[1]
        self.total = self.total + found.sum(1)
        self.squares = self.squares + found.square().sum(1)
        self.low = torch.minimum(self.low, found.amin(1))
        self.high = torch.maximum(self.high, found.amax(1))


@torch.no_grad()
def to_fixed(
    model: nn.Module, images: Tensor | Iterable[Tensor], *, tolerance: float = 0.1, names: str | Sequence[str] = "*"
) -> Conversion:
    """Replace adaptive layers with nearly constant rates by plain convolutions with the nearest dilation.

    The model runs on the images twice, in evaluation mode. The first run collects the rates. The second compares the
    results of each replaceable layer with those of the convolution that would replace it. The plain layers are faster
    and run in any program that supports convolutions.

    Args:
        model: changed in place.
        images: one or more batches of typical inputs of the model.
        tolerance: the largest root mean square distance of the rates, over all positions, from the nearest whole
            dilation, in pixels between two taps. Default: 0.1.
        names: patterns of the names of layers, as in :func:`adapt`. Default: all.

    Returns:
        A :class:`~ddu_ops.conversion.Conversion`. For every adaptive layer its table shows the rates and how much the
        output of the layer changes, or why the layer was kept. Layers whose results would change in other ways, such as
        subclasses with their own ``forward`` and parametrised or pruned layers, are kept.

    Raises:
        TypeError: if ``images`` is not one or more batches.

    Example:
        >>> model = adapt(torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU())).model
        >>> print(to_fixed(model, torch.randn(4, 3, 16, 16)))
        layer  was                    is
        0      DynamicDilationConv2d  Conv2d  rates 1.00 ± 0.00 (1.00 to 1.00), dilation 1, output changed by 0.0%
    """
    given: Any = images
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise TypeError(f"to_fixed(): expected images to be a batch or several, but got {given!r}")
    batches = [images] if isinstance(images, Tensor) else list(images)
    patterns = [names] if isinstance(names, str) else list(names)
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _ADAPTIVE["rates"]) and any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
    }
    notes = {name: note for name, layer in layers.items() if (note := _own(layer)) is not None}
    rates = {name: _Rates(len(layer.kernel_size)) for name, layer in layers.items() if name not in notes}
    hooks = [
        hook for name, found in rates.items() for hook in ((layers[name], found.look), (layers[name].rate, found.add))
    ]
    _run(model, batches, hooks)
    fixed: dict[str, nn.Module] = {}
    for name, found in rates.items():
        result, notes[name] = _fixed(layers[name], found, tolerance)
        if result is not None:
            fixed[name] = result
    lost = {name: [0.0, 0.0] for name in fixed}
    # In front of other hooks, which may change the output, and which the convolution takes over.
    _run(model, batches, [(layers[name], _compares(fixed[name], lost[name])) for name in fixed], prepend=True)
    changes, made = [], {}
    for name, layer in layers.items():
        if name in fixed:
            difference, size = lost[name]
            notes[name] += f", output changed by {(difference / max(size, 1e-300)) ** 0.5:.1%}"
            _take_over(layer, fixed[name])
            made[layer] = fixed[name]
        changes.append(Change(name, layer, fixed.get(name, layer), notes[name]))
    return Conversion(_replaced(model, made), tuple(changes))


def _run(
    model: nn.Module,
    batches: list[Tensor],
    hooks: list[tuple[nn.Module, Callable[..., None]]],
    prepend: bool = False,
) -> None:
    handles = [module.register_forward_hook(hook, prepend=prepend, with_kwargs=True) for module, hook in hooks]
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        for batch in batches:
            model(batch)
    finally:
        for module in training:
            module.training = True
        for handle in handles:
            handle.remove()


def _compares(fixed: nn.Module, lost: list[float]) -> Callable[..., None]:
    def compare(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        lost[0] += (fixed(args[0]) - output).double().square().sum().item()
        lost[1] += output.double().square().sum().item()

    return compare


def _own(layer: Any) -> str | None:
    """Why a layer is kept, whatever its rates are."""
    others = _others(layer, "rate")
    if others:
        return f"stays: it has {', '.join(others)}, too"
    kind = _ADAPTIVE["rates"][len(layer.kernel_size) - 1]
    changes = _changes_of(_bare(layer), kind)
    if getattr(layer, "rate", None) is None:
        return "stays: it predicts no rates, they are given in every call"
    if changes:
        return f"stays: it is a {_kind(layer)} with {', '.join(changes)} of its own"
    if any(getattr(layer.rate, key) for key in _HOOKS):
        return "stays: its predictor has hooks, which would be lost"
    if layer.weight.shape != (layer.out_channels, layer.in_channels // layer.groups, *layer.kernel_size):
        return f"stays: its options do not say the shape of its weight, {tuple(layer.weight.shape)}"
    return None


def _fixed(layer: Any, rates: _Rates, tolerance: float) -> tuple[nn.Module | None, str]:
    """The plain convolution and a note on the rates; or ``None`` and the reason."""
    if not rates.count:
        return None, "stays: its images are empty" if rates.called else "stays: the model did not call it"
    if not rates.plain:
        return None, "stays: its calls bring a map or a mask"
    if not layer.aligned:
        return None, "stays: its windows are not centred (aligned=False)"
    if not torch.isfinite(torch.stack([rates.low, rates.high])).all():
        return None, "stays: its rates are not finite"
    axes = len(layer.kernel_size)
    mean = rates.total / rates.count
    deviation = (rates.squares / rates.count - mean.square()).clamp(min=0).sqrt()
    note = (
        f"rates {mean.mean():.2f} ± {deviation.square().mean().sqrt():.2f} "
        f"({rates.low.min():.2f} to {rates.high.max():.2f})"
    )
    per_axis = len(mean) // layer.dilation_groups
    base = torch.tensor(layer.dilation, dtype=torch.float64)[:per_axis] if per_axis > 1 else None
    spacing = mean.view(-1, per_axis) * (base if base is not None else 1)
    dilations = []
    for axis, d in enumerate(layer.dilation):
        places = spacing[:, axis] if base is not None else spacing[:, 0] * d
        spread = deviation.view(-1, per_axis)[:, axis if base is not None else 0] * d
        nearest = {max(round(place), 1) for place in places.tolist()}
        dilation = nearest.pop()
        away = ((places - dilation).square() + spread.square()).mean().sqrt().item()
        if layer.kernel_size[axis] > 1 and (nearest or away > tolerance):
            return None, f"{note}: stays, {away:.2f} from dilation {dilation}"
        dilations.append(dilation if layer.kernel_size[axis] > 1 else d)
    padding = layer.padding
    if padding != "same":
        padding = ints(0 if padding == "valid" else padding, axes, "padding", "to_fixed")
        more = [(new - old) * (k - 1) for new, old, k in zip(dilations, layer.dilation, layer.kernel_size, strict=True)]
        if any(m % 2 or p + m // 2 < 0 for p, m in zip(padding, more, strict=True)):
            return None, f"{note}: stays, no padding centres the windows of dilation {_text(dilations)}"
        padding = tuple(p + m // 2 for p, m in zip(padding, more, strict=True))
    conv = _CONVOLUTIONS[axes - 1](
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,
        layer.stride,
        padding,
        tuple(dilations),
        layer.groups,
        layer.bias is not None,
        _WORDS[layer.padding_mode],
        device="meta",
    )
    conv.weight, conv.bias = layer.weight, layer.bias
    return conv.train(layer.training), f"{note}, dilation {_text(dilations)}"


def _text(dilations: Sequence[int]) -> str:
    return str(dilations[0]) if len(set(dilations)) == 1 else str(tuple(dilations))
