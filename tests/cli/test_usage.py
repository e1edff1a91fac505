"""What the command line says of wrong usage and wrong input, and what it leaves unimported."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from kvstore.cli import main

from .conftest import Run, environment, only_json

COMMANDS = (
    "serve",
    "demo",
    "config",
    "stats",
    "tiers",
    "ls",
    "get",
    "put",
    "rm",
    "pin",
    "unpin",
    "hint",
    "verify",
    "cxl",
    "bench",
)
BENCHMARKS = ("local", "remote", "grpc", "lookup", "mix", "nvme", "tier", "outage", "index", "torture", "peers")


def assert_one_line(result: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    assert (result.returncode, result.stdout) == (code, ""), result.stderr
    assert result.stderr.startswith("kvstore: ")
    assert result.stderr.count("\n") == 1, result.stderr
    assert all(word in result.stderr for word in words), result.stderr


def test_help_names_every_command(cli: Run) -> None:
    result = cli("--help")
    assert result.returncode == 0
    assert all(f"    {command} " in result.stdout for command in COMMANDS)


@pytest.mark.parametrize("command", [*COMMANDS, *(f"bench {name}" for name in BENCHMARKS)])
def test_every_command_has_help(called: Run, command: str) -> None:
    result = called(*command.split(), "--help")
    assert result.returncode == 0
    assert result.stdout.startswith(f"usage: kvstore {command}")


def test_help_and_the_package_import_nothing_heavy() -> None:
    heavy = "torch grpc pyarrow transformers rich"
    code = (
        "import sys, kvstore, kvstore.cli\n"
        "kvstore.cli.main(['--help'])\n"
        f"print([name for name in '{heavy}'.split() if name in sys.modules], file=sys.stderr)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=60, check=True
    )
    assert result.stderr.strip() == "[]"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), ["COMMAND"]),
        (("frobnicate",), ["frobnicate"]),
        (("ls", "--frobnicate"), ["--frobnicate", "see kvstore ls --help"]),
        (("serve", "--policy", "lru"), ["unknown: --policy", "did you mean --store-policy?", "kvstore serve --help"]),
        (("stats", "--nmve=x"), ["did you mean --nvme?"]),
        (("bench", "local", "--round", "3"), ["did you mean --rounds?", "kvstore bench local --help"]),
        (("serve", "--dram", "3XB"), ["--dram-capacity", '"3XB"', "512MiB"]),
        (("serve", "--store-policy", "clock"), ["--store-policy", "'clock'", "s3fifo"]),
        (("serve", "--nvme", "x", "--nvme-admit", "twice"), ["--nvme-admit", '"twice"', '"second-touch"']),
        (("serve", "--nvme", "x", "--nvme-write-bytes-per-day", "2 DWPD"), ['"2 DWPD"', "is not a size like"]),
        (("serve", "--remote", "file:///x", "--remote-write-bytes-per-day", "-1"), ["--remote-write-bytes-per-day"]),
        (("serve", "--cxl-write-bytes-per-day", "1TB"), ["--cxl-write-bytes-per-day"]),
        (("ls",), ["--url", "--nvme"]),
        (("ls", "--nvme", "nowhere"), ["no such folder"]),
        (("ls", "--nvme", "."), ["there is no store in .", "kvstore put"]),
        (("stats", "--url", "bulks://127.0.0.1:1", "--ca", "no.pem"), ["no.pem cannot be read: No such file"]),
        (("stats", "--url", "127.0.0.1:1", "--ca", "/etc/hostname"), ["/etc/hostname is not a PEM file"]),
        (("sim", "none.jsonl", "--out", "x"), ["--out and --seconds go with --record"]),
        (("sim", "none.jsonl"), ["kvstore: none.jsonl cannot be read: No such file or directory\n"]),
        (("ls", "--url", "h:1", "--nvme", "x"), ["give one of them"]),
        (("ls", "--limit", "0", "--nvme", "x"), ["whole number of 1 or more"]),
        (("rm", "--spec", "none.json", "--key", "00", "--nvme", "x"), ["none.json", "No such file"]),
        (("config", "--config", "none.toml"), ["none.toml", "No such file"]),
    ],
)
def test_wrong_usage_is_one_line_and_exit_2(called: Run, arguments: tuple[str, ...], words: list[str]) -> None:
    assert_one_line(called(*arguments), 2, *words)


def test_a_wrong_key_in_the_configuration_names_its_line(called: Run, tmp_path: Path) -> None:
    (tmp_path / "kvstore.toml").write_text("[dram]\ncapacity = 1\nextend = 2\n")
    assert_one_line(called("config"), 2, "kvstore.toml:3:", "did you mean 'extent'")
    debug = called("config", "--debug")
    assert debug.returncode == 2
    assert "Traceback" in debug.stderr


def test_an_unknown_variable_is_an_error(cli: Run) -> None:
    assert_one_line(cli("config", env={"KVSTORE_DRAM_SIZE": "1"}), 2, "KVSTORE_DRAM_SIZE")


def test_config_prints_what_is_in_force(cli: Run) -> None:
    env = {"KVSTORE_SERVER_LISTEN": "127.0.0.1:1234"}
    data = tomllib.loads(cli("config", "--dram", "3GiB", env=env).stdout)
    assert (data["dram"]["capacity"], data["server"]["listen"]) == ("3GiB", "127.0.0.1:1234")
    shown = only_json(cli("config", "--dram", "3GiB", "--json", env=env))
    assert (shown["dram"], shown["server"], shown["nvme"]) == (data["dram"], data["server"], None)


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"--spec": "tokens.json"}, 2, ["not a JSON object"]),
        ({"--spec": "half.json"}, 2, ["not a spec"]),
        ({"--tokens": "spec.json"}, 2, ["not a JSON list"]),
        ({"--tokens": "kv.npy"}, 2, ["not JSON"]),
        ({"--chunk": "3"}, 2, ["3 chunks", "no chunk 3"]),
        ({"--rank": "1"}, 2, ["no part of this spec"]),
        ({"--group": "1"}, 2, ["1 KV groups"]),
    ],
)
def test_wrong_input_says_what_it_is(
    called: Run, prompt: dict[str, Any], tmp_path: Path, change: dict[str, str], code: int, words: list[str]
) -> None:
    (tmp_path / "half.json").write_text(json.dumps({"model": "x"}))
    options = {"--spec": "spec.json", "--tokens": "tokens.json"} | change
    flat = [word for pair in options.items() for word in pair]
    assert_one_line(called("put", *flat, *prompt["store"], "kv.npy"), code, *words)


def test_a_closed_pipe_is_silent(cli: Run, tmp_path: Path) -> None:
    command = f"{sys.executable} -m kvstore config | true"
    result = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], cwd=tmp_path, env=environment(), capture_output=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")


def test_ctrl_c_ends_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(args: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("kvstore.cli.settings.show", interrupted)
    assert main(["config"]) == 130
