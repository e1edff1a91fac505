"""A vLLM engine in a process of its own: one JSON object in, one out, per line.

Started with one argument, `{"engine": {…}, "transfer": {…} or null}`, what goes to `LLM` and to `KVTransferConfig`.
A question is `{"prompts": [{"ids": […], "salt": "…", "lora": "PATH"}], "max_tokens": n}`; an answer gives ids, text,
cached tokens and time to first token of each, the connector's counters and vLLM's preemptions so far. `{"reset": true}`
empties vLLM's caches, as it does when the weights are replaced.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

MARK = "@driver "


def main() -> None:
    """Start an engine, then answer requests on standard input until it ends."""
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    os.environ.update(HF_HUB_OFFLINE="1", VLLM_NO_USAGE_STATS="1")
    given = json.loads(sys.argv[1])
    from vllm import LLM, SamplingParams
    from vllm.config import KVTransferConfig
    from vllm.lora.request import LoRARequest

    counters = _count()
    transfer = None if given["transfer"] is None else KVTransferConfig(**given["transfer"])
    defaults = {"enforce_eager": True, "enable_prefix_caching": False, "disable_log_stats": False}
    llm = LLM(**{**defaults, **given["engine"]}, kv_transfer_config=transfer)
    loras: dict[str, Any] = {}
    _say({"ready": True})
    for line in sys.stdin:
        asked = json.loads(line)
        if asked.get("reset"):
            llm.reset_prefix_cache(reset_connector=True)
            _say({"reset": True})
            continue
        prompts: list[dict[str, Any]] = []
        chosen = []
        for each in asked["prompts"]:
            prompt = {"prompt_token_ids": each["ids"]}
            prompts.append(prompt | ({"cache_salt": each["salt"]} if each.get("salt") else {}))
            path = each.get("lora")
            if path:
                loras.setdefault(path, LoRARequest(f"l{len(loras)}", len(loras) + 1, path))
            chosen.append(loras[path] if path else None)
        sampling = SamplingParams(temperature=0, max_tokens=asked.get("max_tokens", 16), ignore_eos=True)
        began = time.perf_counter()
        outputs = llm.generate(prompts, sampling, use_tqdm=False, lora_request=chosen if loras else None)
        seconds = time.perf_counter() - began
        # The last save is handed to the workers in the step after.
        llm.llm_engine.step()
        answers = [
            {
                "ids": list(output.outputs[0].token_ids),
                "text": output.outputs[0].text,
                "cached": output.num_cached_tokens,
                "ttft_s": getattr(output.metrics, "first_token_latency", 0.0),
            }
            for output in outputs
        ]
        _say({"answers": answers, "seconds": seconds, "counters": dict(counters), "preemptions": _preemptions(llm)})


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
