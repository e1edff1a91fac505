"""A vLLM engine in a process of its own: one JSON object in, one out, per line.

Started with one argument, `{"engine": {…}, "transfer": {…} or null}`, what goes to `LLM` and to `KVTransferConfig`.
A question is `{"prompts": [{"ids": […], "salt": "…", "lora": "PATH"}], "max_tokens": n, "logprobs": "FILE",
"params": {…}}`, where `params` are what each request says as `kv_transfer_params`; an answer gives ids, text, cached
tokens and time to first token of each, the connector's counters and vLLM's preemptions so far. With a file, which NumPy
is to read, it holds the log-probabilities float32 `[new token, vocabulary]` of one prompt, for which the engine must be
in one process. `{"reset": true}` empties vLLM's caches, as it does when weights are replaced; `{"metrics": true}` is
answered with vLLM's Prometheus counters, `[name, labels, value]` each.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np

MARK = "@driver "
# vLLM's CPU backend beside others on a few cores. Its OpenMP threads use all of them here, and so does for a second
# after each step the scheduler's process, which spins: threads that spin too, at each of the hundreds of barriers of a
# forward, hold up the one that they wait for, and a forward of 40 ms takes a second.
CPU_ENV = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_WAIT_POLICY": "passive",
}


def main() -> None:
    """Start an engine, then answer requests on standard input until it ends."""
    set_environment()
    given = json.loads(sys.argv[1])
    from vllm import LLM, SamplingParams
    from vllm.config import KVTransferConfig
    from vllm.lora.request import LoRARequest

    counters = _count()
    transfer = None if given["transfer"] is None else KVTransferConfig(**given["transfer"])
    defaults = {"enforce_eager": True, "enable_prefix_caching": False, "disable_log_stats": False}
    llm = LLM(**{**defaults, **given["engine"]}, kv_transfer_config=transfer)
    driver = _Driver(llm, SamplingParams, LoRARequest)
    _say({"ready": True})
    for line in sys.stdin:
        asked = json.loads(line)
        if asked.get("reset"):
            llm.reset_prefix_cache(reset_connector=True)
            _say({"reset": True})
        elif asked.get("metrics"):
            told = [each for each in llm.get_metrics() if hasattr(each, "value")]
            _say({"metrics": [[each.name, each.labels, each.value] for each in told]})
        else:
            _say(driver.answer(asked) | {"counters": dict(counters), "preemptions": _preemptions(llm)})


def set_environment() -> None:
    """What has to be set before vLLM is imported."""
    os.environ.update({**CPU_ENV, **os.environ, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"})


class _Driver:
    def __init__(self, llm: Any, sampling: Any, lora: Any) -> None:
        self._llm, self._sampling, self._lora = llm, sampling, lora
        self._loras: dict[str, Any] = {}

    def answer(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Ask all prompts at once."""
        prompts = [
            {"prompt_token_ids": each["ids"]} | ({"cache_salt": each["salt"]} if each.get("salt") else {})
            for each in asked["prompts"]
        ]
        adapters = [self._adapter(each.get("lora", "")) for each in asked["prompts"]]
        file = asked.get("logprobs")
        params = asked.get("params")
        sampling = self._sampling(
            temperature=0, max_tokens=asked.get("max_tokens", 16), ignore_eos=True,
            extra_args={"kv_transfer_params": params} if params else None,
        )  # fmt: skip
        began = time.perf_counter()
        watching: AbstractContextManager[list[Any]] = _logits() if file else nullcontext([])
        with watching as logits:
            outputs = self._llm.generate(
                prompts, sampling, use_tqdm=False, lora_request=adapters if any(adapters) else None
            )
        seconds = time.perf_counter() - began
        if file:
            np.save(file, np.concatenate(logits))
        # The last save is handed to the workers in the step after.
        self._llm.llm_engine.step()
        return {"answers": [_told(output) for output in outputs], "seconds": seconds}

    def _adapter(self, path: str) -> Any:
        if path and path not in self._loras:
            number = len(self._loras) + 1
            self._loras[path] = self._lora(f"l{number}", number, path)
        return self._loras.get(path)


def _told(output: Any) -> dict[str, Any]:
    return {
        "ids": list(output.outputs[0].token_ids),
        "text": output.outputs[0].text,
        "cached": output.num_cached_tokens,
        "ttft_s": getattr(output.metrics, "first_token_latency", 0.0),
    }


@contextmanager
def _logits() -> Iterator[list[Any]]:
    """What the sampler is given, as log-probabilities; vLLM's own way makes an object of every number."""
    from vllm.v1.sample.sampler import Sampler

    seen: list[Any] = []
    forward = Sampler.forward

    def watched(self: Any, logits: Any, *more: Any, **named: Any) -> Any:
        seen.append(logits.float().log_softmax(-1).numpy())
        return forward(self, logits, *more, **named)

    Sampler.forward = watched
    try:
        yield seen
    finally:
        Sampler.forward = forward


def _preemptions(llm: Any) -> int:
    return sum(int(each.value) for each in llm.get_metrics() if each.name == "vllm:num_preemptions")


def _count() -> dict[str, float]:
    """Add up what the connector tells vLLM's loggers."""
    from vllm.distributed.kv_transfer.kv_connector.v1 import metrics

    sums: dict[str, float] = {}
    observe = metrics.KVConnectorLogging.observe

    def adding(self: Any, data: dict[str, Any]) -> None:
        # OffloadingConnector's come by metric and label; observations, which are lists, are left out.
        labelled = {name: [*by.values()] for name, by in data.get("data", {}).items()}
        plain = {name: [amount] for name, amount in data.items()}
        for name, amounts in {**plain, **labelled}.items():
            if all(isinstance(each, int | float) for each in amounts):
                sums[name] = sums.get(name, 0) + sum(amounts)
        observe(self, data)

    metrics.KVConnectorLogging.observe = adding
    return sums


def _say(data: dict[str, Any]) -> None:
    print(MARK + json.dumps(data), flush=True)


if __name__ == "__main__":
    main()
