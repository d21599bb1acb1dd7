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
from torch.utils._python_dispatch import TorchDispatchMode

import ddu_ops
from cases import (
    CONVOLUTIONS,
    TOLERANCES,
    ConvolutionCase,
    assert_bits,
    assert_near,
    assert_same,
    convolve_reference,
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
]
cases = pytest.mark.parametrize("case", CASES, ids=str)
FULL = next(case for case in CASES if case.name == "both_groups")
SMALL = ConvolutionCase("small", 2, 4, (3, 3), (2, 2), padding=(1, 0), groups=2, conv_groups=2, out_channels=2)

dtypes = pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=lambda dtype: str(dtype)[6:]
)


def convolve(case: ConvolutionCase, arguments: dict[str, Tensor], **options: Any) -> Tensor:
    return ddu_ops.dynamic_dilation_conv2d(**arguments, **case.keywords, **options)


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


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_with_a_float_map(half: torch.dtype, device: torch.device) -> None:
    arguments = make_arguments(FULL, half, device)
    arguments["dilation_map"] = arguments["dilation_map"].float() + 0.01
    assert_near(convolve(FULL, arguments), convolve_reference(FULL, in_double(arguments)))


@pytest.mark.parametrize("workspace_limit", [0, 10_000, 20_000])
def test_workspace_limit(workspace_limit: int, device: torch.device) -> None:
    """In parts of the batch: one by one, some at a time, and fewer at the end than before."""
    case = replace(FULL, batch=5)
    arguments = leaves(make_arguments(case, device=device))
    whole = convolve(case, arguments)
    parts = convolve(case, arguments, workspace_limit=workspace_limit)
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradients(parts, arguments), gradients(whole, arguments), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("limit_in_images", [1, 3])
def test_the_limit_holds_in_training(limit_in_images: int) -> None:
    """As torch's own profiler counts memory on the CPU: nothing above the limit besides the results."""
    case = ConvolutionCase("large", 8, 16, (32, 32), padding=(1, 1), out_channels=16, mask=False)
    arguments = leaves(make_arguments(case, torch.float32))
    columns = math.prod(case.columns_shape[1:]) * 4  # of an image
    limit = 2 * limit_in_images * columns + 100_000  # two in the backward, and the weight's gradients

    def largest_allocation(**options: Any) -> int:
        with torch.profiler.profile(profile_memory=True) as profile:
            convolve(case, arguments, **options).sum().backward()
        return max(event.self_cpu_memory_usage for event in profile.events())

    assert largest_allocation() >= case.batch * columns
    assert largest_allocation(workspace_limit=limit) <= limit


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


def test_derivatives_of_every_kind() -> None:
    arguments = make_arguments(SMALL, kinks=False)
    tensors = [tensor.requires_grad_() for tensor in arguments.values()]
    function = as_function(SMALL, arguments, workspace_limit=0)
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


@dtypes
@pytest.mark.parametrize("requires_grad", [False, True])
def test_a_map_of_ones_is_conv2d(dtype: torch.dtype, requires_grad: bool, device: torch.device) -> None:
    """Bit for bit on the CPU, whichever algorithm torch chooses; on a GPU up to the order of the additions."""
    for batch, channels, size, out_channels, kernel, stride, padding, dilation, groups, bias in (
        (1, 3, 8, 4, 3, 1, 1, 1, 1, False),
        (2, 16, 32, 32, 3, 1, 1, 1, 1, True),
        (20, 8, 12, 8, 3, 2, 1, 1, 1, True),
        (2, 32, 20, 32, 3, 1, 2, 2, 4, True),
        (3, 8, 16, 8, 5, 1, 2, 1, 8, True),
        (2, 64, 9, 32, 1, 1, 0, 1, 1, True),
    ):
        input = torch.randn(batch, channels, size, size, device=device).to(dtype)
        conv = nn.Conv2d(channels, out_channels, kernel, stride, padding, dilation, groups, bias).to(device, dtype)
        conv.requires_grad_(requires_grad)
        expected = conv(input)
        ones = torch.ones(batch, 1, *expected.shape[2:], device=device, dtype=dtype)
        output = ddu_ops.dynamic_dilation_conv2d(
            input, conv.weight, ones, conv.bias, stride, padding, dilation, groups, workspace_limit=0
        )
        if device.type == "cpu":
            assert_bits(output, expected.contiguous())
        else:
            assert (output - expected).norm() <= 2 * TOLERANCES[dtype] * expected.norm()


def test_a_map_of_ones_without_output_channels(device: torch.device) -> None:
    """Torch's own convolution, which such a map calls, refuses it in groups."""
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


def test_channels_last_as_conv2d() -> None:
    input = torch.randn(2, 8, 6, 7).to(memory_format=torch.channels_last)
    weight = torch.randn(4, 8, 3, 3)
    output = ddu_ops.dynamic_dilation_conv2d(input, weight, torch.ones(2, 1, 6, 7), padding=1)
    assert output.is_contiguous()
    assert_bits(output, F.conv2d(input, weight, padding=1).contiguous())


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
    if device.type == "cpu":
        assert_bits(output, expected)
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


@pytest.mark.parametrize("name", ["plain", "both_groups"])
def test_opcheck(name: str, device: torch.device) -> None:
    case = next(case for case in CASES if case.name == name)
    arguments = leaves(make_arguments(case, torch.float32, device, kinks=False))
    tensors = [arguments.get(key) for key in ("input", "weight", "dilation_map", "bias", "mask")]
    window = [list(case.stride), list(case.padding), list(case.dilation)]
    options = (*window, case.conv_groups, case.groups, case.aligned, case.padding_mode, 2**28)
    torch.library.opcheck(torch.ops.ddu.conv2d.default, (*tensors, *options))
    grad = torch.randn(case.batch, case.out_channels, *case.output_size, device=device)
    needs = [True, False, True, case.mask]
    plain = [None if tensor is None else tensor.detach() for tensor in (*tensors[:3], tensors[4])]
    torch.library.opcheck(torch.ops.ddu.conv2d_backward.default, (grad, *plain, *options, needs))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = ddu_ops.DynamicDilationConv2d(3, 8, 3, stride=2, padding=1, workspace_limit=1)
        self.second = layers.AdaptiveDilationConv2d(8, 4, 3, padding="same", groups=2, dilation_groups=4)

    def forward(self, input: Tensor) -> Tensor:
        return self.second(self.first(input).relu())


def away_from_ones(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, ddu_ops.DilationPredictor):
            nn.init.normal_(module.weight, std=0.2)
    return model


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


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_autocast(half: torch.dtype, device: torch.device) -> None:
    """As a convolution's, but for the map."""
    arguments = leaves(make_arguments(FULL, torch.float32, device))
    with torch.autocast(device.type, half):
        output = convolve(FULL, arguments)
    cast = leaves({name: t if name == "dilation_map" else t.detach().to(half) for name, t in arguments.items()})
    expected = convolve(FULL, cast)
    assert_same(output, expected)
    actual = gradients(output, arguments)
    for name, gradient in gradients(expected, cast).items():
        assert actual[name].dtype == torch.float32
        assert_near(actual[name].to(half), gradient.double())
    with torch.autocast(device.type, half):
        assert Model().to(device)(torch.randn(2, 3, 8, 8, device=device)).dtype == half


@pytest.mark.parametrize("mapped", [("input",), ("weight", "bias"), ("dilation_map", "mask"), "all"])
def test_vmap(mapped: Any, device: torch.device) -> None:
    arguments = make_arguments(FULL, device=device)
    mapped = tuple(arguments) if mapped == "all" else mapped
    stacked = {
        name: torch.stack([tensor, tensor.flip(0), tensor * 0.7], dim=-1) if name in mapped else tensor
        for name, tensor in arguments.items()
    }
    in_dims = tuple(-1 if name in mapped else None for name in arguments)
    function = as_function(FULL, arguments)
    actual = torch.func.vmap(function, in_dims)(*stacked.values())
    for index in range(3):
        tensors = [tensor[..., index] if name in mapped else tensor for name, tensor in stacked.items()]
        torch.testing.assert_close(actual[index], function(*tensors), rtol=1e-10, atol=1e-10)


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


def test_unbatched_and_broadcast(device: torch.device) -> None:
    arguments = make_arguments(FULL, device=device)
    whole = convolve(FULL, arguments)
    batched = ("input", "dilation_map", "mask")
    first = {name: tensor[0] if name in batched else tensor for name, tensor in arguments.items()}
    torch.testing.assert_close(convolve(FULL, first), whole[0], rtol=1e-12, atol=1e-12)
    shared = {name: tensor[:1] if name in batched[1:] else tensor for name, tensor in arguments.items()}
    expanded = {
        name: tensor.expand(2, -1, -1, -1) if name in batched[1:] else tensor for name, tensor in shared.items()
    }
    assert_same(convolve(FULL, shared), convolve(FULL, expanded))


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
        message(mask=torch.randn(2, 9, 5, 6)),
        message(mask=torch.randn(2, 27, 5, 6).half()),
        message(padding=-1),
        message(padding="reflect"),
        message(padding="same", stride=2),
        message(workspace_limit=-1),
    ]
    assert_expected_inline(
        "\n".join(lines),
        """\
dynamic_dilation_conv2d(): expected input of shape (B, C, H, W) or (C, H, W), but got (12, 5)
dynamic_dilation_conv2d(): expected weight of shape (C_out, C / groups, kH, kW), but got (6, 54)
dynamic_dilation_conv2d(): expected weight of shape (6, 6, 3, 3), but got (6, 12, 3, 3)
dynamic_dilation_conv2d(): expected weight of type float32, for input is float32, but got float64
dynamic_dilation_conv2d(): expected groups to divide the 12 channels of input and the 6 of the output, but got 5
dynamic_dilation_conv2d(): expected groups to be at least 1, but got 0
dynamic_dilation_conv2d(): expected dilation_groups to divide the 12 channels of input, but got 5
dynamic_dilation_conv2d(): expected dilation_groups to be at least 1, but got 0
dynamic_dilation_conv2d(): expected dilation_map of shape (2, 3, 5, 6) or (2, 6, 5, 6), but got (2, 2, 5, 6)
dynamic_dilation_conv2d(): expected bias of shape (6,), but got (5,)
dynamic_dilation_conv2d(): expected mask of shape (2, 27, 5, 6), but got (2, 9, 5, 6)
dynamic_dilation_conv2d(): expected mask of type float32, for input is float32, but got float16
dynamic_dilation_conv2d(): expected padding to be at least 0, but got (-1, -1)
dynamic_dilation_conv2d(): expected padding to be one or two ints, 'valid' or 'same', but got 'reflect'
dynamic_dilation_conv2d(): expected stride to be 1 with padding='same', but got (2, 2)
dynamic_dilation_conv2d(): expected workspace_limit to be at least 0, but got -1""",
    )


def test_messages_of_the_backward() -> None:
    arguments = make_arguments(FULL, torch.float32)
    tensors = [arguments[name] for name in ("input", "weight", "dilation_map")]
    options = ([1, 1], [1, 1], [1, 1], 2, 3, True, "zeros", 0)
    grad = torch.randn(2, 6, 5, 6)
    lines = []
    for bad, mask, needs in ((grad[:1], None, [True] * 3 + [False]), (grad, None, [True] * 4)):
        with pytest.raises(RuntimeError) as caught:
            torch.ops.ddu.conv2d_backward(bad, *tensors, mask, *options, needs)
        lines.append(str(caught.value))
    assert_expected_inline(
        "\n".join(lines),
        """\
conv2d_backward(): expected grad_output of shape (2, 6, 5, 6), but got (1, 6, 5, 6)
conv2d_backward(): expected mask to be a tensor, for output_mask asks for its gradient, but got None""",
    )


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_nested_tensors_are_refused_by_name(name: str) -> None:
    """In every argument; they met words of the dispatcher's."""
    nested = torch.nested.nested_tensor([torch.ones(2, 3, 4), torch.ones(1, 3, 4)])
    given = {**make_arguments(FULL, torch.float32), "grad_output": torch.randn(2, 6, 5, 6)}
    given |= {**FULL.keywords, "workspace_limit": 0, "output_mask": [True] * 4}
    operator = getattr(torch.ops.ddu, name)
    names = [argument.name for argument in operator.default._schema.arguments]
    tensors = [key for key in names if isinstance(given[key], Tensor)]
    assert len(tensors) == 5
    for key in tensors:
        with pytest.raises(RuntimeError) as caught:
            operator(**{**{name: given[name] for name in names}, key: nested})
        assert str(caught.value) == f"{name}(): expected {key} to be a dense tensor, but got a nested one"


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


CONVOLUTIONS = [
    nn.Conv2d(4, 6, 3),
    nn.Conv2d(4, 6, (3, 5), stride=(2, 1), padding=(1, 2), dilation=(2, 1), groups=2, bias=False),
    nn.Conv2d(4, 4, 3, padding="same", groups=4),
    nn.Conv2d(4, 6, 1, stride=2).double(),
    nn.Conv2d(4, 6, 3, padding=1).bfloat16(),
]


@pytest.mark.parametrize("conv", CONVOLUTIONS, ids=str)
@pytest.mark.parametrize("bounds", [(0.0, 4.0), None])
def test_from_conv_starts_as_the_convolution(conv: nn.Conv2d, bounds: Any) -> None:
    layer = ddu_ops.DynamicDilationConv2d.from_conv(conv, bounds=bounds, dilation_groups=2)
    assert layer.weight is not conv.weight
    for shape in ((2, 4, 9, 11), (4, 9, 11)):
        input = torch.randn(shape, dtype=conv.weight.dtype)
        assert_bits(layer(input), conv(input))
    layer(torch.randn(2, 4, 9, 11, dtype=conv.weight.dtype)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())


def test_from_conv_keeps_the_state() -> None:
    conv = nn.Conv2d(4, 6, 3).eval().requires_grad_(False)
    layer = ddu_ops.DynamicDilationConv2d.from_conv(conv)
    assert not layer.training
    assert [n for n, p in layer.named_parameters() if p.requires_grad] == ["rate.weight", "rate.bias"]


def test_from_conv_refuses() -> None:
    with pytest.raises(TypeError) as transposed:
        ddu_ops.DynamicDilationConv2d.from_conv(nn.ConvTranspose2d(4, 6, 3))
    with pytest.raises(ValueError) as reflected:  # noqa: PT011
        ddu_ops.DynamicDilationConv2d.from_conv(nn.Conv2d(4, 6, 3, padding_mode="reflect"))
    assert_expected_inline(
        f"{transposed.value}\n{reflected.value}",
        """\
from_conv(): expected conv to be a torch.nn.Conv2d, but got ConvTranspose2d
from_conv(): expected conv to have padding_mode='zeros', but got padding_mode='reflect'""",
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
    assert_bits(model(input), expected)
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


def test_state_dict_of_a_convolution() -> None:
    conv = nn.Conv2d(4, 6, 3, padding=1)
    given = ddu_ops.DynamicDilationConv2d(4, 6, 3, padding=1, predict=False)
    given.load_state_dict(conv.state_dict())
    predicting = ddu_ops.DynamicDilationConv2d(4, 6, 3, padding=1)
    keys = predicting.load_state_dict(conv.state_dict(), strict=False)
    assert keys.missing_keys == ["rate.weight", "rate.bias"]
    assert not keys.unexpected_keys
    input = torch.randn(2, 4, 5, 5)
    assert_bits(predicting(input), conv(input))
    assert_bits(given(input, torch.ones(2, 1, 5, 5)), conv(input))


def test_copies() -> None:
    layer = away_from_ones(ddu_ops.DynamicDilationConv2d(4, 6, (3, 2), 2, 1, per_axis=True, bounds=None))
    input = torch.randn(2, 4, 8, 9)
    expected = layer(input)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    saved = torch.load(file, weights_only=False)
    fresh = ddu_ops.DynamicDilationConv2d(4, 6, (3, 2), 2, 1, per_axis=True, bounds=None)
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


def test_aspp_shares_its_rate(device: torch.device) -> None:
    """It starts as the pyramid of plain convolutions; then one map moves all its branches."""
    head = layers.DynamicASPP(4, 6, rates=(1, 2, 3)).to(device).eval()
    input = torch.randn(2, 4, 9, 9, device=device)
    branches = [
        head.point(input),
        *(F.conv2d(input, b.weight, padding=r, dilation=r) for b, r in zip(head.pyramid, (1, 2, 3))),
        head.image(input.mean((2, 3), keepdim=True)).expand(-1, -1, 9, 9),
    ]
    expected = head.project(torch.cat([norm(x).relu() for norm, x in zip(head.norms, branches)], 1))
    torch.testing.assert_close(head(input), expected, rtol=1e-4, atol=1e-5)
    assert sum(isinstance(module, ddu_ops.DilationPredictor) for module in head.modules()) == 1
    head.train()(input).square().sum().backward()
    assert all(parameter.grad is not None for parameter in head.parameters())


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
    assert calls.count(torch.ops.ddu.conv2d.default) == 1
