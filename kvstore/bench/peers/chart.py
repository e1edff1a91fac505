"""The comparison as a picture: one panel per case and size, systems grouped by where the chunks are, ours in colour."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kvstore.bench.measure import Row, machine
from kvstore.bench.peers.systems import BASELINE, REACHES

OURS, THEIRS, LINE, SOFT = "#2a7de1", "#b3b9c2", "#3a3f47", "#6b7280"
MiB = 1 << 20


def draw(rows: Sequence[Row], path: Path) -> None:
    """Write a PNG of GB/s, loads in the left column and stores in the right, one line of panels per size."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    sizes = sorted({row["bytes"] for row in rows if row["bytes"]})
    panels = [[_panel(rows, cases, nbytes) for cases in (("get", "get-leased"), ("put",))] for nbytes in sizes]
    heights = [max(len(panel) + len({row["reach"] for row in panel}) for panel in line) + 2.2 for line in panels]
    figure, grid = plt.subplots(
        len(sizes), 2, figsize=(11, 0.23 * sum(heights) + 0.9), layout="constrained", squeeze=False,
        height_ratios=heights,
    )  # fmt: skip
    for nbytes, line, axes_of_line in zip(sizes, panels, grid, strict=True):
        for name, panel, axes in zip(("load", "store"), line, axes_of_line, strict=True):
            case = "put" if name == "store" else "get"
            (memcpy,) = (r for r in rows if (r["system"], r["case"], r["bytes"]) == (BASELINE, case, nbytes))
            _bars(axes, panel, memcpy["gbps"], f"{name} one chunk of {nbytes / MiB:g} MiB, GB/s")
    on = f"{machine()['cpu']}, {machine()['cores']} cores"
    figure.suptitle("KV-cache stores on one machine, in one run", fontsize=13, x=0.01, ha="left", color=LINE)
    figure.supxlabel(
        f"dashed: memcpy in the same run. Medians, turns interleaved, content checked. {on}",
        fontsize=8, x=0.01, ha="left", color=SOFT,
    )  # fmt: skip
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _panel(rows: Sequence[Row], cases: tuple[str, ...], nbytes: int) -> list[Row]:
    chosen = [r for r in rows if r["case"] in cases and r["bytes"] == nbytes and r["system"] != BASELINE]
    return sorted(chosen, key=lambda row: (REACHES.index(row["reach"]), -float(row["gbps"])))


def _bars(axes: Any, panel: Sequence[Row], memcpy: float, title: str) -> None:
    places: list[int] = []
    for number, row in enumerate(panel):
        headed = not number or row["reach"] != panel[number - 1]["reach"]
        places.append((places[-1] if places else -1) + (2 if headed else 1))
        if headed:
            axes.text(0, places[-1] - 1, row["reach"], fontsize=8.5, color=SOFT, va="center", style="italic")
    labels = [row["system"] + (", leased" if row["case"] == "get-leased" else "") for row in panel]
    ours = [row["system"].startswith("kvstore-") for row in panel]
    colors = [OURS if mine else THEIRS for mine in ours]
    bars = axes.barh(places, [row["gbps"] for row in panel], color=colors, height=0.7)
    texts = axes.bar_label(bars, [f"{row['gbps']:.2f}  ({row['ratio']:.2f} ×)" for row in panel], padding=4, fontsize=8)
    for text in texts:  # readable where the line of memcpy passes behind it
        text.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.8})
    axes.axvline(memcpy, color=LINE, linewidth=1, linestyle=(0, (4, 3)), zorder=0)
    axes.set_yticks(places, labels, fontsize=9)
    for tick, mine in zip(axes.get_yticklabels(), ours, strict=True):
        tick.set_color(OURS if mine else LINE)
        tick.set_fontweight("bold" if mine else "normal")
    axes.set_ylim(max(places, default=0) + 0.7, -0.7)
    axes.set_xlim(0, max([memcpy, *(row["gbps"] for row in panel)]) * 1.28)
    axes.set_title(title, fontsize=10, loc="left", color=LINE)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=8, colors=SOFT)
