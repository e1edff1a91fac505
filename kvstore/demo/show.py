"""How the demonstration tells what it found: one JSON object, a table, a chart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kvstore.bench.measure import report as bench_report
from kvstore.cli.output import print_json, size
from kvstore.demo.chart import draw

NAMES = {
    "cold": "cold prefill",
    "dram": "DRAM",
    "nvme": "NVMe after a restart",
    "server-dram": "server, DRAM",
    "server-nvme": "server, NVMe after a restart",
}


def report(rows: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]) -> dict[str, Any]:
    """The one object of `--json`."""
    return bench_report("demo", [dict(row) for row in rows], **facts)


def show(result: Mapping[str, Any], out_dir: Path, *, json_only: bool) -> None:
    """Draw the chart; print the object or the table."""
    machine = result["machine"]
    subtitle = f"{result['model']} float32, {result['tokens']} tokens, {machine['cores']} cores ({machine['cpu']})"
    draw(result["rows"], NAMES, subtitle, out_dir / "ttft.png")
    if json_only:
        print_json(result)
        return
    console = Console(soft_wrap=True)
    console.print(Text(f"\nDocument: {result['document']}, first {result['tokens']} tokens"))
    console.print(_table(result["rows"], subtitle))
    console.print(Text(f"All go on with the same {result['generated']} tokens: {result['text']!r}" if _same(result)
                       else "The continuations differ."))  # fmt: skip
    console.print(Text(f"Chart and figures: {out_dir / 'ttft.png'}, {out_dir / 'demo.json'}"))
    for miss in result["slow"]:
        console.print(Text(f"SLOW {miss}", style="bold yellow"))
    for problem in result["problems"]:
        console.print(Text(f"FAILED {problem}", style="bold red"))


def _table(rows: Sequence[Mapping[str, Any]], title: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("first token after")
    for heading in ("TTFT", "× faster", "KV loaded", "hit tokens", "identical"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(*_cells(row))
    return table


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    seconds = f"{row['ttft_s']:.3f} s"
    if row["case"] == "cold":
        return NAMES["cold"], seconds, "1", "", "0", "reference"
    same = "yes" if row["identical"] and row["kv_equal"] else "NO"
    return NAMES[row["case"]], seconds, f"{row['ratio']:.1f}", size(row["bytes"]), str(row["hit_tokens"]), same


def _same(result: Mapping[str, Any]) -> bool:
    return all(row["identical"] for row in result["rows"])
