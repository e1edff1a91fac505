"""Containers of every codec, damaged or made up: an error that says so, or other values, and never anything else."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvstore import codecs
from kvstore.codecs import Artefact, Form, all_codecs, cachegen
from kvstore.codecs.frame import HEADER_BYTES, Frame, read_frame
from kvstore.errors import Corrupt, NotFound, SpecMismatch
from tests.codecs.transform import made

BLOCK = made.block_of((0, 1), 2, 37, 2, 8, position=256)
FORMS = [(codec.name, level) for codec in all_codecs().values() for level in range(len(codec.levels))]
# What a reader must reckon with; anything else is a bug.
REFUSED = (Corrupt, SpecMismatch, NotFound)


@cache
def artefact_of(kind: str) -> Artefact | None:
    if not kind:
        return None
    if kind == "transform":
        return made.artefact("head", 2, 2, 2, 8)
    samples = [made.noise(seed, 2, 2, 300, 2, 8) for seed in (1, 2)]
    return cachegen.profile(samples, made.fitted("head", 2, 2, 2, 8).model)


@cache
def sample(name: str, level: int) -> tuple[Artefact | None, bytes]:
    """A sound container; the artefact's levels that were not fitted have none (None)."""
    codec = all_codecs()[name]
    artefact = artefact_of(codec.artefact_kind)
    raw = made.raw_of(made.noise(7, 2, 2, 37, 2, 8), BLOCK)
    return artefact, bytes(codecs.encode(raw, BLOCK, Form(codec, level, artefact)).data)


def attempt(container: bytes, artefact: Artefact | None, *, verify: bool) -> bytes | None:
    """What it decodes to; None if it is refused."""

    def artefacts(digest: bytes) -> Artefact:
        if artefact is None or digest != artefact.digest:
            raise NotFound("no such artefact")
        return artefact

    out = bytearray(BLOCK.nbytes)
    try:
        codecs.decode(container, memoryview(out), BLOCK, artefacts=artefacts, verify=verify)
    except REFUSED:
        return None
    return bytes(out)


def reframed(container: bytes, body: bytes) -> bytes:
    """The container's first frame with another body and a checksum that fits; the second as it is."""
    frame, old = read_frame(memoryview(container))
    first = BLOCK.cut(frame.first, frame.first + frame.layers)
    head = Frame.of(frame.codec, frame.level, first, len(body), lanes=frame.lanes, artefact=frame.artefact)
    return head.pack(body) + body + container[HEADER_BYTES + len(old) :]


forms = pytest.mark.parametrize(("name", "level"), [form for form in FORMS if form != ("transform", 2)])
relaxed = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@forms
@relaxed
@given(data=st.data())
def test_damage_is_seen_by_checksums(name: str, level: int, data: st.DataObject) -> None:
    artefact, container = sample(name, level)
    assert attempt(container, artefact, verify=True) is not None
    at = data.draw(st.integers(0, len(container) - 1))
    damaged = bytearray(container)
    damaged[at] ^= data.draw(st.integers(1, 255))
    assert attempt(bytes(damaged), artefact, verify=True) is None
    assert attempt(container[:at], artefact, verify=True) is None
    attempt(bytes(damaged), artefact, verify=False)
    attempt(container[:at], artefact, verify=False)


@forms
@relaxed
@given(data=st.data())
def test_bodies_of_a_forger(name: str, level: int, data: st.DataObject) -> None:
    """Checksums that fit: a body cut off, lengthened, with other bytes, or of nothing but noise."""
    artefact, container = sample(name, level)
    body = bytearray(read_frame(memoryview(container))[1])
    match data.draw(st.sampled_from(["cut", "longer", "flipped", "noise", "head"])):
        case "cut":
            body = body[: data.draw(st.integers(0, len(body) - 1))]
        case "longer":
            body += data.draw(st.binary(min_size=1, max_size=200))
        case "flipped":
            for at, value in data.draw(st.lists(st.tuples(st.integers(0, len(body) - 1), st.integers(1, 255)))):
                body[at] ^= value
        case "noise":
            body = bytearray(np.random.default_rng(data.draw(st.integers(0, 1 << 30))).bytes(len(body)))
        case "head":
            head = data.draw(st.binary(min_size=1, max_size=16))
            body[: len(head)] = head
    attempt(reframed(container, bytes(body)), artefact, verify=True)


@relaxed
@given(st.binary(max_size=300))
def test_bytes_that_are_no_container(data: bytes) -> None:
    assert attempt(data, None, verify=True) is None
    assert attempt(b"KVC1\x01\x00" + data, None, verify=False) is None
