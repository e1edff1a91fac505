"""LMCache's objects through the store and back, by its own plugin loading and interface."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lmcache.v1", reason="no LMCache here: make test-lmcache", exc_type=ImportError)

from lmcache.v1.distributed.l2_adapters.base import L2AdapterInterface  # noqa: E402

from kvstore.errors import ConfigError  # noqa: E402

from .harness import SHAPE, adapter, key, layouts, load, look, memory, store  # noqa: E402

NBYTES = 2 * 4 * 16 * 64 * 2


@pytest.mark.parametrize("channel", ["local", "bulk", "embedded"])
def test_objects_come_back_as_they_were(request, plug, channel):
    address = ""
    if channel != "embedded":
        told = request.getfixturevalue("server").told
        address = told["address"] if channel == "local" else f"bulk://{told['bulk']}"
    made, keys = plug(address), [key(n) for n in range(5)]
    assert isinstance(made, L2AdapterInterface)
    assert look(made, keys) == [False] * 5
    sources, targets = [memory(seed=n) for n in range(4)], [memory() for _ in range(5)]
    told = store(made, [keys[n] for n in (0, 1, 3, 4)], sources)
    assert (told.is_successful(), told.bytes_transferred()) == (True, 4 * NBYTES)
    assert look(made, keys) == [True, True, False, True, True]
    assert load(made, keys, targets) == [True, True, False, True, True]
    for source, target in zip(sources, [targets[n] for n in (0, 1, 3, 4)], strict=True):
        assert bytes(source.byte_array) == bytes(target.byte_array)
        assert not target.raw_data[NBYTES:].any(), "it wrote beyond the object"
    assert not targets[2].raw_data.any()
    made.submit_unlock(keys)


def test_what_is_there_counts_as_stored_and_moves_nothing(server, plug):
    made = plug(server.address)
    assert store(made, [key(1)], [memory(1)]).bytes_transferred() == NBYTES
    again = store(made, [key(1)], [memory(1)])
    assert (again.is_successful(), again.bytes_transferred()) == (True, 0)
    assert made.get_usage().total_bytes_used == NBYTES


@pytest.mark.parametrize(
    "other",
    [
        {"model_name": "org/other"},
        {"kv_rank": 2},
        {"object_group_id": 1},
        {"cache_salt": "x"},
        {"chunk_hash": b"x"},
    ],
)
def test_objects_of_another_key_are_not_found(server, plug, other):
    made, stranger = plug(server.address), key(**{"number": 1, **other})
    store(made, [key(1)], [memory(1)])
    target = memory()
    descs = {0: layouts()[0], 1: layouts()[0]}
    assert look(made, [stranger, key(1)], descs) == [False, True]
    assert load(made, [stranger], [target]) == [False]
    assert not target.raw_data.any()


@pytest.mark.parametrize("other", [{"dtype": torch.float16}, {"shape": (2, 4, 64, 16)}, {"shape": (2, 4, 8, 64)}])
def test_objects_of_another_layout_are_not_found(server, plug, other):
    made = plug(server.address)
    store(made, [key(1)], [memory(1)])
    assert look(made, [key(1)], layouts(**other)) == [False]
    assert look(made, [key(1)], {}) == [False]
    target = memory(**other)
    assert load(made, [key(1)], [target]) == [False]
    assert not target.raw_data.any()


def test_weights_of_another_revision_are_not_found(server, plug):
    store(plug(server.address, revision="1"), [key(1)], [memory(1)])
    assert look(plug(server.address, revision="1"), [key(1)]) == [True]
    assert look(plug(server.address, revision="2"), [key(1)]) == [False]


def test_objects_that_are_deleted(server, plug):
    made = plug(server.address)
    store(made, [key(1), key(2)], [memory(1), memory(2)])
    made.delete([key(1), key(3)])
    assert look(made, [key(1), key(2)]) == [False, True]
    assert made.get_usage().total_bytes_used == NBYTES


def test_what_was_found_is_not_evicted_before_it_is_loaded(plug):
    """32 MiB of DRAM, filled with other objects of 1 MiB after the look-up."""
    shape = (2, 16, 32, 512)
    made, keys = plug(dram_mib=32), [key(n) for n in range(100)]
    sources = [memory(n, shape) for n in range(8)]
    store(made, keys[:8], sources)
    assert look(made, keys[:8], layouts(shape)) == [True] * 8
    for each in keys[8:]:
        store(made, [each], [memory(100, shape)])
    targets = [memory(shape=shape) for _ in range(8)]
    assert load(made, keys[:8], targets) == [True] * 8
    assert bytes(targets[5].byte_array) == bytes(sources[5].byte_array)
    assert not all(look(made, keys[8:], layouts(shape))), "nothing was evicted"


def test_descriptors_are_three_and_options_are_checked(plug):
    made = plug()
    assert len({made.get_store_event_fd(), made.get_lookup_and_lock_event_fd(), made.get_load_event_fd()}) == 3
    assert made.report_status()["is_healthy"]
    assert not made.supports_global_eviction
    with pytest.raises(ConfigError, match="adapter_params"):
        adapter(sever="x")
    assert memory().get_shapes()[0] == SHAPE
