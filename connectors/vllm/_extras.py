"""What makes equal tokens mean different KV: adapters, salts, images."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvstore.errors import InvalidArgument
from kvstore.keys import Extras

_PIECE = 1 << 20
Signature = tuple[tuple[str, int, int], ...]


@dataclass(frozen=True, slots=True)
class Origin:
    """What a request says about itself, taken in the scheduler's thread; the files behind it are read elsewhere."""

    lora: tuple[int, str, bool] | None  # id, path, whether it may be replaced in place
    salt: str
    multimodal: tuple[tuple[int, int, bytes], ...]

    @classmethod
    def of(cls, request: Any) -> Origin:
        """Raises `InvalidArgument` for a request whose KV has no key: a prompt given as embeddings."""
        if request.prompt_embeds is not None:
            raise InvalidArgument("a prompt of embeddings has no token ids to be found by")
        given = request.lora_request
        lora = None if given is None else (given.lora_int_id, given.lora_path, bool(given.load_inplace))
        items = []
        for feature in request.mm_features or ():
            digest = hashlib.sha256(str(feature.identifier).encode()).digest()
            items.append((feature.mm_position.offset, feature.mm_position.length, digest))
        return cls(lora, request.cache_salt or "", tuple(items))


class Adapters:
    """Digests of LoRA adapters' files, each read once.

    An adapter whose files change while the engine runs has no digest any more: the engine may hold either.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[int, str], tuple[Signature, bytes]] = {}
        self._lock = threading.Lock()

    def extras(self, origin: Origin) -> Extras:
        """The extras of a key. Raises `InvalidArgument` where an adapter cannot be told by its content."""
        lora = b"" if origin.lora is None else self._digest(*origin.lora)
        return Extras(lora, origin.salt, origin.multimodal)

    def _digest(self, number: int, path: str, in_place: bool) -> bytes:
        folder = Path(path)
        if in_place or not folder.is_dir():
            raise InvalidArgument(
                f"the adapter at {path!r} cannot be told by its content: no folder, or loaded in place"
            )
        files = sorted(each for each in folder.iterdir() if each.is_file() and each.name.startswith("adapter"))
        signature = tuple((each.name, each.stat().st_size, each.stat().st_mtime_ns) for each in files)
        with self._lock:
            known = self._known.get((number, path))
            if known is None:
                known = self._known[number, path] = (signature, _hash(files))
        if known[0] != signature or not files:
            raise InvalidArgument(f"the adapter at {path!r} has changed since the engine first used it")
        return known[1]


def _hash(files: list[Path]) -> bytes:
    digest = hashlib.sha256(b"kvstore/lora/1\0")
    for each in files:
        digest.update(f"{each.name}\0{each.stat().st_size}\0".encode())
        with each.open("rb") as file:
            while piece := file.read(_PIECE):
                digest.update(piece)
    return digest.digest()
