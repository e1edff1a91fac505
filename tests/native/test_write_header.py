"""The header that native code writes in place is the one that Python reads."""

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore import _native

FIXED = bytes(range(256))
WORDS = st.integers(0, 2**64 - 1)


@given(groups=st.lists(st.tuples(WORDS, WORDS, st.binary(min_size=16, max_size=16)), max_size=300))
def test_the_layout(groups: list[tuple[int, int, bytes]]) -> None:
    offsets = np.array([each[0] for each in groups], np.uint64)
    lengths = np.array([each[1] for each in groups], np.uint64)
    header = bytearray(b"\xff" * (4096 * (1 + len(groups) // 120)))
    _native.write_header(header, FIXED, offsets, lengths, b"".join(each[2] for each in groups))
    entries = b"".join(struct.pack("<QQ16s", *each) for each in groups)
    checksum = struct.unpack_from("<Q", header, 8)[0]
    header[8:16] = bytes(8)
    assert header[256:] == entries + bytes(len(header) - 256 - len(entries)), "old bytes are gone"
    assert (header[:8], header[16:256]) == (FIXED[:8], FIXED[16:])
    assert checksum == _native.xxh3_64(header)


def test_what_does_not_fit_is_refused() -> None:
    words, header = np.zeros(4, np.uint64), bytearray(4096)
    refused = [
        (header, FIXED, words, words[:3], bytes(64)),
        (header, FIXED, words, words, bytes(63)),
        (bytearray(256 + 4 * 32 - 1), FIXED, words, words, bytes(64)),
        (header, bytes(15), words, words, bytes(64)),
        (bytes(4096), FIXED, words, words, bytes(64)),
    ]
    for arguments in refused:
        with pytest.raises(ValueError, match=r"do not fit|no layer groups|writable"):
            _native.write_header(*arguments)
    assert header == bytes(4096)
    with pytest.raises(TypeError, match="lengths"):
        _native.write_header(header, FIXED, words, np.zeros(4, np.uint32), bytes(64))
    _native.write_header(bytearray(256 + 4 * 32), FIXED, words, words, bytes(64))
