"""What fitting learns: rate that follows the entropy, and simulation that tells what the codec gives."""

from __future__ import annotations

import numpy as np
import pytest

from kvstore.codecs import Artefact, Form, ModelShape, codec_of, decode, encode
from kvstore.codecs.transform.fit import Documents, fit
from kvstore.codecs.transform.rotary import Rotary
from kvstore.errors import InvalidArgument
from tests.codecs.transform.made import block_of, fitted, noise, raw_of, values_of


@pytest.mark.parametrize(("variant", "joined"), [("head", 0), ("layer", 0), ("joint", 2)])
def test_simulation_tells_size_and_error(variant: str, joined: int) -> None:
    made = fitted(variant, 2, 2, 2, 16, joined=joined)
    values = noise(9, 2, 2, 512, 2, 16)
    for step in (0.1, 0.6):
        block = block_of((0, 1), 2, 512, 2, 16, dtype="float32", position=256)
        found = made.artefact({"near": step})
        container = encode(raw_of(values, block), block, Form(codec_of(9), 0, found))
        out = bytearray(block.nbytes)
        decode(container.data, memoryview(out), block, artefacts={found.digest: found}.__getitem__)
        simulated, bits = made.simulate(values, step, 256)
        assert abs(bits / (8 * len(container.data)) - 1) < 0.05
        error, told = (np.square(each - values).mean() for each in (values_of(out, block), simulated))
        assert abs(error / told - 1) < 0.02


def test_a_joint_transform_is_smaller_than_one_per_head_where_channels_are_correlated() -> None:
    values = noise(9, 2, 2, 256, 2, 16)
    sizes = {}
    for variant, joined in (("head", 0), ("layer", 0)):
        made = fitted(variant, 2, 2, 2, 16, joined=joined)
        sizes[variant] = made.simulate(values, 0.3, 256)[1]
    assert sizes["layer"] < sizes["head"]


def test_levels_share_an_artefact_and_the_same_fit_has_the_same_digest() -> None:
    made = fitted("layer", 2, 2, 2, 16)
    first, second = (made.artefact({"near": 0.1, "small": 0.8}, {"text": "noise"}) for _ in range(2))
    assert first.digest == second.digest
    assert Artefact.from_bytes(first.data).facts["levels"] == ["near", "small"]
    assert first.facts["text"] == "noise"


def test_too_few_tokens_and_too_many_dimensions_are_refused() -> None:
    weights = [np.ones((2, 2, 16, 16)) for _ in range(2)]
    short = Documents([noise(1, 2, 2, 60, 2, 16)], [Rotary.of_base(1e4, 8)] * 2)
    model = ModelShape("noise", dict.fromkeys(range(2), (2, 2, 16)))
    with pytest.raises(InvalidArgument, match="56 tokens are too few for 32 dimensions: at least 160, and 640"):
        fit(model, short, "layer", weights, np.ones((2, 2)))
    wide = ModelShape("wide", dict.fromkeys(range(2), (2, 8, 128)))
    with pytest.raises(InvalidArgument, match="at most 2,048 dimensions, not 4,096"):
        fit(wide, short, "joint", weights, np.ones((2, 2)), groups=[(0, 1)])
    with pytest.raises(InvalidArgument, match="no variant 'block'"):
        fit(model, short, "block", weights, np.ones((2, 2)))
