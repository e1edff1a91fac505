"""What stays: a policy orders chunks and names the next victim.

A policy sees chunk rows of the index, admissions and hits; it never touches bytes. One instance serves one
namespace in one tier, since memory freed for one tenant is of no use to another. The simulator and the store run
the same native classes (`codecs/native/policy.hpp`).
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from kvstore import _native
from kvstore.config import Config
from kvstore.errors import ConfigError
from kvstore.nearest import nearest

Rows: TypeAlias = npt.NDArray[np.uint32] | npt.NDArray[np.int64]
Policy: TypeAlias = _native.Policy
LRU = "lru"
POLICIES = tuple(_native.policy_names())


def check_policy(name: str, key: str) -> str:
    """The name of a policy as it stands in a configuration; `ConfigError` for one that this build does not have."""
    if name not in POLICIES:
        raise ConfigError(f"{key} = {name!r}: there is no such policy{nearest(name, POLICIES)}")
    return name


def check_policies(config: Config) -> None:
    """`ConfigError` where a store or a namespace names a policy that this build does not have."""
    check_policy(config.policy, "store.policy")
    for each in config.namespaces:
        if each.policy is not None:
            check_policy(each.policy, f"policy of namespace {each.name!r}")
