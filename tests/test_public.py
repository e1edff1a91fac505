"""What `import kvstore` offers, and what it does not drag in."""

from __future__ import annotations

import subprocess
import sys

import kvstore


def test_the_public_surface() -> None:
    assert sorted(kvstore.__all__) == kvstore.__all__
    assert all(hasattr(kvstore, name) for name in kvstore.__all__)
    errors = {name for name in kvstore.__all__ if isinstance(getattr(kvstore, name), type)}
    assert {
        "Client", "Config", "DramConfig", "NvmeConfig", "NamespaceConfig", "ServerConfig", "KVSpec", "KVGroup", "Part",
        "Chain", "ChunkRef", "Extras", "Hit", "Want", "Ack", "Fidelity", "KVStoreError",
    } <= errors  # fmt: skip


def test_every_exception_is_public_and_has_a_status_and_an_exit_code() -> None:
    def tree(kind: type[kvstore.KVStoreError]) -> set[type[kvstore.KVStoreError]]:
        return {kind}.union(*(tree(each) for each in kind.__subclasses__()))

    for error in tree(kvstore.KVStoreError):
        if error.__module__ == "kvstore.errors":
            assert getattr(kvstore, error.__name__) is error
        assert error.status.isupper()
        assert 1 <= error.exit_code <= 9


def test_import_is_light() -> None:
    code = "import sys, kvstore; print([m for m in ('torch', 'grpc', 'pyarrow', 'rich') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.strip() == "[]"
