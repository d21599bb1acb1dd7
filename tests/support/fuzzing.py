"""Calls of every operator, absurd as well as sensible, and what has to come of them: a clear error or the right answer.

Hypothesis draws the calls (:func:`calls`), :func:`judge` makes one and judges it. ``tests/robustness/test_fuzz.py`` tries some of
them, ``tools/fuzz.py`` as many as there is time for, in a process of its own.
"""

import math
import os
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from cases import (
    CONVOLUTIONS,
    FAMILY,
    PATHS,
    STRICT_CONVOLUTIONS,
    TOLERANCES,
    Case,
    ConvolutionCase,
    as_list,
    by_mover,
    by_position,
    by_tap,
    convolve_reference,
    derivative,
    fold_reference,
    sum_over_group,
    taking,
    unfold_reference,
)
from ddu_ops import reference

# Where the tensors of a call are, but for those that are elsewhere on purpose: tools/fuzz.py --device.
HOME = os.environ.get("DDU_FUZZ_DEVICE", "cpu")

# What a kernel is let loose on: entries of columns, and pixels. More is asked of the meta device, which takes any size.
# An image beyond the limit of memory no machine has room for: to refuse it is the device's own task.
WORK_LIMIT = 1 << 15
IMAGE_LIMIT = 1 << 16
MEMORY_LIMIT = 1 << 36
ENTRIES_LIMIT = 1 << 28  # of a tensor that is filled with numbers

# Draws of random signs: that a sum of two cancels in all of them has a chance of 2^-16.
SIGNS = 16

HALF = (torch.float16, torch.bfloat16)
FLOATING = (torch.float64, torch.float32, *HALF)
OTHER_TYPES = (
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool, torch.complex64, torch.complex128,
    torch.complex32, torch.uint16, torch.uint64, torch.float8_e4m3fn, torch.float8_e5m2,
)  # fmt: skip

# ---- Tensors by description ----


@dataclass(frozen=True)
class TensorSpec:
    """A tensor that can be printed, and made again."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    kind: str = "contiguous"
    fill: str = "normal"
    device: str = HOME
    seed: int = 0

    def make(self, device: str | None = None) -> Tensor:
        device = device or self.device
        if self.kind == "expanded":
            return _filled(self, (1,) * len(self.shape), device).expand(self.shape)
        return (VIEWS | ODD_KINDS)[self.kind](_filled(self, self.shape, device))


def _filled(spec: TensorSpec, shape: tuple[int, ...], device: str) -> Tensor:
    if device == "meta":
        return torch.empty(shape, dtype=spec.dtype, device="meta")
    if math.prod(shape) > ENTRIES_LIMIT:
        raise RuntimeError("not made: too many entries")
    generator = torch.Generator().manual_seed(spec.seed)
    values = torch.randn(shape, generator=generator, dtype=torch.float64)
    if spec.fill == "ones":
        values = torch.ones_like(values)
    if spec.fill.startswith("rates"):  # multiples of a power of two, so that float64 has every position exactly
        values = (torch.rand(shape, generator=generator, dtype=torch.float64) * 448 - 192).round() / 64
    flat = values.view(-1)
    if spec.fill.endswith("special") and flat.numel():
        chosen = torch.rand(flat.shape, generator=generator) < 0.2
        rates = [math.nan, math.inf, -math.inf, 0.0, *([] if "reflected" in spec.fill else [1e30, -1e30])]
        special = rates if spec.fill.startswith("rates") else [math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-310]
        which = torch.randint(len(special), flat.shape, generator=generator)
        flat[chosen] = torch.tensor(special, dtype=torch.float64)[which][chosen]
    if not (spec.dtype.is_floating_point or spec.dtype.is_complex):
        values = values.nan_to_num(0, 1, -1).clamp(0, 100)
    return values.to(spec.dtype).to(device)


def _strided(values: Tensor) -> Tensor:
    """Every other number of memory that is not the tensor's own, from an odd offset on."""
    room = torch.full((2 * values.numel() + 3,), math.nan).to(values.dtype).to(values.device)
    view = room[3 : 2 * values.numel() + 3 : 2].view(values.shape)
    return view.copy_(values)


def _overlapping(values: Tensor) -> Tensor:
    """Of the same shape, all strides 1: neighbours share their memory."""
    room = max(1 + sum(max(n - 1, 0) for n in values.shape), 1)
    source = values.flatten()
    source = source.repeat(room // max(source.numel(), 1) + 1)[:room] if source.numel() else source.new_zeros(room)
    return source.as_strided(values.shape, (1,) * values.dim())


VIEWS = {  # the same to an operator as a contiguous tensor
    "contiguous": lambda x: x,
    "transposed": lambda x: x.transpose(0, -1).contiguous().transpose(0, -1) if x.dim() else x,
    "channels last": lambda x: x.to(memory_format=torch.channels_last) if x.dim() == 4 else x,
    "flipped": lambda x: x.flip(-1) if x.dim() else x,
    "strided": _strided,
    "overlapping": _overlapping,
    "negative bit": lambda x: torch._neg_view(x) if x.dtype in FLOATING else x,
    "all zero": lambda x: torch._efficientzerotensor(x.shape, dtype=x.dtype, device=x.device),
}
ODD_KINDS = {  # refused, whatever else the call says
    "sparse": lambda x: x.to_sparse(),
    "csr": lambda x: torch.sparse_csr_tensor([0, 0], [], torch.zeros(0), (1, 4)) if x.is_cpu else x.to_sparse(),
    "mkldnn": lambda x: torch.ones(1, 1, 4, 4).to_mkldnn(),
    "quantised": lambda x: torch.quantize_per_tensor(torch.ones(1, 1, 4, 4), 0.5, 0, torch.quint8),
    "nested": lambda x: torch.nested.nested_tensor([torch.ones(2, 3, 4), torch.ones(1, 3, 4)]),
    "nested jagged": lambda x: torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(1, 3)], layout=torch.jagged),
    "conjugate": lambda x: torch.ones(1, 1, 4, 4, dtype=torch.complex64).conj(),
}

# ---- Calls by description ----


@dataclass(frozen=True)
class Call:
    """``torch.ops.ddu.<name>(**arguments)``, with a :class:`TensorSpec` for every tensor."""

    name: str
    arguments: dict[str, Any]
    sensible: bool  # it has to succeed
    gradient: bool = False
    paths: tuple[str, ...] = ()  # that it takes on CUDA: see cases.taking

    def case(self) -> Case | None:
        """The problem that the call states, if it is one."""
        a, axes = self.arguments, None
        lead = next((a[key] for key in ("input", "query", "grad_output", "columns") if key in a), None)
        positions = a.get(_positions(self.name))
        if not (isinstance(lead, TensorSpec) and isinstance(positions, TensorSpec)):
            return None
        try:
            convolution = self.name in CONVOLUTIONS
            axes = _axes(self.name) or len(positions.shape) - 2
            s, p, d = (_per_axis(a[key], axes) for key in ("stride", "padding", "dilation"))
            k = _per_axis(a["weight"].shape[-axes:] if convolution else a["kernel_size"], axes)
            aligned = a.get("aligned", True)
            conv_groups = a.get("groups", 1)
            groups = a.get("dilation_groups", a.get("theta_groups", conv_groups)) if convolution else conv_groups
            if convolution and self.name.startswith("deform_"):  # the shapes tell
                conv_groups = lead.shape[-axes - 1] // max(a["weight"].shape[-axes - 1], 1)
                groups = positions.shape[-axes - 1] // (axes * math.prod(k))
            if any(type(n) is not int for n in (groups, conv_groups)) or type(aligned) is not bool:
                return None
            image = a.get("input", a.get("query"))
            size = image.shape[-axes:] if "output_size" not in a else _per_axis(a["output_size"], axes)
            columns = a.get("columns", a.get("grad_output", lead))
            channels = image.shape[-axes - 1] if image is not None else columns.shape[-2] // max(math.prod(k), 1)
            dims = axes + 2 if image is not None else 3
            batch = (image or columns).shape[0] if len((image or columns).shape) == dims else 1
            mode = "zeros" if a["padding_mode"] == "ignore" else a["padding_mode"]
            case = Case("fuzzed", batch, channels, size, k, s, p, d, groups, padding_mode=mode)
            if convolution:
                given = {key: a.get(key) is not None for key in ("bias", "mask")}
                case = ConvolutionCase(
                    **vars(case),
                    out_channels=a["weight"].shape[-axes - 2],
                    conv_groups=max(conv_groups, 1),
                    mask_groups=a["mask"].shape[-axes - 1] // math.prod(k) if given["mask"] else 0,
                    per_image=len(a["weight"].shape) == axes + 3,
                    **given,
                )
            if _source(self) in ("offsets", "affine"):
                case = replace(case, source=_source(self))
            else:
                per_axis = positions.shape[-axes - 1] == axes * case.groups
                case = replace(case, rates=axes if per_axis else 1, aligned=aligned)
            return case if min(case.output_size) >= 1 else None
        except (TypeError, ValueError, IndexError, ZeroDivisionError, AttributeError, AssertionError):
            return None

    def device(self) -> str | None:
        """Meta in place of the tensors' own devices, for what would take too long."""
        case = self.case()
        if case is None:
            return None
        pixels = math.prod(case.input_shape)
        return None if _work(case) <= WORK_LIMIT and (pixels <= IMAGE_LIMIT or pixels >= MEMORY_LIMIT) else "meta"


def _work(case: Case) -> int:
    """Numbers that are read, written or worked with, other than pixels."""
    work = math.prod(case.columns_shape) + math.prod(case.positions_shape) + sum(case.kernel_size)
    if isinstance(case, ConvolutionCase):
        output = (case.batch, case.out_channels, *case.output_size)
        work += math.prod(case.weight_shape) + math.prod(case.mask_shape) + math.prod(output)
    return work


def _exact(case: Case) -> bool:
    """Whether float32 holds the taps' offsets (NOTE [ Positions ]), and float64, in the reference, their positions."""
    reaches = [d * (k - 1) for d, k in zip(case.dilation, case.kernel_size)]
    return max(reaches) <= 1 << 20 and max(*case.padding, *case.size) <= 1 << 40


def _per_axis(value: Any, axes: int) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, Sequence) else (value,)
    if len(values) not in (1, axes) or not all(type(v) is int for v in values):
        raise TypeError
    return values * axes if len(values) == 1 else values


# Of windows; calls of kernels with learnable spacings are drawn in test_dcls.py.
NAMES = sorted(
    name.removeprefix("ddu::")
    for name in torch._C._dispatch_get_all_op_names()
    if name.startswith("ddu::") and not name.startswith("ddu::dcls_")
)


SUMS = ("aggregate", "correlate", "scatter", "sums_backward", "max_pool")


def _sum(name: str) -> str | None:
    """Which sum of windows an operator is, under whatever name."""
    return next((of for of in SUMS if of in name), None)


def _axes(name: str) -> int | None:
    """The number of axes that an operator is for; None where its arguments tell."""
    if name[-1] == "d" and name[-2].isdigit():
        return int(name[-2])
    return 2 if name.startswith("dynamic_dilation_") else None


def _positions(name: str) -> str:
    """What an operator calls the positions."""
    own = {"rates": "dilation_map", "offsets": "offset", "affine": "theta"}[_own(name)]
    return "positions" if name in ANY_SOURCE else own


def _source(call: Call) -> str:
    source: str = call.arguments.get("source", _own(call.name))
    return source


def _own(name: str) -> str:
    """The source of positions that an operator's name says."""
    return "offsets" if name.startswith("deform_") else "affine" if name.startswith("affine_") else "rates"


ANY_SOURCE = (*FAMILY, *STRICT_CONVOLUTIONS, *SUMS)
INTS = ("kernel_size", "stride", "padding", "dilation", "output_size")

around = [2**31, 2**32, 2**63, 2**62, 2**61, 2**53, 2**30, 2**16]
huge_ints = st.builds(lambda base, off: base + off, st.sampled_from(around), st.integers(-3, 2))
absurd_ints = st.one_of(
    st.sampled_from([0, 1, -1, 2, 3, 7, 97, -(2**31), -(2**32), -(2**63), -(2**63) - 1, 2**64, 2**65 + 1]), huge_ints
)
absurd_values = st.sampled_from([None, "3", 1.5, math.nan, True, [], [None], [1.5, 2], {}, object, torch.ones(2), 1j])


@st.composite
def axes(draw: st.DrawFn, huge: bool) -> tuple[int, int, int, int, int]:
    """Size, kernel size, stride, padding and dilation along one axis, with an output of a few positions, mostly."""
    if not huge:
        k, s, p, d = (draw(st.integers(*low_high)) for low_high in ((1, 4), (1, 3), (0, 2), (1, 2)))
        size = max(d * (k - 1) + 1 - 2 * p, 0) + draw(st.sampled_from([0, 0, 1, 2, 3, 5, 7, 13]))
        return size, k, s, p, d
    big = draw(huge_ints.filter(lambda n: n < 2**63))
    small = draw(st.integers(1, 4))
    shapes = [
        (big, 1, big, 0, 1),
        (big, small, big // 2, small, 1),
        (big // 4, small, big, big // 2, 1),
        (small, 2, 1, big // 2, big - 1),
        (small, big, 1, big // 2, 1),
        (small, big // 2, small, big // 2, 2),
        (small, small, big, 0, 1),
        (small, 3, big // 3, big // 3, small),
        (big, 2, 1, 0, big - 1),
        (0, 1, 1, 1, 1),
        (big, 1, 1, 0, 1),
    ]
    return draw(st.sampled_from(shapes))


@st.composite
def tensors(draw: st.DrawFn, shape: tuple[int, ...], dtype: torch.dtype, rates: bool = False) -> TensorSpec:
    fill = ("rates" if rates else "normal") + draw(st.sampled_from(["", "", " special"]))
    kind = draw(st.sampled_from(["contiguous", "contiguous", *VIEWS]))
    if math.prod(shape) > IMAGE_LIMIT:
        kind = "expanded"
    if kind == "all zero" and math.prod(shape) == 0:
        kind = "contiguous"
    return TensorSpec(shape, dtype, kind, fill, seed=draw(st.integers(0, 7)))


@st.composite
def convolutions(draw: st.DrawFn, case: Case, per_image: bool) -> ConvolutionCase:
    """A convolution whose columns are those of the case; where ``per_image``, perhaps with a weight for each image."""
    divisors = [n for n in (1, 1, 2, 3, case.channels) if n and case.channels % n == 0]
    conv_groups = draw(st.sampled_from(divisors))
    return ConvolutionCase(
        **vars(case),
        out_channels=conv_groups * draw(st.sampled_from([0, 1, 1, 2, 3])),
        conv_groups=conv_groups,
        bias=draw(st.booleans()),
        mask=draw(st.booleans()),
        mask_groups=draw(st.sampled_from(divisors)),
        per_image=per_image and draw(st.booleans()),
    )


@st.composite
def calls(draw: st.DrawFn, names: Sequence[str] = NAMES) -> Call:
    """Any call: a problem, stated well or not."""
    name = draw(st.sampled_from(names))
    dims = _axes(name) or draw(st.integers(1, 3))
    source = draw(st.sampled_from(["rates", "offsets", "affine"])) if name in ANY_SOURCE else _own(name)
    flavour = draw(st.sampled_from(["sensible", "sensible", "huge", "absurd", "absurd", "absurd"]))
    extents = [draw(axes(flavour == "huge" and draw(st.booleans()))) for _ in range(dims)]
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    case = Case(
        "fuzzed",
        draw(st.sampled_from([0, 1, 1, 2, 3])),
        groups * draw(st.sampled_from([0, 1, 1, 2, 3, 5, 9])),
        *zip(*extents),
        groups=groups,
        rates=draw(st.sampled_from([1, dims])) if source == "rates" else 1,
        aligned=draw(st.booleans()) or source != "rates",
        source=source,
        padding_mode=draw(st.sampled_from(["zeros", "border", "reflection"])),
    )
    dtype = draw(st.sampled_from(FLOATING))
    map_dtype = draw(st.sampled_from([dtype, torch.float32])) if dtype in HALF else dtype
    public = name.startswith(("dynamic", "deform", "affine"))
    unbatched = public and case.batch > 0 and draw(st.booleans())
    shared = public and not unbatched and draw(st.booleans())

    def shape(sizes: tuple[int, ...]) -> tuple[int, ...]:
        sizes = tuple(max(n, 0) for n in sizes)
        return sizes[1:] if unbatched else sizes

    map_shape = case.positions_shape
    if shared:
        map_shape = (draw(st.sampled_from([1, case.batch])), *map_shape[1:])
        map_shape = draw(st.sampled_from([map_shape, (*map_shape[:2], *[1] * dims)]))
    positions = draw(tensors(shape(map_shape), map_dtype, rates=True))
    if case.padding_mode == "reflection":  # where a huge rate comes back to is not said
        positions = replace(positions, fill=positions.fill.replace(" ", " reflected "))
    columns = draw(tensors(shape(case.columns_shape), dtype))
    available = {
        "input": draw(tensors(shape(case.input_shape), dtype)),
        "grad_output": columns,
        "columns": columns,
        **dict.fromkeys(("dilation_map", "positions", "offset", "theta"), positions),
        "source": source,
        "output_size": list(case.size),
        "kernel_size": list(case.kernel_size),
        "stride": list(case.stride),
        "padding": list(case.padding),
        "dilation": list(case.dilation),
        "groups": case.groups,
        "aligned": case.aligned,
        "padding_mode": case.padding_mode,
        "order": draw(st.sampled_from([[], *([n] + [m] * (case.parameters - 1) for n, m in ((0, 0), (1, 0), (1, 1)))]))[
            :: draw(st.sampled_from([1, -1]))
        ],
    }
    if name in CONVOLUTIONS:
        problem = draw(convolutions(case, per_image=not unbatched))
        batch = 1 if shared else problem.batch
        output_shape = (problem.batch, problem.out_channels, *problem.output_size)
        weight_shape, bias_shape = problem.weight_shape, problem.bias_shape
        if problem.per_image:
            weight_shape = (batch, *weight_shape[1:])
            bias_shape = draw(st.sampled_from([(batch, *bias_shape[1:]), bias_shape[1:]]))
        available |= {
            "grad_output": draw(tensors(shape(output_shape), dtype)),
            "weight": draw(tensors(weight_shape, dtype)),
            "bias": draw(tensors(bias_shape, dtype)) if problem.bias else None,
            "mask": draw(tensors(shape((batch, *problem.mask_shape[1:])), dtype)) if problem.mask else None,
            "groups": problem.conv_groups,
            **dict.fromkeys(("dilation_groups", "theta_groups"), problem.groups),
            "output_mask": [draw(st.sampled_from([True, True, False])) for _ in range(3)]
            + [problem.mask and draw(st.sampled_from([True, True, False]))],
        }
    if _sum(name):
        available |= draw(factors(case, shape, shared, dtype, public))
        if _sum(name) == "max_pool" and draw(st.booleans()):
            available["padding_mode"] = "ignore"
    schema = getattr(torch.ops.ddu, name).default._schema
    arguments = {argument.name: available[argument.name] for argument in schema.arguments}
    if flavour == "absurd":
        for _ in range(draw(st.integers(1, 3))):
            key = draw(st.sampled_from(sorted(arguments)))
            arguments[key] = draw(absurd(key, arguments[key]))
    sensible = flavour == "sensible" and min(case.output_size) >= 1
    sensible = sensible and (case.padding_mode == "zeros" or min(case.size) > 0)
    gradient = draw(st.booleans()) and _sum(name) != "max_pool"  # whose taps may be others, where they are as large
    paths = tuple(path for path in PATHS if draw(st.booleans())) if HOME == "cuda" else ()
    return Call(name, arguments, sensible, gradient, paths)


@st.composite
def factors(
    draw: st.DrawFn, case: Case, shape: Callable[..., Any], shared: bool, dtype: torch.dtype, public: bool
) -> dict[str, Any]:
    """What sums of windows take besides."""
    groups = draw(st.sampled_from([m for m in range(1, max(case.channels, 1) + 1) if case.channels % m == 0]))
    batch = 1 if shared else case.batch
    mask = public or draw(st.booleans())
    weight = not public and draw(st.booleans())
    return {
        "query": draw(tensors(shape((case.batch, case.channels, *case.output_size)), dtype)),
        "mask": draw(tensors(shape((batch, groups * case.taps, *case.output_size)), dtype)) if mask else None,
        "weight": draw(tensors((case.batch, case.channels, case.taps), dtype)) if weight else None,
        "taps": None,
        "mask_groups": groups,
        "output_mask": [
            possible and draw(st.sampled_from([True, True, False])) for possible in (True, True, mask, weight, True)
        ],
    }


@st.composite
def absurd(draw: st.DrawFn, key: str, value: Any) -> Any:
    """In place of an argument."""
    if draw(st.integers(0, 9)) == 0:
        return draw(absurd_values)
    if key in INTS:
        return draw(st.one_of(st.lists(absurd_ints, max_size=4), absurd_ints, st.just([*_as_list(value), 1])))
    if key in ("source", "padding_mode"):
        return draw(st.sampled_from(["rates", "offsets", "affine", "zeros", "border", "reflection", "", "circular"]))
    if key == "order":
        return draw(st.lists(absurd_ints, max_size=4))
    if key in ("groups", "aligned", "dilation_groups", "mask_groups", "theta_groups"):
        return draw(absurd_ints)
    if key == "output_mask":
        return draw(st.lists(st.sampled_from([True, False, True, False, 1, None]), max_size=5))
    if key in ("bias", "mask") and draw(st.booleans()):
        return None
    if not isinstance(value, TensorSpec):
        return value
    what = draw(st.sampled_from(["shape", "rank", "dtype", "kind", "device", "transposed"]))
    if what == "shape" and value.shape:
        at = draw(st.integers(0, len(value.shape) - 1))
        size = draw(absurd_ints.filter(lambda n: 0 <= n < 2**63))
        shape = (*value.shape[:at], size, *value.shape[at + 1 :])
        others = math.prod(n for n in shape if n not in (0, size))
        return replace(value, shape=shape if size * others < 2**63 else value.shape, kind="expanded")
    if what == "rank":
        shape = draw(st.sampled_from([(), value.shape[1:], (1, *value.shape), (0,), (1,) * 5, (2, 0, 3)]))
        return replace(value, shape=shape, kind="contiguous")
    if what == "dtype":
        return replace(value, dtype=draw(st.sampled_from([*FLOATING, *OTHER_TYPES])), kind="contiguous", fill="normal")
    if what == "kind":
        return replace(value, kind=draw(st.sampled_from(list(ODD_KINDS))))
    if what == "device":
        return replace(value, device=draw(st.sampled_from(["meta"] if HOME == "cpu" else ["meta", "cpu"])))
    return replace(value, shape=value.shape[::-1])


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list) else [value]


# ---- The verdict ----

REFUSALS = [
    re.compile(r"\w+\(\): expected .+, but got .+", re.DOTALL),  # the operators' own
    re.compile(r"ddu::\w+\(\) .+", re.DOTALL),  # of the schema
    re.compile(
        r"Tried to convert a List with \d elements to a fixed-size array of size [45]"
    ),  # bool[4], as torch's own
    re.compile(r"ddu\.\w+\.default"),  # of a class of tensors that brings its own operators
]
NO_MEMORY = re.compile(
    r"can't allocate memory|Storage size calculation overflowed|integer multiplication overflow"
    r"|allocation-size-too-big|CUDA out of memory"
)


@contextmanager
def refusing(call: Call) -> Iterator[list[str]]:
    """Lets a refusal pass, and notes it; anything else that is raised is a failure."""
    refusals: list[str] = []
    try:
        yield refusals
    except (RuntimeError, TypeError, ValueError, OverflowError) as error:
        refusals.append(f"{error}")
    for text in refusals:
        clear = any(pattern.match(text) for pattern in REFUSALS) or NO_MEMORY.search(text)
        assert clear, f"an error that says nothing: {text}"
        assert not call.sensible, f"refused: {text}"


def judge(call: Call) -> str:
    """What came of a call.

    ``"refused"``, clearly; ``"answered"``, as by the reference; ``"shaped"``, where there are no values to compare;
    ``"unmade"``, where torch itself refuses to make the arguments.

    Raises AssertionError where the outcome is none of them.
    """
    with taking(*call.paths):
        return _judge(call)


def _judge(call: Call) -> str:
    device = call.device()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # some kinds of tensors are prototypes, some on their way out
            arguments = {
                key: value.make(device) if isinstance(value, TensorSpec) else value
                for key, value in call.arguments.items()
            }
    except (RuntimeError, TypeError):
        assert not call.sensible
        return "unmade"
    leaves = [key for key, value in arguments.items() if _differentiable(value)] if call.gradient else []
    for key in leaves:
        arguments[key] = arguments[key].detach().requires_grad_()
    with refusing(call) as refusals:
        results = as_list(getattr(torch.ops.ddu, call.name)(**arguments))
    if refusals:
        return "refused"
    if _sum(call.name):  # channels-last where the image is
        assert all(result.is_contiguous(memory_format=_format(result)) for result in results)
        results = results[:1] if _sum(call.name) == "max_pool" else results
    else:
        assert all(_laid_out(result, call) for result in results)
    asked = [bool(needed) for needed in arguments.get("output_mask", [True] * len(results))]
    assert all(need or result.shape == (0,) for result, need in zip(results, asked, strict=True))
    small = all(result.numel() <= IMAGE_LIMIT for result in results)
    generator = torch.Generator().manual_seed(0)
    cotangents = [
        torch.randn(r.shape, generator=generator, dtype=torch.float64).to(r) if small else r.detach() for r in results
    ]
    gradients: Sequence[Tensor] = []
    if leaves and any(asked):
        with refusing(call) as refusals:
            gradients = torch.autograd.grad(
                [result for result, need in zip(results, asked) if need],
                [arguments[key] for key in leaves],
                [cotangent for cotangent, need in zip(cotangents, asked) if need],
                materialize_grads=True,
            )
        if refusals:
            return "refused"
    case = call.case()
    tensors = {key: value for key, value in arguments.items() if isinstance(value, Tensor)}
    strange = case is None or not small or any(value.device.type != HOME for value in tensors.values())
    # Where a huge rate comes back to is not said, whichever way a call came to one.
    strange = strange or (case.padding_mode == "reflection" and _is_huge(tensors[_positions(call.name)]))
    strange = strange or (call.arguments.get("padding_mode") == "ignore" and min(case.size) == 0)  # nothing but -inf
    if strange or math.prod(max(n, 1) for n in case.input_shape) > IMAGE_LIMIT or not _exact(case):
        return "shaped"
    finite = all(value.isfinite().all() for value in tensors.values())
    if not finite:
        gradients = []
    wide = {
        key: torch.zeros(value.shape, dtype=torch.float64).copy_(value.detach()).requires_grad_(key in leaves)
        for key, value in tensors.items()
    }
    problem = Problem(call, case, wide, leaves if gradients else [], [c.cpu().double() for c in cotangents])
    convolution = isinstance(case, ConvolutionCase)
    # Where torch differentiates, what it knows to be zero makes everything zero, also what is not finite.
    takes_over = not finite and convolution and any(value._is_zerotensor() for value in tensors.values())
    spreads = takes_over or (not finite and _differentiates(call))
    for index, (answer, right) in enumerate(zip([*results, *gradients], problem.answers(), strict=True)):
        error, size = _compare(answer, right, may_spread=spreads, may_vanish=takes_over)
        # The columns in between have the type of the input, whatever the map's.
        dtype = tensors["input"].dtype if convolution else answer.dtype
        tolerance = _tolerance(case, dtype, twice=index >= len(results) and call.name.endswith("_backward"))
        if error > tolerance * size:
            size = max(size, problem.sizes_of_terms[index])
        assert error <= tolerance * size, f"wrong by {error:.2e}, of {size:.2e}"
    return "answered"


def _laid_out(result: Tensor, call: Call) -> bool:
    """Contiguous, or of a convolution channels-last, as its input may be."""
    if result.is_contiguous():
        return True
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return call.name in CONVOLUTIONS and result.is_contiguous(memory_format=formats[result.dim()])


def _is_huge(positions: Tensor) -> bool:
    return bool((positions.isfinite() & (positions.abs() > 1e15)).any())


def _format(result: Tensor) -> torch.memory_format:
    images = result.dim() in (4, 5)
    return torch._prims_common.suggest_memory_format(result) if images else torch.contiguous_format


def _tolerance(case: Case, dtype: torch.dtype, twice: bool) -> float:
    """That of the type; half a unit for every time that numbers are rounded to it on the way, where that is more.

    A convolution rounds its columns, their product with the mask, and the answer; a derivative of its derivative does
    so ``twice``.
    """
    roundings = 2 + case.mask if isinstance(case, ConvolutionCase) else 1
    return max(TOLERANCES[dtype], roundings * (1 + twice) * torch.finfo(dtype).eps / 2)


@dataclass(frozen=True)
class Problem:
    """What the reference makes of a call, in float64."""

    call: Call
    case: Case
    tensors: dict[str, Tensor]
    leaves: list[str]  # the tensors that gradients are taken by
    cotangents: list[Tensor]  # of the results

    def answers(self) -> list[Tensor]:
        """The results, and the gradients by the leaves."""
        results = _reference(self.call, self.case, self.tensors)
        results = [r.reshape(c.shape) for r, c in zip(results, self.cotangents, strict=True)]
        leaves = [self.tensors[key] for key in self.leaves]
        outputs = [(r, c) for r, c in zip(results, self.cotangents, strict=True) if r.requires_grad and leaves]
        if not outputs:
            return results + [torch.zeros_like(leaf) for leaf in leaves]
        of, weighted = zip(*outputs, strict=True)
        return [*results, *torch.autograd.grad(of, leaves, weighted, materialize_grads=True)]

    @cached_property
    def sizes_of_terms(self) -> list[float]:
        """For each answer the root of the sum of the squares of its terms: what its error is held against at least.

        An entry of an answer is a sum of products, one factor from each of several tensors. It may be small by chance,
        its error is that of its terms. With signs at random, the mean of its square is the sum of their squares.
        """
        generator = torch.Generator().manual_seed(0)

        def signed(values: Tensor) -> Tensor:
            signs = torch.randint(2, values.shape, generator=generator, dtype=torch.float64) * 2 - 1
            return (values.detach() * signs).requires_grad_(values.requires_grad)

        squares = torch.zeros(len(self.cotangents) + len(self.leaves), dtype=torch.float64)
        for _ in range(SIGNS):
            tensors = {
                key: value if key == _positions(self.call.name) else signed(value)
                for key, value in self.tensors.items()
            }
            drawn = replace(self, tensors=tensors, cotangents=[signed(c) for c in self.cotangents])
            squares += torch.stack([answer.detach().nan_to_num(0, 0, 0).square().sum() for answer in drawn.answers()])
        return (squares / SIGNS).sqrt().tolist()


def _differentiable(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.strided and value.dtype in FLOATING


def _reference(call: Call, case: Case, tensors: dict[str, Tensor]) -> list[Tensor]:
    """The answer in float64, in the operators' shapes with a batch."""
    image, rates = tensors.get("input"), tensors[_positions(call.name)]
    columns = tensors.get("columns", tensors.get("grad_output"))
    if image is not None and image.dim() == case.axes + 1:
        image, rates = image[None], rates[None]
        tensors = {key: value[None] if key in ("query", "mask") else value for key, value in tensors.items()}
    if image is None and columns is not None and columns.dim() == 2:
        columns, rates = columns[None], rates[None]
    rates = rates.expand(case.positions_shape)
    if case.channels == 0:  # nothing is sampled, whatever the rates are
        rates = rates.nan_to_num(0, 0, 0)
    case, image, crop = _without_empty_images(case, image)
    if isinstance(case, ConvolutionCase):
        assert image is not None
        others = {key: value for key, value in tensors.items() if key != _positions(call.name)}
        return _convolution_reference(call, case, {**others, "input": image, case.positions_name: rates}, crop)
    if _sum(call.name):
        return _sum_reference(call, case, {**tensors, "input": image, "positions": rates}, crop)
    # Of no numbers there is nothing to differentiate, and what is differentiated once too often vanishes.
    most = case.axes if case.source == "rates" and case.rates == 1 else 1  # derivatives by one parameter
    order = [min(times, most + 1) for times in call.arguments.get("order", [])] if case.batch else []
    if any(
        times > most for times in by_position(case, order)
    ):  # no term is left, so what would be multiplied is not read
        image, columns = (None if t is None else t.nan_to_num(0, 0, 0) for t in (image, columns))

    def sampled(of: Tensor) -> Tensor:
        answer = derivative(case, lambda r: unfold_reference(case, of, r), rates, order)
        if sum(order) < 2 or max(by_position(case, order)) > most:
            return answer
        # What makes the reference NaN has a first derivative only; NaN is due for every one that does not vanish.
        finite = by_mover(case, rates).isfinite().all(3).unsqueeze(2)
        columns = torch.where(finite, by_tap(case, answer), math.nan)
        return columns.reshape(answer.shape)

    if call.name in ("unfold_backward", "sample_backward"):
        assert image is not None and columns is not None
        of_order = lambda of, by: derivative(case, lambda r: unfold_reference(case, of, r), by, order)  # noqa: E731
        by_image, by_map = _gradients(of_order, [image, rates], columns)
        times = by_position(case, order or [0] * case.parameters)
        left = (
            torch.tensor(times).repeat_interleave(case.parameters // len(times)) < most
        )  # what does not vanish for good
        by_map = torch.where(left.view(-1, *[1] * case.axes), by_mover(case, by_map), 0).reshape(by_map.shape)
        return [crop(by_image), by_map]
    if call.name == "dot":
        assert image is not None and columns is not None
        return [sum_over_group(case, columns * sampled(image))]
    if image is not None:
        return [sampled(image)]
    assert columns is not None
    return [crop(derivative(case, lambda r: fold_reference(case, columns, r), rates, order))]


def _without_empty_images(case: Case, image: Tensor | None) -> tuple[Case, Tensor | None, Any]:
    """An axis without pixels is like one of two zeros in a padding that is smaller by one; what to cut off then."""
    extra = [2 * (n == 0) for n in case.size]
    if not any(extra):
        return case, image, lambda result: result
    size = tuple(n + more for n, more in zip(case.size, extra))
    padding = tuple(p - more // 2 for p, more in zip(case.padding, extra))
    if image is not None:
        image = torch.nn.functional.pad(image, [n for more in reversed(extra) for n in (0, more)])
    whole = (..., *(slice(n) for n in case.size))
    return replace(case, size=size, padding=padding), image, lambda result: result[whole]


def _convolution_reference(
    call: Call, case: ConvolutionCase, tensors: dict[str, Tensor], crop: Callable[[Tensor], Tensor]
) -> list[Tensor]:
    if "mask" in tensors:
        tensors["mask"] = tensors["mask"].expand(case.mask_shape)
    if case.per_image:
        tensors["weight"] = tensors["weight"].expand(case.weight_shape)
        if case.bias and tensors["bias"].dim() == 2:
            tensors["bias"] = tensors["bias"].expand(case.bias_shape)
    if call.name != "convolution_backward":
        return [convolve_reference(case, tensors)]
    grad_output = tensors.pop("grad_output")
    keys = ("input", "weight", case.positions_name, "mask")
    needed = [key for key, need in zip(keys, call.arguments["output_mask"], strict=True) if need]
    gradients = _gradients(
        lambda *of: convolve_reference(case, tensors | dict(zip(needed, of, strict=True))),
        [tensors[key] for key in needed],
        grad_output,
    )
    found = dict.fromkeys(keys, torch.empty(0, dtype=torch.float64)) | dict(zip(needed, gradients, strict=True))
    if "input" in needed:
        found["input"] = crop(found["input"])
    return list(found.values())


SLOTS = ("query", "input", "mask", "weight", "positions")  # the results of sums_backward


def _sum_reference(
    call: Call, case: Case, tensors: dict[str, Tensor], crop: Callable[[Tensor], Tensor]
) -> list[Tensor]:
    """The contractions of the form (NOTE [ One form ] in csrc/sums/sums.h)."""
    kind, places = _sum(call.name), math.prod(case.output_size)
    if kind == "max_pool":
        mode = call.arguments["padding_mode"]
        options = (case.source, case.kernel_size, *case.options[:-1], mode)
        return [reference.max_pool(tensors["input"], tensors["positions"], *options)[0]]
    mask = tensors.get("mask")
    groups = call.arguments["mask_groups"] if mask is None and kind == "correlate" else 1
    groups = groups if mask is None else mask.shape[1] // case.taps
    by_group = (case.batch, groups, case.channels // groups, case.taps, places)

    def factors(query: Tensor | None = None, mask: Tensor | None = None, weight: Tensor | None = None) -> Tensor:
        product = torch.ones(by_group, dtype=torch.float64)
        if query is not None:
            product = product * query.reshape(*by_group[:3], 1, places)
        if mask is not None:
            mask = mask.expand(case.batch, *mask.shape[1:])
            product = product * mask.reshape(case.batch, groups, 1, case.taps, places)
        if weight is not None:
            product = product * weight.reshape(*by_group[:4], 1)
        return product

    def samples(input: Tensor, positions: Tensor) -> Tensor:
        return unfold_reference(case, input, positions).reshape(by_group)

    given = {key: tensors[key] for key in ("query", "mask", "weight") if key in tensors}
    if kind == "scatter":
        columns = factors(**given).reshape(case.columns_shape)
        return [crop(fold_reference(case, columns, tensors["positions"]))]
    if kind != "sums_backward":
        products = samples(tensors["input"], tensors["positions"]) * factors(**given)
        return [products.sum(3 if kind == "aggregate" else 2)]
    needed = [slot for slot, need in zip(SLOTS, call.arguments["output_mask"], strict=True) if need]

    def form(*of: Tensor) -> Tensor:
        values = tensors | dict(zip(needed, of, strict=True))
        product = factors(**{key: values[key] for key in given})
        return (samples(values["input"], values["positions"]) * product).sum()

    gradients = _gradients(form, [tensors[slot] for slot in needed], torch.ones((), dtype=torch.float64))
    found = dict.fromkeys(SLOTS, torch.empty(0, dtype=torch.float64)) | dict(zip(needed, gradients, strict=True))
    if "input" in needed:
        found["input"] = crop(found["input"])
    return list(found.values())


def _gradients(function: Callable[..., Tensor], tensors: Sequence[Tensor], cotangent: Tensor) -> Sequence[Tensor]:
    """Those of the function by its arguments, which can be differentiated themselves."""
    if not tensors:
        return []
    leaves = [t if t.requires_grad else t.detach().requires_grad_() for t in tensors]
    return torch.autograd.grad(function(*leaves), leaves, cotangent, create_graph=True, materialize_grads=True)


def _differentiates(call: Call) -> bool:
    return call.name.endswith("_backward") or any(call.arguments.get("order", []))


def _compare(actual: Tensor, expected: Tensor, *, may_spread: bool, may_vanish: bool) -> tuple[float, float]:
    """The norm of the error and of what is right, where both are finite. That has to be in the same places.

    ``may_spread``: an infinite entry times the derivative of a tap outside the image, which is zero, may be NaN where
    the reference has zero. ``may_vanish``: an entry may be finite where the reference's is not.
    """
    assert actual.shape == expected.shape
    largest = torch.finfo(actual.dtype).max  # what is beyond it may be infinite
    actual, expected = actual.detach().cpu().double(), expected.detach()
    finite, right = actual.isfinite(), expected.isfinite()
    assert may_spread or not (~finite & (expected.abs() <= largest)).any(), (
        "an entry is not finite that is by the reference"
    )
    assert may_vanish or not (finite & ~right).any(), "an entry is finite that is not by the reference"
    both = finite & right
    return (actual - expected)[both].norm().item(), expected[both].norm().item()
