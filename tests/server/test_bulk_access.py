"""The bulk channel's TLS and tokens, and servers of it that go away."""

from __future__ import annotations

import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kvstore
from kvstore import NamespaceConfig
from kvstore.channels.bulk import BulkBackend

TENANTS = (NamespaceConfig("red", tokens=("red-1",)), NamespaceConfig("blue", tokens=("blue-1",)))


def files(certificates: Path) -> dict[str, Any]:
    return {"tls_cert": certificates / "server.pem", "tls_key": certificates / "server.key"}


def refused(url: str, kind: type[BaseException], words: str, **options: Any) -> None:
    start = time.monotonic()
    with kvstore.connect(url, timeout=60, **options) as client, pytest.raises(kind, match=words):
        client.describe()
    assert time.monotonic() - start < 30, "it is told, not waited for"


def test_tls_and_what_is_wrong_with_it(start: Callable[..., Any], certificates: Path, kit: Any) -> None:
    bulk = start(**files(certificates)).server.bulk
    port = bulk.rpartition(":")[2]
    ca = (certificates / "ca.pem").read_bytes()
    with kvstore.connect(f"bulk://{bulk}", ca=ca) as client:
        refs = client.chain(kit.large, range(512)).refs
        data = [kit.block(kit.large, seed) for seed in range(2)]
        for ref, each in zip(refs, data, strict=True):
            assert client.put(kit.large, ref, each) is True
        outs = [np.zeros_like(each) for each in data]
        wants = [client.want(kit.large, ref, out) for ref, out in zip(refs, outs, strict=True)]
        assert list(client.get_each(kit.large, wants)) == [(0, None), (1, None)]
        assert np.array_equal(outs, data)
        (line,) = client.backend._lines._idle  # type: ignore[attr-defined]
        assert line._sock.version() == "TLSv1.3"
    with kvstore.connect(f"bulks://localhost:{port}", ca=certificates / "ca.pem") as client:
        assert client.describe().namespace == "default"
    refused(f"bulk://{bulk}", kvstore.Unavailable, "not to be trusted", ca=certificates / "stranger.pem")
    refused(f"bulks://{bulk}", kvstore.Unavailable, "not to be trusted")
    refused(f"bulk://127.0.0.2:{port}", kvstore.Unavailable, r"refused|not to be trusted", ca=ca)
    refused(f"bulk://{bulk}", kvstore.InvalidArgument, "speaks TLS")


def test_plain_gets_over_tls(start: Callable[..., Any], certificates: Path, kit: Any) -> None:
    running = start(**files(certificates))
    with kvstore.connect("bulk://" + running.server.bulk, ca=certificates / "ca.pem", timeout=10) as client:
        refs = client.chain(kit.large, range(768)).refs
        for seed, ref in enumerate(refs[:2]):
            client.put(kit.large, ref, kit.block(kit.large, seed))
        for seed in (0, 1, 0):
            assert np.array_equal(client.get(kit.large, refs[seed]), kit.block(kit.large, seed))
        with pytest.raises(kvstore.NotFound):
            client.get(kit.large, refs[2])
    core = running.store._core
    assert core.catalog.namespaces["default"].tally.hits_dram == 2  # answered natively, but for the first
    with core.lock:
        rows = core.index.chunks(0, 10)[0].tolist()
        assert not any(core.index.placement(each).readers for row in rows for each in core.placements(row))


def test_another_hosts_certificate_and_one_that_has_expired(
    start: Callable[..., Any], certificates: Path, tmp_path: Path
) -> None:
    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=tmp_path, check=True, capture_output=True, timeout=60)

    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    ca = ("-CA", str(certificates / "ca.pem"), "-CAkey", str(certificates / "ca.key"), "-set_serial", "7")
    cases = {"other": ("DNS:elsewhere.example", "2", "not valid for"), "old": ("IP:127.0.0.1", "-1", "expired")}
    for name, (host, days, words) in cases.items():
        (tmp_path / "san").write_text(f"subjectAltName={host}")
        openssl("req", *curve, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        openssl("x509", "-req", "-in", f"{name}.csr", *ca, "-days", days, "-extfile", "san", "-out", f"{name}.pem")
        running = start(tls_cert=tmp_path / f"{name}.pem", tls_key=tmp_path / f"{name}.key")
        refused(f"bulk://{running.server.bulk}", kvstore.Unavailable, words, ca=certificates / "ca.pem")


def test_tls_to_a_server_without(running: Any, certificates: Path) -> None:
    refused(f"bulks://{running.server.bulk}", kvstore.Unavailable, "no TLS", ca=certificates / "ca.pem")


def test_mutual_tls(start: Callable[..., Any], certificates: Path) -> None:
    bulk = start(**files(certificates), client_ca=certificates / "ca.pem").server.bulk
    ca = {"ca": certificates / "ca.pem"}
    pair = {"cert": certificates / "client.pem", "key": (certificates / "client.key").read_bytes()}
    with kvstore.connect(f"bulk://{bulk}", **ca, **pair) as client:
        assert client.describe().namespace == "default"
    stranger = {"cert": certificates / "stranger.pem", "key": certificates / "stranger.key"}
    for wrong in ({}, stranger):
        refused(f"bulk://{bulk}", kvstore.Unavailable, bulk, **ca, **wrong)


def test_the_best_channel_over_tls(start: Callable[..., Any], certificates: Path) -> None:
    server = start(**files(certificates), namespaces=TENANTS, local="off", listen="0.0.0.0:0").server
    address = f"localhost:{server.address.rpartition(':')[2]}"
    with kvstore.connect(address, ca=certificates / "ca.pem", token="red-1") as client:
        assert client.describe().namespace == "red"
        assert isinstance(client.backend, BulkBackend)


def test_tokens(start: Callable[..., Any], kit: Any) -> None:
    url = "bulk://" + start(namespaces=TENANTS).server.bulk
    with kvstore.connect(url, token="red-1") as red, kvstore.connect(url, token="blue-1") as blue:
        (ref,) = red.chain(kit.small, range(64)).refs
        red.put(kit.small, ref, kit.block(kit.small))
        with pytest.raises(kvstore.NotFound):
            blue.get(kit.small, ref)
        assert blue.delete(kit.small, [ref.key]) == 0
        assert (red.describe().namespace, blue.describe().chunks) == ("red", 0)
    refused(url, kvstore.PermissionDenied, "wants a token")
    refused(url, kvstore.PermissionDenied, "not known", token="green")
    refused(url, kvstore.UnknownNamespace, "'blue'", token="red-1", namespace="blue")


@pytest.fixture
def bulk_process(process: Callable[..., Any]) -> Any:
    made = process()
    with kvstore.connect("grpc://" + made.address) as client:
        made.bulk = client.describe().extra["bulk"]
    return made


def test_a_stopped_server_is_a_passed_deadline(bulk_process: Any) -> None:
    with kvstore.connect("bulk://" + bulk_process.bulk, timeout=2) as client:
        client.describe()
        bulk_process._process.send_signal(signal.SIGSTOP)
        state = Path(f"/proc/{bulk_process._process.pid}/stat")
        while state.read_text().rpartition(")")[2].split()[0] != "T":
            time.sleep(0.01)
        with pytest.raises(kvstore.DeadlineExceeded, match="in time"):
            client.stats()
        with pytest.raises(kvstore.Unavailable, match="did not answer in time"):
            client.stats()  # on a new connection
        bulk_process._process.send_signal(signal.SIGCONT)
        assert client.describe().namespace == "default"


def test_a_server_killed_under_load(bulk_process: Any, process: Callable[..., Any], kit: Any) -> None:
    with kvstore.connect("bulk://" + bulk_process.bulk, timeout=10, retries=2) as client:
        chain, data = client.chain(kit.large, range(256)), kit.block(kit.large)
        client.put(kit.large, chain.refs[0], data)
        client.lookup(kit.large, chain, lease_s=30)
        failures: list[BaseException] = []
        loading = threading.Barrier(4)

        def load() -> None:
            out = np.zeros_like(data)
            loading.wait()
            try:
                while True:
                    client.get(kit.large, chain.refs[0], out=out)
                    assert np.array_equal(out, data)
            except kvstore.KVStoreError as error:
                failures.append(error)

        threads = [threading.Thread(target=load) for _ in range(3)]
        for thread in threads:
            thread.start()
        loading.wait()
        time.sleep(0.2)
        bulk_process.end()
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()
        assert [type(failure) for failure in failures] == [kvstore.Unavailable] * 3


def test_a_server_that_comes_back_is_found_again(start: Callable[..., Any], kit: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    first = start(bulk=f"127.0.0.1:{port}")
    with kvstore.connect(f"bulk://127.0.0.1:{port}", timeout=10) as client:
        (ref,) = client.chain(kit.small, range(64)).refs
        client.put(kit.small, ref, kit.block(kit.small))
        first.server.stop(0.1)
        start(bulk=f"127.0.0.1:{port}")
        with pytest.raises(kvstore.NotFound):
            client.get(kit.small, ref)
        assert client.put(kit.small, ref, kit.block(kit.small)) is True
        assert np.array_equal(client.get(kit.small, ref), kit.block(kit.small))


def test_a_client_that_waits_is_woken_by_close(running: Any) -> None:
    client = kvstore.connect("bulk://" + running.server.bulk)
    watch, seen = client.watch(), []
    thread = threading.Thread(target=lambda: seen.extend(watch))
    thread.start()
    client.close()
    thread.join(30)
    assert not thread.is_alive()
    with pytest.raises(kvstore.Closed):
        client.describe()
