"""Run as a program: a client that holds what lies in a server's device memory until it is killed.

`device_holder.py URL CHUNKS DEVICE`: waits until so many chunks of the prompt lie there, prints the sum of their bytes,
and goes on holding them.
"""

from __future__ import annotations

import sys
import time

import kvstore
from tests.server.local.device_prompt import SPEC, prompt


def main(url: str, count: int, device: str) -> None:
    """Serve one test."""
    client, refs = kvstore.connect(url), prompt(count)
    views = client.device_views(SPEC, refs, device=device)
    while views.found < count:
        views.close()
        time.sleep(0.02)
        views = client.device_views(SPEC, refs, device=device)
    print(sum(int(each.long().sum()) for each in views.tensors), flush=True)
    time.sleep(600)


main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
