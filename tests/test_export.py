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
    """The unfold with a map of its own making, and back."""

    def __init__(self, groups: int = 1) -> None:
        super().__init__()
        self.rate = nn.Conv2d(4, groups, 3, padding=1)
        self.unfold = ddu_ops.DynamicDilationUnfold(3, padding=1, groups=groups)
        self.groups = groups

    def forward(self, input: Tensor) -> Tensor:
        dilation_map = F.softplus(self.rate(input))
        columns = self.unfold(input, dilation_map)
        return ddu_ops.dynamic_dilation_fold(
            columns.tanh(), input.shape[-2:], 3, dilation_map, padding=1, groups=self.groups
        )


SIZES = [(2, 4, 6, 7), (3, 4, 9, 5), (7, 4, 10, 10)]


def exported(model: Model, device: torch.device, strict: bool = False) -> torch.export.ExportedProgram:
    batch, height, width = (torch.export.Dim(name, min=2, max=64) for name in ("batch", "height", "width"))
    return torch.export.export(
        model,
        (torch.randn(2, 4, 6, 7, device=device),),
        dynamic_shapes={"input": {0: batch, 2: height, 3: width}},
        strict=strict,
    )


def ours(program: torch.export.ExportedProgram) -> set[str]:
    return {str(n.target) for n in program.graph.nodes if getattr(n.target, "namespace", "") == "ddu"}


def check(run: Callable[[Tensor], Tensor], model: Model, device: torch.device) -> None:
    with torch.no_grad():
        for shape in SIZES:
            input = torch.randn(shape, device=device)
            torch.testing.assert_close(run(input), model(input), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("strict", [False, True], ids=["non_strict", "strict"])
def test_saved_and_loaded(strict: bool, device: torch.device, tmp_path: Path) -> None:
    model = Model(groups=2).to(device)
    program = exported(model, device, strict)
    torch.export.save(program, tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2")
    assert ours(loaded) == {"ddu.dynamic_dilation_unfold.default", "ddu.dynamic_dilation_fold.default"}
    check(loaded.module(), model, device)


def test_operators_stay_opaque_unless_asked(device: torch.device) -> None:
    model = Model().to(device)
    program = exported(model, device)
    opaque = program.run_decompositions()
    assert ours(opaque) == {"ddu.unfold.default", "ddu.fold.default"}
    check(opaque.module(), model, device)
    taken_apart = program.run_decompositions(ddu_ops.decompositions())
    assert not ours(taken_apart)
    check(taken_apart.module(), model, device)


def test_exported_for_training(device: torch.device) -> None:
    """The exported module has the gradients of the model."""
    model = Model().to(device)
    trained = exported(model, device).module()
    input = torch.randn(3, 4, 9, 5, device=device)
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


def test_package_of_aot_inductor(device: torch.device, tmp_path: Path) -> None:
    """Compiled ahead of time into a file that is loaded and run without the model, for any size."""
    model = Model().to(device)
    with torch.no_grad():
        path = torch._inductor.aoti_compile_and_package(
            exported(model, device), package_path=str(tmp_path / "model.pt2")
        )
    check(torch._inductor.aoti_load_package(path), model, device)
