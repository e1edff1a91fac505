"""What the command line accepts. Nothing heavy is imported here: a command's module is when it runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from kvstore import __version__
from kvstore.cli import sim_flags
from kvstore.cli.values import natural, number, positive, positives, size, sizes, words
from kvstore.config import Config
from kvstore.nearest import closest
from kvstore.schema import scalar_keys

# Short spellings of the flags that are set most.
ALIASES = {"server.listen": "--listen", "dram.capacity": "--dram", "nvme.path": "--nvme", "remote.url": "--remote"}
SETTING = "set:"
_FILES = """\
FILE.npy holds the part's array of all chunks chosen, joined along the token axis (bfloat16 and fp8 as unsigned
integers of the same width); any other FILE holds the raw bytes of the chunks, one after the other.
SPEC is the JSON of KVSpec.to_dict(), TOKENS a JSON list of token ids."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        print(f"kvstore: {message} (see {self.prog} --help)", file=sys.stderr)
        sys.exit(2)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """What was asked for; `module` and `function` say what to run. `SystemExit` for help and for wrong usage."""
    args, unknown = build_parser().parse_known_args(argv)
    if unknown:
        args.parser.error(f"unknown: {' '.join(unknown)}{_meant(unknown[0], args.parser)}")
    return args


def _meant(flag: str, parser: argparse.ArgumentParser) -> str:
    """The flag of a command that somebody may have meant by another; nothing where none is near."""
    flags = [each.lstrip("-") for action in parser._actions for each in action.option_strings]
    name = closest(flag.partition("=")[0].lstrip("-"), flags)
    return "" if name is None else f"; did you mean --{name}?"


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; of each of them `parser` is its own."""
    parser = _Parser(prog="kvstore", description="A tiered KV-cache store for LLM serving.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"kvstore {__version__}")
    common = _Parser(add_help=False, allow_abbrev=False)
    common.add_argument("--json", action="store_true", help="print one JSON object on standard output, nothing else")
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=_Parser)
    _server_commands(commands, common)
    _object_commands(commands, common)
    _device_commands(commands, common)
    _bench_commands(commands, common)
    sim_flags.add_flags(
        _Commands(commands, common, _access()).add(
            "sim", "sim", "sim", "Replay request traces against policies and tiers; or record one.", sim_flags.EPILOG
        )
    )
    return parser


class _Commands:
    """Makes commands that share parents."""

    def __init__(self, commands: argparse._SubParsersAction[_Parser], *parents: _Parser) -> None:
        self._commands, self._parents = commands, list(parents)

    def add(self, name: str, module: str, function: str, text: str, epilog: str = "") -> _Parser:
        made = self._commands.add_parser(
            name, help=text, description=text, epilog=epilog, parents=self._parents, allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        made.set_defaults(module=module, function=function, parser=made)
        return made


def _server_commands(commands: argparse._SubParsersAction[_Parser], common: _Parser) -> None:
    made = _Commands(commands, common, _settings())
    made.add("serve", "serve", "serve", "Run a server until SIGTERM or SIGINT; then store what DRAM holds and stop.")
    made.add("config", "settings", "show", "Print the configuration in force as TOML, tokens masked.")
    demo = _Commands(commands, common).add(
        "demo", "demo", "demo", "Prefill a document, restart the store, load the KV back: the whole job."
    )
    demo.add_argument("--out", metavar="FOLDER", default="demo-out", help="where chart and JSON go (%(default)s)")
    learn = _Commands(commands, common).add(
        "calibrate", "calibrate", "calibrate", "Learn what the transform codec must know of a model: an artefact.",
        "Minutes on a CPU for a small model. docs/calibration.md says which variant is practical for which model.",
    )  # fmt: skip
    learn.add_argument("model", metavar="MODEL", help="a folder that Transformers can load, or smollm2 or gemma3")
    learn.add_argument("--text", nargs="+", default=[], metavar="FILE",
                       help="what to run the model over (prose, code and manuals of installed packages)")  # fmt: skip
    learn.add_argument("--variant", choices=("head", "layer", "joint"), default="head",
                       help="a transform for each head, each layer, or K and V of several layers (head)")  # fmt: skip
    learn.add_argument("--out", metavar="FILE", help="(MODEL-VARIANT.safetensors)")


def _object_commands(commands: argparse._SubParsersAction[_Parser], common: _Parser) -> None:
    made = _Commands(commands, common, _target())
    made.add("stats", "inspect", "stats", "Print counters and gauges.")
    tiers = made.add(
        "tiers", "tiers", "tiers", "Show where chunks lie: room, measured speed, hits, errors, state. Or drain a tier.",
        "`drain NAME` empties a tier of a running server, `drain nvme --path FOLDER` one drive of it, so that it can\n"
        "be pulled; `resume NAME` takes it back. docs/tiers.md says where the chunks go.",
    )  # fmt: skip
    tiers.add_argument("action", nargs="?", choices=("show", "drain", "resume"), default="show", help="(%(default)s)")
    tiers.add_argument("name", nargs="?", default="", metavar="NAME", help="of the tier, as `kvstore tiers` shows it")
    tiers.add_argument(
        "--path", default="", metavar="FOLDER", help="of the drive, as the server's configuration has it"
    )
    tiers.add_argument("--wait", action="store_true", help="with drain: until it is done")
    listed = made.add("ls", "inspect", "ls", "List the stored chunks of the namespace.")
    listed.add_argument("--limit", type=positive, metavar="N", help="stop after so many chunks")
    made.add("artefacts", "inspect", "artefacts", "List what codecs have learnt of models, as far as the store has it.")
    made.add("verify", "verify", "verify", "Read everything back against its checksums; exit 6 if any is corrupt.")
    put = made.add("put", "objects", "put", "Store a part of one chunk, or of all chunks of a prompt.", _FILES)
    _choice(put)
    put.add_argument("--token-count", type=positive, metavar="N", help="tokens of the chunk named by --key")
    put.add_argument("--ack", choices=("stored", "persisted", "synced"), default="stored",
                     help="when to count it as done: visible, survives kill -9, survives power loss")  # fmt: skip
    put.add_argument("file", metavar="FILE")
    get = made.add("get", "objects", "get", "Read a part of one chunk, or of a prompt's longest stored prefix.", _FILES)
    _choice(get)
    get.add_argument("--lossy", action="store_true", help="also from copies that a lossy codec has made")
    get.add_argument("-o", "--output", required=True, metavar="FILE")
    _choice(made.add("rm", "objects", "remove", "Delete chunks wherever they lie."), many=True)
    pin = made.add("pin", "objects", "pin", "Keep chunks from eviction for a time.")
    _choice(pin, many=True)
    pin.add_argument("--for", dest="seconds", default="1h", metavar="TIME", help='like "10m" (%(default)s)')
    _choice(made.add("unpin", "objects", "unpin", "End pins."), many=True)
    hint = made.add(
        "hint", "objects", "hint", "Tell a server that nobody will go on with a prompt, or when it comes back.",
        "Advice for the policy `value`, until the prompt's next use; other policies make nothing of it.",
    )  # fmt: skip
    hint.add_argument("--spec", required=True, metavar="SPEC", help="what the bytes mean")
    hint.add_argument("--tokens", required=True, metavar="TOKENS", help="the prompt, with its answer")
    hint.add_argument("--back-in", metavar="TIME", help='when a tool has run, like "30s" (never)')


def _device_commands(commands: argparse._SubParsersAction[_Parser], common: _Parser) -> None:
    cxl = commands.add_parser("cxl", help="Devices of the CXL tier.")
    names = cxl.add_subparsers(title="commands", metavar="COMMAND", required=True)
    wipe = _Commands(names, common).add(
        "wipe", "cxl", "wipe", "Give up what a persistent tier has left on DAX devices, so that they can be used anew.",
        "Refused while a store has one of them open. Without --yes it only says what they hold.",
    )  # fmt: skip
    wipe.add_argument("paths", nargs="+", metavar="PATH", help="a device-DAX or a file, as in [cxl] paths")
    wipe.add_argument("--yes", action="store_true", help="do it: what lies there cannot be had back")
    remote = commands.add_parser("remote", help="The place that hosts share.")
    names = remote.add_subparsers(title="commands", metavar="COMMAND", required=True)
    sweep = _Commands(names, common, _settings()).add(
        "sweep", "remote", "sweep", "Delete what is old in the shared place, whoever wrote it, and artefacts of none.",
        "For what hosts have left there that never come back. Hosts that still have such a record take it for a miss.\n"
        "Without --yes it only says what would go.",
    )  # fmt: skip
    sweep.add_argument("--older-than", required=True, metavar="TIME", help='since it was written, like "30d"')
    sweep.add_argument("--yes", action="store_true", help="do it")


def _bench_commands(commands: argparse._SubParsersAction[_Parser], common: _Parser) -> None:
    bench = commands.add_parser("bench", help="Measure, each time against a baseline of the same run.")
    names = bench.add_subparsers(title="benchmarks", metavar="NAME", required=True)
    made = _Commands(names, common)
    told = _Commands(names, common, _results())
    shaped = _Commands(names, common, _results(), _model())
    local = shaped.add("local", "bench", "local", "The store in DRAM against memcpy: in this process, or in a server.")
    local.add_argument("--server", action="store_true", help="a server in another process, over shared memory")
    local.add_argument("--clients", type=positives, metavar="N,…", help="with --server: how many read at once (8)")
    remote = shaped.add("remote", "bench", "remote", "A server over TCP on loopback against a raw stream.")
    remote.add_argument("--tls", action="store_true", help="both over TLS")
    remote.add_argument("--clients", type=positives, metavar="N,…", help="then so many processes that read at once")
    grpc = shaped.add("grpc", "bench", "grpc", "A server over gRPC on loopback against a raw TCP stream.")
    for each in (local, remote, grpc):
        each.add_argument("--rounds", type=positive, default=60, metavar="N", help="timed rounds (%(default)s)")
        each.add_argument("--sizes", type=sizes, metavar="SIZE,…", help="of chunks, like 256KiB,1MiB,16MiB")
    lookup = shaped.add("lookup", "bench", "lookup", "How long it takes to learn how far a prompt reaches.")
    lookup.add_argument("--entries", type=positive, default=100_000, metavar="N", help="chunks stored (%(default)s)")
    lookup.add_argument("--clients", type=positives, metavar="N,…", help="how many ask at once (1,2,4,8)")
    lookup.add_argument("--modes", type=words, metavar="MODE,…", help="of embedded,local,bulk,grpc (all but bulk)")
    _mix(shaped.add("mix", "bench", "mix", "Requests as engines make them, over a store too small for all of it."))
    _hosts(told.add("hosts", "bench", "hosts", "Hosts that read from each other against one store of their size."))
    nvme = told.add("nvme", "bench", "nvme", "The NVMe tier against raw O_DIRECT on the same files.")
    nvme.add_argument("--path", metavar="FOLDER", help="a folder on the disk to measure (a temporary one)")
    tier = told.add("tier", "bench", "tier", "One tier against the plainest way to move the same bytes.")
    tier.add_argument("name", choices=("cxl", "hbm", "nvme", "peer", "posix", "s3", "valkey"))
    tier.add_argument("--path", metavar="FOLDER", help="nvme, posix: a folder on what is to be measured (here)")
    tier.add_argument("--sizes", type=sizes, metavar="SIZE,…", help="of records, like 256KiB,1MiB,16MiB")
    tier.add_argument("--server", choices=("moto", "ceph"), help="s3: whose server is started beside it (moto)")
    outage = told.add("outage", "bench", "outage", "Look-ups while the shared tier is down; how soon it is used again.")
    outage.add_argument("--rounds", type=positive, default=200, metavar="N", help="timed rounds (%(default)s)")
    worth = told.add("worth", "bench", "worth", "Loads that took longer than recomputing, weighed and not.")
    worth.add_argument("--rounds", type=positive, default=100, metavar="N", help="timed rounds (%(default)s)")
    worth.add_argument("--path", metavar="FOLDER", help="a folder on the disk to measure (a temporary one)")
    index = told.add("index", "bench", "index", "The metadata of a million chunks: memory, pauses, growth.")
    index.add_argument("--chunks", type=positive, default=1_000_000, metavar="N", help="(%(default)s)")
    index.add_argument("--soak", type=positive, default=1_000_000, metavar="N",
                       help="insertions and evictions of the soak (%(default)s)")  # fmt: skip
    simulated = told.add("sim", "bench", "sim", "How many events a second the simulator replays, policy by policy.")
    simulated.add_argument(
        "--events", type=positive, default=500_000, metavar="N", help="ids of requests (%(default)s)"
    )
    simulated.add_argument("--rounds", type=positive, default=5, metavar="N", help="timed rounds (%(default)s)")
    _codec(told.add("codec", "bench", "codec", "Size and speed of every codec; with --quality what it costs a model."))
    torture = made.add("torture", "bench", "torture", "kill -9 at random moments under load, then check everything.")
    torture.add_argument("--rounds", type=positive, default=100, metavar="N", help="kills (%(default)s)")
    torture.add_argument("--path", metavar="FOLDER", help="where the store lies (a temporary folder)")
    torture.add_argument("--seed", type=int, metavar="N", help="of the load and of the moments (random)")
    peers = told.add("peers", "peers", "peers", "kvstore beside LMCache, Mooncake, Redis and plain files, in turns.")
    peers.add_argument("--peers", type=words, default=(), metavar="NAME,…",
                       help="only these systems or families, like redis or kvstore-local")  # fmt: skip
    peers.add_argument("--envs", metavar="FOLDER",
                       help="the environments that make bench-peers installed (~/.cache/kvstore/peers)")  # fmt: skip
    peers.add_argument("--sizes", type=sizes, metavar="SIZE,…", help="of a chunk, multiples of 256 KiB (1MiB,16MiB)")
    peers.add_argument("--rounds", type=positive, default=40, metavar="N", help="timed rounds (%(default)s)")


def _codec(parser: _Parser) -> None:
    """The flags of `bench codec`."""
    parser.add_argument("--model", default="smollm2", metavar="NAME", help="smollm2 or gemma3 (%(default)s)")
    parser.add_argument("--quality", action="store_true", help="run the model on named documents: KL and top-1")
    parser.add_argument("--no-speed", action="store_true", help="with --quality: leave the times out")
    parser.add_argument("--documents", type=positive, metavar="N", help="of each genre (2; gemma3 1)")
    parser.add_argument("--codecs", type=words, default=(), metavar="NAME,…", help="only these, like transform,kivi")
    parser.add_argument("--artefact", nargs="+", default=[], metavar="FILE",
                        help="more artefacts of the model, like a joint transform for the level small")  # fmt: skip
    parser.add_argument("--plot", nargs="?", const="bench-codec.png", metavar="FILE",
                        help="with --quality: draw size against KL (bench-codec.png)")  # fmt: skip


def _hosts(parser: _Parser) -> None:
    """The flags of `bench hosts`."""
    parser.add_argument("--trace", metavar="FILE", help="requests of a trace (JSON lines with hash_ids or segments)")
    parser.add_argument("--requests", type=positive, default=1000, metavar="N", help="(%(default)s)")
    parser.add_argument("--hosts", type=positive, default=2, metavar="N", help="(%(default)s)")
    parser.add_argument("--share", type=number, default=0.25, metavar="X",
                        help="of the distinct chunks fit the hosts together (%(default)s)")  # fmt: skip
    parser.add_argument("--rate", default="1gbit", metavar="RATE", help="of a host's link, as tc has it (%(default)s)")
    parser.add_argument("--pause", dest="pause_s", type=number, default=0.002, metavar="S",
                        help="seconds between requests (%(default)s)")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the documents (%(default)s)")
    parser.add_argument("--policy", default=Config.policy, metavar="NAME", help="what goes first (%(default)s)")


def _mix(parser: _Parser) -> None:
    """The flags of `bench mix`."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--trace", metavar="FILE", help="requests of a trace (JSON lines with hash_ids or segments)")
    which.add_argument("--exponent", type=number, default=1.0, metavar="S", help="of the Zipf law (%(default)s)")
    parser.add_argument("--requests", type=positive, metavar="N", help="(2000; of a trace the first 500)")
    parser.add_argument("--clients", type=positives, default=(4,), metavar="N,…", help="how many at once (4)")
    parser.add_argument("--mode", default="local", help="local, bulk, grpc or embedded (%(default)s)")
    parser.add_argument("--dram", type=size, default=1 << 30, metavar="SIZE", help="of the store (1GiB)")
    parser.add_argument("--working-set", type=number, default=4.0, metavar="X", help="times the DRAM (%(default)s)")
    parser.add_argument("--nvme", metavar="FOLDER", help="a tier below DRAM, in a folder of its own in this one")
    parser.add_argument("--nvme-capacity", type=size, default=8 << 30, metavar="SIZE", help="(8GiB)")
    parser.add_argument("--policy", default=Config.policy, metavar="NAME", help="what goes first (%(default)s)")
    parser.add_argument("--seed", type=natural, default=0, metavar="N", help="of the popularity (%(default)s)")


def _results() -> _Parser:
    """Where a benchmark's results go besides standard output."""
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--out", metavar="FOLDER", help="write bench-NAME.json and bench-NAME.png there too")
    return parser


def _model() -> _Parser:
    """Whose chunks are moved."""
    parser = _Parser(add_help=False, allow_abbrev=False)
    group = parser.add_argument_group("chunks", "those of a public model instead of synthetic ones")
    group.add_argument("--model", metavar="NAME", help="like llama-3.1-8b; a wrong name lists them")
    group.add_argument("--tokens", type=positive, metavar="N", help="of a chunk (256)")
    group.add_argument("--tp", type=positive, metavar="N", help="tensor-parallel ranks (1)")
    return parser


def _settings() -> _Parser:
    """`--config` and one flag per key of the configuration."""
    parser = _Parser(add_help=False, allow_abbrev=False)
    group = parser.add_argument_group(
        "configuration", "a kvstore.toml, overridden by KVSTORE_… variables, overridden by these"
    )
    group.add_argument("--config", metavar="FILE", help="(KVSTORE_CONFIG, else ./kvstore.toml where there is one)")
    for key in scalar_keys():
        names = [ALIASES[key.dotted]] if key.dotted in ALIASES else []
        group.add_argument(
            *names, key.flag, dest=SETTING + key.dotted, metavar="VALUE", help=key.accepts.replace("%", "%%")
        )
    return parser


def _target() -> _Parser:
    """Which store: a server's address, or a folder opened here."""
    parser = _Parser(add_help=False, allow_abbrev=False, parents=[_access()])
    group = parser.add_argument_group("which store", "a server (--url), or a folder that no server has open")
    group.add_argument("--url", help="HOST:PORT of a server (KVSTORE_URL)")
    group.add_argument("--config", metavar="FILE", help="open the store of this kvstore.toml here (KVSTORE_CONFIG)")
    group.add_argument("--nvme", dest=SETTING + "nvme.path", metavar="FOLDER", help="open the store in this folder")
    group.add_argument("--dram", dest=SETTING + "dram.capacity", metavar="SIZE", help="its DRAM while it is open")
    return parser


def _access() -> _Parser:
    """What a server wants to know of its caller."""
    parser = _Parser(add_help=False, allow_abbrev=False)
    group = parser.add_argument_group("access", "of a server")
    group.add_argument("--token", help="(KVSTORE_TOKEN; better --token-file, which no process list shows)")
    group.add_argument("--token-file", metavar="FILE", help="a file that holds the token (KVSTORE_TOKEN_FILE)")
    group.add_argument("--ca", metavar="FILE", help="the certificate that signed the server's (KVSTORE_CA)")
    group.add_argument("--namespace", metavar="NAME", help="(KVSTORE_NAMESPACE, default)")
    return parser


def _choice(parser: argparse.ArgumentParser, *, many: bool = False) -> None:
    """Which chunks, and which part of them."""
    parser.add_argument("--spec", required=True, metavar="SPEC", help="what the bytes mean")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--tokens", metavar="TOKENS", help="the prompt that the chunks belong to")
    which.add_argument("--key", metavar="HEX", action="append" if many else "store",
                       help="a chunk's key" + (", repeatable" if many else ""))  # fmt: skip
    parser.add_argument("--chunk", type=natural, metavar="N", help="only the prompt's N-th chunk, from 0")
    if not many:
        for name, text in (("group", "KV group"), ("rank", "tensor-parallel rank"), ("stage", "pipeline stage")):
            parser.add_argument(f"--{name}", type=natural, default=0, metavar="N", help=f"{text} of the part (0)")
