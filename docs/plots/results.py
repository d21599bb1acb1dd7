"""Reads the tables of benchmarks/results."""

from pathlib import Path

FOLDER = Path(__file__).parents[2] / "benchmarks" / "results"

Row = dict[str, str]


def tables(name: str) -> list[list[Row]]:
    """Of one page, each row by the names of its columns."""
    found: list[list[Row]] = []
    header: list[str] | None = None
    for line in (FOLDER / f"{name}.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|"):
            header = None
        elif header is None:
            header = cells
            found.append([])
        elif set(cells) != {"---"}:
            found[-1].append(dict(zip(header, cells, strict=True)))
    return found


def pair(cell: str) -> tuple[float, float]:
    """Forward and backward."""
    forward, backward = cell.split("/")
    return float(forward), float(backward)


def both(row: Row, ratio: str, time: str = "ms") -> float:
    """Of forward and backward together, from the ratios of each."""
    ours, ratios = pair(row[time]), pair(row[ratio])
    theirs = [a / b for a, b in zip(ours, ratios, strict=True)]
    return sum(ours) / sum(theirs)
