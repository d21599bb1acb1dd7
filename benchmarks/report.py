"""The output: a table, JSON and a plot."""

import json
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def table(rows: list[Row], before: Path | None = None) -> str:
    """Markdown. Times in milliseconds and ratios of them, forward / backward.

    Memory is that of a step: ``÷ input`` is what it takes besides the columns and their gradient, in sizes of the
    input. ``before`` is an output of the same command.
    """
    lines: list[str] = []
    earlier = {} if before is None else {key(row): row["ms"] for row in json.loads(before.read_text())["rows"]}
    for section in dict.fromkeys(row["section"] for row in rows):
        here = [row for row in rows if row["section"] == section]
        floored = "floor_ms" in here[0]
        names = list(dict.fromkeys(name for row in here for name in row["ms"]))
        head = ["workload", "type", "map"]
        first, *others = names
        head += ["floor ms", "÷ floor"] if floored else []
        head += ["before ÷ now"] if earlier else []
        head += [f"{name} ms" for name in names] + [f"÷ {name}" for name in others]
        head += [f"memory {name}" for name in names]
        head += ["÷ input"] if floored else []
        lines += [f"### {section}", "", row_of(head), row_of(["---"] * len(head))]
        for row in here:
            cells = [f"{row['workload']} {row['size']}", row["dtype"], row["map"]]
            ms, memory = row["ms"], row["memory"]
            if floored:
                floor = row.get("floor_ms")
                cells += ["", ""] if floor is None else [pair(floor, ".3f"), ratios(ms[first], floor)]
            if earlier:
                cells.append(ratios(earlier[key(row)][first], ms[first]) if key(row) in earlier else "")
            cells += [pair(ms[name], ".4g") if name in ms else "" for name in names]
            cells += [ratios(ms[first], ms[name]) if name in ms else "" for name in others]
            cells += [f"{memory[name] / 2**20:.1f} MiB" if name in memory else "" for name in names]
            if floored:
                known = row.get("input_bytes")
                cells.append(f"{(memory[first] - 2 * row['columns_bytes']) / known:.2f}" if known else "")
            lines.append(row_of(cells))
        lines.append("")
    return "\n".join(lines)


def key(row: Row) -> tuple[str, ...]:
    return tuple(row[name] for name in ("section", "workload", "size", "dtype", "map"))


def pair(values: Any, form: str) -> str:
    return " / ".join(format(value, form) for value in values)


def ratios(ours: Any, theirs: Any) -> str:
    return pair([a / b for a, b in zip(ours, theirs, strict=True)], ".2f")


def row_of(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def save(rows: list[Row], text: str, environment: dict[str, Any], path: Path) -> None:
    """``text`` is the table of the rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".json").write_text(json.dumps({"environment": environment, "rows": rows}, indent=1) + "\n")
    facts = "\n".join(f"- {key}: {value}" for key, value in environment.items())
    path.with_suffix(".md").write_text(f"{facts}\n\n{text}")


def combined(paths: list[Path]) -> tuple[list[Row], dict[str, Any]]:
    """Several runs of one command as one: the least of each time, for what else a machine does only adds to it."""
    runs = [json.loads(path.read_text()) for path in paths]
    rows: list[Row] = []
    for same in zip(*(run["rows"] for run in runs), strict=True):
        if len({(row["section"], row["workload"], row["dtype"], row["map"], *row["ms"]) for row in same}) != 1:
            raise SystemExit(f"these are not runs of one command: {', '.join(map(str, paths))}")
        row = dict(same[0])
        row["ms"] = {name: [min(r["ms"][name][i] for r in same) for i in range(2)] for name in row["ms"]}
        row["memory"] = {name: max(r["memory"][name] for r in same) for name in row["memory"]}
        if row.get("floor_ms"):
            row["floor_ms"] = [min(r["floor_ms"][i] for r in same) for i in range(2)]
        rows.append(row)
    return rows, runs[0]["environment"] | {"times": f"the least of {len(runs)} runs"}


def plot(rows: list[Row], environment: dict[str, Any], path: Path) -> None:
    """Forward and backward of the unfold, as multiples of the floor; nothing where no row has one."""
    here = [row for row in rows if row.get("floor_ms") and row["section"] == "unfold" and row["map"] == "smooth"]
    if not here:
        return
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(name for row in here for name in row["ms"]))
    colours = dict(zip(names, ["#d1495b", "#6c757d", "#3a7ca5", "#81b1d5"], strict=False))
    dtypes = list(dict.fromkeys(row["dtype"] for row in here))
    figure = Figure(figsize=(11, 1.2 + 3.4 * len(dtypes)), layout="constrained")
    grid = figure.subplots(len(dtypes), 2, sharex="col", squeeze=False)
    for line, dtype in zip(grid, dtypes, strict=True):
        for i, (axes, direction) in enumerate(zip(line, ("forward", "backward"), strict=True)):
            chosen = [row for row in here if row["dtype"] == dtype]
            height = 0.8 / len(names)
            for k, name in enumerate(names):
                where = [y + (k - (len(names) - 1) / 2) * height for y, row in enumerate(chosen) if name in row["ms"]]
                ratios = [row["ms"][name][i] / row["floor_ms"][i] for row in chosen if name in row["ms"]]
                bars = axes.barh(where, ratios, 0.9 * height, color=colours[name], label=name)
                axes.bar_label(bars, fmt=" %.1f", fontsize=6.5, color="#333333")
            axes.set_yticks(range(len(chosen)), [row["workload"] for row in chosen])
            axes.invert_yaxis()
            axes.set_xscale("log")
            axes.axvline(1, color="black", linewidth=0.8)
            axes.spines[["top", "right"]].set_visible(False)
            axes.set_title(f"{direction}, {dtype}", loc="left", fontsize=10)
    for axes in grid[-1]:
        axes.set_xlabel("time ÷ floor (every byte once, at the copy bandwidth)")
    figure.suptitle(f"{environment['device']}, smooth map; F.unfold has one rate for everything", fontsize=10)
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(names), frameon=False)
    figure.savefig(path.with_suffix(".png"), dpi=150)
