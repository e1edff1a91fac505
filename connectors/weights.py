"""What names a model's weights where nothing else does: a digest over their files."""

from __future__ import annotations

import hashlib
from pathlib import Path

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
SAMPLES, SAMPLE_BYTES = 64, 4096


def weights_digest(model: str, revision: str | None) -> str:
    """16 hex digits over names, sizes and evenly spread samples of a model's weight files, and its configuration.

    `model` is a path or a name of the hub whose files are in its cache. Empty where no weights are found.
    """
    place = _place(model, revision)
    files = sorted(place.iterdir()) if place is not None and place.is_dir() else [place] if place else []
    if not any(each.suffix in WEIGHTS for each in files):
        return ""
    digest = hashlib.sha256(b"kvstore/model-files/1\0")
    for each in files:
        if each.suffix in WEIGHTS:
            _sample(digest, each)
        elif each.name == "config.json":
            digest.update(b"config\0" + hashlib.sha256(each.read_bytes()).digest())
    return digest.hexdigest()[:16]


def _sample(digest: hashlib._Hash, path: Path) -> None:
    size = path.stat().st_size
    digest.update(f"{path.name}\0{size}\0".encode())
    with path.open("rb") as file:
        for n in range(SAMPLES):
            file.seek(max(0, size - SAMPLE_BYTES) * n // (SAMPLES - 1))
            digest.update(file.read(SAMPLE_BYTES))


def _place(name: str, revision: str | None) -> Path | None:
    """Where a model's files are: a path, or the hub's cache."""
    if Path(name).exists():
        return Path(name)
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(name, revision=revision, local_files_only=True))
    except (ImportError, OSError, ValueError):  # no hub client, nothing in its cache, no name of the hub's
        return None
