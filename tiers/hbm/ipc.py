"""Device memory from one process to another on the host.

A handle names a range of a slab and says how to open the slab: by CUDA IPC, or, for the CPU twin, as a file in memory
that the other process opens through /proc. `kvstore serve` lets nobody in there, and hands out slabs one by one: what
says how to open each, and of the twin's the descriptor. A slab is opened once in a process, so that every further
handle costs a look-up. What is opened is the tier's own memory: a handle is good as
long as the lease under which the range was handed out, and a reader has finished (on the device, too) before it lets
go of that lease.

CUDA IPC knows no memory that may only be read. An engine that writes to what it has opened spoils chunks of its own
namespace, which checksums find when they are next verified, and of no other.
"""

from __future__ import annotations

import json
import os
import re
import threading
from functools import cache
from typing import Any, NamedTuple

import torch

from kvstore import _native
from kvstore.errors import ConfigError, InvalidArgument, Unavailable
from kvstore.tiers.hbm.driver import Context
from kvstore.tiers.hbm.slabs import Slab

VERSION = 1
_CPU = torch.device("cpu")
_GRANULE = 2 << 20  # torch allocates device memory in whole ones
# What torch's `UntypedStorage._share_cuda_` gives and `_new_shared_cuda` takes, behind the device.
_CUDA_FIELDS = ("memory", "nbytes", "offset", "counter", "counter_offset", "event", "event_needed")


class SharedSlab(NamedTuple):
    """What another process needs to open a slab: `opening` is JSON, `descriptor` -1 for device memory."""

    number: int
    identity: str
    nbytes: int
    opening: str
    descriptor: int


@cache
def device_id(device: torch.device) -> str:
    """A device by what it is called in every process of the host: a GPU's UUID, or `cpu`."""
    if device.type != "cuda":
        return device.type
    return str(torch.cuda.get_device_properties(device).uuid)


def named_device(device: Any) -> str:
    """`device_id` of what a caller names: torch's device or its name; None for the current GPU, or else `cpu`."""
    if device is None:
        return device_id(torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else _CPU)
    try:
        known = torch.device(device)
    except RuntimeError:
        raise InvalidArgument(f"{device!r} is no device; use cuda:N, or None for the current one") from None
    if known.type == "cuda" and not (known.index or 0) < torch.cuda.device_count():
        raise InvalidArgument(f"{device!r}: this process sees {torch.cuda.device_count()} GPUs")
    return device_id(known)


def check_alone(slab: Slab, context: Context) -> None:
    """Raise `ConfigError` unless a slab is an allocation of its own.

    What CUDA IPC opens is a whole allocation of the driver's; torch may have cut the slab out of a larger one, with
    other tensors in it.
    """
    start, nbytes = context.allocation(slab.address)
    if start != slab.address or nbytes > slab.nbytes + _GRANULE:
        raise ConfigError(
            f"[hbm] ipc: a slab of {slab.nbytes} bytes lies in an allocation of {nbytes} with other tensors, which "
            "other processes would see: set slab to 10 MiB or more, unset PYTORCH_CUDA_ALLOC_CONF, and open the "
            "tier before other device memory is used"
        )


def describe(slab: Slab) -> str:
    """How another process opens a slab, as JSON. Raises `Unavailable` where this device's memory cannot be shared."""
    if slab.memory.device.type == "cuda":
        return json.dumps(_share_cuda(slab))
    return json.dumps({"device": "cpu", "file": f"/proc/{os.getpid()}/fd/{slab.file}"})


def handle(slab: Slab, opening: str, start: int, nbytes: int) -> bytes:
    """A range of a slab, for another process's `Importer`."""
    head = {"v": VERSION, "slab": slab.identity, "slab_bytes": slab.nbytes, "start": start, "nbytes": nbytes}
    return (json.dumps(head)[:-1] + f', "open": {opening}}}').encode()


class Importer:
    """Opens what the HBM tiers of other processes have handed out. Any thread may use it."""

    def __init__(self) -> None:
        self._slabs: dict[str, torch.Tensor] = {}
        self._lock = threading.Lock()

    def open(self, handle: bytes) -> torch.Tensor:
        """The uint8 tensor of a handle, in the other process's memory: nothing is copied.

        Raises `InvalidArgument` for what is no handle, `Unavailable` where the memory cannot be opened here: the
        other process is gone, or this one does not see its device. In the process that handed it out, use
        `HbmTier.view`: CUDA opens no memory of its own process.
        """
        asked = _parsed(handle)
        slab = self._slab(asked["slab"], asked["slab_bytes"], asked["open"], -1)
        return slab[asked["start"] : asked["start"] + asked["nbytes"]]

    def open_slab(self, identity: str, nbytes: int, opening: str, descriptor: int = -1) -> torch.Tensor:
        """All of a slab, by what `HbmTier.share` gave; the caller closes the `descriptor`. Raises as `open`."""
        try:
            parsed = json.loads(opening)
        except ValueError:
            raise InvalidArgument(f"this says not how to open a slab: {opening[:60]!r}") from None
        return self._slab(identity, nbytes, parsed, descriptor)

    def close(self) -> None:
        """Let go of all slabs; each is unmapped when no tensor stands on it any more."""
        with self._lock:
            self._slabs.clear()

    def _slab(self, identity: str, nbytes: int, opening: dict[str, Any], descriptor: int) -> torch.Tensor:
        with self._lock:
            slab = self._slabs.get(identity)
            if slab is None:
                slab = self._slabs[identity] = _opened(opening, nbytes, descriptor)
            return slab


def _parsed(handle: bytes) -> dict[str, Any]:
    """A handle's fields, of the right kinds and within the slab."""
    try:
        asked = json.loads(handle)
        version, start, nbytes, whole = (asked[name] for name in ("v", "start", "nbytes", "slab_bytes"))
        sound = version == VERSION and isinstance(asked["slab"], str) and isinstance(asked["open"]["device"], str)
        sound = sound and all(type(each) is int for each in (start, nbytes, whole))
        sound = sound and 0 <= start <= start + nbytes <= whole
    except (ValueError, KeyError, TypeError):
        sound = False
    if not sound:
        raise InvalidArgument(f"no handle of this version of the hbm tier: {bytes(handle[:60])!r}")
    found: dict[str, Any] = asked
    return found


def _share_cuda(slab: Slab) -> dict[str, Any]:
    storage = slab.memory.untyped_storage()
    try:
        _, *shared = storage._share_cuda_()  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        where = slab.memory.device
        raise Unavailable(f"the memory of {where} cannot be shared with other processes: {error}") from None
    # torch would keep the memory until one reader more than none has let go of it; here that is the lease's work.
    told = dict(zip(_CUDA_FIELDS, shared, strict=True))
    torch.UntypedStorage._release_ipc_counter_cuda(told["counter"], told["counter_offset"])
    fields = {name: each.hex() if isinstance(each, bytes) else each for name, each in told.items()}
    return {"device": device_id(slab.memory.device)} | fields


def _opened(opening: dict[str, Any], nbytes: int, descriptor: int) -> torch.Tensor:
    try:
        if opening["device"] == "cpu":
            return _open_file(opening["file"], nbytes) if descriptor < 0 else _map(descriptor, nbytes)
        return _open_cuda(opening, nbytes)
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidArgument(f"a handle of the hbm tier that does not say how to open its slab: {error!r}") from None


def _open_file(path: str, nbytes: int) -> torch.Tensor:
    if not re.fullmatch(r"/proc/\d+/fd/\d+", path):
        raise InvalidArgument(f"{path!r} is not the memory of another process")
    try:
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise Unavailable(f"the memory of the hbm tier cannot be opened ({path}: {error.strerror})") from None
    try:
        return _map(file, nbytes)
    finally:
        os.close(file)


def _map(file: int, nbytes: int) -> torch.Tensor:
    if os.fstat(file).st_size != nbytes:
        raise Unavailable(f"this is not the slab of {nbytes} bytes that was handed out: its tier is closed")
    try:
        return torch.from_numpy(_native.map_file(file, nbytes, writable=True))
    except OSError as error:
        raise Unavailable(f"a slab of {nbytes} bytes cannot be mapped: {error.strerror}") from None


def _open_cuda(opening: dict[str, Any], nbytes: int) -> torch.Tensor:
    number = _device_number(opening["device"])
    fields = [opening[name] for name in _CUDA_FIELDS]
    shared = [bytes.fromhex(each) if isinstance(each, str) else each for each in fields]
    try:
        storage = torch.UntypedStorage._new_shared_cuda(number, *shared)
        memory = torch.empty(0, dtype=torch.uint8, device=f"cuda:{number}").set_(storage)
    except RuntimeError as error:
        raise Unavailable(f"the memory of the hbm tier cannot be opened on cuda:{number}: {error}") from None
    if memory.nbytes != nbytes:
        raise InvalidArgument(f"a handle of {nbytes} bytes opens {memory.nbytes} bytes")
    return memory


def _device_number(wanted: str) -> int:
    """A device by its UUID: numbers differ between processes with different CUDA_VISIBLE_DEVICES."""
    if not torch.cuda.is_available():
        raise Unavailable(f"the memory is on GPU {wanted}; this process sees no GPU")
    torch.cuda.init()  # type: ignore[no-untyped-call]
    seen = [device_id(torch.device("cuda", n)) for n in range(torch.cuda.device_count())]
    if wanted not in seen:
        raise Unavailable(f"the memory is on GPU {wanted}; this process sees {', '.join(seen)}")
    return seen.index(wanted)
