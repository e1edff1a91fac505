"""`bench codec`: size, speed and, with `quality`, what every codec costs a real model.

Speed is measured on one core (`kvstore.bench.codec_speed`), on chunks of real KV where the model was run, else on
chunks drawn from the tables of a shipped artefact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from kvstore.bench import codec_bars, codec_gpu, codec_quality, codec_speed, rans
from kvstore.bench.codec_forms import CHUNK, Bits, Candidate, candidates
from kvstore.bench.measure import Row, machine
from kvstore.calibrate.capture import values_of
from kvstore.codecs import Artefact
from kvstore.codecs.shipped import shipped_artefacts
from kvstore.errors import InvalidArgument, StorageError
from kvstore.nearest import nearest
from kvstore.spec import KVSpec

MODELS = tuple(codec_quality.PROTOCOLS)
FACTS = ("genre", "bits", "times_smaller", "kl", "top1", "encode_ratio", "decode_ratio", "artefact_bytes")


def run(
    model: str = "smollm2",
    *,
    quality: bool = False,
    speed: bool = True,
    artefacts: Sequence[Path] = (),
    only: Sequence[str] = (),
    each: int = 0,
    advance: Callable[[], None] = lambda: None,
) -> list[Row]:
    """Rows of all forms of all codecs (`only`: of these). `each` documents of a genre (0: as the protocol says).

    `artefacts` are files of further artefacts of the model, such as a joint transform. Raises `InvalidArgument` for
    an unknown model or codec, and where a model's package is not installed.
    """
    if model not in MODELS:
        raise InvalidArgument(f"no model {model!r} for bench codec{nearest(model, list(MODELS))}")
    extra = [_read(path) for path in artefacts]
    rows = _with_model(model, extra, only, each, speed, advance) if quality else _drawn(model, extra, only, advance)
    codec_bars.judge(rows, model)
    return rows


def plot(rows: Sequence[Row], path: Path) -> None:
    """Draw size against divergence. `StorageError` where the picture cannot be written."""
    from kvstore.bench.codec_chart import draw

    try:
        draw(rows, machine(), path)
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror}") from error


def _with_model(
    model: str, extra: Sequence[Artefact], only: Sequence[str], each: int, speed: bool, advance: Callable[[], None]
) -> list[Row]:
    from kvstore.calibrate.models import folder_of, subject

    loaded, protocol = subject(model), codec_quality.PROTOCOLS[model]
    if each:
        protocol = codec_quality.Protocol(protocol.context, each, protocol.genres)
    forms = _chosen(candidates(loaded.spec, extra), only)
    found = codec_quality.rows(codec_quality.measured(loaded, forms, protocol, advance))
    rows = [_row(candidate, model, row) for candidate, row in found]
    if speed:
        kept = [cache.kv for _, cache in codec_quality.captured(loaded, protocol)][: codec_speed.DISTINCT]
        chunks = [np.array(kv[:, :, CHUNK : 2 * CHUNK]) for kv in kept]
        timed = _timed(forms, loaded.spec, chunks, advance)
        rows += _on_gpu(forms, model, loaded.spec, chunks)
        for row in rows:
            if row.get("genre") == "in":
                fast = timed[row["case"], row["mode"]]
                row.update({key: value for key, value in fast.items() if key not in ("bits", "times_smaller")})
        if not only:
            rows += [{**row, "model": model} for row in rans.run(values_of(kept[0][:, :, CHUNK:]))]
            rows += codec_quality.lmcache(loaded, folder_of(model), protocol)
    return rows


def _drawn(model: str, extra: Sequence[Artefact], only: Sequence[str], advance: Callable[[], None]) -> list[Row]:
    """Speed alone, without running a model."""
    artefact = _transform_of(model, extra)
    layers = dict(artefact.model.layers)
    _, heads, dim = layers[0]
    spec = KVSpec.dense(
        artefact.model.name, layers=len(layers), kv_heads=heads, head_dim=dim, rope=artefact.facts.get("rope", {})
    )
    forms = _chosen(candidates(spec, extra), only)
    caches = codec_speed.drawn(artefact, spec)
    timed = _timed(forms, spec, caches, advance)
    note = f"chunks drawn from the tables of {artefact.model.name}'s artefact; in rotation over 256 MiB and more"
    rows = [_row(candidate, model, {**timed[candidate.case, candidate.mode], "note": note}) for candidate in forms]
    rows += _on_gpu(forms, model, spec, caches)
    if not only:
        rows += [{**row, "model": model} for row in rans.run(values_of(np.concatenate(caches[:2], axis=2)))]
    return rows


def _timed(
    forms: Sequence[Candidate], spec: KVSpec, caches: Sequence[Bits], advance: Callable[[], None]
) -> dict[tuple[str, str], Row]:
    chunks, timed = codec_speed.Chunks(spec, caches), {}
    with codec_speed.one_core():
        for candidate in forms:
            timed[candidate.case, candidate.mode] = codec_speed.speed(candidate, chunks)
            advance()
    return timed


def _on_gpu(forms: Sequence[Candidate], model: str, spec: KVSpec, caches: Sequence[Bits]) -> list[Row]:
    """What kernels take, on a machine with a GPU."""
    if codec_gpu.why_not():
        return []
    from kvstore.codecs import gpu

    working = codec_speed.Chunks(spec, caches)
    parts = [part for memory in working.sources[: working.distinct] for part in working.parts(memory)]
    found = [(each, codec_gpu.row(each.form, parts)) for each in forms if gpu.supports(each.form)]
    return [{**_row(each, model, row), "mode": f"{each.mode}/gpu".lstrip("/")} for each, row in found]


def _row(candidate: Candidate, model: str, facts: Row) -> Row:
    return {
        "case": candidate.case,
        "mode": candidate.mode,
        "model": model,
        "exact": candidate.form.exact,
        **dict.fromkeys(("bytes", "p50_s", "p99_s", "gbps", "baseline", "ratio")),
        **facts,
        "artefact_bytes": candidate.artefact_bytes,
        "bar": None,
        "met": None,
    }


def _chosen(forms: Sequence[Candidate], only: Sequence[str]) -> list[Candidate]:
    known = sorted({each.case for each in forms})
    for name in only:
        if name not in known:
            raise InvalidArgument(f"no codec {name!r} here{nearest(name, known)}")
    return [each for each in forms if not only or each.case in only]


def _transform_of(model: str, extra: Sequence[Artefact]) -> Artefact:
    """An artefact to draw chunks from: of the model's layers if there is one."""
    from kvstore.calibrate.models import PACKAGED

    name = PACKAGED[model].name.casefold()
    found = [*extra, *(Artefact.load(path) for path in shipped_artefacts().values())]
    fitting = [each for each in found if each.kind == "transform" and each.model.name.casefold() == name]
    if not fitting:
        raise InvalidArgument(f"no transform artefact of {model} is shipped: make one with kvstore calibrate {model}")
    return max(fitting, key=lambda each: each.facts["variant"] == "layer")


def _read(path: Path) -> Artefact:
    try:
        return Artefact.load(path)
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}") from error
