"""From a model and texts to an artefact of the transform codec."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from kvstore import __version__
from kvstore.calibrate.capture import Bits, Captured, Floats, context_of, values_of
from kvstore.calibrate.models import Subject
from kvstore.calibrate.quality import Judge, mean
from kvstore.calibrate.search import steps_for
from kvstore.calibrate.sensitivity import Sensitivity, measure
from kvstore.codecs.artefact import Artefact
from kvstore.codecs.transform import Rotary, fit
from kvstore.errors import InvalidArgument

SINKS = 4
MAX_JOINT = 2048
TOKENS_GOOD, TOKENS_LEAST = 20, 5  # per dimension of a transform
SENSITIVITY_DOCUMENTS = 6
# The divergence that a level promises, less a margin for documents that nothing was fitted to.
TARGETS: Mapping[str, Mapping[str, float]] = MappingProxyType({
    "head": {"near": 0.0002, "matches-fp8": 0.0020, "matches-int4": 0.0060, "small": 0.0120},
    "layer": {"near": 0.0002, "matches-fp8": 0.0020, "matches-int4": 0.0060, "small": 0.0120},
    "joint": {"small": 0.0115},
})  # fmt: skip


class Stage(Protocol):
    """Opens a progress bar: what is being done, and how many steps it takes (none: it cannot be told)."""

    def __call__(self, title: str, total: float | None, /) -> AbstractContextManager[Callable[[], None]]: ...


@contextmanager
def silent(title: str, total: float | None) -> Iterator[Callable[[], None]]:
    """A stage that shows nothing."""
    del title, total
    yield lambda: None


@dataclass(frozen=True, slots=True)
class Needs:
    """Tokens that a calibration has and needs: 20 for each dimension of a transform."""

    dimensions: int
    tokens: int

    @property
    def good(self) -> int:
        """As many as it takes."""
        return TOKENS_GOOD * self.dimensions

    def check(self) -> None:
        """`InvalidArgument` for less than 5 tokens a dimension."""
        if self.tokens < TOKENS_LEAST * self.dimensions:
            raise InvalidArgument(
                f"{self.tokens:,} tokens are too few for a transform of {self.dimensions:,} dimensions: at least "
                f"{TOKENS_LEAST * self.dimensions:,}, and {self.good:,} are good; give more text, or --variant head"
            )


def groups_of(subject: Subject, variant: str) -> list[tuple[int, ...]]:
    """The layers that share a transform: one each, or as many of one KV group as 2,048 dimensions hold."""
    each = 2 * subject.heads * subject.dim
    count = max(1, MAX_JOINT // each) if variant == "joint" else 1
    return [
        group.layers[first : first + count]
        for group in subject.spec.groups
        for first in range(0, len(group.layers), count)
    ]


def needs(subject: Subject, variant: str, tokens: int) -> Needs:
    """What a variant asks of a model's calibration texts. `InvalidArgument` for an unknown one."""
    if variant not in TARGETS:
        raise InvalidArgument(f"no variant {variant!r}: {', '.join(TARGETS)}")
    width = subject.heads * subject.dim
    joined = 2 * width * max(len(group) for group in groups_of(subject, variant))
    if variant == "joint" and joined > MAX_JOINT:
        raise InvalidArgument(
            f"a joint transform has {MAX_JOINT:,} dimensions; one layer of {subject.name} has {joined:,}"
        )
    return Needs({"head": subject.dim, "layer": width, "joint": joined}[variant], tokens)


def make(
    subject: Subject,
    calibration: Sequence[Captured],
    validation: Sequence[Captured],
    variant: str,
    *,
    sensitivity: Sensitivity | None = None,
    facts: Mapping[str, Any] | None = None,
    stage: Stage = silent,
) -> Artefact:
    """An artefact of a variant with all its levels. `facts` are kept in it (where the texts are from).

    Raises `InvalidArgument` for too little text and for a transform that is too large.
    """
    tokens = sum(each.kv.shape[2] - SINKS for each in calibration)
    needs(subject, variant, tokens).check()
    if sensitivity is None:
        sensitivity = sensitivity_of(subject, calibration, stage)
    weights, scale = sensitivity.weights()
    rotary = [Rotary(each.inverse.astype(np.float64), scaling=each.scale) for each in subject.rotations]
    arrays = cast("Sequence[npt.NDArray[np.float32]]", [_Widened(each.kv) for each in calibration])
    with stage(f"fitting {variant}", None):
        fitted = fit.fit(
            subject.shape, fit.Documents(arrays, rotary, sinks=SINKS), variant, list(weights), scale,
            groups=groups_of(subject, variant),
        )  # fmt: skip
    measured: dict[float, dict[str, float]] = {}
    with stage(f"steps of {variant}", None) as advance:
        judges = [Judge(subject, each, context_of(each)) for each in validation]
        elements = sum(judge.exact.size for judge in judges)

        def kl_of(step: float) -> float:
            seen = [(judge, *fitted.simulate(values_of(judge.exact), step)) for judge in judges]
            verdict = mean([judge.judge(made) for judge, made, _ in seen])
            bits = sum(bits for _, _, bits in seen) / elements
            measured[step] = {"kl": verdict.kl, "top1": verdict.top1, "bits": bits}
            advance()
            return verdict.kl

        steps = steps_for(TARGETS[variant], kl_of, _first_step(subject, min(TARGETS[variant].values())))
    told = {
        **(facts or {}),
        "tokens": tokens,
        "weights": subject.weights,
        "rope": dict(subject.spec.rope),
        "validated": [{"step": step, **seen} for step, seen in sorted(measured.items())],
        "kvstore": __version__,
    }
    return fitted.artefact(steps, told)


def sensitivity_of(subject: Subject, calibration: Sequence[Captured], stage: Stage = silent) -> Sensitivity:
    """What errors cost, from the first few documents."""
    chosen = calibration[:SENSITIVITY_DOCUMENTS]
    with stage("sensitivity", len(chosen)) as advance:
        return measure(subject, chosen, sinks=SINKS, advance=advance)


def flops_per_token(artefact: Artefact) -> int:
    """Multiplications and additions of the inverse transforms of one token, at the finest level."""
    total = 0
    for number in range(len(artefact.facts["groups"])):
        size = artefact.arrays[f"{number}.matrix"].shape[1]
        total += 2 * size * int(artefact.arrays[f"{number}.live"].max(0).sum())
    return total


@dataclass(frozen=True, eq=False)
class _Widened:
    """bfloat16 bits that read as float32, some layers at a time."""

    bits: Bits

    @property
    def shape(self) -> tuple[int, ...]:
        return self.bits.shape

    def __getitem__(self, layers: Any) -> Floats:
        return values_of(self.bits[layers])


def _first_step(subject: Subject, kl: float) -> float:
    """The step whose rounding noise, the square of it over 12 in every channel, would cost so much."""
    return float(np.sqrt(12 * kl / (subject.layers * 2 * subject.heads * subject.dim)))
