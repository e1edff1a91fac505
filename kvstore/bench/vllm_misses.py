"""What a miss costs a real vLLM: prompts that nobody has asked before, with the store and without it.

    python -m kvstore.bench.vllm_misses [--tokens 2048] [--pairs 20] [--dtype bfloat16] [--json]

Needs an environment with vLLM (`make test-vllm` sets one up). Two engines without prefix caches of their own take
turns, the first of each pair by turns too; one of them has the connector and saves what it computes. Two answers: what
the connector's hooks took of the engine's threads, summed, as a share of the time to first token; and the ratio of the
two times to first token, the geometric mean over pairs with its 95% interval (Student's t over the logarithms).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import tempfile
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

from kvstore.bench.engines import Engine
from kvstore.bench.vllm_cases import direct, kvstore_server
from kvstore.bench.vllm_cases import prompt as fresh
from kvstore.demo.models import SMOLLM2, convert

# Two-sided 95% points of Student's t, by degrees of freedom; between them the next lower one's is used.
T95 = {1: 12.71, 2: 4.303, 4: 2.776, 9: 2.262, 14: 2.145, 19: 2.093, 29: 2.045, 59: 2.001, 119: 1.980}


def main() -> None:
    """Run it and print both answers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.pairs < 2:
        parser.error("--pairs must be at least 2")
    with tempfile.TemporaryDirectory(prefix="kvstore-bench-vllm-") as scratch:
        row = measure(Path(scratch), args.tokens, args.pairs, args.dtype)
    if args.json:
        print(json.dumps({"bench": "vllm-misses", "rows": [row]}))
        return
    low, high = row["ratio_95"]
    print(f"{args.tokens} tokens, {args.pairs} pairs: {row['plain_s'] * 1e3:.0f} ms without the store, "
          f"{row['ttft_s'] * 1e3:.0f} ms with it: x {row['with_over_without']:.4f} (95%: {low:.4f} to {high:.4f}); "
          f"hooks {100 * row['hooks_share']:.2f}% of the time to first token")  # fmt: skip


def measure(folder: Path, tokens: int, pairs: int, dtype: str) -> dict[str, Any]:
    """Medians of both engines, their ratio, and the share of the connector's hooks."""
    model = convert(SMOLLM2)
    options = {"dtype": dtype, "max_model_len": 8192, "max_num_batched_tokens": 8192, "block_size": 32}
    with contextlib.ExitStack() as stack:
        address = stack.enter_context(kvstore_server())
        engines = {
            name: stack.enter_context(
                contextlib.closing(Engine(model, transfer, folder / f"{name}.log", {}, **options))
            )
            for name, transfer in (("plain", None), ("store", direct(address)))
        }
        for engine in engines.values():  # the first forward of an engine is like no other
            engine.ask(fresh(256, -1), max_tokens=1)
        return _pairs(engines, tokens, pairs)


def _pairs(engines: dict[str, Engine], tokens: int, pairs: int) -> dict[str, Any]:
    taken: dict[str, list[float]] = {name: [] for name in engines}
    before = engines["store"].ask(fresh(64, -2), max_tokens=1)["counters"].get("hooks_s", 0.0)
    counters: dict[str, float] = {}
    for n in range(pairs):
        for name in sorted(engines, reverse=bool(n % 2)):
            told = engines[name].ask(fresh(tokens, 2 * n + (name == "store")), max_tokens=1)
            taken[name].append(told["answers"][0]["ttft_s"])
            counters = told["counters"] if name == "store" else counters
    logs = [math.log(mine / plain) for mine, plain in zip(taken["store"], taken["plain"], strict=True)]
    half = T95[max(each for each in T95 if each < pairs)] * stdev(logs) / math.sqrt(pairs)
    return {
        "case": "miss",
        "tokens": tokens,
        "pairs": pairs,
        "plain_s": median(taken["plain"]),
        "ttft_s": median(taken["store"]),
        "with_over_without": math.exp(fmean(logs)),
        "ratio_95": [math.exp(fmean(logs) - half), math.exp(fmean(logs) + half)],
        "hooks_share": (counters["hooks_s"] - before) / sum(taken["store"]),
        "saved_bytes": counters.get("saved_bytes", 0.0),
    }


if __name__ == "__main__":
    main()
