"""Gradients: against the reference, by finite differences, of every order, in reverse and in forward mode."""

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.checkpoint import checkpoint

from cases import (
    CASES,
    Case,
    assert_near,
    assert_same,
    by_mover,
    cases,
    derivative,
    dot,
    dtypes,
    first_order,
    flat_map,
    fold,
    fold_reference,
    make_tensors,
    operator,
    operator_name,
    orders,
    pick,
    sample,
    shift_of,
    small_cases,
    splat,
    sum_over_group,
    unfold,
    unfold_backward,
    unfold_reference,
)

# ---- Against the reference ----


@cases
@dtypes
def test_unfold(case: Case, dtype: torch.dtype, map_dtype: torch.dtype, device: torch.device) -> None:
    tensors = make_tensors(case, dtype, map_dtype, device, kinks=False)
    wide, leaves = tensors.to(torch.float64).requires_grad(), tensors.requires_grad()
    expected = torch.autograd.grad(
        unfold_reference(case, wide.input, wide.dilation_map), wide[:2], wide.columns.detach()
    )
    actual = torch.autograd.grad(unfold(case, leaves.input, leaves.dilation_map), leaves[:2], tensors.columns)
    for gradient, argument, reference in zip(actual, tensors, expected, strict=False):
        assert gradient.dtype == argument.dtype
        assert gradient.is_contiguous()
        assert_near(gradient, reference)
    assert_same(unfold_backward(case, tensors.columns, tensors.input, tensors.dilation_map), actual)


@cases
@dtypes
def test_fold(case: Case, dtype: torch.dtype, map_dtype: torch.dtype, device: torch.device) -> None:
    tensors = make_tensors(case, dtype, map_dtype, device, kinks=False)
    wide, leaves = tensors.to(torch.float64).requires_grad(), tensors.requires_grad()
    expected = torch.autograd.grad(fold_reference(case, wide.columns, wide.dilation_map), wide[1:], wide.input.detach())
    actual = torch.autograd.grad(fold(case, leaves.columns, leaves.dilation_map), leaves[1:], tensors.input)
    for gradient, argument, reference in zip(actual, tensors[1:], expected, strict=True):
        assert gradient.dtype == argument.dtype
        assert_near(gradient, reference)


@cases
@pytest.mark.parametrize("primitive", ["sample", "splat", "dot"])
def test_every_order_of_the_family(case: Case, primitive: str, device: torch.device) -> None:
    """The gradients of each primitive at each order, which are the primitives at the next."""
    tensors = make_tensors(case, device=device, kinks=False)
    for order in orders(case, beyond=False):
        wide, leaves = tensors.requires_grad(), tensors.requires_grad()

        def samples(rates: Tensor, order: list[int] = order, input: Tensor = wide.input) -> Tensor:
            return derivative(case, lambda r: unfold_reference(case, input, r), rates, order)

        if primitive == "sample":
            expected, grad = samples(wide.dilation_map), tensors.columns
            actual = sample(case, leaves.input, leaves.dilation_map, order)
            which = [0, 1]
        elif primitive == "splat":
            expected, grad = derivative(
                case, lambda r, columns=wide.columns: fold_reference(case, columns, r), wide.dilation_map, order
            ), tensors.input  # fmt: skip
            actual = splat(case, leaves.columns, leaves.dilation_map, order)
            which = [1, 2]
        else:
            expected = sum_over_group(case, wide.columns * samples(wide.dilation_map))
            grad = torch.randn_like(expected)
            actual = dot(case, leaves.columns, leaves.input, leaves.dilation_map, order)
            which = [0, 1, 2]
        options = {"allow_unused": True, "materialize_grads": True}
        expected_grads = torch.autograd.grad(expected, [wide[i] for i in which], grad, **options)
        actual_grads = torch.autograd.grad(actual, [leaves[i] for i in which], grad, **options)
        for a, e in zip(actual_grads, expected_grads, strict=True):
            assert_near(a, e)


@cases
def test_second_order_against_the_reference(case: Case, device: torch.device) -> None:
    """Gradients of gradients: what a gradient penalty on the columns takes."""
    tensors = make_tensors(case, device=device, kinks=False)
    results = []
    for function in (unfold, unfold_reference):
        input, dilation_map, columns = tensors.requires_grad()
        grads = torch.autograd.grad(
            function(case, input, dilation_map), (input, dilation_map), columns, create_graph=True
        )
        penalty = sum((g * g).sum() for g in grads)
        results.append(torch.autograd.grad(penalty, (input, dilation_map, columns)))
    for actual, expected in zip(*results, strict=True):
        assert_near(actual, expected)


# ---- Which gradients are asked for ----

SAME = Case("same", 2, 4, padding=(1, 1), groups=2, rates=2)
VOLUME = Case("volume", 1, 4, (2, 3, 2), (1, 2, 2), (1,), (0, 1, 1), groups=2, source="offsets", padding_mode="border")
same_and_volume = pytest.mark.parametrize("case", [SAME, VOLUME], ids=str)


@pytest.mark.parametrize("wanted", [(True, False), (False, True)], ids=["leading", "map"])
@pytest.mark.parametrize("name", ["unfold", "fold", "sample", "splat"])
@same_and_volume
def test_one_gradient_alone(case: Case, name: str, wanted: tuple[bool, bool], device: torch.device) -> None:
    tensors = pick(name, make_tensors(case, device=device))
    call = operator(name, case)
    both = [t.clone().requires_grad_() for t in tensors]
    output = call(*both)
    grad = torch.randn_like(output)
    expected = torch.autograd.grad(output, both, grad)
    leaves = [t.clone().requires_grad_(want) for t, want in zip(tensors, wanted, strict=True)]
    call(*leaves).backward(grad)
    for leaf, want, gradient in zip(leaves, wanted, expected, strict=True):
        if want:
            torch.testing.assert_close(leaf.grad, gradient, rtol=1e-12, atol=1e-12)
        else:
            assert leaf.grad is None


@pytest.mark.parametrize("wanted", [w for w in itertools.product([False, True], repeat=3) if any(w)], ids=str)
@pytest.mark.parametrize("name", ["unfold_backward", "dot"])
@same_and_volume
def test_any_gradients_of_three(case: Case, name: str, wanted: tuple[bool, ...], device: torch.device) -> None:
    tensors = pick(name, make_tensors(case, device=device, kinks=False))
    call = operator(name, case, first_order(name, case))

    def total(leaves: list[Tensor]) -> Tensor:
        result = call(*leaves)
        return result.square().sum() if isinstance(result, Tensor) else sum(r.square().sum() for r in result)

    everything = [t.clone().requires_grad_() for t in tensors]
    expected = torch.autograd.grad(total(everything), everything)
    leaves = [t.clone().requires_grad_(want) for t, want in zip(tensors, wanted, strict=True)]
    total(leaves).backward()
    for leaf, want, gradient in zip(leaves, wanted, expected, strict=True):
        if want:
            torch.testing.assert_close(leaf.grad, gradient, rtol=1e-10, atol=1e-10)
        else:
            assert leaf.grad is None


def test_one_of_the_two_outputs_of_the_backward(device: torch.device) -> None:
    """Each output of unfold_backward can be differentiated without the other."""
    tensors = make_tensors(SAME, device=device, kinks=False)
    for index in (0, 1):
        results = []
        for function in (unfold, unfold_reference):
            input, dilation_map, columns = tensors.requires_grad()
            output = function(SAME, input, dilation_map)
            grads = torch.autograd.grad(output, (input, dilation_map), columns, create_graph=True)
            results.append(
                torch.autograd.grad(
                    grads[index].square().sum(),
                    (input, dilation_map, columns),
                    allow_unused=True,
                    materialize_grads=True,
                )
            )
        for actual, expected in zip(*results, strict=True):
            assert_near(actual, expected)


def test_no_gradient_is_recorded_where_none_is_wanted(device: torch.device) -> None:
    input, dilation_map, _ = make_tensors(SAME, device=device)
    assert not unfold(SAME, input, dilation_map).requires_grad
    with torch.no_grad():
        assert not unfold(SAME, input.requires_grad_(), dilation_map).requires_grad


def test_a_graph_used_twice_and_freed(device: torch.device) -> None:
    input, dilation_map, columns = make_tensors(SAME, device=device).requires_grad()
    output = unfold(SAME, input, dilation_map)
    first = torch.autograd.grad(output, input, columns.detach(), retain_graph=True)
    second = torch.autograd.grad(output, input, columns.detach())
    assert_same(first, second)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(output, input, columns.detach())


@pytest.mark.parametrize("argument", [0, 1], ids=["input", "dilation_map"])
def test_an_argument_changed_in_place_is_noticed(argument: int, device: torch.device) -> None:
    leaves = make_tensors(SAME, device=device).requires_grad()
    arguments = [leaves.input.clone(), leaves.dilation_map.clone()]
    output = unfold(SAME, *arguments)
    with torch.no_grad():
        arguments[argument].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_saved_tensor_hooks_see_what_is_saved(device: torch.device) -> None:
    """Hooks move saved tensors away and back (activation offloading) without changing a gradient."""
    tensors = make_tensors(SAME, device=device)
    input, dilation_map, columns = tensors.requires_grad()
    expected = torch.autograd.grad(unfold(SAME, input, dilation_map), (input, dilation_map), columns.detach())
    packed = []

    def pack(tensor: Tensor) -> Tensor:
        packed.append(tensor.shape)
        return tensor.detach().clone()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = unfold(SAME, input, dilation_map)
    assert packed
    assert_same(torch.autograd.grad(output, (input, dilation_map), columns.detach()), expected)


@pytest.mark.parametrize("use_reentrant", [False, True], ids=["saved_tensors", "reentrant"])
def test_checkpointing(use_reentrant: bool, device: torch.device) -> None:
    leaves = make_tensors(SAME, device=device).requires_grad()
    expected = torch.autograd.grad(unfold(SAME, *leaves[:2]), leaves[:2], leaves.columns.detach())
    output = checkpoint(
        lambda input, dilation_map: unfold(SAME, input, dilation_map), *leaves[:2], use_reentrant=use_reentrant
    )
    output.backward(leaves.columns.detach())
    assert_same([leaves.input.grad, leaves.dilation_map.grad], expected)


# ---- By finite differences ----


def nondeterminism(device: torch.device) -> float:
    """What two runs may differ by: additions into the image have no order on a GPU."""
    return 0.0 if device.type == "cpu" else 1e-9


@small_cases
@pytest.mark.parametrize("name", ["unfold", "fold", "unfold_backward", "sample", "sample_backward", "splat", "dot"])
def test_gradcheck(name: str, case: Case, device: torch.device) -> None:
    leaves = [t.requires_grad_() for t in pick(name, make_tensors(case, device=device, kinks=False))]
    for order in {(), tuple(first_order(name, case))}:
        assert gradcheck(
            operator(name, case, order),
            leaves,
            check_forward_ad=True,
            check_batched_grad=True,
            check_batched_forward_grad=True,
            nondet_tol=nondeterminism(device),
        )


@small_cases
@pytest.mark.parametrize("name", ["unfold", "fold", "dot"])
def test_gradgradcheck(name: str, case: Case, device: torch.device) -> None:
    leaves = [t.requires_grad_() for t in pick(name, make_tensors(case, device=device, kinks=False))]
    assert gradgradcheck(
        operator(name, case),
        leaves,
        check_fwd_over_rev=True,
        check_rev_over_rev=True,
        check_batched_grad=True,
        nondet_tol=nondeterminism(device),
    )


@small_cases
@pytest.mark.parametrize("name", ["dynamic_dilation_unfold", "dynamic_dilation_fold"])
def test_gradcheck_of_the_public_operators(name: str, case: Case, device: torch.device) -> None:
    """Unbatched, and with positions that are broadcast over the batch."""
    if operator_name(name, case) == "splat":
        pytest.skip("no public operator folds by offsets")
    leading, dilation_map = pick(name, make_tensors(case, device=device, kinks=False))
    call = operator(name, case)
    for arguments in (
        (leading[0], dilation_map[0]),
        (leading[:1].repeat(2, *[1] * (leading.dim() - 1)), dilation_map[:1]),
    ):
        leaves = [t.detach().clone().requires_grad_() for t in arguments]
        options = {"check_forward_ad": True, "check_batched_grad": True, "nondet_tol": nondeterminism(device)}
        assert gradcheck(call, leaves, **options)


@pytest.mark.parametrize("case", [c for c in CASES if not c.batch or not c.channels], ids=str)
def test_gradients_of_nothing(case: Case, device: torch.device) -> None:
    tensors = make_tensors(case, torch.float32, device=device)
    for function, index in ((unfold, 0), (fold, 2)):
        leaves = tensors.requires_grad()
        function(case, leaves[index], leaves.dilation_map).sum().backward()
        assert torch.equal(leaves[index].grad, torch.zeros_like(leaves[index]))
        assert torch.equal(leaves.dilation_map.grad, torch.zeros_like(leaves.dilation_map))


# ---- At the kinks and beyond the image ----


AXES = pytest.mark.parametrize("axes, axis", [(1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2)])


def along(axes: int, axis: int, value: int, other: int = 1) -> tuple[int, ...]:
    return tuple(value if a == axis else other for a in range(axes))


@AXES
def test_the_derivative_on_a_whole_pixel_is_the_one_from_the_right(axes: int, axis: int, device: torch.device) -> None:
    """By hand: tap m of three, rate 1, lies on pixel m; its derivative is (m - 1) times the slope of the cell after."""
    values = torch.tensor([3.0, 5.0, 11.0, 2.0], dtype=torch.float64, device=device)
    slopes = values.diff()  # 2, 6, -9
    case = Case("pixels", 1, 1, along(axes, axis, 4), along(axes, axis, 3))
    image = values.view(case.input_shape)
    for rate, (before, after) in {1: (0, 2), -1: (2, 0)}.items():  # the pixels of the first and last tap
        dilation_map = flat_map(case, rate, device=device).requires_grad_()
        columns = unfold(case, image, dilation_map)
        assert columns[0, :, 0].tolist() == [values[before], values[1], values[after]]
        for tap, expected in enumerate([-slopes[before], 0.0, slopes[after]]):
            (grad,) = torch.autograd.grad(columns[0, tap, 0], dilation_map, retain_graph=True)
            assert grad.flatten()[0] == expected
        expected = torch.stack([-slopes[before], torch.zeros_like(slopes[0]), slopes[after]])
        order = sample(case, image, dilation_map, [1])
        assert torch.equal(order[0, :, 0], expected)
        tangent = torch.func.jvp(
            lambda m: unfold(case, image, m), (dilation_map.detach(),), (torch.ones_like(dilation_map),)
        )[1]
        assert torch.equal(tangent[0, :, 0], expected)


# The slopes of the cells from -2 to 6 of an image with pixels 1, 3 and 7. A whole position belongs to the cell after.
SLOPES = {
    "zeros": [0, 1, 2, 4, -7, 0, 0, 0, 0],
    "border": [0, 0, 2, 4, 0, 0, 0, 0, 0],
    "reflection": [-4, -2, 2, 4, -4, -2, 2, 4, -4],
}


@AXES
@pytest.mark.parametrize("source", ["rates", "offsets", "affine"])
@pytest.mark.parametrize("padding_mode", SLOPES)
def test_the_derivative_by_the_position_is_the_one_from_the_right(
    padding_mode: str, source: str, axes: int, axis: int, device: torch.device
) -> None:
    """In every mode, inside of the image, at its rim and outside: one tap is moved over whole pixels."""
    case = Case(
        "ruler", 1, 1, along(axes, axis, 3), along(axes, axis, 3), along(axes, axis, 1), along(axes, axis, 3, 0),
        source=source, padding_mode=padding_mode,
    )  # fmt: skip
    image = torch.tensor([1.0, 3.0, 7.0], dtype=torch.float64, device=device).view(case.input_shape)
    # Windows are centred on the pixels -2 to 4, and with a rate of 2 the last tap lies two further; so does the first
    # one with a rate of -2, but by it the derivative has the other sign.
    positions = flat_map(case, 2.0, device=device)
    order = [1]
    if source != "rates":
        order = [int(r == shift_of(case, axis)) for r in range(case.parameters)]
    assert sample(case, image, positions, order)[0, 2].tolist() == SLOPES[padding_mode][2:]
    if source == "rates":
        mirrored = sample(case, image, -positions, order)
        assert mirrored[0, 0].tolist() == [-slope for slope in SLOPES[padding_mode][2:]]
    else:
        assert sample(case, image, flat_map(case, 0.0, device=device), order)[0, 0].tolist() == SLOPES[padding_mode][:7]


@AXES
@pytest.mark.parametrize("source", ["rates", "offsets", "affine"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("displacement", [1e-9, -1e-9, 1e-30, -1e-30], ids=str)
def test_a_tiny_displacement_keeps_a_tap_on_its_side_of_a_pixel(
    displacement: float, dtype: torch.dtype, source: str, axes: int, axis: int, device: torch.device
) -> None:
    """What lies below a pixel by less than a rounded fraction can tell was in the cell above it."""
    case = Case(
        "tiny", 1, 1, along(axes, axis, 5), along(axes, axis, 3), padding=along(axes, axis, 1, 0), source=source
    )
    image = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0], dtype=dtype, device=device).view(case.input_shape)
    below, above = 4 - 2, 8 - 4  # the slopes of the cells around the pixel in the middle
    if source == "rates":
        derivative = sample(case, image, flat_map(case, displacement, dtype, device), [1])
        assert derivative[0, :, 2].tolist() == ([-below, 0, above] if displacement > 0 else [-above, 0, below])
    else:
        shift = shift_of(case, axis)
        positions = flat_map(case, 1.0, dtype, device)
        by_mover(case, positions)[:, :, :, shift] = displacement
        derivative = sample(case, image, positions, [int(r == shift) for r in range(case.parameters)])
        assert derivative[0, 1, 2] == (above if displacement > 0 else below)


@pytest.mark.parametrize("case", [c for c in CASES if c.batch and c.channels], ids=str)
@pytest.mark.parametrize("rate", [-2.0, -1.0, 0.0, 1.0, 2.0], ids=str)
def test_one_sided_derivatives_are_the_references(case: Case, rate: float, device: torch.device) -> None:
    """On a map of whole rates every tap of an odd window lies on a kink."""
    tensors = make_tensors(case, device=device)._replace(dilation_map=flat_map(case, rate, device=device))
    results = []
    for function in (unfold, unfold_reference):
        input, dilation_map, columns = tensors.requires_grad()
        results.append(
            torch.autograd.grad(function(case, input, dilation_map), (input, dilation_map), columns.detach())
        )
    for actual, expected in zip(*results, strict=True):
        assert_near(actual, expected)


def test_rates_beyond_the_image_have_no_gradient(device: torch.device) -> None:
    for rates in (1, 2):
        case = Case("beyond", 1, 2, (5, 6), (2, 2), rates=rates)
        for rate in (50.0, -50.0, 1e30, -1e30):
            dtype = torch.float32
            input, _, columns = make_tensors(case, dtype, device=device)
            grad_input, grad_map = unfold_backward(case, columns, input, flat_map(case, rate, dtype, device))
            assert torch.equal(grad_input, torch.zeros_like(input))
            assert torch.equal(grad_map, torch.zeros_like(grad_map))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(1, 5, 6), (72, 40, 45)], ids=["small", "large"])
@pytest.mark.parametrize("rate", [1.5, 200.0])
def test_a_gradient_that_is_not_finite_shows_outside_of_the_image(
    rate: float, shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device
) -> None:
    """Zero times infinity: some kernels of CUDA passed such taps over."""
    channels, *size = shape
    case = Case("outside", 1, channels, (size[0], size[1]), padding=(1, 1))
    input, _, columns = make_tensors(case, dtype, device=device)
    columns[0, 9 * (channels - 1), 0] = math.inf  # the first tap of the window in the corner
    _, grad_map = unfold_backward(case, columns, input, flat_map(case, rate, dtype, device))
    finite = grad_map.isfinite().flatten()
    assert grad_map.flatten()[0].isnan()
    assert finite[1:].all()


# ---- In use ----


def test_descent_recovers_a_map(device: torch.device) -> None:
    """The gradient by the rates points the right way, from rates that are off by up to a half."""
    case = Case("descent", 1, 1, (16, 16), padding=(1, 1))
    ramp = torch.linspace(0, 2, 16, dtype=torch.float64, device=device)
    image = (ramp.view(-1, 1).square() + ramp.square() * 2).view(1, 1, 16, 16)
    wanted = 1.5 + torch.rand(case.map_shape, dtype=torch.float64).to(device) - 0.5
    target = unfold(case, image, wanted)
    rates = flat_map(case, 1.5, device=device).requires_grad_()
    optimizer = torch.optim.Adam([rates], lr=0.02)
    for _ in range(150):
        optimizer.zero_grad()
        (unfold(case, image, rates) - target).square().sum().backward()
        optimizer.step()
    inner = (slice(None), slice(None), slice(3, -3), slice(3, -3))  # windows that stay inside the image
    assert (rates.detach() - wanted)[inner].abs().max() < 0.02
