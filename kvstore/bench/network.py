"""Hosts of our own on this machine: network namespaces that links of a set rate join through a bridge.

Needs root and the programs `ip` and `tc`, and for lost packets `iptables-legacy`. A link is a pair of veth devices
with a token bucket at either end. The machine itself is on the bridge, too.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import count

from kvstore.errors import Unavailable

_BURST, _QUEUE = "256kb", "50ms"
_numbers = count()


class Network:
    """So many hosts, each with a name for `ip netns exec` and an address; `gateway` is the machine's own."""

    def __init__(self, hosts: int, *, rate: str = "1gbit") -> None:
        """`rate` is that of a link either way, as `tc` writes it. `Unavailable` where the machine does not let us."""
        for program in ("ip", "tc"):
            if shutil.which(program) is None:
                raise Unavailable(f"{program} is not installed (iproute2)")
        self._tag = f"{os.getpid() % 100_000}x{next(_numbers) % 100}"
        net = f"10.{128 + os.getpid() % 120}.{(os.getpid() // 120 + next(_numbers)) % 250}"
        self.gateway = f"{net}.1"
        self.addresses = [f"{net}.{number + 2}" for number in range(hosts)]
        self.names = [f"kvh{self._tag}-{number}" for number in range(hosts)]
        self._bridge = f"kvb{self._tag}"
        with ExitStack() as stack:
            run("ip", "link", "add", self._bridge, "type", "bridge")
            stack.callback(run, "ip", "link", "del", self._bridge)
            run("ip", "addr", "add", f"{self.gateway}/24", "dev", self._bridge)
            run("ip", "link", "set", self._bridge, "up")
            for number in range(hosts):
                self._add(number, rate, stack)
            self._stack = stack.pop_all()

    def _add(self, number: int, rate: str, stack: ExitStack) -> None:
        name, outer, inner = self.names[number], self._outer(number), "eth0"
        run("ip", "netns", "add", name)
        stack.callback(run, "ip", "netns", "del", name)
        run("ip", "link", "add", outer, "type", "veth", "peer", "name", inner, "netns", name)
        stack.callback(run, "ip", "link", "del", outer)  # first: a connection that ends slowly keeps a namespace alive
        run("ip", "link", "set", outer, "master", self._bridge, "up")
        run(*self.command(number), "ip", "addr", "add", f"{self.addresses[number]}/24", "dev", inner)
        for device in (inner, "lo"):
            run(*self.command(number), "ip", "link", "set", device, "up")
        shape = ("root", "tbf", "rate", rate, "burst", _BURST, "latency", _QUEUE)
        run("tc", "qdisc", "add", "dev", outer, *shape)
        run(*self.command(number), "tc", "qdisc", "add", "dev", inner, *shape)

    def command(self, number: int) -> Sequence[str]:
        """What a command of a host begins with."""
        return ("ip", "netns", "exec", self.names[number])

    def cut(self, number: int) -> None:
        """Take a host's link down: nothing arrives, and nobody is told."""
        run("ip", "link", "set", self._outer(number), "down")

    def mend(self, number: int) -> None:
        """Take it up again."""
        run("ip", "link", "set", self._outer(number), "up")

    def lose(self, number: int, share: float) -> None:
        """Drop so large a share of the packets that a host receives, at random. `Unavailable` without iptables."""
        program = shutil.which("iptables-legacy")
        if program is None:
            raise Unavailable("iptables-legacy is not installed (iptables)")
        rule = ("-m", "statistic", "--mode", "random", "--probability", f"{share:g}", "-j", "DROP")
        run(*self.command(number), program, "-A", "INPUT", "-i", "eth0", *rule)

    def close(self) -> None:
        """Take all of it down; processes that still run there lose their network."""
        self._stack.close()

    def _outer(self, number: int) -> str:
        return f"kv{self._tag}-{number}"


def run(*words: str) -> None:
    """A command that must succeed; `Unavailable` with what it said."""
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=30)
    if done.returncode:
        raise Unavailable(f"{' '.join(words)}: {' '.join(done.stderr.split())}")
