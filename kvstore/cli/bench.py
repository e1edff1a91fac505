"""`kvstore bench NAME`: run a benchmark, show its rows."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from kvstore.bench.measure import Row, machine, report
from kvstore.cli.output import print_json, print_table, progress, size
from kvstore.errors import Corrupt

SHOWN = ("case", "mode", "bytes", "p50", "p99", "GB/s", "baseline", "ratio", "bar", "met")


def local(args: Namespace) -> int:
    """`bench local`."""
    from kvstore.bench import local as bench

    with progress("bench local", args.rounds * len(bench.SIZES)) as advance:
        rows = bench.run(rounds=args.rounds, advance=advance)
    return _show(args, "local", rows)


def grpc(args: Namespace) -> int:
    """`bench grpc`."""
    from kvstore.bench import grpc as bench

    with progress("bench grpc", args.rounds) as advance:
        rows = bench.run(rounds=args.rounds, progress=advance)
    return _show(args, "grpc", rows)


def nvme(args: Namespace) -> int:
    """`bench nvme`."""
    from kvstore.bench import nvme as bench

    with progress("bench nvme", None):
        rows = bench.run(Path(args.path or "."))
    return _show(args, "nvme", rows)


def index(args: Namespace) -> int:
    """`bench index`."""
    from kvstore.bench import index as bench

    with progress("bench index", args.chunks + args.soak) as advance:
        rows = bench.run(chunks=args.chunks, soak=args.soak, advance=advance)
    facts = ("chunks", "bytes_per_chunk", "longest_pause_s", "growth_bytes")
    return _show(args, "index", rows, facts)


def torture(args: Namespace) -> int:
    """`bench torture`; exit 6 if anything is corrupt, phantom, lost or undeleted."""
    from kvstore.bench.torture import torture as bench

    folder = Path(args.path) if args.path else None
    with progress("bench torture", args.rounds) as advance:
        row = bench(args.rounds, folder=folder, seed=args.seed, advance=advance)
    _show(args, "torture", [row], ("rounds", "acknowledged", "corrupt", "phantom", "lost", "undeleted", "seed"))
    return Corrupt.exit_code if any(row[broken] for broken in ("corrupt", "phantom", "lost", "undeleted")) else 0


def _show(args: Namespace, name: str, rows: Sequence[Row], facts: Sequence[str] = ()) -> int:
    if args.json:
        print_json(report(name, rows))
        return 0
    columns = tuple(column for column in SHOWN if any(_cell(row, column) != "" for row in rows))
    on = machine()
    notes = dict.fromkeys(f"{row['case']}: {row['note']}" for row in rows if row.get("note"))
    print_table(
        (*columns, *facts),
        [(*(_cell(row, column) for column in columns), *(row.get(fact) for fact in facts)) for row in rows],
        title=f"bench {name}",
        caption="\n".join([*notes, f"{on['cpu']}, {on['cores']} cores, Linux {on['kernel']}, Python {on['python']}"]),
    )
    for row in rows:
        for detail in row.get("details", ()):
            print(detail)
    return 0


def _cell(row: Row, column: str) -> str:
    if column in ("p50", "p99"):
        return _time(row.get(f"{column}_s"))
    value = row.get("gbps" if column == "GB/s" else column)
    if value is None:
        return ""
    if column == "bytes":
        return size(value) if value else ""
    if column == "met":
        return "yes" if value else "NO"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def _time(seconds: float | None) -> str:
    if seconds is None:
        return ""
    for unit, factor in (("s", 1.0), ("ms", 1e3)):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"
