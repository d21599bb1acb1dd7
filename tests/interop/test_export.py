"""torch.export and AOTInductor: saved, loaded and run for other sizes, with the operators opaque."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ddu_ops

# What torch.export.load says of itself in torch 2.11.
pytestmark = pytest.mark.filterwarnings("ignore:The given buffer is not writable:UserWarning")


class Model(nn.Module):
    """The unfold with positions of its own making; with rates, and back."""

    def __init__(self, groups: int = 1, axes: int = 2, source: str = "rates", padding_mode: str = "zeros") -> None:
        super().__init__()
        self.axes, self.source = axes, source
        self.window = {"padding": 1, "groups": groups, "padding_mode": padding_mode}
        parameters = {"rates": 1, "offsets": axes * 3**axes, "affine": axes * (axes + 1)}[source]
        self.positions = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1](4, groups * parameters, 3, padding=1)

    def forward(self, input: Tensor) -> Tensor:
        positions = self.positions(input)
        if self.source != "rates":
            return operators(self.source, self.axes)[0](input, 3, positions, **self.window)
        unfold, fold = operators("rates", self.axes)
        positions = F.softplus(positions)
        return fold(unfold(input, 3, positions, **self.window).tanh(), input.shape[2:], 3, positions, **self.window)


def operators(source: str, axes: int) -> tuple[Callable[..., Tensor], ...]:
    unfolds = [ddu_ops.dynamic_dilation_unfold1d, ddu_ops.dynamic_dilation_unfold, ddu_ops.dynamic_dilation_unfold3d]
    folds = [ddu_ops.dynamic_dilation_fold1d, ddu_ops.dynamic_dilation_fold, ddu_ops.dynamic_dilation_fold3d]
    offsets = [ddu_ops.deform_unfold1d, ddu_ops.deform_unfold2d, ddu_ops.deform_unfold3d]
    affine = [ddu_ops.affine_unfold1d, ddu_ops.affine_unfold2d, ddu_ops.affine_unfold3d]
    found = {"rates": (unfolds, folds), "offsets": (offsets,), "affine": (affine,)}[source]
    return tuple(of_axes[axes - 1] for of_axes in found)


KINDS = {
    "rates": {},
    "one_axis": {"axes": 1, "groups": 2, "padding_mode": "reflection"},
    "three_axes": {"axes": 3, "padding_mode": "border"},
    "offsets": {"source": "offsets", "groups": 2},
    "affine": {"source": "affine", "groups": 2, "padding_mode": "border"},
    "offsets_of_three_axes": {"source": "offsets", "axes": 3, "padding_mode": "reflection"},
}
every_kind = pytest.mark.parametrize("kind", KINDS)

SIZES = [(2, (6, 7, 5)), (3, (9, 5, 4)), (7, (10, 10, 3))]  # a batch, and as many numbers as there are axes


def image(model: Model, batch: int, size: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.randn(batch, 4, *size[: model.axes], device=device)


def exported(model: Model, device: torch.device, strict: bool = False) -> torch.export.ExportedProgram:
    dims = (0, *range(2, 2 + model.axes))
    return torch.export.export(
        model,
        (image(model, *SIZES[0], device),),
        dynamic_shapes={"input": {dim: torch.export.Dim(f"size_{dim}", min=2, max=64) for dim in dims}},
        strict=strict,
    )


def ours(program: torch.export.ExportedProgram) -> set[str]:
    return {str(n.target) for n in program.graph.nodes if getattr(n.target, "namespace", "") == "ddu"}


def check(run: Callable[[Tensor], Tensor], model: Model, device: torch.device) -> None:
    with torch.no_grad():
        for size in SIZES:
            input = image(model, *size, device)
            torch.testing.assert_close(run(input), model(input), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("strict", [False, True], ids=["non_strict", "strict"])
def test_saved_and_loaded(strict: bool, device: torch.device, tmp_path: Path) -> None:
    model = Model(groups=2).to(device)
    program = exported(model, device, strict)
    torch.export.save(program, tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2")
    assert ours(loaded) == {"ddu.dynamic_dilation_unfold.default", "ddu.dynamic_dilation_fold.default"}
    check(loaded.module(), model, device)


@every_kind
def test_operators_stay_opaque_unless_asked(kind: str, device: torch.device) -> None:
    model = Model(**KINDS[kind]).to(device)
    program = exported(model, device)
    opaque = program.run_decompositions()
    strict = {"ddu.unfold.default", "ddu.fold.default"} if model.source == "rates" else {"ddu.sample.default"}
    assert ours(opaque) == strict
    check(opaque.module(), model, device)
    taken_apart = program.run_decompositions(ddu_ops.decompositions())
    assert not ours(taken_apart)
    check(taken_apart.module(), model, device)


@every_kind
def test_exported_for_training(kind: str, device: torch.device) -> None:
    """The exported module has the gradients of the model."""
    model = Model(**KINDS[kind]).to(device)
    trained = exported(model, device).module()
    input = image(model, *SIZES[1], device)
    grads = []
    for module in (trained, model):
        module.zero_grad()
        module(input).square().sum().backward()
        grads.append({name: p.grad.clone() for name, p in module.named_parameters()})
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        torch.testing.assert_close(grad, grads[1][name], rtol=1e-4, atol=1e-4)


def test_a_size_outside_of_the_exported_range_is_refused(device: torch.device) -> None:
    program = exported(Model().to(device), device)
    with pytest.raises((RuntimeError, AssertionError), match=r"Guard failed|<= 64|range"):
        program.module()(torch.randn(65, 4, 6, 7, device=device))


@every_kind
def test_package_of_aot_inductor(kind: str, device: torch.device, tmp_path: Path) -> None:
    """Compiled ahead of time into a file that is loaded and run without the model, for any size."""
    model = Model(**KINDS[kind]).to(device)
    with torch.no_grad():
        path = torch._inductor.aoti_compile_and_package(
            exported(model, device), package_path=str(tmp_path / "model.pt2")
        )
    check(torch._inductor.aoti_load_package(path), model, device)
