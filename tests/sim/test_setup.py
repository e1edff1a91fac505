"""What may be simulated: capacities, tiers, models, and what is refused before anything is played."""

from __future__ import annotations

import pytest

from kvstore.cost import TierSpeed
from kvstore.errors import InvalidArgument
from kvstore.sim.models import model_of
from kvstore.sim.setup import SPEEDS, Setup, capacity_of, single_tiers, tier_of


@pytest.mark.parametrize(
    ("text", "nbytes"), [("5%", 50), ("0.1%", 1), (".5%", 5), ("100%", 1000), ("64KiB", 65536), ("7", 7)]
)
def test_capacities(text: str, nbytes: int) -> None:
    assert capacity_of(text).of(1000) == nbytes


@pytest.mark.parametrize(
    ("text", "words"),
    [("0%", "more than 0%"), ("101%", "at most 100%"), *((text, "no capacity") for text in ("-5%", "much", "0", ""))],
)
def test_what_is_no_capacity(text: str, words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        capacity_of(text)


def test_tiers() -> None:
    assert tier_of("nvme=50%").speed == SPEEDS["nvme"]
    own = tier_of("floppy=1GiB,gbps=0.5,latency_us=200,smaller=4,decode_gbps=2")
    assert (own.name, own.smaller, own.capacity.nbytes) == ("floppy", 4.0, 1 << 30)
    assert own.speed == TierSpeed(200e-6, 0.5e9, 2e9)
    assert [stack[0].capacity.share for stack in single_tiers(["1%", "5%"])] == [0.01, 0.05]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("floppy=1%", "'floppy' is none of hbm"),
        ("=1%", "'' is none of"),
        ("nvme", "no capacity"),
        ("nvme=1%,speed=3", "'speed=3' is none of gbps"),
        ("nvme=1%,gbps=fast", "'gbps=fast' is none of"),
        ("nvme=1%,gbps=0", "gbps is above 0"),
        ("nvme=1%,smaller=0.5", "smaller is 1 or more"),
    ],
)
def test_what_is_no_tier(text: str, words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        tier_of(text)


def test_models() -> None:
    llama = model_of("llama-3.1-8b")
    assert llama.token_bytes == 32 * 2 * 8 * 128 * 2
    assert (llama.flops, llama.flops2) == (2 * 8.03e9, 4 * 32 * 4096)
    own = model_of("layers=32,hidden=4096,kv_heads=8,head_dim=128,params=8.03e9")
    assert (own.token_bytes, own.flops, own.flops2) == (llama.token_bytes, llama.flops, llama.flops2)
    assert model_of("smollm2") == model_of("smollm2-135m")
    # A window of 1,024 tokens in five layers of six: attention to no more pairs than that.
    gemma = model_of("gemma-3-12b")
    assert gemma.flops2 == 4 * 8 * 4096
    assert gemma.flops == 2 * 11.8e9 + 4 * 4096 * 40 * 1024


@pytest.mark.parametrize(
    ("text", "words"),
    [("gpt-7", "not in the table"), ("layers=1", "own shape is layers"), ("layers=x,hidden=1", "not NAME=NUMBER"),
     ("layers=0,hidden=1,kv_heads=1,head_dim=1,params=1", "above 0")],
)  # fmt: skip
def test_what_is_no_model(text: str, words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        model_of(text)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"policies": ("lry",)}, "no policy 'lry'.*lru"), ({"touch": "random"}, "no order of touches"),
     ({"warm": 1.0}, "less than 1"), ({"shares": (1.0, 0.0)}, "share is above 0")],
)  # fmt: skip
def test_what_is_no_setup(options: dict[str, object], words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        Setup((), **options)  # type: ignore[arg-type]
