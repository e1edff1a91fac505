"""Requests by key: each goes to the server that has its key, wherever a cluster sends it for that."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TypeVar

from kvstore.errors import Unavailable
from kvstore.tiers.remote.valkey.nodes import Node, Nodes
from kvstore.tiers.remote.valkey.objects import Redirect, Request, exchange
from kvstore.tiers.remote.valkey.wire import Answer, Refusal, Wire

_REDIRECTS = 5
Result = TypeVar("Result")


class Requests:
    """Asks the servers of one place."""

    def __init__(self, nodes: Nodes) -> None:
        self._nodes = nodes

    def each(self, keys: Sequence[bytes], requests: Sequence[Request], deadline: float) -> Sequence[Answer]:
        """The answer to each request, asked of the server that has its key, all servers at the same time."""
        answers: list[Answer] = [None] * len(keys)
        shares: dict[Node, list[int]] = {}
        for index, key in enumerate(keys):
            shares.setdefault(self._nodes.of(key), []).append(index)
        moved = []
        with ExitStack() as stack:
            wires = []
            for node in sorted(shares, key=lambda node: node.address):  # in one order, or two could wait for each other
                wire = stack.enter_context(node.wire(deadline))
                wire.send(*(requests[index] for index in shares[node]))
                wires.append((wire, shares[node]))
            for wire, indices in wires:
                for index in indices:
                    answers[index] = answer = wire.answer()
                    if isinstance(answer, Refusal) and answer.code in {"MOVED", "ASK"}:
                        moved.append(index)
        for index in moved:
            answers[index] = self.exchange(keys[index], deadline, requests[index])
        return answers

    def exchange(self, key: bytes, deadline: float, request: Request) -> Answer:
        """One request; a refusal is raised."""
        return self.at(key, deadline, lambda wire: exchange(wire, request))

    def at(self, key: bytes, deadline: float, work: Callable[[Wire], Result]) -> Result:
        """Do something on a connection to the server that has a key."""
        node, asking = self._nodes.of(key), False
        for _ in range(_REDIRECTS):
            try:
                with node.wire(deadline, asking=asking) as wire:
                    return work(wire)
            except Redirect as redirect:
                node, asking = self._nodes.redirected(redirect.refusal, deadline)
        raise Unavailable("the cluster sends a request from server to server")
