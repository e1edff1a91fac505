"""What the native ways in and out (`kvstore._native.StagedPuts`, `PlainGets`, `PeerReads`) are told about the store.

Puts: what is stored raw in DRAM and acknowledged there, of a namespace without a quota and a spec without windows,
while nobody watches. All else, and what turns out not to be new, goes the general way (`kvstore.writer`). Gets: one
whole part that lies raw and exact in DRAM; all else is `kvstore.transfer`'s. Reads of other servers: what lies exact in
DRAM, in any form; all else is `kvstore.records`' and `kvstore.objects`'.
"""

from __future__ import annotations

from kvstore import _native
from kvstore.catalog import Scope
from kvstore.core import DRAM, Core
from kvstore.record import Entry, fixed_header
from kvstore.spec import Part

_NO_KEY = bytes(32)


def teach(core: Core, scope: Scope, puts: _native.StagedPuts, part: Part, tokens: int) -> None:
    """Have puts of such a part taken natively, if there is nothing special about it."""
    namespace, geometry = scope.namespace, scope.geometry(part, tokens)
    with core.lock:
        order = core.usage.policy(DRAM, namespace)
    if namespace.quota or scope.windowed or core.coder.put_form(scope) is not None:
        return
    entry = Entry(_NO_KEY, _NO_KEY, part, 0, tokens, geometry.nbytes, geometry.nbytes, geometry.total, 0)
    puts.add_shape(
        scope.spec.digest, part.pack(), tokens,
        core.intake, core.dram.holdings(namespace.digest), order, namespace.tally,
        scope.number, fixed_header(geometry.header, len(geometry.offsets), entry, scope.spec.digest, namespace.digest),
        geometry.header, geometry.nbytes, geometry.total, geometry.offsets, geometry.lengths,
    )  # fmt: skip


def teach_gets(core: Core, scope: Scope, gets: _native.PlainGets) -> None:
    """Have gets of a spec's parts answered natively."""
    gets.add_scope(scope.spec.digest, part_scope(core, scope))


def part_scope(core: Core, scope: Scope) -> _native.PartScope:
    """Where native code finds the parts of a spec, and tells that they were used."""
    namespace = scope.namespace
    with core.lock:
        orders = core.usage.orders(namespace)
    return _native.PartScope(
        core.intake, core.dram.holdings(namespace.digest), namespace.tally, orders, scope.number, namespace.digest,
        scope.packed_parts, scope.packed_headers,
    )  # fmt: skip
