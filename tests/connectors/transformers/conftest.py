"""Two tiny random models and a folder to store their KV in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import kvstore
from kvstore.config import DramConfig, NvmeConfig

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

MiB = 1 << 20
OpenStore = Callable[[], kvstore.Client]


class Tiny:
    """Random models of a few layers, over 320 tokens, and what tests do with them."""

    @staticmethod
    def llama(seed: int = 0, dtype: Any = None) -> Any:
        """Four layers of full attention."""
        config = transformers.LlamaConfig(
            vocab_size=320,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            max_position_embeddings=2048,
        )
        torch.manual_seed(seed)
        return transformers.LlamaForCausalLM(config).to(dtype or torch.float32).eval()

    @staticmethod
    def gemma(seed: int = 0, window: int = 100) -> Any:
        """Six layers, of which the third and the last have full attention, the others a short window."""
        config = transformers.Gemma3TextConfig(
            vocab_size=320,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=6,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            max_position_embeddings=2048,
            sliding_window=window,
            layer_types=["sliding_attention", "sliding_attention", "full_attention"] * 2,
        )
        torch.manual_seed(seed)
        return transformers.Gemma3ForCausalLM(config).eval()

    @staticmethod
    def forward(model: Any, cache: Any, tokens: list[int]) -> Any:
        """Run `tokens` on top of `cache`; the logits of all of them, `[tokens, vocabulary]`."""
        with torch.no_grad():
            return model(torch.tensor([tokens]), past_key_values=cache).logits[0]

    @staticmethod
    def prefilled(model: Any, tokens: list[int], *, record_past: bool = False) -> Any:
        """A fresh cache that holds `tokens`."""
        cache = transformers.DynamicCache(config=model.config)
        if record_past:
            cache.activate_past_recording()
        Tiny.forward(model, cache, tokens)
        return cache


@pytest.fixture(scope="session")
def tiny() -> type[Tiny]:
    return Tiny


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def open_store(tmp_path: Path) -> Iterator[OpenStore]:
    """Opens the same folder again and again, closing what was open before, as a restart would."""
    opened: list[kvstore.Client] = []
    config = kvstore.Config(
        dram=DramConfig(capacity=64 * MiB, extent=64 * MiB),
        nvme=NvmeConfig(tmp_path / "nvme", capacity=256 * MiB, segment=32 * MiB, reserve=0),
    )

    def reopen() -> kvstore.Client:
        close()
        opened.append(kvstore.open(config))
        return opened[-1]

    def close() -> None:
        while opened:
            opened.pop().close()

    yield reopen
    close()
