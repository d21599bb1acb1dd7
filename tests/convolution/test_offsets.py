"""Conversions of offsets and masks, against plain implementations of the libraries that they come from."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import ddu_ops
from cases import assert_near
from ddu_ops import offsets

SIZE = (6, 7)
WINDOWS: list[dict[str, Any]] = [
    {},
    {"kernel_size": (3, 2), "dilation": (1, 2), "offset_scale": 0.5},
    {"kernel_size": (1, 3), "offset_scale": -2.0},
    {"kernel_size": (3, 5), "dilation": 2, "offset_scale": 1.5, "remove_center": True},
    {"kernel_size": 2, "dilation": 3, "offset_scale": 2.0},
]
windows = pytest.mark.parametrize("window", WINDOWS, ids=str)
GROUPS = 2


def pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value


def points_of(window: dict[str, Any]) -> int:
    kernel_h, kernel_w = pair(window.get("kernel_size", 3))
    return kernel_h * kernel_w - window.get("remove_center", False)


def of_dcnv3(window: dict[str, Any], dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Offsets and mask as DCNv3 takes them, on a grid of the image's size."""
    places = GROUPS * points_of(window)
    return torch.randn(2, *SIZE, 2 * places, dtype=dtype), torch.rand(2, *SIZE, places, dtype=dtype)


def dcnv3(
    image: Tensor,
    offset: Tensor,
    mask: Tensor,
    kernel_size: Any = 3,
    dilation: Any = 1,
    offset_scale: float = 1.0,
    *,
    remove_center: bool = False,
) -> Tensor:
    """DCNv3's core with padding that keeps the size, tap by tap and in its order: x outside, y inside."""
    (kernel_h, kernel_w), (dilation_h, dilation_w) = pair(kernel_size), pair(dilation)
    batch, channels, height, width = image.shape
    parts = image.reshape(batch * GROUPS, channels // GROUPS, height, width)
    centre_h, centre_w = dilation_h * (kernel_h - 1) // 2, dilation_w * (kernel_w - 1) // 2
    y, x = torch.meshgrid(*(torch.arange(n, dtype=image.dtype) for n in (height, width)), indexing="ij")
    total, point = torch.zeros_like(parts), 0
    for i, j in itertools.product(range(kernel_w), range(kernel_h)):
        if remove_center and (i, j) == (kernel_w // 2, kernel_h // 2):
            continue
        own = offset.view(batch, height, width, GROUPS, -1, 2)[..., point, :]
        at_x = x[..., None] + offset_scale * (i * dilation_w - centre_w + own[..., 0])
        at_y = y[..., None] + offset_scale * (j * dilation_h - centre_h + own[..., 1])
        grid = torch.stack([(2 * at_x + 1) / width - 1, (2 * at_y + 1) / height - 1], -1)
        grid = grid.permute(0, 3, 1, 2, 4).flatten(0, 1)
        factor = mask.view(batch, height, width, GROUPS, -1)[..., point].permute(0, 3, 1, 2).flatten(0, 1)
        total = total + factor.unsqueeze(1) * F.grid_sample(parts, grid, align_corners=False)
        point += 1
    return total.view_as(image)


def summed(image: Tensor, offset: Tensor, mask: Tensor, window: dict[str, Any]) -> Tensor:
    """Ours, with windows whose centres are DCNv3's; it puts that of an even kernel to the left, so the grid is cut."""
    kernel, dilation = pair(window.get("kernel_size", 3)), pair(window.get("dilation", 1))
    padding = tuple(d * (k - 1) - d * (k - 1) // 2 for k, d in zip(kernel, dilation, strict=True))
    more = [p - d * (k - 1) // 2 for p, k, d in zip(padding, kernel, dilation, strict=True)]
    offset, mask = (F.pad(t, (more[1], 0, more[0], 0)) for t in (offset, mask))
    result = ddu_ops.deform_aggregate2d(image, mask, kernel, offset, 1, padding, dilation, GROUPS)
    return result[..., more[0] :, more[1] :]


@windows
def test_from_dcnv3(window: dict[str, Any]) -> None:
    """With the gradients of what DCNv3 takes."""
    image = torch.randn(2, 4, *SIZE, dtype=torch.float64)
    theirs = tuple(t.requires_grad_() for t in of_dcnv3(window))
    expected = dcnv3(image, *theirs, **window)
    output = summed(image, *offsets.from_dcnv3(*theirs, **window), window)
    assert_near(output, expected)
    weight = torch.randn_like(expected)
    for actual, right in zip(*(torch.autograd.grad(o, theirs, weight) for o in (output, expected)), strict=True):
        assert_near(actual, right)


@windows
def test_dcnv4_is_dcnv3_in_one_tensor(window: dict[str, Any]) -> None:
    """For each group the offsets, then the factors; zeros up to a multiple of 8."""
    offset, mask = of_dcnv3(window)
    points = points_of(window)
    together = torch.zeros(2, *SIZE, -(-3 * GROUPS * points // 8) * 8, dtype=torch.float64)
    for group in range(GROUPS):
        start = 3 * points * group
        together[..., start : start + 2 * points] = offset[..., 2 * points * group :][..., : 2 * points]
        together[..., start + 2 * points : start + 3 * points] = mask[..., points * group :][..., :points]
    expected = offsets.from_dcnv3(offset, mask, **window)
    for actual, right in zip(offsets.from_dcnv4(together, GROUPS, **window), expected, strict=True):
        assert torch.equal(actual, right)
    assert_near(offsets.to_dcnv4(*expected, **window), together)


@windows
def test_to_dcnv3_is_the_inverse(window: dict[str, Any]) -> None:
    theirs = of_dcnv3(window)
    ours = offsets.from_dcnv3(*theirs, **window)
    back = offsets.to_dcnv3(*ours, **window)
    for actual, right in zip(back, theirs, strict=True):
        assert_near(actual, right)
    for actual, right in zip(offsets.from_dcnv3(*back, **window), ours, strict=True):
        assert_near(actual, right)


def test_a_dilation_map_is_an_offset_scale() -> None:
    """One number for the whole image, with offsets of zero."""
    mask = torch.rand(1, *SIZE, 9, dtype=torch.float64)
    offset, _ = offsets.from_dcnv3(mask.new_zeros(1, *SIZE, 18), mask, offset_scale=1.5)
    assert_near(offset, ddu_ops.to_offsets(mask.new_full((1, 1, *SIZE), 1.5), 3))


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_axis_blocks(axes: int) -> None:
    """Sampled tap by tap from the blocks of each axis, the slowest first."""
    size, kernel, groups = (4, 5, 6)[:axes], (2, 3, 2)[:axes], 2
    taps = list(itertools.product(*map(range, kernel)))
    blocks = torch.randn(2, axes, groups * len(taps), *size, dtype=torch.float64)
    image = torch.randn(2, 2 * groups, *(n + k - 1 for n, k in zip(size, kernel, strict=True)), dtype=torch.float64)
    ours = offsets.from_axis_blocks(blocks)
    columns = getattr(ddu_ops, f"deform_unfold{axes}d")(image, kernel, ours, groups=groups)
    columns = columns.view(2, groups, 2, len(taps), *size)
    grid = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in size), indexing="ij")
    for group, (t, tap) in itertools.product(range(groups), enumerate(taps)):
        at = [grid[a] + tap[a] + blocks[:, a, group * len(taps) + t] for a in range(axes)]
        places = torch.stack([(2 * p + 1) / n - 1 for p, n in zip(at, image.shape[2:], strict=True)][::-1], -1)
        part = image[:, 2 * group : 2 * group + 2]
        if axes == 1:  # as an image of height one
            part, places = part.unsqueeze(2), F.pad(places, (0, 1)).unsqueeze(1)
        samples = F.grid_sample(part, places, align_corners=False).view(2, 2, *size)
        assert_near(columns[:, group, :, t], samples)
    assert torch.equal(offsets.to_axis_blocks(ours), blocks)


# ---- What all of them promise ----


FUNCTIONS = {name: getattr(offsets, name) for name in offsets.__all__}
functions = pytest.mark.parametrize("name", FUNCTIONS)


def arguments(name: str) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
    window = WINDOWS[3]
    if name.endswith("axis_blocks"):
        shape = (2, 2, 9, 3, 4) if name.startswith("from") else (2, 18, 3, 4)
        return (torch.randn(shape, dtype=torch.float64),), {}
    theirs = of_dcnv3(window)
    if name == "from_dcnv3":
        return theirs, window
    ours = offsets.from_dcnv3(*theirs, **window)
    return ((offsets.to_dcnv4(*ours, **window),), {"group": GROUPS, **window}) if "from" in name else (ours, window)


@functions
def test_gradients(name: str) -> None:
    function, (tensors, options) = FUNCTIONS[name], arguments(name)
    small = tuple(t[:1, :2, :2] if t.shape[1] == SIZE[0] else t[:1, ..., :2, :2] for t in tensors)
    leaves = tuple(t.clone().requires_grad_() for t in small)
    assert torch.autograd.gradcheck(lambda *t: function(*t, **options), leaves, check_forward_ad=True)


@functions
def test_compile_and_tracing(name: str) -> None:
    """In one graph, for any batch."""
    function, (tensors, options) = FUNCTIONS[name], arguments(name)

    class Called(torch.nn.Module):
        def forward(self, *tensors: Tensor) -> Any:
            return function(*tensors, **options)

    torch._dynamo.reset()
    compiled = torch.compile(Called(), backend="aot_eager", fullgraph=True, dynamic=True)
    for batch in (2, 3):
        given = tuple(torch.cat([t, t])[:batch] for t in tensors)
        torch.testing.assert_close(compiled(*given), function(*given, **options))

    def call(a: Tensor, b: Tensor) -> Any:
        return function(*(a, b)[: len(tensors)], **options)

    traced = torch.fx.symbolic_trace(call)
    torch.testing.assert_close(traced(tensors[0], tensors[-1]), function(*tensors, **options))


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=str)
@functions
def test_half_types_are_rounded_once(name: str, half: torch.dtype) -> None:
    function, (tensors, options) = FUNCTIONS[name], arguments(name)
    tensors = tuple(t.to(half) for t in tensors)
    actual, exact = function(*tensors, **options), function(*(t.float() for t in tensors), **options)
    for a, e in zip(*((x,) if isinstance(x, Tensor) else x for x in (actual, exact)), strict=True):
        assert a.dtype == half
        assert torch.equal(a, e.to(half))


MESSAGES: dict[str, tuple[Callable[[], Any], str]] = {
    "one mask for two groups": (
        lambda: offsets.from_dcnv3(torch.zeros(1, 2, 2, 36), torch.zeros(1, 2, 2, 9)),
        "from_dcnv3(): expected offset of shape (N, H_out, W_out, G * 18) and mask of shape (N, H_out, W_out, G * 9), "
        "but got (1, 2, 2, 36) and (1, 2, 2, 9)",
    ),
    "channels first": (
        lambda: offsets.from_dcnv4(torch.zeros(1, 32, 2, 2), 1),
        "from_dcnv4(): expected offset_mask of shape (N, H_out, W_out, 32), but got (1, 32, 2, 2)",
    ),
    "no groups": (
        lambda: offsets.from_dcnv4(torch.zeros(1, 2, 2, 32), 0),
        "from_dcnv4(): expected group to be at least 1, but got 0",
    ),
    "no centre": (
        lambda: offsets.to_dcnv3(torch.zeros(1, 8, 2, 2), torch.zeros(1, 4, 2, 2), 2, remove_center=True),
        "to_dcnv3(): expected kernel_size to be odd and above 1 with remove_center=True, but got (2, 2)",
    ),
    "channels last": (
        lambda: offsets.to_dcnv4(torch.zeros(1, 2, 2, 18), torch.zeros(1, 2, 2, 9)),
        "to_dcnv4(): expected offset of shape (N, G * 18, H_out, W_out) and mask of shape (N, G * 9, H_out, W_out), "
        "but got (1, 2, 2, 18) and (1, 2, 2, 9)",
    ),
    "no scale": (
        lambda: offsets.to_dcnv4(torch.zeros(1, 18, 2, 2), torch.zeros(1, 9, 2, 2), offset_scale=0.0),
        "to_dcnv4(): expected offset_scale to be other than 0, but got 0.0",
    ),
    "no blocks": (
        lambda: offsets.from_axis_blocks(torch.zeros(1, 18, 2, 2)),
        "from_axis_blocks(): expected offset of shape (B, N, G * K, *out), with as many sizes in out as N says, but got "
        "(1, 18, 2, 2)",
    ),
    "odd": (
        lambda: offsets.to_axis_blocks(torch.zeros(1, 17, 2, 2)),
        "to_axis_blocks(): expected offset of shape (B, N * G * K, *out), with as many sizes in out as N says, but got "
        "(1, 17, 2, 2)",
    ),
}


@pytest.mark.parametrize("call, message", MESSAGES.values(), ids=MESSAGES.keys())
def test_messages(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(RuntimeError) as caught:
        call()
    assert str(caught.value) == message
