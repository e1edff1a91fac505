"""Gather and scatter by the kernel against torch, and torch against loops: every layout and dtype, bit by bit."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from kvstore.errors import InvalidArgument  # noqa: E402 - needs torch
from kvstore.tiers.hbm.blocks import PagedBlocks  # noqa: E402 - needs torch

BLOCKS, LAYERS = 6, 2
# Physical orders of [layer, block, head, token, content], by name.
ORDERS = {"LBHNC": (0, 1, 2, 3, 4), "LBNHC": (0, 1, 3, 2, 4), "BLHNC": (1, 0, 2, 3, 4), "BLNHC": (1, 0, 3, 2, 4),
          "BHLNC": (1, 2, 0, 3, 4), "LBHCN": (0, 1, 2, 4, 3)}  # fmt: skip
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32,
          "float8": torch.float8_e4m3fn, "uint8": torch.uint8}  # fmt: skip
INTERPRETED = pytest.param(
    "cpu", marks=pytest.mark.skipif(torch.cuda.is_available(), reason="the kernel is compiled for the GPU here")
)
CUDA = pytest.param(
    "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: not run on hardware here")
)


@pytest.fixture(params=[INTERPRETED, CUDA])
def where(request: pytest.FixtureRequest) -> str:
    """Triton's interpreter on the CPU, or a GPU."""
    return str(request.param)


def views(
    where: str, order: str = "LBHNC", dtype: str = "bfloat16", heads: int = 3, tokens: int = 16, content: int = 32,
    shift: int = 0,
) -> list[torch.Tensor]:  # fmt: skip
    """Layers `[block, head, token, content]` of random bits, `shift` elements into their memory."""
    shape, axes = (LAYERS, BLOCKS, heads, tokens, content), ORDERS[order]
    physical = [shape[axis] for axis in axes]
    size = torch.Size(physical).numel() + shift
    memory = torch.randint(0, 256, (size * DTYPES[dtype].itemsize,), dtype=torch.uint8).view(DTYPES[dtype])
    return list(memory.to(where)[shift:].view(physical).permute([axes.index(axis) for axis in range(5)]))


def copied(layers: Sequence[torch.Tensor]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The memory that layers are views of, copied, as uint8, and the same views of it."""
    memory = torch.empty(0, dtype=torch.uint8, device=layers[0].device).set_(layers[0].untyped_storage()).clone()
    whole = memory.view(layers[0].dtype)
    return memory, [whole.as_strided(each.shape, each.stride(), each.storage_offset()) for each in layers]


def gathered(blocks: PagedBlocks, table: Sequence[int]) -> torch.Tensor:
    """A chunk of blocks, in memory that held something else."""
    chunk = blocks.chunk(len(table)).fill_(0xA5)
    blocks.gather(blocks.table(table), chunk)
    return chunk


def scatter(blocks: PagedBlocks, table: Sequence[int], chunk: torch.Tensor) -> None:
    blocks.scatter(blocks.table(table), chunk)


def check(layers: Sequence[torch.Tensor], planes: int) -> None:
    """The kernel does what torch does, either way, and touches nothing beside."""
    table = [4, 0, -1, 5]
    reference, kernel = (PagedBlocks(layers, planes, kernel=each) for each in (False, True))
    due = gathered(reference, table)
    assert due.nbytes == reference.chunk_bytes(4)
    assert torch.equal(gathered(kernel, table), due)
    chunk = torch.randint(0, 256, (due.nbytes,), dtype=torch.uint8).to(due.device)
    (ours, mine), (theirs, others) = copied(layers), copied(layers)
    scatter(PagedBlocks(mine, planes, kernel=True), [3, 1, -1, 2], chunk)
    scatter(PagedBlocks(others, planes, kernel=False), [3, 1, -1, 2], chunk)
    assert torch.equal(ours, theirs)
    found = gathered(PagedBlocks(others, planes, kernel=True), [3, 1, 0, 2])
    rows = [each.view(LAYERS * planes, 4, -1)[:, [0, 1, 3]] for each in (found, chunk)]
    assert torch.equal(*rows)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("order", ORDERS)
def test_layouts_and_dtypes(where: str, order: str, dtype: str) -> None:
    check(views(where, order, dtype), 2)


@pytest.mark.parametrize(
    ("heads", "tokens", "content", "planes"),
    [(1, 16, 576, 1), (8, 16, 256, 2), (1, 64, 128, 2), (2, 32, 160, 2), (5, 16, 6, 2), (1, 1, 2, 2), (3, 48, 96, 1)],
)
def test_shapes(where: str, heads: int, tokens: int, content: int, planes: int) -> None:
    check(views(where, "LBNHC", heads=heads, tokens=tokens, content=content), planes)
    check(views(where, "BLHNC", heads=heads, tokens=tokens, content=content), planes)


@pytest.mark.parametrize("shift", [1, 2, 4])
def test_layers_that_begin_anywhere(where: str, shift: int) -> None:
    check(views(where, shift=shift), 2)


def test_layers_with_room_between_their_blocks(where: str) -> None:
    wide = views(where, heads=6, content=96)
    check([layer[:, 1:4, :, 32:64] for layer in wide], 2)


@pytest.mark.parametrize("kernel", [False, True])
def test_some_layers_at_a_time(where: str, kernel: bool) -> None:
    layers = views(where)
    blocks = PagedBlocks(layers, 2, kernel=kernel)
    table, due = blocks.table([4, -1, 2]), gathered(blocks, [4, -1, 2])
    chunk, half = torch.full_like(due, 0xA5), due.nbytes // 2
    blocks.gather(table, chunk, range(1, 2))
    assert torch.equal(chunk[half:], due[half:])
    assert bool((chunk[:half] == 0xA5).all())
    before = [layer.view(torch.int16).clone() for layer in layers]
    blocks.scatter(blocks.table([1, 3, 5]), due, range(1))
    assert torch.equal(layers[1].view(torch.int16), before[1])
    assert torch.equal(layers[0].view(torch.int16)[[1, 5]], before[0][[4, 2]])
    assert not layers[0].view(torch.int16)[3].any()


def test_more_blocks_than_are_copied_together(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where layers lie inside blocks a launch goes by groups of blocks, the last of which may be short."""
    from kvstore.tiers.hbm import blocks_kernel

    monkeypatch.setattr(blocks_kernel, "TOGETHER", 3)
    for order in ("BLHNC", "LBNHC"):
        check(views(where, order), 2)


@pytest.mark.parametrize("planes", [1, 2])
def test_what_a_chunk_is(planes: int) -> None:
    layers, table = views("cpu", "LBNHC"), [5, 2]
    dim = 32 // planes
    found = gathered(PagedBlocks(layers, planes, kernel=False), table)
    rows = found.view(torch.int16).view(LAYERS, planes, len(table), 16, 3, dim)
    for layer, plane, (n, block) in itertools.product(range(LAYERS), range(planes), enumerate(table)):
        own = layers[layer].view(torch.int16)[block, :, :, plane * dim : (plane + 1) * dim]
        assert torch.equal(rows[layer, plane, n], own.transpose(0, 1))


def test_a_table_of_no_blocks(where: str) -> None:
    for kernel in (False, True):
        layers = views(where)
        before = [layer.view(torch.int16).clone() for layer in layers]
        blocks = PagedBlocks(layers, 2, kernel=kernel)
        assert gathered(blocks, []).nbytes == 0
        scatter(blocks, [], torch.empty(0, dtype=torch.uint8, device=where))
        assert all(torch.equal(a.view(torch.int16), b) for a, b in zip(layers, before, strict=True))


def test_what_does_not_fit_is_refused(where: str) -> None:
    for kernel in (False, True):
        blocks = PagedBlocks(views(where), 2, kernel=kernel)
        for table in ([BLOCKS], [0, -2]):
            with pytest.raises(IndexError, match=f"of {BLOCKS}"):
                blocks.table(table)
        chunk, one = gathered(blocks, [1, 2]), blocks.table([1])
        with pytest.raises(InvalidArgument, match="in one piece"):
            blocks.scatter(one, chunk)
        with pytest.raises(InvalidArgument, match="in one piece"):
            blocks.gather(one, chunk)
    mixed = [views(where)[0], views(where, "LBNHC")[1]]
    with pytest.raises(InvalidArgument, match="same strides"):
        PagedBlocks(mixed, 2, kernel=True)
    with pytest.raises(InvalidArgument, match="several dtypes"):
        PagedBlocks([views(where)[0], views(where, dtype="float16")[1]], 2)
    with pytest.raises(InvalidArgument, match="equal halves"):
        PagedBlocks(views(where, content=33), 2)


def test_layers_that_lie_in_different_ways_are_left_to_torch(where: str) -> None:
    mixed = [views(where)[0], views(where, "LBNHC")[1]]
    blocks = PagedBlocks(mixed, 2)
    chunk = gathered(blocks, [2, 3])
    scatter(blocks, [0, 1], chunk)
    assert torch.equal(gathered(blocks, [0, 1]), chunk)


@pytest.mark.parametrize("capability", [80, 90])
def test_machine_code(capability: int) -> None:
    """The kernel compiles for GPUs that are not here, and loads and stores 16 bytes at a time."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("compile_kernel.py")), str(capability)],
        env=os.environ | {"TRITON_INTERPRET": "0"}, capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    for each in json.loads(done.stdout):
        assert each["cubin_bytes"] > 1000
        assert each["wide_loads"] >= 1, each
        assert each["wide_stores"] >= 1, each
