"""The files that `put` reads and `get` writes: an array of all tokens as `.npy`, or the chunks' raw bytes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kvstore import arrays
from kvstore.errors import InvalidArgument, SpecMismatch
from kvstore.keys import ChunkRef
from kvstore.spec import OPAQUE, KVSpec, Part

Array = npt.NDArray[Any]


def read_json(path: str, what: str) -> Any:
    """The JSON in a file, or an `InvalidArgument` that names both."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidArgument(f"{what} {path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise InvalidArgument(f"{what} {path} is not JSON: {error}") from None


def read_parts(path: str, spec: KVSpec, part: Part, refs: Sequence[ChunkRef]) -> list[Array]:
    """One array per chunk from a file."""
    try:
        if path.endswith(".npy"):
            return _split(np.load(path, mmap_mode="r", allow_pickle=False), path, spec, part, refs)
        raw = np.fromfile(path, np.uint8)
    except OSError as error:
        raise InvalidArgument(f"{path} cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise InvalidArgument(f"{path} is not a NumPy array: {error}") from None
    sizes = [spec.part_bytes(part, ref.tokens) for ref in refs]
    if raw.nbytes != sum(sizes):
        raise SpecMismatch(f"{path} has {raw.nbytes} bytes; {len(refs)} chunks of this part have {sum(sizes)}")
    return np.split(raw, np.cumsum(sizes)[:-1])


def write_parts(path: str, spec: KVSpec, part: Part, found: Sequence[Array]) -> int:
    """Write the arrays of chunks; how many bytes of payload there were."""
    try:
        if path.endswith(".npy"):
            np.save(path, np.concatenate(found, axis=_token_axis(spec, part)), allow_pickle=False)
        else:
            with Path(path).open("wb") as file:
                for array in found:
                    file.write(array.data)
    except OSError as error:
        raise InvalidArgument(f"{path} cannot be written: {error.strerror or error}") from None
    return sum(array.nbytes for array in found)


def _split(whole: Array, path: str, spec: KVSpec, part: Part, refs: Sequence[ChunkRef]) -> list[Array]:
    axis = _token_axis(spec, part)
    shape = spec.part_shape(part, sum(ref.tokens for ref in refs))
    dtype = arrays.numpy_dtype(spec.dtype)
    if whole.shape != shape or whole.dtype != dtype:
        raise SpecMismatch(
            f"{path} is {whole.dtype} {list(whole.shape)}; {len(refs)} chunks of this part are {dtype} {list(shape)}"
        )
    cuts = np.cumsum([ref.tokens for ref in refs])[:-1]
    return [np.ascontiguousarray(piece) for piece in np.split(whole, cuts, axis)]


def _token_axis(spec: KVSpec, part: Part) -> int:
    if spec.layout == OPAQUE:
        raise InvalidArgument("an opaque layout has no token axis; use a file of raw bytes (any name but .npy)")
    return 1 if spec.groups[part.group].latent_dim else spec.layout.index("token")
