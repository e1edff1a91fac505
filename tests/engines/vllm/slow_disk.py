"""The command line over a disk of so many bytes a second: `python slow_disk.py RATE serve …`."""

from __future__ import annotations

import sys
import time

from kvstore.cli import main
from kvstore.tiers.nvme.tier import NvmeTier

if __name__ == "__main__":
    rate, read = float(sys.argv.pop(1)), NvmeTier._read

    def slowly(tier: NvmeTier, location: int, offset: int, out: memoryview) -> None:
        time.sleep(len(out) / rate)
        read(tier, location, offset, out)

    NvmeTier._read = slowly  # type: ignore[method-assign]
    sys.exit(main())
