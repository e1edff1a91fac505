"""Make the artefacts that come with the package: `python -m kvstore.calibrate.ship FOLDER`.

For each packaged model a transform per head and per layer, and the profile of CacheGen; what is there already is left.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from kvstore.calibrate import make, texts
from kvstore.calibrate.capture import Captured, capture, values_of
from kvstore.calibrate.models import PACKAGED, Subject, subject
from kvstore.codecs.artefact import Artefact

PROFILED = 6  # documents that CacheGen's bins and tables are profiled on
VARIANTS = ("head", "layer")


def ship(folder: Path, models: Sequence[str] = tuple(PACKAGED)) -> None:
    """Write what is missing, and say what is written."""
    for name in models:
        due = {variant: _path(folder, PACKAGED[name].name, variant) for variant in (*VARIANTS, "cachegen")}
        if all(path.exists() for path in due.values()):
            continue
        loaded = subject(name)
        read = texts.packaged(loaded, "head")
        learnt = [capture(loaded, each, ids) for each, ids in read.calibration]
        held = [capture(loaded, each, ids) for each, ids in read.validation]
        sensitivity = None
        for variant in VARIANTS:
            if due[variant].exists():
                continue
            sensitivity = sensitivity or make.sensitivity_of(loaded, learnt)
            made = make.make(loaded, learnt, held, variant, sensitivity=sensitivity, facts=texts.told(read))
            _write(due[variant], made)
        if not due["cachegen"].exists():
            _write(due["cachegen"], profile(loaded, learnt, read))


def profile(loaded: Subject, learnt: Sequence[Captured], read: texts.Texts) -> Artefact:
    """CacheGen's artefact of a model."""
    from kvstore.codecs.cachegen import profile as measured

    facts = {**texts.told(read), "weights": loaded.weights, "rope": dict(loaded.spec.rope)}
    samples = [list(values_of(each.kv)) for each in learnt[:PROFILED]]
    return measured(samples, loaded.shape, facts=facts)


def _path(folder: Path, model: str, variant: str) -> Path:
    return folder / f"{model.casefold()}-{variant}.safetensors"


def _write(path: Path, made: Artefact) -> None:
    path.write_bytes(made.data)
    print(
        f"{path.name}: {len(made.data):,} bytes, {made.digest.hex()}, levels {', '.join(made.facts['levels'])}",
        flush=True,
    )


if __name__ == "__main__":
    ship(Path(sys.argv[1]), sys.argv[2:] or tuple(PACKAGED))
