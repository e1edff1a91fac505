"""A process that asks a shared table again and again until its standard input ends.

Arguments: descriptor, length, n. Standard input: a spec's digest and packed references, of which the first n are
always there and the next n never. It says `ready` and at the end how many look-ups were answered and not answered,
how often a chunk was lost or a phantom, and how often the answer about the rest changed.
"""

import os
import select
import sys

from kvstore._native import SharedTableReader

fd, nbytes, count = map(int, sys.argv[1:])
reader = SharedTableReader(fd, nbytes)
os.close(fd)
given = os.read(0, 1 << 20)
spec, refs = given[:16], given[16:]
answered = unanswered = lost = phantom = changes = 0
before: list[bool] = []
os.write(1, b"ready\n")
while not select.select([0], [], [], 0)[0]:
    for _ in range(100):
        answer = reader.lookup(spec, refs)
        if answer is None:
            unanswered += 1
            continue
        answered += 1
        there = answer[2]
        lost += there[:count].count(False)
        phantom += there[count : 2 * count].count(True)
        changes += there[2 * count :] != before
        before = there[2 * count :]
print(answered, unanswered, lost, phantom, changes)
