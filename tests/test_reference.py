"""The judge judged: the reference against F.unfold, F.fold and F.grid_sample."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cases import CASES, Case, cases, flat_map, fold_reference, make_tensors, unfold_reference


def by_grid_sample(case: Case, input: Tensor, dilation_map: Tensor) -> Tensor:
    """The formula of the operator, window by window and tap by tap, over F.grid_sample."""
    batch, channels, (height, width) = case.batch, case.channels, case.size
    (kernel_h, kernel_w), (out_h, out_w) = case.kernel_size, case.output_size
    columns = input.new_empty(batch, channels, kernel_h, kernel_w, out_h, out_w)
    per_group = channels // case.groups
    i, j = (torch.arange(n, dtype=torch.float64) for n in case.output_size)
    for g in range(case.groups):
        rate_h = dilation_map[:, g * case.rates]
        rate_w = dilation_map[:, g * case.rates + case.rates - 1]
        group = slice(g * per_group, (g + 1) * per_group)
        for m in range(kernel_h):
            for n in range(kernel_w):
                centre_h, centre_w = (case.aligned * d * (k - 1) / 2 for d, k in zip(case.dilation, case.kernel_size))
                y = i.view(-1, 1) * case.stride[0] - case.padding[0] + centre_h
                y = y + (m - (kernel_h - 1) / 2) * case.dilation[0] * rate_h
                x = j * case.stride[1] - case.padding[1] + centre_w
                x = x + (n - (kernel_w - 1) / 2) * case.dilation[1] * rate_w
                grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], -1)
                columns[:, group, m, n] = F.grid_sample(input[:, group], grid, align_corners=False)
    return columns.view(case.columns_shape)


@pytest.mark.parametrize("case", [c for c in CASES if c.batch and c.channels], ids=str)
def test_unfold_is_grid_sample(case: Case) -> None:
    input, dilation_map, _ = make_tensors(case)
    actual = unfold_reference(case, input, dilation_map)
    torch.testing.assert_close(actual, by_grid_sample(case, input, dilation_map), rtol=1e-12, atol=1e-12)


@cases
def test_fold_is_the_adjoint(case: Case) -> None:
    input, dilation_map, columns = make_tensors(case)
    torch.testing.assert_close(
        (unfold_reference(case, input, dilation_map) * columns).sum(),
        (input * fold_reference(case, columns, dilation_map)).sum(),
        rtol=1e-12,
        atol=1e-12,
    )


@pytest.mark.parametrize("case", [c for c in CASES if c.aligned and c.batch and c.channels], ids=str)
def test_a_map_of_ones_is_torch(case: Case) -> None:
    input, _, columns = make_tensors(case)
    options = {"dilation": case.dilation, "padding": case.padding, "stride": case.stride}
    ones = flat_map(case, 1.0)
    assert torch.equal(unfold_reference(case, input, ones), F.unfold(input, case.kernel_size, **options))
    torch.testing.assert_close(
        fold_reference(case, columns, ones),
        F.fold(columns, case.size, case.kernel_size, **options),
        rtol=1e-12,
        atol=1e-12,
    )
