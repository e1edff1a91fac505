"""Tiny random models, written as folders that vLLM takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

VOCABULARY = 320


def llama(folder: Path, seed: int = 0) -> Path:
    """Four layers, four heads, two KV heads of 64: may be split over two ranks."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=4096,
    )
    return _write(folder, LlamaForCausalLM, config, seed)


def gemma(folder: Path, seed: int = 0) -> Path:
    """Six layers, of which the third and the last have full attention, the others a window of 100 tokens."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    config = Gemma3TextConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        query_pre_attn_scalar=64,
        max_position_embeddings=4096,
        sliding_window=100,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"] * 2,
    )
    return _write(folder, Gemma3ForCausalLM, config, seed)


def deepseek(folder: Path, seed: int = 0) -> Path:
    """Two layers of multi-head latent attention, 512 + 64 numbers per token."""
    from transformers import DeepseekV2Config, DeepseekV2ForCausalLM

    config = DeepseekV2Config(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=512,
        moe_intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        kv_lora_rank=512,
        q_lora_rank=None,
        qk_rope_head_dim=64,
        qk_nope_head_dim=128,
        v_head_dim=128,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_shared_experts=1,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
        max_position_embeddings=4096,
    )
    return _write(folder, DeepseekV2ForCausalLM, config, seed)


def adapter(folder: Path, seed: int) -> Path:
    """A LoRA adapter of the tiny Llama, in the files that PEFT writes."""
    import json

    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    random = torch.Generator().manual_seed(seed)
    targets = {"q_proj": 256, "v_proj": 128}
    tensors = {}
    for layer in range(4):
        for name, out in targets.items():
            stem = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            tensors[f"{stem}.lora_A.weight"] = torch.randn(8, 256, generator=random) / 4
            tensors[f"{stem}.lora_B.weight"] = torch.randn(out, 8, generator=random) / 4
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": list(targets), "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def _write(folder: Path, kind: Any, config: Any, seed: int) -> Path:
    import torch

    torch.manual_seed(seed)
    model = kind(config).to(torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0 if parameter.dim() > 1 else 1.0)  # or every prompt goes on in the same way
    model.save_pretrained(folder)
    return folder
