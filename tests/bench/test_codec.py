"""`bench codec`: forms, speed, what it demands and what it draws, on an artefact of a tiny model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from kvstore.bench import codec, codec_bars, codec_chart, codec_forms, codec_quality, codec_speed
from kvstore.bench.measure import Row, machine
from kvstore.calibrate.capture import bits_of, values_of
from kvstore.cli import main
from kvstore.codecs import Artefact, ModelShape
from kvstore.codecs.shipped import fits, shipped, shipped_artefacts
from kvstore.codecs.transform import Rotary, fit
from kvstore.errors import Corrupt, InvalidArgument
from kvstore.spec import KVSpec

LAYERS, HEADS, DIM = 2, 2, 16
SPEC = KVSpec.dense("org/Tiny-Model-v1", layers=LAYERS, kv_heads=HEADS, head_dim=DIM, rope={"rope_theta": 1e4})


def cache(tokens: int, seed: int) -> codec_forms.Bits:
    """A cache whose channels hang together, `[layer, 2, token, head, dim]`."""
    random = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(LAYERS, 2, 1, HEADS, 4, DIM))
    values = (random.normal(size=(LAYERS, 2, tokens, HEADS, 1, 4)) @ mixing)[..., 0, :]
    return bits_of((values + 0.05 * random.normal(size=values.shape)).astype(np.float32))


@pytest.fixture(scope="module")
def artefact() -> Artefact:
    """Per head, two levels."""
    shape = ModelShape("tiny-model", dict.fromkeys(range(LAYERS), (2, HEADS, DIM)))
    rotary = [Rotary.of_base(1e4, DIM // 2)] * LAYERS
    weights = [np.broadcast_to(np.eye(DIM), (2, HEADS, DIM, DIM))] * LAYERS
    documents = fit.Documents([values_of(cache(512, seed)) for seed in range(2)], rotary)
    fitted = fit.fit(shape, documents, "head", weights, np.ones((LAYERS, 2)))
    return fitted.artefact({"near": 0.02, "matches-int4": 0.3}, {"rope": dict(SPEC.rope)})


def by_name(forms: Sequence[codec_forms.Candidate], case: str, mode: str) -> codec_forms.Candidate:
    """The form of a row's names."""
    return next(each for each in forms if (each.case, each.mode) == (case, mode))


def test_every_codec_and_level_with_an_artefact(artefact: Artefact) -> None:
    plain = {(each.case, each.mode) for each in codec_forms.candidates(SPEC)}
    assert {("int8", ""), ("int4", ""), ("fp8", ""), ("kivi", "4"), ("kivi", "2"), ("zstd", "")} <= plain
    assert not {case for case, _ in plain} & {"transform", "cachegen"}
    forms = codec_forms.candidates(SPEC, [artefact])
    assert {(each.case, each.mode) for each in forms} - plain == {
        ("transform", "near/head"),
        ("transform", "matches-int4/head"),
    }
    assert by_name(forms, "transform", "near/head").artefact_bytes == len(artefact.data)
    assert by_name(forms, "int8", "").artefact_bytes == 0


def test_an_artefact_of_another_model_is_refused(artefact: Artefact) -> None:
    assert fits(artefact, SPEC)
    for other in (
        KVSpec.dense("org/Tinier", layers=LAYERS, kv_heads=HEADS, head_dim=DIM, rope=SPEC.rope),
        KVSpec.dense("tiny-model", layers=LAYERS, kv_heads=HEADS, head_dim=8, rope=SPEC.rope),
        KVSpec.dense("tiny-model", layers=3, kv_heads=HEADS, head_dim=DIM, rope=SPEC.rope),
        KVSpec.dense("tiny-model", layers=LAYERS, kv_heads=HEADS, head_dim=DIM, rope={"rope_theta": 5e5}),
    ):
        assert not fits(artefact, other)
        with pytest.raises(InvalidArgument, match="is for tiny-model"):
            codec_forms.candidates(other, [artefact])


def test_a_coded_cache_is_close_and_what_it_takes_is_counted(artefact: Artefact) -> None:
    kv, forms = cache(300, 7), codec_forms.candidates(SPEC, [artefact])
    errors = {}
    for case, mode in (("zstd", ""), ("int8", ""), ("transform", "near/head"), ("transform", "matches-int4/head")):
        made, nbytes = codec_forms.coded(by_name(forms, case, mode), SPEC, kv)
        errors[mode or case] = float(np.abs(values_of(made) - values_of(kv)).mean())
        # Two chunks of two layers: four frames.
        assert 4 * 64 < nbytes < kv.nbytes
    assert errors["zstd"] == 0 < errors["near/head"] < errors["matches-int4/head"] < 0.2


def test_speed_is_of_checked_content(artefact: Artefact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec_speed, "WORKING_SET", 1 << 18)
    chunks = codec_speed.Chunks(SPEC, codec_speed.drawn(artefact, SPEC, 2))
    assert chunks.slots * chunks.nbytes >= 1 << 18
    forms = codec_forms.candidates(SPEC, [artefact])
    with codec_speed.one_core():
        for case, mode in (("lz4", ""), ("int4", ""), ("transform", "near/head")):
            row = codec_speed.speed(by_name(forms, case, mode), chunks, rounds=2)
            assert row["encode_ratio"] > 0
            assert row["decode_ratio"] > 0
            assert row["bits"] == pytest.approx(16 / row["times_smaller"])
    assert by_name(forms, "int4", "").form.exact is False

    def wrong(candidate: object, container: object, out: memoryview, block: object) -> None:
        out[0] = 7

    monkeypatch.setattr(codec_speed, "restore", wrong)
    with pytest.raises(Corrupt):
        codec_speed.speed(by_name(forms, "zstd", ""), chunks, rounds=1)


def row_of(case: str, mode: str, genre: str, smaller: float, kl: float) -> Row:
    """A row of a run with documents."""
    return {"case": case, "mode": mode, "genre": genre, "documents": 6, "times_smaller": smaller, "bits": 16 / smaller,
            "kl": kl, "model": "smollm2", "bar": None, "met": None}  # fmt: skip


def test_bars() -> None:
    rows = [
        row_of("transform", "matches-fp8/head", "in", 5.6, 0.0024),
        row_of("transform", "matches-fp8/head", "out", 4.9, 0.0030),
        row_of("transform", "matches-fp8/layer", "in", 6.3, 0.0026),
        row_of("transform", "matches-fp8/layer", "out", 5.0, 0.0020),
        row_of("cachegen", "fine", "in", 4.1, 0.01),
        row_of("cachegen", "medium", "in", 4.3, 0.029),
        row_of("cachegen", "coarse", "in", 6.0, 0.05),
        row_of("int8", "", "in", 1.9, 0.0001),
    ]
    codec_bars.judge(rows, "smollm2")
    assert [row["met"] for row in rows] == [True, True, False, False, None, True, None, None]
    assert rows[0]["bar"] == "≥ 5.5 × smaller, KL ≤ 0.0025"
    rows[0] |= {"decode_ratio": 21.0, "encode_ratio": 40.0}
    codec_bars.judge(rows, "smollm2")
    assert rows[0]["met"] is False
    assert "decode ≤ 20 ×" in rows[0]["bar"]
    gemma = [row_of("transform", "near/head", "in", 4.0, 0.001), row_of("transform", "small/head", "in", 6.5, 0.014)]
    codec_bars.judge(gemma, "gemma3")
    assert [row["met"] for row in gemma] == [None, True]


def test_means_over_documents(artefact: Artefact) -> None:
    candidate = by_name(codec_forms.candidates(SPEC, [artefact]), "transform", "near/head")
    seen = [codec_quality.Measured(genre, kl, 0.9, bits) for genre, kl, bits in
            (("prose", 0.1, 2.0), ("code", 0.3, 4.0), ("chat", 0.5, 8.0))]  # fmt: skip
    (_, inside), (_, outside) = codec_quality.rows({candidate: seen})
    assert (inside["genre"], inside["documents"], inside["kl"], inside["bits"]) == ("in", 2, pytest.approx(0.2), 3.0)
    assert inside["times_smaller"] == pytest.approx(16 / 3)
    assert inside["kl_worst"] == 0.3
    assert (outside["genre"], outside["kl"], outside["times_smaller"]) == ("out", 0.5, 2.0)


def test_the_documents_are_enough_and_apart() -> None:
    for protocol in codec_quality.PROTOCOLS.values():
        assert all(len(protocol.genres) * protocol.each >= 3 for _ in protocol.genres)
    chosen = codec_quality.chosen(codec_quality.PROTOCOLS["smollm2"])
    assert len(chosen) >= 8
    assert {each.genre for each in chosen} == set(codec_quality.ALL_GENRES)
    from kvstore.calibrate.documents import documents

    learnt = {(each.package, each.name) for role in ("calibrate", "validate") for each in documents(role)}
    assert not learnt & {(each.package, each.name) for each in chosen}
    assert not [each for each in documents("calibrate") if each.genre in codec_quality.HELD_OUT]


def test_the_picture(tmp_path: Path) -> None:
    rows = [row_of("transform", f"{level}/head", genre, smaller, kl)
            for level, smaller, kl in (("near", 4, 0.0002), ("small", 9, 0.01)) for genre in ("in", "out")]  # fmt: skip
    codec_bars.judge(rows, "smollm2")
    assert codec_chart.draw(rows, machine(), tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    assert not codec_chart.draw([{"case": "int8", "mode": ""}], machine(), tmp_path / "b.png")


def test_wrong_usage(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for options, said in (
        (["--model", "smollm"], "did you mean 'smollm2'?"),
        (["--plot"], "use it with --quality"),
        (["--artefact", str(tmp_path / "missing")], "cannot be read: No such file"),
        (["--codecs", "transfrom"], "no codec 'transfrom' here; did you mean 'transform'?"),
    ):
        assert main(["bench", "codec", *options]) in (2, 7)
        assert said in capsys.readouterr().err
    with pytest.raises(InvalidArgument, match="no model 'gemma'"):
        codec.run("gemma")


def test_what_is_shipped_is_small_and_fits_its_model() -> None:
    assert {"smollm2-135m-instruct-head", "smollm2-135m-instruct-layer", "smollm2-135m-instruct-cachegen"} <= set(
        shipped_artefacts()
    )
    for name, path in shipped_artefacts().items():
        assert path.stat().st_size <= 4 << 20, name
        found = Artefact.load(path)
        assert name.startswith(found.model.name.casefold())
        _, heads, dim = found.model.layers[0]
        spec = KVSpec.dense(f"any/{found.model.name}-float32", layers=len(found.model.layers), kv_heads=heads,
                            head_dim=dim, rope=found.facts["rope"])  # fmt: skip
        assert shipped(found.kind, spec, found.facts.get("variant", "")) is not None
        assert shipped(found.kind, KVSpec.dense("other", layers=1, kv_heads=heads, head_dim=dim)) is None
