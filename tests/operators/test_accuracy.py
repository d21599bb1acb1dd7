"""Errors over random cases, images up to 100,000 pixels wide: the bounds of the table in docs/guarantees.md."""

import sys

import pytest
import torch

from cases import TOLERANCES
from processes import ROOT

sys.path.append(str(ROOT))

from benchmarks.accuracy import DTYPES, PROBLEMS, RESULTS, measure


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_errors_stay_below_their_bounds(dtype: torch.dtype, problem: str) -> None:
    """Every result as a whole far below the tolerance, and no entry beyond it."""
    errors = measure(dtype, cases=12 if problem == "rates" else 4, problem=problem)
    for result in RESULTS:
        mine = errors["ddu_ops"][result]
        assert mine.entries > 10_000
        assert mine.root_mean_square < TOLERANCES[dtype] / 4, result
        assert mine.largest < TOLERANCES[dtype], result
        # A composite loses the positions' bits to the size of the image; nothing here does.
        theirs = errors["grid_sample"][result]
        assert dtype == torch.float64 or not theirs.root_mean_square < 100 * mine.root_mean_square
    if dtype == torch.float64:  # where enough of them are left, it takes the same samples
        assert errors["grid_sample"]["columns"].root_mean_square < 1e-9
