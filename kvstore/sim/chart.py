"""Hit ratio over cache size, all policies: a panel a trace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from kvstore.bench.chart import BASE, COLORS, GOAL, pyplot
from kvstore.errors import InvalidArgument, StorageError
from kvstore.sim.setup import BELADY, BOUND

LINES = (*COLORS, "#a6761d", "#17becf")
WIDE = 2  # panels side by side
MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")


def plottable(stacks: Sequence[Sequence[Any]]) -> None:
    """`InvalidArgument` unless there are several sizes of one tier, and matplotlib."""
    if len(stacks) < 2:
        raise InvalidArgument("--plot draws hit ratio over cache size: give --capacity more than once, and no --tier")
    pyplot()


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write a PNG of rows of `kvstore.sim.report.run`. `StorageError` where it cannot be written."""
    plt = pyplot()
    traces = list(dict.fromkeys(row["mode"] for row in rows))
    columns, lines = min(WIDE, len(traces)), -(-len(traces) // WIDE)
    figure, axes = plt.subplots(
        lines, columns, figsize=(1.6 + 4.8 * columns, 0.6 + 3.8 * lines), layout="constrained", squeeze=False
    )
    for panel, trace in zip_longest(axes.flat, traces):
        if trace is None:
            panel.set_axis_off()
        else:
            _panel(panel, trace, [row for row in rows if row["mode"] == trace and row["capacity"]])
    for panel in axes[:, 0]:
        panel.set_ylabel("share of input tokens hit", fontsize=9)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=9)
    figure.suptitle("kvstore sim", x=0.01, ha="left", fontsize=13, fontweight="bold")
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:  # a suffix that is no format of matplotlib's is a ValueError
        raise StorageError(f"the picture cannot be written to {path}: {error}") from error
    finally:
        plt.close(figure)


def _panel(axes: Any, trace: str, rows: Sequence[Mapping[str, Any]]) -> None:
    policies = list(dict.fromkeys(row["case"] for row in rows))
    for number, policy in enumerate(policies):
        points = sorted((row["capacity_bytes"], row["hit_ratio"]) for row in rows if row["case"] == policy)
        style: dict[str, Any] = {
            "color": LINES[number % len(LINES)], "marker": MARKS[number % len(MARKS)], "ms": 4, "lw": 1.4,
        }  # fmt: skip
        if policy == "value":
            style = {"color": GOAL, "marker": "o", "ms": 5, "lw": 2.2, "zorder": 3}
        if policy in (BELADY, BOUND):
            style = {"color": BASE, "lw": 1.2, "ls": "--" if policy == BELADY else ":"}
        axes.plot([x / 1e9 for x, _ in points], [y for _, y in points], label=policy, **style)
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_title(trace, fontsize=10, loc="left")
    axes.set_xlabel("cache size, GB (logarithmic)", fontsize=8.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    axes.grid(axis="y", lw=0.4, color="#dddddd")
