"""The convolution with a dilation map, its modules, and what they are composed into."""

import copy
import io
import math
import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from expecttest import assert_expected_inline
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

import ddu_ops
from cases import (
    CONVOLUTIONS,
    ConvolutionCase,
    as_list,
    assert_bits,
    assert_near,
    assert_same,
    convolve,
    convolve_reference,
    flat_map,
    make_arguments,
)
from ddu_ops import layers

# On CUDA, where cuBLAS is deterministic only with a setting of the whole process.
pytestmark = pytest.mark.filterwarnings("ignore:Deterministic behavior was enabled:UserWarning")


@pytest.fixture(autouse=True)
def exact_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's own in float32, which cuDNN would do in TF32."""
    if torch.cuda.is_available():
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


CASES = [
    ConvolutionCase("plain", bias=False, mask=False),
    ConvolutionCase("bias", padding=(1, 1), mask=False),
    ConvolutionCase("mask", padding=(1, 1), bias=False),
    ConvolutionCase("dilation_groups", 3, 4, (9, 6), (3, 2), (2, 1), (1, 0), (1, 2), groups=2, rates=2),
    ConvolutionCase("both_groups", 2, 12, (5, 6), padding=(1, 1), groups=3, conv_groups=2, out_channels=6),
    ConvolutionCase("depthwise", 2, 4, (5, 6), padding=(1, 1), groups=2, conv_groups=4, out_channels=8),
    ConvolutionCase("first_tap", padding=(2, 1), dilation=(1, 2), aligned=False),
    ConvolutionCase("one_tap", kernel_size=(1, 1), stride=(2, 1)),
    ConvolutionCase("no_batch", batch=0, padding=(1, 1)),
    ConvolutionCase("no_channels", channels=0, padding=(1, 1)),
    ConvolutionCase("no_output", out_channels=0, padding=(1, 1)),
    ConvolutionCase("mask_groups", 2, 12, (5, 6), padding=(1, 1), groups=3, conv_groups=2, out_channels=6,
                    mask_groups=4),
    ConvolutionCase("per_image", 2, 4, (5, 6), (3, 2), padding=(1, 1), groups=2, conv_groups=2, per_image=True),
    ConvolutionCase("line", 2, 4, (13,), (3,), (2,), (1,), (2,), groups=2, conv_groups=2, rates=1),
    ConvolutionCase("line_border", 2, 3, (7,), padding=(3,), aligned=False, padding_mode="border", per_image=True),
    ConvolutionCase("volume", 2, 4, (3, 5, 4), (2, 3, 2), (1, 2, 1), (1, 0, 1), (1, 1, 2), groups=2, rates=3),
    ConvolutionCase("volume_border", 1, 4, (3, 2, 4), (2, 3, 3), padding=(1, 1, 0), groups=2, padding_mode="border",
                    per_image=True),
    ConvolutionCase("reflection", 2, 4, (6, 5), (2, 3), (1, 2), (2, 1), (2, 1), rates=2, padding_mode="reflection"),
    ConvolutionCase("line_offsets", 2, 4, (9,), (3,), (2,), (1,), groups=2, source="offsets"),
    ConvolutionCase("offsets", 2, 4, (5, 6), (3, 2), (2, 1), (1, 0), groups=2, conv_groups=2, source="offsets"),
    ConvolutionCase("offsets_border", 2, 6, (5, 4), (2, 3), groups=2, mask_groups=3, source="offsets",
                    padding_mode="border", per_image=True),
    ConvolutionCase("volume_offsets", 1, 4, (3, 4, 2), (2, 3, 1), padding=(1, 1, 0), groups=2, source="offsets",
                    padding_mode="reflection"),
    ConvolutionCase("offsets_no_channels", channels=0, source="offsets"),
    ConvolutionCase("line_affine", 2, 4, (9,), (3,), (2,), (1,), groups=2, source="affine"),
    ConvolutionCase("affine", 2, 4, (5, 6), (3, 2), (2, 1), (1, 0), groups=2, conv_groups=2, source="affine"),
    ConvolutionCase("affine_border", 2, 6, (5, 4), (2, 3), groups=2, mask_groups=3, source="affine",
                    padding_mode="border"),
    ConvolutionCase("volume_affine", 1, 4, (3, 4, 2), (2, 3, 1), padding=(1, 1, 0), groups=2, source="affine",
                    padding_mode="reflection"),
    ConvolutionCase("affine_no_channels", channels=0, source="affine"),
]  # fmt: skip
cases = pytest.mark.parametrize("case", CASES, ids=str)
FULL = next(case for case in CASES if case.name == "both_groups")
SMALL_CASES = [
    ConvolutionCase("small", 2, 4, (3, 3), (2, 2), padding=(1, 0), groups=2, conv_groups=2, out_channels=2),
    ConvolutionCase("small_per_image", 2, 2, (3, 2), (2, 2), rates=2, mask_groups=2, out_channels=2, per_image=True),
    ConvolutionCase("small_line", 2, 2, (4,), (3,), padding=(1,), groups=2, out_channels=2, padding_mode="border"),
    ConvolutionCase("small_volume", 1, 2, (2, 3, 2), (2, 1, 2), groups=2, out_channels=1, conv_groups=1),
    ConvolutionCase("small_offsets", 1, 2, (3, 2), (2, 1), padding=(1, 0), out_channels=1, source="offsets"),
    ConvolutionCase("small_affine", 1, 2, (3, 2), (2, 1), padding=(1, 0), out_channels=1, source="affine"),
    ConvolutionCase("small_volume_affine", 1, 1, (2, 2, 2), (1, 2, 1), out_channels=1, source="affine"),
    ConvolutionCase("small_volume_offsets", 1, 1, (2, 2, 2), (1, 2, 1), out_channels=1, source="offsets"),
]
small_cases = pytest.mark.parametrize("case", SMALL_CASES, ids=str)
SMALL = SMALL_CASES[0]

FORMATS = {1: torch.contiguous_format, 2: torch.channels_last, 3: torch.channels_last_3d}

dtypes = pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=lambda dtype: str(dtype)[6:]
)


def as_function(case: ConvolutionCase, arguments: dict[str, Tensor], **options: Any) -> Callable[..., Tensor]:
    """Of the tensors, in the order of ``arguments``."""
    return lambda *tensors: convolve(case, dict(zip(arguments, tensors, strict=True)), **options)


def in_double(arguments: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().double() for name, tensor in arguments.items()}


def gradients(output: Tensor, arguments: dict[str, Tensor]) -> dict[str, Tensor]:
    """By every argument, of the output's product with something fixed."""
    generator = torch.Generator().manual_seed(2)
    grad = torch.randn(output.shape, generator=generator, dtype=torch.float64).to(output)
    found = torch.autograd.grad(output, list(arguments.values()), grad, materialize_grads=True)
    return dict(zip(arguments, found, strict=True))


def gradients_of_ones(output: Tensor, arguments: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same without values."""
    found = torch.autograd.grad(output, list(arguments.values()), torch.ones_like(output))
    return dict(zip(arguments, found, strict=True))


def leaves(arguments: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone().requires_grad_() for name, tensor in arguments.items()}


# ---- values and gradients ----


@cases
@dtypes
def test_values_and_gradients(case: ConvolutionCase, dtype: torch.dtype, device: torch.device) -> None:
    arguments = leaves(make_arguments(case, dtype, device))
    expected_arguments = leaves(in_double(arguments))
    output, expected = convolve(case, arguments), convolve_reference(case, expected_arguments)
    assert output.dtype == dtype
    assert output.is_contiguous()
    assert_near(output, expected)
    actual_gradients, expected_gradients = (
        gradients(output, arguments),
        gradients(expected, expected_arguments),
    )
    for name, gradient in actual_gradients.items():
        assert gradient.dtype == dtype
        assert_near(gradient, expected_gradients[name])


# Larger than what a kernel works on at a time: positions, channels, taps and images, not in whole numbers of it.
LARGE_CASES = [
    ConvolutionCase("positions", 1, 20, (47, 44), padding=(1, 1), out_channels=5),
    ConvolutionCase("lanes", 2, 48, (9, 16), padding=(1, 1), mask_groups=1, out_channels=33),
    ConvolutionCase("taps", 2, 32, (12, 11), (7, 7), padding=(3, 3), out_channels=18),
    ConvolutionCase("channels", 1, 1040, (5, 4), (3, 2), padding=(1, 1), out_channels=24),
    ConvolutionCase("groups", 2, 64, (13, 11), groups=2, conv_groups=4, mask_groups=8, out_channels=12),
    ConvolutionCase("images", 5, 18, (6, 5), padding=(1, 1), groups=3, out_channels=7, per_image=True),
    ConvolutionCase("offsets", 5, 36, (12, 12), padding=(1, 1), groups=2, source="offsets", padding_mode="border"),
    ConvolutionCase("affine", 5, 36, (12, 12), padding=(1, 1), groups=2, source="affine", padding_mode="border"),
    ConvolutionCase("volume", 2, 34, (4, 6, 7), (3, 2, 3), padding=(1, 1, 1), rates=3, padding_mode="reflection"),
]


@pytest.mark.parametrize("case", LARGE_CASES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
def test_more_than_at_a_time(case: ConvolutionCase, layout: str, device: torch.device) -> None:
    arguments = leaves(make_arguments(case, torch.float32, device))
    exact = leaves(in_double(arguments))
    given = dict(arguments)
    if layout == "channels_last":
        given["input"] = given["input"].to(memory_format=FORMATS[case.axes])
    elif layout == "strided":
        given = {name: torch.stack((tensor, -tensor), -1)[..., 0] for name, tensor in arguments.items()}
    output, expected = convolve(case, given), convolve_reference(case, exact)
    if layout == "channels_last":
        assert output.is_contiguous(memory_format=FORMATS[case.axes])
    assert_near(output, expected)
    expected_gradients = gradients(expected, exact)
    for name, gradient in gradients(output, arguments).items():
        assert_near(gradient, expected_gradients[name])


@pytest.mark.parametrize("case", LARGE_CASES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_number_of_threads_changes_no_bit(case: ConvolutionCase, dtype: torch.dtype) -> None:
    found = []
    threads = torch.get_num_threads()
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            arguments = leaves(make_arguments(case, dtype))
            output = convolve(case, arguments)
            found.append({"output": output.detach(), **gradients(output, arguments)})
    finally:
        torch.set_num_threads(threads)
    for name, expected in found[0].items():
        assert_bits(found[1][name], expected)
        assert_bits(found[2][name], expected)


@pytest.mark.parametrize("case", [case for case in LARGE_CASES if case.name in ("taps", "volume")], ids=str)
def test_no_columns_of_one_image(case: ConvolutionCase) -> None:
    """As torch's own profiler counts memory on the CPU, forward and backward."""
    case = replace(case, batch=1)
    arguments = leaves(make_arguments(case, torch.float32))
    with torch.profiler.profile(profile_memory=True) as profile:
        gradients(convolve(case, arguments), arguments)
    columns = case.channels * case.taps * math.prod(case.output_size) * 4
    assert max(event.self_cpu_memory_usage for event in profile.events()) < columns / 4


@pytest.mark.parametrize("name", ["positions", "lanes", "groups"])
def test_what_is_not_finite_stays_in_its_windows(name: str, device: torch.device) -> None:
    """A rate or a factor that is not finite spoils the results at its position, and no others."""
    case = next(case for case in LARGE_CASES if case.name == name)
    arguments = make_arguments(case, torch.float32, device)
    clean = leaves(arguments)
    expected = convolve(case, clean)
    spoiled = {key: tensor.clone() for key, tensor in arguments.items()}
    spoiled["dilation_map"][0, 0, 3, 4] = float("nan")
    spoiled["dilation_map"][0, 0, 2, 1] = float("inf")
    spoiled["mask"][0, 0, 5, 6] = float("nan")
    spoiled = leaves(spoiled)
    output = convolve(case, spoiled)
    bad = torch.zeros(expected.shape, dtype=torch.bool, device=device)
    for group, row, column in [(case.groups, 3, 4), (case.groups, 2, 1), (case.mask_groups or case.groups, 5, 6)]:
        read = torch.arange(case.channels) < case.channels // group  # the channels of its first group
        rows = read.view(case.conv_groups, -1).any(1).repeat_interleave(case.out_channels // case.conv_groups)
        bad[0, rows.to(device), row, column] = True
    assert torch.equal(output.isnan(), bad)
    assert_bits(output[~bad], expected[~bad])
    grad_input = gradients(output, spoiled)["input"]
    assert not grad_input[1:].isnan().any()
    assert not grad_input[:, case.channels // min(case.groups, case.mask_groups or case.groups) :].isnan().any()


def test_gradients_of_rates_that_are_not_finite(device: torch.device) -> None:
    arguments = make_arguments(LARGE_CASES[0], torch.float32, device)
    del arguments["mask"]
    arguments["dilation_map"][0, 0, 3, 4] = float("nan")
    arguments = leaves(arguments)
    found = gradients(convolve(LARGE_CASES[0], arguments), arguments)
    assert found["input"].isfinite().all()
    assert found["dilation_map"].isnan().nonzero().tolist() == [[0, 0, 3, 4]]


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_with_a_float_map(half: torch.dtype, device: torch.device) -> None:
    arguments = make_arguments(FULL, half, device)
    arguments["dilation_map"] = arguments["dilation_map"].float() + 0.01
    assert_near(convolve(FULL, arguments), convolve_reference(FULL, in_double(arguments)))


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_with_a_float_mask(half: torch.dtype, device: torch.device) -> None:
    """What a softmax gives: it is cast, and its gradient comes back in its own type."""
    arguments = make_arguments(FULL, half, device)
    rounded = leaves(arguments)
    arguments = leaves({**arguments, "mask": arguments["mask"].float()})
    output, expected = convolve(FULL, arguments), convolve(FULL, rounded)
    assert output.dtype == half
    assert_same(output, expected)
    gradient = gradients(output, arguments)["mask"]
    assert gradient.dtype == torch.float32
    assert_same(gradient.to(half), gradients(expected, rounded)["mask"])
    strict = [arguments[key].detach() for key in ("input", "weight", "dilation_map", "bias", "mask")]
    with pytest.raises(
        RuntimeError, match=r"convolution\(\): expected mask of type (b?float16), because input is \1, but"
    ):
        torch.ops.ddu.convolution(*strict, *FULL.strict_options)


@pytest.mark.parametrize("name", ["both_groups", "per_image", "offsets", "affine"])
def test_a_batch_in_several_parts(name: str, device: torch.device) -> None:
    """A large one: the same as image by image, forward and backward."""
    case = replace(next(case for case in CASES if case.name == name), batch=5)
    case = replace(case, size=(160, 150), padding=(1, 1), stride=(1, 1), bias=False)
    arguments = make_arguments(case, device=device)
    shared = () if case.per_image else ("weight",)
    whole = leaves(arguments)
    each = [
        leaves({key: tensor if key in shared else tensor[i : i + 1] for key, tensor in arguments.items()})
        for i in range(case.batch)
    ]
    output, outputs = convolve(case, whole), [convolve(case, one) for one in each]
    torch.testing.assert_close(output, torch.cat(outputs), rtol=1e-11, atol=1e-11)
    found = torch.autograd.grad(output.sin().sum(), list(whole.values()))
    parts = [torch.autograd.grad(o.sin().sum(), list(one.values())) for o, one in zip(outputs, each, strict=True)]
    for key, gradient, *of_parts in zip(arguments, found, *parts, strict=True):
        expected = sum(of_parts) if key in shared else torch.cat(of_parts)
        torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-9)


def test_memory_of_a_batch_is_bounded() -> None:
    """As torch's own profiler counts memory on the CPU: no columns of a batch, forward, backward, nor under vmap."""
    case = ConvolutionCase("large", 64, 16, (32, 32), padding=(1, 1), out_channels=16, bias=False, mask=False)
    arguments = make_arguments(case, torch.float32)
    columns = math.prod(case.columns_shape) * 4
    function = as_function(case, arguments)

    def of_one(input: Tensor, weight: Tensor, dilation_map: Tensor) -> Tensor:
        return function(input[None], weight, dilation_map[None]).sum()

    def largest(run: Callable[[], Any]) -> int:
        with torch.profiler.profile(profile_memory=True) as profile:
            run()
        return max(event.self_cpu_memory_usage for event in profile.events())

    trained, tensors = leaves(arguments), list(arguments.values())
    for run in (
        lambda: convolve(case, trained).sum().backward(),
        lambda: torch.func.vmap(of_one, (0, None, 0))(*tensors),
        lambda: torch.func.vmap(torch.func.grad(of_one, (0, 1, 2)), (0, None, 0))(*tensors),
        lambda: torch.func.grad(lambda *of: function(*of).sum(), (0, 1, 2))(*tensors),
    ):
        assert largest(run) <= columns / 4


def test_nothing_of_the_columns_is_saved() -> None:
    case = replace(FULL, batch=3)
    arguments = leaves(make_arguments(case))
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        convolve(case, arguments)
    pointers = {tensor.data_ptr() for tensor in arguments.values()}
    assert saved
    assert {tensor.data_ptr() for tensor in saved} <= pointers


@pytest.mark.parametrize("needed", ["input", "weight", "dilation_map", "bias", "mask"])
def test_one_gradient_alone(needed: str, device: torch.device) -> None:
    arguments = make_arguments(FULL, device=device)
    everything = leaves(arguments)
    expected = gradients(convolve(FULL, everything), everything)[needed]
    arguments[needed].requires_grad_()
    actual = gradients(convolve(FULL, arguments), {needed: arguments[needed]})[needed]
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@small_cases
def test_derivatives_of_every_kind(case: ConvolutionCase) -> None:
    arguments = make_arguments(case, kinks=False)
    tensors = [tensor.requires_grad_() for tensor in arguments.values()]
    function = as_function(case, arguments)
    assert torch.autograd.gradcheck(function, tensors, check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, tensors, check_fwd_over_rev=True, fast_mode=True)


def test_hessian_of_the_functional_api() -> None:
    arguments = make_arguments(SMALL, kinks=False)

    def energy(dilation_map: Tensor) -> Tensor:
        return convolve(SMALL, {**arguments, "dilation_map": dilation_map}).square().sum()

    def expected(dilation_map: Tensor) -> Tensor:
        return convolve_reference(SMALL, {**arguments, "dilation_map": dilation_map}).square().sum()

    hessian = torch.func.hessian(energy)(arguments["dilation_map"])
    torch.testing.assert_close(hessian, torch.func.hessian(expected)(arguments["dilation_map"]))


# ---- as a plain convolution ----


@cases
@dtypes
def test_a_map_of_ones_is_the_convolution(case: ConvolutionCase, dtype: torch.dtype, device: torch.device) -> None:
    """To rounding, in every dimension; and so are offsets of zero."""
    if case.padding_mode != "zeros" or not case.aligned or case.per_image or 0 in (case.channels, case.out_channels):
        pytest.skip("torch has no such convolution")
    arguments = make_arguments(replace(case, mask=False), dtype, device)
    arguments[case.positions_name] = flat_map(case, 1.0, dtype, device)
    of_torch = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[case.axes]
    exact = in_double(arguments)
    options = (case.stride, case.padding, case.dilation, case.conv_groups)
    assert_near(convolve(case, arguments), of_torch(exact["input"], exact["weight"], exact.get("bias"), *options))


def test_a_map_of_ones_without_output_channels(device: torch.device) -> None:
    """Torch's own convolution refuses it in groups."""
    input, weight = torch.randn(2, 4, 5, 6, device=device), torch.randn(0, 2, 3, 3, device=device)
    for rate in (1.0, 1.5):
        dilation_map = torch.full((2, 1, 5, 6), rate, device=device)
        output = ddu_ops.dynamic_dilation_conv2d(input, weight, dilation_map, padding=1, groups=2)
        assert output.shape == (2, 0, 5, 6)


def test_no_channels_in_groups(device: torch.device) -> None:
    """Any number of groups divides none; beyond what sizes can hold they are refused, and not by torch's words."""
    input, weight = torch.randn(3, 0, 5, 6, device=device), torch.randn(0, 0, 3, 3, device=device)
    dilation_map = torch.full((3, 1, 5, 6), 1.5, device=device)
    assert ddu_ops.dynamic_dilation_conv2d(input, weight, dilation_map, padding=1, groups=7).shape == (3, 0, 5, 6)
    for groups in (2**61 - 1, 2**63 - 1, 2**55):
        with pytest.raises(RuntimeError, match=r"conv2d\(\): expected .* below 2\^63, but got \d+ \* \d+"):
            ddu_ops.dynamic_dilation_conv2d(input, weight, dilation_map, padding=1, groups=groups)


@pytest.mark.parametrize(
    "name", ["both_groups", "per_image", "line", "volume", "offsets", "volume_offsets", "affine", "volume_affine"]
)
@pytest.mark.parametrize("meta", [False, True], ids=["values", "meta"])
def test_channels_last_as_torchs_own(name: str, meta: bool, device: torch.device) -> None:
    """The result and the gradient by the input; everything else is contiguous."""
    case = replace(next(case for case in CASES if case.name == name), batch=3)
    plain = leaves(make_arguments(case, device="meta" if meta else device))
    arguments = leaves({**plain, "input": plain["input"].detach().to(memory_format=FORMATS[case.axes])})
    output, expected = convolve(case, arguments), convolve(case, plain)
    assert output.is_contiguous(memory_format=FORMATS[case.axes])
    assert expected.is_contiguous()
    found = gradients(output, arguments) if not meta else gradients_of_ones(output, arguments)
    assert found["input"].is_contiguous(memory_format=FORMATS[case.axes])
    assert all(gradient.is_contiguous() for key, gradient in found.items() if key != "input")
    if not meta:
        torch.testing.assert_close(output.contiguous(), expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found, gradients(expected, plain), rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")  # torch, of Conv2d
@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("kernel_size", [3, (2, 3), (4, 1)])
def test_padding_in_words(padding: str, kernel_size: Any, device: torch.device) -> None:
    input = torch.randn(2, 4, 7, 8, device=device)
    conv = nn.Conv2d(4, 6, kernel_size, padding=padding, dilation=(1, 3)).to(device)
    layer = ddu_ops.DynamicDilationConv2d.from_conv(conv)
    expected = conv(input)
    output = layer(input)
    assert output.shape == expected.shape
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
    dilation_map = torch.rand(2, 1, *expected.shape[2:], device=device) + 0.5
    height, width = (d * (k - 1) if padding == "same" else 0 for d, k in zip((1, 3), conv.kernel_size))
    padded = F.pad(input, (width // 2, width - width // 2, height // 2, height - height // 2))
    explicit = ddu_ops.dynamic_dilation_conv2d(padded, conv.weight, dilation_map, conv.bias, dilation=(1, 3))
    torch.testing.assert_close(layer(input, dilation_map), explicit, rtol=1e-4, atol=1e-5)


# ---- to_offsets ----


def deform_conv2d(
    input: Tensor, offset: Tensor, weight: Tensor, bias: Any, stride: Any, padding: Any, dilation: Any, mask: Tensor
) -> Tensor:
    """``torchvision.ops.deform_conv2d``, from its definition and ``F.grid_sample``, for one group of the weight."""
    batch, channels, height, width = input.shape
    kernel_h, kernel_w = weight.shape[2:]
    taps, (out_h, out_w) = kernel_h * kernel_w, offset.shape[2:]
    groups = offset.shape[1] // (2 * taps)
    offset = offset.view(batch, groups, kernel_h, kernel_w, 2, out_h, out_w)
    kwargs = {"dtype": input.dtype, "device": input.device}

    def places(axis: int, taps: int, size: int) -> tuple[Tensor, Tensor]:
        return torch.arange(taps, **kwargs) * dilation[axis], torch.arange(size, **kwargs) * stride[axis] - padding[
            axis
        ]

    (tap_h, row), (tap_w, column) = places(0, kernel_h, out_h), places(1, kernel_w, out_w)
    y = row.view(-1, 1) + tap_h.view(-1, 1, 1, 1) + offset[..., 0, :, :]
    x = column.view(1, -1) + tap_w.view(1, -1, 1, 1) + offset[..., 1, :, :]
    grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], -1)
    samples = F.grid_sample(
        input.view(batch * groups, channels // groups, height, width),
        grid.view(batch * groups, taps * out_h, out_w, 2),
        align_corners=False,
    ).view(batch, groups, channels // groups, taps, out_h, out_w)
    samples = samples * mask.view(batch, groups, 1, taps, out_h, out_w)
    output = torch.einsum("bctyx,oct->boyx", samples.flatten(1, 2), weight.flatten(2))
    return output + bias.view(1, -1, 1, 1)


OFFSET_CASES = [
    ConvolutionCase("offsets", padding=(1, 1)),
    ConvolutionCase("offsets_of_groups", 2, 4, (9, 7), (3, 2), (2, 1), (1, 0), (1, 2), groups=2, rates=2),
    ConvolutionCase("offsets_of_first_tap", 2, 4, (6, 7), (2, 3), padding=(1, 2), groups=2, aligned=False),
]
offset_cases = pytest.mark.parametrize("case", OFFSET_CASES, ids=str)


def offsets_of(case: ConvolutionCase, dilation_map: Tensor) -> Tensor:
    return ddu_ops.to_offsets(dilation_map, case.kernel_size, case.dilation, case.groups, aligned=case.aligned)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_offsets_of_a_half_type_are_rounded_once(half: torch.dtype, device: torch.device) -> None:
    dilation_map = (torch.rand(2, 4, 5, 6, device=device) * 4).to(half)
    for aligned in (True, False):
        options: dict[str, Any] = {"dilation": (3, 1), "dilation_groups": 2, "aligned": aligned}
        exact = ddu_ops.to_offsets(dilation_map.double(), (5, 4), **options)
        assert_bits(ddu_ops.to_offsets(dilation_map, (5, 4), **options), exact.float().to(half))


@offset_cases
def test_to_offsets(case: ConvolutionCase, device: torch.device) -> None:
    arguments = make_arguments(case, device=device)
    dilation_map = arguments.pop("dilation_map")
    options = {"stride": case.stride, "padding": case.padding, "dilation": case.dilation}
    expected = deform_conv2d(offset=offsets_of(case, dilation_map), **arguments, **options)
    output = convolve(case, {**arguments, "dilation_map": dilation_map})
    torch.testing.assert_close(output, expected, rtol=1e-10, atol=1e-10)


@offset_cases
def test_torchvision(case: ConvolutionCase, device: torch.device) -> None:
    """With its gradients: by the map, through the offsets."""
    ops = pytest.importorskip("torchvision.ops", reason="torchvision is not installed", exc_type=ImportError)
    arguments = leaves(make_arguments(case, device=device, kinks=False))
    others = {name: tensor for name, tensor in arguments.items() if name != "dilation_map"}
    options = {"stride": case.stride, "padding": case.padding, "dilation": case.dilation}
    theirs = ops.deform_conv2d(offset=offsets_of(case, arguments["dilation_map"]), **others, **options)
    ours = convolve(case, arguments)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(gradients(ours, arguments), gradients(theirs, arguments), rtol=1e-9, atol=1e-9)


# ---- the rest of PyTorch ----


@pytest.mark.parametrize(
    "name",
    ["plain", "both_groups", "per_image", "line", "volume", "offsets", "volume_offsets", "affine", "volume_affine"],
)
def test_opcheck(name: str, device: torch.device) -> None:
    case = next(case for case in CASES if case.name == name)
    arguments = leaves(make_arguments(case, torch.float32, device, kinks=False))
    tensors = [arguments.get(key) for key in ("input", "weight", case.positions_name, "bias", "mask")]
    torch.library.opcheck(torch.ops.ddu.convolution.default, (*tensors, *case.strict_options))
    grad = torch.randn(case.output_shape, device=device)
    needs = [True, False, True, case.mask]
    plain = [None if tensor is None else tensor.detach() for tensor in (*tensors[:3], tensors[4])]
    torch.library.opcheck(torch.ops.ddu.convolution_backward.default, (grad, *plain, *case.strict_options, needs))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = ddu_ops.DynamicDilationConv2d(3, 8, 3, stride=2, padding=1)
        self.second = layers.AdaptiveDilationConv2d(8, 4, 3, padding="same", groups=2, dilation_groups=4)

    def forward(self, input: Tensor) -> Tensor:
        return self.second(self.first(input).relu())


def away_from_ones(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, (ddu_ops.DilationPredictor, ddu_ops.OffsetPredictor)):
            nn.init.normal_(module.weight, std=0.2)
    return model


@pytest.mark.parametrize(
    "name", ["both_groups", "per_image", "line", "volume", "offsets", "volume_offsets", "affine", "volume_affine"]
)
def test_decompositions(name: str) -> None:
    """Forward and backward in terms of ATen's operators, with the kernels' values, types and layouts."""
    case = next(case for case in CASES if case.name == name)
    arguments = make_arguments(case, torch.float32)
    tensors = [arguments.get(key) for key in ("input", "weight", case.positions_name, "bias", "mask")]
    table = ddu_ops.decompositions()
    needs = [True, True, True, case.mask]
    grad, without_bias = torch.randn(case.output_shape), [*tensors[:3], tensors[4]]
    for operator, values, options in (
        (torch.ops.ddu.convolution.default, tensors, case.strict_options),
        (torch.ops.ddu.convolution_backward.default, [grad, *without_bias], (*case.strict_options, needs)),
    ):
        taken_apart = make_fx(lambda *of: operator(*of, *options), table)(*values)  # noqa: B023
        called = {node.target.namespace for node in taken_apart.graph.nodes if node.op == "call_function"
                  and isinstance(node.target, torch._ops.OpOverload)}  # fmt: skip
        assert called == {"aten"}
        actual, expected = as_list(taken_apart(*values)), as_list(operator(*values, *options))
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4, check_stride=True)


def test_compile_with_dynamic_shapes() -> None:
    torch._dynamo.reset()
    model = away_from_ones(Model())
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True, dynamic=True)
    for shape in ((2, 3, 12, 10), (5, 3, 9, 17)):
        input = torch.randn(shape)
        expected = model(input)
        output = compiled(input)
        torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)
        expected_gradients = torch.autograd.grad(expected.square().sum(), list(model.parameters()))
        actual_gradients = torch.autograd.grad(output.square().sum(), list(model.parameters()))
        torch.testing.assert_close(actual_gradients, expected_gradients, rtol=1e-4, atol=1e-4)
    assert counter.frame_count == 1
    torch._dynamo.reset()


def test_export_with_dynamic_shapes() -> None:
    model = away_from_ones(Model()).eval()
    sizes = {0: torch.export.Dim("batch", min=1), 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    program = torch.export.export(model, (torch.randn(2, 3, 12, 10),), dynamic_shapes=(sizes,))
    input = torch.randn(3, 3, 14, 8)
    torch.testing.assert_close(program.module()(input), model(input))


@pytest.mark.parametrize("name", ["both_groups", "per_image", "volume", "offsets", "affine"])
@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_autocast(half: torch.dtype, name: str, device: torch.device) -> None:
    """As a convolution's, but for the positions."""
    case = next(case for case in CASES if case.name == name)
    arguments = leaves(make_arguments(case, torch.float32, device))
    with torch.autocast(device.type, half):
        output = convolve(case, arguments)
    cast = leaves({key: t if key == case.positions_name else t.detach().to(half) for key, t in arguments.items()})
    expected = convolve(case, cast)
    assert_same(output, expected)
    actual = gradients(output, arguments)
    for name, gradient in gradients(expected, cast).items():
        assert actual[name].dtype == torch.float32
        assert_near(actual[name].to(half), gradient.double())
    with torch.autocast(device.type, half):
        assert Model().to(device)(torch.randn(2, 3, 8, 8, device=device)).dtype == half


@pytest.mark.parametrize("mapped", [("input",), ("weight",), ("bias",), ("positions", "mask"), "all"], ids=str)
@pytest.mark.parametrize("name", ["both_groups", "per_image", "line", "volume", "offsets", "affine"])
def test_vmap(name: str, mapped: Any, device: torch.device) -> None:
    """With the gradients, by what is mapped and by what is not."""
    case = next(case for case in CASES if case.name == name)
    arguments = leaves(make_arguments(case, device=device))
    mapped = [case.positions_name if key == "positions" else key for key in (arguments if mapped == "all" else mapped)]
    stacked = {
        key: torch.stack([tensor, tensor.flip(0), tensor * 0.7], dim=-1).detach() if key in mapped else tensor.detach()
        for key, tensor in arguments.items()
    }
    in_dims = tuple(-1 if key in mapped else None for key in stacked)
    function = as_function(case, arguments)

    def differentiated(*tensors: Tensor) -> Any:
        output, pull = torch.func.vjp(function, *tensors)
        return output, pull(output.detach())

    actual, actual_gradients = torch.func.vmap(differentiated, in_dims)(*stacked.values())
    for index in range(3):
        tensors = [tensor[..., index] if key in mapped else tensor for key, tensor in stacked.items()]
        output, expected = differentiated(*tensors)
        torch.testing.assert_close(actual[index], output, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close([g[index] for g in actual_gradients], list(expected), rtol=1e-10, atol=1e-9)


def test_gradients_for_every_sample(device: torch.device) -> None:
    """What torch.func is for: vmap of grad."""
    model = away_from_ones(ddu_ops.DynamicDilationConv2d(3, 4, 3, padding=1)).to(device, torch.float64)
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    inputs = torch.randn(5, 3, 6, 6, device=device, dtype=torch.float64)

    def loss(parameters: dict[str, Tensor], input: Tensor) -> Tensor:
        return torch.func.functional_call(model, parameters, (input,)).square().sum()

    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, inputs)
    for index in range(5):
        expected = torch.func.grad(loss)(parameters, inputs[index])
        for name, gradient in expected.items():
            torch.testing.assert_close(each[name][index], gradient, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["both_groups", "line", "volume", "offsets", "affine"])
def test_unbatched(name: str, device: torch.device) -> None:
    case = next(case for case in CASES if case.name == name)
    arguments = make_arguments(case, device=device)
    whole = convolve(case, arguments)
    first = {key: tensor if key in ("weight", "bias") else tensor[0] for key, tensor in arguments.items()}
    torch.testing.assert_close(convolve(case, first), whole[0], rtol=1e-12, atol=1e-12)
    with pytest.raises(RuntimeError, match=r"expected weight of shape .* with an input that has no batch, but got"):
        convolve(case, {**first, "weight": first["weight"][None]})


@pytest.mark.parametrize(
    "name",
    ["both_groups", "per_image", "line_border", "volume", "offsets", "volume_offsets", "affine", "volume_affine"],
)
def test_broadcast(name: str, device: torch.device) -> None:
    """Over the batch, of the positions also over the grid; with gradients summed up again."""
    case = replace(next(case for case in CASES if case.name == name), batch=2)
    arguments = make_arguments(case, device=device, kinks=False)
    alone = ("mask", case.positions_name, *(("weight", "bias") if case.per_image else ()))
    shared = leaves({key: tensor[:1] if key in alone else tensor for key, tensor in arguments.items()})
    at_one = (..., *[slice(1)] * case.axes)
    shared[case.positions_name] = shared[case.positions_name].detach()[at_one].requires_grad_()
    expanded = {key: shared[key].expand_as(tensor) for key, tensor in arguments.items()}
    output, expected = convolve(case, shared), convolve(case, expanded)
    assert_same(output, expected)
    torch.testing.assert_close(gradients(output, shared), gradients(expected, shared), rtol=1e-10, atol=1e-10)


# ---- errors ----


def message(**changes: Any) -> str:
    """The refusal, which is the same on every device."""
    texts = set()
    for device in ("cpu", "meta"):
        arguments = {**make_arguments(FULL, torch.float32), **FULL.keywords, **changes}
        arguments = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in arguments.items()}
        with pytest.raises(RuntimeError) as caught:
            ddu_ops.dynamic_dilation_conv2d(**arguments)
        texts.add(str(caught.value))
    (text,) = texts
    return text


def test_messages() -> None:
    lines = [
        message(input=torch.randn(12, 5)),
        message(weight=torch.randn(6, 54)),
        message(weight=torch.randn(6, 12, 3, 3)),
        message(weight=torch.randn(6, 6, 3, 3).double()),
        message(groups=5),
        message(groups=0),
        message(dilation_groups=5),
        message(dilation_groups=0),
        message(dilation_map=torch.randn(2, 2, 5, 6)),
        message(bias=torch.randn(5)),
        message(mask=torch.randn(2, 10, 5, 6)),
        message(mask=torch.randn(2, 45, 5, 6)),
        message(mask=torch.randn(2, 27, 5, 5)),
        message(weight=torch.randn(3, 6, 6, 3, 3)),
        message(weight=torch.randn(2, 6, 6, 3, 3), bias=torch.randn(3, 6)),
        message(bias=torch.randn(2, 6)),
        message(mask=torch.randn(2, 27, 5, 6).half()),
        message(padding=-1),
        message(padding="reflect"),
        message(padding="same", stride=2),
    ]
    assert_expected_inline(
        "\n".join(lines),
        """\
dynamic_dilation_conv2d(): expected input of shape (B, C, H, W) or (C, H, W), but got (12, 5)
dynamic_dilation_conv2d(): expected weight of shape (C_out, C / groups, kH, kW) or (B, C_out, C / groups, kH, kW), but got (6, 54)
dynamic_dilation_conv2d(): expected weight of shape (6, 6, 3, 3), but got (6, 12, 3, 3)
dynamic_dilation_conv2d(): expected weight of type float32, because input is float32, but got float64
dynamic_dilation_conv2d(): expected groups to divide the 12 channels of input and the 6 of the output, but got 5
dynamic_dilation_conv2d(): expected groups to be at least 1, but got 0
dynamic_dilation_conv2d(): expected dilation_groups to divide the 12 channels of input, but got 5
dynamic_dilation_conv2d(): expected dilation_groups to be at least 1, but got 0
dynamic_dilation_conv2d(): expected dilation_map of shape (2, 3, 5, 6) or (2, 6, 5, 6), but got (2, 2, 5, 6)
dynamic_dilation_conv2d(): expected bias of shape (6,), but got (5,)
dynamic_dilation_conv2d(): expected mask of shape (2, M * 9, 5, 6), for a number M of groups that divides the 12 channels of input, but got (2, 10, 5, 6)
dynamic_dilation_conv2d(): expected mask of shape (2, M * 9, 5, 6), for a number M of groups that divides the 12 channels of input, but got (2, 45, 5, 6)
dynamic_dilation_conv2d(): expected mask of shape (2, M * 9, 5, 6), for a number M of groups that divides the 12 channels of input, but got (2, 27, 5, 5)
dynamic_dilation_conv2d(): expected weight of shape (2, 6, 6, 3, 3), but got (3, 6, 6, 3, 3)
dynamic_dilation_conv2d(): expected bias of shape (2, 6), but got (3, 6)
dynamic_dilation_conv2d(): expected bias of shape (6,), but got (2, 6)
dynamic_dilation_conv2d(): expected mask of type float32, because input is float32, but got float16
dynamic_dilation_conv2d(): expected padding to be at least 0, but got (-1, -1)
dynamic_dilation_conv2d(): expected padding to be one or two ints, 'valid' or 'same', but got 'reflect'
dynamic_dilation_conv2d(): expected stride to be 1 with padding='same', but got (2, 2)""",
    )


def test_messages_of_deform_conv() -> None:
    """The shapes tell the groups; where they fit no number of groups, the message says what one group takes."""
    right = {
        "input": torch.randn(2, 4, 5, 6),
        "offset": torch.randn(2, 36, 5, 6),
        "weight": torch.randn(6, 2, 3, 3),
        "padding": 1,
    }
    lines = []
    for changes in (
        {"input": torch.randn(4, 5)},
        {"offset": torch.randn(2, 17, 5, 6)},
        {"offset": torch.randn(2, 54, 5, 6)},
        {"offset": torch.randn(2, 36, 5, 5)},
        {"offset": torch.randn(2, 36, 5, 6).double()},
        {"weight": torch.randn(6, 3, 3, 3)},
        {"weight": torch.randn(6, 2, 9)},
        {"mask": torch.randn(2, 10, 5, 6)},
        {"padding_mode": "circular"},
    ):
        with pytest.raises(RuntimeError) as caught:
            ddu_ops.deform_conv2d(**{**right, **changes})
        lines.append(str(caught.value))
    assert_expected_inline(
        "\n".join(lines),
        """\
deform_conv2d(): expected input of shape (B, C, H, W) or (C, H, W), but got (4, 5)
deform_conv2d(): expected offset of shape (2, 18, 5, 6), but got (2, 17, 5, 6)
deform_conv2d(): expected the groups of offset to divide the 4 channels of input, but got 3
deform_conv2d(): expected offset of shape (2, 36, 5, 6), but got (2, 36, 5, 5)
deform_conv2d(): expected offset of type float32, because input is float32, but got float64
deform_conv2d(): expected weight of shape (6, 4, 3, 3), but got (6, 3, 3, 3)
deform_conv2d(): expected weight of shape (C_out, C / groups, kH, kW) or (B, C_out, C / groups, kH, kW), but got (6, 2, 9)
deform_conv2d(): expected mask of shape (2, M * 9, 5, 6), for a number M of groups that divides the 4 channels of input, but got (2, 10, 5, 6)
deform_conv2d(): expected padding_mode to be 'zeros', 'border' or 'reflection', but got 'circular'""",
    )


def test_messages_of_the_backward() -> None:
    arguments = make_arguments(FULL, torch.float32)
    tensors = [arguments[name] for name in ("input", "weight", "dilation_map")]
    options = FULL.strict_options
    grad = torch.randn(2, 6, 5, 6)
    lines = []
    for bad, mask, needs in ((grad[:1], None, [True] * 3 + [False]), (grad, None, [True] * 4)):
        with pytest.raises(RuntimeError) as caught:
            torch.ops.ddu.convolution_backward(bad, *tensors, mask, *options, needs)
        lines.append(str(caught.value))
    assert_expected_inline(
        "\n".join(lines),
        """\
convolution_backward(): expected grad_output of shape (2, 6, 5, 6), but got (1, 6, 5, 6)
convolution_backward(): expected mask to be a tensor, because output_mask asks for its gradient, but got None""",
    )


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_nested_tensors_are_refused_by_name(name: str) -> None:
    """In every argument; they met words of the dispatcher's."""
    nested = torch.nested.nested_tensor([torch.ones(2, 3, 4), torch.ones(1, 3, 4)])
    axes = int(name[-2]) if name[-2].isdigit() else 2
    window = {"size": (5,) * axes, "padding": (1,) * axes, "kernel_size": (3,) * axes}
    window |= {"stride": (1,) * axes, "dilation": (1,) * axes}
    source = {"deform": "offsets", "affine": "affine"}.get(name.split("_")[0], "rates")
    case = replace(FULL, **window, source=source)
    given: dict[str, Any] = {**make_arguments(case, torch.float32), "grad_output": torch.randn(case.output_shape)}
    positions = given[case.positions_name]
    given |= {**case.keywords, "source": case.source, "positions": positions, "output_mask": [True] * 4}
    operator = getattr(torch.ops.ddu, name)
    names = [argument.name for argument in operator.default._schema.arguments]
    tensors = [key for key in names if isinstance(given[key], Tensor)]
    assert len(tensors) == 5
    for key in tensors:
        with pytest.raises(RuntimeError) as caught:
            operator(**{**{key: given[key] for key in names}, key: nested})
        called = case.positions_name if key == "positions" else key
        assert str(caught.value) == f"{name}(): expected {called} to be a dense tensor, but got a nested one"


def test_messages_of_to_offsets() -> None:
    with pytest.raises(RuntimeError) as caught:
        ddu_ops.to_offsets(torch.ones(2, 3, 4, 5), 3, dilation_groups=2)
    assert_expected_inline(
        str(caught.value),
        """to_offsets(): expected dilation_map of shape (B, 2, H_out, W_out) or (B, 4, H_out, W_out), but got (2, 3, 4, 5)""",
    )


# ---- the predictor ----


INF = math.inf
BOUNDS = [(0.0, 4.0), (0.3, 1.7), (-2.0, 9.1), (0.0, INF), (-INF, 4.0), (-INF, INF), None]
bounds_of_rates = pytest.mark.parametrize("bounds", BOUNDS, ids=str)


@bounds_of_rates
@dtypes
def test_rates_start_at_one(bounds: Any, dtype: torch.dtype, device: torch.device) -> None:
    """Exactly, at every place of a vector register and of what is left after the last."""
    predictor = ddu_ops.DilationPredictor(3, 3, padding=1, bounds=bounds, dilation_groups=3).to(device, dtype)
    rates = predictor(torch.randn(2, 3, 11, 13, device=device, dtype=dtype))
    assert rates.shape == (2, 3, 11, 13)
    assert (rates == 1).all()
    assert rates.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    rates.sum().backward()
    assert predictor.bias.grad.abs().min() > 0  # and can leave it


@bounds_of_rates
@pytest.mark.parametrize("pace", [0.1, 1.0])
def test_rates_and_their_bounds(bounds: Any, pace: float) -> None:
    """An infinite end bounds nothing, and leaves the other as it is."""
    predictor = ddu_ops.DilationPredictor(1, 1, bounds=bounds, pace=pace).double()
    nn.init.ones_(predictor.weight)
    z = torch.linspace(-40, 40, 1601, dtype=torch.float64).view(1, 1, 1, -1) / pace
    rates = predictor(z).flatten().detach()
    lower, upper = bounds or (0.0, INF)
    assert (rates.diff() >= 0).all()
    assert rates.min() >= lower
    assert rates.max() <= upper
    assert rates[0] == pytest.approx(lower if lower > -INF else -39, abs=1e-3)
    assert rates[-1] == pytest.approx(upper if upper < INF else 41, abs=1e-2)
    near = z[..., 700:900:9].clone().requires_grad_()
    assert torch.autograd.gradcheck(predictor, near)
    slope = torch.autograd.functional.jacobian(predictor, torch.zeros(1, 1, 1, 1, dtype=torch.float64))
    assert slope.item() == pytest.approx(pace)


def test_bad_options_of_rates() -> None:
    for bounds in ((1.0, 2.0), (0.0, 1.0), (2.0, 3.0), (math.nan, 4.0)):
        with pytest.raises(ValueError, match=r"^DilationPredictor\(\): expected bounds on both sides of 1, but got "):
            ddu_ops.DilationPredictor(3, 3, bounds=bounds)
    for pace in (0.0, -1.0, INF, math.nan):
        with pytest.raises(
            ValueError, match=r"^DilationPredictor\(\): expected pace to be positive and finite, but got "
        ):
            ddu_ops.DilationPredictor(3, 3, pace=pace)
    for wrong in (5, (0.0,), (0.0, 4.0, 5.0), "04", ("0", "4"), (None, 4.0), (0.0, 1j)):
        with pytest.raises(ValueError, match=r"^DilationPredictor\(\): expected bounds to be two numbers, but got "):
            ddu_ops.DilationPredictor(3, 3, bounds=wrong)  # type: ignore[arg-type]
    for no_number in (None, "0.1", (0.1,), 1j):
        with pytest.raises(ValueError, match=r"^DilationPredictor\(\): expected pace to be a number, but got "):
            ddu_ops.DilationPredictor(3, 3, pace=no_number)  # type: ignore[arg-type]


def test_a_predictor_is_made_as_a_convolution() -> None:
    """With its parameters, attributes and checks."""
    conv = nn.Conv2d(4, 2, (3, 5), (2, 1), (1, 2), (2, 1))
    predictor = ddu_ops.DilationPredictor(4, (3, 5), (2, 1), (1, 2), (2, 1), dilation_groups=2)
    predictor.load_state_dict(conv.state_dict())
    input = torch.randn(2, 4, 9, 11)
    torch.testing.assert_close(predictor(input), 1 + 0.1 * conv(input), rtol=0, atol=0.05)
    for name in ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation"):
        assert getattr(predictor, name) == getattr(conv, name)
    predictor.reset_parameters()
    assert (predictor(input) == 1).all()
    with pytest.raises(ValueError, match="padding='same' is not supported for strided convolutions"):
        ddu_ops.DilationPredictor(4, 3, 2, "same")


# ---- the module ----


TRAINED = [
    nn.Conv2d(4, 6, 3),
    nn.Conv2d(4, 6, (3, 5), stride=(2, 1), padding=(1, 2), dilation=(2, 1), groups=2, bias=False),
    nn.Conv2d(4, 4, 3, padding="same", groups=4),
    nn.Conv2d(4, 6, 1, stride=2).double(),
    nn.Conv2d(4, 6, 3, padding=1).bfloat16(),
    nn.Conv2d(4, 6, 3, padding="same", padding_mode="replicate"),
    nn.Conv2d(4, 6, (5, 2), stride=2, padding=(2, 1), padding_mode="reflect"),
    nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2),
    nn.Conv1d(4, 6, 3, padding=2, dilation=2, padding_mode="reflect"),
    nn.Conv3d(4, 6, (1, 3, 2), padding=(0, 1, 1), bias=False),
    nn.Conv3d(4, 6, 3, padding=1, padding_mode="replicate"),
]
SIZES = {1: (9,), 2: (9, 11), 3: (3, 5, 4)}


def axes_of(conv: nn.Module) -> int:
    return int(type(conv).__name__[-2])


@pytest.mark.parametrize("conv", TRAINED, ids=str)
@pytest.mark.parametrize(
    "stem, options",
    [
        ("DynamicDilationConv", {"bounds": (0.0, 4.0), "dilation_groups": 2}),
        ("DynamicDilationConv", {"bounds": None, "per_axis": True}),
        ("DeformConv", {"predict": True, "offset_groups": 2}),
        ("DeformConv", {"predict": True, "mask": "softmax", "bound": 2.0}),
        ("DeformConv", {"predict": True, "mask": None}),
        ("DeformConv", {"predict": True, "moved": (0,)}),
    ],
    ids=str,
)
def test_from_conv_starts_as_the_convolution(conv: nn.Module, stem: str, options: dict[str, Any]) -> None:
    layer = getattr(ddu_ops, f"{stem}{axes_of(conv)}d").from_conv(conv, **options)
    assert layer.weight is not conv.weight
    size = SIZES[axes_of(conv)]
    for shape in ((2, 4, *size), (4, *size)):
        input = torch.randn(shape, dtype=conv.weight.dtype)
        torch.testing.assert_close(layer(input), conv(input))
    layer(torch.randn(2, 4, *size, dtype=conv.weight.dtype)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())


def test_from_conv_keeps_the_state() -> None:
    conv = nn.Conv2d(4, 6, 3).eval().requires_grad_(False)
    layer = ddu_ops.DynamicDilationConv2d.from_conv(conv)
    assert not layer.training
    assert [n for n, p in layer.named_parameters() if p.requires_grad] == ["rate.weight", "rate.bias"]


def test_from_conv_refuses() -> None:
    lines = []
    for layer, conv in (
        (ddu_ops.DynamicDilationConv2d, nn.ConvTranspose2d(4, 6, 3)),
        (ddu_ops.DynamicDilationConv3d, nn.Conv2d(4, 6, 3)),
        (ddu_ops.DeformConv1d, nn.Conv1d(4, 6, 3, padding_mode="circular")),
        (ddu_ops.DeformConv2d, nn.Conv2d(4, 6, (3, 2), padding="same", padding_mode="replicate")),
        (ddu_ops.DeformConv2d, ddu_ops.DynamicDilationConv2d(4, 6, 3)),
    ):
        with pytest.raises(TypeError) as caught:
            layer.from_conv(conv)
        lines.append(str(caught.value))
    assert_expected_inline(
        "\n".join(lines),
        """\
from_conv(): expected conv to be a torch.nn.Conv2d, but got ConvTranspose2d
from_conv(): expected conv to be a torch.nn.Conv3d, but got Conv2d
from_conv(): expected conv to have padding_mode 'zeros', 'replicate' or 'reflect', but got 'circular'
from_conv(): expected conv to pad as much on both sides with padding_mode='replicate', but got padding='same' with dilation * (kernel_size - 1) = (2, 1)
from_conv(): expected conv to compute what torch.nn.Conv2d does, but got DynamicDilationConv2d with forward of its own""",
    )


def converted(model: nn.Module) -> nn.Module:
    """Every convolution in the model, by the walk that converters take."""
    for name, child in model.named_children():
        if isinstance(child, nn.Conv2d):
            setattr(model, name, ddu_ops.DynamicDilationConv2d.from_conv(child))
        else:
            converted(child)
    return model


def test_converting_twice_is_converting_once() -> None:
    model, input = (
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Sequential(nn.Conv2d(4, 5, 3))),
        torch.randn(2, 3, 7, 8),
    )
    expected = model(input)
    converted(model)
    modules = list(model.modules())
    torch.testing.assert_close(model(input), expected)
    for layer in (model[0], model[2][0]):
        away_from_ones(layer)
    adapted = model(input)
    converted(model)
    assert [a is b for a, b in zip(model.modules(), modules, strict=True)] == [True] * len(modules)
    assert_bits(model(input), adapted)


def test_a_layer_is_no_other_layer() -> None:
    class Own(ddu_ops.DynamicDilationConv2d):
        pass

    own = Own(4, 6, 3)
    assert ddu_ops.DynamicDilationConv2d.from_conv(own) is own
    with pytest.raises(TypeError, match=r"^from_conv\(\): expected conv .*, but got DynamicDilationConv2d"):
        Own.from_conv(ddu_ops.DynamicDilationConv2d(4, 6, 3))


def test_constructor_refuses() -> None:
    with pytest.raises(ValueError, match=r"^DynamicDilationConv2d\(\): expected dilation_groups to divide in_channels"):
        ddu_ops.DynamicDilationConv2d(4, 6, 3, dilation_groups=3)
    with pytest.raises(RuntimeError, match=r"^DynamicDilationConv2d\(\): expected dilation_map to be a tensor"):
        ddu_ops.DynamicDilationConv2d(4, 6, 3, predict=False)(torch.randn(2, 4, 5, 5))
    with pytest.raises(RuntimeError, match=r"^DeformConv1d\(\): expected offset to be a tensor"):
        ddu_ops.DeformConv1d(4, 6, 3)(torch.randn(2, 4, 5))
    with pytest.raises(ValueError, match=r"^DeformConv3d\(\): expected offset_groups to divide in_channels = 4, but"):
        ddu_ops.DeformConv3d(4, 6, 3, offset_groups=3)
    with pytest.raises(RuntimeError, match=r"^AffineConv1d\(\): expected theta to be a tensor"):
        ddu_ops.AffineConv1d(4, 6, 3)(torch.randn(2, 4, 5))
    with pytest.raises(ValueError, match=r"^AffineConv3d\(\): expected theta_groups to divide in_channels = 4, but"):
        ddu_ops.AffineConv3d(4, 6, 3, theta_groups=3)
    with pytest.raises(ValueError, match=r"^DynamicDilationConv1d\(\): expected padding_mode .*, but got 'circular'"):
        ddu_ops.DynamicDilationConv1d(4, 6, 3, padding_mode="circular")
    for options in ({"mask": "tanh"}, {"bound": 0.0}, {"moved": ()}, {"moved": (1, 0)}, {"moved": (2,)}):
        with pytest.raises(ValueError, match=rf"^OffsetPredictor\(\): expected {next(iter(options))} to be "):
            ddu_ops.DeformConv2d(4, 6, 3, predict=True, **options)  # type: ignore[arg-type]


def test_state_dict_of_a_convolution() -> None:
    conv = nn.Conv2d(4, 6, 3, padding=1)
    given = ddu_ops.DynamicDilationConv2d(4, 6, 3, padding=1, predict=False)
    given.load_state_dict(conv.state_dict())
    predicting = ddu_ops.DynamicDilationConv2d(4, 6, 3, padding=1)
    predicting.load_state_dict(conv.state_dict())
    empty = ddu_ops.DynamicDilationConv2d(4, 6, 3, padding=1, device="meta")
    empty.load_state_dict(conv.state_dict(), assign=True)
    input = torch.randn(2, 4, 5, 5)
    torch.testing.assert_close(predicting(input), conv(input))
    torch.testing.assert_close(empty(input), conv(input))
    torch.testing.assert_close(given(input, torch.ones(2, 1, 5, 5)), conv(input))


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "rates": lambda: ddu_ops.DynamicDilationConv2d(4, 6, (3, 2), 2, 1, per_axis=True, bounds=None),
    "volume": lambda: ddu_ops.DynamicDilationConv3d(4, 6, 3, padding=1, padding_mode="reflect"),
    "offsets": lambda: ddu_ops.DeformConv2d(4, 6, (3, 2), 2, 1, predict=True, offset_groups=2, bound=1.5),
    "line_offsets": lambda: ddu_ops.DeformConv1d(4, 6, 3, predict=True, mask="softmax"),
    "affine": lambda: ddu_ops.AffineConv2d(4, 6, (3, 2), 2, 1, predict=True, theta_groups=2),
}


@pytest.mark.parametrize("name", LAYERS)
def test_copies(name: str) -> None:
    layer = away_from_ones(LAYERS[name]())
    input = torch.randn(2, 4, *SIZES[axes_of(layer)])
    expected = layer(input)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    saved = torch.load(file, weights_only=False)
    fresh = LAYERS[name]()
    fresh.load_state_dict(layer.state_dict())
    for duplicate in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), saved, fresh):
        assert repr(duplicate) == repr(layer)
        assert_same(duplicate(input), expected)


def test_initial_values_are_those_of_conv2d() -> None:
    torch.manual_seed(7)
    conv = nn.Conv2d(4, 6, 3)
    torch.manual_seed(7)
    layer = ddu_ops.DynamicDilationConv2d(4, 6, 3)
    assert_bits([layer.weight, layer.bias], [conv.weight, conv.bias])


def test_repr() -> None:
    lines = [
        repr(ddu_ops.DynamicDilationConv2d(4, 6, 3, padding="same", dilation_groups=2)),
        repr(ddu_ops.DynamicDilationConv2d(4, 6, (3, 2), bias=False, predict=False)),
    ]
    assert_expected_inline(
        "\n".join(lines),
        """\
DynamicDilationConv2d(
  4, 6, kernel_size=(3, 3), stride=(1, 1), padding=same, dilation=(1, 1), groups=1, bias=True, dilation_groups=2, aligned=True
  (rate): DilationPredictor(4, 2, kernel_size=(3, 3), stride=(1, 1), padding=same, dilation=(1, 1), bounds=(0.0, 4.0), pace=0.1)
)
DynamicDilationConv2d(4, 6, kernel_size=(3, 2), stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1, bias=False, dilation_groups=1, aligned=True)""",
    )


# ---- predicted offsets ----


@pytest.mark.parametrize("mask", ["sigmoid", "softmax", None])
@pytest.mark.parametrize("axes, moved", [(1, None), (2, None), (2, (1,)), (3, (1, 2))])
def test_predicted_offsets_are_their_formula(axes: int, moved: Any, mask: str | None) -> None:
    predictor = ddu_ops.OffsetPredictor(
        4, (2, 3, 1)[:axes], padding=1, offset_groups=2, mask=mask, bound=1.5, moved=moved, axes=axes
    )
    away_from_ones(predictor)
    size = (5, 6, 4)[:axes]
    for shape in ((2, 4, *size), (4, *size)):
        input = torch.randn(shape)
        z = (F.conv1d, F.conv2d, F.conv3d)[axes - 1](input, predictor.weight, predictor.bias, padding=1)
        offset, factors = predictor(input)
        taps, along = math.prod(predictor.kernel_size), moved or tuple(range(axes))
        channels = len(shape) - axes - 1
        each = offset.unflatten(channels, (2 * taps, axes)).movedim(channels + 1, 0)
        of_z = z.narrow(channels, 0, 2 * taps * len(along)).unflatten(channels, (2 * taps, len(along)))
        for axis in range(axes):
            if axis in along:
                place = of_z.select(channels + 1, along.index(axis))
                torch.testing.assert_close(each[axis], 1.5 * torch.tanh(place / 1.5))
            else:
                assert (each[axis] == 0).all()
        rest = z.narrow(channels, 2 * taps * len(along), z.shape[channels] - 2 * taps * len(along))
        if mask is None:
            assert factors is None
        elif mask == "sigmoid":
            torch.testing.assert_close(factors, 2 / (1 + torch.exp(-rest)))
        else:
            powers = rest.exp().unflatten(channels, (2, taps))
            expected = taps * powers / powers.sum(channels + 1, keepdim=True)
            torch.testing.assert_close(factors, expected.flatten(channels, channels + 1))


def test_a_layer_takes_what_is_given_and_predicts_the_rest() -> None:
    layer = away_from_ones(ddu_ops.DeformConv2d(4, 6, 3, padding=1, predict=True))
    input, offset, mask = torch.randn(2, 4, 5, 6), torch.randn(2, 18, 5, 6), torch.rand(2, 9, 5, 6)
    own_offset, own_mask = layer.offset(input)

    def expected(offset: Tensor, mask: Tensor) -> Tensor:
        return ddu_ops.deform_conv2d(input, offset, layer.weight, layer.bias, padding=1, mask=mask)

    assert_same(layer(input), expected(own_offset, own_mask))
    assert_same(layer(input, offset), expected(offset, own_mask))
    assert_same(layer(input, mask=mask), expected(own_offset, mask))
    assert_same(layer(input, offset, mask), expected(offset, mask))


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_the_size_of_the_image_adds_no_error_of_a_half_type(half: torch.dtype, device: torch.device) -> None:
    """Offsets that grow with the image: at every width the results are as far from float64's."""
    torch.manual_seed(0)
    errors = []
    for width in (128, 256, 1024, 4096):
        size = (4, width)
        along = torch.tensor([1.0, width / 8]).repeat(9).view(-1, 1, 1)
        drawn = (torch.randn(2, 8, *size), torch.randn(2, 18, *size) * along, torch.randn(8, 8, 3, 3) / 8)
        tensors = [t.to(device, half).requires_grad_() for t in drawn]
        exact = [t.detach().double().requires_grad_() for t in tensors]
        weight, found = torch.randn(2, 8, *size, device=device).to(half), []
        for given in (tensors, exact):
            output = ddu_ops.deform_conv2d(*given, padding=1)
            found.append([output, *torch.autograd.grad(output, [given[0], given[2]], weight.to(output.dtype))])
        errors.append([((a - e).norm() / e.norm()).item() for a, e in zip(*found, strict=True)])
    for first, *others in zip(*errors, strict=True):
        assert first < {torch.float16: 1e-3, torch.bfloat16: 8e-3}[half]
        assert max(others) < 1.15 * first


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_offsets_of_a_half_type_are_not_rounded(half: torch.dtype) -> None:
    layer = away_from_ones(ddu_ops.DeformConv2d(4, 6, 3, padding=1, predict=True)).to(half)
    input = torch.randn(2, 4, 5, 6, dtype=half)
    offset, _ = layer.offset(input)
    assert offset.dtype == torch.float32
    assert layer(input).dtype == half


@pytest.mark.parametrize("names", ["conv_offset", "{}_offset"], ids=["second_version", "first_version"])
def test_state_dict_of_mmcv(names: str) -> None:
    """Its pack, from its definition, in a model that has another layer."""
    torch.manual_seed(3)
    weight, bias = torch.randn(6, 2, 3, 3), torch.randn(6)
    z_weight, z_bias = torch.randn(54, 4, 3, 3) / 10, torch.randn(54) / 10
    other = nn.Conv2d(6, 4, 1)
    stem = "1.conv_offset" if names == "conv_offset" else "1_offset"
    theirs = {**{f"0.{key}": value for key, value in nn.Conv2d(4, 4, 1).state_dict().items()}}
    theirs |= {"1.weight": weight, "1.bias": bias, f"{stem}.weight": z_weight, f"{stem}.bias": z_bias}
    theirs |= {f"2.{key}": value for key, value in other.state_dict().items()}
    ours = nn.Sequential(
        nn.Conv2d(4, 4, 1),
        ddu_ops.DeformConv2d(4, 6, 3, padding=1, groups=2, predict=True, offset_groups=2),
        nn.Conv2d(6, 4, 1),
    )
    ours.load_state_dict(ddu_ops.convert_mmcv(theirs))
    input = ours[0](torch.randn(2, 4, 7, 8))
    first, second, rest = F.conv2d(input, z_weight, z_bias, padding=1).chunk(3, dim=1)
    offset = torch.cat((first, second), dim=1)
    expected = ddu_ops.deform_conv2d(input, offset, weight, bias, padding=1, mask=rest.sigmoid())
    torch.testing.assert_close(ours[1](input), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(ours[2].weight, other.weight)


@pytest.mark.parametrize("groups", [1, 2])
def test_state_dict_of_mmcv_without_factors(groups: int) -> None:
    """Its first version, from its definition: all that is predicted are offsets."""
    weight, z_weight, z_bias = torch.randn(6, 4, 3, 3), torch.randn(18 * groups, 4, 3, 3) / 10, torch.randn(18 * groups)
    ours = ddu_ops.DeformConv2d(4, 6, 3, padding=1, bias=False, predict=True, mask=None, offset_groups=groups)
    theirs = {"weight": weight, "conv_offset.weight": z_weight, "conv_offset.bias": z_bias}
    ours.load_state_dict(ddu_ops.convert_mmcv(theirs))
    input = torch.randn(2, 4, 7, 8)
    offset = F.conv2d(input, z_weight, z_bias, padding=1)
    torch.testing.assert_close(
        ours(input), ddu_ops.deform_conv2d(input, offset, weight, padding=1), rtol=1e-4, atol=1e-5
    )


# ---- layers ----


def test_adaptive_dilation_is_its_formula(device: torch.device) -> None:
    layer = away_from_ones(layers.AdaptiveDilationConv2d(4, 6, 3, padding=1, dilation_groups=2)).to(device)
    nn.init.normal_(layer.mask.weight)
    input = torch.randn(2, 4, 7, 8, device=device)
    expected = ddu_ops.dynamic_dilation_conv2d(
        input, layer.conv.weight, layer.conv.rate(input), layer.conv.bias, padding=1, dilation_groups=2,
        mask=torch.sigmoid(layer.mask(input)),
    )  # fmt: skip
    assert_same(layer(input), expected)
    layer(input).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in layer.parameters())


def test_vmap_is_one_call(device: torch.device) -> None:
    """And not one for every item, as where torch has no rule."""

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            calls.append(func)
            return func(*args, **(kwargs or {}))

    calls: list[Any] = []
    input, weight = torch.randn(3, 2, 4, 5, 6, device=device), torch.randn(2, 4, 3, 3, device=device)
    dilation_map = torch.rand(3, 2, 1, 5, 6, device=device)
    with Count():
        torch.func.vmap(lambda x, d: ddu_ops.dynamic_dilation_conv2d(x, weight, d, padding=1))(input, dilation_map)
    assert calls.count(torch.ops.ddu.convolution.default) == 1
