"""The plots: their contents, and the axes that they are drawn on."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import pyplot
from matplotlib.axes import Axes

import ddu_ops
from cases import CASES, Case, make_tensors
from ddu_ops import receptive_field, viz
from processes import python


@pytest.fixture(autouse=True)
def close() -> Iterator[None]:
    yield
    pyplot.close("all")


@pytest.mark.parametrize(
    "case",
    [c for c in CASES if c.batch and c.groups == 1 and c.axes == 2 and c.padding_mode == "zeros"],
    ids=str,
)
def test_tap_positions_are_the_operators(case: Case) -> None:
    """The taps of two ramps, the row and the column of every pixel, wherever a tap lies inside."""
    _, positions, _ = make_tensors(case)
    height, width = case.size
    ramps = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")).double()
    window = (case.stride, case.padding, case.dilation)
    if case.source == "rates":
        columns = ddu_ops.dynamic_dilation_unfold(ramps, case.kernel_size, positions[0], *window, aligned=case.aligned)
    else:
        unfold = ddu_ops.affine_unfold2d if case.source == "affine" else ddu_ops.deform_unfold2d
        columns = unfold(ramps, case.kernel_size, positions[0], *window)
    sampled = columns.view(2, case.taps, *case.output_size).permute(2, 3, 1, 0)
    places = viz.tap_positions(positions[0], case.kernel_size, *window, aligned=case.aligned, source=case.source)
    last = torch.tensor([height - 1, width - 1])
    inside = ((places >= 0) & (places <= last)).all(-1)
    torch.testing.assert_close(places[inside], sampled[inside])


halves = pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=str)


@halves
def test_tap_positions_are_not_rounded(half: torch.dtype) -> None:
    """Of a map in a half type the places are those that the operator computes, in float32."""
    rates = torch.full((1, 3000), 1.7).to(half)
    places = viz.tap_positions(rates, (1, 3), padding=(0, 1))
    assert places.dtype == torch.float32
    assert torch.equal(places, viz.tap_positions(rates.float(), (1, 3), padding=(0, 1)))
    rate = rates[0, 0].item()
    assert places[0, 2900, :, 1].tolist() == pytest.approx([2900 - rate, 2900, 2900 + rate], abs=1e-3)


def test_tap_positions_refuse_another_shape() -> None:
    for source, shapes in (
        ("rates", r"\(H_out, W_out\) or \(2, H_out, W_out\)"),
        ("offsets", r"\(18, H_out, W_out\)"),
        ("affine", r"\(6, H_out, W_out\)"),
    ):
        message = rf"^tap_positions\(\): expected dilation_map of shape {shapes}, but got \(3,"
        with pytest.raises(ValueError, match=message):
            viz.tap_positions(torch.ones(3, 4, 4), 3, source=source)
    with pytest.raises(ValueError, match=r"^tap_positions\(\): expected source to be .*, but got 'taps'$"):
        viz.tap_positions(torch.ones(4, 4), 3, source="taps")


def test_dots_are_as_large_as_the_weights_of_their_taps() -> None:
    weights = torch.zeros(9, 5, 6)
    weights[:, 2, 3] = torch.arange(9.0)
    ax = viz.draw_taps(torch.rand(5, 6), torch.ones(5, 6), [(2, 3)], padding=1, weights=weights)
    areas = torch.tensor(ax.collections[0].get_sizes())
    torch.testing.assert_close(areas / areas.sum(), (weights[:, 2, 3] / 36).to(areas.dtype))
    with pytest.raises(ValueError, match=r"^draw_taps\(\): expected weights of shape \(9, 5, 6\), but got \(5, 6\)$"):
        viz.draw_taps(torch.rand(5, 6), torch.ones(5, 6), [(2, 3)], padding=1, weights=torch.ones(5, 6))


def render(drawn: Any) -> None:
    """Axes or a figure."""
    figure = drawn.figure if isinstance(drawn, Axes) else drawn
    figure.canvas.draw()


@halves
def test_a_receptive_field_in_a_half_type_is_summed_in_float32(half: torch.dtype) -> None:
    image = torch.randn(3, 512, 1, 1, dtype=half)
    field = viz.effective_receptive_field(lambda x: 300 * x, image, (0, 0))
    assert field.dtype == torch.float32
    assert field.item() == 512 * 300


def test_nothing_to_draw() -> None:
    """Images without pixels, no windows, no images, no channels, stacks that reach no pixel."""
    nothing = torch.ones(0, 4)
    assert viz.tap_positions(nothing, 3, padding=1).shape == (0, 4, 9, 2)
    render(viz.draw_map(nothing))
    render(viz.draw_taps(nothing, nothing, [], padding=1))
    render(viz.draw_taps(torch.ones(4, 4), torch.ones(4, 4), [], padding=1))
    conv = torch.nn.Conv2d(2, 3, 3, padding=1)
    assert viz.effective_receptive_field(conv, torch.randn(0, 2, 5, 5), (2, 2)).eq(0).all()
    render(viz.draw_effective_receptive_field(conv, torch.randn(0, 2, 5, 5), (2, 2)))
    assert viz.effective_receptive_field(lambda x: x, torch.randn(2, 0, 5, 5), (2, 2)).eq(0).all()
    figure = viz.draw_gridding([torch.nan], fixed=[1], size=5)
    assert figure.axes[1].get_title() == "Dynamic rates: 0% of the pixels in reach"
    render(figure)


def test_axes_are_those_that_were_given() -> None:
    _, axes = pyplot.subplots(1, 3)
    rates = torch.rand(8, 8) + 0.5
    assert viz.draw_taps(torch.rand(3, 8, 8), rates, [(2, 2)], padding=1, ax=axes[0]) is axes[0]
    assert viz.draw_map(rates, ax=axes[1], vmin=0, vmax=2) is axes[1]
    assert axes[1].images[0].get_clim() == (0, 2)
    conv = torch.nn.Conv2d(1, 1, 3, padding=1)
    assert viz.draw_effective_receptive_field(conv, torch.rand(2, 1, 8, 8), (4, 4), ax=axes[2]) is axes[2]
    taps = axes[0].collections[0].get_offsets()
    expected = viz.tap_positions(rates, 3, padding=1)[2, 2].flip(-1)
    torch.testing.assert_close(torch.tensor(taps.data), expected.double())


def test_gridding() -> None:
    """Of the rates 2, 2, 2: every second pixel, with as many paths as there are ways to add up three steps."""
    pattern = viz.gridding_pattern([2, 2, 2], size=17)
    ways = torch.tensor([1, 3, 6, 7, 6, 3, 1], dtype=torch.float64)
    torch.testing.assert_close(pattern[2:15:2, 2:15:2], torch.outer(ways, ways))
    assert pattern.sum() == 9**3
    with pytest.raises(ValueError, match=r"^gridding_pattern\(\): expected kernel_size to be odd, but got 2"):
        viz.gridding_pattern([1], kernel_size=2)


@pytest.mark.filterwarnings("ignore:coverage")
def test_coverage_is_drawn_with_its_holes() -> None:
    """A pixel without a path on either axis is masked, and the title tells both criteria."""
    ax = viz.draw_coverage(receptive_field.coverage([2, 2, 2, 2]))
    assert ax.get_title() == "28% of 17 × 17 pixels\nHDC passes: M₂ = 2"
    drawn = ax.images[0].get_array()
    assert (~drawn.mask).sum() == 81
    assert drawn.max() == 19**2
    render(ax)
    assert viz.draw_coverage(receptive_field.coverage([3])).get_title() == "18% of 7 × 7 pixels"


def test_receptive_fields_are_drawn_as_lines() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 1, (3, 5), 2, 1), torch.nn.AdaptiveAvgPool2d(1))
    ax = viz.draw_receptive_fields(receptive_field.trace(model), axis=1)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["0: 5", "1: all", "model: all"]
    assert list(ax.lines[0].get_xdata()) == [-1, 3]
    assert list(ax.lines[2].get_xdata()) == [3, 5, 7]
    render(ax)


def test_more_than_one_map_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"^draw_map\(\): expected dilation_map to be one map, but got shape \(2, 8, 8"
    ):
        viz.draw_map(torch.rand(2, 8, 8))


def test_matplotlib_is_imported_when_something_is_drawn() -> None:
    program = "import sys, ddu_ops.viz; assert 'matplotlib' not in sys.modules"
    python("-c", program)


def test_positions_lie_in_their_cells() -> None:
    """Those of the kernel's centre in the middle cell; lines lead from where they were."""
    positions = torch.tensor([[0.0, -1.5], [1.0, 2.0]])
    ax = viz.draw_positions(positions, (5, 7), torch.tensor([1.0, -2.0]), before=torch.zeros(2, 2))
    (points,) = ax.collections
    assert points.get_offsets().tolist() == [[4.0, 2.0], [5.0, 0.5]]
    assert [line.get_xydata().tolist() for line in ax.lines] == [[[3.0, 2.0], [4.0, 2.0]], [[3.0, 2.0], [5.0, 0.5]]]
    assert (ax.get_xlim(), ax.get_ylim()) == ((-0.5, 6.5), (4.5, -0.5))
    assert points.get_clim() == (-2.0, 2.0)
    assert viz.draw_positions(positions, 5).get_title() == "2 weights in 5 x 5 cells"


@pytest.mark.parametrize("form", [torch.tensor, np.array, np.int64])
def test_positions_by_index(form: Any) -> None:
    ax = viz.draw_taps(torch.rand(16, 16), torch.ones(16, 16), [(form(3), form(4)), (5, 6)], padding=1)
    assert ax.get_title() == "Taps of 2 windows"
    with pytest.raises(
        ValueError, match=r"^draw_taps\(\): expected positions to be a row and a column, but got \(1,\)$"
    ):
        viz.draw_taps(torch.rand(16, 16), torch.ones(16, 16), [(1,)], padding=1)  # type: ignore[list-item]
