"""Run as a program with the stand-in for the driver in LD_LIBRARY_PATH: makes every call that `driver.py` knows."""

from __future__ import annotations

import ctypes
import threading

from kvstore import _native
from kvstore.errors import KVStoreError, StorageError
from kvstore.tiers.hbm.driver import Context

STREAM = 7


def refused(act: object, *kinds: type[KVStoreError]) -> str:
    """The message of the error that a call raises."""
    assert callable(act)
    try:
        act()
    except kinds as error:
        return str(error)
    raise AssertionError("not refused")


def main() -> None:
    """Assert what each call does."""
    stand_in = ctypes.CDLL("libcuda.so.1")
    context, first, second = Context(0), bytearray(range(200)), bytearray(200)
    to, source = _native.address_of(second), _native.address_of(first)
    assert "CUDA_ERROR_OTHER (201)" in refused(lambda: context.copy(to, source, 200, STREAM), StorageError)

    def copy() -> None:
        with context:
            context.copy(to, source, 200, STREAM)
            context.zero(to + 190, 10, STREAM)
            context.wait(STREAM)
        assert stand_in.seen_depth() == 0

    thread = threading.Thread(target=copy)
    thread.start()
    thread.join()
    assert second == first[:190] + bytes(10)
    with context:
        assert "copy of 200 bytes failed" in refused(lambda: context.copy(to, source, 200, 0), StorageError)
        assert "setting 10 bytes failed" in refused(lambda: context.zero(to, 10, 0), StorageError)
        assert "waiting for copies failed" in refused(lambda: context.wait(0), StorageError)
    assert context.takes_read_only
    assert not Context(1).takes_read_only
    assert "cuDeviceGet failed" in refused(lambda: Context(2), StorageError)
    for read_only, flags in ((False, 1), (True, 9)):
        context.register(to, 200, read_only=read_only)
        assert stand_in.seen_flags() == flags
        said = refused(lambda: context.register(to, 200, read_only=False), StorageError)
        assert "registering 200 bytes of host memory failed on the GPU: CUDA_ERROR_HOST_MEMORY_ALREADY" in said
        context.unregister(to)
    assert "unregistering" in refused(lambda: context.unregister(to), StorageError)
    assert context.allocation(5 * 4096 + 3) == (5 * 4096, 8192)
    assert stand_in.seen_depth() == 0


if __name__ == "__main__":
    main()
