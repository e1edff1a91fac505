"""A benchmark's rows as a picture: ratios to the baseline, and the times of what has none."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kvstore.errors import InvalidArgument

Row = Mapping[str, Any]
COLORS = ("#2a7de1", "#1b9e77", "#e08214", "#8073ac", "#c51b7d", "#5c6570")
GOAL, BASE = "#d7301f", "#5c6570"
NARROW, WIDE = 0.26, 0.62  # inches a bar, inches around a group


def draw(name: str, rows: Sequence[Row], machine: Row, path: Path) -> None:
    """Write a PNG. `InvalidArgument` where matplotlib is not installed."""
    plt = pyplot()
    named = {row["baseline"] for row in rows}
    ratios = [row for row in rows if row.get("ratio") is not None]
    times = [row for row in rows if row.get("ratio") is None and row["case"] not in named and row.get("p50_s")]
    panels = [(kind, shown) for kind, shown in (("ratio", ratios), ("p50_s", times)) if shown]
    if not panels:
        raise InvalidArgument(f"bench {name} has no rows that a picture could show")
    heights = [_height(shown) for _, shown in panels]
    figure, axes = plt.subplots(
        len(panels), 1, figsize=(9, sum(heights) + 1.1), height_ratios=heights, layout="constrained", squeeze=False
    )
    for panel, (kind, shown) in zip(axes[:, 0], panels, strict=True):
        _panel(panel, kind, shown)
    about = f"{machine['cpu']}, {machine['cores']} cores, Linux {machine['kernel']}, Python {machine['python']}"
    figure.suptitle(f"kvstore bench {name}", x=0.01, ha="left", fontsize=13, fontweight="bold")
    figure.supxlabel(about, x=0.01, ha="left", fontsize=8, color=BASE)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def pyplot() -> Any:
    """matplotlib without a display. `InvalidArgument` where it is not installed."""
    try:
        import matplotlib as mpl
    except ImportError:
        raise InvalidArgument(
            "the picture needs matplotlib: pip install 'tiered-kvstore[bench]', or leave --out away"
        ) from None
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    return plt


def _height(rows: Sequence[Row]) -> float:
    groups = len({row["case"] for row in rows})
    return 0.8 + NARROW * len(rows) + (WIDE - NARROW) * groups * 0.5


def _panel(axes: Any, kind: str, rows: Sequence[Row]) -> None:
    """One group of bars a case, one colour for each size, way in or number of clients that differs."""
    scale, unit = (1.0, "") if kind == "ratio" else (1e6, " µs")
    series = _series(rows)
    colors = dict(zip(dict.fromkeys(series), COLORS * 4, strict=False))
    at, ticks, labelled = 0.0, [], set()
    most = max(row[kind] for row in rows) * scale
    for case in dict.fromkeys(row["case"] for row in rows):
        group = [(row, label) for row, label in zip(rows, series, strict=True) if row["case"] == case]
        for offset, (row, label) in enumerate(group):
            value, y = row[kind] * scale, at + offset * NARROW
            shown = label if label and label not in labelled else None
            labelled.add(label)
            axes.barh(y, value, NARROW * 0.88, color=colors[label], label=shown)
            goal = row.get("bar_ratio" if kind == "ratio" else "bar_p50_s")
            if goal:
                axes.plot([goal * scale] * 2, [y - NARROW / 2, y + NARROW / 2], color=GOAL, lw=2, solid_capstyle="butt")
            axes.annotate(
                f"{value:.3g}{unit}{_verdict(row)}", (value, y), xytext=(4, 0), textcoords="offset points",
                va="center", fontsize=7.5, color=GOAL if row.get("met") is False else "black",
            )  # fmt: skip
        ticks.append((at + (len(group) - 1) * NARROW / 2, case))
        at += len(group) * NARROW + (WIDE - NARROW) * 0.5
    axes.set_yticks([y for y, _ in ticks], [case for _, case in ticks], fontsize=9)
    axes.set_ylim(at - 0.05, -NARROW)
    if kind == "ratio":
        axes.axvline(1, color=BASE, lw=1, ls="--", zorder=0)
        axes.set_xlim(0, max(1.1, most * 1.14))
        bases = ", ".join(dict.fromkeys(str(row["baseline"]) for row in rows))
        axes.set_xlabel(
            f"times the speed of {bases} in the same run (dashed: 1); red: what it must reach", fontsize=8.5
        )
    else:
        axes.set_xscale("log")
        axes.set_xlim(min(row[kind] for row in rows) * scale / 2, most * 4)
        axes.set_xlabel("median time, µs (logarithmic); red: what it must stay below", fontsize=8.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    if labelled - {""}:
        axes.legend(fontsize=8, frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=6, borderaxespad=0.2)


def _series(rows: Sequence[Row]) -> list[str]:
    """What tells apart the bars of one case: those of mode, size and clients that are not the same for all rows."""
    told: dict[str, Callable[[Row], str]] = {
        "mode": lambda row: str(row.get("mode", "")),
        "bytes": lambda row: _size(row.get("bytes") or 0),
        "clients": lambda row: f"{row['clients']} clients" if "clients" in row else "",
    }
    by_case: dict[str, list[Row]] = {}
    for row in rows:
        by_case.setdefault(row["case"], []).append(row)
    # A name that varies only from case to case says nothing that the case's own name does not.
    differing = [
        tell for tell in told.values() if any(len({tell(row) for row in same}) > 1 for same in by_case.values())
    ]
    return [" · ".join(filter(None, (tell(row) for tell in differing))) for row in rows]


def _verdict(row: Row) -> str:
    if row.get("met") is None or row.get("bar_ratio") or row.get("bar_p50_s"):
        return ""
    return f"  ({row['bar']}: {'yes' if row['met'] else 'NO'})"


def _size(nbytes: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if nbytes < 1024:
            return f"{nbytes:.3g} {unit}"
        nbytes /= 1024
    return f"{nbytes:.3g} TiB"
