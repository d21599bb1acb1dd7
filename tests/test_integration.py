"""What else of PyTorch a model goes through: checkpoints, profilers, tracers, loaders, subclasses, streams."""

import copy
import io
import math
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

from cases import (
    OPERATORS,
    Case,
    ConvolutionCase,
    Model,
    as_list,
    assert_same,
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
from ddu_ops import dynamic_dilation_conv2d, dynamic_dilation_fold, dynamic_dilation_unfold

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


@pytest.mark.parametrize("rates", [1, 2])
def test_flops(rates: int, device: torch.device) -> None:
    """By hand: an entry of the columns takes 4 multiply-adds, its share of the gradient of a rate 4 + 1 more."""
    case = Case("flops", 2, 4, (5, 6), (3, 2), padding=(1, 0), groups=2, rates=rates)
    entries = 2 * (4 * 3 * 2) * (5 * 5)
    assert math.prod(case.columns_shape) == entries
    first, beyond = ([1], [3]) if rates == 1 else ([0, 1], [0, 2])
    expected = {
        ("unfold", ()): 8 * entries,
        ("fold", ()): 8 * entries,
        ("unfold_backward", ()): (8 + rates * 10) * entries,
        ("sample_backward", ()): (8 + rates * 10) * entries,
        ("dynamic_dilation_unfold", ()): 8 * entries,
        ("dynamic_dilation_fold", ()): 8 * entries,
        ("sample", tuple(first)): 8 * entries,
        ("splat", tuple(first)): 8 * entries,
        ("dot", tuple(first)): 10 * entries,
        ("sample", tuple(beyond)): 0,
        ("dot", tuple(beyond)): 0,
    }
    assert {name for name, _ in expected} == set(OPERATORS)
    tensors = make_tensors(case, device=device)
    for (name, order), flops in expected.items():
        with FlopCounterMode(display=False) as counter:
            operator(name, case, order)(*pick(name, tensors))
        assert counter.get_total_flops() == flops, name


@pytest.mark.parametrize("rates", [1, 2])
@pytest.mark.parametrize("mask", [False, True])
def test_flops_of_the_convolution(mask: bool, rates: int, device: torch.device) -> None:
    """By hand: sampling as above, a multiplication by the mask, and a multiply-add for every use of a weight."""
    case = ConvolutionCase(
        "flops", 2, 8, (5, 6), (3, 2), padding=(1, 0), groups=4, rates=rates, out_channels=6, conv_groups=2, mask=mask
    )
    positions = 2 * (5 * 5)
    entries = 8 * (3 * 2) * positions
    product = 2 * 6 * (8 // 2 * 3 * 2) * positions
    arguments = make_arguments(case, device=device)
    with FlopCounterMode(display=False) as counter:
        output = dynamic_dilation_conv2d(**arguments, **case.keywords)
    assert counter.get_total_flops() == (8 + mask) * entries + product

    of_map = 8 + rates * 10
    for wanted, flops in {
        ("input",): product + (mask + 8) * entries,
        ("weight",): (8 + mask) * entries + product,
        ("dilation_map",): product + (mask + of_map) * entries,
        ("bias",): 0,
        ("mask",): product + (8 + 2) * entries,
        ("input", "dilation_map"): product + (mask + of_map) * entries,
        tuple(arguments): 2 * product + (mask + of_map + 8 + mask + 2 * mask) * entries,
    }.items():
        if not set(wanted) <= set(arguments):
            continue
        leaves = {name: tensor.clone().requires_grad_(name in wanted) for name, tensor in arguments.items()}
        output = dynamic_dilation_conv2d(**leaves, **case.keywords)
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
