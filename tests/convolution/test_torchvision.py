"""What ``torchvision.ops.deform_conv2d`` documents, tested on ``ddu_ops.deform_conv1d``, ``2d`` and ``3d``.

If torchvision is installed, the same tests run on it, which shows that they expect nothing that it does not do, and both
are compared over random cases.
"""

import itertools
import math
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ddu_ops

torchvision: Any
try:
    import torchvision.ops
except (ImportError, RuntimeError):  # not there, or built for another torch
    torchvision = None
installed = pytest.mark.skipif(torchvision is None, reason="torchvision is not installed")
DeformConv = Callable[..., Tensor]
theirs = getattr(getattr(torchvision, "ops", None), "deform_conv2d", None)
FUNCTIONS: list[Any] = [
    *(pytest.param(getattr(ddu_ops, f"deform_conv{axes}d"), axes, id=f"ddu_ops {axes}d") for axes in (1, 2, 3)),
    pytest.param(theirs, 2, id="torchvision", marks=installed),
]
functions = pytest.mark.parametrize("deform_conv, axes", FUNCTIONS)


def each(value: int | tuple[int, ...], axes: int) -> tuple[int, ...]:
    return (value,) * axes if isinstance(value, int) else value


def expected(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    mask: Tensor | None = None,
) -> Tensor:
    """The definition, tap by tap: what is sampled at the places of a tap, times its mask, times its weight."""
    (batch, channels, *size), (outputs, per_group, *kernel) = input.shape, weight.shape
    axes, taps, out = len(size), math.prod(kernel), offset.shape[2:]
    groups = offset.shape[1] // (axes * taps)
    offset = offset.view(batch, groups, taps, axes, *out)
    factors = offset.new_ones(batch, groups, taps, *out) if mask is None else mask.view(batch, groups, taps, *out)
    parts = input.reshape(batch * groups, channels // groups, *size)
    window = list(zip(*(each(option, axes) for option in (stride, padding, dilation)), strict=True))
    output = input.new_zeros(batch, outputs, *out)
    for tap, place in enumerate(itertools.product(*map(range, kernel))):
        along = []
        for axis, (s, p, d) in enumerate(window):
            line = torch.arange(out[axis], dtype=input.dtype, device=input.device) * s - p + place[axis] * d
            at = line.view(-1, *[1] * (axes - 1 - axis)) + offset[:, :, tap, axis]
            along.append((2 * at + 1) / size[axis] - 1)
        grid = torch.stack(along[::-1], -1).flatten(0, 1)
        if axes == 1:  # as an image of height one
            samples = F.grid_sample(parts.unsqueeze(2), F.pad(grid, (0, 1)).unsqueeze(1), align_corners=False)
        else:
            samples = F.grid_sample(parts, grid, align_corners=False)
        samples = samples.view(batch, groups, -1, *out) * factors[:, :, tap].unsqueeze(2)
        own = weight[(slice(None), slice(None), *place)].view(outputs, per_group, *[1] * axes)
        convolve = (F.conv1d, F.conv2d, F.conv3d)[axes - 1]
        output = output + convolve(samples.view(batch, channels, *out), own, groups=channels // per_group)
    return output if bias is None else output + bias.view(1, -1, *[1] * axes)


# Another size on every axis, the slowest first.
WINDOW = {"kernel_size": (3, 2, 2), "stride": (2, 1, 1), "padding": (1, 0, 1), "dilation": (2, 1, 1), "size": (7, 4, 3)}


def arguments(
    batch: int = 3,
    groups: int = 2,
    offset_groups: int = 3,
    channels: int = 6,
    outputs: int = 2,
    *,
    axes: int = 2,
    scale: float = 1.0,
    dtype: torch.dtype = torch.float64,
    device: Any = "cpu",
    **window: Any,
) -> dict[str, Any]:
    window = {name: each(window.get(name, values[:axes]), axes) for name, values in WINDOW.items()}
    kernel, size = window.pop("kernel_size"), window.pop("size")
    out = ddu_ops.grid_size(size, kernel, *window.values())
    taps = offset_groups * math.prod(kernel)
    options: dict[str, Any] = {"device": device, "dtype": dtype}
    return {
        "input": torch.rand(batch, channels, *size, **options),
        "offset": torch.randn(batch, axes * taps, *out, **options) * scale,
        "weight": torch.randn(outputs, channels // groups, *kernel, **options),
        "bias": torch.randn(outputs, **options),
        **window,
        "mask": torch.rand(batch, taps, *out, **options),
    }


# ---- Values, shapes, gradients ----


@pytest.mark.parametrize("deform_conv", [ddu_ops.deform_conv2d, pytest.param(theirs, marks=installed)])
def test_the_example_of_its_documentation(deform_conv: DeformConv) -> None:
    input, mask = torch.rand(4, 3, 10, 10), torch.rand(4, 3 * 3, 8, 8)
    weight, offset = torch.rand(5, 3, 3, 3), torch.rand(4, 2 * 3 * 3, 8, 8)
    assert deform_conv(input, offset, weight, mask=mask).shape == (4, 5, 8, 8)


@pytest.mark.parametrize("contiguous", [True, False])
@pytest.mark.parametrize("batch", [0, 1, 33])
@functions
def test_values(deform_conv: DeformConv, axes: int, batch: int, contiguous: bool) -> None:
    given = arguments(batch, axes=axes)
    if not contiguous:
        for name in ("input", "offset", "mask", "weight"):
            given[name] = given[name].transpose(1, -1).contiguous().transpose(1, -1)
    output = deform_conv(**given)
    assert output.dtype == torch.float64
    assert output.shape == (batch, 2, *given["offset"].shape[2:])
    if batch:
        torch.testing.assert_close(output, expected(**given))


@functions
def test_arguments_in_its_order_and_its_defaults(deform_conv: DeformConv, axes: int) -> None:
    names = ("input", "offset", "weight", "bias", "stride", "padding", "dilation", "mask")
    given = arguments(axes=axes)
    torch.testing.assert_close(deform_conv(*(given[name] for name in names)), deform_conv(**given))
    plain = arguments(2, 1, 1, axes=axes, stride=1, padding=0, dilation=1, size=6)
    tensors = {name: plain[name] for name in ("input", "offset", "weight")}
    output = deform_conv(**tensors)
    torch.testing.assert_close(output, expected(**tensors))
    defaults = {"bias": None, "stride": 1, "padding": 0, "dilation": 1, "mask": None}
    torch.testing.assert_close(deform_conv(**tensors, **defaults), output)
    numbers = {"stride": 2, "padding": 1, "dilation": 2}
    square = arguments(2, axes=axes, kernel_size=2, **numbers)
    torch.testing.assert_close(deform_conv(**{**square, **numbers}), deform_conv(**square))


@functions
def test_no_offset_is_the_convolution(deform_conv: DeformConv, axes: int) -> None:
    given = arguments(axes=axes)
    given["offset"], given["mask"] = torch.zeros_like(given["offset"]), torch.ones_like(given["mask"])
    options = {name: given[name] for name in ("input", "weight", "bias", "stride", "padding", "dilation")}
    torch.testing.assert_close(deform_conv(**given), getattr(F, f"conv{axes}d")(**options, groups=2))


@pytest.mark.parametrize("masked", [True, False])
@functions
def test_gradients(deform_conv: DeformConv, axes: int, masked: bool) -> None:
    given = arguments(2, axes=axes) | ({} if masked else {"mask": None})
    leaves = {name: t.requires_grad_() for name, t in given.items() if isinstance(t, Tensor)}

    def call(*tensors: Tensor) -> Tensor:
        return deform_conv(**{**given, **dict(zip(leaves, tensors, strict=True))})

    assert torch.autograd.gradcheck(call, tuple(leaves.values()), fast_mode=True)


@functions
def test_compiled(deform_conv: DeformConv, axes: int) -> None:
    given = arguments(axes=axes)
    options = {name: given.pop(name) for name in ("stride", "padding", "dilation")}

    def call(*tensors: Tensor) -> Tensor:
        return deform_conv(**dict(zip(given, tensors, strict=True)), **options)

    torch._dynamo.reset()
    compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*given.values()), call(*given.values()))


# ---- Errors ----

WRONG: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "an input without batch and channels": lambda a: {"input": a["input"][0, 0]},
    "an offset that is no multiple": lambda a: {"offset": a["offset"][:, :-1]},
    "an offset of another grid": lambda a: {"offset": a["offset"][..., :-1]},
    "an offset of another batch": lambda a: {"offset": a["offset"][:-1]},
    "an offset without a batch": lambda a: {"offset": a["offset"][0]},
    "a mask of another number of taps": lambda a: {"mask": a["mask"][:, :-1]},
    "a mask of another grid": lambda a: {"mask": a["mask"][..., :-1]},
    "a mask of another batch": lambda a: {"mask": a["mask"][:-1]},
    "a weight of too few dimensions": lambda a: {"weight": a["weight"][0]},
    "groups that do not divide the channels": lambda a: {"weight": torch.cat([a["weight"]] * 2, 1)[:, :4]},
    "groups of offsets that do not divide the channels": lambda a: {
        name: torch.cat([a[name], a[name][:, : a[name].shape[1] // 3]], 1) for name in ("offset", "mask")
    },
    "a window larger than the image": lambda a: {"dilation": 9},
    "a dilation of 0": lambda a: {"dilation": 0},
    "a negative padding": lambda a: {"padding": -1},
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG.keys())
@functions
def test_what_it_refuses(
    deform_conv: DeformConv, axes: int, change: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    given = arguments(axes=axes)
    with pytest.raises((RuntimeError, ValueError)):
        deform_conv(**{**given, **change(given)})


def test_a_stride_of_0_is_refused() -> None:
    """Which ends the process in torchvision 0.28."""
    with pytest.raises(RuntimeError, match=r"^deform_conv2d\(\): expected stride to be at least 1, but got \(0, 0\)$"):
        ddu_ops.deform_conv2d(**{**arguments(), "stride": 0})


# ---- The module ----


@pytest.mark.parametrize("bias", [True, False])
def test_the_state_dict_of_its_module(bias: bool) -> None:
    """Has the parameters of a ``Conv2d``, by these names; and those of torchvision's own, where it is installed."""
    window = ((3, 2), (2, 1), (1, 0), (2, 1), 2, bias)
    ours = ddu_ops.DeformConv2d(6, 4, *window)
    shapes = {"weight": (4, 3, 3, 2), "bias": (4,)} if bias else {"weight": (4, 3, 3, 2)}
    assert {key: value.shape for key, value in ours.state_dict().items()} == shapes
    if torchvision is not None:
        theirs = torchvision.ops.DeformConv2d(6, 4, *window)
        ours.load_state_dict(theirs.state_dict())
        given = arguments(dtype=torch.float32)
        tensors = [given[name] for name in ("input", "offset", "mask")]
        torch.testing.assert_close(ours(*tensors), theirs(*tensors), rtol=1e-4, atol=1e-5)
        theirs.load_state_dict(ddu_ops.DeformConv2d(6, 4, *window).state_dict())


class Network(nn.Module):
    """What users write, with a function of either."""

    def __init__(self, deform_conv2d: DeformConv) -> None:
        super().__init__()
        self.deform_conv2d = deform_conv2d
        self.conv, self.offset = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(3, 27, 3, padding=1)
        self.head = nn.Conv2d(6, 2, 1)

    def forward(self, input: Tensor) -> Tensor:
        y, x, mask = self.offset(input).chunk(3, 1)
        moved = self.deform_conv2d(
            input, torch.cat([y, x], 1), self.conv.weight, self.conv.bias, padding=(1, 1), mask=mask.sigmoid()
        )
        return self.head(moved.relu())


def test_a_network_is_exported() -> None:
    model, input = Network(ddu_ops.deform_conv2d), torch.randn(2, 3, 9, 8)
    sizes = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    program = torch.export.export(model, (input,), dynamic_shapes=(sizes,))
    other = torch.randn(3, 3, 12, 7)
    torch.testing.assert_close(program.module()(other), model(other))


@installed
def test_a_network_trains_alike() -> None:
    models = [Network(ddu_ops.deform_conv2d), Network(torchvision.ops.deform_conv2d)]
    models[1].load_state_dict(models[0].state_dict())
    input, target = torch.randn(4, 3, 9, 8), torch.randn(4, 2, 9, 8)
    losses: list[list[float]] = [[], []]
    for model, found in zip(models, losses, strict=True):
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        for _ in range(20):
            optimizer.zero_grad()
            loss = F.mse_loss(model(input), target)
            loss.backward()
            optimizer.step()
            found.append(loss.item())
    assert losses[0][-1] < 0.9 * losses[0][0]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-3, atol=1e-4)


# ---- Random cases ----

# ‖difference‖ / ‖torchvision in float64‖; a half type has rounded every result once.
CLOSE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}


def random_case(rng: random.Random) -> dict[str, Any]:
    """That has a window."""
    while True:
        sizes: dict[str, Any] = {
            name: (rng.randint(low, high), rng.randint(low, high))
            for name, low, high in (("size", 1, 17), ("kernel_size", 1, 4), ("stride", 1, 3), ("padding", 0, 3), ("dilation", 1, 3))
        }  # fmt: skip
        window = (sizes[name] for name in ("size", "kernel_size", "stride", "padding", "dilation"))
        if min(ddu_ops.grid_size(*window)) > 0:
            break
    groups, offset_groups = rng.choice([1, 1, 2, 4]), rng.choice([1, 1, 2, 4])
    counts = {
        "channels": 4 * rng.randint(1, 4),
        "outputs": groups * rng.randint(1, 4),
        "batch": rng.choice([1, 2, 3, 5]),
    }
    return {
        "groups": groups,
        "offset_groups": offset_groups,
        "scale": rng.choice([0.0, 0.3, 2.0, 20.0]),
        **sizes,
        **counts,
    }


@installed
@pytest.mark.parametrize("dtype", CLOSE, ids=str)
def test_random_cases(dtype: torch.dtype, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values and gradients, against torchvision's in float64. In half types it rounds positions, or has no kernel."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    rng = random.Random(0)
    for _ in range(60):
        case = random_case(rng)
        given = arguments(**case, dtype=dtype, device=device)
        if rng.random() < 0.3:
            given["mask"] = None
        # At whole places the derivative has a jump, and either side is right.
        leaves = {
            name: t for name, t in given.items() if isinstance(t, Tensor) and (name != "offset" or dtype.itemsize > 2)
        }
        exact = {name: t.double().requires_grad_() if isinstance(t, Tensor) else t for name, t in given.items()}
        for leaf in leaves.values():
            leaf.requires_grad_()
        ours, right_output = ddu_ops.deform_conv2d(**given), torchvision.ops.deform_conv2d(**exact)
        weight = torch.randn_like(ours)
        if case["scale"] == 0:
            leaves.pop("offset", None)
        found = torch.autograd.grad(ours, list(leaves.values()), weight)
        right = torch.autograd.grad(right_output, [exact[name] for name in leaves], weight.double())
        for name, actual, wanted in zip(("output", *leaves), (ours, *found), (right_output, *right), strict=True):
            assert actual.dtype == dtype
            error = (actual.double() - wanted).norm() / wanted.norm().clamp(min=1e-3)
            assert error < CLOSE[dtype], f"{name}: {error:.1e} in {case}"
