"""`kvstore sim`: replay traces against policies and tiers."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from kvstore.bench.chart import duration
from kvstore.bench.measure import report
from kvstore.cli.output import print_json, print_table, progress
from kvstore.config import ALL
from kvstore.errors import InvalidArgument
from kvstore.policy import POLICIES
from kvstore.sim import report as simulation
from kvstore.sim.models import model_of
from kvstore.sim.report import Row
from kvstore.sim.setup import CAPACITIES, Setup, Tiers, per_day_of, single_tiers, tier_of, with_filter
from kvstore.sim.trace import Trace, mix, read, then

PLOTTED = ("0.5%", "1%", "2%", "5%", "10%", "20%", "40%")
SHOWN = (
    "policy", "capacity", "hit", "of Belady", "FLOPs saved", "loaded GB", "written GB", "TTFT p50", "p99", "events/s",
)  # fmt: skip


def sim(args: Namespace) -> int:
    """`sim`."""
    if args.record:
        from kvstore.cli.sim_record import record

        return record(args)
    if args.out or args.seconds is not None:
        raise InvalidArgument("--out and --seconds go with --record; --json prints what is found, --plot draws it")
    setup = setup_of(args)
    if args.plot:
        from kvstore.sim.chart import plottable

        plottable(setup.stacks)
    traces = traces_of(args)
    with progress("sim", simulation.rows_expected(traces, setup)) as advance:
        rows = simulation.run(traces, setup, advance)
    if args.plot:
        from kvstore.sim.chart import draw

        draw(rows, Path(args.plot))
    if args.json:
        print_json(report("sim", rows, **facts(setup)))
    else:
        for trace in traces:
            _table(trace, [row for row in rows if row["mode"] == trace.name], setup)
    return 0


def traces_of(args: Namespace) -> list[Trace]:
    """The files as they are to be played."""
    if not args.traces:
        raise InvalidArgument("which trace? give a file (docs/sim.md says of what format), or --record HOST:PORT")
    read_in = [read(Path(each), block=args.block or 0, most=args.requests or 0) for each in args.traces]
    if (args.mix or args.then) and len(read_in) < 2:
        raise InvalidArgument("--mix and --then join several traces: give two or more")
    if args.mix:
        return [mix(read_in)]
    return [then(read_in)] if args.then else read_in


def setup_of(args: Namespace) -> Setup:
    """What the flags say."""
    if args.tiers and args.capacities:
        raise InvalidArgument("--capacity sets up DRAM alone, --tier several tiers; give one of them")
    stacks: Sequence[Tiers] = single_tiers(args.capacities or (PLOTTED if args.plot else CAPACITIES))
    if args.tiers:
        stacks = [tuple(tier_of(each) for each in args.tiers)]
    if args.admit != ALL or args.write_bytes_per_day:
        per_day = per_day_of(args.write_bytes_per_day) if args.write_bytes_per_day else 0
        stacks = [with_filter(each, args.admit, per_day) for each in stacks]
    return Setup(
        stacks, tuple(args.policies or POLICIES), model_of(args.model), args.prefill_tflops * 1e12, args.step_ms / 1e3,
        args.touch, args.warm, args.overlap, args.whole_blocks, args.shares or (), args.ended,
    )  # fmt: skip


def facts(setup: Setup) -> Row:
    """What was assumed."""
    return {
        "model": setup.model.name, "token_bytes": setup.model.token_bytes, "prefill_flops_per_s": setup.flops_per_s,
        "step_s": setup.step_s, "touch": setup.touch, "warm": setup.warm, "overlap": setup.overlap,
        "whole_blocks": setup.whole_blocks, "ended": setup.ended,
    }  # fmt: skip


def _table(trace: Trace, rows: Sequence[Row], setup: Setup) -> None:
    print_table(
        SHOWN, [_cells(row) for row in rows], title=trace.name,
        caption=f"{trace.name}: {trace.requests} requests, {trace.events} ids, {trace.chunks} distinct; the first "
        f"{setup.warm:.0%} of requests only warm; {setup.model.name}, prefill at {setup.flops_per_s / 1e12:g} TFLOP/s",
    )  # fmt: skip


def _cells(row: Row) -> tuple[object, ...]:
    def gb(name: str) -> str:
        return f"{row[name] / 1e9:.1f}" if name in row else ""

    def seconds(name: str) -> str:
        return duration(row[name]) if row[name] is not None else ""

    return (
        row["case"], row["capacity"], f"{row['hit_ratio']:.3f}",
        f"{row['of_belady']:.1%}" if "of_belady" in row else "", f"{row['flops_saved_share']:.3f}",
        gb("loaded_bytes"), gb("written_bytes"), seconds("ttft_p50_s"), seconds("ttft_p99_s"),
        f"{row['events_per_s']:.3g}" if "events_per_s" in row else "",
    )  # fmt: skip
