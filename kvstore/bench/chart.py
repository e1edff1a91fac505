"""A benchmark's rows as a picture: ratios to the baseline, and the times of what has none."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kvstore.errors import InvalidArgument

Row = Mapping[str, Any]
COLORS = ("#2a7de1", "#1b9e77", "#e08214", "#8073ac", "#c51b7d", "#5c6570")
GOAL, BASE = "#d7301f", "#5c6570"
NARROW, GAP = 0.24, 0.2  # inches a bar, between groups


def draw(name: str, rows: Sequence[Row], machine: Row, path: Path) -> bool:
    """Write a PNG; False if no row has a ratio or a time. `InvalidArgument` where matplotlib is not installed."""
    plt = pyplot()
    named = {row["baseline"] for row in rows}
    ratios = [row for row in rows if row.get("ratio") is not None]
    times = [row for row in rows if row.get("ratio") is None and row["case"] not in named and row.get("p50_s")]
    panels = [(kind, shown) for kind, shown in (("ratio", ratios), ("p50_s", times)) if shown]
    if not panels:
        return False
    labels = dict.fromkeys(label for _, shown in panels for label in _series(shown) if label)
    colors = {"": COLORS[0] if not labels else BASE, **dict(zip(labels, COLORS * len(labels), strict=False))}
    heights = [_height(shown) for _, shown in panels]
    figure, axes = plt.subplots(
        len(panels), 1, figsize=(9, sum(heights) + 0.9), height_ratios=heights, layout="constrained", squeeze=False
    )
    for panel, (kind, shown) in zip(axes[:, 0], panels, strict=True):
        _panel(panel, kind, shown, colors)
    about = f"{machine['cpu']}, {machine['cores']} cores, Linux {machine['kernel']}, Python {machine['python']}"
    figure.suptitle(f"kvstore bench {name}", x=0.01, ha="left", fontsize=13, fontweight="bold")
    figure.supxlabel(about, x=0.01, ha="left", fontsize=8, color=BASE)
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return True


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
    return 0.75 + NARROW * len(rows) + GAP * len({_group(row, rows) for row in rows})


def _panel(axes: Any, kind: str, rows: Sequence[Row], colors: Mapping[str, str]) -> None:
    """One group of bars a case, one colour for each size or way in."""
    series = _series(rows)
    at, ticks = 0.0, []
    labelled = {""}
    for group in dict.fromkeys(_group(row, rows) for row in rows):
        members = [(row, label) for row, label in zip(rows, series, strict=True) if _group(row, rows) == group]
        for offset, (row, label) in enumerate(members):
            _bar(axes, kind, row, at + offset * NARROW, colors[label], "" if label in labelled else label)
            labelled.add(label)
        ticks.append((at + (len(members) - 1) * NARROW / 2, group))
        at += len(members) * NARROW + GAP
    axes.set_yticks([y for y, _ in ticks], [group for _, group in ticks], fontsize=9)
    axes.set_ylim(at - GAP - NARROW * 0.2, -NARROW * 0.8)
    values = [row[kind] for row in rows]
    if kind == "ratio":
        axes.axvline(1, color=BASE, lw=1, ls="--", zorder=0)
        axes.set_xlim(0, max(1.1, *values) * 1.14)
        bases = ", ".join(dict.fromkeys(str(row["baseline"]) for row in rows))
        axes.set_xlabel(
            f"times the speed of {bases} in the same run (dashed: 1); red: what it must reach", fontsize=8.5
        )
    else:
        values += [row["bar_p50_s"] for row in rows if row.get("bar_p50_s")]
        axes.set_xscale("log")
        axes.set_xlim(min(values) / 2, max(values) * 4)
        axes.xaxis.set_major_formatter(lambda seconds, _: duration(seconds))
        axes.xaxis.set_minor_formatter("")
        axes.set_xlabel("median time (logarithmic); red: what it must stay below", fontsize=8.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=8)
    if len(labelled) > 1:
        axes.legend(fontsize=8, frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=5, borderaxespad=0.2)


def _bar(axes: Any, kind: str, row: Row, y: float, color: str, label: str) -> None:
    axes.barh(y, row[kind], NARROW * 0.88, color=color, label=label or None)
    goal = row.get("bar_ratio" if kind == "ratio" else "bar_p50_s")
    if goal:
        axes.plot([goal] * 2, [y - NARROW / 2, y + NARROW / 2], color=GOAL, lw=2, solid_capstyle="butt", zorder=3)
    text = f"{row[kind]:.2f}" if kind == "ratio" else duration(row[kind])
    if row.get("met") is not None and (not goal or "," in str(row["bar"])):
        p99 = f"; p99 {1 / row['p99_ratio']:.2g} ×" if row.get("p99_ratio") else ""
        text += f"{p99}  ({row['bar']}: {'yes' if row['met'] else 'NO'})"
    axes.annotate(
        text, (row[kind], y), xytext=(4, 0), textcoords="offset points", va="center", fontsize=7.5, zorder=4,
        color=GOAL if row.get("met") is False else "black",
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},
    )  # fmt: skip


def _group(row: Row, rows: Sequence[Row]) -> str:
    """The case, and how many clients were at it at once where that differs."""
    at_once = row.get("clients", 1)
    if len({each.get("clients", 1) for each in rows}) < 2:
        return str(row["case"])
    return f"{row['case']}, {at_once} client{'s' * (at_once > 1)}"


def _series(rows: Sequence[Row]) -> list[str]:
    """What tells apart the bars of one group: mode and size, as far as they are not the same for all."""
    told: list[Callable[[Row], str]] = [lambda row: str(row.get("mode", "")), lambda row: _size(row.get("bytes") or 0)]
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(_group(row, rows), []).append(row)
    differing = [tell for tell in told if any(len({tell(row) for row in same}) > 1 for same in groups.values())]
    return [" · ".join(filter(None, (tell(row) for tell in differing))) for row in rows]


def duration(seconds: float) -> str:
    """A time for people: `12.3 µs`."""
    for unit, factor in (("s", 1.0), ("ms", 1e3)):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


def _size(nbytes: float) -> str:
    if not nbytes:
        return ""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if nbytes < 1024:
            return f"{nbytes:.3g} {unit}"
        nbytes /= 1024
    return f"{nbytes:.3g} TiB"
