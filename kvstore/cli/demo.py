"""`kvstore demo`."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path


def demo(args: Namespace) -> int:
    """Run the demonstration; 1 if a continuation differs, KV is not what was saved, or a hit is slower than none."""
    from kvstore.demo.main import run

    return run(Path(args.out), json_only=args.json)
