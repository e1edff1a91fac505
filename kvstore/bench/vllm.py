"""Time to first token of a real vLLM: cold, warm from a server's memory or disk in a fresh engine, from its own cache.

    python -m kvstore.bench.vllm [--cases dram,nvme,own] [--tokens 2048] [--rounds 5] [--dtype bfloat16]
        [--block-size 32] [--json]

Needs an environment with vLLM (`make test-vllm` sets one up). For each case one engine without a prefix cache of its
own computes and saves a prompt for every round, and ends; a fresh one is asked for them. The fresh engines of all cases
take turns, and each round has a prompt of its own and a cold one: so no engine loads a prompt twice, and what lies in
vLLM's host memory in front of a secondary tier is never what is measured. The cases are those of
`kvstore.bench.vllm_cases.CASES`, among them the same job done by vLLM's own connectors and by LMCache; `dram` and `own`
always take part. An engine takes some 3 GB here, so that not all of them fit a small machine in one run.

What a hit leaves to compute is up to a block, with 2,048 tokens all of one: the larger the blocks, the more of the time
to first token is that, in most kinds of hit.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from kvstore.bench.engines import Engine
from kvstore.bench.vllm_cases import CASES, Case
from kvstore.bench.vllm_cases import prompt as fresh
from kvstore.demo.models import SMOLLM2, convert

PAUSE_S = 1.0  # between questions: what one engine's threads still do is not to be another's time
SETTLE_S = 2.0  # for saves in the background, before the engine that made them ends
COLD, OWN = "dram", "own"  # whose engine computes the cold prompts; vLLM's own prefix cache
# An engine in a single process, variables and options: it starts faster, and nobody measures it.
SINGLE: tuple[dict[str, str], dict[str, str]] = (
    {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"},
    {"distributed_executor_backend": "uni"},
)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default="dram,nvme,own")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--block-size", type=int, default=32)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    asked = args.cases.split(",")
    if unknown := set(asked) - set(CASES):
        parser.error(f"no such case: {', '.join(sorted(unknown))}; there are {', '.join(CASES)}")
    cases = {name: case for name, case in CASES.items() if name in {*asked, COLD, OWN}}
    engine = {
        "dtype": args.dtype,
        "max_model_len": 8192,
        "max_num_batched_tokens": 8192,
        "block_size": args.block_size,
    }
    with tempfile.TemporaryDirectory(prefix="kvstore-bench-vllm-") as scratch:
        rows = measure(Path(scratch), cases, args.tokens, args.rounds, engine)
    if args.json:
        print(json.dumps({"bench": "vllm", "rows": rows}))
        return
    for row in rows:
        spread = " ".join(f"{each * 1e3:.0f}" for each in row["all_s"])
        print(f"{row['case']:>10} {row['tokens']:6} tokens  {row['ttft_s'] * 1e3:8.1f} ms  "
              f"{row['hit_tokens']:5} hit  {row['ratio']:6.2f} x cold  {row['own_ratio']:5.2f} x own  "
              f"{'same' if row['identical'] else 'OTHER'} tokens as cold, "
              f"{'same' if row['as_own'] else 'OTHER'} as own  ({spread})")  # fmt: skip


def measure(
    folder: Path, cases: Mapping[str, Case], tokens: int, rounds: int, options: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """One row per case: medians of `rounds` interleaved measurements."""
    model, prompts = convert(SMOLLM2), [fresh(tokens, seed) for seed in range(rounds)]
    with contextlib.ExitStack() as stack:
        warm: dict[str, Engine] = {}
        reference: list[list[int]] = []
        for name, case in cases.items():
            if reason := case.missing():
                _tell(name, f"left out: {reason}")
                continue
            (folder / name).mkdir()
            given = {**options, **case.engine}
            with contextlib.ExitStack() as before:
                transfer = (before if case.restarted else stack).enter_context(case.serve(folder / name))
                if case.shared:
                    _tell(name, "filling")
                    log = folder / f"{name}-filling.log"
                    env, single = ({}, {}) if case.workers else SINGLE
                    filling = Engine(model, transfer, log, env, **single, **given)
                    with contextlib.closing(filling):
                        reference = _fill(filling, prompts, reference)
            if case.restarted:
                transfer = stack.enter_context(case.serve(folder / name))
            _tell(name, "starting")
            engine = Engine(model, transfer, folder / f"{name}.log", {}, **given)
            warm[name] = stack.enter_context(contextlib.closing(engine))
            engine.ask(fresh(256, -1))  # the first forward of an engine is like no other
            if not case.shared:
                _fill(engine, prompts, reference)
        _tell("all", "measuring")
        return _rounds(warm, prompts, reference)


def _tell(case: str, what: str) -> None:
    print(f"{case}: {what}", file=sys.stderr, flush=True)


def _fill(engine: Engine, prompts: list[list[int]], reference: list[list[int]]) -> list[list[int]]:
    """Compute and save the prompts. What the first engine answers to each is the reference for all."""
    answers = [engine.ask(prompt)["answers"][0]["ids"] for prompt in prompts]
    time.sleep(SETTLE_S)
    engine.ask(fresh(64, -2))
    return reference or answers


def _rounds(warm: dict[str, Engine], prompts: list[list[int]], reference: list[list[int]]) -> list[dict[str, Any]]:
    taken: dict[str, list[dict[str, Any]]] = {"cold": [], **{name: [] for name in warm}}
    for n, prompt in enumerate(prompts):
        for name, engine in warm.items():
            time.sleep(PAUSE_S)
            taken[name].append(engine.ask(prompt)["answers"][0])
        taken["cold"].append(warm[COLD].ask(fresh(len(prompt), len(prompts) + n))["answers"][0])
    medians = {name: median(each["ttft_s"] for each in answers) for name, answers in taken.items()}
    own = [answer["ids"] for answer in taken[OWN]]
    rows = []
    for name, answers in taken.items():
        same = [answer["ids"] == ids for answer, ids in zip(answers, reference, strict=True)]
        rows.append(
            {
                "case": name,
                "tokens": len(prompts[0]),
                "ttft_s": medians[name],
                "hit_tokens": int(median(each["cached"] for each in answers)),
                "ratio": medians["cold"] / medians[name],
                "own_ratio": medians[OWN] / medians[name],
                "identical": name == "cold" or all(same),
                "as_own": [answer["ids"] for answer in answers] == own,
                "all_s": [each["ttft_s"] for each in answers],
            }
        )
    return rows


if __name__ == "__main__":
    main()
