"""Pages and transfers without SGLang: host pools are stand-ins of its classes' names, with the same buffers.

tests/engines/sglang has the real ones.
"""

from __future__ import annotations

import logging

import numpy as np
import pytest

from kvstore.connectors.access import Breaker, HoldOptions
from kvstore.connectors.sglang._identity import page_ref
from kvstore.connectors.sglang._options import options_of
from kvstore.connectors.sglang._pages import BUFFERS, Pages
from kvstore.connectors.sglang._transfers import Transfers
from kvstore.errors import InvalidArgument, Shed
from kvstore.spec import KVSpec

torch = pytest.importorskip("torch")

LAYERS, PAGE, HEADS, DIM, COUNT = 3, 4, 2, 8, 6
SIZES = {"kv": 2, "layer": LAYERS, "slot": COUNT * PAGE, "page": COUNT, "token": PAGE, "head": HEADS, "dim": DIM}
SPEC = KVSpec.dense("m", layers=LAYERS, kv_heads=HEADS, head_dim=DIM, chunk_tokens=PAGE)
PART = SPEC.part()


class MHATokenToKVPoolHost:
    """A stand-in: what `Pages` reads of SGLang's pool."""

    page_size, layer_num, head_num, head_dim, dtype = PAGE, LAYERS, HEADS, DIM, torch.bfloat16

    def __init__(self, layout: str = "layer_first") -> None:
        self.layout = layout
        axes = BUFFERS["MHATokenToKVPoolHost"].get(layout, ())
        shape = [SIZES[axis] for axis in axes]
        self.kv_buffer = torch.randint(-9999, 9999, shape, dtype=torch.int16).view(torch.bfloat16)


@pytest.fixture
def client():
    with HoldOptions(dram_mib=64).open() as opened:
        yield opened


def transfers(client, **more):
    return Transfers(client, SPEC, PART, 10.0, Breaker(logging.getLogger("kvstore.test"), more.get("retry_s", 60.0)))


def slots(*pages):
    return torch.cat([torch.arange(page * PAGE, (page + 1) * PAGE) for page in pages])


@pytest.mark.parametrize("layout", BUFFERS["MHATokenToKVPoolHost"])
def test_a_page_is_a_view_in_the_stores_order(layout):
    pool = MHATokenToKVPoolHost(layout)
    (page,) = Pages(pool).at(slots(2), 1)
    assert page.shape == SPEC.part_shape(PART, PAGE)
    axes = BUFFERS["MHATokenToKVPoolHost"][layout]
    for layer, side, token, head, dim in np.ndindex(page.shape):
        at = {"layer": layer, "kv": side, "slot": 2 * PAGE + token, "page": 2, "token": token, "head": head, "dim": dim}
        assert page[layer, side, token, head, dim] == pool.kv_buffer.view(torch.int16)[tuple(at[axis] for axis in axes)]
    page[...] = 7
    assert int((pool.kv_buffer.view(torch.int16) == 7).sum()) >= page.size, "a copy, not a view"


def test_what_is_stored_is_canonical(client):
    """A reader that knows nothing of SGLang's layouts gets the page as the spec says."""
    pages = Pages(MHATokenToKVPoolHost("page_head")).at(slots(1, 4), 2)
    assert transfers(client).save(["a", "b"], pages) == [True, True]
    found = client.get(SPEC, page_ref("b", PAGE))
    assert np.array_equal(found.view(np.int16), pages[1])


def test_what_is_in_the_way_of_views_goes_through_memory(client, monkeypatch):
    source, target = MHATokenToKVPoolHost(), MHATokenToKVPoolHost("page_first")
    moved, names = transfers(client), [f"{n}" for n in range(5)]
    moved.save(names, Pages(source).at(slots(0, 1, 2, 3, 4), 5))
    view, calls = client.view, iter(range(9))

    def crowded(*args, **more):
        if next(calls) == 2:
            raise Shed("DRAM has no room to load it into")
        return view(*args, **more)

    monkeypatch.setattr(client, "view", crowded)
    monkeypatch.setattr("kvstore.connectors.sglang._transfers.WINDOW_BYTES", 2 * SPEC.part_bytes(PART, PAGE))
    into = Pages(target).at(slots(5, 4, 3, 2, 1), 5)
    assert moved.load(names, into) == [True] * 5
    for mine, its in zip(Pages(source).at(slots(0, 1, 2, 3, 4), 5), into, strict=True):
        assert np.array_equal(mine, its)


def test_a_save_that_is_shed_ends_there(client, monkeypatch):
    pages = Pages(MHATokenToKVPoolHost()).at(slots(0, 1, 2), 3)
    put, calls = client.put, iter(range(9))

    def shed(*args, **more):
        if next(calls) == 1:
            raise Shed("no room")
        return put(*args, **more)

    monkeypatch.setattr(client, "put", shed)
    moved = transfers(client)
    assert moved.save(["a", "b", "c"], pages) == [True, False, False]
    assert moved.leading(["a", "b", "c"]) == 1
    assert moved.save(["a", "b", "c"], pages) == [True] * 3, "it counted as a failure of the store"


def test_layouts_and_indices_that_do_not_fit():
    with pytest.raises(InvalidArgument, match="page_unified"):
        Pages(MHATokenToKVPoolHost("page_unified"))
    with pytest.raises(InvalidArgument, match="kind Packed"):
        Pages(type("Packed", (MHATokenToKVPoolHost,), {})())
    pages = Pages(MHATokenToKVPoolHost())
    with pytest.raises(InvalidArgument, match="elements"):
        pages.flat(torch.zeros(3, dtype=torch.bfloat16))


def test_options_leave_sglangs_own_alone():
    assert options_of({"backend_name": "x", "module_path": "y", "class_name": "z", "interface_v1": 1}) == HoldOptions()
    assert options_of(None) == HoldOptions()
