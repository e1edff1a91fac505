"""The artefacts of a store: what its codecs have learnt of models, by digest, in memory and beside the records.

They belong to no namespace, count towards no quota and are never evicted. One is on disk, flushed, before the first
record that names it, and is removed when no record names it any more and nobody configures it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kvstore.codecs import Artefact, Block
from kvstore.codecs.shipped import fits
from kvstore.errors import ConfigError, Corrupt, NotFound, SpecMismatch, StorageError
from kvstore.forms import Named
from kvstore.spec import KVSpec

SUFFIX = ".safetensors"
DIGEST_BYTES = 16


class Artefacts:
    """All artefacts of one store. Any thread may call."""

    def __init__(self, folder: Path | None, files: Iterable[Path]) -> None:
        """`folder` is where they are kept (none: in memory alone), `files` those that may encode, the first first.

        `ConfigError` for a file that is none.
        """
        self._folder = folder
        self._lock = threading.Lock()
        self._known: dict[bytes, Artefact] = {}
        self._kept: set[bytes] = set()
        self._chosen: dict[Any, Artefact | None] = {}
        self._current = [_load(path) for path in files]
        for each in self._current:
            self._known[each.digest] = each

    def choose(self, form: Named, block: Block, spec: KVSpec) -> Artefact | None:
        """The artefact to encode blocks of a spec with; None where there is none of its model, shape and rotation."""
        shape = (block.layers, block.planes, block.heads, block.dim, block.first_head)
        key = (form.codec.number, form.level, spec.digest, shape)
        if key not in self._chosen:
            self._chosen[key] = self._choose(form, block, spec)
        return self._chosen[key]

    def get(self, digest: bytes) -> Artefact:
        """An artefact by its digest. `NotFound` where it is not here, or not what it was."""
        found = self._known.get(digest)
        if found is None:
            found = self._read(digest)
            with self._lock:
                found = self._known.setdefault(digest, found)
        return found

    def keep(self, artefact: Artefact) -> None:
        """Have an artefact on disk, as far as there is one, before a record names it. `StorageError`."""
        if self._folder is None or artefact.digest in self._kept:
            return
        with self._lock:
            if artefact.digest in self._kept:
                return
            path = self._path(artefact.digest)
            try:
                if not path.is_file() or path.read_bytes() != artefact.data:
                    _write(path, artefact.data)
            except OSError as error:
                raise StorageError(f"the artefact {path} cannot be written: {error.strerror or error}") from error
            self._kept.add(artefact.digest)

    def take(self, data: bytes, digest: bytes) -> None:
        """Have an artefact that another host has made, from now on like any here. `NotFound` unless it is that one."""
        try:
            found = Artefact.from_bytes(data)
        except Corrupt as error:
            raise NotFound(f"the artefact {digest.hex()} of another host is none: {error}") from None
        if found.digest != digest:
            raise NotFound(f"the artefact {digest.hex()} of another host is {found.digest.hex()}")
        self.keep(found)
        with self._lock:
            self._known.setdefault(digest, found)

    def stale(self) -> frozenset[bytes]:
        """Digests of what is here and neither configured nor shipped: needed by older records, or by none."""
        with self._lock:
            known = set(self._known)
        return frozenset(known | self._on_disk()) - {each.digest for each in self._current}

    def remove(self, digests: Iterable[bytes]) -> None:
        """Forget artefacts that nothing names any more."""
        with self._lock:
            for digest in digests:
                self._known.pop(digest, None)
                self._kept.discard(digest)
                if self._folder is not None:
                    self._path(digest).unlink(missing_ok=True)

    def stats(self) -> Sequence[Mapping[str, Any]]:
        """All of them as plain data; `current` ones encode what comes. What was not read has no kind and no model."""
        current, found = {each.digest for each in self._current}, []
        with self._lock:
            known = dict(self._known)
        for digest in sorted({*known, *self._on_disk()}):
            each = known.get(digest)
            if each is None:
                kind, model, nbytes = "", "", self._size(digest)
            else:
                kind, model, nbytes = each.kind, each.model.name, len(each.data)
            told = {"digest": digest.hex(), "kind": kind, "model": model, "bytes": nbytes, "current": digest in current}
            found.append(told)
        return found

    def _size(self, digest: bytes) -> int:
        try:
            return self._path(digest).stat().st_size
        except OSError:
            return 0

    def _choose(self, form: Named, block: Block, spec: KVSpec) -> Artefact | None:
        level = form.codec.levels[form.level]
        for each in self._current:
            levels = each.facts.get("levels")
            if each.kind != form.codec.artefact_kind or (levels and level not in levels):
                continue
            if not fits(each, spec):
                continue
            try:
                each.check(block)
            except SpecMismatch:
                continue
            return each
        return None

    def _read(self, digest: bytes) -> Artefact:
        if len(digest) != DIGEST_BYTES or self._folder is None:
            raise NotFound(f"the artefact {digest.hex()} is not here")
        path = self._path(digest)
        try:
            found = Artefact.from_bytes(path.read_bytes())
        except OSError as error:
            raise NotFound(f"the artefact {digest.hex()} is not here: {path}: {error.strerror or error}") from None
        except Corrupt as error:
            raise NotFound(f"the artefact {digest.hex()} is damaged: {path}: {error}") from None
        if found.digest != digest:
            raise NotFound(f"the artefact {digest.hex()} is damaged: {path} has the digest {found.digest.hex()}")
        return found

    def _path(self, digest: bytes) -> Path:
        assert self._folder is not None
        return self._folder / (digest.hex() + SUFFIX)

    def _on_disk(self) -> set[bytes]:
        if self._folder is None or not self._folder.is_dir():
            return set()
        found = set()
        for path in self._folder.glob(f"*{SUFFIX}"):
            name = path.name.removesuffix(SUFFIX)
            if len(name) == 2 * DIGEST_BYTES and all(each in "0123456789abcdef" for each in name):
                found.add(bytes.fromhex(name))
        return found


def _load(path: Path) -> Artefact:
    try:
        return Artefact.load(path)
    except OSError as error:
        raise ConfigError(f"codecs.artefacts: {path}: {error.strerror or error}") from None
    except Corrupt as error:
        raise ConfigError(f"codecs.artefacts: {path}: {error}") from None


def _write(path: Path, data: bytes) -> None:
    """A file that is whole or not there, flushed with its folder."""
    path.parent.mkdir(mode=0o700, exist_ok=True)
    beside = path.with_suffix(".new")
    with open(beside, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    beside.rename(path)
    for folder in (path.parent, path.parent.parent):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
