"""The plainest get, of one whole part, over one line: in native code from the question to the last checksum.

Everything else that the server may answer (failures, encoded parts, what is not as expected) is left to the general
way, which reads the same answer.
"""

from __future__ import annotations

from collections.abc import Sequence

from kvstore import wire
from kvstore.api import Fidelity, Want
from kvstore.channels.arriving import Groups
from kvstore.channels.control import get_request, plain_request
from kvstore.channels.lines import Lines
from kvstore.channels.receive import Receiver, damaged_groups
from kvstore.channels.stream import Stream
from kvstore.decoding import FindArtefact
from kvstore.errors import KVStoreError
from kvstore.places import pack_items
from kvstore.spec import KVSpec
from kvstore.v1 import kvstore_pb2 as pb


def is_plain(spec: KVSpec, wants: Sequence[Want]) -> bool:
    """Whether a get asks for one whole part."""
    if len(wants) != 1 or wants[0].layers is not None:
        return False
    want = wants[0]
    return want.out.nbytes == Groups.of(spec, want.part, want.ref.tokens).ends[-1] and not want.out.readonly


def fetch_one(
    lines: Lines, line: Stream, spec: KVSpec, want: Want, fidelity: Fidelity, verify: bool, find: FindArtefact
) -> KVStoreError | None:
    """Read one whole part into its destination; what is wrong with it. Raises what ends the call."""
    item = pack_items(((want.ref, want.part),))
    message = (
        get_request(spec, [want], fidelity, verify)
        if verify or fidelity is not Fidelity.EXACT
        else plain_request(spec, item)
    )
    line.in_step = False
    found = line.fetch(pb.METHOD_GET, message, Groups.of(spec, want.part, want.ref.tokens).raw, item, want.out)
    if isinstance(found, list):
        line.in_step = True
        return damaged_groups(found, want.ref.key) if found else None
    frame = lines.checked(line, found)
    line.in_step = False
    receiver = Receiver(spec, (want,), (0,), find)
    receiver.begin(wire.parse(pb.GetResponse, frame.message).head)
    receiver.read(frame.payload, line.read_into)
    line.in_step = True
    return receiver.outcomes[0]
