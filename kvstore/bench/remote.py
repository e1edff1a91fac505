"""`kvstore bench remote`: the TCP bulk channel on loopback against a raw stream, both over TLS if asked for.

At 1 MiB Redis, where it is installed, answers the same reads in the same rounds.
"""

from __future__ import annotations

import secrets
import socket
import ssl
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from kvstore.bench import crowd
from kvstore.bench.certificate import make_certificate
from kvstore.bench.copies import capacity_for, store_corpus
from kvstore.bench.corpus import Corpus, chunk_bytes, shape_facts, specs_of
from kvstore.bench.measure import Bar, Row, bar_for, measure
from kvstore.bench.processes import Connect, Server, server
from kvstore.bench.redis_peer import PROGRAM, redis_peer
from kvstore.bench.tcp_peer import cipher_of, raw_stream
from kvstore.bench.wire import Wire
from kvstore.errors import InvalidArgument
from kvstore.spec import KVSpec

MiB = 1 << 20
SIZES = (1 * MiB, 4 * MiB, 16 * MiB)
WORKING_SET = 256 * MiB
BARS: Mapping[int, Bar] = {4 * MiB: Bar(ratio=0.90), 16 * MiB: Bar(ratio=0.88)}
TLS_BAR = Bar(ratio=0.8)
LEAST = 4  # chunks in rotation, however large they are


def run(
    *,
    rounds: int = 60,
    sizes: Sequence[int] = SIZES,
    model: KVSpec | None = None,
    tls: bool = False,
    crowds: crowd.Plan | None = None,
    working_set: int = WORKING_SET,
    mode: str = "bulk",
    connect: Connect = Server.connect,
    advance: Callable[[], None] = lambda: None,
) -> list[Row]:
    """All rows. `working_set` bytes are stored, and as many are read into, both in rotation.

    With `crowds` its numbers of readers read at once after that, without TLS.
    """
    if crowds and tls:
        raise InvalidArgument("many clients at once are measured without TLS")
    rows: list[Row] = []
    for spec in specs_of(sizes, model):
        nbytes = chunk_bytes(spec)
        slots = max(LEAST, working_set // nbytes)
        corpus = Corpus(nbytes, slots, slots, spec)
        with ExitStack() as stack:
            identity = stack.enter_context(_identity()) if tls else None
            raw = stack.enter_context(raw_stream(corpus, identity))
            running = stack.enter_context(_server(corpus, identity))
            if identity and mode == "bulk":
                _same_cipher(raw.cipher, running, identity[0])
            client = stack.enter_context(connect(running, mode))
            redis = stack.enter_context(redis_peer(corpus)) if nbytes == MiB and not tls else None
            store_corpus(client, corpus)
            group = Wire(client, corpus, raw, mode, running.pid)
            made = measure(group.cases(redis), rounds=rounds, slots=slots, advance=advance)
        for row in made:
            row.update(shape_facts(model))
            _judge(row, nbytes, tls, next((each for each in made if each["case"] == "redis"), None))
        rows += made
    for spec in specs_of(sizes, model) if crowds else ():
        rows += [row | shape_facts(model) for row in crowd.run_remote(spec, crowds or crowd.Plan(), mode=mode)]
    return rows


def _judge(row: Row, nbytes: int, tls: bool, redis: Row | None) -> None:
    if row["case"] != "get":
        return
    bar = bar_for(BARS, nbytes)
    if bar:
        (TLS_BAR if tls else bar).judge(row)
    if redis is not None:
        row["redis_ratio"] = redis["p50_s"] / row["p50_s"]
        row["bar"], row["met"] = "ahead of redis", row["redis_ratio"] > 1
    elif nbytes == MiB and not tls:
        row["note"] += f"; {PROGRAM} is not installed, so nothing to be ahead of"


@contextmanager
def _identity() -> Iterator[tuple[Path, Path]]:
    with tempfile.TemporaryDirectory(prefix="kvstore-tls-") as folder:
        yield make_certificate(Path(folder))


@contextmanager
def _server(corpus: Corpus, identity: tuple[Path, Path] | None) -> Iterator[Server]:
    """A server that holds the corpus; with a certificate and a token where there is an identity."""
    if identity is None:
        with server(capacity_for(corpus)) as running:
            yield running
        return
    certificate, key = identity
    token = secrets.token_hex(16)
    config = certificate.parent / "kvstore.toml"
    config.touch(mode=0o600)
    config.write_text(f'[[namespace]]\nname = "default"\ntokens = ["{token}"]\n', encoding="utf-8")
    flags = ("--config", str(config), "--server-tls-cert", str(certificate), "--server-tls-key", str(key))
    with server(capacity_for(corpus), *flags, token=token, ca=str(certificate)) as running:
        yield running


def _same_cipher(raw: str, running: Server, certificate: Path) -> None:
    """The baseline must be encrypted as the bulk channel is."""
    host, _, port = running.url("bulk").rpartition("://")[2].rpartition(":")
    context = ssl.create_default_context(cafile=str(certificate))
    with (
        socket.create_connection((host, int(port))) as plain,
        context.wrap_socket(plain, server_hostname=host) as secure,
    ):
        found = cipher_of(secure)
    if found != raw:
        raise InvalidArgument(f"the raw stream is encrypted with {raw}, the bulk channel with {found}")
