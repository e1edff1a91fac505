"""What the simulator says of the requests that `bench mix` has just made: the same chunks, capacity and policy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kvstore.bench.corpus import layout
from kvstore.bench.measure import Row
from kvstore.bench.models import MODELS
from kvstore.bench.workloads import Workload, chain_of
from kvstore.cost import Prefill
from kvstore.record import header_bytes, padded
from kvstore.sim.formats import Parsed, Request
from kvstore.sim.models import model_of
from kvstore.sim.replay import Replay
from kvstore.sim.report import policy_p50, share_of
from kvstore.sim.setup import SPEEDS, Capacity, Setup, Tier
from kvstore.sim.trace import from_parsed
from kvstore.spec import OPAQUE, KVSpec

PREFILL_FLOPS = 400e12  # of one large GPU, as `kvstore sim` takes it
STEP_S = 0.01


def simulated(
    workload: Workload, spec: KVSpec, capacities: Sequence[int], policy: str, began_ms: Sequence[Sequence[int]]
) -> Row:
    """The hit ratio by tokens, and seconds an event in the policy (p50).

    `began_ms` of each client's requests, which were dealt in turn, say in which order they were made, and when.
    Chunks reach the policy as a store's clients make them: what is there at the look-up, the rest in prompt order.
    """
    requests, clients = [], len(began_ms)
    for number, blocks in enumerate(workload.requests):
        refs = chain_of(blocks)
        ids = [int.from_bytes(ref.key[:7], "little") for ref in refs]
        at_ms = began_ms[number % clients][number // clients]
        requests.append(Request(at_ms, refs[-1].end, ids, [ref.tokens for ref in refs]))
    requests.sort(key=lambda request: request.at_ms)
    trace = from_parsed(Parsed(workload.name, True, workload.chunk_tokens, requests))
    names = ("dram", "nvme")[: len(capacities)]
    tiers = [Tier(n, Capacity("", nbytes=size), SPEEDS[n]) for n, size in zip(names, capacities, strict=True)]
    stored = {tokens: stored_bytes(spec, tokens) for tokens in np.unique(trace.chunk_tokens).tolist()}
    sizes = [stored[tokens] for tokens in trace.chunk_tokens.tolist()]
    replay = Replay(trace, Setup((), touch="put", warm=0.0), chunk_bytes=sizes)
    told = replay.play(policy, tiers)
    return {
        "sim_hit_ratio": share_of(told.hit_tokens.sum(dtype=np.int64), replay.counted.sum()),
        "policy_p50_s": policy_p50(trace, told),
    }


def stored_bytes(spec: KVSpec, tokens: int) -> int:
    """What all records of a chunk take in DRAM."""
    groups = {part: 1 if spec.layout == OPAQUE else len(spec.part_layers(part)) for part, _ in layout(spec, tokens)}
    return sum(header_bytes(groups[part]) + padded(at.stop - at.start) for part, at in layout(spec, tokens))


def prefill_of(model: KVSpec | None) -> Prefill | None:
    """What computing a prompt of a public model takes; None of a synthetic one, which has no weights."""
    names = [name for name, shape in MODELS.items() if model is not None and shape.source == model.model]
    return model_of(names[0]).prefill(PREFILL_FLOPS, STEP_S) if names else None


def slower_share(loads: Sequence[tuple[int, float]], prefill: Prefill | None) -> float | None:
    """Of loads (tokens from the head of a prompt, seconds) those that took longer than computing would have."""
    if prefill is None or not loads:
        return None
    return share_of(sum(seconds > prefill.seconds(0, tokens) for tokens, seconds in loads), len(loads))
