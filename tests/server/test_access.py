"""Who may come in: tokens, namespaces, TLS, and where a server refuses to listen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kvstore
from kvstore import Config, NamespaceConfig, ServerConfig
from kvstore.server import serve

TENANTS = (NamespaceConfig("red", tokens=("red-1", "red-2")), NamespaceConfig("blue", tokens=("blue-1",)))


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0", "192.0.2.1:0", "example.org:0"])
@pytest.mark.parametrize("tokens", [(), ("secret",)])
def test_beyond_the_host_it_needs_certificate_and_tokens(listen: str, tokens: tuple[str, ...]) -> None:
    settings = Config(namespaces=(NamespaceConfig("default", tokens=tokens),), server=ServerConfig(listen))
    with pytest.raises(kvstore.ConfigError, match=r"without TLS.*127\.0\.0\.1"):
        serve(_NoStore(), settings)


def test_beyond_the_host_with_certificate_alone_is_not_enough(certificates: Path) -> None:
    files = {"tls_cert": certificates / "server.pem", "tls_key": certificates / "server.key"}
    with pytest.raises(kvstore.ConfigError, match="without tokens"):
        serve(_NoStore(), Config(server=ServerConfig("0.0.0.0:0", **files)))


def test_beyond_the_host_with_both(start: Callable[..., Any], certificates: Path) -> None:
    running = start(
        listen="0.0.0.0:0",
        tls_cert=certificates / "server.pem",
        tls_key=certificates / "server.key",
        namespaces=TENANTS,
    )
    port = running.server.address.rpartition(":")[2]
    with kvstore.connect(f"grpcs://localhost:{port}", ca=certificates / "ca.pem", token="red-1") as client:
        assert client.describe().namespace == "red"


@pytest.mark.parametrize(
    ("server", "words"),
    [
        ({"listen": "nonsense"}, "HOST:PORT"),
        ({"listen": "127.0.0.1:70000"}, "HOST:PORT"),
        ({"tls_cert": Path("/nowhere.pem")}, "go together"),
        (
            {"tls_cert": Path("/nowhere.pem"), "tls_key": Path("/nowhere.key")},
            "tls_key: .* cannot be read: No such file",
        ),
        ({"tls_cert": Path("/etc/hostname"), "tls_key": Path("/etc/hostname")}, "not a PEM file"),
        ({"client_ca": Path("/nowhere.pem")}, "client_ca needs"),
    ],
)
def test_settings_that_cannot_work_are_named(server: dict[str, Any], words: str) -> None:
    with pytest.raises(kvstore.ConfigError, match=words):
        serve(_NoStore(), Config(server=ServerConfig(**server)))


def test_a_port_that_is_taken(start: Callable[..., Any]) -> None:
    running = start()
    with pytest.raises(kvstore.ConfigError, match=f"on {running.server.address}: Address already in use"):
        start(listen=running.server.address)


def test_one_token_opens_one_namespace() -> None:
    both = (NamespaceConfig("red", tokens=("same",)), NamespaceConfig("blue", tokens=("same",)))
    with pytest.raises(kvstore.ConfigError, match="'red'"):
        serve(_NoStore(), Config(namespaces=both))


def test_tokens(start: Callable[..., Any]) -> None:
    address = start(namespaces=TENANTS).server.address
    for token, name in (("red-1", "red"), ("red-2", "red"), ("blue-1", "blue")):
        with kvstore.connect("grpc://" + address, token=token) as client:
            assert client.describe().namespace == name
    with (
        kvstore.connect("grpc://" + address, token="green") as client,
        pytest.raises(kvstore.PermissionDenied, match="not known"),
    ):
        client.describe()
    with kvstore.connect("grpc://" + address) as client, pytest.raises(kvstore.PermissionDenied, match="Bearer"):
        client.describe()
    with (
        kvstore.connect("grpc://" + address, token="red-1", namespace="blue") as client,
        pytest.raises(kvstore.UnknownNamespace, match="'blue'"),
    ):
        client.describe()


def test_streams_are_guarded_too(start: Callable[..., Any], kit: Any) -> None:
    address = start(namespaces=TENANTS).server.address
    ref = kvstore.ChunkRef(bytes(32), bytes(32), 0, 64)
    with kvstore.connect("grpc://" + address, token="green") as client:
        calls: list[Callable[[], object]] = [
            lambda: client.get(kit.small, ref),
            lambda: client.put(kit.small, ref, kit.block(kit.small)),
            lambda: next(client.watch()),
            lambda: next(client.verify()),
            lambda: client.lookup(kit.small, [ref], lease_s=1),
        ]
        for call in calls:
            with pytest.raises(kvstore.PermissionDenied, match="not known"):
                call()


def test_an_unknown_namespace(running: Any) -> None:
    with (
        kvstore.connect("grpc://" + running.server.address, namespace="nobody") as client,
        pytest.raises(kvstore.UnknownNamespace, match="'nobody'"),
    ):
        client.describe()


def test_tenants_see_nothing_of_each_other(start: Callable[..., Any], kit: Any) -> None:
    address = start(namespaces=TENANTS).server.address
    with kvstore.connect("grpc://" + address, token="red-1") as red, kvstore.connect(address, token="blue-1") as blue:
        chain = red.chain(kit.small, range(64))
        watch: Any = blue.watch()
        red.put(kit.small, chain.refs[0], kit.block(kit.small, 1))
        assert red.lookup(kit.small, chain, lease_s=5).tokens == 64
        assert blue.lookup(kit.small, chain).tokens == 0
        with pytest.raises(kvstore.NotFound):
            blue.get(kit.small, chain.refs[0])
        assert blue.delete(kit.small, [chain.refs[0].key]) == 0
        assert blue.pin(kit.small, [chain.refs[0].key], 5) == 0
        assert list(blue.list()) == []
        assert list(blue.verify()) == []
        assert blue.describe().chunks == 0
        assert blue.stats().keys() == {"version", "namespace"}
        assert blue.stats()["namespace"]["used"] == 0
        assert blue.put(kit.small, chain.refs[0], kit.block(kit.small, 2)) is True
        assert np.array_equal(red.get(kit.small, chain.refs[0]), kit.block(kit.small, 1))
        assert next(watch).kind == "stored"
        assert len(list(blue.list())) == 1
        watch.close()


def test_a_session_of_one_tenant_is_not_anothers(start: Callable[..., Any], kit: Any) -> None:
    running = start(namespaces=TENANTS)
    session = ("kvstore-session", "ab" * 16)
    with (
        kvstore.connect("grpc://" + running.server.address, token="red-1") as red,
        kvstore.connect("grpc://" + running.server.address, token="blue-1") as blue,
    ):
        for client in (red, blue):
            link = client.backend._link  # type: ignore[attr-defined]
            link.metadata = (session, *link.metadata[1:])
            chain = client.chain(kit.small, range(64))
            client.put(kit.small, chain.refs[0], kit.block(kit.small))
            assert client.lookup(kit.small, chain, lease_s=20).lease
        leases = running.store._core.leases
        assert len(leases) == 2
        red.close()
        kit.eventually(lambda: len(leases) == 1)
        assert blue.contains(kit.small, chain.refs) == [True]


def test_tls(start: Callable[..., Any], certificates: Path) -> None:
    running = start(tls_cert=certificates / "server.pem", tls_key=certificates / "server.key")
    address = running.server.address
    with kvstore.connect(f"grpcs://{address}", ca=(certificates / "ca.pem").read_bytes()) as client:
        assert client.describe().namespace == "default"
    for options in ({"ca": certificates / "stranger.pem"}, {}):
        with (
            kvstore.connect("grpc://" + address, timeout=3, retries=0, **options) as client,
            pytest.raises(kvstore.Unavailable, match=address),
        ):
            client.describe()


def test_mutual_tls(start: Callable[..., Any], certificates: Path) -> None:
    running = start(
        tls_cert=certificates / "server.pem", tls_key=certificates / "server.key", client_ca=certificates / "ca.pem"
    )
    address = running.server.address
    pair = {"cert": certificates / "client.pem", "key": certificates / "client.key"}
    with kvstore.connect("grpc://" + address, ca=certificates / "ca.pem", **pair) as client:
        assert client.describe().namespace == "default"
    stranger = {"cert": certificates / "stranger.pem", "key": certificates / "stranger.key"}
    for wrong in ({}, stranger):
        with kvstore.connect("grpc://" + address, ca=certificates / "ca.pem", timeout=3, retries=0, **wrong) as client:  # noqa: SIM117
            with pytest.raises(kvstore.Unavailable):
                client.describe()


def test_a_unix_socket_is_for_its_owner(start: Callable[..., Any], tmp_path: Path, kit: Any) -> None:
    path = tmp_path / "kvstore.sock"
    running = start(listen=f"unix:{path}")
    assert running.server.address == f"unix:{path}"
    assert path.stat().st_mode & 0o777 == 0o600
    with kvstore.connect(running.server.address) as client:
        (ref,) = client.chain(kit.small, range(64)).refs
        client.put(kit.small, ref, kit.block(kit.small))
        assert np.array_equal(client.get(kit.small, ref), kit.block(kit.small))


class _NoStore:
    def session(self, namespace: str) -> Any:
        raise AssertionError(f"nobody may get as far as {namespace}")
