"""Pages of SGLang's real host pools, through the store and back."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sglang.srt", reason="no SGLang here: make test-sglang", exc_type=ImportError)

from .harness import PAGE, fill, hashes, page, pool, slots  # noqa: E402

LAYOUTS = [
    ("mha", "layer_first"),
    ("mha", "page_first"),
    ("mha", "page_first_direct"),
    ("mha", "page_head"),
    ("mla", "layer_first"),
    ("mla", "page_first"),
    ("mla", "page_first_direct"),
]


@pytest.mark.parametrize("channel", ["local", "bulk", "embedded"])
@pytest.mark.parametrize(("kind", "layout"), LAYOUTS)
def test_pages_come_back_as_they_were(request, attach, kind, layout, channel):
    address = ""
    if channel != "embedded":
        told = request.getfixturevalue("server").told
        address = told["address"] if channel == "local" else f"bulk://{told['bulk']}"
    source, target = pool(kind, layout), pool(kind, layout)
    fill(source)
    fill(target, seed=1)
    before = [page(target, n) for n in range(16)]
    backend, keys = attach(source, address), hashes(5)
    assert backend.batch_exists(keys) == 0
    assert backend.batch_set_v1(keys[:4], slots(source, 3, 0, 7, 5)) == [True] * 4
    assert backend.batch_exists(keys) == 4
    backend.register_mem_pool_host(target)
    assert backend.batch_get_v1(keys, slots(target, 9, 8, 2, 4, 6)) == [True] * 4 + [False]
    for at, (was, now) in {0: (3, 9), 1: (0, 8), 2: (7, 2), 3: (5, 4)}.items():
        assert torch.equal(page(source, was), page(target, now)), at
    for n in set(range(16)) - {9, 8, 2, 4}:
        assert torch.equal(page(target, n), before[n])


@pytest.mark.parametrize("kind", ["mha", "mla"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_other_element_sizes(attach, kind, dtype):
    source, target = pool(kind, dtype=dtype), pool(kind, dtype=dtype)
    fill(source)
    backend, keys = attach(source), hashes(2)
    assert all(backend.batch_set_v1(keys, slots(source, 1, 2)))
    backend.register_mem_pool_host(target)
    assert all(backend.batch_get_v1(keys, slots(target, 2, 1)))
    assert torch.equal(page(source, 1), page(target, 2))
    assert torch.equal(page(source, 2), page(target, 1))


@pytest.mark.parametrize("kind", ["mha", "mla"])
def test_a_page_means_the_same_in_every_layout(server, attach, kind):
    """The store has one order: what an engine with one host layout wrote another reads."""
    layouts = [layout for each, layout in LAYOUTS if each == kind]
    first = pool(kind, layouts[0])
    fill(first)
    keys = hashes(1)
    assert attach(first, server.address).batch_set_v1(keys, slots(first, 3)) == [True]
    for layout in layouts[1:]:
        other = pool(kind, layout)
        assert attach(other, server.address).batch_get_v1(keys, slots(other, 5)) == [True]
        for layer in range(4):
            for mine, its in zip(_layer(first, kind, layer, 3), _layer(other, kind, layer, 5), strict=True):
                assert torch.equal(_bits(mine), _bits(its)), (layout, layer)


def test_the_older_calls_share_their_pages_with_the_newer(server, attach):
    for kind, layout in LAYOUTS:
        source, keys = pool(kind, layout), hashes(3, seed=hash((kind, layout)) % 1000)
        fill(source)
        backend = attach(source, server.address, revision=f"{kind} {layout}")
        flat = [source.get_data_page(n * PAGE) for n in (4, 5)]
        assert backend.batch_set(keys[:2], flat)
        assert backend.exists(keys[1])
        assert not backend.exists(keys[2])
        assert backend.batch_get_v1(keys[:2], slots(source, 8, 9)) == [True, True]
        assert torch.equal(page(source, 4), page(source, 8))
        got = backend.batch_get(keys, [torch.zeros_like(flat[0]) for _ in keys])
        assert torch.equal(got[1].view(torch.uint8), flat[1].view(torch.uint8))
        assert got[2] is None
        assert torch.equal(backend.get(keys[0]).view(torch.uint8), flat[0].view(torch.uint8))
        assert backend.set(keys[2], flat[0])
        assert backend.batch_exists(keys) == 3


def test_a_hit_ends_at_the_first_page_that_is_missing(server, attach):
    host = pool()
    fill(host)
    backend, keys = attach(host, server.address), hashes(6)
    backend.batch_set_v1(keys, slots(host, *range(6)))
    _delete(backend, keys[2])
    assert backend.batch_exists(keys) == 2
    assert backend.batch_exists(keys[3:]) == 3
    assert backend.batch_get_v1(keys, slots(host, *range(8, 14))) == [True, True, False, False, False, False]
    nothing = torch.arange(0)
    assert (backend.batch_exists([]), backend.batch_get_v1([], nothing), backend.batch_set_v1([], nothing)) == (
        0,
        [],
        [],
    )


def test_a_batch_of_sglangs_size(server, attach):
    source, target = pool(pages=130), pool(pages=130, layout="page_first")
    fill(source)
    backend, keys = attach(source, server.address), hashes(128)
    assert all(backend.batch_set_v1(keys, slots(source, *range(128))))
    assert all(backend.batch_set_v1(keys, slots(source, *range(128)))), "what is there counts as stored"
    other = attach(target, server.address)
    assert other.batch_exists(keys) == 128
    assert all(other.batch_get_v1(keys, slots(target, *range(128))))
    stats = other.get_stats()
    assert (stats.prefetch_pgs, stats.backup_pgs) == ([128], [])
    assert stats.prefetch_bandwidth[0] > 0
    assert other.get_stats().prefetch_pgs == []


def test_clear_forgets_this_spec_alone(server, attach):
    host, keys = pool(), hashes(3)
    mine, other = attach(host, server.address), attach(host, server.address, revision="r2")
    for each in (mine, other):
        assert all(each.batch_set_v1(keys, slots(host, 1, 2, 3)))
    mine.clear()
    assert mine.batch_exists(keys) == 0
    assert other.batch_exists(keys) == 3


def test_what_was_found_is_not_evicted_before_it_is_loaded(attach):
    """64 MiB of DRAM, filled with other pages after the look-up."""
    host = pool(pages=40, layers=16, heads=8, dim=64)  # pages of 512 KiB
    fill(host)
    backend, keys = attach(host, dram_mib=64), hashes(200)
    assert all(backend.batch_set_v1(keys[:20], slots(host, *range(20))))
    assert backend.batch_exists(keys[:20]) == 20
    for key in keys[20:]:
        backend.batch_set_v1([key], slots(host, 30))
    assert backend.batch_get_v1(keys[:20], slots(host, *range(20, 40))) == [True] * 20
    assert torch.equal(page(host, 7), page(host, 27))
    assert backend.batch_exists(keys) < 200, "nothing was evicted"


def _delete(backend, key):
    from kvstore.connectors.sglang._identity import page_ref

    transfers = backend._transfers
    assert transfers._client.delete(transfers._spec, [page_ref(key, PAGE).key]) == 1


def _layer(host, kind, layer, number):
    """K and V of a layer of a page as `[token, head, dim]`, by the buffers' own axes."""
    buffer, rows = host.kv_buffer, slice(number * PAGE, (number + 1) * PAGE)
    sides = {
        "layer_first": lambda each: each[layer, rows],
        "page_first": lambda each: each[rows, layer],
        "page_first_direct": lambda each: each[number, layer],
        "page_head": lambda each: each[number, :, :, layer].transpose(0, 1),
    }
    return [sides[host.layout](each) for each in ((buffer,) if kind == "mla" else (buffer[0], buffer[1]))]


def _bits(tensor):
    return tensor.contiguous().view(torch.int16)
