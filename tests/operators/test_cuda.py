"""What only CUDA has: kernels for large problems, fixed point sums, graphs, streams, 64-bit offsets.

The other files run on CUDA too, where there is one. Their sizes take the general kernels (NOTE [ CUDA paths ]), and the
fast ones only where they are told to (cases.taking).
"""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from cases import (
    DTYPES,
    Case,
    assert_bits,
    assert_near,
    dot,
    flat_map,
    fold,
    make_tensors,
    unfold,
    unfold_backward,
    unfold_reference,
)
from processes import python

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

# More than 2^20 entries of columns and 16 channels in a group: the fast kernels.
LARGE_CASES = [
    Case("large", 1, 72, (45, 61), padding=(1, 1)),
    Case("whole_tiles", 2, 64, (32, 64), padding=(1, 1)),
    Case("two_rates", 2, 40, (40, 37), (3, 2), padding=(1, 1), groups=2, rates=2),
    Case("large_kernel", 1, 33, (30, 33), (7, 6), padding=(3, 2), dilation=(1, 2)),
    Case("strides", 1, 50, (80, 90), (3, 5), (1, 2), (2, 0), aligned=False, rates=2),
    # Boxes that shared memory has room for with a part of the channels only, and with none.
    Case("wide_windows", 1, 24, (72, 96), padding=(4, 4), dilation=(4, 4)),
    Case("far", 1, 24, (72, 96), padding=(6, 8), dilation=(6, 8)),
    # Blocks with several packets of channels, the last of which is not full: in float32 and, with others, in half types.
    Case("part_of_a_packet", 1, 31, (180, 180), padding=(1, 1)),
]

large_cases = pytest.mark.parametrize("case", LARGE_CASES, ids=str)
types = {name: pair for name, pair in DTYPES.items() if name != "float64"}
fast_dtypes = pytest.mark.parametrize("dtype, map_dtype", types.values(), ids=types.keys())


@pytest.fixture(params=[False, True], ids=["default", "deterministic"])
def deterministic(request):
    torch.use_deterministic_algorithms(request.param)
    yield request.param
    torch.use_deterministic_algorithms(False)


def reference_gradients(case, tensors):
    input, dilation_map = (t.double().requires_grad_() for t in (tensors.input, tensors.dilation_map))
    columns = unfold_reference(case, input, dilation_map)
    return columns.detach(), *torch.autograd.grad(columns, (input, dilation_map), tensors.columns.double())


@large_cases
@fast_dtypes
def test_values_and_gradients(case, dtype, map_dtype, deterministic):
    tensors = make_tensors(case, dtype, map_dtype, "cuda")
    columns, by_input, by_map = reference_gradients(case, tensors)
    assert_near(unfold(case, tensors.input, tensors.dilation_map), columns)
    grad_input, grad_map = unfold_backward(case, tensors.columns, tensors.input, tensors.dilation_map)
    assert_near(grad_input, by_input)
    assert_near(grad_map, by_map)
    assert_near(fold(case, tensors.columns, tensors.dilation_map), by_input)
    for rate in range(case.rates):
        order = [int(rate == r) for r in range(case.rates)]
        actual = dot(case, tensors.columns, tensors.input, tensors.dilation_map, order)
        assert_near(actual, by_map.unflatten(1, (case.groups, case.rates))[:, :, rate])


@large_cases
def test_a_map_of_ones_is_f_unfold(case):
    if not case.aligned:
        pytest.skip("centred elsewhere")
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        input = make_tensors(case, dtype, device="cuda").input
        expected = F.unfold(input, case.kernel_size, case.dilation, case.padding, case.stride)
        assert torch.equal(unfold(case, input, flat_map(case, 1.0, dtype, "cuda")), expected)


@large_cases
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_deterministic_results_are_the_same_in_every_run(case, dtype):
    tensors = make_tensors(case, dtype, device="cuda")
    torch.use_deterministic_algorithms(True)
    try:
        first, *others = (unfold_backward(case, tensors.columns, tensors.input, tensors.dilation_map) for _ in range(4))
    finally:
        torch.use_deterministic_algorithms(False)
    for other in others:
        assert_bits(other, first)
    for other in (unfold_backward(case, tensors.columns, tensors.input, tensors.dilation_map) for _ in range(3)):
        assert_bits(other[1], first[1])  # the map's gradient is, in any case


@large_cases
def test_the_scale_of_the_gradient_does_not_matter_to_fixed_point_sums(case):
    tensors = make_tensors(case, torch.float32, device="cuda")
    torch.use_deterministic_algorithms(True)
    try:
        plain = unfold_backward(case, tensors.columns, tensors.input, tensors.dilation_map)[0]
        for exponent in (-90, -20, 20, 90):
            scaled = unfold_backward(case, tensors.columns * 2.0**exponent, tensors.input, tensors.dilation_map)[0]
            torch.testing.assert_close(scaled * 2.0**-exponent, plain, rtol=0, atol=0)
    finally:
        torch.use_deterministic_algorithms(False)


@large_cases
def test_rates_that_are_not_finite(case, deterministic):
    tensors = make_tensors(case, torch.float32, device="cuda")
    rates = tensors.dilation_map.flatten()
    rates[::7], rates[1::11], rates[2::13] = math.nan, math.inf, 1e38
    columns, _, by_map = reference_gradients(case, tensors)
    assert_near(unfold(case, tensors.input, tensors.dilation_map), columns)
    grad_input, grad_map = unfold_backward(case, tensors.columns, tensors.input, tensors.dilation_map)
    assert_near(grad_map, by_map)
    finite = tensors.dilation_map.unflatten(1, (case.groups, case.rates)).isfinite().all(2).flatten(2)
    kept = tensors.columns.unflatten(1, (case.groups, -1)) * finite[:, :, None]
    safe = torch.where(tensors.dilation_map.isfinite(), tensors.dilation_map, 0.5)
    assert_near(grad_input, fold(case, kept.flatten(1, 2).double(), safe.double()))
    assert grad_input.isfinite().all()


@large_cases
def test_entries_that_are_not_finite_show(case, deterministic):
    tensors = make_tensors(case, torch.float32, device="cuda")
    tensors.columns[0, 5, 700] = math.nan
    grad_input, grad_map = unfold_backward(case, tensors.columns, tensors.input, tensors.dilation_map)
    assert grad_map[0].isnan().any()
    assert (
        grad_input[0, 5 // case.taps].isnan().any()
        == (~fold(case, tensors.columns, tensors.dilation_map).isfinite()).any()
    )


@large_cases
def test_layouts(case):
    tensors = make_tensors(case, torch.float16, device="cuda")
    expected = unfold(case, tensors.input, tensors.dilation_map)
    wide = torch.empty(*tensors.input.shape[:3], 2 * case.size[1], dtype=torch.float16, device="cuda")[..., ::2]
    for input in (tensors.input.to(memory_format=torch.channels_last), wide.copy_(tensors.input)):
        assert_bits(unfold(case, input, tensors.dilation_map), expected)
    torch.use_deterministic_algorithms(True)
    try:
        gradients = unfold_backward(case, tensors.columns, tensors.input, tensors.dilation_map)
        columns = tensors.columns.transpose(1, 2).contiguous().transpose(1, 2)
        input = tensors.input.to(memory_format=torch.channels_last)
        assert_bits(unfold_backward(case, columns, input, tensors.dilation_map), gradients)
        one = tensors.columns[:1, :1, :1]
        assert_bits(
            unfold_backward(case, one.expand_as(columns), input, tensors.dilation_map),
            unfold_backward(case, one.expand_as(columns).contiguous(), input, tensors.dilation_map),
        )
    finally:
        torch.use_deterministic_algorithms(False)


def test_no_channel_behind_the_last_is_read():
    """Memory ends with the last channel: where the next one would be, there is none, and a read of it is an error.

    In a process of its own, because the error is the end of CUDA in it.
    """
    script = """if True:
        import torch, ddu_ops
        stride = 1 << 26
        memory = torch.zeros(6 * stride + 300 * 300, device="cuda")
        input = memory.as_strided((1, 7, 300, 300), (7 * stride, stride, 300, 1))
        ddu_ops.dynamic_dilation_unfold(input, 3, torch.ones(1, 1, 300, 300, device="cuda"), padding=1)
        torch.cuda.synchronize()"""
    python("-c", script)


def test_a_stride_beyond_the_image():
    """There is one row of windows: how far those of several rows would reach passes 64 bits."""
    case = Case("row", 1, 2048, (3, 64), padding=(0, 1))
    tensors = make_tensors(case, torch.float32, device="cuda")
    actual = unfold(replace(case, stride=(4 * 10**18, 1)), tensors.input, tensors.dilation_map)
    assert_bits(actual, unfold(case, tensors.input, tensors.dilation_map))


def test_a_graph_replays_what_it_captured():
    case = LARGE_CASES[0]
    tensors, others = (make_tensors(case, torch.float32, device="cuda", seed=seed) for seed in (0, 1))

    def step():
        columns = unfold(case, tensors.input, tensors.dilation_map)
        return (columns, *unfold_backward(case, tensors.columns, tensors.input, tensors.dilation_map))

    torch.use_deterministic_algorithms(True)
    try:
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            step()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = step()
        for mine, theirs in zip(tensors, others, strict=True):
            mine.copy_(theirs)
        graph.replay()
        assert_bits(results, step())
    finally:
        torch.use_deterministic_algorithms(False)


def test_work_goes_to_the_current_stream_and_waits_for_nothing():
    case = LARGE_CASES[0]
    tensors = make_tensors(case, torch.float32, device="cuda")
    unfold(case, tensors.input, tensors.dilation_map)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)
        columns = unfold(case, tensors.input, tensors.dilation_map)
        gradients = unfold_backward(case, tensors.columns, tensors.input, tensors.dilation_map)
        assert not stream.query()
        assert torch.cuda.default_stream().query()
    stream.synchronize()
    assert columns.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in gradients)


needs_two_devices = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices")


@needs_two_devices
@pytest.mark.parametrize("case", [LARGE_CASES[0], Case("small", padding=(1, 1))], ids=str)
def test_several_devices(case, deterministic):
    tensors = {device: make_tensors(case, torch.float32, device=device) for device in ("cuda:0", "cuda:1")}
    columns, by_input, by_map = reference_gradients(case, tensors["cuda:0"])
    for current in (0, 1):
        with torch.cuda.device(current):
            for device in ("cuda:1", "cuda:0", "cuda:1"):  # queued on both, nothing waits in between
                input, dilation_map = (t.clone().requires_grad_() for t in tensors[device][:2])
                actual = unfold(case, input, dilation_map)
                gradients = torch.autograd.grad(actual, (input, dilation_map), tensors[device].columns)
                assert {t.device for t in (actual, *gradients)} == {torch.device(device)}
                assert torch.cuda.current_device() == current
                for value, expected in zip((actual, *gradients), (columns, by_input, by_map), strict=True):
                    assert_near(value, expected)


@needs_two_devices
def test_tensors_on_different_devices_are_refused():
    case = Case("small", padding=(1, 1))
    here, there = (make_tensors(case, torch.float32, device=device) for device in ("cuda:0", "cuda:1"))
    wrong = r"on the device of {}, cuda:0, but got one on cuda:1"
    with pytest.raises(RuntimeError, match=r"unfold\(\): expected dilation_map " + wrong.format("input")):
        unfold(case, here.input, there.dilation_map)
    with pytest.raises(RuntimeError, match=r"fold\(\): expected dilation_map " + wrong.format("columns")):
        fold(case, here.columns, there.dilation_map)
    with pytest.raises(RuntimeError, match=r"unfold_backward\(\): expected grad_output " + wrong.format("input")):
        unfold_backward(case, there.columns, here.input, here.dilation_map)


@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_properties(0).total_memory < 40 << 30,
    reason="takes 40 GB of memory",
)
@pytest.mark.parametrize("channels", [64, 8], ids=["fast", "general"])
def test_more_than_2_to_the_31_elements(channels):
    case = Case("huge", 1, channels, (2048, 2048 * 64 // channels), padding=(1, 1))  # 9 * 2^28 entries
    torch.manual_seed(0)
    input = torch.randn(case.input_shape, device="cuda", dtype=torch.float16)
    dilation_map = torch.rand(case.map_shape, device="cuda", dtype=torch.float16) * 3
    columns = unfold(case, input, dilation_map)
    assert columns.numel() > 2**31
    last = Case("last", 1, channels, (64, case.size[1]), padding=(1, 1))  # rows whose windows need no others
    rows = slice(case.size[0] - 64, None)
    expected = unfold(last, input[:, :, rows], dilation_map[:, :, rows])
    inner = (slice(None), slice(None), slice(8 * case.size[1], None))
    actual = columns.unflatten(2, case.size)[:, :, rows].flatten(2)
    assert torch.equal(actual[inner], expected[inner])
    del expected, actual
    grad_input, grad_map = unfold_backward(case, columns, input, dilation_map)
    products = (columns.unflatten(2, case.size)[:, :, rows].flatten(2), input[:, :, rows], dilation_map[:, :, rows])
    expected_input, expected_map = unfold_backward(last, *products)
    torch.testing.assert_close(grad_map[:, :, -32:], expected_map[:, :, -32:], rtol=2e-3, atol=2e-1)
    torch.testing.assert_close(grad_input[:, :, -32:], expected_input[:, :, -32:], rtol=2e-3, atol=2e-2)
