"""A language model to calibrate: where it is, what its cache looks like, how its keys are rotated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from kvstore.codecs.artefact import ModelShape
from kvstore.demo.models import GEMMA3, SMOLLM2, PackagedModel, convert, load
from kvstore.errors import InvalidArgument
from kvstore.nearest import nearest
from kvstore.spec import KVSpec

Floats = npt.NDArray[np.float32]
PACKAGED: Mapping[str, PackagedModel] = MappingProxyType({"smollm2": SMOLLM2, "gemma3": GEMMA3})
THREADS = 2


@dataclass(frozen=True, slots=True)
class Rotation:
    """Rotary embedding of one layer: `inverse[i]` radians a token turn dims i and i + len(inverse); `scale` times."""

    inverse: Floats
    scale: float = 1.0


@dataclass(frozen=True, eq=False)
class Subject:
    """A model in float32 with its tokenizer. `name` is the packaged model's, or the last part of its folder's."""

    name: str
    model: Any
    tokenizer: Any

    @cached_property
    def spec(self) -> KVSpec:
        """Its bfloat16 cache, as the transformers connector has it."""
        import torch

        from kvstore.connectors.transformers import spec_of

        return spec_of(self.model, dtype=torch.bfloat16)

    @property
    def weights(self) -> str:
        """16 hex digits that tell its weights from another model's."""
        return self.spec.revision.rpartition("weights:")[2]

    @property
    def layers(self) -> int:
        """How many layers have a cache."""
        return sum(len(group.layers) for group in self.spec.groups)

    @property
    def heads(self) -> int:
        """KV heads; the same in every layer (`check`)."""
        return self.spec.groups[0].kv_heads

    @property
    def dim(self) -> int:
        """Head size; the same in every layer (`check`)."""
        return self.spec.groups[0].head_dim

    @property
    def shape(self) -> ModelShape:
        """What an artefact says about the model it is for."""
        return ModelShape(self.name, dict.fromkeys(range(self.layers), (2, self.heads, self.dim)))

    def check(self) -> None:
        """Raise `InvalidArgument` for a model whose layers do not all have one shape."""
        shapes = {(group.kv_heads, group.head_dim) for group in self.spec.groups}
        if len(shapes) != 1:
            raise InvalidArgument(f"the layers of {self.name} differ in KV heads and head size: {sorted(shapes)}")

    @cached_property
    def rotations(self) -> list[Rotation]:
        """Of every layer. `InvalidArgument` for a model whose rotation is not found or changes with the length."""
        embedding = getattr(self.model.model, "rotary_emb", None)
        kinds = getattr(self.model.config, "layer_types", None) or [""] * self.layers
        made = []
        for kind in kinds:
            own = f"{kind}_" if hasattr(embedding, f"{kind}_inv_freq") else ""
            inverse = getattr(embedding, f"{own}inv_freq", None)
            rope = getattr(embedding, "rope_type", "")
            if inverse is None or "dynamic" in str(rope):
                raise InvalidArgument(f"{self.name} has no rotary embedding that is alike at every length ({rope!r})")
            scale = float(getattr(embedding, f"{own}attention_scaling", 1.0))
            made.append(Rotation(inverse.float().numpy().copy(), scale))
        return made

    def output_moments(self) -> Floats:
        """ΣWᵀW `[layer, head, dim, dim]` over the output projections of the query heads that share a KV head."""
        made = []
        for layer in range(self.layers):
            projection = self.model.get_submodule(f"model.layers.{layer}.self_attn.o_proj").weight.detach().numpy()
            by_query = projection.reshape(len(projection), -1, self.dim).transpose(1, 0, 2)
            moments = by_query.transpose(0, 2, 1) @ by_query
            made.append(moments.reshape(self.heads, -1, self.dim, self.dim).sum(1))
        return np.stack(made).astype(np.float32)

    def tokens(self, text: str, count: int) -> list[int]:
        """The first tokens of a text, with what the tokenizer puts in front; fewer where it is shorter."""
        ids: list[int] = self.tokenizer(text[: 16 * count]).input_ids
        return ids[:count]


def subject(model: str) -> Subject:
    """A packaged model by its name, or a folder that Transformers can load. `InvalidArgument` for anything else."""
    import torch

    folder = folder_of(model)
    torch.set_num_threads(min(THREADS, torch.get_num_threads()))
    try:
        loaded, tokenizer = load(folder)
    except (OSError, ValueError) as error:
        raise InvalidArgument(f"{folder} holds no language model that Transformers can load: {error}") from None
    made = Subject(PACKAGED[model].name if model in PACKAGED else folder.name, loaded, tokenizer)
    made.check()
    return made


def folder_of(model: str) -> Path:
    """Where a model lies; a packaged one is converted if it has not been yet."""
    if model in PACKAGED:
        return convert(PACKAGED[model])
    folder = Path(model)
    if not (folder / "config.json").is_file():
        raise InvalidArgument(
            f"{model!r} is neither a folder with a model (config.json) nor the name of one that is packaged"
            f"{nearest(model, list(PACKAGED))}"
        )
    return folder.resolve()
