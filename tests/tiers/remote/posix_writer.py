"""A process that puts objects until it is killed, and says the number of each that was acknowledged."""

from __future__ import annotations

import itertools
import os
import sys
from pathlib import Path

from kvstore.testing.engines import content
from kvstore.tiers.remote.posix import PosixEngine

engine = PosixEngine(Path(sys.argv[1]))
for number in itertools.count():
    assert engine.put(f"n/{number}", [content(number, 200_000)], 10)
    os.write(1, f"{number}\n".encode())
