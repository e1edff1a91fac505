"""Run as a program: has a tier, hands out records of it, and says what has become of them.

`exporter.py DEVICE`: prints a line of JSON with the handles, then answers each line on standard input.
"""

from __future__ import annotations

import dataclasses
import json
import sys

from kvstore.errors import KVStoreError
from kvstore.testing.records import Sample, make_sample
from kvstore.tiers.hbm import HbmTier

MIB = 1 << 20


def main(device: str) -> None:
    """Serve one test."""
    tier = HbmTier(32 * MIB, device, slab_bytes=16 * MIB, ipc=True)
    handles, locations = [], []
    for number in range(4):
        sample = make_sample(number, 100_000 + number)
        record = dataclasses.replace(sample.record, namespace=bytes([number % 2]) * 16)
        location = Sample(record, record.pack(), sample.payload).write_to(tier)
        locations.append(location)
        try:
            handles.append(tier.export(location, record.header_bytes, record.stored).decode())
        except KVStoreError as error:
            handles.append(f"{type(error).__name__}: {error}")
    print(json.dumps({"handles": handles, "slabs": [at >> 40 for at in locations]}), flush=True)
    for line in sys.stdin:
        if line.strip() == "close":
            tier.close()
            print("closed", flush=True)
        else:
            out = bytearray(8)
            tier.read_into(locations[int(line)], 4096, memoryview(out))
            print(out.hex(), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
