"""`kvstore sim --record`: take a trace from a live server."""

from __future__ import annotations

import signal
import sys
import threading
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

from kvstore.cli.output import print_json
from kvstore.cli.target import open_client
from kvstore.errors import InvalidArgument
from kvstore.sim.record import record as take


def record(args: Namespace) -> int:
    """Until Ctrl-C or for `--seconds`; then say what was recorded."""
    if args.traces:
        raise InvalidArgument("--record takes a trace, and a TRACE is one to replay; give one of them")
    if not args.out:
        raise InvalidArgument("where does the trace go? give --out FILE")
    args.url, args.config = args.record, None
    with open_client(args) as client:
        told = take(client, Path(args.out), ready=_ready, seconds=args.seconds or 0.0)
    facts = vars(told)
    if args.json:
        print_json({"out": args.out, **facts})
    else:
        print(f"{args.out}: {told.requests} requests in blocks of {told.chunk_tokens} tokens")
        if told.left_out or told.lost:
            print(f"left out {told.left_out} look-ups of other chunks; too slow {told.lost} times")
    return 0


def _ready(stop: Callable[[], None]) -> None:
    """Ctrl-C ends the recording between two lines; from a thread, since whoever is interrupted may hold the line."""
    signal.signal(signal.SIGINT, lambda *_: threading.Thread(target=stop).start())
    print("kvstore sim: recording", file=sys.stderr, flush=True)
