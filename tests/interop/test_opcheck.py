"""torch's own checks of every operator, on the table and on random problems; and the results on Meta."""

import pytest
import torch
from hypothesis import given, settings

from cases import (
    OPERATORS,
    Case,
    arguments,
    as_list,
    cases,
    drawn_cases,
    dtypes,
    first_order,
    keywords,
    make_tensors,
    operator,
    operator_name,
    operators,
    pick,
    seeds,
)

# torch's checks look at the gradients of all arguments, leaves or not.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")

CHECKED = [
    Case("lopsided", 2, 4, (5, 6), (3, 2), (2, 1), (1, 0), (1, 2), groups=2),
    Case("two_rates", 2, 4, (6, 5), (2, 3), (1, 2), (0, 1), (2, 1), groups=2, rates=2, aligned=False),
    Case("no_batch", batch=0, padding=(1, 1)),
    Case("line", 2, 4, (7,), (3,), (2,), (1,), groups=2, padding_mode="reflection"),
    Case("volume", 1, 2, (3, 2, 4), (2, 1, 3), padding=(1, 0, 1), rates=3, padding_mode="border"),
    Case("offsets", 2, 4, (5, 4), (2, 3), (1, 2), (1, 1), groups=2, source="offsets"),
    Case("volume_offsets", 1, 2, (2, 3, 2), (2,), groups=2, source="offsets"),
    Case("affine", 2, 4, (5, 4), (2, 3), (1, 2), (1, 1), groups=2, source="affine"),
    Case("volume_affine", 1, 2, (2, 3, 2), (2,), groups=2, source="affine"),
]


def opcheck(
    name: str, case: Case, dtype: torch.dtype, device: torch.device, requires_grad: bool, seed: int = 0
) -> None:
    tensors = pick(name, make_tensors(case, dtype, device=device, seed=seed))
    tensors = tuple(t.requires_grad_(requires_grad) for t in tensors)
    torch.library.opcheck(
        getattr(torch.ops.ddu, operator_name(name, case)).default,
        arguments(name, case, tensors, first_order(name, case)),
        keywords(name, case),
    )


@operators
@pytest.mark.parametrize("requires_grad", [False, True], ids=["without_grad", "with_grad"])
@pytest.mark.parametrize("case", CHECKED, ids=str)
def test_opcheck(name: str, case: Case, requires_grad: bool, device: torch.device) -> None:
    opcheck(name, case, torch.float32, device, requires_grad)


@operators
@settings(max_examples=4)
@given(case=drawn_cases(), seed=seeds)
def test_opcheck_on_drawn_problems(name: str, case: Case, seed: int, device: torch.device) -> None:
    opcheck(name, case, torch.float64, device, True, seed)


@operators
def test_opcheck_in_half(name: str, device: torch.device) -> None:
    opcheck(name, CHECKED[0], torch.bfloat16, device, True)


@operators
@cases
@dtypes
def test_meta(name: str, case: Case, dtype: torch.dtype, map_dtype: torch.dtype) -> None:
    """Shapes, types and strides without values."""
    tensors = pick(name, make_tensors(case, dtype, map_dtype))
    outcomes = []
    for device in ("cpu", "meta"):
        results = as_list(operator(name, case)(*(t.to(device) for t in tensors)))
        assert all(result.device.type == device for result in results)
        outcomes.append([(r.shape, r.dtype, r.stride(), r.is_contiguous()) for r in results])
    assert outcomes[0] == outcomes[1]


@operators
def test_meta_takes_sizes_that_no_memory_holds(name: str) -> None:
    case = Case("vast", 64, 1024, (2**14, 2**14), padding=(1, 1), groups=4, rates=2)
    shapes = {"input": case.input_shape, "dilation_map": case.map_shape, "columns": case.columns_shape}
    results = {"input": case.input_shape, "columns": case.columns_shape, "map": case.map_shape}
    results["dot"] = case.dot_shape
    expected = {
        "unfold": ["columns"],
        "unfold_backward": ["input", "map"],
        "fold": ["input"],
        "sample": ["columns"],
        "sample_backward": ["input", "map"],
        "splat": ["input"],
        "dot": ["dot"],
        "dynamic_dilation_unfold": ["columns"],
        "dynamic_dilation_fold": ["input"],
    }[name]
    tensors = [torch.empty(shapes[argument], device="meta") for argument in OPERATORS[name]]
    actual = as_list(operator(name, case)(*tensors))
    assert [tuple(r.shape) for r in actual] == [results[e] for e in expected]
