"""Properties that hold for every problem, on problems drawn by hypothesis."""

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cases import (
    Case,
    Tensors,
    assert_near,
    assert_same,
    by_mover,
    drawn_cases,
    flat_map,
    fold,
    fold_reference,
    make_tensors,
    orders,
    sample,
    seeds,
    unfold,
    unfold_backward,
    unfold_reference,
)


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-11)


@given(drawn_cases(), seeds)
def test_agrees_with_the_reference(device: torch.device, case: Case, seed: int) -> None:
    tensors = make_tensors(case, torch.float32, kinks=False, seed=seed, device=device)
    wide, leaves = tensors.to(torch.float64).requires_grad(), tensors.requires_grad()
    output, expected = unfold(case, *leaves[:2]), unfold_reference(case, *wide[:2])
    assert_near(output, expected)
    grads = torch.autograd.grad(output, leaves[:2], tensors.columns)
    for actual, reference in zip(grads, torch.autograd.grad(expected, wide[:2], wide.columns.detach())):
        assert_near(actual, reference)
    output, expected = fold(case, leaves.columns, leaves.dilation_map), fold_reference(case, wide.columns, wide[1])
    assert_near(output, expected)
    grads = torch.autograd.grad(output, leaves[1:], tensors.input)
    for actual, reference in zip(grads, torch.autograd.grad(expected, wide[1:], wide.input.detach())):
        assert_near(actual, reference)


@given(drawn_cases(), seeds, st.floats(-4, 4), st.floats(-4, 4))
def test_linear_in_the_input(device: torch.device, case: Case, seed: int, alpha: float, beta: float) -> None:
    x, dilation_map, u = make_tensors(case, seed=seed, device=device)
    y, _, v = make_tensors(case, seed=seed + 1, device=device)
    close(
        unfold(case, alpha * x + beta * y, dilation_map),
        alpha * unfold(case, x, dilation_map) + beta * unfold(case, y, dilation_map),
    )
    close(
        fold(case, alpha * u + beta * v, dilation_map),
        alpha * fold(case, u, dilation_map) + beta * fold(case, v, dilation_map),
    )


@given(drawn_cases(), seeds)
def test_fold_is_the_adjoint_of_unfold(device: torch.device, case: Case, seed: int) -> None:
    input, dilation_map, columns = make_tensors(case, seed=seed, device=device)
    image = fold(case, columns, dilation_map)
    close((unfold(case, input, dilation_map) * columns).sum(), (input * image).sum())
    close(unfold_backward(case, columns, input, dilation_map)[0], image)


@given(drawn_cases(), seeds)
def test_items_of_a_batch_do_not_meet(device: torch.device, case: Case, seed: int) -> None:
    tensors = make_tensors(case, torch.float32, seed=seed, device=device)
    one = replace(case, batch=1)
    for b in range(case.batch):
        alone = Tensors(*(t[b : b + 1] for t in tensors))
        assert_same(unfold(one, *alone[:2]), unfold(case, *tensors[:2])[b : b + 1])
        assert_same(fold(one, alone[2], alone[1]), fold(case, tensors[2], tensors[1])[b : b + 1])
        both = unfold_backward(case, tensors[2], *tensors[:2])
        assert_same(unfold_backward(one, alone[2], *alone[:2]), [g[b : b + 1] for g in both])


@given(drawn_cases(max_batch=1), seeds, st.randoms(use_true_random=False))
def test_groups_in_another_order(device: torch.device, case: Case, seed: int, random: object) -> None:
    """Groups of channels, each with its map, may change places."""
    input, dilation_map, columns = make_tensors(case, torch.float32, seed=seed, device=device)
    order = list(range(case.groups))
    random.shuffle(order)  # type: ignore[attr-defined]

    def reordered(t: Tensor) -> Tensor:
        return t.unflatten(1, (case.groups, -1))[:, order].flatten(1, 2)

    tensors = (reordered(input), reordered(dilation_map))
    assert_same(unfold(case, *tensors), reordered(unfold(case, input, dilation_map)))
    assert_same(fold(case, reordered(columns), tensors[1]), reordered(fold(case, columns, dilation_map)))
    grads = unfold_backward(case, columns, input, dilation_map)
    assert_same(unfold_backward(case, reordered(columns), *tensors), [reordered(g) for g in grads])


@given(drawn_cases(), seeds)
def test_groups_are_calls_of_their_own(device: torch.device, case: Case, seed: int) -> None:
    input, dilation_map, columns = make_tensors(case, torch.float32, seed=seed, device=device)
    per_group = case.channels // case.groups
    one = replace(case, channels=per_group, groups=1)
    output, image = unfold(case, input, dilation_map), fold(case, columns, dilation_map)
    grads = unfold_backward(case, columns, input, dilation_map)
    for g in range(case.groups):
        x, m, c = (t.unflatten(1, (case.groups, -1))[:, g] for t in (input, dilation_map, columns))
        assert_same(unfold(one, x, m), output.unflatten(1, (case.groups, -1))[:, g])
        assert_same(fold(one, c, m), image.unflatten(1, (case.groups, -1))[:, g])
        assert_same(unfold_backward(one, c, x, m), [t.unflatten(1, (case.groups, -1))[:, g] for t in grads])


@given(drawn_cases(), seeds)
def test_channels_in_another_order(device: torch.device, case: Case, seed: int) -> None:
    """Channels of a group read one map, so they may change places."""
    input, dilation_map, columns = make_tensors(case, torch.float32, seed=seed, device=device)

    def flipped(t: Tensor) -> Tensor:
        return t.unflatten(1, (case.groups, case.channels // case.groups, -1)).flip(2).flatten(1, 3)

    assert_same(unfold(case, flipped(input), dilation_map), flipped(unfold(case, input, dilation_map)))
    assert_same(fold(case, flipped(columns), dilation_map), flipped(fold(case, columns, dilation_map)))


@given(drawn_cases(), seeds)
def test_a_rate_of_zero_collapses_the_window(device: torch.device, case: Case, seed: int) -> None:
    input = make_tensors(case, torch.float32, seed=seed, device=device).input
    taps = unfold(case, input, flat_map(case, 0.0, torch.float32, device)).unflatten(1, (case.channels, case.taps))
    assert_same(taps, taps[:, :, :1].expand_as(taps).contiguous())


@given(drawn_cases(source="rates"), seeds)
def test_a_negative_rate_mirrors_the_window(device: torch.device, case: Case, seed: int) -> None:
    input, dilation_map, columns = make_tensors(case, torch.float32, seed=seed, device=device)

    def mirrored(t: Tensor) -> Tensor:
        taps = range(2, 2 + case.axes)
        return t.unflatten(1, (-1, *case.kernel_size)).flip(*taps).flatten(1, 1 + case.axes)

    assert_same(unfold(case, input, -dilation_map), mirrored(unfold(case, input, dilation_map)))
    close(fold(case, columns.double(), -dilation_map.double()),
          fold(case, mirrored(columns).double(), dilation_map.double()))  # fmt: skip


@given(drawn_cases(rates=1), seeds)
def test_one_rate_is_the_same_rate_for_all_axes(device: torch.device, case: Case, seed: int) -> None:
    input, dilation_map, columns = make_tensors(case, torch.float32, seed=seed, device=device)
    each = replace(case, rates=case.axes)
    repeated = dilation_map.repeat_interleave(case.axes, 1)
    assert_same(unfold(case, input, dilation_map), unfold(each, input, repeated))
    assert_same(fold(case, columns, dilation_map), fold(each, columns, repeated))
    input, dilation_map, columns, repeated = (t.double() for t in (input, dilation_map, columns, repeated))
    grad_input, grad_map = unfold_backward(case, columns, input, dilation_map)
    grad_input_each, grad_maps = unfold_backward(each, columns, input, repeated)
    close(grad_input, grad_input_each)
    close(grad_map, grad_maps.unflatten(1, (-1, case.axes)).sum(2))
    for order in range(1, case.axes + 1):  # a derivative by the one rate is one by as many, in any sequence
        mixed = [o for o in orders(each, beyond=False) if sum(o) == order]
        by_rates = math.factorial(order) * sum(sample(each, input, repeated, o) for o in mixed)
        close(sample(case, input, dilation_map, [order]), by_rates)


@given(drawn_cases(source="rates"), seeds)
def test_axes_may_change_places(device: torch.device, case: Case, seed: int) -> None:
    input, dilation_map, _ = make_tensors(case, torch.float64, seed=seed, device=device)
    fields = ("size", "kernel_size", "stride", "padding", "dilation")
    turned = replace(case, **{field: getattr(case, field)[::-1] for field in fields})

    def turn(t: Tensor, *first: int) -> Tensor:
        """The axes that begin at each of the dimensions ``first``."""
        dims = list(range(t.dim()))
        for dim in first:
            dims[dim : dim + case.axes] = dims[dim : dim + case.axes][::-1]
        return t.permute(dims)

    turned_map = turn(dilation_map.unflatten(1, (case.groups, case.rates)).flip(2).flatten(1, 2), 2)
    actual = unfold(turned, turn(input, 2), turned_map)
    actual = actual.unflatten(2, turned.output_size).unflatten(1, (-1, *turned.kernel_size))
    close(turn(actual, 2, 2 + case.axes).reshape(case.columns_shape), unfold(case, input, dilation_map))


@given(drawn_cases(aligned=True, source="rates"), seeds)
def test_dilation_multiplies_the_map(device: torch.device, case: Case, seed: int) -> None:
    """Scaling the window by the rate or by ``dilation`` is the same, where both keep its centre."""
    kernel = tuple(k | 1 for k in case.kernel_size)  # odd, so that the centre is a pixel
    once = replace(case, kernel_size=kernel, dilation=(1,) * case.axes, size=tuple(n + 8 for n in case.size))
    twice = replace(
        once, dilation=(2,) * case.axes, padding=tuple(p + (k - 1) // 2 for p, k in zip(once.padding, kernel))
    )
    assert once.output_size == twice.output_size
    input, dilation_map, _ = make_tensors(once, torch.float32, seed=seed, device=device)
    assert_same(unfold(once, input, 2 * dilation_map), unfold(twice, input, dilation_map))


@given(drawn_cases(padding_mode="zeros", source="rates", aligned=False), seeds)
def test_padding_moves_the_windows(device: torch.device, case: Case, seed: int) -> None:
    """Padding is zeros around the image, whatever the rates."""
    input, dilation_map, columns = make_tensors(case, torch.float32, seed=seed, device=device)
    sizes = tuple(n + 2 * p for n, p in zip(case.size, case.padding, strict=True))
    padded = replace(case, size=sizes, padding=(0,) * case.axes)
    assert padded.output_size == case.output_size
    border = [p for p in reversed(case.padding) for _ in range(2)]
    assert_same(unfold(padded, F.pad(input, border), dilation_map), unfold(case, input, dilation_map))
    inner = F.pad(fold(padded, columns, dilation_map), [-p for p in border])
    expected = fold(case, columns, dilation_map)
    if device.type == "cuda":  # tiles add along the rows in memory, and padding makes these longer: other roundings
        assert_near(inner, expected.double())
    else:
        assert_same(inner, expected)


@given(drawn_cases(), seeds)
def test_samples_lie_between_the_pixels_and_zero(device: torch.device, case: Case, seed: int) -> None:
    input, dilation_map, _ = make_tensors(case, torch.float32, seed=seed, device=device)
    columns = unfold(case, input, dilation_map)
    slack = 1 + 1e-6
    assert columns.max() <= max(input.max().item(), 0.0) * slack
    assert columns.min() >= min(input.min().item(), 0.0) * slack


@given(drawn_cases(), seeds, st.permutations(range(5)), st.booleans())
def test_strides_do_not_matter(device: torch.device, case: Case, seed: int, order: list[int], spread: bool) -> None:
    tensors = make_tensors(case, torch.float32, seed=seed, device=device)

    def laid_out(t: Tensor) -> Tensor:
        dims = [d for d in order if d < t.dim()]
        inverse = sorted(range(t.dim()), key=dims.__getitem__)
        t = t.permute(dims).contiguous().permute(inverse)
        return t.repeat_interleave(2, -1)[..., ::2] if spread else t

    changed = Tensors(*map(laid_out, tensors))
    assert_same(changed, tensors)
    assert_same(unfold(case, *changed[:2]), unfold(case, *tensors[:2]))
    assert_same(fold(case, changed[2], changed[1]), fold(case, tensors[2], tensors[1]))
    assert_same(unfold_backward(case, changed[2], *changed[:2]), unfold_backward(case, tensors[2], *tensors[:2]))


@given(drawn_cases(), seeds, st.integers(2, 4))
def test_threads_do_not_matter(case: Case, seed: int, number: int) -> None:
    tensors = make_tensors(case, torch.float32, seed=seed)
    threads = torch.get_num_threads()
    results = []
    try:
        for n in (1, number):
            torch.set_num_threads(n)
            results.append(
                [
                    unfold(case, *tensors[:2]),
                    fold(case, tensors[2], tensors[1]),
                    *unfold_backward(case, tensors[2], *tensors[:2]),
                ]
            )
    finally:
        torch.set_num_threads(threads)
    assert_same(results[1], results[0])


@given(
    drawn_cases(padding_mode="zeros"),  # in the other modes too large a number is any place of the image
    seeds,
    st.lists(
        st.floats(width=32) | st.sampled_from([0.0, -0.0, 1e30, -1e30, 3.4e38, 2.0**31, 2.0**63]),
        min_size=8,
        max_size=8,
    ),
)
def test_any_rates(device: torch.device, case: Case, seed: int, values: list[float]) -> None:
    """Every float there is, NaN and infinity included, gives what the reference gives; offsets too."""
    input, positions, columns = make_tensors(case, torch.float32, seed=seed, device=device)
    index = torch.randint(len(values), positions.shape, generator=torch.Generator().manual_seed(seed)).to(device)
    positions = torch.where(index % 2 == 0, torch.tensor(values, device=device)[index], positions)
    assert_near(unfold(case, input, positions), unfold_reference(case, input.double(), positions.double()))
    assert_near(fold(case, columns, positions), fold_reference(case, columns.double(), positions.double()))
    grad_input, grad_positions = unfold_backward(case, columns, input, positions)
    assert not grad_input.isnan().any()
    finite = by_mover(case, positions).isfinite()
    assert torch.equal(~by_mover(case, grad_positions).isnan(), finite.all(3, keepdim=True).expand_as(finite))
