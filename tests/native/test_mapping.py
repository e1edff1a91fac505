"""Files in memory that several processes share."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest

from kvstore import _native

PAGE = 4096


def mapped(name: str) -> bool:
    return name in Path("/proc/self/maps").read_text()


def test_a_mapping_lasts_as_long_as_something_stands_on_it() -> None:
    descriptor = os.memfd_create("kvstore-mapping-test")
    os.ftruncate(descriptor, 4 * PAGE)
    writer = _native.map_file(descriptor, 4 * PAGE, writable=True)
    reader = _native.map_file(descriptor, 4 * PAGE)
    os.close(descriptor)
    _native.populate_read(reader)
    _native.populate_read(reader[100:200].data)
    writer[5000] = 7
    assert (reader[5000], reader.flags.writeable, writer.flags.writeable) == (7, False, True)
    with pytest.raises(ValueError, match="read-only"):
        reader[0] = 1
    view = reader.data[4999:5001]
    del writer, reader
    gc.collect()
    assert mapped("kvstore-mapping-test")
    assert view[1] == 7
    view.release()
    gc.collect()
    assert not mapped("kvstore-mapping-test")


def test_what_cannot_be_mapped() -> None:
    descriptor = os.open("/dev/null", os.O_RDONLY)
    try:
        for nbytes in (0, PAGE):
            with pytest.raises(OSError, match=r"Invalid argument|No such device"):
                _native.map_file(descriptor, nbytes)
    finally:
        os.close(descriptor)
