"""The configuration as data: the one schema. `kvstore.settings` reads it from files, variables and flags.

A field's annotation says what its value may be: `Annotated[int, Quantity(...)]` for what has a unit or a least
value, so that the reader, the command line's flags and the documentation need no second list.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, ClassVar

KiB = 1 << 10
MiB = 1 << 20
GiB = 1 << 30


@dataclass(frozen=True)
class Quantity:
    """What a number counts: `bytes`, `seconds` or (empty) things; and the least it may be."""

    unit: str = ""
    least: float = 0
    positive: bool = False  # more than `least`, not equal to it


Size = Annotated[int, Quantity("bytes", positive=True)]
SizeOrNone = Annotated[int, Quantity("bytes")]
Count = Annotated[int, Quantity(least=1)]
Seconds = Annotated[float, Quantity("seconds")]
SomeSeconds = Annotated[float, Quantity("seconds", positive=True)]
Rate = Annotated[float, Quantity()]


ALL, SECOND_TOUCH = RULES = ("all", "second-touch")


@dataclass(frozen=True)
class OneOf:
    """Marks a key that holds one of a few words."""

    words: tuple[str, ...]


@dataclass(frozen=True)
class CodecName:
    """Marks a key that names a form: `raw`, or a codec and its level."""


@dataclass(frozen=True)
class EvictionPolicy:
    """Marks a key that names an eviction policy."""


FormName = Annotated[str, CodecName()]
FormNameOrNone = Annotated[str | None, CodecName()]
PolicyName = Annotated[str, EvictionPolicy()]
Rule = Annotated[str, OneOf(RULES)]
PolicyNameOrNone = Annotated[str | None, EvictionPolicy()]


@dataclass(frozen=True)
class _WithPaths:
    """A table some of whose keys are paths, which may be given as text."""

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if "Path" not in str(each.type) or value is None:
                continue
            made = Path(value) if isinstance(value, str | Path) else tuple(map(Path, value))
            object.__setattr__(self, each.name, made)


@dataclass(frozen=True)
class DramConfig:
    """The arena: extents of `extent` bytes up to `capacity`, each owned by one namespace.

    `codec` is the form in which a put is stored, for namespaces that name none of their own. Extents lie on NUMA
    `nodes` in turn (none: those with processors), in `pages` of a kind (`hugetlb`, `thp`, `plain`; `auto`: what can be
    had), kept in memory if `lock`.
    """

    capacity: Size = 2 * GiB
    extent: Size = 1 * GiB
    codec: FormName = "raw"
    nodes: tuple[int, ...] = ()
    pages: str = "auto"
    lock: bool = False


@dataclass(frozen=True)
class HbmConfig:
    """Memory of GPUs, for engines on this host: `capacity` bytes of each of `devices` (`cuda:N`).

    It is taken at the start, in slabs of `slab` bytes, each owned by one namespace: no part of a chunk may be larger.
    """

    table: ClassVar[str] = "hbm"
    capacity: Size
    devices: tuple[str, ...] = ("cuda:0",)
    slab: Size = 1 * GiB


@dataclass(frozen=True)
class CxlConfig(_WithPaths):
    """Memory on CXL devices, below DRAM: of NUMA `nodes` without CPUs, or of device-DAX `paths`; one of the two.

    `capacity` is over all devices (0: all that `paths` have). `persistent` finds the records on `paths` again. `admit`
    says which chunks come down here: all, or those used twice.
    """

    table: ClassVar[str] = "cxl"
    nodes: tuple[int, ...] = ()
    paths: tuple[Path, ...] = ()
    capacity: SizeOrNone = 0
    persistent: bool = False
    codec: FormName = "raw"
    admit: Rule = ALL
    write_bytes_per_day: ClassVar[int] = 0  # it does not wear


@dataclass(frozen=True)
class NvmeConfig(_WithPaths):
    """A folder of log-structured segments, and further ones in `paths`, each on a drive of its own.

    `capacity` is a hard limit; `reserve` bytes of the file system are left free whatever it says. `codec` is the
    form that parts are given on their way down. `admit` says which chunks come down here: all, or those used twice;
    `write_bytes_per_day` how much may be written to the drives, clean-up included (0: no bound).
    """

    table: ClassVar[str] = "nvme"
    path: Path
    capacity: Size = 64 * GiB
    segment: Size = 256 * MiB
    reserve: SizeOrNone = 1 * GiB
    io_threads: Count = 7
    codec: FormName = "raw"
    paths: tuple[Path, ...] = ()
    admit: Rule = ALL
    write_bytes_per_day: SizeOrNone = 0


@dataclass(frozen=True)
class RemoteConfig(_WithPaths):
    """A place that hosts share: `valkey://HOST:PORT`, `s3://BUCKET/PREFIX` or `file:///FOLDER`.

    `capacity` bounds what this host has there, over restarts: what it has written is noted in the folder `ledger` on
    this host (none: beside the segments of `[nvme]`), which one process uses. A call may take `deadline_s` and the
    time that its bytes need. A look-up waits `lookup_wait_s` at most for what other hosts have stored. `hedge` sends a
    second read where an answer is late. `admit` says which chunks are copied there: all, or those used twice;
    `write_bytes_per_day` how much (0: no bound). For S3, `endpoint` is a server other than Amazon's; credentials come
    from `username` and `password` (the access key and its secret), or from where the AWS tools find theirs.
    """

    table: ClassVar[str] = "remote"
    url: str
    capacity: Size = 1 << 40
    ledger: Path | None = None
    codec: FormName = "raw"
    deadline_s: SomeSeconds = 5.0
    lookup_wait_s: Seconds = 0.02
    io_threads: Count = 4
    hedge: bool = False
    admit: Rule = ALL
    write_bytes_per_day: SizeOrNone = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    endpoint: str | None = None
    region: str | None = None


@dataclass(frozen=True)
class PeersConfig(_WithPaths):
    """Other hosts: those that a `directory` in Valkey (`valkey://HOST:PORT`) tells of are read from.

    `token` (or the one in `token_file`) is what servers show each other; it opens every namespace. `advertise` is
    where they reach this host's bulk channel, HOST:PORT (none: where it listens). `group` parts hosts that share a
    Valkey and nothing else. A host that has not renewed its lease for `lease_s` is gone. A look-up waits
    `lookup_wait_s` at most; a read may take `deadline_s` and the time that its bytes need. `username` and `password`
    are Valkey's; `ca`, `cert` and `key` are for TLS with it and with other servers.
    """

    table: ClassVar[str] = "peers"
    codec: ClassVar[str] = "raw"  # nothing is written to other hosts
    admit: ClassVar[str] = ALL
    write_bytes_per_day: ClassVar[int] = 0
    directory: str | None = None
    advertise: str | None = None
    group: str = "default"
    token: str | None = field(default=None, repr=False)
    token_file: Path | None = None
    lease_s: Annotated[float, Quantity("seconds", least=1)] = 5.0
    lookup_wait_s: Seconds = 0.02
    deadline_s: SomeSeconds = 2.0
    io_threads: Count = 4
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None


@dataclass(frozen=True)
class NamespaceConfig(_WithPaths):
    """A tenant. `quota` bounds its bytes over all tiers (0: no bound), `ttl_s` the time since last use (0: none).

    `tokens` are the bearer tokens that open it; `tokens_file` names a file with one per line, which a
    configuration reader adds to `tokens`. `codec` is the form in which its puts are stored (none: `[dram] codec`).
    `lossy` lets a lossy form take the place of its last exact copy; without it a lossy codec of a tier is `lossless`
    for this namespace. `policy` says which of its chunks go first (none: what the store says). `operator` lets its
    callers run the whole store: drain tiers, and see figures of all tenants.
    """

    name: str
    quota: SizeOrNone = 0
    ttl_s: Seconds = 0.0
    tokens: tuple[str, ...] = field(default=(), repr=False)
    tokens_file: Path | None = None
    codec: FormNameOrNone = None
    lossy: bool = False
    policy: PolicyNameOrNone = None
    operator: bool = False


@dataclass(frozen=True)
class CodecsConfig(_WithPaths):
    """Files that codecs need: `artefacts`, as `kvstore calibrate` makes them, beside those that are shipped."""

    artefacts: tuple[Path, ...] = ()


@dataclass(frozen=True)
class ServerConfig(_WithPaths):
    """Where and for whom the server listens. Beyond the host it needs a certificate and tokens.

    `local` is the path of the local channel's Unix socket, `bulk` the address of the bulk channel; `auto` derives
    them from `listen`, `off` leaves a channel out.
    """

    listen: str = "127.0.0.1:7420"
    local: str = "auto"
    bulk: str = "auto"
    tls_cert: Path | None = None
    tls_key: Path | None = None
    client_ca: Path | None = None
    max_workers: Count = 16
    max_connections: Count = 1024


@dataclass(frozen=True)
class Config:
    """Everything a store and its server are told.

    `flush_on_close` writes what only DRAM holds to the NVMe tier when the store is closed in order, so that a
    restart keeps the cache. `prefill_tokens_per_s` lets the mover drop what is cheaper to recompute than to load
    (0: not known, keep everything). `max_chunks` bounds the index. `verify_bytes_per_s` are
    read in the background against their checksums, from the host's persistent tiers (0: none). `policy` says which
    chunks go first, in every tier.
    """

    dram: DramConfig = field(default_factory=DramConfig)
    hbm: HbmConfig | None = None
    cxl: CxlConfig | None = None
    nvme: NvmeConfig | None = None
    peers: PeersConfig | None = None
    remote: RemoteConfig | None = None
    namespaces: tuple[NamespaceConfig, ...] = (NamespaceConfig("default"),)
    server: ServerConfig = field(default_factory=ServerConfig)
    codecs: CodecsConfig = field(default_factory=CodecsConfig)
    max_chunks: Count = 1 << 20
    lease_limit_s: SomeSeconds = 60.0
    put_wait_s: Seconds = 1.0
    flush_on_close: bool = True
    prefill_tokens_per_s: Rate = 0.0
    verify_bytes_per_s: SizeOrNone = 0
    policy: PolicyName = "value"

    @property
    def below(self) -> tuple[CxlConfig | NvmeConfig | PeersConfig | RemoteConfig, ...]:
        """The tiers below DRAM that are set up, the fastest first. Peers are one where there is a directory of them."""
        peers = self.peers if self.peers is not None and self.peers.directory else None
        return tuple(each for each in (self.cxl, self.nvme, peers, self.remote) if each is not None)

    def may_operate(self, namespace: str) -> bool:
        """Whether callers of a namespace may do and see what concerns the whole store.

        All may where there are no tenants to be kept apart: where no tokens are asked for, or there is one namespace.
        """
        if len(self.namespaces) < 2 or not any(each.tokens for each in self.namespaces):
            return True
        return any(each.operator for each in self.namespaces if each.name == namespace)
