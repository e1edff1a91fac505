"""`kvstore bench peers`: run the comparison, show its table, write its JSON and its picture."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from kvstore.bench.measure import Row, report
from kvstore.bench.peers import choose, run
from kvstore.bench.peers.conductor import SIZES, Result
from kvstore.cli.output import print_json, print_table, progress, size
from kvstore.errors import StorageError

COLUMNS = ("case", "bytes", "system", "mode", "p50", "p99", "GB/s", "ratio", "CPU")
CAPTION = (
    "ratio: memcpy's time / the system's; CPU: its processor time, server included, per byte in memcpys.\n"
    "exists-100: time of one question about 100 chunks that are there."
)


def peers(args: Namespace) -> int:
    """`bench peers`; exit 6 when a system gives other bytes than were stored."""
    systems = choose(args.peers)
    sizes = args.sizes or SIZES
    envs = Path(args.envs) if args.envs else None
    out = _folder(args.out)
    with progress("bench peers", args.rounds * len(sizes)) as advance:
        result = run(systems, envs=envs, sizes=sizes, rounds=args.rounds, progress=advance)
    told = report("peers", result.rows, skipped=result.skipped)
    drawn = _write(out, told, result.rows) if out else ""
    if args.json:
        print_json(told)
    else:
        _show(result, drawn)
    return 0


def _folder(name: str | None) -> Path | None:
    """Made now, so that a folder that cannot be is no surprise after ten minutes."""
    if not name:
        return None
    folder = Path(name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{folder} cannot be made: {error.strerror}") from None
    return folder


def _write(out: Path, told: Row, rows: Sequence[Row]) -> str:
    """The JSON, and the picture where matplotlib is; what was written, in words."""
    (out / "bench-peers.json").write_text(json.dumps(told, indent=1), encoding="utf-8")
    try:
        from kvstore.bench.peers.chart import draw

        draw(rows, out / "bench-peers.png")
    except ImportError:
        return f"wrote bench-peers.json into {out}; no picture without matplotlib (pip install 'tiered-kvstore[bench]')"
    return f"wrote bench-peers.json and bench-peers.png into {out}"


def _show(result: Result, drawn: str) -> None:
    ordered = sorted(result.rows, key=lambda row: (row["case"], row["bytes"], row["p50_s"]))
    notes = dict.fromkeys(f"{row['system']}: {row['note']}" for row in result.rows)
    print_table(
        COLUMNS,
        [[_cell(row, column) for column in COLUMNS] for row in ordered],
        title="bench peers",
        caption="\n".join([CAPTION, *notes]),
    )
    for line in (*result.skipped, drawn):
        if line:
            print(line, file=sys.stderr)


def _cell(row: Row, column: str) -> str:
    if column in ("p50", "p99"):
        return f"{row[f'{column}_s'] * 1e6:.0f} µs"
    value = row[{"GB/s": "gbps", "CPU": "cpu"}.get(column, column)]
    if value is None or (column == "bytes" and not value):
        return ""
    if column == "bytes":
        return size(value)
    return f"{value:.2f}" if isinstance(value, float) else str(value)
