"""A model's keys and values of a text, computed once and kept in the cache folder.

A file holds what a bfloat16 cache would: keys as attention sees them (rotated), and values.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kvstore.calibrate.models import Rotation, Subject
from kvstore.demo.models import cache_root

Bits = npt.NDArray[np.uint16]
Floats = npt.NDArray[np.float32]
FOLLOWING = 256


@dataclass(frozen=True, eq=False)
class Captured:
    """What one text left in a model: `kv`, bfloat16 bits `[layer, 2, token, head, dim]`."""

    name: str
    ids: tuple[int, ...]
    kv: Bits


def capture(subject: Subject, name: str, ids: Sequence[int]) -> Captured:
    """Run the model over a text, or find what an earlier run left."""
    digest = hashlib.sha256(np.asarray(ids, "<u4").tobytes()).hexdigest()[:16]
    path = cache_root() / "kv" / f"{subject.name}-{subject.weights}" / f"{digest}.kv.npy"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, _run(subject, ids))
    return Captured(name, tuple(ids), np.load(path, mmap_mode="r"))


def context_of(document: Captured) -> int:
    """How many tokens of a document are cached to predict the others: all but 256, or half of a short one."""
    return max(len(document.ids) - FOLLOWING, len(document.ids) // 2)


def values_of(bits: Bits) -> Floats:
    """bfloat16 bits as float32."""
    widened: Floats = (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return widened


def bits_of(values: Floats) -> Bits:
    """float32 rounded to bfloat16, to the nearest, ties to even. Finite values only."""
    raw = np.ascontiguousarray(values, np.float32).view(np.uint32)
    odd = (raw >> np.uint32(16)) & np.uint32(1)
    rounded: Bits = ((raw + np.uint32(0x7FFF) + odd) >> np.uint32(16)).astype(np.uint16)
    return rounded


def rotate(keys: Floats, rotation: Rotation, *, position: int = 0, back: bool = False) -> Floats:
    """Keys `[token, head, dim]` at consecutive positions, rotated, or `back` to before their rotation."""
    half = len(rotation.inverse)
    angle = np.outer(np.arange(position, position + len(keys)), rotation.inverse.astype(np.float64))
    scale = 1 / rotation.scale if back else rotation.scale
    cos = (np.cos(angle) * scale).astype(np.float32)[:, None]
    sin = (np.sin(-angle if back else angle) * scale).astype(np.float32)[:, None]
    first, second = keys[..., :half], keys[..., half : 2 * half]
    turned = keys.copy()
    turned[..., :half] = first * cos - second * sin
    turned[..., half : 2 * half] = second * cos + first * sin
    return turned


def _run(subject: Subject, ids: Sequence[int]) -> Bits:
    import torch
    from transformers import DynamicCache

    cache = DynamicCache()
    with torch.inference_mode():
        subject.model(torch.tensor([list(ids)]), past_key_values=cache, logits_to_keep=1)
    planes = [(layer.keys, layer.values) for layer in cache.layers]
    return bits_of(np.stack([np.stack([plane[0].transpose(0, 1).numpy() for plane in pair]) for pair in planes]))


def _write(path: Path, array: npt.NDArray[Any]) -> None:
    """Whole or not at all: a run that is cut off leaves no half of a file."""
    descriptor, scratch = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            np.save(file, array)
        Path(scratch).rename(path)
    except BaseException:
        Path(scratch).unlink()
        raise
