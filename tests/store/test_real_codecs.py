"""Every codec that needs no artefact, in the store: what comes back is what the codec alone would give."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kvstore import Fidelity, codecs
from kvstore.codecs import Block, Form, all_codecs
from kvstore.config import NamespaceConfig
from kvstore.keys import ChunkRef
from kvstore.removed import Removed
from kvstore.spec import KVGroup, KVSpec
from tests.store.conftest import Box, MiB, prompt

SPECS = [
    KVSpec.dense("dense", layers=3, kv_heads=2, head_dim=64, chunk_tokens=64),
    KVSpec.dense("half", layers=2, kv_heads=1, head_dim=80, chunk_tokens=64, dtype="float16"),
    KVSpec.dense("single", layers=2, kv_heads=2, head_dim=128, chunk_tokens=32, dtype="float32"),
    KVSpec("mla", "", "bfloat16", (KVGroup((0, 1), latent_dim=576),), chunk_tokens=64),
    KVSpec.dense(
        "permuted", layers=2, kv_heads=2, head_dim=64, chunk_tokens=64, layout=("layer", "kv", "head", "dim", "token")
    ),
]
FORMS = [
    str(f"{name}:{level}" if level else name)
    for name, codec in sorted(all_codecs().items())
    if not codec.artefact_kind
    for level in codec.levels
]


def values(spec: KVSpec, ref: ChunkRef) -> np.ndarray[Any, Any]:
    """Finite numbers of a layer's usual sizes, as bits."""
    shape = spec.part_shape(spec.part(), ref.tokens)
    found = np.random.default_rng(ref.position + 1).standard_normal(shape).astype(np.float32)
    if spec.dtype == "float32":
        return found
    if spec.dtype == "float16":
        return found.astype(np.float16)
    return (found.view(np.uint32) >> 16).astype(np.uint16)


def alone(spec: KVSpec, ref: ChunkRef, array: np.ndarray[Any, Any], text: str) -> bytes:
    """What the codec makes of it without a store."""
    name, _, level = text.partition(":")
    codec = all_codecs()[name]
    block = Block.of(spec, spec.part(), ref.tokens, ref.position)
    made = codecs.encode(array.tobytes(), block, Form(codec, list(codec.levels).index(level)))
    out = bytearray(block.nbytes)
    codecs.decode(made.data, memoryview(out), block)
    return bytes(out)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.model)
@pytest.mark.parametrize("form", FORMS)
def test_what_a_codec_keeps_comes_back(box: Box, spec: KVSpec, form: str) -> None:
    name = form.partition(":")[0]
    spaces = (NamespaceConfig("default", lossy=True),)
    client, chain = box.open(nvme=64 * MiB, nvme_codec=form, namespaces=spaces), prompt(spec, 2, tail=13)
    for ref in chain.refs:
        client.put(spec, ref, values(spec, ref), ack="persisted")
    core, removed = box.store(client)._core, Removed()
    with core.lock:
        for row in core.index.chunks(0, 100)[0].tolist():
            assert core.drop_from(row, 0, removed)
    core.settle(removed)
    kept = {info.key: place for info in client.list() for place in info.placements}
    fallbacks = client.stats()["codecs"]["fallbacks"]
    assert set(fallbacks) <= {"not_smaller"}
    for ref in chain.refs:
        place, array = kept[ref.key], values(spec, ref)
        assert place.form in (name, "raw", "lossless")
        right = alone(spec, ref, array, form) if place.form == name else array.tobytes()
        assert client.get(spec, ref, fidelity=Fidelity.LOSSY, verify=True).tobytes() == right
        step = len(right) // len(array)
        for layer in range(len(array)):
            got = client.get(spec, ref, layers=(layer, layer + 1), fidelity=Fidelity.LOSSY)
            assert got.tobytes() == right[layer * step : (layer + 1) * step]
        if all_codecs()[name].exact:
            assert right == array.tobytes()
    if not all_codecs()[name].exact:
        assert kept[chain.refs[0].key].form == name
    box.settled(client)
