"""Blocks as a GPU engine has them, gathered and scattered by torch: in host memory without streams, and on a GPU."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from kvstore.connectors.vllm._blocks import Blocks
from kvstore.errors import InvalidArgument
from kvstore.spec import KVGroup, KVSpec

torch = pytest.importorskip("torch")

from kvstore.connectors.vllm._device import DeviceLayers  # noqa: E402 - needs torch

BLOCKS, HEADS, TOKENS, DIM, LAYERS = 7, 3, 16, 8, 2
# vLLM's physical orders of [layer, block, head, token, content], by name.
ORDERS = {"LBHNC": (0, 1, 2, 3, 4), "LBNHC": (0, 1, 3, 2, 4), "BLHNC": (1, 0, 2, 3, 4), "BLNHC": (1, 0, 3, 2, 4),
          "BHLNC": (1, 2, 0, 3, 4)}  # fmt: skip


CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: not run on hardware here")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=CUDA)])
def where(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def views(
    order: str, dtype: torch.dtype, planes: int = 2, heads: int = HEADS, where: str = "cpu"
) -> list[torch.Tensor]:
    """Layers `[block, head, token, content]` over one piece of memory that lies in a physical order."""
    shape = (LAYERS, BLOCKS, heads, TOKENS, planes * DIM)
    axes = ORDERS[order]
    memory = torch.randn([shape[axis] for axis in axes]).to(where, dtype)
    return list(memory.permute([axes.index(axis) for axis in range(5)]))


def part_of(tokens: int, dtype: torch.dtype, planes: int = 2, heads: int = HEADS) -> np.ndarray:
    return np.zeros(LAYERS * planes * tokens * heads * DIM * dtype.itemsize, np.uint8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("order", ORDERS)
def test_there_and_back(order: str, dtype: torch.dtype, where: str) -> None:
    layers = views(order, dtype, where=where)
    device, table = DeviceLayers(layers, 2), [5, 2, 6]
    part = part_of(4 * TOKENS, dtype)
    device.read(table, 1, part)()
    found = torch.from_numpy(part).view(dtype).view(LAYERS, 2, 4, TOKENS, HEADS, DIM)
    assert not found[:, :, 0].any()
    for layer, plane, (n, block) in itertools.product(range(LAYERS), range(2), enumerate(table)):
        own = layers[layer][block, :, :, plane * DIM : (plane + 1) * DIM]
        assert torch.equal(found[layer, plane, n + 1], own.cpu().transpose(0, 1))

    other = [torch.full_like(layer, -7.0) for layer in layers]
    part.flags.writeable = False  # as the store's own memory is
    DeviceLayers(other, 2).write([1, 3, 4], 1, part)
    for own, copied in zip(layers, other, strict=True):
        assert torch.equal(copied[[1, 3, 4]], own[table])
        assert bool((copied[[0, 2, 5, 6]] == -7.0).all())


def test_a_part_is_what_it_was_when_it_was_read(where: str) -> None:
    layers = views("LBHNC", torch.float32, where=where)
    before, part = layers[0][3].clone().cpu(), part_of(TOKENS, torch.float32)
    finish = DeviceLayers(layers, 2).read([3], 0, part)
    for layer in layers:
        layer.zero_()  # as the block's next owner would
    assert not part.any()
    finish()
    kept = torch.from_numpy(part).view(torch.float32).view(LAYERS, 2, TOKENS, HEADS, DIM)
    assert torch.equal(kept[0, 1], before[:, :, DIM:].transpose(0, 1))


def test_latents_have_one_plane(where: str) -> None:
    layers = views("LBHNC", torch.bfloat16, planes=1, heads=1, where=where)
    part = part_of(2 * TOKENS, torch.bfloat16, planes=1, heads=1)
    DeviceLayers(layers, 1).read([4, 0], 0, part)()
    found = torch.from_numpy(part).view(torch.bfloat16).view(LAYERS, 2, TOKENS, DIM)
    assert torch.equal(found[1], layers[1][[4, 0], 0].cpu())


def test_tokens_that_have_left_a_window_are_zeros_and_a_cut_block_is_left_alone(where: str) -> None:
    layers = views("LBNHC", torch.float32, where=where)
    part = part_of(2 * TOKENS, torch.float32)
    DeviceLayers(layers, 2).read([-1, 2], 0, part)()
    found = torch.from_numpy(part).view(torch.float32).view(LAYERS, 2, 2 * TOKENS, HEADS, DIM)
    assert not found[:, :, :TOKENS].any()
    assert bool(found[:, :, TOKENS:].any())
    cut = np.ascontiguousarray(found[:, :, : 2 * TOKENS - 4].numpy()).view(np.uint8).reshape(-1)
    DeviceLayers(layers, 2).write([6], 0, cut)
    assert not any(layer[6].any() for layer in layers)
    assert bool(layers[0][2].any())
    with pytest.raises(IndexError):
        DeviceLayers(layers, 2).write([6], 1, cut)


def test_the_same_bytes_as_from_a_cpus_blocks() -> None:
    """What a GPU engine stores is what a CPU engine finds: one spec, one order."""
    from kvstore.connectors.vllm._order import Order

    layers = views("LBHNC", torch.float32)
    places = np.arange(2 * TOKENS * HEADS * DIM).reshape(2, TOKENS, HEADS, DIM).transpose(2, 1, 0, 3).reshape(-1)
    order = Order.of(places, TOKENS, HEADS, DIM, 4)
    mine, theirs = part_of(3 * TOKENS, torch.float32), part_of(3 * TOKENS, torch.float32)
    DeviceLayers(layers, 2).read([6, 1, 3], 0, mine)()
    order.over([layer.reshape(BLOCKS, -1).view(torch.uint8).numpy() for layer in layers]).read([6, 1, 3], 0, theirs)
    assert np.array_equal(mine, theirs)


def test_tensors_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="equal halves"):
        DeviceLayers([torch.zeros(2, 1, 16, 9)], 2)
    with pytest.raises(InvalidArgument, match="equal halves"):
        DeviceLayers([torch.zeros(2, 1, 16, 8), torch.zeros(2, 1, 16, 16)], 2)
    spec = KVSpec("m", "", "float32", (KVGroup((0,), HEADS, DIM),))
    groups = [type("Group", (), {"layer_names": ["model.layers.0.attn"]})]
    meta = {"model.layers.0.attn": torch.zeros(BLOCKS, HEADS, 2 * TOKENS, DIM, device="meta")}
    with pytest.raises(InvalidArgument, match="not \\[block, head, 16 tokens, content\\]"):
        Blocks(meta, groups, spec, TOKENS, None)
    with pytest.raises(InvalidArgument, match="the spec says"):
        Blocks({"model.layers.0.attn": torch.zeros(BLOCKS, HEADS, TOKENS, DIM)}, groups, spec, TOKENS, None)


@CUDA
def test_a_load_waits_for_what_was_queued_when_it_began() -> None:
    """The blocks' last owner still computes: what it writes must not land on what the load has written."""
    layers = views("LBHNC", torch.float32, where="cuda")
    device, part = DeviceLayers(layers, 2), part_of(TOKENS, torch.float32)
    device.read([3], 0, part)()
    kept = [layer[3].clone() for layer in layers]
    busy = torch.randn(4096, 4096, device="cuda")
    for _ in range(50):
        busy = busy @ busy * 1e-3
    for layer in layers:
        layer[5] = busy[0, 0].nan_to_num()
    device.write([5], 0, part, device.fence())
    torch.cuda.synchronize()
    assert all(torch.equal(layer[5], own) for layer, own in zip(layers, kept, strict=True))


@CUDA
def test_a_save_waits_for_the_forward_that_fills_its_blocks() -> None:
    layers = views("LBHNC", torch.float32, where="cuda")
    device, part = DeviceLayers(layers, 2), part_of(TOKENS, torch.float32)
    busy = torch.randn(4096, 4096, device="cuda")
    for _ in range(50):
        busy = busy @ busy * 1e-3
    for layer in layers:
        layer[3] = busy[0, 0].nan_to_num() * 0 + 7
    finish = device.read([3], 0, part)
    for layer in layers:
        layer.zero_()
    finish()
    assert bool((torch.from_numpy(part).view(torch.float32) == 7).all())
