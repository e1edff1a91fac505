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


@dataclass(frozen=True, eq=False)
class Captured:
    """What one text left in a model. `kv` is bfloat16 bits `[layer, 2, token, head, dim]`.

    `queries` is `[layer, head, dim, dim]`: the second moment of the queries of each KV head before rotation, the mean
    over its query heads and tokens.
    """

    name: str
    ids: tuple[int, ...]
    kv: Bits
    queries: Floats


def capture(subject: Subject, name: str, ids: Sequence[int]) -> Captured:
    """Run the model over a text, or find what an earlier run left."""
    digest = hashlib.sha256(np.asarray(ids, "<u4").tobytes()).hexdigest()[:16]
    folder = cache_root() / "kv" / f"{subject.name}-{subject.weights}"
    kv_path, query_path = folder / f"{digest}.kv.npy", folder / f"{digest}.queries.npy"
    if not (kv_path.is_file() and query_path.is_file()):
        folder.mkdir(parents=True, exist_ok=True)
        kv, queries = _run(subject, ids)
        _write(query_path, queries)
        _write(kv_path, kv)
    return Captured(name, tuple(ids), np.load(kv_path, mmap_mode="r"), np.load(query_path))


def values_of(bits: Bits) -> Floats:
    """bfloat16 bits as float32."""
    widened: Floats = (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return widened


def bits_of(values: Floats) -> Bits:
    """float32 rounded to bfloat16, to the nearest, ties to even. Finite values only."""
    raw = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded: Bits = ((raw + np.uint32(0x7FFF) + ((raw >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype(np.uint16)
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


def _run(subject: Subject, ids: Sequence[int]) -> tuple[Bits, Floats]:
    import torch
    from transformers import DynamicCache

    queries = np.zeros((subject.layers, subject.heads, subject.dim, subject.dim), np.float32)

    def watch(layer: int) -> Any:
        def seen(module: Any, inputs: Any, output: Any) -> None:
            del module, inputs
            # [1, token, head · dim], or [1, head, token, dim] after a norm of each head
            states = output[0] if output.dim() == 4 else output[0].unflatten(-1, (-1, subject.dim)).transpose(0, 1)
            groups = states.unflatten(0, (subject.heads, -1)).flatten(1, 2)
            queries[layer] = (groups.transpose(1, 2) @ groups / groups.shape[1]).numpy()

        attention = subject.attention(layer)
        return getattr(attention, "q_norm", attention.q_proj).register_forward_hook(seen)

    hooks = [watch(layer) for layer in range(subject.layers)]
    cache = DynamicCache()
    try:
        with torch.inference_mode():
            subject.model(torch.tensor([list(ids)]), past_key_values=cache, logits_to_keep=1)
    finally:
        for hook in hooks:
            hook.remove()
    made = [np.stack([each[0].transpose(0, 1).numpy() for each in (layer.keys, layer.values)]) for layer in cache.layers]
    return bits_of(np.stack(made)), queries


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
