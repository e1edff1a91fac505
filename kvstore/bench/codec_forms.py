"""The forms that `bench codec` compares: every codec at every level for which there is an artefact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvstore.codecs import Artefact, Block, Codec, Form, all_codecs, decode, encode
from kvstore.codecs.frame import NO_ARTEFACT, frames
from kvstore.codecs.shipped import fits, shipped
from kvstore.codecs.transform import KIND, VARIANTS
from kvstore.codecs.transform import reference as transform_reference
from kvstore.codecs.transform.plan import plan_of
from kvstore.errors import InvalidArgument
from kvstore.spec import KVSpec

Bits = npt.NDArray[np.uint16]
CHUNK = 256


@dataclass(frozen=True, eq=False)
class Candidate:
    """A form by the names that a row has: `case` the codec, `mode` its level (and the transform's variant)."""

    case: str
    mode: str
    form: Form

    @property
    def artefact_bytes(self) -> int:
        """What it needs besides the chunk, once a model."""
        return 0 if self.form.artefact is None else len(self.form.artefact.data)


def candidates(spec: KVSpec, extra: Sequence[Artefact] = ()) -> list[Candidate]:
    """All forms for a spec. `extra` artefacts stand in for shipped ones of their kind and variant.

    Raises `InvalidArgument` for an extra artefact of another model.
    """
    for artefact in extra:
        if not fits(artefact, spec):
            raise InvalidArgument(
                f"the artefact {artefact.digest.hex()} is for {artefact.model.name}, not {spec.model}"
            )
    found = []
    for codec in all_codecs().values():
        if not codec.artefact_kind:
            found += [_candidate(codec, level, None) for level in codec.levels]
            continue
        for variant in VARIANTS if codec.artefact_kind == KIND else ("",):
            own = [
                each for each in extra if (each.kind, each.facts.get("variant", "")) == (codec.artefact_kind, variant)
            ]
            chosen = own[0] if own else shipped(codec.artefact_kind, spec, variant)
            if chosen is not None:
                found += [_candidate(codec, level, chosen) for level in chosen.facts["levels"]]
    return found


def _candidate(codec: Codec, level: str, artefact: Artefact | None) -> Candidate:
    variant = artefact.facts.get("variant", "") if artefact else ""
    mode = f"{level}/{variant}" if variant else level
    return Candidate(codec.name, mode, Form(codec, list(codec.levels).index(level), artefact))


def block_of(spec: KVSpec, group: int, tokens: int, position: int) -> Block:
    """The block of a KV group of a chunk."""
    return Block.of(spec, spec.part(group), tokens, position)


def coded(candidate: Candidate, spec: KVSpec, kv: Bits) -> tuple[Bits, int]:
    """A prompt's cache `[layer, 2, token, head, dim]` encoded in 256-token chunks and decoded: it, and its bytes."""
    made, nbytes = np.empty_like(kv), 0
    for number, group in enumerate(spec.groups):
        for start in range(0, kv.shape[2], CHUNK):
            raw = np.ascontiguousarray(kv[list(group.layers), :, start : start + CHUNK])
            block = block_of(spec, number, raw.shape[2], start)
            container = encode(raw.data.cast("B"), block, candidate.form).data
            back = np.empty_like(raw)
            restore(candidate, container, back.data.cast("B"), block)
            made[list(group.layers), :, start : start + CHUNK] = back
            nbytes += len(container)
    return made, nbytes


def restore(candidate: Candidate, container: memoryview, out: memoryview, block: Block) -> None:
    """Decode as a store does."""
    artefact = candidate.form.artefact
    decode(container, out, block, artefacts=None if artefact is None else lambda digest: artefact)


def restore_by_reference(candidate: Candidate, container: memoryview, out: memoryview, block: Block) -> None:
    """Decode a lossy container by the codec's definition in NumPy."""
    codec, artefact, at = candidate.form.codec, candidate.form.artefact, 0
    for frame, body in frames(container):
        part = block.cut(frame.first, frame.first + frame.layers)
        target = out[at : at + part.nbytes]
        at += part.nbytes
        if codec.name == KIND and artefact is not None:
            transform_reference.decode(body, part, plan_of(artefact, part, codec.levels[frame.level]), target)
        elif frame.artefact != NO_ARTEFACT:
            codec.decode_reference(body, part, target, frame.level, artefact)  # type: ignore[attr-defined]
        else:
            codec.decode_reference(body, part, target, frame.level)  # type: ignore[attr-defined]
