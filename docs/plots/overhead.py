"""What a call costs where the work is next to nothing, as a fraction of the time of F.unfold."""

import results
from matplotlib import pyplot

pages = {"One CPU core": ("overhead_cpu", "0.45"), "H200": ("overhead_cuda", "C0")}
ratios = {
    name: {row["mode"]: float(row["÷ F.unfold"]) for row in results.tables(page)[0]}
    for name, (page, _) in pages.items()
}
modes = list(dict.fromkeys(mode for found in ratios.values() for mode in found))
figure, ax = pyplot.subplots(figsize=(5.2, 5), layout="constrained")
for offset, (name, found) in zip((-0.2, 0.2), ratios.items(), strict=True):
    colour = pages[name][1]
    for mode, ratio in found.items():
        y = modes.index(mode) + offset
        ax.barh(y, ratio, 0.38, color=colour)
        ax.text(ratio + 0.02, y, f"{ratio:.2f}", fontsize=7, va="center")
ax.set_yticks(range(len(modes)), modes, fontsize=7)
ax.invert_yaxis()
ax.axvline(1, color="black", linewidth=0.8)
ax.set(xlabel="time ÷ that of F.unfold", xlim=(0, 1.9))
ax.spines[["top", "right"]].set_visible(False)
handles = [pyplot.Rectangle((0, 0), 1, 1, color=colour) for _, colour in pages.values()]
figure.legend(handles, pages, loc="outside lower center", ncols=2, frameon=False)
