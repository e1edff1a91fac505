"""What a token of a model costs: bytes of KV to keep, FLOPs to compute."""

from __future__ import annotations

from dataclasses import dataclass

from kvstore.bench.corpus import chunk_bytes
from kvstore.bench.models import MODELS, model_spec
from kvstore.cost import Prefill
from kvstore.errors import InvalidArgument

DEFAULT = "llama-3.1-8b"
ALIASES = {"smollm2": "smollm2-135m"}
OWN = ("layers", "hidden", "kv_heads", "head_dim", "params")


@dataclass(frozen=True, slots=True)
class Model:
    """KV bytes of a token, and prefill FLOPs of tokens a to b: `flops`·(b − a) + `flops2`·(b² − a²)/2."""

    name: str
    token_bytes: float
    flops: float
    flops2: float

    def prefill(self, flops_per_s: float, step_s: float) -> Prefill:
        """Its prefill on an engine that does so many FLOPs a second."""
        return Prefill(self.flops, self.flops2, flops_per_s, step_s)


def model_of(text: str) -> Model:
    """A model of the table of `bench --model`, or `layers=…,hidden=…,kv_heads=…,head_dim=…,params=…` in bfloat16.

    Attention does 4·width FLOPs a layer for each pair of tokens, in layers with a sliding window for no more pairs than
    the window has.
    """
    if "=" in text:
        return _own(text)
    name = ALIASES.get(text, text)
    spec = model_spec(name)
    shape = MODELS[name]
    full = sum(len(group.layers) for group in spec.groups if not group.window)
    windows = sum(len(group.layers) * group.window for group in spec.groups)
    return Model(
        name, chunk_bytes(spec) / spec.chunk_tokens,
        2 * shape.weights + 4 * shape.width * windows, 4 * shape.width * full,
    )  # fmt: skip


def _own(text: str) -> Model:
    found: dict[str, float] = {}
    for item in text.split(","):
        name, _, value = item.partition("=")
        try:
            found[name] = float(value)
        except ValueError:
            raise InvalidArgument(f"{item!r} is not NAME=NUMBER; a model's own shape is {'=…,'.join(OWN)}=…") from None
    if set(found) != set(OWN) or not all(0 < value < 1e15 for value in found.values()):
        raise InvalidArgument(f"a model's own shape is {'=…,'.join(OWN)}=…, all above 0, not {text!r}")
    kv = 2 * found["layers"] * found["kv_heads"] * found["head_dim"] * 2
    return Model("own", kv, 2 * found["params"], 4 * found["layers"] * found["hidden"])
