"""Autocast: the input like a convolution's, the map in float32."""

import pytest
import torch
from torch import Tensor

import ddu_ops
from cases import Case, assert_same, fold, make_tensors, unfold

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


@halves
def test_the_backward_operator(half: torch.dtype, device: torch.device) -> None:
    input, dilation_map, columns = make_tensors(CASE, torch.float32, device=device)
    options = (CASE.kernel_size, dilation_map, *CASE.options)
    with torch.autocast(device.type, half):
        actual = torch.ops.ddu.unfold_backward(columns, input, *options)
    assert_same(actual, torch.ops.ddu.unfold_backward(columns.to(half), input.to(half), *options))


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
