"""Shapes of public models' KV, so that benchmarks move chunks as large as real engines', and what their prefill costs.

The figures are those of each model's published `config.json` on the Hugging Face Hub (`num_hidden_layers`,
`num_key_value_heads`, `head_dim`, `sliding_window`, `layer_types`; for MLA `kv_lora_rank` + `qk_rope_head_dim`), in
the repository that `Shape.source` names; `weights` are those of its model card.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from kvstore.errors import InvalidArgument
from kvstore.nearest import nearest
from kvstore.spec import KVGroup, KVSpec

TOKENS = 256


@dataclass(frozen=True)
class Shape:
    """What decides how many bytes a token's KV has.

    Layers whose number plus one is a multiple of `full_every` have full attention, the others see `window` tokens;
    without a window all are full. With `latent_dim` the model is MLA: one latent vector a token and layer.
    `weights` are the parameters that a token passes (of a mixture of experts, the active ones), `width` the query heads
    times their size (of MLA, the mean of what queries and values have): what attention multiplies for a pair of tokens.
    """

    source: str
    layers: int
    kv_heads: int = 0
    head_dim: int = 0
    latent_dim: int = 0
    window: int = 0
    full_every: int = 1
    dtype: str = "bfloat16"
    weights: float = 0.0
    width: int = 0

    def groups(self) -> tuple[KVGroup, ...]:
        """Full attention first, then the sliding layers where there are any."""
        full = tuple(n for n in range(self.layers) if not self.window or (n + 1) % self.full_every == 0)
        sliding = tuple(n for n in range(self.layers) if n not in full)
        groups = [KVGroup(full, self.kv_heads, self.head_dim, latent_dim=self.latent_dim)]
        if sliding:
            groups.append(KVGroup(sliding, self.kv_heads, self.head_dim, window=self.window))
        return tuple(groups)


MODELS: Mapping[str, Shape] = MappingProxyType({
    "deepseek-v3": Shape("deepseek-ai/DeepSeek-V3", 61, latent_dim=512 + 64, weights=37e9, width=20480),
    "gemma-3-12b": Shape("google/gemma-3-12b-it", 48, 8, 256, window=1024, full_every=6, weights=11.8e9, width=4096),
    "gemma-3-27b": Shape("google/gemma-3-27b-it", 62, 16, 128, window=1024, full_every=6, weights=27e9, width=4096),
    "gpt-oss-120b": Shape("openai/gpt-oss-120b", 36, 8, 64, window=128, full_every=2, weights=5.1e9, width=4096),
    "gpt-oss-20b": Shape("openai/gpt-oss-20b", 24, 8, 64, window=128, full_every=2, weights=3.6e9, width=4096),
    "llama-3.1-70b": Shape("meta-llama/Llama-3.1-70B", 80, 8, 128, weights=70.6e9, width=8192),
    "llama-3.1-8b": Shape("meta-llama/Llama-3.1-8B", 32, 8, 128, weights=8.03e9, width=4096),
    "llama-3.2-1b": Shape("meta-llama/Llama-3.2-1B", 16, 8, 64, weights=1.24e9, width=2048),
    "mistral-7b-v0.3": Shape("mistralai/Mistral-7B-v0.3", 32, 8, 128, weights=7.25e9, width=4096),
    "qwen3-32b": Shape("Qwen/Qwen3-32B", 64, 8, 128, weights=32.8e9, width=8192),
    "qwen3-8b": Shape("Qwen/Qwen3-8B", 36, 8, 128, weights=8.2e9, width=4096),
    "smollm2-135m": Shape("HuggingFaceTB/SmolLM2-135M", 30, 3, 64, weights=135e6, width=576),
})  # fmt: skip


def model_spec(name: str, *, tokens: int = TOKENS, tp: int = 1) -> KVSpec:
    """The spec of a model's chunks of `tokens` tokens on `tp` tensor-parallel ranks.

    Raises `InvalidArgument` for a model that the table lacks (it names the nearest and all there are) and for a
    `tp` over which the model's heads cannot be split.
    """
    shape = MODELS.get(name)
    if shape is None:
        near, everything = nearest(name, list(MODELS)), f"known are {', '.join(sorted(MODELS))}"
        hint = near if everything in near else f"{near} {everything}"
        raise InvalidArgument(f"{name!r} is not in the table of model shapes{hint}")
    return KVSpec(shape.source, "", shape.dtype, shape.groups(), chunk_tokens=tokens, tp_size=tp)
