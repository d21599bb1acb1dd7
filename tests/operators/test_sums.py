"""Sums of windows: aggregation, correlation, their adjoints, pooling."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import ddu_ops
from cases import (
    CASES,
    PACKET_CASES,
    SMALL_CASES,
    Case,
    assert_bits,
    assert_near,
    by_tap,
    dtypes,
    make_tensors,
    unfold_reference,
)
from ddu_ops import _C, decompositions, reference

SLOTS = ("query", "input", "mask", "weight", "positions")


def mask_groups(case: Case) -> int:
    """A number of groups of the mask, another one from case to case; of whole packets where the channels are."""
    packet = 8 if case in PACKET_CASES else 1
    divisors = [m for m in range(1, max(case.channels, 1) + 1) if case.channels % (m * packet) == 0]
    return divisors[len(case.name) % len(divisors)]


def make_arguments(
    case: Case,
    dtype: torch.dtype = torch.float64,
    map_dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    *,
    kinks: bool = True,
) -> dict[str, Tensor]:
    """Every argument of the form."""
    input, positions, _ = make_tensors(case, dtype, map_dtype, device, kinks=kinks)
    generator = torch.Generator().manual_seed(3)
    shapes = {
        "query": (case.batch, case.channels, *case.output_size),
        "mask": (case.batch, mask_groups(case) * case.taps, *case.output_size),
        "weight": (case.batch, case.channels, case.taps),
    }
    drawn = {
        name: torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)
        for name, shape in shapes.items()
    }
    return {"input": input, "positions": positions, **drawn}


def window(case: Case) -> tuple[Any, ...]:
    return (case.source, case.kernel_size, *case.options)


def aggregate(case: Case, input: Tensor, mask: Tensor | None, positions: Tensor, weight: Any = None) -> Tensor:
    return torch.ops.ddu.aggregate(input, mask, weight, None, positions, *window(case))


def correlate(case: Case, query: Tensor, input: Tensor, positions: Tensor) -> Tensor:
    return torch.ops.ddu.correlate(query, input, positions, *window(case), mask_groups(case))


def scatter(case: Case, query: Tensor, mask: Tensor | None, positions: Tensor, weight: Any = None) -> Tensor:
    return torch.ops.ddu.scatter(query, mask, weight, None, case.size, positions, *window(case))


def sums_backward(case: Case, wanted: str, **a: Any) -> dict[str, Tensor]:
    """The gradients of the form that are wanted."""
    needs = [slot in wanted.split() for slot in SLOTS]
    results = torch.ops.ddu.sums_backward(
        a["query"], a["input"], a.get("mask"), a.get("weight"), None, a["positions"], *window(case), needs
    )
    for need, result in zip(needs, results, strict=True):
        assert need or result.numel() == 0
    return {slot: result for slot, need, result in zip(SLOTS, needs, results, strict=True) if need}


def form(case: Case, query: Tensor, input: Tensor, positions: Tensor, **factors: Tensor) -> Tensor:
    """The sum that all operators contract, of the reference's columns."""
    columns = unfold_reference(case, input, positions).reshape(case.batch, case.channels, case.taps, -1)
    product = columns * query.flatten(2).unsqueeze(2)
    if "mask" in factors:
        mask = factors["mask"].reshape(case.batch, mask_groups(case), case.taps, columns.shape[-1])
        product = product * mask.repeat_interleave(case.channels // mask_groups(case), 1)
    if "weight" in factors:
        product = product * factors["weight"].unsqueeze(3)
    return product.sum()


def expected(case: Case, wanted: str, **a: Tensor) -> dict[str, Tensor]:
    """The gradients of the form, by autograd of the reference."""
    leaves = {name: t.double().detach().requires_grad_() for name, t in a.items()}
    names = wanted.split()
    return dict(zip(names, torch.autograd.grad(form(case, **leaves), [leaves[n] for n in names]), strict=True))


FULL = [case for case in [*CASES, *PACKET_CASES] if case.batch and case.channels]
cases = pytest.mark.parametrize("case", CASES, ids=str)
full_cases = pytest.mark.parametrize("case", FULL, ids=str)
small_cases = pytest.mark.parametrize("case", SMALL_CASES, ids=str)
SOME = [
    c
    for c in FULL
    if c.name
    in ("lopsided", "deep", "line", "volume_three_rates", "offsets", "affine", "volume_affine", "border_volume")
]
some_cases = pytest.mark.parametrize("case", SOME, ids=str)


# ---- Values and first derivatives ----


@full_cases
@dtypes
def test_contractions_are_those_of_the_reference(
    case: Case, dtype: torch.dtype, map_dtype: torch.dtype, device: torch.device
) -> None:
    a = make_arguments(case, dtype, map_dtype, device)
    want = expected(case, "query input mask", **{k: v for k, v in a.items() if k != "weight"})
    assert_near(aggregate(case, a["input"], a["mask"], a["positions"]), want["query"])
    assert_near(scatter(case, a["query"], a["mask"], a["positions"]), want["input"])
    a.pop("mask"), a.pop("weight")
    assert_near(
        correlate(case, a["query"], a["input"], a["positions"]),
        reference.correlate(
            a["query"].double(), a["input"].double(), a["positions"].double(), *window(case),
            mask_groups=mask_groups(case),
        ),
    )  # fmt: skip


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("case", PACKET_CASES, ids=str)
def test_packets_go_through_the_kernels(case: Case) -> None:
    a = make_arguments(case, torch.float16, device="cuda")

    def launched(call: Callable[[], Any]) -> set[str]:
        before = _C.cuda_launches()
        call()
        return {name.split("<")[0] for name, count in _C.cuda_launches().items() if count > before[name]}

    assert "sums_kernel" in launched(lambda: aggregate(case, a["input"], a["mask"], a["positions"], a["weight"]))
    assert "sums_kernel" in launched(lambda: correlate(case, a["query"], a["input"], a["positions"]))
    assert "sums_input_kernel" in launched(lambda: scatter(case, a["query"], a["mask"], a["positions"], a["weight"]))
    pooled = [a["input"], a["positions"], *window(case)]
    assert launched(lambda: torch.ops.ddu.max_pool(*pooled)) == {"pool_kernel"}


def test_groups_that_reach_into_two_masks(device: torch.device) -> None:
    """Channels 8 to 15 share their rates, and the first four of them a mask with the channels before."""
    case = Case("packets_across", 1, 24, (5, 6), padding=(1, 1), groups=3)
    a = make_arguments(case, torch.float32, device=device)
    mask = a["mask"].repeat(1, 2, 1, 1)[:, : 2 * case.taps].clone()
    mask[:, case.taps :] += 1
    found = torch.ops.ddu.scatter(a["query"], mask, None, None, case.size, a["positions"], *window(case))
    columns = a["query"].flatten(2).unsqueeze(2) * mask.view(1, 2, 1, case.taps, -1).expand(-1, -1, 12, -1, -1).flatten(
        1, 2
    )
    want = reference.splat(columns.double().flatten(1, 2), case.size, a["positions"].double(), *window(case))
    assert_near(found, want)


@full_cases
@dtypes
def test_all_gradients_in_one_call(
    case: Case, dtype: torch.dtype, map_dtype: torch.dtype, device: torch.device
) -> None:
    a = make_arguments(case, dtype, map_dtype, device, kinks=False)
    wanted = " ".join(SLOTS)
    results, want = sums_backward(case, wanted, **a), expected(case, wanted, **a)
    for slot in SLOTS:
        assert_near(results[slot], want[slot])


@some_cases
@pytest.mark.parametrize("given", ["mask", "weight", ""])
def test_factors_may_be_left_out(case: Case, given: str, device: torch.device) -> None:
    a = make_arguments(case, device=device, kinks=False)
    kept = {k: v for k, v in a.items() if k in ("query", "input", "positions", given)}
    wanted = " ".join(kept)
    results, want = sums_backward(case, wanted, **kept), expected(case, wanted, **kept)
    for slot in kept:
        assert_near(results[slot], want[slot])
    mask, weight = kept.get("mask"), kept.get("weight")
    assert_near(aggregate(case, a["input"], mask, a["positions"], weight), want["query"])
    assert_near(scatter(case, a["query"], mask, a["positions"], weight), want["input"])


@some_cases
@pytest.mark.parametrize("slot", SLOTS)
def test_a_gradient_alone_is_that_among_all(case: Case, slot: str, device: torch.device) -> None:
    a = make_arguments(case, device=device)
    together = sums_backward(case, " ".join(SLOTS), **a)[slot]
    assert_near(sums_backward(case, slot, **a)[slot], together.double())


@cases
def test_sizes_of_zero(case: Case, device: torch.device) -> None:
    if case.batch and case.channels:
        return
    a = make_arguments(case, device=device)
    for slot, result in sums_backward(case, " ".join(SLOTS), **a).items():
        assert result.shape == a[slot].shape
        assert not result.any()
    assert aggregate(case, a["input"], a["mask"], a["positions"]).shape == a["query"].shape


@some_cases
def test_not_a_number_shows_and_stays_in_its_window(case: Case, device: torch.device) -> None:
    a = make_arguments(case, device=device)
    a["positions"].flatten()[1] = math.nan
    a["positions"].flatten()[-2] = math.inf
    want = expected(case, " ".join(SLOTS), **a)
    results = sums_backward(case, "query input mask weight positions", **a)
    for slot in SLOTS:
        assert_near(results[slot], want[slot])


# ---- Layouts and threads ----


def channels_last(tensor: Tensor) -> Tensor:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return tensor.contiguous(memory_format=formats[tensor.dim()])


@some_cases
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_channels_last_in_gives_channels_last_out(case: Case, dtype: torch.dtype, device: torch.device) -> None:
    if case.axes == 1:
        return
    a = make_arguments(case, dtype, torch.float32, device)
    last = {k: channels_last(v) if v.dim() == case.axes + 2 else v for k, v in a.items()}
    options = {"memory_format": torch.channels_last if case.axes == 2 else torch.channels_last_3d}
    pairs = [
        (aggregate(case, x["input"], x["mask"], x["positions"]), scatter(case, x["query"], x["mask"], x["positions"]))
        for x in (a, last)
    ]
    for plain, result in zip(*pairs, strict=True):
        assert result.is_contiguous(**options)
        assert_near(result, plain.double())
    together = [sums_backward(case, " ".join(SLOTS), **x) for x in (a, last)]
    for slot in SLOTS:
        assert_near(together[1][slot], together[0][slot].double())


@some_cases
def test_any_strides(case: Case, device: torch.device) -> None:
    a = make_arguments(case, device=device)
    want = sums_backward(case, " ".join(SLOTS), **a)
    strided = {
        k: v.repeat_interleave(2, -1)[..., ::2].transpose(0, -1).contiguous().transpose(0, -1) for k, v in a.items()
    }
    results = sums_backward(case, " ".join(SLOTS), **strided)
    for slot in SLOTS:
        assert_near(results[slot], want[slot])


@some_cases
def test_no_number_of_threads_changes_a_bit(case: Case) -> None:
    a = make_arguments(case, torch.float32)
    before = torch.get_num_threads()
    outcomes = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            outcomes.append(list(sums_backward(case, " ".join(SLOTS), **a).values()))
    finally:
        torch.set_num_threads(before)
    for outcome in outcomes[1:]:
        assert_bits(outcome, outcomes[0])


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
def test_no_columns_forward_or_backward(last: bool) -> None:
    """Memory is in proportion to arguments and results."""
    case = Case("large_kernel", 1, 32, (24, 24), (7, 7), padding=(3, 3))
    a = make_arguments(case, torch.float32)
    tensors = [a["query"], a["input"], a["positions"]]
    tensors = [(channels_last(t) if last else t).requires_grad_() for t in tensors]

    def step() -> None:
        query, input, positions = tensors
        scores = torch.ops.ddu.correlate(query, input, positions, *window(case), 1)
        aggregate(case, input, scores, positions).sum().backward()

    step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    events = profile.profiler.kineto_results.events()  # type: ignore[union-attr]
    peak = max(itertools.accumulate(event.nbytes() for event in events if event.name() == "[memory]"))
    results = 2 * sum(t.nbytes for t in tensors) + 4 * a["mask"].nbytes
    columns = math.prod(case.columns_shape) * 4
    assert peak < 3 * results < columns


# ---- Derivatives of every order, transforms ----


def functions(case: Case, a: dict[str, Tensor]) -> dict[str, tuple[Callable[..., Any], tuple[Tensor, ...]]]:
    return {
        "aggregate": (lambda *x: aggregate(case, *x), (a["input"], a["mask"], a["positions"])),
        "depthwise": (lambda x, w, p: aggregate(case, x, None, p, w), (a["input"], a["weight"], a["positions"])),
        "correlate": (lambda *x: correlate(case, *x), (a["query"], a["input"], a["positions"])),
        "scatter": (lambda *x: scatter(case, *x), (a["query"], a["mask"], a["positions"])),
        "max_pool": (
            lambda *x: torch.ops.ddu.max_pool(*x, *window(case))[0],
            (a["input"], a["positions"]),
        ),
    }


names = pytest.mark.parametrize("name", ["aggregate", "depthwise", "correlate", "scatter", "max_pool"])


@names
@small_cases
def test_gradcheck(name: str, case: Case) -> None:
    function, tensors = functions(case, make_arguments(case, kinks=False))[name]
    tensors = tuple(t.requires_grad_() for t in tensors)
    assert torch.autograd.gradcheck(
        function, tensors, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True,
        fast_mode=True,
    )  # fmt: skip


@names
@small_cases
def test_gradgradcheck(name: str, case: Case) -> None:
    function, tensors = functions(case, make_arguments(case, kinks=False))[name]
    tensors = tuple(t.requires_grad_() for t in tensors)
    assert torch.autograd.gradgradcheck(function, tensors, check_fwd_over_rev=True, fast_mode=True)


@names
def test_third_derivatives(name: str) -> None:
    case = SMALL_CASES[2]
    function, tensors = functions(case, make_arguments(case, kinks=False))[name]

    def twice(*x: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(function(*x).square().sum(), x, create_graph=True)

    tensors = tuple(t.requires_grad_() for t in tensors)
    assert torch.autograd.gradgradcheck(twice, tensors, fast_mode=True)


@names
@some_cases
def test_vmap_is_a_loop(name: str, case: Case) -> None:
    function, tensors = functions(case, make_arguments(case))[name]
    stacks = [torch.stack([t, t.flip(0), t * 0.5]) for t in tensors]
    mapped = torch.func.vmap(function)(*stacks)
    assert_near(mapped, torch.stack([function(*x) for x in zip(*stacks, strict=True)]))
    first = torch.func.vmap(function, in_dims=(0, *[None] * (len(tensors) - 1)))(stacks[0], *tensors[1:])
    assert_near(first, torch.stack([function(x, *tensors[1:]) for x in stacks[0]]))


@names
@pytest.mark.parametrize("case", SOME[:3], ids=str)
def test_opcheck(name: str, case: Case) -> None:
    a = {k: v.requires_grad_() for k, v in make_arguments(case, torch.float32).items()}
    options = window(case)
    calls: dict[str, tuple[Any, tuple[Any, ...]]] = {
        "aggregate": (torch.ops.ddu.aggregate, (a["input"], a["mask"], None, None, a["positions"], *options)),
        "depthwise": (torch.ops.ddu.aggregate, (a["input"], None, a["weight"], None, a["positions"], *options)),
        "correlate": (
            torch.ops.ddu.correlate,
            (a["query"], a["input"], a["positions"], *options, mask_groups(case)),
        ),
        "scatter": (
            torch.ops.ddu.scatter,
            (a["query"], a["mask"], None, None, case.size, a["positions"], *options),
        ),
        "max_pool": (torch.ops.ddu.max_pool, (a["input"], a["positions"], *options)),
    }
    operator, arguments = calls[name]
    torch.library.opcheck(operator.default, arguments)


@pytest.mark.parametrize("case", SOME[:3], ids=str)
def test_opcheck_of_the_backward(case: Case) -> None:
    a = {k: v.requires_grad_() for k, v in make_arguments(case, torch.float32).items()}
    arguments = (a["query"], a["input"], a["mask"], a["weight"], None, a["positions"], *window(case), [True] * 5)
    torch.library.opcheck(torch.ops.ddu.sums_backward.default, arguments)


@names
@some_cases
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_decompositions_are_the_kernels(name: str, case: Case, dtype: torch.dtype) -> None:
    function, tensors = functions(case, make_arguments(case, dtype))[name]
    traced = torch.fx.experimental.proxy_tensor.make_fx(function, decomposition_table=decompositions())(*tensors)
    targets = {n.target.namespace for n in traced.graph.nodes if isinstance(n.target, torch._ops.OpOverload)}
    assert targets <= {"aten", "prims"}
    result, want = traced(*tensors), function(*tensors)
    assert (result.dtype, result.stride()) == (want.dtype, want.stride())
    assert_near(result, want.double())


# ---- What models call ----


def attention(query: Tensor, key: Tensor, value: Tensor, rates: Tensor, heads: int) -> Tensor:
    options: dict[str, Any] = {"kernel_size": 3, "dilation_map": rates, "padding": 1}
    scores = ddu_ops.dynamic_dilation_correlate2d(query, key, **options, mask_groups=heads)
    weights = scores.unflatten(1, (heads, 9)).softmax(2).flatten(1, 2)
    return ddu_ops.dynamic_dilation_aggregate2d(value, weights, **options)


def plain_attention(query: Tensor, key: Tensor, value: Tensor, rates: Tensor, heads: int) -> Tensor:
    shape = (len(query), heads, query.shape[1] // heads)
    keys, values = (
        ddu_ops.dynamic_dilation_unfold(x, 3, rates, padding=1).reshape(*shape, 9, -1) for x in (key, value)
    )
    weights = torch.einsum("bhcl,bhctl->bhtl", query.reshape(*shape, -1), keys).softmax(2)
    return torch.einsum("bhtl,bhctl->bhcl", weights, values).reshape(query.shape)


@pytest.fixture
def qkv() -> tuple[Tensor, ...]:
    query, key, value = torch.randn(3, 2, 8, 6, 7, dtype=torch.float64)
    rates = torch.rand(2, 1, 6, 7, dtype=torch.float64) * 3
    return tuple(t.requires_grad_() for t in (query, key, value, rates))


def test_attention_is_that_of_columns(qkv: tuple[Tensor, ...]) -> None:
    result, want = attention(*qkv, heads=4), plain_attention(*qkv, heads=4)
    assert_near(result, want)
    grads = [torch.autograd.grad(r.square().sum(), qkv) for r in (result, want)]
    for actual, expected_grad in zip(*grads, strict=True):
        assert_near(actual, expected_grad)


def test_attention_compiles_in_one_graph_for_any_size(qkv: tuple[Tensor, ...]) -> None:
    compiled = torch.compile(attention, fullgraph=True, dynamic=True, backend="aot_eager")
    for size in ((6, 7), (5, 9)):
        x = tuple(F.interpolate(t.detach(), size).requires_grad_() for t in qkv)
        result, want = compiled(*x, heads=2), attention(*x, heads=2)
        assert_near(result, want)
        grads = [torch.autograd.grad(r.square().sum(), x) for r in (result, want)]
        for actual, expected_grad in zip(*grads, strict=True):
            assert_near(actual, expected_grad)


PUBLIC = [c for c in FULL if c.name in ("lopsided", "line", "volume", "offsets", "volume_offsets", "reflection")]


@pytest.mark.parametrize("unbatched", [False, True], ids=["batched", "unbatched"])
@pytest.mark.parametrize("case", PUBLIC, ids=str)
def test_public_functions(case: Case, unbatched: bool, device: torch.device) -> None:
    a = make_arguments(case, device=device)
    if unbatched:
        a = {k: v[0] for k, v in a.items()}
    batched = {k: v[None] for k, v in a.items()} if unbatched else a
    prefix = "deform" if case.source == "offsets" else "dynamic_dilation"
    options = (case.kernel_size, a["positions"], *case.window)
    aggregated = getattr(ddu_ops, f"{prefix}_aggregate{case.axes}d")(a["input"], a["mask"], *options, **case.by_name)
    correlated = getattr(ddu_ops, f"{prefix}_correlate{case.axes}d")(
        a["query"], a["input"], *options, mask_groups=mask_groups(case), **case.by_name
    )
    want_aggregated = reference.aggregate(batched["input"], batched["mask"], batched["positions"], *window(case))
    want_correlated = reference.correlate(
        batched["query"], batched["input"], batched["positions"], *window(case), mask_groups=mask_groups(case)
    )
    assert_near(aggregated, want_aggregated[0] if unbatched else want_aggregated)
    assert_near(correlated, want_correlated[0] if unbatched else want_correlated)


@pytest.mark.parametrize("case", PUBLIC, ids=str)
def test_modules_are_the_functions(case: Case) -> None:
    a, groups = make_arguments(case), mask_groups(case)
    offsets = case.source == "offsets"
    function, module = ("deform", "Deform") if offsets else ("dynamic_dilation", "DynamicDilation")
    window = (case.kernel_size, *case.window)

    def both(stem: str, name: str, tensors: tuple[str, ...], **by_name: Any) -> None:
        by_name = case.by_name | by_name
        layer = getattr(ddu_ops, f"{module}{name}{case.axes}d")(*window, **by_name)
        call = getattr(ddu_ops, f"{function}_{stem}{case.axes}d")
        leading = [a[tensor] for tensor in tensors]
        want = call(*leading, case.kernel_size, a["positions"], *case.window, **by_name)
        result = layer(*leading, a["positions"])
        torch.testing.assert_close(result, want, rtol=0, atol=0, equal_nan=True)

    both("aggregate", "Aggregate", ("input", "mask"))
    both("correlate", "Correlate", ("query", "input"), mask_groups=groups)
    if not offsets:
        both("max_pool", "MaxPool", ("input",), return_indices=True, padding_mode="ignore")


def test_numbers_and_broadcast_arguments() -> None:
    input, mask = torch.randn(2, 4, 6, 7), torch.randn(1, 18, 6, 7)
    rates = torch.full((2, 1, 6, 7), 1.5)
    want = ddu_ops.dynamic_dilation_aggregate2d(input, mask.expand(2, -1, -1, -1), 3, rates, padding=1)
    assert_bits(ddu_ops.dynamic_dilation_aggregate2d(input, mask, 3, 1.5, padding="same"), want)


def test_a_softmax_in_float32_beside_a_half_input() -> None:
    input, query = torch.randn(2, 2, 4, 6, 7, dtype=torch.bfloat16)
    mask = torch.randn(2, 9, 6, 7, requires_grad=True)
    result = ddu_ops.dynamic_dilation_aggregate2d(input, mask, 3, 1.5, padding=1)
    assert result.dtype == torch.bfloat16
    result.sum().backward()
    assert mask.grad is not None and mask.grad.dtype == torch.float32
    assert ddu_ops.dynamic_dilation_correlate2d(query.float(), input, 3, 1.5, padding=1).dtype == torch.bfloat16


def test_autocast_leaves_positions_in_float32() -> None:
    query, input = torch.randn(2, 2, 4, 6, 7)
    rates = torch.rand(2, 1, 6, 7, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        scores = ddu_ops.dynamic_dilation_correlate2d(query, input, 3, rates, padding=1)
        result = ddu_ops.dynamic_dilation_aggregate2d(input, scores.softmax(1), 3, rates, padding=1)
        pooled = ddu_ops.dynamic_dilation_max_pool2d(input, 3, rates, 1, 1)
        result.sum().backward()
    assert (scores.dtype, result.dtype, pooled.dtype) == (torch.bfloat16,) * 3
    assert rates.grad is not None and rates.grad.dtype == torch.float32


# ---- Pooling ----


@full_cases
@dtypes
@pytest.mark.parametrize("ignore", [True, False], ids=["ignore", "mode"])
def test_max_pool_is_the_references(
    case: Case, dtype: torch.dtype, map_dtype: torch.dtype, ignore: bool, device: torch.device
) -> None:
    input, positions, _ = make_tensors(case, dtype, map_dtype, device)
    mode = "ignore" if ignore else case.padding_mode
    options = (case.source, case.kernel_size, *case.options[:-1], mode)
    values, taps = torch.ops.ddu.max_pool(input, positions, *options)
    want, want_taps = reference.max_pool(input.double(), positions.double(), *options)
    empty = want_taps < 0
    assert torch.equal(taps < 0, empty)
    assert torch.equal(values.isneginf(), empty)
    assert_near(values.masked_fill(empty, 0), want.masked_fill(empty, 0))
    if dtype == torch.float64:
        columns = by_tap(case, unfold_reference(case, input, positions)).flatten(1, 2)
        chosen = columns.gather(2, taps.clamp_min(0).unsqueeze(2)).squeeze(2)
        assert_near(chosen.masked_fill(empty, 0), want.masked_fill(empty, 0))


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("options", [(3,), (2, 1), (3, 2, 1), (3, 1, 1, 2)], ids=str)
def test_rates_of_one_are_torchs_pooling(axes: int, options: tuple[int, ...]) -> None:
    input = torch.randn(2, 4, *(7, 9, 8)[:axes]).requires_grad_()
    pool = getattr(ddu_ops, f"dynamic_dilation_max_pool{axes}d")
    k, s, p, d = (*options, *(options[0], 0, 1)[len(options) - 1 :])[:4]
    result = pool(input, k, 1.0, s, p, d)
    want = getattr(F, f"max_pool{axes}d")(input, k, s, p, d)
    assert_bits(result, want)
    grads = [torch.autograd.grad(r.square().sum(), input)[0] for r in (result, want)]
    torch.testing.assert_close(*grads)


def test_of_equal_samples_the_first_counts_and_the_last_nan() -> None:
    input = torch.zeros(1, 1, 3, 3)
    assert ddu_ops.dynamic_dilation_max_pool2d(input, 3, 1.0, return_indices=True)[1].item() == 0
    input[0, 0, 1, 1] = input[0, 0, 2, 0] = math.nan
    values, taps = ddu_ops.dynamic_dilation_max_pool2d(input, 3, 1.0, return_indices=True)
    assert values.isnan().item()
    assert taps.item() == 6


def test_infinite_pixels_spoil_no_gradient_of_other_taps() -> None:
    input = torch.tensor([[[1.0, 2.0, -math.inf, 0.5, 3.0, 1.0]]], requires_grad=True)
    rates = torch.ones(1, 1, 4, requires_grad=True)
    ddu_ops.dynamic_dilation_max_pool1d(input, 3, rates, 1).sum().backward()
    assert input.grad is not None and rates.grad is not None
    assert input.grad.tolist() == [[[0, 2, 0, 0, 2, 0]]]
    assert rates.grad[0, 0, 2:].isfinite().all()


# ---- Errors ----


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda x, m, r: ddu_ops.dynamic_dilation_aggregate2d(x, m[:, :8], 3, r, padding=1), "expected mask of shape"),
        (lambda x, m, r: ddu_ops.dynamic_dilation_aggregate2d(x, m.repeat(1, 3, 1, 1), 3, r, padding=1), "divides the"),
        (lambda x, m, r: ddu_ops.dynamic_dilation_aggregate2d(x, m[..., :5], 3, r, padding=1), "expected mask of"),
        (lambda x, m, r: ddu_ops.dynamic_dilation_aggregate2d(x, m.double(), 3, r, padding=1), "expected mask of type"),
        (lambda x, m, r: ddu_ops.dynamic_dilation_aggregate2d(x, m, 3, r[..., :5], padding=1), "expected dilation_map"),
        (lambda x, m, r: ddu_ops.dynamic_dilation_aggregate2d(x, m.long(), 3, r, padding=1), "expected mask of type"),
        (lambda x, m, r: ddu_ops.dynamic_dilation_correlate2d(x[:, :2], x, 3, r, padding=1), "expected query of shape"),
        (
            lambda x, m, r: ddu_ops.dynamic_dilation_correlate2d(x, x, 3, r, padding=1, mask_groups=3),
            "expected mask_groups to divide the 4 channels of input, but got 3",
        ),
        (
            lambda x, m, r: ddu_ops.dynamic_dilation_correlate2d(x, x, 3, r, padding=1, mask_groups=0),
            "expected mask_groups to be at least 1, but got 0",
        ),
        (lambda x, m, r: ddu_ops.dynamic_dilation_max_pool2d(x, 3, r, 1, 1, padding_mode="no"), "padding_mode"),
        (lambda x, m, r: ddu_ops.dynamic_dilation_max_pool2d(x[0, 0], 3, r, 1, 1), "expected input of shape"),
    ],
)
def test_errors_name_the_argument(call: Callable[..., Any], message: str) -> None:
    input, mask, rates = torch.randn(2, 4, 6, 7), torch.randn(2, 9, 6, 7), torch.ones(2, 1, 6, 7)
    with pytest.raises(RuntimeError, match=message):
        call(input, mask, rates)
    with pytest.raises(RuntimeError, match=message):
        call(input.to("meta"), mask.to("meta"), rates.to("meta"))


# ---- Operations ----


def test_flops_are_the_multiply_adds() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    import ddu_ops.flops  # noqa: F401

    case = next(c for c in CASES if c.name == "lopsided")
    a = make_arguments(case, torch.float32)
    entries = case.batch * case.channels * case.taps * math.prod(case.output_size)

    def count(call: Callable[[], object]) -> int:
        with FlopCounterMode(display=False) as counter:
            call()
        return counter.get_total_flops() // entries

    sample = 4 * 2
    assert count(lambda: aggregate(case, a["input"], a["mask"], a["positions"])) == sample + 2
    assert count(lambda: aggregate(case, a["input"], a["mask"], a["positions"], a["weight"])) == sample + 3
    assert count(lambda: correlate(case, a["query"], a["input"], a["positions"])) == sample + 2
    assert count(lambda: scatter(case, a["query"], a["mask"], a["positions"])) == sample + 1
    assert count(lambda: sums_backward(case, "mask", **a)) == sample + 2
    assert count(lambda: sums_backward(case, "input positions", **a)) == 2 + sample + (sample + 2)
    assert count(lambda: torch.ops.ddu.max_pool(a["input"], a["positions"], *window(case))) == sample
