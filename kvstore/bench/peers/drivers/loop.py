"""How a driver answers the conductor.

The driver gets its `Job` as one JSON argument, prints one JSON line when it is ready ({"skip": reason} where it
cannot run), and answers each JSON line on standard input with one on standard output:

    {"do": "get" | "get-leased" | "put" | "exists", "slots": [n, …]}
                                     → {"seconds": [of each], "cpu": CPU seconds of this process in all of them}
    {"do": "digest", "slots": [n, …]}  → {"digests": [of what lies in each slot's target]}
    {"do": "fetch", "slots": [n, …]}   → the same after reading back what was put at these slots
    {"do": "wipe"}                     → {}

The end of its input ends the driver and what it started.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from types import FrameType
from typing import Any, TextIO

from .children import die_with_parent
from .driver import EXISTS, PUT_SEEDS, Driver, Job, Skip, content, digest, need

Times = tuple[float, float]


class Loop:
    """A driver with its chunks stored, answering."""

    def __init__(self, driver: Driver) -> None:
        self._driver, self._job = driver, driver.job
        self._stored: set[int] = set()
        for slot in range(self._job.count):
            driver.targets[slot] = content(slot, self._job.nbytes)
            driver.store(f"k{slot}", driver.targets[slot])
        for slot in range(self._job.ring):
            driver.sources[slot] = content(PUT_SEEDS + slot, self._job.nbytes)
        driver.targets.fill(0)
        if "exists" in driver.does and self._job.count >= EXISTS:
            driver.prepare_exists()
        self._timed: dict[str, Callable[[int], Times]] = {
            "get": self._get, "get-leased": self._get_leased, "put": self._put, "exists": self._exists,
        }  # fmt: skip

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """The reply to one request."""
        do: str = request["do"]
        slots: Sequence[int] = request.get("slots", ())
        if do in self._timed:
            times = [self._timed[do](slot) for slot in slots]
            return {"seconds": [wall for wall, _ in times], "cpu": sum(cpu for _, cpu in times)}
        if do == "wipe":
            self._driver.targets.fill(0)
            return {}
        if do == "fetch":
            return {"digests": [self._fetched(slot) for slot in slots]}
        need(do == "digest", f"a driver cannot {do!r}")
        return {"digests": [digest(self._driver.targets[slot]) for slot in slots]}

    def _get(self, slot: int) -> Times:
        key, target = f"k{slot}", self._driver.targets[slot]
        times = _timed(lambda: self._driver.load(key, target))
        self._driver.settle()
        return times

    def _get_leased(self, slot: int) -> Times:
        key, target = f"k{slot}", self._driver.targets[slot]
        self._driver.lease(key)
        times = _timed(lambda: self._driver.load_leased(key, target))
        self._driver.settle()
        return times

    def _put(self, slot: int) -> Times:
        key, data = f"p{slot}", self._driver.sources[slot]
        if slot in self._stored:
            self._driver.forget(key)
        self._stored.add(slot)
        times = _timed(lambda: self._driver.store(key, data))
        self._driver.settle()
        return times

    def _exists(self, slot: int) -> Times:
        del slot
        found: list[int] = []
        times = _timed(lambda: found.append(self._driver.exists()))
        self._driver.settle()
        need(found == [EXISTS], f"{found[0]} of {EXISTS} stored chunks were said to be there")
        return times

    def _fetched(self, slot: int) -> str:
        target = self._driver.targets[slot]
        target.fill(0)
        self._driver.load(f"p{slot}", target)
        self._driver.settle()
        return digest(target)


def main(kind: type[Driver]) -> None:
    """Run a driver to the end of its input."""
    # Whatever a system's library prints must not get between the replies.
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    die_with_parent()
    signal.signal(signal.SIGTERM, _ended)
    status = 0
    try:
        with ExitStack() as stack:
            _serve(kind, replies, stack)
    except SystemExit as ended:
        status = int(ended.code or 0)
    except BaseException as error:  # noqa: BLE001 - whatever it was, the conductor reports it
        # One line: the conductor shows the last few, and a server's own are among them.
        at = traceback.extract_tb(error.__traceback__)[-1]
        print(f"{type(error).__name__}: {error} ({at.filename}:{at.lineno})", file=sys.stderr)
        status = 1
    sys.stderr.flush()
    # Some systems leave threads behind that would hold the process.
    os._exit(status)


def _serve(kind: type[Driver], replies: TextIO, stack: ExitStack) -> None:
    job = Job(**json.loads(sys.argv[1]))
    try:
        driver = kind(job, stack)
    except Skip as reason:
        _reply(replies, {"skip": str(reason)})
        return
    loop = Loop(driver)
    does = [case for case in driver.does if case != "exists" or job.count >= EXISTS]
    _reply(replies, {"mode": driver.mode, "note": driver.note, "does": does, "pids": driver.pids})
    for line in sys.stdin:
        _reply(replies, loop.answer(json.loads(line)))


def _reply(replies: TextIO, reply: dict[str, Any]) -> None:
    print(json.dumps(reply), file=replies, flush=True)


def _timed(step: Callable[[], object]) -> Times:
    cpu = time.process_time()
    start = time.perf_counter()
    step()
    end = time.perf_counter()
    return end - start, time.process_time() - cpu


def _ended(number: int, frame: FrameType | None) -> None:
    del frame
    raise SystemExit(128 + number)
