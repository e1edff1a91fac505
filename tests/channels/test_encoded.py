"""What a client makes of frames that a server sends: checked, bounded, decoded, whatever they are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from kvstore import KVSpec, codecs, wire
from kvstore.api import Want
from kvstore.channels import artefacts
from kvstore.channels.receive import Receiver
from kvstore.codecs import Artefact, Block, Form, all_codecs
from kvstore.errors import Corrupt, NotFound, SpecMismatch
from kvstore.keys import Chain
from kvstore.record import Record, group_table
from kvstore.v1 import kvstore_pb2 as pb
from tests.store.codec_samples import learned_artefact, registered

SPEC = KVSpec.dense("Model", layers=5, kv_heads=2, head_dim=64, chunk_tokens=32)
REF = Chain.of(range(64), 32).refs[1]
PART = SPEC.part()
NBYTES = SPEC.part_bytes(PART, 32)


@pytest.fixture(autouse=True)
def known() -> Iterator[None]:
    with registered():
        yield


def array() -> np.ndarray[Any, Any]:
    found: np.ndarray[Any, Any] = np.random.default_rng(1).integers(0, 16, NBYTES // 2, np.uint16) | 0x3000
    return found


def encoded(name: str = "t-exact", artefact: Artefact | None = None) -> tuple[bytes, list[tuple[int, int]]]:
    """A container, and where its frames lie."""
    made = codecs.encode(array().tobytes(), Block.of(SPEC, PART, 32, 32), Form(all_codecs()[name], 0, artefact))
    return bytes(made.data), list(zip(made.offsets.tolist(), made.lengths.tolist(), strict=True))


def receive(
    data: bytes,
    ranges: list[tuple[int, int]],
    *,
    form: int = 901,
    layers: tuple[int, int] | None = None,
    announced: int | None = None,
    find: Any = None,
) -> tuple[Any, np.ndarray[Any, Any]]:
    """What comes of an item whose frames are `ranges` of `data`, their checksums as they should be."""
    from kvstore import _native

    columns = np.array(ranges, np.uint64).reshape(-1, 2)
    groups = group_table(ranges, _native.xxh3_128_many(data, columns[:, 0].copy(), columns[:, 1].copy()))
    record = Record(
        REF.key, REF.parent, SPEC.digest, bytes(16), PART, REF.position, 32, NBYTES, len(data), groups, form=form
    )
    out = np.zeros(NBYTES if layers is None else NBYTES // 5 * (layers[1] - layers[0]), np.uint8)
    first = ranges[0][0] if ranges else 0
    body = data[first : ranges[-1][0] + ranges[-1][1]] if ranges else b""
    head = pb.GetResponse.Head(
        record=wire.record_to_message(record, groups), bytes=len(body) if announced is None else announced
    )
    receiver = Receiver(SPEC, [Want(REF, PART, out.data, layers)], [0], find or _none)
    receiver.take(pb.GetResponse(head=head).SerializeToString())
    for start in range(0, len(body), 1000):
        receiver.take(pb.GetResponse(data=body[start : start + 1000]).SerializeToString())
    return receiver.outcomes[0], out


def _none(digest: bytes) -> Artefact:
    raise NotFound(f"the artefact {digest.hex()} is not here")


def test_frames_are_decoded_into_the_destination() -> None:
    data, ranges = encoded()
    problem, out = receive(data, ranges)
    assert problem is None
    assert out.tobytes() == array().tobytes()
    problem, out = receive(data, ranges[1:3], layers=(1, 3))
    assert problem is None
    assert out.tobytes() == array().tobytes()[NBYTES // 5 : 3 * NBYTES // 5]


def test_layers_are_cut_out_of_frames_that_join_several() -> None:
    data, ranges = encoded("t-lossy")
    problem, out = receive(data, ranges[:2], form=903, layers=(1, 3))
    assert problem is None
    assert out.tobytes() == (array() & 0xFF00).tobytes()[NBYTES // 5 : 3 * NBYTES // 5]


@pytest.mark.parametrize("keep", [0, 10, 63, 64, 65, 100])
def test_a_frame_that_is_cut_off_is_corrupt(keep: int) -> None:
    data, ranges = encoded()
    cut = data[: ranges[0][1]] + data[ranges[1][0] : ranges[1][0] + keep]
    problem, _ = receive(cut, [(0, len(cut))])
    assert isinstance(problem, Corrupt)


@pytest.mark.parametrize("seed", range(20))
def test_rubbish_with_the_right_checksums_is_corrupt(seed: int) -> None:
    data, ranges = encoded()
    dice = np.random.default_rng(seed)
    harmed = bytearray(data)
    for _ in range(4):
        harmed[int(dice.integers(0, len(data)))] ^= int(dice.integers(1, 256))
    problem, out = receive(bytes(harmed), ranges)
    assert isinstance(problem, Corrupt | SpecMismatch | NotFound) or out.tobytes() != array().tobytes()


def test_frames_that_lack_layers_are_corrupt() -> None:
    data, ranges = encoded()
    for some in (ranges[:4], ranges[1:]):
        problem, _ = receive(data, some)
        assert isinstance(problem, Corrupt)


@pytest.mark.parametrize(
    ("form", "announced", "words"),
    [
        (77, None, "in form 77, which nobody asked for"),
        (901, 1 << 40, "which nobody asked for"),
        (901, 0, "which nobody asked for"),
        (901, 100, "whose layer groups have"),
    ],
)
def test_what_is_announced_is_bounded(form: int, announced: int | None, words: str) -> None:
    data, ranges = encoded()
    with pytest.raises(SpecMismatch, match=words):
        receive(data, ranges, form=form, announced=announced)


def test_frames_with_gaps_between_them_are_refused() -> None:
    data, ranges = encoded()
    with pytest.raises(SpecMismatch, match="do not follow one another"):
        receive(data, [ranges[0], *ranges[2:]])


def test_an_artefact_that_nobody_has_is_a_miss_that_says_so() -> None:
    artefact = learned_artefact(SPEC)
    data, ranges = encoded("t-learned", artefact)
    problem, _ = receive(data, ranges, form=904)
    assert isinstance(problem, NotFound)
    assert artefact.digest.hex() in str(problem)
    problem, out = receive(data, ranges, form=904, find=lambda digest: artefact)
    assert problem is None
    assert out.tobytes() == (array() & 0xFF00).tobytes()


def test_artefacts_of_other_models_are_refused() -> None:
    artefact = learned_artefact(SPEC)
    data, ranges = encoded("t-learned", artefact)
    other = learned_artefact(KVSpec.dense("Model", layers=5, kv_heads=2, head_dim=32, chunk_tokens=32))
    problem, _ = receive(data, ranges, form=904, find=lambda digest: other)
    assert isinstance(problem, SpecMismatch)


@pytest.mark.parametrize(
    ("pieces", "kind"),
    [
        ([(10, b"12345"), (10, b"")], NotFound),
        ([(3, b"12345")], Corrupt),
        ([(1 << 40, b"12345")], Corrupt),
        ([(5, b"12345")], Corrupt),
    ],
)
def test_artefacts_that_come_wrong_are_refused(pieces: list[tuple[int, bytes]], kind: type[Exception]) -> None:
    answers = iter(pieces)
    with pytest.raises(kind):
        artefacts.fetch_file(bytes(16), lambda digest, offset: next(answers))


def test_artefacts_come_in_pieces() -> None:
    data, digest = learned_artefact(SPEC).data, learned_artefact(SPEC).digest
    assert artefacts.fetch_file(digest, lambda _, offset: (len(data), data[offset : offset + 100])) == data
