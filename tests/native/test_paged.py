"""Blocks of an engine's paged cache to and from the canonical form, against NumPy."""

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from kvstore import _native
from kvstore.connectors.vllm._order import Order
from kvstore.errors import InvalidArgument

TOKENS, HEADS, DIM, LAYERS, BLOCKS = 32, 3, 64, 2, 7
Array = NDArray[np.generic]


def plain(tokens: int, heads: int, dim: int) -> NDArray[np.int64]:
    """Where each element `[plane][token][head][dim]` is, in that order."""
    return np.arange(2 * tokens * heads * dim).reshape(2, tokens, heads, dim)


def transposed(tokens: int, heads: int, dim: int) -> NDArray[np.int64]:
    """Head by head, K as `[dim][token]`, V as `[token][dim]`."""
    key, value = plain(tokens, heads, dim)
    parts = [(key[:, head].T.reshape(-1), value[:, head].reshape(-1)) for head in range(heads)]
    return np.concatenate([each for pair in parts for each in pair])


def tiled(tokens: int, heads: int, dim: int) -> NDArray[np.int64]:
    """As for AMX: K `[token/16][dim/2][16][2]`, V `[dim/16][token/2][16][2]`."""
    key, value = plain(tokens, heads, dim)
    parts = []
    for head in range(heads):
        parts.append(key[:, head].reshape(tokens // 16, 16, dim // 2, 2).transpose(0, 2, 1, 3).reshape(-1))
        parts.append(value[:, head].reshape(tokens // 2, 2, dim // 16, 16).transpose(2, 0, 3, 1).reshape(-1))
    return np.concatenate(parts)


def packed(tokens: int, heads: int, dim: int) -> NDArray[np.int64]:
    """As vLLM has it on GPUs: `[token][head][K, V]`."""
    return plain(tokens, heads, dim).transpose(1, 2, 0, 3).reshape(-1)


ORDERS = {"transposed": transposed, "tiled": tiled, "packed": packed, "plain": lambda *a: plain(*a).reshape(-1)}


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.uint64])
@pytest.mark.parametrize("name", ORDERS)
def test_there_and_back(name: str, dtype: type) -> None:
    places = ORDERS[name](TOKENS, HEADS, DIM)
    there_and_back(places, Order.of(places, TOKENS, HEADS, DIM, np.dtype(dtype).itemsize), dtype)


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_any_permutation_within_a_plane(dtype: type) -> None:
    random = np.random.default_rng(7)
    places = plain(TOKENS, HEADS, DIM).reshape(2, -1)
    places = np.concatenate([random.permutation(places[1]), random.permutation(places[0])])
    there_and_back(places, Order.of(places, TOKENS, HEADS, DIM, np.dtype(dtype).itemsize), dtype)


@pytest.mark.parametrize(("tokens", "dim"), [(16, 80), (48, 20), (5, 7), (2, 64), (3, 2)])
def test_sizes_that_no_kernel_divides(tokens: int, dim: int) -> None:
    for name in ("transposed", "packed", "plain"):
        places = ORDERS[name](tokens, HEADS, dim)
        there_and_back(places, Order.of(places, tokens, HEADS, dim, 2), np.uint16, tokens, dim)


def there_and_back(places: NDArray[np.int64], order: Order, dtype: type, tokens: int = TOKENS, dim: int = DIM) -> None:
    random = np.random.default_rng(1)
    storage = random.integers(0, 256, (BLOCKS, LAYERS, len(places) * order.unit_bytes), np.uint8)
    layers = [storage[:, n] for n in range(LAYERS)]  # side by side: a step from block to block that is no block
    paged = order.over(layers)
    table = [5, 2, 0, 6]
    part = np.zeros((LAYERS, 2, (len(table) + 1) * tokens, HEADS, dim), dtype)
    paged.read(table, 1, part)
    assert not part[:, :, :tokens].any()
    for layer, (n, block) in itertools.product(range(LAYERS), enumerate(table)):
        expected = np.zeros(len(places), dtype)
        expected[places] = layers[layer][block].view(dtype)
        got = part[layer, :, (n + 1) * tokens : (n + 2) * tokens]
        assert np.array_equal(got, expected.reshape(2, tokens, HEADS, dim))

    other = np.full_like(storage, 0xEE)
    back = order.over([other[:, n] for n in range(LAYERS)])
    back.write([1, 3, 4, 2], 1, part)
    assert np.array_equal(other[[1, 3, 4, 2]], storage[table])
    assert (other[[0, 5, 6]] == 0xEE).all()


def test_tokens_that_have_left_a_window_are_zeros() -> None:
    order = Order.of(tiled(TOKENS, HEADS, DIM), TOKENS, HEADS, DIM, 2)
    layers = [np.full((BLOCKS, 2 * TOKENS * HEADS * DIM * 2), 7, np.uint8)]
    part = np.full((1, 2, 2 * TOKENS, HEADS, DIM), 9, np.uint16)
    order.over(layers).read([-1, 3], 0, part)
    assert not part[:, :, :TOKENS].any()
    assert (part[:, :, TOKENS:] == 0x0707).all()


def test_opaque_blocks_are_kept_as_they_lie() -> None:
    layers = [np.random.default_rng(n).integers(0, 256, (BLOCKS, 640), np.uint8) for n in range(LAYERS)]
    part = np.zeros((LAYERS, 2, 640), np.uint8)
    Order.opaque(TOKENS, 640).over(layers).read([6, 1], 0, part)
    assert all(np.array_equal(part[n], layers[n][[6, 1]]) for n in range(LAYERS))
    with pytest.raises(InvalidArgument, match="does not divide"):
        Order.opaque(TOKENS, 650)


@pytest.mark.parametrize("change", ["twice", "outside"])
def test_what_is_no_permutation_is_refused(change: str) -> None:
    places = plain(TOKENS, HEADS, DIM).reshape(-1)
    places[5] = 6 if change == "twice" else len(places)
    with pytest.raises(InvalidArgument, match="each number of its tokens once"):
        Order.of(places, TOKENS, HEADS, DIM, 2)


def test_planes_mixed_within_a_row_are_refused() -> None:
    places = plain(TOKENS, HEADS, DIM).transpose(1, 2, 3, 0).reshape(-1)
    with pytest.raises(InvalidArgument, match="mixed up"):
        Order.of(places, TOKENS, HEADS, DIM, 2)


def test_what_reaches_outside_is_refused_and_nothing_is_written() -> None:
    order = Order.of(plain(TOKENS, HEADS, DIM).reshape(-1), TOKENS, HEADS, DIM, 2)
    layers = [np.zeros((BLOCKS, 2 * TOKENS * HEADS * DIM * 2), np.uint8)]
    paged = order.over(layers)
    part = np.ones((1, 2, 2 * TOKENS, HEADS, DIM), np.uint16)
    for table, first in (([1, 2], 1), ([1], 2), ([1], 1 << 62), ([1, 2, 3], 0)):
        with pytest.raises(ValueError, match="past the end"):
            paged.write(table, first, part)
    for table in ([-1], [BLOCKS], [1 << 40], [-(1 << 40)]):
        with pytest.raises(IndexError):
            paged.write(table, 0, part)
    with pytest.raises(IndexError):
        paged.read([-2], 0, part)
    with pytest.raises(ValueError, match="whole tokens"):
        paged.read([1], 0, part.view(np.uint8).reshape(-1)[:-1].copy())
    short = part[:, :, :-1].copy()
    paged.read([1], 0, short)  # a part that ends inside its last block
    with pytest.raises(ValueError, match="past the end"):
        paged.read([1], 1, short)
    read_only = np.zeros_like(part)
    read_only.flags.writeable = False
    with pytest.raises(ValueError, match="writ"):
        paged.read([1], 0, read_only)
    assert not layers[0].any()


def test_orders_that_do_not_fit_their_blocks_are_refused() -> None:
    good = {"block_tokens": 2, "row_bytes": 8, "planes_per_layer": 2, "unit_bytes": 8, "planes": [0, 1],
            "bases": [0, 0], "kinds": [0, 0], "tables": [[0, 8]]}  # fmt: skip
    layer = np.zeros((3, 32), np.uint8)
    _native.PagedLayers([layer], **good)
    for change in (
        {"unit_bytes": 3}, {"unit_bytes": 0}, {"planes": [0, 2]}, {"planes": [0]}, {"bases": [0, 8]},
        {"bases": [0, 2**32 - 4]}, {"kinds": [0, 1]}, {"tables": [[0, 9]]}, {"tables": [[0]]}, {"row_bytes": 4},
        {"block_tokens": 0}, {"planes_per_layer": 0},
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"must|has one|ends outside|no such"):
            _native.PagedLayers([layer], **{**good, **change})
    with pytest.raises(ValueError, match="differ"):
        _native.PagedLayers([layer, np.zeros((3, 64), np.uint8)], **good)
    with pytest.raises(ValueError, match="one piece"):
        _native.PagedLayers([np.zeros((3, 64), np.uint8)[:, ::2]], **good)
    with pytest.raises(ValueError, match="no layers"):
        _native.PagedLayers([], **good)
