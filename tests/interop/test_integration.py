"""Other PyTorch features: checkpoints, profilers, tracers, loaders, subclasses, streams."""

import copy
import io
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode

import ddu_ops
import ddu_ops.flops
from cases import (
    OPERATORS,
    Case,
    ConvolutionCase,
    Model,
    as_list,
    assert_same,
    convolve,
    first_order,
    fold,
    make_arguments,
    make_tensors,
    operator,
    operators,
    pick,
    unfold,
    unfold_backward,
)
from ddu_ops import dynamic_dilation_conv2d, dynamic_dilation_fold, dynamic_dilation_unfold, layers, reference

CASE = Case("integration", 2, 4, padding=(1, 1), groups=2, rates=2)


@pytest.fixture
def model(device: torch.device) -> Model:
    return Model().to(device)


@pytest.fixture
def images(device: torch.device) -> Tensor:
    return torch.randn(2, 3, 5, 6).to(device)


def gradients(model: nn.Module) -> list[Tensor]:
    return [parameter.grad for parameter in model.parameters()]


def close(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


# ---- Training ----


@pytest.mark.parametrize("use_reentrant", [False, True], ids=["saved_tensors", "reentrant"])
def test_checkpoint_of_a_model(use_reentrant: bool, model: Model, images: Tensor) -> None:
    again = copy.deepcopy(model)
    model(images).square().sum().backward()
    calls: list[str] = []
    again.unfold.register_forward_hook(lambda *_: calls.append("unfold"))
    checkpoint(again, images.requires_grad_(), use_reentrant=use_reentrant).square().sum().backward()
    assert len(calls) == 2  # the second time in the backward
    close(gradients(again), gradients(model))


def test_training_with_a_grad_scaler(model: Model, images: Tensor) -> None:
    """In float16: like in float32, and a step whose gradients overflow is left out."""
    device = images.device.type
    wide = copy.deepcopy(model)
    scaler = torch.amp.GradScaler(device, init_scale=2.0**10)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.05) for m in (model, wide)]
    losses = []
    for _ in range(8):
        with torch.autocast(device, torch.float16):
            loss = (model(images).float() - 1).square().mean()
        optimizers[0].zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizers[0])
        scaler.update()
        losses.append(loss.item())
        optimizers[1].zero_grad()
        (wide(images) - 1).square().mean().backward()
        optimizers[1].step()
    assert losses[-1] < 0.9 * losses[0]
    for narrow, parameter in zip(model.parameters(), wide.parameters(), strict=True):
        torch.testing.assert_close(narrow, parameter, rtol=0.02, atol=0.005)

    before = copy.deepcopy(model.state_dict())
    with torch.autocast(device, torch.float16):
        loss = model(images).float().square().mean() * 1e6
    scaler.scale(loss).backward()
    assert not all(grad.isfinite().all() for grad in gradients(model))
    scaler.step(optimizers[0])
    scaler.update()
    assert scaler.get_scale() == 2.0**9
    close(model.state_dict(), before)


def test_a_parametrized_model(model: Model, images: Tensor) -> None:
    expected = model(images)
    nn.utils.parametrizations.weight_norm(model.rates)
    close(model(images), expected)
    model(images).sum().backward()
    assert model.rates.parametrizations.weight.original1.grad.abs().sum() > 0


# ---- What is counted and recorded ----


FLOPS = [  # a case, its first derivative and one that vanishes; by hand, the operations of an entry of the columns: the
    # multiply-adds with the pixels around it, and how many derivatives its place has
    (Case("one_rate", 2, 4, (5, 6), (3, 2), padding=(1, 0), groups=2), [1], [3], 4, 1),
    (Case("two_rates", 2, 4, (5, 6), (3, 2), padding=(1, 0), groups=2, rates=2), [0, 1], [0, 2], 4, 2),
    (Case("offsets", 2, 4, (5, 6), (3, 2), groups=2, source="offsets"), [0, 1], [0, 2], 4, 2),
    (Case("affine", 2, 4, (5, 6), (3, 2), groups=2, source="affine"), [1, 0, 0, 0, 0, 1], [1, 0, 1, 0, 0, 0], 4, 2),
    (Case("line", 2, 4, (9,), groups=2), [1], [2], 2, 1),
    (Case("line_affine", 2, 4, (9,), groups=2, source="affine"), [1, 0], [1, 1], 2, 1),
    (Case("line_offsets", 2, 4, (9,), groups=2, source="offsets"), [1], [2], 2, 1),
    (Case("volume", 2, 4, (5, 4, 6), (3, 2, 1), groups=2), [3], [4], 8, 1),
    (Case("volume_three_rates", 1, 4, (5, 4, 6), (3, 2, 1), groups=2, rates=3), [1, 0, 1], [0, 2, 0], 8, 3),
    (Case("volume_offsets", 1, 2, (3, 4, 3), (2,), source="offsets"), [1, 1, 0], [0, 0, 2], 8, 3),
]


@pytest.mark.parametrize("case, order, beyond, pixels, derivatives", FLOPS, ids=lambda value: str(value))
def test_flops(
    case: Case, order: list[int], beyond: list[int], pixels: int, derivatives: int, device: torch.device
) -> None:
    """An entry of the columns takes a multiply-add for each pixel, its share of a gradient as many and one more."""
    touch, dot = 2 * pixels, 2 * pixels + 2
    backward = touch + derivatives * dot
    expected = {
        ("unfold", ()): touch,
        ("fold", ()): touch,
        ("unfold_backward", ()): backward,
        ("sample_backward", ()): backward,
        ("sample_backward", tuple(beyond)): 0,
        ("dynamic_dilation_unfold", ()): touch,
        ("dynamic_dilation_fold", ()): touch,
        ("sample", tuple(order)): touch,
        ("splat", tuple(order)): touch,
        ("dot", tuple(order)): dot,
        ("sample", tuple(beyond)): 0,
        ("splat", tuple(beyond)): 0,
        ("dot", tuple(beyond)): 0,
    }
    assert {name for name, _ in expected} == set(OPERATORS)
    tensors = make_tensors(case, device=device)
    for (name, times), each in expected.items():
        with FlopCounterMode(display=False) as counter:
            operator(name, case, times)(*pick(name, tensors))
        assert counter.get_total_flops() == each * math.prod(case.columns_shape), name


@pytest.mark.parametrize("kind", ["one_rate", "rates", "offsets", "affine", "line", "volume_offsets"])
@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("per_image", [False, True])
def test_flops_of_the_convolution(per_image: bool, mask: bool, kind: str, device: torch.device) -> None:
    """By hand: sampling as above, a multiplication by the mask, and a multiply-add for every use of a weight."""
    axes = {"line": 1, "volume_offsets": 3}.get(kind, 2)
    rates = axes if kind == "rates" else 1
    case = ConvolutionCase(
        "flops", 2, 8, (5, 6, 4)[:axes], (3, 2, 1)[:axes], padding=(1, 0, 0)[:axes], groups=4, rates=rates,
        source=next((s for s in ("offsets", "affine") if s in kind), "rates"), out_channels=6, conv_groups=2, mask=mask,
        per_image=per_image,
    )  # fmt: skip
    positions = 2 * math.prod((5, 5, 4)[:axes])
    taps = math.prod((3, 2, 1)[:axes])
    entries = 8 * taps * positions
    product = 2 * 6 * (8 // 2 * taps) * positions
    arguments = make_arguments(case, device=device)
    with FlopCounterMode(display=False) as counter:
        output = convolve(case, arguments)
    touch = 2 * 2**axes
    assert counter.get_total_flops() == (touch + mask) * entries + product

    of_map = touch + (rates if case.source == "rates" else axes) * (touch + 2)
    for wanted, flops in {
        ("input",): product + (mask + touch) * entries,
        ("weight",): (touch + mask) * entries + product,
        (case.positions_name,): product + (mask + of_map) * entries,
        ("bias",): 0,
        ("mask",): product + (touch + 2) * entries,
        ("input", case.positions_name): product + (mask + of_map) * entries,
        tuple(arguments): 2 * product + (mask + of_map + touch + mask + 2 * mask) * entries,
    }.items():
        if not set(wanted) <= set(arguments):
            continue
        leaves = {name: tensor.clone().requires_grad_(name in wanted) for name, tensor in arguments.items()}
        output = convolve(case, leaves)
        with FlopCounterMode(display=False) as counter:
            output.sum().backward()
        assert counter.get_total_flops() == flops, wanted


def test_flops_of_a_map_of_ones_are_those_of_conv2d_and_the_sampling(device: torch.device) -> None:
    input, weight = torch.randn(2, 4, 6, 7, device=device), torch.randn(6, 2, 3, 3, device=device)
    ones = torch.ones(2, 1, 6, 7, device=device)

    def count(call: Callable[[], Any]) -> int:
        with FlopCounterMode(display=False) as counter:
            call()
        return counter.get_total_flops()

    theirs = count(lambda: nn.functional.conv2d(input, weight, padding=1, groups=2))
    sampling = count(lambda: torch.ops.ddu.unfold(input, [3, 3], ones, padding=[1, 1]))
    assert count(lambda: dynamic_dilation_conv2d(input, weight, ones, padding=1, groups=2)) == theirs + sampling


def test_flops_of_a_model(model: Model, images: Tensor) -> None:
    """Forward and backward, by module; two rates, each with a sum of its own."""
    entries = 2 * (3 * 9) * (5 * 6)
    narrow = 2 * (2 * 9) * (5 * 6)
    with FlopCounterMode(display=False) as counter:
        model(images).sum().backward()
    counts = counter.get_flop_counts()
    ddu = torch.ops.ddu
    assert counts["Model.unfold"][ddu.unfold] == 8 * entries
    assert counts["Model.fold"][ddu.fold] == 8 * narrow
    assert counts["Global"][ddu.dot] == 2 * 10 * (entries + narrow)
    assert counts["Global"][ddu.sample] == 8 * narrow  # the gradient of what was folded


def test_the_profiler_names_what_runs(device: torch.device) -> None:
    tensors = make_tensors(CASE, torch.float32, device=device).requires_grad()
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as events:
        columns = operator("dynamic_dilation_unfold", CASE)(tensors.input, tensors.dilation_map)
        columns.backward(tensors.columns.detach())
    shapes = {event.name: event.input_shapes for event in events.events()}
    input, dilation_map, grad_output = (list(t.shape) for t in tensors)
    for name in ("ddu::dynamic_dilation_unfold", "ddu::unfold"):
        assert shapes[name][0] == input and shapes[name][2] == dilation_map
    assert shapes["DynamicDilationUnfoldBackward"] == [grad_output]
    assert shapes["ddu::unfold_backward"][:2] == [grad_output, input]


def test_the_profiler_names_kernels(device: torch.device) -> None:
    if device.type != "cuda":
        pytest.skip("a kernel is a function there")
    tensors = make_tensors(CASE, torch.float32, device=device)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as events:
        unfold_backward(CASE, tensors.columns, tensors.input, tensors.dilation_map)
        torch.cuda.synchronize()
    kernels = [
        e.name for e in events.events() if e.device_type == torch.autograd.DeviceType.CUDA and "kernel" in e.name
    ]
    assert any("ddu::" in name for name in kernels), kernels


# ---- Tracers ----


def traced(input: Tensor, dilation_map: Tensor) -> Tensor:
    columns = torch.ops.ddu.dynamic_dilation_unfold(input, [3, 3], dilation_map, padding=[1, 1], groups=2)
    return torch.ops.ddu.dynamic_dilation_fold(columns, [6, 7], [3, 3], dilation_map, [1, 1], [1, 1], [1, 1], 2)


def saved_and_loaded(function: Any) -> Any:
    file = io.BytesIO()
    torch.jit.save(function, file)
    file.seek(0)
    return torch.jit.load(file)


@pytest.mark.parametrize("how", ["trace", "script"])
def test_jit(how: str, device: torch.device) -> None:
    """Traced, any of our functions and modules; scripted, the operators. Saved, loaded and differentiated."""
    input, dilation_map, _ = make_tensors(CASE, torch.float32, device=device).requires_grad()
    make = torch.jit.script if how == "script" else lambda f: torch.jit.trace(f, (input, dilation_map))
    function = saved_and_loaded(make(traced))
    expected = torch.autograd.grad(traced(input, dilation_map).square().sum(), (input, dilation_map))
    for _ in range(3):  # it is optimised as it runs
        actual = torch.autograd.grad(function(input, dilation_map).square().sum(), (input, dilation_map))
        close(actual, expected)


def test_jit_trace_of_a_model(model: Model, images: Tensor) -> None:
    function = saved_and_loaded(torch.jit.trace(model, images))
    close(function(images), model(images))
    assert function(images[:1]).shape[0] == 1


class ToTheSizeOf(nn.Module):
    def forward(self, input: Tensor, dilation_map: Tensor) -> Tensor:
        columns = dynamic_dilation_unfold(input, 3, dilation_map, padding=1, groups=2)
        return dynamic_dilation_fold(columns, input.shape[-2:], (3, 3), dilation_map, padding=(1, 1), groups=2)


def test_fx_symbolic_trace(model: Model, images: Tensor) -> None:
    """The functions and modules become one node each, a call of the operator."""
    graph = torch.fx.symbolic_trace(model)
    targets = [node.target for node in graph.graph.nodes if node.op == "call_function"]
    assert targets.count(torch.ops.ddu.dynamic_dilation_unfold) == 1
    assert targets.count(torch.ops.ddu.dynamic_dilation_fold) == 1
    assert_same(graph(images), model(images))
    tensors = make_tensors(CASE, device=images.device)[:2]
    assert_same(torch.fx.symbolic_trace(ToTheSizeOf())(*tensors), ToTheSizeOf()(*tensors))


Calls = dict[str, tuple[Any, tuple[Tensor, ...]]]


def by_sizes_and_words() -> Calls:
    """What tests/robustness/test_contracts.py does not trace: options of other kinds than numbers, and some of them in places."""
    image, rates, weight = torch.randn(2, 4, 7, 8), torch.rand(2, 1, 7, 8) * 3, torch.randn(6, 4, 3, 3)
    columns = torch.randn(2, 36, 56)
    conv, fold = ddu_ops.dynamic_dilation_conv2d, dynamic_dilation_fold
    square = columns[:, :, :49], rates[..., :7]
    functions: Calls = {
        "unfold_by_shape": (lambda x, d: dynamic_dilation_unfold(x, 3, d, padding=x.shape[0] - 1), (image, rates)),
        "fold_to_a_shape": (lambda q, d, x: fold(q, x.shape[-2:], 3, d, padding=1), (columns, rates, image)),
        "fold_to_a_size": (lambda q, d, x: fold(q, x.shape[-2], 3, d, padding=1), (*square, image)),
        "fold_to_sizes": (lambda q, d, x: fold(q, (7, x.shape[-1]), 3, d, padding=1), (columns, rates, image)),
        "conv2d_same": (lambda x, w, d: conv(x, w, d, padding="same"), (image, weight, rates)),
        "conv2d_valid": (lambda x, w, d: conv(x, w, d[..., 1:-1, 1:-1], padding="valid"), (image, weight, rates)),
        "conv1d": (
            lambda x, w, d: ddu_ops.dynamic_dilation_conv1d(x, w, d, padding="same"),
            (image[0], weight[:, :, 0].repeat(1, 2, 1)[:, :7], torch.rand(4, 1, 8)),
        ),
        "conv3d_per_image": (
            lambda x, w, d: ddu_ops.dynamic_dilation_conv3d(x, w, d, padding=1),
            (torch.randn(2, 2, 4, 5, 6), torch.randn(2, 3, 2, 3, 3, 3), torch.rand(2, 1, 4, 5, 6)),
        ),
        "deform_conv2d": (
            lambda x, o, w, m: ddu_ops.deform_conv2d(x, o, w, padding="same", mask=m),
            (image, torch.randn(2, 18, 7, 8), weight, torch.rand(2, 9, 7, 8)),
        ),
        "grid_size": (lambda x: x.new_ones(ddu_ops.grid_size(x.shape[-2:], 3, stride=2)), (image,)),
        "unfold_same": (lambda x, d: dynamic_dilation_unfold(x, 3, d, padding="same"), (image, rates)),
        "unfold_a_number": (lambda x: dynamic_dilation_unfold(x, 3, 1.5, padding=1), (image,)),
        "fold_a_number": (lambda q: fold(q, (7, 8), 3, 1.5, padding=1), (columns,)),
        "conv2d_a_number": (lambda x, w: conv(x, w, 1.5, padding=1), (image, weight)),
        "unfold_a_tensor_without_dimensions": (
            lambda x: dynamic_dilation_unfold(x, 3, torch.tensor(1.5), padding=1),
            (image,),
        ),
        "unfold1d": (
            lambda x, d: ddu_ops.dynamic_dilation_unfold1d(x, 3, d, padding=1),
            (image[0], torch.rand(4, 1, 8)),
        ),
        "unfold3d": (
            lambda x, d: ddu_ops.dynamic_dilation_unfold3d(x, 3, d, padding="same"),
            (torch.randn(1, 2, 4, 5, 6), torch.rand(1, 1, 4, 5, 6)),
        ),
        "fold1d": (
            lambda q, d, x: ddu_ops.dynamic_dilation_fold1d(q, x.shape[-1], 3, d, padding=1),
            (torch.randn(2, 6, 8), torch.rand(2, 1, 8), image),
        ),
        "deform_unfold2d": (
            lambda x, o: ddu_ops.deform_unfold2d(x, 3, o, padding="same"),
            (image, torch.randn(2, 18, 7, 8)),
        ),
    }
    layer = ddu_ops.DynamicDilationConv2d
    modules: Calls = {
        "Conv2d_with_a_map": (layer(4, 6, 3, padding=1), (image, rates)),
        "Conv2d_same": (layer(4, 6, 3, padding="same"), (image,)),
        "Conv2d_inside": (nn.Sequential(layer(4, 6, 3, padding="same"), nn.ReLU()), (image,)),
        "Conv2d_without_predictor": (layer(4, 6, 3, padding=1, predict=False), (image, rates)),
        "DeformConv2d": (ddu_ops.DeformConv2d(4, 6, 3, padding=1, predict=True), (image,)),
        "DeformConv2d_with_offsets": (ddu_ops.DeformConv2d(4, 6, 3, padding=1), (image, torch.randn(2, 18, 7, 8))),
        "DeformConv1d": (
            ddu_ops.DeformConv1d(7, 6, 3, padding="same", predict=True, mask="softmax", bound=2.0),
            (image[0],),
        ),
        "Conv3d": (
            ddu_ops.DynamicDilationConv3d(2, 3, 3, padding=1, padding_mode="replicate"),
            (torch.randn(1, 2, 4, 5, 6),),
        ),
        "DeepLabV3Head": (layers.DeepLabV3Head(4, 6, channels=4, dynamic=True).eval(), (image,)),
        "DenseASPP": (layers.DenseASPP(4, (1, 2), hidden=4).eval(), (image,)),
        "DilatedStack": (layers.DilatedStack(4, [1, (2, 3)]).eval(), (image,)),
        "EfficientASPP": (layers.EfficientASPP(4, 6, 2).eval(), (image,)),
        "FrequencySelection": (layers.FrequencySelection(4, global_selection=True), (image,)),
        "FrequencySelection_laplacian": (layers.FrequencySelection(4, lp_type="laplacian"), (image,)),
        "FrequencyAdaptiveConv2d": (layers.FrequencyAdaptiveConv2d(4, 6, use_dct=True, sp_att=True).eval(), (image,)),
        "FrequencyAdaptiveConv2d_rates_first": (layers.FrequencyAdaptiveConv2d(4, 6, pre_fs=False).eval(), (image,)),
        "FrequencyAdaptiveConv3d": (
            layers.FrequencyAdaptiveConv3d(4, 6, use_position_att=True),
            (torch.randn(2, 4, 5, 6, 7),),
        ),
        "RandomDilationConv2d": (layers.RandomDilationConv2d(4, 6, 3, padding="same").eval(), (image,)),
        "Segmenter": (layers.Segmenter(nn.Conv2d(4, 4, 3, 2), layers.DeepLabV2Head(4, 6)), (image,)),
        "SmoothedDilatedConv2d": (layers.SmoothedDilatedConv2d(4, 6), (image,)),
        "SmoothedDilatedConv2d_by_grids": (layers.SmoothedDilatedConv2d(4, 6, interaction="group"), (image,)),
        "WaveNet": (layers.WaveNet(4, 6, rates=(1, 2)), (image[:, :, 0],)),
    }
    return {**functions, **modules}


@pytest.mark.parametrize("name", by_sizes_and_words())
def test_fx_traces_options_of_every_kind(name: str) -> None:
    function, tensors = by_sizes_and_words()[name]
    graph = torch.fx.symbolic_trace(function)
    assert_same(graph(*tensors), function(*tensors))
    half = [t.to(torch.bfloat16) for t in tensors]
    if isinstance(function, nn.Module):
        graph, function = graph.to(torch.bfloat16), function.to(torch.bfloat16)
    assert_same(graph(*half), function(*half))
    assert_same(pickle.loads(pickle.dumps(graph))(*half), function(*half))


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("autocast", [True, False])
def test_jit_trace_follows_the_size_that_is_folded_to(batched: bool, autocast: bool, device: torch.device) -> None:
    def fold(columns: Tensor, dilation_map: Tensor, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            by_shape = dynamic_dilation_fold(columns, image.shape[-2:], 3, dilation_map, padding=1, groups=2)
            return by_shape + dynamic_dilation_fold(columns, (height, width), 3, dilation_map, padding=1, groups=2)

    def tensors(height: int, width: int) -> tuple[Tensor, ...]:
        batch = (2,) if batched else ()
        columns = torch.randn(*batch, 36, height * width, device=device, requires_grad=True)
        dilation_map = torch.rand(*batch, 2, height, width, device=device, requires_grad=True)
        return columns, dilation_map, torch.randn(height, width, device=device)

    traced = saved_and_loaded(torch.jit.trace(fold, tensors(6, 7)))
    for size in ((6, 7), (5, 9)):
        given = tensors(*size)
        actual, expected = traced(*given), fold(*given)
        assert actual.dtype == expected.dtype
        close(actual, expected)
        grads = [torch.autograd.grad(output.float().square().sum(), given[:2]) for output in (actual, expected)]
        close(*grads)


def test_jit_trace_folds_to_a_square() -> None:
    def fold(columns: Tensor, dilation_map: Tensor, image: Tensor) -> Tensor:
        return dynamic_dilation_fold(columns, image.shape[-1], 3, dilation_map, padding=1)

    traced = torch.jit.trace(fold, (torch.randn(36, 36), torch.rand(1, 6, 6), torch.randn(6, 6)))
    tensors = torch.randn(36, 49), torch.rand(1, 7, 7), torch.randn(7, 7)
    close(traced(*tensors), fold(*tensors))


@pytest.mark.parametrize("name", ["unfold", "fold", "conv2d", "aggregate2d"])
def test_fx_traces_a_map_that_is_a_number_when_the_graph_runs(name: str) -> None:
    image, weight = torch.randn(2, 4, 6, 7), torch.randn(6, 4, 3, 3)
    functions: dict[str, Callable[[Tensor, Any], Tensor]] = {
        "unfold": lambda x, d: dynamic_dilation_unfold(x, 3, d, padding=1),
        "fold": lambda x, d: dynamic_dilation_fold(x.flatten(2).repeat(1, 9, 1), (6, 7), 3, d, padding=1),
        "conv2d": lambda x, d: dynamic_dilation_conv2d(x, weight, d, padding="same"),
        "aggregate2d": lambda x, d: ddu_ops.sums.dynamic_dilation_aggregate2d(x, x[:, :1].repeat(1, 9, 1, 1), 3, d * 2, padding=1),
    }  # fmt: skip
    graph = torch.fx.symbolic_trace(functions[name])
    for rates in (2.0, 1, torch.tensor(1.5), torch.rand(2, 1, 6, 7)):
        assert_same(graph(image, rates), functions[name](image, rates))


def test_fx_traces_layers_whose_last_argument_is_left_out() -> None:
    layer: nn.Module
    for layer, input in (
        (layers.DCNv4(16), torch.randn(2, 36, 16)),
        (layers.DCNv4(16, stride=2, center_feature_scale=False), torch.randn(2, 36, 16)),
        (layers.Involution2d(16, 3).eval(), torch.randn(2, 16, 6, 6)),
    ):
        for parameter in layer.parameters():
            nn.init.normal_(parameter)
        graph = torch.fx.symbolic_trace(layer)
        assert_same(graph(input), layer(input))
        assert_same(torch.fx.symbolic_trace(nn.Sequential(layer))(input), layer(input))
        more: Any = (6, 6) if isinstance(layer, layers.DCNv4) else torch.rand(2, 1, 6, 6)
        assert_same(graph(input, more), layer(input, more))


def of_any_batch() -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    return {
        "to_offsets": lambda input, rates: ddu_ops.to_offsets(rates, 3),
        "window_attention": lambda input, rates: layers.window_attention(*[input] * 3, 3, rates, outside="exclude"),
        "aggregate": lambda input, rates: reference.aggregate(input, rates.expand(-1, 9, -1, -1), rates, "rates", 3, 1, 1),
        "correlate": lambda input, rates: reference.correlate(input, input, rates, "rates", 3, 1, 1),
        "max_pool": lambda input, rates: reference.max_pool(input, rates, "rates", 3, 1, 1)[0],
    }  # fmt: skip


class Called(nn.Module):
    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, input: Tensor, rates: Tensor) -> Tensor:
        return self.function(input, rates)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("how", ["jit.trace", "export"])
@pytest.mark.parametrize("name", of_any_batch())
def test_traces_follow_another_batch_size(name: str, how: str) -> None:
    function = of_any_batch()[name]
    given, other = ((torch.randn(b, 4, 6, 7), torch.rand(b, 1, 6, 7) + 0.5) for b in (2, 3))
    if how == "jit.trace":
        traced = torch.jit.trace(function, given, check_trace=False)
    else:
        batch = {0: torch.export.Dim("batch", min=1)}
        sizes = {"input": batch, "rates": batch}
        traced = torch.export.export(Called(function), given, dynamic_shapes=sizes).module()
    close(traced(*other), function(*other))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("size", [8, 9])
def test_jit_trace_of_a_pyramid(size: int) -> None:
    select = layers.FrequencySelection(4, lp_type="laplacian", spatial_group=1)
    nn.init.normal_(select.freq_weight_conv_list[0].weight)  # type: ignore[arg-type]
    traced = torch.jit.trace(select, torch.randn(2, 4, size, size), check_trace=False)
    input = torch.randn(3, 4, size, size)
    close(traced(input), select(input))


# ---- Without values ----


def test_a_model_made_on_meta(device: torch.device) -> None:
    with torch.device("meta"):
        model = Model()
        assert model(torch.randn(2, 3, 5, 6)).shape == (2, 2, 5, 6)
    model.to_empty(device=device)
    expected = Model().to(device)
    model.load_state_dict(expected.state_dict())
    images = torch.randn(2, 3, 5, 6).to(device)
    assert_same(model(images), expected(images))


@operators
def test_fake_tensors(name: str, device: torch.device) -> None:
    """Forward and backward of what has a device and no memory; real and fake ones are not mixed up."""
    tensors = pick(name, make_tensors(CASE, torch.float32, device=device))
    expected = as_list(operator(name, CASE, first_order(name, CASE))(*tensors))
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(t).requires_grad_() for t in tensors]
        results = as_list(operator(name, CASE, first_order(name, CASE))(*fakes))
        sum(result.sum() for result in results).backward()
    for result, real in zip(results, expected, strict=True):
        assert isinstance(result, FakeTensor)
        assert (result.shape, result.dtype, result.device.type) == (real.shape, real.dtype, device.type)
    assert all(fake.grad.shape == fake.shape for fake in fakes)


# ---- Other tensors ----


class Named(Tensor):
    """Knows of every call, and stays what it is."""

    calls: tuple[str, ...] = ()

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        cls.calls += (str(func),)
        return super().__torch_function__(func, types, args, kwargs or {})


def test_torch_function(device: torch.device) -> None:
    input, dilation_map, _ = make_tensors(CASE, device=device)
    result = dynamic_dilation_unfold(input.as_subclass(Named), 3, dilation_map, padding=1, groups=2)
    assert type(result) is Named
    assert any("dynamic_dilation_unfold" in call for call in Named.calls)
    assert_same(result.as_subclass(Tensor), unfold(CASE, input, dilation_map))


class Wrapper(Tensor):
    """Holds a tensor; what reaches it is done to that."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> "Wrapper":
        result = Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, device=inner.device)
        result.inner = inner
        return result

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map(lambda x: x.inner if isinstance(x, cls) else x, (args, kwargs or {}))
        return tree_map(lambda x: cls(x) if isinstance(x, Tensor) else x, func(*args, **kwargs))


@pytest.mark.parametrize("function, leading", [(unfold, 0), (fold, 2)], ids=["unfold", "fold"])
def test_torch_dispatch(function: Callable[..., Tensor], leading: int, device: torch.device) -> None:
    tensors = make_tensors(CASE, device=device)
    plain = [tensors[leading].requires_grad_(), tensors.dilation_map.requires_grad_()]
    expected = function(CASE, *plain)
    expected_gradients = torch.autograd.grad(expected.square().sum(), plain)
    wrapped = [Wrapper(t.detach()).requires_grad_() for t in plain]
    result = function(CASE, *wrapped)
    assert type(result) is Wrapper
    assert_same(result.inner, expected)
    actual_gradients = torch.autograd.grad(result.square().sum(), wrapped)
    assert_same([gradient.inner for gradient in actual_gradients], expected_gradients)


def test_a_dispatch_mode_sees_the_operators(device: torch.device) -> None:
    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(func)
            return func(*args, **(kwargs or {}))

    seen: list[Any] = []
    input, dilation_map, columns = make_tensors(CASE, device=device).requires_grad()
    with Record():
        operator("dynamic_dilation_unfold", CASE)(input, dilation_map).backward(columns.detach())
    assert [op for op in seen if op.namespace == "ddu"] == [
        torch.ops.ddu.unfold.default,
        torch.ops.ddu.unfold_backward.default,
    ]


# ---- Other threads of work ----


class Unfolded(Dataset[Tensor]):
    """Unfolds as it loads."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Tensor:
        input, dilation_map, _ = make_tensors(CASE, torch.float32, seed=index)
        return unfold(CASE, input, dilation_map)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # Python 3.12 on every fork
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_data_loader_workers(start: str) -> None:
    """Also after the process that forks has used its threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    case = Case("large", 4, 16, (64, 64), padding=(1, 1))
    unfold(case, *make_tensors(case)[:2])
    torch.set_num_threads(threads)
    loader = DataLoader(Unfolded(), batch_size=None, num_workers=1, multiprocessing_context=start, timeout=60)
    assert_same(list(loader), [Unfolded()[i] for i in range(4)])


def test_streams_and_events(device: torch.device) -> None:
    """What one stream makes, another may take when an event says so."""
    if device.type != "cuda":
        pytest.skip("no streams")
    case = Case("streams", 8, 16, (64, 64), padding=(1, 1))
    input, dilation_map, columns = make_tensors(case, torch.float32, device=device)
    expected = unfold_backward(case, unfold(case, input, dilation_map), input, dilation_map)
    torch.cuda.synchronize()
    first, second, made = torch.cuda.Stream(), torch.cuda.Stream(), torch.cuda.Event()
    with torch.cuda.stream(first):
        columns = unfold(case, input, dilation_map)
        made.record()
    with torch.cuda.stream(second):
        made.wait()
        columns.record_stream(second)
        results = unfold_backward(case, columns, input, dilation_map)
    torch.cuda.current_stream().wait_stream(second)
    assert_same(results, expected)
