"""The command line: `kvstore COMMAND …`.

Exit codes: 0 done, 1 a failed check, 2 wrong usage or input, 3 not found, 4 permission, 5 shed, 6 corrupt,
7 storage, 8 unavailable, 9 deadline, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module

from kvstore.cli.parser import parse
from kvstore.errors import KVStoreError

INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    debug = False
    try:
        args = parse(argv)
        debug = args.debug
        command = import_module(f"kvstore.cli.{args.module}")
        code: int = getattr(command, args.function)(args)
        sys.stdout.flush()
    except SystemExit as done:  # argparse: --help, --version and wrong usage
        return done.code if isinstance(done.code, int) else 2
    except KVStoreError as error:
        return _failed(error, debug)
    except BrokenPipeError:
        # The reader went away; what Python flushes at exit must not complain about it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return INTERRUPTED
    return code


def _failed(error: KVStoreError, debug: bool) -> int:
    if debug:
        traceback.print_exception(error, file=sys.stderr)
    else:
        print("kvstore: " + " ".join(str(error).split()), file=sys.stderr)
    return error.exit_code
