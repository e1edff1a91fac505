"""What the benchmarks' tests share: rows with the fields that programs rely on, and a store that lies."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from kvstore.api import Want
from kvstore.bench.processes import Server
from kvstore.client import Client
from kvstore.spec import KVSpec

FIELDS = {"case", "mode", "bytes", "p50_s", "p99_s", "gbps", "baseline", "ratio"}


def assert_rows(rows: Iterable[dict[str, Any]]) -> None:
    """Every row has the design's fields, CPU time, and a ratio exactly where it has a baseline."""
    for row in rows:
        assert row.keys() >= FIELDS, row
        assert (row["ratio"] is not None) == (row["baseline"] is not None), row
        assert row["p50_s"] <= row["p99_s"]
        assert "cpu_s_per_gb" in row
        assert (row.get("cpu_s_per_gb") or row.get("cpu_s_per_call")) is not None, row
        assert row["note"]


class Liar:
    """A backend that flips a byte of everything it gets."""

    def __init__(self, honest: Any) -> None:
        self._honest = honest

    def __getattr__(self, name: str) -> Any:
        return getattr(self._honest, name)

    def get(self, spec: KVSpec, wants: Sequence[Want], **options: Any) -> Sequence[Exception | None]:
        """What was asked for, but for one bit of its last byte."""
        outcomes: Sequence[Exception | None] = self._honest.get(spec, wants, **options)
        for want in wants:
            want.out[-1] ^= 1
        return outcomes


def lying(client: Client) -> Client:
    """The same client over a backend that lies."""
    return Client(Liar(client.backend))


def connect_lying(server: Server, mode: str) -> Client:
    """In place of `Server.connect`."""
    return lying(server.connect(mode))
