"""The demonstration's figures as a bar chart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

COLD, WARM = "#8a8f98", "#2a7de1"


def draw(rows: Sequence[Mapping[str, Any]], names: Mapping[str, str], subtitle: str, path: Path) -> None:
    """Write a PNG: time to first token of each row and its factor beside it."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 1.3 + 0.55 * len(rows)), layout="constrained")
    labels = [names[row["case"]] for row in rows]
    bars = axes.barh(labels, [row["ttft_s"] for row in rows], color=[_color(row) for row in rows], height=0.62)
    axes.bar_label(bars, [_label(row) for row in rows], padding=5)
    axes.set_xlim(0, max(row["ttft_s"] for row in rows) * 1.15)
    axes.invert_yaxis()
    axes.set_xlabel("time to first token, seconds")
    axes.set_title(f"Cold prefill against loading its KV\n{subtitle}", fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _color(row: Mapping[str, Any]) -> str:
    return COLD if row["case"] == "cold" else WARM


def _label(row: Mapping[str, Any]) -> str:
    seconds = f"{row['ttft_s']:.2f} s" if row["ttft_s"] >= 1 else f"{row['ttft_s'] * 1000:.0f} ms"
    return seconds if row["case"] == "cold" else f"{seconds}, {row['ratio']:.0f} × faster"
