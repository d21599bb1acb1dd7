"""Threads, forks and streams: concurrent calls give the same bits as single ones."""

import os
import sysconfig
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
import torch
from torch import Tensor

from cases import CASES, Case, Tensors, assert_bits, make_tensors, unfold
from processes import python

THREADS = 8
# Besides the table's, one that torch cuts into pieces for threads of its own.
HERE = [case for case in CASES if case.batch and case.channels] + [Case("busy", 2, 16, (40, 41), padding=(1, 1))]
here = pytest.mark.parametrize("case", [HERE[1], HERE[3], HERE[-1]], ids=str)


@pytest.fixture(autouse=True)
def deterministic() -> Iterator[None]:
    """On CUDA the image's gradients have reproducible bits only then."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before)


def devices() -> list[str]:
    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def step(case: Case, tensors: Tensors) -> list[Tensor]:
    """Forward, backward and the gradient of the gradient."""
    leaves = tensors.requires_grad()
    columns = unfold(case, leaves.input, leaves.dilation_map)
    gradients = torch.autograd.grad(columns, leaves[:2], leaves.columns, create_graph=True)
    second = torch.autograd.grad(gradients[1].square().sum(), leaves)
    return [t.detach() for t in (columns, *gradients, *second)]


def at_once(function: Callable[[int], Any], threads: int = THREADS) -> list[Any]:
    """In as many threads, all starting together."""
    barrier = Barrier(threads)

    def run(index: int) -> Any:
        barrier.wait()
        return function(index)

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(run, range(threads)))


@here
@pytest.mark.parametrize("name", devices())
def test_threads_with_calls_of_their_own(case: Case, name: str) -> None:
    problems = [make_tensors(case, torch.float32, device=name, seed=seed) for seed in range(THREADS)]
    alone = [step(case, tensors) for tensors in problems]
    for _ in range(3):
        for together, expected in zip(at_once(lambda i: step(case, problems[i])), alone):
            assert_bits(together, expected)


@here
@pytest.mark.parametrize("name", devices())
def test_threads_that_share_their_tensors(case: Case, name: str) -> None:
    tensors = make_tensors(case, torch.float32, device=name)
    expected = step(case, tensors)
    for together in at_once(lambda _: step(case, tensors)):
        assert_bits(together, expected)


@here
@pytest.mark.parametrize("name", devices())
def test_backward_through_one_graph_from_several_threads(case: Case, name: str) -> None:
    leaves = make_tensors(case, torch.float32, device=name).requires_grad()
    columns = unfold(case, leaves.input, leaves.dilation_map)

    def backward(_: int) -> tuple[Tensor, ...]:
        return torch.autograd.grad(columns, leaves[:2], leaves.columns.detach(), retain_graph=True)

    expected = backward(0)
    for together in at_once(backward):
        assert_bits(together, expected)


def test_threads_that_are_refused_do_not_disturb_those_that_are_not() -> None:
    case = HERE[-1]
    tensors = make_tensors(case, torch.float32)
    expected = step(case, tensors)

    def call(index: int) -> Any:
        if index % 2:
            with pytest.raises(RuntimeError, match="expected"):
                unfold(case, tensors.input, tensors.dilation_map[:, :, 1:])
            return expected
        return step(case, tensors)

    for together in at_once(call):
        assert_bits(together, expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@here
def test_streams(case: Case) -> None:
    problems = [make_tensors(case, torch.float32, device="cuda", seed=seed) for seed in range(4)]
    alone = [step(case, tensors) for tensors in problems]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in problems]
    for _ in range(5):
        together = []
        for stream, tensors in zip(streams, problems):
            with torch.cuda.stream(stream):
                together.append(step(case, tensors))
        torch.cuda.synchronize()
        for results, expected in zip(together, alone):
            assert_bits(results, expected)


# ---- After a fork ----

# The threads of OpenMP do not live on in a child, and with libgomp the first loop that is meant for several of them
# waits for ever, in torch's own operators as in these. So who forks sets the child's number of threads to one, as
# torch's DataLoader does.


class Columns(torch.utils.data.Dataset[list[Tensor]]):
    """Worked out where they are asked for: in a child of the process that has them, too."""

    def __init__(self, case: Case, tensors: list[Tensors]) -> None:
        self.case, self.tensors = case, tensors

    def __len__(self) -> int:
        return len(self.tensors)

    def __getitem__(self, index: int) -> list[Tensor]:
        return step(self.case, self.tensors[index])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.skipif(
    torch.cuda.is_available(), reason="torch refuses a backward in a child where it has one thread a GPU"
)
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python's, of the threads that this process has
@pytest.mark.filterwarnings("ignore:.*DataLoader will create:UserWarning")  # on a machine with fewer cores
def test_fork_after_use() -> None:
    case = HERE[-1]
    columns = Columns(case, [make_tensors(case, torch.float32, seed=seed) for seed in range(6)])
    threads = torch.get_num_threads()
    torch.set_num_threads(2)  # so that there are threads to miss
    try:
        expected = [columns[index] for index in range(len(columns))]
        loader = torch.utils.data.DataLoader(
            columns, batch_size=None, num_workers=2, timeout=60, multiprocessing_context="fork"
        )
        for mine, theirs in zip(loader, expected):
            assert_bits(mine, theirs)
        assert_bits(columns[0], expected[0])  # and the parent goes on
    finally:
        torch.set_num_threads(threads)


# ---- The first time ----

# Modules, operators and tables are made when they are first asked for, once in a process. So each of these has its own.


FIRST = """
import sys, threading
from concurrent.futures import ThreadPoolExecutor
import torch

sys.setswitchinterval(1e-6)  # where there is a lock, let go of it often
barrier = threading.Barrier(8, timeout=60)
generator = torch.Generator().manual_seed(0)
input, weight = torch.randn(2, 4, 9, 9, generator=generator), torch.randn(4, 4, 3, 3, generator=generator)
rates = 1 + torch.rand(2, 1, 7, 7, generator=generator)

def first(_):
    barrier.wait()
    from ddu_ops import decompositions, dynamic_dilation_conv2d, dynamic_dilation_fold, dynamic_dilation_unfold
    leaves = [tensor.clone().requires_grad_() for tensor in (input, rates, weight)]
    barrier.wait()
    columns = dynamic_dilation_unfold(leaves[0], 3, leaves[1])
    image = dynamic_dilation_fold(columns, 9, 3, leaves[1])
    result = dynamic_dilation_conv2d(image, leaves[2], leaves[1])
    mapped = torch.func.vmap(lambda image: dynamic_dilation_unfold(image, 3, rates[0]))(input)
    assert len(decompositions()) == sum(name.startswith("ddu::") for name in torch._C._dispatch_get_all_op_names())
    return [columns, image, result, mapped, *torch.autograd.grad(result.square().sum(), leaves)]

with ThreadPoolExecutor(8) as pool:
    results = list(pool.map(first, range(8)))
barrier = threading.Barrier(1)
expected = first(0)
for result in results:
    assert all(torch.equal(*pair) for pair in zip(result, expected, strict=True))
"""


def test_several_threads_import_and_call_it_first() -> None:
    python("-c", FIRST)


@pytest.mark.skipif(not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="this Python always has the lock")
def test_the_extension_leaves_the_gil_as_it_was() -> None:
    """A free-threaded Python turns the lock on again when it imports a module that does not say it can do without.

    Not all that torch imports says so, triton 3.6 for one, so other tests may have turned it on here.
    """
    python(
        "-c",
        "import sys, torch; before = sys._is_gil_enabled(); import ddu_ops; assert sys._is_gil_enabled() == before",
        PYTHON_GIL="",  # or it would stay off, whatever is imported
    )
