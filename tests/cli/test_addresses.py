"""Servers that cannot start, and stores that are not where they are looked for: what the command line says."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from .conftest import Run
from .test_usage import assert_one_line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("serve", "--dram", "900TiB"), ["dram.capacity = 900TiB is more than the", "GiB of memory of this host"]),
        (("serve", "--nvme", "x", "--nvme-capacity", "1MiB"), ["[nvme] capacity 1048576", "lower segment"]),
        (("serve", "--server-tls-cert", "no.pem", "--server-tls-key", "no.key"), ["no.key cannot be read: No such"]),
        (("serve", "--listen", "unix:none/socket"), ["unix:none/socket: there is no folder none"]),
        (("serve", "--listen", "unix:/etc/hostname"), ["unix:/etc/hostname: there is a file of another kind"]),
    ],
)
def test_a_server_that_cannot_be_is_one_line_and_exit_2(cli: Run, arguments: tuple[str, ...], words: list[str]) -> None:
    assert_one_line(cli(*arguments), 2, *words)


def test_a_command_that_reads_makes_no_store(cli: Run, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    for command in ("ls", "stats", "tiers", "verify", "artefacts"):
        assert_one_line(cli(command, "--nvme", "mine"), 2, "there is no store in mine")
    assert list((tmp_path / "mine").iterdir()) == []


def test_results_that_cannot_be_written_are_told_before_anything_is_measured(cli: Run) -> None:
    assert_one_line(cli("demo", "--out", "/proc/none"), 7, "/proc/none", "No such file or directory")


def test_texts_are_looked_for_before_a_model_is_loaded(cli: Run) -> None:
    assert_one_line(cli("calibrate", "nosuchmodel", "--text", "none.txt"), 7, "none.txt cannot be read: No such file")


def test_a_port_that_is_taken(cli: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert_one_line(cli("serve", "--listen", address), 2, address, "Address already in use")


def test_a_socket_where_a_server_listens_is_not_taken_from_it(cli: Run, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as taken:
        taken.bind(str(path))
        taken.listen()
        assert_one_line(cli("serve", "--listen", f"unix:{path}"), 2, str(path), "another server listens there")
        assert path.is_socket()


@pytest.mark.parametrize("scheme", ["", "grpc://", "bulk://"])
def test_where_no_server_is(cli: Run, scheme: str) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))  # nobody listens, and nobody else can
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        result = cli("stats", "--url", f"{scheme}{address}")
    assert_one_line(result, 8, address, "Connection refused; is the server running?")
    assert len(result.stderr) < 100


def test_where_no_socket_is(cli: Run) -> None:
    assert_one_line(
        cli("stats", "--url", "unix:none"), 8, "unix:none: No such file or directory; is the server running?"
    )


def test_a_shared_place_that_does_not_answer(cli: Run) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        result = cli("serve", "--listen", "127.0.0.1:0", "--remote", f"valkey://{address}")
    assert_one_line(result, 8, address, "Connection refused; is the server running?")
