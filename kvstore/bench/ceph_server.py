"""A Ceph cluster beside us: one monitor, one OSD that keeps everything in memory, and its S3 gateway, `radosgw`.

Real processes of Debian's packages `radosgw`, `ceph-mon`, `ceph-osd` and `ceph-common`, with a configuration, keys and
a folder of their own, listening on this host only. Nothing outlives them, so all are killed at the end, and by the
kernel should this process die before.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from kvstore.bench.processes import free_port
from kvstore.bench.s3_server import S3Server
from kvstore.bench.tcp_peer import HOST
from kvstore.errors import InvalidArgument, Unavailable

MEMORY_BYTES = 4 << 30  # what it holds
PROGRAMS = ("ceph", "ceph-authtool", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin")
PACKAGES = "apt-get install radosgw ceph-mon ceph-osd ceph-common"
START_S = 90.0
USER = "bench"
_ALLOWED = ("--cap", "mon", "allow *", "--cap", "osd", "allow *")
# Small answers that wait for each other's acknowledgements (Nagle) take 44 ms: hence `tcp_nodelay`. What was deleted
# is to go at once, since it lies in memory.
_CONFIGURATION = """[global]
fsid = {fsid}
mon initial members = a
mon host = {monitor}
public addr = {host}
cluster addr = {host}
ms bind msgr1 = false
keyring = {folder}/keyring
mon data = {folder}/mon
osd data = {folder}/osd
rgw data = {folder}/rgw
run dir = {folder}
crash dir = {folder}
admin socket = {folder}/$name.asok
log file = {folder}/$name.log
mon data avail warn = 1
mon data avail crit = 1
mon allow pool size one = true
auth allow insecure global id reclaim = false
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd pool default pgp num = 4
osd crush chooseleaf type = 0
osd objectstore = memstore
memstore device bytes = {nbytes}
rgw frontends = beast endpoint={host}:{gateway} tcp_nodelay=1
rgw gc obj min wait = 1
rgw gc processor period = 2
"""


@contextmanager
def ceph_server() -> Iterator[CephServer]:
    """A gateway that checks credentials, and holds so much. `InvalidArgument` where Ceph is not installed."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        raise InvalidArgument(f"Ceph is not installed ({', '.join(missing)} is missing): {PACKAGES}")
    with (
        tempfile.TemporaryDirectory(prefix="kvstore-ceph-", ignore_cleanup_errors=True) as folder,
        ExitStack() as stack,
    ):
        yield _Cluster(Path(folder), stack).start()


@dataclass(frozen=True)
class CephServer(S3Server):
    """A Ceph gateway, whose user may be given less room."""

    configuration: Path = Path()

    def limit(self, nbytes: int) -> None:
        """Let a bucket of this user's hold so many bytes and no more; 0: any number."""
        admin = ("radosgw-admin", "quota", "--quota-scope=bucket", f"--uid={USER}")
        _run(self.configuration, *admin, "set", f"--max-size={nbytes}B")
        _run(self.configuration, *admin, "enable" if nbytes else "disable")


class _Cluster:
    """Processes in a folder, killed when `stack` unwinds."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder, self._stack = folder, stack
        self._gateway_port = free_port()
        self._configuration = folder / "ceph.conf"
        self._fsid = str(uuid.uuid4())
        self._monitor = f"v2:{HOST}:{free_port()}/0"
        self._configuration.write_text(
            _CONFIGURATION.format(
                fsid=self._fsid, host=HOST, folder=folder, nbytes=MEMORY_BYTES, gateway=self._gateway_port,
                monitor=self._monitor,
            )
        )  # fmt: skip

    def start(self) -> CephServer:
        """The gateway, once it serves, with a user of its own."""
        for name in ("mon", "osd", "rgw"):
            (self._folder / name).mkdir()
        self._make_keys()
        monmap = str(self._folder / "monmap")
        _run(None, "monmaptool", "--create", "--fsid", self._fsid, "--addv", "a", self._monitor, monmap)
        keyring = str(self._folder / "keyring")
        _run(self._configuration, "ceph-mon", "-i", "a", "--mkfs", "--monmap", monmap, "--keyring", keyring)
        self._start("ceph-mon", "-i", "a")
        osd = str(uuid.uuid4())
        _run(self._configuration, "ceph", "osd", "new", osd)
        _run(self._configuration, "ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd)
        self._start("ceph-osd", "-i", "0")
        gateway = self._start("radosgw", "-n", "client.rgw")
        self._await(gateway)
        create = ("radosgw-admin", "user", "create", f"--uid={USER}", "--display-name=bench")
        key = json.loads(_run(self._configuration, *create))["keys"][0]
        return CephServer(
            self._gateway_port, gateway.pid, key["access_key"], key["secret_key"], configuration=self._configuration
        )

    def _make_keys(self) -> None:
        keyring = str(self._folder / "keyring")
        for create, name in (["--create-keyring"], "mon."), ([], "client.admin"), ([], "osd.0"), ([], "client.rgw"):
            _run(None, "ceph-authtool", keyring, *create, "--gen-key", "-n", name, *_ALLOWED)

    def _start(self, *words: str) -> subprocess.Popen[bytes]:
        """A process that stays until the end, and out of reach of the terminal's Ctrl-C, which is for us."""
        command = ["setpriv", "--pdeathsig", "KILL", *words, "-f", "-c", str(self._configuration)]
        with (self._folder / f"{words[0]}.out").open("wb") as out:
            process = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)
        self._stack.callback(_kill, process)
        return process

    def _await(self, gateway: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and gateway.poll() is None:
            try:
                urllib.request.urlopen(f"http://{HOST}:{self._gateway_port}/", timeout=5.0).close()
                return
            except (OSError, urllib.error.URLError):
                time.sleep(0.1)
        said = _last("\n".join(each.read_text(errors="replace") for each in self._outputs()))
        raise Unavailable(f"radosgw did not serve within {START_S:g} s (exit status {gateway.poll()}): {said}")

    def _outputs(self) -> Sequence[Path]:
        return sorted(self._folder.glob("*.out"))


def _run(configuration: Path | None, *words: str) -> str:
    """What a command that ends says. `Unavailable`, with its last words, where it fails."""
    command = [*words, *(["-c", str(configuration)] if configuration else [])]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=START_S, check=False)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{' '.join(words)} did not end within {START_S:g} s") from None
    if done.returncode:
        raise Unavailable(f"{' '.join(words)} ended with {done.returncode}: {_last(done.stderr)}")
    return done.stdout


def _kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def _last(text: str) -> str:
    return " ".join(text.strip().splitlines()[-1:])
