"""Pictures: written, with every bar and goal, and refused in time where they cannot be."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from kvstore.bench import chart
from kvstore.bench.measure import machine
from kvstore.errors import InvalidArgument


def row(case: str, **facts: Any) -> dict[str, Any]:
    made = {"case": case, "mode": "local", "bytes": 0, "p50_s": 1e-5, "p99_s": 2e-5, "gbps": None, "baseline": None}
    return {**made, "ratio": None, "bar": None, "met": None, **facts}


ROWS = [
    row("memcpy", bytes=1 << 20),
    row("get", bytes=1 << 20, baseline="memcpy", ratio=0.9, bar="≥ 0.88", bar_ratio=0.88, met=True),
    row("get", bytes=16 << 20, baseline="memcpy", ratio=0.8, bar="≥ 0.95", bar_ratio=0.95, met=False),
    row("lookup-100", bar="≤ 50 µs", bar_p50_s=50e-6, met=True),
]


def test_a_picture_has_a_bar_for_every_row_and_none_for_baselines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plt = pytest.importorskip("matplotlib.pyplot")
    drawn: list[Any] = []
    monkeypatch.setattr(plt, "close", drawn.append)
    chart.draw("local", ROWS, machine(), tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    ratios, times = drawn[0].axes
    assert [round(patch.get_width(), 3) for patch in ratios.patches] == [0.9, 0.8]
    assert [label.get_text() for label in ratios.get_yticklabels()] == ["get"]
    assert [text.get_text() for text in ratios.get_legend().get_texts()] == ["1 MiB", "16 MiB"]
    goals = [line.get_xdata()[0] for line in ratios.lines if line.get_color() == chart.GOAL]
    assert goals == [0.88, 0.95]
    assert [text.get_color() for text in ratios.texts] == ["black", chart.GOAL]
    assert [label.get_text() for label in times.get_yticklabels()] == ["lookup-100"]
    assert [text.get_text() for text in times.texts] == ["10 µs"]


def test_clients_make_groups_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plt = pytest.importorskip("matplotlib.pyplot")
    drawn: list[Any] = []
    monkeypatch.setattr(plt, "close", drawn.append)
    rows = [row("zipf-1", clients=n, baseline="memcpy", ratio=1.0) for n in (1, 2)]
    chart.draw("mix", rows, machine(), tmp_path / "x.png")
    labels = [label.get_text() for label in drawn[0].axes[0].get_yticklabels()]
    assert labels == ["zipf-1, 1 client", "zipf-1, 2 clients"]


def test_what_cannot_be_drawn_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    assert not chart.draw("mix", [row("zipf-1", p50_s=None)], machine(), tmp_path / "x.png")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InvalidArgument, match=r"tiered-kvstore\[bench\]"):
        chart.pyplot()


@pytest.mark.parametrize(("seconds", "text"), [(2.5, "2.5 s"), (0.0123, "12.3 ms"), (1e-6, "1 µs"), (4e-7, "0.4 µs")])
def test_durations(seconds: float, text: str) -> None:
    assert chart.duration(seconds) == text
