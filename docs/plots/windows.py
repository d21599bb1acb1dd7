"""How long windows take, as a fraction of the time of F.unfold and of F.grid_sample."""

import results
from matplotlib import pyplot

panels = [
    ("H200, float32", "cuda", "float32", "smooth"),
    ("H200, float16", "cuda", "float16", "smooth"),
    ("One CPU core, float32", "cpu_1_thread", "float32", "random"),
]
names = ("F.unfold", "grid_sample")
figure, axes = pyplot.subplots(3, 1, figsize=(5.2, 8.5), layout="constrained")
for ax, (title, page, dtype, kind) in zip(axes, panels, strict=True):
    table = results.tables(page)[0]
    rows = [row for row in table if (row["type"], row["map"]) == (dtype, kind)]
    for index, row in enumerate(rows):
        for offset, name, colour in zip(
            (-0.2, 0.2), names, ("0.45", "C0"), strict=True
        ):
            value = float(row[f"÷ {name}"])
            ax.barh(index + offset, value, 0.38, color=colour)
            ax.text(
                value + 0.01, index + offset, f"{value:.2f}", fontsize=7, va="center"
            )
    labels = [row["workload"].partition(" ")[2] for row in rows]
    ax.set_yticks(range(len(rows)), labels, fontsize=7)
    ax.axvline(1, color="black", linewidth=0.8)
    ax.set(title=title, xlim=(0, 1.4), xlabel="time ÷ that of the other")
    ax.invert_yaxis()
    ax.spines[["top", "right"]].set_visible(False)
handles = [pyplot.Rectangle((0, 0), 1, 1, color=colour) for colour in ("0.45", "C0")]
figure.legend(handles, names, loc="outside lower center", ncols=2, frameon=False)
