import mmap
import resource

import numpy as np
import pytest

from kvstore._native import populate

SIZE = 8 << 20


def faults() -> int:
    return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt


def test_no_page_faults_are_left() -> None:
    with mmap.mmap(-1, SIZE) as mapping:
        array = np.frombuffer(mapping, np.uint8)
        populate(mapping)
        before = faults()
        array[:: mmap.PAGESIZE] = 1
        assert faults() - before < 100
        del array


def test_content_is_kept() -> None:
    memory = bytearray(range(256)) * 1000
    populate(memoryview(memory)[777:-3])
    assert memory == bytearray(range(256)) * 1000


def test_refuses_what_is_not_writable() -> None:
    with pytest.raises(ValueError, match="writable"):
        populate(bytes(100))


def test_nothing_to_do() -> None:
    populate(bytearray())
