"""Forward and backward of sums over windows, beside the same from columns."""

import results
from matplotlib import pyplot

table = results.tables("cuda_sums")[0]
cases: dict[tuple[str, str], dict[str, results.Row]] = {}
for row in table:
    size = next((size for work, size in cases if work == row["work"]), row["size"])
    if row["channels"] == "last" and row["size"] == size:  # the first of each work
        cases.setdefault((row["work"], size), {})[row["contender"]] = row
colours = {"ours": "C3", "our unfold and einsum": "C0", "F.unfold": "0.45"}
names = {
    "ours": "ddu_ops",
    "our unfold and einsum": "columns of ddu_ops",
    "F.unfold": "columns of F.unfold",
}
figure, axes = pyplot.subplots(
    1, 2, figsize=(6.2, 5), layout="constrained", sharey=True
)
labels = []
for index, ((work, size), contenders) in enumerate(cases.items()):
    labels.append(f"{work}\n{size}")
    shown = {
        name.strip("()").replace("F.unfold and einsum", "F.unfold"): row
        for name, row in contenders.items()
    }
    shown = {name: row for name, row in shown.items() if name in colours}
    for place, (name, row) in enumerate(shown.items()):
        y = index + 0.27 * (place - 1)
        axes[0].barh(
            y,
            float(row["forward ms"]) + float(row["backward ms"]),
            0.25,
            color=colours[name],
        )
        axes[1].barh(y, float(row["MiB"]), 0.25, color=colours[name])
axes[0].set_yticks(range(len(labels)), labels, fontsize=6)
axes[0].invert_yaxis()
axes[0].set(xlabel="forward + backward, ms", xscale="log")
axes[1].set(xlabel="MiB", xscale="log")
for ax in axes:
    ax.spines[["top", "right"]].set_visible(False)
handles = [pyplot.Rectangle((0, 0), 1, 1, color=colour) for colour in colours.values()]
figure.legend(
    handles, names.values(), loc="outside lower center", ncols=3, frameon=False
)
