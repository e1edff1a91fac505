"""What `[peers]` may say, and what is refused at the start."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kvstore import settings
from kvstore.bench.redis_server import free_port
from kvstore.config import PeersConfig
from kvstore.errors import ConfigError
from kvstore.peering import address_for_peers


def load(tmp_path: Path, *lines: str) -> PeersConfig | None:
    path = tmp_path / "kvstore.toml"
    path.write_text("\n".join(["[peers]", *lines]))
    return settings.load(path, {}).peers


def test_a_table_is_read_and_its_token_is_never_shown(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("# of all hosts\nabc\n")
    read = load(tmp_path, 'directory = "valkey://cache:6379"', 'token_file = "secret"', 'advertise = "10.0.0.1:7421"')
    assert read is not None
    assert (read.token, read.directory, read.advertise) == ("abc", "valkey://cache:6379", "10.0.0.1:7421")
    assert "abc" not in repr(read)
    config = settings.load(tmp_path / "kvstore.toml", {})
    assert "abc" not in settings.render(config)
    assert [each.table for each in config.below] == ["peers"]


def test_a_token_alone_takes_peers_and_asks_none(tmp_path: Path) -> None:
    load(tmp_path, 'token = "abc"')
    assert settings.load(tmp_path / "kvstore.toml", {}).below == ()
    assert settings.load(None, {"KVSTORE_PEERS_TOKEN": "abc"}).peers == PeersConfig(token="abc")


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (['directory = "valkey://x"'], "set its token, or token_file"),
        (['token = "a"', 'token_file = "secret"'], "set one of them"),
        (['token_file = "two"'], "holds 2 tokens; servers show one"),
        (['token_file = "none"'], "cannot be read"),
        (['token = "a"', 'advertise = "h:1"'], "set peers.directory"),
        (['token = "a"', 'directory = "valkey://x"', 'advertise = "h"'], "'h' is not HOST:PORT"),
        (['token = "a"', 'directory = "valkey://x"', 'advertise = "h:70000"'], "is not HOST:PORT"),
        (['token = "a"', 'group = "A b"'], r"peers.group = 'A b' is not 1 to 64"),
        (['token = "a"', 'cert = "c.pem"'], "peers.cert and peers.key belong together"),
        (['token = "a"', "lease_s = 0.5"], "peers.lease_s = 0.5 is too small"),
    ],
)
def test_what_cannot_work_is_refused(tmp_path: Path, lines: list[str], words: str) -> None:
    (tmp_path / "two").write_text("a\nb\n")
    (tmp_path / "secret").write_text("a\n")
    with pytest.raises(ConfigError, match=words):
        load(tmp_path, *lines)


def test_where_others_reach_this_host() -> None:
    config = PeersConfig(token="a")
    assert address_for_peers(config, "10.0.0.1:7421", tls=False) == "bulk://10.0.0.1:7421"
    assert address_for_peers(config, "[fd00::1]:7421", tls=True) == "bulks://[fd00::1]:7421"
    told = PeersConfig(token="a", advertise="host:7421")
    assert address_for_peers(told, "0.0.0.0:7421", tls=False) == "bulk://host:7421"
    for bulk, words in (
        ("0.0.0.0:7421", "set peers.advertise"),
        ("[::]:1", "set peers.advertise"),
        ("", "bulk is off"),
    ):
        with pytest.raises(ConfigError, match=words):
            address_for_peers(config, bulk, tls=False)


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (["--peers-directory", "valkey://127.0.0.1:1"], 2, "needs what servers show each other"),
        (["--peers-directory", "s3://bucket", "--peers-token", "a"], 2, "is no Valkey"),
        (["--peers-directory", "valkey://:secret@127.0.0.1", "--peers-token", "a"], 2, "must not hold a password"),
        (
            ["--peers-directory", "valkey://127.0.0.1", "--peers-token", "a", "--peers-ca", "none.pem"],
            2,
            "cannot be read",
        ),
        (["--peers-directory", "valkey://127.0.0.1:{port}", "--peers-token", "a"], 8, "refused"),
    ],
)
def test_a_server_is_refused_at_the_start(flags: list[str], code: int, words: str) -> None:
    command = [
        sys.executable,
        "-m",
        "kvstore",
        "serve",
        "--listen",
        "127.0.0.1:0",
        "--dram",
        "8MiB",
        "--dram-extent",
        "8MiB",
    ]
    command += [flag.format(port=free_port()) for flag in flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
