"""Artefacts that come with the package (`codecs/artefacts/`): made by `kvstore calibrate` and `kvstore.calibrate.ship`.

Decoding needs none of this: a frame names its artefact by digest. What a model's chunks are encoded with is chosen
here, and only where the spec says that it is the model that the artefact was made from: by its name, shape and rotary
embedding. A fine-tune of the same name has other statistics, which costs size and quality and never correctness.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from kvstore.codecs.artefact import Artefact
from kvstore.spec import KVSpec

_FOLDER = Path(__file__).with_name("artefacts")


def shipped_artefacts() -> Mapping[str, Path]:
    """Every shipped artefact by its name, like `smollm2-135m-instruct-head`."""
    return {path.stem: path for path in sorted(_FOLDER.glob("*.safetensors"))}


def shipped(kind: str, spec: KVSpec, variant: str = "") -> Artefact | None:
    """The shipped artefact of a kind (and `variant`, where the kind has several) for a spec, if there is one."""
    for path in shipped_artefacts().values():
        artefact = _loaded(path)
        if artefact.kind == kind and artefact.facts.get("variant", "") == variant and fits(artefact, spec):
            return artefact
    return None


def fits(artefact: Artefact, spec: KVSpec) -> bool:
    """Whether a spec is of the model that an artefact was made from.

    The last part of the spec's model name begins with that of the artefact's, in any case; layers, heads and head size
    are the same, and so is the rotary embedding where the artefact says what it was.
    """
    if not _short(spec.model).startswith(_short(artefact.model.name)):
        return False
    shapes = {
        layer: (1, 1, group.latent_dim) if group.latent_dim else (2, group.kv_heads, group.head_dim)
        for group in spec.groups
        for layer in group.layers
    }
    rope = artefact.facts.get("rope")
    return shapes == dict(artefact.model.layers) and (rope is None or _canonical(rope) == _canonical(spec.rope))


def _short(model: str) -> str:
    """A model's name without the organisation or the folder in front of it."""
    return model.rstrip("/").rpartition("/")[2].casefold()


@cache
def _loaded(path: Path) -> Artefact:
    return Artefact.load(path)


def _canonical(rope: Mapping[str, Any]) -> str:
    return json.dumps(rope, sort_keys=True, default=str)
