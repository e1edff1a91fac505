"""What stays: a policy orders chunks and names the next victim.

A policy sees chunk rows of the index, admissions and hits; it never touches bytes. One instance serves one
namespace in one tier, since memory freed for one tenant is of no use to another. The simulator and the store run
the same native classes (`codecs/native/policy.hpp`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from kvstore import _native

Rows: TypeAlias = npt.NDArray[np.uint32] | npt.NDArray[np.int64]
Policy: TypeAlias = _native.Policy
POLICIES = tuple(_native.policy_names())


def victims(policy: Policy, after: int = -1) -> Iterator[int]:
    """Rows from the one that should go first, or from the one that follows `after` if that is still here.

    The current row may be removed while iterating.
    """
    row = policy.victim(after)
    while row >= 0:
        following = policy.victim(row)
        yield row
        row = following
