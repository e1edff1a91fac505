"""What is a miss, and what is refused."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sglang.srt", reason="no SGLang here: make test-sglang", exc_type=ImportError)

from sglang.srt.mem_cache.hicache_storage import HiCacheStorage  # noqa: E402
from sglang.srt.mem_cache.storage.backend_factory import StorageBackendFactory  # noqa: E402

from kvstore.errors import ConfigError, InvalidArgument  # noqa: E402

from . import harness  # noqa: E402
from .harness import config, fill, hashes, page, pool, slots  # noqa: E402

SHAPE = ("dtype", "page_size", "heads", "layers", "dim", "start_layer")


def test_the_factory_makes_it(server):
    made = StorageBackendFactory.create_backend("dynamic", config(server.address), pool())
    assert isinstance(made, HiCacheStorage)
    with pytest.raises(InvalidArgument, match="register_mem_pool_host"):
        made.batch_exists(hashes(1))
    made.close()


@pytest.mark.parametrize(
    "other",
    [
        {"dtype": torch.float16},
        {"page_size": 32},
        {"heads": 4},
        {"layers": 3},
        {"dim": 16},
        {"start_layer": 4},
        {"revision": "r2"},
        {"model_name": "org/other"},
        {"tp_size": 2},
        {"tp_size": 2, "tp_rank": 1},
        {"namespace": "other"},
    ],
)
def test_pages_of_another_spec_are_not_found(tmp_path, attach, other):
    server = harness.server_of_namespaces(tmp_path)
    shape = {name: value for name, value in other.items() if name in SHAPE}
    rest = {name: value for name, value in other.items() if name not in shape}
    source, target, keys = pool(), pool(**shape), hashes(2)
    fill(source)
    fill(target, seed=1)
    before = page(target, 1)
    try:
        assert all(attach(source, server.address).batch_set_v1(keys, slots(source, 1, 2)))
        stranger = attach(target, server.address, **rest)
        assert stranger.batch_exists(keys) == 0
        assert stranger.batch_get_v1(keys, slots(target, 1, 2)) == [False, False]
        assert torch.equal(page(target, 1), before)
    finally:
        server.stop()


def test_mla_and_mha_of_the_same_size_are_two_specs(server, attach):
    wide = pool("mha", heads=2, dim=(harness.LATENT + harness.ROPE) // 4)
    latent = pool("mla")
    assert wide.get_size_per_token() == latent.get_size_per_token()
    keys = hashes(1)
    assert attach(wide, server.address).batch_set_v1(keys, slots(wide, 1)) == [True]
    assert attach(latent, server.address).batch_exists(keys) == 0


def test_each_tensor_parallel_rank_has_a_part_of_its_own(server, attach):
    pools = [pool(), pool()]
    for rank, each in enumerate(pools):
        fill(each, seed=rank)
    ranks = [attach(each, server.address, tp_size=2, tp_rank=rank) for rank, each in enumerate(pools)]
    keys = hashes(2)
    assert all(ranks[0].batch_set_v1(keys, slots(pools[0], 1, 2)))
    assert [each.batch_exists(keys) for each in ranks] == [2, 0]
    assert all(ranks[1].batch_set_v1(keys, slots(pools[1], 1, 2)))
    for backend, host in zip(ranks, pools, strict=True):
        assert backend.batch_exists(keys) == 2
        assert all(backend.batch_get_v1(keys, slots(host, 5, 6)))
        assert torch.equal(page(host, 1), page(host, 5))
    assert not torch.equal(page(pools[0], 5), page(pools[1], 5))


def test_of_mla_the_first_rank_writes_and_all_read(server, attach):
    pools = [pool("mla"), pool("mla")]
    for rank, each in enumerate(pools):
        fill(each, seed=rank)
    ranks = [attach(each, server.address, tp_size=2, tp_rank=rank) for rank, each in enumerate(pools)]
    keys = hashes(1)
    assert ranks[1].batch_set_v1(keys, slots(pools[1], 1)) == [True]
    assert ranks[1].batch_exists(keys) == 0
    assert ranks[0].batch_set_v1(keys, slots(pools[0], 1)) == [True]
    assert ranks[1].batch_get_v1(keys, slots(pools[1], 5)) == [True]
    assert torch.equal(page(pools[0], 1), page(pools[1], 5))


def test_pipeline_stages_keep_their_layers_apart(server, attach):
    first, second = pool(), pool(start_layer=4)
    fill(first)
    keys = hashes(1)
    stages = [attach(each, server.address, pp_size=2, pp_rank=n) for n, each in enumerate((first, second))]
    assert stages[0].batch_set_v1(keys, slots(first, 1)) == [True]
    assert [each.batch_exists(keys) for each in stages] == [1, 0]


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"attn_cp_size": 2}, "context parallelism"),
        ({"should_split_heads": True}, "tp_lcm_size"),
        ({"tp_size": 2}, "cannot share a store"),
    ],
)
def test_deployments_that_are_refused(given, reason):
    with pytest.raises(InvalidArgument, match=reason):
        harness.backend(pool(), **given)


def test_pools_that_are_refused(attach, monkeypatch):
    with pytest.raises(InvalidArgument, match="page_unified"):
        attach(pool(layout="page_unified"))
    with pytest.raises(InvalidArgument, match="scales"):
        attach(pool(dtype=torch.float8_e4m3fn))
    with pytest.raises(InvalidArgument, match="names the weights"):
        attach(pool(), revision="")
    drafted = pool()
    monkeypatch.setattr(drafted, "target_layer_num", 3)
    with pytest.raises(InvalidArgument, match="draft"):
        attach(drafted)
    backend = attach(pool())
    backend.register_mem_host_pool_v2(pool(), "kv")
    with pytest.raises(InvalidArgument, match="mamba"):
        backend.register_mem_host_pool_v2(pool(), "mamba")


def test_host_indices_that_are_no_pages(attach):
    host = pool()
    backend = attach(host)
    with pytest.raises(InvalidArgument, match="host indices"):
        backend.batch_get_v1(hashes(2), slots(host, 1))
    with pytest.raises(InvalidArgument, match="beginning of a page"):
        backend.batch_get_v1(hashes(1), slots(host, 1) + 1)


@pytest.mark.parametrize("given", [{"sever": "x"}, {"hold_s": "1"}, {"timeout_s": 0}, {"retry_s": -1.0}])
def test_options_that_are_wrong_are_told(given):
    with pytest.raises(ConfigError, match="hicache-storage-backend-extra-config"):
        StorageBackendFactory.create_backend("dynamic", config(**given), pool())


def test_the_weights_are_named_by_their_files(tmp_path, attach, monkeypatch):
    """What a server of SGLang says about its model, as far as this backend asks for it (a stand-in for ServerArgs)."""
    from types import SimpleNamespace

    from sglang.srt import runtime_context

    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(100_000))
    told = SimpleNamespace(model_path=str(folder), revision=None, load_format="auto", random_seed=1, enable_lora=None,
                           lora_paths=None, quantization=None, dtype="auto", kv_cache_dtype="auto",
                           json_model_override_args="{}", quantization_param_path=None)  # fmt: skip
    monkeypatch.setattr(runtime_context, "get_server_args", lambda: told)

    def digest():
        return attach(pool(), revision="")._transfers._spec.digest

    first = digest()
    assert digest() == first
    (folder / "config.json").write_text('{"rope_theta": 1}')
    second = digest()
    (folder / "model.safetensors").write_bytes(bytes(50_000) + b"\1" * 50_000)
    third = digest()
    told.json_model_override_args = '{"rope_theta": 2}'
    assert len({first, second, third, digest()}) == 4
    told.lora_paths = ["a"]
    with pytest.raises(InvalidArgument, match="LoRA"):
        digest()
    told.lora_paths, told.model_path = None, "org/not-here"
    with pytest.raises(InvalidArgument, match="not found on disk"):
        digest()
