"""Tiny random models in folders, with a tokenizer of bytes, and texts to run them over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

VOCABULARY = 320


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder that no other test has written to."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("KVSTORE_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three layers of full attention, 2 KV heads of 16."""
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=320,
        initializer_range=0.2,
    )
    return _saved(transformers.LlamaForCausalLM(config), folder)


@pytest.fixture(scope="session")
def gemma_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six layers, of which the third and the last have full attention, norms of queries and keys."""
    folder = tmp_path_factory.mktemp("models") / "tiny-gemma"
    torch.manual_seed(1)
    config = transformers.Gemma3TextConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=320,
        sliding_window=100,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"] * 2,
        initializer_range=0.2,
    )
    return _saved(transformers.Gemma3ForCausalLM(config), folder)


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4,000 tokens of words that follow no pattern."""
    path = tmp_path_factory.mktemp("texts") / "words.txt"
    state, words = 1, []
    while sum(map(len, words)) + len(words) < 4000:
        state = state * 1103515245 + 12345 & 0x7FFFFFFF
        words.append("abcdefghijklmnop"[state % 13 :][: 2 + state % 5])
    path.write_text(" ".join(words)[:4000], encoding="utf-8")
    return path


def _saved(model: Any, folder: Path) -> Path:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    plain = Tokenizer(models.BPE(vocab={symbol: number for number, symbol in enumerate(alphabet)}, merges=[]))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    model.eval().save_pretrained(folder)
    transformers.PreTrainedTokenizerFast(tokenizer_object=plain).save_pretrained(folder)
    return folder
