"""`kvstore bench mix`: clients that serve requests as an engine does, over a store too small for all of it.

Each request looks its prompt up under a lease, gets the chunks of the hit (up to 16 in a call), gives the lease back
and puts the chunks that were missing. A chunk's content follows from its key, so that what any client put any other
can check: every so many gets are compared byte by byte, and before each of those as many bytes are copied inside the
client's own memory for comparison. Neither counts as time of the mix. The store is empty when it begins. Beside its hit
ratio by tokens stands what the simulator has for the same requests, capacities and policy.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import kvstore
from kvstore.bench.corpus import chunk_bytes, content, shape_facts
from kvstore.bench.cpu import CpuClock
from kvstore.bench.crew import Answer, Crew, processes, threads
from kvstore.bench.measure import Row, cpu_facts, percentile
from kvstore.bench.mix_sim import prefill_of, simulated, slower_share
from kvstore.bench.processes import MODES, server
from kvstore.bench.replay import POOL, Replayer
from kvstore.bench.workloads import Workload, trace, zipf
from kvstore.config import Config, DramConfig, NvmeConfig
from kvstore.cost import Prefill
from kvstore.errors import InvalidArgument
from kvstore.policy import check_policy
from kvstore.spec import KVSpec

MiB = 1 << 20
TOKENS = 256
# What a table shows besides.
FACTS = (
    "requests", "clients", "policy", "hit_ratio", "sim_hit_ratio", "policy_p50_s", "left_out", "slower_share",
    "get_gbps", "lookup_p50_s", "put_p50_s", "sheds", "lost", "checked",
)  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """What is asked for, and of what store.

    Without `trace_path` popularity follows Zipf with `exponent`, over documents of `working_set` times the DRAM's
    bytes in all. `requests` of 0: 2,000, or the first 500 of a trace. `nvme` is a folder that a tier below DRAM is
    made in, `nvme_capacity` bytes large. `policy` says what the store evicts first.
    """

    exponent: float = 1.0
    trace_path: Path | None = None
    requests: int = 0
    dram: int = 1 << 30
    working_set: float = 4.0
    nvme: Path | None = None
    nvme_capacity: int = 8 << 30
    policy: str = Config.policy
    seed: int = 0

    def workload(self, tokens: int, token_bytes: int) -> Workload:
        """The requests; `tokens` a chunk, unless a trace says."""
        if self.trace_path is not None:
            return trace(self.trace_path, self.requests or 500)
        mean = 8.5 * tokens * token_bytes
        documents = max(1, round(self.working_set * self.dram / mean))
        requests = self.requests or 2000
        return zipf(exponent=self.exponent, requests=requests, documents=documents, tokens=tokens, seed=self.seed)


def run(plan: Plan, *, model: KVSpec | None = None, clients: Sequence[int] = (4,), mode: str = "local") -> list[Row]:
    """A row per number of clients at once, each over an empty store of its own."""
    check_policy(plan.policy, "--policy")
    if mode not in ("embedded", *MODES):
        raise InvalidArgument(f"no mode {mode!r}; there are embedded, {', '.join(MODES)}")
    base = model or KVSpec.dense("bench-mix", layers=16, kv_heads=1, head_dim=64, chunk_tokens=TOKENS)
    workload = plan.workload(base.chunk_tokens, chunk_bytes(base) // base.chunk_tokens)
    spec = KVSpec.from_dict({**base.to_dict(), "chunk_tokens": workload.chunk_tokens})
    if plan.dram < 4 * chunk_bytes(spec):
        raise InvalidArgument(f"a DRAM of {plan.dram} bytes is too little for chunks of {chunk_bytes(spec)} bytes")
    rows = []
    for number in clients:
        with pool(spec) as descriptor, ExitStack() as stack:
            prefill = prefill_of(model)
            crew, pid = _crew(stack, plan, spec, workload, number, mode, descriptor, prefill)
            clock = CpuClock(pid)
            used = clock.seconds()
            answers = crew.phase(["replay"] * number, float("inf"))
            row = _row(workload, chunk_bytes(spec), mode, answers, clock.seconds() - used if pid else None)
            row.update({**shape_facts(model), "dram_bytes": plan.dram, "nvme": plan.nvme is not None})
            loads = [load for answer in answers for load in answer["loads"]]
            capacities = (plan.dram,) if plan.nvme is None else (plan.dram, plan.nvme_capacity)
            row.update({
                "policy": plan.policy, "slower_share": slower_share(loads, prefill),
                **simulated(workload, spec, capacities, plan.policy, [answer["began_ms"] for answer in answers]),
            })  # fmt: skip
            rows.append(row)
    return rows


def _crew(
    stack: ExitStack, plan: Plan, spec: KVSpec, workload: Workload, members: int, mode: str, descriptor: int,
    prefill: Prefill | None,
) -> tuple[Crew, int]:  # fmt: skip
    """A store as planned, clients of it, and the number of its process (0: this one)."""
    folder = stack.enter_context(tempfile.TemporaryDirectory(dir=plan.nvme)) if plan.nvme is not None else None
    if mode == "embedded":
        nvme = NvmeConfig(Path(folder), capacity=plan.nvme_capacity) if folder else None
        config = Config(dram=DramConfig(plan.dram, plan.dram), nvme=nvme, flush_on_close=False, policy=plan.policy)
        client = stack.enter_context(kvstore.open(config))
        deal = [workload.requests[i::members] for i in range(members)]
        return stack.enter_context(
            threads([Replayer(client, spec, each, descriptor, prefill=prefill) for each in deal])
        ), 0
    flags = ["--store-flush-on-close", "false", "--store-policy", plan.policy]
    flags += ["--nvme", folder, "--nvme-capacity", str(plan.nvme_capacity)] if folder else []
    running = stack.enter_context(server(plan.dram, *flags, put_wait_s=1.0))
    configs = [
        {
            "url": running.url(mode),
            "spec": spec.to_dict(),
            "pool": descriptor,
            "requests": workload.requests[i::members],
            "prefill": None if prefill is None else prefill.packed,
        }
        for i in range(members)
    ]
    return stack.enter_context(processes("replay", configs, share=[descriptor])), running.pid


def _row(workload: Workload, nbytes: int, mode: str, answers: Sequence[Answer], server_cpu_s: float | None) -> Row:
    def total(name: str) -> Any:
        return sum(answer[name] for answer in answers)

    gets, moved = [each for answer in answers for each in answer["gets"]], total("got") + total("put")
    sheds: dict[str, int] = {}
    for answer in answers:
        for reason, number in answer["sheds"].items():
            sheds[reason] = sheds.get(reason, 0) + number
    get_rate = total("got") / sum(gets) if gets else None
    copy_rate = total("copied") / total("copy_s") if total("copy_s") else None
    row: Row = {
        "case": workload.name, "mode": mode, "clients": len(answers), "bytes": nbytes,
        "p50_s": median(gets) if gets else None, "p99_s": percentile(gets, 0.99) if gets else None,
        "gbps": sum((a["got"] + a["put"]) / (a["elapsed_s"] - a["untimed_s"]) for a in answers) / 1e9,
        "baseline": "memcpy" if copy_rate else None, "ratio": get_rate / copy_rate if get_rate and copy_rate else None,
        "requests": len(workload.requests), "hit_ratio": total("hit_tokens") / total("tokens"),
        "hit_tokens": total("hit_tokens"), "tokens": total("tokens"), "left_out": total("left_out"),
        "moved_bytes": moved,
        "get_gbps": get_rate and get_rate / 1e9,
        **cpu_facts(total("cpu_s"), server_cpu_s, 1, moved),
        "sheds": sheds, "lost": total("lost"), "checked": total("checked"), "bar": None, "met": None,
        "note": "p50, p99: a get of up to 16 chunks; GB/s: read and stored by all clients, over their time",
    }  # fmt: skip
    for name in ("lookups", "puts"):
        times = [each for answer in answers for each in answer[name]]
        row[f"{name[:-1]}_p50_s"] = median(times) if times else None
        row[f"{name[:-1]}_p99_s"] = percentile(times, 0.99) if times else None
    return row


@contextmanager
def pool(spec: KVSpec) -> Iterator[int]:
    """Shared memory that every content is a piece of: its descriptor."""
    descriptor = os.memfd_create("kvstore-bench")
    try:
        left = content(0, POOL + chunk_bytes(spec)).data
        while left:
            left = left[os.write(descriptor, left) :]
        yield descriptor
    finally:
        os.close(descriptor)
