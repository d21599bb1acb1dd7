"""How long a layer takes, and how much memory, beside one with a fixed rate and beside columns."""

import results
from matplotlib import pyplot

half, full, tf32 = "float16", "float32", "float32, TF32"
pages = results.tables("cuda_layers")
cpu = results.tables("cpu_layers")[0]
panels = [
    ("H100, float16", [row for row in pages[0] if row["type"] == half][:4]),
    ("H100, TF32", pages[1]),
    ("One CPU core, float32", cpu),
]
others = {"columns": "C0", "fixed rates": "0.45"}
figure, axes = pyplot.subplots(
    3, 2, figsize=(6.2, 7), sharey="row", layout="constrained"
)
for (title, rows), (time, memory) in zip(panels, axes, strict=True):
    labels = [row["layer"].replace(" k=3", "") for row in rows]
    for index, row in enumerate(rows):
        for offset, (other, colour) in zip((-0.2, 0.2), others.items(), strict=True):
            value = results.both(row, f"÷ {other}")
            time.barh(index + offset, value, 0.38, color=colour)
            time.text(value, index + offset, f" {value:.2g}", fontsize=7, va="center")
        bars = {
            "C3": row["MiB"],
            "C0": row["columns MiB"],
            "0.45": row["fixed rates MiB"],
        }
        for offset, (colour, mebibytes) in zip(
            (-0.27, 0, 0.27), bars.items(), strict=True
        ):
            memory.barh(index + offset, float(mebibytes), 0.25, color=colour)
            memory.text(
                float(mebibytes),
                index + offset,
                f" {mebibytes}",
                fontsize=7,
                va="center",
            )
    time.axvline(1, color="black", linewidth=0.8)
    time.set(
        title=title, xlabel="time ÷ that of the other", xscale="log", xlim=(0.2, 10)
    )
    time.set_xticks([0.2, 0.5, 1, 2, 5, 10], ["0.2", "0.5", "1", "2", "5", "10"])
    memory.set(xscale="log")
    memory.margins(x=0.15)
    time.invert_yaxis()
    for ax in (time, memory):
        ax.set_yticks(range(len(rows)), labels, fontsize=7)
        ax.spines[["top", "right"]].set_visible(False)
axes[-1, 0].set_xlabel("time ÷ that of the other")
axes[-1, 1].set_xlabel("MiB of a training step")
colours = {"ddu_ops": "C3", **others}
handles = [pyplot.Rectangle((0, 0), 1, 1, color=colour) for colour in colours.values()]
figure.legend(handles, colours, loc="outside lower center", ncols=3, frameon=False)
