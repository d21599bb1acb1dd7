"""Sizes, counts and offsets at and around 2^31, 2^32 and 2^63, and memory that is written where it should be.

Meta tensors have any size. Real ones of more than 2^31 elements take 7 to 13 GB and some minutes: DDU_LARGE=1 asks for
them; on a GPU of 40 GB they run without.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cases import (
    DTYPES,
    OPERATORS,
    Case,
    as_list,
    assert_bits,
    assert_near,
    cases,
    make_tensors,
    operator,
    operators,
    pick,
)
from processes import python

INT64_MAX = 2**63 - 1


def has_memory() -> bool:
    return torch.cuda.is_available() and torch.cuda.get_device_properties(0).total_memory > 40 << 30


asked = pytest.mark.skipif(
    not os.environ.get("DDU_LARGE"), reason="DDU_LARGE=1 asks for tests that take 13 GB of memory"
)
big_gpu = pytest.mark.skipif(not has_memory(), reason="no GPU with 40 GB of memory")
large = pytest.mark.parametrize("name", [pytest.param("cpu", marks=asked), pytest.param("cuda", marks=big_gpu)])


# ---- Sizes of results ----

AROUND = [2**31 - 1, 2**31, 2**31 + 1, 2**32 - 1, 2**32, 2**32 + 1, 2**40 + 1]


def sizes(elements: int) -> dict[str, Case]:
    """Problems in which one of the tensors has about as many elements, and the others few, or not many more."""
    row = Case("row", 1, 1, (1, elements), (1, 1))
    return {
        "input": Case("input", 1, 1, (1, elements), (1, 1), (1, elements)),
        "input and columns": row,
        "columns": Case("columns", 1, 1, (1, 1), (1, elements), padding=(0, elements // 2)),
        "batch": Case("batch", elements, 1, (1, 1), (1, 1)),
        "channels": Case("channels", 1, elements, (1, 1), (1, 1)),
        "map": Case("map", 1, elements // 2, (1, 1), (1, 1), groups=elements // 2, rates=2),
    }


@operators
@pytest.mark.parametrize("elements", AROUND)
@pytest.mark.parametrize("what", sizes(1))
def test_shapes(name: str, elements: int, what: str) -> None:
    case = sizes(elements)[what]
    shapes = {"input": case.input_shape, "columns": case.columns_shape, "dilation_map": case.map_shape}
    tensors = [torch.empty(shapes[argument], device="meta", dtype=torch.float16) for argument in OPERATORS[name]]
    results = as_list(operator(name, case)(*tensors))
    expected = {
        "unfold": [case.columns_shape],
        "sample": [case.columns_shape],
        "dynamic_dilation_unfold": [case.columns_shape],
        "fold": [case.input_shape],
        "splat": [case.input_shape],
        "dynamic_dilation_fold": [case.input_shape],
        "unfold_backward": [case.input_shape, case.map_shape],
        "sample_backward": [case.input_shape, case.map_shape],
        "dot": [case.dot_shape],
    }
    assert [tuple(result.shape) for result in results] == expected[name]


# ---- What kernels make of sizes ----


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("name", ["unfold", "sample", "dot", "unfold_backward", "sample_backward"])
@pytest.mark.parametrize("height, width", [(2**62, 1), (1, 2**61), (2**60, 5), (2**31, 2**31), (2**57, 1), (2**55, 3)])
def test_an_image_with_its_border_does_not_wrap_around(name: str, device: str, height: int, width: int) -> None:
    """One number in memory can be an image of 2^62 rows; the copy with a border around it was counted in 64 bits."""
    case = Case("tall", 1, 1, (height, width), (1, 1), (height, width))
    shapes = {"input": case.input_shape, "columns": case.columns_shape, "dilation_map": case.map_shape}
    one = torch.ones((1, 1, 1, 1), device=device)
    tensors = [
        one.expand(shapes[argument]) if argument != "columns" else one[0].expand(shapes["columns"])
        for argument in OPERATORS[name]
    ]
    with pytest.raises(
        RuntimeError, match=r"^\w+\(\): expected the (number of pixels|bytes for the image) below 2\^63"
    ):
        operator(name, case)(*tensors)


def test_columns_whose_bytes_cannot_be_counted_are_refused() -> None:
    case = Case("rows", 1, 1, (1, 1), (1, 2**58), padding=(0, 2**57))
    columns = torch.ones(1, 1, 1).expand(case.columns_shape)
    dilation_map = torch.ones(case.map_shape)
    with pytest.raises(RuntimeError, match=r"^dot\(\): expected the bytes for columns below 2\^63, but got \d+ \* 64"):
        operator("dot", case)(columns, torch.ones(1, 1, 1, 1), dilation_map)


@pytest.mark.parametrize("name", ["sample", "splat", "dot"])
def test_the_order_of_a_derivative_does_not_wrap_around(name: str) -> None:
    """The gradient of an order that is the largest int asked for the one after it."""
    case = Case("small", padding=(1, 1), rates=2)
    tensors = make_tensors(case).requires_grad()
    for order in ([INT64_MAX, 0], [0, INT64_MAX], [INT64_MAX, INT64_MAX]):
        taken = pick(name, tensors)
        result = operator(name, case, order)(*taken)
        assert result.count_nonzero() == 0
        for gradient in torch.autograd.grad(result.sum(), taken, allow_unused=True):
            assert gradient is None or gradient.count_nonzero() == 0


PROGRAM = """
import resource, torch, ddu_ops
def used():
    return int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()
def call(taps):
    unfolded = torch.ops.ddu.unfold(torch.ones(1, 1, 1, 1), [taps, 1], torch.ones(1, 1, 1, 1), 1, [taps // 2, 0])
    assert unfolded.shape == (1, taps, 1) and unfolded.sum() == 1, unfolded
    unfolded = torch.ops.ddu.unfold(torch.ones(1, 1, 1, 1), [1, taps], torch.ones(1, 1, 1, 1), 1, [0, taps // 2])
    assert unfolded.shape == (1, taps, 1) and unfolded.sum() == 1, unfolded
torch.set_num_threads(1)
call(3)
limit = used() + (256 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
call(2**20 + 1)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")
def test_a_kernel_of_many_taps_takes_no_memory_for_their_places() -> None:
    """They took 1.5 KiB a tap, for columns of 4 bytes a tap."""
    python("-c", PROGRAM)


# ---- Every element is written ----


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Memory that torch hands out holds NaN."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert torch.empty(100).isnan().all()
    yield
    torch.use_deterministic_algorithms(before)


@operators
@cases
@pytest.mark.parametrize("dtype, map_dtype", [DTYPES["float64"], DTYPES["float32"], DTYPES["bfloat16_float32_map"]])
def test_no_result_shows_what_was_in_its_memory(
    name: str, case: Case, dtype: torch.dtype, map_dtype: torch.dtype, poisoned: None, device: torch.device
) -> None:
    """Nor what was in that of a copy or a sum. That no element is written twice is for ThreadSanitizer: `make tsan`."""
    results = as_list(operator(name, case)(*pick(name, make_tensors(case, dtype, map_dtype, device))))
    assert all(result.isfinite().all() for result in results)
    torch.use_deterministic_algorithms(False)
    if device.type == "cpu":
        assert_bits(as_list(operator(name, case)(*pick(name, make_tensors(case, dtype, map_dtype)))), results)


# ---- Real ones ----


def halves(device: str, *shape: int) -> Tensor:
    """Random numbers, repeated: drawing many takes minutes."""
    some = torch.randn(65_537, generator=torch.Generator().manual_seed(0)).half().to(device)
    count = math.prod(shape)
    return some.repeat(count // some.numel() + 1)[:count].view(shape)


@large
def test_a_real_input_beyond_two_to_the_31(name: str) -> None:
    """On the CPU all rows are one in memory; the copy that the kernels read takes 8.6 GB."""
    case = Case("input", 1, 1, (2**16, 2**15 + 1), stride=(2**13 - 1, 2**12 - 1))
    assert math.prod(case.input_shape) > 2**31
    row = halves(name, 1, 1, 1, case.size[1])
    dilation_map = halves(name, *case.map_shape).abs()
    input = row.expand(case.input_shape)
    actual = operator("unfold", case)(input.contiguous() if name == "cuda" else input, dilation_map)
    actual = actual.view(9, *case.output_size)
    # What the last two windows of both axes see, and the last one alone.
    first = [(n - 2) * s for n, s in zip(case.output_size, case.stride)]
    last = Case("last", 1, 1, (case.size[0] - first[0], case.size[1] - first[1]), stride=case.stride)
    expected = operator("unfold", last)(
        row[..., first[1] :].expand(last.input_shape), dilation_map[..., -2:, -2:].contiguous()
    )
    assert last.output_size == (2, 2)
    assert torch.equal(actual[:, -1, -1], expected.view(9, 2, 2)[:, 1, 1])


@large
def test_real_columns_beyond_two_to_the_31(name: str) -> None:
    """Few pixels, 2^18 taps, some thousand positions."""
    case = Case("columns", 1, 1, (64, 64), (512, 512), padding=(269, 269))
    assert math.prod(case.columns_shape) > 2**31
    input, dilation_map = halves(name, *case.input_shape) / 64, halves(name, *case.map_shape) / 4
    columns = operator("unfold", case)(input, dilation_map)
    height, width = case.output_size
    corners = Case("corners", 1, 1, case.size, case.kernel_size, (height - 1, width - 1), case.padding)
    assert corners.output_size == (2, 2)
    rates = dilation_map[..., :: height - 1, :: width - 1].contiguous()
    expected = operator("unfold", corners)(input, rates)
    actual = columns.view(-1, height, width)[:, :: height - 1, :: width - 1].reshape(expected.shape)
    assert torch.equal(actual, expected)
    grad_map = operator("dot", case, [1])(columns, input, dilation_map)
    expected = operator("dot", corners, [1])(actual, input, rates)
    assert expected.isfinite().all()
    assert_near(grad_map[..., :: height - 1, :: width - 1], expected.double())


@large
def test_a_real_map_beyond_two_to_the_31(name: str) -> None:
    """Two rates for each of 2^30 positions; as float32, which they are read in, 8.6 GB. Some are NaN, and so show."""
    side = 2**15 + 1
    case = Case("map", 1, 1, (1, 1), (1, 1), padding=(side // 2, side // 2), rates=2)
    assert math.prod(case.map_shape) > 2**31
    row = halves(name, 1, 1, 1, side)
    row[row > 1] = math.nan
    dilation_map = row.expand(case.map_shape)
    dilation_map = dilation_map.contiguous() if name == "cuda" else dilation_map
    columns = operator("unfold", case)(torch.ones(1, 1, 1, 1, device=name).half(), dilation_map)
    missing = columns.view(case.output_size).isnan()
    assert torch.equal(missing, row[0, 0].isnan().expand(case.output_size))
    assert columns.nansum() == (0 if row[0, 0, 0, side // 2].isnan() else 1)
