"""Time to first token of `model.generate` with a `KVStoreCache`, against a prefix that is in memory already.

    python -m kvstore.bench.transformers [--model SmolLM2|Gemma3] [--tokens 2048] [--rounds 5] [--json]

A server of its own is restarted before every round. Cases, all of one prompt but `miss`, taking turns in this process:
`cold` without any cache, `miss` a `KVStoreCache` for a new prompt, `nvme` a `KVStoreCache` after the restart, `dram`
the next one, `own` a `DynamicCache` that holds all of the prompt but its last token. A time is from the token ids to
the first new token and has the making of the cache in it; `own` is copied before.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import DynamicCache

from kvstore.bench.measure import Row, report
from kvstore.client import Client
from kvstore.connectors.transformers import KVStoreCache
from kvstore.demo import document, models
from kvstore.demo.places import served
from kvstore.errors import Corrupt

MODELS = {"SmolLM2": models.SMOLLM2, "Gemma3": models.GEMMA3}
CHECKED = 16  # tokens of every case's text that are compared with the cold run's
CASES = ("cold", "miss", "nvme", "dram", "own")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="SmolLM2")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kvstore-bench-transformers-") as scratch:
        rows = measure(Path(scratch), MODELS[args.model], args.tokens, args.rounds)
    if args.json:
        print(json.dumps(report("transformers", rows, model=args.model)))
        return
    for row in rows:
        spread = " ".join(f"{each * 1e3:.0f}" for each in row["all_s"])
        print(f"{row['case']:>5} {row['tokens']:6} tokens  {row['ttft_s'] * 1e3:8.1f} ms  {row['hit_tokens']:5} hit  "
              f"{row['ratio']:6.2f} x cold  {row['own_ratio']:5.2f} x own  ({spread})")  # fmt: skip


def measure(folder: Path, packaged: models.PackagedModel, tokens: int, rounds: int) -> list[Row]:
    """One row per case: medians of `rounds` measurements."""
    model, tokenizer = models.load(models.convert(packaged))
    ids = document.token_ids(tokenizer, tokens)
    expected = _text(model, ids, None)
    own = DynamicCache(config=model.config)
    with torch.no_grad():
        model(torch.tensor([ids[:-1]]), past_key_values=own, logits_to_keep=1)
    with served(folder) as client, KVStoreCache(client, model, ack="persisted") as cache:
        _check("miss", _text(model, ids, cache), expected)
    taken: dict[str, list[tuple[float, int]]] = {case: [] for case in CASES}
    for number in range(rounds):
        unknown = [tokens + number, *ids[1:]]
        with served(folder) as client:
            client.describe()
            ways = _ways(model, client, own)
            for case in CASES:
                taken[case].append(_timed(model, unknown if case == "miss" else ids, ways[case]))
            for case in ("dram", "own"):
                _check(case, _text(model, ids, ways[case]()()), expected)
    return [_row(case, tokens, taken) for case in CASES]


def _ways(model: Any, client: Client, own: DynamicCache) -> dict[str, Callable[[], Callable[[], Any]]]:
    """For each case what makes ready, untimed, and gives what makes the cache, timed."""

    def stored() -> Any:
        return KVStoreCache(client, model)

    def copied() -> Callable[[], Any]:
        ready = copy.deepcopy(own)
        return lambda: ready

    return {case: copied if case == "own" else (lambda: lambda: None) if case == "cold" else (lambda: stored)
            for case in CASES}  # fmt: skip


def _timed(model: Any, ids: Sequence[int], way: Callable[[], Callable[[], Any]]) -> tuple[float, int]:
    """Seconds to the first token, and how many tokens came from the store."""
    make, asked = way(), torch.tensor([ids])
    start = time.perf_counter()
    cache = make()
    _generate(model, asked, cache, 1)
    took = time.perf_counter() - start
    return took, int(getattr(cache, "hit_tokens", 0))


def _text(model: Any, ids: Sequence[int], cache: Any) -> list[int]:
    found: list[int] = _generate(model, torch.tensor([ids]), cache, CHECKED)[0, len(ids) :].tolist()
    return found


def _generate(model: Any, ids: torch.Tensor, cache: Any, count: int) -> Any:
    return model.generate(ids, past_key_values=cache, max_new_tokens=count, do_sample=False, eos_token_id=None,
                          pad_token_id=0)  # fmt: skip


def _check(case: str, text: list[int], expected: list[int]) -> None:
    if text != expected:
        raise Corrupt(f"{case} goes on with {text}, without a store the model does with {expected}")


def _row(case: str, tokens: int, taken: dict[str, list[tuple[float, int]]]) -> Row:
    medians = {name: median(took for took, _ in each) for name, each in taken.items()}
    return {
        "case": case,
        "tokens": tokens,
        "ttft_s": medians[case],
        "hit_tokens": int(median(hit for _, hit in taken[case])),
        "baseline": "cold",
        "ratio": medians["cold"] / medians[case],
        "own_ratio": medians["own"] / medians[case],
        "identical": True,  # anything else has ended the run
        "all_s": [took for took, _ in taken[case]],
    }


if __name__ == "__main__":
    main()
