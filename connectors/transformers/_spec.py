"""From a Transformers model to a `KVSpec`."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.cache_utils import get_layer_types_and_kwargs

from kvstore.errors import InvalidArgument, SpecMismatch
from kvstore.spec import CANONICAL_AXES, KVGroup, KVSpec

DTYPES = ("float32", "bfloat16", "float16")
SAMPLES = 1024
# Says nothing about the numbers that a layer computes, or is in the spec already.
_IGNORED = frozenset({"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache"})

_WEIGHTS = "weights:"  # in a spec's revision, before their digest


def spec_of(model: Any, *, revision: str = "", dtype: torch.dtype | None = None, chunk_tokens: int = 256) -> KVSpec:
    """What the KV of a Transformers model (or of its configuration) means.

    Layers are grouped by KV heads, head size and window, in the order in which they first appear. `dtype` is that
    of the cache, by default the model's.

    The spec's revision names the weights: `revision`, a digest of the configuration, and `weights_digest` where
    a model is given. Two fine-tunes in the same folder are thereby two specs. A bare configuration says nothing
    about weights, so it needs a `revision` that does. The model's name is the last part of the name or path it
    was loaded from, so that a folder may move.

    Raises `InvalidArgument` for what a chunk cannot hold: recurrent states, chunked or indexed attention, shared
    or compressed KV, keys and values of different sizes, encoder-decoder models. And for PEFT adapters, unless they
    are merged: see `check_adapters`.
    """
    if model is not (whole := model if isinstance(model, PreTrainedConfig) else model.config):
        check_adapters(model)
    if whole is model and not revision:
        raise InvalidArgument("a configuration does not tell whose weights they are: pass the model, or revision=…")
    if whole.is_encoder_decoder:
        raise InvalidArgument(f"{whole.model_type} is an encoder-decoder model; its cross-attention has no prefix")
    config = whole.get_text_config(decoder=True)
    groups = _groups(config)
    names = [revision, "config:" + config_digest(config)]
    if whole is not model:
        names.append(_WEIGHTS + weights_digest(model))
    return KVSpec(
        model=Path(whole.name_or_path).name or str(config.model_type),
        revision=" ".join(filter(None, names)),
        dtype=_dtype(dtype or getattr(model, "dtype", None) or config.dtype),
        groups=groups,
        rope=_rope(config),
        chunk_tokens=chunk_tokens,
    )


def check_single(spec: KVSpec) -> None:
    """Raise `InvalidArgument` unless the spec is one that `spec_of` makes: one rank, one stage, canonical."""
    if len(tuple(spec.parts())) != len(spec.groups) or spec.tp_size != 1 or spec.layout != CANONICAL_AXES:
        raise InvalidArgument("a DynamicCache holds all heads and layers in one place: use the spec of spec_of(model)")
    if spec.dtype not in DTYPES or any(group.latent_dim for group in spec.groups):
        raise InvalidArgument(f"a DynamicCache holds keys and values in {', '.join(DTYPES)}: use spec_of(model)")


def check_adapters(model: Any) -> None:
    """Raise `InvalidArgument` for a model with PEFT adapters that are not merged into its weights.

    Which of them are active, and how strong, is in no parameter, and may change between two forwards.
    """
    found = next((name for name, each in model.named_modules() if _is_peft(each)), None)
    if found is not None:
        raise InvalidArgument(
            f"{found or 'the model'} has a PEFT adapter: its KV depends on which adapters are active. Merge it "
            "(merge_and_unload), or use load and save with spec_of(config, revision=…) and Extras(lora=…)"
        )


def check_weights(spec: KVSpec, model: Any) -> None:
    """Raise `SpecMismatch` if the spec names other weights than the model has (now)."""
    named = [each for each in spec.revision.split() if each.startswith(_WEIGHTS)]
    if named and named != [found := _WEIGHTS + weights_digest(model)]:
        raise SpecMismatch(
            f"the spec names {named[0]}, the model has {found}: the spec is another model's, or the weights were "
            "changed after it was made. Make it, and the cache, anew"
        )


def config_digest(config: Any) -> str:
    """16 hex digits over everything in a configuration that may change a number."""
    fields = {key: value for key, value in config.to_dict().items() if key not in _IGNORED}
    canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def weights_digest(model: Any) -> str:
    """16 hex digits over the name, shape, dtype and up to 1,024 evenly spread elements of every parameter.

    Takes milliseconds, where hashing all the weights would take as long as reading them. It tells models and
    fine-tunes apart, not two models that someone made to look alike.
    """
    digest = hashlib.sha256(b"kvstore/weights/1\0")
    for name, parameter in sorted(model.named_parameters()):
        flat = parameter.detach().reshape(-1)
        taken = flat[:: max(1, flat.numel() // SAMPLES)][:SAMPLES].contiguous().cpu()
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}\0".encode())
        digest.update(taken.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _is_peft(module: Any) -> bool:
    return any(each.__module__.partition(".")[0] == "peft" for each in type(module).__mro__)


def _groups(config: Any) -> tuple[KVGroup, ...]:
    kinds, options = get_layer_types_and_kwargs(config)
    members: dict[tuple[int, int, int], list[int]] = {}
    for number, (kind, option, layer) in enumerate(zip(kinds, options, config.per_layer_config, strict=True)):
        if kind not in ("full_attention", "sliding_attention"):
            raise InvalidArgument(
                f"layer {number} of {config.model_type} is {kind!r}: only full and sliding-window "
                "attention have KV that can be stored by prefix"
            )
        members.setdefault((*_heads(layer), int(option.get("sliding_window", 0))), []).append(number)
    return tuple(KVGroup(tuple(layers), heads, dim, window) for (heads, dim, window), layers in members.items())


def _heads(layer: Any) -> tuple[int, int]:
    """KV heads and head size of one layer."""
    if getattr(layer, "kv_lora_rank", None) or getattr(layer, "v_head_dim", None):
        raise InvalidArgument(f"{layer.model_type} has keys and values of different sizes, which a chunk cannot hold")
    queries = int(layer.num_attention_heads)
    dim = getattr(layer, "head_dim", None) or layer.hidden_size // queries
    return int(getattr(layer, "num_key_value_heads", None) or queries), int(dim)


def _rope(config: Any) -> dict[str, Any]:
    rope: dict[str, Any] = json.loads(json.dumps(getattr(config, "rope_parameters", None) or {}, default=str))
    return rope


def _dtype(dtype: torch.dtype | str) -> str:
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise InvalidArgument(f"the cache is {name}; one of {', '.join(DTYPES)} can be stored")
    return name
