"""vLLM: `KVStoreConnector`, a KV connector (v1) that keeps prefixes in the store, and `KVStoreTier`, a secondary tier.

    --kv-transfer-config '{"kv_connector": "KVStoreConnector", "kv_role": "kv_both",
                           "kv_load_failure_policy": "recompute",
                           "kv_connector_extra_config": {"server": "127.0.0.1:7420"}}'

`register` is the `vllm.general_plugins` entry point, which makes both names known; without it add
`"kv_connector_module_path": "kvstore.connectors.vllm"`, or `"module_path"` for the tier. Options and limits:
docs/vllm.md.
"""

from __future__ import annotations

from typing import Any

NAME = "KVStoreConnector"
TIER = "KVStoreTier"


def register() -> None:
    """Make `KVStoreConnector` and `KVStoreTier` known to vLLM by name. May be called more than once."""
    from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
    from vllm.v1.kv_offload.tiering.factory import SecondaryTierFactory

    if NAME not in KVConnectorFactory._registry:
        KVConnectorFactory.register_connector(NAME, "kvstore.connectors.vllm._connector", NAME)
    if TIER not in SecondaryTierFactory._registry:
        SecondaryTierFactory.register_tier(TIER, "kvstore.connectors.vllm.tier", TIER)


def __getattr__(name: str) -> Any:
    """The connector's or the tier's class on first use: vLLM takes seconds to import."""
    if name == NAME:
        from kvstore.connectors.vllm._connector import KVStoreConnector

        return KVStoreConnector
    if name == TIER:
        from kvstore.connectors.vllm.tier import KVStoreTier

        return KVStoreTier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
