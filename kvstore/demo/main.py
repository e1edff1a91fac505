"""Prefill a document, keep its KV, restart, load it back, go on: what the store is for, measured.

Everything is float32: processors without fast bfloat16 arithmetic would make the cold prefill look slower than it
need be. *Identical* means that the greedy continuation from the loaded KV is, token for token, the one that follows
the cold prefill of the whole prompt in one go, and that every bit of the KV loaded is the one that was saved. The two
forwards that lead to the first token differ in shape (1 token against all), hence in the last bits of their logits;
the tokens are compared all the same.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from kvstore.demo import document
from kvstore.demo.restarted import Case, Job, measure
from kvstore.demo.show import report, show
from kvstore.demo.steps import step
from kvstore.errors import StorageError

BAR = 10.0
COLD_ROUNDS = 3
WARM_ROUNDS = 3


@dataclass
class _Cold:
    """What was computed before the restart."""

    times_s: list[float] = field(default_factory=list)
    continuation: list[int] = field(default_factory=list)
    kv_digest: str = ""
    text: str = ""

    @property
    def ttft_s(self) -> float:
        return median(self.times_s)


def run(out_dir: Path, *, tokens: int = 2000, generate: int = 32, server: bool = True, json_only: bool = False) -> int:
    """Run the demonstration and write `ttft.png` and `demo.json` to `out_dir`; 0 if all that it promises holds.

    `tokens` of the document are prefilled, `generate` are generated after each kind of start. The store lies in a
    temporary folder inside `out_dir`, which should be on the disk to measure. With `json_only` nothing but the one
    JSON object is printed on standard output.
    """
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"the results cannot be written to {out_dir}: {error.strerror}") from error
    from kvstore.demo import models

    made = models.folder_of(models.SMOLLM2).is_dir()
    with step(f"Model: {models.SMOLLM2.name}, converted once, kept in {models.cache_root()}", spinner=made):
        folder = models.convert(models.SMOLLM2)
    with tempfile.TemporaryDirectory(prefix=".store-", dir=out_dir.resolve()) as scratch:
        cold, cases = _measure(folder, Path(scratch), tokens, generate, server)
    rows = [_cold_row(cold), *(_row(name, case, cold) for name, case in cases.items())]
    facts = {
        "model": models.SMOLLM2.name,
        "document": document.title(),
        "tokens": tokens,
        "generated": generate,
        "text": cold.text,
        "problems": [problem for row in rows for problem in problems(row, tokens)],
        "slow": [miss for row in rows for miss in slow(row)],
    }
    result = report(rows, facts)
    (out_dir / "demo.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    show(result, out_dir, json_only=json_only)
    return 1 if facts["problems"] else 0


def _measure(folder: Path, scratch: Path, tokens: int, generate: int, server: bool) -> tuple[_Cold, Mapping[str, Case]]:
    """Cold prefills, and between them the restarts, so that the machine's moods fall on both."""
    from kvstore.demo import inference, models

    with step("Loading the model and warming up"):
        model, tokenizer = models.load(folder)
        ids = document.token_ids(tokenizer, tokens)
        inference.warm_up(model, ids)
    cold, cases = _Cold(), {}
    for number, place in enumerate(("embedded", "server") if server else ("embedded",)):
        first = _prefill(cold, model, ids, number + 1)
        if not cold.continuation:
            cold.kv_digest = inference.kv_digest(first.cache, tokens - 1)
        store = scratch / place
        store.mkdir()
        _save(model, first.cache, ids, store, place)
        if not cold.continuation:
            with step(f"Cold run: generating {generate} tokens"):
                cold.continuation = inference.continuation(model, first, generate)
            cold.text = tokenizer.decode(cold.continuation)
        del first
        with step(f"A restarted process loads the prefix ({place})"):
            found = measure(Job(str(folder), str(store), place, ids, generate, WARM_ROUNDS))
        prefix = "" if place == "embedded" else "server-"
        cases.update({prefix + name: found[name] for name in ("dram", "nvme")})
    while len(cold.times_s) < COLD_ROUNDS:
        _prefill(cold, model, ids, len(cold.times_s) + 1)
    return cold, cases


def _prefill(cold: _Cold, model: Any, ids: Sequence[int], number: int) -> Any:
    from kvstore.demo import inference

    with step(f"Cold prefill of {len(ids)} tokens, {number} of {COLD_ROUNDS}"):
        first = inference.cold(model, ids)
    cold.times_s.append(first.ttft_s)
    return first


def _save(model: Any, cache: Any, ids: Sequence[int], store: Path, place: str) -> None:
    from kvstore.connectors.transformers import save, spec_of
    from kvstore.demo.places import PLACES

    title = f"Saving the KV ({place}, acknowledged once it survives kill -9) and closing the store"
    with step(title), PLACES[place](store) as client:
        save(client, spec_of(model), cache, ids, ack="persisted")


def _cold_row(cold: _Cold) -> dict[str, Any]:
    return {
        "case": "cold",
        "ttft_s": cold.ttft_s,
        "hit_tokens": 0,
        "identical": True,
        "kv_equal": None,
        "bytes": 0,
        "baseline": None,
        "ratio": None,
        "runs_s": cold.times_s,
    }


def _row(name: str, case: Case, cold: _Cold) -> dict[str, Any]:
    least, most = case.loaded_bytes
    return {
        "case": name,
        "ttft_s": case.ttft_s,
        "hit_tokens": case.hit_tokens,
        "identical": list(case.continuation) == cold.continuation,
        "kv_equal": set(case.kv_digests) == {cold.kv_digest},
        "bytes": case.nbytes,
        "baseline": "cold",
        "ratio": cold.ttft_s / case.ttft_s,
        "runs_s": list(case.runs_s),
        "forward_s": case.forward_s,
        "open_s": case.open_s,
        "failures": list(case.failures),
        "from_tier_as_named": least >= case.nbytes if name.endswith("nvme") else most == 0,
    }


def problems(row: Mapping[str, Any], tokens: int) -> list[str]:
    """What a row fails to show."""
    name, found = row["case"], []
    if not row["identical"]:
        found.append(f"{name}: the continuation differs from the cold run's")
    if name == "cold":
        return found
    found += [f"{name}: {failure}" for failure in row["failures"]]
    if not row["kv_equal"]:
        found.append(f"{name}: the KV loaded is not the KV saved")
    if row["hit_tokens"] != tokens - 1:
        found.append(f"{name}: {row['hit_tokens']} tokens hit, not {tokens - 1}")
    if not row["from_tier_as_named"]:
        found.append(f"{name}: the bytes came from another tier")
    if row["ratio"] < 1:
        found.append(f"{name}: slower than the cold prefill: {row['ttft_s']:.3f} s")
    return found


def slow(row: Mapping[str, Any]) -> list[str]:
    """A bar that a row misses; a loaded machine or a slow disk can be why, so it is told and fails nothing."""
    if row["case"] != "nvme" or row["ratio"] >= BAR:
        return []
    return [f"{row['case']}: {row['ratio']:.1f} × faster than the cold prefill; {BAR:g} × is the goal"]
