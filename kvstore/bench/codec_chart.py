"""Rate against divergence of all codecs, as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kvstore.bench.chart import BASE, COLORS, GOAL, pyplot

Row = Mapping[str, Any]
_MARKS = {"in": "o", "out": "^"}


def draw(rows: Sequence[Row], machine: Row, path: Path) -> bool:
    """Write a PNG; False where no row has a divergence. Each codec (and variant) is a line over its levels."""
    seen = [row for row in rows if row.get("kl")]
    if not seen:
        return False
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(9, 5.6), layout="constrained")
    lines = list(dict.fromkeys(_line(row) for row in seen))
    for number, line in enumerate(lines):
        color = COLORS[number % len(COLORS)]
        for genre, mark in _MARKS.items():
            points = sorted((row["bits"], row["kl"]) for row in seen if _line(row) == line and row["genre"] == genre)
            if points:
                axes.plot(
                    *zip(*points, strict=True), mark, color=color, ms=5, lw=1.2, ls="-" if genre == "in" else ":",
                    mfc=color if genre == "in" else "white", label=line if genre == "in" else None,
                )  # fmt: skip
    _bars(axes, seen)
    axes.set_yscale("log")
    axes.set_xlabel("bits per element, container and sinks included (bfloat16 has 16)")
    axes.set_ylabel("KL(exact ‖ lossy) of the next token, nats")
    axes.grid(alpha=0.25, which="both", lw=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False)
    figure.suptitle(f"kvstore bench codec: {seen[0]['model']}", x=0.01, ha="left", fontsize=13, fontweight="bold")
    about = "filled, solid: genres that were calibrated; open, dotted: genres held out; red: what must be reached"
    figure.supxlabel(f"{about}\n{machine['cpu']}, Linux {machine['kernel']}", x=0.01, ha="left", fontsize=8, color=BASE)
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return True


def _bars(axes: Any, rows: Sequence[Row]) -> None:
    """Corners that a form must lie left of and below."""
    for row in rows:
        if row.get("bar_bits") and row.get("bar_kl"):
            axes.plot(row["bar_bits"], row["bar_kl"], "+", color=GOAL, ms=9, mew=1.6, zorder=4)


def _line(row: Row) -> str:
    variant = row["mode"].rpartition("/")[2] if "/" in row["mode"] else ""
    return (
        f"{row['case']} per {variant}"
        if variant in ("head", "layer")
        else " ".join(filter(None, (row["case"], variant)))
    )
