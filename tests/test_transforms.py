"""torch.func over every operator: grad, jvp, jacobians, the Hessian, and vmap of any of them; inference mode."""

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, linearize, vjp, vmap

from cases import (
    OPERATORS,
    Case,
    as_list,
    assert_same,
    first_order,
    fold,
    fold_reference,
    make_tensors,
    operator,
    operators,
    pick,
    small_cases,
    unfold,
    unfold_reference,
)
from ddu_ops import DynamicDilationUnfold

TINY = Case("tiny", 1, 2, (2, 3), (2, 2), padding=(1, 0), rates=2)
PAIRS = {"unfold": (unfold, unfold_reference), "fold": (fold, fold_reference)}
pairs = pytest.mark.parametrize("name", PAIRS)


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def losses(name: str, case: Case) -> list[Callable[..., Tensor]]:
    """A scalar function of the operator, and the same one of the reference."""
    return [lambda *tensors, f=f: f(case, *tensors).sin().square().sum() for f in PAIRS[name]]


@small_cases
@pairs
@pytest.mark.parametrize("argnum", [0, 1], ids=["leading", "map"])
def test_grad_and_vjp(name: str, case: Case, argnum: int, device: torch.device) -> None:
    tensors = pick(name, make_tensors(case, device=device, kinks=False))
    actual, expected = (grad(loss, argnum)(*tensors) for loss in losses(name, case))
    close(actual, expected)
    function, reference = PAIRS[name]
    output, pull = vjp(lambda *t: function(case, *t), *tensors)
    expected_output, expected_pull = vjp(lambda *t: reference(case, *t), *tensors)
    close(output, expected_output)
    cotangent = torch.randn_like(output)
    for a, e in zip(pull(cotangent), expected_pull(cotangent)):
        close(a, e)


@small_cases
@pairs
@pytest.mark.parametrize("moving", ["leading", "map", "both"])
def test_jvp(name: str, case: Case, moving: str, device: torch.device) -> None:
    tensors = pick(name, make_tensors(case, device=device, kinks=False))
    tangents = tuple(torch.randn_like(t) for t in tensors)
    index = {"leading": slice(0, 1), "map": slice(1, 2), "both": slice(0, 2)}[moving]

    def along(function: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
        def of_moving(*moved: Tensor) -> Tensor:
            full = list(tensors)
            full[index] = moved
            return function(case, *full)

        return jvp(of_moving, tensors[index], tangents[index])

    function, reference = PAIRS[name]
    for actual, expected in zip(along(function), along(reference)):
        close(actual, expected)


@pairs
@pytest.mark.parametrize("argnum", [0, 1], ids=["leading", "map"])
def test_jacobians(name: str, argnum: int, device: torch.device) -> None:
    tensors = pick(name, make_tensors(TINY, device=device, kinks=False))
    function, reference = (lambda *t, f=f: f(TINY, *t) for f in PAIRS[name])
    expected = jacrev(reference, argnum)(*tensors)
    close(jacrev(function, argnum)(*tensors), expected)
    close(jacrev(function, argnum, chunk_size=3)(*tensors), expected)
    close(jacfwd(function, argnum)(*tensors), expected)
    close(torch.autograd.functional.jacobian(function, tensors)[argnum], expected)


@pairs
@pytest.mark.parametrize("rates", [1, 2])
def test_hessian(name: str, rates: int, device: torch.device) -> None:
    """Of both arguments at once: all four blocks, the mixed one included."""
    case = Case("hessian", 1, 2, (2, 3), (2, 2), padding=(1, 0), rates=rates)
    tensors = pick(name, make_tensors(case, device=device, kinks=False))
    loss, reference = losses(name, case)
    expected = hessian(reference, argnums=(0, 1))(*tensors)
    ways = {
        "forward over reverse": jacfwd(jacrev(loss, argnums=(0, 1)), argnums=(0, 1)),
        "reverse over reverse": jacrev(jacrev(loss, argnums=(0, 1)), argnums=(0, 1)),
        "reverse over forward": jacrev(jacfwd(loss, argnums=(0, 1)), argnums=(0, 1)),
        "forward over forward": jacfwd(jacfwd(loss, argnums=(0, 1)), argnums=(0, 1)),
        "hessian": hessian(loss, argnums=(0, 1)),
    }
    for way in ways.values():
        actual = way(*tensors)
        for row, column in itertools.product(range(2), repeat=2):
            close(actual[row][column], expected[row][column])
    assert expected[0][1].abs().max() > 1e-3  # the mixed block is not trivial


@pairs
def test_third_derivatives(name: str, device: torch.device) -> None:
    leading, dilation_map = pick(name, make_tensors(TINY, device=device, kinks=False))
    direction = torch.randn_like(dilation_map)

    def third(loss: Callable[..., Tensor], function: Callable[..., Callable[..., Tensor]]) -> Tensor:
        def along(t: Tensor) -> Tensor:
            return loss(leading, dilation_map + t * direction)

        return function(function(function(along)))(torch.zeros((), dtype=torch.float64, device=device))

    loss, reference = losses(name, TINY)
    expected = third(reference, grad)
    assert expected.abs() > 1e-3
    for function in (grad, jacfwd):
        close(third(loss, function), expected)


@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node:UserWarning")  # torch's own tracing
def test_linearize(device: torch.device) -> None:
    input, dilation_map, _ = make_tensors(TINY, device=device, kinks=False)
    tangents = torch.randn_like(input), torch.randn_like(dilation_map)
    output, push = linearize(lambda *t: unfold(TINY, *t), input, dilation_map)
    expected = jvp(lambda *t: unfold_reference(TINY, *t), (input, dilation_map), tangents)
    close(output, expected[0])
    close(push(*tangents), expected[1])


# ---- vmap ----

BATCH = 3


def stacked(name: str, case: Case, device: torch.device) -> list[Tensor]:
    """Every tensor of the operator ``BATCH`` times over, along a new first dimension."""
    sets = [pick(name, make_tensors(case, device=device, kinks=False, seed=seed)) for seed in range(BATCH)]
    return [torch.stack(ts) for ts in zip(*sets)]


def check_vmap(call: Callable[..., object], tensors: list[Tensor], in_dims: tuple[int | None, ...]) -> None:
    """``vmap`` against a loop; ``tensors`` are batched in front, and moved or cut as ``in_dims`` says."""
    placed = [t[0] if dim is None else t.movedim(0, dim) for t, dim in zip(tensors, in_dims)]
    actual = as_list(vmap(call, in_dims)(*placed))
    loop = [as_list(call(*(t[0] if dim is None else t[i] for t, dim in zip(tensors, in_dims)))) for i in range(BATCH)]
    for a, *e in zip(actual, *loop):
        close(a, torch.stack(e))


COMBINATIONS = [
    (name, in_dims)
    for name, names in OPERATORS.items()
    for in_dims in itertools.product((None, 0), repeat=len(names))
    if any(dim is not None for dim in in_dims)
]


@pytest.mark.parametrize(
    "name, in_dims", COMBINATIONS, ids=[f"{n}-{'_'.join(map(str, dims))}" for n, dims in COMBINATIONS]
)
@small_cases
def test_vmap(name: str, in_dims: tuple[int | None, ...], case: Case, device: torch.device) -> None:
    check_vmap(operator(name, case, first_order(name, case)), stacked(name, case, device), in_dims)


@operators
@pytest.mark.parametrize("dim", [1, 2, -1])
def test_vmap_over_another_dimension(name: str, dim: int, device: torch.device) -> None:
    in_dims = (dim,) * len(OPERATORS[name])
    check_vmap(operator(name, TINY, first_order(name, TINY)), stacked(name, TINY, device), in_dims)


@pytest.mark.parametrize("name", ["dynamic_dilation_unfold", "dynamic_dilation_fold"])
@pytest.mark.parametrize("in_dims", [(0, 0), (0, None), (None, 0), (1, -1)], ids=str)
def test_vmap_over_unbatched_arguments(name: str, in_dims: tuple[int | None, ...], device: torch.device) -> None:
    """The use of vmap that looks like a batch: every item has no batch dimension of its own."""
    case = Case("unbatched", 1, 4, (4, 5), (3, 2), padding=(1, 0), groups=2, rates=2)
    check_vmap(operator(name, case), [t[:, 0] for t in stacked(name, case, device)], in_dims)


def test_vmap_with_a_map_that_is_broadcast(device: torch.device) -> None:
    case = Case("broadcast", 2, 2, (4, 5), padding=(1, 1))
    images, maps, _ = (
        torch.stack(t) for t in zip(*(make_tensors(case, device=device, seed=seed) for seed in range(BATCH)))
    )
    check_vmap(operator("dynamic_dilation_unfold", case), [images, maps[:, :1]], (0, 0))


@operators
def test_nested_vmap(name: str, device: torch.device) -> None:
    tensors = stacked(name, TINY, device)
    call = operator(name, TINY, first_order(name, TINY))
    twice = [torch.stack([t, t + 0.25]) for t in tensors]
    actual = as_list(vmap(vmap(call))(*twice))
    for result, *expected in zip(
        actual, *(as_list(call(*(t[i, j] for t in twice))) for i in range(2) for j in range(BATCH))
    ):
        close(result.flatten(0, 1), torch.stack(expected))
    # Each level batches another argument.
    inner = (0,) + (None,) * (len(tensors) - 1)
    outer = (None,) + (0,) * (len(tensors) - 1)
    actual = as_list(vmap(vmap(call, inner), outer)(*tensors))
    pairs = [(i, j) for i in range(BATCH) for j in range(BATCH)]
    for result, *expected in zip(
        actual, *(as_list(call(tensors[0][j], *(t[i] for t in tensors[1:]))) for i, j in pairs)
    ):
        close(result.flatten(0, 1), torch.stack(expected))


@pairs
@pytest.mark.parametrize("in_dims", [(0, 0), (0, None), (None, 0)], ids=str)
def test_vmap_of_grad_and_grad_of_vmap(name: str, in_dims: tuple[int | None, ...], device: torch.device) -> None:
    """Gradients per sample."""
    loss, reference = losses(name, TINY)
    tensors = [t if dim == 0 else t[0] for t, dim in zip(stacked(name, TINY, device), in_dims)]
    for argnum in (0, 1):
        expected = torch.stack(
            [
                grad(reference, argnum)(*(t if dim is None else t[i] for t, dim in zip(tensors, in_dims)))
                for i in range(BATCH)
            ]
        )
        close(vmap(grad(loss, argnum), in_dims)(*tensors), expected)
        together = grad(lambda *t: vmap(loss, in_dims)(*t).sum(), argnum)(*tensors)
        close(together, expected if in_dims[argnum] == 0 else expected.sum(0))


@pairs
def test_vmap_of_jvp_and_hessian(name: str, device: torch.device) -> None:
    tensors = stacked(name, TINY, device)
    tangents = [torch.randn_like(t) for t in tensors]
    loss, reference = losses(name, TINY)
    actual = vmap(lambda t, d: jvp(loss, t, d)[1])(tuple(tensors), tuple(tangents))
    expected = [jvp(reference, tuple(t[i] for t in tensors), tuple(d[i] for d in tangents))[1] for i in range(BATCH)]
    close(actual, torch.stack(expected))
    close(
        vmap(hessian(loss, 1))(*tensors),
        torch.stack([hessian(reference, 1)(*(t[i] for t in tensors)) for i in range(BATCH)]),
    )


@pytest.mark.parametrize("randomness", ["error", "different", "same"])
def test_vmap_draws_nothing(randomness: str, device: torch.device) -> None:
    tensors = stacked("unfold", TINY, device)
    close(vmap(operator("unfold", TINY), randomness=randomness)(*tensors)[0], unfold(TINY, *(t[0] for t in tensors)))


def test_gradients_per_sample_of_a_model(device: torch.device) -> None:
    """The tutorial's way: functional_call, grad and vmap over a module that predicts its own rates."""

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rates = torch.nn.Conv2d(2, 1, 3, padding=1)
            self.unfold = DynamicDilationUnfold(3, padding=1)
            self.weight = torch.nn.Linear(18, 4)

        def forward(self, input: Tensor) -> Tensor:
            columns = self.unfold(input, 1 + torch.tanh(self.rates(input)))
            return self.weight(columns.transpose(1, 2))

    model = Model().to(device, torch.float64)
    parameters = dict(model.named_parameters())
    inputs = torch.randn(BATCH, 2, 5, 4, dtype=torch.float64, device=device)

    def loss(parameters: dict[str, Tensor], input: Tensor) -> Tensor:
        return functional_call(model, parameters, input[None]).square().mean()

    per_sample = vmap(grad(loss), (None, 0))(parameters, inputs)
    for i in range(BATCH):
        model.zero_grad()
        model(inputs[i : i + 1]).square().mean().backward()
        for name, parameter in model.named_parameters():
            close(per_sample[name][i], parameter.grad)


# ---- Without any ----


@operators
def test_inference_mode(name: str, device: torch.device) -> None:
    tensors = make_tensors(TINY, torch.float32, device=device)
    expected = operator(name, TINY)(*pick(name, tensors))
    with torch.inference_mode():
        inside = operator(name, TINY)(*pick(name, tensors))
        made_inside = operator(name, TINY)(*pick(name, make_tensors(TINY, torch.float32, device=device)))
    assert_same(inside, expected)
    assert_same(made_inside, expected)
    assert all(result.is_inference() for result in [*as_list(inside), *as_list(made_inside)])
