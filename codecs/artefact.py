"""Artefacts: what a codec has learnt of one model, in a safetensors file that is addressed by its digest.

The file's metadata holds one entry, `kvstore`: JSON with `kind` (which codec it is for), `model` (shapes that must
fit) and `facts` (how it was made). Arrays are plain tensors. The digest is the first 16 bytes of the file's SHA-256.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from kvstore.codecs.block import Block
from kvstore.errors import Corrupt, SpecMismatch

T = TypeVar("T")
_ENTRY = "kvstore"
MAX_BYTES = 1 << 31


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What a block must be for an artefact to fit: per model layer its planes, heads (of the whole model) and dim."""

    name: str
    layers: Mapping[int, tuple[int, int, int]]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"name": self.name, "layers": {str(layer): list(shape) for layer, shape in self.layers.items()}}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelShape:
        """The inverse of `to_dict`."""
        layers = {int(layer): (int(p), int(h), int(d)) for layer, (p, h, d) in data["layers"].items()}
        return cls(str(data["name"]), layers)


@dataclass(frozen=True, eq=False)
class Artefact:
    """Tables and transforms of one model. `kind` is a codec's `artefact_kind`."""

    kind: str
    model: ModelShape
    facts: Mapping[str, Any]
    arrays: Mapping[str, npt.NDArray[Any]]
    data: bytes
    digest: bytes
    _made: dict[Any, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def build(
        cls, kind: str, model: ModelShape, facts: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]
    ) -> Artefact:
        """A new artefact; the same content has the same digest."""
        from safetensors.numpy import save

        entry = json.dumps(
            {"kind": kind, "model": model.to_dict(), "facts": dict(facts)}, sort_keys=True, separators=(",", ":")
        )
        return cls.from_bytes(
            save({name: np.ascontiguousarray(arrays[name]) for name in sorted(arrays)}, {_ENTRY: entry})
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Artefact:
        """Read an artefact; `Corrupt` if it is none. Nothing in it is executed."""
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            head = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
            entry = json.loads(head["__metadata__"][_ENTRY])
            model = ModelShape.from_dict(entry["model"])
            arrays = load(data)
            kind, facts = str(entry["kind"]), dict(entry["facts"])
        except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise Corrupt(f"this is no artefact of kvstore: {error}") from None
        for array in arrays.values():
            array.flags.writeable = False
        return cls(kind, model, facts, arrays, data, hashlib.sha256(data).digest()[:16])

    @classmethod
    def load(cls, path: Path) -> Artefact:
        """Read an artefact's file."""
        return cls.from_bytes(path.read_bytes())

    def check(self, block: Block) -> None:
        """Raise `SpecMismatch` unless this artefact is for a model of the block's shape."""
        for layer in block.layers:
            shape = self.model.layers.get(layer)
            fits = shape is not None and shape[0] == block.planes and shape[2] == block.dim
            if shape is None or not fits or block.first_head + block.heads > shape[1]:
                raise SpecMismatch(
                    f"the artefact {self.digest.hex()} is for {self.model.name}, whose layer {layer} is {shape} "
                    f"(planes, heads, dim); the block has {block.planes}, heads {block.first_head} to "
                    f"{block.first_head + block.heads}, {block.dim}"
                )

    def prepared(self, key: Any, make: Callable[[], T]) -> T:
        """What a codec derives from this artefact once (native tables and the like), kept with it."""
        found = self._made.get(key)
        if found is None:
            found = self._made.setdefault(key, make())
        made: T = found
        return made
