"""Errors of the operator and of the ``grid_sample`` composite against float64, over random cases.

    python -m benchmarks.accuracy                        print the table
    python -m benchmarks.accuracy --write docs/guarantees.md    put it between the device's marks of that page

Every case is computed by the reference in float64 from the same rounded arguments. An error is relative to the entry,
or to the root mean square of that result of that case where the entry is smaller.
"""

import argparse
import dataclasses
import itertools
import math
import random
import re
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.contenders import ddu, grid_sample
from ddu_ops import reference

RESULTS = ("columns", "gradient by the image", "gradient by the positions")
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
CONTENDERS: dict[str, Callable[..., Tensor]] = {
    "ddu_ops": ddu,
    "grid_sample": grid_sample,
}
WIDEST = 100_000
# Axes and source of the windows.
PROBLEMS = {"rates": (2, "rates"), "rates, three axes": (3, "rates"), "offsets": (2, "offsets")}


@dataclasses.dataclass
class Error:
    """Of all entries of one result that were seen so far."""

    largest: float = 0.0
    squares: float = 0.0
    entries: int = 0

    def add(self, actual: Tensor, expected: Tensor) -> None:
        unit = expected.square().mean().sqrt()
        if unit == 0:
            self.largest = math.inf if actual.any() else self.largest
            return
        error = (actual.double() - expected) / expected.abs().clamp_min(unit)
        largest = error.abs().max().item()
        self.largest = largest if math.isnan(largest) else max(self.largest, largest)
        self.squares += error.square().sum().item()
        self.entries += error.numel()

    @property
    def root_mean_square(self) -> float:
        return math.sqrt(self.squares / self.entries)


def by_reference(input: Tensor, positions: Tensor, kernel_size: int, source: str) -> Tensor:
    return reference.sample(input, positions, source, kernel_size, padding=kernel_size // 2)


def results(contender: Callable[..., Tensor], *tensors: Tensor, kernel_size: int, source: str) -> list[Tensor]:
    """Columns and both gradients."""
    input, positions, weights = (t.detach() for t in tensors)
    leaves = input.requires_grad_(), positions.requires_grad_()
    columns = contender(*leaves, kernel_size, source)
    return [columns.detach(), *torch.autograd.grad(columns, leaves, weights)]


def draw_size(rng: random.Random, axes: int, widest: int) -> list[int]:
    """One axis is up to ``widest``, wherever it stands, the others as long as time allows."""
    size: list[int] = []
    long = width = round(math.exp(rng.uniform(math.log(4), math.log(widest))))
    for _ in range(axes - 1):
        size.append(rng.randint(1, max(1, min(64 if axes == 2 else 16, 8192 // width))))
        width *= size[-1]
    size.insert(int(axes * rng.random()), long)
    return size


def measure(
    dtype: torch.dtype, cases: int, problem: str = "rates", widest: int = WIDEST, device: str = "cpu"
) -> dict[str, dict[str, Error]]:
    """The errors by contender and result. The cases are the same for every type and device, but for their rounding."""
    rng, generator = random.Random(0), torch.Generator().manual_seed(0)
    errors = {name: {result: Error() for result in RESULTS} for name in CONTENDERS}
    axes, source = PROBLEMS[problem]
    for _ in range(cases):
        size = draw_size(rng, axes, widest)
        batch, channels, kernel_size = (
            rng.randint(1, 2),
            rng.choice([1, 2, 5]),
            rng.choice([3, 3, 5 if axes < 3 else 1]),
        )
        if math.prod(size) > 16_384:  # of so many entries, one channel tells enough
            batch = channels = 1
        taps = kernel_size**axes
        parameters = 1 if source == "rates" else axes * taps
        draw = {"generator": generator, "dtype": torch.float64}
        input = torch.randn((batch, channels, *size), **draw)
        # Multiples of 2^-20: so the reference has every position exactly, and what is measured is not its own error.
        positions = torch.randint(-1 << 20, 5 << 20, (batch, parameters, *size), generator=generator) / 2**20
        weights = torch.randn((batch, channels * taps, math.prod(size)), **draw)
        tensors = [t.to(device, dtype) for t in (input, positions, weights)]
        options = {"kernel_size": kernel_size, "source": source}
        expected = results(by_reference, *(t.double() for t in tensors), **options)
        for name, contender in CONTENDERS.items():
            actual = results(contender, *tensors, **options)
            for result, mine, right in zip(RESULTS, actual, expected, strict=True):
                errors[name][result].add(mine, right)
    return errors


def table(cases: int, problems: list[str], device: str) -> str:
    lines = [
        "| windows | type | result | " + " | ".join(f"{name}: RMS | largest" for name in CONTENDERS) + " |",
        "| --- | --- | --- |" + " --- |" * (2 * len(CONTENDERS)),
    ]
    for problem, dtype in itertools.product(problems, DTYPES):
        errors = measure(dtype, cases, problem, device=device)
        for result in RESULTS:
            figures = [f"{e.root_mean_square:.1e} | {e.largest:.1e}" for e in (errors[n][result] for n in CONTENDERS)]
            lines.append(f"| {problem} | {str(dtype).removeprefix('torch.')} | {result} | {' | '.join(figures)} |")
    return "\n".join(lines)


def write(path: Path, text: str, device: str) -> None:
    """Between the marks ``<!-- accuracy cpu -->`` and ``<!-- /accuracy cpu -->``, or those of another device."""
    begin, end = f"<!-- accuracy {device} -->\n", f"<!-- /accuracy {device} -->"
    page, count = re.subn(
        f"(?<={re.escape(begin)}).*?(?={re.escape(end)})",
        lambda _: f"\n{text}\n\n",
        path.read_text(encoding="utf-8"),
        flags=re.DOTALL,
    )
    assert count == 1, f"no place for the table in {path}"
    path.write_text(page, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=2000, help="of each type")
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=list(PROBLEMS))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--write", type=Path)
    arguments = parser.parse_args()
    text = table(arguments.cases, arguments.problems, arguments.device)
    print(text)
    if arguments.write:
        write(arguments.write, text, torch.device(arguments.device).type)


if __name__ == "__main__":
    main()
