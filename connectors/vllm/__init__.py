"""vLLM: `KVStoreConnector`, a KV connector (v1) that keeps prefixes in the store.

    --kv-transfer-config '{"kv_connector": "KVStoreConnector", "kv_role": "kv_both",
                           "kv_load_failure_policy": "recompute",
                           "kv_connector_extra_config": {"server": "127.0.0.1:7420"}}'

`register` is the `vllm.general_plugins` entry point, which makes the name known; without it add
`"kv_connector_module_path": "kvstore.connectors.vllm"`. Options and limits: docs/vllm.md.
"""

from __future__ import annotations

from typing import Any

NAME = "KVStoreConnector"


def register() -> None:
    """Make `KVStoreConnector` known to vLLM by name. May be called more than once."""
    from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory

    if NAME not in KVConnectorFactory._registry:
        KVConnectorFactory.register_connector(NAME, "kvstore.connectors.vllm._connector", NAME)


def __getattr__(name: str) -> Any:
    """The connector's class on first use: vLLM takes seconds to import."""
    if name == NAME:
        from kvstore.connectors.vllm._connector import KVStoreConnector

        return KVStoreConnector
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
