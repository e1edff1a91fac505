"""What the digests in records mean: one small JSON file per namespace and spec, durable before the first record.

And what the store asks a drive to keep for it, in files of its own.
"""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

from kvstore.errors import KVStoreError, StorageError
from kvstore.namespace import namespace_digest
from kvstore.spec import KVSpec
from kvstore.tiers.nvme.durable import as_storage_error, replace_file

VERSION = 1


class Catalog:
    """The files in `folder`, and which of them are known to be there."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._known: set[bytes] = set()

    def describe(self, namespace: str, spec: KVSpec) -> None:
        """Write what is not there yet. `TierFull`, `StorageError`."""
        name = namespace_digest(namespace)
        self._keep(name, f"namespace-{name.hex()}.json", {"name": namespace})
        self._keep(spec.digest, f"spec-{spec.digest.hex()}.json", {"spec": spec.to_dict()})

    def _keep(self, digest: bytes, file: str, content: dict[str, Any]) -> None:
        if digest in self._known:
            return
        path = self._folder / file
        try:
            with self._lock:  # two writers of one temporary file would tear it; this happens once per name
                replace_file(path, [json.dumps({"version": VERSION, **content}, indent=1).encode()])
        except OSError as error:
            raise as_storage_error(error, f"cannot write {path}") from error
        self._known.add(digest)

    def put_aside(self, name: str, data: bytes) -> None:
        """Write a file of the store's own. `TierFull`, `StorageError`."""
        path = self._folder / name
        try:
            with self._lock:
                replace_file(path, [data])
        except OSError as error:
            raise as_storage_error(error, f"cannot write {path}") from error

    def recall(self, name: str) -> list[bytes]:
        """That file, if it is there. `StorageError` if it cannot be read."""
        path = self._folder / name
        try:
            return [path.read_bytes()]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise as_storage_error(error, f"cannot read {path}") from error

    def load(self) -> tuple[dict[bytes, str], dict[bytes, KVSpec], list[str]]:
        """Names and specs by digest, and notes on files that could not be read."""
        names: dict[bytes, str] = {}
        specs: dict[bytes, KVSpec] = {}
        notes: list[str] = []
        for path in sorted(self._folder.glob("*.json")):
            try:
                data = json.loads(path.read_bytes())
                if data["version"] > VERSION:
                    raise StorageError(f"{path} is of version {data['version']}; use a newer kvstore")
                kind, _, digest = path.stem.partition("-")
                if kind == "namespace" and namespace_digest(data["name"]).hex() == digest:
                    names[bytes.fromhex(digest)] = data["name"]
                elif kind == "spec" and (spec := KVSpec.from_dict(data["spec"])).digest.hex() == digest:
                    specs[spec.digest] = spec
                else:
                    notes.append(f"{path.name} does not describe what its name says")
            except StorageError:
                raise
            except (OSError, ValueError, KeyError, TypeError, KVStoreError) as error:
                notes.append(f"{path.name} cannot be read ({error})")
        self._known.update(names, specs)
        return names, specs, notes
