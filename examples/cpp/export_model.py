"""Compiles a layer ahead of time for run_model.cpp, and saves an input of another size with its output."""

import sys
from pathlib import Path

import torch

import ddu_ops


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    model = ddu_ops.DynamicDilationConv2d(3, 8, 3, padding=1).eval()
    torch.nn.init.normal_(model.rate.weight, std=0.3)  # as if trained: rates that differ from place to place
    batch, side = torch.export.Dim("batch", max=16), torch.export.Dim("side", min=4, max=64)
    shapes = ({0: batch, 2: side, 3: side},)
    program = torch.export.export(model, (torch.randn(2, 3, 16, 16),), dynamic_shapes=shapes)
    torch._inductor.aoti_compile_and_package(program, package_path=str(folder / "model.pt2"))

    input = torch.randn(3, 3, 20, 20)
    torch.save(input, folder / "input.pt")
    with torch.no_grad():
        torch.save(model(input), folder / "output.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
