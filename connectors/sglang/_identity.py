"""From SGLang's configuration and host pool to a `KVSpec`, or the reason why its pages cannot be kept."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from kvstore.connectors.access import HoldOptions
from kvstore.connectors.sglang._options import WHERE
from kvstore.connectors.sglang._pages import Pages
from kvstore.connectors.weights import weights_digest
from kvstore.errors import InvalidArgument
from kvstore.keys import NO_PARENT, ChunkRef
from kvstore.spec import KVGroup, KVSpec, Part

DTYPES = ("float32", "bfloat16", "float16")
# Of SGLang's arguments, what changes the numbers that a model computes.
_ARGUMENTS = (
    "quantization", "dtype", "kv_cache_dtype", "json_model_override_args", "quantization_param_path", "context_length",
)  # fmt: skip


def refuse(config: Any, options: HoldOptions) -> None:
    """Raise `InvalidArgument` for deployments that this backend would not serve right.

    `config` is the `HiCacheStorageConfig`.
    """
    if config.attn_cp_size > 1 or config.dcp_size > 1:
        raise InvalidArgument("context parallelism is not supported: a page is spread over ranks")
    if config.should_split_heads:
        raise InvalidArgument("tp_lcm_size is not supported: each tensor-parallel size has a spec of its own")
    if config.tp_size > 1 and not options.server:
        raise InvalidArgument(f"{config.tp_size} ranks cannot share a store inside one of them: give {WHERE} a server")


def spec_of(config: Any, pages: Pages, options: HoldOptions) -> tuple[KVSpec, Part]:
    """What the bytes of a pool's pages mean, and which part of a page this rank holds.

    A chunk is a page, in the canonical order whatever the pool's layout. A pipeline stage has a spec of its own, with
    its layers alone. Raises `InvalidArgument` with the reason for what would not come back right.
    """
    pool = pages.pool
    dtype = str(pool.dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise InvalidArgument(f"KV in {dtype} is not supported, one of {DTYPES} is: scales are not stored")
    if pool.layer_num != pool.target_layer_num:
        raise InvalidArgument("layers of a draft model in the pool are not supported: its weights have no name")
    if pool.storage_format_tag is not None:
        raise InvalidArgument(f"pages in a format of their own ({pool.storage_format_tag}) are not supported")
    layers = tuple(range(int(pool.start_layer), int(pool.start_layer) + int(pool.layer_num)))
    spec = KVSpec(
        model=Path(str(config.model_name or "")).name,
        revision=" ".join(filter(None, (options.revision, *_names(options)))),
        dtype=dtype,
        groups=(_group(pages, layers, config.tp_size),),
        chunk_tokens=pages.tokens,
        tp_size=config.tp_size,
        pipeline=((layers[0], layers[-1] + 1),),
    )
    return spec, spec.part(rank=0 if pages.is_mla else config.tp_rank)


def page_ref(page_hash: str, tokens: int) -> ChunkRef:
    """The chunk of a page, whose hash (SHA-256 over its tokens and all before them, seeded with the request's
    namespace) is all that SGLang tells of it. Where in the prompt it stands is not told: it is stored at 0."""
    key = hashlib.sha256(b"kvstore/sglang-page/1\0" + page_hash.encode()).digest()
    return ChunkRef(key, NO_PARENT, 0, tokens)


def _group(pages: Pages, layers: tuple[int, ...], tp_size: int) -> KVGroup:
    """The pool's layers. `kv_heads` counts what all ranks hold together, replicas included."""
    pool = pages.pool
    if pages.is_mla:
        return KVGroup(layers, latent_dim=int(pool.kv_cache_dim))
    if pool.head_dim != pool.v_head_dim:
        raise InvalidArgument(f"keys of {pool.head_dim} and values of {pool.v_head_dim} are not supported")
    return KVGroup(layers, int(pool.head_num) * tp_size, int(pool.head_dim))


def _names(options: HoldOptions) -> list[str]:
    """What tells this engine's numbers and page hashes from another's."""
    import sglang

    names = [f"sglang-{sglang.__version__}"]
    arguments = _server_arguments()
    if arguments is None:
        if not options.revision:
            raise InvalidArgument(f"outside a server of SGLang nothing names the weights: give {WHERE} a revision")
        return names
    if arguments.enable_lora or arguments.lora_paths:
        raise InvalidArgument("LoRA is not supported: SGLang names an adapter by its path and not by its content")
    weights = weights_digest(str(arguments.model_path), arguments.revision)
    if str(arguments.load_format) == "dummy":
        weights = f"dummy-{arguments.random_seed}"
    if not weights and not options.revision:
        raise InvalidArgument(f"the weights of {arguments.model_path!r} are not found on disk, so that nothing names "
                              f"them: give {WHERE} a revision")  # fmt: skip
    chosen = json.dumps([str(getattr(arguments, name, None)) for name in _ARGUMENTS])
    return [*names, f"weights:{weights or 'unseen'}", f"arguments:{hashlib.sha256(chosen.encode()).hexdigest()[:16]}"]


def _server_arguments() -> Any:
    """SGLang's `ServerArgs`, or None where no server runs in this process."""
    from sglang.srt.runtime_context import get_server_args

    try:
        return get_server_args()
    except ValueError:  # "not published"
        return None
