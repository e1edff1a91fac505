"""`kvstore calibrate` from a folder and a text file to an artefact that encodes and decodes that model's cache."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvstore.calibrate.capture import capture, values_of
from kvstore.calibrate.models import subject
from kvstore.cli import main
from kvstore.codecs import Artefact, Block, Form, all_codecs, decode, encode


def run(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, Any, str]:
    """Exit code, the JSON of a run that did not fail, and what it said on standard error."""
    code = main(["calibrate", *map(str, args), "--json"])
    out, err = capsys.readouterr()
    return code, json.loads(out) if out else None, err


@pytest.mark.parametrize("variant", ["head", "layer", "joint"])
def test_the_artefact_codes_the_models_own_cache(
    variant: str, gemma_folder: Path, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "made.safetensors"
    code, told, err = run(capsys, gemma_folder, "--text", text_file, "--variant", variant, "--out", out)
    assert code == 0, err
    assert told["bytes"] == out.stat().st_size
    artefact = Artefact.load(out)
    assert told["digest"] == artefact.digest.hex()
    loaded = subject(str(gemma_folder))
    made = capture(loaded, "other", loaded.tokens(text_file.read_text()[1700:], 128))
    for number, group in enumerate(loaded.spec.groups):
        block = Block.of(loaded.spec, loaded.spec.part(number), 128)
        raw = np.ascontiguousarray(made.kv[list(group.layers)])
        level = all_codecs()["transform"].levels.index(told["levels"][0])
        coded = encode(raw.data.cast("B"), block, Form(all_codecs()["transform"], level, artefact))
        assert len(coded.data) < raw.nbytes
        back = np.empty_like(raw)
        decode(coded.data, back.data.cast("B"), block, artefacts=lambda digest: {artefact.digest: artefact}[digest])
        error = np.abs(values_of(back) - values_of(raw)).mean() / np.abs(values_of(raw)).mean()
        assert error < 0.5
        assert np.array_equal(back[:, :, :4], raw[:, :, :4])


def test_it_says_what_it_used_and_what_it_would_take(
    llama_folder: Path, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, told, err = run(capsys, llama_folder, "--text", text_file, "--out", tmp_path / "a", "--variant", "layer")
    assert code == 0
    assert told["tokens"] >= 5 * 32
    assert told["tokens_good"] == 20 * 32
    assert told["decode_flops_per_token"] <= 3 * 2 * 2 * 32 * 32
    assert told["validated"][0]["kl"] <= told["validated"][-1]["kl"] * 1.5
    assert err == ""
    facts = Artefact.load(tmp_path / "a").facts
    assert facts["texts"] == ["words.txt"]
    assert facts["weights"] in subject(str(llama_folder)).spec.revision


def test_a_warning_between_5_and_20_tokens_a_dimension(
    llama_folder: Path, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, told, err = run(capsys, llama_folder, "--text", text_file, "--variant", "joint", "--out", tmp_path / "a")
    assert code == 0
    assert told["tokens"] < told["tokens_good"] == 20 * 192
    assert "3,840 would be good" in err


def test_too_little_text_is_refused(llama_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = tmp_path / "short.txt"
    short.write_text("abc " * 90)  # one window of 320 and too short a rest
    code, told, err = run(capsys, llama_folder, "--text", short, "--out", tmp_path / "a")
    assert (code, told) == (2, None)
    assert "too little" in err
    assert "\n" not in err.strip()
    short.write_text("abcdefgh " * 60)
    code, told, err = run(capsys, llama_folder, "--text", short, "--variant", "joint", "--out", tmp_path / "a")
    assert code == 2
    assert "too few for a transform of 192 dimensions: at least 960" in err
    assert not (tmp_path / "a").exists()


def test_wrong_input(llama_folder: Path, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "smolm2", "--text", text_file)
    assert code == 2
    assert "did you mean 'smollm2'?" in err
    there = tmp_path / "there"
    there.write_bytes(b"precious")
    code, _, err = run(capsys, llama_folder, "--text", text_file, "--out", there)
    assert code == 2
    assert "exists" in err
    assert there.read_bytes() == b"precious"
    code, _, err = run(capsys, llama_folder, "--text", tmp_path / "missing.txt", "--out", tmp_path / "a")
    assert code == 7
    assert "missing.txt cannot be read: No such file" in err
    code, _, err = run(capsys, llama_folder, "--text", text_file, "--out", tmp_path / "no" / "folder")
    assert code == 2
    assert "there is no folder" in err
    code, _, err = run(capsys, llama_folder, "--variant", "whole")
    assert code == 2
    empty = tmp_path / "empty-model"
    empty.mkdir()
    (empty / "config.json").write_text("{}")
    code, _, err = run(capsys, empty, "--text", text_file, "--out", tmp_path / "a")
    assert code == 2
    assert "no language model that Transformers can load" in err


def test_captured_caches_are_kept_and_reused(
    llama_folder: Path, text_file: Path, tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(capsys, llama_folder, "--text", text_file, "--out", tmp_path / "a")[0] == 0
    kept = {path: path.stat().st_mtime_ns for path in cache.rglob("*.kv.npy")}
    assert kept
    assert run(capsys, llama_folder, "--text", text_file, "--out", tmp_path / "b")[0] == 0
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*.kv.npy")} == kept
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
