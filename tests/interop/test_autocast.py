"""Autocast: the input like a convolution's, the map in float32."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

import ddu_ops
from cases import Case, as_list, assert_near, assert_same, fold, make_tensors, operator, unfold

CASE = Case("autocast", 2, 4, padding=(1, 1), groups=2, rates=2)
HALVES = [torch.bfloat16, torch.float16]
halves = pytest.mark.parametrize("half", HALVES, ids=str)


@halves
@pytest.mark.parametrize("given", [torch.float32, *HALVES], ids=str)
@pytest.mark.parametrize("map_given", [torch.float32, *HALVES], ids=str)
def test_the_input_is_cast_and_the_map_is_not_rounded(
    half: torch.dtype, given: torch.dtype, map_given: torch.dtype, device: torch.device
) -> None:
    input, dilation_map, columns = make_tensors(CASE, torch.float32, device=device)
    input, columns, dilation_map = input.to(given), columns.to(given), dilation_map.to(map_given)
    with torch.autocast(device.type, half):
        actual = unfold(CASE, input, dilation_map), fold(CASE, columns, dilation_map)
        convolved = torch.nn.functional.conv2d(input, input.new_ones(1, 4, 1, 1))
    expected = (
        unfold(CASE, input.to(half), dilation_map.float()),
        fold(CASE, columns.to(half), dilation_map.float()),
    )
    assert actual[0].dtype == actual[1].dtype == convolved.dtype == half
    assert_same(actual, expected)


@halves
def test_the_public_functions(half: torch.dtype, device: torch.device) -> None:
    input, dilation_map, columns = make_tensors(CASE, torch.float32, device=device)
    with torch.autocast(device.type, half):
        actual = ddu_ops.dynamic_dilation_unfold(input, 3, dilation_map, padding=1, groups=2)
        image = ddu_ops.dynamic_dilation_fold(columns, CASE.size, 3, dilation_map, padding=1, groups=2)
        unbatched = ddu_ops.dynamic_dilation_unfold(input[0], 3, dilation_map[0], padding=1, groups=2)
    assert_same(actual, unfold(CASE, input.to(half), dilation_map))
    assert_same(image, fold(CASE, columns.to(half), dilation_map))
    assert_same(unbatched, actual[0])


@halves
def test_float64_is_left_alone(half: torch.dtype, device: torch.device) -> None:
    input, dilation_map, columns = make_tensors(CASE, torch.float64, device=device)
    with torch.autocast(device.type, half):
        actual = unfold(CASE, input, dilation_map), fold(CASE, columns, dilation_map)
    assert_same(actual, (unfold(CASE, input, dilation_map), fold(CASE, columns, dilation_map)))


@halves
def test_gradients_come_back_in_the_types_that_were_given(half: torch.dtype, device: torch.device) -> None:
    input, dilation_map, columns = make_tensors(CASE, torch.float32, device=device, kinks=False)

    def gradients(autocast: bool, of_fold: bool) -> tuple[Tensor, ...]:
        leading, grad = (columns, input) if of_fold else (input, columns)
        leaves = leading.clone().requires_grad_(), dilation_map.clone().requires_grad_()
        function = fold if of_fold else unfold
        if autocast:
            with torch.autocast(device.type, half):
                output = function(CASE, *leaves)
        else:
            output = function(CASE, leaves[0].to(half), leaves[1])
        return torch.autograd.grad(output, leaves, grad.to(half))

    for of_fold in (False, True):
        actual = gradients(True, of_fold)
        assert [g.dtype for g in actual] == [torch.float32, torch.float32]
        assert_same(actual, gradients(False, of_fold))


@halves
def test_backward_inside_the_context(half: torch.dtype, device: torch.device) -> None:
    input, dilation_map, columns = make_tensors(CASE, torch.float32, device=device).requires_grad()
    with torch.autocast(device.type, half):
        output = unfold(CASE, input, dilation_map)
        inside = torch.autograd.grad(output, (input, dilation_map), columns.detach().to(half), retain_graph=True)
    outside = torch.autograd.grad(output, (input, dilation_map), columns.detach().to(half))
    assert_same(inside, outside)


# ---- A derivative takes the types of its forward: of every kind, what tests/robustness/test_contracts.py asks of a backward ----


@halves
@pytest.mark.parametrize(
    "name", ["unfold_backward", "sample", "splat", "dot", "sample_backward", "convolution_backward"]
)
def test_the_operators_of_derivatives(name: str, half: torch.dtype, device: torch.device) -> None:
    """Called by themselves, as a compiled backward calls them."""
    input, dilation_map, columns = make_tensors(CASE, torch.float32, device=device)
    grad, weight = torch.randn(2, 3, *CASE.output_size, device=device), torch.randn(3, 4, 3, 3, device=device)
    window = ("rates", (1, 1), (1, 1), (1, 1), 1, CASE.groups, True, "zeros")

    def call() -> list[Tensor]:
        if name == "convolution_backward":
            needs = [True, True, True, False]
            return torch.ops.ddu.convolution_backward(grad, input, weight, dilation_map, None, *window, needs)[:3]
        leading = {"sample": (input,), "splat": (columns,)}.get(name, (columns, input))
        order = () if name == "unfold_backward" else ([1, 0],)
        return as_list(operator(name, CASE, *order)(*leading, dilation_map))

    with torch.autocast(device.type, half):
        actual = call()
    assert_same(actual, call())


def convolve(input: Tensor, dilation_map: Tensor, weight: Tensor, bias: Tensor, mask: Tensor) -> Tensor:
    options: dict[str, Any] = {"padding": 1, "dilation_groups": CASE.groups, "mask": mask}
    return ddu_ops.dynamic_dilation_conv2d(input, weight, dilation_map, bias, **options)


BLOCKS: dict[str, Callable[..., Tensor]] = {
    "unfold": partial(unfold, CASE),
    "deform_unfold": lambda input, offset: ddu_ops.deform_unfold2d(input, 3, offset, padding=1, groups=CASE.groups),
    "deform_conv": lambda input, offset, weight: ddu_ops.deform_conv2d(input, offset, weight, padding=1),
    "affine_unfold": lambda input, theta: ddu_ops.affine_unfold2d(input, 3, theta, padding=1, groups=CASE.groups),
    "affine_conv": lambda input, theta, weight: ddu_ops.affine_conv2d(
        input, weight, theta, padding=1, theta_groups=CASE.groups
    ),
    "fold": partial(fold, CASE),
    "conv2d": convolve,
}
blocks = pytest.mark.parametrize("name", BLOCKS)


def block_arguments(name: str, device: torch.device) -> list[Tensor]:
    input, dilation_map, columns = make_tensors(CASE, torch.float32, device=device, kinks=False)
    if name == "deform_unfold":
        return [input, torch.randn(2, CASE.groups * CASE.taps * 2, *CASE.output_size, device=device)]
    if name == "deform_conv":
        offset = torch.randn(2, CASE.groups * CASE.taps * 2, *CASE.output_size, device=device)
        return [input, offset, torch.randn(3, 4, 3, 3, device=device)]
    if name.startswith("affine"):
        theta = torch.randn(2, CASE.groups * 6, *CASE.output_size, device=device)
        return [input, theta, torch.randn(3, 4, 3, 3, device=device)][: 3 if name == "affine_conv" else 2]
    if name != "conv2d":
        return [columns if name == "fold" else input, dilation_map]
    mask = torch.rand(2, CASE.groups * CASE.taps, *CASE.output_size, device=device)
    return [input, dilation_map, torch.randn(3, 4, 3, 3, device=device), torch.randn(3, device=device), mask]


def kept_in_float32(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def run(*arguments: Tensor) -> Tensor:
        with torch.autocast(arguments[0].device.type, enabled=False):
            return function(*arguments)

    return run


def derivatives(
    function: Callable[..., Tensor], arguments: list[Tensor], forward: Any = None, backward: Any = None
) -> list[Tensor]:
    """The gradients of a loss that overflows in float16, the forward and the backward each in its context."""
    leaves = [t.clone().requires_grad_() for t in arguments]
    with forward or nullcontext():
        output = function(*leaves)
    with backward or nullcontext():
        grads = torch.autograd.grad(output.square().sum() * 1e6, leaves, allow_unused=True)
    return [g for g in grads if g is not None]


@halves
@blocks
def test_a_forward_before_the_context(name: str, half: torch.dtype, device: torch.device) -> None:
    arguments = block_arguments(name, device)
    function = BLOCKS[name]
    for run in (function, torch.compile(function, backend="aot_eager", fullgraph=True)):
        actual = derivatives(run, arguments, backward=torch.autocast(device.type, half))
        assert_same(actual, derivatives(function, arguments))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@halves
@blocks
def test_compiled_autograd(name: str, half: torch.dtype, device: torch.device) -> None:
    torch._dynamo.reset()
    arguments = block_arguments(name, device)
    function = BLOCKS[name]
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="aot_eager")):
        actual = derivatives(function, arguments, backward=torch.autocast(device.type, half))
    assert_same(actual, derivatives(function, arguments))


@halves
@blocks
def test_second_order(name: str, half: torch.dtype, device: torch.device) -> None:
    arguments = block_arguments(name, device)
    function = BLOCKS[name]

    def second(context: Callable[[], Any]) -> list[Tensor]:
        leaves = [t.clone().requires_grad_() for t in arguments]
        output = function(*leaves)
        with context():
            first = torch.autograd.grad(output.square().sum(), leaves, create_graph=True)
        penalty = torch.stack([g.square().sum() for g in first]).sum()
        with context():
            return [*first, *torch.autograd.grad(penalty, leaves)]

    assert_same(second(partial(torch.autocast, device.type, half)), second(nullcontext))


@halves
@blocks
def test_forward_mode(name: str, half: torch.dtype, device: torch.device) -> None:
    """Of the backward, and the gradient of a tangent: the two that run apart from the forward."""
    arguments = block_arguments(name, device)
    tangents = [torch.randn_like(t) for t in arguments]
    function = BLOCKS[name]

    def run(context: Callable[[], Any]) -> list[Tensor]:
        leaves = [t.clone().requires_grad_() for t in arguments]
        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(*pair) for pair in zip(leaves, tangents, strict=True)]
            output = function(*duals)
            with context():
                grads = torch.autograd.grad(output.sum(), duals, create_graph=True)
            tangent = forward_ad.unpack_dual(output).tangent
            of_grads = [forward_ad.unpack_dual(g).tangent for g in grads]
        with context():
            of_tangent = torch.autograd.grad((tangent * output).sum(), leaves)
        return [tangent, *(t for t in of_grads if t is not None), *of_tangent]

    assert_same(run(partial(torch.autocast, device.type, half)), run(nullcontext))


@halves
@blocks
def test_transforms(name: str, half: torch.dtype, device: torch.device) -> None:
    """A forward under autocast, and a block in float32 inside of it."""
    arguments = block_arguments(name, device)
    function = BLOCKS[name]
    every = tuple(range(len(arguments)))

    def loss(*arguments: Tensor) -> Tensor:
        return function(*arguments).float().square().sum()

    with torch.autocast(device.type, half):
        actual = torch.func.grad(loss, every)(*arguments)
        leaves = [t.clone().requires_grad_() for t in arguments]
        expected = torch.autograd.grad(loss(*leaves), leaves)
        per_item = torch.func.vmap(torch.func.grad(loss, every))(*(t[None] for t in arguments))
        kept = torch.func.vmap(torch.func.grad(kept_in_float32(loss), every))(*(t[None] for t in arguments))
    assert_same(actual, expected)
    for a, e in zip(per_item, expected, strict=True):
        assert_near(a[0].to(half), e.double())
    torch.testing.assert_close(
        [t[0] for t in kept], list(torch.func.grad(loss, every)(*arguments)), rtol=1e-5, atol=1e-4
    )


def test_positions_are_not_rounded(device: torch.device) -> None:
    """A rate that bfloat16 cannot hold, far out where its rounding would be two pixels."""
    case = Case("far", 1, 1, (1, 1024), (1, 2), padding=(0, 0))
    ramp = torch.arange(1024.0, device=device).view(1, 1, 1, 1024)
    rate = 301.0  # bfloat16 has 300 and 302
    dilation_map = torch.full(case.map_shape, rate, device=device)
    with torch.autocast(device.type, torch.float16):  # which holds the ramp
        columns = unfold(case, ramp, dilation_map)
    assert columns[0, :, 400].tolist() == [400.5 - 150.5, 400.5 + 150.5]
    with torch.autocast(device.type, torch.bfloat16):
        actual = unfold(case, ramp, dilation_map)
    assert_same(actual, unfold(case, ramp.bfloat16(), dilation_map))


def test_autocast_that_is_off(device: torch.device) -> None:
    input, dilation_map, _ = make_tensors(CASE, torch.float32, device=device)
    with torch.autocast(device.type, torch.bfloat16), torch.autocast(device.type, enabled=False):
        assert unfold(CASE, input, dilation_map).dtype == torch.float32


def test_a_type_that_autocast_does_not_mend_is_refused_by_name(device: torch.device) -> None:
    """float64 is not cast, so a float32 map beside it stays an error, in the words of the operator that was called."""
    input, dilation_map, columns = make_tensors(CASE, torch.float64, device=device)
    options = {"padding": 1, "groups": 2}
    with torch.autocast(device.type, torch.bfloat16):
        with pytest.raises(RuntimeError, match=r"^dynamic_dilation_unfold\(\): expected dilation_map of type float64"):
            ddu_ops.dynamic_dilation_unfold(input, 3, dilation_map.float(), **options)
        with pytest.raises(RuntimeError, match=r"^dynamic_dilation_fold\(\): expected dilation_map of type float64"):
            ddu_ops.dynamic_dilation_fold(columns, CASE.size, 3, dilation_map.float(), **options)
