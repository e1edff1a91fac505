"""`kvstore bench NAME`: run a benchmark, show its rows."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from kvstore.bench.chart import duration
from kvstore.bench.measure import Row, machine, report
from kvstore.cli.output import print_json, print_table, progress, size
from kvstore.errors import Corrupt, InvalidArgument, StorageError
from kvstore.policy import POLICIES
from kvstore.spec import KVSpec

_ON_A_FOLDER = ("nvme", "posix")
SHOWN = (
    "case",
    "mode",
    "bytes",
    "p50",
    "p99",
    "GB/s",
    "baseline",
    "ratio",
    "p99 ratio",
    "bar",
    "met",
    "CPU s/GB",
    "its server's",
)
MANY = 3  # cases that a note is about; where it is more, it is about all of that kind
FIELDS = {"GB/s": "gbps", "p99 ratio": "p99_ratio", "CPU s/GB": "cpu_s_per_gb", "its server's": "server_cpu_s_per_gb"}


def local(args: Namespace) -> int:
    """`bench local`."""
    from kvstore.bench import crowd
    from kvstore.bench import local as bench

    _prepare(args)
    if args.clients and not args.server:
        raise InvalidArgument("--clients counts processes that read from one server: use it with --server")
    options = _shape(args, bench.SIZES)
    with progress("bench local", None) as advance:
        if args.server:
            plan = crowd.Plan(readers=args.clients) if args.clients else crowd.Plan()
            rows = bench.run_server(rounds=args.rounds, crowds=plan, advance=advance, **options)
        else:
            rows = bench.run(rounds=args.rounds, advance=advance, **options)
    return _show(args, "local", rows, as_="local-server" if args.server else "")


def remote(args: Namespace) -> int:
    """`bench remote`."""
    from kvstore.bench import crowd
    from kvstore.bench import remote as bench

    _prepare(args)
    plan = crowd.Plan(readers=args.clients) if args.clients else None
    options = _shape(args, bench.SIZES)
    with progress("bench remote", None) as advance:
        rows = bench.run(rounds=args.rounds, tls=args.tls, crowds=plan, advance=advance, **options)
    return _show(args, "remote", rows, as_="remote-tls" if args.tls else "")


def grpc(args: Namespace) -> int:
    """`bench grpc`."""
    from kvstore.bench import grpc as bench

    _prepare(args)
    options = _shape(args, bench.SIZES)
    with progress("bench grpc", None) as advance:
        rows = bench.run(rounds=args.rounds, advance=advance, **options)
    return _show(args, "grpc", rows)


def lookup(args: Namespace) -> int:
    """`bench lookup`."""
    from kvstore.bench import lookup as bench

    _prepare(args)
    clients, modes = args.clients or bench.CLIENTS, args.modes or bench.ALL_MODES
    with progress("bench lookup", None) as advance:
        rows = bench.run(entries=args.entries, model=_model(args), clients=clients, modes=modes, advance=advance)
    return _show(args, "lookup", rows, ("clients", "lookups_per_s"))


def mix(args: Namespace) -> int:
    """`bench mix`."""
    from kvstore.bench import mix as bench

    _prepare(args)
    if args.trace and args.tokens:
        raise InvalidArgument("a trace says how many tokens a chunk has: leave --tokens away")
    plan = bench.Plan(
        exponent=args.exponent, trace_path=Path(args.trace) if args.trace else None, requests=args.requests or 0,
        dram=args.dram, working_set=args.working_set, nvme=Path(args.nvme) if args.nvme else None,
        nvme_capacity=args.nvme_capacity, policy=args.policy, seed=args.seed,
    )  # fmt: skip
    with progress("bench mix", None):
        rows = bench.run(plan, model=_model(args), clients=args.clients, mode=args.mode)
    return _show(args, "mix", rows, bench.FACTS)


def hosts(args: Namespace) -> int:
    """`bench hosts`."""
    from kvstore.bench import hosts as bench

    _prepare(args)
    if args.hosts < 2 or not 0 < args.share <= 1:
        raise InvalidArgument(f"--hosts is 2 or more, --share above 0 and at most 1; not {args.hosts} and {args.share}")
    if args.policy not in POLICIES:
        raise InvalidArgument(f"--policy is one of {', '.join(POLICIES)}, not {args.policy!r}")
    plan = bench.Plan(
        Path(args.trace) if args.trace else None, args.requests, args.hosts, args.share, args.rate, args.pause_s,
        args.seed, args.policy,
    )  # fmt: skip
    with progress("bench hosts", 3 * args.requests) as advance:
        rows = bench.run(plan, advance=advance)
    return _show(args, "hosts", rows, bench.FACTS)


def nvme(args: Namespace) -> int:
    """`bench nvme`."""
    from kvstore.bench import nvme as bench

    _prepare(args)
    with progress("bench nvme", None):
        rows = bench.run(Path(args.path or "."))
    return _show(args, "nvme", rows)


def tier(args: Namespace) -> int:
    """`bench tier`."""
    _prepare(args)
    with progress(f"bench tier {args.name}", None):
        rows = _tier_rows(args)
    return _show(args, "tier", rows, as_=f"tier-{args.name}")


def outage(args: Namespace) -> int:
    """`bench outage`."""
    from kvstore.bench import outage as bench

    _prepare(args)
    with progress("bench outage", 2 * args.rounds) as advance:
        rows = bench.run(rounds=args.rounds, advance=advance)
    return _show(args, "outage", rows)


def worth(args: Namespace) -> int:
    """`bench worth`."""
    from kvstore.bench import worth as bench

    _prepare(args)
    with progress("bench worth", bench.rounds_of(args.rounds)) as advance:
        rows = bench.run(rounds=args.rounds, path=Path(args.path) if args.path else None, advance=advance)
    return _show(args, "worth", rows, bench.FACTS)


def _tier_rows(args: Namespace) -> list[Row]:
    module = "nvme" if args.name == "nvme" else f"tier_{args.name}"
    bench, options = import_module(f"kvstore.bench.{module}"), dict[str, Any]()
    if args.sizes:
        options["sizes"] = args.sizes
    if args.name in _ON_A_FOLDER:
        options["path"] = Path(args.path or ".")
    elif args.path:
        raise InvalidArgument(f"bench tier {args.name} takes no folder: leave --path away")
    if args.server:
        if args.name != "s3":
            raise InvalidArgument(f"bench tier {args.name} has no choice of servers: leave --server away")
        options["server"] = args.server
    rows: list[Row] = bench.run(**options)
    return rows


def index(args: Namespace) -> int:
    """`bench index`."""
    from kvstore.bench import index as bench

    _prepare(args)
    with progress("bench index", args.chunks + args.soak) as advance:
        rows = bench.run(chunks=args.chunks, soak=args.soak, advance=advance)
    facts = ("chunks", "bytes_per_chunk", "longest_pause_s", "growth_bytes")
    return _show(args, "index", rows, facts)


def sim(args: Namespace) -> int:
    """`bench sim`."""
    from kvstore.bench import sim as bench

    _prepare(args)
    with progress("bench sim", None) as advance:
        rows = bench.run(events=args.events, rounds=args.rounds, advance=advance)
    return _show(args, "sim", rows, bench.FACTS)


def codec(args: Namespace) -> int:
    """`bench codec`."""
    from kvstore.bench import codec as bench

    _prepare(args)
    plot = Path(args.plot) if args.plot else None
    if plot is not None and not args.quality:
        raise InvalidArgument("--plot draws size against what it costs a model: use it with --quality")
    with progress("bench codec", None) as advance:
        rows = bench.run(
            args.model, quality=args.quality, speed=not args.no_speed, artefacts=[Path(each) for each in args.artefact],
            only=args.codecs, each=args.documents or 0, advance=advance,
        )  # fmt: skip
    if plot is not None:
        bench.plot(rows, plot)
    return _show(args, "codec", rows, bench.FACTS, as_=f"codec-{args.model}" if args.quality else "")


def torture(args: Namespace) -> int:
    """`bench torture`; exit 6 if anything is corrupt, phantom, lost or undeleted."""
    from kvstore.bench.torture import torture as bench

    folder = Path(args.path) if args.path else None
    with progress("bench torture", args.rounds) as advance:
        row = bench(args.rounds, folder=folder, seed=args.seed, advance=advance)
    _show(args, "torture", [row], ("rounds", "acknowledged", "corrupt", "phantom", "lost", "undeleted", "seed"))
    return Corrupt.exit_code if any(row[broken] for broken in ("corrupt", "phantom", "lost", "undeleted")) else 0


def _model(args: Namespace) -> KVSpec | None:
    if args.model is None:
        if args.tokens or args.tp:
            raise InvalidArgument("--tokens and --tp are of a model's chunks: say which with --model")
        return None
    from kvstore.bench.models import TOKENS, model_spec

    return model_spec(args.model, tokens=args.tokens or TOKENS, tp=args.tp or 1)


def _shape(args: Namespace, sizes: Sequence[int]) -> dict[str, Any]:
    """What chunks have: a model's shape, or sizes."""
    model = _model(args)
    if model is not None and args.sizes:
        raise InvalidArgument("a model decides the size of its chunks: leave --sizes or --model away")
    return {"model": model, "sizes": args.sizes or sizes}


def _show(args: Namespace, name: str, rows: Sequence[Row], facts: Sequence[str] = (), as_: str = "") -> int:
    """Print rows, and write them `as_` this where a benchmark has a variant."""
    told = report(name, rows)
    if args.json:
        print_json(told)
    else:
        _table(name, rows, facts)
    if getattr(args, "out", None):
        _write(Path(args.out), as_ or name, told)
    return 0


def _table(name: str, rows: Sequence[Row], facts: Sequence[str]) -> None:
    columns = tuple(column for column in SHOWN if any(_cell(row, column) != "" for row in rows))
    on = machine()
    noted: dict[str, dict[str, None]] = {}
    for row in rows:
        if row.get("note"):
            noted.setdefault(row["note"], {})[row["case"]] = None
    notes = [f"{', '.join(cases)}: {note}" if len(cases) <= MANY else note for note, cases in noted.items()]
    print_table(
        (*columns, *facts),
        [(*(_cell(row, column) for column in columns), *(row.get(fact) for fact in facts)) for row in rows],
        title=f"bench {name}",
        caption="\n".join([*notes, f"{on['cpu']}, {on['cores']} cores, Linux {on['kernel']}, Python {on['python']}"]),
    )
    for row in rows:
        for detail in row.get("details", ()):
            print(detail)


def _cell(row: Row, column: str) -> str:
    if column in ("p50", "p99"):
        seconds = row.get(f"{column}_s")
        return "" if seconds is None else duration(seconds)
    value = row.get(FIELDS.get(column, column))
    if value is None:
        return ""
    if column == "bytes":
        return size(value) if value else ""
    if column == "met":
        return "yes" if value else "NO"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def _prepare(args: Namespace) -> None:
    """Find out before anything is measured whether the results can be written."""
    if args.out:
        from kvstore.bench.chart import pyplot

        pyplot()
        try:
            Path(args.out).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"the results cannot be written to {args.out}: {error.strerror}") from error


def _write(folder: Path, name: str, told: Row) -> None:
    """`bench-NAME.json` and `bench-NAME.png`."""
    from kvstore.bench.chart import draw

    try:
        with (folder / f"bench-{name}.json").open("w", encoding="utf-8") as file:
            print_json(told, file)
        draw(name, told["rows"], told["machine"], folder / f"bench-{name}.png")
    except OSError as error:
        raise StorageError(f"the results cannot be written to {folder}: {error.strerror}") from error
