"""Time to first token of a real vLLM: cold, from a server's memory in a fresh engine, and from vLLM's own prefix cache.

    python -m kvstore.bench.vllm [--tokens 2048] [--rounds 5] [--dtype bfloat16] [--block-size 32] [--json]

Needs an environment with vLLM (`make test-vllm` sets one up). One engine fills the server and ends. A fresh one without
a prefix cache of its own, and one with it and without the store, then take turns; every cold prompt is a new one.

What a hit leaves to compute is up to a block, with 2,048 tokens all of one: the larger the blocks, the more of the time
to first token is that, in both kinds of hit.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from kvstore.bench.engines import Engine
from kvstore.demo.models import SMOLLM2, convert


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--block-size", type=int, default=32)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kvstore-bench-vllm-") as scratch:
        rows = measure(Path(scratch), args.tokens, args.rounds, args.dtype, args.block_size)
    if args.json:
        print(json.dumps({"bench": "vllm", "rows": rows}))
        return
    for row in rows:
        spread = " ".join(f"{each * 1e3:.0f}" for each in row["all_s"])
        print(f"{row['case']:>10} {row['tokens']:6} tokens  {row['ttft_s'] * 1e3:8.1f} ms  "
              f"{row['hit_tokens']:5} hit  {row['ratio']:6.2f} x cold  "
              f"{'same' if row['identical'] else 'OTHER'} tokens as cold  ({spread})")  # fmt: skip


def measure(folder: Path, tokens: int, rounds: int, dtype: str, block_size: int) -> list[dict[str, Any]]:
    """One row per case: medians of `rounds` interleaved measurements."""
    model = convert(SMOLLM2)
    server = subprocess.Popen(
        [sys.executable, "-m", "kvstore", "serve", "--json", "--listen", "127.0.0.1:0", "--dram", "2GiB"],
        stdout=subprocess.PIPE,
        text=True,
    )
    engines: list[Engine] = []
    try:
        assert server.stdout is not None
        address = json.loads(server.stdout.readline())["address"]
        transfer = {
            "kv_connector": "KVStoreConnector",
            "kv_role": "kv_both",
            "kv_load_failure_policy": "recompute",
            "kv_connector_extra_config": {"server": address},
        }
        options: dict[str, Any] = {
            "dtype": dtype,
            "max_model_len": 8192,
            "max_num_batched_tokens": 8192,
            "block_size": block_size,
        }

        def start(name: str, transfer: dict[str, Any] | None, **more: Any) -> Engine:
            engines.append(Engine(model, transfer, folder / f"{name}.log", {}, **options, **more))
            return engines[-1]

        ask = _prompt(tokens, 0)
        filling = start("filling", transfer)
        cold_ids = filling.ask(ask)["answers"][0]["ids"]
        filling.ask_until_cached(ask)
        filling.close()
        warm, own = start("warm", transfer), start("own", None, enable_prefix_caching=True)
        for engine in (warm, own):  # the first forward of an engine is like no other
            engine.ask(_prompt(256, -1))
        own.ask(ask)
        return _rounds(warm, own, ask, rounds, cold_ids)
    finally:
        for engine in engines:
            engine.close()
        server.terminate()
        server.wait(30)
        if server.stdout is not None:
            server.stdout.close()


def _rounds(warm: Engine, own: Engine, ask: list[int], rounds: int, cold_ids: list[int]) -> list[dict[str, Any]]:
    taken: dict[str, list[dict[str, Any]]] = {"cold": [], "dram": [], "own": []}
    for n in range(rounds):
        for case, engine, prompt in (("dram", warm, ask), ("own", own, ask), ("cold", warm, _prompt(len(ask), n + 1))):
            taken[case].append(engine.ask(prompt)["answers"][0])
    rows = []
    cold_s = median(each["ttft_s"] for each in taken["cold"])
    for case, answers in taken.items():
        ttft_s = median(each["ttft_s"] for each in answers)
        rows.append(
            {
                "case": case,
                "tokens": len(ask),
                "ttft_s": ttft_s,
                "hit_tokens": int(median(each["cached"] for each in answers)),
                "ratio": cold_s / ttft_s,
                "identical": case == "cold" or all(each["ids"] == cold_ids for each in answers),
                "all_s": [each["ttft_s"] for each in answers],
            }
        )
    return rows


def _prompt(tokens: int, seed: int) -> list[int]:
    """Token ids that no other seed begins with."""
    return [1000 + seed, *((n * 7919 + seed * 104729) % 40000 + 100 for n in range(1, tokens))]


if __name__ == "__main__":
    main()
