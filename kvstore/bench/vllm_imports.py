"""Imported by the process that engines are forked from: what vLLM imports until it answers, and nothing that runs."""

from __future__ import annotations

import gc
from importlib import import_module

from kvstore.bench.vllm_driver import set_environment

set_environment()
for _name in (
    "vllm.entrypoints.llm",
    "vllm.lora.request",
    "vllm.v1.engine.core",
    "vllm.v1.executor.uniproc_executor",
    "vllm.v1.worker.cpu_worker",
    "vllm.v1.attention.backends.cpu_attn",
    "vllm.model_executor.models.deepseek_v2",
    "vllm.model_executor.models.gemma3",
    "vllm.model_executor.models.llama",
    "vllm.distributed.kv_transfer.kv_connector.v1.metrics",
    "vllm.distributed.kv_transfer.kv_connector.v1.multi_connector",
    "vllm.distributed.kv_transfer.kv_connector.v1.offloading_connector",
    "kvstore.connectors.vllm",
    "kvstore.connectors.vllm.tier",
    "kvstore.bench.vllm_offload",
):
    import_module(_name)
gc.collect()
gc.freeze()
