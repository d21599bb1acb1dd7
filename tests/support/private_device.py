"""Tests on a device without kernels of ours, which `test_devices.py` runs in a process of its own.

The device is real: `private_device.cpp` gives PrivateUse1, the dispatch key that PyTorch keeps for devices from elsewhere,
tensors and memory. Registering it changes the process for good.
"""

import os
from pathlib import Path

import pytest
import torch
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend
from torch.utils.cpp_extension import load

from cases import (
    FAMILY,
    Case,
    Tensors,
    as_list,
    assert_near,
    cases,
    dtypes,
    first_order,
    fold_reference,
    make_tensors,
    operator,
    operators,
    pick,
    unfold,
    unfold_reference,
)
from refusals import call, refusal

_setup_privateuseone_for_python_backend("foreign")
load(
    "foreign",
    [str(Path(__file__).with_suffix(".cpp"))],
    extra_cflags=["-O0", "-g0", "-w"],
    build_directory=os.environ["PRIVATE_DEVICE"],
    is_python_module=False,
)

DEVICE = torch.device("foreign:0")


def moved(tensors: Tensors) -> Tensors:
    return Tensors(*(t.detach().to(DEVICE) for t in tensors))


def test_it_is_another_device() -> None:
    input, dilation_map, _ = moved(make_tensors(case := Case("case", padding=(1, 1)), torch.float32))
    columns = unfold(case, input, dilation_map)
    assert columns.device == DEVICE
    assert torch._C._dispatch_keys(columns).has(torch._C.DispatchKey.PrivateUse1)


@cases
@dtypes
def test_values_and_gradients(case: Case, dtype: torch.dtype, map_dtype: torch.dtype) -> None:
    """Against the reference, which runs on the CPU."""
    tensors = make_tensors(case, dtype, map_dtype, kinks=False)
    for name, reference, which in (("unfold", unfold_reference, (0, 1)), ("fold", fold_reference, (2, 1))):
        grad = tensors.columns if name == "unfold" else tensors.input
        wide = [tensors[i].double().requires_grad_() for i in which]
        leaves = [tensors[i].detach().to(DEVICE).requires_grad_() for i in which]
        expected, actual = reference(case, *wide), operator(name, case)(*leaves)
        assert actual.dtype == dtype and actual.is_contiguous()
        assert_near(actual.cpu(), expected)
        grads = torch.autograd.grad(actual, leaves, grad.to(DEVICE))
        for a, e in zip(grads, torch.autograd.grad(expected, wide, grad.double())):
            assert a.device == DEVICE
            assert_near(a.cpu(), e)


@operators
@pytest.mark.parametrize("rates", [1, 2])
def test_every_operator_with_second_derivatives_and_forward_mode(name: str, rates: int) -> None:
    case = Case("case", 2, 4, (5, 6), (3, 2), (2, 1), (1, 0), (1, 2), groups=2, rates=rates)
    tensors = pick(name, make_tensors(case, kinks=False))
    function = operator(name, case, first_order(name, case))
    results = []
    for device in ("cpu", DEVICE):
        leaves = [t.detach().to(device).requires_grad_() for t in tensors]
        values = as_list(function(*leaves))
        total = torch.stack([value.square().sum() for value in values]).sum()
        grads = torch.autograd.grad(total, leaves, create_graph=True)
        more = torch.autograd.grad(torch.stack([grad.square().sum() for grad in grads]).sum(), leaves)
        with torch.autograd.forward_ad.dual_level():
            duals = [torch.autograd.forward_ad.make_dual(t.detach(), t.detach()) for t in leaves]
            tangents = [torch.autograd.forward_ad.unpack_dual(r).tangent for r in as_list(function(*duals))]
        results.append([t.detach().cpu() for t in (*values, *grads, *more, *tangents)])
    for actual, expected in zip(*results):
        assert_near(actual, expected)


@operators
def test_errors(name: str) -> None:
    """The words of the CPU."""
    arguments = {argument.name for argument in getattr(torch.ops.ddu, name).default._schema.arguments}
    leading = next(a for a in ("grad_output", "columns", "input") if a in arguments)
    positions = "positions" if name in FAMILY else "dilation_map"
    call(name, "foreign:0")
    for changes in (
        {leading: lambda device: torch.zeros(2, 3, device=device)},
        {positions: lambda device: torch.zeros(2, 1, 7, 8, device=device)},
        {positions: lambda device: torch.zeros(2, 1, 8, 8, dtype=torch.float64, device=device)},
        {"stride": 0},
        {"groups": 3},
    ):
        assert refusal(name, "foreign:0", **changes) == refusal(name, "cpu", **changes)
    mixed = refusal(name, "foreign:0", **{positions: lambda _: torch.ones(2, 1, 8, 8)})
    assert f"expected {positions} on the device of" in mixed and "foreign:0, but got one on cpu" in mixed
