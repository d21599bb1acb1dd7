"""Everything public, and how it is called: what the contracts of ``test_contracts.py`` run over.

Names come from the package: what ``__all__`` lists, of it and of its modules, and in a module without one what is
defined there. What is called with tensors is called by its signature: an argument is made from its name, a number that
is an option has two values here. So a new function or module takes part by itself where it keeps to the names of the
others. Where it does not, ``test_every_public_name_is_held_to_the_contracts`` asks for an entry.
"""

import importlib
import inspect
import math
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, SupportsIndex, get_args

import pytest
import torch
from torch import Tensor, nn

import ddu_ops
from ddu_ops import receptive_field, recorder, viz

BATCH, CHANNELS, SIDE = 2, 4, 6

# Of an option that is a number, the value that is its default here, and another.
NUMBERS: dict[str, tuple[int, int]] = {
    "kernel_size": (3, 2),
    "stride": (1, 2),
    "padding": (1, 2),
    "dilation": (1, 2),
    "output_size": (SIDE, SIDE - 1),
    "groups": (1, 2),
    "dilation_groups": (1, 2),
    "mask_groups": (1, 2),
    "theta_groups": (1, 2),
    "in_channels": (CHANNELS, CHANNELS),
    "out_channels": (4, 6),
    "offset_groups": (1, 2),
    "axes": (2, 2),
}


def modules() -> dict[str, ModuleType]:
    """The package and its public modules by their names below it, but for those whose contents it exports itself."""
    found = {"": ddu_ops}
    for info in pkgutil.walk_packages(ddu_ops.__path__, "ddu_ops."):
        name = info.name.removeprefix("ddu_ops.")
        if not any(part.startswith("_") for part in name.split(".")) and name not in ("functional", "modules"):
            found[name] = importlib.import_module(info.name)
    return found


def names() -> dict[str, Any]:
    """Everything public by its name, such as ``layers.DynamicASPP``; modules themselves are left out."""
    found: dict[str, Any] = {}
    for path, module in modules().items():
        listed = getattr(module, "__all__", None)
        if listed is None:
            own = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
            listed = [name for name in own if not name.startswith("_")]
        for name in listed:
            value = getattr(module, name)
            if not isinstance(value, ModuleType) and not any(value is other for other in found.values()):
                found[f"{path}.{name}" if path else name] = value
    return found


# ---- What is called with tensors ----


AXES = {"Dcls2_1d": 2, "Dcls3_1d": 3, "Dcls3_2d": 3, "WaveNet": 1, "WaveNetBlock": 1}  # which the name does not say


def axes_of(name: str) -> int:
    return AXES.get(name) or next((n for n in (1, 2, 3) if f"{n}d" in name.lower()), 2)


def _ints(value: Any, axes: int) -> tuple[int, ...]:
    return (value,) * axes if isinstance(value, int) else tuple(value)


@dataclass
class Problem:
    """The tensors of one problem by the names of arguments."""

    axes: int
    options: dict[str, Any]
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)

    def _of(self, option: str) -> tuple[int, ...]:
        return _ints(self.options.get(option, NUMBERS[option][0] if option != "padding" else 0), self.axes)

    @property
    def taps(self) -> int:
        return math.prod(self._of("kernel_size"))

    @property
    def grid(self) -> tuple[int, ...]:
        windows = (self._of(name) for name in ("kernel_size", "stride", "padding", "dilation"))
        return ddu_ops.grid_size(self._of("output_size"), *windows)

    @property
    def groups(self) -> int:
        """Of the positions."""
        named = next(
            (name for name in ("dilation_groups", "offset_groups", "theta_groups") if name in self.options), "groups"
        )
        return self.options.get(named, 1)

    def _random(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=self.dtype)

    def _uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator, dtype=self.dtype)

    def input(self) -> Tensor:
        return self._random(BATCH, CHANNELS, *self._of("output_size"))

    def query(self) -> Tensor:
        return self._random(BATCH, CHANNELS, *self.grid)

    def weight(self) -> Tensor:
        return self._random(4, CHANNELS // self.options.get("groups", 1), *self._of("kernel_size"))

    def dilation_map(self) -> Tensor:
        return self._uniform(BATCH, self.groups, *self.grid) * 3

    def offset(self) -> Tensor:
        return self._random(BATCH, self.groups * self.taps * self.axes, *self.grid)

    def theta(self) -> Tensor:
        return self._random(BATCH, self.groups * self.axes * (self.axes + 1), *self.grid)

    def boxes(self) -> Tensor:
        return self._uniform(BATCH, self.groups * 4, *self.grid) * SIDE

    def mask(self) -> Tensor:
        return self._uniform(BATCH, self.groups * self.taps, *self.grid)

    def bias(self) -> Tensor:
        return self._random(4)

    def columns(self) -> Tensor:
        return self._random(BATCH, CHANNELS * self.taps, math.prod(self.grid))


@dataclass
class Subject:
    """A function or a module, and how it is called.

    Attributes:
        name: as people write it, below the package.
        target: the function or the class.
        options: what it is given beside its tensors.
        tensors: the names of those.
    """

    name: str
    target: Callable[..., Any]
    options: dict[str, Any]
    tensors: list[str]
    numbers: dict[str, bool] = field(default_factory=dict)  # options that are numbers, and whether one per axis may be
    optional: frozenset[str] = frozenset()  # those of them that may be None

    @property
    def kind(self) -> str:
        if isinstance(self.target, type):
            return "module"
        return "reference" if self.name.startswith("reference.") else "function"

    @property
    def title(self) -> str:
        """What messages start with."""
        return self.target.__name__

    @property
    def axes(self) -> int:
        return axes_of(self.title)

    def arguments(self, dtype: torch.dtype = torch.float32, **options: Any) -> tuple[Tensor, ...]:
        """The tensors of a call with these options."""
        problem = Problem(self.axes, {**self.options, **options}, dtype)
        return tuple(getattr(problem, name)() for name in self.tensors)

    def function(self, **options: Any) -> Callable[..., Any]:
        """What is called with the tensors: a module of its own, or the function with its options."""
        options = {**self.options, **options}
        if self.kind == "module":
            torch.manual_seed(0)
            return lively(self.target(**options).eval())

        def call(*tensors: Tensor) -> Any:
            return self.target(**dict(zip(self.tensors, tensors, strict=True)), **options)

        return call

    def make(self, **options: Any) -> nn.Module:
        return self.target(**self.options, **options)

    def values(self, option: str) -> tuple[int, int]:
        """Two values of an option that is a number, the default of the contracts first."""
        own = next((numbers for name, numbers in OWN_NUMBERS.items() if self.name.startswith(name)), {})
        return own.get(option, NUMBERS[option])


def lively(module: nn.Module) -> nn.Module:
    """With weights where a new module has zeros, so that its rates differ from place to place."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            if not parameter.is_meta and not parameter.count_nonzero():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return module


# Options of what can't be called by its signature alone, or not at little cost.
_DCLS = {"kernel_count": 2, "dilated_kernel_size": 5}
_HEADS = {"dim": CHANNELS, "num_heads": 2}
OPTIONS: dict[str, dict[str, Any]] = {
    "AffineConv1d": {"predict": True},
    "AffineConv2d": {"predict": True},
    "AffineConv3d": {"predict": True},
    "DeformConv1d": {"predict": True},
    "DeformConv2d": {"predict": True},
    "DeformConv3d": {"predict": True},
    "dcls.Dcls1d": _DCLS,
    "dcls.Dcls2_1d": {**_DCLS, "dense_kernel_size": 3},
    "dcls.Dcls2d": _DCLS,
    "dcls.Dcls3_1d": {**_DCLS, "dense_kernel_size": 3},
    "dcls.Dcls3_2d": {**_DCLS, "dense_kernel_size": 3},
    "dcls.Dcls3d": _DCLS,
    "layers.DeepLabV2Head": {"num_classes": 3, "rates": (1, 2)},
    "layers.DeepLabV3Head": {"num_classes": 3, "rates": (1, 2), "channels": 4},
    "layers.DenseASPP": {"rates": (1, 2), "hidden": 4, "growth": 4},
    "layers.DilateBlock": {**_HEADS, "dilation": (1, 2)},
    "layers.DilatedBlock": {"channels": CHANNELS, "rates": 2},
    "layers.DilatedStack": {"channels": CHANNELS, "rates": [1, (1, 2)]},
    "layers.DynamicASPP": {"rates": (1, 2)},
    "layers.EfficientASPP": {"reduced_channels": 2},
    "layers.FrequencyAdaptiveConv2d": {"deform_groups": 1},
    "layers.FrequencyAdaptiveConv3d": {"base_dilation": 1, "deform_groups": 1, "adakern_min_channel": 2},
    "layers.FrequencySelection": {"spatial_group": 1, "spatial_kernel": 3},
    "layers.MultiDilatelocalAttention": {"dim": SIDE, "num_heads": 3},
    "layers.MultiScale": {"rates": (1, 2)},
    "layers.NeighborhoodAttention1d": _HEADS,
    "layers.NeighborhoodAttention2d": _HEADS,
    "layers.NeighborhoodAttention3d": _HEADS,
    "layers.WaveNet": {"channels": CHANNELS, "skip_channels": 3, "rates": (1, 2)},
    "layers.WaveNetBlock": {"channels": CHANNELS, "skip_channels": 3},
}
_ODD = {"kernel_size": (3, 5)}  # windows that have a middle
# Of an option that is a number, the values that a layer takes, where it does not take those of NUMBERS.
OWN_NUMBERS: dict[str, dict[str, tuple[int, int]]] = {
    "layers.DilateBlock": _ODD,
    "layers.FrequencyAdaptiveConv2d": {**_ODD, "groups": (1, 1)},  # adaptive kernels have no groups
    "layers.MultiDilatelocalAttention": _ODD,
    "layers.NeighborhoodAttention": _ODD,
    "layers.SmoothedDilatedConv2d": _ODD,
}
# Options with which a conversion is exact, where it is not by the defaults of the class.
CONVERTED: dict[str, dict[str, Any]] = {
    "layers.RandomDilationConv2d": {"rates": (1.0, 1.0)},  # others are drawn in training, with another mean
}
# Layers with parameters of their own, beside those of torch's layers and of predictors, and the reason.
OWN_PARAMETERS: dict[str, tuple[str, ...]] = {
    "dcls.": ("P", "SIG", "bias", "weight"),  # the published names; dcls.parameter_groups groups them
    "layers.AvgPool": ("rate",),  # a rate for each group of channels, of the window itself
    "layers.FrequencyAdaptiveConv2d": ("bias", "weight"),  # the names of the published state
    "layers.FrequencyAdaptiveConv3d": ("weight",),  # the same; it has no bias by default
    "layers.MaxPool": ("rate",),  # as of AvgPool
    "layers.SmoothedDilatedConv2d": ("smoothing",),  # a filter, or a matrix, that all channels share
}
# Parameters of predictors that do not start at zero: the published rates differ a little from one, or start higher.
PREDICTED_ELSEWHERE: dict[str, tuple[str, ...]] = {
    "layers.FrequencyAdaptiveConv2d": ("conv_offset.bias",),
    "layers.FrequencyAdaptiveConv3d": ("adadr.conv_offset.bias",),
}
# With an nn.Linear, whose backward multiplies in the type of the autocast around it: test_so_does_torchs_own_no_linear.
LINEAR = ("layers.DilateBlock", "layers.MultiDilatelocalAttention")
OWN_MAPS = ("layers.MultiDilatelocalAttention", "layers.NeighborhoodAttention")  # of the size of the input

_TENSORS = [name for name in vars(Problem) if not name.startswith("_") and callable(getattr(Problem, name))]


def _takes(annotation: Any, kind: type) -> bool:
    return annotation is kind or kind in get_args(annotation)


def _subjects(name: str, target: Any) -> Iterator[Subject]:
    """How a public name is called by its signature: with the tensors that it needs, and with all that it takes.

    Nothing, where it takes no tensors or one that is not known here.
    """
    if isinstance(target, type) and issubclass(target, nn.Module):
        called: Callable[..., Any] = target.forward
    elif inspect.isfunction(target) and name not in {**APART, **ANALYSIS}:
        called = target
    else:
        return
    given = inspect.signature(target).parameters
    tensors = {
        p.name: p.default is p.empty
        for p in inspect.signature(called).parameters.values()
        if (_takes(p.annotation, Tensor) or p.annotation is p.empty) and p.name in _TENSORS
    }
    numbers = {
        p.name: p.annotation is not int
        for p in given.values()
        if p.annotation is int or _takes(p.annotation, SupportsIndex)
    }
    may_be_none = frozenset(p.name for p in given.values() if p.name in numbers and _takes(p.annotation, type(None)))
    own = OPTIONS.get(name, {})
    options = {option: NUMBERS[option][0] for option in numbers if option in NUMBERS} | own
    needed = [tensor for tensor, is_needed in tensors.items() if is_needed]
    required = (p.name for p in given.values() if p.default is p.empty and p.kind is not p.VAR_KEYWORD)
    unknown = {*required} - {*tensors, *options}
    if not needed or unknown or not {*numbers} <= {*NUMBERS, *own}:
        return
    yield Subject(name, target, options, needed, numbers, may_be_none)
    optional = [tensor for tensor in tensors if tensor not in needed]
    if optional and not name.startswith(OWN_MAPS):
        yield Subject(f"{name} with {', '.join(optional)}", target, options, list(tensors), numbers, may_be_none)


# ---- What is not called with tensors, and so by none of the contracts on them ----

APART = {
    "__version__": "a text",
    "decompositions": "a table: test_decompositions.py",
    "onnx.translations": "a table: test_onnx.py",
    "grid_size": "numbers: test_options.py",
    "predictors": "parts of a model: test_contracts.py",
    "convert_mmcv": "state dicts: test_convolution.py",
    "recorder.RateHistory": "what a recorder has: test_recorder.py",
    "recorder.RateRecorder": "watches a model: test_recorder.py",
    "recorder.lightning_callback": "the same: test_recorder.py",
    "adapt": "a model: test_conversion.py",
    "conversion.Change": "a line of a report: test_conversion.py",
    "conversion.Conversion": "a report: test_conversion.py",
    "to_fixed": "a model: test_conversion.py",
    "dcls.dcls_kernel": "tensors of its own: test_dcls.py",
    "dcls.layers": "parts of a model: test_dcls.py",
    "dcls.parameter_groups": "parts of a model: test_dcls.py",
    "dcls.published_positions": "states: test_dcls.py",
    "dcls.repulsion_loss": "tensors of its own: test_dcls.py",
    "layers.DCNv4": "channels are a multiple of 16 for every group: test_attention.py",
    "layers.Involution2d": "channels are a multiple of 16: test_attention.py",
    "layers.Segmenter": "made of modules: test_layers.py",
    "layers.exponential_rates": "numbers: test_layers.py",
    "layers.replace_stride_with_dilation": "a model: test_layers.py",
    "layers.same_padding": "numbers: test_layers.py",
    "layers.window_attention": "channels come last: test_attention.py",
    "offsets.from_axis_blocks": "offsets of others: test_offsets.py",
    "offsets.from_dcnv3": "offsets of others: test_offsets.py",
    "offsets.from_dcnv4": "offsets of others: test_offsets.py",
    "offsets.to_axis_blocks": "offsets of others: test_offsets.py",
    "offsets.to_dcnv3": "offsets of others: test_offsets.py",
    "offsets.to_dcnv4": "offsets of others: test_offsets.py",
    "receptive_field.Coverage": "what an analysis gives: test_receptive_field.py",
    "receptive_field.Field": "what an analysis gives: test_receptive_field.py",
    "receptive_field.coverage": "rates: test_receptive_field.py",
    "receptive_field.example": "a model: test_receptive_field.py",
    "receptive_field.field": "layers: test_receptive_field.py",
    "receptive_field.trace": "a model: test_receptive_field.py",
    "receptive_field.traced": "a model: test_receptive_field.py",
    "viz.draw_coverage": "what an analysis gives: test_viz.py",
    "viz.draw_positions": "tensors of its own: test_viz.py",
    "viz.draw_receptive_fields": "what an analysis gives: test_viz.py",
    "reference.aggregate": "what the rest of the reference is made of",
    "reference.correlate": "what the rest of the reference is made of",
    "reference.dcls_kernel": "tensors of its own: test_dcls.py",
    "reference.max_pool": "what the rest of the reference is made of",
    "reference.convolution": "what the rest of the reference is made of",
    "reference.sample": "what the rest of the reference is made of",
    "reference.splat": "what the rest of the reference is made of",
    "reference.positions": "what the rest of the reference is made of",
}


# ---- Analysis and pictures ----


@dataclass
class Analysis:
    """A function that looks at images, maps and windows.

    Attributes:
        call: with an image ``(B, C, side, side)``, a map ``(side, side)`` and numbers by their names.
        numbers: the names of those that it takes.
        takes: what a message says of them.
    """

    call: Callable[..., Any]
    numbers: tuple[str, ...] = ()
    takes: str = "one or two ints"


_WINDOW = ("kernel_size", "stride", "padding", "dilation")
_ANY_AXES = "an int, or one for each of one to three axes"
_MIDDLE = (SIDE // 2, SIDE // 2)


def _network(rates: Tensor) -> Callable[[Tensor], Tensor]:
    """A layer with a map of its own, which may be one of inference mode."""

    def network(image: Tensor) -> Tensor:
        weight = image.new_ones(1, image.shape[1], 3, 3)
        return ddu_ops.dynamic_dilation_conv2d(image, weight, rates.to(image.dtype).clone()[None, None], padding=1)

    return network


def _history(image: Tensor, rates: Tensor) -> recorder.RateHistory:
    """Of a predictor that sees the image."""
    predictor = ddu_ops.DilationPredictor(max(image.shape[1], 1), 3, padding=1, device=image.device, dtype=image.dtype)
    with recorder.RateRecorder(predictor, every=1) as watched:
        if image.numel():
            predictor(image)
        watched.step()
    return watched.history[""]


ANALYSIS: dict[str, Analysis] = {
    "viz.tap_positions": Analysis(
        lambda image, rates, **o: viz.tap_positions(rates, **{"kernel_size": 3} | o), _WINDOW
    ),
    "viz.draw_taps": Analysis(
        lambda image, rates, **o: viz.draw_taps(image.sum((0, 1)), rates, [(0, 0)] if rates.numel() else [], **o),
        _WINDOW,
    ),
    "viz.draw_map": Analysis(lambda image, rates: viz.draw_map(rates)),
    "viz.draw_rates": Analysis(lambda image, rates: viz.draw_rates(_history(image, rates))),
    "viz.effective_receptive_field": Analysis(
        lambda image, rates: viz.effective_receptive_field(_network(rates), image, _MIDDLE)
    ),
    "viz.draw_effective_receptive_field": Analysis(
        lambda image, rates: viz.draw_effective_receptive_field(_network(rates), image, _MIDDLE)
    ),
    "viz.gridding_pattern": Analysis(
        lambda image, rates, **o: viz.gridding_pattern([2] if o else [rates, 2], **{"size": len(rates)} | o),
        ("kernel_size", "size"),
        "an int",
    ),
    "viz.draw_gridding": Analysis(
        lambda image, rates, **o: viz.draw_gridding([2] if o else [rates, 2], [1], **{"size": len(rates)} | o),
        ("kernel_size", "size"),
        "an int",
    ),
    "receptive_field.Layer": Analysis(
        lambda image, rates, **o: receptive_field.Layer(**{"kernel_size": 3} | o).along(1),
        _WINDOW,
        _ANY_AXES,
    ),
    "receptive_field.interval": Analysis(
        lambda image, rates, **o: receptive_field.interval(receptive_field.Layer(**{"kernel_size": 3} | o), (1, 2)),
        _WINDOW,
        _ANY_AXES,
    ),
    "receptive_field.pixels": Analysis(lambda image, rates: receptive_field.pixels((1.5, 2.5), len(rates))),
    "receptive_field.size": Analysis(
        lambda image, rates, **o: receptive_field.size([receptive_field.Layer(**{"kernel_size": 3} | o)] * 2),
        _WINDOW,
        _ANY_AXES,
    ),
    "receptive_field.stack_interval": Analysis(
        lambda image, rates, **o: receptive_field.stack_interval(
            [receptive_field.Layer(**{"kernel_size": 3} | o)], 1, dilation_maps=[rates.flatten()]
        ),
        _WINDOW,
        _ANY_AXES,
    ),
}


SUBJECTS: dict[str, Subject] = {
    found.name: found for name, value in names().items() for found in _subjects(name, value)
}


def of(*kinds: str) -> list[Any]:
    """Those that are a ``function``, a ``module`` or of the ``reference``, as parameters of a test."""
    return [pytest.param(found, id=found.name) for found in SUBJECTS.values() if found.kind in kinds]
