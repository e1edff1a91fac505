"""The tiers that a configuration names, opened."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from kvstore.config import Config, CxlConfig, DramConfig, NvmeConfig, PeersConfig, RemoteConfig
from kvstore.errors import ConfigError, KVStoreError
from kvstore.tiers.base import Tier
from kvstore.tiers.dram import DramTier

if TYPE_CHECKING:
    from kvstore.tiers.remote.engine import Engine

VALKEY = ("valkey", "valkeys", "redis", "rediss", "unix")


def open_tiers(config: Config) -> tuple[DramTier, Sequence[Tier]]:
    """DRAM, and what is below it, the fastest first. Where one cannot be opened the others are closed again."""
    below: list[Tier] = []
    try:
        below.extend(map(_open, config.below))
        return _dram(config.dram), below
    except (KVStoreError, OSError):
        for tier in below:
            tier.close()
        raise


def _open(config: CxlConfig | NvmeConfig | PeersConfig | RemoteConfig) -> Tier:
    if isinstance(config, PeersConfig):
        return _peers(config)
    if isinstance(config, RemoteConfig):
        return _remote(config)
    return _nvme(config) if isinstance(config, NvmeConfig) else _cxl(config)


def _dram(config: DramConfig) -> DramTier:
    return DramTier(
        config.capacity,
        config.extent,
        nodes=config.nodes or None,
        pages=config.pages,
        lock_memory=config.lock,
    )


def _cxl(config: CxlConfig) -> Tier:
    from kvstore.tiers.cxl import CxlTier

    return CxlTier(config.capacity or None, nodes=config.nodes, paths=config.paths, persistent=config.persistent)


def _nvme(config: NvmeConfig) -> Tier:
    from kvstore.tiers.nvme import NvmeTier

    return NvmeTier(
        paths=[config.path, *config.paths],
        capacity=config.capacity,
        segment_bytes=config.segment,
        reserve_bytes=config.reserve,
        io_threads=config.io_threads,
    )


def _remote(config: RemoteConfig) -> Tier:
    from kvstore.tiers.remote import RemoteTier

    engine = _engine(config)
    try:
        return RemoteTier(
            engine, capacity=config.capacity, deadline_s=config.deadline_s, io_threads=config.io_threads,
            hedge=config.hedge, recover_records=0,
        )  # fmt: skip
    except KVStoreError:
        engine.close()
        raise


def _peers(config: PeersConfig) -> Tier:
    from kvstore.channels.options import Options, tls_context
    from kvstore.tiers.peers import Directory, PeersTier
    from kvstore.tiers.peers.peer import Dialer

    place = urlsplit(config.directory or "")
    if place.scheme not in VALKEY:
        raise ConfigError(f"peers.directory = {config.directory!r} is no Valkey: valkey://HOST:PORT")
    if place.password:
        raise ConfigError("peers.directory must not hold a password: set peers.username and peers.password")
    tls = Options(ca=config.ca, cert=config.cert, key=config.key)
    if tls.secure:
        tls_context(tls)  # a file that cannot be used is an error now
    dial = Dialer(config.token or "", lambda: tls_context(tls), secure=tls.secure)
    directory = Directory(
        str(config.directory), group=config.group, username=config.username or "", password=config.password or "",
        ca_file=str(config.ca or ""), cert_file=str(config.cert or ""), key_file=str(config.key or ""),
        lease_s=config.lease_s,
    )  # fmt: skip
    return PeersTier(directory, dial, deadline_s=config.deadline_s, io_threads=config.io_threads)


def _engine(config: RemoteConfig) -> Engine:
    place = urlsplit(config.url)
    if place.password:
        raise ConfigError("remote.url must not hold a password: set remote.username and remote.password")
    if place.scheme in VALKEY:
        from kvstore.tiers.remote.valkey import ValkeyEngine

        return ValkeyEngine(
            config.url, username=config.username or "", password=config.password or "",
            ca_file=str(config.ca or ""), cert_file=str(config.cert or ""), key_file=str(config.key or ""),
        )  # fmt: skip
    if place.scheme == "s3":
        from kvstore.tiers.remote.s3 import S3Engine
        from kvstore.tiers.remote.s3_place import S3Place

        return S3Engine(
            S3Place(
                place.netloc, place.path, config.endpoint or "", config.region or "", ca_certificate=config.ca,
                access_key_id=config.username or "", secret_access_key=config.password or "",
            )
        )  # fmt: skip
    if place.scheme in ("kvstore", "kvstores"):
        from kvstore.channels.options import Options, tls_context
        from kvstore.tiers.remote.peer import PeerEngine

        tls = Options(ca=config.ca, cert=config.cert, key=config.key)
        return PeerEngine(config.url, token=config.password or "", context=lambda: tls_context(tls))
    if place.scheme == "file" and not place.netloc:
        from kvstore.tiers.remote.posix import PosixEngine

        return PosixEngine(Path(unquote(place.path)))
    raise ConfigError(
        f"remote.url = {config.url!r} names no place: valkey://HOST:PORT, s3://BUCKET/PREFIX, "
        "file:///FOLDER or kvstore://HOST:PORT"
    )
