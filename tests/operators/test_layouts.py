"""Strides of every kind: the same values for any layout of any argument, and contiguous results."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import public
from cases import OPERATORS, Case, as_list, assert_same, first_order, make_tensors, operator, pick, unfold

CASE = Case("layouts", 2, 4, (6, 7), (3, 2), (1, 2), (1, 0), groups=2, rates=2)


def channels_last(t: Tensor) -> Tensor:
    return t.movedim(1, -1).contiguous().movedim(-1, 1)


def reversed_dimensions(t: Tensor) -> Tensor:
    order = tuple(reversed(range(t.dim())))
    return t.permute(order).contiguous().permute(order)


def transposed(t: Tensor) -> Tensor:
    return t.transpose(-1, -2).contiguous().transpose(-1, -2)


def sliced(t: Tensor) -> Tensor:
    """Every second entry of a larger tensor, from an odd offset, among NaNs."""
    whole = t.new_full([2 * n + 3 for n in t.shape], float("nan"))
    view = whole[tuple(slice(1, 2 * n, 2) for n in t.shape)]
    return view.copy_(t)


def misaligned(t: Tensor) -> Tensor:
    """Contiguous, one element past an aligned address."""
    whole = t.new_empty(t.numel() + 1)
    return whole[1:].view(t.shape).copy_(t)


def negated(t: Tensor) -> Tensor:
    """A view with the negative bit, which holds -t."""
    return torch._neg_view(-t)


LAYOUTS: list[Callable[[Tensor], Tensor]] = [
    channels_last,
    reversed_dimensions,
    transposed,
    sliced,
    misaligned,
    negated,
]

ARGUMENTS = [(name, index) for name, arguments in OPERATORS.items() for index in range(len(arguments))]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name, index", ARGUMENTS, ids=[f"{n}-{OPERATORS[n][i]}" for n, i in ARGUMENTS])
def test_one_argument_in_another_layout(
    name: str, index: int, layout: Callable[[Tensor], Tensor], dtype: torch.dtype, device: torch.device
) -> None:
    tensors = list(pick(name, make_tensors(CASE, dtype, device=device)))
    call = operator(name, CASE, first_order(name, CASE))
    expected = call(*tensors)
    original, tensors[index] = tensors[index], layout(tensors[index])
    assert torch.equal(tensors[index], original)
    assert layout in (misaligned, negated) or not tensors[index].is_contiguous()
    actual = call(*tensors)
    assert_same(actual, expected)
    assert all(result.is_contiguous() for result in as_list(actual))


@pytest.mark.parametrize("dims", [(0,), (1,), (2,), (0, 1), (0, 1, 2)], ids=str)
@pytest.mark.parametrize("name, index", ARGUMENTS, ids=[f"{n}-{OPERATORS[n][i]}" for n, i in ARGUMENTS])
def test_an_expanded_argument(name: str, index: int, dims: tuple[int, ...], device: torch.device) -> None:
    """A stride of zero, in one dimension or more."""
    tensors = list(pick(name, make_tensors(CASE, torch.float32, device=device)))
    call = operator(name, CASE, first_order(name, CASE))
    shape = tensors[index].shape
    for dim in dims:
        tensors[index] = tensors[index].narrow(dim, 0, 1)
    expanded = tensors[index].expand(shape)
    tensors[index] = expanded.contiguous()
    expected = call(*tensors)
    tensors[index] = expanded
    assert_same(call(*tensors), expected)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_gradients_in_another_layout(layout: Callable[[Tensor], Tensor], device: torch.device) -> None:
    tensors = make_tensors(CASE, torch.float32, device=device)

    def gradients(change: Callable[[Tensor], Tensor]) -> tuple[Tensor, ...]:
        leaves = tensors.requires_grad()
        output = unfold(CASE, change(leaves.input), change(leaves.dilation_map))
        return torch.autograd.grad(output, leaves[:2], change(tensors.columns))

    if layout is sliced:  # which writes into its view: autograd follows the copy
        assert_same(gradients(layout), gradients(torch.clone))
    else:
        assert_same(gradients(layout), gradients(lambda t: t))


def test_the_gradient_of_a_sum(device: torch.device) -> None:
    """Where autograd hands over one expanded number."""
    leaves = make_tensors(CASE, torch.float32, device=device).requires_grad()
    actual = torch.autograd.grad(unfold(CASE, leaves.input, leaves.dilation_map).sum(), leaves[:2])
    ones = torch.ones(CASE.columns_shape, device=device)
    expected = torch.autograd.grad(unfold(CASE, leaves.input, leaves.dilation_map), leaves[:2], ones)
    assert_same(actual, expected)


def test_an_image_in_channels_last_from_a_convolution(device: torch.device) -> None:
    convolution = torch.nn.Conv2d(3, 4, 3, padding=1).to(device, memory_format=torch.channels_last)
    image = torch.randn(2, 3, 6, 7, device=device).to(memory_format=torch.channels_last)
    features = convolution(image)
    assert features.is_contiguous(memory_format=torch.channels_last)
    dilation_map = make_tensors(CASE, torch.float32, device=device).dilation_map
    assert_same(unfold(CASE, features, dilation_map), unfold(CASE, features.contiguous(), dilation_map))


def test_the_same_memory_twice(device: torch.device) -> None:
    """Input and map may be one tensor."""
    case = Case("shared", 2, 1, (5, 6), padding=(1, 1))
    both = make_tensors(case, torch.float32, device=device).input
    assert_same(unfold(case, both, both), unfold(case, both, both.clone()))


FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}
CONTIGUOUS = {  # the results of these, whatever the layout of their arguments
    "fold": "columns have no channels-last layout, nor has what is made of them",
    "to_offsets": "it is called with a map, not with features",
    "theta_from": "they are called with boxes or a map, not with features",
    "multidilatelocalattention": "its channels come last already",
}


def in_channels_last(tensor: Tensor) -> bool:
    """Or a part of such a tensor."""
    return tensor.stride(1) == 1 or tensor.is_contiguous(memory_format=FORMATS[tensor.dim()])


@pytest.mark.parametrize("subject", [case for case in public.of("function", "module") if case.values[0].axes > 1])
def test_channels_last_in_gives_channels_last_out(subject: public.Subject, device: torch.device) -> None:
    """As of torch's convolutions: of every function, module and layer, with the same values."""
    function, arguments = subject.function(), subject.arguments()
    if isinstance(function, torch.nn.Module):
        function = function.to(device)
    arguments = tuple(a.to(device) for a in arguments)
    last = [a.to(memory_format=FORMATS[a.dim()]) if a.dim() == subject.axes + 2 else a for a in arguments]
    expected, actual = as_list(function(*arguments)), as_list(function(*last))
    for result, plain in zip(actual, expected):
        if isinstance(result, Tensor):
            torch.testing.assert_close(result, plain, atol=1e-4, rtol=1e-4)
            contiguous = any(name in subject.name.lower() for name in CONTIGUOUS)
            assert result.is_contiguous() if contiguous else in_channels_last(result)
