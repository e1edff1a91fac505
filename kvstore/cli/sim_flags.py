"""The flags of `kvstore sim`."""

from __future__ import annotations

import argparse

from kvstore.cli.values import number, positive
from kvstore.config import ALL, RULES

EPILOG = """\
A capacity is bytes (64GiB) or a share of what all distinct tokens of the trace take (5%). A tier is
NAME=CAPACITY[,gbps=…][,latency_us=…][,smaller=…][,decode_gbps=…]; hbm, dram, cxl, nvme and remote have speeds already.
A model is one of `kvstore bench --model`, or layers=…,hidden=…,kv_heads=…,head_dim=…,params=…."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Traces, tiers, policies, the engine; or a server to record."""
    parser.add_argument("traces", nargs="*", metavar="TRACE", help="JSON lines with hash_ids or segments, or .gz")
    parser.add_argument("--policy", dest="policies", action="append", metavar="NAME", help="repeatable (all)")
    parser.add_argument("--capacity", dest="capacities", action="append", metavar="SIZE", help="(1%%, 5%%, 10%%)")
    parser.add_argument("--tier", dest="tiers", action="append", metavar="TIER", help="repeatable, the fastest first")
    parser.add_argument("--admit", choices=RULES, default=ALL,
                        help="which chunks come down to the tiers below the first (all)")  # fmt: skip
    parser.add_argument("--write-bytes-per-day", metavar="SIZE", help="to each of these (no bound)")
    parser.add_argument("--plot", metavar="FILE", help="draw hit ratio over cache size")
    joined = parser.add_mutually_exclusive_group()
    joined.add_argument("--mix", action="store_true", help="several traces at once, each a tenant of its own")
    joined.add_argument("--then", action="store_true", help="several traces, one after the other")
    parser.add_argument("--shares", type=_numbers, metavar="N,…", help="of the tenants of --mix (all alike)")
    parser.add_argument("--warm", type=number, default=0.5, metavar="PART", help="of the requests, not counted (0.5)")
    parser.add_argument("--block", type=positive, metavar="N", help="tokens an id stands for (found out)")
    parser.add_argument("--requests", type=positive, metavar="N", help="only the first so many of each file")
    parser.add_argument("--whole-blocks", action="store_true", help="a partial block takes the room of a whole one")
    parser.add_argument("--touch", choices=("leaf", "put", "forward"), default="leaf",
                        help="the order in which policies see a prompt's chunks (leaf first)")  # fmt: skip
    parser.add_argument("--ended", choices=("never", "known", "always"), default="never",
                        help="which prompts clients say have ended: none, those that have, all (never)")  # fmt: skip
    engine = parser.add_argument_group("engine", "what hits are worth")
    engine.add_argument("--model", default="llama-3.1-8b", metavar="MODEL", help="(%(default)s)")
    engine.add_argument("--prefill-tflops", type=_above, default=400.0, metavar="N", help="of prefill (400)")
    engine.add_argument("--step-ms", type=number, default=10.0, metavar="N", help="of the engine's scheduler (10)")
    engine.add_argument("--overlap", action="store_true", help="it computes the front while the back is loaded")
    live = parser.add_argument_group("record", "a trace of a live server, with ids that tell nothing of its keys")
    live.add_argument("--record", metavar="HOST:PORT", help="a server; ends with Ctrl-C or after --seconds")
    live.add_argument("--out", metavar="FILE", help="of the trace; gzipped if it ends in .gz")
    live.add_argument("--seconds", type=number, metavar="N", help="how long (until Ctrl-C)")


def _above(text: str) -> float:
    value = number(text)
    if not value:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(_above(each) for each in text.split(","))
