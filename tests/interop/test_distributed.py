"""Several processes: data-parallel training, fully sharded training, and DTensor."""

import contextlib
import datetime
import itertools
import os
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cases import (
    Case,
    ConvolutionCase,
    Model,
    assert_near,
    convolve,
    convolve_reference,
    fold,
    fold_reference,
    make_arguments,
    make_tensors,
    operator,
    pick,
    unfold,
    unfold_reference,
)
from ddu_ops import dynamic_dilation_conv2d, dynamic_dilation_fold, dynamic_dilation_unfold
from processes import python

pytestmark = pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="no gloo")

WORLD_SIZE = 2
TIMEOUT = datetime.timedelta(seconds=120)  # of one wait for another process
DEADLINE = 2 * TIMEOUT  # of everything: nothing may hang

# What the processes do, by name. They are started once and do it all.
CHECKS: dict[str, Callable[[], None]] = {}


def in_processes(check: Callable[[], None]) -> Callable[..., None]:
    """A test that every process runs."""
    CHECKS[check.__name__] = check

    def test(outcomes: dict[str, list[str]]) -> None:
        for rank, outcome in enumerate(outcomes[check.__name__]):
            assert not outcome, f"process {rank}:\n{outcome}"

    test.__doc__ = check.__doc__
    return test


def process(rank: int, folder: str) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", WORLD_SIZE)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=WORLD_SIZE, timeout=TIMEOUT)
    outcomes = {}
    for name, check in CHECKS.items():
        torch.manual_seed(0)
        outcomes[name] = ""
        try:
            check()
        except Exception:
            outcomes[name] = traceback.format_exc()
        # None begins the next before all are done.
        store.set(f"{name} {rank}", "done")
        store.wait([f"{name} {other}" for other in range(WORLD_SIZE)], TIMEOUT)
    torch.save(outcomes, f"{folder}/{rank}")
    dist.destroy_process_group()


def mesh() -> Any:
    from torch.distributed.tensor import init_device_mesh

    import ddu_ops.distributed  # noqa: F401

    return init_device_mesh("cpu", (WORLD_SIZE,))


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    folder = tmp_path_factory.mktemp("processes")
    context = torch.multiprocessing.start_processes(process, (str(folder),), WORLD_SIZE, join=False)
    try:
        deadline = datetime.datetime.now() + DEADLINE
        while not context.join(timeout=1):
            assert datetime.datetime.now() < deadline, "the processes hang"
    finally:
        for started in context.processes:
            started.kill()
    ranks = [torch.load(folder / str(rank)) for rank in range(WORLD_SIZE)]
    return {name: [outcomes[name] for outcomes in ranks] for name in CHECKS}


# ---- Training on parts of a batch ----


def train(model: nn.Module, images: Tensor, targets: Tensor) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(4):
        optimizer.zero_grad()
        (model(images) - targets).square().mean().backward()
        optimizer.step()


def check_training(parallel: Callable[[nn.Module], nn.Module], whole: Callable[[Tensor], Tensor]) -> None:
    """The parameters are those of one process with the whole batch, up to the order of the sums over it."""
    images, targets = torch.randn(4, 3, 5, 6, dtype=torch.float64), torch.randn(4, 2, 5, 6, dtype=torch.float64)
    alone = Model().double()
    together = Model().double()
    together.load_state_dict(alone.state_dict())
    before = [parameter.detach().clone() for parameter in alone.parameters()]
    train(alone, images, targets)
    part = slice(dist.get_rank(), None, WORLD_SIZE)
    train(parallel(together), images[part], targets[part])
    for actual, expected, start in zip(together.parameters(), alone.parameters(), before, strict=True):
        torch.testing.assert_close(whole(actual.detach()), expected.detach(), rtol=1e-12, atol=1e-12)
        assert not torch.allclose(expected, start, atol=1e-3)


@in_processes
def test_distributed_data_parallel() -> None:
    check_training(DistributedDataParallel, lambda parameter: parameter)


@in_processes
def test_fully_shard() -> None:
    from torch.distributed.fsdp import fully_shard

    def shard(model: nn.Module) -> nn.Module:
        for layer in (model.rates, model.weight):
            fully_shard(layer, mesh=mesh())
        return fully_shard(model, mesh=mesh())

    check_training(shard, lambda parameter: parameter.full_tensor())


# ---- DTensor ----

GROUPS = [(groups, rates) for groups in (1, 2, 4) for rates in (1, 2)]
FUNCTIONS = {"unfold": (unfold, unfold_reference), "fold": (fold, fold_reference)}


def distribute(tensors: Iterable[Tensor], placements: Iterable[Any]) -> list[Any]:
    from torch.distributed.tensor import DTensor, Partial, distribute_tensor

    part = (dist.get_rank() + 1) / (WORLD_SIZE * (WORLD_SIZE + 1) / 2)  # of a pending sum, unlike the others'
    return [
        DTensor.from_local(part * tensor, mesh(), [placement])
        if placement == Partial()
        else distribute_tensor(tensor, mesh(), [placement])
        for tensor, placement in zip(tensors, placements, strict=True)
    ]


@contextlib.contextmanager
def collectives(expected: int) -> Iterator[None]:
    from torch.distributed.tensor.debug import CommDebugMode

    with CommDebugMode() as mode:
        yield
    assert mode.get_total_counts() == expected, mode.get_comm_counts()


def check_sharding(name: str, case: Case, given: list[Any], result: Any, gradients: list[Any], counts: Any) -> None:
    """Forward and both gradients: values, placements and how often processes exchange anything."""
    from torch.distributed.tensor import Shard

    function, reference = FUNCTIONS[name]
    tensors = pick(name, make_tensors(case, kinks=False))
    plain = [t.clone().requires_grad_() for t in tensors]
    expected = reference(case, *plain)
    cotangent = torch.randn_like(expected)
    expected_gradients = torch.autograd.grad(expected, plain, cotangent)

    leaves = [t.requires_grad_() for t in distribute(tensors, given)]
    with collectives(counts[0]):
        actual = function(case, *leaves)
    (grad,) = distribute([cotangent], [result])
    with collectives(counts[1]):
        actual_gradients = torch.autograd.grad(actual, leaves, grad)
    assert actual.placements == (result,)
    assert [g.placements for g in actual_gradients] == [(p,) for p in gradients]
    for a, e in zip([actual, *actual_gradients], [expected, *expected_gradients], strict=True):
        assert a.shape == e.shape
        if a.placements[0] in (Shard(0), Shard(1)):  # as DTensor cuts it: no shard has another size
            assert a.to_local().shape == distribute([e.detach()], a.placements)[0].to_local().shape
        assert_near(a.full_tensor(), e.detach())


@in_processes
def test_sharded_along_the_batch() -> None:
    """Evenly and not."""
    from torch.distributed.tensor import Shard

    for name in FUNCTIONS:
        for batch, (groups, rates) in [(2, GROUPS[0]), (2, GROUPS[3]), (5, GROUPS[0])]:
            case = Case("batch", batch, 4, padding=(1, 1), groups=groups, rates=rates)
            check_sharding(name, case, [Shard(0), Shard(0)], Shard(0), [Shard(0), Shard(0)], (0, 0))


@in_processes
def test_sharded_along_channel_groups() -> None:
    """Beside the map's groups, or beside a replicated map of one group, whose gradient is then a pending sum."""
    from torch.distributed.tensor import Partial, Replicate, Shard

    for name in FUNCTIONS:
        for groups, rates in GROUPS:
            case = Case("channels", 1, 4, padding=(1, 0), dilation=(1, 2), groups=groups, rates=rates)
            rates_at = Shard(1) if groups > 1 else Replicate()
            gradient_at = Shard(1) if groups > 1 else Partial()
            check_sharding(name, case, [Shard(1), rates_at], Shard(1), [Shard(1), gradient_at], (0, 0))


# On one axis and three, by a rate for each axis and by an offset for every tap.
SOURCES = [
    Case("line", 2, 4, (9,), padding=(1,)),
    Case("volume", 2, 4, (3, 4, 2), (2, 3, 1), padding=(1, 0, 0), rates=3, padding_mode="border"),
    Case("offsets", 2, 4, (5, 4), (3, 2), padding=(1, 0), source="offsets"),
    Case("volume_offsets", 2, 4, (3, 2, 3), (2,), source="offsets", padding_mode="reflection"),
    Case("affine", 2, 4, (5, 4), (3, 2), padding=(1, 0), source="affine"),
]


@in_processes
def test_every_number_of_axes_and_source_of_positions() -> None:
    """Along the batch, along groups, along the channels of the only one, and what is not even."""
    from torch.distributed.tensor import Partial, Replicate, Shard

    for name, case in itertools.product(FUNCTIONS, SOURCES):
        check_sharding(name, case, [Shard(0), Shard(0)], Shard(0), [Shard(0), Shard(0)], (0, 0))
        check_sharding(name, case, [Shard(1), Replicate()], Shard(1), [Shard(1), Partial()], (0, 0))
        groups = replace(case, groups=2)
        check_sharding(name, groups, [Shard(1), Shard(1)], Shard(1), [Shard(1), Shard(1)], (0, 0))
    for case in SOURCES:
        uneven = replace(case, channels=3)
        check_sharding("unfold", uneven, [Shard(1), Replicate()], Replicate(), [Replicate(), Replicate()], (1, 1))


@in_processes
def test_a_replicated_map_of_several_groups() -> None:
    """Every process has the groups of its channels: it cuts them out."""
    from torch.distributed.tensor import Replicate, Shard

    case = Case("cut", 2, 4, padding=(1, 1), groups=2, rates=2)
    for name in FUNCTIONS:
        check_sharding(name, case, [Shard(1), Replicate()], Shard(1), [Shard(1), Shard(1)], (0, 0))


@in_processes
def test_pending_sums_are_passed_on() -> None:
    """Where the operator is linear, as DTensor does for its own."""
    from torch.distributed.tensor import Partial, Replicate

    case = Case("pending", 2, 4, padding=(1, 1))
    for name in FUNCTIONS:
        tensors = pick(name, make_tensors(case))
        arguments = distribute(tensors, [Partial(), Replicate()])
        with collectives(0):
            result = FUNCTIONS[name][0](case, *arguments)
        assert result.placements == (Partial(),)
        assert_near(result.full_tensor(), FUNCTIONS[name][1](case, *tensors))
    tensors = make_tensors(case, kinks=False)
    input, dilation_map, _ = tensors.requires_grad()
    expected = torch.autograd.grad(unfold_reference(case, input, dilation_map), (input, dilation_map), tensors.columns)
    for given, placements in {
        (Partial(), Replicate(), Replicate()): (Partial(), Partial()),
        (Replicate(), Partial(), Replicate()): (Replicate(), Partial()),
    }.items():
        arguments = distribute([tensors.columns, tensors.input, tensors.dilation_map], given)
        with collectives(0):
            actual = operator("unfold_backward", case)(*arguments)
        for a, e, placement in zip(actual, expected, placements, strict=True):
            assert a.placements == (placement,)
            assert_near(a.full_tensor(), e)


@in_processes
def test_what_is_not_even_is_gathered_once() -> None:
    """Three channels for two processes, three groups, parts of a group, parts of an image, and one image."""
    from torch.distributed.tensor import Replicate, Shard

    uneven = [
        (Case("channels", 2, 3, padding=(1, 1)), Shard(1), Replicate()),
        (Case("groups", 2, 6, padding=(1, 1), groups=3, rates=2), Shard(1), Replicate()),
        (Case("one_rate_each", 2, 2, padding=(1, 1), rates=2), Replicate(), Shard(1)),
        (Case("height", 2, 4, padding=(1, 1)), Shard(2), Replicate()),
        (Case("one_image", 1, 4, padding=(1, 1)), Shard(0), Replicate()),
    ]
    for case, *given in uneven:
        check_sharding("unfold", case, given, Replicate(), [Replicate(), Replicate()], (1, 1))


@in_processes
def test_derivatives_of_every_order() -> None:
    """A gradient penalty goes through sample, splat and dot."""
    from torch.distributed.tensor import Partial, Replicate, Shard

    def penalty(function: Callable[..., Any], leaves: Iterable[Any]) -> tuple[Any, ...]:
        leaves = [leaf.requires_grad_() for leaf in leaves]
        first = torch.autograd.grad(function(case, *leaves).square().sum(), leaves, create_graph=True)
        return torch.autograd.grad(first[0].square().sum() + first[1].square().sum(), leaves)

    problems = [(Shard(0), Case("penalty", 2, 4, padding=(1, 1), groups=2))]
    problems += [
        (Shard(1), replace(case, groups=2)) for case in (Case("rates", 2, 4, padding=(1, 1), rates=2), *SOURCES)
    ]
    for name, (function, reference) in FUNCTIONS.items():
        for along, case in problems:
            tensors = pick(name, make_tensors(case, kinks=False))
            expected = penalty(reference, [t.clone() for t in tensors])
            leaves = distribute(tensors, [along, along])
            with collectives(0):
                actual = penalty(function, leaves)
            for a, e in zip(actual, expected, strict=True):
                assert a.placements == (along,)
                assert_near(a.full_tensor(), e)
    case = Case("one_group", 2, 4, padding=(1, 1))
    tensors = pick("unfold", make_tensors(case, kinks=False))
    expected = penalty(unfold_reference, [t.clone() for t in tensors])
    actual = penalty(unfold, distribute(tensors, [Shard(1), Replicate()]))
    assert actual[1].placements == (Partial(),)
    for a, e in zip(actual, expected, strict=True):
        assert_near(a.full_tensor(), e)


@in_processes
def test_calls_that_differ_in_the_kernel_alone() -> None:
    """Placements are remembered by their arguments: all of them."""
    from torch.distributed.tensor import Shard

    for kernel_size in (3, 5):
        case = Case("kernel", 2, 4, kernel_size=(kernel_size,) * 2, padding=(kernel_size // 2,) * 2)
        tensors = pick("unfold", make_tensors(case))
        result = unfold(case, *distribute(tensors, [Shard(0), Shard(0)]))
        assert result.shape == case.columns_shape
        assert_near(result.full_tensor(), unfold_reference(case, *tensors))


@in_processes
def test_the_public_functions() -> None:
    """Unbatched, with a map that is broadcast, by keyword, without gradients and in inference mode."""
    from torch.distributed.tensor import Replicate, Shard

    case = Case("public", 2, 4, padding=(1, 1), groups=2, rates=2)
    input, dilation_map, columns = make_tensors(case)
    options = {"kernel_size": 3, "padding": 1, "groups": 2}
    images, maps = distribute([input, dilation_map[:1]], [Shard(0), Replicate()])
    image, its_map = distribute([input[0], dilation_map[0]], [Shard(0), Shard(0)])
    windows, their_maps = distribute([columns, dilation_map], [Shard(1), Shard(1)])
    for context in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with context(), collectives(0):
            batched = dynamic_dilation_unfold(input=images, dilation_map=maps, **options)
            unbatched = dynamic_dilation_unfold(image, dilation_map=its_map, **options)
            folded = dynamic_dilation_fold(windows, case.size, dilation_map=their_maps, **options)
        assert [t.placements for t in (batched, unbatched, folded)] == [(Shard(0),), (Shard(0),), (Shard(1),)]
        assert_near(batched.full_tensor(), unfold_reference(case, input, dilation_map[:1]))
        assert_near(unbatched.full_tensor(), unfold_reference(case, input, dilation_map)[0])
        assert_near(folded.full_tensor(), fold_reference(case, columns, dilation_map))
    for case in SOURCES:
        tensors = pick("unfold", make_tensors(case))
        leaves = distribute(tensors, [Shard(1), Replicate()])
        for context in (torch.enable_grad, torch.no_grad, torch.inference_mode):
            with context(), collectives(0):
                result = operator("dynamic_dilation_unfold", case)(*leaves)
            assert result.placements == (Shard(1),)
            assert_near(result.full_tensor(), unfold_reference(case, *tensors))


# ---- DTensor, the convolution ----

CONVOLUTION = ConvolutionCase("convolution", 2, 4, padding=(1, 1), out_channels=6)
OFFSETS = ConvolutionCase("offsets", 2, 4, (3, 4, 3), (2, 1, 2), padding=(1, 0, 0), source="offsets", out_channels=6)
NAMES = ("input", "weight", "dilation_map", "bias", "mask")


def check_convolution(case: ConvolutionCase, given: list[Any], result: Any, gradients: list[Any], counts: Any) -> None:
    """As check_sharding: placements are in the order of NAMES."""
    tensors = make_arguments(case, kinks=False)
    names = ["input", "weight", case.positions_name, "bias", "mask"]
    places, gradients_at = dict(zip(names, given, strict=True)), dict(zip(names, gradients, strict=True))
    plain = {name: t.clone().requires_grad_() for name, t in tensors.items()}
    expected = convolve_reference(case, plain)
    cotangent = torch.randn_like(expected)
    expected_gradients = torch.autograd.grad(expected, list(plain.values()), cotangent)

    placed = distribute(tensors.values(), [places[name] for name in tensors])
    leaves = {name: t.requires_grad_() for name, t in zip(tensors, placed, strict=True)}
    with collectives(counts[0]):
        actual = convolve(case, leaves)
    (grad,) = distribute([cotangent], [result])
    with collectives(counts[1]):
        actual_gradients = torch.autograd.grad(actual, list(leaves.values()), grad)
    assert actual.placements == (result,)
    assert [g.placements for g in actual_gradients] == [(gradients_at[name],) for name in tensors]
    for a, e in zip([actual, *actual_gradients], [expected, *expected_gradients], strict=True):
        assert a.shape == e.shape
        assert_near(a.full_tensor(), e.detach())


@in_processes
def test_a_convolution_sharded_along_the_batch() -> None:
    """Evenly and not; the weight is the same everywhere, and its gradient a sum over the processes."""
    from torch.distributed.tensor import Partial, Replicate, Shard

    given = [Shard(0), Replicate(), Shard(0), Replicate(), Shard(0)]
    gradients = [Shard(0), Partial(), Shard(0), Partial(), Shard(0)]
    for changes in ({}, {"batch": 5, "mask": False}, {"groups": 2, "rates": 2, "conv_groups": 2}, {"bias": False}):
        check_convolution(replace(CONVOLUTION, **changes), given, Shard(0), gradients, (0, 0))
    check_convolution(OFFSETS, given, Shard(0), gradients, (0, 0))
    check_convolution(replace(CONVOLUTION, per_image=True), [Shard(0)] * 5, Shard(0), [Shard(0)] * 5, (0, 0))


@in_processes
def test_a_convolution_sharded_along_groups() -> None:
    """With dilation groups of their own, several for each, and beside one map."""
    from torch.distributed.tensor import Partial, Replicate, Shard

    along = [Shard(1), Shard(0), Shard(1), Shard(0), Shard(1)]
    for conv_groups, groups, rates in ((2, 2, 1), (2, 4, 2), (4, 2, 1)):
        case = replace(CONVOLUTION, conv_groups=conv_groups, groups=groups, rates=rates, out_channels=8)
        check_convolution(case, along, Shard(1), along, (0, 0))
    given = [Shard(1), Shard(0), Replicate(), Shard(0), Replicate()]
    gradients = [Shard(1), Shard(0), Partial(), Shard(0), Partial()]
    check_convolution(replace(CONVOLUTION, conv_groups=2), given, Shard(1), gradients, (0, 0))
    check_convolution(replace(OFFSETS, conv_groups=2, groups=2, mask_groups=2), along, Shard(1), along, (0, 0))
    given[4] = gradients[4] = Shard(1)
    check_convolution(replace(CONVOLUTION, conv_groups=2, mask_groups=4), given, Shard(1), gradients, (0, 0))
    each = replace(CONVOLUTION, conv_groups=2, groups=2, per_image=True)
    check_convolution(each, [Shard(1)] * 5, Shard(1), [Shard(1)] * 5, (0, 0))


@in_processes
def test_a_convolution_sharded_along_the_channels_of_its_output() -> None:
    from torch.distributed.tensor import Partial, Replicate, Shard

    given = [Replicate(), Shard(0), Replicate(), Shard(0), Replicate()]
    gradients = [Partial(), Shard(0), Partial(), Shard(0), Partial()]
    for changes in ({}, {"groups": 2, "rates": 2}):
        check_convolution(replace(CONVOLUTION, **changes), given, Shard(1), gradients, (0, 0))


@in_processes
def test_a_convolution_that_is_not_even_is_gathered() -> None:
    """Five channels of the output, three groups, groups that share a dilation group, and channels of one group."""
    from torch.distributed.tensor import Replicate, Shard

    everywhere = [Replicate()] * 5
    rows = [Replicate(), Shard(0), Replicate(), Replicate(), Replicate()]
    images = [Shard(1), Replicate(), Replicate(), Replicate(), Replicate()]
    for case, given in (
        (replace(CONVOLUTION, out_channels=5), rows),
        (replace(CONVOLUTION, channels=6, conv_groups=3), images),
        (replace(CONVOLUTION, channels=6, conv_groups=2, groups=3), images),
        (CONVOLUTION, images),
    ):
        check_convolution(case, given, Replicate(), everywhere, (1, 1))


@in_processes
def test_one_gradient_of_a_convolution() -> None:
    """What is not asked for is an empty tensor, and lies nowhere."""
    from torch.distributed.tensor import Partial, Replicate, Shard

    tensors = make_arguments(CONVOLUTION, kinks=False)
    cotangent = torch.randn(2, 6, 6, 7, dtype=torch.float64)
    (grad,) = distribute([cotangent], [Shard(0)])
    places = dict(zip(NAMES, [Shard(0), Replicate(), Shard(0), Replicate(), Shard(0)], strict=True))
    for needed in NAMES:
        plain = {name: t.clone().requires_grad_(name == needed) for name, t in tensors.items()}
        (expected,) = torch.autograd.grad(convolve_reference(CONVOLUTION, plain), plain[needed], cotangent)
        leaves = dict(zip(tensors, distribute(tensors.values(), [places[name] for name in tensors]), strict=True))
        leaves[needed].requires_grad_()
        with collectives(0):
            output = dynamic_dilation_conv2d(**leaves, **CONVOLUTION.keywords)
            (actual,) = torch.autograd.grad(output, leaves[needed], grad)
        assert actual.placements == (Partial() if places[needed] == Replicate() else places[needed],)
        assert_near(actual.full_tensor(), expected)


@in_processes
def test_second_derivatives_of_a_convolution() -> None:
    """By DTensor's own rules, for they are ATen's operators; the gradient of the weight is summed up on the way."""
    from torch.distributed.tensor import Replicate, Shard

    def penalty(function: Callable[[dict[str, Any]], Any], leaves: dict[str, Any]) -> tuple[Any, ...]:
        values = list(leaves.values())
        first = torch.autograd.grad(function(leaves).square().sum(), values, create_graph=True)
        return torch.autograd.grad(torch.stack([f.square().sum() for f in first]).sum(), values)

    tensors = make_arguments(CONVOLUTION, kinks=False)
    expected = penalty(
        partial(convolve_reference, CONVOLUTION), {name: t.clone().requires_grad_() for name, t in tensors.items()}
    )
    placed = distribute(tensors.values(), [Replicate() if n in ("weight", "bias") else Shard(0) for n in tensors])
    leaves = {name: t.requires_grad_() for name, t in zip(tensors, placed, strict=True)}
    actual = penalty(lambda given: dynamic_dilation_conv2d(**given, **CONVOLUTION.keywords), leaves)
    for a, e in zip(actual, expected, strict=True):
        assert_near(a.full_tensor(), e)


@in_processes
def test_the_public_convolution() -> None:
    """With a map and a mask that are broadcast, without gradients, in inference mode and compiled."""
    from torch.distributed.tensor import Replicate, Shard

    tensors = make_arguments(CONVOLUTION)
    tensors |= {name: tensors[name][:1] for name in ("dilation_map", "mask")}
    whole = {name: tensors[name].expand(2, -1, -1, -1) for name in ("dilation_map", "mask")}
    expected = convolve_reference(CONVOLUTION, {**tensors, **whole})
    placed = distribute(tensors.values(), [Shard(0) if name == "input" else Replicate() for name in tensors])
    arguments = dict(zip(tensors, placed, strict=True))
    for context in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with context(), collectives(0):
            result = dynamic_dilation_conv2d(**arguments, **CONVOLUTION.keywords)
        assert result.placements == (Shard(0),)
        assert_near(result.full_tensor(), expected)
    compiled = torch.compile(
        lambda **t: dynamic_dilation_conv2d(**t, **CONVOLUTION.keywords) * 2, backend="aot_eager", fullgraph=True
    )
    result = compiled(**arguments)
    assert result.placements == (Shard(0),)
    assert_near(result.full_tensor(), 2 * expected)


def check_sums(case: Case, mask_groups: int, dim: int) -> None:
    """Attention and pooling on parts are those of the whole, without communication, and so are the gradients."""
    from torch.distributed.tensor import Partial, Replicate, Shard

    window = (case.source, case.kernel_size, *case.options)
    input, positions, _ = make_tensors(case, kinks=False)
    query = torch.randn(case.batch, case.channels, *case.output_size, dtype=torch.float64)

    def call(query: Tensor, input: Tensor, positions: Tensor) -> Tensor:
        mask = torch.ops.ddu.correlate(query, input, positions, *window, mask_groups)
        values, _ = torch.ops.ddu.max_pool(input, positions, *window)
        return torch.ops.ddu.aggregate(input, mask, None, None, positions, *window) + values

    plain = [t.clone().requires_grad_() for t in (query, input, positions)]
    expected = call(*plain)
    cotangent = torch.randn_like(expected)
    expected_gradients = torch.autograd.grad(expected, plain, cotangent)
    one_group = dim == 1 and case.groups == 1
    at = [Shard(dim), Shard(dim), Replicate() if one_group else Shard(dim)]
    leaves = [t.requires_grad_() for t in distribute((query, input, positions), at)]
    (grad,) = distribute([cotangent], [Shard(dim)])
    with collectives(0):
        actual = call(*leaves)
        gradients = torch.autograd.grad(actual, leaves, grad)
    assert actual.placements == (Shard(dim),)
    assert [g.placements[0] for g in gradients] == [*at[:2], Partial() if one_group else Shard(dim)]
    for a, e in zip([actual, *gradients], [expected, *expected_gradients], strict=True):
        assert_near(a.full_tensor(), e.detach())


@in_processes
def test_sums_of_windows() -> None:
    """Along the batch, along groups of the positions and of the mask, and along heads that share a map."""
    for source in SOURCES:
        check_sums(source, 2, 0)
        check_sums(source, 2, 1)
        check_sums(replace(source, groups=2), 4, 1)


@in_processes
def test_a_bad_argument_is_refused_by_name() -> None:
    from torch.distributed.tensor import Shard

    case = Case("bad", 2, 4, padding=(1, 1))
    input, dilation_map, _ = make_tensors(case)
    with pytest.raises(RuntimeError, match=r"unfold\(\): expected dilation_map of shape \(2, 1, 6, 7\)"):
        unfold(case, *distribute([input, dilation_map[..., 1:]], [Shard(0), Shard(0)]))


@in_processes
def test_compiled() -> None:
    from torch.distributed.tensor import Shard

    case = Case("compiled", 2, 4, padding=(1, 1), groups=2)
    tensors = pick("unfold", make_tensors(case))
    leaves = distribute(tensors, [Shard(1), Shard(1)])
    compiled = torch.compile(lambda *t: unfold(case, *t) * 2, backend="aot_eager", fullgraph=True)
    result = compiled(*leaves)
    assert result.placements == (Shard(1),)
    assert_near(result.full_tensor(), 2 * unfold_reference(case, *tensors))


def test_import_ddu_ops_does_not_load_dtensor() -> None:
    """It would take as long again as the import of torch."""
    program = "import sys, ddu_ops; sys.exit('torch.distributed.tensor' in sys.modules)"
    python("-c", program)


# ---- Larger meshes, by what is decided alone: no processes, no values ----


@pytest.fixture
def four_processes() -> Iterator[None]:
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=4)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_mesh_of_two_dimensions(groups: int, four_processes: None) -> None:
    """Batch along one, channels along the other; channels along both where they can be cut in four."""
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, init_device_mesh

    import ddu_ops.distributed  # noqa: F401

    mesh = init_device_mesh("cpu", (2, 2))
    case = Case("mesh", 2, groups if groups > 1 else 2, padding=(1, 1), groups=groups)
    along = Shard(1) if groups > 1 else Replicate()

    def unfolded(*placements: Any) -> Any:
        return unfold(case, *(DTensor.from_local(t, mesh, p) for t, p in zip(local, placements)))

    local = torch.randn(1, case.channels // 2, 6, 7), torch.randn(1, groups // 2 or 1, 6, 7)
    with collectives(0):
        result = unfolded([Shard(0), Shard(1)], [Shard(0), along])
    assert result.placements == (Shard(0), Shard(1))
    assert result.to_local().shape == (1, case.columns_shape[1] // 2, 42)

    local = torch.randn(2, case.channels // 2, 6, 7), torch.randn(2, groups, 6, 7)
    result = unfolded([Partial(), Shard(1)], [Replicate(), Replicate()])
    assert result.shape == case.columns_shape
    shards = 2 ** sum(placement == Shard(1) for placement in result.placements)
    assert shards <= case.channels
    assert result.to_local().shape[1] == case.columns_shape[1] // shards


def test_a_process_without_a_part(four_processes: None) -> None:
    from torch.distributed.tensor import DeviceMesh, DTensor, Shard

    import ddu_ops.distributed  # noqa: F401

    others = DeviceMesh("cpu", [2, 3])
    case = Case("others", 2, 4, padding=(1, 1))
    tensors = [DTensor.from_local(t[:1], others, [Shard(0)]) for t in pick("unfold", make_tensors(case))]
    assert unfold(case, *tensors).to_local().numel() == 0
