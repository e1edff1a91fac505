"""`kvstore demo`."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path


def demo(args: Namespace) -> int:
    """Run the demonstration; 1 if a continuation differs or a bar is missed."""
    from kvstore.demo.main import run

    return run(Path(args.out), json_only=args.json)
