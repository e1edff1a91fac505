"""End to end: from files into a folder or a server and back, and what a damaged byte does."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvstore.keys import Chain

from .conftest import SPEC, TOKENS, Run, environment, only_json

KEYS = [ref.key.hex() for ref in Chain.of(TOKENS, SPEC.chunk_tokens).refs]
Prompt = dict[str, Any]


@pytest.fixture
def stored(called: Run, prompt: Prompt) -> Prompt:
    """A folder with the prompt in it."""
    result = only_json(called("put", *prompt["files"], *prompt["store"], "kv.npy", "--ack", "synced", "--json"))
    assert result == {"keys": KEYS, "stored": 3, "present": 0, "bytes": prompt["kv"].nbytes}
    return prompt


def test_what_is_put_is_listed_and_comes_back(cli: Run, stored: Prompt, tmp_path: Path) -> None:
    listed = only_json(cli("ls", *stored["store"], "--json"))["chunks"]
    assert sorted(each["key"] for each in listed) == sorted(KEYS)
    assert {each["tokens"] for each in listed} == {16, 8}
    assert all(place["tier"] == "nvme" for each in listed for place in each["placements"])
    got = only_json(cli("get", *stored["files"], *stored["store"], "-o", "out.npy", "--json"))
    assert (got["tokens"], got["keys"]) == (40, KEYS)
    assert np.array_equal(np.load(tmp_path / "out.npy"), stored["kv"])


def test_a_second_put_finds_everything_there(called: Run, stored: Prompt) -> None:
    again = called("put", *stored["files"], *stored["store"], "kv.npy")
    assert again.stdout.startswith("stored 0 of 3 chunks")


def test_raw_bytes_and_single_chunks(called: Run, stored: Prompt, tmp_path: Path) -> None:
    by_number = called("get", *stored["files"], *stored["store"], "--chunk", "1", "-o", "one.bin")
    by_key = called("get", "--spec", "spec.json", "--key", KEYS[1], *stored["store"], "-o", "two.bin")
    assert (by_number.returncode, by_key.returncode) == (0, 0), by_number.stderr + by_key.stderr
    part = np.ascontiguousarray(stored["kv"][:, :, 16:32]).tobytes()
    assert (tmp_path / "one.bin").read_bytes() == (tmp_path / "two.bin").read_bytes() == part
    alone = ("--spec", "spec.json", "--key", "ab" * 32, "--token-count", "16", *stored["store"])
    assert called("put", *alone, "one.bin").returncode == 0
    assert called("put", *alone[:4], *stored["store"], "one.bin").returncode == 2
    assert called("get", *alone[:4], *stored["store"], "-o", "three.bin").returncode == 0
    assert (tmp_path / "three.bin").read_bytes() == part


def test_removed_chunks_are_misses(called: Run, stored: Prompt) -> None:
    one = ("--spec", "spec.json", "--key", KEYS[0], *stored["store"])
    assert only_json(called("rm", *one, "--json")) == {"deleted": 1, "asked": 1}
    assert called("rm", *one).returncode == 3
    missing = called("get", *one, "-o", "x.bin")
    assert (missing.returncode, missing.stdout) == (3, "")
    assert missing.stderr.startswith(f"kvstore: no chunk {KEYS[0]}")
    headless = called("get", *stored["files"], *stored["store"], "-o", "x.bin")
    assert headless.returncode == 3, "no prefix without its head"


def test_another_spec_is_a_miss(called: Run, stored: Prompt, tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text(json.dumps(SPEC.to_dict() | {"revision": "other"}))
    assert called("get", *stored["files"], *stored["store"], "-o", "x.npy").returncode == 3


def test_an_array_that_does_not_fit_names_both_shapes(called: Run, prompt: Prompt, tmp_path: Path) -> None:
    np.save(tmp_path / "kv.npy", prompt["kv"][:, :, :-1])
    result = called("put", *prompt["files"], *prompt["store"], "kv.npy")
    assert (result.returncode, result.stdout) == (2, "")
    assert "[2, 2, 39, 2, 8]" in result.stderr
    assert "[2, 2, 40, 2, 8]" in result.stderr


def test_verify_finds_a_damaged_byte(called: Run, stored: Prompt, tmp_path: Path) -> None:
    fine = only_json(called("verify", *stored["store"], "--json"))
    assert (fine["ok"], fine["tiers"]["nvme"]["placements"]) == (True, 3)
    _damage(tmp_path / "data", stored["kv"][:, :, 16:32])
    damaged = called("verify", *stored["store"], "--json")
    assert damaged.returncode == 6
    assert [bad["key"] for bad in json.loads(damaged.stdout)["corrupt"]] == [KEYS[1]]
    assert called("verify", *stored["store"]).returncode == 0  # quarantined: it is a miss now
    assert only_json(called("get", *stored["files"], *stored["store"], "-o", "x.npy", "--json"))["tokens"] == 16


def test_tiers_are_shown_from_fast_to_slow(called: Run, stored: Prompt) -> None:
    found = only_json(called("tiers", *stored["store"], "--json"))["tiers"]
    assert list(found) == ["dram", "nvme"]
    assert (found["nvme"]["kind"], found["nvme"]["state"], found["nvme"]["errors"]) == ("nvme", "ok", 0)
    assert 0 < found["nvme"]["used"] <= found["nvme"]["capacity"]
    shown = called("tiers", *stored["store"])
    assert shown.returncode == 0
    assert [line.split()[0] for line in shown.stdout.splitlines()] == ["tier", "dram", "nvme"]


def test_tiers_tell_what_their_filters_refuse(called: Run, stored: Prompt) -> None:
    keys = {"KVSTORE_NVME_ADMIT": "second-touch", "KVSTORE_NVME_WRITE_BYTES_PER_DAY": "4GiB"}
    shown = called("tiers", *stored["store"], env=keys)
    told = "nvme: admits second-touch; refused 0 chunks; 1 GiB of 1 GiB may be written now"
    assert shown.stdout.splitlines()[-1] == told
    found = only_json(called("tiers", *stored["store"], "--json", env=keys))["tiers"]["nvme"]
    assert (found["budget"], found["budget_most"]) == ("open", 1 << 30)
    assert found["refused"] == {"used_once": 0, "budget_low": 0, "budget_spent": 0}


def test_a_store_that_is_open_says_so(called: Run, stored: Prompt) -> None:
    with serving(stored["folder"]):
        result = called("ls", *stored["store"])
    assert (result.returncode, result.stdout) == (7, "")
    assert "use" in result.stderr


def test_a_server_end_to_end(cli: Run, called: Run, prompt: Prompt, tmp_path: Path) -> None:
    with serving(prompt["folder"]) as (address, stop):
        url = {"KVSTORE_URL": address}
        assert cli("put", *prompt["files"], "kv.npy", env=url).returncode == 0
        assert only_json(called("stats", "--json", env=url))["index"]["chunks"] == 3
        assert called("pin", *prompt["files"], "--for", "10m", env=url).stdout == "pinned 3 of 3 chunks\n"
        assert all(each["pinned_until_ms"] for each in only_json(called("ls", "--json", env=url))["chunks"])
        assert called("unpin", *prompt["files"], "--url", address).returncode == 0
        assert called("hint", *prompt["files"], "--back-in", "30s", env=url).stdout == "hinted 3 of 3 chunks\n"
        assert only_json(called("hint", *prompt["files"], "--json", env=url)) == {"hinted": 3, "asked": 3}
        counted = only_json(called("stats", "--json", env=url))["counters"]
        assert (counted["hints_awaited"], counted["hints_ended"]) == (1, 1)
        never = called("hint", *prompt["files"], "--back-in", "2d", env=url)
        assert (never.returncode, never.stdout) == (2, "")
        assert "awaited for up to 86400 s" in never.stderr
        assert only_json(called("verify", "--json", env=url))["ok"]
        assert called("ls", "--namespace", "nobody", env=url).returncode == 4
        assert stop(signal.SIGTERM) == 0
    # What only DRAM held was flushed when the server stopped.
    assert only_json(cli("get", *prompt["files"], *prompt["store"], "-o", "out.npy", "--json"))["tokens"] == 40
    assert np.array_equal(np.load(tmp_path / "out.npy"), prompt["kv"])
    assert called("ls", "--url", address).returncode == 8


def test_ctrl_c_stops_a_server_in_order(prompt: Prompt) -> None:
    with serving(prompt["folder"]) as (_, stop):
        assert stop(signal.SIGINT) == 0


def test_a_server_with_tokens(called: Run, prompt: Prompt, tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("s3cret\n")
    (tmp_path / "kvstore.toml").write_text('[[namespace]]\nname = "team"\ntokens_file = "tokens"\n')
    with serving(prompt["folder"]) as (address, _):
        assert called("ls", "--url", address, "--namespace", "team", "--token-file", "tokens").returncode == 0
        wrong = called("ls", "--url", address, "--namespace", "team", "--token", "guess")
        assert (wrong.returncode, wrong.stdout) == (4, "")


@contextmanager
def serving(folder: Path) -> Iterator[tuple[str, Callable[[signal.Signals], int]]]:
    """`kvstore serve` on a free port: its address, and a way to stop it."""
    command = [sys.executable, "-m", "kvstore", "serve", "--listen", "127.0.0.1:0", "--dram", "64MiB", "--nvme", "data",
               "--nvme-reserve", "0", "--json"]  # fmt: skip
    with subprocess.Popen(
        command, cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None

        def stop(how: signal.Signals) -> int:
            process.send_signal(how)
            return process.wait(30)

        try:
            ready = process.stdout.readline()
            assert ready, process.stderr.read()
            yield json.loads(ready)["address"], stop
        finally:
            process.kill()


def _damage(folder: Path, part: np.ndarray[Any, Any]) -> None:
    """Flip one bit of a stored part, wherever in the folder it lies."""
    inner = np.ascontiguousarray(part).tobytes()[100:164]
    for path in folder.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        at = content.find(inner)
        if at >= 0:
            with path.open("r+b") as file:
                file.seek(at)
                file.write(bytes([inner[0] ^ 1]))
            return
    raise AssertionError("the part is nowhere in the folder")
