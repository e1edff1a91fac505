"""NVIDIA's driver, as far as copies need it.

Through ctypes, at about 1 µs a call: by torch a copy is two views, a stream made current and put back, and the copy, of
1 to 2 µs each, where 256 KiB take 5 µs on the bus. The driver and not the runtime, because its library has one name for
every CUDA version, and because an error that it returns is that call's alone: the runtime keeps a refused registration
as its last error, which the next call of torch raises.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_char_p, c_int, c_size_t, c_ubyte, c_uint, c_uint64, c_void_p
from functools import cache
from typing import Any

from kvstore.errors import ConfigError, StorageError

READ_ONLY_HOST_REGISTER_SUPPORTED = 113  # CU_DEVICE_ATTRIBUTE_…
_REGISTER_PORTABLE, _REGISTER_READ_ONLY = 1, 8  # CU_MEMHOSTREGISTER_…
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "cuInit": (c_uint,),
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDeviceGetAttribute": (POINTER(c_int), c_int, c_int),
    "cuDevicePrimaryCtxRetain": (POINTER(c_void_p), c_int),
    "cuCtxPushCurrent_v2": (c_void_p,),
    "cuCtxPopCurrent_v2": (POINTER(c_void_p),),
    "cuMemcpyAsync": (c_uint64, c_uint64, c_size_t, c_void_p),
    "cuMemsetD8Async": (c_uint64, c_ubyte, c_size_t, c_void_p),
    "cuStreamSynchronize": (c_void_p,),
    "cuMemHostRegister_v2": (c_void_p, c_size_t, c_uint),
    "cuMemHostUnregister": (c_void_p,),
    "cuMemGetAddressRange_v2": (POINTER(c_uint64), POINTER(c_size_t), c_uint64),
    "cuGetErrorName": (c_int, POINTER(c_char_p)),
}


class Context:
    """A device's primary context, which is the one that torch works in.

    `with context:` makes it the thread's current one, and what was current before comes back afterwards: a thread of
    an engine may be at work on another device. Everything else is called inside of that.
    """

    def __init__(self, ordinal: int) -> None:
        """`ordinal` counts the devices that this process sees. Raises `ConfigError` where there is no driver."""
        calls = _driver()
        self._push, self._pop = calls["cuCtxPushCurrent_v2"], calls["cuCtxPopCurrent_v2"]
        self._copy, self._set, self._synchronize = (
            calls[name] for name in ("cuMemcpyAsync", "cuMemsetD8Async", "cuStreamSynchronize")
        )
        self._device, self._context = c_int(), c_void_p()
        _check("cuDeviceGet", calls["cuDeviceGet"](ctypes.byref(self._device), ordinal))
        retained = calls["cuDevicePrimaryCtxRetain"](ctypes.byref(self._context), self._device)
        _check("cuDevicePrimaryCtxRetain", retained)

    def __enter__(self) -> Context:
        _check("cuCtxPushCurrent", self._push(self._context))
        return self

    def __exit__(self, *error: object) -> None:
        self._pop(ctypes.byref(c_void_p()))

    def copy(self, to: int, source: int, nbytes: int, stream: int) -> None:
        """Queue a copy between any two addresses, of device memory or of host memory."""
        code = self._copy(to, source, nbytes, stream)
        if code:
            _check(f"a copy of {nbytes} bytes", code)

    def zero(self, at: int, nbytes: int, stream: int) -> None:
        """Queue zeros for device memory."""
        _check(f"setting {nbytes} bytes", self._set(at, 0, nbytes, stream))

    def wait(self, stream: int) -> None:
        """Return when all that was queued on a stream is done. Other streams go on."""
        code = self._synchronize(stream)
        if code:
            _check("waiting for copies", code)

    def allocation(self, address: int) -> tuple[int, int]:
        """Start and length of the allocation that an address of device memory is in."""
        start, nbytes = c_uint64(), c_size_t()
        with self:
            code = _driver()["cuMemGetAddressRange_v2"](ctypes.byref(start), ctypes.byref(nbytes), address)
        _check("asking for an allocation's range", code)
        return start.value, nbytes.value

    @property
    def takes_read_only(self) -> bool:
        """Whether host memory that this process may only read can be registered."""
        value = c_int()
        found = _driver()["cuDeviceGetAttribute"](ctypes.byref(value), READ_ONLY_HOST_REGISTER_SUPPORTED, self._device)
        return found == 0 and value.value != 0

    def register(self, address: int, nbytes: int, *, read_only: bool) -> None:
        """Pin host memory where it lies, for every device of this process. Devices only read what is `read_only`."""
        flags = _REGISTER_PORTABLE | (_REGISTER_READ_ONLY if read_only else 0)
        with self:
            code = _driver()["cuMemHostRegister_v2"](address, nbytes, flags)
        _check(f"registering {nbytes} bytes of host memory{' for reading' if read_only else ''}", code)

    def unregister(self, address: int) -> None:
        """The inverse."""
        with self:
            code = _driver()["cuMemHostUnregister"](address)
        _check("unregistering host memory", code)


@cache
def _driver() -> dict[str, Any]:
    """The driver's calls by name."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise ConfigError(f"NVIDIA's driver is not here ({error}); leave the hbm tier out") from None
    calls = {}
    for name, arguments in _SIGNATURES.items():
        call = getattr(library, name)
        call.argtypes, call.restype = arguments, c_int
        calls[name] = call
    code = calls["cuInit"](0)
    if code:
        raise ConfigError(f"NVIDIA's driver finds no device (cuInit: {code}); leave the hbm tier out")
    return calls


def _check(what: str, code: int) -> None:
    if code:
        name = c_char_p()
        _driver()["cuGetErrorName"](code, ctypes.byref(name))
        said = (name.value or b"unknown").decode()
        raise StorageError(f"{what} failed on the GPU: {said} ({code})")
