"""torch.func over every operator: grad, jvp, jacobians, the Hessian, and vmap of any of them; inference mode."""

import itertools
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, linearize, vjp, vmap
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cases import (
    FAMILY,
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
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("rates", [1, 2])
def test_every_derivative(name: str, rates: int, order: int, device: torch.device) -> None:
    """By both arguments at once, in every mix of the two modes: all ``2**order`` blocks, the mixed ones included."""
    case = Case("tiniest", 1, 2, (1, 2), (2, 2), (2, 1), (1, 0), groups=2, rates=rates)
    tensors = pick(name, make_tensors(case, device=device, kinks=False))
    loss, reference = losses(name, case)

    def blocks(function: Callable[..., Tensor], modes: Iterable[Callable[..., Any]]) -> list[Tensor]:
        for mode in modes:
            function = mode(function, argnums=(0, 1))
        return tree_leaves(function(*tensors))

    expected = blocks(reference, [jacrev] * order)
    assert len(expected) == 2**order
    assert all(block.abs().max() > 1e-3 for block in expected)  # none is trivial
    for modes in [*itertools.product((jacrev, jacfwd), repeat=order), *[[hessian]] * (order == 2)]:
        for actual, block in zip(blocks(loss, modes), expected, strict=True):
            close(actual, block)


@pairs
@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node:UserWarning")  # torch's own tracing
def test_linearize(name: str, device: torch.device) -> None:
    """Around a vmap, too, and with its linear function under one; inside of one, torch linearizes nothing."""
    loss, reference = losses(name, TINY)
    stacks = stacked(name, TINY, device)
    tensors, tangents = tuple(t[0] for t in stacks), tuple(t.cos() for t in stacks)
    output, push = linearize(loss, *tensors)
    expected = [jvp(reference, tensors, tuple(t[i] for t in tangents)) for i in range(BATCH)]
    close(output, expected[0][0])
    close(vmap(push)(*tangents), torch.stack([tangent for _, tangent in expected]))
    close(linearize(vmap(loss), *stacks)[1](*tangents), jvp(vmap(reference), tuple(stacks), tangents)[1])


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
def test_vmap_is_one_call(name: str, device: torch.device) -> None:
    """And not one for every item, as where torch has no rule."""

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            counts.update([func.namespace])
            return func(*args, **(kwargs or {}))

    call = operator(name, TINY, first_order(name, TINY))
    for levels in (1, 2):
        counts: Counter[str] = Counter()
        tensors = [t if levels == 1 else torch.stack([t, t]) for t in stacked(name, TINY, device)]
        function = vmap(call) if levels == 1 else vmap(vmap(call))
        with Count():
            function(*tensors)
        assert counts["ddu"] == 1


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


# What each transform makes of a scalar function: a function of the same tensors.
TRANSFORMS: dict[str, Callable[..., Callable[..., Any]]] = {
    "grad": lambda f: grad(f, (0, 1)),
    "vjp": lambda f: lambda *t: vjp(f, *t)[1](torch.tensor(2.0, dtype=torch.float64, device=t[0].device)),
    "jvp": lambda f: lambda *t: jvp(f, t, tuple(map(torch.cos, t)))[1],
    "jacrev": lambda f: jacrev(f, (0, 1)),
    "jacfwd": lambda f: jacfwd(f, (0, 1)),
    "hessian": lambda f: hessian(f, (0, 1)),
    "vmap": lambda f: lambda *t: vmap(f)(*(torch.stack([x, x + 0.25]) for x in t)),
}


@pairs
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_vmap_of(transform: str, name: str, device: torch.device) -> None:
    tensors = stacked(name, TINY, device)
    loss, reference = (TRANSFORMS[transform](f) for f in losses(name, TINY))
    loop = [tree_leaves(reference(*(t[i] for t in tensors))) for i in range(BATCH)]
    for actual, *expected in zip(tree_leaves(vmap(loss)(*tensors)), *loop, strict=True):
        close(actual, torch.stack(expected))


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


@operators
@pytest.mark.parametrize("transform", [None, *TRANSFORMS])
def test_complex_tensors_are_refused_by_name(transform: str | None, name: str, device: torch.device) -> None:
    """As a constant of what is transformed, and as its variable, except where torch itself refuses before the call."""
    tensors = pick(name, make_tensors(TINY, device=device))
    call = operator(name, TINY, first_order(name, TINY))
    transformed = TRANSFORMS[transform] if transform else lambda f: f
    names = {"columns": "grad_output"} if name.endswith("_backward") else {}
    names |= {"dilation_map": "positions"} if name in FAMILY else {}

    def loss(*tensors: Tensor) -> Tensor:
        return sum(result.abs().sum() for result in as_list(call(*tensors)))

    for index, argument in enumerate(OPERATORS[name]):

        def mixed(*t: Tensor, index: int = index) -> list[Tensor]:
            return [*t[:index], t[index].to(torch.complex128), *t[index + 1 :]]

        text = rf"{name}\(\): expected {names.get(argument, argument)} of type .*, but got complex128"
        with pytest.raises(RuntimeError, match=text):
            transformed(lambda *t, mixed=mixed: loss(*mixed(*t)))(*tensors)
        before = "Expected all inputs to be real" if transform in ("jacrev", "jacfwd", "hessian") else text
        with pytest.raises(RuntimeError, match=before):
            transformed(loss)(*mixed(*tensors))


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
