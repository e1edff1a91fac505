"""What the store's codecs cost the text of a real vLLM.

    python -m kvstore.bench.vllm_codecs [--context 512] [--prompts 40] [--judged 20] [--json]

Needs an environment with vLLM (`make test-vllm` sets one up). Every form has a server of its own, which encodes what is
put, and an engine that fills it and loads from it, in float32. Two things are compared with an engine without a store:
the greedy text, and, teacher-forced on that engine's text, the distribution of each next token. The prompts are pieces
of chapters of the Python manual, at most two of each.

Greedy texts part for good at the first token that two candidates contend for, so they say less than the divergence.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import kvstore
from kvstore.bench.engines import Engine
from kvstore.bench.vllm_cases import direct, kvstore_server
from kvstore.demo.models import SMOLLM2, convert

FORMS = ("raw", "lossless", "transform:near", "int8")
FOLLOWING, JUDGED = 64, 32
ENGINE = {"dtype": "float32", "max_model_len": 4096, "max_num_batched_tokens": 4096, "block_size": 32,
          "distributed_executor_backend": "uni"}  # fmt: skip
ENV = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}  # the logits are taken from the sampler
NUMBERS = 30 * 2 * 3 * 64  # of a token of SmolLM2
Logs = npt.NDArray[np.float32]


def main() -> None:
    """Run it and print a row per form."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--context", type=int, default=512, help="tokens loaded: whole chunks of 256")
    parser.add_argument("--prompts", type=int, default=40)
    parser.add_argument("--judged", type=int, default=20, help="prompts whose distributions are compared as well")
    parser.add_argument("--form", action="append", help="instead of " + ", ".join(FORMS))
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kvstore-bench-vllm-") as scratch:
        rows = measure(Path(scratch), args.context, args.prompts, args.judged, args.form or FORMS)
    if args.json:
        print(json.dumps({"bench": "vllm-codecs", "rows": rows}))
        return
    for row in rows:
        print(f"{row['case']:>16}  {row['identical']:3} of {row['prompts']} texts identical  {row['hit_tokens']} hit  "
              f"top-1 {100 * row['top1']:.2f}%  KL {row['kl']:.6f}  {row['bits']:.2f} bits")  # fmt: skip


def measure(folder: Path, context: int, count: int, judged: int, forms: Sequence[str]) -> list[dict[str, Any]]:
    """One row per form."""
    model = convert(SMOLLM2)
    prompts, judged = _prompts(model, context, count), min(judged, count)
    with closing(Engine(model, None, folder / "exact.log", ENV, **ENGINE)) as engine:
        texts = [engine.ask(each, max_tokens=FOLLOWING)["answers"][0]["ids"] for each in prompts]
        for n in range(judged):
            engine.ask(prompts[n], max_tokens=JUDGED, logprobs=_logs(folder, n))
    return [_form(folder, model, form, prompts, texts, judged) for form in forms]


def _form(
    folder: Path, model: Path, form: str, prompts: list[list[int]], texts: list[list[int]], judged: int
) -> dict[str, Any]:
    config = folder / "form.toml"
    config.write_text(f'[[namespace]]\nname = "default"\ncodec = "{form}"\nlossy = true\n')
    log = folder / f"{form.replace(':', '-')}.log"
    with kvstore_server("--config", str(config)) as address:
        transfer = direct(address, fidelity="lossy", staging_mib=1024)
        with closing(Engine(model, transfer, log, ENV, **ENGINE)) as engine:
            row = _compare(folder, engine, form, prompts, texts, judged)
        with kvstore.connect(address) as client:
            stored = sum(place.stored for chunk in client.list() for place in chunk.placements)
            tokens = sum(chunk.tokens for chunk in client.list())
        return row | {"bits": 8 * stored / (tokens * NUMBERS)}


def _compare(
    folder: Path, engine: Engine, form: str, prompts: list[list[int]], texts: list[list[int]], judged: int
) -> dict[str, Any]:
    for prompt in prompts:  # cut where the store's chunks end, so that what is compared has all of the prompt loaded
        engine.ask(prompt[:-1], max_tokens=1)
    answers = []
    for prompt in prompts:
        answers.append(engine.ask_until_cached(prompt, max_tokens=FOLLOWING)["answers"][0])
    seen = [_distance(folder, engine, n, prompts[n], texts[n]) for n in range(judged)]
    counters = engine.ask(prompts[0], max_tokens=1)["counters"]
    return {
        "case": form,
        "prompts": len(prompts),
        "identical": sum(answer["ids"] == text for answer, text in zip(answers, texts, strict=True)),
        "hit_tokens": min(answer["cached"] for answer in answers),
        "top1": float(np.mean([each[0] for each in seen])) if seen else 1.0,
        "kl": float(np.mean([each[1] for each in seen])) if seen else 0.0,
        "lossy_tokens": int(counters.get("lossy_tokens", 0)),
    }


def _distance(folder: Path, engine: Engine, n: int, prompt: list[int], text: list[int]) -> tuple[float, float]:
    """The share of next tokens that stay the same, and the mean Kullback-Leibler divergence in nats."""
    exact: Logs = np.load(_logs(folder, n))
    told = folder / "told.npy"
    rows = []
    for at in range(JUDGED):
        engine.ask(prompt + text[:at], max_tokens=1, logprobs=told)
        rows.append(np.load(told)[0])
    found = np.stack(rows)
    same = float(np.mean(found.argmax(axis=1) == exact.argmax(axis=1)))
    wide = exact.astype(np.float64)
    return same, float(np.mean((np.exp(wide) * (wide - found)).sum(axis=1)))


def _logs(folder: Path, n: int) -> Path:
    return folder / f"exact-{n}.npy"


def _prompts(model: Path, context: int, count: int) -> list[list[int]]:
    """Pieces of the Python manual, a token longer than what the store holds of them."""
    from pydoc_data.topics import topics

    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    size = context + 1
    chapters = (tokenizer(topics[name]).input_ids for name in sorted(topics))
    pieces = [ids[start : start + size] for ids in chapters for start in (0, size) if len(ids) >= start + size]
    if len(pieces) < count:
        raise SystemExit(f"the manual has {len(pieces)} pieces of {size} tokens, not {count}")
    return pieces[:count]


if __name__ == "__main__":
    main()
