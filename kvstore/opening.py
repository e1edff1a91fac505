"""The tiers that a configuration names, opened."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote, urlsplit

from kvstore.config import Config, CxlConfig, DramConfig, HbmConfig, NvmeConfig, PeersConfig, RemoteConfig
from kvstore.errors import ConfigError, KVStoreError
from kvstore.tiers.base import Tier
from kvstore.tiers.dram import DramTier

if TYPE_CHECKING:
    from kvstore.tiers.hbm import HbmTier
    from kvstore.tiers.remote.engine import Engine

LEDGER = "remote"  # the folder beside the segments
VALKEY = ("valkey", "valkeys", "redis", "rediss", "unix")


class Opened(NamedTuple):
    """DRAM, what is below it (the fastest first), and the device memory beside it, a tier for each device."""

    dram: DramTier
    below: Sequence[Tier]
    devices: Sequence[HbmTier]


def open_tiers(config: Config) -> Opened:
    """All tiers. Where one cannot be opened the others are closed again."""
    opened: list[Tier] = []
    try:
        devices: list[HbmTier] = []
        if config.hbm is not None:
            _check(config.hbm, len(config.namespaces))
            for number in range(len(config.hbm.devices)):
                devices.append(_hbm(config.hbm, number, len(config.namespaces)))
                opened.append(devices[-1])
        below: list[Tier] = []
        for each in config.below:
            below.append(_open(each, config.nvme))
            opened.append(below[-1])
        return Opened(_dram(config.dram), below, devices)
    except (KVStoreError, OSError):
        for tier in opened:
            tier.close()
        raise


def _check(config: HbmConfig, namespaces: int) -> None:
    """Raise `ConfigError` for what can be no tier of a store."""
    if not config.devices:
        raise ConfigError("[hbm] devices: name one, as cuda:0, or leave the table out")
    known = [_plain(each) for each in config.devices]
    twice = {each for each in known if known.count(each) > 1}
    if twice:
        raise ConfigError(f"[hbm] devices: {', '.join(sorted(twice))} is there twice")
    slabs = config.capacity // min(config.slab, config.capacity)
    if slabs < namespaces:
        raise ConfigError(
            f"[hbm] capacity of {config.capacity} bytes is {slabs} slabs of {config.slab}, for {namespaces} namespaces "
            "that need one each: raise the capacity or lower slab"
        )


def _plain(device: str) -> str:
    """`cuda:0`, however that is written."""
    kind, _, number = device.partition(":")
    return f"cuda:{int(number or 0)}" if kind == "cuda" and (number or "0").isdecimal() else device


def _hbm(config: HbmConfig, number: int, namespaces: int) -> HbmTier:
    try:
        from kvstore.tiers.hbm import HbmTier
    except ImportError as error:
        raise ConfigError(
            f"[hbm] needs torch, which cannot be imported ({error}): pip install 'tiered-kvstore[gpu]', or leave the "
            "table out"
        ) from None
    name = HbmTier.kind if len(config.devices) == 1 else f"{HbmTier.kind}{number}"
    return HbmTier(
        config.capacity, config.devices[number], slab_bytes=config.slab, ipc=True, namespaces=namespaces, name=name
    )


def _open(config: CxlConfig | NvmeConfig | PeersConfig | RemoteConfig, nvme: NvmeConfig | None) -> Tier:
    if isinstance(config, PeersConfig):
        return _peers(config)
    if isinstance(config, RemoteConfig):
        return _remote(config, nvme)
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


def _remote(config: RemoteConfig, nvme: NvmeConfig | None) -> Tier:
    from kvstore.tiers.remote import Ledger, RemoteTier

    folder = config.ledger or (nvme.path / LEDGER if nvme is not None else None)
    with ExitStack() as opened:
        ledger = None if folder is None else Ledger(folder, f"{config.url} {config.endpoint or ''}")
        if ledger is not None:
            opened.callback(ledger.close)
        engine = open_engine(config)
        opened.callback(engine.close)
        tier = RemoteTier(
            engine, capacity=config.capacity, deadline_s=config.deadline_s, io_threads=config.io_threads,
            hedge=config.hedge, recover_records=0, ledger=ledger,
        )  # fmt: skip
        opened.pop_all()
        return tier


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


def open_engine(config: RemoteConfig) -> Engine:
    """The place that hosts share. `ConfigError` for one that cannot work, `Unavailable` where nobody answers."""
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
