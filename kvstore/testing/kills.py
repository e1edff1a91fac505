"""kill -9 of a real process that writes to a tier: what was acknowledged is there, and nothing is half there.

The child imports the test class from its file, makes a case of its own, is told where the tier lies
(`PersistentTierConformance.place` and `go_to`) and says on standard output what it was promised. It is killed while
it writes, or it dies in the middle of a write of which half has arrived.
"""

from __future__ import annotations

import inspect
import os
import signal
import subprocess
import sys
from abc import abstractmethod
from contextlib import closing
from importlib.util import module_from_spec, spec_from_file_location
from typing import Any, NoReturn, cast
from unittest import SkipTest

from kvstore.errors import KVStoreError
from kvstore.testing.faults import Fault, FaultChecks, read_verified
from kvstore.testing.records import NAMESPACE, Sample, make_sample, make_spec
from kvstore.tiers.base import Recovered, Tier, TierFull

ENOUGH = 40  # writes acknowledged before the child is killed
BEFORE_TORN = 5
_RUN = "import sys; from kvstore.testing.kills import child; child(*sys.argv[1:])"


def die() -> NoReturn:
    """kill -9 of this process."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("still alive")


def child(file: str, name: str, place: str, what: str) -> None:
    """What the child runs: open the tier, say what is written and acknowledged, until it dies."""
    found = spec_from_file_location("kvstore_killed_case", file)
    assert found is not None
    assert found.loader is not None
    module = module_from_spec(found)
    sys.modules[found.name] = module
    found.loader.exec_module(module)
    case = cast(KillChecks, getattr(module, name)())
    case.go_to(place)
    tier = case.make_tier()
    tier.describe(NAMESPACE, make_spec())
    _write(case, tier, torn=what == "torn")


def _write(case: KillChecks, tier: Tier, *, torn: bool) -> None:
    number = 0
    while True:
        if torn and number == BEFORE_TORN:
            _tear(case, tier, number)
        sample = make_sample(number, 1000 + number * 7919 % 90_000)
        _say("w", number)
        try:
            location = sample.write_to(tier)
        except TierFull:  # starting over would need an owner
            _say("f", number)
            os.read(0, 1)
            return
        _say("a", number, location)
        if number % 10 == 9:
            tier.checkpoint()
        number += 1


def _tear(case: KillChecks, tier: Tier, number: int) -> None:
    context = case.inject(tier, Fault.TORN_WRITE)
    if context is None:
        _say("none", number)
        die()
    _say("w", number)
    with context:
        make_sample(number, 300_000).write_to(tier)
    _say("survived", number)
    die()


def _say(*words: object) -> None:
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


class KillChecks(FaultChecks):
    """Tests of a persistent tier that need a process to die."""

    @abstractmethod
    def reopen(self) -> tuple[Tier, Recovered]:
        """The tier that `make_tier` made last, closed or dead by now, opened again."""

    def place(self) -> str | None:
        """Where `make_tier` makes its tiers, for `go_to`. None: no other process can go there."""
        return None

    def go_to(self, place: str) -> None:
        """In a process and a case of its own: make tiers at this place from now on, without any fixture."""
        raise NotImplementedError(f"{type(self).__name__} has a place but no way to it")

    def test_kill_9_costs_nothing_that_was_acknowledged(self) -> None:
        said = self._run("killed")
        acknowledged = {int(number): int(location) for word, number, *rest in said for location in rest if word == "a"}
        assert len(acknowledged) >= ENOUGH or said[-1][0] == "f"
        self._check(acknowledged, begun={int(number) for word, number, *_ in said if word == "w"})

    def test_a_torn_write_is_not_taken_for_a_record(self) -> None:
        said = self._run("torn")
        if said[-1][0] == "none":
            raise SkipTest("this tier cannot have a torn write")
        assert said[-1] == ["w", str(BEFORE_TORN)], f"the child went on after half a write: {said[-1]}"
        acknowledged = {int(number): int(location) for word, number, *rest in said for location in rest if word == "a"}
        assert len(acknowledged) == BEFORE_TORN
        self._check(acknowledged, begun=set(acknowledged))

    def _run(self, what: str) -> list[list[str]]:
        """Let a child write until it is killed or dies; the words of each whole line that it said."""
        place = self.place()
        if place is None:
            raise SkipTest("no other process can open this tier")
        arguments = [inspect.getfile(type(self)), type(self).__qualname__, place, what]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        command = [sys.executable, "-c", _RUN, *arguments]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        lines: list[bytes] = []
        with process:
            assert process.stdout is not None
            for line in process.stdout:
                lines.append(line)
                if what == "killed" and line.startswith((b"f", b"a %d " % (ENOUGH - 1))):
                    process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL, "the child ended by itself; see its traceback"
        return [line.decode().split() for line in lines if line.endswith(b"\n")]

    def _check(self, acknowledged: dict[int, int], begun: set[int]) -> None:
        """What was acknowledged is there and right; the rest is right, or gone, or told in the notes."""
        samples = {make_sample(n, 1000 + n * 7919 % 90_000).record.key: n for n in begun}
        tier, found = self.reopen()
        with closing(tier):
            there: dict[int, Any] = {}
            for row in found.rows:
                key = row["key"].tobytes()
                assert key in samples or found.notes, "a record that nobody wrote whole is there, and no note tells"
                if key in samples:
                    there[samples[key]] = row
            lost = sorted(acknowledged.keys() - there.keys())
            assert not lost, f"{lost} were acknowledged"
            for number, row in there.items():
                sample = make_sample(number, 1000 + number * 7919 % 90_000)
                problem = _problem(tier, int(row["location"]), sample)
                assert not problem or (found.notes and number not in acknowledged), problem
            sample = make_sample(10_000, 20_000)
            sample.check_in(tier, sample.write_to(tier))


def _problem(tier: Tier, location: int, sample: Sample) -> str:
    """What is wrong with a record, nothing if it reads back right."""
    try:
        read_verified(tier, location, sample)
    except KVStoreError as error:
        return str(error)
    return ""
