"""Which way a client takes when it is left to choose."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import kvstore
from kvstore.channels import choose
from kvstore.channels.bulk import BulkBackend, _shares
from kvstore.channels.grpc import GrpcBackend
from kvstore.channels.local import LocalBackend


def taken(address: str, **options: Any) -> type[Any]:
    with kvstore.connect(address, timeout=20, **options) as client:
        assert client.describe().namespace == "default"
        return type(client.backend)


@pytest.mark.parametrize(
    ("server", "kind"),
    [
        ({}, LocalBackend),
        ({"local": "off"}, BulkBackend),
        ({"local": "off", "bulk": "off"}, GrpcBackend),
        ({"bulk": "off"}, LocalBackend),
    ],
)
def test_the_best_that_is_there(start: Callable[..., Any], server: dict[str, str], kind: type[Any]) -> None:
    assert taken(start(**server).server.address) is kind


def test_ipv6(start: Callable[..., Any]) -> None:
    try:
        running = start(listen="[::1]:0", local="off")
    except kvstore.ConfigError:
        pytest.skip("no IPv6 on this host")
    assert running.server.bulk.startswith("[::1]:")
    assert taken(running.server.address) is BulkBackend


def test_a_unix_address_is_grpc(start: Callable[..., Any], tmp_path: Path) -> None:
    running = start(listen=f"unix:{tmp_path}/g.sock")
    assert running.server.bulk == ""
    assert taken(running.server.address) is GrpcBackend


@pytest.mark.parametrize("silent", [True, False], ids=["swallows", "refuses"])
def test_a_firewall_before_the_bulk_channel(start: Callable[..., Any], silent: bool) -> None:
    running = start(local="off")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        if not silent:
            listener.close()
            port = 1
        else:
            port = listener.getsockname()[1]
        running.server._service.facts["bulk"] = f"127.0.0.1:{port}"
        assert taken(running.server.address) is GrpcBackend


def test_never_another_server(start: Callable[..., Any]) -> None:
    here, other = start(), start()
    here.server._service.facts.update(local=other.server.local, bulk=other.server.bulk)
    assert taken(here.server.address) is GrpcBackend


def test_a_first_call_that_fails_can_be_made_again(start: Callable[..., Any], kit: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with kvstore.connect(f"127.0.0.1:{port}", timeout=2, retries=0) as client:
        with pytest.raises(kvstore.Unavailable):
            client.describe()
        running = start(listen=f"127.0.0.1:{port}", bulk="127.0.0.1:0")

        def answers() -> bool:
            try:
                return client.describe().namespace == "default"
            except kvstore.Unavailable:  # gRPC waits before it connects again
                return False

        kit.eventually(answers)
        assert isinstance(client.backend, LocalBackend)
        kit.eventually(lambda: running.sessions() <= 1)  # the probe's ends by itself


def test_the_first_call_from_many_threads(start: Callable[..., Any], kit: Any) -> None:
    running = start()
    with kvstore.connect(running.server.address, timeout=10) as client:
        ready, kinds = threading.Barrier(8), list[type[Any]]()

        def call() -> None:
            ready.wait()
            client.describe()
            kinds.append(type(client.backend))

        threads = [threading.Thread(target=call) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert kinds == [LocalBackend] * 8
    kit.eventually(lambda: running.sessions() == 0)


def test_closed_before_and_while_it_is_used(start: Callable[..., Any]) -> None:
    client = kvstore.connect(start().server.address)
    client.close()
    with pytest.raises(kvstore.Closed):
        client.describe()


@pytest.mark.parametrize("url", ["bulk://", "bulk://host", "bulk://host:port", "bulk://host:70000", "local:"])
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(kvstore.InvalidArgument):
        kvstore.connect(url)


def test_where_a_bulk_channel_may_be() -> None:
    addresses = choose._bulk_addresses
    assert addresses("store:7420", "") == []
    assert addresses("store:7420", "0.0.0.0:7421") == ["store:7421"]
    assert addresses("[::1]:7420", "[::]:7421") == ["[::1]:7421"]
    assert addresses("store:7420", "10.0.0.5:7421") == ["store:7421", "10.0.0.5:7421"]
    assert addresses("10.0.0.5:7420", "10.0.0.5:7421") == ["10.0.0.5:7421"]


def test_how_a_batch_is_shared_out(kit: Any) -> None:
    def want(nbytes: int) -> Any:
        return kvstore.Want(None, None, memoryview(bytearray(nbytes)))  # type: ignore[arg-type]

    assert _shares([], 4) == [range(0)]
    assert _shares([want(1 << 20)] * 4, 4) == [range(4)]
    assert _shares([want(4 << 20)] * 8, 4) == [range(2), range(2, 4), range(4, 6), range(6, 8)]
    assert _shares([want(16 << 20), *[want(1 << 20)] * 4], 2) == [range(1), range(1, 5)]
    for count in range(1, 30):
        shares = _shares([want((7 * i % 5 + 1) << 20) for i in range(count)], 3)
        assert [index for share in shares for index in share] == list(range(count))
        assert len(shares) <= 3
