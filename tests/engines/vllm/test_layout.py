"""What the store holds is the model's keys and values in the canonical form, whatever an engine's blocks look like."""

from __future__ import annotations

import re
from types import SimpleNamespace

import numpy as np
import pytest

import kvstore
from kvstore.spec import KVGroup, KVSpec

from .harness import prompt, transfer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.mark.filterwarnings("default")  # vLLM's own, when it is imported
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize(("block", "heads", "dim"), [(32, 3, 64), (128, 1, 256), (64, 8, 128), (32, 2, 80)])
def test_the_cpu_backend_says_how_its_blocks_lie(dtype: str, block: int, heads: int, dim: int) -> None:
    torch = pytest.importorskip("torch")
    from vllm import _custom_ops as ops
    from vllm.v1.attention.backends.cpu_attn import _get_attn_isa

    from kvstore.connectors.vllm._order import cpu_order

    kind = getattr(torch, dtype)
    order = cpu_order(SimpleNamespace(block_size=block, num_kv_heads=heads, head_size=dim, dtype=kind), "auto")
    both = torch.randn(2, 2 * block, heads, dim).to(kind)
    cache = torch.zeros(4, heads, 2 * block, dim, dtype=kind)
    slots = torch.cat([torch.arange(3 * block, 4 * block), torch.arange(block, 2 * block)])
    isa = _get_attn_isa(kind, block, dim, "auto")
    ops.cpu_attn_reshape_and_cache(*both, *cache.chunk(2, dim=2), slots, isa, k_scale=1.0, v_scale=1.0)
    layer = cache.view(torch.uint8).reshape(4, -1).numpy()
    part = np.zeros(both.numel() * both.element_size(), np.uint8)
    order.over([layer]).read([3, 1], 0, part)
    assert np.array_equal(part, both.view(torch.uint8).reshape(-1).numpy())


def test_the_store_holds_the_models_own_keys_and_values(start, server, llama):
    torch = pytest.importorskip("torch")
    from transformers import AutoConfig, AutoModelForCausalLM

    ask = prompt(600)
    engine = start(llama, transfer(server.address))
    engine.ask(ask)
    engine.ask_until_cached(ask, tokens=576)
    told = re.search(r"spec ([0-9a-f]{32}) \((.*)\)", engine.log.read_text(errors="replace"))
    assert told is not None
    config = AutoConfig.from_pretrained(llama)
    spec = KVSpec(llama.name, told[2], "float32", (KVGroup(tuple(range(4)), 2, 64),), dict(config.rope_parameters))
    assert spec.digest.hex() == told[1]

    model = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
    with torch.no_grad():
        layers = model(torch.tensor([ask])).past_key_values.layers
    own = np.stack([[each[0].numpy().swapaxes(0, 1) for each in (layer.keys, layer.values)] for layer in layers])
    with kvstore.connect(server.address) as client:
        for ref in client.chain(spec, ask[:576]).refs:
            stored = client.get(spec, ref)
            assert np.allclose(stored, own[:, :, ref.position : ref.end], atol=1e-3)


@pytest.mark.parametrize("change", [{"block_size": 64}, {"block_size": 128}])
def test_engines_with_other_blocks_share_what_they_store(start, server, llama, change):
    ask = prompt(700)
    first = start(llama, transfer(server.address))
    cold = first.ask(ask)["answers"][0]
    first.close()
    second = start(llama, transfer(server.address), **change)
    warm = second.ask(ask)["answers"][0]
    # The first engine's tail ends at token 672, between two blocks of the second one.
    assert warm["cached"] == 640
    assert warm["ids"] == cold["ids"]


@pytest.mark.parametrize("form", ["lossless", "int8"])
def test_codecs_apply_to_an_engines_chunks(start, tmp_path, llama, form):
    from .harness import Server

    config = tmp_path / "form.toml"
    config.write_text(f'[[namespace]]\nname = "default"\ncodec = "{form}"\nlossy = true\n')
    server = Server(tmp_path / "store", "--config", str(config))
    ask = prompt(600)
    first = start(llama, transfer(server.address))
    cold = first.ask(ask)["answers"][0]
    first.close()
    with kvstore.connect(server.address) as client:
        places = [place for chunk in client.list() for place in chunk.placements]
    assert {place.form for place in places} == {form}
    assert sum(place.stored for place in places) < 0.95 * sum(place.logical for place in places)
    warm = start(llama, transfer(server.address)).ask(ask)["answers"][0]
    if form == "lossless":
        assert (warm["ids"], warm["cached"]) == (cold["ids"], 576)
    else:
        # An exact reader finds nothing; one that takes lossy copies does, and stores nothing after them.
        assert (warm["ids"], warm["cached"]) == (cold["ids"], 0)
        with kvstore.connect(server.address) as client:
            before = {chunk.key for chunk in client.list()}
        lossy = start(llama, transfer(server.address, fidelity="lossy")).ask(ask + prompt(400, seed=4))
        assert lossy["counters"]["lossy_tokens"] == 576
        assert lossy["counters"].get("saved", 0) == 0
        with kvstore.connect(server.address) as client:
            assert {chunk.key for chunk in client.list()} == before
    server.stop()
