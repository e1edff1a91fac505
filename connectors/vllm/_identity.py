"""From a vLLM configuration to a `KVSpec`, or the reason why its KV cannot be kept."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from kvstore.connectors.vllm._blocks import layer_number
from kvstore.connectors.vllm._options import Options
from kvstore.connectors.vllm._order import Order, cpu_order
from kvstore.connectors.vllm._warn import logger
from kvstore.connectors.weights import weights_digest
from kvstore.errors import InvalidArgument
from kvstore.spec import CANONICAL_AXES, OPAQUE, KVGroup, KVSpec

DTYPES = ("float32", "bfloat16", "float16")
DEVICES = ("cpu", "cuda")
MLA = "MLAAttentionSpec"
ATTENTION = frozenset({"FullAttentionSpec", "SlidingWindowSpec"})
_IGNORED = frozenset({"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache"})


def spec_of(config: Any, cache: Any, options: Options, *, canonical: bool = False) -> KVSpec:
    """What the bytes of a vLLM engine's KV mean as they are stored.

    `config` is the `VllmConfig`, `cache` the `KVCacheConfig`; groups are vLLM's. `canonical` parts mean the same
    whatever the engine's block size, device and instruction set; others are blocks as they lie, and the revision names
    all that decides how. It always names the engine and the weights, by a digest of the configuration and of samples
    of their files; engines of another model, dtype or tensor-parallel size find nothing.

    Raises `InvalidArgument` with the reason for what would not come back right.
    """
    _refuse(config, cache, options)
    model, parallel = config.model_config, config.parallel_config
    block = block_tokens(cache)
    specs = [group.kv_cache_spec for group in cache.kv_cache_groups]
    dtypes = {str(each.dtype).removeprefix("torch.") for each in specs}
    if len(dtypes) != 1 or not dtypes <= set(DTYPES):
        raise InvalidArgument(f"KV in {', '.join(sorted(dtypes))} is not supported; it must be one of {DTYPES}")
    tp = int(parallel.tensor_parallel_size)
    groups = tuple(_group(group, tp) for group in cache.kv_cache_groups)
    names = [options.revision, f"config:{_config_digest(model)}", f"weights:{_weights(config, options)}", _engine()]
    names += [f"layout:{_layout(config, cache, block)}"] if not canonical else []
    return KVSpec(
        model=Path(str(model.model)).name,
        revision=" ".join(filter(None, names)),
        dtype=dtypes.pop(),
        groups=groups,
        rope=_rope(model),
        chunk_tokens=max(1, options.chunk_tokens // block) * block,
        tp_size=tp,
        layout=CANONICAL_AXES if canonical else OPAQUE,
    )


def orders_of(config: Any, cache: Any) -> list[Order] | None:
    """How each KV group's blocks lie in a CPU engine's memory; None, with a line in the log, where that cannot be told.

    Every process of an engine comes to the same answer. In device memory vLLM's views say it themselves.
    """
    specs = [group.kv_cache_spec for group in cache.kv_cache_groups]
    if on_device(config) or not {type(spec).__name__ for spec in specs} <= {*ATTENTION, MLA}:
        return None
    try:
        return [_order(spec, config.cache_config.cache_dtype) for spec in specs]
    except InvalidArgument as error:
        logger.warning("kvstore: blocks are stored as they lie, and byte codecs alone apply to them: %s", error)
        return None


def _order(spec: Any, cache_dtype: str) -> Order:
    """How one group's blocks lie; latents lie token by token, as they are stored."""
    if type(spec).__name__ == MLA:
        return Order.opaque(spec.block_size, spec.block_size * spec.head_size * spec.dtype.itemsize)
    return cpu_order(spec, cache_dtype)


def on_device(config: Any) -> bool:
    """Whether KV lies in a GPU's memory."""
    return str(config.device_config.device_type) == "cuda"


def block_tokens(cache: Any) -> int:
    """Tokens per block, which all groups must share."""
    sizes = {int(group.kv_cache_spec.block_size) for group in cache.kv_cache_groups}
    if len(sizes) != 1:
        raise InvalidArgument(f"KV groups with blocks of different sizes ({sorted(sizes)} tokens) are not supported")
    return sizes.pop()


def _refuse(config: Any, cache: Any, options: Options) -> None:
    """Raise `InvalidArgument` for engines that this connector would not serve right."""
    import torch

    parallel, speculative = config.parallel_config, config.speculative_config
    if parallel.pipeline_parallel_size > 1:
        raise InvalidArgument("pipeline parallelism is not supported: the scheduler knows one stage's layers only")
    device = str(config.device_config.device_type)
    if device not in DEVICES or (device == "cuda" and torch.version.hip):
        raise InvalidArgument(f"KV on {device} is not supported: how its blocks lie is not known; CPU and CUDA are")
    for name in ("decode_context_parallel_size", "prefill_context_parallel_size"):
        if getattr(parallel, name, 1) > 1:
            raise InvalidArgument(f"{name} above 1 is not supported: blocks are interleaved over ranks")
    if speculative is not None and speculative.method != "ngram":
        raise InvalidArgument(f"speculative decoding by {speculative.method!r} is not supported: its KV has no name")
    if getattr(parallel, "nnodes", 1) > 1 and not options.server:
        raise InvalidArgument("an embedded store serves one host; with several nodes give a server")
    if str(config.cache_config.cache_dtype) not in ("auto", *DTYPES):
        raise InvalidArgument(f"kv_cache_dtype {config.cache_config.cache_dtype} is not supported: scales are not kept")
    if not cache.kv_cache_groups:
        raise InvalidArgument("this model has no KV cache")
    if config.model_config.use_mla and device == "cpu" and not config.scheduler_config.enable_chunked_prefill:
        raise InvalidArgument(
            "MLA on this CPU is not supported: vLLM's backend for it cannot go on from a prefix (without AMX it turns "
            "prefix caching and chunked prefill off), so that loaded KV would be ignored"
        )
    for group in cache.kv_cache_groups:
        if not group.enable_kv_transfer or not group.kv_cache_spec.prefix_cacheable or group.is_eagle_group:
            raise InvalidArgument(f"the KV group of {group.layer_names[0]} is not for transfer by prefix")


def _group(group: Any, tp: int) -> KVGroup:
    """One KV group. `kv_heads` counts what all ranks hold together, replicas included."""
    spec = group.kv_cache_spec
    kind = type(spec).__name__
    layers = tuple(sorted(layer_number(name) for name in group.layer_names))
    if getattr(spec, "page_size_padded", None) or getattr(spec, "tokens_per_state", 1) != 1:
        raise InvalidArgument(f"padded or compressed KV pages ({kind} of {group.layer_names[0]}) are not supported")
    if kind == MLA and spec.head_size_v == 0:
        return KVGroup(layers, latent_dim=int(spec.head_size))
    if kind not in ATTENTION:
        raise InvalidArgument(f"{kind} (of {group.layer_names[0]}) is not supported: only full attention, sliding "
                              "windows and MLA have KV that can be stored by prefix")  # fmt: skip
    if spec.head_size_v != spec.head_size:
        raise InvalidArgument(f"keys of {spec.head_size} and values of {spec.head_size_v} are not supported")
    window = int(spec.sliding_window) if kind == "SlidingWindowSpec" else 0
    return KVGroup(layers, int(spec.num_kv_heads) * tp, int(spec.head_size), window)


def _engine() -> str:
    """Names the engine, whose next version may mean other numbers by the same model."""
    import vllm

    return "vllm-" + ".".join(vllm.__version__.split(".")[:2])


def _layout(config: Any, cache: Any, block: int) -> str:
    """Names the order of bytes in a block: by platform, order of axes and, on CPUs, instruction set."""
    from vllm.platforms import current_platform

    names = [current_platform.device_type, str(cache.kv_cache_layout), f"block{block}"]
    if current_platform.device_type == "cpu":
        names.append(_instruction_set(config, cache, block))
    return "/".join(names)


def _instruction_set(config: Any, cache: Any, block: int) -> str:
    """What decides how K lies in a block on a CPU. Without vLLM's own word for it: what the CPU can do."""
    import torch

    spec = cache.kv_cache_groups[0].kv_cache_spec
    try:
        from vllm.v1.attention.backends.cpu_attn import _get_attn_isa

        kind = _get_attn_isa(spec.dtype, block, spec.head_size, config.cache_config.cache_dtype)
    except (ImportError, TypeError, NotImplementedError):
        kind = "unknown"
    return f"{kind}-{torch.backends.cpu.get_cpu_capability()}"


def _config_digest(model: Any) -> str:
    """16 hex digits over everything in a configuration that may change a number."""
    fields = {key: value for key, value in model.hf_config.to_dict().items() if key not in _IGNORED}
    fields["vllm"] = [str(model.quantization), str(model.dtype)]
    if "longrope" in json.dumps(fields, default=str):  # vLLM chooses its factors by the longest sequence
        fields["vllm"].append(str(model.max_model_len))
    canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def _rope(model: Any) -> dict[str, Any]:
    given = getattr(model.hf_text_config, "rope_parameters", None) or {}
    rope: dict[str, Any] = json.loads(json.dumps(given, default=str))
    return rope


def _weights(config: Any, options: Options) -> str:
    """Names the weights by samples of their files."""
    model = config.model_config
    if str(config.load_config.load_format) == "dummy":
        return f"dummy-{model.seed}"
    digest = weights_digest(str(model.model), model.revision)
    if not digest and not options.revision:
        raise InvalidArgument(f"the weights of {model.model!r} are not found on disk, so that nothing names them: "
                              "give kv_connector_extra_config a revision")  # fmt: skip
    return digest or "unseen"
