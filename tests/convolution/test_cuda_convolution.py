"""The convolution without columns on CUDA: sizes, types, layouts, refusals and memory."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cases import (
    FUSED_CONVOLUTIONS,
    ConvolutionCase,
    assert_bits,
    assert_near,
    convolve,
    convolve_reference,
    flat_map,
    make_arguments,
    taking,
)
from ddu_ops import _C

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] < 8,
    reason="no CUDA device of Ampere or newer",
)

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
cases = pytest.mark.parametrize("case", FUSED_CONVOLUTIONS, ids=str)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
BY_NAME = {case.name: case for case in FUSED_CONVOLUTIONS}
TIMES = 3  # a convolution's tolerance, for its samples are rounded once more
KERNELS = (
    "convolution_kernel",
    "convolution_input_kernel",
    "convolution_positions_kernel",
    "convolution_weight_kernel",
)


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In full float32, and by these kernels wherever they can, whether that pays or not."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    with taking("fast"):
        yield


@pytest.fixture
def tf32(monkeypatch: pytest.MonkeyPatch, exact: None) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)


def launches() -> list[int]:
    """Of the forward, and of the parts of the backward."""
    counts = _C.cuda_launches().items()
    return [sum(number for name, number in counts if name.startswith(kernel + "<")) for kernel in KERNELS]


def leaves(arguments: dict[str, Tensor], dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    return {name: tensor.detach().to(dtype or tensor.dtype).requires_grad_() for name, tensor in arguments.items()}


def run(
    case: ConvolutionCase, arguments: dict[str, Tensor], leaf: dict[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """The output, and the gradients by all arguments of its product with something fixed."""
    return with_gradients(convolve(case, arguments), leaf or arguments)


def with_gradients(output: Tensor, arguments: dict[str, Tensor]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    grad = torch.randn(output.shape, generator=generator, dtype=torch.float64).to(output)
    found = torch.autograd.grad(output, list(arguments.values()), grad.to(output.dtype))
    return {"output": output.detach(), **dict(zip(arguments, found, strict=True))}


def expected_of(case: ConvolutionCase, arguments: dict[str, Tensor]) -> dict[str, Tensor]:
    exact = leaves(arguments, torch.float64)
    return with_gradients(convolve_reference(case, exact), exact)


def assert_all_near(actual: dict[str, Tensor], expected: dict[str, Tensor], times: float = TIMES) -> None:
    for name, value in actual.items():
        try:
            assert_near(value, expected[name], times)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error


# ---- values ----


@cases
@dtypes
def test_values_and_gradients(case: ConvolutionCase, dtype: torch.dtype) -> None:
    arguments = leaves(make_arguments(case, dtype, "cuda"))
    before = launches()
    actual = run(case, arguments)
    assert [b - a for a, b in zip(before, launches(), strict=True)] == [1, 1, 1, 1]
    assert all(tensor.is_contiguous() for tensor in actual.values())
    assert_all_near(actual, expected_of(case, arguments))


@cases
@dtypes
def test_channels_last(case: ConvolutionCase, dtype: torch.dtype) -> None:
    if case.axes == 1:
        pytest.skip("has no such format")
    layout = {2: torch.channels_last, 3: torch.channels_last_3d}[case.axes]
    plain = make_arguments(case, dtype, "cuda")
    arguments = leaves({**plain, "input": plain["input"].to(memory_format=layout)})
    actual = run(case, arguments)
    assert actual["output"].is_contiguous(memory_format=layout)
    assert actual["input"].is_contiguous(memory_format=layout)
    assert_all_near(actual, expected_of(case, plain))


@cases
def test_tf32_as_torchs_own(case: ConvolutionCase, tf32: None) -> None:
    """At rates of one, where torch has the same convolution; its error is the measure."""
    if case.padding_mode != "zeros" or not case.aligned or case.per_image:
        pytest.skip("torch has no such convolution")
    case = replace(case, mask=False, bias=False)
    arguments = make_arguments(case, torch.float32, "cuda")
    arguments[case.positions_name] = flat_map(case, 1.0, torch.float32, "cuda")
    arguments = leaves(arguments)
    options = (None, case.stride, case.padding, case.dilation, case.conv_groups)
    function = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[case.axes]
    shared = {name: arguments[name] for name in ("input", "weight")}
    theirs = with_gradients(function(*shared.values(), *options), shared)
    actual = run(case, arguments)
    expected = expected_of(case, arguments)

    def error(value: Tensor, name: str) -> float:
        return ((value.double() - expected[name]).norm() / expected[name].norm()).item()

    for name, value in theirs.items():
        # Where cuDNN has no kernel for TF32 its error is no measure: 2^-11 of every factor is.
        assert error(actual[name], name) <= 3 * max(error(value, name), 2.0**-12)


@pytest.mark.parametrize("mode", ["zeros", "border", "reflection"])
@pytest.mark.parametrize(
    "name", ["part_of_a_step", "line", "volume", "offsets", "volume_offsets", "affine", "volume_affine"]
)
@dtypes
def test_positions_that_are_huge_or_not_finite(name: str, mode: str, dtype: torch.dtype) -> None:
    case = replace(BY_NAME[name], padding_mode=mode)
    arguments = make_arguments(case, dtype, "cuda")
    positions = arguments[case.positions_name].float().clone()
    flat = positions.view(-1)
    flat[::7] = 3e9
    flat[2::11], flat[5::13], flat[3::17] = -1e30, 2.0**31, 3e38
    arguments[case.positions_name] = positions
    finite = leaves(arguments)
    if mode != "reflection":  # where a neighbour of something so large has another remainder in float64
        assert_all_near({"output": convolve(case, finite)}, expected_of(case, finite))
    flat[1::19], flat[4::23], flat[6::29] = math.nan, math.inf, -math.inf
    arguments = leaves(arguments)
    actual, expected = run(case, arguments), expected_of(case, arguments)
    assert torch.equal(actual["output"].isnan(), expected["output"].isnan())
    assert torch.equal(actual[case.positions_name].isnan(), expected[case.positions_name].isnan())
    assert actual["input"].isfinite().all()


@dtypes
def test_a_float_map_beside_half(dtype: torch.dtype) -> None:
    case = BY_NAME["runs"]
    arguments = make_arguments(case, dtype, "cuda")
    arguments["dilation_map"] = arguments["dilation_map"].float() + 0.01
    arguments = leaves(arguments)
    actual = run(case, arguments)
    assert actual["dilation_map"].dtype == torch.float32
    assert_near(actual["dilation_map"].to(dtype), expected_of(case, arguments)["dilation_map"], TIMES)
    assert_near(actual["output"], expected_of(case, arguments)["output"], TIMES)


def test_large_values_in_half() -> None:
    """Whose differences half has no number for, when their gradients are numbers."""
    case = BY_NAME["part_of_a_step"]
    arguments = make_arguments(case, torch.float16, "cuda")
    arguments["mask"] = arguments["mask"].sigmoid()
    arguments["input"] = arguments["input"].sign() * 60000
    arguments["weight"] = arguments["weight"] * 2.0**-14
    arguments = leaves(arguments)
    actual, expected = run(case, arguments), expected_of(case, arguments)
    for found in (actual, expected):
        del found["weight"]  # which has none itself
    assert_all_near(actual, expected)


@dtypes
def test_pixels_that_are_not_finite(dtype: torch.dtype) -> None:
    """Between pixels, where no weight is zero, an infinite one makes its windows infinite."""
    case = ConvolutionCase("ones", 1, 32, (6, 7), bias=False, mask=False, out_channels=16)
    arguments = make_arguments(case, dtype, "cuda")
    arguments["dilation_map"] = torch.full_like(arguments["dilation_map"], 0.75)
    arguments["weight"] = torch.ones_like(arguments["weight"])
    arguments["input"][0, 3, 2, 2] = math.inf
    arguments["input"][0, 30, 4, 6] = -math.inf
    output, expected = convolve(case, arguments), convolve_reference(case, leaves(arguments, torch.float64))
    for sign in (math.inf, -math.inf):
        assert torch.equal(output == sign, expected == sign)
    assert output.isinf().any() and not output.isinf().all()


# ---- layouts ----


def misaligned(tensor: Tensor) -> Tensor:
    memory = torch.empty(tensor.numel() + 1, dtype=tensor.dtype, device=tensor.device)
    result = memory[1:].as_strided(tensor.shape, tensor.stride())
    return result.copy_(tensor)


def every_second(tensor: Tensor) -> Tensor:
    return torch.stack((tensor, -tensor), -1)[..., 0]


def more_channels(tensor: Tensor) -> Tensor:
    """Of the last layout, a part of what lies side by side."""
    if tensor.dim() < 3:
        return every_second(tensor)
    last = torch.cat((tensor, tensor[:, :1]), 1).movedim(1, -1).contiguous()
    return last.movedim(-1, 1)[:, : tensor.shape[1]]


@pytest.mark.parametrize(
    "name", ["part_of_a_step", "groups", "per_image", "one_window", "one_tap", "offsets", "affine", "volume"]
)
@pytest.mark.parametrize("change", [misaligned, every_second, more_channels], ids=lambda f: f.__name__)
@dtypes
def test_layouts(name: str, change: Any, dtype: torch.dtype) -> None:
    case = BY_NAME[name]
    leaf = leaves(make_arguments(case, dtype, "cuda"))
    expected = run(case, leaf)
    output = convolve(case, {name: change(tensor) for name, tensor in leaf.items()})
    assert_bits(output.contiguous(), expected["output"])
    generator = torch.Generator().manual_seed(2)
    grad = torch.randn(output.shape, generator=generator, dtype=torch.float64).to(output)
    found = torch.autograd.grad(output, list(leaf.values()), change(grad))
    assert_all_near(dict(zip(leaf, found, strict=True)), expected_of(case, leaf))


@dtypes
def test_expanded_arguments(dtype: torch.dtype) -> None:
    case = replace(BY_NAME["part_of_a_step"], batch=3)
    one = make_arguments(replace(case, batch=1), dtype, "cuda")
    shape = {"input": case.input_shape, "dilation_map": case.map_shape, "mask": case.mask_shape}
    arguments = {name: tensor.expand(shape.get(name, tensor.shape)) for name, tensor in one.items()}
    arguments["weight"] = one["weight"][:1, :1].expand_as(one["weight"])
    expected = convolve(case, {name: tensor.contiguous() for name, tensor in arguments.items()})
    assert_bits(convolve(case, arguments), expected)
    leaf = leaves(arguments)
    output = convolve(case, leaf)
    found = torch.autograd.grad(output, list(leaf.values()), output.new_ones(()).expand_as(output))
    exact = leaves(arguments, torch.float64)
    wanted = torch.autograd.grad(convolve_reference(case, exact).sum(), list(exact.values()))
    assert_all_near(dict(zip(leaf, found, strict=True)), dict(zip(leaf, wanted, strict=True)))


@pytest.mark.parametrize("needed", ["input", "weight", "dilation_map", "mask"])
@dtypes
def test_one_gradient_alone(needed: str, dtype: torch.dtype) -> None:
    case = BY_NAME["runs"]
    arguments = make_arguments(case, dtype, "cuda")
    arguments[needed].requires_grad_()
    actual = run(case, arguments, {needed: arguments[needed]})
    assert_all_near(actual, expected_of(case, leaves(arguments)))


# ---- what is taken ----


@pytest.mark.parametrize(
    "change",
    [
        {"channels": 36, "groups": 2},  # 18: no whole packets
        {"channels": 96, "groups": 3, "conv_groups": 2, "out_channels": 32},  # groups that do not nest
        {"channels": 32, "conv_groups": 32, "out_channels": 32},  # depthwise
    ],
    ids=str,
)
@dtypes
def test_columns_take_the_rest(change: dict[str, int], dtype: torch.dtype) -> None:
    case = replace(BY_NAME["part_of_a_step"], **change)
    arguments = leaves(make_arguments(case, dtype, "cuda"))
    before = launches()
    actual = run(case, arguments)
    assert launches() == before
    assert_all_near(actual, expected_of(case, arguments))


@pytest.mark.parametrize("channels, groups", [(8, 1), (24, 3)])
@dtypes
def test_few_channels_and_outputs(channels: int, groups: int, dtype: torch.dtype) -> None:
    case = ConvolutionCase("few", 2, channels, (7, 6), padding=(1, 1), groups=groups, out_channels=3)
    arguments = leaves(make_arguments(case, dtype, "cuda"))
    before = launches()
    actual = run(case, arguments)
    assert [b - a for a, b in zip(before, launches(), strict=True)] == [1, 1, 1, 1]
    assert_all_near(actual, expected_of(case, arguments))


@pytest.mark.parametrize(
    "dtype, change, expected",
    [
        (torch.float16, {}, [1, 1, 1, 1]),
        (torch.float32, {}, [1, 1, 1, 1]),
        (torch.float16, {"mask": False}, [1, 1, 1, 1]),
        (torch.float16, {"mask": False, "out_channels": 128}, [1, 0, 0, 0]),
        (torch.float16, {"out_channels": 512}, [1, 1, 1, 1]),
        (torch.float16, {"stride": (2, 2), "mask": False, "out_channels": 128}, [1, 1, 1, 1]),
        (torch.float16, {"size": (20, 20), "mask": False, "out_channels": 128}, [1, 1, 1, 1]),
        (torch.float16, {"out_channels": 7}, [0, 0, 0, 0]),
        (torch.float16, {"channels": 8}, [0, 0, 0, 0]),
        (torch.float32, {"mask": False, "out_channels": 128}, [0, 0, 0, 0]),
        (torch.float32, {"out_channels": 128}, [1, 0, 0, 0]),
        (torch.float32, {"size": (20, 20), "out_channels": 128}, [1, 1, 1, 1]),
        (torch.float32, {"out_channels": 600}, [0, 0, 0, 0]),
    ],
    ids=str,
)
def test_what_pays(dtype: torch.dtype, change: dict[str, Any], expected: list[int]) -> None:
    case = replace(ConvolutionCase("layer", 2, 64, (48, 40), padding=(1, 1), out_channels=64), **change)
    arguments = leaves(make_arguments(case, dtype, "cuda"))
    with taking():
        before = launches()
        actual = run(case, arguments)
        assert [b - a for a, b in zip(before, launches(), strict=True)] == expected
    assert_all_near(actual, expected_of(case, arguments))


# ---- order, streams, memory ----


@pytest.fixture
def deterministic() -> Iterator[None]:
    with taking("fast", "deterministic"):
        yield


@pytest.mark.filterwarnings("ignore:Deterministic behavior was enabled:UserWarning")
@pytest.mark.parametrize("name", ["part_of_a_step", "runs", "many_warps", "volume"])
@dtypes
def test_results_are_the_same_in_every_run(name: str, dtype: torch.dtype, deterministic: None) -> None:
    arguments = leaves(make_arguments(BY_NAME[name], dtype, "cuda"))
    first = run(BY_NAME[name], arguments)
    for _ in range(3):
        assert_bits(list(run(BY_NAME[name], arguments).values()), list(first.values()))


@dtypes
def test_what_needs_no_order_is_the_same_in_every_run(dtype: torch.dtype) -> None:
    case = BY_NAME["runs"]
    arguments = leaves(make_arguments(case, dtype, "cuda"))
    first = run(case, arguments)
    for _ in range(3):
        again = run(case, arguments)
        for name in ("output", "weight", "dilation_map", "mask"):
            assert_bits(again[name], first[name])


@pytest.mark.filterwarnings("ignore:The AccumulateGrad node's stream:UserWarning")
@pytest.mark.parametrize("name", ["part_of_a_step", "offsets", "affine", "volume"])
def test_a_graph_replays_what_it_captured(name: str) -> None:
    case = BY_NAME[name]
    arguments = leaves(make_arguments(case, torch.float16, "cuda"))
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        run(case, arguments)
    torch.cuda.synchronize()
    grad = torch.ones(case.output_shape, dtype=torch.float16, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = convolve(case, arguments)
        found = torch.autograd.grad(output, list(arguments.values()), grad)
    with torch.no_grad():
        arguments["input"].mul_(2)
    graph.replay()
    expected = convolve(case, arguments)
    assert_bits(output, expected)
    for mine, theirs in zip(found, torch.autograd.grad(expected, list(arguments.values()), grad), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
@dtypes
def test_no_columns_are_held(layout: torch.memory_format, dtype: torch.dtype) -> None:
    case = ConvolutionCase("large", 2, 64, (160, 150), padding=(1, 1), out_channels=64)
    arguments = make_arguments(case, dtype, "cuda")
    arguments["input"] = arguments["input"].to(memory_format=layout)
    arguments = leaves(arguments)
    output = convolve(case, arguments)
    grad = torch.randn_like(output)
    size = arguments["input"].nbytes
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    convolve(case, {name: tensor.detach() for name, tensor in arguments.items()})
    assert torch.cuda.max_memory_allocated() - held < 3 * size
    torch.cuda.reset_peak_memory_stats()
    torch.autograd.grad(output, list(arguments.values()), grad)
    # The columns are nine times that, and there would be three of them; what is held are copies in another layout, sums in float32 and the results.
    assert torch.cuda.max_memory_allocated() - held < 9 * size
